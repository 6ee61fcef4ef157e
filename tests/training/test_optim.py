"""Optimizers, parameter groups, averaged weights."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from kitae.errors import RecipeError
from kitae.recipe import Recipe
from kitae.training.optim import (
    OPTIMIZERS,
    AveragedWeights,
    build_optimizer,
    parameter_groups,
    set_learning_rate,
    unused_fields,
)
from kitae.training.spec import OptimizerSpec
from tests.refusals import refused


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def decayed(model: nn.Module) -> set[str]:
    """The names of the parameters with weight decay."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimizerSpec(weight_decay=0.1))
    return {names[id(p)] for group in groups if group["weight_decay"] > 0 for p in group["params"]}


def test_norms_and_biases_have_no_weight_decay() -> None:
    assert decayed(net()) == {"0.weight", "3.weight"}


def test_layer_decay_scales_down_towards_the_stem() -> None:
    model = net()
    layers = [["0.weight", "0.bias"], ["1.weight", "1.bias"], ["3.weight", "3.bias"]]
    optimizer = build_optimizer(model, OptimizerSpec(layer_decay=0.5), layers)
    set_learning_rate(optimizer, 1.0)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rate[id(p)] for p in (model[0].weight, model[1].weight, model[3].weight)] == [0.25, 0.5, 1.0]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_listed_optimizer_takes_a_step(name: str) -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    optimizer = build_optimizer(model, OptimizerSpec(name=name, lr=0.1))
    set_learning_rate(optimizer, 0.1)
    for _ in range(2):
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    assert not torch.equal(before, model.weight)


def test_an_unknown_optimizer_and_nothing_to_train_are_refused() -> None:
    net, unknown = nn.Linear(2, 2), OptimizerSpec(name="adamv")
    build_optimizer(net, OptimizerSpec(momentum=0.0, nesterov=True))
    refused(RecipeError, r"no optimizer 'adamv'.*did you mean.*valid: .*sgd", build_optimizer, net, unknown)
    refused(RecipeError, "nothing to train", build_optimizer, net.requires_grad_(False), OptimizerSpec())


def test_average_follows_weights_and_statistics() -> None:
    model = net()
    average = AveragedWeights(model, 0.5)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight += 1
        model[1].running_mean += 1
        model[1].num_batches_tracked += 7
    average.update(model, updates=10_000)
    torch.testing.assert_close(average.model[0].weight, start + 0.5)
    torch.testing.assert_close(average.model[1].running_mean, torch.full((4,), 0.5))
    assert average.model[1].num_batches_tracked == 7
    assert not any(p.requires_grad for p in average.model.parameters())


def test_average_is_not_held_back_by_initial_weights() -> None:
    model = nn.Linear(1, 1)
    average = AveragedWeights(model, 0.9999)
    with torch.no_grad():
        model.weight += 100
    for update in range(100):
        average.update(model, update)
    assert abs(average.model.weight - model.weight).item() < 1


def test_an_optimizer_s_name_brings_its_usual_rate_and_decay() -> None:
    assert (OptimizerSpec(name="adamw").lr, OptimizerSpec(name="adamw").weight_decay) == (1e-3, 0.05)
    assert OptimizerSpec(name="adamw", lr=0.01).lr == 0.01
    assert OptimizerSpec(name="adadelta").lr == 1, "with 1e-3 it learns nothing"
    assert not OptimizerSpec(name="adadelta", lr=1.0).unusual
    for name in ("adadelta", "adagrad", "adamw", "nadam", "rmsprop"):
        usual = inspect.signature(OPTIMIZERS[name]).parameters["eps"].default
        assert OptimizerSpec(name=name).eps == usual, name
    base = Recipe().override("train.optimizer.lr=0.3")
    other = base.override("train.optimizer.name=adamw").train.optimizer
    assert (other.lr, other.weight_decay) == (1e-3, 0.05)
    given = base.override("train.optimizer.lr=0.002", "train.optimizer.name=adamw").train.optimizer
    assert (given.lr, given.weight_decay) == (0.002, 0.05)
    assert base.override("train.optimizer.name=adadelta").train.optimizer.eps == 1e-6
    assert base.override("train.optimizer.name=sgd") == base
    assert base.override("train.optimizer.name=SGD").train.optimizer.lr == 0.3, "the same optimizer"


def test_fields_that_an_optimizer_has_no_use_for_are_named() -> None:
    speed = {"lr": 0.24, "momentum": 0.6, "other_lr": 1.0, "bias_lr": 32.0, "norm": True}
    assert unused_fields(OptimizerSpec(name="muon", **speed)) == []
    assert unused_fields(OptimizerSpec(name="SGD", **speed)) == ["other_lr", "norm"]
    assert unused_fields(OptimizerSpec(name="adamw", momentum=0.8, layer_decay=0.7)) == ["momentum"]
    assert unused_fields(OptimizerSpec(name="rprop", weight_decay=0.1, betas=(0.8, 0.9))) == ["weight_decay", "betas"]
    assert unused_fields(OptimizerSpec(name="adafactor", eps=1e-6)) == ["eps"], "it has two"
    for name in OPTIMIZERS:
        assert unused_fields(OptimizerSpec(name=name)) == []


def test_rates_of_one_optimizer_are_not_those_of_another() -> None:
    base = Recipe().override(
        "train.optimizer={name: muon, lr: 0.2, momentum: 0.6, other_lr: 1.0, bias_lr: 32.0, norm: true}"
    )
    assert base.override("train.optimizer.name=sgd").train.optimizer == OptimizerSpec()
    given = base.override("train.optimizer.bias_lr=6.4", "train.optimizer.name=sgd").train.optimizer
    assert (given.lr, given.bias_lr) == (0.1, 6.4)


def test_tokens_and_positions_do_not_decay() -> None:
    class Vit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
            self.special = nn.Parameter(torch.zeros(1, 4, 8))
            self.attn = nn.Module()
            self.attn.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
            self.head = nn.Linear(8, 2)

        def no_weight_decay(self) -> set[str]:
            return {"special"}

    assert decayed(Vit()) == {"head.weight"}
