from __future__ import annotations

import errno
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime.quantization
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from kitae.compression.calibrate import Ranges, calibrate
from kitae.compression.graph import weighted_nodes, with_activation
from kitae.compression.quantize import distance, dynamic, probabilities, sensitivity, static
from kitae.deployment import verify
from kitae.deployment.onnx import Card, serialize, to_onnx
from kitae.errors import CompressionError, KitaeError
from kitae.models.build import build
from kitae.models.spec import ModelSpec
from kitae.preprocess import PreprocessRules
from tests.compression.reference import (
    assert_bit_for_bit,
    constants,
    quantize_symmetric,
    share_of_integers,
    symmetric_scales,
)
from tests.compression.tiny_world import CARD, MEAN, STD, Data
from tests.refusals import refused


@pytest.fixture
def ranges(graph: onnx.ModelProto, train: Data) -> Ranges:
    return calibrate(graph, train.images)


@pytest.mark.parametrize("target", ["any", "vnni"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_graph_is_what_the_arithmetic_says(
    graph: onnx.ModelProto, ranges: Ranges, selection: Data, target, per_channel
) -> None:
    quantized = static(graph, ranges, target=target, per_channel=per_channel)
    seen = assert_bit_for_bit(quantized, graph, target, per_channel, ranges)
    assert seen["weights"] == seen["biases"] == len(weighted_nodes(graph)) == 6
    assert seen["activations"] > 6
    assert seen["widened"] == 0
    assert share_of_integers(quantized) > 0.99
    held = [values for values in constants(quantized).values() if values.dtype == np.int8]
    assert max(np.abs(values.astype(int)).max() for values in held) == (127 if target == "vnni" else 64)
    floats = probabilities(graph, selection.images)
    got = probabilities(quantized, selection.images)
    assert (floats.argmax(1) == got.argmax(1)).mean() > 0.98


def test_the_comparison_would_notice(graph: onnx.ModelProto, ranges: Ranges) -> None:
    """The negative controls: whatever moves by the smallest step, the comparison fails."""

    def noticed(change: Any, **options: Any) -> None:
        quantized = static(graph, ranges)
        change(quantized)
        with pytest.raises(AssertionError):
            assert_bit_for_bit(quantized, graph, "any", ranges=ranges, **options)

    weight = "network.conv2.weight_quantized"
    noticed(lambda proto: edit(proto, weight, "x", one_more))
    noticed(lambda proto: edit(proto, weight, "scale", lambda values: np.roll(values, 1)))
    noticed(lambda proto: edit(proto, weight, "scale", lambda values: np.nextafter(values, np.float32(1))))
    noticed(lambda proto: None, per_channel=False)
    noticed(turn(weight))  # a square weight, whose scales would fit its rows and its columns
    bias = restorer_of_bias(static(graph, ranges))
    noticed(lambda proto: edit(proto, bias, "x", lambda values: values + np.int32(1)))
    noticed(lambda proto: edit(proto, bias, "scale", lambda values: values * np.float32(2)))
    with pytest.raises(AssertionError):
        assert_bit_for_bit(static(graph, ranges), graph, "vnni")
    wider = {name: (low, np.float32(high * 1.01)) for name, (low, high) in ranges.items()}
    with pytest.raises(AssertionError):
        assert_bit_for_bit(static(graph, ranges), graph, "any", ranges=wider)
    with pytest.raises(AssertionError):
        assert_bit_for_bit(graph, graph, "any")


@pytest.mark.parametrize("name", ["simple_cnn", "resnet8", pytest.param("resnet9", marks=pytest.mark.slow)])
def test_networks_of_kitae(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = build(
        ModelSpec(name=name, **({"width": 8} if name == "resnet9" else {})), classes=4, channels=3, image_size=32
    )
    images = np.random.default_rng(0).integers(0, 256, (32, 3, 32, 32), np.uint8)
    with torch.no_grad():
        net(torch.from_numpy(images).float() / 64 - 2)
    card = Card(CARD.classes, PreprocessRules(32), MEAN, STD)
    proto = to_onnx(net, card)
    ranges = calibrate(proto, images)
    quantized = static(proto, ranges)
    assert_bit_for_bit(quantized, proto, "any", ranges=ranges)
    content = serialize(quantized, replace(card, precision="int8-static"))
    monkeypatch.setattr(verify, "_AGREEING", 0.8)
    assert verify.verify_integer(content, images).images == 32
    assert len(content) < 0.3 * len(serialize(proto, card))


def test_normalisation_and_probabilities_stay_float(graph: onnx.ModelProto, ranges: Ranges) -> None:
    quantized = static(graph, ranges)
    assert quantized.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    makers = {out: node.op_type for node in quantized.graph.node for out in node.output}
    for node in quantized.graph.node:
        if node.op_type == "Softmax":
            assert makers[node.input[0]] == "Gemm"
    (cast,) = [node for node in quantized.graph.node if node.op_type == "Cast"]
    (scaled,) = [node for node in quantized.graph.node if node.op_type == "Mul"]
    assert scaled.input[0] == cast.output[0]


@pytest.mark.parametrize("pooled", [False, True])
def test_a_convolution_that_is_the_classifier_gives_its_logits_in_float(
    train: Data, selection: Data, pooled: bool
) -> None:
    """As a linear layer does; but one whose many outputs are pooled into logits stays an integer kernel."""
    torch.manual_seed(0)
    pool, head = nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1)
    tail = (head, pool) if pooled else (pool, head)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *tail, nn.Flatten()).eval()
    graph = to_onnx(network, CARD)
    quantized = static(graph, calibrate(graph, train.images))
    output = next(node.output[0] for node in quantized.graph.node if node.name == weighted_nodes(graph)[-1])
    readers = [node.op_type for node in quantized.graph.node if output in node.input]
    assert ("QuantizeLinear" in readers) == pooled
    written = {name for node in quantized.graph.node for name in node.output}
    read = {name for node in quantized.graph.node for name in node.input}
    assert written - read == {"probabilities"}, "no pair is left that nobody reads"
    assert {item.name for item in quantized.graph.initializer} <= read
    expected = probabilities(graph, selection.images)
    assert distance(expected, probabilities(quantized, selection.images))[0] < 0.01


def test_calibration_on_unnormalised_images_ruins_the_accuracy(
    trained: nn.Module, graph: onnx.ModelProto, ranges: Ranges, train: Data, selection: Data
) -> None:
    wrong = calibrate(to_onnx(trained, replace(CARD, mean=(0.0,) * 3, std=(25.0,) * 3)), train.images)

    def accuracy(ranges: Ranges) -> float:
        return float((probabilities(static(graph, ranges), selection.images).argmax(1) == selection.labels).mean())

    assert accuracy(ranges) > accuracy(wrong) + 0.2


def test_a_channel_whose_bias_would_not_fit_gets_a_wider_scale(trained: nn.Module, ranges: Ranges, train: Data) -> None:
    with torch.no_grad():
        trained.point.weight[3] = 1e-9
        trained.point.bias[3] = 2.0
    proto = to_onnx(trained, CARD)
    ranges = calibrate(proto, train.images)
    quantized = static(proto, ranges)
    assert assert_bit_for_bit(quantized, proto, "any", ranges=ranges)["widened"] == 1
    difference = np.abs(probabilities(quantized, train.images) - probabilities(proto, train.images))
    assert difference.mean() < 0.02
    with torch.no_grad():
        trained.point.weight[:] *= 1e-9  # and so does the one scale of a whole weight, by its largest bias
    whole = to_onnx(trained, CARD)
    coarse = static(whole, ranges, per_channel=False)
    assert assert_bit_for_bit(coarse, whole, "any", False, ranges)["widened"] == 1
    edit(quantized, "network.point.weight_quantized", "scale", lambda scales: scales * np.float32(2))
    with pytest.raises(AssertionError):
        assert_bit_for_bit(quantized, proto, "any", ranges=ranges)


def test_one_layer_alone(graph: onnx.ModelProto, ranges: Ranges) -> None:
    first = weighted_nodes(graph)[0]
    alone = static(graph, ranges, only=[first])
    assert 0 < share_of_integers(alone) < 0.3
    assert assert_bit_for_bit(alone, graph, "any")["weights"] == 1


def test_a_layer_alone_is_rounded_after_its_activation(graph: onnx.ModelProto, ranges: Ranges) -> None:
    """As in the whole file; its values before a ReLU have a wider range, of which much is cut off anyway."""
    first, relu = with_activation(graph, weighted_nodes(graph)[0])
    (node,) = [node for node in graph.graph.node if node.name == relu]
    assert node.op_type == "Relu"
    makers = {out: item for item in static(graph, ranges, only=[first, relu]).graph.node for out in item.output}
    (rounding,) = [item for item in makers.values() if item.op_type == "QuantizeLinear" and item.input[0] in makers
                   and makers[item.input[0]].op_type == "Conv"]  # fmt: skip
    assert rounding, "the convolution's output is rounded, and no ReLU is left between"
    assert "Relu" not in {item.op_type for name, item in makers.items() if first in item.name}
    last = weighted_nodes(graph)[-1]
    assert with_activation(graph, last) == [last]


def test_the_first_layers_stay_float(graph: onnx.ModelProto, ranges: Ranges, selection: Data) -> None:
    layers = weighted_nodes(graph)
    kept = static(graph, ranges, float_layers=2)
    assert assert_bit_for_bit(kept, graph, "any")["weights"] == len(layers) - 2
    makers = {out: node for node in kept.graph.node for out in node.output}
    read = [makers[node.input[0]].op_type for node in kept.graph.node if node.name in layers[:2]]
    # Though a shortcut takes the first one's output on, which is rounded there: ONNX Runtime would round the second
    # layer's weights, with one scale for all channels.
    assert read == ["Add", "Relu"]
    expected = probabilities(graph, selection.images)
    assert distance(expected, probabilities(kept, selection.images))[0] < 0.01


def test_a_graph_without_weights_is_refused() -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
    bare = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], name="only")], "g", [x], [y])
    refused(CompressionError, "nothing to quantize", static, helper.make_model(bare), {})


