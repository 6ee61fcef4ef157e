"""The torch executor: the same programs on whole batches, by plain torch operations. Any device; the reference in
tests.

Steps are aligned (step s of every sample belongs to the same op), so the batch goes through step by step, and at each
step the samples that share an op code go through together. Integer ops give the same bits as the CPU executor; float
ones are written in the same order of single-precision operations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kitae.augment import ops as o
from kitae.augment.mix import mix_targets
from kitae.augment.plan import Program
from kitae.keyed import normal_quantile

Tensor = torch.Tensor
QUANTILE_STEP = 1.0 / 4096.0
_tables: dict[torch.device, Tensor] = {}


class Numbers:
    """The arguments of one step for some samples: columns on the device, shaped to broadcast against [n, C, H, W]."""

    def __init__(self, args: NDArray[np.float64], device: torch.device) -> None:
        self.args, self.device = args, device

    def host(self, column: int) -> NDArray[np.float64]:
        return np.ascontiguousarray(self.args[:, column])

    def float32(self, values: Any, ndim: int = 4) -> Tensor:
        """Per-sample numbers as float32 [n, 1, 1, 1]."""
        array = torch.from_numpy(np.asarray(values, np.float64).astype(np.float32))
        return array.to(self.device).view(-1, *[1] * (ndim - 1))

    def __getitem__(self, column: int) -> Tensor:
        return self.float32(self.host(column))

    def integer(self, column: int) -> Tensor:
        """int64 [n, 1, 1, 1]."""
        return torch.from_numpy(self.host(column).astype(np.int64)).to(self.device).view(-1, 1, 1, 1)

    def fill(self, first: int, channels: int) -> Tensor:
        """Fill levels float32 [n, channels, 1, 1], NaN as 0."""
        values = np.nan_to_num(self.args[:, first : first + channels]).astype(np.float32)
        return torch.from_numpy(values).to(self.device)[:, :, None, None]


def _level(x: Tensor) -> Tensor:
    """Clamped and truncated."""
    return x.clamp_(0.0, 255.0).to(torch.uint8)


def _grey(x: Tensor) -> Tensor:
    """Floored grey, float32 [n, 1, H, W]."""
    r, g, b = (x[:, c : c + 1] for c in range(3))
    return r.mul(0.2989).add_(g, alpha=0.587).add_(b, alpha=0.114).floor_()  # add with alpha is a fused multiply-add


def crop(x: Tensor, a: Numbers) -> Tensor:
    n, c, h, w = x.shape
    rows, columns = int(a.args[0, 2]), int(a.args[0, 3])
    mode = a.integer(4)
    y = a.integer(0) + torch.arange(rows, device=x.device).view(1, 1, -1, 1)
    z = a.integer(1) + torch.arange(columns, device=x.device).view(1, 1, 1, -1)
    outside = ((y < 0) | (y >= h) | (z < 0) | (z >= w)) & (mode == 0)

    def fold(i: Tensor, size: int) -> Tensor:
        mirrored = i.abs()
        mirrored = torch.where(mirrored >= size, 2 * (size - 1) - mirrored, mirrored)
        return torch.where(mode == 1, mirrored, i).clamp(0, size - 1)

    index = (fold(y, h) * w + fold(z, w)).expand(n, c, rows, columns)
    out = x.reshape(n, c, h * w).gather(2, index.reshape(n, c, -1)).view(n, c, rows, columns)
    return torch.where(outside, a.fill(5, c).to(torch.uint8), out)


def hflip(x: Tensor, a: Numbers) -> Tensor:
    return x.flip(3)


def vflip(x: Tensor, a: Numbers) -> Tensor:
    return x.flip(2)


def brightness(x: Tensor, a: Numbers) -> Tensor:
    return _level(x.float() * a[0])


def _blend(x: Tensor, other: Tensor, a: Numbers) -> Tensor:
    return _level(x.float() * a[0] + other * a.float32(1.0 - a.host(0)))


def contrast(x: Tensor, a: Numbers) -> Tensor:
    grey = _grey(x) if x.shape[1] == 3 else x
    total = grey.to(torch.int64).sum((1, 2, 3), keepdim=True)
    return _blend(x, total.float() / float(x.shape[2] * x.shape[3]), a)


def saturation(x: Tensor, a: Numbers) -> Tensor:
    return x if x.shape[1] == 1 else _blend(x, _grey(x), a)


def grayscale(x: Tensor, a: Numbers) -> Tensor:
    return x if x.shape[1] == 1 else _grey(x).to(torch.uint8).expand(-1, 3, -1, -1)


def hue(x: Tensor, a: Numbers) -> Tensor:
    """The integers of the compiled kernel, which says what they are."""
    if x.shape[1] == 1:
        return x
    i = x.to(torch.int32) << 5
    r, g, b = i[:, 0:1], i[:, 1:2], i[:, 2:3]
    high, low = i.amax(1, keepdim=True), i.amin(1, keepdim=True)
    d = high - low
    h = torch.where(high == g, b - r + 2 * d, r - g + 4 * d)
    h = torch.where(high == r, g - b + torch.where(g < b, 6 * d, 0), h)
    turn = a.host(0)
    parts = np.rint(49152.0 * (turn - np.floor(turn))).astype(np.int64) % 49152
    turned = ((d.long() << 3) * torch.from_numpy(parts).to(x.device).view(-1, 1, 1, 1)) >> 16
    h = h - (6 * d - turned.to(torch.int32))
    h = torch.where(h < 0, h + 6 * d, h)
    out = []
    for offset in (5, 3, 1):
        k = h + offset * d
        k = torch.where(k >= 6 * d, k - 6 * d, k)
        k = torch.minimum(torch.minimum(k, (4 * d - k).clamp(min=0)), d)
        out.append(((high - k) * 2056) >> 16)
    return torch.cat(out, 1).to(torch.uint8)


def invert(x: Tensor, a: Numbers) -> Tensor:
    return ~x


def posterize(x: Tensor, a: Numbers) -> Tensor:
    return x & ((0xFF << (8 - a.integer(0))) & 0xFF).to(torch.uint8)


def solarize(x: Tensor, a: Numbers) -> Tensor:
    return torch.where(x.float() >= a[0], ~x, x)


def autocontrast(x: Tensor, a: Numbers) -> Tensor:
    f = x.float()
    low, high = f.amin((2, 3), keepdim=True), f.amax((2, 3), keepdim=True)
    flat = high == low
    scale = torch.where(flat, torch.ones_like(high), (high - low) * float(np.float32(1.0 / 255.0)))
    return torch.where(flat, x, _level((f - low) / scale))


def equalize(x: Tensor, a: Numbers) -> Tensor:
    n, c, h, w = x.shape
    flat = x.reshape(n * c, h * w).long()
    counts = torch.zeros(n * c, 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    before = counts.cumsum(1) - counts
    last = (counts > 0).long().mul(torch.arange(256, device=x.device)).amax(1, keepdim=True)
    step = (h * w - counts.gather(1, last)) // 255
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    table[:, 0] = 0
    return torch.where((step == 0).view(n, c, 1, 1), x, table.gather(1, flat).to(torch.uint8).view(n, c, h, w))


def sharpness(x: Tensor, a: Numbers) -> Tensor:
    if x.shape[2] <= 2 or x.shape[3] <= 2:
        return x
    i = x.to(torch.int32)
    column = i[:, :, :-2] + i[:, :, 1:-1] + i[:, :, 2:]
    own = i[:, :, 1:-1, 1:-1]
    total = column[..., :-2] + column[..., 1:-1] + column[..., 2:] + own * 4
    smooth = (total * 40330 + 262144) >> 19
    out = x.clone()
    out[:, :, 1:-1, 1:-1] = _level(own.float() + (smooth - own).float() * a.float32(1.0 - a.host(0)))
    return out


def gaussian_weights(size: int, sigma: NDArray[np.float64]) -> NDArray[np.float32]:
    """The kernels of torchvision: float32 [n, size]."""
    limit = (size - 1) / (2.0 * np.sqrt(2.0))
    points = np.zeros(1) if size == 1 else -limit + 2.0 * limit * np.arange(size) / (size - 1)
    w = np.exp(-((points / sigma[:, None]) ** 2))
    return np.asarray(w / w.sum(1, keepdims=True), np.float32)


def gaussian_blur(x: Tensor, a: Numbers) -> Tensor:
    out = torch.empty_like(x)
    sizes = a.args[:, :2].astype(np.int64)
    for kx, ky in np.unique(sizes, axis=0).tolist():
        rows = np.flatnonzero((sizes == (kx, ky)).all(1))
        pick = torch.from_numpy(rows).to(x.device)
        wx = torch.from_numpy(gaussian_weights(kx, a.host(2)[rows])).to(x.device)
        wy = torch.from_numpy(gaussian_weights(ky, a.host(3)[rows])).to(x.device)
        f = torch.nn.functional.pad(x[pick].float(), (kx // 2, kx // 2, ky // 2, ky // 2), mode="reflect")
        h, w = x.shape[2:]
        total = torch.zeros_like(f[:, :, :h])
        for t in range(ky):
            total += f[:, :, t : t + h] * wy[:, t].view(-1, 1, 1, 1)
        across = torch.zeros_like(total[..., :w])
        for t in range(kx):
            across += total[..., t : t + w] * wx[:, t].view(-1, 1, 1, 1)
        out[pick] = across.round_().clamp_(0, 255).to(torch.uint8)
    return out


def _scramble(place: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`kernels.noise.scramble` on int64 that hold 32-bit words."""
    mask = 0xFFFFFFFF

    def times(x: Tensor, factor: int) -> Tensor:
        return (x * (factor & 0xFFFF) + ((x * (factor >> 16) & 0xFFFF) << 16)) & mask

    x = (times(place, 0x9E3779B9) + low) & mask
    x = x ^ (x >> 16)
    x = times(x, 0x7FEB352D)
    x = x ^ (x >> 15)
    x = (x + high) & mask
    x = times(x, 0x846CA68B)
    return x ^ (x >> 16)


