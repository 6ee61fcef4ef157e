"""Remove weights, one by one or by the channel, and prove that they are gone.

Unstructured: masks set the smallest weights to zero (Han et al. 2015). Shapes stay, so nothing runs faster; the gain is
in compressed bytes. `enforce` holds the zeros after every optimizer step, since momentum revives them otherwise.

Structured: whole channels are cut out of every layer that touches them (Fang et al., "DepGraph", CVPR 2023; the library
Torch-Pruning finds which layers are coupled). The result is a smaller dense network of the same kind, described by a
`Shape`, which is plain JSON: a fresh network, `reshape(network, shape)` and its weights rebuild it, without a pickle.

The classifier's outputs are the classes; no method here removes one.
"""

from __future__ import annotations

import copy
import math
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from kitae.errors import CompressionError, one_line, require
from kitae.keyed import uniform
from kitae.modes import evaluating

Scope = Literal["layer", "global"]
Importance = Literal["magnitude", "group", "taylor", "random"]
Masks = dict[str, Tensor]
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]

KEEP_AT_LEAST = 0.1
"""Share of a layer's channels that stays whatever the ranking says: without any, the network falls in two."""

_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


# Counting


@dataclass(frozen=True)
class LayerCount:
    """Weights of one layer: how many, and how many of them are zero."""

    name: str
    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Zeros as a share of the layer's weights, in [0, 1]."""
        return self.zeros / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class Counts:
    """What a network holds.

    Attributes:
        parameters: all of them, biases and norms included.
        zeros: zero weights of convolutions and linear layers.
        layers: each of those layers.
    """

    parameters: int
    zeros: int
    layers: tuple[LayerCount, ...]

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
    return {name: module for name, module in model.named_modules() if isinstance(module, _WEIGHTED)}


def require_layers(layers: Mapping[str, nn.Module], names: Iterable[str], field: str = "") -> None:
    """Raise CompressionError for the first of `names` that is no prunable layer; `field` says where it was named."""
    for name in names:
        if name not in layers:
            some = ", ".join(list(layers)[:8])
            raise CompressionError(
                f"{field}{': ' * bool(field)}there is no layer {name!r} to prune; there are {some}"
                f"{', ...' * (len(layers) > 8)}"
            )


def count(model: nn.Module) -> Counts:
    """Count parameters and zero weights, as the forward pass sees them.

    A network under `torch.nn.utils.prune` or a parametrization keeps the unmasked weights in its parameters; what is
    counted here is the weight after the mask.
    """
    total = sum(tensor.numel() for tensor in _effective(model))
    layers = []
    for name, module in prunable_layers(model).items():
        weight = _weight(module)
        layers.append(LayerCount(name, weight.numel(), int((weight == 0).sum())))
    return Counts(total, sum(layer.zeros for layer in layers), tuple(layers))


def compressed_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers after zlib at its best: what zeros are worth on disk or on the wire."""
    packer = zlib.compressobj(9)
    size = 0
    for tensor in (*_effective(model), *model.buffers()):
        size += len(packer.compress(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes()))
    return size + len(packer.flush())


# Unstructured


def magnitude_masks(
    model: nn.Module, ratios: float | Mapping[str, float], *, scope: Scope = "layer", skip: Sequence[str] = ()
) -> Masks:
    """Masks that drop the weights of smallest magnitude (L1).

    Args:
        ratios: share of the weights to drop, in [0, 1): one for all layers, or by layer name (others stay whole).
        scope: `layer` drops that share in each layer; `global` ranks the weights of all layers together and leaves
            each at least a tenth.
        skip: layers left whole.

    Returns:
        bool tensors in the weights' shapes by layer name; True stays. Exactly round(ratio * weights) are False, in each
        layer or, with `global`, in all of them together (unless that tenth prevents it).

    Raises:
        CompressionError: a layer that does not exist, a ratio outside [0, 1), or ratios by layer with scope `global`.
    """
    chosen = _ratios(model, ratios, skip)
    layers = prunable_layers(model)
    magnitudes = {name: _weight(layers[name]).detach().abs().flatten() for name in chosen}
    if scope == "layer":
        drop = {name: round(chosen[name] * values.numel()) for name, values in magnitudes.items()}
    else:
        drop = _global_shares(magnitudes, _one_ratio(ratios))
    masks: Masks = {}
    for name, values in magnitudes.items():
        mask = torch.ones(values.numel(), dtype=torch.bool, device=values.device)
        mask[values.argsort(stable=True)[: drop[name]]] = False
        masks[name] = mask.reshape(_weight(layers[name]).shape)
    return masks


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set the masked weights to zero, in place.

    Raises:
        CompressionError: a mask is for a layer that the network does not have, or of another shape.
    """
    layers = prunable_layers(model)
    with torch.no_grad():
        for name, mask in masks.items():
            if name not in layers:
                raise CompressionError(f"a mask is for {name}, which this network does not have")
            weight = _weight(layers[name])
            if weight.shape != mask.shape:
                raise CompressionError(f"the mask of {name} is {list(mask.shape)}, its weight {list(weight.shape)}")
            weight.masked_fill_(~mask.to(weight.device), 0.0)


