"""The techniques that a recipe uses: what could have been left out of it.

Switching one off leaves the rest as it is: an op leaves the pipeline, mixing and averaging stop, a schedule becomes
constant, mixed precision becomes fp32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from kitae.recipe import Recipe

Fields = dict[str, list[Any]]


def twice(recipe: Recipe) -> list[str]:
    """The ops that stand more than once in a recipe: they cannot be named, so they stay on."""
    counts = Counter(next(iter(op)) for op in recipe.augment.train)
    return [name for name, count in counts.items() if count > 1]


def techniques(recipe: Recipe) -> dict[str, Fields]:
    """The techniques that a recipe uses: name -> {field: [off, on]}, in the order in which data passes them."""
    found: dict[str, Fields] = {}
    if recipe.data.balance != "none":
        found["balance"] = {"data.balance": ["none", recipe.data.balance]}
    passed_over = twice(recipe)
    for op in recipe.augment.train:
        name = next(iter(op))
        if name not in passed_over:
            found[name] = {f"augment.train.{name}": [None, dict(op[name])]}
    if recipe.augment.mix is not None and recipe.augment.mix.active:
        found["mixing"] = {"augment.mix": [None, recipe.augment.mix.model_dump(mode="json")]}
    model, train = recipe.model, recipe.train
    switches: Sequence[tuple[str, str, Any, Any]] = (
        ("stochastic depth", "model.stochastic_depth", 0.0, model.stochastic_depth),
        ("dropout", "model.dropout", 0.0, model.dropout),
        # A frozen network cannot do without its weights.
        ("pretrained weights", "model.pretrained", False, model.pretrained if model.freeze == "none" else False),
        ("weight decay", "train.optimizer.weight_decay", 0.0, train.optimizer.weight_decay),
        ("label smoothing", "train.label_smoothing", 0.0, train.label_smoothing),
        ("averaged weights", "train.ema", None, train.ema),
        ("gradient clipping", "train.clip_norm", None, train.clip_norm),
        ("layer decay", "train.optimizer.layer_decay", None, train.optimizer.layer_decay),
    )
    found |= {name: {field: [off, on]} for name, field, off, on in switches if on != off}
    if train.schedule.name != "constant":
        fields: Fields = {"train.schedule.name": ["constant", train.schedule.name]}
        if "warmup_epochs" in train.schedule.unused:  # it would wake up in the run without
            fields["train.schedule.warmup_epochs"] = [0.0, train.schedule.warmup_epochs]
        found[f"{train.schedule.name} schedule".replace("_", " ")] = fields
    if train.schedule.warmup_epochs and train.schedule.name != "one_cycle":
        found["warm-up"] = {"train.schedule.warmup_epochs": [0.0, train.schedule.warmup_epochs]}
    if train.precision not in ("fp32", "auto"):  # auto is decided once for a study and then the same in all its runs
        found["mixed precision"] = {"train.precision": ["fp32", train.precision]}
    if recipe.evaluate.tta != "none":
        found["test-time augmentation"] = {"evaluate.tta": ["none", recipe.evaluate.tta]}
    return found
