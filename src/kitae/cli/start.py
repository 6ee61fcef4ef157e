"""Train, predict, report."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from kitae import console, views
from kitae.cli.app import START, Open, Sets, Whole, WholeOrDefault, answering, app, note_unfinished, show, write_page
from kitae.errors import CompressionError, DataError, RecipeError, require
from kitae.files import is_formula, unwritable, write_atomically, write_parquet
from kitae.folders import kind_of


@app.command(group=START, sort_key=1)
@answering
def train(
    data: str,
    *,
    minutes: float | None = None,
    folds: WholeOrDefault = None,
    model: str | None = None,
    epochs: WholeOrDefault = None,
    batch_size: WholeOrDefault = None,
    image_size: WholeOrDefault = None,
    lr: float | None = None,
    seed: WholeOrDefault = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    recipe: str | None = None,
    out: Path | None = None,
    set_: Sets = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    open_: Open = False,
) -> None:
    """Train, select and evaluate a classifier.

    Example: kitae train photos/ --minutes 5

    Args:
        data: A folder with one folder per class, a .parquet file, a .csv file, or a source's name.
            A recipe is planned for it. Or a shipped recipe's name or a .yaml file. With --resume, the run folder.
        minutes: Time limit for the whole command. By default the plan is made for up to 10 minutes.
        folds: Cross-validate with this many models, each tested on images it was not trained on.
            Then train one on everything. For few images, when a single split is unreliable.
        model: The network: a name as in model.name, such as resnet18 or timm:resnet50.
        epochs: Passes through the training images; 0 fits only a linear head on a pretrained network.
        batch_size: Images per training step.
        image_size: Side, in pixels, of the square images that the network sees.
            For an oblong, set height and width: --set 'data.image_size=[240, 320]'.
        lr: Peak learning rate.
        seed: Seed for everything random in training.
        device: Device to train on.
        recipe: Train with this shipped recipe or .yaml file on the data, instead of planning one.
        out: The run folder; default runs/NAME, with a number added if that exists.
        resume: Resume the unfinished run.
        overwrite: Replace the run in --out, or in runs/NAME; it comes back if the new one cannot start, or diverges.
        dry_run: Print the resolved recipe, the model's size, the steps and the estimated time, then stop.
    """
    folder = Path(data)
    if resume and kind_of(folder) == "run":
        if recipe is not None:
            raise RecipeError(f"--recipe {recipe}: cannot be used with --resume RUN, since the run has its own recipe")
        out = out or folder
    if resume and out is None:
        given = f", and {data} is not one (it has no recipe.yaml)" if len(folder.parts) > 1 else ""
        raise RecipeError(f"--resume needs the run folder{given}: kitae train --resume RUN")
    if folds is not None and not 2 <= folds <= 20:
        raise RecipeError(f"--folds {folds}: must be 2 to 20")
    main = int(os.environ.get("RANK", "0")) == 0  # of the processes of torchrun, only one prints
    with console.TrainingView() if main else nullcontext() as view:  # before the imports, which take seconds
        if main and not dry_run:
            console.starting(f"train {data}", bar=True)
        from kitae.pipelines.choices import Choices, to_resume
        from kitae.pipelines.pace import Clock, process_begun
        from kitae.pipelines.train import asked
        from kitae.pipelines.train import train as run_training
        from kitae.run import Run
        from kitae.training import distributed

        if main and out is not None and not dry_run:
            Run.check_free(out, resume=resume, overwrite=overwrite)
        clock = None if minutes is None else Clock.of(minutes, process_begun())
        choices = Choices(
            model=model, epochs=epochs, batch_size=batch_size, image_size=image_size, lr=lr, seed=seed, device=device,
            folds=folds, set=tuple(set_ or ()),
        )  # fmt: skip
        if resume and out is not None and recipe is None:
            data, choices = to_resume(data, out, choices)
        planned, clock, lines = asked(data, clock, choices, recipe, dry=dry_run)
        for line in lines if main else ():
            console.say(line)
        with console.counting("decoding images") if main else nullcontext() as progress:
            if dry_run:
                _print_plan(planned, clock, progress, main=main)
                return
            run = run_training(
                planned, out=out, minutes=clock, resume=resume, overwrite=overwrite, watcher=view, progress=progress
            )
        distributed.leave()
    if main:
        console.answer({"path": run.path, **run.evaluation()})
        console.table("", ["result", "value (95 % interval)"], views.run_rows(run.evaluation(), run.metrics()))
        console.say(f"everything is in {run.path}")
        # A model trained on everything has no images left to judge a compression by.
        path = shlex.quote(str(run.path))
        more = f"kitae export {path}" if run.recipe.data.whole else f"kitae compress {path} --max-drop 1.0"
        write_page(run.path, f"kitae predict {path} IMAGES", more, browser=open_)


def _print_plan(recipe: Any, clock: Any, progress: Any, *, main: bool) -> None:
    from kitae.pipelines.bench import estimate

    facts = estimate(recipe, progress)  # by all processes, which measure together
    if not main:
        return
    if clock is not None and clock.most is None:  # otherwise the plan is one for these minutes
        minutes = f"{clock.seconds / 60:g}"
        facts["notes"].append(f"--minutes {minutes}: if the training does not fit, it is cut when it begins")
    console.answer(facts)
    console.say(facts["recipe"].to_yaml())
    channels, height, width = facts["image"]
    length = console.plural(facts["recipe"].train.last_epoch, "epoch")
    whole, epoch = console.duration(facts["seconds"]), console.duration(facts["seconds_per_epoch"])
    console.table(
        "", ["plan", "value"],
        [
            ["images", f"{facts['train']:,} train, {facts['val']:,} val, {facts['test']:,} test (not opened)"],
            ["classes", str(facts["classes"])],
            ["image", f"{channels} x {height} x {width}"],
            *(["note", line] for line in facts["notes"]),
            ["model", f"{facts['parameters']:,} parameters, {facts['macs'] / 1e6:,.1f} M multiply-adds per image"],
            ["steps", f"{facts['steps_per_epoch']:,} per epoch, {length}"],
            ["precision", facts["recipe"].train.precision],
            ["estimated time", f"{whole} ({epoch} per epoch)"],
        ],
    )  # fmt: skip


@app.command(group=START, sort_key=3)
@answering
def evaluate(
    run: Path,
    *,
    split: Literal["train", "val", "test"] = "test",
    tta: Literal["none", "flip", "shift", "scale", "full"] | None = None,  # the type's module would import pydantic
    robustness: bool = False,
) -> None:
    """Evaluate a run's best model again; each evaluation on test is counted in the run folder.

    Example: kitae evaluate runs/mine --split val

    Args:
        run: A run folder.
        split: The images to measure on.
        tta: Test-time augmentation, averaged in probability space; default is the recipe's.
        robustness: Measure on 1,000 of the images as they are, and rotated, darkened, blurred, covered ...
    """
    if robustness:
        _print_robustness(run, split, tta)
        return
    with console.status(f"evaluate {run}"):
        opened = _opened(run)
        result = opened.evaluate(split, tta)
    note_unfinished(opened)
    console.answer({"path": run, "split": split, **result, "test_openings": opened.test_openings})
    rows = [
        [name, console.percent(entry["accuracy"], entry["accuracy_interval"]), str(entry["count"])]
        for name, entry in result["per_class"].items()
    ]
    console.table(f"{split}: accuracy of each class", ["class", "accuracy (95 % interval)", "images"], rows)
    console.say(
        f"{split} accuracy {console.percent(result['accuracy'], result['accuracy_interval'])}  "
        f"loss {result['loss']:.4f}  calibration error {console.percent(result['ece'])}"
    )
    if opened.recipe.train.by_class:
        console.say(
            f"balanced {split} accuracy "
            f"{console.percent(result['balanced_accuracy'], result['balanced_accuracy_interval'])}  "
            f"macro F1 {console.percent(result['macro_f1'], result['macro_f1_interval'])}"
        )
    for name, accuracy in views.without_duplicates(result):
        console.say(f"{split} accuracy {name} {accuracy}")
    if split == "test":
        console.say(f"the test set of this run has been opened {console.plural(opened.test_openings, 'time')}")


def _opened(run: Path) -> Any:
    """The run, in a process that keeps the memory of activations for the next ones, as that of `kitae train` does."""
    from kitae.run import Run

    opened = Run.open(run)  # before PyTorch is imported, which another path would not need
    from kitae.training.guards import keep_freed_memory

    keep_freed_memory()
    return opened


def _print_robustness(run: Path, split: str, tta: str | None) -> None:
    """Measure a run on corrupted images and print its accuracies."""
    if tta not in (None, "none"):
        raise RecipeError(f"--tta {tta}: --robustness takes one view of each image; leave one of them out")
    with console.status(f"evaluate {run}"):
        from kitae.pipelines.robustness import CORRUPTIONS, robustness

        opened = _opened(run)
        result = robustness(opened, split)
    note_unfinished(opened)
    console.answer({"path": run, "split": split, **result, "test_openings": opened.test_openings})
    rows = [["none", "", "", console.percent(result["clean"]["accuracy"], result["clean"]["accuracy_interval"])]]
    for name, row in result["corruptions"].items():
        kind, severities, *_ = CORRUPTIONS[name]
        shown = console.percent(row["accuracy"], row["accuracy_interval"])
        rows.append([name, kind, ", ".join(f"{severity:g}" for severity in severities), shown])
    title = f"{split}: accuracy on {result['count']:,} images, the mean over the severities of a corruption"
    console.table(title, ["corruption", "imitates", "severities", "accuracy (95 % interval)"], rows, right=3)
    if split == "test":
        console.say(f"the test set of this run has been opened {console.plural(opened.test_openings, 'time')}")


@app.command(group=START, sort_key=2)
@answering
def predict(
    model: Path,
    images: list[Path],
    *,
    out: Path | None = None,
    top: Whole = 3,
    on_corrupt: Literal["error", "skip"] = "error",
) -> None:
    """Classify image files or folders with a run or an exported model.

    Example: kitae predict runs/mine photos/ --out predictions.csv

    Args:
        model: A run folder, or a .onnx file that `kitae export` or `kitae compress` wrote.
        images: Files and folders.
        out: Also write every probability to this .csv or .parquet file.
        top: How many classes to show for an image.
        on_corrupt: What to do with an unreadable image: stop, or skip it and list it at the end.
    """
    with console.status(f"predict {model}"):
        from kitae.preprocess import list_images

        if top < 1:
            raise RecipeError("--top: must be at least 1")
        if out is not None:
            _check_out(out)
        if kind_of(model) == "compression":
            # Not by CompressionResult: this must work where PyTorch is not installed.
            inner = next((file for file in (model / "model.onnx", model / "closest.onnx") if file.is_file()), model)
            raise CompressionError(
                f"{model}: is a compression folder; use its model file: kitae predict {shlex.quote(str(inner))} IMAGES"
            )
        wanted = list_images(images)
        if model.suffix == ".onnx" and not os.path.isdir(model):
            from kitae.runtime import Model

            with warnings.catch_warnings(record=True) as noted:
                warnings.simplefilter("always", UserWarning)
                trained: Any = Model(model)
            for warning in noted:
                console.remark(f"note: {warning.message}")
        else:
            run = _opened(model)
            trained = run.predictor()  # loads the weights once
            note_unfinished(run)
        classes = trained.classes
        if out is not None and out.exists() and not _are_predictions(out, classes):
            raise RecipeError(
                f"--out {out}: exists and does not hold predictions of these classes; choose another name, or remove "
                "the file"
            )
        files, probabilities, broken = _classified(trained, wanted, skip=on_corrupt == "skip")
    rows, found = [], []
    for file, shares in zip(files, probabilities, strict=True):
        best = [(classes[k], float(shares[k])) for k in (-shares).argsort(kind="stable")[:top]]
        rows.append([str(file), best[0][0], "  ".join(f"{name} {100 * share:.1f} %" for name, share in best)])
        found.append({"image": file, "class": best[0][0], "best": [{"class": c, "probability": p} for c, p in best]})
    if out is not None:  # before anything is printed, which fails where a pipe is closed
        _write_predictions(out, files, [row["class"] for row in found], probabilities, classes)
    console.answer({"predictions": found, "skipped": broken})
    if rows or not broken:
        rest = f"are in {out}" if out else "not shown; --out FILE.csv saves all"
        console.listing(["image", "class", f"best {min(top, len(classes))}"], rows, rest, right=9)
    if out is not None:
        console.remark(f"written to {out}")
    if broken:
        console.remark(f"skipped {console.plural(len(broken), 'unreadable image')}:")
        for line in broken:
            console.remark(f"  {line}")


def _check_out(out: Path) -> None:
    """Refuse a file that could not be written, before the images are classified."""
    if out.suffix not in (".csv", ".parquet"):
        raise RecipeError(f"--out {out}: must end in .csv or .parquet")
    if out.suffix == ".parquet":
        require("pyarrow")
    if os.path.isdir(out):
        raise RecipeError(f"--out {out}: is a folder; give a file")
    if problem := unwritable(out):
        raise RecipeError(f"--out {out}: {problem}; choose another folder")
    if kind_of(out.parent) == "run":
        from kitae.run import RUN_FOLDER

        if out.name in RUN_FOLDER.names:
            raise RecipeError(f"--out {out}: is a file of the run itself; choose another name")


_SHARE = re.compile(r"[01]\.\d{6}")  # a probability in a .csv file


def _cell(name: str) -> str:
    """A name in a .csv file, as text of a spreadsheet: names come from the files and the model of others."""
    return f"'{name}" if is_formula(name) else name


def _head(classes: tuple[str, ...]) -> list[str]:
    """The columns of predictions in a .csv file."""
    return ["image", "class", *(_cell(console.printable(name)) for name in views.class_columns(classes))]


def _are_predictions(file: Path, classes: tuple[str, ...]) -> bool:
    """Whether `predict` wrote a file for these classes, so that it may be replaced.

    A list of labels that one trains with may begin with `image` and `class` too, and have a column of each class.
    """
    try:
        if file.suffix == ".csv":
            with file.open(encoding="utf-8", newline="") as text:
                rows = csv.reader(text)
                return next(rows, None) == _head(classes) and all(map(_SHARE.fullmatch, next(rows, [])[2:]))
        with file.open("rb") as content:  # pyarrow itself only opens paths in UTF-8
            names = require("pyarrow.parquet").read_schema(content).names
        return bool(names == ["image", "class", "probabilities"])
    except (OSError, ValueError, csv.Error):  # pyarrow's own errors derive from the second
        return False


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
            except DataError as error:
                if not skip:
                    raise DataError(f"{error} (--on-corrupt skip leaves such images out)") from error
                for file in some:  # find the broken one: only its own call tells
                    try:
                        probabilities += list(model.predict([file]).probabilities)
                        read.append(file)
                    except DataError as error:
                        broken.append(str(error))
            progress(min(start + _PREDICTED_AT_ONCE, len(files)), len(files))
    return read, probabilities, broken


def _write_predictions(
    out: Path, files: list[Path], names: list[str], probabilities: list[Any], classes: tuple[str, ...]
) -> None:
    if out.suffix == ".csv":
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(_head(classes))
        for file, name, shares in zip(files, names, probabilities, strict=True):
            path = f"./{file}" if is_formula(str(file)) else str(file)
            writer.writerow([path, _cell(name), *(f"{share:.6f}" for share in shares)])
        write_atomically(out, console.printable(text.getvalue()).encode())
        return
    import numpy as np

    pa = require("pyarrow")
    named = [console.printable(name) for name in classes]
    shares = np.array(probabilities, np.float32).reshape(len(files), len(classes))
    table = pa.table(
        {
            "image": pa.array([console.printable(file) for file in files], pa.string()),
            "class": pa.array([console.printable(name) for name in names], pa.string()),
            "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(shares.reshape(-1)), len(classes)),
        },
        metadata={"classes": json.dumps(named)},  # as in the run's own predictions
    )
    write_parquet(table, out)


@app.command(group=START, sort_key=4)
def report(folders: list[Path], *, out: Path | None = None, open_: Open = False) -> None:
    """Make one self-contained HTML page of a run, study or compression, or compare several runs.

    Example: kitae report runs/mine

    Args:
        folders: Folders that `kitae train`, `study` or `compress` wrote; two or more runs are compared.
        out: The page of a comparison; default comparison.html beside the first run.
    """
    from kitae.reporting import page

    if len(folders) == 1:
        if out is not None:
            raise RecipeError(f"--out {out}: only for comparing several runs; the page of one run is in its folder")
        written = page.report(folders[0])
    else:
        written = page.compare(folders, out)
    console.say(f"page: {written}")
    if open_:
        show(written)
