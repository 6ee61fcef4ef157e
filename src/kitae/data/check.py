"""Check a data set before training: broken images, class balance, duplicates, leaks across splits, label conflicts.

Exact duplicates have the same pixels (in any file format); `near` finds near duplicates.
"""

from __future__ import annotations

import io
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kitae import keyed, views
from kitae.console import counter, plural, printable
from kitae.data.base import SPLIT_NAMES, TEST, TRAIN, VAL, Item, Progress, Source, Table
from kitae.data.groups import HASH_BYTES, first_alike, pixel_hash
from kitae.data.near import near_duplicates, perceptual_hashes
from kitae.data.parallel import DecodeMemory, each_image
from kitae.data.sources import open_source, source_named
from kitae.data.spec import DataSpec
from kitae.data.splits import divide, enough_to_choose
from kitae.errors import DataError, KitaeError
from kitae.files import one_line_yaml, user_path, write_atomically
from kitae.preprocess import depth_of, flattened

# Above this similarity, two images count as copies of one picture, and different labels as a conflict. On the 600
# photographs of photos-mini, copies at half the size or JPEG quality 80 reach 0.966 and more; in fashion-mini no two
# garments of different classes reach 0.89.
SAME = 0.95
_READ_BY = {"image_column", "label_column", "groups"}  # fields of the data that `data fix` needs too
_SHEET_SIDE = 64
_SHEET_CLASSES = 100
_SHEET_PER_CLASS = 8


@dataclass(frozen=True)
class ImageRef:
    """One image of the data set: its name, class, and the split that training puts it in."""

    name: str
    label: str
    split: str

    def __str__(self) -> str:
        return f"{self.name} ({self.split}, {self.label})"


@dataclass(frozen=True)
class Duplicates:
    """Images that look the same. `similarity` is 1 for equal pixels, else the cosine that `near` measures."""

    images: tuple[ImageRef, ...]
    similarity: float

    @property
    def across_splits(self) -> bool:
        return len({image.split for image in self.images}) > 1

    @property
    def conflicting(self) -> bool:
        return len({image.label for image in self.images}) > 1

    def __str__(self) -> str:
        names = " = ".join(map(str, self.images[:4]))
        more = f" and {len(self.images) - 4} more" if len(self.images) > 4 else ""
        return f"{names}{more}" + ("" if self.similarity == 1 else f", similarity {self.similarity:.2f}")


