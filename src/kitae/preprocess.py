"""From an encoded image to uint8 [C, H, W]: the one preprocessing of training, calibration, evaluation and serving.

NumPy and Pillow only, so that the runtime of an exported model runs the very same code. The rules:

    format      JPEG, PNG, WebP, BMP, GIF (first frame), TIFF, PNM, JPEG 2000, AVIF; nothing else is even tried
    size        more than MAX_PIXELS is refused before a pixel is decoded
    truncated   is an error, never half an image
    JPEG        read at 1/2, 1/4 or 1/8 scale (libjpeg's scaled DCT) where that leaves twice the target on both sides,
                or one and a half times what a store keeps
    orientation the EXIF orientation is applied, all eight of them
    depth       of 16 bit the high byte, or with fewer significant bits (`depth`) the highest 8 of these, levels above
                are white; 1 bit becomes 0 and 255; float pixels have no fixed range and are refused
    alpha       composited on white, also where it hides in a palette or a transparent colour
    colour      palette, CMYK and YCbCr become RGB (embedded colour profiles are not applied); grey is ITU-R BT.601 luma
    store       with `store_size`, the whole picture is first reduced to that size, as a store keeps it (Lanczos: it
                loses the least sharpness, and what follows reduces again); a smaller picture stays as it is
    resize      bilinear with antialiasing: `crop` takes the largest centred window of the target's shape, `squash`
                ignores the aspect, `pad` fits the image into the target and centres it on black; an image of the right
                size is left untouched
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from kitae.errors import DataError, one_line

with contextlib.suppress(ImportError):  # Pillow reads AVIF from 11.3 on
    from PIL import AvifImagePlugin  # noqa: F401

Resize = Literal["crop", "squash", "pad"]
Depth = Literal[8, 10, 12, 16]
Size: TypeAlias = "int | tuple[int, int]"
"""Pixels of a square, or (height, width)."""

DEPTHS: tuple[Depth, ...] = (8, 10, 12, 16)
_MAX_SIDE = 16384
VERSION = 2  # the newest; rules that version 1 could say are written as version 1
_FIELDS_OF_1 = ("image_size", "channels", "resize")
MAX_PIXELS = 178_956_970  # where Pillow itself refuses; phones of 200 megapixels deliver 12 or 50 unless told otherwise

# An allow-list: Pillow knows 40 formats more, some of which start other programs (EPS) or are parsers of little use.
_PLUGINS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    BmpImagePlugin.BmpImageFile,
    GifImagePlugin.GifImageFile,
    TiffImagePlugin.TiffImageFile,
    PpmImagePlugin.PpmImageFile,
    Jpeg2KImagePlugin.Jpeg2KImageFile,
)
FORMATS: tuple[str, ...] = tuple(plugin.format for plugin in _PLUGINS) + (("AVIF",) if "AVIF" in Image.OPEN else ())
# HEIC is not read, but a photograph: better a clear error than a file silently left out.
EXTENSIONS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".mpo", ".avif", ".heic", ".heif",
))  # fmt: skip

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8] | NDArray[np.uint16]"

_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow keeps one byte of each 16-bit colour value; with the other raw mode of a pair it is the other byte.
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_OTHER_BYTE = {
    f"{mode};16{order}": f"{mode};16{other}" for mode in ("RGB", "RGBA") for order, other in _OTHER_ORDER.items()
}
_GREY_MODES = ("1", "L", "LA", "La", "I")
_TURNED = (5, 6, 7, 8)  # orientations that exchange height and width
# A JPEG keeps at least so many times the target's side before it is resized: at once, or to what a store keeps. The
# second was chosen by the sharpness of small crops: with 1.5 they lose 8 % at most, with 1.25 they lost 10 %.
_DRAFT_GAP, _STORE_DRAFT_GAP = 2, 1.5
_DRAFTS = ("JPEG", "MPO")  # formats that Pillow reads at reduced scale
_LITTLE = 1 << 20  # bytes that need no asking
_DECODE_BYTES = 12  # that a decoded pixel takes at most, with copies: RGBA, an upright one, one on white
_PROGRESSIVE_BYTES = 6  # of a progressive JPEG, a pixel of its full size: libjpeg keeps all coefficients


@dataclass(frozen=True)
class PreprocessRules:
    """How an image becomes uint8 [channels, height, width]; travels in the metadata of an exported model.

    Attributes:
        image_size: pixels of a square, or (height, width).
        channels: 1 or 3.
        resize: `crop`, `squash` or `pad`, see above.
        depth: significant bits of images of more than 8 bits a channel; 16 keeps their high byte.
        store_size: the whole picture is first reduced until it only just covers the target enlarged to a short side of
            so many pixels; None resizes at once.

    Raises:
        DataError: a value is outside its range.
    """

    image_size: Size
    channels: Literal[1, 3] = 3
    resize: Resize = "crop"
    depth: Depth = 16
    store_size: int | None = None

    def __post_init__(self) -> None:
        size = self.image_size
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        if len(sides) != 2 or not all(map(_is_side, sides)):
            raise DataError(f"image_size must be an integer in [1, {_MAX_SIDE}] or two of these, not {size!r}")
        object.__setattr__(self, "image_size", sides[0] if sides[0] == sides[1] else sides)
        if self.channels not in (1, 3):
            raise DataError(f"channels must be 1 or 3, not {self.channels!r}")
        if self.resize not in ("crop", "squash", "pad"):
            raise DataError(f"resize must be crop, squash or pad, not {self.resize!r}")
        if self.depth not in DEPTHS or isinstance(self.depth, bool):
            raise DataError(f"depth must be 8, 10, 12 or 16, not {self.depth!r}")
        if self.store_size is not None and not (_is_side(self.store_size) and self.store_size >= min(self.size)):
            raise DataError(
                f"store_size must be an integer in [{min(self.size)} (of image_size), {_MAX_SIDE}], "
                f"not {self.store_size!r}"
            )

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
        return height * factor, width * factor

    @property
    def version(self) -> int:
        """The oldest version of the rules that says the same."""
        return 1 if (self.depth, self.store_size) == (16, None) and isinstance(self.image_size, int) else VERSION

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping for JSON."""
        mapping = asdict(self)
        if self.version == 1:
            mapping = {name: mapping[name] for name in _FIELDS_OF_1}
        elif not isinstance(self.image_size, int):
            mapping["image_size"] = list(self.image_size)
        return {**mapping, "version": self.version}

    @classmethod
    def from_dict(cls, mapping: dict[str, Any]) -> PreprocessRules:
        """The inverse of `to_dict`.

        Raises:
            DataError: a key is unknown or missing, or the version is not one that this Kitae knows.
        """
        mapping = dict(mapping)
        version = mapping.pop("version", 1)
        if version not in range(1, VERSION + 1):
            raise DataError(f"preprocessing rules version {version!r} are unknown: this Kitae knows 1 to {VERSION}")
        known = set(_FIELDS_OF_1 if version == 1 else cls.__dataclass_fields__)
        if unknown := sorted(set(mapping) - known):
            raise DataError(f"unknown preprocessing rule {unknown[0]!r}: known are {', '.join(sorted(known))}")
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


