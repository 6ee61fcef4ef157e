"""What training measures of a batch beside cross-entropy."""

from __future__ import annotations

import pytest
import torch

from kitae.training.losses import distillation_loss, target_accuracy


def test_accuracy_of_mixed_targets_is_their_mass_on_the_prediction() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    targets = torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    torch.testing.assert_close(target_accuracy(logits, targets), torch.tensor([0.7, 0.4]))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_the_divergence_times_the_temperature_squared(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    p, q = (torch.softmax(logits.double() / temperature, dim=1) for logits in (teacher, student))
    expected = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()
    assert distillation_loss(student, teacher, temperature).item() == pytest.approx(expected.item(), rel=1e-5)
    assert distillation_loss(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-7)
