"""The user's choices, which override a plan or a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from kitae.errors import RecipeError, did_you_mean
from kitae.recipe import NAMES_ELSEWHERE, Recipe, field_ending


class ChoiceOptions(TypedDict, total=False):
    """The fields of `Choices` as keyword options of `kt.train`."""

    model: str | None
    epochs: int | None
    batch_size: int | None
    image_size: int | None
    lr: float | None
    seed: int | None
    device: str | None
    folds: int | None
    set: tuple[str, ...]


def unknown_option(name: str) -> RecipeError:
    """The error for an option that `kt.train` has not, with what it or the recipe calls that."""
    known = (*ChoiceOptions.__annotations__, "out", "minutes")
    ours = NAMES_ELSEWHERE.get(name, name)
    if ours in known:
        return RecipeError(f"kt.train has no option {name!r}: use {ours}")
    if (field := field_ending(ours)) is not None:
        return RecipeError(f"kt.train has no option {name!r}: use set=('{field}=VALUE',)")
    hint = did_you_mean(name, known)
    return RecipeError(f"kt.train has no option {name!r}{hint}; set=('field=value',) reaches every recipe field")


@dataclass(frozen=True)
class Choices:
    """What the user has chosen; the plan chooses the rest.

    Attributes:
        model: a name as in model.name; `pretrained` is set if its weights are installed.
        folds: as data.folds.
        set: other fields of the recipe, each `a.b=value`.
    """

    model: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    image_size: int | None = None
    lr: float | None = None
    seed: int | None = None
    device: str | None = None
    folds: int | None = None
    set: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.set, str):  # from Python, one field without a tuple around it
            object.__setattr__(self, "set", (self.set,))

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with these choices.

        Raises:
            RecipeError: a choice that does not exist or does not fit; the message names its option.
        """
        own = {
            option: f"{field}={value}"
            for option, field in _FIELDS.items()
            if (value := getattr(self, option)) is not None
        }
        try:
            return recipe.override(*own.values(), *self.set)
        except RecipeError:
            for option, assignment in own.items():
                try:
                    recipe.override(assignment)
                except RecipeError as error:
                    field = assignment.partition("=")[0]
                    raise RecipeError(f"{option}: {str(error).rpartition(f'{field}: ')[2]}") from error
            raise


# The field of a recipe that an option is.
_FIELDS = {
    "model": "model.name", "epochs": "train.epochs", "batch_size": "train.batch_size", "image_size": "data.image_size",
    "lr": "train.optimizer.lr", "seed": "train.seed", "device": "train.device", "folds": "data.folds",
}  # fmt: skip
