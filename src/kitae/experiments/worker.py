"""One training run of a study, in a process of its own that calls `main`, the unit on stdin.

Each run has its own process, so that its peak memory is its own, its threads are as asked for, and a crash does not
affect other runs. The process watches its stdin: if the process that started it is gone, it saves and stops.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
import time
import traceback
import zlib
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np

from kitae.errors import KitaeError, TrainingInterruptedError
from kitae.experiments import after
from kitae.experiments.outcome import curves, flatten, numbers
from kitae.files import read_json, write_json
from kitae.folders import lock
from kitae.recipe import Recipe

INTERRUPTED = 75  # exit status: stopped by a signal with its state saved; it can be resumed
Outcome = dict[str, Any]
_GRACE_SECONDS = 60.0  # an orphan that has not saved by then exits anyway


def execute(unit: Mapping[str, Any]) -> list[Outcome]:
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
            run = resolve_name(unit["train"])(Recipe.model_validate(unit["recipe"]), out=folder, resume=True)
            trained = _summary(run)
        except TrainingInterruptedError:
            raise
        except Exception as error:
            why = _explain(error)
            return [_write(job, failure(job["fingerprint"], why)) for job in unit["jobs"]]
        return [_after_training(job, run, trained) for job in unit["jobs"]]


def _after_training(job: Mapping[str, Any], run: Any, trained: Mapping[str, Any]) -> Outcome:
    fingerprint = job["fingerprint"]
    before = read_outcome(Path(job["outcome"]), fingerprint)
    if before is not None and before["status"] == "done":  # by a process that was killed in a later job
        return before
    found = dict(trained["numbers"])
    try:
        for step, settings in job["after"].items():
            found |= flatten(after.step(step)(run, run.path, **settings), f"{step}.")
    except TrainingInterruptedError:
        raise
    except Exception as error:
        return _write(job, failure(fingerprint, _explain(error)))
    return _write(job, {"fingerprint": fingerprint, "status": "done", "error": None, **trained, "numbers": found})


def _summary(run: Any) -> dict[str, Any]:
    epochs, evaluation, environment = run.metrics(), run.evaluation(), run.environment()
    kept = ("processor", "cores", "threads", "gpu", "device", "versions", "commit")
    return {
        "numbers": numbers(evaluation, epochs),
        "epochs": curves(epochs),
        "correct": _correct(run.predictions()) if "test" in evaluation else None,
        "machine": {name: environment[name] for name in kept if name in environment},
        "store": environment["store"],
    }


def _correct(predictions: Any) -> str:
    """Which test images the run got right, and their groups, if they have some: for intervals that cover test images.

    Their number, base64 of packed bits, and base64 of compressed int32 numbers of the groups, apart by colons.
    """
    label, predicted = (np.asarray(predictions[name].to_pylist(), dtype=object) for name in ("label", "predicted"))
    parts = [np.packbits(label == predicted).tobytes()]
    if "group" in predictions.column_names:
        member = np.unique(predictions["group"].to_numpy(), return_inverse=True)[1]
        parts.append(zlib.compress(member.astype("<i4").tobytes()))
    return ":".join([str(len(label)), *(base64.b64encode(part).decode() for part in parts)])


def failure(fingerprint: str, why: str) -> Outcome:
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


def read_outcome(file: Path, fingerprint: str) -> Outcome | None:
    """The outcome of this run in a file; None if there is none, or it is damaged, or of another run."""
    try:
        outcome = read_json(file, "fingerprint", "status", "numbers")
    except KitaeError:
        return None
    return outcome if outcome["fingerprint"] == fingerprint else None


def _write(job: Mapping[str, Any], outcome: Outcome) -> Outcome:
    write_json(Path(job["outcome"]), outcome)
    return outcome


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
