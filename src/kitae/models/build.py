"""From a name to a network: Kitae's own nets by name, every other one as `timm:NAME` or `torchvision:NAME`.

    build(spec, classes=10, channels=3, image_size=32)     a fresh or pretrained net
    count_parameters, count_macs, layer_groups, classifier_names    what other stages ask about any net

Fresh weights are a function of one number drawn from torch's global generator on the CPU and of the parameters' names:
seed it, and networks share the values of every parameter of the same name, shape and distribution (see `initial`).
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from kitae.errors import MissingExtraError, RecipeError, require
from kitae.models.airbench import Airbench
from kitae.models.initial import keyed_by_name
from kitae.models.layers import DropoutLinear
from kitae.models.resnet import BasicBlock, Bottleneck, ResNet, ResNet9, WideResNet
from kitae.models.simple import SimpleCNN
from kitae.models.spec import ModelSpec
from kitae.models.weights import Weights, load
from kitae.modes import evaluating
from kitae.preprocess import Size, sides

SMALL_STEM_UP_TO = 64
"""Images of so many pixels or fewer meet the small stem where `stem: auto`."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _stem_is_small(spec: ModelSpec, image_size: Size) -> bool:
    return spec.stem == "small" or (spec.stem == "auto" and max(sides(image_size)) <= SMALL_STEM_UP_TO)


def _simple_cnn(spec: ModelSpec, *, classes: int, channels: int, image_size: Size) -> nn.Module:
    _refuse(spec, "width", "stem", "stochastic_depth")
    return SimpleCNN(classes=classes, channels=channels, image_size=image_size, dropout=spec.dropout)


def _cifar_resnet(blocks: int, spec: ModelSpec, **sizes: Any) -> nn.Module:
    return ResNet(BasicBlock, (blocks,) * 3, spec.width or 16, **_residual(spec, **sizes))


def _resnet9(spec: ModelSpec, **sizes: Any) -> nn.Module:
    return ResNet9(spec.width or 64, **_residual(spec, **sizes))


def _airbench(spec: ModelSpec, *, classes: int, channels: int, image_size: Size) -> nn.Module:
    _refuse(spec, "stem", "stochastic_depth")
    return Airbench(spec.width or 64, classes=classes, channels=channels, dropout=spec.dropout)


def _resnet(
    block: type[BasicBlock] | type[Bottleneck], depths: Sequence[int], spec: ModelSpec, **sizes: Any
) -> nn.Module:
    _refuse(spec, "width")
    return ResNet(block, depths, 64, **_residual(spec, **sizes))


def _wide_resnet(depth: int, widen: int, spec: ModelSpec, **sizes: Any) -> nn.Module:
    _refuse(spec, "width")
    return WideResNet(depth, widen, **_residual(spec, **sizes))


def _residual(spec: ModelSpec, *, classes: int, channels: int, image_size: Size) -> dict[str, Any]:
    return {
        "classes": classes,
        "channels": channels,
        "small_stem": _stem_is_small(spec, image_size),
        "stochastic_depth": spec.stochastic_depth,
        "dropout": spec.dropout,
    }


