"""Mixed precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kitae.training import precision
from tests.training.toy_world import toy_net

CPU = torch.device("cpu")
BATCH = torch.rand(8, 3, 8, 8), nn.functional.one_hot(torch.arange(8) % 2, 2).float()


def test_given_precision_is_kept() -> None:
    assert precision.resolve("bf16", toy_net(), *BATCH, device=CPU) == "bf16"


def test_auto_takes_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = precision.measure(toy_net(), *BATCH, device=CPU)
    assert set(seconds) == {"fp32", "bf16"}
    assert all(value > 0 for value in seconds.values())
    for fastest, other in (("fp32", "bf16"), ("bf16", "fp32")):
        monkeypatch.setattr(precision, "measure", lambda *_, f=fastest, o=other, **__: {f: 1.0, o: 2.0})
        assert precision.resolve("auto", toy_net(), *BATCH, device=CPU) == fastest


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


def test_what_does_not_stay_finite_is_never_chosen() -> None:
    assert precision.resolve("auto", OverflowsInBf16(), *BATCH, device=CPU) == "fp32"


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


def test_a_precision_for_which_memory_does_not_suffice_is_not_chosen() -> None:
    assert precision.resolve("auto", TooLarge(always=False), *BATCH, device=CPU) == "bf16"
    with pytest.raises(torch.OutOfMemoryError):
        precision.resolve("auto", TooLarge(always=True), *BATCH, device=CPU)


def test_measuring_changes_neither_model_nor_generator() -> None:
    model = toy_net()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    precision.measure(model, *BATCH, device=CPU)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