def gaussian_noise(x: Tensor, a: Numbers) -> Tensor:
    n = len(x)
    size = x[0].numel()
    place = torch.arange((size + 1) // 2, device=x.device).view(1, -1)
    word = _scramble(place, a.integer(1).view(-1, 1), a.integer(0).view(-1, 1))
    half = torch.stack((word & 0xFFFF, word >> 16), 2).view(n, -1)[:, :size]
    table = _tables.get(x.device)
    if table is None:
        points = (np.arange(32768) + 32768.5) / 65536.0
        table = torch.from_numpy(np.rint(normal_quantile(points) / QUANTILE_STEP).astype(np.float32)).to(x.device)
        _tables[x.device] = table
    z = table[half & 0x7FFF] * QUANTILE_STEP
    z = torch.where(half > 0x7FFF, -z, z)
    noise = a.float32(a.host(2) * 255.0, 2) + z * a.float32(a.host(3) * 255.0, 2)
    return (x.reshape(n, -1).to(torch.int32) + noise.to(torch.int32)).clamp_(0, 255).to(torch.uint8).view_as(x)


def salt_and_pepper(x: Tensor, a: Numbers) -> Tensor:
    h, w = x.shape[2:]
    place = torch.arange(h * w, device=x.device).view(1, 1, h, w)
    word = _scramble(place, a.integer(1), a.integer(0)) >> 1
    amount, salt = a.host(2), a.host(3)

    def threshold(p: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy((p * 2147483648.0).astype(np.int64)).to(x.device).view(-1, 1, 1, 1)

    spot = (word < threshold(amount * salt)).to(torch.uint8) * 255
    return torch.where(word < threshold(amount), spot, x)


def erase(x: Tensor, a: Numbers) -> Tensor:
    h, w = x.shape[2:]
    y = torch.arange(h, device=x.device).view(1, 1, -1, 1)
    z = torch.arange(w, device=x.device).view(1, 1, 1, -1)
    top, left = a.integer(0), a.integer(1)
    box = (y >= top) & (y < top + a.integer(2)) & (z >= left) & (z < left + a.integer(3))
    return torch.where(box, a.fill(4, x.shape[1]).to(torch.uint8), x)


# Warps ----------------------------------------------------------------------------------------------------------------


def _affine_points(x: Tensor, a: Numbers) -> tuple[Tensor, Tensor]:
    h, w = x.shape[2:]
    yc = torch.arange(h, device=x.device, dtype=torch.float32).view(1, 1, -1, 1) - 0.5 * (h - 1)
    xc = torch.arange(w, device=x.device, dtype=torch.float32).view(1, 1, 1, -1) - 0.5 * (w - 1)
    sx = (a[0] * xc + (a[1] * yc + a[2])) + 0.5 * (w - 1)
    sy = (a[3] * xc + (a[4] * yc + a[5])) + 0.5 * (h - 1)
    return sx, sy


def _perspective_points(x: Tensor, a: Numbers) -> tuple[Tensor, Tensor]:
    h, w = x.shape[2:]
    yc = torch.arange(h, device=x.device, dtype=torch.float32).view(1, 1, -1, 1) + 0.5
    xc = torch.arange(w, device=x.device, dtype=torch.float32).view(1, 1, 1, -1) + 0.5
    below = a[6] * xc + (a[7] * yc + 1.0)
    sx = (a[0] * xc + (a[1] * yc + a[2])) / below - 0.5
    sy = (a[3] * xc + (a[4] * yc + a[5])) / below - 0.5
    far = 32768.0
    return sx.nan_to_num(-far).clamp(-far, far), sy.nan_to_num(-far).clamp(-far, far)


def _nearest(x: Tensor, points: tuple[Tensor, Tensor], fill: Tensor) -> Tensor:
    n, c, h, w = x.shape
    sx, sy = (p.clamp(-1.0, side).round_() for p, side in zip(points, (w, h), strict=True))
    inside = (sx >= 0) & (sx < w) & (sy >= 0) & (sy < h)
    index = (sy.clamp(0, h - 1) * w + sx.clamp(0, w - 1)).long().expand(n, c, h, w)
    out = x.reshape(n, c, -1).gather(2, index.reshape(n, c, -1)).view(n, c, h, w)
    return torch.where(inside, out, fill.round().to(torch.uint8))


def _bilinear(x: Tensor, points: tuple[Tensor, Tensor], a: Numbers, at: int) -> Tensor:
    n, c, h, w = x.shape
    sx, sy = (p.clamp(-1.0, side) for p, side in zip(points, (w, h), strict=True))
    ix, iy = (sx + 1.0).floor(), (sy + 1.0).floor()
    fx, fy = sx - (ix - 1.0), sy - (iy - 1.0)
    padded = torch.nn.functional.pad(x, (1, 2, 1, 2))
    stride = w + 3
    index = (iy.long() * stride + ix.long()).expand(n, c, h, w).reshape(n, c, -1)
    flat = padded.reshape(n, c, -1)

    def tap(offset: int) -> Tensor:
        return flat.gather(2, index + offset).view(n, c, h, w).float()

    t0, t1, b0, b1 = tap(0), tap(1), tap(stride), tap(stride + 1)
    up = t0 + (t1 - t0) * fx
    down = b0 + (b1 - b0) * fx
    v = up + (down - up) * fy
    zero = torch.zeros((), device=x.device)
    across = torch.where((ix >= 1) & (ix <= w), 1.0 - fx, zero) + torch.where(ix < w, fx, zero)
    along = torch.where((iy >= 1) & (iy <= h), 1.0 - fy, zero) + torch.where(iy < h, fy, zero)
    filled = torch.from_numpy(~np.isnan(a.host(at))).to(x.device).view(-1, 1, 1, 1)
    fill = a.fill(at, c)
    v = torch.where(filled, (v - fill) * (across * along) + fill, v)
    return v.round_().to(torch.uint8)


def affine_nearest(x: Tensor, a: Numbers) -> Tensor:
    return _nearest(x, _affine_points(x, a), a.fill(6, x.shape[1]))


def affine_bilinear(x: Tensor, a: Numbers) -> Tensor:
    return _bilinear(x, _affine_points(x, a), a, 6)


def perspective_nearest(x: Tensor, a: Numbers) -> Tensor:
    return _nearest(x, _perspective_points(x, a), a.fill(8, x.shape[1]))


def perspective_bilinear(x: Tensor, a: Numbers) -> Tensor:
    return _bilinear(x, _perspective_points(x, a), a, 8)


def triangle_weights(size: int, new: int) -> tuple[NDArray[np.float32], int]:
    """The integer weights of `kernels.warp.triangle_weights` as a dense matrix float32 [new, size], and their
    precision."""
    scale = size / new
    support = max(scale, 1.0)
    centre = scale * (np.arange(new) + 0.5)
    begin = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), size)
    j = np.arange(size)
    w = np.maximum(1.0 - np.abs((j - centre[:, None] + 0.5) * (1.0 / support)), 0.0)
    w[(j < begin[:, None]) | (j >= end[:, None])] = 0.0
    w = (w.astype(np.float32) * (1.0 / w.sum(1, keepdims=True))).astype(np.float64)
    precision = 0
    while precision < 22 and int(0.5 + w.max() * (1 << (precision + 1))) < (1 << 15):
        precision += 1
    return np.floor(w.astype(np.float32).astype(np.float64) * (1 << precision) + 0.5).astype(np.float32), precision


