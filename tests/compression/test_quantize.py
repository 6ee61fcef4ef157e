from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from kitae.compression.quantize import (
    METHODS,
    affine_parameters,
    calibrate,
    check_integers,
    dequantize,
    dequantize_symmetric,
    dynamic,
    integer_share,
    probabilities,
    quantization_error,
    quantize,
    quantize_symmetric,
    sensitivity,
    static,
    symmetric_scales,
    weighted_nodes,
)
from kitae.deployment.onnx import Card, serialize, to_onnx
from kitae.deployment.verify import verify_integer
from kitae.errors import CompressionError
from kitae.models.build import build
from kitae.models.spec import ModelSpec
from kitae.preprocess import PreprocessRules
from tests.compression.tiny_world import MEAN, SHAPE, STD, Data

CARD = Card(("a", "b", "c", "d"), PreprocessRules(SHAPE[1]), MEAN, STD)
finite = st.floats(-1e6, 1e6, width=32)


class TestArithmetic:
    def test_the_definition(self) -> None:
        scale, zero_point = affine_parameters(-1.0, 3.0)
        assert scale == np.float32(4 / 255)
        assert zero_point == round(1.0 / (4 / 255))
        assert scale.dtype == np.float32
        assert zero_point.dtype == np.uint8

    def test_ranges_that_miss_zero_are_widened(self) -> None:
        assert affine_parameters(2.0, 5.1) == affine_parameters(0.0, 5.1) == (np.float32(5.1 / 255), 0)
        assert affine_parameters(-5.1, -2.0) == (np.float32(5.1 / 255), 255)
        assert affine_parameters(0.0, 0.0) == (1.0, 0)

    @given(finite, finite)
    def test_zero_is_exact_and_errors_are_half_a_step(self, a: float, b: float) -> None:
        low, high = min(a, b), max(a, b)
        scale, zero_point = affine_parameters(low, high)
        assert dequantize(quantize(0.0, scale, zero_point), scale, zero_point) == 0
        values = np.linspace(min(low, 0), max(high, 0), 101, dtype=np.float32)
        restored = dequantize(quantize(values, scale, zero_point), scale, zero_point)
        # Half a step, and at the ends half a step more, since the zero point is itself rounded.
        assert np.abs(restored - values).max() <= scale * 1.01 + 1e-30
        inner = values[10:-10]
        assert np.abs(restored[10:-10] - inner).max() <= scale * 0.51 + 1e-30 or scale == 1

    def test_values_outside_are_clipped(self) -> None:
        scale, zero_point = affine_parameters(-1, 1)
        assert quantize([-9, 9], scale, zero_point).tolist() == [0, 255]

    def test_halves_round_to_even(self) -> None:
        assert quantize([0.5, 1.5, 2.5], 1.0, 0).tolist() == [0, 2, 2]
        assert quantize_symmetric([0.5, -0.5, 1.5], 1.0, None).tolist() == [0, 0, 2]

    def test_errors(self) -> None:
        error = quantization_error([3.0, 4.0], [3.0, 3.0])
        assert (error.mean, error.maximum, error.relative) == (0.5, 1.0, 0.2)
        assert quantization_error([0.0], [0.0]).relative == 0
        assert quantization_error(np.zeros(0), np.zeros(0)).mean == 0

    @pytest.mark.parametrize(("target", "limit"), [("vnni", 127), ("any", 64)])
    def test_symmetric_scales_by_channel(self, target, limit) -> None:
        weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
        weights[2] = 0
        scales = symmetric_scales(weights, 0, target)
        assert scales.shape == (4,)
        np.testing.assert_allclose(scales[[0, 1, 3]], np.abs(weights).max((1, 2, 3))[[0, 1, 3]] / limit, rtol=1e-6)
        assert scales[2] == 1
        integers = quantize_symmetric(weights, scales, 0)
        assert integers.dtype == np.int8
        assert np.abs(integers.astype(int)).max() == limit
        error = np.abs(dequantize_symmetric(integers, scales, 0) - weights)
        assert (error <= scales.reshape(-1, 1, 1, 1) * 0.5001).all()
        assert symmetric_scales(weights, None, target).shape == ()

    def test_one_scale_a_channel_is_finer(self) -> None:
        weights = np.random.default_rng(0).normal(size=(8, 20)).astype(np.float32) * 10.0 ** -np.arange(8)[:, None]

        def error(axis: int | None) -> float:
            scales = symmetric_scales(weights, axis)
            return quantization_error(
                weights[4:], dequantize_symmetric(quantize_symmetric(weights, scales, axis), scales, axis)[4:]
            ).relative

        assert error(0) < 0.02
        assert error(None) > 0.3

    def test_an_unknown_target(self) -> None:
        with pytest.raises(CompressionError, match="any or vnni"):
            symmetric_scales(np.ones(2), None, "gpu")  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def _graph(_trained: nn.Module) -> onnx.ModelProto:
    return to_onnx(_trained, CARD)


