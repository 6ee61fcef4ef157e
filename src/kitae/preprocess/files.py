"""Opening image files: the supported formats, headers, and errors that name the file."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
import threading
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, Jpeg2KImagePlugin, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401

from kitae.errors import DataError, KitaeError, one_line
from kitae.files import user_path

with contextlib.suppress(ImportError):  # Pillow reads AVIF from 11.3 on
    from PIL import AvifImagePlugin  # noqa: F401

Encoded: TypeAlias = "bytes | str | Path"  # the content of a file, or its path
ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8] | NDArray[np.uint16]"
"""A path (of a file or a folder), an open binary file, bytes, a Pillow image, or an array [H, W] or [H, W, C] of uint8.

It may be of any size, and is oriented, converted and resized as in training. A large JPEG gives the same bits only as a
path or bytes: a Pillow image is decoded at full size, while training decodes at reduced size.
"""

Image.preinit()  # makes BMP, GIF, JPEG, PNG and PPM known; the imports above make the others known
# An allow-list: Pillow supports 40 more formats, some of which start other programs (EPS) or are rarely used.
_ALLOWED = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
FORMATS = tuple(name for name in _ALLOWED if name in Image.OPEN)
# HEIC files are photographs, but cannot be read: an error is better than silently ignoring them.
EXTENSIONS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".mpo", ".avif", ".heic", ".heif",
))  # fmt: skip
# Folders that systems make beside those of a user. Some hold images: thumbnails, or files that were deleted.
_OF_SYSTEMS = frozenset((
    "__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found",
))  # fmt: skip

_MOST_CROSSED = 10_000  # folders behind three links; of 12 that link to each other there are over ten million

# Errors of a busy machine or of a network disk. They say nothing about an image, which must not be left out for them.
# EIO is what most network disks say; a local disk is failing then, and the image must be removed by hand.
_PASSING = frozenset((
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EHOSTDOWN, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT,
))  # fmt: skip
_EXIF_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257  # tags of the sides as stored
_TURNED = (5, 6, 7, 8)  # orientations that exchange height and width
# Pillow keeps one byte of each 16-bit colour value; with the other raw mode of a pair it is the other byte.
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_OTHER_BYTE = {
    f"{mode};16{order}": f"{mode};16{other}" for mode in ("RGB", "RGBA") for order, other in _OTHER_ORDER.items()
}

_strict = threading.Lock()
_truncated: list[bool] = []  # one for each image that is being read: the program's own setting


@contextlib.contextmanager
def opened(source: Encoded, name: str = "") -> Iterator[ImageFile.ImageFile]:
    """An image of the allowed formats, its header read.

    Args:
        name: what errors call it; by default its path, or `image`.

    Raises:
        DataError: no such file, not an image, too large, or anything that goes wrong while it is open.
    """
    name = name or ("image" if isinstance(source, bytes) else str(source))
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with _never_half(), naming(name, source):
        if not isinstance(source, bytes):
            _require_file(source)
        with Image.open(file, formats=FORMATS) as image:
            yield image


def _require_file(path: str | Path) -> None:
    """Refuse what may never end, or never begin: a pipe that nobody writes to, a device."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # Pillow refuses a folder
        raise DataError("is a pipe or a device, not a file; copy its content to a file")


@contextlib.contextmanager
def _never_half() -> Iterator[None]:
    """Truncated files are errors, also in a program that has told Pillow to accept them."""
    with _strict:
        _truncated.append(_truncated[0] if _truncated else ImageFile.LOAD_TRUNCATED_IMAGES)
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        with _strict:
            given = _truncated.pop()
            if not _truncated:
                ImageFile.LOAD_TRUNCATED_IMAGES = given


@contextlib.contextmanager
def naming(name: str, source: Encoded) -> Iterator[None]:
    """Turn whatever Pillow raises on a bad file (nearly any type of exception) into one line that names the file.

    Raises:
        DataError: the file is bad.
        KitaeError: the machine or the network failed, not the file.
    """
    name = on_one_line(name)
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise DataError(f"{name}: {error.strerror}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: {_not_an_image(source)}") from error
    except MemoryError as error:
        raise KitaeError(f"{name}: not enough memory to decode it; free some, or remove the image") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _PASSING:
            raise KitaeError(f"{name}: cannot be read now ({error.strerror}); try again, or remove it") from error
        raise DataError(f"{name}: cannot be decoded ({one_line(error)})") from error


def on_one_line(name: str) -> str:
    """A name as errors show it: `?` for control characters, ends of lines, and bytes that are not UTF-8."""
    return "".join("?" if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in name)


