"""Training networks with depthwise convolutions in bfloat16 on a CPU: what gradients of our own bring.

    python benchmarks/depthwise.py

Four ways take turns, round after round: float32; bfloat16 autocast as it is; the same with depthwise convolutions in
float32; and with `training.depthwise`, whose kernels replace those gradients that oneDNN computes slowly. First whole
steps (forward and backward) of networks of timm, then the two gradients of single convolutions. Freed memory is kept,
as `kitae train` does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import common
import timm
import torch
from torch import Tensor

from kitae.training import depthwise
from kitae.training.guards import keep_freed_memory
from kitae.training.precision import autocast, float_depthwise

CPU = torch.device("cpu")
NETWORKS = ("tf_efficientnet_lite0", "mobilenetv3_large_100", "convnext_atto")
# Channels, side of the kernel, stride, side of the images: those of EfficientNet-Lite0 at 224 px, and of ConvNeXt.
LAYERS = (
    (32, 3, 1, 112), (96, 3, 2, 112), (144, 3, 1, 56), (144, 5, 2, 56), (240, 5, 1, 28), (240, 3, 2, 28),
    (480, 3, 1, 14), (480, 5, 1, 14), (672, 5, 2, 14), (1152, 5, 1, 7), (96, 7, 1, 56), (768, 7, 1, 7),
)  # fmt: skip
LAST = torch.channels_last


def step_of(name: str, way: str, side: int, batch: int) -> Callable[[], Any]:
    """A forward and a backward pass."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=10).to(memory_format=LAST).train()
    if way == "bf16, depthwise in fp32":
        float_depthwise(net, "bf16", CPU)
    images = torch.randn(batch, 3, side, side).contiguous(memory_format=LAST)
    labels = torch.arange(batch) % 10
    inside = depthwise.DepthwiseGradients() if way == "ours" else contextlib.nullcontext()

    def step() -> None:
        net.zero_grad()
        with autocast("fp32" if way == "fp32" else "bf16", CPU), inside:
            loss = torch.nn.functional.cross_entropy(net(images), labels)
        loss.backward()

    return step


def gradients_of(layer: tuple[int, int, int, int], batch: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Of the input and of the weights: torch's in both precisions, and ours."""
    channels, kernel, stride, side = layer
    inputs = torch.randn(batch, channels, side, side).contiguous(memory_format=LAST)
    weight = torch.randn(channels, 1, kernel, kernel)
    settings = ((stride,) * 2, (kernel // 2,) * 2, (1, 1))
    gradient = torch.randn_like(torch.conv2d(inputs, weight, None, *settings, channels))

    def torchs(dtype: torch.dtype, which: int) -> Callable[[], Any]:
        values = [value.to(dtype).contiguous(memory_format=LAST) for value in (gradient, inputs)] + [weight.to(dtype)]
        wanted = [which == 0, which == 1, False]
        back = torch.ops.aten.convolution_backward
        return lambda: back(*values, None, *settings, False, [0, 0], channels, wanted)

    def ours(which: int) -> Callable[[], Any]:
        values: list[Tensor] = [v.bfloat16().contiguous(memory_format=LAST) for v in (gradient, inputs)]
        shape = depthwise.shape_of(values[0], values[1], weight, settings)
        make = (depthwise.input_gradient, depthwise.weight_gradient)[which]
        return lambda: make(values[0], values[1], weight, shape)

    return {
        of: {"fp32": torchs(torch.float32, which), "bf16": torchs(torch.bfloat16, which), "ours": ours(which)}
        for which, of in enumerate(("input", "weights"))
    }


def measure(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Milliseconds of each way, in turns, and their ratios to ours."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for call in ways.values():
        call()
    for _ in range(rounds):
        for way, call in ways.items():
            began = time.perf_counter()
            call()
            taken[way].append(1000 * (time.perf_counter() - began))
    spreads = {way: common.spread(values) for way, values in taken.items()}
    over = {way: common.ratio(spreads[way], spreads["ours"]) for way in ways if way != "ours"}
    print("  " + ", ".join(f"{way} {value['median']:.2f}" for way, value in over.items()), "times ours", flush=True)
    return {"milliseconds": spreads, "over_ours": over}


def main() -> None:
    given = common.turns(__doc__, "depthwise", rounds=7, seconds=0)
    side, batch = (32, 2) if given.tiny else (224, 16)
    keep_freed_memory()
    networks, layers = [], []
    for name in NETWORKS[:1] if given.tiny else NETWORKS:
        print(name)
        ways = {way: step_of(name, way, side, batch) for way in ("fp32", "bf16", "bf16, depthwise in fp32", "ours")}
        networks.append({"network": name, "side": side, "batch": batch, **measure(ways, given.rounds)})
    for layer in LAYERS[-1:] if given.tiny else LAYERS:
        for of, calls in gradients_of(layer, batch).items():
            print("gradient of the", of, layer)
            names = ("channels", "kernel", "stride", "side")
            layers.append({**dict(zip(names, layer, strict=True)), "of": of, "batch": batch,
                           **measure(calls, given.rounds)})  # fmt: skip
    common.save(given.out, {
        "what": __doc__, "machine": common.hardware(common.available_cores()), "threads": torch.get_num_threads(),
        "networks": networks, "layers": layers,
    })  # fmt: skip
    print(f"results: {given.out}")


if __name__ == "__main__":
    main()
