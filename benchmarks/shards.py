"""Training images from shards: images per second against the usual loaders, and memory while many GB go by.

    python benchmarks/shards.py                     1 GB of shards (some minutes)
    python benchmarks/shards.py --gb 50             50 GB, as links to the same 1 GB under other names
    python benchmarks/shards.py --quick             does it run? (figures mean nothing)

Photographs come from `trashnet.parquet` and `imagenette-small.parquet`, as in store.py, and are packed into tar shards.

    kitae          shards in a keyed block order, random resized crop at decode, flip, normalisation; a thread a core
    torchvision    the same files by offset, v2 transforms on Pillow images, DataLoader with a worker a core
    webdataset     the library's own shuffle and decoder, the same transforms, WebLoader with a worker a core
    decoder        Pillow decodes the same bytes from memory, in a thread a core; nothing else
    pillow         the same at the reduced scale that suffices, and Pillow crops and resizes, to windows drawn before
    store          kitae from its decoded store of the same photographs: the path of data that fit in memory

The decoder and Pillow give images, all others float32 batches of 3 x 224 x 224. Kitae's processes have the settings of
`kitae train`: threads that wait sleep soon, and freed memory is kept. Each round times each contestant once, in a
process of its own, from the second batch on. The memory run is one pass of kitae over all shards, with RssAnon after
every batch. With links the page cache holds the shards: reading from the disk itself is not measured. Results go to
benchmarks/results/shards.json.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common
import numpy as np
from memory import anonymous

from kitae.machine import sleep_while_waiting

SIDE, BATCH, BUFFER = 224, 64, 4096
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONTESTANTS = ("kitae", "torchvision", "webdataset", "decoder", "pillow", "store")
FLAT = 1.05  # the last quarter of the memory run over the second one, at most
GAP = 2  # a JPEG is read at no less than this multiple of the target, as by Kitae
NEAR = 0.9  # of the decoder's limit or of the store's path, at least


def pack(folder: Path, photos: Sequence[bytes], shard_bytes: int, total: int) -> int:
    """Shards 000000.tar and so on of about `total` bytes, of distinct photographs as far as they reach; how many."""
    folder.mkdir()
    number, held, packed, photo = 0, 0, 0, 0
    tar = None
    while packed < total or tar is not None:
        if tar is None:
            tar, held = tarfile.open(folder / f"{number:06d}.tar", "w"), 0  # noqa: SIM115
        data = photos[photo % len(photos)]
        for name, content in ((f"{photo:08d}.jpg", data), (f"{photo:08d}.cls", str(photo % 10).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        photo, held, packed = photo + 1, held + len(data), packed + len(data)
        if held >= shard_bytes or packed >= total:
            tar.close()
            tar, number = None, number + 1
    return number


def linked(folder: Path, distinct: int, count: int) -> None:
    """Further names for the same shards."""
    for number in range(distinct, count):
        os.link(folder / f"{number % distinct:06d}.tar", folder / f"{number:06d}.tar")


def spec_of(folder: Path, cache: Path) -> Any:
    from kitae.data.spec import DataSpec

    source = f"webdataset:{folder}/{{000000..{len(list(folder.iterdir())) - 1:06d}}}.tar"
    return DataSpec(source=source, image_size=SIDE, channels=3, cache=str(cache), shuffle_buffer=BUFFER)


def kitae_batches(store: Any, threads: int) -> Iterator[Any]:
    """Batches of one pass as training draws them."""
    import torch

    from kitae.augment import Augment
    from kitae.augment.spec import AugmentSpec
    from kitae.crops import first_crop
    from kitae.data.ahead import ReadAhead
    from kitae.data.encoded import Encoded
    from kitae.data.loader import ImageSet
    from kitae.data.order import Blocks, lanes_of

    recipe = AugmentSpec.model_validate({"train": [{"random_resized_crop": {}}, {"horizontal_flip": {}}]})
    crop, ops = first_crop(recipe, store.images, threads)
    blocks = ahead = None
    if isinstance(store.images, Encoded):
        blocks = Blocks(store.images.of, BUFFER, lanes_of(len(store.images.shards), BATCH), BATCH)
        ahead = ReadAhead(store.images)
    rows = np.arange(len(store))
    images = ImageSet(store.images, rows, store.labels, store.classes, crop=crop, blocks=blocks, ahead=ahead)
    augment = Augment(ops, seed=0, mean=MEAN, std=STD, num_classes=len(store.classes), threads=threads)
    order = images.order(0, 0)
    for at in range(0, len(order) - BATCH + 1, BATCH):
        index = order[at : at + BATCH]
        pixels, labels = map(torch.from_numpy, images.gather(index, seed=0, epoch=0))
        yield augment(pixels, labels, epoch=0, index=index)


def transforms() -> Callable[[Any], Any]:
    import torch
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip(), v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
        ]
    )  # fmt: skip


class Places:
    """The images of shards by offset, as a data set for torch's DataLoader."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.shards, self.places, self.labels = images.shards, np.array(images.places), np.array(labels)
        self.transform = transforms()
        self.files: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        from PIL import Image

        shard, offset, size = self.places[row].tolist()
        if shard not in self.files:
            self.files[shard] = os.open(self.shards[shard], os.O_RDONLY)
        with Image.open(io.BytesIO(os.pread(self.files[shard], size, offset))) as image:
            return self.transform(image.convert("RGB")), int(self.labels[row])


