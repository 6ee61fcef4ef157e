"""BatchNorm's statistics, measured again after pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from kitae.modes import evaluating

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives normalised training images float32 [n, C, H, W] and labels int64 [n]."""


def reestimate_batchnorm(model: nn.Module, batches: Batches) -> None:
    """Measure the running statistics of every BatchNorm again, as plain averages over batches of *training* images.

    Pruning shifts the inputs of norms. New statistics gain more accuracy than a first epoch of fine-tuning, at the cost
    of a few forward passes. Unlike in `torch.optim.swa_utils.update_bn`, dropout and stochastic depth stay off, so the
    statistics are those of the network that is evaluated.

    Args:
        model: changed in place; its mode is kept.
        batches: with n large enough for a variance.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats and norm.running_mean is not None]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    try:
        with evaluating(model), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain average over all batches
                norm.training = True
            for images, _ in batches():
                model(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
