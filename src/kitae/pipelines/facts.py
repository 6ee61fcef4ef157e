"""What a plan knows about the data before the store is built: images, classes, splits, sizes, colours, speed."""

from __future__ import annotations

import statistics
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kitae.data.base import Source
from kitae.data.sources import open_source
from kitae.data.spec import DataSpec
from kitae.data.splits import divide, enough_to_choose
from kitae.errors import DataError
from kitae.preprocess import PreprocessRules, decode, probe

_TINY = 64  # images with no side above this are not photographs; small networks take them at their own size
# If the aspect ratio of a median picture is at least this, pictures are squashed into the square, since a crop loses
# their edges: 1.7 points at 9:16, 5.6 at 1:2.4 (LOG.md, 2026-11-30). Of those that are nearly square, the centre is
# enlarged instead, as in the training of the weights (LOG.md, 2026-11-26).
_NEARLY_SQUARE = 1.15
_CROP_PCT = 0.875
LEAST = 8  # pixels of a side; resnet9 does not run on smaller images
_SAMPLE = 48  # images that are sampled
_SAMPLE_SECONDS = 3.0  # after which no more of them are decoded: files of 50 MB take a second each


@dataclass(frozen=True)
class Facts:
    """What is known of the data before the store is built.

    Attributes:
        counts: images of each class.
        trained: int64 [K], those of them that the model is trained on.
        train, val, test: images of each split.
        side: the median height and width; no picture may have both.
        aspect: the longer side over the shorter one, of a median picture.
        longest: the longest side of the sampled pictures.
        same: whether all sampled pictures have one size.
        channels: 1 if all sampled pictures are grey, else 3.
        seconds: time to decode a picture on one core.
    """

    counts: tuple[int, ...]
    trained: NDArray[np.int64]
    train: int
    val: int
    test: int
    side: tuple[int, int]
    aspect: float
    longest: int
    same: bool
    channels: Literal[1, 3]
    seconds: float

    @property
    def images(self) -> int:
        """Number of images of all classes."""
        return sum(self.counts)

    @property
    def tiny(self) -> bool:
        """Whether the images are too small to be photographs."""
        return self.longest <= _TINY

    @property
    def square(self) -> int:
        """The side of a square for a median picture, large enough for the networks."""
        return max(LEAST, *self.side)

    @property
    def noun(self) -> str:
        """What messages call the images."""
        return "images" if self.tiny else "photos"


def look(data: DataSpec, *, fraction: bool = False, whole: bool = False) -> tuple[Facts, DataSpec]:
    """The facts, and the spec with a validation split of suitable size.

    Args:
        fraction: `val_fraction` is given, and kept.
        whole: the model is trained on the images of all folds, of which `data` is one.
    """
    source = open_source(data)
    table = source.table
    counts = np.bincount(table.labels, minlength=len(table.classes))
    data = data if fraction else enough_to_choose(table, data)
    train, val, test, _ = divide(table, data)
    trained = np.concatenate([train, val, test]) if whole else train
    sizes, grey, seconds = _sampled(source)
    heights, widths = zip(*sizes, strict=True)
    return (
        Facts(
            counts=tuple(counts.tolist()),
            trained=np.bincount(table.labels[trained], minlength=len(table.classes)),
            train=len(train),
            val=len(val),
            test=len(test),
            side=(int(statistics.median(heights)), int(statistics.median(widths))),
            aspect=statistics.median(max(size) / min(size) for size in sizes),  # upright or not
            longest=max(*heights, *widths),
            same=len(set(sizes)) == 1,
            channels=data.channels or (1 if grey else 3),
            seconds=seconds,
        ),
        data,
    )


def _sampled(source: Source) -> tuple[list[tuple[int, int]], bool, float]:
    """(height, width) of some images, whether all are grey, and seconds to decode one.

    Unreadable images are skipped here, and reported when the store is built.
    """
    sizes: list[tuple[int, int]] = []
    rules = PreprocessRules(224, 3, store_size=504)
    grey, decoded, spent = True, 0, 0.0
    for item in source.some(_SAMPLE):  # one at a time, since an image may have many megabytes
        began = time.perf_counter()
        with suppress(DataError):
            size, one_grey = probe(item)
            sizes.append(size)
            grey = grey and one_grey
            if spent < _SAMPLE_SECONDS:
                decode(item, rules)
                decoded += 1
                spent += time.perf_counter() - began
    if not sizes:
        raise DataError(
            f"{source.name}: none of the images that were looked at can be read; `kitae data check` names them"
        )
    return sizes, grey, spent / max(decoded, 1)


def framing(facts: Facts, given: DataSpec, *, pretrained: bool) -> dict[str, Any]:
    """The fields of `data` that choose what evaluation sees of a picture, unless `given` sets them."""
    if facts.tiny or given.resize != "crop" or given.crop_pct != 1:
        return {}
    nearly_square = facts.aspect < _NEARLY_SQUARE
    return {"crop_pct": _CROP_PCT} if pretrained and nearly_square else {"resize": "squash"}


def framed(data: DataSpec, size: int, *, resize: bool = False) -> DataSpec:
    """The spec; for photographs and images of several sizes, if it has no `image_size`, with one and a plan's framing.

    Args:
        size: pixels of photographs.
        resize: `resize` is given, and kept.
    """
    if data.image_size is not None or data.source.startswith("webdataset"):
        return data
    facts, _ = look(data, fraction=True)
    if facts.same and (facts.tiny or facts.longest <= size):
        return data
    side = facts.square if facts.tiny else size
    return data.model_copy(update={"image_size": side, **({} if resize else framing(facts, data, pretrained=False))})
