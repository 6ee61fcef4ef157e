"""Image sets: keyed order, balance, gathering, weights and statistics."""

from __future__ import annotations

import numpy as np
import pytest

from kitae.data.loader import ImageSet
from kitae.data.pictures import Prepared
from kitae.data.spec import DataSpec
from kitae.data.splits import make_splits
from kitae.data.store import open_store
from kitae.preprocess import PreprocessRules

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (1000, 3, 8, 8), np.uint8)
LABELS = np.repeat([0, 1, 2, 3], [700, 200, 90, 10])
CLASSES = ("a", "b", "c", "d")


def image_set(rows: np.ndarray | None = None, balance: str = "none", labels: np.ndarray = LABELS) -> ImageSet:
    return ImageSet(IMAGES, np.arange(1000) if rows is None else rows, labels, CLASSES, balance)  # type: ignore[arg-type]


def test_order_is_a_permutation_of_the_rows() -> None:
    rows = np.arange(0, 1000, 3)
    data = image_set(rows)
    order = data.order(0, 0)
    assert len(data) == len(rows)
    assert order.dtype == np.int64
    assert sorted(order) == rows.tolist()
    assert order.tolist() != rows.tolist()
    assert (image_set(balance="loss").order(1, 2) == image_set().order(1, 2)).all()


@pytest.mark.parametrize("balance", ["none", "sampler"])
def test_order_is_a_pure_function_of_seed_and_epoch(balance: str) -> None:
    data, again = image_set(balance=balance), image_set(balance=balance)
    assert (data.order(3, 5) == again.order(3, 5)).all()
    assert (data.order(3, 5) != data.order(3, 6)).any()
    assert (data.order(3, 5) != data.order(4, 5)).any()


def test_an_image_left_out_does_not_reorder_the_others() -> None:
    whole = image_set().order(0, 0)
    part = image_set(np.delete(np.arange(1000), 77)).order(0, 0)
    assert (part == whole[whole != 77]).all()


# The balancing sampler


def test_sampler_draws_every_class_equally_often() -> None:
    """A small class is repeated evenly, a large one not at all, but covered over the epochs."""
    data = image_set(balance="sampler")
    order = data.order(0, 0)
    rows, repeats = order & 0xFFFFFFFF, order >> 32
    assert len(order) == len(data) == 1000
    assert np.bincount(LABELS[rows]).tolist() == [250, 250, 250, 250]
    assert len(set(order.tolist())) == 1000  # each repeat has an index, and so an augmentation, of its own
    assert set(np.bincount(rows, minlength=1000)[LABELS == 3]) == {25}
    assert set(np.bincount(rows, minlength=1000)[LABELS == 2]) == {2, 3}
    assert np.bincount(rows, minlength=1000)[LABELS == 0].max() == 1
    for row in np.flatnonzero(LABELS == 3):
        assert sorted(repeats[rows == row]) == list(range(25))
    assert repeats[LABELS[rows] == 0].max() == 0
    seen = np.unique(np.concatenate([data.order(0, epoch) & 0xFFFFFFFF for epoch in range(20)]))
    assert len(seen) == 1000
    without = image_set(np.arange(900), balance="sampler").order(0, 0)  # a class without images is passed over
    assert np.bincount(LABELS[without & 0xFFFFFFFF], minlength=4).tolist() == [450, 450, 0, 0]
    even = image_set(balance="sampler", labels=np.tile([0, 1, 2, 3], 250)).order(0, 0)
    assert sorted(even) == list(range(1000))


def test_sampler_gives_places_left_over_to_each_class_in_turn() -> None:
    data = image_set(np.arange(997), balance="sampler")
    totals = np.zeros(4, int)
    for epoch in range(4):
        counts = np.bincount(LABELS[data.order(0, epoch) & 0xFFFFFFFF], minlength=4)
        assert counts.sum() == 997
        assert counts.max() - counts.min() == 1
        totals += counts
    assert totals.tolist() == [997] * 4


# Gathering


