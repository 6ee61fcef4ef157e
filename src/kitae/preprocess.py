"""From an encoded image to uint8 [C, H, W]: the one preprocessing of training, calibration, evaluation and serving.

NumPy and Pillow only, so that the runtime of an exported model runs the very same code. The rules:

    format      JPEG, PNG, WebP, BMP, GIF (first frame), TIFF, PNM, JPEG 2000, AVIF; nothing else is even tried
    size        more than MAX_PIXELS is refused before a pixel is decoded
    truncated   is an error, never half an image
    JPEG        read at 1/2, 1/4 or 1/8 scale where that leaves twice the target on both sides (libjpeg's scaled DCT)
    orientation the EXIF orientation is applied, all eight of them
    depth       of 16 bit the high byte, or with fewer significant bits (`depth`) the highest 8 of these, levels above
                are white; 1 bit becomes 0 and 255; float pixels have no fixed range and are refused
    alpha       composited on white, also where it hides in a palette or a transparent colour
    colour      palette, CMYK and YCbCr become RGB (embedded colour profiles are not applied); grey is ITU-R BT.601 luma
    resize      bilinear with antialiasing: `crop` takes the largest centred square, `squash` ignores the aspect,
                `pad` fits the longer side and centres the image on black; an image of the right size is left untouched
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
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
OnLevel = Callable[[int], None]

DEPTHS: tuple[Depth, ...] = (8, 10, 12, 16)
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
_DRAFT_GAP = 2  # a JPEG keeps at least so many times the target's side before the antialiased resize


@dataclass(frozen=True)
class PreprocessRules:
    """How an image becomes uint8 [channels, image_size, image_size]; travels in the metadata of an exported model.

    Attributes:
        depth: significant bits of images of more than 8 bits a channel; 16 keeps their high byte.

    Raises:
        DataError: a value is outside its range.
    """

    image_size: int
    channels: Literal[1, 3] = 3
    resize: Resize = "crop"
    depth: Depth = 16

    def __post_init__(self) -> None:
        if (
            isinstance(self.image_size, bool)
            or not isinstance(self.image_size, int)
            or not 1 <= self.image_size <= 16384
        ):
            raise DataError(f"image_size must be an integer in [1, 16384], not {self.image_size!r}")
        if self.channels not in (1, 3):
            raise DataError(f"channels must be 1 or 3, not {self.channels!r}")
        if self.resize not in ("crop", "squash", "pad"):
            raise DataError(f"resize must be crop, squash or pad, not {self.resize!r}")
        if self.depth not in DEPTHS or isinstance(self.depth, bool):
            raise DataError(f"depth must be 8, 10, 12 or 16, not {self.depth!r}")

    @property
    def version(self) -> int:
        """The oldest version of the rules that says the same."""
        plain = PreprocessRules(self.image_size, self.channels, self.resize)
        return 1 if self == plain else VERSION

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping for JSON."""
        mapping = asdict(self)
        if self.version == 1:
            mapping = {name: mapping[name] for name in _FIELDS_OF_1}
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


def depth_of(highest: int) -> Depth:
    """The bits of images whose highest level this is: 8, 10, 12 or 16."""
    return next(depth for depth in DEPTHS if highest < 1 << depth or depth == 16)


def decode(
    source: bytes | str | Path, rules: PreprocessRules, name: str = "", on_level: OnLevel | None = None
) -> NDArray[np.uint8]:
    """Decode and prepare one image.

    Args:
        source: the encoded bytes, or the path of a file.
        rules: size, channels, resize and depth.
        name: what errors call the image; by default the path.
        on_level: called with the highest level of an image of more than 8 bits.

    Returns:
        uint8 [C, H, W], C-contiguous.

    Raises:
        DataError: the file cannot be opened, is no image, is truncated or too large; the message starts with the name.
    """
    name = name or _default_name(source)
    with _open(source, name) as image, _naming(name, source):
        image.draft(None, (_DRAFT_GAP * rules.image_size, _DRAFT_GAP * rules.image_size))
        low = _low_bytes(image, source)
        return _fitted(_flatten(image, rules.depth, low, on_level), rules)


def probe(source: bytes | str | Path, name: str = "") -> tuple[tuple[int, int], str]:
    """Stored (width, height) and Pillow mode of an image, from its header: no pixel is decoded. Raises as `decode`."""
    with _open(source, name or _default_name(source)) as image:
        return image.size, image.mode


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
    levels: list[int] = []
    if isinstance(source, np.ndarray):
        image = _from_array(source, None, levels.append)
        mode = "I;16" if levels else image.mode
        image = _flatten(image)
    else:
        name = name or _default_name(source)
        with _open(source, name) as opened, _naming(name, source):
            mode = opened.mode
            low = _low_bytes(opened, source)
            image = _flatten(opened, None, low, levels.append)
    image = image if image.mode == "L" else image.convert("L" if is_grey_mode(image.mode) else "RGB")
    return Flat(image, mode, levels[0] if levels else None)


