"""A stand-in for training: writes a run folder, resumes where it was cut, and its result depends on the recipe alone.

Environment variables, which reach worker processes, make it misbehave:
    FAKE_STEP_SECONDS   each of its steps takes so long
    FAKE_FAIL           a text; the run whose log name has it fails
    FAKE_DIE_ONCE       a folder; the first run kills its own process there, once
"""

from __future__ import annotations

import os
import signal
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kitae import keyed
from kitae.data.store import open_store
from kitae.errors import TrainingError
from kitae.experiments.space import SUBSET
from kitae.recipe import Recipe

STEPS = 4


class FakeRun:
    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe

    def metrics(self) -> list[dict[str, Any]]:
        value = quality(self.recipe)
        return [
            {
                "epoch": epoch + 1, "train_loss": 2.0 / (epoch + 1), "val_loss": 2.1 / (epoch + 1), "seconds": 0.5,
                "val_accuracy": value * (epoch + 1) / 3, "train_clean_accuracy": value * (epoch + 1) / 3 + 0.02,
                "images_per_second": 100.0, "peak_memory_bytes": 2**20,
            }
            for epoch in range(3)
        ]  # fmt: skip

    def evaluation(self) -> dict[str, Any]:
        value = quality(self.recipe)
        split = {
            "accuracy": value,
            "loss": 1 - value,
            "per_class": {"cat": {"accuracy": value, "count": 3}},
            "count": 9,
        }
        return {"test": split, "val": split}

    def environment(self) -> dict[str, Any]:
        return {"store": open_store(self.recipe.data).fingerprint, "processor": "fake"}

    def predictions(self) -> pa.Table:
        return pa.table({"label": [0, 1, 2], "predicted": [0, 1, 1]})


def quality(recipe: Recipe) -> float:
    noise = keyed.normals(recipe.train.seed, 0, int(recipe.train.label_smoothing * 1000), 77)[0]
    mixing = 0.02 if recipe.augment.mix is not None else 0.0
    return 0.7 + 0.2 * recipe.train.label_smoothing + mixing + 0.002 * float(noise)


def train(recipe: Recipe, out: Path, *, resume: bool) -> FakeRun:
    assert resume
    out.mkdir(parents=True, exist_ok=True)
    die = os.environ.get("FAKE_DIE_ONCE")
    if die and recipe.train.seed == 0 and not (Path(die) / "died").exists():
        (Path(die) / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("FAKE_FAIL", "nothing") in out.name:
        raise TrainingError("the loss was\nnot finite")
    steps = out / "steps"
    while (done := len(steps.read_text()) if steps.exists() else 0) < STEPS:
        time.sleep(float(os.environ.get("FAKE_STEP_SECONDS", "0")))
        steps.write_text("." * (done + 1))
    with (out / "trained").open("a") as file:  # how often the run came to its end
        file.write(".")
    return FakeRun(out, recipe)


def dies(recipe: Recipe, out: Path, *, resume: bool) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def measure(recipe: Recipe) -> dict[str, Any]:
    precision = "bf16" if recipe.train.precision == "auto" else recipe.train.precision
    resolved = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": precision})})
    return {"recipe": resolved, "seconds_per_epoch": 2.0, "train": 1000, "val": 500, "test": 2000}


def after_step(run: FakeRun, folder: Path, *, ratio: float = 0.0) -> dict[str, Any]:
    if ratio > 0.8:
        raise TrainingError("nothing is left")
    return {"accuracy": run.evaluation()["test"]["accuracy"] - ratio / 10, "nested": {"bytes": 100 * (1 - ratio)}}


def step_that_dies(run: FakeRun, folder: Path, *, ratio: float = 0.0) -> dict[str, Any]:
    with (folder.parent / f"steps-{ratio}").open("a") as file:
        file.write(".")
    if ratio:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"accuracy": 0.5}


