"""From a model to its numbers: logits of every image once, then metrics with intervals.

Only predict_logits runs a network; the other functions compute metrics from float32 [N, K] logits and int64 [N] labels,
so every number can be recomputed from the predictions file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from kitae.console import plural, printable
from kitae.evaluation import intervals
from kitae.evaluation.calibration import calibration_error, check_logits, log_probabilities, probabilities
from kitae.modes import convolutions_in_float32, evaluating

if TYPE_CHECKING:
    import pyarrow as pa

Gather = Callable[[NDArray[np.int64]], tuple[NDArray[np.uint8], NDArray[np.int64]]]
"""rows int64 [b] -> images uint8 [b, C, H, W], labels int64 [b]."""

_PASS_PIXELS, _FEWEST = 64 * 224 * 224, 8  # of a forward pass on a CPU

View = Callable[[NDArray[np.uint8]], Iterable[NDArray[np.uint8]]]
"""images uint8 [b, C, H, W] -> their views, each uint8 [b, C, H, W]."""


def predict_logits(
    model: nn.Module,
    gather: Gather,
    rows: ArrayLike,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    views: View | None = None,
    temperature: float = 1.0,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits of the images at `rows`, each exactly once and in their order.

    The model runs in eval mode without gradients, and every module gets its mode back afterwards. It must already be on
    `device`. Pixels become (pixel / 255 - mean) / std in float32, and then the model's own dtype. A GPU convolves in
    float32 too, and not in TF32. No random number is drawn.

    Args:
        gather: fetches a batch.
        rows: int [N], what `gather` understands; at least one.
        mean, std: one number a channel; None leaves pixels in [0, 1].
        batch_size: images per forward pass; on a CPU those that are fetched together, and a pass has as many as
            `images_per_pass` says. Both change results by rounding only.
        views: test-time augmentation. The calibrated probabilities, softmax(logits / temperature), are averaged over
            the views, and temperature times the log of the mean comes back in place of logits: whatever follows divides
            by the temperature as it always does.
        temperature: of the calibration; without views it has no effect here.

    Returns:
        logits float32 [N, K] and labels int64 [N].

    Raises:
        TrainingError: a logit is not finite.
    """
    index = np.asarray(rows, dtype=np.int64)
    convert = _normalizer(model, mean, std, torch.device(device))
    outputs: list[Tensor] = []
    truths: list[NDArray[np.int64]] = []

    def forward(images: NDArray[np.uint8]) -> Tensor:
        if views is None:
            return model(convert(images)).float()  # type: ignore[no-any-return]
        each = [model(convert(view)).float() / temperature for view in views(images)]
        logs = torch.stack([F.log_softmax(logits, dim=1) for logits in each])
        return temperature * (logs.logsumexp(dim=0) - float(np.log(len(logs))))

    with evaluating(model), torch.no_grad(), convolutions_in_float32():
        for start in range(0, index.size, batch_size):
            images, labels = gather(index[start : start + batch_size])
            passes = math.ceil(len(images) / images_per_pass(images.shape, device))
            outputs += map(forward, np.array_split(images, passes))
            truths.append(np.asarray(labels, dtype=np.int64))
    # One copy at the end: a copy per batch would make a GPU wait for each.
    return check_logits(torch.cat(outputs).cpu().numpy()), np.concatenate(truths)


