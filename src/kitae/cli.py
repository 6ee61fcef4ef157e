"""The command line: parses, calls the public function, prints.

Everything heavy is imported inside the verb that needs it, so `kitae --help` loads neither torch nor numba.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from kitae import __version__, console
from kitae.errors import BudgetError, CompressionError, DataError, KitaeError, RecipeError, missing

app = App(
    name="kitae",
    version=__version__,
    help="From a folder of images to a small, fast, trusted classifier.",
    help_format="plaintext",
)
data_app = App(name="data", help="Look at a data source, or decode it ahead of time.", help_format="plaintext")
study_app = App(
    name="study",
    help="Measure what techniques bring, with paired seeds and intervals.",
    help_format="plaintext",
)
show_app = App(name="show", help="Draw what something does, as PNG files.", help_format="plaintext")
app.command(data_app)
app.command(study_app)
app.command(show_app)

Sets = Annotated[
    list[str] | None,
    Parameter(name="--set", consume_multiple=True, negative=(), help="Override fields: a.b=value c=value ..."),
]
# What a command may miss, and the disk may refuse, without anything being wrong with the program.
_EXTRAS = {
    **dict.fromkeys(("torch", "torchvision", "numba", "scipy", "statsmodels", "pandas", "torchmetrics", "safetensors",
                     "pyarrow", "matplotlib", "jinja2"), "train"),
    **dict.fromkeys(("onnx", "onnxscript", "torch_pruning", "torchao"), "compress"),
    "onnxruntime": "runtime", "timm": "models", "optuna": "search", "ray": "cluster", "tensorboard": "track",
}  # fmt: skip
_USER_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip

# Of every command that runs studies.
_Workers = Annotated[int, Parameter(help="Runs at a time.")]
_Threads = Annotated[int | None, Parameter(help="Threads of each run; default shares this machine's cores out.")]
_Ray = Annotated[
    str | None,
    Parameter(
        help="Address of a Ray cluster to run on instead, or `local`; a search also wants the --workers and --threads "
        "that it has room for."
    ),
]

_Tta = Literal["none", "flip", "shift", "scale", "full"]


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 a mistake of the user in one line, 130 or 143 stopped by a signal."""
    try:
        app(exit_on_error=False, print_error=False)
    except CycloptsError as problem:
        console.error(str(problem))
        sys.exit(2)
    except KitaeError as problem:
        console.error(str(problem))
        if type(problem).__name__ == "TrainingInterruptedError":
            sys.exit(143 if "SIGTERM" in str(problem) else 130)
        sys.exit(2)
    except ModuleNotFoundError as problem:
        extra = _EXTRAS.get((problem.name or "").partition(".")[0])
        if extra is None:
            raise
        console.error(str(missing(str(problem.name), extra)))
        sys.exit(2)
    except BrokenPipeError:  # `kitae ... | head`: the reader has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as problem:
        if problem.errno not in _USER_ERRORS:
            raise
        console.error(f"{problem.filename or 'a file'}: {problem.strerror}")
        sys.exit(2)
    except KeyboardInterrupt:
        console.error("interrupted")
        sys.exit(130)


