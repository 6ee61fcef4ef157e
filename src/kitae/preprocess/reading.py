"""One image in any form to uint8 [C, H, W]."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kitae.errors import DataError
from kitae.files import user_path
from kitae.preprocess.files import Encoded, ImageLike, list_images, low_bytes, naming, opened, upright_size
from kitae.preprocess.pixels import flatten, image_of, is_grey_mode, own_memory, reduced, resized
from kitae.preprocess.rules import PreprocessRules

Memory = Callable[[int], contextlib.AbstractContextManager[Any]]
"""What is held while an image is decoded, for the bytes that this needs; small images do not ask for it."""

# A JPEG is decoded at no less than this multiple of the target's side before it is resized, directly or for a store.
# The second was chosen by the sharpness of small crops: with 1.5 they lose 8 % at most, with 1.25 they lost 10 %.
_DRAFT_GAP, _STORE_DRAFT_GAP = 2, 1.5
_DRAFTS = ("JPEG", "MPO")  # formats that Pillow reads at reduced scale
_LITTLE = 1 << 20  # bytes; smaller images do not ask for memory
_DECODE_BYTES = 12  # most bytes per decoded pixel, with copies: RGBA, the upright image, the image on white
_PROGRESSIVE_BYTES = 6  # more bytes per pixel of a progressive JPEG at full size: libjpeg keeps all coefficients


def decode(source: Encoded | Image.Image | NDArray[Any], rules: PreprocessRules, name: str = "") -> NDArray[np.uint8]:
    """Decode and prepare one image.

    Args:
        source: the encoded bytes, the path of a file, a Pillow image, or an array: uint8, uint16 or bool, [H, W], or
            [H, W, C] with C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA).
        rules: size, channels, resize, depth, store size and share of the sides.
        name: what errors call the image; by default the path.

    Returns:
        uint8 [C, H, W], C-contiguous.

    Raises:
        DataError: the file cannot be opened, is no image, is truncated or too large (the message starts with the name);
            an array of another dtype or shape; pixels of a kind without a rule (32-bit float, or
            32-bit integers that 16 bits cannot hold).
    """
    return view(picture(source, rules, name)[0], rules)


def picture(
    source: Encoded | Image.Image | NDArray[Any],
    rules: PreprocessRules,
    name: str = "",
    memory: Memory = contextlib.nullcontext,
    header: Callable[[int, int], object] = lambda height, width: None,
) -> tuple[NDArray[np.uint8], int | None]:
    """An image as a store keeps it: the whole one with `store_size`, else at the size of `image_size`.

    Args:
        header: called with the height and width of a file or an array as stored, before it is decoded.
        memory: held while it is decoded. The other arguments, and errors, are as of `decode`.

    Returns:
        uint8 [C, h, w], C-contiguous, of which `view` makes [C, H, W]; the highest level of an image of more than 8
        bits, else None.
    """
    if isinstance(source, np.ndarray):
        image, highest = image_of(source, rules.depth)
        header(image.height, image.width)
        return reduced(flatten(image)[0], rules), highest
    if isinstance(source, Image.Image):
        image, highest = flatten(source, rules.depth)
        return reduced(image, rules), highest
    with opened(source, name) as stored:
        width, height = stored.size
        header(height, width)
        if stored.format in _DRAFTS:
            gap = _DRAFT_GAP if rules.store_size is None else _STORE_DRAFT_GAP
            side = math.ceil(gap * max(rules.cover))
            stored.draft(None, (side, side))
        with _room(memory, stored, width * height):
            image, highest = flatten(stored, rules.depth, low_bytes(stored, source))
            return reduced(image, rules), highest


def _room(memory: Memory, image: Image.Image, pixels: int) -> contextlib.AbstractContextManager[Any]:
    """What is held while a file is decoded at its present scale; `pixels`: of the whole of it."""
    needed = _DECODE_BYTES * image.width * image.height
    if image.format in _DRAFTS and image.info.get("progressive"):
        needed += _PROGRESSIVE_BYTES * pixels
    return memory(needed) if needed >= _LITTLE else contextlib.nullcontext()


def view(pixels: NDArray[np.uint8], rules: PreprocessRules) -> NDArray[np.uint8]:
    """What a network sees of a picture that a store keeps: uint8 [C, h, w] to [C, H, W], C-contiguous."""
    channels, height, width = pixels.shape
    pixels = np.ascontiguousarray(pixels)
    if (height, width) == rules.size and (rules.crop_pct == 1 or rules.store_size is None):
        return pixels
    out = np.empty((channels, *rules.size), np.uint8)
    for channel in range(channels):
        band = Image.frombuffer("L", (width, height), pixels[channel], "raw", "L", 0, 1)
        out[channel] = np.asarray(resized(band, rules))
    return out


@contextlib.contextmanager
def windowed(
    source: Encoded,
    window: Callable[[int, int], tuple[int, int, int, int]],
    size: tuple[int, int],
    rules: PreprocessRules,
    name: str = "",
    memory: Memory = contextlib.nullcontext,
) -> Iterator[NDArray[np.uint8]]:
    """One window of an image, to be resized to `size`; for random crops of encoded images.

    A JPEG is read at reduced scale where that leaves the window twice the target on both sides, and the window is then
    rounded to whole pixels of that scale.

    Args:
        window: from the image's upright height and width to the window's top, left, height and width.
        size: (height, width) that the window will be resized to.
        rules: their channels and depth matter here.
        memory: held until the window was used.

    Yields:
        uint8 [height, width, channels], where possible a view of the decoded image. Errors are as of `decode`.
    """
    with contextlib.ExitStack() as held:
        with opened(source, name) as image:
            whole = image.width * image.height
            if image.format in _DRAFTS:
                height, width = upright_size(image)
                top, left, tall, wide = window(height, width)
                scale = _DRAFT_GAP * max(size[0] / tall, size[1] / wide)
                if scale < 1:
                    image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
                held.enter_context(_room(memory, image, whole))
                flat, _ = flatten(image, rules.depth)
            else:  # a PNG may say only after its pixels how it is turned
                held.enter_context(_room(memory, image, whole))
                flat, _ = flatten(image, rules.depth, low_bytes(image, source))
                height, width = flat.height, flat.width
                top, left, tall, wide = window(height, width)
        down, across = flat.height / height, flat.width / width
        first, start = round(top * down), round(left * across)
        end, last = max(start + 1, round((left + wide) * across)), max(first + 1, round((top + tall) * down))
        mode = "L" if rules.channels == 1 else "RGB"
        if flat.mode == mode and (shared := own_memory(flat)) is not None:
            yield shared[first:last, start:end]
            return
        flat = flat.crop((start, first, end, last))
        pixels = np.asarray(flat if flat.mode == mode else flat.convert(mode))
        yield pixels.reshape(last - first, end - start, rules.channels)


def probe(source: Encoded | NDArray[Any], name: str = "") -> tuple[tuple[int, int], bool]:
    """(height, width) of an image and whether it is grey, from its header: no pixel is decoded. Raises as `decode`."""
    if isinstance(source, np.ndarray):
        return (source.shape[0], source.shape[1]), source.ndim == 2 or source.shape[2] < 3
    with opened(source, name) as image:
        return upright_size(image), is_grey_mode(image.mode)


@contextlib.contextmanager
def flattened(
    source: Encoded | NDArray[Any],
    name: str = "",
    memory: Memory = contextlib.nullcontext,
) -> Iterator[tuple[Image.Image, str, int | None]]:
    """An image for looking at (checks, contact sheets); what a model sees comes from `decode`. Raises as `decode`.

    Args:
        memory: held until the image was looked at.

    Yields:
        The upright image at its own size without alpha, of mode L or RGB, with the highest 8 bits that its own levels
        need; the Pillow mode it was stored in; the highest level of an image of more than 8 bits, else None.
    """
    if isinstance(source, np.ndarray):
        image, highest = image_of(source, None)
        mode = image.mode if highest is None else "I;16"
        yield _grey_or_colour(flatten(image)[0]), mode, highest
        return
    with contextlib.ExitStack() as held:
        with opened(source, name) as stored:
            mode = stored.mode
            held.enter_context(_room(memory, stored, stored.width * stored.height))
            image, highest = flatten(stored, None, low_bytes(stored, source))
            image = _grey_or_colour(image)
        yield image, mode, highest


def _grey_or_colour(image: Image.Image) -> Image.Image:
    wanted = "L" if is_grey_mode(image.mode) else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def one_or_several(images: Any) -> list[Any]:
    """A list of images from one image (which may itself be iterable, as a path is) or several.

    A path of a folder gives its images, as `list_images` does, and an open file its content. An array with one
    dimension holds several, such as a column of paths.
    """
    if isinstance(images, np.ndarray) and images.ndim == 1 and (images.dtype.kind in "OUT" or not len(images)):
        images = images.tolist()  # a column, such as one of paths, and no picture
    single = isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray))
    if single or hasattr(images, "read"):  # an open file is iterable too, but its lines are no images
        images = [images]
    elif not isinstance(images, Iterable):
        raise DataError(
            f"images are paths, bytes, Pillow images or uint8 arrays, one or several, not {type(images).__name__}"
        )
    found: list[Any] = []
    for image in images:
        folder = isinstance(image, (str, os.PathLike)) and os.path.isdir(user_path(image))
        found += list_images([image]) if folder else [_content(image) if hasattr(image, "read") else image]
    return found


def _content(file: Any) -> Any:
    """Of an open file. Raises DataError: it was opened as text, which an image is not."""
    if isinstance(file, io.TextIOBase):
        raise DataError(f"{getattr(file, 'name', 'image')}: was opened as text; open it with mode 'rb'")
    return file.read()


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
        return decode(user_path(image), rules)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return decode(bytes(image), rules, name)
    with naming(name, b""):
        if isinstance(image, np.ndarray):
            if image.dtype not in (np.uint8, np.uint16):
                raise DataError(f"an array must be uint8 with values 0 to 255, or uint16, not {image.dtype}")
            if image.dtype == np.uint8 and image.shape == rules.shape and image.shape[2] not in (2, 3, 4):
                return np.ascontiguousarray(image)
        elif not isinstance(image, Image.Image):
            raise DataError(f"an image is a path, bytes, a Pillow image or a uint8 array, not {type(image).__name__}")
        return decode(image, rules)
