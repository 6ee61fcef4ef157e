"""Effects with intervals from a table of runs.

The model is value = variant + seed + noise: runs of one seed share initial weights, order of samples and random
numbers, so the seed is a block and differences are taken inside it. The noise is pooled over variants, which gives its
estimate up to (V - 1)(S - 1) degrees of freedom instead of the S - 1 of a single pair.

An interval is Student's t, 95 %, for one effect at a time. Whether an effect is *shown* is decided after Holm's
correction ("A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979) over
all effects of the metric, so that a study of techniques that do nothing names a winner in at most 1 of 20 studies.

Noise is not equally large in all variants: a reference without any technique often scatters more. So the reference,
which is in every difference from it, has a noise of its own, estimated apart from the others' (`_Apart`); each of the
others is tested against the rest (`_scattering`); and in factorial and screening, where every run informs every effect,
the degrees of freedom are those that uneven noise leaves (`_even_degrees`). How far that holds is simulated in
benchmarks/simulated_studies.py and told in docs/studies.md.

By default an interval covers the seeds: what would change with other initial weights and orders, on these test images.
`image_variance` adds what would change with other test images.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import statsmodels.api as sm
from numpy.typing import NDArray
from scipy import optimize, special, stats

from kitae.console import decimals
from kitae.errors import KitaeError
from kitae.experiments.design import Design, interaction
from kitae.experiments.outcome import Metric, metric

CONFIDENCE = 0.95
POWER = 0.80
MOST_SEEDS = 100  # what a plan proposes at most
ASSUMED_NOISE = 0.5  # points: what a plan assumes of the noise where nothing is known; no guess for other units
UNEVEN = 0.05  # level of the test whether a variant scatters more than the others
_ROUNDING = 1e-10  # of the largest value: what is smaller comes from arithmetic, not from runs
_NO = float("nan")


@dataclass(frozen=True)
class Effect:
    """One estimated effect, in the metric's shown unit (points for accuracies), or a factor where `ratio`.

    Attributes:
        name: of the variant, factor (`factor=level` beyond two levels), interaction (`a x b`) or contrast.
        metric: the number compared.
        kind: `difference` of two variants, `main` effect, or `interaction` (of two factors at two levels: half the
            difference between the effect of one with the other on and off).
        estimate: points, or a factor.
        low, high: 95 % interval; NaN where there are no degrees of freedom.
        p, p_holm: of no effect; before and after Holm's correction over the metric's effects.
        standard_error: of the estimate (of its logarithm where `ratio`).
        df: degrees of freedom of the noise.
        pairs: seeds in which both variants finished; for main effects, runs that informed it.
        ratio: the effect is a factor, 1 is none.
        covers: what the interval covers.
        uneven: one of the two variants scatters more than the others, so the interval is from the pairs alone.
    """

    name: str
    metric: str
    kind: Literal["difference", "main", "interaction"]
    estimate: float
    low: float
    high: float
    p: float
    p_holm: float
    standard_error: float
    df: float
    pairs: int
    ratio: bool = False
    covers: Literal["seeds", "seeds and test images"] = "seeds"
    uneven: bool = False

    @property
    def neutral(self) -> float:
        return 1.0 if self.ratio else 0.0

    @property
    def shown(self) -> bool:
        """An effect other than none is shown, after Holm's correction."""
        return self.p_holm < 1 - CONFIDENCE


@dataclass(frozen=True)
class Noise:
    """Standard deviation between runs that differ in nothing but the seed, once seeds are paired.

    Attributes:
        sd, low, high: pooled over variants, with its 95 % interval (chi-square); in the metric's unit, or relative
            (0.02 is 2 %) where the metric is compared as a ratio.
        df: its degrees of freedom; 0 where it could not be estimated.
        reference: name of the baseline.
        reference_mean, reference_sd: the baseline's own mean and standard deviation over seeds, in the metric's unit.
        source: `replicates`, or `left over` where one seed only left the fit's residual.
    """

    sd: float
    low: float
    high: float
    df: int
    reference: str
    reference_mean: float
    reference_sd: float
    source: Literal["replicates", "left over", "none"]


@dataclass(frozen=True)
class Analysis:
    """Effects of one metric, and the noise they are seen through."""

    metric: Metric
    effects: tuple[Effect, ...]
    noise: Noise
    runs: int


