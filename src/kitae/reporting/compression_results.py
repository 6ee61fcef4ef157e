"""The contents of a compression folder: what `kitae compress` writes, and pages read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from kitae.compression.spec import first_in_float, winner_file
from kitae.errors import CompressionError
from kitae.files import read_json, require_format
from kitae.folders import SIGNS
from kitae.reporting.results import Count, Interval, Number, Record

COMPRESSION_FORMAT = 1
"""The format of compression.json that this version writes."""
_PRECISIONS = {
    "fp32": "float32",
    "int8-static": "INT8",
    "int8-qat": "INT8 by quantization-aware training",
    "int8-dynamic": "INT8 weights",
}
_CONTROLS = {"random": "pruned at random", "from scratch": "trained from scratch"}


class Candidate(Record, extra="allow"):
    """One file that was measured."""

    name: str
    prune: str = ""
    ratio: Number = None
    precision: str = ""
    calibration: str = ""
    float_layers: int = 0
    parameters: Count = None
    nonzero: Count = None
    sparsity: Number = None
    macs: Count = None
    bytes: Count = None
    weight_bytes: Count = None
    packed_bytes: Count = None
    accuracy: Number = None
    accuracy_interval: Interval = None
    loss: Number = None
    drop: Number = None
    drop_interval: Interval = None
    flips: Number = None
    parity_error: Number = None
    parity_flips: Number = None
    masked_error: Number = None
    latency_ms: Number = None
    latency_ms_interval: Interval = None
    speedup: Number = None
    speedup_interval: Interval = None
    front: bool = False
    winner: bool = False
    control: bool = False

    @property
    def number_format(self) -> str:
        """Its precision in words."""
        name = _PRECISIONS.get(self.precision, self.precision)
        return f"{name}, {first_in_float(self.float_layers)}" if self.float_layers else name

    def label(self, original: str) -> str:
        """In words: `65 % pruned, INT8`, `not pruned, float32`. `original`: the name of the original's file."""
        precision = self.number_format
        if not precision:
            return self.name
        if self.name == original:
            return f"original, {precision}"
        pruned = "not pruned" if not self.ratio else f"{100 * self.ratio:g} % pruned"
        if not self.control:
            return f"{pruned}, {precision}"
        kind, _, rest = self.name.partition(", ")
        if kind == "small net":
            return f"{rest.partition(self.precision)[0].strip()}, {precision}"
        if kind == "random" and self.ratio:
            return f"{100 * self.ratio:g} % pruned at random, {precision}"
        if kind == "trained further":
            return f"original trained further, {precision}"
        return f"{pruned}, {_CONTROLS.get(kind, kind)}, {precision}"


class Budget(Record, extra="allow"):
    """The settings: those that pages use, and as `model_extra` the others of `CompressSpec`."""

    max_drop: Number = None
    sure: bool = True
    max_latency_ms: Number = None
    max_bytes: Count = None

    @property
    def threads(self) -> int | None:
        """Of latency measurements; None where ONNX Runtime chose."""
        return (self.model_extra or {}).get("threads")


class Tested(Record):
    """The original and the winner on test."""

    baseline: Candidate
    winner: Candidate
    drop: Number = None
    drop_interval: Interval = None
    count: int | None = None
    within_budget: bool = False


class Control(Record):
    """The original timed against itself."""

    ratio: Number = None
    ratio_interval: Interval = None


class Latency(Record):
    """How times were taken."""

    reference: str = ""
    rounds: Count = None
    level: Number = None
    covers: str = ""
    control: Control = Control()
    noise: Number = None


class LeftOut(Record):
    """A candidate that could not be made."""

    name: str
    why: str = ""


class Layer(Record):
    """One layer of the original alone in 8 bits."""

    layer: str
    divergence: Number = None
    flips: Number = None
    accuracy: Number = None


class CompressionRecord(Record, extra="allow"):
    """compression.json. `model_extra` holds what a later version adds."""

    format: int = 1
    kitae: str = ""
    run: str = ""
    run_path: str = ""  # relative to the folder
    recipe: str = ""
    spec: Budget
    machine: dict[str, Any] = Field(default_factory=dict)
    images: dict[str, int] = Field(default_factory=dict)
    within_budget: bool = False
    why_not: str | None = ""
    stopped: str | None = ""
    sure: bool | None = None
    metric: str = "accuracy"
    least_drop: Number = None
    left_out: tuple[LeftOut, ...] = ()
    baseline: Candidate
    winner: Candidate
    size: str = "bytes"
    smaller: Number = None
    faster: Number = None
    test: Tested | None = None
    latency: Latency = Latency()
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
        return cls.checked(facts, file, CompressionError)

    @property
    def file(self) -> str:
        """The name of its model file."""
        return winner_file(self.within_budget)

    def bytes_of(self, row: Candidate) -> float | None:
        """The size of a candidate's file, packed where the budget is for packed ones."""
        return row.packed_bytes if self.size == "packed_bytes" else row.bytes

    def label(self, row: Candidate) -> str:
        """A candidate in words: `65 % pruned, INT8`, `not pruned, float32`."""
        return row.label(self.baseline.name)

    def told(self, row: Candidate) -> str:
        """A candidate in a sentence, where `is not pruned` would deny something: `the unpruned INT8 file`."""
        label = self.label(row)
        for start, kind in (("not pruned, ", "unpruned"), ("original, ", "original")):
            if label == f"{start}{row.number_format}":
                form, _, part = row.number_format.partition(", ")
                file = f"the {kind} file, {form}" if " " in form else f"the {kind} {form} file"
                return f"{file} with the {part}" if part else file
        return label
