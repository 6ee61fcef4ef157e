"""From 32-bit floats to 8-bit integers: the arithmetic, and three ways to choose it for a whole network.

The arithmetic is affine (Jacob et al. 2018): real = scale * (integer - zero_point). Activations are uint8 with one
scale a tensor, weights are int8, symmetric, with one scale an output channel.

    dynamic   scales of activations are measured anew for every batch: no calibration, but slow on convolutions
    static    scales of activations are fixed beforehand from *training* images (post-training quantization)
    qat       the network first learns to live with the rounding (quantization-aware training), then as static

All three give an ONNX graph for ONNX Runtime, in which every quantized tensor stands between QuantizeLinear and
DequantizeLinear nodes (dynamic: integer operators). `check_integers` reads the integers and scales back from the
finished graph and compares them with this module's own arithmetic, bit for bit.

On CPUs without VNNI, sums of two products of 8 bits saturate at 16 bits. With target `any` weights therefore keep to
[-64, 64], where they cannot; target `vnni` uses [-127, 127].
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kitae.compression.distill import Distance, distance
from kitae.console import quiet
from kitae.errors import CompressionError, one_line, require

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Target = Literal["any", "vnni"]
Method = Literal["minmax", "average", "percentile", "entropy"]
Ranges = dict[str, tuple[np.float32, np.float32]]
Float = NDArray[np.float32]

METHODS: tuple[Method, ...] = ("minmax", "average", "percentile", "entropy")
FEWEST_IMAGES = 16
"""Calibration with fewer images is refused: a range seen on so few is not the range of the data."""

# The arithmetic


def affine_parameters(minimum: ArrayLike, maximum: ArrayLike) -> tuple[np.float32, np.uint8]:
    """Scale and zero point that map [minimum, maximum] to 0..255.

    scale = (max - min) / 255 and zero_point = round(-min / scale), after the range was widened to hold zero, so that
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


def dequantize(integers: ArrayLike, scale: ArrayLike, zero_point: ArrayLike) -> Float:
    """scale * (integers - zero_point): float32. Scale and zero point broadcast."""
    return np.asarray(scale, np.float32) * (np.asarray(integers, np.int32) - np.asarray(zero_point, np.int32)).astype(
        np.float32
    )


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


def symmetric_scales(weights: ArrayLike, axis: int | None = 0, target: Target = "vnni") -> Float:
    """One scale a channel: largest magnitude / 127, or / 64 for target `any`; 1 where a channel is all zero.

    Args:
        weights: float32, any shape.
        axis: which axis holds the channels; None gives one scale for the whole tensor.
    """
    values = np.abs(np.asarray(weights, np.float32))
    if axis is None:
        largest = values.max(initial=0.0)
    else:
        largest = values.max(axis=tuple(i for i in range(values.ndim) if i != axis % values.ndim), initial=0.0)
    largest = np.asarray(largest, np.float64)
    scales = (largest - -largest) / (2.0 * _limit(target))
    return np.asarray(np.where(scales < np.finfo(np.float32).tiny, 1.0, scales), np.float32)


def quantize_symmetric(weights: ArrayLike, scales: ArrayLike, axis: int | None = 0) -> NDArray[np.int8]:
    """round(weights / scale), half to even, with zero point 0: int8 in the shape of `weights`."""
    values = np.asarray(weights, np.float32)
    return np.clip(np.round(values / _along(scales, values.ndim, axis)), -128, 127).astype(np.int8)


def dequantize_symmetric(integers: ArrayLike, scales: ArrayLike, axis: int | None = 0) -> Float:
    """The inverse of `quantize_symmetric`, up to half a scale: float32."""
    values = np.asarray(integers, np.float32)
    return values * _along(scales, values.ndim, axis)


def _along(scales: ArrayLike, ndim: int, axis: int | None) -> Float:
    array = np.asarray(scales, np.float32)
    if axis is None or array.ndim == 0:
        return array
    return array.reshape([-1 if i == axis % ndim else 1 for i in range(ndim)])


