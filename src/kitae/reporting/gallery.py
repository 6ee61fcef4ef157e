"""Galleries: what each augmentation does to images of your own, drawn by the very code that trains.

Each picture is one PNG. Captions say what was drawn for the image above them. Nothing here is random beyond the keyed
draws, so the same images and seed give the same pictures.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae.augment import functional as f
from kitae.augment import ops as o
from kitae.augment.engine import Augment
from kitae.augment.plan import Program
from kitae.errors import DataError
from kitae.reporting.figures import image_grid

Pictures = NDArray[np.uint8]  # [N, C, H, W]
Lines = tuple[str, ...]  # below an image, up to two
Row = tuple[str, Pictures, list[Lines]]

SHOWN = 5  # images a row
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0)
ALPHAS = (0.5, 1.0, 2.0)
EPOCHS = 16


def draw_gallery(
    images: Pictures, labels: Sequence[int] | NDArray[Any], classes: Sequence[str], folder: str | Path, seed: int = 0
) -> list[Path]:
    """Draw every gallery into a folder, made where it does not exist.

    Args:
        images: uint8 [N, C, H, W], C 1 or 3, sides of at least 8 pixels, N at least 2. The first of each class are
            taken, so images of several classes show more.
        labels: N numbers into `classes`.
        classes: names.
        folder: where the PNG files go.
        seed: of the draws; in [0, 2**64).

    Returns:
        The files: geometry, colour, noise, mixup, cutmix, policies, augmix, epochs.

    Raises:
        DataError: images or labels of another shape, type or range.
        KitaeError: a file cannot be written.
    """
    batch = np.asarray(images)
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1] not in (1, 3) or min(batch.shape[2:]) < 8:
        raise DataError(f"images must be uint8 [N, C, H, W] of at least 8 x 8, not {batch.dtype} {list(batch.shape)}")
    numbers = [int(label) for label in labels]
    if len(batch) < 2 or len(numbers) != len(batch):
        raise DataError(f"a gallery needs at least 2 images and as many labels, not {len(batch)} and {len(numbers)}")
    if not all(0 <= label < len(classes) for label in numbers):
        raise DataError(f"labels must be in [0, {len(classes)}), not {min(numbers)} to {max(numbers)}")
    chosen = _of_many_classes(numbers)
    batch = np.ascontiguousarray(batch[chosen])
    names = [str(classes[numbers[i]]) for i in chosen]
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    return [
        draw_geometry(batch, names, where / "geometry.png", seed),
        draw_colour(batch, names, where / "colour.png", seed),
        draw_noise(batch, names, where / "noise.png", seed),
        draw_mixup(batch, names, where / "mixup.png"),
        draw_cutmix(batch, names, where / "cutmix.png", seed),
        draw_policies(batch, names, where / "policies.png", seed),
        draw_augmix(batch, names, where / "augmix.png", seed),
        draw_epochs(batch, names, where / "epochs.png", seed),
    ]


def _of_many_classes(labels: Sequence[int]) -> list[int]:
    """Up to `SHOWN` positions: the first image of each class, then more of the same."""
    first = [i for i, label in enumerate(labels) if label not in labels[:i]]
    rest = [i for i in range(len(labels)) if i not in first]
    return (first + rest)[:SHOWN]


# Single ops -----------------------------------------------------------------------------------------------------------


def draw_geometry(images: Pictures, names: Sequence[str], path: str | Path, seed: int = 0) -> Path:
    """Ops that move pixels: flip, rotation, crop, affine, perspective, random resized crop."""
    drawn = functools.partial(_drawn, images, seed)
    border = _border(images)
    rows: list[Row] = [
        ("Original", images, [(name,) for name in names]),
        ("Horizontal flip", f.horizontal_flip(images), []),
        ("Rotation by 30° (counter-clockwise)", f.rotate(images, 30.0), []),
        drawn(f"Random crop, padding {border}", "random_crop", padding=border),
        drawn(f"Random crop, padding {border}, reflected", "random_crop", padding=border, mode="reflect"),
        drawn("Affine: up to 15°, shift 10 %, scale 0.9 to 1.1", "affine", degrees=15, translate=(0.1, 0.1),
              scale=(0.9, 1.1)),
        drawn("Perspective, distortion 0.5", "perspective", distortion_scale=0.5, p=1.0),
        drawn("Random resized crop, 8 to 100 % of the area", "random_resized_crop"),
    ]  # fmt: skip
    return _draw_rows(rows, path, "Geometry")


def draw_colour(images: Pictures, names: Sequence[str], path: str | Path, seed: int = 0) -> Path:
    """Ops that change colours: jitter and its parts, grey, and the tables."""
    title = "Colour jitter: brightness, contrast, saturation 0.5, hue 0.2"
    jitter = _drawn(images, seed, title, "color_jitter", brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2)
    factors, turns = np.linspace(0.5, 1.5, len(images)), np.linspace(-0.2, 0.2, len(images))
    wide = 2 * factors - 1
    rows: list[Row] = [
        ("Original", images, [(name,) for name in names]),
        (title, jitter[1], []),
        ("Brightness", f.brightness(images, factors), [(f"times {v:.2f}",) for v in factors]),
        ("Contrast", f.contrast(images, factors), [(f"times {v:.2f}",) for v in factors]),
    ]
    if images.shape[1] == 3:
        rows += [
            ("Saturation", f.saturation(images, wide), [(f"times {v:.2f}",) for v in wide]),
            ("Hue", f.hue(images, turns), [(f"{v:+.2f} of a turn",) for v in turns]),
            ("Grayscale", f.grayscale(images), []),
        ]
    rows += [
        ("Autocontrast", f.autocontrast(images), []),
        ("Equalize", f.equalize(images), []),
        ("Invert", f.invert(images), []),
        ("Posterize, 3 bits", f.posterize(images, 3), []),
        ("Solarize from level 128", f.solarize(images, 128), []),
    ]
    return _draw_rows(rows, path, "Colour")


def draw_noise(images: Pictures, names: Sequence[str], path: str | Path, seed: int = 0) -> Path:
    """Blur, sharpness, noise, and what covers a part of the image."""
    drawn = functools.partial(_drawn, images, seed)
    square, mean = min(images.shape[2:]) // 2, _mean(images)
    factors = np.linspace(0.0, 4.0, len(images))
    rows: list[Row] = [
        ("Original", images, [(name,) for name in names]),
        drawn("Gaussian blur, kernel 5, sigma 0.1 to 2", "gaussian_blur", kernel_size=5, sigma=(0.1, 2.0)),
        ("Sharpness (0 smooths, 1 keeps)", f.sharpness(images, factors), [(f"factor {v:.1f}",) for v in factors]),
        drawn("Gaussian noise, sigma 0.02 to 0.2", "gaussian_noise", sigma=(0.02, 0.2)),
        drawn("Salt and pepper on 1 to 10 % of the pixels", "salt_and_pepper", amount=(0.01, 0.1)),
        drawn("Random erasing, 2 to 33 % of the area, to the mean colour", "random_erasing", p=1.0, value=mean),
        drawn(f"Cutout of {square} pixels, to the mean colour", "cutout", size=square, value=mean),
    ]
    return _draw_rows(rows, path, "Blur, noise and covering")


def _border(images: Pictures) -> int:
    """A padding that shows: 4 pixels at 32, an eighth of the side above."""
    return max(4, int(min(images.shape[2:])) // 8)


def _mean(images: Pictures) -> float | tuple[float, ...]:
    """The mean colour in levels: what erasing shows a net, which sees 0 after normalisation."""
    levels = [float(np.rint(v)) for v in images.mean((0, 2, 3))]
    return levels[0] if len(levels) == 1 else tuple(levels)


def _drawn(images: Pictures, seed: int, title: str, name: str, **parameters: Any) -> Row:
    """A row of an op with its own draws, each image by its own key."""
    aug = Augment([{name: parameters}], seed=seed)
    index = np.arange(len(images))
    program = aug.plan(epoch=0, index=index, size=images.shape[2:], channels=images.shape[1])
    return title, aug(images, epoch=0, index=index), [_words(program, i) for i in range(len(images))]


def _draw_rows(rows: Sequence[Row], path: str | Path, title: str) -> Path:
    pictures = [list(row[1]) for row in rows]
    captions = [list(row[2]) or [()] * len(row[1]) for row in rows]
    return image_grid(pictures, [row[0] for row in rows], None, path, captions=captions, title=title)


# Steps in a word or two -----------------------------------------------------------------------------------------------


_WORDS = {  # code: its numbers in words
    o.RESIZED_CROP: "{3:.0f} x {2:.0f} pixels",
    o.HFLIP: "flip",
    o.BRIGHTNESS: "brightness {0:.2f}",
    o.CONTRAST: "contrast {0:.2f}",
    o.SATURATION: "colour {0:.2f}",
    o.SHARPNESS: "sharpness {0:.2f}",
    o.HUE: "hue {0:+.2f}",
    o.POSTERIZE: "posterize {0:.0f} bits",
    o.SOLARIZE: "solarize {0:.0f}",
    o.GAUSSIAN_BLUR: "sigma {2:.2f}",
    o.GAUSSIAN_NOISE: "sigma {3:.2f}",
    o.SALT_AND_PEPPER: "{2:.1%} hit",
    o.ERASE: "{3:.0f} x {2:.0f} pixels",
}


def _words(program: Program, row: int) -> Lines:
    """What a program does to one sample: a few short lines, mostly one a step."""
    lines: list[str] = []
    for code, a in zip(program.codes[row].tolist(), program.args[row].tolist(), strict=True):
        if code in (o.AFFINE_NEAREST, o.AFFINE_BILINEAR):
            lines += _motion(a)
        elif code == o.CROP:
            lines.append(_moved(-a[1], -a[0]) or "not moved")
        elif code not in (o.NOP, o.PERSPECTIVE_NEAREST, o.PERSPECTIVE_BILINEAR):
            lines.append(_WORDS.get(code, o.CODE_NAMES[code]).format(*a))
    return tuple(lines)


def _moved(right: float, down: float) -> str:
    """A shift in words; empty where it is less than half a pixel."""
    sides = ((round(right), "right", "left"), (round(down), "down", "up"))
    return ", ".join(f"{plus if by > 0 else minus} {abs(by)}" for by, plus, minus in sides if by)


def _motion(a: Sequence[float]) -> Lines:
    """A warp in words, from its inverse matrix about the centre: a policy's shear, or angle, scale and shift."""
    m0, m1, m2, m3, m4, m5 = a[:6]
    if m0 == m4 == 1.0 and (m1 == 0.0) != (m3 == 0.0):
        return (f"shear x {m1:+.2f}" if m3 == 0.0 else f"shear y {m3:+.2f}",)
    det = m0 * m4 - m1 * m3
    angle, scale = -math.degrees(math.atan2(m1, m0)), 1.0 / math.sqrt(det)  # counter-clockwise
    shift = _moved((m1 * m5 - m4 * m2) / det, (m3 * m2 - m0 * m5) / det)  # where the centre goes
    turn = f"turn {angle:+.0f}°" if abs(angle) >= 0.5 else ""
    size = f"scale {scale:.2f}" if abs(scale - 1.0) >= 0.005 else ""
    first = f"{angle:+.0f}°, {size}" if turn and size else turn or size
    return tuple(line for line in (first, shift) if line) or ("not moved",)


