"""Trainings under torchrun on this machine, for the tests and for `benchmarks/processes.py`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def launch(processes: int, module: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`torchrun -m MODULE WORDS`, with one thread for each process."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += [f"--master-port={free_port()}", "-m", module, *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def crew(out: Path, processes: int, task: str, *fields: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A task of `tests.pipelines.crew`."""
    out.mkdir(parents=True, exist_ok=True)
    return launch(processes, "tests.pipelines.crew", str(out), *task.split(), *fields, check=check)


def fed(out: Path, processes: int, *fields: str) -> list[list[str]]:
    """Hashes of the samples of each batch, all processes together."""
    crew(out, processes, "hash", *fields)
    parts = [json.loads((out / f"{rank}.json").read_text()) for rank in range(processes)]
    return [[sample for part in parts for sample in part[step]] for step in range(len(parts[0]))]
