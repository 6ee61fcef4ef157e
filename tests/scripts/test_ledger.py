"""The ledger says what committed results say, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kitae.errors import KitaeError
from kitae.experiments.executors import Inline
from kitae.experiments.folder import NUMERICS
from kitae.experiments.result import StudyResult
from kitae.experiments.study import study
from kitae.experiments.study_spec import StudySpec
from ledger import load, markdown, publish, setting
from tests.experiments.test_study import FAKE
from tests.images import write_parquet
from tests.refusals import refused

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


def published(folder: Path, name: str, design: str, **fields: Any) -> Path:
    """Run a study on the stand-in and publish it; returns the folder of results."""
    spec = StudySpec.parse({"name": name, "base": "fashion-mini", "design": design, "factors": FACTORS, **fields})
    study(spec, folder / name, executor=Inline(), **FAKE)
    return publish(folder / name, folder / "results").parent


@pytest.fixture
def results(tmp_path: Path) -> Path:
    shared: dict[str, Any] = {"set": {"train.precision": "bf16"}}
    published(tmp_path, "s-one_out", "one_out", claims=CLAIMS, **shared)
    return published(tmp_path, "s-screening", "screening", **shared)


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
    side = next(line for line in text.splitlines() if line.startswith("| mixing | **+"))
    assert side.count("to") == 2


@pytest.mark.parametrize("base", ["fashion-mini", {"data": {}}])
def test_results_do_not_say_where_the_images_lay_and_can_be_extended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Any
) -> None:
    data = tmp_path / "Großmutter \U0001f408" / "photos of the whole family in the garden"
    data.mkdir(parents=True)
    write_parquet(data / "set.parquet", train=4, test=1, classes=2)

    def asked(source: str, *seeds: int) -> StudySpec:
        if isinstance(base, dict):
            fields: dict[str, Any] = {"base": {"data": {"source": source}}}
        else:
            fields = {"base": base, "set": {"data.source": source}}
        return StudySpec.parse({"name": "s", "design": "one_in", "factors": FACTORS, "seeds": seeds, **fields})

    there, near = f"parquet:{data / 'set.parquet'}", "parquet:set.parquet"
    first = study(asked(there, 0, 1), tmp_path / "s", executor=Inline(), **FAKE)
    place = publish(tmp_path / "s", tmp_path / "results")
    found = StudyResult.open(place)
    assert found.settings["source"] == near
    assert found.spec == asked(near, 0, 1)
    assert found.effects.equals(first.effects)
    assert not [file for file in place.iterdir() if b"family" in file.read_bytes()]
    # Anyone who has the images can add seeds to it.
    monkeypatch.chdir(data)
    longer = study(asked(near, 0, 1, 2), place, executor=Inline(), **FAKE)
    assert len(longer.finished) == 12
    assert len(list(place.glob("runs/*/trained"))) == 4
    # So can we, to our own.
    study(asked(there, 0, 1, 2, 3), tmp_path / "s", executor=Inline(), **FAKE)
    assert publish(tmp_path / "s", tmp_path / "results") == place
    assert len(StudyResult.open(place).finished) == 16


@pytest.mark.parametrize(
    "other", [{"seeds": [0, 1]}, {"factors": {**FACTORS, "smoothing": {"train.label_smoothing": [0.0, 0.2]}}}]
)
def test_only_the_same_techniques_with_as_many_runs_are_set_side_by_side(tmp_path: Path, other: dict[str, Any]) -> None:
    published(tmp_path, "s-one_out", "one_out")
    text = markdown(load(published(tmp_path, "s-screening", "screening", **other)))
    assert "Screening is another quantity" not in text
    alone = text[text.index("`s-one_out`, test.accuracy:") :].splitlines()
    assert alone[2] == "| Technique | One-out, 12 runs |"
    assert alone[4].startswith("| smoothing | ")


def test_every_pair_of_designs_is_listed_and_no_width_divides_by_zero(tmp_path: Path) -> None:
    for name, design in (("a", "one_out"), ("b", "screening"), ("c", "screening")):
        found = published(tmp_path, name, design, seeds=[0, 1], metric="peak_memory_bytes", also=[])
    text = markdown(load(found))
    assert "`a` and `b`, peak_memory_bytes:" in text
    assert "`a` and `c`, peak_memory_bytes:" in text
    assert "| mixing | x 1.00 (x 1.00 to x 1.00) | x 1.00 (x 1.00 to x 1.00) | - |" in text


def test_a_study_is_published_again_only_with_more_seeds(tmp_path: Path) -> None:
    found = published(tmp_path, "s", "one_in", seeds=[0, 1])
    published(tmp_path, "s", "one_in", seeds=[0, 1, 2])
    assert "| s | one_in | 12 of 12 | 0, 1; added later: 2 |" in markdown(load(found))
    before = (found / "s" / "effects.json").read_bytes()
    for place, other in (("other", {"design": "one_out"}), ("fewer", {"design": "one_in", "seeds": [0]})):
        spec = StudySpec.parse({"name": "s", "base": "fashion-mini", "factors": FACTORS, **other})
        study(spec, tmp_path / place, executor=Inline(), **FAKE)
        refused(KitaeError, r"holds another study of this name", publish, tmp_path / place, found)
    assert (found / "s" / "effects.json").read_bytes() == before


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("parquet:data/cifar10.parquet", "cifar10"), ("folder:/home/me/photos", "photos"), ("cifar10:/data", "cifar10"),
        ("csv:data/birds.csv", "birds"), ("fashion-mini", "fashion-mini"), ("folder:.", "folder"),
    ],
)  # fmt: skip
def test_a_setting_names_its_images(source: str, name: str) -> None:
    settings = {"source": source, "images": 5000, "model": "resnet9", "epochs": 3, "precision": "fp32"}
    assert setting(settings) == f"5,000 images of {name}, resnet9, 3 epochs, fp32"


def test_published_results_need_no_runs_and_are_whole(results: Path) -> None:
    there = sorted(path.name for path in (results / "s-one_out").iterdir())
    assert there == ["effects.json", "effects.parquet", "runs.parquet", "study.yaml"]
    before = markdown(load(results))
    assert markdown(load(results)) == before


@pytest.mark.parametrize(
    ("commit", "told"),
    [
        (None, "Runs that name no commit: `s-one_out`."),
        ("c49cbe2+", "Runs of a tree with changes that were not committed: `s-one_out`."),
        ("c49cbe2", None),
    ],
)
def test_runs_without_a_commit_of_their_own_are_marked(results: Path, commit: str | None, told: str | None) -> None:
    (result,) = [result for result in load(results) if result.spec.name == "s-one_out"]
    result.runs["machine"] = json.dumps({"commit": commit})
    lines = [line for line in markdown([result]).splitlines() if line.startswith("Runs ")]
    assert lines == ([told] if told else [])


def test_an_unfinished_study_is_not_published(tmp_path: Path) -> None:
    spec = StudySpec.parse({"name": "s", "base": "fashion-mini", "design": "one_in", "factors": FACTORS})

    class Stops(Inline):
        def outcomes(self, units: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(spec, tmp_path / "s", executor=Stops(), **FAKE)
    refused(KitaeError, "the study is not finished", publish, tmp_path / "s", tmp_path / "results")


def test_results_of_an_earlier_loop_are_named_and_give_no_advice(results: Path) -> None:
    assert "measured again" not in markdown(load(results))
    file = results / "s-one_out" / "study.yaml"
    file.write_text(file.read_text().replace(f"numerics: {NUMERICS}", "numerics: 2"))
    page = markdown(load(results))
    assert "**To be measured again:** `s-one_out`." in page
