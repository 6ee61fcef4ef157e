"""MixUp and CutMix: what is drawn for each sample, and how targets mix.

Positions 2k and 2k + 1 of the batch are partners. The result is lambda times the sample's own image (or its own pixels
outside the box) and the rest from its partner, which is augmented by its own key. An odd last sample is not mixed.

Kind, lambda and box are drawn once for a batch, keyed by (seed, epoch, step), or for each sample, keyed by (seed,
epoch, index): see `MixSpec.per`. Neither depends on how many processes share the batch.

MixUp: Zhang et al., "mixup: Beyond empirical risk minimization" (2017). CutMix: Yun et al. (2019): sides
2 floor(side * sqrt(1 - lambda) / 2), centre uniform, clipped at the border; lambda becomes the share of pixels kept.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae.augment.ops.base import below, draw, unit
from kitae.augment.ops.policies import beta_quantile, beta_table
from kitae.augment.spec import MixSpec

MIX = 6  # numbers per sample: kind (0 none, 1 MixUp, 2 CutMix), lambda, x1, y1, x2, y2
MIXUP, CUTMIX = 1, 2


def mix_numbers(spec: MixSpec) -> list[float]:
    """What `plan_mix` reads."""
    mixup, cutmix = spec.mixup_alpha > 0, spec.cutmix_alpha > 0
    switch = spec.switch_prob if mixup and cutmix else float(cutmix)
    tables = [beta_table(a, a) if a > 0 else (0.0,) for a in (spec.mixup_alpha, spec.cutmix_alpha)]
    return [spec.prob, switch, 4.0, 4.0 + len(tables[0]), *tables[0], *tables[1]]


def plan_mix(key: Any, numbers: Any, out: Any, height: Any, width: Any) -> None:
    """Kind, lambda and box of one sample or batch. The key's first slot is SLOT_MIX."""
    for i in range(MIX):
        out[i] = 0.0
    out[1] = 1.0
    w0, w1, w2, _ = draw(key, 0)
    if unit(w0) < numbers[0]:
        if unit(w1) < numbers[1]:
            share = beta_quantile(unit(w2), numbers, np.int64(numbers[3]))
            c0, c1, _, _ = draw(key, 1)
            side = math.sqrt(1.0 - share)
            half_w = np.int64(width * side) // 2
            half_h = np.int64(height * side) // 2
            x = below(c0, width)
            y = below(c1, height)
            x1 = max(x - half_w, 0)
            y1 = max(y - half_h, 0)
            x2 = min(x + half_w, width)
            y2 = min(y + half_h, height)
            out[0] = 2.0
            out[1] = 1.0 - (x2 - x1) * (y2 - y1) / (height * width)
            out[2] = x1
            out[3] = y1
            out[4] = x2
            out[5] = y2
        else:
            out[0] = 1.0
            out[1] = beta_quantile(unit(w2), numbers, np.int64(numbers[2]))


def mixed_targets(targets: NDArray[Any], classes: int | None, mix: NDArray[np.float64] | None) -> NDArray[np.float32]:
    """Targets of a batch (int64 [N] or float32 [N, K]) as distributions, mixed by float64 [N, MIX]: float32 [N, K]."""
    pairs = np.arange(0 if mix is None else len(targets) // 2 * 2)
    share = np.ones(0) if mix is None else mix[pairs, 1]
    own, rest = share.astype(np.float32), (1.0 - share).astype(np.float32)
    if targets.ndim == 2:
        rows = targets.copy()
        rows[pairs] = targets[pairs] * own[:, None] + targets[pairs ^ 1] * rest[:, None]
    else:
        rows = np.zeros((len(targets), classes or 0), np.float32)
        rows[np.arange(len(targets)), targets] = 1.0
        rows[pairs, targets[pairs]] = own
        rows[pairs, targets[pairs ^ 1]] += rest
    return rows
