"""From the order of an epoch to augmented batches: how the epoch is cut, and who gets which part."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kitae.errors import DataError
from kitae.training.distributed import World
from kitae.training.spec import TrainSpec


class TrainData(Protocol):
    """What the loop needs of the data."""

    def __len__(self) -> int:
        """Samples in an epoch."""

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The epoch's samples as keyed indices, int64 [len]."""

    def gather(self, index: NDArray[np.int64], *, seed: int, epoch: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images uint8 [B, C, H, W] and labels int64 [B] of these indices, as `seed` and `epoch` draw them."""


class Augmenter(Protocol):
    """What the loop needs of augmentation: keyed, from uint8 images and labels to float images and distributions.

    `step` is the number of the batch in its epoch, the same in every process: what a whole batch draws together is
    keyed by it.
    """

    def __call__(
        self, images: Tensor, targets: Tensor, *, epoch: int, index: NDArray[np.int64], step: int
    ) -> tuple[Tensor, Tensor]: ...


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


def epoch_shape(samples: int, spec: TrainSpec, processes: int = 1) -> EpochShape:
    """Cut an epoch into full updates and drop the rest.

    A short batch would move the weights as far as a full one, on the evidence of a few samples, and BatchNorm would
    normalise by those few. The keyed order changes with every epoch, so no sample is left out for good. A set smaller
    than a batch shrinks the batch, and one with fewer batches than `accumulate` shrinks that. With `epoch_steps` an
    epoch ends earlier.

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
    updates = batches // accumulate
    if spec.epoch_steps is not None:
        updates = min(updates, spec.epoch_steps)
    return EpochShape(batch_size, accumulate, updates * accumulate)


def augmented_batches(
    data: TrainData, augment: Augmenter, shape: EpochShape, world: World, *, seed: int, epoch: int, first: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's batches of an epoch from number `first` on: images float [b, C, H, W], targets float32 [b, K].

    Every process takes an even block of the same order, so pairs that are mixed stay together. On a GPU, copying and
    augmentation run ahead on a stream of their own.
    """
    order = data.order(seed, epoch)

    def make(step: int) -> tuple[Tensor, Tensor]:
        own = shape.batch_size // world.size
        start = step * shape.batch_size + own * world.rank
        index = order[start : start + own]
        images, labels = (torch.from_numpy(array) for array in data.gather(index, seed=seed, epoch=epoch))
        if world.device.type == "cuda":
            images = images.pin_memory().to(world.device, non_blocking=True)
            labels = labels.pin_memory().to(world.device, non_blocking=True)
        images, targets = augment(images, labels, epoch=epoch, index=index, step=step)
        return images.to(world.device, non_blocking=True), targets.to(world.device, non_blocking=True)

    steps = range(first, shape.steps)
    # On a CPU augmentation and the step share the cores, so a thread of its own gains nothing.
    return map(make, steps) if world.device.type == "cpu" else _ahead(make, steps, world.device)


def _ahead(
    make: Callable[[int], tuple[Tensor, Tensor]], steps: range, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """`map(make, steps)`, two batches ahead, in a thread and on a stream of its own."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=2)
    closed = threading.Event()

    def produce() -> None:
        try:
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            for step in steps:
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
        for _ in steps:
            batch, done = ready.get()
            if isinstance(batch, BaseException):
                raise batch
            torch.cuda.current_stream(device).wait_event(done)
            for tensor in batch:
                tensor.record_stream(torch.cuda.current_stream(device))
            yield batch
    finally:
        closed.set()
