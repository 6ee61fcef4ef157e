"""Mixed precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kitae.errors import TrainingError
from kitae.training import precision
from kitae.training.distributed import World
from kitae.training.measure import PARTS, step_times
from kitae.training.spec import OptimizerSpec, TrainSpec
from tests.refusals import refused
from tests.training.toy_world import toy_net

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
WORLD = World(0, 1, CPU)
BATCH = torch.rand(8, 3, 8, 8), nn.functional.one_hot(torch.arange(8) % 2, 2).float()


def seconds(model: nn.Module, **options: Any) -> dict[precision.Precision, NDArray[np.float64]]:
    return step_times(model, TrainSpec(batch_size=8), *BATCH, WORLD, **options)


def test_auto_is_a_rule_of_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for native in (True, False):
        monkeypatch.setattr(precision, "native_bf16", lambda native=native: native)
        assert precision.choose(CPU) == ("bf16" if native else "fp32")
    for capability, expected in (((6, 1), "fp32"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert precision.choose(torch.device("cuda")) == expected


def test_the_rule_is_within_five_percent_of_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every measured network, on a processor with native bf16; `benchmarks/precision.py` measures again."""
    monkeypatch.setattr(precision, "native_bf16", lambda: True)
    rows = json.loads((ROOT / "benchmarks/results/precision.json").read_text())["rows"]
    assert len(rows) >= 16
    for name, row in rows.items():
        ratios = {one: found["ratio"] for one, found in row["precisions"].items()}
        assert ratios[precision.choose(CPU)] <= 1.05 * min(ratios.values()), name


def test_depthwise_convolutions_stay_in_float32_on_a_cpu() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2))
    seen: list[torch.dtype] = []
    for layer in net:
        layer.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    handles = precision.float_depthwise(net, "bf16", CPU)
    with precision.autocast("bf16", CPU):
        net(torch.rand(1, 3, 8, 8))
        assert torch.is_autocast_enabled("cpu")
        with pytest.raises(RuntimeError):
            net(torch.rand(1, 8, 2, 2))
        assert torch.is_autocast_enabled("cpu")  # also after an error inside
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]
    for handle in handles:
        handle.remove()
    with precision.autocast("bf16", CPU):
        net(torch.rand(1, 3, 8, 8))
    assert seen[3:] == [torch.bfloat16] * 3


def test_what_a_cpu_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, native in (
        ("flags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu avx512f avx512_vnni\n", False),
        ("Features\t: fp asimd bf16\n", True),
    ):
        monkeypatch.setattr(Path, "read_text", lambda self, text=text, **_: text)
        assert precision.native_bf16() is native


def test_never_fp16_on_a_cpu() -> None:
    assert "fp16" not in precision.candidates(CPU)


class OverflowsInBf16(nn.Module):
    """Not finite under autocast only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 2)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.linear(images.flatten(1))
        return out * float("inf") if out.dtype == torch.bfloat16 else out


def test_what_does_not_stay_finite_is_left_out() -> None:
    assert set(seconds(OverflowsInBf16())) == {"fp32"}


@pytest.mark.parametrize("lr", [1e9, 1e-9])
def test_a_timing_does_not_diverge_whatever_the_rate(lr: float) -> None:
    """A network without norms diverges at a high rate, and its seconds are the same at any."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 2))
    spec = TrainSpec(batch_size=8, optimizer=OptimizerSpec(lr=lr, bias_lr=64 * lr))
    for parts, shape in ((False, (5,)), (True, (5, len(PARTS)))):
        times = step_times(net, spec, *BATCH, WORLD, precisions=("fp32",), steps=5, parts=parts)
        assert [taken.shape for taken in times.values()] == [shape]
        assert all((taken > 0).all() for taken in times.values())


def test_a_timing_is_of_the_full_size() -> None:
    """Which this network can take alone."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    spec = TrainSpec.model_validate({"batch_size": 8, "progressive": {"start": 0.5, "until": 0.5}})
    step_times(net, spec, *BATCH, WORLD, precisions=("fp32",), steps=1)


def test_a_network_is_compiled_once_before_the_timed_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []

    def fake(forward: Any) -> Any:
        compiled.append(forward)
        return lambda images: forward(images)

    monkeypatch.setattr(torch, "compile", fake)
    step_times(toy_net(), TrainSpec(batch_size=8, compile=True), *BATCH, WORLD, precisions=("fp32",), steps=3)
    assert [type(forward) for forward in compiled] == [nn.Sequential]


def test_without_a_finite_loss_there_is_nothing_to_time() -> None:
    images, targets = BATCH
    with pytest.raises(TrainingError, match="no precision gives a finite loss on the first batch"):
        step_times(toy_net(), TrainSpec(batch_size=8), images * torch.nan, targets, WORLD)


class TooLarge(nn.Module):
    """Memory does not suffice for activations of some types."""

    def __init__(self, *kinds: torch.dtype) -> None:
        super().__init__()
        self.linear, self.kinds = nn.Linear(192, 2), kinds

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.linear(images.flatten(1))
        if out.dtype in self.kinds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return out


def test_a_precision_for_which_memory_does_not_suffice_is_left_out() -> None:
    assert set(seconds(TooLarge(torch.float32))) == {"bf16"}
    assert set(seconds(TooLarge(torch.float16), precisions=("fp32", "fp16"))) == {"fp32"}
    refused(TrainingError, "out of memory", seconds, TooLarge(torch.float32, torch.bfloat16))


def test_measuring_changes_neither_model_nor_generator() -> None:
    model = toy_net()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    assert set(seconds(model)) == {"fp32", "bf16"}
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
