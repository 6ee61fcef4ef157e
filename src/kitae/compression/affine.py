"""The arithmetic of 8-bit quantization (Jacob et al. 2018): real = scale * (integer - zero_point).

Activations are uint8 with one scale per tensor. Weights are int8, symmetric (zero point 0), with one scale per output
channel or one for the whole tensor: its largest magnitude / `weight_limit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Target = Literal["any", "vnni"]


def weight_limit(target: Target) -> int:
    """Largest magnitude of an int8 weight.

    CPUs without VNNI add two 8-bit products in 16 bits, which saturate. With weights in [-64, 64] they cannot.
    """
    return 127 if target == "vnni" else 64


def affine_parameters(minimum: ArrayLike, maximum: ArrayLike) -> tuple[np.float32, np.uint8]:
    """Scale and zero point that map [minimum, maximum] to 0..255.

    scale = (max - min) / 255 and zero_point = round(-min / scale). The range is first widened to include zero, so that
    zero (padding, ReLU) is represented exactly. An empty range gives scale 1 and zero point 0.
    """
    low = np.minimum(np.asarray(minimum, np.float32), np.float32(0)).astype(np.float64)
    high = np.maximum(np.asarray(maximum, np.float32), np.float32(0)).astype(np.float64)
    scale = (high - low) / 255.0
    if scale < np.finfo(np.float32).tiny:
        return np.float32(1.0), np.uint8(0)
    return np.float32(scale), np.uint8(np.clip(np.round(-low / scale), 0, 255))


def quantize(values: ArrayLike, scale: ArrayLike, zero_point: ArrayLike) -> NDArray[np.uint8]:
    """clip(round(values / scale) + zero_point, 0, 255), rounding half to even: uint8 in the shape of `values`."""
    steps = np.round(np.asarray(values, np.float32) / np.asarray(scale, np.float32))
    return np.clip(steps + np.asarray(zero_point, np.float32), 0, 255).astype(np.uint8)


def dequantize(integers: ArrayLike, scale: ArrayLike, zero_point: ArrayLike) -> NDArray[np.float32]:
    """scale * (integers - zero_point): float32. Scale and zero point broadcast."""
    steps = np.asarray(integers, np.int32) - np.asarray(zero_point, np.int32)
    return np.asarray(scale, np.float32) * steps.astype(np.float32)


@dataclass(frozen=True)
class QuantizationError:
    """How far a tensor is from its quantized self.

    Attributes:
        mean, maximum: of the absolute error, in the tensor's units.
        relative: norm of the error over norm of the tensor.
    """

    mean: float
    maximum: float
    relative: float


def quantization_error(values: ArrayLike, restored: ArrayLike) -> QuantizationError:
    """Errors of `restored` (dequantized) against `values`, of the same shape."""
    reference = np.asarray(values, np.float64)
    error = np.abs(np.asarray(restored, np.float64) - reference)
    norm = float(np.linalg.norm(reference))
    return QuantizationError(
        float(error.mean()) if error.size else 0.0,
        float(error.max(initial=0.0)),
        float(np.linalg.norm(error)) / norm if norm else 0.0,
    )
