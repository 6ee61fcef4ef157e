from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import kitae
from kitae.deployment.onnx import Card, _culprit, export, serialize, to_onnx
from kitae.deployment.verify import probe_images, torch_reference
from kitae.errors import ExportError
from kitae.runtime import Model, content_hash, metadata_checksum
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("operators_read_once")


def test_the_file_predicts_what_the_network_predicts(network: nn.Module, card: Card, tmp_path: Path) -> None:
    images = probe_images(card.rules.shape, 40)
    exported = export(network, tmp_path / "model.onnx", card, images)
    assert exported.parity.flips == 0
    assert exported.parity.batch_sizes == (1, 2, 7, 32)
    assert exported.bytes == exported.path.stat().st_size
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]
    predictions = Model(exported.path).predict(images)
    expected = torch_reference(network, card.mean, card.std, card.temperature)(images)
    np.testing.assert_allclose(predictions.probabilities, expected, atol=1e-5)
    assert len(set(predictions.labels.tolist())) > 1, "the probe pictures must tell classes apart"


def test_metadata(network: nn.Module, card: Card, tmp_path: Path) -> None:
    path = export(network, tmp_path / "model.onnx", replace(card, notes={"ratio": 0.5})).path
    proto = onnx.load(path)
    (entry,) = proto.metadata_props
    assert entry.key == "kitae"
    metadata = json.loads(entry.value)
    assert metadata == {
        "format": 1,
        "kitae": kitae.__version__,
        "classes": ["a", "b", "c", "d", "e"],
        "preprocess": {"image_size": 16, "channels": 3, "resize": "crop", "version": 1},
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3],
        "temperature": 1.7,
        "precision": "fp32",
        "target": "any",
        "recipe": "tiny",
        "notes": {"ratio": 0.5},
        "sha256": content_hash(path.read_bytes(), entry.value),
        "checksum": metadata_checksum(metadata),
    }


def test_nothing_of_the_exporting_machine_is_left(network: nn.Module, proto: onnx.ModelProto, card: Card) -> None:
    content = serialize(proto, card)
    assert b".py" not in content
    assert str(Path.cwd()).encode() not in content
    assert content == serialize(to_onnx(network, card), card), "the same network gives the same bytes"


def test_batchnorm_is_folded_and_the_network_untouched(network: nn.Module, card: Card) -> None:
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    proto = to_onnx(network, card)
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_grey_network(tmp_path: Path, card: Card) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
    grey = Card(card.classes, type(card.rules)(8, 1, "pad"), (0.3,), (0.4,))
    path = export(net, tmp_path / "grey.onnx", grey).path
    assert Model(path).predict(np.zeros((9, 11), np.uint8)).probabilities.shape == (1, 5)


def test_an_operation_without_counterpart_is_named(card: Card, tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x).mean((2, 3)).repeat(1, 2)[:, :5]

    refused(ExportError, "bessel_j0", export, Odd(), tmp_path / "model.onnx", card)
    assert list(tmp_path.iterdir()) == []


def test_errors_in_a_ring_end() -> None:
    outer, inner = ValueError("outer"), RuntimeError("inner")
    outer.__cause__, inner.__context__ = inner, outer
    assert _culprit(outer) == "inner"


def test_a_card_that_fits_no_run_is_refused(card: Card) -> None:
    refused(ExportError, "mean and std need 3 values, not 1 and 3", replace, card, mean=(0.5,))
    for temperature in (0.0, -1.0, math.nan, math.inf):
        words = f"temperature must be a positive number, not {temperature}"
        refused(ExportError, words, replace, card, temperature=temperature)


def test_weights_that_do_not_fit_into_one_file(card: Card) -> None:
    huge = nn.Module()
    huge.weight = nn.Parameter(torch.zeros(1).expand(2**29))  # one number in memory
    refused(ExportError, r"536,870,912 weights take 2.0 GiB .* less than 2 GiB", to_onnx, huge, card)


def test_a_random_op_is_refused_and_the_old_file_kept(card: Card, tmp_path: Path) -> None:
    class AlwaysRandom(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + torch.rand_like(x)).mean((2, 3)).repeat(1, 2)[:, :5]

    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    refused(ExportError, "random numbers", export, AlwaysRandom(), path, card)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
