"""Folders are read and validated once; what is damaged is named by file and field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kitae.errors import KitaeError, TrainingError
from kitae.files import plain
from kitae.reporting.compression_results import CompressionRecord
from kitae.reporting.effects import Effect
from kitae.reporting.results import RunRecord, Split
from kitae.reporting.study_results import StudyRecord
from kitae.run import Run
from tests.refusals import refused
from tests.reporting.conftest import measured, measured_compression


def test_a_run_is_read_as_far_as_it_is(make_run: Callable[..., Run]) -> None:
    begun, done = RunRecord.open(make_run("a", done=False, rows=0)), RunRecord.open(make_run("b"))
    assert (begun.finished, begun.epochs, begun.openings, begun.predicted, begun.best) == (False, (), (), None, None)
    assert done.finished
    assert done.evaluation.test is not None
    assert done.evaluation.test.accuracy == pytest.approx(80 / 90)
    assert done.openings[0].why == "end of training"
    assert done.predicted is not None
    assert len(done.predicted.names) == 90
    assert done.best is not None
    assert done.best.epoch == 4


def test_confidence_before_the_temperature_is_that_of_the_logits(make_run: Callable[..., Run]) -> None:
    found = RunRecord.open(make_run()).predicted
    assert found is not None
    np.testing.assert_allclose(found.uncalibrated(1.0), found.confidence, atol=1e-6)
    assert (found.uncalibrated(2.0) >= found.confidence - 1e-9).all()


def test_confused_pairs_are_counted() -> None:
    split = Split.model_validate(measured(("a", "b", "c")))
    (pair,) = split.confused(5)
    assert (pair.true, pair.predicted, pair.count, pair.share) == ("a", "b", 10, pytest.approx(1 / 3))
    assert Split.model_validate({**measured(("a", "b")), "confusion": [[1]]}).confused(5) == []


def test_numbers_that_are_not_finite_are_unknown() -> None:
    effect = Effect.model_validate(
        {"name": "a", "metric": "b", "estimate": float("nan"), "low": float("-inf"), "high": None}
    )
    assert np.isnan([effect.estimate, effect.low, effect.high]).all()
    assert Split.model_validate({"accuracy": 0.5, "accuracy_interval": [None, 0.9]}).accuracy_interval is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"candidates": []}, "candidates"),
        ({"candidates": [{"name": "a"}]}, "candidates.0.prune"),
        ({"smaller": "much"}, "smaller"),
        ({"spec": [1]}, "spec"),
    ],
)
def test_a_damaged_field_is_named(change: dict[str, Any], field: str, tmp_path: Path) -> None:
    (tmp_path / "compression.json").write_text(json.dumps({**measured_compression(), **change}))
    refused(KitaeError, rf"compression\.json: is damaged \({field}: ", CompressionRecord.open, tmp_path)


def test_a_compression_of_a_later_version_has_settings_that_this_one_does_not_know(tmp_path: Path) -> None:
    facts = measured_compression()
    facts["spec"]["later"] = 1
    (tmp_path / "compression.json").write_text(json.dumps(facts))
    assert CompressionRecord.open(tmp_path).spec.max_drop == facts["spec"]["max_drop"]
    del facts["machine"]  # without it, pages could not say where times were taken
    (tmp_path / "compression.json").write_text(json.dumps(facts))
    refused(KitaeError, r"compression\.json: is damaged \(machine: ", CompressionRecord.open, tmp_path)


def test_damaged_runs_are_named(make_run: Callable[..., Run]) -> None:
    one, other = make_run("one"), make_run("other")
    (one.path / "predictions.parquet").write_bytes(b"PAR1 no")
    refused(KitaeError, r"predictions\.parquet: is damaged; delete it", RunRecord.open, one)
    (other.path / "evaluation.json").write_text('{"test": {"accuracy": [1]}}')
    refused(KitaeError, r"evaluation\.json.*test\.accuracy", RunRecord.open, other)
    for line, why in (("3", "a line is not a JSON object"), ("{", "a line is not JSON")):
        other.metrics_file.write_text(f'{{"epoch": 1}}\n{line}\n')
        refused(TrainingError, rf"metrics\.jsonl: is damaged \({why}\)", other.best_epoch)


def test_every_published_result_is_valid() -> None:
    root = Path(__file__).parents[2]
    studies = sorted((root / "studies" / "results").glob("*/effects.json"))
    assert studies
    for file in studies:
        record = StudyRecord.open(file.parent)
        assert record is not None
        assert record.main.effects
        # It is written as it was read.
        assert json.dumps(plain(record.model_dump()), indent=2) + "\n" == file.read_text()
    for file in (root / "benchmarks" / "results" / "compression").glob("*.json"):
        facts = json.loads(file.read_text())
        note = facts.pop("note")  # of the benchmark, before what `kitae compress` wrote
        record = CompressionRecord.model_validate(facts)
        assert json.dumps(record.data()) == json.dumps(facts), "it is written as it was read"
        assert CompressionRecord.model_validate({"note": note, **facts}).model_extra == {"note": note}
