"""run.plot: figures of a run, to look at in a notebook or to save: the charts of its page, drawn by matplotlib."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from kitae.console import printable
from kitae.errors import KitaeError
from kitae.reporting import charts
from kitae.reporting.figures import grid_figure
from kitae.reporting.results import RunRecord, read_epochs
from kitae.reporting.samples import Samples
from kitae.reporting.style import DPI, MUTED, SMALL, WIDTH, Image, fit, new_figure, plain, text_width, verbatim
from kitae.reporting.svg import MARGIN, SIZE, Chart, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kitae.run import Run


_WIDEST = 40.0  # inches: 144 MB of pixels; 1,000 classes at 0.13 inches each would have 1.6 GB


class Plots:
    """Figures of a run; each is a matplotlib Figure that a notebook shows, and that `figure.savefig` writes.

    Drawn without pyplot, so no figure is left open and the user's rcParams stay as they are.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def __repr__(self) -> str:
        return printable(f"Plots({self._run.path}): curves(), confusion(), calibration(), mistakes()")

    def curves(self) -> Figure:
        """Loss, accuracy and learning rate over the epochs, the best epoch marked.

        "clean" is the accuracy on training images without augmentation.

        Raises:
            KitaeError: no epoch has ended yet.
        """
        rows = read_epochs(self._run)
        if not rows:
            raise KitaeError(f"{self._run.path}: no epoch has ended yet")
        return figure_of(charts.curves(rows, self._run.best_epoch()))

    def confusion(self) -> Figure:
        """Which class is predicted as which, on test, or on validation where test was not opened.

        Raises:
            KitaeError: the run is not finished.
        """
        found = self._finished().evaluation
        chart = charts.confusion(found.measured, found.where, whole=True)
        if chart is None:
            raise KitaeError(f"{self._run.path}: evaluation.json has no confusion matrix")
        note = "Share of each true class (%), and images: right in blue, wrong in orange"
        width = min(max(WIDTH, 0.13 * len(found.measured.classes) + 2), _WIDEST)
        return figure_of(chart, found.where, note, width=width)

    def calibration(self) -> Figure:
        """Accuracy on test against the confidence of the predictions, before and after the temperature.

        With test-time augmentation only after it.

        Raises:
            KitaeError: the run is not finished, did not open test, or its predictions.parquet was deleted.
        """
        record = self._finished()
        if record.reliability is None:
            raise KitaeError(f"{self._run.path}: has no predictions on test (predictions.parquet)")
        chart = charts.reliability(*record.reliability)
        return figure_of(chart, record.evaluation.where, f"Expected error {100 * record.reliability[0].error:.2f} %")

    def mistakes(self, most: int = 12) -> Figure:
        """The test images that the model was surest about and got wrong; of a cross-validation, the out-of-fold ones.

        Args:
            most: how many to draw, at least 1.

        Raises:
            KitaeError: there is no mistake, the run is not finished, did not open test, or its images are not in the
                cache any more.
        """
        if most < 1:
            raise KitaeError(f"most: must be at least 1, not {most}")
        record = self._finished()
        found, samples = record.predicted, Samples.find(record)
        if found is None or samples is None or not len(samples.test):
            raise KitaeError(f"{self._run.path}: has no predictions on test, or its images are not in the cache")
        places = found.mistakes(most)
        if not places:
            raise KitaeError(f"{self._run.path}: has no mistake on {record.evaluation.where}")
        names = record.facts.classes
        shown = [
            (samples.tested(k), names[found.predicted[k]], names[found.label[k]], float(found.confidence[k]))
            for k in places
        ]
        return _worst_mistakes(shown, f"Most confident mistakes, {record.evaluation.where}")

    def _finished(self) -> RunRecord:
        self._run.require_finished()
        return RunRecord.open(self._run)


