"""The results of a study, effects.json: what `StudyResult` writes, and pages read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from kitae.errors import KitaeError, one_line
from kitae.files import read_json, require_format
from kitae.folders import SIGNS
from kitae.recipe import YAML_ERRORS
from kitae.reporting.effects import Analysis, Effect
from kitae.reporting.results import Number, Record

STUDY_FORMAT = 1
"""The format of effects.json that this version writes."""


def study_of(folder: Path) -> dict[str, Any]:
    """The study that a folder's study.yaml records. A damaged one is a KitaeError."""
    file = folder / SIGNS["study"]
    try:
        return dict(yaml.safe_load(file.read_text(encoding="utf-8"))["study"])
    except (OSError, *YAML_ERRORS, TypeError) as error:
        raise KitaeError(f"{file}: is damaged ({one_line(error)})") from error


class Claim(Record):
    """A claim recorded before the first run, the numbers of its effect, and the verdict."""

    name: str = ""
    says: str
    effect: str = ""
    metric: str = ""
    estimate: Number = None
    low: Number = None
    high: Number = None
    ratio: bool = False
    verdict: str = ""
    remark: str = ""


class VariantNumber(Record):
    """One metric of one variant over its seeds."""

    mean: Number = None
    sd: Number = None
    values: tuple[float, ...] = ()


class Variant(Record):
    """What was run."""

    name: str
    runs: int
    overrides: dict[str, Any] = Field(default_factory=dict)
    numbers: dict[str, VariantNumber] = Field(default_factory=dict)


class Band(Record):
    """Mean and range over seeds, one value for each epoch in which all runs have one.

    Attributes:
        epoch: their numbers; empty where they are those of the curve.
    """

    epoch: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @model_serializer(mode="wrap")
    def _measured(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name != "epoch" or value}


class Curve(Record):
    """The curves of one variant: those that all its runs have."""

    epoch: tuple[int | float, ...] = ()
    train_loss: Band | None = None
    train_accuracy: Band | None = None
    val_loss: Band | None = None
    val_accuracy: Band | None = None
    train_clean_accuracy: Band | None = None

    @model_serializer(mode="wrap")
    def _measured(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value is not None}


class StudyRuns(Record):
    """How many runs were planned and finished, and the status of the others."""

    planned: int = 0
    finished: int = 0
    failed: tuple[dict[str, Any], ...] = ()


class StudyRecord(Record):
    """effects.json, and of study.yaml the pairs of variants that its contrasts compare, `[this, minus that]`."""

    format: int = STUDY_FORMAT
    name: str
    about: str = ""
    design: str = ""
    metric: str
    cover: str = "seeds"
    seeds: tuple[int, ...] = ()
    added: tuple[dict[str, Any], ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)
    runs: StudyRuns = StudyRuns()
    analyses: dict[str, Analysis] = Field(default_factory=dict)
    sentences: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    contrasts: dict[str, tuple[str, str]] = Field(default_factory=dict, exclude=True)
    variants: tuple[Variant, ...] = ()
    curves: dict[str, Curve] = Field(default_factory=dict)
    levels: dict[str, dict[str, int]] = Field(default_factory=dict)
    factors: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    numeric: tuple[str, ...] = ()
    aliases: dict[str, tuple[tuple[str, str, float], ...]] = Field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> StudyRecord | None:
        """A study's results; None if they have not been computed yet. A damaged or newer file is a KitaeError."""
        file = folder / "effects.json"
        if not file.is_file():
            return None
        facts = read_json(file)
        require_format(facts, STUDY_FORMAT, file, KitaeError)
        return cls.checked({"seeds": None, **facts, "contrasts": study_of(folder).get("contrasts") or {}}, file)

    def effect(self, metric: str, name: str) -> Effect | None:
        """The effect of this name on a metric; None if it was not measured."""
        return self.analyses.get(metric, Analysis()).effect(name)

    @property
    def main(self) -> Analysis:
        """The analysis of the study's own metric."""
        return self.analyses.get(self.metric, Analysis())
