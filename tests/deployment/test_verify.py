from __future__ import annotations

from dataclasses import replace
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


@pytest.fixture
def images(card: Card) -> NDArray[np.uint8]:
    return probe_images(card.rules.shape, 40)


def test_a_faithful_file_passes(
    network: nn.Module, proto: onnx.ModelProto, card: Card, images: NDArray[np.uint8]
) -> None:
    content = serialize(proto, card)
    parity = verify_float(content, torch_reference(network, card.mean, card.std, card.temperature), images)
    assert parity.max_error < 1e-5
    assert parity.flips == 0
    assert verify_integer(content, images).flips == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": (0.5, 0.4, 0.31)},
        {"std": (0.2, 0.25, 0.31)},
        {"mean": (0.3, 0.4, 0.5)},  # the channels swapped
        {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},  # no normalisation
        {"temperature": 1.72},
    ],
)
def test_wrong_normalisation_is_caught(
    network: nn.Module, proto: onnx.ModelProto, card: Card, images: NDArray[np.uint8], wrong: dict[str, Any]
) -> None:
    other = replace(card, **wrong)
    with pytest.raises(ExportError, match="does not compute what the network computes"):
        verify_float(serialize(proto, card), torch_reference(network, other.mean, other.std, other.temperature), images)


def test_one_changed_weight_is_caught(
    network: nn.Module, proto: onnx.ModelProto, card: Card, images: NDArray[np.uint8]
) -> None:
    (weight,) = [item for item in proto.graph.initializer if item.name.endswith("left.weight")]
    values = numpy_helper.to_array(weight).copy()
    values[3, 2, 1, 1] += 0.5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(ExportError, match="does not compute"):
        verify_float(serialize(proto, card), torch_reference(network, card.mean, card.std, card.temperature), images)


def test_a_batch_size_that_computes_something_else_is_caught(images: NDArray[np.uint8]) -> None:
    def right(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.tile(np.float32([0.9, 0.1]), (len(batch), 1))

    def wrong_for_seven(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return right(batch)[:, ::-1] if len(batch) == 7 else right(batch)

    assert compare(right, right, images)[0].max_error == 0
    parity, _, _ = compare(wrong_for_seven, right, images)
    assert parity.max_error == pytest.approx(0.8)


def test_outputs_that_are_no_distribution_are_caught(images: NDArray[np.uint8]) -> None:
    def sums_to_two(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.ones((len(batch), 2), np.float32)

    def nan(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.full((len(batch), 2), np.nan, np.float32)

    with pytest.raises(ExportError, match="sum to 1"):
        compare(sums_to_two, sums_to_two, images)

    def fair(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.full((len(batch), 2), 0.5, np.float32)

    with pytest.raises(ExportError, match="the network's own output is not finite"):
        compare(fair, nan, images)
    with pytest.raises(ExportError, match="not finite"):
        compare(nan, sums_to_two, images)
    with pytest.raises(ExportError, match="no image"):
        compare(nan, nan, images[:0])


def test_the_graph_is_checked(proto: onnx.ModelProto) -> None:
    check_graph(proto)

    fixed = onnx.ModelProto.FromString(proto.SerializeToString())
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(ExportError, match="batch size is fixed"):
        check_graph(fixed)

    random = onnx.ModelProto.FromString(proto.SerializeToString())
    random.graph.node.append(onnx.helper.make_node("RandomNormal", [], ["noise"], shape=[1]))
    with pytest.raises(ExportError, match="RandomNormal"):
        check_graph(random)

    renamed = onnx.ModelProto.FromString(proto.SerializeToString())
    renamed.graph.input[0].name = "pixels"
    with pytest.raises(ExportError, match="pixels"):
        check_graph(renamed)


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
    with pytest.raises(ExportError, match="integer kernels"):
        verify_integer(content, images)


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

    with pytest.raises(ExportError, match="does not compute"):
        verify_float(serialize(proto, card), coarse, images)
    assert verify_float(serialize(proto, card), coarse, images, lambda: exact).clear_flips == 0
    weights = next(item for item in proto.graph.initializer if len(item.dims) == 4)
    values = numpy_helper.to_array(weights).copy()
    values[0, 0] += 0.3
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    with pytest.raises(ExportError, match="does not compute"):
        verify_float(serialize(proto, card), coarse, images, lambda: exact)


def test_only_classes_that_were_clear_count_as_changed() -> None:
    expected = np.array([[0.5, 0.45, 0.05], [0.9, 0.05, 0.05], [0.3, 0.3, 0.4]], np.float32)
    got = np.array([[0.45, 0.5, 0.05], [0.05, 0.9, 0.05], [0.3, 0.3, 0.4]], np.float32)
    parity, _, _ = compare(lambda _: got, lambda _: expected, np.zeros((3, 1, 1, 1), np.uint8), (3,))
    assert (parity.flips, parity.clear_flips) == (2, 1)


def test_the_reference_leaves_the_network_as_it_was(network: nn.Module, card: Card, images: NDArray[np.uint8]) -> None:
    network.train()
    torch_reference(network, card.mean, card.std)(images)
    assert network.training
    assert torch.is_grad_enabled()
