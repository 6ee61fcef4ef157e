"""What pages conclude follows from the numbers, and only as far as the numbers go."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kitae.cli import app
from kitae.errors import KitaeError
from kitae.experiments.design import expand
from kitae.experiments.result import StudyResult
from kitae.experiments.study_spec import StudySpec, shipped
from kitae.recipe import Recipe
from kitae.reporting import comparison_page, compression_page, run_page, study_charts, study_labels, study_page
from kitae.reporting.compression_results import CompressionRecord
from kitae.reporting.effects import Analysis, Effect, interval, measured, noise_line, verdict
from kitae.reporting.results import RunRecord
from kitae.reporting.study_results import StudyRecord, Variant, study_of
from kitae.run import Run
from tests.refusals import refused
from tests.reporting.conftest import epochs, least_drop, measured_compression

CLASSES = ("cat", "dog", "owl")
PUBLISHED = sorted((Path(__file__).parents[2] / "studies" / "results").iterdir())


def record(make_run: Callable[..., Run], confusion: list[list[int]], **changes: Any) -> RunRecord:
    """A run with this confusion matrix on test."""
    from kitae.evaluation import intervals

    run = make_run(classes=CLASSES)
    counts = [sum(row) for row in confusion]
    right, total = sum(row[k] for k, row in enumerate(confusion)), sum(counts)
    per_class = {
        name: {"accuracy": confusion[k][k] / counts[k], "count": counts[k],
               "accuracy_interval": intervals.wilson(confusion[k][k], counts[k])}
        for k, name in enumerate(CLASSES)
    }  # fmt: skip
    split = {"count": total, "accuracy": right / total, "accuracy_interval": intervals.wilson(right, total),
             "per_class": per_class, "confusion": confusion}  # fmt: skip
    run.write_evaluation({"test": split, "val": split, **changes})
    return RunRecord.open(run)


@pytest.mark.parametrize(
    ("confusion", "told"),
    [
        ([[60, 38, 2], [2, 96, 2], [3, 2, 95]], "cat is the weakest class: recall 60 %, 38 of 100 predicted as dog."),
        ([[1, 1, 1], [2, 60, 38], [1, 1, 98]], "dog is weaker than the others: recall 60 %, 38 of 100 predicted as"),
        ([[9, 1, 0], [0, 8, 2], [1, 0, 9]], "No class is significantly weaker than the others."),
        ([[80, 0, 0], [10, 0, 0], [10, 0, 0]], "not significantly better than always predicting cat (80.0 %)"),
    ],
)
def test_what_a_confusion_shows_is_told_if_it_is_significant(
    confusion: list[list[int]], told: str, make_run: Callable[..., Run]
) -> None:
    assert told in run_page.answer(record(make_run, confusion))[0]


def test_a_class_whose_images_are_of_one_group_counts_among_the_others(make_run: Callable[..., Run]) -> None:
    run = record(make_run, [[57, 2, 1], [1, 38, 1], [0, 1, 19]]).run
    found = run.evaluation()
    for names, told in ((("cat", "owl"), "No class is significantly weaker than the others."), (("dog",), ").")):
        for name in names:
            found["test"]["per_class"][name]["accuracy_interval"] = None
        run.write_evaluation(found)
        assert run_page.answer(RunRecord.open(run))[0].endswith(told)


def advice(run: Run) -> tuple[str, dict[str, str]]:
    """What a run's page concludes, and its commands by what they are for; every one is a command that exists."""
    found = RunRecord.open(Run.open(run.path))
    lines = dict(run_page.commands(found))
    for line in lines.values():
        app.parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)
    return " ".join(run_page.answer(found)), lines


def head_alone(run: Run, *overrides: str, minutes: float | None = None) -> Run:
    """The run with no epoch but that of the probe, as `train` writes it."""
    run.recipe.override(*overrides).save(run.path / "recipe.yaml")
    run.write_environment({"minutes": minutes})
    run.write_metrics([{**epochs(1)[0], "epoch": 0, "train_clean_accuracy": 1.0, "val_accuracy": 0.5}])
    return run


ABOUT = "Fine-tune the network too"
FIELDS = ("data.label_column=species", r"'data.groups=(p\d+)'", "'model.pretrained=a b.safetensors'")
READ = ("name=a", "data.source=csv:/x/a.csv", *(field.strip("'") for field in FIELDS), "data.val_fraction=0.2")


@pytest.mark.parametrize(
    ("overrides", "minutes", "told", "line"),
    [
        (("name=fashion-mini",), 1.0, "1 minute left no time to fine-tune it", "fashion-mini: NET --minutes 5"),
        (("name=a b", "data.source='folder:/x/a b'"), 2.5, "2.5 minutes left", "'folder:/x/a b' NET --minutes 10"),
        (READ, None, "no epoch of fine-tuning was asked for", f"csv:/x/a.csv NET --minutes 5 --set {' '.join(FIELDS)}"),
        (("name=fashion-mini",), None, "no epoch of fine-tuning was asked for", "fashion-mini: NET --minutes 5"),
        (("name=mine",), None, "no epoch of fine-tuning was asked for", "RUN/recipe.yaml --epochs 10"),
        (
            ("name=fashion-mini", "data.limit=500", "train.seed=3"),
            1.0,
            "1 minute left",
            "fashion-mini: NET --seed 3 --minutes 5 --set data.limit=500",
        ),
        (("name=fashion-mini", "data.folds=3"), 3.0, "3 minutes left", "fashion-mini: NET --folds 3 --minutes 12"),
    ],
)
def test_where_only_a_head_was_trained_the_page_says_how_to_fine_tune(
    overrides: tuple[str, ...], minutes: float | None, told: str, line: str, make_run: Callable[..., Run]
) -> None:
    run = head_alone(make_run(), "train.epochs=0", *overrides, minutes=minutes)
    said, lines = advice(run)
    assert told in said
    assert "overfits" not in said
    line = line.replace("RUN", str(run.path)).replace("NET", "--model resnet9")
    assert lines[ABOUT] == f"kitae train {line}"
    assert not [name for name in lines if "twice" in name or "Search" in name]
    if overrides == READ:  # whose file cannot be read without the fields
        checked = f"kitae data check csv:/x/a.csv --set {' '.join(FIELDS[:2])}"
        assert lines["Look for broken images, duplicates and label conflicts"] == checked


