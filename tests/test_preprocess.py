"""One rule for every kind of image, and one line for every kind of broken file."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from kitae.errors import DataError
from kitae.preprocess import PreprocessRules, decode, depth_of, flattened, load, one_or_several, picture, probe, view
from kitae.preprocess.files import FORMATS
from kitae.preprocess.pixels import is_grey_mode
from tests.images import encode, turned_by
from tests.refusals import refused

RGB16 = PreprocessRules(16, 3)
GREY16 = PreprocessRules(16, 1)
SAVE_LOSSLESS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}


def scene(height: int = 16, width: int = 16) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]: smooth, and different in each of the eight orientations."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / width, 255 * y / height, 200 * (x + 2 * y < width)], axis=-1).astype(np.uint8)


def chw(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels.transpose(2, 0, 1)


# Kinds of images


def test_rgb_of_the_right_size_is_untouched() -> None:
    out = decode(encode(scene()), RGB16)
    assert (out == chw(scene())).all()
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    assert out.shape == (3, 16, 16)


def test_path_and_bytes_and_array_give_the_same(tmp_path: Path) -> None:
    data = encode(scene(20, 30))
    file = tmp_path / "a.png"
    file.write_bytes(data)
    for given_as in (file, str(file), scene(20, 30), Image.fromarray(scene(20, 30))):
        assert (decode(given_as, RGB16) == decode(data, RGB16)).all()


def test_grey_is_repeated_over_three_channels_and_colour_becomes_luma() -> None:
    grey = scene()[..., 0]
    assert (decode(encode(grey), RGB16) == grey).all()
    assert (decode(encode(grey), GREY16) == grey[None]).all()
    luma = scene().astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(decode(encode(scene()), GREY16)[0] - luma).max() <= 1


def test_alpha_is_composited_on_white() -> None:
    alpha = np.zeros((16, 16), np.uint8)
    alpha[:, 8:] = 255
    alpha[0, 0] = 128
    out = decode(encode(np.dstack([scene(), alpha])), RGB16)
    assert (out[:, 1:, :8] == 255).all()
    assert (out[:, :, 8:] == chw(scene())[:, :, 8:]).all()
    assert abs(int(out[0, 0, 0]) - 127) <= 1


def test_grey_with_alpha_is_composited_on_white() -> None:
    grey, alpha = np.full((16, 16), 40, np.uint8), np.zeros((16, 16), np.uint8)
    alpha[:8] = 255
    data = encode(Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha))))
    for rules in (RGB16, GREY16):
        out = decode(data, rules)
        assert (out[:, :8] == 40).all()
        assert (out[:, 8:] == 255).all()


def test_palette_becomes_its_colours() -> None:
    image = Image.fromarray(scene()).quantize(16)
    assert (decode(encode(image), RGB16) == chw(np.asarray(image.convert("RGB")))).all()


def test_transparent_colour_of_a_palette_is_white() -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 200, 10, 20])
    image.paste(0, (0, 0, 8, 16))
    for kind in ("PNG", "GIF"):
        out = decode(encode(image, kind, transparency=0), RGB16)
        assert (out[:, :, :8] == 255).all()
        assert (out[:, 0, 12] == [200, 10, 20]).all()


def test_transparent_colour_of_an_rgb_image_is_white() -> None:
    pixels = scene()
    pixels[:4] = (1, 2, 3)
    out = decode(encode(pixels, transparency=(1, 2, 3)), RGB16)
    assert (out[:, :4] == 255).all()
    assert (out[:, 4:] == chw(pixels)[:, 4:]).all()


def test_16_bit_keeps_the_high_byte() -> None:
    deep = (np.arange(256, dtype=np.uint32) * 257).astype(np.uint16).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        data = encode(Image.fromarray(deep), kind)
        assert Image.open(io.BytesIO(data)).mode.startswith("I;16")
        assert (decode(data, GREY16)[0] == deep >> 8).all()
    assert (decode(deep, GREY16)[0] == deep >> 8).all()
    pgm = b"P5 16 16 65535\n" + deep.astype(">u2").tobytes()
    assert (decode(pgm, GREY16)[0] == deep >> 8).all()


def png16(levels: NDArray[np.uint16], clear: Sequence[int] = ()) -> bytes:
    """16-bit colour or grey, with alpha where there are 4 channels, or a transparent colour: Pillow writes none."""
    height, width, channels = levels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in levels.astype(">u2"))
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0])
    colour = [(b"tRNS", np.array(clear, ">u2").tobytes())] if clear else []
    chunks = ((b"IHDR", header), *colour, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big") for kind, body in chunks
    )


@pytest.mark.parametrize("clear", [(0,), (0x1234,), (0, 0, 0), (0x1234, 0x5678, 0x9ABC)])
def test_transparent_colour_of_a_16_bit_png_is_white(clear: tuple[int, ...]) -> None:
    deep = np.full((16, 16, len(clear)), 0xFF00 - 0x1000, np.uint16)
    deep[:4] = clear
    out = decode(png16(deep, clear), RGB16)
    assert (out[:, :4] == 255).all()
    assert (out[:, 4:] == 0xEF).all()


def tiff16(levels: NDArray[np.uint16], order: str) -> bytes:
    """Uncompressed 16-bit colour in either byte order."""
    height, width, channels = levels.shape
    body = levels.astype(f"{order}u2").tobytes()
    tags = [(256, width), (257, height), (259, 1), (262, 2), (273, 8), (277, channels), (278, height), (279, len(body))]
    entries = [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags]
    start = 8 + len(body)
    depths = struct.pack(f"{order}HHII", 258, 3, channels, start + 2 + 12 * (len(tags) + 1) + 4)
    entries.insert(2, depths)
    return (
        (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start) + body
        + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + struct.pack(f"{order}I", 0)
        + struct.pack(f"{order}{channels}H", *[16] * channels)
    )  # fmt: skip


@pytest.mark.parametrize("depth", [8, 10, 12, 16])
def test_fewer_bits_than_16_are_read_from_where_they_are(depth: int) -> None:
    rng = np.random.default_rng(depth)
    colour = rng.integers(0, 1 << depth, (16, 16, 3)).astype(np.uint16)
    colour[0, 0, 0] = (1 << depth) - 1
    expected = chw(colour >> depth - 8)
    rules = PreprocessRules(16, 3, depth=depth)  # type: ignore[arg-type]
    grey = PreprocessRules(16, 1, depth=depth)  # type: ignore[arg-type]
    for data in (png16(colour), tiff16(colour, "<"), tiff16(colour, ">"), colour):
        pixels, highest = picture(data, rules)
        assert (pixels == expected).all()
        assert highest == (1 << depth) - 1
    for kind in ("PNG", "TIFF"):
        pixels, highest = picture(encode(Image.fromarray(colour[..., 0]), kind), grey)
        assert (pixels[0] == expected[0]).all()
        assert highest == (1 << depth) - 1
    assert (load(colour, rules) == expected).all()
    assert depth_of((1 << depth) - 1) == depth
    assert depth_of(1 << depth) > depth or depth == 16
    with_alpha = np.dstack([colour, np.full((16, 16), 65535, np.uint16)])
    assert (decode(png16(with_alpha), rules) == expected).all()
    with flattened(png16(colour)) as (flat, _, highest):
        assert np.abs(np.asarray(flat).transpose(2, 0, 1).astype(int) - expected).max() == 0
    assert highest == (1 << depth) - 1


def test_tiles_without_names_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile is a plain tuple before Pillow 11, and the oldest that Kitae allows is 10.3."""
    deep = np.random.default_rng(0).integers(0, 1 << 12, (16, 16, 3)).astype(np.uint16)
    files = [png16(deep), encode(scene(), "JPEG")]
    expected = [decode(data, replace(RGB16, depth=12)) for data in files]
    inner = Image.open

    def with_plain_tiles(*given: Any, **options: Any) -> Any:
        image: Any = inner(*given, **options)
        image.tile = [tuple(tile) for tile in image.tile]
        return image

    monkeypatch.setattr(Image, "open", with_plain_tiles)
    for data, pixels in zip(files, expected, strict=True):
        np.testing.assert_array_equal(decode(data, replace(RGB16, depth=12)), pixels)


