"""Charts as inline SVG: real text, colours from CSS variables, title and description for screen readers.

A chart is drawn for 360 units of width, about a phone's, and scales with its column; text stays text, so it can be
selected, zoomed, searched and shown in any script that the reader's machine has a font for. The font is not known here,
so widths of text are estimated: a wide character (East Asian) is one em, others about 0.6.

Every text is escaped. Classes that the style sheet knows:

    text     t (a tick or a note), l (a label), v (a value), h (a heading)
    lines    g (grid), a (axis), d (dashed), w (an interval), s1 to s6 (series)
    areas    f1 to f6 (series), b1 to b6 (a pale band), e (an empty mark), n (neutral), gone (removed)
"""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from itertools import groupby

WIDTH = 360.0
SIZE = 12.0  # of text
LINE = 16.0
SERIES = 6
MARGIN = 10  # of a file: labels of an axis may reach over the frame
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production 2

Point = tuple[float, float]
Form = Callable[[float], str]


def text_width(text: str, size: float = SIZE) -> float:
    """The width of a text, estimated for a wide sans-serif."""
    return size * sum(map(_ems, text))


def _ems(character: str) -> float:
    if unicodedata.combining(character):
        return 0.0
    if unicodedata.east_asian_width(character) in "WF":
        return 1.0
    if character in " .,:;'|!ijlftr()[]-":
        return 0.38
    if character in "mwMW%@&<>+=~×":
        return 0.9
    return 0.7 if character.isupper() else 0.62


def fit(text: object, width: float, size: float = SIZE) -> str:
    """`text` in one line of at most `width`; see `elided`."""
    return elided(one_line(text), lambda line: text_width(line, size) <= width)


def one_line(text: object) -> str:
    """`text` with control characters and runs of white space as single spaces."""
    return " ".join("".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in str(text)).split())


