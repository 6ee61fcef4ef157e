"""Ray clusters on this machine, and which of their processes trains what: for tests and `benchmarks/processes.py`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kitae.experiments.executors import RayCluster


@contextmanager
def cluster_of(machines: int) -> Iterator[Any]:
    """A head that runs nothing, and machines of one processor, each a raylet of its own; `ray` is connected to them."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(machines):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def trainings() -> Iterator[tuple[str, list[int]]]:
    """The run of each training process of Ray, and its line: the process, its Ray worker, raylet and driver."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"kitae.experiments.worker" in (entry / "cmdline").read_bytes():
                line = [int(entry.name)]
                while len(line) < 4:
                    line.append(int(Path(f"/proc/{line[-1]}/stat").read_text().rsplit(")", 1)[1].split()[1]))
                if b"ray::" in Path(f"/proc/{line[1]}/cmdline").read_bytes():
                    yield (entry / "fd" / "1").readlink().stem, line
        except (OSError, IndexError):  # it has ended, or was not started by Ray
            continue


class Loses(RayCluster):
    """Loses a Ray worker, or a machine with all of its processes, that trains a run.

    Args:
        machine: whether the machine is lost, and not only the worker.
        after: outcomes that come before; others are at work then.

    Attributes:
        run: what was lost with it; None before. process: the one that trained it.
    """

    def __init__(self, *, machine: bool = False, after: int = 1) -> None:
        super().__init__()
        self.machine, self.after, self.ended = machine, after, 0
        self.run: str | None = None
        self.process = 0

    def outcomes(self, units: Any) -> Iterator[Any]:
        for outcome in super().outcomes(units):
            yield outcome
            self.ended += 1
            if self.ended == self.after:
                self.lose()

    def lose(self) -> None:
        """End the processes."""
        deadline = time.monotonic() + 20
        while self.run is None:
            assert time.monotonic() < deadline, "no Ray worker was found at work"
            for run, (process, worker, raylet, driver) in trainings():
                if driver == os.getpid() and self.run is None:
                    self.run, self.process = run, process
                    # The raylet first, which would report the end of the others while it is alive.
                    for one in (raylet, worker, process) if self.machine else (worker,):
                        with suppress(ProcessLookupError):
                            os.kill(one, signal.SIGKILL)
