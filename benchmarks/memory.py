"""Does memory stay flat as the data grow?

    python benchmarks/memory.py              stores of 5,000 and of 50,000 images (some minutes)
    python benchmarks/memory.py --quick      does it run? (figures mean nothing)

For each number of images a fresh process builds the decoded store from a Parquet file of PNG images, then trains a
small network for one epoch: keyed order, gather, augmentation with MixUp and CutMix, forward, backward, step. Its
anonymous memory is read while it builds and after every step: RssAnon of /proc/self/status, what the process owns.
(Pages of the memory-mapped store belong to the system's cache, which gives them back when memory is short.) What counts
is the peak of each part; ten times the images may cost at most a tenth more.

Results go to benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np

LIMIT = 10.0  # percent
DISTINCT = 1000  # images are repeated after so many: what they show does not matter here
PARTS = ("build", "train")


def anonymous() -> int:
    """RssAnon of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("memory.py: this system does not tell RssAnon (Linux does)")


def write_source(path: Path, count: int, side: int) -> None:
    """A Parquet file of `count` PNG images and their labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    encoded = []
    for image in common.generated(side, min(DISTINCT, count)):
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG", compress_level=1)
        encoded.append(buffer.getvalue())
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for start in range(0, count, DISTINCT):
            rows = range(start, min(start + DISTINCT, count))
            columns = {"image": [encoded[i % len(encoded)] for i in rows], "label": [i % 10 for i in rows]}
            writer.write_table(pa.table(columns, schema=schema))


def child(path: Path, cache: Path, batch: int) -> dict[str, Any]:
    """Build the store and train on it once; peaks in bytes."""
    import torch
    from torch import nn

    from kitae.augment import Augment
    from kitae.data.loader import ImageSet
    from kitae.data.spec import DataSpec
    from kitae.data.store import open_store

    torch.manual_seed(0)
    start = anonymous()
    built = [start]
    began = time.monotonic()
    store = open_store(
        DataSpec(source=f"parquet:{path}", cache=str(cache)), progress=lambda *_: built.append(anonymous())
    )
    built.append(anonymous())
    seconds = {"build": time.monotonic() - began}
    data = ImageSet(store.images, np.arange(len(store)), store.labels, store.classes)
    mean, std = data.statistics()
    augment = Augment(
        [
            {"random_crop": {"padding": 4}},
            "horizontal_flip",
            {"color_jitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}},
            {"random_erasing": {"p": 0.5}},
        ],
        mean=mean,
        std=std,
        mix={"mixup_alpha": 1.0, "cutmix_alpha": 1.0},
        num_classes=len(store.classes),
    )
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(256, len(store.classes)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    trained = []
    began = time.monotonic()
    order = data.order(0, 0)
    for at in range(0, len(order), batch):
        index = order[at : at + batch]
        pixels, labels = data.gather(index)
        images, targets = augment(torch.from_numpy(pixels), torch.from_numpy(labels), epoch=0, index=index)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        trained.append(anonymous())
    seconds["train"] = time.monotonic() - began
    return {
        "images": len(store),
        "store_bytes": store.images.nbytes,
        "start": start,
        "build": max(built),
        "train": max(trained),
        "last": trained[-1],
        "loss": float(loss),
        "seconds": {k: round(v, 2) for k, v in seconds.items()},
    }


def measure(count: int, side: int, batch: int, repeats: int) -> list[dict[str, Any]]:
    """`child` in fresh processes, each with an empty cache."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_source(folder / "images.parquet", count, side)
        for repeat in range(repeats):
            command = [sys.executable, __file__, "--child", str(folder / "images.parquet")]
            command += ["--cache", str(folder / f"cache-{repeat}"), "--batch", str(batch)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                lines = done.stderr.strip().splitlines()
                raise SystemExit(f"memory.py: the pass over {count} images failed: {lines[-1] if lines else ''}")
            found.append(json.loads(done.stdout.splitlines()[-1]))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images: does it run?")
    parser.add_argument(
        "--images", type=int, default=None, help="the smaller number, 5,000; the larger is ten times that"
    )
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="results, JSON")
    parser.add_argument("--child", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        print(json.dumps(child(options.child, options.cache, options.batch)))
        return 0
    options.images = options.images or (100 if options.quick else 5000)
    options.repeats = options.repeats or (1 if options.quick else 3)
    out = options.out or (common.SCRATCH if options.quick else common.RESULTS) / "memory.json"
    results: dict[str, Any] = {
        "what": "anonymous memory of a process that builds a store and trains on it, for N and 10 N images",
        "quick": options.quick,
        "machine": common.hardware(common.available_cores()),
        "settings": {"side": options.side, "batch": options.batch, "repeats": options.repeats, "limit_percent": LIMIT},
        "runs": {},
    }
    for count in (options.images, 10 * options.images):
        results["runs"][str(count)] = measure(count, options.side, options.batch, options.repeats)
    small, large = results["runs"].values()
    results["growth_percent"], results["growth_bytes"] = {}, {}
    for part in PARTS:
        a, b = (statistics.median(run[part] for run in runs) for runs in (small, large))
        results["growth_percent"][part] = round(100 * (b / a - 1), 2)
        results["growth_bytes"][part] = round(b - a)
        print(f"{part}: {a / 1e6:.1f} MB for {len_of(small)} images, {b / 1e6:.1f} MB for {len_of(large)}:", end=" ")
        print(f"{results['growth_percent'][part]:+.1f} %, allowed {LIMIT:g} %")
    results["store_growth_bytes"] = large[0]["store_bytes"] - small[0]["store_bytes"]
    results["ok"] = all(growth < LIMIT for growth in results["growth_percent"].values())
    common.save(out, results)
    print(f"results: {out}")
    return 0 if results["ok"] or options.quick else 1


def len_of(runs: list[dict[str, Any]]) -> str:
    """The number of images of some runs, for a reader."""
    return f"{runs[0]['images']:,}"


if __name__ == "__main__":
    sys.exit(main())
