"""Several processes on this machine: the same batches and losses, the price of the exchange, and what a loss costs.

    python benchmarks/processes.py              a few minutes
    python benchmarks/processes.py --tiny       small settings: does it run?

Trainings with one, two and three processes, started by torchrun and connected by gloo, each with one thread:

    batches     hashes of the augmented images and targets that each process feeds its network
    losses      largest difference between one process and several; the network has no BatchNorm
    images/s    of `kitae train`, from the second epoch on. With more processes than cores, this shows the price of the
                exchange
    killed      seconds from SIGKILL of one process until torchrun and all others have ended, and what another one says

Studies on a Ray cluster of a head and several machines of one processor, each a raylet of its own, with a stand-in for
training that takes a fixed time for each step:

    lost        seconds from SIGKILL of a Ray worker, or of all processes of a machine, until its task is run again,
                where a machine has nothing to do

Training and studies are those of tests/pipelines/crew.py and tests/experiments/fake_train.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import common

sys.path.insert(0, str(common.ROOT))  # for `tests`

from tests.experiments import raylets
from tests.pipelines.crew import FIELDS
from tests.pipelines.torchrun import crew, fed, launch

from kitae.experiments.executors import Inline
from kitae.experiments.study import study
from kitae.experiments.study_spec import StudySpec
from kitae.run import Run

PROCESSES = (1, 2, 3)
LOSSES = ("train_loss", "val_loss")
STUDY = {
    "name": "processes", "base": "fashion-mini", "set": {"train.epochs": 3}, "design": "one_in", "seeds": [0, 1, 2, 3],
    "factors": {"smoothing": {"train.label_smoothing": [0.0, 0.1]}},
}  # fmt: skip  # eight runs: when six have ended, two have just begun and a machine has nothing to do
FAKE = {"train": "tests.experiments.fake_train:train", "measure": "tests.experiments.fake_train:measure"}
MACHINES, STEP_SECONDS = 3, 0.5


@dataclass(frozen=True)
class Way:
    """How the processes are started.

    Attributes:
        processes: how many.
        backend: what connects them if they form their group themselves, all on the first device; None: as Kitae does.
    """

    processes: int
    backend: str | None = None

    @property
    def variables(self) -> dict[str, str]:
        """For `tests.pipelines.crew`."""
        return {} if self.backend is None else {"CREW_GROUP": self.backend}


WAYS = {str(processes): Way(processes) for processes in PROCESSES}  # the first is what others are compared with


def trained(folder: Path, fields: Sequence[str], ways: Mapping[str, Way] = WAYS) -> dict[str, Any]:
    """Images a second, losses and what the evaluation finds, in each way."""
    rows, tests = {}, {}
    for name, way in ways.items():
        out = folder / f"trained-{name}"
        if way.backend is None:
            launch(way.processes, "kitae", "train", "fashion-mini", "--out", str(out), "--set", *FIELDS, *fields)
        else:
            crew(out, way.processes, "train", *fields, variables=way.variables)
            out /= "run"
        rows[name], tests[name] = Run.open(out).metrics(), Run.open(out).evaluation()["test"]
    alone = rows[next(iter(ways))]
    return {
        name: {
            "images_per_second": common.spread([row["images_per_second"] for row in mine[1:]]),
            "largest_difference_of_losses": max(
                abs(row[name] - other[name]) for row, other in zip(mine, alone, strict=True) for name in LOSSES
            ),
            "losses": [{name: row[name] for name in LOSSES} for row in mine],
            "test": {score: tests[name][score] for score in ("count", "accuracy", "loss")},
        }
        for name, mine in rows.items()
    }  # fmt: skip


def batches(folder: Path, fields: Sequence[str] = (), ways: Mapping[str, Way] = WAYS) -> dict[str, Any]:
    """What the processes feed their networks in two epochs."""
    found = {
        name: fed(folder / f"fed-{name}", way.processes, *fields, variables=way.variables) for name, way in ways.items()
    }
    first = found[next(iter(ways))]
    return {
        "batches": len(first),
        "sha256": {name: hashlib.sha256(json.dumps(one).encode()).hexdigest() for name, one in found.items()},
        "equal": all(one == first for one in found.values()),
    }


def killed(folder: Path, rounds: int, fields: Sequence[str] = (), ways: Mapping[str, Way] = WAYS) -> dict[str, Any]:
    """Several processes, of which the last is killed in its fifth step.

    Returns:
        For each way `seconds` until all have ended, and `message`, what a process that was left says; with nccl it may
        be PyTorch that ends the process and says why. The last line of all where none is known to be that.
    """
    found: dict[str, Any] = {}
    for name, way in ways.items():
        if way.processes < 2:
            continue
        seconds = []
        for number in range(rounds):
            out = folder / f"killed-{name}-{number}"
            done = crew(out, way.processes, "die 5", *fields, check=False, variables=way.variables)
            seconds.append(time.time() - float((out / "ended").read_text()))
            lines = done.stderr.splitlines()
            signs = ("lost another process", "Watchdog caught", "NCCL", "exitcode")  # the last is torchrun's
            signed = (line for sign in signs for line in lines if sign in line)
            said = next(signed, "".join(lines[-1:])).partition(" of binary: ")[0]
        found[name] = {
            "seconds": common.spread(seconds),
            "message": re.sub(r"\[[\d.]+\](:\d+)?", "[ADDRESS]", said.replace(str(out), "OUT")),
        }
    return found


class Timed(raylets.Loses):
    """Takes the time from the loss of a worker or a machine until its run is trained again."""

    seconds = 0.0

    def lose(self) -> None:
        super().lose()
        began = time.monotonic()
        while not any(run == self.run and line[0] != self.process for run, line in raylets.trainings()):
            if time.monotonic() - began > 120:
                raise TimeoutError(f"{self.run} was not run again")
            time.sleep(0.01)
        self.seconds = time.monotonic() - began


def clusters(folder: Path, rounds: int) -> dict[str, Any]:
    """Studies on a Ray cluster that loses a worker, and then a machine."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(common.ROOT / "src"), str(common.ROOT)])
    spec = StudySpec.parse(STUDY)
    tasks = len(study(spec, folder / "inline", executor=Inline(), threads=1, **FAKE).runs)
    os.environ["FAKE_STEP_SECONDS"] = str(STEP_SECONDS)
    seconds: dict[str, list[float]] = {"worker": [], "machine": []}
    same = True
    for number in range(rounds):
        with raylets.cluster_of(MACHINES):
            for what, values in seconds.items():
                place = Timed(machine=what == "machine", after=tasks - MACHINES + 1)
                out = folder / f"{what}-{number}"
                result = study(spec, out, executor=place, threads=1, **FAKE)
                values.append(place.seconds)
                texts = ((of / "effects.json").read_bytes() for of in (out, folder / "inline"))
                same = same and not len(result.failed) and len(set(texts)) == 1
    return {
        "machines": MACHINES, "tasks": tasks, "step_seconds": STEP_SECONDS,
        "same_as_one_process": same,
        "seconds_until_run_again": {what: common.spread(values) for what, values in seconds.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often a process, a worker and a machine are killed")
    parser.add_argument("--tiny", action="store_true", help="small settings: does it run?")
    parser.add_argument("--out", type=Path, default=None, help="default benchmarks/results/processes.json")
    given = parser.parse_args()
    rounds = 1 if given.tiny else given.rounds
    fields = [] if given.tiny else ["data.limit=2000", "train.batch_size=96", "train.epochs=6"]
    out = given.out or (common.SCRATCH if given.tiny else common.RESULTS) / "processes.json"
    machine = common.hardware(common.available_cores())
    results: dict[str, Any] = {"what": __doc__, "machine": machine}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["KITAE_CACHE"] = str(folder / "cache")
        results["batches"] = batches(folder)
        results["recipe"] = ["fashion-mini", *FIELDS, *fields]
        results["processes"] = trained(folder, fields)
        results["killed"] = killed(folder, rounds)
        common.save(out, results)
        if find_spec("ray") is None:
            results["left_out"] = {"ray": "not installed"}
        else:
            from ray import __version__

            machine["versions"]["ray"] = __version__
            results["ray"] = clusters(folder, rounds)
    common.save(out, results)
    print(f"results: {out}")


if __name__ == "__main__":
    main()
