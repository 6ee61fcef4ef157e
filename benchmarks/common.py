"""What the benchmarks share: the machine, the images, statistics of rounds, and files."""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kitae.files import write_json as save  # noqa: F401, what all benchmarks write with
from kitae.machine import machine as run_machine
from kitae.machine import processors as available_cores  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / "runs" / "benchmarks"  # where quick and partial runs go; ignored by git
DATA = Path(os.environ.get("KITAE_DATA", ROOT.parent / "shared" / "data"))
CHUNK = 256


def hardware(cores: int | None = None) -> dict[str, Any]:
    """The machine, its versions and how busy it was. `cores`: how many of them the benchmark used."""
    memory = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            key, value = line.split(":")
            memory[key] = int(value.split()[0]) * 1024
    except (OSError, ValueError):
        memory = {}
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / n).read_text().strip() for n in ("level", "type", "size"))
        except OSError:
            continue
        caches[f"L{level} {kind.lower()}"] = size
    return {
        **run_machine(),
        "cores_used": cores,
        "memory_bytes": memory.get("MemTotal"),
        "caches": caches,
        "load_average": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def keep_to(cores: int) -> None:
    """Let this process, and those that it starts, use only so many processors."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:cores]))


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes beside, each of which multiplies matrices on one thread without a pause."""
    words = [sys.executable, "-c", "import numpy as np\na = np.ones((300, 300))\nwhile True: a @ a"]
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes += [subprocess.Popen(words, env={**os.environ, **one_thread}) for _ in range(count)]
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def turns(about: str | None, name: str, rounds: int, seconds: float) -> argparse.Namespace:
    """The options of a benchmark whose contestants take turns: rounds, seconds of a turn, tiny, results' file."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seconds", type=float, default=seconds, help="of one turn")
    parser.add_argument("--tiny", action="store_true", help="small settings: does it run?")
    parser.add_argument("--out", type=Path, default=None, help=f"default benchmarks/results/{name}.json")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error("--rounds: at least 1")
    if given.tiny:
        given.rounds, given.seconds = 2, 0.01
    given.out = given.out or (SCRATCH if given.tiny else RESULTS) / f"{name}.json"
    return given


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and number of some measurements; the measurements themselves too."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
        "values": [float(f"{v:.6g}") for v in values],
    }


def ratio(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Median, extremes and number of the ratios of two spreads' values, round by round: both have all rounds."""
    found = spread([a / b for a, b in zip(ours["values"], other["values"], strict=True)])
    del found["values"]
    return found


def load(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text())


def images(side: int, count: int, folder: Path | None = None) -> tuple[np.ndarray, str]:
    """Images to measure with: uint8 [count, 3, side, side], and what they are.

    Up to 64 px the first of `cifar10.parquet`, above of `imagenette-small.parquet` (a column `image` of encoded bytes),
    brought to the side where they differ, again from the first where there are too few. Without the file in `folder`,
    images are generated: smooth colours with edges and noise, always the same.
    """
    name = "cifar10.parquet" if side <= 64 else "imagenette-small.parquet"
    path = (folder or DATA) / name
    if not path.is_file():
        return generated(side, count), "generated: gradients, rectangles and noise"
    import pyarrow.parquet as pq

    out = np.empty((count, 3, side, side), np.uint8)
    done, sizes = 0, set()
    for batch in pq.ParquetFile(path).iter_batches(CHUNK, columns=["image"]):
        for cell in batch.column("image").to_pylist()[: count - done]:
            with Image.open(io.BytesIO(cell["bytes"] if isinstance(cell, dict) else cell)) as image:
                sizes.add(image.size)
                rgb = image.convert("RGB")
                if rgb.size != (side, side):
                    rgb = rgb.resize((side, side), Image.Resampling.BICUBIC)
                out[done] = np.asarray(rgb).transpose(2, 0, 1)
            done += 1
        if done == count:
            break
    out[done:] = out[np.arange(count - done) % max(done, 1)]
    resized = "" if sizes == {(side, side)} else f", resized to {side} x {side}"
    return out, f"{name}, the first {done} images{resized}"


def generated(side: int, count: int, seed: int = 0) -> np.ndarray:
    """Images with smooth parts, edges and noise: uint8 [count, 3, side, side], the same for the same arguments."""
    rng = np.random.default_rng([seed, side])
    y, x = np.mgrid[0:side, 0:side] / side
    out = np.empty((count, 3, side, side), np.uint8)
    for i in range(count):
        a = rng.uniform(-150, 150, (3, 2, 1, 1))
        image = rng.uniform(60, 200, (3, 1, 1)) + a[:, 0] * (x - 0.5) + a[:, 1] * (y - 0.5)
        for _ in range(3):
            top, left = rng.integers(0, side, 2)
            h, w = rng.integers(1, side // 2 + 1, 2)
            image[:, top : top + h, left : left + w] = rng.uniform(0, 255, (3, 1, 1))
        out[i] = np.clip(image + rng.normal(0, 6, image.shape), 0, 255)
    return out


def text_number(value: float) -> str:
    """A rate or a ratio as a reader wants it: three digits, thousands separated."""
    if value >= 1000:
        digits = len(str(int(value)))
        return f"{round(value, 3 - digits):,.0f}"
    return f"{value:.3g}"