class Hooks:
    """What the builder of a store is told while an image is read; here nothing happens."""

    def on_size(self, height: int, width: int) -> None:
        """Its own size, upright, before a pixel is decoded. What this raises ends the reading."""

    def on_level(self, highest: int) -> None:
        """The highest level of an image of more than 8 bits."""

    def room(self, size: int) -> AbstractContextManager[None]:
        """Entered while about `size` bytes are needed to decode it; not for small images."""
        return contextlib.nullcontext()


def decode(source: bytes | str | Path, rules: PreprocessRules, name: str = "") -> NDArray[np.uint8]:
    """Decode and prepare one image.

    Args:
        source: the encoded bytes, or the path of a file.
        rules: size, channels, resize, depth and store size.
        name: what errors call the image; by default the path.

    Returns:
        uint8 [C, H, W], C-contiguous.

    Raises:
        DataError: the file cannot be opened, is no image, is truncated or too large; the message starts with the name.
    """
    return view(picture(source, rules, name), rules)


def picture(
    source: bytes | str | Path | NDArray[Any], rules: PreprocessRules, name: str = "", hooks: Hooks | None = None
) -> NDArray[np.uint8]:
    """An image as a store keeps it: the whole one with `store_size`, else at the size of `image_size`.

    Args:
        source: the encoded bytes, the path of a file, or an array as of `from_array`.
        rules, name: as of `decode`.
        hooks: told what is found on the way.

    Returns:
        uint8 [C, h, w], C-contiguous; `view` makes [C, H, W] of it.

    Raises:
        DataError: as `decode` and `from_array`.
    """
    hooks = hooks or Hooks()
    if isinstance(source, np.ndarray):
        image = _from_array(source, rules.depth, hooks)
        hooks.on_size(image.height, image.width)
        return _reduced(_flatten(image, rules.depth), rules)
    name = name or _default_name(source)
    with _open(source, name) as opened:
        width, height = opened.size
        hooks.on_size(*_upright_size(opened))
        with _naming(name, source):
            needed = _DECODE_BYTES * width * height
            if opened.format in _DRAFTS:
                gap = _DRAFT_GAP if rules.store_size is None else _STORE_DRAFT_GAP
                side = math.ceil(gap * max(rules.cover))
                opened.draft(None, (side, side))
                needed = _DECODE_BYTES * opened.width * opened.height
                if opened.info.get("progressive"):
                    needed += _PROGRESSIVE_BYTES * width * height
            if needed < _LITTLE:
                return _reduced(_flatten(opened, rules.depth, _low_bytes(opened, source), hooks), rules)
            with hooks.room(needed):
                return _reduced(_flatten(opened, rules.depth, _low_bytes(opened, source), hooks), rules)


