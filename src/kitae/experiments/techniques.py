"""The techniques that a recipe uses, and how each is switched off.

Switching one off leaves the rest unchanged: an op is removed from the pipeline, mixing and averaging are disabled, a
schedule becomes constant, mixed precision becomes fp32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from kitae.errors import RecipeError
from kitae.recipe import Recipe
from kitae.training.spec import ProbeSpec

Fields = dict[str, list[Any]]


def repeated(recipe: Recipe) -> list[str]:
    """The ops that a recipe lists more than once: their names are ambiguous, so they stay on."""
    counts = Counter(next(iter(op)) for op in recipe.augment.train)
    return [name for name, count in counts.items() if count > 1]


def techniques(recipe: Recipe) -> dict[str, Fields]:
    """The techniques that a recipe uses: name -> {field: [off, on]}, in the order in which data reaches them."""
    found: dict[str, Fields] = {}
    if recipe.data.balance != "none":
        found["balance"] = {"data.balance": ["none", recipe.data.balance]}
    skipped = repeated(recipe)
    for op in recipe.augment.train:
        name = next(iter(op))
        if name not in skipped:
            found[name] = {f"augment.train.{name}": [None, dict(op[name])]}
    if recipe.augment.mix is not None and recipe.augment.mix.active:
        found["mixing"] = {"augment.mix": [None, recipe.augment.mix.model_dump(mode="json")]}
    model, train = recipe.model, recipe.train
    if model.pretrained and model.freeze == "none" and not model.freeze_first:  # frozen layers need their weights
        found["pretrained weights"] = {"model.pretrained": [False, model.pretrained]}
        if recipe.data.normalize == "pretrained":
            found["pretrained weights"]["data.normalize"] = ["train", "pretrained"]
        if isinstance(train.probe, ProbeSpec):  # a probe of random features is not part of training without weights
            found["pretrained weights"]["train.probe"] = [None, train.probe.model_dump(mode="json")]
    growing = None if train.progressive is None else train.progressive.model_dump(mode="json")
    switches: Sequence[tuple[str, str, Any, Any]] = (
        ("stochastic depth", "model.stochastic_depth", 0.0, model.stochastic_depth),
        ("dropout", "model.dropout", 0.0, model.dropout),
        ("weight decay", "train.optimizer.weight_decay", 0.0, train.optimizer.weight_decay),
        ("own rate of biases", "train.optimizer.bias_lr", None, train.optimizer.bias_lr),
        ("smaller pictures first", "train.progressive", None, growing),
        ("label smoothing", "train.label_smoothing", 0.0, train.label_smoothing),
        ("averaged weights", "train.ema", None, train.ema),
        ("gradient clipping", "train.clip_norm", None, train.clip_norm),
        ("layer decay", "train.optimizer.layer_decay", None, train.optimizer.layer_decay),
    )
    found |= {name: {field: [off, on]} for name, field, off, on in switches if on != off}
    if train.schedule.name != "constant":
        fields: Fields = {"train.schedule.name": ["constant", train.schedule.name]}
        if "warmup_epochs" in train.schedule.unused:  # otherwise it would take effect without the schedule
            fields["train.schedule.warmup_epochs"] = [0.0, train.schedule.warmup_epochs]
        found[f"{train.schedule.name} schedule".replace("_", " ")] = fields
    if train.schedule.warmup_epochs and train.schedule.name != "one_cycle":
        found["warm-up"] = {"train.schedule.warmup_epochs": [0.0, train.schedule.warmup_epochs]}
    if train.precision not in ("fp32", "auto"):  # auto is decided once, and is then the same in all runs of a study
        found["mixed precision"] = {"train.precision": ["fp32", train.precision]}
    if recipe.evaluate.tta != "none":
        found["test-time augmentation"] = {"evaluate.tta": ["none", recipe.evaluate.tta]}
    return found


def chosen(recipe: Recipe, names: Collection[str], where: str) -> dict[str, Fields]:
    """The techniques of these names; all if there are none.

    Raises:
        RecipeError: the recipe trains no epoch, or does not use one of them (the line begins with `where`).
    """
    if not recipe.train.epochs:  # nearly all of them act on training, and a head is the same for every seed
        raise RecipeError(
            f"{recipe.name}: trains only a head (train.epochs: 0), so there is no technique to leave out; set it to 1 "
            "or more"
        )
    found = techniques(recipe)
    for name in names:
        if name not in found:
            used = ", ".join(found) or "no technique"
            raise RecipeError(f"{where}: {recipe.name} does not use {name!r}; it uses {used}")
    return {name: found[name] for name in names or found}
