from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from kitae.compression.quantize import dynamic
from kitae.deployment.onnx import Card, serialize, to_onnx
from kitae.deployment.verify import (
    _without_integer_operators,
    check_graph,
    compare,
    file_reference,
    probe_images,
    torch_reference,
    verify_float,
    verify_integer,
)
from kitae.errors import ExportError
from kitae.runtime import open_session
from tests.refusals import refused


@pytest.fixture
def images(card: Card) -> NDArray[np.uint8]:
    return probe_images(card.rules.shape, 40)


def test_a_faithful_file_passes(
    network: nn.Module, proto: onnx.ModelProto, card: Card, images: NDArray[np.uint8]
) -> None:
    content = serialize(proto, card)
    parity = verify_float(content, partial(torch_reference, network, card.mean, card.std, card.temperature), images)
    assert parity.max_error < 1e-5
    assert parity.flips == 0
    assert verify_integer(content, images).flips == 0


def add_to_a_weight(proto: onnx.ModelProto, name: str, place: tuple[int, ...], more: float) -> None:
    weight = next(item for item in proto.graph.initializer if item.name.endswith(name) and len(item.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    values[place] += more
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


@pytest.mark.parametrize(
    ("wrong", "more"),
    [
        ({"mean": (0.5, 0.4, 0.31)}, 0),
        ({"std": (0.2, 0.25, 0.31)}, 0),
        ({"mean": (0.3, 0.4, 0.5)}, 0),  # the channels swapped
        ({"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}, 0),  # no normalisation
        ({"temperature": 1.72}, 0),
        ({}, 0.5),
    ],
)
def test_wrong_normalisation_or_one_wrong_weight_is_caught(
    network: nn.Module, proto: onnx.ModelProto, card: Card, images: NDArray[np.uint8], wrong: Any, more: float
) -> None:
    other = replace(card, **wrong)
    add_to_a_weight(proto, "left.weight", (3, 2, 1, 1), more)
    reference = partial(torch_reference, network, other.mean, other.std, other.temperature)
    words = "does not compute what the network computes"
    refused(ExportError, words, verify_float, serialize(proto, card), reference, images)


def test_a_batch_size_that_computes_something_else_is_caught(images: NDArray[np.uint8]) -> None:
    def right(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.tile(np.float32([0.9, 0.1]), (len(batch), 1))

    def wrong_for_seven(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return right(batch)[:, ::-1] if len(batch) == 7 else right(batch)

    assert compare(right, right, images)[0].max_error == 0
    parity, _, _ = compare(wrong_for_seven, right, images)
    assert parity.max_error == pytest.approx(0.8)


def constant(*row: float) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    return lambda batch: np.tile(np.float32(row), (len(batch), 1))


FAIR, NAN = constant(0.5, 0.5), constant(np.nan, np.nan)


@pytest.mark.parametrize(
    ("got", "expected", "words"),
    [(FAIR, NAN, "the network's own output is not finite"), (NAN, FAIR, "an output is not finite")],
)
def test_outputs_that_are_not_finite_are_caught(got: Any, expected: Any, words: str, images: NDArray[np.uint8]) -> None:
    refused(ExportError, words, compare, got, expected, images)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda graph: setattr(graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 2), "batch size is fixed"),
        (lambda graph: graph.node.append(onnx.helper.make_node("RandomNormal", [], ["x"], shape=[1])), "RandomNormal"),
    ],
)
def test_the_graph_is_checked(change: Callable[[onnx.GraphProto], object], words: str, proto: onnx.ModelProto) -> None:
    check_graph(proto)
    change(proto.graph)
    refused(ExportError, words, check_graph, proto)


def test_integer_kernels_that_disagree_with_the_graph_are_caught(
    network: nn.Module, proto: onnx.ModelProto, card: Card, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums do not saturate on every CPU, so the float side is made to disagree instead."""
    content = serialize(proto, card)
    other = serialize(to_onnx(network, replace(card, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))), card)
    assert file_reference(content)(images).argmax(1).tolist() != file_reference(other)(images).argmax(1).tolist()
    import kitae.deployment.verify as module

    monkeypatch.setattr(
        module, "open_session", lambda source, optimize=True: open_session(source if optimize else other)
    )
    refused(ExportError, "integer kernels", verify_integer, content, images)


def test_a_dynamic_file_is_compared_with_its_integers_in_float(
    proto: onnx.ModelProto, card: Card, images: NDArray[np.uint8]
) -> None:
    made = dynamic(proto)
    assert {"ConvInteger", "MatMulInteger"} <= {node.op_type for node in made.graph.node}
    content = serialize(made, card)
    plain = _without_integer_operators(made)
    assert plain is not None
    left = {node.op_type for node in onnx.load_model_from_string(plain).graph.node}
    assert not {"ConvInteger", "MatMulInteger"} & left
    parity = verify_integer(content, images)
    assert parity.batch_sizes == (1,)
    assert parity.max_error < 1e-5  # the ranges of a batch of 32 would be others: some 0.003
    assert parity.flips == 0
    assert _without_integer_operators(proto) is None


def test_rounding_that_pytorch_has_too_is_no_mistake_but_a_wrong_weight_is(
    network: nn.Module, proto: onnx.ModelProto, card: Card, images: NDArray[np.uint8]
) -> None:
    exact = torch_reference(network, card.mean, card.std, card.temperature, double=True)

    def coarse(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """PyTorch in float32, if the network's activations left it three digits."""
        return np.round(exact(batch), 3)

    def reference(double: bool = False) -> Any:
        return exact if double else coarse

    refused(ExportError, "does not compute", verify_float, serialize(proto, card), lambda double=False: coarse, images)
    assert verify_float(serialize(proto, card), reference, images).clear_flips == 0
    add_to_a_weight(proto, "", (0, 0), 0.3)
    refused(ExportError, "does not compute", verify_float, serialize(proto, card), reference, images)


def test_only_classes_that_were_clear_count_as_changed() -> None:
    expected = np.array([[0.5, 0.45, 0.05], [0.9, 0.05, 0.05], [0.3, 0.3, 0.4]], np.float32)
    got = np.array([[0.45, 0.5, 0.05], [0.05, 0.9, 0.05], [0.3, 0.3, 0.4]], np.float32)
    parity, _, _ = compare(lambda _: got, lambda _: expected, np.zeros((3, 1, 1, 1), np.uint8), (3,))
    assert (parity.flips, parity.clear_flips) == (2, 1)


def test_the_reference_leaves_the_network_as_it_was(network: nn.Module, card: Card, images: NDArray[np.uint8]) -> None:
    network.train()
    seen = []
    network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    before = torch.backends.cudnn.conv.fp32_precision
    torch_reference(network, card.mean, card.std)(images)
    assert network.training
    assert seen == ["ieee"], "not in TF32 on a GPU"
    assert torch.backends.cudnn.conv.fp32_precision == before
    assert torch.is_grad_enabled()
