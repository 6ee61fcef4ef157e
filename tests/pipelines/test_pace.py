"""Schedules that the clock changes on the way."""

from __future__ import annotations

import importlib
import re
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from kitae.augment.tta import views as tta_views
from kitae.errors import RecipeError, TrainingError
from kitae.pipelines import pace
from kitae.pipelines.pace import Clock, Pace, Reserve
from kitae.pipelines.setup import Setup
from kitae.preprocess import PreprocessRules
from kitae.recipe import Recipe
from kitae.run import Run
from kitae.training.checkpoint import load_weights
from kitae.training.distributed import World
from kitae.training.schedule import progressive_share
from tests.refusals import refused
from tests.watchers import DiesHereError, KillAt, Watcher

training = importlib.import_module("kitae.pipelines.train")


SMALL = ("data.limit=200", "train.batch_size=16", "train.epochs=50")
BRIEF = ("data.limit=160", "train.batch_size=16", "train.schedule={name: cosine, warmup_epochs: 0.5}")


def fitted(
    asked: Recipe, seconds: float, begun: bool = False, processes: int = 1, **limits: int
) -> tuple[Recipe, Reserve]:
    clock, world = Clock(seconds, time.monotonic(), 0.0, **limits), World(0, processes, torch.device("cpu"))
    return pace.fitted(asked, Setup.without_run(asked), nn.Identity(), clock, world, begun)


def steps(recipe: Recipe) -> int:
    return recipe.train.epochs * (recipe.train.epoch_steps or 0)


def test_the_main_process_decides_whether_all_measure_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that measured again alone would wait for the others. Their clocks differ a little in a fold."""
    said: list[Any] = []
    monkeypatch.setattr(pace.distributed, "from_main", lambda value, world: (said.append(value), said[0])[1])
    for rank, seconds in enumerate((60.2, 59.8)):
        made: list[int] = []
        clock = Clock(seconds, time.monotonic(), 0.0)
        pace.replan(partial(made.append, 1), lambda _: 30.0, clock, World(rank, 2, torch.device("cpu")))
        assert made == [1]


def test_folds_that_have_no_time_left_are_measured_once() -> None:
    made: list[int] = []
    clock = Clock(60, time.monotonic() - 90, 5.0).share(3)
    assert clock.seconds == 0
    pace.replan(lambda: made.append(1), lambda _: 0.0, clock, World(0, 1, torch.device("cpu")))
    assert made == [1]


def test_two_processes_make_twice_the_steps_in_the_same_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def pace_of(model: Any, spec: Any, world: Any, shape: Any, classes: int, images: int) -> Pace:
        measured.append(images)
        return Pace(28 * 28, 0.0, 0.0, 1.0)

    monkeypatch.setattr(pace, "pace_of", pace_of)
    asked = Recipe.load("fashion-mini").override(*SMALL)
    one, two = (steps(fitted(asked, 6400, processes=processes, most=10**6)[0]) for processes in (1, 2))
    assert measured == [16, 8], "each process measures its own part of a batch"
    assert two == pytest.approx(2 * one, rel=0.05)


def test_more_steps_fit_where_pictures_are_smaller_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pace is that of the full size, 784 pixels; the mean is 0.58 of them."""
    monkeypatch.setattr(pace, "pace_of", lambda *_: Pace(28 * 28, 0.0, 0.0, 1.0))
    asked = Recipe.load("fashion-mini").override(*SMALL)
    growing = asked.override("train.progressive={start: 0.5, until: 0.9}")
    share = progressive_share((28, 28), growing.train.progressive)
    assert 0.5 < share < 0.7
    full, more = (steps(fitted(recipe, 6400, most=10**6)[0]) for recipe in (asked, growing))
    assert more * share == pytest.approx(full, rel=0.05)


