"""The effects of a study on one metric: their numbers, as computed and as in effects.json, and their words.

The terminal, effects.json and the pages use the same words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, computed_field

from kitae.console import decimals, plural
from kitae.reporting.results import Record

CONFIDENCE = 0.95
_POINTS = ("accuracy", "top5", "macro_f1", "ece", "gap", "sparsity")
_LOWER_IS_BETTER = ("loss", "ece", "brier", "gap", "seconds", "bytes", "parameters")
_HIGHER_IS_BETTER = ("accuracy", "top5", "precision", "recall", "f1", "per_second")

Known = Annotated[float, BeforeValidator(lambda value: math.nan if value in (None, math.inf, -math.inf) else value)]
"""A number that is NaN where it is not known, which JSON writes as null."""


@dataclass(frozen=True)
class Metric:
    """How a number is shown.

    Attributes:
        scale: shown value / stored value (accuracies are stored as proportions and shown as points, 0 to 100).
        unit: after the number.
        better: +1 if more is better, -1 if less is, 0 if neither is known to be.
        ratio: compared as variant / reference, since a difference of seconds says little about other machines.
    """

    scale: float
    unit: str
    better: int
    ratio: bool


def metric(name: str) -> Metric:
    """How the number called `name` is shown and compared; `experiments.outcome` lists the names."""
    last = f"_{name.rpartition('.')[2]}_"  # so that whole words are found: there is no ece in pieces
    points, lower, higher = (
        any(f"_{word}_" in last for word in words) for words in (_POINTS, _LOWER_IS_BETTER, _HIGHER_IS_BETTER)
    )
    better = -1 if lower and not higher else 1 if higher and not lower else 0
    if points:
        return Metric(100.0, "points", better, False)
    if last.endswith("_bytes_"):
        return Metric(1.0 / 2**20, "MiB", better, True)
    if last.endswith("_per_second_"):
        return Metric(1.0, "images/s", 1, True)
    if "_seconds_" in last:
        return Metric(1.0, "s", -1, True)
    return Metric(1.0, "", better, False)


class Effect(Record):
    """One estimated effect, in the metric's shown unit (points for accuracies), or a factor if `ratio`.

    Attributes:
        name: of the variant, factor (`factor=level` beyond two levels), interaction (`a x b`) or contrast.
        kind: `difference` of two variants, `main` effect, or `interaction` (of two factors at two levels: half the
            difference between the effect of one with the other on and off).
        estimate: NaN if the finished runs do not determine it.
        low, high: 95 % interval; NaN without degrees of freedom.
        p, p_holm: p-values of no effect, before and after Holm's correction over the metric's effects.
        standard_error: of the estimate (of its logarithm if `ratio`).
        df: degrees of freedom of the noise.
        pairs: seeds in which both variants finished; for main effects, the runs that informed it.
        ratio: the effect is a factor, and 1 means none.
        uneven: one of the two variants scatters more than the others, so the interval is from their pairs alone.
    """

    name: str
    metric: str
    kind: Literal["difference", "main", "interaction"] = "difference"
    estimate: Known = math.nan
    low: Known = math.nan
    high: Known = math.nan
    p: Known = math.nan
    p_holm: Known = math.nan
    standard_error: Known = math.nan
    df: int | float = 0
    pairs: int = 0
    ratio: bool = False
    covers: Literal["seeds", "seeds and test images", "seeds and groups of test images"] = "seeds"
    uneven: bool = False

    @computed_field  # type: ignore[prop-decorator]
    @property
    def shown(self) -> bool:
        """Whether an effect is shown after Holm's correction."""
        return self.p_holm < 1 - CONFIDENCE

    @computed_field  # type: ignore[prop-decorator]
    @property
    def neutral(self) -> float:
        """The value of no effect."""
        return 1.0 if self.ratio else 0.0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def text(self) -> dict[str, str]:
        """The estimate and the interval in words."""
        return {"estimate": amount(self.estimate, self), "interval": interval(self)}

    @property
    def known(self) -> bool:
        """Whether there is an estimate."""
        return not math.isnan(self.estimate)

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)

    @property
    def better(self) -> int:
        """As in `Metric`; 0 for an interaction: techniques that bring less together than one by one may both help."""
        return 0 if self.kind == "interaction" else metric(self.metric).better

    @property
    def helps(self) -> bool:
        """Whether it is an improvement; false if it has no known direction."""
        return (self.estimate - self.neutral) * self.better > 0

    @property
    def size(self) -> float:
        """How far it is from no effect: in either direction, and on a logarithmic scale for a factor."""
        value = self.estimate if self.known else 0.0
        if not self.ratio:
            return abs(value)
        return abs(math.log(value)) if value > 0 else math.inf