# Mixing ---------------------------------------------------------------------------------------------------------------


def draw_mixup(images: Pictures, names: Sequence[str], path: str | Path) -> Path:
    """MixUp of pairs of images at lambda 0, 0.25, 0.5, 0.75 and 1, with the label each picture gets."""
    rows, captions, titles = [], [], []
    for a, b in _pairs(len(images)):
        pair = images[[a, b]]
        rows.append([f.mixup(pair, None, lam)[0] for lam in LAMBDAS])
        captions.append([_shares(names[a], names[b], lam) for lam in LAMBDAS])
        titles.append(f"{names[a]} with {names[b]}")
    heads = [f"λ = {lam:g}" for lam in LAMBDAS]
    return image_grid(rows, titles, heads, path, captions=captions, title="MixUp: λ of one image, the rest of another")


def draw_cutmix(images: Pictures, names: Sequence[str], path: str | Path, seed: int = 0) -> Path:
    """Draws of CutMix at alpha 0.5, 1 and 2: the box, and lambda, the share of pixels and of the label that is kept."""
    first, second = _pairs(len(images))[0]
    pair = np.ascontiguousarray(np.tile(images[[first, second]], (SHOWN, 1, 1, 1)))
    targets = np.tile(np.eye(2, dtype=np.float32), (SHOWN, 1))
    rows, captions = [], []
    for epoch, alpha in enumerate(ALPHAS):
        aug = Augment([], seed=seed, mix={"mixup_alpha": 0.0, "cutmix_alpha": alpha})
        out, mixed = aug(pair, targets, epoch=epoch, index=np.arange(2 * SHOWN))
        rows.append(list(out[::2]))
        captions.append([(f"λ = {lam:.2f}",) for lam in mixed[::2, 0].tolist()])
    titles = [f"α = {alpha:g}" for alpha in ALPHAS]
    title = f"CutMix: a box of {names[second]} in {names[first]}, λ the share that is left"
    return image_grid(rows, titles, None, path, captions=captions, title=title)


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(0, 1), (2, 3)] if count >= 4 else [(0, 1)]


