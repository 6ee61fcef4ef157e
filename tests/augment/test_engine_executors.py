"""The two executors give the same images: the same bits for integer ops, within a level otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kitae.augment import cpu
from kitae.augment import functional as f
from kitae.augment.engine import Augment
from kitae.augment.twins.resize import exact

from .test_engine_plan import PIPELINES, names

SIZES = [(1, 17, 19), (3, 70, 40)]  # the parity tests have more
FLOAT_OPS = {  # may differ by a level between executors
    "contrast", "saturation", "color_jitter", "auto_augment", "rand_augment", "trivial_augment_wide", "augmix",
    "gaussian_blur", "rotate", "affine", "perspective",
}  # fmt: skip


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise, ramps, flat colours, checkerboards, smooth images."""
    g = np.random.default_rng(seed)
    shape = (channels, height, width)
    kinds = [
        g.integers(0, 256, shape),
        np.broadcast_to(np.linspace(0, 255, width), shape),
        np.full(shape, g.integers(0, 256)),
        np.broadcast_to(np.indices((height, width)).sum(0) % 2 * 255, shape),
        np.clip(128 + np.cumsum(g.normal(0, 6, shape), 2), 0, 255),
        g.integers(90, 110, shape),
    ]
    return np.array([kinds[i % len(kinds)] for i in range(count)], np.uint8).reshape(count, *shape)


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("pipeline", PIPELINES, ids=names)
def test_every_op(pipeline: list, shape: tuple[int, int, int]) -> None:
    name = next(iter(pipeline[0]))
    if name == "random_crop":
        pipeline = [{name: {"padding": 4, "mode": mode, "fill": 9}} for mode in ("zero", "reflect", "edge")]
    x = pictures(24, *shape)
    kept = x.copy()
    a, b = (Augment(pipeline, executor=e, seed=3)(x, epoch=2, index=np.arange(24)) for e in ("cpu", "torch"))
    assert a.dtype == b.dtype == np.uint8
    assert a.shape == b.shape
    difference = np.abs(a.astype(int) - b)
    if name in FLOAT_OPS:
        assert difference.max() <= (1 if name not in ("auto_augment", "rand_augment", "augmix", "color_jitter") else 12)
        assert (difference > 1).mean() < 0.002  # a level's difference grows in the ops that follow
    else:
        assert difference.max() == 0
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize(("count", "channels"), [(0, 3), (1, 3), (2, 1), (13, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
@pytest.mark.parametrize(("channels_last", "streaming"), [(False, False), (True, False), (True, True)])
def test_last_write(
    count: int, dtype: str, channels_last: bool, channels: int, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "STREAM_BYTES", 0 if streaming else 1 << 40)
    normal = {"mean": (0.5, 0.4, 0.3)[:channels], "std": (0.2, 0.3, 0.25)[:channels], "dtype": dtype}
    ops = [{"random_erasing": {"p": 0.6}}, {"cutout": {"size": 5, "p": 0.5}}]
    x = torch.from_numpy(pictures(count, channels, 21, 30))
    targets = torch.arange(count) % 4
    out = []
    for executor in ("cpu", "torch"):
        mixed = {"mix": {"mixup_alpha": 0.5, "prob": 0.8}, "num_classes": 4, "channels_last": channels_last}
        aug = Augment(ops, executor=executor, **mixed, **({} if dtype == "uint8" else normal))
        out.append(aug(x, targets, epoch=1, index=torch.arange(count)))
    (a, ta), (b, tb) = out
    assert a.dtype == b.dtype == {"float32": torch.float32, "bfloat16": torch.bfloat16, "uint8": torch.uint8}[dtype]
    assert a.shape == b.shape == (count, channels, 21, 30)
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.testing.assert_close(ta, tb, rtol=0, atol=0)
    assert ta.dtype == torch.float32
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert count == 0 or a.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("side", "seed", "autocast"), [(64, 0, True), (256, 5, False), (512, 1, False)])
def test_a_resized_crop_is_exact(side: int, seed: int, autocast: bool) -> None:
    """The seeds are of images for which sums in float32 would be rounded to another level."""
    x = np.random.default_rng(seed).integers(0, 256, (8 if side < 512 else 4, 3, side, side), np.uint8)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        a, b = (f.resized_crop(x, 3, 5, side - 7, side - 5, 32, executor=e) for e in ("cpu", "torch"))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torch_s_default_type_changes_nothing(dtype: torch.dtype) -> None:
    x = np.random.default_rng(0).integers(0, 256, (4, 3, 33, 47), np.uint8)
    calls = [
        lambda: f.grayscale(x, executor="torch"),
        lambda: f.saturation(x, [0.3, 0.77, 1.2, 1.9], executor="torch"),
        lambda: f.contrast(x, [0.3, 0.77, 1.2, 1.9], executor="torch"),
    ]
    expected = [call() for call in calls]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for call, usual in zip(calls, expected, strict=True):
            np.testing.assert_array_equal(call(), usual)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_in_fewer_bits_are_not_relied_on(device: str, precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    x = pictures(4, 3, 17, 23)
    try:
        assert exact(torch.device(device), 1.0) == torch.float32
        torch.set_float32_matmul_precision(precision)
        assert exact(torch.device(device), 1.0) == torch.float64
        np.testing.assert_array_equal(f.resize(x, 40, executor="torch"), f.resize(x, 40, executor="cpu"))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("executor", ["cpu", "torch"])
def test_no_images_become_none_of_the_new_size(executor: str) -> None:
    crops = {"random_crop": {"size": (12, 8)}}, {"random_resized_crop": {"size": 6}}
    for count, ops in ((1, [crops[0]]), (4, [crops[0], lambda image: image, "invert", crops[1]])):
        aug = Augment(ops, mean=0.5, std=0.5, mix={}, num_classes=4, executor=executor)
        out, targets = aug(np.zeros((0, 3, 20, 28), np.uint8), np.zeros(0, np.int64), epoch=0, index=[])
        assert out.shape == ((0, 3, 12, 8) if count == 1 else (0, 3, 6, 6))
        assert targets.shape == (0, 4)


def test_memory_of_a_kept_result_is_not_used_again() -> None:
    aug = Augment(["invert"], mean=0.5, std=0.5)
    x = torch.from_numpy(pictures(64, 3, 32, 32))
    index = torch.arange(64)
    kept = aug(x, epoch=0, index=index)
    view = aug(x, epoch=0, index=index)[3:5]
    copies = kept.clone(), view.clone()
    for _ in range(8):
        aug(~x, epoch=0, index=index)
    assert torch.equal(kept, copies[0])
    assert torch.equal(view, copies[1])


@pytest.mark.parametrize("executor", ["cpu", "torch"])
def test_layouts_and_strides(executor: str) -> None:
    x = pictures(6, 3, 20, 28)
    index = np.arange(6)
    ops = [{"random_crop": {"padding": 2}}, {"color_jitter": {"brightness": 0.3}}]
    expected = Augment(ops, executor=executor)(x, epoch=0, index=index)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    run = Augment(ops, executor=executor, layout="nhwc")
    np.testing.assert_array_equal(run(last, epoch=0, index=index), expected)
    np.testing.assert_array_equal(run(torch.from_numpy(last), epoch=0, index=index).numpy(), expected)
    plain = Augment(ops, executor=executor)
    strided = np.repeat(x, 2, axis=3)[..., ::2]
    assert not strided.flags.c_contiguous
    read_only = x.copy()
    read_only.flags.writeable = False
    tensor = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
    for y in (strided, read_only):
        np.testing.assert_array_equal(plain(y, epoch=0, index=index), expected)
    np.testing.assert_array_equal(plain(tensor, epoch=0, index=index).numpy(), expected)


def test_empty_pipeline() -> None:
    x = pictures(3, 3, 8, 8)
    for executor in ("cpu", "torch"):
        same = Augment([], executor=executor)(x, epoch=0, index=np.arange(3))
        np.testing.assert_array_equal(same, x)
        assert not np.shares_memory(same, x)


def test_identities() -> None:
    x = pictures(6, 3, 25, 31)
    for y in (
        f.horizontal_flip(f.horizontal_flip(x)), f.vertical_flip(f.vertical_flip(x)), f.invert(f.invert(x)),
        f.rotate(f.rotate(x, 180), 180), f.brightness(x, 1.0), f.saturation(x, 1.0), f.posterize(x, 8),
        f.solarize(x, 256), f.sharpness(x, 1.0), f.crop(x, 2, 2, 25, 31, padding=2), f.resize(x, (25, 31)), f.hue(x,
        0.0), f.gaussian_noise(x, 0.0), f.salt_and_pepper(x, 0.0), f.affine(x, interpolation="bilinear"),
        f.gaussian_blur(x, 1),
    ):  # fmt: skip
        np.testing.assert_array_equal(y, x)


GROWING = [  # a function, what else it takes, and its magnitude, from none on
    ("brightness", {}, "factor", (1.0, 1.2, 1.5, 1.9)),
    ("contrast", {}, "factor", (1.0, 0.8, 0.5, 0.1)),
    ("saturation", {}, "factor", (1.0, 0.8, 0.5, 0.1)),
    ("hue", {}, "factor", (0.0, 0.05, 0.15, 0.3)),
    ("sharpness", {}, "factor", (1.0, 2.0, 4.0, 9.0)),
    ("posterize", {}, "bits", (8, 6, 4, 2)),
    ("solarize", {}, "threshold", (256, 200, 140, 80)),
    ("gaussian_blur", {"kernel_size": 9}, "sigma", (1e-6, 0.5, 1.0, 2.0)),
    ("gaussian_noise", {}, "sigma", (0.0, 0.05, 0.1, 0.3)),
    ("salt_and_pepper", {}, "amount", (0.0, 0.05, 0.1, 0.3)),
    ("rotate", {}, "degrees", (0, 5, 15, 40)),
    ("affine", {}, "shear_x", (0, 5, 15, 30)),
    ("affine", {}, "shear_y", (0, -5, -15, -30)),
    ("affine", {}, "translate_x", (0, 2, 5, 10)),
    ("affine", {}, "translate_y", (0, -2, -5, -10)),
    ("affine", {}, "scale", (1.0, 1.1, 1.3, 1.6)),
    ("erase", {"top": 0, "left": 0, "height": 30}, "width", (0, 5, 15, 40)),
]


def test_a_larger_magnitude_changes_more() -> None:
    rising = np.linspace(0, 200, 48)
    smooth = np.stack([np.tile(rising, (48, 1)), np.tile(rising[:, None], (1, 48)), np.full((48, 48), 60)])
    x = np.clip(smooth + np.random.default_rng(0).normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    x = np.stack([x] * 4)
    for name, given, parameter, growing in GROWING:
        out = getattr(f, name)(x, **given, **{parameter: growing}, executor="torch")
        change = np.abs(out.astype(int) - x).mean((1, 2, 3))
        assert change[0] == 0, name
        assert (np.diff(change) > 0).all(), (name, parameter, change)
    index, changes = np.arange(64), []
    for magnitude in (1, 10, 20, 30):
        policy = {"rand_augment": {"magnitude": magnitude}}
        out = Augment([policy], executor="torch")(x[index % 4], epoch=0, index=index)
        changes.append(np.abs(out.astype(int) - x[0]).mean())
    assert (np.diff(changes) > 0).all(), changes
