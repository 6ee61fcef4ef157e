"""Do probabilities mean what they say? Expected calibration error, and one temperature that mends most of it.

Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", 2017.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kitae.errors import DataError, TrainingError

BINS = 15
TEMPERATURE_RANGE = (0.05, 20.0)


def check_logits(logits: ArrayLike, labels: ArrayLike | None = None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits as float32 [N, K] (N >= 1, K >= 2, finite) and labels as int64 [N] in [0, K) (empty where none are given).

    Raises:
        DataError: shapes or labels are wrong, or there is no image.
        TrainingError: a logit is not finite.
    """
    values = np.asarray(logits, dtype=np.float32)
    if values.ndim != 2 or values.shape[1] < 2:
        raise DataError(f"logits must be [N, K] with at least 2 classes, not {list(values.shape)}")
    if len(values) == 0:
        raise DataError("there are no images to evaluate; the split is empty")
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise TrainingError(
            f"the model's outputs are not finite for {int(bad.sum())} of {len(values)} images (first: position "
            f"{int(bad.argmax())}); training diverged or fp16 overflowed: try a lower learning rate, bf16 or fp32"
        )
    if labels is None:
        return values, np.empty(0, dtype=np.int64)
    truth = np.asarray(labels)
    if truth.dtype.kind not in "iu" or truth.shape != values.shape[:1]:
        raise DataError(f"labels must be integers [{len(values)}], not {truth.dtype} {list(truth.shape)}")
    if truth.min() < 0 or truth.max() >= values.shape[1]:
        raise DataError(
            f"labels must be in [0, {values.shape[1]}), but go from {truth.min()} to {truth.max()}; the model has "
            f"{values.shape[1]} classes"
        )
    return values, truth.astype(np.int64)


def log_probabilities(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """log softmax(logits / temperature): float64 [N, K]. In float64, so that dividing makes no ties."""
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive, not {temperature}")
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    shifted = scaled - scaled.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def probabilities(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """softmax(logits / temperature): float64 [N, K], rows sum to 1.

    Take predictions from the logits, not from here: a probability can round to the same number as another.
    """
    return np.asarray(np.exp(log_probabilities(logits, temperature)))


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature that minimises the mean negative log likelihood of `labels`, in [0.05, 20]; fit on validation.

    Dividing logits by one positive number never changes which is largest, so accuracy stays as it is. The loss is
    convex in 1 / temperature, so the minimum found is the only one. A validation set without a mistake has none (ever
    sharper is ever better): there, and on one no better than chance, an end of the range comes back.

    Args:
        logits: float [N, K].
        labels: int [N].

    Raises:
        DataError, TrainingError: as `check_logits`.
    """
    from scipy.optimize import minimize_scalar

    values, truth = check_logits(logits, labels)
    exact = values.astype(np.float64)
    rows = np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        return float(-log_probabilities(exact, float(np.exp(log_temperature)))[rows, truth].mean())

    low, high = np.log(TEMPERATURE_RANGE)
    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    candidates = [float(best.x), low, high]
    return float(np.exp(min(candidates, key=loss)))


def bin_errors(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = BINS
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Of each prediction its bin, int64 [N] (equal widths, upper edge included), and confidence - correct, [N]."""
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return index, confidence - correct


def expected_calibration_error(
    logits: ArrayLike, labels: ArrayLike, temperature: float = 1.0, bins: int = BINS
) -> float:
    """Mean over predictions of |accuracy - confidence| of their bin, in [0, 1] (Guo et al. 2017, equation 3).

    Confidence is the probability of the predicted class; `bins` bins of equal width over (0, 1]. The estimate leans
    upwards on few images, since noise in a bin never cancels.

    Raises:
        DataError, TrainingError: as `check_logits`.
    """
    values, truth = check_logits(logits, labels)
    predicted = values.argmax(axis=1)
    confidence = probabilities(values, temperature)[np.arange(len(truth)), predicted]
    index, error = bin_errors(confidence, predicted == truth, bins)
    return float(np.abs(np.bincount(index, error, bins)).sum() / len(truth))


def reliability(
    logits: ArrayLike, labels: ArrayLike, temperature: float = 1.0, bins: int = BINS
) -> list[dict[str, float | int | None]]:
    """The bins of a reliability diagram: low, high, count, confidence and accuracy (null where a bin is empty)."""
    values, truth = check_logits(logits, labels)
    predicted = values.argmax(axis=1)
    confidence = probabilities(values, temperature)[np.arange(len(truth)), predicted]
    index, _ = bin_errors(confidence, predicted == truth, bins)
    rows: list[dict[str, float | int | None]] = []
    for i in range(bins):
        inside = index == i
        count = int(inside.sum())
        rows.append(
            {
                "low": i / bins,
                "high": (i + 1) / bins,
                "count": count,
                "confidence": float(confidence[inside].mean()) if count else None,
                "accuracy": float((predicted == truth)[inside].mean()) if count else None,
            }
        )
    return rows
