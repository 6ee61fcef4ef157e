"""What two threads of the augmentation bring, against what two processes on the same cores bring.

    python benchmarks/threads.py

Two processes that share nothing are the limit: if they are not twice as fast as one alone, the cores share something
(execution units of one physical core, caches, memory), and threads cannot do better. Three ways take turns, round after
round: one thread; two threads on one batch; two processes with a thread each, on batches of their own at the same time.
For batches of several sizes, since a hand-over to a thread costs the same for few images as for many.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import common
import numpy as np
from contestants import JITTER, MEAN, STD

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


def rate(call: Callable[[], Any], batch: int, seconds: float, begin: float = 0.0) -> float:
    """Images a second, from a time on."""
    while time.time() < begin:
        pass
    began, made = time.perf_counter(), 0
    while made == 0 or time.perf_counter() - began < seconds:
        call()
        made += batch
    return made / (time.perf_counter() - began)


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


def main() -> None:
    given = common.turns(__doc__, "threads", rounds=9, seconds=0.15)
    rounds, seconds = given.rounds, given.seconds
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=other, args=(theirs,), daemon=True)
    process.start()
    rows = []
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
                spreads = {way: common.spread(values) for way, values in found.items()}
                over = {way: common.ratio(spreads[way], spreads["one thread"]) for way in list(spreads)[1:]}
                rows.append(
                    {"work": name, "side": side, "batch": batch, "images_per_second": spreads, "over_one": over}
                )
                said = ", ".join(f"{way} {value['median']:.2f}" for way, value in over.items())
                print(f"{name}, {side} px, batch {batch}: {said}", flush=True)
    ours.send(None)
    common.save(given.out, {"what": __doc__, "machine": common.hardware(2), "rows": rows})
    print(f"results: {given.out}")


if __name__ == "__main__":
    main()
