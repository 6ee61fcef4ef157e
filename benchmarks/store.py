"""What whole pictures in the store cost and bring: build time, size, speed of random crops, sharpness of what is seen.

    python benchmarks/store.py            all of it (about 15 minutes on two quiet cores)
    python benchmarks/store.py --quick    does it run? (figures mean nothing)
    python benchmarks/store.py --cold     only how fast a store is read that is not in memory (`--gb 2`)

Photographs come from `trashnet.parquet` and `imagenette-small.parquet` (a column `image` of encoded bytes), half of
each. Enlarged four times by Lanczos and encoded as JPEG of quality 90 they stand for what cameras deliver.

    build      a store of whole pictures and one of squares at the network's size (as versions before had it), built in
               turn, each in a folder of its own
    speed      random resized crops of scale 0.08 to 1 at 224 px, and the view of an evaluation. Ours read from the
               store. torchvision's v2 transforms get originals that are decoded already, as uint8 tensors [3, H, W] and
               as Pillow images. One thread each, and all cores: threads of ours, and threads that each take images in
               turn for torchvision. Ratios are taken within a round
    sharpness  energy of the Laplacian of the luma, from the store over torchvision's from the originals, of the same
               windows and of evaluation (resize of the shorter side, centre crop); means over photographs

    cold       random crops of one epoch from a store that the page cache has been told to forget, with `data.order`
               full and blocks (windows of an eighth of the store), and from memory. Each pass is a process of its own,
               since pages that a process has mapped are not forgotten. What the kernel counts as read from the disk is
               given too; the cache of a disk, or of a virtual machine's host, is not emptied

Every round times each once, in an order that moves on by one. Results go to benchmarks/results/store.json, those of
cold to store-cold.json.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from kitae.augment.ops.geometry import RandomResizedCrop
from kitae.augment.plan import sample_key
from kitae.crops import SLOT, PictureCrop
from kitae.data.ahead import ReadAhead
from kitae.data.loader import ImageSet, blocks_of
from kitae.data.pictures import Pictures
from kitae.data.spec import DataSpec
from kitae.data.store import Store, open_store
from kitae.preprocess import PreprocessRules

SETS = ("trashnet", "imagenette-small")
SIDE = 224  # of speed and build
SIDES = (64, 96, 128, 160, 224)  # of sharpness
SCALES = ((0.08, 1.0), (0.35, 1.0))
ENLARGED = 4
TIMES_FASTER = 5.0  # what random crops have to reach
SHARPNESS = 0.1  # how far a mean may be from torchvision's
PASSES = ("full", "blocks", "full, from memory")  # of cold
BATCH = 64


def photographs(count: int) -> tuple[list[bytes], str]:
    """Encoded photographs, spread over the sets, and what they are."""
    import pyarrow.parquet as pq

    found: list[bytes] = []
    names = [name for name in SETS if (common.DATA / f"{name}.parquet").is_file()]
    for name in names:
        cells = pq.read_table(common.DATA / f"{name}.parquet", columns=["image"]).column("image").to_pylist()
        share = count // len(names)
        rows = np.linspace(0, len(cells) - 1, share).astype(int)
        found += [cells[row]["bytes"] if isinstance(cells[row], dict) else cells[row] for row in rows]
    if names:
        return found, f"{len(found)} photographs of {' and '.join(names)}"
    for pixels in common.generated(300, count):
        buffer = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "JPEG", quality=95)
        found.append(buffer.getvalue())
    return found, f"{count} generated images of 300 x 300"


def enlarged(encoded: bytes) -> bytes:
    """A photograph with more pixels."""
    with Image.open(io.BytesIO(encoded)) as image:
        size = (ENLARGED * image.width, ENLARGED * image.height)
        buffer = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def as_folder(photos: Sequence[bytes], folder: Path) -> Path:
    """Two classes of files, so that a source can read them."""
    for number, encoded in enumerate(photos):
        path = folder / f"class {number % 2}" / f"{number // 2:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)
    return folder


def in_order(store: Store, count: int) -> list[int]:
    """Rows of a store in the order that `as_folder` was given the photographs."""
    places = {name: row for row, name in enumerate(store.names)}
    return [places[f"class {number % 2}/{number // 2:04d}.jpg"] for number in range(count)]


def rounds_of(timed: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, Any]]:
    """Each callable once a round; what they return."""
    names = list(timed)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(timed[name]())
    return {name: common.spread(values) for name, values in found.items()}


def build(folder: Path, rounds: int, scratch: Path, cores: int) -> dict[str, Any]:
    """Images per second and bytes of both kinds of store."""
    spec = DataSpec(source=f"folder:{folder}", image_size=SIDE)
    held: dict[str, int] = {}

    def timed(name: str, rules: PreprocessRules | None) -> Callable[[], float]:
        def once() -> float:
            cache = Path(tempfile.mkdtemp(dir=scratch))
            began = time.perf_counter()
            store = open_store(spec.model_copy(update={"cache": str(cache)}), rules=rules, threads=cores)
            seconds = time.perf_counter() - began
            held[name] = sum(path.stat().st_size for path in store.path.iterdir())
            count = len(store)
            del store
            shutil.rmtree(cache)
            return count / seconds

        return once

    rates = rounds_of({"whole": timed("whole", None), "square": timed("square", PreprocessRules(SIDE, 3))}, rounds)
    return {
        "images_per_second": rates,
        "ratio": common.ratio(rates["whole"], rates["square"]),
        "bytes": held,
        "file_bytes": sum(path.stat().st_size for path in folder.rglob("*.jpg")),
    }


def speed(store: Store, photos: Sequence[bytes], rounds: int, seconds: float, cores: int) -> dict[str, Any]:
    """Images per second of random crops and of evaluation views, ours and torchvision's."""
    pictures = store.images
    assert isinstance(pictures, Pictures)
    rows = np.array(in_order(store, len(photos)))
    tensors: list[torch.Tensor] = []
    images: list[Image.Image] = []
    for encoded in photos:
        with Image.open(io.BytesIO(encoded)) as image:
            images.append(image.convert("RGB"))
            tensors.append(torch.from_numpy(np.array(images[-1]).transpose(2, 0, 1).copy()))
    crop = v2.RandomResizedCrop(SIDE, antialias=True)
    centre = v2.Compose([v2.Resize(SIDE, antialias=True), v2.CenterCrop(SIDE)])
    crop_image = v2.Compose([crop, v2.PILToTensor()])
    epochs = itertools.count()

    def each(function: Callable[[Any], Any], inputs: Sequence[Any], threads: int) -> Callable[[], int]:
        def share(part: int) -> None:
            for item in inputs[part::threads]:
                function(item)

        def once() -> int:
            if threads == 1:
                share(0)
            else:
                list(pool.map(share, range(threads)))
            return len(inputs)

        return once

    def ours(threads: int) -> Callable[[], int]:
        reader = PictureCrop(RandomResizedCrop(), pictures, threads)

        def once() -> int:
            reader(rows, rows, 0, next(epochs))
            return len(rows)

        return once

    def timed(work: Callable[[], int]) -> Callable[[], float]:
        work()

        def once() -> float:
            done, began = 0, time.perf_counter()
            while (taken := time.perf_counter() - began) < seconds or not done:
                done += work()
            return done / taken

        return once

    def view() -> int:
        for row in rows:
            pictures[int(row)]
        return len(rows)

    torch.set_num_threads(1)
    out: dict[str, Any] = {}
    with ThreadPoolExecutor(cores) as pool:
        contestants = {
            "random_resized_crop, one thread": {
                "kitae": ours(1),
                "torchvision, tensors": each(crop, tensors, 1),
                "torchvision, Pillow": each(crop_image, images, 1),
            },
            "random_resized_crop, all cores": {
                "kitae": ours(cores),
                "torchvision, tensors": each(crop, tensors, cores),
                "torchvision, Pillow": each(crop_image, images, cores),
            },
            "evaluation, one thread": {"kitae": view, "torchvision, tensors": each(centre, tensors, 1)},
        }
        for work, group in contestants.items():
            rates = rounds_of({name: timed(function) for name, function in group.items()}, rounds)
            out[work] = {
                "images_per_second": rates,
                "times_faster": {name: common.ratio(rates["kitae"], rates[name]) for name in rates if name != "kitae"},
            }
    return out


