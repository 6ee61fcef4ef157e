"""Accuracy on corrupted images: the same test images under corruptions of rising severity.

A corruption is a function given by the caller. It is applied to each batch before the model, and the result is compared
with the clean images in pairs. Severities and the mean over corruptions are from Hendrycks and Dietterich 2019,
"Benchmarking neural network robustness to common corruptions".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from kitae.errors import DataError
from kitae.evaluation import intervals
from kitae.evaluation.evaluate import Gather, predict_logits

Corruption = Callable[[NDArray[np.uint8], NDArray[np.int64]], NDArray[np.uint8]]
"""images uint8 [b, C, H, W], rows int64 [b] -> images of the same shape. The rows key its noise, if it has any, so that
an image is corrupted the same way in every batch."""


def accuracy_under(
    model: nn.Module,
    gather: Gather,
    rows: ArrayLike,
    corruptions: Mapping[str, Sequence[Corruption]],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, Any]:
    """Accuracy clean, and under each corruption at each severity (1, 2, ... in the order given).

    Args:
        corruptions: name -> its functions from mild to strong.
        progress: called with (name, severity) before each pass over the images; ("clean", 0) first.
        Others as `predict_logits`.

    Returns:
        clean: count, accuracy, accuracy_interval (Wilson).
        corruptions: name -> list of severity, accuracy, accuracy_interval, difference (to clean, on the same images),
        difference_interval.
        mean_accuracy: over all corruptions and severities; null where there are none.

    Raises:
        DataError: no rows, or a corruption changed shape or dtype.
        TrainingError: a logit is not finite.
    """

    def predict(name: str, severity: int, corrupt: Corruption | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if progress is not None:
            progress(name, severity)

        def corrupted(index: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
            images, labels = gather(index)
            if corrupt is None:
                return images, labels
            worse = np.asarray(corrupt(images, index))
            if worse.shape != images.shape or worse.dtype != np.uint8:
                raise DataError(
                    f"corruption {name} must give uint8 {list(images.shape)}, not {worse.dtype} {list(worse.shape)}"
                )
            return worse, labels

        logits, labels = predict_logits(
            model, corrupted, rows, mean=mean, std=std, batch_size=batch_size, device=device
        )
        return logits.argmax(axis=1), labels

    clean, labels = predict("clean", 0, None)
    results: dict[str, list[dict[str, Any]]] = {}
    accuracies: list[float] = []
    for name, functions in corruptions.items():
        results[name] = []
        for severity, function in enumerate(functions, 1):
            predicted, _ = predict(name, severity, function)
            difference = intervals.paired_difference(clean, predicted, labels)
            results[name].append(
                {
                    "severity": severity,
                    **intervals.accuracy(int((predicted == labels).sum()), len(labels)),
                    "difference": difference["difference"],
                    "difference_interval": difference["interval"],
                }
            )
            accuracies.append(results[name][-1]["accuracy"])
    return {
        "clean": {"count": len(labels), **intervals.accuracy(int((clean == labels).sum()), len(labels))},
        "corruptions": results,
        "mean_accuracy": float(np.mean(accuracies)) if accuracies else None,
    }