def view(pixels: NDArray[np.uint8], rules: PreprocessRules) -> NDArray[np.uint8]:
    """What a network sees of a picture that a store keeps: uint8 [C, h, w] to [C, H, W], C-contiguous."""
    channels, height, width = pixels.shape
    if (height, width) == rules.size:
        return np.ascontiguousarray(pixels)
    pixels = np.ascontiguousarray(pixels)
    out = np.empty((channels, *rules.size), np.uint8)
    for channel in range(channels):
        band = Image.frombuffer("L", (width, height), pixels[channel], "raw", "L", 0, 1)
        out[channel] = np.asarray(_resized(band, rules))
    return out


def windowed(
    source: bytes | str | Path,
    window: Callable[[int, int], tuple[int, int, int, int]],
    size: tuple[int, int],
    channels: int,
    depth: Depth = 16,
    name: str = "",
) -> NDArray[np.uint8]:
    """One window of an image, to be resized to `size`; for random crops of encoded images.

    A JPEG is read at reduced scale where that leaves the window twice the target on both sides, and the window is then
    rounded to whole pixels of that scale.

    Args:
        window: from the image's upright height and width to the window's top, left, height and width.
        size: (height, width) that the window will be resized to.
        name: as of `decode`.

    Returns:
        uint8 [channels, height, width], C-contiguous.

    Raises:
        DataError: as `decode`.
    """
    name = name or _default_name(source)
    with _open(source, name) as opened, _naming(name, source):
        if opened.format in _DRAFTS:
            height, width = _upright_size(opened)
            top, left, tall, wide = window(height, width)
            scale = _DRAFT_GAP * max(size[0] / tall, size[1] / wide)
            if scale < 1:
                opened.draft(None, (math.ceil(opened.width * scale), math.ceil(opened.height * scale)))
            flat = _flatten(opened, depth)
        else:  # a PNG may say only after its pixels how it is turned
            flat = _flatten(opened, depth, _low_bytes(opened, source))
            height, width = flat.height, flat.width
            top, left, tall, wide = window(height, width)
    down, across = flat.height / height, flat.width / width
    first, start = round(top * down), round(left * across)
    flat = flat.crop((start, first, max(start + 1, round((left + wide) * across)),
                      max(first + 1, round((top + tall) * down))))  # fmt: skip
    mode = "L" if channels == 1 else "RGB"
    pixels = np.asarray(flat if flat.mode == mode else flat.convert(mode))
    return np.ascontiguousarray(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))


