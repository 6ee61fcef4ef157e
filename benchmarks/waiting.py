"""What it costs and brings that waiting threads of PyTorch sleep soon, as `kitae` asks them to.

    python benchmarks/waiting.py

Training steps of two networks with one thread per core, alone and beside as many other busy processes. Two processes
take turns, round after round: one with the waits that PyTorch has by itself (its threads look for work for some
milliseconds), one with those of `kitae` (its `GOMP_SPINCOUNT`). The one that begins a round begins the next one last.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import common

from kitae.machine import SPINS

NETWORKS = {
    "resnet9, width 16, 32 px, batch 128": ("resnet9", 16, 32, 128),
    "efficientnet_lite0, 128 px, batch 32": ("timm:tf_efficientnet_lite0", None, 128, 32),
}
WAYS: dict[str, dict[str, str]] = {"pytorch": {}, "kitae": {"GOMP_SPINCOUNT": SPINS}}
_OWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def serve() -> None:
    """A process that trains: answers each line `seconds` with its images a second."""
    import torch

    from kitae.models.build import build
    from kitae.models.spec import ModelSpec
    from kitae.pipelines.setup import begin
    from kitae.training import precision
    from kitae.training.batches import EpochShape
    from kitae.training.learner import Learner, Progress
    from kitae.training.spec import TrainSpec

    name, width, side, batch, threads = sys.argv[2:]
    spec = TrainSpec(batch_size=int(batch), threads=int(threads))
    world = begin(spec)
    model = build(
        ModelSpec(name=name, width=int(width) if width != "None" else None), classes=10, channels=3,
        image_size=(int(side), int(side)),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    images = torch.randn(int(batch), 3, int(side), int(side)).contiguous(memory_format=torch.channels_last)
    targets = torch.nn.functional.one_hot(torch.arange(int(batch)) % 10, 10).float()
    step = 0
    with Learner(
        model.train(), spec, EpochShape(int(batch), 1, 10**6, 10**6), world, precision.choose(world.device)
    ) as learner:
        for line in sys.stdin:
            began, made = time.perf_counter(), 0
            while made == 0 or time.perf_counter() - began < float(line):
                bool(learner.step(images, targets, Progress(step=step)).healthy)
                made, step = made + int(batch), step + 1
            print(made / (time.perf_counter() - began), flush=True)


def started(words: list[str], own: dict[str, str]) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in _OWN}
    return subprocess.Popen(
        words, env={**environment, **own}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def asked(process: subprocess.Popen[str], seconds: float) -> float:
    """Its images a second, over so many seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{seconds}\n")
    return float(process.stdout.readline())


def main() -> None:
    given = common.turns(__doc__, "waiting", rounds=9, seconds=2.0)
    rounds, seconds = given.rounds, given.seconds
    cores = common.available_cores()
    rows: list[dict[str, Any]] = []
    for title, settings in list(NETWORKS.items())[: 1 if given.tiny else None]:
        words = [sys.executable, __file__, "serve", *map(str, settings), str(cores)]
        ways = {way: started(words, own) for way, own in WAYS.items()}
        try:
            for beside in (0, cores):
                found: dict[str, list[float]] = {way: [] for way in WAYS}
                with common.busy(beside):
                    for process in ways.values():
                        asked(process, 0.1)
                    for turn in range(rounds):
                        for way, process in list(ways.items())[:: 1 if turn % 2 else -1]:
                            found[way].append(asked(process, seconds))
                spreads = {way: common.spread(values) for way, values in found.items()}
                over = common.ratio(spreads["kitae"], spreads["pytorch"])
                rows.append({"network": title, "beside": beside, "images_per_second": spreads, "over_pytorch": over})
                print(f"{title}, beside {beside} busy processes: {over['median']:.2f} times as fast", flush=True)
        finally:
            for process in ways.values():
                process.kill()
                process.wait()
    common.save(given.out, {"what": __doc__, "machine": common.hardware(cores), "rows": rows})
    print(f"results: {given.out}")


if __name__ == "__main__":
    serve() if sys.argv[1:2] == ["serve"] else main()
