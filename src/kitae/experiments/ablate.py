"""The ablation of any recipe: the study that removes each of its techniques."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from kitae.errors import RecipeError
from kitae.experiments.study_spec import StudySpec
from kitae.experiments.techniques import Fields, repeated, techniques
from kitae.recipe import Recipe


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
        design: see `kitae.experiments.design`.
        seeds: how many (0, 1, ...), or which.
        only: names of `techniques` to measure; the others stay on. Empty is all.
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
    skipped = [] if only else repeated(base)
    also = f" Not measured, since the recipe lists them more than once: {', '.join(skipped)}." if skipped else ""
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
