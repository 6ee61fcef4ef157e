"""The study that the docs begin with, as it is printed there, on a folder of photographs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kitae.cli import research
from kitae.experiments.result import StudyResult
from kitae.recipe import Recipe
from tests.images import picture

PAGE = Path(__file__).parents[2] / "docs" / "studies.md"
FACTORS = ("crop", "flip", "mixing", "smoothing")
# Only what makes it small; source, factors, design and metric are the page's.
SMALL = (
    "data.image_size=32", "data.val_fraction=0.25", "train.epochs=2", "train.batch_size=8", "train.optimizer.lr=0.05",
    "train.precision=fp32", "model.width=8", "study.seeds=[0, 1]",
)  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with mine.yaml as the page prints it, and the photographs it speaks of."""
    block = PAGE.read_text().split("```yaml\n", 1)[1].split("```", 1)[0]
    assert block.startswith("# mine.yaml\n")
    assert len(block.splitlines()) <= 17, "fifteen lines, says the page"
    (tmp_path / "mine.yaml").write_text(block)
    for label, name in enumerate(("birch", "maple", "oak")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(24):
            size = (40, 48) if number % 2 else (48, 40)
            Image.fromarray(picture(label, number, size, 3)).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KITAE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_it_is_planned_on_a_folder_of_photographs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    research.study("mine.yaml", set_=list(SMALL[:-1]), plan=True, threads=1)
    text = " ".join(capsys.readouterr().out.split())
    assert "Study mine: screening, 8 variants x 3 seeds" in text
    assert "24, 2 epochs each, resnet9 on photos" in text
    assert "of training" in text, "a few steps were timed, on these photographs"
    assert "metric val.accuracy" in text
    assert "Aliases: main effects are clear of two-factor interactions." in text
    assert not (home / "runs").exists()


@pytest.mark.slow
def test_it_runs_on_a_folder_of_photographs(home: Path) -> None:
    words = ("study", "mine.yaml", "--threads", "1", "--workers", "2", "--set", *SMALL)
    done = subprocess.run(
        [sys.executable, "-m", "kitae", *words], capture_output=True, text=True, env=os.environ, timeout=580
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 of 16 runs finished" in done.stdout
    assert "val.accuracy in points; 95 % intervals, covering seeds" in done.stdout

    result = StudyResult.open("runs/study-mine")
    assert list(result.runs["status"]) == ["done"] * 16, result.runs["error"].tolist()
    effects = result.effects[result.effects["metric"] == "val.accuracy"].set_index("name")
    assert list(effects.index) == list(FACTORS)
    assert effects[["estimate", "low", "high", "p"]].notna().all(axis=None)
    assert ((effects["low"] < effects["estimate"]) & (effects["estimate"] < effects["high"])).all()
    assert all(f"{sentence}" in done.stdout for sentence in result.sentences)
    assert result.runs["val.accuracy"].between(0.0, 1.0).all()
    assert result.runs["val.accuracy"].mean() > 0.5, "three classes of different colours"
    assert result.runs["best_epoch"].isin([1, 2]).all()

    # The estimate is what a screening says: the mean of the runs with a technique minus that of those without.
    _check_estimates(result, effects["estimate"].to_dict())
    assert not any(name.startswith("test.") for name in result.runs)
    assert not list(Path("runs/study-mine/runs").glob("*/test_openings.jsonl"))
    assert (home / "runs/study-mine/figures/forest.svg").is_file()


def _check_estimates(result: StudyResult, estimates: dict[str, float]) -> None:
    runs = result.runs.set_index("run")["val.accuracy"]
    switched = {name: switches(Recipe.load(f"runs/study-mine/runs/{name}/recipe.yaml")) for name in runs.index}
    for factor, estimate in estimates.items():
        on = runs[[name for name in runs.index if switched[name][factor]]]
        off = runs[[name for name in runs.index if not switched[name][factor]]]
        assert len(on) == len(off) == 8
        assert estimate == pytest.approx(100 * float(on.mean() - off.mean()), abs=1e-9)


def switches(recipe: Recipe) -> dict[str, Any]:
    """What of the page's factors a recipe has."""
    ops: dict[str, Any] = {name: settings for op in recipe.augment.train for name, settings in op.items()}
    return {
        "crop": dict(ops.get("random_crop") or {}).get("padding") == 8,
        "flip": "horizontal_flip" in ops,
        "mixing": recipe.augment.mix is not None,
        "smoothing": recipe.train.label_smoothing == 0.1,
    }
