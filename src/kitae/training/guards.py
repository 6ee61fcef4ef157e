"""What may happen to a training from outside: a signal, or too little memory."""

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
    """While open, SIGTERM and SIGINT only leave their name here; the loop saves and stops at its next good moment."""

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
    """Out of memory, on a GPU or not, as a line that says what to do."""
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
    """What is left of a training that failed, for the end of a message."""
    return "; the last good checkpoint is kept" if checkpoint is not None and checkpoint.exists() else ""
