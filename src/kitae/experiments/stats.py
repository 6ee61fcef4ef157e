"""Effects with intervals from a table of runs.

The model is value = variant + seed + noise. Runs of one seed share initial weights, order of samples and random
numbers, so the seed is a block and differences are taken inside it. The noise is pooled over variants, which gives its
estimate up to (V - 1)(S - 1) degrees of freedom instead of the S - 1 of a single pair.

An interval is Student's t, 95 %, for one effect at a time. Whether an effect is *shown* is decided after Holm's
correction ("A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979) over
all effects of the metric, so that a study of techniques without effect names a winner in at most 1 of 20 studies.

Noise is not equally large in all variants: a reference without any technique often scatters more. So the reference,
which is part of every difference from it, has its own noise, estimated separately (`_separate_reference`); each of the
others is tested against the rest (`_scattering`); and in factorial and screening, where every run informs every effect,
an effect takes the noise of the variants that it weighs (`_weighted_noise`). benchmarks/simulated_studies.py simulates
how well that holds; docs/studies.md has the figures.

By default an interval covers the seeds: what would change with other initial weights and orders, on these test images.
`image_variance` adds what would change with other test images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special, stats

from kitae.errors import KitaeError
from kitae.experiments.design import Contrast, Design
from kitae.reporting.effects import CONFIDENCE, Analysis, Effect, Noise, metric

UNEVEN = 0.05  # level of the test whether a variant scatters more than the others
_ROUNDING = 1e-10  # of the largest value: anything smaller comes from arithmetic, not from runs
_DETERMINED = 1e-8  # rounding of a projection onto what the runs determine


class Judged(NamedTuple):
    """Which test images a run got right: bool [images]; and int [images], equal for images of one group, if any."""

    right: NDArray[np.bool_]
    groups: NDArray[Any] | None = None


def analyse(
    runs: pd.DataFrame, design: Design, name: str, correct: Mapping[tuple[str, int], Judged] | None = None
) -> Analysis:
    """Effects of a design on one metric.

    Args:
        runs: columns `variant`, `seed` and `name`; a run that failed is missing or NaN.
        design: what was run.
        name: the metric's column.
        correct: (variant, seed) -> which test images each run got right. If given, the intervals of differences cover
            test images as well.

    Returns:
        The effects in the design's order. Effects that the finished runs do not determine are NaN.
    """
    shown = metric(name)
    table = runs.reindex(columns=["variant", "seed", name]).dropna(subset=[name])
    values = table[name].to_numpy(dtype=np.float64) * shown.scale
    ratio = shown.ratio and bool((values > 0).all())
    variants, seeds = table["variant"].to_numpy(), table["seed"].to_numpy()
    fit = _Blocks(np.log(values) if ratio else values, variants, seeds)
    # A logarithm near 0 is as exact as the value near 1 that it was taken from.
    negligible = _ROUNDING * max(float(np.abs(fit.y).max(initial=0.0)), 1.0 if ratio else 0.0)
    residual = _UNKNOWN
    # Without intervals, and on the scale of the fit: logarithms for ratios.
    if design.regression:
        raw, residual = _regression(fit, design, name)
    else:
        raw = _differences(fit, design, name, negligible)
        if correct and name == "test.accuracy":
            raw = [
                e if _chance(e, negligible) else _with_images(e, pair, seeds, correct)
                for e, pair in zip(raw, design.contrasts, strict=True)
            ]
    coarse = shown.unit == "points"
    effects = _holm([_finish(effect, ratio, negligible, coarse) for effect in raw], design.compared)
    own = values[variants == design.reference]
    noise = _noise(fit.noise, residual, design.reference, own)
    return Analysis(unit=shown.unit, better=shown.better, runs=len(table), noise=noise, effects=tuple(effects))


class _Variance(NamedTuple):
    """A mean square and its degrees of freedom."""

    value: float
    df: float


_UNKNOWN = _Variance(math.nan, 0)


class _Blocks:
    """Least squares of value = variant + seed, which gives the noise and the differences of variants."""

    def __init__(self, y: NDArray[np.float64], variants: NDArray[Any], seeds: NDArray[Any]) -> None:
        self.y, self.variants, self.seeds = y, variants, seeds
        self.names = list(dict.fromkeys(variants.tolist()))
        self.blocks = sorted(set(seeds.tolist()))
        self.block = _indicators(seeds, self.blocks)[:, 1:]
        self.noise = _UNKNOWN
        if len(y):
            self.solved = _least_squares(y, np.concatenate([_indicators(variants, self.names), self.block], axis=1))
            self.noise = self.solved.noise

    def without(self, variant: str) -> _Blocks:
        """The fit of all runs but one variant's."""
        others = self.variants != variant
        return _Blocks(self.y[others], self.variants[others], self.seeds[others])

    @property
    def connected(self) -> bool:
        """Every difference of two variants is determined."""
        return all(not math.isnan(self.difference(name, self.names[0])[0]) for name in self.names[1:])

    def difference(self, plus: str, minus: str) -> tuple[float, float]:
        """Estimate, and its variance for noise of variance 1; NaN if no chain of shared seeds connects the two."""
        weights = np.zeros(len(self.names) + self.block.shape[1])
        weights[self.names.index(plus)], weights[self.names.index(minus)] = 1.0, -1.0
        if np.abs(weights @ self.solved.determined - weights).max() > _DETERMINED:
            return math.nan, math.nan
        return float(weights @ self.solved.coefficients), float(weights @ self.solved.covariance @ weights)

    def pairs(self, plus: str, minus: str) -> NDArray[np.float64]:
        """Differences inside the seeds that have both."""
        of = {(v, s): value for v, s, value in zip(self.variants, self.seeds, self.y, strict=True)}
        both = [seed for seed in self.blocks if (plus, seed) in of and (minus, seed) in of]
        return np.array([of[(plus, seed)] - of[(minus, seed)] for seed in both])


