"""Temperature and calibration error, against torchmetrics and against models whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchmetrics.functional.classification import multiclass_calibration_error

from kitae.errors import TrainingError
from kitae.evaluation.calibration import (
    calibration_error,
    fit_temperature,
    log_probabilities,
    probabilities,
)
from tests.refusals import refused


def simulate(
    count: int, K: int = 5, sharpness: float = 1.0, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]:
    """Logits `sharpness` times too large for how the labels were drawn, the labels, and the true probabilities."""
    generator = np.random.default_rng(seed)
    honest = generator.normal(size=(count, K)) * 1.5
    chances = probabilities(honest)
    labels = (chances.cumsum(axis=1) > generator.random((count, 1))).argmax(axis=1)
    return (sharpness * honest).astype(np.float32), labels, chances


def error_of(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float = 1.0) -> float:
    """The calibration error alone, without the interval's resampling."""
    predicted = logits.argmax(axis=1)
    confidence = probabilities(logits, temperature)[np.arange(len(labels)), predicted]
    return calibration_error(confidence, predicted == labels, replicates=1)[0]


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_known_sharpness(sharpness: float) -> None:
    logits, labels, _ = simulate(20_000, sharpness=sharpness)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(sharpness, rel=0.05)
    if sharpness != 1:
        after = error_of(logits, labels, temperature)
        assert after < 0.02 < error_of(logits, labels)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 40), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_the_temperature_is_a_minimum_and_never_changes_a_prediction(seed: int, count: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    logits = (generator.normal(size=(count, 4)) * scale).astype(np.float32)
    labels = generator.integers(0, 4, count)

    def loss(temperature: float) -> float:
        return float(-log_probabilities(logits, temperature)[np.arange(count), labels].mean())

    temperature = fit_temperature(logits, labels)
    if (logits.argmax(axis=1) == labels).all():  # there is no minimum: see below
        assert temperature == 1
        return
    assert 0.05 <= temperature <= 20.0001
    best = loss(temperature)
    for other in (0.05, 0.5, 1.0, 2.0, 20.0, temperature * 0.99, temperature * 1.01):
        if 0.05 <= other <= 20:
            assert best <= loss(other) + 1e-9
    scaled = logits.astype(np.float64) / temperature
    assert (scaled.argmax(axis=1) == logits.argmax(axis=1)).all()


def test_without_a_mistake_nothing_is_learnt_of_confidence_and_without_a_hit_all_is_equal() -> None:
    perfect = np.eye(3, dtype=np.float32)
    assert fit_temperature(perfect, np.arange(3)) == 1.0
    assert fit_temperature(perfect, (np.arange(3) + 1) % 3) == pytest.approx(20)


def test_probabilities_are_stable() -> None:
    rows = probabilities(np.array([[1000.0, 0.0, -1000.0], [-1e30, 0.0, 0.0]]))
    assert np.isfinite(rows).all()
    assert rows.sum(axis=1) == pytest.approx(1)
    assert rows[1] == pytest.approx([0, 0.5, 0.5])


def test_calibration_error_by_hand() -> None:
    # Confidences 0.9 (right), 0.9 (wrong), 0.6 (right): bins 14 and 9 of 15. (2 |0.5 - 0.9| + 1 |1 - 0.6|) / 3
    chances = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    assert error_of(np.log(chances), np.array([0, 1, 1])) == pytest.approx(0.4)


@pytest.mark.parametrize("sharpness", [1.0, 2.0])
@pytest.mark.parametrize("K", [2, 10])
def test_calibration_error_is_that_of_torchmetrics(K: int, sharpness: float) -> None:
    logits, labels, _ = simulate(3000, K, sharpness)
    chances = torch.from_numpy(probabilities(logits))
    expected = multiclass_calibration_error(chances, torch.from_numpy(labels), K, n_bins=15, norm="l1")
    assert error_of(logits, labels) == pytest.approx(float(expected), abs=1e-6)


def trial(sharpness: float, count: int, seed: int, replicates: int) -> tuple[float, tuple[float, float]]:
    logits, labels, _ = simulate(count, sharpness=sharpness, seed=seed)
    predicted = logits.argmax(axis=1)
    confidence = probabilities(logits)[np.arange(count), predicted]
    estimate, interval = calibration_error(confidence, predicted == labels, seed=seed, replicates=replicates)
    assert interval is not None
    return estimate, interval


def true_error(sharpness: float) -> float:
    logits, _, chances = simulate(300_000, sharpness=sharpness, seed=99)
    rows, predicted = np.arange(len(logits)), logits.argmax(axis=1)
    confidence = probabilities(logits)[rows, predicted]
    index = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    return float(np.abs(np.bincount(index, confidence - chances[rows, predicted], 15)).sum() / len(logits))


def test_the_interval_of_an_honest_model_begins_at_0() -> None:
    below = [trial(1.0, 400, seed, 200)[1][0] for seed in range(40)]
    assert sum(low == 0 for low in below) >= 35


def test_the_interval_of_a_bad_model_does_not() -> None:
    estimate, (low, high) = trial(3.0, 1000, 0, 500)
    assert 0.1 < low < estimate < high < 0.5


def low_end_of_groups(seed: int, least: float, said: float | None = None) -> float:
    """The low end for 25 groups of 20 images that are right with a chance of `least` or a little more, all or none.

    Args:
        said: the confidence; None is the chance itself.
    """
    generator, groups = np.random.default_rng(seed), np.repeat(np.arange(25), 20)
    chance = generator.uniform(least, least + 0.4, 25)
    correct, confidence = generator.random(25) < chance, chance if said is None else np.full(25, said)
    _, interval = calibration_error(confidence[groups], correct[groups], groups=groups, seed=seed, replicates=200)
    assert interval is not None
    return interval[0]


def test_the_interval_of_groups_begins_at_0_unless_the_model_is_bad() -> None:
    """What the images of a group have in common is noise too: these say no more than 25 images."""
    assert sum(low_end_of_groups(seed, 0.6) == 0 for seed in range(40)) >= 35
    assert sum(low_end_of_groups(seed, 0.2, said=0.95) > 0.1 for seed in range(40)) >= 35


@pytest.mark.slow
@pytest.mark.parametrize(("sharpness", "count"), [(1.0, 300), (1.1, 1000), (1.3, 1000), (2.0, 1000), (3.0, 5000)])
def test_the_interval_covers_the_truth(sharpness: float, count: int) -> None:
    truth = true_error(sharpness)
    hits = 0
    for seed in range(200):
        _, (low, high) = trial(sharpness, count, seed, 300)
        hits += low - 1e-3 <= truth <= high
    assert hits / 200 >= 0.86


def test_one_image_has_no_interval() -> None:
    assert calibration_error(np.array([0.7]), np.array([True])) == (pytest.approx(0.3), None)


def test_outputs_that_are_not_finite_have_no_temperature() -> None:
    for bad in (np.nan, np.inf):
        logits = np.array([[0, 0, 0], [0, bad, 0]], dtype=np.float32)
        refused(TrainingError, r"not finite for 1 of 2 images \(first: position 1\)", fit_temperature, logits, [0, 1])
