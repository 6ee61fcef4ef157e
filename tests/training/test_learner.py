"""One step of the loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from kitae.errors import TrainingError
from kitae.training.batches import epoch_shape
from kitae.training.checkpoint import Progress
from kitae.training.learner import Learner
from kitae.training.precision import Precision, autocast
from kitae.training.spec import TrainSpec
from tests.refusals import refused
from tests.training.toy_world import WORLD, toy_net

HARD = nn.functional.one_hot(torch.tensor([0, 1, 2, 3, 0, 1]), 4).float()


@pytest.mark.parametrize("targets", [HARD, 0.3 * HARD + 0.7 * HARD.flip(0)], ids=["hard", "mixed"])
@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize("weight", [(1.0, 1.0, 1.0, 1.0), (1.0, 2.0, 0.5, 3.0)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_by_its_definition(
    targets: torch.Tensor, eps: float, weight: tuple[float, ...], precision: Precision
) -> None:
    """Targets weighted by class, then smoothed, averaged over samples; in float32 whatever the logits' precision."""
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.randn(6, 3, 2, 2)
    with autocast(precision, WORLD.device):
        logits = model(images).float()
    weighted = targets * torch.tensor(weight)
    each = (weighted * (1 - eps) + weighted.sum(1, keepdim=True) * eps / 4) * logits.log_softmax(1)
    spec = TrainSpec(batch_size=6, label_smoothing=eps)
    weights = np.array(weight, np.float32)
    with Learner(model, spec, epoch_shape(6, spec), WORLD, precision, class_weights=weights) as learner:
        loss = learner.step(images, targets, Progress()).loss
    torch.testing.assert_close(loss, -each.sum(1).mean())


