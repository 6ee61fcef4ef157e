"""The candidates of a compression: networks as verified files, and the measurements of each file.

All measurements are of the exported file, in ONNX Runtime, on this machine: its size, its latency, its predictions.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kitae import keyed
from kitae.compression import quantize
from kitae.compression.calibrate import Ranges, calibrate
from kitae.compression.counting import count
from kitae.compression.graph import constant_bytes, weighted_nodes
from kitae.compression.spec import CompressSpec, Method, first_in_float
from kitae.console import plural
from kitae.data.loader import ImageSet
from kitae.deployment.onnx import Card, serialize, to_onnx
from kitae.deployment.verify import Parity, torch_reference, verify_float, verify_integer
from kitae.errors import CompressionError, ExportError, TrainingError, TrainingInterruptedError
from kitae.evaluation import intervals, latency
from kitae.evaluation.calibration import fit_temperature
from kitae.evaluation.evaluate import label_scores
from kitae.files import write_atomically
from kitae.models.structure import count_macs
from kitae.pipelines.export import VERIFY_IMAGES, card
from kitae.pipelines.networks import Network, Networks, Say
from kitae.runtime import answers, open_session

if TYPE_CHECKING:
    import onnx

NAMES = {"none": "fp32", "dynamic": "int8-dynamic", "static": "int8-static", "qat": "int8-qat"}
"""Precision in a spec -> its name in the file's metadata and in the tables."""

_SENSITIVITY_IMAGES = 512
_TIMINGS = 50  # of each file
_SAME_LATENCY = 1.05
_FAILURES = (CompressionError, ExportError, TrainingError)  # of one file; others may be made


@dataclass(frozen=True)
class Candidate:
    """One file and its measurements.

    Attributes:
        name: ratio and precision, in words.
        ratio: share of channels or weights removed.
        precision: one of `NAMES`' values.
        path: the file.
        row: its numbers so far; see `CompressionResult.rows`.
        model: the network in PyTorch; for `int8-qat` with the weights learnt there.
        temperature: of the file's probabilities.
        control: measured for comparison; never the winner.
    """

    name: str
    ratio: float
    precision: str
    path: Path
    row: dict[str, Any]
    model: nn.Module
    temperature: float = 1.0
    control: bool = False


@dataclass(frozen=True, eq=False)
class Scoring:
    """How predictions for some images are scored: by accuracy, or by its mean over the classes.

    The latter where it chose the run's best epoch: by plain accuracy, a file that never predicts a class with 1 % of
    the images would lose only 1 point.

    Attributes:
        labels: int64 [N].
        groups: int64 [N], equal for images of one group; None without groups.
    """

    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None
    balanced: bool = False

    @property
    def name(self) -> str:
        return "balanced accuracy" if self.balanced else "accuracy"

    def accuracy(self, predicted: NDArray[np.int64]) -> dict[str, Any]:
        """`accuracy` and `accuracy_interval`."""
        right = predicted == self.labels
        if not self.balanced:
            return intervals.accuracy(right, self.groups)
        score, interval = label_scores(predicted, self.labels), intervals.balanced(right, self.labels, self.groups)
        return {"accuracy": score["val_balanced_accuracy"], "accuracy_interval": interval and list(interval)}

    def loss(self, outputs: NDArray[np.float32]) -> float:
        """Mean negative log likelihood of probabilities [N, K], in nats."""
        true = outputs[np.arange(len(self.labels)), self.labels].astype(np.float64)
        return float(-np.log(np.maximum(true, 1e-12)).mean())

    def drop(self, before: NDArray[np.int64], after: NDArray[np.int64]) -> dict[str, Any]:
        """Points lost, with the paired interval; positive is worse."""
        compared = intervals.balanced_difference if self.balanced else intervals.paired_difference
        difference, (low, high) = compared(before, after, self.labels, self.groups)
        return {"drop": -100.0 * difference + 0.0, "drop_interval": [-100.0 * high, -100.0 * low]}

    @property
    def least_drop(self) -> float:
        """The smallest upper end that the interval of a drop can have on these images, in points: of no change."""
        end: float = self.drop(self.labels, self.labels)["drop_interval"][1]
        return end