def probe(source: bytes | str | Path, name: str = "") -> tuple[tuple[int, int], str]:
    """(height, width) and Pillow mode of an image, from its header: no pixel is decoded. Raises as `decode`."""
    with _open(source, name or _default_name(source)) as image:
        return _upright_size(image), image.mode


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) once the orientation is applied; of a PNG that says it only after its pixels, as it is stored."""
    width, height = image.size
    known = width != height and (image.format != "PNG" or "exif" in image.info)
    return (width, height) if known and _orientation(image) in _TURNED else (height, width)


@dataclass(frozen=True)
class Flat:
    """An image decoded at its own size, upright, without alpha.

    Attributes:
        image: mode L or RGB; of more than 8 bits, the highest 8 that its own levels need.
        mode: the Pillow mode it was stored in.
        highest: level of an image of more than 8 bits; None of others.
    """

    image: Image.Image
    mode: str
    highest: int | None


def flattened(source: bytes | str | Path | NDArray[Any], name: str = "") -> Flat:
    """An image for looking at (checks, contact sheets); what a model sees comes from `decode`. Raises as `decode`."""
    seen = _Level()
    if isinstance(source, np.ndarray):
        image = _from_array(source, None, seen)
        mode = image.mode if seen.highest is None else "I;16"
        image = _flatten(image)
    else:
        name = name or _default_name(source)
        with _open(source, name) as opened, _naming(name, source):
            mode = opened.mode
            low = _low_bytes(opened, source)
            image = _flatten(opened, None, low, seen)
    image = image if image.mode == "L" else image.convert("L" if is_grey_mode(image.mode) else "RGB")
    return Flat(image, mode, seen.highest)


class _Level(Hooks):
    highest: int | None = None

    def on_level(self, highest: int) -> None:
        self.highest = highest


def is_grey_mode(mode: str) -> bool:
    """Whether a Pillow mode holds no colour (1 bit, grey, grey with alpha, 16 and 32 bit)."""
    return mode in _GREY_MODES or mode.startswith("I;16")


def prepare(image: Image.Image, rules: PreprocessRules) -> NDArray[np.uint8]:
    """Apply the rules to an opened Pillow image: uint8 [C, H, W], C-contiguous.

    Raises:
        DataError: the pixels are of a kind without a rule (32-bit float).
        Exception: what Pillow raises on a broken file; `decode` turns it into a DataError.
    """
    return view(_reduced(_flatten(image, rules.depth), rules), rules)


def _reduced(image: Image.Image, rules: PreprocessRules) -> NDArray[np.uint8]:
    """A flat image as a store keeps it."""
    image = image.convert("L" if rules.channels == 1 else "RGB")  # a copy or the same object; never changes its input
    if rules.store_size is None:
        image = _resized(image, rules)
    else:
        tall, wide = rules.cover
        factor = max(tall / image.height, wide / image.width)
        if factor < 1:
            size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
            image = image.resize(size, Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if rules.channels == 1 else pixels.transpose(2, 0, 1))


def from_array(array: NDArray[Any], rules: PreprocessRules) -> NDArray[np.uint8]:
    """Prepare pixels that are already decoded.

    Args:
        array: uint8, uint16 or bool; [H, W], or [H, W, C] with C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA).
        rules: as of `decode`.

    Returns:
        uint8 [C, H, W], C-contiguous.

    Raises:
        DataError: another dtype or shape.
    """
    return prepare(_from_array(array, rules.depth), rules)


def _from_array(array: NDArray[Any], depth: Depth | None, hooks: Hooks | None = None) -> Image.Image:
    array = np.asarray(array)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype not in (np.uint8, np.uint16):
        raise DataError(f"an image array must be uint8, uint16 or bool, not {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (2, 3, 4)):
        raise DataError(f"an image array must be [H, W] or [H, W, 1 to 4], not {list(array.shape)}")
    if array.dtype == np.uint16:
        array = _eight_bits(array, depth, hooks)
    return Image.fromarray(np.ascontiguousarray(array))


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image, and not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder at any depth, sorted; hidden files and folders are passed over.

    Raises:
        DataError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: {error.strerror}") from error

    found: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if is_image(name)]
    return sorted(found, key=lambda path: path.as_posix())


def list_images(paths: Iterable[str | Path]) -> list[Path]:
    """Image files for prediction: a file is taken as it is, a folder gives its image files at any depth, sorted.

    Hidden files and folders inside a folder are passed over. A file named twice comes twice.

    Raises:
        DataError: a path does not exist, or a folder has no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = image_files(path)
            if not inside:
                raise DataError(f"{path}: no images in this folder")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    return found


