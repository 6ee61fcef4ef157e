"""Formatting of numbers on pages: per cent, intervals, bytes, times, counts. Unknown values are a dash, or empty."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from kitae import console
from kitae.console import change, duration, lost

UNKNOWN = "–"
MAX_ROWS = 2000  # of one table, to limit the size of a page

Cell = tuple[str, str]
"""What a cell of a table says, and a quieter note; both may be empty."""


def finite(value: Any) -> float | None:
    """A number as float; None for anything else, and for what is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def share(value: Any, digits: int = 1) -> str:
    """A proportion in per cent."""
    known = finite(value)
    return UNKNOWN if known is None else f"{100 * known:.{digits}f} %"


def between(interval: Any, scale: float = 1.0, digits: int = 1) -> str:
    """An interval as `90.6 to 92.1`; empty where there is none."""
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        return ""
    ends = [finite(end) for end in interval]
    return "" if None in ends else " to ".join(f"{end * scale:z.{digits}f}" for end in ends if end is not None)


def decimal(value: Any, digits: int) -> str:
    """A number with so many decimals."""
    known = finite(value)
    return UNKNOWN if known is None else f"{known:,.{digits}f}"


def significant(value: Any, digits: int) -> str:
    """A number with so many significant digits."""
    known = finite(value)
    return UNKNOWN if known is None else f"{known:.{digits}g}"


def three_digits(value: float) -> str:
    """0.170, 18.0, 1,234: as many digits as a time is worth."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def milliseconds(value: Any) -> str:
    """A time given in milliseconds."""
    known = finite(value)
    return UNKNOWN if known is None else f"{three_digits(known)} ms"


def times_between(interval: Any, scale: float = 1.0) -> str:
    """An interval of times; a fixed number of decimals would make `0.08 to 0.08` of a fast one."""
    return " to ".join(three_digits(end * scale) for end in interval) if between(interval) else ""


def count(value: Any) -> str:
    """A whole number, to the last digit."""
    known = finite(value)
    return UNKNOWN if known is None else f"{known:,.0f}"


def large(value: Any) -> str:
    """A whole number in thousands, millions or billions."""
    known = finite(value)
    if known is None:
        return UNKNOWN
    for unit, limit, scale in (("G", 1e9, 1e9), ("M", 1e6, 1e6), ("k", 1e4, 1e3)):
        if known >= limit:
            return f"{known / scale:.3g} {unit}"
    return f"{known:,.0f}"


def size(value: Any) -> str:
    """Bytes in decimal units."""
    known = finite(value)
    return UNKNOWN if known is None else console.size(known)


def seconds(value: Any) -> str:
    """A time given in seconds: `5 ms`, `42 s`, `3 min 05 s`."""
    known = finite(value)
    return UNKNOWN if known is None else milliseconds(1e3 * known) if known < 1 else duration(known)


def points(value: Any) -> str:
    """`1.00 points`, `1 point`."""
    known = finite(value)
    return UNKNOWN if known is None else f"{known:.2f} point{'' if f'{abs(known):.2f}' == '1.00' else 's'}"


def times(ratio: Any, more: str, less: str) -> tuple[str, str]:
    """A factor above 1, and the word for which way it goes: (`Faster`, `2.1×`)."""
    known = finite(ratio)
    if known is None or known <= 0:
        return more, UNKNOWN
    factor, word = change(known, more, less)
    return word, f"{factor:.2f}×" if factor < 10 else f"{factor:.1f}×"


def points_lost(drop: Any, interval: Any) -> Cell:
    """`1.10 points lost`, or gained, with its interval the same way round."""
    known = finite(drop)
    if known is None:
        return "", ""
    many, word, turned = lost(known, interval if between(interval) else None)
    return f"{points(many)} {word}", between(turned, 1, 2)


def amount(value: Any, ratio: bool = False) -> str:
    """An effect: `+2.17`, `× 0.62`."""
    known = finite(value)
    if known is None:
        return UNKNOWN
    return f"× {known:.2f}" if ratio else f"{known:+.2f}" if abs(known) >= 0.1 else f"{known:+.3f}"


def amounts(low: Any, high: Any, ratio: bool = False) -> str:
    """An effect's interval; empty where it has none."""
    ends = [amount(low, ratio), amount(high, ratio)]
    return "" if UNKNOWN in ends else " to ".join(ends)


def probability(value: Any) -> str:
    """A p-value."""
    known = finite(value)
    return UNKNOWN if known is None else "<0.001" if known < 0.001 else f"{known:.3f}"


def signed(value: Any) -> str:
    """A number with two decimals and its sign where it is below 0."""
    known = finite(value)
    return UNKNOWN if known is None else f"{known:z.2f}"


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
    last = name.rpartition(".")[2]
    if any(word in last for word in _PROPORTIONS) and abs(value) <= 1:
        return share(value, 2), between(interval, 100, 2)
    if last.endswith("bytes"):
        return size(value), ""
    if last.endswith(("milliseconds", "_ms")):
        return milliseconds(value), times_between(interval)
    if last.endswith("seconds"):
        return seconds(value), times_between(interval, 1e3) if value < 1 else ""
    if last in _WHOLE:
        return count(value), ""
    return words(row.get(name)), between(interval, 1, 3)


def leaves(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Cell]]:
    """The leaves of a nested mapping as (dotted name, value), at most as many as a table has rows."""
    rows: list[tuple[str, Cell]] = []
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            rows += leaves(inner, f"{prefix}{key}.")
        elif not (str(key).endswith("_interval") and str(key).removesuffix("_interval") in value):
            rows.append((f"{prefix}{key}", named(value, str(key))))
    return rows[:MAX_ROWS]


def records(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Cell]]]:
    """Records as columns and rows of cells; NAME_interval is put beside NAME, and empty columns are left out."""
    names = list(dict.fromkeys(str(key) for row in rows for key in row))
    names = [
        name
        for name in names
        if not (name.endswith("_interval") and name.removesuffix("_interval") in names)
        and any(row.get(name) not in (None, "", [], {}) for row in rows)
    ]
    return [name.replace("_", " ") for name in names], [[named(row, name) for name in names] for row in rows[:MAX_ROWS]]
