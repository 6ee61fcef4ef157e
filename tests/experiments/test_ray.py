"""A real local Ray cluster of two workers gives the same study, also when one of them is killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from kitae import cli
from kitae.experiments import executors
from kitae.experiments.executors import RayCluster
from kitae.experiments.run import study
from tests.experiments.test_run import FAKE, ROOT, files, make, run

ray = pytest.importorskip("ray")

slow = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.2")  # Ray's workers have the variables of its start
    monkeypatch.chdir(ROOT)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


@pytest.mark.parametrize(("given", "processors"), [(None, 3), (2, 2)])
def test_a_run_asks_for_as_many_processors_as_its_recipe_says_threads(given: int | None, processors: int) -> None:
    cluster = cli._ray("local", given)
    assert isinstance(cluster, RayCluster)
    assert executors._threads({"recipe": {"train": {"threads": 3}}}, cluster.threads) == processors


@slow
def test_the_same_study_on_a_cluster(tmp_path: Path, cluster: Any) -> None:
    spec = make(seeds=[0, 1])
    run(tmp_path / "inline", spec, threads=1)
    study(spec, tmp_path / "ray", executor=RayCluster(threads=1), threads=1, **FAKE)
    assert files(tmp_path / "ray") == files(tmp_path / "inline")


@slow
def test_a_killed_worker_is_tried_again(tmp_path: Path, cluster: Any) -> None:
    spec = make(seeds=[0, 1])
    run(tmp_path / "inline", spec, threads=1)
    killed: list[int] = []

    class Kills(RayCluster):
        def outcomes(self, units: Any) -> Any:
            for outcome in super().outcomes(units):
                yield outcome
                if not killed:  # both workers are busy now: end one, with the run it is waiting for
                    killed.append(_a_ray_worker())
                    os.kill(killed[0], signal.SIGKILL)

    result = study(spec, tmp_path / "ray", executor=Kills(threads=1), threads=1, **FAKE)
    assert killed
    assert len(result.failed) == 0
    assert files(tmp_path / "ray") == files(tmp_path / "inline")


@slow
def test_a_run_that_keeps_losing_its_worker_is_reported(tmp_path: Path, cluster: Any) -> None:
    spec = make(seeds=[0], factors={"smoothing": {"train.label_smoothing": [0.0, 0.1]}})
    result = study(
        spec, tmp_path / "ray", executor=RayCluster(threads=1, retries=0), threads=1,
        **{**FAKE, "train": "tests.experiments.test_ray:kills_its_ray_worker"},
    )  # fmt: skip
    assert list(result.runs["status"]) == ["failed", "failed"]
    assert "its Ray worker was lost" in result.runs["error"][0]


def kills_its_ray_worker(recipe: Any, out: Path, *, resume: bool) -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(30)


def _a_ray_worker() -> int:
    """A Ray worker of this process's cluster that waits for a training process."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for entry in Path("/proc").iterdir():
            try:
                if b"kitae.experiments.worker" in (entry / "cmdline").read_bytes():
                    worker = _parent(int(entry.name))
                    if (
                        b"ray::" in Path(f"/proc/{worker}/cmdline").read_bytes()
                        and _parent(_parent(worker)) == os.getpid()
                    ):
                        return worker
            except (OSError, ValueError, IndexError):
                continue
        time.sleep(0.05)
    raise AssertionError("no Ray worker was found at work")


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
