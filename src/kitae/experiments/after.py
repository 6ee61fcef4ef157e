"""Steps that follow a training run inside a study, by their names under `after`.

A step is a function (run, folder, **settings) -> {name: number}, possibly nested, whose numbers become the metrics
`STEP.NAME`. A step of your own is given as `module:function`. `corrupted_accuracy` measures what `robustness` does of a
run that is no part of a study.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from kitae import keyed
from kitae.console import counter
from kitae.errors import RecipeError, TrainingError, did_you_mean, one_line
from kitae.evaluation import intervals
from kitae.run import Run

if TYPE_CHECKING:
    from kitae.pipelines.setup import Setup

FINE_TUNING_EPOCHS = 5  # of `prune`


def _square(share: float, height: int, width: int) -> dict[str, int]:
    side = round(share * min(height, width))
    return {"top": (height - side) // 2, "left": (width - side) // 2, "height": side, "width": side, "value": 128}


def _blur(sigma: float, height: int, width: int) -> dict[str, Any]:
    wide = sigma * min(height, width) / 32
    return {"kernel_size": 2 * max(1, round(2 * wide)) + 1, "sigma": wide}


# Corruption -> what it imitates, its severities from mild to strong (as in Hendrycks and Dietterich 2019, "Benchmarking
# neural network robustness to common corruptions"), the op, and the op's arguments for a severity and the height and
# width of an image.
CORRUPTIONS: dict[str, tuple[str, tuple[float, ...], str, Callable[[float, int, int], dict[str, Any]]]] = {
    "rotation": (
        "viewpoint", (10.0, 20.0, 30.0), "rotate",
        lambda degrees, *_: {"degrees": degrees, "interpolation": "bilinear", "fill": 128},
    ),
    "zoom": (
        "viewpoint", (0.85, 0.7, 0.55), "affine",
        lambda scale, *_: {"scale": scale, "interpolation": "bilinear", "fill": 128},
    ),
    "darker": ("light", (0.7, 0.5, 0.3), "brightness", lambda factor, *_: {"factor": factor}),
    "brighter": ("light", (1.3, 1.6, 2.0), "brightness", lambda factor, *_: {"factor": factor}),
    "contrast": ("light", (0.7, 0.5, 0.3), "contrast", lambda factor, *_: {"factor": factor}),
    "noise": ("noise", (0.02, 0.05, 0.1), "gaussian_noise", lambda sigma, *_: {"sigma": sigma}),  # of [0, 1]
    "blur": (  # standard deviation in pixels of a 32-pixel image
        "noise", (0.5, 0.8, 1.2), "gaussian_blur", _blur,
    ),
    "occlusion": ("occlusion", (0.2, 0.35, 0.5), "erase", _square),  # a grey square, of the shorter side
}  # fmt: skip
_KINDS = tuple(dict.fromkeys(kind for kind, *_ in CORRUPTIONS.values()))

# Step -> the numbers it returns.
RESULTS: dict[str, tuple[str, ...]] = {
    "prune": ("accuracy", "val_accuracy", "sparsity", "parameters", "compressed_bytes"),
    "robustness": ("mean_accuracy", *(f"{name}_accuracy" for name in (*CORRUPTIONS, *_KINDS))),
}


def step(name: str) -> Callable[..., Any]:
    """The function of a step.

    Raises:
        RecipeError: there is none of this name, or it is not a function.
    """
    if name in STEPS:
        return STEPS[name]
    if not name.partition(":")[2]:
        raise RecipeError(f"after.{name}: no such step; valid: {', '.join(STEPS)}, or module:function of your own")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # as in the processes that run it, which start in this folder
    try:
        found: object = resolve_name(name)
    except Exception as error:  # whatever the user's module does
        raise RecipeError(f"after.{name}: cannot be imported ({one_line(error)})") from error
    if not callable(found):
        raise RecipeError(
            f"after.{name}: is not a function, but {type(found).__name__}; name a function of that module"
        )
    return found


def check(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse before training what the step would refuse after it; of your own steps, only the names are checked.

    Raises:
        RecipeError: no such step or setting, or a value that does not fit.
    """
    called = step(name)
    try:
        signature = inspect.signature(called)
    except ValueError as error:
        raise RecipeError(
            f"after.{name}: is compiled and does not tell its arguments; call it in a function"
        ) from error
    try:
        signature.bind(None, None, **settings)
    except TypeError as error:
        names = ", ".join([*signature.parameters][2:])  # after the run and its folder
        raise RecipeError(f"after.{name}: {error}; settings: {names or 'none'}") from error
    if name not in STEPS:
        return
    hints = get_type_hints(called, include_extras=True)
    for key, value in settings.items():
        try:
            TypeAdapter(hints[key]).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].replace("Input should be", "must be")
            raise RecipeError(f"after.{name}.{key}: {reason}, not {value!r}") from error