def test_a_recipe_that_its_minutes_cut_to_the_head_is_fine_tuned_as_it_was_asked(make_run: Callable[..., Run]) -> None:
    run = head_alone(make_run(), "train.epochs=0", minutes=2.0)
    asked = {"epochs": 12, "epoch_steps": None, "validate_every": 1, "warmup_epochs": 1.5}
    run.asked_length.write_text(json.dumps(asked))
    line = advice(run)[1][ABOUT]
    assert line.endswith("recipe.yaml --epochs 12 --set train.schedule.warmup_epochs=1.5 --minutes 8")


def test_a_head_that_fine_tuning_did_not_improve_may_need_a_longer_one(make_run: Callable[..., Run]) -> None:
    run = make_run()
    first = {**epochs(1)[0], "epoch": 0, "train_clean_accuracy": 1.0, "val_accuracy": 0.95}
    run.write_metrics([first, *epochs(4)])
    said, lines = advice(run)
    assert "No epoch of fine-tuning was better than the linear head" in said
    assert "overfits" not in said
    assert lines["Train twice as long"].endswith("train.epochs=18")


@pytest.mark.parametrize(
    ("train", "val", "overrides", "told", "about"),
    [
        (0.99, 0.80, (), "overfits", ["Search for stronger augmentation, in many trainings"]),
        (0.81, 0.80, (), "larger network or longer training",
         ["Train a network twice as wide", "Train twice as long"]),
        (0.81, 0.80, ("model.width=null",), "no more than chance", ["Train twice as long"]),
        (0.79, 0.80, ("model.width=null",), "no more than chance", ["Train twice as long"]),
        (0.81, 0.80, ("model.pretrained=own.safetensors",), "larger network or longer", ["Train twice as long"]),
        (0.80, 0.95, (), "15.0 points above training accuracy", []),
        (1.0, 1.0, (), "no more than chance", []),
        (None, None, (), "", []),
    ],
)  # fmt: skip
def test_commands_follow_from_the_advice(
    train: float, val: float, overrides: tuple[str, ...], told: str, about: list[str], make_run: Callable[..., Run]
) -> None:
    run = record(make_run, [[90, 5, 5], [5, 90, 5], [5, 5, 90]]).run
    run.recipe.override(*overrides).save(run.path / "recipe.yaml")
    run.write_metrics([{**row, "train_clean_accuracy": train, "val_accuracy": val} for row in run.metrics()])
    said, lines = advice(run)
    usual = {"Classify new images", "Make it small and fast", "List the mistakes"}
    assert [name for name in lines if name not in usual] == about
    assert told in said
    assert ("overfits" in said) == (train == 0.99)
    if train == 0.99:
        assert lines[about[0]] == f"kitae search fashion-mini --recipe {run.path}/recipe.yaml"
    if train == 0.81 and not overrides:
        assert lines[about[0]].endswith("model.width=32")


def test_a_model_on_everything_has_no_advice_that_validation_gave(make_run: Callable[..., Run]) -> None:
    run = make_run()
    said, lines = advice(head_alone(run, "train.epochs=9", "data.folds=3", minutes=3.0))
    assert "in most folds, fine-tuning was no better" in said
    assert lines.keys() == {"Classify new images", "List the mistakes"}
    found = run.evaluation()
    run.write_evaluation({"out_of_fold": found["test"], "best_epoch": 5})
    run.write_metrics([{k: v for k, v in row.items() if not k.startswith("val")} for row in epochs(5)])
    said, lines = advice(run)
    assert "overfits" not in said
    assert lines.keys() == {"Classify new images", "List the mistakes"}


def test_nothing_is_advised_where_every_validation_image_is_right(make_run: Callable[..., Run]) -> None:
    found = record(make_run, [[90, 0, 0], [0, 90, 0], [0, 0, 90]])
    run = found.run
    for right, advised in ((1.0, False), (0.99, True)):
        run.write_metrics([{**row, "train_clean_accuracy": right, "val_accuracy": right} for row in run.metrics()])
        told = run_page.answer(RunRecord.open(run))[1]
        assert "no more than chance (0.0 points)" in told
        assert ("may help" in told) == advised


def test_a_gap_on_few_groups_is_not_sure(make_run: Callable[..., Run]) -> None:
    run = record(make_run, [[80, 10, 10], [10, 80, 10], [10, 10, 80]]).run
    run.write_metrics([{**row, "train_clean_accuracy": 0.99, "val_accuracy": 0.8} for row in run.metrics()])
    found = run.evaluation()
    for groups, ends, sure in (
        ({}, [0.5, 0.95], True), ({"val": 4}, [0.5, 0.95], False), ({"val": 1}, None, False),
        ({"val": 90}, [0.74, 0.85], True),
    ):  # fmt: skip
        found["val"]["accuracy_interval"] = ends
        run.write_evaluation({**found, "groups": groups})
        assert ("overfits" in run_page.answer(RunRecord.open(run))[1]) == sure, groups


def test_a_gap_on_few_training_images_is_not_sure(make_run: Callable[..., Run]) -> None:
    run = record(make_run, [[9, 1, 0], [0, 9, 1], [1, 0, 9]]).run
    run.write_metrics([{**row, "train_clean_accuracy": 1.0, "val_accuracy": 0.9} for row in run.metrics()])
    many = run.evaluation()["val"] | {"count": 2000}
    run.write_evaluation({**run.evaluation(), "val": many})
    assert "overfits" in run_page.answer(RunRecord.open(run))[1]
    run.write_metrics([{**row, "train_clean_accuracy": 0.98} for row in run.metrics()])
    assert "overfits" in run_page.answer(RunRecord.open(run))[1]
    run.write_facts({**run.facts(), "clean_images": 50})
    assert "overfits" not in run_page.answer(RunRecord.open(run))[1]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "10 test images are also in train or validation; accuracy without them is 80.0 % (70.0 to 90.0)."),
        ({"accuracy_interval": None}, "; accuracy without them is 80.0 %."),
        ({"count": 0, "accuracy": None, "accuracy_interval": None},
         "Every test image is also in train or validation, so this accuracy says nothing about new images."),
    ],
)  # fmt: skip
def test_copies_in_test_are_told(changes: dict[str, Any], told: str, make_run: Callable[..., Run]) -> None:
    found = record(make_run, [[90, 5, 5], [5, 90, 5], [5, 5, 90]])
    assert len(run_page.answer(found)) == 2
    evaluation = found.run.evaluation()
    others = {"count": 290, "accuracy": 0.8, "accuracy_interval": [0.7, 0.9], **changes}
    found.run.write_evaluation({**evaluation, "test": {**evaluation["test"], "without_duplicates": others}})
    assert run_page.answer(RunRecord.open(found.run))[2].endswith(told)


