"""The page is one file, says what is known, and takes nothing from data for markup."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from kitae.errors import KitaeError
from kitae.reporting import page as p
from kitae.reporting.figures import draw_stochastic_depth
from kitae.run import Run
from tests.reporting.conftest import HOSTILE, epochs, pixels

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Reader(HTMLParser):
    """Collects tags and attributes; fails on markup that is not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def read(path: Path) -> tuple[str, Reader]:
    text = path.read_text(encoding="utf-8")
    return text, Reader(text)


def assert_self_contained(text: str, reader: Reader) -> None:
    assert not re.search(r"(?i)(https?:)?//[a-z0-9]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    assert "@import" not in text
    assert "url(" not in text
    used = {tag for tag, _ in reader.tags}
    assert not used & {"script", "link", "iframe", "object", "embed", "base", "form", "audio", "video", "svg"}
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            source = attributes["src"] or ""
            assert source.startswith("data:image/png;base64,")
            assert base64.b64decode(source.split(",", 1)[1], validate=True)[:4] == b"\x89PNG"
            assert attributes["alt"]
        assert not attributes.get("href") or str(attributes["href"]).startswith("#")
    assert any(a.get("name") == "viewport" for tag, a in reader.tags if tag == "meta")
    assert any("default-src 'none'" in (a.get("content") or "") for tag, a in reader.tags if tag == "meta")


def test_finished_run(make_run: Callable[..., Run]) -> None:
    run = make_run("my & run")
    path = p.report(run.path)
    assert path == run.report
    text, reader = read(path)
    assert_self_contained(text, reader)
    words = reader.words
    assert "my & run" in words
    assert "88.9 %" in words  # the accuracy of `measured`
    assert "83.9 to 92.9" in words
    assert "0.4321" in words
    assert "11.2 M" in words
    assert "opened once" in words
    assert "not finished" not in words
    assert "label_smoothing: 0.1" in words  # the recipe
    assert sum(tag == "img" for tag, _ in reader.tags) == 5


def test_strings_from_data_are_escaped(make_run: Callable[..., Run]) -> None:
    text, reader = read(p.report(make_run("<b>name</b>").path))
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<b>name</b>" in reader.words  # the name, as text
    for name in HOSTILE:
        assert name in reader.words
    assert "49" not in re.findall(r"frac\{1\}\$ (\S+)", reader.words)  # {{ 7*7 }} is not worked out
    assert "photo" in reader.words  # file names with quotes and markup
    assert not any(attributes.get("src") == "x" for tag, attributes in reader.tags if tag == "img")
    assert sum(tag == "img" for tag, _ in reader.tags) == 5


def test_unfinished_run_says_so(make_run: Callable[..., Run]) -> None:
    text, reader = read(p.report(make_run(done=False, rows=4)))
    assert_self_contained(text, reader)
    assert "not finished: 4 of 9 epochs" in reader.words
    assert "has not been opened" in reader.words
    assert "Test accuracy" not in reader.words
    assert sum(tag == "img" for tag, _ in reader.tags) == 1


def test_run_without_an_epoch(make_run: Callable[..., Run]) -> None:
    _, reader = read(p.report(make_run(done=False, rows=0)))
    assert "not finished: 0 of 9 epochs" in reader.words
    assert "No epoch has ended yet" in reader.words


def test_page_follows_the_run(make_run: Callable[..., Run]) -> None:
    """Reporting again after more epochs replaces page and curves."""
    run = make_run(done=False, rows=2)
    first = p.report(run).read_text()
    run.write_metrics(epochs(6))
    second = p.report(run).read_text()
    assert "2 of 9 epochs" in first
    assert "6 of 9 epochs" in second
    pictures = [re.findall(r"base64,([A-Za-z0-9+/=]+)", text)[0] for text in (first, second)]
    assert pictures[0] != pictures[1]


def test_run_whose_predictions_were_deleted(make_run: Callable[..., Run]) -> None:
    run = make_run()
    (run.path / "predictions.parquet").unlink()
    _, reader = read(p.report(run))
    assert "88.9 %" in reader.words
    assert "Calibration" not in re.findall(r"<h2>(.*?)</h2>", run.report.read_text())


def test_test_openings_are_told(make_run: Callable[..., Run]) -> None:
    run = make_run()
    run.count_test_opening("evaluate")
    run.count_test_opening("evaluate")
    _, reader = read(p.report(run))
    assert "opened 3 times" in reader.words


def test_nothing_is_left_beside_the_page(make_run: Callable[..., Run]) -> None:
    run = make_run()
    before = {entry.name for entry in run.path.iterdir()}
    p.report(run)
    assert {entry.name for entry in run.path.iterdir()} - before == {"report.html", "figures"}
    assert all(entry.suffix == ".png" for entry in run.figures.iterdir())


@pytest.mark.parametrize("what", ["missing", "empty", "a file"])
def test_unknown_folder_is_one_clear_line(what: str, tmp_path: Path) -> None:
    target = tmp_path / "there"
    if what == "empty":
        target.mkdir()
    if what == "a file":
        target.write_text("x")
    with pytest.raises(KitaeError) as caught:
        p.report(target)
    line = str(caught.value)
    assert "\n" not in line
    assert str(target) in line
    assert "run" in line


def test_damaged_files_are_named(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run()
    (run.path / "evaluation.json").write_text("{")
    with pytest.raises(KitaeError, match=r"evaluation\.json.*damaged"):
        p.report(run)
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "compression.json").write_text("[" * 100_000)
    with pytest.raises(KitaeError, match=r"compression\.json.*damaged"):
        p.report(folder)
    (folder / "compression.json").write_text("{}")
    (folder / "front.png").write_bytes(b"<svg onload=alert(1)>")
    with pytest.raises(KitaeError, match=r"front\.png.*not a PNG"):
        p.report(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(make_run: Callable[..., Run]) -> None:
    run = make_run(done=False, rows=0)
    run.path.chmod(0o500)
    try:
        with pytest.raises(KitaeError, match="cannot write"):
            p.report(run)
    finally:
        run.path.chmod(0o700)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (True, "yes"), (0.123456789, "0.12346"), ([1, "a"], "1, a"), (3, "3")],
)
def test_values_as_words(value: object, text: str) -> None:
    assert p.words(value) == text


