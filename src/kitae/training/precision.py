"""Mixed precision: a rule that chooses one, and the autocast context of each."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kitae.machine import cpuinfo
from kitae.training.depthwise import depthwise_layers

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}


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


def choose(device: torch.device) -> Precision:
    """The precision that `auto` stands for: a rule based on the hardware, so that results do not depend on timings.

    On a GPU: bf16 from compute capability 8.0 on, fp16 from 7.0 on (the first tensor cores), else fp32. On a CPU: bf16
    if it multiplies bfloat16 natively, else fp32; for depthwise convolutions see `float_depthwise`.
    `kitae bench precision` measures a recipe in each precision; the rule is based on benchmarks/results/precision.json.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16" if major >= 8 else "fp16" if major == 7 else "fp32"
    return "bf16" if native_bf16() else "fp32"


def native_bf16() -> bool:
    """Whether this CPU has instructions that multiply bfloat16; false if Linux does not report them."""
    flags = set((cpuinfo("flags", "Features") or "").split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


@cache
def fast_depthwise(precision: Precision, device: torch.device) -> bool:
    """Whether the forward pass of depthwise convolutions is fast in bf16 on a CPU: oneDNN's kernels need AVX-512."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return precision == "bf16" and device.type == "cpu" and x86 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def float_depthwise(model: nn.Module, precision: Precision, device: torch.device) -> list[RemovableHandle]:
    """Keep depthwise convolutions in float32 under autocast on a CPU, until the returned handles are removed.

    The CPU library has fast bf16 kernels for only some of their gradients: strides and kernels of 5 x 5 use a reference
    kernel, up to 50 times slower than float32. `DepthwiseGradients` replaces those where `fast_depthwise` is true, but
    not in a network that torch.compile traces.
    """
    if precision == "fp32" or device.type != "cpu":
        return []
    handles: list[RemovableHandle] = []
    for module in depthwise_layers(model):
        handles.append(module.register_forward_pre_hook(_leave_autocast))
        handles.append(module.register_forward_hook(_enter_autocast, always_call=True))
    return handles


@contextmanager
def inference(model: nn.Module, precision: Precision, device: torch.device) -> Iterator[None]:
    """Run a network in a precision: autocast, with depthwise convolutions in float32 on a CPU where they are slow."""
    handles = [] if fast_depthwise(precision, device) else float_depthwise(model, precision, device)
    try:
        with autocast(precision, device):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _leave_autocast(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    module._autocast_was_on = torch.is_autocast_enabled("cpu")  # type: ignore[assignment]
    torch.set_autocast_enabled("cpu", False)
    return tuple(value.float() for value in inputs)


def _enter_autocast(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    torch.set_autocast_enabled("cpu", bool(module._autocast_was_on))
