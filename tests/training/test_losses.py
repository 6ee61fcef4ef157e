"""Losses over distributions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from kitae.training.losses import distillation_loss, soft_cross_entropy, target_accuracy

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
HARD = F.one_hot(LABELS, 4).float()


def test_hard_labels_give_plain_cross_entropy() -> None:
    torch.testing.assert_close(soft_cross_entropy(LOGITS, HARD), F.cross_entropy(LOGITS, LABELS))


@pytest.mark.parametrize("targets", [HARD, 0.3 * HARD + 0.7 * HARD.flip(0)], ids=["hard", "mixed"])
def test_smoothing_by_its_definition(targets: torch.Tensor) -> None:
    eps = 0.2
    expected = -((targets * (1 - eps) + eps / 4) * LOGITS.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(soft_cross_entropy(LOGITS, targets, smoothing=eps), expected)


def test_class_weights_multiply_each_class() -> None:
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0])
    each = F.cross_entropy(LOGITS, LABELS, reduction="none")
    torch.testing.assert_close(soft_cross_entropy(LOGITS, HARD, weight=weight), (each * weight[LABELS]).mean())


def test_computed_in_float32_under_low_precision() -> None:
    loss = soft_cross_entropy(LOGITS.bfloat16(), HARD)
    assert loss.dtype == torch.float32


def test_accuracy_of_mixed_targets_is_their_mass_on_the_prediction() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    targets = torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    torch.testing.assert_close(target_accuracy(logits, targets), torch.tensor([0.7, 0.4]))


def test_uniform_logits_cost_log_k() -> None:
    assert soft_cross_entropy(torch.zeros(3, 4), HARD[:3]).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_the_divergence_times_the_temperature_squared(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    p, q = (torch.softmax(logits.double() / temperature, dim=1) for logits in (teacher, student))
    expected = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()
    assert distillation_loss(student, teacher, temperature).item() == pytest.approx(expected.item(), rel=1e-5)
    assert distillation_loss(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-7)