def _indicators(values: NDArray[Any], names: Sequence[Any]) -> NDArray[np.float64]:
    return np.asarray(values[:, None] == np.array(names, dtype=object)[None, :], dtype=np.float64)


@dataclass(frozen=True)
class _Fit:
    """Least squares y = x @ coefficients, the shortest ones where lost runs leave some undetermined.

    Attributes:
        weights: of the runs in the coefficients, which are weights @ y.
        covariance: of the coefficients, for noise of variance 1.
        determined: the projection onto what the runs determine; the identity if nothing is undetermined.
        left: residuals. noise: their mean square.
    """

    coefficients: NDArray[np.float64]
    weights: NDArray[np.float64]
    covariance: NDArray[np.float64]
    determined: NDArray[np.float64]
    left: NDArray[np.float64]
    noise: _Variance


def _least_squares(y: NDArray[np.float64], x: NDArray[np.float64]) -> _Fit:
    inverse = np.asarray(np.linalg.pinv(x, rcond=1e-10), np.float64)
    coefficients = inverse @ y
    left = y - x @ coefficients
    df = len(y) - int(np.linalg.matrix_rank(x))
    noise = _Variance(float(left @ left) / df, df) if df > 0 else _UNKNOWN
    return _Fit(coefficients, inverse, inverse @ inverse.T, inverse @ x, left, noise)


def _separate_reference(fit: _Blocks, reference: str) -> tuple[_Variance, _Variance] | None:
    """The noise of differences from the reference, and of others, when the reference has a noise of its own.

    With reference r and m other variants, whose noise is pooled: the variance of (r - mean of the others) over seeds
    estimates s_r^2 + s_o^2 / m with S - 1 degrees of freedom, and independently the others' residual mean square s_o^2
    with (m - 1)(S - 1). Their sum, the second times (1 - 1 / m), is s_r^2 + s_o^2; degrees of freedom after Welch and
    Satterthwaite (Biometrics Bulletin 2, 1946). Two variants give the paired t test.

    Returns:
        Each as the mean of the two variants' variances; None if the runs do not tell them apart.
    """
    rest = fit.without(reference)
    at = {s: y for s, y, v in zip(fit.seeds.tolist(), fit.y, fit.variants, strict=True) if v == reference}
    shared = [s for s in rest.blocks if s in at]
    if rest.noise.df < 1 or len(shared) < 2 or not rest.connected:
        return None
    m = len(rest.names)
    level = dict(zip(rest.blocks, (0.0, *rest.solved.coefficients[m:]), strict=True))
    apart = np.array([at[s] - level[s] for s in shared])
    own = _Variance(float(apart.var(ddof=1)), len(shared) - 1)
    share = _Variance((1 - 1 / m) * rest.noise.value, rest.noise.df)
    total = own.value + share.value
    return _Variance(total / 2, welch(own, share) if total > 0 else own.df), rest.noise