def batches(name: str, folder: Path, cache: Path, photos: Path, cores: int) -> Iterator[Any]:
    """Endless batches of a contestant."""
    import torch

    from kitae.data.spec import DataSpec
    from kitae.data.store import open_store

    torch.set_num_threads(cores if name in ("kitae", "store") else 1)
    if name in ("kitae", "store"):
        spec = spec_of(folder, cache)
        if name == "store":
            spec = DataSpec(source=f"folder:{photos}", image_size=SIDE, channels=3, cache=str(cache))
        store = open_store(spec)
        while True:
            yield from kitae_batches(store, cores)
    elif name == "torchvision":
        store = open_store(spec_of(folder, cache))
        data = Places(store.images, store.labels)
        loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=cores, drop_last=True)  # type: ignore[arg-type]
        while True:
            yield from loader
    elif name == "webdataset":
        import webdataset

        paths = sorted(str(path) for path in folder.iterdir())
        data = webdataset.WebDataset(paths, shardshuffle=len(paths), empty_check=False).shuffle(BUFFER // cores)
        data = data.decode("pil").to_tuple("jpg", "cls").map_tuple(transforms(), int).batched(BATCH, partial=False)
        while True:
            yield from webdataset.WebLoader(data, batch_size=None, num_workers=cores)
    else:
        from PIL import Image

        held = [path.read_bytes() for path in sorted(photos.rglob("*.jpg"))]
        windows = drawn(held) if name == "pillow" else []

        def decode(number: int) -> None:
            with Image.open(io.BytesIO(held[number % len(held)])) as image:
                image.convert("RGB")

        def crop(number: int) -> None:
            left, top, right, bottom = windows[number % len(held)]
            with Image.open(io.BytesIO(held[number % len(held)])) as image:
                width, height = image.size
                scale = GAP * max(SIDE / (bottom - top), SIDE / (right - left))
                if scale < 1:
                    image.draft("RGB", (math.ceil(scale * width), math.ceil(scale * height)))
                across, down = image.width / width, image.height / height
                box = (left * across, top * down, right * across, bottom * down)
                image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box).convert("RGB")

        with ThreadPoolExecutor(cores) as pool:
            at = 0
            while True:
                yield list(pool.map(crop if windows else decode, range(at, at + BATCH)))
                at += BATCH


