"""Trainings under torchrun on this machine, for the tests, `benchmarks/processes.py` and `gpu.py ddp`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def launch(
    processes: int, module: str, *words: str, check: bool = True, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`torchrun -m MODULE WORDS`, with one thread for each process, and with these environment variables besides."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += [f"--master-port={free_port()}", "-m", module, *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    environment |= variables or {}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def crew(
    out: Path, processes: int, task: str, *fields: str, check: bool = True, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A task of `tests.pipelines.crew`."""
    out.mkdir(parents=True, exist_ok=True)
    words = (str(out), *task.split(), *fields)
    return launch(processes, "tests.pipelines.crew", *words, check=check, variables=variables)


def fed(out: Path, processes: int, *fields: str, variables: Mapping[str, str] | None = None) -> list[list[str]]:
    """Hashes of the samples of each batch, all processes together."""
    crew(out, processes, "hash", *fields, variables=variables)
    parts = [json.loads((out / f"{rank}.json").read_text()) for rank in range(processes)]
    return [[sample for part in parts for sample in part[step]] for step in range(len(parts[0]))]
