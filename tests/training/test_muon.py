"""Muon: orthogonal updates for what lies between the first and the last layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kitae.models.build import build
from kitae.models.spec import ModelSpec
from kitae.training import precision
from kitae.training.muon import Muon, orthogonal, product_dtype
from kitae.training.optim import build_optimizer, set_learning_rate
from kitae.training.spec import OptimizerSpec


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 16, 5), nn.Linear(5, 2)
    )


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_are_near_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    matrix = torch.randn(shape)
    found = orthogonal(matrix, dtype)
    assert found.dtype == torch.float32
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.95


def test_first_and_last_layer_norms_and_biases_are_left_to_sgd() -> None:
    model = net()
    optimizer = build_optimizer(model, OptimizerSpec(name="muon", lr=0.2, other_lr=0.05))
    assert isinstance(optimizer, Muon)
    set_learning_rate(optimizer, 0.2)
    rates = {id(p): (g["orthogonal"], g["lr"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates[id(model[1].weight)] == (True, 0.2)
    assert rates[id(model[4].weight)] == (True, 0.2)
    for parameter in (model[0].weight, model[5].weight, model[2].weight, model[1].bias):
        orthogonal_, rate = rates[id(parameter)]
        assert not orthogonal_
        assert rate == pytest.approx(0.05)


def test_the_patch_embedding_of_a_vit_is_its_first_layer() -> None:
    model = build(ModelSpec(name="timm:test_vit"), classes=3, channels=3, image_size=32)
    names = [name for name, _ in model.named_parameters()]
    assert names.index("pos_embed") < names.index("patch_embed.proj.weight")
    optimizer = build_optimizer(model, OptimizerSpec(name="muon", lr=0.2))
    hidden = {id(p) for group in optimizer.param_groups if group["orthogonal"] for p in group["params"]}
    assert {name for name, p in model.named_parameters() if id(p) in hidden} == {
        name for name in names if name.startswith("blocks.") and name.endswith("weight") and "norm" not in name
    }


@pytest.mark.parametrize("name", ["muon", "sgd"])
def test_biases_can_have_a_rate_of_their_own(name: str) -> None:
    model = net()
    optimizer = build_optimizer(model, OptimizerSpec(name=name, lr=0.2, bias_lr=6.4))
    set_learning_rate(optimizer, 0.1)  # halfway down a schedule
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for key, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(3.2 if key.endswith("bias") else 0.1), key


def test_biases_of_attention_have_that_rate_too() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 2))
    optimizer = build_optimizer(model, OptimizerSpec(lr=0.2, bias_lr=6.4))
    scales = {id(p): group["scale"] for group in optimizer.param_groups for p in group["params"]}
    found = {key: scales[id(parameter)] for key, parameter in model.named_parameters()}
    assert found.pop("1.in_proj_bias") == pytest.approx(32)
    assert found == {key: pytest.approx(32 if key.endswith(".bias") else 1) for key in found}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_products_are_in_bfloat16_where_the_device_multiplies_it(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(precision, "native_bf16", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))  # a T4, which only emulates it
    assert product_dtype(torch.device(device)) == torch.float32
    monkeypatch.setattr(precision, "native_bf16", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert product_dtype(torch.device(device)) == torch.bfloat16


def test_sgd_groups_move_as_torch_moves_them() -> None:
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    mine = Muon(ours.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    other = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for step in range(4):
        for model, optimizer in ((ours, mine), (theirs, other)):
            optimizer.zero_grad()
            model(torch.full((2, 3), 1.0 + step)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


@pytest.mark.parametrize("norm", [False, True])
def test_an_orthogonal_step_has_the_size_of_the_rate(norm: bool) -> None:
    torch.manual_seed(2)
    parameter = nn.Parameter(torch.randn(6, 4, 3, 3))
    before = parameter.detach().clone()
    if norm:
        before *= 6**0.5 / before.norm()
    optimizer = Muon([{"params": [parameter], "orthogonal": True}], lr=0.1, momentum=0.6, norm=norm)
    parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    values = torch.linalg.svdvals((parameter.detach() - before).flatten(1))
    assert values.min() > 0.05
    assert values.max() < 0.13


def test_steps_continue_from_a_saved_state() -> None:
    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            model(torch.full((2, 3, 8, 8), 0.1 * step)).square().sum().backward()
            optimizer.step()

    straight, broken = net(), net()
    spec = OptimizerSpec(name="muon", lr=0.1)
    first = build_optimizer(straight, spec)
    train(straight, first, range(6))
    second = build_optimizer(broken, spec)
    train(broken, second, range(3))
    again = net()
    again.load_state_dict(broken.state_dict())
    third = build_optimizer(again, spec)
    third.load_state_dict(second.state_dict())
    train(again, third, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), again.parameters(), strict=True))
