"""Builds networks by name: Kitae's own nets, and others as `timm:NAME` or `torchvision:NAME`.

Fresh weights depend only on one number drawn from torch's global CPU generator and on the parameters' names. With the
same seed, networks share the values of all parameters of the same name, shape and distribution (see `initial`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from kitae import keyed
from kitae.errors import RecipeError, did_you_mean, one_line, require
from kitae.models.airbench import Airbench
from kitae.models.initial import keyed_by_name
from kitae.models.libraries import build_timm, build_torchvision, check_name, refuse
from kitae.models.resnet import BasicBlock, Bottleneck, PreActivationBlock, ResNet, ResNet9, Stem
from kitae.models.simple import SimpleCNN
from kitae.models.spec import ModelSpec
from kitae.models.stages import StageFeatures
from kitae.models.starts import is_identity, start_as_identities, whitens
from kitae.models.structure import REFUSALS, classifier_names, inside, layer_groups, probed
from kitae.models.weights import Weights, load
from kitae.modes import GENERATORS, torch_defaults
from kitae.preprocess import PreprocessRules, Size, sides

SMALL_STEM_UP_TO = 64
"""`stem: auto` uses the small stem for images up to this many pixels."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _stem(spec: ModelSpec, image_size: Size) -> Stem:
    if spec.stem != "auto":
        return spec.stem
    return "small" if max(sides(image_size)) <= SMALL_STEM_UP_TO else "large"


def _simple_cnn(spec: ModelSpec, *, classes: int, channels: int, image_size: Size) -> nn.Module:
    refuse(spec, "width", "stem", "stochastic_depth")
    return SimpleCNN(classes=classes, channels=channels, image_size=image_size, dropout=spec.dropout)


def _airbench(spec: ModelSpec, *, classes: int, channels: int, image_size: Size) -> nn.Module:
    refuse(spec, "stem", "stochastic_depth")
    return Airbench(spec.width or 64, classes=classes, channels=channels, dropout=spec.dropout, fixed=whitens(spec))


def _scaling(
    net: Callable[..., nn.Module], width: int, spec: ModelSpec, *, classes: int, channels: int, image_size: Size
) -> nn.Module:
    """A residual net; `width` is its own."""
    return net(
        spec.width or width, classes=classes, channels=channels, stem=_stem(spec, image_size),
        stochastic_depth=spec.stochastic_depth, dropout=spec.dropout,
    )  # fmt: skip


MODELS: dict[str, Callable[..., nn.Module]] = {
    "simple_cnn": _simple_cnn,
    "resnet8": partial(_scaling, partial(ResNet, BasicBlock, (1, 1, 1)), 16),
    "resnet20": partial(_scaling, partial(ResNet, BasicBlock, (3, 3, 3)), 16),
    "resnet56": partial(_scaling, partial(ResNet, BasicBlock, (9, 9, 9)), 16),
    "resnet9": partial(_scaling, ResNet9, 64),
    "airbench": _airbench,
    "resnet18": partial(_scaling, partial(ResNet, BasicBlock, (2, 2, 2, 2)), 64),
    "resnet34": partial(_scaling, partial(ResNet, BasicBlock, (3, 4, 6, 3)), 64),
    "resnet50": partial(_scaling, partial(ResNet, Bottleneck, (3, 4, 6, 3)), 64),
    "wide_resnet28_10": partial(_scaling, partial(ResNet, PreActivationBlock, (4, 4, 4), stem_width=16), 160),
}
"""Name -> factory(spec, classes=, channels=, image_size=)."""


def supports(name: str, **options: Any) -> bool:
    """Whether a net of `MODELS` has these options, as fields of `ModelSpec`: `supports("resnet9", width=8)`.

    False for the nets of libraries.
    """
    if name not in MODELS:
        return False
    try:
        with torch.device("meta"):
            MODELS[name](ModelSpec(name=name, **options), classes=10, channels=3, image_size=32)
    except RecipeError:
        return False
    return True


