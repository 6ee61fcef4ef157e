"""Steps that follow a training run inside a study, by their names under `after`.

A step is a function (run, folder, **settings) -> {name: number}, possibly nested, whose numbers become the metrics
`STEP.NAME`. A step of your own is given as `module:function`.
"""

from __future__ import annotations

import copy
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from kitae import keyed
from kitae.errors import RecipeError, did_you_mean, one_line
from kitae.pipelines.robustness import CORRUPTIONS, KINDS, classified
from kitae.run import Run

FINE_TUNING_EPOCHS = 5  # of `prune`
ROBUSTNESS_IMAGES = 1000  # of `robustness`


# Step -> the numbers it returns.
RESULTS: dict[str, tuple[str, ...]] = {
    "prune": ("accuracy", "val_accuracy", "sparsity", "parameters", "compressed_bytes"),
    "robustness": ("mean_accuracy", *(f"{name}_accuracy" for name in (*CORRUPTIONS, *KINDS))),
}


def step(name: str) -> Callable[..., Any]:
    """The function of a step.

    Raises:
        RecipeError: there is none of this name.
    """
    if name in STEPS:
        return STEPS[name]
    if not name.partition(":")[2]:
        raise RecipeError(f"after.{name}: no such step; valid: {', '.join(STEPS)}, or module:function of your own")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # as in the processes that run it, which start in this folder
    try:
        found: Callable[..., Any] = resolve_name(name)
    except Exception as error:  # whatever the user's module does
        raise RecipeError(f"after.{name}: cannot be imported ({one_line(error)})") from error
    return found


def check(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse before training what the step would refuse after it; of your own steps, only the names are checked.

    Raises:
        RecipeError: no such step or setting, no function, or a value that does not fit.
    """
    called = step(name)
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"after.{name}: {error}; name a function that is written in Python") from error
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
        epochs: of fine-tuning, from a tenth of the recipe's learning rate down a cosine; BatchNorm's statistics, and
            with `structured` the weights that are left, are corrected before it. 0 is none.
        scope: rank weights within each `layer`, or all of them together (`global`).

    Returns:
        accuracy (test), val_accuracy, sparsity (zero weights as a share of all parameters), parameters (nonzero),
        compressed_bytes.
    """
    from kitae.compression.channels import remove_channels
    from kitae.compression.counting import compressed_bytes, count
    from kitae.compression.masks import apply_masks, magnitude_masks
    from kitae.compression.reconstruct import reconstruct
    from kitae.pipelines.setup import Setup
    from kitae.training.distributed import join
    from kitae.training.fit import Tuning

    setup = Setup.of(run)
    model = run.load_model(free=True).to(join(run.recipe.train.device).device)
    batches = partial(setup.clean_batches, next(model.parameters()).device)
    hold = None
    if ratio and kind == "unstructured":
        before = copy.deepcopy(model)
        masks = magnitude_masks(model, ratio, scope=scope)
        apply_masks(model, masks)
        hold = partial(apply_masks, masks=masks)
        reconstruct(before, model, {}, batches, weights=False)
    elif ratio:
        pruned = remove_channels(model, setup.store.rules.shape, ratio, batches=batches, scope=scope)
        reconstruct(model, pruned.model, pruned.removed, batches)
        model = pruned.model
    if epochs:
        # Not the seed of the training, but the same for every ratio, so that only the ratio differs.
        seed = keyed.derive_seed(run.recipe.train.seed, 0, 0, keyed.SLOT_TUNING) & 0xFFFFFFFF
        model = setup.recover(model, epochs=epochs, seed=seed, tuning=Tuning(after_step=hold))
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


def robustness(run: Run, folder: Path, *, images: Annotated[int, Field(ge=1)] = ROBUSTNESS_IMAGES) -> dict[str, float]:
    """Accuracy of the run's best model on corrupted test images, averaged over the severities of `CORRUPTIONS`.

    Args:
        images: how many test images, the same for every run of the same split.

    Returns:
        mean_accuracy, KIND_accuracy (viewpoint, light, noise, occlusion) and NAME_accuracy of each corruption.
    """
    from kitae.pipelines.setup import Setup

    setup = Setup.of(run)
    rows = setup.splits.open_test(lambda: run.count_test_opening("study, robustness"))
    right = classified(run, setup, rows, images)
    accuracies = {
        name: float(np.mean([right[name, severity].mean() for severity in severities]))
        for name, (_, severities, *_) in CORRUPTIONS.items()
    }
    groups = {kind: [accuracies[name] for name, row in CORRUPTIONS.items() if row[0] == kind] for kind in KINDS}
    # As numbers, `noise` and `occlusion` are means of the whole kind, not of the corruption with that name.
    means = {"mean": list(accuracies.values()), **groups}
    numbers = accuracies | {name: float(np.mean(values)) for name, values in means.items()}
    return {f"{name}_accuracy": value for name, value in numbers.items()}


STEPS: dict[str, Callable[..., Any]] = {"prune": prune, "robustness": robustness}