def test_levels_above_the_depth_are_white_and_8_bits_do_not_care() -> None:
    deep = np.full((16, 16), 5000, np.uint16)
    assert (decode(deep, PreprocessRules(16, 1, depth=12)) == 255).all()
    assert (decode(scene(), PreprocessRules(16, 3, depth=10)) == chw(scene())).all()
    with flattened(encode(scene())) as (_, _, highest):
        assert highest is None


def test_a_turned_image_of_12_bits_is_turned_back() -> None:
    levels = (np.arange(256, dtype=np.uint16) * 16).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        data = encode(Image.fromarray(levels), kind, exif=turned_by(3))
        assert (decode(data, PreprocessRules(16, 1, depth=12))[0] == (levels >> 4)[::-1, ::-1]).all()


def test_one_bit_is_black_and_white() -> None:
    bits = np.arange(256).reshape(16, 16) % 3 == 0
    for kind in ("PNG", "TIFF", "PPM"):
        assert (decode(encode(Image.fromarray(bits), kind), GREY16)[0] == bits * 255).all()
    assert (decode(bits, GREY16)[0] == bits * 255).all()


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_becomes_rgb(kind: str) -> None:
    image = Image.fromarray(scene()).convert("CMYK")
    out = decode(encode(image, kind, quality=95), RGB16).astype(int)
    assert np.abs(out - chw(np.asarray(image.convert("RGB"))).astype(int)).mean() < (1 if kind == "TIFF" else 12)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    out = decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), RGB16)
    assert (out[:, 0, 0] == [255, 0, 0]).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_of_the_list_is_read(kind: str) -> None:
    data = encode(scene(), kind, **SAVE_LOSSLESS.get(kind, {}))
    assert np.abs(decode(data, RGB16).astype(int) - chw(scene())).mean() < 16


