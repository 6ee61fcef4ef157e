"""Three ways to quantize a float graph to 8-bit integers with ONNX Runtime's quantizer.

    dynamic   ranges of activations are measured again for every batch: no calibration, but slow on convolutions
    static    ranges of activations are fixed beforehand from *training* images (post-training quantization)
    qat       the network is first trained with simulated rounding (`qat.py`), then quantized as static

In a static graph every quantized tensor lies between a QuantizeLinear and a DequantizeLinear node; a dynamic one has
integer operators. The arithmetic is real = scale * (integer - zero_point), as in Jacob et al. 2018; the tests read
every integer and scale back and compare.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kitae.compression.calibrate import Ranges
from kitae.compression.graph import (
    WEIGHTED,
    compact,
    prepared,
    quantizable,
    readers_of_logits,
    tidied,
    unrounded,
    weighted_nodes,
    with_activation,
)
from kitae.compression.spec import Target
from kitae.console import quiet
from kitae.errors import CompressionError, one_line, require
from kitae.files import temporary_folder
from kitae.runtime import answers, open_session

if TYPE_CHECKING:
    import onnx
    import onnxruntime

_BATCH = 64
_PIXELS = _BATCH * 128**2  # of a batch at most, since the activations of large images take gigabytes


def static(
    proto: onnx.ModelProto,
    ranges: Ranges,
    *,
    target: Target = "any",
    only: Sequence[str] | None = None,
    float_layers: int = 0,
    per_channel: bool = True,
) -> onnx.ModelProto:
    """Quantize a float graph with fixed ranges.

    What comes before the first weighted node (the normalisation) and after the last (temperature, softmax) stays float,
    and the classifier gives its logits in float. (A convolution whose outputs are pooled into logits is rounded.)

    Args:
        ranges: as `calibrate` returns them.
        target: `any` keeps weights in [-64, 64], safe on every CPU; `vnni` uses [-127, 127].
        only: names of the nodes to quantize, for sensitivity; everything else stays float.
        float_layers: how many of the first `weighted_nodes` stay float. Only the first ones can: between two quantized
            layers, ONNX Runtime itself rounds a float convolution's weights when it loads the file, with one scale for
            all channels (its optimizer WeightBiasQuantization).
        per_channel: one scale per output channel, or one for the whole weight.

    Raises:
        CompressionError: there is nothing to quantize.
    """
    work, body = prepared(proto)
    first = weighted_nodes(work)[float_layers]
    body = body[body.index(first) :]
    in_float = {
        *itertools.takewhile(first.__ne__, [node.name for node in work.graph.node]),
        *readers_of_logits(work),
    }
    if only is not None:
        body = [name for name in body if name in set(only)]
    with quiet():
        quantization = require("onnxruntime.quantization")
        calibration = require("onnxruntime.quantization.calibrate")
        quantizer = require("onnxruntime.quantization.qdq_quantizer").QDQQuantizer(
            work,
            per_channel,
            target == "any",
            quantization.QuantType.QInt8,
            quantization.QuantType.QUInt8,
            calibration.TensorsData(
                calibration.CalibrationMethod.MinMax,
                {name: calibration.TensorData(lowest=low, highest=high) for name, (low, high) in ranges.items()},
            ),
            body,
            [],
            sorted(quantizable(work)),
            # The logits are not rounded to 256 steps, since they decide the class; see `readers_of_logits` as well.
            {"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        try:
            quantizer.quantize_model()
        except Exception as error:
            raise CompressionError(f"onnxruntime cannot quantize this graph: {one_line(error, 300)}") from error
        quantized: onnx.ModelProto = quantizer.model.model
        unrounded(quantized, in_float)
        quantizer.model.topological_sort()
    return compact(tidied(quantized))


def dynamic(proto: onnx.ModelProto, *, target: Target = "any", per_channel: bool = True) -> onnx.ModelProto:
    """Quantize weights now, and activations batch by batch. Needs no images; convolutions get slower, not faster.

    Args:
        per_channel: one scale per output channel for linear layers; a convolution's operator takes one for all.

    Raises:
        CompressionError: as `static`.
        KitaeError: no room for temporary files.
    """
    work, _ = prepared(proto)
    quantization = require("onnxruntime.quantization")
    onnx_module = require("onnx")
    with quiet(), temporary_folder() as folder:
        source, result = folder / "float.onnx", folder / "dynamic.onnx"
        del work.graph.value_info[:]  # before 1.32, onnxruntime transposes weights, but not their shapes in here
        onnx_module.save(work, source)
        try:
            quantization.quantize_dynamic(
                source, result, op_types_to_quantize=["Conv", "MatMul", "Gemm"], per_channel=per_channel,
                reduce_range=target == "any", weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip
        except OSError:
            raise
        except Exception as error:
            raise CompressionError(f"onnxruntime cannot quantize this graph: {one_line(error, 300)}") from error
        return tidied(onnx_module.load(result))


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one layer alone does, on selection images.

    Attributes:
        layer: the name of its weights; empty for the float network itself.
        divergence: mean Kullback-Leibler divergence from the float network's probabilities, in nats.
        flips: share of the images whose class changes.
        accuracy: share correct.
    """

    layer: str
    divergence: float
    flips: float
    accuracy: float


def sensitivity(
    proto: onnx.ModelProto,
    ranges: Ranges,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    target: Target = "any",
    per_channel: bool = True,
) -> list[Sensitivity]:
    """Quantize each layer alone and measure how far the outputs move.

    Args:
        images: uint8 [N, C, H, W], selection (validation) images.
        labels: int64 [N].
        target, per_channel: as `static`.

    Returns:
        The float network itself, with which the others are compared; then the layers, the most sensitive first.
    """
    expected = probabilities(proto, images)
    names = {n.name: n.input[1] for n in proto.graph.node if n.op_type in WEIGHTED}

    def correct(outputs: NDArray[np.float32]) -> float:
        return float((outputs.argmax(axis=1) == labels).mean())

    found = []
    for node in weighted_nodes(proto):
        alone = static(proto, ranges, target=target, only=with_activation(proto, node), per_channel=per_channel)
        got = probabilities(alone, images)
        found.append(Sensitivity(names[node], *distance(expected, got), correct(got)))
    return [Sensitivity("", 0.0, 0.0, correct(expected)), *sorted(found, key=lambda item: -item.divergence)]


def distance(teacher: NDArray[np.float32], student: NDArray[np.float32]) -> tuple[float, float]:
    """How far probabilities [N, K] are from others: mean KL(teacher || student) in nats, and the share of classes that
    differ."""
    p, q = teacher.astype(np.float64), np.maximum(student.astype(np.float64), 1e-12)
    terms = np.where(p > 0, p * np.log(np.maximum(p, 1e-300) / q), 0.0)
    return float(terms.sum(axis=1).mean()), float((p.argmax(axis=1) != q.argmax(axis=1)).mean())


def probabilities(proto: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A graph's outputs for images, in ONNX Runtime on this CPU: float32 [N, K]."""
    session = open_session(proto.SerializeToString())
    size = at_once(session)
    return answers(session, (images[start : start + size] for start in range(0, len(images), size)))


def at_once(session: onnxruntime.InferenceSession) -> int:
    """How many images a session is given at once: fewer where they are large."""
    return max(1, min(_BATCH, _PIXELS // int(math.prod(session.get_inputs()[0].shape[2:]))))
