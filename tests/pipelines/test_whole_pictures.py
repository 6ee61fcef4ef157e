"""Photographs from file to exported model: whole in the store, cropped in training, seen alike everywhere else."""

from __future__ import annotations

import base64
import io
import json
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from kitae.augment.ops.geometry import RandomResizedCrop
from kitae.augment.plan import sample_key
from kitae.crops import SLOT, PictureCrop
from kitae.data.pictures import Pictures
from kitae.data.sources import open_source
from kitae.data.spec import DataSpec
from kitae.data.store import open_store
from kitae.errors import TrainingInterruptedError
from kitae.pipelines.bench import bench, estimate
from kitae.pipelines.setup import Setup
from kitae.pipelines.train import train
from kitae.recipe import Recipe
from kitae.reporting.results import RunRecord
from kitae.reporting.samples import Samples
from kitae.run import Run
from tests.refusals import refused
from tests.test_resume import assert_same, go, outcome
from tests.watchers import Signal

pytestmark = pytest.mark.usefixtures("own_cache")

FIELDS = (
    "data.source=photos-mini", "data.image_size=[24, 32]", "data.limit=120", "model.name=resnet8", "model.width=8",
    "train.epochs=2", "train.batch_size=32", "train.precision=fp32", "train.threads=1",
    "augment.train=[{random_resized_crop: {scale: [0.3, 1]}}, {horizontal_flip: {}}]",
)  # fmt: skip


def recipe(*fields: str) -> Recipe:
    return Recipe.load("fashion-mini").override(*FIELDS, *fields)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(recipe(), tmp_path_factory.mktemp("runs") / "run")


def test_training_sees_crops_of_whole_pictures_and_evaluation_the_centre(tmp_path: Path) -> None:
    setup = Setup.of(Run.create(tmp_path / "run", recipe()))
    assert isinstance(setup.store.images, Pictures)
    assert setup.store.images.shape == (600, 3, 24, 32)
    assert setup.drawn == (3, 24, 32)
    assert [op.name for op in setup.augment(0).ops] == ["horizontal_flip"]
    rows = setup.splits.train[:20]
    seen, labels = setup.images.gather(rows, seed=1, epoch=2)
    assert (labels == setup.store.labels[rows]).all()
    assert (seen == setup.images.gather(rows, seed=1, epoch=2)[0]).all()
    for other in ({"seed": 1, "epoch": 3}, {"seed": 2, "epoch": 2}, {}):
        assert (seen != setup.images.gather(rows, **other)[0]).any(axis=(1, 2, 3)).all()
    assert (setup.images.gather(rows)[0] == setup.store.images[rows]).all()
    assert (setup.image_set(rows).gather(rows, seed=1, epoch=2)[0] == setup.store.images[rows]).all()


def test_a_crop_that_is_not_first_or_has_a_size_of_its_own(tmp_path: Path) -> None:
    later = recipe("augment.train=[{horizontal_flip: {}}, {random_resized_crop: {size: 20}}]", "data.image_size=24")
    setup = Setup.of(Run.create(tmp_path / "later", later))
    assert (setup.crop, setup.drawn) == (None, (3, 24, 24))
    assert len(setup.augment(0).ops) == 2
    own = recipe("augment.train=[{random_resized_crop: {size: 20}}]", "data.image_size=24")
    setup = Setup.of(Run.create(tmp_path / "own", own))
    assert setup.drawn == (3, 20, 20)
    assert setup.images.gather(setup.splits.train[:3], seed=0, epoch=0)[0].shape == (3, 3, 20, 20)


def energy(pixels: NDArray[np.uint8]) -> float:
    """Mean square of the Laplacian of the luma of [3, H, W]."""
    p = np.tensordot([0.299, 0.587, 0.114], pixels.astype(np.float64), 1)
    edges = 4 * p[1:-1, 1:-1] - p[:-2, 1:-1] - p[2:, 1:-1] - p[1:-1, :-2] - p[1:-1, 2:]
    return float(np.square(edges).mean())


def test_what_is_seen_is_as_sharp_as_torchvision_s_from_the_files(tmp_path: Path) -> None:
    """Photographs of 640 pixels and more, so that they are read at reduced scale and reduced for the store."""
    side = 96
    for number, encoded in enumerate(open_source(DataSpec(source="photos-mini")).some(10)):
        assert isinstance(encoded, bytes)
        file = tmp_path / "photos" / f"class {number % 2}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(io.BytesIO(encoded)) as small:
            large = small.convert("RGB").resize((4 * small.width, 4 * small.height), Image.Resampling.LANCZOS)
        large.save(file, quality=90)
    store = open_store(DataSpec(source=f"folder:{tmp_path / 'photos'}", image_size=side))
    pictures, crop = store.images, RandomResizedCrop()
    assert isinstance(pictures, Pictures)
    reader, numbers = PictureCrop(crop, pictures, 1), np.array([side, side, *crop.scale, *crop.ratio])
    evaluated, cropped = np.zeros(2), np.zeros(2)
    for row, name in enumerate(store.names):
        with Image.open(tmp_path / "photos" / name) as image:
            tensor = torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())
        centre = tv.center_crop(tv.resize(tensor, [side], antialias=True), [side, side])
        evaluated += energy(pictures[row]), energy(centre.numpy())
        height, width = int(pictures.heights[row]), int(pictures.widths[row])
        assert height < tensor.shape[1] / 2
        for epoch in range(6):
            seen = reader(np.array([row]), np.array([row]), 0, epoch)[0]
            codes, args = np.zeros(1, np.int64), np.zeros(12)
            crop.plan(sample_key(0, epoch, row, SLOT), numbers, codes, args, height, width)
            window = args[:4] * np.tile([tensor.shape[1] / height, tensor.shape[2] / width], 2)
            theirs = tv.resized_crop(tensor, *map(round, window.tolist()), [side, side], antialias=True)
            cropped += energy(seen), energy(theirs.numpy())
    assert evaluated[0] / evaluated[1] == pytest.approx(1, abs=0.1)
    assert cropped[0] / cropped[1] == pytest.approx(1, abs=0.1)