def test_the_first_picture_of_a_phones_mpo_is_read() -> None:
    data = encode(scene(), "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))], quality=95)
    assert np.abs(decode(data, RGB16).astype(int) - chw(scene())).mean() < 16


def test_integer_pixels_of_16_bits_are_read() -> None:
    assert decode(encode(np.full((16, 16), 65535, np.int32), "TIFF"), GREY16).min() == 255


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_photo_turned_by_exif_is_its_upright_twin(kind: str, orientation: int) -> None:
    upright = Image.fromarray(scene(48, 64))
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(inverse[orientation]) if orientation > 1 else upright
    options: dict[str, object] = {"quality": 95, "subsampling": 0} if kind == "JPEG" else SAVE_LOSSLESS[kind]
    turned = decode(encode(stored, kind, exif=turned_by(orientation), **options), RGB16).astype(int)
    twin = decode(encode(upright, kind, **options), RGB16).astype(int)
    # Bilinear weights are rounded along the rows first, so a turn may move a value by one.
    assert np.abs(turned - twin).max() <= (6 if kind == "JPEG" else 1)


def test_a_large_photo_turned_by_exif_is_its_upright_twin() -> None:
    """Here libjpeg's scaled decoding takes part."""
    upright = Image.fromarray(scene(300, 400))
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    turned = decode(encode(stored, "JPEG", exif=turned_by(6), quality=95), RGB16)
    twin = decode(encode(upright, "JPEG", quality=95), RGB16)
    assert np.abs(turned.astype(int) - twin).max() <= 8


def test_broken_exif_does_not_spoil_a_sound_image() -> None:
    data = encode(scene(), "PNG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (decode(data, RGB16) == chw(scene())).all()


# Resizing


def test_crop_takes_the_centre() -> None:
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = 200
    assert (decode(encode(pixels), PreprocessRules(20, 3, "crop"))[:, :, 1:-1] == 200).all()
    assert (decode(encode(pixels.transpose(1, 0, 2)), PreprocessRules(20, 3, "crop"))[:, 1:-1] == 200).all()


def test_squash_ignores_the_aspect() -> None:
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, :50] = 200
    out = decode(encode(pixels), PreprocessRules(20, 3, "squash"))
    assert (out[:, :, :9] == 200).all()
    assert (out[:, :, 11:] == 0).all()


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_a_share_of_the_sides_around_the_centre(resize: str) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[5:35, 15:45] = 200  # three quarters of the crop's sides
    rules = PreprocessRules(30, 3, resize, crop_pct=0.75)  # type: ignore[arg-type]
    out = decode(encode(pixels), rules)
    across = slice(1, -1) if resize == "crop" else slice(6, 24)
    assert (out[:, 1:-1, across] == 200).all()
    assert (out == 200).all() == (resize == "crop")
    whole = replace(rules, store_size=40)
    assert (decode(encode(pixels), whole) == out).all()
    assert (decode(pixels[:30, :30], rules) != pixels[:30, :30].transpose(2, 0, 1)).any()  # of the right size too


def test_pad_keeps_everything_and_centres_it_on_black() -> None:
    pixels = np.full((40, 100, 3), 200, np.uint8)
    out = decode(encode(pixels), PreprocessRules(20, 3, "pad"))
    assert (out[:, 6:14] == 200).all()
    assert (out[:, :6] == 0).all()
    assert (out[:, 14:] == 0).all()
    sliver = decode(encode(np.full((1, 500, 3), 200, np.uint8)), PreprocessRules(20, 3, "pad"))
    assert (sliver[:, 9] == 200).all()


def test_shrinking_is_antialiased() -> None:
    checkers = np.indices((64, 64)).sum(axis=0) % 2 * 255
    out = decode(encode(checkers.astype(np.uint8)), GREY16).astype(int)
    assert np.abs(out[:, 1:-1, 1:-1] - 127).max() <= 2


def test_large_jpegs_are_decoded_small_and_look_the_same() -> None:
    big = Image.fromarray(scene(1024, 1024))
    from_jpeg = decode(encode(big, "JPEG", quality=95), RGB16).astype(int)
    assert np.abs(from_jpeg - decode(encode(big), RGB16)).max() <= 6


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.sampled_from(["crop", "squash", "pad"]),
    st.sampled_from([1, 3]),
)  # fmt: skip
def test_any_size_becomes_the_asked_one(height: int, width: int, size: int, resize: str, channels: int) -> None:
    rules = PreprocessRules(size, channels, resize)  # type: ignore[arg-type]
    out = decode(encode(np.full((height, width, 3), 77, np.uint8)), rules)
    assert out.shape == (channels, size, size)
    assert resize == "pad" or (out == 77).all()


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_a_rectangle_is_filled_like_a_square(resize: str) -> None:
    pixels = np.zeros((60, 60, 3), np.uint8)
    pixels[20:40] = 200
    out = decode(encode(pixels), PreprocessRules((20, 60), 3, resize))  # type: ignore[arg-type]
    assert out.shape == (3, 20, 60)
    if resize == "crop":
        assert (out == 200).all()
    else:
        assert (out[:, 8:12, 25:35] == 200).all()
        assert (out[:, :6] == 0).all()
        assert (resize == "pad") == (out[:, 8:12, :19].max() == 0)
    turned = decode(encode(pixels.transpose(1, 0, 2)), PreprocessRules((60, 20), 3, resize))  # type: ignore[arg-type]
    assert np.abs(turned.astype(int) - out.transpose(0, 2, 1)).max() <= 1