def enforce(masks: Masks) -> Callable[[nn.Module], None]:
    """What to call after every optimizer step so that masked weights stay zero."""

    def after_step(model: nn.Module) -> None:
        apply_masks(model, masks)

    return after_step


def cubic(step: int, steps: int, final: float, initial: float = 0.0) -> float:
    """Sparsity at a step of gradual pruning: final + (initial - final) (1 - step / steps)^3, and `final` after `steps`.

    Zhu and Gupta, "To prune, or not to prune", 2017: fast at first, while the network is redundant.
    """
    if steps < 1 or step >= steps:
        return final
    return final + (initial - final) * (1.0 - max(step, 0) / steps) ** 3


class Gradual:
    """Called after every optimizer step: raises the sparsity along `cubic` and holds the masks in between.

    Args:
        ratio: share of the weights dropped at the end.
        steps: optimizer steps until then.
        every: steps between two rises.
        scope, skip: as `magnitude_masks`.
        initial: share dropped already.
        masks: what was dropped already, held from the first step on: momentum would revive it before the first rise.
    """

    def __init__(
        self,
        ratio: float,
        steps: int,
        *,
        every: int = 10,
        scope: Scope = "layer",
        skip: Sequence[str] = (),
        initial: float = 0.0,
        masks: Masks | None = None,
    ) -> None:
        if steps < 1 or every < 1:
            raise CompressionError(f"gradual pruning needs at least one step, not {steps} and every {every}")
        self.ratio, self.steps, self.every, self.scope, self.skip = ratio, steps, every, scope, tuple(skip)
        self.initial = initial
        self.step = 0
        self.masks: Masks = dict(masks or {})

    def __call__(self, model: nn.Module) -> None:
        self.step += 1
        if self.step <= self.steps and (self.step % self.every == 0 or self.step == self.steps):
            # Weights that are zero already have the smallest magnitude, so what was dropped stays dropped.
            apply_masks(model, self.masks)
            ratio = cubic(self.step, self.steps, self.ratio, self.initial)
            self.masks = magnitude_masks(model, ratio, scope=self.scope, skip=self.skip)
        apply_masks(model, self.masks)


# Structured


