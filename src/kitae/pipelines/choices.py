"""What the user asks for: a recipe or data, and choices that override a plan or a recipe."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from kitae.data.sources import SOURCES, path_of, source_of
from kitae.errors import RecipeError, TrainingError, did_you_mean
from kitae.files import plain, user_path
from kitae.folders import SIGNS, kind_of
from kitae.recipe import NAMES_ELSEWHERE, Recipe, assignment, assignments, field_ending, flat, shipped
from kitae.run import Run

_PREFIX = "recipe:"  # of a shipped recipe's name that something else also has


class Choices(TypedDict, total=False):
    """What the user has chosen, None for nothing; the plan or the recipe chooses the rest.

    Attributes:
        model: a name as in model.name; `pretrained` is set if its weights are installed.
        folds: as data.folds.
        set: other fields of the recipe, each `a.b=value`; a text is one field. Or a mapping of fields to values.
    """

    model: str | None
    epochs: int | None
    batch_size: int | None
    image_size: int | Sequence[int] | None
    lr: float | None
    seed: int | None
    device: str | None
    folds: int | None
    set: Sequence[str] | str | Mapping[str, Any] | None


# The field of a recipe that an option is.
_FIELDS = {
    "model": "model.name", "epochs": "train.epochs", "batch_size": "train.batch_size", "image_size": "data.image_size",
    "lr": "train.optimizer.lr", "seed": "train.seed", "device": "train.device", "folds": "data.folds",
}  # fmt: skip
_PLANNED = ("data", "model", "train")  # sections that a plan fills in


def set_fields(choices: Choices) -> tuple[str, ...]:
    """The fields that are set in addition to the options, each `a.b=value`.

    Raises:
        RecipeError: `set` is of another type.
    """
    given: Any = choices.get("set") or ()
    if isinstance(given, Mapping):
        return tuple(assignments(given))
    texts = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    for text in texts:
        if not isinstance(text, str):
            raise RecipeError(f"set takes texts such as 'train.epochs=30' or a mapping of fields, not {text!r}")
    return texts


def by_option(choices: Choices) -> Choices:
    """The choices, with each field in `set` that has an option of its own moved to it, so that a plan sees it.

    A whole section counts as its fields: the plan chooses the others.
    """
    texts: list[str] = []
    for text in set_fields(choices):
        section, value = assignment(text)
        whole = section in _PLANNED and isinstance(value, dict)
        texts += assignments({f"{section}.{name}": one for name, one in value.items()}) if whole else [text]
    found, rest = choices.copy(), []
    for text in texts:
        field, value = assignment(text)
        option = next((name for name, own in _FIELDS.items() if own == field), None)
        if option is None or value is None or choices.get(option) is not None:
            rest.append(text)
        else:
            found[option] = value  # type: ignore[literal-required]  # a name of _FIELDS
    found["set"] = rest
    return found


def apply(recipe: Recipe, choices: Choices) -> Recipe:
    """The recipe with these choices.

    Raises:
        RecipeError: a choice that does not exist or does not fit, or a field that is given twice; the message names
            the option.
    """
    own = {
        option: f"{field}={plain(value) if isinstance(value, list | tuple) else value}"
        for option, field in _FIELDS.items()
        if (value := choices.get(option)) is not None
    }
    for text in set_fields(choices):
        field, value = assignment(text)
        fields = flat(value, f"{field}.", lists=False)  # a whole section has several
        if twice := next((option for option in own if _FIELDS[option] in fields), None):
            raise RecipeError(f"{twice} and set {text}: are the same field; give only one of them")
    try:
        # The options last, since a whole section resets the fields that it does not name.
        return recipe.override(*set_fields(choices), *own.values())
    except RecipeError as error:
        for option in own:
            _, named, problem = str(error).partition(f"--set: {_FIELDS[option]}: ")
            if named:
                raise RecipeError(f"{option}: {problem}") from error
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
    return RecipeError(f"kt.train has no option {name!r}{hint}; set=('field=value',) sets any recipe field")


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
    if kind_of(path) == "run":
        raise RecipeError(
            f"{argument}: is a run folder; resume it with kitae train --resume {shlex.quote(argument)}, in Python with "
            f"train({str(path / SIGNS['run'])!r}, out={argument!r}, resume=True), or train again from that file"
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


def to_resume(argument: str, run: Path, choices: Choices) -> tuple[str, Choices]:
    """What `train` takes to resume the run in a folder: its own recipe, if the argument is the folder or its data.

    Data are planned anew each time, and a plan depends on the minutes; the run keeps the plan that it began with, whose
    other fields a whole section in `set` leaves as they are, as it did when the plan was made.
    A recipe is returned as it is, and compared with the run's own when the run is opened.

    Raises:
        TrainingError: the run was trained on other data.
    """
    own = run / SIGNS["run"]
    if not own.is_file():
        return argument, choices
    if user_path(argument).resolve() in (run.resolve(), own.resolve()):
        return str(own), by_option(choices)
    kind, source = understand(argument)
    if kind == "recipe":
        return argument, choices
    saved = Recipe.load(own).data.source
    if _resolved(saved) != _resolved(source):
        moved = shlex.join(["--set", *assignments({"data.source": source})])
        raise TrainingError(
            f"{run}: was trained on {saved}, not on {argument}; for other data choose another --out; if the images "
            f"were moved: {Run.open(run).resume_command} {moved}"
        )
    return str(own), by_option(choices)


def _resolved(source: str) -> tuple[str, Path | str]:
    """A data.source in a form that is equal for equal data."""
    kind, _, rest = source.partition(":")
    path = path_of(source)
    return kind, rest if path is None else path.resolve()


def _both(argument: str, what: str, name: str) -> str:
    kind = "folder" if Path(argument).is_dir() else "file"
    return f"{argument}: is a {what} and a {kind} here; give {name} for the {what}, or ./{argument} for the {kind}"
