"""Signals and memory of a training process."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch

from kitae.errors import KitaeError, TrainingError, one_line
from kitae.training.distributed import lost_process
from kitae.training.spec import TrainSpec

try:
    import resource
except ModuleNotFoundError as error:  # Windows
    raise KitaeError("runs need Linux or macOS; here, predict from a file that `kitae export` wrote") from error

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


class SignalFlag:
    """While open, records SIGTERM and SIGINT instead of raising; the loop saves and stops at the next opportunity.

    Where another process of the training was lost, SIGTERM is recorded from then on: torchrun ends the others with it
    as soon as one has died, and this one would often end before it could say why.

    Attributes:
        name: of the signal that came.
        unanswered: of the last one in this process that stopped nothing, since it came in the last epoch of a run.
    """

    unanswered: ClassVar[str | None] = None

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalFlag:
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGTERM, signal.SIGINT):
                # None is a handler of a program that Python runs in (of R or Julia), which could not be restored.
                if signal.getsignal(kind) is not None:
                    self._before[kind] = signal.signal(kind, self._note)
        return self

    def _note(self, number: int, frame: object) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C means it
        self.name = signal.Signals(number).name

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None and self.name is not None:
            SignalFlag.unanswered = self.name
        lost = error is not None and lost_process(error)
        for number, handler in self._before.items():
            if not (lost and number == signal.SIGTERM):
                signal.signal(number, handler)


def memory_named(spec: TrainSpec, checkpoint: Path | None = None) -> contextlib.AbstractContextManager[None]:
    """Turn running out of memory in training, on CPU or GPU, into a one-line error that says what to do."""
    return _memory_named(
        f"train.batch_size {spec.batch_size}: halve it and double train.accumulate (now {spec.accumulate}); the "
        "updates stay the same",
        checkpoint,
    )


def probe_memory_named() -> contextlib.AbstractContextManager[None]:
    """As `memory_named`, for a probe, which keeps all its features, and whose batches are always as large."""
    return _memory_named("train.probe: lower its limit or its views, or data.image_size")


def evaluation_memory_named(batch_size: int) -> contextlib.AbstractContextManager[None]:
    """As `memory_named`, for an evaluation, which has its own batch size."""
    return _memory_named(f"evaluate.batch_size {batch_size}: halve it; only memory use changes")


@contextlib.contextmanager
def _memory_named(where: str, checkpoint: Path | None = None) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        kept = ", and the last good checkpoint is kept" if checkpoint is not None and checkpoint.exists() else ""
        raise TrainingError(f"out of memory at {where}{kept}") from error


@contextlib.contextmanager
def compilation_named() -> Iterator[None]:
    """Turn a failure of torch.compile, such as a missing C++ compiler, into a one-line error that names the field."""
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException  # which torch.compile has loaded

        if not isinstance(error, TorchDynamoException) or is_out_of_memory(error):
            raise
        raise TrainingError(f"train.compile: torch.compile failed ({one_line(error)}); set it to false") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means running out of memory, on CPU or GPU."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    signs = ("not enough memory", "CUDA error: out of memory")  # of torch's CPU allocator, and of CUDA itself
    return known or any(sign in str(error) for sign in signs)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the GPU in this epoch, or of this process since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # On Linux, child processes inherit ru_maxrss; VmHWM starts from zero.
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass  # not Linux; ru_maxrss is in KiB, on macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step; does nothing with other C libraries. Call it once per process.

    By default every activation above a few hundred kilobytes is returned to the system when it is freed, and its pages
    are faulted in again, zeroed, at the next step. The price is that the process does not give memory back.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
