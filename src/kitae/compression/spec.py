"""The settings of `kitae compress`, and the name of its model file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypedDict

from pydantic import Field, model_validator

from kitae.spec import Spec

Ratio = Annotated[float, Field(gt=0, lt=1)]
Layers = Annotated[int, Field(ge=1)]
LayerRatio = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["none", "dynamic", "static", "qat"]
Importance = Literal["reconstruction", "group", "magnitude", "taylor", "random"]
Scope = Literal["layer", "global"]
AskedScope = Literal["auto", "layer", "global"]
Method = Literal["minmax", "average", "percentile", "entropy"]
Target = Literal["any", "vnni"]
Control = Literal["original", "random", "scratch", "small"]


class CompressSpec(Spec):
    """A budget, and where to look for the smallest model within it.

    Attributes:
        max_drop: points of accuracy (percent) that may be lost; of balanced accuracy, its mean over the classes, where
            the run chose its best epoch by that or by macro F1.
        sure: compare the upper end of the drop's 95 % interval with the budget, not the drop, since otherwise a
            candidate that lost little by chance is chosen too often. If validation has too few images to show that any
            drop is within the budget, the drop itself is compared, and the result says so.
        max_latency_ms: limit on the median time for one image, on this machine, in ONNX Runtime.
        max_bytes: limit on the size of the exported file.
        prune: `structured` removes channels, `unstructured` sets weights to zero (smaller when packed, not faster).
        ratios: shares of the channels, or weights, to remove, tried from the smallest up, each from the one before. A
            layer keeps at least a tenth of its own.
        importance: which channels are removed first: `reconstruction`, those without which the layers that read them
            can compute nearly the same, once they are solved; `group`, those with the smallest L2 norm over all coupled
            weights that touch the channel; `magnitude`, the smallest L1 norm of the filters; `taylor`, the smallest
            change of the loss without it, to first order; `random`, any. See
            `kitae.compression.channels.remove_channels`.
        scope: `layer` removes the ratio from every layer; `global` ranks all of them together. `auto` is `global` for
            channels that are ranked by `reconstruction`, unless there are `layer_ratios`, and else `layer`.
        skip: layers that are not pruned.
        layer_ratios: layers by name with their own ratio, which applies at every ratio (`scope: layer`); of coupled
            layers the first one named here counts.
        round_to: layers keep the nearest multiple of this number of channels (small layers of its half, quarter, ...).
            ONNX Runtime packs channels by 16: with fewer, INT8 convolutions use a slow kernel, and an incomplete pack
            costs as much as a full one.
        gradual: unstructured pruning rises along a cubic over the first two thirds of the fine-tuning.
        reconstruct: once channels are removed, the other weights are solved so that each layer computes what it did
            before (least squares over training images; structured pruning only).
        finetune_epochs: after each ratio, through the run's own training loop.
        finetune_rate: the share of the recipe's learning rate that fine-tuning starts with; it falls along a cosine.
        distill: fine-tuning learns from the unpruned model as well, and quantization-aware training from the network
            that it begins with.
        quantize: which precisions to try at each ratio; `none` is 32-bit float.
        qat_epochs: epochs of quantization-aware training.
        qat_rate: as `finetune_rate`, for these epochs; if no epoch is better than the start, the start is kept.
        per_channel: true uses one scale for each output channel of a weight, false one for the whole weight.
        target: `any` is safe on every CPU; `vnni` is slightly more precise, and only safe on CPUs with VNNI.
        calibration: ways to choose ranges; the best on validation is kept.
        calibration_images: how many training images are used for it.
        float_layers: where an INT8 file is not within the budget and the float one is, these numbers of first layers
            are left in float in turn, until one is. Early layers see few channels, so that rounding costs them most.
        abandon: stop trying larger ratios once one is hopeless (its drop exceeds twice the budget plus one point).
        controls: alternatives with the same amount of training as the winner: `random` pruning of as many channels in
            every layer, the pruned shape trained from `scratch`, and a `small` net of the same latency trained from
            scratch, each for as many epochs as the winner had in all, with the same teacher. The `original`, trained
            for the winner's further epochs with the same teacher, is always added, since a gain by training must not
            look like a gain by pruning. An empty list measures no control.
        sensitivity: also quantize each layer alone, and list the layers by how far the outputs move (KL divergence).
        threads: of latency measurements; null leaves ONNX Runtime's own choice.
        seed: of random pruning.
    """

    max_drop: float = Field(1.0, ge=0, le=100)
    sure: bool = True
    max_latency_ms: float | None = Field(None, gt=0)
    max_bytes: int | None = Field(None, gt=0)
    prune: Literal["structured", "unstructured", "none"] = "structured"
    ratios: tuple[Ratio, ...] = (0.2, 0.35, 0.5, 0.65)
    importance: Importance = "reconstruction"
    scope: AskedScope = "auto"
    skip: tuple[str, ...] = ()
    layer_ratios: dict[str, LayerRatio] = Field(default_factory=dict)
    round_to: int = Field(16, ge=1, le=64)
    gradual: bool = False
    reconstruct: bool = True
    finetune_epochs: int = Field(5, ge=0)
    finetune_rate: float = Field(0.3, gt=0, le=1)
    distill: bool = True
    quantize: tuple[Precision, ...] = Field(("none", "static"), min_length=1)
    qat_epochs: int = Field(2, ge=1)
    qat_rate: float = Field(0.1, gt=0, le=1)
    per_channel: bool = True
    target: Target = "any"
    calibration: tuple[Method, ...] = Field(("minmax", "percentile"), min_length=1)
    calibration_images: int = Field(512, ge=16)
    float_layers: tuple[Layers, ...] = (1, 2, 4)
    abandon: bool = True
    controls: tuple[Control, ...] = ("original",)
    sensitivity: bool = True
    threads: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _fits_together(self) -> CompressSpec:
        if list(self.ratios) != sorted(set(self.ratios)):
            raise ValueError(f"ratios must increase, not {', '.join(f'{ratio:g}' for ratio in self.ratios)}")
        if list(self.float_layers) != sorted(set(self.float_layers)):
            raise ValueError(f"float_layers must increase, not {', '.join(map(str, self.float_layers))}")
        if twice := sorted(set(self.layer_ratios) & set(self.skip)):
            raise ValueError(f"layer_ratios: {twice[0]} is also in skip; remove one")
        if self.layer_ratios and (self.scope == "global" or self.gradual):
            raise ValueError("layer_ratios needs scope: layer and gradual: false")
        if not self.per_channel and "qat" in self.quantize:
            raise ValueError("per_channel: false does not work with quantize: qat, which has one scale per channel")
        if self.prune == "unstructured" and self.importance in ("taylor", "random"):
            raise ValueError(f"importance: {self.importance} needs prune: structured (weights go by their magnitude)")
        if self.gradual and self.prune != "unstructured":
            raise ValueError("gradual needs prune: unstructured")
        if self.gradual and self.finetune_epochs < 2:
            raise ValueError("gradual pruning happens during fine-tuning: finetune_epochs must be at least 2")
        if set(self.controls) - {"original"} and self.prune != "structured":
            raise ValueError("controls: random, scratch and small need prune: structured")
        return self

    @property
    def ranked(self) -> Scope:
        """The scope, resolved."""
        if self.scope != "auto":
            return self.scope
        together = self.prune == "structured" and self.importance == "reconstruction" and not self.layer_ratios
        return "global" if together else "layer"


class CompressOptions(TypedDict, total=False):
    """The fields of `CompressSpec`, as options of `kt.compress`; one that is left out has the default."""

    max_drop: float
    sure: bool
    max_latency_ms: float | None
    max_bytes: int | None
    prune: Literal["structured", "unstructured", "none"]
    ratios: Sequence[float]
    importance: Importance
    scope: AskedScope
    skip: Sequence[str]
    layer_ratios: Mapping[str, float]
    round_to: int
    gradual: bool
    reconstruct: bool
    finetune_epochs: int
    finetune_rate: float
    distill: bool
    quantize: Sequence[Precision]
    qat_epochs: int
    qat_rate: float
    per_channel: bool
    target: Target
    calibration: Sequence[Method]
    calibration_images: int
    float_layers: Sequence[int]
    abandon: bool
    controls: Sequence[Control]
    sensitivity: bool
    threads: int | None
    seed: int


def first_in_float(layers: int) -> str:
    """What stays float32 in an INT8 file: `first layer in float32`, `first 2 layers in float32`."""
    return f"first {'layer' if layers == 1 else f'{layers} layers'} in float32"


def winner_file(within_budget: bool) -> str:
    """The name of the model file in a compression folder: the winner's, or that which is closest to the budget."""
    return "model.onnx" if within_budget else "closest.onnx"
