"""kt.load opens what Kitae wrote by what is in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kitae as kt
from kitae.augment import Program
from kitae.errors import ExportError, KitaeError
from kitae.experiments.result import StudyResult
from kitae.experiments.study_spec import StudySpec
from kitae.pipelines.compress import CompressionResult
from kitae.preprocess import PreprocessRules, load, one_or_several
from kitae.run import Run
from tests.refusals import refused

STUDIES = Path(__file__).parents[1] / "studies" / "results"


def test_a_study_and_a_run_are_told_apart(tmp_path: Path) -> None:
    assert isinstance(kt.load(next(STUDIES.iterdir())), StudyResult)
    kt.Recipe().save(tmp_path / "recipe.yaml")
    assert isinstance(kt.load(tmp_path), Run)


def test_a_file_is_opened_as_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = next(STUDIES.iterdir())
    assert isinstance(kt.load(study / "study.yaml"), StudySpec)
    shutil.copy(Path(kt.__file__).parent / "studies" / "mixing.yaml", tmp_path / "mine.yml")
    spec = kt.load(tmp_path / "mine.yml")
    assert isinstance(spec, StudySpec)
    what = "compare of recipes/plain.yaml, 3 variants, 3 seeds, test.accuracy"
    assert repr(spec) == str(spec) == f"StudySpec(mixing: {what})"
    kt.Recipe(name="mine").save(tmp_path / "recipe.yaml")
    assert kt.load(tmp_path / "recipe.yaml") == kt.Recipe(name="mine")
    shutil.copy(Path(__file__).parent / "reporting" / "compressions" / "demo.json", tmp_path / "compression.json")
    (tmp_path / "recipe.yaml").unlink()
    assert isinstance(kt.load(tmp_path), CompressionResult)
    monkeypatch.setattr("kitae.runtime.Model", lambda path: ("model", path))
    assert kt.load(tmp_path / "model.onnx") == ("model", tmp_path / "model.onnx")


def test_another_file_is_not_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes(b"x")
    refused(KitaeError, r"best\.safetensors: not a folder .* \(it is a file\)", kt.load, tmp_path / "best.safetensors")
    kt.Recipe().save(tmp_path / "recipe.yaml")
    refused(KitaeError, f"it is a file of a run; give the folder, {tmp_path}", kt.load, tmp_path / "best.safetensors")
    refused(KitaeError, r"missing\.yaml.*no such folder", kt.load, tmp_path / "missing.yaml")
    (tmp_path / "recipe.yaml").rename(tmp_path / "search.yaml")
    refused(KitaeError, "it is a file of a search", kt.load, tmp_path / "search.yaml")


def test_what_is_not_ours_is_one_line(tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "missing"):
        refused(KitaeError, str(wrong), kt.load, wrong)
    (tmp_path / "x.onnx").write_bytes(b"nonsense")
    refused(ExportError, r"x\.onnx", kt.load, tmp_path / "x.onnx")


def test_a_path_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    kt.Recipe(name="mine").save("~/recipes/mine.yaml")
    assert kt.Recipe.load("~/recipes/mine.yaml").name == "mine"
    program = Program(np.zeros((1, 0), np.int64), np.zeros((1, 0, 12)))
    program.save("~/program.npz")
    assert Program.load("~/program.npz").codes.shape == (1, 0)
    (home / "compare.yaml").write_text(
        "{name: mine, base: ~/recipes/mine.yaml, design: compare, variants: {a: {}, b: {train.epochs: 2}}}"
    )
    base = StudySpec.load("~/compare.yaml").base
    assert isinstance(base, dict)
    assert base["name"] == "mine"  # included, as a file beside the study is
    Image.new("L", (4, 4)).save(home / "photo.png")
    assert one_or_several("~")[-1] == home / "photo.png"
    assert load("~/photo.png", PreprocessRules(4, channels=1)).shape == (1, 4, 4)
    refused(KitaeError, f"{home}: not a folder of a run", kt.report, "~")
    assert not list(here.iterdir())


@pytest.mark.parametrize("call", [
    kt.load, kt.Recipe.load, kt.Run.open, kt.report, kt.study, kt.export, kt.compress, kt.runtime.Model,
    lambda out: kt.train(kt.Recipe(), out=5 if out is None else out),
])  # fmt: skip
def test_what_is_no_path_is_one_line(call: Callable[[object], object]) -> None:
    refused(KitaeError, "a path is needed, a text or a pathlib.Path, not (NoneType|int)", call, None)
    refused(KitaeError, "a path is needed, a text or a pathlib.Path, not list", call, ["run"])
    refused(KitaeError, "a path is needed, .*, not an empty text", call, "")  # the current folder would be trained on
