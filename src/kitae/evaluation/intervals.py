"""95 % intervals, one method for each kind of number.

All of them hold the trained model fixed and cover the random choice of the *images* that it is measured on. They do not
cover the variation between seeds; `kitae study` measures that.

Images of one group (a patient, a video) are alike, so they tell less than as many independent ones. With `groups`, int
[N], equal for images of one group, an interval covers the choice of the groups; None takes all images as independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kitae import keyed

LEVEL = 0.95
Interval = tuple[float, float]

_Z = float(keyed.normal_quantile((1 + LEVEL) / 2))


def effective(values: ArrayLike, groups: ArrayLike | None, *, alike: bool = True) -> float:
    """The number of independent images that would tell as much about the mean of `values` [N]; N without groups.

    N over the design effect (Kish 1965): the variance of the mean between groups over that of independent images, at
    least 1. The groups tell it only roughly, so the count is lowered by the square of t(N - 1) / t(G - 1), quantiles of
    Student's t with these degrees of freedom, for G groups (Korn and Graubard 1998, for proportions in surveys).

    Args:
        alike: all images of a group count as one where all values are equal, which says nothing about the groups.

    Returns:
        At most N, and N where each image is a group of its own; 0 for a single group of several images, which says
        nothing about others.
    """
    array = np.asarray(values, dtype=np.float64)
    n = array.size
    if groups is None or not n:
        return float(n)
    from scipy.special import stdtrit

    member = np.unique(np.asarray(groups), return_inverse=True)[1]
    count = int(member.max()) + 1
    if count < 2:
        return float(n == 1)
    apart = array - array.mean()
    independent = float(apart @ apart) * n / (n - 1)
    between = float((np.bincount(member, apart) ** 2).sum()) * count / (count - 1)
    design = max(1.0, between / independent) if independent > 0 else n / count if alike else 1.0
    of_images, of_groups = stdtrit([n - 1, count - 1], (1 + LEVEL) / 2)
    return n / design * float(of_images / of_groups) ** 2


def wilson(successes: float, count: float) -> Interval | None:
    """Score interval of a proportion (Wilson 1927): inside [0, 1], sensible at 0 and 1. None where count is 0."""
    if count == 0:
        return None
    z, p = _Z, successes / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    # At the ends the bound is exactly 0 or 1; rounding must not say otherwise.
    return (0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == count else min(1.0, centre + half))


def proportion(hits: ArrayLike, groups: ArrayLike | None = None) -> Interval | None:
    """Wilson's interval of the share of True in bool [N]. None where N is 0, and for a single group."""
    array = np.asarray(hits, dtype=bool)
    count, right = effective(array, groups), int(array.sum())
    return wilson(count if right == array.size else right * (count / array.size), count) if count else None


def accuracy(hits: ArrayLike, groups: ArrayLike | None = None) -> dict[str, Any]:
    """`accuracy` and `accuracy_interval` ([low, high], Wilson), where bool [N] says which images are right.

    Both are None where N is 0. A single group has no interval.
    """
    array, interval = np.asarray(hits, dtype=bool), proportion(hits, groups)
    right = int(array.sum())
    return {"accuracy": right / array.size if array.size else None, "accuracy_interval": interval and list(interval)}


def normal_mean(values: ArrayLike, groups: ArrayLike | None = None) -> Interval | None:
    """Normal interval of the mean of `values` [N]: mean -+ z s / sqrt(N). None where N < 2, and for a single group."""
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2 or not (count := effective(array, groups)):
        return None
    half = _Z * float(array.std(ddof=1)) / sqrt(count)
    mean = float(array.mean())
    return (mean - half, mean + half)


def balanced(hits: ArrayLike, labels: ArrayLike, groups: ArrayLike | None = None) -> Interval | None:
    """Interval of the mean of per-class accuracies. None for a single group.

    Normal, with the variance of independent proportions, each moved half a success away from 0 and 1, so that a class
    without mistakes does not get zero variance (as in Agresti and Coull 1998).

    Args:
        hits: bool [N], which images are right. labels: int [N]; a class without images is left out.
    """
    values, truth = np.asarray(hits, dtype=np.float64), np.asarray(labels)
    total = np.bincount(truth)
    right, total = np.bincount(truth, values)[total > 0], total[total > 0]
    p = (right + 0.5) / (total + 1)
    half = _half_of_classes(p * (1 - p) / total, values, truth, groups)
    if not np.isfinite(half):
        return None
    mean = float((right / total).mean())
    return (max(0.0, mean - half), min(1.0, mean + half))


