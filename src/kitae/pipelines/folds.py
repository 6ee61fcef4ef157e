"""Cross-validation: a run for each fold, which predicts the images of that fold, and a model trained on everything.

A fold's run is an ordinary run: its test split is the fold, its validation is held out from the other folds, and its
choices (the best epoch, the temperature) do not use the fold. So the accuracy over all folds counts every image once,
by a model that was not trained or chosen on it. These models have fewer training images than the final one, so the
estimate is slightly pessimistic.
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
_PAGES = 0.2  # a fold writes no page, so its end takes this share of the time of a run with one

TrainFold = Callable[[Recipe, Path, Clock | None], Run]
"""Trains a recipe into a folder, or resumes it there."""


def split_clock(clock: Clock, runs: int) -> Clock:
    """The clock of one of `runs` runs, with an equal share of the time left."""
    now = time.monotonic()
    return replace(
        clock, seconds=(clock.begun + clock.seconds - now) / runs, begun=now, starting=_PAGES * clock.starting
    )


def train_folds(run: Run, clock: Clock | None, train_fold: TrainFold, watcher: Watcher | None) -> list[Run]:
    """The finished runs of all folds, in order; existing runs are resumed if unfinished, and reused if finished."""
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
    """Whether more than half of the folds kept fine-tuning; in the others the probe was at least as good."""
    return sum((fold.best_epoch() or 0) > 0 for fold in folds) > len(folds) / 2


def keep_logits(run: Run, logits: NDArray[np.float32]) -> None:
    """Save the logits float32 [n, K] of a fold's test images, since its probabilities round small values to 0."""
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
    """The out-of-fold predictions: each image is predicted by the model that was not trained on it.

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
        """The predictions of the folds' runs. `labels`: int64 [M], of the store."""
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
        """Write predictions.parquet, with the out-of-fold prediction of every image."""
        names = [setup.store.names[row] for row in self.rows]
        table = predictions_table(names, self.labels, self.logits, setup.store.classes, temperature)
        run.write_predictions(table)
