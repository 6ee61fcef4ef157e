"""Rewrites an exported graph into equivalent operations that engines run faster, with fewer nodes.

Much of a small network's time is overhead per node, and some operations that PyTorch's exporter writes have no integer
kernel, so an INT8 graph has to convert to float for them:

    ReduceMax or ReduceMean over height and width   ->  MaxPool, GlobalAveragePool: they have integer kernels
    Gemm, then Mul by a number                      ->  the Gemm with its weights and bias multiplied
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kitae.errors import require

if TYPE_CHECKING:
    import onnx


def simplify(proto: onnx.ModelProto) -> None:
    """Rewrite a float graph in place; other operations are left as they are.

    Constants keep their names. Results differ from before by the rounding of a product (relative 2^-24) at most.
    """
    _pool_instead_of_reduce(proto)
    _fold_scales(proto.graph)
    _drop_unused(proto.graph)


def _pool_instead_of_reduce(proto: onnx.ModelProto) -> None:
    onnx_module = require("onnx")
    inferred = onnx_module.shape_inference.infer_shapes(proto).graph
    shapes = {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]  # 0 where it is free
        for info in (*inferred.value_info, *inferred.input)
    }
    to_array = onnx_module.numpy_helper.to_array
    constants = {item.name: to_array(item) for item in proto.graph.initializer if item.data_type == 7}  # int64
    for node in proto.graph.node:
        if node.op_type not in ("ReduceMax", "ReduceMean") or len(node.input) != 2 or node.input[1] not in constants:
            continue
        shape = shapes.get(node.input[0], [])
        axes = {int(axis) % 4 for axis in constants[node.input[1]].ravel()}
        keeps = all(attribute.i for attribute in node.attribute if attribute.name == "keepdims")
        if len(shape) != 4 or axes != {2, 3} or not keeps or 0 in shape[2:]:
            continue
        del node.attribute[:], node.input[1:]
        if node.op_type == "ReduceMean":
            node.op_type = "GlobalAveragePool"
        else:  # GlobalMaxPool computes the same, but has no integer kernel
            node.op_type = "MaxPool"
            node.attribute.append(onnx_module.helper.make_attribute("kernel_shape", shape[2:]))


def _fold_scales(graph: onnx.GraphProto) -> None:
    numpy_helper = require("onnx.numpy_helper")
    uses = [name for node in graph.node for name in node.input]
    outputs = {item.name for item in graph.output}
    stored = {item.name: item for item in graph.initializer}
    for gemm in [node for node in graph.node if node.op_type == "Gemm"]:
        own = gemm.input[1:]
        if any(name not in stored or uses.count(name) != 1 for name in own):
            continue  # an input, or weights that another node shares
        while uses.count(gemm.output[0]) == 1 and gemm.output[0] not in outputs:
            follower = next(node for node in graph.node if gemm.output[0] in node.input)
            others = [name for name in follower.input if name != gemm.output[0]]
            if follower.op_type != "Mul" or len(others) != 1 or others[0] not in stored:
                break
            factor = numpy_helper.to_array(stored[others[0]])
            if factor.size != 1:
                break
            for name in own:
                scaled = (numpy_helper.to_array(stored[name]) * factor.reshape(())).astype(np.float32)
                stored[name].CopyFrom(numpy_helper.from_array(scaled, name))
            gemm.output[0] = follower.output[0]
            graph.node.remove(follower)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {item.name for item in graph.output}
    for item in [item for item in graph.initializer if item.name not in used]:
        graph.initializer.remove(item)