def elided(line: str, fits: Callable[[str], bool]) -> str:
    """The line, or as much of its two ends as fits, with an ellipsis between them."""

    def short(keep: int) -> str:
        tail = keep // 3
        return line[: keep - tail].rstrip() + "…" + (line[-tail:].lstrip() if tail else "")

    if fits(line):
        return line
    return short(bisect_left(range(1, len(line)), True, key=lambda keep: not fits(short(keep))))


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers in [low, high]: multiples of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        return [low]
    power = 10.0 ** (math.floor(math.log10(high - low)) - 2)
    for step in (power * scale * factor for scale in (1, 10, 100, 1000) for factor in (1, 2, 2.5, 5)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [k * step for k in range(first, last + 1)]
    raise AssertionError("a step of ten times the range leaves two numbers at most")


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers in [low, high], for a logarithmic axis."""
    found: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = [s * 10.0**e for e in range(-12, 16) for s in steps if low <= s * 10.0**e <= high]
        if len(found) >= 3:
            break
    if len(found) < 2:
        found = sorted({float(f"{low * (high / low) ** share:.2g}") for share in (0.15, 0.85)})
    return found[:: -(-len(found) // most)]


@dataclass(frozen=True)
class Scale:
    """Maps values in [low, high] to coordinates in [start, end]; values outside are clamped."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.high <= self.low:
            return (self.start + self.end) / 2
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        return log_ticks(self.low, self.high, most) if self.log else ticks(self.low, self.high, most)

    def whole(self, most: int = 6) -> list[float]:
        """The ticks that are whole numbers."""
        return [tick for tick in self.ticks(most) if tick == round(tick)]


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least `gap` apart and inside [low, high], each as close as possible to its original position."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [min(max(places[i], low), high) for i in order]
    for k in range(1, len(moved)):
        moved[k] = max(moved[k], moved[k - 1] + gap)
    if moved and moved[-1] > high:
        moved[-1] = high
        for k in range(len(moved) - 2, -1, -1):
            moved[k] = min(moved[k], moved[k + 1] - gap)
    result = [0.0] * len(places)
    for i, place in zip(order, moved, strict=True):
        result[i] = place
    return result


@dataclass
class Chart:
    """An SVG being drawn; y grows downwards.

    Attributes:
        name: unique on the page, of letters, digits and dashes: the ids of title and description are made of it.
        title, description: what a screen reader says: what the chart is, and what it shows.
    """

    name: str
    title: str
    description: str
    height: float
    parts: list[str] = field(default_factory=list)  # markup in which every text is escaped already

    def line(self, x1: float, y1: float, x2: float, y2: float, look: str) -> None:
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{look}"/>')

    def rect(self, x: float, y: float, width: float, height: float, look: str, about: str = "") -> None:
        self._mark(f'rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" class="{look}"',
                   about)  # fmt: skip

    def circle(self, x: float, y: float, radius: float, look: str, about: str = "") -> None:
        self._mark(f'circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" class="{look}"', about)

    def path(self, points: Iterable[Point], look: str, about: str = "", close: bool = False) -> None:
        """A line through points."""
        steps = " ".join(f"{x:.1f} {y:.1f}" for x, y in points)
        if steps:
            self._mark(f'path d="M{steps}{"Z" if close else ""}" class="{look}"', about)

    def diamond(self, x: float, y: float, radius: float, look: str, about: str = "") -> None:
        self.path([(x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)], look, about, close=True)

    def star(self, x: float, y: float, radius: float, look: str, about: str = "") -> None:
        turns = [(math.pi * k / 5, radius if k % 2 == 0 else radius * 0.45) for k in range(10)]
        self.path([(x + r * math.sin(a), y - r * math.cos(a)) for a, r in turns], look, about, close=True)

    def text(
        self, x: float, y: float, text: object, look: str = "t", *, anchor: str = "start", width: float | None = None,
        turn: float | None = None, size: float = SIZE,
    ) -> None:  # fmt: skip
        """One line; its baseline is at y. Longer text than `width` is cut; hovering shows all of it."""
        shown = str(text) if width is None else fit(text, width, size)
        place = f'x="{x:.1f}" y="{y:.1f}"'
        if turn is not None:
            place += f' transform="rotate({turn:g} {x:.1f} {y:.1f})"'
        if anchor != "start":
            place += f' text-anchor="{anchor}"'
        if size != SIZE:
            place += f' font-size="{size:g}"'
        whole = f"<title>{escape(str(text))}</title>" if shown != str(text) else ""
        self.parts.append(f'<text {place} class="{look}">{whole}{escape(shown)}</text>')

    def _mark(self, tag: str, about: str) -> None:
        name = tag.split(" ", 1)[0]
        self.parts.append(f"<{tag}><title>{escape(about)}</title></{name}>" if about else f"<{tag}/>")

    def __html__(self) -> str:
        """The SVG element. Templates insert it unchanged, since every text in it is escaped already."""
        return self._svg("", 0, "")

    def file(self) -> str:
        """The same as an SVG file: with the style that pages have for it, in light colours on white, and a margin."""
        style = resources.files("kitae.reporting").joinpath("templates/chart.css").read_text(encoding="utf-8")
        size = f'width="{WIDTH + 2 * MARGIN:g}" height="{self.height + 2 * MARGIN:g}"'
        paper = f'<rect x="-{MARGIN}" y="-{MARGIN}" {size} fill="#fff"/>'
        space = f'xmlns="http://www.w3.org/2000/svg" width="{2 * (WIDTH + 2 * MARGIN):g}" font-family="sans-serif" '
        return _NOT_XML.sub("\ufffd", self._svg(space, MARGIN, f"<style>{style}</style>{paper}"))

    def _svg(self, attributes: str, margin: int, below: str) -> str:
        view = f"{-margin} {-margin} {WIDTH + 2 * margin:g} {self.height + 2 * margin:g}"
        return (
            f'<svg {attributes}role="img" class="chart" viewBox="{view}" aria-labelledby="{self.name}-t {self.name}-d">'
            f'{below}<title id="{self.name}-t">{escape(self.title)}</title>'
            f'<desc id="{self.name}-d">{escape(self.description)}</desc>{"".join(self.parts)}</svg>'
        )


@dataclass(frozen=True)
class Plot:
    """A frame with two axes inside a chart."""

    chart: Chart
    x: Scale
    y: Scale

    def axes(
        self, x_label: str = "", x_form: Form | None = None, y_form: Form = "{:g}".format, *,
        x_ticks: Sequence[float] | None = None, y_ticks: Sequence[float] | None = None, upright: bool = False,
    ) -> None:  # fmt: skip
        """Grid (`upright`: of vertical lines too), ticks and labels; without `x_form` the x axis has no ticks."""
        chart, (left, right), (bottom, top) = self.chart, (self.x.start, self.x.end), (self.y.start, self.y.end)
        for value in y_ticks if y_ticks is not None else self.y.ticks(max(3, int((bottom - top) / 26))):
            place = self.y(value)
            chart.line(left, place, right, place, "g")
            chart.text(left - 6, place + 4, y_form(value), anchor="end")
        chart.line(left, bottom, right, bottom, "a")
        if x_form is not None:
            last = -math.inf
            for value in x_ticks if x_ticks is not None else self.x.ticks(6):
                place, label = self.x(value), x_form(value)
                half = text_width(label) / 2
                if place - half < last:
                    continue
                last = place + half + 6
                if upright:
                    chart.line(place, top, place, bottom, "g")
                chart.line(place, bottom, place, bottom + 4, "a")
                chart.text(place, bottom + LINE, label, anchor="middle")
        if x_label:
            chart.text((left + right) / 2, bottom + 2 * LINE + 2, x_label, anchor="middle", width=right - left + 60)

    def line(self, xs: Sequence[float], ys: Sequence[float | None], look: str) -> None:
        """A line of a series, s1 and so on, broken where a value is not known; a point alone is a dot."""
        for _, run in groupby(zip(xs, ys, strict=False), key=lambda pair: pair[1] is None):
            points = [(self.x(a), self.y(b)) for a, b in run if b is not None]
            if len(points) == 1:
                self.chart.circle(*points[0], 3.5, f"f{look[1:]}")
            else:
                self.chart.path(points, look)

    def band(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], look: str) -> None:
        """The area between two lines."""
        there, back = ([(self.x(x), self.y(y)) for x, y in zip(xs, ys, strict=False)] for ys in (low, high))
        if len(xs) > 1:
            self.chart.path([*there, *reversed(back)], look, close=True)


