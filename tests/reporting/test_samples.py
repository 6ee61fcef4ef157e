"""Pictures in a page are those of the run: what is stored, what the network saw, what it got wrong."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from kitae.data.spec import DataSpec
from kitae.data.store import find_store, open_store
from kitae.pipelines.setup import Setup
from kitae.pipelines.train import train
from kitae.recipe import Recipe
from kitae.reporting.page import render, report
from kitae.reporting.results import RunRecord
from kitae.reporting.run_page import content
from kitae.reporting.samples import Photo, Samples, photo
from kitae.run import Run
from kitae.training.batches import augmented_batches, epoch_shape
from kitae.training.distributed import World
from kitae.training.schedule import progressive_size
from tests.data.shard_files import shards


def decoded(picture: Photo) -> NDArray[np.uint8]:
    content = base64.b64decode(picture.source.split(",", 1)[1])
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


@pytest.fixture(scope="module", params=["plain", "mixed", "blocks", "growing"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = Recipe.load("fashion-mini").override(
        "data.limit=90", "model.name=resnet8", "model.width=4", "train.epochs=2", "train.precision=fp32",
        "train.threads=1", "train.batch_size=40",
        *(["augment.mix={mixup_alpha: 1.0, cutmix_alpha: 1.0, prob: 1.0}"] if request.param != "plain" else []),
        *(["data.order=blocks", "data.shuffle_buffer=16"] if request.param == "blocks" else []),
        *(["train.progressive={start: 0.6, until: 0.9}"] if request.param == "growing" else []),
    )  # fmt: skip
    return train(recipe, tmp_path_factory.mktemp("samples") / "run")


@pytest.fixture
def samples(run: Run) -> Samples:
    found = Samples.find(RunRecord.open(run))
    assert found is not None
    return found


def test_what_the_network_saw_is_what_it_was_fed(run: Run, samples: Samples) -> None:
    """Pixel by pixel, against the batches that the loop makes."""
    setup = Setup.of(run)
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in setup.normalization)
    columns = dict(samples.seen())
    assert list(columns) == ["as stored", "epoch 1", "epoch 2"]
    stopped = Samples.find(samples.record.model_copy(update={"epochs": samples.record.epochs[:1]}))
    assert stopped is not None
    assert list(dict(stopped.seen())) == ["as stored", "epoch 1"]
    shape = epoch_shape(len(setup.images), run.recipe.train)
    channels, height, width = setup.store.images.shape[1:]
    augment = setup.augment(run.recipe.train.seed).prepare(channels, height, width)
    for epoch in (0, 1):
        batches = augmented_batches(
            setup.images, augment, shape, World(0, 1, torch.device("cpu")), seed=run.recipe.train.seed, epoch=epoch,
            first=0,
        )  # fmt: skip
        spec, fed = run.recipe.train, []
        for step, (images, _) in enumerate(batches):
            if spec.progressive is not None:
                done = (epoch * shape.updates + step) / (2 * shape.updates)
                size = progressive_size((height, width), done, spec.progressive)
                images = nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
            pixels = np.clip(np.rint((images.numpy() * std + mean) * 255), 0, 255).astype(np.uint8)[:, 0]
            fed += list(pixels)
        assert len(columns[f"epoch {epoch + 1}"]) == len(columns["as stored"]) > 2
        for picture in columns[f"epoch {epoch + 1}"]:
            assert any(np.array_equal(pixels, decoded(picture)) for pixels in fed)
    if spec.progressive is not None:
        assert decoded(columns["epoch 1"][0]).shape[0] < height


def test_stored_pictures_are_training_images(samples: Samples) -> None:
    totals = {name: sum(parts) for name, parts in samples.counts().items()}
    assert totals == {"train": 90, "validation": len(samples.splits.val), "test": 1000}
    train_images = np.asarray(samples.store.images)[samples.splits.train][:, 0]
    for name, pictures in samples.of_classes():
        labels = np.asarray(samples.store.labels)[samples.splits.train]
        own = train_images[labels == samples.store.classes.index(name)]
        assert pictures
        for picture in pictures:
            assert (own == decoded(picture)).all(axis=(1, 2)).any()


def test_mistakes_are_the_images_that_were_got_wrong(run: Run, samples: Samples) -> None:
    found = samples.record.predicted
    assert found is not None
    pictures = samples.mistakes(5)
    for place, picture in zip(found.mistakes(5), pictures, strict=True):
        row = list(samples.store.names).index(found.names[place])
        np.testing.assert_array_equal(decoded(picture), np.asarray(samples.store.images[row][0]))
        assert samples.record.facts.classes[found.label[place]] in picture.lines[1]
    pair = samples.record.evaluation.measured.confused(1)[0]
    assert len(samples.confused(pair.true, pair.predicted, 3)) == min(3, pair.count)


def test_no_test_picture_where_test_was_not_opened(run: Run) -> None:
    closed = RunRecord.open(run).model_copy(update={"openings": (), "predicted": None})
    found = Samples.find(closed)
    assert found is not None
    assert found.mistakes(5) == []
    assert len(found.test) == 0


def test_a_store_is_found_by_content_or_not_at_all(run: Run, tmp_path: Path) -> None:
    store = run.open_store()
    found = find_store(store.fingerprint, run.recipe.data)
    assert found is not None
    assert found.fingerprint == store.fingerprint
    np.testing.assert_array_equal(found.images[:5], store.images[:5])
    assert find_store("0" * 32, run.recipe.data) is None
    assert find_store(store.fingerprint, DataSpec(cache=str(tmp_path))) is None


def test_a_page_is_written_where_there_is_no_place_for_a_cache(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError

    for name in ("KITAE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert "no longer in the cache" in report(make_run()).read_text(encoding="utf-8")


def test_a_run_on_shards_that_were_moved_has_a_page_without_pictures(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    source = shards(tmp_path / "shards", 2, 20)
    run = make_run(classes=("0", "1"))
    run.recipe = run.recipe.override(f"data.source={source}", f"data.cache={tmp_path / 'cache'}", "data.image_size=8")
    run.recipe.save(run.recipe_file)
    store = open_store(run.recipe.data)
    run.write_environment({"store": store.fingerprint, "processes": "one"})  # edited by hand
    run.write_facts({**run.facts(), "mean": [0.5] * 3, "std": [0.25] * 3})
    run.splits(store)
    text = report(run).read_text(encoding="utf-8")
    assert "<h2>What the network really saw</h2>" in text
    assert "Training images of each class" in text
    assert "Pictures are left out" not in text
    shutil.rmtree(tmp_path / "shards")
    text = report(run).read_text(encoding="utf-8")
    assert "<img" not in text
    assert "Pictures are left out: " in text
    assert "was it moved?" in text
    for absent in ("What the network really saw", "Training images of each class"):
        assert absent not in text
    assert "<h2>The data</h2>" in text
    assert "images have the same pixels." in text


def test_duplicates_and_conflicts_are_counted(samples: Samples) -> None:
    assert samples.quality().groups == 0
    hashes = np.array(samples.store.hashes)
    a, b = samples.splits.train[:2]
    c = samples.splits.val[0]
    hashes[b] = hashes[c] = hashes[a]
    labels = np.array(samples.store.labels)
    labels[b] = labels[a]
    labels[c] = (labels[a] + 1) % 10
    store = replace(samples.store, hashes=hashes, labels=labels)
    found = Samples(samples.record, store, samples.splits).quality()
    assert (found.groups, found.images, found.across, found.conflicts) == (1, 3, 1, 1)
    assert len(found.examples[0]) == 3


def test_a_page_without_the_test_images_says_nothing_of_their_copies(run: Run, samples: Samples) -> None:
    """Copies in test were told before their predictions were deleted, so that there are none must not be told after."""
    assert samples.quality().compared == "image"
    deleted = samples.record.model_copy(update={"predicted": None})
    hashes = np.array(samples.store.hashes)
    hashes[samples.test[0]] = hashes[samples.splits.train[0]]
    copied = replace(samples.store, hashes=hashes)
    assert Samples(samples.record, copied, samples.splits).quality().groups == 1
    rest = Samples(deleted, copied, samples.splits)
    assert (rest.quality().groups, rest.quality().compared) == (0, "training or validation image")
    words = render("run.html", {**content(deleted), "samples": rest})
    assert "No two training or validation images have the same pixels." in words
    assert "No identical training or validation images have different labels." in words


@pytest.mark.parametrize(("size", "kind"), [((1, 28, 28), "png"), ((3, 300, 200), "jpeg")])
def test_pictures_are_small(size: tuple[int, int, int], kind: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    picture = photo(image, 'a "quoted" <alt>')
    assert picture.source.startswith(f"data:image/{kind};base64,")
    assert max(picture.width, picture.height) == 112
    assert picture.sharp == (kind == "png")
    assert len(picture.source) < 30_000
