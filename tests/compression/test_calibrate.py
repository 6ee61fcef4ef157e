from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from kitae.compression import calibrate as module
from kitae.compression.calibrate import calibrate
from kitae.compression.spec import Method
from kitae.deployment.onnx import to_onnx
from kitae.errors import CompressionError
from tests.compression.tiny_world import CARD, MEAN, STD, Data
from tests.refusals import refused


def test_extremes_are_exact(graph: onnx.ModelProto, train: Data) -> None:
    """The first convolution takes the normalised image, whose range is known."""
    ranges = calibrate(graph, train.images[:100])
    first = next(n for n in graph.graph.node if n.op_type == "Conv")
    pixels = train.images[:100].astype(np.float32) / 255
    normalised = (pixels - np.float32(MEAN).reshape(3, 1, 1)) / np.float32(STD).reshape(3, 1, 1)
    low, high = ranges[first.input[0]]
    assert low == pytest.approx(normalised.min(), rel=1e-5)
    assert high == pytest.approx(normalised.max(), rel=1e-5)
    assert low.dtype == np.float32


@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_stays_inside_the_extremes(graph: onnx.ModelProto, train: Data, method) -> None:
    images = train.images[: 32 if method == "entropy" else 128]  # it takes long
    widest = calibrate(graph, images)
    ranges = calibrate(graph, images, method)
    assert ranges.keys() == widest.keys()
    narrower = 0
    for name, (low, high) in ranges.items():
        assert widest[name][0] - 1e-5 <= low <= high <= widest[name][1] + 1e-5
        narrower += bool(high - low < 0.98 * (widest[name][1] - widest[name][0]))
    assert (narrower > 0) == (method != "minmax")


def test_threads_leave_standard_output_as_it_was(graph: onnx.ModelProto, train: Data) -> None:
    before = sys.stdout
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: calibrate(graph, train.images[:32]), range(9)))
    assert sys.stdout is before


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_a_graph_without_inner_shapes(graph: onnx.ModelProto, train: Data, method) -> None:
    expected = calibrate(graph, train.images[:32], method)
    del graph.graph.value_info[:]
    assert calibrate(graph, train.images[:32], method) == expected


def test_percentile_is_that_of_the_values(graph: onnx.ModelProto, train: Data) -> None:
    first = next(n for n in graph.graph.node if n.op_type == "Conv").input[0]
    low, high = calibrate(graph, train.images, "percentile")[first]
    pixels = (train.images.astype(np.float64) / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    expected = np.percentile(pixels, [0.005, 99.995])
    np.testing.assert_allclose([low, high], expected, atol=0.02)


def test_histograms_are_collected_in_chunks_that_fit(
    graph: onnx.ModelProto, train: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    honest = module.open_session

    def opened(path: Any) -> Any:
        session = honest(path)

        def run(names: Any, feed: Any) -> Any:
            sizes.extend(len(batch) for batch in feed.values())
            return session.run(names, feed)

        return SimpleNamespace(run=run, get_inputs=session.get_inputs, get_outputs=session.get_outputs)

    monkeypatch.setattr(module, "open_session", opened)
    images = train.images[:48]
    whole = calibrate(graph, images, "percentile")
    assert sizes == [32, 16]
    monkeypatch.setattr(module, "_MEMORY", 300_000)
    sizes.clear()
    small = calibrate(graph, images, "percentile")
    assert max(sizes) < 16
    assert sum(sizes) == 48
    for name, (low, high) in whole.items():  # bins are cut by the first chunk, so ranges agree to a bin
        np.testing.assert_allclose(small[name], (low, high), atol=float(high - low) / 100)


def test_too_few_images(graph: onnx.ModelProto, train: Data) -> None:
    refused(CompressionError, "at least 16 training images", calibrate, graph, train.images[:15])


def test_activations_that_are_not_finite(trained: nn.Module, train: Data) -> None:
    with torch.no_grad():
        trained.conv1.weight[0] = float("inf")
    graph = to_onnx(trained, CARD)
    for method in ("minmax", "average", "percentile", "entropy"):
        refused(CompressionError, "not finite", calibrate, graph, train.images[:32], method)
