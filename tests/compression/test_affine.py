from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kitae.compression.affine import affine_parameters, dequantize, quantization_error, quantize

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


def test_errors() -> None:
    error = quantization_error([3.0, 4.0], [3.0, 3.0])
    assert (error.mean, error.maximum, error.relative) == (0.5, 1.0, 0.2)
    assert quantization_error([0.0], [0.0]).relative == 0
    assert quantization_error(np.zeros(0), np.zeros(0)).mean == 0
