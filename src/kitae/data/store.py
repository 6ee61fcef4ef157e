"""The decoded store: every image decoded once, resized, and kept as one memory-mapped uint8 array [M, C, H, W].

A store is a folder in the cache, named by a hash of what the files are (path, size, modification time) and of what was
asked for (size, channels, resize, depth, on_corrupt):

    images.u8     uint8 [M, C, H, W]
    labels.i64, splits.u8, keys.i64, groups.i64   one number an image (see `base.Table`)
    hashes.u8      uint8 [M, 16], of each image's pixels: equal images are equal here
    names.utf8, names.i64    names, and where each begins
    manifest.json            classes, rules, skipped images, and the size of every file; written last

It is built in a temporary folder beside, by one process at a time, flushed to disk and then renamed. So it is there
complete or not at all: a kill leaves a temporary folder that nobody reads and the next build removes. Opening checks
every file's size against the manifest; a store that fails is built anew.

Pixels are written with `write`, not through a mapping, so that a full disk is an error and not a SIGBUS.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from kitae.data.base import Item, Progress, Source
from kitae.data.cache import cache_folder, is_locked, lock, storage_errors
from kitae.data.duplicates import HASH_BYTES, first_alike, pixel_hash
from kitae.data.parallel import each_image
from kitae.data.sources import open_source
from kitae.data.spec import DataSpec
from kitae.errors import DataError
from kitae.preprocess import VERSION, OnLevel, PreprocessRules, decode, depth_of, from_array, is_grey_mode, probe

_FORMAT = 2
_MANIFEST = "manifest.json"
_SKIP_HINT = "(data.on_corrupt=skip leaves such images out)"


class Names(Sequence[str]):
    """N names kept on disk, so that they cost no memory however many there are."""

    def __init__(self, text: NDArray[np.uint8], starts: NDArray[np.int64]) -> None:
        self._text, self._starts = text, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        return (
            self._text[self._starts[position] : self._starts[position + 1]].tobytes().decode("utf-8", "surrogateescape")
        )


@dataclass(frozen=True, eq=False)
class Store:
    """M decoded images and what is known about each.

    Attributes:
        images: uint8 [M, C, H, W], memory-mapped read-only.
        labels: int64 [M].
        classes: K names.
        splits: uint8 [M], the source's own: 0 train, 1 val, 2 test.
        keys: int64 [M], identifies an image for the splits.
        groups: int64 [M], or None.
        names: M names.
        hashes: uint8 [M, 16], of each image's pixels.
        rules: how an image was prepared; a new one must be prepared the same way.
        fingerprint: hash of the content (pixels, labels, splits, keys, groups, classes): equal for equal data, wherever
            the files lie.
        skipped: (name, reason) of the images left out because they could not be read.
        path: the store's folder.
    """

    images: NDArray[np.uint8]
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
        """For each image the first row with the same pixels, which may be its own: int64 [M]."""
        return first_alike(self.hashes)


def open_store(spec: DataSpec, progress: Progress | None = None) -> Store:
    """The store of a data spec: opened where it exists, else built. Raises as `open_source` and `prepare`."""
    return prepare(open_source(spec, progress), spec, progress=progress)


def prepare(
    source: Source,
    rules: PreprocessRules | DataSpec,
    *,
    on_corrupt: Literal["error", "skip"] | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Store:
    """Open the store of a source under some rules; build it first where it does not exist.

    Args:
        source: where the images are.
        rules: fixed rules; or a DataSpec, whose null `image_size` and `channels` are found out from the images.
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
        "version": VERSION,
        "on_corrupt": on_corrupt or (spec.on_corrupt if spec else "error"),
    }
    root = cache_folder(str(cache) if cache is not None else spec.cache if spec else None) / "stores"
    fingerprint = source.fingerprint()
    key = hashlib.blake2b(json.dumps([_FORMAT, fingerprint, request]).encode(), digest_size=10).hexdigest()
    final = root / key
    if (store := _load(final)) is not None:
        return store
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with lock(root / f"{key}.lock") as held:
            if (store := _load(final)) is not None:  # someone else built it while this process waited
                return store
            _sweep(root, key if held else None)
            _build(source, request, fingerprint, final, progress, threads)
    if (store := _load(final)) is None:
        raise DataError(f"{final}: the store was changed while it was opened, try again")
    return store


# Opening