class FakeSearchRun(FakeRun):
    def evaluation(self) -> dict[str, Any]:
        value = search_quality(self.recipe)
        return {"val": {"accuracy": value, "balanced_accuracy": value / 2, "macro_f1": value / 2, "loss": 1 - value}}


def search_quality(recipe: Recipe) -> float:
    """An op of the policy `subset` helps by FAKE_SUBSET; the rest is noise of what a search varies and the seed."""
    names = {name for op in recipe.augment.train for name in op}
    mix = recipe.augment.mix
    varied = (recipe.augment.train, mix and (mix.mixup_alpha, mix.cutmix_alpha, mix.prob), recipe.train.label_smoothing)
    key = zlib.crc32(repr((varied, recipe.train.epochs, recipe.data.source)).encode()) >> 1
    noise = 0.003 * float(keyed.normals(recipe.train.seed, 0, key, 78)[0])
    helps = float(os.environ.get("FAKE_SUBSET", "0")) if names & set(SUBSET) else 0.0
    late = {"random_crop", "horizontal_flip", "auto_augment"}
    if os.environ.get("FAKE_LATE") and names == late:  # the worst of all but at the full length
        helps += 0.03 if recipe.train.epochs >= 9 else -0.1
    return 0.6 + 0.01 * min(recipe.train.epochs, 9) + helps + noise


def search_train(recipe: Recipe, out: Path, *, resume: bool) -> FakeRun:
    failing = os.environ.get("FAKE_FAIL_RUNS", "")
    if failing == "without subset" and not any(set(SUBSET) & set(op) for op in recipe.augment.train):
        raise TrainingError("out of\nmemory")
    if failing.startswith("seed ") and recipe.train.seed in {int(seed) for seed in failing.split()[1:]}:
        raise TrainingError("out of\nmemory")
    return FakeSearchRun(out, train(recipe, out, resume=resume).recipe)


def search_measure(recipe: Recipe) -> dict[str, Any]:
    return {**measure(recipe), "image": (3, 32, 32)}


class RunOfSomeLength(FakeRun):
    def evaluation(self) -> dict[str, Any]:
        return {"test": {"accuracy": length_quality(self.recipe)}}


def length_quality(recipe: Recipe) -> float:
    """MixUp and CutMix hurt in short trainings and help in long ones, CutMix more; flip and crop always help."""
    mix, epochs = recipe.augment.mix, recipe.train.epochs
    size = {12: -0.05, 25: -0.02, 50: 0.0, 100: 0.02, 200: 0.04}[epochs]
    mixing = 0.0 if mix is None else size * (1.5 if mix.cutmix_alpha else 1.0)
    noise = keyed.normals(recipe.train.seed, 0, zlib.crc32(repr((size, mixing, recipe.model.width)).encode()) >> 1, 79)
    scatter = float(os.environ.get("FAKE_SCATTER", "0.002"))
    return 0.7 + (0.04 if recipe.augment.train else 0.0) + mixing + scatter * float(noise[0])


class RunOnPatients(FakeRun):
    """Tested on 20 images of each of 10 patients, who differ in how much mixing helps."""

    def predictions(self) -> pa.Table:
        group = np.repeat(np.arange(10) * 7, 20)
        helps = np.linspace(-0.4, 0.4, 10) if self.recipe.augment.mix is not None else np.zeros(10)
        rng = np.random.default_rng([self.recipe.train.seed, self.recipe.augment.mix is not None])
        right = rng.random(200) < 0.5 + np.repeat(helps, 20)
        return pa.table({"label": [0] * 200, "predicted": np.where(right, 0, 1), "group": group})


def train_on_patients(recipe: Recipe, out: Path, *, resume: bool) -> FakeRun:
    return RunOnPatients(out, train(recipe, out, resume=resume).recipe)


def train_of_some_length(recipe: Recipe, out: Path, *, resume: bool) -> FakeRun:
    return RunOfSomeLength(out, train(recipe, out, resume=resume).recipe)
