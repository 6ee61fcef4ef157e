"""Trains a small recipe and kills itself with SIGKILL at a chosen moment; `main` is run as a process by test_resume.py.

`place` is where it dies, at the `count`-th time it comes there: `step` (inside an epoch), `write` (a checkpoint's bytes
are half written), `replace` (written, not yet renamed), `renamed` (just renamed), `validate` (inside validation),
`features` (of the probe, a file of them has just been written), `never`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from kitae import files
from kitae.evaluation import evaluate
from kitae.pipelines import probe
from kitae.pipelines.train import train
from kitae.recipe import Recipe
from kitae.training import checkpoint, losses

BASE = (
    "data.limit=400", "model.name=resnet8", "model.width=8", "train.epochs=3", "train.batch_size=64",
    "train.threads=1", "train.checkpoint_seconds=0.000001", "train.precision=fp32", "model.stochastic_depth=0.3",
)  # fmt: skip


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(out: str, place: str, count: int, *fields: str) -> None:
    left = count

    def reached() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    if place == "step":
        inner = losses.target_accuracy

        def counted(*arguments: Any) -> torch.Tensor:
            if reached():
                die()
            return inner(*arguments)

        sys.modules["kitae.training.learner"].target_accuracy = counted  # type: ignore[attr-defined]
    elif place == "validate":
        make = evaluate._normalizer

        def made(*arguments: Any) -> Any:
            normalize = make(*arguments)
            return lambda images: die() if reached() else normalize(images)

        evaluate._normalizer = made
    elif place == "features":
        save = probe.save_weights

        def saved(*arguments: Any) -> None:
            save(*arguments)
            if reached():
                die()

        probe.save_weights = saved  # type: ignore[attr-defined]
    elif place in ("write", "replace", "renamed"):
        whole = files.write_atomically
        replace = os.replace

        def write(path: Path, content: bytes) -> None:
            if path.name == "checkpoint.safetensors" and reached():
                if place == "write":
                    path.parent.mkdir(parents=True, exist_ok=True)  # as the real writer does, before its first byte
                    path.with_name(f".{path.name}.half.tmp").write_bytes(content[: len(content) // 2])
                    die()
                os.replace = (lambda *_: die()) if place == "replace" else (lambda *a: (replace(*a), die()))  # type: ignore[assignment]
            whole(path, content)

        checkpoint.write_atomically = write  # type: ignore[attr-defined]
    train(Recipe.load("fashion-mini").override(*BASE, *fields), out=out, resume=True)
