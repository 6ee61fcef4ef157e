"""A classifier on the features of every stage of a network, not of the last one alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kitae.errors import RecipeError


class StageFeatures(nn.Module):
    """A timm net with a linear classifier on its own features and the mean of each stage's channels.

    The last stage of a pretrained network knows the classes of its own data. Earlier ones know textures, edges and
    colours, which other data may differ in. The stages are computed anyway, so this costs no time.

    Attributes:
        net: the net without its classifier.
        classifier: the linear layer.
    """

    def __init__(self, net: nn.Module, name: str, classes: int) -> None:
        """`name`: of the net, for the error. Raises RecipeError: timm does not give the features of its stages."""
        super().__init__()
        inner: Any = net
        if not hasattr(inner, "forward_intermediates"):
            raise RecipeError(f"model.features: timm gives no features of the stages of {name}; set it to last")
        stages = [entry["num_chs"] for entry in inner.feature_info]
        own = getattr(inner, "head_hidden_size", inner.num_features)
        # Where no convolution follows the last stage, its mean is the net's own features.
        self._stages = len(stages) - (stages[-1] == own)
        self.net = net
        self.classifier = nn.Linear(sum(stages[: self._stages]) + own, classes)

    def forward(self, images: Tensor) -> Tensor:
        """float [N, C, H, W] -> logits float [N, K]."""
        net: Any = self.net
        last, stages = net.forward_intermediates(images)
        means = [stage.mean((2, 3)) for stage in stages[: self._stages]]
        # The copy stands between flattening and joining: Torch-Pruning would take the joined width for this one's.
        own = net.forward_head(last, pre_logits=True).clone()
        logits: Tensor = self.classifier(torch.cat([*means, own], dim=1))
        return logits

    def get_classifier(self) -> nn.Linear:
        """The classifier, under the name that timm's nets have for it."""
        return self.classifier

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay: those that the net lists itself. The method is named as timm's."""
        named = getattr(self.net, "no_weight_decay", None)
        return {f"net.{name}" for name in named()} if named is not None else set()

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights under this module's names: those of the plain net without its classifier, or this module's own."""
        if any(key.startswith("net.") for key in tensors):
            return dict(tensors)
        known = self.state_dict()
        return {f"net.{key}": tensor for key, tensor in tensors.items() if f"net.{key}" in known}
