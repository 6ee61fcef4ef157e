"""Cross-validation: a run for each fold, which predicts the images that it has not seen, and a model on everything.

A fold's run is one like any other: its test split is the fold, its validation is held out from the others, and what it
decides (the best epoch, the temperature) is decided without the fold. So the accuracy of all folds together is that of
images which played no part, on every image once. It is measured on models of fewer images than the one on everything
has, which errs on the careful side.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae.data.splits import Splits
from kitae.errors import TrainingError
from kitae.evaluation.calibration import fit_temperature
from kitae.evaluation.evaluate import evaluate, predictions_table
from kitae.files import write_atomically
from kitae.pipelines.pace import Clock
from kitae.pipelines.setup import Setup
from kitae.recipe import Recipe
from kitae.run import Run
from kitae.training.fit import Watcher

_LOGITS = "test_logits.npy"
_PAGES = 0.2  # of what the end of a run with a page takes: a fold has none

TrainFold = Callable[[Recipe, Path, Clock | None], Run]
"""Trains a recipe into a folder, or resumes it there."""


def split_clock(clock: Clock, runs: int) -> Clock:
    """The share of one of so many runs in what is left of the minutes."""
    now = time.monotonic()
    return replace(
        clock, seconds=(clock.begun + clock.seconds - now) / runs, begun=now, starting=_PAGES * clock.starting
    )


def train_folds(run: Run, clock: Clock | None, train_fold: TrainFold, watcher: Watcher | None) -> list[Run]:
    """The finished runs of all folds, in order; those that are there already are resumed, or taken as they are."""
    folds = run.recipe.data.folds or 0
    runs = []
    for number in range(1, folds + 1):
        folder = run.fold(number)
        begun = (folder / "recipe.yaml").is_file()  # and the minutes may have cut it
        recipe = Recipe.load(folder / "recipe.yaml") if begun else run.recipe.override(f"data.fold={number}")
        if watcher is not None:
            watcher.note(f"fold {number} of {folds}")
        share = None if clock is None else split_clock(clock, folds + 2 - number)
        runs.append(train_fold(recipe, folder, share))
    return runs


def tunes(folds: list[Run]) -> bool:
    """Whether fine-tuning was kept in more than half of the folds; in the others the probe was at least as good."""
    return sum((fold.best_epoch() or 0) > 0 for fold in folds) > len(folds) / 2


def keep_logits(run: Run, logits: NDArray[np.float32]) -> None:
    """Keep the logits float32 [n, K] of a fold's test images: its probabilities round small ones to 0."""
    buffer = io.BytesIO()
    np.save(buffer, logits)
    write_atomically(run.path / _LOGITS, buffer.getvalue())


def _kept_logits(run: Run) -> NDArray[np.float32]:
    try:
        logits: NDArray[np.float32] = np.load(run.path / _LOGITS, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{run.path}: {_LOGITS} cannot be read; remove the folder to train it again") from error
    return logits


@dataclass(frozen=True)
class OutOfFold:
    """What the folds' models say of the images that they have not seen.

    Attributes:
        rows: int64 [n], of the store, sorted. labels: int64 [n].
        logits: float32 [n, K], up to a constant in each row.
        folds: a line for each fold: `fold`, `count`, `accuracy`, `best_epoch`, `trained_on` (images).
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    folds: list[dict[str, Any]]

    @classmethod
    def of(cls, runs: list[Run], labels: NDArray[np.int64]) -> OutOfFold:
        """Read from the folds' runs. `labels`: int64 [M], of the store."""
        rows, logits, lines = [], [], []
        for number, run in enumerate(runs, 1):
            evaluation, splits = run.evaluation(), Splits.load(run.path / "splits.npz")
            rows.append(splits.open_test(lambda: None))  # counted when the fold's run opened it
            logits.append(_kept_logits(run))
            lines.append(
                {
                    "fold": number,
                    "count": len(rows[-1]),
                    "accuracy": evaluation["test"]["accuracy"],
                    "best_epoch": evaluation["best_epoch"],
                    "trained_on": len(splits.train),
                }
            )
        every = np.concatenate(rows)
        order = np.argsort(every)
        found = np.concatenate(logits)[order]
        return cls(every[order], np.asarray(labels)[every[order]], found, lines)

    def evaluated(self, run: Run, setup: Setup) -> dict[str, Any]:
        """The numbers of evaluation.json: `out_of_fold`, and the `temperature` that was fitted to it."""
        classes = setup.store.classes
        temperature = fit_temperature(self.logits, self.labels) if run.recipe.evaluate.temperature else 1.0
        result = evaluate(self.logits, self.labels, classes, temperature)
        covers = f"the choice of images; the {len(self.folds)} folds' models are held fixed"
        if temperature != 1:
            covers += ", and so is the temperature, which was fitted to these images"
        result["intervals"]["covers"] = covers
        return {"out_of_fold": {**result, "folds": self.folds}, "temperature": temperature}

    def write_predictions(self, run: Run, setup: Setup, temperature: float) -> None:
        """predictions.parquet, of every image by the model that has not seen it."""
        names = [setup.store.names[row] for row in self.rows]
        table = predictions_table(names, self.labels, self.logits, setup.store.classes, temperature)
        run.write_predictions(table)
