"""From an opened image to pixels: depth, alpha, orientation, colour, size."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kitae.errors import DataError
from kitae.preprocess.files import orientation
from kitae.preprocess.rules import Depth, PreprocessRules, depth_of

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


def is_grey_mode(mode: str) -> bool:
    """Whether a Pillow mode holds no colour (1 bit, grey, grey with alpha, 16 and 32 bit)."""
    return mode in _GREY_MODES or mode.startswith("I;16")


def image_of(array: NDArray[Any], depth: Depth | None) -> tuple[Image.Image, int | None]:
    """A Pillow image of an array as of `decode`; and its highest level, if it has more than 8 bits."""
    array, highest = np.asarray(array), None
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype not in (np.uint8, np.uint16):
        raise DataError(f"an image array must be uint8, uint16 or bool, not {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (2, 3, 4)):
        raise DataError(f"an image array must be [H, W] or [H, W, 1 to 4], not {list(array.shape)}")
    if array.dtype == np.uint16:
        array, highest = eight_bits(array, depth)
    return Image.fromarray(np.ascontiguousarray(array)), highest


def flatten(
    image: Image.Image, depth: Depth | None = None, low: NDArray[np.uint8] | None = None
) -> tuple[Image.Image, int | None]:
    """8 bits a channel, no alpha, and upright; and the highest level of an image of more than 8 bits.

    Args:
        depth: of images of more than 8 bits; None is what the image's own highest level needs.
        low: see `low_bytes`.
    """
    image.load()  # before the orientation is asked for: Pillow turns a TIFF by itself while loading
    turn, highest = _TRANSPOSE.get(orientation(image)), None
    if image.mode == "F" or (image.mode == "I" and (np.asarray(image) >> 16).any()):
        kind = "float" if image.mode == "F" else "integer"
        raise DataError(f"32-bit {kind} pixels have no fixed range; save the image with 8 or 16 bits")
    clear = image.info.get("transparency")  # of a PNG: the colour that is transparent, in the depth of the file
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint16)
        grey, highest = eight_bits(levels, depth)
        image = Image.fromarray(grey if clear is None else np.where(levels == clear, np.uint8(255), grey))
    elif low is not None:
        levels = (np.asarray(image).astype(np.uint16) << np.uint16(8)) | low
        colour, highest = eight_bits(levels, depth)
        image = Image.fromarray(colour)
    elif isinstance(clear, tuple) and max(clear) > 255:  # Pillow keeps the high bytes of 16-bit colour, as here
        image.info["transparency"] = tuple(level >> 8 for level in clear)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return (image if turn is None else image.transpose(turn)), highest


class _Arrow(ctypes.Structure):
    """An array in Arrow's C data interface, up to its buffers and children."""


_Arrow._fields_ = [
    ("length", ctypes.c_int64), ("null_count", ctypes.c_int64), ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64), ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)), ("children", ctypes.POINTER(ctypes.POINTER(_Arrow))),
]  # fmt: skip


class _Memory:
    """What an array needs to know about an image's memory. It keeps the image."""

    def __init__(self, image: Image.Image, about: dict[str, Any]) -> None:
        self._image, self.__array_interface__ = image, about


@functools.cache
def _pointer_of() -> Any:
    """Returns the address in a capsule of Python."""
    function = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    return function(("PyCapsule_GetPointer", ctypes.pythonapi))


def own_memory(image: Image.Image) -> NDArray[np.uint8] | None:
    """The memory of an image of mode L or RGB itself, without a copy: uint8 [H, W, 1 or 3], with gaps between pixels.

    None where it is not in one piece (above 16 MB), or with a Pillow before 11.2. The struct is read here, since making
    an array of it with pyarrow takes a fifth of the time of decoding.
    """
    if not hasattr(image, "__arrow_c_array__"):
        return None
    try:
        _, capsule = image.__arrow_c_array__()
    except ValueError:  # in several pieces
        return None
    array = _Arrow.from_address(_pointer_of()(capsule, b"arrow_array"))
    values, pixel, channels = (array, 1, 1) if image.mode == "L" else (array.children[0].contents, 4, 3)
    strides = (pixel * image.width, pixel, 1)
    about = {"shape": (image.height, image.width, channels), "strides": strides, "typestr": "|u1", "version": 3}
    return np.asarray(_Memory(image, {**about, "data": (values.buffers[1], True)}))


def eight_bits(levels: NDArray[np.uint16], depth: Depth | None) -> tuple[NDArray[np.uint8], int]:
    """The highest 8 of `depth` bits, of [H, W] or [H, W, C], and the highest level. Alpha (C = 2 or 4) has 16 bits."""
    alpha = levels.ndim == 3 and levels.shape[2] in (2, 4)
    colour = levels[..., :-1] if alpha else levels
    highest = int(colour.max())
    out = np.minimum(colour >> ((depth or depth_of(highest)) - 8), 255).astype(np.uint8)
    return (np.concatenate([out, (levels[..., -1:] >> 8).astype(np.uint8)], axis=2) if alpha else out), highest


def reduced(image: Image.Image, rules: PreprocessRules) -> NDArray[np.uint8]:
    """A flat image as a store keeps it."""
    mode = "L" if rules.channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if rules.store_size is None:
        image = resized(image, rules)
    else:
        tall, wide = rules.cover
        factor = max(tall / image.height, wide / image.width)
        if factor < 1:
            size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
            image = image.resize(size, Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if rules.channels == 1 else pixels.transpose(2, 0, 1))


def resized(image: Image.Image, rules: PreprocessRules) -> Image.Image:
    """At the size of `image_size`, cropped, squashed or padded as the rules have it."""
    tall, wide = rules.size
    width, height = image.size
    if (width, height) == (wide, tall) and rules.crop_pct == 1:
        return image
    bilinear = Image.Resampling.BILINEAR
    flatter = width * tall >= height * wide  # than the target
    if rules.resize != "pad":
        across, down = float(width), float(height)
        if rules.resize == "crop":
            across, down = (height * wide / tall, down) if flatter else (across, width * tall / wide)
        across, down = rules.crop_pct * across, rules.crop_pct * down
        left, top = (width - across) / 2, (height - down) / 2
        return image.resize((wide, tall), bilinear, box=(left, top, left + across, top + down))
    fitted = (wide, max(1, round(height * wide / width))) if flatter else (max(1, round(width * tall / height)), tall)
    if fitted != (width, height):
        image = image.resize(fitted, bilinear)
    canvas = Image.new(image.mode, (wide, tall))
    canvas.paste(image, ((wide - fitted[0]) // 2, (tall - fitted[1]) // 2))
    return canvas