def is_grey_mode(mode: str) -> bool:
    """Whether a Pillow mode holds no colour (1 bit, grey, grey with alpha, 16 and 32 bit)."""
    return mode in _GREY_MODES or mode.startswith("I;16")


def prepare(image: Image.Image, rules: PreprocessRules) -> NDArray[np.uint8]:
    """Apply the rules to an opened Pillow image: uint8 [C, H, W], C-contiguous.

    Raises:
        DataError: the pixels are of a kind without a rule (32-bit float).
        Exception: what Pillow raises on a broken file; `decode` turns it into a DataError.
    """
    return _fitted(_flatten(image, rules.depth), rules)


def _fitted(image: Image.Image, rules: PreprocessRules) -> NDArray[np.uint8]:
    image = image.convert("L" if rules.channels == 1 else "RGB")  # a copy or the same object; never changes its input
    pixels = np.asarray(_resized(image, rules))
    return np.ascontiguousarray(pixels[None] if rules.channels == 1 else pixels.transpose(2, 0, 1))


def from_array(array: NDArray[Any], rules: PreprocessRules, on_level: OnLevel | None = None) -> NDArray[np.uint8]:
    """Prepare pixels that are already decoded.

    Args:
        array: uint8, uint16 or bool; [H, W], or [H, W, C] with C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA).
        rules: size, channels, resize and depth.
        on_level: called with the highest level of uint16.

    Returns:
        uint8 [C, H, W], C-contiguous.

    Raises:
        DataError: another dtype or shape.
    """
    return prepare(_from_array(array, rules.depth, on_level), rules)


def _from_array(array: NDArray[Any], depth: Depth | None, on_level: OnLevel | None = None) -> Image.Image:
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
        array = _eight_bits(array, depth, on_level)
    return Image.fromarray(np.ascontiguousarray(array))


def one_or_several(images: Any) -> list[Any]:
    """A list of images from one image (which may itself be iterable, as a path is) or several."""
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)):
        return [images]
    if isinstance(images, Iterable):
        return list(images)
    raise DataError(
        f"images are paths, bytes, Pillow images or uint8 arrays, one or several, not {type(images).__name__}"
    )


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
            ready = image.dtype == np.uint8 and image.shape == (rules.channels, rules.image_size, rules.image_size)
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
    on_level: OnLevel | None = None,
) -> Image.Image:
    """8 bits a channel, no alpha, and upright.

    Args:
        depth: of images of more than 8 bits; None is what the image's own highest level needs.
        low: see `_low_bytes`.
    """
    image.load()  # before the orientation is asked for: Pillow turns a TIFF by itself while loading
    turn = _turn(image)
    if image.mode == "F":
        raise DataError("32-bit float pixels have no fixed range, save the image with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
        image = Image.fromarray(_eight_bits(levels, depth, on_level))
    elif low is not None:
        levels = (np.asarray(image).astype(np.uint16) << np.uint16(8)) | low
        image = Image.fromarray(_eight_bits(levels, depth, on_level))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes an image upright; None where it is."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # a broken EXIF block in a sound image: it has no orientation to apply
        return None
    return _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None


def _eight_bits(levels: NDArray[np.uint16], depth: Depth | None, on_level: OnLevel | None) -> NDArray[np.uint8]:
    """The highest 8 of `depth` bits, of [H, W] or [H, W, C]. Alpha (C = 2 or 4) always has 16 bits."""
    alpha = levels.ndim == 3 and levels.shape[2] in (2, 4)
    colour = levels[..., :-1] if alpha else levels
    highest = int(colour.max())
    if on_level is not None:
        on_level(highest)
    out = np.minimum(colour >> ((depth or depth_of(highest)) - 8), 255).astype(np.uint8)
    return np.concatenate([out, (levels[..., -1:] >> 8).astype(np.uint8)], axis=2) if alpha else out


def _resized(image: Image.Image, rules: PreprocessRules) -> Image.Image:
    size = rules.image_size
    width, height = image.size
    if (width, height) == (size, size):
        return image
    bilinear = Image.Resampling.BILINEAR
    if rules.resize == "squash":
        return image.resize((size, size), bilinear)
    if rules.resize == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return image.resize((size, size), bilinear, box=(left, top, left + side, top + side))
    longer = max(width, height)
    fitted = (max(1, round(width * size / longer)), max(1, round(height * size / longer)))
    if fitted != (width, height):
        image = image.resize(fitted, bilinear)
    canvas = Image.new(image.mode, (size, size))
    canvas.paste(image, ((size - fitted[0]) // 2, (size - fitted[1]) // 2))
    return canvas
