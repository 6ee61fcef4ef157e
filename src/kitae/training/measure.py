"""Timing of training steps, with the loop's own step and, whatever `train.progressive` says, at full size."""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor, nn

from kitae.errors import TrainingError
from kitae.training.batches import EpochShape
from kitae.training.checkpoint import Progress
from kitae.training.distributed import World
from kitae.training.guards import is_out_of_memory
from kitae.training.learner import Learner
from kitae.training.precision import Precision, candidates
from kitae.training.spec import TrainSpec

_NOT_FINITE = "no precision gives a finite loss on the first batch: look at data.normalize"


def step_times(
    model: nn.Module, spec: TrainSpec, images: Tensor, targets: Tensor, world: World, *,
    precisions: tuple[Precision, ...] | None = None, steps: int = 3,
) -> dict[Precision, list[float]]:  # fmt: skip
    """Seconds of `steps` training steps in each precision that stays finite, on copies of the model.

    The precisions take turns, so that other load on the machine affects all of them: step i of each runs close to step
    i of the others. The first step of each is a warm-up and is not counted. A precision that runs out of memory is left
    out.

    Args:
        images: float32 [N, C, H, W]; targets: float32 [N, K]; both on the device.
        precisions: those to try; None is all that the device can train in.

    Raises:
        TrainingError: every precision runs out of memory, or none gives a finite loss.
    """
    shape, spec = EpochShape(len(images), 1, steps + 1, steps + 1), _timed(spec)
    times: dict[Precision, list[float]] = {name: [] for name in precisions or candidates(world.device)}
    learners = {name: Learner(copy.deepcopy(model).train(), spec, shape, world, name) for name in times}
    for step in range(steps + 1):
        for name in tuple(times):
            try:
                with learners[name] as learner:
                    start = time.perf_counter()
                    healthy = bool(learner.step(images, targets, Progress(step=step)).healthy)  # waits for a GPU too
                    taken = time.perf_counter() - start
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(times) == 1:
                    raise TrainingError(
                        f"out of memory at train.batch_size {len(images)} in {name}: use a smaller one"
                    ) from error
                del times[name], learners[name]
                continue
            if not healthy and name != "fp16":  # fp16 overflows while it seeks its scale
                del times[name], learners[name]
            elif step:
                times[name].append(taken)
    if not times:
        raise TrainingError(_NOT_FINITE)
    return times


def step_parts(
    model: nn.Module, spec: TrainSpec, images: Tensor, targets: Tensor, world: World, precision: Precision,
    steps: int = 10,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of each part of `steps` training steps, on a copy of the model.

    Returns:
        `forward` (the network), `backward` (loss, backward pass, gradient norm), `optimizer` (its step), `other` (the
        rest: schedule, averaged weights, checks). One value per step; the parts add up to the step. On a GPU each part
        is synchronised, so a step takes longer here than in training.

    Raises:
        TrainingError: no step gives a finite loss.
    """
    spec = _timed(spec)
    network = copy.deepcopy(model).train()
    learner = Learner(network, spec, EpochShape(len(images), 1, steps + 1, steps + 1), world, precision)
    marks: list[float] = []

    def mark(*_: object) -> None:
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        marks.append(time.perf_counter())

    handles = [
        network.register_forward_pre_hook(mark), network.register_forward_hook(mark),
        learner.optimizer.register_step_pre_hook(mark), learner.optimizer.register_step_post_hook(mark),
    ]  # fmt: skip
    parts: dict[str, list[float]] = {"forward": [], "backward": [], "optimizer": [], "other": []}
    try:
        with learner:
            for step in range(steps + 1):
                marks.clear()
                mark()
                learner.step(images, targets, Progress(step=step))
                mark()
                if step and len(marks) == 6:  # a step that is skipped has no optimizer step
                    start, forward, done, update, updated, end = marks
                    parts["forward"].append(done - forward)
                    parts["backward"].append(update - done)
                    parts["optimizer"].append(updated - update)
                    parts["other"].append(forward - start + end - updated)
    finally:
        for handle in handles:
            handle.remove()
    if not parts["forward"]:
        raise TrainingError(_NOT_FINITE)
    return parts


def _timed(spec: TrainSpec) -> TrainSpec:
    """The spec at full size, with a rate so small that a timing cannot diverge, whatever the weights and its rate."""
    return spec.model_copy(update={"optimizer": spec.optimizer.scaled(1e-6 / spec.optimizer.lr), "progressive": None})
