"""The part of an ONNX graph that is quantized."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from kitae.compression.graph import prepared


def test_an_output_that_is_not_used_ties_no_nodes_together() -> None:
    """An optional output that is left out has an empty name, and so has an input."""
    clip = helper.make_node("Clip", ["image", "", "high"], ["clipped"], "clip")
    conv = helper.make_node("Conv", ["clipped", "weight", ""], ["seen"], "conv")
    pool = helper.make_node("MaxPool", ["seen"], ["out", ""], "pool", kernel_shape=[1, 1])
    graph = helper.make_graph(
        [clip, conv, pool], "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 2, 4, 4])],
        [numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "weight"),
         numpy_helper.from_array(np.float32(6), "high")],
    )  # fmt: skip
    _, body = prepared(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert body == ["conv"], "neither the node before the first weighted one nor that after the last"
