"""Every figure: a pure function from plain data to one PNG, written whole or not at all; each returns the path.

Proportions (accuracy, confidence, sparsity, probabilities) are in [0, 1] and drawn in percent; sizes are in bytes,
times in seconds or milliseconds as named. Images are uint8 [C, H, W] with C = 1 or 3, or [H, W].
A wrong argument is the caller's bug and raises ValueError; a file that cannot be written raises KitaeError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kitae.errors import TrainingError
from kitae.reporting.style import (
    BLUE,
    DPI,
    GREEN,
    GRID,
    INK,
    LABEL,
    MARKERS,
    MUTED,
    ORANGE,
    PAPER,
    SERIES,
    SKY,
    SMALL,
    TITLE,
    VERMILLION,
    WIDTH,
    dress,
    finite,
    fit,
    labels,
    legend,
    new_figure,
    number,
    percent,
    save,
    size_text,
    text_width,
    wrap,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kitae.run import Run

Row = Mapping[str, Any]
Image = NDArray[np.uint8]


# --------------------------------------------------------------------------------------------------------------- a run


class Mistake(Protocol):
    """A wrong prediction: true and predicted class by number, and the probability given to the latter."""

    @property
    def label(self) -> int: ...
    @property
    def predicted(self) -> int: ...
    @property
    def confidence(self) -> float: ...


def draw_run(
    run: Run, evaluation: Mapping[str, Any], mistakes: Sequence[tuple[Image, Mistake]] = ()
) -> dict[str, Path]:
    """Draw into the run's folder of figures whatever can be drawn of it by now.

    Args:
        evaluation: as evaluation.json; empty while the run is not finished.
        mistakes: the worst ones with their images; none leaves a picture of them that is there already.

    Returns:
        The pictures that are there, by what they show: curves, confusion, per_class, calibration, mistakes, smoothing.
    """
    there: dict[str, Path] = {}
    rows = run.metrics()
    split = "test" if "test" in evaluation else "val"
    measured = evaluation.get(split, {})
    if rows:
        there["curves"] = draw_training_curves(rows, run.figures / "curves.png", best_epoch=run.best_epoch())
    if "confusion" in measured:
        file = run.figures / "confusion.png"
        there["confusion"] = draw_confusion(
            measured["confusion"], run.classes, file, title=f"Confusion matrix, {split}"
        )
    if measured.get("per_class"):
        file = run.figures / "per-class.png"
        there["per_class"] = draw_per_class(measured["per_class"], file, title=f"Accuracy by class, {split}")
    table = predictions(run) if "test" in evaluation else None
    if table is not None:
        temperature = float(evaluation.get("temperature", 1.0))
        confidence = np.asarray(table["confidence"].to_numpy(), float)
        correct = np.asarray(table["predicted"].to_pylist()) == np.asarray(table["label"].to_pylist())
        before = None
        if (
            abs(temperature - 1) > 1e-3
        ):  # p to the power T, normalised, is what the logits gave before they were divided
            shares = np.array(table["probabilities"].to_pylist(), float)
            power = np.exp(temperature * np.log(np.maximum(shares, 1e-38)))
            before = (power / power.sum(axis=1, keepdims=True)).max(axis=1)
        there["calibration"] = draw_reliability(
            confidence, correct, run.figures / "calibration.png", before=before, ece=measured.get("ece"),
            title="Calibration, test",
        )  # fmt: skip
    file = run.figures / "mistakes.png"
    if mistakes:
        names = run.classes
        there["mistakes"] = draw_worst_mistakes(
            [image for image, _ in mistakes],
            [names[m.predicted] for _, m in mistakes],
            [names[m.label] for _, m in mistakes],
            [m.confidence for _, m in mistakes],
            file,
            title="Most confident mistakes, test",
        )
    elif file.is_file():
        there["mistakes"] = file
    if run.recipe.train.label_smoothing > 0 and evaluation:
        names = run.classes
        there["smoothing"] = draw_label_smoothing(
            run.figures / "label-smoothing.png",
            classes=len(names),
            smoothing=run.recipe.train.label_smoothing,
            names=names if len(names) <= 12 else None,
        )
    return there


def predictions(run: Run) -> Any:
    """The run's table of predictions, or None where its file was deleted to save room."""
    try:
        return run.predictions()
    except TrainingError:
        return None


# ------------------------------------------------------------------------------------------------------------ training


