"""Pictures in rows, and pixels on a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kitae.reporting.style import DPI, INK, LABEL, SMALL, TITLE, WIDTH, Image, fit, new_figure, save, wrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def image_grid(
    rows: Sequence[Sequence[Image | None]],
    row_titles: Sequence[str] | None,
    column_titles: Sequence[str] | None,
    path: str | Path,
    *,
    captions: Sequence[Sequence[str | Sequence[str]]] | None = None,
    title: str = "",
    columns: int | None = None,
) -> Path:
    """Write `grid_figure` to a PNG file."""
    return save(grid_figure(rows, row_titles, column_titles, captions=captions, title=title, columns=columns), path)


def grid_figure(
    rows: Sequence[Sequence[Image | None]],
    row_titles: Sequence[str] | None,
    column_titles: Sequence[str] | None,
    *,
    captions: Sequence[Sequence[str | Sequence[str]]] | None = None,
    title: str = "",
    columns: int | None = None,
) -> Figure:
    """Images in rows, each row under its title, column titles on top; small images are enlarged without blurring.

    Args:
        rows: uint8 images [C, H, W] (C = 1 or 3) or [H, W], of any sizes; None leaves a cell empty.
        row_titles: one a row; column_titles: one a column of the longest row.
        captions: one a cell below its image: a line, or up to two.
        columns: cells the width is divided into, at least the longest row (the default).
    Raises:
        ValueError: no image, an image of another shape or type, titles or captions that do not match the rows.
    """
    wide = max([len(row) for row in rows] + [columns or 0], default=0)
    if wide == 0 or not any(image is not None for row in rows for image in row):
        raise ValueError("no image to draw")
    if row_titles is not None and len(row_titles) != len(rows):
        raise ValueError(f"{len(row_titles)} row titles for {len(rows)} rows")
    if column_titles is not None and len(column_titles) != max(len(row) for row in rows):
        raise ValueError(f"{len(column_titles)} column titles for {max(len(row) for row in rows)} columns")
    if captions is not None and [len(c) for c in captions] != [len(row) for row in rows]:
        raise ValueError("captions must have the shape of rows")

    gap, border, line = 8, 12, int(SMALL * DPI / 72 * 1.35)
    cell = max(56, min(300, (int(WIDTH * DPI) - 2 * border + gap) // wide - gap))
    pictures = [[None if image is None else _enlarge(image, cell) for image in row] for row in rows]
    cell = max(max(p.shape[:2]) for row in pictures for p in row if p is not None)  # whole factors may leave room
    if wide > 1:
        gap = max(gap, min(32, (int(WIDTH * DPI) - 2 * border - wide * cell) // (wide - 1)))
    width = max(int(WIDTH * DPI), wide * (cell + gap) - gap + 2 * border)
    texts: list[tuple[int, int, str, float, str, str]] = []  # x, y (top, pixels), text, size, colour, horizontal align
    placed: list[tuple[int, int, Image]] = []
    y = border
    if title:
        for text in wrap(title, width - 2 * border, TITLE, bold=True):
            texts.append((border, y, text, TITLE, "bold", "left"))
            y += int(TITLE * DPI / 72 * 1.3)
        y += 6
    if column_titles is not None:
        wrapped = [wrap(t, cell, SMALL) for t in column_titles]
        for j, lines in enumerate(wrapped):
            for n, text in enumerate(lines):
                texts.append((border + j * (cell + gap) + cell // 2, y + n * line, text, SMALL, "normal", "center"))
        y += line * max(len(lines) for lines in wrapped) + 4
    for i, row in enumerate(pictures):
        if row_titles is not None and str(row_titles[i]):
            y += 8 if i else 0
            texts.append((border, y, fit(row_titles[i], width - 2 * border, LABEL, bold=True), LABEL, "bold", "left"))
            y += int(LABEL * DPI / 72 * 1.35)
        tall = max([p.shape[0] for p in row if p is not None], default=0)
        for j, picture in enumerate(row):
            if picture is not None:
                x = border + j * (cell + gap) + (cell - picture.shape[1]) // 2
                placed.append((x, y + (tall - picture.shape[0]) // 2, picture))
        y += tall + 4
        if captions is not None:
            most = 0
            for j, caption in enumerate(captions[i]):
                lines = [caption] if isinstance(caption, str) else list(caption)[:2]
                most = max(most, len(lines))
                for n, text in enumerate(lines):
                    where = (border + j * (cell + gap) + cell // 2, y + n * line)
                    texts.append((*where, fit(text, cell + gap - 4, SMALL), SMALL, "normal", "center"))
            y += most * line + 4
        y += 8
    canvas = np.full((y - 8 + border, width, 3), 255, np.uint8)
    for x, top, picture in placed:
        canvas[top : top + picture.shape[0], x : x + picture.shape[1]] = picture
    return _pasted(canvas, texts)


def _enlarge(image: Image, cell: int) -> NDArray[np.uint8]:
    """uint8 [h, w, 3] that fits a square cell: enlarged by a whole factor, or shrunk with a good filter."""
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] not in (1, 3) or 0 in array.shape:
        raise ValueError(f"an image must be uint8 [C, H, W] with C 1 or 3, not {array.dtype} {array.shape}")
    array = np.ascontiguousarray(np.broadcast_to(array, (3, *array.shape[1:])).transpose(1, 2, 0))
    side = max(array.shape[:2])
    if side <= cell:
        factor = cell // side
        return array.repeat(factor, 0).repeat(factor, 1)
    from PIL import Image as Pillow

    height, width = (max(1, round(s * cell / side)) for s in array.shape[:2])
    return np.asarray(Pillow.fromarray(array).resize((width, height), Pillow.Resampling.LANCZOS))


def _pasted(pixels: NDArray[np.uint8], texts: Sequence[tuple[int, int, str, float, str, str]]) -> Figure:
    height, width = pixels.shape[:2]
    figure = new_figure(width / DPI, height / DPI, layout=None)
    figure.figimage(pixels, 0, 0, origin="upper")
    for x, y, text, size, weight, align in texts:
        figure.text(x / width, 1 - y / height, text, fontsize=size, fontweight=weight, color=INK, ha=align, va="top")
    return figure