def analyse(
    runs: pd.DataFrame, design: Design, name: str, correct: Mapping[tuple[str, int], Any] | None = None
) -> Analysis:
    """Effects of a design on one metric.

    Args:
        runs: columns `variant`, `seed` and `name`; a run that failed is missing or NaN.
        design: what was run.
        name: the metric's column.
        correct: (variant, seed) -> bool [images], which test images each run got right; where given, the intervals of
            differences cover test images as well.

    Returns:
        The effects in the design's order. Effects that the finished runs do not determine are NaN.
    """
    shown = metric(name)
    table = (
        runs.loc[runs[name].notna(), ["variant", "seed", name]] if name in runs else runs.iloc[:0][["variant", "seed"]]
    )
    values = table[name].to_numpy(dtype=np.float64) * shown.scale if len(table) else np.empty(0)
    ratio = shown.ratio and bool((values > 0).all())
    y = np.log(values) if ratio else values
    variants, seeds = table["variant"].to_numpy(), table["seed"].to_numpy()
    fit = _Blocks(y, variants, seeds, ratio)
    if design.regression:
        raw, left_over = _regression(fit, design)
    else:
        raw, left_over = _differences(fit, design), (_NO, 0)
    if correct and not design.regression and not ratio and name == "test.accuracy":
        raw = [_with_images(effect, design, seeds, correct) for effect in raw]
    # A pair that is compared twice, under two names or the other way round, is one comparison.
    of = [frozenset((effect.plus, effect.minus)) if effect.plus else effect.name for effect in raw]
    effects = _holm([_finish(effect, name, ratio, fit.negligible) for effect in raw], of)
    return Analysis(shown, tuple(effects), _noise(fit, left_over, design, values, variants), len(table))


class _Blocks:
    """Least squares of value = variant + seed, from which noise and the means of variants come."""

    def __init__(
        self, y: NDArray[np.float64], variants: NDArray[Any], seeds: NDArray[Any], logarithms: bool = False
    ) -> None:
        self.y, self.variants, self.seeds = y, variants, seeds
        self.names = list(dict.fromkeys(variants.tolist()))
        self.blocks = sorted(set(seeds.tolist()))
        self.block = (
            (seeds[:, None] == np.array(self.blocks)[None, 1:]).astype(np.float64) if len(y) else np.zeros((0, 0))
        )
        self.model = None
        self.mse, self.df = _NO, 0
        if len(y):
            indicator = (variants[:, None] == np.array(self.names, dtype=object)[None, :]).astype(np.float64)
            self.model = _least_squares(y, np.concatenate([indicator, self.block], axis=1))
            self.df = int(self.model.df_resid)
            self.mse = float(self.model.mse_resid) if self.df > 0 else _NO
        # A logarithm of nearly 0 is as exact as the value of nearly 1 that it is of.
        self.negligible = _ROUNDING * max(float(np.abs(y).max(initial=0.0)), 1.0 if logarithms else 0.0)

    @cached_property
    def _row_space(self) -> NDArray[np.float64]:
        """The projection onto what the runs determine; all of it where no run is missing."""
        assert self.model is not None
        return np.asarray(self.model.model.pinv_wexog @ self.model.model.exog, dtype=np.float64)

    @property
    def connected(self) -> bool:
        """Every difference of two variants is determined."""
        return all(not math.isnan(self.difference(name, self.names[0])[0]) for name in self.names[1:])

    def difference(self, plus: str, minus: str) -> tuple[float, float]:
        """Estimate and its variance for noise of variance 1; NaN where no chain of shared seeds joins the two."""
        weights = np.zeros(len(self.names) + self.block.shape[1])
        weights[self.names.index(plus)], weights[self.names.index(minus)] = 1.0, -1.0
        assert self.model is not None
        if np.abs(weights @ self._row_space - weights).max() > 1e-8:
            return _NO, _NO
        return float(weights @ self.model.params), float(weights @ self.model.normalized_cov_params @ weights)

    def pairs(self, plus: str, minus: str) -> NDArray[np.float64]:
        """Differences inside the seeds that have both."""
        of = {(v, s): value for v, s, value in zip(self.variants, self.seeds, self.y, strict=True)}
        both = [seed for seed in self.blocks if (plus, seed) in of and (minus, seed) in of]
        return np.array([of[(plus, seed)] - of[(minus, seed)] for seed in both])


