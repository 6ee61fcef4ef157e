"""The part of docs/benchmarks/cifar10.md on accuracy against time and training FLOPs; benchmark_pages.py writes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitae.console import duration
from kitae.models.build import build
from kitae.models.spec import ModelSpec
from kitae.models.structure import count_macs
from kitae.reporting.charts import per_cent
from kitae.reporting.svg import WIDTH, Chart, Plot, Scale, legend
from kitae.training.schedule import progressive_size
from kitae.training.spec import ProgressiveSpec
from means import mean_interval

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
BEGIN, END = "<!-- by scripts/benchmark_pages.py -->\n", "<!-- by hand -->\n"
LEVELS = (0.90, 0.92, 0.94, 0.95)
RECIPES = {  # level -> the results of the recipe that ends there, seed by seed; the first was timed alone
    0.90: ["cifar10-quick.json", "cifar10-quick-seed1.json", "cifar10-quick-seed2.json"],
    0.92: [f"speed/cpu-4-epochs-seed{seed}.json" for seed in range(3)],
    0.94: [f"speed/cpu-11-epochs-seed{seed}.json" for seed in range(5)],
}
TRIED = "speed/cpu-24-epochs-width-96-cutout-seed0.json"  # for 95 %, one seed
ALONE, BESIDE = "speed/cpu-11-epochs-seed0", "speed/cpu-11-epochs-seed0-beside-airbench"
SHORT = [f"speed/cpu-{epochs}-epochs-seed0" for epochs in (4, 5, 7)]  # `train.epochs`, alone
SIDE = 32
LOW, HIGH = 0.8, 0.96  # of the picture

TEXT = """\
## 90, 92, 94 and 95 %

Accuracy on test is the mean of the seeds, with a 95 % interval over them. Training is that of seed 0, which had both
cores to itself and two threads; validation and the evaluation come on top. The other seeds trained with one thread
each, beside other work, so their times say nothing. The last column says when seed 0 of `cifar10-speed` first reaches
that accuracy on its {n:,} validation images, with one view of each. Before the last epoch its learning rate is still
high, so a recipe that ended there would be another one.

| | Recipe | Test accuracy | Training | Training FLOPs | `cifar10-speed` on its way |
|---|---|---|---|---|---|
"""
PICTURE = """
Nothing that was tried reaches {missed}: `{name}` with `model.width={width}`, {epochs} epochs, translations of 4 pixels
and a cutout of 12 (one seed) has {test:.1f} % on test ({least:.1f} to {most:.1f}) and {val:.1f} % on the validation
images, both with 14 views, after {flops} training FLOPs.

![Validation accuracy against minutes and training FLOPs](cifar10-steps.svg)

Every dot is the end of an epoch, from {low:.0f} % on. The runs with one thread trained in the same minutes (see above),
so their times compare with each other, and not with those of two threads. The last curve is of whole trainings of
`cifar10-speed`, with `train.epochs` of 4, 5, 7 and 11: each of its dots is the end of a run, when the learning rate is
low. Of `cifar10-quick` too only the end is shown, on {quick:,} validation images.

## Progress during training

Validation accuracy ({n:,} images, one view each) after each epoch, on two cores, seed 0
(`{file}`). The first epochs have smaller pictures.

| Epoch | Minutes of training | Training FLOPs | Validation |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Point:
    """The end of an epoch: seconds of training and training FLOPs so far, and accuracy on validation."""

    seconds: float
    flops: float
    accuracy: float


