"""Selects the part of an ONNX graph to quantize, and makes the result compact."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from kitae.errors import CompressionError, require

if TYPE_CHECKING:
    import onnx

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_ELEMENTWISE = frozenset({"Add", "Mul"})
_PASSING = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "MaxPool", "AveragePool",
                      "GlobalAveragePool", "Concat", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten",
                      "Resize"})  # fmt: skip
_CUTTING = frozenset({"Relu", "Clip"})


def weighted_nodes(proto: onnx.ModelProto) -> list[str]:
    """Names of the nodes whose weights can be quantized, in the order they run."""
    constants = {item.name for item in proto.graph.initializer}
    return [n.name for n in proto.graph.node if n.op_type in WEIGHTED and n.input[1] in constants]


def quantizable(proto: onnx.ModelProto) -> frozenset[str]:
    """Operations that are quantized in this graph."""
    # Networks with LayerNorm carry outliers in their residual stream: only products are quantized there.
    products_only = any(node.op_type == "LayerNormalization" for node in proto.graph.node)
    return WEIGHTED if products_only else WEIGHTED | _ELEMENTWISE | _PASSING


def prepared(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """A copy with inferred shapes, and the nodes from the first weighted one to the last that may be quantized.

    Weights of other operations, such as an LSTM, stay float.

    Raises:
        CompressionError: there is nothing to quantize.
    """
    work: onnx.ModelProto = require("onnx").shape_inference.infer_shapes(proto)
    weighted = set(weighted_nodes(work))
    if not weighted:
        raise CompressionError(
            "there is nothing to quantize in this graph: no convolution or linear layer; set quantize to none"
        )
    # An optional input or output that is not used has an empty name; it ties no nodes together.
    after: set[str] = set()  # tensors computed from a weighted node
    for node in work.graph.node:
        if node.name in weighted or any(name in after for name in node.input):
            after.update(filter(None, node.output))
    before: set[str] = set()  # tensors that a weighted node is computed from
    for node in reversed(work.graph.node):
        if node.name in weighted or any(name in before for name in node.output):
            before.update(filter(None, node.input))
    allowed = quantizable(work)
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


def with_activation(proto: onnx.ModelProto, name: str) -> list[str]:
    """A weighted node, and the activation that alone reads its output: quantized together, it is the range's end."""
    output = next(node.output[0] for node in proto.graph.node if node.name == name)
    readers = [node for node in proto.graph.node if output in node.input]
    return [name, *(node.name for node in readers if len(readers) == 1 and node.op_type in _CUTTING)]


def readers_of_logits(proto: onnx.ModelProto) -> list[str]:
    """The nodes that read the last weighted one, if that gives one number for each class.

    A convolution whose outputs are pooled afterwards gives more.

    Args:
        proto: with inferred shapes.
    """
    last = weighted_nodes(proto)[-1]
    output = next(node.output[0] for node in proto.graph.node if node.name == last)
    shapes = [info.type.tensor_type.shape.dim for info in proto.graph.value_info if info.name == output]
    if not shapes or any(dim.dim_value != 1 for dim in shapes[0][2:]):
        return []
    return [node.name for node in proto.graph.node if output in node.input]


def constant_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of a graph's constants: weights, biases, scales and zero points. The rest of a file is nodes and names."""
    to_array = require("onnx.numpy_helper").to_array
    return sum(int(to_array(item).nbytes) for item in proto.graph.initializer)


def unrounded(proto: onnx.ModelProto, names: Collection[str]) -> None:
    """Let these nodes read floats again: what one node makes was rounded for all its readers."""
    graph = proto.graph
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        for place, name in enumerate(node.input if node.name in names else ()):
            restored = makers.get(name)
            if restored is not None and restored.op_type == "DequantizeLinear" and restored.input[0] in makers:
                node.input[place] = makers[restored.input[0]].input[0]
    constants = {item.name: item for item in graph.initializer}
    for kind in ("DequantizeLinear", "QuantizeLinear"):  # of a pair that nobody reads any more
        read = {name for node in graph.node for name in node.input} | {item.name for item in graph.output}
        for node in [node for node in graph.node if node.op_type == kind and node.output[0] not in read]:
            graph.node.remove(node)
            left = {name for other in graph.node for name in other.input}
            for name in set(node.input) & constants.keys() - left:
                graph.initializer.remove(constants.pop(name))


def tidied(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without the quantizer's metadata, and without the shapes of inner tensors, which readers infer."""
    del proto.metadata_props[:]
    del proto.graph.value_info[:]
    for item in (*proto.graph.node, *proto.graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    return proto


def compact(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Use short names for inner tensors, and one copy of equal constants, which saves 5 % of a tiny network's file.

    Weights and the nodes of the float graph keep their names.
    """
    numpy_helper = require("onnx.numpy_helper")
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
