"""Every step on a real, tiny run: train, export, compress, and use the result."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torch import nn

from kitae import cli, console
from kitae.cli import ship
from kitae.compression.counting import count
from kitae.compression.shape import UNCHANGED
from kitae.compression.spec import CompressOptions, CompressSpec
from kitae.errors import (
    BudgetError,
    CompressionError,
    ExportError,
    MissingExtraError,
    RecipeError,
    TrainingError,
    TrainingInterruptedError,
)
from kitae.evaluation.calibration import fit_temperature
from kitae.evaluation.intervals import paired_difference
from kitae.pipelines import compress as compressing
from kitae.pipelines import export as exporting
from kitae.pipelines.compress import CompressionResult, compress, resolve_spec
from kitae.pipelines.export import export
from kitae.pipelines.setup import Setup
from kitae.pipelines.train import train
from kitae.preprocess import PreprocessRules
from kitae.recipe import Recipe
from kitae.reporting.compression_results import CompressionRecord
from kitae.run import Run
from kitae.runtime import Model
from kitae.training.checkpoint import Progress
from kitae.training.learner import Learner, Step
from tests.pipelines.conftest import undescribed
from tests.refusals import refused, unchanged

pytestmark = pytest.mark.usefixtures("export_once")


def small(**fields: Any) -> dict[str, Any]:
    usual = {"max_drop": 100.0, "calibration": ("minmax",), "round_to": 1, "sensitivity": False, "controls": ()}
    ratios = {} if fields.get("prune") == "none" else {"ratios": (0.25,)}
    return {**ratios, "finetune_epochs": 1, **usual, **fields}


def test_the_exported_file_predicts_as_the_run_does(finished: Run, tmp_path: Path) -> None:
    refused(ExportError, r"\.onnx", export, finished, ".")
    exported = export(finished, tmp_path / "model.onnx")
    images = np.array(finished.open_store().images[:50])
    served, own = Model(exported.path).predict(images), finished.predict(images)
    assert served.classes == own.classes
    np.testing.assert_allclose(served.probabilities, own.probabilities, atol=1e-4)
    assert Model(exported.path).metadata["recipe"] == "fashion-mini"
    beside = export(finished.path)
    assert beside.path == finished.path.with_name("tiny.onnx")


def test_an_export_is_verified_on_images_of_all_classes(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder, the images of a class lie one after the other."""
    setup = Setup.of(finished)
    rows = setup.splits.val
    by_class = replace(setup.splits, val=rows[np.argsort(setup.store.labels[rows], kind="stable")])
    monkeypatch.setattr(Setup, "of", lambda *_: replace(setup, splits=by_class))
    monkeypatch.setattr(exporting, "VERIFY_IMAGES", 20)
    verified: list[np.ndarray[Any, Any]] = []
    monkeypatch.setattr(exporting, "write_onnx", lambda model, file, card, images: verified.append(images))
    export(finished, tmp_path / "model.onnx")
    known = {images.tobytes(): label for images, label in zip(*setup.image_set(rows).gather(rows), strict=True)}
    assert {known[image.tobytes()] for image in verified[0]} == set(range(10))