def check_number(step: str, number: str, where: str) -> None:
    """Refuse a number that a built-in step does not return; what your own steps return is known only after a run.

    Raises:
        RecipeError: `STEP.NUMBER` will not exist; the line begins with `where`.
    """
    names = RESULTS.get(step, (number,))
    if number not in names:
        hint = did_you_mean(number, names)
        raise RecipeError(f"{where}: {step} gives no number {number!r}{hint}; valid: {', '.join(names)}")


def of_test(name: str) -> bool:
    """Whether a number is measured on test images; of your own steps that is not known."""
    return name.startswith(("test.", "robustness.")) or name == "prune.accuracy"


def further_epochs(after: Mapping[str, Mapping[str, Any]]) -> int:
    """Epochs of training that the steps add to a run."""
    return int(after["prune"].get("epochs", FINE_TUNING_EPOCHS)) if "prune" in after else 0


def prune(
    run: Run,
    folder: Path,
    *,
    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    epochs: Annotated[int, Field(ge=0)] = FINE_TUNING_EPOCHS,
    kind: Literal["unstructured", "structured"] = "unstructured",
    scope: Literal["layer", "global"] = "global",
) -> dict[str, float]:
    """Prune the run's best model, fine-tune it, and measure it on test.

    Ratio 0 is fine-tuned too: it is the control with the same further epochs.

    Args:
        ratio: share of the weights (unstructured) or channels (structured) that is removed, in [0, 1).
        epochs: of fine-tuning, from a tenth of the recipe's learning rate down a cosine; BatchNorm's statistics are
            re-estimated before it. 0 is none.
        scope: rank weights within each `layer`, or all of them together (`global`).

    Returns:
        accuracy (test), val_accuracy, sparsity (zero weights as a share of all parameters), parameters (nonzero),
        compressed_bytes.
    """
    from kitae.compression.batchnorm import reestimate_batchnorm
    from kitae.compression.channels import remove_channels
    from kitae.compression.counting import compressed_bytes, count
    from kitae.compression.masks import apply_masks, magnitude_masks
    from kitae.pipelines.setup import Setup
    from kitae.training.distributed import join

    setup = Setup.of(run)
    model = run.load_model(free=True).to(join(run.recipe.train.device).device)
    batches = partial(setup.clean_batches, next(model.parameters()).device)
    hold = None
    if ratio and kind == "unstructured":
        masks = magnitude_masks(model, ratio, scope=scope)
        apply_masks(model, masks)
        hold = partial(apply_masks, masks=masks)
    elif ratio:
        model = remove_channels(model, setup.store.rules.shape, ratio, scope=scope).model
    if ratio:
        reestimate_batchnorm(model, batches)
    if epochs:
        # Not the seed of the training, but the same for every ratio, so that only the ratio differs.
        seed = keyed.derive_seed(run.recipe.train.seed, 0, 0, keyed.SLOT_TUNING) & 0xFFFFFFFF
        model = setup.recover(model, epochs=epochs, seed=seed, after_step=hold)
    counts = count(model)
    model = model.cpu()

    def accuracy(rows: NDArray[np.int64]) -> float:
        logits, labels = run.logits(setup.image_set(rows), model)
        return float((logits.argmax(axis=1) == labels).mean())

    return {
        "val_accuracy": accuracy(setup.splits.val),
        "accuracy": accuracy(setup.splits.open_test(lambda: run.count_test_opening(f"study, pruned by {ratio:g}"))),
        "sparsity": counts.sparsity,
        "parameters": float(counts.nonzero),
        "compressed_bytes": float(compressed_bytes(model)),
    }


