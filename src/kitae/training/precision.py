"""Mixed precision: a rule that chooses one, the autocast context of each, and what each costs."""

from __future__ import annotations

import copy
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from kitae.modes import evaluating
from kitae.training.losses import soft_cross_entropy

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}

# A network with more of its multiply-adds in grouped convolutions trains in fp32 on a CPU; see `choose`.
_MOST_GROUPED = 0.01


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
    """The precisions that a device can train in: fp16 needs a gradient scaler and a GPU, so never on a CPU."""
    if device.type == "cuda":
        return ["fp32", "bf16", "fp16"] if torch.cuda.is_bf16_supported() else ["fp32", "fp16"]
    return ["fp32", "bf16"]


def choose(model: nn.Module, channels: int, image_size: int, device: torch.device) -> Precision:
    """The precision that `auto` stands for: a rule of hardware and network, so that no clock decides about a result.

    On a GPU: bf16 from compute capability 8.0 on, fp16 from 7.0 on (the first tensor cores), else fp32. On a CPU: bf16
    where the CPU multiplies it natively (AVX512-BF16, AMX, Arm's BF16) and hardly any of the network's multiply-adds
    are in grouped convolutions, for which the library has no fast bf16 kernels; else fp32. `kitae bench precision`
    measures a recipe in each precision.

    Args:
        model: on any device; it is run once, on one image, in eval mode.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16" if major >= 8 else "fp16" if major == 7 else "fp32"
    if not native_bf16():
        return "fp32"
    return "bf16" if grouped_share(model, channels, image_size) <= _MOST_GROUPED else "fp32"


def native_bf16() -> bool:
    """Whether this CPU has instructions that multiply bfloat16. Where Linux does not say, it has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    flags = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def grouped_share(model: nn.Module, channels: int, image_size: int) -> float:
    """The share of a network's multiply-adds in convolutions with groups, in [0, 1]; of convolutions and linear layers."""
    macs = {True: 0, False: 0}

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            each = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            macs[module.groups > 1] += output.numel() * each
        elif isinstance(module, nn.Linear):
            macs[False] += output.numel() * module.in_features

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    try:
        parameter = next(model.parameters())
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, channels, image_size, image_size, device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return macs[True] / max(1, sum(macs.values()))


def measure(
    model: nn.Module, images: Tensor, targets: Tensor, *, device: torch.device, steps: int = 3
) -> dict[Precision, float]:
    """Median seconds of a forward and backward pass in each precision that stays finite, on a copy of the model.

    The precisions take turns, so that a busy moment of the machine hits all of them. A precision for which memory does
    not suffice is left out; where it suffices for none, that error is raised.

    Args:
        images: float32 [N, C, H, W] on `device`.
        targets: float32 [N, K] on `device`.
    """
    times: dict[Precision, list[float] | None] = {precision: [] for precision in candidates(device)}
    too_large: Exception | None = None
    trials = {precision: copy.deepcopy(model).train() for precision in times}
    for step in range(steps + 1):
        for precision, taken in times.items():
            if taken is None:
                continue
            try:
                seconds = _seconds(precision, trials[precision], images, targets, device)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                too_large, seconds = error, None
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            if seconds is None:
                times[precision] = None
            elif step:  # the first pass builds what the later ones use
                taken.append(seconds)
    found = {precision: sorted(taken)[len(taken) // 2] for precision, taken in times.items() if taken}
    if too_large is not None and not found:
        raise too_large
    return found


def _seconds(
    precision: Precision, model: nn.Module, images: Tensor, targets: Tensor, device: torch.device
) -> float | None:
    """Seconds of a pass; None where the loss is not finite."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        start = time.perf_counter()
        with autocast(precision, device):
            loss = soft_cross_entropy(model(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        finite = bool(torch.isfinite(loss))  # waits for the GPU too
        return time.perf_counter() - start if finite else None
