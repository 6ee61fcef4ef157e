"""Test-time augmentation: views of the same images, whose predicted probabilities are averaged.

none   the images
flip   the images, mirrored
shift  the images, moved by a 16th of the side left, right, up and down (edges repeated)
scale  the images, zoomed in and out by a 16th of the side on each side (mirrored outside)
full   all of these, and the mirror image of each
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

from kitae.augment import functional as f
from kitae.augment.checks import as_batch
from kitae.errors import AugmentError

Kind = Literal["none", "flip", "shift", "scale", "full"]


def views(images: Any, kind: Kind) -> Iterator[Any]:
    """The views of a batch, uint8 [N, C, H, W], NumPy or torch: each of the same shape and kind, the images first.

    Raises:
        AugmentError: an unknown kind, or images that are not such a batch.
    """
    if kind not in get_args(Kind):
        raise AugmentError(f"unknown test-time augmentation {kind!r}; valid: {', '.join(get_args(Kind))}")
    return _views(as_batch(images, "nchw"), kind)


def _views(images: Any, kind: Kind) -> Iterator[Any]:
    yield images
    if kind in ("flip", "full"):
        yield f.horizontal_flip(images)
    height, width = images.shape[2:]
    down, right = max(round(height / 16), 1), max(round(width / 16), 1)
    moved: list[tuple[Any, ...]] = []
    if kind in ("shift", "full"):
        for dy, dx in ((0, right), (0, -right), (down, 0), (-down, 0)):
            moved.append((down + dy, right + dx, height, width, (right, down), "edge"))
    if kind in ("scale", "full"):
        inner = (height - 2 * down, width - 2 * right)
        if min(inner) > 0:
            moved.append((down, right, *inner, 0, "zero"))
        mirrored = "reflect" if down < height and right < width else "edge"
        moved.append((0, 0, height + 2 * down, width + 2 * right, (right, down), mirrored))
    for top, left, h, w, padding, mode in moved:
        view = f.crop(images, top, left, h, w, padding, mode)
        if (h, w) != (height, width):
            view = f.resize(view, (height, width))
        yield view
        if kind == "full":
            yield f.horizontal_flip(view)
