"""Every shipped study is planned in full, and runs as its tiny twin."""

from __future__ import annotations

from pathlib import Path

import pytest

from kitae.experiments.executors import Inline
from kitae.experiments.plan import make_plan
from kitae.experiments.result import StudyResult
from kitae.experiments.study import study
from kitae.experiments.study_spec import SHIPPED, StudySpec, shipped
from kitae.reporting.page import report


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_study_and_its_twin_can_be_planned(name: str) -> None:
    spec = StudySpec.load(name)
    plan = make_plan(spec, threads=1, precision="fp32")
    assert spec.name == name
    assert spec.about
    assert f"kitae study {name}" in (SHIPPED / f"{name}.yaml").read_text()
    assert len(spec.seeds) >= 3
    assert plan.smallest is not None
    twin = make_plan(StudySpec.load(name, tiny=True), threads=1, precision="fp32")
    assert len(twin.jobs) <= 26
    assert all(job.recipe.data.source == "fashion-mini" and job.recipe.train.epochs == 1 for job in twin.jobs)
    assert twin.design.kind == plan.design.kind


def check(name: str, folder: Path) -> StudyResult:
    result = study(name, folder, tiny=True, executor=Inline(), threads=1)
    assert list(result.runs["status"]) == ["done"] * len(result.runs), result.runs["error"].tolist()
    assert all(effect.low <= effect.estimate <= effect.high for effect in result.analyses[result.spec.metric].effects)
    assert set(result.spec.also) <= set(result.analyses), "a metric that no run has"
    return result


def test_a_shipped_study_runs(tmp_path: Path) -> None:
    result = check("label-smoothing", tmp_path)
    assert "Effects on accuracy on test" in report(tmp_path).read_text()
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {"forest.svg", "curves.svg", "response.svg"}
    assert "test.accuracy in points; 95 % intervals, covering seeds" in result.table()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(shipped()) - {"label-smoothing"}))
def test_every_shipped_study_runs(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)
