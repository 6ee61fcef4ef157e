"""Galleries: what each augmentation does to images of your own, drawn by the code that training uses.

Each picture is one PNG. Captions say what was drawn for the image above them. Nothing here is random beyond the keyed
draws, so the same images and seed give the same pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kitae.augment import functional as f
from kitae.augment.engine import Augment
from kitae.augment.ops import OPS, STEPS, Op, Site
from kitae.augment.ops.base import CHAIN_BEGIN, CHAIN_END, NOP
from kitae.augment.plan import Program
from kitae.errors import DataError
from kitae.reporting.figures import grid_figure
from kitae.reporting.style import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pictures = NDArray[np.uint8]  # [N, C, H, W]
Lines = tuple[str, ...]  # below an image, up to two
Row = tuple[str, Pictures, list[Lines]]  # a title, images, and the lines below each

PAGES = {  # the module whose ops a page shows, and its title
    "geometry": ("geometry", "Geometry"),
    "colour": ("color", "Colour"),
    "noise": ("noise", "Blur, noise and covering"),
}
SHOWN = 5  # images in a row
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0)
ALPHAS = (0.5, 1.0, 2.0)
EPOCHS = 16


def draw_gallery(
    images: Pictures, labels: Sequence[int] | NDArray[Any], classes: Sequence[str], folder: str | Path, seed: int = 0
) -> list[Path]:
    """Draw every gallery into a folder, made where it does not exist; the PNG files.

    Args:
        images: uint8 [N, C, H, W], C 1 or 3. The first of each class are taken, so images of several classes show more.
        labels: N numbers into `classes`, the names.

    Raises:
        DataError: fewer than 2 images, or a side of less than 8 pixels.
        KitaeError: a file cannot be written.
    """
    if len(images) < 2 or min(images.shape[2:]) < 8:
        raise DataError(f"a gallery needs at least 2 images of at least 8 x 8, not {list(images.shape)}")
    Path(folder).mkdir(parents=True, exist_ok=True)  # before anything is drawn
    chosen = _of_many_classes([int(label) for label in labels])
    batch = np.ascontiguousarray(images[chosen])
    names = [classes[labels[i]] for i in chosen]
    drawn = {
        **{page: draw_ops(batch, names, page, seed) for page in PAGES},
        "mixup": draw_mixup(batch, names),
        "cutmix": draw_cutmix(batch, names, seed),
        "policies": draw_policies(batch, names, seed),
        "augmix": draw_augmix(batch, names, seed),
        "epochs": draw_epochs(batch, names, seed),
    }
    return [save(figure, Path(folder) / f"{name}.png") for name, figure in drawn.items()]


def _of_many_classes(labels: Sequence[int]) -> list[int]:
    """Up to `SHOWN` positions: the first image of each class, then more of the same."""
    first = np.sort(np.unique(labels, return_index=True)[1]).tolist()
    return list(dict.fromkeys([*first, *range(len(labels))]))[:SHOWN]


# Single ops -----------------------------------------------------------------------------------------------------------


def draw_ops(images: Pictures, names: Sequence[str], page: str, seed: int = 0) -> Figure:
    """Every op of a page of the gallery, one per row, with the parameters of its `example`."""
    module, title = PAGES[page]
    _, channels, height, width = images.shape
    red, green, blue = np.rint(images.mean((0, 2, 3))).tolist() * (3 // channels)
    site = Site(channels, height, width, mean=(red, green, blue))
    rows: list[Row] = [("Original", images, [(name,) for name in names])]
    ops = [op for op in OPS.values() if op.__module__.endswith(f".{module}")]
    rows += [_op_row(images, op.example(site), site, seed) for op in ops]
    return _rows_figure(rows, title)


def _op_row(images: Pictures, op: Op, site: Site, seed: int) -> Row:
    """An op on each image, by its own keyed draws; where one number is drawn, evenly spaced over its range instead."""
    aug, index = Augment([op], seed=seed), np.arange(len(images))
    program = aug.plan(epoch=0, index=index, size=images.shape[2:], channels=images.shape[1])
    for at, (low, high, word) in enumerate(op.ranges(site)):
        if word == 1 and low < high:
            program.args[:, 0, at] = np.linspace(low, high, len(images))
    return _title(op), aug.replay(images, program), [_words(program, i) for i in range(len(images))]


def _title(op: Op) -> str:
    """An op and what differs from its defaults."""
    given = {k: v for k, v in op.model_dump(exclude_defaults=True).items() if k not in ("p", "value")}
    words = op.name.capitalize() + (": " + ", ".join(f"{k} {_number(v)}" for k, v in given.items()) if given else "")
    return words.replace("_", " ")


def _number(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{value[0]:g}" if len(set(value)) == 1 else " to ".join(f"{v:g}" for v in value)
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _rows_figure(rows: Sequence[Row], title: str) -> Figure:
    titles, pictures, captions = zip(*rows, strict=True)
    return grid_figure([list(row) for row in pictures], row_titles=titles, captions=captions, title=title)


def _words(program: Program, row: int) -> Lines:
    """What a program does to one sample: a few short lines, mostly one per step."""
    steps = zip(program.codes[row].tolist(), program.args[row].tolist(), strict=True)
    return tuple(line for code, args in steps if code != NOP for line in STEPS[code].lines(args)) or ("as it is",)


# Mixing ---------------------------------------------------------------------------------------------------------------


def draw_mixup(images: Pictures, names: Sequence[str]) -> Figure:
    """MixUp of pairs of images at lambda 0, 0.25, 0.5, 0.75 and 1, with the label each picture gets."""
    rows, captions, titles = [], [], []
    for a, b in _pairs(len(images)):
        pair = images[[a, b]]
        rows.append([f.mixup(pair, None, lam)[0] for lam in LAMBDAS])
        captions.append([_shares(names[a], names[b], lam) for lam in LAMBDAS])
        titles.append(f"{names[a]} with {names[b]}")
    heads = [f"λ = {lam:g}" for lam in LAMBDAS]
    title = "MixUp: λ of one image, the rest of another"
    return grid_figure(rows, row_titles=titles, column_titles=heads, captions=captions, title=title)


def draw_cutmix(images: Pictures, names: Sequence[str], seed: int = 0) -> Figure:
    """Draws of CutMix at alpha 0.5, 1 and 2: the box, and lambda, the share of pixels and of the label that is kept."""
    first, second = _pairs(len(images))[0]
    pair = np.ascontiguousarray(np.tile(images[[first, second]], (SHOWN, 1, 1, 1)))
    targets = np.tile(np.eye(2, dtype=np.float32), (SHOWN, 1))
    rows, captions = [], []
    for epoch, alpha in enumerate(ALPHAS):
        aug = Augment([], seed=seed, mix={"per": "sample", "mixup_alpha": 0.0, "cutmix_alpha": alpha})
        out, mixed = aug(pair, targets, epoch=epoch, index=np.arange(2 * SHOWN))
        rows.append(list(out[::2]))
        captions.append([(f"λ = {lam:.2f}",) for lam in mixed[::2, 0].tolist()])
    titles = [f"α = {alpha:g}" for alpha in ALPHAS]
    title = f"CutMix: a box of {names[second]} in {names[first]}, λ the share that is left"
    return grid_figure(rows, row_titles=titles, captions=captions, title=title)


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(0, 1), (2, 3)] if count >= 4 else [(0, 1)]


def _shares(a: str, b: str, lam: float) -> tuple[str, ...]:
    """The label of a mixture, one line per class."""
    if a == b:
        return (f"100 % {a}",)
    return tuple(f"{100 * share:.0f} % {name}" for share, name in ((lam, a), (1 - lam, b)) if share > 0.004)


# Policies and chains --------------------------------------------------------------------------------------------------


def draw_policies(images: Pictures, names: Sequence[str], seed: int = 0) -> Figure:
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
            lines = [_words(program, i) for i in range(SHOWN)]
            rows.append((f"{title}, {names[k]}", aug.replay(many, program), lines))
    return _rows_figure(rows, "Policies: five draws each")


def draw_augmix(images: Pictures, names: Sequence[str], seed: int = 0) -> Figure:
    """AugMix taken apart: the image, each of the three chains alone with its weight, and their weighted mean."""
    aug = Augment([{"augmix": {}}], seed=seed)
    index = np.arange(len(images))
    size = images.shape[2:]
    program = aug.plan(epoch=0, index=index, size=size, channels=images.shape[1])
    ends = np.flatnonzero((program.codes == CHAIN_END).all(0))
    begins = np.flatnonzero((program.codes == CHAIN_BEGIN).all(0))
    columns = [images]
    for end in ends:  # a chain alone: all weight to it
        args = program.args.copy()
        args[:, [0, *ends], 0] = 0.0
        args[:, end, 0] = 1.0
        columns.append(aug.replay(images, Program(program.codes, args)))
    columns.append(aug.replay(images, program))
    rows, captions = [], []
    for i in range(len(images)):
        rows.append([column[i] for column in columns])
        weights = [f"{100 * w:.0f} %" for w in program.args[i, [0, *ends], 0]]
        lines: list[Lines] = [(weights[0],)]
        for weight, begin, end in zip(weights[1:], begins, ends, strict=True):
            chain = Program(program.codes[:, begin + 1 : end], program.args[:, begin + 1 : end])
            first, *rest = (_name(line) for line in _words(chain, i))
            lines.append((f"{weight}: {first}", ", ".join(rest)))
        captions.append([*lines, ("their mean",)])
    heads = ["original", *(f"chain {k + 1}" for k in range(len(ends))), "AugMix"]
    title = "AugMix: chains of ops and their mean"
    return grid_figure(rows, row_titles=names, column_titles=heads, captions=captions, title=title)


def _name(line: str) -> str:
    """The op alone, of a line of `_words`."""
    first = line.split()[0]
    return "shift" if first in ("right", "left", "up", "down") else "nothing" if first == "not" else first


def draw_epochs(images: Pictures, names: Sequence[str], seed: int = 0) -> Figure:
    """One sample over 16 epochs of a standard recipe: crop, flip, jitter, erasing."""
    jitter = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}
    ops: list[Mapping[str, Any]] = [
        {"random_crop": {"padding": max(4, min(images.shape[2:]) // 8), "mode": "reflect"}},
        {"horizontal_flip": {}},
        {"color_jitter": jitter},
        {"random_erasing": {"p": 0.25, "value": float(np.rint(images[0].mean()))}},
    ]
    many = np.ascontiguousarray(np.repeat(images[:1], EPOCHS, 0))
    out = Augment(ops, seed=seed)(many, epoch=np.arange(EPOCHS), index=np.zeros(EPOCHS, np.int64))
    rows = [list(out[i : i + 4]) for i in range(0, EPOCHS, 4)]
    captions = [[(f"epoch {i + j}",) for j in range(4)] for i in range(0, EPOCHS, 4)]
    title = f"One {names[0]} in {EPOCHS} epochs: crop, flip, jitter, erasing"
    return grid_figure(rows, captions=captions, title=title)
