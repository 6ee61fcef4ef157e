"""Results show themselves: one line at a prompt, an escaped table in a notebook, a data frame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kitae import console, views
from kitae.data.check import CheckReport, check
from kitae.data.spec import DataSpec
from kitae.experiments.result import StudyResult
from kitae.recipe import Recipe
from kitae.reporting.plots import Plots
from kitae.run import Run
from kitae.runtime import Predictions
from tests.images import write_folder

STUDIES = Path(__file__).parents[1] / "studies" / "results"
HOSTILE = "<script>alert(1)</script>"


def predictions(count: int = 2) -> Predictions:
    shares = np.tile(np.array([[0.25, 0.75]], np.float32), (count, 1))
    images = tuple(f"{HOSTILE}-{place}.jpg" for place in range(count))
    return Predictions(shares.argmax(axis=1), shares, ("cat", HOSTILE), images)


def test_a_recipe_is_one_line_and_a_table() -> None:
    recipe = Recipe.load("fashion-mini").override(f"name='{HOSTILE}'")
    assert "\n" not in repr(recipe)
    assert "resnet9" in repr(recipe)
    assert HOSTILE not in recipe._repr_html_()
    assert "horizontal_flip" in recipe._repr_html_()
    assert str(recipe) == recipe.to_yaml()


def test_a_name_that_is_not_utf8_can_be_printed(tmp_path: Path) -> None:
    odd = "photos-\udcff"
    result = StudyResult.open(next(STUDIES.iterdir()))
    shown = [
        repr(Recipe(data=DataSpec(source=f"folder:/{odd}"))),
        repr(CheckReport(odd, 0, {"train": {}}, (), {}, {}, (), (), ())),
        str(CheckReport(odd, 0, {"train": {}}, (), {}, {}, (), (), ())),
        repr(replace(result, path=tmp_path / odd)),
        repr(Plots(Run(tmp_path / odd, Recipe()))),
    ]
    for text in shown:
        text.encode()
        assert "photos-" in text


def test_a_check_is_one_line_its_report_and_a_table(tmp_path: Path) -> None:
    found = check(write_folder(tmp_path / "<b>pets", train=4, classes=2))
    assert "\n" not in repr(found)
    assert found.verdict in repr(found)
    assert str(found).splitlines() == found.lines()
    assert "<b>" not in found._repr_html_()


def test_predictions_are_one_line_a_table_and_a_frame() -> None:
    found = predictions()
    assert "\n" not in repr(found)
    assert "75.0 %" in repr(found)
    assert "2 images" in repr(found)
    assert HOSTILE not in found._repr_html_()
    table = found.to_pandas()
    assert list(table.columns) == ["image", "class", "confidence", "cat", HOSTILE]
    assert table["class"].tolist() == [HOSTILE] * 2
    assert table["cat"].tolist() == [0.25, 0.25]


def test_no_predictions_are_shown_too() -> None:
    empty = Predictions(np.empty(0, np.int64), np.empty((0, 2), np.float32), ("cat", "class"))
    assert "0 images" in repr(empty)
    assert "0 predictions" in empty._repr_html_()
    assert list(empty.to_pandas().columns) == ["class", "confidence", "cat", "class (class)"]


def test_columns_of_classes_are_distinct() -> None:
    columns = views.class_columns(("image", "image (class)", "cat"))
    assert columns == ["image (class)", "image (class) (class)", "cat"]


def test_a_long_table_says_how_much_is_missing() -> None:
    text = predictions(views.MAX_ROWS + 5)._repr_html_()
    assert text.count("<tr>") == 1 + views.MAX_ROWS
    assert f"{views.MAX_ROWS} of {views.MAX_ROWS + 5} rows" in text


def test_all_results_of_a_run_are_shown() -> None:
    classes = {f"class {k}": {"accuracy": 0.9, "accuracy_interval": (0.8, 0.95)} for k in range(16)}
    split = {
        "count": 160, "accuracy": 0.9, "accuracy_interval": (0.8, 0.95), "balanced_accuracy": 0.9, "loss": 0.3,
        "ece": 0.02, "folds": [{"accuracy": 0.9}, {"accuracy": 0.8}], "per_class": classes,
    }  # fmt: skip
    run = SimpleNamespace(
        finished=True, path=Path("runs/x"), recipe=Recipe.load("fashion-mini"),
        evaluation=lambda: {"out_of_fold": split, "best_epoch": 2, "test_openings": 1},
        metrics=lambda: [{"epoch": 2, "seconds": 60.0}],
    )  # fmt: skip
    text = views.run_html(run)
    assert "class 15" in text
    assert "test opened" in text
    assert "to_pandas" not in text


def test_an_unfinished_cross_validation_counts_folds(tmp_path: Path) -> None:
    recipe = Recipe.load("fashion-mini").override("data.folds=2", "train.epochs=4")
    rows: list[dict[str, object]] = []
    run = SimpleNamespace(
        finished=False, path=tmp_path, recipe=recipe, metrics=lambda: rows, fold=lambda number: tmp_path / str(number)
    )
    assert "not finished, 0 of 2 folds" in views.run_line(run)
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "evaluation.json").touch()
        if number == 1:
            assert "not finished, 1 of 2 folds" in views.run_line(run)
    rows.append({"epoch": 3})
    assert "not finished, 3 of 4 epochs" in views.run_line(run)
    run.recipe, run.fold = recipe.override("data.fold=1"), lambda number: tmp_path / "none"
    assert "not finished, 3 of 4 epochs" in views.run_line(run), "the run of one fold"


@pytest.mark.parametrize("changed", [{"per_class": None}, {"accuracy_interval": [0.8]}, {"loss": "x"}])
def test_a_run_whose_file_has_other_contents_is_no_traceback(changed: dict[str, object]) -> None:
    split = {
        "count": 160, "accuracy": 0.9, "accuracy_interval": (0.8, 0.95), "balanced_accuracy": 0.9, "loss": 0.3,
        "ece": 0.02, "folds": [{"accuracy": 0.9}], "per_class": {}, **changed,
    }  # fmt: skip
    run = SimpleNamespace(
        finished=True, path=Path("runs/x"), recipe=Recipe.load("fashion-mini"), metrics=list,
        evaluation=lambda: {"out_of_fold": split, "best_epoch": 2, "test_openings": 1},
    )  # fmt: skip
    assert "cannot be shown" in views.run_html(run)


def test_the_training_time_of_a_run_includes_validation() -> None:
    split = {"accuracy": 0.9, "accuracy_interval": (0.8, 0.95), "balanced_accuracy": 0.9, "loss": 0.3, "ece": 0.02}
    rows = [{"epoch": 1, "seconds": 50.0, "validation_seconds": 10.0}, {"epoch": 2, "seconds": 60.0}]
    told = dict(views.run_rows({"test": split, "best_epoch": 2, "test_openings": 1}, rows))
    assert told["training time"] == console.duration(120)


@pytest.mark.parametrize(
    ("epochs", "kept", "told"),
    [
        ([0, 1, 2], 2, ["best epoch", "2 of 2"]),
        ([0, 1, 2], 0, ["best epoch", "0 of 2; 0 is the linear head"]),
        ([0], 0, ["trained", "linear head, no epoch of fine-tuning"]),
    ],
)
def test_epoch_0_is_told_to_be_the_linear_head(epochs: list[int], kept: int, told: list[str]) -> None:
    split = {"accuracy": 0.9, "accuracy_interval": (0.8, 0.95), "balanced_accuracy": 0.9, "loss": 0.3, "ece": 0.02}
    rows = [{"epoch": epoch, "seconds": 50.0} for epoch in epochs]
    assert told in views.run_rows({"test": split, "best_epoch": kept, "test_openings": 1}, rows)
