"""The training loop, read from top to bottom.

    order of samples -> augment -> mix -> forward -> loss -> backward -> step -> schedule -> average -> log,
    and after each epoch: validate, keep the best, maybe stop, checkpoint.

Nothing random has state. The order of samples and their augmentation are keyed by (seed, epoch, sample), and torch's
generator, which dropout and stochastic depth use, is seeded anew at every step from (seed, step, rank) inside a fork.
So weights + optimizer + position are the whole state of a run, and a run that was killed anywhere and resumed ends
with the weights of the run that was not.
"""

from __future__ import annotations

import contextlib
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kitae import keyed
from kitae.errors import DataError, TrainingError, TrainingInterruptedError
from kitae.training import distributed
from kitae.training.checkpoint import Progress, load_checkpoint, load_weights, save_checkpoint, save_weights
from kitae.training.distributed import World
from kitae.training.losses import distillation_loss, soft_cross_entropy, target_accuracy
from kitae.training.optim import AveragedWeights, build_optimizer, set_learning_rate
from kitae.training.precision import Precision, autocast, is_out_of_memory
from kitae.training.schedule import rate_factor
from kitae.training.spec import TrainSpec, merit


class TrainData(Protocol):
    """What the loop needs of the data."""

    def __len__(self) -> int:
        """Samples in an epoch."""

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The epoch's samples as keyed indices, int64 [len]."""

    def gather(self, index: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images uint8 [B, C, H, W] and labels int64 [B] of these indices."""


class Augmenter(Protocol):
    """What the loop needs of augmentation: keyed, from uint8 images and labels to float images and distributions."""

    def __call__(
        self, images: Tensor, targets: Tensor, *, epoch: int, index: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]: ...


class Watcher(Protocol):
    """Somebody who shows how it goes; it cannot change anything."""

    def on_step(
        self, epoch: int, step: int, steps: int, loss: float, images_per_second: float, data_share: float
    ) -> None:
        """After every batch; `data_share` is the part of the time spent on getting and augmenting images."""

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """After every epoch, with its line of metrics."""

    def note(self, text: str) -> None:
        """Something the user should know."""


@dataclass(frozen=True)
class Teacher:
    """Learn from another model as well: loss = (1 - weight) * loss + weight * distillation (Hinton et al. 2015)."""

    model: nn.Module
    weight: float = 0.5
    temperature: float = 4.0


Keep = Literal["best", "last", "best or start"]


@dataclass(frozen=True)
class FitResult:
    """How a training ended; the model holds the weights to keep by then. `best_epoch` 0 is the start."""

    epochs: int
    best_epoch: int
    best: float
    stopped_early: bool
    skipped_steps: int
    rows: list[dict[str, Any]] = field(default_factory=list)


def fit(
    model: nn.Module,
    *,
    spec: TrainSpec,
    data: TrainData,
    augment: Augmenter,
    validate: Callable[[nn.Module], Mapping[str, float]],
    world: World,
    precision: Precision,
    class_weights: NDArray[np.float32] | None = None,
    layers: Sequence[Sequence[str]] = (),
    teacher: Teacher | None = None,
    after_step: Callable[[nn.Module], None] | None = None,
    keep: Keep = "best",
    watcher: Watcher | None = None,
    write_rows: Callable[[Sequence[Mapping[str, Any]]], None] | None = None,
    rows: Sequence[dict[str, Any]] = (),
    checkpoint: Path | None = None,
    best: Path | None = None,
    resume: bool = False,
    fingerprint: str = "",
) -> FitResult:
    """Train `model` in place and leave its best weights in it.

    Args:
        model: on `world.device`.
        validate: from a model in eval mode to at least `val_loss` and `val_accuracy`. Every process calls it.
        precision: already resolved.
        keep: which weights `model` ends with: the best epoch's, the last one's, or the best epoch's if it is better
            than the start. A file of `best` weights is the best epoch's in any case.
        class_weights: float32 [K], multiplies the loss of each class.
        layers: parameter names from stem to classifier, for `optimizer.layer_decay`.
        after_step: called with the model after every optimizer step (pruning holds its masks with it).
        write_rows: gets all lines of metrics after each epoch. `rows` are those of earlier epochs when resuming.
        checkpoint, best: files to keep the state and the best weights in, both or neither; without them the best is
            kept in memory only.
        resume: go on from `checkpoint` if it exists.
        fingerprint: what a checkpoint must carry to be resumed here.

    Raises:
        DataError: the processes cannot share a batch, or there are fewer than two images for each.
        TrainingError: too many steps were not finite; a checkpoint is damaged or another recipe's.
        TrainingInterruptedError: after SIGTERM or SIGINT, once the state is saved (where there is a `checkpoint`).
    """
    device, seed = world.device, spec.seed
    shape = epoch_shape(len(data), spec, world.size)
    steps_per_epoch = shape.steps
    threads = torch.get_num_threads()

    optimizer = build_optimizer(model, spec.optimizer, layers)
    average = AveragedWeights(model, spec.ema) if spec.ema is not None else None
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    weight = None if class_weights is None else torch.from_numpy(class_weights).to(device)
    saved = "the state is saved: go on with --resume" if checkpoint is not None else "nothing of it is saved"
    judged = average.model if average else model  # whose weights are validated, kept and exported
    best_state = {name: tensor.clone() for name, tensor in judged.state_dict().items()}
    at = Progress()
    rows = list(rows)

    def save_state() -> None:
        if checkpoint is None:
            return
        # The main process saves for all: after a resume it goes on with what all have summed of this epoch.
        sums = [at.loss_sum, at.correct_sum, float(at.seen)]
        sums = distributed.all_sum(torch.tensor(sums, dtype=torch.float64, device=device), world).tolist()
        if world.is_main:
            at.scaler = scaler.state_dict()
            whole = replace(at, loss_sum=sums[0], correct_sum=sums[1], seen=int(sums[2]))
            save_checkpoint(
                checkpoint, progress=whole, model=model, ema=average.model if average else None, optimizer=optimizer,
                fingerprint=fingerprint, threads=threads,
            )  # fmt: skip
        distributed.barrier(world)  # nobody leaves before it is on the disk

    if resume and checkpoint is not None and checkpoint.exists():
        at, differences = load_checkpoint(
            checkpoint, model=model, ema=average.model if average else None, optimizer=optimizer,
            fingerprint=fingerprint, threads=threads,
        )  # fmt: skip
        scaler.load_state_dict(at.scaler)
        if not world.is_main:
            at.loss_sum, at.correct_sum, at.seen = 0.0, 0.0, 0
        if watcher:
            for line in differences:
                watcher.note(line)
        if at.best is not None and best is not None:
            best_state = {name: tensor.to(device) for name, tensor in load_weights(best)[0].items()}
    rows = rows[: at.epoch]

    forward: Callable[[Tensor], Tensor] = model
    if world.size > 1:
        forward = nn.parallel.DistributedDataParallel(
            model, device_ids=[device.index] if device.type == "cuda" else None
        )
    if spec.compile:
        forward = torch.compile(forward)
    floating_buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    buffers_before = [buffer.clone() for buffer in floating_buffers]

    stopped_early = _should_stop(at, spec)
    if keep == "best or start" and at.epoch == at.step == 0:
        judged.eval()
        at.best = merit(validate(judged), spec.selection)
    with _SignalFlag() as interrupted, memory_named(spec, checkpoint):
        while at.epoch < spec.epochs and not stopped_early:
            model.train()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            loss_sum = torch.tensor(at.loss_sum, dtype=torch.float64, device=device)
            correct_sum = torch.tensor(at.correct_sum, dtype=torch.float64, device=device)
            started, last_save, waited = time.perf_counter() - at.seconds, time.monotonic(), 0.0
            resumed_seen, resumed_seconds = at.seen, at.seconds
            order = data.order(seed, at.epoch)
            batches = _batches(order, data, augment, shape, at, world)

            while at.step < steps_per_epoch:
                asked = time.perf_counter()
                images, targets = next(batches)
                waited += time.perf_counter() - asked

                # Forward and loss. BatchNorm's statistics are kept aside: a skipped step must leave no trace.
                if floating_buffers:
                    torch._foreach_copy_(buffers_before, floating_buffers)
                number = at.epoch * steps_per_epoch + at.step
                with _torch_seeded(keyed.derive_seed(seed, world.rank, number, keyed.SLOT_STEP), device):
                    with autocast(precision, device):
                        logits = forward(images)
                        loss = soft_cross_entropy(logits, targets, smoothing=spec.label_smoothing, weight=weight)
                        if teacher is not None:
                            with torch.no_grad():
                                taught = teacher.model(images)
                            lesson = distillation_loss(logits, taught, teacher.temperature)
                            loss = (1 - teacher.weight) * loss + teacher.weight * lesson
                    scaler.scale(loss / shape.accumulate).backward()  # type: ignore[no-untyped-call]

                # Step, schedule, average.
                healthy = bool(torch.isfinite(loss.detach()))
                if (at.step + 1) % shape.accumulate == 0:
                    scaler.unscale_(optimizer)
                    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
                    # fp16's scaler looks at gradients itself, and overflows are normal while it seeks its scale.
                    if precision != "fp16" or scaler.get_scale() < 1:
                        healthy = healthy and bool(torch.isfinite(norm))
                    if distributed.any_true(not healthy, world):
                        healthy = False
                    else:
                        if spec.clip_norm is not None:
                            nn.utils.clip_grads_with_norm_(model.parameters(), spec.clip_norm, norm)
                        factor = rate_factor(
                            at.updates, spec=spec.schedule, steps_per_epoch=shape.updates, epochs=spec.epochs
                        )
                        set_learning_rate(optimizer, spec.optimizer.lr * factor)
                        scaler.step(optimizer)
                        if after_step is not None:
                            after_step(model)
                        if average is not None:
                            average.update(model, at.updates)
                    scaler.update()
                    optimizer.zero_grad(set_to_none=True)
                    at.updates += 1
                elif distributed.any_true(not healthy, world):
                    healthy = False
                    optimizer.zero_grad(set_to_none=True)

                if healthy:
                    loss_sum += loss.detach().double() * len(images)
                    correct_sum += target_accuracy(logits.detach(), targets).double().sum()
                    at.seen += len(images)
                else:
                    at.skipped += 1
                    if floating_buffers:
                        torch._foreach_copy_(floating_buffers, buffers_before)
                    if at.skipped >= spec.nan_limit:
                        raise TrainingError(
                            f"train.nan_limit: {at.skipped} steps had a loss or gradient that is not finite (epoch "
                            f"{at.epoch + 1}){_kept(checkpoint)}: lower train.optimizer.lr or set train.clip_norm, "
                            "train.precision=fp32"
                        )
                at.step += 1

                # Show, and save now and then inside a long epoch.
                at.seconds = time.perf_counter() - started
                if watcher and world.is_main:
                    spent = max(at.seconds - resumed_seconds, 1e-9)
                    speed = (at.seen - resumed_seen) * world.size / spent
                    watcher.on_step(at.epoch, at.step, steps_per_epoch, float(loss.detach()), speed, waited / spent)
                if at.step % shape.accumulate or at.step == steps_per_epoch:
                    continue  # half-accumulated gradients are in no checkpoint; the end of the epoch saves anyway
                due = time.monotonic() - last_save > spec.checkpoint_seconds
                stop_now, due = distributed.any_of([interrupted.name is not None, due], world)
                if stop_now or due:
                    at.loss_sum, at.correct_sum = float(loss_sum), float(correct_sum)
                    save_state()
                    last_save = time.monotonic()
                if stop_now:
                    who = interrupted.name or "another process"
                    raise TrainingInterruptedError(
                        f"stopped by {who} in epoch {at.epoch + 1} after step {at.step}", saved
                    )

            # The epoch is over: validate, keep the best, maybe stop.
            sums = distributed.all_sum(
                torch.stack([loss_sum, correct_sum, torch.tensor(float(at.seen), dtype=torch.float64, device=device)]),
                world,
            ).tolist()
            spent = max(at.seconds - resumed_seconds, 1e-9)
            judged.eval()
            distributed.share_buffers(judged, world)  # each process's BatchNorm has seen its own images only
            validation_started = time.perf_counter()
            scores = {name: float(value) for name, value in validate(judged).items()}
            row = {
                "epoch": at.epoch + 1,
                "step": at.updates,
                "train_loss": _finite(sums[0] / max(sums[2], 1)),
                "train_accuracy": sums[1] / max(sums[2], 1),
                **{name: _finite(value) for name, value in scores.items()},
                "learning_rate": optimizer.param_groups[-1]["lr"] / optimizer.param_groups[-1]["scale"],
                "images_per_second": (at.seen - resumed_seen) * world.size / spent,
                "seconds": at.seconds,
                "validation_seconds": time.perf_counter() - validation_started,
                "data_share": waited / spent,
                "peak_memory_bytes": _peak_memory(device),
                "skipped_steps": at.skipped,
            }
            rows.append(row)
            if watcher and world.is_main:
                watcher.on_epoch(row)
            value = merit(scores, spec.selection)
            if value is not None and (at.best is None or value >= at.best):  # of equals, the later epoch
                at.best, at.best_epoch = value, at.epoch
                best_state = {name: tensor.detach().clone() for name, tensor in judged.state_dict().items()}
                if best is not None and world.is_main:
                    save_weights(best_state, best)
            if spec.early_stopping is not None:
                metric = spec.selection if spec.early_stopping.metric == "auto" else spec.early_stopping.metric
                value = merit(scores, metric)
                wanted = -np.inf if at.stop_value is None else at.stop_value + spec.early_stopping.min_delta
                if value is not None and value[0] > wanted:
                    at.stop_value, at.stop_epoch = value[0], at.epoch
            at.epoch, at.step, at.seen = at.epoch + 1, 0, 0
            at.loss_sum = at.correct_sum = at.seconds = 0.0
            if write_rows is not None and world.is_main:
                write_rows(rows)
            save_state()
            stopped_early = _should_stop(at, spec)
            # After the last epoch of a run nothing is left to stop. A fine-tuning is one of many, and whoever began
            # them has to hear of it.
            more = at.epoch < spec.epochs or checkpoint is None
            if distributed.any_true(interrupted.name is not None, world) and more:
                who = interrupted.name or "another process"
                raise TrainingInterruptedError(f"stopped by {who} after epoch {at.epoch}", saved)

    if at.best is None:
        raise TrainingError(
            f"{spec.selection} was never finite, so there is no best model: lower train.optimizer.lr or set "
            "train.clip_norm"
        )
    if watcher and world.is_main and at.best_epoch < 0:
        watcher.note("no epoch was better than the start, which is kept")
    model.load_state_dict(judged.state_dict() if keep == "last" else best_state)
    model.eval()
    best_score = -at.best[0] if spec.selection == "val_loss" else at.best[0]
    return FitResult(at.epoch, at.best_epoch + 1, best_score, stopped_early, at.skipped, rows)


@dataclass(frozen=True)
class EpochShape:
    """How an epoch is cut: every update sees `batch_size * accumulate` samples, never fewer.

    Attributes:
        batch_size: samples in a batch, over all processes.
        accumulate: batches in an update.
        steps: batches in an epoch, a multiple of `accumulate`.
    """

    batch_size: int
    accumulate: int
    steps: int

    @property
    def updates(self) -> int:
        """Optimizer steps in an epoch."""
        return self.steps // self.accumulate


def epoch_shape(samples: int, spec: TrainSpec, processes: int) -> EpochShape:
    """Cut an epoch into full updates and drop the rest.

    A short batch would move the weights as far as a full one, on the word of a few samples, and BatchNorm would
    normalise by those few. The keyed order changes with every epoch, so no sample is left out for good. A set smaller
    than a batch shrinks the batch, and one with fewer batches than `accumulate` shrinks that.

    Raises:
        DataError: a batch that the processes cannot share, or fewer samples than two per process.
    """
    even = 2 * processes  # mixing pairs neighbours
    if spec.batch_size % even:
        raise DataError(
            f"train.batch_size: {spec.batch_size} must be a multiple of {even} for {processes} "
            f"{'processes' if processes > 1 else 'process'}"
        )
    if samples < even:
        raise DataError(f"data: {samples} training images are too few for {processes} process(es); {even} are needed")
    batch_size = min(spec.batch_size, samples - samples % even)
    batches = samples // batch_size
    accumulate = min(spec.accumulate, batches)
    return EpochShape(batch_size, accumulate, batches - batches % accumulate)


def _batches(
    order: NDArray[np.int64],
    data: TrainData,
    augment: Augmenter,
    shape: EpochShape,
    at: Progress,
    world: World,
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's augmented batches from `at.step` on.

    Every process takes an even block of the same order, so pairs that are mixed stay together.
    """
    epoch, first, steps = at.epoch, at.step, shape.steps

    def make(step: int) -> tuple[Tensor, Tensor]:
        own = shape.batch_size // world.size
        start = step * shape.batch_size + own * world.rank
        index = order[start : start + own]
        images, labels = (torch.from_numpy(array) for array in data.gather(index))
        if world.device.type == "cuda":
            images = images.pin_memory().to(world.device, non_blocking=True)
            labels = labels.pin_memory().to(world.device, non_blocking=True)
        images, targets = augment(images, labels, epoch=epoch, index=index)
        return images.to(world.device, non_blocking=True), targets.to(world.device, non_blocking=True)

    if world.device.type == "cpu":  # augmentation and the step share the cores, so a thread of its own gains nothing
        yield from map(make, range(first, steps))
        return
    ready: queue.Queue[Any] = queue.Queue(maxsize=2)
    closed = threading.Event()

    def produce() -> None:
        try:
            stream = torch.cuda.Stream(world.device)  # type: ignore[no-untyped-call]
            for step in range(first, steps):
                with torch.cuda.stream(stream):
                    batch = make(step)
                    done = stream.record_event()
                while not closed.is_set():
                    with contextlib.suppress(queue.Full):
                        ready.put((batch, done), timeout=0.1)
                        break
                if closed.is_set():
                    return
        except BaseException as error:
            ready.put((error, None))

    threading.Thread(target=produce, daemon=True).start()
    try:
        for _ in range(first, steps):
            batch, done = ready.get()
            if isinstance(batch, BaseException):
                raise batch
            torch.cuda.current_stream(world.device).wait_event(done)
            for tensor in batch[:2]:
                tensor.record_stream(torch.cuda.current_stream(world.device))
            yield batch
    finally:
        closed.set()


@contextlib.contextmanager
def _torch_seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's generator at this seed, and as it was afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def memory_named(spec: TrainSpec, checkpoint: Path | None = None) -> Iterator[None]:
    """Out of memory, on a GPU or not, as a line that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory at train.batch_size {spec.batch_size}{_kept(checkpoint)}: halve it and double "
            f"train.accumulate (now {spec.accumulate}), which updates as before"
        ) from error


def _kept(checkpoint: Path | None) -> str:
    return "; the last good checkpoint is kept" if checkpoint is not None and checkpoint.exists() else ""


def _should_stop(at: Progress, spec: TrainSpec) -> bool:
    return spec.early_stopping is not None and at.epoch - 1 - at.stop_epoch >= spec.early_stopping.patience


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU in this epoch, or of this process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Linux hands ru_maxrss down to the programs that a process starts; VmHWM begins anew.
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass  # not Linux; ru_maxrss is in KiB, on macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _SignalFlag:
    """While open, SIGTERM and SIGINT only leave their name here; the loop saves and stops at its next good moment."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _SignalFlag:
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGTERM, signal.SIGINT):
                self._before[kind] = signal.signal(kind, self._note)
        return self

    def _note(self, number: int, frame: object) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C means it
        self.name = signal.Signals(number).name

    def __exit__(self, *exception: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)
