"""The contents of a compression folder: what `kitae compress` writes, and pages read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from kitae.compression.spec import CompressSpec, first_in_float, winner_file
from kitae.errors import CompressionError
from kitae.evaluation.latency import as_fast
from kitae.files import read_json, require_format
from kitae.folders import SIGNS
from kitae.reporting.results import Interval, Number, Record

COMPRESSION_FORMAT = 1
"""The format of compression.json that this version writes."""
_PRECISIONS = {
    "fp32": "float32",
    "int8-static": "INT8",
    "int8-qat": "INT8 by quantization-aware training",
    "int8-dynamic": "INT8 weights",
}


class Judged(Record):
    """What a file scored on test."""

    name: str
    accuracy: float
    accuracy_interval: Interval


class Candidate(Record, extra="allow"):
    """One file that was measured."""

    name: str
    prune: str
    ratio: float
    precision: str
    calibration: str
    float_layers: int = 0
    parameters: int
    nonzero: int
    sparsity: float
    macs: int
    bytes: int
    weight_bytes: int | None = None
    packed_bytes: int
    accuracy: float
    accuracy_interval: Interval
    loss: float
    drop: float
    drop_interval: tuple[float, float]
    flips: float
    parity_error: Number = None
    parity_flips: Number = None
    masked_error: Number = None
    latency_ms: float
    latency_ms_interval: tuple[float, float]
    speedup: float
    speedup_interval: tuple[float, float]
    front: bool
    winner: bool
    control: bool

    @property
    def number_format(self) -> str:
        """Its precision in words."""
        name = _PRECISIONS.get(self.precision, self.precision)
        return f"{name}, {first_in_float(self.float_layers)}" if self.float_layers else name


class Tested(Record):
    """The original and the winner on test."""

    baseline: Judged
    winner: Judged
    drop: float
    drop_interval: tuple[float, float]
    count: int
    within_budget: bool


class Control(Record):
    """The original timed against itself."""

    ratio: float
    ratio_interval: tuple[float, float]


class Latency(Record):
    """How times were taken."""

    reference: str
    rounds: int
    level: float
    covers: str
    control: Control
    noise: float


class LeftOut(Record):
    """A candidate that could not be made."""

    name: str
    why: str


class Layer(Record):
    """One layer of the original alone in 8 bits."""

    layer: str
    divergence: float
    flips: float
    accuracy: float


def _known(spec: Any) -> Any:
    """Without the settings that a later version has added."""
    return {name: spec[name] for name in CompressSpec.model_fields if name in spec} if isinstance(spec, dict) else spec


class CompressionRecord(Record, extra="allow"):
    """compression.json. `model_extra` holds what a later version adds."""

    format: int = 1
    kitae: str = ""
    run: str = ""
    run_path: str = ""  # relative to the folder
    recipe: str = ""
    spec: Annotated[CompressSpec, BeforeValidator(_known)]
    machine: dict[str, Any] = Field(default_factory=dict)
    images: dict[str, int] = Field(default_factory=dict)
    within_budget: bool = False
    why_not: str = ""
    stopped: str = ""
    sure: bool = False
    metric: str = "accuracy"
    least_drop: float = math.inf
    left_out: tuple[LeftOut, ...] = ()
    baseline: Candidate
    winner: Candidate
    size: str = "bytes"
    smaller: float
    faster: float
    test: Tested | None = None
    latency: Latency
    candidates: Annotated[tuple[Candidate, ...], Field(min_length=1)]
    sensitivity: tuple[Layer, ...] = ()

    @classmethod
    def open(cls, folder: Path) -> CompressionRecord:
        """Read a compression.

        Raises:
            CompressionError: the file is damaged, of a newer version, or not written by `kitae compress`: a page
                without the numbers that every compression has would look like a result.
        """
        file = folder / SIGNS["compression"]
        facts = read_json(file, error=CompressionError)
        require_format(facts, COMPRESSION_FORMAT, file, CompressionError)
        return cls.checked({"machine": None, **facts}, file, CompressionError)

    @property
    def file(self) -> str:
        """The name of its model file."""
        return winner_file(self.within_budget)

    @property
    def as_fast(self) -> bool:
        """Whether the winner's speed-up is no larger than the noise of its measurement."""
        return as_fast(self.faster, self.latency.noise)

    def bytes_of(self, row: Candidate) -> int:
        """The size of a candidate's file, packed where the budget is for packed ones."""
        return row.packed_bytes if self.size == "packed_bytes" else row.bytes

    def label(self, row: Candidate) -> str:
        """A candidate in words: `65 % pruned, INT8`, `not pruned, float32`."""
        precision = row.number_format
        if row.name == self.baseline.name:
            return f"original, {precision}"
        pruned = f"{100 * row.ratio:g} % pruned" if row.ratio else "not pruned"
        if not row.control:
            return f"{pruned}, {precision}"
        kind, _, rest = row.name.partition(", ")
        if kind == "small net":
            return f"{rest.partition(row.precision)[0].strip()}, {precision}"
        if kind == "random":
            return f"{pruned} at random, {precision}"
        if kind == "trained further":
            return f"original trained further, {precision}"
        return f"{pruned}, trained {kind}, {precision}"

    def told(self, row: Candidate) -> str:
        """A candidate in a sentence, where `is not pruned` would deny something: `the unpruned INT8 file`."""
        if row.ratio:
            return self.label(row)
        kind = "original" if row.name == self.baseline.name else "unpruned"
        form, _, part = row.number_format.partition(", ")
        file = f"the {kind} file, {form}" if " " in form else f"the {kind} {form} file"
        return f"{file} with the {part}" if part else file
