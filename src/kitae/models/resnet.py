"""Residual nets: the CIFAR family, ResNet-9, ResNet-18/34/50 and Wide ResNet.

All of them share three decisions:

- There are three stems: `small` is a 3x3 convolution of stride 1, so that every layer sees a small image at its own
  size; `medium` is the same with stride 2; `large` is that of ImageNet, a 7x7 convolution of stride 2 and a 3x3
  max-pool of stride 2.
- If a residual branch changes the shape, the shortcut is a 1x1 convolution with BatchNorm (option B of He et al.).
  Their CIFAR nets use option A (subsample, pad channels with zeros), which has no weights but cannot be followed by
  channel pruning, and saves only 1 % of the parameters: ResNet-20 has 272,474 with B and 269,722 with A.
- The sum is a plain `branch + shortcut`, and no activation works in place: tracing, export, pruning and hooks see the
  values that were computed.

Convolutions start from He normal weights (fan out), BatchNorm from scale 1 and shift 0. The last BatchNorm of a branch
does *not* start at zero (Goyal et al. 2017). That helps with large batches and high rates, but leaves fresh nets with
dead branches here; `stochastic_depth` and warm-up have the same purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from kitae.models.layers import classifier, conv3x3, linear_rates, stochastic_depth

Stem = Literal["small", "medium", "large"]


def _conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(_conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


def _stem(channels: int, width: int, stem: Stem, *, norm: bool = True) -> nn.Sequential:
    after = [nn.BatchNorm2d(width), nn.ReLU()] if norm else []
    if stem == "large":
        first = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
        return nn.Sequential(first, *after, nn.MaxPool2d(3, stride=2, padding=1))
    return nn.Sequential(conv3x3(channels, width, 1 if stem == "small" else 2), *after)


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class BasicBlock(nn.Module):
    """conv 3x3, BatchNorm, ReLU, conv 3x3, BatchNorm, plus the shortcut, ReLU (He et al. 2015)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, drop: float) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)
        self.stochastic_depth = stochastic_depth(drop)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """float [N, inputs, H, W] -> float [N, width, H / stride, W / stride]."""
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.stochastic_depth(self.bn2(self.conv2(branch)))
        out: Tensor = self.relu(branch + self.shortcut(x))
        return out


class Bottleneck(nn.Module):
    """conv 1x1, 3x3 (with the stride, as every library does since 2016), 1x1 to four times the width."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, drop: float) -> None:
        super().__init__()
        self.conv1 = _conv1x1(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv1x1(width, 4 * width)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = _shortcut(inputs, 4 * width, stride)
        self.stochastic_depth = stochastic_depth(drop)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """float [N, inputs, H, W] -> float [N, 4 * width, H / stride, W / stride]."""
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.stochastic_depth(self.bn3(self.conv3(branch)))
        out: Tensor = self.relu(branch + self.shortcut(x))
        return out


class PreActivationBlock(nn.Module):
    """BatchNorm, ReLU, conv 3x3, BatchNorm, ReLU, conv 3x3, plus the shortcut (He et al. 2016).

    Where the shape changes, the shortcut is a bare 1x1 convolution of the activated input, as in the authors' code.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, drop: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.shortcut = _conv1x1(inputs, width, stride) if inputs != width or stride != 1 else None
        self.stochastic_depth = stochastic_depth(drop)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """float [N, inputs, H, W] -> float [N, width, H / stride, W / stride]."""
        activated = self.relu(self.bn1(x))
        branch = self.conv2(self.relu(self.bn2(self.conv1(activated))))
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(activated)
        branch = self.stochastic_depth(branch)
        out: Tensor = branch + shortcut
        return out


class ResNet(nn.Module):
    """Stem, stages of residual blocks (the first block of all but the first stage halves the image), mean, classifier.

    He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2015. With `PreActivationBlock` and a narrow
    stem, it is a wide residual network (Zagoruyko and Komodakis 2016). Since such a block begins with BatchNorm, the
    stem has none, and one follows the last stage.

    Args:
        block: the kind of block.
        depths: blocks in each stage.
        width: channels of the first stage; they double from stage to stage.
        stem_width: channels of the stem; None is `width`.
        stem: see the module.
        stochastic_depth: drop probability of the last block.
        dropout: before the classifier.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck] | type[PreActivationBlock],
        depths: Sequence[int],
        width: int,
        *,
        classes: int,
        channels: int,
        stem: Stem,
        stem_width: int | None = None,
        stochastic_depth: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        rates = iter(linear_rates(stochastic_depth, sum(depths)))
        inputs, norm_last = stem_width or width, block is PreActivationBlock
        self.stem = _stem(channels, inputs, stem, norm=not norm_last)
        self.stages = nn.Sequential()
        for stage, depth in enumerate(depths):
            blocks = nn.Sequential()
            for i in range(depth):
                blocks.append(block(inputs, width << stage, 2 if stage and i == 0 else 1, next(rates)))
                inputs = (width << stage) * block.expansion
            self.stages.append(blocks)
        self.norm = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU()) if norm_last else nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = classifier(inputs, classes, dropout)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """float [N, channels, H, W] -> logits float [N, classes]."""
        logits: Tensor = self.classifier(self.pool(self.norm(self.stages(self.stem(images)))).flatten(1))
        return logits


class _ConvNormReLU(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, *, pool: bool = False) -> None:
        super().__init__(conv3x3(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU())
        if pool:
            self.append(nn.MaxPool2d(2))


class _Residual9(nn.Module):
    """x + two (conv, BatchNorm, ReLU): the activation lies inside the branch, none follows the sum."""

    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        self.conv1 = _ConvNormReLU(width, width)
        self.conv2 = _ConvNormReLU(width, width)
        self.stochastic_depth = stochastic_depth(drop)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.stochastic_depth(self.conv2(self.conv1(x)))
        return branch + x


class ResNet9(nn.Module):
    """The nine-layer net of the DAWNBench CIFAR-10 record (David Page, "How to train your ResNet", 2018).

    Widths w, 2w, 4w, 8w; residual blocks after the second and fourth; global max-pool; logits times 1/8, as there.

    At 32 pixels width 32 costs 95.3 million multiply-adds forward; training costs about three times as much (forward,
    gradient of the input, gradient of the weights), 572 MFLOP an image at two operations a multiply-add. Width 64, the
    original, costs 379 million and 2.28 GFLOP.
    """

    def __init__(
        self, width: int, *, classes: int, channels: int, stem: Stem, stochastic_depth: float = 0.0,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        first, last = linear_rates(stochastic_depth, 2)
        self.stem = _stem(channels, width, stem)
        self.layer1 = _ConvNormReLU(width, 2 * width, pool=True)
        self.residual1 = _Residual9(2 * width, first)
        self.layer2 = _ConvNormReLU(2 * width, 4 * width, pool=True)
        self.layer3 = _ConvNormReLU(4 * width, 8 * width, pool=True)
        self.residual3 = _Residual9(8 * width, last)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.classifier = classifier(8 * width, classes, dropout, bias=False)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """float [N, channels, H, W] -> logits float [N, classes]."""
        x = self.residual1(self.layer1(self.stem(images)))
        x = self.residual3(self.layer3(self.layer2(x)))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits * 0.125
