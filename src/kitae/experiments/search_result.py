"""The result of a search: its arms, the verdict of its rematch, and the recipe to use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kitae import views
from kitae.console import percent, plural, printable
from kitae.errors import TrainingError, one_line
from kitae.experiments.folder import read_settings
from kitae.experiments.result import StudyResult
from kitae.experiments.space import Parameters, apply
from kitae.experiments.wording import Table, text
from kitae.files import read_json, require_format, user_path
from kitae.folders import SIGNS
from kitae.recipe import Recipe, checked
from kitae.reporting.results import Record

if TYPE_CHECKING:
    import pandas as pd

SEARCH = SIGNS["search"]
FORMAT = 1
"""Of search.json."""


class Arm(Record):
    """One setting that was tried, as in search.json.

    Attributes:
        name: of the preset, or `searched NUMBER`.
        state: `complete` (trained to the full length), `pruned`, `failed`, or empty while it is trained.
        rungs: epochs, validation score (by the search's metric) and validation loss of its run of each length.
        recipe: made from the point, and not in the file.
    """

    number: int
    name: str
    preset: bool = False
    state: str = ""
    point: Parameters
    rungs: tuple[tuple[int, float, float | None], ...] = ()
    recipe: Recipe = Field(exclude=True)

    @property
    def ops(self) -> str:
        """The ops of its augmentation."""
        return ", ".join(name for op in self.recipe.augment.train for name in op) or "no ops"

    @property
    def last(self) -> tuple[int, float, float | None]:
        """Its longest rung: epochs, score and loss; 0, NaN and None where no run has ended."""
        return self.rungs[-1] if self.rungs else (0, math.nan, None)

    @property
    def standing(self) -> tuple[float, ...]:
        """Sorts arms: by the rung reached, then by the score there, its validation loss, and the order of trying."""
        if not self.rungs:
            return (0.0,)
        _, score, loss = self.last
        return (float(len(self.rungs)), score, -math.inf if loss is None else -loss, float(self.number))


@dataclass(frozen=True)
class SearchResult:
    """What a search found, and whether that is better than the best preset.

    Attributes:
        path: the search folder.
        arms: all settings tried, in order.
        metric: what judged them: val.accuracy, val.balanced_accuracy or val.macro_f1.
        best, preset: the best arm that did not fail, and the best among the presets.
        rematch: the study of the two on fresh seeds; None if the best arm is a preset.
        verdict: the outcome in one sentence.
        winner: the recipe to use: the searched one only if the rematch showed it to be better. Precision, threads and
            early stopping are as asked for, not as decided for the search on this machine.
    """

    path: Path
    arms: tuple[Arm, ...]
    metric: str
    best: Arm
    preset: Arm
    rematch: StudyResult | None = field(compare=False)  # the verdict says what it found
    verdict: str
    winner: Recipe

    @classmethod
    def open(cls, path: str | Path) -> SearchResult:
        """A finished search folder, with or without its run folders.

        Raises:
            KitaeError: no finished search there, or a file is damaged.
        """
        folder = user_path(path)
        file = folder / "search.json"
        content = read_search(folder)
        if content is None or not file.is_file():
            raise TrainingError(f"{folder}: no finished search there (it has no {file.name if content else SEARCH})")
        base = base_of(folder, content)
        keys = ("metric", "arms", "best", "best_preset", "rematch", "verdict", "winner")
        facts = read_json(file, *keys, error=TrainingError)
        require_format(facts, FORMAT, file, TrainingError)
        try:
            arms = {
                row["number"]: Arm(**row, recipe=apply(base, row["point"], content["image_size"]))
                for row in facts["arms"]
            }
            rematch = None if facts["rematch"] is None else StudyResult.open(folder / facts["rematch"])
            best, preset = arms[facts["best"]], arms[facts["best_preset"]]
            winner = Recipe.model_validate(facts["winner"])
            return cls(folder, tuple(arms.values()), facts["metric"], best, preset, rematch, facts["verdict"], winner)
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{file}: is damaged ({one_line(error)}); search again, with another --out") from error

    def to_pandas(self) -> pd.DataFrame:
        """A row per arm, in the order of trying: name, preset, state, epochs, score (by `metric`), loss, ops."""
        rows = []
        for arm in self.arms:
            epochs, score, loss = arm.last
            rows.append({
                "name": arm.name, "preset": arm.preset, "state": arm.state, "epochs": epochs, "score": score,
                "loss": loss, "ops": arm.ops,
            })  # fmt: skip
        return views.frame(rows)

    def __repr__(self) -> str:
        best = f"best {self.best.name!r} with {self.metric} {percent(self.best.last[1])}"
        found = f"{plural(len(self.arms), 'arm')}, {best}; {self.verdict.partition(':')[0]}"
        return printable(f"SearchResult({self.path}: {found})")

    def _repr_html_(self) -> str:
        rows = [[arm.name, arm.state, arm.ops, str(arm.last[0] or "-"), percent(arm.last[1])] for arm in self._ranked()]
        title = f"search: {plural(len(self.arms), 'arm')} ({self.path})"
        return views.block(title, [self.verdict], ["arm", "state", "ops", "epochs", self.metric], rows, left=3)

    def _ranked(self) -> list[Arm]:
        """The arms, the best one first."""
        return sorted(self.arms, key=lambda arm: arm.standing, reverse=True)

    def data(self) -> dict[str, Any]:
        """What search.json holds; plain values."""
        return {
            "format": FORMAT,
            "metric": self.metric,
            "arms": [arm.model_dump(mode="json") for arm in self.arms],
            "best": self.best.number,
            "best_preset": self.preset.number,
            "rematch": None if self.rematch is None else self.rematch.path.relative_to(self.path).as_posix(),
            "verdict": self.verdict,
            "winner": self.winner.model_dump(mode="json"),
        }  # fmt: skip

    def table(self) -> str:
        """The best arms as text, and the verdict."""
        return text(self.parts())

    def parts(self) -> list[str | Table]:
        """What `table` shows, one by one: lines, and a table as its head and rows."""
        rows = [
            [arm.name, str(arm.last[0] or "-"), percent(arm.last[1]).removesuffix(" %"), arm.state, arm.ops]
            for arm in self._ranked()[:12]
        ]
        return [(["arm", "epochs", self.metric, "state", "ops"], rows), "", self.verdict]


def read_search(folder: Path) -> dict[str, Any] | None:
    """The content of search.yaml; None if there is none. Raises as `read_settings`."""
    return read_settings(folder / SEARCH, "asked", "base", "image_size", "seconds_per_epoch")


def base_of(folder: Path, content: Mapping[str, Any]) -> Recipe:
    """The recipe of a search, with precision, threads and selection decided, from the content of search.yaml."""
    return checked(Recipe, content["base"], f"{folder / SEARCH}, base")