MODELS: dict[str, Callable[..., nn.Module]] = {
    "simple_cnn": _simple_cnn,
    "resnet8": partial(_cifar_resnet, 1),
    "resnet20": partial(_cifar_resnet, 3),
    "resnet56": partial(_cifar_resnet, 9),
    "resnet9": _resnet9,
    "airbench": _airbench,
    "resnet18": partial(_resnet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(_resnet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(_resnet, Bottleneck, (3, 4, 6, 3)),
    "wide_resnet28_10": partial(_wide_resnet, 28, 10),
}
"""Name -> factory(spec, classes=, channels=, image_size=)."""

SCALING = tuple(
    name for name, make in MODELS.items() if getattr(make, "func", make) in (_cifar_resnet, _resnet9, _airbench)
)
"""The families that come in widths."""


def build(
    spec: ModelSpec, *, classes: int, channels: int, image_size: Size, weights: Weights | None = None
) -> nn.Module:
    """The network that `spec` names, in training mode on the CPU.

    Maps float [N, channels, height, width] to logits float [N, classes]. For a library's net, stochastic depth follows
    the library's own schedule over the blocks, the one dropout is that before the classifier, and one input channel
    sums the first convolution's weights over the three.

    Args:
        image_size: pixels of a square, or (height, width).

    With pretrained weights, a classifier for other classes than theirs starts at zero: a random one would pull at the
    features before it has learnt anything.

    With `spec.freeze == "backbone"` only the classifier has `requires_grad`, and everything below it stays in eval mode
    (BatchNorm keeps its pretrained statistics) whatever `model.train()` says. With `statistics` all has, and only the
    BatchNorms stay in eval mode. The first `spec.freeze_first` layer groups have neither gradients nor training mode.

    Args:
        weights: what `weights.load(spec)` gives, where the caller has it already.

    Raises:
        RecipeError: unknown name, an option that the net does not have, weights that are missing or do not fit.
        MissingExtraError: timm is not installed.
    """
    sizes = _sizes(classes, channels, image_size)
    _check_name(spec)
    if spec.pretrained and weights is None:
        weights = load(spec)
    model = keyed_by_name(lambda: _construct(spec, weights, **sizes), outline=lambda: _construct(spec, None, **sizes))
    _probe(model, spec, **sizes)
    if weights is not None:
        if isinstance(spec.pretrained, str):
            _fill(model, weights, classes)
        _zero_fresh_classifier(model, weights)
    if spec.freeze == "backbone":
        _freeze_backbone(model)
    elif spec.freeze == "statistics" or spec.freeze_first:
        _freeze_part(model, spec)
    return model


def normalization(spec: ModelSpec, channels: int = 3) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation, per channel and of pixels in [0, 1], that the pretrained net of `spec` expects.

    None where the weights are fresh, and for Kitae's own nets, whose file does not say. For one channel, the mean over
    the three.
    """
    if not spec.pretrained:
        return None
    library, _, name = spec.name.rpartition(":")
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if library == "timm":
        config = _timm().get_pretrained_cfg(name)
        if config is not None:
            mean, std = tuple(config.mean), tuple(config.std)
    elif library != "torchvision":
        return None
    if channels == 1:
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    return tuple(map(float, mean)), tuple(map(float, std))


def count_parameters(model: nn.Module) -> int:
    """Elements of all parameters, each counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, channels: int, image_size: Size) -> int:
    """Multiply-adds of one forward pass of one image: convolutions, linear layers and attention, as they are executed.

    Half of what torch's own counter gives, which counts a multiply-add as two operations. Element-wise work,
    normalisation and pooling are not counted. Training costs about three forward passes, 6 operations a multiply-add.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with evaluating(model), torch.no_grad(), counter:
        model(torch.zeros(1, channels, *sides(image_size), device=_device(model), dtype=_dtype(model)))
    return int(counter.get_total_flops()) // 2


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the module that turns features into logits (a few nets have two): the last linear or convolutional."""
    if hasattr(model, "get_classifier"):  # timm
        heads = cast(Any, model).get_classifier()
        found = set(map(id, heads if isinstance(heads, tuple | list) else [heads]))
        names = tuple(name for name, module in model.named_modules() if id(module) in found)
    else:
        names = tuple(name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d))[-1:]
    if not names:
        raise RecipeError("model: no linear or convolutional layer that could be the classifier")
    return names


def linear_classifier(model: nn.Module) -> nn.Linear | None:
    """The layer that turns features [N, D] into logits, where it is one linear layer with a bias."""
    names = classifier_names(model)
    layer = model.get_submodule(names[0])
    return layer if len(names) == 1 and isinstance(layer, nn.Linear) and layer.bias is not None else None


def layer_groups(model: nn.Module) -> list[list[str]]:
    """Parameter names in groups from the stem to the classifier: each parameter once, the classifier alone in the last.

    A group is a residual block (or transformer block, or convolution with its norm): the steps of a layer-wise learning
    rate.
    """
    if hasattr(model, "group_matcher"):  # timm knows its own nets
        groups = list(
            require("timm.models", "models").group_parameters(model, cast(Any, model).group_matcher()).values()
        )
    else:
        groups = _groups(model)
    heads = classifier_names(model)
    classifier = [name for name, _ in model.named_parameters() if _inside(name, heads)]
    rest = [[name for name in group if not _inside(name, heads)] for group in groups]
    return [group for group in rest if group] + [classifier]


# What follows is private.


def _sizes(classes: int, channels: int, image_size: Size) -> dict[str, Any]:
    if classes < 2 or channels not in (1, 3) or min(sides(image_size)) < 4:
        raise RecipeError(
            f"model: needs at least 2 classes, 1 or 3 channels and 4 pixels, not {classes}, {channels} and {image_size}"
        )
    return {"classes": classes, "channels": channels, "image_size": image_size}


