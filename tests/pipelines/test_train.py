"""The main job from recipe to run folder."""

from __future__ import annotations

import errno
import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from kitae import console
from kitae.augment import Augment
from kitae.data.loader import ImageSet
from kitae.data.splits import Splits, TestClosedError
from kitae.errors import (
    DataError,
    KitaeError,
    MissingExtraError,
    RecipeError,
    TrainingDivergedError,
    TrainingError,
    TrainingInterruptedError,
)
from kitae.loading import load
from kitae.pipelines import bench
from kitae.pipelines.bench import estimate
from kitae.pipelines.export import export
from kitae.pipelines.notes import machine_notes, notes_of
from kitae.pipelines.setup import Setup, begin
from kitae.pipelines.train import train, train_without_test
from kitae.recipe import Recipe, shipped
from kitae.run import Run
from kitae.training import distributed
from kitae.training.checkpoint import load_weights
from kitae.training.distributed import World
from kitae.training.spec import TrainSpec
from tests.images import encode, picture, turned_by, write_folder, write_parquet
from tests.pipelines.conftest import undescribed
from tests.refusals import refused, unchanged
from tests.watchers import DiesHereError, KillAt

pytestmark = pytest.mark.usefixtures("own_cache")

TINY = (
    "data.limit=200", "model.name=resnet8", "model.width=8", "train.epochs=2", "train.batch_size=32",
    "train.precision=fp32", "train.threads=1",
)  # fmt: skip


ON_CPU = World(0, 1, torch.device("cpu"))


def tiny(*fields: str) -> Recipe:
    return Recipe.load("fashion-mini").override(*TINY, *fields)


def tiny_of(source: str, *fields: str) -> Recipe:
    """A tiny recipe for all images of a source."""
    return tiny(f"data.source={source}", "data.limit=null", *fields)


def noted(setup: Setup) -> list[str]:
    return notes_of(setup, setup.initial_model(ON_CPU, pretrained=False))


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("data") / "d.parquet")


