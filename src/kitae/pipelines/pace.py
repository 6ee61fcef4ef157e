"""How fast this machine is, and how many epochs fit into a time limit.

A plan measures a few steps and converts minutes into epochs and steps. The recipe then contains plain numbers, so a
slower machine takes longer but gets the same weights.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from timeit import timeit
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from kitae.errors import RecipeError, TrainingError
from kitae.evaluation.evaluate import predict_logits
from kitae.files import read_json, write_json
from kitae.models.folding import folded
from kitae.modes import evaluating
from kitae.pipelines.setup import FirstBatch, Setup
from kitae.recipe import Recipe
from kitae.run import Run
from kitae.training import distributed, precision
from kitae.training.batches import epoch_shape
from kitae.training.distributed import World
from kitae.training.fit import Watcher
from kitae.training.measure import step_times
from kitae.training.precision import Precision
from kitae.training.schedule import progressive_share, share_done
from kitae.training.spec import ProbeSpec, TrainSpec

_Plan = TypeVar("_Plan")

_STEPS = 3
_SHARE = 0.96  # share of the minutes that a plan fills; the rest is a reserve
_EARLY = 0.03  # a training that ends within this share of the minutes, early or late, is not recut
_AFTER = 0.8  # time for files and pages at the end, as a multiple of the start-up time
_PAGES = 0.2  # a fold writes no page, so its end takes this share of the time
_UNUSED = 0.5  # a plan that leaves more than this share of the minutes unused is measured again
_MEASURED_AGAIN = 2  # how often it is measured again at most
_JUDGING = 0.2  # share of the training time that validation may take

SHORT_EPOCH = 25  # steps of an epoch at least, where there is time for a few
# An epoch must be a small part of the minutes, since only whole ones can be added or left out where the pace changes.
MOST_EPOCHS, FEWEST_EPOCHS = 15, 6
_SHORTEST_EPOCH = 12  # steps
FEWEST_STEPS = 20  # fewer steps are useless
# Fine-tuning is worse than its probe at first. After 60 steps it was better on three of five splits; on TrashNet, where
# it was not, the probe is kept (LOG.md, 2026-11-29). A plan wants more of them, but where the probe is there already,
# these cost nothing but the time that is left.
FEWEST_TUNING_STEPS = 60


@dataclass(frozen=True)
class Clock:
    """The minutes of a command.

    Attributes:
        seconds: of the whole command.
        begun: start time, from `time.monotonic`.
        starting: seconds that loading took; used to estimate what is not timed.
        most: limit of training steps; None is the recipe's number.
    """

    seconds: float
    begun: float
    starting: float
    most: int | None = None

    @classmethod
    def of(cls, minutes: float, begun: float) -> Clock:
        """A clock of this many minutes, started at `begun`.

        Raises:
            RecipeError: they are not a number above 0.
        """
        seconds = 60 * float(minutes) if isinstance(minutes, int | float | np.integer | np.floating) else math.nan
        if not 0 < seconds < math.inf:
            raise RecipeError(f"minutes: {minutes!r}: must be a number above 0")
        return cls(seconds, begun, time.monotonic() - begun)

    @property
    def after(self) -> float:
        """Seconds for files and pages at the end, estimated from the start-up time."""
        return _AFTER * self.starting

    @property
    def left(self) -> float:
        """Seconds until the end that a plan may fill."""
        return self.begun + _SHARE * self.seconds - time.monotonic()

    def resumed(self, rows: Sequence[Mapping[str, Any]]) -> Clock:
        """The clock of a run that is resumed, less the time of the epochs that it has; `rows` as in `Run.metrics`."""
        taken = sum(row["seconds"] + row.get("validation_seconds", 0.0) for row in rows)
        return replace(self, begun=self.begun - taken)

    def share(self, runs: int) -> Clock:
        """The clock of a fold that is one of `runs` runs, with an equal share of the time left, if there is any."""
        now = time.monotonic()
        seconds = max(0.0, self.begun + self.seconds - now) / runs
        return replace(self, seconds=seconds, begun=now, starting=_PAGES * self.starting)


def process_begun() -> float:
    """The start time of this process, by `time.monotonic`; the current time if the system does not tell."""
    now = time.monotonic()
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return now


@dataclass(frozen=True)
class Pace:
    """Seconds per image at a certain image size.

    Attributes:
        pixels: height times width.
        judge: a forward pass in float32, as in evaluation.
        feature: a forward pass in the training's precision, with BatchNorm folded on a CPU.
        step: a training step.
    """

    pixels: int
    judge: float
    feature: float
    step: float

    def at(self, pixels: int) -> Pace:
        """The pace at another size, assuming that the time is proportional to the number of pixels."""
        ratio = pixels / self.pixels
        return Pace(pixels, self.judge * ratio, self.feature * ratio, self.step * ratio)


def pace_of(
    model: nn.Module, train: TrainSpec, world: World, shape: Sequence[int], classes: int, images: int,
    before: Pace | None = None,
) -> Pace:  # fmt: skip
    """The pace of a network on images [C, H, W] of random pixels; the network is left as it was.

    Args:
        images: number of images in a measured batch.
        before: the pace at another size; its training step is scaled like the forward pass instead of measured.
    """
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, *shape), np.uint8)
    inputs = torch.from_numpy(pixels).to(world.device).float().div(255).sub(0.5).div(0.25)
    if train.channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    chosen: Precision = precision.choose(world.device) if train.precision == "auto" else train.precision
    step = 0.0
    if before is None:
        targets = nn.functional.one_hot(torch.arange(images, device=world.device) % classes, classes).float()
        steps = step_times(model, train, inputs, targets, world, precisions=(chosen,), steps=_STEPS)[chosen]
        step = float(steps.mean()) / images  # not the median: slow steps on a busy machine will happen again

    def judge() -> None:
        predict_logits(
            model, lambda rows: (pixels[rows], np.zeros(len(rows), np.int64)), np.arange(images), device=world.device
        )

    network = folded(model, lambda network: network(inputs[:2])) if world.device.type == "cpu" else model

    def feature() -> None:  # as `probe` computes them
        with evaluating(network), torch.no_grad(), precision.inference(network, chosen, world.device):
            network(inputs)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)

    times = []
    for call in (judge, feature):
        call()  # compiles what has to be
        times.append(timeit(call, number=_STEPS) / _STEPS / images)
    if before is not None:
        step = before.step * times[1] / before.feature
    return Pace(shape[1] * shape[2], times[0], times[1], step)


class Length(NamedTuple):
    """The length of a training, as in `TrainSpec`: steps of an epoch, and epochs from one validation to the next."""

    epochs: int
    steps: int
    every: int = 1

    @property
    def validations(self) -> int:
        return math.ceil(self.epochs / self.every)


NO_STEPS = Length(0, 0)
"""Too little time to train."""


def cut(steps: int, per_pass: int, judging: float, step: float) -> Length:
    """About `steps` steps in all, in epochs that are few, and few of them validated, so that this takes little time.

    A training can be shortened or extended only by whole epochs, so there are several where it is long enough.

    Args:
        per_pass: steps of one pass through the training images.
        judging: seconds of a validation. `step`: seconds of a step.
    """
    if steps < FEWEST_STEPS:
        return NO_STEPS
    epochs = round(steps / max(per_pass, SHORT_EPOCH))
    epochs = min(max(epochs, FEWEST_EPOCHS), MOST_EPOCHS, steps // _SHORTEST_EPOCH)
    affordable = min(epochs, _JUDGING * steps * step / judging) if judging > 0 else epochs
    return Length(epochs, steps // epochs, math.ceil(epochs / max(1, int(affordable))))


def most_steps(images: int, batch: int, *, patient: bool, pretrained: bool) -> int:
    """The number of steps beyond which training gains little: less if no minutes were given, more from scratch."""
    per_pass = max(1, images // batch)
    if pretrained:
        return max(1000, 25 * per_pass) if patient else max(300, 12 * per_pass)
    return max(3000, 100 * per_pass) if patient else max(600, 40 * per_pass)


def head_seconds(images: int, classes: int) -> float:
    """Seconds of the probe's regression: a few hundred evaluations of two products each, for all folds and strengths.

    637 evaluations took 3.4 s for 2,160 images of 10 classes.
    """
    products = 4 * images * min(images, 1280) * classes
    return 1000 * (5e-4 + products / (2.5e10 if classes < 16 else 5e10))


def fill(seconds: float, batch_size: int, per_pass: int, judging: float, step: float, most: int) -> Length:
    """The length that fills the seconds with training and validation, with at most `most` steps.

    Args:
        batch_size: images in a step. `step`: seconds of an image in it. The others are as of `cut`.
    """
    step *= batch_size
    length = cut(min(most, int(seconds / step)), per_pass, judging, step)
    # Fewer steps can have more validations, where the epochs are fewer too.
    while length.epochs and length.epochs * length.steps * step + length.validations * judging > seconds:
        room = int((seconds - length.validations * judging) / step)
        length = cut(min(room, length.epochs * length.steps - 1), per_pass, judging, step)
    return length


def replan(plan: Callable[[], _Plan], unused: Callable[[_Plan], float], clock: Clock, world: World) -> _Plan:
    """The result of `plan`, repeated with new measurements while it leaves most of the minutes unused.

    So a busy moment of the machine does not waste the minutes. The main process decides for all processes.
    """
    made = plan()
    for _ in range(_MEASURED_AGAIN):
        if distributed.from_main(unused(made) <= _UNUSED * clock.seconds, world):
            break
        made = plan()
    return made


class Reserve(NamedTuple):
    """Seconds of what follows training, and of a validation until the first one has been measured."""

    end: float
    judging: float


def fitted(
    recipe: Recipe, setup: Setup, model: nn.Module, clock: Clock, world: World, begun: bool = False
) -> tuple[Recipe, Reserve]:
    """The recipe with the epochs and steps that fit into the time left, and what to reserve of it.

    Called right before the first step of training, so the pace is measured with the real network, on real images, and
    under the current load of the machine.

    Args:
        begun: a training that is resumed keeps its length, so the pace is measured only once, for the end.
    """
    spec = recipe.train.straightened()
    shape = epoch_shape(len(setup.images), spec, world.size)
    # Each process has its part of a batch and of the validation, so an image takes a part of the time.
    batch = FirstBatch(setup, shape.batch_size // world.size, world)
    drawn, _ = batch.make()  # compiles what has to be
    drawing = timeit(batch.make, number=1) / len(drawn)
    share = progressive_share((drawn.shape[2], drawn.shape[3]), spec.progressive)
    each = shape.batch_size * shape.accumulate
    per_pass = len(setup.images) // each
    own = Length(spec.epochs, spec.epoch_steps or shape.updates, spec.validate_every)
    most = clock.most if clock.most is not None else own.epochs * own.steps

    def plan() -> tuple[Length, Reserve]:
        """The length, and what to reserve, at the current pace."""
        pace = pace_of(model, spec, world, drawn.shape[1:], len(setup.store.classes), len(drawn))
        judge = pace.at(int(np.prod(setup.store.rules.size))).judge
        judging, step = judge * setup.judged / world.size, (share * pace.step + drawing) / world.size
        reserve = Reserve(judge * setup.passes_at_end + clock.after, judging)
        room = clock.left - reserve.end - judging
        if clock.most is None and own.epochs * own.steps * each * step + own.validations * judging <= room:
            return own, reserve  # that was asked for
        return fill(room, each, per_pass, judging, step, most), reserve

    if begun:
        return recipe, plan()[1]
    if not isinstance(spec.probe, ProbeSpec):
        length, reserve = plan()
        length = length if length.epochs else Length(1, min(FEWEST_STEPS, most))
    else:
        fewest = min(most, FEWEST_TUNING_STEPS)

        def unused(made: tuple[Length, Reserve]) -> float:
            return 0 if made[0].epochs * (made[0].steps + 1) > fewest else clock.left

        length, reserve = replan(plan, unused, clock, world)
        if length.epochs * (length.steps + 1) <= fewest:
            length = NO_STEPS  # there is only time for the probe
    given = clock.most is None and length[:2] == own[:2]  # and is kept as it was given
    update = {
        "epoch_steps": spec.epoch_steps if given else length.steps or None,
        "validate_every": max(length.every, spec.validate_every) if length.epochs else 1,
    }
    train = spec.stretched(length.epochs).model_copy(update=update)
    return recipe.model_copy(update={"train": train}), reserve


def remember_length(run: Run) -> None:
    """Save the length that was asked for, since the minutes change the one in the recipe."""
    if not run.asked_length.is_file():  # a run that was killed before its first epoch has it
        write_json(run.asked_length, _length(run.recipe.train.straightened()))


def as_long_as(run: Run, recipe: Recipe, clock: Clock) -> Recipe:
    """The recipe with the run's length, if the minutes derived it from the recipe's: the same command resumes the run.

    For a plan, the minutes choose the length (`clock.most`). Any other length must be the one the run was asked for.
    """
    if clock.most is None and not _asked(run, recipe.train):
        return recipe
    saved = run.recipe.train
    schedule = recipe.train.schedule.model_copy(update={"warmup_epochs": saved.schedule.warmup_epochs})
    same = ("epochs", "epoch_steps", "validate_every", "recut")
    probe, fewer = recipe.train.probe, saved.probe
    if isinstance(probe, ProbeSpec) and isinstance(fewer, ProbeSpec):  # where there was no time for more
        least = {name: min(getattr(probe, name), getattr(fewer, name)) for name in ("views", "limit")}
        probe = probe.model_copy(update=least)
    update = {**{name: getattr(saved, name) for name in same}, "schedule": schedule, "probe": probe}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=update)})


def _asked(run: Run, spec: TrainSpec) -> bool:
    """Whether the minutes changed the length of a run, and this is the one that was asked for."""
    if not run.asked_length.is_file():
        return False
    saved = _length(run.recipe.train)
    asked = read_json(run.asked_length, *saved, error=TrainingError)
    # Field by field, for a command that names the run's data: it sets some fields in the recipe of the run folder.
    return any(
        all(value in (asked[name], saved[name]) for name, value in _length(given).items())
        for given in (spec, spec.straightened())
    )


def _length(spec: TrainSpec) -> dict[str, Any]:
    own = {name: getattr(spec, name) for name in ("epochs", "epoch_steps", "validate_every")}
    return {**own, "warmup_epochs": spec.schedule.warmup_epochs}


class Recutter:
    """Shortens or extends the rest of a schedule if the machine turns out to be slower or faster than measured.

    It is the `recut` of `training.fit.Tuning`. Its decisions are saved in the run's recipe, so that the recipe repeats
    the run, and a resumed run follows them.
    """

    def __init__(self, run: Run, clock: Clock, reserve: Reserve, watcher: Watcher) -> None:
        self._run, self._clock, self._reserve, self._watcher = run, clock, reserve, watcher
        self._last: float | None = None

    def __call__(self, epochs: int) -> int | None:
        """A new last epoch after `epochs` of them; None if the schedule still fits."""
        now, rows = time.monotonic(), self._run.metrics()
        # Not since the training began: that time may include validating the start.
        epoch = float(rows[-1]["seconds"])
        if self._last is not None:
            epoch = now - self._last - float(rows[-1].get("validation_seconds", 0.0))
        self._last = now
        validated = (float(row["validation_seconds"]) for row in rows[::-1] if "validation_seconds" in row)
        judging = next(validated, self._reserve.judging)
        spec = self._run.recipe.train
        # The time of a later epoch is between these where its pictures are larger: by pixel, small ones are slower.
        times = epoch, epoch * self._growth(epochs, rows[-1])

        def needed(end: int, each: float) -> float:
            """Seconds until the end of a training of this many epochs."""
            return (end - epochs) * each + spec.validations(end, epochs) * judging

        planned = spec.last_epoch
        left = self._clock.begun + self._clock.seconds - now - self._reserve.end
        if any(abs(left - needed(planned, each)) < _EARLY * self._clock.seconds for each in times):
            return None
        longest = planned
        if self._clock.most is not None and spec.epoch_steps:
            longest = max(epochs, self._clock.most // spec.epoch_steps)
        soon, late = (
            next((end for end in range(longest, epochs, -1) if needed(end, each) <= left), epochs) for each in times
        )
        fitting = max(late, min(planned, soon))
        if fitting == planned:
            return None
        spec = spec.model_copy(update={"recut": (*spec.recut, (epochs, fitting))})
        self._run.resolve(self._run.recipe.model_copy(update={"train": spec}))
        self._watcher.note(
            f"training is {'slower' if fitting < planned else 'faster'} than measured before: {fitting} epochs "
            f"instead of {planned} (saved as train.recut in the recipe)"
        )
        return fitting

    def _growth(self, epochs: int, row: Mapping[str, Any]) -> float:
        """The mean time of the epochs after `epochs` over that of the last one, whose line of metrics is `row`."""
        spec = self._run.recipe.train
        if spec.progressive is None:
            return 1.0
        share = partial(progressive_share, self._run.rules.size, spec.progressive)
        before, done = share_done(epochs - 1, spec, 1), share_done(epochs, spec, 1)
        data: float = row["data_share"]  # of the time: augmentation is at full size
        return data + (1 - data) * share(done) / share(before, done)
