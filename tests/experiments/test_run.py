"""Studies as a whole, on a stand-in for training: written first, resumable anywhere, nothing dropped silently."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from PIL import Image

from kitae import cli
from kitae.errors import KitaeError, RecipeError, TrainingError
from kitae.experiments import after
from kitae.experiments.executors import Inline, LocalProcesses
from kitae.experiments.plan import make_plan, resolve
from kitae.experiments.run import StudyResult, plan_study, study
from kitae.experiments.spec import StudySpec
from kitae.recipe import Recipe
from tests.experiments import fake_train

ROOT = Path(__file__).parents[2]
FAKE = {"train": "tests.experiments.fake_train:train", "measure": "tests.experiments.fake_train:measure"}
STUDY: dict[str, Any] = {
    "name": "fake",
    "base": "fashion-mini",
    "set": {"train.epochs": 3},
    "design": "one_in",
    "factors": {
        "smoothing": {"train.label_smoothing": [0.0, 0.1]},
        "mixing": {"augment.mix": [None, {"mixup_alpha": 1.0}]},
    },
    "seeds": [0, 1, 2],
}


@pytest.fixture(autouse=True)
def _workers_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def make(**fields: Any) -> StudySpec:
    return StudySpec.parse({**STUDY, **fields})


def run(folder: Path, spec: StudySpec | None = None, **options: Any) -> StudyResult:
    return study(spec or make(), folder, **{"executor": Inline(), "figures": False, **FAKE, **options})


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("runs.parquet", "effects.parquet", "effects.json")}


def test_a_study_measures_what_is_there(tmp_path: Path) -> None:
    lines: list[str] = []
    result = run(tmp_path / "s", report=lines.append)
    assert list(result.runs["status"]) == ["done"] * 9
    effects = result.effects[result.effects["metric"] == "test.accuracy"].set_index("name")
    assert effects.loc["smoothing", "low"] < 2.0 < effects.loc["smoothing", "high"]
    assert effects.loc["mixing", "low"] < 2.0 < effects.loc["mixing", "high"]
    assert effects.loc["mixing", "words"].startswith("mixing: helps")
    assert "Study fake: one_in, 3 variants x 3 seeds" in lines[0]
    assert lines[1].startswith("[1/9] none, seed 0: 7")
    assert set(result.analyses) == {"test.accuracy", "val.accuracy", "gap", "epoch_seconds", "peak_memory_bytes"}
    assert pd.read_parquet(tmp_path / "s" / "runs.parquet").shape[0] == 9
    curve = result.data()["curves"]["none"]
    assert curve["epoch"] == [1, 2, 3]
    assert curve["val_accuracy"]["low"][2] <= curve["val_accuracy"]["mean"][2] <= curve["val_accuracy"]["high"][2]


def test_everything_is_written_down_before_the_first_run(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    class Looks(Inline):
        def outcomes(self, units: Any) -> Any:
            seen.append(yaml.safe_load((tmp_path / "s" / "study.yaml").read_text()))
            yield from super().outcomes(units)

    run(tmp_path / "s", executor=Looks())
    (content,) = seen
    assert content["study"]["metric"] == "test.accuracy"
    assert content["study"]["seeds"] == [0, 1, 2]
    assert content["study"]["set"] == {"train.epochs": 3}
    assert content["precision"] == "bf16"
    assert content["plan"]["smallest_effect"] > 0
    assert len({row["fingerprint"] for row in content["runs"]}) == 9


def test_precision_auto_is_resolved_once_for_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = fake_train.measure

    def counted(recipe: Recipe) -> Any:
        calls.append(recipe.train.precision)
        return original(recipe)

    monkeypatch.setattr(fake_train, "measure", counted)
    run(tmp_path / "s")
    run(tmp_path / "s")
    assert calls == ["auto"]
    recipes = [Recipe.model_validate(job.recipe.model_dump()) for job in plan_study(make(), measure=None).jobs]
    assert {recipe.train.precision for recipe in recipes} == {"auto"}
    plan = make_plan(make(), measure=counted)
    assert {job.recipe.train.precision for job in plan.jobs} == {"bf16"}


def test_runs_of_a_seed_differ_in_nothing_but_the_variant() -> None:
    plan = make_plan(make(), threads=2)
    base = Recipe.load("fashion-mini")
    for job in plan.jobs:
        assert job.recipe.train.seed == job.seed
        assert job.recipe.data == base.data
        assert job.recipe.train.early_stopping is None
        assert job.recipe.train.threads == 2
    assert [job.seed for job in plan.jobs] == [0] * 3 + [1] * 3 + [2] * 3  # stopped anywhere, it is nearly balanced


def test_finished_runs_are_not_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    first = run(folder)
    before = files(folder)
    second = run(folder)
    assert files(folder) == before
    assert second.sentences == first.sentences
    assert {len(path.read_text()) for path in folder.glob("runs/*/trained")} == {1}


def test_a_run_whose_record_is_damaged_is_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    run(folder)
    before = files(folder)
    record = sorted(folder.glob("runs/*.json"))[0]
    record.write_text(record.read_text()[:40])
    run(folder)
    assert files(folder) == before


def test_a_failed_run_is_told_and_tried_again_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "s"
    monkeypatch.setenv("FAKE_FAIL", "only-mixing-seed1")
    result = run(folder)
    assert result.failed.to_dict("records") == [
        {"variant": "only mixing", "seed": 1, "status": "failed", "error": "the loss was not finite"}
    ]
    text = result.table()
    assert "8 of 9 runs finished" in text
    assert "1 runs did not finish and are in no number above" in text
    assert "only mixing, seed 1: failed: the loss was not finite" in text
    effects = result.effects[result.effects["metric"] == "test.accuracy"].set_index("name")
    assert effects.loc["mixing", "pairs"] == 2
    assert effects.loc["smoothing", "pairs"] == 3
    monkeypatch.delenv("FAKE_FAIL")
    assert len(run(folder).failed) == 0
    assert "1 runs" not in run(folder).table()


def test_a_study_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    run(folder)
    with pytest.raises(TrainingError, match=r"holds another study \(seeds was \[0, 1, 2\], is \[0, 1\]\)"):
        run(folder, make(seeds=[0, 1]))
    with pytest.raises(TrainingError, match=r"metric was test\.accuracy"):
        run(folder, make(metric="val.accuracy"))
    run(folder, make(about="a better description"))
    assert run(folder, make(seeds=[0, 1]), overwrite=True).spec.seeds == (0, 1)
    assert len(list((folder / "runs").glob("*.json"))) == 6


def test_a_study_is_not_gone_on_with_by_a_version_whose_runs_are_others(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    run(folder)
    before = files(folder)
    written = (folder / "study.yaml").read_text()
    assert "numerics: 3\n" in written
    (folder / "study.yaml").write_text(written.replace("numerics: 3\n", ""))  # as the first version wrote it
    run(folder)  # nothing is missing: its tables can be made anew
    assert files(folder) == before
    sorted(folder.glob("runs/*.json"))[0].unlink()
    with pytest.raises(TrainingError, match="trains the same recipe otherwise") as caught:
        run(folder)
    assert "\n" not in str(caught.value)
    assert len(run(folder, overwrite=True).failed) == 0
    assert files(folder) == before


def test_threads_that_a_study_keeps_are_told(tmp_path: Path) -> None:
    lines: list[str] = []
    run(tmp_path / "s", threads=1, report=lines.append)
    run(tmp_path / "s", threads=1, report=lines.append)
    run(tmp_path / "s", report=lines.append)
    assert not any("is not used" in line for line in lines)
    run(tmp_path / "s", threads=2, report=lines.append)
    assert "threads: 2 is not used; the study's runs have 1, from its beginning or its recipes" in lines


def test_threads_that_the_recipes_ask_for_are_the_ones_told(tmp_path: Path) -> None:
    lines: list[str] = []
    result = run(tmp_path / "s", make(set={"train.threads": 3}, seeds=[0, 1]), threads=16, report=lines.append)
    assert "3 threads each" in lines[0]
    assert "threads: 16 is not used; the study's runs have 3, from its beginning or its recipes" in lines
    assert result.settings["threads"] == 3
    both = make(design="compare", factors={}, variants={"1": {"train.threads": 1}, "2": {"train.threads": 2}})
    assert run(tmp_path / "t", both).settings["threads"] == [1, 2]
    assert "1 or 2 threads each" in plan_study(both, measure=FAKE["measure"]).text()


CLAIM = {"says": "mixing helps", "effect": "mixing", "between": [1, 3]}


@pytest.mark.parametrize(
    ("before", "after", "how"),
    [
        ({}, {"late": CLAIM}, r"claims\.late was added after the study was begun"),
        ({"mix": CLAIM}, {}, r"claims\.mix was taken out"),
        ({"mix": CLAIM}, {"mix": {**CLAIM, "between": [1, 2]}}, r"claims\.mix was changed"),
    ],
)
def test_claims_are_those_written_before_the_first_run(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], how: str
) -> None:
    folder = tmp_path / "s"
    run(folder, make(claims=before))
    with pytest.raises(TrainingError, match=how) as caught:
        run(folder, make(claims=after))
    assert "\n" not in str(caught.value)
    assert [row["name"] for row in run(folder, make(claims=before)).claims] == list(before)


def test_overwrite_deletes_nothing_that_no_study_wrote(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("precious")
    with pytest.raises(TrainingError, match=r"holds thesis\.tex and no study"):
        run(tmp_path / "s", overwrite=True)
    assert (tmp_path / "s" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("wrong", [{"set": {"train.epoch": 3}}, {"base": "no-such-recipe"}])
def test_overwrite_deletes_nothing_before_the_new_plan_stands(tmp_path: Path, wrong: dict[str, Any]) -> None:
    folder = tmp_path / "s"
    run(folder)
    before = files(folder)
    with pytest.raises(RecipeError):
        run(folder, make(**wrong), overwrite=True)
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(TrainingError, match=r"holds thesis\.tex which no study wrote"):
        run(folder, make(seeds=[0]), overwrite=True)
    assert files(folder) == before
    assert len(list((folder / "runs").glob("*.json"))) == 9


def test_an_overwriting_that_was_cut_can_be_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "s"
    run(folder)

    def cut(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kitae.experiments.folder.shutil.rmtree", cut)
        with pytest.raises(KeyboardInterrupt):
            run(folder, make(seeds=[0, 1]), overwrite=True)
    assert len(run(folder, make(seeds=[0, 1]), overwrite=True).runs) == 6


def test_what_differs_is_named_to_the_last_field(tmp_path: Path) -> None:
    base = Recipe.load("fashion-mini").model_dump(mode="json")
    run(tmp_path / "s", make(base=base))
    base["train"]["epochs"] = 77
    with pytest.raises(TrainingError, match=r"holds another study \(base\.train\.epochs was \d+, is 77\)"):
        run(tmp_path / "s", make(base=base))
    with pytest.raises(TrainingError, match=r"\(set\.train\.batch_size was not there when it was begun\)"):
        run(tmp_path / "s", make(base=Recipe.load("fashion-mini").model_dump(mode="json"),
                                 set={"train.epochs": 3, "train.batch_size": 8}))  # fmt: skip


def test_a_changed_base_recipe_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("name: base\n")
    spec = make(base=str(base))
    run(tmp_path / "s", spec)
    base.write_text("name: base\ntrain: {batch_size: 64}\n")
    with pytest.raises(TrainingError, match="the recipe of 'none' has changed"):
        run(tmp_path / "s", spec)


def test_a_study_is_not_gone_on_with_on_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, images = tmp_path / "s", tmp_path / "images"
    for name, number in itertools.product(("cat", "dog"), range(4)):
        (images / name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), color=number).save(images / name / f"{number}.png")
    spec = make(set={"data.source": f"folder:{images}", "data.cache": str(tmp_path / "cache")})
    options = {"train": "tests.experiments.fake_train:train_on_images"}
    monkeypatch.setenv("FAKE_FAIL", "seed2")
    run(folder, spec, **options)
    monkeypatch.delenv("FAKE_FAIL")
    Image.new("L", (8, 8), color=200).save(images / "cat" / "4.png")
    with pytest.raises(
        TrainingError, match=r"the images of folder:.* have changed since 'none', seed 0, was"
    ) as caught:
        run(folder, spec, **options)
    assert "\n" not in str(caught.value)
    records = {file: json.loads(file.read_text()) for file in folder.glob("runs/*.json")}
    for file, outcome in records.items():  # as studies from before have them
        file.write_text(json.dumps({name: value for name, value in outcome.items() if name != "store"}))
    assert len(run(folder, spec, **options).failed) == 0
    assert len(run(folder, spec, **options).failed) == 0  # all are done: there is nothing to add


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "s"

    class Again(Inline):
        def outcomes(self, units: Any) -> Any:
            with pytest.raises(TrainingError, match="another process is at work in this folder"):
                run(folder)
            yield from super().outcomes(units)

    run(folder, executor=Again())


def test_an_opened_study_is_the_one_that_was_run(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    result = run(folder)
    opened = StudyResult.open(folder)
    assert opened.table() == result.table()
    assert opened.data() == result.data()
    with pytest.raises(TrainingError, match="no study there"):
        StudyResult.open(tmp_path)


def test_an_unfinished_study_can_be_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "s"

    class Stops(Inline):
        def outcomes(self, units: Any) -> Any:
            yield from super().outcomes(units[:4])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, executor=Stops())
    opened = StudyResult.open(folder)
    assert list(opened.runs["status"]) == ["done"] * 4 + ["missing"] * 5
    assert "4 of 9 runs finished" in opened.table()


def test_a_study_killed_between_its_tables_can_be_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    result = run(folder)
    (folder / "effects.json").unlink()
    opened = StudyResult.open(folder)
    assert opened.table() == result.table()
    assert opened.data() == result.data()


def test_a_number_that_no_finished_run_has_is_said_to_be_missing(tmp_path: Path) -> None:
    result = run(tmp_path / "s", make(metric="test.top5", also=[]))
    assert len(result.failed) == 0
    assert result.sentences[0] == "smoothing: nothing can be said, no finished run has a number test.top5"
    assert "no finished run has a number test.top5" in result.table()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"metric": "prune.acc"},
            r"fake, metric: prune gives no number 'acc'; .*valid: accuracy, val_accuracy",
        ),
        ({"also": ["robustness.mean"]}, r"fake, also: robustness gives no number 'mean'; .*valid: mean_accuracy"),
        (
            {"claims": {"c": {"says": "x", "effect": "mixing", "within": 1, "metric": "robustness.blurr_accuracy"}}},
            r"fake, claims\.c\.metric: .* did you mean robustness\.blur_accuracy\?",
        ),
    ],
)
def test_a_number_that_a_step_does_not_give_shows_before_anything_is_trained(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        make_plan(make(after={"prune": {}, "robustness": {}}, **fields))
    assert "\n" not in str(caught.value)
    make_plan(make(after={"prune": {}}, metric="prune.accuracy", also=["prune.compressed_bytes"]))


@pytest.mark.parametrize(("failing", "status"), [("seed", 1), ("seed1", None)])
def test_a_study_of_which_nothing_is_left_exits_with_1(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failing: str,
    status: int | None,
) -> None:
    monkeypatch.setenv("FAKE_FAIL", failing)
    result = run(tmp_path / "s", make(seeds=[0, 1]))
    monkeypatch.setattr("kitae.experiments.run.study", lambda *_, **__: result)
    for command in (lambda: cli.study("fake"), lambda: cli.ablate("fashion-mini")):
        if status is None:
            command()
        else:
            with pytest.raises(SystemExit) as caught:
                command()
            assert caught.value.code == status
        assert "runs did not finish" in capsys.readouterr().out


def test_an_ablation_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Any, Any, dict[str, Any]]] = []

    def noted(spec: StudySpec, out: Path, **options: Any) -> StudyResult:
        asked.append((spec, out, options))
        return run(tmp_path / "s", make(seeds=[0, 1]))

    monkeypatch.setattr("kitae.experiments.run.study", noted)
    cli.ablate(
        "fashion-mini", out=tmp_path / "s", design="screening", metric="val.accuracy", foldover=True, seeds=2,
        workers=2, threads=1, overwrite=True,
    )  # fmt: skip
    ((spec, out, options),) = asked
    assert (spec.metric, spec.foldover, spec.seeds, out) == ("val.accuracy", True, (0, 1), tmp_path / "s")
    assert {name: options[name] for name in ("workers", "threads", "overwrite")} == {
        "workers": 2, "threads": 1, "overwrite": True,
    }  # fmt: skip
    capsys.readouterr()


def test_settings_name_every_precision_of_a_study(tmp_path: Path) -> None:
    assert run(tmp_path / "one", make()).settings["precision"] == "bf16", "what auto became"
    variants = {"fp32": {"train.precision": "fp32"}, "bf16": {"train.precision": "bf16"}}
    spec = make(design="compare", factors={}, variants=variants, reference="fp32")
    assert run(tmp_path / "two", spec).settings["precision"] == "fp32 and bf16"


def test_the_plan_promises_equal_weights_and_power_only_where_they_are() -> None:
    text = plan_study(make(), measure=None).text()
    assert "the same initial weights in all layers of the same name and shape" in text
    assert "(65 to 80 % of the time" in text  # some of it goes into a reference with a noise of its own
    factors = {**STUDY["factors"], "ema": {"train.ema": [None, 0.9]}}
    assert "(65 to 80 % of the time" in plan_study(make(factors=factors), measure=None).text()
    assert "(65 to 80 % of the time" in plan_study(make(design="screening", factors=factors), measure=None).text()
    one = {"smoothing": STUDY["factors"]["smoothing"]}
    assert "(80% of the time" in plan_study(make(factors=one), measure=None).text()  # a pair: Student's t test


def test_processes_give_the_same_files_as_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make(seeds=[0, 1])
    run(tmp_path / "inline", spec, threads=1)
    monkeypatch.setenv("FAKE_DIE_ONCE", str(tmp_path))
    run(tmp_path / "local", spec, threads=1, executor=LocalProcesses(workers=2))
    assert (tmp_path / "died").exists()  # one worker was killed by a signal, and its run tried again
    assert files(tmp_path / "inline") == files(tmp_path / "local")


def test_a_worker_that_keeps_dying_is_a_failed_run(tmp_path: Path) -> None:
    spec = make(seeds=[0], factors={"smoothing": STUDY["factors"]["smoothing"]})
    result = run(
        tmp_path / "s", spec, executor=LocalProcesses(retries=1), train="tests.experiments.test_run:dies", threads=1
    )
    assert list(result.runs["status"]) == ["failed", "failed"]
    assert "its process ended with status -9" in result.runs["error"][0]
    assert "nothing can be said" in result.table()


def dies(recipe: Recipe, out: Path, *, resume: bool) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_takes_no_finished_run_along(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    step = "tests.experiments.fake_train:step_that_dies"
    spec = make(
        design="sweep", factors={"ratio": {f"after.{step}.ratio": [0.0, 0.5, 0.7]}}, after={step: {}}, seeds=[0],
        metric=f"{step}.accuracy", also=[],
    )  # fmt: skip
    result = run(folder, spec, executor=LocalProcesses(retries=1), threads=1)
    assert list(result.runs["status"]) == ["done", "failed", "failed"]
    assert "its process ended with status -9" in result.runs["error"][1]
    assert list(StudyResult.open(folder).runs["status"]) == ["done", "failed", "failed"]
    assert (folder / "runs" / "steps-0.0").read_text() == "."  # and is not done again by the next process


def test_a_run_that_is_done_elsewhere_replaces_what_failed_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    monkeypatch.setenv("FAKE_FAIL", "seed1")
    run(folder)
    monkeypatch.delenv("FAKE_FAIL")
    record = sorted(folder.glob("runs/*seed2*.json"))[0]
    record.write_text(record.read_text()[:40])

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
from pathlib import Path
from kitae.experiments.executors import LocalProcesses
from kitae.experiments.run import study
from tests.experiments.test_run import FAKE, make
study(make(seeds=[0, 1]), sys.argv[1], executor=LocalProcesses(workers=2), threads=1, figures=False, **FAKE)
"""


