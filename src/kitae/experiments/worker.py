"""One training run of a study, in a process of its own: `python -m kitae.experiments.worker`, the unit on stdin.

Each run has its own process, so that its peak memory is its own, its threads are as asked for, and a crash does not
affect other runs. The process watches its stdin: if the process that started it is gone, it saves and stops.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kitae.errors import KitaeError, TrainingInterruptedError
from kitae.experiments.outcome import curves, flatten, numbers
from kitae.files import read_json, write_json
from kitae.folders import lock
from kitae.recipe import Recipe

INTERRUPTED = 75  # exit status: stopped by a signal with its state saved; it can be resumed
_GRACE_SECONDS = 60.0  # an orphan that has not saved by then exits anyway


def execute(unit: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Train a recipe and collect what the study keeps of it.

    Args:
        unit: `train` (module:function), `recipe`, `folder`, and `jobs`, a list of {fingerprint, outcome, after}: each
            a set of steps after training, whose result is written to its `outcome` file.

    Returns:
        One outcome per job: {"fingerprint", "status": "done" | "failed", "error", "numbers", "epochs", "correct",
        "machine"}, and for a finished run the "store" (fingerprint of its images). A failure is an outcome; only an
        interruption raises.
    """
    folder = Path(unit["folder"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A run whose study was killed may still be saving.
    with lock(folder.with_name(f".{folder.name}.lock")):
        try:
            recipe = Recipe.model_validate(unit["recipe"])
            run = function(unit["train"])(recipe, out=folder, resume=True)
            common: dict[str, Any] = _summary(run)
        except TrainingInterruptedError:
            raise
        except Exception as error:
            text = _explain(error)
            return [_write(job, failure(job["fingerprint"], text)) for job in unit["jobs"]]
        outcomes = []
        for job in unit["jobs"]:
            before = read_outcome(Path(job["outcome"]), job["fingerprint"])
            if before is not None and before["status"] == "done":  # by a process that was killed in a later job
                outcomes.append(before)
                continue
            try:
                extra: dict[str, float] = {}
                for step, settings in job["after"].items():
                    from kitae.experiments import after

                    extra |= flatten(after.function(step)(run, folder, **settings), f"{step}.")
                done = {**common, "numbers": {**common["numbers"], **extra}}
                outcomes.append(
                    _write(job, {"fingerprint": job["fingerprint"], "status": "done", "error": None, **done})
                )
            except TrainingInterruptedError:
                raise
            except Exception as error:
                outcomes.append(_write(job, failure(job["fingerprint"], _explain(error))))
        return outcomes


def _summary(run: Any) -> dict[str, Any]:
    epochs, evaluation = run.metrics(), run.evaluation()
    environment = run.environment() if hasattr(run, "environment") else {}
    kept = ("processor", "cores", "threads", "gpu", "device", "versions")
    return {
        "numbers": numbers(evaluation, epochs),
        "epochs": curves(epochs),
        "correct": _correct(run),
        "machine": {name: environment[name] for name in kept if name in environment},
        "store": environment.get("store"),
    }


def _correct(run: Any) -> str | None:
    """Which test images the run got right, as base64 of packed bits, for intervals that cover test images."""
    if not hasattr(run, "predictions") or "test" not in run.evaluation():
        return None
    import numpy as np

    table = run.predictions()
    if not {"label", "predicted"} <= set(table.column_names):
        return None
    right = np.asarray(table["label"].to_pylist(), dtype=object) == np.asarray(
        table["predicted"].to_pylist(), dtype=object
    )
    return f"{len(right)}:{base64.b64encode(np.packbits(right).tobytes()).decode()}"


def failure(fingerprint: str, why: str) -> dict[str, Any]:
    """The outcome of a run that failed."""
    return {
        "fingerprint": fingerprint, "status": "failed", "error": " ".join(why.split()), "numbers": {}, "epochs": [],
        "correct": None, "machine": {},
    }  # fmt: skip


def _explain(error: Exception) -> str:
    if isinstance(error, KitaeError):
        return str(error)
    traceback.print_exception(error)  # a bug; its traceback goes to the run's log
    return f"{type(error).__name__}: {error}"


def read_outcome(file: Path, fingerprint: str) -> dict[str, Any] | None:
    """The outcome of this run in a file; None if there is none, or it is damaged, or of another run."""
    try:
        outcome = read_json(file, "fingerprint", "status", "numbers")
    except KitaeError:
        return None
    return outcome if outcome["fingerprint"] == fingerprint else None


def _write(job: Mapping[str, Any], outcome: dict[str, Any]) -> dict[str, Any]:
    write_json(Path(job["outcome"]), outcome)
    return outcome


def function(reference: str) -> Callable[..., Any]:
    """The function that `module:function` names."""
    module, _, name = reference.partition(":")
    named: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return named


def _stop_when_orphaned() -> None:
    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SECONDS)
        os._exit(INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Read a unit from stdin, one line of JSON, and run it."""
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(0, 1)  # not sys.stdin, whose buffer would be locked by the watching thread at exit
        if not piece:
            return INTERRUPTED
        line += piece
    _stop_when_orphaned()
    try:
        execute(json.loads(line))
    except TrainingInterruptedError:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
