"""Several processes under `torchrun`: who am I, and sums over all. Without torchrun every function is a no-op."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from kitae.errors import TrainingError


@dataclass(frozen=True)
class World:
    """This process's place: `rank` of `size`, on `device`."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def join(device: str) -> World:
    """Join the processes that torchrun started (gloo on CPU, nccl on GPU), or be alone.

    Args:
        device: `auto`, `cpu` or `cuda`.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("train.device: cuda, but torch sees no CUDA device; use auto or cpu")
    cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(place)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    return World(rank, size, place)


def leave() -> None:
    """Leave the group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier(world: World) -> None:
    """Wait for all processes."""
    if world.size > 1:
        dist.barrier()


def all_sum(values: Tensor, world: World) -> Tensor:
    """The sum of `values` over all processes, in place."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def any_of(flags: list[bool], world: World) -> list[bool]:
    """For each flag whether any process says true; every process gets the same answers."""
    if world.size == 1:
        return flags
    said: list[bool] = (all_sum(torch.tensor(flags, dtype=torch.float32, device=world.device), world) > 0).tolist()
    return said


def any_true(flag: bool, world: World) -> bool:
    """Whether any process says true; every process gets the same answer."""
    return any_of([flag], world)[0]


def share_buffers(model: nn.Module, world: World) -> None:
    """Give every process the main one's buffers (BatchNorm's statistics), in place."""
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def from_main(value: Any, world: World) -> Any:
    """What the main process has for `value`, in every process."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, 0, device=world.device)
    return box[0]


def gather_rows(local: NDArray[np.float32], rows: NDArray[np.int64], total: int, world: World) -> NDArray[np.float32]:
    """Put every process's rows into one array [total, K]; each row is written by exactly one process.

    Args:
        local: [n, K], this process's results.
        rows: int64 [n], where each belongs in [0, total).
    """
    if world.size == 1 and len(rows) == total:
        whole = np.empty((total, local.shape[1]), np.float32)
        whole[rows] = local
        return whole
    whole_tensor = torch.zeros((total, local.shape[1]), device=world.device)
    whole_tensor[torch.from_numpy(rows)] = torch.from_numpy(local).to(world.device)
    result: NDArray[np.float32] = all_sum(whole_tensor, world).cpu().numpy()
    return result