def _load(folder: Path) -> Store | None:
    """The store, or None where there is none that can be trusted."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        if manifest["format"] != _FORMAT:
            return None
        if any((folder / name).stat().st_size != size for name, size in manifest["files"].items()):
            return None
        rules = PreprocessRules.from_dict(manifest["rules"])
        count = int(manifest["count"])
        shape = (count, rules.channels, rules.image_size, rules.image_size)
        return Store(
            images=_map(folder / "images.u8", np.uint8, shape),
            labels=_map(folder / "labels.i64", np.int64, (count,)),
            classes=tuple(manifest["classes"]),
            splits=_map(folder / "splits.u8", np.uint8, (count,)),
            keys=_map(folder / "keys.i64", np.int64, (count,)),
            groups=_map(folder / "groups.i64", np.int64, (count,)) if "groups.i64" in manifest["files"] else None,
            names=Names(
                _map(folder / "names.utf8", np.uint8, (manifest["files"]["names.utf8"],)),
                _map(folder / "names.i64", np.int64, (count + 1,)),
            ),
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


def _map(path: Path, dtype: type, shape: tuple[int, ...]) -> Any:
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)


# Building


def _build(
    source: Source,
    request: dict[str, Any],
    fingerprint: str,
    final: Path,
    progress: Progress | None,
    threads: int | None,
) -> None:
    table = source.table
    rules = _resolve(source, request, threads)
    needed = rules.channels * rules.image_size**2 * len(source)
    with storage_errors(final.parent, needed):
        if shutil.disk_usage(final.parent).free < needed:  # better now than after minutes of decoding
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    temporary = final.with_name(f".{final.name}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir()
        with storage_errors(final.parent, needed):
            written = _write_images(source, rules, request, temporary, threads, progress)
            if request["depth"] == "auto" and written.highest is not None and depth_of(written.highest) != rules.depth:
                # One depth for all is known only now. Few sets have such images, so most are read once.
                rules = replace(rules, depth=depth_of(written.highest))
                written = _write_images(source, rules, request, temporary, threads, progress)
            kept, digest = written.kept, written.digest
            arrays: dict[str, NDArray[Any]] = {
                "labels.i64": table.labels,
                "splits.u8": table.splits,
                "keys.i64": table.keys,
            }
            if table.groups is not None:
                arrays["groups.i64"] = table.groups
            contents = {name: np.ascontiguousarray(array[kept]).tobytes() for name, array in arrays.items()}
            for name, data in contents.items():
                digest.update(name.encode() + data)
            digest.update(json.dumps([table.classes, rules.to_dict()]).encode())
            contents["hashes.u8"] = written.hashes  # not part of the fingerprint: they follow from the pixels
            names = [table.names[int(i)].encode("utf-8", "surrogateescape") for i in np.flatnonzero(kept)]
            contents["names.utf8"] = b"".join(names)
            contents["names.i64"] = np.cumsum([0, *map(len, names)], dtype=np.int64).tobytes()
            for name, data in contents.items():
                _write(temporary / name, data)
            if source.fingerprint() != fingerprint:
                raise DataError(f"{source.name}: files changed while they were read, try again")
            manifest = {
                "format": _FORMAT,
                "source": source.name,
                "request": request,
                "rules": rules.to_dict(),
                "classes": table.classes,
                "count": len(names),
                "skipped": written.skipped,
                "fingerprint": digest.hexdigest(),
                "files": {path.name: path.stat().st_size for path in sorted(temporary.iterdir())},
            }
            _write(temporary / _MANIFEST, json.dumps(manifest, indent=1).encode())
            _flush_folder(temporary)
            if final.exists() and _load(final) is None:  # without locks, a sound one may have come meanwhile
                shutil.rmtree(final, ignore_errors=True)
            try:
                temporary.rename(final)
            except OSError:
                if _load(final) is None:  # without locks, another process may have been first: its store will do
                    raise
            _flush_folder(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class _Written:
    """What is known after all images were decoded into images.u8.

    Attributes:
        kept: bool [N], which images were readable.
        skipped: (name, reason) of the others.
        hashes: of the kept ones' pixels, one after the other.
        highest: level of all images of more than 8 bits; None where there are none.
        digest: a running hash of all pixels.
    """

    kept: NDArray[np.bool_]
    skipped: list[tuple[str, str]]
    hashes: bytes
    highest: int | None
    digest: Any


def _write_images(
    source: Source,
    rules: PreprocessRules,
    request: dict[str, Any],
    folder: Path,
    threads: int | None,
    progress: Progress | None,
) -> _Written:
    """Decode everything in order into images.u8."""
    table = source.table
    total = len(source)
    kept = np.zeros(total, dtype=np.bool_)
    skipped: list[tuple[str, str]] = []
    hashes = bytearray()
    levels: list[int] = []
    digest = hashlib.blake2b(digest_size=16)

    def work(row: int, item: Item) -> tuple[bytes, bytes, list[int]] | DataError:
        if row >= total:
            raise DataError(f"{source.name}: has more images than its {total} labels")
        name = table.names[row]
        try:
            own: list[int] = []
            pixels = _decoded(item, rules, name, own.append)
            return pixels, pixel_hash(pixels), own
        except DataError as error:
            return error

    row = 0
    with (
        (folder / "images.u8").open("wb") as file,
        closing(each_image(source, work, threads, rules.channels * rules.image_size**2)) as blocks,
    ):
        for results in blocks:
            for result in results:
                if isinstance(result, DataError):
                    if request["on_corrupt"] == "error":
                        raise DataError(f"{result} {_SKIP_HINT}") from result
                    skipped.append((table.names[row], str(result)))
                else:
                    kept[row] = True
                    pixels, pixels_hash, own = result
                    hashes += pixels_hash
                    levels = [max(levels + own)] if own else levels
                    digest.update(pixels)
                    file.write(pixels)
                row += 1
            if progress is not None:
                progress(row, total)
        file.flush()
        os.fsync(file.fileno())
    if row != total:
        raise DataError(f"{source.name}: has {row} images but {total} labels")
    if len(skipped) == total:
        raise DataError(f"{source.name}: none of its {total} images can be read; the first: {skipped[0][1]}")
    return _Written(kept, skipped, bytes(hashes), levels[0] if levels else None, digest)


def _decoded(item: Item, rules: PreprocessRules, name: str, on_level: OnLevel) -> bytes:
    if isinstance(item, np.ndarray):
        return from_array(item, rules, on_level).tobytes()
    return decode(item, rules, name, on_level).tobytes()


def _resolve(source: Source, request: dict[str, Any], threads: int | None) -> PreprocessRules:
    """Fill in a null image_size or channels from the images' headers."""
    size, channels = request["image_size"], request["channels"]
    if size is None or channels is None:
        sizes: dict[tuple[int, int], str] = {}
        grey = True
        row = 0
        with closing(each_image(source, _header, threads)) as blocks:
            for facts in blocks:
                for fact in facts:
                    if fact is not None:
                        sizes.setdefault(fact[0], source.names[row])
                        grey = grey and fact[1]
                    row += 1
                if (size is not None or len(sizes) > 1) and (channels is not None or not grey):
                    break
        if size is None:
            size = _common_size(source, sizes)
        channels = channels or (1 if grey else 3)
    depth = request["depth"]
    return PreprocessRules(size, channels, request["resize"], 16 if depth == "auto" else depth)