def one_or_several(images: Any) -> list[Any]:
    """A list of images from one image (which may itself be iterable, as a path is) or several.

    A path of a folder gives its images, as `list_images` does.
    """
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)):
        images = [images]
    elif not isinstance(images, Iterable):
        raise DataError(
            f"images are paths, bytes, Pillow images or uint8 arrays, one or several, not {type(images).__name__}"
        )
    found: list[Any] = []
    for image in images:
        folder = isinstance(image, (str, os.PathLike)) and os.path.isdir(image)
        found += list_images([image]) if folder else [image]
    return found


def paths_of(images: Sequence[Any]) -> tuple[str, ...]:
    """The images' paths, if all of them are paths; else nothing."""
    if all(isinstance(image, (str, os.PathLike)) for image in images):
        return tuple(os.fspath(image) for image in images)
    return ()


def load(image: ImageLike, rules: PreprocessRules, name: str = "image") -> NDArray[np.uint8]:
    """Prepare an image in any form: a path, encoded bytes, a Pillow image, or an array.

    Args:
        image: an array is uint8 or uint16, [H, W] or [H, W, C] of any size; or uint8 [C, H, W] at exactly the model's
            size, taken as it is.
        name: what errors call an image that has no path.

    Returns:
        uint8 [C, H, W], C-contiguous.

    A Pillow image of 16-bit colour has lost its low bytes; give its path or bytes.

    Raises:
        DataError: it cannot be read, or is none of these.
    """
    if isinstance(image, (str, os.PathLike)):
        return decode(Path(image), rules)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return decode(bytes(image), rules, name)
    with _naming(name, b""):
        if isinstance(image, Image.Image):
            return prepare(image, rules)
        if isinstance(image, np.ndarray):
            if image.dtype not in (np.uint8, np.uint16):
                raise DataError(f"an array must be uint8 with values 0 to 255, or uint16, not {image.dtype}")
            ready = image.dtype == np.uint8 and image.shape == rules.shape
            return (
                np.ascontiguousarray(image) if ready and image.shape[2] not in (2, 3, 4) else from_array(image, rules)
            )
        raise DataError(f"an image is a path, bytes, a Pillow image or a uint8 array, not {type(image).__name__}")


def _default_name(source: bytes | str | Path) -> str:
    return "image" if isinstance(source, bytes) else str(source)


def _open(source: bytes | str | Path, name: str) -> ImageFile.ImageFile:
    with _naming(name, source):
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            image.close()
            raise DataError(f"{name}: {width} x {height} pixels are refused, the limit is {MAX_PIXELS:,}")
        return image


