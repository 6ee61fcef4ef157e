"""The decoded store: every image decoded once and memory-mapped.

A store is a folder in the cache, named by a hash of the source files (path, size, modification time) and of the
settings (size, channels, resize, depth, store size, on_corrupt):

    images.u8      uint8, all pixels
    labels.i64, splits.u8, keys.i64, groups.i64   one number an image (see `base.Table`)
    hashes.u8      uint8 [M, 16], of each image's pixels: equal images are equal here
    names.utf8, names.i64     names, and where each begins
    sizes.i64, sums.i64       of whole pictures: int64 [M, 2] height and width, and see `Pictures.sums`
    places.i64                of images in shards, in place of images.u8: int64 [M, 3] shard, offset and size in bytes
    manifest.json             classes, rules, skipped images, and the size of every file; written last

Whole pictures are kept, each at its own aspect ratio and up to `data.store_size`, so that random crops are sharp and
can use the whole picture. If every image is tiny or already has the network's size, images.u8 is one array at the
network's size, [M, C, H, W]. Shards are not decoded into a store: it only contains the position of each image.

A store is built in a temporary folder next to it, by one process at a time, flushed to disk and then renamed, so it is
never incomplete: a killed build leaves a temporary folder, which the next build removes. Opening checks every file's
size against the manifest; a store that fails the check is rebuilt.

Pixels are written with `write`, not through a mapping, so that a full disk is an error and not a SIGBUS.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kitae.data.base import Names, Progress, Source
from kitae.data.build import FORMAT, MANIFEST, PIXELS, Job, build
from kitae.data.cache import storage_errors
from kitae.data.duplicates import HASH_BYTES, first_alike
from kitae.data.encoded import Encoded
from kitae.data.index import index_shards
from kitae.data.pictures import Pictures
from kitae.data.remote import ShardCache
from kitae.data.shards import ShardSource
from kitae.data.sources import open_source, path_of
from kitae.data.spec import DataSpec
from kitae.errors import DataError
from kitae.files import cache_folder
from kitae.folders import lock
from kitae.preprocess import VERSION, PreprocessRules

_CACHE_LIMIT = DataSpec().shard_cache_gb * 1e9


@dataclass(frozen=True, eq=False)
class Store:
    """M decoded images, with their labels, names and so on.

    Attributes:
        images: uint8 [M, C, H, W], memory-mapped read-only; or whole pictures, or encoded images in shards, which are
            indexed in the same way.
        labels: int64 [M].
        classes: K names.
        splits: uint8 [M], the source's own: 0 train, 1 val, 2 test.
        keys: int64 [M], identifies an image for the splits.
        groups: int64 [M], or None.
        names: M names.
        hashes: uint8 [M, 16], of each image's pixels; in shards, of its encoded bytes.
        rules: how an image was prepared; a new one must be prepared in the same way.
        fingerprint: hash of the content (pixels, labels, splits, keys, groups, classes): equal for equal data,
            independent of the location of the files.
        skipped: (name, reason) of the images left out because they could not be read.
        path: the store's folder.
    """

    images: NDArray[np.uint8] | Pictures | Encoded
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    splits: NDArray[np.uint8]
    keys: NDArray[np.int64]
    groups: NDArray[np.int64] | None
    names: Sequence[str]
    hashes: NDArray[np.uint8]
    rules: PreprocessRules
    fingerprint: str
    skipped: tuple[tuple[str, str], ...]
    path: Path

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def twins(self) -> NDArray[np.int64]:
        """For each image the first row with the same pixels (possibly its own): int64 [M]."""
        return first_alike(self.hashes)


def open_store(spec: DataSpec, progress: Progress | None = None, rules: PreprocessRules | None = None) -> Store:
    """The store of a data spec, built if it does not exist. Raises as `open_source` and `prepare`.

    Args:
        rules: how images are prepared, instead of by the spec.
    """
    source = open_source(spec, progress)
    return prepare(source, rules or spec, on_corrupt=spec.on_corrupt, cache=spec.cache, progress=progress)


def reopen_store(spec: DataSpec, fingerprint: str, recipe: Path, progress: Progress | None = None) -> Store:
    """The store of a run that has been started; if its images were moved or removed, as they were decoded before.

    Args:
        fingerprint: of the store that the run was started with.
        recipe: the run's recipe file, for the error if there are neither images nor a store.
    """
    path = path_of(spec.source)
    if path is None or os.path.exists(path):
        return open_store(spec, progress)
    decoded = find_store(fingerprint, spec.cache)
    if decoded is None:
        raise DataError(
            f"{spec.source}: no such file or folder; if the images were moved, correct data.source in {recipe}"
        )
    return decoded


def find_store(fingerprint: str, cache: str | Path | None = None) -> Store | None:
    """The store with this content if it was built before; the source is not read.

    Args:
        fingerprint: as `Store.fingerprint`.
        cache: the cache folder, `data.cache` of a recipe.
    """
    root = cache_folder(None if cache is None else str(cache)) / "stores"
    for manifest in sorted(root.glob(f"*/{MANIFEST}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(manifest.read_bytes())["fingerprint"] == fingerprint
            if found and (store := _load(manifest.parent)) is not None:
                return store
    return None


def prepare(
    source: Source,
    rules: PreprocessRules | DataSpec,
    *,
    on_corrupt: Literal["error", "skip"] | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Store:
    """Open the store of a source with the given rules; build it first if it does not exist.

    Args:
        source: where the images are.
        rules: fixed rules; or a DataSpec, whose null `image_size` and `channels` are determined from the images.
        on_corrupt, cache: override the spec's.
        progress: called with (images done, images in all) while building.
        threads: decoding threads; by default one a processor. Pillow decodes outside the interpreter lock.

    Raises:
        DataError: an unreadable image (named), sizes that differ while `image_size` is null, no room or no permission.
    """
    spec = rules if isinstance(rules, DataSpec) else None
    request: dict[str, Any] = {
        "image_size": rules.image_size,
        "channels": rules.channels,
        "resize": rules.resize,
        "depth": rules.depth,
        "store_size": rules.store_size,
        "fixed": spec is None,
        "version": VERSION,
        "on_corrupt": on_corrupt or (spec.on_corrupt if spec else "error"),
    }
    if rules.crop_pct != 1:  # stores of before keep their keys
        request["crop_pct"] = rules.crop_pct
    root = cache_folder(str(cache) if cache is not None else spec.cache if spec else None) / "stores"
    fingerprint = source.fingerprint()
    key = hashlib.blake2b(json.dumps([FORMAT, fingerprint, request]).encode(), digest_size=10).hexdigest()
    final = root / key
    limit = source.cache.limit if isinstance(source, ShardSource) else _CACHE_LIMIT
    if (store := _load(final, limit)) is not None:
        return store
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with lock(root / f"{key}.lock") as state:
            if (store := _load(final, limit)) is not None:  # someone else built it while this process waited
                return store
            _sweep(root, key if state == "held" else None)
            make = index_shards if isinstance(source, ShardSource) else build
            make(Job(source, request, fingerprint, final, lambda path: _load(path) is not None, progress, threads))
    if (store := _load(final, limit)) is None:
        raise DataError(f"{final}: the store was changed while it was opened, try again")
    return store


# Opening


def _load(folder: Path, limit: float = _CACHE_LIMIT) -> Store | None:
    """The store, or None if there is no valid one.

    Args:
        limit: bytes that shards from URLs may take in the cache folder.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            return None
        if any((folder / name).stat().st_size != size for name, size in manifest["files"].items()):
            return None
        rules = PreprocessRules.from_dict(manifest["rules"])
        count = int(manifest["count"])
        names = Names(
            _map(folder / "names.utf8", np.uint8, (manifest["files"]["names.utf8"],)),
            _map(folder / "names.i64", np.int64, (count + 1,)),
        )
        if "shards" in manifest:
            places = _map(folder / "places.i64", np.int64, (count, 3))
            cache = ShardCache(folder.parents[1] / "shards", limit)
            images: NDArray[np.uint8] | Pictures | Encoded = Encoded(manifest["shards"], places, names, rules, cache)
        else:
            images = _images(folder, count, rules)
        return Store(
            images=images,
            labels=_map(folder / "labels.i64", np.int64, (count,)),
            classes=tuple(manifest["classes"]),
            splits=_map(folder / "splits.u8", np.uint8, (count,)),
            keys=_map(folder / "keys.i64", np.int64, (count,)),
            groups=_map(folder / "groups.i64", np.int64, (count,)) if "groups.i64" in manifest["files"] else None,
            names=names,
            hashes=_map(folder / "hashes.u8", np.uint8, (count, HASH_BYTES)),
            rules=rules,
            fingerprint=manifest["fingerprint"],
            skipped=tuple((name, why) for name, why in manifest["skipped"]),
            path=folder,
        )
    except PermissionError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from error
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None


