"""What the docs show as output is what their commands print, and what they show as measured is by their commands."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from kitae.cli import app
from kitae.compression.spec import CompressSpec
from kitae.data.sources import open_source
from kitae.data.spec import DataSpec
from kitae.experiments.study_spec import StudySpec
from kitae.pipelines.compress import resolve_spec
from tests.command import kitae
from tests.test_docs import BLOCKS, PAGES

ROOT = Path(__file__).parents[1]
OUTPUT = [block for block in BLOCKS if block.language == "text"]
KNOWN = {
    "start.md": "a folder, no output",
    "README.md": "test_docs.py compares it with the committed output",
    "README.ja.md": "test_docs.py compares it with the committed output",
}
CLASSES = ("circle", "square", "triangle")


def drawing(kind: str, seed: int) -> Image.Image:
    """A shape on a ground of its own, 96 x 72."""
    rng = np.random.default_rng(seed)
    ground = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((96, 72), Image.Resampling.BICUBIC)
    x, y, size = rng.integers(8, 50), rng.integers(8, 30), rng.integers(20, 36)
    box, draw = [x, y, x + size, y + size], ImageDraw.Draw(ground)
    colour = tuple(map(int, rng.integers(0, 256, 3)))
    if kind == "circle":
        draw.ellipse(box, fill=colour)
    elif kind == "square":
        draw.rectangle(box, fill=colour)
    else:
        draw.polygon([(x, y + size), (x + size, y + size), (x + size // 2, y)], fill=colour)
    return ground


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """The folder that docs/guides/data.md describes, in `tmp_path`."""
    seed = 0
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for kind in CLASSES:
            folder = tmp_path / "shapes" / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                drawing(kind, seed := seed + 1).save(folder / f"{number:02}.jpg")
    train = tmp_path / "shapes" / "train"
    whole = (train / "circle/03.jpg").read_bytes()
    (train / "circle/03.jpg").write_bytes(whole[: len(whole) // 2])
    (train / "circle/notes.txt").write_text("drawn by hand")
    shutil.copyfile(train / "triangle/07.jpg", train / "circle/12.jpg")
    shutil.copyfile(train / "square/05.jpg", tmp_path / "shapes/test/square/copy.jpg")
    return tmp_path


def shown(page: str, start: str) -> str:
    """The output on a page that starts so; where a file was cut is left open."""
    (text,) = [block.text for block in OUTPUT if block.page.name == page and block.text.startswith(start)]
    return cut_anywhere(text)


def cut_anywhere(text: str) -> str:
    return re.sub(r"\d+ bytes not processed", "N bytes not processed", text)


def options(line: str) -> tuple[dict[str, Any], list[str]]:
    """The options of `kitae compress` in a command, and what it sets."""
    _, bound, _ = app.parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)
    given = {**bound.arguments}
    return {name: value for name, value in given.items() if name in CompressSpec.model_fields}, given.get("set_") or []


def exercises() -> list[str]:
    """The sections of the six exercises, each command on one line."""
    sections = (ROOT / "docs" / "exercises.md").read_text(encoding="utf-8").split("\n## ")[1:]
    assert len(sections) == 6
    return [section.replace("\\\n", " ") for section in sections]


def made_by(text: str) -> tuple[dict[str, StudySpec], list[dict[str, Any]]]:
    """What the commands of a text measure: studies by their names, and the settings of compressions."""
    studies, compressions = {}, []
    for line in text.splitlines():
        if not line.startswith("kitae ") or "--plan" in line:
            continue
        words = shlex.split(line)
        if words[1] == "study":
            sets = words[words.index("--set") + 1 :] if "--set" in words else []
            spec = StudySpec.load(words[2], *sets, "data.source=parquet:cifar10.parquet")
            studies[spec.name] = spec
        elif words[1] == "compress":
            given, sets = options(line)
            compressions.append(resolve_spec(None, given, sets).model_dump(mode="json"))
    return studies, compressions


def recorded_settings(compression: str) -> dict[str, Any]:
    """A field that came later has its default; without `reconstruct`, nothing was solved."""
    spec = json.loads((ROOT / f"benchmarks/results/compression/{compression}.json").read_text())["spec"]
    return CompressSpec(**{"reconstruct": False, **spec}).model_dump(mode="json")


def studies_in(text: str) -> set[str]:
    """The studies that tables name in their last column."""
    return set(re.findall(r"\| `([\w-]+)` \|$", text, re.MULTILINE))


def test_the_commands_of_the_exercises_are_those_that_measured() -> None:
    """Each study or compression that a table names is made by a command above it, with the settings on record."""
    for section in exercises():
        studies, compressions = made_by(section)
        named = studies_in(section)
        assert named <= studies.keys(), section.partition("\n")[0]
        for name in named:
            recorded = yaml.safe_load((ROOT / "studies/results" / name / "study.yaml").read_text())["study"]
            before, now = StudySpec.parse(recorded).dump(), studies[name].dump()
            same = before.keys() - {"about", "claims", "tiny"}
            assert {key: now[key] for key in same} == {key: before[key] for key in same}, name
        for name in re.findall(r"^\| \[([\w-]+)\]\(benchmarks/compression", section, re.MULTILINE):
            assert recorded_settings(name) in compressions, name


def test_an_exercise_begins_with_a_command_and_what_it_measured() -> None:
    """Below the first command is a table of its own results, and of nothing else; the full size comes later."""
    pair = re.compile(
        r"```\n(?P<commands>[^`]+)```\n\n<!-- measured: (?P<name>.+?) -->\n(?P<table>.+?)<!-- measured: end", re.DOTALL
    )
    for section in exercises():
        title, _, text = section.partition("\n")
        first = pair.match(text[text.index("```") :])
        assert first is not None, f"{title}: no table below the first command"
        assert "--plan" not in first["commands"], title
        studies, compressions = made_by(first["commands"])
        if first["name"] == "ratios":
            assert compressions == [recorded_settings("few-unstructured")]
        else:
            assert studies_in(first["table"]) == studies.keys(), title
        assert "\n| " in first["table"], title
        shipped = re.findall(r"^kitae study ([\w-]+).* --plan", text, re.MULTILINE)
        assert [name for name in shipped if not name.startswith("ledger-")], title


def test_all_output_is_compared() -> None:
    assert {page.name for page in PAGES} >= KNOWN.keys()
    assert sorted(block.page.name for block in OUTPUT if block.page.name not in KNOWN) == [
        "data.md", "data.md", "evaluate.md",
    ]  # fmt: skip


@pytest.mark.slow
def test_checking_and_fixing_print_what_the_guide_shows(shapes: Path) -> None:
    assert cut_anywhere(kitae(shapes, "data", "check", "shapes/", code=1).stdout) == shown("data.md", "folder:shapes/")
    fixed = kitae(shapes, "data", "fix", "shapes/", "--out", "shapes-fixed.csv").stdout
    assert fixed == shown("data.md", "left out")


@pytest.mark.slow
def test_mistakes_are_listed_as_the_guide_shows(tmp_path: Path) -> None:
    fields = ["data.limit=300", "train.epochs=1", "train.threads=1", "model.width=8"]
    kitae(tmp_path, "train", "fashion-mini", "--out", "run", "--set", *fields)
    printed = kitae(tmp_path, "show", "mistakes", "run").stdout.splitlines()
    head, *rows = [re.split(r"\s{2,}|\t", line) for line in shown("evaluate.md", "image").splitlines()]
    assert head in [re.split(r"\s{2,}|\t", line) for line in printed]
    table = open_source(DataSpec(source="fashion-mini")).table
    labels = dict(zip(table.names, table.labels, strict=True))
    for name, label, predicted, _ in rows:
        assert table.classes[labels[name]] == label != predicted
        assert predicted in table.classes
    shares = [float(row[3].removesuffix(" %")) for row in rows]
    assert shares == sorted(shares, reverse=True)


def test_no_page_installs_kitae_from_an_index() -> None:
    """It is on none, so the command would fail, or install another package of this name."""
    for page in PAGES:
        assert not re.search(r"install ['\"]?kitae\b", page.read_text(encoding="utf-8")), page.name
