"""Initial weights that speed up the first epochs: a stem made of the training images, convolutions that are identities.

Both are of Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024 (arXiv 2404.00498), sections 3.2 and 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kitae.errors import RecipeError
from kitae.models.spec import ModelSpec

_AT_ONCE = 1 << 24  # numbers in the patches of some images
_EPS = 5e-4  # added to variances, so that directions without variance are not amplified
_OWN = frozenset({"airbench"})  # networks that start in both ways by themselves


def whitens(spec: ModelSpec) -> bool:
    """Whether the stem of a fresh network of `spec` is made of the training images."""
    return spec.name in _OWN if spec.whiten_stem is None else spec.whiten_stem


def is_identity(spec: ModelSpec) -> bool:
    """Whether the convolutions of a fresh network of `spec` start as identities."""
    return spec.name in _OWN if spec.identity_init is None else spec.identity_init


def stem_of(model: nn.Module) -> nn.Conv2d:
    """The first convolution. Raises RecipeError: there is none."""
    found = next((module for module in model.modules() if isinstance(module, nn.Conv2d) and module.groups == 1), None)
    if found is None:
        raise RecipeError("model: the network has no convolution; remove whiten_stem and identity_init")
    return found


@torch.no_grad()
def whiten(stem: nn.Conv2d, images: Tensor) -> None:
    """Set filters of the first convolution to the directions in which patches of images vary, and their negatives.

    Each is scaled to the same variance, and those of the largest variance come first. Filters beyond twice the number
    of directions keep their values; with fewer, the directions of the smallest variance are left out.

    Args:
        images: as the network takes them, float [N, C, H, W].

    Raises:
        RecipeError: this convolution is not applied to the images as they are.
    """
    if stem.in_channels != images.shape[1] or stem.dilation != (1, 1):
        raise RecipeError("model.whiten_stem: the network's first convolution does not see the image itself; remove it")
    weight, (height, width), (down, right) = stem.weight, stem.kernel_size, stem.stride
    if height > images.shape[2] or width > images.shape[3]:
        raise RecipeError("model.whiten_stem: the first convolution's filters are larger than the images; remove it")
    moments, count = torch.zeros((), dtype=torch.float64), 0
    each = max(1, _AT_ONCE // (weight[0].numel() * images[0, 0].numel() // (down * right)))
    for start in range(0, len(images), each):
        some = images[start : start + each].cpu()
        patches = some.double().unfold(2, height, down).unfold(3, width, right)  # [n, C, rows, columns, height, width]
        flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, weight[0].numel())
        moments, count = moments + flat.T @ flat, count + len(flat)
    variances, directions = torch.linalg.eigh(moments / count)
    found = (directions / (variances + _EPS).sqrt()).T.flip(0)[: len(weight) // 2]
    # The sign of a direction is free, and differs between libraries: its largest entry is positive.
    found *= found.gather(1, found.abs().argmax(1, keepdim=True)).sign()
    filters = torch.cat([found, -found]).reshape(-1, *weight.shape[1:])
    weight[: len(filters)] = filters.to(weight)


@torch.no_grad()
def start_as_identities(model: nn.Module) -> None:
    """Let every convolution of more than one pixel but the first be the identity on as many channels as it has."""
    stem = stem_of(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module is not stem and module.groups == 1 and max(module.kernel_size) > 1:
            nn.init.dirac_(module.weight[: min(module.in_channels, module.out_channels)])
