"""How an image becomes uint8 [C, H, W]: the rules that a store, a run and an exported file keep."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

from kitae.errors import DataError

Resize = Literal["crop", "squash", "pad"]
Depth = Literal[8, 10, 12, 16]
Size: TypeAlias = "int | tuple[int, int]"
"""Pixels of a square, or (height, width)."""

DEPTHS: tuple[Depth, ...] = (8, 10, 12, 16)
VERSION = 3  # the newest; rules are written as the oldest version that can express them
_KNOWN = {1: 3, 2: 5, 3: 6}  # version -> how many of the fields below it has, from the first one
_MAX_SIDE = 16384


@dataclass(frozen=True)
class PreprocessRules:
    """How an image becomes uint8 [channels, height, width]; travels in the metadata of an exported model.

    Attributes:
        image_size: pixels of a square, or (height, width).
        channels: 1 or 3.
        resize: `crop`, `squash` or `pad`, see `kitae.preprocess`.
        depth: significant bits of images of more than 8 bits a channel; 16 keeps their high byte.
        store_size: the whole picture is first reduced to the smallest size that covers the target scaled to a short
            side of `store_size` pixels; None resizes directly.
        crop_pct: share in (0, 1] of the sides that `crop` and `squash` keep, around the centre.

    Raises:
        DataError: a value is outside its range.
    """

    image_size: Size
    channels: Literal[1, 3] = 3
    resize: Resize = "crop"
    depth: Depth = 16
    store_size: int | None = None
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        size = self.image_size
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        whole = len(sides) == 2 and all(map(_is_side, sides))
        self._check("image_size", whole, f"an integer in [1, {_MAX_SIDE}] or two of these")
        object.__setattr__(self, "image_size", sides[0] if sides[0] == sides[1] else sides)
        self._check("channels", self.channels in (1, 3), "1 or 3")
        self._check("resize", self.resize in ("crop", "squash", "pad"), "crop, squash or pad")
        self._check("depth", self.depth in DEPTHS, "8, 10, 12 or 16")
        covers = self.store_size is None or (_is_side(self.store_size) and self.store_size >= min(sides))
        self._check("store_size", covers, f"an integer in [{min(sides)} (of image_size), {_MAX_SIDE}]")
        share = isinstance(self.crop_pct, int | float) and 0 < self.crop_pct <= 1
        self._check("crop_pct", share, "above 0 and at most 1")
        self._check("crop_pct", self.crop_pct == 1 or self.resize != "pad", "1 with resize pad (the whole image)")

    def _check(self, name: str, fits: bool, rule: str) -> None:
        if not fits:
            raise DataError(f"{name} must be {rule}, not {getattr(self, name)!r}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return sides(self.image_size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (self.channels, *self.size)

    @property
    def cover(self) -> tuple[float, float]:
        """(height, width) that a picture must cover before the final resize."""
        height, width = self.size
        factor = 1.0 if self.store_size is None else self.store_size / min(height, width)
        factor = max(factor, 1 / self.crop_pct)
        return height * factor, width * factor

    @property
    def version(self) -> int:
        """The oldest version that can express these rules."""
        if self.crop_pct != 1:
            return 3
        return 1 if (self.depth, self.store_size) == (16, None) and isinstance(self.image_size, int) else 2

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping for JSON."""
        mapping = dict(itertools.islice(asdict(self).items(), _KNOWN[self.version]))
        if not isinstance(self.image_size, int):
            mapping["image_size"] = list(self.image_size)
        return {**mapping, "version": self.version}

    @classmethod
    def from_dict(cls, mapping: dict[str, Any]) -> PreprocessRules:
        """The inverse of `to_dict`. Raises DataError: an unknown or missing key, or an unknown version."""
        mapping = dict(mapping)
        version = mapping.pop("version", 1)
        if version not in range(1, VERSION + 1):
            raise DataError(
                f"preprocessing rules version {version!r} is unknown, this Kitae knows 1 to {VERSION}; upgrade kitae"
            )
        known = {field.name for field in fields(cls)[: _KNOWN[version]]}
        if unknown := sorted(set(mapping) - known):
            raise DataError(f"unknown preprocessing rule {unknown[0]!r}; valid: {', '.join(sorted(known))}")
        if "image_size" not in mapping:
            raise DataError("preprocessing rules lack image_size")
        return cls(**mapping)


def sides(size: Size) -> tuple[int, int]:
    """(height, width) of an image size."""
    return (size, size) if isinstance(size, int) else size


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_SIDE


def depth_of(highest: int) -> Depth:
    """The bits of images whose highest level this is: 8, 10, 12 or 16."""
    return next(depth for depth in DEPTHS if highest < 1 << depth or depth == 16)