def energy(pixels: NDArray[np.uint8]) -> float:
    """Mean square of the Laplacian of the luma: uint8 [3, H, W]."""
    p = np.tensordot(np.array([0.299, 0.587, 0.114]), pixels.astype(np.float64), 1)
    edges = 4 * p[1:-1, 1:-1] - p[:-2, 1:-1] - p[2:, 1:-1] - p[1:-1, :-2] - p[1:-1, 2:]
    return float(np.square(edges).mean())


def sharpness(store: Store, photos: Sequence[bytes], epochs: int) -> dict[str, Any]:
    """Energy of the Laplacian from the store over torchvision's from the originals."""
    pictures = store.images
    assert isinstance(pictures, Pictures)
    side = store.rules.size[0]
    rows = in_order(store, len(photos))
    tensors = []
    for encoded in photos:
        with Image.open(io.BytesIO(encoded)) as image:
            tensors.append(torch.from_numpy(np.array(image.convert("RGB")).transpose(2, 0, 1).copy()))
    found: dict[str, list[tuple[float, float]]] = {"evaluation": []}
    centre = v2.Compose([v2.Resize(side, antialias=True), v2.CenterCrop(side)])
    for row, tensor in zip(rows, tensors, strict=True):
        found["evaluation"].append((energy(pictures[row]), energy(centre(tensor).numpy())))
    for scale in SCALES:
        op = RandomResizedCrop(scale=scale)
        reader = PictureCrop(op, pictures, 1)
        numbers = np.array([side, side, *op.scale, *op.ratio])
        pairs: list[tuple[float, float]] = []
        for row, tensor in zip(rows, tensors, strict=True):
            height, width = int(pictures.heights[row]), int(pictures.widths[row])
            down, across = tensor.shape[1] / height, tensor.shape[2] / width
            own, theirs = 0.0, 0.0
            for epoch in range(epochs):
                index = np.array([row])
                own += energy(reader(index, index, 0, epoch)[0])
                codes, args = np.zeros(1, np.int64), np.zeros(12)
                op.plan(sample_key(0, epoch, row, SLOT), numbers, codes, args, height, width)
                top, left, h, w = args[:4]
                window = [round(top * down), round(left * across), max(1, round(h * down)), max(1, round(w * across))]
                theirs += energy(F.resized_crop(tensor, *window, [side, side], antialias=True).numpy())
            pairs.append((own / epochs, theirs / epochs))
        found[f"random_resized_crop {scale[0]} to {scale[1]}"] = pairs
    out: dict[str, Any] = {}
    for name, pairs in found.items():
        own, theirs = np.array(pairs).T
        quartiles = np.quantile(own / theirs, [0.25, 0.5, 0.75])
        out[name] = {
            "ratio_of_means": float(own.mean() / theirs.mean()),
            "ratio_quartiles": [round(float(value), 4) for value in quartiles],
            "n": len(pairs),
        }
    return out


