"""kt.load opens what Kitae wrote by what is in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import kitae as kt
from kitae.errors import ExportError, KitaeError
from kitae.experiments.result import StudyResult
from kitae.experiments.study_spec import StudySpec
from kitae.pipelines.compress import CompressionResult
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
