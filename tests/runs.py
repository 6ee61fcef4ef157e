"""A small finished run, for tests of what comes after training."""

from __future__ import annotations

from pathlib import Path

from kitae.pipelines.train import train
from kitae.recipe import Recipe
from kitae.run import Run


def small_run(folder: Path) -> Run:
    """Two epochs of a small network on 400 images of fashion-mini, in float32 and with one thread."""
    recipe = Recipe.load("fashion-mini").override(
        "data.limit=400", "model.name=resnet8", "model.width=4", "train.epochs=2", "train.batch_size=20",
        "train.precision=fp32", "train.threads=1",
    )  # fmt: skip
    return train(recipe, folder)