def test_commands_quote_what_a_shell_would_take_apart(make_run: Callable[..., Run]) -> None:
    found = RunRecord.open(make_run("my run; rm x"))
    lines = [line for _, line in run_page.commands(found)]
    assert any(line.startswith("kitae compress '") and line.endswith("my run; rm x'") for line in lines)
    assert any("train.epochs=18" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "overrides", "told"),
    [
        ("none", {"augment.train": []}, "without augmentation"),
        ("a", {"augment.train.random_crop": None}, "without random crops"),
        ("a", {"augment.train.auto_augment": {"policy": "cifar10"}}, "with AutoAugment"),
        ("a", {"augment.mix": {"mixup_alpha": 1.0, "cutmix_alpha": 0.0}}, "with MixUp"),
        ("a", {"augment.mix": {"mixup_alpha": 0.2}}, "with MixUp and CutMix"),  # CutMix is on unless it is switched off
        ("a", {"augment.mix": {"until": 0.8}}, "with MixUp and CutMix, until 80 %"),
        ("a", {"augment.mix": {"until": "<b>"}}, "with MixUp and CutMix"),
        ("a", {"augment.mix": None}, "without mixing"),
        ("a", {"train.schedule.name": "constant"}, "with a constant learning rate"),
        ("a", {"train.epochs": 1}, "with 1 epoch"),
        ("a", {"train.epochs": 2000}, "with 2,000 epochs"),
        ("a", {"train.epochs": "<b>"}, "a"),
        ("a", {"train.ema": "<b>"}, "a"),  # not what it should be
        ("my_own", {"train.epochs": 3, "data.limit": 9}, "with 3 epochs and 9 images"),
        ("my_own", {"train.epochs": 3, "train.clip_norm": 1.0}, "my own"),
        ("my_own", {"augment.train.cutout.size": 8}, "with augment.train.cutout.size 8"),
        ("small first", {"train.progressive": {"start": 0.75}}, "with smaller images first"),
        ("a", {"train.precision": "fp32", "train.ema": None, "data.balance": "sampler"},
         "with rare classes drawn more often, in fp32, without averaged weights"),
        ("and jitter",
         {"augment.train": [{"random_crop": {"padding": 4}}, {"horizontal_flip": {}}, {"color_jitter": {}}]},
         "with random crops, flips and colour jitter"),
        ("my_own", {"augment.train": [{"horizontal_flip": {}}] * 5}, "my own"),
        ("strong", {"augment.train": [{"horizontal_flip": {}}] * 5}, "with strong augmentation"),
        ("strong", {"model.dropout": 0.5, "train.clip_norm": 1.0}, "strong"),  # of something else
        ("full", {"augment.train": [{"horizontal_flip": {}}] * 5, "train.clip_norm": 1.0}, "with everything"),
        ("my_own", {"augment.train": "<b>"}, "my own"),
        ("reference", {}, "reference"),
    ],
)  # fmt: skip
def test_variants_in_words(name: str, overrides: dict[str, Any], told: str) -> None:
    assert study_labels.variant_label(name, overrides) == told


def test_a_factor_without_words_is_called_by_its_name() -> None:
    """Also where variants of that name are told in words of augmentation."""
    record = StudyRecord.model_validate({
        "name": "s", "metric": "test.accuracy", "design": "one_in", "factors": {"strong": ["off", "on"]},
        "levels": {"none": {"strong": 0}, "only strong": {"strong": 1}},
        "variants": [
            {"name": "none", "runs": 1, "overrides": {"train.clip_norm": None, "model.dropout": 0.0}},
            {"name": "only strong", "runs": 1, "overrides": {"train.clip_norm": 1.0, "model.dropout": 0.5}},
        ],
    })  # fmt: skip
    assert study_labels.effect_label(record, "strong") == "with strong"


def effect(
    estimate: float | None, half: float = 1.0, *, shown: bool = True, metric: str = "test.accuracy", **more: Any
) -> Effect:
    ends = (
        {} if estimate is None else {"low": estimate - half, "high": estimate + half, "p_holm": 0.01 if shown else 0.9}
    )
    return Effect.model_validate({"name": "none", "metric": metric, "estimate": estimate, **ends, **more})


@pytest.mark.parametrize(
    ("one", "said", "size"),
    [
        (effect(-5.17, 1.3), "5.2 points worse", "-5.2 points (-6.5 to -3.9)"),
        (effect(2.0), "2.0 points better", "+2.0 points (+1.0 to +3.0)"),
        (effect(2.0, metric="test.ece"), "2.0 points worse", "+2.0 points (+1.0 to +3.0)"),
        (effect(-2.0, kind="interaction"), "2.0 points less", "-2.0 points (-3.0 to -1.0)"),
        (effect(2.0, metric="prune.sparsity"), "2.0 points more", "+2.0 points (+1.0 to +3.0)"),
        (effect(0.5, shown=False), "not shown", "+0.5 points (-0.5 to +1.5)"),
        (effect(-3.0, shown=False), "-3.0 points, not certain", "-3.0 points (-4.0 to -2.0)"),
        (effect(0.44, 0.1, metric="epoch_seconds", ratio=True), "x 0.44, better", "x 0.44 (x 0.34 to x 0.54)"),
        (
            effect(0.8, low=None, high=None, p_holm=None),
            "+0.8 points, without an interval",
            "+0.8 points (no interval)",
        ),
        (effect(None), "not known", "- (no interval)"),
    ],
)
def test_an_effect_has_the_same_words_on_a_page_as_in_a_terminal(one: Effect, said: str, size: str) -> None:
    assert (verdict(one), measured(one)) == (said, size)


def study(*effects: Effect) -> StudyRecord:
    return StudyRecord(
        name="s", metric="test.accuracy", design="compare", seeds=(0, 1, 2),
        settings={"images": 5000, "source": "cifar10", "model": "resnet9", "width": 16, "epochs": 24},
        analyses={"test.accuracy": Analysis(unit="points", better=1, effects=effects)},
    )  # fmt: skip


