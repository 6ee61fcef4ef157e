"""Properties of any network that other stages need: its size, its classifier, its layer groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from kitae.errors import RecipeError, require
from kitae.models.stages import StageFeatures
from kitae.modes import evaluating, for_all_threads
from kitae.preprocess import Size, sides


def count_parameters(model: nn.Module) -> int:
    """Elements of all parameters, each counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


@for_all_threads
@contextmanager
def _plain_attention() -> Iterator[None]:
    """Compute attention by separate products, as the counter misses fused attention on a CPU."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def count_macs(model: nn.Module, channels: int, image_size: Size) -> int:
    """Multiply-adds of one forward pass of one image: convolutions, linear layers and attention, as they are executed.

    Half of torch's own count, which counts a multiply-add as two operations. Element-wise operations, normalisation and
    pooling are not counted. Training costs about three forward passes, 6 operations per multiply-add.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, _plain_attention():
        probed(model, (channels, *sides(image_size)))
    return int(counter.get_total_flops()) // 2


@torch.no_grad()
def probed(model: nn.Module, shape: tuple[int, int, int]) -> Any:
    """What the network gives in eval mode for one black image [channels, height, width] of its own dtype."""
    weight = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    with evaluating(model):
        return model(weight.new_zeros(1, *shape))


REFUSALS = (AssertionError, ValueError, RuntimeError, IndexError, ZeroDivisionError)
"""What networks raise for images of a size that they cannot take, as they are built or run. timm's patch embeddings
assert, and some of its attention divides by the number of windows."""


def takes(model: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether the network can take images [channels, height, width] of this shape."""
    try:
        probed(model, shape)
    except REFUSALS:
        return False
    return True


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the module that turns features into logits (a few nets have two): the last linear or convolutional."""
    if hasattr(model, "get_classifier"):  # timm
        heads = cast(Any, model).get_classifier()
        found = set(map(id, heads if isinstance(heads, tuple | list) else [heads]))
        names = tuple(name for name, module in model.named_modules() if id(module) in found)
    else:
        names = tuple(name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d))[-1:]
    if not names:
        raise RecipeError("model: no linear or convolutional layer that could be the classifier; give the model one")
    return names


def linear_classifier(model: nn.Module) -> nn.Linear | None:
    """The layer that turns features [N, D] into logits, if it is a single linear layer with a bias."""
    names = classifier_names(model)
    layer = model.get_submodule(names[0])
    return layer if len(names) == 1 and isinstance(layer, nn.Linear) and layer.bias is not None else None


def layer_groups(model: nn.Module) -> list[list[str]]:
    """Parameter names in groups from the stem to the classifier: each parameter once, the classifier alone in the last.

    A group is a residual block (or transformer block, or convolution with its norm): the steps of a layer-wise learning
    rate.
    """
    if isinstance(model, StageFeatures):
        groups = [[f"net.{name}" for name in group] for group in layer_groups(model.net)]
    elif hasattr(model, "group_matcher"):  # timm knows its own nets
        groups = list(require("timm.models").group_parameters(model, cast(Any, model).group_matcher()).values())
    else:
        groups = _groups(model)
    heads = classifier_names(model)
    classifier = [name for name, _ in model.named_parameters() if inside(name, heads)]
    rest = [[name for name in group if not inside(name, heads)] for group in groups]
    return [group for group in rest if group] + [classifier]


def inside(parameter: str, modules: Sequence[str]) -> bool:
    """Whether a parameter belongs to one of these modules."""
    return any(parameter.startswith(f"{module}.") for module in modules)


def _groups(model: nn.Module) -> list[list[str]]:
    groups: list[list[str]] = [[]]

    def is_list_of_blocks(module: nn.Module) -> bool:
        return isinstance(module, nn.Sequential | nn.ModuleList) and any(
            next(child.children(), None) is not None for child in module
        )

    def visit(module: nn.Module, prefix: str, depth: int) -> None:
        groups[0].extend(prefix + name for name, _ in module.named_parameters(recurse=False))  # position embeddings
        for name, child in module.named_children():
            path = f"{prefix}{name}."
            if is_list_of_blocks(child) or (depth == 0 and any(map(is_list_of_blocks, child.children()))):
                visit(child, path, depth + 1)
                continue
            names = [path + parameter for parameter, _ in child.named_parameters()]
            is_norm = next(child.children(), None) is None and not isinstance(child, nn.Linear | nn.Conv2d)
            if is_norm and groups[-1]:
                groups[-1].extend(names)  # a norm belongs to the layer before it
            else:
                groups.append(names)

    visit(model, "", 0)
    if len(groups) > 1:
        root = groups.pop(0)
        groups[0][:0] = root
    return groups