def images_per_pass(shape: Sequence[int], device: str | torch.device) -> int:
    """How many of the images [N, C, H, W] a forward pass takes at most: all on a GPU, 64 of 224 px on a CPU.

    The activations of a larger pass may exceed what the C library keeps for the next one (`guards.keep_freed_memory`).
    Then each pass faults its memory in again, which costs an EfficientNet-Lite0 a fifth of its speed with 256 images
    of 224 px (benchmarks/results/passes.json).
    """
    if torch.device(device).type != "cpu":
        return shape[0]
    return max(_FEWEST, _PASS_PIXELS // (shape[2] * shape[3]))


def _normalizer(
    model: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None, device: torch.device
) -> Callable[[NDArray[np.uint8]], Tensor]:
    """From uint8 [b, C, H, W] on the host to normalised tensors on the device, of the model's dtype and layout."""
    floating = [p for p in model.parameters() if p.is_floating_point()]
    dtype = floating[0].dtype if floating else torch.float32
    last = any(
        p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in floating
    )
    memory_format = torch.channels_last if last else torch.contiguous_format
    centre, spread = (v if v is None else torch.tensor(v, device=device).reshape(1, -1, 1, 1) for v in (mean, std))

    def normalized(images: NDArray[np.uint8]) -> Tensor:
        pixels = np.require(images, requirements=["C", "W"])  # a flipped view or a read-only memory map is copied
        batch = torch.from_numpy(pixels).to(device).to(torch.float32, memory_format=memory_format).div_(255)
        if centre is not None:
            batch.sub_(centre)
        if spread is not None:
            batch.div_(spread)
        return batch.to(dtype)

    return normalized


def label_scores(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Metrics of the predicted labels: accuracy, and two means over classes with equal weights.

    Args:
        predicted, labels: int [N].

    Returns:
        val_accuracy; val_balanced_accuracy (mean recall of the classes that `labels` has); val_macro_f1 (mean F1 of the
        classes that either has, as scikit-learn's `f1_score(average="macro")`).
    """
    K = int(max(predicted.max(), labels.max())) + 1
    right, true = np.bincount(labels[labels == predicted], minlength=K), np.bincount(labels, minlength=K)
    seen = true > 0
    return {
        "val_accuracy": float(right.sum() / len(labels)),
        "val_balanced_accuracy": float((right[seen] / true[seen]).mean()),
        "val_macro_f1": float(np.nanmean(_f1(labels, predicted, K))),
    }


def evaluate(
    logits: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    temperature: float = 1.0,
    copies: NDArray[np.bool_] | None = None,
    groups: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """Every number of one split, ready for JSON.

    Args:
        logits: float [N, K]; predictions are their argmax, whatever the temperature.
        labels: int [N].
        classes: K different names.
        temperature: of the calibration.
        copies: bool [N], of test images: those whose pixels are also those of a training or validation image.
        groups: int [N], equal for images of one group, which the intervals then cover the choice of.

    Returns:
        The fields that `Run.evaluate` describes; `without_duplicates` only where there are copies.

    Raises:
        TrainingError: a logit is not finite.
    """
    values, truth = check_logits(logits), np.asarray(labels, dtype=np.int64)
    count, K = values.shape
    predicted = values.argmax(axis=1)
    logs = log_probabilities(values, temperature)
    chances = np.exp(logs)
    rows, hits = np.arange(count), predicted == truth
    confusion = np.bincount(truth * K + predicted, minlength=K * K).reshape(K, K)
    right, totals = confusion.diagonal(), confusion.sum(axis=1)
    present = totals > 0
    losses = -logs[rows, truth]
    briers = (chances**2).sum(axis=1) - 2 * chances[rows, truth] + 1
    result: dict[str, Any] = {"count": count}
    covers, by_groups = f"{chosen(groups)}; the trained model is held fixed", "" if groups is None else ", by groups"
    methods: dict[str, Any] = {"level": intervals.LEVEL, "covers": covers}

    def add(name: str, value: float, interval: intervals.Interval | None, method: str) -> None:
        result[name] = value
        result[f"{name}_interval"] = interval and list(interval)
        methods[name] = f"{method}{by_groups}"

    def share(some: NDArray[np.bool_]) -> dict[str, Any]:
        return intervals.accuracy(hits[some], None if groups is None else groups[some])

    add("accuracy", int(hits.sum()) / count, intervals.proportion(hits, groups), "Wilson")
    if K > 5:
        own = values[rows, truth][:, None]
        # Of equal outputs the first class comes first, as in argmax: a right prediction is also one of the best five.
        ahead = (values > own) | ((values == own) & (np.arange(K) < truth[:, None]))
        hits5 = ahead.sum(axis=1) < 5
        add("top5", int(hits5.sum()) / count, intervals.proportion(hits5, groups), "Wilson")
    balanced = float((right[present] / totals[present]).mean())
    add("balanced_accuracy", balanced, intervals.balanced(hits, truth, groups), "normal, independent classes")
    f1 = _f1(truth, predicted, K)
    macro_f1 = float(np.nanmean(f1))
    found = intervals.bootstrap(
        lambda drawn: float(np.nanmean(_f1(truth[drawn], predicted[drawn], K))), count, estimate=macro_f1, groups=groups
    )
    add("macro_f1", macro_f1, _within(found, 1.0), "bootstrap")
    add("loss", float(losses.mean()), _within(intervals.normal_mean(losses, groups)), "normal")
    add("brier", float(briers.mean()), _within(intervals.normal_mean(briers, groups)), "normal")
    ece, spread = calibration_error(chances[rows, predicted], hits, groups=groups)
    add("ece", ece, spread, "basic bootstrap of 1000 samples, from 0 where it could be noise")
    result["temperature"] = float(temperature)
    result["per_class"] = {}
    for k, name in enumerate(classes):
        own, called = truth == k, predicted == k
        recall, precision, both = share(own), share(called), share(own | called)["accuracy_interval"]
        result["per_class"][name] = {
            **recall,
            "precision": precision["accuracy"],
            "precision_interval": precision["accuracy_interval"],
            "f1": None if np.isnan(f1[k]) else float(f1[k]),
            # F1 = 2 J / (1 + J), where J (Jaccard) is the share of the images of either that are of both.
            "f1_interval": both and [2 * end / (1 + end) for end in both],
            "count": int(totals[k]),
        }
    methods["per_class"] = f"Wilson; of F1, Wilson's of the Jaccard index{by_groups}"
    result["classes_absent"] = [name for name, here in zip(classes, present, strict=True) if not here]
    result["confusion"] = confusion.tolist()
    result["intervals"] = methods
    if copies is not None and copies.any():
        result["without_duplicates"] = {"count": int((~copies).sum()), **share(~copies)}
    return result


def chosen(groups: NDArray[np.int64] | None) -> str:
    """What intervals of images with these groups cover."""
    if groups is None:
        return "the choice of images"
    count = len(np.unique(groups))
    return f"the choice of {plural(count, 'group')}" if count > 1 else "the choice of groups, which one does not show"


def _f1(truth: NDArray[np.int64], predicted: NDArray[np.int64], K: int) -> NDArray[np.float64]:
    """F1 of each class, float64 [K]: the harmonic mean of precision and recall; NaN where a class is in neither.

    Without the confusion matrix, whose K x K counts would make a bootstrap slow with some thousand classes.
    """
    marginals = np.bincount(truth, minlength=K) + np.bincount(predicted, minlength=K)
    return 2 * np.bincount(truth[truth == predicted], minlength=K) / np.where(marginals > 0, marginals, np.nan)


def _within(interval: intervals.Interval | None, high: float = math.inf) -> intervals.Interval | None:
    """The interval, cut at 0 and `high`."""
    return None if interval is None else (max(0.0, interval[0]), min(high, interval[1]))


def predictions_table(
    names: Sequence[str],
    labels: ArrayLike,
    logits: ArrayLike,
    classes: Sequence[str],
    temperature: float = 1.0,
    groups: NDArray[np.int64] | None = None,
) -> pa.Table:
    """One row an image, with the columns that `Run.predictions` describes.

    The class names, in the order of the probabilities, are in the table's metadata under `classes` (JSON), beside
    `temperature`.

    Args:
        names: N paths or names.
        labels: int [N].
        logits: float [N, K].
        classes: K names.
        groups: int64 [N], equal for images of one group; None leaves the column out.
    """
    import pyarrow as pa

    values = np.asarray(logits, dtype=np.float32)
    predicted = values.argmax(axis=1)
    chances = probabilities(values, temperature)
    classes = [printable(name) for name in classes]
    words = np.asarray(classes, dtype=object)
    flat = pa.array(chances.astype(np.float32).reshape(-1), pa.float32())
    table = pa.table(
        {
            "name": pa.array([printable(name) for name in names], pa.string()),
            "label": pa.array(words[np.asarray(labels)], pa.string()),
            "predicted": pa.array(words[predicted], pa.string()),
            "confidence": pa.array(chances[np.arange(len(values)), predicted].astype(np.float32), pa.float32()),
            "probabilities": pa.FixedSizeListArray.from_arrays(flat, values.shape[1]),
            **({} if groups is None else {"group": pa.array(groups, pa.int64())}),
        }
    )
    return table.replace_schema_metadata(
        {"classes": json.dumps(list(classes), ensure_ascii=False), "temperature": repr(float(temperature))}
    )