def build(
    spec: ModelSpec, *, classes: int, channels: int, image_size: Size, weights: Weights | None = None
) -> nn.Module:
    """The network that `spec` names, in training mode on the CPU.

    Maps float [N, channels, height, width] to logits float [N, classes]. For a library's net, stochastic depth follows
    the library's own schedule over the blocks, the one dropout is that before the classifier, and one input channel
    sums the first convolution's weights over the three.

    With pretrained weights, a classifier for other classes than theirs starts at zero: a random one would change the
    features before it has learnt anything. SqueezeNet's starts random, since the ReLU after it would pass no gradient.

    With `spec.freeze == "backbone"` only the classifier has `requires_grad`, and everything below it stays in eval mode
    even after `model.train()`, so that BatchNorm keeps its pretrained statistics. With `statistics` all parameters have
    it, and only the BatchNorms stay in eval mode. The first `spec.freeze_first` layer groups are frozen in both ways.

    Args:
        image_size: pixels of a square, or (height, width).
        weights: the result of `weights.load(spec)`, if the caller already has it.

    Raises:
        RecipeError: unknown name, an option that the net does not have, weights that are missing or do not fit.
        MissingExtraError: timm is not installed.
    """
    if classes < 2 or channels not in (1, 3) or min(sides(image_size)) < 4:
        raise RecipeError(
            f"model: needs at least 2 classes, 1 or 3 channels and 4 pixels, not {classes}, {channels} and {image_size}"
        )
    if spec.name.startswith(("timm:", "torchvision:")):
        check_name(spec)
    elif spec.name not in MODELS:
        near = did_you_mean(spec.name, MODELS)
        raise RecipeError(
            f"model.name: unknown name {spec.name!r}{near}; valid: {', '.join(MODELS)}, timm:NAME, torchvision:NAME"
        )
    else:
        refuse(spec, "features")
    if spec.pretrained and weights is None:
        weights = load(spec)
    model = _running(spec, weights, classes=classes, channels=channels, image_size=image_size)
    if weights is None and is_identity(spec):
        start_as_identities(model)
    if weights is not None:
        if isinstance(model, StageFeatures):
            weights = replace(weights, tensors=model.renamed(weights.tensors))
        if isinstance(spec.pretrained, str):
            _fill(model, weights, classes)
        _zero_fresh_classifier(model, weights)
    _freeze(model, spec)
    return model


def build_seeded(
    spec: ModelSpec, seed: int, classes: int, rules: PreprocessRules, *, weights: Weights | None = None,
) -> nn.Module:  # fmt: skip
    """`build` on the CPU in float32, with initial weights that are a pure function of `seed`.

    Torch's generators, its default dtype and its default device stay as they were, and have no effect.

    Args:
        seed: `train.seed` of a recipe, in [0, 2**32).
        rules: how its images are prepared.
        weights: pretrained weights to start from; without them none are loaded, whatever the spec says.

    Raises:
        RecipeError, MissingExtraError: as `build`.
    """
    spec = spec.model_copy(update={} if weights is not None else {"pretrained": False})
    with GENERATORS, torch_defaults(), torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which also seeds the generators of all GPUs.
        torch.default_generator.manual_seed(keyed.derive_seed(seed, 0, 0, keyed.SLOT_MODEL))
        return build(spec, classes=classes, channels=rules.channels, image_size=rules.image_size, weights=weights)


