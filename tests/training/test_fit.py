"""The loop, on a toy: what it computes, and that stopping and going on changes nothing."""

from __future__ import annotations

import copy
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kitae.errors import DataError, TrainingDivergedError, TrainingError, TrainingInterruptedError
from kitae.training import fit as loop
from kitae.training.batches import epoch_shape
from kitae.training.checkpoint import Progress, load_weights, save_weights
from kitae.training.distributed import World
from kitae.training.guards import SignalFlag
from kitae.training.learner import Teacher
from kitae.training.spec import EarlyStoppingSpec, OptimizerSpec, ScheduleSpec, TrainSpec
from tests.refusals import refused
from tests.training.toy_world import WORLD, ToyAugment, ToyData, ToyValidate, fit, toy_net
from tests.watchers import DiesHereError, KillAt, Signal, Watcher


def spec(**fields: Any) -> TrainSpec:
    return TrainSpec.model_validate({"epochs": 3, "batch_size": 16, "precision": "fp32", **fields})


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_learns_and_returns_the_best_weights(toy: dict[str, Any]) -> None:
    model = toy_net()
    result = fit(model, spec=spec(epochs=6, optimizer={"lr": 0.05}), **toy)
    best = max(row["val_accuracy"] for row in result.rows)
    assert best > 0.95
    assert toy["validate"](model)["val_accuracy"] == best
    assert len(result.rows) == 6
    assert not model.training