class Bench:
    """Turns networks into files and files into numbers, always with the same images.

    Calibration is on *training* images, every measurement on validation.

    Args:
        folder: where the files are kept.

    Attributes:
        scoring: of all measurements.
        spec: without `sure` if there are too few validation images to show that any drop is within the budget.
        left_out: candidates that could not be made, each with a `name` and `why`.
    """

    def __init__(self, networks: Networks, folder: Path) -> None:
        self.networks, self.folder = networks, folder
        self.run, self.spec, self.say = networks.run, networks.spec, networks.say
        setup = networks.setup
        train = setup.shuffled_train[: self.spec.calibration_images]  # in a keyed order: the first few are a sample
        self.calibration = setup.image_set(train).gather(train)[0]
        self.validation = setup.image_set(setup.splits.val)
        rows = self.validation.rows
        by_class = self.run.recipe.train.by_class
        self.scoring = Scoring(setup.store.labels[rows], setup.store.groups_of(rows), balanced=by_class)
        self.spec = as_sure_as_possible(self.spec, self.scoring, self.say)
        self.images, _ = self._sample(VERIFY_IMAGES)
        self.left_out: list[dict[str, str]] = []
        self._card = card(self.run)
        self._original: NDArray[np.int64] | None = None  # classes that the float original predicts

    def candidates(self, network: Network, *, like: Candidate | None = None) -> list[Candidate]:
        """Write a network as one file for each requested precision; the original is always written in float32 too.

        Args:
            like: write only one file, in the precision of this one.
        """
        wanted = [p for p in NAMES if p in self.spec.quantize and (like is None or like.precision == NAMES[p])]
        original = network.ratio == 0 and not network.control
        try:
            about = self._calibrated(network.model, original)
            graph = to_onnx(network.model, about)
            plain = self._file(network, "none", graph, about)
        except _FAILURES as error:
            if original:
                raise  # without the original there is nothing to compare with
            self.leave_out(network.name, str(error))
            return []
        found = [plain] if original or "none" in wanted else []
        if self.spec.abandon and network.ratio > 0 and not network.control and plain.row["drop"] > hopeless(self.spec):
            return found or [plain]  # rounding will not bring back what pruning lost
        failures, quantized = [], [precision for precision in wanted if precision != "none"]
        for precision in quantized:
            try:
                found += self._quantized(network, precision, graph, about, plain, like)
            except TrainingInterruptedError:
                raise
            except _FAILURES as error:
                self.leave_out(f"{network.name} {NAMES[precision]}", str(error))
                failures.append(error)
        if original and failures and len(failures) == len(quantized):
            raise failures[0]  # the network itself cannot be quantized as asked
        return found

    def leave_out(self, name: str, why: str) -> None:
        """Report a candidate that could not be made, and record it in the result."""
        self.say(f"skipping {name}: {why}")
        self.left_out.append({"name": name, "why": why})

    def sensitivity(self) -> tuple[quantize.Sensitivity, ...]:
        """The effect of quantizing each layer of the original alone, on a sample of the validation images."""
        self.say("quantizing each layer alone")
        images, labels = self._sample(_SENSITIVITY_IMAGES)
        try:
            graph = to_onnx(self.networks.original.model, self._card)
            ranges = calibrate(graph, self.calibration, self.spec.calibration[0])
            found = quantize.sensitivity(
                graph, ranges, images, labels, target=self.spec.target, per_channel=self.spec.per_channel
            )
        except _FAILURES as error:  # the files are there already; this list only explains them
            self.leave_out("the sensitivity of the layers", str(error))
            return ()
        return tuple(found)

    def timed(self, candidates: Sequence[Candidate]) -> tuple[list[Candidate], dict[str, Any]]:
        """The candidates with one image's latency, measured interleaved with the first as reference, and the report.

        If the reference was timed before, times are scaled to that earlier measurement, since the machine may have
        become slower or faster, and the times in one column must be comparable.
        """
        self.say(f"measuring the latency of {plural(len(candidates), 'file')}")
        first = candidates[0]
        report = self._measure({candidate.name: candidate.path.read_bytes() for candidate in candidates})
        now = 1e3 * report["candidates"][first.name]["seconds"]
        clock = first.row.get("latency_ms", now) / now
        timed = []
        for candidate in candidates:
            found = report["candidates"][candidate.name]
            low, high = found["ratio_interval"]
            times = {
                "latency_ms": 1e3 * found["seconds"] * clock,
                "latency_ms_interval": [1e3 * clock * end for end in found["seconds_interval"]],
                "speedup": 1 / found["ratio"],
                "speedup_interval": [1 / high, 1 / low],
            }
            timed.append(replace(candidate, row={**candidate.row, **times}))
        return timed, report

    def as_fast(self, model: nn.Module) -> tuple[str, nn.Module]:
        """The largest small network that is as fast as `model`, both in float32; the smallest if none is."""
        nets = self.networks.small()
        graphs = {name: to_onnx(net, self._card).SerializeToString() for name, net in {"": model, **nets}.items()}
        found = self._measure(graphs)["candidates"]
        fast = [name for name in nets if found[name]["ratio"] <= _SAME_LATENCY]
        title = fast[-1] if fast else next(iter(nets))
        return title, nets[title]

    def _sample(self, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Some validation images and their labels; the first ones of a folder would all be of its first classes."""
        seed, rows = self.run.recipe.data.split_seed, self.validation.rows
        places = np.sort(keyed.permutation(seed, 3, len(rows), keyed.SLOT_SPLIT)[:count])
        return self.validation.gather(rows[places])

    def _measure(self, contents: Mapping[str, bytes]) -> dict[str, Any]:
        """Time the files in turn, with the first one as the reference."""
        calls: dict[str, Callable[[], object]] = {}
        for name, content in contents.items():
            session = open_session(content, threads=self.spec.threads)
            calls[name] = partial(session.run, None, {session.get_inputs()[0].name: self.images[:1]})
        return latency.measure(calls, repeats=_TIMINGS).to_dict()

    def _calibrated(self, model: nn.Module, original: bool = False) -> Card:
        """The card of a network's file. Fine-tuning changes the logits, so each network has its own temperature."""
        if original or not self.run.recipe.evaluate.temperature:
            return self._card
        logits, labels = self.run.logits(self.validation, model, tta="none")
        return replace(self._card, temperature=fit_temperature(logits, labels))

    def _quantized(
        self, network: Network, precision: str, graph: onnx.ModelProto, about: Card, plain: Candidate,
        like: Candidate | None,
    ) -> list[Candidate]:  # fmt: skip
        """The network in 8 bits, as verified files."""
        if precision == "dynamic":
            made = quantize.dynamic(graph, target=self.spec.target, per_channel=self.spec.per_channel)
            return [self._file(network, precision, made, about)]
        if precision == "qat":
            length = plural(self.spec.qat_epochs, "epoch")
            self.say(f"{network.name} {NAMES[precision]}: quantization-aware training, {length}")
            trained = self.networks.aware(network)
            if like is None and "static" in self.spec.quantize and _same_weights(trained.model, network.model):
                why = "no epoch of 8-bit training was better than the start, which is the static file"
                self.leave_out(f"{network.name} {NAMES[precision]}", why)
                return []
            network = trained
            about = self._calibrated(network.model)
            graph = to_onnx(network.model, about)
            # Its integers are compared with this graph, so the graph itself is first compared with the network.
            self._verify_float(serialize(graph, about), network.model, about)
        ranges = {method: calibrate(graph, self.calibration, method) for method in self.spec.calibration}
        static = partial(self._static, network, precision, graph, about, ranges)
        most = len(weighted_nodes(graph)) // 4  # with more it would hardly be an INT8 file
        if like is not None:
            return [static(min(like.row["float_layers"], most))]  # a small network of a control has fewer layers
        whole = best = static(0)
        for layers in self.spec.float_layers:
            if layers > most or self.within(best.row) or not self.within(plain.row):
                break
            try:
                other = static(layers)
            except _FAILURES as error:  # the file with all layers in 8 bits is there
                self.leave_out(f"{whole.name}, {first_in_float(layers)}", str(error))
                continue
            best = min(best, other, key=lambda candidate: (candidate.row["drop"], candidate.row["loss"]))
        return [whole] if best is whole else [whole, best]

    def _static(
        self, network: Network, precision: str, graph: onnx.ModelProto, about: Card,
        ranges: Mapping[Method, Ranges], layers: int,
    ) -> Candidate:  # fmt: skip
        """Quantize with each calibration method; the best accuracy on validation wins, then the lower loss."""
        tried = []
        for method, found in ranges.items():
            made = quantize.static(
                graph, found, target=self.spec.target, per_channel=self.spec.per_channel, float_layers=layers
            )
            outputs = predict(made.SerializeToString(), self.validation)
            reached = self.scoring.accuracy(outputs.argmax(axis=1))["accuracy"]
            tried.append((reached, -self.scoring.loss(outputs), made, method, outputs))
        _, _, made, method, outputs = max(tried, key=lambda item: item[:2])
        return self._file(network, precision, made, about, method=method, outputs=outputs, float_layers=layers)

    def within(self, row: Mapping[str, Any]) -> bool:
        """Whether the points that a file loses, or may lose, are within the budget."""
        return within(lost(row, self.spec), self.spec)

    def _verify_float(self, content: bytes, model: nn.Module, about: Card) -> Parity:
        reference = partial(torch_reference, model, about.mean, about.std, about.temperature)
        return verify_float(content, reference, self.images)

    def _file(
        self, network: Network, precision: str, graph: onnx.ModelProto, about: Card, *, method: str = "",
        outputs: NDArray[np.float32] | None = None, float_layers: int = 0,
    ) -> Candidate:  # fmt: skip
        """Verify and write one file, and measure it."""
        pruned = self.spec.prune if network.ratio > 0 else "none"
        name = f"{network.name} {NAMES[precision]}"
        notes = {"prune": pruned, "ratio": network.ratio, "calibration": method or None}
        if float_layers:
            name += f", {first_in_float(float_layers)}"
            notes["float_layers"] = float_layers
        target = "any" if precision == "none" else self.spec.target
        content = serialize(graph, replace(about, precision=NAMES[precision], target=target, notes=notes))
        if precision == "none":
            parity = self._verify_float(content, network.model, about)
        else:
            parity = verify_integer(content, self.images)
        if outputs is None:
            outputs = predict(content, self.validation, NAMES[precision])
        predicted = outputs.argmax(axis=1).astype(np.int64)
        self._original = predicted if self._original is None else self._original
        counts = count(network.model)
        path = self.folder / f"{name.replace(' ', '-').replace('%', '').replace(',', '')}.onnx"
        write_atomically(path, content)
        row = {
            "name": name,
            "prune": pruned,
            "ratio": network.ratio,
            "precision": NAMES[precision],
            "calibration": method,
            "float_layers": float_layers,
            "parameters": counts.parameters,
            "nonzero": counts.nonzero,
            "sparsity": counts.sparsity,
            "macs": count_macs(network.model, about.rules.channels, about.rules.image_size),
            "bytes": len(content),
            "weight_bytes": constant_bytes(graph),
            "packed_bytes": len(zlib.compress(content, 9)),
            **self.scoring.accuracy(predicted),
            "loss": self.scoring.loss(outputs),
            **self.scoring.drop(self._original, predicted),
            "flips": float((predicted != self._original).mean()),
            "parity_error": parity.max_error,
            "parity_flips": parity.flips / parity.images,
            "masked_error": network.masked_error,
        }
        self.say(f"{name}: {len(content):,} bytes, {row['drop']:+.2f} points lost on validation")
        return Candidate(
            name, network.ratio, NAMES[precision], path, row, network.model, about.temperature, bool(network.control)
        )


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def as_sure_as_possible(spec: CompressSpec, scoring: Scoring, say: Say) -> CompressSpec:
    """The spec, without `sure` if there are too few validation images to show that any drop is within the budget."""
    if not spec.sure or scoring.least_drop <= spec.max_drop:
        return spec
    groups = scoring.groups
    what = "images" if groups is None else "groups"
    advice = f"; more validation {what} (data.val_fraction) would help" if spec.max_drop else ""
    few = "" if groups is None else f" of {plural(len(np.unique(groups)), 'group')}"
    say(
        f"note: {len(scoring.labels)} validation images{few} are too few to show that a drop is within "
        f"{spec.max_drop:g} points, so the measured drop is used, which may be small by chance{advice}"
    )
    return spec.model_copy(update={"sure": False})


def within(points: float, spec: CompressSpec) -> bool:
    """Whether a drop is within the budget, with a tolerance for rounding, as 0.7 may be 0.7000000000000001."""
    return points <= spec.max_drop + 1e-9


def lost(row: Mapping[str, Any], spec: CompressSpec) -> float:
    """The points that are compared with the budget: a candidate's drop, or with `sure` its interval's upper end."""
    points: float = row["drop_interval"][1] if spec.sure else row["drop"]
    return points


def hopeless(spec: CompressSpec) -> float:
    """Points lost beyond which larger ratios and coarser precisions are not tried."""
    return 2 * spec.max_drop + 1.0


def predict(content: bytes, images: ImageSet, precision: str = "") -> NDArray[np.float32]:
    """A file's probabilities: float32 [N, K].

    Dynamic ranges depend on the batch, so images are passed one at a time to such a file, as in the runtime.
    """
    session = open_session(content)
    size = 1 if precision == NAMES["dynamic"] else quantize.at_once(session)
    batches = (images.gather(images.rows[start : start + size])[0] for start in range(0, len(images), size))
    return answers(session, batches)
