"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from kitae.training.spec import ScheduleSpec


def rate_factor(step: int, *, spec: ScheduleSpec, steps_per_epoch: int, epochs: int) -> float:
    """What the peak learning rate is multiplied by at this optimizer step.

    Args:
        step: from 0 to epochs * steps_per_epoch - 1.

    Returns:
        A factor in [0, 1]. Warm-up never starts at 0: its first step is one part of the ramp.
    """
    total = epochs * steps_per_epoch
    if spec.name == "one_cycle":
        peak = max(1.0, spec.peak_at * total)
        if step < peak:
            return (step + 1) / (peak + 1)
        return spec.final + (1 - spec.final) * (total - step) / (total - peak + 1)
    warmup = min(spec.warmup_epochs, epochs / 2) * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if spec.name == "constant":
        return 1.0
    if spec.name == "step":
        return spec.gamma ** sum(step >= milestone * total for milestone in spec.milestones)
    progress = (step - warmup) / max(1.0, total - warmup)
    return spec.final + (1 - spec.final) * 0.5 * (1 + math.cos(math.pi * progress))