@dataclass(frozen=True)
class Shape:
    """How a network with removed channels differs from the one it came from; plain JSON.

    Attributes:
        tensors: new shape of each parameter and buffer that shrank.
        attributes: new channel counts of each module that shrank, by module and attribute.
        kept: for each layer that lost outputs, the original indices of those it kept.
    """

    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, int | tuple[int, ...]]] = field(default_factory=dict)
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A mapping for JSON."""
        return {
            "tensors": {name: list(shape) for name, shape in self.tensors.items()},
            "attributes": {
                name: {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
                for name, values in self.attributes.items()
            },
            "kept": {name: list(indices) for name, indices in self.kept.items()},
        }

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Shape:
        """The inverse of `to_dict`.

        Raises:
            CompressionError: the mapping is not a shape.
        """
        try:
            return cls(
                {str(name): tuple(int(n) for n in shape) for name, shape in mapping["tensors"].items()},
                {
                    str(name): {
                        str(key): tuple(int(n) for n in value) if isinstance(value, list) else int(value)
                        for key, value in values.items()
                    }
                    for name, values in mapping["attributes"].items()
                },
                {str(name): tuple(int(n) for n in indices) for name, indices in mapping["kept"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CompressionError(f"the recorded shape of the pruned network is damaged ({error})") from error


@dataclass(frozen=True)
class Pruned:
    """A network whose channels were removed.

    Attributes:
        model: the smaller network, in the mode of the original.
        shape: rebuilds it.
        removed: for every layer and norm, the original indices of the output channels that are gone.
        removed_inputs: the same of every layer's inputs.
        masked_error: largest difference of an output from `masked_original`'s, as a share of the largest output.
    """

    model: nn.Module
    shape: Shape
    removed: Mapping[str, tuple[int, ...]]
    removed_inputs: Mapping[str, tuple[int, ...]]
    masked_error: float


def whole_packs(stay: int, width: int, round_to: int) -> int:
    """How many of a layer's `width` channels to keep where `stay` were asked for: see `remove_channels`, `round_to`."""
    step = round_to
    while step > 1 and width < 2 * step:
        step //= 2
    return min(width, max(1, math.floor(stay / step + 0.5)) * step)


def remove_channels(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    ratios: float | Mapping[str, float],
    *,
    importance: Importance = "group",
    scope: Scope = "layer",
    skip: Sequence[str] = (),
    batches: Batches | None = None,
    round_to: int = 1,
    seed: int = 0,
) -> Pruned:
    """Cut the least important channels out of a copy of a network.

    Coupled layers (a residual stream, a norm and its convolution) lose the same channels. The ratio is of channels:
    parameters and multiply-adds fall by about 1 - (1 - ratio)^2. The smaller network must compute what
    `masked_original` computes, or it is not given out.

    Args:
        model: not changed. Any mode, any device.
        input_shape: (C, H, W) of an image.
        ratios: share of the channels to remove, in [0, 1): one for all layers, or by layer name (others stay whole; of
            coupled layers the one that is named first counts).
        importance: `magnitude` is the L1 norm of the filters that make a channel (Li et al. 2017); `group` the squared
            L2 norm over all weights of all coupled layers that touch it (Fang et al. 2023); `taylor` the squared change
            of the loss if it were zero, to first order, averaged over batches and over the coupled layers
            (Molchanov et al. 2019); `random` is the control.
        scope: `layer` removes the ratio from every layer; `global` ranks all channels together and leaves each layer
            at least a tenth.
        skip: layers that keep all their outputs, and with them those coupled to them.
        batches: for `taylor`, and to compare with the masked original (on noise without): gives normalised images
            [n, C, H, W] and int64 labels [n] of *training* images.
        round_to: layers keep the nearest multiple of it, or of its half, quarter and so on where they have not twice
            as many channels: engines work on channels in packs, and a pack that is not full costs as a full one does.
        seed: of `random`.

    Raises:
        CompressionError: wrong ratios or names, the network's layers cannot be untangled, or without the channels it
            computes something else than with zeros in their place.
    """
    chosen = _ratios(model, ratios, skip)
    total = _one_ratio(ratios) if scope == "global" else None
    if round_to < 1:
        raise CompressionError(f"round_to must be at least 1, not {round_to}")
    smaller = copy.deepcopy(model)
    smaller.eval().requires_grad_(True)  # the coupling of layers is read off the autograd graph
    groups = _groups(smaller, input_shape, chosen, set(skip))
    scores = _scores(smaller, groups, importance, batches, seed)
    numbers = _channels_to_drop(groups, scores, total, round_to)
    gone: dict[bool, dict[str, list[int]]] = {True: {}, False: {}}  # outputs, inputs
    survivors: dict[tuple[bool, str], list[int]] = {}
    for group, score, number in zip(groups, scores, numbers, strict=True):
        if number == 0:
            continue
        for name, output, width, positions in group.prune(score.argsort(stable=True)[:number].tolist()):
            left = survivors.setdefault((output, name), list(range(width)))
            these = {left[i] for i in positions}
            gone[output].setdefault(name, []).extend(these)
            survivors[output, name] = [i for i in left if i not in these]
    smaller.zero_grad(set_to_none=True)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in smaller.named_parameters():
        parameter.requires_grad_(flags[name])
    for module, original in zip(smaller.modules(), model.modules(), strict=True):
        module.training = original.training
    layers = prunable_layers(model)
    kept = {name: tuple(left) for (output, name), left in survivors.items() if output and name in layers}
    removed, inputs = ({name: tuple(sorted(these)) for name, these in gone[side].items()} for side in (True, False))
    images = _some_images(model, input_shape, batches)
    try:
        error = _distance(masked_original(model, removed, inputs), smaller, images)
    except Exception as failure:
        raise CompressionError(
            f"the network does not run with channels removed ({one_line(failure)}): it cuts or reshapes channels in "
            f"its own code; prune it unstructured, or skip those layers"
        ) from failure
    if not error <= _MASKED_ERROR:
        raise CompressionError(
            f"without the removed channels the network computes something else than with zeros in their place (an "
            f"output is off by {error:.1g} of the largest): it mixes channels in its own code; prune it unstructured, "
            f"or skip those layers"
        )
    return Pruned(smaller, difference(model, smaller, kept), removed, inputs, error)


