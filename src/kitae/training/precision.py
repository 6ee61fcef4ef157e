"""Mixed precision: what the hardware has, which is fastest, and the autocast context of each."""

from __future__ import annotations

import copy
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, cast

import torch
from torch import Tensor, nn

from kitae.training.losses import soft_cross_entropy

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory did not suffice, on a GPU or not."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or "not enough memory" in str(error)  # which torch's allocator for the CPU says


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass: nothing for fp32, torch.autocast for the others."""
    if precision == "fp32":
        return nullcontext()
    return cast(AbstractContextManager[object], torch.autocast(device.type, dtype=_DTYPE[precision]))


def candidates(device: torch.device) -> list[Precision]:
    """What `auto` may choose from: fp16 needs a gradient scaler and a GPU, so never on a CPU."""
    if device.type == "cuda":
        return ["fp32", "bf16", "fp16"] if torch.cuda.is_bf16_supported() else ["fp32", "fp16"]
    return ["fp32", "bf16"]


def measure(
    model: nn.Module, images: Tensor, targets: Tensor, *, device: torch.device, steps: int = 3
) -> dict[Precision, float]:
    """Median seconds of a forward and backward pass in each precision that stays finite, on a copy of the model.

    A precision for which memory does not suffice is left out; where it suffices for none, that error is raised.

    Args:
        images: float32 [N, C, H, W] on `device`.
        targets: float32 [N, K] on `device`.
    """
    found: dict[Precision, float | None] = {}
    too_large: Exception | None = None
    for precision in candidates(device):
        try:
            found[precision] = _seconds(precision, model, images, targets, device, steps)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            too_large = error
            if device.type == "cuda":
                torch.cuda.empty_cache()
    if too_large is not None and not found:
        raise too_large
    return {precision: seconds for precision, seconds in found.items() if seconds is not None}


def _seconds(
    precision: Precision, model: nn.Module, images: Tensor, targets: Tensor, device: torch.device, steps: int
) -> float | None:
    """Median seconds of a pass on a copy of the model; None where a loss was not finite."""
    trial = copy.deepcopy(model).train()
    times: list[float] = []
    finite = True
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        for _ in range(steps + 1):
            start = time.perf_counter()
            with autocast(precision, device):
                loss = soft_cross_entropy(trial(images), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            finite = finite and bool(torch.isfinite(loss))  # waits for the GPU too
            times.append(time.perf_counter() - start)
    return sorted(times[1:])[steps // 2] if finite else None


def resolve(
    precision: Literal["fp32", "bf16", "fp16", "auto"],
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    device: torch.device,
) -> Precision:
    """The precision itself, or for `auto` the fastest of `measure` (fp32 where none stays finite)."""
    if precision != "auto":
        return precision
    seconds = measure(model, images, targets, device=device)
    return min(seconds, key=seconds.__getitem__) if seconds else "fp32"