def _differences(fit: _Blocks, design: Design, name: str, negligible: float) -> list[Effect]:
    found = []
    separate = _separate_reference(fit, design.reference)
    with_reference, others = separate or (fit.noise, fit.noise)
    scattering = _scattering(fit, negligible) - ({design.reference} if separate else set())
    for contrast in design.contrasts:
        plus, minus = contrast.plus, contrast.minus
        if plus not in fit.names or minus not in fit.names:
            found.append(Effect(name=contrast.name, metric=name))
            continue
        estimate, unit = fit.difference(plus, minus)
        noise = with_reference if design.reference in (plus, minus) else others
        pairs = fit.pairs(plus, minus)
        error = math.sqrt(noise.value * unit)
        raw = Effect(
            name=contrast.name, metric=name, estimate=estimate, standard_error=error, df=noise.df, pairs=len(pairs)
        )
        found.append(_own_interval(raw, pairs) if {plus, minus} & scattering else raw)
    return found


def _scattering(fit: _Blocks, negligible: float) -> set[str]:
    """The variants that scatter more than all others together (F test, 1 in 20 if the noise is even).

    A variant that sometimes diverges would otherwise be hidden by less noisy variants. A stricter test would miss it
    with three seeds: the tests check what 1 in 20 achieves, and docs/studies.md describes the price.
    """
    found = set()
    for name in fit.names:
        whole, rest = fit.noise, fit.without(name).noise
        own = whole.df - rest.df  # degrees of freedom that the variant adds
        if own < 1 or rest.df < 2:  # a single number is no measure of the noise
            continue
        more = (whole.value * whole.df - rest.value * rest.df) / own
        times = more / rest.value if rest.value > 0 else math.inf  # the others may all be at 0 %
        if math.sqrt(max(more, 0.0)) > negligible and special.fdtrc(own, rest.df, times) < UNEVEN:
            found.add(name)
    return found


def _with(effect: Effect, **changes: Any) -> Effect:
    return effect.model_copy(update=changes)


def _own_interval(raw: Effect, pairs: NDArray[np.float64]) -> Effect:
    """The difference with the interval of its own pairs, if that is wider: pairs may be close by chance."""
    own = len(pairs) - 1
    if own < 1 or math.isnan(raw.standard_error):
        return raw
    error = float(pairs.std(ddof=1)) / math.sqrt(len(pairs))
    if half_interval(error, own) <= half_interval(raw.standard_error, raw.df):
        return raw
    return _with(raw, estimate=float(pairs.mean()), standard_error=error, df=own, uneven=True)


def _regression(fit: _Blocks, design: Design, name: str) -> tuple[list[Effect], _Variance]:
    """Main effects (for factorial also two-factor interactions) by least squares, seeds as blocks.

    Also returns the fit's own residual variance.

    Levels are coded as centred indicators, so that a coefficient is the mean difference from the first level over an
    even mixture of the other factors' levels, and a product's coefficient the difference of such differences (half of
    it for two factors of two levels, as is usual there).
    """
    levels = {variant.name: variant.levels for variant in design.variants}
    coded: dict[str, list[NDArray[np.float64]]] = {}
    for factor, names in design.factors.items():
        at = np.array([levels[v][factor] for v in fit.variants], dtype=np.int64)
        coded[factor] = [(at == level) - 1.0 / len(names) for level in range(1, len(names))]
    columns = [column for of in coded.values() for column in of]
    main = len(columns)
    if design.kind == "factorial":
        for left, right in itertools.combinations(coded.values(), 2):
            half = 0.5 if len(left) == len(right) == 1 else 1.0
            columns += [x * y / half for x, y in itertools.product(left, right)]
    found = [
        Effect(name=effect, metric=name, kind="main" if place < main else "interaction", pairs=len(fit.y))
        for place, effect in enumerate(design.effects)
    ]
    if not len(fit.y):
        return found, _UNKNOWN
    x = np.column_stack([np.ones(len(fit.y)), *columns, fit.block])
    solved = _least_squares(fit.y, x)
    residual = solved.noise
    # Where runs were lost, as when a level diverges with every seed, the other effects may still be determined.
    determined = np.abs(solved.determined - np.eye(x.shape[1])).max(axis=1) <= _DETERMINED
    for k in np.flatnonzero(determined[1 : len(found) + 1]) + 1:
        # Replicates tell noise from misfit; a single seed leaves only the misfit.
        noise = _weighted_noise(fit, solved.weights[k]) if fit.noise.df else residual
        error = math.sqrt(noise.value * solved.covariance[k, k])
        found[k - 1] = _with(found[k - 1], estimate=float(solved.coefficients[k]), standard_error=error, df=noise.df)
    return found, residual


