"""Cross-validation: every image measured once by a model that has not seen it, and a model on everything."""

from __future__ import annotations

import importlib
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from kitae.errors import CompressionError, RecipeError, TrainingError, TrainingInterruptedError
from kitae.evaluation import intervals
from kitae.evaluation.calibration import fit_temperature, probabilities
from kitae.models.build import build
from kitae.models.spec import ModelSpec
from kitae.pipelines.bench import estimate
from kitae.pipelines.compress import compress
from kitae.pipelines.export import export
from kitae.pipelines.folds import out_of_fold, tunes
from kitae.pipelines.pace import Clock
from kitae.pipelines.plan import plan
from kitae.pipelines.probe import Features
from kitae.pipelines.setup import Setup
from kitae.pipelines.train import train, train_without_test
from kitae.recipe import Recipe
from kitae.reporting.page import report
from kitae.run import Run
from kitae.training.checkpoint import load_weights
from kitae.training.distributed import World
from kitae.training.fit import Record
from tests.images import picture, write_parquet
from tests.refusals import refused
from tests.watchers import Watcher

training = importlib.import_module("kitae.pipelines.train")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """48 pictures of 2 classes in 12 groups, a tiny network and its weights."""
    root = tmp_path_factory.mktemp("folds")
    for label in range(2):
        for number in range(24):
            inside = root / "data" / f"class {label}" / f"p{number // 4}"
            inside.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(label, number, (24, 24), 2)).save(inside / f"{number}.png")
    torch.manual_seed(1)
    model = build(ModelSpec(name="resnet8", width=8), classes=7, channels=3, image_size=24)
    save_file(dict(model.state_dict()), root / "weights.safetensors")
    return Recipe().override(
        f"data.source=folder:{root / 'data'}", f"data.cache={root / 'cache'}", "data.folds=3", "data.groups=parent",
        "data.image_size=24", "data.normalize={mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}", "model.name=resnet8",
        "model.width=8", f"model.pretrained={root / 'weights.safetensors'}", "train.epochs=2", "train.batch_size=8",
        "train.threads=1", "train.precision=fp32", "train.optimizer.lr=0.01", "data.val_fraction=0.2",
        "train.channels_last=false",
    )  # fmt: skip


class StopIn(Watcher):
    """Stops after the first epoch of the part that begins with a note."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        if row["epoch"] == 1 and any(note.startswith(self._part) for note in self.notes):
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope="module", autouse=True)
def _tunes() -> Iterator[None]:
    """Fine-tuning counts as better than the probe, or the model on everything would have no epochs to test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "tunes", lambda folds: True)
        yield


