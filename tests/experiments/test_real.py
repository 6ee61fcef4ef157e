"""Studies with real training: killed in the middle of a run, a study ends with the same accuracies."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kitae.compression.masks import apply_masks, magnitude_masks
from kitae.compression.reconstruct import reconstruct
from kitae.data.splits import make_splits
from kitae.data.store import open_store
from kitae.experiments import after
from kitae.experiments.plan import make_plan
from kitae.experiments.result import StudyResult
from kitae.experiments.study import study
from kitae.experiments.study_spec import StudySpec
from kitae.pipelines.setup import Setup
from kitae.pipelines.train import train
from kitae.recipe import Recipe
from kitae.training.distributed import World
from tests.experiments.test_study import PATH

ROOT = Path(__file__).parents[2]

CONTENT: dict[str, Any] = {
    "name": "real",
    "base": "fashion-mini",
    "set": {
        "data.limit": 400, "train.epochs": 3, "train.batch_size": 20, "train.precision": "fp32", "model.width": 4,
        "train.checkpoint_seconds": 0.05,
    },
    "design": "compare",
    "variants": {"plain": {}, "smooth": {"train.label_smoothing": 0.2}},
    "seeds": [0, 1],
    "cover": "both",
}  # fmt: skip

_DRIVER = """
import sys
from kitae.experiments.study import study
from kitae.experiments.study_spec import StudySpec
from tests.experiments.test_real import CONTENT
study(StudySpec.parse(CONTENT), sys.argv[1], workers=2, threads=1)
"""


def accuracies(result: StudyResult) -> list[float]:
    columns = [name for name in result.runs if name.startswith(("test.", "val.", "train_loss", "val_loss", "gap"))]
    assert {"test.accuracy", "val.accuracy", "gap"} <= set(columns)
    return [float(value) for name in columns for value in result.runs[name].fillna(-1.0)]  # NaN: no such prediction


def test_pruning_after_a_run_is_as_the_compression_prunes(tmp_path: Path) -> None:
    recipe = Recipe.load("fashion-mini").override(
        "data.limit=400", "train.epochs=1", "train.batch_size=20", "train.precision=fp32", "model.width=4",
        "train.threads=1",
    )  # fmt: skip
    trained = train(recipe, tmp_path / "run")
    untuned = after.prune(trained, tmp_path, ratio=0.5, epochs=0)  # no fine-tuning is no error
    assert untuned["sparsity"] > 0.3
    tuned = after.prune(trained, tmp_path, ratio=0.5, epochs=1)
    assert {"accuracy", "val_accuracy"} <= tuned.keys()
    assert tuned["val_accuracy"] != untuned["val_accuracy"]
    # BatchNorm's statistics follow: what a network with the old ones would answer is another.
    model = trained.load_model(free=True)
    apply_masks(model, magnitude_masks(model, 0.5, scope="global"))
    setup = Setup.of(trained)
    logits, labels = trained.logits(setup.image_set(setup.splits.val), model)
    batches = functools.partial(setup.clean_batches, torch.device("cpu"))
    reconstruct(trained.load_model(), model, {}, batches, weights=False)
    again, _ = trained.logits(setup.image_set(setup.splits.val), model)
    assert not np.array_equal(logits, again)
    assert untuned["val_accuracy"] == float((again.argmax(axis=1) == labels).mean())
    for frozen in ({"freeze": "backbone"}, {"freeze_first": 2}):  # as after a start from pretrained weights
        spec = trained.recipe.model.model_copy(update={"freeze": "none", **frozen})
        trained.recipe = trained.recipe.model_copy(update={"model": spec})
        assert not all(p.requires_grad for p in trained.load_model().parameters())
        free = trained.load_model(free=True).train()
        assert all(p.requires_grad for p in free.parameters())
        norms = [module for module in free.modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms
        assert all(module.training != (module in norms) for module in free.modules()), "their statistics stay frozen"


def test_variants_begin_with_the_same_weights_where_shapes_allow() -> None:
    variants = {
        "plain": {}, "stochastic depth": {"model.stochastic_depth": 0.3}, "dropout": {"model.dropout": 0.3},
        "deeper": {"model.name": "resnet56"}, "wider": {"model.width": 16}, "averaged": {"train.ema": 0.9},
    }  # fmt: skip
    spec = StudySpec.parse({
        "name": "networks", "base": "fashion-mini", "set": {"model.name": "resnet20", "model.width": 8},
        "design": "compare", "variants": variants, "seeds": [0, 1],
    })  # fmt: skip
    plan = make_plan(spec, threads=1, precision="fp32")
    store = open_store(plan.jobs[0].recipe.data)
    splits = make_splits(store, plan.jobs[0].recipe.data)
    world = World(0, 1, torch.device("cpu"))
    begun = {
        (job.variant, job.seed): Setup(job.recipe, store, splits).initial_model(world).state_dict() for job in plan.jobs
    }
    for seed in spec.seeds:
        plain = begun["plain", seed]
        for variant in ("stochastic depth", "dropout", "deeper", "averaged"):
            other = begun[variant, seed]
            alike = [name for name in plain if plain[name].shape == other[name].shape]
            drawn = [name for name in alike if plain[name].numel() > 1 and plain[name].min() != plain[name].max()]
            assert len(drawn) == 1 + 9 * 2 + 2 + 2  # stem, blocks, shortcuts, classifier
            assert [name for name in drawn if not torch.equal(plain[name], other[name])] == []
        # Of the classifier's twice as many inputs torch makes a range that is smaller; the numbers in it are the same.
        wider = begun["wider", seed]["classifier.bias"]
        torch.testing.assert_close(wider, plain["classifier.bias"] / 2**0.5)
    assert not torch.equal(begun["plain", 0]["stem.0.weight"], begun["plain", 1]["stem.0.weight"])


@pytest.mark.slow
def test_killed_in_the_middle_of_training_and_gone_on_with(tmp_path: Path) -> None:
    whole = study(StudySpec.parse(CONTENT), tmp_path / "whole", workers=1, threads=1)
    assert len(whole.failed) == 0
    assert whole.analyses["test.accuracy"].effects[0].covers == "seeds and test images"
    folder = tmp_path / "cut"
    environment = {**os.environ, "PYTHONPATH": PATH}
    driver = subprocess.Popen([sys.executable, "-c", _DRIVER, str(folder)], cwd=ROOT, env=environment)
    while not any(folder.glob("runs/*/last/checkpoint.safetensors")):
        assert driver.poll() is None
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    assert not (folder / "effects.json").exists()
    again = subprocess.run([sys.executable, "-c", _DRIVER, str(folder)], cwd=ROOT, env=environment, check=False)
    assert again.returncode == 0
    assert accuracies(StudyResult.open(folder)) == accuracies(whole)


@pytest.mark.slow
def test_a_search_with_real_training(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from kitae.experiments.executors import Inline
    from kitae.experiments.search import search

    result = search(
        "fashion-mini", tmp_path / "s", "data.limit=200", "train.epochs=2", "model.width=4", "train.batch_size=20",
        "train.precision=fp32", arms=9, rematch_seeds=2, executor=Inline(), threads=1,
    )  # fmt: skip
    assert "The search" in result.verdict
    assert not list((tmp_path / "s").glob("arms/*/test_openings.jsonl"))
    assert (tmp_path / "s" / "figures" / "search.svg").is_file()
