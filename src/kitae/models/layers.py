"""What several networks are made of: convolution, classifier with dropout, stochastic depth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DropoutLinear(nn.Linear):
    """A linear layer with dropout on its input; its weights have the names and shapes of `nn.Linear`.

    So dropout can be added to any net, Kitae's or a library's, without changing the names of its weights.
    """

    p: float = 0.0

    @classmethod
    def around(cls, layer: nn.Linear, p: float) -> DropoutLinear:
        """With the weights of an existing layer."""
        with torch.device("meta"):  # draws no random numbers
            made = cls(layer.in_features, layer.out_features, bias=layer.bias is not None)
        made.weight, made.bias, made.p = layer.weight, layer.bias, p
        return made

    def forward(self, input: Tensor) -> Tensor:
        """float [N, ..., in_features] -> float [N, ..., out_features]."""
        return super().forward(F.dropout(input, self.p, self.training))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p:g}"


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution with padding 1 and without bias."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def linear_rates(p: float, blocks: int) -> list[float]:
    """Drop probability of each residual block: linear from 0 at the first to `p` at the last; a lone block gets `p`.

    (Huang et al. start at p / blocks; from 0, as timm does, the first block, on which all others stand, always runs.)
    """
    return [p * i / (blocks - 1) for i in range(blocks)] if blocks > 1 else [p] * blocks


def stochastic_depth(p: float) -> nn.Module:
    """Drops the residual branch of single samples while training; an identity where p is 0, so nothing is traced.

    Huang, Sun, Liu, Sedra and Weinberger, "Deep networks with stochastic depth", 2016. A branch that is kept is scaled
    by 1 / (1 - p), so its expectation is unchanged; in eval mode the layer is the identity.
    """
    if p == 0:
        return nn.Identity()
    from torchvision.ops import StochasticDepth  # not at the top: torchvision takes longer to import than this package

    layer: nn.Module = StochasticDepth(p, "row")
    return layer


def classifier(features: int, classes: int, dropout: float, *, bias: bool = True) -> nn.Linear:
    """The last layer: a linear one, with dropout on its input where asked."""
    layer = nn.Linear(features, classes, bias=bias)
    return DropoutLinear.around(layer, dropout) if dropout else layer
