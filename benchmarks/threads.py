"""What two threads of the augmentation bring, against what two processes on the same cores bring.

    python benchmarks/threads.py

Two processes that share nothing are the limit: if they are not twice as fast as one alone, the cores share something
(execution units of one physical core, caches, memory), and threads cannot do better. Three ways take turns, round after
round: one thread; two threads on one batch; two processes with a thread each, on batches of their own at the same time.
For batches of several sizes, since a hand-over to a thread costs the same for few images as for many.

At 32 px, one and two threads once more with a step of a small network between the batches, outside the clock, as in
training. Waiting threads sleep as soon as under the `kitae` command.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import common
import numpy as np
from contestants import JITTER, MEAN, STD

from kitae.machine import sleep_while_waiting

WORKS: dict[str, list[Any]] = {
    "horizontal_flip": ["horizontal_flip"],
    "brightness": [{"brightness": {"amount": 0.4}}],
    "standard": [
        {"random_crop": {"padding": 4}}, "horizontal_flip", {"color_jitter": JITTER}, {"random_erasing": {"p": 0.5}},
    ],
    "auto_augment": [{"auto_augment": {"policy": "cifar10"}}],
}  # fmt: skip
BATCHES = {32: (128, 512, 4096), 224: (64,)}


def work(ops: list[Any], side: int, batch: int, threads: int) -> Callable[[], Any]:
    """Augments a batch, a new epoch at each call."""
    from kitae.augment import Augment

    images = common.generated(side, min(batch, 512))
    images = np.concatenate([images] * -(-batch // len(images)))[:batch]
    augment = Augment(ops, mean=MEAN, std=STD, threads=threads)
    index, epochs = np.arange(batch), iter(range(10**9))
    return lambda: augment(images, epoch=next(epochs), index=index)


def rate(
    call: Callable[[], Any], batch: int, seconds: float, begin: float = 0.0, between: Callable[[], Any] | None = None
) -> float:
    """Images a second of these seconds, from a time on; `between` comes after each batch and does not count."""
    while time.time() < begin:
        pass
    spent, made = 0.0, 0
    while made == 0 or spent < seconds:
        began = time.perf_counter()
        call()
        spent += time.perf_counter() - began
        made += batch
        if between is not None:
            between()
    return made / spent


def step() -> Callable[[], Any]:
    """A step of a small network on all cores."""
    import torch
    from torch import nn

    torch.set_num_threads(common.available_cores())
    layers = nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)
    net = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    images = torch.randn(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    return lambda: net(images).sum().backward()


def other(pipe: Connection) -> None:
    """The second process."""
    call: Callable[[], Any] | None = None
    batch = 0
    while (asked := pipe.recv()) is not None:
        if isinstance(asked, tuple) and len(asked) == 3:
            ops, side, batch = asked
            call = work(ops, side, batch, 1)
            call()
            pipe.send(None)
        else:
            seconds, begin = asked
            assert call is not None
            pipe.send(rate(call, batch, seconds, begin))


def row(name: str, side: int, batch: int, found: dict[str, list[float]], *, training: bool) -> dict[str, Any]:
    """What was measured of a work; printed too."""
    spreads = {way: common.spread(values) for way, values in found.items()}
    over = {way: common.ratio(spreads[way], spreads["one thread"]) for way in list(spreads)[1:]}
    where = f"{name}, {side} px, batch {batch}{', while training' if training else ''}"
    said = ", ".join(f"{way} {value['median']:.2f}" for way, value in over.items())
    print(f"{where}: {said}", flush=True)
    return {
        "work": name, "side": side, "batch": batch, "training": training, "images_per_second": spreads,
        "over_one": over,
    }  # fmt: skip


def main() -> None:
    sleep_while_waiting(os.environ)  # before PyTorch's threads start
    given = common.turns(__doc__, "threads", rounds=9, seconds=0.15)
    rounds, seconds = given.rounds, given.seconds
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=other, args=(theirs,), daemon=True)
    process.start()
    rows: list[dict[str, Any]] = []
    for side, batches in {32: (16,)}.items() if given.tiny else BATCHES.items():
        for batch in batches:
            for name, ops in WORKS.items():
                one, two = (work(ops, side, batch, threads) for threads in (1, 2))
                ours.send((ops, side, batch))
                one(), two(), ours.recv()
                found: dict[str, list[float]] = {"one thread": [], "two threads": [], "two processes": []}
                for _ in range(rounds):
                    found["one thread"].append(rate(one, batch, seconds))
                    found["two threads"].append(rate(two, batch, seconds))
                    begin = time.time() + 0.005
                    ours.send((seconds, begin))
                    found["two processes"].append(rate(one, batch, seconds, begin) + ours.recv())
                rows.append(row(name, side, batch, found, training=False))
    ours.send(None)
    between = step()
    for batch in (16,) if given.tiny else BATCHES[32][:2]:
        for name, ops in WORKS.items():
            one, two = (work(ops, 32, batch, threads) for threads in (1, 2))
            one(), two(), between()
            found = {"one thread": [], "two threads": []}
            for _ in range(rounds):
                for way, call in zip(found, (one, two), strict=True):
                    # A twentieth of the time, since a step takes far longer than the batch.
                    found[way].append(rate(call, batch, seconds / 20, between=between))
            rows.append(row(name, 32, batch, found, training=True))
    common.save(given.out, {"what": __doc__, "machine": common.hardware(2), "rows": rows})
    print(f"results: {given.out}")


if __name__ == "__main__":
    main()