def _shares(a: str, b: str, lam: float) -> tuple[str, ...]:
    """The label of a mixture, a line each class."""
    if a == b:
        return (f"100 % {a}",)
    return tuple(f"{100 * share:.0f} % {name}" for share, name in ((lam, a), (1 - lam, b)) if share > 0.004)


# Policies and chains --------------------------------------------------------------------------------------------------


def draw_policies(images: Pictures, names: Sequence[str], path: str | Path, seed: int = 0) -> Path:
    """Five draws of AutoAugment over five of RandAugment (and TrivialAugmentWide), each with the ops it drew."""
    table = "cifar10" if max(images.shape[2:]) <= 64 else "imagenet"
    policies: list[tuple[str, Mapping[str, Any]]] = [
        (f"AutoAugment ({table})", {"auto_augment": {"policy": table}}),
        ("RandAugment (2 ops, magnitude 9)", {"rand_augment": {}}),
        ("TrivialAugmentWide", {"trivial_augment_wide": {}}),
    ]
    rows: list[Row] = []
    for k in range(min(2, len(images))):
        many = np.ascontiguousarray(np.repeat(images[k : k + 1], SHOWN, 0))
        for epoch, (title, op) in enumerate(policies, 1):  # an epoch each, so that no two rows share their draws
            aug = Augment([op], seed=seed)
            index = np.arange(SHOWN) + k * SHOWN
            program = aug.plan(epoch=epoch, index=index, size=images.shape[2:], channels=images.shape[1])
            lines = [_words(program, i) or ("as it is",) for i in range(SHOWN)]
            rows.append((f"{title}, {names[k]}", aug(many, epoch=epoch, index=index), lines))
    return _draw_rows(rows, path, "Policies: five draws each")


