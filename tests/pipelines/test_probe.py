"""The probe in a run: epoch 0, its features kept in the folder, and what becomes of it."""

from __future__ import annotations

import importlib
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kitae.errors import DataError, KitaeError, RecipeError, TrainingError, TrainingInterruptedError
from kitae.models.build import build
from kitae.models.spec import ModelSpec
from kitae.pipelines import pace
from kitae.pipelines import probe as pipeline
from kitae.pipelines.setup import Setup
from kitae.pipelines.train import train
from kitae.recipe import Recipe
from kitae.run import Run
from kitae.training.checkpoint import load_weights
from kitae.training.distributed import World
from kitae.training.fit import Unwatched
from kitae.training.spec import ProbeSpec
from tests.refusals import refused
from tests.watchers import Signal, Watcher

TINY = (
    "data.limit=150", "model.name=resnet8", "model.width=8", "train.epochs=1", "train.batch_size=32",
    "train.precision=fp32", "train.threads=1", "train.optimizer.lr=0.001", "train.probe={views: 1, folds: 3}",
)  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    model = build(ModelSpec(name="resnet8", width=8), classes=7, channels=1, image_size=28)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return str(path)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(pipeline, "_SHARD", 64)
    monkeypatch.setenv("KITAE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def recipe(weights: str, *fields: str) -> Recipe:
    return Recipe.load("fashion-mini").override(*TINY, f"model.pretrained={weights}", *fields)


def test_the_probe_is_epoch_0_and_a_complete_model(weights: str, tmp_path: Path) -> None:
    run = train(recipe(weights, "train.epochs=0"), tmp_path / "run")
    (row,) = run.metrics()
    assert (row["epoch"], row["step"], row["learning_rate"]) == (0, 0, 0.0)
    assert row["val_accuracy"] > 0.4, "ten classes, features of a random network"
    assert {"train_loss", "train_accuracy", "seconds", "images_per_second", "data_share"} <= row.keys()
    assert run.evaluation()["best_epoch"] == 0
    assert run.evaluation()["test"]["accuracy"] == pytest.approx(row["val_accuracy"], abs=0.15)
    assert not run.features.exists(), "they are not needed once the run is finished"
    assert run.recipe.train.probe is not None
    pixels = np.zeros((1, 1, 28, 28), np.uint8)
    assert run.predict(pixels).probabilities.shape == (1, 10)


@pytest.mark.parametrize(("least", "limit"), [(1000, 20_000), (1, 64)])
def test_features_that_do_not_fit_into_the_minutes_are_left_out(
    weights: str, least: int, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that is a thousand times slower."""
    fit = pipeline.Features._fit
    monkeypatch.setattr(pipeline.Features, "_fit", lambda self, count, each, seen: fit(self, count, 1000 * each, seen))
    monkeypatch.setattr(pipeline, "_LEAST", least)
    asked, watcher = recipe(weights, "train.probe={views: 2, folds: 3}"), Watcher()
    run = train(asked, tmp_path / "run", minutes=0.5, watcher=watcher)
    assert run.recipe.train.probe == ProbeSpec(views=0, folds=3, limit=limit)
    assert any("0 augmented views of each image" in note for note in watcher.notes)
    assert any("fitted on 64 images (saved as train.probe.limit" in note for note in watcher.notes) == (limit == 64)
    assert train(asked, tmp_path / "run", minutes=0.5, resume=True).finished
    again = train(Recipe.load(run.path / "recipe.yaml"), tmp_path / "again")
    assert [row["val_loss"] for row in again.metrics()] == [row["val_loss"] for row in run.metrics()]


def test_the_head_s_time_is_that_of_the_images_and_views_it_is_fitted_on(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 150 images in files of 32, two files fit if a head on more than 64 takes longer than there is."""
    monkeypatch.setattr(pipeline, "_SHARD", 32)
    monkeypatch.setattr(pipeline, "_LEAST", 1)
    monkeypatch.setattr(pipeline, "head_seconds", lambda images, classes: 0.0 if images <= 64 else 1e6)
    run, world = Run.create(tmp_path / "run", recipe(weights)), World(0, 1, torch.device("cpu"))
    setup = Setup.of(run)
    pipeline.probe(run, setup, setup.initial_model(world), world, Unwatched(), pace.Clock.of(100, time.monotonic()))
    assert run.recipe.train.probe == ProbeSpec(views=0, folds=3, limit=64)


def test_features_of_before_say_nothing_about_the_time(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed in its view has the first files; reading them is no measure of computing the others."""
    asked = recipe(weights, "train.epochs=0", "train.probe={views: 1, folds: 3}")
    run, world = Run.create(tmp_path / "run", asked), World(0, 1, torch.device("cpu"))
    setup = Setup.of(run)
    pipeline.probe(run, setup, setup.initial_model(world), world, Unwatched())
    for name in ("view-0-00002", "view-1-00000", "view-1-00001", "view-1-00002"):
        (run.features / f"{name}.safetensors").unlink()
    seen: list[float] = []
    monkeypatch.setattr(pipeline, "_LEAST", 1)
    monkeypatch.setattr(pipeline.Features, "_fit", lambda self, count, each, _: bool(seen.append(each)) or True)
    clock = pace.Clock.of(10, time.monotonic())
    pipeline.probe(run, setup, setup.initial_model(world), world, Unwatched(), clock)
    assert seen[0] == 0, "nothing was computed yet, only read"
    assert min(seen[1:]) > 0


def test_training_begins_with_its_head_and_worse_is_not_kept(weights: str, tmp_path: Path) -> None:
    run = train(recipe(weights, "train.optimizer.lr=30"), tmp_path / "run")
    before, after = run.metrics()
    assert after["val_accuracy"] < before["val_accuracy"]
    assert run.evaluation()["best_epoch"] == 0
    assert run.evaluate("val")["accuracy"] == pytest.approx(before["val_accuracy"])
    published = load_weights(run.best)[0]["stem.0.weight"]
    assert torch.equal(published, load_file(weights)["stem.0.weight"])

    gentle = train(recipe(weights, "train.optimizer.lr=0.00001", "model.freeze=statistics"), tmp_path / "gentle")
    assert gentle.metrics()[1]["train_loss"] < 2.0, "a random head has 2.3, the logarithm of 10, or more"


def test_the_head_that_is_written_is_the_one_that_was_fitted(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[Any] = []
    whole = pipeline.fit_head

    def fit_head(features: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        fitted.append((features, whole(features, *arguments, **options)))
        return fitted[-1][1]

    monkeypatch.setattr(pipeline, "fit_head", fit_head)
    run = train(recipe(weights, "train.epochs=0"), tmp_path / "run")
    features, head = fitted[0]
    assert features.shape == (2, 150, 32)
    setup = Setup.of(run)
    rows = np.sort(setup.splits.train)
    logits, labels = run.logits(setup.image_set(rows))
    np.testing.assert_allclose(logits, features[0] @ head.weight.T + head.bias, atol=1e-3)
    assert (logits.argmax(1) == labels).mean() == pytest.approx(head.train_accuracy)
    assert not torch.equal(features[0], features[1]), "the second view is augmented"


def test_no_test_image_is_read(weights: str, tmp_path: Path) -> None:
    made = Run.create(tmp_path / "run", recipe(weights))
    setup = Setup.of(made)
    model = setup.initial_model(World(0, 1, torch.device("cpu")))
    pipeline.probe(made, setup, model, World(0, 1, torch.device("cpu")), Unwatched())
    assert made.test_openings == 0  # and the guard of the splits has not raised


@pytest.mark.parametrize("parts", [4, 6])
def test_features_are_computed_once(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:  # fmt: skip
    """A signal stops the probe between two parts of its features, and after the last one too."""
    whole = train(recipe(weights), tmp_path / "whole")
    made: list[Path] = []
    save = pipeline.save_weights

    def stopping(tensors: Any, path: Path, metadata: Any) -> None:
        save(tensors, path, metadata)
        made.append(path)
        if len(made) == parts:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(pipeline, "save_weights", stopping)
    with pytest.raises(TrainingInterruptedError, match=r"SIGTERM in the probe.*--resume"):
        train(recipe(weights), tmp_path / "run")
    assert len(made) == parts
    run = train(recipe(weights), tmp_path / "run", resume=True)
    assert len(made) == len(set(made)) == 6  # 150 images in shards of 64, two views
    weights_of = [load_weights(one.best)[0] for one in (run, whole)]
    assert all(torch.equal(weights_of[0][name], weights_of[1][name]) for name in weights_of[0])
    assert [row["val_loss"] for row in run.metrics()] == [row["val_loss"] for row in whole.metrics()]


def test_features_of_another_recipe_are_not_taken(weights: str, tmp_path: Path) -> None:
    setups = []
    for fields in ((), ("train.seed=1",), ("augment.train=[]",)):
        run = Run.create(tmp_path / "-".join(fields) / "run", recipe(weights, *fields))
        setups.append(pipeline._key(run, Setup.of(run)))
    assert len(set(setups)) == 3


def test_a_resumed_run_needs_no_pretrained_weights(weights: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(Path(weights).read_bytes())
    asked = recipe(str(copy), "train.epochs=2")
    folder = tmp_path / "run"
    whole = train(asked, tmp_path / "whole")

    with pytest.raises(TrainingInterruptedError):
        train(asked, folder, watcher=Signal(5))
    saved = Run.open(folder).recipe.model.pretrained_sha256
    assert saved is not None
    copy.unlink()
    run = train(asked, folder, resume=True)
    assert run.recipe.model.pretrained_sha256 == saved
    assert run.environment()["weights"] == str(copy)
    assert [row["epoch"] for row in run.metrics()] == [0, 1, 2]
    weights_of = [load_weights(one.best)[0] for one in (run, whole)]
    assert all(torch.equal(weights_of[0][name], weights_of[1][name]) for name in weights_of[0])


def test_a_recipe_repeats_only_with_the_same_weights(weights: str, tmp_path: Path) -> None:
    run = train(recipe(weights, "train.epochs=0"), tmp_path / "run")
    torch.manual_seed(2)
    other = build(ModelSpec(name="resnet8", width=8), classes=7, channels=1, image_size=28)
    save_file(dict(other.state_dict()), tmp_path / "other.safetensors")
    with pytest.raises(RecipeError, match="are not those of the recipe"):
        train(run.recipe.override(f"model.pretrained={tmp_path / 'other.safetensors'}"), tmp_path / "again")
    assert not (tmp_path / "again").exists()
    again = train(Recipe.load(run.path / "recipe.yaml"), tmp_path / "again")
    assert again.metrics()[0]["val_loss"] == run.metrics()[0]["val_loss"]


def test_where_there_is_nothing_to_probe(weights: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.epochs: 0 .* model\.pretrained is not set"):
        train(Recipe.load("fashion-mini").override(*TINY, "train.probe=auto", "train.epochs=0"), tmp_path / "run")
    with pytest.raises(RecipeError, match="epochs: 0 trains nothing"):
        recipe(weights, "train.probe=null", "train.epochs=0")
    without = train(recipe(weights, "train.probe=null"), tmp_path / "without")
    assert [row["epoch"] for row in without.metrics()] == [1]


@pytest.mark.parametrize(
    ("field", "processes", "error"),
    [("train.optimizer.name=adamv", 1, RecipeError), ("train.batch_size=32", 3, DataError)],
)
def test_what_cannot_be_trained_is_refused_before_the_features_are_computed(
    weights: str, tmp_path: Path, field: str, processes: int, error: type[KitaeError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may take minutes, and a folder with work in it is kept, which the corrected recipe could not have."""
    training = importlib.import_module("kitae.pipelines.train")
    monkeypatch.setattr(training, "begin", lambda _: World(0, processes, torch.device("cpu")))
    monkeypatch.setattr(training.distributed, "from_main", lambda value, _: value)
    refused(error, field.partition("=")[0].replace(".", r"\."), train, recipe(weights, field), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_features_are_those_of_a_network_without_batchnorm_on_a_cpu(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    plain = pipeline.predict_logits

    def recorded(network: nn.Module, *arguments: Any, **options: Any) -> Any:
        seen.append(any(isinstance(module, nn.BatchNorm2d) for module in network.modules()))
        return plain(network, *arguments, **options)

    monkeypatch.setattr(pipeline, "predict_logits", recorded)
    run = train(recipe(weights, "train.epochs=0"), tmp_path / "run")
    assert set(seen) == {False}
    assert any("running_mean" in name for name in load_weights(run.best)[0]), "the model itself is not folded"


def test_memory_for_the_features_does_not_blame_the_batch(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are computed in batches of the same size whatever `train.batch_size` is."""

    def exhausted(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(pipeline, "predict_logits", exhausted)
    refused(TrainingError, r"^out of memory at train\.probe: lower", train, recipe(weights), tmp_path / "run")


def test_minutes_do_not_fine_tune_where_the_plan_wants_the_probe_alone(weights: str, tmp_path: Path) -> None:
    run = train(recipe(weights, "train.epochs=0"), tmp_path / "run", minutes=1)
    assert run.recipe.train.epochs == 0
    assert [row["epoch"] for row in run.metrics()] == [0]


@pytest.mark.parametrize(("wanted", "left", "made"), [(40, (1, 25), 0), (5, (1, 20), 1), (40, (4, 26), 4)])
def test_a_few_steps_of_many_are_not_made(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: int, left: tuple[int, int], made: int
) -> None:
    """An epoch of 150 images in batches of 32 has 4 steps: 40 epochs want 160 of them, 5 want 20."""
    monkeypatch.setattr(pace, "fill", lambda *_: pace.Length(*left))
    asked = recipe(weights, f"train.epochs={wanted}")
    setup = Setup.of(Run.create(tmp_path / "run", asked))
    world = World(0, 1, torch.device("cpu"))
    with_probe = asked.override("train.probe={views: 0}")
    clock = pace.Clock.of(1, 0.0)
    timed, _ = pace.fitted(with_probe, setup, setup.initial_model(world), clock, world)
    assert timed.train.epochs == made


@pytest.mark.parametrize(("gone", "measured", "made"), [(0, 2, 2), (40, 1, 0)])
def test_one_slow_measurement_does_not_leave_most_of_the_minutes_unused(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: float, measured: int, made: int
) -> None:
    """At first no step fits, then two epochs do; with 40 of the 60 seconds gone it is not measured again."""
    plans = iter([(0, 0), (2, 80)])
    monkeypatch.setattr(pace, "fill", lambda *_: pace.Length(*next(plans)))
    asked = recipe(weights, "train.epochs=40000").override("train.probe={views: 0}")
    setup = Setup.of(Run.create(tmp_path / "run", asked))
    world = World(0, 1, torch.device("cpu"))
    clock = pace.Clock.of(1, time.monotonic() - gone)
    timed, _ = pace.fitted(asked, setup, setup.initial_model(world), clock, world)
    assert timed.train.epochs == made
    assert len(list(plans)) == 2 - measured
