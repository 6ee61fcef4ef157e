"""What the plans draw follows the distributions they promise.

Keys are fixed, so each p-value is a constant: a test fails when a definition changes, never by chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.special import betaincinv

from kitae import keyed
from kitae.augment import Augment
from kitae.augment import ops as o
from kitae.augment.plan import Program

COUNT = 30_000
UNLIKELY = 1e-4


def plan(op: Any, size: tuple[int, int] = (32, 48), **more: Any) -> Program:
    ops = op if isinstance(op, list) else [op]
    return Augment(ops, seed=11, **more).plan(epoch=3, index=np.arange(COUNT), size=size)


def fits(counts: NDArray[Any], shares: Any = None) -> None:
    """Chi-square of counts against shares (all alike by default)."""
    shares = np.full(len(counts), 1 / len(counts)) if shares is None else np.asarray(shares, float)
    assert (counts[shares == 0] == 0).all()
    keep = shares > 0
    expected = shares[keep] / shares.sum() * counts.sum()
    assert expected.min() >= 5
    pvalue = stats.chisquare(counts[keep], expected).pvalue
    assert pvalue > UNLIKELY, f"p = {pvalue:.2g}: {counts.tolist()} against {expected.round(1).tolist()}"


def uniform(values: NDArray[Any], low: float, high: float) -> None:
    assert values.min() >= low
    assert values.max() <= high
    pvalue = stats.kstest(values, "uniform", (low, high - low)).pvalue
    assert pvalue > UNLIKELY, f"p = {pvalue:.2g} for uniform in [{low}, {high}]"


def independent(a: NDArray[Any], b: NDArray[Any], what: str) -> None:
    """Chi-square of a table of two categorical draws, or a rank correlation of two continuous ones."""
    if len(np.unique(a)) <= 70:
        pvalue = stats.contingency.chi2_contingency(stats.contingency.crosstab(a, b).count).pvalue
    else:
        pvalue = stats.spearmanr(a, b).pvalue
    assert pvalue > UNLIKELY, f"{what}: p = {pvalue:.2g}"


def test_rotation_and_affine() -> None:
    args = plan({"rotate": {"degrees": 35}}).args[:, 0]
    uniform(np.degrees(np.arctan2(args[:, 1], args[:, 0])), -35, 35)
    wide = {"degrees": (-20, 50), "translate": (0.25, 0.125), "scale": (0.5, 1.5)}
    args = plan({"affine": wide}, (64, 64)).args[:, 0]
    a, b, c, d, e, f = args[:, :6].T
    scale = 1 / np.sqrt(a * e - b * d)
    uniform(scale, 0.5, 1.5)
    angle = np.degrees(np.arctan2(b, a))
    uniform(angle, -20, 50)
    # The shift, brought back from the inverse matrix: whole pixels, half the weight at both ends of the range.
    inverse = np.stack([a, b, d, e], 1).reshape(-1, 2, 2)
    tx, ty = -np.linalg.solve(inverse, np.stack([c, f], 1)[..., None])[..., 0].T
    for shift, most in ((tx, 16), (ty, 8)):
        whole = np.rint(shift).astype(int)
        assert np.abs(shift - whole).max() < 1e-9
        weights = np.ones(2 * most + 1)
        weights[[0, -1]] = 0.5
        fits(np.bincount(whole + most, minlength=2 * most + 1), weights)
    for x, y, what in ((angle, scale, "angle, scale"), (tx, ty, "shifts"), (angle, tx, "angle, shift")):
        independent(x, y, what)
    # torchvision's inverse of a shear is [[1 + tan sx tan sy, tan sx], [tan sy, 1]].
    args = plan({"affine": {"shear": (-30, 10, 5, 20)}}).args[:, 0]
    uniform(np.degrees(np.arctan(args[:, 1])), -30, 10)
    uniform(np.degrees(np.arctan(args[:, 3])), 5, 20)


def test_perspective_corners() -> None:
    """Each corner's own shift inwards, uniform over whole pixels, from where the coefficients send the corners."""
    height, width = 41, 61
    program = plan({"perspective": {"distortion_scale": 0.4, "p": 0.5}}, (height, width))
    on = program.codes[:, 0] != o.NOP
    fits(np.bincount(on.astype(int)))
    k = program.args[on, 0, :8]
    # Start points are the corners of the image; the inverse map sends end points to them, so invert it.
    inverse = np.linalg.inv(np.concatenate([k, np.ones((len(k), 1))], 1).reshape(-1, 3, 3))
    bx, by = int(0.4 * (width // 2)) + 1, int(0.4 * (height // 2)) + 1
    shifts = []
    for x, y in ((0, 0), (width - 1, 0), (width - 1, height - 1), (0, height - 1)):
        u, v, w = (inverse @ np.array([x, y, 1.0])).T
        ends = u / w, v / w
        for end, corner, side, bound in zip(ends, (x, y), (width, height), (bx, by), strict=True):
            whole = np.rint(end).astype(int)
            assert np.abs(end - whole).max() < 1e-6
            inwards = whole if corner == 0 else side - 1 - whole
            fits(np.bincount(inwards, minlength=bound))
            shifts.append(inwards)
    for i in range(8):
        for j in range(i):
            independent(shifts[i], shifts[j], f"corner shifts {i} and {j}")


def test_resized_crop_where_everything_fits() -> None:
    """Windows of at most a quarter of the image always fit: area and log-ratio are exactly uniform, places too."""
    args = plan({"random_resized_crop": {"scale": (0.05, 0.25), "ratio": (0.5, 2.0)}}, (1000, 1000)).args[:, 0]
    top, left, h, w = args[:, :4].T
    jitter = np.random.default_rng(0).uniform(-0.5, 0.5, (2, COUNT))  # sides are whole pixels
    uniform(np.clip((h + jitter[0]) * (w + jitter[1]) / 1e6, 0.05, 0.25), 0.05, 0.25)
    uniform(np.clip(np.log((w + jitter[0]) / (h + jitter[1])), np.log(0.5), np.log(2)), np.log(0.5), np.log(2))
    uniform((top + 0.5) / (1000 - h + 1), 0, 1)
    uniform((left + 0.5) / (1000 - w + 1), 0, 1)
    independent(h * w, w / h, "area and ratio")
    independent(top, left, "places")


def test_erasing_log_ratio_and_place() -> None:
    op = {"random_erasing": {"p": 0.3, "scale": (0.02, 0.2), "ratio": (0.3, 3.3)}}
    program = plan(op, (1000, 1000))
    on = program.codes[:, 0] != o.NOP
    fits(np.bincount(on.astype(int)), [0.7, 0.3])
    top, left, h, w = program.args[on, 0, :4].T
    jitter = np.random.default_rng(0).uniform(-0.5, 0.5, (2, len(h)))
    uniform(np.clip(np.log((h + jitter[0]) / (w + jitter[1])), np.log(0.3), np.log(3.3)), np.log(0.3), np.log(3.3))
    uniform(np.clip((h + jitter[0]) * (w + jitter[1]) / 1e6, 0.02, 0.2), 0.02, 0.2)
    uniform((top + 0.5) / (1000 - h + 1), 0, 1)
    uniform((left + 0.5) / (1000 - w + 1), 0, 1)


def test_cutout_centres() -> None:
    args = plan({"cutout": {"size": 16}}, (40, 24)).args[:, 0]
    top, left, h, w = args[:, :4].T
    for start, side, extent in ((top, h, 40), (left, w, 24)):
        # The centre from the side that was not clipped.
        centre = np.where(start > 0, start + 8, side + start - 8).astype(int)
        fits(np.bincount(centre, minlength=extent))
        assert (start + side <= extent).all()


@pytest.mark.parametrize(
    ("op", "column", "low", "high"),
    [
        ({"brightness": {"amount": 0.4}}, 0, 0.6, 1.4),
        ({"contrast": {"amount": 1.5}}, 0, 0.0, 2.5),
        ({"saturation": {"amount": (0.2, 0.7)}}, 0, 0.2, 0.7),
        ({"hue": {"amount": 0.3}}, 0, -0.3, 0.3),
        ({"sharpness": {"factor": (0.1, 1.9), "p": 1.0}}, 0, 0.1, 1.9),
        ({"gaussian_blur": {"kernel_size": 5, "sigma": (0.1, 2.0)}}, 2, 0.1, 2.0),
        ({"gaussian_noise": {"sigma": (0.05, 0.2)}}, 3, 0.05, 0.2),
        ({"gaussian_noise": {}}, 0, 0, 2**32),
        ({"gaussian_noise": {}}, 1, 0, 2**32),
        ({"salt_and_pepper": {"amount": (0.0, 0.5)}}, 2, 0.0, 0.5),
        ({"salt_and_pepper": {}}, 0, 0, 2**32),
    ],
    ids=str,
)
def test_continuous_parameters(op: dict[str, Any], column: int, low: float, high: float) -> None:
    uniform(plan(op).args[:, 0, column], low, high)


@pytest.mark.parametrize(
    "name",
    ["horizontal_flip", "vertical_flip", "grayscale", "invert", "posterize", "solarize", "autocontrast", "equalize"],
)
@pytest.mark.parametrize("share", [0.07, 0.5, 0.9])
def test_probabilities(name: str, share: float) -> None:
    on = plan({name: {"p": share}}).codes[:, 0] != o.NOP
    fits(np.bincount(on.astype(int)), [1 - share, share])


def test_lambda_and_box() -> None:
    alphas = {"per": "sample", "mixup_alpha": 0.3, "cutmix_alpha": 0.7, "prob": 0.8, "switch_prob": 0.25}
    mix = plan([], (90, 120), mix=alphas).mix
    assert mix is not None
    kind = mix[:, 0].astype(int)
    fits(np.bincount(kind, minlength=3), [0.2, 0.6, 0.2])
    assert stats.kstest(mix[kind == 1, 1], "beta", (0.3, 0.3)).pvalue > UNLIKELY
    # The box is torchvision's, made of the drawn lambda and centre; lambda becomes the share that is kept.
    rows = np.flatnonzero(kind == 2)
    lam = betaincinv(0.7, 0.7, keyed.uniforms(11, 3, rows, keyed.SLOT_MIX)[:, 2])
    centre = keyed.uniforms(11, 3, rows, keyed.SLOT_MIX + 1)
    r = 0.5 * np.sqrt(1 - lam)
    half_w, half_h = (r * 120).astype(int), (r * 90).astype(int)
    x, y = (centre[:, 0] * 120).astype(int), (centre[:, 1] * 90).astype(int)
    box = np.stack(
        [(x - half_w).clip(0), (y - half_h).clip(0), (x + half_w).clip(max=120), (y + half_h).clip(max=90)], 1
    )
    same = (mix[rows, 2:] == box).all(1)
    assert same.mean() > 0.998  # quantiles come from a table; now and then they fall on the other side of a pixel
    assert np.abs(mix[rows, 2:] - box).max() <= 1
    area = (mix[rows, 4] - mix[rows, 2]) * (mix[rows, 5] - mix[rows, 3])
    np.testing.assert_array_equal(mix[rows, 1], 1 - area / (90 * 120))
