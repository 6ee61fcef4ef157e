"""The smallest model within a budget: every pruning ratio times every precision, judged on validation.

What is judged is always the exported file, in ONNX Runtime, on this machine: its bytes, its time, its answers. Four
sets of images stay apart: training (fine-tuning, calibration, BatchNorm), validation (every choice), and test (the
winner and the original, once, at the end).
"""

from __future__ import annotations

import copy
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import kitae
from kitae.compression import prune, quantize
from kitae.compression.distill import as_teacher
from kitae.compression.prune import Batches, Shape
from kitae.compression.qat import Simulated
from kitae.compression.spec import CompressSpec
from kitae.errors import CompressionError, ExportError, TrainingError, TrainingInterruptedError
from kitae.files import write_atomically

if TYPE_CHECKING:
    import onnx

NAMES = {"none": "fp32", "dynamic": "int8-dynamic", "static": "int8-static", "qat": "int8-qat"}
"""Precision as a spec says it -> as the file's metadata and the tables say it."""


class Recover(Protocol):
    """Fine-tunes a model through the training loop, in place, and returns it."""

    def __call__(
        self,
        model: nn.Module,
        *,
        epochs: int,
        rate: float,
        seed: int,
        after_step: Callable[[nn.Module], None] | None = None,
        teacher: nn.Module | None = None,
        keep: Literal["best", "last", "best or start"] = "best",
    ) -> nn.Module: ...


class Stages(Protocol):
    """Keeps fine-tuned networks between calls, so that another budget, or a restart, does not train them again."""

    def load(self, key: str) -> tuple[dict[str, torch.Tensor], Shape, float | None] | None: ...

    def save(self, key: str, weights: dict[str, torch.Tensor], shape: Shape, masked_error: float | None) -> None: ...


class ToGraph(Protocol):
    """Exports a network in float32, calibrated on validation unless its answers do not matter."""

    def __call__(self, model: nn.Module, *, calibrate: bool = True) -> onnx.ModelProto: ...


class Agreement(Protocol):
    """How far a file is from what it must compute."""

    @property
    def max_error(self) -> float:
        """Largest difference of a probability."""

    @property
    def flip_share(self) -> float:
        """Share of the images whose most probable class differs, in [0, 1]."""


@dataclass(frozen=True)
class Images:
    """Images of one purpose, read as they are needed.

    Attributes:
        gather: rows int64 [b] -> (uint8 [b, C, H, W], int64 [b] labels).
        rows: int64 [N].
        batch_size: images held at once.
    """

    gather: Callable[[NDArray[np.int64]], tuple[NDArray[np.uint8], NDArray[np.int64]]]
    rows: NDArray[np.int64]
    batch_size: int = 64

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Batches in the order of the rows."""
        for start in range(0, len(self.rows), self.batch_size):
            yield self.gather(self.rows[start : start + self.batch_size])

    def first(self, count: int) -> NDArray[np.uint8]:
        """The first `count` images, or all there are: uint8 [n, C, H, W]."""
        return self.gather(self.rows[:count])[0]

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 [N]."""
        return np.concatenate([labels for _, labels in self.batches()])


