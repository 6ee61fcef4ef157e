"""What the user chooses of a plan or a recipe without writing one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict


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

    def assignments(self) -> list[str]:
        """As a plain recipe takes them, by `Recipe.override`."""
        fields = {
            "model.name": self.model, "train.epochs": self.epochs, "train.batch_size": self.batch_size,
            "data.image_size": self.image_size, "train.optimizer.lr": self.lr, "train.seed": self.seed,
            "train.device": self.device, "data.folds": self.folds,
        }  # fmt: skip
        return [f"{name}={value}" for name, value in fields.items() if value is not None] + list(self.set)