@pytest.fixture
def graph(_graph: onnx.ModelProto) -> onnx.ModelProto:
    return copy.deepcopy(_graph)


class TestCalibration:
    def test_extremes_are_exact(self, graph: onnx.ModelProto, train: Data) -> None:
        """The first convolution takes the normalised image, whose range is known."""
        ranges = calibrate(graph, train.images[:100], batch_size=16)
        first = next(n for n in graph.graph.node if n.op_type == "Conv")
        pixels = train.images[:100].astype(np.float32) / 255
        normalised = (pixels - np.float32(MEAN).reshape(3, 1, 1)) / np.float32(STD).reshape(3, 1, 1)
        low, high = ranges[first.input[0]]
        assert low == pytest.approx(normalised.min(), rel=1e-5)
        assert high == pytest.approx(normalised.max(), rel=1e-5)
        assert low.dtype == np.float32

    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_stays_inside_the_extremes(self, graph: onnx.ModelProto, train: Data, method) -> None:
        widest = calibrate(graph, train.images[:128])
        ranges = calibrate(graph, train.images[:128], method, percentile=99)
        assert ranges.keys() == widest.keys()
        narrower = 0
        for name, (low, high) in ranges.items():
            assert widest[name][0] - 1e-5 <= low <= high <= widest[name][1] + 1e-5
            narrower += bool(high - low < 0.98 * (widest[name][1] - widest[name][0]))
        assert (narrower > 0) == (method != "minmax")

    @pytest.mark.parametrize("method", METHODS)
    def test_a_graph_without_inner_shapes(self, graph: onnx.ModelProto, train: Data, method) -> None:
        expected = calibrate(graph, train.images[:32], method)
        del graph.graph.value_info[:]
        assert calibrate(graph, train.images[:32], method) == expected

    def test_percentile_is_that_of_the_values(self, graph: onnx.ModelProto, train: Data) -> None:
        first = next(n for n in graph.graph.node if n.op_type == "Conv").input[0]
        low, high = calibrate(graph, train.images, "percentile", percentile=98)[first]
        pixels = (train.images.astype(np.float64) / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
        expected = np.percentile(pixels, [1, 99])
        np.testing.assert_allclose([low, high], expected, atol=0.01)

    def test_memory_bounds_do_not_change_the_result(self, graph: onnx.ModelProto, train: Data) -> None:
        images = train.images[:48]
        assert calibrate(graph, images, "entropy") == calibrate(graph, images, "entropy", memory=40_000)

    def test_too_few_images(self, graph: onnx.ModelProto, train: Data) -> None:
        with pytest.raises(CompressionError, match="at least 16 training images"):
            calibrate(graph, train.images[:15])

    def test_wrong_options(self, graph: onnx.ModelProto, train: Data) -> None:
        with pytest.raises(CompressionError, match="minmax, average, percentile, entropy"):
            calibrate(graph, train.images, "guess")  # type: ignore[arg-type]
        with pytest.raises(CompressionError, match="percentile"):
            calibrate(graph, train.images, "percentile", percentile=20)


class TestStatic:
    @pytest.mark.parametrize("target", ["any", "vnni"])
    @pytest.mark.parametrize("per_channel", [True, False])
    def test_the_graph_is_what_the_arithmetic_says(
        self, graph: onnx.ModelProto, train: Data, selection: Data, target, per_channel
    ) -> None:
        ranges = calibrate(graph, train.images)
        quantized = static(graph, ranges, target=target, per_channel=per_channel)
        integers = check_integers(quantized, graph, target=target, ranges=ranges, per_channel=per_channel)
        assert integers.weights == len(weighted_nodes(graph)) == 6
        assert integers.activations > 6
        assert integers.widened == 0
        assert integers.worst <= 0.501
        assert_bit_for_bit(quantized, graph, target, per_channel)
        assert integer_share(quantized) > 0.99
        held = [numpy_helper.to_array(i) for i in quantized.graph.initializer if i.data_type == TensorProto.INT8]
        assert max(np.abs(values.astype(int)).max() for values in held) == (127 if target == "vnni" else 64)
        floats = probabilities(graph, selection.images)
        got = probabilities(quantized, selection.images)
        assert (floats.argmax(1) == got.argmax(1)).mean() > 0.98

    @pytest.mark.parametrize("name", ["simple_cnn", "resnet8", "resnet9"])
    def test_networks_of_the_models_room(self, name: str) -> None:
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
        check_integers(quantized, proto, target="any", ranges=ranges)
        content = serialize(quantized, card.but(precision="int8-static"))
        assert verify_integer(content, images, floor=0.8).images == 32
        assert len(content) < 0.3 * len(serialize(proto, card))

    def test_normalisation_and_probabilities_stay_float(self, graph: onnx.ModelProto, train: Data) -> None:
        quantized = static(graph, calibrate(graph, train.images))
        assert quantized.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
        makers = {out: node.op_type for node in quantized.graph.node for out in node.output}
        for node in quantized.graph.node:
            if node.op_type == "Softmax":
                assert makers[node.input[0]] == "Gemm"
        (cast,) = [node for node in quantized.graph.node if node.op_type == "Cast"]
        (scaled,) = [node for node in quantized.graph.node if node.op_type == "Mul"]
        assert scaled.input[0] == cast.output[0]

    def test_one_scale_a_tensor_is_checked_as_well(self, graph: onnx.ModelProto, train: Data) -> None:
        """The negative controls: an integer that moved, and a scale by the smallest step that a float can make."""
        ranges = calibrate(graph, train.images)
        name = "network.point.weight"
        quantized = static(graph, ranges, per_channel=False)
        _edit(quantized, f"{name}_quantized", lambda scale: np.nextafter(scale, np.float32(1)))
        with pytest.raises(CompressionError, match=r"scales of network\.point\.weight"):
            check_integers(quantized, graph, target="any", ranges=ranges, per_channel=False)
        with pytest.raises(AssertionError):
            assert_bit_for_bit(quantized, graph, "any", per_channel=False)
        quantized = static(graph, ranges, per_channel=False)
        (item,) = [i for i in quantized.graph.initializer if i.name == f"{name}_quantized"]
        values = numpy_helper.to_array(item).copy()
        values[3, 4] += 1
        item.CopyFrom(numpy_helper.from_array(values, item.name))
        with pytest.raises(CompressionError, match=r"integers of network\.point\.weight"):
            check_integers(quantized, graph, target="any", per_channel=False)

    def test_one_scale_where_one_a_channel_was_asked_is_caught(self, graph: onnx.ModelProto, train: Data) -> None:
        ranges = calibrate(graph, train.images)
        for made in (True, False):
            quantized = static(graph, ranges, per_channel=made)
            with pytest.raises(CompressionError, match="scales of"):
                check_integers(quantized, graph, target="any", per_channel=not made)

    def test_scales_along_another_axis_are_caught(self, graph: onnx.ModelProto, train: Data) -> None:
        """The negative control: a square weight, whose scales would fit its rows and its columns."""
        quantized = static(graph, calibrate(graph, train.images))
        name = "network.conv2.weight_quantized"
        (shape,) = [list(i.dims) for i in quantized.graph.initializer if i.name == name]
        assert shape[0] == shape[1]
        (restorer,) = [n for n in quantized.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == name]
        (axis,) = [a for a in restorer.attribute if a.name == "axis"]
        assert axis.i == 0
        axis.i = 1
        with pytest.raises(CompressionError, match=r"network\.conv2\.weight run along axis 1, not 0"):
            check_integers(quantized, graph, target="any")

    def test_a_changed_bias_is_caught(self, graph: onnx.ModelProto, train: Data) -> None:
        """The negative controls: an integer of 32 bits that moved, its scale, and a bias in float."""
        quantized = static(graph, calibrate(graph, train.images))
        assert check_integers(quantized, graph, target="any").biases == 6
        held = {item.name: item for item in quantized.graph.initializer}
        restorers = {n.output[0]: n for n in quantized.graph.node if n.op_type == "DequantizeLinear"}
        (node,) = [n for n in quantized.graph.node if n.op_type == "Gemm"]
        integers, scales, _ = (held[part] for part in restorers[node.input[2]].input)
        before = copy.deepcopy(integers)
        integers.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(integers) + np.int32(1), integers.name))
        with pytest.raises(CompressionError, match=r"integers of .*bias"):
            check_integers(quantized, graph, target="any")
        integers.CopyFrom(before)
        scales.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scales) * np.float32(2), scales.name))
        with pytest.raises(CompressionError, match=r"scales of .*bias"):
            check_integers(quantized, graph, target="any")
        quantized = dynamic(graph)
        assert check_integers(quantized, graph, target="any").biases == 0
        (item,) = [i for i in quantized.graph.initializer if i.name == node_bias(graph)]
        item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(2), item.name))
        with pytest.raises(CompressionError, match=r"bias .* is not the original's"):
            check_integers(quantized, graph, target="any")

    def test_shuffled_scales_are_caught(self, graph: onnx.ModelProto, train: Data, selection: Data) -> None:
        """The negative control: right integers under another channel's scale."""
        ranges = calibrate(graph, train.images)
        quantized = static(graph, ranges)
        before = probabilities(quantized, selection.images)
        _edit(quantized, "network.conv1.weight_quantized", lambda scales: np.roll(scales, 1))
        with pytest.raises(CompressionError, match=r"scales of network\.conv1\.weight"):
            check_integers(quantized, graph, target="any", ranges=ranges)
        assert np.abs(probabilities(quantized, selection.images) - before).max() > 0.01

    def test_one_changed_integer_is_caught(self, graph: onnx.ModelProto, train: Data) -> None:
        quantized = static(graph, calibrate(graph, train.images))
        (item,) = [i for i in quantized.graph.initializer if i.name == "network.point.weight_quantized"]
        values = numpy_helper.to_array(item).copy()
        values[3, 4] += 1
        item.CopyFrom(numpy_helper.from_array(values, item.name))
        with pytest.raises(CompressionError, match=r"integers of network\.point\.weight"):
            check_integers(quantized, graph, target="any")

    def test_a_wrong_activation_scale_or_target_is_caught(self, graph: onnx.ModelProto, train: Data) -> None:
        ranges = calibrate(graph, train.images)
        quantized = static(graph, ranges)
        other = {name: (low, np.float32(high * 1.01)) for name, (low, high) in ranges.items()}
        with pytest.raises(CompressionError, match="scale and zero point of its range"):
            check_integers(quantized, graph, target="any", ranges=other)
        with pytest.raises(CompressionError, match="scales of"):
            check_integers(quantized, graph, target="vnni")
        with pytest.raises(CompressionError, match="no quantized weights"):
            check_integers(graph, graph, target="any")

    def test_calibration_on_unnormalised_images_is_caught(
        self, trained: nn.Module, graph: onnx.ModelProto, train: Data, selection: Data
    ) -> None:
        """The negative control: ranges measured by a graph without the normalisation ruin the accuracy."""
        wrong = calibrate(to_onnx(trained, CARD.but(mean=(0.0,) * 3, std=(25.0,) * 3)), train.images)
        ruined = static(graph, wrong)
        right = static(graph, calibrate(graph, train.images))

        def accuracy(proto: onnx.ModelProto) -> float:
            return float((probabilities(proto, selection.images).argmax(1) == selection.labels).mean())

        assert accuracy(right) > accuracy(ruined) + 0.2

    def test_a_channel_whose_bias_would_not_fit_gets_a_wider_scale(self, trained: nn.Module, train: Data) -> None:
        with torch.no_grad():
            trained.point.weight[3] = 1e-9
            trained.point.bias[3] = 2.0
        proto = to_onnx(trained, CARD)
        ranges = calibrate(proto, train.images)
        quantized = static(proto, ranges)
        assert check_integers(quantized, proto, target="any", ranges=ranges).widened == 1
        difference = np.abs(probabilities(quantized, train.images) - probabilities(proto, train.images))
        assert difference.mean() < 0.02
        with torch.no_grad():
            trained.point.weight[:] *= 1e-9  # and so does the one scale of a whole weight, by its largest bias
        whole = to_onnx(trained, CARD)
        coarse = static(whole, ranges, per_channel=False)
        assert check_integers(coarse, whole, target="any", ranges=ranges, per_channel=False).widened == 1
        _edit(quantized, "network.point.weight_quantized", lambda scales: scales * np.float32(2))
        with pytest.raises(CompressionError, match="scales of"):
            check_integers(quantized, proto, target="any", ranges=ranges)

    def test_nodes_can_be_left_in_float(self, graph: onnx.ModelProto, train: Data) -> None:
        ranges = calibrate(graph, train.images)
        first, *rest = weighted_nodes(graph)
        assert 0 < integer_share(static(graph, ranges, only=[first])) < 0.3
        assert integer_share(static(graph, ranges, exclude=[first])) < 1.0
        assert check_integers(static(graph, ranges, exclude=rest), graph, target="any").weights == 1

    def test_what_cannot_be_quantized_is_named(self, graph: onnx.ModelProto) -> None:
        bare = helper.make_model(
            helper.make_graph(
                [helper.make_node("Relu", ["x"], ["y"], name="only")],
                "g",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
            )
        )
        with pytest.raises(CompressionError, match="nothing to quantize"):
            static(bare, {})
        foreign = copy.deepcopy(graph)
        foreign.graph.node.append(
            helper.make_node("Einsum", [foreign.graph.initializer[0].name], ["z"], name="odd", equation="abcd->ab")
        )
        with pytest.raises(CompressionError, match=r"Einsum \(odd\)"):
            static(foreign, {})