def reshape(fresh: nn.Module, shape: Shape) -> nn.Module:
    """Shrink a freshly built network to a recorded shape, in place; weights are then loaded into it, or trained.

    Each tensor keeps its first entries, so a freshly drawn network stays freshly drawn: trained from here it is the
    control that asks whether the weights that survived pruning were worth anything.

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
            if name not in modules or attribute not in _ATTRIBUTES or not hasattr(modules[name], attribute):
                raise CompressionError(f"the recorded shape names {name}.{attribute}, which this network does not have")
            setattr(modules[name], attribute, value)
    return fresh


def difference(original: nn.Module, smaller: nn.Module, kept: Mapping[str, tuple[int, ...]]) -> Shape:
    """The shape that makes a fresh `original` into `smaller`, which came from it, in one step or in several."""
    before = {**dict(original.named_parameters()), **dict(original.named_buffers())}
    after = {**dict(smaller.named_parameters()), **dict(smaller.named_buffers())}
    tensors = {name: tuple(after[name].shape) for name in before if after[name].shape != before[name].shape}
    attributes: dict[str, dict[str, int | tuple[int, ...]]] = {}
    now = dict(smaller.named_modules())
    for name, module in original.named_modules():
        for attribute in _ATTRIBUTES:
            value = getattr(now[name], attribute, None)
            if value != getattr(module, attribute, None) and value is not None:
                plain = tuple(int(n) for n in value) if isinstance(value, tuple | list | torch.Size) else int(value)
                attributes.setdefault(name, {})[attribute] = plain
    return Shape(tensors, attributes, kept)


def masked_original(
    model: nn.Module, removed: Mapping[str, Sequence[int]], removed_inputs: Mapping[str, Sequence[int]] | None = None
) -> nn.Module:
    """A copy of the unpruned network in which the removed channels are zeros, and nobody reads them: in eval mode it
    must compute what the smaller network computes. A LayerNorm measures the channels that are left.

    Args:
        removed, removed_inputs: as in `Pruned`. Without the inputs it holds where every activation maps zero to zero.
    """
    masked = copy.deepcopy(model)
    modules = dict(masked.named_modules())
    with torch.no_grad():
        for name, channels in removed.items():
            for tensor in modules[name].parameters(recurse=False):
                tensor[list(channels)] = 0.0
            if isinstance(modules[name], nn.LayerNorm):
                _leave_out(modules[name], channels)
        for name, channels in (removed_inputs or {}).items():
            weight = _weight(modules[name])
            axis = 0 if isinstance(modules[name], nn.modules.conv._ConvTransposeNd) else 1
            weight.index_fill_(axis, torch.tensor(channels, device=weight.device), 0.0)
    return masked


def reestimate_batchnorm(model: nn.Module, batches: Batches) -> int:
    """Measure the running statistics of every BatchNorm again, as plain averages over batches of *training* images.

    Pruning shifts what a norm sees; its statistics are worth more accuracy than a first epoch of fine-tuning, and cost
    a few forward passes.

    Args:
        model: changed in place; its mode is kept.
        batches: gives normalised images [n, C, H, W] and labels, n large enough for a variance.

    Returns:
        How many BatchNorms were re-estimated.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats and norm.running_mean is not None]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    seen = 0
    try:
        with evaluating(model), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain average over all batches
                norm.training = True
            for images, _ in batches():
                model(images)
                seen += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if seen == 0:
        raise CompressionError("there are no training images to re-estimate BatchNorm from")
    return len(norms)


