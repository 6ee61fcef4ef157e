"""The ablation of any recipe: which techniques it uses, and the study that takes each away.

A technique is a part of a recipe that could have been left out. Switching it off leaves the rest as it is: an op
leaves the pipeline, mixing and averaging stop, a schedule becomes constant, mixed precision becomes fp32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kitae.errors import RecipeError
from kitae.experiments.spec import StudySpec
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


def build(
    recipe: Recipe | str | Path,
    *overrides: str,
    design: Literal["one_out", "one_in", "screening"] = "one_out",
    seeds: int | Sequence[int] = 3,
    only: Sequence[str] = (),
    metric: str = "test.accuracy",
    foldover: bool = False,
) -> StudySpec:
    """The study that measures what each technique of a recipe contributes.

    Args:
        recipe: a recipe, file or shipped name; `overrides` as in `Recipe.override`.
        design: what `one_out`, `one_in` and `screening` ask is at the top of `kitae.experiments.design`.
        seeds: how many (0, 1, ...), or which.
        only: names of `techniques` to look at; the others stay on. Empty is all.
        metric, foldover: as in a study file.

    Raises:
        RecipeError: the recipe uses no technique, or not the ones named.
    """
    base = (recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)).override(*overrides)
    found: Mapping[str, Fields] = techniques(base)
    for name in only:
        if name not in found:
            raise RecipeError(f"only: {base.name} does not use {name!r}; it uses {', '.join(found) or 'no technique'}")
    factors = {name: fields for name, fields in found.items() if not only or name in only}
    if not factors:
        raise RecipeError(f"{base.name}: uses no technique that could be left out")
    passed_over = [] if only else twice(base)
    also = f" Not looked at, for they stand there twice: {', '.join(passed_over)}." if passed_over else ""
    slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in base.name).strip("-_.") or "recipe"
    return StudySpec.parse(
        {
            "name": f"{slug}-{design.replace('_', '-')}",
            "about": f"What each technique of {base.name} contributes.{also}",
            "base": base.model_dump(mode="json"),
            "design": design,
            "factors": factors,
            "seeds": list(range(seeds)) if isinstance(seeds, int) else list(seeds),
            "metric": metric,
            "foldover": foldover,
        },
        f"ablation of {base.name}",
    )