@pytest.fixture(scope="module")
def small(parquet: Path) -> Callable[..., Recipe]:
    """Tiny recipes on data of which little is evaluated."""
    return partial(tiny_of, f"parquet:{parquet}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> Run:
    """A finished run, which is only read."""
    return train(tiny("train.ema=0.9"), tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def copied(run: Run, tmp_path: Path) -> Run:
    """A copy of it, which may be changed."""
    return Run.open(shutil.copytree(run.path, tmp_path / "copy"))


def test_threads_that_never_end_are_refused() -> None:
    refused(RecipeError, r"train\.threads: 1000000 threads wait for each other", begin, TrainSpec(threads=1_000_000))


def test_run_folder_holds_everything(run: Run) -> None:
    names = {entry.name for entry in run.path.iterdir()}
    assert names >= {
        "recipe.yaml", "environment.json", "metrics.jsonl", "best.safetensors", "last", "predictions.parquet",
        "evaluation.json", "splits.npz",
    }  # fmt: skip
    assert not [name for name in names if name.endswith(".tmp")]
    rows = run.metrics()
    assert [row["epoch"] for row in rows] == [1, 2]
    promised = {
        "epoch", "step", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate",
        "images_per_second", "seconds", "data_share", "peak_memory_bytes",
    }  # fmt: skip
    assert all(promised <= row.keys() for row in rows)
    assert rows[-1]["step"] == 2 * 6  # 200 images: 6 batches of 32, and the rest is dropped
    assert run.evaluate("val")["accuracy"] == pytest.approx(max(row["val_accuracy"] for row in rows), abs=0.01)
    written = json.loads((run.path / "evaluation.json").read_text())
    test = written["test"]
    low, high = test["accuracy_interval"]
    assert 0 <= low <= test["accuracy"] <= high <= 1
    assert {"loss", "ece", "per_class", "confusion"} <= test.keys()
    assert written["test_openings"] == 1
    assert written["temperature"] > 0
    assert written["duplicates"] == {"images": 0, "groups": 0, "val": 0, "test": 0}
    assert "without_duplicates" not in test
    assert not any("duplicate" in note for note in noted(Setup.without_run(tiny())))
    table = run.predictions()
    assert table.num_rows == 1000
    right = np.mean([a == b for a, b in zip(table["label"].to_pylist(), table["predicted"].to_pylist(), strict=True)])
    assert right == pytest.approx(test["accuracy"])


def test_every_field_of_the_results_is_described(run: Run) -> None:
    evaluation = run.evaluation()
    assert not undescribed(evaluation, Run.evaluation)
    assert not undescribed(evaluation["test"], Run.evaluate)
    assert not undescribed(next(iter(evaluation["test"]["per_class"].values())), Run.evaluate)
    assert not undescribed(run.metrics()[0], Run.metrics)
    assert not undescribed(run.predictions().column_names, Run.predictions)


def test_equal_images_are_counted_and_test_is_given_without_them(tmp_path: Path) -> None:
    table = pq.read_table(write_parquet(tmp_path / "x.parquet")).to_pylist()
    table[-1]["image"] = table[0]["image"]  # a test image that is a training image
    table[1]["image"] = table[2]["image"]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "x.parquet")
    recipe = tiny_of(f"parquet:{tmp_path / 'x.parquet'}", "train.epochs=1")
    notes = noted(Setup.without_run(recipe))
    assert any("4 images are exact duplicates" in note for note in notes)
    assert any("1 of 50 test images" in note for note in notes)
    run = train(recipe, tmp_path / "run")
    evaluation = run.evaluation()
    assert evaluation["duplicates"] == {"images": 4, "groups": 2, "val": 0, "test": 1}
    rows = run.predictions().to_pylist()
    right = [row["label"] == row["predicted"] for row in rows if row["name"] != f"x.parquet:{len(table) - 1}"]
    without = evaluation["test"]["without_duplicates"]
    assert (without["count"], without["accuracy"]) == (49, np.mean(right))
    assert without["accuracy_interval"][0] <= without["accuracy"] <= without["accuracy_interval"][1]
    assert run.evaluate("test")["without_duplicates"] == without
    assert "without_duplicates" not in run.evaluate("val")


def test_opening_test_again_is_counted_and_it_stays_closed_until_the_run_has_ended(copied: Run) -> None:
    assert copied.evaluate("test")["accuracy"] == pytest.approx(copied.evaluation()["test"]["accuracy"])
    copied.evaluate("val")
    assert copied.evaluation()["test_openings"] == 2
    (copied.path / "evaluation.json").unlink()
    unfinished = Run.open(copied.path)
    refused(TrainingError, "not finished", unfinished.evaluate, "test")
    assert unfinished.evaluate("val")["count"] == 600


def test_a_read_only_run_is_refused_before_the_images_are_read(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    access = os.access  # root may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != copied.path and access(path, mode))
    monkeypatch.setattr(Run, "open_store", Mock(side_effect=AssertionError))
    refused(TrainingError, "is read-only, .* copy the run", copied.evaluate)
    assert copied.test_openings == 1


def test_a_finished_run_is_returned_as_it_is(run: Run) -> None:
    before = run.best.read_bytes()
    assert train(tiny("train.ema=0.9"), run.path, resume=True).evaluation() == run.evaluation()
    assert run.best.read_bytes() == before


def test_no_test_image_is_touched_before_the_end(
    tmp_path: Path, small: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Splits, "open_test", Mock(side_effect=AssertionError("test was opened")))
    with pytest.raises(AssertionError, match="test was opened"):
        train(small(), tmp_path / "run")
    interrupted = Run.open(tmp_path / "run")
    assert len(interrupted.metrics()) == 2  # every epoch and every choice was made without it
    assert interrupted.test_openings == 0
    setup = Setup.of(interrupted)
    rows = setup.splits._test
    with pytest.raises(TestClosedError):
        setup.images.gather(rows[:1])


def test_other_test_images_change_neither_weights_nor_choices(tmp_path: Path) -> None:
    outcomes = []
    for name, noise in (("a", None), ("b", 7)):
        source = write_parquet(tmp_path / f"{name}.parquet", test_noise=noise)
        made = train(tiny_of(f"parquet:{source}"), tmp_path / name)
        scores = [(row["train_loss"], row["val_loss"], row["val_accuracy"]) for row in made.metrics()]
        outcomes.append((load_weights(made.best)[0], scores, made.evaluation()["temperature"]))
    (weights, scores, temperature), (others, other_scores, other_temperature) = outcomes
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert scores == other_scores
    assert temperature == other_temperature


def test_mixing_ends_before_the_run_does(tmp_path: Path) -> None:
    def targets_of(mix: str, epochs: int = 4) -> list[bool]:
        """Whether any target of an epoch was mixed, epoch by epoch."""
        seen: dict[int, bool] = {}

        class Watched(Augment):
            def __call__(self, images: Any, targets: Any = None, **keys: Any) -> Any:
                made = super().__call__(images, targets, **keys)
                seen[keys["epoch"]] = seen.get(keys["epoch"], False) or bool((made[1].max(dim=1).values < 1).any())
                return made

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kitae.pipelines.setup.Augment", Watched)
            train(tiny(f"augment.mix={mix}", f"train.epochs={epochs}"), tmp_path / str(len(list(tmp_path.iterdir()))))
        return [seen[epoch] for epoch in range(epochs)]

    assert targets_of("{until: 0.5}") == [True, True, False, False]
    assert targets_of("{}", 2) == [True, True]


@pytest.mark.parametrize("threads", [1, 4])
def test_augmented_samples_do_not_depend_on_threads_or_batch(threads: int) -> None:
    setup = Setup.without_run(tiny("augment.mix={mixup_alpha: 1.0, cutmix_alpha: 1.0, per: sample}"))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        augment = setup.augment(0)
    finally:
        torch.set_num_threads(before)
    order = setup.images.order(0, 3)
    results = []
    for size in (32, 128):
        parts = []
        for start in range(0, 128, size):
            index = order[start : start + size]
            images, labels = map(torch.from_numpy, setup.images.gather(index))
            parts.append(augment(images, labels, epoch=3, index=index))
        results.append([torch.cat(columns) for columns in zip(*parts, strict=True)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_photographs_of_all_kinds_train_and_an_exif_twin_is_classified_alike(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos")
    fields = ("data.image_size=32", "data.val_fraction=0.2", "train.epochs=1", "train.batch_size=8")
    made = train(tiny_of(f"folder:{folder}", *fields), tmp_path / "run")
    assert made.classes == ("class 0", "class 1", "class 2")
    upright = Image.fromarray(picture(1, 500, (48, 64), 3))
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=turned_by(6))
    result = made.predict([tmp_path / "upright.png", tmp_path / "turned.png", upright, encode(np.array(upright))])
    assert result.probabilities.shape == (4, 3)
    np.testing.assert_allclose(result.probabilities, result.probabilities[:1].repeat(4, 0), atol=1e-6)
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1, atol=1e-5)


FAST = ("cifar10-quick", "cifar10-speed", "fashion-mini")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in shipped()]
)
def test_every_shipped_recipe_runs_tiny(name: str, tmp_path: Path, parquet: Path) -> None:
    fields = ["train.epochs=1", "train.batch_size=32", "train.threads=1"]
    fields.append("data.limit=200" if name == "fashion-mini" else f"data.source=parquet:{parquet}")
    if name == "finetune":
        fields += ["data.image_size=32", "data.normalize=train", "model.pretrained=false"]
        pytest.importorskip("timm")
    if name in ("cifar10-quick", "cifar10-speed", "cifar10-strong", "fashion-mnist"):
        narrow = Recipe.load(name).model.name in ("resnet9", "airbench")
        fields.append("model.width=8" if narrow else "train.precision=bf16")
    made = train(Recipe.load(name).override(*fields), tmp_path / "run")
    assert made.finished
    assert len(made.metrics()) == 1


def test_home_is_meant_by_a_tilde_in_python_too(
    tmp_path: Path, small: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = train(small("train.epochs=1"), "~/run", test=False)
    assert made.path == tmp_path / "run"
    assert Run.open("~/run").path == load("~/run").path == made.path
    assert export(made, "~/model.onnx").path == tmp_path / "model.onnx"
    assert load("~/model.onnx").path == tmp_path / "model.onnx"


def test_imbalance_rules_reach_the_loop(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", train=30)
    for file in sorted((photos / "class 0").iterdir())[8:]:
        file.unlink()
    recipe = tiny_of(f"folder:{photos}", "data.image_size=16", "train.epochs=1", "train.batch_size=16")
    losses = [
        train(recipe.override(f"data.balance={balance}"), tmp_path / balance).metrics()[0]["train_loss"]
        for balance in ("none", "sampler", "loss")
    ]
    assert len(set(losses)) == 3, "another order of the same images, other weights in the loss"


def test_each_process_validates_images_that_lie_together(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup.without_run(Recipe.load("fashion-mini").override("data.limit=200"))
    read: list[list[int]] = []

    def gathered(local: Any, rows: Any, total: int, world: World) -> Any:
        read.append(rows.tolist())
        return np.zeros((total, 10), np.float32)

    monkeypatch.setattr(distributed, "gather_rows", gathered)
    for rank in range(3):
        validate = setup.validator(World(rank, 3, torch.device("cpu")))
        validate(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    val = read[::2]  # the other calls are for clean training images
    assert [row for rows in val for row in rows] == list(range(len(setup.splits.val))), "few shards for each process"
    assert max(map(len, val)) - min(map(len, val)) <= 1


@pytest.mark.parametrize(
    ("limit", "val_fraction", "clean"),
    [(4000, 0.2, 600), (4000, 0.02, 200), (100, 0.2, 100), (3000, 0.5, 1000)],
    ids=["half of validation", "at least 200", "at most all of train", "at most 1,000"],
)
def test_few_clean_training_images_are_judged(limit: int, val_fraction: float, clean: int) -> None:
    recipe = Recipe.load("fashion-mini").override(f"data.limit={limit}", f"data.val_fraction={val_fraction}")
    setup = Setup.without_run(recipe)
    read: list[int] = []

    class Counted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            read.append(len(x))
            return super().forward(x)

    setup.validator(World(0, 1, torch.device("cpu")))(nn.Sequential(nn.Flatten(), Counted(784, 10)))
    assert sum(read) - len(setup.splits.val) == clean == setup.judged - len(setup.splits.val)


def test_validation_is_judged_once_and_says_the_same(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the best epoch said is the final evaluation of validation, as a process that did not train would find it."""
    written, found = run.evaluation()["val"], run.evaluate("val")
    assert written["accuracy"] == found["accuracy"]
    assert written["loss"] == pytest.approx(found["loss"], rel=1e-6)  # another layout in memory rounds otherwise
    judged: list[int] = []
    honest = Run.logits

    def logits(self: Run, images: ImageSet, *options: Any, **more: Any) -> Any:
        judged.append(len(images.rows))
        return honest(self, images, *options, **more)

    monkeypatch.setattr(Run, "logits", logits)
    again = train(run.recipe, tmp_path / "run")
    assert judged == [again.evaluation()["test"]["count"]], "test alone"
    assert again.evaluation()["val"] == run.evaluation()["val"]
    other = Setup.of(again)
    assert other.judgement(again.load_model()) is None, "another process has judged nothing"


def test_the_judgement_that_is_kept_is_that_of_the_metric_that_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup.without_run(tiny("train.select=auto"))
    scores = iter([(0.5, 0.9), (0.9, 0.5)])
    monkeypatch.setattr(
        "kitae.pipelines.setup.label_scores",
        lambda *_: dict(zip(("val_accuracy", "val_balanced_accuracy"), next(scores), strict=True)),
    )
    models = [nn.Sequential(nn.Flatten(), nn.Linear(784, 10)) for _ in range(2)]
    validate = setup.validator(ON_CPU, "val_balanced_accuracy")
    for model in models:
        validate(model)
    assert [setup.judgement(model) is not None for model in models] == [True, False]


def test_a_network_of_one_size_cannot_start_with_smaller_pictures() -> None:
    setup = Setup.without_run(tiny("train.progressive={start: 0.75, until: 0.5}"))
    assert not any("progressive" in note for note in noted(setup))
    channels, height, width = setup.store.rules.shape
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 10))
    words = r"train\.progressive: resnet8 for images of 28 x 28 cannot take 20 x 20"
    refused(RecipeError, words, notes_of, setup, fixed)
    # Nor one that takes the first size, of 20 pixels, but not the next one.
    branches = nn.Sequential(
        nn.AvgPool2d(4), _UpAndDown(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)
    )
    refused(RecipeError, "cannot take 24 x 24", notes_of, setup, branches)


class _UpAndDown(nn.Module):
    """Adds two resolutions, as HRNet does: the sides must be odd here."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        half = nn.functional.interpolate(images[:, :, ::2, ::2], scale_factor=2)[:, :, :-1, :-1]
        return images + half


def test_fine_tuning_scales_every_rate_and_takes_whole_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates of biases and of the layers that Muon leaves are absolute, so a share of one is a share of all."""
    rates = "{name: muon, lr: 0.2, other_lr: 1.0, bias_lr: 4.0}"
    setup = Setup.without_run(
        tiny(f"train.optimizer={rates}", "train.progressive={start: 0.75, until: 0.5}", "train.recut=[[1, 9]]")
    )
    asked: list[TrainSpec] = []
    monkeypatch.setattr(Setup, "fit", lambda self, model, spec, world, **options: asked.append(spec))
    assert setup.recipe.train.recut
    setup.recover(nn.Linear(2, 2), epochs=1, seed=1, rate=0.1)
    (spec,) = asked
    assert spec.last_epoch == 1  # not that of the run, which its minutes had made longer
    assert (spec.optimizer.lr, spec.optimizer.other_lr, spec.optimizer.bias_lr) == pytest.approx((0.02, 0.1, 0.4))
    assert spec.progressive is None


@pytest.mark.parametrize(("until", "mixes"), [(1.0, True), (0.8, False)])
def test_fine_tuning_does_not_mix_again(until: float, mixes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would mix in the first of 2 epochs."""
    made: list[Any] = []
    monkeypatch.setattr("kitae.pipelines.setup.fit", lambda model, spec, source, *_, **options: made.append(source))
    Setup.without_run(tiny(f"augment.mix.until={until}")).recover(nn.Linear(2, 2), epochs=2, seed=1)
    (source,) = made
    assert (source.augment.mix is not None, source.unmixed) == (mixes, None)


@pytest.mark.parametrize(("trained", "tuned"), [("fp16", "fp32"), ("bf16", "bf16")])
def test_a_run_of_a_gpu_is_fine_tuned_in_a_precision_that_this_device_has(
    trained: str, tuned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, asked = Setup.without_run(tiny(f"train.precision={trained}")), []
    monkeypatch.setattr(Setup, "fit", lambda self, model, spec, world, **options: asked.append(spec.precision))
    setup.recover(nn.Linear(2, 2), epochs=1, seed=1)
    assert asked == [tuned]


SMALLER = "augment.train=[{random_crop: {size: 24}}]"


@pytest.mark.parametrize(
    ("fields", "error", "told"),
    [
        (["data.source=folder:nowhere"], DataError, "nowhere"),
        (["train.optimizer.name=adamv"], RecipeError, "did you mean adam"),
        (["train.device=cpu", "train.precision=fp16"], RecipeError, r"train\.precision: fp16 .* cpu.* auto or fp32"),
        (["model.name=resnet81", "model.width=null"], RecipeError, "resnet81.*resnet8"),
        (["model={name: simple_cnn}", SMALLER], RecipeError, "augment.train .* 24 x 24 .*simple_cnn .* 28 x 28"),
        pytest.param(
            ["train.device=cuda"], TrainingError, r"train\.device: cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_by_plan_and_training_and_leaves_no_folder(
    fields: list[str], error: type[KitaeError], told: str, tmp_path: Path
) -> None:
    with unchanged(tmp_path):
        refused(error, told, estimate, tiny(*fields))
        refused(error, told, train, tiny(*fields), tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        (["train.schedule={name: one_cycle, warmup_epochs: 2}"], "train.schedule.warmup_epochs has no effect"),
        (["train.batch_size=100"], "train.batch_size: 100 with 200 images gives 2 updates per epoch"),
        (["train.accumulate=3"], "train.batch_size: 16 (train.accumulate: 3) with 200 images gives 4 updates per"),
        (["train.optimizer={name: sgd, other_lr: 1.0}"], "train.optimizer.other_lr has no effect with sgd"),
        (["train.optimizer={name: adamw, lr: 0.02}"], "train.optimizer.lr: 0.02 is far from the usual value for adamw"),
        (["train.optimizer={name: adamw, weight_decay: 5.0e-4}"], "train.optimizer.weight_decay: 0.0005 is far from"),
        (["train.optimizer={name: sgd, weight_decay: 0.05}"], "train.optimizer.weight_decay: 0.05 is far from the"),
        (["model={name: resnet8, pretrained: true}"], "data.normalize: train, but the weights of resnet8 expect"),
        ([SMALLER], "augment.train gives images of 24 x 24 pixels; validation, test"),
    ],
)
def test_one_note_names_what_has_no_effect_or_an_unexpected_one(fields: list[str], start: str) -> None:
    (note,) = noted(Setup.without_run(tiny("train.batch_size=16", *fields)))
    assert note.startswith(start)


def test_the_default_folder_is_numbered_for_new_runs_only(
    tmp_path: Path, small: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = small("train.epochs=1")
    assert train(recipe).path.name == recipe.name
    assert train(recipe).path.name == f"{recipe.name}-2"
    assert train(recipe, overwrite=True).path.name == recipe.name
    assert train(recipe, resume=True).path.name == recipe.name
    assert sorted(entry.name for entry in Path("runs").iterdir()) == [recipe.name, f"{recipe.name}-2"]


def test_what_is_reported_with_test_time_augmentation_is_what_predict_gives(run: Run, tmp_path: Path) -> None:
    averaged = train(tiny("train.ema=0.9", "evaluate.tta=flip"), tmp_path / "run")
    assert averaged.facts()["temperature"] == run.facts()["temperature"]  # fitted on single views
    assert averaged.evaluation()["val"]["loss"] != run.evaluation()["val"]["loss"]
    store = averaged.open_store()
    rows = averaged.splits(store).val
    predictions, table = averaged.predict(np.array(store.images[rows])), averaged.evaluation()["val"]
    labels = store.labels[rows]
    assert np.mean(predictions.labels == labels) == pytest.approx(table["accuracy"])
    chances = predictions.probabilities[np.arange(len(rows)), labels].astype(np.float64)
    assert -np.log(chances).mean() == pytest.approx(table["loss"], abs=1e-5)
    single = averaged.predict(np.array(store.images[rows]), tta="none")
    assert not np.array_equal(single.probabilities, predictions.probabilities)


def test_one_image_is_an_image(run: Run, tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((40, 30), 90, np.uint8))
    grey.save(tmp_path / "p.png")
    listed = run.predict([tmp_path / "p.png"]).probabilities
    for one in (tmp_path / "p.png", str(tmp_path / "p.png"), grey, np.asarray(grey)):
        np.testing.assert_array_equal(run.predict(one).probabilities, listed)
    refused(DataError, "not int", run.predict, 3)


def test_a_missing_tensorboard_is_told_before_the_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr(Setup, "of", Mock(side_effect=AssertionError))
    refused(
        MissingExtraError, r"tensorboard is not installed: .*\[track\]", train, tiny("train.tensorboard=true"), tmp_path
    )


def test_tensorboard_gets_every_epoch(tmp_path: Path, small: Callable[..., Recipe]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = train(small("train.tensorboard=true"), tmp_path / "run")
    board = EventAccumulator(str(made.tensorboard)).Reload()
    assert [event.step for event in board.Scalars("val_accuracy")] == [1, 2]


def test_given_normalisation_is_used() -> None:
    setup = Setup.without_run(tiny("data.normalize={mean: [0.5], std: [0.25]}"))
    assert setup.normalization == ((0.5,), (0.25,))
    wrong = Setup.without_run(tiny("data.normalize={mean: [0.5, 0.5, 0.5], std: [1, 1, 1]}"))
    refused(RecipeError, r"data\.normalize: mean and std need 1 value", lambda: wrong.normalization)


def test_the_normalisation_of_weights_from_a_run_is_asked_for(tmp_path: Path) -> None:
    own = tiny("model.name=resnet8", f"model.pretrained={tmp_path / 'best.safetensors'}")
    assert any("mean and std of the run that they come from" in note for note in estimate(own)["notes"])
    refused(RecipeError, r"names no normalisation; .*model\.json", estimate, own.override("data.normalize=pretrained"))


def test_another_machine_is_told_at_resume(run: Run) -> None:
    assert machine_notes({}, 1) == []  # not begun
    first, second = machine_notes({**run.environment(), "processor": "Pentium"}, 2)
    assert first.startswith("processor was Pentium, is ")
    assert second == "processes was 1, is 2: the result may differ in the last bits"


def test_plan_resolves_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    facts = estimate(tiny("train.precision=auto"))
    assert facts["recipe"].train.precision in ("fp32", "bf16")
    assert facts["steps_per_epoch"] == 6
    assert facts["seconds"] > 0
    assert estimate(tiny("train.optimizer.lr=1e9"))["seconds"] > 0, "a rate at which the training would diverge"
    assert list(tmp_path.iterdir()) == []


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_a_run_is_locked_until_it_is_closed(tmp_path: Path) -> None:
    run = Run.create(tmp_path, Recipe())
    refused(TrainingError, "another process", Run.create, tmp_path, Recipe(), resume=True)
    run.resolve(Recipe().override("train.precision=bf16"))
    run.close()
    (tmp_path / "nohup.out").write_text("epoch 1/10")  # in no resumed run's way
    again = Run.create(tmp_path, Recipe(), resume=True)
    assert again.recipe.train.precision == "bf16", "what was resolved is no other recipe"
    again.close()
    assert (tmp_path / "nohup.out").exists()


def test_a_run_that_learnt_nothing_removes_the_folders_that_it_made(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "mine", tmp_path / "new" / "run"):
        run = Run.create(folder, Recipe())
        run.close()
        run.discard_failed(diverged=False)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "mine"]


def begun(folder: Path, field: str, **options: bool) -> Recipe:
    """The recipe of a run that begins in a folder, and is closed at once."""
    run = Run.create(folder, Recipe().override(field), **options)
    run.close()
    return run.recipe


RESUME = {"resume": True}
OPS = r"another recipe \(augment\.train"


@pytest.mark.parametrize(
    ("before", "now", "options", "told"),
    [
        ("train.epochs=10", "train.epochs=10", {}, "--resume or --overwrite"),
        ("train.epochs=10", "train.epochs=10", {"resume": True, "overwrite": True}, "--resume and --overwrite"),
        ("train.epochs=10", "train.epochs=3", RESUME, r"another recipe \(train\.epochs was 10, is 3\)"),
        ("augment.train=[random_crop, horizontal_flip]", "augment.train=[random_crop, vertical_flip]", RESUME, OPS),
        ("augment.train=[random_crop]", "augment.train=[random_crop, equalize]", RESUME, OPS),
        ("augment.train=[equalize]", "augment.train=[]", RESUME, OPS),
    ],
)
def test_a_folder_with_a_run_needs_a_word_and_its_own_recipe(
    before: str, now: str, options: dict[str, bool], told: str, tmp_path: Path
) -> None:
    old = begun(tmp_path, before)
    assert begun(tmp_path, before, resume=True) == old
    refused(TrainingError, told, begun, tmp_path, now, **options)
    assert Run.open(tmp_path).recipe == old
    assert begun(tmp_path, now, overwrite=True) == Run.open(tmp_path).recipe == Recipe().override(now)


def test_where_no_run_can_be_and_none_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with unchanged(tmp_path):
        refused(TrainingError, r"thesis\.tex", Run.create, tmp_path, Recipe(), overwrite=True)
        refused(TrainingError, r"is a file.*--out", Run.create, tmp_path / "thesis.tex", Recipe())
        refused(TrainingError, r"not a run folder \(it has no recipe\.yaml\)", Run.open, tmp_path)
        refused(TrainingError, r"\(there is no such folder\)", Run.open, tmp_path / "typo")
        refused(TrainingError, r"\(it is a file\)", Run.open, tmp_path / "thesis.tex")
    run = Run.create(tmp_path / "begun", Recipe())
    refused(TrainingError, r"give the folder, \S+begun\)", Run.open, run.path / "recipe.yaml")
    (study := tmp_path / "study").mkdir()
    (study / "study.yaml").touch()
    refused(TrainingError, r"\(it is the folder of a study\)", Run.open, study)
    for ask in (run.evaluation, run.load_model, run.predictions):
        refused(TrainingError, "; resume it with: kitae train --resume", ask)
    refused(TrainingError, "the run was never started", run.environment)


def changed(content: bytes, **fields: Any) -> bytes:
    return json.dumps({**json.loads(content), **fields}).encode()


@pytest.mark.parametrize(
    ("name", "damage", "read", "error", "told"),
    [
        ("best.safetensors", lambda whole: whole[:1000], Run.load_model, TrainingError, "not a whole checkpoint"),
        ("model.json", lambda _: b"{", Run.facts, TrainingError, "is damaged"),
        ("model.json", lambda _: b"{}", Run.predictor, TrainingError, "damaged.* no classes"),
        ("model.json", lambda whole: changed(whole, classes=None), Run.facts, TrainingError, r"damaged \(classes is N"),
        ("model.json", lambda whole: changed(whole, preprocess=[]), Run.facts, TrainingError, r"\(preprocess is \[\]"),
        ("model.json", lambda whole: changed(whole, mean=["a"]), Run.facts, TrainingError, r"\(mean is \['a'\]"),
        ("model.json", lambda whole: changed(whole, std=[0.0]), Run.facts, TrainingError, r"\(std is \[0.0\]"),
        ("model.json", lambda whole: changed(whole, temperature=None), Run.facts, TrainingError, r"\(temperature is N"),
        ("model.json", lambda whole: changed(whole, format=99), Run.predictor, TrainingError, "newer version"),
        ("predictions.parquet", lambda whole: whole[:1000], Run.predictions, TrainingError, "is damaged"),
        ("splits.npz", lambda _: b"PK", Setup.of, DataError, ""),
    ],
)
def test_damaged_files_and_those_of_a_newer_version_are_named(
    name: str, damage: Callable[[bytes], bytes], read: Callable[[Run], Any], error: type[KitaeError], told: str,
    copied: Run,
) -> None:  # fmt: skip
    file = copied.path / name
    file.write_bytes(damage(file.read_bytes()))
    refused(error, f"{name}.*{told}", read, Run.open(copied.path))


def test_full_disk_is_one_line_and_keeps_the_last_state(
    tmp_path: Path, small: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0
    inner = os.fsync

    def full(handle: int) -> None:
        nonlocal writes
        writes += 1
        if writes > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inner(handle)

    recipe = small("train.epochs=3", "train.checkpoint_seconds=0.000001")
    whole = train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(KitaeError, "No space left on device", train, recipe, tmp_path / "run")
    resumed = train(recipe, tmp_path / "run", resume=True)
    a, b = load_weights(whole.best)[0], load_weights(resumed.best)[0]
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_memory_in_validation_does_not_blame_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(importlib.import_module("kitae.pipelines.setup"), "predict_logits", full)
    cure, recipe = r"out of memory at evaluate\.batch_size 100: halve it", tiny("evaluate.batch_size=100")
    refused(TrainingError, cure, train, recipe, tmp_path / "run")


@pytest.mark.parametrize("killed", [False, True])
def test_overwrite_gives_the_old_run_back_on_an_error(killed: bool, copied: Run, small: Callable[..., Recipe]) -> None:
    before = copied.best.read_bytes()
    if killed:  # before its first epoch ended
        Run.create(copied.path, small("train.seed=5"), overwrite=True).close()
        assert not copied.best.exists()
    refused(DataError, "nowhere", train, tiny("data.source=folder:nowhere"), copied.path, overwrite=True)
    old = Run.open(copied.path)
    assert old.finished
    assert old.best.read_bytes() == before
    train(small("train.epochs=1", "train.seed=5"), copied.path, overwrite=True)
    assert old.best.read_bytes() != before
    assert not (copied.path / ".replaced.tmp").exists()


def test_overwrite_gives_the_old_run_back_if_the_new_one_diverges(copied: Run, small: Callable[..., Recipe]) -> None:
    def state() -> tuple[dict[str, Any], set[str]]:
        return copied.evaluation(), {file.name for file in copied.path.iterdir()} - {".lock"}

    before = state()
    steps = "train.epochs=9", "train.optimizer.lr=1e15", "train.nan_limit=8"
    refused(TrainingDivergedError, r"nan_limit.*epoch [2-9]", train, small(*steps), copied.path, overwrite=True)
    assert state() == before


def test_a_killed_run_keeps_the_one_that_it_replaces_until_it_is_finished(
    copied: Run, run: Run, small: Callable[..., Recipe]
) -> None:
    recipe, aside = small("train.epochs=2", "train.seed=5"), copied.path / ".replaced.tmp"
    with pytest.raises(DiesHereError):
        train(recipe, copied.path, overwrite=True, watcher=KillAt(7))
    assert Run.open(aside).evaluation() == run.evaluation()
    assert train(recipe, copied.path, resume=True).finished
    assert not aside.exists()


def dying_after(moves: int) -> Callable[[Path, Path], Path]:
    """`Path.rename` of a process that is killed after so many."""
    rename, made = Path.rename, itertools.count()

    def dying(self: Path, target: Path) -> Path:
        if next(made) >= moves:
            raise KeyboardInterrupt
        return rename(self, target)

    return dying


@pytest.mark.parametrize("moves", [0, 3, 8])
def test_a_process_that_is_killed_while_it_overwrites_leaves_one_run_or_the_other(
    moves: int, copied: Run, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", dying_after(moves))
        with pytest.raises(KeyboardInterrupt):
            Run.create(copied.path, tiny("train.seed=5"), overwrite=True)
    refused(DataError, "nowhere", train, tiny("data.source=folder:nowhere"), copied.path, overwrite=True)
    old = Run.open(copied.path)
    assert old.evaluation() == run.evaluation()
    assert old.best.read_bytes() == run.best.read_bytes()
    assert {file.name for file in old.path.iterdir()} <= {file.name for file in run.path.iterdir()}


def test_a_full_disk_costs_no_run_that_was_to_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = begun(tmp_path, "train.seed=1")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        refused(KitaeError, "No space left on device", begun, tmp_path, "train.seed=2", overwrite=True)
    assert Run.open(tmp_path).recipe == old


@pytest.mark.parametrize("moves", [0, 1, 2, 9])
def test_an_unfinished_run_comes_back_that_was_to_replace_another(
    moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hold hours of training, and the other one is kept until it is finished."""
    begun(tmp_path, "train.seed=1")
    for seed, epochs in ((2, 5), (3, 7)):
        unfinished = begun(tmp_path, f"train.seed={seed}", overwrite=True)
        Run.open(tmp_path).write_metrics([{"epoch": epochs}])
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patched.setattr(Path, "rename", dying_after(moves))
        fourth = Run.create(tmp_path, Recipe().override("train.seed=4"), overwrite=True)
        fourth.close()
        fourth.discard_failed(diverged=False)
        raise KeyboardInterrupt
    last = Run.create(tmp_path, unfinished, resume=True)
    assert (last.recipe, last.metrics()) == (unfinished, [{"epoch": 7}])
    last.close()
    last.discard_failed(diverged=True)
    before = 2 if moves == 0 else 1  # the attempt before is kept until there is another one
    assert Run.open(tmp_path).recipe.train.seed == before
    last.write_evaluation({})
    assert {file.name for file in tmp_path.iterdir() if file.name.endswith(".tmp")} == set()


@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_a_run_that_was_finished_as_its_process_was_killed_has_replaced_the_other(tmp_path: Path, option: str) -> None:
    begun(tmp_path, "train.seed=1")
    second = begun(tmp_path, "train.seed=2", overwrite=True)
    Run.open(tmp_path).evaluation_file.write_text("{}")  # what is written last, before the first run is removed
    third = Run.create(tmp_path, Recipe().override(f"train.seed={2 if option == 'resume' else 3}"), **{option: True})
    third.close()
    if option == "overwrite":
        third.discard_failed(diverged=False)
    assert Run.open(tmp_path).recipe == second
    assert Run.open(tmp_path).finished
    assert not (tmp_path / ".replaced.tmp").exists()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyboardInterrupt(), "^$"),
        (TrainingInterruptedError("stopped by SIGTERM in the probe", "its features are saved"), "nothing was saved"),
    ],
)
def test_a_start_that_is_stopped_names_no_other_run_to_resume(
    error: BaseException, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = begun(tmp_path, "train.seed=1")
    checkpoint = Run.open(tmp_path).checkpoint
    checkpoint.parent.mkdir()
    checkpoint.touch()
    monkeypatch.setattr(Setup, "of", Mock(side_effect=error))
    with pytest.raises(type(error), match=told) as caught:
        train(tiny("train.seed=2"), tmp_path, overwrite=True)
    assert "resume" not in str(caught.value)
    assert Run.open(tmp_path).recipe == old
    assert checkpoint.exists()


def test_a_run_that_is_stopped_outside_the_loop_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = importlib.import_module("kitae.pipelines.train")
    with monkeypatch.context() as patched:
        patched.setattr(training, "_tested", Mock(side_effect=KeyboardInterrupt))
        error = refused(TrainingInterruptedError, "SIGINT", train, tiny("train.epochs=1"), tmp_path / "run")
    assert str(error).endswith(f"resume with: kitae train --resume {tmp_path / 'run'}")
    assert train(tiny("train.epochs=1"), tmp_path / "run", resume=True).finished


def test_openings_of_test_by_several_processes_are_all_counted(copied: Run, run: Run) -> None:
    code = "import sys; from kitae.run import Run; [Run.open(sys.argv[1]).count_test_opening('x') for _ in range(20)]"
    crew = [subprocess.Popen([sys.executable, "-c", code, str(copied.path)]) for _ in range(3)]
    assert [process.wait() for process in crew] == [0, 0, 0]
    assert copied.test_openings == run.test_openings + 60 == copied.evaluation()["test_openings"]


def test_only_the_main_process_refuses_a_folder_that_holds_a_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one may look after the main process has made it."""

    monkeypatch.setattr(importlib.import_module("kitae.pipelines.train"), "asked", Mock(side_effect=InterruptedError))
    for rank, error in (("0", TrainingError), ("1", InterruptedError)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(error):
            train(tiny(), run.path)


def test_names_that_are_not_utf8_cost_no_result(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", os.fsdecode(b"caf\xe9")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            file = os.fsdecode(b"\xe9%d.png" % i)
            Image.fromarray(pixels).save(str(tmp_path / "photos" / name / file), format="PNG")
    run = train(tiny_of(f"folder:{tmp_path / 'photos'}", "train.epochs=1", "train.batch_size=8"), tmp_path / "run")
    assert set(run.predictions()["label"].to_pylist()) == {"cat", "caf\ufffd"}
    assert all("\ufffd" in name for name in run.predictions()["name"].to_pylist())
    assert run.test_openings == 1


def test_an_epoch_s_score_is_the_final_evaluation_s(tmp_path: Path, small: Callable[..., Recipe]) -> None:
    made = train(small("train.precision=bf16", "evaluate.temperature=false"), tmp_path / "run")
    row, final = made.metrics()[made.best_epoch() - 1], made.evaluation()  # type: ignore[operator]
    assert (final["precision"], final["train_precision"]) == ("fp32", "bf16")
    assert row["val_accuracy"] == final["val"]["accuracy"]
    assert row["val_loss"] == pytest.approx(final["val"]["loss"], rel=1e-6)


def test_auto_follows_the_data_and_is_written_down(tmp_path: Path) -> None:
    for name, counts in (("even", (24, 20)), ("uneven", (48, 12))):
        for label, count in zip("ab", counts, strict=True):
            (tmp_path / name / label).mkdir(parents=True)
            for number in range(count):
                level = np.full((16, 16), 3 * number + (label == "b"), np.uint8)
                Image.fromarray(level).save(tmp_path / name / label / f"{number}.png")
        fields = ("data.image_size=16", "train.epochs=1", "train.batch_size=8", "train.early_stopping={patience: 5}")
        made = train(tiny_of(f"folder:{tmp_path / name}", *fields), tmp_path / f"run-{name}")
        expected = "val_balanced_accuracy" if name == "uneven" else "val_accuracy"
        saved = Run.open(made.path).recipe.train
        assert (saved.select, saved.early_stopping.metric) == (expected, expected)  # type: ignore[union-attr]


def test_outputs_that_are_not_finite_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with console.TrainingView() as view, pytest.raises(TrainingError, match=r"not finite|never finite"):
        train(tiny("train.optimizer.lr=1e15", "train.epochs=1"), tmp_path / "run", watcher=view)


ABOVE_0 = r"minutes: .*: must be a number above 0"


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        *((tiny(), {"minutes": minutes}, ABOVE_0) for minutes in (0, -1, float("nan"), float("inf"), 1e308, "5")),
        (np.zeros(3), {}, "not ndarray"),
        ("long" * 100, {}, "no such recipe"),
        ("fashion-mini", {"batch_size": -1, "show": True}, "batch_size: should be a multiple of 2"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_every_process_of_torchrun_and_leaves_no_folder(
    recipe: Any, options: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(console, "TrainingView", lambda _: pytest.fail("a second bar"))
    with unchanged(tmp_path):
        refused(RecipeError, words, train, recipe, tmp_path / "run", **options)


def test_an_estimate_times_a_process_s_share_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []

    def step_times(model: nn.Module, spec: TrainSpec, images: torch.Tensor, *_: Any, **__: Any) -> dict[str, Any]:
        timed.append(len(images))
        return {"fp32": np.ones(1)}

    monkeypatch.setattr(bench, "begin", lambda _: World(1, 2, torch.device("cpu")))
    monkeypatch.setattr(bench.distributed, "from_main", lambda value, _: value)
    monkeypatch.setattr(bench, "step_times", step_times)
    estimate(tiny())
    assert timed == [16]


def test_a_precision_that_no_training_has_is_not_timed() -> None:
    told = r"train\.precision: fp16 is not possible on cpu; set it to auto or fp32 or bf16"
    refused(RecipeError, told, bench.bench_train, tiny("train.device=cpu", "train.precision=fp16"))


def test_a_batch_larger_than_the_data_shrinks_and_is_noted(tmp_path: Path) -> None:
    recipe = tiny("train.batch_size=4096")
    assert any("train.batch_size: 4096 with 200 images" in note for note in noted(Setup.without_run(recipe)))
    assert train(recipe, tmp_path / "run").metrics()[-1]["step"] == recipe.train.epochs


def test_validation_has_the_same_numbers_with_and_without_test(run: Run, tmp_path: Path) -> None:
    without = train_without_test(run.recipe, tmp_path / "without", resume=True)
    expected, found = run.evaluation(), without.evaluation()
    assert expected["temperature"] != 1
    for name in ("val", "temperature", "precision", "tta", "best_epoch"):
        assert found[name] == expected[name]
    assert "test" not in found
    assert without.test_openings == 0
    assert without.facts()["temperature"] == expected["temperature"]


# ---- moved, damaged and incomplete -----------------------------------------------------------------------------------


def of_photos(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe for the images of `photos` in the folder, which becomes the working folder and holds the cache."""
    monkeypatch.setenv("KITAE_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)
    write_folder(folder / "photos", train=20)
    return tiny_of("folder:photos", "data.image_size=32", "train.batch_size=8")


def test_a_run_resumes_after_it_and_its_images_were_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = of_photos(tmp_path, monkeypatch)
    whole = train(recipe, tmp_path / "whole")
    with pytest.raises(DiesHereError):
        train(recipe, tmp_path / "run", watcher=KillAt(6))
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    (tmp_path / "run").rename(tmp_path / "moved")
    saved = Recipe.load(tmp_path / "moved" / "recipe.yaml")
    shutil.copytree(tmp_path / "moved", tmp_path / "copy")
    # The decoded images are still there, and are the same.
    run = train(saved, tmp_path / "copy", resume=True)
    assert run.best.read_bytes() == whole.best.read_bytes()
    assert Run.open(tmp_path / "whole").evaluate("val")["accuracy"] == whole.evaluation()["val"]["accuracy"]
    shutil.rmtree(tmp_path / "cache" / "stores")
    where = r"photos: no such file or folder; if the images were moved, correct data\.source in"
    refused(DataError, where, train, saved, tmp_path / "moved", resume=True)
    other = write_folder(tmp_path / "other", train=20, classes=4)
    now = saved.override(f"data.source=folder:{other}")
    refused(DataError, "has changed since", train, now, tmp_path / "moved", resume=True)
    run = train(saved.override("data.source=folder:elsewhere"), tmp_path / "moved", resume=True)
    assert run.best.read_bytes() == whole.best.read_bytes()
    assert Run.open(run.path).recipe.data.source == "folder:elsewhere"


def test_images_of_a_finished_run_are_found_where_they_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = of_photos(tmp_path, monkeypatch)
    run = train(recipe, tmp_path / "run")
    before = run.evaluation()
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    write_folder(tmp_path / "other", train=20, classes=4)
    for source, message in (("other", "has changed since"), ("nowhere", "nowhere: no such folder")):
        refused(DataError, message, train, run.recipe.override(f"data.source=folder:{source}"), run.path, resume=True)
    assert Run.open(run.path).recipe.data.source == "folder:photos"
    for source in ("elsewhere", "./elsewhere"):
        found = train(run.recipe.override(f"data.source=folder:{source}"), run.path, resume=True)
        assert found.recipe.data.source == f"folder:{source}" == Run.open(run.path).recipe.data.source
        assert found.evaluation() == before
    shutil.rmtree(tmp_path / "cache" / "stores")
    assert Run.open(run.path).evaluate("val")["accuracy"] == before["val"]["accuracy"]


def test_images_left_out_and_classes_without_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITAE_CACHE", str(tmp_path / "cache"))
    root = write_folder(tmp_path / "photos", train=20)
    (root / "class 0" / "0.jpg").write_bytes(b"no image")
    for file in list((root / "class 2").iterdir())[1:]:
        file.unlink()
    fields = ("data.on_corrupt=skip", "data.image_size=32", "train.batch_size=16")
    setup = Setup.without_run(tiny_of(f"folder:{root}", *fields))
    notes = noted(setup)
    assert any(note.startswith("data.on_corrupt: left out class 0/0.jpg (not an image") for note in notes)
    assert "class 2: no test image; accuracy unknown" in notes
    assert "class 2: no validation image" in notes
    (advice,) = [note for note in notes if note.startswith("train.batch_size")]
    assert advice.endswith(f"set it to {len(setup.images) // 20 * 2} or less")


def test_defaults_of_a_notebook_do_not_reach_training(tmp_path: Path) -> None:
    image = np.zeros((28, 28), np.uint8)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode():
            run = train(tiny("train.epochs=1", "model.width=4"), tmp_path / "run", test=False)
            found = run.predict(image)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    weights = load_weights(run.best)[0].values()
    assert {weight.dtype for weight in weights if weight.is_floating_point()} == {torch.float32}
    assert np.array_equal(run.predict(image).probabilities, found.probabilities)


def test_a_run_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    recipe = tiny("train.epochs=1")
    fields = (text for text in (f"train.threads={before + 1}", "model.width=4"))  # readable once
    run = train(recipe, tmp_path / "run", test=False, set=fields)
    assert (run.recipe.train.threads, run.recipe.model.width) == (before + 1, 4)
    assert run.environment()["threads"] == before + 1
    assert torch.get_num_threads() == before
    refused(TrainingError, "without a test", run.predictions)