def test_all_processes_have_the_scores_of_the_first(toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors may round differently, and processes that stopped after different epochs would wait for each other."""
    said = {"val_loss": 0.25, "val_accuracy": 0.5}
    monkeypatch.setattr(loop.distributed, "from_main", lambda scores, world: said)
    source, world = loop.Source(toy["data"], toy["augment"], toy["validate"]), World(1, 2, torch.device("cpu"))
    scores, fields = loop._judge(source, toy_net(), world, Progress())
    assert scores == said
    assert fields.items() >= said.items()


@pytest.mark.parametrize("batch_size", [10, 16, 32, 64])
def test_an_epoch_is_full_batches_of_the_keyed_order_and_drops_the_rest(toy: dict[str, Any], batch_size: int) -> None:
    result = fit(toy_net(), spec=spec(epochs=2, batch_size=batch_size), **toy)
    data, full = toy["data"], 70 // batch_size * batch_size
    assert {len(asked) for asked in data.asked} == {batch_size}
    seen = np.concatenate(data.asked).reshape(2, full)
    for epoch in range(2):
        assert (seen[epoch] == data.order(0, epoch)[:full]).all()
    assert [row["step"] for row in result.rows] == [70 // batch_size, 2 * (70 // batch_size)]
    left_out = [set(range(70)) - set(seen[epoch]) for epoch in range(2)]
    assert full == 70 or left_out[0] != left_out[1]  # nobody is left out for good


@pytest.mark.parametrize(
    ("samples", "batch_size", "accumulate", "processes", "expected"),
    [
        (70, 128, 1, 1, (70, 1, 1)),  # a set smaller than a batch shrinks the batch
        (71, 128, 4, 1, (70, 1, 1)),
        (70, 16, 3, 1, (16, 3, 3)),  # a rest that does not fill an update is dropped too
        (70, 16, 8, 1, (16, 4, 4)),
        (70, 24, 1, 3, (24, 1, 2)),
        (70, 96, 1, 3, (66, 1, 1)),
    ],
)
def test_every_update_has_as_many_samples(
    samples: int, batch_size: int, accumulate: int, processes: int, expected: tuple[int, int, int]
) -> None:
    shape = epoch_shape(samples, spec(batch_size=batch_size, accumulate=accumulate), processes)
    assert (shape.batch_size, shape.accumulate, shape.steps) == expected


@pytest.mark.parametrize(("steps", "passes"), [(3, 1), (4, 1), (6, 2), (11, 3)])
def test_an_epoch_may_be_part_of_a_pass_or_several(toy: dict[str, Any], steps: int, passes: int) -> None:
    result = fit(toy_net(), spec=spec(epochs=2, epoch_steps=steps), **toy)
    data = toy["data"]
    assert [row["step"] for row in result.rows] == [steps, 2 * steps]
    orders = [data.order(0, number)[:64].reshape(4, 16) for number in range(2 * passes)]
    for epoch in range(2):
        expected = np.concatenate(orders[epoch * passes : (epoch + 1) * passes])[:steps]
        assert (np.stack(data.asked[epoch * steps : (epoch + 1) * steps]) == expected).all()


def test_epochs_of_several_passes_resume_bit_exactly(toy: dict[str, Any], tmp_path: Path) -> None:
    whole, model = toy_net(), toy_net()
    fit(whole, spec=spec(epochs=2, epoch_steps=6), **toy)
    files = {"checkpoint": tmp_path / "last", "best": tmp_path / "best"}
    with pytest.raises(DiesHereError):
        fit(toy_net(), spec=spec(epochs=2, epoch_steps=6, checkpoint_seconds=1e-9), watcher=KillAt(11), **files, **toy)
    fit(model, spec=spec(epochs=2, epoch_steps=6, checkpoint_seconds=1e-9), resume=True, **files, **toy)
    assert same(whole.state_dict(), model.state_dict())


def test_resuming_removes_what_a_process_left_that_was_killed_while_it_saved(
    toy: dict[str, Any], tmp_path: Path
) -> None:
    files = {"checkpoint": tmp_path / "last", "best": tmp_path / "best"}
    fit(toy_net(), spec=spec(epochs=1), **files, **toy)
    for name in (".last.0a1b2c3d.tmp", ".best.4e5f6a7b.tmp"):
        (tmp_path / name).write_bytes(b"half")
    fit(toy_net(), spec=spec(epochs=1), resume=True, **files, **toy)
    assert {path.name for path in tmp_path.iterdir()} == {"last", "best"}


def test_a_checkpoint_of_an_earlier_loop_is_refused(toy: dict[str, Any], tmp_path: Path) -> None:
    files = {"checkpoint": tmp_path / "last", "best": tmp_path / "best"}
    fit(toy_net(), spec=spec(epochs=1), **files, **toy)
    tensors, metadata = load_weights(files["checkpoint"])
    del metadata["loop"]
    save_weights(tensors, files["checkpoint"], metadata)
    with pytest.raises(TrainingError, match=r"last: .*cannot be resumed.*--overwrite"):
        fit(toy_net(), spec=spec(epochs=2), resume=True, **files, **toy)


def test_global_generators_are_left_alone(toy: dict[str, Any]) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    fit(toy_net(), spec=spec(), **toy)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # type: ignore[union-attr]


def test_two_runs_are_bit_identical_and_another_seed_is_not(toy: dict[str, Any]) -> None:
    states = []
    for seed in (0, 0, 1):
        model = toy_net()
        fit(model, spec=spec(seed=seed), **toy)
        states.append(model.state_dict())
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_trainings_in_threads_draw_dropout_by_their_own_seeds() -> None:
    start = toy_net()

    def trained(seed: int) -> dict[str, Tensor]:
        data, model = ToyData(), copy.deepcopy(start)
        parts: dict[str, Any] = {"data": data, "augment": ToyAugment(), "validate": ToyValidate(data)}
        fit(model, spec=spec(seed=seed), world=WORLD, precision="fp32", **parts)
        return model.state_dict()

    seeds, threads = range(4), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = [trained(seed) for seed in seeds]
        with ThreadPoolExecutor(4, initializer=partial(torch.set_num_threads, 1)) as pool:
            found = list(pool.map(trained, seeds))
    finally:
        torch.set_num_threads(threads)
    assert all(map(same, expected, found))


VARIANTS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw": {"optimizer": {"name": "adamw", "lr": 0.01}},
    "ema": {"ema": 0.9},
    "accumulate": {"accumulate": 2},
    "clip": {"clip_norm": 0.1},
    "validate_every": {"validate_every": 2},
}


@pytest.mark.parametrize(("variant", "precision"), [*((name, "fp32") for name in sorted(VARIANTS)), ("ema", "bf16")])
def test_resume_after_dying_anywhere_is_bit_exact(
    toy: dict[str, Any], tmp_path: Path, variant: str, precision: str
) -> None:
    toy["precision"] = precision

    def net() -> nn.Module:
        return toy_net().to(memory_format=torch.channels_last)  # as the pipeline has it

    settings = spec(**VARIANTS[variant], checkpoint_seconds=1e-9)  # a checkpoint after every possible batch
    whole = net()
    expected = fit(whole, spec=settings, **toy)

    files = {"checkpoint": tmp_path / "last.safetensors", "best": tmp_path / "best.safetensors"}
    kept: list[dict[str, Any]] = []

    def write(rows: Any) -> None:
        kept[:] = list(rows)

    for batches in (1, 3, 2, 4):
        with pytest.raises(DiesHereError):
            fit(
                net(),
                spec=settings,
                watcher=KillAt(batches),
                resume=True,
                write_rows=write,
                rows=kept,
                **files,
                **toy,
            )
    model = net()
    result = fit(model, spec=settings, resume=True, write_rows=write, rows=kept, **files, **toy)
    assert same(whole.state_dict(), model.state_dict())
    for row, other in zip(expected.rows, result.rows, strict=True):
        for name in ("epoch", "step", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate"):
            assert row.get(name) == other.get(name), name


def test_resume_needs_the_same_recipe(toy: dict[str, Any], tmp_path: Path) -> None:
    files = {"checkpoint": tmp_path / "last", "best": tmp_path / "best"}
    fit(toy_net(), spec=spec(epochs=1), fingerprint="a", **files, **toy)
    with pytest.raises(TrainingError, match="a different recipe"):
        fit(toy_net(), spec=spec(epochs=2), fingerprint="b", resume=True, **files, **toy)


def test_resume_reports_another_number_of_threads(toy: dict[str, Any], tmp_path: Path) -> None:
    files = {"checkpoint": tmp_path / "last", "best": tmp_path / "best"}
    threads = torch.get_num_threads()
    fit(toy_net(), spec=spec(epochs=1), **files, **toy)
    watcher = KillAt(10**9)
    try:
        torch.set_num_threads(threads + 1)
        fit(toy_net(), spec=spec(epochs=1), resume=True, watcher=watcher, **files, **toy)
    finally:
        torch.set_num_threads(threads)
    assert any("threads" in note for note in watcher.notes)


class Poison:
    """Images that are not finite in some batches."""

    def __init__(self, inner: Any, bad: set[int]) -> None:
        self.inner, self.bad, self.calls = inner, bad, 0

    def __call__(self, images: Tensor, targets: Tensor, **keys: Any) -> tuple[Tensor, Tensor]:
        images, targets = self.inner(images, targets, **keys)
        self.calls += 1
        return (images * float("nan") if self.calls in self.bad else images), targets


def test_a_step_that_is_not_finite_leaves_no_trace(toy: dict[str, Any]) -> None:
    model = toy_net()
    result = fit(model, spec=spec(), **{**toy, "augment": Poison(toy["augment"], {2, 7})})
    assert result.rows[-1]["skipped_steps"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert max(row["val_accuracy"] for row in result.rows) > 0.5


def test_too_many_of_them_stop_the_run_and_keep_the_last_good_checkpoint(toy: dict[str, Any], tmp_path: Path) -> None:
    files = {"checkpoint": tmp_path / "last", "best": tmp_path / "best"}
    bad = set(range(6, 100))
    with pytest.raises(TrainingError, match=r"train\.nan_limit: 3 steps.*clip_norm"):
        fit(toy_net(), spec=spec(nan_limit=3), **files, **{**toy, "augment": Poison(toy["augment"], bad)})
    tensors, metadata = load_weights(files["checkpoint"])
    assert metadata["progress"]["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


NEVER_FINITE = {"val_loss": float("nan"), "val_accuracy": float("nan")}


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"validate": lambda model: NEVER_FINITE}, TrainingDivergedError, "no best model"),
        ({"data": ToyData(1)}, DataError, "1 training images are too few"),
        ({"world": World(0, 3, torch.device("cpu"))}, DataError, "multiple of 6"),
    ],
)
def test_what_cannot_be_trained(given: dict[str, Any], error: Any, words: str, toy: dict[str, Any]) -> None:
    refused(error, words, fit, toy_net(), spec=spec(epochs=1), **{**toy, **given})


def test_early_stopping_waits_its_patience_and_keeps_the_best(toy: dict[str, Any]) -> None:
    scores = iter([0.5, 0.9, 0.8, 0.9, 0.7, 0.99])
    toy["validate"] = lambda model: {"val_loss": 1.0, "val_accuracy": next(scores)}
    result = fit(toy_net(), spec=spec(epochs=6, early_stopping=EarlyStoppingSpec(patience=2)), **toy)
    assert (result.epochs, result.best_epoch) == (4, 4)


def test_only_some_epochs_and_the_last_are_validated(toy: dict[str, Any], tmp_path: Path) -> None:
    scores = iter([0.5, 0.9, 0.7])
    seen: list[dict[str, Tensor]] = []
    some = toy_net()
    plain = fit(toy_net(), spec=spec(epochs=5), **toy)

    def validate(model: nn.Module) -> dict[str, float]:
        seen.append(copy.deepcopy(model.state_dict()))
        return {"val_loss": 1.0, "val_accuracy": next(scores)}

    toy["validate"] = validate
    files = {"checkpoint": tmp_path / "last", "best": tmp_path / "best"}
    result = fit(some, spec=spec(epochs=5, validate_every=2), **files, **toy)
    assert [row["epoch"] for row in result.rows if "val_accuracy" in row] == [2, 4, 5]
    assert ["validation_seconds" in row for row in result.rows] == [False, True, False, True, True]
    assert all(row["peak_memory_bytes"] and row["skipped_steps"] == 0 for row in result.rows)
    assert [row["train_loss"] for row in result.rows] == [row["train_loss"] for row in plain.rows]
    assert result.best_epoch == 4
    assert same(seen[1], some.state_dict())
    assert not same(seen[2], some.state_dict())
    assert same(load_weights(tmp_path / "best")[0], some.state_dict())


@pytest.mark.parametrize(("patience", "last"), [(1, 6), (2, 6), (3, 8), (20, 9)])
def test_early_stopping_waits_for_a_validation(toy: dict[str, Any], patience: int, last: int) -> None:
    scores = {2: 0.5, 4: 0.9, 6: 0.8, 8: 0.7, 9: 0.6}
    asked: list[int] = []

    def validate(model: nn.Module) -> dict[str, float]:
        asked.append(sorted(scores)[len(asked)])
        return {"val_loss": 1.0, "val_accuracy": scores[asked[-1]]}

    toy["validate"] = validate
    settings = spec(epochs=9, validate_every=2, early_stopping=EarlyStoppingSpec(patience=patience))
    result = fit(toy_net(), spec=settings, **toy)
    assert (result.epochs, result.best_epoch, asked[-1]) == (last, 4, last)


@pytest.mark.parametrize("dies", [False, True])
def test_minutes_that_end_after_an_epoch_without_validation_add_one(
    toy: dict[str, Any], tmp_path: Path, dies: bool
) -> None:
    files = {"checkpoint": tmp_path / "last", "best": tmp_path / "best"}
    settings, validate = spec(epochs=6, validate_every=4), toy["validate"]
    toy["validate"] = lambda model: validate(model) if not dies else pytest.fail("killed while it validates")
    kept: list[dict[str, Any]] = []
    record = {"write_rows": lambda rows: kept.__setitem__(slice(None), rows), **files}

    def recut(epochs: int) -> int | None:
        return 3 if epochs == 3 else None

    if dies:
        with pytest.raises(pytest.fail.Exception):
            fit(toy_net(), spec=settings, recut=recut, **record, **toy)
        toy["validate"], settings = validate, spec(epochs=6, validate_every=4, recut=[[3, 3]])
    model = toy_net()
    result = fit(model, spec=settings, recut=recut, resume=dies, rows=kept, **record, **toy)
    assert (result.epochs, result.best_epoch) == (3, 3)
    assert [row["epoch"] for row in result.rows if "val_accuracy" in row] == [3]
    assert kept == result.rows
    assert same(load_weights(tmp_path / "best")[0], model.state_dict())


def test_early_stopping_counts_from_the_start_where_that_is_kept(toy: dict[str, Any]) -> None:
    scores = iter([0.9, 0.1, 0.2, 0.3])
    toy["validate"] = lambda model: {"val_loss": 1.0, "val_accuracy": next(scores)}
    settings = spec(epochs=3, early_stopping=EarlyStoppingSpec(patience=1))
    result = fit(toy_net(), spec=settings, keep="best or start", **toy)
    assert (result.epochs, result.best_epoch) == (1, 0)


@pytest.mark.parametrize(("losses", "best"), [([1.0, 1.0, 1.0], 3), ([1.0, 0.5, 0.7], 2), ([0.5, 0.5, 0.7], 2)])
def test_ties_go_to_the_lower_loss_then_the_later_epoch(
    toy: dict[str, Any], tmp_path: Path, losses: list[float], best: int
) -> None:
    left = iter(losses)
    toy["validate"] = lambda model: {"val_loss": next(left), "val_accuracy": 0.75}
    files = {"checkpoint": tmp_path / "last", "best": tmp_path / "best"}
    with pytest.raises(DiesHereError):  # the tie is broken the same way after a resume
        fit(toy_net(), spec=spec(), watcher=KillAt(6), **files, **toy)
    left = iter(losses[1:])
    assert fit(toy_net(), spec=spec(), resume=True, **files, **toy).best_epoch == best


@pytest.mark.parametrize("metric", ["val_balanced_accuracy", "val_macro_f1"])
def test_selection_and_stopping_by_scores_that_weigh_classes_equally(toy: dict[str, Any], metric: str) -> None:
    scores = iter([(0.9, 0.5), (0.8, 0.7), (0.95, 0.6), (0.96, 0.65)])
    toy["validate"] = lambda model: {"val_loss": 1.0, **dict(zip(("val_accuracy", metric), next(scores), strict=True))}
    settings = spec(epochs=9, select=metric, early_stopping=EarlyStoppingSpec(patience=2))
    result = fit(toy_net(), spec=settings, **toy)
    assert (result.best_epoch, result.epochs) == (2, 4)


def test_selection_by_loss_takes_the_lowest(toy: dict[str, Any]) -> None:
    losses = iter([3.0, 1.0, 2.0])
    toy["validate"] = lambda model: {"val_loss": next(losses), "val_accuracy": 0.5}
    assert fit(toy_net(), spec=spec(select="val_loss"), **toy).best_epoch == 2


def test_masks_are_held_after_every_step(toy: dict[str, Any]) -> None:
    model = toy_net()
    mask = (torch.arange(model[0].weight.numel()) % 2).view_as(model[0].weight).float()  # type: ignore[index]
    calls = 0

    def hold(net: nn.Module) -> None:
        nonlocal calls
        calls += 1
        with torch.no_grad():
            net[0].weight *= mask  # type: ignore[index]

    fit(model, spec=spec(), after_step=hold, **toy)
    assert calls == 12
    assert (model[0].weight[mask == 0] == 0).all()  # type: ignore[index]


def test_a_teacher_changes_what_is_learned(toy: dict[str, Any]) -> None:
    teacher, alone, taught = toy_net().eval(), toy_net(), toy_net()
    fit(alone, spec=spec(), **toy)
    fit(taught, spec=spec(), teacher=Teacher(teacher, weight=1.0), **toy)
    assert not same(alone.state_dict(), taught.state_dict())


def test_accumulation_equals_the_larger_batch_where_no_layer_mixes_samples(toy: dict[str, Any]) -> None:
    def plain() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))

    toy["data"] = ToyData(64)
    large, small = plain(), plain()
    constant = ScheduleSpec(name="constant")
    fit(large, spec=spec(batch_size=32, schedule=constant, optimizer=OptimizerSpec(lr=0.01)), **toy)
    fit(small, spec=spec(batch_size=16, accumulate=2, schedule=constant, optimizer=OptimizerSpec(lr=0.01)), **toy)
    for a, b in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_start_is_kept_where_no_epoch_is_better(toy: dict[str, Any]) -> None:
    learnt = toy_net()
    result = fit(learnt, spec=spec(), keep="best or start", **toy)
    assert result.best_epoch > 0
    again, before = copy.deepcopy(learnt), {k: v.clone() for k, v in learnt.state_dict().items()}
    ruinous, watcher = spec(optimizer=OptimizerSpec(lr=5.0)), KillAt(-1)
    result = fit(again, spec=ruinous, keep="best or start", watcher=watcher, **toy)
    assert result.best_epoch == 0
    assert same(before, again.state_dict())
    assert watcher.notes == ["no epoch was better than the starting weights, which are kept"]
    assert fit(copy.deepcopy(learnt), spec=ruinous, **toy).best_epoch > 0


def test_the_start_has_a_line_of_metrics_and_its_weights_are_kept(toy: dict[str, Any], tmp_path: Path) -> None:
    learnt, written = toy_net(), list[list[dict[str, Any]]]()
    fit(learnt, spec=spec(), **toy)
    model = copy.deepcopy(learnt)
    files = {"checkpoint": tmp_path / "last", "best": tmp_path / "best", "write_rows": written.append}
    start = {"keep": "best or start", "start_row": {"train_loss": 0.5}}
    ruinous = spec(optimizer=OptimizerSpec(lr=5.0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(DiesHereError):
        fit(learnt, spec=ruinous, watcher=KillAt(2), **start, **files, **toy)
    assert [row["epoch"] for row in written[-1]] == [0]
    assert written[-1][0]["train_loss"] == 0.5
    assert same(before, load_weights(tmp_path / "best")[0]), "a complete model, before any step"
    calls = toy["validate"].calls
    result = fit(model, spec=ruinous, resume=True, rows=written[-1], **start, **files, **toy)
    assert [row["epoch"] for row in result.rows] == [0, 1, 2, 3]
    assert toy["validate"].calls == calls + 3, "the start is not judged again"
    assert result.best_epoch == 0
    assert same(before, model.state_dict())


def test_the_line_of_the_start_survives_dying_before_the_next_checkpoint(toy: dict[str, Any], tmp_path: Path) -> None:
    """With the last weights kept and no score, the position right after the start is that of a fresh run."""
    toy["validate"] = lambda model: {"train_clean_accuracy": 0.5}
    written = list[list[dict[str, Any]]]()
    files = {"checkpoint": tmp_path / "last", "best": tmp_path / "best", "write_rows": written.append, "keep": "last"}
    with pytest.raises(DiesHereError):
        fit(toy_net(), spec=spec(), watcher=KillAt(1), start_row={"seconds": 1.5}, **files, **toy)
    result = fit(toy_net(), spec=spec(), resume=True, rows=written[-1], start_row={}, **files, **toy)
    assert [row["epoch"] for row in result.rows] == [0, 1, 2, 3]
    assert result.rows[0]["seconds"] == 1.5


def test_no_epochs_at_all_leave_the_start(toy: dict[str, Any]) -> None:
    model = toy_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = fit(model, spec=spec(epochs=0, probe={}), keep="best or start", start_row={}, **toy)
    assert (result.epochs, result.best_epoch, len(result.rows)) == (0, 0, 1)
    assert same(before, model.state_dict())


@pytest.mark.parametrize("end", [2, 3, 7])
def test_a_schedule_that_was_recut_on_the_way_is_repeated_by_its_recipe(toy: dict[str, Any], end: int) -> None:
    asked: list[int] = []

    def recut(epochs: int) -> int | None:
        asked.append(epochs)
        return end if epochs == 2 else None

    changed, planned = toy_net(), toy_net()
    result = fit(changed, spec=spec(epochs=5), recut=recut, **toy)
    assert result.epochs == end
    assert asked == list(range(1, end)) or asked == [1, 2]
    fit(planned, spec=spec(epochs=5, recut=[[2, end]]), **toy)
    assert same(changed.state_dict(), planned.state_dict())
    rates = [row["learning_rate"] for row in result.rows]
    plain = [row["learning_rate"] for row in fit(toy_net(), spec=spec(epochs=5), **toy).rows]
    assert rates[:2] == plain[:2]
    assert rates[-1] == pytest.approx(plain[-1], abs=0.006) or end == 2, "it still ends at the end of the schedule"


class Counting(ToyAugment):
    """Notes which batches it made: the number of the pass through the samples, and of the batch in it."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []

    def __call__(self, images: Tensor, targets: Tensor, **keys: Any) -> tuple[Tensor, Tensor]:
        self.made.append((keys["epoch"], keys["step"]))
        return super().__call__(images, targets, **keys)


@pytest.mark.parametrize(
    ("epochs", "until", "fields", "mixed"),
    [
        (5, 0.6, {}, 12), (5, 0.61, {}, 13), (1, 0.5, {}, 2), (1, 0.01, {}, 1), (4, 1.0, {}, 16),
        (2, 0.6, {"accumulate": 2}, 6),  # updates are wholly mixed or not at all
        (8, 0.625, {"recut": [[2, 4]]}, 12), (8, 0.63, {"recut": [[2, 4]]}, 13),  # the last epoch starts at 5 / 8
    ],
)  # fmt: skip
def test_the_last_steps_are_not_mixed(
    toy: dict[str, Any], epochs: int, until: float, fields: dict[str, Any], mixed: int
) -> None:
    mixing, unmixed = Counting(), Counting()
    result = fit(
        toy_net(), spec=spec(epochs=epochs, **fields),
        **{**toy, "augment": mixing, "unmixed": unmixed, "mix_until": until},
    )  # fmt: skip
    steps = [(epoch, step) for epoch in range(result.epochs) for step in range(4)]
    assert (mixing.made, unmixed.made) == (steps[:mixed], steps[mixed:])


@pytest.mark.parametrize("killed", [4, 6, 7, 8])
def test_an_epoch_whose_mixing_ends_resumes_bit_exactly(toy: dict[str, Any], tmp_path: Path, killed: int) -> None:
    class Brighter(ToyAugment):
        def __call__(self, *batch: Any, **keys: Any) -> tuple[Tensor, Tensor]:
            images, targets = super().__call__(*batch, **keys)
            return images + 0.3, targets

    whole, model = toy_net(), toy_net()
    of = {**toy, "unmixed": Brighter(), "mix_until": 0.75, "spec": spec(epochs=2, checkpoint_seconds=1e-9)}
    fit(whole, **of)
    files = {"checkpoint": tmp_path / "last", "best": tmp_path / "best"}
    with pytest.raises(DiesHereError):
        fit(toy_net(), watcher=KillAt(killed), **files, **of)
    fit(model, resume=True, **files, **of)
    assert same(whole.state_dict(), model.state_dict())


def test_sigterm_saves_and_exits_and_the_run_goes_on(toy: dict[str, Any], tmp_path: Path) -> None:
    whole = toy_net()
    fit(whole, spec=spec(), **toy)
    files = {"checkpoint": tmp_path / "last", "best": tmp_path / "best"}
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterruptedError, match=r"SIGTERM in epoch 2 after step 3.*--resume"):
        fit(toy_net(), spec=spec(), watcher=Signal(7), **files, **toy)
    assert signal.getsignal(signal.SIGTERM) is handler
    model = toy_net()
    fit(model, spec=spec(), resume=True, **files, **toy)
    assert same(whole.state_dict(), model.state_dict())


