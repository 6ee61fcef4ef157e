"""The decoded store: every image decoded once and memory-mapped.

A store is a folder in the cache, named by a hash of the source files (path, size, modification time) and of the
settings (size, channels, resize, depth, store size, crop_pct, on_corrupt, version of the preprocessing rules):

    images.u8      uint8, all pixels
    labels.i64, splits.u8, keys.i64, groups.i64   one number per image (see `base.Table`)
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
size against the manifest; a store that fails the check is rebuilt. The manifest's modification time is when the store
was last opened: once the stores take more than `data.store_cache_gb`, a new one replaces the least recently used.

Pixels are written with `write`, not through a mapping, so that a full disk is an error and not a SIGBUS.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae.data.base import Names, Progress, Table
from kitae.data.build import FORMAT, MANIFEST, PIXELS, Job, build, index_shards
from kitae.data.encoded import Encoded
from kitae.data.groups import HASH_BYTES, first_alike
from kitae.data.pictures import Pictures
from kitae.data.remote import ShardCache
from kitae.data.room import Kept, make_room
from kitae.data.shards import ShardSource
from kitae.data.sources import open_source, path_of
from kitae.data.spec import DataSpec
from kitae.errors import DataError
from kitae.files import cache_folder, read_json, storage_errors
from kitae.folders import lock
from kitae.preprocess import VERSION, PreprocessRules


@dataclass(frozen=True, eq=False, kw_only=True)
class Store(Table):
    """M decoded images, with their labels, names and so on.

    Attributes:
        images: uint8 [M, C, H, W], memory-mapped read-only; or whole pictures, or encoded images in shards, which are
            indexed in the same way.
        hashes: uint8 [M, 16], of each image's pixels; in shards, of its encoded bytes.
        rules: how an image was prepared; a new one must be prepared in the same way.
        fingerprint: hash of the content (pixels, labels, splits, keys, groups, classes): equal for equal data,
            independent of the location of the files.
        skipped: (name, reason) of the images left out because they could not be read.
        path: the store's folder.
    """

    images: NDArray[np.uint8] | Pictures | Encoded
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


def open_store(
    spec: DataSpec,
    progress: Progress | None = None,
    rules: PreprocessRules | None = None,
    threads: int | None = None,
) -> Store:
    """The store of a data spec, built if it does not exist.

    Args:
        spec: a null `image_size` or `channels` is determined from the images.
        progress: called with (images done, images in all) while building.
        rules: how images are prepared, instead of by the spec.
        threads: decoding threads; by default one per processor. Pillow decodes outside the interpreter lock.

    Raises:
        DataError: as `open_source`; an unreadable image (named), sizes that differ while `image_size` is null, no room
            or no permission.
    """
    source = open_source(spec, progress)
    request: dict[str, Any] = {
        **{field.name: getattr(rules or spec, field.name) for field in fields(PreprocessRules)},
        "fixed": rules is not None,
        "version": VERSION,
        "on_corrupt": spec.on_corrupt,
    }
    root = cache_folder(spec.cache) / "stores"
    fingerprint = source.fingerprint()
    key = hashlib.blake2b(json.dumps([FORMAT, fingerprint, request]).encode(), digest_size=10).hexdigest()
    final = root / key
    limit = spec.shard_cache_gb * 1e9
    if (store := _load(final, limit)) is not None:
        return store
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with lock(root / f"{key}.lock") as state:
            if (store := _load(final, limit)) is not None:  # someone else built it while this process waited
                return store
            _sweep(root, key if state == "held" else None)
            shutil.rmtree(final, ignore_errors=True)  # damaged
            _make_room(final, spec.store_cache_gb * 1e9)
            make = index_shards if isinstance(source, ShardSource) else build
            make(Job(source, request, fingerprint, final, progress, threads))
            _make_room(final, spec.store_cache_gb * 1e9)
            store = _load(final, limit)  # before another process may remove it
    if store is None:
        raise DataError(f"{final}: the store was changed while it was opened, try again")
    return store


def reopen_store(spec: DataSpec, fingerprint: str, recipe: Path, progress: Progress | None = None) -> Store:
    """The store of a run that has been started; if its images were moved or removed, as they were decoded before.

    Args:
        fingerprint: of the store that the run was started with.
        recipe: the run's recipe file, for the error if there are neither images nor a store.
    """
    path = path_of(spec.source)
    if path is None or os.path.exists(path):
        return open_store(spec, progress)
    decoded = find_store(fingerprint, spec)
    if decoded is None:
        raise DataError(
            f"{spec.source}: no such file or folder; if the images were moved, correct data.source in {recipe}"
        )
    return decoded


def find_store(fingerprint: str, spec: DataSpec) -> Store | None:
    """The store with this fingerprint if it was built before; the source is not read."""
    root = cache_folder(spec.cache) / "stores"
    for manifest in sorted(root.glob(f"*/{MANIFEST}")):
        found = None
        with contextlib.suppress(DataError):
            found = read_json(manifest, "fingerprint", error=DataError)["fingerprint"]
        if found == fingerprint and (store := _load(manifest.parent, spec.shard_cache_gb * 1e9)) is not None:
            return store
    return None


# Opening


def _load(folder: Path, limit: float) -> Store | None:
    """The store, or None if none is valid. `limit`: bytes that shards from URLs may take in the cache folder."""

    def mapped(name: str, dtype: type, *shape: int) -> Any:
        return np.memmap(folder / name, dtype, "r", shape=shape)

    def column(name: str, dtype: type, *shape: int) -> Any:
        return mapped(name, dtype, *shape).view(np.ndarray)

    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return None
        if any((folder / name).stat().st_size != size for name, size in manifest["files"].items()):
            return None
        with contextlib.suppress(OSError):  # a cache of another user
            os.utime(folder / MANIFEST)  # used just now
        rules = PreprocessRules.from_dict(manifest["rules"])
        count = int(manifest["count"])
        names = Names(
            column("names.utf8", np.uint8, manifest["files"]["names.utf8"]), column("names.i64", np.int64, count + 1)
        )
        images: NDArray[np.uint8] | Pictures | Encoded
        if "shards" in manifest:
            cache = ShardCache(folder.parents[1] / "shards", limit)
            images = Encoded(rules, manifest["shards"], column("places.i64", np.int64, count, 3), names, cache)
        elif rules.store_size is None:
            images = mapped(PIXELS, np.uint8, count, *rules.shape)
        else:
            heights, widths = np.ascontiguousarray(column("sizes.i64", np.int64, count, 2).T)
            starts = np.concatenate([[0], np.cumsum(rules.channels * heights * widths)])
            pixels = mapped(PIXELS, np.uint8, int(starts[-1]))
            sums = column("sums.i64", np.int64, count, 2, rules.channels)
            images = Pictures(rules, pixels, starts, heights, widths, sums)
        return Store(
            images=images,
            labels=column("labels.i64", np.int64, count),
            classes=tuple(manifest["classes"]),
            splits=column("splits.u8", np.uint8, count),
            keys=column("keys.i64", np.int64, count),
            groups=column("groups.i64", np.int64, count) if "groups.i64" in manifest["files"] else None,
            names=names,
            hashes=column("hashes.u8", np.uint8, count, HASH_BYTES),
            rules=rules,
            fingerprint=manifest["fingerprint"],
            skipped=tuple((name, why) for name, why in manifest["skipped"]),
            path=folder,
        )
    except PermissionError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from error
    except (DataError, OSError, ValueError, KeyError, TypeError):  # not there, damaged, or of another version
        return None


def _make_room(keep: Path, limit: float) -> None:
    """Remove the least recently used stores until the rest fits in `limit` bytes and in half of the disk's free space.

    The free space is what the disk would have without any store. A store that is in use stays mapped after its files
    are removed.
    """
    root = keep.parent

    def entries() -> Iterator[Kept]:
        for manifest in root.glob(f"{'[0-9a-f]' * 20}/{MANIFEST}"):  # no folders of others, nor unfinished ones
            with contextlib.suppress(OSError):  # removed by another process
                used = manifest.stat().st_mtime_ns
                yield Kept(used, sum(file.stat().st_size for file in manifest.parent.iterdir()), manifest.parent)

    def remove(folder: Path) -> None:
        aside = folder.rename(root / f".{folder.name}-old.tmp")  # so that nobody opens half of it
        shutil.rmtree(aside, ignore_errors=True)

    make_room(root, entries, lambda total: min(limit, (shutil.disk_usage(root).free + total) / 2), remove, keep)


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