class TestDynamic:
    def test_weights_are_integers_and_the_classes_stay(self, graph: onnx.ModelProto, selection: Data) -> None:
        quantized = dynamic(graph)
        assert check_integers(quantized, graph, target="any").weights == 6
        assert integer_share(quantized) > 0.99
        floats = probabilities(graph, selection.images).argmax(1)
        assert (probabilities(quantized, selection.images).argmax(1) == floats).mean() > 0.98

    @pytest.mark.parametrize("target", ["any", "vnni"])
    @pytest.mark.parametrize("per_channel", [True, False])
    def test_its_weights_are_what_the_arithmetic_says(self, graph: onnx.ModelProto, target, per_channel) -> None:
        quantized = dynamic(graph, target=target, per_channel=per_channel)
        assert check_integers(quantized, graph, target=target, per_channel=per_channel).weights == 6
        held = {item.name: numpy_helper.to_array(item) for item in quantized.graph.initializer}
        found = 0
        for name, values, axis in weights_of(graph):
            stem = name
            if f"{name}_Transposed_quantized" in held:  # a Gemm has become a MatMul, whose channels are columns
                stem, values, axis = f"{name}_Transposed", values.T, 1
            # ConvInteger takes one scale for the whole weight, whatever was asked.
            channels = axis if per_channel and values.ndim == 2 else None
            scales = symmetric_scales(values, channels, target)
            np.testing.assert_array_equal(held[f"{stem}_scale"], scales, strict=True)
            np.testing.assert_array_equal(
                held[f"{stem}_quantized"], quantize_symmetric(values, scales, channels), strict=True
            )
            found += 1
        assert found == 6

    def test_linear_only(self, graph: onnx.ModelProto) -> None:
        quantized = dynamic(graph, linear_only=True)
        assert check_integers(quantized, graph, target="any").weights == 1
        assert "Conv" in {node.op_type for node in quantized.graph.node}