def _check_name(spec: ModelSpec) -> None:
    """Before weights are looked for: a name that no library has, or that has none."""
    library, _, name = spec.name.rpartition(":")
    if library == "timm":
        if not _timm().is_model(name):
            raise RecipeError(f"model.name: {_unknown(name, _timm().list_models(), 'timm net')}: timm.list_models()")
    elif library == "torchvision":
        models = require("torchvision.models", "train")
        names = models.list_models(module=models)
        if name not in names:
            raise RecipeError(
                f"model.name: {_unknown(name, names, 'torchvision net')}: torchvision.models.list_models()"
            )
        if spec.pretrained is True:
            raise RecipeError(
                "model.pretrained: torchvision publishes its weights as pickles, which Kitae does not read; timm has "
                f"many of them as safetensors{_same_in_timm(name)}, or give the path of a .safetensors file"
            )
    elif spec.name not in MODELS:
        raise RecipeError(f"model.name: {_unknown(spec.name, MODELS)}, timm:NAME, torchvision:NAME")


def _construct(spec: ModelSpec, weights: Weights | None = None, **sizes: Any) -> nn.Module:
    library, _, name = spec.name.rpartition(":")
    if library == "timm":
        return _build_timm(name, spec, weights, **sizes)
    if library == "torchvision":
        return _build_torchvision(name, spec, **sizes)
    return MODELS[spec.name](spec, **sizes)


def _timm() -> Any:
    return require("timm", "models")


def _refuse(spec: ModelSpec, *fields: str) -> None:
    for field in fields:
        if getattr(spec, field) != ModelSpec.model_fields[field].default:
            raise RecipeError(f"model.{field}: {spec.name} has none; leave it out")


def _unknown(name: str, valid: Any, kind: str = "name") -> str:
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    meant = f"; did you mean {' or '.join(close)}?" if close else "."
    listed = f" Valid: {', '.join(valid)}" if len(valid) <= 40 else f" There are {len(valid)} of them"
    return f"unknown {kind} {name!r}{meant}{listed}"


def _some(problems: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(problems) - shown} more" if len(problems) > shown else ""
    return "; ".join(problems[:shown]) + more


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _inside(parameter: str, modules: Sequence[str]) -> bool:
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
    return [group for group in groups if group]


def _freeze_backbone(model: nn.Module) -> None:
    heads = classifier_names(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_inside(name, heads))
    active = {"", *heads}  # the root too: some nets ask their own mode, and it changes nothing below
    for head in heads:
        active |= {name for name, _ in model.named_modules() if _inside(name, [head])}
        active |= {name for name, _ in _dropouts_beside(model, head)}
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
    kind = type(model)

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        kind.train(self, mode)
        for name, module in self.named_modules():
            module.training = mode and name in active
        return self

    # A subclass made on the spot: `train` is the only way in to a module's mode, and weights keep their names.
    model.__class__ = type(f"Frozen{kind.__name__}", (kind,), {"train": train})
    model.train()


# Weights


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not in the net" for name in found if name not in expected]
    return problems + [
        f"{name} is {list(found[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]


def _fill(model: nn.Module, weights: Weights, classes: int) -> None:
    heads = classifier_names(model)
    expected = model.state_dict()
    tensors = dict(weights.tensors)
    for name, tensor in expected.items():
        # Another number of classes: the classifier starts fresh, everything else must fit.
        other = tensors.get(name, tensor)
        is_head = _inside(name, heads) and other.ndim == tensor.ndim > 0 and other.shape[1:] == tensor.shape[1:]
        if is_head and tensor.shape[0] == classes != other.shape[0]:
            tensors[name] = tensor
    problems = _differences(expected, tensors)
    if problems:
        raise RecipeError(f"model.pretrained: {weights.source} does not fit {type(model).__name__}: {_some(problems)}")
    model.load_state_dict(tensors)


@torch.no_grad()
def _zero_fresh_classifier(model: nn.Module, weights: Weights) -> None:
    for name in classifier_names(model):
        for key, parameter in model.get_submodule(name).named_parameters(prefix=name):
            given = weights.tensors.get(key)
            if given is None or given.shape != parameter.shape:
                parameter.zero_()


# Libraries


def _build_timm(
    name: str, spec: ModelSpec, weights: Weights | None, *, classes: int, channels: int, image_size: Size
) -> nn.Module:
    timm = _timm()
    _refuse(spec, "width", "stem")
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    options: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    if config is not None and config.fixed_input_size:
        options["img_size"] = image_size
    if spec.stochastic_depth > 0:
        options["drop_path_rate"] = spec.stochastic_depth
    if weights is not None and spec.pretrained is True:  # timm fits the channels, and leaves another classifier out
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(weights.tensors)}}
    model = _made(spec, image_size, lambda: timm.create_model(name, **options))
    _set_rates(model, "drop_prob", spec, [m for m in model.modules() if type(m).__name__ == "DropPath"])
    _set_dropout(model, spec)
    return model


