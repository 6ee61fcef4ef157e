"""Formatting of numbers on pages: per cent, intervals, bytes, times, counts. Unknown values are a dash, or empty."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from kitae import console
from kitae.console import change, duration

UNKNOWN = "–"
MAX_ROWS = 2000  # of one table, to limit the size of a page

P = ParamSpec("P")
Cell = tuple[str, str]
"""What a cell of a table says, and a quieter note; both may be empty."""


def finite(value: Any) -> float | None:
    """A number as float; None for anything else, and for what is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _known(form: Callable[Concatenate[float, P], str]) -> Callable[Concatenate[Any, P], str]:
    """Finite numbers in this form; a dash for anything else."""

    @wraps(form)
    def shown(value: Any, /, *args: P.args, **options: P.kwargs) -> str:
        known = finite(value)
        return UNKNOWN if known is None else form(known, *args, **options)

    return shown


@_known
def share(value: float, digits: int = 1) -> str:
    """A proportion in per cent."""
    return f"{100 * value:.{digits}f} %"


@_known
def number(value: float, form: str = ",.0f") -> str:
    """A number in a format of Python; by default, rounded to a whole one."""
    return format(value, form)


@_known
def significant(value: float, most: int) -> str:
    """At most so many significant digits; a large number is whole, without the exponent that Python gives it."""
    return f"{value:,.0f}" if abs(value) >= 10**most - 0.5 else f"{value:.{most}g}"


def between(interval: Any, scale: float = 1.0, digits: int = 1) -> str:
    """An interval as `90.6 to 92.1`; empty where there is none."""
    if not isinstance(interval, list | tuple) or [finite(end) is None for end in interval] != [False, False]:
        return ""
    return " to ".join(f"{end * scale:z.{digits}f}" for end in interval)


def three_digits(value: float) -> str:
    """Three significant digits: 0.170, 18.0, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


@_known
def milliseconds(value: float) -> str:
    """A time given in milliseconds."""
    return f"{three_digits(value)} ms"


def times_between(interval: Any, scale: float = 1.0) -> str:
    """An interval of times; a fixed number of decimals would make `0.08 to 0.08` of a fast one."""
    return " to ".join(three_digits(end * scale) for end in interval) if between(interval) else ""


@_known
def large(value: float) -> str:
    """A whole number; from 10,000 in thousands, millions or billions."""
    return console.size(value, "") if value >= 1e4 else number(value)


size = _known(console.size)


@_known
def seconds(value: float) -> str:
    """A time given in seconds: `5 ms`, `42 s`, `3 min 05 s`."""
    return milliseconds(1e3 * value) if value < 1 else duration(value)


@_known
def points(value: float, digits: int = 2) -> str:
    """`1.20 points`, `1.00 point`."""
    text = f"{value:.{digits}f}"
    return f"{text} point{'' if abs(float(text)) == 1 else 's'}"


def times(ratio: float, more: str, less: str) -> tuple[str, str]:
    """A factor above 1, and the word for which way it goes: (`Faster`, `2.1×`)."""
    factor, word = change(ratio, more, less)
    return word, f"{factor:.2f}×" if factor < 10 else f"{factor:.1f}×"


def points_lost(drop: float, interval: tuple[float, float]) -> Cell:
    """`1.10 points lost`, or gained, with its interval the same way round.

    >>> points_lost(-0.88, (-1.2, -0.57))
    ('0.88 points gained', '0.57 to 1.20')
    """
    if drop < 0:
        interval = (-interval[1], -interval[0])
    return f"{points(abs(drop))} {'lost' if drop >= 0 else 'gained'}", between(interval, 1, 2)


@_known
def probability(value: float) -> str:
    """A p-value: `0.034`, `<0.001`."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def words(value: Any) -> str:
    """Any value as short text."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else UNKNOWN
    if isinstance(value, list | tuple) and all(isinstance(item, int | float | str) for item in value):
        return ", ".join(words(item) for item in value[:20]) + (", …" if len(value) > 20 else "")
    if isinstance(value, int | str):
        return str(value)
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else f"{text[:200]}…"


# ------------------------------------------------------------------------------------------- values of unknown meaning

_PROPORTIONS = ("accuracy", "top5", "ece", "sparsity", "share", "flips")
_WHOLE = ("parameters", "nonzero", "nonzeros", "zeros", "macs", "count", "images")


def named(row: Mapping[str, Any], name: str) -> Cell:
    """A value in the unit that its name tells, with its interval where there is one."""
    interval, value = row.get(f"{name}_interval"), finite(row.get(name))
    if value is None:
        return words(row.get(name)), ""
    if any(word in name for word in _PROPORTIONS) and abs(value) <= 1:
        return share(value, 2), between(interval, 100, 2)
    if name.endswith("bytes"):
        return size(value), ""
    if name.endswith(("milliseconds", "_ms")):
        return milliseconds(value), times_between(interval)
    if name.endswith("seconds"):
        return seconds(value), times_between(interval, 1e3) if value < 1 else ""
    if name in _WHOLE:
        return number(value), ""
    return words(row.get(name)), between(interval, 1, 3)


def leaves(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Cell]]:
    """The leaves of a nested mapping as (dotted name, value); at most `MAX_ROWS`."""
    rows: list[tuple[str, Cell]] = []
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            rows += leaves(inner, f"{prefix}{key}.")
        elif not (key.endswith("_interval") and key.removesuffix("_interval") in value):
            rows.append((f"{prefix}{key}", named(value, key)))
    return rows[:MAX_ROWS]


def records(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[tuple[str, str, float | None]]]]:
    """Records as columns and rows of cells, each with its number, if it is one, for sorting.

    NAME_interval is put beside NAME, and empty columns are left out.
    """
    known = dict.fromkeys(key for row in rows for key in row)
    names = [
        name
        for name in known
        if not (name.endswith("_interval") and name.removesuffix("_interval") in known)
        and any(row.get(name) not in (None, "", [], {}) for row in rows)
    ]
    cells = [[(*named(row, name), finite(row.get(name))) for name in names] for row in rows[:MAX_ROWS]]
    return [name.replace("_", " ") for name in names], cells