# What follows is private.

_ATTRIBUTES = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features",
               "num_channels", "num_parameters", "normalized_shape")  # fmt: skip
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)

_MASKED_ERROR = 1e-3
"""Rounding in another order moves an output by about 1e-6 of the largest; a wrong channel by more than a tenth."""


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _effective(model: nn.Module) -> Iterator[Tensor]:
    """Every parameter once, after masks and parametrizations."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        if ".parametrizations" in f".{name}":
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield getattr(module, leaf.removesuffix("_orig")) if leaf.endswith("_orig") else parameter
        if torch.nn.utils.parametrize.is_parametrized(module):
            for leaf in module.parametrizations:
                yield getattr(module, leaf)


def _ratios(model: nn.Module, ratios: float | Mapping[str, float], skip: Sequence[str]) -> dict[str, float]:
    layers = prunable_layers(model)
    named = dict.fromkeys(layers, float(ratios)) if isinstance(ratios, float | int) else dict(ratios)
    require_layers(layers, (*named, *skip))
    for name, ratio in named.items():
        if not 0 <= ratio < 1:
            raise CompressionError(f"a pruning ratio must be in [0, 1), not {ratio} ({name})")
    return {name: ratio for name, ratio in named.items() if name not in skip}


def _one_ratio(ratios: float | Mapping[str, float]) -> float:
    if not isinstance(ratios, float | int):
        raise CompressionError("ratios by layer go with scope layer; scope global takes one ratio")
    return float(ratios)


def _most(width: int) -> int:
    """How many of a layer's weights or channels may go."""
    return width - max(1, math.ceil(KEEP_AT_LEAST * width))


def _global_shares(magnitudes: Mapping[str, Tensor], ratio: float) -> dict[str, int]:
    """How many weights of each layer are among the smallest of all, no layer giving more than it may."""
    names = list(magnitudes)
    drop = dict.fromkeys(names, 0)
    wanted = round(ratio * sum(magnitudes[name].numel() for name in names))
    free = names
    while free and wanted > 0:
        values = torch.cat([magnitudes[name] for name in free])
        owner = torch.cat([torch.full((magnitudes[name].numel(),), i) for i, name in enumerate(free)])
        taken = owner[values.cpu().argsort(stable=True)[:wanted]].bincount(minlength=len(free)).tolist()
        full = [name for name, n in zip(free, taken, strict=True) if n > _most(magnitudes[name].numel())]
        if not full:
            drop.update(zip(free, taken, strict=True))
            break
        for name in full:  # they give what they may, and the others share the rest anew
            drop[name] = _most(magnitudes[name].numel())
            wanted -= drop[name]
        free = [name for name in free if name not in full]
    return drop


@dataclass
class _Member:
    """One side of one layer in a group of coupled channels."""

    name: str
    module: nn.Module
    output: bool  # its outputs are coupled, or its inputs
    positions: list[int]  # in the layer
    roots: list[int]  # the channel of the group that each belongs to