def _build_torchvision(name: str, spec: ModelSpec, *, classes: int, channels: int, image_size: Size) -> nn.Module:
    models = require("torchvision.models", "train")
    _refuse(spec, "width", "stem")
    options: dict[str, Any] = {"num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        if not isinstance(image_size, int):
            raise RecipeError(f"model.name: torchvision's {name} takes squares: give data.image_size one number")
        options["image_size"] = image_size
    if name.startswith("maxvit"):
        options["input_size"] = sides(image_size)
    if spec.stochastic_depth > 0:
        options["stochastic_depth_prob"] = spec.stochastic_depth
    model = _made(spec, image_size, lambda: models.get_model(name, weights=None, **options))
    _set_rates(model, "p", spec, [m for m in model.modules() if type(m).__name__ == "StochasticDepth"])
    _set_dropout(model, spec)
    if channels == 1:
        _one_channel(model)
    return model


def _same_in_timm(name: str) -> str:
    with contextlib.suppress(MissingExtraError):
        tagged = f"{name}.tv_in1k"
        if tagged in _timm().list_pretrained():
            return f" (model.name: timm:{tagged})"
    return ""


def _made(spec: ModelSpec, image_size: Size, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except TypeError as error:
        if spec.stochastic_depth > 0:
            raise RecipeError(f"model.stochastic_depth: {spec.name} has none; set it to 0") from error
        raise
    except (AssertionError, ValueError, RuntimeError) as error:
        height, width = sides(image_size)
        raise RecipeError(
            f"model.name: {spec.name} cannot be built for {height} x {width} pixels: {_first_line(error)}"
        ) from error


def _set_rates(model: nn.Module, attribute: str, spec: ModelSpec, layers: Sequence[nn.Module]) -> None:
    if spec.stochastic_depth == 0:
        for layer in layers:  # some libraries drop by default; the recipe says what happens
            setattr(layer, attribute, 0.0)
    elif not any(getattr(layer, attribute) > 0 for layer in layers):
        raise RecipeError(f"model.stochastic_depth: {spec.name} has none; set it to 0")


def _dropouts_beside(model: nn.Module, classifier: str) -> list[tuple[str, nn.Dropout]]:
    parent = classifier.rpartition(".")[0]
    children = model.get_submodule(parent).named_children()
    prefix = f"{parent}." if parent else ""
    return [(prefix + name, module) for name, module in children if isinstance(module, nn.Dropout)]


def _set_dropout(model: nn.Module, spec: ModelSpec) -> None:
    for name in classifier_names(model):
        layer = model.get_submodule(name)
        existing = [module for _, module in _dropouts_beside(model, name)]
        for module in existing:
            module.p = 0.0
        if existing:
            existing[-1].p = spec.dropout
        elif spec.dropout > 0:
            if type(layer) is not nn.Linear:
                raise RecipeError(f"model.dropout: {spec.name} has no linear classifier to put it before; set it to 0")
            layer.__class__ = DropoutLinear
            layer.p = spec.dropout  # type: ignore[assignment]


def _one_channel(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            module.weight = nn.Parameter(module.weight.detach().sum(dim=1, keepdim=True))
            module.in_channels = 1
            return


def _probe(model: nn.Module, spec: ModelSpec, classes: int, channels: int, image_size: Size) -> None:
    height, width = sides(image_size)
    images = torch.zeros(1, channels, height, width, device=_device(model), dtype=_dtype(model))
    try:
        with evaluating(model), torch.no_grad():
            logits = model(images)
    except (AssertionError, ValueError, RuntimeError, IndexError) as error:
        raise RecipeError(
            f"model.name: {spec.name} does not run on {height}x{width} images with {channels} channels: "
            f"{_first_line(error)}"
        ) from error
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (1, classes):
        raise RecipeError(f"model.name: {spec.name} does not give one logit per class; take another net")
