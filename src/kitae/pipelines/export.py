"""export(run): a trained network as one verified file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kitae import console
from kitae.deployment.onnx import Card, Exported
from kitae.deployment.onnx import export as write_onnx
from kitae.errors import DataError, ExportError, require
from kitae.files import unwritable, user_path
from kitae.folders import kind_of
from kitae.modes import torch_defaults
from kitae.pipelines.setup import Setup
from kitae.run import Run
from kitae.runtime import METADATA_KEY

VERIFY_IMAGES = 256


@torch_defaults()
def export(run: Run | str | Path, out: str | Path | None = None) -> Exported:
    """Write a run's best weights as one verified ONNX file.

    Args:
        out: the file; by default next to the run's folder, with the same name.

    Raises:
        TrainingError: the run has no best model yet.
        ExportError: the file cannot be made, or would replace one that was not exported by Kitae; the network cannot
            be exported, or the file does not compute what it computes.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    file = user_path(out) if out is not None else beside(run.path, ".onnx")
    if file.is_dir():
        raise ExportError(f"{file}: is a folder; give a file, such as {file / beside(run.path, '.onnx').name}")
    if file.suffix != ".onnx":  # what `predict` and `kt.load` know a file by
        raise ExportError(f"{file}: must end in .onnx")
    if problem := unwritable(file):
        raise ExportError(f"{file}: {problem}; choose another file")
    if file.exists() and (problem := _not_an_export(file)):
        raise ExportError(f"{file}: {problem}")
    model = run.load_model()
    try:
        with console.counter(None, "decoding images") as progress:
            setup = Setup.of(run, progress)
        rows = setup.splits.val if len(setup.splits.val) else setup.splits.train
        spread = np.linspace(0, len(rows) - 1, min(len(rows), VERIFY_IMAGES)).round().astype(np.int64)  # over classes
        images = setup.image_set(rows).gather(rows[spread])[0]
    except DataError:  # the data has moved; generated pictures verify a file too
        images = None
    return write_onnx(model, file, card(run), images)


def _not_an_export(file: Path) -> str | None:
    """Why a file may not be replaced; None for one that was exported by Kitae."""
    if kind_of(file.parent) == "compression":
        return "is the model of a compression; choose another name"
    onnx = require("onnx")
    try:
        exported = any(entry.key == METADATA_KEY for entry in onnx.load(file).metadata_props)
    except Exception:  # protobuf's error derives from nothing nearer
        exported = False
    return None if exported else "exists and was not exported by Kitae; choose another name, or remove the file"


def card(run: Run) -> Card:
    """The metadata of an exported file of this run."""
    facts = run.facts()
    return Card(
        classes=run.classes,
        rules=run.rules,
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        temperature=float(facts["temperature"]),
        recipe=run.recipe.name,
    )


def beside(folder: Path, suffix: str) -> Path:
    """A path next to a folder with the folder's name and a suffix; the folder may be `.`."""
    whole = folder.resolve()
    return whole.with_name(f"{whole.name}{suffix}")
