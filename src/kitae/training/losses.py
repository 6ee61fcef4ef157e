"""The distillation loss, and the accuracy on soft targets."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from teacher to student at a temperature, times its square (Hinton et al. 2015).

    Args:
        logits, teacher_logits: float [N, K].
    """
    student = F.log_softmax(logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def target_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Target mass on the predicted class: float [N]; plain 0/1 accuracy for hard labels, lambda-weighted for mixed."""
    return targets.gather(1, logits.argmax(dim=1, keepdim=True)).squeeze(1)
