"""Charts: round ticks, text that fits and is escaped, colours that can be read."""

from __future__ import annotations

import itertools
import re
from importlib import resources
from xml.etree import ElementTree

import pytest

from kitae.reporting import svg
from kitae.reporting.charts import robust
from kitae.reporting.study_charts import arms_chart
from kitae.reporting.svg import Chart, Plot, Row, Scale
from tests.reporting.conftest import HOSTILE


@pytest.mark.parametrize(
    ("low", "high", "most", "found"),
    [
        (0, 1, 6, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.17, 0.83, 5, [0.2, 0.4, 0.6, 0.8]),
        (-18.1, 7.7, 6, [-15, -10, -5, 0, 5]),
        (1, 4, 6, [1, 2, 3, 4]),
        (3, 3, 6, [3]),
    ],
)
def test_ticks_are_round(low: float, high: float, most: int, found: list[float]) -> None:
    assert svg.ticks(low, high, most) == pytest.approx(found)


def test_there_are_never_too_many_ticks() -> None:
    for high, most, share in itertools.product((1e-9, 0.3, 7.0, 123.0, 5e8), (2, 3, 6), (-1, 0.0, 0.9)):
        found = svg.ticks(share * high, high, most)
        assert len(found) <= most
        assert all((share - 1e-9) * high <= value <= high * (1 + 1e-9) for value in found)
    for low, high in ((3e4, 2e6), (1e5, 1.2e5), (10, 1e10)):
        found = svg.log_ticks(low, high)
        assert 2 <= len(found) <= 6
        assert all(low <= value <= high for value in found)


def test_a_scale_holds_what_is_outside_at_its_ends() -> None:
    scale = Scale(1, 100, 0, 200, log=True)
    assert [scale(value) for value in (0.5, 1, 10, 100, 1e6)] == pytest.approx([0, 0, 100, 200, 200])
    assert Scale(3, 3, 0, 10)(3) == 5
    assert svg.spread([10, 11, 90], 10, 0, 100) == [10, 20, 90]
    assert svg.spread([99, 98], 10, 0, 100) == [100, 90]
    assert svg.spread([], 10, 0, 100) == []


def test_text_fits_its_width() -> None:
    for text in ("", "one", "word " * 60, "x" * 500, "a\nb\tc\x00d", "猫" * 60, "\u202e x"):
        line = svg.fit(text, 120)
        assert svg.text_width(line) <= 120
        assert not re.search(r"[\x00-\x1f\u202e]", line)
    assert svg.text_width("猫猫猫") == 3 * svg.SIZE
    assert svg.text_width("iii") < svg.text_width("mmm")


def test_every_text_is_escaped() -> None:
    for name in HOSTILE:
        chart = Chart("name", name, name, 100)
        chart.text(0, 10, name, width=1000)
        chart.text(0, 10, name * 20, width=50)
        chart.circle(1, 1, 1, "f1", name)
        row = Row(name, name, lambda chart, scale, y: None, name, name)
        rows = svg.rows_chart("rows", name, name, [row], 0, 1, "{:g}".format, label=name)
        drawn = chart.__html__() + rows.__html__()
        assert not re.search(r"<(?!/?(svg|title|desc|text|tspan|circle|line)\b)", drawn)
        assert "onload" not in drawn


def test_a_file_is_xml_whatever_names_contain() -> None:
    chart = Chart("name", "a\x0bb", "\x00\uffff\ud800", 100)
    chart.circle(1, 1, 1, "f1", "tab\tand\x1bescape 猫😀")
    root = ElementTree.fromstring(chart.file())
    assert root.findtext("{*}title") == "a\ufffdb"
    assert root.findtext("{*}circle/{*}title") == "tab\tand\ufffdescape 猫😀"


@pytest.mark.parametrize("values", [[0.5], [None, 0.5, None]])
def test_a_point_that_no_other_is_joined_to_is_seen(values: list[float | None]) -> None:
    chart = Chart("c", "c", "", 100)
    Plot(chart, Scale(0, 4, 0, 40), Scale(0, 1, 100, 0)).line(range(len(values)), values, "s3")
    (dot,) = chart.parts
    assert dot.startswith("<circle")
    assert 'cy="50.0"' in dot
    assert 'class="f3"' in dot  # an area of the series, in the colour of its line


def test_an_axis_is_not_stretched_by_an_early_value() -> None:
    values = [500.0, *[1.0 + 0.01 * k for k in range(40)]]
    low, high, note = robust(values, values[10:])
    assert (low, high) == pytest.approx((0.9, 2.2), abs=1.0)
    assert "500" in note
    assert robust([1.0, 2.0]) == (pytest.approx(0.94), pytest.approx(2.06), "")
    _, high, note = robust(values, values)  # what has to be inside is
    assert high > 500
    assert note == ""


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _contrast(one: str, other: str) -> float:
    a, b = sorted((_luminance(one), _luminance(other)))
    return (b + 0.05) / (a + 0.05)


