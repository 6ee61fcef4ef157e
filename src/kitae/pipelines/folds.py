"""Cross-validation: a run for each fold, which predicts the images of that fold, and a model trained on everything.

A fold's run is an ordinary run: its test split is the fold, its validation is held out from the other folds, and its
choices (the best epoch, the temperature) do not use the fold. So the accuracy over all folds counts every image once,
by a model that was not trained or chosen on it. These models have fewer training images than the final one, so the
estimate is slightly pessimistic.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae.data.splits import Splits
from kitae.errors import TrainingError
from kitae.evaluation.calibration import fit_temperature
from kitae.evaluation.evaluate import chosen, evaluate, predictions_table
from kitae.files import write_atomically
from kitae.pipelines.setup import Setup
from kitae.run import Run

_LOGITS = "test_logits.npy"


def tunes(folds: list[Run]) -> bool:
    """Whether more than half of the folds kept fine-tuning; in the others the probe was at least as good."""
    return sum((fold.best_epoch() or 0) > 0 for fold in folds) > len(folds) / 2


def keep_logits(run: Run, logits: NDArray[np.float32], single: NDArray[np.float32] | None) -> None:
    """Save the logits float32 [n, K] of a fold's test images, since its probabilities round small values to 0.

    Args:
        single: those of single views, if `logits` are of test-time augmentation.
    """
    buffer = io.BytesIO()
    np.save(buffer, logits if single is None else np.stack([logits, single]))
    write_atomically(run.path / _LOGITS, buffer.getvalue())


def _kept_logits(run: Run) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What `keep_logits` saved; without test-time augmentation both are the same array."""
    try:
        kept = np.load(run.path / _LOGITS, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TrainingError(f"{run.path}: {_LOGITS} cannot be read; remove the folder to train it again") from error
    return (kept, kept) if kept.ndim == 2 else (kept[0], kept[1])


def out_of_fold(setup: Setup, runs: list[Run]) -> tuple[dict[str, Any], Any]:
    """The results of the folds: each image as predicted by the model that was not trained on it.

    Args:
        setup: of the model on everything. `runs`: of the folds, in order.

    Returns:
        The numbers of evaluation.json (`out_of_fold`, with a line for each fold, and the `temperature` that was fitted
        to it), and the pyarrow Table of all predictions.

    Raises:
        TrainingError: the logits of a fold are missing or damaged.
    """
    rows, kept, own, lines = [], [], [], []
    for number, run in enumerate(runs, 1):
        evaluation, splits = run.evaluation(), Splits.load(run.path / "splits.npz")
        rows.append(splits.open_test(lambda: None))  # counted when the fold's run opened it
        kept.append(_kept_logits(run))
        own.append(evaluation["temperature"])
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
    every, store = every[order], setup.store
    labels = np.asarray(store.labels)[every]
    single = np.concatenate([single for _, single in kept])[order]
    temperature = fit_temperature(single, labels) if setup.recipe.evaluate.temperature else 1.0
    # Views were averaged at the fold's own temperature, which divides the result in place of the one fitted here.
    found = np.concatenate([
        logits if logits is single else logits * np.float32(temperature / before)
        for (logits, single), before in zip(kept, own, strict=True)
    ])[order]  # fmt: skip
    groups = store.groups_of(every)
    result = evaluate(found, labels, store.classes, temperature, groups=groups)
    covers = f"{chosen(groups)}; the {len(runs)} folds' models are held fixed"
    if temperature != 1:
        covers += ", and so is the temperature, which was fitted to these images"
    result["intervals"]["covers"] = covers
    names = [store.names[row] for row in every]
    table = predictions_table(names, labels, found, store.classes, temperature, groups)
    return {"out_of_fold": {**result, "folds": lines}, "temperature": temperature}, table
