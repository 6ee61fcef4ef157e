"""Two processes under torchrun learn what one process learns, from the same samples in the same order."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from kitae.errors import RecipeError, TrainingError, TrainingInterruptedError
from kitae.training import distributed
from kitae.training.checkpoint import load_weights, save_weights
from kitae.training.distributed import World, gather_rows, join
from kitae.training.spec import TrainSpec
from tests.refusals import refused
from tests.training.toy_world import WORLD, ToyAugment, ToyData, ToyValidate, fit, toy_net
from tests.watchers import Signal


def linear() -> nn.Module:
    """No BatchNorm, whose statistics are each process's own."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))


def test_synced_batchnorm_does_the_rest_of_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's layers activate after they normalise."""
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda _: None)
    torch.manual_seed(0)
    net = timm.create_model("test_efficientnet", num_classes=3).train()
    images = torch.randn(8, 3, 32, 32)
    plain = net(images)
    undo = distributed.sync_batchnorm(net, World(0, 2, torch.device("cpu")))
    assert torch.allclose(net(images), plain, atol=1e-4)
    undo()
    assert torch.equal(net(images), plain)


def test_a_batchnorm_that_cannot_be_synchronised_is_refused() -> None:
    class Scaled(nn.BatchNorm2d):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(images)

    net = nn.Sequential(nn.BatchNorm2d(3), Scaled(3))
    with pytest.raises(RecipeError, match=r"train\.sync_bn: .*Scaled cannot be synchronised; set train"):
        distributed.sync_batchnorm(net, World(0, 2, torch.device("cpu")))
    assert "forward" not in vars(net[0])


class Counted(nn.parallel.DistributedDataParallel):
    """Counts how often gradients are exchanged."""

    exchanged = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register_comm_hook(None, lambda _, bucket: Counted.exchange(bucket))

    @classmethod
    def exchange(cls, bucket: Any) -> Any:
        cls.exchanged += 1
        return default_hooks.allreduce_hook(None, bucket)  # type: ignore[arg-type]


def learn(world: World, out: Path) -> None:
    data = ToyData(64 + 12)
    model = linear()
    spec = TrainSpec.model_validate({"epochs": 2, "batch_size": 16, "optimizer": {"lr": 0.01}, "accumulate": 2})
    with pytest.MonkeyPatch.context() as context:
        context.setattr(nn.parallel, "DistributedDataParallel", Counted)
        fit(
            model, spec=spec, data=data, augment=ToyAugment(), validate=ToyValidate(data), world=world,
            precision="fp32",
        )  # fmt: skip
    if world.size > 1:
        assert Counted.exchanged == 4  # updates, of eight batches
    save_weights(model.state_dict(), out / f"{world.size}-{world.rank}.safetensors")
    np.save(out / f"{world.size}-{world.rank}.npy", np.concatenate(data.asked))


def stop_and_go_on(world: World, out: Path) -> None:
    """A network with BatchNorm and dropout, trained at a stretch and with a stop in the middle of an epoch."""
    spec = TrainSpec.model_validate({"epochs": 2, "batch_size": 16, "optimizer": {"lr": 0.05}})
    for name, watcher in (("whole", None), ("cut", Signal(3))):
        data, model = ToyData(76), toy_net()
        call: dict[str, Any] = {
            "spec": spec,
            "data": data,
            "augment": ToyAugment(),
            "validate": ToyValidate(data),
            "world": world,
            "precision": "fp32",
            "checkpoint": out / name,
            "best": out / f"{name}-best",
        }
        result = None
        with contextlib.suppress(TrainingInterruptedError):
            result = fit(model, watcher=watcher if world.is_main else None, **call)
        assert (result is None) == (name == "cut")
        result = result or fit(model, resume=True, **call)
        kept = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
        rows = [{key: row[key] for key in kept} for row in result.rows]
        (out / f"{name}-{world.rank}.json").write_text(json.dumps(rows))
        save_weights(model.state_dict(), out / f"{name}-{world.rank}.safetensors")


def test_rows_are_gathered_once_each_when_alone() -> None:
    rows = np.array([2, 0, 1])
    whole = gather_rows(np.array([[2.0], [0.0], [1.0]], np.float32), rows, 3, WORLD)
    assert whole.ravel().tolist() == [0.0, 1.0, 2.0]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    learn(WORLD, tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29617"]
    command += ["-m", "tests.training.test_distributed", str(tmp_path)]
    subprocess.run(command, check=True, timeout=120, cwd=Path(__file__).parents[2])
    one, first, second = (load_weights(tmp_path / f"{n}.safetensors")[0] for n in ("1-0", "2-0", "2-1"))
    for name, tensor in one.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(tensor, first[name], rtol=1e-5, atol=1e-6)
    asked = [np.load(tmp_path / f"{n}.npy") for n in ("1-0", "2-0", "2-1")]
    assert sorted(asked[0]) == sorted([*asked[1], *asked[2]])
    assert not set(asked[1][:32]) & set(asked[2][:32])  # an epoch of 64, the rest is dropped

    # Validation is of the same network everywhere, and a stop in the middle of an epoch changes nothing.
    read = [json.loads((tmp_path / f"{n}.json").read_text()) for n in ("whole-0", "whole-1", "cut-0", "cut-1")]
    assert read[0] == read[1] == read[2] == read[3]
    ends = [load_weights(tmp_path / f"{n}.safetensors")[0] for n in ("whole-0", "whole-1", "cut-0", "cut-1")]
    assert all(torch.equal(ends[0][name], end[name]) for end in ends for name in ends[0])


def test_more_processes_than_gpus_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(TrainingError, r"process 1 of this machine has no GPU, torch sees 1; .*--nproc_per_node", join, "auto")


def test_a_number_of_processes_that_torchrun_did_not_start_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    refused(TrainingError, r"WORLD_SIZE is 2, but .* RANK expected.*; start them with torchrun, or unset", join, "cpu")


if __name__ == "__main__":
    here = distributed.join("cpu")
    assert distributed.from_main(f"of {here.rank}", here) == "of 0"
    learn(here, Path(sys.argv[1]))
    stop_and_go_on(here, Path(sys.argv[1]))
    distributed.leave()
