"""Verdicts on the claims that no study answers: about compression, and about the complete pipeline of a ResNet-18.

They come from the published compressions and trainings in benchmarks/results. The ledger shows them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kitae.reporting.compression_results import Candidate, CompressionRecord
from means import mean_interval

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
CORRECTED = "2026-11-26"  # before this day, training took a full-size step on a short last batch
HEAD = ("Claim", "Measured", "95 % interval", "Setting", "Result", "Verdict")
HOW_TO_READ = (
    "Intervals of points are over validation images (of the whole recipe over test images), or over the seeds where "
    "there are several, and those of times over rounds. Here a claim is **confirmed** if the whole interval lies "
    "within it, **refuted** if the whole interval lies outside, and else **not shown**. A size is exact and has no "
    "interval; within 2 points of the claim, it confirms it. These claims were not written down before the runs."
)

_PRUNED = "pruning to half the size loses at most 1 point"
_SEEDS = ("few-0", "few-1", "few-2")
# File -> ratio of the candidate with half of the weights, or with the number of channels that comes near.
_HALVES = {"few-unstructured": 0.5, "demo-controls": 0.2}
_WHOLE = RESULTS / "gpu" / "cifar10-strong-30-epochs.json"


def in_words(facts: Mapping[str, Any], candidate: Mapping[str, Any]) -> str:
    """What a file is, such as "50 % pruned, INT8"."""
    return CompressionRecord.model_validate(facts).label(Candidate.model_validate(candidate))


def verdict(low: float, high: float, least: float, most: float) -> str:
    """Of a claim that a value lies between `least` and `most`, from the interval of what was measured."""
    if low >= least and high <= most:
        return "**confirmed**"
    return "**refuted**" if high < least or low > most else "**not shown**"


def rows() -> list[list[str]]:
    """The lines of the table, under `HEAD`."""
    return [*_pruning(), *_dynamic(), *_static(), *_pipeline()]


def _load(name: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((RESULTS / "compression" / f"{name}.json").read_text())
    return facts


def _found(facts: Mapping[str, Any], ratio: float, precision: str) -> dict[str, Any]:
    wanted = (ratio, precision, False)
    return next(one for one in facts["candidates"] if (one["ratio"], one["precision"], one["control"]) == wanted)


def _setting(facts: Mapping[str, Any], file: Mapping[str, Any], seeds: int = 1) -> str:
    loop = ", earlier loop" if facts["machine"]["when"] < CORRECTED else ""
    images = f"{facts['images']['train']:,} training and {facts['images']['val']:,} validation images"
    return f"{facts['recipe']}, {images}, {'1 run' if seeds == 1 else f'{seeds} seeds'}{loop}; {in_words(facts, file)}"


def _points(low: float, high: float) -> str:
    return f"{low:+.2f} to {high:+.2f}"


def _share(facts: Mapping[str, Any], file: Mapping[str, Any], key: str) -> float:
    share: float = file[key] / facts["candidates"][0][key]
    return share


def _percent(facts: Mapping[str, Any], file: Mapping[str, Any], key: str) -> str:
    return f"{100 * _share(facts, file, key):.0f} %"


def _pruning() -> list[list[str]]:
    made = []
    for name, ratio in _HALVES.items():
        facts = _load(name)
        file = _found(facts, ratio, "fp32")
        low, high = file["drop_interval"]
        made.append((facts, file, name, 1, file["drop"], low, high))
    seeds = [_load(name) for name in _SEEDS]
    files = [_found(facts, 0.5, "fp32") for facts in seeds]
    mean, low, high = mean_interval([file["drop"] for file in files])
    made.append((seeds[0], files[0], "few", len(seeds), mean, low, high))
    return [
        [
            "pruning half of the channels loses at most 1 point" if count > 1 else _PRUNED,
            f"{_percent(facts, file, 'nonzero')} of the weights, {_percent(facts, file, 'packed_bytes')} of the packed "
            f"bytes, {drop:+.2f} points lost",
            _points(low, high), _setting(facts, file, count), name, verdict(low, high, -math.inf, 1.0),
        ]
        for facts, file, name, count, drop, low, high in made
    ]  # fmt: skip


def _quantized(
    name: str, precision: str, said: str, *, size: float, faster: tuple[str, float, float], loses: tuple[str, float]
) -> list[list[str]]:
    facts = _load(name)
    file = _found(facts, 0.0, precision)
    where = _setting(facts, file), name
    share = _share(facts, file, "bytes")
    right = "**confirmed**" if abs(share - size) <= 0.02 else "**refuted**"
    remark = " (smaller)" if share < size - 0.02 else ""
    (quick, least, most), (lost, limit) = faster, loses
    slow, fast = file["speedup_interval"]
    low, high = file["drop_interval"]
    return [
        [f"{said} {100 * size:.0f} % of the size", f"{100 * share:.1f} %", "-", *where, right + remark],
        [
            f"{said} {quick}", f"{file['speedup']:.2f} x", f"{slow:.2f} to {fast:.2f} x", *where,
            verdict(slow, fast, least, most) + (" (slower)" if fast < 1 else ""),
        ],
        [f"{said} {lost}", f"{file['drop']:+.2f} points lost", _points(low, high), *where,
         verdict(low, high, -math.inf, limit)],
    ]  # fmt: skip


def _dynamic() -> list[list[str]]:
    faster, loses = ("about 2 times as fast", 1.5, 2.5), ("loses at most 0.5 points", 0.5)
    return _quantized("strong-int8", "int8-dynamic", "dynamic INT8:", size=0.75, faster=faster, loses=loses)


def _static() -> list[list[str]]:
    faster, loses = ("up to 4 times as fast", 1.0, 4.0), ("loses at most 1 to 2 points", 2.0)
    names: Sequence[str] = ("strong-int8", "demo")
    return [
        row for name in names
        for row in _quantized(name, "int8-static", "static INT8:", size=0.25, faster=faster, loses=loses)
    ]  # fmt: skip


def _pipeline() -> list[list[str]]:
    facts = json.loads(_WHOLE.read_text())
    test, epochs = facts["test"], facts["recipe"]["train"]["epochs"]
    low, high = (100 * end for end in test["accuracy_interval"])
    return [
        [
            "the full pipeline reaches at least 85 % on CIFAR-10 with a ResNet-18 within 100 epochs",
            f"{100 * test['accuracy']:.1f} %", f"{low:.1f} to {high:.1f} %", f"cifar10-strong, {epochs} epochs, 1 run",
            _WHOLE.stem, verdict(low, high, 85.0, 100.0),
        ],
    ]  # fmt: skip