def bytes_read() -> int:
    """What this process has had read from a disk so far, as Linux counts it."""
    (line,) = [line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("read_bytes")]
    return int(line.split()[1])


def one_pass(name: str, folder: Path, cache: Path, epoch: int) -> dict[str, float]:
    """Read an epoch of random crops, one of PASSES: images per second, and bytes read from the disk."""
    cores = common.available_cores()
    torch.set_num_threads(cores)
    spec = DataSpec(source=f"folder:{folder}", image_size=SIDE, cache=str(cache))
    store = open_store(spec)
    pictures = store.images
    assert isinstance(pictures, Pictures)
    order = "blocks" if name == "blocks" else "full"
    spec = spec.model_copy(update={"order": order, "shuffle_buffer": max(2, len(store) // 8)})
    rows = np.arange(len(store))
    blocks = blocks_of(pictures, rows, spec, BATCH)
    images = ImageSet(
        pictures, rows, store.labels, store.classes, crop=PictureCrop(RandomResizedCrop(), pictures, cores),
        blocks=blocks, ahead=None if blocks is None else ReadAhead(pictures),
    )  # fmt: skip
    images.gather(rows[:1], epoch=epoch)  # kernels are loaded
    for path in store.path.iterdir():
        with path.open("rb") as file:
            if name == PASSES[2]:
                while file.read(1 << 24):
                    pass
            else:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    read, began = bytes_read(), time.perf_counter()
    index = images.order(0, epoch)
    for start in range(0, len(index), BATCH):
        images.gather(index[start : start + BATCH], epoch=epoch)
    seconds = time.perf_counter() - began
    return {"images_per_second": len(index) / seconds, "bytes_read": bytes_read() - read}


def cold(size: float, rounds: int, out: Path, quick: bool) -> int:
    """The orders of an epoch against each other, on a store of so many bytes."""
    cores = common.available_cores()
    some, what = photographs(8 if quick else 200)
    with tempfile.TemporaryDirectory(prefix="kitae.") as scratch:
        folder, cache = Path(scratch) / "photos", Path(scratch) / "cache"
        with tempfile.TemporaryDirectory(dir=scratch) as sample:
            source = f"folder:{as_folder(some, Path(sample))}"
            pictures = open_store(DataSpec(source=source, image_size=SIDE, cache=sample)).images.nbytes
        as_folder(some * max(1, round(size / pictures)), folder)
        store = open_store(DataSpec(source=f"folder:{folder}", image_size=SIDE, cache=str(cache)))
        results: dict[str, Any] = {
            "what": "images per second and bytes read of an epoch of random crops; ratios are taken within rounds",
            "quick": quick,
            "machine": common.hardware(cores),
            "settings": {"rounds": rounds, "side": SIDE, "batch": BATCH, "buffer": max(2, len(store) // 8)},
            "photographs": f"{what}, repeated",
            "images": len(store),
            "store_bytes": store.images.nbytes,
        }
        found: dict[str, dict[str, list[float]]] = {name: {} for name in PASSES}
        for number in range(rounds):
            at = number % len(PASSES)
            for name in PASSES[at:] + PASSES[:at]:
                words = [sys.executable, __file__, "--pass", name, str(folder), str(cache), str(number)]
                done = subprocess.run(words, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr)
                for key, value in json.loads(done.stdout).items():
                    found[name].setdefault(key, []).append(value)
    for key in ("images_per_second", "bytes_read"):
        results[key] = {name: common.spread(values[key]) for name, values in found.items()}
    rates = results["images_per_second"]
    results["blocks_over"] = {name: common.ratio(rates["blocks"], rates[name]) for name in PASSES if name != "blocks"}
    results["machine"]["load_average_after"] = common.hardware()["load_average"]
    common.save(out, results)
    for name in PASSES:
        print(
            f"{name}: {rates[name]['median']:.0f} images/s, {results['bytes_read'][name]['median'] / 1e6:.0f} MB read"
        )
    print(f"results: {out}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few photographs, few rounds: does it run?")
    parser.add_argument("--cold", action="store_true", help="only this part")
    parser.add_argument("--gb", type=float, default=2.0, help="size of the store of cold")
    parser.add_argument("--out", type=Path, default=None, help="results, JSON")
    parser.add_argument("--pass", nargs=4, dest="given", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.given:
        name, folder, cache, epoch = options.given
        print(json.dumps(one_pass(name, Path(folder), Path(cache), int(epoch))))
        return 0
    quick = options.quick
    count, rounds, seconds, epochs = (8, 2, 0.05, 1) if quick else (200, 7, 1.5, 4)
    name = "store-cold.json" if options.cold else "store.json"
    out = options.out or (common.SCRATCH if quick else common.RESULTS) / name
    if options.cold:
        return cold(1e7 if quick else options.gb * 1e9, rounds, out, quick)
    cores = common.available_cores()

    photos, what = photographs(count)
    large = [enlarged(encoded) for encoded in photos[:: 1 if quick else 2]]
    kinds = {"originals": (photos, what), f"enlarged {ENLARGED} times": (large, f"{len(large)} of them, enlarged")}
    results: dict[str, Any] = {
        "what": "rates are images per second; ratios are taken within rounds",
        "quick": quick,
        "machine": common.hardware(cores),
        "settings": {"rounds": rounds, "seconds": seconds, "side": SIDE, "epochs": epochs},
        "photographs": {name: about for name, (_, about) in kinds.items()},
        "build": {},
        "speed": {},
        "sharpness": {},
    }
    with tempfile.TemporaryDirectory(prefix="kitae.") as place:
        scratch = Path(place)
        for number, (kind, (given, _)) in enumerate(kinds.items()):
            folder = as_folder(given, scratch / f"photos {number}")
            results["build"][kind] = build(folder, max(2, rounds // 2), scratch, cores)
            spec = DataSpec(source=f"folder:{folder}", image_size=SIDE, cache=str(scratch / "cache"))
            results["speed"][kind] = speed(open_store(spec), given, rounds, seconds, cores)
            results["sharpness"][kind] = {}
            for side in SIDES[:1] if quick else SIDES:
                spec = DataSpec(source=f"folder:{folder}", image_size=side, cache=str(scratch / "cache"))
                store = open_store(spec)
                results["sharpness"][kind][str(side)] = sharpness(store, given, epochs)
    results["machine"]["load_average_after"] = common.hardware()["load_average"]
    ratios = [
        entry["ratio_of_means"]
        for kind in results["sharpness"].values()
        for views in kind.values()
        for entry in views.values()
    ]
    crops = [
        entry["median"]
        for kind in results["speed"].values()
        for work, found in kind.items()
        if work.startswith("random")
        for entry in found["times_faster"].values()
    ]
    results["worst"] = {
        "times_faster": min(crops),
        "sharpness": [min(ratios), max(ratios)],
    }
    results["ok"] = min(crops) >= TIMES_FASTER and max(abs(ratio - 1) for ratio in ratios) <= SHARPNESS
    common.save(out, results)
    for kind, found in results["build"].items():
        rates = found["images_per_second"]
        sizes = ", ".join(
            f"{name} {rates[name]['median']:.0f}/s {held / 1e6:.0f} MB" for name, held in found["bytes"].items()
        )
        print(f"{kind}: build {sizes}; files {found['file_bytes'] / 1e6:.0f} MB")
        for work, entry in results["speed"][kind].items():
            line = ", ".join(f"{name} {rate['median']:.0f}/s" for name, rate in entry["images_per_second"].items())
            print(f"  {work}: {line}")
        for side, views in results["sharpness"][kind].items():
            line = ", ".join(f"{name} {entry['ratio_of_means']:.3f}" for name, entry in views.items())
            print(f"  sharpness at {side}: {line}")
    print(f"worst: {results['worst']}; {'ok' if results['ok'] else 'NOT ok'}")
    print(f"results: {out}")
    return 0 if results["ok"] or quick else 1


if __name__ == "__main__":
    sys.exit(main())