@contextlib.contextmanager
def _naming(name: str, source: bytes | str | Path) -> Iterator[None]:
    """Turn whatever Pillow raises on a bad file (nearly any type of exception) into one line that names the file."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    try:
        yield
    except DataError as error:
        if str(error).startswith(name):
            raise
        raise DataError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except (PermissionError, IsADirectoryError) as error:
        raise DataError(f"{name}: {error.strerror}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: {_not_an_image(source)}") from error
    except Exception as error:
        raise DataError(f"{name}: cannot be decoded ({one_line(error)})") from error


def _not_an_image(source: bytes | str | Path) -> str:
    if isinstance(source, bytes):
        head = source[:16]
    else:
        with open(source, "rb") as file:
            head = file.read(16)
    if not head:
        return "the file is empty"
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"heif"):
        return "HEIC is not read, convert it to JPEG or PNG"
    return (
        "not an image, or broken from its first bytes (read are JPEG, PNG, WebP, BMP, GIF, TIFF, PNM, JPEG 2000, AVIF)"
    )


def _low_bytes(image: ImageFile.ImageFile, source: bytes | str | Path) -> NDArray[np.uint8] | None:
    """The low bytes of 16-bit colour, of which Pillow keeps the high ones: the file is read a second time.

    None for other images, and for 16-bit colour in a form that Pillow cannot read so (with a transparent colour, grey
    with alpha, planes): of these only the high bytes are there.
    """
    if not any(_raw_mode(tile) in _OTHER_BYTE for tile in image.tile) or "transparency" in image.info:
        return None
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as again:
        tiles = []
        for tile in again.tile:
            other = _OTHER_BYTE.get(_raw_mode(tile))
            if other is None:
                return None
            tiles.append(tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other))
        again.tile = tiles
        return np.asarray(again)


def _raw_mode(tile: Any) -> str:
    mode = tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args
    return mode if isinstance(mode, str) else ""


def _flatten(
    image: Image.Image,
    depth: Depth | None = None,
    low: NDArray[np.uint8] | None = None,
    hooks: Hooks | None = None,
) -> Image.Image:
    """8 bits a channel, no alpha, and upright.

    Args:
        depth: of images of more than 8 bits; None is what the image's own highest level needs.
        low: see `_low_bytes`.
    """
    image.load()  # before the orientation is asked for: Pillow turns a TIFF by itself while loading
    turn = _TRANSPOSE.get(_orientation(image))
    if image.mode == "F":
        raise DataError("32-bit float pixels have no fixed range, save the image with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
        image = Image.fromarray(_eight_bits(levels, depth, hooks))
    elif low is not None:
        levels = (np.asarray(image).astype(np.uint16) << np.uint16(8)) | low
        image = Image.fromarray(_eight_bits(levels, depth, hooks))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """EXIF's number, 1 where the image is upright or does not say."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # a broken EXIF block in a sound image: it has no orientation to apply
        return 1
    return orientation if isinstance(orientation, int) else 1


def _eight_bits(levels: NDArray[np.uint16], depth: Depth | None, hooks: Hooks | None) -> NDArray[np.uint8]:
    """The highest 8 of `depth` bits, of [H, W] or [H, W, C]. Alpha (C = 2 or 4) always has 16 bits."""
    alpha = levels.ndim == 3 and levels.shape[2] in (2, 4)
    colour = levels[..., :-1] if alpha else levels
    highest = int(colour.max())
    if hooks is not None:
        hooks.on_level(highest)
    out = np.minimum(colour >> ((depth or depth_of(highest)) - 8), 255).astype(np.uint8)
    return np.concatenate([out, (levels[..., -1:] >> 8).astype(np.uint8)], axis=2) if alpha else out


def _resized(image: Image.Image, rules: PreprocessRules) -> Image.Image:
    tall, wide = rules.size
    width, height = image.size
    if (width, height) == (wide, tall):
        return image
    bilinear = Image.Resampling.BILINEAR
    if rules.resize == "squash":
        return image.resize((wide, tall), bilinear)
    flatter = width * tall >= height * wide  # than the target
    if rules.resize == "crop":
        across, down = (height * wide / tall, height) if flatter else (width, width * tall / wide)
        left, top = (width - across) / 2, (height - down) / 2
        return image.resize((wide, tall), bilinear, box=(left, top, left + across, top + down))
    fitted = (wide, max(1, round(height * wide / width))) if flatter else (max(1, round(width * tall / height)), tall)
    if fitted != (width, height):
        image = image.resize(fitted, bilinear)
    canvas = Image.new(image.mode, (wide, tall))
    canvas.paste(image, ((wide - fitted[0]) // 2, (tall - fitted[1]) // 2))
    return canvas
