"""Studies in words: numbers, sentences and tables for a terminal, a figure or a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.cells import cell_len, set_cell_size

from kitae.console import decimals, plural
from kitae.experiments.design import Design
from kitae.experiments.outcome import metric
from kitae.experiments.stats import Analysis, Effect


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
    if math.isnan(effect.low):
        return "no interval"
    return f"{amount(effect.low, effect, unit=False)} to {amount(effect.high, effect, unit=False)}"


def measured(effect: Effect | None) -> str:
    """An effect with its interval: `+0.8 points (+0.3 to +1.3)`; a `-` if there is none."""
    return "-" if effect is None else f"{amount(effect.estimate, effect)} ({interval(effect)})"


def sentence(effect: Effect, seeds: int, runs: int | None = None) -> str:
    """One sentence about an effect, which says no more than its interval does.

    Args:
        seeds: of the study.
        runs: of the whole study, all of which inform a main effect. Runs or pairs without a number are counted.

    >>> sentence(Effect("mixing", "test.accuracy", "main", 0.1, -0.4, 0.6, .7, .9, .2, 4, 3), 3)
    'mixing: no difference could be shown with 3 seeds (interval -0.4 to +0.6)'
    """
    size = amount(effect.estimate, effect)
    if math.isnan(effect.estimate):
        return f"{effect.name}: nothing can be said, too few of its runs finished"
    paired = f"{effect.pairs} of " if effect.kind == "difference" and effect.pairs != seeds else ""
    with_seeds = f"{paired}{plural(seeds, 'seed')}"
    if effect.kind != "difference" and runs is not None and effect.pairs != runs:
        with_seeds = f"{effect.pairs} of {runs} runs"
    if math.isnan(effect.low):
        return f"{effect.name}: {size}, without an interval ({with_seeds}); nothing can be concluded"
    span = f"interval {interval(effect)}"
    if effect.shown:
        better = metric(effect.metric).better
        good = (effect.estimate > effect.neutral) == (better > 0)
        verb = "differs" if not better else "helps" if good else "hurts"
        return f"{effect.name}: {verb}, {size} ({span}, {with_seeds})"
    if effect.low > effect.neutral or effect.high < effect.neutral:
        return (
            f"{effect.name}: {size} ({span}, {with_seeds}), not certain after correction for the number "
            f"of comparisons (Holm p = {effect.p_holm:.2f})"
        )
    return f"{effect.name}: no difference could be shown with {with_seeds} ({span})"


def variants_table(variants: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    """Mean and standard deviation of each variant; `variants` as in effects.json."""
    units = [f"{name} [{metric(name).unit}]" if metric(name).unit not in ("", "points") else name for name in metrics]
    rows = [
        [variant["name"], str(variant["runs"]), *(_mean(variant["numbers"][name], name) for name in metrics)]
        for variant in variants
    ]
    return columns(["variant", "n", *units], rows)


def _mean(numbers: Mapping[str, float | None], name: str) -> str:
    mean, sd = numbers["mean"], numbers["sd"]
    if mean is None:
        return "-"
    if metric(name).scale == 100.0:
        digits = 2
    else:  # as the scatter supports, or without one as the size of the mean does
        digits = decimals(math.nan if sd is None else sd, otherwise=0 if mean >= 100 else 2 if mean >= 1 else 3)
    return f"{mean:.{digits}f}" + (f" +-{sd:.{digits}f}" if sd is not None else "")


def effects_table(effects: Sequence[Effect]) -> str:
    """Effects as columns: estimate, interval, p after Holm, n."""
    rows = []
    for effect in effects:
        p = "-" if math.isnan(effect.p_holm) else f"{effect.p_holm:.3f}" if effect.p_holm >= 0.001 else "<0.001"
        name = effect.name + "*" * effect.uneven
        rows.append([name, amount(effect.estimate, effect), interval(effect), p, str(effect.pairs)])
    return columns(["effect", "estimate", "95 % interval", "p", "n"], rows)


def claims_table(claims: Sequence[tuple[Mapping[str, Any], Effect | None]]) -> str:
    """Claims, as in effects.json, beside the measured effects."""
    rows = [
        [row["says"], measured(effect), row["verdict"] + (f" ({row['remark']})" if row["remark"] else "")]
        for row, effect in claims
    ]
    return columns(["claim", "measured", "verdict"], rows)


def noise_line(analysis: Analysis) -> str:
    """How much a single run scatters; two runs that differ only in the seed are about 1.4 times as far apart."""
    noise, shown = analysis.noise, analysis.metric
    if not noise.df:
        return "noise: not known; more seeds are needed"
    ratio = any(effect.ratio for effect in analysis.effects)  # then the noise is relative
    unit = " %" if ratio else f" {shown.unit}" if shown.unit else ""
    scale = 100.0 if ratio else 1.0
    digits = 2 if ratio or shown.scale == 100.0 else decimals(noise.sd, otherwise=2)
    own = "" if math.isnan(noise.reference_mean) else f"; {noise.reference}: {noise.reference_mean:.{digits}f}"
    if own and not math.isnan(noise.reference_sd):
        own += f" +-{noise.reference_sd:.{digits}f} over seeds"
    how = "" if noise.source == "replicates" else ", from the residual of the fit (one seed)"
    return (
        f"noise between runs: {noise.sd * scale:.{digits}f}{unit} "
        f"({noise.low * scale:.{digits}f} to {noise.high * scale:.{digits}f}, "
        f"{noise.df} degrees of freedom{how}){own}"
    )


def metric_line(name: str, effects: Sequence[Effect]) -> str:
    """The effects on a further metric that are shown, on one line."""
    shown = [f"{effect.name} {measured(effect)}" for effect in effects if effect.shown]
    return f"{name}: {', '.join(shown) or 'no difference shown'}"


def aliases_text(design: Design) -> str:
    """The alias table of a screening design."""
    if not any(design.aliases.values()):
        return "Aliases: main effects are clear of two-factor interactions."
    lines = ["Aliases (each effect also contains these parts of two-factor interactions, if there are any):"]
    for name, row in design.aliases.items():
        parts = [
            f"{'-' if c < 0 else '+'}{'' if abs(c) == 1 else f'{abs(c):.2g} '}{a} x {b}" for (a, b), c in row.items()
        ]
        shown = ", ".join(parts[:6]) + (f", and {len(parts) - 6} more" if len(parts) > 6 else "")
        lines.append(f"  {name}: {shown or 'clear'}")
    return "\n".join(lines)


def runs_lines(runs: pd.DataFrame, heading: str) -> list[str]:
    """Runs with their status and error, below a heading; nothing if there are none."""
    if not len(runs):
        return []
    lines = ["", f"{plural(len(runs), 'run')} {heading}"]
    for row in runs.to_dict("records"):
        why = [text for name in ("status", "error") if isinstance(text := row.get(name), str) and text]
        lines.append(": ".join([f"  {row['variant']}, seed {row['seed']}", *why]))
    return lines


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned text, left-justified. Wide characters count as two."""
    table = [header, *rows]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(set_cell_size, row, widths)).rstrip() for row in table]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
