"""The common style of figures: colours, sizes, text that fits, and atomic writing of files.

Figures are drawn with matplotlib's object interface on the Agg canvas. Nothing here reads or writes pyplot's state or
the user's rcParams beyond what matplotlib itself does, so figures look alike everywhere and may be drawn in threads.
Sizes are chosen for a phone: a figure is 960 pixels wide, and its smallest text stays readable at 380.
"""

from __future__ import annotations

import functools
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kitae.errors import require
from kitae.files import write_atomically
from kitae.reporting.svg import elided, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Image = NDArray[np.uint8]

DPI = 150
WIDTH = 6.4  # inches

INK, MUTED, PAPER = "#1f2933", "#5b6770", "#ffffff"

TITLE, LABEL, SMALL = 13.0, 11.0, 9.5  # points

# DejaVu comes with matplotlib; the others are tried where the system has them, for names in other scripts.
_FAMILIES = (
    "DejaVu Sans", "Noto Sans CJK JP", "Noto Sans JP", "IPAGothic", "Hiragino Sans", "Yu Gothic", "Meiryo",
    "MS Gothic", "Microsoft YaHei", "PingFang SC", "WenQuanYi Zen Hei", "Malgun Gothic", "Noto Sans Devanagari",
    "Noto Sans Thai", "Arial Unicode MS",
)  # fmt: skip


@functools.cache
def _figure_class() -> type[Figure]:
    """A figure that notebooks show even where pyplot was never imported."""
    require("matplotlib")
    from matplotlib.figure import Figure

    class Shown(Figure):
        def _repr_png_(self) -> bytes:
            return png(self)

        def __reduce__(self) -> tuple[Any, ...]:  # for pickle, which does not find a class inside a function
            return _empty_figure, (), self.__getstate__()

    return Shown


def _empty_figure() -> Figure:
    kind = _figure_class()
    return kind.__new__(kind)


def new_figure(
    width: float = WIDTH, height: float = 4.0, title: str = "", *, layout: str | None = "constrained"
) -> Figure:
    """An empty white figure of `width` x `height` inches with its title at the upper left."""
    figure = _figure_class()(figsize=(width, height), dpi=DPI, facecolor=PAPER, layout=layout)  # type: ignore[arg-type]
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(w_pad=0.06, h_pad=0.09, hspace=0.02)  # type: ignore[call-arg]
    if title:
        lines = wrap(title, int(width * DPI * 0.96), TITLE, bold=True)
        figure.suptitle(
            "\n".join(lines), x=0.012, ha="left", fontsize=TITLE, fontweight="bold", color=INK, **verbatim()
        )
    return figure


# ---------------------------------------------------------------------------------------------------------------- text


@functools.cache
def _families() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    there = {entry.name for entry in fontManager.ttflist}
    return tuple(name for name in _FAMILIES if name in there) or ("DejaVu Sans",)


@functools.cache
def _drawable(character: str) -> bool:
    from matplotlib.font_manager import findfont, get_font

    return any(get_font(findfont(name)).get_char_index(ord(character)) for name in _families())


def verbatim() -> dict[str, Any]:
    """Properties of a text that may show a name: "$a$" is no formula, and is drawn in fonts that have it."""
    return {"parse_math": False, "usetex": False, "fontfamily": list(_families())}


def plain(text: object) -> str:
    """One line of text that the fonts here can draw: a missing glyph is a box."""
    return "".join(c if _drawable(c) else "□" for c in one_line(text))


@functools.lru_cache(maxsize=4096)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """Width in pixels of one line of text at `size` points."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    font = FontProperties(family=list(_families()), size=size, weight="bold" if bold else "normal")
    renderer: Any = RendererAgg(1, 1, DPI)  # type: ignore[no-untyped-call]
    width: float = renderer.get_text_width_height_descent(text, font, ismath=False)[0]
    return width


def fit(text: object, width: float, size: float, *, bold: bool = False) -> str:
    """`text` as one line of at most `width` pixels, elided in the middle if it is longer."""
    return elided(plain(text), lambda line: text_width(line, size, bold) <= width)


def wrap(text: object, width: float, size: float, *, bold: bool = False) -> list[str]:
    """`text` broken between words into at most two lines of `width` pixels; what does not fit is elided."""
    words, out = plain(text).split(" "), [""]
    for position, word in enumerate(words):
        longer = f"{out[-1]} {word}".strip()
        if not out[-1] or text_width(longer, size, bold) <= width:
            out[-1] = longer
        elif len(out) < 2:
            out.append(word)
        else:
            out[-1] = " ".join([out[-1], *words[position:]])
            break
    return [fit(line, width, size, bold=bold) for line in out]


# --------------------------------------------------------------------------------------------------------------- files


def png(figure: Figure) -> bytes:
    """`figure` as the bytes of a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set(**verbatim())
    canvas = FigureCanvasAgg(figure)
    buffer = BytesIO()
    # Without the version string, the same picture has the same bytes.
    canvas.print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> Path:
    """Write `figure` as a PNG to `path`, atomically. If that fails, a KitaeError names the file."""
    write_atomically(path, png(figure))
    return path
