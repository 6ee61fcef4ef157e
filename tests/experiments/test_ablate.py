"""The ablation of a recipe takes away exactly what the recipe has."""

from __future__ import annotations

import pytest

from kitae.errors import RecipeError
from kitae.experiments.study import plan_study
from kitae.experiments.study_spec import StudySpec, ablation
from kitae.experiments.techniques import techniques
from kitae.recipe import Recipe, shipped
from tests.refusals import refused


def test_techniques_of_the_strong_recipe() -> None:
    found = techniques(Recipe.load("cifar10-strong"))
    assert {"random_crop", "horizontal_flip", "auto_augment", "random_erasing", "mixing", "stochastic depth"} <= set(
        found
    )
    assert {"label smoothing", "averaged weights", "one cycle schedule", "smaller pictures first"} <= set(found)
    usual = "train.optimizer={name: sgd}", "train.schedule={name: cosine, warmup_epochs: 1}"
    added = set(techniques(Recipe.load("cifar10-strong").override(*usual))) - set(found)
    assert added == {"cosine schedule", "warm-up", "weight decay"}
    assert found["label smoothing"] == {"train.label_smoothing": [0.0, 0.1]}
    assert "dropout" not in found
    assert "mixed precision" not in found  # auto is decided once for the whole study
    short = "train.optimizer.bias_lr=6.4", "train.progressive={start: 0.5, until: 0.4}"
    quick = techniques(Recipe.load("cifar10-strong").override(*short))
    assert quick["own rate of biases"] == {"train.optimizer.bias_lr": [None, 6.4]}
    assert quick["smaller pictures first"] == {"train.progressive": [None, {"start": 0.5, "until": 0.4}]}
    explicit = techniques(Recipe.load("cifar10-strong").override("train.precision=bf16"))
    assert explicit["mixed precision"] == {"train.precision": ["fp32", "bf16"]}


def test_a_frozen_network_keeps_its_weights() -> None:
    frozen = Recipe.load("fashion-mini").override(
        "model={name: torchvision:resnet18, pretrained: true, freeze: backbone}"
    )
    assert "pretrained weights" not in techniques(frozen)
    assert "pretrained weights" in techniques(frozen.override("model.freeze=none"))
    assert "pretrained weights" not in techniques(frozen.override("model.freeze=none", "model.freeze_first=2"))
    plan_study(ablation(frozen, seeds=1), measure=None, threads=1)


def test_without_pretrained_weights_nothing_that_needs_them_is_left() -> None:
    recipe = Recipe.load("finetune").override("data.normalize=pretrained", "train.probe={views: 1}")
    assert recipe.train.probe is not None
    assert techniques(recipe)["pretrained weights"] == {
        "model.pretrained": [False, True],
        "data.normalize": ["train", "pretrained"],
        "train.probe": [None, recipe.train.probe.model_dump(mode="json")],  # type: ignore[union-attr]
    }
    plan = plan_study(ablation(recipe, design="one_in", seeds=1), measure=None, threads=1)
    assert plan.jobs[0].recipe.data.normalize == "train"
    for job in plan.jobs:
        assert (job.recipe.model.pretrained, job.recipe.data.normalize, job.recipe.train.probe is None) in [
            (True, "pretrained", False), (False, "train", True),
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "design"),
    [*((name, "one_out") for name in shipped()), ("cifar10-strong", "one_in"), ("cifar10-strong", "screening")],
)
def test_all_on_is_the_recipe_itself(name: str, design: str) -> None:
    recipe = Recipe.load(name)
    plan = plan_study(ablation(name, design=design, seeds=1), measure=None, threads=1)  # type: ignore[arg-type]
    assert len({job.fingerprint for job in plan.jobs}) == len(plan.jobs)
    if design == "one_out":
        everything = plan.jobs[0].recipe
        assert everything.augment == recipe.augment
        assert everything.model == recipe.model
        assert everything.train.schedule == recipe.train.schedule
        for job, technique in zip(plan.jobs[1:], techniques(recipe), strict=True):
            assert job.variant == f"without {technique}"
            assert technique not in techniques(job.recipe)