@dataclass(frozen=True)
class Tools:
    """What the other rooms lend to the search.

    Attributes:
        recover: fine-tunes through the training loop; `rate` is the share of the recipe's learning rate it begins with,
            `seed` keys its order, augmentation and dropout, and differs from stage to stage.
        fresh: builds the unpruned network with initial weights.
        batches: normalised *training* images [n, C, H, W] and labels, on the model's device, without augmentation.
        to_graph: exports a network in float32; `calibrate=False` for one that is only timed.
        to_file: a graph's content as a file; takes the precision and notes for its metadata, and the network.
        verify_float: raises ExportError unless a float file computes what the network computes.
        verify_integer: raises ExportError unless an INT8 file runs here as its integers say.
        compare: (before, after, labels) predicted classes -> {difference, interval, ...}, paired.
        interval: (right, count) -> interval of a proportion.
        measure: ({name: call}, reference) -> {control: {ratio, ...}, candidates: {name: {seconds, ratio, ...}}}.
        describe: a network's `parameters` and `macs`.
        scratch: (network, more, teacher, seed) trains from initial weights as the run's recipe says, `more` epochs
            longer, learning from a teacher as well where there is one; for the controls.
        small: untrained networks by their names, the fastest first; for the control of that name.
        steps_per_epoch: optimizer steps (not batches, where gradients are accumulated).
        fingerprint: identifies the original weights and data; part of the keys of `stages`.
    """

    recover: Recover
    fresh: Callable[[], nn.Module]
    batches: Batches
    to_graph: ToGraph
    to_file: Callable[[onnx.ModelProto, str, Mapping[str, Any], nn.Module], bytes]
    verify_float: Callable[[bytes, nn.Module], Agreement]
    verify_integer: Callable[[bytes], Agreement]
    compare: Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], Mapping[str, Any]]
    interval: Callable[[int, int], tuple[float, float] | None]
    measure: Callable[[Mapping[str, Callable[[], object]], str], Mapping[str, Any]]
    describe: Callable[[nn.Module], Mapping[str, int]]
    steps_per_epoch: int
    fingerprint: str = ""
    scratch: Callable[[nn.Module, int, nn.Module | None, int], nn.Module] | None = None
    small: Mapping[str, Callable[[], nn.Module]] | None = None
    stages: Stages | None = None
    say: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Candidate:
    """One file, and what is known of it.

    Attributes:
        name: says ratio and precision.
        ratio: share of channels or weights removed.
        precision: one of `NAMES`' values.
        path: the file.
        row: its line in the table; see `Outcome.rows`.
        predicted: int64 [N], classes of the validation images.
        control: measured for comparison; never the winner.
    """

    name: str
    ratio: float
    precision: str
    path: Path
    row: dict[str, Any]
    predicted: NDArray[np.int64]
    control: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        candidates: the original in float32 first.
        winner: the smallest within the budget, or the one closest to it.
        within_budget: whether the winner is within it, on validation.
        why_not: what the closest one exceeds, in words; empty within the budget.
        front: names of the candidates that no other beats in accuracy, bytes and latency.
        latency: of one image, as `Tools.measure` gave it, with the A/A control.
        sensitivity: what quantizing each layer of the original alone does; the most sensitive first.
        shape: rebuilds the winner's network.
        model: the winner's network, in PyTorch (for `int8-qat` with the weights learnt there).
        filters: first convolution of the original [O, C, h, w], and what of it the winner kept (bool).
        stopped: why larger ratios were not tried; empty if all were.
        sure: whether the upper end of each drop's interval was counted, see `CompressSpec.sure`.
        left_out: candidates that could not be had (a file that failed its verification), and why.
    """

    candidates: tuple[Candidate, ...]
    winner: Candidate
    within_budget: bool
    why_not: str
    front: tuple[str, ...]
    latency: Mapping[str, Any]
    sensitivity: tuple[quantize.Sensitivity, ...]
    shape: Shape
    model: nn.Module
    filters: tuple[NDArray[np.float32], NDArray[np.bool_]] | None
    stopped: str = ""
    sure: bool = False
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def baseline(self) -> Candidate:
        """The original in float32."""
        return self.candidates[0]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A line a candidate: name, prune, ratio, precision, parameters, nonzero, sparsity, macs, bytes, packed_bytes,
        accuracy, accuracy_interval, drop, drop_interval (points), flips (classes that differ from the original's),
        parity_error and parity_flips (the file against what it must compute: the network in PyTorch, or for 8 bits its
        integers in float arithmetic), masked_error (the network when its last channels went, against zeros in their
        place; null where none went), latency_ms, speedup, ..., and flags."""
        return [
            {
                **candidate.row,
                "front": candidate.name in self.front,
                "winner": candidate is self.winner,
                "control": candidate.control,
            }
            for candidate in self.candidates
        ]


@dataclass(frozen=True)
class _Stage:
    """A network at one ratio; `title` is another network's name, `masked_error` as in `Pruned`.

    `key` identifies its weights among all that this run's settings could give.
    """

    ratio: float
    model: nn.Module
    shape: Shape
    key: str = ""
    title: str = ""
    masked_error: float | None = None


def search(
    model: nn.Module,
    spec: CompressSpec,
    tools: Tools,
    *,
    input_shape: tuple[int, int, int],
    calibration: NDArray[np.uint8],
    selection: Images,
    folder: Path,
) -> Outcome:
    """Prune, fine-tune, quantize, export and measure, and pick the smallest file within the budget.

    Args:
        model: the trained network; not changed.
        input_shape: (C, H, W).
        calibration: uint8 [n, C, H, W] *training* images.
        selection: validation images; every choice is made on them.
        folder: where the candidates' files are kept.

    Raises:
        CompressionError: a network that cannot be pruned or quantized as asked, too few images.
        ExportError: a file that does not compute what it should.
    """
    if len(selection) == 0:
        raise CompressionError("there are no validation images to choose by")
    if {"scratch", "small"} & set(spec.controls) and tools.scratch is None:
        raise CompressionError("controls: `scratch` and `small` need a way to train from scratch, and none was given")
    if "small" in spec.controls and not tools.small:
        raise CompressionError("controls: `small` needs small networks to choose from, and none were given")
    if spec.sure and _least_shown(len(selection)) > spec.max_drop:
        tools.say(
            f"note: {len(selection)} validation images cannot show that a drop is within {spec.max_drop:g} points, so "
            "the measured drop counts, which may be luck; more validation images (data.val_fraction) would help"
        )
        spec = spec.model_copy(update={"sure": False})
    folder.mkdir(parents=True, exist_ok=True)
    bench = _Bench(spec, tools, input_shape, calibration, selection, folder)
    tools.say("exporting the original")
    reached = [_Stage(0.0, model, Shape(), _key(spec, tools, []))]
    candidates = bench.candidates(reached[0], always_float=True)
    stopped = ""
    for ratio in spec.ratios if spec.prune != "none" else ():
        tools.say(f"{spec.prune} pruning, {100 * ratio:g} %: fine-tuning {spec.finetune_epochs} epochs")
        try:
            stage = _prune(reached, ratio, spec, tools, input_shape)
        except TrainingInterruptedError:
            raise
        except (TrainingError, CompressionError) as error:  # what was reached so far is still worth having
            if isinstance(error, CompressionError) and len(reached) == 1:
                raise  # it cannot be pruned as asked
            bench.leave_out(_percent(ratio), str(error))
            what = "pruning" if isinstance(error, CompressionError) else "fine-tuning"
            stopped = f"ratios above {ratio:g} were not tried: the {what} of this one failed"
            break
        if stage is None:
            bench.leave_out(
                _percent(ratio),
                f"rounded to packs of {spec.round_to} channels it is the same network as {_percent(reached[-1].ratio)} "
                f"(round_to=1 removes single channels)",
            )
            continue
        reached.append(stage)
        found = bench.candidates(reached[-1])
        candidates += found
        best = min((candidate.row["drop"] for candidate in found), default=0.0)
        if spec.abandon and best > _hopeless(spec):
            stopped = f"ratios above {ratio:g} were not tried: this one loses {best:.2f} points"
            break
    candidates, latency = _timed(candidates, spec, tools, bench.shown)
    winner, why_not = _choose(candidates, spec)
    if spec.controls and winner.ratio == 0 and spec.prune != "none":
        tools.say("the controls are skipped: they are of the winner's ratio, and the winner is not pruned")
    elif spec.controls and winner.ratio > 0:
        controls = _controls(winner, reached, spec, tools, bench)
        candidates += _timed([candidates[0], *controls], spec, tools, bench.shown)[0][1:]
    stage = next(stage for stage in reached if stage.ratio == winner.ratio)
    return Outcome(
        candidates=tuple(candidates),
        winner=winner,
        within_budget=not why_not,
        why_not=why_not,
        front=_front(candidates, spec, float(latency.get("noise", 0.0))),
        latency=latency,
        sensitivity=bench.sensitivity(model) if spec.sensitivity and {"static", "qat"} & set(spec.quantize) else (),
        shape=stage.shape,
        model=bench.learnt.get(winner.name, stage.model),
        filters=_filters(model, stage),
        stopped=stopped,
        left_out=tuple(bench.left_out),
        sure=spec.sure,
    )


