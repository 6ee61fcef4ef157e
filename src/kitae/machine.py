"""The machine that a figure was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

# How often a waiting thread spins before it sleeps: a few tenths of a millisecond. GNU OpenMP's default is 300,000;
# with 1,000, small networks seem to lose a few percent on an idle machine (LOG.md, 2026-11-26).
SPINS = "30000"
_ROOT = Path(__file__).resolve().parents[2]


def sleep_while_waiting(environment: MutableMapping[str, str]) -> None:
    """Let waiting PyTorch threads sleep soon, in processes that start with this environment.

    By default GNU OpenMP, which PyTorch uses on Linux, spins for a few milliseconds while it waits. If other processes
    need the same cores, spinning takes a core from the thread that is waited for: next to two other trainings on two
    cores, a step took 1.5 to 7 times as long. Variables that the user has set are not changed. The variable is read
    when PyTorch is loaded.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPINS)


def after_fork(action: Callable[[], object]) -> None:
    """Call this in forked processes: locks of the parent's other threads would never be released there.

    Does nothing on Windows, which has no fork.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=action)


def processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def now() -> str:
    """The time in UTC, to the second, as ISO 8601 has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def commit(root: Path = _ROOT) -> str | None:
    """The commit of a source tree, by default Kitae's own, with `+` if tracked files differ; None if it has none."""
    if not (root / ".git").exists():
        return None
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(root), *words]  # a lock could stop a commit elsewhere
        return subprocess.run(command, env=clean, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):  # without git, or in a repository of somebody else
        return None


def machine() -> dict[str, Any]:
    """What a figure depends on: processor, cores, threads, versions, commit, time."""
    import torch

    versions: dict[str, str | None] = {}
    for package in ("kitae", "torch", "torchvision", "numpy", "numba", "pillow", "onnxruntime", "timm"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "when": now(),
        "processor": cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": processors(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(terse=True),
        "python": sys.version.split()[0],
        "versions": versions,
        "commit": commit(),
    }


def cpuinfo(*fields: str) -> str | None:
    """The first value of one of these fields in /proc/cpuinfo; None if Linux does not report one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    parts = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in parts if name.strip() in fields), None)