class Noise(Record):
    """Standard deviation between runs that differ only in the seed, once seeds are paired.

    Attributes:
        sd, low, high: pooled over variants, with its 95 % interval (chi-square); in the metric's unit, or relative
            (0.02 is 2 %) if the metric is compared as a ratio. NaN if it could not be estimated.
        df: its degrees of freedom; 0 if it could not be estimated.
        reference: name of the baseline.
        reference_mean, reference_sd: the baseline's own mean and standard deviation over seeds, in the metric's unit.
        source: `replicates`, or `left over` if a single seed left only the residual of the fit.
    """

    sd: Known = math.nan
    low: Known = math.nan
    high: Known = math.nan
    df: int = 0
    reference: str = ""
    reference_mean: Known = math.nan
    reference_sd: Known = math.nan
    source: Literal["replicates", "left over", "none"] = "replicates"


class Analysis(Record):
    """Effects on one metric, and the noise between its runs.

    Attributes:
        unit, better: of the metric; see `Metric`.
        runs: how many informed it.
    """

    unit: str = ""
    better: int = 0
    runs: int = 0
    noise: Noise = Noise()
    effects: tuple[Effect, ...] = ()

    def effect(self, name: str) -> Effect | None:
        """The effect of this name, or None if it was not measured."""
        return next((effect for effect in self.effects if effect.name == name), None)

    @property
    def ratio(self) -> bool:
        """Whether effects are factors, and the noise relative."""
        return any(effect.ratio for effect in self.effects)

    @property
    def ranked(self) -> list[Effect]:
        """Effects, the best first; what is not known last."""
        sign = self.better or 1
        return sorted(self.effects, key=lambda e: (not e.known, -sign * e.estimate if e.known else 0.0))

    @property
    def covers(self) -> str:
        """What the intervals cover."""
        return next((effect.covers for effect in self.effects if effect.bounded), "seeds")


# --------------------------------------------------------------------------------------------------------------- words


def amount(value: float, effect: Effect, *, unit: bool = True) -> str:
    """A number of an effect as text: `+0.8 points`, `x 0.62`, `+0.012`, with as many decimals as its error supports."""
    if math.isnan(value):
        return "-"
    shown = metric(effect.metric)
    if effect.ratio:
        return f"x {value:.2f}"
    digits = (1 if abs(value) >= 0.095 else 2) if shown.scale == 100.0 else decimals(effect.standard_error)
    return f"{value:+.{digits}f}{f' {shown.unit}' if unit and shown.unit else ''}"


def interval(effect: Effect) -> str:
    """The ends of an effect's interval as text: `-0.4 to +0.6`, or `no interval`."""
    if not effect.bounded:
        return "no interval"
    return f"{amount(effect.low, effect, unit=False)} to {amount(effect.high, effect, unit=False)}"


def measured(effect: Effect | None) -> str:
    """An effect with its interval: `+0.8 points (+0.3 to +1.3)`; a `-` if there is none."""
    return "-" if effect is None else f"{amount(effect.estimate, effect)} ({interval(effect)})"


