"""Small shards to read."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.images import encode

Sample = tuple[str, bytes]  # name in the tar file, content


def packed(files: Iterable[Sample]) -> bytes:
    """A tar file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def pack(path: Path, files: Iterable[Sample]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(files))
    return path


def image(number: int, label: int, side: int = 12) -> NDArray[np.uint8]:
    """Bright or dark by its label, and unlike any other."""
    rng = np.random.default_rng(number)
    return (rng.integers(0, 90, (side, side + number % 3, 3)) + 80 * label).astype(np.uint8)


def samples(first: int, count: int, classes: int = 2) -> list[Sample]:
    """`count` images and labels."""
    return [
        part
        for number in range(first, first + count)
        for part in (
            (f"{number:05d}.png", encode(image(number, number % classes))),
            (f"{number:05d}.cls", str(number % classes).encode()),
        )
    ]


def shards(folder: Path, count: int = 4, each: int = 15, name: str = "set") -> str:
    """Shards NAME-0.tar and so on in a folder; what data.source says of them."""
    for number in range(count):
        pack(folder / f"{name}-{number}.tar", samples(number * each, each))
    return f"webdataset:{folder}/{name}-{{0..{count - 1}}}.tar"
