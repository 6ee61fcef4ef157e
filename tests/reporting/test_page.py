"""The page is one file, says what is known, and takes nothing from data for markup."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kitae.errors import KitaeError
from kitae.pipelines.compress import compress
from kitae.pipelines.train import train
from kitae.recipe import Recipe
from kitae.reporting import page as p
from kitae.reporting.figures import draw_stochastic_depth
from kitae.reporting.values import words
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
    folder = _compression(tmp_path / "whole")
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
    assert words(value) == text


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


MEASURED = Path(__file__).parent / "compressions"  # as kitae compress wrote them; published figures move on


def _compression(folder: Path, name: str = "demo", **changes: Any) -> Path:
    """A folder with the compression.json of a real compression, as `kitae compress` wrote it, but for `changes`."""
    folder.mkdir()
    facts = json.loads((MEASURED / f"{name}.json").read_text())
    facts.pop("note")  # only the kept results have one
    (folder / "compression.json").write_text(json.dumps({**facts, **changes}))
    return folder


def assert_told(words: str, *told: str) -> None:
    for one in told:
        assert one in words, one


def _rows_of(text: str, heading: str) -> list[list[str]]:
    """Cells of the first table under a heading, without markup."""
    section = text.split(f"<h2>{heading}</h2>")[1].split("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", section.split("</table>")[0])
    return [[re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def test_compression(tmp_path: Path) -> None:
    """The numbers of `make demo`: within the budget on validation, past it on test, which the page must not hide."""
    folder = _compression(tmp_path / "small")
    text, reader = read(p.report(folder))
    assert_self_contained(text, reader)
    words = reader.words
    warnings = re.findall(r'<p class="warn">(.*?)</p>', text)
    assert warnings == [
        "65 % int8-static is within the budget on validation, but on test it loses 1.10 points, more than the budget "
        "of 1."
    ]
    cards = re.findall(r"<li[^>]*><span>(.*?)</span><b>(.*?)</b>(?:<span>(.*?)</span>)?</li>", text)
    assert cards == [
        ("Smaller", "27.2×", "60.8 kB, from 1.66 MB"),
        ("Faster", "2.08×", "0.0827 ms an image, from 0.170 ms"),
        ("Test accuracy", "90.10 %", "88.09 to 91.80, original 91.20 %"),
        ("Points lost on test", "1.10", "-0.31 to 2.58, below 0 is a gain"),
    ]
    result = {row[0]: row[1:] for row in _rows_of(text, "Result")}
    assert result["Name"] == ["original fp32", "65 % int8-static", ""]
    assert result[""] == ["Original", "Winner", "Change"]
    assert result["Accuracy on test"] == [
        "91.20 % 89.28 to 92.80", "90.10 % 88.09 to 91.80", "1.10 points lost -0.31 to 2.58"
    ]  # fmt: skip
    assert result["Accuracy on validation"][1:] == ["92.83 % 90.49 to 94.64", "0.50 points lost -0.94 to 2.02"]
    assert result["File"] == ["1.66 MB 1,655,732 bytes", "60.8 kB 60,780 bytes", "27.2× smaller"]
    assert result["Latency of one image"] == [
        "0.170 ms 0.170 to 0.173", "0.0827 ms 0.0815 to 0.0831", "2.08× faster 2.05 to 2.11"
    ]  # fmt: skip
    assert result["Parameters"] == ["412,656", "51,206", "8.06× fewer"]
    candidates = {row[0]: row[1:] for row in _rows_of(text, "Candidates")}
    assert len(candidates) == 1 + 10
    assert candidates["65 % int8-static winner, front"] == [
        "92.83 % 90.49 to 94.64", "0.50 -0.94 to 2.02", "60.8 kB", "0.0827 ms 0.0815 to 0.0831", "2.08× 2.05 to 2.11"
    ]  # fmt: skip
    assert candidates["20 % fp32"][1] == "-0.17 -1.52 to 1.15"
    assert_told(words, "at most 1 point of accuracy lost", "Test (1,000 images) was opened once", "(600 images)")
    assert_told(words, "in each of 50 rounds", "0.996× (0.990 to 1.003): differences below 1.0 %")
    assert _rows_of(text, "Sensitive layers")[1] == ["network.stem.0.weight", "0.00053", "0.00 %", "92.77 %"]
    assert_told(words, "AMD EPYC, 2 cores, with VNNI, on 2026-11-24, by Kitae 0.1.0", "finetune_epochs")
    assert "Left out" not in words
    assert "not tried" not in words
    assert pixels(folder / "figures" / "pareto.png").any()  # drawn, since there was no picture of the front
    assert sum(tag == "img" for tag, _ in reader.tags) == 1


def test_compression_that_kept_its_budget_has_no_warning(tmp_path: Path) -> None:
    text, reader = read(p.report(_compression(tmp_path / "small", "quick-structured")))
    assert 'class="warn"' not in text
    assert_told(reader.words, "15.4×", "7.71×", "89.56 %", "0.60", "0.21 to 1.00", "0.05 points gained -0.83 to 0.93")
    assert "below 0 is a gain" not in text.split("</ul>")[0]  # the interval of what was lost has no gain in it


def test_compression_in_which_nothing_met_the_budget(tmp_path: Path) -> None:
    """No test, no winner: the closest, why it is not one, and validation named as such."""
    folder = _compression(
        tmp_path / "small", within_budget=False, test=None, why_not="has 60,780 bytes, not 1,000", faster=0.5
    )
    text, reader = read(p.report(folder))
    words = reader.words
    assert re.findall(r'<p class="warn">(.*?)</p>', text) == [
        "No candidate is within the budget. The closest, 65 % int8-static, has 60,780 bytes, not 1,000; it is kept as "
        "closest.onnx."
    ]
    assert_told(words, "Validation accuracy", "92.83 %", "Points lost on validation", "0.50", "Test was not opened")
    assert_told(words, "65 % int8-static, the closest to the budget", "65 % int8-static closest, front", "the star is")
    assert_told(words, "Slower", "2.00×")
    assert "Test accuracy" not in words
    assert "Accuracy on test" not in words
    assert "Winner" not in words


def test_what_a_compression_did_not_get(tmp_path: Path) -> None:
    """Left-out candidates, ratios not tried, controls, zeros that shrink a file only when packed, and news."""
    facts = json.loads((MEASURED / "demo.json").read_text())
    control = {**facts["candidates"][-2], "name": "random, 65 % fp32", "control": True, "front": False}
    sparse = {**facts["winner"], "nonzero": 20_000}
    folder = _compression(
        tmp_path / "small", left_out=[{"name": "50 % int8-qat", "why": "the file <b>computes</b> something else"}],
        stopped="ratios above 0.65 were not tried: this one loses 4.00 points", size="packed_bytes", winner=sparse,
        candidates=[*facts["candidates"], control], unheard_of={"a": [1, 2]}, news=3,
    )  # fmt: skip
    text, reader = read(p.report(folder))
    assert_told(reader.words, "Ratios above 0.65 were not tried: this one loses 4.00 points.", "50 % int8-qat")
    assert_told(reader.words, "the file <b>computes</b> something else", "random, 65 % fp32 control", "cannot win")
    assert_told(reader.words, "45.4 kB when packed, from 1.53 MB", "Parameters that are not 0", "20.6× fewer")
    assert_told(reader.words, "unheard_of.a", "1, 2", "news")
    assert _rows_of(text, "Candidates")[0][3] == "Packed"
    assert _rows_of(text, "Candidates")[1][3] == "1.53 MB"


def test_strings_of_a_compression_are_escaped(tmp_path: Path) -> None:
    facts = json.loads((MEASURED / "demo.json").read_text())
    winner = {**facts["winner"], "name": HOSTILE[0]}
    folder = _compression(
        tmp_path / "small", run=HOSTILE[1], recipe=HOSTILE[2], winner=winner, candidates=[facts["baseline"], winner],
        sensitivity=[{"layer": "<i>layer</i>", "divergence": None, "flips": 0.0, "accuracy": None}],
    )  # fmt: skip
    text, reader = read(p.report(folder))
    assert_self_contained(text, reader)
    assert "<script>alert" not in text
    assert "<i>" not in text
    assert_told(reader.words, *HOSTILE, "<i>layer</i>")


@pytest.mark.parametrize("name", ["spec", "baseline", "winner", "candidates"])
def test_a_compression_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    """A page made of what is not there looks like a result."""
    with pytest.raises(KitaeError, match=rf"compression\.json.*{name}"):
        p.report(_compression(tmp_path / "small", **{name: None}))


def test_a_picture_of_the_front_is_left_alone(tmp_path: Path) -> None:
    folder = _compression(tmp_path / "small")
    drawn = draw_stochastic_depth([1, 0.9], folder / "figures" / "pareto-front.png").read_bytes()
    p.report(folder)
    assert [file.name for file in (folder / "figures").iterdir()] == ["pareto-front.png"]
    assert (folder / "figures" / "pareto-front.png").read_bytes() == drawn


def test_the_page_of_what_compress_writes(tmp_path: Path) -> None:
    """Writer and page agree today, not only on the results that were kept."""
    recipe = Recipe.load("fashion-mini").override(
        "data.limit=300", "model.name=resnet8", "model.width=4", "train.epochs=1", "train.precision=fp32",
        "train.threads=1",
    )  # fmt: skip
    run = train(recipe, tmp_path / "tiny")
    result = compress(
        run, tmp_path / "small", ratios=(0.25,), finetune_epochs=1, max_drop=100.0, calibration=("minmax",), threads=1
    )
    text, reader = read(p.report(result.path))
    assert_self_contained(text, reader)
    assert re.findall("<h2>(.*?)</h2>", text) == [
        "Result",
        "Pictures",
        "Candidates",
        "Sensitive layers",
        "Settings and machine",
    ]  # fmt: skip  (nothing in the file that the page does not know)
    assert result.test is not None
    winner, test = result.winner, result.test
    assert_told(reader.words, winner["name"], f"{winner['bytes']:,} bytes", f"{100 * test['winner']['accuracy']:.2f} %")
    assert_told(reader.words, "Test (1,000 images) was opened once", *(f"{row['drop']:z.2f}" for row in result.rows))
    assert not re.search("<b>–</b>", text)  # every card has its number
    assert all(cell != "–" for row in _rows_of(text, "Candidates") for cell in row)
    assert sum(tag == "img" for tag, _ in reader.tags) == 4
