"""How many weights a network has, and how many of them are zero."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from kitae.errors import CompressionError

WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class Counts:
    """The parameters of a network.

    Attributes:
        parameters: all of them, biases and norms included.
        zeros: zero weights of convolutions and linear layers.
    """

    parameters: int
    zeros: int

    @property
    def nonzero(self) -> int:
        """Parameters that are not zero weights."""
        return self.parameters - self.zeros

    @property
    def sparsity(self) -> float:
        """Zero weights as a share of all parameters, in [0, 1]."""
        return self.zeros / self.parameters if self.parameters else 0.0


def prunable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, WEIGHTED)}


def require_layers(layers: Mapping[str, nn.Module], names: Iterable[str], where: str) -> None:
    """Raise CompressionError for the first of `names` that is not a prunable layer; the message begins with `where`."""
    for name in names:
        if name not in layers:
            some = ", ".join([*list(layers)[:8], "..."] if len(layers) > 8 else layers)
            raise CompressionError(f"{where}there is no layer {name!r} to prune; there are {some}")


def weight_of(module: nn.Module) -> Tensor:
    """A layer's weight."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def width_of(layer: nn.Module) -> int:
    """Output channels of a convolution or linear layer."""
    return int(layer.out_channels if hasattr(layer, "out_channels") else layer.out_features)  # type: ignore[arg-type]


def widths_of(model: nn.Module) -> dict[str, int]:
    """Output channels of each prunable layer, by name."""
    return {name: width_of(layer) for name, layer in prunable_layers(model).items()}


def others(channels: Collection[int], width: int) -> list[int]:
    """The channels of `width` that are not among these."""
    return [i for i in range(width) if i not in channels]


def count(model: nn.Module) -> Counts:
    """Count parameters and zero weights."""
    total = sum(parameter.numel() for parameter in model.parameters())
    weights = {id(weight): weight for weight in map(weight_of, prunable_layers(model).values())}  # shared ones once
    return Counts(total, sum(int((weight == 0).sum()) for weight in weights.values()))


def compressed_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers after zlib at its highest level, which shows how much zeros save."""
    packer = zlib.compressobj(9)
    size = 0
    for tensor in (*model.parameters(), *model.buffers()):
        size += len(packer.compress(tensor.detach().cpu().numpy().tobytes()))
    return size + len(packer.flush())
