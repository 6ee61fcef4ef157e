"""Mixed precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kitae.training import precision
from tests.training.toy_world import toy_net

CPU = torch.device("cpu")
BATCH = torch.rand(8, 3, 8, 8), nn.functional.one_hot(torch.arange(8) % 2, 2).float()


def test_auto_is_a_rule_and_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    grouped = nn.Sequential(nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3, groups=12), nn.Flatten(), nn.LazyLinear(2))
    grouped(torch.rand(1, 3, 8, 8))
    monkeypatch.setattr(precision, "measure", None)
    monkeypatch.setattr(precision.time, "perf_counter", None)
    for native in (True, False):
        monkeypatch.setattr(precision, "native_bf16", lambda native=native: native)
        assert precision.choose(toy_net(), 3, 8, CPU) == ("bf16" if native else "fp32")
        assert precision.choose(grouped, 3, 8, CPU) == "fp32"
    for capability, expected in (((6, 1), "fp32"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert precision.choose(toy_net(), 3, 8, torch.device("cuda")) == expected


def test_what_a_cpu_says_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, native in (
        ("flags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu avx512f avx512_vnni\n", False),
        ("Features\t: fp asimd bf16\n", True),
    ):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(precision, "Path", lambda _: tmp_path / "cpuinfo")
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
    assert set(precision.measure(OverflowsInBf16(), *BATCH, device=CPU)) == {"fp32"}


class TooLarge(nn.Module):
    """Memory suffices under autocast only, or not at all."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.linear, self.always = nn.Linear(192, 2), always

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.linear(images.flatten(1))
        if self.always or out.dtype == torch.float32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return out


def test_a_precision_for_which_memory_does_not_suffice_is_left_out() -> None:
    assert set(precision.measure(TooLarge(always=False), *BATCH, device=CPU)) == {"bf16"}
    with pytest.raises(torch.OutOfMemoryError):
        precision.measure(TooLarge(always=True), *BATCH, device=CPU)


def test_measuring_changes_neither_model_nor_generator() -> None:
    model = toy_net()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    precision.measure(model, *BATCH, device=CPU)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
