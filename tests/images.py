"""Small labelled images made on the fly: separable, so that a net learns them in seconds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image


def picture(label: int, number: int, size: tuple[int, int] = (32, 32), classes: int = 10) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]: a colour of the class with noise, and a bright bar that is darker at the bottom."""
    rng = np.random.default_rng(1000 * label + number)
    angle = 2 * np.pi * label / classes
    colour = 128 + 90 * np.cos(angle + np.array([0, 2.1, 4.2]))
    image = np.broadcast_to(colour, (*size, 3)) + rng.normal(0, 20, (*size, 3))
    image[: size[0] // 4] += 40
    return np.clip(image, 0, 255).astype(np.uint8)


def turned_by(orientation: int) -> Image.Exif:
    """EXIF data that say how an image is stored: 1 is upright, 6 is turned to the left."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def encode(image: Image.Image | NDArray[np.generic], kind: str = "PNG", **options: object) -> bytes:
    """The content of an image's file."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def write_parquet(
    path: Path, *, train: int = 20, test: int = 5, classes: int = 10, size: int = 32, test_noise: int | None = None
) -> Path:
    """`train` and `test` images a class; `test_noise` replaces the test pixels by noise of that seed."""
    rows = []
    for split, count in (("train", train), ("test", test)):
        for label in range(classes):
            for number in range(count):
                pixels = picture(label, number + (1000 if split == "test" else 0), (size, size), classes)
                if split == "test" and test_noise is not None:
                    pixels = np.random.default_rng(test_noise + number).integers(0, 256, pixels.shape, np.uint8)
                rows.append({"image": encode(pixels), "label": label, "class_name": f"class {label}", "split": split})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_folder(path: Path, *, train: int = 12, classes: int = 3) -> Path:
    """Photographs as people have them: sizes and orientations mixed, JPEG with EXIF, PNG with alpha, grey."""
    for label in range(classes):
        folder = path / f"class {label}"
        folder.mkdir(parents=True)
        for number in range(train):
            size = ((48, 64), (64, 48), (40, 40))[number % 3]
            image = Image.fromarray(picture(label, number, size, classes))
            if number % 4 == 1:
                image.putalpha(255)
                image.save(folder / f"{number}.png")
            elif number % 4 == 2:
                turned = image.transpose(Image.Transpose.ROTATE_90)
                turned.save(folder / f"{number}.jpg", exif=turned_by(6), quality=95)
            else:
                image.save(folder / f"{number}.jpg", quality=95)
    return path


DRAWN_BY = "3.11"  # matplotlib, which drew the committed pictures; 3.10 draws all text differently
BLOCK = 16  # pixels


def assert_alike(pictures: Sequence[Path], committed: Path) -> None:
    """Each picture is the one of the same name in a folder; only its size is compared if another matplotlib drew it.

    A mean over the picture would not do: a point that moves by a tenth of an axis changes it by less than a level.
    """
    for file in pictures:
        with Image.open(file) as new, Image.open(committed / file.name) as old:
            assert new.size == old.size, file.name
            difference = np.abs(np.asarray(new.convert("L"), np.int16) - np.asarray(old.convert("L"), np.int16))
        height, width = (side // BLOCK for side in difference.shape)
        blocks = difference[: height * BLOCK, : width * BLOCK].reshape(height, BLOCK, width, BLOCK).mean((1, 3))
        if version("matplotlib").startswith(DRAWN_BY):
            assert blocks.max() < 8, f"{file.name}: make figures"
