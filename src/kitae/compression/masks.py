"""Unstructured pruning: masks set the smallest weights to zero (Han et al. 2015).

Shapes do not change, so nothing runs faster; only the compressed size shrinks. `apply_masks` restores the zeros after
every optimizer step, since momentum would change them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from kitae.compression.counting import prunable_layers, weight_of
from kitae.compression.spec import Scope

Masks = dict[str, Tensor]

KEEP_AT_LEAST = 0.1
"""Share of a layer that global ranking and channel pruning keep: a layer without weights would cut the network."""


def magnitude_masks(
    model: nn.Module, ratios: float | Mapping[str, float], *, scope: Scope = "layer", skip: Sequence[str] = ()
) -> Masks:
    """Masks that drop the weights of smallest magnitude (L1).

    Args:
        ratios: share of the weights to drop, in [0, 1): one for all layers, or by layer name (others stay whole; not
            with scope `global`).
        scope: `layer` drops that share in each layer; `global` ranks the weights of all layers together and leaves
            each at least a tenth.
        skip: layers left whole.

    Returns:
        bool tensors in the weights' shapes by layer name; True stays. Exactly round(ratio * weights) are False, in each
        layer or, with `global`, in all of them together (unless that tenth prevents it).
    """
    chosen = ratios_by_layer(model, ratios, skip)
    layers = prunable_layers(model)
    magnitudes = {name: weight_of(layers[name]).detach().abs().flatten() for name in chosen}
    if scope == "layer":
        drop = {name: round(chosen[name] * values.numel()) for name, values in magnitudes.items()}
    else:
        drop = dict(zip(magnitudes, global_shares(list(magnitudes.values()), cast(float, ratios)), strict=True))
    masks: Masks = {}
    for name, values in magnitudes.items():
        mask = torch.ones(values.numel(), dtype=torch.bool, device=values.device)
        mask[values.argsort(stable=True)[: drop[name]]] = False
        masks[name] = mask.reshape(weight_of(layers[name]).shape)
    return masks


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set the masked weights to zero, in place."""
    layers = prunable_layers(model)
    with torch.no_grad():
        for name, mask in masks.items():
            weight = weight_of(layers[name])
            weight.masked_fill_(~mask.to(weight.device), 0.0)


def cubic(step: int, steps: int, final: float, initial: float = 0.0) -> float:
    """Sparsity at a step of gradual pruning: final + (initial - final) (1 - step / steps)^3, and `final` after `steps`.

    Zhu and Gupta, "To prune, or not to prune", 2017: fast at first, while the network is redundant.
    """
    return final if step >= steps else final + (initial - final) * (1.0 - step / steps) ** 3


@dataclass
class Gradual:
    """Called after every optimizer step: raises the sparsity along `cubic` and holds the masks in between.

    Attributes:
        ratio: share of the weights dropped at the end.
        steps: optimizer steps until then.
        every: steps between two rises.
        scope, skip: as `magnitude_masks`.
        initial: share dropped already.
        masks: the weights dropped already, kept at zero from the first step on, before the sparsity first rises.
        step: optimizer steps so far.
    """

    ratio: float
    steps: int
    every: int = 10
    scope: Scope = "layer"
    skip: Sequence[str] = ()
    initial: float = 0.0
    masks: Masks = field(default_factory=dict)
    step: int = field(default=0, init=False)

    def __call__(self, model: nn.Module) -> None:
        self.step += 1
        if self.step <= self.steps and (self.step % self.every == 0 or self.step == self.steps):
            # Weights that are zero already have the smallest magnitude, so what was dropped stays dropped.
            apply_masks(model, self.masks)
            ratio = cubic(self.step, self.steps, self.ratio, self.initial)
            self.masks = magnitude_masks(model, ratio, scope=self.scope, skip=self.skip)
        apply_masks(model, self.masks)


def ratios_by_layer(model: nn.Module, ratios: float | Mapping[str, float], skip: Sequence[str]) -> dict[str, float]:
    """The ratio of each layer that is pruned."""
    named = dict.fromkeys(prunable_layers(model), ratios) if isinstance(ratios, float | int) else ratios
    return {name: ratio for name, ratio in named.items() if name not in skip}


def most(width: int) -> int:
    """How many of a layer's weights or channels may be removed."""
    return width - max(1, math.ceil(KEEP_AT_LEAST * width))


def global_shares(vectors: Sequence[Tensor], ratio: float, whole: Sequence[int] | None = None) -> list[int]:
    """How many entries of each vector are among the smallest of all, up to the limit of each vector.

    Args:
        whole: how many entries each vector had before some were removed, which count towards the ratio.
    """
    sizes = [len(vector) for vector in vectors]
    whole = whole or sizes
    wanted = round(ratio * sum(whole)) - (sum(whole) - sum(sizes))
    limits = [max(0, most(width) - (width - size)) for width, size in zip(whole, sizes, strict=True)]
    limited: dict[int, int] = {}  # vectors that lose as many as they may; the others share the rest
    while len(limited) < len(vectors) and wanted > 0:
        free = [i for i in range(len(vectors)) if i not in limited]
        values = torch.cat([vectors[i] for i in free]).cpu()
        owner = torch.cat([torch.full((sizes[i],), i) for i in free])
        taken = owner[values.argsort(stable=True)[:wanted]].bincount(minlength=len(vectors)).tolist()
        full = {i: limits[i] for i in free if taken[i] > limits[i]}
        if not full:
            return [limited.get(i, taken[i]) for i in range(len(vectors))]
        limited |= full
        wanted -= sum(full.values())
    return [limited.get(i, 0) for i in range(len(vectors))]
