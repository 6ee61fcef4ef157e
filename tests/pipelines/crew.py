"""A process of a training under torchrun: `python -m tests.pipelines.crew OUT TASK FIELD=VALUE ...`

train       trains into OUT/run
stop N      trains, and gets a SIGTERM after N steps
die N       trains, and the last process kills itself after N steps
hash        writes what each process feeds its network in two epochs: OUT/RANK.json, a hash per sample
exchange    sums a tensor over the processes, and writes how long that takes: OUT/exchange.json

With CREW_GROUP=BACKEND the processes form their group before the training would, and all use the first GPU, which
`kitae train` refuses.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kitae.errors import KitaeError
from kitae.pipelines.setup import Setup, begin
from kitae.pipelines.train import train
from kitae.recipe import Recipe
from kitae.training import distributed, learner
from kitae.training.batches import augmented_batches, epoch_shape

# No BatchNorm, whose statistics are each process's own, and nothing else that knows of processes.
FIELDS = (
    "data.limit=200", "model={name: simple_cnn}", "train.epochs=2", "train.batch_size=24", "train.precision=fp32",
    "train.threads=1", "train.optimizer.lr=0.02", "augment.train=[{random_crop: {padding: 2}}, {horizontal_flip: {}}]",
    "augment.mix={mixup_alpha: 1.0, prob: 0.5}",
)  # fmt: skip


def recipe(*fields: str) -> Recipe:
    return Recipe.load("fashion-mini").override(*FIELDS, *fields)


def feed(out: Path, wanted: Recipe) -> None:
    world = begin(wanted.train)
    setup = Setup.without_run(wanted)
    shape = epoch_shape(len(setup.images), wanted.train, world.size)
    augment = setup.augment(wanted.train.seed).prepare(*setup.drawn)
    found = [
        [
            hashlib.sha256(a.cpu().numpy().tobytes() + b.cpu().numpy().tobytes()).hexdigest()[:16]
            for a, b in zip(*batch, strict=True)
        ]
        for epoch in range(2)
        for batch in augmented_batches(setup.images, augment, shape, world, seed=0, epoch=epoch, first=0)
    ]
    (out / f"{world.rank}.json").write_text(json.dumps(found))


def group(backend: str, wanted: Recipe) -> None:
    """Form the group of processes, all of them on the first device."""
    os.environ["LOCAL_RANK"] = "0"
    seconds = wanted.train.process_timeout
    dist.init_process_group(backend, timeout=None if seconds is None else timedelta(seconds=seconds))


def exchange(out: Path, wanted: Recipe, count: int = 1 << 20, repeats: int = 20) -> None:
    """Sum a tensor of `count` float32 over the processes."""
    world = begin(wanted.train)
    values = torch.full((count,), float(world.rank + 1), device=world.device)
    right, taken = True, []
    for _ in range(repeats):
        mine = values.clone()
        began = time.perf_counter()
        if dist.is_initialized():
            dist.all_reduce(mine)
        total = float(mine[-1])  # waits for the device
        taken.append(time.perf_counter() - began)
        right = right and total == world.size * (world.size + 1) / 2
    if world.is_main:
        backend = dist.get_backend() if dist.is_initialized() else None
        found = {"backend": backend, "device": str(world.device), "processes": world.size, "sums_are_right": right}
        (out / "exchange.json").write_text(json.dumps({**found, "bytes": 4 * count, "seconds": taken}))


def ending(out: Path, task: str, count: int) -> None:
    """Let the step number `count` of the last process be its last, and write when that is to OUT/ended."""
    original, steps = learner.Learner.step, 0

    def step(self: Any, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == count and self.world.rank == self.world.size - 1:
            (out / "ended").write_text(str(time.time()))
            os.kill(os.getpid(), {"stop": signal.SIGTERM, "die": signal.SIGKILL, "hang": signal.SIGSTOP}[task])
        return original(self, *arguments)

    learner.Learner.step = step  # type: ignore[method-assign]


def main() -> None:
    out, task, *rest = Path(sys.argv[1]), *sys.argv[2:]
    if task in ("stop", "die", "hang"):
        ending(out, task, int(rest.pop(0)))
    wanted = recipe(*rest)
    try:
        if backend := os.environ.get("CREW_GROUP"):
            group(backend, wanted)
        if task == "hash":
            feed(out, wanted)
        elif task == "exchange":
            exchange(out, wanted)
        else:
            train(wanted, out / "run", resume=(out / "run").exists())
    except KitaeError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    finally:
        if task not in ("die", "hang"):
            distributed.leave()


if __name__ == "__main__":
    main()
