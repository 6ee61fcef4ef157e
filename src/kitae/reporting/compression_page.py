"""The page of a compression: what it gained and lost, every candidate, and how they were measured."""

from __future__ import annotations

import json
import math
import os
import shlex
from pathlib import Path
from typing import Any

from kitae.compression.spec import CompressSpec
from kitae.files import with_name
from kitae.folders import kind_of
from kitae.reporting import compression_charts
from kitae.reporting.compression_results import Candidate, CompressionRecord, Judged
from kitae.reporting.figures import filters_chart
from kitae.reporting.values import Cell, between, named, points, points_lost, size, times


def content(record: CompressionRecord, folder: Path) -> dict[str, Any]:
    """The variables of compression.html."""
    return {
        "over": "Compression",
        "title": record.run,
        "subtitle": f"A run of {record.recipe}",
        "warnings": _warnings(record),
        "answer": answer(record),
        "commands": commands(record, folder),
        "it": record,
        "file": folder / record.file,
        "path": json.dumps(str(folder / record.file), ensure_ascii=False),
        "compared": _side_by_side(record),
        "front": compression_charts.front(record),
        "sparsity": compression_charts.sparsity(record),
        "latency": compression_charts.latencies(record),
        "filters": filters_chart(folder / "figures" / "filters.png"),
        "everything": [
            {**row.model_dump(), "name": record.label(row), "precision": row.number_format} for row in record.candidates
        ],
    }


def answer(record: CompressionRecord) -> list[str]:
    """What the compression gained and lost, and the file with the result."""
    size_word, smaller = times(record.smaller, "smaller", "larger")
    speed_word, faster = times(record.faster, "faster", "slower")
    speed = "as fast" if record.as_fast else f"{faster} {speed_word}"
    where, judged = ("test", record.test) if record.test else ("validation", record.winner)
    lost, interval = points_lost(judged.drop, judged.drop_interval)
    first = f"{smaller} {size_word} and {speed}, {lost} on {where} ({interval})."
    what = "The winner" if record.within_budget else "The closest to the budget"
    second = f"{what} is {record.told(record.winner)}: {size(record.bytes_of(record.winner))}. {_budget(record)}"
    if record.metric == "accuracy":
        return [first, second]
    return [first, second, f"Accuracy is {record.metric} here, its mean over the classes, as in the choice of the "
            "run's best epoch."]  # fmt: skip


def commands(record: CompressionRecord, folder: Path) -> list[tuple[str, str]]:
    """What to do next: what a command is for, and the command."""
    file = shlex.quote(str(folder / record.file))
    found = [("Classify images with it, without PyTorch", f"kitae predict {file} IMAGES")]
    here = with_name(folder)
    there = Path(os.path.normpath(here / record.run_path))
    known = kind_of(there) == "run"
    run = shlex.quote(str(there)) if known else "RUN"
    usual = known and here == there.with_name(f"{there.name}-small")
    out = "" if usual else f" --out {shlex.quote(str(folder))}"
    again = f"kitae compress {run}{out} --overwrite"
    if not record.within_budget:
        if wider := _wider(record):
            options = "".join(f" --{name.replace('_', '-')} {limit}" for name, limit in wider.items())
            found.append(("Look again with a wider budget", f"{again}{_settings(record, *wider)}{options}"))
    elif (smaller := _smaller(record)) is not None:
        drop, row = smaller
        about = f"For a smaller file, allow a larger drop ({record.label(row)}, {size(record.bytes_of(row))})"
        found.append((about, f"{again}{_settings(record, 'max_drop')} --max-drop {_tenths(drop):g}"))
    return found


def _wider(record: CompressionRecord) -> dict[str, str]:
    """The limits that the closest file exceeds, each widened until the file is within it."""
    spec, row = record.spec, record.winner
    drop = row.drop_interval[1] if record.sure else row.drop
    found = {}
    if drop > spec.max_drop:
        least = max(2.0, 2 * spec.max_drop)
        drop = _counted(record, row, drop, max(least, _tenths(drop)))
        found["max_drop"] = f"{min(100.0, max(least, _tenths(drop))):g}"
    if spec.max_bytes is not None and row.bytes > spec.max_bytes:  # of the file as it is
        found["max_bytes"] = str(row.bytes)
    if spec.max_latency_ms is not None and row.latency_ms > spec.max_latency_ms:
        found["max_latency_ms"] = f"{1.1 * row.latency_ms:.3g}"  # its next measurement will differ a little
    return found


def _counted(record: CompressionRecord, row: Candidate, drop: float, budget: float) -> float:
    """The drop of a candidate as a new search with this budget would count it.

    That is the upper end of its interval if this search counted that, or if the validation images can prove the budget.
    """
    sure = record.sure or (record.spec.sure and budget >= record.least_drop)
    return row.drop_interval[1] if sure else drop


