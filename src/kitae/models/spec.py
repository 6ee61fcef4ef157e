"""The `model:` section of a recipe."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from kitae.spec import GrowingSpec


class ModelSpec(GrowingSpec):
    """Which network.

    Attributes:
        name: a name of `kitae.models.build.MODELS`, or `timm:NAME`, or `torchvision:NAME`.
        width: channels of the first stage, for resnet8 to resnet56, wide_resnet28_10 and airbench; null is the
            network's own.
        stochastic_depth: drop probability of the last residual block (linear from 0 at the first).
        dropout: before the classifier.
        pretrained: true takes published weights (from an installed package, or from timm's hub), a path takes a local
            .safetensors file. The classifier for other classes than theirs starts at zero.
        pretrained_sha256: hash of the pretrained weights, filled in by a run; other weights are refused.
        features: what the classifier of a timm net sees: `last` is the features of the last layer; `stages` adds the
            mean of each stage's channels, which gives the probe more of a pretrained network in the same time.
        freeze: `backbone` trains the classifier only; `statistics` trains all weights, but keeps the pretrained means
            and variances of BatchNorm, since those of small batches are unreliable; `none` trains everything.
        freeze_first: number of first layer groups (the stem, then block by block) that keep their pretrained weights.
        stem: `small` is a 3x3 convolution of stride 1, `medium` one of stride 2, `large` a 7x7 convolution of stride 2
            and a max-pool of stride 2; `auto` is small up to 64 pixels and large above.
        whiten_stem: the filters of the first convolution start as the directions in which patches of the training
            images vary, each scaled to the same variance, and their negatives (Jordan 2024). null is the network's
            own: true for airbench, where they also stay fixed.
        identity_init: the other convolutions start as identities on as many channels as they have. null is the
            network's own: true for airbench.
    """

    newer: ClassVar[frozenset[str]] = frozenset(
        {"pretrained_sha256", "features", "freeze_first", "whiten_stem", "identity_init"}
    )

    name: str = "resnet9"
    width: int | None = Field(None, ge=4, le=1024)
    stochastic_depth: float = Field(0.0, ge=0, lt=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    pretrained: bool | str = False
    pretrained_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    features: Literal["last", "stages"] = "last"
    freeze: Literal["none", "statistics", "backbone"] = "none"
    freeze_first: int = Field(0, ge=0)
    stem: Literal["auto", "small", "medium", "large"] = "auto"
    whiten_stem: bool | None = None
    identity_init: bool | None = None

    @property
    def unfrozen(self) -> ModelSpec:
        """The same network with nothing frozen, as it is trained from initial weights."""
        return self.model_copy(update={"freeze": "none", "freeze_first": 0})

    @property
    def trainable(self) -> ModelSpec:
        """The same network with all weights trained, as a pruned one is fine-tuned.

        BatchNorms keep the statistics that were frozen: those of the data are others, and the network depends on them.
        """
        frozen = self.freeze != "none" or self.freeze_first > 0
        return self.unfrozen.model_copy(update={"freeze": "statistics"}) if frozen else self

    @model_validator(mode="after")
    def _pretrained_where_frozen_and_not_where_started(self) -> ModelSpec:
        for field, value, free in (("freeze", self.freeze, "none"), ("freeze_first", self.freeze_first, 0)):
            if value != free and not self.pretrained:
                raise ValueError(
                    f"{field}: {value} needs pretrained weights, since frozen layers keep their initial values; set "
                    "pretrained"
                )
        for field, asked in (("whiten_stem", self.whiten_stem), ("identity_init", self.identity_init)):
            if asked and self.pretrained:
                raise ValueError(f"{field}: would replace pretrained weights; remove it, or set pretrained to false")
        return self
