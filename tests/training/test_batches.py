"""An epoch's batches: what each process gets, and what augmentation is keyed by."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kitae.training.batches import _ahead, augmented_batches, epoch_shape
from kitae.training.distributed import World
from kitae.training.spec import TrainSpec
from tests.training.toy_world import ToyData


class Seen:
    """Records the keys of each call."""

    def __init__(self) -> None:
        self.keys: list[tuple[int, int, list[int]]] = []

    def __call__(
        self, images: Tensor, targets: Tensor, *, epoch: int, index: NDArray[np.int64], step: int
    ) -> tuple[Tensor, Tensor]:
        self.keys.append((epoch, step, index.tolist()))
        return images, targets


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("first", [0, 2])
def test_processes_share_a_step_of_the_keyed_order(size: int, first: int) -> None:
    data, shape = ToyData(70), epoch_shape(70, TrainSpec(batch_size=16), size)
    seen = []
    for rank in range(size):
        augment = Seen()
        world = World(rank, size, torch.device("cpu"))
        batches = list(augmented_batches(data, augment, shape, world, seed=5, epoch=3, first=first))
        assert len(batches) == shape.steps - first == 4 - first
        seen.append(augment.keys)
    order = data.order(5, 3)
    for place, step in enumerate(range(first, 4)):
        assert {(keys[place][0], keys[place][1]) for keys in seen} == {(3, step)}
        together = [row for keys in seen for row in keys[place][2]]
        assert together == order[step * 16 : step * 16 + 16].tolist()


class Cuda:
    """Stands for torch.cuda: notes what happens on which stream."""

    def __init__(self) -> None:
        self.now = threading.local()
        self.notes: list[tuple[Any, ...]] = []

    def set_device(self, device: torch.device) -> None:
        self.now.device = device

    def Stream(self, device: torch.device) -> Stream:  # noqa: N802
        assert self.now.device == device, "a new thread is on the first GPU"
        return Stream("ahead", self)

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.now.stream = stream
        yield
        self.now.stream = None

    def current_stream(self, device: torch.device) -> Stream:
        return Stream("training", self)


class Stream:
    def __init__(self, name: str, cuda: Cuda) -> None:
        self.name, self.cuda, self.made = name, cuda, 0

    def record_event(self) -> int:
        self.made += 1
        return self.made - 1

    def wait_event(self, event: int) -> None:
        self.cuda.notes.append(("waits", self.name, event))


class Part:
    """Stands for a tensor of a batch."""

    def __init__(self, step: int, cuda: Cuda) -> None:
        self.step, self.cuda = step, cuda

    def record_stream(self, stream: Stream) -> None:
        self.cuda.notes.append(("used", stream.name, self.step))


def ahead(steps: int, then: Callable[[int], None] = lambda step: None) -> tuple[Any, Cuda, list[int]]:
    """Batches of `_ahead`, the notes of their streams, and the steps that have been made so far."""
    cuda, made = Cuda(), []

    def make(step: int) -> Any:
        assert cuda.now.stream.name == "ahead"
        assert threading.current_thread().name.startswith("kitae-batches")
        then(step)
        made.append(step)
        return Part(step, cuda), Part(step, cuda)

    return _ahead(make, range(steps), torch.device("cuda", 1), cuda), cuda, made


def ended() -> bool:
    """Whether the thread that makes batches ends soon."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("kitae-batches")]
    for thread in threads:
        thread.join(timeout=10)
    return not any(thread.is_alive() for thread in threads)


def test_batches_made_ahead_come_in_order_and_are_waited_for() -> None:
    batches, cuda, _ = ahead(6)
    for step, (images, targets) in enumerate(batches):
        assert images.step == targets.step == step
        used = ("used", "training", step)
        assert cuda.notes == [("waits", "training", step), used, used]
        cuda.notes.clear()
    assert step == 5
    assert ended()


def test_three_batches_are_made_ahead() -> None:
    batches, _, made = ahead(50)
    next(batches)
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert made == [0, 1, 2, 3]
    batches.close()
    assert ended()
    assert made == [0, 1, 2, 3]


def test_an_error_comes_after_the_batches_before_it() -> None:
    def fails(step: int) -> None:
        if step == 2:
            raise KeyError("row")

    batches, _, _ = ahead(6, fails)
    assert [next(batches)[0].step for _ in range(2)] == [0, 1]
    with pytest.raises(KeyError, match="row"):
        next(batches)
    assert ended()


def test_an_error_after_the_end_of_training_is_not_waited_for() -> None:
    closed = threading.Event()

    def fails(step: int) -> None:
        if step == 1:
            assert closed.wait(10)
            raise KeyError("row")

    batches, _, made = ahead(6, fails)
    next(batches)
    batches.close()
    closed.set()
    assert ended()
    assert made == [0]  # what was asked for and had not begun is dropped


def test_an_error_before_the_first_batch_keeps_its_type(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(cuda: Cuda, device: torch.device) -> None:
        raise torch.OutOfMemoryError("a context on this GPU")

    monkeypatch.setattr(Cuda, "set_device", fails)
    with pytest.raises(torch.OutOfMemoryError, match="a context"):
        next(ahead(6)[0])
    assert ended()
    assert caplog.text == ""