# Whole pictures


@pytest.mark.parametrize(
    ("height", "width", "size", "store", "kept"),
    [
        (300, 400, 32, 64, (64, 85)),
        (400, 300, 32, 64, (85, 64)),
        (50, 400, 32, 64, (50, 400)),  # smaller than asked on one side: not enlarged, not reduced
        (300, 400, (32, 64), 64, (96, 128)),
        (300, 400, 32, 32, (32, 43)),
    ],
)
def test_a_whole_picture_just_covers_what_was_asked(
    height: int, width: int, size: Any, store: int, kept: tuple[int, int]
) -> None:
    rules = PreprocessRules(size, 3, store_size=store)
    pixels, _ = picture(encode(scene(height, width)), rules)
    assert pixels.shape[1:] == kept
    assert (view(pixels, rules) == decode(encode(scene(height, width)), rules)).all()
    assert view(pixels, rules).shape == rules.shape
    assert view(pixels, rules).flags.c_contiguous


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_a_view_of_a_picture_is_the_picture_resized(resize: str) -> None:
    """Channel by channel, which is what Pillow does too."""
    rules = PreprocessRules(24, 3, resize, store_size=48)  # type: ignore[arg-type]
    at_once = PreprocessRules(24, 3, resize)  # type: ignore[arg-type]
    for size in ((40, 60), (48, 48), (24, 24), (10, 90)):
        assert (decode(encode(scene(*size)), rules) == decode(encode(scene(*size)), at_once)).all()
        assert (decode(scene(*size), rules) == decode(scene(*size), at_once)).all()
        assert (decode(Image.fromarray(scene(*size)), rules) == decode(scene(*size), rules)).all()


