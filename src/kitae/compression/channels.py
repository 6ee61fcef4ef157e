"""Structured pruning: whole channels are cut out of every layer that touches them.

Torch-Pruning finds which layers are coupled (Fang et al., "DepGraph", CVPR 2023) and ranks their channels. The result
is a smaller dense network of the same kind, described by a `Shape`. The classifier's outputs are the classes; none of
them is removed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from kitae.compression.counting import WEIGHTED, others, weight_of, widths_of
from kitae.compression.least_squares import Batches
from kitae.compression.masks import global_shares, most, ratios_by_layer
from kitae.compression.selection import Reader, can_read, removal_errors
from kitae.compression.shape import Shape, difference
from kitae.compression.spec import Importance, Scope
from kitae.console import quiet
from kitae.errors import CompressionError, one_line, require
from kitae.keyed import uniform
from kitae.modes import convolutions_in_float32, evaluating

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)

_CANNOT = "outputs, skipped and grouped layers cannot, nor can layers coupled to one of these"

_MASKED_ERROR = 1e-3
"""Rounding changes an output by about 1e-6 of the largest output; a wrong channel by more than a tenth."""


@dataclass(frozen=True)
class Pruned:
    """A network whose channels were removed.

    Attributes:
        model: the smaller network, in eval mode.
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
    """How many of `width` channels to keep if `stay` were requested; see `round_to` in `remove_channels`."""
    step = round_to
    while step > 1 and width < 2 * step:
        step //= 2
    return min(width, max(1, math.floor(stay / step + 0.5)) * step)


