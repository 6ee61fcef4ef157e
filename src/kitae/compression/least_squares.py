"""What reaches the layers of a network for some training images: the rows on which their weights are solved."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives normalised training images float32 [n, C, H, W] and labels int64 [n]."""

RIDGE = 0.03
"""How far solved weights are held to the old ones: the share of the mean variance of a layer's inputs that is added to
each. Chosen on validation; between 0.01 and 0.1 little changes (LOG.md, 2026-12-01)."""

# The images of the pass are all in memory at once: 2,048, fewer of a network with large outputs; 167 at 224 px.
_PIXELS = 2**23
_VALUES = 2**28  # of the largest output of a module, 1 GiB; a few of its size are in memory
_IMAGES = 2048
_FEATURES = 5000  # inputs times kernel of the largest layer that is solved; the time grows with the cube
_GOLDEN = 0.6180339887  # its multiples, modulo 1, are spread evenly
_ROWS = 4096, 16384  # positions that a layer is solved on, at least and at most, else four times its features


def can_be_solved(module: nn.Module) -> bool:
    """Whether it is a linear layer, or a plain or depthwise convolution that pads with zeros; and not too large."""
    if type(module) is nn.Conv2d:
        whole = module.groups == 1 or is_depthwise(module)
        plain = whole and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    else:
        plain = type(module) is nn.Linear
    return plain and module.weight[0].numel() <= _FEATURES  # type: ignore[index]


def is_depthwise(module: nn.Module) -> bool:
    """Whether it is a convolution that filters each channel by itself."""
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def first_images(batches: Batches, model: nn.Module) -> Tensor:
    """As many images as are used, in one tensor [n, C, H, W]. `model`: limits them by the size of its outputs."""
    found: list[Tensor] = []
    most = 0
    for images, _ in batches():
        if not found:
            fit = min(_PIXELS // images[0, 0].numel(), _VALUES // _largest(model, images[:1]))
            most = max(1, min(_IMAGES, fit))
        found.append(images[: most - sum(map(len, found))])
        if sum(map(len, found)) >= most:
            break
    return torch.cat(found)


def places_of(layer: Any, output: Tensor) -> Tensor:
    """Positions of a layer's output: int64 [images, some] of a convolution, [some] of a linear layer."""
    rows = min(max(_ROWS[0], 4 * layer.weight[0].numel()), _ROWS[1])
    if isinstance(layer, nn.Conv2d):
        return _places(len(output), output[0, 0].numel(), max(1, rows // len(output))).to(output.device)
    return _spread(output[..., 0].numel(), rows).to(output.device)


def outputs_at(layer: Any, output: Tensor, places: Tensor) -> Tensor:
    """The layer's outputs at these positions: [rows, width]."""
    if isinstance(layer, nn.Conv2d):
        values = output.flatten(2).gather(2, places[:, None].expand(-1, output.shape[1], -1))
        return values.transpose(1, 2).flatten(0, 1)
    return output.flatten(0, -2)[places]


def inputs_at(layer: Any, images: Tensor, places: Tensor) -> Tensor:
    """What the layer reads for its outputs at these positions: float32 [rows, C * kernel height * kernel width]."""
    if isinstance(layer, nn.Linear):
        return images.flatten(0, -2)[places].float()
    return _patches(layer, images, places).float()


def _largest(model: nn.Module, image: Tensor) -> int:
    """Values of the largest output of a module for one image."""
    sizes = [1]

    def note(_: nn.Module, __: Any, output: Any) -> None:
        sizes.append(output.numel() if isinstance(output, Tensor) else 0)

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.callback(module.register_forward_hook(note).remove)
        model(image)
    return max(sizes)


def _spread(total: int, most: int) -> Tensor:
    """As many of `total` positions as are used, in no step that a row of an image is a multiple of: int64."""
    if total <= most:
        return torch.arange(total)
    return (torch.arange(most, dtype=torch.float64) * _GOLDEN % 1 * total).long()


def _places(images: int, positions: int, each: int) -> Tensor:
    """Evenly spaced positions of each image, which begin elsewhere in every image: int64 [images, each at most]."""
    each = min(each, positions)
    start = (torch.arange(images, dtype=torch.float64) * _GOLDEN % 1 * positions).long()
    return (torch.arange(each) * positions // each + start[:, None]) % positions


def _patches(layer: nn.Conv2d, images: Tensor, places: Tensor) -> Tensor:
    """What a convolution reads for some of its outputs: [images * places, C * kernel height * kernel width]."""
    (high, wide), (down, across), (apart, beside) = layer.kernel_size, layer.stride, layer.dilation
    pad_down, pad_across = (int(n) for n in layer.padding)
    columns = (images.shape[3] + 2 * pad_across - beside * (wide - 1) - 1) // across + 1
    images = nn.functional.pad(images, (pad_across, pad_across, pad_down, pad_down))
    here = images.device
    top, left = places // columns * down, places % columns * across
    rows = top[:, :, None, None] + apart * torch.arange(high, device=here)[:, None]
    places_across = left[:, :, None, None] + beside * torch.arange(wide, device=here)
    image = torch.arange(len(images), device=here)[:, None, None, None]
    return images[image, :, rows, places_across].movedim(-1, 2).flatten(0, 1).flatten(1)
