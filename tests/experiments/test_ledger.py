"""The ledger says what committed results say, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kitae.errors import KitaeError
from kitae.experiments.executors import Inline
from kitae.experiments.ledger import _setting, load, markdown, publish
from kitae.experiments.study import study
from kitae.experiments.study_spec import StudySpec
from tests.experiments.test_study import FAKE

FACTORS: dict[str, Any] = {
    "smoothing": {"train.label_smoothing": [0.0, 0.1]},
    "mixing": {"augment.mix": [None, {"mixup_alpha": 1.0}]},
    "ema": {"train.ema": [None, 0.9]},
}
CLAIMS = {
    "a": {"says": "mixing +1 to +3 points", "effect": "mixing", "between": [1, 3]},
    "b": {"says": "smoothing +5 | points", "effect": "smoothing", "between": [5, None]},
    "c": {"says": "averaging +1 to +2 points", "effect": "ema", "between": [1, 2]},
    "d": {"says": "averaging costs no time", "effect": "ema", "metric": "epoch_seconds", "within": 0.05, "ratio": True},
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for design in ("one_out", "screening"):
        spec = StudySpec.parse(
            {"name": f"s-{design}", "base": "fashion-mini", "set": {"train.precision": "bf16"}, "design": design,
             "factors": FACTORS, "claims": CLAIMS if design == "one_out" else {}, "seeds": [0, 1, 2]}
        )  # fmt: skip
        study(spec, tmp_path / design, executor=Inline(), figures=design == "one_out", **FAKE)
        publish(tmp_path / design, tmp_path / "results")
    return tmp_path / "results"


def test_claims_have_verdicts_settings_and_intervals(results: Path) -> None:
    text = markdown(load(results))
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "**confirmed**" in rows["mixing +1 to +3 points"]
    assert "1,000 images of fashion-mini, resnet9, width 16, 15 epochs, bf16, 3 seeds" in rows["mixing +1 to +3 points"]
    assert "**refuted** (smaller than claimed)" in text  # smoothing, whose text holds a bar
    assert "smoothing +5 \\| points" in text
    assert "**refuted** (not of that size)" in rows["averaging +1 to +2 points"]
    assert "x 1.00" in rows["averaging costs no time"]
    assert "**confirmed**" in rows["averaging costs no time"]


def test_every_run_is_counted_and_the_two_designs_stand_side_by_side(results: Path) -> None:
    text = markdown(load(results))
    assert "| s-one_out | one_out | 12 of 12 | 0, 1, 2 | test.accuracy |" in text
    assert "| s-screening | screening | 12 of 12 |" in text
    side = next(line for line in text.splitlines() if line.startswith("| mixing | +"))
    assert side.count("to") == 2


def test_designs_of_unlike_numbers_of_runs_are_not_set_side_by_side(tmp_path: Path) -> None:
    for design, seeds in (("one_out", [0, 1, 2]), ("screening", [0, 1])):
        spec = StudySpec.parse(
            {"name": f"s-{design}", "base": "fashion-mini", "design": design, "factors": FACTORS, "seeds": seeds}
        )
        study(spec, tmp_path / design, executor=Inline(), figures=False, **FAKE)
        publish(tmp_path / design, tmp_path / "results")
    assert "by screening and one at a time" not in markdown(load(tmp_path / "results"))


def test_techniques_of_other_strengths_are_not_set_side_by_side(tmp_path: Path) -> None:
    other = {**FACTORS, "smoothing": {"train.label_smoothing": [0.0, 0.2]}}
    assert other != FACTORS
    for design, factors in (("one_out", FACTORS), ("screening", other)):
        spec = StudySpec.parse({"name": f"s-{design}", "base": "fashion-mini", "design": design, "factors": factors})
        study(spec, tmp_path / design, executor=Inline(), figures=False, **FAKE)
        publish(tmp_path / design, tmp_path / "results")
    assert "by screening and one at a time" not in markdown(load(tmp_path / "results"))


def test_every_pair_of_designs_is_listed_and_no_width_divides_by_zero(tmp_path: Path) -> None:
    for name, design in (("a", "one_out"), ("b", "screening"), ("c", "screening")):
        spec = StudySpec.parse(
            {"name": name, "base": "fashion-mini", "design": design, "factors": FACTORS, "seeds": [0, 1],
             "metric": "peak_memory_bytes", "also": []}
        )  # fmt: skip
        study(spec, tmp_path / name, executor=Inline(), figures=False, **FAKE)
        publish(tmp_path / name, tmp_path / "results")
    text = markdown(load(tmp_path / "results"))
    assert "`a` and `b`, peak_memory_bytes:" in text
    assert "`a` and `c`, peak_memory_bytes:" in text
    assert "| mixing | x 1.00 (x 1.00 to x 1.00) | x 1.00 (x 1.00 to x 1.00) | - |" in text


def test_another_study_of_the_same_name_is_not_published_over(results: Path, tmp_path: Path) -> None:
    publish(tmp_path / "one_out", results)
    spec = StudySpec.parse({"name": "s-one_out", "base": "fashion-mini", "design": "one_in", "factors": FACTORS})
    study(spec, tmp_path / "other", executor=Inline(), figures=False, **FAKE)
    before = (results / "s-one_out" / "effects.json").read_bytes()
    with pytest.raises(KitaeError, match=r"holds another study of this name .*another name") as caught:
        publish(tmp_path / "other", results)
    assert "\n" not in str(caught.value)
    assert (results / "s-one_out" / "effects.json").read_bytes() == before


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("parquet:data/cifar10.parquet", "cifar10"), ("folder:/home/me/photos", "photos"), ("cifar10:/data", "cifar10"),
        ("fashion-mini", "fashion-mini"), ("folder:.", "folder"),
    ],
)  # fmt: skip
def test_a_setting_names_its_images(source: str, name: str) -> None:
    settings = {"source": source, "images": 5000, "model": "resnet9", "epochs": 3, "precision": "fp32"}
    assert _setting(settings) == f"5,000 images of {name}, resnet9, 3 epochs, fp32"


def test_published_results_need_no_runs_and_are_whole(results: Path) -> None:
    there = sorted(path.name for path in (results / "s-one_out").iterdir())
    assert there == ["effects.json", "effects.parquet", "figures", "runs.parquet", "study.yaml"]
    before = markdown(load(results))
    assert markdown(load(results)) == before


def test_an_unfinished_study_is_not_published(tmp_path: Path) -> None:
    spec = StudySpec.parse({"name": "s", "base": "fashion-mini", "design": "one_in", "factors": FACTORS})

    class Stops(Inline):
        def outcomes(self, units: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(spec, tmp_path / "s", executor=Stops(), figures=False, **FAKE)
    with pytest.raises(KitaeError, match="the study is not finished"):
        publish(tmp_path / "s", tmp_path / "results")