def _least_squares(y: NDArray[np.float64], x: NDArray[np.float64]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lost runs may leave effects undetermined, which is looked at for each of them
        return sm.OLS(y, x).fit()


@dataclass(frozen=True)
class _Raw:
    """An effect before it has an interval: on the scale of the fit (logarithms for ratios)."""

    name: str
    kind: Literal["difference", "main", "interaction"]
    estimate: float
    error: float
    df: float
    pairs: int
    plus: str = ""
    minus: str = ""
    covers: Literal["seeds", "seeds and test images"] = "seeds"
    uneven: bool = False


class _Apart:
    """The noise of differences where the reference has one of its own.

    With reference r and m other variants, whose noise is pooled: the variance of (r - mean of the others) over seeds
    estimates s_r^2 + s_o^2 / m with S - 1 degrees of freedom, and independently the others' residual mean square s_o^2
    with (m - 1)(S - 1). Their sum, the second times (1 - 1 / m), is s_r^2 + s_o^2; degrees of freedom after Welch and
    Satterthwaite (Biometrics Bulletin 2, 1946). Two variants give the paired t test.
    """

    def __init__(self, fit: _Blocks, reference: str) -> None:
        self.fit, self.reference = fit, reference
        others = fit.variants != reference
        self.calm = calm = _Blocks(fit.y[others], fit.variants[others], fit.seeds[others])
        self.known = False
        own = {s: y for s, y, other in zip(fit.seeds.tolist(), fit.y, others, strict=True) if not other}
        shared = [s for s in calm.blocks if s in own]
        if calm.model is None or calm.df < 1 or len(shared) < 2 or not calm.connected:
            return
        self.known = True
        m = len(calm.names)
        level = dict(zip(calm.blocks, (0.0, *calm.model.params[m:]), strict=True))
        apart = np.array([own[s] - level[s] for s in shared])
        self.a, self.own_df = float(apart.var(ddof=1)), len(shared) - 1
        self.b = (1 - 1 / m) * calm.mse

    def noise(self, plus: str, minus: str) -> tuple[float, float]:
        """Mean square of the two variants' noise, and its degrees of freedom."""
        if not self.known:
            return self.fit.mse, self.fit.df
        if self.reference not in (plus, minus):
            return self.calm.mse, self.calm.df
        if self.a + self.b <= 0:
            return 0.0, self.own_df
        return (self.a + self.b) / 2, _welch((self.a, self.own_df), (self.b, self.calm.df))


def _differences(fit: _Blocks, design: Design) -> list[_Raw]:
    found = []
    apart = _Apart(fit, design.reference)
    scattering = _scattering(fit) - {design.reference} if apart.known else _scattering(fit)
    for contrast in design.contrasts:
        if contrast.plus not in fit.names or contrast.minus not in fit.names:
            found.append(_Raw(contrast.name, "difference", _NO, _NO, 0, 0))
            continue
        estimate, unit = fit.difference(contrast.plus, contrast.minus)
        pairs = fit.pairs(contrast.plus, contrast.minus)
        mse, df = apart.noise(contrast.plus, contrast.minus)
        raw = _Raw(
            contrast.name, "difference", estimate, math.sqrt(mse * unit) if df else _NO, df, len(pairs), contrast.plus,
            contrast.minus,
        )  # fmt: skip
        found.append(_own_interval(raw, pairs) if {raw.plus, raw.minus} & scattering else raw)
    return found


def _scattering(fit: _Blocks) -> set[str]:
    """The variants that scatter more than all others together (F test, 1 in 20 where the noise is even).

    A variant that sometimes diverges would else hide behind its calm neighbours. A stricter test would miss it where
    there are three seeds: what one in 20 holds is in the tests, and what it costs in docs/studies.md.
    """
    found = set()
    for name in fit.names:
        others = fit.variants != name
        calm = _Blocks(fit.y[others], fit.variants[others], fit.seeds[others])
        own = fit.df - calm.df  # of what the variant adds to the sum of squares
        if own < 1 or calm.df <= own or not calm.mse > 0:
            continue
        more = (fit.mse * fit.df - calm.mse * calm.df) / own
        if math.sqrt(max(more, 0.0)) > fit.negligible and special.fdtrc(own, calm.df, more / calm.mse) < UNEVEN:
            found.add(name)
    return found


def _own_interval(raw: _Raw, pairs: NDArray[np.float64]) -> _Raw:
    """The difference with the interval of its own pairs, where that is the wider one: pairs may be close by chance."""
    own = len(pairs) - 1
    if own < 1 or math.isnan(raw.error):
        return raw
    error = float(pairs.std(ddof=1)) / math.sqrt(len(pairs))
    if _half(error, own) <= _half(raw.error, raw.df):
        return raw
    return replace(raw, estimate=float(pairs.mean()), error=error, df=own, uneven=True)


def _regression(fit: _Blocks, design: Design) -> tuple[list[_Raw], tuple[float, int]]:
    """Main effects (and for factorial, two-factor interactions) by least squares, seeds as blocks.

    Also returns the fit's own residual variance and degrees of freedom.

    Levels are coded as centred indicators, so that a coefficient is the mean difference from the first level over an
    even mixture of the other factors' levels, and a product's coefficient the difference of such differences.
    """
    levels = {variant.name: variant.levels for variant in design.variants}
    columns: list[tuple[str, Literal["main", "interaction"], NDArray[np.float64]]] = []
    coded: dict[str, list[tuple[str, NDArray[np.float64]]]] = {}
    for factor, names in design.factors.items():
        at = np.array([levels[v][factor] for v in fit.variants], dtype=np.int64)
        coded[factor] = [
            (name, (at == level) - 1.0 / len(names)) for level, name in enumerate(design.main_effects(factor), start=1)
        ]
        columns += [(name, "main", column) for name, column in coded[factor]]
    if design.kind == "factorial":
        for a, b in itertools.combinations(design.factors, 2):
            half = 0.5 if len(design.factors[a]) == len(design.factors[b]) == 2 else 1.0
            for (first, left), (second, right) in itertools.product(coded[a], coded[b]):
                columns.append((interaction(first, second), "interaction", left * right / half))
    if not len(fit.y):
        return [_Raw(name, kind, _NO, _NO, 0, 0) for name, kind, _ in columns], (_NO, 0)
    x = np.column_stack([np.ones(len(fit.y)), *(column for _, _, column in columns), fit.block])
    model = _least_squares(fit.y, x)
    # Replicates tell noise from misfit; with a single seed only the misfit is left.
    left_over = (float(model.mse_resid), int(model.df_resid)) if model.df_resid > 0 else (_NO, 0)
    mse, df = (fit.mse, _even_degrees(fit)) if fit.df else left_over
    determined = int(np.linalg.matrix_rank(x)) == x.shape[1]
    found = []
    for number, (name, kind, _) in enumerate(columns, start=1):
        if determined:
            unit = float(model.normalized_cov_params[number, number])
            error = math.sqrt(mse * unit) if df > 0 else _NO
            found.append(_Raw(name, kind, float(model.params[number]), error, max(df, 0), len(fit.y)))
        else:
            found.append(_Raw(name, kind, _NO, _NO, 0, len(fit.y)))
    return found, left_over


def _even_degrees(fit: _Blocks) -> float:
    """Degrees of freedom of the pooled noise where variants may scatter unevenly.

    In a complete design every variant has the same weight in every main effect, so the pooled mean square estimates
    the right variance whatever each variant's own is; only how well it does so depends on that. After Satterthwaite:
    (S - 1) (sum of s^2)^2 / sum of s^4 over the variants' own variances, between S - 1 (one variant has all the noise)
    and (V - 1)(S - 1).
    """
    count = len(fit.names)
    if count < 3 or fit.model is None:
        return fit.df
    least = len(fit.blocks) - 1
    squares = np.asarray(fit.model.resid, dtype=np.float64) ** 2
    own = np.array([squares[fit.variants == v].sum() / max(1, int((fit.variants == v).sum()) - 1) for v in fit.names])
    # A residual holds (1 - 2 / V) of the variant's own noise and a V-th of all the noise.
    own = np.maximum((own - fit.mse / count) / (1 - 2 / count), 0.0)
    if not own.any() or fit.mse <= 0:
        return fit.df
    return float(min(max(least * own.sum() ** 2 / (own**2).sum(), min(least, fit.df)), fit.df))


def _welch(*parts: tuple[float, float]) -> float:
    """Degrees of freedom of a sum of independent variances, each (variance, its own degrees of freedom)."""
    return sum(variance for variance, _ in parts) ** 2 / sum(variance**2 / df for variance, df in parts)


def _half(error: float, df: float) -> float:
    """Half of the 95 % interval of an estimate with this standard error."""
    return float(special.stdtrit(df, 0.5 + CONFIDENCE / 2)) * error


def _finish(raw: _Raw, name: str, ratio: bool, negligible: float) -> Effect:
    """The interval and p-value of an estimate; back from logarithms where it is a ratio."""
    low = high = p = _NO
    # Runs that are all alike differ by rounding, and by a multiple of its standard error at that.
    raw = replace(
        raw,
        estimate=0.0 if abs(raw.estimate) < negligible else raw.estimate,
        error=0.0 if raw.error < negligible else raw.error,
    )
    if raw.df > 0 and not math.isnan(raw.error):
        half = _half(raw.error, raw.df)
        low, high = raw.estimate - half, raw.estimate + half
        if raw.error > 0:
            p = float(2 * special.stdtr(raw.df, -abs(raw.estimate) / raw.error))
        else:  # runs without any noise: seconds that were not measured, or a deterministic toy
            p = 1.0 if raw.estimate == 0 else 0.0
    back = math.exp if ratio else float
    return Effect(
        raw.name, name, raw.kind, back(raw.estimate), back(low), back(high), p, _NO, raw.error, raw.df, raw.pairs,
        ratio, raw.covers, raw.uneven,
    )  # fmt: skip


def _holm(effects: list[Effect], of: Sequence[object]) -> list[Effect]:
    """Holm's correction over the comparisons that were tested; effects `of` one comparison count once.

    As statsmodels' multipletests(method="holm") gives it (tested), which collects garbage at every call: seconds in a
    process that holds torch.
    """
    p_of = {what: effect.p for what, effect in zip(of, effects, strict=True) if not math.isnan(effect.p)}
    highest, corrected = 0.0, {}
    for rank, what in enumerate(sorted(p_of, key=lambda what: p_of[what])):
        highest = max(highest, min(1.0, p_of[what] * (len(p_of) - rank)))
        corrected[what] = highest
    return [
        effect if math.isnan(effect.p) else replace(effect, p_holm=corrected[what])
        for what, effect in zip(of, effects, strict=True)
    ]


def _noise(
    fit: _Blocks, left_over: tuple[float, int], design: Design, values: NDArray[np.float64], variants: NDArray[Any]
) -> Noise:
    own = values[variants == design.reference]
    mean = float(own.mean()) if len(own) else _NO
    own_sd = float(own.std(ddof=1)) if len(own) > 1 else _NO
    mse, df = fit.mse, fit.df
    source: Literal["replicates", "left over", "none"] = "replicates"
    if not df:
        (mse, df), source = left_over, "left over"
    if not df:
        return Noise(_NO, _NO, _NO, 0, design.reference, mean, own_sd, "none")
    low, high = (
        math.sqrt(df * mse / float(stats.chi2.ppf(q, df))) for q in (0.5 + CONFIDENCE / 2, 0.5 - CONFIDENCE / 2)
    )
    return Noise(math.sqrt(mse), low, high, df, design.reference, mean, own_sd, source)


def image_variance(plus: NDArray[np.bool_], minus: NDArray[np.bool_]) -> float:
    """Variance of the mean difference in accuracy, in points squared, that comes from which test images were drawn.

    Args:
        plus, minus: bool [seeds, images], which images each run of the two variants got right.

    The difference of each image is averaged over seeds; what its variance has in excess of the seeds' share is the
    images' own (a one-way random-effects decomposition), at least 0.
    """
    difference = 100.0 * (plus.astype(np.float64) - minus.astype(np.float64))
    seeds, images = difference.shape
    between = float(difference.mean(axis=0).var(ddof=1))
    within = float(difference.var(axis=0, ddof=1).mean()) / seeds if seeds > 1 else 0.0
    return max(between - within, 0.0) / float(images)


def _with_images(raw: _Raw, design: Design, seeds: NDArray[Any], correct: Mapping[tuple[str, int], Any]) -> _Raw:
    """The interval widened by the test images, degrees of freedom after Welch and Satterthwaite."""
    both = [s for s in sorted(set(seeds.tolist())) if (raw.plus, s) in correct and (raw.minus, s) in correct]
    if not both or math.isnan(raw.error):
        return raw
    counts = sorted({len(correct[(variant, s)]) for variant in (raw.plus, raw.minus) for s in both})
    if len(counts) > 1:
        raise KitaeError(
            f"cover: {raw.plus!r} and {raw.minus!r} were measured on unlike test images "
            f"({' and '.join(str(count) for count in counts)}), which cannot be paired; use cover: seeds"
        )
    plus = np.stack([np.asarray(correct[(raw.plus, s)], dtype=bool) for s in both])
    minus = np.stack([np.asarray(correct[(raw.minus, s)], dtype=bool) for s in both])
    extra = image_variance(plus, minus)
    total = raw.error**2 + extra
    if total <= 0:
        return replace(raw, covers="seeds and test images")
    df = _welch((raw.error**2, raw.df), (extra, plus.shape[1] - 1))
    return replace(raw, error=math.sqrt(total), df=df, covers="seeds and test images")


def error_factor(design: Design, seeds: int) -> tuple[float, float]:
    """Standard error of a design's main effects for noise of 1, and degrees of freedom, when every run finishes."""
    count = len(design.variants)
    df: float = (count - 1) * (seeds - 1)
    if design.regression and seeds > 1 and count > 2:
        df /= 1 + 2 / (seeds - 1)  # as `_even_degrees` where the noise is even after all: own variances vary by chance
    if design.kind == "screening" or (design.regression and all(len(v) == 2 for v in design.factors.values())):
        if seeds == 1:  # the misfit stands in for the noise
            interactions = math.comb(len(design.factors), 2) if design.kind == "factorial" else 0
            df = count - 1 - len(design.factors) - interactions
        return 2.0 / math.sqrt(count * seeds), max(df, 0)
    if design.regression:  # more than two levels: the rarest decides
        most = max(len(levels) for levels in design.factors.values())
        return math.sqrt(2.0 * most / (count * seeds)), df
    others = count - 1
    if others > 1 and seeds > 1:  # as `_Apart` where the noise is even after all
        df = _welch((1 + 1 / others, seeds - 1), (1 - 1 / others, (others - 1) * (seeds - 1)))
    return math.sqrt(2.0 / seeds), df


def smallest_effect(design: Design, seeds: int, noise: float) -> float | None:
    """The effect that would be shown with 80 % probability, in the unit of `noise`; None without df.

    From the noncentral t distribution, at 5 % shared out over the design's effects: what Holm's correction asks of an
    effect that is the only one.
    """
    factor, df = error_factor(design, seeds)
    if df < 1:
        return None
    return noise * factor * _detectable(df, design.comparisons)


def _detectable(df: float, tests: int) -> float:
    """Effect / standard error at which a two-sided t test of 5 % / `tests` has 80 % power."""
    critical = float(stats.t.isf((1 - CONFIDENCE) / 2 / tests, df))

    def lacking(effect: float) -> float:
        # The far tail is left out: it adds less than 1e-6 at any effect with 80 % power.
        return float(stats.nct.sf(critical, df, effect)) - POWER

    return float(optimize.brentq(lacking, 0.1, 3.0 * critical))


def seeds_for(design: Design, effect: float, noise: float) -> int | None:
    """The fewest seeds with which this effect would be shown with 80 % probability; None beyond `MOST_SEEDS`."""
    for seeds in range(2, MOST_SEEDS + 1):
        smallest = smallest_effect(design, seeds, noise)
        if smallest is not None and smallest <= effect:
            return seeds
    return None


def seeds_within(design: Design, within: float, noise: float) -> int | None:
    """The fewest seeds with which the interval of no effect lies inside +-`within` in about 80 % of studies.

    The interval's half width and the estimate's own scatter (1.28 standard errors cover it in 80 %) must fit in.
    """
    scatter = float(stats.norm.isf((1 - POWER) / 2))
    for seeds in range(2, MOST_SEEDS + 1):
        factor, df = error_factor(design, seeds)
        if df >= 1 and _half(noise * factor, df) + scatter * noise * factor <= within:
            return seeds
    return None


def wording(effect: Effect, seeds: int, runs: int | None = None) -> str:
    """One honest sentence on an effect in a study of so many seeds; names what gave no number where some did not.

    Args:
        runs: of the whole study, all of which inform a main effect.

    >>> wording(Effect("mixing", "test.accuracy", "main", 0.1, -0.4, 0.6, .7, .9, .2, 4, 3), 3)
    'mixing: no difference could be shown with 3 seeds (interval -0.4 to +0.6)'
    """
    shown = metric(effect.metric)
    size = amount(effect.estimate, effect)
    if math.isnan(effect.estimate):
        return f"{effect.name}: nothing can be said, too few of its runs finished"
    paired = f"{effect.pairs} of " if effect.kind == "difference" and effect.pairs != seeds else ""
    with_seeds = f"{paired}{seeds} seed{'s' if seeds != 1 else ''}"
    if effect.kind != "difference" and runs is not None and effect.pairs != runs:
        with_seeds = f"{effect.pairs} of {runs} runs"
    if math.isnan(effect.low):
        return f"{effect.name}: {size}, without an interval ({with_seeds}); nothing can be concluded"
    span = f"interval {interval(effect)}"
    if effect.shown:
        good = (effect.estimate > effect.neutral) == (shown.better > 0)
        verb = "differs" if not shown.better else "helps" if good else "hurts"
        return f"{effect.name}: {verb}, {size} ({span}, {with_seeds})"
    if effect.low > effect.neutral or effect.high < effect.neutral:
        return (
            f"{effect.name}: {size} ({span}, {with_seeds}), not certain once the number of comparisons is "
            f"corrected for (Holm p = {effect.p_holm:.2f})"
        )
    return f"{effect.name}: no difference could be shown with {with_seeds} ({span})"


def amount(value: float, effect: Effect, *, unit: bool = True) -> str:
    """A number of an effect as text: `+0.8 points`, `x 0.62`, `+0.012`; decimals as its error leaves them meaning."""
    if math.isnan(value):
        return "-"
    shown = metric(effect.metric)
    if effect.ratio:
        return f"x {value:.2f}"
    digits = (1 if abs(value) >= 0.095 else 2) if shown.scale == 100.0 else decimals(effect.standard_error)
    return f"{value:+.{digits}f}{f' {shown.unit}' if unit and shown.unit else ''}"


def interval(effect: Effect) -> str:
    """The ends of an effect's interval as text: `-0.4 to +0.6`, or `no interval`."""
    if math.isnan(effect.low):
        return "no interval"
    return f"{amount(effect.low, effect, unit=False)} to {amount(effect.high, effect, unit=False)}"


Verdict = Literal["confirmed", "not shown", "refuted"]


def judge(
    effect: Effect, between: tuple[float | None, float | None] | None, within: float | None
) -> tuple[Verdict, str]:
    """Whether a measured effect bears out a claimed one.

    confirmed   between: an effect in the claimed direction is shown, and its interval reaches the claimed size;
                within: the whole interval lies inside.
    refuted     the whole interval lies short of the claimed size (between), or outside (within).
    not shown   anything else: the runs do not decide.

    Returns:
        The verdict, and a remark such as `smaller than claimed`.
    """
    if math.isnan(effect.low):
        return "not shown", "no interval"
    none = effect.neutral
    if within is not None:
        if none - within <= effect.low and effect.high <= none + within:
            return "confirmed", ""
        if effect.low > none + within or effect.high < none - within:
            return "refuted", "a larger difference"
        return "not shown", "the interval is wider than the claim"
    assert between is not None
    low, high = between
    up = (low if low is not None else none) >= none and (high is None or high > none)
    # Seen in the claimed direction: `least` is the claimed minimum, `most` its maximum.
    least, most = (low, high) if up else (high, low)
    reach, short = (effect.high, effect.low) if up else (effect.low, effect.high)
    least = none if least is None else least

    def beyond(a: float, b: float) -> bool:
        return a >= b if up else a <= b

    if not beyond(reach, least):
        opposite = effect.shown and not beyond(effect.estimate, none)
        shown = effect.shown and beyond(effect.estimate, none)
        return "refuted", "the opposite" if opposite else "smaller than claimed" if shown else "not of that size"
    if effect.shown and beyond(effect.estimate, none):
        if most is not None and beyond(short, most) and short != most:
            return "confirmed", "larger than claimed"
        if not beyond(effect.estimate, least):
            return "confirmed", "at the low end"
        return "confirmed", ""
    clear = effect.low > none or effect.high < none
    return "not shown", "not certain after Holm's correction" if clear and not effect.shown else ""