# Arrays and bad files


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_arrays_with_channels_last(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, channels), np.uint8)
    pixels[..., -1:] = 255 if channels in (2, 4) else pixels[..., -1:]
    out = decode(pixels, RGB16)
    assert (out == chw(pixels[..., :3] if channels > 2 else pixels[..., :1])).all()


def jpeg(size: int = 64) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    return encode(noise, "JPEG")


def integers(level: int) -> bytes:
    return encode(np.array([[65535, level]], np.int32), "TIFF")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"hello, this is text and no image at all", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"\0\0\0\x18ftypheic" + bytes(50), "HEIC is not supported; convert it"),
        (jpeg()[:2000], "cannot be decoded"),
        (encode(scene())[:-100], "(cannot be decoded|not an image)"),
        (encode(scene(), "WEBP")[:60], "(cannot be decoded|not an image)"),
        (encode(scene(), "BMP")[:200], "cannot be decoded"),
        (encode(scene(), "TIFF")[:200], "(cannot be decoded|not an image)"),
        (encode(scene(), "PNG")[:45] + b"\xff" * 20 + encode(scene(), "PNG")[65:], "cannot be decoded"),
        (integers(-1), "32-bit integer pixels have no fixed range; save the image with 8 or 16 bits"),
        (integers(65536), "32-bit integer pixels"),
        (integers(2**31 - 1), "32-bit integer pixels"),
        (encode(np.zeros((16, 16), np.float32), "TIFF"), "32-bit float pixels have no fixed range; save the image"),
        (np.zeros((4, 4), np.float32), ".*uint8, uint16 or bool, not float32"),
        (np.zeros((4, 4, 5), np.uint8), r".*not \[4, 4, 5\]"),
        (np.zeros(4, np.uint8), r".*not \[4\]"),
        (np.zeros((0, 4), np.uint8), r".*not \[0, 4\]"),
    ],
)
def test_what_is_no_image_is_named_in_one_line(data: bytes | NDArray[np.generic], words: str) -> None:
    named = r"photos/cat\.jpg: " if isinstance(data, bytes) else "an image array must be "
    refused(DataError, f"^{named}{words}", decode, data, RGB16, "photos/cat.jpg")