def test_a_study_concludes_in_three_sentences() -> None:
    good, bad, open_ = effect(2.0, name="a"), effect(-4.0, name="b"), effect(0.1, name="c", shown=False)
    shown, unclear, where = study_page.answer(study(good, bad, open_))
    assert shown.startswith("1 of 3 comparisons shows a gain, a: 2.0 points better (+1.0 to +3.0)")
    assert "1 shows a loss, b: 4.0 points worse (-5.0 to -3.0)" in shown
    assert unclear.startswith("Not decided: c. ")
    assert "5,000 training images of cifar10, resnet9 of width 16, 24 epochs, 3 seeds;" in where
    brief = study(good).model_copy(update={"settings": {"epochs": 1}, "seeds": (0,)})
    assert study_page.answer(brief)[-1].startswith("This holds for 1 epoch, 1 seed;")
    untested = effect(0.5, name="d", low=None, high=None, p_holm=None)
    assert study_page.answer(study(bad, untested))[0].startswith("1 of 1 comparisons shows a loss")
    assert "none a gain" in study_page.answer(study(bad))[0]
    assert study_page.answer(study(open_))[0].startswith("c: no difference could be shown")
    assert "too few runs" in study_page.answer(study())[0]
    for others in ((good, bad), (good,)):
        assert study_page.answer(study(*others, effect(None, name="lost")))[1].startswith("Not decided: lost. ")
    ranked = (bad, effect(None, name="d"), good)
    assert [one.name for one in Analysis(better=1, effects=ranked).ranked] == ["a", "b", "d"]
    assert [one.name for one in Analysis(better=-1, effects=ranked).ranked] == ["b", "a", "d"]


def test_an_interaction_is_no_gain_and_no_loss() -> None:
    a, b = effect(9.0, name="a", kind="main"), effect(2.0, name="b", kind="main")
    joint, other = (effect(size, name=f"a x {name}", kind="interaction") for size, name in ((-4.0, "b"), (5.0, "c")))
    told = "a x b: 4.0 points less (-5.0 to -3.0)."
    both = study_page.answer(study(a, b, joint))[0]
    assert both.startswith("2 of 3 comparisons show a gain, most of all a: 9.0 points better ")
    assert both.endswith(f"; 1 shows an interaction, {told}")
    assert study_page.answer(study(joint))[0] == f"1 of 1 comparisons shows an interaction, {told}"
    more = study_page.answer(study(joint, other))[0]
    assert more.startswith("2 of 2 comparisons show interactions, the largest a x c: 5.0 points more ")
    drawn = study_charts.forest(Analysis(unit="points", better=1, effects=(joint,)), str, "x", "f")
    assert drawn is not None
    assert "bad" not in drawn.__html__()


def pairs(*effects: Effect, **contrasts: tuple[str, str]) -> StudyRecord:
    """A study whose reference, `base`, has 80 %, with these contrasts."""
    content = study(*effects).model_dump()
    content["analyses"]["test.accuracy"]["noise"] |= {"reference": "base", "reference_mean": 80.0}
    rows = [{"name": name, "runs": 3} for name in ("base", "none", "a", "b")]
    return StudyRecord.model_validate({**content, "variants": rows, "contrasts": contrasts})


def test_a_comparison_and_its_mirror_are_one() -> None:
    off, mirror, other = effect(-4.0, name="none"), effect(4.0, name="mirror"), effect(2.0, name="a")
    found = pairs(off, other, mirror, mirror=("base", "none"))
    assert study_page.answer(found)[0].startswith("1 of 2 comparisons shows a gain, a: 2.0 points better")
    assert [one.name for one in study_page.distinct(found, found.main.ranked)] == ["a", "none"]


@pytest.mark.parametrize(("design", "other"), [("one_out", "without a"), ("one_in", "only a")])
def test_a_contrast_that_is_the_effect_of_a_factor_is_not_counted_again(design: str, other: str) -> None:
    rows = (Variant(name="base", runs=3), Variant(name=other, runs=3))
    found = pairs(effect(2.0, name="a"), effect(-2.0, name="again"), again=(other, "base"))
    found = found.model_copy(update={"design": design, "variants": rows})
    assert [one.name for one in study_page.distinct(found, found.main.effects)] == ["a"]


@pytest.mark.parametrize(
    ("effects", "told"),
    [
        ((effect(2.0, name="a"), effect(-4.0, name="none")), "worse (-5.0 to -3.0) (reference: base, 80.0 %)."),
        ((effect(9.0, name="all"), effect(-4.0, name="none")), "worse (-5.0 to -3.0; reference: base, 80.0 %)."),
        ((effect(9.0, name="all"), effect(2.0, name="a")), "a against b: 9.0 points better (+8.0 to +10.0)."),
        ((effect(2.0, name="a", kind="main"),), "a: 2.0 points better (+1.0 to +3.0)."),
        ((effect(0.1, name="a", shown=False), effect(0.1, name="all", shown=False)), "test (reference: base, 80.0 %)."),
        ((effect(0.1, name="a", kind="main", shown=False),) * 2, "could be shown on accuracy on test."),
        ((effect(0.1, name="all", shown=False),), "no difference could be shown on accuracy on test."),
    ],
)
def test_the_reference_is_named_only_beside_what_was_compared_with_it(effects: tuple[Effect, ...], told: str) -> None:
    assert study_page.answer(pairs(*effects, all=("a", "b")))[0].endswith(told)


def test_the_axis_of_a_forest_has_a_sign_at_every_difference_but_at_no_difference() -> None:
    both = (effect(2.0, name="a"), effect(-2.0, name="b"))
    drawn = study_charts.forest(Analysis(unit="points", better=1, effects=both), str, "x", "f")
    assert drawn is not None
    ticks = re.findall(r'<text[^>]*text-anchor="middle"[^>]*>([-+\d.]+)</text>', drawn.__html__())
    assert {"-2", "0", "+2"} <= set(ticks)
    assert all(tick == "0" or tick[0] in "+-" for tick in ticks)


def test_a_forest_of_too_many_effects_keeps_those_that_are_shown() -> None:
    small = [effect(0.5 + 0.01 * k, name=f"small {k}", shown=False) for k in range(study_charts.MOST_EFFECTS)]
    drawn = study_charts.forest(
        Analysis(unit="points", better=1, effects=(*small, effect(-2.0, name="loss"))), str, "x", "f"
    )
    assert drawn is not None
    text = drawn.__html__()
    assert ">loss<" in text
    assert ">small 0<" not in text
    assert "x; without 1 smaller one" in text


def test_the_noise_is_told_with_the_label_of_the_reference() -> None:
    noise = {"sd": 0.3, "low": 0.2, "high": 0.4, "df": 6, "reference": "none", "reference_mean": 80.0}
    analysis = Analysis.model_validate({"unit": "points", "noise": noise})
    assert noise_line(analysis).endswith("; none: 80.00")
    assert noise_line(analysis, {"none": "without augmentation"}).endswith("; without augmentation: 80.00")


