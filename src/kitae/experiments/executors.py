"""Where the runs of a study happen. An executor is any object with `outcomes(units)`.

All run the same code, so with the same number of threads on the same kind of processor they give the same bits.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

from kitae.errors import RecipeError, TrainingInterruptedError, one_line, require
from kitae.experiments.worker import INTERRUPTED, Outcome, execute, failure, read_outcome
from kitae.files import read_json
from kitae.machine import processors, sleep_while_waiting

_STOP_SECONDS = 60.0  # a run that is asked to stop finishes a step and writes a checkpoint
# The current folder comes last, for modules of the user's: a `random.py` there must not replace Python's own.
_WORKER = "import os, sys; sys.path.append(os.getcwd()); from kitae.experiments.worker import main; sys.exit(main())"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")

Unit = Mapping[str, Any]


class Executor(Protocol):
    """Runs units and yields their outcomes as they come."""

    def outcomes(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Run every unit (see `worker.execute`); a run that cannot finish is a `failed` outcome.

        Closing the iterator early stops its runs, which save their state first.
        """


class Inline:
    """One run after another in this process."""

    def outcomes(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        from kitae.training.guards import SignalFlag  # imports torch, which a plan does without

        SignalFlag.unanswered = None
        for unit in units:
            yield from execute(unit)
            if SignalFlag.unanswered is not None:  # a run ends if it is in its last epoch, but the next must not begin
                where = f"stopped by {SignalFlag.unanswered} after {Path(unit['folder']).name}"
                raise TrainingInterruptedError(where, "finished runs are kept; start it again to resume")


class LocalProcesses:
    """A queue over processes of this machine.

    Args:
        workers: runs at a time. Each has its recipe's number of threads; workers x threads should not exceed the cores.
        retries: how often a run is repeated if its process was killed (out of memory, a signal).
    """

    def __init__(self, workers: int = 1, retries: int = 2) -> None:
        self.workers, self.retries = workers, retries

    def outcomes(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        stop = threading.Event()
        with ThreadPoolExecutor(self.workers) as pool:
            futures = [pool.submit(run_in_process, unit, self.retries, stop) for unit in units]
            try:
                for future in as_completed(futures):
                    yield from future.result()
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)


class RayCluster:
    """The machines of a Ray cluster, each with Kitae and the data at the same paths.

    Results come back through Ray. Run folders stay on the machine that made them, unless the study folder is on a
    shared disk.

    Args:
        address: of the cluster; None starts or joins a local one, as `ray.init` does.
        gpus: GPUs of each run, of which it sees no others; a fraction lets several runs share one. With 0, all runs
            of a machine that train on a GPU train on its first.
        retries: how often the run of a lost worker is repeated, on any machine that is left.

    Raises:
        RecipeError: `gpus` is neither a whole number nor a fraction of one GPU; from `outcomes`, no machine has the
            cores and GPUs of a run.
    """

    def __init__(self, address: str | None = None, gpus: float = 0, retries: int = 2) -> None:
        if not (0 <= gpus <= 1 or (gpus > 1 and gpus % 1 == 0)):
            raise RecipeError(f"gpus: {gpus:g} must be a whole number, or a fraction below 1 of a GPU that runs share")
        self.address, self.gpus, self.retries = address, gpus, retries

    def outcomes(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        ray = require("ray")
        if not ray.is_initialized():
            ray.init(address=self.address, log_to_driver=False, include_dashboard=False)
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        _check_room(machines, max((_threads(unit) for unit in units), default=1), self.gpus)
        path = os.environ.get("PYTHONPATH")
        remote = ray.remote(
            num_gpus=self.gpus,
            max_retries=self.retries,
            runtime_env={"env_vars": {"PYTHONPATH": path}} if path else None,
        )(run_in_process)
        # Relative paths in a recipe start from this process's folder, which is at the same place on all machines.
        of = {
            remote.options(num_cpus=_threads(unit)).remote(unit, self.retries, started_in=os.getcwd()): unit
            for unit in units
        }
        try:
            while of:
                (ready, *_), _ = ray.wait(list(of), num_returns=1)
                unit = of.pop(ready)
                try:
                    yield from ray.get(ready)
                except ray.exceptions.RayTaskError as error:  # the worker is alive; its task failed
                    yield from _lost(unit, f"on its Ray worker: {one_line(error.cause)}")
                except ray.exceptions.RayError as error:
                    yield from _lost(unit, f"its Ray worker was lost {self.retries + 1} times ({one_line(error)})")
        finally:
            for reference in of:
                ray.cancel(reference, force=True)


def _check_room(machines: Sequence[Mapping[str, float]], threads: int, gpus: float) -> None:
    """Refuse runs that no machine has room for; Ray would wait for such a machine forever.

    Args:
        machines: Ray's resources of each.
    """
    most = max((machine.get("GPU", 0) for machine in machines), default=0)
    if gpus > most:
        raise RecipeError(f"gpus: {gpus:g} for each run, and no machine of the cluster has more than {most:g}")
    cores = max((machine.get("CPU", 0) for machine in machines if machine.get("GPU", 0) >= gpus), default=0)
    if threads > cores:
        which = "no machine of the cluster with enough GPUs" if gpus else "no machine of the cluster"
        raise RecipeError(f"threads: {threads} for each run, and {which} has more than {cores:g} cores")


def threads_each(threads: int | None, workers: int) -> int:
    """The number of threads of each run: as given, or else the cores divided by the number of workers.

    Raises:
        RecipeError: a number below one.
    """
    if workers < 1:
        raise RecipeError(f"workers: {workers} must be at least 1")
    if threads is not None and threads < 1:
        raise RecipeError(f"threads: {threads} must be at least 1; omit it to divide the cores")
    # NumPy's integers cannot be written as YAML.
    return max(1, processors() // workers) if threads is None else int(threads)


def _threads(unit: Unit) -> int:
    """The threads of the run's recipe; they are written down before the first run, since results depend on them."""
    return int(unit["recipe"]["train"]["threads"] or 1)


def run_in_process(
    unit: Unit, retries: int, stop: threading.Event | None = None, started_in: str = "."
) -> list[Outcome]:
    """Run a unit in a process of its own and wait for it.

    Its output goes to a log beside the run folder. A process that was killed is started again up to `retries` times.
    When `stop` is set, the process is asked to save and stop, and nothing is returned.
    """
    folder = Path(unit["folder"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(_threads(unit)))}
    sleep_while_waiting(environment)
    stop = stop or threading.Event()
    status = 0
    for _ in range(retries + 1):
        if stop.is_set():
            return []
        with folder.with_name(f"{folder.name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _WORKER],
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
                cwd=started_in if Path(started_in).is_dir() else None,
            )  # fmt: skip
            try:
                _wait(process, unit, stop)
            finally:
                process.kill()  # if it is still there
                status = process.wait()
        if stop.is_set():
            return []
        if status == 0:
            return [read_json(Path(job["outcome"])) for job in unit["jobs"]]
        if status > 0 and status != INTERRUPTED:
            break  # it failed by itself, and would fail again
    return _lost(unit, f"its process ended with status {status}; see {folder.name}.log")


def _wait(process: subprocess.Popen[bytes], unit: Unit, stop: threading.Event) -> None:
    assert process.stdin is not None
    # The process stops when this pipe is closed, so it stays open until the process has ended.
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(json.dumps(unit).encode() + b"\n")
        process.stdin.flush()
        while not stop.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
                return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_STOP_SECONDS)


def _lost(unit: Unit, why: str) -> list[Outcome]:
    """Failed outcomes for the jobs of a unit that have not written a finished one themselves."""
    found = []
    for job in unit["jobs"]:
        own = read_outcome(Path(job["outcome"]), job["fingerprint"])
        found.append(own if own is not None and own["status"] == "done" else failure(job["fingerprint"], why))
    return found