def normalization(spec: ModelSpec, channels: int = 3) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation, per channel and of pixels in [0, 1], that the pretrained net of `spec` expects.

    None for fresh weights, and for Kitae's own nets, whose files do not record it. For one channel, the mean over the
    three.
    """
    if not spec.pretrained:
        return None
    library, _, name = spec.name.rpartition(":")
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if library == "timm":
        config = require("timm").get_pretrained_cfg(name)
        if config is not None:
            mean, std = tuple(config.mean), tuple(config.std)
    elif library != "torchvision":
        return None
    if channels == 1:
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    return tuple(map(float, mean)), tuple(map(float, std))


def _running(spec: ModelSpec, weights: Weights | None, *, classes: int, channels: int, image_size: Size) -> nn.Module:
    """The net, which was run on an image of this size."""
    sizes = {"classes": classes, "channels": channels, "image_size": image_size}
    height, width = sides(image_size)
    try:
        model = keyed_by_name(lambda: _construct(spec, weights, **sizes), lambda: _construct(spec, None, **sizes))
        logits = probed(model, (channels, height, width))
    except REFUSALS as error:
        raise RecipeError(
            f"model.name: {spec.name} does not run on {height}x{width} images with {channels} channels "
            f"({one_line(error)}); set data.image_size to a size that it takes, or choose another network"
        ) from error
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (1, classes):
        raise RecipeError(f"model.name: {spec.name} does not give one logit per class; choose another net")
    return model


def _construct(spec: ModelSpec, weights: Weights | None = None, **sizes: Any) -> nn.Module:
    library, _, name = spec.name.rpartition(":")
    if library == "timm":
        return build_timm(name, spec, weights, **sizes)
    if library == "torchvision":
        return build_torchvision(name, spec, **sizes)
    return MODELS[spec.name](spec, **sizes)


def _fill(model: nn.Module, weights: Weights, classes: int) -> None:
    heads = classifier_names(model)
    tensors = dict(weights.tensors)
    for name, tensor in model.state_dict().items():
        # Another number of classes: the classifier starts fresh, everything else must fit.
        other = tensors.get(name, tensor)
        is_head = inside(name, heads) and other.ndim == tensor.ndim > 0 and other.shape[1:] == tensor.shape[1:]
        wider = isinstance(model, StageFeatures) and name not in tensors  # than the classifier of the plain net
        if is_head and (wider or tensor.shape[0] == classes != other.shape[0]):
            tensors[name] = tensor
        # One channel where the file has three, as in published weights: the first convolution's are summed.
        grey = other.ndim == tensor.ndim == 4 and (tensor.shape[1], other.shape[1]) == (1, 3)
        if grey and other.shape[::2] == tensor.shape[::2]:
            tensors[name] = other.sum(dim=1, keepdim=True)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise RecipeError(f"model.pretrained: {weights.source} does not fit: {one_line(error, 300)}") from error


@torch.no_grad()
def _zero_fresh_classifier(model: nn.Module, weights: Weights) -> None:
    for name in classifier_names(model):
        if _is_rectified(model, name):
            continue
        for key, parameter in model.get_submodule(name).named_parameters(prefix=name):
            given = weights.tensors.get(key)
            if given is None or given.shape != parameter.shape:
                parameter.zero_()


def _is_rectified(model: nn.Module, classifier: str) -> bool:
    """Whether the logits go through a ReLU, as SqueezeNet's do: at zero it passes no gradient."""
    parent, _, own = classifier.rpartition(".")
    layers = model.get_submodule(parent)
    after = itertools.dropwhile(lambda layer: layer[0] != own, layers.named_children())
    return isinstance(layers, nn.Sequential) and any(isinstance(layer, nn.ReLU) for _, layer in after)


def _learns(model: nn.Module, name: str, trained: set[str]) -> bool:
    """Whether a module has parameters that are trained; one without any (a dropout) is like the module it is in."""
    own = [key for key, _ in model.get_submodule(name).named_parameters(prefix=name)]
    if not own and name:
        return _learns(model, name.rpartition(".")[0], trained)
    return not own or any(key in trained for key in own)


def _freeze(model: nn.Module, spec: ModelSpec) -> None:
    if spec.freeze == "backbone":
        heads = classifier_names(model)
        trained = {name for name, _ in model.named_parameters() if inside(name, heads)}
    elif spec.freeze == "statistics" or spec.freeze_first:
        groups = layer_groups(model)
        if spec.freeze_first >= len(groups):
            raise RecipeError(
                f"model.freeze_first: {spec.name} has {len(groups)} layer groups, of which the last one is the "
                f"classifier; set it to {len(groups) - 1} or less"
            )
        trained = {name for group in groups[spec.freeze_first :] for name in group}
    else:
        return
    norms = nn.modules.batchnorm._NormBase if spec.freeze == "statistics" else ()
    active = {n for n, m in model.named_modules() if _learns(model, n, trained) and not isinstance(m, norms)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in trained)  # some nets fix parameters themselves

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        """As `nn.Module.train`, but the frozen modules stay in eval mode."""
        type(self).train(self, mode)
        for name, module in self.named_modules():
            module.training = mode and name in active
        return self

    model.train = MethodType(train, model)  # type: ignore[method-assign]
    model.train()