def test_predictions_of_files_are_those_of_the_evaluation(run: Run, tmp_path: Path) -> None:
    rows = run.predictions().to_pylist()[:40]
    source = open_source(run.recipe.data)
    items = dict(zip(source.table.names, source.images(), strict=True))
    encoded = [items[row["name"]] for row in rows]
    expected = np.array([row["probabilities"] for row in rows], np.float32)
    np.testing.assert_allclose(run.predict(encoded).probabilities, expected, atol=1e-6)
    (tmp_path / "one.jpg").write_bytes(encoded[0])  # type: ignore[arg-type]
    np.testing.assert_allclose(run.predict(tmp_path / "one.jpg").probabilities[0], expected[0], atol=1e-6)
    assert 0 <= run.evaluate("val", tta="full")["accuracy"] <= 1, "views of rectangles"


def test_an_exported_file_prepares_pictures_in_the_same_two_steps(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    import kitae as kt
    from kitae.runtime import Model

    kt.export(run, tmp_path / "model.onnx")
    model = Model(tmp_path / "model.onnx")
    assert model.input_shape == (3, 24, 32)
    assert model.rules == run.rules
    assert (model.rules.store_size, model.rules.version) == (54, 2)
    images = pq.read_table(open_source(run.recipe.data).files()[0]).column("image").to_pylist()[:20]
    encoded = [image["bytes"] if isinstance(image, dict) else image for image in images]
    np.testing.assert_allclose(model.predict(encoded).probabilities, run.predict(encoded).probabilities, atol=1e-4)
    ready = np.zeros((2, 3, 24, 32), np.uint8)
    np.testing.assert_allclose(model.predict(ready).probabilities, run.predict(ready).probabilities, atol=1e-4)


def test_a_stopped_training_on_crops_resumes_bit_exactly(run: Run, tmp_path: Path) -> None:
    refused(TrainingInterruptedError, "", train, recipe(), tmp_path / "run", watcher=Signal(2))
    train(recipe(), tmp_path / "run", resume=True)
    assert_same(outcome(tmp_path / "run"), outcome(run.path))


@pytest.mark.slow
def test_a_killed_training_on_crops_resumes_bit_exactly(tmp_path: Path) -> None:
    fields = (*FIELDS, "train.checkpoint_seconds=0.000001")
    assert go(tmp_path / "whole", "never", 1, *fields) == 0
    assert go(tmp_path / "killed", "step", 2, *fields) == -signal.SIGKILL
    assert go(tmp_path / "killed", "step", 2, *fields) == -signal.SIGKILL
    assert go(tmp_path / "killed", "never", 1, *fields) == 0
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))


def test_a_run_keeps_the_rules_it_was_trained_with(run: Run, tmp_path: Path) -> None:
    """As runs of older versions have them, that resized photographs at once."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("recipe.yaml", "model.json"):
        (folder / name).write_bytes((run.path / name).read_bytes())
    facts = json.loads((folder / "model.json").read_text())
    assert Run.open(folder).open_store().rules == run.rules
    facts["preprocess"] = {"image_size": 32, "channels": 3, "resize": "crop", "version": 1}
    (folder / "model.json").write_text(json.dumps(facts))
    store = Run.open(folder).open_store()
    assert store.rules.version == 1
    assert isinstance(store.images, np.ndarray)


def test_a_report_shows_the_crops_that_were_fed(run: Run) -> None:
    samples = Samples.find(RunRecord.open(run))
    assert samples is not None
    setup = Setup.of(run)
    seed = run.recipe.train.seed
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in setup.normalization)
    index = setup.images.order(seed, 0)
    pixels, labels = setup.images.gather(index, seed=seed, epoch=0)
    values, _ = setup.augment(seed)(pixels, labels, epoch=0, index=index)
    fed = np.clip(np.rint((values * std + mean) * 255), 0, 255).astype(np.uint8)
    shown = dict(samples.seen())["epoch 1"]
    assert shown
    for photo in shown:
        content = base64.b64decode(photo.source.split(",", 1)[1])
        pixels = np.asarray(Image.open(io.BytesIO(content))).transpose(2, 0, 1)
        assert (fed == pixels).all(axis=(1, 2, 3)).any()


def test_estimates_and_benchmarks_draw_as_training_does() -> None:
    assert estimate(recipe())["image"] == (3, 24, 32)
    assert bench(recipe(), repeats=6)["batch_size"] == 32


def test_portrait_and_landscape_grey_and_large_in_one_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        (tmp_path / "photos" / label / "notes.pdf").write_bytes(b"%PDF-1.4")
        for number, size in enumerate(((90, 70), (70, 90), (300, 80), (9, 400), (12, 10))):
            pixels = rng.integers(0, 256, (*size, 3), np.uint8)
            image = Image.fromarray(pixels if number % 2 else pixels[..., 0])
            image.save(tmp_path / "photos" / label / f"{number}.png")
    fields = (f"data.source=folder:{tmp_path / 'photos'}", "data.limit=null", "data.image_size=24")
    made = train(recipe(*fields, "train.batch_size=4"), tmp_path / "run")
    assert made.evaluation()["test"]["count"] == 2