def draw_training_curves(
    rows: Sequence[Row], path: str | Path, *, best_epoch: int | None = None, title: str = "Training curves"
) -> Path:
    """Loss, accuracy and learning rate over the epochs, the best epoch marked.

    Args:
        rows: the lines of metrics.jsonl, at least one; whatever a line lacks is left out.
        best_epoch: a value of `epoch` in `rows`; None takes the highest val_accuracy.
    """
    if not rows:
        raise ValueError("no epoch to draw")
    epochs = finite(row.get("epoch", i + 1) for i, row in enumerate(rows))
    series = {key: finite(row.get(key) for row in rows) for key in {key for row in rows for key in row}}
    if best_epoch is None and np.isfinite(series.get("val_accuracy", [math.nan])).any():
        best_epoch = int(epochs[int(np.nanargmax(series["val_accuracy"]))])

    panels: list[tuple[str, list[tuple[str, str, str, str]]]] = [
        ("Loss", [("train_loss", "train", BLUE, "o"), ("val_loss", "validation", VERMILLION, "s")]),
        (
            "Accuracy (%)",
            [
                ("train_accuracy", "train", BLUE, "o"),
                ("train_clean_accuracy", "train, not augmented", SKY, "^"),
                ("val_accuracy", "validation", VERMILLION, "s"),
            ],
        ),
        ("Learning rate", [("learning_rate", "", GREEN, "o")]),
    ]
    shown = [
        (name, lines) for name, lines in panels if any(np.isfinite(series.get(k, [math.nan])).any() for k, *_ in lines)
    ]
    if not shown:
        raise ValueError("the rows hold neither loss nor accuracy nor learning rate")

    figure = new_figure(height=0.7 + sum(1.5 if name == "Learning rate" else 2.5 for name, _ in shown), title=title)
    ratios = [1.0 if name == "Learning rate" else 1.9 for name, _ in shown]
    grid = figure.subplots(len(shown), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for ax, (name, lines) in zip(grid, shown, strict=True):
        dress(ax, heading=name)
        for key, label, colour, marker in lines:
            values = series.get(key)
            if values is None or not np.isfinite(values).any():
                continue
            ax.plot(
                epochs,
                values,
                color=colour,
                linewidth=1.8,
                label=label or None,
                marker=marker if len(rows) <= 30 else None,
                markersize=4,
            )
        if best_epoch is not None:
            ax.axvline(best_epoch, color=INK, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        if name == "Accuracy (%)":
            ax.yaxis.set_major_formatter(FuncFormatter(percent))
            at = epochs.index(best_epoch) if best_epoch in epochs else None
            best = series.get("val_accuracy", [])[at] if at is not None and "val_accuracy" in series else math.nan
            if at is not None and math.isfinite(best):
                ax.plot([epochs[at]], [best], "*", color=INK, markersize=12, zorder=5, clip_on=False)
        else:
            ax.yaxis.set_major_formatter(FuncFormatter(number))
        if name != "Learning rate":
            legend(ax)
    last = grid[-1]
    last.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, steps=[1, 2, 5, 10]))
    if len(epochs) == 1:
        last.set_xlim(epochs[0] - 1, epochs[0] + 1)
    note = ""
    if best_epoch is not None:
        note = f"  (dashed: best epoch {best_epoch})"
    last.set_xlabel("Epoch" + note, fontsize=LABEL, color=INK)
    return save(figure, path)


# ---------------------------------------------------------------------------------------------------------- evaluation


