"""The ledger: claims about each technique, our measurements, and the verdicts; made from committed results.

    python scripts/ledger.py studies/results --out docs/ledger.md

A result is study.yaml, runs.parquet, effects.parquet and effects.json of a study folder (`publish` copies them). Claims
are part of the study files, so they were written down before the first run.
Every run of every result is counted, finished or not.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import compression_claims
from kitae.augment.spec import MixSpec
from kitae.console import data_name
from kitae.errors import KitaeError
from kitae.experiments.folder import NUMERICS, plan_again, read_study, study_difference, write_settings
from kitae.experiments.result import StudyResult
from kitae.experiments.study_spec import StudySpec
from kitae.files import write_atomically
from kitae.reporting.effects import Effect, amount, interval
from regimes import TECHNIQUES, advice, curves, draw_lengths, regime

REGIMES = ("ledger-small", "ledger-large-16-epochs", "ledger-trained")
"""The studies shown side by side: few images and a short training, more images, few images and a long training."""

_KEPT = ("study.yaml", "runs.parquet", "effects.parquet", "effects.json")
_FIGURE = "images/ledger-when.png"  # beside the page

_HOW_TO_READ = (
    "Made by `python scripts/ledger.py` from `studies/results`; do not edit. Claims, metric and epochs "
    "were written down before the first run. Effects are differences between runs of the same seed, with 95 % "
    "intervals over seeds on the same test images (or also over test images, if it says so); an effect is *shown* "
    "after Holm's correction over all effects of its study on the same metric. A claim is **confirmed** if an effect "
    "in its direction is shown and the interval reaches the claimed size, **refuted** if the whole interval falls "
    "short of it (for one claim at a time, without Holm's correction), and **not shown** if the runs do not decide. An "
    "interval with a * is from its own pairs alone: that variant scatters more than the others. All networks are "
    "evaluated in float32, also those that were trained in bf16 (on the H100 with convolutions in TF32). Everything "
    "holds for the setting beside it, and may be different on other data."
)


def publish(study: str | Path, results: str | Path) -> Path:
    """Copy what the ledger needs of a study, and what a reader wants to check: everything but the run folders.

    The folder in which the images lie on this machine is left out. In a folder that has them, the study can be resumed.

    Returns:
        The result's folder, `results`/NAME.

    Raises:
        KitaeError: the study is not finished, or another one with its name is already published.
    """
    folder, result = Path(study), StudyResult.open(study)
    if not (folder / "effects.json").is_file():
        raise KitaeError(f"{folder}: the study is not finished; resume it with the same command")
    content, source = dict(read_study(folder) or {}), str(result.settings.get("source"))
    kind, _, path = source.partition(":")
    near = f"{kind}:{Path(path).name}" if Path(path).name else source
    moved = _replaced(content, source, near)
    spec = StudySpec.parse(moved["study"], str(folder / "study.yaml"))
    place = Path(results) / spec.name
    if (place / "study.yaml").is_file():
        before, now = StudyResult.open(place).spec.dump(), spec.dump()
        changed = study_difference(before, now)
        if changed or not set(before["seeds"]) <= set(now["seeds"]):
            what = changed or "with more seeds"
            raise KitaeError(f"{place}: holds another study of this name ({what}); give one of them another name")
    if near == source:
        for name in _KEPT:
            write_atomically(place / name, (folder / name).read_bytes())
        return place
    # The place of the images is a part of the recipes, so their runs are found under other names and fingerprints.
    jobs = zip(plan_again(content, result.spec).jobs, plan_again(moved, spec).jobs, strict=True)
    names = {old.fingerprint: {"run": new.name, "fingerprint": new.fingerprint} for old, new in jobs}
    moved["runs"] = [{**row, **names.get(row["fingerprint"], {})} for row in content["runs"]]
    runs = result.runs.assign(**{key: [row[key] for row in moved["runs"]] for key in ("run", "fingerprint")})
    write_settings(place / "study.yaml", moved)
    replace(result, path=place, spec=spec, runs=runs, settings={**result.settings, "source": near}).write()
    return place


def _replaced(value: Any, old: str, new: str) -> Any:
    """The value with a text replaced, in all mappings and lists."""
    if isinstance(value, Mapping):
        return {key: _replaced(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, old, new) for inner in value]
    return new if value == old else value


def load(results: str | Path) -> list[StudyResult]:
    """All results in a folder, by name."""
    return [StudyResult.open(file.parent) for file in sorted(Path(results).glob("*/study.yaml"))]


def draw(results: Sequence[StudyResult], page: Path) -> Path | None:
    """Draw effects against epochs, beside the page; None if nothing was measured with several lengths of training."""
    found = curves(results)
    title = "When does it help? Effect of each technique against the length of training"
    return draw_lengths(found, page.parent / _FIGURE, title=title) if found else None


def markdown(results: Sequence[StudyResult], others: Sequence[Sequence[str]] = ()) -> str:
    """The ledger as a page: advice, regimes side by side, claims and verdicts, and every study that was run.

    Args:
        others: rows of claims that no study answers, see `compression_claims`.
    """
    current = [result for result in results if not _outdated(result)]
    sentences = advice(current)
    sections = (
        ("", "\n".join(f"- {sentence}" for sentence in sentences)),
        ("", regime(current) if sentences else ""),
        ("", _measure_again([result for result in results if _outdated(result)])),
        ("Regimes side by side", _regimes(results)),
        ("When does a technique help?", _when(results)),
        ("Claims and verdicts", f"{_HOW_TO_READ}\n\n{_claims(results)}"),
        ("Claims about compression and whole recipes", _others(others)),
        ("What each technique adds to the others", _designs(results)),
        ("Every study that was run", _studies(results)),
    )
    parts = [f"## {heading}\n\n{text}" if heading else text for heading, text in sections if text]
    return "\n\n".join(["# The ledger", *parts]) + "\n"


def _outdated(result: StudyResult) -> bool:
    """Whether an earlier version, which trained the same recipes differently, measured this result."""
    return bool((read_study(result.path) or {}).get("numerics", 1) != NUMERICS)


def _measure_again(results: Sequence[StudyResult]) -> str:
    names = ", ".join(f"`{result.spec.name}`" for result in results)
    text = (
        f"**To be measured again:** {names}. Measured by an earlier version, which trained the same recipes "
        "differently (see the changelog), so no advice is drawn from this."
    )
    return text if results else ""


def _regimes(results: Sequence[StudyResult]) -> str:
    found = [result for name in REGIMES for result in results if result.spec.name == name]
    if len(found) < 2:
        return ""
    rows = []
    for name, words in TECHNIQUES.items():
        effects = [result.effect(result.spec.metric, name) for result in found]
        if any(effects):
            rows.append([words, *map(measured, effects)])
    heads = [f"{r.settings['images']:,} images, {r.settings['epochs']} epochs" for r in found]
    same = "" if len({r.spec.metric for r in found}) > 1 else f", {found[0].spec.metric}"
    text = (
        f"Each technique added to flip and crop (flip and crop: added to nothing){same}. **Bold**: shown after Holm's "
        f"correction.{_mixing(found)} Settings and noise of {', '.join(f'`{r.spec.name}`' for r in found)} are below. "
        "The columns differ in more than images and epochs, so only within a column are effects of one comparison."
    )
    return f"{text}\n\n{table(['Technique', *heads], rows)}"


def _mixing(results: Sequence[StudyResult]) -> str:
    """Which share of the batches is mixed, where that differs between studies."""
    shares: dict[float, list[str]] = {}
    for result in results:
        variants = result.design.variants
        mixes = [variant.overrides["augment.mix"] for variant in variants if variant.overrides.get("augment.mix")]
        for share in {MixSpec.model_validate(mix).prob for mix in mixes}:
            shares.setdefault(share, []).append(f"`{result.spec.name}`")
    words = [f"{100 * share:g} % of the batches in {' and '.join(names)}" for share, names in shares.items()]
    return f" MixUp and CutMix mix {', '.join(words)}." if len(words) > 1 else ""


def _when(results: Sequence[StudyResult]) -> str:
    found = curves(results)
    rows = [
        [
            name, str(point.epochs), str(point.width or "-"), measured(point.effect), str(point.effect.pairs),
            point.study,
        ]
        for name, points in found.items()
        for point in points
    ]  # fmt: skip
    if not rows:
        return ""
    head = ["Technique", "Epochs", "Width", "Effect", "Pairs", "Study"]
    points = [point for of in found.values() for point in of]
    stores = Counter(point.store for point in points).most_common()
    other = dict.fromkeys(f"`{point.study}`" for point in points if point.store != stores[0][0])
    images = (
        f" Effects are paired within a study; {', '.join(other)} had another file of the same set, so other images to "
        "train and validate with."
    )
    return (
        f"![effect of each technique against epochs, a panel per width]({_FIGURE})\n\nThe same comparison with shorter "
        f"and longer trainings.{images if other else ''}\n\n{table(head, rows)}"
    )


def _claims(results: Sequence[StudyResult]) -> str:
    rows = []
    for result in results:
        for claim in result.claims:
            effect = result.effect(claim["metric"], claim["effect"])
            size = "not measured" if effect is None else amount(effect.estimate, effect)
            remark = f" ({claim['remark']})" if claim["remark"] else ""
            rows.append([
                claim["says"], size, _interval(effect), setting(result.settings, len(result.spec.seeds)),
                result.spec.name, f"**{claim['verdict']}**{remark}",
            ])  # fmt: skip
    return table(["Claim", "Measured", "95 % interval", "Setting", "Study", "Verdict"], rows)


def _others(rows: Sequence[Sequence[str]]) -> str:
    return f"{compression_claims.HOW_TO_READ}\n\n{table(compression_claims.HEAD, rows)}" if rows else ""


def _designs(results: Sequence[StudyResult]) -> str:
    """What each technique adds to all the others, and beside it the screenings of the same techniques and setting."""
    tables: list[str] = []
    beside = False
    for one_out in (result for result in results if result.spec.design == "one_out"):
        twins = [result for result in results if _same_question(one_out, result)]
        beside = beside or bool(twins)
        tables += [_designs_table(one_out, twin) for twin in twins or (None,)]
    words = "One-out is what a technique adds to all the others."
    if beside:
        words += (
            " Screening is another quantity, what it adds on average over the presence and absence of the others. "
            "Every run of a screening informs every effect, which halves the intervals if all runs scatter alike; runs "
            "that lack half of the techniques may scatter more."
        )
    return "\n\n".join([words, *tables]) if tables else ""


def _same_question(one_out: StudyResult, other: StudyResult) -> bool:
    ours, theirs = one_out.spec.dump(), other.spec.dump()
    same = all(ours[name] == theirs[name] for name in ("factors", "base", "set", "metric"))
    return other.spec.design == "screening" and same and len(one_out.runs) == len(other.runs)


def _designs_table(one_out: StudyResult, screening: StudyResult | None) -> str:
    metric, runs = one_out.spec.metric, f"{len(one_out.runs)} runs"
    names, head, rows = f"`{one_out.spec.name}`", ["Technique", f"One-out, {runs}"], []
    if screening is not None:
        names += f" and `{screening.spec.name}`"
        head += [f"Screening, {runs}", "Width, screening / one-out"]
    for factor in one_out.spec.factors:
        a = one_out.effect(metric, factor)
        row = [factor, measured(a)]
        if screening is not None:
            b = screening.effect(metric, factor)
            width = "-"
            if a and b and a.high > a.low and b.high >= b.low:
                width = f"{(b.high - b.low) / (a.high - a.low):.2f}"
            row += [measured(b), width]
        rows.append(row)
    return f"{names}, {metric}:\n\n{table(head, rows)}"


def _studies(results: Sequence[StudyResult]) -> str:
    rows = []
    for result in results:
        spec, settings = result.spec, result.settings
        hours = settings.get("training_hours")
        noise = result.analyses[spec.metric].noise
        given = settings.get("threads")
        threads = " or ".join(map(str, given if isinstance(given, list) else [given]))
        added = [seed for row in result.added for seed in row["seeds"]]
        seeds = ", ".join(str(seed) for seed in spec.seeds if seed not in added)
        rows.append([
            spec.name, spec.design, f"{len(result.finished)} of {len(result.runs)}",
            seeds + (f"; added later: {', '.join(map(str, added))}" if added else ""),
            spec.metric, f"{noise.sd:.2f} ({noise.low:.2f} to {noise.high:.2f})" if noise.df else "-",
            setting(settings),
            _machines(result, threads),
            "-" if hours is None else f"{hours:.1f}",
        ])  # fmt: skip
    head = ["Study", "Design", "Runs finished", "Seeds", "Metric", "Noise (SD)", "Setting", "Machine", "Training hours"]
    return "\n\n".join([table(head, rows), *_unclean(results)])


def _unclean(results: Sequence[StudyResult]) -> list[str]:
    """A sentence on the studies with runs that name no commit, and one on those with runs of a changed tree."""
    none, changed = [], []
    for result in results:
        machines = [json.loads(text or "{}") for text in result.finished["machine"]]
        commits = [machine.get("commit") for machine in machines]
        if not all(commits):
            none.append(f"`{result.spec.name}`")
        if any(commit and commit.endswith("+") for commit in commits):
            changed.append(f"`{result.spec.name}`")
    about = ("Runs that name no commit:", none), ("Runs of a tree with changes that were not committed:", changed)
    return [f"{words} {', '.join(names)}." for words, names in about if names]


def _machines(result: StudyResult, threads: str) -> str:
    """The machines of a study's runs; if there are several, how many runs of which variants each made."""
    made: dict[str, Counter[str]] = {}
    rows = result.finished.to_dict(orient="records")
    for row in rows or [{"machine": json.dumps(result.settings.get("machine") or {}), "variant": ""}]:
        facts = json.loads(row.get("machine") or "{}")
        on_cpu = f"{facts.get('processor', '?')}, {threads} thread{'s' * (threads != '1')} a run"
        made.setdefault(facts.get("gpu") or on_cpu, Counter())[row["variant"]] += 1
    if len(made) == 1:
        return next(iter(made))
    return "; ".join(
        f"{name}: {sum(runs.values())} runs ({', '.join(f'{variant} {count}' for variant, count in runs.items())})"
        for name, runs in made.items()
    )


