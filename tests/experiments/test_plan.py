"""Plans: what will run, how long it takes, and every mistake found before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kitae.errors import RecipeError
from kitae.experiments.executors import threads_each
from kitae.experiments.plan import make_plan, resolve
from kitae.experiments.study import plan_study
from kitae.recipe import Recipe
from tests.experiments import fake_train
from tests.experiments.test_study import FAKE, STUDY, make, run
from tests.refusals import refused

OWN = "tests.experiments.fake_train:after_step"
MEASURE = FAKE["measure"]
RATIO = {"ratio": {"after.prune.ratio": [0.0, 0.5]}}


def test_runs_of_a_seed_differ_only_in_the_variant() -> None:
    plan = make_plan(make(), threads=2)
    base = Recipe.load("fashion-mini")
    for job in plan.jobs:
        assert job.recipe.train.seed == job.seed
        assert job.recipe.data == base.data
        assert job.recipe.train.threads == 2
        assert job.recipe.train.precision == "auto"
    assert [job.seed for job in plan.jobs] == [0] * 3 + [1] * 3 + [2] * 3  # stopped anywhere, it is nearly balanced
    assert {job.recipe.train.precision for job in make_plan(make(), measure=fake_train.measure).jobs} == {"bf16"}
    stopping = base.override("train.early_stopping.patience=3")
    for given in ({"train.epochs": 4}, {"train": {**stopping.train.model_dump(mode="json"), "epochs": 4}}):
        recipe, _ = resolve(stopping, make(), given, "here")
        assert (recipe.train.epochs, recipe.train.early_stopping) == (4, None)


def test_time_noise_and_what_can_be_shown() -> None:
    plan = plan_study(make(noise=0.3), workers=2, threads=1, measure=MEASURE)
    assert plan.seconds == pytest.approx(9 * 3 * 2.0 / 2)
    text = plan.text()
    assert f"{plan.smallest:.2g} points" in text
    assert "0.3 points" in text
    assert "val.accuracy" in text, "a study on test is told what to choose a recipe by"
    assert "65 to 80 %" in text  # some power goes into a reference with its own noise
    one = {"smoothing": STUDY["factors"]["smoothing"]}
    assert "80% of the time" in plan_study(make(factors=one), measure=None).text()  # a pair: Student's t test
    assert plan_study(make(seeds=[0]), measure=None).smallest is None


def test_a_busy_machine_is_mentioned() -> None:
    def measure(load: float) -> Any:
        return lambda recipe: {"recipe": recipe, "seconds_per_epoch": 2.0, "train": 100, "load": load}

    assert "with 3 other programs running" in make_plan(make(), measure=measure(3.2)).text()
    assert "other programs" not in make_plan(make(), measure=measure(0.1)).text()


@pytest.mark.parametrize(
    ("fields", "epochs"),
    [
        ({"factors": {"limit": {"data.limit": [1000, 4000]}}}, 3 * (1 + 4)),
        ({"factors": {"limit": {"data.limit": [1000, None]}}}, 3 * (1 + 10)),
        ({"factors": RATIO, "after": {"prune": {"epochs": 2}}}, 10 * (3 + 2 * 2)),
        ({"factors": RATIO, "after": {"prune": {}}}, 10 * (3 + 2 * 5)),
    ],
)
def test_time_follows_the_images_and_the_fine_tuning(fields: dict[str, Any], epochs: float) -> None:
    def measure(recipe: Recipe) -> dict[str, Any]:
        images = recipe.data.limit or 10_000
        return {"recipe": recipe, "seconds_per_epoch": images / 1000, "train": images}

    also = ["prune.compressed_bytes"] if "after" in fields else []
    plan = make_plan(make(design="sweep", seeds=[0], also=also, **fields), measure=measure)
    assert plan.seconds == pytest.approx(epochs)


@pytest.mark.parametrize(
    ("claim", "noise", "needed"),
    [
        ({"between": [1, 2]}, 0.5, range(4, 100)),
        ({"between": [1, 2]}, 50, [None]),
        ({"within": 0.5}, 0.5, range(4, 100)),
        ({"between": [0, None]}, 50, ["not listed"]),
    ],
)
def test_seeds_for_half_the_claimed_effect(claim: dict[str, Any], noise: float, needed: Any) -> None:
    plan = plan_study(make(claims={"c": {"says": "x", "effect": "mixing", **claim}}, noise=noise), measure=None)
    assert plan.seeds_needed.get("c", "not listed") in needed
    assert ("claim     c" in plan.text()) == ("c" in plan.seeds_needed)


@pytest.mark.parametrize(
    ("metric", "given", "words"),
    [
        ("test.loss", None, "in test.loss"), ("epoch_seconds", None, "relative"), ("test.loss", 0.01, "0.01 test.loss"),
        ("epoch_seconds", 0.02, "2 %"), ("epoch_seconds", 2.0, "200 %"), ("gap", None, "0.5 points"),
    ],
)  # fmt: skip
def test_noise_is_assumed_only_of_metrics_in_points(metric: str, given: float | None, words: str) -> None:
    plan = plan_study(make(metric=metric, noise=given), measure=None)
    assert words in plan.text()
    assert "e+0" not in plan.text()
    assert (plan.smallest is None) == (given is None and metric != "gap")


@pytest.mark.parametrize(
    ("metric", "images", "noise"),
    [
        ("test.accuracy", 10_000, 0.5), ("test.accuracy", 120, 2.0), ("val.accuracy", 300, 1.3), ("gap", 120, 2.0),
        ("prune.val_accuracy", 120, 2.0), ("prune.accuracy", 120, 2.0), ("test.per_class.cat.accuracy", 120, 2.0),
        ("val.per_class.cat.accuracy", 120, 2.0), ("robustness.mean_accuracy", 120, 2.0),
    ],
)  # fmt: skip
def test_few_images_are_assumed_to_scatter_more(metric: str, images: int, noise: float) -> None:
    after = {step: {} for step in ("prune", "robustness") if metric.startswith(step)}

    def measure(recipe: Recipe) -> dict[str, Any]:
        split = "val" if metric.startswith("val") or metric in ("gap", "prune.val_accuracy") else "test"
        of_all = images * (10 if "per_class" in metric else 1)
        counts = {"val": 50_000, "test": 50_000, "classes": 10, split: of_all}
        return {"recipe": recipe, "seconds_per_epoch": 1.0, "train": 100, **counts}

    plan = make_plan(make(metric=metric, after=after), measure=measure)
    assert plan.noise == noise
    assert (f"assumed for {images} images" in plan.text()) == (noise > 0.5)
    assert make_plan(make(metric=metric, after=after, noise=0.3), measure=measure).noise == 0.3


def test_robustness_is_planned_on_as_many_images_as_it_takes() -> None:
    facts = {"seconds_per_epoch": 1.0, "train": 100, "val": 100, "test": 10_000}

    def judged(settings: dict[str, Any], test: int = 10_000) -> int | None:
        spec = make(metric="robustness.mean_accuracy", after={"robustness": settings})
        return make_plan(spec, measure=lambda recipe: {**facts, "recipe": recipe, "test": test}).judged

    assert (judged({}), judged({"images": 200}), judged({}, test=300)) == (1000, 200, 300)


def test_screening_prints_its_aliases() -> None:
    factors = {**STUDY["factors"], "ema": {"train.ema": [None, 0.9]}}
    assert "smoothing x mixing" in plan_study(make(design="screening", factors=factors), measure=None).text()
    folded = plan_study(make(design="screening", factors=factors, foldover=True), measure=None).text()
    assert "smoothing x mixing" not in folded


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"set": {"train.epoch": 3}}, ["'none'", "epochs"]),
        ({"set": {"train.epochs": -3}}, ["'none'", "train.epochs"]),
        ({"base": "no-such-recipe"}, ["no-such-recipe"]),
        ({"set": {"data.folds": 5}}, ["'none'", "data.folds"]),
        ({"factors": {"x": {"train.label_smoothing": [0.05, 0.05]}}}, ["'none'", "'only x'"]),
        ({"factors": {"x": {"augment.train.rotat": [None, {}]}}}, ["rotat", "rotate"]),
        ({"after": {"prun": {}}}, ["after.prun", "prune, robustness"]),
        ({"after": {"no.such:step": {}}}, ["after.no.such:step"]),
        ({"after": {"tests.experiments.fake_train:nothing": {}}}, ["fake_train:nothing"]),
        ({"after": {".x:f": {}}}, ["after..x:f", "cannot be imported"]),
        ({"after": {"math:pi": {}}}, ["after.math:pi", "name a function"]),
        ({"after": {"builtins:max": {}}}, ["after.builtins:max", "written in Python"]),
        ({"after": {"prune": {"ration": 0.5}}}, ["after.prune", "'ration'", "ratio, epochs, kind, scope"]),
        ({"after": {"prune": {"ratio": 1.5}}}, ["after.prune.ratio", "less than 1", "1.5"]),
        ({"after": {"prune": {"ratio": "half"}}}, ["after.prune.ratio", "'half'"]),
        ({"after": {"prune": {"kind": "wild"}}}, ["after.prune.kind", "'unstructured' or 'structured'"]),
        ({"after": {"robustness": {"images": 0}}}, ["after.robustness.images", "not 0"]),
        ({"after": {OWN: {"epochs": 3}}}, [OWN, "'epochs'", "ratio"]),
        (
            {"after": {"prune": {}}, "design": "sweep", "factors": {"ratio": {"after.prune.ratio": [0, 7]}}},
            ["'ratio=7'", "after.prune.ratio"],
        ),
        ({"after": {"prune": {}}, "metric": "prune.acc"}, ["metric", "'acc'", "val_accuracy"]),
        ({"after": {"robustness": {}}, "also": ["robustness.mean"]}, ["also", "'mean'", "mean_accuracy"]),
        (
            {"after": {"robustness": {}},
             "claims": {"c": {"says": "x", "effect": "mixing", "within": 1, "metric": "robustness.blurr_accuracy"}}},
            ["claims.c.metric", "did you mean blur_accuracy"],
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_any_training(tmp_path: Path, fields: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        run(tmp_path / "s", make(**fields))
    assert all(name in str(caught.value) for name in named), str(caught.value)
    assert not (tmp_path / "s" / "study.yaml").exists()


@pytest.mark.parametrize("threads", [0, -2])
def test_threads_are_at_least_one(threads: int) -> None:
    refused(RecipeError, rf"threads: {threads} ", threads_each, threads, 1)


def test_ops_are_switched_by_their_names() -> None:
    base = Recipe.load("fashion-mini")  # random_crop, horizontal_flip, random_erasing

    def ops(overrides: dict[str, Any]) -> list[dict[str, Any]]:
        recipe, _ = resolve(base, make(), overrides, "here")
        return [dict(op) for op in recipe.augment.train]

    assert [next(iter(op)) for op in ops({"augment.train.horizontal_flip": None})] == ["random_crop", "random_erasing"]
    changed = ops({"augment.train.random_erasing": {"p": 0.5}, "augment.train.rotate": {"degrees": 15}})
    assert changed[2:] == [{"random_erasing": {"p": 0.5}}, {"rotate": {"degrees": 15}}]
    assert ops({"augment.train.random_erasing.p": 0.75})[2] == {"random_erasing": {"p": 0.75}}
    assert ops({"augment.train": [], "augment.train.cutout": {"size": 8}}) == [{"cutout": {"size": 8}}]
    for wrong in (
        {"augment.train.rotate.degrees": 3},
        {"augment.train": [{"rotate": {}}, {"rotate": {}}], "augment.train.rotate": None},
    ):
        refused(RecipeError, r"^here: augment\.train\.rotate", ops, wrong)
