"""Studies as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len

from kitae.console import decimals
from kitae.experiments.outcome import metric
from kitae.experiments.stats import Effect, Noise, amount, interval

if TYPE_CHECKING:
    from kitae.experiments.design import Design
    from kitae.experiments.run import StudyResult


def result_text(result: StudyResult) -> str:
    """Variants, effects, noise, sentences, claims, and the runs that failed."""
    spec, analyses = result.spec, result.analyses
    main = analyses[spec.metric]
    finished = int((result.runs["status"] == "done").sum())
    covers = next((effect.covers for effect in main.effects if not math.isnan(effect.low)), "seeds")
    unit = f" in {main.metric.unit}" if main.metric.unit else ""
    parts = [
        f"{spec.name}: {spec.design}, {len(result.design.variants)} variants x {len(spec.seeds)} seeds, "
        f"{finished} of {len(result.runs)} runs finished",
        f"{spec.metric}{unit}; 95 % intervals, covering {covers}; "
        f"p after Holm over {result.design.comparisons} effects",
        "",
        _variants_text(result),
        "",
        effects_text(main.effects),
        noise_text(main.noise, spec.metric),
    ]
    if result.design.aliases:
        parts += ["", alias_text(result.design)]
    parts += ["", *result.sentences]
    if any(effect.uneven for effect in main.effects):
        parts.append(
            "* it, or what it is compared with, scatters more than the others, so its interval is from its pairs alone"
        )
    others = [analysis for name, analysis in analyses.items() if name != spec.metric]
    for analysis in others:
        told = [effect for effect in analysis.effects if effect.shown]
        if told:
            words = ", ".join(f"{e.name} {amount(e.estimate, e)} ({interval(e)})" for e in told)
            parts.append(f"{analysis.metric.name}: {words}")
        else:
            parts.append(f"{analysis.metric.name}: no difference shown")
    if result.claims:
        parts += ["", claims_text(result)]
    if len(result.failed):
        parts += ["", f"{len(result.failed)} runs did not finish and are in no number above:"]
        parts += [
            f"  {row['variant']}, seed {row['seed']}: {row['status']}{': ' + row['error'] if row['error'] else ''}"
            for row in result.failed.to_dict("records")
        ]
    if len(result.numberless):
        which = [f"{row['variant']}, seed {row['seed']}" for row in result.numberless.to_dict("records")]
        parts += ["", f"{len(which)} runs finished without a finite {spec.metric}, so its effects are of the others:"]
        parts += [f"  {run}" for run in which]
    return "\n".join(parts)


def _variants_text(result: StudyResult) -> str:
    names = list(result.analyses)
    rows = []
    for variant in result.data()["variants"]:
        row = [variant["name"], str(variant["runs"])]
        row += [_mean(variant["numbers"][name]["mean"], variant["numbers"][name]["sd"], name) for name in names]
        rows.append(row)
    units = [f"{name} [{metric(name).unit}]" if metric(name).unit not in ("", "points") else name for name in names]
    return columns(["variant", "n", *units], rows)


def _mean(mean: float | None, sd: float | None, name: str) -> str:
    if mean is None:
        return "-"
    if metric(name).scale == 100.0:
        digits = 2
    else:  # as many as the scatter leaves meaning, and without one as many as the mean is worth
        digits = decimals(math.nan if sd is None else sd, otherwise=0 if mean >= 100 else 2 if mean >= 1 else 3)
    return f"{mean:.{digits}f}" + (f" +-{sd:.{digits}f}" if sd is not None and not math.isnan(sd) else "")


def effects_text(effects: Sequence[Effect]) -> str:
    """Effects as columns: estimate, interval, p after Holm, n."""
    rows = []
    for effect in effects:
        p = "-" if math.isnan(effect.p_holm) else f"{effect.p_holm:.3f}" if effect.p_holm >= 0.001 else "<0.001"
        mark = "*" if effect.uneven else ""
        rows.append([effect.name + mark, amount(effect.estimate, effect), interval(effect), p, str(effect.pairs)])
    return columns(["effect", "estimate", "95 % interval", "p", "n"], rows)


def noise_text(noise: Noise, name: str) -> str:
    """How much one run scatters; two that differ in nothing but the seed lie about 1.4 times as far apart."""
    shown = metric(name)
    unit = f" {shown.unit}" if shown.unit and not shown.ratio else ""
    scale = 100.0 if shown.ratio else 1.0
    unit = " %" if shown.ratio else unit
    if not noise.df:
        return "noise: not known; more seeds are needed"
    digits = 2 if shown.ratio or shown.scale == 100.0 else decimals(noise.sd, otherwise=2)
    own = "" if math.isnan(noise.reference_mean) else f"; {noise.reference}: {noise.reference_mean:.{digits}f}"
    if own and not math.isnan(noise.reference_sd):
        own += f" +-{noise.reference_sd:.{digits}f} over seeds"
    how = "" if noise.source == "replicates" else ", from what the fit left over (one seed)"
    return (
        f"noise between runs: {noise.sd * scale:.{digits}f}{unit} "
        f"({noise.low * scale:.{digits}f} to {noise.high * scale:.{digits}f}, "
        f"{noise.df} degrees of freedom{how}){own}"
    )


def claims_text(result: StudyResult) -> str:
    """Claims beside what was measured."""
    rows = []
    for row in result.claims:
        effect = result.effect(row["metric"], row["effect"])
        size = "-" if effect is None else f"{amount(effect.estimate, effect)} ({interval(effect)})"
        remark = f" ({row['remark']})" if row["remark"] else ""
        rows.append([row["says"], size, row["verdict"] + remark])
    return columns(["claim", "measured", "verdict"], rows)


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned text: the first column left, the others right where short. Wide characters count as two."""
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(cell_len(row[place]) for row in table) for place in range(len(header))]
    lines = []
    for row in table:
        cells = [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def alias_text(design: Design) -> str:
    """The alias table of a screening design as text."""
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