def _weighted_noise(fit: _Blocks, weights: NDArray[np.float64]) -> _Variance:
    """The noise of a main effect or an interaction when variants may scatter unevenly.

    Where all variants have the same weight in an effect, as in a complete design of two levels, the pooled mean square
    estimates the right variance whatever each variant's own is; only how well it does so depends on that. An effect of
    a level among several is a difference of the runs of two levels, so if those scatter more than the rest, it takes
    their own variances. It never takes less than the pooled noise: variants may be close by chance. Degrees of freedom
    after Satterthwaite: (S - 1) (sum of w s^2)^2 / sum of (w s^2)^2 over the variants' own variances and their weights,
    between S - 1 (one variant has all the noise) and (V - 1)(S - 1).

    Args:
        weights: of the runs in the effect.
    """
    count = len(fit.names)
    mse, df = fit.noise
    if count < 3 or mse <= 0:
        return fit.noise
    least = len(fit.blocks) - 1
    rows = [fit.variants == name for name in fit.names]
    squares = fit.solved.left**2
    own = np.array([squares[row].sum() / max(1, int(row.sum()) - 1) for row in rows])
    # A residual holds (1 - 2 / V) of the variant's own noise and a V-th of all the noise.
    own = (own - mse / count) / (1 - 2 / count)
    shares = np.array([(weights[row] ** 2).sum() for row in rows])
    value = float(shares @ own / shares.sum())
    if value <= mse * (1 + _ROUNDING):
        value, shares = mse, np.ones(count)
    parts = shares * np.maximum(own, 0.0)
    if not parts.any():
        return fit.noise
    return _Variance(value, float(min(max(least * parts.sum() ** 2 / (parts**2).sum(), min(least, df)), df)))


def welch(*parts: tuple[float, float]) -> float:
    """Degrees of freedom of a sum of independent variances, each given with its own degrees of freedom."""
    return sum(value for value, _ in parts) ** 2 / sum(value**2 / df for value, df in parts)


def half_interval(error: float, df: float) -> float:
    """Half the width of the 95 % interval of an estimate with this standard error."""
    return float(special.stdtrit(df, 0.5 + CONFIDENCE / 2)) * error


def _chance(raw: Effect, negligible: float) -> bool:
    """Whether its noise is 0 because two pairs differ by the same number of images, which happens by chance."""
    return raw.standard_error <= negligible and raw.df < 2


def _finish(raw: Effect, ratio: bool, negligible: float, coarse: bool) -> Effect:
    """The interval and p-value of an estimate; back from logarithms if it is a ratio.

    Args:
        coarse: the metric counts images, so a noise of 0 can be chance.
    """
    low = high = p = math.nan
    # Identical runs differ by rounding, which can be many times its own standard error.
    estimate = 0.0 if abs(raw.estimate) < negligible else raw.estimate
    error = 0.0 if raw.standard_error < negligible else raw.standard_error
    if raw.df > 0 and not math.isnan(error) and not (coarse and _chance(raw, negligible)):
        half = half_interval(error, raw.df)
        low, high = estimate - half, estimate + half
        p = 1.0 if estimate == 0 else 0.0  # of runs without any noise: unmeasured seconds, or a deterministic toy
        if error > 0:
            p = float(2 * special.stdtr(raw.df, -abs(estimate) / error))
    back = math.exp if ratio else float
    return _with(raw, estimate=back(estimate), low=back(low), high=back(high), p=p, standard_error=error, ratio=ratio)


