"""Plans: one source, the same bits uncompiled and compiled; right distributions; printable, savable."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import betaincinv

from kitae import keyed
from kitae.augment import ops as o
from kitae.augment.engine import Augment
from kitae.augment.ops import policies as p
from kitae.augment.plan import Program, plan_sample
from kitae.augment.spec import OPS, MixSpec
from kitae.errors import AugmentError

SAMPLES = 20_000
BUSY = {  # every op with settings that use all of its draws
    "rotate": {"degrees": (-50, 20), "p": 0.8, "interpolation": "bilinear", "fill": (1, 2, 3)},
    "random_crop": {"padding": (1, 2, 3, 4), "mode": "edge", "size": (20, 24)},
    "random_resized_crop": {"size": 24},
    "affine": {"degrees": 20, "translate": (0.1, 0.2), "scale": (0.8, 1.2), "shear": (-3, 8, 1, 2), "p": 0.7},
    "perspective": {"distortion_scale": 0.7},
    "color_jitter": {"brightness": 0.4, "contrast": 0.3, "saturation": (0.5, 1.6), "hue": 0.2, "p": 0.9},
    "gaussian_blur": {"kernel_size": (3, 5), "p": 0.7},
    "gaussian_noise": {"sigma": (0.02, 0.2), "mean": 0.01},
    "salt_and_pepper": {"amount": (0.0, 0.1), "salt": 0.3},
    "sharpness": {"factor": (0.2, 2.0)},
    "random_erasing": {"p": 0.9, "scale": (0.02, 0.9)},
    "rand_augment": {"num_ops": 3, "magnitude": 12},
    "augmix": {"alpha": 0.7, "mixture_width": 4},
}
PIPELINES = [[{name: BUSY.get(name, {})}] for name in OPS] + [
    [{"auto_augment": {"policy": policy}}] for policy in ("cifar10", "imagenet", "svhn")
]


def names(pipeline: list) -> str:
    return "-".join(
        f"{name}{'-' + v['policy'] if 'policy' in v else ''}" for step in pipeline for name, v in step.items()
    )


def plan(
    ops: list, count: int = SAMPLES, size: tuple[int, int] = (32, 48), epoch: int = 1, seed: int = 5, **more
) -> Program:
    return Augment(ops, seed=seed, **more).plan(epoch=epoch, index=np.arange(count), size=size)


@pytest.mark.parametrize("pipeline", PIPELINES, ids=names)
@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**32 - 1),
    start=st.integers(0, 2**63 - 9),
    per=st.sampled_from(["batch", "sample"]),
)
def test_compiled_plan_has_the_bits_of_the_plain_one(
    pipeline: list, seed: int, epoch: int, start: int, per: str
) -> None:
    aug = Augment(
        pipeline, seed=seed, mean=0.5, std=0.2, mix=MixSpec(per=per, mixup_alpha=0.4, cutmix_alpha=2.0, prob=0.8)
    )
    index = start + np.arange(8)
    step = start // 3
    compiled = aug.plan(epoch=epoch, index=index, size=(32, 48), step=step)
    for row, i in enumerate(index.tolist()):
        plain = plan_sample(aug.pipeline(3, 32, 48), seed, epoch, i, step)
        np.testing.assert_array_equal(compiled.codes[row], plain.codes[0])
        np.testing.assert_array_equal(compiled.args[row], plain.args[0])
        assert compiled.mix is not None
        assert plain.mix is not None
        np.testing.assert_array_equal(compiled.mix[row], plain.mix[0])


def test_probability_zero_and_one() -> None:
    for name in OPS:
        if "p" in OPS[name].model_fields and name != "random_erasing":
            assert not plan([{name: {**BUSY.get(name, {}), "p": 0.0}}], 500).codes.any(), name
            settings_ = {**BUSY.get(name, {}), "p": 1.0}
            assert (plan([{name: settings_}], 500).codes.any(1)).all(), name


def chi_square(counts: np.ndarray, expected: np.ndarray | None = None) -> float:
    return float(stats.chisquare(counts, expected).pvalue)


def test_crop_places_are_uniform() -> None:
    args = plan([{"random_crop": {"padding": 4}}]).args[:, 0]
    for column in (0, 1):
        assert set(args[:, column]) == set(range(-4, 5))
        assert chi_square(np.bincount(args[:, column].astype(int) + 4)) > 1e-4


def test_jitter_order_and_factors_are_uniform() -> None:
    program = plan([{"color_jitter": {"brightness": 0.2, "contrast": 0.4, "saturation": (0.5, 0.9), "hue": 0.1}}])
    orders = {tuple(row) for row in program.codes.tolist()}
    assert len(orders) == 24
    _, counts = np.unique(program.codes, axis=0, return_counts=True)
    assert chi_square(counts) > 1e-4
    ranges = {o.BRIGHTNESS: (0.8, 1.2), o.CONTRAST: (0.6, 1.4), o.SATURATION: (0.5, 0.9), o.HUE: (-0.1, 0.1)}
    for code, (low, high) in ranges.items():
        values = program.args[..., 0][program.codes == code]
        assert len(values) == SAMPLES
        assert stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-4


def test_jitter_leaves_out_what_would_not_change() -> None:
    assert set(np.unique(plan([{"color_jitter": {"hue": 0.1}}], 100).codes)) == {o.NOP, o.HUE}
    grey = Augment([{"color_jitter": {"hue": 0.1, "saturation": 0.5, "contrast": 0.5}}])
    codes = grey.plan(epoch=0, index=np.arange(100), size=(8, 8), channels=1).codes
    assert set(np.unique(codes)) == {o.NOP, o.CONTRAST}


def test_resized_crop_falls_back_to_the_centre() -> None:
    args = plan([{"random_resized_crop": {"scale": (1.0, 1.0), "ratio": (0.9, 1.1)}}], 50, size=(100, 20)).args[:, 0]
    np.testing.assert_array_equal(args[:, :4], np.tile([39.0, 0.0, 22.0, 20.0], (50, 1)))


def test_erasing_that_is_followed_by_an_op_writes_the_mean_colour_in_place() -> None:
    program = plan([{"random_erasing": {"p": 1}}, "invert"], 50, mean=(0.2, 0.4, 0.6), std=0.2)
    assert set(program.codes[:, 0]) <= {o.ERASE, o.NOP}
    np.testing.assert_array_equal(program.args[0, 0, 4:7], [51, 102, 153])
    both = plan([{"random_erasing": {"p": 1}}, {"cutout": {"size": 4}}], 50, mean=0.5, std=0.2)
    assert set(np.unique(both.codes)) <= {o.ERASE_AFTER, o.NOP}
    assert (plan([{"cutout": {"value": 7}}], 10, mean=0.5, std=0.2).codes == o.ERASE).all()
    assert (plan([{"cutout": {}}], 10).args[:, 0, 4:7] == 0).all()  # uint8: black


def test_augmix_weights() -> None:
    program = plan([{"augmix": {}}], 4000)
    m = program.args[:, 0, 0]
    assert stats.kstest(m, "uniform").pvalue > 1e-4
    ends = program.codes == o.CHAIN_END
    weights = program.args[..., 0][ends].reshape(-1, 3)
    np.testing.assert_allclose(weights.sum(1) + m, 1.0, atol=1e-12)
    shares = weights / weights.sum(1, keepdims=True)
    for column in shares.T:  # Dirichlet(1, 1, 1) has Beta(1, 2) margins
        assert stats.kstest(column, "beta", (1, 2)).pvalue > 1e-4


def test_augmix_without_the_corruptions_of_imagenet_c() -> None:
    codes = plan([{"augmix": {"all_ops": False}}], 500).codes
    assert not np.isin(codes, (o.BRIGHTNESS, o.SATURATION, o.CONTRAST, o.SHARPNESS)).any()


@pytest.mark.parametrize(
    ("a", "b", "tolerance"),
    [
        *((a, a, 1e-5) for a in (0.04, 0.1, 0.2, 0.5, 1, 2, 8, 50, 60)),
        *((a, b, 1e-5) for a, b in ((1, 2), (0.4, 1.2), (5, 35), (8, 56))),
        *((a, b, 2e-4) for a, b in ((500, 500), (540, 540), (1000, 1000), (100, 200), (100, 700))),
    ],
)
def test_beta_quantiles_are_within_the_stated_tolerance(a: float, b: float, tolerance: float) -> None:
    table = p.beta_table(a, b)
    u = np.append(keyed.uniform(0, 0, np.arange(20_000), 0), [0.0, 2.0**-32, 1.0 - 2.0**-32])
    found = np.array([p.beta_quantile(x, table, 0) for x in u])
    assert np.abs(found - betaincinv(a, b, u)).max() < tolerance


def test_large_parameters_of_beta_give_numbers() -> None:
    mixing = MixSpec(per="sample", mixup_alpha=1000.0, cutmix_alpha=1000.0)
    program = plan([{"augmix": {"alpha": 100.0, "mixture_width": 8}}], 200, mix=mixing)
    assert np.isfinite(program.args[..., 0]).all()
    share = program.mix[program.mix[:, 0] == 1.0, 1]
    assert np.abs(share - 0.5).max() < 0.1  # nine standard deviations
    assert np.isfinite(program.mix).all()


def test_program_is_printable_savable_and_loadable(tmp_path) -> None:
    aug = Augment(
        [{"random_crop": {"padding": 4}}, {"rotate": {}}, {"random_erasing": {"p": 1}}], mean=0.5, std=0.2, mix={}
    )
    words = aug.explain(epoch=3, index=17, size=(32, 32))
    assert words[0].startswith("crop 32 x 32, at (")
    assert words[1].startswith("turn ")
    assert "zero after normalisation" in words[2]
    assert "its partner, lambda" in words[3]
    program = aug.plan(epoch=3, index=[17, 18], size=(32, 32))
    assert program.describe(0) == words
    program.save(tmp_path / "program.npz")
    again = Program.load(tmp_path / "program.npz")
    for a, b in ((program.codes, again.codes), (program.args, again.args), (program.mix, again.mix)):
        np.testing.assert_array_equal(a, b)


def test_a_file_that_is_no_program_is_refused(tmp_path) -> None:
    path = tmp_path / "program.npz"
    plan(["invert"], 500).save(path)
    whole = path.read_bytes()
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    middle = len(whole) // 2
    for content in (b"", b"program", array.getvalue(), whole[:middle], whole[:200] + bytes(100) + whole[300:]):
        path.write_bytes(content)
        with pytest.raises(AugmentError, match="not a saved program"):
            Program.load(path)


def test_an_op_draws_the_same_whatever_stands_around_it() -> None:
    """Variants of a study that differ in one op share all else; two ops of a name draw apart."""
    whole = plan([{"random_crop": {"padding": 4}}, "horizontal_flip", {"rotate": {"degrees": 30}}], 64)
    without = plan(["horizontal_flip", {"rotate": {"degrees": 30}}], 64)
    np.testing.assert_array_equal(whole.codes[:, 1:], without.codes)
    np.testing.assert_array_equal(whole.args[:, 1:], without.args)
    twice = plan(["horizontal_flip", "horizontal_flip"], 64)
    assert (twice.codes[:, 0] == without.codes[:, 0]).all()
    assert 16 < (twice.codes[:, 0] == twice.codes[:, 1]).sum() < 48


def test_golden_plans() -> None:
    """The plan of every op under a fixed key, by its hash: a change here changes every run ever made.

    Numbers are rounded to six digits, since sines and logarithms differ in the last bit between platforms.
    """
    file = Path(__file__).with_name("golden_plans.json")
    found = {}
    for pipeline in PIPELINES:
        program = plan(pipeline, 64, mean=0.5, std=0.2, mix={"per": "sample", "mixup_alpha": 0.4})
        digest = hashlib.sha256(program.codes.tobytes())
        for numbers in (program.args, program.mix):
            digest.update(np.char.mod("%.6g", numbers).tobytes())
        found[names(pipeline)] = digest.hexdigest()[:16]
    assert found == json.loads(file.read_text()), f"write them to {file.name} where the change is meant: {found}"