def judge(outcome: Outcome, test: Images, tools: Tools, spec: CompressSpec) -> dict[str, Any]:
    """Open test, once, for the original and the winner.

    Returns:
        `baseline` and `winner` with accuracy and accuracy_interval, `drop` in points with its paired `drop_interval`,
        `count`, and `within_budget`.

    Raises:
        CompressionError: there are no test images.
    """
    if len(test) == 0:
        raise CompressionError("there are no test images")
    labels = test.labels
    before, after = (
        _predict(item.path.read_bytes(), _as_served(test, item.precision))
        for item in (outcome.baseline, outcome.winner)
    )
    sides = [_accuracy(predicted.argmax(axis=1), labels, tools) for predicted in (before, after)]
    drop = _drop(before.argmax(axis=1), after.argmax(axis=1), labels, tools)
    return {
        "baseline": {"name": outcome.baseline.name, **sides[0]},
        "winner": {"name": outcome.winner.name, **sides[1]},
        **drop,
        "count": len(labels),
        "within_budget": _within(drop["drop"], spec),
    }


def _least_shown(count: int) -> float:
    """The smallest upper end that the interval of a drop can have, in points: of a file that loses no image at all."""
    return 100 * 1.96**2 / (count + 1.96**2)


def _within(drop: float, spec: CompressSpec) -> bool:
    """Whether so many points may be lost; 0.7 of them are 0.7000000000000001 in floats."""
    return drop <= spec.max_drop + 1e-9


def size_field(spec: CompressSpec) -> str:
    """The column by which small is judged: a file keeps the zeros of unstructured pruning until it is packed."""
    return "packed_bytes" if spec.prune == "unstructured" else "bytes"


# What follows is private.


def _hopeless(spec: CompressSpec) -> float:
    """Points lost after which no larger ratio, and no coarser precision, is worth the time."""
    return 2 * spec.max_drop + 1.0