@dataclass(frozen=True)
class CheckReport:
    """What was found.

    Attributes:
        source: the name of the source.
        images: how many images can be read.
        counts: split -> class -> number of readable images.
        unreadable: (name, reason).
        sizes, modes: "WIDTH x HEIGHT" or Pillow mode as stored -> number of images.
        exact: groups of images with the same pixels.
        highest: level of the images of more than 8 bits per channel; None where there are none.
        depth: bits of these that are read (data.depth); None where there are none.
        near: pairs that are nearly the same; of an exact group only the first member takes part.
        excluded: row of the source -> why `data fix` leaves it out: unreadable, in conflict, or a copy.
        problems: why the data cannot be split or trained on, one line each.
        truncated: whether the search was cut short, as there were too many near duplicates.
        ignored: files that are not images by their names, or lie outside the class folders.
        fixable: whether `data fix` takes the source.
        options: how the source was read, as options of `data fix`, such as ` --set data.groups=parent`.
    """

    source: str
    images: int
    counts: dict[str, dict[str, int]]
    unreadable: tuple[tuple[str, str], ...]
    sizes: dict[str, int]
    modes: dict[str, int]
    exact: tuple[Duplicates, ...]
    near: tuple[Duplicates, ...]
    problems: tuple[str, ...]
    excluded: Mapping[int, str] = field(default_factory=dict)
    truncated: bool = False
    highest: int | None = None
    depth: int | None = None
    ignored: tuple[str, ...] = ()
    fixable: bool = True
    options: str = ""

    @cached_property
    def across_splits(self) -> tuple[Duplicates, ...]:
        """Exact and near duplicates that lie in different splits: a test accuracy measured with them is too high."""
        return tuple(d for d in (*self.exact, *self.near) if d.across_splits)

    @cached_property
    def label_conflicts(self) -> tuple[Duplicates, ...]:
        """Copies of one picture (similarity `SAME` or more) whose labels differ."""
        return tuple(d for d in (*self.exact, *self.near) if d.conflicting and d.similarity >= SAME)

    @cached_property
    def doubtful_labels(self) -> tuple[Duplicates, ...]:
        """Images that are similar, but not copies, and have different labels: worth a look."""
        return tuple(d for d in self.near if d.conflicting and d.similarity < SAME)

    @property
    def ok(self) -> bool:
        """Whether there are no unreadable images, no conflicts, and nothing that prevents training."""
        return not (self.unreadable or self.label_conflicts or self.problems)

    @property
    def verdict(self) -> str:
        """`ready`, or `not ready:` and why."""
        counts = ((len(self.unreadable), "unreadable image"), (len(self.label_conflicts), "label conflict"))
        why = [plural(count, what) for count, what in counts if count]
        return f"not ready: {', '.join([*why, *self.problems])}" if not self.ok else "ready"

    @property
    def cures(self) -> list[str]:
        """What to do about each finding, one line each; findings that need no action come last."""
        without = f"the data without unreadable images, conflicts and copies ({len(self.excluded):,})"
        left = all(self.counts["train"].values())  # every class has training images without the unreadable ones
        skip = ", or leave them out with --set data.on_corrupt=skip" if left else ""
        kept = self.images - sum(why != "unreadable" for why in self.excluded.values())
        fixed = self.excluded and self.fixable and left and kept
        cures: list[tuple[object, str]] = [
            (self.unreadable, f"unreadable images: replace them{skip}"),
            (self.label_conflicts, "label conflicts: correct the labels; training would learn both"),
            (self.doubtful_labels, "similar, with different labels: look at them; both labels may be right"),
            (self.across_splits, "duplicates across splits: they inflate the test accuracy"),
            (fixed, f"kitae data fix {shlex.quote(self.source)}{self.options} writes {without}"),
        ]
        return [cure for found, cure in cures if found]

    def __repr__(self) -> str:
        classes = len(next(iter(self.counts.values()), {}))
        return printable(f"CheckReport({self.source}: {self.images:,} images, {classes} classes, {self.verdict})")

    def __str__(self) -> str:
        return printable("\n".join(self.lines()))

    def _repr_html_(self) -> str:
        found, *rest = self.lines()
        return views.block(found, [line.strip() for line in rest])

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping for JSON, with everything."""

        def plain(found: Sequence[Duplicates]) -> list[dict[str, Any]]:
            return [
                {
                    "similarity": round(d.similarity, 4),
                    "across_splits": d.across_splits,
                    "conflicting": d.conflicting,
                    "images": [{"name": i.name, "class": i.label, "split": i.split} for i in d.images],
                }
                for d in found
            ]

        return {
            "source": self.source,
            "ok": self.ok,
            "verdict": self.verdict,
            "cures": self.cures,
            "images": self.images,
            "counts": {split: dict(counts) for split, counts in self.counts.items()},
            "unreadable": [{"name": name, "reason": reason} for name, reason in self.unreadable],
            "sizes": dict(self.sizes),
            "modes": dict(self.modes),
            "highest_level": self.highest,
            "depth": self.depth,
            "exact_duplicates": plain(self.exact),
            "near_duplicates": plain(self.near),
            "near_duplicates_truncated": self.truncated,
            "problems": list(self.problems),
            "ignored": list(self.ignored),
        }

    def lines(self, examples: int = 5) -> list[str]:
        """The report as lines of text, with so many examples of each finding."""
        out = [f"{self.source}: {self.images:,} images, {len(next(iter(self.counts.values()), {}))} classes"]
        for split, counts in self.counts.items():
            if total := sum(counts.values()):
                low, high = min(counts, key=lambda c: counts[c]), max(counts, key=lambda c: counts[c])
                even = counts[low] == counts[high]
                each = f"{counts[low]:,}" if even else f"from {counts[low]:,} ({low}) to {counts[high]:,} ({high})"
                out.append(f"  {split}: {total:,}, {each} per class")
        for title, histogram in (("sizes", self.sizes), ("modes", self.modes)):
            top = [f"{key}: {n:,}" for key, n in list(histogram.items())[:examples]]
            more = f", and {len(histogram) - examples} more" if len(histogram) > examples else ""
            out.append(f"  {title}: {', '.join(top)}{more}")
        if self.highest is not None and self.depth is not None:
            white = ", higher levels become white" if self.highest >= 1 << self.depth else ""
            out.append(f"  depth: the highest level is {self.highest:,}, read as {self.depth} bits (data.depth){white}")
        findings: list[tuple[str, Sequence[object]]] = [
            ("unreadable images", [reason for _, reason in self.unreadable]),
            ("groups of exact duplicates", self.exact),
            ("pairs of near duplicates", self.near),
            ("duplicates across splits", self.across_splits),
            ("copies with different labels", self.label_conflicts),
            ("similar, with different labels", self.doubtful_labels),
            ("problems", self.problems),
            *([("ignored (no image, or outside the class folders)", self.ignored)] if self.ignored else []),
        ]
        for title, found in findings:
            out.append(f"  {title}: {len(found):,}")
            out += [f"    {line}" for line in found[:examples]]
            if len(found) > examples:
                out.append(f"    and {len(found) - examples:,} more")
        if self.truncated:
            out.append("  the search for near duplicates stopped early; there may be more")
        return [*out, *(f"  {cure}" for cure in self.cures), self.verdict]


def check(
    source: Source | DataSpec | str | Path,
    spec: DataSpec | None = None,
    *,
    planned: bool | None = None,
    progress: Progress | None = None,
    sheet: str | Path | None = None,
    threads: int | None = None,
) -> CheckReport:
    """Read every image of a source at its own size, and report.

    Args:
        source: a source, the spec that names one, its name, or the path of a folder, a Parquet or a CSV file.
        spec: how training would split it; by default `source` where that is a spec.
        planned: split as a planned run does, which chooses `val_fraction`; by default where no spec is given.
        progress: called with (images done, images in all); None shows it on a terminal and in a notebook.
        sheet: where to write a contact sheet (PNG) with some training images of each class, of 100 classes at most.
        threads: reading threads; by default one a processor.

    Raises:
        DataError: the source cannot be opened, or `threads` is below 1. Broken images are reported, not raised.
        KitaeError: the sheet cannot be written.
    """
    planned = (spec is None and not isinstance(source, DataSpec)) if planned is None else planned
    if threads is not None and threads < 1:
        raise DataError(f"threads: {threads} must be at least 1")
    if not isinstance(source, Source | DataSpec | str | Path):
        raise DataError(f"check takes a source, its name or a path, not {type(source).__name__}")
    if isinstance(source, str | Path):
        source = (spec or DataSpec()).model_copy(update={"source": source_named(source)})
    spec = spec or (source if isinstance(source, DataSpec) else DataSpec())
    if isinstance(source, DataSpec):
        # A file that is missing, or a sample without a label, is a finding, not the end.
        source = open_source(source.model_copy(update={"on_corrupt": "skip"}))
    table = source.table
    spec = enough_to_choose(table, spec) if planned else spec
    shown = _sheet_rows(table) if sheet is not None else {}
    looks: dict[int, _Look] = {}
    unreadable: dict[int, str] = {}

    memory = DecodeMemory()

    def work(row: int, item: Item) -> _Look:
        with flattened(item, table.names[row], memory.reserved) as (image, mode, highest):
            return _look(image, mode, highest, row in shown)

    with counter(progress, "reading images") as seen, closing(each_image(source, work, threads, seen)) as results:
        for row, result in enumerate(results):
            if isinstance(result, DataError):
                unreadable[row] = str(result)
            else:
                looks[row] = result
    report, train = _report(source, spec, looks, unreadable)
    if sheet is not None:
        lines: dict[str, list[Image.Image]] = {}
        for row, label in shown.items():
            if row in train and (tile := looks[row].tile) is not None:
                lines.setdefault(table.classes[label], []).append(tile)
        _write_sheet(user_path(sheet), {name: tiles[:_SHEET_PER_CLASS] for name, tiles in lines.items()})
    return report


@dataclass(frozen=True, slots=True)
class _Look:
    """What is kept in memory of a readable image: some 500 bytes, and a tile where it may be shown."""

    pixels: bytes  # hash of RGB pixels, size and highest level
    hash: np.uint64  # see `perceptual_hashes`
    thumb: bytes  # 16 x 16 grey levels
    size: tuple[int, int]
    mode: str
    highest: int | None
    tile: Image.Image | None


def _look(image: Image.Image, mode: str, highest: int | None, tile: bool) -> _Look:
    colour = image if image.mode == "RGB" else image.convert("RGB")
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BILINEAR))
    thumb = (grey.reshape(16, 2, 16, 2).sum(axis=(1, 3), dtype=np.uint16) >> 2).astype(np.uint8)
    return _Look(
        pixel_hash(colour.tobytes(), repr((image.size, highest))), perceptual_hashes(grey[None])[0],
        thumb.tobytes(), image.size, mode, highest, _tile(colour) if tile else None,
    )  # fmt: skip


def _tile(image: Image.Image) -> Image.Image:
    larger = _SHEET_SIDE // max(image.size)
    if larger > 1:  # whole pixels: small images are looked at as they are
        return image.resize((image.width * larger, image.height * larger), Image.Resampling.NEAREST)
    image = image.copy()
    image.thumbnail((_SHEET_SIDE, _SHEET_SIDE), Image.Resampling.BILINEAR)
    return image


def _report(
    source: Source, spec: DataSpec, looks: dict[int, _Look], unreadable: dict[int, str]
) -> tuple[CheckReport, set[int]]:
    """The report, and the rows that training would train on."""
    table = source.table
    rows = np.array(list(looks), np.int64)
    labels, codes = table.labels[rows], table.splits[rows].copy()
    alike = first_alike(_stacked([look.pixels for look in looks.values()], HASH_BYTES))
    problems: list[str] = []
    try:
        readable = table.take(rows)
        train, val, test, _ = divide(readable, spec.model_copy(update={"limit": None}), alike)
        for code, part in ((TRAIN, train), (VAL, val), (TEST, test)):
            codes[part] = code
        if spec.limit is not None:  # the report counts all images, but training may refuse the limit
            divide(readable, spec, alike)
    except KitaeError as error:
        problems.append(str(error))

    def ref(position: int) -> ImageRef:
        return ImageRef(table.names[int(rows[position])], table.classes[labels[position]], SPLIT_NAMES[codes[position]])

    first = np.unique(alike)
    hashes = np.array([look.hash for look in looks.values()], np.uint64)
    thumbs = _stacked([look.thumb for look in looks.values()], 256)
    pairs, truncated = near_duplicates(hashes[first], thumbs[first])
    near = [(int(first[i]), int(first[j]), similarity) for i, j, similarity in pairs]
    excluded = dict.fromkeys(unreadable, "unreadable")
    excluded |= {int(rows[position]): why for position, why in _left_out(labels, codes, alike, near, ref).items()}
    counts = {}
    for code, split in enumerate(SPLIT_NAMES):
        found = np.bincount(labels[codes == code], minlength=len(table.classes))
        counts[split] = dict(zip(table.classes, found.tolist(), strict=True))
    highest = max((look.highest for look in looks.values() if look.highest is not None), default=None)
    depth = None if highest is None else depth_of(highest) if spec.depth == "auto" else spec.depth
    read = spec.model_dump(include=_READ_BY, exclude_defaults=True)
    report = CheckReport(
        source=source.name,
        images=len(rows),
        counts=counts,
        unreadable=(
            *((table.names[row], reason) for row, reason in unreadable.items()),
            *((problem.partition(": ")[0], problem) for problem in source.problems),
        ),
        sizes=dict(Counter(f"{look.size[0]} x {look.size[1]}" for look in looks.values()).most_common()),
        modes=dict(Counter(look.mode for look in looks.values()).most_common()),
        exact=tuple(Duplicates(tuple(map(ref, members)), 1.0) for members in _together(alike)),
        near=tuple(Duplicates((ref(i), ref(j)), similarity) for i, j, similarity in near),
        problems=tuple(problems),
        excluded=excluded,
        truncated=truncated,
        highest=highest,
        depth=depth,
        ignored=tuple(source.ignored()),
        fixable=source.fixed_as is not None,
        options="".join(f" --set {shlex.quote(f'data.{name}={one_line_yaml(value)}')}" for name, value in read.items()),
    )
    return report, set(rows[codes == TRAIN].tolist())


def _left_out(
    labels: NDArray[np.int64],
    codes: NDArray[np.uint8],
    alike: NDArray[np.int64],
    near: list[tuple[int, int, float]],
    ref: Callable[[int], ImageRef],
) -> dict[int, str]:
    """Position -> why `data fix` leaves the image out: an image that stays, or another label, is a copy of it.

    Not a chain of copies: the first and the last picture of a slow film have little in common.
    """
    equal = {positions[0]: positions for positions in _together(alike)}
    copies: dict[int, list[int]] = {one: [] for one in equal}
    for i, j, similarity in near:
        if similarity >= SAME:
            copies.setdefault(i, []).append(j)
            copies.setdefault(j, []).append(i)
    members = {one: equal.get(one, [one]) for one in copies}
    # The copy in test stays, else the one in validation, so that the test set loses few images.
    best = {one: min(members[one], key=lambda position: (-int(codes[position]), position)) for one in copies}
    labelled = {one: {int(labels[m]): m for m in reversed(members[one])} for one in copies}
    out: dict[int, str] = {}
    kept: set[int] = set()
    for one in sorted(copies, key=lambda one: (-int(codes[best[one]]), best[one])):
        found = {label: m for other in (*copies[one], one) for label, m in labelled[other].items()}
        if len(found) > 1:
            for m in members[one]:
                out[m] = f"in conflict with {ref(next(found[label] for label in found if label != labels[m]))}"
            continue
        stays = next((best[other] for other in copies[one] if other in kept), best[one])
        out |= {m: f"a copy of {ref(stays)}" for m in members[one] if m != stays}
        if stays == best[one]:
            kept.add(one)
    return out


def _stacked(rows: Sequence[bytes], size: int) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, size)


def _together(units: NDArray[np.int64]) -> list[list[int]]:
    """The positions with the same number, of each number that comes more than once."""
    members: dict[int, list[int]] = {}
    for position, unit in enumerate(units.tolist()):
        members.setdefault(unit, []).append(position)
    return [positions for positions in members.values() if len(positions) > 1]


def _sheet_rows(table: Table) -> dict[int, int]:
    """Row -> class of candidates for the sheet: more than needed, as some may be held out or broken."""
    rows: dict[int, int] = {}
    for label in range(min(len(table.classes), _SHEET_CLASSES)):
        mine = np.flatnonzero((table.labels == label) & (table.splits == TRAIN))
        order = keyed.shuffled(0, 0, table.keys[mine], keyed.SLOT_LIMIT)
        rows |= {int(row): label for row in mine[order[: 3 * _SHEET_PER_CLASS]]}
    return rows


def _write_sheet(path: Path, lines: dict[str, list[Image.Image]]) -> None:
    """One line of thumbnails per class, with its name above."""
    gap, text = 4, 14
    step, height = _SHEET_SIDE + gap, _SHEET_SIDE + gap + text
    columns = max([4, *map(len, lines.values())])
    sheet = Image.new("RGB", (gap + step * columns, gap + height * max(len(lines), 1)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for line, (name, tiles) in enumerate(lines.items()):
        top = gap + line * height
        draw.text((gap, top), name if len(name) <= 60 else name[:59] + "…", fill="black", font=font)
        for column, tile in enumerate(tiles):
            sheet.paste(tile, (gap + column * step, top + text))
    content = io.BytesIO()
    sheet.save(content, "PNG")
    write_atomically(path, content.getvalue())