@pytest.fixture(scope="module")
def run(asked: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    watcher = Watcher()
    made = train(asked, tmp_path_factory.mktemp("runs") / "whole", watcher=watcher)
    assert any("data.groups: parent, 6 groups" in note for note in watcher.notes)
    return made


def test_every_image_is_measured_once_by_a_model_that_has_not_seen_it(run: Run) -> None:
    evaluation = run.evaluation()
    found = evaluation["out_of_fold"]
    assert "val" not in evaluation
    assert "test" not in evaluation
    assert found["count"] == 48
    assert found["accuracy_interval"][0] < found["accuracy"] < 1.0 or found["accuracy"] in (0.0, 1.0)
    assert set(found["per_class"]) == {"class 0", "class 1"}
    assert [fold["count"] for fold in found["folds"]] == [16, 16, 16]
    right = sum(fold["count"] * fold["accuracy"] for fold in found["folds"])
    assert found["accuracy"] == pytest.approx(right / 48)
    assert run.predictions().num_rows == 48
    table, store = run.predictions(), run.open_store()
    hits = [row["label"] == row["predicted"] for row in table.to_pylist()]
    order = [list(store.names).index(name) for name in table["name"].to_pylist()]
    member = store.groups_of(np.array(order))
    assert member is not None
    assert table["group"].to_pylist() == member.tolist()
    assert found["accuracy_interval"] == intervals.accuracy(hits, member)["accuracy_interval"]
    assert found["intervals"]["covers"].startswith("the choice of 6 groups; the 3 folds' models are held fixed")
    assert found["intervals"]["accuracy"] == "Wilson, by groups"
    fold = Run.open(run.fold(1))
    assert fold.evaluation()["test"]["intervals"]["covers"].startswith("the choice of 2 groups; the trained model")
    again, before = fold.evaluate("val"), fold.evaluation()["val"]
    assert (again["intervals"], again["loss_interval"]) == (before["intervals"], before["loss_interval"])
    tested: list[int] = []
    for number in range(1, 4):
        fold = Run.open(run.fold(number))
        store = fold.open_store()
        splits = fold.splits(store)
        test = splits.open_test(lambda: None)
        tested += test.tolist()
        assert store.groups is not None
        groups = [set(store.groups[rows].tolist()) for rows in (splits.train, splits.val, test)]
        assert not groups[0] & groups[1] | groups[1] & groups[2] | groups[0] & groups[2]
    assert sorted(tested) == list(range(48))
    logits = np.load(run.fold(1) / "test_logits.npy")
    shares = np.array(Run.open(run.fold(1)).predictions()["probabilities"].to_pylist())
    assert (logits.argmax(1) == shares.argmax(1)).all()


def test_the_temperature_is_fitted_to_single_views(asked: Recipe, tmp_path: Path) -> None:
    recipe = asked.override("evaluate.tta=full", "data.folds=2", "train.epochs=1")
    run = train(recipe, tmp_path / "run")
    rows, single, shown = [], [], []
    for number in (1, 2):
        fold = Run.open(run.fold(number))
        setup = Setup.of(fold)
        rows.append(setup.splits.open_test(lambda: None))
        images = setup.image_set(rows[-1])
        single.append(fold.logits(images, tta="none")[0])
        shown.append(fold.logits(images)[0] / fold.evaluation()["temperature"])
    order = np.argsort(np.concatenate(rows))
    labels = np.asarray(Setup.of(run).store.labels)
    temperature = run.evaluation()["temperature"]
    assert temperature == pytest.approx(fit_temperature(np.concatenate(single)[order], labels), rel=1e-4)
    told = np.array(run.predictions()["probabilities"].to_pylist())
    np.testing.assert_allclose(told, probabilities(np.concatenate(shown)[order], 1.0), atol=1e-5)


@pytest.mark.parametrize("damage", ["gone", "empty"])
def test_a_fold_without_its_logits_is_named(run: Run, tmp_path: Path, damage: str) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    copy = Run.open(tmp_path / "run")
    if damage == "gone":
        (copy.fold(2) / "test_logits.npy").unlink()
    else:
        (copy.fold(2) / "test_logits.npy").write_bytes(b"")
    folds = [Run.open(copy.fold(number)) for number in (1, 2, 3)]
    refused(TrainingError, r"2: test_logits\.npy cannot be read; remove the folder", out_of_fold, Setup.of(copy), folds)


def test_the_model_on_everything_is_like_any_other(run: Run, tmp_path: Path) -> None:
    again = Run.open(run.path)
    assert len(again.splits(again.open_store()).train) == 48
    images = np.zeros((2, 3, 24, 24), np.uint8)
    assert again.predict(images).probabilities.shape == (2, 2)
    assert export(again, tmp_path / "m.onnx").path.is_file()
    assert again.evaluate("train")["count"] == 48
    for split in ("val", "test"):
        refused(RecipeError, "out_of_fold", again.evaluate, split)
    refused(CompressionError, r"data\.folds", compress, again, out=tmp_path / "small")
    page = report(run.path).read_text()
    assert "Out-of-fold accuracy" in page
    assert "Every fold" in page
    assert "kitae compress" not in page
    assert not again.features.exists()


def test_features_are_computed_once_for_all(asked: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    whole = Features._evaluated

    def evaluated(self: Any, network: Any, rows: Any) -> Any:
        seen.extend(rows.tolist())
        return whole(self, network, rows)

    monkeypatch.setattr(Features, "_evaluated", evaluated)
    run = train(asked.override("train.epochs=0"), tmp_path / "run")
    assert sorted(seen) == list(range(48))
    assert [row["epoch"] for row in run.metrics()] == [0]


@pytest.mark.parametrize("where", ["fold 2", "the model on everything"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(asked: Recipe, run: Run, tmp_path: Path, where: str) -> None:
    folder = tmp_path / "run"
    with pytest.raises(TrainingInterruptedError, match=str(folder)) as caught:
        train(asked, folder, watcher=StopIn(where))
    assert "folds" not in str(caught.value).split("--resume")[1]
    again = train(asked, folder, resume=True)
    for one, other in ((again, run), *((Run.open(again.fold(k)), Run.open(run.fold(k))) for k in (1, 2, 3))):
        weights = [load_weights(made.best)[0] for made in (one, other)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert again.evaluation()["out_of_fold"] == run.evaluation()["out_of_fold"]


def test_a_signal_in_the_last_epoch_of_a_fold_starts_no_other(asked: Recipe, tmp_path: Path) -> None:
    recipe, folder = asked.override("data.folds=2", "train.epochs=1"), tmp_path / "run"
    with pytest.raises(TrainingInterruptedError, match=f"SIGTERM after epoch 1; .*--resume {folder}$"):
        train(recipe, folder, watcher=StopIn("fold 1"))
    assert not (folder / "folds" / "2").exists()
    best = (folder / "folds" / "1" / "best.safetensors").read_bytes()
    watcher = Watcher()
    assert train(recipe, folder, resume=True, watcher=watcher).finished
    assert (folder / "folds" / "1" / "best.safetensors").read_bytes() == best
    assert Run.open(folder / "folds" / "1").finished
    assert watcher.epochs == [0, 1, 0, 1], "of the second fold and of the model on everything"


def test_folds_follow_images_that_were_moved(asked: Recipe, tmp_path: Path) -> None:
    """A fold that is finished, one that was stopped in training, and later all of them."""
    places = [tmp_path / name for name in ("before", "after", "last")]
    shutil.copytree(asked.data.source.removeprefix("folder:"), places[0])
    fields = ("data.folds=2", f"data.cache={tmp_path / 'cache'}")
    recipes = [asked.override(*fields, f"data.source=folder:{place}") for place in places]
    folder = tmp_path / "run"
    refused(TrainingInterruptedError, "", train, recipes[0], folder, watcher=StopIn("fold 2"))
    for old, new, recipe in zip(places, places[1:], recipes[1:], strict=False):
        old.rename(new)
        assert train(recipe, folder, resume=True).finished
        for part in (folder, folder / "folds" / "1", folder / "folds" / "2"):
            saved = Run.open(part).recipe
            assert saved.data.source == recipe.data.source
            assert saved.data.fold == (None if part == folder else int(part.name))
            shutil.rmtree(tmp_path / "cache" / "stores", ignore_errors=True)
            assert Setup.of(Run.open(part)).splits.test_count == (0 if part == folder else 24)


def test_a_process_that_is_lost_in_a_fold_names_the_whole_run(
    asked: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: Any, record: Record, **__: Any) -> None:
        assert record.checkpoint is not None
        record.checkpoint.parent.mkdir(parents=True)
        record.checkpoint.touch()
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(Setup, "fit", fit)
    monkeypatch.setattr(training.distributed, "barrier", lambda world: None)
    monkeypatch.setattr(training.distributed, "from_main", lambda value, world: value)
    folder, world = tmp_path / "run", World(0, 2, torch.device("cpu"))
    with pytest.raises(TrainingError, match=f"process 0 of 2 lost another .*: kitae train --resume {folder}$"):
        training._train(
            asked.override("train.probe=null"), folder, world, minutes=None, resume=False, watcher=Watcher()
        )


def test_the_folds_decide_whether_to_fine_tune(
    asked: Recipe, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = [Run.open(run.fold(number)) for number in (1, 2, 3)]
    kept = [fold.best_epoch() for fold in folds]
    assert tunes(folds) == (sum(epoch > 0 for epoch in kept if epoch is not None) >= 2)
    monkeypatch.setattr(training, "tunes", lambda folds: False)
    watcher = Watcher()
    alone = train(asked, tmp_path / "run", watcher=watcher)
    assert [row["epoch"] for row in alone.metrics()] == [0]
    assert alone.recipe.train.epochs == 2, "who repeats the recipe lets the folds choose again"
    assert any("no better than the probe" in note for note in watcher.notes)
    assert alone.evaluation()["out_of_fold"] == run.evaluation()["out_of_fold"]


def test_a_test_split_that_is_given_stays_a_test_split(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "d.parquet", train=12, test=3, classes=4, size=16)
    recipe = Recipe.load("fashion-mini").override(
        f"data.source=parquet:{source}", "data.folds=2", "model.name=resnet8", "model.width=4", "train.epochs=1",
        "train.batch_size=8", "train.threads=1", "train.precision=fp32", "train.early_stopping=null",
    )  # fmt: skip
    run = train(recipe, tmp_path / "run")
    evaluation = run.evaluation()
    assert evaluation["test"]["count"] == 12
    assert evaluation["out_of_fold"]["count"] == 48
    assert run.test_openings == 1
    assert all("val_accuracy" not in row for row in run.metrics())
    refused(RecipeError, "early_stopping", train, recipe.override("train.early_stopping={}"), tmp_path / "other")
    refused(RecipeError, "early_stopping", estimate, recipe.override("train.early_stopping={}"))
    expected = estimate(recipe)
    assert (expected["recipe"].data.folds, expected["recipe"].data.fold) == (2, None)
    assert expected["train"] < 48
    refused(RecipeError, r"data\.folds", train_without_test, recipe, tmp_path / "third", resume=False)


def test_minutes_cover_all_folds(asked: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks: list[Clock] = []
    whole = training.fitted

    def fitted(recipe: Recipe, setup: Setup, model: Any, clock: Clock, *rest: Any) -> Any:
        clocks.append(clock)
        return whole(recipe, setup, model, clock, *rest)

    monkeypatch.setattr(training, "fitted", fitted)
    run = train(asked, tmp_path / "run", minutes=1)
    ends = [clock.begun + clock.seconds for clock in clocks]
    assert len(clocks) == 4
    assert ends == sorted(ends)
    assert ends[-1] == pytest.approx(min(ends[-1], clocks[0].begun + 60), abs=1.0)
    assert clocks[0].seconds <= 15
    assert len(run.metrics()) == 1 + run.recipe.train.last_epoch


def test_minutes_cover_the_folds_of_before(asked: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks: list[Clock] = []
    whole = training.fitted

    def fitted(recipe: Recipe, setup: Setup, model: Any, clock: Clock, *rest: Any) -> Any:
        clocks.append(clock)
        if len(clocks) == 2:
            raise TrainingInterruptedError("interrupted in fold 2", "resume")
        return whole(recipe, setup, model, clock, *rest)

    monkeypatch.setattr(training, "fitted", fitted)
    with pytest.raises(TrainingInterruptedError):
        train(asked, tmp_path / "run", minutes=1)
    first = Run.open(Run.open(tmp_path / "run").fold(1))
    rows = first.metrics()
    rows[0]["seconds"] += 40
    first.write_metrics(rows)
    run = train(asked, tmp_path / "run", minutes=1, resume=True)
    assert run.finished
    again, last = clocks[2], clocks[-1]
    assert again.seconds <= 15, "of the folds and the model that are left"
    spent = sum(row["seconds"] + row.get("validation_seconds", 0) for row in rows)
    assert last.begun + last.seconds <= again.begun + 60 - spent + 1


def test_a_plan_for_folds(asked: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from kitae.pipelines import plan as planner
    from kitae.pipelines.pace import Pace

    monkeypatch.setattr(planner._Planner, "pace", lambda *_, **__: Pace(128 * 128, 1e-3, 1e-3, 1e-3))
    monkeypatch.setattr(planner, "within_reach", lambda name: "weights-of-test")
    monkeypatch.setenv("KITAE_CACHE", str(asked.data.cache))
    made = plan(asked.data.source, 2, planner.Choices(folds=4))
    assert (made.recipe.data.folds, made.recipe.data.fold) == (4, None)
    assert any("4 folds" in line for line in made.lines)
    assert not any("--folds" in line for line in made.lines)
    alone = plan(asked.data.source, 2)
    assert any("--folds" in line for line in alone.lines)
    assert alone.recipe.data.folds is None
    assert made.recipe.train.epochs <= alone.recipe.train.epochs
    one = plan(asked.data.source, 2, planner.Choices(set=("data.folds=4", "data.fold=2")))
    assert one.recipe.data.fold == 2
    assert not any("4 folds" in line for line in one.lines)
    refused(RecipeError, "minutes: 0: must be", plan, asked.data.source, 0)