def test_inputs_are_not_changed() -> None:
    pixels = scene(20, 30)
    image = Image.fromarray(pixels.copy())
    decode(image, GREY16)
    decode(pixels, RGB16)
    assert image.size == (30, 20)
    assert (np.asarray(image) == scene(20, 30)).all()
    assert (pixels == scene(20, 30)).all()


def test_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    refused(DataError, r"none\.png: No such file", decode, tmp_path / "none.png", RGB16)
    refused(DataError, "directory", decode, tmp_path, RGB16)
    odd = tmp_path / "two\nlines.png"
    odd.write_bytes(b"x")
    refused(DataError, r"two\?lines\.png", decode, odd, RGB16)
    refused(DataError, "^猫\u3000\u202f👩\u200d🔬: the file is empty", decode, b"", RGB16, "猫\u3000\u202f👩\u200d🔬")


def test_a_pipe_or_a_device_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "tty.png").symlink_to("/dev/null")
    for name in ("pipe.png", "tty.png"):
        refused(DataError, rf"{name}: is a pipe or a device, not a file; copy", decode, tmp_path / name, RGB16)


def test_an_open_file_is_its_content(tmp_path: Path) -> None:
    path, data = tmp_path / "a.png", encode(scene())
    path.write_bytes(data)
    with path.open("rb") as file, path.open() as text:
        assert one_or_several(file) == [data]
        assert one_or_several([path, io.BytesIO(data)]) == [path, data]
        refused(DataError, r"a\.png: was opened as text; open it with mode 'rb'", one_or_several, [text])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000"]), st.data())