def test_the_noise_of_a_short_time_is_told_with_the_decimals_of_its_scatter() -> None:
    noise = {"sd": 0.0105, "low": 0.0068, "high": 0.0232, "df": 6, "reference": "none", "reference_mean": 0.8128}
    factors = {"unit": "s", "effects": [Effect(name="mixing", metric="epoch_seconds", ratio=True).model_dump()]}
    for mean, sd, told in ((0.01728, 0.0017, "0.0173 +-0.0017"), (36.171, 2.53, "36.2 +-2.5")):
        analysis = Analysis.model_validate({**factors, "noise": {**noise, "reference_mean": mean, "reference_sd": sd}})
        assert (
            noise_line(analysis)
            == f"noise between runs: 1.05 % (0.68 to 2.32, 6 degrees of freedom); none: {told} over seeds"
        )


def test_sentences_are_told_with_labels_and_keep_what_only_the_study_knew(tmp_path: Path) -> None:
    lost = "nothing can be said: no finished run has a value of test.accuracy"
    recorded = ("a: helps, +2.0 points (interval +1.0 to +3.0, 3 seeds)", f"b_c: {lost}", "a note")
    found = study(effect(2.0, name="a"), effect(None, name="b_c")).model_copy(update={"sentences": recorded})
    (tmp_path / "study.yaml").write_text("study: {name: s}")
    told = study_page.content(found, tmp_path)["sentences"]
    assert told[0].startswith("a: 2.0 points better (interval +1.0 to +3.0, ")
    assert told[1:] == [f"b c: {lost}", "a note"]


@pytest.mark.parametrize(
    ("sizes", "largest"), [((2.0, -5.0), "b: 5.0 points less"), ((6.0, -5.0), "a: 6.0 points more")]
)
def test_the_largest_difference_of_a_number_without_a_direction(sizes: tuple[float, ...], largest: str) -> None:
    effects = tuple(effect(one, name=name, metric="prune.sparsity") for one, name in zip(sizes, "ab", strict=True))
    neutral = Analysis(unit="points", effects=effects)
    found = study(*effects).model_copy(update={"analyses": {"test.accuracy": neutral}})
    assert f"2 of 2 comparisons show a difference; the largest is {largest}" in study_page.answer(found)[0]


UNPRUNED = {"original fp32": "original float32 file", "original int8-static": "unpruned INT8 file",
            "original int8-dynamic": "unpruned file, INT8 weights"}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "precision", "ratio", "told"),
    [
        ("original fp32", "fp32", 0.0, "original, float32"),
        ("original int8-static", "int8-static", 0.0, "not pruned, INT8"),
        ("original int8-dynamic", "int8-dynamic", 0.0, "not pruned, INT8 weights"),
        ("12.5 % int8-dynamic", "int8-dynamic", 0.125, "12.5 % pruned, INT8 weights"),
        ("random, 50 % fp32", "fp32", 0.5, "50 % pruned at random, float32"),
        ("from scratch, 60 % int8-static", "int8-static", 0.6, "60 % pruned, trained from scratch, INT8"),
        ("trained further, original int8-static", "int8-static", 0.0, "original trained further, INT8"),
        ("small net, resnet9 of width 12 int8-static", "int8-static", 0.0, "resnet9 of width 12, INT8"),
    ],
)
def test_candidates_in_words(name: str, precision: str, ratio: float, told: str) -> None:
    whole = CompressionRecord.model_validate(measured_compression())
    row = {"name": name, "precision": precision, "ratio": ratio, "control": "," in name}
    assert whole.label(whole.winner.model_copy(update=row)) == told
    if name in UNPRUNED:  # a winner is not told as a denial
        winner = whole.winner.model_copy(update=row)
        page = compression_page.content(whole.model_copy(update={"winner": winner}), Path("small"))
        assert page["answer"][1].startswith(f"The winner is the {UNPRUNED[name]}: 60.8 kB.")
        assert page["warnings"][0].startswith(f"The {UNPRUNED[name]} is within the budget")


@pytest.mark.parametrize(("layers", "words"), [(1, "first layer"), (2, "first 2 layers")])
def test_layers_that_stay_float_are_told(layers: int, words: str) -> None:
    whole = CompressionRecord.model_validate(measured_compression())
    for ratio, label, told in ((0.0, "not pruned", "the unpruned INT8 file with the "), (0.5, "50 % pruned", "")):
        row = whole.winner.model_copy(update={"name": "a", "ratio": ratio, "float_layers": layers})
        assert whole.label(row) == f"{label}, INT8, {words} in float32"
        assert whole.told(row) == (f"{told}{words} in float32" if told else whole.label(row))


def compared(variants: dict[str, dict[str, Any]], reference: str = "") -> StudyRecord:
    """A study of these variants, of which `a` helps, `b` hurts, and `c` is not decided."""
    effects = (effect(2.0, name="a"), effect(-4.0, name="b"), effect(0.1, name="c", shown=False))
    content = study(*effects).model_dump()
    content["analyses"]["test.accuracy"]["noise"]["reference"] = reference
    rows = [{"name": name, "runs": 3, "overrides": given} for name, given in variants.items()]
    return StudyRecord.model_validate({**content, "variants": rows})


def test_a_study_says_how_to_use_what_helped_and_how_to_decide_the_rest() -> None:
    asked = {"base": "cifar10-quick", "set": {}}
    found = compared({"a": {"train.label_smoothing": 0.1}, "b": {"augment.train": []}})
    use, more = study_page.commands(found, Path("my study"), asked)
    assert use[1] == "kitae train DATA --recipe cifar10-quick --set train.label_smoothing=0.1"
    again = "kitae study 'my study/study.yaml' --out 'my study'"
    assert more[1] == f"{again} --set 'study.seeds=[0, 1, 2, 3, 4, 5]'"
    ((about, _),) = study_page.commands(study(effect(-4.0, name="b")), Path("s"), asked)
    assert about == "Add seeds for narrower intervals"
    assert study_page.commands(None, Path("my study"), {})[0][1] == again