class _Bench:
    """Turns networks into files and files into numbers, always with the same images."""

    def __init__(
        self,
        spec: CompressSpec,
        tools: Tools,
        input_shape: tuple[int, int, int],
        calibration: NDArray[np.uint8],
        selection: Images,
        folder: Path,
    ) -> None:
        self.spec, self.tools, self.input_shape, self.folder = spec, tools, input_shape, folder
        self.calibration, self.selection = calibration, selection
        self.labels = selection.labels
        self.shown = selection.first(1)
        self.original: NDArray[np.int64] | None = None  # classes that the float original predicts
        self.left_out: list[tuple[str, str]] = []  # candidates that could not be had, and why
        self.learnt: dict[str, nn.Module] = {}  # candidate -> the network with the weights of QAT

    def candidates(
        self, stage: _Stage, *, always_float: bool = False, only: str | None = None, label: str = ""
    ) -> list[Candidate]:
        """One network as files, one for each precision that is asked for; `label` makes them controls."""
        wanted = [p for p in NAMES if p in self.spec.quantize and only in (None, NAMES[p])]
        try:
            graph = self.tools.to_graph(stage.model)
            plain = self._file(stage, "none", graph, label=label)
        except (CompressionError, ExportError) as error:
            if stage.ratio == 0 and not label:
                raise  # without the original there is nothing to compare with
            self.leave_out(f"{label}{stage.title or _percent(stage.ratio)}", str(error))
            return []
        found = [plain] if always_float or "none" in wanted else []
        if self.spec.abandon and stage.ratio > 0 and not label and plain.row["drop"] > _hopeless(self.spec):
            return found or [plain]  # rounding will not bring back what pruning lost
        failures = []
        for precision in wanted:
            if precision == "none":
                continue
            try:
                found.append(self._quantized(stage, precision, graph, label))
            except (CompressionError, ExportError) as error:  # this file cannot be had; others may
                self.leave_out(_name(stage, precision, label), str(error))
                failures.append(error)
        if stage.ratio == 0 and not label and failures and len(failures) == len([p for p in wanted if p != "none"]):
            raise failures[0]  # the network itself cannot be quantized as asked
        return found

    def leave_out(self, name: str, why: str) -> None:
        """Say, and note for the result, that a candidate could not be had."""
        self.tools.say(f"{name} is left out: {why}")
        self.left_out.append((name, why))

    def _quantized(self, stage: _Stage, precision: str, graph: onnx.ModelProto, label: str) -> Candidate:
        """The network in 8 bits, as a verified file."""
        if precision == "dynamic":
            made = quantize.dynamic(graph, target=self.spec.target, per_channel=self.spec.per_channel)
            quantize.check_integers(made, graph, target=self.spec.target, per_channel=self.spec.per_channel)
            return self._file(stage, precision, made, label=label)
        if precision == "static":
            return self._static(stage, precision, graph, label)
        self.tools.say(f"{_name(stage, precision, label)}: quantization-aware training, {self.spec.qat_epochs} epochs")
        spec = self.spec
        key = _key(spec, self.tools, [], of=stage.key, qat=[spec.qat_epochs, spec.qat_rate, spec.target])
        aware = partial(_aware, stage, spec, self.tools, self.input_shape, _seed(key))
        learnt = replace(stage, model=_once(self.tools, key, stage.model, aware), key=key)
        graph = self.tools.to_graph(learnt.model)
        # Its integers are compared with this graph, so the graph itself is first compared with the network.
        self.tools.verify_float(self.tools.to_file(graph, NAMES["none"], {}, learnt.model), learnt.model)
        candidate = self._static(learnt, precision, graph, label)
        self.learnt[candidate.name] = learnt.model
        return candidate

    def sensitivity(self, model: nn.Module) -> tuple[quantize.Sensitivity, ...]:
        """What quantizing each layer alone does, on the first validation images."""
        self.tools.say("quantizing each layer alone")
        images = self.selection.first(_SENSITIVITY_IMAGES)
        try:
            graph = self.tools.to_graph(model)
            ranges = quantize.calibrate(graph, self.calibration, self.spec.calibration[0])
            found = quantize.sensitivity(
                graph, ranges, images, self.labels[: len(images)], target=self.spec.target,
                per_channel=self.spec.per_channel,
            )  # fmt: skip
        except CompressionError as error:  # all that was asked for is there; this list only explains it
            self.leave_out("the sensitivity of the layers", str(error))
            return ()
        return tuple(found)

    def _static(self, stage: _Stage, precision: str, graph: onnx.ModelProto, label: str) -> Candidate:
        """With each way of choosing ranges; the one with the best accuracy on validation is kept."""
        target = self.spec.target
        tried = []
        for method in self.spec.calibration:
            ranges = quantize.calibrate(graph, self.calibration, method)
            made = quantize.static(graph, ranges, target=target, per_channel=self.spec.per_channel)
            quantize.check_integers(
                made, graph, target=target, ranges=ranges, per_channel=self.spec.per_channel
            )  # fmt: skip
            outputs = _predict(made.SerializeToString(), self.selection)
            tried.append((_right(outputs, self.labels), -_loss(outputs, self.labels), made, method, outputs))
        _, _, made, method, outputs = max(tried, key=lambda item: item[:2])
        return self._file(stage, precision, made, label=label, method=method, outputs=outputs)

    def _file(
        self, stage: _Stage, precision: str, graph: onnx.ModelProto, *, label: str = "", method: str = "",
        outputs: NDArray[np.float32] | None = None,
    ) -> Candidate:  # fmt: skip
        """Verify and write one file, and describe it."""
        pruned = self.spec.prune if stage.ratio > 0 else "none"
        name = _name(stage, precision, label)
        notes = {"prune": pruned, "ratio": stage.ratio, "calibration": method or None}
        content = self.tools.to_file(graph, NAMES[precision], notes, stage.model)
        parity = (
            self.tools.verify_float(content, stage.model) if precision == "none" else self.tools.verify_integer(content)
        )
        outputs = _predict(content, _as_served(self.selection, NAMES[precision])) if outputs is None else outputs
        predicted = outputs.argmax(axis=1).astype(np.int64)
        self.original = predicted if self.original is None else self.original
        counts = prune.count(stage.model)
        path = self.folder / f"{name.replace(' ', '-').replace('%', '').replace(',', '')}.onnx"
        write_atomically(path, content)
        row = {
            "name": name,
            "prune": pruned,
            "ratio": stage.ratio,
            "precision": NAMES[precision],
            "calibration": method,
            "parameters": counts.parameters,
            "nonzero": counts.nonzero,
            "sparsity": counts.sparsity,
            "macs": int(self.tools.describe(stage.model)["macs"]),
            "bytes": len(content),
            "packed_bytes": len(zlib.compress(content, 9)),
            **_accuracy(predicted, self.labels, self.tools),
            "loss": _loss(outputs, self.labels),
            **_drop(self.original, predicted, self.labels, self.tools),
            "flips": float((predicted != self.original).mean()),
            "parity_error": parity.max_error,
            "parity_flips": parity.flip_share,
            "masked_error": stage.masked_error,
        }
        self.tools.say(f"{name}: {len(content):,} bytes, {row['drop']:+.2f} points lost on validation")
        return Candidate(name, stage.ratio, NAMES[precision], path, row, predicted, bool(label))


