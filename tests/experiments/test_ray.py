"""A real local Ray cluster of two workers gives the same study, also when one of them is killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from kitae.cli import research
from kitae.errors import RecipeError
from kitae.experiments import executors
from kitae.experiments.executors import Inline, LocalProcesses, RayCluster
from kitae.experiments.result import StudyResult
from kitae.experiments.space import PRESETS
from kitae.experiments.study import study
from kitae.experiments.study_spec import StudySpec
from kitae.training.checkpoint import load_weights
from tests.experiments import fake_train
from tests.experiments.raylets import Loses, cluster_of, trainings
from tests.experiments.test_real import CONTENT
from tests.experiments.test_search import run as run_search
from tests.experiments.test_study import FAKE, PATH, ROOT, files, make, run
from tests.refusals import refused

ray = pytest.importorskip("ray")

slow = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PYTHONPATH", PATH)
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.2")  # Ray's workers have the variables of its start
    monkeypatch.setenv("FAKE_SUBSET", "0.05")  # so that a search finds something
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.chdir(ROOT)
    # No GPU is needed: Ray only numbers them.
    ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cluster of three machines."""
    monkeypatch.setenv("PYTHONPATH", PATH)
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.2")
    monkeypatch.setenv("FAKE_SUBSET", "0.05")
    monkeypatch.chdir(ROOT)
    with cluster_of(3) as cluster:
        yield cluster


def test_a_run_asks_for_as_many_processors_as_its_recipe_says_threads() -> None:
    cluster = research._ray("local", 0.5)
    assert isinstance(cluster, RayCluster)
    assert (cluster.address, cluster.gpus) == (None, 0.5)
    assert executors._threads({"recipe": {"train": {"threads": 3}}}) == 3


@pytest.mark.parametrize(
    ("threads", "gpus", "why"),
    [
        (4, 0, None), (4, 1, "threads: 4 for each run, and no machine of the cluster with enough GPUs has more than 2"),
        (2, 2, None), (2, 4, "gpus: 4 for each run, and no machine of the cluster has more than 2"),
        (5, 0, "threads: 5 for each run, and no machine of the cluster has more than 4 cores"),
    ],
)  # fmt: skip
def test_runs_that_no_machine_has_room_for_are_refused(threads: int, gpus: float, why: str | None) -> None:
    machines = [{"CPU": 4.0, "memory": 1e9}, {"CPU": 2.0, "GPU": 2.0}, {}]
    with nullcontext() if why is None else pytest.raises(RecipeError, match=why):
        executors._check_room(machines, threads, gpus)


@pytest.mark.parametrize("gpus", [-1, 1.5, float("nan"), float("inf")])
def test_gpus_are_counted_or_shared(gpus: float) -> None:
    refused(RecipeError, "must be a whole number, or a fraction", RayCluster, gpus=gpus)


@slow
def test_a_killed_worker_is_tried_again(tmp_path: Path, cluster: Any) -> None:
    spec, place = make(seeds=[0, 1]), Loses()
    run(tmp_path / "inline", spec, threads=1)
    result = study(spec, tmp_path / "ray", executor=place, threads=1, **FAKE)
    assert place.run
    assert len(result.failed) == 0
    assert files(tmp_path / "ray") == files(tmp_path / "inline")