def draw_confusion(
    confusion: ArrayLike, classes: Sequence[str], path: str | Path, *, title: str = "Confusion matrix"
) -> Path:
    """Who is taken for whom: colour is the share of the true class (row); cells tell share and count where they fit.

    Args:
        confusion: integer [K, K], rows true, columns predicted. Up to 100 classes are named, beyond that numbered.
        classes: K names.
    """
    counts = np.asarray(confusion)
    k = len(classes)
    if counts.shape != (k, k) or k == 0:
        raise ValueError(f"confusion is {counts.shape}, classes are {k}")
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros(counts.shape, float), where=totals > 0)

    cell = min(1.0, max(5.0 / k, 0.13 if k <= 100 else 13.0 / k))  # inches
    size = LABEL - 1 if k <= 12 else max(6.0, min(9.5, cell * 60))
    names = labels(classes, (1.3 if k <= 30 else 1.0) * DPI, size)
    if k > 100:
        names = [str(i) if i % (k // 50) == 0 else "" for i in range(k)]
    margin = max(text_width(name, size) for name in names) / DPI
    upright = max(text_width(name, size) for name in names) / DPI > cell * 0.92
    left, bottom = margin + 0.5, (margin if upright else 0.2) + 0.5
    right, top = 0.25, 0.75
    side = cell * k
    width = max(WIDTH, left + side + right)
    left += (width - left - side - right) / 2
    height = bottom + side + top

    figure = new_figure(width, height, title, layout=None)
    figure.texts[0].set_y(1 - 0.1 / height)
    ax = figure.add_axes((left / width, bottom / height, side / width, side / height))
    dress(ax, grid="")
    import matplotlib

    # Square root, so that rare mistakes are seen; mistakes in another colour than hits.
    strength = np.sqrt(share)
    hits, mistakes = matplotlib.colormaps["Blues"](strength * 0.9), matplotlib.colormaps["Oranges"](strength * 0.9)
    colours = np.where(np.eye(k, dtype=bool)[..., None], hits, mistakes)
    colours[counts == 0] = 1.0
    ax.imshow(colours, interpolation="nearest", aspect="auto")
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color(GRID)
    ax.tick_params(length=0, pad=3)
    ax.set_xticks(range(k), names, fontsize=size, rotation=90 if upright else 0)
    ax.set_yticks(range(k), names, fontsize=size)
    if k <= 30:
        ax.set_xticks(np.arange(k - 1) + 0.5, minor=True)
        ax.set_yticks(np.arange(k - 1) + 0.5, minor=True)
        ax.grid(True, which="minor", color=GRID, linewidth=0.6)
        ax.tick_params(which="minor", length=0)
    ax.set_xlabel("Predicted", fontsize=LABEL, color=INK)
    ax.set_ylabel("True", fontsize=LABEL, color=INK)
    subtitle = "Share of each true class: right in blue, wrong in orange"
    subtitle += "; %, and images below" if k <= 12 else " (%)" if k <= 20 else ""
    figure.text(0.012, 1 - 0.5 / height, subtitle, fontsize=SMALL, color=MUTED)
    if k <= 20:
        for i, j in np.ndindex(k, k):
            if counts[i, j] == 0:
                continue
            ink = PAPER if strength[i, j] > (0.72 if i == j else 0.85) else INK
            text = f"{100 * share[i, j]:.0f}" if share[i, j] >= 0.005 else "<1"
            if k <= 12:
                ax.text(j, i - 0.14, f"{text}%", ha="center", va="center", fontsize=min(11.0, cell * 21), color=ink)
                ax.text(
                    j, i + 0.24, f"{counts[i, j]}", ha="center", va="center", fontsize=min(9.0, cell * 15), color=ink
                )
            else:
                ax.text(j, i, text, ha="center", va="center", fontsize=max(6.0, cell * 24), color=ink)
    return save(figure, path)


def draw_reliability(
    confidence: ArrayLike,
    correct: ArrayLike,
    path: str | Path,
    *,
    before: ArrayLike | None = None,
    ece: float | None = None,
    bins: int = 15,
    title: str = "Calibration",
) -> Path:
    """Accuracy against confidence in equal-width bins, and how many predictions each bin holds (Guo et al. 2017).

    Args:
        confidence: float [N] in [0, 1], the probability of the predicted class.
        correct: bool [N].
        before: float [N], the same before temperature scaling; drawn as a line.
        ece: expected calibration error; told in the title where given.
    """
    p, hit = np.asarray(confidence, float).ravel(), np.asarray(correct, bool).ravel()
    if p.shape != hit.shape or p.size == 0:
        raise ValueError(f"confidence is {p.shape}, correct is {hit.shape}")
    if ece is not None:
        title = f"{title}: expected error {100 * ece:.2f} %"
    figure = new_figure(height=6.2, title=title)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    edges = np.linspace(0, 1, bins + 1)
    centre, _, accuracy, count = _bins(p, hit, edges)
    filled = count > 0
    low, high = _wilson(accuracy[filled] * count[filled], count[filled])

    dress(top, ylabel="Accuracy (%)", grid="both")
    top.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfect")
    top.bar(
        centre[filled], accuracy[filled], width=0.94 / bins, color=BLUE, alpha=0.85, label="accuracy, 95 % interval"
    )
    top.errorbar(
        centre[filled],
        accuracy[filled],
        yerr=[accuracy[filled] - low, high - accuracy[filled]],
        fmt="none",
        ecolor=INK,
        elinewidth=1,
        capsize=2,
    )
    if before is not None:
        _, mean_before, accuracy_before, count_before = _bins(np.asarray(before, float).ravel(), hit, edges)
        there = count_before > 0
        top.plot(
            mean_before[there],
            accuracy_before[there],
            color=VERMILLION,
            marker="s",
            markersize=4,
            linewidth=1.4,
            label="before temperature",
        )
    legend(top, loc="lower left")
    top.set_xlim(0, 1)
    top.set_ylim(0, 1.02)
    from matplotlib.ticker import FuncFormatter

    for axis in (top.yaxis, top.xaxis, bottom.yaxis):
        axis.set_major_formatter(FuncFormatter(percent))
    dress(bottom, xlabel="Confidence (%)", ylabel="Images (%)")
    bottom.bar(centre, count / count.sum(), width=0.94 / bins, color=MUTED)
    return save(figure, path)


def _bins(
    p: NDArray[np.float64], hit: NDArray[np.bool_], edges: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Centres, mean confidence, accuracy and count of bins (low, high]; a confidence of 0 falls into the first."""
    k = len(edges) - 1
    where = np.clip(np.searchsorted(edges, p, side="left") - 1, 0, k - 1)
    count = np.bincount(where, minlength=k)
    safe = np.maximum(count, 1)
    mean_p = np.bincount(where, weights=p, minlength=k) / safe
    accuracy = np.bincount(where, weights=hit.astype(float), minlength=k) / safe
    return (edges[:-1] + edges[1:]) / 2, mean_p, accuracy, count


def _wilson(hits: NDArray[np.float64], n: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    z = 1.959963984540054
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return np.minimum(centre - half, p), np.maximum(centre + half, p)


def draw_per_class(
    per_class: Mapping[str, Row], path: str | Path, *, limit: int = 40, title: str = "Accuracy by class"
) -> Path:
    """Accuracy of each class with its interval, lowest first; of more than `limit` classes the lowest ones.

    Args:
        per_class: class -> {accuracy, accuracy_interval: [low, high], count}, as in evaluation.json.
    """
    if not per_class:
        raise ValueError("no class to draw")
    ordered = sorted(per_class.items(), key=lambda item: (finite([item[1].get("accuracy")])[0], item[0]))
    shown = ordered[:limit]
    if len(shown) < len(ordered):
        title = f"{title}: the lowest {len(shown)} of {len(ordered)}"
    accuracy = np.array(finite(row.get("accuracy") for _, row in shown))
    low, high = _intervals(shown, accuracy)
    names = labels([name for name, _ in shown], 1.6 * DPI, LABEL - 1)
    row_height = 0.3 if len(shown) <= 20 else 0.24

    figure = new_figure(height=1.2 + row_height * len(shown), title=title)
    ax = dress(figure.subplots(), xlabel="Accuracy (%), 95 % interval", grid="x")
    y = np.arange(len(shown))
    ax.errorbar(accuracy, y, xerr=[accuracy - low, high - accuracy], fmt="none", ecolor=SKY, elinewidth=4)
    ax.plot(accuracy, y, "o", color=BLUE, markersize=6)
    total = sum(finite([row.get("count")])[0] for _, row in ordered)
    mean = (
        sum(finite([row.get("accuracy")])[0] * finite([row.get("count")])[0] for _, row in ordered) / total
        if total
        else math.nan
    )
    if math.isfinite(mean):
        ax.axvline(mean, color=INK, linewidth=1, linestyle=(0, (3, 3)), label=f"all images {100 * mean:.1f} %")
        legend(ax, loc="lower right")
    ax.set_yticks(y, names)
    ax.set_ylim(len(shown) - 0.4, -0.6)
    _percent_axis(ax, "x")
    return save(figure, path)


def _intervals(
    rows: Sequence[tuple[str, Row]], value: NDArray[np.float64], key: str = "accuracy_interval"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper bounds; where a row has none, the value itself."""
    low, high = value.copy(), value.copy()
    for i, (_, row) in enumerate(rows):
        pair = row.get(key)
        if pair is not None and len(pair) == 2:
            a, b = finite(pair)
            low[i], high[i] = np.fmin(a, value[i]), np.fmax(b, value[i])
    return low, high


def _percent_axis(ax: Axes, which: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(percent))


def draw_worst_mistakes(
    images: Sequence[Image],
    predicted: Sequence[str],
    true: Sequence[str],
    confidence: Sequence[float],
    path: str | Path,
    *,
    columns: int = 4,
    title: str = "Most confident mistakes",
) -> Path:
    """Images the model was surest about and wrong, each with what it said, how sure it was, and what is true."""
    if not len(images) == len(predicted) == len(true) == len(confidence) or not len(images):
        raise ValueError("images, predicted, true and confidence must be as many, and at least one")
    room = int(WIDTH * DPI) / columns - 20 - text_width("said  100 %", SMALL)
    captions = [
        (f"said {fit(p, room, SMALL)} {100 * c:.0f} %", f"is {t}")
        for p, t, c in zip(predicted, true, confidence, strict=True)
    ]
    rows = [list(images[i : i + columns]) for i in range(0, len(images), columns)]
    lines = [captions[i : i + columns] for i in range(0, len(images), columns)]
    return image_grid(rows, None, None, path, captions=lines, title=title, columns=columns)


# ------------------------------------------------------------------------------------------------------------- methods


def draw_label_smoothing(
    path: str | Path,
    *,
    classes: int = 10,
    smoothing: float = 0.1,
    names: Sequence[str] | None = None,
    title: str = "Hard against smoothed labels",
) -> Path:
    """The two target distributions, and the loss each gives as the model grows surer of the true class.

    The smoothed target is 1 - eps + eps/K for the true class and eps/K elsewhere (Szegedy et al. 2016, as torch does).
    Args:
        classes: K >= 2. names: K names for the first panel.
        smoothing: eps in (0, 1).
    """
    k, eps = classes, smoothing
    if k < 2 or not 0 < eps < 1 or (names is not None and len(names) != k):
        raise ValueError("at least 2 classes, as many names, and smoothing in (0, 1)")
    true = k // 3
    hard = np.eye(k)[true]
    smooth = (1 - eps) * hard + eps / k
    figure = new_figure(height=6.4, title=title)
    top, bottom = figure.subplots(2, 1)

    dress(top, heading="Target (%)")
    x = np.arange(k)
    top.bar(x - 0.2, hard, 0.38, color=ORANGE, label="hard")
    top.bar(x + 0.2, smooth, 0.38, color=BLUE, label=f"smoothed, ε = {eps:g}")
    top.set_ylim(0, 1.12)
    if k <= 12:
        for i in range(k):
            size = SMALL if k <= 10 else 8
            top.text(i + 0.2, smooth[i] + 0.015, f"{100 * smooth[i]:.3g}", ha="center", fontsize=size, color=INK)
    shown = labels(names, 0.9 * DPI, LABEL - 1) if names is not None else [str(i) for i in range(k)]
    slot = 5.4 / k * DPI
    upright = max(text_width(n, LABEL - 1) for n in shown) > slot * 0.9
    step = max(1, -(-k // 14))
    top.set_xticks(x[::step], shown[::step], rotation=90 if upright and names is not None else 0)
    if names is None:
        top.set_xlabel(f"Class (true: {true})", fontsize=LABEL, color=INK)
    _percent_axis(top, "y")
    legend(top)

    dress(bottom, heading="Loss", xlabel="Probability the model gives the true class (%, rest shared evenly)")
    p = np.concatenate([np.linspace(0.02, 0.98, 97), 1 - np.logspace(-1.7, -14, 300)])
    other = np.log((1 - p) / (k - 1))
    for target, colour, style, name in ((hard, ORANGE, "-", "hard"), (smooth, BLUE, "-", "smoothed")):
        mass = target[true]
        loss = -(mass * np.log(p) + (1 - mass) * other)
        bottom.plot(p, loss, style, color=colour, linewidth=2, label=name)
    best = 1 - eps + eps / k
    least = -(best * math.log(best) + (1 - best) * math.log((1 - best) / (k - 1)))
    bottom.plot([best], [least], "o", color=INK, markersize=6, zorder=5, label=f"least at {100 * best:.3g} %")
    bottom.set_xlim(0, 1.01)
    bottom.set_ylim(0, 3)
    _percent_axis(bottom, "x")
    legend(bottom)
    return save(figure, path)


def draw_stochastic_depth(
    survival: Sequence[float],
    path: str | Path,
    *,
    observed: Sequence[float] | None = None,
    title: str = "Stochastic depth: how often each block is kept",
) -> Path:
    """Survival probability of each residual block in training, first to last (Huang et al. 2016).

    Args:
        survival: in [0, 1], one a block. observed: shares counted in training, drawn as points.
    """
    if not len(survival):
        raise ValueError("no block to draw")
    n = len(survival)
    figure = new_figure(height=3.8, title=title)
    ax = dress(figure.subplots(), xlabel="Residual block", ylabel="Kept (%)")
    x = np.arange(1, n + 1)
    ax.bar(x, survival, 0.78, color=BLUE, label=f"on average {sum(survival):.3g} of {n} blocks")
    ax.bar(x, [1 - s for s in survival], 0.78, bottom=list(survival), color=GRID, label="skipped")
    if observed is not None:
        ax.plot(x, observed, "s", color=VERMILLION, markersize=6, label="observed")
    ax.set_ylim(0, 1.12)
    if n <= 12:
        for i, s in enumerate(survival):
            ax.text(i + 1, 1.04, f"{100 * s:.3g}", ha="center", fontsize=SMALL, color=INK)
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14))
    ax.set_xlim(0.4, n + 0.6)
    ax.yaxis.set_major_formatter(percent)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    legend(ax, loc="lower left")
    return save(figure, path)


def draw_precision(rows: Sequence[Row], path: str | Path, *, title: str = "Precision: time, memory, accuracy") -> Path:
    """Seconds an epoch, peak memory and accuracy of each precision; a panel without data is left out.

    Args:
        rows: {precision, seconds, peak_memory_bytes, accuracy} and, where known, seconds_interval,
            peak_memory_interval, accuracy_interval ([low, high]).
    """
    if not rows:
        raise ValueError("no row to draw")
    panels = [
        ("Time per epoch (s)", "seconds", "seconds_interval", BLUE, lambda v, _: f"{v:.3g} s"),
        ("Peak memory", "peak_memory_bytes", "peak_memory_interval", GREEN, lambda v, _: size_text(v)),
        ("Accuracy (%)", "accuracy", "accuracy_interval", VERMILLION, lambda v, _: f"{100 * v:.1f} %"),
    ]
    shown = [panel for panel in panels if np.isfinite(finite(row.get(panel[1]) for row in rows)).any()]
    if not shown:
        raise ValueError("the rows hold neither seconds nor peak_memory_bytes nor accuracy")
    names = labels([row.get("precision", i) for i, row in enumerate(rows)], 1.3 * DPI, LABEL - 1)
    figure = new_figure(height=0.7 + len(shown) * (0.75 + 0.34 * len(rows)), title=title)
    grid = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for ax, (heading, key, interval, colour, say) in zip(grid, shown, strict=True):
        _bars(ax, rows, names, key, interval, colour, say, dots=key == "accuracy")
        dress(ax, heading=heading, grid="x")
        if key == "accuracy":
            _percent_axis(ax, "x")
        elif key == "peak_memory_bytes":
            ax.xaxis.set_major_formatter(size_text)
        else:
            ax.xaxis.set_major_formatter(number)
    return save(figure, path)


def _bars(
    ax: Axes,
    rows: Sequence[Row],
    names: Sequence[str],
    key: str,
    interval: str,
    colour: str,
    say: Callable[[float, Row], str],
    *,
    dots: bool = False,
    colours: Sequence[str] | None = None,
) -> None:
    """Horizontal bars (or dots, whose axis need not start at 0) with intervals, what `say` makes of value and row
    written at the right."""
    values = np.array(finite(row.get(key) for row in rows))
    low, high = _intervals([("", row) for row in rows], values, interval)
    y = np.arange(len(rows))
    ends = np.where(np.isfinite(high), high, 0.0)
    start = float(np.nanmin(low)) if dots else 0.0
    span = max(float(ends.max()) - start, 1e-12 if not dots else 0.01)
    if dots:
        ax.plot(values, y, "o", color=colour, markersize=7)
    else:
        ax.barh(y, np.nan_to_num(values), 0.66, color=list(colours) if colours else colour)
    known = high > low
    reach = [(values - low)[known], (high - values)[known]]
    ax.errorbar(values[known], y[known], xerr=reach, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
    for i, value in enumerate(values):
        text = say(value, rows[i]) if math.isfinite(value) else "not measured"
        ax.text(
            ends[i] + span * 0.02 + (0 if math.isfinite(value) else start),
            i,
            text,
            va="center",
            fontsize=SMALL,
            color=INK,
        )
    ax.set_xlim(start - (0.08 * span if dots else 0), start + span * 1.28)
    ax.set_yticks(y, names)
    ax.set_ylim(len(rows) - 0.4, -0.6)


# --------------------------------------------------------------------------------------------------------- compression


def draw_sparsity(
    curves: Mapping[str, Sequence[Row]],
    path: str | Path,
    *,
    baseline: float | None = None,
    xlabel: str = "Parameters removed (%)",
    title: str = "Accuracy against sparsity",
) -> Path:
    """Accuracy of each way of pruning over the share of parameters removed.

    Args:
        curves: name -> rows {sparsity, accuracy, accuracy_interval (optional)}.
        baseline: accuracy of the unpruned model.
    """
    if not any(len(rows) for rows in curves.values()):
        raise ValueError("no curve to draw")
    figure = new_figure(height=4.4, title=title)
    ax = dress(figure.subplots(), xlabel=xlabel, ylabel="Accuracy (%)", grid="both")
    if baseline is not None:
        ax.axhline(baseline, color=INK, linewidth=1, linestyle=(0, (3, 3)), label=f"unpruned {100 * baseline:.1f} %")
    for i, (name, rows) in enumerate(curves.items()):
        ordered = sorted(rows, key=lambda row: finite([row.get("sparsity")])[0])
        x = finite(row.get("sparsity") for row in ordered)
        y = np.array(finite(row.get("accuracy") for row in ordered))
        low, high = _intervals([("", row) for row in ordered], y)
        colour = SERIES[i % len(SERIES)]
        ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(x, y, color=colour, marker=MARKERS[i % len(MARKERS)], markersize=6, linewidth=1.8,
                label=fit(name, 2.0 * DPI, SMALL))  # fmt: skip
    _percent_axis(ax, "x")
    _percent_axis(ax, "y")
    legend(ax, columns=2, loc="lower left")
    return save(figure, path)


def draw_filter_masks(
    masks: ArrayLike,
    path: str | Path,
    *,
    weights: ArrayLike | None = None,
    limit: int = 64,
    title: str = "Filters of the first layer",
) -> Path:
    """The first filters and what pruning took from them.

    Args:
        masks: bool [O, C, h, w], true where a weight is kept.
        weights: float [O, C, h, w]; kept weights are coloured by their value. One tile a channel.
    """
    kept = np.asarray(masks, bool)
    if kept.ndim != 4 or kept.size == 0:
        raise ValueError(f"masks must be [O, C, h, w], not {kept.shape}")
    values = np.ones(kept.shape) if weights is None else np.nan_to_num(np.asarray(weights, float))
    if values.shape != kept.shape:
        raise ValueError(f"weights are {values.shape}, masks {kept.shape}")
    share = 1 - kept.mean()
    total, channels, h, w = kept.shape
    kept, values = kept[:limit, :3], values[:limit, :3]
    o, c = kept.shape[:2]
    bound = np.abs(values[kept]).max(initial=1e-12)
    import matplotlib

    colours = matplotlib.colormaps["RdBu"](values / bound * 0.45 + 0.5)[..., :3]
    if weights is None:
        colours = np.broadcast_to(np.array([0x00, 0x72, 0xB2]) / 255.0, (*kept.shape, 3)).copy()
    colours[~kept] = np.array([0x3A, 0x3F, 0x44]) / 255.0
    # One picture cell by cell: c tiles of h x w a filter, one blank cell between tiles, two between filters.
    tile_w, tile_h = c * w + (c - 1), h
    columns = min(o, max(4, min(12, int(WIDTH * DPI) // ((tile_w + 2) * 12))))
    lines = -(-o // columns)
    canvas = np.ones((lines * (tile_h + 2) - 2, columns * (tile_w + 2) - 2, 3))
    for i in range(o):
        y, x = i // columns * (tile_h + 2), i % columns * (tile_w + 2)
        for j in range(c):
            canvas[y : y + h, x + j * (w + 1) : x + j * (w + 1) + w] = colours[i, j]
    scale = max(1, (int(WIDTH * DPI) - 24) // canvas.shape[1])
    scale = min(scale, 28)
    pixels = (canvas.repeat(scale, 0).repeat(scale, 1) * 255).round().astype(np.uint8)
    told = f"{100 * share:.1f} % of the weights removed (dark)"
    if weights is not None:
        told += "; kept ones: blue positive, red negative, white near 0"
    if (o, c) != (total, channels):
        told += f"; {o} of {total} filters, {c} of {channels} channels shown"
    return _paste(pixels, path, title=title, note=told)


def draw_pareto(
    points: Sequence[Row],
    path: str | Path,
    *,
    budget: float | None = None,
    winner: str | None = None,
    baseline: str | None = None,
    called: str = "winner",
    size_label: str = "Size of the file",
    title: str = "Smaller against more accurate",
) -> Path:
    """Every candidate by size and accuracy, coloured by latency; the front, the budget and the winner are marked.

    Args:
        points: {name, bytes, accuracy} and, where measured, latency_ms; the front is computed from bytes and accuracy.
            Those with a true `control` cannot be chosen: they are diamonds, and no part of the front.
        budget: the lowest accuracy allowed.
        winner, baseline: a `name` of `points`.
        called: what the legend calls the winner.
    """
    size = np.array(finite(point.get("bytes") for point in points))
    accuracy = np.array(finite(point.get("accuracy") for point in points))
    latency = np.array(finite(point.get("latency_ms") for point in points))
    there = np.isfinite(size) & np.isfinite(accuracy) & (size > 0)
    if not there.any():
        raise ValueError("no point with bytes and accuracy")
    control = np.array([bool(point.get("control")) for point in points])
    names = [str(point.get("name", i)) for i, point in enumerate(points)]
    order = [int(i) for i in np.lexsort((-accuracy, size)) if there[i]]
    front: list[int] = []
    for i in order:
        if not control[i] and (not front or accuracy[i] > accuracy[front[-1]]):
            front.append(i)

    figure = new_figure(height=5.4, title=title)
    ax = dress(figure.subplots(), xlabel=size_label, ylabel="Accuracy (%)", grid="both")
    if budget is not None:
        ax.axhline(budget, color=VERMILLION, linewidth=1.4, linestyle=(0, (4, 3)), label=f"budget {100 * budget:.2f} %")
        ax.axhspan(-1, budget, color=VERMILLION, alpha=0.06, linewidth=0)
    ax.step(size[front], accuracy[front], where="post", color=MUTED, linewidth=1.4, label="front", zorder=2)
    timed = there & np.isfinite(latency)
    if timed.any():
        scale = {"vmin": latency[timed].min(), "vmax": latency[timed].max()}  # one for dots and diamonds
        for some, marker in ((timed & ~control, "o"), (timed & control, "D")):
            if some.any():
                dots = ax.scatter(size[some], accuracy[some], c=latency[some], cmap="viridis", s=54, marker=marker,
                                  edgecolors=INK, linewidths=0.6, zorder=3,
                                  label="control" if marker == "D" else None, **scale)  # fmt: skip
        bar = figure.colorbar(dots, ax=ax, orientation="horizontal", fraction=0.05, aspect=40, pad=0.03)
        bar.set_label("Latency (ms)", fontsize=LABEL, color=INK)
        bar.ax.tick_params(labelsize=LABEL - 1, colors=MUTED, labelcolor=INK)
        bar.ax.xaxis.set_major_formatter(number)
        bar.outline.set_visible(False)
    rest = there & ~timed
    if rest.any():
        ax.scatter(size[rest], accuracy[rest], c=PAPER, s=54, edgecolors=INK, linewidths=1, zorder=3,
                   label="latency not measured" if timed.any() else None)  # fmt: skip
    for chosen, marker, colour, what in ((baseline, "s", INK, "original"), (winner, "*", ORANGE, called)):
        if chosen is None or chosen not in names or not there[names.index(chosen)]:
            continue
        i = names.index(chosen)
        label = f"{what}: {fit(chosen, 1.7 * DPI, SMALL)}, {size_text(size[i])}"
        filled = marker == "*"
        ax.scatter(
            [size[i]],
            [accuracy[i]],
            marker=marker,
            s=330 if filled else 130,
            facecolors=colour if filled else "none",
            edgecolors=INK,
            linewidths=1.4,
            zorder=4,
            label=label,
        )
    low, high = float(accuracy[there].min()), float(accuracy[there].max())
    if budget is not None:
        low, high = min(low, budget), max(high, budget)
    room = max((high - low) * 0.08, 0.002)
    ax.set_ylim(low - room, high + room)
    _size_axis(ax, size[there])
    _percent_axis(ax, "y")
    legend(ax, columns=2, loc="lower left", markers=0.55)
    return save(figure, path)


def draw_compression(
    rows: Sequence[Row],
    path: str | Path,
    *,
    baseline: Row,
    winner: Row,
    max_drop: float | None,
    size: str = "bytes",
    within_budget: bool = True,
) -> Path:
    """The Pareto picture of a compression's candidates, as compression.json has them.

    Args:
        max_drop: points of accuracy that the budget allows to be lost.
        size: the column by which small was judged.
        within_budget: otherwise `winner` is called the closest.
    """
    known = max_drop is not None and baseline.get("accuracy") is not None
    return draw_pareto(
        [{**row, "bytes": row.get(size)} for row in rows],
        path,
        budget=baseline["accuracy"] - max_drop / 100 if known and max_drop is not None else None,
        winner=str(winner.get("name")),
        baseline=str(baseline.get("name")),
        called="winner" if within_budget else "closest",
        size_label="Size of the file, packed" if size == "packed_bytes" else "Size of the file",
    )


def _size_axis(ax: Axes, sizes: NDArray[np.float64]) -> None:
    """A logarithmic axis of bytes with few round ticks."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = float(sizes.min()) / 1.25, float(sizes.max()) * 1.25
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [s * 10.0**e for e in range(13) for s in steps if low <= s * 10.0**e <= high]
        if len(ticks) >= 4:
            break
    if len(ticks) < 2:
        ticks = sorted({float(f"{t:.2g}") for t in np.linspace(low, high, 6)[1:-1]})
    if len(ticks) > 7:
        ticks = ticks[:: -(-len(ticks) // 7)]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(size_text)


def draw_latency(
    rows: Sequence[Row],
    path: str | Path,
    *,
    control: float | None = None,
    title: str = "Latency on this machine",
) -> Path:
    """Median milliseconds of each model, with its interval, and how many times faster than the first one it is.

    Args:
        rows: {name, milliseconds} and, where known, milliseconds_interval ([low, high]) and speedup against the first
            row (as it was measured, in turns; the medians' own ratio may differ from it).
        control: ratio of two timings of one and the same model (A/A), told below the bars.
    """
    if not rows:
        raise ValueError("no row to draw")
    names = labels([row.get("name", i) for i, row in enumerate(rows)], 1.8 * DPI, LABEL - 1)

    def say(value: float, row: Row) -> str:
        ratio = finite([row.get("speedup")])[0]
        return f"{value:.3g} ms" + (f"  ({ratio:.1f}×)" if math.isfinite(ratio) and row is not rows[0] else "")

    xlabel = "Milliseconds, less is better"
    if control is not None:
        xlabel += f"\n(control: the same model twice, {control:.3f}×)"
    figure = new_figure(height=1.5 + 0.42 * len(rows), title=title)
    ax = figure.subplots()
    colours = [MUTED] + [BLUE] * (len(rows) - 1)
    _bars(ax, rows, names, "milliseconds", "milliseconds_interval", BLUE, say, colours=colours)
    dress(ax, xlabel=xlabel, grid="x")
    ax.xaxis.set_major_formatter(number)
    return save(figure, path)


# -------------------------------------------------------------------------------------------------------------- images


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
    """Images in rows, each row under its title, column titles on top; small images are enlarged without blurring.

    Args:
        rows: uint8 images [C, H, W] (C = 1 or 3) or [H, W], of any sizes; None leaves a cell empty.
        row_titles: one a row; column_titles: one a column of the longest row.
        captions: one a cell below its image: a line, or up to two.
        columns: cells the width is divided into, at least the longest row (the default).
    Raises:
        ValueError: no image, an image of another shape or type, titles or captions that do not match the rows.
        KitaeError: the file cannot be written.
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
    return _paste(canvas, path, texts=texts)


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


def _paste(
    pixels: NDArray[np.uint8],
    path: str | Path,
    *,
    texts: Sequence[tuple[int, int, str, float, str, str]] = (),
    title: str = "",
    note: str = "",
) -> Path:
    """A PNG of these pixels one to one with texts on them; with a title or note, on a page around them."""
    if title or note:
        border, y = 12, 12
        width = max(int(WIDTH * DPI), pixels.shape[1] + 2 * border)
        head = []
        for text, size, weight, lines in ((title, TITLE, "bold", 2), (note, SMALL, "normal", 3)):
            for part in wrap(text, width - 2 * border, size, lines=lines, bold=weight == "bold") if text else ():
                head.append((border, y, part, size, weight, "left"))
                y += int(size * DPI / 72 * 1.35)
            y += 6
        page = np.full((y + pixels.shape[0] + border, width, 3), 255, np.uint8)
        page[y : y + pixels.shape[0], border : border + pixels.shape[1]] = pixels
        pixels, texts = page, head
    height, width = pixels.shape[:2]
    figure = new_figure(width / DPI, height / DPI, layout=None)
    figure.figimage(pixels, 0, 0, origin="upper")
    for x, y, text, size, weight, align in texts:
        figure.text(x / width, 1 - y / height, text, fontsize=size, fontweight=weight, color=INK, ha=align, va="top")
    return save(figure, path)
