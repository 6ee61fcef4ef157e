"""External events that stop a training: signals, and running out of memory."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kitae.errors import TrainingError
from kitae.training.precision import is_out_of_memory
from kitae.training.spec import TrainSpec


class SignalFlag:
    """While open, records SIGTERM and SIGINT instead of raising; the loop saves and stops at the next opportunity."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalFlag:
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


@contextlib.contextmanager
def memory_named(spec: TrainSpec, checkpoint: Path | None = None) -> Iterator[None]:
    """Turn running out of memory, on CPU or GPU, into a one-line error that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory at train.batch_size {spec.batch_size}{kept(checkpoint)}: halve it and double "
            f"train.accumulate (now {spec.accumulate}), which updates as before"
        ) from error


def kept(checkpoint: Path | None) -> str:
    """The end of an error message, which says whether a checkpoint of the failed training is kept."""
    return "; the last good checkpoint is kept" if checkpoint is not None and checkpoint.exists() else ""
