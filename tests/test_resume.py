"""A run killed with SIGKILL and resumed ends with the weights and the metrics of the run that was never killed."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kitae.models.build import build
from kitae.models.spec import ModelSpec
from kitae.run import Run
from kitae.training.checkpoint import load_weights
from tests import crash_driver

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([crash_driver.__name__])  # torch is loaded once, not once for each kill
MEASURED = ("images_per_second", "seconds", "validation_seconds", "data_share", "peak_memory_bytes")


def begin(out: Path, place: str, count: int, *fields: str) -> BaseProcess:
    process = PROCESSES.Process(target=crash_driver.main, args=(str(out), place, count, *fields))
    process.start()
    return process


def go(out: Path, place: str = "never", count: int = 1, *fields: str) -> int | None:
    process = begin(out, place, count, *fields)
    process.join(300)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode


def outcome(out: Path) -> dict[str, Any]:
    run = Run.open(out)
    rows = [{k: v for k, v in row.items() if k not in MEASURED} for row in run.metrics()]
    return {
        "best": load_weights(run.best),
        "last": load_weights(run.checkpoint),
        "rows": rows,
        "evaluation": run.evaluation(),
    }


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["rows"] == b["rows"]
    assert a["evaluation"]["test"] == b["evaluation"]["test"]
    for part in ("best", "last"):
        (tensors, facts), (others, other_facts) = a[part], b[part]
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)
        for whole in (facts, other_facts):
            whole.get("progress", {}).pop("seconds", None)
        assert facts == other_facts


def test_three_kills_in_one_run(tmp_path: Path) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole"
    for place, count in (("step", 5), ("write", 3), ("validate", 2)):
        assert go(out, place, count) == -signal.SIGKILL
    assert go(out) == 0
    crash_driver.main(str(whole), "never", 1)  # here, as loading torch takes longer than the training
    assert_same(outcome(out), outcome(whole))


@pytest.mark.slow
def test_kills_in_the_probe_and_in_fine_tuning(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = build(ModelSpec(name="resnet8", width=8), classes=5, channels=1, image_size=28)
    save_file(dict(model.state_dict()), tmp_path / "w.safetensors")
    fields = (
        f"model.pretrained={tmp_path / 'w.safetensors'}", "train.probe={views: 1, folds: 3}", "train.epochs=1",
        "train.optimizer.lr=0.001", "train.epoch_steps=4",
    )  # fmt: skip
    assert go(tmp_path / "whole", "never", 1, *fields) == 0
    out = tmp_path / "run"
    for place, count in (("features", 1), ("features", 2), ("validate", 1), ("write", 1), ("step", 3)):
        assert go(out, place, count, *fields) == -signal.SIGKILL, place
    assert go(out, "never", 1, *fields) == 0
    assert [row["epoch"] for row in Run.open(out).metrics()] == [0, 1]
    assert_same(outcome(out), outcome(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_moments(tmp_path: Path, precision: str, seed: int) -> None:
    fields = (f"train.precision={precision}", "train.ema=0.9", f"train.seed={seed}")
    assert go(tmp_path / "whole", "never", 1, *fields) == 0
    out, chance, kills = tmp_path / "killed", random.Random(seed), 0
    for place in ("step", "write", "replace", "renamed", "validate", "step"):
        kills += go(out, place, chance.randint(1, 6), *fields) == -signal.SIGKILL
    for _ in range(3):  # and by the clock, wherever it is then
        process = begin(out, "never", 1, *fields)
        time.sleep(chance.uniform(0.5, 6.0))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert go(out, "never", 1, *fields) == 0
    assert kills >= 4
    assert_same(outcome(out), outcome(tmp_path / "whole"))
