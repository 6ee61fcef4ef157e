"""Every shipped study is planned in full, and runs as its tiny twin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kitae.experiments.executors import Inline
from kitae.experiments.plan import make_plan, resolve
from kitae.experiments.result import StudyResult
from kitae.experiments.study import study
from kitae.experiments.study_spec import SHIPPED, StudySpec, base_recipe, shipped
from kitae.reporting.page import report

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("file", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_study_of_published_settings_still_has_their_variants(file: Path) -> None:
    # A recipe or a rule may change after its study was run; the file pins what was different then.
    plan = make_plan(StudySpec.load(file), threads=1, precision="fp32")
    text = file.read_text()
    assert f"kitae study studies/{file.name}" in text
    results = [ROOT / word.rstrip(".") for word in text.split() if word.startswith("benchmarks/results/")]
    assert results or f"studies/results/{file.stem}" in text
    for result in results:
        ran = [variant["name"] for variant in json.loads(result.read_text())["variants"]]
        assert [variant.name for variant in plan.design.variants] == ran


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


def test_the_baseline_of_the_full_pipeline_has_its_crops_and_flips() -> None:
    spec = StudySpec.load("full-pipeline")
    base = base_recipe(spec.base, "base")
    pipelines = [resolve(base, spec, fields, name)[0].augment.train for name, fields in spec.variants.items()]
    baseline, full = ({name: op[name] for op in ops for name in op} for ops in pipelines)
    assert [*baseline] == ["random_crop", "horizontal_flip"]
    assert all(full[name] == given for name, given in baseline.items())