@dataclass(frozen=True)
class Row:
    """A row of `rows_chart`: a label and a value above what is drawn.

    Attributes:
        draw: gets the chart, the scale and the y of the row's middle.
        about: a note after the label, span: one after the value; both quieter.
    """

    label: str
    value: str
    draw: Callable[[Chart, Scale, float], None]
    about: str = ""
    span: str = ""


ROW = 38.0


def frame(
    chart: Chart, top: float, x: tuple[float, float], y: tuple[float, float], *, tall: float = 200.0,
    left: float = 46.0, right: float = 14.0, log: bool = False,
) -> Plot:  # fmt: skip
    """The one plot of a chart, from `top` down, with room for its axes; the height of the chart follows."""
    chart.height = top + tall + 42
    return Plot(chart, Scale(*x, left, WIDTH - right, log), Scale(*y, top + tall, top))


def series(kind: str, place: int) -> str:
    """The class of a line (s), area (f) or band (b) of a series."""
    return f"{kind}{place % SERIES + 1}"


def interval_mark(
    chart: Chart, scale: Scale, y: float, *, value: float, ends: tuple[float, float] | None, look: str,
    about: str = "", hollow: bool = False,
) -> None:  # fmt: skip
    """A dot and its interval in a row."""
    if ends is not None:
        chart.line(scale(ends[0]), y, scale(ends[1]), y, f"w {look}")
    chart.circle(scale(value), y, 5, "e " + look if hollow else f"f{look[1:]}" if look[0] == "s" else look, about)


def _beside(row: Row) -> list[str]:
    """A row's label as one or two lines; the last leaves room for a value.

    It is broken after a comma if that fits. The interval is never left out: if the label has no room beside it, the
    last line is empty.
    """
    words, room, whole = row.label.split(" "), _room(row), text_width(row.label)
    if whole <= room:
        return [row.label]
    if row.span and whole <= WIDTH - 20:
        return [row.label, ""]
    breaks = [[" ".join(words[:k]), " ".join(words[k:])] for k in range(1, len(words))]
    breaks = [lines for lines in breaks if text_width(lines[0]) <= WIDTH - 20] or [[row.label]]
    fitting = [lines for lines in breaks if text_width(lines[-1]) <= room]
    lines = next((lines for lines in fitting if lines[0].endswith(",")), (fitting or breaks[-1:])[0])
    return [*lines, ""] if row.span and text_width(lines[-1]) > room else lines


