"""The search on a real, tiny run: real pruning, training, quantization and files; only the clock is a fake."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from pydantic import ValidationError
from torch import nn

from kitae.compression import channels, quantize
from kitae.compression.channels import whole_packs
from kitae.compression.counting import prunable_layers, weight_of, width_of
from kitae.compression.shape import reshape
from kitae.compression.spec import CompressSpec
from kitae.errors import CompressionError, ExportError, RecipeError, TrainingError, TrainingInterruptedError
from kitae.models.build import build_seeded
from kitae.models.structure import count_parameters
from kitae.pipelines import candidates, networks
from kitae.pipelines.budget import Outcome, choose, front, judge, search
from kitae.pipelines.candidates import Bench, Candidate, Scoring, as_sure_as_possible, within
from kitae.pipelines.networks import Network, Networks
from kitae.pipelines.setup import Setup
from kitae.run import Run
from kitae.runtime import Model
from kitae.training.learner import Learner
from kitae.training.spec import TrainSpec
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("export_once")

DIVERGED = TrainingError("val_loss was never finite")
STOPPED = TrainingInterruptedError("stopped by SIGTERM", "nothing was saved")
DEFAULTS: dict[str, Any] = {
    "ratios": (0.25, 0.5), "finetune_epochs": 0, "sensitivity": False, "round_to": 1, "sure": False, "controls": (),
    "calibration": ("minmax",), "max_drop": 100.0, "qat_epochs": 1,
}  # fmt: skip
FLOAT = {"quantize": ("none",), "ratios": (0.5,)}

honest_recover = Setup.recover


class Clock:
    """Reads the precision off a file's name, so that tests do not depend on the machine; every call still runs."""

    def __init__(self) -> None:
        self.slower = 1.0
        self.ratios: dict[str, float] = {}

    def measure(self, calls: Mapping[str, Callable[[], object]], *, repeats: int) -> Any:
        for call in calls.values():
            call()
        found = {}
        for name in calls:
            ratio = self.ratios.get(name, 0.5 if "int8" in name else 1.0)
            seconds = 0.004 * ratio * self.slower
            found[name] = {"seconds": seconds, "seconds_interval": [0.75 * seconds, 1.25 * seconds], "ratio": ratio,
                           "ratio_interval": [0.9 * ratio, 1.1 * ratio]}  # fmt: skip
        report = {
            "reference": next(iter(calls)), "rounds": repeats, "level": 0.95, "covers": "nothing", "noise": 0.0,
            "control": {"ratio": 1.0, "ratio_interval": [1.0, 1.0]}, "candidates": found,
        }  # fmt: skip
        return type("Report", (), {"to_dict": lambda _: report})()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(candidates.latency, "measure", clock.measure)
    return clock


@pytest.fixture(autouse=True)
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of every fine-tuning."""
    seen: list[dict[str, Any]] = []

    def recover(self: Setup, model: nn.Module, **options: Any) -> nn.Module:
        seen.append({"kind": type(model).__name__, **options})
        return honest_recover(self, model, **options)

    monkeypatch.setattr(Setup, "recover", recover)
    return seen


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fine-tuned networks of all tests: each is trained once."""
    return tmp_path_factory.mktemp("stages")


class Finder:
    """Searches in a run, with the shared networks or, where trainings are counted, with networks of its own."""

    def __init__(self, run: Run, shared: Path, folder: Path) -> None:
        self.run, self.shared, self.folder = run, shared, folder
        self.lines: list[str] = []

    def networks(self, *, stages: Path | None = None, **fields: Any) -> Networks:
        return Networks(self.run, CompressSpec(**{**DEFAULTS, **fields}), stages or self.shared, self.lines.append)

    def __call__(self, *, stages: Path | None = None, **fields: Any) -> Outcome:
        return search(Bench(self.networks(stages=stages, **fields), self.folder / "candidates"))

    def pruned(self, *ratios: float, stages: Path | None = None, **fields: Any) -> Network:
        """The network at the last of these ratios that removes something."""
        networks = self.networks(stages=stages, **fields)
        reached = [networks.original]
        for ratio in ratios:
            if (network := networks.prune(reached, ratio)) is not None:
                reached.append(network)
        return reached[-1]


@pytest.fixture
def find(finished: Run, shared: Path, tmp_path: Path) -> Iterator[Finder]:
    threads = torch.get_num_threads()
    yield Finder(finished, shared, tmp_path)
    torch.set_num_threads(threads)


def rows_of(outcome: Outcome) -> list[dict[str, Any]]:
    return [row.data() for row in outcome.record.candidates]


def left_out(outcome: Outcome) -> list[tuple[str, str]]:
    return [(one.name, one.why) for one in outcome.record.left_out]


def names(outcome: Outcome) -> list[str]:
    return [row["name"] for row in rows_of(outcome)]


