"""Designs: how variants or factors become runs, and which differences are its effects.

    design      variants                                     effect of X
    compare     the named ones                               variant - reference
    sweep       one for each level                           level - first level
    one_out     all on; all on but one, for each factor      all on - all on without X
    one_in      all off; one on, for each factor             X alone - all off
    factorial   every combination of levels                  mean over the others of (level - first level)
    screening   a Plackett-Burman fraction of the two-level  the same mean, estimated from a fraction of the runs
                factorial

`one_out`, `one_in` and the last two answer different questions: what X adds to everything else, what X does alone, and
what X does on average over the presence and absence of the others. If techniques interact, the three differ.

Screening (Plackett and Burman, "The design of optimum multifactorial experiments", Biometrika 33, 1946): k factors in N
runs, N the next multiple of four above k, columns of a Hadamard matrix, so that every run contributes to every effect.
The price is aliasing: each effect is measured together with parts of other factors' two-factor interactions (see the
alias table). `foldover` adds the mirrored runs, which removes them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae.errors import RecipeError
from kitae.experiments.study_spec import MAX_RUNS, DesignName, StudySpec

MAX_SCREENING_FACTORS = 47
_COLUMN_CHOICES = 500  # the most choices of columns that are searched for the least aliasing


@dataclass(frozen=True)
class Variant:
    """One setting of the study, run once for each seed.

    Attributes:
        name: unique in the study.
        overrides: field -> value, over the base recipe.
        levels: factor -> index of its level; empty for `compare`.
    """

    name: str
    overrides: Mapping[str, Any]
    levels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Contrast:
    """An effect that is the difference of two variants: `plus` minus `minus`."""

    name: str
    plus: str
    minus: str


@dataclass(frozen=True)
class Design:
    """What to run and what to estimate.

    Attributes:
        variants: in running order; names are unique.
        reference: the variant whose noise is shown beside the effects.
        contrasts: the effects of compare, sweep, one_out and one_in; empty for factorial and screening, whose effects
            are regression coefficients over `factors`.
        factors: factor -> names of its levels.
        aliases: for screening: factor -> {pair of other factors: coefficient}, see `alias_table`.
    """

    kind: DesignName
    variants: tuple[Variant, ...]
    reference: str
    contrasts: tuple[Contrast, ...] = ()
    factors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    aliases: Mapping[str, Mapping[tuple[str, str], float]] = field(default_factory=dict)

    @property
    def regression(self) -> bool:
        """Effects are averages over the other factors, estimated by least squares."""
        return self.kind in ("factorial", "screening")

    def main_effects(self, factor: str) -> tuple[str, ...]:
        """The names of the effects of a factor's levels after the first."""
        labels = self.factors[factor]
        return (factor,) if len(labels) == 2 else tuple(f"{factor}={label}" for label in labels[1:])

    @property
    def compared(self) -> tuple[Hashable, ...]:
        """What each effect compares: equal for a pair that is compared twice, under two names or in reverse."""
        return self.effects if self.regression else tuple(frozenset((c.plus, c.minus)) for c in self.contrasts)

    @property
    def effects(self) -> tuple[str, ...]:
        """The names of all effects, in the order in which `stats.analyse` gives them."""
        if not self.regression:
            return tuple(contrast.name for contrast in self.contrasts)
        names = [name for factor in self.factors for name in self.main_effects(factor)]
        if self.kind == "factorial":
            for a, b in itertools.combinations(self.factors, 2):
                pairs = itertools.product(self.main_effects(a), self.main_effects(b))
                names += [f"{first} x {second}" for first, second in pairs]
        return tuple(names)


