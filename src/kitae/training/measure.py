"""Timing of training steps, with the loop's own step and, whatever `train.progressive` says, at full size."""

from __future__ import annotations

import copy
import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kitae.errors import TrainingError
from kitae.training.batches import EpochShape
from kitae.training.checkpoint import Progress
from kitae.training.distributed import World
from kitae.training.guards import is_out_of_memory
from kitae.training.learner import Learner
from kitae.training.precision import Precision, candidates
from kitae.training.spec import TrainSpec

PARTS = ("forward", "backward", "optimizer", "other")


def step_times(
    model: nn.Module, spec: TrainSpec, images: Tensor, targets: Tensor, world: World, *,
    precisions: tuple[Precision, ...] | None = None, steps: int = 3, parts: bool = False,
) -> dict[Precision, NDArray[np.float64]]:  # fmt: skip
    """Seconds of training steps in each precision that stays finite, on copies of the model.

    The precisions take turns, so that other load on the machine affects all of them: step i of each runs close to step
    i of the others. The first step of each is a warm-up and is not counted. A precision that runs out of memory is left
    out.

    Args:
        images: float32 [N, C, H, W]; targets: float32 [N, K]; both on the device.
        precisions: those to try; None is all that the device can train in.
        parts: time the parts. On a GPU each is synchronised, so a step takes longer than in training.

    Returns:
        float64 [steps] of each precision; with `parts` [steps, 4], and the columns are `PARTS`: the network's forward
        pass; the loss, the backward pass and the gradient norm; the optimizer's step; the rest (schedule, averaged
        weights, checks). They add up to the step; steps that fp16 skips are left out.

    Raises:
        TrainingError: every precision runs out of memory, or none gives a finite loss.
    """
    # With a rate so small that a timing cannot diverge, whatever the weights and the rate of the recipe.
    optimizer = spec.optimizer.scaled(1e-6 / spec.optimizer.lr)
    spec = spec.model_copy(update={"optimizer": optimizer, "progressive": None})
    shape = EpochShape(len(images), 1, steps + 1, steps + 1)
    times: dict[Precision, list[float | list[float]]] = {name: [] for name in precisions or candidates(world.device)}
    learners = {name: Learner(copy.deepcopy(model).train(), spec, shape, world, name) for name in times}
    marks: list[float] = []

    def mark(*_: object) -> None:
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        marks.append(time.perf_counter())

    for learner in learners.values() if parts else ():
        learner.model.register_forward_pre_hook(mark)
        learner.model.register_forward_hook(mark)
        learner.optimizer.register_step_pre_hook(mark)
        learner.optimizer.register_step_post_hook(mark)
    for step in range(steps + 1):
        for name in tuple(times):
            marks.clear()
            try:
                with learners[name] as learner:
                    mark()
                    healthy = bool(learner.step(images, targets, Progress(step=step)).healthy)
                    mark()
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
            elif step and not parts:
                times[name].append(marks[1] - marks[0])
            elif step and healthy:  # else there is no optimizer's step
                start, forward, done, update, updated, end = marks
                times[name].append([done - forward, update - done, updated - update, forward - start + end - updated])
    if not any(times.values()):
        raise TrainingError("no precision gives a finite loss on the first batch: look at data.normalize")
    return {name: np.array(taken) for name, taken in times.items()}