def test_a_page_is_written_where_somebody_looks(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, looks in (("shown", True), ("quiet", False)):
        monkeypatch.setattr(console, "interactive", lambda looks=looks: looks)
        compress(finished, tmp_path / name, **small(prune="none", quantize=("none",)))
    assert [page.parent.name for page in tmp_path.glob("*/report.html")] == ["shown"]
    monkeypatch.setattr(console, "interactive", lambda: True)
    with pytest.raises(BudgetError):
        compress(finished, tmp_path / "closest", **small(prune="none", quantize=("none",), max_bytes=1000))
    assert "--max-bytes" in (tmp_path / "closest" / "report.html").read_text(encoding="utf-8")


def test_an_export_replaces_only_an_export(finished: Run, tmp_path: Path) -> None:
    mine, compressed, new = (tmp_path / name for name in ("mine.onnx", "small/model.onnx", "new.onnx"))
    mine.write_bytes(b"mine")
    compressed.parent.mkdir()
    (compressed.parent / "compression.json").touch()
    content = export(finished, new).path.read_bytes()
    compressed.write_bytes(content)
    for file, problem in ((mine, "exists and was not exported"), (compressed, "is the model of a compression")):
        refused(ExportError, f"{file}: {problem}", export, finished, file)
    assert mine.read_bytes() == b"mine"
    assert export(finished, new).path.read_bytes() == content
    refused(ExportError, "mine.onnx is a file, not a folder", export, finished, mine / "model.onnx")


def test_a_run_counts_the_images_that_it_classifies(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[int, int]] = []
    monkeypatch.setattr("kitae.predictor.counter", lambda *_: nullcontext(lambda *images: counted.append(images)))
    finished.predict([np.zeros((28, 28), np.uint8)] * 3)
    assert counted == [(3, 3)]
    measured = finished.evaluate("val")
    assert counted[-1] == (measured["count"],) * 2


def test_the_options_of_compress_are_the_fields_of_its_spec() -> None:
    options, fields = get_type_hints(CompressOptions), get_type_hints(CompressSpec)
    assert list(options) == list(CompressSpec.model_fields)
    for name, given in options.items():
        if get_origin(given) is Sequence:
            assert (*get_args(given), ...) == get_args(fields[name]), name
        elif get_origin(given) is not Mapping:
            assert given == fields[name], name


def test_the_compression_folder(finished: Run, tmp_path: Path) -> None:
    openings = finished.test_openings
    lines: list[str] = []
    result = compress(finished, tmp_path / "small", say=lines.append, **small(sensitivity=True))
    assert finished.test_openings == openings + 1
    assert finished.openings()[-1]["why"].endswith("pruned, INT8")
    assert {entry.name for entry in result.path.iterdir()} == {
        "compression.json", "front.parquet", "model.onnx", "model.json", "model.safetensors", "stages", "figures",
        ".lock",
    }  # fmt: skip
    with Image.open(result.path / "figures" / "filters.png") as picture:
        assert picture.size[0] > 100
    facts = json.loads((result.path / "compression.json").read_text())
    assert facts == result.facts == CompressionResult.open(result.path).facts
    assert facts["test"]["count"] == 1000
    assert facts["winner"]["bytes"] == result.model_file.stat().st_size
    assert facts["smaller"] > 3
    assert facts["spec"]["ratios"] == [0.25]
    assert facts["machine"]["cores"] >= 1
    assert not undescribed(result.rows[0], CompressionResult.rows)
    assert not undescribed(result.test or {}, CompressionResult.test)
    table = pyarrow.parquet.read_table(result.path / "front.parquet").to_pylist()
    assert [row["name"] for row in table] == [row["name"] for row in result.rows]
    assert lines

    metadata = Model(result.model_file).metadata
    assert metadata["precision"] == "int8-static"
    assert metadata["target"] == "any"
    assert metadata["notes"]["ratio"] == 0.25

    about = json.loads((result.path / "model.json").read_text())
    assert (about["parameters"], about["macs"]) == (result.winner["parameters"], result.winner["macs"])
    assert about["parameters"] < finished.facts()["parameters"]
    with torch.inference_mode():
        model = result.load_model()
    assert not any(parameter.is_inference() for parameter in model.parameters()), "it can be trained further"
    assert count(model).parameters == result.winner["parameters"]
    assert not model.training
    with torch.no_grad():
        logits = model(torch.zeros(1, 1, 28, 28))
    assert logits.shape == (1, 10)


def test_a_folder_is_overwritten_only_if_asked_to_and_by_something_new(finished: Run, tmp_path: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}

    out = tmp_path / "small"
    first = compress(finished, out, **small(prune="none"))
    before = contents()
    refused(CompressionError, "no layer 'nowhere'", compress, finished, out, overwrite=True, **small(skip=("nowhere",)))
    assert contents() == before
    assert CompressionResult.open(out).model_file.is_file()
    refused(CompressionError, "--overwrite", compress, finished, out, **small(prune="none"))
    again = compress(finished, out, overwrite=True, **small(prune="none", quantize=("none",)))
    assert again.winner["precision"] == "fp32" != first.winner["precision"]
    (out / "notes.txt").write_text("mine")
    refused(CompressionError, r"notes\.txt", compress, finished, out, overwrite=True, **small())
    assert (out / "notes.txt").exists()


@pytest.mark.parametrize("name", ["figures/mine.svg", "candidates/mine", "model.onnx", "report.html"])
def test_files_of_others_are_kept_whatever_their_names(finished: Run, tmp_path: Path, name: str) -> None:
    mine = tmp_path / "paper" / name
    if name == "model.onnx":
        export(finished, mine)
    else:
        mine.parent.mkdir(parents=True)
        mine.write_text("mine")
    content = mine.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(CompressionError, match=rf"holds {name.split('/')[0]} but no compression\.json"):
            compress(finished, tmp_path / "paper", overwrite=overwrite, **small(prune="none", quantize=("none",)))
    assert [file for file in (tmp_path / "paper").rglob("*") if file.is_file()] == [mine]
    assert mine.read_bytes() == content


def test_an_error_while_drawing_loses_nothing(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def contents() -> dict[str, bytes]:
        return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}

    out = tmp_path / "small"
    compress(finished, out, **small(prune="none"))
    (out / "report.html").write_text("of the first")
    before = contents()

    with monkeypatch.context() as patch:
        patch.setattr(compressing, "filters_picture", Mock(side_effect=CompressionError("no space left")))
        with pytest.raises(CompressionError, match="no space left"):
            compress(finished, out, overwrite=True, **small(prune="none", quantize=("none",), max_bytes=10))
    kept = {name: content for name, content in contents().items() if not name.startswith("candidates/")}
    assert kept == before
    with pytest.raises(CompressionError, match="bytes, over 10"):
        compress(finished, out, overwrite=True, **small(prune="none", quantize=("none",), max_bytes=10))
    assert {entry.name for entry in out.iterdir()} == {
        "compression.json", "front.parquet", "closest.onnx", "model.json", "model.safetensors", "figures", ".lock"
    }  # fmt: skip


def test_two_processes_do_not_share_a_folder(finished: Run, tmp_path: Path) -> None:
    out = tmp_path / "small"
    (out / "candidates").mkdir(parents=True)
    with compressing.COMPRESSION.locked(out), pytest.raises(CompressionError, match="another process"):
        compress(finished, out, **small(prune="none"))
    assert (out / "candidates").is_dir()


def test_damaged_folders_are_named_in_one_line(finished: Run, tmp_path: Path) -> None:
    out = tmp_path / "small"
    result = compress(finished, out, **small(prune="none", quantize=("none",)))
    for content in ("[]", "{}", "3", "{", "[" * 100_000, '{"within_budget": true}'):
        (out / "compression.json").write_text(content)
        refused(CompressionError, r"compression\.json.* is damaged", CompressionResult.open, out)
    whole = json.loads((out / "model.json").read_text())
    for facts in ([], {**whole, "recipe": 3}, {**whole, "shape": {}}, {**whole, "preprocess": None}):
        (out / "model.json").write_text(json.dumps(facts))
        refused(CompressionError, r"model\.json.*is damaged", result.load_model)
    fewer = {**whole, "classes": whole["classes"][:3]}
    (out / "model.json").write_text(json.dumps(fewer))
    refused(CompressionError, r"model\.safetensors.*not those of the network", result.load_model)
    (out / "model.json").unlink()
    refused(CompressionError, r"model\.json.*cannot be read", result.load_model)
    (out / "model.json").write_text(json.dumps(whole))
    (out / "model.safetensors").write_bytes(b"half")
    refused(CompressionError, r"model\.safetensors.*not a whole checkpoint", result.load_model)


def test_a_missing_library_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    facts = {
        "recipe": Recipe.load("fashion-mini").override("model.name=timm:resnet10t").model_dump(mode="json"),
        "classes": ["a", "b"],
        "preprocess": PreprocessRules(28, channels=1).to_dict(),
        "shape": UNCHANGED.model_dump(mode="json"),
    }
    (tmp_path / "model.json").write_text(json.dumps(facts))
    refused(MissingExtraError, "timm", CompressionResult(tmp_path, CompressionRecord.model_construct()).load_model)


def given_to_compress(monkeypatch: pytest.MonkeyPatch, words: str) -> CompressSpec:
    """The spec that the command line makes of its words."""
    seen: list[CompressSpec] = []

    def compress(run: Path, out: Path | None, *, spec: CompressSpec, **_: object) -> SimpleNamespace:
        seen.append(spec)
        return SimpleNamespace(path=run, model_file=run / "model.onnx")

    monkeypatch.setattr(compressing, "compress", compress)
    monkeypatch.setattr(ship, "_print_compression", lambda result: None)
    monkeypatch.setattr(ship, "write_page", lambda *_, **__: None)
    command, bound, _ = cli.app.parse_args(words.split(), exit_on_error=False, print_error=False)
    command(*bound.args, **bound.kwargs)
    return seen[0]


@pytest.mark.parametrize(
    ("words", "abandons"),
    [
        ("--ratios .1 .3", False),
        ("--ratios .1 --prune unstructured", False),
        ("--ratios .1 --set max_drop=2", True),
        ("--ratios .1 --max-drop 2", True),
        ("--ratios .1 --set max_drop=2 abandon=false", False),
        ("", True),
    ],
)
def test_ratios_alone_give_the_whole_curve(words: str, abandons: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert given_to_compress(monkeypatch, f"compress run {words}").abandon is abandons


def test_settings_are_checked_beside_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "compress run --prune unstructured --ratios .1 .2 --quantize none static --set gradual=true seed=3"
    spec = given_to_compress(monkeypatch, words)
    assert (spec.prune, spec.gradual, spec.seed) == ("unstructured", True, 3)
    assert (spec.ratios, spec.quantize) == ((0.1, 0.2), ("none", "static"))
    assert not resolve_spec(CompressSpec(ratios=(0.1,)), {}).abandon
    assert resolve_spec(CompressSpec(max_drop=2.0), {"ratios": (0.1, 0.3)}).abandon
    with pytest.raises(RecipeError, match=r"controls: .* need prune"):
        given_to_compress(monkeypatch, "compress run --prune none --set controls=[random]")
    refused(CompressionError, "max_drop", given_to_compress, monkeypatch, "compress run --max-drop -1")
    for words in ("--prune none --ratios .1", "--ratios .1 --set prune=none", "--prune none --set ratios=[.1]"):
        refused(CompressionError, "^ratios: ", given_to_compress, monkeypatch, f"compress run {words}")
    assert resolve_spec(CompressSpec(**CompressSpec().model_dump()), {"prune": "none"}).prune == "none"
    for given, cure in (
        ("controls=random", "a list, such as [random]"), ("ratios=0.5", "a list, such as [0.5]"),
        ("controls=null", "a list"), ("layer_ratios=[a]", "a mapping, {name: value}"),
    ):  # fmt: skip
        message = re.escape(f"--set: {given.partition('=')[0]}: should be {cure}") + "$"
        refused(RecipeError, message, resolve_spec, None, {}, [given])


def test_a_compressed_file_is_calibrated_anew(finished: Run, tmp_path: Path) -> None:
    result = compress(finished, tmp_path / "small", **small(ratios=(0.5,), quantize=("none",)))
    assert result.winner["ratio"] == 0.5
    store = finished.open_store()
    rows = finished.splits(store).val
    images, labels = np.array(store.images[rows]), np.array(store.labels[rows])
    probabilities = Model(result.model_file).predict(images).probabilities.astype(np.float64)
    again = fit_temperature(np.log(np.maximum(probabilities, 1e-12)).astype(np.float32), labels)
    assert again == pytest.approx(1.0, abs=0.02)  # nothing is left to calibrate
    temperature = Model(result.model_file).metadata["temperature"]
    assert temperature != finished.facts()["temperature"]
    assert json.loads((result.path / "model.json").read_text())["temperature"] == temperature


@pytest.mark.parametrize(("noticed", "why"), [(True, "never finite"), (False, "not finite")])
def test_8_bit_training_that_diverged_is_left_out(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noticed: bool, why: str
) -> None:
    def diverges(_: Setup, model: torch.nn.Module, **__: object) -> torch.nn.Module:
        if noticed:
            raise TrainingError("val_loss was never finite, so there is no best model")
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))
        return model

    monkeypatch.setattr(Setup, "recover", diverges)
    result = compress(finished, tmp_path / "small", **small(prune="none", quantize=("none", "static", "qat")))
    assert [row["precision"] for row in result.rows] == ["fp32", "int8-static"]
    assert [item["name"] for item in result.facts["left_out"]] == ["original int8-qat"]
    assert why in result.facts["left_out"][0]["why"]


