"""Optimizers, their parameter groups, and the averaged weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from kitae.errors import RecipeError, did_you_mean, one_line
from kitae.training.muon import Muon
from kitae.training.spec import OptimizerSpec

_UNDECAYED = {
    "pos_embed", "pos_embedding", "position_embedding", "cls_token", "class_token", "dist_token", "reg_token",
    "relative_position_bias_table",
}  # fmt: skip
_UNSUITABLE = {"lbfgs", "sparseadam", "optimizer", "muon"}
# The ones that step without a closure on dense gradients, by the name a recipe uses.
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and name.lower() not in _UNSUITABLE
} | {"muon": Muon}


def parameter_groups(
    model: nn.Module, spec: OptimizerSpec, layers: Sequence[Sequence[str]] = ()
) -> list[dict[str, Any]]:
    """Trainable parameters as torch.optim groups: no weight decay on norms, biases and other 1-d parameters.

    The same holds for position embeddings, class tokens and relative position tables: those that a network names
    itself (timm's `no_weight_decay`) and those with the usual names.

    Args:
        layers: parameter names from the stem to the classifier, needed for `layer_decay`: the group that is d places
            below the classifier has layer_decay ** d times the learning rate (Clark et al. 2020, ELECTRA).

    Returns:
        Groups with `params`, `weight_decay` and `scale`, the factor of the learning rate; for Muon also `orthogonal`.
    """
    depth = {name: len(layers) - 1 - place for place, names in enumerate(layers) for name in names}
    hidden = _hidden(model) if spec.name.lower() == "muon" else frozenset()
    other = 1.0 if spec.other_lr is None or spec.name.lower() != "muon" else spec.other_lr / spec.lr
    named: set[str] = set(cast(Any, model).no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    groups: dict[tuple[float, bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = 1.0 if spec.layer_decay is None else spec.layer_decay ** depth.get(name, 0)
            decayed = parameter.ndim > 1 and name not in named and name.rpartition(".")[2] not in _UNDECAYED
            # Attention has biases of other names (in_proj_bias, q_bias); tables of relative positions are no biases.
            if spec.bias_lr is not None and parameter.ndim == 1 and name.endswith("bias"):
                scale *= spec.bias_lr / spec.lr
            elif name not in hidden:
                scale *= other
            groups.setdefault((scale, decayed, name in hidden), []).append(parameter)
    if not groups:
        raise RecipeError("model.freeze leaves nothing to train")
    return [
        {
            "params": parameters, "weight_decay": spec.weight_decay if decayed else 0.0, "scale": scale,
            **({"orthogonal": matrix} if hidden else {}),
        }
        for (scale, decayed, matrix), parameters in groups.items()
    ]  # fmt: skip


def _hidden(model: nn.Module) -> frozenset[str]:
    """The matrices and filters between the first and the last layer, which Muon is made for."""
    # Without class tokens and position embeddings, which a ViT registers before its first layer.
    weights = [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and name.rpartition(".")[2] not in _UNDECAYED
    ]
    return frozenset(weights[1:-1])


def build_optimizer(
    model: nn.Module, spec: OptimizerSpec, layers: Sequence[Sequence[str]] = ()
) -> torch.optim.Optimizer:
    """The optimizer of a recipe, fused where torch has a fused version.

    Raises:
        RecipeError: no such optimizer.
    """
    kind = OPTIMIZERS.get(spec.name.lower())
    if kind is None:
        hint = did_you_mean(spec.name.lower(), OPTIMIZERS)
        raise RecipeError(f"train.optimizer.name: no optimizer {spec.name!r}{hint}; valid: {', '.join(OPTIMIZERS)}")
    arguments = _accepted(kind, spec)
    arguments.pop("weight_decay", None)  # which each group has for itself
    if spec.momentum == 0:
        arguments.pop("nesterov", None)  # torch refuses Nesterov without momentum
    if "fused" in inspect.signature(kind).parameters:
        arguments["fused"] = True
    try:
        return kind(parameter_groups(model, spec, layers), **arguments)
    except ValueError as error:  # what the optimizer itself asks of its arguments
        raise RecipeError(f"train.optimizer: {spec.name}: {one_line(error)}") from error


def unused_fields(spec: OptimizerSpec) -> list[str]:
    """The fields that are set but that this optimizer does not have; none of one that does not exist."""
    kind, plain = OPTIMIZERS.get(spec.name.lower()), OptimizerSpec(name=spec.name)
    if kind is None:
        return []
    ours = {"name", "layer_decay", "bias_lr", *({"other_lr"} if kind is Muon else ())}  # of the groups
    known = ours | _accepted(kind, spec).keys()
    return [name for name, value in spec if name not in known and value != getattr(plain, name)]


def _accepted(kind: type[torch.optim.Optimizer], spec: OptimizerSpec) -> dict[str, Any]:
    """The fields that an optimizer has as arguments."""
    known = inspect.signature(kind).parameters
    return {
        name: value
        for name, value in spec
        if name in known and isinstance(known[name].default, tuple) == isinstance(value, tuple)  # Adafactor's eps
    }


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the rate times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def fill_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Start momentum from zeros, since a fused first step that the device skips would leave it uninitialised.

    The first step is the same, since momentum * 0 + gradient is the gradient.
    """
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.SGD) and group["momentum"] and not group["dampening"]:
            for parameter in group["params"]:
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


class AveragedWeights:
    """Exponential moving average of weights and of floating-point buffers (BatchNorm's statistics).

    Early on the decay is min(decay, (1 + t) / (10 + t)) with t the number of updates, so that the initial weights do
    not dominate the average (as in TensorFlow's ExponentialMovingAverage).

    Attributes:
        model: a copy that carries the averages; always in eval mode.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int, healthy: Tensor | None = None) -> None:
        """Move the averages towards `model`; `updates` is the number of updates made before this one.

        Args:
            healthy: bool, 0-d, on the device; if it is false, the averages do not change.
        """
        decay = min(self.decay, (1 + updates) / (10 + updates))
        own, other = self.model.state_dict(), model.state_dict()
        floating = [name for name, tensor in own.items() if tensor.is_floating_point()]
        averages, values = [own[name] for name in floating], [other[name] for name in floating]
        if healthy is None:
            torch._foreach_lerp_(averages, values, 1 - decay)
        else:  # as lerp computes it where its weight is below a half
            moves = torch._foreach_sub(values, averages)
            torch._foreach_mul_(moves, healthy * (1 - decay))
            torch._foreach_add_(averages, moves)
        counts = [name for name, tensor in own.items() if not tensor.is_floating_point()]
        if counts:
            torch._foreach_copy_([own[name] for name in counts], [other[name] for name in counts])
