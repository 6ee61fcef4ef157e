"""How a network with removed channels differs from the one it came from, as plain JSON.

A fresh network, `reshape(network, shape)` and its weights rebuild the smaller network, without a pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from torch import nn

from kitae.errors import CompressionError
from kitae.spec import Spec

Attribute = Literal[
    "in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_channels",
    "num_parameters", "normalized_shape",
]  # fmt: skip


class Shape(Spec):
    """What changed when channels were removed.

    Attributes:
        tensors: new shape of each parameter and buffer that shrank.
        attributes: new channel counts of each module that shrank, by module and attribute.
        kept: for each layer that lost outputs, the original indices of those it kept.
    """

    tensors: dict[str, tuple[int, ...]]
    attributes: dict[str, dict[Attribute, int | tuple[int, ...]]]
    kept: dict[str, tuple[int, ...]]


UNCHANGED = Shape(tensors={}, attributes={}, kept={})


def reshape(fresh: nn.Module, shape: Shape) -> nn.Module:
    """Shrink a freshly built network to a recorded shape, in place; weights are then loaded into it, or trained.

    Each tensor keeps its first entries, so a network with random weights keeps random weights. Trained from scratch, it
    is the control that shows whether the weights kept by pruning matter.

    Raises:
        CompressionError: the shape is not one of this network.
    """
    modules = dict(fresh.named_modules())
    tensors = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
    for name, size in shape.tensors.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.ndim != len(size) or any(n > m for n, m in zip(size, tensor.shape, strict=True)):
            raise CompressionError(f"the recorded shape {list(size)} of {name} does not fit this network")
        owner, _, leaf = name.rpartition(".")
        cut = tensor.detach()[tuple(slice(0, n) for n in size)].clone()
        if isinstance(tensor, nn.Parameter):
            setattr(modules[owner], leaf, nn.Parameter(cut, requires_grad=tensor.requires_grad))
        else:
            modules[owner].register_buffer(leaf, cut, persistent=leaf not in modules[owner]._non_persistent_buffers_set)
    for name, attributes in shape.attributes.items():
        for attribute, value in attributes.items():
            if not hasattr(modules.get(name), attribute):
                raise CompressionError(f"the recorded shape names {name}.{attribute}, which this network does not have")
            setattr(modules[name], attribute, value)
    return fresh


def difference(original: nn.Module, smaller: nn.Module, kept: Mapping[str, tuple[int, ...]]) -> Shape:
    """The shape that makes a fresh `original` into `smaller`, which came from it, in one step or in several."""
    before = {**dict(original.named_parameters()), **dict(original.named_buffers())}
    after = {**dict(smaller.named_parameters()), **dict(smaller.named_buffers())}
    tensors = {name: tuple(after[name].shape) for name in before if after[name].shape != before[name].shape}
    attributes: dict[str, dict[Attribute, int | tuple[int, ...]]] = {}
    now = dict(smaller.named_modules())
    for name, module in original.named_modules():
        for attribute in get_args(Attribute):
            value = getattr(now[name], attribute, None)
            if value != getattr(module, attribute, None) and value is not None:
                plain = tuple(int(n) for n in value) if isinstance(value, tuple | list) else int(value)
                attributes.setdefault(name, {})[attribute] = plain
    return Shape(tensors=tensors, attributes=attributes, kept=dict(kept))