def verdict(effect: Effect) -> str:
    """An effect as far as it is shown: `0.8 points better`, `x 0.62, better`, or `+0.6 points, not certain`."""
    if not effect.known:
        return "not known"
    size = amount(effect.estimate, effect)
    if not effect.bounded:
        return f"{size}, without an interval"
    if effect.shown:
        way = ("better" if effect.helps else "worse") if effect.better else ""
        if effect.ratio:
            return f"{size}, {way}" if way else size
        return f"{size.lstrip('+-')} {way or ('more' if effect.estimate > 0 else 'less')}"
    return "not shown" if effect.low <= effect.neutral <= effect.high else f"{size}, not certain"


def sentence(effect: Effect, seeds: int, runs: int | None = None) -> str:
    """One sentence about an effect, which says no more than its interval does.

    Args:
        seeds: of the study.
        runs: of the whole study, all of which inform a main effect. Runs or pairs without a number are counted.

    >>> mixing = Effect(name="mixing", metric="test.accuracy", estimate=0.1, low=-0.4, high=0.6, p_holm=0.9, pairs=3)
    >>> sentence(mixing, 3)
    'mixing: no difference could be shown with 3 seeds (interval -0.4 to +0.6)'
    """
    if not effect.known:
        return f"{effect.name}: nothing can be said, too few of its runs have a value of {effect.metric}"
    paired = f"{effect.pairs} of " if effect.kind == "difference" and effect.pairs != seeds else ""
    with_seeds = f"{paired}{plural(seeds, 'seed')}"
    if effect.kind != "difference" and runs is not None and effect.pairs != runs:
        with_seeds = f"{effect.pairs} of {runs} runs"
    span, said = f"interval {interval(effect)}", verdict(effect)
    if not effect.bounded:
        return f"{effect.name}: {said} ({with_seeds}); nothing can be concluded"
    if effect.shown:
        return f"{effect.name}: {said} ({span}, {with_seeds})"
    if said != "not shown":
        return (
            f"{effect.name}: {amount(effect.estimate, effect)} ({span}, {with_seeds}), not certain after correction "
            f"for the number of comparisons (Holm p = {effect.p_holm:.2f})"
        )
    return f"{effect.name}: no difference could be shown with {with_seeds} ({span})"


def noise_line(analysis: Analysis, labels: Mapping[str, str] | None = None) -> str:
    """How much a single run scatters; two runs that differ only in the seed are about 1.4 times as far apart.

    The reference is told by its label, if there are `labels` of variants, else by its name.
    """
    noise, ratio = analysis.noise, analysis.ratio
    if not noise.df:
        return "noise: not known; more seeds are needed"
    unit = " %" if ratio else f" {analysis.unit}" if analysis.unit else ""
    scale = 100.0 if ratio else 1.0
    digits = 2 if ratio or analysis.unit == "points" else decimals(noise.sd, otherwise=2)
    reference = (labels or {}).get(noise.reference, noise.reference)
    exact = decimals(noise.reference_sd, otherwise=2) if ratio else digits  # not relative, as the noise is
    own = "" if math.isnan(noise.reference_mean) else f"; {reference}: {noise.reference_mean:.{exact}f}"
    if own and not math.isnan(noise.reference_sd):
        own += f" +-{noise.reference_sd:.{exact}f} over seeds"
    how = "" if noise.source == "replicates" else ", from the residual of the fit (one seed)"
    return (
        f"noise between runs: {noise.sd * scale:.{digits}f}{unit} "
        f"({noise.low * scale:.{digits}f} to {noise.high * scale:.{digits}f}, "
        f"{noise.df} degrees of freedom{how}){own}"
    )


def aliased(parts: Iterable[tuple[str, str, float]], told: Callable[[str, str], str] = "{} x {}".format) -> list[str]:
    """The parts of interactions, each as `told`, that an effect also contains: `+a x b`, `-0.33 a x c`."""
    return [f"{'-' if c < 0 else '+'}{'' if abs(c) == 1 else f'{abs(c):.2g} '}{told(a, b)}" for a, b, c in parts]
