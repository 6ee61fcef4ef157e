"""Trainings under torchrun: one, two and three processes do the same, and a process that dies ends all of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from kitae.models.build import build
from kitae.models.spec import ModelSpec
from kitae.run import Run
from kitae.training.checkpoint import load_weights
from tests.data.shard_files import shards
from tests.images import write_folder
from tests.pipelines.torchrun import ROOT, crew, fed, free_port, launch

pytestmark = pytest.mark.slow

HIDE_CURSOR = "\x1b[?25l"  # a bar begins with it
SCORES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "train_clean_accuracy")


def scores(out: Path) -> list[dict[str, Any]]:
    return [{name: row[name] for name in SCORES} for row in Run.open(out / "run").metrics()]


def assert_close(found: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float = 2e-4) -> None:
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        for name in SCORES:
            # An image near a border between two classes may go to the other one.
            assert mine[name] == pytest.approx(other[name], abs=tolerance if "loss" in name else 0.03), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone")
    crew(out, 1, "train")
    return out


def test_the_same_batches_for_any_number_of_processes(tmp_path: Path, own_cache: None) -> None:
    source = shards(tmp_path / "shards", 6, 20)
    crops = "augment.train=[{random_resized_crop: {scale: [0.3, 1]}}, {horizontal_flip: {}}]"
    streamed = (f"data.source={source}", "data.limit=null", "data.image_size=16", "data.shuffle_buffer=32", crops)
    for kind, fields in (("store", ()), ("shards", streamed)):
        one, two, three = (fed(tmp_path / f"{kind}-{size}", size, *fields) for size in (1, 2, 3))
        assert one == two == three
        assert len({sample for batch in one for sample in batch}) == sum(map(len, one))


@pytest.mark.parametrize("processes", [2, 3])
def test_the_same_losses_and_one_folder_and_one_log(processes: int, tmp_path: Path, alone: Path) -> None:
    crew(tmp_path, processes, "train")
    assert_close(scores(tmp_path), scores(alone))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    # Evaluation counts each image once, though the sizes do not divide.
    mine, other = Run.open(tmp_path / "run"), Run.open(alone / "run")
    probabilities, expected = (np.stack(run.predictions()["probabilities"].to_numpy()) for run in (mine, other))
    assert len(probabilities) == 1000
    np.testing.assert_allclose(probabilities, expected, atol=0.02)
    assert mine.evaluation()["test_openings"] == 1
    assert mine.environment()["processes"] == processes


def test_one_process_prints_for_all(tmp_path: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"}.items():  # as on a terminal
        monkeypatch.setenv(name, value)
    photos = write_folder(tmp_path / "photos", train=12, classes=2)
    options = ["--model=resnet8", "--epochs=1", "--image-size=32", f"--out={tmp_path / 'run'}"]
    options += ["--set", "model.width=4", "train.precision=fp32", "train.channels_last=false"]
    for more, table in (("--dry-run", "estimated time"), ("--overwrite", "value (95 % interval)")):
        said = launch(2, "kitae", "train", str(photos), more, *options).stdout
        assert said.count(HIDE_CURSOR) == 1, "one bar"
        assert said.count("24 images, 2 classes") == 1, "one plan"
        assert said.count("epoch   1/1") == (more == "--overwrite")
        assert said.count(table) == 1


def test_processes_plan_together(tmp_path: Path, own_cache: None) -> None:
    """Sizes and lengths are chosen by what each process measures, and all must choose the same."""
    photos = write_folder(tmp_path / "photos", train=20, classes=2)
    spec = ModelSpec(name="resnet8", width=4)
    save_file(build(spec, classes=7, channels=3, image_size=128).state_dict(), tmp_path / "own.safetensors")
    options = ["--minutes=0.2", "--set", "model.width=4", "train.precision=fp32", "train.channels_last=false"]
    for name, pretrained, epoch in (("scratch", "false", 1), ("tuned", tmp_path / "own.safetensors", 0)):
        out = tmp_path / name
        words = ["--model=resnet8", f"--out={out}", *options, f"model.pretrained={pretrained}"]
        launch(2, "kitae", "train", str(photos), *words)
        run = Run.open(out)
        assert run.finished
        assert run.metrics()[0]["epoch"] == epoch, "a probe comes before fine-tuning"


def test_a_checkpoint_of_two_processes_is_resumed_by_one_or_three(tmp_path: Path, alone: Path) -> None:
    for processes in (1, 3):
        out = tmp_path / str(processes)
        stopped = crew(out, 2, "stop 11", check=False)
        assert stopped.returncode != 0
        assert "saved" in stopped.stderr or "resume" in stopped.stderr
        assert load_weights(out / "run" / "last" / "checkpoint.safetensors")[1]["progress"]["step"] > 0
        crew(out, processes, "train")
        assert_close(scores(out), scores(alone))


def test_all_processes_find_shards_that_were_moved(tmp_path: Path, own_cache: None) -> None:
    fields = ("data.limit=null", "data.image_size=16", "data.shuffle_buffer=32")
    source = shards(tmp_path / "before", 6, 20)
    stopped = crew(tmp_path, 2, "stop 3", f"data.source={source}", *fields, check=False)
    assert "SIGTERM" in stopped.stderr
    (tmp_path / "before").rename(tmp_path / "after")
    crew(tmp_path, 2, "train", f"data.source={source.replace('before', 'after')}", *fields)
    run = Run.open(tmp_path / "run")
    assert run.finished
    assert run.recipe.data.source == source.replace("before", "after")
    crew(tmp_path / "whole", 2, "train", f"data.source={source.replace('before', 'after')}", *fields)
    assert scores(tmp_path) == scores(tmp_path / "whole"), "resumed bit for bit"


def test_all_processes_say_why_a_run_cannot_be_resumed(alone: Path) -> None:
    done = crew(alone, 2, "train", "train.batch_size=12", check=False)
    assert done.returncode != 0
    assert "error: " in done.stderr
    assert "train.batch_size was 24, is 12" in done.stderr
    assert done.stderr.count("Traceback") == 1, "torchrun's own"


def test_epochs_that_are_not_validated(tmp_path: Path, own_cache: None) -> None:
    fields = ("train.epochs=3", "train.validate_every=2")
    crew(tmp_path / "one", 1, "train", *fields)
    assert crew(tmp_path / "two", 2, "stop 3", *fields, check=False).returncode != 0
    crew(tmp_path / "two", 2, "train", *fields)
    one, two = (Run.open(tmp_path / name / "run").metrics() for name in ("one", "two"))
    for name, validated in (("train_loss", [1, 2, 3]), ("val_loss", [2, 3])):
        for rows in (one, two):
            assert [row["epoch"] for row in rows if row.get(name) is not None] == validated
        expected = [row[name] for row in one if name in row]
        assert [row[name] for row in two if name in row] == pytest.approx(expected, abs=2e-4)


def test_accumulated_batches_are_exchanged_once_an_update(tmp_path: Path, own_cache: None) -> None:
    fields = ("train.accumulate=2", "train.batch_size=12")
    crew(tmp_path / "one", 1, "train", *fields)
    crew(tmp_path / "two", 2, "train", *fields)
    assert_close(scores(tmp_path / "two"), scores(tmp_path / "one"))


def test_synced_batchnorm_is_that_of_one_process(tmp_path: Path, own_cache: None) -> None:
    fields = ("model={name: resnet8, width: 8}", "train.epochs=1")
    for name, processes, sync in (("one", 1, "true"), ("two", 2, "true"), ("apart", 2, "false")):
        crew(tmp_path / name, processes, "train", *fields, f"train.sync_bn={sync}")
    one, two, apart = (scores(tmp_path / name)[0]["train_loss"] for name in ("one", "two", "apart"))
    assert two == pytest.approx(one, abs=2e-3)
    assert abs(apart - one) > 5 * abs(two - one)
    tensors = [load_weights(tmp_path / name / "run" / "best.safetensors")[0] for name in ("one", "two")]
    for name, tensor in tensors[0].items():
        assert tensors[1][name].shape == tensor.shape
        np.testing.assert_allclose(tensors[1][name], tensor, rtol=0.05, atol=0.02, err_msg=name)


def test_a_process_that_dies_ends_all_with_a_message(tmp_path: Path, own_cache: None) -> None:
    done = crew(tmp_path, 2, "die 5", check=False)
    assert time.time() - float((tmp_path / "ended").read_text()) < 30
    assert done.returncode != 0
    assert "lost another process" in done.stderr
    assert "--resume" in done.stderr or "start again" in done.stderr


def test_a_process_that_does_not_answer_is_not_waited_for(tmp_path: Path, own_cache: None) -> None:
    done = crew(tmp_path, 2, "hang 5", "train.process_timeout=5", check=False)
    assert done.returncode != 0
    assert "train.process_timeout" in done.stderr


def test_compiled_networks_learn_the_same_in_two_processes(tmp_path: Path, alone: Path) -> None:
    crew(tmp_path, 2, "train", "train.compile=true")
    assert_close(scores(tmp_path), scores(alone), 1e-3)


def test_two_machines_meet_by_torchrun_s_rendezvous(tmp_path: Path, alone: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test", "--local-addr=127.0.0.1"]
    command += ["-m", "tests.pipelines.crew", str(tmp_path), "train"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    agents = [subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for agent in agents:
        _, errors = agent.communicate(timeout=400)
        assert agent.returncode == 0, errors[-3000:]
    assert_close(scores(tmp_path), scores(alone))
    assert Run.open(tmp_path / "run").environment()["processes"] == 2
