"""Losses over target distributions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(
    logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, weight: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy against distributions, computed in float32 whatever the logits' precision.

    With smoothing eps the target becomes (1 - eps) * target + eps / K, so the true class of a hard label gets
    1 - eps + eps/K (Szegedy et al. 2016, and torch). Mixed targets are smoothed the same way.

    Args:
        logits: float [N, K].
        targets: float32 [N, K], rows sum to 1.
        smoothing: eps in [0, 1).
        weight: float32 [K], the loss of class k is multiplied by weight[k]; the mean is over samples, not weights.
    """
    return F.cross_entropy(logits.float(), targets, weight=weight, label_smoothing=smoothing)


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