def test_gather_gives_images_and_labels_in_order() -> None:
    data = image_set(balance="sampler")
    index = data.order(0, 0)[:100]
    pixels, labels = data.gather(index)
    rows = index & 0xFFFFFFFF
    assert (pixels == IMAGES[rows]).all()
    assert (labels == LABELS[rows]).all()
    assert (pixels.dtype, labels.dtype) == (np.uint8, np.int64)
    assert pixels.flags.c_contiguous
    assert type(pixels) is type(labels) is np.ndarray
    pixels, labels = data.gather(np.zeros(0, np.int64))
    assert (pixels.shape, labels.shape) == ((0, 3, 8, 8), (0,))
    with pytest.raises(IndexError):
        data.gather(np.array([1000]))


def test_gather_gives_a_copy_of_the_store() -> None:
    store = open_store(DataSpec())
    data = ImageSet(store.images, np.arange(100), store.labels, store.classes)
    pixels, labels = data.gather(np.arange(10))
    assert type(pixels) is np.ndarray
    assert type(labels) is np.ndarray
    before = store.images[0].copy()
    pixels[:] = 7
    labels[:] = 7
    assert (store.images[0] == before).all()
    assert pixels.flags.owndata


class Many(Prepared):
    """More images than memory could number."""

    def __len__(self) -> int:
        return 10**15

    def prepared(self, row: int) -> np.ndarray:
        return np.full(self.rules.shape, row % 256, np.uint8)


def test_reading_a_few_images_takes_nothing_for_the_others() -> None:
    images = Many(PreprocessRules(8, 1))
    assert images[np.array([10**15 - 1, 7, -2])][:, 0, 0, 0].tolist() == [255, 7, 254]
    assert images[5:8][:, 0, 0, 0].tolist() == [5, 6, 7]
    assert images[9].tolist() == np.full((1, 8, 8), 9).tolist()
    for beyond in (10**15, np.array([0, 10**15]), -(10**15) - 1):
        with pytest.raises(IndexError):
            images[beyond]


# Weights and statistics


def test_class_weights_are_inverse_to_frequency_with_mean_one() -> None:
    weights = image_set(balance="loss").class_weights()
    assert weights.dtype == np.float32
    assert np.allclose(weights * np.bincount(LABELS), 250)
    assert np.isclose(weights[LABELS].mean(), 1)
    assert np.allclose(image_set(labels=np.tile([0, 1, 2, 3], 250)).class_weights(), 1)
    data = image_set(np.arange(900))
    weights = data.class_weights()
    assert weights[2:].tolist() == [0, 0]
    assert np.isclose(weights[LABELS[:900]].mean(), 1)
    assert data.counts().tolist() == [700, 200, 0, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_the_rows(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = IMAGES[:, :channels]
    rows = np.arange(0, 1000, 7)
    mean, std = ImageSet(images, rows, LABELS, CLASSES).statistics()
    scaled = images[rows].astype(np.float64) / 255
    assert np.allclose(mean, scaled.mean(axis=(0, 2, 3)), rtol=0, atol=1e-12)
    assert np.allclose(std, scaled.std(axis=(0, 2, 3)), rtol=0, atol=1e-12)
    monkeypatch.setattr("kitae.data.loader._CHUNK_BYTES", 500)
    assert ImageSet(images, RNG.permutation(rows), LABELS, CLASSES).statistics() == (mean, std)  # the very same bits


def test_statistics_of_the_embedded_training_images_and_of_a_constant_channel() -> None:
    store = open_store(DataSpec())
    splits = make_splits(store, DataSpec())
    mean, std = ImageSet(store.images, splits.train, store.labels, store.classes).statistics()
    assert 0.27 < mean[0] < 0.30  # the whole Fashion-MNIST has 0.2860 and 0.3530
    assert 0.34 < std[0] < 0.37
    flat = np.full((4, 1, 8, 8), 255, np.uint8)
    assert ImageSet(flat, np.arange(4), LABELS, CLASSES).statistics() == ((1.0,), (1.0,)), "it can be divided by"