def test_killed_at_any_moment_and_started_again_ends_with_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_steps_after_training_share_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(after.STEPS, "prune", "tests.experiments.fake_train:after_step")
    spec = make(
        design="sweep", factors={"ratio": {"after.prune.ratio": [0.0, 0.5, 0.9]}}, after={"prune": {}},
        metric="prune.accuracy", also=["prune.nested.bytes", "test.accuracy"],
    )  # fmt: skip
    result = run(tmp_path / "s", spec)
    trained = list((tmp_path / "s" / "runs").glob("*/trained"))
    assert len(trained) == 3
    assert list(result.runs["status"]) == ["done", "done", "failed"] * 3
    effect = result.analyses["prune.accuracy"].effects[0]
    assert effect.name == "ratio=0.5"
    assert effect.estimate == pytest.approx(-5.0)
    assert result.analyses["prune.nested.bytes"].effects[0].estimate == pytest.approx(0.5)
    assert result.settings["training_hours"] * 3600 == pytest.approx(3 * 3 * 0.5), "a training shared is one training"
    lines: list[str] = []
    run(tmp_path / "s", spec, report=lines.append)
    assert any(line.startswith("going on: 6 of 9 runs are done already") for line in lines)


OWN = "tests.experiments.fake_train:after_step"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"prun": {}}, r"variant 'none': after\.prun: no such step; valid: prune, robustness, or module:function"),
        ({"no.such:step": {}}, r"after\.no\.such:step: cannot be imported"),
        ({"tests.experiments.fake_train:nothing": {}}, r"fake_train:nothing: cannot be imported"),
        ({"prune": {"ration": 0.5}}, r"after\.prune: .*'ration'; settings: ratio, epochs, kind, scope"),
        ({"prune": {"ratio": 1.5}}, r"after\.prune\.ratio: must be less than 1, not 1\.5"),
        ({"prune": {"ratio": "half"}}, r"after\.prune\.ratio: must be a valid number, not 'half'"),
        ({"prune": {"kind": "wild"}}, r"after\.prune\.kind: must be 'unstructured' or 'structured', not 'wild'"),
        ({"robustness": {"images": 0}}, r"after\.robustness\.images: must be greater than or equal to 1, not 0"),
        ({OWN: {"epochs": 3}}, rf"after\.{OWN}: .*'epochs'; settings: ratio"),
    ],
)
def test_a_step_that_cannot_work_is_refused_before_anything_is_trained(steps: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        make_plan(make(after=steps))
    assert "\n" not in str(caught.value)


def test_a_wrong_level_of_a_step_is_refused_too() -> None:
    with pytest.raises(RecipeError, match=r"variant 'ratio=7': after\.prune\.ratio: must be less than 1"):
        make_plan(make(after={"prune": {}}, design="sweep", factors={"ratio": {"after.prune.ratio": [0, 7]}}))


def test_a_step_of_ones_own_has_its_numbers_as_metrics(tmp_path: Path) -> None:
    spec = make(after={OWN: {"ratio": 0.5}}, metric=f"{OWN}.accuracy", also=[f"{OWN}.nested.bytes"], seeds=[0, 1])
    result = run(tmp_path / "s", spec)
    assert len(result.failed) == 0
    assert set(result.analyses) == {f"{OWN}.accuracy", f"{OWN}.nested.bytes"}


@pytest.mark.parametrize("threads", [0, -2])
def test_threads_are_at_least_one(tmp_path: Path, threads: int) -> None:
    with pytest.raises(RecipeError, match=rf"threads: {threads} must be at least 1"):
        run(tmp_path / "s", threads=threads)
    with pytest.raises(RecipeError, match=rf"threads: {threads} must be at least 1"):
        plan_study(make(), threads=threads)


def test_plan_tells_time_noise_and_what_can_be_shown() -> None:
    plan = plan_study(make(noise=0.3), workers=2, threads=1, measure=FAKE["measure"])
    assert plan.seconds == pytest.approx(9 * 3 * 2.0 / 2)
    text = plan.text()
    assert "runs      9, 3 epochs each, resnet9 on fashion-mini" in text
    assert "about 27 s of training (2.0 s an epoch, 2 at a time, 1 thread each)" in text
    assert "after Holm's correction, if runs vary by 0.3 points between seeds, given" in text
    assert "To choose a recipe by a study, set metric: val.accuracy" in text
    assert "add seeds" in plan_study(make(seeds=[0]), measure=None).text()


def test_plan_says_that_the_machine_was_busy() -> None:
    def measure(recipe: Recipe) -> dict[str, Any]:
        return {"recipe": recipe, "seconds_per_epoch": 2.0, "train": 100, "load": 3.2}

    assert "beside 3 other programs" in make_plan(make(), measure=measure).text()
    assert "other programs" not in make_plan(make(), measure=lambda r: {**measure(r), "load": 0.1}).text()


def test_plan_scales_time_with_the_number_of_images() -> None:
    spec = make(design="sweep", factors={"limit": {"data.limit": [1000, 4000]}}, seeds=[0])
    plan = plan_study(spec, measure=FAKE["measure"], threads=1)
    assert plan.seconds == pytest.approx(3 * 2.0 * (1 + 4))


def test_plan_proposes_seeds_for_half_the_claimed_effect() -> None:
    claims = {"mix": {"says": "mixing +1", "effect": "mixing", "between": [1, 2]}}
    text = plan_study(make(claims=claims, noise=0.5), measure=None).text()
    assert "claim     mix: half the claimed effect needs about" in text
    text = plan_study(make(claims=claims, noise=50), measure=None).text()
    assert "claim     mix: half the claimed effect needs more than 100 seeds" in text
    alike = {"mix": {"says": "mixing changes nothing", "effect": "mixing", "within": 0.5}}
    text = plan_study(make(claims=alike, noise=0.5), measure=None).text()
    assert "claim     mix: an interval inside +-0.5 needs about" in text
    open_ended = {"mix": {"says": "mixing helps", "effect": "mixing", "between": [0, None]}}
    assert "claim     mix" not in plan_study(make(claims=open_ended, noise=50), measure=None).text()


@pytest.mark.parametrize(
    ("metric", "given", "words"),
    [
        ("test.loss", None, "can show  not known; give noise: (how much runs vary between seeds, in test.loss)"),
        (
            "epoch_seconds",
            None,
            "can show  not known; give noise: (how much runs vary between seeds, relative, 0.02 for",
        ),
        ("test.loss", 0.01, "if runs vary by 0.01 test.loss between seeds, given"),
        ("epoch_seconds", 0.02, "if runs vary by 2 % between seeds, given"),
        ("gap", None, "if runs vary by 0.5 points between seeds, assumed"),
    ],
)
def test_plan_assumes_no_points_of_what_is_not_in_points(metric: str, given: float | None, words: str) -> None:
    plan = plan_study(make(metric=metric, noise=given), measure=None)
    assert words in plan.text()
    assert (plan.smallest is None) == ("not known" in words)


def test_plan_counts_fine_tuning() -> None:
    fields: dict[str, Any] = {"design": "sweep", "factors": {"ratio": {"after.prune.ratio": [0.0, 0.5]}}, "seeds": [0]}
    plan = plan_study(make(**fields, after={"prune": {"epochs": 2}}), measure=FAKE["measure"], threads=1)
    assert plan.seconds == pytest.approx((3 + 2 * 2) * 2.0)
    plan = plan_study(make(**fields, after={"prune": {}}), measure=FAKE["measure"], threads=1)
    assert plan.seconds == pytest.approx((3 + 2 * 5) * 2.0)


def test_plan_measures_all_images_where_a_variant_has_them() -> None:
    def measure(recipe: Recipe) -> dict[str, Any]:
        images = recipe.data.limit or 10_000
        return {"recipe": recipe, "seconds_per_epoch": images / 1000, "train": images}

    limits = {"limit": {"data.limit": [1000, None]}}
    plan = make_plan(make(design="sweep", factors=limits, seeds=[0]), measure=measure)
    assert plan.seconds == pytest.approx(3 * (1 + 10))
    both = make(design="sweep", factors={"limit": {"data.limit": [1000, 2000]}}, seeds=[0])
    assert make_plan(both, measure=measure).seconds == pytest.approx(3 * (1 + 2))


def test_screening_prints_its_aliases() -> None:
    factors = {**STUDY["factors"], "ema": {"train.ema": [None, 0.9]}}
    text = plan_study(make(design="screening", factors=factors), measure=None).text()
    assert "Aliases" in text
    assert "smoothing x mixing" in text
    folded = plan_study(make(design="screening", factors=factors, foldover=True), measure=None).text()
    assert "main effects are clear of two-factor interactions" in folded


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"set": {"train.epoch": 3}}, r"variant 'none': unknown field 'epoch' in train \(did you mean epochs\?\)"),
        ({"set": {"train.epochs": -3}}, r"variant 'none': train\.epochs: .*greater than or equal to 1"),
        ({"base": "no-such-recipe"}, "no recipe 'no-such-recipe'"),
        (
            {"factors": {"x": {"train.label_smoothing": [0.05, 0.05]}}},
            "variants 'none' and 'only x' are the same recipe, so nothing is compared",
        ),
        ({"factors": {"x": {"augment.train.rotat": [None, {}]}}}, r"variant 'none': .*rotat'.*did you mean rotate"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_shows_before_anything_is_trained(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        run(tmp_path / "s", make(**fields))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s" / "study.yaml").exists()


def test_ops_are_switched_by_their_names() -> None:
    base = Recipe.load("fashion-mini")  # random_crop, horizontal_flip, random_erasing
    spec = make()

    def ops(overrides: dict[str, Any]) -> list[dict[str, Any]]:
        recipe, _ = resolve(base, spec, overrides, "here")
        return [dict(op) for op in recipe.augment.train]

    assert [next(iter(op)) for op in ops({"augment.train.horizontal_flip": None})] == ["random_crop", "random_erasing"]
    changed = ops({"augment.train.random_erasing": {"p": 0.5}, "augment.train.rotate": {"degrees": 15}})
    assert changed[2:] == [{"random_erasing": {"p": 0.5}}, {"rotate": {"degrees": 15}}]
    assert ops({"augment.train.random_erasing.p": 0.75})[2] == {"random_erasing": {"p": 0.75}}
    assert ops({"augment.train": [], "augment.train.cutout": {"size": 8}}) == [{"cutout": {"size": 8}}]
    with pytest.raises(RecipeError, match=r"here: augment\.train\.rotate\.degrees: the recipe's augment\.train has no"):
        ops({"augment.train.rotate.degrees": 3})
    with pytest.raises(RecipeError, match="has 2 ops"):
        ops({"augment.train": [{"rotate": {}}, {"rotate": {}}], "augment.train.rotate": None})


def test_early_stopping_is_off_whatever_the_base_and_the_variants_say() -> None:
    base = Recipe.load("fashion-mini").override("train.early_stopping.patience=3")
    recipe, _ = resolve(base, make(), {"train.epochs": 2}, "here")
    assert recipe.train.early_stopping is None
    whole = {**base.train.model_dump(mode="json"), "epochs": 4}
    recipe, _ = resolve(base, make(), {"train": whole}, "here")
    assert recipe.train.epochs == 4
    assert recipe.train.early_stopping is None


def test_a_study_is_not_begun_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(KitaeError, match="cannot be used as --out"):
        run(tmp_path / "f")
