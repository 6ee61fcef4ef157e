"""What the user asks for: a recipe or data, and choices that override a plan or a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypedDict

from kitae.data.sources import SOURCES, source_of
from kitae.errors import RecipeError, did_you_mean
from kitae.files import user_path
from kitae.recipe import NAMES_ELSEWHERE, Recipe, field_ending, shipped

_PREFIX = "recipe:"  # of a shipped recipe's name that something else also has


class Choices(TypedDict, total=False):
    """What the user has chosen, None for nothing; the plan or the recipe chooses the rest.

    Attributes:
        model: a name as in model.name; `pretrained` is set if its weights are installed.
        folds: as data.folds.
        set: other fields of the recipe, each `a.b=value`; a text is one field.
    """

    model: str | None
    epochs: int | None
    batch_size: int | None
    image_size: int | None
    lr: float | None
    seed: int | None
    device: str | None
    folds: int | None
    set: tuple[str, ...] | str


# The field of a recipe that an option is.
_FIELDS = {
    "model": "model.name", "epochs": "train.epochs", "batch_size": "train.batch_size", "image_size": "data.image_size",
    "lr": "train.optimizer.lr", "seed": "train.seed", "device": "train.device", "folds": "data.folds",
}  # fmt: skip


def assignments(choices: Choices) -> tuple[str, ...]:
    """The fields that are set beside the options, each `a.b=value`."""
    given = choices.get("set", ())
    return (given,) if isinstance(given, str) else given


def apply(recipe: Recipe, choices: Choices) -> Recipe:
    """The recipe with these choices.

    Raises:
        RecipeError: a choice that does not exist or does not fit; the message names its option.
    """
    own = {
        option: f"{field}={value}" for option, field in _FIELDS.items() if (value := choices.get(option)) is not None
    }
    try:
        return recipe.override(*own.values(), *assignments(choices))
    except RecipeError:
        for option, assignment in own.items():
            try:
                recipe.override(assignment)
            except RecipeError as error:
                raise RecipeError(f"{option}: {str(error).rpartition(f'{_FIELDS[option]}: ')[2]}") from error
        raise


def unknown_option(name: str) -> RecipeError:
    """The error for an unknown option of `kt.train`, with the name to use instead."""
    known = (*Choices.__annotations__, "out", "minutes")
    ours = NAMES_ELSEWHERE.get(name, name)
    if ours in known:
        return RecipeError(f"kt.train has no option {name!r}: use {ours}")
    if (field := field_ending(ours)) is not None:
        return RecipeError(f"kt.train has no option {name!r}: use set=('{field}=VALUE',)")
    hint = did_you_mean(name, known)
    return RecipeError(f"kt.train has no option {name!r}{hint}; set=('field=value',) reaches every recipe field")


def understand(argument: str) -> tuple[Literal["recipe", "data"], str]:
    """The kind of an argument, and its name for `Recipe.load` or `data.source`.

    A shipped recipe takes precedence over the source of the same name, which it uses; `NAME:` always means the source.

    Raises:
        RecipeError: it is none of these, or both a name and a file or folder, or a run folder.
        DataError: a file that is not a data source.
    """
    path = user_path(argument)
    if argument.startswith(_PREFIX):
        return "recipe", argument.removeprefix(_PREFIX)
    if path.suffix.lower() in (".yaml", ".yml"):
        return "recipe", argument
    if os.path.isfile(path / "recipe.yaml"):  # unlike `Path.is_file`, False for a name that is too long
        raise RecipeError(
            f"{argument}: is a run folder; resume it with --resume, or train again from {path / 'recipe.yaml'}"
        )
    here = os.path.exists(path)
    if argument in shipped():
        if here:
            raise RecipeError(_both(argument, "shipped recipe", f"{_PREFIX}{argument}"))
        return "recipe", argument
    if argument.partition(":")[0] in SOURCES:
        if here:
            raise RecipeError(_both(argument, "data source", f"{argument}:"))
        return "data", argument
    if here:
        return "data", source_of(argument)
    near = did_you_mean(argument, [*shipped(), *SOURCES])
    raise RecipeError(
        f"{argument}: no such recipe, file, folder or data source{near}; the recipes are {', '.join(shipped())}"
    )


def _both(argument: str, what: str, name: str) -> str:
    kind = "folder" if Path(argument).is_dir() else "file"
    return f"{argument}: is a {what} and a {kind} here; give {name} for the {what}, or ./{argument} for the {kind}"