_SENSITIVITY_IMAGES = 512
_EQUAL = 1.01
_AS_FAST = 1.1


def _name(stage: _Stage, precision: str, label: str) -> str:
    return f"{label}{stage.title or _percent(stage.ratio)} {NAMES[precision]}"


def _percent(ratio: float) -> str:
    return "original" if ratio == 0 else f"{100 * ratio:g} %"


def _prune(
    reached: Sequence[_Stage], ratio: float, spec: CompressSpec, tools: Tools, input_shape: tuple[int, int, int]
) -> _Stage | None:
    """The next network: pruned from the last one to `ratio` of the original, and fine-tuned; None if it is the same."""
    original, before = reached[0], reached[-1]
    key = _key(spec, tools, [stage.ratio for stage in reached[1:]] + [ratio])
    device = next(original.model.parameters()).device
    if tools.stages is not None and (kept := tools.stages.load(key)) is not None:
        weights, shape, error = kept
        model = prune.reshape(tools.fresh(), shape)
        model.load_state_dict(weights)
        return _Stage(ratio, model.to(device).eval(), shape, key, masked_error=error)
    teacher = as_teacher(original.model) if spec.distill else None
    if spec.prune == "structured":
        cut = _cut(original, before, ratio, spec, tools, input_shape, teacher, _seed(key))
        if cut is None:
            return None
        stage = cut
    else:
        stage = _mask(before, ratio, spec, tools, teacher, key)
    stage.model.eval()
    if tools.stages is not None:
        tools.stages.save(key, _on_cpu(stage.model), stage.shape, stage.masked_error)
    return replace(stage, key=key)


def _once(tools: Tools, key: str, like: nn.Module, train: Callable[[], nn.Module]) -> nn.Module:
    """What `train` gives, or gave before: its weights, in a network like this one."""
    if tools.stages is not None and (kept := tools.stages.load(key)) is not None:
        model = copy.deepcopy(like)
        model.load_state_dict(kept[0])
        return model.eval()
    model = train()
    if tools.stages is not None:
        tools.stages.save(key, _on_cpu(model), Shape(), None)
    return model


