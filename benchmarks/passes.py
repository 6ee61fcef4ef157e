"""Evaluation on a CPU: what forward passes of few images bring, against passes of a whole batch of 256.

    python benchmarks/passes.py

`evaluation.predict_logits` classifies generated images, with passes as it chooses them and with passes of 256 images;
the two take turns, round after round. First in a process whose C library returns the memory of large activations to the
system, then in one that keeps it (`training.guards.keep_freed_memory`), as `kitae train`, `evaluate` and `predict` do.
"""

from __future__ import annotations

import time
from typing import Any

import common
import numpy as np
import torch

from kitae.evaluation import evaluate
from kitae.models.build import IMAGENET_MEAN, IMAGENET_STD, build_seeded
from kitae.models.spec import ModelSpec
from kitae.preprocess import PreprocessRules
from kitae.training.guards import keep_freed_memory

BATCH = 256
NETWORKS = (  # name, width, side of the images
    ("resnet9", 32, 32), ("resnet18", None, 32), ("timm:efficientnet_lite0", None, 128),
    ("timm:efficientnet_lite0", None, 224), ("timm:mobilenetv3_small_100", None, 224),
)  # fmt: skip
FEW, WHOLE = "few", "whole"


def measure(name: str, width: int | None, side: int, rounds: int) -> dict[str, Any]:
    """Images per second of each way, and the ratio of the two, round by round."""
    model = build_seeded(ModelSpec(name=name, width=width), 0, 10, PreprocessRules(side))
    model = model.to(memory_format=torch.channels_last)
    images = common.generated(side, BATCH)
    chosen = evaluate.images_per_pass
    limits = {FEW: chosen, WHOLE: lambda shape, device: shape[0]}
    logits, rates = {}, {way: [] for way in limits}
    for _ in range(rounds + 1):  # the first is a warm-up
        for way, limit in limits.items():
            evaluate.images_per_pass = limit
            began = time.perf_counter()
            logits[way], _ = evaluate.predict_logits(
                model, lambda rows: (images[rows], rows), np.arange(BATCH), mean=IMAGENET_MEAN, std=IMAGENET_STD,
                batch_size=BATCH,
            )  # fmt: skip
            rates[way].append(BATCH / (time.perf_counter() - began))
    evaluate.images_per_pass = chosen
    spreads = {way: common.spread(values[1:]) for way, values in rates.items()}
    return {
        "network": name, "width": width, "side": side, "images_per_pass": chosen((BATCH, 3, side, side), "cpu"),
        "images_per_second": spreads, "few_over_whole": common.ratio(spreads[FEW], spreads[WHOLE]),
        "largest_difference": float(np.abs(logits[FEW] - logits[WHOLE]).max()),
    }  # fmt: skip


def main() -> None:
    given = common.turns(__doc__, "passes", rounds=5, seconds=0)
    rows = []
    for kept in (False, True):
        if kept:
            keep_freed_memory()
        for network in (("resnet8", 4, 32),) if given.tiny else NETWORKS:
            rows.append({"kept": kept, **measure(*network, given.rounds)})
            print(f"{network} kept={kept}: {rows[-1]['few_over_whole']['median']:.2f} times as fast", flush=True)
    common.save(given.out, {
        "what": "images per second of evaluation in float32; few: passes as Kitae chooses them, whole: of 256 images",
        "machine": common.hardware(common.available_cores()), "threads": torch.get_num_threads(), "batch": BATCH,
        "rows": rows,
    })  # fmt: skip
    print(f"results: {given.out}")


if __name__ == "__main__":
    main()
