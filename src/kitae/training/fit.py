"""The training loop; read it from top to bottom.

    order of samples -> augment -> mix -> forward -> loss -> backward -> step -> schedule -> average -> log,
    and after each epoch: validate if it is due, keep the best, maybe stop, checkpoint.

Randomness has no state. The order of samples and their augmentation are keyed by (seed, epoch, sample), and torch's
generator, which dropout and stochastic depth use, is reseeded at every step from (seed, step, rank), and restored after
training. So weights + optimizer + position are the whole state of a run, and a run that was killed at any point and
resumed ends with the weights of an uninterrupted run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kitae.errors import TrainingDivergedError, TrainingInterruptedError
from kitae.files import plain, remove_unfinished
from kitae.training import distributed
from kitae.training.batches import Augmenter, EpochShape, TrainData, augmented_batches, epoch_shape
from kitae.training.checkpoint import Progress, load_checkpoint, load_weights, save_checkpoint, save_weights
from kitae.training.distributed import World
from kitae.training.guards import SignalFlag, memory_named, peak_memory
from kitae.training.learner import Learner, Step, Teacher
from kitae.training.precision import Precision
from kitae.training.schedule import share_done
from kitae.training.spec import TrainSpec, merit


class Watcher(Protocol):
    """Shows the progress of training; it cannot change anything."""

    def on_plan(self, epochs: int) -> None:
        """Called with the number of epochs, before the first one and when it changes."""

    def on_step(
        self, epoch: int, step: int, steps: int, loss: float, images_per_second: float, data_share: float
    ) -> None:
        """Called after a batch, on a GPU after every few; `data_share` of the time went to reading and augmenting."""

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Called after every epoch, with its line of metrics."""

    def note(self, text: str) -> None:
        """Called with a message for the user."""


