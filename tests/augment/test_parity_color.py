"""Colour ops, filters and tables against torchvision 0.29 v2 on uint8 tensors, with the same parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms.v2 import functional as tv

from kitae.augment import functional as F
from tests.augment.parity import BATCHES, EXECUTORS, batch, check, one_by_one, spread
from tests.augment.parity import one_thread as one_thread

pytestmark = [pytest.mark.parametrize("executor", EXECUTORS)]
every = pytest.mark.parametrize("name", BATCHES)

FACTORS = (0.0, 0.1, 0.5, 0.73, 0.999, 1.0, 1.001, 1.19, 1.27, 1.5, 1.9, 2.0, 3.7)
SHIFTS = (-0.5, -0.37, -0.2, -0.1, -0.01, 0.0, 0.01, 0.1, 0.25, 1 / 3, 0.49, 0.5)
SIGMAS = (0.1, 0.3, 0.8, 1.4, 2.0, 5.0)
THRESHOLDS = (0.0, 0.5, 1.0, 77.0, 127.5, 128.0, 226.66667, 254.999, 255.0)


def run(ours, theirs, name, executor, levels, values=None, turns=2):  # type: ignore[no-untyped-def]
    """Both on a batch, `turns` times with the values shifted on, so that images and values meet in several pairs.

    Returns the share of equal values.
    """
    images = batch(name)
    if values is None:
        mine, reference = ours(images, executor=executor), one_by_one(theirs, images, [()] * len(images))
        return check(mine, reference, levels, f"{ours.__name__} on {name} ({executor})")
    shares = []
    for turn in range(turns):
        given = spread(values[4 * turn % len(values) :] + values, len(images))
        mine = ours(images, np.array(given), executor=executor)
        reference = one_by_one(theirs, images, [(v,) for v in given])
        shares.append(check(mine, reference, levels, f"{ours.__name__} {given} on {name} ({executor})"))
    return float(np.mean(shares))


@every
@pytest.mark.parametrize("op", ["brightness", "contrast", "saturation", "sharpness"])
def test_factor_ops(op: str, name: str, executor: str) -> None:
    share = run(getattr(F, op), getattr(tv, f"adjust_{op}"), name, executor, 1, FACTORS)
    assert share > 0.95, f"{op}: only {share:.3%} of the values equal torchvision's"


@every
def test_hue(name: str, executor: str) -> None:
    share = run(F.hue, tv.adjust_hue, name, executor, 1, SHIFTS)
    assert share > 0.95, f"hue: only {share:.3%} of the values equal torchvision's"


@pytest.mark.slow
@every
@pytest.mark.parametrize("op", ["brightness", "contrast", "saturation", "sharpness", "hue"])
def test_every_value_on_every_image(op: str, name: str, executor: str) -> None:
    values = SHIFTS if op == "hue" else FACTORS
    fine = tuple(np.linspace(-0.5, 0.5, 41) if op == "hue" else np.linspace(0, 3, 61))
    run(getattr(F, op), getattr(tv, f"adjust_{op}"), name, executor, 1, values, 13)
    run(getattr(F, op), getattr(tv, f"adjust_{op}"), name, executor, 1, fine, 20)


def test_hue_on_every_corner_of_the_colour_cube(executor: str) -> None:
    steps = np.array([0, 1, 2, 127, 128, 254, 255], np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij")).reshape(1, 3, 7, 49)
    images = np.repeat(cube, 25, 0)
    shifts = np.linspace(-0.5, 0.5, 25)
    check(F.hue(images, shifts, executor=executor), one_by_one(tv.adjust_hue, images, [(s,) for s in shifts]), 1, "hue")


@pytest.mark.slow
@pytest.mark.parametrize("shift", [-0.31, 0.02, 0.5])
def test_hue_of_all_colours(shift: float, executor: str) -> None:
    level = np.arange(256, dtype=np.uint8)
    for red in range(0, 256, 16):
        cube = np.stack(np.meshgrid(level[red : red + 16], level, level, indexing="ij")).reshape(1, 3, 1024, 1024)
        reference = one_by_one(tv.adjust_hue, cube, [(shift,)])
        check(F.hue(cube, shift, executor=executor), reference, 1, f"hue {shift}, red from {red}")


@every
def test_grayscale(name: str, executor: str) -> None:
    channels = batch(name).shape[1]
    share = run(F.grayscale, lambda x: tv.rgb_to_grayscale(x, channels), name, executor, 1)
    assert share > 0.999, f"grayscale: only {share:.3%} of the values equal torchvision's"


def test_grey_of_all_colours(executor: str) -> None:
    """Every 5th level of each channel: floors of sums that lie at whole numbers included."""
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    images = np.stack(np.meshgrid(levels, levels, levels, indexing="ij")).reshape(1, 3, 52, 52 * 52)
    reference = one_by_one(lambda x: tv.rgb_to_grayscale(x, 3), images, [()])
    share = check(F.grayscale(images, executor=executor), reference, 1, "grayscale")
    assert share > 0.999, f"{share:.4%} equal"
    for factor in (0.0, 0.6, 1.8):
        reference = one_by_one(tv.adjust_saturation, images, [(factor,)])
        check(F.saturation(images, factor, executor=executor), reference, 1, f"saturation {factor}")


@every
@pytest.mark.parametrize("op", ["invert", "autocontrast", "equalize"])
def test_bit_equal(op: str, name: str, executor: str) -> None:
    run(getattr(F, op), getattr(tv, op), name, executor, 0)


@every
def test_posterize(name: str, executor: str) -> None:
    run(F.posterize, tv.posterize, name, executor, 0, tuple(range(9)), 3)


@every
def test_solarize(name: str, executor: str) -> None:
    run(F.solarize, tv.solarize, name, executor, 0, THRESHOLDS, 3)
    untouched = F.solarize(batch(name), 256, executor=executor)
    np.testing.assert_array_equal(untouched, batch(name))


def test_tables_on_all_levels(executor: str) -> None:
    """arange(256): what a table says of each level, for parameters in fine steps."""
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)

    def every_value(ours, theirs, values, levels):  # type: ignore[no-untyped-def]
        images = np.repeat(ramp, len(values), 0)
        reference = one_by_one(theirs, images, [(v,) for v in values])
        return check(ours(images, np.array(values), executor=executor), reference, levels, ours.__name__)

    factors = np.linspace(0, 3, 301).tolist()
    assert every_value(F.brightness, tv.adjust_brightness, factors, 1) > 0.9999
    assert every_value(F.contrast, tv.adjust_contrast, factors, 1) > 0.999
    every_value(F.solarize, tv.solarize, np.linspace(0, 255, 511).tolist(), 0)
    every_value(F.posterize, tv.posterize, list(range(9)), 0)


def test_autocontrast_and_equalize_on_narrow_histograms(executor: str) -> None:
    """Every range low .. high of levels, and images of few, many and unevenly filled levels."""
    rng = np.random.default_rng(5)
    images = []
    for _ in range(300):
        low, high = np.sort(rng.integers(0, 256, 2))
        images.append(rng.integers(low, high + 1, (1, 19, 27)))
    for _ in range(100):
        levels = rng.integers(0, 256, rng.integers(1, 6))
        images.append(rng.choice(levels, (1, 19, 27)))
    images.extend(np.clip(rng.exponential(rng.uniform(0.5, 40), (1, 19, 27)), 0, 255) for _ in range(50))
    batch_ = np.stack(images).astype(np.uint8)
    for op in ("autocontrast", "equalize"):
        reference = one_by_one(getattr(tv, op), batch_, [()] * len(batch_))
        check(getattr(F, op)(batch_, executor=executor), reference, 0, op)


@every
@pytest.mark.parametrize("kernel", [3, 5, (7, 3), (1, 5), 9])
def test_gaussian_blur(kernel: int | tuple[int, int], name: str, executor: str) -> None:
    size = [kernel, kernel] if isinstance(kernel, int) else list(kernel)

    def theirs(image: torch.Tensor, sigma: float) -> torch.Tensor:
        return tv.gaussian_blur(image, size, [sigma, sigma])

    def ours(images, sigma, executor):  # type: ignore[no-untyped-def]
        return F.gaussian_blur(images, kernel, sigma, executor=executor)

    ours.__name__ = f"gaussian_blur {kernel}"
    share = run(ours, theirs, name, executor, 1, SIGMAS, 3 if kernel == 5 else 1)
    assert share > 0.95, f"gaussian_blur: only {share:.3%} of the values equal torchvision's"


def test_blur_without_sigma(executor: str) -> None:
    images = batch("rgb 33x47")
    reference = one_by_one(lambda x: tv.gaussian_blur(x, [5, 3]), images, [()] * len(images))
    check(F.gaussian_blur(images, (5, 3), executor=executor), reference, 1, "gaussian_blur")


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (2, 7), (3, 3), (3, 5), (4, 130)])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiny_images(size: tuple[int, int], channels: int, executor: str) -> None:
    images = np.random.default_rng(8).integers(0, 256, (9, channels, *size), dtype=np.uint8)
    none: list[tuple[float, ...]] = [()] * 9
    for op in ("invert", "autocontrast", "equalize"):
        check(getattr(F, op)(images, executor=executor), one_by_one(getattr(tv, op), images, none), 0, op)
    for op in ("brightness", "contrast", "saturation", "sharpness"):
        reference = one_by_one(getattr(tv, f"adjust_{op}"), images, [(1.7,)] * 9)
        check(getattr(F, op)(images, 1.7, executor=executor), reference, 1, op)
    if channels == 3:
        check(F.hue(images, 0.3, executor=executor), one_by_one(tv.adjust_hue, images, [(0.3,)] * 9), 1, "hue")
    if min(size) >= 2:
        reference = one_by_one(lambda x: tv.gaussian_blur(x, [3, 3], [1.0, 1.0]), images, none)
        check(F.gaussian_blur(images, 3, 1.0, executor=executor), reference, 1, "gaussian_blur")


def test_noise_is_added_as_torchvision_adds_it(executor: str) -> None:
    """Without spread the noise is its mean, and then every value can be compared."""
    images = batch("rgb 33x47")
    means = spread((-1.0, -0.3, -0.0019, 0.0, 0.0021, 0.2, 0.5, 1.0), len(images))
    reference = one_by_one(lambda x, mean: tv.gaussian_noise(x, mean, 0.0), images, [(m,) for m in means])
    check(F.gaussian_noise(images, 0.0, np.array(means), executor=executor), reference, 0, "gaussian_noise")


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_noise_is_normal(sigma: float, executor: str) -> None:
    """On mid-grey: the levels added follow a truncated normal, independent of place, channel and key."""
    images = np.full((16, 3, 64, 64), 128, np.uint8)
    noise = F.gaussian_noise(images, sigma, key=np.arange(16), executor=executor).astype(int) - 128
    edges = np.arange(-100, 101)
    scale = 255 * sigma
    # Truncation towards zero: level k > 0 holds [k, k + 1), k < 0 holds (k - 1, k], 0 holds (-1, 1).
    upper = np.where(edges < 0, edges, edges + 1) / scale
    lower = np.where(edges > 0, edges, edges - 1) / scale
    share = stats.norm.cdf(upper) - stats.norm.cdf(lower)
    expected, seen = share * noise.size, np.array([(noise == k).sum() for k in edges])
    keep = expected >= 10
    pooled = stats.chisquare(
        np.append(seen[keep], noise.size - seen[keep].sum()),
        np.append(expected[keep], noise.size - expected[keep].sum()),
    )
    assert pooled.pvalue > 1e-4, f"chi-square of the noise levels: p = {pooled.pvalue:.2g}"
    flat = noise.astype(float)
    neighbours = {
        "column": (flat[..., 1:], flat[..., :-1]),
        "row": (flat[..., 1:, :], flat[..., :-1, :]),
        "channel": (flat[:, 1:], flat[:, :-1]),
        "key": (flat[1:], flat[:-1]),
    }
    for which, (a, b) in neighbours.items():
        r = np.corrcoef(a.ravel(), b.ravel())[0, 1]
        assert abs(r) < 4 / np.sqrt(a.size), f"noise of neighbouring {which}s correlates: {r:.4f}"


def test_salt_and_pepper_hits_the_share_it_says(executor: str) -> None:
    images = np.random.default_rng(2).integers(1, 255, (20, 3, 80, 90), dtype=np.uint8)
    amounts, salts = np.linspace(0, 1, 20), np.tile([0.0, 0.25, 0.5, 1.0], 5)
    out = F.salt_and_pepper(images, amounts, salts, key=np.arange(20) * 977, executor=executor)
    hit = (out != images).all(1)
    np.testing.assert_array_equal(hit, (out != images).any(1))  # a pixel is hit in all channels or in none
    np.testing.assert_array_equal(out[:, 0][hit], out[:, 2][hit])
    assert set(np.unique(out[:, 1][hit])) <= {0, 255}
    for i in range(20):
        count, pixels = int(hit[i].sum()), hit[i].size
        if amounts[i] in (0, 1):
            assert count == amounts[i] * pixels
        else:
            assert stats.binomtest(count, pixels, amounts[i]).pvalue > 1e-4, f"{count} of {pixels} at {amounts[i]}"
        white = int((out[i, 0][hit[i]] == 255).sum())
        if count:
            assert stats.binomtest(white, count, salts[i]).pvalue > 1e-4