def _room(row: Row) -> float:
    """The width beside a row's value and its interval."""
    value = WIDTH - 28 - text_width(row.value, SIZE * 1.08)  # bold is wider
    return value - (text_width(row.span) + 4 if row.span else 0)


def rows_chart(
    name: str, title: str, description: str, rows: Sequence[Row], low: float, high: float, form: Form, *,
    label: str = "", log: bool = False, neutral: float | None = None, dashed: float | None = None,
    band: tuple[float, float] | None = None, items: Sequence[tuple[str, str]] = (),
) -> Chart:  # fmt: skip
    """Rows on one horizontal axis, each with its text above it, so that long labels need no room beside the marks.

    Args:
        form: a tick's text. label: of the axis.
        neutral, dashed: where a vertical line is drawn, except through text. band: a pale area behind the rows.
        items: of a legend above.
    """
    chart = Chart(name, title, description, 0)
    top = legend(chart, 10, 14, items) if items else 6.0
    texts: list[tuple[float, float, float]] = []  # left, right and base of each
    middles: list[float] = []
    written: list[str] = []

    def write(row: Row, line: str, y: float, room: float, about: str = "") -> None:
        """A line of a row's label, and a note where it has room."""
        if not line:
            return
        shown = fit(line, room)
        whole = f"<title>{escape(row.label)}</title>" if shown != line else ""
        noted = bool(about) and text_width(shown + about) + 6 <= room
        note = f'<tspan class="t"> {escape(about)}</tspan>' if noted else ""
        texts.append((10, 10 + text_width(f"{shown} {about}" if noted else shown), y))
        written.append(f'<text x="10.0" y="{y:.1f}" class="l">{whole}{escape(shown)}{note}</text>')

    y = top
    for row in rows:
        *above, last = _beside(row)
        for line in above:
            write(row, line, y + 15, WIDTH - 20)
            y += LINE
        room = _room(row)
        write(row, last, y + 15, room, row.about)
        texts.append((18 + room, WIDTH - 10, y + 15))
        value = f'<tspan class="v">{escape(row.value)}</tspan>'
        value += f'<tspan class="t"> {escape(row.span)}</tspan>' if row.span else ""
        written.append(f'<text x="{WIDTH - 10:.1f}" y="{y + 15:.1f}" text-anchor="end">{value}</text>')
        middles.append(y + 27)
        y += ROW
    bottom = y
    chart.height = bottom + (2 * LINE + 8 if label else LINE + 6)
    scale = Scale(low, high, 10, WIDTH - 10, log)
    if band is not None:
        chart.rect(scale(band[0]), top, scale(band[1]) - scale(band[0]), bottom - top, "pale")
    plot = Plot(chart, scale, Scale(0, 1, bottom, top))
    plot.axes(label, form, y_ticks=(), upright=True)
    for at, look in ((dashed, "d"), (neutral, "a")):
        if at is not None:
            x = scale(at)
            over = sorted({base for left, right, base in texts if left - 4 <= x <= right + 4})
            starts, ends = [top, *(base + 4 for base in over)], [*(base - 13 for base in over), bottom]
            for start, end in zip(starts, ends, strict=True):
                if end > start:
                    chart.line(x, start, x, end, look)
    chart.parts += written
    for row, middle in zip(rows, middles, strict=True):
        row.draw(chart, scale, middle)
    return chart


def legend(chart: Chart, x: float, y: float, items: Sequence[tuple[str, str]]) -> float:
    """Squares with their names, in lines that fit; returns the y below."""
    start = x
    for look, name in items:
        needed = 14 + text_width(name) + 14
        if x > start and x + needed > WIDTH:
            x, y = start, y + LINE
        chart.rect(x, y - 9, 10, 10, look)
        chart.text(x + 14, y, name, "t", width=WIDTH - x - 14)
        x += needed
    return y + LINE
