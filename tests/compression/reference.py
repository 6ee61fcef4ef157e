"""Every integer, scale and zero point of a quantized graph against the arithmetic of 8 bits, bit for bit.

ONNX Runtime's quantizer makes the graphs. This shows that it quantizes as Jacob et al. 2018 define it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from kitae.compression.calibrate import Ranges
from kitae.compression.graph import weighted_nodes
from kitae.compression.spec import Target

Constants = Mapping[str, NDArray[Any]]
PASSING = {"Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten"}


def constants(proto: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}


def share_of_integers(proto: onnx.ModelProto) -> float:
    """Share of the weights (tensors of two axes and more) that are held as 8-bit integers."""
    held = [values for values in constants(proto).values() if values.ndim > 1]
    return sum(v.size for v in held if v.dtype in (np.int8, np.uint8)) / sum(v.size for v in held)


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


def symmetric_scales(weights: NDArray[Any], axis: int | None, target: Target) -> NDArray[np.float32]:
    """One scale per channel along `axis`, or one for all: largest magnitude / limit, and 1 where all are zero."""
    values = np.abs(np.asarray(weights, np.float32))
    others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis)
    largest = np.asarray(values.max(axis=others), np.float64)
    scales = (largest - -largest) / (2.0 * (127 if target == "vnni" else 64))
    return np.asarray(np.where(scales < np.finfo(np.float32).tiny, 1.0, scales), np.float32)


def quantize_symmetric(weights: NDArray[Any], scales: NDArray[Any], axis: int | None) -> NDArray[np.int8]:
    values = np.asarray(weights, np.float32)
    return np.round(values / _along(scales, values.ndim, axis)).astype(np.int8)


def dequantize_symmetric(integers: NDArray[Any], scales: NDArray[Any], axis: int | None) -> NDArray[np.float32]:
    return integers.astype(np.float32) * _along(scales, integers.ndim, axis)


def _along(scales: NDArray[Any], ndim: int, axis: int | None) -> NDArray[np.float32]:
    return scales if axis is None else scales.reshape([-1 if i == axis else 1 for i in range(ndim)])


def assert_bit_for_bit(
    quantized: onnx.ModelProto,
    graph: onnx.ModelProto,
    target: Target,
    per_channel: bool = True,
    ranges: Ranges | None = None,
) -> dict[str, int]:
    """Compare a static graph with the float graph it was made from; what was compared, by kind.

    One exception: where a bias would not fit 32 bits, ONNX Runtime widens the scale of its weights by as much as that
    needs; such scales are counted as `widened`.
    """
    held, floats = constants(quantized), constants(graph)
    restorers = {node.output[0]: node for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    after = {node.name: node for node in quantized.graph.node}
    seen = {"weights": 0, "biases": 0, "activations": 0, "widened": 0}
    for node in graph.graph.node:
        if node.name not in weighted_nodes(graph):
            continue
        values, now = floats[node.input[1]], after[node.name]
        restorer = restorers.get(now.input[1])
        if restorer is None:
            continue  # left in float
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        axis = 0 if node.op_type == "Conv" or transposed else 1
        along = axis if per_channel else None
        integers, scales, zero_points = (held[part] for part in restorer.input)
        expected = symmetric_scales(values, along, target)
        bias = floats[node.input[2]] if len(node.input) > 2 else None
        before = restorers.get(now.input[0])
        step = None if before is None else held[before.input[1]]
        if not np.array_equal(scales, expected) and bias is not None and step is not None:
            seen["widened"] += int(np.sum(scales != expected))
            expected = _widened(expected, step, bias)
        np.testing.assert_array_equal(scales, expected, strict=True)
        np.testing.assert_array_equal(zero_points, np.zeros(expected.shape, np.int8), strict=True)
        np.testing.assert_array_equal(integers, quantize_symmetric(values, expected, along), strict=True)
        restored = _restored(quantized, restorer, held, values.shape)
        np.testing.assert_array_equal(restored, dequantize_symmetric(integers, scales, along), strict=True)
        assert np.abs((restored - values) / dequantize_symmetric(np.ones_like(integers), scales, along)).max() <= 0.501
        seen["weights"] += 1
        if bias is None:
            continue
        made = restorers.get(now.input[2])
        if made is None:
            np.testing.assert_array_equal(held[now.input[2]], bias)
            continue
        steps = np.asarray(step * scales, np.float32)
        np.testing.assert_array_equal(held[made.input[1]].ravel(), steps.ravel())
        limits = np.iinfo(np.int32)
        whole = np.clip(np.round(bias.astype(np.float64) / steps.astype(np.float64)), limits.min, limits.max)
        np.testing.assert_array_equal(held[made.input[0]], whole.astype(np.int32), strict=True)
        seen["biases"] += 1
    assert seen["weights"] > 0
    if ranges is not None:
        seen["activations"] = _activations(quantized, graph, ranges, held)
    return seen


def _widened(scales: NDArray[Any], step: NDArray[Any], bias: NDArray[Any]) -> NDArray[np.float32]:
    largest = np.abs(bias.astype(np.float32))
    if scales.ndim == 0:  # ONNX Runtime computes this one in double precision, those of channels in single
        largest = np.asarray(largest.max(initial=0.0), np.float64)
    steps = step.astype(np.float64) * scales.astype(np.float64)
    least = (1.0001 * (2.0 * largest)).astype(np.float64) / (2.0 * (2**31 - 1))
    return np.asarray(np.where(steps < least, scales.astype(np.float64) * (least / steps), scales), np.float32)


def _restored(
    quantized: onnx.ModelProto, restorer: onnx.NodeProto, held: Constants, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """A weight as ONNX's own definition of DequantizeLinear reads it: along the axis that the graph gives."""
    result = helper.make_tensor_value_info(restorer.output[0], TensorProto.FLOAT, shape)
    given = [numpy_helper.from_array(held[part], part) for part in restorer.input]
    alone = helper.make_graph([restorer], "restorer", [], [result], given)
    model = helper.make_model(alone, opset_imports=list(quantized.opset_import), ir_version=quantized.ir_version)
    (restored,) = ReferenceEvaluator(model).run(None, {})
    return np.asarray(restored, np.float32)


def _activations(quantized: onnx.ModelProto, graph: onnx.ModelProto, ranges: Ranges, held: Constants) -> int:
    """Every activation that a node takes in quantized has the scale and zero point of its range."""
    before = {node.name: node for node in graph.graph.node}
    makers = {output: node for node in graph.graph.node for output in node.output}
    restorers = {node.output[0]: node for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    checked = 0
    for node in quantized.graph.node:
        for tensor, name in zip(before[node.name].input if node.name in before else (), node.input, strict=False):
            restorer = restorers.get(name)
            if restorer is None or restorer.input[0] in held:
                continue  # a float, or a weight
            found = tuple(held[part].tobytes() for part in restorer.input[1:3])
            allowed = []
            while True:  # a pool or reshape has the scale of what goes into it
                allowed += [affine_parameters(*ranges[tensor])] if tensor in ranges else []
                maker = makers.get(tensor)
                if maker is None or maker.op_type not in PASSING:
                    break
                tensor = maker.input[0]
            assert found in [tuple(np.asarray(part).tobytes() for part in pair) for pair in allowed], node.name
            checked += 1
    return checked