def draw_augmix(images: Pictures, names: Sequence[str], path: str | Path, seed: int = 0) -> Path:
    """AugMix taken apart: the image, each of the three chains alone with its weight, and their weighted mean."""
    aug = Augment([{"augmix": {}}], seed=seed)
    index = np.arange(len(images))
    size = images.shape[2:]
    program = aug.plan(epoch=0, index=index, size=size, channels=images.shape[1])
    ends = np.flatnonzero((program.codes == o.CHAIN_END).all(0))
    begins = np.flatnonzero((program.codes == o.CHAIN_BEGIN).all(0))
    columns = [images]
    for end in ends:  # a chain alone: all weight to it
        args = program.args.copy()
        args[:, [0, *ends], 0] = 0.0
        args[:, end, 0] = 1.0
        columns.append(aug.replay(images, Program(program.codes, args)))
    columns.append(aug(images, epoch=0, index=index))
    rows, captions = [], []
    for i in range(len(images)):
        rows.append([column[i] for column in columns])
        weights = [f"{100 * w:.0f} %" for w in program.args[i, [0, *ends], 0]]
        lines: list[Lines] = [(weights[0],)]
        for weight, begin, end in zip(weights[1:], begins, ends, strict=True):
            chain = Program(program.codes[:, begin + 1 : end], program.args[:, begin + 1 : end])
            told = [_name(line) for line in _words(chain, i)]
            lines.append((f"{weight}: {told[0]}", ", ".join(told[1:])))
        captions.append([*lines, ("their mean",)])
    heads = ["original", *(f"chain {k + 1}" for k in range(len(ends))), "AugMix"]
    return image_grid(rows, list(names), heads, path, captions=captions, title="AugMix: chains of ops and their mean")


def _name(line: str) -> str:
    """The op alone, of a line of `_words`."""
    first = line.split()[0]
    return "shift" if first in ("right", "left", "up", "down") else "nothing" if first == "not" else first


def draw_epochs(images: Pictures, names: Sequence[str], path: str | Path, seed: int = 0) -> Path:
    """One sample over 16 epochs of a standard recipe: crop, flip, jitter, erasing."""
    jitter = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}
    ops: list[Mapping[str, Any]] = [
        {"random_crop": {"padding": _border(images), "mode": "reflect"}},
        {"horizontal_flip": {}},
        {"color_jitter": jitter},
        {"random_erasing": {"p": 0.25, "value": _mean(images[:1])}},
    ]
    many = np.ascontiguousarray(np.repeat(images[:1], EPOCHS, 0))
    out = Augment(ops, seed=seed)(many, epoch=np.arange(EPOCHS), index=np.zeros(EPOCHS, np.int64))
    rows = [list(out[i : i + 4]) for i in range(0, EPOCHS, 4)]
    captions = [[f"epoch {i + j}" for j in range(4)] for i in range(0, EPOCHS, 4)]
    title = f"One {names[0]} in {EPOCHS} epochs: crop, flip, jitter, erasing"
    return image_grid(rows, None, None, path, captions=captions, title=title)