@app.command
def train(
    recipe: str,
    *,
    out: Path | None = None,
    set_: Sets = None,
    resume: Annotated[bool, Parameter(negative=())] = False,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Train, select and evaluate a classifier.

    Parameters
    ----------
    recipe
        A shipped recipe's name, a .yaml file, or with --resume the run folder itself.
    out
        The run folder; default runs/NAME, or with a number where that exists.
    resume
        Go on with the unfinished run.
    overwrite
        Replace the run in --out, or in runs/NAME.
    dry_run
        Print the resolved recipe, the model's size, steps and an estimate of time, and stop.
    """
    from kitae.recipe import Recipe

    folder = Path(recipe)
    if resume and out is None and (folder / "recipe.yaml").is_file():
        out, recipe = folder, str(folder / "recipe.yaml")
    if resume and out is None:
        given = f", and {recipe} is none (it has no recipe.yaml)" if len(folder.parts) > 1 else ""
        raise RecipeError(f"--resume needs the run folder{given}: kitae train --resume RUN")
    asked = Recipe.load(recipe).override(*(set_ or ()))
    with console.counting("decoding images") as progress:
        if dry_run:
            _print_plan(asked, progress)
            return
        from kitae.pipelines.train import train as run_training

        with console.TrainingView(asked.train.epochs) as view:
            run = run_training(asked, out=out, resume=resume, overwrite=overwrite, watcher=view, progress=progress)
    from kitae.training import distributed

    distributed.leave()
    if int(os.environ.get("RANK", "0")) == 0:
        _print_result(run)


def _print_plan(recipe: Any, progress: Any) -> None:
    from kitae.pipelines.estimate import estimate

    facts = estimate(recipe, progress)
    console.say(facts["recipe"].to_yaml())
    channels, height, width = facts["image"]
    whole, epoch = console.duration(facts["seconds"]), console.duration(facts["seconds_per_epoch"])
    console.table(
        "", ["", "value"],
        [
            ["images", f"{facts['train']:,} train, {facts['val']:,} val, {facts['test']:,} test (not opened)"],
            ["classes", str(facts["classes"])],
            ["image", f"{channels} x {height} x {width}"],
            *(["note", line] for line in facts["notes"]),
            ["model", f"{facts['parameters']:,} parameters, {facts['macs'] / 1e6:,.1f} M multiply-adds an image"],
            ["steps", f"{facts['steps_per_epoch']:,} an epoch, {facts['recipe'].train.epochs} epochs"],
            ["precision", facts["recipe"].train.precision],
            ["estimated time", f"{whole} ({epoch} an epoch)"],
        ],
    )  # fmt: skip


def _print_result(run: Any) -> None:
    evaluation, metrics = run.evaluation(), run.metrics()
    test, val = evaluation["test"], evaluation["val"]
    rows = [
        ["test accuracy", console.percent(test["accuracy"], test["accuracy_interval"])],
        ["validation accuracy", console.percent(val["accuracy"], val["accuracy_interval"])],
        ["balanced test accuracy", console.percent(test["balanced_accuracy"])],
        ["test loss", f"{test['loss']:.4f}"],
        ["calibration error", console.percent(test["ece"])],
        ["best epoch", f"{evaluation['best_epoch']} of {len(metrics)}"],
        ["training time", console.duration(sum(row["seconds"] for row in metrics))],
        ["test opened", f"{evaluation['test_openings']} time(s)"],
    ]
    console.table("", ["", "value (95 % interval)"], rows)
    console.say(f"everything is in {run.path}")


@app.command
def evaluate(run: Path, *, split: Literal["train", "val", "test"] = "test", tta: _Tta | None = None) -> None:
    """Measure a run's best model again; opening test is counted in the run folder.

    Parameters
    ----------
    run
        A run folder.
    split
        Which images.
    tta
        Test-time augmentation, averaged in probability space; default is the recipe's.
    """
    from kitae.run import Run

    opened = Run.open(run)
    result = opened.evaluate(split, tta)
    rows = [
        [name, console.percent(entry["accuracy"], entry["accuracy_interval"]), str(entry["count"])]
        for name, entry in result["per_class"].items()
    ]
    console.table(f"{split}: accuracy of each class", ["class", "accuracy (95 % interval)", "images"], rows)
    console.say(
        f"{split} accuracy {console.percent(result['accuracy'], result['accuracy_interval'])}  "
        f"loss {result['loss']:.4f}  calibration error {console.percent(result['ece'])}"
    )
    if split == "test":
        console.say(f"test of this run was opened {opened.test_openings} time(s)")


@app.command
def predict(
    model: Path,
    images: Annotated[list[Path], Parameter(consume_multiple=True, negative=())],
    *,
    out: Path | None = None,
    top: int = 3,
    on_corrupt: Literal["error", "skip"] = "error",
) -> None:
    """Classify image files or folders with a run or an exported model.

    Parameters
    ----------
    model
        A run folder, or a .onnx file that `kitae export` or `kitae compress` wrote.
    images
        Files and folders.
    out
        Also write every probability to this .csv or .parquet file.
    top
        How many classes to show for an image.
    on_corrupt
        An image that cannot be read is an error, or is named at the end and left out (skip).
    """
    from kitae.data.sources import list_images

    if top < 1:
        raise RecipeError("--top: must be at least 1")
    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise RecipeError(f"--out {out}: must end in .csv or .parquet")
    if (model / "compression.json").is_file():
        # Not by CompressionResult: this must work where PyTorch is not installed.
        inner = next((file for file in (model / "model.onnx", model / "closest.onnx") if file.is_file()), model)
        raise CompressionError(f"{model}: is a compression folder; its model is a file: kitae predict {inner} IMAGES")
    wanted = list_images(images)
    if model.suffix == ".onnx":
        import warnings

        from kitae.runtime import Model

        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always", UserWarning)
            trained: Any = Model(model)
        for warning in noted:
            console.say(f"note: {warning.message}")
    else:
        from kitae.run import Run

        trained = Run.open(model)
    files, probabilities, broken = _classified(trained, wanted, skip=on_corrupt == "skip")
    classes = trained.classes
    rows = []
    for file, shares in zip(files, probabilities, strict=True):
        best = shares.argsort()[::-1][:top]
        names = (f"{classes[k]} {100 * shares[k]:.1f} %" for k in best)
        rows.append([str(file), classes[best[0]], "  ".join(names)])
    if rows or not broken:
        console.table("", ["image", "class", f"best {min(top, len(classes))}"], rows, right=9)
    if out is not None:
        _write_predictions(out, files, probabilities, classes)
        console.say(f"written to {out}")
    if broken:
        console.say(f"{len(broken)} left out, since they cannot be read:")
        for line in broken:
            console.say(f"  {line}")


_PREDICTED_AT_ONCE = 256


def _classified(model: Any, files: list[Path], *, skip: bool) -> tuple[list[Path], list[Any], list[str]]:
    """The files that could be read, their probabilities, and what was wrong with the others."""
    read: list[Path] = []
    probabilities: list[Any] = []
    broken: list[str] = []
    with console.counting("classifying images") as progress:
        for start in range(0, len(files), _PREDICTED_AT_ONCE):
            some = files[start : start + _PREDICTED_AT_ONCE]
            try:
                probabilities += list(model.predict(some).probabilities)
                read += some
            except DataError:
                if not skip:
                    raise
                for file in some:  # one of them is broken, and which it is only its own call tells
                    try:
                        probabilities += list(model.predict([file]).probabilities)
                        read.append(file)
                    except DataError as error:
                        broken.append(str(error))
            progress(min(start + _PREDICTED_AT_ONCE, len(files)), len(files))
    return read, probabilities, broken


def _write_predictions(out: Path, files: list[Path], probabilities: list[Any], classes: tuple[str, ...]) -> None:
    names = [classes[shares.argmax()] for shares in probabilities]
    if out.suffix == ".csv":
        import csv
        import io

        from kitae.files import write_atomically

        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["image", "class", *classes])
        for file, name, shares in zip(files, names, probabilities, strict=True):
            writer.writerow([str(file), name, *(f"{share:.6f}" for share in shares)])
        write_atomically(out, console.printable(text.getvalue()).encode())
        return
    from kitae.errors import require
    from kitae.run import write_parquet

    table = require("pyarrow", "train").table(
        {
            "image": [console.printable(file) for file in files],
            "class": names,
            "probabilities": [shares.tolist() for shares in probabilities],
        }
    )
    write_parquet(table, out)


@app.command
def compress(
    run: Path,
    *,
    out: Path | None = None,
    max_drop: float | None = None,
    max_latency_ms: float | None = None,
    max_bytes: int | None = None,
    prune: Literal["structured", "unstructured", "none"] | None = None,
    ratios: Annotated[list[float] | None, Parameter(consume_multiple=True, negative=())] = None,
    finetune_epochs: int | None = None,
    # Not `| None`: where None is possible, cyclopts reads the word "none" as it and takes no further word.
    quantize: Annotated[
        tuple[Literal["none", "dynamic", "static", "qat"], ...], Parameter(consume_multiple=True, negative=())
    ] = (),
    target: Literal["any", "vnni"] | None = None,
    set_: Sets = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Find the smallest model within an accuracy budget: prune, fine-tune, quantize, export, measure, verify.

    Parameters
    ----------
    run
        A finished run folder.
    out
        The compression folder; default RUN-small.
    max_drop
        Points of accuracy (per cent) that may be lost; default 1.
    max_latency_ms
        Median time of one image on this machine, in ONNX Runtime.
    max_bytes
        Size of the exported file.
    prune
        structured removes channels, unstructured sets weights to zero.
    ratios
        Shares to remove, rising.
    finetune_epochs
        Epochs after each ratio; default 5.
    quantize
        Precisions to try at each ratio.
    target
        any is safe on every CPU; vnni needs its instructions.
    set_
        Any other field of CompressSpec: importance=taylor controls=[random, scratch] ...
    overwrite
        Replace the compression in --out; fine-tuned stages that still fit are used again.
    """
    from kitae.pipelines.compress import CompressionResult, resolve_spec
    from kitae.pipelines.compress import compress as run_compression
    from kitae.recipe import override

    given = {
        "max_drop": max_drop, "max_latency_ms": max_latency_ms, "max_bytes": max_bytes, "prune": prune,
        "ratios": ratios, "finetune_epochs": finetune_epochs, "quantize": quantize or None, "target": target,
    }  # fmt: skip
    options = {name: value for name, value in given.items() if value is not None}
    also = {word.partition("=")[0].strip() for word in set_ or ()}
    if "max_drop" in also:
        options["abandon"] = True  # a budget is a budget, also one by --set
    elif "ratios" in also and max_drop is None:
        options["abandon"] = False  # and the whole curve the whole curve
    # The flags first: what --set says may only make sense beside them (gradual=true beside --prune unstructured).
    spec = override(resolve_spec(None, options), set_ or [])
    try:
        result = run_compression(run, out, spec=spec, overwrite=overwrite, say=console.say)
    except BudgetError as problem:
        _print_candidates(CompressionResult.open(problem.folder))
        raise
    _print_compression(result)


def _print_candidates(result: Any) -> None:
    """A line a candidate; the winner, or the one closest to the budget, has a star."""
    size = result.facts["size"]  # that by which the winner was chosen
    rows = [
        [
            ("* " if row["winner"] else "") + row["name"],
            console.size(row[size]),
            f"{row['latency_ms']:.3f}",
            f"{row['speedup']:.2f} x",
            console.percent(row["accuracy"], row.get("accuracy_interval")),
        ]
        for row in result.rows
    ]
    head = ["candidate", "packed" if size == "packed_bytes" else "bytes", "ms", "faster", "accuracy (95 %)"]
    console.table("", head, rows)
    console.say("ms: of one image in ONNX Runtime, here; accuracy: on validation (interval)")


def _print_compression(result: Any) -> None:
    _print_candidates(result)
    facts = result.facts
    packed = " when packed" if facts["size"] == "packed_bytes" else ""
    smaller, small = console.change(facts["smaller"], "smaller", "larger")
    faster, fast = console.change(facts["faster"], "faster", "slower")
    console.say(f"{smaller:.1f} x {small}{packed} and {faster:.1f} x {fast} than the 32-bit ONNX model")
    if result.test is not None:
        before, after = result.test["baseline"], result.test["winner"]
        points, lost, interval = console.lost(result.test["drop"], result.test["drop_interval"])
        chance = "" if interval is None else f" (95 % interval {interval[0]:.2f} to {interval[1]:.2f})"
        now = console.percent(after["accuracy"], after["accuracy_interval"])
        was = console.percent(before["accuracy"])
        console.say(f"test accuracy {was} before, {now} after: {points:.2f} points {lost}{chance}")
        if not result.test["within_budget"]:
            budget = facts["spec"]["max_drop"]
            console.say(f"on test that is more than the budget of {budget:g}; it was within it on validation")
    console.say(f"{result.model_file} runs with: kitae predict {result.model_file} IMAGES")


@app.command
def export(run: Path, *, out: Path | None = None) -> None:
    """Write a run's best model as one verified ONNX file, preprocessing rules inside.

    Parameters
    ----------
    run
        A run folder.
    out
        The file; default RUN.onnx.
    """
    from kitae.pipelines.export import export as run_export

    written = run_export(run, out)
    console.say(f"{written.path}: {console.size(written.path.stat().st_size)}, verified against PyTorch")


@study_app.default
def study(
    spec: str | None = None,
    *,
    out: Path | None = None,
    set_: Sets = None,
    plan: Annotated[bool, Parameter(negative=())] = False,
    tiny: Annotated[bool, Parameter(negative=())] = False,
    workers: _Workers = 1,
    threads: _Threads = None,
    ray: _Ray = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Run a study, or go on with it, and print what it shows.

    Parameters
    ----------
    spec
        A study file or a shipped study's name; without it the shipped ones are listed.
    out
        The study folder; default runs/study-NAME. A study that was cut goes on from there.
    plan
        Print runs, estimated time and the smallest effect that the seeds can show, and stop.
    tiny
        The study's tiny twin: does the file run? Its numbers mean nothing.
    overwrite
        Replace the study in --out.
    """
    from kitae.experiments.run import plan_study
    from kitae.experiments.run import study as run_study
    from kitae.experiments.spec import shipped

    assignments = set_ or []
    if spec is None:
        console.table("", ["study"], [[name] for name in shipped()])
    elif plan:
        console.say(plan_study(spec, *assignments, tiny=tiny, workers=workers, threads=threads).text())
    else:
        result = run_study(
            spec, out, *assignments, tiny=tiny, workers=workers, threads=threads, overwrite=overwrite,
            executor=_ray(ray), report=console.say,
        )  # fmt: skip
        _told(result)


def _told(result: Any) -> None:
    """Print a study's result; exits with 1 where there is none, since every run failed."""
    console.say(result.table())
    console.say(f"everything is in {result.path}")
    if len(result.failed) == len(result.runs):
        sys.exit(1)


def _ray(address: str | None) -> Any:
    if address is None:
        return None
    from kitae.experiments.executors import RayCluster

    return RayCluster(None if address == "local" else address)


@study_app.command
def ablate(
    recipe: str,
    *,
    out: Path | None = None,
    set_: Sets = None,
    design: Literal["one_out", "one_in", "screening"] = "one_out",
    seeds: int = 3,
    only: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    metric: str = "test.accuracy",
    foldover: Annotated[bool, Parameter(negative=())] = False,
    plan: Annotated[bool, Parameter(negative=())] = False,
    workers: _Workers = 1,
    threads: _Threads = None,
    ray: _Ray = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Build and run the ablation of any recipe: what does each technique that it uses bring?

    Parameters
    ----------
    recipe
        A shipped recipe's name or a .yaml file.
    out
        The study folder; default runs/study-NAME.
    design
        one_out leaves each technique out, one_in adds each to none, screening measures averages over the others.
    seeds
        How many.
    only
        Names of the techniques to look at.
    metric
        Judged by: test.accuracy, val.accuracy, test.balanced_accuracy, ...; as in a study file.
    foldover
        With screening: twice the runs, and pairs of techniques no longer disturb the averages.
    plan
        Print the plan and stop.
    overwrite
        Replace the study in --out.
    """
    from kitae.experiments.ablate import build
    from kitae.experiments.run import plan_study
    from kitae.experiments.run import study as run_study

    spec = build(recipe, *(set_ or ()), design=design, seeds=seeds, only=only or (), metric=metric, foldover=foldover)
    if plan:
        console.say(plan_study(spec, workers=workers, threads=threads).text())
        return
    _told(
        run_study(
            spec, out, workers=workers, threads=threads, overwrite=overwrite, executor=_ray(ray),
            report=console.say,
        )
    )  # fmt: skip


@app.command
def search(
    data: str,
    *,
    recipe: str = "fashion-mini",
    out: Path = Path("runs/search"),
    set_: Sets = None,
    arms: int = 30,
    rematch_seeds: int = 5,
    workers: _Workers = 1,
    threads: _Threads = None,
    ray: _Ray = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Search augmentation, mixing and smoothing for your own data; presets first, a fair rematch at the end.

    Parameters
    ----------
    data
        A source, as data.source of a recipe.
    recipe
        The recipe whose model and length are used.
    out
        The search folder; a search that was cut goes on from there.
    arms
        Settings to try, the presets included.
    rematch_seeds
        Fresh seeds of the rematch between the winner and the best preset.
    overwrite
        Replace the search in --out.
    """
    from kitae.experiments.search import search as run_search

    result = run_search(
        recipe, out, f"data.source={json.dumps(data, ensure_ascii=False)}", *(set_ or ()), arms=arms,
        rematch_seeds=rematch_seeds, workers=workers, threads=threads, executor=_ray(ray), overwrite=overwrite,
        report=console.say,
    )  # fmt: skip
    console.say(result.table())
    console.say(f"the winner's recipe is {out / 'winner.yaml'}")


@app.command
def report(folder: Path) -> None:
    """Make one self-contained HTML page of a run, study or compression.

    Parameters
    ----------
    folder
        What `kitae train`, `study` or `compress` wrote.
    """
    from kitae.reporting.page import report as make_report

    console.say(f"written to {make_report(folder)}")


@show_app.command
def augment(data: str = "fashion-mini", *, out: Path = Path("gallery"), set_: Sets = None, seed: int = 0) -> None:
    """Draw every augmentation on your own training images.

    Parameters
    ----------
    data
        A source, as data.source of a recipe.
    out
        The folder for the pictures.
    """
    import numpy as np

    from kitae.data.splits import make_splits
    from kitae.data.store import open_store
    from kitae.reporting.gallery import draw_gallery

    spec = _data_spec(data, set_)
    with console.counting("decoding images") as progress:
        store = open_store(spec, progress=progress)
    train = make_splits(store, spec).train
    rows = np.concatenate([train[store.labels[train] == label][:8] for label in range(len(store.classes))])
    for file in draw_gallery(store.images[rows], store.labels[rows], store.classes, out, seed):
        console.say(str(file))


@data_app.command
def check(source: str, *, out: Path | None = None, set_: Sets = None) -> None:
    """Report broken images, class counts, sizes, duplicates and label conflicts of a source.

    Exits with 1 where something is unreadable, leaked across splits, in conflict, or in the way of training.

    Parameters
    ----------
    source
        As data.source of a recipe: folder:PATH, parquet:PATH, cifar10, ...
    out
        A folder for the full report (check.json) and a contact sheet.
    """
    from kitae.data.check import check as run_check

    spec = _data_spec(source, set_)
    with console.counting("reading images") as progress:
        report = run_check(spec, progress=progress, sheet=None if out is None else out / "contact-sheet.png")
    for line in report.lines():
        console.say(line)
    if out is not None:
        from kitae.files import write_json

        write_json(out / "check.json", report.to_dict())
        console.say(f"full report in {out}")
    if not report.ok:
        sys.exit(1)


@data_app.command
def prepare(source: str, *, set_: Sets = None) -> None:
    """Decode a source into its store now, so that training starts at once.

    Parameters
    ----------
    source
        As data.source of a recipe.
    """
    from kitae.data.store import open_store

    with console.counting("decoding images") as progress:
        store = open_store(_data_spec(source, set_), progress=progress)
    for name, why in store.skipped:
        console.say(f"left out: {name}: {why}")
    count, *shape = store.images.shape
    console.say(
        f"{count:,} images of {' x '.join(map(str, shape))}, "
        f"{len(store.classes)} classes, {console.size(store.images.nbytes)}"
    )


def _data_spec(source: str, assignments: list[str] | None) -> Any:
    from kitae.recipe import Recipe

    recipe = Recipe().override(f"data.source={json.dumps(source, ensure_ascii=False)}", *(assignments or ()))
    return recipe.data


@app.command
def bench(recipe: str = "fashion-mini", *, set_: Sets = None) -> None:
    """Time reading, augmenting and learning from one batch of a recipe on this machine.

    Parameters
    ----------
    recipe
        A shipped recipe's name or a .yaml file.
    """
    from kitae.pipelines.bench import bench as run_bench
    from kitae.recipe import Recipe

    with console.counting("decoding images") as progress:
        facts = run_bench(Recipe.load(recipe).override(*(set_ or ())), progress)
    count, copy = facts["batch_size"], facts["milliseconds"]["copy"]
    words = {"copy": "plain copy to float (the limit)", "gather": "reading the batch", "augment": "augmenting it"}
    rows = [
        [words[name], f"{time:.2f}", f"{1000 * count / time:,.0f}", f"{copy / time:.2f}"]
        for name, time in facts["milliseconds"].items()
    ]
    rows += [
        [f"forward and backward, {name}", f"{time:.1f}", f"{1000 * count / time:,.0f}", ""]
        for name, time in facts["step_milliseconds"].items()
    ]
    title = f"a batch of {count}, {facts['threads']} threads"
    console.table(title, ["", "ms", "images/s", "speed of the limit"], rows)
    console.say(
        f"augmentation takes {100 * facts['share']:.1f} % of a step; a copy against itself measured "
        f"{facts['control']:.2f} (1.00 on a quiet machine)"
    )


@app.command
def recipe(
    name: str | None = None, *, set_: Sets = None, schema: Annotated[bool, Parameter(negative=())] = False
) -> None:
    """List the shipped recipes, print one, or print the JSON schema of all recipes.

    Parameters
    ----------
    name
        A shipped recipe or a .yaml file; without it the shipped ones are listed.
    schema
        Print the JSON schema.
    """
    from kitae.recipe import Recipe, read_text, shipped

    if schema:
        sys.stdout.write(json.dumps(Recipe.model_json_schema(), indent=2) + "\n")
    elif name is None:
        rows = [[key, text.splitlines()[0].removeprefix("# ")] for key, text in shipped().items()]
        console.table("", ["recipe", "what it does"], rows, right=9)
    elif set_:
        sys.stdout.write(Recipe.load(name).override(*set_).to_yaml())
    else:
        Recipe.load(name)  # an invalid file is an error, not a page of text
        sys.stdout.write(read_text(name)[0])
