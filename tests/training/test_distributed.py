"""Two processes under torchrun learn what one process learns, from the same samples in the same order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kitae.training import distributed
from kitae.training.checkpoint import load_weights, save_weights
from kitae.training.distributed import World, gather_rows
from kitae.training.fit import fit
from kitae.training.spec import TrainSpec
from tests.training.toy_world import WORLD, ToyAugment, ToyData, ToyValidate


def linear() -> nn.Module:
    """No BatchNorm, whose statistics are each process's own."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))


def learn(world: World, out: Path) -> None:
    data = ToyData(64 + 12)
    model = linear()
    spec = TrainSpec.model_validate({"epochs": 2, "batch_size": 16, "optimizer": {"lr": 0.01}, "accumulate": 2})
    fit(model, spec=spec, data=data, augment=ToyAugment(), validate=ToyValidate(data), world=world, precision="fp32")
    save_weights(model.state_dict(), out / f"{world.size}-{world.rank}.safetensors")
    np.save(out / f"{world.size}-{world.rank}.npy", np.concatenate(data.asked))


def test_rows_are_gathered_once_each_when_alone() -> None:
    rows = np.array([2, 0, 1])
    whole = gather_rows(np.array([[2.0], [0.0], [1.0]], np.float32), rows, 3, WORLD)
    assert whole.ravel().tolist() == [0.0, 1.0, 2.0]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    learn(WORLD, tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29617", __file__]
    subprocess.run([*command, str(tmp_path)], check=True, timeout=120, cwd=Path(__file__).parents[2])
    one, first, second = (load_weights(tmp_path / f"{n}.safetensors")[0] for n in ("1-0", "2-0", "2-1"))
    for name, tensor in one.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(tensor, first[name], rtol=1e-5, atol=1e-6)
    asked = [np.load(tmp_path / f"{n}.npy") for n in ("1-0", "2-0", "2-1")]
    assert sorted(asked[0]) == sorted([*asked[1], *asked[2]])
    assert not set(asked[1][:38]) & set(asked[2][:38])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    learn(distributed.join("cpu"), Path(sys.argv[1]))
    distributed.leave()