def load(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def run_points(name: str) -> list[Point]:
    """The epochs of a run; FLOPs as benchmarks/recipe.py counts them."""
    found = load(f"{name}.json")
    rows = [json.loads(line) for line in (RESULTS / f"{name}-metrics.jsonl").read_text().splitlines()]
    spec = ProgressiveSpec.model_validate(found["recipe"]["train"]["progressive"])
    model = build(ModelSpec.model_validate(found["recipe"]["model"]), classes=10, channels=3, image_size=SIDE)
    updates = rows[-1]["step"]
    sizes = [progressive_size((SIDE, SIDE), update / updates, spec) for update in range(updates)]
    macs = {size: count_macs(model, 3, size) for size in set(sizes)}
    of_update = [6 * macs[size] * found["images_seen"] / updates for size in sizes]
    points, seconds = [], 0.0
    for row in rows:
        seconds += row["seconds"]
        points.append(Point(seconds, sum(of_update[: row["step"]]), row["val_accuracy"]))
    return points


def record_points() -> list[Point]:
    """The epochs of airbench94, all at one size."""
    (row,) = load("speed/airbench.json")["rows"]
    last = row["curve"][-1]["step"]
    return [Point(one["seconds"], row["training_flops"] * one["step"] / last, one["val"]) for one in row["curve"]]


def text() -> str:
    """The section."""
    alone, whole = run_points(ALONE), load(f"{ALONE}.json")
    lines = [TEXT.format(n=whole["validation"]["count"]).rstrip("\n")]
    for level in LEVELS:
        epoch = next((number for number, point in enumerate(alone, 1) if point.accuracy >= level), None)
        way = "not reached"
        if epoch is not None:
            point = alone[epoch - 1]
            way = f"epoch {epoch}: {duration(point.seconds)}, {_flops(point.flops)}"
        lines.append(f"| {100 * level:.0f} % | {_reached(RECIPES.get(level, []))} | {way} |")
    tried = load(TRIED)
    least, most = tried["test"]["accuracy_interval"]
    quick = load(RECIPES[0.90][0])["validation"]["count"]
    missed = " or ".join(f"{100 * level:.0f} %" for level in LEVELS if level not in RECIPES)
    lines.append(PICTURE.format(
        missed=missed, name=tried["recipe"]["name"], width=tried["recipe"]["model"]["width"], epochs=tried["epochs"],
        test=100 * tried["test"]["accuracy"], least=100 * least, most=100 * most,
        val=100 * tried["validation"]["accuracy"], flops=_flops(tried["training_flops"]), low=100 * LOW, quick=quick,
        n=whole["validation"]["count"], file=f"{Path(ALONE).name}-metrics.jsonl",
    ).rstrip("\n"))  # fmt: skip
    for number, point in enumerate(alone, 1):
        cells = [f"{point.seconds / 60:.1f}", _flops(point.flops), f"{100 * point.accuracy:.1f} %"]
        lines.append(f"| {number} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", ""])


def _reached(files: Sequence[str]) -> str:
    """The cells on the recipe that ends at a level."""
    if not files:
        return "none | | |"
    runs = [load(name) for name in files]
    values = [run["test"]["accuracy"] for run in runs]
    mean, low, high = mean_interval(values)
    first = runs[0]
    return " | ".join([
        f"`{first['recipe']['name']}`, {first['epochs']} epochs",
        f"{100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f}, {len(runs)} seeds)",
        f"{duration(first['training_seconds'])} (its accuracy: {100 * values[0]:.1f} %)",
        _flops(first["training_flops"]),
    ])  # fmt: skip


def _flops(count: float) -> str:
    return f"{count:.1e}".replace("e+", "e")


def picture() -> Chart:
    """Validation accuracy against minutes of training and training FLOPs."""
    quick = load(RECIPES[0.90][0])
    end = Point(quick["training_seconds"], quick["training_flops"], quick["validation"]["accuracy"])
    curves = {
        "cifar10-speed, two threads, alone": run_points(ALONE),
        "cifar10-speed, one thread": run_points(BESIDE),
        "airbench94's recipe, one thread": record_points(),
        "cifar10-quick, two threads, alone": [end],
        "ends with 4, 5, 7 and 11 epochs": [run_points(name)[-1] for name in (*SHORT, ALONE)],
    }
    summary = "; ".join(
        f"{name}: {100 * points[-1].accuracy:.1f} % after {duration(points[-1].seconds)} and "
        f"{_flops(points[-1].flops)} FLOPs" for name, points in curves.items()
    )  # fmt: skip
    chart = Chart("cifar10-steps", "Validation accuracy against time and training FLOPs", f"{summary}.", 0)
    top = legend(chart, 46, 14, [(f"f{place}", name) for place, name in enumerate(curves, 1)]) + 8
    panels = (("Minutes of training", 1 / 60, "{:g}".format), ("Training FLOPs, 1e14", 1e-14, "{:g}".format))
    for number, (label, unit, form) in enumerate(panels):
        every = {
            name: [(unit * (point.flops if number else point.seconds), point.accuracy) for point in points]
            for name, points in curves.items()
        }
        most = max(x for points in every.values() for x, _ in points)
        plot = Plot(chart, Scale(0, 1.04 * most, 46, WIDTH - 14), Scale(LOW, HIGH, top + 210, top))
        plot.axes(label, form, per_cent, y_ticks=(0.8, 0.85, *LEVELS))
        for place, (name, points) in enumerate(every.items(), 1):
            shown = [(x, y) for x, y in points if y >= LOW]
            plot.line([x for x, _ in shown], [y for _, y in shown], f"s{place}")
            for x, y in shown:
                chart.circle(
                    plot.x(x), plot.y(y), 2.4 if len(points) > 1 else 5, f"f{place}", f"{name}: {100 * y:.1f} %"
                )
        top += 210 + 56
    chart.height = top - 14
    return chart
