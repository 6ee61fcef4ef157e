"""kt.load opens what Kitae wrote by what is in it."""

from __future__ import annotations

from pathlib import Path

import pytest

import kitae as kt
from kitae.errors import ExportError, KitaeError
from kitae.experiments.result import StudyResult
from kitae.run import Run

STUDIES = Path(__file__).parents[1] / "studies" / "results"


def test_a_study_and_a_run_are_told_apart(tmp_path: Path) -> None:
    assert isinstance(kt.load(next(STUDIES.iterdir())), StudyResult)
    kt.Recipe().save(tmp_path / "recipe.yaml")
    assert isinstance(kt.load(tmp_path), Run)


def test_what_is_not_ours_is_one_line(tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "missing"):
        with pytest.raises(KitaeError, match=str(wrong)):
            kt.load(wrong)
    (tmp_path / "x.onnx").write_bytes(b"nonsense")
    with pytest.raises(ExportError, match=r"x\.onnx"):
        kt.load(tmp_path / "x.onnx")