def resized_crop(x: Tensor, a: Numbers) -> Tensor:
    """Integer weights times levels stay below 2**24, so float32 products and sums are exact, in any order."""
    n, c = x.shape[:2]
    new_h, new_w = int(a.args[0, 4]), int(a.args[0, 5])
    out = torch.empty(n, c, new_h, new_w, dtype=torch.uint8, device=x.device)
    for i, (top, left, h, w) in enumerate(a.args[:, :4].astype(np.int64).tolist()):
        v = x[i, :, top : top + h, left : left + w].float()
        for axis, (size, new) in enumerate(((w, new_w), (h, new_h))):
            if size != new:
                weights, precision = triangle_weights(size, new)
                matrix = torch.from_numpy(weights).to(x.device)
                v = v @ matrix.T if axis == 0 else matrix @ v
                v = ((v + float(1 << (precision - 1))) / float(1 << precision)).floor().clamp(0, 255)
        out[i] = v.to(torch.uint8)
    return out


STEPS = {
    o.CROP: crop,
    o.HFLIP: hflip,
    o.VFLIP: vflip,
    o.AFFINE_NEAREST: affine_nearest,
    o.AFFINE_BILINEAR: affine_bilinear,
    o.PERSPECTIVE_NEAREST: perspective_nearest,
    o.PERSPECTIVE_BILINEAR: perspective_bilinear,
    o.RESIZED_CROP: resized_crop,
    o.BRIGHTNESS: brightness,
    o.CONTRAST: contrast,
    o.SATURATION: saturation,
    o.HUE: hue,
    o.GRAYSCALE: grayscale,
    o.INVERT: invert,
    o.POSTERIZE: posterize,
    o.SOLARIZE: solarize,
    o.AUTOCONTRAST: autocontrast,
    o.EQUALIZE: equalize,
    o.SHARPNESS: sharpness,
    o.GAUSSIAN_BLUR: gaussian_blur,
    o.GAUSSIAN_NOISE: gaussian_noise,
    o.SALT_AND_PEPPER: salt_and_pepper,
    o.ERASE: erase,
}


