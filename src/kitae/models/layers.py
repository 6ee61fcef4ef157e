"""The two layers that torch does not have, and the rule for the drop rate of each block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Drops the residual branch of single samples while training.

    Huang, Sun, Liu, Sedra and Weinberger, "Deep networks with stochastic depth", 2016. In training each sample's branch
    is set to zero with probability `p`, and a branch that is kept is scaled by 1 / (1 - p), so its expectation is
    unchanged. In eval mode it is the identity. (The paper scales at test time instead; scaling in training gives the
    same expectation and leaves the deployed net free of the constant.)

    Draws from torch's global generator of the input's device, as dropout does.

    Args:
        p: drop probability, in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p must be in [0, 1), not {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """float [N, ...] -> float [N, ...], the same dtype and memory format."""
        if not self.training or self.p == 0:
            return x
        keep = torch.empty([x.shape[0]] + [1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x * keep.bernoulli_(1 - self.p).div_(1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class DropoutLinear(nn.Linear):
    """A linear layer with dropout on its input; its weights have the names and shapes of `nn.Linear`.

    So dropout can be set on any net, Kitae's or a library's, without a change in the names of its weights.
    """

    p: float = 0.0

    def forward(self, input: Tensor) -> Tensor:
        """float [N, ..., in_features] -> float [N, ..., out_features]."""
        return super().forward(F.dropout(input, self.p, self.training))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p:g}"


def linear_rates(p: float, blocks: int) -> list[float]:
    """Drop probability of each residual block: linear from 0 at the first to `p` at the last; a lone block gets `p`.

    (Huang et al. start at p / blocks; from 0, as timm does, the first block, on which all others stand, always runs.)
    """
    return [p * i / (blocks - 1) for i in range(blocks)] if blocks > 1 else [p] * blocks


def stochastic_depth(p: float) -> nn.Module:
    """A `StochasticDepth`, or an identity where p is 0: nothing to trace, export or prune."""
    return StochasticDepth(p) if p > 0 else nn.Identity()


def classifier(features: int, classes: int, dropout: float, *, bias: bool = True) -> nn.Linear:
    """The last layer: a linear one, with dropout on its input where asked."""
    if dropout == 0:
        return nn.Linear(features, classes, bias=bias)
    layer = DropoutLinear(features, classes, bias=bias)
    layer.p = dropout
    return layer
