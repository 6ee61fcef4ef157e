"""Which channels of a network are missed least, when the layers that read them are solved without them.

Where two channels say nearly the same, one of them can go: the other layers' weights make up for it (`reconstruct`).
The norm of its filters does not show that. Channels are removed one by one, or a few at a time, each time those without
which the outputs of the layers that read them, solved again, change least (the optimal brain surgeon of Hassibi and
Stork, 1993, for whole channels, as in Kurtic et al., "ZipLM", NeurIPS 2023; by outputs of the next layer as in Luo et
al., "ThiNet", ICCV 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kitae.compression.least_squares import (
    RIDGE,
    Batches,
    can_be_solved,
    first_images,
    inputs_at,
    is_depthwise,
    places_of,
)
from kitae.modes import convolutions_in_float32, evaluating

_ROUNDS = 64  # in which the channels of a layer are removed: wide layers lose several at a time


@dataclass(frozen=True)
class Reader:
    """A layer that reads channels which can be removed.

    Attributes:
        name: of the layer.
        features: int64 [channels, k], which of its inputs (times the kernel's size) each of these channels is.
    """

    name: str
    features: Tensor


def can_read(module: nn.Module) -> bool:
    """Whether a layer can be a `Reader`: one that is solved, and mixes channels."""
    return can_be_solved(module) and not is_depthwise(module)


def removal_errors(model: nn.Module, groups: Sequence[Sequence[Reader]], batches: Batches) -> list[Tensor]:
    """How far outputs move when a channel is removed, after those that are missed less.

    Args:
        groups: for each group of channels, the layers that read them, at least one.
        batches: *training* images.

    Returns:
        For each group float64 [channels]: what removing a channel adds to the squared error of its readers' outputs, as
        a share of their variance, summed over the readers. They rise in the order of removal.
    """
    names = {reader.name for group in groups for reader in group}
    layers = {name: module for name, module in model.named_modules() if name in names}
    grams: dict[str, Tensor] = {}

    def note(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs_at(layer, inputs[0], places_of(layer, output))
        x = x - x.mean(0)  # a bias or a norm corrects means
        grams[name] = (x.T @ x / len(x)).cpu()

    with evaluating(model), torch.no_grad(), convolutions_in_float32(), ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_hook(partial(note, name)).remove)
        model(first_images(batches, model))
    return [_in_order([_Inputs(layers[each.name], grams[each.name], each.features) for each in group])
            for group in groups]  # fmt: skip


class _Inputs:
    """The channels that a layer still reads.

    Attributes:
        weight: float64 [outputs, features], solved without the channels that are gone.
        inverse: float64 [features, features], of the inputs' covariance.
        features: int64 [channels, k], where a channel is in these.
    """

    def __init__(self, layer: Any, gram: Tensor, features: Tensor) -> None:
        gram, weight = gram.double(), layer.weight.detach().flatten(1).cpu().double()
        hold = RIDGE * gram.diagonal().mean()
        self.weight = weight / ((weight @ gram) * weight).sum().sqrt().clamp_min(1e-30)
        self.inverse = torch.linalg.inv(gram + (hold if hold > 0 else 1.0) * torch.eye(len(gram), dtype=gram.dtype))
        self.features = features

    def errors(self) -> Tensor:
        """What each channel's removal alone would add."""
        own = self.inverse[self.features[:, :, None], self.features[:, None, :]]
        weight = self.weight[:, self.features].transpose(0, 1)  # [channels, outputs, k]
        errors: Tensor = torch.linalg.solve(own, weight.mT @ weight).diagonal(dim1=1, dim2=2).sum(1)
        return errors

    def remove(self, gone: Tensor) -> None:
        """Solve without these channels (bool, of those that are left)."""
        lost = self.features[gone].flatten()
        change = torch.linalg.solve(self.inverse[lost][:, lost], self.inverse[lost])
        left = torch.ones(len(self.inverse), dtype=torch.bool)
        left[lost] = False
        self.weight = (self.weight - self.weight[:, lost] @ change)[:, left]
        self.inverse = (self.inverse - self.inverse[:, lost] @ change)[left][:, left]
        self.features = (left.cumsum(0) - 1)[self.features[~gone]]


def _in_order(readers: Sequence[_Inputs]) -> Tensor:
    """Remove all channels, those first that are missed least."""
    width = len(readers[0].features)
    found = torch.empty(width, dtype=torch.float64)
    left, least = torch.arange(width), 0.0
    while len(left):
        errors = torch.stack([reader.errors() for reader in readers]).sum(0)
        these = errors.argsort(stable=True)[: max(1, width // _ROUNDS)]
        for channel, error in zip(left[these].tolist(), errors[these].tolist(), strict=True):
            # Rising, if by next to nothing, so that a ranking by them is the order of removal.
            found[channel] = least = max(error, least * (1 + 1e-12), least + 1e-300)
        gone = torch.zeros(len(left), dtype=torch.bool)
        gone[these] = True
        left = left[~gone]
        if len(left):
            for reader in readers:
                reader.remove(gone)
    return found
