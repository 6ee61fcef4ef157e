"""`kitae compress` and `kitae predict FILE.onnx`, as a user meets them."""

from __future__ import annotations

import csv
import json
import re
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kitae import console, runtime
from kitae.cli import ship, start
from kitae.pipelines.train import train
from kitae.recipe import Recipe
from kitae.run import Run
from kitae.runtime import Model
from tests import command
from tests.command import refused
from tests.images import picture, write_folder

CLASSES = 3
kitae = partial(command.kitae, columns=160)  # wide enough that no cell of a table is folded
FAST = ["--set", "calibration=[minmax]", "sensitivity=false", "round_to=8", "threads=1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    """A small network that knows three colours, from a folder of photographs of mixed sizes and modes."""
    photos = write_folder(home / "photos", train=40, classes=CLASSES)
    recipe = Recipe.load("fashion-mini").override(
        f"data.source=folder:{photos}", f"data.cache={home / 'cache'}", "data.limit=null", "data.image_size=16",
        "model.name=resnet8", "model.width=16", "train.epochs=2", "train.batch_size=16", "train.precision=fp32",
        "train.threads=1",
    )  # fmt: skip
    return train(recipe, home / "run").path


def cells(table: str) -> list[list[str]]:
    """The rows of a printed table, below its head."""
    lines = [line.split("\t") for line in table.splitlines() if "\t" in line]
    return lines[1:]


@pytest.fixture(scope="module")
def printed(home: Path, run: Path) -> str:
    """What a compression with pruning and 8-bit integers prints; its folder is `run-small`."""
    return kitae(
        home, "compress", "run", "--max-drop", 100, "--ratios", 0.5, "--finetune-epochs", 1,
        "--quantize", "none", "static", *FAST,
    ).stdout  # fmt: skip


@pytest.fixture(scope="module")
def model(home: Path, printed: str) -> Path:
    return home / "run-small" / "model.onnx"


def test_the_table_says_what_was_measured(home: Path, printed: str, model: Path) -> None:
    facts = json.loads((model.parent / "compression.json").read_text())
    head = next(line for line in printed.splitlines() if "\t" in line)
    assert head.split("\t") == ["candidate", "bytes", "ms", "faster", "accuracy (95 %)"]
    rows = cells(printed)
    assert [row["name"] for row in facts["candidates"]] == [
        "original fp32", "original int8-static", "50 % fp32", "50 % int8-static",
        "trained further, original int8-static",
    ]  # fmt: skip
    assert len(rows) == 5
    labels = [
        "original, float32", "not pruned, INT8", "50 % pruned, float32", "* 50 % pruned, INT8",
        "original trained further, INT8",
    ]  # fmt: skip
    assert [name for name, *_ in rows] == labels, "as on the page"
    assert facts["winner"]["name"] == "50 % int8-static"
    assert facts["winner"]["parameters"] < 0.5 * facts["baseline"]["parameters"]
    for (_, size, milliseconds, faster, accuracy), row in zip(rows, facts["candidates"], strict=True):
        assert size.endswith(" kB")
        assert float(size.removesuffix(" kB")) == pytest.approx(row["bytes"] / 1000, rel=0.005)
        assert float(milliseconds) == pytest.approx(row["latency_ms"], abs=0.00051)
        assert float(faster.removesuffix(" x")) == pytest.approx(row["speedup"], abs=0.0051)
        found = re.fullmatch(r"([\d.]+) % \(([\d.]+) to ([\d.]+)\)", accuracy)
        assert found is not None
        expected = [row["accuracy"], *row["accuracy_interval"]]
        assert [float(share) for share in found.groups()] == pytest.approx([100 * x for x in expected], abs=0.051)
    assert f"{facts['smaller']:.1f} x smaller" in printed
    assert f"points lost (95 % interval {facts['test']['drop_interval'][0]:.2f}" in printed


@pytest.mark.parametrize("size", ["bytes", "packed_bytes"])
def test_the_table_fits_80_columns_and_shows_what_decided(
    size: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.console, "width", 80)
    monkeypatch.setattr(console, "interactive", lambda: True)
    names = ("original, float32", "not pruned, INT8 weights", "not pruned, INT8", "50 % pruned, INT8")
    row = {"bytes": 44_700_000, "packed_bytes": 11_300_000, "latency_ms": 12.345, "speedup": 1.0, "accuracy": 0.9345,
           "accuracy_interval": [0.928, 0.941], "winner": False}  # fmt: skip
    rows = [{**row, "name": name, "winner": name == names[-1]} for name in names]
    record = SimpleNamespace(candidates=names, label=str)
    ship._print_candidates(SimpleNamespace(path="small", facts={"size": size}, rows=rows, record=record))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    table = [line for line in lines if line.startswith("│")]
    assert len(table) == len(names)  # nothing is folded
    assert all("93.5 % (92.8 to 94.1)" in line or "93.4 % (92.8 to 94.1)" in line for line in table)
    assert all(("11.3 MB" if size == "packed_bytes" else "44.7 MB") in line for line in table)


def test_a_winner_that_gains_or_is_slower_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"name": "original int8-dynamic", "bytes": 10, "latency_ms": 2.0, "speedup": 0.8, "accuracy": 0.9,
           "winner": True}  # fmt: skip
    side = {"accuracy": 0.9, "accuracy_interval": [0.8, 0.95]}
    record = SimpleNamespace(candidates=["not pruned, INT8 weights"], label=str)
    test = {"baseline": side, "winner": side, "drop": -0.88, "drop_interval": [-1.2, -0.57], "within_budget": True}
    facts = {"size": "bytes", "smaller": 3.9, "faster": 0.8, "latency": {"noise": 0.1}}
    ship._print_compression(SimpleNamespace(path="small", facts=facts, rows=[row], test=test, record=record))
    printed = capsys.readouterr().out
    assert "3.9 x smaller and 1.2 x slower than the 32-bit ONNX model" in printed
    assert "\ntest accuracy 90.0 % before, " in printed
    assert "after: 0.88 points gained (95 % interval 0.57 to 1.20)" in printed
    facts = {**facts, "latency": {"noise": 0.26}, "metric": "balanced accuracy"}  # 0.8 times as fast: 1.25 the time
    ship._print_compression(SimpleNamespace(path="small", facts=facts, rows=[row], test=test, record=record))
    printed = capsys.readouterr().out
    assert "smaller and as fast as the 32-bit ONNX model (the difference is within the noise, 26.0 %)" in printed
    assert "balanced test accuracy 90.0 % before, " in printed


def test_a_file_for_vnni_on_another_cpu_is_one_line(
    home: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = {**Model(model).metadata, "target": "vnni"}
    monkeypatch.setattr(runtime, "read_metadata", lambda *_: metadata)
    monkeypatch.setattr(runtime, "has_vnni", lambda: False)
    start.predict(model, [home / "photos" / "class 0"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "VNNI" in line]
    assert line.startswith("note: ")
    assert ".py:" not in line


def test_the_command_that_it_names_predicts(home: Path, printed: str, model: Path) -> None:
    (command,) = re.findall(r"^next: (kitae predict .+ IMAGES)$", printed, re.MULTILINE)
    file = Path(command.removeprefix("kitae predict ").removesuffix(" IMAGES"))
    assert file == model
    shown = cells(kitae(home, "predict", file, "photos", "--out", "all.csv").stdout)
    with (home / "all.csv").open(newline="") as stream:
        head, *rows = csv.reader(stream)
    assert head == ["image", "class", *(f"class {k}" for k in range(CLASSES))]
    assert len(rows) == len(shown) == 40 * CLASSES
    own = Model(model).predict([home / name for name, *_ in rows])
    assert [row[1] for row in rows] == own.names
    np.testing.assert_allclose([[float(x) for x in row[2:]] for row in rows], own.probabilities, atol=1e-6)
    assert [row[:2] for row in shown] == [row[:2] for row in rows]
    assert np.mean([Path(name).parent.name == said for name, said, *_ in rows]) > 0.8


def test_an_impossible_budget_keeps_the_closest(home: Path, run: Path) -> None:
    openings = Run.open(run).test_openings
    result = kitae(
        home, "compress", "run", "--out", "tight", "--prune", "none", "--quantize", "static", "--max-bytes", 1000,
        *FAST, code=2,
    )  # fmt: skip
    line = result.stderr
    assert [row[0] for row in cells(result.stdout)] == ["original, float32", "* not pruned, INT8"]
    size = (home / "tight" / "closest.onnx").stat().st_size
    assert line.startswith("error: tight: ")
    assert f"the closest (not pruned, INT8) has {size:,} bytes, over 1,000" in line
    assert "closest.onnx" in line
    assert not (home / "tight" / "model.onnx").exists()
    page, use, again = result.stdout.splitlines()[-3:]
    assert page == "page: tight/report.html"
    assert use == "next: kitae predict tight/closest.onnx IMAGES"
    assert again.startswith("next: kitae compress run --out tight --overwrite ")
    assert again.endswith(f" --max-bytes {size}")
    assert Run.open(run).test_openings == openings
    assert "kitae predict tight/closest.onnx IMAGES" in refused(home, "predict", "tight", "photos")
    assert len(cells(kitae(home, "predict", "tight/closest.onnx", "photos/class 0").stdout)) == 40


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("best.safetensors", "half: has no best.safetensors; train again from half/recipe.yaml"),
        ("evaluation.json", "half: is not finished"),
    ],
)
def test_a_run_that_is_not_whole(home: Path, run: Path, missing: str, message: str) -> None:
    shutil.rmtree(home / "half", ignore_errors=True)
    shutil.copytree(run, home / "half")
    (home / "half" / missing).unlink()
    assert refused(home, "compress", "half").startswith(message)
    assert not (home / "half-small").exists()


def test_images_of_any_size_and_mode(home: Path, model: Path) -> None:
    """They are prepared as in training; what has no rule is one line that names the file."""
    folder = home / "any"
    folder.mkdir()
    colour = picture(1, 7, (50, 90), CLASSES)
    image = Image.fromarray(colour)
    image.resize((7, 300)).save(folder / "1-narrow.png")
    image.resize((1, 1)).save(folder / "2-pixel.png")
    image.convert("L").save(folder / "3-grey.png")
    image.convert("1").save(folder / "4-bits.png")
    image.convert("CMYK").save(folder / "5-cmyk.jpg")
    image.convert("P").save(folder / "6-palette.gif")
    Image.fromarray(np.dstack([colour, colour[:, :, 0]])).save(folder / "7-alpha.png")
    Image.fromarray(colour[:, :, 0].astype(np.uint16) * 256).save(folder / "8-deep.png")
    files = sorted(folder.iterdir())
    printed = kitae(home, "predict", model, "any").stdout
    rows = cells(printed)
    assert [row[0] for row in rows] == [f"any/{file.name}" for file in files]
    assert [row[1] for row in rows] == Model(model).predict(files).names
    Image.fromarray(colour[:, :, 0].astype(np.float32)).save(folder / "9-float.tif")
    assert refused(home, "predict", model, "any").startswith("any/9-float.tif: 32-bit float pixels")
    (folder / "9-float.tif").write_bytes((folder / "1-narrow.png").read_bytes()[:300])
    assert refused(home, "predict", model, "any").startswith("any/9-float.tif: cannot be decoded (")
    result = kitae(home, "predict", model, "any", "--on-corrupt", "skip", "--out", "skipped.csv")
    assert result.stdout == printed  # a table to pipe and nothing else
    assert "written to skipped.csv\nskipped 1 unreadable image:\n  any/9-float.tif: cannot be" in result.stderr
    with (home / "skipped.csv").open(newline="") as stream:
        assert [row[0] for row in csv.reader(stream)][1:] == [f"any/{file.name}" for file in files]
