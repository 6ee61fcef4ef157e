"""Every image counted once, whatever the batch; every number as one works it out by hand."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score, multiclass_precision

from kitae.errors import TrainingError
from kitae.evaluation import intervals
from kitae.evaluation.calibration import calibration_error, probabilities
from kitae.evaluation.evaluate import View, evaluate, label_scores, predict_logits, predictions_table
from kitae.files import read_json, write_json
from tests.refusals import refused

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Net(nn.Module):
    """Dropout and BatchNorm, so that a wrong mode shows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.norm(self.conv(x)).relu().mean((2, 3))))
        return logits


class Images:
    def __init__(self, count: int = 50, channels: int = 3) -> None:
        generator = np.random.default_rng(0)
        self.images = generator.integers(0, 256, (count, channels, 8, 8), dtype=np.uint8)
        self.labels = generator.integers(0, 4, count)
        self.asked: list[int] = []

    def __call__(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        self.asked += rows.tolist()
        return self.images[rows], self.labels[rows]


def reference(model: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    scaled = torch.from_numpy(images).float() / 255
    x = (scaled - torch.tensor(MEAN).reshape(1, 3, 1, 1)) / torch.tensor(STD).reshape(1, 3, 1, 1)
    with torch.no_grad():
        return np.asarray(model.eval()(x).numpy())


# predict_logits


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_each_row_once_in_order_whatever_the_batch(batch_size: int) -> None:
    data = Images()
    rows = np.random.default_rng(1).permutation(50)[:40]
    logits, labels = predict_logits(Net(), data, rows, mean=MEAN, std=STD, batch_size=batch_size)
    assert data.asked == rows.tolist()
    assert labels.tolist() == data.labels[rows].tolist()
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, reference(Net(), data.images[rows]), atol=1e-5)


@pytest.mark.parametrize(("side", "largest"), [(32, 70), (224, 35), (640, 8)])
@pytest.mark.parametrize("views", [None, lambda images: [images, images[..., ::-1]]], ids=["one view", "two"])
def test_a_forward_pass_on_a_cpu_has_few_images(side: int, largest: int, views: View | None) -> None:
    pixels, sizes = np.random.default_rng(0).integers(0, 256, (70, 1, side, side), np.uint8), []

    class Recorder(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return images.flatten(1)[:, [0, -1]]

    logits, labels = predict_logits(Recorder(), lambda rows: (pixels[rows], rows), np.arange(70), views=views)
    assert max(sizes) == largest
    assert sum(sizes) == 70 * (1 if views is None else 2)
    assert labels.tolist() == list(range(70))
    if views is None:
        np.testing.assert_array_equal(logits, (pixels.reshape(70, -1)[:, [0, -1]] / np.float32(255)))


def test_modes_come_back_and_nothing_else_moves() -> None:
    model = Net().train()
    model.norm.eval()  # a frozen layer
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generators = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[union-attr]
    predict_logits(model, Images(), np.arange(50), mean=MEAN, std=STD)
    after = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[union-attr]
    assert torch.equal(generators[0], after[0])
    assert generators[1:] == after[1:]
    assert [model.training, model.norm.training, model.dropout.training] == [True, False, True]
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    with pytest.raises(RuntimeError):
        predict_logits(model, Images(channels=1), np.arange(4))
    assert [model.training, model.norm.training, model.dropout.training] == [True, False, True]


def test_scores_of_labels_agree_with_scikit_learn_s_definitions() -> None:
    labels, predicted = np.array([0, 0, 0, 0, 1, 1, 3]), np.array([0, 0, 0, 1, 1, 2, 3])
    scores = label_scores(predicted, labels)
    assert scores["val_accuracy"] == pytest.approx(5 / 7)
    assert scores["val_balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert scores["val_macro_f1"] == pytest.approx((6 / 7 + 1 / 2 + 0 + 1) / 4)  # class 2 is only predicted


def test_a_model_in_double_and_in_channels_last() -> None:
    exact, _ = predict_logits(Net(), Images(), np.arange(50), mean=MEAN, std=STD)
    double, _ = predict_logits(Net().double(), Images(), np.arange(50), mean=MEAN, std=STD)
    np.testing.assert_allclose(exact, double, atol=1e-5)
    model = Net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    formats = []
    model.conv.register_forward_pre_hook(
        lambda module, inputs: formats.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    last, _ = predict_logits(model, Images(), np.arange(50), mean=MEAN, std=STD)
    np.testing.assert_allclose(exact, last, atol=1e-5)
    assert set(formats) == {True}


def test_a_gpu_convolves_in_float32_too() -> None:
    """evaluation.json says that it was measured in fp32; by default cuDNN would round to TF32."""
    seen: list[str] = []
    model = Net()
    model.conv.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    before = torch.backends.cudnn.conv.fp32_precision
    predict_logits(model, Images(), np.arange(50), mean=MEAN, std=STD)
    assert set(seen) == {"ieee"}
    assert torch.backends.cudnn.conv.fp32_precision == before != "ieee"


def test_without_normalisation_pixels_are_in_0_to_1() -> None:
    class Largest(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.amax((1, 2, 3)), x.amin((1, 2, 3))], dim=1)

    data = Images()
    logits, _ = predict_logits(Largest(), data, np.arange(50))
    np.testing.assert_allclose(logits[:, 0], data.images.max(axis=(1, 2, 3)) / 255, rtol=1e-6)
    np.testing.assert_allclose(logits[:, 1], data.images.min(axis=(1, 2, 3)) / 255, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_views_are_averaged_as_calibrated_probabilities(temperature: float) -> None:
    data, model = Images(), Net()

    def predict(*flips: int) -> NDArray[np.float64]:
        def views(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
            return (images[..., ::flip] for flip in flips)

        logits, _ = predict_logits(
            model, data, np.arange(50), mean=MEAN, std=STD, batch_size=16, views=views, temperature=temperature
        )
        return probabilities(logits, temperature)

    both = predict(1, -1)
    assert data.asked == list(range(50))
    each = [probabilities(reference(model, data.images[..., ::flip].copy()), temperature) for flip in (1, -1)]
    np.testing.assert_allclose(both, (each[0] + each[1]) / 2, atol=1e-6)
    np.testing.assert_allclose(predict(1), each[0], atol=1e-6)


def test_a_read_only_memory_map_is_fine(recwarn: pytest.WarningsRecorder) -> None:
    data = Images()
    data.images.setflags(write=False)
    predict_logits(Net(), lambda rows: (data.images[rows[0] : rows[-1] + 1], data.labels[rows]), np.arange(50))
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]


def test_outputs_that_are_not_finite_are_no_prediction() -> None:
    broken = Net()
    nn.init.constant_(broken.classifier.weight, float("nan"))
    refused(TrainingError, "not finite for 5 of 5 images", predict_logits, broken, Images(), np.arange(5))


# evaluate

CLASSES = ["ant", "bee", "cat"]


def one_hot_logits(predicted: list[int], K: int, confidence: float = 0.8) -> NDArray[np.float64]:
    chances = np.full((len(predicted), K), (1 - confidence) / (K - 1))
    chances[np.arange(len(predicted)), predicted] = confidence
    return np.log(chances)


def test_numbers_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    result = evaluate(one_hot_logits([0, 0, 0, 1, 1, 0, 2, 2], 3), labels, CLASSES)
    assert result["count"] == 8
    assert result["accuracy"] == pytest.approx(6 / 8)
    assert result["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert result["loss"] == pytest.approx(-(6 * np.log(0.8) + 2 * np.log(0.1)) / 8)
    assert result["brier"] == pytest.approx((6 * (0.04 + 2 * 0.01) + 2 * (0.64 + 0.81 + 0.01)) / 8)
    assert result["ece"] == pytest.approx(0.05)
    assert result["confusion"] == [[3, 1, 0], [1, 1, 0], [0, 0, 2]]
    assert result["per_class"]["ant"]["accuracy"] == pytest.approx(0.75)
    assert [result["per_class"][name]["count"] for name in CLASSES] == [4, 2, 2]
    assert result["classes_absent"] == []
    assert "top5" not in result, "with 5 classes or fewer it is always 1"
    for name in ("accuracy", "balanced_accuracy", "loss", "brier", "ece"):
        low, high = result[f"{name}_interval"]
        assert low <= result[name] <= high, name
        assert result["intervals"][name]
    assert result["intervals"]["covers"].startswith("the choice of images;"), "of whatever split"


def test_intervals_say_of_how_many_groups_they_are() -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(60, 3)).astype(np.float32), generator.integers(0, 3, 60)
    several = evaluate(logits, labels, CLASSES, groups=np.arange(60) // 5)
    assert several["intervals"]["covers"].startswith("the choice of 12 groups;")
    assert several["intervals"]["ece"].startswith("basic bootstrap of 1000 samples, from 0")
    assert several["intervals"]["ece"].endswith(", by groups")
    one = evaluate(logits, labels, CLASSES, groups=np.zeros(60, np.int64))
    assert one["intervals"]["covers"].startswith("the choice of groups, which one does not show;")
    assert all(one[name] is None for name in one if name.endswith("_interval"))


def test_numbers_of_torchmetrics() -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(500, 8)).astype(np.float32), generator.integers(0, 8, 500)
    result = evaluate(logits, labels, [str(i) for i in range(8)], temperature=1.7)
    x, y = torch.from_numpy(logits), torch.from_numpy(labels)
    assert result["accuracy"] == pytest.approx(float(multiclass_accuracy(x, y, 8, average="micro")))
    assert result["balanced_accuracy"] == pytest.approx(float(multiclass_accuracy(x, y, 8, average="macro")))
    assert result["top5"] == pytest.approx(float(multiclass_accuracy(x, y, 8, top_k=5, average="micro")))
    assert result["top5_interval"][0] < result["top5"] < result["top5_interval"][1]
    assert result["loss"] == pytest.approx(float(nn.functional.cross_entropy(x / 1.7, y)), rel=1e-6)
    chances = probabilities(logits, 1.7)[np.arange(500), logits.argmax(axis=1)]
    assert result["ece"] == calibration_error(chances, logits.argmax(axis=1) == labels)[0]
    assert result["macro_f1"] == pytest.approx(float(multiclass_f1_score(x, y, 8, average="macro")))
    assert result["macro_f1_interval"][0] < result["macro_f1"] < result["macro_f1_interval"][1]
    per_class = list(result["per_class"].values())
    assert [row["f1"] for row in per_class] == pytest.approx(multiclass_f1_score(x, y, 8, average=None).tolist())
    precisions = multiclass_precision(x, y, 8, average=None).tolist()
    assert [row["precision"] for row in per_class] == pytest.approx(precisions)
    assert result["temperature"] == 1.7


def test_a_class_without_images_is_named_and_left_out() -> None:
    result = evaluate(one_hot_logits([0, 0, 2, 1], 3), np.array([0, 0, 2, 2]), CLASSES)
    assert result["classes_absent"] == ["bee"]
    assert result["balanced_accuracy"] == pytest.approx((1 + 0.5) / 2)
    bee = result["per_class"]["bee"]
    assert (bee["accuracy"], bee["accuracy_interval"], bee["count"]) == (None, None, 0)
    assert (bee["precision"], bee["f1"]) == (0.0, 0.0), "one image was taken for it"
    assert bee["precision_interval"] == list(intervals.wilson(0, 1) or ())
    none = evaluate(one_hot_logits([0, 0], 3), np.array([0, 2]), CLASSES)["per_class"]["bee"]
    assert set(none.values()) == {None, 0}, "nor was any other"


@pytest.mark.parametrize("groups", [None, 30])
def test_intervals_of_a_class_cover_its_scores(monkeypatch: pytest.MonkeyPatch, groups: int | None) -> None:
    monkeypatch.setattr(intervals, "bootstrap", lambda *_, **__: None)  # which takes long
    generator, covered, trials = np.random.default_rng(3), dict.fromkeys(("accuracy", "precision", "f1"), 0), 500
    chances = np.array([[0.8, 0.1, 0.1], [0.15, 0.75, 0.1], [0.3, 0.1, 0.6]])
    right, called = chances[0, 0] / 3, chances[:, 0].sum() / 3
    true = {"accuracy": 3 * right, "precision": right / called, "f1": 2 * right / (1 / 3 + called)}
    for _ in range(trials):
        images = generator.integers(0, 3, 240 if groups is None else 8 * groups)
        labels = images if groups is None else np.repeat(images[:groups], 8)  # a patient has one condition
        predicted = (generator.random((len(labels), 1)) > chances[labels].cumsum(axis=1)).sum(axis=1)
        member = None if groups is None else np.repeat(np.arange(groups), 8)
        found = evaluate(one_hot_logits(predicted.tolist(), 3), labels, CLASSES, groups=member)["per_class"]["ant"]
        for name, value in true.items():
            low, high = found[f"{name}_interval"]
            assert low <= found[name] <= high
            covered[name] += low <= value <= high
    assert all(0.92 < count / trials < 0.99 for count in covered.values()), covered


def test_a_right_prediction_is_one_of_the_best_five_also_where_outputs_are_equal() -> None:
    names = [str(k) for k in range(400)]
    result = evaluate(np.zeros((40, 400), np.float32), np.arange(40) % 8, names)
    assert (result["accuracy"], result["top5"]) == (5 / 40, 25 / 40), "the classes come in their order"
    logits = np.random.default_rng(0).integers(0, 2, (100, 400)).astype(np.float32)
    assert evaluate(logits, logits.argmax(axis=1), names)["top5"] == 1.0


def test_the_result_is_json_down_to_one_image() -> None:
    for count in (1, 2, 30):
        result = evaluate(one_hot_logits([1] * count, 7), np.ones(count, dtype=np.int64), list("abcdefg"))
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        assert result["accuracy"] == result["top5"] == 1.0
    assert evaluate(one_hot_logits([1], 3), np.array([1]), CLASSES)["loss_interval"] is None


def test_the_result_is_the_same_again_and_the_temperature_moves_no_prediction() -> None:
    logits, labels = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 3
    np.random.seed(0)
    first = evaluate(logits, labels, CLASSES)
    np.random.seed(1)
    assert evaluate(logits, labels, CLASSES) == first
    warm = evaluate(logits, labels, CLASSES, temperature=20.0)
    assert first["confusion"] == warm["confusion"]
    assert first["loss"] != warm["loss"]


def test_outputs_that_are_not_finite_have_no_numbers() -> None:
    refused(TrainingError, "not finite", evaluate, one_hot_logits([0, 1], 3) * np.nan, np.array([0, 1]), CLASSES)


# predictions


def test_predictions_survive_their_file(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    names = ["a.png", "<script>.png", "日本.jpg"]
    table = predictions_table(names, np.array([2, 0, 1]), logits, CLASSES, temperature=2.5)
    pq.write_table(table, tmp_path / "p.parquet")
    back = pq.read_table(tmp_path / "p.parquet")
    assert back["name"].to_pylist() == names
    assert back["label"].to_pylist() == ["cat", "ant", "bee"]
    assert back["predicted"].to_pylist() == [CLASSES[i] for i in logits.argmax(axis=1)]
    chances = np.array(back["probabilities"].to_pylist())
    np.testing.assert_allclose(chances, probabilities(logits, 2.5), atol=1e-7)
    np.testing.assert_allclose(back["confidence"].to_numpy(), chances.max(axis=1), atol=1e-7)
    assert json.loads(back.schema.metadata[b"classes"]) == CLASSES
    assert float(back.schema.metadata[b"temperature"]) == 2.5
    assert "group" not in back.column_names
    grouped = predictions_table(names, np.array([2, 0, 1]), logits, CLASSES, groups=np.array([2**40, 7, 7]))
    assert grouped["group"].to_pylist() == [2**40, 7, 7]


def test_a_large_confusion_matrix_takes_no_more_memory_than_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kitae.files._READABLE_BYTES", 100_000)
    confusion = [[0] * 600 for _ in range(600)]
    tracemalloc.start()
    write_json(tmp_path / "evaluation.json", {"confusion": confusion})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read_json(tmp_path / "evaluation.json")["confusion"] == confusion
    assert (tmp_path / "evaluation.json").stat().st_size < 2.1 * 600**2
    assert peak < 30 * 600**2, "indented, each number is a string of its own"
