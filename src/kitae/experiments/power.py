"""What a study can show before it has run: the smallest effect for its seeds, and the seeds for an effect."""

from __future__ import annotations

import math

from scipy import optimize, stats

from kitae.experiments.design import Design
from kitae.experiments.stats import CONFIDENCE, half_interval, welch

POWER = 0.80
MOST_SEEDS = 100  # the most that a plan proposes
ASSUMED_NOISE = 0.5  # points: what a plan assumes if nothing is known; there is no guess for other units


def error_factor(design: Design, seeds: int) -> tuple[float, float]:
    """Standard error of a design's main effects for noise of 1, and degrees of freedom, if every run finishes."""
    count = len(design.variants)
    df: float = (count - 1) * (seeds - 1)
    if design.regression and seeds > 1 and count > 2:
        df /= 1 + 2 / (seeds - 1)  # as `stats._even_degrees` gives for even noise: own variances vary by chance
    if design.kind == "screening" or (design.regression and all(len(v) == 2 for v in design.factors.values())):
        if seeds == 1:  # the noise is estimated from the misfit
            interactions = math.comb(len(design.factors), 2) if design.kind == "factorial" else 0
            df = count - 1 - len(design.factors) - interactions
        return 2.0 / math.sqrt(count * seeds), max(df, 0)
    if design.regression:  # more than two levels: the rarest decides
        most = max(len(levels) for levels in design.factors.values())
        return math.sqrt(2.0 * most / (count * seeds)), df
    others = count - 1
    if others > 1 and seeds > 1:  # as `stats._SeparateReference` gives for even noise
        df = welch((1 + 1 / others, seeds - 1), (1 - 1 / others, (others - 1) * (seeds - 1)))
    return math.sqrt(2.0 / seeds), df


def smallest_effect(design: Design, seeds: int, noise: float) -> float | None:
    """The effect that would be shown with 80 % probability, in the unit of `noise`; None without df.

    From the noncentral t distribution, at 5 % divided by the number of the design's effects: what Holm's correction
    asks of an effect that is the only one.
    """
    factor, df = error_factor(design, seeds)
    if df < 1:
        return None
    critical = float(stats.t.isf((1 - CONFIDENCE) / 2 / design.comparisons, df))

    def lacking(effect: float) -> float:
        # The far tail is left out: it adds less than 1e-6 at any effect with 80 % power.
        return float(stats.nct.sf(critical, df, effect)) - POWER

    return noise * factor * float(optimize.brentq(lacking, 0.1, 3.0 * critical))


def seeds_for(design: Design, effect: float, noise: float) -> int | None:
    """The fewest seeds with which this effect would be shown with 80 % probability; None beyond `MOST_SEEDS`."""
    for seeds in range(2, MOST_SEEDS + 1):
        smallest = smallest_effect(design, seeds, noise)
        if smallest is not None and smallest <= effect:
            return seeds
    return None


def seeds_within(design: Design, within: float, noise: float) -> int | None:
    """The fewest seeds with which the interval of no effect is inside +-`within` in about 80 % of studies.

    The interval's half width and the estimate's own scatter (1.28 standard errors cover it in 80 %) must fit in.
    """
    scatter = float(stats.norm.isf((1 - POWER) / 2))
    for seeds in range(2, MOST_SEEDS + 1):
        factor, df = error_factor(design, seeds)
        if df >= 1 and half_interval(noise * factor, df) + scatter * noise * factor <= within:
            return seeds
    return None