def test_a_training_that_is_resumed_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its length is known; the pace only says how long its end takes. It is so slow that only the probe would fit."""
    measured: list[int] = []
    monkeypatch.setattr(pace, "pace_of", lambda *_: measured.append(1) or Pace(28 * 28, 0.1, 0.0, 100.0))
    asked = Recipe.load("fashion-mini").override("data.limit=200", "train.epochs=5", "train.probe={views: 0}")
    made, end = fitted(asked, 600, begun=True)
    assert (made, len(measured)) == (asked, 1)
    assert end.end == pytest.approx(0.1 * Setup.without_run(asked).splits.test_count)
    assert fitted(asked, 600) != (asked, end)
    assert len(measured) == 4


@pytest.mark.parametrize(("tta", "views"), [("none", 1), ("flip", 2), ("shift", 5), ("scale", 3), ("full", 14)])
def test_time_is_kept_for_the_views_of_the_evaluation(tta: Any, views: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All views of validation and test; without augmentation the last validation is used again."""
    monkeypatch.setattr(pace, "pace_of", lambda *_: Pace(28 * 28, 0.1, 0.0, 1.0))
    asked = Recipe.load("fashion-mini").override(*SMALL, f"evaluate.tta={tta}")
    splits = Setup.without_run(asked).splits
    val, test = len(splits.val), splits.test_count
    assert len(list(tta_views(np.zeros((1, 1, 28, 28), np.uint8), tta))) == views
    assert fitted(asked, 6400)[1].end == pytest.approx(0.1 * (test if views == 1 else views * (val + test)))
    assert asked.evaluate.passes(val, test, fold=True) == (test if views == 1 else views * (val + test) + test)


