"""Schedules that the clock changes on the way."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import pytest
import torch

from kitae.pipelines import pace
from kitae.pipelines.pace import Clock
from kitae.recipe import Recipe
from kitae.run import Run
from kitae.training.checkpoint import load_weights
from kitae.training.distributed import World
from tests.watchers import DiesHereError, KillAt, Watcher

training = importlib.import_module("kitae.pipelines.train")


def test_the_main_process_decides_whether_all_measure_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that measured again alone would wait for the others."""
    monkeypatch.setattr(pace.distributed, "from_main", lambda value, world: 0.0)
    made: list[int] = []
    clock = Clock(60, time.monotonic(), 0.0)
    pace.replan(lambda: made.append(1), lambda _: 60.0, clock, World(1, 2, torch.device("cpu")))
    assert made == [1]


@pytest.mark.parametrize("batches", [5, 14])
def test_a_run_that_was_killed_after_a_recut_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    """Planned for 2 epochs, the machine is faster, so there are 4: killed in the second, or in the last one."""
    asked = Recipe.load("fashion-mini").override(
        "data.limit=200", "model.name=resnet8", "model.width=4", "train.epochs=2", "train.epoch_steps=4",
        "train.batch_size=16", "train.threads=1", "train.precision=fp32", "train.optimizer.lr=0.05",
        "train.schedule.name=cosine",
    )  # fmt: skip
    monkeypatch.setattr(training, "fitted", lambda recipe, *_: (recipe, 0.0))

    def clock() -> Clock:
        return Clock(3600, time.monotonic(), 0.0, most=16)

    watcher = Watcher()
    whole = training.train(asked, tmp_path / "whole", minutes=clock(), watcher=watcher)
    assert watcher.plans == [2, 4]
    assert whole.recipe.train.recut == ((1, 4),)
    with pytest.raises(DiesHereError):
        training.train(asked, tmp_path / "killed", minutes=clock(), watcher=KillAt(batches))
    saved = Run.open(tmp_path / "killed").recipe
    again = training.train(saved, tmp_path / "killed", resume=True)
    assert again.recipe == whole.recipe
    weights = [load_weights(run.best)[0] for run in (again, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    rows = [[(row["epoch"], row["train_loss"], row["val_loss"]) for row in run.metrics()] for run in (again, whole)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4