def expand(spec: StudySpec) -> Design:
    """The design of a study.

    Raises:
        RecipeError: more than MAX_RUNS runs, or names that clash.
    """
    labels = {factor: _labels(spec, factor) for factor in spec.factors}
    if spec.design == "compare":
        variants = tuple(Variant(name, fields) for name, fields in spec.variants.items())
    else:
        variants = tuple(Variant(name, _at(spec, levels), levels) for name, levels in _rows(spec, labels))
    names = [variant.name for variant in variants]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RecipeError(f"{spec.name}: two variants are called {twice!r}; rename one")
    if len(names) * len(spec.seeds) > MAX_RUNS:
        raise RecipeError(
            f"{spec.name}: {len(names)} variants x {len(spec.seeds)} seeds are more than {MAX_RUNS} runs; "
            "design: screening needs far fewer"
        )
    reference = spec.reference or names[0]
    others = [name for name in names if name != reference]
    contrasts: tuple[Contrast, ...] = ()
    aliases: dict[str, dict[tuple[str, str], float]] = {}
    if spec.design in ("compare", "sweep"):
        contrasts = tuple(Contrast(name, name, reference) for name in others)
    elif spec.design == "one_out":
        contrasts = tuple(Contrast(factor, reference, without) for factor, without in zip(labels, others, strict=True))
    elif spec.design == "one_in":
        contrasts = tuple(Contrast(factor, only, reference) for factor, only in zip(labels, others, strict=True))
    elif spec.design == "screening":
        signs = [[2 * level - 1 for level in variant.levels.values()] for variant in variants]
        aliases = alias_table(np.array(signs, dtype=np.int8), tuple(labels))
    for contrast, pair in spec.contrasts.items():
        for name in pair:
            if name not in names:
                raise RecipeError(f"contrasts.{contrast}: {name!r} is not a variant; valid: {', '.join(names)}")
        if contrast in names or contrast in labels:
            raise RecipeError(f"contrasts.{contrast}: is already the name of an effect")
        if pair[0] == pair[1]:
            raise RecipeError(f"contrasts.{contrast}: compares {pair[0]!r} with itself")
        contrasts += (Contrast(contrast, *pair),)
    design = Design(spec.design, variants, reference, contrasts, labels, aliases)
    for claim, stated in spec.claims.items():
        if stated.effect not in design.effects:
            raise RecipeError(f"claims.{claim}.effect: unknown {stated.effect!r}; valid: {', '.join(design.effects)}")
    return design


def _rows(spec: StudySpec, labels: Mapping[str, tuple[str, ...]]) -> list[tuple[str, dict[str, int]]]:
    """Each variant of a design of factors: its name, and factor -> index of its level."""
    if spec.design == "sweep":
        ((factor, values),) = labels.items()
        return [(f"{factor}={label}", {factor: level}) for level, label in enumerate(values)]
    if spec.design in ("one_out", "one_in"):
        # All on, and each off; or all off, and each on.
        base, word, start = ("all", "without", 1) if spec.design == "one_out" else ("none", "only", 0)
        levels = dict.fromkeys(labels, start)
        return [(base, levels), *((f"{word} {factor}", {**levels, factor: 1 - start}) for factor in labels)]
    if spec.design == "factorial":
        count = math.prod(len(values) for values in labels.values())
        if count > MAX_RUNS:
            raise RecipeError(f"{spec.name}: {count} combinations; design: screening needs far fewer runs")
        table = list(itertools.product(*(range(len(values)) for values in labels.values())))
    else:
        if len(labels) > MAX_SCREENING_FACTORS:
            raise RecipeError(
                f"factors: screening takes at most {MAX_SCREENING_FACTORS}, {len(labels)} given; remove some"
            )
        table = (plackett_burman(len(labels), foldover=spec.foldover) > 0).astype(int).tolist()
    rows = [dict(zip(labels, row, strict=True)) for row in table]
    return [(_combination(labels, row), row) for row in rows]


def _at(spec: StudySpec, levels: Mapping[str, int]) -> dict[str, Any]:
    """Overrides of a combination of levels."""
    return {f: values[level] for factor, level in levels.items() for f, values in spec.factors[factor].items()}


def _labels(spec: StudySpec, factor: str) -> tuple[str, ...]:
    """The names of a factor's levels: their values if those are short, else off/on or numbers."""
    values = next(iter(spec.factors[factor].values()))
    if spec.design in ("one_out", "one_in", "screening"):
        return ("off", "on")
    texts = [_short(value) for value in values]
    if all(texts) and len(set(texts)) == len(texts):
        return tuple(str(text) for text in texts)
    return ("off", "on") if len(values) == 2 else tuple(str(number) for number in range(len(values)))


def _short(value: Any) -> str | None:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    return str(value) if isinstance(value, int | float | str) and len(str(value)) <= 24 else None


def _combination(labels: Mapping[str, tuple[str, ...]], levels: Mapping[str, int]) -> str:
    """`mixing + smoothing` if factors are switches, else `limit=1000, augment=on`."""
    if all(names == ("off", "on") for names in labels.values()):
        return " + ".join(factor for factor, level in levels.items() if level) or "none"
    return ", ".join(f"{factor}={labels[factor][level]}" for factor, level in levels.items())