def drawn(photos: Sequence[bytes]) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of a random resized crop of each photograph."""
    from PIL import Image
    from torchvision.transforms import RandomResizedCrop

    found = []
    for data in photos:
        with Image.open(io.BytesIO(data)) as image:
            top, left, height, width = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])  # type: ignore[arg-type]
        found.append((left, top, left + width, top + height))
    return found


def child(task: str, folder: Path, cache: Path, photos: Path, seconds: float, cores: int) -> dict[str, Any]:
    """Time a contestant, or watch the memory of kitae."""
    from kitae.training.guards import keep_freed_memory

    common.keep_to(cores)
    if task in ("kitae", "store", "memory"):
        keep_freed_memory()
    if task == "memory":
        import torch

        from kitae.data.store import open_store

        torch.set_num_threads(cores)
        began = first = time.perf_counter()
        store = open_store(spec_of(folder, cache))
        indexed = time.perf_counter()
        held = []
        for done, _ in enumerate(kitae_batches(store, cores), 1):
            if done == 1:  # kernels may have been compiled
                first = time.perf_counter()
            held.append((done * BATCH, anonymous()))
            if time.perf_counter() - first > seconds:
                break
        return {
            "images": held[-1][0], "of": len(store), "bytes": store.images.nbytes, "index_seconds": indexed - began,
            "seconds": time.perf_counter() - first, "rss_anon": held[:: max(1, len(held) // 200)],
        }  # fmt: skip
    stream = batches(task, folder, cache, photos, cores)
    next(stream)
    done, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds or done < 2:
        next(stream)
        done += 1
    return {"images_per_second": done * BATCH / taken}


def ask(task: str, folder: Path, cache: Path, photos: Path, seconds: float, cores: int) -> dict[str, Any]:
    """`child` in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--child",
        task,
        str(folder),
        str(cache),
        str(photos),
        str(seconds),
        str(cores),
    ]
    environment = dict(os.environ)
    sleep_while_waiting(environment)
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    if found.returncode:
        return {"error": found.stderr.strip().splitlines()[-1] if found.stderr.strip() else f"exit {found.returncode}"}
    answer: dict[str, Any] = json.loads(found.stdout.strip().splitlines()[-1])
    return answer


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few photographs, few rounds: does it run?")
    parser.add_argument("--gb", type=float, default=1.0, help="size of all shards; more than 1 GB are links")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the memory run at most")
    parser.add_argument("--scratch", type=Path, default=None, help="a folder with room for 2 GB")
    parser.add_argument("--out", type=Path, default=None, help="results, JSON")
    parser.add_argument("--child", nargs=6, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        task, folder, cache, photos, seconds, cores = options.child
        print(json.dumps(child(task, Path(folder), Path(cache), Path(photos), float(seconds), int(cores))))
        return 0
    from store import as_folder, photographs

    quick = options.quick
    count, rounds, seconds, shard_bytes = (160, 1, 0.2, 1 << 20) if quick else (4000, 5, 8.0, 64 << 20)
    distinct_bytes = int(min(options.gb, 1.0) * 1e9) if not quick else 8 << 20
    out = options.out or (common.SCRATCH if quick else common.RESULTS) / "shards.json"
    cores = common.available_cores()
    with tempfile.TemporaryDirectory(prefix="kitae.", dir=options.scratch) as name:
        folder, cache, photos = (Path(name) / part for part in ("shards", "cache", "photos"))
        encoded, what = photographs(count)
        as_folder(encoded, photos)
        distinct = pack(folder, encoded, shard_bytes, distinct_bytes)
        total = 2 * distinct if quick else max(distinct, round(distinct * options.gb))
        linked(folder, distinct, total)
        results: dict[str, Any] = {
            "what": "images per second; ratios are taken within rounds; RssAnon in bytes after so many images",
            "quick": quick,
            "machine": common.hardware(cores),
            "settings": {
                "rounds": rounds, "seconds": seconds, "side": SIDE, "batch": BATCH, "buffer": BUFFER, "shards": total,
                "distinct_shards": distinct, "gb": options.gb,
            },
            "photographs": what,
        }  # fmt: skip
        results["memory"] = ask("memory", folder, cache, photos, 3.0 if quick else 60 * options.minutes, cores)
        answers: dict[str, list[float]] = {task: [] for task in CONTESTANTS}
        missing: dict[str, str] = {}
        for turn in range(rounds):
            at = turn % len(CONTESTANTS)
            for task in CONTESTANTS[at:] + CONTESTANTS[:at]:
                if task in missing:
                    continue
                answer = ask(task, folder, cache, photos, seconds, cores)
                if "error" in answer:
                    missing[task] = answer["error"]
                else:
                    answers[task].append(answer["images_per_second"])
    rates = {task: common.spread(values) for task, values in answers.items() if values and task not in missing}
    results |= {"images_per_second": rates, "missing": missing}
    if "kitae" in rates:
        others = {task: common.ratio(rates["kitae"], rate) for task, rate in rates.items() if task != "kitae"}
        results["kitae_over"] = others
    results["machine"]["load_average_after"] = common.hardware()["load_average"]
    memory = results["memory"]
    if "rss_anon" in memory:
        held = [value for _, value in memory["rss_anon"]]
        quarter = max(1, len(held) // 4)
        memory["growth"] = statistics.median(held[-quarter:]) / statistics.median(held[quarter : 2 * quarter] or held)
    near = max(results.get("kitae_over", {}).get(task, {}).get("median", 0.0) for task in ("decoder", "store"))
    results["ok"] = memory.get("growth", 9.0) <= FLAT and near >= NEAR
    common.save(out, results)
    print(f"memory: {memory.get('error') or format(memory['growth'], '.3f')} over {memory.get('images', 0):,} images")
    for task, rate in rates.items():
        print(f"{task}: {rate['median']:.0f} images/s")
    for task, why in missing.items():
        print(f"{task}: {why}")
    print(f"{'ok' if results['ok'] else 'NOT ok'}; results: {out}")
    return 0 if results["ok"] or quick else 1


if __name__ == "__main__":
    sys.exit(main())