def test_damaged_files_give_an_image_or_a_dataerror(kind: str, data: st.DataObject) -> None:
    whole = bytearray(encode(scene(), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert decode(bytes(whole[:cut]), RGB16, "x").shape == (3, 16, 16)
        except DataError as error:
            assert "\n" not in str(error)


def test_avif_is_not_called_supported_where_pillow_does_not_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kitae.preprocess.files.FORMATS", tuple(name for name in FORMATS if name != "AVIF"))
    avif = b"\0\0\0\x20ftypavif"
    refused(DataError, r"not an image, .*JPEG 2000; AVIF from Pillow 11\.3 on\)$", decode, avif, RGB16)


def test_half_an_image_is_an_error_whatever_a_program_tells_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = encode(scene(400, 400), "JPEG")
    half = whole[: len(whole) // 2]
    with flattened(whole):  # while another image is read
        refused(DataError, "half: cannot be decoded", decode, half, RGB16, "half")
        refused(DataError, "half: cannot be decoded", decode, half, RGB16, "half")
    assert ImageFile.LOAD_TRUNCATED_IMAGES, "the program's own images are read as before"


def test_bombs_are_refused_before_a_pixel_is_decoded() -> None:
    bomb = encode(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    refused(DataError, r"bomb\.png: .*\(400000000 pixels\) exceeds limit of 178956970", decode, bomb, RGB16, "bomb.png")
    refused(DataError, "cannot be decoded", probe, bomb)


# Headers, flattening, rules


def test_probe_reads_upright_size_and_colour_from_the_header() -> None:
    turned = encode(scene(20, 30), "JPEG", exif=turned_by(6))
    tiff = encode(scene(20, 30), "TIFF", exif=turned_by(6))  # Pillow may turn the size of these by itself
    for source in (turned, tiff, scene(30, 20), encode(scene(30, 20))[:-30]):
        assert probe(source) == ((30, 20), False)
    for source in (scene(30, 20)[..., 0], encode(scene(30, 20)[..., 0])):
        assert probe(source) == ((30, 20), True)
    assert probe(jpeg()[:700]) == ((64, 64), False)
    refused(DataError, "a: not an image", probe, b"garbage", "a")


@pytest.mark.parametrize(
    ("mode", "grey"), [("1", True), ("L", True), ("LA", True), ("I;16B", True), ("P", False), ("RGBA", False)]
)
def test_grey_modes(mode: str, grey: bool) -> None:
    assert is_grey_mode(mode) == grey


def test_flattened_keeps_size_and_colour() -> None:
    with flattened(encode(np.dstack([scene(20, 30), np.zeros((20, 30), np.uint8)]))) as (image, mode, _):
        assert (image.size, image.mode, mode) == ((30, 20), "RGB", "RGBA")
        assert np.asarray(image).min() == 255
    with flattened(scene()[..., 0]) as (image, mode, _):
        assert (image.mode, mode) == ("L", "L")
    with flattened(encode(Image.fromarray(np.zeros((4, 4), np.uint16)))) as (image, _, _):
        assert image.mode == "L"


def test_rules_travel_as_a_mapping() -> None:
    rules = PreprocessRules(32, 1, "pad")
    assert rules.to_dict() == {"image_size": 32, "channels": 1, "resize": "pad", "version": 1}
    assert PreprocessRules.from_dict(rules.to_dict()) == rules
    deep = PreprocessRules(32, 1, "pad", depth=12)
    assert deep.to_dict() == {
        "image_size": 32, "channels": 1, "resize": "pad", "depth": 12, "store_size": None, "version": 2,
    }  # fmt: skip
    whole = PreprocessRules((48, 64), 3, store_size=96)
    assert json.loads(json.dumps(whole.to_dict()))["image_size"] == [48, 64]
    assert PreprocessRules(32, crop_pct=0.875).to_dict()["version"] == 3
    centre = PreprocessRules((32, 48), crop_pct=0.875)
    for rules in (deep, whole, centre, PreprocessRules(32, 3, store_size=32), PreprocessRules((32, 48))):
        assert PreprocessRules.from_dict(json.loads(json.dumps(rules.to_dict()))) == rules
    assert PreprocessRules((32, 32)) == PreprocessRules(32)


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"image_size": 0}, "image_size"),
        ({"image_size": 32.0}, "image_size"),
        ({"image_size": True}, "image_size"),
        ({"image_size": 32, "channels": 2}, "channels must be 1 or 3"),
        ({"image_size": 32, "resize": "stretch"}, "crop, squash or pad"),
        ({"image_size": [32, 0], "version": 2}, "image_size"),
        ({"image_size": [32, 32, 3], "version": 2}, "image_size"),
        ({"image_size": 32, "version": 2, "store_size": 31}, "store_size must be"),
        ({"image_size": 32, "version": 2, "store_size": 64.0}, "store_size must be"),
        ({"image_size": 32, "version": 4}, "version 4 is unknown.*; upgrade kitae$"),
        ({"image_size": 32, "version": 3, "crop_pct": 0}, "crop_pct must be above 0"),
        ({"image_size": 32, "version": 3, "crop_pct": None}, "crop_pct must be above 0"),
        ({"image_size": 32, "version": 3, "crop_pct": 0.9, "resize": "pad"}, "crop_pct must be 1"),
        ({"image_size": 32, "version": 2, "depth": 9}, "depth must be 8, 10, 12 or 16"),
        ({"image_size": 32, "version": 1, "depth": 12}, "unknown preprocessing rule 'depth'"),
        ({"image_size": 32, "mean": 1}, "unknown preprocessing rule 'mean'"),
        ({"channels": 3}, "lack image_size"),
    ],
)
def test_wrong_rules_are_named(mapping: dict[str, object], words: str) -> None:
    refused(DataError, words, PreprocessRules.from_dict, mapping)


def test_only_numpy_and_pillow_are_needed() -> None:
    heavy = ("torch", "pyarrow", "numba", "scipy", "pydantic")
    code = f"import sys, kitae.preprocess; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