def test_no_shape_of_a_weight_is_left_that_a_quantizer_transposes(
    graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 1.32, onnxruntime transposes a Gemm's weight, but not its shape in the graph, and then refuses both."""
    given: list[onnx.ModelProto] = []

    def older(source: Path, result: Path, **options: Any) -> None:
        given.append(onnx.load(source))
        onnx.save(given[0], result)

    monkeypatch.setattr(onnxruntime.quantization, "quantize_dynamic", older)
    dynamic(graph)
    weights = {item.name for item in given[0].graph.initializer}
    assert not weights & {info.name for info in given[0].graph.value_info}


@pytest.mark.parametrize("target", ["any", "vnni"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_dynamic_weights_are_what_the_arithmetic_says_and_the_classes_stay(
    graph: onnx.ModelProto, selection: Data, target, per_channel
) -> None:
    quantized = dynamic(graph, target=target, per_channel=per_channel)
    held, floats = constants(quantized), constants(graph)
    found = 0
    for node in graph.graph.node:
        if node.name not in weighted_nodes(graph):
            continue
        stem, values, axis = node.input[1], floats[node.input[1]], 0
        if f"{stem}_Transposed_quantized" in held:  # a Gemm has become a MatMul, whose channels are columns
            stem, values, axis = f"{stem}_Transposed", values.T, 1
        # ConvInteger takes one scale for the whole weight, whatever was asked.
        channels = axis if per_channel and values.ndim == 2 else None
        scales = symmetric_scales(values, channels, target)
        np.testing.assert_array_equal(held[f"{stem}_scale"], scales, strict=True)
        assert not held[f"{stem}_zero_point"].any()
        integers = quantize_symmetric(values, scales, channels)
        np.testing.assert_array_equal(held[f"{stem}_quantized"], integers, strict=True)
        np.testing.assert_array_equal(held[node.input[2]], floats[node.input[2]])  # its bias stays float
        found += 1
    assert found == 6
    assert share_of_integers(quantized) > 0.99
    same = probabilities(graph, selection.images).argmax(1)
    assert (probabilities(quantized, selection.images).argmax(1) == same).mean() > 0.98


def test_no_room_for_temporary_files_is_not_taken_for_a_graph_that_cannot_be_quantized(
    graph: onnx.ModelProto, train: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("onnxruntime.quantization.quantize_dynamic", full)
        assert type(refused(KitaeError, "No space left.*TMPDIR", dynamic, graph)) is KitaeError
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    for made in (partial(dynamic, graph), partial(calibrate, graph, train.images)):
        refused(KitaeError, "No such file.*TMPDIR", made)


def test_the_layer_that_cannot_bear_it_comes_first(trained: nn.Module, train: Data, selection: Data) -> None:
    """One enormous input channel that another cancels: rounding it is what hurts."""
    with torch.no_grad():
        trained.point.weight[0] *= 200
        trained.classifier.weight[:, 0] /= 200
    proto = to_onnx(trained, CARD)
    reference, *found = sensitivity(proto, calibrate(proto, train.images), selection.images, selection.labels)
    assert reference.layer == ""
    right = probabilities(proto, selection.images).argmax(axis=1) == selection.labels
    assert reference.accuracy == right.mean()
    assert len(found) == 6
    assert found[0].layer in ("network.point.weight", "network.classifier.weight")
    assert [item.divergence for item in found] == sorted((item.divergence for item in found), reverse=True)
    assert all(item.accuracy is not None and 0 <= item.flips <= 1 for item in found)


def restorer(proto: onnx.ModelProto, integers: str) -> onnx.NodeProto:
    (node,) = [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == integers]
    return node


def restorer_of_bias(proto: onnx.ModelProto) -> str:
    """The name of the integers of the classifier's bias."""
    (gemm,) = [node for node in proto.graph.node if node.op_type == "Gemm"]
    (made,) = [node for node in proto.graph.node if node.output[0] == gemm.input[2]]
    return str(made.input[0])


def edit(proto: onnx.ModelProto, integers: str, part: str, change: Any) -> None:
    """Change the integers (`x`) or the scales of a quantized constant."""
    name = restorer(proto, integers).input[0 if part == "x" else 1]
    (item,) = [i for i in proto.graph.initializer if i.name == name]
    values: NDArray[Any] = numpy_helper.to_array(item).copy()
    item.CopyFrom(numpy_helper.from_array(np.asarray(change(values), values.dtype), item.name))


def one_more(values: NDArray[np.int8]) -> NDArray[np.int8]:
    values.flat[7] += 1
    return values


def turn(integers: str) -> Any:
    """Let the scales of a weight run along its other axis."""

    def change(proto: onnx.ModelProto) -> None:
        (axis,) = [a for a in restorer(proto, integers).attribute if a.name == "axis"]
        axis.i = 1 - axis.i

    return change