def in_words(found: StudyRecord) -> dict[str, str]:
    """The label of each effect; none may read like a file, nor be a mere name unless that stands for many changes."""
    labels = {one.name: study_labels.effect_label(found, one.name) for one in found.main.effects}
    many = {one.name for one in found.variants if len(one.overrides) >= 4}
    for name, label in labels.items():
        assert name in many or label not in (name, name.replace("_", " "), f"with {name}")
        assert not label.startswith("and ")
        assert not {"{", "_", "="} & {*label}
        assert " over " not in label
    return labels


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_studies_are_told_in_words_counted_once_and_say_what_to_do_next(folder: Path) -> None:
    found, result = StudyRecord.open(folder), StudyResult.open(folder)
    assert found is not None
    labels = in_words(found)
    if found.design in ("one_out", "screening"):
        assert {"with random crops", "with MixUp and CutMix", "with label smoothing 0.1"} <= {*labels.values()}
    for pair, told in (
        ("full over none", "everything against no augmentation"),
        ("jitter over none", "random crops, flips and colour jitter against no augmentation"),
        ("cutmix over mixup", "CutMix against MixUp"),
        ("sampler", "rare classes drawn more often, added to random crops and flips"),
    ):
        assert labels.get(pair, told) == told
    answer = study_page.answer(found)
    page = " ".join(study_page.content(found, folder)["sentences"] + answer)
    assert "parquet" not in page
    assert " over none" not in page
    assert "and jitter" not in page
    assert study_page.commands(found, folder, study_of(folder))
    counted = re.search(r"p after Holm over (\d+) effect", result.table())  # as in the terminal
    assert counted is not None
    assert sum(one.bounded for one in study_page.distinct(found, found.main.effects)) == int(counted[1])
    told_of = re.search(r"of (\d+) (?:comparisons|changes)", answer[0])
    assert told_of is None or told_of[1] == counted[1]


@pytest.mark.parametrize("name", shipped())
def test_effects_of_shipped_studies_are_told_in_words(name: str) -> None:
    spec = StudySpec.load(name)
    design = expand(spec)
    effects = [{"name": one, "metric": spec.metric} for one in design.effects]
    found = StudyRecord.model_validate({
        "name": name, "metric": spec.metric, "design": spec.design, "contrasts": spec.contrasts,
        "factors": design.factors, "levels": {one.name: one.levels for one in design.variants},
        "variants": [{"name": one.name, "runs": 1, "overrides": one.overrides} for one in design.variants],
        "analyses": {spec.metric: {"noise": {"reference": design.reference}, "effects": effects}},
    })  # fmt: skip
    labels = in_words(found)
    assert len(set(labels.values())) == len(labels)
    variants = study_labels.variant_labels(found)
    assert len(set(variants.values())) == len(variants)
    if name == "full-pipeline-ablation":
        assert variants["all"] == "with all of them"


@pytest.mark.parametrize(
    "text", ["{", "study: 3", "study: !!int ''", "study: {contrasts: {cutmix over mixup: [mixup]}}"]
)
def test_a_damaged_study_yaml_is_named(text: str, tmp_path: Path) -> None:
    folder = next(one for one in PUBLISHED if one.name == "ledger-small")
    shutil.copy(folder / "effects.json", tmp_path)
    (tmp_path / "study.yaml").write_text(text)
    told = r"contrasts\.cutmix over mixup\.1: " if "contrasts" in text else r"study\.yaml: is damaged \("
    refused(KitaeError, told, StudyRecord.open, tmp_path)


def test_a_label_without_room_beside_its_value_is_told_in_two_lines() -> None:
    long = "random crops, flips and colour jitter against no augmentation"
    effects = (effect(6.4, name=long), effect(1.0, name="short"))
    drawn = study_charts.forest(Analysis(unit="points", better=1, effects=effects), str, "x", "f")
    assert drawn is not None
    text = drawn.__html__()
    assert ">random crops, flips and colour jitter against</text>" in text
    assert ">no augmentation</text>" in text
    assert "…" not in text


def test_what_helped_is_trained_with_what_all_variants_share() -> None:
    helped = {"augment.train.cutout.size": 8, "after.prune.ratio": 0.5}
    shared = {
        "data.source": "cifar10", "data.limit": 5000, "data.image_size": 32, "augment.train.cutout": {"size": 4},
        "augment.train": [], "train.epochs": 7, "after.prune.epochs": 1,
    }  # fmt: skip
    asked = {"base": "fashion-mini", "set": shared}
    line = study_page.commands(compared({"a": helped}), Path("s"), asked)[0][1]
    words = shlex.split(line)
    assert words[:6] == ["kitae", "train", "DATA", "--recipe", "fashion-mini", "--set"]
    trained = Recipe.load("fashion-mini").override(*words[6:])
    assert [list(op) for op in trained.augment.train] == [["cutout"]]
    assert (trained.augment.train[0]["cutout"]["size"], trained.train.epochs, trained.data.image_size) == (8, 7, 32)
    assert (trained.data.source, trained.data.limit) == ("fashion-mini", None)


@pytest.mark.parametrize(
    ("helped", "base"), [({"after.prune.ratio": 0.5}, "cifar10-quick"), ({"train.epochs": 3}, {"name": "my own"})]
)
def test_no_training_is_proposed_that_would_not_be_what_helped(helped: dict[str, Any], base: Any) -> None:
    lines = study_page.commands(compared({"a": helped}), Path("s"), {"base": base, "set": {}})
    assert [about for about, _ in lines] == ["Add seeds to decide the rest"]


def test_a_variant_is_told_in_words_only_if_they_say_how_it_differs_from_the_reference() -> None:
    mixing = {"augment.mix": {"mixup_alpha": 1.0, "cutmix_alpha": 0.0}}
    for of_reference, told in (({}, "with MixUp"), ({"augment.mix": None}, "with MixUp"), ({"train.ema": 0.9}, "a b")):
        found = compared({"none": of_reference, "a_b": mixing}, "none")
        assert study_labels.variant_labels(found)["a_b"] == told


def planned(design: str, **fields: Any) -> StudyRecord:
    """The record of a study with three seeds, in which nothing was measured."""
    spec = StudySpec.parse({"name": "s", "base": "cifar10-quick", "design": design, "seeds": [0, 1, 2], **fields})
    made = expand(spec)
    effects = [{"name": one, "metric": spec.metric} for one in made.effects]
    return StudyRecord.model_validate({
        "name": "s", "metric": spec.metric, "design": design, "factors": made.factors,
        "levels": {one.name: one.levels for one in made.variants},
        "variants": [{"name": one.name, "runs": 3, "overrides": one.overrides} for one in made.variants],
        "analyses": {spec.metric: {"noise": {"reference": made.reference}, "effects": effects}},
    })  # fmt: skip


