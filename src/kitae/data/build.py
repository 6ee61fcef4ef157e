"""Building a store: every image is decoded once, in parallel, and the store is published atomically.

Sizes and colours are known from the images' headers. The depth of 16-bit images is only known after decoding, and can
make a second pass necessary.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import threading
import uuid
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from kitae.data.base import Item, Names, Progress, Source
from kitae.data.download import is_url
from kitae.data.groups import pixel_hash
from kitae.data.parallel import DecodeMemory, each_image
from kitae.data.pictures import level_sums
from kitae.data.shards import ShardSource, hashes_of
from kitae.errors import DataError
from kitae.files import storage_errors, user_path
from kitae.preprocess import Depth, PreprocessRules, depth_of, on_one_line, picture, probe, sides

FORMAT = 2
MANIFEST = "manifest.json"
PIXELS = "images.u8"
TINY = 64  # pictures with no side longer than this are kept at the network's size: they are too small to crop from
# The default short side of a whole picture, as a multiple of the network's size. Random crops of 8 % of the area and
# more, and evaluation, are then as sharp as from the files within 6 %: see benchmarks/store.py. At exactly 2, the
# resize of an evaluation samples between pixels everywhere, and is 13 % off.
STORE_FACTOR = 9 / 4

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """A store to be built.

    Attributes:
        source: where the images are.
        request: `image_size`, `channels`, `resize`, `depth` (or `auto`), `store_size`, `crop_pct`, `on_corrupt`,
            `version` (of the rules), and `fixed` (`store_size` is that of the rules, with nothing left to determine).
        fingerprint: the source's at the time of the request; it is an error if files change during the build.
        final: the store's folder; nothing is there.
        progress: called with (images done, images in all).
        threads: number of decoding threads; None takes one per processor.
    """

    source: Source
    request: dict[str, Any]
    fingerprint: str
    final: Path
    progress: Progress | None
    threads: int | None

    def has_room(self, needed: int) -> bool:
        """Whether the disk has this many bytes free."""
        return shutil.disk_usage(self.final.parent).free >= needed

    @contextlib.contextmanager
    def folder(self, needed: int = 0) -> Iterator[Path]:
        """A temporary folder to write into, removed at the end unless published. `needed`: bytes of disk space."""
        temporary = self.final.with_name(f".{self.final.name}-{uuid.uuid4().hex[:8]}.tmp")
        try:
            with storage_errors(self.final.parent, needed):
                if not self.has_room(needed):  # fail now, not after minutes of decoding
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                temporary.mkdir()
                yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def publish(
        self,
        temporary: Path,
        rules: PreprocessRules,
        written: _Written,
        columns: Mapping[str, NDArray[Any]],
        beside: Mapping[str, bytes] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the columns, names and manifest of a store, flush them, and rename its folder to its final name.

        Args:
            columns: of the images in the store, beside those of their table.
            beside: files that follow from the pixels, so that the fingerprint leaves them out.
            facts: for the manifest.
        """
        table, kept = self.source.table, np.flatnonzero(written.kept)
        own: dict[str, NDArray[Any]] = {"labels.i64": table.labels, "splits.u8": table.splits, "keys.i64": table.keys}
        if table.groups is not None:
            own["groups.i64"] = table.groups
        contents = {name: column[kept].tobytes() for name, column in own.items()}
        contents |= {name: column.tobytes() for name, column in columns.items()}
        digest = written.digest  # goes on over the columns
        for name, data in contents.items():
            digest.update(name.encode() + data)
        digest.update(json.dumps([table.classes, rules.to_dict()]).encode())
        names = Names.of(table.names[row] for row in kept.tolist())
        contents |= {**(beside or {}), "names.utf8": names.text.tobytes(), "names.i64": names.starts.tobytes()}
        manifest = {
            "format": FORMAT,
            "source": self.source.name,
            "request": self.request,
            "rules": rules.to_dict(),
            "classes": table.classes,
            "count": len(kept),
            "skipped": written.skipped,
            "fingerprint": digest.hexdigest(),
            **(facts or {}),
        }
        if self.source.fingerprint() != self.fingerprint:
            raise DataError(f"{self.source.name}: files changed while they were read; try again")
        for name, data in contents.items():
            _write(temporary / name, data)
        files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        _write(temporary / MANIFEST, json.dumps({**manifest, "files": files}, indent=1).encode())
        _flush_folder(temporary)
        try:
            temporary.rename(self.final)
        except OSError:
            if not self.final.is_dir():  # without locks, another process may have been first
                raise
        _flush_folder(self.final.parent)


