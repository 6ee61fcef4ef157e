"""What folding BatchNorm into the convolutions brings to a forward pass on a CPU, as a probe's features need it.

    python benchmarks/folding.py

The network as it is and its folded copy (`models.folding`) take turns, round after round, on the same generated images
in batches of 32, in bfloat16 as a probe runs it and in float32. Freed memory is kept, as `kitae train` does.
"""

from __future__ import annotations

import time
from typing import Any

import common
import torch

from kitae.models.build import build_seeded
from kitae.models.folding import folded
from kitae.models.spec import ModelSpec
from kitae.modes import evaluating
from kitae.preprocess import PreprocessRules
from kitae.training.guards import keep_freed_memory
from kitae.training.precision import Precision, inference

BATCH, BATCHES = 32, 3
CPU = torch.device("cpu")
PLAIN, FOLDED = "as it is", "folded"
NETWORKS = (  # name, width, side of the images
    ("timm:tf_efficientnet_lite0", None, 224), ("timm:mobilenetv3_small_100", None, 224), ("timm:resnet18", None, 224),
    ("resnet9", 32, 32),
)  # fmt: skip


def measure(name: str, width: int | None, side: int, kind: Precision, rounds: int) -> dict[str, Any]:
    """Images per second of each way, their ratios, and the seconds that folding takes."""
    model = build_seeded(ModelSpec(name=name, width=width), 0, 10, PreprocessRules(side))
    model = model.to(memory_format=torch.channels_last)
    images = torch.rand((BATCH, 3, side, side)).contiguous(memory_format=torch.channels_last)
    model.eval()(images)  # compiles what has to be
    began = time.perf_counter()
    ways = {PLAIN: model, FOLDED: folded(model, lambda network: network(images[:2]))}
    taken = time.perf_counter() - began
    rates: dict[str, list[float]] = {way: [] for way in ways}
    with torch.no_grad():
        for _ in range(rounds + 1):  # the first is a warm-up
            for way, network in ways.items():
                with evaluating(network), inference(network, kind, CPU):
                    began = time.perf_counter()
                    for _ in range(BATCHES):
                        network(images)
                    rates[way].append(BATCHES * BATCH / (time.perf_counter() - began))
    spreads = {way: common.spread(values[1:]) for way, values in rates.items()}
    over = common.ratio(spreads[FOLDED], spreads[PLAIN])
    print(f"{name} {side} px, {kind}: {over['median']:.2f} times as fast, {taken:.2f} s to fold", flush=True)
    return {
        "network": name, "width": width, "side": side, "precision": kind, "images_per_second": spreads,
        "folded_over_plain": over, "seconds_to_fold": taken,
    }  # fmt: skip


def main() -> None:
    given = common.turns(__doc__, "folding", rounds=7, seconds=0)
    keep_freed_memory()
    networks = (("resnet8", 4, 32),) if given.tiny else NETWORKS
    kinds: tuple[Precision, ...] = ("bf16", "fp32")
    common.save(given.out, {
        "what": __doc__, "machine": common.hardware(common.available_cores()), "threads": torch.get_num_threads(),
        "batch": BATCH, "rows": [measure(*network, kind, given.rounds) for network in networks for kind in kinds],
    })  # fmt: skip
    print(f"results: {given.out}")


if __name__ == "__main__":
    main()