def plackett_burman(factors: int, *, foldover: bool = False) -> NDArray[np.int8]:
    """A two-level screening design: int8 [N, factors] of -1 (off) and +1 (on).

    N is the next multiple of four above `factors`; twice that with `foldover`. The first row is all off, columns are
    balanced and orthogonal. If there is a choice of columns, it is the one with the least aliasing between main effects
    and two-factor interactions (four factors in eight runs have none, and are their own mirror image, so folding adds
    nothing to them).
    """
    runs = 4 * (factors // 4 + 1)
    matrix = hadamard(runs)
    matrix = matrix * matrix[:, :1]  # first column all +1: the mean, not a factor
    columns = -matrix[:, 1:] * matrix[:1, 1:]  # first row all -1: the run with everything off
    if math.comb(runs - 1, factors) <= _COLUMN_CHOICES:
        choices = itertools.combinations(range(runs - 1), factors)
        chosen = list(min(choices, key=lambda choice: _aliasing(columns[:, list(choice)])))
    else:
        chosen = list(range(factors))
    design = columns[:, chosen]
    return np.concatenate([design, -design]) if foldover and _aliasing(design) else design


def _aliasing(design: NDArray[np.int8]) -> float:
    """Sum of squared correlations between main effects and two-factor interactions."""
    # Rounded, so that the first of equally good choices wins regardless of the last bit of a sum.
    return round(float((_correlations(design) ** 2).sum()), 6)


def _correlations(design: NDArray[np.int8]) -> NDArray[np.float64]:
    """Of each main effect with each two-factor interaction: float64 [factors, pairs]; pairs as in `combinations`."""
    x = design.astype(np.float64)
    first, second = np.triu_indices(x.shape[1], k=1)
    return x.T @ (x[:, first] * x[:, second]) / len(x)


def alias_table(design: NDArray[np.int8], names: tuple[str, ...]) -> dict[str, dict[tuple[str, str], float]]:
    """What each main effect of a balanced design is confounded with: factor -> {(a, b): coefficient}.

    The effect estimated for a factor is its own plus the sum of coefficient x interaction of a and b, where the
    interaction is half the difference between a's effect with b on and with b off. Coefficients of 0 are omitted.
    """
    pairs = list(itertools.combinations(names, 2))
    table: dict[str, dict[tuple[str, str], float]] = {}
    for name, row in zip(names, _correlations(design), strict=True):
        table[name] = {pair: round(float(c), 6) for pair, c in zip(pairs, row, strict=True) if abs(c) > 1e-9}
    return table


def hadamard(order: int) -> NDArray[np.int8]:
    """A Hadamard matrix: int8 [order, order] of -1 and +1 with orthogonal rows, for 2 and multiples of four up to 48.

    By Sylvester's doubling and Paley's two constructions ("On orthogonal matrices", J. Math. Phys. 12, 1933) over
    prime fields.
    """
    if order == 2:
        return np.array([[1, 1], [1, -1]], dtype=np.int8)
    q = order - 1
    if _is_prime(q) and q % 4 == 3:  # Paley I
        skew = np.zeros((order, order), dtype=np.int8)
        skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _jacobsthal(q)
        return skew + np.eye(order, dtype=np.int8)
    q = order // 2 - 1
    if _is_prime(q) and q % 4 == 1:  # Paley II
        conference = np.zeros((q + 1, q + 1), dtype=np.int8)
        conference[0, 1:], conference[1:, 0], conference[1:, 1:] = 1, 1, _jacobsthal(q)
        minus = np.array([[1, -1], [-1, -1]], dtype=np.int8)
        return np.kron(conference, hadamard(2)) + np.kron(np.eye(q + 1, dtype=np.int8), minus)
    return np.kron(hadamard(2), hadamard(order // 2)).astype(np.int8)


def _jacobsthal(q: int) -> NDArray[np.int8]:
    """Q[i, j] = 1 if j - i is a square modulo the prime q, -1 if not, 0 on the diagonal."""
    squares = {i * i % q for i in range(1, q)}
    first = [0, *(1 if j in squares else -1 for j in range(1, q))]
    return np.array([np.roll(first, i) for i in range(q)], dtype=np.int8)


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
