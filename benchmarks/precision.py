"""The table behind `precision: auto`: a training step of several networks in fp32 and bf16, interleaved.

    python benchmarks/precision.py            # some minutes; nothing else should run
    python benchmarks/precision.py --steps 6 resnet9-w32-32     # into runs/benchmarks, as only some rows are measured

Each row is what `kitae bench precision` prints of a recipe, and `behind`: the time of the precision that the rule takes
over the fastest one's. The rule is good where `behind` is at most 1.05 in every row. Other rows that
are in --out already are kept, if they had as many steps on such a machine with the same versions of the libraries.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, SCRATCH, hardware, load, save

from kitae.pipelines.bench import bench_precision
from kitae.recipe import Recipe

STEPS = 15
# Name -> model, width, image size, batch size.
NETWORKS: dict[str, tuple[str, int | None, int, int]] = {
    "simple_cnn-32": ("simple_cnn", None, 32, 128),
    "resnet9-w8-28": ("resnet9", 8, 28, 128),
    "resnet9-w16-32": ("resnet9", 16, 32, 128),
    "resnet9-w32-32": ("resnet9", 32, 32, 128),
    "resnet20-32": ("resnet20", None, 32, 128),
    "resnet56-32": ("resnet56", None, 32, 128),
    "resnet18-32": ("resnet18", None, 32, 64),
    "resnet18-96": ("resnet18", None, 96, 32),
    "resnet50-160": ("resnet50", None, 160, 8),
    "mobilenetv2-32": ("timm:mobilenetv2_100", None, 32, 64),
    "mobilenetv2-160": ("timm:mobilenetv2_100", None, 160, 16),
    "efficientnet_lite0-160": ("timm:tf_efficientnet_lite0", None, 160, 16),
    "efficientnet_b0-160": ("timm:efficientnet_b0", None, 160, 16),
    "convnext_atto-160": ("timm:convnext_atto", None, 160, 16),
    "regnety_004-160": ("timm:regnety_004", None, 160, 16),
    "vit_tiny-224": ("timm:vit_tiny_patch16_224", None, 224, 8),
}


def row(name: str, steps: int) -> dict[str, Any]:
    """One network's line of the table."""
    model, width, size, batch = NETWORKS[name]
    recipe = Recipe.load("fashion-mini").override(
        f"model.name={model}", f"model.width={width or 'null'}", f"data.image_size={size}", f"train.batch_size={batch}",
        "data.channels=3", "train.precision=auto", "data.limit=1000",
    )  # fmt: skip
    return {"model": model, "width": width, "image_size": size, **bench_precision(recipe, steps=steps)}


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the rows of two results may stand in one table."""
    keys = ("processor", "cores", "versions")
    return one["steps"] == other["steps"] and all(one["machine"][key] == other["machine"][key] for key in keys)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)}; all by default")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=None, help="results, JSON")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in NETWORKS]:
        parser.error(f"unknown network {unknown[0]!r}; there are {', '.join(NETWORKS)}")
    out = given.out or (SCRATCH if given.names or given.steps != STEPS else RESULTS) / "precision.json"
    machine, before = hardware(), load(out) if out.is_file() else None
    rows = before["rows"] if before and _alike(before, {"machine": machine, "steps": given.steps}) else {}
    for name in given.names or NETWORKS:
        rows[name] = found = row(name, given.steps)
        taken = ", ".join(f"{key} {1000 * value['seconds']:.1f} ms" for key, value in found["precisions"].items())
        print(f"{name:24} {taken}; auto takes {found['chosen']}, {found['behind']:.2f} of the fastest", flush=True)
        save(out, {"machine": machine, "steps": given.steps, "rows": rows})
    print(f"results: {out}")


if __name__ == "__main__":
    main()
