"""Studies as text for a terminal: tables of variants, effects, claims, aliases and runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.cells import cell_len, set_cell_size

from kitae.console import decimals, plural
from kitae.experiments.design import Design
from kitae.reporting.effects import Effect, aliased, amount, interval, measured, metric
from kitae.reporting.values import probability

Table = tuple[list[str], list[list[str]]]
"""A head and its rows."""


def text(parts: Sequence[str | Table]) -> str:
    """Lines and tables as text, the columns of a table aligned."""
    return "\n".join(part if isinstance(part, str) else columns(*part) for part in parts)


def variants_table(variants: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> Table:
    """Mean and standard deviation of each variant; `variants` as in effects.json."""
    units = [f"{name} [{metric(name).unit}]" if metric(name).unit not in ("", "points") else name for name in metrics]
    rows = [
        [variant["name"], str(variant["runs"]), *(_mean(variant["numbers"][name], name) for name in metrics)]
        for variant in variants
    ]
    return ["variant", "n", *units], rows


def _mean(numbers: Mapping[str, float | None], name: str) -> str:
    mean, sd = numbers["mean"], numbers["sd"]
    if mean is None:
        return "-"
    if metric(name).scale == 100.0:
        digits = 2
    else:  # as the scatter supports, or without one as the size of the mean does
        digits = decimals(math.nan if sd is None else sd, otherwise=0 if mean >= 100 else 2 if mean >= 1 else 3)
    return f"{mean:.{digits}f}" + (f" +-{sd:.{digits}f}" if sd is not None else "")


def effects_table(effects: Sequence[Effect]) -> Table:
    """Effects as columns: estimate, interval, p after Holm, n."""
    rows = []
    for effect in effects:
        p = "-" if math.isnan(effect.p_holm) else probability(effect.p_holm)
        name = effect.name + "*" * effect.uneven
        rows.append([name, amount(effect.estimate, effect), interval(effect), p, str(effect.pairs)])
    return ["effect", "estimate", "95 % interval", "p", "n"], rows


def claims_table(claims: Sequence[tuple[Mapping[str, Any], Effect | None]]) -> Table:
    """Claims, as in effects.json, beside the measured effects."""
    rows = [
        [row["says"], measured(effect), row["verdict"] + (f" ({row['remark']})" if row["remark"] else "")]
        for row, effect in claims
    ]
    return ["claim", "measured", "verdict"], rows


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
        parts = aliased((a, b, c) for (a, b), c in row.items())
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