def _study(folder: Path, *, finished: bool = True) -> Path:
    folder.mkdir()
    (folder / "study.yaml").write_text("study: {name: mine}  # <script>alert(2)</script>\n")
    if not finished:
        return folder
    effect = {
        "name": HOSTILE[0], "estimate": 2.17, "low": 1.48, "high": 2.86, "p_holm": 0.0004, "pairs": 12, "shown": True,
        "ratio": False, "covers": "seeds", "uneven": True, "neutral": 0.0,
    }  # fmt: skip
    unknown = {**effect, "name": "b", "estimate": None, "low": None, "high": None, "p_holm": None, "shown": False}
    factor = {**effect, "name": "c", "ratio": True, "estimate": 0.62, "low": 0.5, "high": 0.8, "neutral": 1.0}
    noise = {
        "sd": 0.49,
        "low": 0.31,
        "high": 1.07,
        "df": 6,
        "reference": "off",
        "reference_mean": 84.93,
        "reference_sd": 0.36,
    }
    data = {
        "name": "mine", "about": HOSTILE[1], "design": "screening", "metric": "test.accuracy", "seeds": [0, 1, 2],
        "settings": {"threads": 1, "training_hours": 0.5, "machine": {"processor": HOSTILE[2]}},
        "runs": {"planned": 12, "finished": 11, "failed": [{"variant": HOSTILE[0], "seed": 1, "error": "boom"}]},
        "analyses": {
            "test.accuracy": {"unit": "points", "noise": noise, "effects": [effect, unknown]},
            "epoch_seconds": {"unit": "s", "noise": {"sd": None, "df": 0}, "effects": [factor]},
        },
        "sentences": [f"{HOSTILE[0]}: helps"],
        "claims": [{"says": HOSTILE[1], "estimate": 2.17, "low": 1.48, "high": 2.86, "ratio": False,
                    "verdict": "confirmed", "remark": "larger"}],
        "variants": [{"name": HOSTILE[0], "runs": 3, "numbers": {"test.accuracy": {"mean": 84.93, "sd": None}}}],
        "aliases": {"a": [["b", "c", -0.5]], "b": []},
    }  # fmt: skip
    (folder / "effects.json").write_text(json.dumps(data))
    draw_stochastic_depth([1, 0.9], folder / "figures" / "effects.png")
    return folder