def test_a_run_that_is_no_longer_there_is_said(tmp_path: Path) -> None:
    gone = Run(tmp_path / "run", Recipe.load("fashion-mini"))
    for call in (compress, export):
        refused(TrainingError, "run: no such folder; give the whole path", call, gone)
    assert list(tmp_path.iterdir()) == []


def test_a_run_called_by_a_dot_is_exported(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(finished.path, tmp_path / "mine")
    finished.recipe.override("data.source=folder:/nowhere/any/more").save(tmp_path / "mine" / "recipe.yaml")
    monkeypatch.chdir(tmp_path / "mine")
    assert export(".").path == tmp_path / "mine.onnx"
    assert Model(tmp_path / "mine.onnx").classes == finished.classes
    (tmp_path / "mine" / "best.safetensors").unlink()
    for call in (compress, export):
        refused(TrainingError, r"best\.safetensors", call, tmp_path / "mine", tmp_path / "out.onnx")


def test_an_impossible_budget_is_one_line_and_does_not_open_test(finished: Run, tmp_path: Path) -> None:
    openings = finished.test_openings
    with pytest.raises(BudgetError, match=r"the closest \(not pruned, INT8\) has .* bytes, over 1,000") as error:
        compress(finished, tmp_path / "small", **small(prune="none", max_bytes=1000))
    assert error.value.folder == tmp_path / "small"
    assert pickle.loads(pickle.dumps(error.value)).closest == error.value.closest  # it may come from a worker
    assert finished.test_openings == openings
    result = CompressionResult.open(tmp_path / "small")
    assert not result.within_budget
    assert result.test is None
    assert result.model_file.name == "closest.onnx"
    assert not (tmp_path / "small" / "model.onnx").exists()
    Model(result.model_file)


def test_a_signal_keeps_the_ratios_that_were_done(finished: Run, tmp_path: Path) -> None:
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("  epoch 1/2") and sum(known.startswith("  epoch 1/2") for known in lines) == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # in the middle of the second ratio

    fields = small(quantize=("none",), finetune_epochs=2, ratios=(0.25, 0.5))
    with pytest.raises(TrainingInterruptedError, match=r"SIGTERM after epoch 1 of a fine-tuning; .*cut keeps"):
        compress(finished, tmp_path / "cut", say=say, **fields)
    assert len(list((tmp_path / "cut" / "stages").iterdir())) == 1
    lines.clear()
    result = compress(finished, tmp_path / "cut", say=lines.append, **fields)
    assert sum(line.startswith("  epoch") for line in lines) == 2  # of the second ratio only
    whole = compress(finished, tmp_path / "whole", **fields)
    assert [row["accuracy"] for row in result.rows] == [row["accuracy"] for row in whole.rows]


@pytest.mark.slow
def test_layer_decay_does_not_stop_quantization_aware_training(finished: Run, tmp_path: Path) -> None:
    recipe = finished.recipe.override("train.optimizer.layer_decay=0.8", "data.limit=400", "train.epochs=1")
    run = train(recipe, tmp_path / "run")
    result = compress(run, tmp_path / "small", **small(prune="none", quantize=("none", "qat"), qat_epochs=1))
    assert [row["precision"] for row in result.rows] == ["fp32", "int8-qat"]


def test_a_signal_in_the_last_epoch_stops_the_search(finished: Run, tmp_path: Path) -> None:
    def say(line: str) -> None:
        if line.startswith("  epoch 1/1"):  # told when the only epoch is over
            os.kill(os.getpid(), signal.SIGTERM)

    fields = small(quantize=("none",), ratios=(0.25, 0.5))
    with pytest.raises(TrainingInterruptedError, match="SIGTERM after epoch 1 of a fine-tuning"):
        compress(finished, tmp_path / "cut", say=say, **fields)


def test_what_is_wrong_is_said_and_leaves_nothing(finished: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with unchanged(tmp_path):
        refused(CompressionError, r"ratios.*less than 1", compress, finished, tmp_path / "a", ratios=(1.5,))
        refused(CompressionError, "speed", compress, finished, tmp_path / "a", speed=9)
        refused(CompressionError, "no compression there", CompressionResult.open, tmp_path)
        refused(TrainingError, "not a run folder", compress, tmp_path, tmp_path / "c")
        refused(CompressionError, "is a file", compress, finished, tmp_path / "file", **small())
        for field in ({"skip": ("nowhere",)}, {"layer_ratios": {"nowhere": 0.5}}):
            words = f"{next(iter(field))}: there is no layer 'nowhere'"
            refused(CompressionError, words, compress, finished, tmp_path / "b", **small(**field))


def test_no_epoch_of_fine_tuning_is_repeated(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ratios of three epochs see 6 epochs of augmentation that differ from each other and from the run's own."""
    seen: dict[tuple[int, int], str] = {}  # training and epoch -> hash of its first batch
    learners: list[Learner] = []
    honest = Learner.step

    def noted(self: Learner, images: torch.Tensor, targets: torch.Tensor, at: Progress) -> Step:
        if self not in learners:
            learners.append(self)
        if at.step == 0:
            seen[learners.index(self), at.epoch] = hashlib.sha256(images.numpy().tobytes()).hexdigest()
        return honest(self, images, targets, at)

    monkeypatch.setattr(Learner, "step", noted)
    fields = ("data.limit=60", "train.epochs=3", "model.width=4", "train.batch_size=32")
    run = train(finished.recipe.override(*fields), tmp_path / "run")
    compress(run, tmp_path / "small", **small(quantize=("none",), finetune_epochs=3, ratios=(0.25, 0.5)))
    assert sorted(seen) == [(training, epoch) for training in range(3) for epoch in range(3)]
    assert len(set(seen.values())) == 9


def test_the_original_trained_on_is_a_control(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings: list[tuple[int, float, nn.Module, nn.Module]] = []
    honest = Setup.recover

    def noted(self: Setup, model: nn.Module, **options: Any) -> nn.Module:
        start = copy.deepcopy(model)
        trainings.append((options["epochs"], options["rate"], start, options["tuning"].teacher.model))
        return honest(self, model, **options)

    monkeypatch.setattr(Setup, "recover", noted)
    fields = small(quantize=("static",), controls=("original",), ratios=(0.25, 0.5))
    result = compress(finished, tmp_path / "small", **fields)
    assert result.winner["name"] == "50 % int8-static"
    (control,) = [row for row in result.rows if row["control"]]
    assert control["name"] == "trained further, original int8-static"
    assert control["parameters"] == result.rows[0]["parameters"]
    assert not control["winner"]
    assert not control["front"]
    epochs, rate, start, teacher = trainings[-1]
    assert epochs == 2, "one epoch at each of the winner's two ratios"
    assert rate == trainings[0][1]
    original = finished.load_model()
    for network in (start, teacher, trainings[0][3]):
        for name, value in original.state_dict().items():
            assert torch.equal(network.state_dict()[name], value), name
    again = compress(finished, tmp_path / "small", overwrite=True, **fields)
    assert len(trainings) == 3, "kept with the stages"
    assert [row["accuracy"] for row in again.rows] == [row["accuracy"] for row in result.rows]


def test_sure_falls_back_where_validation_is_too_small(finished: Run, tmp_path: Path) -> None:
    # The rule is the interval's own: that of a file which loses no image of so many.
    count = len(Setup.of(finished).splits.val)
    same = np.zeros(count, np.int64)
    least = -100 * paired_difference(same, same, same)[1][0]
    fields = small(quantize=("none",), prune="none")
    lines: list[str] = []
    result = compress(finished, tmp_path / "small", say=lines.append, **{**fields, "max_drop": least - 0.01})
    (note,) = [line for line in lines if line.startswith("note: ")]
    assert f"{count} validation images" in note
    assert "data.val_fraction" in note
    assert result.facts["spec"]["sure"]
    assert not result.facts["sure"]
    lines.clear()
    result = compress(finished, tmp_path / "wide", say=lines.append, **{**fields, "max_drop": least + 0.01})
    assert result.facts["sure"]
    assert not any(line.startswith("note: ") for line in lines)