def _not_an_image(source: Encoded) -> str:
    if isinstance(source, bytes):
        head = source[:16]
    else:
        with open(source, "rb") as file:
            head = file.read(16)
    if not head:
        return "the file is empty"
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"heif"):
        return "HEIC is not supported; convert it to JPEG or PNG"
    avif = ", AVIF" if "AVIF" in FORMATS else "; AVIF from Pillow 11.3 on"
    return f"not an image, or damaged at its start (supported: JPEG, PNG, WebP, BMP, GIF, TIFF, PNM, JPEG 2000{avif})"


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) after applying the orientation; as stored, if a PNG has its orientation after the pixels."""
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # newer versions of Pillow have turned its size already
        width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
    known = width != height and (image.format != "PNG" or "exif" in image.info)
    return (width, height) if known and orientation(image) in _TURNED else (height, width)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 if the image is upright or has none."""
    try:
        number = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # a broken EXIF block in a sound image: it has no orientation to apply
        return 1
    return number if isinstance(number, int) else 1


def low_bytes(image: ImageFile.ImageFile, source: Encoded) -> NDArray[np.uint8] | None:
    """The low bytes of 16-bit colour. Pillow only keeps the high bytes, so the file is read a second time.

    None for other images, and for forms of 16-bit colour whose low bytes Pillow cannot read (with a transparent colour,
    grey with alpha, planes).
    """
    if not any(_raw_mode(tile) in _OTHER_BYTE for tile in image.tile) or "transparency" in image.info:
        return None
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as again:
        tiles: list[Any] = []
        for tile in again.tile:
            other = _OTHER_BYTE.get(_raw_mode(tile))
            if other is None:
                return None
            *place, about = tile
            make = getattr(tile, "_make", tuple)  # before Pillow 11, a tile is a tuple without names
            tiles.append(make((*place, (other, *about[1:]) if isinstance(about, tuple) else other)))
        again.tile = tiles
        return np.asarray(again)


def _raw_mode(tile: Any) -> str:
    about = tile[3]
    mode = about[0] if isinstance(about, tuple) and about else about
    return mode if isinstance(mode, str) else ""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over for its name: it begins with a dot, or a system made the folder."""
    return name.startswith((".", "__MACOSX")) or name.lower() in _OF_SYSTEMS


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image, and not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def visible_files(folder: Path) -> Iterator[Path]:
    """All files of a folder at any depth, in no order. Hidden files and folders are skipped, links to folders followed.

    Raises:
        DataError: a folder cannot be read, or links lead to each other's folders in too many ways.
    """
    # Each with its real path, those of the folders that it lies in, and the number of links on the way. Not by
    # recursion, since folders may be nested more deeply than Python's calls.
    start: tuple[str, str, frozenset[str], int] = (os.fspath(folder), os.path.realpath(folder), frozenset(), 0)
    waiting = [start]
    crossed = 0
    while waiting:
        place, real, above, links = waiting.pop()
        if real in above:  # a link to a folder that it is in
            continue
        crossed += links > 2
        if crossed > _MOST_CROSSED:
            raise DataError(f"{place}: links lead to each other's folders in too many ways; remove some of the links")
        try:
            entries = [entry for entry in os.scandir(place) if not is_hidden(entry.name)]
        except OSError as error:
            raise DataError(f"{error.filename}: {error.strerror}") from error
        for entry in entries:
            # DirEntry.is_dir follows links as well, but raises for a link to itself.
            inside = os.path.join(real, entry.name)
            if entry.is_dir(follow_symlinks=False):
                waiting.append((entry.path, inside, above | {real}, links))
            elif entry.is_symlink() and os.path.isdir(inside):
                waiting.append((entry.path, os.path.realpath(inside), above | {real}, links + 1))
            else:
                yield Path(entry.path)


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder at any depth, sorted. Finds and raises as `visible_files`."""
    return sorted((path for path in visible_files(folder) if is_image(path.name)), key=lambda path: path.as_posix())


def list_images(paths: Iterable[str | Path]) -> list[Path]:
    """Image files for prediction: a file is taken as it is, a folder gives its image files at any depth, sorted.

    Hidden files and folders inside a folder are ignored. A file given twice is returned twice.

    Raises:
        DataError: a path does not exist, or a folder has no image.
    """
    found: list[Path] = []
    for path in map(user_path, paths):
        if os.path.isdir(path):  # unlike Path.is_dir, it never raises, even if the name is too long
            inside = image_files(path)
            if not inside:
                raise DataError(f"{path}: no images in this folder")
            found += inside
        elif os.path.exists(path):
            found.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    return found
