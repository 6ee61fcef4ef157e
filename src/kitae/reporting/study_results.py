"""The results of a study, from effects.json; see `results`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import Field

from kitae.errors import KitaeError
from kitae.files import read_json, require_format
from kitae.reporting.results import Number, Record

STUDY_FORMAT = 1
"""The format of effects.json that this version writes."""


class Effect(Record):
    """One effect, in the unit of its metric, or a factor where `ratio`."""

    name: str
    kind: str = "difference"
    estimate: Number = None
    low: Number = None
    high: Number = None
    p_holm: Number = None
    pairs: int | None = None
    ratio: bool = False
    shown: bool = False
    uneven: bool = False
    covers: str = "seeds"

    @property
    def neutral(self) -> float:
        return 1.0 if self.ratio else 0.0

    @property
    def size(self) -> float:
        """How far it is from no effect: in either direction, and on a logarithmic scale for a factor."""
        value = self.estimate or 0.0
        if not self.ratio:
            return abs(value)
        return abs(math.log(value)) if value > 0 else math.inf


class Noise(Record):
    """The scatter of runs that differ only in the seed."""

    sd: Number = None
    low: Number = None
    high: Number = None
    df: Number = None
    reference: str | None = None
    reference_mean: Number = None
    reference_sd: Number = None


class Analysis(Record):
    """Effects on one metric."""

    unit: str = ""
    better: int = 0
    noise: Noise = Noise()
    effects: tuple[Effect, ...] = ()

    @property
    def ratio(self) -> bool:
        return any(effect.ratio for effect in self.effects)

    def helps(self, effect: Effect) -> bool:
        """Whether an effect is an improvement; false if the metric has no known direction."""
        value, neutral = effect.estimate, effect.neutral
        if value is None or value == neutral or not self.better:
            return False
        return (value > neutral) == (self.better > 0)

    @property
    def ranked(self) -> list[Effect]:
        """Effects, the best first; what is not known last."""
        sign = self.better or 1
        return sorted(self.effects, key=lambda e: (e.estimate is None, -sign * (e.estimate or 0.0)))

    @property
    def covers(self) -> str:
        """What the intervals cover."""
        return next((effect.covers for effect in self.effects), "seeds")


class Claim(Record):
    """A claim recorded before the first run, and its verdict."""

    says: str
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
    values: tuple[Number, ...] = ()


class Variant(Record):
    """What was run."""

    name: str
    runs: int
    overrides: dict[str, Any] = Field(default_factory=dict)
    numbers: dict[str, VariantNumber] = Field(default_factory=dict)


class Band(Record):
    """Mean and range over seeds, one value per epoch; a curve with a value that is not finite is not written."""

    mean: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


class Curve(Record):
    """The curves of one variant."""

    epoch: tuple[float, ...] = ()
    val_accuracy: Band | None = None
    train_loss: Band | None = None


class StudyRuns(Record):
    """How many runs were planned and finished, and the status of the others."""

    planned: int = 0
    finished: int = 0
    failed: tuple[dict[str, Any], ...] = ()


class StudyRecord(Record):
    """effects.json."""

    name: str
    about: str = ""
    design: str = ""
    metric: str
    seeds: tuple[int, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)
    runs: StudyRuns = StudyRuns()
    analyses: dict[str, Analysis] = Field(default_factory=dict)
    sentences: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    variants: tuple[Variant, ...] = ()
    curves: dict[str, Curve] = Field(default_factory=dict)
    levels: dict[str, dict[str, int]] = Field(default_factory=dict)
    factors: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    numeric: tuple[str, ...] = ()
    aliases: dict[str, tuple[tuple[str, str, float], ...]] = Field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> StudyRecord | None:
        """A study's results; None if they have not been computed yet.

        Raises:
            KitaeError: the file is damaged, or of a newer version.
        """
        file = folder / "effects.json"
        if not file.is_file():
            return None
        facts = read_json(file)
        require_format(facts, STUDY_FORMAT, file, KitaeError)
        return cls.checked(facts, file)

    @property
    def main(self) -> Analysis:
        """The analysis of the study's own metric."""
        return self.analyses.get(self.metric) or Analysis()