def _mixed(colour: str, paper: str, opacity: float) -> str:
    pairs = [(int(colour[i : i + 2], 16), int(paper[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(opacity * a + (1 - opacity) * b):02x}" for a, b in pairs)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(scheme: str) -> None:
    """WCAG's 4.5 for text, 3 for marks; axe cannot see into charts."""
    folder = resources.files("kitae.reporting").joinpath("templates")
    css = folder.joinpath("chart.css").read_text() + folder.joinpath("style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[: 1 if scheme == "light" else 2]
    colours = {name: value for block in blocks for name, value in re.findall(r"--([\w-]+): (#\w{6})", block)}
    card = colours["card"]
    for name in ("ink", "muted", "accent", "s1", "s2", "s3", "good", "bad"):
        assert _contrast(colours[name], card) >= 4.5, name
    for name in ("s4", "s5", "s6", "hit", "miss"):
        assert _contrast(colours[name], card) >= (3 if name[0] == "s" else 2.5), name
    assert _contrast(colours["warn"], colours["warn-soft"]) >= 4.5
    assert _contrast(colours["muted"], colours["soft"]) >= 4.5
    for name in ("hit", "miss"):  # numbers in the cells of the confusion matrix
        for strength in (0.0, 0.3, 0.6, 0.9, 1.0):
            cell = _mixed(colours[name], card, 0.08 + 0.62 * strength)
            assert _contrast(colours["ink"], cell) >= 4.5, (name, strength)


@pytest.mark.parametrize(("value", "span", "broken"), [("90.0 %", "(83 to 94)", True), ("9", "", False)])
def test_a_line_through_the_rows_is_broken_where_there_is_text(value: str, span: str, broken: bool) -> None:
    row = Row("a", value, lambda chart, scale, y: None, "", span)
    drawn = svg.rows_chart("rows", "a", "b", [row, row], 0, 1, "{:g}".format, dashed=0.9).__html__()
    number = r"([\d.]+)"
    lines = re.findall(rf'<line x1="{number}" y1="{number}" x2="{number}" y2="{number}" class="d"/>', drawn)
    over = [(float(y) - 9, float(y)) for y in re.findall(rf'<text x="350.0" y="{number}" text-anchor="end"', drawn)]
    assert len(over) == 2
    clear = all(float(end) <= low or float(start) >= high for _, start, _, end in lines for low, high in over)
    assert clear == broken
    assert sum(float(end) - float(start) for _, start, _, end in lines) > 30


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("not pruned, INT8", ["not pruned, INT8"]),
        ("not pruned, INT8, first layer in float32", ["not pruned,", "INT8, first layer in float32"]),
        ("50 % pruned, trained from scratch, INT8", ["50 % pruned,", "trained from scratch, INT8"]),
        ("a name of some words without a comma", ["a name", "of some words without a comma"]),
        ("one-word-without-any-room-beside-its-value", ["one-word-without-any-room-beside-its-value"]),
    ],
)
def test_a_label_without_room_is_broken_after_a_comma_if_it_has_one(label: str, lines: list[str]) -> None:
    assert svg._beside(Row(label, "0.430 ms, 9.23×", lambda chart, scale, y: None)) == lines


def test_arms_of_a_search() -> None:
    """Those that were trained to the end are filled, presets are diamonds, and what was never trained is left out."""
    arms = [
        {"number": 0, "preset": True, "rungs": [[3, 0.5], [9, 0.9]]},
        {"number": 1, "preset": False, "rungs": [[3, 0.4]]},
        {"number": 2, "preset": False, "rungs": [[3, 0.6], [9, 0.9]]},
        {"number": 3, "preset": False, "rungs": []},
    ]
    svg = arms_chart(arms, 2).__html__()  # of equal accuracy, and a lower loss
    assert "3 arms, 2 of them trained for 9 epochs. The best of these is arm 2: 90.0 %." in svg
    marks = re.findall(r'<(path|circle) [^>]*class="([^"]*)"><title>arm (\d)', svg)
    assert marks == [("path", "f2", "0"), ("circle", "e s1", "1"), ("circle", "f1", "2")]
    short = arms_chart([{"number": 0, "preset": True, "rungs": [[1, 0.5]]}]).__html__()
    for told in ("1 arm, 1 of them trained for 1 epoch.", "filled: 1 epoch,", "50.0 % after 1 epoch<"):
        assert told in short
    assert "0 arms" in arms_chart([]).__html__()