def robustness(run: Run, folder: Path, *, images: Annotated[int, Field(ge=1)] = 1000) -> dict[str, float]:
    """Accuracy of the run's best model on corrupted test images, averaged over the severities of `CORRUPTIONS`.

    Args:
        images: how many test images, the same for every run of the same split.

    Returns:
        mean_accuracy, KIND_accuracy (viewpoint, light, noise, occlusion) and NAME_accuracy of each corruption.
    """
    from kitae.pipelines.setup import Setup

    setup = Setup.of(run)
    rows = setup.splits.open_test(lambda: run.count_test_opening("study, robustness"))
    right = _right(run, setup, rows, images)
    accuracies = {
        name: float(np.mean([right[name, severity].mean() for severity in severities]))
        for name, (_, severities, *_) in CORRUPTIONS.items()
    }
    groups = {kind: [accuracies[name] for name, row in CORRUPTIONS.items() if row[0] == kind] for kind in _KINDS}
    # As numbers, `noise` and `occlusion` are means of the whole kind, not of the corruption with that name.
    means = {"mean": list(accuracies.values()), **groups}
    numbers = accuracies | {name: float(np.mean(values)) for name, values in means.items()}
    return {f"{name}_accuracy": value for name, value in numbers.items()}


def corrupted_accuracy(run: Run, split: str = "test", *, images: int = 1000) -> dict[str, Any]:
    """Accuracy of one run's best model on corrupted images, with one view; opening test is counted in the run folder.

    Args:
        split: `train`, `val` or `test`.
        images: how many of it, the same each time.

    Returns:
        `count` of images; `clean`, and under `corruptions` each of `CORRUPTIONS`: `accuracy` and `accuracy_interval`,
        95 % over the choice of images. Those of a corruption are means over its severities, with a normal interval.

    Raises:
        RecipeError: there is no such split, or the run has no images of it.
        TrainingError: for test, the run is not finished, or read-only.
    """
    from kitae.pipelines.setup import Setup

    if split not in ("train", "val", "test"):
        raise RecipeError(f"split: {split!r} must be train, val or test")
    if split == "test":
        run.require_finished()
        if not os.access(run.path, os.W_OK):
            raise TrainingError(f"{run.path}: is read-only, but each use of test is recorded there; copy the run")
    with counter(None, "decoding images") as progress:
        setup = Setup.of(run, progress)
    splits = setup.splits
    if not {"train": len(splits.train), "val": len(splits.val), "test": splits.test_count}[split]:
        raise RecipeError(f"split: {run.path} has no {split} images (data.folds)")
    if split == "test":
        rows = splits.open_test(lambda: run.count_test_opening("evaluate, robustness"))
    else:
        rows = splits.train if split == "train" else splits.val
    right = _right(run, setup, rows, images, clean=True)
    clean = right["clean", 0.0]
    found = {}
    for name, (_, severities, *_) in CORRUPTIONS.items():
        shares = np.mean([right[name, severity] for severity in severities], axis=0)
        ends = intervals.normal_mean(shares)
        found[name] = {
            "accuracy": float(shares.mean()),
            "accuracy_interval": None if ends is None else [max(0.0, ends[0]), min(1.0, ends[1])],
        }
    return {
        "count": len(clean), "clean": intervals.accuracy(int(clean.sum()), len(clean)), "corruptions": found,
    }  # fmt: skip


def _right(
    run: Run, setup: Setup, rows: NDArray[np.int64], images: int, *, clean: bool = False
) -> dict[tuple[str, float], NDArray[np.bool_]]:
    """(corruption, severity) -> which of some of these images are classified correctly, bool [n].

    Args:
        clean: also without a corruption, as ("clean", 0).
    """
    order = keyed.permutation(run.recipe.data.split_seed, 2, len(rows), keyed.SLOT_SPLIT)
    rows = np.sort(rows[order[:images]])
    gather, predictor = setup.image_set(rows).gather, run.predictor(tta="none")

    def right(name: str, severity: float) -> NDArray[np.bool_]:
        def worse(batch: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
            pixels, labels = gather(batch)
            return pixels if name == "clean" else _corrupted(name, severity, pixels, batch), labels

        logits, labels = predictor.logits(worse, rows)
        return np.asarray(logits.argmax(axis=1) == labels)

    wanted = [(name, severity) for name, (_, severities, *_) in CORRUPTIONS.items() for severity in severities]
    return {(name, severity): right(name, severity) for name, severity in [("clean", 0.0)] * clean + wanted}


def _corrupted(
    name: str, severity: float, images: NDArray[np.uint8], rows: NDArray[np.int64]
) -> NDArray[np.uint8]:  # fmt: skip
    """uint8 [n, C, H, W]; the rows key the noise, so that an image is corrupted the same way in every batch."""
    from kitae.augment import functional

    _, _, op, arguments = CORRUPTIONS[name]
    key = {"key": rows} if op == "gaussian_noise" else {}
    return np.asarray(
        getattr(functional, op)(images, **arguments(severity, *images.shape[-2:]), **key, executor="torch")
    )


STEPS: dict[str, Callable[..., Any]] = {"prune": prune, "robustness": robustness}