def _holm(effects: list[Effect], comparisons: Sequence[object]) -> list[Effect]:
    """Holm's correction over the comparisons that were tested; effects of the same comparison count once.

    Tested to equal statsmodels' multipletests(method="holm"), which is not used since it collects garbage at every
    call: that takes seconds in a process that has loaded torch.
    """
    p_of = {what: effect.p for what, effect in zip(comparisons, effects, strict=True) if not math.isnan(effect.p)}
    highest, corrected = 0.0, {}
    for rank, what in enumerate(sorted(p_of, key=lambda what: p_of[what])):
        highest = max(highest, min(1.0, p_of[what] * (len(p_of) - rank)))
        corrected[what] = highest
    return [
        effect if math.isnan(effect.p) else _with(effect, p_holm=corrected[what])
        for what, effect in zip(comparisons, effects, strict=True)
    ]


def _noise(pooled: _Variance, residual: _Variance, reference: str, own: NDArray[np.float64]) -> Noise:
    mean = float(own.mean()) if len(own) else math.nan
    own_sd = float(own.std(ddof=1)) if len(own) > 1 else math.nan
    found = pooled if pooled.df else residual
    if not found.df:
        return Noise(reference=reference, reference_mean=mean, reference_sd=own_sd, source="none")
    low, high = (
        math.sqrt(found.df * found.value / float(stats.chi2.ppf(q, found.df)))
        for q in (0.5 + CONFIDENCE / 2, 0.5 - CONFIDENCE / 2)
    )
    source: Literal["replicates", "left over"] = "replicates" if pooled.df else "left over"
    return Noise(
        sd=math.sqrt(found.value), low=low, high=high, df=int(found.df), reference=reference, reference_mean=mean,
        reference_sd=own_sd, source=source,
    )  # fmt: skip


def image_variance(
    plus: NDArray[np.bool_], minus: NDArray[np.bool_], groups: NDArray[Any] | None = None
) -> tuple[float, int]:
    """Variance of the mean difference in accuracy, in points squared, that comes from which test images were drawn.

    How far each image's difference is from the run's mean is averaged over seeds. Its variance in excess of the seeds'
    share is the images' own (a two-way random-effects decomposition), at least 0. Groups are drawn as a whole, so with
    them the same is done with the sums over each group (as a mean over clusters is linearised in surveys).

    Args:
        plus, minus: bool [seeds, images], which images each run of the two variants got right.
        groups: int [images], equal for images of one group; None takes all images as independent.

    Returns:
        The variance, and its degrees of freedom; NaN and 0 for a single image or group, which does not show how others
        differ.
    """
    difference = 100.0 * (plus.astype(np.float64) - minus.astype(np.float64))
    difference -= difference.mean(axis=1, keepdims=True)  # what a seed changes on all images is the seeds' part
    if groups is not None:
        member = np.unique(groups, return_inverse=True)[1]
        sums = np.stack([np.bincount(member, apart) for apart in difference])
        difference = sums * (sums.shape[1] / len(member))  # whose mean over groups is that over images
    seeds, drawn = difference.shape
    if drawn < 2:
        return math.nan, 0
    between = float(difference.mean(axis=0).var(ddof=1))
    within = float(difference.var(axis=0, ddof=1).mean()) / seeds if seeds > 1 else 0.0
    return max(between - within, 0.0) / float(drawn), drawn - 1


def _with_images(raw: Effect, pair: Contrast, seeds: NDArray[Any], correct: Mapping[tuple[str, int], Judged]) -> Effect:
    """The interval widened by the test images, degrees of freedom after Welch and Satterthwaite."""
    both = [s for s in sorted(set(seeds.tolist())) if (pair.plus, s) in correct and (pair.minus, s) in correct]
    if not both or math.isnan(raw.standard_error):
        return raw
    judged = [[correct[variant, s] for s in both] for variant in (pair.plus, pair.minus)]
    right = [[one.right for one in side] for side in judged]
    counts = sorted({len(images) for side in right for images in side})
    if len(counts) > 1:
        raise KitaeError(
            f"cover: {pair.plus!r} and {pair.minus!r} were measured on different test images "
            f"({' and '.join(str(count) for count in counts)}), which cannot be paired; use cover: seeds"
        )
    groups = next((one.groups for side in judged for one in side if one.groups is not None), None)
    plus, minus = (np.stack(side) for side in right)
    parts = (raw.standard_error**2, raw.df), image_variance(plus, minus, groups)
    total = sum(value for value, _ in parts)
    df = welch(*parts) if total > 0 else raw.df
    covers = "seeds and test images" if groups is None else "seeds and groups of test images"
    return _with(raw, standard_error=math.sqrt(total), df=df, covers=covers)