def _header(row: int, item: Item) -> tuple[tuple[int, int], bool] | None:
    """(width, height) and whether it is grey; None where it cannot be read, which decoding will report by name."""
    if isinstance(item, np.ndarray):
        return (item.shape[1], item.shape[0]), item.ndim == 2 or item.shape[2] < 3
    try:
        size, mode = probe(item)
    except DataError:
        return None
    return size, is_grey_mode(mode)


def _common_size(source: Source, sizes: dict[tuple[int, int], str]) -> int:
    shown = [f"{width} x {height} ({name})" for (width, height), name in sizes.items()]
    if not shown:
        raise DataError(f"{source.name}: none of its {len(source)} images can be read; `kitae data check` names them")
    if len(shown) > 1:
        raise DataError(f"{source.name}: images differ in size, {shown[0]} and {shown[1]}: set data.image_size")
    width, height = next(iter(sizes))
    if width != height:
        raise DataError(f"{source.name}: images are {width} x {height}, not square: set data.image_size")
    return width


def _sweep(root: Path, own_key: str | None) -> None:
    """Remove what killed builds left: temporary folders whose lock nobody holds, and those of our own key.

    Args:
        own_key: the key whose lock this process holds; None where the file system has no locks.
    """
    for folder in root.glob(".*.tmp"):
        key = folder.name[1:].partition("-")[0]
        if key == own_key or not is_locked(root / f"{key}.lock"):
            shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some systems cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
