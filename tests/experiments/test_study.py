"""Studies as a whole, on a stand-in for training: written down first, resumable, nothing dropped silently."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from kitae import console
from kitae.cli import research
from kitae.errors import KitaeError, RecipeError, TrainingError, TrainingInterruptedError
from kitae.experiments.executors import Inline, LocalProcesses
from kitae.experiments.result import StudyResult
from kitae.experiments.study import plan_study, study
from kitae.experiments.study_spec import StudySpec, ablation
from kitae.folders import lock
from kitae.loading import load
from kitae.recipe import Recipe
from kitae.reporting import study_page
from kitae.reporting.study_results import StudyRecord
from kitae.training.guards import SignalFlag
from tests.command import kitae
from tests.experiments import fake_train

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # of the Kitae under test
FAKE = {"train": "tests.experiments.fake_train:train", "measure": "tests.experiments.fake_train:measure"}
STUDY: dict[str, Any] = {
    "name": "fake", "base": "fashion-mini", "set": {"train.epochs": 3}, "design": "one_in",
    "factors": {
        "smoothing": {"train.label_smoothing": [0.0, 0.1]},
        "mixing": {"augment.mix": [None, {"mixup_alpha": 1.0}]},
    },
    "seeds": [0, 1, 2],
}  # fmt: skip
CLAIM = {"says": "mixing helps", "effect": "mixing", "between": [1, 3]}


@pytest.fixture(autouse=True)
def _workers_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PATH)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "s"


def make(**fields: Any) -> StudySpec:
    return StudySpec.parse({**STUDY, **fields})


def run(folder: Path, spec: StudySpec | None = None, **options: Any) -> StudyResult:
    return study(spec or make(), folder, **{"executor": Inline(), **FAKE, **options})


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("runs.parquet", "effects.parquet", "effects.json")}


def trained(folder: Path) -> dict[str, int]:
    """Run -> how often it was trained to its end."""
    return {path.parent.name: len(path.read_text()) for path in folder.glob("runs/*/trained")}


class Stops(Inline):
    """Is interrupted after some units."""

    def __init__(self, units: int) -> None:
        self.units = units

    def outcomes(self, units: Any) -> Any:
        yield from super().outcomes(units[: self.units])
        raise KeyboardInterrupt


def cut(folder: Path, units: int, spec: StudySpec | None = None, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(folder, spec, executor=Stops(units), **options)


def refused(folder: Path, spec: StudySpec | None = None, *named: str, **options: Any) -> None:
    """Starting this study is refused in one line that has these words, and leaves the folder as it was."""
    before = {path: path.read_bytes() for path in folder.glob("*") if path.is_file()}
    with pytest.raises(TrainingError) as caught:
        run(folder, spec, **options)
    text = str(caught.value)
    assert all(name in text for name in (str(folder), *named)), text
    assert "\n" not in text
    assert {path: path.read_bytes() for path in folder.glob("*") if path.is_file()} == before


def test_a_study_measures_what_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "interactive", lambda: True)  # so that the lines are printed
    result = run(folder)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert list(result.runs["status"]) == ["done"] * 9
    effects = result.effects[result.effects["metric"] == "test.accuracy"].set_index("name")
    for name in ("smoothing", "mixing"):
        assert effects.loc[name, "low"] < 2.0 < effects.loc[name, "high"]
        assert " points better (interval " in effects.loc[name, "words"]
    assert len(lines) == 9
    assert (result.path / "report.html").is_file(), "since somebody looks"
    assert lines[0].startswith("[1/9] none, seed 0: 7")
    assert set(result.analyses) == {"test.accuracy", "val.accuracy", "gap", "epoch_seconds", "peak_memory_bytes"}
    assert pd.read_parquet(folder / "runs.parquet").shape[0] == 9
    curve = result.data()["curves"]["none"]
    assert curve["epoch"] == [1, 2, 3]
    assert curve["val_accuracy"]["low"][2] <= curve["val_accuracy"]["mean"][2] <= curve["val_accuracy"]["high"][2]


def test_a_study_is_tables_for_programs_and_text_for_people(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(folder, make(claims={"mix": CLAIM}, seeds=[0, 1]))
    monkeypatch.setattr("kitae.experiments.study.study", lambda *_, **__: result)
    research.study("fake")
    lines = capsys.readouterr().out.splitlines()
    tables: list[list[list[str]]] = [[]]
    for cells in (line.split("\t") for line in lines):
        if len(cells) > 1:
            tables[-1].append(cells)
        elif tables[-1]:
            tables.append([])
    variants, effects, claims = tables[:3]
    assert variants[0][:3] == ["variant", "n", "test.accuracy"]
    assert [row[0] for row in variants[1:]] == ["none", "only smoothing", "only mixing"]
    assert effects[0] == ["effect", "estimate", "95 % interval", "p", "n"]
    assert [row[0] for row in effects[1:]] == ["smoothing", "mixing"]
    assert claims[0] == ["claim", "measured", "verdict"]
    assert all(len(row) == len(table[0]) for table in (variants, effects, claims) for row in table)
    assert not any("---" in line for line in lines)
    monkeypatch.setattr(console, "interactive", lambda: True)
    research.study("fake")
    assert result.table() + "\n" in capsys.readouterr().out
    assert "effect     estimate" in result.table(), "aligned"


def test_fields_are_set_as_in_training(folder: Path) -> None:
    result = run(folder, set={"train.epochs": 4, "study.seeds": [0, 1]})
    assert (result.spec.seeds, result.spec.set["train.epochs"]) == ((0, 1), 4)
    again = study(make(), folder, "train.epochs=4", set="study.seeds=[0, 1]", executor=Inline(), **FAKE)
    assert again.spec == result.spec
    with pytest.raises(RecipeError, match="set takes texts"):
        run(folder, set=[3])


def test_everything_is_written_down_before_the_first_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = fake_train.measure

    def counted(recipe: Recipe) -> Any:
        calls.append(recipe.train.precision)
        return original(recipe)

    monkeypatch.setattr(fake_train, "measure", counted)
    cut(folder, 0)
    content = yaml.safe_load((folder / "study.yaml").read_text())
    assert content["study"]["metric"] == "test.accuracy"
    assert content["study"]["seeds"] == [0, 1, 2]
    assert content["study"]["set"] == {"train.epochs": 3}
    assert content["precision"] == "bf16"
    assert content["plan"]["smallest_effect"] > 0
    assert len({row["fingerprint"] for row in content["runs"]}) == 9
    run(folder)
    assert calls == ["auto"], "precision: auto is decided once"


def test_finished_runs_are_not_run_again_but_for_one_whose_record_is_damaged(folder: Path) -> None:
    first = run(folder)
    before = files(folder)
    assert run(folder).sentences == first.sentences
    assert files(folder) == before
    assert set(trained(folder).values()) == {1}
    record = sorted(folder.glob("runs/*.json"))[0]
    record.write_text(record.read_text()[:40])
    (folder / "runs.parquet").unlink()
    run(folder)
    assert files(folder) == before
    assert trained(folder)[record.stem] == 2


def test_a_damaged_table_is_named(folder: Path) -> None:
    run(folder)
    before, table = files(folder), folder / "runs.parquet"
    whole = pd.read_parquet(table)
    table.write_bytes(table.read_bytes()[:1000])
    said = r"runs\.parquet: cannot be read \(.*\); remove it, and resume the study"
    with pytest.raises(KitaeError, match=said):
        load(folder)
    whole.drop(columns="store").to_parquet(table)
    with pytest.raises(KitaeError, match=said):
        load(folder)
    run(folder)
    assert files(folder) == before


def test_names_that_are_not_utf8_fit_into_the_tables(folder: Path) -> None:
    run(folder)
    done, failed, *_ = sorted((folder / "runs").glob("*.json"))
    name = os.fsdecode(b"caf\xe9")
    for file, changed in (
        (done, {"numbers": {"test.accuracy": 0.7, f"test.per_class.{name}.accuracy": 0.5}}),
        (failed, {"status": "failed", "error": f"{name}.png: is broken"}),
    ):
        file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    for table in ("effects.json", "runs.parquet"):
        (folder / table).unlink()
    StudyResult.open(folder).write()
    again = StudyResult.open(folder)
    assert again.runs["test.per_class.caf\ufffd.accuracy"].dropna().tolist() == [0.5]
    assert again.failed["error"].tolist() == ["caf\ufffd.png: is broken"]


def test_a_study_covers_the_groups_of_its_test_images(folder: Path) -> None:
    found = run(folder, make(cover="both"), train="tests.experiments.fake_train:train_on_patients")
    by_group = {effect.name: effect for effect in found.analyses["test.accuracy"].effects}["mixing"]
    assert by_group.covers == "seeds and groups of test images"
    again = StudyResult.open(folder)
    assert again.effects.equals(found.effects)
    alone = again.runs["correct"].str.split(":").str[:2].str.join(":")
    as_independent = replace(again, runs=again.runs.assign(correct=alone)).analyses["test.accuracy"].effects
    narrow = {effect.name: effect for effect in as_independent}["mixing"]
    assert narrow.covers == "seeds and test images"
    assert by_group.high - by_group.low > 2 * (narrow.high - narrow.low)


@pytest.mark.parametrize("units", [0, 4, 8])
def test_a_published_study_without_its_runs_can_be_resumed(tmp_path: Path, folder: Path, units: int) -> None:
    spec = make(cover="both")
    run(tmp_path / "whole", spec)
    if units:
        cut(folder, units, spec)
        StudyResult.open(folder).write()
    else:
        run(folder, spec)
    shutil.rmtree(folder / "runs")
    result = run(folder, spec)
    assert files(folder) == files(tmp_path / "whole")
    assert len(trained(folder)) == (9 - units if units else 0), "only missing runs are trained"
    assert result.runs["store"].nunique() == 1
    assert json.loads(result.runs["machine"][8]) == {"processor": "fake"}
    assert "\n" not in repr(result)
    assert "runs finished" in repr(result)
    assert result.to_pandas().equals(result.effects)
    assert "<table>" in result._repr_html_()
    assert ">with label smoothing 0.1<" in result._repr_html_(), "in words, as the sentences are"


def test_a_published_study_is_resumed_only_on_its_images(folder: Path) -> None:
    cut(folder, 4)
    opened = StudyResult.open(folder)
    opened.write()
    shutil.rmtree(folder / "runs")
    table = pd.read_parquet(folder / "runs.parquet")
    table.loc[table["status"] == "done", "store"] = "of other images"
    table.to_parquet(folder / "runs.parquet", index=False)
    refused(folder, None, "images of fashion-mini", "--overwrite")
    refused(folder, make(seeds=[0, 1, 2, 3]), "images of fashion-mini", "--overwrite")  # and has no more seeds then


def test_a_failed_run_is_reported_and_repeated_next_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAIL", "only-mixing-seed1")
    result = run(folder, make(also=["test.top5", "gap"]))
    assert result.failed.to_dict("records") == [
        {"variant": "only mixing", "seed": 1, "status": "failed", "error": "the loss was not finite"}
    ]
    text = result.table()
    assert "8 of 9 runs finished" in text
    assert "only mixing, seed 1: failed: the loss was not finite" in text
    assert result.notes == ["No finished run has a number test.top5."]
    assert result.notes[0] in text
    effects = result.effects[result.effects["metric"] == "test.accuracy"].set_index("name")
    assert effects.loc["mixing", "pairs"] == 2
    assert effects.loc["smoothing", "pairs"] == 3
    monkeypatch.delenv("FAKE_FAIL")
    again = run(folder, make(also=["test.top5", "gap"]))
    assert len(again.failed) == 0
    assert "only mixing, seed 1" not in again.table()


def test_what_no_finished_run_has_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(tmp_path / "top5", make(metric="test.top5", also=[]))
    assert len(result.failed) == 0
    assert len(result.numberless) == 9
    assert re.match("nothing can be said.*test.top5", result.sentences[0].partition(": ")[2])
    monkeypatch.setenv("FAKE_FAIL", "only-mixing")
    assert "p after Holm over 1 effect\n" in run(tmp_path / "failed").table()


@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        ({}, {"seeds": [0, 1, 3]}, "seeds: 2"),
        ({}, {"metric": "val.accuracy"}, "metric was test.accuracy"),
        ({}, {"claims": {"late": CLAIM}}, "claims.late was missing"),
        ({"claims": {"mix": CLAIM}}, {"claims": {}}, "claims.mix was set"),
        ({"claims": {"mix": CLAIM}}, {"claims": {"mix": {**CLAIM, "between": [1, 2]}}}, "claims.mix.between was"),
        ({"base": {"train": {"epochs": 7}}}, {"base": {"train": {"epochs": 77}}}, "base.train.epochs was 7, is 77"),
        ({}, {"set": {"train.epochs": 3, "train.batch_size": 8}}, "set.train.batch_size was missing"),
    ],
)
def test_a_study_is_resumed_only_with_the_settings_it_was_started_with(
    folder: Path, before: dict[str, Any], now: dict[str, Any], named: str
) -> None:
    cut(folder, 0, make(**before))
    refused(folder, make(**{**before, **now}), named, "--overwrite")
    cut(folder, 0, make(**before, about="a better description"))
    cut(folder, 1, make(**{**before, **now}), overwrite=True)
    assert len(list((folder / "runs").glob("*.json"))) == 1


def test_seeds_can_be_added_and_the_result_says_so(tmp_path: Path, folder: Path) -> None:
    run(folder)
    whole = run(tmp_path / "whole", make(seeds=[0, 1, 2, 3, 4]))
    more = make(seeds=[4, 0, 3, 1, 2])

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # right after study.yaml was written
        run(folder, more, report=interrupt)
    content = yaml.safe_load((folder / "study.yaml").read_text())
    (added,) = content["added"]
    assert (added["seeds"], added["finished"]) == ([4, 3], 9)
    assert added["when"] >= content["written"]
    assert content["plan"]["runs"] == 9, "the plan is the one before the first run"
    assert [row["seed"] for row in content["runs"]] == [0] * 3 + [1] * 3 + [2] * 3 + [4] * 3 + [3] * 3
    assert list(StudyResult.open(folder).runs["status"]) == ["done"] * 9 + ["missing"] * 6
    refused(folder, None, "seeds", "4, 3", "study.seeds=[0, 1, 2, 4, 3]")
    refused(folder, make(seeds=[0, 1, 2, 3, 4, 5], metric="val.accuracy"), "metric")
    result = run(folder, make(seeds=[0, 1, 2, 3, 4]))
    assert set(trained(folder).values()) == {1}
    assert len(yaml.safe_load((folder / "study.yaml").read_text())["added"]) == 1
    for mine, other in zip(
        result.analyses["test.accuracy"].effects, whole.analyses["test.accuracy"].effects, strict=True
    ):
        assert (mine.estimate, mine.low, mine.high) == pytest.approx((other.estimate, other.low, other.high))
    for text in (result.table(), StudyResult.open(folder).table(), *result.data()["sentences"][-1:]):
        assert "after a first look" in text
    assert "after a first look" not in whole.table()


def test_seeds_that_were_added_before_any_result_are_no_second_look(folder: Path) -> None:
    result, row = run(folder, make(seeds=[0])), {"seeds": [3, 4], "when": "2026-11-30T08:00:00"}
    (before,) = replace(result, added=[{**row, "finished": 0}]).notes
    assert before == "Seeds 3, 4 were added on 2026-11-30, before any run had finished."
    (after,) = replace(result, added=[{**row, "finished": 1}]).notes
    assert "after 1 run had finished: the number of seeds was raised after a first look at the data." in after


def test_a_changed_base_recipe_is_refused(tmp_path: Path, folder: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("name: base\n")
    cut(folder, 0, make(base=str(base)))
    base.write_text("name: base\ntrain: {batch_size: 64}\n")
    refused(folder, make(base=str(base)), "'none'")


@pytest.mark.parametrize(
    ("design", "place", "content"),
    [
        ("sweep", "factors", {"both": {"train.label_smoothing": [0.0, 0.1], "train.clip_norm": [1.0, 2.0]}}),
        ("compare", "variants", {"a": {}, "b": {"train.label_smoothing": 0.1}}),
    ],
)
def test_another_order_is_another_study(folder: Path, design: str, place: str, content: dict[str, Any]) -> None:
    def ordered(backwards: bool) -> StudySpec:
        def turn(block: dict[str, Any]) -> dict[str, Any]:
            return dict(reversed(block.items())) if backwards else block

        given = {name: turn(fields) for name, fields in turn(content).items()}
        return make(**{"design": design, "factors": {}, place: given})

    cut(folder, 1, ordered(False))
    refused(folder, ordered(True), "the order of the variants", "has changed")
    run(folder, ordered(False))


def test_a_version_that_trains_differently_adds_no_runs(folder: Path) -> None:
    run(folder)
    before = files(folder)
    written = (folder / "study.yaml").read_text()
    assert "numerics: 3\n" in written
    (folder / "study.yaml").write_text(written.replace("numerics: 3\n", ""))  # as the first version wrote it
    run(folder)  # nothing is missing: its tables can be made again
    assert files(folder) == before
    refused(folder, make(seeds=[0, 1, 2, 3]), "--overwrite")
    shutil.rmtree(folder / "runs")
    (folder / "runs.parquet").unlink()
    refused(folder, None, "--overwrite")
    assert len(run(folder, overwrite=True).failed) == 0
    assert files(folder) == before


def test_a_study_keeps_its_threads_and_says_so(tmp_path: Path, folder: Path) -> None:
    lines: list[str] = []

    def told() -> list[str]:
        return [line for line in lines if line.startswith("threads: ")]

    run(folder, threads=1, report=lines.append)
    run(folder, report=lines.append)
    assert not told()
    run(folder, threads=2, report=lines.append)
    assert "2 is ignored" in told()[0]
    result = run(tmp_path / "t", make(set={"train.threads": 3}, seeds=[0, 1]), threads=16, report=lines.append)
    assert "runs use 3" in told()[1]
    assert result.settings["threads"] == 3
    both = make(design="compare", factors={}, variants={"1": {"train.threads": 1}, "2": {"train.threads": 2}})
    assert run(tmp_path / "u", both).settings["threads"] == [1, 2]
    assert "1 or 2 threads" in plan_study(both, measure=FAKE["measure"]).text()


@pytest.mark.parametrize("wrong", [{"set": {"train.epoch": 3}}, {"base": "no-such-recipe"}])
def test_overwrite_removes_nothing_before_the_plan_is_made(tmp_path: Path, folder: Path, wrong: dict[str, Any]) -> None:
    run(folder, make(seeds=[0]))
    before = files(folder)
    with pytest.raises(RecipeError):
        run(folder, make(**wrong), overwrite=True)
    (folder / "thesis.tex").write_text("precious")
    refused(folder, make(seeds=[1]), "thesis.tex", overwrite=True)
    (folder / "study.yaml").unlink()
    refused(folder, None, "effects.json but no study.yaml", overwrite=True)
    assert files(folder) == before
    assert len(list((folder / "runs").glob("*.json"))) == 3
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    refused(tmp_path / "photos", None, "cat.jpg")  # without leaving a lock there
    refused(tmp_path / "photos" / "cat.jpg", None, "--out")


def test_a_study_that_was_killed_writes_nothing_into_the_one_that_replaces_it(folder: Path) -> None:
    """Its runs go on until they have saved."""
    cut(folder, 1)
    saved, began = next(folder.glob("runs/*/steps")).with_name("last"), threading.Event()

    def goes_on() -> None:
        with lock(saved.parent.with_name(f".{saved.parent.name}.lock")):
            began.set()
            time.sleep(1)
            saved.mkdir(parents=True, exist_ok=True)

    orphan = threading.Thread(target=goes_on)
    orphan.start()
    assert began.wait(10)
    run(folder, overwrite=True)
    orphan.join()
    assert list(folder.glob("runs/*/steps"))
    assert not saved.exists()


def test_one_process_at_a_time(folder: Path) -> None:
    class Again(Inline):
        def outcomes(self, units: Any) -> Any:
            refused(folder, None, "another process")
            yield from super().outcomes(units)

    run(folder, executor=Again())


def test_an_opened_study_is_the_one_that_was_run(tmp_path: Path, folder: Path) -> None:
    result = run(folder)
    for missing in (None, "effects.json"):  # killed between the two tables
        if missing:
            (folder / missing).unlink()
        opened = StudyResult.open(folder)
        assert opened.table() == result.table()
        assert opened.data() == result.data()
    with pytest.raises(TrainingError, match=r"study\.yaml"):
        StudyResult.open(tmp_path)


def test_an_unfinished_study_can_be_opened(folder: Path) -> None:
    cut(folder, 4)
    opened = StudyResult.open(folder)
    assert list(opened.runs["status"]) == ["done"] * 4 + ["missing"] * 5
    assert "4 of 9 runs finished" in opened.table()
    opened.write()  # the tables of this start are not those of the next
    cut(folder, 1)
    assert list(StudyResult.open(folder).runs["status"]) == ["done"] * 5 + ["missing"] * 4


def test_a_number_of_0_is_compared_as_a_difference_and_told_so(folder: Path) -> None:
    claim = {"says": "mixing is fast", "effect": "mixing", "between": [None, 0.9], "ratio": True}
    result = run(folder, make(metric="epoch_seconds", also=[], claims={"fast": claim}))
    seconds = [0.0, 2.0, 1.1, 4.0, 2.2, 1.0, 4.2, 2.0, 1.2]
    result = replace(result, runs=result.runs.assign(epoch_seconds=seconds))
    (noise,) = (line for line in result.table().splitlines() if line.startswith("noise between runs"))
    assert "%" not in noise
    assert f"{result.analyses['epoch_seconds'].noise.sd:.1f} s (" in noise
    (row,) = result.claims
    assert (row["ratio"], row["verdict"]) == (False, "not shown")
    assert "difference" in row["remark"]


@pytest.mark.parametrize(("failing", "status"), [("seed", 1), ("seed1", None)])
def test_a_study_whose_runs_all_failed_exits_with_1(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: str,
    status: int | None,
) -> None:  # fmt: skip
    monkeypatch.setenv("FAKE_FAIL", failing)
    result = run(folder, make(seeds=[0, 1]))
    monkeypatch.setattr("kitae.experiments.study.study", lambda *_, **__: result)
    for command in (lambda: research.study("fake"), lambda: research.ablate("fashion-mini")):
        if status is None:
            command()
        else:
            with pytest.raises(SystemExit) as caught:
                command()
            assert caught.value.code == status
        assert "runs did not finish" in capsys.readouterr().out


def test_an_ablation_from_the_command_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Any, Any, dict[str, Any]]] = []

    def noted(spec: StudySpec, out: Path, **options: Any) -> StudyResult:
        asked.append((spec, out, options))
        return run(folder, make(seeds=[0, 1]))

    monkeypatch.setattr("kitae.experiments.study.study", noted)
    research.ablate(
        "fashion-mini", out=folder, design="screening", metric="val.accuracy", foldover=True, seeds=2,
        workers=2, threads=1, overwrite=True,
    )  # fmt: skip
    ((spec, out, options),) = asked
    assert (spec.metric, spec.foldover, spec.seeds, out) == ("val.accuracy", True, (0, 1), folder)
    assert {name: options[name] for name in ("workers", "threads", "overwrite")} == {
        "workers": 2, "threads": 1, "overwrite": True,
    }  # fmt: skip
    capsys.readouterr()


def test_the_command_on_the_page_adds_seeds_to_an_ablation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my ablation"
    spec = ablation("fashion-mini", "train.epochs=3", only=["label smoothing"], seeds=2)
    run(folder, spec)
    record = StudyRecord.open(folder)
    assert record is not None
    (line,) = (command for about, command in study_page.content(record, folder)["commands"] if "seeds" in about)
    words = shlex.split(line)
    assert words[:3] == ["kitae", "study", str(folder / "study.yaml")]

    def faked(*given: Any, **options: Any) -> StudyResult:
        return study(*given, **{**options, "executor": Inline(), **FAKE})

    monkeypatch.setattr("kitae.experiments.study.study", faked)
    kitae(tmp_path, *words[1:])
    assert StudyResult.open(folder).spec.seeds == (0, 1, 2, 3)
    assert len(StudyResult.open(folder).finished) == 8


def test_settings_name_every_precision_and_commit_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, commit = fake_train.FakeRun.environment, "aaa"
    monkeypatch.setattr(fake_train.FakeRun, "environment", lambda run: {**original(run), "commit": commit})
    cut(tmp_path / "one", 4)
    settings = run(tmp_path / "one").settings
    assert (settings["machine"]["commit"], settings["precision"]) == ("aaa", "bf16"), "what auto became"
    variants = {"fp32": {"train.precision": "fp32"}, "bf16": {"train.precision": "bf16"}}
    spec = make(design="compare", factors={}, variants=variants, reference="fp32")
    cut(tmp_path / "two", 4, spec)
    commit = "bbb"
    settings = run(tmp_path / "two", spec).settings
    assert (settings["machine"]["commit"], settings["precision"]) == (["aaa", "bbb"], "fp32 and bf16")


def test_machines_that_a_study_was_resumed_on_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, processor = fake_train.FakeRun.environment, "slow"
    monkeypatch.setattr(
        fake_train.FakeRun, "environment", lambda run: {**original(run), "processor": processor, "cores": 2}
    )
    cut(folder, 4)
    processor = "fast"
    result = run(folder)
    assert result.settings["machine"] == {"processor": ["fast", "slow"], "cores": 2}
    said = "The runs were made on different machines (fast; slow), so differences in time, rate and memory may be"
    assert said in result.table()
    assert any(said in sentence for sentence in result.data()["sentences"])
    accuracy = make(also=["val.accuracy"])
    assert not any("machines" in note for note in replace(result, spec=accuracy).notes)


@pytest.mark.parametrize(("limit", "images"), [(None, 1000), (400, 400), (5000, 1000)])
def test_settings_have_the_number_of_images_that_a_limit_leaves(folder: Path, limit: int | None, images: int) -> None:
    spec = make(set={"data.limit": limit})
    cut(folder, 0, spec)
    assert StudyResult.open(folder).settings["images"] == images


def test_levels_that_are_only_numbered_are_no_numbers(folder: Path) -> None:
    """Two levels share the value of the first field, so 0, 1 and 2 are their names, and no places on an axis."""
    fields = {"train.label_smoothing": [0.0, 0.0, 0.1], "train.clip_norm": [1.0, 2.0, 2.0]}
    cut(folder, 0, make(design="sweep", factors={"both": fields}))
    assert StudyResult.open(folder).data()["numeric"] == []
    cut(folder, 0, make(design="sweep", factors={"clip": {"train.clip_norm": [1.0, 2.0, 3.0]}}), overwrite=True)
    assert StudyResult.open(folder).data()["numeric"] == ["clip"]


def test_processes_give_the_same_files_as_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make(seeds=[0, 1])
    run(tmp_path / "inline", spec, threads=1)
    monkeypatch.setenv("FAKE_DIE_ONCE", str(tmp_path))
    run(tmp_path / "local", spec, threads=1, executor=LocalProcesses(workers=2))
    assert (tmp_path / "died").exists()  # one worker was killed by a signal, and its run repeated
    assert files(tmp_path / "inline") == files(tmp_path / "local")


def in_its_last_epoch(recipe: Recipe, out: Path, *, resume: bool) -> fake_train.FakeRun:
    """Trains, and gets a signal when there is nothing left to stop."""
    with SignalFlag():
        os.kill(os.getpid(), signal.SIGINT)
    return fake_train.train(recipe, out, resume=resume)


def test_a_signal_in_the_last_epoch_of_a_run_lets_no_other_begin(folder: Path) -> None:
    with pytest.raises(TrainingInterruptedError, match=r"stopped by SIGINT after none-seed0.*; finished runs are kept"):
        run(folder, train="tests.experiments.test_study:in_its_last_epoch")
    assert len(trained(folder)) == 1
    result = run(folder)
    assert list(result.runs["status"]) == ["done"] * len(result.runs)
    assert set(trained(folder).values()) == {1}


def test_no_run_goes_on_after_an_error(folder: Path) -> None:
    def full(line: str) -> None:
        if line.startswith("[1/"):
            raise OSError("no space left")

    threads = threading.active_count()
    with pytest.raises(OSError, match="no space left") as caught:
        run(folder, executor=LocalProcesses(1), report=full)
    assert caught.traceback, "the frames of the study are kept, as in a notebook"
    assert threading.active_count() == threads, "the queue has ended"
    assert len(list(folder.glob("runs/*.log"))) <= 2


def test_a_worker_that_keeps_dying_is_a_failed_run(folder: Path) -> None:
    spec = make(seeds=[0], factors={"smoothing": STUDY["factors"]["smoothing"]})
    dies = "tests.experiments.fake_train:dies"
    result = run(folder, spec, executor=LocalProcesses(retries=1), train=dies, threads=1)
    assert list(result.runs["status"]) == ["failed", "failed"]
    assert "status -9" in result.runs["error"][0]
    assert "nothing can be said" in result.table()


def test_a_module_in_the_current_folder_replaces_none_of_pythons(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kitae` itself does not look for modules there, so `kitae train` works beside such a file."""
    (tmp_path / "queue.py").write_text("raise ImportError('a file of the user')")
    (tmp_path / "own_steps.py").write_text("def ones(run, folder):\n    import queue\n\n    return {'one': 1.0}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = make(seeds=[0], factors={"smoothing": STUDY["factors"]["smoothing"]}, after={"own_steps:ones": {}})
    result = run(folder, spec, executor=LocalProcesses(workers=2), threads=1)
    assert list(result.runs["status"]) == ["done", "done"], list(result.runs["error"])


def test_a_process_that_dies_loses_no_finished_run(folder: Path) -> None:
    step = "tests.experiments.fake_train:step_that_dies"
    spec = make(
        design="sweep", factors={"ratio": {f"after.{step}.ratio": [0.0, 0.5, 0.7]}}, after={step: {}}, seeds=[0],
        metric=f"{step}.accuracy", also=[],
    )  # fmt: skip
    result = run(folder, spec, executor=LocalProcesses(retries=1), threads=1)
    assert list(result.runs["status"]) == ["done", "failed", "failed"]
    assert "status -9" in result.runs["error"][1]
    assert list(StudyResult.open(folder).runs["status"]) == ["done", "failed", "failed"]
    assert (folder / "runs" / "steps-0.0").read_text() == "."  # and the next process does not repeat it


def test_a_run_finished_elsewhere_replaces_a_failure_here(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAIL", "seed1")
    run(folder)
    monkeypatch.delenv("FAKE_FAIL")

    class Elsewhere(Inline):  # a machine without a shared disk: only the outcome comes back
        def outcomes(self, units: Any) -> Any:
            there = [
                {**unit, "folder": str(tmp_path / "there" / Path(unit["folder"]).name),
                 "jobs": [{**job, "outcome": str(tmp_path / "there" / Path(job["outcome"]).name)}
                          for job in unit["jobs"]]}
                for unit in units
            ]  # fmt: skip
            yield from super().outcomes(there)

    assert len(run(folder, executor=Elsewhere()).failed) == 0
    (folder / "runs.parquet").unlink()
    assert len(StudyResult.open(folder).failed) == 0


_DRIVER = """
import sys
from kitae.experiments.executors import LocalProcesses
from kitae.experiments.study import study
from tests.experiments.test_study import FAKE, make
study(make(seeds=[0, 1]), sys.argv[1], executor=LocalProcesses(workers=2), threads=1, **FAKE)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole", make(seeds=[0, 1]), threads=1)
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.1")
    folder = tmp_path / "cut"

    def written() -> bool:
        return (folder / "study.yaml").is_file()

    def in_the_middle_of_a_run() -> bool:
        return any(0 < path.stat().st_size < fake_train.STEPS for path in folder.glob("runs/*/steps"))

    def between_runs() -> bool:
        return len(list(folder.glob("runs/*.json"))) >= 3

    for moment in (written, in_the_middle_of_a_run, between_runs):
        driver = subprocess.Popen([sys.executable, "-c", _DRIVER, str(folder)], cwd=ROOT, start_new_session=True)
        while not moment():
            assert driver.poll() is None, f"the study ended before {moment.__name__}"
            time.sleep(0.01)
        driver.kill()
        driver.wait()
        assert not (folder / "effects.json").exists()
    subprocess.run([sys.executable, "-c", _DRIVER, str(folder)], cwd=ROOT, check=True)
    assert files(folder) == files(tmp_path / "whole")
    assert {len(path.read_text()) for path in folder.glob("runs/*/steps")} == {fake_train.STEPS}


def test_steps_of_your_own_share_the_training_and_have_numbers(folder: Path) -> None:
    own = "tests.experiments.fake_train:after_step"
    spec = make(
        design="sweep", factors={"ratio": {f"after.{own}.ratio": [0.0, 0.5, 0.9]}}, after={own: {}},
        metric=f"{own}.accuracy", also=[f"{own}.nested.bytes", "test.accuracy"],
    )  # fmt: skip
    result = run(folder, spec)
    assert len(trained(folder)) == 3
    assert list(result.runs["status"]) == ["done", "done", "failed"] * 3
    assert set(result.analyses) == {f"{own}.accuracy", f"{own}.nested.bytes", "test.accuracy"}
    effect = result.analyses[f"{own}.accuracy"].effects[0]
    assert effect.name == "ratio=0.5"
    assert effect.estimate == pytest.approx(-5.0)
    assert result.analyses[f"{own}.nested.bytes"].effects[0].estimate == pytest.approx(0.5)
    assert result.settings["training_hours"] * 3600 == pytest.approx(3 * 3 * 0.5), "a training shared is one training"
    lines: list[str] = []
    run(folder, spec, report=lines.append)
    assert "6 of 9 runs are done" in lines[1]