def build(job: Job) -> None:
    """Decode the images of a source into a store.

    Raises:
        DataError: an unreadable image (named), sizes that differ while `image_size` is null, or the disk is full.
    """
    with contextlib.suppress(_NotTinyError):
        return _build(job, *_resolve(job))
    return _build(job, *_resolve(job, all_headers=True))


def _build(job: Job, rules: PreprocessRules, tiny: bool) -> None:
    """Write the store. `tiny`: raise _NotTinyError at a picture that is not."""
    needed = rules.channels * rules.size[0] * rules.size[1] * len(job.source) if rules.store_size is None else 0
    if tiny and not job.has_room(needed):
        raise _NotTinyError  # or the disk is full, which is said when all headers are known
    with job.folder(needed) as temporary:
        written = _pass(job, rules, temporary, tiny)
        if job.request["depth"] == "auto" and written.highest is not None and depth_of(written.highest) != rules.depth:
            rules = replace(rules, depth=depth_of(written.highest))
            written = _pass(job, rules, temporary)
        columns: dict[str, NDArray[Any]] = {}
        beside = {"hashes.u8": bytes(written.hashes)}
        if rules.store_size is not None:
            columns["sizes.i64"] = np.array(written.sizes, np.int64)
            beside["sums.i64"] = written.sums.tobytes()
        job.publish(temporary, rules, written, columns, beside)


def index_shards(job: Job) -> None:
    """The store of shards: no pixels, only the location of each image, its label and so on.

    With `on_corrupt: skip` every image is decoded once, to leave out those that cannot be; and with `depth: auto` every
    image that may have more than 8 bits per channel, to find the highest level.

    Raises:
        DataError: a broken shard, a sample without image or label, sizes that differ while `image_size` is null.
    """
    source = cast(ShardSource, job.source)
    table = source.table
    # Images are decoded from their files each time, so none are stored at a reduced size.
    rules = replace(_resolve(job)[0], store_size=None)
    written = _Written(np.ones(len(source), np.bool_))
    written.skipped += [(name, why) for problem in source.problems for name, _, why in [problem.partition(": ")]]

    skip, auto = job.request["on_corrupt"] == "skip", job.request["depth"] == "auto"

    memory = DecodeMemory()

    def highest(row: int, item: Item) -> int | None:  # without the pixels, which would fill the memory
        return picture(item, rules, table.names[row], memory.reserved)[1] if skip or source.deep[row] else None

    if skip or (auto and source.deep.any()):
        with contextlib.closing(each_image(source, highest, job.threads, job.progress)) as results:
            for result in _readable(job, written, results):
                if result is not None:
                    written.highest = max(result, written.highest or 0)
    if auto and written.highest is not None:
        rules = replace(rules, depth=depth_of(written.highest))
    kept = written.kept
    columns: dict[str, NDArray[Any]] = {"hashes.u8": hashes_of(source)[kept], "places.i64": source.places[kept]}
    shards = [shard if is_url(shard) else str(user_path(shard).absolute()) for shard in source.shards]
    with job.folder() as temporary:
        job.publish(temporary, rules, written, columns, facts={"shards": shards})


@dataclass
class _Written:
    """What is known of the images that were written so far.

    Attributes:
        kept: bool [N], false for images that were not readable.
        skipped: (name, reason) of these.
        hashes: of the kept ones' pixels, one after the other.
        sizes: height and width of each kept one. sums: see `Pictures.sums`. Both of whole pictures only.
        highest: the highest level in images of more than 8 bits per channel; None where there are none.
        digest: a running hash of all pixels.
    """

    kept: NDArray[np.bool_]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    hashes: bytearray = field(default_factory=bytearray)
    sizes: array[int] = field(default_factory=lambda: array("q"))
    sums: array[int] = field(default_factory=lambda: array("q"))
    highest: int | None = None
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))


class _NotTinyError(Exception):
    """A picture is not tiny although all read before it were, or the disk has no room for all at the network's size."""