class TestSensitivity:
    def test_the_layer_that_cannot_bear_it_comes_first(self, trained: nn.Module, train: Data, selection: Data) -> None:
        """One enormous input channel that another cancels: rounding it is what hurts."""
        with torch.no_grad():
            trained.point.weight[0] *= 200
            trained.classifier.weight[:, 0] /= 200
        proto = to_onnx(trained, CARD)
        ranges = calibrate(proto, train.images)
        found = sensitivity(proto, ranges, selection.images, selection.labels)
        assert len(found) == 6
        assert found[0].layer in ("network.point.weight", "network.classifier.weight")
        assert [item.divergence for item in found] == sorted((item.divergence for item in found), reverse=True)
        assert all(item.accuracy is not None and 0 <= item.flips <= 1 for item in found)


def _edit(proto: onnx.ModelProto, weight: str, change: Any) -> None:
    (restorer,) = [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == weight]
    (item,) = [i for i in proto.graph.initializer if i.name == restorer.input[1]]
    values: NDArray[np.float32] = numpy_helper.to_array(item).copy()
    item.CopyFrom(numpy_helper.from_array(np.asarray(change(values), np.float32), item.name))


def weights_of(graph: onnx.ModelProto) -> list[tuple[str, NDArray[np.float32], int]]:
    """Name, values and channel axis of each weight that a float graph's convolutions and linear layers use."""
    held = {item.name: numpy_helper.to_array(item) for item in graph.graph.initializer}
    nodes = [node for node in graph.graph.node if node.name in weighted_nodes(graph)]
    assert {node.op_type for node in nodes} == {"Conv", "Gemm"}
    assert all(a.i == 1 for node in nodes for a in node.attribute if a.name == "transB")
    return [(node.input[1], held[node.input[1]], 0) for node in nodes]


