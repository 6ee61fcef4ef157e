"""MixUp and CutMix: shares add up, lambda is what the pixels show, draws have their distributions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kitae.augment.engine import Augment
from kitae.augment.spec import MixSpec

from .test_engine_executors import pictures


def test_one_kind_alone_and_none() -> None:
    for off, kind in (("cutmix_alpha", 1), ("mixup_alpha", 2)):
        program = Augment([], mix={"per": "sample", off: 0}).plan(epoch=0, index=np.arange(200), size=(32, 32))
        assert program.mix is not None
        assert set(program.mix[:, 0]) == {kind}
    assert Augment([], mix={"prob": 0}).plan(epoch=0, index=[0], size=(8, 8)).mix is None
    assert not MixSpec(mixup_alpha=0, cutmix_alpha=0).active


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 9),
    alpha=st.sampled_from([0.0, 0.3, 1.0]),
    prob=st.floats(0, 1),
    executor=st.sampled_from(["cpu", "torch"]),
    per=st.sampled_from(["batch", "sample"]),
)
def test_labels_sum_to_one_and_say_what_the_pixels_show(
    count: int, alpha: float, prob: float, executor: str, per: str
) -> None:
    """Images of one level each: what a result holds of its partner can be counted."""
    levels = np.arange(count) * 20 + 10
    x = np.broadcast_to(levels[:, None, None, None], (count, 3, 20, 24)).astype(np.uint8)
    mix = {"per": per, "mixup_alpha": alpha, "cutmix_alpha": 1.0, "prob": prob}
    aug = Augment([], seed=count, mix=mix, num_classes=count, mean=0.0, std=1.0, executor=executor)
    images, targets = aug(x, np.arange(count), epoch=0, index=np.arange(count))
    np.testing.assert_allclose(targets.sum(1), 1.0, atol=1e-6)
    shown = images.mean((1, 2, 3)) * 255
    np.testing.assert_allclose(shown, targets @ levels, rtol=1e-4)
    if count % 2:  # the odd last sample stays
        assert targets[-1, -1] == 1.0
        np.testing.assert_allclose(images[-1] * 255, levels[-1], rtol=1e-5)


def test_soft_targets_mix_as_hard_ones() -> None:
    x = pictures(7, 3, 16, 16)
    labels = np.array([0, 1, 2, 2, 1, 0, 2])
    aug = Augment([], mix={}, num_classes=3)
    hard = aug(x, labels, epoch=0, index=np.arange(7))
    soft = aug(x, np.eye(3, dtype=np.float32)[labels], epoch=0, index=np.arange(7))
    np.testing.assert_array_equal(hard[0], soft[0])
    np.testing.assert_allclose(hard[1], soft[1], atol=1e-7)


def test_partner_is_augmented_by_its_own_key() -> None:
    x = pictures(2, 3, 16, 16)
    plain = Augment(["horizontal_flip", {"rotate": {"degrees": 40}}], mean=0.0, std=1.0)
    mixed = Augment(plain.ops, mean=0.0, std=1.0, mix={"cutmix_alpha": 0.0}, num_classes=2)
    for epoch in range(5):
        a, b = plain(x, epoch=epoch, index=np.array([10, 11]))
        images, targets = mixed(x, np.array([0, 1]), epoch=epoch, index=np.array([10, 11]))
        np.testing.assert_allclose(images[0], targets[0, 0] * a + targets[0, 1] * b, atol=1e-6)
        np.testing.assert_allclose(images[1], targets[1, 1] * b + targets[1, 0] * a, atol=1e-6)


def batches(steps: int, epoch: int = 0, **spec: float) -> np.ndarray:
    """The mixing of so many batches of 4: one row a batch, once it is certain that its samples share it."""
    aug, rows = Augment([], seed=3, mix=spec), []
    for step in range(steps):
        mix = aug.plan(epoch=epoch, index=np.arange(4) + 4 * step, size=(32, 32), step=step).mix
        assert mix is not None
        assert (mix == mix[0]).all()
        rows.append(mix[0])
    return np.array(rows)


def test_a_batch_draws_one_mixing_keyed_by_epoch_and_step() -> None:
    drawn = batches(1500, mixup_alpha=0.4, prob=0.8, switch_prob=0.25)
    for kind, share in ((0, 0.2), (1, 0.6), (2, 0.2)):
        assert abs((drawn[:, 0] == kind).mean() - share) < 0.05
    assert stats.kstest(drawn[drawn[:, 0] == 1, 1], "beta", (0.4, 0.4)).pvalue > 1e-4
    assert (batches(20) == batches(20)).all()
    assert (batches(20) != batches(20, epoch=1)).any(axis=1).all()
    assert len(np.unique(batches(20, cutmix_alpha=0.0)[:, 1])) == 20


@pytest.mark.parametrize("executor", ["cpu", "torch"])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_batch_s_mixing_does_not_depend_on_who_shares_it(parts: int, executor: str) -> None:
    x, labels, index = pictures(12, 3, 16, 20), np.arange(12) % 5, np.arange(12) * 7
    aug = Augment(["horizontal_flip"], mix={}, num_classes=5, mean=0.5, std=0.2, executor=executor)
    for step in range(4):
        whole = aug(x, labels, epoch=2, index=index, step=step)
        shared = [
            aug(a, b, epoch=2, index=c, step=step)
            for a, b, c in zip(*(np.split(v, parts) for v in (x, labels, index)), strict=True)
        ]
        np.testing.assert_array_equal(whole[0], np.concatenate([part[0] for part in shared]))
        np.testing.assert_array_equal(whole[1], np.concatenate([part[1] for part in shared]))


def test_without_a_step_a_batch_is_keyed_by_its_first_index() -> None:
    x, labels, index = pictures(6, 3, 8, 8), np.arange(6) % 3, np.arange(6) + 40
    aug = Augment([], mix={}, num_classes=3)
    alone, named = (aug(x, labels, epoch=0, index=index, step=step)[0] for step in (None, 40))
    np.testing.assert_array_equal(alone, named)
    assert aug.explain(epoch=0, index=40, step=7) != aug.explain(epoch=0, index=40, step=8)
