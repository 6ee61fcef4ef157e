"""After channels were removed: let the layers compute again what they computed before, without training.

Every convolution and linear layer gets the weights with which its outputs, from the inputs that are left, come closest
to those of the network before (least squares, as in He et al., "Channel Pruning for Accelerating Very Deep Neural
Networks", ICCV 2017), and every BatchNorm the statistics that its inputs now have. Both happen in one pass: a layer is
solved when the images arrive at it, so it also corrects what the layers before it could not.

Statistics are moved by what pruning has changed on these images, not measured anew: those of a network that was
fine-tuned with frozen statistics are not those of its data, and it depends on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kitae.compression.counting import others
from kitae.modes import convolutions_in_float32, evaluating

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
_ROUNDING = 1e-5  # differences of outputs below it, as a share of the largest, are rounding
_GOLDEN = 0.6180339887  # its multiples, modulo 1, are spread evenly
_ROWS = 4096, 16384  # positions that a layer is solved on, at least and at most, else four times its features


def reconstruct(
    original: nn.Module,
    smaller: nn.Module,
    removed: Mapping[str, Sequence[int]],
    batches: Batches,
    *,
    weights: bool = True,
) -> None:
    """Change the weights and BatchNorm statistics of a pruned network, so that it computes what it did before.

    Solved are ungrouped 2d convolutions that pad with zeros, and linear layers, each used once in a pass.

    Args:
        original: the network before; not changed.
        smaller: changed in place; its mode is kept. On the same device.
        removed: the output channels that `smaller` lost, by layer and norm, as in `channels.Pruned`.
        batches: *training* images, of which as many are used as `_PIXELS` and `_VALUES` allow.
        weights: False only corrects the statistics.
    """
    before = _Before()
    with evaluating(original), evaluating(smaller), torch.no_grad(), convolutions_in_float32():
        images = _first(batches, original)
        with ExitStack() as hooks:
            for name, module in original.named_modules():
                if _is_norm(module):
                    hooks.callback(module.register_forward_hook(partial(before.note_norm, name)).remove)
                elif weights and _can_be_solved(module):
                    hooks.callback(module.register_forward_hook(partial(before.note_layer, name)).remove)
            original(images)
        with ExitStack() as hooks:
            for name, module in smaller.named_modules():
                if before.calls[name] != 1:
                    continue
                gone = removed.get(name, ())
                if name in before.statistics:
                    mean, variance = before.statistics[name]
                    kept = others(gone, len(mean))
                    correct = partial(_move, mean[kept], variance[kept])
                else:
                    places, outputs = before.outputs.pop(name)
                    # A norm after a convolution corrects the means; after a classifier there is none.
                    centred = module.bias is not None or (isinstance(module, nn.Conv2d) and bool(before.statistics))
                    correct = partial(_solve, places, outputs[:, others(gone, outputs.shape[1])], centred)
                hooks.callback(module.register_forward_pre_hook(correct).remove)
            smaller(images)


class _Before:
    """What the network computed before channels were removed.

    Attributes:
        calls: how often each module was called.
        statistics: mean and variance of the inputs of each norm.
        outputs: of each layer, positions, and its outputs there [rows, width].
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.statistics: dict[str, tuple[Tensor, Tensor]] = {}
        self.outputs: dict[str, tuple[Tensor, Tensor]] = {}

    def note_norm(self, name: str, norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.calls[name] += 1
        self.statistics[name] = _statistics(inputs[0])

    def note_layer(self, name: str, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.calls[name] += 1
        rows = min(max(_ROWS[0], 4 * layer.weight[0].numel()), _ROWS[1])
        if isinstance(layer, nn.Conv2d):
            places = _places(len(output), output[0, 0].numel(), max(1, rows // len(output))).to(output.device)
            values = output.flatten(2).gather(2, places[:, None].expand(-1, output.shape[1], -1))
            self.outputs[name] = places, values.transpose(1, 2).flatten(0, 1)
        else:
            places = _spread(output[..., 0].numel(), rows).to(output.device)
            self.outputs[name] = places, output.flatten(0, -2)[places]


def _first(batches: Batches, model: nn.Module) -> Tensor:
    """As many images as are used, in one tensor [n, C, H, W]."""
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


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


def _can_be_solved(module: nn.Module) -> bool:
    if type(module) is nn.Conv2d:
        plain = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    else:
        plain = type(module) is nn.Linear
    return plain and module.weight[0].numel() <= _FEATURES  # type: ignore[index]


def _statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of [N, C, ...]."""
    variance, mean = torch.var_mean(values.float().transpose(0, 1).flatten(1), dim=1, correction=0)
    return mean, variance


def _move(old_mean: Tensor, old_variance: Tensor, norm: Any, inputs: tuple[Tensor, ...]) -> None:
    """Move a norm's statistics by what has changed."""
    mean, variance = _statistics(inputs[0])
    norm.running_mean += mean - old_mean
    norm.running_var *= (variance + norm.eps) / (old_variance + norm.eps)


def _solve(places: Tensor, wanted: Tensor, centred: bool, layer: Any, inputs: tuple[Tensor, ...]) -> None:
    """Give a layer the weights whose outputs are closest to `wanted`. `centred`: means are corrected elsewhere."""
    x = inputs[0].flatten(0, -2)[places] if isinstance(layer, nn.Linear) else _patches(layer, inputs[0], places)
    x, weight = x.float(), layer.weight.flatten(1).float()
    missing = wanted - nn.functional.linear(x, weight, layer.bias)
    if missing.abs().max() <= _ROUNDING * wanted.abs().max():
        return  # nothing was lost
    x_mean, missing_mean = (values.mean(0) * centred for values in (x, missing))
    x, missing = x - x_mean, missing - missing_mean
    gram, product = ((x.T @ other / len(x)).cpu().double() for other in (x, missing))
    hold = RIDGE * gram.diagonal().mean()
    if not hold > 0:
        return  # nothing arrives
    factor, failed = torch.linalg.cholesky_ex(gram + hold * torch.eye(len(gram), dtype=gram.dtype))
    change = torch.cholesky_solve(product, factor).T
    if failed or not change.isfinite().all():
        return
    change = change.to(weight.device, weight.dtype)
    layer.weight += change.reshape(layer.weight.shape).to(layer.weight.dtype)
    if layer.bias is not None:
        layer.bias += (missing_mean - change @ x_mean).to(layer.bias.dtype)


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