def test_smoothing_beside_a_rare_class_still_aims_at_the_own_class() -> None:
    """With weights of 0.5 and 50, the loss of an image of the frequent class is lowest at the smoothed target."""
    spec = TrainSpec(batch_size=2, label_smoothing=0.1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    model[1].bias.data = torch.tensor([0.95, 0.05]).log()
    bias: list[torch.Tensor] = []
    model[1].bias.register_hook(lambda gradient: bias.append(gradient.clone()) or gradient)
    frequent, weights = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), np.array([0.5, 50.0], np.float32)
    with Learner(model, spec, epoch_shape(2, spec), WORLD, "fp32", class_weights=weights) as learner:
        learner.step(torch.zeros(2, 3, 2, 2), frequent, Progress())
    torch.testing.assert_close(bias[0], torch.zeros(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("clip_norm", [None, 0.01, 1e6])
def test_a_gradient_longer_than_clip_norm_is_cut_to_it(clip_norm: float | None) -> None:
    """Without momentum and decay, an update is the gradient times the rate."""
    optimizer = {"name": "sgd", "lr": 0.5, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    spec = TrainSpec.model_validate({
        "epochs": 1, "batch_size": 16, "precision": "fp32", "clip_norm": clip_norm, "optimizer": optimizer,
        "schedule": {"name": "constant", "warmup_epochs": 0},
    })  # fmt: skip
    model = toy_net()
    torch.manual_seed(0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with Learner(model, spec, epoch_shape(32, spec), WORLD, "fp32") as learner:
        learner.step(torch.randn(16, 3, 8, 8), nn.functional.one_hot(torch.arange(16) % 2, 2).float(), Progress())
        rate = learner.learning_rate
    moved = torch.stack([(now - then).norm() for now, then in zip(model.parameters(), before, strict=True)]).norm()
    if clip_norm == 0.01:
        assert moved.item() == pytest.approx(0.01 * rate, rel=1e-3)
    else:
        assert moved.item() > 0.02 * rate, "shorter than the limit: left alone"


def test_dropout_is_keyed_by_epoch_and_step() -> None:
    torch.manual_seed(0)
    images, targets = torch.randn(16, 3, 8, 8), nn.functional.one_hot(torch.arange(16) % 2, 2).float()
    spec = TrainSpec(epochs=2, batch_size=16, precision="fp32")

    def loss(epoch: int, step: int) -> float:
        model = toy_net()
        with Learner(model, spec, epoch_shape(32, spec), WORLD, "fp32") as learner:
            return learner.step(images, targets, Progress(epoch=epoch, step=step)).loss.item()

    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    losses = [loss(*place) for place in places]
    assert len(set(losses)) == 4
    assert [loss(*place) for place in places] == losses


def test_training_leaves_torch_s_generator_as_it_was() -> None:
    """What is drawn between two steps, as by another thread, does not change them, nor do they change it."""
    images, targets = torch.randn(16, 3, 8, 8), nn.functional.one_hot(torch.arange(16) % 2, 2).float()
    spec = TrainSpec(epochs=2, batch_size=16, precision="fp32")

    def losses(draws: int) -> list[float]:
        with Learner(toy_net(), spec, epoch_shape(32, spec), WORLD, "fp32") as learner:
            found = []
            for step in range(2):
                torch.rand(draws)
                found.append(learner.step(images, targets, Progress(step=step)).loss.item())
            return found

    torch.manual_seed(7)
    before = torch.get_rng_state()
    undisturbed = losses(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert losses(5) == undisturbed
    after = torch.get_rng_state()
    torch.manual_seed(7)
    for _ in range(2):
        torch.rand(5)
    assert torch.equal(torch.get_rng_state(), after), "the program's own numbers go on"


def test_small_pictures_come_first() -> None:
    """They are the batch, shrunk. The size is a function of the update, so that a resumed run takes the same one."""
    spec = TrainSpec.model_validate({
        "epochs": 2, "batch_size": 16, "precision": "fp32", "progressive": {"start": 0.5, "until": 0.75},
    })  # fmt: skip
    seen: list[torch.Tensor] = []
    model = toy_net()
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    images, targets = torch.randn(16, 3, 16, 24), nn.functional.one_hot(torch.arange(16) % 2, 2).float()
    with Learner(model, spec, epoch_shape(32, spec), WORLD, "fp32") as learner:  # four updates
        for number in range(4):
            learner.step(images, targets, Progress(epoch=number // 2, step=number % 2, updates=number))
    assert [tuple(batch.shape[2:]) for batch in seen] == [(8, 12), (12, 16), (12, 20), (16, 24)]
    assert seen[-1] is images
    shrunk = nn.functional.interpolate(images, (8, 12), mode="bilinear", antialias=True)
    torch.testing.assert_close(seen[0], shrunk)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("bad", [(), (0,), (1,), (2, 3)])
def test_a_device_that_decides_skips_what_the_host_would(name: str, bad: tuple[int, ...], accumulate: int) -> None:
    """Weights, momentum, averages and BatchNorm's statistics are those of a host that waits for every step."""
    torch.manual_seed(0)
    batches = [torch.randn(16, 3, 8, 8) for _ in range(6)]
    for number in bad:
        batches[number][0] = torch.nan
    hidden = nn.Conv2d(8, 8, 3, padding=1)  # of the layers that Muon's orthogonal updates are for
    targets = nn.functional.one_hot(torch.arange(16) % 2, 2).float()
    spec = TrainSpec.model_validate({
        "batch_size": 16, "accumulate": accumulate, "ema": 0.9, "clip_norm": 1.0,
        "optimizer": {"name": name, "norm": True, "weight_decay": 0.01},
    })  # fmt: skip

    def train(asynchronous: bool) -> tuple[Learner, list[bool]]:
        model, at = nn.Sequential(*toy_net()[:3], copy.deepcopy(hidden), *toy_net()[3:]), Progress()
        learner = Learner(model, spec, epoch_shape(96, spec), WORLD, "fp32")
        learner.asynchronous = asynchronous
        counted = []
        with learner:
            for images in batches:
                counted.append(bool(learner.step(images, targets, at).healthy))
                at.step += 1
        return learner, counted

    (waits, expected), (ahead, counted) = train(False), train(True)
    assert counted == expected == [number not in bad for number in range(6)]
    assert waits.average is not None
    assert ahead.average is not None
    for key, tensor in waits.model.state_dict().items():
        assert torch.equal(tensor, ahead.model.state_dict()[key]), key
    for one, other in zip(waits.model.parameters(), ahead.model.parameters(), strict=True):
        for key, tensor in waits.optimizer.state[one].items():
            assert torch.equal(tensor, ahead.optimizer.state[other][key]), key
    for key, tensor in waits.average.model.state_dict().items():
        torch.testing.assert_close(tensor, ahead.average.model.state_dict()[key], msg=key)


def test_a_first_step_that_overflows_in_fp16_leaves_no_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused SGD creates its momentum empty, and does not write to it in a step that it skips."""
    empty = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda like, **options: empty(like, **options).fill_(torch.nan))
    spec, model = TrainSpec(batch_size=6), nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    before = model[1].weight.detach().clone()
    with Learner(model, spec, epoch_shape(6, spec), WORLD, "fp16") as learner:
        scale = learner.scaler.get_scale()
        learner.step(torch.full((6, 3, 2, 2), 1e4), HARD, Progress())
        assert learner.scaler.get_scale() == scale / 2, "it overflowed"
        assert torch.equal(model[1].weight, before)
        learner.step(torch.full((6, 3, 2, 2), 1e-2), HARD, Progress())
    assert not torch.equal(model[1].weight, before)
    assert model[1].weight.isfinite().all()


def test_a_compilation_that_fails_names_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other errors of a compiled network are its own."""
    spec, errors = TrainSpec(batch_size=6, compile=True), [TorchDynamoException("No working\nC++ compiler found")]

    def failing(forward: object) -> Callable[[torch.Tensor], torch.Tensor]:
        def compiled(images: torch.Tensor) -> torch.Tensor:
            raise errors[-1]

        return compiled

    monkeypatch.setattr(torch, "compile", failing)
    with Learner(nn.Linear(12, 4), spec, epoch_shape(6, spec), WORLD, "fp32") as learner:
        step = partial(learner.step, torch.zeros(6, 3, 2, 2), HARD, Progress())
        refused(TrainingError, r"train\.compile: .*\(No working C\+\+ compiler found\); set it to false", step)
        errors.append(RuntimeError("shapes cannot be multiplied"))
        with pytest.raises(RuntimeError, match="multiplied"):
            step()
