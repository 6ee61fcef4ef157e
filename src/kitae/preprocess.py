"""From an encoded image to uint8 [C, H, W]: the one preprocessing of training, calibration, evaluation and serving.

NumPy and Pillow only, so that the runtime of an exported model runs the very same code. The rules, version 1:

    format      JPEG, PNG, WebP, BMP, GIF (first frame), TIFF, PNM, JPEG 2000, AVIF; nothing else is even tried
    size        more than MAX_PIXELS is refused before a pixel is decoded
    truncated   is an error, never half an image
    JPEG        read at 1/2, 1/4 or 1/8 scale where that leaves twice the target on both sides (libjpeg's scaled DCT)
    orientation the EXIF orientation is applied, all eight of them
    depth       16 bit keeps its high byte; 1 bit becomes 0 and 255; float pixels have no fixed range and are refused
    alpha       composited on white, also where it hides in a palette or a transparent colour
    colour      palette, CMYK and YCbCr become RGB (embedded colour profiles are not applied); grey is ITU-R BT.601 luma
    resize      bilinear with antialiasing: `crop` takes the largest centred square, `squash` ignores the aspect,
                `pad` fits the longer side and centres the image on black; an image of the right size is left untouched
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
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

VERSION = 1
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

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]"

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
_GREY_MODES = ("1", "L", "LA", "La", "I")
_DRAFT_GAP = 2  # a JPEG keeps at least so many times the target's side before the antialiased resize


@dataclass(frozen=True)
class PreprocessRules:
    """How an image becomes uint8 [channels, image_size, image_size]; travels in the metadata of an exported model.

    Raises:
        DataError: a value is outside its range, or the version is not one this Kitae knows.
    """

    image_size: int
    channels: Literal[1, 3] = 3
    resize: Resize = "crop"
    version: int = VERSION

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
        if self.version != VERSION:
            raise DataError(
                f"preprocessing rules version {self.version!r} are unknown: this Kitae knows version {VERSION}"
            )

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, mapping: dict[str, Any]) -> PreprocessRules:
        """The inverse of `to_dict`; DataError names a key that is unknown or missing."""
        known = set(cls.__dataclass_fields__)
        if unknown := sorted(set(mapping) - known):
            raise DataError(f"unknown preprocessing rule {unknown[0]!r}: known are {', '.join(sorted(known))}")
        if "image_size" not in mapping:
            raise DataError("preprocessing rules lack image_size")
        return cls(**mapping)


def decode(source: bytes | str | Path, rules: PreprocessRules, name: str = "") -> NDArray[np.uint8]:
    """Decode and prepare one image.

    Args:
        source: the encoded bytes, or the path of a file.
        rules: size, channels and resize.
        name: what errors call the image; by default the path.

    Returns:
        uint8 [C, H, W], C-contiguous.

    Raises:
        DataError: the file cannot be opened, is no image, is truncated or too large; the message starts with the name.
    """
    name = name or _default_name(source)
    with _open(source, name) as image, _naming(name, source):
        image.draft(None, (_DRAFT_GAP * rules.image_size, _DRAFT_GAP * rules.image_size))
        return prepare(image, rules)


def probe(source: bytes | str | Path, name: str = "") -> tuple[tuple[int, int], str]:
    """Stored (width, height) and Pillow mode of an image, from its header: no pixel is decoded. Raises as `decode`."""
    with _open(source, name or _default_name(source)) as image:
        return image.size, image.mode


def flattened(source: bytes | str | Path | NDArray[Any], name: str = "") -> tuple[Image.Image, str]:
    """An image decoded at its own size, upright, without alpha; mode L or RGB. And the mode it was stored in.

    For looking at images (checks, contact sheets); what a model sees comes from `decode`. Raises as `decode`.
    """
    if isinstance(source, np.ndarray):
        image = _from_array(source)
        mode = image.mode
        image = _flatten(image)
    else:
        name = name or _default_name(source)
        with _open(source, name) as opened, _naming(name, source):
            mode = opened.mode
            opened.load()
            image = _flatten(_upright(opened))
    return (image if image.mode == "L" else image.convert("L" if is_grey_mode(image.mode) else "RGB")), mode


def is_grey_mode(mode: str) -> bool:
    """Whether a Pillow mode holds no colour (1 bit, grey, grey with alpha, 16 and 32 bit)."""
    return mode in _GREY_MODES or mode.startswith("I;16")


def prepare(image: Image.Image, rules: PreprocessRules) -> NDArray[np.uint8]:
    """Apply the rules to an opened Pillow image: uint8 [C, H, W], C-contiguous.

    Raises:
        DataError: the pixels are of a kind without a rule (32-bit float).
        Exception: what Pillow raises on a broken file; `decode` turns it into a DataError.
    """
    image.load()  # before the orientation is asked for: Pillow turns a TIFF by itself while loading
    image = _flatten(_upright(image))
    image = image.convert("L" if rules.channels == 1 else "RGB")  # a copy or the same object; never changes its input
    pixels = np.asarray(_resized(image, rules))
    return np.ascontiguousarray(pixels[None] if rules.channels == 1 else pixels.transpose(2, 0, 1))


def from_array(array: NDArray[Any], rules: PreprocessRules) -> NDArray[np.uint8]:
    """Prepare pixels that are already decoded.

    Args:
        array: uint8, uint16 (the high byte is kept) or bool; [H, W], or [H, W, C] with C = 1 (grey), 2 (grey, alpha),
            3 (RGB) or 4 (RGBA).
        rules: size, channels and resize.

    Returns:
        uint8 [C, H, W], C-contiguous.

    Raises:
        DataError: another dtype or shape.
    """
    return prepare(_from_array(array), rules)


def _from_array(array: NDArray[Any]) -> Image.Image:
    array = np.asarray(array)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise DataError(f"an image array must be uint8, uint16 or bool, not {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (2, 3, 4)):
        raise DataError(f"an image array must be [H, W] or [H, W, 1 to 4], not {list(array.shape)}")
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
    """Prepare an image in any form: a path, encoded bytes, a Pillow image, or a uint8 array.

    Args:
        image: an array is [H, W] or [H, W, C] of any size, or [C, H, W] at exactly the model's size, taken as it is.
        name: what errors call an image that has no path.

    Returns:
        uint8 [C, H, W], C-contiguous.

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
            if image.dtype != np.uint8:
                raise DataError(f"an array must be uint8 with values 0 to 255, not {image.dtype}")
            ready = image.shape == (rules.channels, rules.image_size, rules.image_size)
            return (
                np.ascontiguousarray(image) if ready and image.shape[2] not in (2, 3, 4) else from_array(image, rules)
            )
        raise DataError(f"an image is a path, bytes, a Pillow image or a uint8 array, not {type(image).__name__}")


def _default_name(source: bytes | str | Path) -> str:
    return "image" if isinstance(source, bytes) else str(source)


def _open(source: bytes | str | Path, name: str) -> Image.Image:
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


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # a broken EXIF block in a sound image: it has no orientation to apply
        return image
    turn = _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _flatten(image: Image.Image) -> Image.Image:
    """8 bits a channel, and no alpha."""
    if image.mode == "F":
        raise DataError("32-bit float pixels have no fixed range, save the image with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        high = np.clip(np.asarray(image), 0, 65535).astype(np.uint16) >> 8
        return Image.fromarray(high.astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return image


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
