"""The pictures of the pages about techniques: of definitions, and of what was measured.

`doc_pictures.py` draws them.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from PIL import Image
from torch import nn

from axes import BLUE, GREEN, GRID, ORANGE, VERMILLION, dress, legend, percent
from kitae.augment.tta import views
from kitae.experiments.result import StudyResult
from kitae.models.build import build_seeded
from kitae.models.layers import linear_rates
from kitae.models.spec import ModelSpec
from kitae.pipelines.plan import MUON_RATE
from kitae.preprocess import PreprocessRules
from kitae.recipe import Recipe
from kitae.reporting.figures import grid_figure
from kitae.reporting.style import INK, LABEL, MUTED, SMALL, new_figure, save
from kitae.training.muon import orthogonal
from kitae.training.optim import AveragedWeights
from kitae.training.schedule import size_at
from means import mean_interval
from measured import (
    NAMES,
    RESULTS,
    STUDIES,
    beyond_the_winner,
    calibrations,
    fine_tunings,
    from_scratch,
    gains_of,
    network_in_words,
    set_in_words,
)

PHOTOS = Path(__file__).parents[1] / "src" / "kitae" / "data" / "assets" / "photos-mini.parquet"
SPEED = RESULTS / "speed" / "cpu-11-epochs-seed0-metrics.jsonl"  # of cifar10-speed


def percent_axis(ax: Axes, which: str) -> None:
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(percent))


def draw_label_smoothing(path: Path, classes: int = 10, smoothing: float = 0.1) -> Path:
    """The two target distributions, and the loss each gives as the model grows surer of the true class.

    The smoothed target is 1 - eps + eps/K for the true class and eps/K elsewhere (Szegedy et al. 2016, as torch does).
    """
    k, eps = classes, smoothing
    true = k // 3
    hard = np.eye(k)[true]
    smooth = (1 - eps) * hard + eps / k
    figure = new_figure(height=6.4, title="Hard against smoothed labels")
    top, bottom = figure.subplots(2, 1)

    dress(top, heading="Target (%)")
    x = np.arange(k)
    top.bar(x - 0.2, hard, 0.38, color=ORANGE, label="hard")
    top.bar(x + 0.2, smooth, 0.38, color=BLUE, label=f"smoothed, ε = {eps:g}")
    top.set_ylim(0, 1.12)
    for i in range(k):
        top.text(i + 0.2, smooth[i] + 0.015, f"{100 * smooth[i]:.3g}", ha="center", fontsize=SMALL, color=INK)
    top.set_xticks(x, [str(i) for i in range(k)])
    top.set_xlabel(f"Class (true: {true})", fontsize=LABEL, color=INK)
    percent_axis(top, "y")
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
    percent_axis(bottom, "x")
    legend(bottom)
    return save(figure, path)


def draw_stochastic_depth(path: Path, survival: Sequence[float]) -> Path:
    """Survival probability of each residual block in training, first to last (Huang et al. 2016)."""
    n = len(survival)
    figure = new_figure(height=3.8, title="Stochastic depth: how often each block is kept")
    ax = dress(figure.subplots(), xlabel="Residual block", ylabel="Kept (%)")
    x = np.arange(1, n + 1)
    ax.bar(x, survival, 0.78, color=BLUE, label=f"on average {sum(survival):.3g} of {n} blocks")
    ax.bar(x, [1 - s for s in survival], 0.78, bottom=list(survival), color=GRID, label="skipped")
    ax.set_ylim(0, 1.12)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14))
    ax.set_xlim(0.4, n + 0.6)
    ax.yaxis.set_major_formatter(percent)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    legend(ax, loc="lower left")
    return save(figure, path)


def draw_averages(path: Path, steps: int = 5000) -> Path:
    """How much an average of weights still has of the initial ones, with and without the warm-up of the decay.

    Computed by `AveragedWeights`: a weight that is 1 at first and 0 after every step.
    """
    figure = new_figure(height=4.0, title="How long averaged weights remember the start")
    ax = dress(figure.subplots(), xlabel="Steps", ylabel="Share of the initial weights (%)")
    decays, shown = {0.998: BLUE, 0.9999: VERMILLION}, np.arange(1, steps + 1)
    for decay, colour in decays.items():
        ax.plot(shown, decay**shown, "--", color=colour, linewidth=2, label=f"{decay:g} from the start")
    kept = {decay: [] for decay in decays}  # type: dict[float, list[float]]
    for decay, shares in kept.items():
        weight = nn.Linear(1, 1, bias=False).double()
        average = AveragedWeights(weight, decay)
        nn.init.ones_(average.model.weight)  # type: ignore[arg-type]
        nn.init.zeros_(weight.weight)
        for step in range(steps):
            average.update(weight, step)
            shares.append(float(average.model.weight.item()))  # type: ignore[operator]
    ax.plot(shown, np.max(list(kept.values()), axis=0), color=GREEN, linewidth=3, label="either, in Kitae")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.set_ylim(0, 1.03)
    percent_axis(ax, "y")
    legend(ax)
    return save(figure, path)


def epochs_of(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw_progressive(path: Path) -> Path:
    """The side of training images in `cifar10-speed`, and what its epochs took."""
    epochs = epochs_of(SPEED)
    spec = Recipe.load("cifar10-speed").train
    steps = int(epochs[0]["step"])
    sides = [size_at((32, 32), step, spec, steps)[0] for step in range(spec.epochs * steps)]
    figure = new_figure(height=5.2, title="Smaller pictures first: cifar10-speed")
    top, bottom = figure.subplots(2, 1, sharex=True)
    dress(top, heading="Side of the training images (pixels)")
    top.plot(np.arange(len(sides)) / steps, sides, drawstyle="steps-post", color=BLUE, linewidth=2)
    top.set_ylim(20, 34)
    top.yaxis.set_major_locator(MultipleLocator(4))
    dress(bottom, heading="Seconds of an epoch, on two cores", xlabel="Epoch")
    bottom.bar([row["epoch"] - 0.5 for row in epochs], [row["seconds"] for row in epochs], 0.8, color=BLUE)
    bottom.set_xticks(np.arange(len(epochs)) + 0.5, [f"{int(row['epoch'])}" for row in epochs])
    bottom.set_xlim(0, len(epochs))
    return save(figure, path)


def early_stop() -> tuple[list[float], list[float], int]:
    """Validation accuracies of `cifar10-speed`, the best until each, and where a patience of one epoch stops."""
    accuracy = [row["val_accuracy"] for row in epochs_of(SPEED)]
    best = [max(accuracy[: end + 1]) for end in range(len(accuracy))]
    return accuracy, best, next(i for i in range(1, len(accuracy)) if accuracy[i] <= best[i - 1])


def draw_early_stopping(path: Path) -> Path:
    """Where early stopping with a short patience would have ended a run of `cifar10-speed`."""
    accuracy, best, stopped = early_stop()
    figure = new_figure(height=4.0, title="A patience of one epoch stops too early")
    ax = dress(figure.subplots(), xlabel="Epoch", ylabel="Validation accuracy (%)")
    x = np.arange(1, len(accuracy) + 1)
    ax.plot(x, best, drawstyle="steps-post", color=GRID, linewidth=4, zorder=0, label="best so far")
    ax.plot(x[: stopped + 1], accuracy[: stopped + 1], "o-", color=VERMILLION, linewidth=2, label="patience 1")
    ax.plot(x[stopped:], accuracy[stopped:], "o-", color=BLUE, linewidth=2, zorder=1.5, label="to the end")
    ax.annotate(
        f"stops here, keeps {100 * best[stopped]:.1f} %", (x[stopped], accuracy[stopped]), (8, -14),
        textcoords="offset points", fontsize=SMALL, color=INK,
    )  # fmt: skip
    ax.annotate(
        f"{100 * accuracy[-1]:.1f} %", (x[-1], accuracy[-1]), (0, -16), textcoords="offset points", fontsize=SMALL,
        color=INK, ha="center",
    )  # fmt: skip
    ax.set_xticks(x)
    ax.set_ylim(0.35, 1)
    percent_axis(ax, "y")
    legend(ax)
    return save(figure, path)


def forest(ax: Axes, rows: Sequence[tuple[str, float, float, float]], nothing: float) -> None:
    """A value with its interval for each (name, value, low, high), the first on top.

    Args:
        nothing: the value without an effect, where a line is drawn.
    """
    y = np.arange(len(rows))
    names, values, lows, highs = zip(*rows, strict=True)
    ax.axvline(nothing, color=MUTED, linewidth=1)
    ax.hlines(y, lows, highs, color=BLUE, linewidth=3, alpha=0.5)
    ax.plot(values, y, "o", color=BLUE, markersize=6)
    ax.set_yticks(y, names)
    ax.set_ylim(len(rows) - 0.5, -0.5)


def draw_precisions(path: Path) -> Path:
    """The time of a step in bf16 against float32, by network, see `benchmarks/precision.py`."""
    rows = []
    for row in json.loads((RESULTS / "precision.json").read_text())["rows"].values():
        bf16 = row["precisions"]["bf16"]
        low, high = bf16["interval"]
        rows.append((network_in_words(row).removeprefix("timm:").removeprefix("tf_"), bf16["ratio"], low, high))
    figure = new_figure(height=5.6, title="A training step in bf16 on a CPU")
    ax = dress(figure.subplots(), xlabel="Time of a step in bf16, float32 is 1", grid="x")
    forest(ax, sorted(rows, key=lambda row: row[1]), 1.0)
    ax.set_xlim(0.4, 1.05)
    return save(figure, path)


def draw_controls(path: Path) -> Path:
    """What other networks lose beyond a pruned one that learned from the same teacher."""
    rows = [(words, *mean_interval(lost)) for (_, words), lost in beyond_the_winner().items()]
    figure = new_figure(height=3.2, title="Against pruning half of the channels")
    ax = dress(figure.subplots(), xlabel="Points lost beyond the pruned network (validation)", grid="x")
    forest(ax, [(name.removesuffix(", INT8"), mean, low, high) for name, mean, low, high in rows], 0.0)
    return save(figure, path)


def draw_probe(path: Path) -> Path:
    """Validation accuracy of fine-tunings that start from a probe, a panel a set and a line a split."""
    found = fine_tunings("stages")
    figure = new_figure(height=4.0, title="Fine-tuning from a probe")
    panels = figure.subplots(1, len(found), sharey=True)
    for ax, (name, splits) in zip(panels, found.items(), strict=True):
        dress(ax, heading=name, xlabel="Epoch", ylabel="" if ax is not panels[0] else "Validation accuracy (%)")
        for row, colour in zip(splits, (BLUE, VERMILLION), strict=True):
            accuracy = [row["probe"], *row["epochs"]]
            ax.plot(range(len(accuracy)), accuracy, "-", color=colour, linewidth=2, label=f"split {row['seed']}")
            ax.plot([0], accuracy[:1], "s", color=colour, markersize=7)
            ax.axhline(accuracy[0], color=colour, linewidth=1, linestyle=":")
            ax.plot([row["best_epoch"]], [row["val_accuracy"]], "o", color=colour, markersize=8)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    percent_axis(panels[0], "y")
    lines, names = panels[-1].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper right", ncols=2, frameon=False, fontsize=SMALL, labelcolor=INK)
    figure.supxlabel("squares, dotted: the probe (epoch 0); circles: what is kept", fontsize=SMALL, color=MUTED)
    return save(figure, path)


def draw_muon(path: Path, count: int = 60, side: int = 32) -> Path:
    """Singular values of a gradient, and of the update that Muon makes of it; and what it gains by set."""
    rows = pq.read_table(PHOTOS).to_pylist()[:: 600 // count]
    photos = []
    for row in rows:
        with Image.open(io.BytesIO(row["image"])) as photo:
            photos.append(np.asarray(photo.convert("RGB").resize((side, side)), np.float32))
    names = sorted({row["class_name"] for row in rows})
    inputs = torch.from_numpy(np.stack(photos).transpose(0, 3, 1, 2) / 127.5 - 1)
    network = build_seeded(ModelSpec(name="resnet9", width=16), 0, len(names), PreprocessRules(side, 3))
    labels = torch.tensor([names.index(row["class_name"]) for row in rows])
    nn.functional.cross_entropy(network(inputs), labels).backward()
    filters = [one for one in network.parameters() if one.ndim == 4][3]
    assert filters.grad is not None
    gradient = filters.grad.flatten(1)

    figure = new_figure(height=4.2, title="Muon: an update in all directions, and what it gains")
    left, right = figure.subplots(1, 2)
    dress(left, xlabel="Singular value, from the largest", ylabel="Share of the largest (%)")
    for matrix, colour, style, name in ((gradient, VERMILLION, "--", "SGD"), (orthogonal(gradient), BLUE, "-", "Muon")):
        values = torch.linalg.svdvals(matrix)
        left.plot(np.arange(1, len(values) + 1), values / values[0], style, color=colour, linewidth=2, label=name)
    left.set_ylim(0, 1.03)
    percent_axis(left, "y")
    legend(left)
    dress(right, xlabel="Points over SGD (validation)", grid="x")
    found = from_scratch(20)
    gains = [
        (set_in_words(name), *mean_interval(gains_of(splits, found[name, "sgd"])))
        for (name, variant), splits in found.items()
        if variant == f"muon-{MUON_RATE:g}"
    ]
    forest(right, gains, 0.0)
    return save(figure, path)


def draw_imbalance(path: Path) -> Path:
    """Recall of each class in the study of rare classes, from the largest class to the smallest."""
    runs = StudyResult.open(STUDIES / "ledger-minority").finished
    prefix, suffix = "test.per_class.", ".accuracy"
    # In the order of CIFAR-10's labels, which is that of their sizes here (studies/longtail.py).
    classes = sorted(
        name.removeprefix(prefix).removesuffix(suffix)
        for name in runs.columns if name.startswith(prefix) and name.endswith(suffix)
    )  # fmt: skip
    figure = new_figure(height=4.2, title="Recall of each class on a balanced test set")
    ax = dress(figure.subplots(), xlabel="Class, from most training images to fewest", ylabel="Recall (%)")
    looks = {"none": (ORANGE, "no augmentation"), "flip and crop": (BLUE, "flip and crop"),
             "flip, crop and sampler": (VERMILLION, "and rare classes drawn more often")}  # fmt: skip
    x = np.arange(len(classes))
    for place, (variant, (colour, name)) in enumerate(looks.items()):
        recall = runs.loc[runs["variant"] == variant, [f"{prefix}{one}{suffix}" for one in classes]].to_numpy(float)
        at = x + 0.28 * (place - 1)
        ax.bar(at, recall.mean(axis=0), 0.26, color=colour, label=name)
        for each in recall:
            ax.plot(at, each, ".", color=INK, markersize=3)
    ax.set_xticks(x, classes, rotation=30, ha="right")
    ax.set_ylim(0, 1)
    percent_axis(ax, "y")
    legend(ax)
    return save(figure, path)


def draw_calibration(path: Path) -> Path:
    """Temperatures by what a network was trained with, and the validation loss before and after them."""
    found = calibrations("ledger-trained").groupby("variant")
    means = found.mean(numeric_only=True).sort_values("temperature")
    least, most = found["temperature"].min()[means.index], found["temperature"].max()[means.index]
    rows = zip(
        (NAMES.get(str(name), str(name)) for name in means.index), means["temperature"], least, most, strict=True
    )
    figure = new_figure(height=4.2, title="The temperature, and what it does to the loss")
    left, right = figure.subplots(1, 2, sharey=True)
    dress(left, xlabel="Temperature, range of five seeds", grid="x")
    forest(left, list(rows), 1.0)
    dress(right, xlabel="Validation loss", grid="x")
    y = np.arange(len(means))
    right.hlines(y, means["after"], means["before"], color=GRID, linewidth=3)
    right.plot(means["before"], y, "o", color=VERMILLION, markersize=6, label="before")
    right.plot(means["after"], y, "o", color=BLUE, markersize=6, label="after")
    legend(right)
    return save(figure, path)


def draw_views(path: Path, side: int = 160) -> Path:
    """The views of test-time augmentation of one photograph."""
    row = next(row for row in pq.read_table(PHOTOS).to_pylist() if row["class_name"] == "plastic")
    with Image.open(io.BytesIO(row["image"])) as photo:
        pixels = np.asarray(photo.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))
    batch = np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]
    kinds = {
        "flip": ["as it is", "mirrored"],
        "shift": ["as it is", "to the left", "to the right", "up", "down"],
        "scale": ["as it is", "zoomed in", "zoomed out"],
    }
    rows = [[view[0] for view in views(batch, kind)] for kind in kinds]  # type: ignore[arg-type]
    titles = [f"{kind}: {len(shown)} views" for kind, shown in zip(kinds, rows, strict=True)]
    captions = [[(text,) for text in texts] for texts in kinds.values()]
    return save(grid_figure(rows, row_titles=titles, captions=captions, title="Test-time augmentation"), path)


def draw(folder: Path) -> list[Path]:
    return [
        draw_label_smoothing(folder / "label-smoothing.png"),
        draw_stochastic_depth(folder / "stochastic-depth.png", [1 - rate for rate in linear_rates(0.2, 27)]),
        draw_averages(folder / "ema.png"),
        draw_progressive(folder / "progressive.png"),
        draw_early_stopping(folder / "early-stopping.png"),
        draw_precisions(folder / "mixed-precision.png"),
        draw_controls(folder / "distillation.png"),
        draw_probe(folder / "probe.png"),
        draw_muon(folder / "muon.png"),
        draw_imbalance(folder / "imbalance.png"),
        draw_calibration(folder / "calibration.png"),
        draw_views(folder / "tta.png"),
    ]
