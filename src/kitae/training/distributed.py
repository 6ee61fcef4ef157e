"""Several processes under `torchrun`: rank, sums over processes. Without torchrun every function is a no-op."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kitae.errors import RecipeError, TrainingError, one_line

# What gloo and nccl say when a peer is gone or late.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "gloo", "NCCL")


@dataclass(frozen=True)
class World:
    """This process: `rank` of `size`, on `device`."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def is_main() -> bool:
    """Whether this is the first of the processes that torchrun started; known before `join`."""
    return int(os.environ.get("RANK", "0")) == 0


def join(device: str, timeout: float | None = None) -> World:
    """Join the processes that torchrun started (gloo on CPU, nccl on GPU), if any.

    Args:
        device: `auto`, `cpu` or `cuda`.
        timeout: seconds that a process waits for the others before it gives up; None is torch's own.

    Raises:
        TrainingError: there is no such device for this process, or torchrun did not start it and WORLD_SIZE says more.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("train.device: cuda, but torch sees no CUDA device; use auto or cpu")
    cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda and local >= (count := torch.cuda.device_count()):
        raise TrainingError(
            f"train.device: process {local} of this machine has no GPU, torch sees {count}; start {count} process(es) "
            "with --nproc_per_node, or set train.device: cpu"
        )
    place = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(place)
    if size > 1 and not dist.is_initialized():
        patience = None if timeout is None else timedelta(seconds=timeout)
        try:
            dist.init_process_group("nccl" if cuda else "gloo", timeout=patience)
        except ValueError as error:  # torchrun sets all variables that torch needs; a cluster may set this one alone
            raise TrainingError(
                f"the environment variable WORLD_SIZE is {size}, but torch cannot find the other processes "
                f"({one_line(error)}); start them with torchrun, or unset WORLD_SIZE to train with one"
            ) from error
    return World(rank, size, place)


def leave() -> None:
    """Leave the group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def lost_process(error: BaseException) -> bool:
    """Whether an error means that another process is gone or does not answer; torch has no single type for it."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST)


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
    """For each flag, whether it is true in any process; every process gets the same result."""
    if world.size == 1:
        return flags
    said: list[bool] = (all_sum(torch.tensor(flags, dtype=torch.float32, device=world.device), world) > 0).tolist()
    return said


def any_true(flag: bool, world: World) -> bool:
    """Whether the flag is true in any process; every process gets the same result."""
    return any_of([flag], world)[0]


def share_buffers(model: nn.Module, world: World) -> None:
    """Give every process the main one's buffers (BatchNorm's statistics), in place."""
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


class _Sum(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        whole = values.clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous()
        dist.all_reduce(whole)
        return whole


def sync_batchnorm(model: nn.Module, world: World) -> Callable[[], None]:
    """Let BatchNorm compute its statistics over the batches of all processes, in place.

    Like torch.nn.SyncBatchNorm, which needs GPUs; this also works with gloo, and does not replace the model's modules.

    Returns:
        A function that undoes it.

    Raises:
        RecipeError: a BatchNorm of a library that does something unknown after normalising.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if world.size == 1:
        layers = []

    def synced(layer: _BatchNorm) -> Callable[[Tensor], Tensor]:
        alone = layer.forward
        inner = dict(layer.named_children())
        if type(layer).forward is not _BatchNorm.forward and inner.keys() != {"drop", "act"}:
            kind = f"{type(layer).__module__}.{type(layer).__name__}"
            raise RecipeError(f"train.sync_bn: {kind} cannot be synchronised; set train.sync_bn to false")
        rest = nn.Sequential(*(inner[name] for name in ("drop", "act") if inner))  # of timm's BatchNormAct2d

        def forward(images: Tensor) -> Tensor:
            if not layer.training:
                return alone(images)
            values = images.float()
            others = [0, *range(2, values.dim())]
            count = values.new_full((1,), values.numel() / values.shape[1])
            sums = _Sum.apply(torch.cat([values.sum(others), count]))
            mean, total = sums[:-1] / sums[-1], sums[-1].detach()
            shape = [1, -1] + [1] * (values.dim() - 2)
            centred = values - mean.reshape(shape)
            # The variance is a second sum, of the distances: the mean of squares minus the squared mean loses digits.
            variance = _Sum.apply((centred * centred).sum(others)) / total
            if layer.track_running_stats and layer.running_mean is not None and layer.running_var is not None:
                with torch.no_grad():
                    assert layer.num_batches_tracked is not None
                    layer.num_batches_tracked += 1
                    step = layer.momentum if layer.momentum is not None else 1 / float(layer.num_batches_tracked)
                    layer.running_mean.lerp_(mean.detach(), step)
                    layer.running_var.lerp_(variance.detach() * (total / (total - 1).clamp(min=1)), step)
            out: Tensor = centred * torch.rsqrt(variance + layer.eps).reshape(shape)
            if layer.affine:
                out = out * layer.weight.reshape(shape) + layer.bias.reshape(shape)
            result: Tensor = rest(out.to(images.dtype))
            return result

        return forward

    for layer, forward in zip(layers, [synced(layer) for layer in layers], strict=True):
        layer.forward = forward  # type: ignore[assignment]

    def undo() -> None:
        for layer in layers:
            del layer.forward

    return undo


def from_main(value: Any, world: World) -> Any:
    """The main process's `value`, in every process."""
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
    whole = torch.zeros((total, local.shape[1]))
    whole[torch.from_numpy(rows)] = torch.from_numpy(local)
    result: NDArray[np.float32] = all_sum(whole.to(world.device), world).cpu().numpy()
    return result