def _pass(job: Job, rules: PreprocessRules, folder: Path, tiny: bool = False) -> _Written:
    """Decode everything in order into one file. `tiny`: raise _NotTinyError at a picture that is not."""
    source, names = job.source, job.source.table.names
    written = _Written(np.ones(len(source), np.bool_))
    memory = DecodeMemory()
    whole = rules.store_size is not None
    larger = threading.Event()

    def header(height: int, width: int) -> None:
        if tiny and max(height, width) > TINY:
            larger.set()

    def work(row: int, item: Item) -> tuple[NDArray[np.uint8], bytes, int | None, bytes]:
        pixels, highest = picture(item, rules, names[row], memory.reserved, header)
        hashed = pixel_hash(pixels.data, repr(pixels.shape) if whole else "")
        return pixels, hashed, highest, level_sums(pixels).tobytes() if whole else b""

    size = int(rules.channels * rules.cover[0] * rules.cover[1])  # of a whole picture one side may be longer
    with (
        (folder / PIXELS).open("wb") as file,
        contextlib.closing(each_image(source, work, job.threads, job.progress, size)) as results,
    ):
        for pixels, hashed, highest, sums in _readable(job, written, results):
            if larger.is_set():
                raise _NotTinyError
            written.hashes += hashed
            if whole:
                written.sizes.extend(pixels.shape[1:])
                written.sums.frombytes(sums)
            if highest is not None:
                written.highest = max(highest, written.highest or 0)
            written.digest.update(pixels.reshape(-1).data)
            file.write(pixels.reshape(-1).data)
        file.flush()
        os.fsync(file.fileno())
    if larger.is_set():  # a picture that could not be read
        raise _NotTinyError
    return written


def _readable(job: Job, written: _Written, results: Iterable[T | DataError]) -> Iterator[T]:
    """The results of readable images. Others are left out, or are an error, as `on_corrupt` says."""
    source = job.source
    for row, result in enumerate(results):
        if not isinstance(result, DataError):
            yield result
        elif job.request["on_corrupt"] == "error":
            raise DataError(f"{result} (data.on_corrupt=skip leaves such images out)") from result
        else:
            name = source.table.names[row]
            written.kept[row] = False
            written.skipped.append((name, str(result).removeprefix(f"{on_one_line(name)}: ")))
    if not written.kept.any():
        name, why = written.skipped[0]
        raise DataError(f"{source.name}: none of its {len(source)} images can be read; the first: {name}: {why}")


def _resolve(job: Job, all_headers: bool = False) -> tuple[PreprocessRules, bool]:
    """Determine a null image_size or channels, and whether whole pictures are kept, from the images' headers.

    Reading the headers of tiny images takes a third of the time of decoding them. So if only the last is undetermined,
    reading stops at the first tiny image and assumes that the others are tiny too; the second return value tells
    whether it did. `all_headers` reads all of them.
    """
    source, request = job.source, job.request
    size, channels, crop_pct = request["image_size"], request["channels"], request["crop_pct"]
    store_size = request["store_size"] if request["fixed"] else None
    open_question = not request["fixed"] and not isinstance(source, ShardSource)  # shards keep no pixels
    tiny = False

    def large(one: tuple[int, int]) -> bool:  # neither tiny nor what the network takes
        return max(one) > TINY and (one != sides(size or one) or crop_pct < 1)

    if size is None or channels is None or open_question:
        found: dict[tuple[int, int], str] = {}
        grey, whole, longest = True, False, 0
        with contextlib.closing(each_image(source, lambda row, item: probe(item), job.threads)) as headers:
            for row, header in enumerate(headers):
                if not isinstance(header, DataError):  # which decoding will report
                    found.setdefault(header[0], source.table.names[row])
                    grey, whole = grey and header[1], whole or large(header[0])
                    longest = max(longest, *header[0])
                    tiny = not all_headers and longest <= TINY
                known = whole or tiny or not open_question
                if len(found) > 1 if size is None else known and (channels or not grey):
                    break
            else:
                tiny = False  # all are known
        size = size or _common_size(source, found)
        channels = channels or (1 if grey else 3)
        if open_question and whole:
            store_size = request["store_size"] or math.ceil(STORE_FACTOR * min(sides(size)))
    depth: Depth = 16 if request["depth"] == "auto" else request["depth"]
    rules = PreprocessRules(size, channels, request["resize"], depth, store_size, crop_pct)
    return rules, tiny and open_question and not whole


def _common_size(source: Source, sizes: dict[tuple[int, int], str]) -> tuple[int, int]:
    shown = [f"{width} x {height} ({name})" for (height, width), name in sizes.items()]
    if not shown:
        raise DataError(f"{source.name}: none of its {len(source)} images can be read; `kitae data check` names them")
    if len(shown) > 1:
        raise DataError(f"{source.name}: images differ in size, {shown[0]} and {shown[1]}: set data.image_size")
    return next(iter(sizes))


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