def figure_of(chart: Chart, where: str = "", note: str = "", *, width: float = WIDTH) -> Figure:
    """A chart as a matplotlib figure in the looks of a page, under its title.

    Args:
        where: follows the title. note: a line below it. width: in inches.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Circle, Patch, Polygon

    root = ElementTree.fromstring(one_line(chart.__html__()))  # XML has no control characters
    _, _, wide, tall = map(float, root.attrib["viewBox"].split())
    unit = width / (wide + 2 * MARGIN)  # inches
    below = (tall + 2 * MARGIN) * unit
    height = below + (0.65 if note else 0.4)
    figure = new_figure(width, height, f"{chart.title}, {where}" if where else chart.title, layout=None)
    figure.texts[0].set_y(1 - 0.1 / height)
    figure.text(0.012, 1 - 0.45 / height, note, fontsize=SMALL, color=MUTED, va="top", **verbatim())
    ax = figure.add_axes((0, 0, 1, below / height), xlim=(-MARGIN, wide + MARGIN), ylim=(tall + MARGIN, -MARGIN))
    ax.set_axis_off()
    for group in root.iter("g"):
        for mark in group:
            mark.set("opacity", group.attrib["fill-opacity"])
    patches: list[Patch] = []
    for mark in root.iter():
        if mark.tag in ("svg", "title", "desc", "g", "tspan"):
            continue
        look = _look(mark.tag, mark.get("class", ""))
        at = {name: float(value) for name, value in mark.attrib.items() if re.fullmatch(r"-?[\d.]+", value)}
        if mark.tag == "text":
            words = "".join(f"{'' if part.tag == 'title' else part.text or ''}{part.tail or ''}" for part in mark)
            turned = ("transform" in mark.attrib) * 90
            ax.text(
                at["x"], at["y"], plain((mark.text or "") + words), color=look["fill"], rotation=turned,
                rotation_mode="anchor", fontsize=at.get("font-size", SIZE) * unit * 72,
                fontweight="bold" if "font-weight" in look else "normal",
                ha={"end": "right", "middle": "center"}.get(mark.get("text-anchor", ""), "left"), **verbatim(),
            )  # fmt: skip
            continue
        if mark.tag == "circle":
            patches.append(Circle((at["cx"], at["cy"]), at["r"]))
        elif mark.tag == "rect":
            x, y, right, bottom = at["x"], at["y"], at["x"] + at["width"], at["y"] + at["height"]
            patches.append(Polygon([(x, y), (right, y), (right, bottom), (x, bottom)]))
        elif mark.tag == "line":
            patches.append(Polygon([(at["x1"], at["y1"]), (at["x2"], at["y2"])], closed=False))
        else:
            numbers = [float(number) for number in re.findall(r"-?[\d.]+", mark.attrib["d"])]
            points = list(zip(numbers[::2], numbers[1::2], strict=True))
            patches.append(Polygon(points, closed=mark.attrib["d"].endswith("Z")))
        patches[-1].set(
            facecolor=look.get("fill", "none"), edgecolor=look.get("stroke", "none"),
            alpha=float(look.get("opacity", at.get("opacity", 1))),
            linewidth=float(look.get("stroke-width", "1").removesuffix("px")) * unit * 72,
            linestyle=(0, (4, 3)) if "stroke-dasharray" in look else "-",
        )  # fmt: skip
    ax.add_collection(PatchCollection(patches, match_original=True), autolim=False)
    return figure


@functools.cache
def _look(tag: str, classes: str) -> dict[str, str]:
    """What the style sheet of pages says of an element, in its light colours."""
    sheet = resources.files("kitae.reporting").joinpath("templates/chart.css").read_text(encoding="utf-8")
    for name, colour in re.findall(r"--([\w-]+): (#\w+)", sheet):
        sheet = sheet.replace(f"var(--{name})", colour)
    look: dict[str, str] = {}
    for selectors, rule in re.findall(r"(svg [^{]*)\{([^}]*)\}", sheet):
        for selector in selectors.split(","):
            match = re.fullmatch(r'svg (\w*)((?:\.\w+)*)(?:\[class\^="(\w)"\])?', selector.strip())
            if (
                match
                and match[1] in ("", tag)
                and {*match[2].split(".")[1:]} <= {*classes.split()}
                and classes.startswith(match[3] or "")
            ):
                look |= dict(re.findall(r"([\w-]+): ([^;]+)", rule))
    return look


def _worst_mistakes(shown: Sequence[tuple[Image, str, str, float]], title: str) -> Figure:
    """Mistakes in rows of four: of each the image, the prediction, the true class and the confidence."""
    columns = 4
    room = int(WIDTH * DPI) / columns - 20 - text_width("said  100 %", SMALL)
    rows = [shown[i : i + columns] for i in range(0, len(shown), columns)]
    lines = [[(f"said {fit(said, room, SMALL)} {100 * sure:.0f} %", f"is {true}") for _, said, true, sure in row]
             for row in rows]  # fmt: skip
    return grid_figure([[image for image, *_ in row] for row in rows], captions=lines, title=title, columns=columns)