def assert_bit_for_bit(quantized: onnx.ModelProto, graph: onnx.ModelProto, target: Any, per_channel: bool) -> None:
    """Every weight as the reference arithmetic makes it, and as ONNX's own definition of DequantizeLinear reads it."""
    held = {item.name: numpy_helper.to_array(item) for item in quantized.graph.initializer}
    for name, values, axis in weights_of(graph):
        (restorer,) = [
            n for n in quantized.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == f"{name}_quantized"
        ]
        integers, scales, zero_points = (held[part] for part in restorer.input)
        channels = axis if per_channel else None
        expected = symmetric_scales(values, channels, target)
        # The number of scales too: one a channel, or exactly one.
        np.testing.assert_array_equal(scales, expected, strict=True)
        np.testing.assert_array_equal(zero_points, np.zeros(expected.shape, np.int8), strict=True)
        np.testing.assert_array_equal(integers, quantize_symmetric(values, expected, channels), strict=True)
        result = helper.make_tensor_value_info(restorer.output[0], TensorProto.FLOAT, values.shape)
        constants = [numpy_helper.from_array(held[part], part) for part in restorer.input]
        alone = helper.make_graph([restorer], "restorer", [], [result], constants)
        model = helper.make_model(alone, opset_imports=list(quantized.opset_import), ir_version=quantized.ir_version)
        (restored,) = ReferenceEvaluator(model).run(None, {})
        np.testing.assert_array_equal(restored, dequantize_symmetric(integers, scales, channels), strict=True)


def node_bias(graph: onnx.ModelProto) -> str:
    """The name of the classifier's bias."""
    (node,) = [node for node in graph.graph.node if node.op_type == "Gemm"]
    return str(node.input[2])
