"""Networks of timm and torchvision: built by their own code, adapted to the recipe's options."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from kitae.errors import MissingExtraError, RecipeError, did_you_mean, require
from kitae.models.layers import DropoutLinear
from kitae.models.spec import ModelSpec
from kitae.models.stages import StageFeatures
from kitae.models.structure import classifier_names
from kitae.models.weights import Weights
from kitae.preprocess import Size, sides


def check_name(spec: ModelSpec) -> None:
    """Refuse a name that the library does not have, before weights are looked for.

    Raises:
        RecipeError: unknown name, or a torchvision net with torchvision's own weights.
        MissingExtraError: timm is not installed.
    """
    library, _, name = spec.name.rpartition(":")
    if library == "timm":
        timm = require("timm")
        known, all_names, listed = timm.is_model(name), timm.list_models(), "timm.list_models()"
    else:
        models = require("torchvision.models")
        all_names = models.list_models(module=models)
        known, listed = name in all_names, "torchvision.models.list_models()"
    if not known:
        raise RecipeError(f"model.name: unknown {library} net {name!r}{did_you_mean(name, all_names)}; see {listed}")
    if library == "torchvision" and spec.pretrained is True:
        raise RecipeError(
            "model.pretrained: torchvision publishes its weights as pickles, which Kitae does not read; timm has "
            f"many of them as safetensors{_same_in_timm(name)}, or give the path of a .safetensors file"
        )


def refuse(spec: ModelSpec, *fields: str) -> None:
    """Refuse options that a network does not have and the recipe sets."""
    for field in fields:
        if getattr(spec, field) != ModelSpec.model_fields[field].default:
            raise RecipeError(f"model.{field}: {spec.name} does not support it; remove it")


def build_timm(
    name: str, spec: ModelSpec, weights: Weights | None, *, classes: int, channels: int, image_size: Size
) -> nn.Module:
    timm = require("timm")
    refuse(spec, "width", "stem")
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    options: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    if config is not None and config.fixed_input_size:
        options["img_size"] = image_size
    if spec.stochastic_depth > 0:
        options["drop_path_rate"] = spec.stochastic_depth
    if weights is not None and spec.pretrained is True:  # timm fits the channels, and leaves another classifier out
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(weights.tensors)}}
    if spec.features == "stages":
        options["num_classes"] = 0
    model = _made(spec, lambda: timm.create_model(name, **options))
    if spec.features == "stages":
        model = StageFeatures(model, spec.name, classes)
    _set_rates(model, "drop_prob", spec, [m for m in model.modules() if type(m).__name__ == "DropPath"])
    _set_dropout(model, spec)
    return model


def build_torchvision(name: str, spec: ModelSpec, *, classes: int, channels: int, image_size: Size) -> nn.Module:
    models = require("torchvision.models")
    refuse(spec, "width", "stem", "features")
    options: dict[str, Any] = {"num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        if not isinstance(image_size, int):
            raise RecipeError(f"model.name: torchvision's {name} takes squares only: set data.image_size to one number")
        options["image_size"] = image_size
    if name.startswith("maxvit"):
        options["input_size"] = sides(image_size)
    fixed = name.startswith(("swin", "maxvit"))  # which set the rate themselves and do not take another
    if spec.stochastic_depth > 0 and not fixed:
        options["stochastic_depth_prob"] = spec.stochastic_depth
    model = _made(spec, lambda: models.get_model(name, weights=None, **options))
    layers: list[Any] = [m for m in model.modules() if type(m).__name__ == "StochasticDepth"]
    if fixed and spec.stochastic_depth > 0:
        highest = max(layer.p for layer in layers)
        for layer in layers:
            layer.p *= spec.stochastic_depth / highest
    _set_rates(model, "p", spec, layers)
    _set_dropout(model, spec)
    if channels == 1:
        first = next(m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
        first.weight = nn.Parameter(first.weight.detach().sum(dim=1, keepdim=True))
        first.in_channels = 1
    return model


def _same_in_timm(name: str) -> str:
    with contextlib.suppress(MissingExtraError):
        tagged = f"{name}.tv_in1k"
        if tagged in require("timm").list_pretrained():
            return f" (model.name: timm:{tagged})"
    return ""


def _made(spec: ModelSpec, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except TypeError as error:
        if spec.stochastic_depth > 0:
            raise RecipeError(f"model.stochastic_depth: {spec.name} does not support it; set it to 0") from error
        raise


def _set_rates(model: nn.Module, attribute: str, spec: ModelSpec, layers: Sequence[nn.Module]) -> None:
    if spec.stochastic_depth == 0:
        for layer in layers:  # some libraries have dropout by default; the recipe decides
            setattr(layer, attribute, 0.0)
    elif not any(getattr(layer, attribute) > 0 for layer in layers):
        raise RecipeError(f"model.stochastic_depth: {spec.name} does not support it; set it to 0")


def _set_dropout(model: nn.Module, spec: ModelSpec) -> None:
    # Some nets have dropout in other places by default, as a layer or as a rate for `F.dropout`.
    for module in model.modules():
        if isinstance(getattr(module, "drop_rate", None), float):
            module.drop_rate = 0.0  # type: ignore[assignment]
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for name in classifier_names(model):
        layer, beside = model.get_submodule(name), model.get_submodule(name.rpartition(".")[0]).children()
        inside = [module for module in layer.modules() if isinstance(module, nn.Dropout)]  # of a head in one module
        if existing := inside or [module for module in beside if isinstance(module, nn.Dropout)]:
            existing[-1].p = spec.dropout
        elif spec.dropout > 0:
            if not isinstance(layer, nn.Linear):
                raise RecipeError(f"model.dropout: {spec.name} has no linear classifier to put it before; set it to 0")
            model.set_submodule(name, DropoutLinear.around(layer, spec.dropout))
