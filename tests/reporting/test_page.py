"""The page is one file, says what is known, and takes nothing from data for markup."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from kitae.compression.spec import CompressSpec
from kitae.data.splits import Splits
from kitae.errors import KitaeError
from kitae.experiments.result import StudyResult
from kitae.pipelines.compress import CompressionResult, compress, resolve_spec
from kitae.pipelines.train import train
from kitae.recipe import Recipe
from kitae.reporting import compression_charts, effects
from kitae.reporting import page as p
from kitae.reporting.compression_results import CompressionRecord
from kitae.reporting.figures import filters_picture
from kitae.reporting.study_labels import effect_label, variant_labels
from kitae.reporting.study_results import StudyRecord
from kitae.reporting.svg import WIDTH, Chart, text_width
from kitae.reporting.values import large, significant, words
from kitae.run import Run
from tests.command import kitae
from tests.refusals import refused
from tests.reporting.conftest import HOSTILE, epochs, least_drop, measured_compression

SPEC = CompressSpec().model_dump(mode="json")
VOID = {"meta", "wbr", "img", "br", "hr", "link", "input"}  # and what closes itself, inside an SVG


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

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def page(*targets: Run | Path) -> tuple[str, str]:
    """The page of a folder, or of several runs, which is self-contained: its markup, and its words."""
    text = p.report(*targets).read_text(encoding="utf-8")
    reader = Reader(text)
    assert_self_contained(text, reader)
    return plain(text), plain(reader.words)


def plain(text: str) -> str:
    """Without what only keeps words and numbers together: no-break spaces, and the words of a command."""
    commands = re.sub(r'<div class="command">.*?</div>', lambda one: re.sub("</?span>", "", one[0]), text)
    return commands.replace("\u00a0", " ")


def assert_self_contained(text: str, reader: Reader) -> None:
    """One file without a request, whose only script is the page's own; what it draws can be heard."""
    bare = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"(?i)(https?:)?//[a-z0-9]", bare)
    assert "@import" not in text
    assert "url(" not in text
    used = {tag for tag, _ in reader.tags}
    assert not used & {"link", "iframe", "object", "embed", "base", "form", "audio", "video", "use", "image"}
    (policy,) = (a["content"] or "" for tag, a in reader.tags if tag == "meta" and "http-equiv" in a)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            source = attributes["src"] or ""
            assert re.match(r"data:image/(png|jpeg);base64,", source)
            assert base64.b64decode(source.split(",", 1)[1], validate=True)[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")
            assert attributes["alt"]
            assert attributes["width"]
        assert not attributes.get("href") or str(attributes["href"]).startswith("#")
    assert any(a.get("name") == "viewport" for tag, a in reader.tags if tag == "meta")
    assert_accessible(text, reader)
    assert len(text.encode()) < 3_000_000


def assert_accessible(text: str, reader: Reader) -> None:
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    for attributes in (a for tag, a in reader.tags if tag == "svg"):
        assert attributes["role"] == "img"
        assert all(name in ids for name in str(attributes["aria-labelledby"]).split())
    for attributes in (a for tag, a in reader.tags if a.get("class") == "scroll"):
        assert attributes["tabindex"] == "0"
        assert attributes["aria-label"]
    assert sum(tag == "h1" for tag, _ in reader.tags) == 1
    assert not re.search(r"<th[^>]*>\s*</th>", text)


def assert_told(words: str, *told: str) -> None:
    for one in told:
        assert one in words, one


def compressed(folder: Path, name: str = "demo", **changes: Any) -> Path:
    """A folder with the compression.json of a real compression, as `kitae compress` wrote it, but for `changes`."""
    folder.mkdir()
    facts = measured_compression(name)
    facts.pop("note")  # only the kept results have one
    (folder / "compression.json").write_text(json.dumps({**facts, **changes}))
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder `small` of a compression."""
    return partial(compressed, tmp_path / "small")


def headings(text: str) -> list[str]:
    return [html.unescape(heading) for heading in re.findall("<h2>(.*?)</h2>", text)]


def rows_of(text: str, heading: str) -> list[list[str]]:
    """Cells of the first table under a heading, without markup."""
    section = text.split(f"<h2>{heading}</h2>")[1].split("</section>")[0]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", section.split("</table>")[0])
    return [[re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def warnings(text: str) -> list[str]:
    return re.findall(r'<p class="warn">(.*?)</p>', text)


def commands(text: str) -> list[str]:
    """Where a page says how to look again: the options of the command."""
    return re.findall(r"kitae compress [^<]* --overwrite ([^<]*)", html.unescape(text))


def charts(text: str) -> dict[str, str]:
    """What each chart is called, and what it tells."""
    found = re.findall(r'<title id="[^"]*">(.*?)</title><desc id="[^"]*">(.*?)</desc>', text, re.DOTALL)
    return {html.unescape(title): html.unescape(told) for title, told in found}


def test_finished_run(make_run: Callable[..., Run]) -> None:
    run = make_run("my & run")
    split = {**run.evaluation()["test"], "macro_f1": 0.6789, "macro_f1_interval": [0.4, 0.5]}
    run.write_evaluation({**run.evaluation(), "test": split})
    run.count_test_opening("compress, 50 % <i>")
    before = {entry.name for entry in run.path.iterdir()}
    text, words = page(run.path)
    assert {entry.name for entry in run.path.iterdir()} - before == {"report.html", "figures"}
    assert_told(words, "my & run", "88.9 % on test (83.9 to 92.9).", "0.4321", "11.2 M", "label_smoothing: 0.1")
    assert_told(words, "opened 2 times: end of training", "compress, 50 % <i>", "no longer in the cache", "67.89 %")
    assert "not finished" not in words
    assert set(charts(text)) == {
        "Training curves", "Where the time went", "Recall of each class", "Confusion matrix", "Calibration"
    }  # fmt: skip
    assert "Best epoch 4: 72.5 % on validation." in charts(text)["Training curves"]
    assert "<img" not in text  # the images of this run are nowhere


def test_strings_from_data_are_escaped(make_run: Callable[..., Run]) -> None:
    text, words = page(make_run("<b>name</b>").path)
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<b>name</b>" in words  # the name, as text
    for name in HOSTILE:
        assert name in words
        assert name in charts(text)["Recall of each class"]
    assert "49" not in re.findall(r"frac\{1\}\$ (\S+)", words)  # {{ 7*7 }} is not worked out
    assert "photo" in words  # file names with quotes and markup
    assert "<img" not in text


@pytest.mark.parametrize("rows", [0, 4])
def test_unfinished_run_says_so(rows: int, make_run: Callable[..., Run]) -> None:
    run = make_run(done=False, rows=rows)
    text, words = page(run)
    assert_told(words, f"not finished: {rows} of 9 epochs", "has not been opened", f"kitae train --resume {run.path}")
    assert "Test accuracy" not in words
    assert set(charts(text)) == ({"Training curves", "Where the time went"} if rows else set())
    assert ("No epoch has ended yet" in words) == (not rows)


def test_an_unfinished_cross_validation_counts_its_folds(make_run: Callable[..., Run]) -> None:
    run = make_run(done=False, rows=0)
    run.recipe = run.recipe.override("data.folds=3")
    run.recipe.save(run.recipe_file)
    run.fold(1).mkdir(parents=True)
    shutil.copy(make_run("fold").evaluation_file, run.fold(1))
    assert_told(page(run)[1], "not finished: 1 of 3 folds and 0 of 9 epochs of the model on everything are done.")
    run.write_metrics(epochs(2))
    assert "<span>Training time</span><b>5 s</b><span>without the folds</span>" in page(run)[0]


def test_the_probe_is_no_epoch_of_those_that_are_counted(make_run: Callable[..., Run]) -> None:
    rows = [{**row, "epoch": number} for number, row in enumerate(epochs(4))]
    unfinished, finished = make_run("unfinished", done=False), make_run("finished")
    for run in (unfinished, finished):
        run.write_metrics(rows)
    text, words = page(unfinished)
    assert_told(words, "3 of 9 epochs are done", "Epochs done3of 9 planned")
    assert charts(text)["Training curves"].startswith("3 epochs.")
    assert "3 of 9 epochs" in repr(unfinished)
    assert "Best epoch3of 3\n" in page(finished)[1]
    finished.write_metrics([{**rows[0], "val_accuracy": 0.99}, *rows[1:]])
    assert "Best epoch0of 3; 0 is the linear head" in page(finished)[1]
    unfinished.write_metrics(rows[:1])  # the page is written again
    text, words = page(unfinished)
    assert_told(words, "0 of 9 epochs are done", "on validation, by the linear head", "No epoch has ended")
    assert "Training curves" not in charts(text)
    assert "0 of 9 epochs" in repr(unfinished)


def test_where_only_a_head_was_trained_there_are_no_curves_and_no_best_epoch(make_run: Callable[..., Run]) -> None:
    run = make_run()
    run.write_metrics([{**epochs(1)[0], "epoch": 0}])
    text, words = page(run)
    assert "Training curves" not in charts(text)
    assert "Training" not in headings(text)
    for absent in ("Best epoch", "0 epochs", "of 0", "No epoch has ended"):
        assert absent not in words
    assert "<span>Trained</span><b>linear head</b><span>no epoch of fine-tuning</span>" in text


def test_scores_that_are_not_known_are_left_out(make_run: Callable[..., Run]) -> None:
    """A network whose outputs are not finite has no scores, and no class need have test images."""
    run = make_run()
    run.write_metrics([{**row, "val_loss": None, "val_accuracy": None} for row in epochs(4)])
    evaluation = run.evaluation()
    for score in evaluation["test"]["per_class"].values():
        score |= {"accuracy": None, "accuracy_interval": None}
    run.write_evaluation(evaluation)
    text, words = page(run)
    assert "<span>Best epoch</span><b>–</b>" in text
    assert "Recall of each class" not in charts(text)
    assert "None" not in words


def test_a_temperature_is_named_only_where_one_was_fitted(make_run: Callable[..., Run]) -> None:
    text, words = page(make_run())
    assert_told(words, "temperature 1.300, fitted on validation")
    assert charts(text)["Calibration"].startswith("After the temperature")
    run = make_run("none", temperature=1.0)
    run.recipe.override("evaluate.temperature=false").save(run.path / "recipe.yaml")
    text, words = page(Run.open(run.path))
    assert_told(words, "no temperature was fitted")
    assert "fitted on" not in words
    assert "the temperature" not in words + charts(text)["Calibration"]


def test_views_have_no_error_before_the_temperature(make_run: Callable[..., Run]) -> None:
    """The power of a mean of probabilities is not what the views would have without the temperature."""
    run = make_run()
    assert '<th scope="row">before</th>' in page(run)[0]
    run.write_evaluation({**run.evaluation(), "tta": "flip"})
    text, words = page(run)
    assert_told(words, "mean of the views (temperature 1.300, fitted on single views of validation)")
    assert not re.search(r"\bbefore\b", text)
    assert charts(text)["Calibration"].startswith("Confidence and accuracy differ by")


def test_a_test_opened_after_training_is_not_called_closed(make_run: Callable[..., Run]) -> None:
    run = make_run()
    (run.path / "predictions.parquet").unlink()
    text, words = page(run)
    assert "88.9 % on test" in words
    assert not any("Calibration" in title for title in (*charts(text), *headings(text)))
    (run.path / "test_openings.jsonl").unlink()
    run.write_evaluation({name: value for name, value in run.evaluation().items() if name != "test"})
    assert_told(page(run)[1], "on validation (test was not opened)", "Test has not been opened")
    run.count_test_opening("evaluate, tta none")
    words = page(run)[1]
    assert_told(words, "88.9 % on validation (83.9 to 92.9).", "Test was opened once: evaluate, tta none")
    assert "not opened" not in words


def test_charts_are_files_too(make_run: Callable[..., Run], small: Callable[..., Path]) -> None:
    """SVG files that show the same without the page: with the style that the marks name, on white."""
    for folder, names in (
        (make_run().path, {"curves", "time", "recalls", "confusion", "calibration"}),
        (small(), {"front", "sparsity", "latency"}),
    ):
        p.report(folder)
        files = list((folder / "figures").iterdir())
        assert {file.name for file in files} == {f"{name}.svg" for name in names}
        for file in files:
            root = ElementTree.fromstring(file.read_text(encoding="utf-8"))
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            style, paper = root[0], root[1]
            assert style.tag.endswith("style")
            assert paper.get("fill") == "#fff"
            used, known = (set(re.findall(form, style.text or "")) for form in (r"var\((--\w+)\)", r"(--\w+):"))
            assert used
            assert used <= known


def test_filters_are_on_the_page(small: Callable[..., Path]) -> None:
    weights = np.random.default_rng(0).normal(size=(70, 4, 3, 3)).astype(np.float32)
    kept = np.ones(weights.shape, bool)
    kept[3] = False
    weights[0, 0] = [[0, 1, -1]] * 3
    data = filters_picture(weights, kept)
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image)[6::12, 6::12].astype(int)  # a pixel a weight
    assert pixels.shape == (6 * (3 + 2) - 2, 12 * (11 + 2) - 2, 3)
    assert (pixels[:3, 3 * 13 : 3 * 13 + 3] == [0x3A, 0x3F, 0x44]).all(), "what was removed is dark"
    zero, positive, negative = pixels[0, :3]
    assert (zero == 255).all(), "nothing is white"
    assert positive[2] > positive[0] + 20, "positive is blue"
    assert negative[0] > negative[2] + 20, "negative is red"
    folder = small()
    (folder / "figures").mkdir()
    (folder / "figures" / "filters.png").write_bytes(data)
    text, _ = page(folder)
    assert "<img" not in text, "a picture would keep its colours on a dark page"
    assert "Filters of the first layer" in charts(text)
    drawn = text.split("<h2>Filters of the first layer</h2>")[1].split("</svg>")[0]
    cells: dict[tuple[int, int], tuple[str, float]] = {}
    for steps, look, strength in re.findall(r'<path d="(\S[^"]*)" class="(\w+)"(?: fill-opacity="([\d.]+)")?/>', drawn):
        for x, y, wide in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\3z", steps):
            for column in range(int(x), int(x) + int(wide)):
                assert (int(y), column) not in cells
                cells[int(y), column] = look, float(strength or 1)
    assert {place for place, (look, _) in cells.items() if look == "gone"} == {
        (y, x) for y, x in np.argwhere((pixels == [0x3A, 0x3F, 0x44]).all(axis=2)).tolist()
    }  # fmt: skip
    assert (0, 0) not in cells
    assert cells[0, 1][0] == "f1"
    assert cells[0, 2] == ("f2", cells[0, 1][1])
    strongest = np.abs(weights[:64, :3][kept[:64, :3]]).max()
    assert cells[0, 1][1] == pytest.approx(1 / strongest, abs=0.05)
    large = np.ones((64, 3, 31, 31), np.float32)
    short = data[:33] + (9).to_bytes(4, "big") + data[37:]  # its first chunk of pixels ends where no chunk begins
    for wrong in (data[:20], short, filters_picture(large, large > 0)):  # damaged ones, and one too large for a page
        (folder / "figures" / "filters.png").write_bytes(wrong)
        assert "Filters of the first layer" not in page(folder)[0]


def test_a_table_of_every_number_sorts_by_number_and_tells_candidates_in_words(small: Callable[..., Path]) -> None:
    text, _ = page(small())
    table = text.split("Every number of every candidate</summary>")[1].split("</table>")[0]
    heads = [re.sub("<.*?>", "", head) for head in re.findall(r"<th scope=\"col\".*?</th>", table)]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table)
    sizes = {name: re.findall(r"<td.*?</td>", cells)[heads.index("bytes") - 1] for name, cells in rows}
    assert sizes["original, float32"] == '<td class="n" data-v="1655732.0">1.66 MB</td>'
    assert sizes["65 % pruned, INT8"] == '<td class="n" data-v="60780.0">60.8 kB</td>'
    assert len(sizes) == 10
    assert "int8-" not in table


def test_a_large_run_stays_a_page(make_run: Callable[..., Run]) -> None:
    names = tuple(f"class number {k} of a long list of classes with long names" for k in range(120))
    text, words = page(make_run(classes=names, rows=2000))
    assert "metrics.jsonl has all 2000" in words
    assert text.count('<th scope="row">class number') >= 120  # in the table, however many the chart shows


def test_files_beside_the_run_are_told(make_run: Callable[..., Run]) -> None:
    run = make_run()
    run.path.with_name("run.onnx").write_bytes(bytes(12_345))
    compressed(run.path.with_name("run-small"), run="run")
    _, words = page(run)
    assert_told(words, "run.onnx", "12.3 kB", "60.8 kB", "0.0827 ms", "run-small/model.onnx")
    run.best.write_bytes(bytes(54_321))  # a new run, in place of the one that they were made of
    os.utime(run.best, (time.time() + 60, time.time() + 60))
    _, words = page(run)
    assert_told(words, "54.3 kB")
    assert not [file for file in ("run.onnx", "run-small/model.onnx") if file in words]
    run.best.unlink()
    (run.path.with_name("run-small") / "compression.json").write_text("{")  # damaged: no reason to refuse a run's page
    assert "60.8 kB" not in p.report(run).read_text()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("nothing", None, "nothing: .*run"),
        ("a file", "x", "a file: .*run"),
        ("search/search.yaml", "", "search: .*rematch"),
        ("run/environment.json", "{", r"environment\.json.*damaged"),
        ("run/evaluation.json", "{", r"evaluation\.json.*damaged"),
        ("run/model.json", "{", r"model\.json.*damaged"),
        ("small/compression.json", "[" * 100_000, r"compression\.json.*damaged"),
        ("small/compression.json", '{"format": 99}', "newer version"),
        *(("small", part, rf"compression\.json.*{part}") for part in ("spec", "baseline", "winner", "candidates")),
    ],
    ids=lambda value: value and value[:25],
)
def test_what_has_no_page_is_one_line_that_names_it(
    name: str, content: str | None, told: str, tmp_path: Path, make_run: Callable[..., Run], small: Callable[..., Path]
) -> None:
    """A page made of what is not there looks like a result."""
    make_run()
    small(**({str(content): None} if name == "small" else {}))
    (tmp_path / "search").mkdir()
    if content is not None and name != "small":
        (tmp_path / name).write_text(content)
    refused(KitaeError, told, p.report, tmp_path / name.split("/")[0])


def test_the_planned_epochs_are_those_that_fit_the_minutes(make_run: Callable[..., Run]) -> None:
    run = make_run(done=False, rows=3)
    run.recipe.override("train.recut=[[2, 6]]").save(run.path / "recipe.yaml")
    _, words = page(Run.open(run.path))
    assert_told(words, "3 of 6 epochs are done", "of 6 planned")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(make_run: Callable[..., Run]) -> None:
    run = make_run(done=False, rows=0)
    run.path.chmod(0o500)
    try:
        with pytest.raises(KitaeError, match="cannot be written"):
            p.report(run)
    finally:
        run.path.chmod(0o700)


def test_values_as_words() -> None:
    values = (None, float("nan"), True, 0.123456789, [1, "a"], 3)
    assert [words(value) for value in values] == ["–", "–", "yes", "0.12346", "1, a", "3"]
    sizes = (9_999, 999_499, 999_960, 999_960_000, 2e12)  # no exponents
    assert [large(value) for value in sizes] == ["9,999", "999 k", "1 M", "1 G", "2,000 G"]
    scores = (0.0000012, 0.51234, 84.93, 9999.4, 9999.5, 12345.6, -123456.0)
    assert [significant(value, 4) for value in scores] == [
        "1.2e-06", "0.5123", "84.93", "9999", "10,000", "12,346", "-123,456"
    ]  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.yaml").write_text("study: {name: mine}  # <script>alert(2)</script>\n")
    effect = {
        "name": HOSTILE[0], "metric": "test.accuracy", "estimate": 2.17, "low": 1.48, "high": 2.86, "p_holm": 0.0004,
        "pairs": 12, "ratio": False, "covers": "seeds", "uneven": True,
    }  # fmt: skip
    unknown = {**effect, "name": "b", "estimate": None, "low": None, "high": None, "p_holm": None}
    seconds = {"metric": "epoch_seconds", "ratio": True, "estimate": 0.62, "low": 0.5, "high": 0.8}
    factor = {**effect, "name": "c", **seconds}
    noise = {"sd": 0.49, "low": 0.31, "high": 1.07, "df": 6, "reference": "off", "reference_mean": 84.93,
             "reference_sd": 0.36}  # fmt: skip
    data = {
        "name": "mine", "about": HOSTILE[1], "design": "screening", "metric": "test.accuracy", "seeds": [0, 1, 2],
        "settings": {"threads": 1, "training_hours": 0.5, "machine": {"processor": HOSTILE[2]}},
        "runs": {"planned": 12, "finished": 11, "failed": [{"variant": HOSTILE[0], "seed": 1, "error": "boom"}]},
        "analyses": {
            f"{HOSTILE[0]}.b": {"unit": HOSTILE[1], "noise": {"sd": None, "df": 0}, "effects": [effect]},
            "test.accuracy": {"unit": "points", "better": 1, "noise": noise, "effects": [effect, unknown]},
            "epoch_seconds": {"unit": "s", "better": -1, "noise": {"sd": None, "df": 0}, "effects": [factor]},
        },
        "sentences": [f"{HOSTILE[0]}: helps"],
        "claims": [{"says": HOSTILE[1], "effect": HOSTILE[0], "metric": "test.accuracy",
                    "verdict": "confirmed", "remark": "larger"}],
        "variants": [{"name": HOSTILE[0], "runs": 3, "numbers": {"test.accuracy": {"mean": 84.93, "sd": None}}}],
        "aliases": {"a": [["b", "c", -0.5]], "b": []},
    }  # fmt: skip
    (folder / "effects.json").write_text(json.dumps(data))
    return folder


def test_study(study: Path) -> None:
    text, words = page(study)
    assert "<script>alert" not in text
    assert_told(words, *HOSTILE, "1 of 12 runs did not finish", "confirmed", "study: {name: mine}", "boom")
    numbers = ["+2.2 points", "+1.5 to +2.9", "<0.001", "x 0.62", "0.49 points", "-0.5 b x c", "84.93", "30 min 00 s"]
    assert_told(words, *numbers)
    assert charts(text)["Effects on accuracy on test, points"] == f"{HOSTILE[0]}: 2.2 points better (+1.5 to +2.9)"
    assert words.index("1 of 1 comparisons shows a gain") < words.index("84.93")
    assert "<details open" not in text
    assert "<table" not in re.sub(r"<details.*?</details>", "", text, flags=re.DOTALL)  # tables are folded
    effects = json.loads((study / "effects.json").read_text())
    (study / "effects.json").write_text(json.dumps({**effects, "settings": {}}))
    assert "Training time" not in page(study)[1], "its runs recorded none"
    effects["analyses"]["test.accuracy"] |= {"unit": "", "noise": {"reference_mean": 0.5123, "reference_sd": 0.0034}}
    (study / "effects.json").write_text(json.dumps(effects))
    assert "0.5123" in page(study)[1]
    assert "± 0.0034 over seeds" in page(study)[1], "a loss scatters less than a hundredth"
    fast = {"reference_mean": 12345.6, "reference_sd": 156.0}
    effects["analyses"]["test.accuracy"] |= {"unit": "images/s", "noise": fast}
    effects["variants"][0]["numbers"]["test.accuracy"] = {"mean": 12345.6, "sd": 99.7}
    (study / "effects.json").write_text(json.dumps(effects))
    assert_told(page(study)[1], "12,346 images/s", "± 156 over seeds", "12,346 ± 100")
    (study / "effects.json").unlink()
    assert_told(page(study)[1], "not finished", f"kitae study {study / 'study.yaml'} --out {study}")


def test_a_study_whose_files_were_edited(study: Path) -> None:
    (study / "study.yaml").write_text("study:\n  name: mine\n  base: cifar10-quick\n  set:\n  contrasts:\n")
    effects = json.loads((study / "effects.json").read_text())
    best = {**effects["variants"][0], "overrides": {"train.ema": 0.99}}
    (study / "effects.json").write_text(json.dumps({**effects, "variants": [best], "runs": {}}))
    assert "--set train.ema=0.99" in page(study)[1], "and nothing else"
    del effects["seeds"]
    (study / "effects.json").write_text(json.dumps(effects))
    refused(KitaeError, r"effects\.json: is damaged \(seeds: ", p.report, study)


@pytest.mark.parametrize("name", ["ledger-precision", "ledger-small", "ledger-small-screening"])
def test_a_page_says_an_effect_in_the_words_of_the_terminal(name: str, tmp_path: Path) -> None:
    published = Path(__file__).parents[2] / "studies" / "results" / name
    result, (text, words) = StudyResult.open(published), page(shutil.copytree(published, tmp_path / name))
    told, found = " ".join(result.table().split()), StudyRecord.open(published)
    assert found is not None
    assert "This holds for" in words
    assert "Curves, mean and range over seeds" in charts(text)
    labels = variant_labels(found)
    for analysis in result.analyses.values():
        assert effects.noise_line(analysis, labels).removeprefix("noise") in words
        for effect in analysis.effects:
            size, span = effects.amount(effect.estimate, effect), effects.interval(effect)
            assert f"{size} {span}" in words
            assert f"{effects.verdict(effect)} ({span})" in html.unescape(text)
            assert effect.metric != result.spec.metric or f"{size} {span}" in told
    assert effects.noise_line(result.analyses[result.spec.metric]) in told
    for claim in result.claims:
        size = effects.measured(result.effect(claim["metric"], claim["effect"]))
        assert f"<td>{size}</td><td>{claim['verdict']} " in text
        assert f"{claim['says']} {size} {claim['verdict']}" in told
    for row in result.design.aliases.values():
        parts = effects.aliased((a, b, c) for (a, b), c in row.items())
        assert all(part in told for part in parts[:6])
    if result.design.aliases:
        table = text.split("What each effect is aliased with</summary>")[1].split("</table>")[0]
        aliases = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
        assert [row[0] for row in aliases[1:]] == [effect_label(found, name) for name in result.design.aliases]
        assert any("random crops × " in row[1] for row in aliases)
        assert not [row for row in aliases if "_" in row[0] + row[1] or " x " in row[1]]


def test_compression(small: Callable[..., Path]) -> None:
    """The numbers of `make demo`: within the budget on validation, past it on test, which the page must not hide."""
    folder = small()
    text, words = page(folder)
    (warning,) = warnings(text)
    assert_told(warning, "within the budget on validation", "loses 1.10 points", "budget of 1.")
    assert "27.2× smaller and 2.08× faster, 1.10 points lost on test (-0.31 to 2.58)." in words
    cards = re.findall(r"<li[^>]*><span>(.*?)</span><b>(.*?)</b>(?:<span>(.*?)</span>)?</li>", text)
    assert cards == [
        ("Smaller", "27.2×", "60.8 kB, from 1.66 MB"),
        ("Faster", "2.08×", "0.0827 ms per image, was 0.170 ms"),
        ("Test accuracy", "90.10 %", "88.09 to 91.80, original 91.20 %"),
        ("Points lost on test", "1.10", "-0.31 to 2.58, below 0 is a gain"),
    ]
    rows = {row[0]: row[1:] for row in rows_of(text, "The original and the winner")}
    assert rows["Accuracy on test"] == [
        "91.20 % 89.28 to 92.80", "90.10 % 88.09 to 91.80", "1.10 points lost -0.31 to 2.58"
    ]  # fmt: skip
    assert rows["Predictions changed on validation"] == ["", "3.00 %", ""]
    assert {name: rows[name][2] for name in ("File", "File, packed", "Parameters", "Multiply-adds")} == {
        "File": "27.2× smaller", "File, packed": "33.8× smaller", "Parameters": "8.06× fewer",
        "Multiply-adds": "8.10× fewer",
    }  # fmt: skip
    assert rows["Latency of one image"][2] == "2.08× faster 2.05 to 2.11"
    candidates = {row[0]: row[1:] for row in rows_of(text, "Every candidate")}
    assert len(candidates) == 1 + 10
    assert candidates["65 % pruned, INT8 winner, front"] == [
        "92.83 % 90.49 to 94.64", "0.50 -0.94 to 2.02", "60.8 kB", "0.0827 ms 0.0815 to 0.0831", "2.08× 2.05 to 2.11"
    ]  # fmt: skip
    assert 'class="reference"><th scope="row">original, float32' in text
    assert_told(words, "at most 1 point", "Test (1,000 images) was opened once", "(600 images)", "of 50 rounds")
    assert_told(words, "below 1.0 % are within the noise", "2 cores", "by Kitae 0.1.0")
    assert_told(words, "network.stem.0.weight", "finetune_epochs")
    assert "65 % pruned, INT8: 60.8 kB, 92.8 %" in charts(text)["Size against accuracy"]
    assert_told(words, f"Model({json.dumps(str(folder / 'model.onnx'))})", "pip install '.[runtime]'")
    assert "Left out" not in words
    assert "not tried" not in words
    assert set(charts(text)) == {
        "Size against accuracy", "Latency of one image", "Accuracy against parameters removed"
    }  # fmt: skip


def test_a_front_is_of_what_could_be_chosen(tmp_path: Path) -> None:
    _, words = page(compressed(tmp_path / "a"))
    assert_told(words, "No other file is both smaller", "Front: no other is at once")
    *rows, last = measured_compression()["candidates"]
    _, words = page(compressed(tmp_path / "b", candidates=[*rows, {**last, "control": True}]))
    assert_told(words, "Controls aside, no other file is both smaller", "Front: controls aside, no other is at once")


def test_points_have_their_labels_where_there_is_room_for_all() -> None:
    found = measured_compression()
    few = [found["baseline"], found["winner"], found["candidates"][2]]
    facts = CompressionRecord.model_validate({**found, "candidates": few})
    labels = re.findall('<text[^>]*class="l">(.*?)</text>', compression_charts.front(facts).__html__())
    assert sorted(labels) == sorted(map(facts.label, facts.candidates))


def test_the_key_of_a_front_with_controls_has_every_other_point_in_columns_that_do_not_overlap() -> None:
    for name in ("demo", "quick-structured"):
        facts = CompressionRecord.model_validate(measured_compression(name))
        drawn = compression_charts.front(facts).__html__()
        labels = re.findall('<text[^>]*class="l">(.*?)</text>', drawn)
        key = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="t">((\d+): .*?)</text>', drawn)
        assert [number for *_, number in key] == [str(k + 1) for k in range(len(key))]
        told = {label for label in labels if not label.isdigit()} | {line.split(": ")[1] for *_, line, _ in key}
        assert told == {facts.label(row) for row in facts.candidates}, name
        for place, (x, y, line, _) in enumerate(key):
            beside = [float(other) for other, at, *_ in key if at == y and float(other) > float(x)]
            assert float(x) + text_width(line) <= min([*beside, WIDTH]), (name, place)


def test_a_label_that_is_not_beside_its_point_has_a_line_to_it(small: Callable[..., Path]) -> None:
    drawn = page(small())[0].split("<h2>Size against accuracy</h2>")[1].split("</svg>")[0]
    number = r"([-\d.]+)"

    def found(pattern: str) -> list[list[float]]:
        return [[float(x) for x in numbers] for numbers in re.findall(pattern.replace("N", number), drawn)]

    points = found(r'<circle[^>]*cx="N" cy="N"')
    points += [[x, y + 9] for x, y in found(r'<path d="MN N [^>]*class="f2"')]
    ends = found(r'<line x1="N" y1="N"[^>]*class="a"')
    leaders = [end for end in ends if any(abs(end[0] - x) + abs(end[1] - y) < 0.3 for x, y in points)]
    placed = re.findall(rf'<text x="{number}" y="{number}"[^>]*class="l">(.*?)</text>', drawn)
    beside = [
        name for x, y, name in placed
        if any(abs(float(y) - 4 - py) < 0.2 and min(abs(float(x) - px), abs(float(x) + text_width(name) - px)) < 11
               for px, py in points)
    ]  # fmt: skip
    assert len(placed) - len(beside) == len(leaders)


@pytest.mark.parametrize(("line", "start"), [((120.0, 40.0, 120.0, 160.0), 30.0), ((40.0, 100.0, 90.0, 100.0), 110.0)])
def test_a_label_keeps_off_the_lines_of_a_chart(line: tuple[float, ...], start: float) -> None:
    chart, mark = Chart("x", "x", "x", 200), (93.0, 93.0, 107.0, 107.0)
    compression_charts._label(chart, "INT8 file", (100, 100), [mark], [mark], [line], (0, 0, 300, 200))
    (x,) = re.findall(r'<text x="([-\d.]+)"', "".join(chart.parts))
    assert float(x) == pytest.approx(start, abs=2)


def test_a_page_says_that_the_upper_end_of_the_loss_was_counted(tmp_path: Path) -> None:
    told = ("at most 1 point of accuracy lost (counted: the upper end of its interval)", "can still exceed it")
    assert_told(page(compressed(tmp_path / "sure", sure=True))[1], *told)
    _, words = page(compressed(tmp_path / "drop", sure=False))
    assert not any(text in words for text in told)


def test_a_sensitivity_with_its_reference_shows_it(small: Callable[..., Path]) -> None:
    reference = {"layer": "", "divergence": 0.0, "flips": 0.0, "accuracy": 0.9375}
    _, words = page(small(sensitivity=[reference, *measured_compression()["sensitivity"]]))
    assert_told(words, "none: the original", "93.75 %")


def test_a_compression_in_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Recipe().save(tmp_path / "a" / "recipe.yaml")
    own = {"run_path": "../a", "within_budget": False, "spec": {"max_bytes": 1000}}
    monkeypatch.chdir(compressed(tmp_path / "a-small", **own))
    p.report(".")
    assert f"kitae compress {tmp_path / 'a'} --overwrite" in plain(Path("report.html").read_text(encoding="utf-8"))


LAYERS = {"max_drop": 1.5, "max_bytes": 60000, "layer_ratios": {"stem": 0.1}}


@pytest.mark.parametrize(
    ("limits", "options"),
    [
        ({"max_drop": 0.1}, "--max-drop 2.1"),  # the end of the interval, which 600 images can prove
        ({"max_bytes": 1000}, "--max-bytes 60780"),
        ({"max_bytes": 70000, "max_latency_ms": 0.01}, "--set max_bytes=70000 --max-latency-ms 0.091"),
        ({"max_drop": 0.1, "max_bytes": 1000}, "--max-drop 2.1 --max-bytes 60780"),
        (LAYERS, "--set max_drop=1.5 --set 'layer_ratios={\"stem\": 0.1}' --max-bytes 60780"),
        ({}, None),  # nothing that is known to be exceeded
    ],
)
def test_looking_again_widens_the_limit_that_was_exceeded_and_keeps_the_other_settings(
    limits: dict[str, Any], options: str | None, small: Callable[..., Path]
) -> None:
    text, _ = page(small(spec={**SPEC, **limits}, within_budget=False, least_drop=least_drop(600)))
    assert commands(text) == ([] if options is None else [options])


@pytest.mark.parametrize("abandon", [True, False])
def test_looking_again_with_ratios_keeps_abandon(abandon: bool, small: Callable[..., Path]) -> None:
    own = {"max_bytes": 1000, "ratios": [0.5, 0.9], "abandon": abandon}
    text, _ = page(small(spec={**SPEC, **own}, within_budget=False))
    (options,) = commands(text)
    assignments = re.findall(r"--set (?:'([^']+)'|(\S+))", options)
    assert resolve_spec(None, {}, ["".join(pair) for pair in assignments]).abandon is abandon


def test_a_compression_finds_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("elsewhere").mkdir()
    own = {"run": "a", "run_path": "../../runs/a", "within_budget": False, "spec": {"max_bytes": 1000}}
    folder = compressed(Path("elsewhere/mine"), **own)
    assert "kitae compress RUN --out elsewhere/mine --overwrite" in page(folder)[0]
    Recipe().save(Path("runs/a/recipe.yaml"))
    assert "kitae compress runs/a --out elsewhere/mine --overwrite" in page(folder)[0]


def test_a_compression_shows_itself(small: Callable[..., Path]) -> None:
    found = CompressionResult.open(small())
    assert "\n" not in repr(found)
    assert "smaller" in repr(found)
    assert "original, float32" in found._repr_html_()
    assert len(found.to_pandas()) == len(found.rows)
    assert p.report(found) == found.path / "report.html"


def test_compression_that_kept_its_budget_has_no_warning(small: Callable[..., Path]) -> None:
    text, words = page(small("quick-structured"))
    assert warnings(text) == []
    assert_told(words, "15.4×", "7.71×", "89.56 %", "0.60", "0.21 to 1.00", "0.05 points gained -0.83 to 0.93")
    assert "below 0 is a gain" not in text.split("</ul>")[1]  # the interval of what was lost has no gain in it


def test_compression_in_which_nothing_met_the_budget(small: Callable[..., Path]) -> None:
    """No test, no winner: the closest, why it is not one, and validation named as such."""
    text, words = page(small(within_budget=False, test=None, why_not="has 60,780 bytes, not 1,000", faster=0.5))
    (warning,) = warnings(text)
    assert_told(warning, "65 % pruned, INT8, has 60,780 bytes, not 1,000", "closest.onnx")
    assert_told(words, "Validation accuracy", "92.83 %", "Points lost on validation", "0.50", "Test was not opened")
    assert_told(words, "The closest to the budget is 65 % pruned, INT8", "closest, front", "Slower", "2.00×")
    for absent in ("Test accuracy", "Accuracy on test", "Winner"):
        assert absent not in words


def test_what_a_compression_did_not_get(small: Callable[..., Path]) -> None:
    """Left-out candidates, ratios not tried, controls, zeros that shrink a file only when packed, and news."""
    facts = measured_compression()
    control = {**facts["candidates"][-2], "name": "random, 65 % fp32", "control": True, "front": False}
    sparse = {**facts["winner"], "nonzero": 20_000}
    folder = small(
        left_out=[{"name": "50 % int8-qat", "why": "the file <b>computes</b> something else"}],
        stopped="ratios above 0.65 were not tried: this one loses 4.00 points", size="packed_bytes", winner=sparse,
        candidates=[*facts["candidates"], control], unheard_of={"a": [1, 2]}, news=3,
    )  # fmt: skip
    text, words = page(folder)
    assert_told(words, "Ratios above 0.65 were not tried: this one loses 4.00 points.", "50 % int8-qat")
    assert_told(words, "the file <b>computes</b> something else", "65 % pruned at random, float32 control")
    assert_told(words, "45.4 kB when packed, from 1.53 MB", "Parameters that are not 0", "20.6× fewer")
    assert_told(words, "unheard_of.a", "1, 2", "news")
    assert rows_of(text, "Every candidate")[0][3] == "Packed"
    assert rows_of(text, "Every candidate")[1][3] == "1.53 MB"


def test_strings_of_a_compression_are_escaped(tmp_path: Path) -> None:
    facts = measured_compression()
    winner = {**facts["winner"], "name": HOSTILE[0], "precision": HOSTILE[0]}
    folder = compressed(
        tmp_path / 'a "small" <i>', run=HOSTILE[1], recipe=HOSTILE[2], winner=winner,
        candidates=[facts["baseline"], winner],
        sensitivity=[{"layer": "<i>layer</i>", "divergence": 0.0, "flips": 0.0, "accuracy": 0.9}],
    )  # fmt: skip
    text, words = page(folder)
    assert "<script>alert" not in text
    assert "<i>" not in text
    assert_told(words, *HOSTILE, "<i>layer</i>")


def test_comparison(make_run: Callable[..., Run], tmp_path: Path) -> None:
    one, other = make_run("one"), make_run("other <i>", rows=3)
    other.recipe = other.recipe.override("train.epochs=7", "augment.train=[]", "train.optimizer.betas=[0.9,0.95]")
    other.recipe.save(other.path / "recipe.yaml")
    text, words = page(one, other.path)
    assert (tmp_path / "comparison.html").is_file()
    assert "<i>" not in text
    rows = {row[0]: row[1:] for row in rows_of(text, "Differences")}
    assert rows["train.epochs"] == ["9", "7"]
    assert rows["augment.train"][1] == "none"
    assert rows["train.optimizer.betas"] == ["0.9, 0.999", "0.9, 0.95"]
    assert rows["augment.train"][0].startswith("random_crop (padding 2, mode zero)")
    assert_told(words, "one and other <i> have the same accuracy on test", "Their difference is 0.0 points")
    assert "+0.00" in words
    assert set(charts(text)) == {"Accuracy on test", "Validation accuracy over the epochs"}
    assert len(rows_of(text, "Recall of each class, on test")) == 1 + len(HOSTILE)


def test_a_comparison_says_that_epoch_0_is_the_linear_head(make_run: Callable[..., Run]) -> None:
    one, other = make_run("one"), make_run("other")
    rows = [{**row, "epoch": number} for number, row in enumerate(epochs(4))]
    one.write_metrics([{**rows[0], "val_accuracy": 0.99}, *rows[1:]])
    text, _ = page(one, other)
    kept = {row[0]: row[6] for row in rows_of(text, "Every run")}
    assert kept["one"] == "0 linear head"
    assert "head" not in kept["other"]


def test_data_are_named_without_their_path(make_run: Callable[..., Run]) -> None:
    def of(name: str, source: str) -> Run:
        run = make_run(name)
        run.recipe = run.recipe.override(f"data.source={source}")
        run.recipe.save(run.recipe_file)
        return run

    one, other, elsewhere = of("one", "parquet:/d/a.parquet"), of("two", "folder:/d/b"), of("three", "folder:/e/b")
    assert "resnet9 on a" in page(one)[1]
    sources = {row[0]: row[1:] for row in rows_of(page(one, other)[0], "Differences")}["data.source"]
    assert sources == ["a", "b"]
    sources = {row[0]: row[1:] for row in rows_of(page(other, elsewhere)[0], "Differences")}["data.source"]
    assert sources == ["folder:/d/b", "folder:/e/b"]  # the name alone would be the same


def test_runs_of_other_images_or_classes_are_not_ranked(make_run: Callable[..., Run]) -> None:
    one, two, three = (make_run(name) for name in ("one", "two", "three"))
    more = make_run("more", classes=(*HOSTILE, "one more"))
    text, words = page(one, more)
    assert_told(words, "These runs have different classes, so", "kitae show mistakes")
    assert "is the best" not in words
    assert len(rows_of(text, "Recall of each class, on test")) == 2 + len(HOSTILE)
    table = one.predictions()
    names = [f"other {name}" for name in table["name"].to_pylist()]
    two.write_predictions(table.set_column(0, "name", [names]))
    assert_told(page(one, two)[1], "These runs were measured on different images, so")
    assert_told(page(one, three)[1], "have the same accuracy")
    for run, val in ((one, [3]), (three, [4])):
        (run.path / "predictions.parquet").unlink()
        rows = [row for row in range(5) if row not in (*val, 2)]
        Splits(np.array(rows), np.array(val), "a store", np.array([2])).save(run.path / "splits.npz")
    assert_told(page(one, three)[1], "These runs were measured on different images, so")


def test_the_training_time_of_a_comparison_is_that_of_each_run(make_run: Callable[..., Run]) -> None:
    one, other = make_run("one"), make_run("other")
    one.write_metrics([{**row, "validation_seconds": 1.5} for row in epochs(5)])
    assert "<span>Training time</span><b>20 s</b>" in page(one)[0]
    assert [row[5] for row in rows_of(page(one, other)[0], "Every run")[1:]] == ["20 s", "12 s"]


def test_comparison_of_one_that_is_not_finished(make_run: Callable[..., Run]) -> None:
    _, words = page(make_run("one"), make_run("other", done=False))
    assert_told(words, "other is not finished.", "nothing to compare yet")


def test_a_comparison_on_validation_shows_no_pairs_of_test(make_run: Callable[..., Run]) -> None:
    runs = [make_run("one"), make_run("two"), make_run("three")]
    judged = runs[2].evaluation()
    del judged["test"]
    runs[2].write_evaluation(judged)
    _, words = page(*runs)
    assert_told(words, "Accuracy on validation")
    assert "on the same images" not in words
    _, words = page(*runs[:2])
    assert_told(words, "Accuracy on test", "on the same images")


def test_names_that_are_not_utf8_are_shown(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p, "render", lambda name, content: "<p>caf\udce9</p>")  # as a class may be called
    assert p.report(make_run()).read_text(encoding="utf-8") == "<p>caf\ufffd</p>"


def test_comparison_of_cross_validated_runs(make_run: Callable[..., Run]) -> None:
    runs = [make_run("one"), make_run("two"), make_run("three")]
    for run in runs[:2]:  # a run on everything has neither validation nor, of a folder, a test
        judged = run.evaluation()
        run.write_evaluation({"out_of_fold": judged["test"], "best_epoch": 3})
    _, words = page(*runs[:2])
    assert_told(words, "Accuracy on out-of-fold images", "paired, on the same images", "difference is 0.0 points")
    assert "nothing to compare" not in words
    _, words = page(runs[0], runs[2])
    assert_told(words, "measured on different splits")


def test_comparison_refuses_what_is_none(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run, other = make_run("one"), make_run("two")
    with pytest.raises(KitaeError, match="two runs"):
        p.compare([run])
    with pytest.raises(KitaeError, match="one: is listed twice"):
        p.compare([run, run.path, other])
    with pytest.raises(KitaeError, match="not a run folder"):
        p.compare([run, tmp_path / "nothing"])
    with pytest.raises(KitaeError, match=r"is a folder; give a file, such as .*comparison\.html"):
        p.compare([run, other], tmp_path)
    mine = tmp_path / "comparison.html"
    mine.write_text("<p>mine</p>")
    with pytest.raises(KitaeError, match=r"comparison\.html.*--out"):
        p.compare([run, other])
    assert mine.read_text() == "<p>mine</p>"
    mine.unlink()
    p.compare([run, other])
    assert p.compare([run, other]) == mine  # a page of ours is replaced


def test_the_mistakes_of_a_linear_head_are_in_the_column_without_curves(make_run: Callable[..., Run]) -> None:
    run = make_run()
    kept = headings(page(run)[0])
    assert kept.index("Most confident mistakes, on test") < kept.index("Data quality") < kept.index("Training")
    run.write_metrics([{**epochs(1)[0], "epoch": 0}])
    head = headings(page(run)[0])
    assert "Training" not in head
    assert head.index("Data quality") < head.index("Most confident mistakes, on test")
    assert sorted(head) == sorted(set(kept) - {"Training"})


def test_no_line_breaks_before_a_percent_sign_or_inside_an_option(
    small: Callable[..., Path], make_run: Callable[..., Run]
) -> None:
    text = p.report(small()).read_text(encoding="utf-8")
    told = re.sub(r"<svg.*?</svg>|<pre.*?</pre>|<style>.*?</style>", "", text, flags=re.DOTALL)
    assert "pruned, INT8" in told
    assert re.search("[0-9]\u00a0%", told)
    assert not re.search(r"\d %", told)
    run = make_run(done=False)
    (resume,) = re.findall('<div class="command"><code>(.*?)</code>', p.report(run).read_text(encoding="utf-8"))
    words = re.findall("<span>(.*?)</span>", resume)
    assert words == ["kitae", "train", "--resume", str(run.path)]
    assert re.sub("</?span>", "", resume) == " ".join(words)  # what is copied is the command


def test_a_path_that_is_copied_from_a_page_is_that_of_the_folder(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run, small = make_run("50 % off"), compressed(tmp_path / "50 % less")
    for folder in (run.path, small):
        text = html.unescape(p.report(folder).read_text(encoding="utf-8"))
        assert str(folder) in text
        assert str(folder).replace(" %", "\u00a0%") not in text


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = Recipe.load("fashion-mini").override(
        "data.limit=300", "model.name=resnet8", "model.width=4", "train.epochs=1", "train.precision=fp32",
        "train.threads=1",
    )  # fmt: skip
    return train(recipe, tmp_path_factory.mktemp("pages") / "tiny")


def test_the_command_that_decodes_the_images_again_works(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KITAE_CACHE", str(tmp_path / "cache"))  # empty, and that of the command
    text, words = page(trained)
    assert "no longer in the cache" in words
    (command,) = re.findall(r"<code>kitae (evaluate [^<]*)</code>", html.unescape(text))
    kitae(tmp_path, *shlex.split(command))
    assert "no longer in the cache" not in page(trained)[1]


def test_the_page_of_what_train_writes(trained: Run) -> None:
    text, words = page(trained)
    found = headings(text)
    assert found[0] == "Results"
    place = found.index("The data")
    assert found[place : place + 4] == ["The data", "What the network really saw", "Data quality", "Training"]
    assert found.index("Most confident mistakes, on test") < place
    assert_told(words, "Every image could be read.", "T-shirt/top", "data: reading and augmenting")
    assert "Images of each class" in charts(text)
    assert text.count("<img") > 60
    assert trained.test_openings == 1  # a page opens nothing
    assert "in the cache" not in words


def test_the_page_of_what_compress_writes(trained: Run, tmp_path: Path) -> None:
    """Writer and page agree today, not only on the results that were kept."""
    result = compress(
        trained, tmp_path / "small", ratios=(0.25,), finetune_epochs=1, max_drop=100.0, calibration=("minmax",),
        threads=1, quantize=("none", "static"), controls=(),
    )  # fmt: skip
    text, words = page(result.path)
    assert "<summary>More</summary>" not in text  # nothing in the file that the page does not know
    assert result.test is not None
    winner, test = result.winner, result.test
    assert_told(words, f"{winner['bytes']:,} bytes", f"{100 * test['winner']['accuracy']:.2f} %")
    assert_told(words, "Test (1,000 images) was opened once", *(f"{row['drop']:z.2f}" for row in result.rows))
    assert not re.search("<b>–</b>", text)  # every card has its number
    assert all(cell != "–" for row in rows_of(text, "Every candidate") for cell in row)
    names = [row[0] for row in rows_of(text, "Every candidate")[1:]]
    assert len({name.removesuffix(" winner, front") for name in names}) == len(result.rows)