def test_words_that_do_not_tell_variants_or_levels_apart_give_way_to_names() -> None:
    policy = "augment.train.rand_augment"
    variants = {"weak policy": {policy: {"magnitude": 5}}, "strong policy": {policy: {"magnitude": 15}},
                "smoothing": {"train.label_smoothing": 0.1}}  # fmt: skip
    labels = study_labels.variant_labels(planned("compare", variants={"base": {}, **variants}))
    assert [labels[name] for name in variants] == ["weak policy", "strong policy", "with label smoothing 0.1"]
    factors = {"policy": {policy: [{"magnitude": 5}, {"magnitude": 15}]}, "crop": {"augment.train.cutout": [None, {}]}}
    both = planned("factorial", factors=factors)
    told = [study_labels.effect_label(both, one) for one in ("policy", "crop", "policy x crop")]
    assert told == ["with policy", "with Cutout", "policy × Cutout"]


@pytest.mark.parametrize(
    ("variants", "reference", "told"),
    [
        ({"few": {"data.limit": 1000}, "some": {"data.limit": 5000}, "all": {"data.limit": 48_000}}, "few",
         "1,000 to 48,000 training images of cifar10, resnet9 of width 16, 24 epochs"),
        ({"base": {}, "short": {"train.epochs": 8}}, "base",
         "1,000 training images of cifar10, resnet9 of width 16, 8 and 24 epochs"),
        ({"base": {}, "wide": {"model.width": 32}}, "base",
         "1,000 training images of cifar10, resnet9 of width 16 and 32, 24 epochs"),
        ({"base": {}, "deep": {"model.name": "resnet20", "model.width": None}}, "base",
         "1,000 training images of cifar10, resnet9 and resnet20, 24 epochs"),
        ({"few": {"data.limit": 1000}, "base": {}}, "few", "resnet9 of width 16, 24 epochs"),
        ({"base": {}, "other": {"train": {"epochs": 8}}}, "base",
         "1,000 training images of cifar10, resnet9 of width 16"),
    ],
)  # fmt: skip
def test_a_study_holds_for_the_conditions_of_all_its_variants(
    variants: dict[str, dict[str, Any]], reference: str, told: str
) -> None:
    found = compared(variants, reference)
    settings = {**found.settings, "images": 1000}  # of the reference
    assert study_page.regime(found.model_copy(update={"settings": settings})).startswith(
        f"This holds for {told}, 3 seeds;"
    )


def test_the_probe_is_no_epoch_of_the_curves_of_a_study() -> None:
    values = {"mean": [0.5, 0.6, 0.7], "low": [0.5, 0.6, 0.7], "high": [0.5, 0.6, 0.7]}
    content = {**study(effect(2.0)).model_dump(), "curves": {"a": {"epoch": [0, 1, 2], "val_accuracy": values}}}
    content["variants"] = [{"name": "a", "runs": 1, "overrides": {}}]
    drawn = study_charts.curves(StudyRecord.model_validate(content), {})
    assert drawn is not None
    assert "over 2 epochs." in drawn.__html__()


def test_scores_of_a_study_are_drawn_at_the_epochs_that_were_validated() -> None:
    def band(*values: float, **epochs: Any) -> dict[str, Any]:
        return {**epochs, "mean": values, "low": values, "high": values}

    curve = {"epoch": [1, 2, 3, 4], "train_loss": band(4, 3, 2, 1), "val_accuracy": band(0.5, 0.6, epoch=[2, 4])}
    content = {**study(effect(2.0)).model_dump(), "curves": {"a": curve}}
    content["variants"] = [{"name": "a", "runs": 1, "overrides": {}}]
    drawn = study_charts.curves(StudyRecord.model_validate(content), {})
    assert drawn is not None
    lines = re.findall(r'<path d="M([^"Z]+)" class="s1"', drawn.file())
    accuracy, loss = ([float(x) for x in points.split()[::2]] for points in lines)
    assert accuracy == [loss[1], loss[3]]


def test_every_effect_that_is_shown_is_inside_the_axis_and_has_its_interval_as_text() -> None:
    long = "rare classes drawn more often, added to random crops and flips and to much else that is long as well"
    near = (effect(0.1 * k, name=f"near {k}", half=0.2) for k in range(9))
    effects = (effect(13.0, name="far"), effect(12.0, name=long), effect(11.0, name="x" * 70), *near)
    drawn = study_charts.forest(Analysis(unit="points", better=1, effects=effects), str, "x", "f")
    assert drawn is not None
    text = drawn.__html__()
    assert "cut off" not in text
    assert "+15" in text or "+10" in text
    shown = re.findall(r"<tspan class=\"t\"> \(([^)]*)\)</tspan>", text)
    assert sorted(shown) == sorted(interval(one) for one in effects)


def test_a_compression_says_what_a_larger_drop_would_buy(tmp_path: Path) -> None:
    published = measured_compression()
    winner = {**published["winner"], "bytes": 1000, "packed_bytes": 1000, "drop": 0.2}
    small = {**winner, "name": "smaller", "bytes": 500, "packed_bytes": 500, "drop": 1.31, "drop_interval": [0.1, 2.42]}
    defaults = {"importance": "reconstruction", "scope": "auto"}  # which were others when this was published
    spec = {**published["spec"], **defaults}
    found = {**published, "spec": spec, "run_path": "../r", "winner": winner, "candidates": [winner, small]}
    Recipe().save(tmp_path / "r" / "recipe.yaml")
    # 600 images can prove a drop of 1.31 points, so with that budget the end of the interval would count; 100 cannot.
    for sure, images, budget in ((False, 100, "1.4"), (False, 600, "2.5"), (True, 600, "2.5")):
        whole = CompressionRecord.model_validate({**found, "sure": sure, "least_drop": least_drop(images)})
        _, (about, line) = compression_page.commands(whole, tmp_path / "r-small")
        assert "500 B" in about
        assert (
            line
            == f"kitae compress {tmp_path / 'r'} --overwrite --set round_to=1 --set 'controls=[]' --max-drop {budget}"
        )
    assert "balanced" not in " ".join(compression_page.answer(whole))
    uneven = whole.model_copy(update={"metric": "balanced accuracy", "least_drop": 3.0, "sure": False})
    assert "Accuracy is balanced accuracy here" in compression_page.answer(uneven)[-1]
    # The classes' images cannot prove 2.5 points, so the drop itself would count.
    assert compression_page.commands(uneven, tmp_path / "r-small")[1][1].endswith("--max-drop 1.4")
    elsewhere = compression_page.commands(whole, tmp_path / "other")[1][1]
    assert f"--out {tmp_path / 'other'}" in elsewhere


