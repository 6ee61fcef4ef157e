"""Weights and state on disk."""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from kitae.errors import KitaeError, TrainingError
from kitae.training.checkpoint import (
    Progress,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
    weights_digest,
)
from kitae.training.optim import build_optimizer
from kitae.training.spec import OptimizerSpec
from tests.refusals import refused
from tests.training.toy_world import toy_net


def checkpoint(path: Path) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = toy_net()
    optimizer = build_optimizer(model, OptimizerSpec(name="adamw", lr=0.01))
    model(torch.rand(4, 3, 8, 8)).sum().backward()
    optimizer.step()
    save_checkpoint(path, Progress(epoch=2, loss_sum=0.1), {"model": model}, optimizer, "f")
    return model, optimizer


def test_round_trip(tmp_path: Path) -> None:
    saved, optimized = checkpoint(tmp_path / "c")
    model = toy_net()
    optimizer = build_optimizer(model, OptimizerSpec(name="adamw", lr=0.01))
    progress, notes = load_checkpoint(tmp_path / "c", {"model": model}, optimizer, "f")
    assert progress == Progress(epoch=2, loss_sum=0.1)
    assert not notes
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    before, after = optimized.state_dict()["state"], optimizer.state_dict()["state"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k]["exp_avg"], after[k]["exp_avg"]) for k in before)


def test_equal_states_are_equal_bytes(tmp_path: Path) -> None:
    state = toy_net().state_dict()
    save_weights(state, tmp_path / "a", {"x": 1, "y": 2})
    save_weights(dict(reversed(state.items())), tmp_path / "b", {"y": 2, "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def pickled(path: Path) -> None:
    torch.save(toy_net().state_dict(), path)


def cut(keep: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize(
    ("damage", "words"),
    [(pickled, "not a whole checkpoint"), (Path.unlink, r"cannot be read \(No such file")]
    + [(cut(keep), "not a whole checkpoint") for keep in (0, 4, 100, -1)],
)
def test_what_is_no_checkpoint_is_named(damage: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    checkpoint(tmp_path / "c")
    damage(tmp_path / "c")
    refused(TrainingError, rf"{tmp_path / 'c'}: .*{words}", load_weights, tmp_path / "c")


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9") / "best.safetensors"
    save_weights({"a": torch.arange(3.0)}, file, {"epoch": 2})
    tensors, metadata = load_weights(file)
    assert (tensors["a"].tolist(), metadata) == ([0.0, 1.0, 2.0], {"epoch": 2})
    cut(-1)(file)
    refused(TrainingError, "not a whole checkpoint", load_weights, file)
    file.unlink()
    refused(TrainingError, "cannot be read", load_weights, file)


def test_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / "c")
    before = (tmp_path / "c").read_bytes()

    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(
        KitaeError, match=r"c: cannot be written \(No space left on device\); the previous file is kept"
    ):
        checkpoint(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_digest_is_of_values_and_not_of_their_layout() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    digest = weights_digest(model)
    assert weights_digest(copy.deepcopy(model).to(memory_format=torch.channels_last)) == digest
    with torch.no_grad():
        model[1].running_mean[2] += 1e-6
    assert weights_digest(model) != digest
