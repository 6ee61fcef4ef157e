"""Freezing: which parameters are trained, and which modules stay in eval mode."""

from __future__ import annotations

from collections.abc import Collection
from types import MethodType

from torch import nn

from kitae.errors import RecipeError
from kitae.models.spec import ModelSpec
from kitae.models.structure import classifier_names, dropouts_beside, inside, layer_groups


def freeze(model: nn.Module, spec: ModelSpec) -> None:
    """Freeze what `spec.freeze` and `spec.freeze_first` name, see `build`.

    Raises:
        RecipeError: freeze_first leaves no layer group to train.
    """
    if spec.freeze == "backbone":
        _freeze_backbone(model)
    elif spec.freeze == "statistics" or spec.freeze_first:
        _freeze_part(model, spec)


def _freeze_backbone(model: nn.Module) -> None:
    heads = classifier_names(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(inside(name, heads))
    active = {"", *heads}  # the root too: some nets ask their own mode, and it changes nothing below
    for head in heads:
        active |= {name for name, _ in model.named_modules() if inside(name, [head])}
        active |= {name for name, _ in dropouts_beside(model, head)}
    _train_only(model, active)


def _freeze_part(model: nn.Module, spec: ModelSpec) -> None:
    groups = layer_groups(model)
    if spec.freeze_first >= len(groups):
        raise RecipeError(
            f"model.freeze_first: {spec.name} has {len(groups)} layer groups, of which the last one is the classifier; "
            f"set it to {len(groups) - 1} or less"
        )
    frozen = {name for group in groups[: spec.freeze_first] for name in group}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    held = {name.rpartition(".")[0] for name in frozen}
    norms = nn.modules.batchnorm._NormBase if spec.freeze == "statistics" else ()
    _train_only(
        model, {name for name, module in model.named_modules() if name not in held and not isinstance(module, norms)}
    )


def _train_only(model: nn.Module, active: Collection[str]) -> None:
    """Let `model.train()` put the modules of these names in training mode and leave the others in eval mode."""

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        type(self).train(self, mode)
        for name, module in self.named_modules():
            module.training = mode and name in active
        return self

    model.train = MethodType(train, model)  # type: ignore[method-assign]
    model.train()