def test_the_shipped_ablation_takes_its_factors_from_the_recipe() -> None:
    spec = StudySpec.load("full-pipeline-ablation")
    jobs = plan_study(spec, measure=None, threads=1).jobs
    assert isinstance(spec.base, str)
    recipe = Recipe.load(spec.base).override("train.precision=bf16")
    assert list(dict.fromkeys(job.variant for job in jobs))[1:] == [f"without {name}" for name in techniques(recipe)]
    assert jobs[0].recipe.augment == recipe.augment
    for field in ("optimizer", "schedule", "ema", "label_smoothing", "epochs", "precision"):
        assert getattr(jobs[0].recipe.train, field) == getattr(recipe.train, field)


def test_one_in_starts_from_nothing() -> None:
    plan = plan_study(ablation("cifar10-strong", design="one_in", seeds=1), measure=None, threads=1)
    bare = plan.jobs[0].recipe
    assert techniques(bare) == {}
    assert bare.model.name == "resnet18"


def test_only_some_techniques() -> None:
    spec = ablation("cifar10-strong", "train.epochs=15", only=["mixing", "label smoothing"], seeds=[3, 4])
    assert list(spec.factors) == ["mixing", "label smoothing"]
    assert spec.seeds == (3, 4)
    assert spec.base["train"]["epochs"] == 15  # type: ignore[index]
    with pytest.raises(RecipeError, match="only: cifar10-strong does not use 'mixup'; it uses random_crop"):
        ablation("cifar10-strong", only=["mixup"])
    for seed in ("train.seed=7", "train={seed: 7}"):
        refused(RecipeError, "train.seed: every run of a study has a seed of its own", ablation, "fashion-mini", seed)


def test_a_study_of_a_run_is_as_long_as_the_run_became() -> None:
    """The minutes recut its schedule; the plan, its trainings and an arm with the planned length say so."""
    recipe = Recipe.load("fashion-mini").override("train.epochs=4", "train.recut=[[2, 8]]")
    plan = plan_study(ablation(recipe, seeds=1), measure=None, threads=1)
    assert plan.data()["epochs"] == [8]
    assert {job.recipe.train.last_epoch for job in plan.jobs} == {8}
    variants = {"recut": {}, "planned": {"train.epochs": 4}}
    base = recipe.model_dump(mode="json")
    spec = StudySpec.parse({"name": "x", "base": base, "design": "compare", "variants": variants, "seeds": [0]}, "x")
    lengths = {job.variant: job.recipe.train.last_epoch for job in plan_study(spec, measure=None, threads=1).jobs}
    assert lengths == {"recut": 8, "planned": 4}


def test_a_recipe_without_techniques_has_no_ablation() -> None:
    bare = Recipe.model_validate(
        {"name": "bare", "train": {"schedule": {"name": "constant"}, "optimizer": {"weight_decay": 0.0}}}
    )
    refused(RecipeError, "bare: uses no technique", ablation, bare)
    head = Recipe.load("finetune").override("train.epochs=0")  # as a plan of a minute has
    refused(RecipeError, r"finetune: trains only a head \(train\.epochs: 0\)", ablation, head)


def test_an_op_that_is_listed_twice_stays_on() -> None:
    recipe = Recipe.load("fashion-mini").override(
        "augment.train=[{rotate: {}}, {horizontal_flip: {}}, {rotate: {degrees: 3}}]"
    )
    assert "rotate" not in techniques(recipe)
    assert "horizontal_flip" in techniques(recipe)
    assert ablation(recipe).about.endswith("more than once: rotate.")
    assert "more than once" not in ablation(Recipe.load("fashion-mini")).about


def test_a_warm_up_that_has_no_effect_does_not_wake_up_in_the_run_without_its_schedule() -> None:
    recipe = Recipe.load("fashion-mini").override("train.schedule.warmup_epochs=2")
    assert recipe.train.schedule.name == "one_cycle"
    assert techniques(recipe)["one cycle schedule"] == {
        "train.schedule.name": ["constant", "one_cycle"], "train.schedule.warmup_epochs": [0.0, 2.0],
    }  # fmt: skip


def test_a_recipe_of_any_name_has_an_ablation() -> None:
    assert ablation(Recipe.load("fashion-mini").override("name=Wälder, neu")).name == "W-lder--neu-one-out"
    assert ablation("fashion-mini", f"name={'x' * 100}").name == f"{'x' * 60}-one-out"