def setting(settings: Mapping[str, Any], seeds: int | None = None) -> str:
    data = data_name(str(settings.get("source")))
    width = f", width {settings['width']}" if settings.get("width") else ""
    images = settings.get("images")
    parts = [
        f"{images:,} images of {data}" if images else data,
        f"{settings.get('model')}{width}",
        f"{settings.get('epochs')} epochs",
        str(settings.get("precision")),
    ]
    return ", ".join(parts + ([f"{seeds} seeds"] if seeds else []))


def measured(effect: Effect | None) -> str:
    """The size of an effect, bold if it is shown, and its interval."""
    if effect is None:
        return "-"
    size = amount(effect.estimate, effect)
    return f"{f'**{size}**' if effect.shown else size} ({_interval(effect)})"


def _interval(effect: Effect | None) -> str:
    if effect is None or math.isnan(effect.low):
        return "-"
    mark = " *" if effect.uneven else ""  # as in a study's own table
    return interval(effect) + mark + (f", {effect.covers}" if effect.covers != "seeds" else "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    """`python scripts/ledger.py RESULTS [--out FILE] [--publish STUDY ...] [--renew]`."""
    parser = argparse.ArgumentParser(description="Make the ledger from committed results.")
    parser.add_argument("results", type=Path, help="folder of results, such as studies/results")
    parser.add_argument("--out", type=Path, help="the page to write, with its figure beside it; printed if not given")
    parser.add_argument("--publish", type=Path, nargs="*", default=[], help="finished study folders to copy in first")
    parser.add_argument("--renew", action="store_true", help="make the effects again from the runs first")
    given = parser.parse_args()
    try:
        for study in given.publish:
            publish(study, given.results)
        found = load(given.results)
        for result in found if given.renew else ():
            result.write()
        text = markdown(found, compression_claims.rows())
        if given.out is None:
            print(text)
        else:
            draw(found, given.out)
            write_atomically(given.out, text.encode())
    except KitaeError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