def test_study(tmp_path: Path) -> None:
    path = p.report(_study(tmp_path / "study"))
    assert path == tmp_path / "study" / "report.html"
    text, reader = read(path)
    assert_self_contained(text, reader)
    assert "<script>alert" not in text
    words = reader.words
    numbers = ["+2.17", "+1.48 to +2.86", "<0.001", "× 0.62", "0.49 points", "−0.5 b × c", "84.93", "30 min 00 s"]
    told_too = ["1 of 12 runs did not finish", "confirmed", "not known", "study: {name: mine}", "boom"]
    for told in (*HOSTILE, *numbers, *told_too):
        assert told in words, told
    assert sum(tag == "img" for tag, _ in reader.tags) == 1


def test_unfinished_study_says_so(tmp_path: Path) -> None:
    text, reader = read(p.report(_study(tmp_path / "study", finished=False)))
    assert_self_contained(text, reader)
    assert "not finished" in reader.words


def _compression(folder: Path) -> Path:
    folder.mkdir()
    models = [
        {"name": HOSTILE[i], "bytes": 44.7e6 / 4**i, "accuracy": 0.94 - 0.01 * i, "accuracy_interval": [0.9, 0.95],
         "latency_ms": 18.0 / 3**i, "parameters": 545_098}
        for i in range(3)
    ]  # fmt: skip
    facts = {
        "name": "<b>small</b>",
        "original": {**models[0], "split": "test"},
        "winner": {**models[1], "split": "test"},
        "budget": {"accuracy": 0.925},
        "sensitivity": [{"layer": HOSTILE[0], "accuracy": 0.9123}],
        "latency": {"control": {"value": 1.003}},
        "unheard_of": {"a": [1, 2]},
    }
    (folder / "compression.json").write_text(json.dumps(facts))
    pyarrow.parquet.write_table(pa.Table.from_pylist(models), folder / "front.parquet")
    return folder


def test_compression(tmp_path: Path) -> None:
    folder = _compression(tmp_path / "small")
    text, reader = read(p.report(folder))
    assert_self_contained(text, reader)
    assert "<script>alert" not in text
    numbers = ["93.00 %", "-1.00 points", "11.2 MB", "4.0× smaller, from 44.7 MB", "6 ms", "3.0× faster", "545,098"]
    for told in (*HOSTILE, *numbers, "91.23 %", "control.value", "1.003", "Unheard of", "1, 2", "<b>small</b>"):
        assert told in reader.words, told
    assert pixels(folder / "figures" / "pareto.png").any()  # drawn, since there was no picture of the front
    assert sum(tag == "img" for tag, _ in reader.tags) == 1


def test_a_picture_of_the_front_is_left_alone(tmp_path: Path) -> None:
    folder = _compression(tmp_path / "small")
    drawn = draw_stochastic_depth([1, 0.9], folder / "figures" / "pareto-front.png").read_bytes()
    p.report(folder)
    assert [file.name for file in (folder / "figures").iterdir()] == ["pareto-front.png"]
    assert (folder / "figures" / "pareto-front.png").read_bytes() == drawn