@pytest.mark.parametrize(
    ("limits", "row", "proposed"),
    [
        ({}, {"drop": 2.2}, True),
        ({}, {"drop": 0.12, "drop_interval": [-0.2, 0.45]}, False),  # within the budget: something else excluded it
        ({"max_latency_ms": 1.0}, {"latency_ms": 0.9}, True),
        ({"max_latency_ms": 1.0}, {"latency_ms": 2.0}, False),
        ({"max_bytes": 700}, {}, True),
        ({"max_bytes": 700}, {"bytes": 800}, False),  # though it is small when packed
    ],
)
def test_a_larger_drop_is_only_proposed_for_what_it_would_buy(
    limits: dict[str, float], row: dict[str, Any], proposed: bool
) -> None:
    published = measured_compression()
    winner = {**published["winner"], "bytes": 1000, "packed_bytes": 1000, "drop": 0.2}
    small = {
        **winner, "name": "smaller", "bytes": 600, "packed_bytes": 500, "drop": 2.2, "drop_interval": [1.0, 3.4], **row
    }  # fmt: skip
    record = CompressionRecord.model_validate({
        **published, "winner": winner, "candidates": [winner, small], "size": "packed_bytes", "sure": True,
        "spec": {**published["spec"], "max_drop": 2.0, **limits},
    })  # fmt: skip
    lines = [line for about, line in compression_page.commands(record, Path("small")) if "smaller" in about]
    assert [line.endswith(" --max-drop 3.4") for line in lines] == [True] * proposed


@pytest.mark.parametrize(
    ("sure", "images", "drop", "budget"),
    [
        (True, 150, 4.0, "8.5"),  # 150 images can prove a drop of 4 points, so with 4 the end of the interval counts
        (True, 75, 4.0, "4"),
        (True, 75, 4.9, "8.5"),  # the budget is 4.9, and 75 images can prove it
        (True, 150, 1.5, "2"),  # at least twice the earlier one
        (False, 150, 4.0, "4"),
    ],
)
def test_the_budget_that_is_proposed_is_wide_enough(sure: bool, images: int, drop: float, budget: str) -> None:
    found = measured_compression()
    closest = {**found["winner"], "drop": drop, "drop_interval": [1.4, 8.45]}
    record = CompressionRecord.model_validate({
        **found, "within_budget": False, "winner": closest, "sure": False, "least_drop": least_drop(images),
        "spec": {**found["spec"], "max_drop": 1.0, "sure": sure},
    })  # fmt: skip
    line = compression_page.commands(record, Path("small"))[1][1]
    assert line.endswith(f" --max-drop {budget}")


def test_the_limit_on_bytes_is_of_the_file_as_it_is() -> None:
    """Packed bytes decide which file is the smallest, but not whether it is within the budget."""
    found = measured_compression()
    for packed in (40_000, 60_000):
        closest = {**found["winner"], "bytes": 100_000, "packed_bytes": packed}
        record = CompressionRecord.model_validate({
            **found, "within_budget": False, "winner": closest, "size": "packed_bytes",
            "spec": {**found["spec"], "max_bytes": 50_000},
        })  # fmt: skip
        line = compression_page.commands(record, Path("small"))[1][1]
        assert line.endswith(" --max-bytes 100000")


def test_a_comparison_says_how_to_look_at_the_best_run(make_run: Callable[..., Run]) -> None:
    good, bad = (RunRecord.open(make_run(name)) for name in ("good", "bad"))
    lines = [line for _, line in comparison_page.commands(*comparison_page.entries([good, bad]))]
    assert lines[0].startswith("kitae show mistakes ")
    assert lines[1].endswith("recipe.yaml --seed 1")
    (good.run.path / "predictions.parquet").unlink()
    again = [RunRecord.open(one.run) for one in (good, bad)]
    assert comparison_page.commands(*comparison_page.entries(again))[0][1].startswith("kitae report ")


def test_a_difference_of_grouped_images_may_be_chance(make_run: Callable[..., Run]) -> None:
    good, bad = make_run("good"), make_run("bad")
    table, found = good.predictions(), good.evaluation()
    good.write_predictions(table.set_column(table.column_names.index("predicted"), "predicted", table["label"]))
    found["test"]["accuracy"] = 1.0
    good.write_evaluation(found)
    entries = comparison_page.entries([RunRecord.open(one) for one in (good, bad)])
    assert "is more than chance" in comparison_page.answer(*entries)[1]
    good.write_evaluation({**found, "groups": {"train": 9, "val": 3, "test": 3}})
    for count, told in ((2, "may be chance"), (90, "is more than chance")):
        for one in (good, bad):
            one.write_predictions(one.predictions().append_column("group", [np.arange(90) % count]))
        records = [RunRecord.open(one) for one in (good, bad)]
        said = comparison_page.answer(*comparison_page.entries(records))[1]
        assert told in said
        assert "the choice of groups" in said
        for one in (good, bad):
            one.write_predictions(one.predictions().drop_columns("group"))


def test_bars_of_a_reliability_diagram_cover_the_choice_of_groups(make_run: Callable[..., Run]) -> None:
    run = make_run()
    (alone, _), table = RunRecord.open(run).reliability or (None, None), run.predictions()
    assert alone is not None
    widths = []
    for groups in (np.arange(90), np.arange(90) // 10, np.zeros(90, int)):
        run.write_predictions(table.append_column("group", [groups]))
        bins, _ = RunRecord.open(run).reliability or (alone, None)
        np.testing.assert_array_equal(bins.accuracy, alone.accuracy)
        widths.append(bins.high - bins.low)
    np.testing.assert_allclose(widths[0], alone.high - alone.low, rtol=1e-6)
    assert (widths[1] >= widths[0] - 1e-9).all()
    assert (widths[1] > widths[0] + 0.02).sum() >= 5
    assert (widths[2][alone.images > 1] == 1).all(), "a single group says nothing about others"


def test_a_speed_up_within_the_noise_of_its_control_is_none() -> None:
    found = {**measured_compression(), "smaller": 3.9, "faster": 1.04}
    for noise, said in ((0.05, "3.90× smaller and as fast"), (0.02, "3.90× smaller and 1.04× faster")):
        record = CompressionRecord.model_validate({**found, "latency": {**found["latency"], "noise": noise}})
        assert compression_page.answer(record)[0].startswith(said)


def test_the_terminal_tells_effects_in_words_too() -> None:
    folder = next(one for one in PUBLISHED if one.name == "ledger-trained")
    sentences = StudyResult.open(folder).table().splitlines()
    assert "everything against no augmentation: 13.1 points better (interval +12.7 to +13.5, 5 seeds)" in sentences
    assert not [line for line in sentences if line.startswith("full over none:")]
