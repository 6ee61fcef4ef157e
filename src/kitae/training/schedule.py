"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from kitae.training.spec import ProgressiveSpec, ScheduleSpec, TrainSpec

_GRAIN = 4  # pixels between two sizes; the first step at each new size is slower
_PARTS = 100  # of a run, to average over
_MOMENTS = 1000  # of a run, to look at each size


def planned_step(step: int, spec: TrainSpec, steps_per_epoch: int) -> float:
    """The step of the planned schedule that corresponds to this step of a recut one, see `TrainSpec.recut`."""
    epochs = spec.epochs
    reached, at, end = 0.0, 0, epochs  # the planned epoch that is reached at epoch `at`, and the last one at `end`
    for after, new_end in spec.recut:
        if step < after * steps_per_epoch:
            break
        reached += (after - at) * (epochs - reached) / (end - at)
        at, end = after, new_end
    if at == 0:
        return step
    return (reached + (step / steps_per_epoch - at) * (epochs - reached) / max(end - at, 1)) * steps_per_epoch


def share_done(update: int, spec: TrainSpec, per_epoch: int) -> float:
    """The share of the planned run before this optimizer step, in [0, 1]; `per_epoch` as in `size_at`."""
    return planned_step(update, spec, per_epoch) / max(1, per_epoch * spec.epochs)


def rate_factor(step: float, *, spec: ScheduleSpec, steps_per_epoch: int, epochs: int) -> float:
    """The factor of the peak learning rate at this optimizer step.

    Args:
        step: from 0 to epochs * steps_per_epoch - 1; may be fractional if the schedule was recut.

    Returns:
        A factor in [0, 1]. Warm-up never starts at 0: its first step is one part of the ramp.
    """
    total = epochs * steps_per_epoch
    if spec.name == "one_cycle":
        peak = max(1.0, spec.peak_at * total)
        if step < peak:
            return (step + 1) / (peak + 1)
        return spec.final + (1 - spec.final) * (total - step) / (total - peak + 1)
    warmup = min(spec.warmup_epochs, epochs / 2) * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if spec.name == "constant":
        return 1.0
    if spec.name == "step":
        return spec.gamma ** sum(step >= milestone * total for milestone in spec.milestones)
    progress = (step - warmup) / max(1.0, total - warmup)
    return spec.final + (1 - spec.final) * 0.5 * (1 + math.cos(math.pi * progress))


def progressive_size(size: tuple[int, int], done: float, spec: ProgressiveSpec) -> tuple[int, int]:
    """The height and width of training images at this point of a run.

    Args:
        size: height and width at the end.
        done: the share of the run that is done, in [0, 1].
    """
    if done >= spec.until:
        return size
    share = spec.start + (1 - spec.start) * done / spec.until
    height, width = (min(side, max(1, round(side * share / _GRAIN)) * _GRAIN) for side in size)
    return height, width


def progressive_sizes(size: tuple[int, int], spec: ProgressiveSpec) -> list[tuple[int, int]]:
    """The heights and widths that training images have over a run, in their order; `size` is the last one."""
    return list(dict.fromkeys(progressive_size(size, part / _MOMENTS, spec) for part in range(_MOMENTS + 1)))


def size_at(full: tuple[int, int], update: int, spec: TrainSpec, per_epoch: int) -> tuple[int, int]:
    """The height and width of training images in an optimizer step.

    Args:
        full: height and width at the end.
        update: the number of the optimizer step, from 0. `per_epoch`: optimizer steps in an epoch.
    """
    if spec.progressive is None:
        return full
    return progressive_size(full, share_done(update, spec, per_epoch), spec.progressive)


def progressive_share(
    size: tuple[int, int], spec: ProgressiveSpec | None, begin: float = 0.0, end: float = 1.0
) -> float:
    """The mean number of pixels of training images over a part of a run, as a share of those at the end.

    Args:
        begin, end: of the part, as shares of the run.
    """
    if spec is None:
        return 1.0
    moments = (begin + (part + 0.5) / _PARTS * (end - begin) for part in range(_PARTS))
    sizes = (progressive_size(size, moment, spec) for moment in moments)
    return sum(height * width for height, width in sizes) / (_PARTS * size[0] * size[1])