def remove_channels(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    ratios: float | Mapping[str, float],
    *,
    batches: Batches,
    importance: Importance = "reconstruction",
    scope: Scope = "layer",
    skip: Sequence[str] = (),
    required: Collection[str] = (),
    round_to: int = 1,
    widths: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Pruned:
    """Cut the least important channels out of a copy of a network.

    Coupled layers (a residual stream, a norm and its convolution) lose the same channels. The ratio is of channels:
    parameters and multiply-adds fall by about 1 - (1 - ratio)^2. The smaller network is compared with
    `masked_original`, and refused where it computes something else.

    Args:
        model: not changed. On any device.
        input_shape: (C, H, W) of an image.
        ratios: share of the channels to remove, in [0, 1): one for all layers, or by layer name (others stay whole; of
            coupled layers the one that is named first counts; not with scope `global`).
        batches: *training* images, for `reconstruction` and `taylor`, and to compare with the masked original.
        importance: `reconstruction` is what the outputs of the layers that read a channel lose without it, once those
            layers are solved without it, see `selection.removal_errors`; `magnitude` the L1 norm of the filters that
            make it (Li et al. 2017); `group` the squared L2 norm over all weights of all coupled layers that touch it
            (Fang et al. 2023); `taylor` the change of the loss if it were zero, to first order, averaged over the
            coupled layers, and its square over batches (Molchanov et al. 2019); `random` is the control.
        scope: `layer` removes the ratio from every layer; `global` ranks all channels together. One ratio for all
            leaves each layer at least a tenth, before `round_to`; ratios by name leave it at least one channel.
        skip: layers that keep all their outputs, and with them those coupled to them.
        required: layers that must be able to lose channels: those whose ratio was given by name.
        round_to: layers keep the nearest multiple of it, or of its half, quarter and so on where they have fewer than
            twice as many channels. Engines work on packs of channels, and an incomplete pack costs as much as a full
            one. With ratio 0 all channels stay.
        widths: with scope `global`, the channels of each layer before any were removed, of which the ratio, the tenth
            and `round_to` are then; None takes those that `model` has.
        seed: of `random`.

    Raises:
        CompressionError: a required layer cannot lose channels, the layers' coupling cannot be found, or without the
            channels the network computes something else than with zeros in their place.
    """
    chosen = ratios_by_layer(model, ratios, skip)
    total = cast(float, ratios) if scope == "global" else None
    smaller = copy.deepcopy(model)
    smaller.eval().requires_grad_(True)  # the coupling of layers is read off the autograd graph
    groups = _groups(smaller, input_shape, chosen, set(skip), required)
    scores = _scores(smaller, groups, importance, batches, seed)
    limit: Callable[[int], int] = most if isinstance(ratios, float | int) else lambda width: width - 1
    whole = [(widths or {}).get(group.outputs[0], group.width) for group in groups]
    numbers = _channels_to_drop(groups, scores, total, limit, whole, round_to)
    gone: dict[bool, dict[str, set[int]]] = {True: {}, False: {}}  # outputs, inputs
    for group, score, number in zip(groups, scores, numbers, strict=True):
        if number == 0:
            continue
        for name, output, width, positions in group.prune(score.argsort(stable=True)[:number].tolist()):
            these = gone[output].setdefault(name, set())
            left = others(these, width + len(these))
            these.update(left[i] for i in positions)
    smaller.zero_grad(set_to_none=True)
    for parameter, original in zip(smaller.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(original.requires_grad)
    widths = widths_of(model)
    kept = {name: tuple(others(these, widths[name])) for name, these in gone[True].items() if name in widths}
    removed, inputs = ({name: tuple(sorted(these)) for name, these in gone[side].items()} for side in (True, False))
    images = next(iter(batches()))[0][:8]
    try:
        error = _distance(masked_original(model, removed, inputs), smaller, images)
        why = f"an output is off by {error:.1g} of the largest"
    except Exception as failure:  # it cuts or reshapes channels
        error, why = math.inf, one_line(failure)
    if not error <= _MASKED_ERROR:
        raise CompressionError(
            f"without the removed channels the network computes something else than with zeros in their place ({why}): "
            "it mixes channels in its own code; prune it unstructured, or skip those layers"
        )
    return Pruned(smaller, difference(model, smaller, kept), removed, inputs, error)


def masked_original(
    model: nn.Module, removed: Mapping[str, Sequence[int]], removed_inputs: Mapping[str, Sequence[int]] | None = None
) -> nn.Module:
    """A copy of the unpruned network in which the removed channels are zero and not read by any layer. In eval mode its
    outputs must be those of the smaller network. A LayerNorm normalises over the remaining channels.

    Args:
        removed, removed_inputs: as in `Pruned`. The inputs may be omitted if every activation maps zero to zero.
    """
    masked = copy.deepcopy(model)
    modules = dict(masked.named_modules())
    with torch.no_grad():
        for name, channels in removed.items():
            module = modules[name]
            for tensor in module.parameters(recurse=False):
                # The weight of a transposed convolution is [inputs, outputs / groups, ...].
                turned = isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups == 1 and tensor.ndim > 1
                tensor.index_fill_(1 if turned else 0, torch.tensor(channels, device=tensor.device), 0.0)
            if isinstance(module, nn.LayerNorm):
                _leave_out(module, channels)
        for name, channels in (removed_inputs or {}).items():
            weight = weight_of(modules[name])
            axis = 0 if isinstance(modules[name], nn.modules.conv._ConvTransposeNd) else 1
            weight.index_fill_(axis, torch.tensor(channels, device=weight.device), 0.0)
    return masked


class _Group:
    """Channels that can only be removed together; `coupled` is Torch-Pruning's group of them."""

    def __init__(self, graph: Any, coupled: Any, names: Mapping[nn.Module, str]) -> None:
        first = coupled[0].dep
        self._graph, self._root, self._function, self._names = graph, first.target.module, first.handler, names
        self.coupled = coupled
        self.width = int(graph.get_out_channels(self._root))
        self.ratio = 0.0
        self.outputs: list[str] = []  # layers whose outputs are in the group, the root first
        self.filters: list[Any] = []  # their items in `coupled`
        self.readers: list[Reader] = []  # layers that read these channels and can be solved
        self.tangled = False
        taken_in = False
        for item in coupled.items:
            module = item.dep.target.module
            if isinstance(module, nn.GroupNorm | nn.MultiheadAttention | nn.RNNBase):
                self.tangled = True  # these channels depend on each other in some other way as well
            if isinstance(module, nn.modules.conv._ConvNd) and 1 < module.groups < module.out_channels:
                self.tangled = True
            if not isinstance(module, WEIGHTED + _NORMS):
                continue
            if any(root is None for root in item.root_idxs):
                self.tangled = True
            elif isinstance(module, WEIGHTED) and self._is_output(item):
                self.outputs.append(names[module])
                self.filters.append(item)
            elif isinstance(module, WEIGHTED):
                taken_in = True
                if can_read(module):
                    self.readers.append(Reader(names[module], self._features(item)))
        self.tangled |= not taken_in  # no layer takes them in: they are the network's own outputs, the classes

    def _features(self, item: Any) -> Tensor:
        """Which features of a layer that reads them the channels are: int64 [width, features of each]."""
        kernel = item.dep.target.module.weight[0, 0].numel()
        found: list[list[int]] = [[] for _ in range(self.width)]
        for channel, place in zip(item.root_idxs, item.idxs, strict=True):
            found[int(channel)] += range(int(place) * kernel, (int(place) + 1) * kernel)
        return torch.tensor(found)

    def _is_output(self, item: Any) -> bool:
        return bool(self._graph.is_out_channel_pruning_fn(item.dep.handler))

    def prune(self, channels: list[int]) -> Iterator[tuple[str, bool, int, list[int]]]:
        """Remove channels. Before that, yields for each layer: its name, whether they are outputs, how many it has now,
        and which of them are removed."""
        group = self._graph.get_pruning_group(self._root, self._function, sorted(channels))
        for item in group.items:
            module = item.dep.target.module
            if not isinstance(module, WEIGHTED + _NORMS):
                continue
            output = self._is_output(item)
            width = self._graph.get_out_channels(module) if output else self._graph.get_in_channels(module)
            yield self._names[module], output, int(width), [int(i) for i in item.idxs]
        group.prune()


def _groups(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    ratios: Mapping[str, float],
    skip: set[str],
    required: Collection[str],
) -> list[_Group]:
    tp = require("torch_pruning")
    device = next(model.parameters()).device
    names = {module: name for name, module in model.named_modules()}
    try:
        with torch.enable_grad(), quiet():
            graph = tp.DependencyGraph().build_dependency(
                model, example_inputs=torch.zeros(2, *input_shape, device=device), verbose=False
            )
            found = [_Group(graph, group, names) for group in graph.get_all_groups()]
    except Exception as error:
        raise CompressionError(f"the network's layers cannot be grouped for pruning ({one_line(error)})") from error
    kept = []
    for group in found:
        first = next((name for name in ratios if name in group.outputs), None)
        if first is not None and not group.tangled and skip.isdisjoint(group.outputs):
            group.ratio = ratios[first]
            kept.append(group)
    if not kept:
        raise CompressionError(f"no layer of this network can lose channels ({_CANNOT})")
    able = {name for group in kept for name in group.outputs}
    for name in required:
        if name not in able:
            raise CompressionError(f"layer_ratios: {name!r} cannot lose channels; leave it out ({_CANNOT})")
    return kept


def _scores(
    model: nn.Module, groups: Sequence[_Group], importance: Importance, batches: Batches, seed: int
) -> list[Tensor]:
    """The importance of each channel of each group: float64 [width], comparable between groups."""
    if importance == "random":
        return [torch.from_numpy(uniform(seed, 0, np.arange(group.width), i)) for i, group in enumerate(groups)]
    if importance == "reconstruction":
        return _reconstruction_errors(model, groups, batches)
    kinds = require("torch_pruning").importance
    if importance == "taylor":
        return _loss_changes(model, groups, kinds.GroupTaylorImportance(multivariable=True, normalizer=None), batches)
    norm = 1 if importance == "magnitude" else 2
    rank = kinds.GroupMagnitudeImportance(p=norm, group_reduction="sum", normalizer=None)
    members = [group.filters if importance == "magnitude" else group.coupled for group in groups]
    raw = [rank(member).double().cpu() for member in members]
    return [score / score.mean().clamp_min(1e-30) for score in raw]  # wide filters have large norms


def _reconstruction_errors(model: nn.Module, groups: Sequence[_Group], batches: Batches) -> list[Tensor]:
    """See `removal_errors`. Where no layer that reads a group can be solved, its channels' shares of the group's
    squared norm: what zeros in their place would change, were they all equally strong."""
    errors = iter(removal_errors(model, [group.readers for group in groups if group.readers], batches))
    unread = [group for group in groups if not group.readers]
    norms = iter(_scores(model, unread, "group", batches, seed=0))  # as shares of the group's mean
    return [next(errors) if group.readers else next(norms) / group.width for group in groups]


def _loss_changes(
    model: nn.Module, groups: Sequence[_Group], rank: Callable[[Any], Tensor], batches: Batches
) -> list[Tensor]:
    """The mean over batches of each channel's squared change of the loss."""
    seen = 0
    sums = [torch.zeros(group.width, dtype=torch.float64) for group in groups]
    with torch.enable_grad():
        for images, labels in batches():
            model.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            for total, group in zip(sums, groups, strict=True):
                total += rank(group.coupled).double().cpu().square()
            seen += 1
    return [total / seen for total in sums]


def _channels_to_drop(
    groups: Sequence[_Group],
    scores: Sequence[Tensor],
    total: float | None,
    limit: Callable[[int], int],
    whole: Sequence[int],
    round_to: int,
) -> list[int]:
    if total is None:
        numbers = [round(group.ratio * group.width) for group in groups]
    else:
        numbers = global_shares(scores, total, whole)
    result = []
    for group, number, width in zip(groups, numbers, whole, strict=True):
        stay = group.width - min(number, limit(group.width))
        # Rounding removes channels as well, but not from a layer of which nothing is to be removed.
        result.append(max(0, group.width - whole_packs(stay, width, round_to)) if group.ratio else 0)
    return result


def _leave_out(norm: nn.Module, channels: Sequence[int]) -> None:
    """Let a LayerNorm normalise only the other channels, and output zeros for these."""
    weight = weight_of(norm)
    kept = torch.tensor(others(channels, len(weight)), device=weight.device)
    axis = 1 if type(norm).__name__.endswith("2d") else -1  # those of torchvision and timm that take [N, C, H, W]
    smaller = copy.deepcopy(norm)
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(smaller, name, nn.Parameter(parameter.detach()[kept]))
    smaller.normalized_shape = (len(kept),)  # type: ignore[assignment]

    def only_kept(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.zeros_like(output).index_copy_(axis, kept, smaller(inputs[0].index_select(axis, kept)))

    norm.register_forward_hook(only_kept)


def _distance(original: nn.Module, smaller: nn.Module, images: Tensor) -> float:
    """Largest difference of an output in eval mode, as a share of the original's largest."""
    with evaluating(original), evaluating(smaller), torch.no_grad(), convolutions_in_float32():
        expected, got = original(images), smaller(images)
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
