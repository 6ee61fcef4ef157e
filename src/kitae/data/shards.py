"""Shards in the layout of the webdataset library: tar files of samples, for data larger than memory or disk.

    webdataset:train-{000..099}.tar                      braces, `*`, and `::` between several patterns
    webdataset:https://host/set/train-{000..099}.tar     URLs, see `kitae.data.download`

Files that follow each other and share a name up to its first dot are a sample: an image (`jpg`, `jpeg`, `png`, `webp`,
`bmp`, `ppm`) and its label, a `cls` file with an integer or a `json` file with a field `label` (an integer or a name).
Nothing else is opened: no pickle, no command.

A shard belongs to a split if it or its folder is named after the split (`train-000.tar`, `val/000.tar`). Without such
names all shards are train, and validation and test are held out of them.

Tar headers are read once; the positions of images are kept in the cache, keyed by the shard's path, size and
modification time. After that, any image takes one read.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import itertools
import json
import math
import os
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kitae.data.base import SPLIT_ALIASES, TRAIN, Item, Names, Progress, Source, Table, name_key, numbered
from kitae.data.download import SCHEMES, is_url
from kitae.data.groups import HASH_BYTES, first_alike, pixel_hash
from kitae.data.remote import ShardCache
from kitae.data.spec import DataSpec
from kitae.errors import DataError, one_line
from kitae.files import cache_folder, replacing, storage_errors

IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "ppm"})
LABELS = {
    "cls": "hold an integer in [0, 2**31); put names into a .json with a field `label`",
    "json": "be an object whose field `label` is a name of at most 255 characters or an integer in [0, 2**31)",
}
"""Extension -> what such a file must do."""
_MAX_SHARDS = 100_000
_DOWNLOADS = 8  # at a time
_MAX_LABEL_BYTES = 1 << 20
_MAX_NAME = 255  # characters of a class, as of a folder: an array of names takes the longest one for each
_TAIL = 1024  # last bytes of an image, which differ for nearly all; they lie next to a header that is read anyway
_INDEX_FORMAT = 4
_HEAD = 25  # bytes of a PNG up to its bits per channel
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SKIP_HINT = "(data.on_corrupt=skip leaves such samples out)"


def expand(pattern: str) -> list[str]:
    """What a pattern with braces stands for: `{000..012}` counts with leading zeros, `{a,b}` takes each.

    Raises:
        DataError: braces that do not close or count down, or too many shards.
    """
    texts = _BRACES.split(pattern)  # the contents of braces at the odd places
    if any("{" in text or "}" in text for text in texts):
        raise DataError(f"data.source: {pattern}: braces must be {{000..099}} or {{a,b}}, each closed")
    choices = [_counted(text, pattern) if place % 2 else [text] for place, text in enumerate(texts)]
    if math.prod(map(len, choices)) > _MAX_SHARDS:
        raise DataError(f"data.source: {pattern}: stands for more than {_MAX_SHARDS:,} shards")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _counted(text: str, pattern: str) -> list[str]:
    """What the contents of braces stand for."""
    counted = _RANGE.fullmatch(text)
    if counted is None:
        return text.split(",")
    first, last = int(counted[1]), int(counted[2])
    if not first <= last < first + _MAX_SHARDS:
        raise DataError(f"data.source: {pattern}: {{{text}}} must count up, to {_MAX_SHARDS:,} shards at most")
    width = len(counted[1]) if len(counted[1]) > 1 else 0
    return [f"{number:0{width}d}" for number in range(first, last + 1)]


def find_shards(patterns: str) -> list[str]:
    """Paths and URLs that `webdataset:PATTERNS` stands for, in order.

    Raises:
        DataError: an empty pattern, a path that does not exist, a pattern without files, a scheme that cannot be
            read, a shard that is named twice.
    """
    if not all(patterns.split("::")):
        raise DataError("data.source: webdataset: needs shards, as in webdataset:train-{000..099}.tar")
    found: list[str] = []
    for pattern in patterns.split("::"):
        scheme = pattern.partition(":")[0] if re.match(r"[A-Za-z][\w+.-]+:", pattern) else ""
        if scheme and not is_url(pattern):
            why = "would run a program, which Kitae does not allow" if scheme == "pipe" else f"is of scheme {scheme!r}"
            raise DataError(f"data.source: {pattern} {why}; give paths or URLs ({', '.join(SCHEMES)}) of tar files")
        if is_url(pattern) and "*" in pattern:
            raise DataError(f"data.source: {pattern}: `*` is for paths; name the shards of a URL with {{000..099}}")
        for text in expand(pattern):
            if is_url(text):
                found.append(text)
                continue
            path = os.path.expanduser(text)
            pattern_only = glob.has_magic(path) and not os.path.isfile(path)  # brackets may be part of a name
            files = sorted(glob.glob(path)) if pattern_only else [path]
            missing = next((file for file in files or [path] if not os.path.isfile(file)), None)
            if missing is not None:
                raise DataError(f"data.source: {missing}: no such shard; give tar files, as in train-{{000..099}}.tar")
            found += files
    twice = next((name for name, count in Counter(found).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"data.source: {twice}: the shard is listed twice; remove one")
    return found


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The n samples of a shard.

    Attributes:
        places: int64 [n, 2], offset and size of the encoded image in the tar file.
        labels: int64 [n], or n names.
        keys: n keys: the name of the sample's files up to the first dot.
        hashes: uint8 [n, 16], of each image's size and last bytes.
        deep: bool [n], whether an image may have more than 8 bits per channel.
        problems: why samples are left out, one line each.
    """

    places: NDArray[np.int64]
    labels: NDArray[Any]
    keys: Names
    hashes: NDArray[np.uint8]
    deep: NDArray[np.bool_]
    problems: list[str]

    def to_bytes(self) -> bytes:
        """As an .npz without pickle."""
        buffer = io.BytesIO()
        text = json.dumps({"keys": list(self.keys), "problems": self.problems}).encode()
        arrays = {name: getattr(self, name) for name in ("places", "labels", "hashes", "deep")}
        np.savez(buffer, **arrays, text=np.frombuffer(text, np.uint8))
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardIndex:
        """The inverse of `to_bytes`."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            text = json.loads(arrays["text"].tobytes())
            columns = {name: arrays[name] for name in arrays if name != "text"}
            return cls(**columns, keys=Names.of(text["keys"]), problems=text["problems"])


def scan(file: IO[bytes], name: str) -> ShardIndex:
    """Read the headers and labels of a tar file.

    Args:
        name: what errors call it.

    Raises:
        DataError: not a plain tar file, a truncated one, or without samples.
        OSError: it cannot be read.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    problems: dict[str, str] = {}
    dotted: dict[str, str] = {}  # key -> a file such as x.mask.png, which is not the image of x
    try:
        if file.read(2) == b"\x1f\x8b":
            raise DataError(f"{name}: is compressed, so samples cannot be found in it; unpack it (gunzip)")
        file.seek(0)
        last = None
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all of them
                if member.size < 0:  # some versions of tarfile would read the same header again and again
                    raise tarfile.ReadError(f"the size of {member.name!r} is negative")
                key, extension = _split_name(member.name)
                if member.isdir() or (extension not in IMAGES and extension not in LABELS):
                    if extension.rpartition(".")[2] in IMAGES:
                        dotted.setdefault(key, member.name)
                    continue
                if key != last and key in samples:
                    raise DataError(
                        f"{name}: the files of {key!r} are not next to each other; sort by name before packing"
                    )
                last = key
                parts = samples.setdefault(key, {})
                kind = "image" if extension in IMAGES else extension
                if kind in parts:
                    problems[key] = f"{name}/{key}: has two files .{extension} or two images"
                if not member.isreg() or member.issparse():
                    problems[key] = (
                        f"{name}/{key}: its .{extension} is a link or a sparse file; pack the file itself (GNU tar: "
                        "--dereference --hard-dereference)"
                    )
                parts[kind] = (member.offset_data, member.size)
            end = tar.offset
        _check_end(file, end, name)
        for key in sorted(dotted.keys() - samples.keys()):
            problems[key] = (
                f"{name}/{dotted[key]}: belongs to a sample {key!r}, as names end at the first dot, that has no image; "
                "pack it under a name without dots"
            )
        return _indexed(file, name, samples, problems)
    except (tarfile.TarError, ValueError) as error:  # a header's number that is none, or too large to seek to
        what = "truncated" if "unexpected end" in str(error) else f"not a tar file ({one_line(error)})"
        raise DataError(f"{name}: {what}; get or pack the shard again") from error


