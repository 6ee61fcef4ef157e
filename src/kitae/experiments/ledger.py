"""The ledger: what is claimed of each technique, what we measured, and the verdict. Made from committed results alone.

    python -m kitae.experiments.ledger studies/results --out docs/ledger.md

A result is a study folder without its runs: study.yaml, runs.parquet, effects.parquet, effects.json and the pictures
(`publish` makes one). Claims stand in the study files, so they were written down before the first run; every run of
every result is counted, finished or not.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kitae.errors import KitaeError
from kitae.experiments.folder import study_difference
from kitae.experiments.result import StudyResult
from kitae.experiments.stats import Effect
from kitae.experiments.wording import amount, interval
from kitae.files import write_atomically

_KEPT = ("study.yaml", "runs.parquet", "effects.parquet", "effects.json")


def publish(study: str | Path, results: str | Path) -> Path:
    """Copy of a study what the ledger needs and a reader wants to check: everything but the run folders.

    Returns:
        The result's folder, `results`/NAME.

    Raises:
        KitaeError: the study is not finished, or another one of its name is published there.
    """
    folder, result = Path(study), StudyResult.open(study)
    if not (folder / "effects.json").is_file():
        raise KitaeError(f"{folder}: the study is not finished; start it again with the same command")
    place = Path(results) / result.spec.name
    if (place / "study.yaml").is_file():
        changed = study_difference(StudyResult.open(place).spec.dump(), result.spec.dump())
        if changed:
            raise KitaeError(f"{place}: holds another study of this name ({changed}); give one of them another name")
    for name in _KEPT:
        write_atomically(place / name, (folder / name).read_bytes())
    if (folder / "figures").is_dir():
        shutil.copytree(folder / "figures", place / "figures", dirs_exist_ok=True)
    return place


def load(results: str | Path) -> list[StudyResult]:
    """All results of a folder, by name."""
    return [StudyResult.open(file.parent) for file in sorted(Path(results).glob("*/study.yaml"))]


def renew(results: Sequence[StudyResult]) -> None:
    """Effects and pictures of published results made anew from their runs, for statistics that have changed since."""
    from kitae.reporting.effects import draw_study

    for result in results:
        result.write()
        draw_study(result.data(), result.path / "figures")


def markdown(results: Sequence[StudyResult]) -> str:
    """The ledger as a page: claims and verdicts, screening beside one-out, and every study that was run."""
    parts = [
        "# The ledger",
        "Made by `python -m kitae.experiments.ledger` from `studies/results`; do not edit. Claims, metric, epochs and "
        "seeds were written down before the first run. Effects are differences between runs of the same seed, with "
        "95 % intervals over seeds on the same test images (and over test images where it says so); an effect is "
        "*shown* after Holm's correction over all effects of its study on the same metric. A claim is **confirmed** "
        "where an effect in its direction is shown and the interval reaches the claimed size, **refuted** where the "
        "whole interval falls short of it (of one claim at a time, without Holm's correction), and **not shown** where "
        "the runs do not decide. An interval with a * is from its own pairs alone: that variant scatters more than the "
        "others. All of it holds for the setting beside it, and may be different on other data.",
        _claims(results),
    ]
    comparison = _designs(results)
    if comparison:
        parts += [
            "## The same techniques by screening and one at a time",
            "Different quantities: one-out is what a technique adds to all the others, screening what it adds on "
            "average over the presence and absence of the others. Every run of a screening informs every effect, which "
            "halves the intervals where all runs scatter alike; runs that lack half of the techniques may scatter "
            "more.",
            comparison,
        ]
    parts += ["## Every study that was run", _studies(results)]
    return "\n\n".join(parts) + "\n"


def _claims(results: Sequence[StudyResult]) -> str:
    rows = []
    for result in results:
        for claim in result.claims:
            effect = result.effect(claim["metric"], claim["effect"])
            remark = f" ({claim['remark']})" if claim["remark"] else ""
            rows.append([
                claim["says"], _measured(effect), _interval(effect), _setting(result.settings, len(result.spec.seeds)),
                result.spec.name, f"**{claim['verdict']}**{remark}",
            ])  # fmt: skip
    return _table(["Claim", "Measured", "95 % interval", "Setting", "Study", "Verdict"], rows)


def _designs(results: Sequence[StudyResult]) -> str:
    """A table for each pair of a one_out and a screening study of the same techniques, recipe, metric and runs."""
    tables = []
    for one_out in (result for result in results if result.spec.design == "one_out"):
        for screening in (result for result in results if result.spec.design == "screening"):
            same = ("factors", "base", "set", "metric")
            if any(one_out.spec.dump()[name] != screening.spec.dump()[name] for name in same):
                continue
            if len(one_out.runs) != len(screening.runs):
                continue
            rows = []
            left, right = (result.analyses[result.spec.metric].effects for result in (one_out, screening))
            for factor in one_out.spec.factors:
                a = next(effect for effect in left if effect.name == factor)
                b = next(effect for effect in right if effect.name == factor)
                rows.append([
                    factor, f"{_measured(a)} ({_interval(a)})", f"{_measured(b)} ({_interval(b)})",
                    f"{(b.high - b.low) / (a.high - a.low):.2f}" if a.high > a.low and b.high >= b.low else "-",
                ])  # fmt: skip
            runs = f"{len(one_out.runs)} runs"
            table = _table(["Technique", f"One-out, {runs}", f"Screening, {runs}", "Width, screening / one-out"], rows)
            tables.append(f"`{one_out.spec.name}` and `{screening.spec.name}`, {one_out.spec.metric}:\n\n{table}")
    return "\n\n".join(tables)


def _studies(results: Sequence[StudyResult]) -> str:
    rows = []
    for result in results:
        done = int((result.runs["status"] == "done").sum())
        machine = result.settings.get("machine") or {}
        hours = result.settings.get("training_hours")
        noise = result.analyses[result.spec.metric].noise
        given = result.settings.get("threads")
        threads = " or ".join(str(number) for number in given) if isinstance(given, list) else str(given)
        rows.append([
            result.spec.name, result.spec.design, f"{done} of {len(result.runs)}",
            ", ".join(str(seed) for seed in result.spec.seeds), result.spec.metric,
            f"{noise.sd:.2f} ({noise.low:.2f} to {noise.high:.2f})" if noise.df else "-",
            _setting(result.settings),
            f"{machine.get('processor', '?')}, {threads} thread{'s' * (threads != '1')} a run",
            "-" if hours is None else f"{hours:.1f}",
        ])  # fmt: skip
    head = ["Study", "Design", "Runs finished", "Seeds", "Metric", "Noise (SD)", "Setting", "Machine", "Training hours"]
    return _table(head, rows)


def _setting(settings: Mapping[str, Any], seeds: int | None = None) -> str:
    width = f", width {settings['width']}" if settings.get("width") else ""
    images = settings.get("images")
    parts = [
        f"{images:,} images of {_data(settings)}" if images else _data(settings),
        f"{settings.get('model')}{width}",
        f"{settings.get('epochs')} epochs",
        str(settings.get("precision")),
    ]
    return ", ".join(parts + ([f"{seeds} seeds"] if seeds else []))


def _data(settings: Mapping[str, Any]) -> str:
    """The plain name of a source: `parquet:data/cifar10.parquet` and `cifar10:/data` are cifar10."""
    kind, _, path = str(settings.get("source")).partition(":")
    return (Path(path).stem if kind == "parquet" else Path(path).name if kind == "folder" else kind) or kind


def _measured(effect: Effect | None) -> str:
    return "not measured" if effect is None else amount(effect.estimate, effect)


def _interval(effect: Effect | None) -> str:
    if effect is None or math.isnan(effect.low):
        return "-"
    mark = " *" if effect.uneven else ""  # as in a study's own table
    return interval(effect) + mark + (f", {effect.covers}" if effect.covers != "seeds" else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    """`python -m kitae.experiments.ledger RESULTS [--out FILE] [--publish STUDY ...] [--renew]`."""
    parser = argparse.ArgumentParser(description="Make the ledger from committed results.")
    parser.add_argument("results", type=Path, help="folder of results, such as studies/results")
    parser.add_argument("--out", type=Path, help="the page to write; printed if not given")
    parser.add_argument("--publish", type=Path, nargs="*", default=[], help="finished study folders to copy in first")
    parser.add_argument("--renew", action="store_true", help="make effects and pictures anew from the runs first")
    given = parser.parse_args()
    try:
        for study in given.publish:
            publish(study, given.results)
        found = load(given.results)
        if given.renew:
            renew(found)
        text = markdown(found)
        if given.out is None:
            print(text)
        else:
            write_atomically(given.out, text.encode())
    except KitaeError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
