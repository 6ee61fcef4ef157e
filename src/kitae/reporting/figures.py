"""Pictures drawn on their own: images in rows, and a layer's filters.

Images are uint8 [C, H, W] with C = 1 or 3.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from kitae.reporting import svg
from kitae.reporting.style import DPI, INK, LABEL, SMALL, TITLE, WIDTH, Image, fit, new_figure, verbatim, wrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 64  # filters that are shown
_COLUMNS = 12
_CELL = 12  # pixels a weight
_MOST_WEIGHTS = 40_000  # in a chart, which is a part of a page
_LEVELS = 12  # of strength in a chart
_POSITIVE, _NEGATIVE, _REMOVED = np.array([[0x00, 0x5A, 0xB5], [0xB5, 0x2A, 0x1E], [0x3A, 0x3F, 0x44]]) / 255


def grid_figure(
    rows: Sequence[Sequence[Image]],
    *,
    row_titles: Sequence[str] | None = None,
    column_titles: Sequence[str] | None = None,
    captions: Sequence[Sequence[Sequence[str]]] | None = None,
    title: str = "",
    columns: int = 0,
) -> Figure:
    """Images in rows, each row under its title, column titles on top; small images are enlarged without blurring.

    Args:
        rows: at least one image, of any sizes.
        row_titles: one a row; column_titles: one a column of the longest row.
        captions: for each image up to two lines below it.
        columns: cells the width is divided into, at least the longest row.
    """
    wide = max(columns, *map(len, rows))
    gap, border, line = 8, 12, int(SMALL * DPI / 72 * 1.35)
    cell = max(56, min(300, (int(WIDTH * DPI) - 2 * border + gap) // wide - gap))
    pictures = [[_enlarge(image, cell) for image in row] for row in rows]
    cell = max(max(picture.shape[:2]) for row in pictures for picture in row)  # whole factors may leave room
    most = 32 if captions is None else max(32, cell // 2)  # captions may be wider than pictures
    if wide > 1:
        gap = max(gap, min(most, (int(WIDTH * DPI) - 2 * border - wide * cell) // (wide - 1)))
    left = border
    if captions is not None:  # those of the first and the last column are wider too
        left = max(border, min(gap // 2, (int(WIDTH * DPI) - wide * (cell + gap) + gap) // 2))
    width = max(int(WIDTH * DPI), wide * (cell + gap) - gap + 2 * border)
    texts: list[tuple[int, int, str, float, str, str]] = []  # x, y (top, pixels), text, size, weight, alignment
    placed: list[tuple[int, int, Image]] = []
    y = border
    if title:
        for text in wrap(title, width - 2 * border, TITLE, bold=True):
            texts.append((border, y, text, TITLE, "bold", "left"))
            y += int(TITLE * DPI / 72 * 1.3)
        y += 6

    def below(cells: Sequence[Sequence[str]]) -> int:
        """Write up to two lines into each cell of a row; the height of the highest."""
        for j, lines in enumerate(cells):
            for n, text in enumerate(lines[:2]):
                texts.append((left + j * (cell + gap) + cell // 2, y + n * line, text, SMALL, "normal", "center"))
        return line * max(len(lines[:2]) for lines in cells) + 4

    if column_titles is not None:
        y += below([wrap(text, cell, SMALL) for text in column_titles])
    for i, row in enumerate(pictures):
        if row_titles is not None:
            y += 8 if i else 0
            texts.append((border, y, fit(row_titles[i], width - 2 * border, LABEL, bold=True), LABEL, "bold", "left"))
            y += int(LABEL * DPI / 72 * 1.35)
        tall = max(picture.shape[0] for picture in row)
        for j, picture in enumerate(row):
            x = left + j * (cell + gap) + (cell - picture.shape[1]) // 2
            placed.append((x, y + (tall - picture.shape[0]) // 2, picture))
        y += tall + 4
        if captions is not None:
            y += below([[fit(text, cell + gap - 4, SMALL) for text in lines] for lines in captions[i]])
        y += 8
    height = y - 8 + border
    canvas = np.full((height, width, 3), 255, np.uint8)
    for x, top, picture in placed:
        canvas[top : top + picture.shape[0], x : x + picture.shape[1]] = picture
    figure = new_figure(width / DPI, height / DPI, layout=None)
    ax = figure.add_axes((0, 0, 1, 1))  # unlike `figimage`, in proportion at every resolution
    ax.imshow(canvas, aspect="auto", interpolation="nearest")
    ax.set_axis_off()
    for x, y, text, size, weight, align in texts:
        figure.text(
            x / width, 1 - y / height, text, fontsize=size, fontweight=weight, color=INK, ha=align, va="top",
            **verbatim(),
        )  # fmt: skip
    return figure


def _enlarge(image: Image, cell: int) -> Image:
    """uint8 [h, w, 3] that fits a square cell: enlarged by a whole factor, or shrunk with a good filter."""
    array = np.ascontiguousarray(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0))
    side = max(array.shape[:2])
    if side <= cell:
        return array.repeat(cell // side, 0).repeat(cell // side, 1)
    height, width = (max(1, round(s * cell / side)) for s in array.shape[:2])
    return np.asarray(Pillow.fromarray(array).resize((width, height), Pillow.Resampling.LANCZOS))


def filters_picture(weights: NDArray[np.float32], kept: NDArray[np.bool_]) -> bytes:
    """A layer's filters as a PNG: a tile per input channel, blue where a weight is positive, red where it is negative,
    white near 0, dark where it was removed.

    Args:
        weights: float [O, C, h, w]; kept: bool, the same shape, true where a weight is kept. The first 64 filters and
            3 channels are shown.
    """
    values, there = np.nan_to_num(weights[:_MOST, :3]), kept[:_MOST, :3]
    strength = np.abs(values) / max(float(np.abs(values[there]).max(initial=0.0)), 1e-12)
    full = np.where((values > 0)[..., None], _POSITIVE, _NEGATIVE)
    colours = np.where(there[..., None], 1 + strength[..., None] * (full - 1), _REMOVED)
    count, channels, height, width = there.shape
    # One blank cell between the tiles of a filter, two between filters.
    wide, columns = channels * (width + 1) - 1, min(count, _COLUMNS)
    canvas = np.ones((-(-count // columns) * (height + 2) - 2, columns * (wide + 2) - 2, 3))
    for place in range(count):
        top, left = place // columns * (height + 2), place % columns * (wide + 2)
        for channel in range(channels):
            start = left + channel * (width + 1)
            canvas[top : top + height, start : start + width] = colours[place, channel]
    pixels = (255 * canvas.clip(0, 1)).round().astype(np.uint8).repeat(_CELL, 0).repeat(_CELL, 1)
    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def filters_chart(picture: Path) -> svg.Chart | None:
    """The picture of `filters_picture` as a chart, in the colours of a page, which may be dark.

    None if there is no picture, if it is damaged, or if it has too many weights for a page.
    """
    try:
        with Pillow.open(picture) as image:
            pixels = np.asarray(image.convert("RGB"))[_CELL // 2 :: _CELL, _CELL // 2 :: _CELL] / 255
    except (OSError, SyntaxError, ValueError):  # the last two are Pillow's for chunks of a PNG
        return None
    if not pixels.size or pixels.shape[0] * pixels.shape[1] > _MOST_WEIGHTS:
        return None
    gone = np.abs(pixels - _REMOVED).max(axis=2) < 0.01
    positive = pixels[..., 2] >= pixels[..., 0]
    # A colour is white, less its strength times what the full colour lacks of it.
    lacks = np.where(positive[..., None], 1 - _POSITIVE, 1 - _NEGATIVE)
    strength = ((1 - pixels) * lacks).sum(axis=2) / (lacks**2).sum(axis=2)
    level = np.where(gone, 0, (_LEVELS * strength).round().astype(int)) * np.where(positive, 1, -1)
    about = "A tile per filter and input channel, a square per weight; removed weights are grey."
    chart = svg.Chart("filters", "Filters of the first layer", about, svg.WIDTH * pixels.shape[0] / pixels.shape[1])
    chart.parts.append(f'<g transform="scale({svg.WIDTH / pixels.shape[1]:.4f})" shape-rendering="crispEdges">')
    for place in sorted(set(level[level != 0].tolist())):
        look = f'class="{"f1" if place > 0 else "f2"}" fill-opacity="{abs(place) / _LEVELS:.2f}"'
        chart.parts.append(f'<path d="{_squares(level == place)}" {look}/>')
    if gone.any():
        chart.parts.append(f'<path d="{_squares(gone)}" class="gone"/>')
    chart.parts.append("</g>")
    return chart


def _squares(where: NDArray[np.bool_]) -> str:
    """The path of a square for each true cell, in units of a cell; those beside each other are one."""
    steps = []
    for y, row in enumerate(where.tolist()):
        x = 0
        for filled, run in groupby(row):
            wide = len(list(run))
            if filled:
                steps.append(f"M{x} {y}h{wide}v1h-{wide}z")
            x += wide
    return "".join(steps)
