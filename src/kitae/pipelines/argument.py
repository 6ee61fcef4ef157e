"""Decides whether the argument of `kitae train` is a recipe, or data that a recipe is planned for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from kitae.data.sources import SOURCES, source_of
from kitae.errors import RecipeError, did_you_mean
from kitae.files import user_path
from kitae.recipe import shipped

PREFIX = "recipe:"
"""Prefix of a shipped recipe's name that something else also has."""


def understand(argument: str) -> tuple[Literal["recipe", "data"], str]:
    """The kind of an argument, and its name for `Recipe.load` or `data.source`.

    A shipped recipe takes precedence over the source of the same name, which it uses; `NAME:` always means the source.

    Raises:
        RecipeError: it is none of these, or both a name and a file or folder, or a run folder.
        DataError: a file that is not a data source.
    """
    path = user_path(argument)
    if argument.startswith(PREFIX):
        return "recipe", argument.removeprefix(PREFIX)
    if path.suffix.lower() in (".yaml", ".yml"):
        return "recipe", argument
    if os.path.isfile(path / "recipe.yaml"):  # unlike `Path.is_file`, False for a name that is too long
        raise RecipeError(
            f"{argument}: is a run folder; resume it with --resume, or train again from {path / 'recipe.yaml'}"
        )
    here = os.path.exists(path)
    if argument in shipped():
        if here:
            raise RecipeError(_both(argument, "shipped recipe", f"{PREFIX}{argument}"))
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
