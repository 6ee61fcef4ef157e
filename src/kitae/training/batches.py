"""Splits an epoch into augmented batches, and divides them among processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kitae.errors import DataError
from kitae.training.distributed import World
from kitae.training.spec import TrainSpec

_AHEAD = 3  # batches that are made before they are asked for, on a GPU


class TrainData(Protocol):
    """The data that the loop reads."""

    def __len__(self) -> int:
        """Samples in an epoch."""

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The epoch's samples as keyed indices, int64 [len]."""

    def gather(self, index: NDArray[np.int64], *, seed: int, epoch: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images uint8 [B, C, H, W] and labels int64 [B] of these indices, as `seed` and `epoch` draw them."""


class Augmenter(Protocol):
    """The augmentation, as the loop needs it: keyed, from uint8 images and labels to float images and distributions.

    `step` is the number of the batch in its epoch, the same in every process: the key of what is drawn once per batch.
    """

    def __call__(
        self, images: Tensor, targets: Tensor, *, epoch: int, index: NDArray[np.int64], step: int
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class EpochShape:
    """How an epoch is divided: every update uses exactly `batch_size * accumulate` samples.

    Attributes:
        batch_size: samples in a batch, over all processes.
        accumulate: batches in an update.
        steps: batches in an epoch, a multiple of `accumulate`.
        pass_steps: batches in one pass through the samples, also a multiple; each pass has an order of its own.
    """

    batch_size: int
    accumulate: int
    steps: int
    pass_steps: int

    @property
    def updates(self) -> int:
        """Optimizer steps in an epoch."""
        return self.steps // self.accumulate

    @property
    def passes(self) -> int:
        """Number of passes through the samples that start in an epoch."""
        return -(-self.steps // self.pass_steps)


def epoch_shape(samples: int, spec: TrainSpec, processes: int = 1) -> EpochShape:
    """Divide an epoch into full updates and drop the rest.

    A short batch would change the weights as much as a full one, but based on a few samples, which BatchNorm would also
    normalise by. The keyed order changes with every epoch, so no sample is left out permanently. If the set is smaller
    than a batch, the batch becomes smaller; if it has fewer batches than `accumulate`, that becomes smaller. With
    `epoch_steps` an epoch is a part of a pass through the samples, or several passes.

    Raises:
        DataError: a batch that the processes cannot share, or fewer than two samples for each.
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
    per_pass = batches - batches % accumulate
    steps = per_pass if spec.epoch_steps is None else spec.epoch_steps * accumulate
    return EpochShape(batch_size, accumulate, steps, min(per_pass, steps))


def augmented_batches(
    data: TrainData, augment: Augmenter, shape: EpochShape, world: World, *, seed: int, epoch: int, first: int,
    end: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """This process's batches of an epoch: images float [b, C, H, W], targets float32 [b, K].

    Every process takes a block of even size of the same order, so mixed pairs stay together. On a GPU, augmentation and
    copying run ahead, in a separate thread and on a separate stream.

    Args:
        first, end: the number of the first batch, and of the one after the last; None is the end of the epoch.
    """
    orders: dict[int, NDArray[np.int64]] = {}

    def make(number: int) -> tuple[Tensor, Tensor]:
        drawn, step = divmod(number, shape.pass_steps)
        drawn += epoch * shape.passes  # the pass through the samples, the key of order and augmentation
        if drawn not in orders:
            orders.clear()
            orders[drawn] = data.order(seed, drawn)
        own = shape.batch_size // world.size
        start = step * shape.batch_size + own * world.rank
        index = orders[drawn][start : start + own]
        images, labels = (torch.from_numpy(array) for array in data.gather(index, seed=seed, epoch=drawn))
        # Uses the compiled executor for GPUs too: images are bit-identical on CPU and GPU, and 16 cores next to an H100
        # made 2 to 4 times as many at 32 px as the batched executor, and enough at 224 (benchmarks/results/gpu).
        batch = augment(images, labels, epoch=drawn, index=index, step=step)
        return _to_device(batch[0], world.device), _to_device(batch[1], world.device)

    steps = range(first, shape.steps if end is None else end)
    # On a CPU, augmentation and the step share the cores, so a separate thread would not help.
    return map(make, steps) if world.device.type == "cpu" else _ahead(make, steps, world.device)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _ahead(
    make: Callable[[int], tuple[Tensor, Tensor]], steps: range, device: torch.device, cuda: Any = torch.cuda
) -> Iterator[tuple[Tensor, Tensor]]:
    """`map(make, steps)`, a few batches ahead, in a separate thread and on a separate stream.

    Args:
        cuda: has `set_device`, `Stream`, `stream` and `current_stream`.
    """
    thread = ThreadPoolExecutor(1, "kitae-batches")
    try:
        # A new thread is on the first GPU, where it would take memory from that process.
        thread.submit(cuda.set_device, device).result()
        stream = thread.submit(cuda.Stream, device).result()

        def made(step: int) -> tuple[tuple[Tensor, Tensor], Any]:
            with cuda.stream(stream):
                return make(step), stream.record_event()

        left, ahead = iter(steps), deque[Future[Any]]()
        for _ in steps:
            ahead.extend(thread.submit(made, step) for step in islice(left, 1 + _AHEAD - len(ahead)))
            batch, done = ahead.popleft().result()
            current = cuda.current_stream(device)
            current.wait_event(done)
            for tensor in batch:
                tensor.record_stream(current)
            yield batch
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
