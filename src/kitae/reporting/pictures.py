"""Pictures inside a page, as data URIs."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kitae.errors import KitaeError

_MAX_PICTURES, _MAX_PICTURE_BYTES = 60, 20_000_000


@dataclass(frozen=True)
class Picture:
    """A PNG: its name without suffix, its data URI, and its size in pixels."""

    name: str
    source: str
    width: int
    height: int


def read_picture(path: Path) -> Picture:
    """A PNG file.

    Raises:
        KitaeError: not a PNG, or too large for a page.
    """
    try:
        if path.stat().st_size > _MAX_PICTURE_BYTES:
            raise KitaeError(f"{path}: larger than {_MAX_PICTURE_BYTES} bytes, too large for a page")
        content = path.read_bytes()
    except OSError as error:
        raise KitaeError(f"{path}: cannot be read ({error.strerror})") from error
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 33:
        raise KitaeError(f"{path}: is not a PNG; delete it and report again")
    width, height = struct.unpack(">II", content[16:24])
    source = "data:image/png;base64," + base64.b64encode(content).decode()
    return Picture(path.stem.replace("-", "_"), source, width, height)


def read_pictures(folder: Path, first: Sequence[str] = ()) -> list[Picture]:
    """Every PNG of a folder and of its `figures`; those named in `first` come first."""
    order = list(first)
    files = sorted(folder.glob("*.png")) + sorted((folder / "figures").glob("*.png"))
    files.sort(key=lambda file: order.index(file.stem) if file.stem in order else len(order))
    return [read_picture(file) for file in files[:_MAX_PICTURES]]