def fails_at(call: int, problem: Exception, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose call number `call` fails; the others are those of another function."""
    calls = itertools.count(1)

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise problem
        return otherwise(*arguments, **options)

    return counted


def failing(monkeypatch: pytest.MonkeyPatch, problem: Exception, *, at: int) -> None:
    """Make a fine-tuning fail; the others do nothing."""
    monkeypatch.setattr(Setup, "recover", fails_at(at, problem, lambda self, model, **_: model))


def weights_of(outcome: Outcome, row: dict[str, Any]) -> int:
    model = next(one.model for one in outcome.candidates if one.name == row["name"])
    return sum(weight_of(layer).numel() for layer in prunable_layers(model).values())


def test_the_smallest_file_within_the_budget_wins(find: Finder, finished: Run) -> None:
    outcome = find(max_drop=60.0, sensitivity=True, scope="layer")
    rows = {row["name"]: row for row in rows_of(outcome)}
    assert list(rows) == [
        "original fp32", "original int8-static", "25 % fp32", "25 % int8-static", "50 % fp32", "50 % int8-static"
    ]  # fmt: skip
    assert rows["original fp32"]["drop"] == 0
    best = finished.load_model()
    for name, value in find.networks().original.model.state_dict().items():
        assert torch.equal(value, best.state_dict()[name]), name
    assert outcome.record.within_budget
    inside = [row for row in rows.values() if row["drop"] <= 60.0]
    assert outcome.winner.row["bytes"] <= 1.01 * min(row["bytes"] for row in inside)
    assert rows[outcome.winner.name]["winner"]
    for row in rows.values():
        assert row["accuracy_interval"][0] <= row["accuracy"] <= row["accuracy_interval"][1]
        assert row["drop_interval"][0] <= row["drop"] <= row["drop_interval"][1]
        assert 0 < row["packed_bytes"] <= row["bytes"]
        assert (1 if "int8" in row["name"] else 4) * weights_of(outcome, row) <= row["weight_bytes"]
        assert row["bytes"] - row["weight_bytes"] > 1000, "nodes, names and metadata"
    for ratio in ("original", "25 %", "50 %"):
        assert rows[f"{ratio} int8-static"]["weight_bytes"] < 0.7 * rows[f"{ratio} fp32"]["weight_bytes"]
        # A normalisation per channel of the image, and constants of the graph's operations.
        assert rows[f"{ratio} fp32"]["weight_bytes"] < 4 * rows[f"{ratio} fp32"]["parameters"] + 200
        assert row["speedup"] == pytest.approx(2.0 if "int8" in row["name"] else 1.0)
        assert row["parity_error"] < (1e-3 if row["precision"] == "fp32" else 1)
    assert rows["50 % fp32"]["macs"] < 0.4 * rows["original fp32"]["macs"]
    small = reshape(finished.load_model(free=True), outcome.shape)
    assert outcome.winner.row["parameters"] == count_parameters(small)
    small.load_state_dict(outcome.winner.model.state_dict())
    assert outcome.record.winner.front
    reference, *layers = outcome.record.sensitivity
    assert (reference.layer, reference.divergence, reference.flips) == ("", 0.0, 0.0)
    assert reference.accuracy is not None
    assert len(layers) == len(prunable_layers(best))
    values, kept = outcome.filters or (np.zeros(0), np.zeros(0))
    assert values.shape == kept.shape == (8, 1, 3, 3)
    assert kept.mean() == pytest.approx(len(outcome.shape.kept["stem.0"]) / 8)

    setup = Setup.of(finished)
    test = setup.image_set(setup.splits.open_test(lambda: None))
    verdict = judge(outcome, test, CompressSpec(), Scoring(test.labels[test.rows]))
    assert verdict.count == len(test)
    assert verdict.baseline.accuracy is not None
    assert verdict.winner.accuracy is not None
    assert verdict.drop_interval is not None
    points = 100 * (verdict.baseline.accuracy - verdict.winner.accuracy)
    assert verdict.drop == pytest.approx(points)
    assert verdict.drop_interval[0] <= points <= verdict.drop_interval[1]
    images, labels = test.gather(test.rows)
    served = Model(outcome.winner.path).predict(images)
    assert (served.labels == labels).mean() == verdict.winner.accuracy


def test_bytes_and_latency_bound_the_choice(find: Finder) -> None:
    tiny = find(max_bytes=100)
    assert not tiny.record.within_budget
    assert "bytes, over 100" in tiny.record.why_not
    assert tiny.winner.row["bytes"] == min(row["bytes"] for row in rows_of(tiny))
    slow = find(max_latency_ms=0.001, prune="none")
    assert "takes 2 ms, more than 0.001" in slow.record.why_not
    assert find(max_latency_ms=2.5, ratios=(0.25,)).winner.precision == "int8-static"
    only_float = find(quantize=("none",), ratios=(0.25,), sensitivity=True)
    assert only_float.winner.name == "25 % fp32"
    assert only_float.record.sensitivity == ()


def test_first_layers_stay_float_where_rounding_them_costs_too_much(
    find: Finder, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, tried = quantize.static, list[int]()

    def coarse(graph: Any, ranges: Any, *, float_layers: int, **options: Any) -> Any:
        """Useless ranges, unless the first two layers are left out."""
        tried.append(float_layers)
        if float_layers < 2:
            ranges = {name: (low / 1000, high / 1000) for name, (low, high) in ranges.items()}
        return honest(graph, ranges, float_layers=float_layers, **options)

    monkeypatch.setattr(quantize, "static", coarse)
    outcome = find(prune="none", quantize=("static",), max_drop=5.0)
    assert tried == [0, 1, 2]
    assert names(outcome) == [
        "original fp32", "original int8-static", "original int8-static, first 2 layers in float32"
    ]  # fmt: skip
    assert outcome.record.within_budget
    assert outcome.winner.row["float_layers"] == 2
    assert outcome.record.label(outcome.record.winner) == "not pruned, INT8, first 2 layers in float32"
    assert Model(outcome.winner.path).metadata["notes"]["float_layers"] == 2
    assert outcome.winner.path.name == "original-int8-static-first-2-layers-in-float32.onnx"
    tried.clear()
    assert not find(prune="none", quantize=("static",), max_drop=5.0, float_layers=()).record.within_budget
    assert not find(prune="none", quantize=("static",), max_drop=5.0, float_layers=(1,)).record.within_budget
    assert tried == [0, 0, 1]
    tried.clear()
    controls = find(ratios=(0.5,), quantize=("static",), max_drop=90.0, controls=("random",))
    assert controls.winner.row["float_layers"] == 0, "a budget that everything keeps"
    assert tried == [0, 0, 0], "of the original, the winner and the control"


def test_a_file_with_layers_in_float_that_cannot_be_made_costs_no_other(
    find: Finder, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = quantize.static

    def refusing(graph: Any, ranges: Any, *, float_layers: int, **options: Any) -> Any:
        if float_layers:
            raise CompressionError("these layers cannot stay")
        ranges = {name: (low / 1000, high / 1000) for name, (low, high) in ranges.items()}
        return honest(graph, ranges, float_layers=float_layers, **options)

    monkeypatch.setattr(quantize, "static", refusing)
    outcome = find(prune="none", quantize=("static",), max_drop=5.0, float_layers=(1,))
    assert names(outcome) == ["original fp32", "original int8-static"]
    assert left_out(outcome) == [("original int8-static, first layer in float32", "these layers cannot stay")]


def test_a_control_with_few_layers_leaves_fewer_of_them_in_float(find: Finder) -> None:
    networks = find.networks(prune="none", quantize=("static",), max_drop=100.0)
    bench = Bench(networks, find.folder / "candidates")
    _, made = bench.candidates(networks.original)
    winner = replace(made, row={**made.row, "float_layers": 40})  # of a network with many more layers
    (control,) = bench.candidates(replace(networks.original, control="small net"), like=winner)
    assert control.row["float_layers"] == 2, "a quarter of them"


def test_hopeless_ratios_are_abandoned_and_only_what_was_asked_for_can_win(find: Finder) -> None:
    fields = {"ratios": (0.8, 0.88), "importance": "random", "max_drop": 0.5, "quantize": ("none",)}
    outcome = find(**fields)
    assert {candidate.ratio for candidate in outcome.candidates} == {0.0, 0.8}
    assert "ratios above 0.8 were not tried" in outcome.record.stopped
    assert (outcome.winner.ratio, outcome.record.within_budget) == (0.8, False), (
        "the original is not what was asked for"
    )
    assert "points, more than 0.5" in outcome.record.why_not
    assert find(**{**fields, "ratios": (0.8,)}).record.stopped == "", "none was left"
    everything = find(**fields, abandon=False)
    assert {candidate.ratio for candidate in everything.candidates} == {0.0, 0.8, 0.88}
    assert everything.record.stopped == ""
    alone = find(quantize=("none",), prune="none")
    assert (alone.winner.name, alone.record.within_budget) == ("original fp32", True), "there is nothing else"


def test_unstructured_pruning_holds_its_zeros_into_the_file(
    find: Finder, finished: Run, trainings: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted, revived = Setup.recover, list[int]()

    def recover(self: Setup, model: nn.Module, *, tuning: Any, **options: Any) -> nn.Module:
        before = {name: layer.weight == 0 for name, layer in prunable_layers(model).items()}

        def both(model: nn.Module) -> None:
            tuning.after_step(model)
            now = prunable_layers(model)
            revived.append(sum(int((now[name].weight[zero] != 0).sum()) for name, zero in before.items()))

        return noted(self, model, tuning=replace(tuning, after_step=both), **options)

    monkeypatch.setattr(Setup, "recover", recover)
    outcome = find(prune="unstructured", gradual=True, finetune_epochs=2, stages=tmp_path / "stages")
    assert revived
    assert not any(revived)
    rows = {row["name"]: row for row in rows_of(outcome)}
    layers = prunable_layers(finished.load_model())
    weights = sum(layer.weight.numel() for layer in layers.values())  # type: ignore[union-attr,operator]
    for ratio in (0.25, 0.5):
        row = rows[f"{100 * ratio:g} % fp32"]
        assert row["sparsity"] * row["parameters"] == pytest.approx(ratio * weights, abs=len(layers))
        assert row["bytes"] == pytest.approx(rows["original fp32"]["bytes"], abs=60)
        assert row["packed_bytes"] < rows["original fp32"]["packed_bytes"]
        assert row["masked_error"] is None, "no channel was removed"
    for name in ("50 % fp32", "50 % int8-static"):
        (candidate,) = [c for c in outcome.candidates if c.name == name]
        held = [numpy_helper.to_array(i) for i in onnx.load(candidate.path).graph.initializer]
        zeros = sum(int((values == 0).sum()) for values in held if values.ndim > 1)
        assert zeros >= round(0.5 * weights) - len(layers)
    assert outcome.winner.ratio == 0.5, "the files are equally large, but more zeros are smaller when packed"
    assert outcome.record.winner.front
    assert [call["epochs"] for call in trainings] == [1, 1, 1, 1]
    assert len({call["seed"] for call in trainings}) == len(trainings)


@pytest.mark.slow
def test_every_precision_of_one_network(find: Finder, finished: Run) -> None:
    outcome = find(
        quantize=("none", "dynamic", "static", "qat"), prune="none", calibration=("minmax", "average"),
    )  # fmt: skip
    assert names(outcome) == [f"original {kind}" for kind in ("fp32", "int8-dynamic", "int8-static", "int8-qat")]
    rows = rows_of(outcome)
    assert all(abs(row["drop"]) < 10 for row in rows[:3])
    assert {row["calibration"] for row in rows[2:]} <= {"minmax", "average"}
    assert rows[0]["parity_flips"] == 0
    assert all(0 <= row["parity_flips"] <= 0.05 for row in rows)
    learnt = outcome.candidates[3].model
    assert not torch.equal(learnt.stem[0].weight, finished.load_model().stem[0].weight), "weights of the 8-bit training"
    with torch.no_grad():
        assert learnt(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_layers_may_lose_a_share_of_their_own(find: Finder) -> None:
    layers = list(prunable_layers(find.networks().original.model))
    inner = next(name for name in layers if name != "stem.0")  # the first convolution of a block: coupled to no other
    own = {inner: 0.75, "stem.0": 0.0}
    outcome = find(**FLOAT, layer_ratios=own)
    assert len(outcome.shape.kept[inner]) == 2
    assert "stem.0" not in outcome.shape.kept, "it stays whole, and with it the layers it is coupled to"
    errors = [row["masked_error"] for row in rows_of(outcome)]
    assert errors[0] is None
    assert all(error < 1e-5 for error in errors[1:])
    assert [row["masked_error"] for row in rows_of(find(**FLOAT, layer_ratios=own))] == errors, "kept with the network"
    assert len(find(**FLOAT, scope="layer").shape.kept[inner]) == 4, "not the network of other ratios"
    loose = find(**FLOAT, layer_ratios=own, prune="unstructured")
    zeros = {name: float((m.weight == 0).float().mean()) for name, m in prunable_layers(loose.winner.model).items()}
    assert zeros[inner] == pytest.approx(0.75, abs=0.01)
    assert zeros["stem.0"] == 0
    assert zeros[layers[-1]] == pytest.approx(0.5, abs=0.01)
    refused(CompressionError, "layer_ratios: there is no layer 'nowhere'", find, **FLOAT, layer_ratios={"nowhere": 0.5})


def test_a_ratio_of_a_layer_that_cannot_lose_channels_is_refused(find: Finder) -> None:
    with pytest.raises(CompressionError, match="layer_ratios: 'classifier' cannot lose channels"):
        find(**FLOAT, layer_ratios={"classifier": 0.5})
    outcome = find(**FLOAT, layer_ratios={"classifier": 0.0})  # it stays whole, as it must
    assert outcome.winner.name == "50 % fp32"


def test_with_ratio_0_a_layer_stays_whole_though_it_is_no_whole_packs(find: Finder) -> None:
    inner = "stages.1.0.conv1"  # 16 channels, of which whole packs of 3 would leave 15
    outcome = find(**FLOAT, round_to=3, layer_ratios={inner: 0.0})
    assert inner not in outcome.shape.kept
    assert len(find(**FLOAT, round_to=3).shape.kept[inner]) == 9


def test_of_coupled_layers_the_first_one_named_counts(find: Finder) -> None:
    kept = find.pruned(0.5, **FLOAT, layer_ratios={"stem.0": 0.5}).shape.kept
    coupled = next(name for name in kept if name != "stem.0" and kept[name] == kept["stem.0"])
    for shares, left in (({"stem.0": 0.25, coupled: 0.75}, 6), ({coupled: 0.75, "stem.0": 0.25}, 2)):
        assert len(find.pruned(0.5, **FLOAT, layer_ratios=shares).shape.kept["stem.0"]) == left


def test_a_network_that_does_not_equal_the_masked_original_is_never_a_file(
    find: Finder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "masked_original", lambda model, removed, inputs: copy.deepcopy(model))
    with pytest.raises(CompressionError, match="something else than with zeros in their place"):
        find(ratios=(0.5,), stages=tmp_path / "stages")


def test_one_scale_per_weight(find: Finder) -> None:
    scales = {}
    for per_channel in (True, False):
        outcome = find(prune="none", quantize=("static",), per_channel=per_channel, sensitivity=True)
        assert outcome.record.sensitivity
        held = onnx.load(outcome.winner.path).graph
        users = [node.input[1] for node in held.node if node.op_type == "DequantizeLinear"]
        sizes = {item.name: int(np.prod(item.dims)) for item in held.initializer}
        scales[per_channel] = max(sizes.get(name, 1) for name in users)
    assert scales[True] > 1
    assert scales[False] == 1


def test_an_integer_file_that_fails_its_verification_is_left_out_and_named(
    find: Finder, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = candidates.verify_integer

    def refuses(content: bytes, images: Any) -> Any:
        if b"int8-qat" in content:
            raise ExportError("the INT8 graph does not run here as its integers say")
        return honest(content, images)

    monkeypatch.setattr(candidates, "verify_integer", refuses)
    outcome = find(prune="none", quantize=("none", "static", "qat"))
    assert names(outcome) == ["original fp32", "original int8-static"]
    assert left_out(outcome) == [("original int8-qat", "the INT8 graph does not run here as its integers say")]
    assert any("original int8-qat: " in line for line in find.lines)
    refused(ExportError, "as its integers say", find, prune="none", quantize=("none", "qat"))


def test_a_float_file_that_fails_its_check_is_left_out_but_for_the_original(
    find: Finder, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, problem = candidates.verify_float, ExportError("the file does not compute what the network computes")

    def refuse(at: int) -> None:
        monkeypatch.setattr(candidates, "verify_float", fails_at(at, problem, honest))

    refuse(at=2)
    outcome = find()
    assert names(outcome) == ["original fp32", "original int8-static", "50 % fp32", "50 % int8-static"]
    assert [name for name, _ in left_out(outcome)] == ["25 %"]
    refuse(at=1)
    refused(ExportError, "does not compute", find)
    refuse(at=3)
    outcome = find(**FLOAT, controls=("random",))
    assert outcome.winner.name == "50 % fp32"
    assert [name for name, _ in left_out(outcome)] == ["random, 50 %"]
    refuse(at=2)  # the graph of 8-bit training, which its integers are then compared with
    outcome = find(prune="none", quantize=("none", "static", "qat"))
    assert names(outcome) == ["original fp32", "original int8-static"]
    assert [name for name, _ in left_out(outcome)] == ["original int8-qat"]


def test_statistics_that_were_frozen_stay_so_in_fine_tuning(finished: Run, tmp_path: Path) -> None:
    """Those of the data are others, and the network depends on the frozen ones."""
    run = Run.open(finished.path)
    model = run.recipe.model.model_copy(update={"freeze": "statistics"})
    run.recipe = run.recipe.model_copy(update={"model": model})
    networks = Networks(run, CompressSpec(distill=False), tmp_path, print)
    before, after = networks.original.model.state_dict(), networks.further(1).model.state_dict()
    same = {name: torch.equal(value, after[name]) for name, value in before.items()}
    assert all(equal for name, equal in same.items() if ".running_" in name)
    assert not all(same.values()), "the weights were trained"
    for _ in range(2):  # the second time it is loaded, and the next ratio is fine-tuned from it
        networks = Networks(run, CompressSpec(finetune_epochs=0), tmp_path, print)
        pruned = networks.prune([networks.original], 0.5)
        assert pruned is not None
        norms = [module for module in pruned.model.train().modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms
        assert not any(norm.training for norm in norms)


def test_a_fine_tuning_that_makes_solved_weights_worse_is_discarded(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = Networks(finished, CompressSpec(finetune_rate=1.0, finetune_epochs=1), tmp_path / "tuned", print)
    alone = Networks(finished, CompressSpec(finetune_epochs=0), tmp_path / "alone", print)
    step = Learner.step

    def spoils(learner: Learner, *args: Any) -> Any:
        result = step(learner, *args)
        with torch.no_grad():
            for parameter in learner.model.parameters():
                parameter.zero_()
        return result

    monkeypatch.setattr(Learner, "step", spoils)
    found = [networks.prune([networks.original], 0.5) for networks in (tuned, alone)]
    weights = [one.model.state_dict() for one in found if one is not None]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_8_bit_training_that_only_made_it_worse_is_no_candidate(find: Finder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Networks, "aware", lambda self, network: replace(network, key="trained"))
    outcome = find(prune="none", quantize=("none", "static", "qat"))
    assert names(outcome) == ["original fp32", "original int8-static"]
    [(name, why)] = left_out(outcome)
    assert name == "original int8-qat"
    assert "which is the static file" in why
    alone = find(prune="none", quantize=("none", "qat"))
    assert names(alone) == ["original fp32", "original int8-qat"]


def test_a_fine_tuning_that_diverges_ends_the_ratios_and_not_the_search(
    find: Finder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"ratios": (0.25, 0.5, 0.75), "quantize": ("none",), "finetune_epochs": 1}
    failing(monkeypatch, DIVERGED, at=2)
    outcome = find(**fields, stages=tmp_path / "1")
    assert names(outcome) == ["original fp32", "25 % fp32"]
    assert left_out(outcome) == [("50 %", "val_loss was never finite")]
    assert outcome.record.stopped == "ratios above 0.5 were not tried: the fine-tuning of this one failed"
    assert outcome.winner.name == "25 % fp32"
    failing(monkeypatch, STOPPED, at=2)
    refused(TrainingInterruptedError, "", find, **fields, stages=tmp_path / "2")


@pytest.mark.slow
def test_8_bit_training_that_is_stopped_stops_the_search(
    find: Finder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, STOPPED, at=1)
    with pytest.raises(TrainingInterruptedError):
        find(prune="none", quantize=("none", "static", "qat"), stages=tmp_path / "stages")


@pytest.mark.parametrize("problem", [DIVERGED, RecipeError("model.name: resnet9 does not run on 6x6 images")])
def test_a_control_that_cannot_be_trained_leaves_the_winner(
    find: Finder, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    monkeypatch.setattr(Setup, "fit", fails_at(1, problem, pytest.fail))
    outcome = find(**FLOAT, controls=("random", "scratch"))
    assert names(outcome) == ["original fp32", "50 % fp32", "random, 50 % fp32"]
    assert left_out(outcome) == [("control scratch", str(problem))]


def test_a_random_control_loses_as_many_channels_in_every_layer(find: Finder) -> None:
    outcome = find(**FLOAT, controls=("random",))
    rows = {row["name"]: row for row in rows_of(outcome)}
    ours, control = rows["50 % fp32"], rows["random, 50 % fp32"]
    assert (control["parameters"], control["macs"]) == (ours["parameters"], ours["macs"])
    assert control["loss"] != ours["loss"], "but other channels"
    assert find(**FLOAT, scope="layer").winner.row["macs"] < ours["macs"], "ranked together, layers lose other shares"


@pytest.mark.parametrize(
    ("fields", "scope"),
    [
        ({}, "global"), ({"importance": "group"}, "layer"), ({"layer_ratios": {"stem": 0.1}}, "layer"),
        ({"prune": "unstructured"}, "layer"), ({"scope": "layer"}, "layer"),
        ({"importance": "group", "scope": "global"}, "global"),
    ],
)  # fmt: skip
def test_channels_are_ranked_together_where_their_errors_compare(fields: dict[str, Any], scope: str) -> None:
    assert CompressSpec(**fields).ranked == scope


def test_a_control_without_epochs_is_named(find: Finder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainSpec, "last_epoch", 0)
    outcome = find(**{**FLOAT, "finetune_epochs": 0}, controls=("scratch",))
    ((name, why),) = left_out(outcome)
    assert name == "control scratch"
    assert "no epochs" in why


def test_skipped_controls_are_mentioned(find: Finder) -> None:
    fields = {
        "ratios": (0.9,), "importance": "random", "max_drop": 8.0, "controls": ("random",), "reconstruct": False,
    }  # fmt: skip
    outcome = find(**fields, quantize=("static",))
    assert outcome.winner.name == "original int8-static"
    assert sum("controls are skipped" in line for line in find.lines) == 1
    find.lines.clear()
    outcome = find(**fields, quantize=("none",))
    assert outcome.winner.ratio == 0.9
    assert not any("controls are skipped" in line for line in find.lines)


def test_what_comes_last_does_not_cost_what_was_found(
    find: Finder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, honest = CompressionError("an operation cannot be quantized"), networks.remove_channels
    for reason in (problem, ExportError("onnxruntime cannot load it")):
        monkeypatch.setattr(candidates.quantize, "sensitivity", fails_at(1, reason, pytest.fail))
        outcome = find(sensitivity=True)
        assert outcome.winner.name == "50 % int8-static"
        assert outcome.record.sensitivity == ()
        assert left_out(outcome) == [("the sensitivity of the layers", str(reason))]
    monkeypatch.setattr(networks, "remove_channels", fails_at(2, problem, honest))
    outcome = find(quantize=("none",), stages=tmp_path / "1")
    assert outcome.winner.name == "25 % fp32"
    assert (left_out(outcome), outcome.record.stopped) == ([("50 %", str(problem))], ""), "it was the last ratio"
    monkeypatch.setattr(networks, "remove_channels", fails_at(1, problem, honest))
    refused(CompressionError, "cannot be quantized", find, quantize=("none",), stages=tmp_path / "2")


def counting_fits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, int, bool]]:
    """Epochs, learning rate, seed and whether there is a teacher, of every training."""
    fits: list[tuple[int, float, int, bool]] = []
    honest = Setup.fit

    def fit(self: Setup, model: nn.Module, spec: Any, world: Any, *, tuning: Any, **options: Any) -> None:
        fits.append((spec.epochs, spec.optimizer.lr, spec.seed, tuning.teacher is not None))
        honest(self, model, spec, world, tuning=tuning, **options)

    monkeypatch.setattr(Setup, "fit", fit)
    return fits


def assert_taught(fits: list[tuple[int, float, int, bool]], *expected: tuple[int, Any]) -> None:
    """Trainings of so many epochs at such a rate, in any order, each with a teacher and a seed of its own."""
    assert sorted((epochs, lr) for epochs, lr, _, _ in fits) == sorted(expected, key=lambda fit: fit[0])
    assert all(teacher for *_, teacher in fits)
    assert len({seed for _, _, seed, _ in fits}) == len(fits)


def assert_same_candidates(first: Outcome, again: Outcome) -> None:
    for a, b in zip(first.candidates, again.candidates, strict=True):
        assert a.path.read_bytes() == b.path.read_bytes(), a.name
        for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True):
            assert torch.equal(x, y)


def test_nothing_is_trained_twice(find: Finder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = counting_fits(monkeypatch)
    fields = {**FLOAT, "finetune_epochs": 1, "finetune_rate": 0.2, "controls": ("scratch",), "stages": tmp_path / "s"}
    first = find(**fields)
    assert names(first)[-2:] == ["trained further, original fp32", "from scratch, 50 % fp32"]
    # From scratch with the recipe's two epochs and the fine-tuning's one; the others at 0.2 of its rate.
    assert_taught(fits, *[(1, pytest.approx(0.02))] * 2, (3, 0.1))
    assert_same_candidates(first, find(**{**fields, "max_drop": 99.0}))
    assert len(fits) == 3


@pytest.mark.slow
def test_no_8_bit_training_is_done_twice(
    find: Finder, clock: Clock, trainings: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.ratios = {f"resnet8 of width {width}": 2.0 for width in (6, 8, 12, 16, 20, 24, 32, 48, 64)}
    fits = counting_fits(monkeypatch)
    fields: dict[str, Any] = {
        "quantize": ("none", "qat"), "ratios": (0.5,), "finetune_epochs": 1, "controls": ("scratch", "small"),
        "finetune_rate": 0.2, "qat_rate": 0.05, "stages": tmp_path / "stages",
    }  # fmt: skip
    first = find(**fields)
    assert first.winner.name == "50 % int8-qat"
    assert names(first)[-3:] == [
        "trained further, original int8-qat", "from scratch, 50 % int8-qat", "small net, resnet8 of width 4 int8-qat"
    ]  # fmt: skip
    # The 8-bit trainings are of the original, the pruned network and the three controls.
    tuned = [(call["kind"] == "Simulated", call["rate"], call["tuning"].keep) for call in trainings]
    assert sorted(tuned) == 2 * [(False, 0.2, "best")] + 5 * [(True, 0.05, "best or start")]
    # Those from scratch have the recipe's two epochs and the fine-tuning's one.
    assert_taught(fits, *[(1, pytest.approx(0.005))] * 5, *[(1, pytest.approx(0.02))] * 2, *[(3, 0.1)] * 2)
    before = len(fits)
    again = find(**{**fields, "max_drop": 99.0})
    assert len(fits) == before
    assert_same_candidates(first, again)


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"max_drop": 50.0}, 0), ({"finetune_rate": 0.2}, 2), ({"importance": "magnitude"}, 2), ({"ratios": (0.5,)}, 1),
        ({"distill": False}, 2), ({"prune": "unstructured"}, 2),
    ],
)  # fmt: skip
def test_a_network_of_other_settings_is_not_taken_for_this_one(
    find: Finder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], more: int
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(Setup, "recover", lambda self, model, **_: calls.append(0) or model)
    for settings, trainings in (({}, 2), (change, 2 + more)):
        fields = {"finetune_epochs": 1, "ratios": (0.25, 0.5), **settings}
        assert find.pruned(*fields["ratios"], stages=tmp_path, **fields).ratio == 0.5
        assert len(calls) == trainings


def test_networks_of_another_run_are_trained(find: Finder, finished: Run, tmp_path: Path) -> None:
    other = Run(finished.path, finished.recipe.override("train.optimizer.lr=0.2"))
    keys = [Networks(run, CompressSpec(), tmp_path, print).original.key for run in (finished, other)]
    assert keys[0] != keys[1]


def test_a_damaged_network_is_trained_again(find: Finder, tmp_path: Path) -> None:
    first = find.pruned(0.5, stages=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:20], b"", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        assert find.pruned(0.5, stages=tmp_path).shape == first.shape
        assert file.read_bytes() == whole


def test_the_controls_are_timed_by_the_clock_of_the_choice(
    find: Finder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Networks.prune

    def prune(self: Networks, *arguments: Any, like: Any = None) -> Any:
        clock.slower = 2.0 if like else 1.0  # the machine becomes slower before the controls are timed
        return honest(self, *arguments, like=like)

    monkeypatch.setattr(Networks, "prune", prune)
    outcome = find(quantize=("static",), ratios=(0.5,), controls=("random",))
    assert names(outcome) == ["original fp32", "original int8-static", "50 % int8-static", "random, 50 % int8-static"]
    assert clock.slower == 2.0
    assert outcome.winner.row["latency_ms"] == 2
    control = rows_of(outcome)[-1]
    assert control["latency_ms"] == 2
    assert control["latency_ms_interval"] == [1.5, 2.5]
    assert control["control"]
    assert not control["front"]
    assert not control["winner"]
    assert control["parameters"] == outcome.winner.row["parameters"]


def test_the_small_net_is_the_largest_that_is_as_fast(
    find: Finder, clock: Clock, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kitae.pipelines.networks._WIDTHS", (4, 6, 8))
    networks = find.networks()
    bench = Bench(networks, find.folder)
    clock.ratios = {f"resnet8 of width {width}": ratio for width, ratio in ((4, 0.3), (6, 1.04), (8, 1.3))}
    title, net = bench.as_fast(networks.original.model)
    assert title == "resnet8 of width 6"
    spec = finished.recipe.model.model_copy(update={"width": 6})
    fresh = build_seeded(spec, finished.recipe.train.seed, len(finished.classes), finished.rules)
    assert count_parameters(net) == count_parameters(fresh)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), fresh.parameters(), strict=True))
    clock.ratios = dict.fromkeys(clock.ratios, 2.0)
    assert bench.as_fast(networks.original.model)[0] == "resnet8 of width 4"


def test_the_stem_of_a_control_is_made_of_the_training_images(
    find: Finder, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kitae.pipelines.networks._WIDTHS", (4,))
    monkeypatch.setattr(Networks, "_scratch", lambda self, network, more, key: network)
    networks = find.networks()
    networks.run = copy.copy(finished)
    networks.run.recipe = finished.recipe.override("model={name: airbench, width: 4}")
    (small,) = networks.small().values()
    same_shape = networks.from_scratch(networks.original, 1).model
    for net in (small, same_shape):
        first, second = net.get_parameter("stem.weight").chunk(2)
        assert torch.equal(first, -second)  # each direction and its negative, not random filters that never learn


def test_a_net_without_widths_has_a_resnet9_as_its_small_net(
    find: Finder, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kitae.pipelines.networks._WIDTHS", (4,))
    networks = find.networks()
    networks.run = copy.copy(finished)
    networks.run.recipe = finished.recipe.override("model={name: timm:tf_efficientnet_lite0, features: stages}")
    assert list(networks.small()) == ["resnet9 of width 4"]


@pytest.mark.parametrize("round_to", [1, 6])
def test_ratios_are_of_the_original_whatever_the_steps(find: Finder, finished: Run, round_to: int) -> None:
    steps, once = find.pruned(0.1, 0.2, 0.3, 0.5, 0.6, round_to=round_to), find.pruned(0.6, round_to=round_to)
    assert count_parameters(steps.model) == count_parameters(once.model)
    widths = [{name: len(kept) for name, kept in net.shape.kept.items()} for net in (steps, once)]
    assert widths[0] == widths[1]
    for kept in steps.shape.kept.values():
        assert list(kept) == sorted(set(kept))
    rebuilt = reshape(finished.load_model(free=True), steps.shape)
    rebuilt.load_state_dict(steps.model.state_dict())


@pytest.mark.parametrize(("round_to", "widest"), [(1, 4), (3, 3)])
def test_a_tenth_of_the_original_stays_whatever_the_steps(find: Finder, round_to: int, widest: int) -> None:
    """Of 32 channels four stay, or the nearest pack, though less than a tenth."""
    options: dict[str, Any] = {"round_to": round_to, "finetune_epochs": 0}
    for steps in ((0.5, 0.95), (0.95,)):
        kept = find.pruned(*steps, **options).shape.kept
        assert max(len(positions) for positions in kept.values()) == widest, steps


def test_ranked_together_layers_keep_packs_of_the_original_whatever_the_steps(find: Finder, finished: Run) -> None:
    options: dict[str, Any] = {"scope": "global", "round_to": 8, "finetune_epochs": 0}
    pruned = find.pruned(0.2, 0.4, 0.6, 0.8, 0.9, **options)
    full = prunable_layers(finished.load_model(free=True))
    for name, kept in pruned.shape.kept.items():
        assert len(kept) == whole_packs(len(kept), width_of(full[name]), 8), name


def test_a_ratio_that_removes_nothing_more_is_left_out(find: Finder) -> None:
    outcome = find(ratios=(0.5, 0.52), scope="layer", round_to=4, quantize=("none",), controls=("random",))
    assert names(outcome) == ["original fp32", "50 % fp32", "random, 50 % fp32"]
    ((name, why),) = left_out(outcome)
    assert name == "52 %"
    assert "packs of 4" in why
    assert "the same network as 50 %" in why
    fixed = {name: 0.4 for name in prunable_layers(find.run.load_model()) if name != "classifier"}
    outcome = find(ratios=(0.5, 0.7), round_to=1, layer_ratios=fixed, quantize=("none",))
    ((_, why),) = left_out(outcome)
    assert why == "it is the same network as 50 %: no more channels may be removed"


def test_a_part_of_validation_is_of_all_classes(find: Finder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(candidates, "to_onnx", lambda *_: None)
    monkeypatch.setattr(candidates, "calibrate", lambda *_: None)
    monkeypatch.setattr(candidates.quantize, "sensitivity", lambda *given, **_: seen.extend(given) or [])
    monkeypatch.setattr(candidates, "_SENSITIVITY_IMAGES", 30)
    networks = find.networks()
    rows = networks.setup.splits.val
    by_class = rows[np.argsort(networks.setup.store.labels[rows], kind="stable")]  # as the images of a folder are
    networks.setup = replace(networks.setup, splits=replace(networks.setup.splits, val=by_class))
    Bench(networks, find.folder).sensitivity()
    *_, images, labels = seen
    assert len(images) == len(labels) == 30
    assert len(set(labels.tolist())) > 5
    store = networks.setup.store
    assert all(any((image == store.images[row]).all() for row in rows[store.labels[rows] == label])
               for image, label in zip(images, labels, strict=True))  # fmt: skip


def test_too_few_images_to_calibrate_with(find: Finder, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Setup.shuffled_train.func
    monkeypatch.setattr(Setup, "shuffled_train", property(lambda self: honest(self)[:15]))
    refused(CompressionError, "at least 16 training images .*, not 15; use --quantize none or dynamic", find)


# The choice among measured files


def made(name: str, **row: Any) -> Candidate:
    row = {"drop": 0.0, "drop_interval": [0.0, 0.0], "loss": 0.0, "bytes": 1000, "latency_ms": 1.0, **row}
    control = bool(row.pop("control", False))
    return Candidate(name, 0.0, "int8-static", Path(), row, nn.Identity(), control=control)


LUCK = CompressSpec(max_drop=1.0, sure=False)
ORIGINAL = made("original", bytes=4000)


def test_among_equally_small_files_speed_decides_and_then_accuracy() -> None:
    found = [ORIGINAL, made("slow", drop=0.04, latency_ms=30), made("fast", drop=0.06, latency_ms=9.8),
             made("as fast", drop=0.05, latency_ms=10), made("large", bytes=2000), made("lossy", drop=2.0)]  # fmt: skip
    assert choose(found, LUCK)[0].name == "as fast"


def test_ties_go_to_the_lower_validation_loss() -> None:
    equals = [made("first", drop=0.5, loss=0.4), made("better", drop=0.5, loss=0.2, bytes=1001),
              made("last", drop=0.5, loss=0.3, bytes=999)]  # fmt: skip
    assert choose([ORIGINAL, *equals], LUCK)[0].name == "better"
    assert choose([ORIGINAL, *equals], CompressSpec(max_drop=0.25, sure=False))[0].name == "better", "the closest too"


def test_a_discarded_8_bit_training_does_not_win_by_its_shorter_metadata() -> None:
    equals = [made("static", drop=0.5, loss=0.4, bytes=1002), made("qat", drop=0.5, loss=0.4, bytes=1000)]
    assert choose([ORIGINAL, *equals], LUCK)[0].name == "static"


def test_to_be_sure_is_the_default_and_counts_what_chance_cannot_undo() -> None:
    found = [ORIGINAL, made("sure", drop=0.1, drop_interval=[-0.9, 0.9]),
             made("lucky", drop=0.2, drop_interval=[-0.8, 1.2], bytes=500)]  # fmt: skip
    assert choose(found, LUCK)[0].name == "lucky"
    assert choose(found, CompressSpec(max_drop=1.0))[0].name == "sure"
    closest, why = choose(found, CompressSpec(max_drop=0.5))
    assert closest.name == "sure"
    assert why == "may lose 0.90 points, more than 0.5"


def test_more_images_are_only_advised_where_they_would_help() -> None:
    lines: list[str] = []
    scoring = Scoring(np.zeros(100, np.int64))
    assert scoring.least_drop == pytest.approx(3.7, abs=0.01)
    few = as_sure_as_possible(CompressSpec(max_drop=1.0), scoring, lines.append)
    none = as_sure_as_possible(CompressSpec(max_drop=0.0), scoring, lines.append)
    assert not few.sure
    assert not none.sure
    assert ["val_fraction" in line for line in lines] == [True, False]  # no number of them shows a drop of nothing
    as_sure_as_possible(CompressSpec(max_drop=1.0), replace(scoring, groups=np.arange(100) // 50), lines.append)
    assert "100 validation images of 2 groups are too few" in lines[-1]
    assert "more validation groups (data.val_fraction)" in lines[-1]


def test_a_file_that_forgets_a_rare_class_loses_more_than_its_share() -> None:
    labels = np.repeat([0, 1, 2], [990, 5, 5])
    forgets = np.where(labels == 1, 0, labels)
    plain, balanced = Scoring(labels), Scoring(labels, balanced=True)
    lost = plain.drop(labels, forgets)
    assert lost["drop"] == pytest.approx(0.5)
    assert within(lost["drop"], CompressSpec(max_drop=1.0))
    lost = balanced.drop(labels, forgets)
    assert lost["drop"] == pytest.approx(100 / 3)
    assert lost["drop_interval"][0] < 100 / 3 < lost["drop_interval"][1]
    assert balanced.accuracy(forgets)["accuracy"] == pytest.approx(2 / 3)
    # Five images of a class show less than a thousand do.
    assert balanced.least_drop > 10 * plain.least_drop
    even = np.repeat([0, 1], 500)
    assert all(Scoring(even, balanced=each).drop(even, 1 - even)["drop"] == 100 for each in (True, False))


def test_a_drop_is_compared_by_groups_where_images_have_them(find: Finder) -> None:
    networks = find.networks(**FLOAT)
    whole = networks.setup.store
    networks.setup = replace(networks.setup, store=replace(whole, groups=np.arange(len(whole)) // 500))
    bench, alone = Bench(networks, find.folder), Bench(find.networks(**FLOAT), find.folder)
    least = bench.scoring.least_drop
    assert least > alone.scoring.least_drop, "few groups say less"
    row = bench.candidates(networks.original)[0].row
    assert row["drop_interval"] == [pytest.approx(-least), pytest.approx(least)]
    spread, narrow = (np.diff(of["accuracy_interval"])[0] for of in (row, alone.candidates(networks.original)[0].row))
    assert spread > narrow


@pytest.mark.parametrize(
    ("select", "balanced"), [("val_accuracy", False), ("val_balanced_accuracy", True), ("val_macro_f1", True)]
)
def test_a_run_is_compressed_by_what_it_was_selected_by(
    select: str, balanced: bool, find: Finder, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = finished.recipe.train.model_copy(update={"select": select})
    monkeypatch.setattr(finished, "recipe", finished.recipe.model_copy(update={"train": spec}))
    assert Bench(find.networks(**FLOAT), find.folder).scoring.balanced == balanced


def test_a_drop_as_large_as_the_budget_is_within_it() -> None:
    drop = 100 * (0.907 - 0.9)  # as computed from two accuracies
    assert drop > 0.7
    assert within(drop, CompressSpec(max_drop=0.7))
    assert not within(0.71, CompressSpec(max_drop=0.7))


def test_the_front_holds_what_nothing_beats() -> None:
    found = [
        made("best", accuracy=0.9, bytes=100, latency_ms=10),
        made("small", accuracy=0.8, bytes=50, latency_ms=10),
        made("fast", accuracy=0.8, bytes=60, latency_ms=5),
        made("beaten", accuracy=0.8, bytes=60, latency_ms=10),
        made("control", accuracy=1.0, bytes=1, latency_ms=1, control=True),
    ]
    assert front(found, CompressSpec(), 0.0) == {"best", "small", "fast"}
    # One file timed twice, and a worse one that was 3 % faster by chance.
    found += [made("again", accuracy=0.9, bytes=100, latency_ms=10), made("lucky", accuracy=0.85, bytes=100,
                                                                          latency_ms=9.7)]  # fmt: skip
    assert front(found, CompressSpec(), 0.0) == {"best", "small", "fast", "again", "lucky"}
    assert front(found, CompressSpec(), 0.05) == {"best", "small", "fast", "again"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratios": (0.5, 0.3)}, "must increase"),
        ({"ratios": (0.0,)}, "ratios"),
        ({"gradual": True}, "unstructured"),
        ({"gradual": True, "prune": "unstructured", "finetune_epochs": 1}, "at least 2"),
        ({"controls": ("random",), "prune": "none"}, "structured"),
        ({"importance": "taylor", "prune": "unstructured"}, "importance: taylor needs prune: structured"),
        ({"importance": "random", "prune": "unstructured"}, "importance: random needs prune: structured"),
        ({"max_drop": -1}, "max_drop"),
        ({"quantize": ()}, "quantize"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_the_spec_is_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CompressSpec(**fields)