class _Group:
    """Channels that can only go together."""

    def __init__(self, graph: Any, group: Any, names: Mapping[nn.Module, str]) -> None:
        first = group[0].dep
        self._graph, self._root, self._function, self._names = graph, first.target.module, first.handler, names
        self.width: int = int(graph.get_out_channels(self._root))
        self.members: list[_Member] = []
        self.tangled = False
        for item in group.items:
            module, output = item.dep.target.module, graph.is_out_channel_pruning_fn(item.dep.handler)
            if isinstance(module, nn.GroupNorm | nn.MultiheadAttention | nn.RNNBase):
                self.tangled = True  # these channels hang together in some other way as well
            if isinstance(module, nn.modules.conv._ConvNd) and 1 < module.groups < module.out_channels:
                self.tangled = True
            if isinstance(module, _WEIGHTED + _NORMS):
                if any(root is None for root in item.root_idxs):
                    self.tangled = True
                    continue
                self.members.append(
                    _Member(
                        names[module], module, output, [int(i) for i in item.idxs], [int(i) for i in item.root_idxs]
                    )
                )
        if not any(isinstance(m.module, _WEIGHTED) and not m.output for m in self.members):
            self.tangled = True  # no layer takes them in: they are the network's own outputs, the classes
        self.ratio = 0.0

    @property
    def outputs(self) -> list[str]:
        """Convolutions and linear layers whose outputs are in the group, the root first."""
        return [m.name for m in self.members if m.output and isinstance(m.module, _WEIGHTED)]

    def prune(self, channels: list[int]) -> Iterator[tuple[str, bool, int, list[int]]]:
        """Remove channels, after naming what of each layer goes: (name, outputs or inputs, how many it has now, their
        positions)."""
        group = self._graph.get_pruning_group(self._root, self._function, sorted(channels))
        for item in group.items:
            module = item.dep.target.module
            if not isinstance(module, _WEIGHTED + _NORMS):
                continue
            output = bool(self._graph.is_out_channel_pruning_fn(item.dep.handler))
            width = self._graph.get_out_channels(module) if output else self._graph.get_in_channels(module)
            yield self._names[module], output, int(width), [int(i) for i in item.idxs]
        group.prune()


def _groups(
    model: nn.Module, input_shape: tuple[int, int, int], ratios: Mapping[str, float], skip: set[str]
) -> list[_Group]:
    tp = require("torch_pruning", "compress")
    device = next(model.parameters()).device
    names = {module: name for name, module in model.named_modules()}
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = tp.DependencyGraph().build_dependency(
                model, example_inputs=torch.zeros(2, *input_shape, device=device), verbose=False
            )
            found = [_Group(graph, group, names) for group in graph.get_all_groups()]
    except Exception as error:
        raise CompressionError(f"the network's layers cannot be untangled for pruning ({one_line(error)})") from error
    kept = []
    for group in found:
        named = sorted((name for name in group.outputs if name in ratios), key=list(ratios).index)
        if group.tangled or not named or skip & set(group.outputs):
            continue
        group.ratio = ratios[named[0]]
        kept.append(group)
    if not kept:
        raise CompressionError(
            "no layer of this network can lose channels (outputs, skipped and grouped layers cannot)"
        )
    return kept


def _scores(
    model: nn.Module, groups: Sequence[_Group], importance: Importance, batches: Batches | None, seed: int
) -> list[Tensor]:
    """The importance of each channel of each group: float64 [width], comparable between groups."""
    if importance == "random":
        return [torch.from_numpy(uniform(seed, 0, np.arange(group.width), i)) for i, group in enumerate(groups)]
    if importance == "taylor":
        if batches is None:
            raise CompressionError("importance taylor needs batches of training images")
        changes = _loss_changes(model, batches)
        parts = [[(m, changes[m.name, m.output]) for m in group.members if _has_weight(m)] for group in groups]
        return [_sum(group, part) / len(part) for group, part in zip(groups, parts, strict=True)]
    if importance == "magnitude":
        parts = [
            [(m, _per_channel(_weight(m.module).detach().abs(), m)) for m in group.members if _is_filter(m)]
            for group in groups
        ]
    elif importance == "group":
        parts = [
            [(m, _per_channel(_weight(m.module).detach().square(), m)) for m in group.members if _has_weight(m)]
            for group in groups
        ]
    else:
        raise CompressionError(f"importance must be magnitude, group, taylor or random, not {importance!r}")
    raw = [_sum(group, part) for group, part in zip(groups, parts, strict=True)]
    return [score / score.mean().clamp_min(1e-30) for score in raw]  # wide filters have large norms


