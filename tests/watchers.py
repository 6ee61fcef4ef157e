"""Who watches a training in the tests: it keeps the notes, and stops where it is asked to."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any


class Watcher:
    """Keeps the notes, the plans and the numbers of the epochs that are over."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.epochs: list[int] = []
        self.plans: list[int] = []

    def on_step(self, *facts: Any) -> None: ...
    def on_plan(self, epochs: int) -> None:
        self.plans.append(epochs)

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self.epochs.append(row["epoch"])

    def note(self, text: str) -> None:
        self.notes.append(text)


class DiesHereError(Exception):
    """The process dies here."""


class KillAt(Watcher):
    """Dies after so many batches in all."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def on_step(self, *_: object) -> None:
        self.left -= 1
        if self.left == 0:
            self.end()

    def end(self) -> None:
        raise DiesHereError


class Signal(KillAt):
    """Sends this process a SIGTERM after so many batches."""

    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