@slow
@pytest.mark.parametrize("lost", ["worker", "machine"])
def test_a_search_that_loses_a_worker_or_a_machine_is_that_of_one_process(
    lost: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("nodes" if lost == "machine" else "cluster")
    found, remote = [], Loses(machine=lost == "machine")
    for place in (Inline(), remote):
        folder = tmp_path / type(place).__name__
        # Rounds of three arms, so that one is at work on the others when the first has ended.
        run_search(
            folder, "train.epochs=3", executor=place, arms=len(PRESETS) + 5, workers=3, threads=1, rematch_seeds=2
        )
        (rematch,) = (folder / "rematch").iterdir()
        texts = [(folder / name).read_text() for name in ("search.json", "winner.yaml")]
        found.append((texts, files(rematch)))
    assert remote.run
    assert found[0] == found[1]


@slow
def test_each_run_sees_its_own_gpus(tmp_path: Path, cluster: Any) -> None:
    spec = make(seeds=[0], factors={"smoothing": {"train.label_smoothing": [0.0, 0.1]}})
    options = {**FAKE, "train": "tests.experiments.test_ray:notes_its_gpus", "threads": 1}
    result = study(spec, tmp_path / "ray", executor=RayCluster(gpus=1), **options)
    assert len(result.failed) == 0
    assert sorted(file.read_text() for file in tmp_path.glob("ray/runs/*/gpus")) == ["0", "1"]
    with pytest.raises(RecipeError, match=r"gpus: 3 for each run, and no machine of the cluster has more than 2$"):
        study(spec, tmp_path / "more", executor=RayCluster(gpus=3), **options)


@slow
def test_a_machine_lost_in_the_middle_of_a_study(tmp_path: Path, nodes: Any) -> None:
    """The runs of a lost machine are resumed on the others, and the study is that of one process."""
    spec, place = make(seeds=[0, 1, 2]), Loses(machine=True)
    run(tmp_path / "inline", spec, threads=1)
    assert sum(node["Alive"] for node in ray.nodes()) == 4
    result = study(spec, tmp_path / "ray", executor=place, threads=1, **FAKE)
    assert place.run
    assert sum(node["Alive"] for node in ray.nodes()) == 3
    assert len(result.failed) == 0
    assert files(tmp_path / "ray") == files(tmp_path / "inline")


@slow
def test_a_run_that_keeps_losing_its_worker_is_reported(tmp_path: Path, cluster: Any) -> None:
    spec = make(seeds=[0], factors={"smoothing": {"train.label_smoothing": [0.0, 0.1]}})
    result = study(
        spec, tmp_path / "ray", executor=RayCluster(retries=0), threads=1,
        **{**FAKE, "train": "tests.experiments.test_ray:kills_its_ray_worker"},
    )  # fmt: skip
    assert list(result.runs["status"]) == ["failed", "failed"]
    assert "its Ray worker was lost" in result.runs["error"][0]


@slow
def test_real_training_on_a_cluster_that_loses_a_worker_gives_the_same_bits(tmp_path: Path, cluster: Any) -> None:
    spec = StudySpec.parse(REAL)
    here, there = tmp_path / "local", tmp_path / "ray"
    local = study(spec, here, executor=LocalProcesses(2), threads=1)
    killed: list[str] = []
    watching = threading.Thread(target=_kill_a_worker_in_the_middle_of_training, args=(there, killed), daemon=True)
    watching.start()
    remote = study(spec, there, executor=RayCluster(), threads=1)
    watching.join()
    assert len(local.failed) == len(remote.failed) == 0, [*local.failed["error"], *remote.failed["error"]]
    assert len(killed) == 1, "no worker was found in the middle of training"
    assert len(_weights(here)) == 4
    assert _weights(there) == _weights(here)
    assert _metrics(remote) == _metrics(local)


REAL: dict[str, Any] = {
    **CONTENT,
    "set": {**CONTENT["set"], "train.epochs": 1, "train.batch_size": 10, "train.checkpoint_seconds": 0.01},
    "variants": {"plain": {}, "stochastic depth": {"model.stochastic_depth": 0.3}},
    "cover": "seeds",
}


def _kill_a_worker_in_the_middle_of_training(folder: Path, killed: list[str]) -> None:
    """Once a run has a checkpoint, and before its epoch is over, end the Ray worker that waits for it."""
    while not (folder / "effects.json").exists():
        for checkpoint in folder.glob("runs/*/last/checkpoint.safetensors"):
            run = checkpoint.parents[1]
            worker = _ray_worker_of(run.name)
            in_its_only_epoch = load_weights(checkpoint)[1]["progress"]["epoch"] == 0
            if worker is not None and in_its_only_epoch:
                os.kill(worker, signal.SIGKILL)
                killed.append(run.name)
                return
        time.sleep(0.02)


def _weights(folder: Path) -> dict[str, str]:
    """Run -> hash of its best weights."""
    files = folder.glob("runs/*/best.safetensors")
    return {file.parent.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _metrics(result: StudyResult) -> dict[str, Any]:
    """Every number of every run and epoch, to the last bit, but what was measured of the machine."""
    measured = ["epochs", "epoch_seconds", "training_seconds", "images_per_second", "peak_memory_bytes"]
    numbers = result.runs.drop(columns=measured)
    curves = [
        [{name: value for name, value in row.items() if name not in MACHINE} for row in json.loads(run)]
        for run in result.runs["epochs"]
    ]
    return {"numbers": numbers.to_json(double_precision=15), "bits": [
        value.hex() for name in numbers for value in numbers[name] if isinstance(value, float)
    ], "curves": curves}  # fmt: skip


MACHINE = ("seconds", "images_per_second", "peak_memory_bytes", "data_share")


def notes_its_gpus(recipe: Any, out: Path, *, resume: bool) -> Any:
    """Trains beside another run, which has its GPU at the same time."""
    run, deadline = fake_train.train(recipe, out, resume=resume), time.monotonic() + 60
    (out / "gpus").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    while len(list(out.parent.glob("*/gpus"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    return run


def kills_its_ray_worker(recipe: Any, out: Path, *, resume: bool) -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(30)


def _ray_worker_of(run: str) -> int | None:
    """The Ray worker of this process's cluster that waits for the training process of this run."""
    found = (line[1] for name, line in trainings() if name == run and line[3] == os.getpid())
    return next(found, None)