def _split_name(name: str) -> tuple[str, str]:
    """Key and extension, as the webdataset library has them: up to the first dot of the last part, and after it."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower() if stem else ""


def _check_end(file: IO[bytes], end: int, name: str) -> None:
    """Require that nothing but zeros follows, as in a sound tar file: tarfile also stops at a damaged header."""
    file.seek(end)
    zeros = 0  # blocks; sound files have one, two or many
    while (block := file.read(tarfile.BLOCKSIZE)) and not any(block):
        zeros += len(block) == tarfile.BLOCKSIZE
    if not zeros or block:
        raise DataError(f"{name}: truncated, damaged or joined to another at byte {end:,}; get or pack the shard again")


def _indexed(
    file: IO[bytes], name: str, samples: dict[str, dict[str, tuple[int, int]]], problems: dict[str, str]
) -> ShardIndex:
    """Read the labels, and the first and last bytes of each image."""
    places, labels, keys, hashes, deep = [], [], [], bytearray(), []
    for key, parts in samples.items():
        if key in problems:
            continue
        try:
            labels.append(_label(file, f"{name}/{key}", parts))
        except DataError as error:
            problems[key] = str(error)
            continue
        offset, size = parts["image"]
        file.seek(offset)
        deep.append(_may_be_deep(file.read(min(size, _HEAD))))
        file.seek(offset + max(0, size - _TAIL))
        tail = file.read(min(size, _TAIL))
        hashes += hashlib.blake2b(size.to_bytes(8, "little") + tail, digest_size=HASH_BYTES).digest()
        places.append((offset, size))
        keys.append(key)
    if not samples and not problems:
        raise DataError(f"{name}: has no samples; expected images (.{', .'.join(sorted(IMAGES))}) beside .cls or .json")
    if len({type(label) for label in labels}) > 1:
        raise DataError(f"{name}: some labels are integers and some are names; use one kind")
    return ShardIndex(
        np.array(places, np.int64).reshape(-1, 2), np.array(labels or np.empty(0, np.int64)), Names.of(keys),
        np.frombuffer(bytes(hashes), np.uint8).reshape(-1, HASH_BYTES), np.array(deep, np.bool_),
        list(problems.values()),
    )  # fmt: skip


def _may_be_deep(head: bytes) -> bool:
    """Whether an image with these first bytes may have more than 8 bits per channel."""
    others = (b"P", b"II", b"MM", b"\0\0\0\x0cjP", b"\xff\x4f")  # PNM, TIFF, JPEG 2000, whatever their extension
    return (head.startswith(b"\x89PNG") and head[24:] == b"\x10") or head.startswith(others)


def _label(file: IO[bytes], where: str, parts: dict[str, tuple[int, int]]) -> int | str:
    """The label of a sample with an image. Raises DataError: either is missing, or the label is not valid."""
    if "image" not in parts:
        raise DataError(f"{where}: has no image (.{', .'.join(sorted(IMAGES))})")
    kind = next((kind for kind in LABELS if kind in parts), None)
    if kind is None:
        raise DataError(f"{where}: has no label; add a .cls (an integer) or a .json with a field `label`")
    offset, size = parts[kind]
    file.seek(offset)
    text = file.read(size) if size <= _MAX_LABEL_BYTES else b""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        label = int(text) if kind == "cls" else json.loads(text)["label"]
        if type(label) is int and 0 <= label < 2**31:
            return label
        if isinstance(label, str) and label.strip() and len(label) <= _MAX_NAME:
            label.encode()  # half of a surrogate pair is not text, and raises an error
            return label
    raise DataError(f"{where}.{kind}: must {LABELS[kind]}")


class ShardSource(Source):
    """Shards of images. The samples are found when they are first asked for."""

    def __init__(self, spec: DataSpec, progress: Progress | None = None) -> None:
        """Raises DataError: see `find_shards`."""
        super().__init__(spec.source)
        self.shards = find_shards(spec.source.partition(":")[2])
        self.cache = ShardCache(cache_folder(spec.cache) / "shards", spec.shard_cache_gb * 1e9)
        self._skip = spec.on_corrupt == "skip"
        self._progress = progress
        self._names = _short_names(self.shards)

    def files(self) -> list[Path]:
        return [Path(shard) for shard in self.shards if not is_url(shard)]

    def identity(self) -> dict[str, Any]:
        about: dict[str, Any] = {"shards": self.shards, "skip": self._skip, "index": _INDEX_FORMAT}
        if any(map(is_url, self.shards)) and self.indexes:  # reading them reports progress
            about["sha256"] = [self.cache.digest(shard) for shard in self.shards if is_url(shard)]
        return about

    @cached_property
    def indexes(self) -> list[ShardIndex]:
        """Of each shard, from the cache where it was found before; URLs are downloaded several at a time."""
        found: list[ShardIndex] = []
        self.cache.stopped = False  # as it was left by an earlier try
        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            run = pool.map if any(map(is_url, self.shards)) else map
            try:
                for index in run(self._index, self.shards, self._names):
                    found.append(index)
                    if self._progress is not None:
                        self._progress(len(found), len(self.shards))
            except BaseException:  # Ctrl-C does not wait for the end of the downloads
                self.cache.stopped = True
                raise
        return found

    def _index(self, shard: str, name: str) -> ShardIndex:
        about: list[Any] = [_INDEX_FORMAT, name]
        if is_url(shard):
            about += [shard, self.cache.digest(shard)]
        else:
            stat = os.stat(shard)
            about += [os.path.abspath(shard), stat.st_size, stat.st_mtime_ns]
        key = hashlib.blake2b(json.dumps(about).encode(), digest_size=10).hexdigest()
        file = self.cache.folder / "index" / f"{key}.npz"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return ShardIndex.from_bytes(file.read_bytes())  # else it is not there yet, or damaged
        try:
            with self.cache.open(shard) as opened:
                index = scan(opened, name)
        except OSError as error:
            raise DataError(f"{name}: cannot be read ({error.strerror or error})") from error
        with storage_errors(file.parent), replacing(file) as out:
            out.write(index.to_bytes())
        return index

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Shard, offset and size in bytes of each image: int64 [M, 3]."""
        counts = [len(index.keys) for index in self.indexes]
        of = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        return np.column_stack([of, np.concatenate([index.places for index in self.indexes])])

    @cached_property
    def deep(self) -> NDArray[np.bool_]:
        """Which images may have more than 8 bits per channel: bool [M]."""
        return np.concatenate([index.deep for index in self.indexes])

    @property
    def problems(self) -> list[str]:
        return [problem for index in self.indexes for problem in index.problems]

    def load_table(self) -> Table:
        if self.problems and not self._skip:
            raise DataError(f"{self.problems[0]} {_SKIP_HINT}")
        if not any(len(index.keys) for index in self.indexes):
            raise DataError(f"none of the samples can be used; the first: {self.problems[0]}")
        classes, labels = _classes(self.indexes, self._names)
        pairs = zip(self._names, self.indexes, strict=True)
        names = Names.of(f"{name}/{key}" for name, index in pairs for key in index.keys)
        return Table(
            classes=classes,
            labels=labels,
            splits=np.array(_splits(self.shards), np.uint8)[self.places[:, 0]],
            names=names,
            keys=np.array([name_key(name) for name in names], np.int64),
        )

    def read(self, index: int) -> bytes:
        shard, offset, size = self.places[index].tolist()
        return self.cache.read(self.shards[shard], offset, size)

    def images(self) -> Iterator[Item]:
        return map(self.read, range(len(self.places)))

    def some(self, count: int) -> Iterator[Item]:
        """Spread over all shards; of URLs the first ones, so that no shard is downloaded for one image."""
        if any(map(is_url, self.shards)):
            return super().some(count)
        return map(self.read, np.unique(np.linspace(0, len(self) - 1, count).astype(np.int64)).tolist())