def _is_filter(member: _Member) -> bool:
    return member.output and isinstance(member.module, _WEIGHTED)


def _has_weight(member: _Member) -> bool:
    return getattr(member.module, "weight", None) is not None


def _per_channel(values: Tensor, member: _Member) -> Tensor:
    """Sum over all axes but the member's channels."""
    transposed = isinstance(member.module, nn.modules.conv._ConvTransposeNd)
    depthwise = values.ndim > 1 and values.shape[1] == 1
    axis = 0 if values.ndim == 1 or depthwise or member.output != transposed else 1
    return values.sum(dim=[d for d in range(values.ndim) if d != axis]) if values.ndim > 1 else values


def _sum(group: _Group, parts: Sequence[tuple[_Member, Tensor]]) -> Tensor:
    total = torch.zeros(group.width, dtype=torch.float64)
    for member, values in parts:
        total.scatter_add_(0, torch.tensor(member.roots), values.double().cpu()[member.positions])
    return total


def _loss_changes(model: nn.Module, batches: Batches) -> dict[tuple[str, bool], Tensor]:
    """By layer and side: the mean over batches of (sum of weight times gradient)^2 of each channel."""
    sums: dict[tuple[str, bool], Tensor] = {}
    seen = 0
    with torch.enable_grad():
        for images, labels in batches():
            model.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            seen += 1
            for name, module in model.named_modules():
                if not isinstance(module, _WEIGHTED + _NORMS) or getattr(module, "weight", None) is None:
                    continue
                for output in (True, False):
                    member = _Member(name, module, output, [], [])
                    change = _per_channel(_product(_weight(module)), member)
                    bias = getattr(module, "bias", None)
                    if output and bias is not None:
                        change = change + _product(bias)
                    sums[name, output] = sums.get((name, output), torch.zeros_like(change)) + change.square()
    if seen == 0:
        raise CompressionError("importance taylor needs batches of training images, and there are none")
    return {key: value / seen for key, value in sums.items()}


def _product(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else (parameter * parameter.grad).detach()


def _channels_to_drop(
    groups: Sequence[_Group], scores: Sequence[Tensor], total: float | None, round_to: int
) -> list[int]:
    if total is None:
        numbers = [round(group.ratio * group.width) for group in groups]
    else:
        shares = _global_shares({str(i): score for i, score in enumerate(scores)}, total)
        numbers = [shares[str(i)] for i in range(len(groups))]
    result = []
    for group, number in zip(groups, numbers, strict=True):
        stay = group.width - min(number, _most(group.width))
        result.append(group.width - whole_packs(stay, group.width, round_to))
    return result


def _leave_out(norm: nn.Module, channels: Sequence[int]) -> None:
    """Let a LayerNorm measure and scale the other channels only, and give zeros for these."""
    weight = _weight(norm)
    kept = torch.tensor([i for i in range(len(weight)) if i not in set(channels)], device=weight.device)
    axis = 1 if type(norm).__name__.endswith("2d") else -1  # those of torchvision and timm that take [N, C, H, W]
    smaller = copy.deepcopy(norm)
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(smaller, name, nn.Parameter(parameter.detach()[kept]))
    smaller.normalized_shape = (len(kept),)  # type: ignore[assignment]

    def only_kept(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.zeros_like(output).index_copy_(axis, kept, smaller(inputs[0].index_select(axis, kept)))

    norm.register_forward_hook(only_kept)


def _some_images(model: nn.Module, input_shape: tuple[int, int, int], batches: Batches | None) -> Tensor:
    """A few normalised images [n, C, H, W] to compare networks on."""
    for images, _ in batches() if batches is not None else ():
        return images[:8]
    noise = 2.0 * uniform(0, 0, np.arange(4 * math.prod(input_shape)), 1).reshape(4, *input_shape) - 1.0
    return torch.from_numpy(noise).to(next(model.parameters()).device, torch.float32)


def _distance(original: nn.Module, smaller: nn.Module, images: Tensor) -> float:
    """Largest difference of an output in eval mode, as a share of the original's largest."""
    with evaluating(original), evaluating(smaller), torch.no_grad():
        expected, got = original(images), smaller(images)
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