def run_steps(images: Tensor, program: Program) -> tuple[Tensor, Tensor | None]:
    """The uint8 images after a program, and the mask bool [N, 1, H, W] of what is erased after normalisation, if
    any."""
    x = images
    device = x.device
    base: Tensor | None = None
    sums: Tensor | None = None
    erased: Tensor | None = None
    for step in range(program.codes.shape[1]):
        column = program.codes[:, step]
        for code in np.unique(column).tolist():
            if code == o.NOP:
                continue
            rows = np.flatnonzero(column == code)
            a = Numbers(program.args[rows, step], device)
            if code == o.AUGMIX_BEGIN:
                base, sums = x, x.float() * a[0]
            elif code == o.CHAIN_BEGIN:
                assert base is not None
                x = base
            elif code == o.CHAIN_END:
                assert sums is not None
                sums = sums + x.float() * a[0]
            elif code == o.AUGMIX_END:
                assert sums is not None
                x = _level(sums)
            elif code == o.ERASE_AFTER:
                if erased is None:
                    erased = torch.zeros(len(x), 1, *x.shape[2:], dtype=torch.bool, device=device)
                pick = torch.from_numpy(rows).to(device)
                a.args = a.args.copy()
                a.args[:, 4:7] = 1.0
                erased[pick] |= erase(torch.zeros_like(erased[pick], dtype=torch.uint8), a).bool()
            elif len(rows) == len(x):
                x = STEPS[code](x, a)
            else:
                pick = torch.from_numpy(rows).to(device)
                x = x.index_copy(0, pick, STEPS[code](x[pick], a))
    return x, erased