class Unwatched:
    """A `Watcher` that shows nothing."""

    def on_plan(self, epochs: int) -> None: ...
    def on_step(self, *facts: Any) -> None: ...
    def on_epoch(self, row: Mapping[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...


Selection = Literal["best", "last", "best or start"]
"""Which weights a training returns; for the last choice, the start counts as an epoch."""


@dataclass(frozen=True)
class Source:
    """What a network learns from.

    Attributes:
        data, augment: see their protocols.
        validate: takes a model in eval mode and returns at least `val_loss` and `val_accuracy`, unless the last weights
            are kept regardless of scores. Every process calls it.
        class_weights: float32 [K], multiplies the loss of each class.
        layers: parameter names from stem to classifier, for `optimizer.layer_decay`.
        unmixed: the augmentation without mixing, which takes over at the fraction `mix_until` of the run.
    """

    data: TrainData
    augment: Augmenter
    validate: Callable[[nn.Module], Mapping[str, float]]
    class_weights: NDArray[np.float32] | None = None
    layers: Sequence[Sequence[str]] = ()
    unmixed: Augmenter | None = None
    mix_until: float = 1.0

    def batches(
        self, spec: TrainSpec, shape: EpochShape, world: World, epoch: int, first: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's batches of an epoch, both from 0, from number `first` on, as of `augmented_batches`."""
        mixed = shape.steps
        if self.unmixed is not None:
            before = epoch * shape.updates
            shares = (share_done(before + update, spec, shape.updates) for update in range(shape.updates))
            mixed = sum(share < self.mix_until for share in shares) * shape.accumulate
        for augment, begin, end in (
            (self.augment, first, mixed),
            (self.unmixed or self.augment, max(first, mixed), shape.steps),
        ):
            if begin < end:
                yield from augmented_batches(
                    self.data, augment, shape, world, seed=spec.seed, epoch=epoch, first=begin, end=end
                )


@dataclass(frozen=True)
class Tuning:
    """Options that fine-tuning adds to a training.

    Attributes:
        teacher: a model to learn from as well.
        after_step: called with the model after every optimizer step (pruning uses it to apply its masks).
        keep: which weights the model ends with, and are written as `best`: the best epoch's, the last one's (which
            need no score), or the best epoch's if it is at least as good as the start.
        start_row: fields of the metrics of epoch 0, in addition to the scores of the start; None writes no such line.
        recut: called by the main process after each epoch, with the number of epochs done; returns a new number of
            epochs to end with, or None.
        one_of_many: whether other trainings follow this one; a signal in the last epoch then raises an error, so that
            they do not start.
    """

    teacher: Teacher | None = None
    after_step: Callable[[nn.Module], None] | None = None
    keep: Selection = "best"
    start_row: Mapping[str, Any] | None = None
    recut: Callable[[int], int | None] | None = None
    one_of_many: bool = False


@dataclass(frozen=True)
class Record:
    """Where a training is saved.

    Attributes:
        checkpoint, best: files for the state and the best weights, both or neither; without them the best weights are
            only kept in memory.
        write_rows: called with all lines of metrics after each epoch. `rows` are those of earlier epochs when resuming.
        resume: resume from `checkpoint` if it exists.
        fingerprint: the fingerprint that a checkpoint must have to be resumed here.
    """

    checkpoint: Path | None = None
    best: Path | None = None
    write_rows: Callable[[Sequence[Mapping[str, Any]]], None] | None = None
    rows: Sequence[dict[str, Any]] = ()
    resume: bool = False
    fingerprint: str = ""


@dataclass(frozen=True)
class FitResult:
    """The result of a training; the model has the weights to keep. `best_epoch` 0 is the start."""

    epochs: int
    best_epoch: int
    rows: list[dict[str, Any]]


def fit(
    model: nn.Module,
    spec: TrainSpec,
    source: Source,
    world: World,
    precision: Precision,
    *,
    tuning: Tuning | None = None,
    record: Record | None = None,
    watcher: Watcher | None = None,
) -> FitResult:
    """Train `model` in place and leave its best weights in it.

    Args:
        model: on `world.device`.
        precision: already resolved.
        watcher: shows the progress, in the main process.

    Raises:
        DataError: the processes cannot share a batch, or there are fewer than two images for each.
        TrainingDivergedError: too many steps were not finite, or no score was.
        TrainingError: a checkpoint is damaged, or another recipe's.
        TrainingInterruptedError: after SIGTERM or SIGINT, once the state is saved (if there is a `checkpoint`).
    """
    tuning, record = tuning or Tuning(), record or Record()
    if watcher is None or not world.is_main:
        watcher = Unwatched()
    shape = epoch_shape(len(source.data), spec, world.size)
    learner = Learner(
        model, spec, shape, world, precision, layers=source.layers, class_weights=source.class_weights,
        teacher=tuning.teacher, after_step=tuning.after_step,
    )  # fmt: skip
    judged = learner.judged
    found = _resumed(learner, record, watcher) if record.resume else None
    at = found or Progress()
    best_state = _kept_state(judged, at, record)
    watcher.on_plan(spec.last_epoch)
    rows = [row for row in record.rows if row["epoch"] <= at.epoch] if found else []

    last = tuning.keep == "last"
    if (tuning.keep == "best or start" or tuning.start_row is not None) and not found:
        scores, fields = _judge(source, judged, world, at)
        at.best = merit(scores, spec.selection)
        _note_stop_value(at, scores, spec, -1)
        if tuning.start_row is not None:
            rows.append({"epoch": 0, "step": 0, **tuning.start_row, **fields, "learning_rate": 0.0})
            _keep_epoch(learner, at, rows, best_state if last or at.best is not None else None, record, watcher)
    stopped_early, validated = _should_stop(at, spec), -1
    with SignalFlag() as interrupted, memory_named(spec, record.checkpoint), learner:
        while at.epoch < spec.last_epoch and not stopped_early:
            model.train()
            meter = _Meter(at, world, shape.batch_size // world.size)
            batches = source.batches(spec, shape, world, at.epoch, at.step)
            while at.step < shape.steps:
                with meter.waiting():
                    images, targets = next(batches)
                step = learner.step(images, targets, at)
                at.step += 1
                meter.count(step)
                if not meter.settled(at.step == shape.steps, updated=at.step % shape.accumulate == 0):
                    continue
                if at.skipped >= spec.nan_limit:
                    raise TrainingDivergedError(
                        f"train.nan_limit: {at.skipped} steps had a loss or gradient that is not finite (epoch "
                        f"{at.epoch + 1}): train again with a lower train.optimizer.lr, train.clip_norm or "
                        "train.precision=fp32"
                    )
                watcher.on_step(
                    at.epoch, at.step, shape.steps, float(step.loss), meter.images_per_second, meter.data_share
                )

                # Save regularly inside a long epoch. Checkpoints do not contain accumulated gradients, and the end of
                # the epoch saves anyway.
                if at.step % shape.accumulate or at.step == shape.steps:
                    continue
                due = time.monotonic() - meter.last_save > spec.checkpoint_seconds
                stop_now, due = distributed.any_of([interrupted.name is not None, due], world)
                if stop_now or due:
                    _save(learner, at, meter, record)
                if stop_now:
                    raise _interruption(interrupted, f"in epoch {at.epoch + 1} after step {at.step}", record)

            # The epoch is over: validate, keep the best, maybe stop.
            distributed.share_buffers(judged, world)  # each process's BatchNorm has seen its own images only
            row = {"epoch": at.epoch + 1, "step": at.updates, **meter.row(), **_resources(at, world)}
            rows.append({**row, "learning_rate": learner.learning_rate})
            at.epoch, at.step, at.seen = at.epoch + 1, 0, 0
            at.loss_sum = at.correct_sum = at.seconds = 0.0
            better = None
            if spec.validated(at.epoch) == at.epoch:
                better, validated = _validated(learner, source, at, rows, last=last), at.epoch
                best_state = better or best_state
            _keep_epoch(learner, at, rows, better, record, watcher)
            if tuning.recut is not None and at.epoch < spec.last_epoch:
                end = distributed.from_main(tuning.recut(at.epoch) if world.is_main else None, world)
                if end is not None:
                    spec = learner.spec = spec.model_copy(update={"recut": (*spec.recut, (at.epoch, end))})
                    watcher.on_plan(end)
            stopped_early = _should_stop(at, spec)
            more = at.epoch < spec.last_epoch and not stopped_early
            if distributed.any_true(interrupted.name is not None, world) and more:
                raise _interruption(interrupted, f"after epoch {at.epoch}", record)

        # The minutes may end a training after an epoch that was not to be validated.
        cut_short = spec.recut[-1:] == ((at.epoch, at.epoch),)
        if cut_short and at.epoch % spec.validate_every and validated != at.epoch:
            better = _validated(learner, source, at, rows, last=last)
            best_state = better or best_state
            _keep_epoch(learner, at, rows, better, record, watcher)
        # After the last epoch of a run there is nothing left to stop. A fold is one of many, and so is a training
        # without a checkpoint, which is a fine-tuning.
        more = tuning.one_of_many or record.checkpoint is None
        if distributed.any_true(interrupted.name is not None, world) and more:
            raise _interruption(interrupted, f"after epoch {at.epoch}", record)

    if at.best is None and not last:
        raise TrainingDivergedError(
            f"{spec.selection} was never finite, so there is no best model: lower train.optimizer.lr or set "
            "train.clip_norm"
        )
    if at.best_epoch < 0 and spec.last_epoch and not last:
        watcher.note("no epoch was better than the starting weights, which are kept")
    model.load_state_dict(judged.state_dict() if last else best_state)
    model.eval()
    return FitResult(at.epoch, at.best_epoch + 1, rows)


_READ_EVERY = 25  # steps between two reads of a GPU's counters; each read waits for the GPU


class _Meter:
    """Sums and times of an epoch in this process.

    The sums stay on the device, so that counting does not wait for it. `settled` reads the counts into `at`: after
    every step on a CPU, every few steps on a GPU, whose host runs ahead.
    """

    def __init__(self, at: Progress, world: World, images: int) -> None:
        """`images`: of this process in every step."""
        self.at, self.world = at, world
        if world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(world.device)
        # Sum of losses, of target mass on the predicted classes, images seen, steps skipped; float64 counts exactly.
        self._sums = self._on_device([at.loss_sum, at.correct_sum, at.seen, at.skipped])
        self._skip = self._on_device([0.0, 0.0, 0.0, 1.0])
        self._step = self._on_device([images, 0.0])
        self._unread = 0
        self._started, self._waited, self.last_save = time.perf_counter() - at.seconds, 0.0, time.monotonic()
        self._resumed_seen, self._resumed_seconds = at.seen, at.seconds

    def _on_device(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.world.device)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as spent on reading and augmenting images."""
        asked = time.perf_counter()
        yield
        self._waited += time.perf_counter() - asked

    def count(self, step: Step) -> None:
        """Add a step to the sums, or count it as skipped."""
        sums = torch.stack([step.loss * self._step[0], step.correct])
        self._sums += torch.where(step.healthy, torch.cat([sums, self._step]), self._skip)
        self._unread += 1

    def settled(self, now: bool, *, updated: bool) -> bool:
        """Read the counts into `at` if they are due, or if `now`. Returns whether they were read.

        On a GPU they are due only after an optimizer step, since a checkpoint can be saved only then.
        """
        if self.world.device.type == "cuda" and not now and (self._unread < _READ_EVERY or not updated):
            return False
        self.at.seen, self.at.skipped = (int(count) for count in self._sums[2:].tolist())
        self.at.seconds = time.perf_counter() - self._started
        self._unread = 0
        return True

    @property
    def _spent(self) -> float:
        return max(self.at.seconds - self._resumed_seconds, 1e-9)

    @property
    def images_per_second(self) -> float:
        """Images per second of all processes, since the start of the epoch or the resume."""
        return (self.at.seen - self._resumed_seen) * self.world.size / self._spent

    @property
    def data_share(self) -> float:
        """The share of the time spent on reading and augmenting images."""
        return self._waited / self._spent

    def totals(self) -> tuple[float, float, int]:
        """Sums of loss and target mass, and images, of all processes."""
        loss, correct, count = distributed.all_sum(self._sums[:3].clone(), self.world).tolist()
        return loss, correct, int(count)

    def row(self) -> dict[str, Any]:
        """The training fields of the epoch's line of metrics."""
        loss, correct, seen = self.totals()
        return {
            "train_loss": plain(loss / seen) if seen else None,  # where every step was skipped
            "train_accuracy": correct / seen if seen else None,
            "images_per_second": self.images_per_second,
            "seconds": self.at.seconds,
            "data_share": self.data_share,
        }


def _judge(source: Source, judged: nn.Module, world: World, at: Progress) -> tuple[dict[str, float], dict[str, Any]]:
    """Validate: the scores, and the validation fields of the epoch's line of metrics."""
    judged.eval()
    began = time.perf_counter()
    scores = {name: float(value) for name, value in source.validate(judged).items()}
    # Processors may differ in the last bits, and all processes must stop after the same epoch.
    scores = distributed.from_main(scores, world)
    return scores, {**plain(scores), "validation_seconds": time.perf_counter() - began, **_resources(at, world)}


def _resources(at: Progress, world: World) -> dict[str, Any]:
    """The fields of a line of metrics that do not depend on a validation."""
    return {"peak_memory_bytes": peak_memory(world.device), "skipped_steps": at.skipped}


def _validated(
    learner: Learner, source: Source, at: Progress, rows: list[dict[str, Any]], *, last: bool
) -> dict[str, Tensor] | None:
    """Validate after `at.epoch` epochs, and add the scores to the last line of metrics.

    Returns:
        The weights, if they are the best so far; with `last` they always are.
    """
    judged, spec, row = learner.judged, learner.spec, rows[-1]
    scores, fields = _judge(source, judged, learner.world, at)
    _note_stop_value(at, scores, spec, at.epoch - 1)
    kept = {name: value for name, value in row.items() if name not in fields and name != "learning_rate"}
    rows[-1] = {**kept, **fields, "learning_rate": row["learning_rate"]}
    value = merit(scores, spec.selection)
    if not last and (value is None or (at.best is not None and value < at.best)):  # of equals, the later epoch
        return None
    at.best, at.best_epoch = value, at.epoch - 1
    return {name: tensor.detach().clone() for name, tensor in judged.state_dict().items()}


def _keep_epoch(
    learner: Learner, at: Progress, rows: Sequence[Mapping[str, Any]], best: Mapping[str, Tensor] | None,
    record: Record, watcher: Watcher,
) -> None:  # fmt: skip
    """Write the last line of metrics, the weights if they are the best so far, and the checkpoint; show the line."""
    if learner.world.is_main:
        if best is not None and record.best is not None:
            save_weights(best, record.best)
        if record.write_rows is not None:
            record.write_rows(rows)
    _save(learner, at, None, record)
    watcher.on_epoch(rows[-1])  # last: where it fails, as on a closed pipe, no epoch is lost


def _save(learner: Learner, at: Progress, meter: _Meter | None, record: Record) -> None:
    """Write the checkpoint, in the main process for all; between epochs `meter` is None."""
    if record.checkpoint is None:
        return
    world = learner.world
    loss, correct, seen = meter.totals() if meter is not None else (0.0, 0.0, 0)
    if world.is_main:
        at.scaler = learner.scaler.state_dict()
        whole = replace(at, loss_sum=loss, correct_sum=correct, seen=seen)
        save_checkpoint(record.checkpoint, whole, learner.modules, learner.optimizer, record.fingerprint)
    distributed.barrier(world)  # all processes wait until it is on the disk
    if meter is not None:
        meter.last_save = time.monotonic()


def _resumed(learner: Learner, record: Record, watcher: Watcher) -> Progress | None:
    """Load the checkpoint into the learner, and return its position; None if there is none."""
    if learner.world.is_main:
        for path in filter(None, (record.checkpoint, record.best)):
            remove_unfinished(path)
    if record.checkpoint is None or not record.checkpoint.exists():
        return None
    at, differences = load_checkpoint(record.checkpoint, learner.modules, learner.optimizer, record.fingerprint)
    learner.scaler.load_state_dict(at.scaler)
    if not learner.world.is_main:  # the main process continues with what all have summed of this epoch
        at.loss_sum, at.correct_sum, at.seen = 0.0, 0.0, 0
    for line in differences:
        watcher.note(line)
    return at


def _kept_state(judged: nn.Module, at: Progress, record: Record) -> dict[str, Tensor]:
    """The best weights so far: from the file after a resume, else the initial weights."""
    if record.resume and at.best is not None and record.best is not None:
        return load_weights(record.best)[0]
    return {name: tensor.clone() for name, tensor in judged.state_dict().items()}


def _interruption(flag: SignalFlag, where: str, record: Record) -> TrainingInterruptedError:
    saved = "nothing was saved" if record.checkpoint is None else "the state is saved; resume with --resume"
    return TrainingInterruptedError(f"stopped by {flag.name or 'another process'} {where}", saved)


def _note_stop_value(at: Progress, scores: Mapping[str, float], spec: TrainSpec, epoch: int) -> None:
    stop = spec.early_stopping
    if stop is None:
        return
    value = merit(scores, spec.selection if stop.metric == "auto" else stop.metric)
    if value is not None and (at.stop_value is None or value[0] > at.stop_value + stop.min_delta):
        at.stop_value, at.stop_epoch = value[0], epoch


def _should_stop(at: Progress, spec: TrainSpec) -> bool:
    if spec.early_stopping is None:
        return False
    return spec.validated(at.epoch) - 1 - at.stop_epoch >= spec.early_stopping.patience
