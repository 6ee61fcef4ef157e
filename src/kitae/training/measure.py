"""Timing of training steps, with the loop's own step."""

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
        TrainingError: every precision runs out of memory.
    """
    shape = EpochShape(len(images), 1, steps + 1, steps + 1)
    left = dict.fromkeys(precisions or candidates(world.device))
    times: dict[Precision, list[float]] = {name: [] for name in left}
    learners = {name: Learner(copy.deepcopy(model).train(), spec, shape, world, name) for name in left}
    for step in range(steps + 1):
        for name in tuple(left):
            try:
                with learners[name] as learner:
                    start = time.perf_counter()
                    healthy = bool(learner.step(images, targets, Progress(step=step)).healthy)  # waits for a GPU too
                    taken = time.perf_counter() - start
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                healthy = False
                if len(left) == 1 and not any(times.values()):
                    raise TrainingError(
                        f"out of memory at train.batch_size {len(images)} in {name}: use a smaller one"
                    ) from error
            if not healthy and name != "fp16":  # fp16 overflows while it seeks its scale
                del left[name], learners[name]
            elif step:
                times[name].append(taken)
    return {name: taken for name, taken in times.items() if taken and name in left}


def step_parts(
    model: nn.Module, spec: TrainSpec, images: Tensor, targets: Tensor, world: World, precision: Precision,
    steps: int = 10,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of each part of `steps` training steps, on a copy of the model.

    Returns:
        `forward` (the network), `backward` (loss, backward pass, gradient norm), `optimizer` (its step), `other` (the
        rest: schedule, averaged weights, checks). One value per step; the parts add up to the step. On a GPU each part
        is synchronised, so a step takes longer here than in training.
    """
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
    return parts
