from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitae.compression.affine import (
    affine_parameters,
    dequantize,
    dequantize_symmetric,
    quantization_error,
    quantize,
    quantize_symmetric,
    symmetric_scales,
)
from kitae.errors import CompressionError

finite = st.floats(-1e6, 1e6, width=32)


def test_the_definition() -> None:
    scale, zero_point = affine_parameters(-1.0, 3.0)
    assert scale == np.float32(4 / 255)
    assert zero_point == round(1.0 / (4 / 255))
    assert scale.dtype == np.float32
    assert zero_point.dtype == np.uint8


def test_ranges_that_miss_zero_are_widened() -> None:
    assert affine_parameters(2.0, 5.1) == affine_parameters(0.0, 5.1) == (np.float32(5.1 / 255), 0)
    assert affine_parameters(-5.1, -2.0) == (np.float32(5.1 / 255), 255)
    assert affine_parameters(0.0, 0.0) == (1.0, 0)


@given(finite, finite)
def test_zero_is_exact_and_errors_are_half_a_step(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    scale, zero_point = affine_parameters(low, high)
    assert dequantize(quantize(0.0, scale, zero_point), scale, zero_point) == 0
    values = np.linspace(min(low, 0), max(high, 0), 101, dtype=np.float32)
    restored = dequantize(quantize(values, scale, zero_point), scale, zero_point)
    # Half a step, and at the ends half a step more, since the zero point is itself rounded.
    assert np.abs(restored - values).max() <= scale * 1.01 + 1e-30
    inner = values[10:-10]
    assert np.abs(restored[10:-10] - inner).max() <= scale * 0.51 + 1e-30 or scale == 1


def test_values_outside_are_clipped() -> None:
    scale, zero_point = affine_parameters(-1, 1)
    assert quantize([-9, 9], scale, zero_point).tolist() == [0, 255]


def test_halves_round_to_even() -> None:
    assert quantize([0.5, 1.5, 2.5], 1.0, 0).tolist() == [0, 2, 2]
    assert quantize_symmetric([0.5, -0.5, 1.5], 1.0, None).tolist() == [0, 0, 2]


def test_errors() -> None:
    error = quantization_error([3.0, 4.0], [3.0, 3.0])
    assert (error.mean, error.maximum, error.relative) == (0.5, 1.0, 0.2)
    assert quantization_error([0.0], [0.0]).relative == 0
    assert quantization_error(np.zeros(0), np.zeros(0)).mean == 0


@pytest.mark.parametrize(("target", "limit"), [("vnni", 127), ("any", 64)])
def test_symmetric_scales_by_channel(target, limit) -> None:
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    weights[2] = 0
    scales = symmetric_scales(weights, 0, target)
    assert scales.shape == (4,)
    np.testing.assert_allclose(scales[[0, 1, 3]], np.abs(weights).max((1, 2, 3))[[0, 1, 3]] / limit, rtol=1e-6)
    assert scales[2] == 1
    integers = quantize_symmetric(weights, scales, 0)
    assert integers.dtype == np.int8
    assert np.abs(integers.astype(int)).max() == limit
    error = np.abs(dequantize_symmetric(integers, scales, 0) - weights)
    assert (error <= scales.reshape(-1, 1, 1, 1) * 0.5001).all()
    assert symmetric_scales(weights, None, target).shape == ()


def test_one_scale_a_channel_is_finer() -> None:
    weights = np.random.default_rng(0).normal(size=(8, 20)).astype(np.float32) * 10.0 ** -np.arange(8)[:, None]

    def error(axis: int | None) -> float:
        scales = symmetric_scales(weights, axis)
        return quantization_error(
            weights[4:], dequantize_symmetric(quantize_symmetric(weights, scales, axis), scales, axis)[4:]
        ).relative

    assert error(0) < 0.02
    assert error(None) > 0.3


def test_an_unknown_target() -> None:
    with pytest.raises(CompressionError, match="any or vnni"):
        symmetric_scales(np.ones(2), None, "gpu")  # type: ignore[arg-type]