def hashes_of(source: ShardSource) -> NDArray[np.uint8]:
    """Of each image's encoded bytes, so that equal files are equal here: uint8 [M, 16].

    Images with different sizes or last bytes are known to differ; only the others are read completely.
    """
    hashes = np.concatenate([index.hashes for index in source.indexes])
    alike = first_alike(hashes)
    for row in np.flatnonzero(np.bincount(alike)[alike] > 1):
        hashes[row] = np.frombuffer(pixel_hash(source.read(int(row))), np.uint8)
    return hashes


def _short_names(shards: Sequence[str]) -> list[str]:
    """The shards' paths relative to their common folder."""
    parts = [shard.split("/") for shard in shards]
    common = len(os.path.commonprefix([part[:-1] for part in parts]))  # noqa: RUF071  # of lists, so it is parts
    return ["/".join(part[common:]) for part in parts]


def _splits(shards: Sequence[str]) -> list[int]:
    """The split of each shard, by its own name or its folder's; all are train where no name says one."""
    found: list[int | None] = []
    for shard in shards:
        folder, _, file = shard.rpartition("/")
        words = [*re.split(r"[^A-Za-z]+", file.lower())[:-1], folder.rpartition("/")[2].lower()]
        found.append(next((SPLIT_ALIASES[word] for word in words if word in SPLIT_ALIASES), None))
    named = [shard for shard, code in zip(shards, found, strict=True) if code not in (None, TRAIN)]
    if not named:
        return [TRAIN] * len(shards)
    odd = [shard for shard, code in zip(shards, found, strict=True) if code is None]
    if odd:
        raise DataError(
            f"data.source: {named[0]} is named after a split, but {odd[0]} is not; name all after splits, or none"
        )
    if TRAIN not in found:
        raise DataError(f"data.source: has {named[0]}, but no train shards; add them, separated by ::")
    return [code for code in found if code is not None]


def _classes(indexes: Sequence[ShardIndex], names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    labels = [index.labels for index in indexes]
    kinds = {array.dtype.kind: name for array, name in zip(labels, names, strict=True) if len(array)}
    if len(kinds) > 1:
        first, second = kinds.values()
        raise DataError(
            f"labels of {first} and of {second} are of different kinds: integers in one, names in the other; pack them "
            "again with one kind"
        )
    distinct, ranks = np.unique(np.concatenate([array for array in labels if len(array)]), return_inverse=True)
    classes, places = numbered(distinct.tolist())
    return classes, places[ranks]