def _half_of_classes(
    variances: ArrayLike,
    values: NDArray[np.float64],
    labels: NDArray[Any],
    groups: ArrayLike | None,
    *,
    alike: bool = True,
) -> float:
    """Half the normal interval of a mean over classes of the mean of `values` [N] in each; infinite for a single group.

    Args:
        variances: of the mean in each class that has images, for independent images.
        alike: as in `effective`.
    """
    each = np.asarray(variances, dtype=np.float64)
    # What each image adds to the mean over classes, less its expectation: groups may have images of several classes.
    total = np.bincount(labels)
    apart = (values - (np.bincount(labels, values) / np.maximum(total, 1))[labels]) / total[labels]
    count = effective(apart, groups, alike=alike)
    return _Z * sqrt(float(each.sum()) * (labels.size / count)) / each.size if count else float("inf")


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    count: int,
    *,
    estimate: float,
    groups: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = 1000,
) -> Interval | None:
    """Basic bootstrap interval (Efron and Tibshirani 1993): [2 e - q_hi, 2 e - q_lo], and the estimate e itself.

    The reflection matters where a statistic is biased, as the calibration error is (never negative, so noise adds to
    it): replicates carry the bias twice, and reflecting takes it out once.

    Args:
        statistic: of resampled positions, int64: `count` of them, or those of as many groups as there are.
        count: how many images there are; fewer than 2 of them, or of the groups, have no interval.
        estimate: the statistic of all positions, once each.
        seed: keys the resampling; the same seed gives the same interval on every platform.
    """
    member = np.arange(count) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes, by_group = np.bincount(member), np.argsort(member, kind="stable").astype(np.int64)
    drawn, starts = len(sizes), np.cumsum(sizes) - sizes
    if drawn < 2:
        return None
    values = np.empty(replicates)
    for i, words in enumerate(random_words(seed, replicates, drawn)):
        places = ((words * np.uint64(drawn)) >> np.uint64(32)).astype(np.int64)
        if groups is not None:
            many = sizes[places]
            within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
            places = by_group[np.repeat(starts[places], many) + within]
        values[i] = statistic(places)
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return (min(estimate, float(2 * estimate - high)), max(estimate, float(2 * estimate - low)))


def random_words(seed: int, replicates: int, count: int, stream: int = 0) -> Iterator[NDArray[np.uint64]]:
    """For each replicate uint64 [count] random numbers below 2**32, keyed by the seed and the stream.

    From a counter-based generator of its own, and raw: only raw words are the same in every version of NumPy.
    """
    generator = np.random.Philox(key=keyed.derive_seed(seed, stream, 0, keyed.SLOT_BOOTSTRAP))
    for _ in range(replicates):
        yield generator.random_raw(count) >> np.uint64(32)


def median(values: ArrayLike) -> Interval | None:
    """Order-statistic interval of the median of `values` [N], free of any distribution; None where N < 6.

    The narrowest pair of the k-th smallest and k-th largest that holds the level (Conover 1999, section 3.2).
    """
    from scipy.stats import quantile_test

    low, high = quantile_test(np.asarray(values, dtype=np.float64), p=0.5).confidence_interval(LEVEL)
    return None if np.isnan(low) or np.isnan(high) else (float(low), float(high))


def paired_difference(
    before: ArrayLike, after: ArrayLike, labels: ArrayLike, groups: ArrayLike | None = None
) -> tuple[float, Interval]:
    """Accuracy of `after` minus accuracy of `before` on the same images, with an interval.

    Only images that exactly one of the two gets right count, so the interval is much narrower than that of either
    accuracy. It is the score interval of Tango (1998): all differences that a score test would not reject, so it keeps
    its level even if few images differ, or none.

    Args:
        before, after: int [N] predicted classes.
        labels: int [N], at least one.
        groups: without changes, images of a group count as independent: rounding rarely changes a whole group.
    """
    truth = np.asarray(labels)
    was, now = np.asarray(before) == truth, np.asarray(after) == truth
    gained, lost = int((now & ~was).sum()), int((was & ~now).sum())
    count = effective(now.astype(np.float64) - was, groups, alike=False)
    share = count / truth.size
    found = _tango(gained * share, lost * share, count) if count else (-1.0, 1.0)
    return (gained - lost) / truth.size, found


def balanced_difference(
    before: ArrayLike, after: ArrayLike, labels: ArrayLike, groups: ArrayLike | None = None
) -> tuple[float, Interval]:
    """The same of balanced accuracy, the mean over the classes of the accuracy in each.

    Normal, with the variance of paired proportions in each class, half an image added to each of the four cells of
    right and wrong (as Agresti and Min 2005 do), so that a class without changes does not get zero variance.

    Args:
        before, after: int [N] predicted classes.
        labels: int [N]; a class without images is left out.
        groups: as in `paired_difference`.
    """
    truth = np.asarray(labels)
    changes = (np.asarray(after) == truth).astype(np.float64) - (np.asarray(before) == truth)
    means, variances = [], []
    for label in np.unique(truth):
        inside = changes[truth == label]
        means.append(float(inside.mean()))
        moved = float((inside != 0).sum())
        variances.append((moved + 1 - inside.sum() ** 2 / (inside.size + 2)) / (inside.size + 2) ** 2)
    mean, half = sum(means) / len(means), _half_of_classes(variances, changes, truth, groups, alike=False)
    return mean, (max(-1.0, mean - half), min(1.0, mean + half))


def _tango(gained: float, lost: float, count: float) -> Interval:
    estimate = (gained - lost) / count

    def score(d: float) -> float:
        # The share that would be lost if the difference were d: maximum likelihood, the root of a quadratic.
        a, b, c = 2 * count, (2 * count - gained + lost) * d - gained - lost, -lost * d * (1 - d)
        share = (sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = count * (2 * share + d * (1 - d))
        distance = gained - lost - count * d
        return distance / sqrt(variance) if variance > 0 else (0.0 if distance == 0 else distance * float("inf"))

    def solve(inside: float, outside: float) -> float:
        for _ in range(60):  # the score falls as d rises
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if abs(score(middle)) <= _Z else (inside, middle)
        return inside

    return solve(estimate, -1.0), solve(estimate, 1.0)