def _on_cpu(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


_STAGE_FORMAT = 6  # goes up when the same settings begin to give other networks


def _seed(key: str, part: str = "") -> int:
    """The seed of a stage's training: no two stages, nor the run itself, see the same epochs of augmentation."""
    return int(hashlib.sha256(f"{key} {part}".encode()).hexdigest()[:8], 16)


def _key(spec: CompressSpec, tools: Tools, ratios: Sequence[float], **more: Any) -> str:
    matters = ("prune", "importance", "scope", "skip", "layer_ratios", "round_to", "gradual", "finetune_epochs",
               "finetune_rate", "distill", "seed")  # fmt: skip
    facts = {name: getattr(spec, name) for name in matters} | {"ratios": list(ratios), "from": tools.fingerprint}
    facts["layer_ratios"] = list(spec.layer_ratios.items())  # in their order: of coupled layers the first counts
    facts |= {"format": _STAGE_FORMAT, "kitae": kitae.__version__, **more}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _cut(
    original: _Stage, before: _Stage, ratio: float, spec: CompressSpec, tools: Tools,
    input_shape: tuple[int, int, int], teacher: nn.Module | None, seed: int,
) -> _Stage | None:  # fmt: skip
    full, now = prune.prunable_layers(original.model), prune.prunable_layers(before.model)
    ratios: float | dict[str, float] = 1 - (1 - ratio) / (1 - before.ratio)
    round_to = spec.round_to
    if spec.scope == "layer":
        # From the original's widths, so that rounding does not add up over the stages.
        # Those that were named come first: of coupled layers the first one counts.
        ratios = {
            name: max(0.0, 1 - _stay(_width(full[name]), share, round_to) / _width(now[name]))
            for name, share in _by_layer(original.model, ratio, spec).items()
        }
        round_to = 1
    result = prune.remove_channels(
        before.model, input_shape, ratios, importance=spec.importance, scope=spec.scope, skip=spec.skip,
        batches=tools.batches, round_to=round_to, seed=spec.seed,
    )  # fmt: skip
    if not result.removed:
        return None
    kept = dict(before.shape.kept)
    for name, positions in result.shape.kept.items():
        earlier = kept.get(name, tuple(range(_width(full[name]))))
        kept[name] = tuple(earlier[i] for i in positions)
    shape = prune.difference(original.model, result.model, kept)
    prune.reestimate_batchnorm(result.model, tools.batches)
    tuned = result.model
    if spec.finetune_epochs:
        tuned = tools.recover(
            result.model, epochs=spec.finetune_epochs, rate=spec.finetune_rate, seed=seed, teacher=teacher
        )
    return _Stage(ratio, tuned, shape, masked_error=result.masked_error)


def _by_layer(model: nn.Module, ratio: float, spec: CompressSpec) -> dict[str, float]:
    """What each layer is to lose: its own ratio where it was given one, and `ratio`."""
    layers = prune.prunable_layers(model)
    prune.require_layers(layers, spec.layer_ratios, "layer_ratios")
    return {
        **spec.layer_ratios,
        **{name: ratio for name in layers if name not in spec.layer_ratios and name not in spec.skip},
    }


def _stay(width: int, ratio: float, round_to: int) -> int:
    return prune.whole_packs(max(1, round((1 - ratio) * width)), width, round_to)


def _width(layer: nn.Module) -> int:
    return int(layer.out_channels if hasattr(layer, "out_channels") else layer.out_features)  # type: ignore[arg-type]


def _mask(
    before: _Stage, ratio: float, spec: CompressSpec, tools: Tools, teacher: nn.Module | None, key: str
) -> _Stage:
    model = copy.deepcopy(before.model)
    epochs = spec.finetune_epochs
    if spec.gradual:
        rising = max(1, round(epochs * 2 / 3))
        gradual = prune.Gradual(
            ratio, rising * tools.steps_per_epoch, every=max(1, tools.steps_per_epoch // 10), scope=spec.scope,
            skip=spec.skip, initial=before.ratio,
            masks=prune.magnitude_masks(model, before.ratio, scope=spec.scope, skip=spec.skip),
        )  # fmt: skip
        # The last epoch, not the best: the best is likely the first, before anything was pruned.
        model = tools.recover(
            model, epochs=rising, rate=spec.finetune_rate, seed=_seed(key, "rising"), after_step=gradual,
            teacher=teacher, keep="last",
        )  # fmt: skip
        epochs -= rising
    shares = _by_layer(model, ratio, spec) if spec.scope == "layer" else ratio
    masks = prune.magnitude_masks(model, shares, scope=spec.scope, skip=spec.skip)
    prune.apply_masks(model, masks)
    prune.reestimate_batchnorm(model, tools.batches)
    if epochs:
        model = tools.recover(
            model, epochs=epochs, rate=spec.finetune_rate, seed=_seed(key), after_step=prune.enforce(masks),
            teacher=teacher,
        )  # fmt: skip
    zeros = sum(int((~mask).sum()) for mask in masks.values())
    if prune.count(model).zeros < zeros:
        raise CompressionError("fine-tuning revived pruned weights: its loop did not call after_step at every step")
    return _Stage(ratio, model, Shape())


def _aware(stage: _Stage, spec: CompressSpec, tools: Tools, input_shape: tuple[int, int, int], seed: int) -> nn.Module:
    """The network after quantization-aware training; zeros of unstructured pruning stay zero."""
    simulated = Simulated(stage.model, input_shape, spec.target).observe(tools.batches)
    hold = None
    if spec.prune == "unstructured" and stage.ratio > 0:
        layers = prune.prunable_layers(stage.model)
        gone = {f"{name}.weight": torch.as_tensor(layer.weight == 0) for name, layer in layers.items()}
        weights = {name: weight for name, weight in simulated.graph.named_parameters() if name in gone}

        def hold(_: nn.Module) -> None:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.masked_fill_(gone[name], 0.0)

    teacher = as_teacher(stage.model) if spec.distill else None
    try:
        # Before its first step it computes what the static file does: a training that only spoils it is thrown away.
        tuned = tools.recover(
            simulated, epochs=spec.qat_epochs, rate=spec.qat_rate, seed=seed, after_step=hold, teacher=teacher,
            keep="best or start",
        )  # fmt: skip
    except TrainingInterruptedError:
        raise
    except TrainingError as error:  # one file that cannot be had; others may
        raise CompressionError(str(error)) from error
    assert isinstance(tuned, Simulated)
    return tuned.weights_into(stage.model).eval()


def _controls(
    winner: Candidate, reached: Sequence[_Stage], spec: CompressSpec, tools: Tools, bench: _Bench
) -> list[Candidate]:
    """Files of the winner's ratio and precision that did not get there by pruning well."""
    only = winner.precision
    stage = next(stage for stage in reached if stage.ratio == winner.ratio)
    before = [s.ratio for s in reached[1:] if s.ratio <= winner.ratio]
    # A network that was trained for less would lose by that alone.
    more = spec.finetune_epochs * len(before)
    teacher = as_teacher(reached[0].model) if spec.distill else None
    device = next(reached[0].model.parameters()).device

    def from_scratch(net: nn.Module, key: str) -> nn.Module:
        assert tools.scratch is not None
        return _once(tools, key, net.to(device), partial(tools.scratch, net, more, teacher, _seed(key))).eval()

    def original() -> list[Candidate]:
        if more == 0:
            return []  # the original as it is, which is in the table already
        tools.say(f"control: the original, trained for the winner's {more} further epochs")
        key = _key(spec, tools, [], original=more)

        def train() -> nn.Module:
            model = copy.deepcopy(reached[0].model)
            return tools.recover(model, epochs=more, rate=spec.finetune_rate, seed=_seed(key), teacher=teacher)

        longer = _once(tools, key, reached[0].model, train)
        return bench.candidates(_Stage(0.0, longer, Shape(), key), only=only, label="trained further, ")

    def random() -> list[Candidate]:
        tools.say(f"control: random pruning, {_percent(winner.ratio)}")
        chance = spec.model_copy(update={"importance": "random"})
        chain = [reached[0]]
        for ratio in before:
            same_size = _prune(chain, ratio, chance, tools, bench.input_shape)
            assert same_size is not None, "how many channels go does not depend on which"
            chain.append(same_size)
        return bench.candidates(chain[-1], only=only, label="random, ")

    def scratch() -> list[Candidate]:
        tools.say(f"control: the pruned shape from scratch, {_percent(winner.ratio)}")
        key = _key(spec, tools, [], of=stage.key, scratch=more)
        trained = from_scratch(prune.reshape(tools.fresh(), stage.shape), key)
        return bench.candidates(replace(stage, model=trained, key=key), only=only, label="from scratch, ")

    def small() -> list[Candidate]:
        title, net = _as_fast(stage.model, spec, tools, bench.shown)
        tools.say(f"control: {title} from scratch, which takes the same time")
        key = _key(spec, tools, [], small=title, scratch=more)
        other = _Stage(0.0, from_scratch(net, key), Shape(), key, title)
        return bench.candidates(other, only=only, label="small net, ")

    found = []
    kinds = {"original": original, "random": random, "scratch": scratch, "small": small}
    # A gain of a pruned network may be one of its further epochs: the original with as many is always looked at.
    for name in dict.fromkeys(("original", *spec.controls)):
        measured = kinds[name]
        try:
            found += measured()
        except TrainingInterruptedError:
            raise
        except (TrainingError, CompressionError, ExportError) as error:  # the winner stands without it
            bench.leave_out(f"control {name}", str(error))
    return found


_SAME_LATENCY = 1.05


def _as_fast(model: nn.Module, spec: CompressSpec, tools: Tools, image: NDArray[np.uint8]) -> tuple[str, nn.Module]:
    """The largest of the small networks that takes no longer than `model`, both in float32; else the smallest."""
    assert tools.small
    nets = {name: build().eval() for name, build in tools.small.items()}
    calls = {
        name: _call(tools.to_graph(net, calibrate=False).SerializeToString(), spec.threads, image)
        for name, net in {"": model, **nets}.items()
    }
    found = tools.measure(calls, "")["candidates"]
    fast = [name for name in nets if found[name]["ratio"] <= _SAME_LATENCY]
    title = fast[-1] if fast else next(iter(nets))
    return title, nets[title]


def _call(content: bytes, threads: int | None, image: NDArray[np.uint8]) -> Callable[[], object]:
    session = quantize.open_session(content, threads)
    return partial(session.run, None, {session.get_inputs()[0].name: image})


def _timed(
    candidates: Sequence[Candidate], spec: CompressSpec, tools: Tools, image: NDArray[np.uint8]
) -> tuple[list[Candidate], dict[str, Any]]:
    """Measure one image's latency of all candidates, interleaved, the original as reference.

    Where the original was timed before, times are brought to that earlier clock: the machine may have been slower or
    faster since, and two clocks in one column cannot be compared.
    """
    tools.say(f"measuring the latency of {len(candidates)} files")
    calls: dict[str, Callable[[], object]] = {}
    for candidate in candidates:
        calls[candidate.name] = _call(candidate.path.read_bytes(), spec.threads, image)
    report = dict(tools.measure(calls, candidates[0].name))
    now = 1e3 * report["candidates"][candidates[0].name]["seconds"]
    clock = candidates[0].row.get("latency_ms", now) / now
    timed = []
    for candidate in candidates:
        found = report["candidates"][candidate.name]
        inverse = found.get("ratio_interval")
        timed.append(
            replace(
                candidate,
                row={
                    **candidate.row,
                    "latency_ms": 1e3 * found["seconds"] * clock,
                    "latency_ms_interval": _scaled(found.get("seconds_interval"), 1e3 * clock),
                    "speedup": 1 / found["ratio"],
                    "speedup_interval": None if inverse is None else [1 / inverse[1], 1 / inverse[0]],
                },
            )
        )
    return timed, report


def _scaled(interval: Sequence[float] | None, factor: float) -> list[float] | None:
    return None if interval is None else [factor * end for end in interval]


def _choose(candidates: Sequence[Candidate], spec: CompressSpec) -> tuple[Candidate, str]:
    """The smallest within the budget and '', or the closest and what it exceeds.

    Only what was asked for can win: not the original, unless there is nothing else, nor a file of another precision.
    """
    asked = {NAMES[precision] for precision in spec.quantize}
    original = candidates[0]
    free = [c for c in candidates if c is not original and not c.control and c.precision in asked] or [original]

    def excess(candidate: Candidate) -> list[tuple[float, str]]:
        row = candidate.row
        found = []
        drop = row["drop_interval"][1] if spec.sure else row["drop"]
        if not _within(drop, spec):
            share = (drop - spec.max_drop) / max(spec.max_drop, 1.0)
            verb = "may lose" if spec.sure else "loses"
            found.append((share, f"{verb} {drop:.2f} points, not {spec.max_drop:g}"))
        if spec.max_bytes is not None and row["bytes"] > spec.max_bytes:
            found.append((row["bytes"] / spec.max_bytes - 1, f"has {row['bytes']:,} bytes, not {spec.max_bytes:,}"))
        if spec.max_latency_ms is not None and row["latency_ms"] > spec.max_latency_ms:
            share = row["latency_ms"] / spec.max_latency_ms - 1
            found.append((share, f"takes {row['latency_ms']:.3g} ms, not {spec.max_latency_ms:g}"))
        return found

    within = [candidate for candidate in free if not excess(candidate)]
    if within:
        # Files that differ by a few names in their metadata are equally small. Among them speed decides (dynamic INT8
        # is as small as static, and may be slower than float), and among equally fast ones accuracy.
        size = size_field(spec)
        smallest = min(candidate.row[size] for candidate in within)
        equal = [candidate for candidate in within if candidate.row[size] <= _EQUAL * smallest]
        fastest = min(candidate.row["latency_ms"] for candidate in equal)
        fast = [candidate for candidate in equal if candidate.row["latency_ms"] <= _AS_FAST * fastest]
        return min(fast, key=lambda c: (c.row["drop"], c.row["loss"], c.row[size])), ""
    closest = min(free, key=lambda c: (sum(share for share, _ in excess(c)), c.row["drop"], c.row["loss"]))
    return closest, " and ".join(words for _, words in excess(closest))


def _front(candidates: Sequence[Candidate], spec: CompressSpec, noise: float) -> tuple[str, ...]:
    """Names of those that no other beats: not less accurate, not larger, not slower, and better in one.

    Args:
        noise: how far two timings of one file lie apart by chance, as a share; such differences count as none, and
            neither do those of a few names in a file.
    """
    margins = (1.0, _EQUAL, 1.0 + noise)

    def merits(candidate: Candidate) -> tuple[float, float, float]:
        row = candidate.row
        return (1.0 - row["accuracy"], row[size_field(spec)], row["latency_ms"])

    def beats(one: Candidate, other: Candidate) -> bool:
        pairs = list(zip(merits(one), merits(other), margins, strict=True))
        return all(a <= b * m for a, b, m in pairs) and any(a * m < b for a, b, m in pairs)

    kept: list[Candidate] = []
    # The best are kept one by one: with margins `beats` may go round in a circle, which would leave nothing.
    for candidate in sorted((c for c in candidates if not c.control), key=merits):
        if not any(beats(one, candidate) for one in kept):
            kept = [one for one in kept if not beats(candidate, one)] + [candidate]
    names = {one.name for one in kept}
    return tuple(candidate.name for candidate in candidates if candidate.name in names)


def _filters(model: nn.Module, stage: _Stage) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
    for name, layer in prune.prunable_layers(model).items():
        weight = layer.weight
        if isinstance(weight, torch.Tensor) and weight.ndim == 4:
            values = weight.detach().float().cpu().numpy()
            kept = np.ones(values.shape, np.bool_)
            if name in stage.shape.kept:
                kept[:] = False
                kept[list(stage.shape.kept[name])] = True
            elif stage.ratio > 0:
                now = prune.prunable_layers(stage.model)[name].weight
                assert isinstance(now, torch.Tensor)
                if now.shape == weight.shape:
                    kept = (now != 0).cpu().numpy()
            return values, kept
    return None


def _as_served(images: Images, precision: str) -> Images:
    """Dynamic ranges are those of a batch; the runtime gives such a file one image at a time, and so is it judged."""
    return replace(images, batch_size=1) if precision == NAMES["dynamic"] else images


def _predict(content: bytes, images: Images) -> NDArray[np.float32]:
    session = quantize.open_session(content)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: batch})[0] for batch, _ in images.batches()])


def _right(outputs: NDArray[np.float32], labels: NDArray[np.int64]) -> int:
    return int((outputs.argmax(axis=1) == labels).sum())


def _loss(outputs: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    return float(-np.log(np.maximum(outputs[np.arange(len(labels)), labels].astype(np.float64), 1e-12)).mean())


def _accuracy(predicted: NDArray[np.int64], labels: NDArray[np.int64], tools: Tools) -> dict[str, Any]:
    right = int((predicted == labels).sum())
    interval = tools.interval(right, len(labels))
    return {"accuracy": right / len(labels), "accuracy_interval": None if interval is None else list(interval)}


def _drop(
    before: NDArray[np.int64], after: NDArray[np.int64], labels: NDArray[np.int64], tools: Tools
) -> dict[str, Any]:
    """Points of accuracy lost, with the paired interval; positive is worse."""
    paired = tools.compare(before, after, labels)
    low, high = paired["interval"]
    return {"drop": -100.0 * paired["difference"] + 0.0, "drop_interval": [-100.0 * high, -100.0 * low]}