@pytest.mark.parametrize(
    ("fields", "length", "warmup"),
    [
        (("train.epochs=1",), 1, 0.5),
        (("train.epochs=1", "train.probe={views: 0}"), 1, 0.5),
        (("train.epochs=4", "train.recut=[[2, 6]]"), 6, 0.75),
        (("train.epochs=100",), None, None),  # 1,000 steps do not fit into 600 seconds
    ],
)
def test_a_length_that_fits_is_kept(
    fields: tuple[str, ...], length: int | None, warmup: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch has 10 steps of a second each, fewer than are ever made where the minutes choose the length."""
    monkeypatch.setattr(pace, "pace_of", lambda *_: Pace(28 * 28, 0.0, 0.0, 1 / 16))
    train = fitted(Recipe.load("fashion-mini").override(*BRIEF, *fields), 600)[0].train
    assert train.recut == ()
    if length is None:
        assert 300 < train.epochs * (train.epoch_steps or 10) <= 600
    else:
        assert (train.epochs, train.epoch_steps, train.schedule.warmup_epochs) == (length, None, warmup)


@pytest.mark.parametrize(
    ("fields", "seconds", "others"),
    [
        (("train.epochs=3",), 600, ("train.epochs=4", "train.epoch_steps=10", "train.validate_every=2")),  # it fits
        (("train.epochs=3", "train.validate_every=2"), 600, ("train.validate_every=1", "train.validate_every=3")),
        (("train.epochs=3", "train.epoch_steps=5"), 600, ("train.epochs=2", "train.epochs=4", "train.epoch_steps=4")),
        (("train.epochs=4", "train.recut=[[2, 6]]"), 600, ("train.epochs=5", "train.epochs=7")),
        # 1,000 steps do not fit
        (("train.epochs=100",), 600, ("train.epochs=30", "train.epochs=101", "train.schedule.warmup_epochs=1")),
        (("train.epochs=100", "train.probe={views: 0}"), 60, ()),  # the probe alone
        (("train.epochs=1",), 1, ("train.epochs=3",)),  # nothing fits
    ],
)
def test_a_run_is_resumed_with_the_length_that_it_was_given(
    fields: tuple[str, ...], seconds: int, others: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it fitted into the minutes or not. An epoch has 10 steps of a second each."""
    monkeypatch.setattr(pace, "pace_of", lambda *_: Pace(28 * 28, 0.0, 0.0, 1 / 16))
    asked = Recipe.load("fashion-mini").override(*BRIEF, *fields)
    made = fitted(asked, seconds)[0].override("train.precision=fp32", "train.select=val_accuracy")  # as a run resolves
    with closing(Run.create(tmp_path / "run", asked)) as run:
        pace.remember_length(run)
        run.resolve(made)
        pace.remember_length(run)  # as after a kill before the first epoch

    def resumed(again: Recipe) -> Recipe:
        agreed = pace.as_long_as(Run.open(tmp_path / "run"), again, Clock(seconds, time.monotonic(), 0.0))
        with closing(Run.create(tmp_path / "run", agreed, resume=True)) as run:
            return run.recipe

    assert resumed(asked) == made
    assert resumed(made) == made
    # As the command line does with the run's data.
    given = asked.train.straightened()
    again = (f"train.epochs={given.epochs}", f"train.schedule.warmup_epochs={given.schedule.warmup_epochs}")
    assert resumed(made.override(again[0])) == made
    assert resumed(made.override(*again)) == made
    for other in others:
        with pytest.raises(TrainingError, match=r"has a run of another recipe \(train\."):
            resumed(asked.override(other))


def test_the_validation_of_the_start_is_no_part_of_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Recipe.load("fashion-mini").override("train.epochs=10", "train.epoch_steps=4")
    with closing(Run.create(tmp_path / "run", asked)) as run:
        run.write_metrics([{"epoch": 1, "seconds": 3.0, "validation_seconds": 1.0}])
        now = time.monotonic()
        recutter = pace.Recutter(run, Clock(100, now, 0.0, most=40), Reserve(0.0, 0.0), Watcher())
        monkeypatch.setattr(pace.time, "monotonic", lambda: now + 30)  # 26 of them for the start
        assert recutter(1) is None
        monkeypatch.setattr(pace.time, "monotonic", lambda: now + 50)  # an epoch of 20 seconds, and 50 are left
        assert recutter(2) == 4


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize(
    ("left", "end"),
    [(44.0, None), (26.0, 6), (24.0, 5), (20.0, 4), (4.0, 3), (1.0, 3), (100.0, 12)],
)
def test_a_recut_counts_the_validations_that_are_left(
    left: float, end: int | None, measured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 3 epochs of 2 seconds; every second one is validated, in 10 seconds, as measured or as planned."""
    judging = 99.0 if measured else 10.0
    asked = Recipe.load("fashion-mini").override("train.epochs=8", "train.epoch_steps=4", "train.validate_every=2")
    with closing(Run.create(tmp_path / "run", asked)) as run:
        rows: list[dict[str, Any]] = [{"epoch": epoch, "seconds": 2.0} for epoch in (1, 2, 3)]
        if measured:
            rows[1]["validation_seconds"] = 10.0
        run.write_metrics(rows)
        now = time.monotonic()
        monkeypatch.setattr(pace.time, "monotonic", lambda: now)
        recutter = pace.Recutter(run, Clock(left, now, 0.0, most=48), Reserve(0.0, judging), Watcher())
        assert recutter(3) == end


@pytest.mark.parametrize("by_pixel", [True, False])
def test_smaller_pictures_at_first_are_no_faster_machine(
    by_pixel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs that take just as long as planned, of which the last ones have larger pictures, in proportion or not."""
    asked = Recipe.load("fashion-mini").override("train.epochs=10", "train.epoch_steps=4")
    asked = asked.override("train.progressive={start: 0.5, until: 0.9}")
    shares = [progressive_share((28, 28), asked.train.progressive, at / 10, (at + 1) / 10) for at in range(10)]
    assert sum(shares) / 10 == pytest.approx(progressive_share((28, 28), asked.train.progressive), rel=0.01)
    seconds = [1.0 + 10 * share if by_pixel else 7.0 for share in shares]  # of augmentation, and of the network
    with closing(Run.create(tmp_path / "run", asked)) as run:
        rules = PreprocessRules(28, 1).to_dict()
        run.write_facts({"classes": ["a", "b"], "preprocess": rules, "mean": [0], "std": [1], "temperature": 1})
        now = time.monotonic()
        recutter = pace.Recutter(run, Clock(sum(seconds), now, 0.0, most=400), Reserve(0.0, 0.0), Watcher())
        for epoch in range(1, 10):
            row = {"epoch": epoch, "seconds": seconds[epoch - 1], "data_share": 1 / seconds[epoch - 1]}
            run.write_metrics([row])
            monkeypatch.setattr(pace.time, "monotonic", partial(sum, seconds[:epoch], now))
            assert recutter(epoch) is None


@given(st.floats(1, 5000), st.integers(1, 400), st.floats(0, 120), st.floats(0.05, 5), st.integers(20, 5000))
@settings(max_examples=300, deadline=None)
@example(21.0, 1, 5e-324, 1.0, 20)
@example(352.0, 100, 18.0, 1.0, 5000)  # four epochs with two validations, and then three with three
def test_what_fills_the_seconds_fits(seconds: float, per_pass: int, judging: float, step: float, most: int) -> None:
    found = pace.fill(seconds, 16, per_pass, judging, step / 16, most)
    assert found.epochs * found.steps <= most
    assert found.epochs == 0 or found.epochs * found.steps * step + found.validations * judging <= seconds + 1e-6
    assert found.epochs * found.steps >= 20 or found == pace.NO_STEPS


@pytest.mark.parametrize(("steps", "epochs"), [(20, 1), (30, 2), (60, 5), (99, 6), (2000, 15)])
def test_an_epoch_is_a_small_part_of_the_minutes(steps: int, epochs: int) -> None:
    """Or a training whose pace changes would end long before its minutes; 99 steps are two passes here."""
    found = pace.cut(steps, 50, 10.0, 1.0)
    assert (found.epochs, found.steps) == (epochs, steps // epochs)


@pytest.mark.parametrize(("judging", "every"), [(0.0, 1), (5.0, 1), (6.0, 2), (15.0, 3), (20.0, 4), (99.0, 12)])
def test_long_validations_are_few_and_epochs_are_not(judging: float, every: int) -> None:
    """About 300 steps of a second in epochs of 25; a fifth of the time may go to validations, and one always does."""
    found = pace.cut(300, 25, judging, 1.0)
    assert found == (12, 25, every)
    assert found.validations * judging <= max(judging, 0.2 * 300)


def test_the_same_command_resumes_a_run_whose_length_the_minutes_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Recipe.load("fashion-mini").override(
        "data.limit=200", "model.name=resnet8", "model.width=4", "train.epochs=9", "train.batch_size=16",
        "train.threads=1", "train.precision=fp32", "train.schedule.warmup_epochs=3",
    )  # fmt: skip
    length = ("train.epochs=2", "train.epoch_steps=4", "train.schedule.warmup_epochs=0.6667", "train.recut=[]")
    left: list[float] = []

    def fitted(recipe: Recipe, _setup: Any, _model: Any, clock: Clock, *_: Any) -> tuple[Recipe, Reserve]:
        left.append(clock.left)
        return recipe.override(*length), Reserve(0.0, 0.0)

    monkeypatch.setattr(training, "fitted", fitted)
    monkeypatch.setattr(pace.Recutter, "__call__", lambda *_: None)
    with pytest.raises(DiesHereError):
        training.train(asked, tmp_path / "run", minutes=60, resume=True, watcher=KillAt(6))
    run = Run.open(tmp_path / "run")
    run.write_metrics([{**row, "seconds": 1000.0, "validation_seconds": 200.0} for row in run.metrics()])
    run = training.train(asked, tmp_path / "run", minutes=60, resume=True)
    assert run.finished
    assert len(run.metrics()) == 2
    assert left == pytest.approx([0.96 * 3600, 0.96 * 3600 - 1200], abs=60), "the first epoch counts"
    for options in ({}, {"epochs": 9}, {"set": "train.epochs=9"}):
        assert training.train(asked, tmp_path / "run", minutes=60, resume=True, **options).recipe == run.recipe
    with pytest.raises(TrainingError, match=r"another recipe \(model\.width was 4, is 8\)"):
        training.train(asked.override("model.width=8"), tmp_path / "run", minutes=60, resume=True)
    with pytest.raises(TrainingError, match=r"has a run of another recipe"):
        training.train(asked, tmp_path / "run", minutes=60, resume=True, epochs=5)


def test_epochs_that_do_not_fit_into_the_minutes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "pace_of", lambda *_: Pace(28 * 28, 0.0, 0.0, 0.5))  # 4 seconds a step
    monkeypatch.setattr(pace.Recutter, "__call__", lambda *_: None)
    asked = Recipe.load("fashion-mini").override(
        "data.limit=200", "model.name=resnet8", "model.width=4", "train.batch_size=8", "train.threads=1",
        "train.precision=fp32",
    )  # fmt: skip
    for epochs, minutes, told in (
        (50, 4, r"50 epochs do not fit into 4 min: \d epochs of \d+ steps are made instead"),
        (1, 5, None),
    ):
        watcher = Watcher()
        recipe = asked.override(f"train.epochs={epochs}")
        run = training.train(recipe, tmp_path / f"{epochs}", minutes=minutes, watcher=watcher)
        notes = [note for note in watcher.notes if "do not fit" in note]
        assert re.fullmatch(told, notes[0]) if told else not notes
        assert (run.recipe.train.epochs < epochs) == bool(told)


def test_the_command_that_resumes_a_run_keeps_its_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "fitted", lambda recipe, *_: (recipe, Reserve(0.0, 0.0)))
    monkeypatch.setattr(pace.Recutter, "__call__", lambda *_: None)
    fields = ("data.limit=200", "model.width=4", "train.epochs=2", "train.batch_size=16", "train.threads=1")
    asked = Recipe.load("fashion-mini").override("model.name=resnet8", *fields)
    for number, minutes in enumerate((2.5, None)):
        folder, limit = tmp_path / str(number), "" if minutes is None else " --minutes 2.5"
        with pytest.raises(DiesHereError):
            training.train(asked, folder, minutes=minutes, watcher=KillAt(15))  # in the second epoch
        assert Run.open(folder).resume_command == f"kitae train --resume {folder}{limit}"
    with pytest.raises(DiesHereError):
        training.train(asked, tmp_path / "0", resume=True, watcher=KillAt(2))
    assert Run.open(tmp_path / "0").resume_command.endswith("--minutes 2.5"), "resumed without them"


@pytest.mark.parametrize("batches", [5, 14])
def test_a_run_that_was_killed_after_a_recut_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    """Planned for 2 epochs, the machine is faster, so there are 4: killed in the second, or in the last one."""
    asked = Recipe.load("fashion-mini").override(
        "data.limit=200", "model.name=resnet8", "model.width=4", "train.epochs=2", "train.epoch_steps=4",
        "train.batch_size=16", "train.threads=1", "train.precision=fp32", "train.optimizer.lr=0.05",
        "train.schedule.name=cosine",
    )  # fmt: skip
    monkeypatch.setattr(training, "fitted", lambda recipe, *_: (recipe, Reserve(0.0, 0.0)))

    def clock() -> Clock:
        return Clock(3600, time.monotonic(), 0.0, most=16)

    watcher = Watcher()
    whole = training.train(asked, tmp_path / "whole", minutes=clock(), watcher=watcher)
    assert watcher.plans == [2, 4]
    assert whole.recipe.train.recut == ((1, 4),)
    with pytest.raises(DiesHereError):
        training.train(asked, tmp_path / "killed", minutes=clock(), watcher=KillAt(batches))
    saved = Run.open(tmp_path / "killed").recipe
    again = training.train(saved, tmp_path / "killed", resume=True)
    assert again.recipe == whole.recipe
    weights = [load_weights(run.best)[0] for run in (again, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    rows = [[(row["epoch"], row["train_loss"], row["val_loss"]) for row in run.metrics()] for run in (again, whole)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4


def test_minutes_may_be_a_number_of_numpy() -> None:
    for minutes in (np.int8(5), np.float32(5)):
        seconds = Clock.of(minutes, 0.0).seconds  # type: ignore[arg-type]
        assert (type(seconds), seconds) == (float, 300.0)
    refused(RecipeError, "must be a number above 0", Clock.of, np.int64(0), 0.0)
