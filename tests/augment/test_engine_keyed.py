"""Sample i is a function of (seed, epoch, index): not of batch, place, threads, executor, workers, or what ran
before."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kitae.augment.engine import Augment
from kitae.augment.spec import OPS
from kitae.errors import AugmentError

from .test_engine_executors import pictures
from .test_engine_plan import BUSY

EVERYTHING = [
    {name: {**BUSY.get(name, {}), **({"size": 28} if name in ("random_crop", "random_resized_crop") else {})}}
    for name in OPS
]
STANDARD = [
    {"random_crop": {"padding": 4}}, "horizontal_flip",
    {"color_jitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}}, "random_erasing",
]  # fmt: skip
COUNT = 40
IMAGES = pictures(COUNT, 3, 32, 32, seed=1)
INDEX = np.arange(COUNT) * 1_000_003 + (np.arange(COUNT) % 3 << 32)
NORMAL = {"mean": (0.49, 0.48, 0.45), "std": (0.25, 0.24, 0.26)}


@pytest.fixture(scope="module")
def whole() -> dict[str, np.ndarray]:
    return {
        name: Augment(ops, seed=9, threads=1, **NORMAL)(IMAGES, epoch=4, index=INDEX)
        for name, ops in (("everything", EVERYTHING), ("standard", STANDARD))
    }


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["everything", "standard"]),
    rows=st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=COUNT),
    threads=st.integers(1, 4),
)
def test_any_batch_any_order_any_threads(
    whole: dict[str, np.ndarray], name: str, rows: list[int], threads: int
) -> None:
    aug = Augment(EVERYTHING if name == "everything" else STANDARD, seed=9, threads=threads, **NORMAL)
    for _ in range(2):  # by one thread at first, then shared
        out = aug(IMAGES[rows], epoch=4, index=INDEX[rows])
        np.testing.assert_array_equal(out, whole[name][rows])


def test_epochs_per_sample(whole: dict[str, np.ndarray]) -> None:
    aug = Augment(STANDARD, seed=9, **NORMAL)
    epochs = np.arange(COUNT) % 3 + 3
    out = aug(IMAGES, epoch=epochs, index=INDEX)
    np.testing.assert_array_equal(out[epochs == 4], whole["standard"][epochs == 4])
    assert (out[epochs != 4] != whole["standard"][epochs != 4]).any(axis=(1, 2, 3)).all()


def test_seed_epoch_and_index_all_matter(whole: dict[str, np.ndarray]) -> None:
    high = 1 << 32
    for seed, epoch, index in (
        (8, 4, INDEX),
        (9, 5, INDEX),
        (9, 4, INDEX + 1),
        (9, 4, INDEX + high),
        (9 + high, 4, INDEX),
    ):
        out = Augment(STANDARD, seed=seed, **NORMAL)(IMAGES, epoch=epoch, index=index)
        assert (out != whole["standard"]).any(axis=(1, 2, 3)).mean() > 0.95


def test_mixing_does_not_depend_on_batch_size() -> None:
    targets = np.arange(COUNT) % 10
    aug = Augment(STANDARD, seed=9, mix={"per": "sample", "mixup_alpha": 0.4, "prob": 0.9}, num_classes=10, **NORMAL)
    images, mixed = aug(IMAGES, targets, epoch=4, index=INDEX)
    for size in (2, 6, 14):
        for start in range(0, COUNT - size, size):
            part = slice(start, start + size)
            a, b = aug(IMAGES[part], targets[part], epoch=4, index=INDEX[part])
            np.testing.assert_array_equal(a, images[part])
            np.testing.assert_array_equal(b, mixed[part])


@pytest.mark.parametrize("executor", ["cpu", "torch"])
def test_replay(executor: str) -> None:
    targets = np.arange(COUNT) % 10
    aug = Augment(STANDARD, seed=9, mix={"per": "sample"}, num_classes=10, executor=executor, **NORMAL)
    images, mixed = aug(IMAGES, targets, epoch=4, index=INDEX)
    program = aug.plan(epoch=4, index=INDEX, size=(32, 32))
    again, again_mixed = aug.replay(IMAGES, program, targets)
    np.testing.assert_array_equal(again, images)
    np.testing.assert_array_equal(again_mixed, mixed)


def test_global_generators_are_untouched() -> None:
    ops = [
        *STANDARD,
        lambda image: image[:, torch.randperm(32)],
        lambda image: image + np.random.randint(3) + random.randrange(3),
    ]
    x = torch.from_numpy(IMAGES)
    aug = Augment(ops, mix={"per": "sample"}, num_classes=10, **NORMAL)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = aug(x, torch.zeros(COUNT, dtype=torch.int64), epoch=0, index=INDEX)[0]
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    np.testing.assert_array_equal(before[2], np.random.get_state()[1])
    torch.manual_seed(77)
    random.seed(77)
    np.random.seed(77)
    assert torch.equal(first, aug(x, torch.zeros(COUNT, dtype=torch.int64), epoch=0, index=INDEX)[0])


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int, int]:
        return torch.from_numpy(IMAGES[i]), i % 10, int(INDEX[i])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_data_loader_workers_give_the_same_samples(workers: int) -> None:
    aug = Augment(STANDARD, seed=9, mix={"per": "sample"}, num_classes=10, **NORMAL)
    collate = aug.collate()
    loader = torch.utils.data.DataLoader(
        Rows(), batch_size=8, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate
    )
    for epoch in (4, 5):
        collate.epoch = epoch
        for start, (images, targets) in zip(range(0, COUNT, 8), loader, strict=True):
            part = slice(start, start + 8)
            a, b = aug(
                torch.from_numpy(IMAGES[part]), torch.arange(start, start + 8) % 10, epoch=epoch, index=INDEX[part]
            )
            assert torch.equal(images, a)
            assert torch.equal(targets, b)


def test_threads_of_the_caller_may_share_one_pipeline(whole: dict[str, np.ndarray]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    aug = Augment(STANDARD, seed=9, threads=2, **NORMAL)
    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(lambda _: aug(IMAGES, epoch=4, index=INDEX), range(24)):
            np.testing.assert_array_equal(out, whole["standard"])


@pytest.mark.parametrize("executor", ["cpu", "torch"])
def test_alternating_flips_show_both_views_in_any_two_epochs(executor: str) -> None:
    augment = Augment([{"horizontal_flip": {"alternate": True}}], seed=5, executor=executor)
    count = 400
    images = np.repeat(IMAGES[:1], count, axis=0)
    epochs = [augment(images, epoch=epoch, index=np.arange(count)) for epoch in range(3)]
    flipped = [(out != images).any((1, 2, 3)) for out in epochs]
    assert 150 < flipped[0].sum() < 250
    assert (flipped[0] ^ flipped[1]).all()
    assert (flipped[0] == flipped[2]).all()
    assert np.array_equal(epochs[1][flipped[1]][0], images[0, :, :, ::-1])
    with pytest.raises(AugmentError, match=r"p must be 0\.5"):
        Augment([{"horizontal_flip": {"alternate": True, "p": 0.3}}])