def test_an_epoch_that_cannot_be_shown_is_kept(toy: dict[str, Any], tmp_path: Path) -> None:
    class Closed(Watcher):
        def on_epoch(self, row: Mapping[str, Any]) -> None:
            raise BrokenPipeError

    files = {"checkpoint": tmp_path / "last", "best": tmp_path / "best"}
    with pytest.raises(BrokenPipeError):
        fit(toy_net(), spec=spec(), watcher=Closed(), **files, **toy)
    watcher = Watcher()
    fit(toy_net(), spec=spec(), resume=True, watcher=watcher, **files, **toy)
    assert watcher.epochs[0] == 2


@pytest.mark.parametrize("stop", [None, {"patience": 1, "min_delta": 9.0}])
def test_sigterm_in_the_last_epoch_stops_a_training_that_is_one_of_many(
    toy: dict[str, Any], tmp_path: Path, stop: dict[str, Any] | None
) -> None:
    wanted = spec(early_stopping=stop)
    whole = toy_net()
    result = fit(whole, spec=wanted, **toy)
    assert (result.epochs < wanted.epochs) == (stop is not None)
    for many in (False, True):
        parts = {"checkpoint": tmp_path / f"{many}", "best": tmp_path / f"best-{many}", "one_of_many": many}
        watcher, models = Signal(4 * result.epochs), [toy_net(), toy_net()]
        if many:
            with pytest.raises(TrainingInterruptedError, match=rf"SIGTERM after epoch {result.epochs}; .*--resume"):
                fit(models[0], spec=wanted, watcher=watcher, **parts, **toy)
        else:
            fit(models[0], spec=wanted, watcher=watcher, **parts, **toy)
        assert watcher.left == 0
        again = fit(models[1], spec=wanted, resume=True, **parts, **toy)
        assert again.epochs == result.epochs
        assert same(whole.state_dict(), models[1].state_dict())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("x: not enough memory: you tried"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_out_of_memory_says_what_to_do(toy: dict[str, Any], error: BaseException) -> None:
    class Full(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            raise error

    with pytest.raises(TrainingError, match=r"out of memory at train\.batch_size 16: halve it"):
        fit(Full(), spec=spec(batch_size=16), **toy)


@pytest.mark.parametrize(("why", "outlived"), [("[gloo] Connection closed by peer", True), ("another reason", False)])
def test_a_process_that_lost_another_outlives_the_signal_of_torchrun(why: str, outlived: bool) -> None:
    """It has yet to say why it ends."""
    code = f"""
import os, signal
from kitae.training.guards import SignalFlag
before = signal.getsignal(signal.SIGINT)
try:
    with SignalFlag():
        raise RuntimeError({why!r})
except RuntimeError as error:
    os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) == before
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == ((0, f"{why}\n") if outlived else (-signal.SIGTERM, "")), done.stderr


def test_a_handler_from_outside_of_python_is_left_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python names that of a program around it, such as R, None, and cannot set it again."""

    def set_handler(kind: int, handler: Any) -> None:
        if handler is None:
            raise TypeError("signal handler must be signal.SIG_IGN, signal.SIG_DFL, or a callable object")

    monkeypatch.setattr(signal, "getsignal", lambda kind: None)
    monkeypatch.setattr(signal, "signal", set_handler)
    with SignalFlag() as flag:
        assert flag.name is None


@pytest.mark.skipif(sys.platform != "linux", reason="where a program inherits its parent's peak")
def test_peak_memory_is_of_this_program_not_of_the_one_that_started_it() -> None:
    hoard = np.ones(10**9, np.uint8)
    code = (
        "import torch; from kitae.training.guards import peak_memory; import resource; "
        "print(peak_memory(torch.device('cpu')), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    own, inherited = map(int, subprocess.check_output([sys.executable, "-c", code]).split())
    assert own < len(hoard) <= inherited
    assert own > 5 * 10**7


def test_another_error_of_torch_is_not_about_memory(toy: dict[str, Any]) -> None:
    class Wrong(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        fit(Wrong(1, 2), spec=spec(batch_size=16), **toy)