def _limit(target: Target) -> int:
    if target not in ("any", "vnni"):
        raise CompressionError(f"target must be any or vnni, not {target!r}")
    return 127 if target == "vnni" else 64


# Calibration


def calibrate(
    proto: onnx.ModelProto,
    images: NDArray[np.uint8],
    method: Method = "minmax",
    *,
    percentile: float = 99.99,
    batch_size: int = 32,
    memory: int = 256 * 2**20,
) -> Ranges:
    """The range of every activation that may be quantized, seen on training images.

    Args:
        proto: the float graph.
        images: uint8 [N, C, H, W], *training* images at the model's size; 200 to 1,000 are usual.
        method: `minmax` takes the extremes; `average` the mean of each batch's extremes; `percentile` cuts the given
            share of values off, half of it on each side; `entropy` picks the range whose 8-bit histogram has the
            smallest divergence from the full one (Migacz 2017).
        batch_size: images per pass for the extremes.
        memory: bytes of activations held at once for histograms.

    Returns:
        (lowest, highest) as float32 by tensor name.

    Raises:
        CompressionError: fewer than 16 images, or an unknown method.
    """
    if method not in METHODS:
        raise CompressionError(f"calibration method must be one of {', '.join(METHODS)}, not {method!r}")
    if len(images) < FEWEST_IMAGES:
        raise CompressionError(
            f"calibration needs at least {FEWEST_IMAGES} training images (a few hundred are better), not {len(images)}"
        )
    if not 50 < percentile <= 100:
        raise CompressionError(f"percentile must be in (50, 100], not {percentile}")
    tensors = _activations(proto)
    extremes = _extremes(proto, tensors, images, batch_size)
    lowest, highest = extremes[0].min(axis=0), extremes[1].max(axis=0)
    if not (np.isfinite(lowest).all() and np.isfinite(highest).all()):
        raise CompressionError("an activation is not finite on the calibration images")
    if method == "average":
        # Weights each batch the same; a short last batch has narrower extremes, so it is left out where it can be.
        full = max(1, len(images) // batch_size)
        lowest, highest = extremes[0][:full].mean(axis=0), extremes[1][:full].mean(axis=0)
    elif method != "minmax":
        histograms = _histograms(proto, tensors, images, lowest, highest, memory)
        narrow = _cut_tails if method == "percentile" else _least_divergence
        for i in range(len(tensors)):
            lowest[i], highest[i] = narrow(histograms[i], float(lowest[i]), float(highest[i]), percentile)
    return {name: (np.float32(lowest[i]), np.float32(highest[i])) for i, name in enumerate(tensors)}


_BINS = 2048
_LEVELS = 256


def _extremes(
    proto: onnx.ModelProto, tensors: Sequence[str], images: NDArray[np.uint8], batch_size: int
) -> tuple[Float, Float]:
    """Smallest and largest value of each tensor in each batch: float32 [batches, tensors] twice."""
    helper = require("onnx.helper", "compress")
    probe = type(proto)()
    probe.CopyFrom(proto)
    for name in tensors:
        for op, suffix in (("ReduceMin", "/min"), ("ReduceMax", "/max")):
            probe.graph.node.append(helper.make_node(op, [name], [name + suffix], name=name + suffix, keepdims=0))
            probe.graph.output.append(helper.make_tensor_value_info(name + suffix, 1, []))
    session = _session(probe)
    wanted = [name + suffix for suffix in ("/min", "/max") for name in tensors]
    rows = [session.run(wanted, {_input(proto): batch}) for batch in _chunks(images, batch_size)]
    table = np.array(rows, np.float32).reshape(len(rows), 2, len(tensors))
    return table[:, 0], table[:, 1]


def _histograms(
    proto: onnx.ModelProto,
    tensors: Sequence[str],
    images: NDArray[np.uint8],
    lowest: Float,
    highest: Float,
    memory: int,
) -> NDArray[np.int64]:
    """Counts of each tensor's values in equal bins between its extremes: int64 [tensors, bins]."""
    probe = type(proto)()
    probe.CopyFrom(proto)
    inferred = _prepared(proto)[0].graph  # a graph that was read from a file may come without inner shapes
    infos = {info.name: info for info in (*inferred.value_info, *inferred.output, *inferred.input)}
    present = {info.name for info in proto.graph.output}
    probe.graph.output.extend(infos[name] for name in tensors if name not in present)
    session = _session(probe)
    counts = np.zeros((len(tensors), _BINS), np.int64)
    first = session.run(list(tensors), {_input(proto): images[:1]})
    # One image's activations say how many images fit; tensors are fetched a few at a time where one image is too much.
    batch_size = int(np.clip(memory // max(1, sum(value.nbytes for value in first)), 1, 64))
    sizes = [value.nbytes * batch_size for value in first]
    del first
    for batch in _chunks(images, batch_size):
        for part in _packs(sizes, memory):
            values = session.run([tensors[i] for i in part], {_input(proto): batch})
            for i, value in zip(part, values, strict=True):
                width = float(highest[i]) - float(lowest[i])
                if width > 0:
                    place = ((value.ravel() - lowest[i]) * np.float32(_BINS / width)).astype(np.int32)
                    counts[i] += np.bincount(np.clip(place, 0, _BINS - 1), minlength=_BINS)
    return counts


def _packs(sizes: Sequence[int], memory: int) -> Iterator[list[int]]:
    pack: list[int] = []
    for i, size in enumerate(sizes):
        if pack and sum(sizes[j] for j in pack) + size > memory:
            yield pack
            pack = []
        pack.append(i)
    yield pack


def _cut_tails(counts: NDArray[np.int64], low: float, high: float, percentile: float) -> tuple[float, float]:
    total = counts.sum()
    if total == 0:
        return low, high
    share = np.cumsum(counts) / total
    cut = (100.0 - percentile) / 200.0
    first = int(np.searchsorted(share, cut, side="right"))
    last = int(np.searchsorted(share, 1.0 - cut, side="left"))
    width = (high - low) / _BINS
    return low + first * width, min(high, low + (last + 1) * width)


def _least_divergence(counts: NDArray[np.int64], low: float, high: float, _: float) -> tuple[float, float]:
    """The clipping threshold t whose range [-t, t], cut to [low, high], loses least when binned to 256 levels."""
    total = counts.sum()
    if total == 0:
        return low, high
    width = (high - low) / _BINS
    zero = int(np.clip(round(-low / width), 0, _BINS))  # the bin where zero lies
    reach = max(zero, _BINS - zero)
    best, chosen = np.inf, (low, high)
    # The whole range too, whether or not the steps end there.
    for half in (*range(max(_LEVELS // 2, reach // 16), reach, max(1, reach // 128)), reach):
        first, last = max(0, zero - half), min(_BINS, zero + half)
        if last - first < _LEVELS // 2:
            continue
        inside = counts[first:last].astype(np.float64)
        clipped = inside.copy()
        clipped[0] += counts[:first].sum()
        clipped[-1] += counts[last:].sum()
        level = np.arange(last - first) * _LEVELS // (last - first)
        used = inside > 0
        mass = np.bincount(level, weights=inside, minlength=_LEVELS)
        members = np.bincount(level, weights=used, minlength=_LEVELS)
        coarse = np.where(used, mass[level] / np.maximum(members[level], 1), 0.0)
        p, q = clipped / total, coarse / max(coarse.sum(), 1.0)
        # Outliers land in a bin that the coarse histogram may leave empty; a floor keeps that divergence finite.
        here = p > 0
        divergence = float(np.sum(p[here] * np.log(p[here] / np.maximum(q[here], 1e-4 / total))))
        if divergence < best:
            best, chosen = divergence, (low + first * width, low + last * width)
    return chosen


# Graphs

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_ELEMENTWISE = frozenset({"Add", "Mul"})
_PASSING = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "MaxPool", "AveragePool",
                      "GlobalAveragePool", "Concat", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten",
                      "Resize"})  # fmt: skip
_HOLDS_WEIGHTS = frozenset({"LSTM", "GRU", "RNN", "Einsum", "Attention", "DeformConv"})


def weighted_nodes(proto: onnx.ModelProto) -> list[str]:
    """Names of the nodes whose weights can be quantized, in the order they run."""
    constants = {item.name for item in proto.graph.initializer}
    return [n.name for n in proto.graph.node if n.op_type in _WEIGHTED and n.input[1] in constants]


def static(
    proto: onnx.ModelProto, ranges: Ranges, *, target: Target = "any", only: Sequence[str] | None = None,
    exclude: Sequence[str] = (), per_channel: bool = True,
) -> onnx.ModelProto:  # fmt: skip
    """Quantize a float graph with fixed ranges, in QuantizeLinear/DequantizeLinear pairs.

    What comes before the first weighted node (the normalisation) and after the last (temperature, softmax) stays float,
    and the classifier gives its logits in float.

    Args:
        proto: the float graph.
        ranges: as `calibrate` gives.
        target: see the module.
        only: names of `weighted_nodes` to quantize alone, for sensitivity; everything else stays float.
        exclude: names of nodes to leave in float.
        per_channel: one scale an output channel, or one for the whole weight.

    Raises:
        CompressionError: there is nothing to quantize, or an operation with weights cannot be (it is named).
    """
    _limit(target)
    work, body = _prepared(proto)
    if only is not None:
        body = [name for name in body if name in set(only)]
    body = [name for name in body if name not in set(exclude)]
    if not body:
        raise CompressionError("there is nothing to quantize in this graph")
    with quiet():
        quantization = require("onnxruntime.quantization", "compress")
        calibration = require("onnxruntime.quantization.calibrate", "compress")
        quantizer = require("onnxruntime.quantization.qdq_quantizer", "compress").QDQQuantizer(
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
            sorted(_WEIGHTED | _ELEMENTWISE | _PASSING),
            # A classifier's scores decide: they are not squeezed into 256 steps.
            {"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        try:
            quantizer.quantize_model()
        except Exception as error:
            raise CompressionError(f"onnxruntime cannot quantize this graph: {one_line(error, 300)}") from error
        quantizer.model.topological_sort()
        quantized: onnx.ModelProto = quantizer.model.model
    return _compact(_tidied(quantized))


def dynamic(
    proto: onnx.ModelProto, *, target: Target = "any", per_channel: bool = True, linear_only: bool = False
) -> onnx.ModelProto:
    """Quantize weights now and activations batch by batch. Needs no images; convolutions get slower, not faster.

    Args:
        per_channel: one scale an output channel for linear layers; a convolution's operator takes one for all.
        linear_only: leave convolutions in float, as torch's dynamic quantization does.

    Raises:
        CompressionError: as `static`.
    """
    _limit(target)
    work, _ = _prepared(proto)
    quantization = require("onnxruntime.quantization", "compress")
    operators = ["MatMul", "Gemm"] if linear_only else ["Conv", "MatMul", "Gemm"]
    onnx_module = require("onnx", "compress")
    with quiet(), tempfile.TemporaryDirectory(prefix="kitae.") as folder:
        source, result = Path(folder, "float.onnx"), Path(folder, "dynamic.onnx")
        onnx_module.save(work, source)
        try:
            quantization.quantize_dynamic(
                source, result, op_types_to_quantize=operators, per_channel=per_channel,
                reduce_range=target == "any", weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip
        except Exception as error:
            raise CompressionError(f"onnxruntime cannot quantize this graph: {one_line(error, 300)}") from error
        quantized: onnx.ModelProto = onnx_module.load(result)
    return _tidied(quantized)


def integer_share(proto: onnx.ModelProto) -> float:
    """Share of the weights (tensors of two axes and more) that are held as 8-bit integers, in [0, 1]."""
    sizes = {True: 0, False: 0}
    for item in proto.graph.initializer:
        if len(item.dims) > 1:
            sizes[item.data_type in (2, 3)] += int(np.prod(item.dims))
    total = sum(sizes.values())
    return sizes[True] / total if total else 0.0


@dataclass(frozen=True)
class Integers:
    """What `check_integers` found equal to the reference.

    Attributes:
        weights: quantized weight tensors, by the nodes that use them.
        biases: quantized biases.
        activations: quantized activations.
        widened: scales of weights that were widened so that a bias fits 32 bits.
        worst: largest |weight - dequantized| as a share of its scale; at most one half.
    """

    weights: int
    biases: int
    activations: int
    widened: int
    worst: float


def check_integers(
    proto: onnx.ModelProto, original: onnx.ModelProto, *, target: Target, ranges: Ranges | None = None,
    per_channel: bool = True,
) -> Integers:  # fmt: skip
    """Read integers, scales and zero points back from a quantized graph and compare them with this module's arithmetic.

    Every int8 weight and int32 bias, their scales, zero points and axes, and (with `ranges`) the scale and zero point
    of every activation must be equal bit for bit; a bias that stays float must be the original's. One exception is
    checked on its own terms: where a bias would not fit 32 bits, the scale of its weights may be just as much wider as
    that needs.

    Args:
        proto: as `static` or `dynamic` gives.
        original: the float graph it was made from.
        target, per_channel: as they were given to `static` or `dynamic`.
        ranges: as they were given to `static`.

    Raises:
        CompressionError: names the first tensor that differs.
    """
    held, reference = _constants(proto), _constants(original)
    read = _restored if any(node.op_type == "DequantizeLinear" for node in proto.graph.node) else _named
    weights = biases = widened = 0
    worst = 0.0
    for node in original.graph.node:
        if node.op_type not in _WEIGHTED or node.input[1] not in reference:
            continue
        name, values = node.input[1], reference[node.input[1]]
        layer = read(proto, held, node)
        if layer is None:
            continue
        if layer.transposed:
            values = values.T
        axis = layer.axis if per_channel and layer.can_have_channels else None
        expected = symmetric_scales(values, axis, target)
        bias = reference[node.input[2]] if len(node.input) > 2 and node.input[2] else None
        if not np.array_equal(layer.weight.scales, expected):
            needed = _scales_for_bias(expected, layer.input_scale, bias)
            if needed is None or not np.array_equal(layer.weight.scales, needed):
                raise CompressionError(f"the scales of {name} are not those of its weights")
            widened += int(np.sum(needed != expected))
        _check_tensor(layer.weight, name, quantize_symmetric(values, layer.weight.scales, axis), axis)
        error = np.abs(values - dequantize_symmetric(layer.weight.integers, layer.weight.scales, axis))
        worst = max(worst, float((error / _along(layer.weight.scales, values.ndim, axis)).max(initial=0.0)))
        weights += 1
        biases += _check_bias(layer, bias, node.input[2] if bias is not None else "")
    if weights == 0:
        raise CompressionError("the graph holds no quantized weights")
    if worst > 0.5 + 1e-3:
        raise CompressionError(f"a weight is {worst:.2f} scales from its integer; it must be within a half")
    activations = 0 if ranges is None else _check_activations(proto, original, ranges, held)
    return Integers(weights, biases, activations, widened, worst)


def open_session(content: bytes, threads: int | None = None) -> onnxruntime.InferenceSession:
    """A graph in ONNX Runtime on this CPU.

    Raises:
        CompressionError: ONNX Runtime refuses it.
    """
    ort = require("onnxruntime", "compress")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session: onnxruntime.InferenceSession = ort.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise CompressionError(f"onnxruntime cannot run this graph: {one_line(error, 300)}") from error
    return session


# Sensitivity


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one layer alone does, on selection images.

    Attributes:
        layer: the name of its weights.
        divergence: mean Kullback-Leibler divergence from the float network's probabilities, in nats.
        flips: share of the images whose class changes.
        accuracy: share correct, or None without labels.
    """

    layer: str
    divergence: float
    flips: float
    accuracy: float | None


def sensitivity(
    proto: onnx.ModelProto,
    ranges: Ranges,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None = None,
    *,
    target: Target = "any",
    per_channel: bool = True,
    batch_size: int = 64,
) -> list[Sensitivity]:
    """Quantize each layer alone and see how far the outputs move; the most sensitive first.

    Args:
        images: uint8 [N, C, H, W], selection (validation) images.
        labels: int64 [N].
        target, per_channel: as `static`.
    """
    expected = probabilities(proto, images, batch_size)
    names = {n.name: n.input[1] for n in proto.graph.node if n.op_type in _WEIGHTED}
    found = []
    for node in weighted_nodes(proto):
        alone = static(proto, ranges, target=target, only=[node], per_channel=per_channel)
        got = probabilities(alone, images, batch_size)
        moved: Distance = distance(expected, got)
        accuracy = None if labels is None else float((got.argmax(axis=1) == labels).mean())
        found.append(Sensitivity(names[node], moved.divergence, moved.flips, accuracy))
    return sorted(found, key=lambda item: -item.divergence)


def probabilities(proto: onnx.ModelProto, images: NDArray[np.uint8], batch_size: int = 64) -> Float:
    """A graph's outputs for images, in ONNX Runtime on this CPU: float32 [N, K]."""
    session = _session(proto)
    name = _input(proto)
    return np.concatenate([session.run(None, {name: batch})[0] for batch in _chunks(images, batch_size)])


# What follows is private.


@dataclass(frozen=True)
class _Tensor:
    """A quantized tensor as a graph holds it.

    Attributes:
        axis: along which `scales` runs in the graph; it says nothing where there is one scale.
    """

    integers: NDArray[Any]
    scales: NDArray[Any]
    zero_points: NDArray[Any]
    axis: int


@dataclass(frozen=True)
class _Layer:
    """A node with weights as a quantized graph holds it.

    Attributes:
        axis: of the weight's output channels.
        can_have_channels: False where the operator takes one scale for the whole weight.
        transposed: the weight is held transposed.
        bias: quantized, or as the graph holds it in float, or None.
        input_scale: of the activation it takes; None where that is measured batch by batch.
    """

    weight: _Tensor
    axis: int
    bias: _Tensor | NDArray[Any] | None = None
    input_scale: NDArray[Any] | None = None
    can_have_channels: bool = True
    transposed: bool = False


def _constants(proto: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    numpy_helper = require("onnx.numpy_helper", "compress")
    return {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}


def _channel_axis(node: onnx.NodeProto) -> int:
    """Which axis of a float graph's weight holds the output channels."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Conv" or (node.op_type == "Gemm" and transposed) else 1


def _restored(proto: onnx.ModelProto, held: Mapping[str, NDArray[Any]], node: onnx.NodeProto) -> _Layer | None:
    """A node's weight and bias from the DequantizeLinear nodes before it; None where its weight is float."""
    restorers = {made.output[0]: made for made in proto.graph.node if made.op_type == "DequantizeLinear"}
    (now,) = [made for made in proto.graph.node if made.name == node.name]

    def tensor(name: str) -> _Tensor | None:
        restorer = restorers.get(name)
        if restorer is None or restorer.input[0] not in held:
            return None
        integers, scales, zero_points = (held[part] for part in restorer.input)
        given = [attribute.i for attribute in restorer.attribute if attribute.name == "axis"]
        axis = (given[0] if given else 1) % max(1, integers.ndim)  # 1 is what the operator takes where none is given
        return _Tensor(integers, scales, zero_points, axis)

    weight = tensor(now.input[1])
    if weight is None:
        return None
    bias: _Tensor | NDArray[Any] | None = None
    if len(now.input) > 2 and now.input[2]:
        bias = tensor(now.input[2]) or held[now.input[2]]
    before = restorers.get(now.input[0])
    return _Layer(weight, _channel_axis(node), bias, None if before is None else held[before.input[1]])


def _named(proto: onnx.ModelProto, held: Mapping[str, NDArray[Any]], node: onnx.NodeProto) -> _Layer | None:
    """A node's weight in a dynamically quantized graph, by the names that the quantizer gives; None where it is float.

    Its biases stay float and keep their names.
    """
    bias = held.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    for stem, transposed in ((node.input[1], False), (f"{node.input[1]}_Transposed", True)):  # a Gemm becomes a MatMul
        if f"{stem}_quantized" in held:
            parts = (held[f"{stem}_{part}"] for part in ("quantized", "scale", "zero_point"))
            integers, scales, zero_points = parts
            axis = 1 if transposed else _channel_axis(node)
            weight = _Tensor(integers, scales, zero_points, axis)
            # ConvInteger takes one scale for the whole weight.
            return _Layer(weight, axis, bias, None, can_have_channels=node.op_type != "Conv", transposed=transposed)
    return None


def _check_tensor(found: _Tensor, name: str, integers: NDArray[Any], axis: int | None) -> None:
    if np.any(found.zero_points):
        raise CompressionError(f"the zero point of {name} is not zero")
    if found.integers.dtype != integers.dtype or not np.array_equal(found.integers, integers):
        raise CompressionError(f"the integers of {name} are not its quantized values")
    if found.scales.size > 1 and found.axis != axis:
        raise CompressionError(f"the scales of {name} run along axis {found.axis}, not {axis}")


def _check_bias(layer: _Layer, bias: NDArray[Any] | None, name: str) -> int:
    """A bias in 32 bits is round(bias / (input scale * weight scale)), one in float the original; 1 if in 32 bits."""
    if bias is None:
        return 0
    if not isinstance(layer.bias, _Tensor):
        if layer.bias is None or not np.array_equal(layer.bias, bias):
            raise CompressionError(f"the bias {name} is not the original's")
        return 0
    scales = np.asarray(layer.input_scale * layer.weight.scales, np.float32)
    if not np.array_equal(layer.bias.scales.ravel(), scales.ravel()):
        raise CompressionError(f"the scales of {name} are not those of its input times those of its weights")
    steps = np.round(bias.astype(np.float64) / scales.astype(np.float64))
    limits = np.iinfo(np.int32)
    _check_tensor(layer.bias, name, np.clip(steps, limits.min, limits.max).astype(np.int32), 0)
    return 1


def _scales_for_bias(scales: Float, input_scale: NDArray[Any] | None, bias: NDArray[Any] | None) -> Float | None:
    """The scales of weights that let the bias, in steps of input scale times weight scale, fit 32 bits.

    What ONNX Runtime does where the weights of a channel (or all, where they share one scale) are nearly zero and the
    bias is not.
    """
    if bias is None or input_scale is None:
        return None
    largest = np.abs(bias.astype(np.float32))
    if scales.ndim == 0:  # that one is reckoned in double precision there, those of channels in single
        largest = np.asarray(largest.max(initial=0.0), np.float64)
    step = input_scale.astype(np.float64) * scales.astype(np.float64)
    least = (1.0001 * (2.0 * largest)).astype(np.float64) / (2.0 * (2**31 - 1))
    return np.asarray(np.where(step < least, scales.astype(np.float64) * (least / step), scales), np.float32)


def _check_activations(
    proto: onnx.ModelProto, original: onnx.ModelProto, ranges: Ranges, held: Mapping[str, NDArray[Any]]
) -> int:
    """Every activation that a node takes in quantized has the scale and zero point of its range."""
    before = {node.name: node for node in original.graph.node}
    makers = {output: node for node in original.graph.node for output in node.output}
    restorers = {node.output[0]: node for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    checked = 0
    for node in proto.graph.node:
        if node.name not in before:
            continue
        for tensor, name in zip(before[node.name].input, node.input, strict=False):
            restorer = restorers.get(name)
            if restorer is None or restorer.input[0] in held:
                continue  # a float, or a weight
            found = tuple(held[part].tobytes() for part in restorer.input[1:3])
            allowed = []
            while True:  # a pool or reshape has the scale of what goes into it
                allowed += [ranges[tensor]] if tensor in ranges else []
                maker = makers.get(tensor)
                if maker is None or maker.op_type not in _PASSING:
                    break
                tensor = maker.input[0]
            if found not in [
                tuple(np.asarray(part).tobytes() for part in affine_parameters(*pair)) for pair in allowed
            ]:
                raise CompressionError(f"an input of {node.name} has not the scale and zero point of its range")
            checked += 1
    return checked


def _prepared(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """A copy with inferred shapes, and the nodes from the first weighted one to the last that may be quantized."""
    onnx_module = require("onnx", "compress")
    work: onnx.ModelProto = onnx_module.shape_inference.infer_shapes(proto)
    constants = {item.name for item in work.graph.initializer}
    for node in work.graph.node:
        if node.op_type in _HOLDS_WEIGHTS and any(name in constants for name in node.input):
            raise CompressionError(f"the operation {node.op_type} ({node.name}) holds weights that cannot be quantized")
    weighted = set(weighted_nodes(work))
    if not weighted:
        raise CompressionError("there is nothing to quantize in this graph: no convolution or linear layer")
    after: set[str] = set()  # tensors that a weighted node has touched
    for node in work.graph.node:
        if node.name in weighted or any(name in after for name in node.input):
            after.update(node.output)
    before: set[str] = set()  # tensors that a weighted node will use
    for node in reversed(work.graph.node):
        if node.name in weighted or any(name in before for name in node.output):
            before.update(node.input)
    # Networks with LayerNorm carry outliers in their residual stream: only products are quantized there.
    products_only = any(node.op_type == "LayerNormalization" for node in work.graph.node)
    allowed = _WEIGHTED if products_only else _WEIGHTED | _ELEMENTWISE | _PASSING
    body = [
        node.name
        for node in work.graph.node
        if node.op_type in allowed
        and (
            node.name in weighted
            or (any(name in after for name in node.input) and any(name in before for name in node.output))
        )
    ]
    return work, body


def _activations(proto: onnx.ModelProto) -> list[str]:
    """Float tensors that go into or come out of a node that may be quantized."""
    work, body = _prepared(proto)
    infos = (*work.graph.value_info, *work.graph.input, *work.graph.output)
    floats = {info.name for info in infos if info.type.tensor_type.elem_type == 1}
    floats -= {item.name for item in work.graph.initializer}
    names = set(body)
    wanted: dict[str, None] = {}
    for node in work.graph.node:
        if node.name in names:
            wanted.update(dict.fromkeys(name for name in (*node.input, *node.output) if name in floats))
    return list(wanted)


def _tidied(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Without the quantizer's traces, and without the shapes of inner tensors, which every reader infers."""
    del proto.metadata_props[:]
    del proto.graph.value_info[:]
    for item in (*proto.graph.node, *proto.graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    return proto


def _compact(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Short names for what nobody looks up, and one copy of constants that are equal: worth 5 % of a tiny network.

    Weights and the nodes of the float graph keep their names.
    """
    numpy_helper = require("onnx.numpy_helper", "compress")
    graph = proto.graph
    kept = {item.name for item in (*graph.input, *graph.output)}
    names: dict[str, str] = {}
    seen: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    constants = list(graph.initializer)
    del graph.initializer[:]
    for item in constants:
        if item.name.endswith("_quantized") and len(item.dims) > 1:
            names[item.name] = item.name
            graph.initializer.append(item)
            continue
        key = (item.data_type, tuple(item.dims), numpy_helper.to_array(item).tobytes())
        if key in seen:
            names[item.name] = seen[key]
            continue
        names[item.name] = seen[key] = f"c{len(seen)}"
        item.name = names[item.name]
        graph.initializer.append(item)
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.name = ""
        for side in (node.input, node.output):
            for i, name in enumerate(side):
                if name and name not in kept:
                    side[i] = names.setdefault(name, f"t{len(names)}")
    return proto


def _session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return open_session(proto.SerializeToString())


def _input(proto: onnx.ModelProto) -> str:
    return str(proto.graph.input[0].name)


def _chunks(images: NDArray[np.uint8], size: int) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(images), size):
        yield np.ascontiguousarray(images[start : start + size])