def finish(
    x: Tensor,
    erased: Tensor | None,
    mix: NDArray[np.float64] | None,
    scale: list[float],
    shift: list[float],
    dtype: str,
    channels_last: bool,
) -> Tensor:
    """Normalise, erase, mix; as `kernels.write`."""
    if dtype == "uint8":
        v = x.float() if mix is not None else x
    else:
        columns = [torch.tensor(s, dtype=torch.float32, device=x.device).view(1, -1, 1, 1) for s in (scale, shift)]
        v = x.float() * columns[0] + columns[1]
        if erased is not None:
            v = v.masked_fill(erased, 0.0)
    pairs = len(v) // 2 * 2
    if mix is not None and pairs:
        a = Numbers(mix[:pairs], x.device)
        own, other = v[:pairs], v[:pairs].view(-1, 2, *v.shape[1:]).flip(1).reshape(pairs, *v.shape[1:])
        y = torch.arange(v.shape[2], device=x.device).view(1, 1, -1, 1)
        z = torch.arange(v.shape[3], device=x.device).view(1, 1, 1, -1)
        box = (z >= a.integer(2)) & (z < a.integer(4)) & (y >= a.integer(3)) & (y < a.integer(5))
        blend = own * a[1] + other * a.float32(1.0 - a.host(1))
        kind = a.integer(0)
        mixed = torch.where(kind == 1, blend, torch.where((kind == 2) & box, other, own))
        v = torch.cat((mixed, v[pairs:])) if pairs < len(v) else mixed
    if dtype == "uint8":
        v = (v + 0.5).to(torch.uint8) if v.is_floating_point() else v
    elif dtype == "bfloat16":
        v = v.to(torch.bfloat16)
    return v.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def one_hot(targets: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """float32 [N, classes]."""
    out = np.zeros((len(targets), classes), np.float32)
    out[np.arange(len(targets)), targets] = 1.0
    return out


def mixed_targets(
    targets: NDArray[Any] | None, classes: int, mix: NDArray[np.float64] | None
) -> NDArray[np.float32] | None:
    """Targets of a batch as distributions, mixed."""
    if targets is None:
        return None
    rows = one_hot(targets, classes) if targets.ndim == 1 else targets
    return rows.copy() if mix is None else mix_targets(rows, mix)