def _images(folder: Path, count: int, rules: PreprocessRules) -> NDArray[np.uint8] | Pictures:
    if rules.store_size is None:
        images: NDArray[np.uint8] = _map(folder / PIXELS, np.uint8, (count, *rules.shape))
        return images
    heights, widths = np.array(_map(folder / "sizes.i64", np.int64, (count, 2))).T
    starts = np.concatenate([[0], np.cumsum(rules.channels * heights * widths)])
    return Pictures(
        pixels=_map(folder / PIXELS, np.uint8, (int(starts[-1]),)),
        starts=starts,
        heights=np.ascontiguousarray(heights),
        widths=np.ascontiguousarray(widths),
        sums=_map(folder / "sums.i64", np.int64, (count, 2, rules.channels)),
        rules=rules,
    )


def _map(path: Path, dtype: type, shape: tuple[int, ...]) -> Any:
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)


def _sweep(root: Path, own_key: str | None) -> None:
    """Remove the temporary folders of killed builds: those whose lock nobody holds, and those of our own key.

    Args:
        own_key: the key whose lock this process holds; None where the file system has no locks.
    """
    for folder in root.glob(".*.tmp"):
        key = folder.name[1:].partition("-")[0]
        if key == own_key:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        with contextlib.suppress(OSError), lock(root / f"{key}.lock", wait=False) as state:
            if state == "held":
                shutil.rmtree(folder, ignore_errors=True)
