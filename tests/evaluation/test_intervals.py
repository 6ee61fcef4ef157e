"""Intervals against references, and against the truth in simulations."""

from __future__ import annotations

from collections.abc import Callable
from math import comb, inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

from kitae.evaluation import intervals


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_that_of_statsmodels(case: tuple[int, int]) -> None:
    successes, count = case
    low, high = intervals.wilson(successes, count) or (inf, inf)
    assert (low, high) == pytest.approx(proportion_confint(successes, count, method="wilson"), abs=1e-9)
    assert 0 <= low <= successes / count <= high <= 1


def test_wilson_at_its_ends() -> None:
    assert intervals.wilson(0, 0) is None
    assert intervals.wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert (intervals.wilson(10, 10) or (0, 0))[1] == 1.0


def test_normal_mean() -> None:
    low, high = intervals.normal_mean([1.0, 2.0, 3.0, 4.0]) or (0, 0)
    assert (low + high) / 2 == pytest.approx(2.5)
    assert high - low == pytest.approx(2 * 1.959964 * np.std([1, 2, 3, 4], ddof=1) / 2, rel=1e-6)
    assert intervals.normal_mean([1.0]) is None


def of_classes(successes: list[int], counts: list[int]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Images of so many classes, of which so many are right: hits and labels."""
    hits = [np.arange(count) < right for right, count in zip(successes, counts, strict=True)]
    return np.concatenate(hits), np.repeat(np.arange(len(counts)), counts)


def test_balanced_leaves_empty_classes_out() -> None:
    assert intervals.balanced(*of_classes([3, 0, 9], [10, 0, 10])) == intervals.balanced(*of_classes([3, 9], [10, 10]))
    low, high = intervals.balanced(*of_classes([10, 10], [10, 10])) or (1, 1)
    assert low < 0.95, "ten out of ten is not certainty"
    assert high == 1.0


def test_balanced_covers_the_truth() -> None:
    generator = np.random.default_rng(0)
    accuracies, counts = np.array([0.95, 0.7, 0.5, 0.85]), [400, 60, 25, 120]
    hits = 0
    for _ in range(1000):
        low, high = intervals.balanced(*of_classes(generator.binomial(counts, accuracies).tolist(), counts)) or (1, 0)
        hits += low <= accuracies.mean() <= high
    assert 0.93 <= hits / 1000 <= 0.97


# Groups ---------------------------------------------------------------------------------------------------------------


def patients(
    generator: np.random.Generator, count: int, images: int, alike: float = 3.0
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """Images of so many patients: which are right (80 % on average), their classes and their groups.

    Args:
        alike: the sum of the Beta distribution of a patient's own accuracy; the smaller, the more patients differ.
    """
    groups = np.repeat(np.arange(count), images)
    right = generator.random(len(groups)) < generator.beta(0.8 * alike, 0.2 * alike, count)[groups]
    return right, np.repeat(generator.integers(0, 2, count), images), groups


@pytest.mark.parametrize(("count", "images"), [(12, 20), (60, 10)])
def test_intervals_of_groups_cover_the_choice_of_groups(count: int, images: int) -> None:
    generator, trials = np.random.default_rng(5), 400
    covered: dict[str, float] = {}
    for _ in range(trials):
        right, labels, groups = patients(generator, count, images)
        for name, found in {
            "as independent": intervals.proportion(right),
            "share": intervals.proportion(right, groups),
            "mean": intervals.normal_mean(right, groups),
            "classes": intervals.balanced(right, labels, groups),
            "bootstrap": intervals.bootstrap(
                lambda rows, right=right: float(right[rows].mean()), len(right),
                estimate=float(right.mean()), groups=groups, replicates=100,
            ),
        }.items():  # fmt: skip
            low, high = found or (1, 0)
            covered[name] = covered.get(name, 0) + (low <= 0.8 <= high) / trials
    assert covered.pop("as independent") < 0.75
    # Few groups are not normal, and the bootstrap has no correction for their small number.
    assert covered.pop("bootstrap") > (0.75 if count == 12 else 0.85)
    assert all(0.89 < share < 0.99 for share in covered.values()), covered


def test_groups_of_one_image_are_as_independent_images() -> None:
    right, labels, groups = patients(np.random.default_rng(6), 5000, 1)
    assert intervals.effective(right, groups) == pytest.approx(len(right), rel=0.002)
    assert intervals.effective(right, None) == len(right)
    assert intervals.balanced(right, labels, groups) == pytest.approx(intervals.balanced(right, labels), rel=1e-3)


@pytest.mark.parametrize("right", [[1, 1, 0, 1, 0, 1], [1] * 6, [0] * 6, [1, 0], [1]])
def test_a_few_groups_of_one_image_change_no_interval(right: list[int]) -> None:
    hits, labels, alone = np.array(right, bool), np.arange(len(right)) % 2, np.arange(len(right))[::-1]
    assert intervals.effective(hits, alone) == pytest.approx(len(right))
    for of in (intervals.proportion, intervals.normal_mean):
        assert of(hits, alone) == pytest.approx(of(hits))
    assert intervals.balanced(hits, labels, alone) == pytest.approx(intervals.balanced(hits, labels))
    for difference in (intervals.paired_difference, intervals.balanced_difference):
        before, after = np.where(hits, labels, 9), labels
        assert difference(before, after, labels, alone)[1] == pytest.approx(difference(before, after, labels)[1])


def test_equal_images_of_a_group_count_once() -> None:
    groups = np.repeat(np.arange(1000), 7)
    right = np.random.default_rng(7).random(1000) < 0.7
    assert intervals.effective(right[groups], groups) == pytest.approx(1000, rel=0.005)
    every = np.ones(7000, bool)
    assert intervals.effective(every, groups) == pytest.approx(1000, rel=0.005), "nothing is known of the groups"
    assert intervals.effective(every, groups, alike=False) == pytest.approx(7000, rel=0.005)
    assert (intervals.proportion(every, groups) or (0, 0))[1] == 1.0


def test_a_single_group_says_nothing_about_others() -> None:
    one, right, labels = np.zeros(30, np.int64), np.arange(30) < 20, np.arange(30) % 2
    assert intervals.accuracy(right, one) == {"accuracy": 20 / 30, "accuracy_interval": None}
    assert intervals.normal_mean(right, one) is None
    assert intervals.balanced(right, labels, one) is None
    assert intervals.bootstrap(lambda _: 0.0, 30, estimate=0.0, groups=one) is None
    assert intervals.paired_difference(labels, labels, labels, one) == (0, (-1, 1))
    assert intervals.balanced_difference(labels, labels, labels, one) == (0, (-1, 1))


@pytest.mark.parametrize("difference", [intervals.paired_difference, intervals.balanced_difference])
def test_a_difference_of_groups_covers_the_choice_of_groups(
    difference: Callable[..., tuple[float, intervals.Interval]],
) -> None:
    generator, trials, covered = np.random.default_rng(8), 300, {False: 0, True: 0}
    for _ in range(trials):
        labels, groups = np.tile([0, 1], 200), np.repeat(np.arange(40), 10)
        worse = generator.beta(0.2, 1.8, 40)  # of each patient, a tenth on average
        after = np.where(generator.random(400) < worse[groups], 1 - labels, labels)
        for grouped in covered:
            _, (low, high) = difference(labels, after, labels, groups if grouped else None)
            covered[grouped] += low <= -0.1 <= high
    assert covered[False] / trials < 0.8
    assert covered[True] / trials > 0.87


def test_the_bootstrap_of_a_mean_is_about_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    normal = intervals.normal_mean(values) or (0, 0)
    result = intervals.bootstrap(lambda rows: float(values[rows].mean()), 400, estimate=float(values.mean()))
    assert result == pytest.approx(normal, abs=0.03)


def test_the_bootstrap_is_keyed() -> None:
    values = np.arange(50.0) ** 2

    def once(seed: int) -> intervals.Interval | None:
        return intervals.bootstrap(
            lambda rows: float(values[rows].mean()), 50, estimate=float(values.mean()), seed=seed, replicates=200
        )

    np.random.seed(0)
    first = once(1)
    np.random.seed(1)
    assert once(1) == first, "no global generator"
    assert once(2) != first
    assert first == pytest.approx((597.6835, 983.768), rel=1e-12), "the same on every platform"
    assert intervals.bootstrap(lambda rows: 0.0, 1, estimate=0.0) is None


def test_every_position_is_drawn_equally_often() -> None:
    drawn = np.zeros(7, dtype=np.int64)

    def count(rows: np.ndarray) -> float:
        nonlocal drawn
        drawn += np.bincount(rows, minlength=7)
        return 0.0

    intervals.bootstrap(count, 7, estimate=0.0, replicates=2000)
    expected = 2000.0
    assert ((drawn - expected) ** 2 / expected).sum() < 22.5, "chi-square, 6 degrees of freedom, p = 0.001"


@pytest.mark.parametrize("count", [6, 9, 20, 51, 200])
def test_the_interval_of_a_median_has_its_level(count: int) -> None:
    low, high = intervals.median(np.arange(count)) or (0, 0)
    k = int(low) + 1  # the k-th smallest

    def level(k: int) -> float:
        return 1 - 2 * sum(comb(count, i) for i in range(k)) / 2.0**count

    assert low + high == count - 1, "symmetric"
    assert level(k) >= 0.95 > level(k + 1), "at least 95 %, and the narrowest that has it"


def test_a_median_of_few_has_no_interval() -> None:
    assert intervals.median(np.arange(5)) is None
    assert intervals.median([]) is None


# Paired differences


def predictions(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = np.zeros(both + gained + lost + neither, dtype=np.int64)
    before = np.repeat([0, 1, 0, 1], [both, gained, lost, neither])
    after = np.repeat([0, 0, 1, 1], [both, gained, lost, neither])
    return before, after, labels


def test_paired_difference_by_hand() -> None:
    difference, (low, high) = intervals.paired_difference(*predictions(80, 12, 4, 4))
    assert difference == pytest.approx(0.08)
    for end in (low, high):  # Tango 1998, equations 9 and 10, at the interval's own ends
        b, c, n = 12, 4, 100
        linear = -b - c + (2 * n - b + c) * end
        lost = ((linear**2 + 8 * n * c * end * (1 - end)) ** 0.5 - linear) / (4 * n)
        assert abs(b - c - n * end) / (n * (2 * lost + end * (1 - end))) ** 0.5 == pytest.approx(1.959964, abs=1e-5)
    assert low < 0.08 < high


def test_the_same_predictions_differ_by_nothing() -> None:
    before, _, labels = predictions(50, 10, 0, 40)
    difference, (low, high) = intervals.paired_difference(before, before, labels)
    assert difference == 0
    assert low == pytest.approx(-high)
    assert high == pytest.approx(1.96**2 / (100 + 1.96**2), abs=1e-4), (
        "agreement on 100 images is no proof of it on all"
    )


@given(st.lists(st.integers(0, 40), min_size=4, max_size=4).filter(any))
def test_the_paired_interval_holds_its_estimate(cells: list[int]) -> None:
    difference, (low, high) = intervals.paired_difference(*predictions(*cells))
    assert -1 <= low <= difference <= high <= 1
    assert high - low > 0


def test_swapping_the_models_turns_the_sign() -> None:
    before, after, labels = predictions(70, 15, 5, 10)
    difference, interval = intervals.paired_difference(before, after, labels)
    back, (low, high) = intervals.paired_difference(after, before, labels)
    assert difference == -back
    assert interval == pytest.approx((-high, -low))


def test_paired_difference_covers_the_truth() -> None:
    generator = np.random.default_rng(1)
    for cells in ([0.88, 0.03, 0.02, 0.07], [0.6, 0.2, 0.05, 0.15], [0.97, 0.01, 0.0, 0.02], [1, 0, 0, 0]):
        hits = 0
        for _ in range(600):
            case = predictions(*generator.multinomial(400, cells))
            _, (low, high) = intervals.paired_difference(*case)
            hits += low <= cells[1] - cells[2] <= high
        assert hits / 600 >= 0.93


def test_balanced_difference_by_hand() -> None:
    """In a class of 10 images two are lost, in one of 6 one is gained."""
    parts = predictions(8, 0, 2, 0), predictions(3, 1, 0, 2)
    labels = np.repeat([0, 1], [10, 6])
    before, after = (np.concatenate([abs(label - part[side]) for label, part in enumerate(parts)]) for side in (0, 1))
    difference, (low, high) = intervals.balanced_difference(before, after, labels)
    assert difference == pytest.approx((-2 / 10 + 1 / 6) / 2)
    variances = [((0.5 + 2.5) / 12 - (2 / 12) ** 2) / 12, ((1.5 + 0.5) / 8 - (1 / 8) ** 2) / 8]
    assert high - difference == pytest.approx(1.959964 * sum(variances) ** 0.5 / 2)
    assert difference - low == pytest.approx(high - difference)


def test_balanced_difference_covers_the_truth() -> None:
    generator = np.random.default_rng(2)
    cells = [0.88, 0.03, 0.02, 0.07], [0.6, 0.05, 0.2, 0.15]
    truth = (0.01 - 0.15) / 2
    labels, hits = np.repeat([0, 1], [400, 60]), 0
    for _ in range(1000):
        parts = [predictions(*generator.multinomial(count, of)) for count, of in zip((400, 60), cells, strict=True)]
        before, after = (np.concatenate([abs(k - part[side]) for k, part in enumerate(parts)]) for side in (0, 1))
        _, (low, high) = intervals.balanced_difference(before, after, labels)
        hits += low <= truth <= high
    assert 0.93 <= hits / 1000 <= 0.98