def _tenths(drop: float) -> float:
    """A drop rounded up, as commands propose it."""
    return math.ceil(10 * drop) / 10


def _settings(record: CompressionRecord, *without: str) -> str:
    """The settings of a compression that differ from the defaults, but for `without`, as options of a command."""
    usual, given = CompressSpec().model_dump(mode="json"), record.spec.model_dump(mode="json")
    if given["ratios"] != usual["ratios"]:
        usual["abandon"] = None  # always written: beside ratios its default depends on whether a drop is given
    options = []
    for name, value in given.items():
        if name not in without and value != usual[name]:
            whole = isinstance(value, float) and value.is_integer()
            options.append(f" --set {shlex.quote(f'{name}={json.dumps(int(value) if whole else value)}')}")
    return "".join(options)


def _smaller(record: CompressionRecord) -> tuple[float, Candidate] | None:
    """The most accurate candidate of at most three quarters of the winner's size that is within the other limits, and
    the drop that has to be allowed for it."""
    spec, limit = record.spec, 0.75 * record.bytes_of(record.winner)
    found = []
    for row in record.candidates:
        if row.control or record.bytes_of(row) >= limit:
            continue
        drop = _counted(record, row, row.drop, _tenths(row.drop))
        others = ((row.bytes, spec.max_bytes), (row.latency_ms, spec.max_latency_ms))
        within = all(most is None or value <= most for value, most in others)
        if within and drop > spec.max_drop:
            found.append((drop, row))
    return min(found, key=lambda pair: pair[0], default=None)


def _warnings(record: CompressionRecord) -> list[str]:
    warnings = []
    name = record.told(record.winner)
    if not record.within_budget:
        warnings.append(
            f"No candidate is within the budget. The closest, {name}, {record.why_not}; it is kept as closest.onnx."
        )
    if record.test and not record.test.within_budget:
        warnings.append(
            f"{name[:1].upper()}{name[1:]} is within the budget on validation, but on test it loses "
            f"{points(record.test.drop)}, more than the budget of {record.spec.max_drop:g}."
        )
    return warnings


def _budget(record: CompressionRecord) -> str:
    """What was asked for, in one sentence."""
    spec = record.spec
    counted = " (counted: the upper end of its interval)" if record.sure else ""
    asked = [f"at most {spec.max_drop:g} point{'' if spec.max_drop == 1 else 's'} of accuracy lost{counted}"]
    if spec.max_bytes is not None:
        asked.append(f"at most {spec.max_bytes:,.0f} bytes")
    if spec.max_latency_ms is not None:
        asked.append(f"at most {spec.max_latency_ms:g} ms per image")
    return f"The budget: {', '.join(asked)}."


_COMPARED = (
    ("bytes", "File", "smaller", "larger"),
    ("weight_bytes", "Weights in the file", "smaller", "larger"),
    ("packed_bytes", "File, packed", "smaller", "larger"),
    ("latency_ms", "Latency of one image", "faster", "slower"),
    ("parameters", "Parameters", "fewer", "more"),
    ("nonzero", "Parameters that are not 0", "fewer", "more"),
    ("macs", "Multiply-adds", "fewer", "more"),
)


def _side_by_side(record: CompressionRecord) -> list[tuple[str, list[Cell]]]:
    """The original against the winner, one row per number."""
    before, after, test = record.baseline, record.winner, record.test
    rows = [("Candidate", [(record.label(before), ""), (record.label(after), ""), ("", "")])]
    if test:
        lost = points_lost(test.drop, test.drop_interval)
        rows.append(("Accuracy on test", [_cell(test.baseline, "accuracy"), _cell(test.winner, "accuracy"), lost]))
    lost = points_lost(after.drop, after.drop_interval)
    rows.append(("Accuracy on validation", [_cell(before, "accuracy"), _cell(after, "accuracy"), lost]))
    rows.append(("Predictions changed on validation", [("", ""), _cell(after, "flips"), ("", "")]))
    for key, what, less, more in _COMPARED:
        old, new = getattr(before, key), getattr(after, key)
        if new is None or (key == "nonzero" and new == after.parameters):
            continue
        ratio, span = old / new, ""
        if key == "latency_ms":  # the ratio of the medians is not the median of the ratios
            ratio = after.speedup
            span = between(after.speedup_interval, 1, 2) if ratio >= 1 else ""
            span = "no more than noise" if record.as_fast else span
        word, factor = times(ratio, less, more)
        changed = "the same" if old == new else f"{factor} {word}"
        rows.append((what, [_cell(before, key), _cell(after, key), (changed, span)]))
    return rows


def _cell(row: Candidate | Judged, key: str) -> Cell:
    """Exact values, since two columns are compared."""
    text, interval = named(row.model_dump(), key)
    return text, f"{getattr(row, key):,} bytes" if key.endswith("bytes") else interval
