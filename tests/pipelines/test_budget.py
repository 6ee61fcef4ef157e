from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kitae.compression import prune
from kitae.compression.prune import Shape, prunable_layers
from kitae.compression.qat import Simulated
from kitae.compression.spec import CompressSpec
from kitae.deployment.onnx import Card, serialize, to_onnx
from kitae.deployment.verify import Parity, torch_reference, verify_float, verify_integer
from kitae.errors import CompressionError, ExportError, TrainingError, TrainingInterruptedError
from kitae.evaluation import intervals
from kitae.models.build import count_macs, count_parameters
from kitae.pipelines import budget
from kitae.pipelines.budget import Images, Outcome, Tools, judge, search
from kitae.preprocess import PreprocessRules
from kitae.runtime import Model
from tests.compression.conftest import _one_thread, _trained, selection, train, trained  # noqa: F401
from tests.compression.tiny_world import MEAN, SHAPE, STD, Data, TinyNet, fit

CARD = Card(("a", "b", "c", "d"), PreprocessRules(SHAPE[1]), MEAN, STD)


class Loop:
    """A stand-in for the training room that notes how it was called."""

    def __init__(self, train: Data) -> None:
        self.train = train
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self,
        model: nn.Module,
        *,
        epochs: int,
        rate: float,
        seed: int,
        after_step: Callable[[nn.Module], None] | None = None,
        teacher: nn.Module | None = None,
        keep: str = "best",
    ) -> nn.Module:
        self.calls.append(
            {
                "epochs": epochs, "rate": rate, "after_step": after_step, "teacher": teacher, "kind": type(model),
                "keep": keep, "seed": seed,
            }
        )  # fmt: skip
        return fit(model, self.train, epochs, lr=0.02, after_step=after_step, teacher=teacher)


class Memory:
    """Stages kept in memory, as JSON where the real ones are files."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[dict[str, Tensor], str, float | None]] = {}

    def load(self, key: str) -> tuple[dict[str, Tensor], Shape, float | None] | None:
        if key not in self.held:
            return None
        weights, shape, error = self.held[key]
        return weights, Shape.from_dict(json.loads(shape)), error

    def save(self, key: str, weights: dict[str, Tensor], shape: Shape, masked_error: float | None) -> None:
        self.held[key] = (copy.deepcopy(weights), json.dumps(shape.to_dict()), masked_error)


DIVERGED = TrainingError("val_loss was never finite")
STOPPED = TrainingInterruptedError("stopped by SIGTERM", "nothing is kept")
SAME = Parity(images=1, max_error=0.0, flips=0, clear_flips=0, batch_sizes=(1,))


def images(data: Data) -> Images:
    return Images(lambda rows: (data.images[rows], data.labels[rows]), np.arange(len(data.labels)))


def counted_latency(calls: Mapping[str, Callable[[], object]], reference: str) -> dict[str, Any]:
    """A clock that reads the size of the graph, so that tests do not depend on the machine: calls still run."""
    ratios = {name: 0.5 if "int8" in name else 1.0 for name in calls}
    for call in calls.values():
        call()
    return {
        "reference": reference,
        "control": {"ratio": 1.0, "ratio_interval": [0.99, 1.01]},
        "candidates": {
            name: {"seconds": 0.004 * r, "seconds_interval": [0.003 * r, 0.005 * r],
                   "ratio": r, "ratio_interval": [r * 0.9, r * 1.1]}
            for name, r in ratios.items()
        },
    }  # fmt: skip


GRAPHS: dict[bytes, Any] = {}


def to_graph(model: nn.Module, *, calibrate: bool = True) -> Any:
    """`to_onnx`, once for equal weights: exporting takes longer than anything else here."""
    key = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    if key not in GRAPHS:
        GRAPHS[key] = to_onnx(model, CARD)
    return copy.deepcopy(GRAPHS[key])


@pytest.fixture
def tools(train: Data, selection: Data) -> Tools:
    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return TinyNet()

    return Tools(
        recover=Loop(train),
        fresh=fresh,
        batches=train.batches(),
        to_graph=to_graph,
        to_file=lambda graph, precision, notes, model: serialize(graph, CARD.but(precision=precision, notes=notes)),
        verify_float=lambda content, model: verify_float(
            content, torch_reference(model, MEAN, STD), selection.images[:64]
        ),
        verify_integer=lambda content: verify_integer(content, selection.images[:64]),
        compare=intervals.paired_difference,
        interval=intervals.wilson,
        measure=counted_latency,
        describe=lambda model: {"parameters": count_parameters(model), "macs": count_macs(model, 3, SHAPE[1])},
        steps_per_epoch=12,
        fingerprint="tiny",
        scratch=lambda model, more, teacher, seed: fit(model, train, 2),
    )


def run(
    model: nn.Module, tools: Tools, train: Data, selection: Data, folder: Path, **fields: Any
) -> tuple[Outcome, CompressSpec]:
    spec = CompressSpec(
        **{
            "ratios": (0.25, 0.5),
            "finetune_epochs": 1,
            "sensitivity": False,
            "round_to": 1,
            "sure": False,
            "controls": (),
            **fields,
        }
    )
    outcome = search(
        model,
        spec,
        tools,
        input_shape=SHAPE,
        calibration=train.images[:128],
        selection=images(selection),
        folder=folder,
    )
    return outcome, spec


def test_the_smallest_file_within_the_budget_wins(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    before = copy.deepcopy(trained.state_dict())
    outcome, spec = run(trained, tools, train, selection, tmp_path, max_drop=5.0, sensitivity=True)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert outcome.within_budget
    rows = {row["name"]: row for row in outcome.rows}
    assert list(rows) == [
        "original fp32", "original int8-static", "25 % fp32", "25 % int8-static", "50 % fp32", "50 % int8-static"
    ]  # fmt: skip
    assert outcome.baseline.name == "original fp32"
    assert rows["original fp32"]["drop"] == 0
    within = [row for row in rows.values() if row["drop"] <= 5.0]
    assert outcome.winner.row["bytes"] <= 1.01 * min(row["bytes"] for row in within)
    assert rows[outcome.winner.name]["winner"]
    for row in rows.values():
        assert row["accuracy_interval"][0] <= row["accuracy"] <= row["accuracy_interval"][1]
        assert row["drop_interval"][0] <= row["drop"] <= row["drop_interval"][1]
        assert row["bytes"] > 0
        assert row["packed_bytes"] > 0
        assert row["speedup"] == pytest.approx(2.0 if "int8" in row["name"] else 1.0)
    assert rows["50 % fp32"]["macs"] < 0.4 * rows["original fp32"]["macs"]
    assert rows["50 % fp32"]["parameters"] == count_parameters(prune.reshape(TinyNet(), outcome.shape))
    assert outcome.winner.name in outcome.front
    assert "original fp32" in outcome.front or rows["original fp32"]["accuracy"] <= outcome.winner.row["accuracy"]
    assert len(outcome.sensitivity) == 6
    values, kept = outcome.filters or (np.zeros(0), np.zeros(0))
    assert values.shape == kept.shape == (12, 3, 3, 3)
    assert kept.mean() == pytest.approx(len(outcome.shape.kept["stem"]) / 12)
    assert tools.recover.calls[0]["teacher"] is not None  # type: ignore[attr-defined]

    test = Data(300, 7)
    verdict = judge(outcome, images(test), tools, spec)
    assert verdict["count"] == 300
    points = 100 * (verdict["baseline"]["accuracy"] - verdict["winner"]["accuracy"])
    assert verdict["drop"] == pytest.approx(points)
    assert verdict["drop_interval"][0] <= points <= verdict["drop_interval"][1]
    served = Model(outcome.winner.path).predict(test.images)
    assert (served.labels == test.labels).mean() == verdict["winner"]["accuracy"]


def test_an_impossible_budget_gives_the_closest(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    outcome, _ = run(trained, tools, train, selection, tmp_path, max_bytes=100, max_drop=5.0)
    assert not outcome.within_budget
    assert "bytes, not 100" in outcome.why_not
    assert outcome.winner.row["bytes"] == min(row["bytes"] for row in outcome.rows)
    slow, _ = run(trained, tools, train, selection, tmp_path, max_latency_ms=0.001, prune="none")
    assert "takes 2 ms, not 0.001" in slow.why_not


def test_latency_and_bytes_bound_the_choice(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    outcome, _ = run(trained, tools, train, selection, tmp_path, max_latency_ms=2.5, max_drop=100.0, ratios=(0.25,))
    assert outcome.winner.precision == "int8-static"
    only_float, _ = run(trained, tools, train, selection, tmp_path, quantize=("none",), ratios=(0.25,), max_drop=100.0)
    assert only_float.winner.name == "25 % fp32"
    assert only_float.sensitivity == ()


def test_hopeless_ratios_are_abandoned(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    ratios = (0.8, 0.88)
    fields: dict[str, Any] = {
        "ratios": ratios, "importance": "random", "finetune_epochs": 0, "max_drop": 0.5, "quantize": ("none",)
    }  # fmt: skip
    outcome, _ = run(trained, tools, train, selection, tmp_path, **fields)
    assert {candidate.ratio for candidate in outcome.candidates} == {0.0, 0.8}
    assert "ratios above 0.8 were not tried" in outcome.stopped
    assert (outcome.winner.ratio, outcome.within_budget) == (0.8, False)
    everything, _ = run(trained, tools, train, selection, tmp_path, **fields, abandon=False)
    assert {candidate.ratio for candidate in everything.candidates} == {0.0, *ratios}
    assert everything.stopped == ""


@pytest.mark.parametrize("gradual", [False, True])
def test_unstructured_pruning_holds_its_zeros_into_the_file(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path, gradual: bool
) -> None:
    outcome, _ = run(
        trained, tools, train, selection, tmp_path, prune="unstructured", gradual=gradual, finetune_epochs=3,
        max_drop=100.0, quantize=("none", "static"),
    )  # fmt: skip
    rows = {row["name"]: row for row in outcome.rows}
    weights = sum(layer.weights for layer in prune.count(trained).layers)
    for ratio in (0.25, 0.5):
        row = rows[f"{100 * ratio:g} % fp32"]
        assert row["sparsity"] * row["parameters"] == pytest.approx(ratio * weights, abs=6)
        assert row["bytes"] == pytest.approx(rows["original fp32"]["bytes"], abs=60)
        assert row["packed_bytes"] < rows["original fp32"]["packed_bytes"]
    from onnx import numpy_helper

    for name in ("50 % fp32", "50 % int8-static"):
        (candidate,) = [c for c in outcome.candidates if c.name == name]
        held = [numpy_helper.to_array(i) for i in onnx.load(candidate.path).graph.initializer]
        zeros = sum(int((values == 0).sum()) for values in held if values.ndim > 1)
        assert zeros >= round(0.5 * weights) - 6
    assert len(tools.recover.calls) == (4 if gradual else 2)  # type: ignore[attr-defined]


def test_gradual_pruning_never_revives_an_earlier_ratios_zeros(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    revived: list[int] = []

    def watched(model: nn.Module, *, epochs: int, after_step: Any, **_: Any) -> nn.Module:
        before = {name: layer.weight == 0 for name, layer in prune.prunable_layers(model).items()}

        def both(model: nn.Module) -> None:
            after_step(model)
            now = prune.prunable_layers(model)
            revived.append(sum(int((now[name].weight[zero] != 0).sum()) for name, zero in before.items()))

        return fit(model, train, epochs, after_step=both)

    slow = replace(tools, recover=watched, steps_per_epoch=40)  # rises at the fourth step, and not before
    run(
        trained, slow, train, selection, tmp_path, prune="unstructured", gradual=True, finetune_epochs=2,
        max_drop=100.0, quantize=("none",), distill=False,
    )  # fmt: skip
    assert revived
    assert not any(revived)


def test_unstructured_pruning_is_small_when_packed(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    """The files of all ratios are equally large; the most zeros make the smallest one, once it is packed."""
    outcome, _ = run(
        trained, tools, train, selection, tmp_path, prune="unstructured", ratios=(0.3, 0.6), quantize=("none",),
        max_drop=100.0,
    )  # fmt: skip
    assert outcome.winner.ratio == 0.6
    assert outcome.winner.name in outcome.front


def test_a_loop_that_forgets_the_masks_is_noticed(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    def forgetful(model: nn.Module, *, epochs: int, **options: Any) -> nn.Module:
        return fit(model, train, epochs)

    with pytest.raises(CompressionError, match="revived pruned weights"):
        run(trained, replace(tools, recover=forgetful), train, selection, tmp_path, prune="unstructured")


def test_every_precision_of_one_network(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    outcome, _ = run(
        trained, tools, train, selection, tmp_path, quantize=("none", "dynamic", "static", "qat"), prune="none",
        qat_epochs=1, calibration=("minmax", "average"),
    )  # fmt: skip
    names = [candidate.name for candidate in outcome.candidates]
    assert names == [f"original {precision}" for precision in ("fp32", "int8-dynamic", "int8-static", "int8-qat")]
    assert all(row["accuracy"] > 0.9 for row in outcome.rows)
    assert {row["calibration"] for row in outcome.rows if "static" in row["name"]} <= {"minmax", "average"}
    assert all(row["parity_error"] < 1e-3 and row["parity_flips"] == 0 for row in outcome.rows[:1])
    assert all(0 <= row["parity_flips"] <= 0.05 for row in outcome.rows)
    assert all(row["masked_error"] is None for row in outcome.rows), "no channel was removed"


def test_the_network_beside_a_winner_of_8_bit_training_has_the_weights_learnt_there(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    outcome, _ = run(
        trained, tools, train, selection, tmp_path, prune="none", quantize=("qat",), qat_epochs=1, max_drop=100.0,
        calibration=("minmax",),
    )  # fmt: skip
    assert outcome.winner.precision == "int8-qat"
    assert not torch.equal(outcome.model.conv1.weight, trained.conv1.weight)


def test_a_drop_as_large_as_the_budget_is_within_it() -> None:
    drop = 100 * (0.907 - 0.9)  # as it comes out of two accuracies
    assert drop > 0.7
    assert budget._within(drop, CompressSpec(max_drop=0.7))
    assert not budget._within(0.71, CompressSpec(max_drop=0.7))


def test_the_order_of_layer_ratios_is_a_part_of_a_stages_key(tools: Tools) -> None:
    keys = {
        budget._key(CompressSpec(layer_ratios=ratios), tools, (0.5,))
        for ratios in ({"a": 0.1, "b": 0.5}, {"b": 0.5, "a": 0.1})
    }
    assert len(keys) == 2, "of coupled layers the first one named counts"


def test_rates_of_fine_tuning_and_of_8_bit_training(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"ratios": (0.5,), "quantize": ("qat",), "max_drop": 100.0, "calibration": ("minmax",)}
    lent = replace(tools, stages=Memory())
    run(trained, lent, train, selection, tmp_path / "1", **fields)
    rates = [(call["kind"] is Simulated, call["rate"]) for call in lent.recover.calls]  # type: ignore[attr-defined]
    assert sorted(rates) == [(False, 0.1), (True, 0.1), (True, 0.1)]
    kept = {(call["kind"] is Simulated, call["keep"]) for call in lent.recover.calls}  # type: ignore[attr-defined]
    assert kept == {(False, "best"), (True, "best or start")}
    run(trained, lent, train, selection, tmp_path / "2", **fields, finetune_rate=0.2, qat_rate=0.5)
    again = [call["rate"] for call in lent.recover.calls[3:]]  # type: ignore[attr-defined]
    assert sorted(again) == [0.2, 0.5, 0.5], "a network that was fine-tuned at another rate is not taken for this one"


def test_layers_may_lose_a_share_of_their_own(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {
        "quantize": ("none",), "finetune_epochs": 0, "max_drop": 100.0, "layer_ratios": {"conv1": 0.75, "conv2": 0.0}
    }  # fmt: skip
    lent = replace(tools, stages=Memory())
    outcome, _ = run(trained, lent, train, selection, tmp_path / "1", **fields)
    widths = {name: len(kept) for name, kept in outcome.shape.kept.items()}
    assert widths == {"conv1": 3, "point": 12}, "the stream that conv2 is part of stays whole; the rest loses half"
    errors = [row["masked_error"] for row in outcome.rows]
    assert errors[0] is None
    assert all(error is not None and error < 1e-5 for error in errors[1:])
    again, _ = run(trained, lent, train, selection, tmp_path / "2", **fields)
    assert [row["masked_error"] for row in again.rows] == errors, "kept with the stage"
    other, _ = run(trained, lent, train, selection, tmp_path / "3", **(fields | {"layer_ratios": {}}))
    assert len(other.shape.kept["conv1"]) == 6, "another network: not the stage of other ratios"
    fields |= {"prune": "unstructured", "ratios": (0.5,)}
    loose, _ = run(trained, tools, train, selection, tmp_path / "4", **fields)
    zeros = {name: float((layer.weight == 0).float().mean()) for name, layer in prunable_layers(loose.model).items()}
    assert zeros["conv1"] == pytest.approx(0.75, abs=0.01)
    assert zeros["conv2"] == 0
    assert zeros["point"] == pytest.approx(0.5, abs=0.01)
    fields["layer_ratios"] = {"nowhere": 0.5}
    with pytest.raises(CompressionError, match="layer_ratios: there is no layer 'nowhere'"):
        run(trained, tools, train, selection, tmp_path / "5", **fields)


def test_a_network_that_does_not_equal_the_masked_original_is_never_a_file(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "masked_original", lambda model, removed, inputs: copy.deepcopy(model))
    with pytest.raises(CompressionError, match="something else than with zeros in their place"):
        run(trained, tools, train, selection, tmp_path, ratios=(0.5,), finetune_epochs=0)


def test_one_scale_a_weight(trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"prune": "none", "quantize": ("static",), "calibration": ("minmax",), "max_drop": 100.0}
    scales = {}
    for per_channel in (True, False):
        outcome, _ = run(
            trained, tools, train, selection, tmp_path / str(per_channel), per_channel=per_channel, sensitivity=True,
            **fields,
        )  # fmt: skip
        assert outcome.sensitivity
        held = onnx.load(outcome.winner.path).graph
        users = [node.input[1] for node in held.node if node.op_type == "DequantizeLinear"]
        sizes = {item.name: int(np.prod(item.dims)) for item in held.initializer}
        scales[per_channel] = max(sizes.get(name, 1) for name in users)
    assert scales[True] > 1
    assert scales[False] == 1


def test_a_file_that_fails_its_verification_is_left_out_and_named(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    def refuses(content: bytes) -> Parity:
        if b"int8-qat" in content:
            raise ExportError("the INT8 graph does not run here as its integers say")
        return SAME

    lines: list[str] = []
    picky = replace(tools, verify_integer=refuses, say=lines.append)
    fields: dict[str, Any] = {"prune": "none", "qat_epochs": 1, "calibration": ("minmax",)}
    outcome, _ = run(trained, picky, train, selection, tmp_path / "1", quantize=("none", "static", "qat"), **fields)
    assert [row["name"] for row in outcome.rows] == ["original fp32", "original int8-static"]
    assert outcome.left_out == (("original int8-qat", "the INT8 graph does not run here as its integers say"),)
    assert any(line.startswith("original int8-qat is left out: ") for line in lines)
    with pytest.raises(ExportError, match="as its integers say"):  # nothing asked for can be had
        run(trained, picky, train, selection, tmp_path / "2", quantize=("none", "qat"), **fields)


def test_a_float_file_that_fails_its_check_is_left_out_but_for_the_original(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    def failing_at(count: int) -> Callable[[bytes, nn.Module], Parity]:
        checked: list[bytes] = []

        def refuses(content: bytes, _: nn.Module) -> Parity:
            checked.append(content)
            if len(checked) == count:
                raise ExportError("the file does not compute what the network computes")
            return SAME

        return refuses

    fields: dict[str, Any] = {"finetune_epochs": 0, "max_drop": 100.0, "calibration": ("minmax",)}
    lent = replace(tools, verify_float=failing_at(2))
    outcome, _ = run(trained, lent, train, selection, tmp_path / "1", **fields)
    assert [row["name"] for row in outcome.rows] == [
        "original fp32", "original int8-static", "50 % fp32", "50 % int8-static"
    ]  # fmt: skip
    assert outcome.left_out == (("25 %", "the file does not compute what the network computes"),)
    with pytest.raises(ExportError, match="does not compute"):
        run(trained, replace(tools, verify_float=failing_at(1)), train, selection, tmp_path / "2", **fields)
    control = replace(tools, verify_float=failing_at(3))
    fields |= {"ratios": (0.5,), "quantize": ("none",), "controls": ("scratch",)}
    outcome, _ = run(trained, control, train, selection, tmp_path / "3", **fields)
    assert outcome.winner.name == "50 % fp32"
    assert [name for name, _ in outcome.left_out] == ["from scratch, 50 %"]


def breaking(tools: Tools, problem: Exception, *, at: int) -> Tools:
    """Tools whose training fails at a call."""
    calls: list[int] = []

    def recover(model: nn.Module, *, epochs: int, **options: Any) -> nn.Module:
        calls.append(epochs)
        if len(calls) == at:
            raise problem
        return model

    return replace(tools, recover=recover)


def test_a_fine_tuning_that_diverges_ends_the_ratios_and_not_the_search(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"ratios": (0.25, 0.5, 0.75), "quantize": ("none",), "max_drop": 100.0}
    diverged = breaking(tools, DIVERGED, at=2)
    outcome, _ = run(trained, diverged, train, selection, tmp_path / "1", **fields)
    assert [row["name"] for row in outcome.rows] == ["original fp32", "25 % fp32"]
    assert outcome.left_out == (("50 %", "val_loss was never finite"),)
    assert outcome.stopped == "ratios above 0.5 were not tried: the fine-tuning of this one failed"
    assert outcome.winner.name == "25 % fp32"
    with pytest.raises(TrainingInterruptedError):
        run(trained, breaking(tools, STOPPED, at=2), train, selection, tmp_path / "2", **fields)


def test_8_bit_training_that_diverges_is_left_out_and_one_that_is_stopped_stops(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"prune": "none", "quantize": ("none", "static", "qat"), "calibration": ("minmax",)}
    diverged = breaking(tools, DIVERGED, at=1)
    outcome, _ = run(trained, diverged, train, selection, tmp_path / "1", **fields)
    assert outcome.left_out == (("original int8-qat", "val_loss was never finite"),)
    with pytest.raises(TrainingInterruptedError):
        run(trained, breaking(tools, STOPPED, at=1), train, selection, tmp_path / "2", **fields)


def test_a_control_that_diverges_leaves_the_winner(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    def diverges(*_: object) -> nn.Module:
        raise DIVERGED

    fields: dict[str, Any] = {"quantize": ("none",), "ratios": (0.5,), "max_drop": 100.0, "finetune_epochs": 0}
    lent = replace(tools, scratch=diverges)
    outcome, _ = run(trained, lent, train, selection, tmp_path, controls=("random", "scratch"), **fields)
    assert [row["name"] for row in outcome.rows] == ["original fp32", "50 % fp32", "random, 50 % fp32"]
    assert outcome.left_out == (("control scratch", "val_loss was never finite"),)


def test_controls_that_are_skipped_are_spoken_of(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    lines: list[str] = []
    fields: dict[str, Any] = {"quantize": ("none",), "ratios": (0.9,), "importance": "random", "finetune_epochs": 0}
    lent = replace(tools, say=lines.append)
    outcome, _ = run(trained, lent, train, selection, tmp_path, max_drop=0.0, controls=("scratch",), **fields)
    assert not outcome.within_budget
    assert outcome.winner.ratio == 0.9  # the closest; the original loses nothing, and is not what was asked for
    assert not any("controls are skipped" in line for line in lines)
    fields |= {"quantize": ("static",), "ratios": (0.9,)}
    outcome, _ = run(trained, lent, train, selection, tmp_path, max_drop=5.0, controls=("scratch",), **fields)
    assert outcome.winner.name == "original int8-static"
    assert sum("controls are skipped" in line for line in lines) == 1


def test_only_what_was_asked_for_can_win(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"ratios": (0.9,), "importance": "random", "finetune_epochs": 0, "abandon": False}
    outcome, _ = run(trained, tools, train, selection, tmp_path / "1", quantize=("none",), max_drop=0.0, **fields)
    assert (outcome.winner.name, outcome.within_budget) == ("90 % fp32", False)
    assert "points, not 0" in outcome.why_not
    outcome, _ = run(trained, tools, train, selection, tmp_path / "2", quantize=("none",), prune="none")
    assert (outcome.winner.name, outcome.within_budget) == ("original fp32", True)  # there is nothing else


def test_what_comes_last_does_not_cost_what_was_found(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise CompressionError("an operation cannot be quantized")

    monkeypatch.setattr(budget.quantize, "sensitivity", fails)
    fields: dict[str, Any] = {"ratios": (0.25, 0.5), "finetune_epochs": 0, "max_drop": 100.0, "sensitivity": True}
    outcome, _ = run(trained, tools, train, selection, tmp_path / "1", **fields)
    assert outcome.winner.name == "50 % int8-static"
    assert outcome.sensitivity == ()
    assert outcome.left_out == (("the sensitivity of the layers", "an operation cannot be quantized"),)

    calls: list[float] = []

    def second(*args: Any, **options: Any) -> Any:
        calls.append(0.0)
        return fails() if len(calls) == 2 else remove(*args, **options)

    remove = budget.prune.remove_channels
    monkeypatch.setattr(budget.prune, "remove_channels", second)
    outcome, _ = run(trained, tools, train, selection, tmp_path / "2", quantize=("none",), **fields)
    assert outcome.winner.name == "25 % fp32"
    assert outcome.stopped == "ratios above 0.5 were not tried: the pruning of this one failed"
    calls[:] = [0.0]
    with pytest.raises(CompressionError, match="cannot be quantized"):  # the first: it cannot be done as asked
        run(trained, tools, train, selection, tmp_path / "3", quantize=("none",), **fields)


def test_8_bit_trainings_and_controls_are_not_trained_twice(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    trainings: list[int] = []

    def scratch(model: nn.Module, more: int, teacher: nn.Module | None, seed: int) -> nn.Module:
        trainings.append(more)
        return fit(model, train, 2)

    nets = {f"width {width}": partial(TinyNet, width=width) for width in (4, 6)}
    kept = replace(tools, stages=Memory(), scratch=scratch, small=nets)
    fields: dict[str, Any] = {"quantize": ("none", "qat"), "ratios": (0.5,), "qat_epochs": 1, "max_drop": 100.0,
                              "calibration": ("minmax",), "controls": ("scratch", "small")}  # fmt: skip
    loop = tools.recover.calls  # type: ignore[attr-defined]
    first, _ = run(trained, kept, train, selection, tmp_path / "1", **fields)
    assert first.winner.name == "50 % int8-qat"
    before, controls = len(loop), list(trainings)
    assert len(controls) == 2
    again, _ = run(trained, kept, train, selection, tmp_path / "2", **fields)
    assert (len(loop), trainings) == (before, controls)
    for a, b in zip(first.candidates, again.candidates, strict=True):
        assert a.path.read_bytes() == b.path.read_bytes(), a.name
    for a, b in zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    run(trained, kept, train, selection, tmp_path / "3", **(fields | {"qat_rate": 0.2}))
    assert len(loop) > before


def test_the_controls_stand_beside_the_winner(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    measured: list[dict[str, Any]] = []

    def slower_every_time(calls: Mapping[str, Callable[[], object]], reference: str) -> dict[str, Any]:
        measured.append(counted_latency(calls, reference))
        for found in measured[-1]["candidates"].values():
            found["seconds"] *= len(measured)
            found["seconds_interval"] = [end * len(measured) for end in found["seconds_interval"]]
        return measured[-1]

    lent = replace(tools, measure=slower_every_time)
    outcome, _ = run(
        trained, lent, train, selection, tmp_path, quantize=("static",), ratios=(0.5,), max_drop=100.0,
        controls=("random", "scratch"),
    )  # fmt: skip
    assert outcome.winner.row["latency_ms"] == 2  # as it was chosen, not as it was measured again with the controls
    # The machine had become twice as slow: the controls take what they would have taken beside the winner.
    assert [row["latency_ms"] for row in outcome.rows if row["control"]] == [2, 2, 2]
    assert [row["latency_ms_interval"] for row in outcome.rows if row["control"]] == 3 * [[1.5, 2.5]]
    names = [candidate.name for candidate in outcome.candidates]
    assert names == ["original fp32", "original int8-static", "50 % int8-static",
                     "trained further, original int8-static", "random, 50 % int8-static", "from scratch, 50 % int8-static"]  # fmt: skip
    controls = [row for row in outcome.rows if row["control"]]
    assert len(controls) == 3
    assert not any(row["front"] or row["winner"] for row in controls)
    assert {row["parameters"] for row in controls[1:]} == {outcome.winner.row["parameters"]}
    assert controls[0]["parameters"] == outcome.baseline.row["parameters"]


def test_a_small_net_of_the_winners_latency_stands_beside_it(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    def timed(calls: Mapping[str, Callable[[], object]], reference: str) -> dict[str, Any]:
        report = counted_latency(calls, reference)
        for name, ratio in (("width 4", 0.3), ("width 6", 1.04), ("width 8", 1.3)):
            if name in report["candidates"]:
                report["candidates"][name]["ratio"] = ratio
        return report

    nets = {f"width {width}": partial(TinyNet, width=width) for width in (4, 6, 8)}
    exported: list[nn.Module] = []  # with a temperature, which the tools remember by the network
    trainings: list[tuple[bool, int, bool]] = []  # whether a tool had seen the network before, more epochs, a teacher

    def noted(model: nn.Module, *, calibrate: bool = True) -> Any:
        if calibrate:
            exported.append(model)
        return to_graph(model)

    def scratch(model: nn.Module, more: int, teacher: nn.Module | None, seed: int) -> nn.Module:
        trainings.append((any(model is seen for seen in exported), more, teacher is not None))
        return fit(model, train, 2)

    lent = replace(tools, small=nets, measure=timed, to_graph=noted, scratch=scratch)
    fields: dict[str, Any] = {"quantize": ("static",), "ratios": (0.5,), "max_drop": 100.0, "controls": ("small",)}
    outcome, _ = run(trained, lent, train, selection, tmp_path / "1", **fields)
    last = outcome.rows[-1]
    assert last["name"] == "small net, width 6 int8-static"
    assert last["control"]
    assert last["parameters"] == count_parameters(TinyNet(width=6))
    assert not trainings[0][0], "its file would have the temperature of the untrained network"
    assert trainings == [(False, 1, True)], "one epoch of fine-tuning at one ratio, from the original, as the winner"
    only_slow = replace(lent, small={"width 8": nets["width 8"]})
    outcome, _ = run(trained, only_slow, train, selection, tmp_path / "2", **fields)
    assert outcome.rows[-1]["name"] == "small net, width 8 int8-static"
    with pytest.raises(CompressionError, match="small networks"):
        run(trained, tools, train, selection, tmp_path / "3", **fields)


def test_stages_are_not_trained_twice(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    kept = replace(tools, stages=Memory())
    fields: dict[str, Any] = {"quantize": ("none",), "ratios": (0.25,)}
    first, _ = run(trained, kept, train, selection, tmp_path / "1", max_drop=100.0, **fields)
    trainings = len(tools.recover.calls)  # type: ignore[attr-defined]
    again, _ = run(trained, kept, train, selection, tmp_path / "2", max_drop=50.0, **fields)
    assert len(tools.recover.calls) == trainings  # type: ignore[attr-defined]
    for a, b in zip(first.candidates, again.candidates, strict=True):
        assert a.path.read_bytes() == b.path.read_bytes()
    run(trained, kept, train, selection, tmp_path / "3", **fields, importance="magnitude")
    assert len(tools.recover.calls) == 2 * trainings  # type: ignore[attr-defined]
    other = replace(kept, fingerprint="other weights")
    run(trained, other, train, selection, tmp_path / "4", **fields)
    assert len(tools.recover.calls) == 3 * trainings  # type: ignore[attr-defined]


@pytest.mark.parametrize("round_to", [1, 6])
def test_ratios_are_of_the_original_whatever_the_steps(trained: nn.Module, tools: Tools, round_to: int) -> None:
    spec = CompressSpec(finetune_epochs=0, round_to=round_to)

    def pruned(*ratios: float) -> Any:
        reached = [budget._Stage(0.0, trained, Shape())]
        for ratio in ratios:
            if (stage := budget._prune(reached, ratio, spec, tools, SHAPE)) is not None:
                reached.append(stage)
        return reached[-1]

    steps, once = pruned(0.1, 0.2, 0.3, 0.5, 0.6), pruned(0.6)
    assert count_parameters(steps.model) == count_parameters(once.model)
    assert {name: len(k) for name, k in steps.shape.kept.items()} == {
        name: len(k) for name, k in once.shape.kept.items()
    }
    for kept in steps.shape.kept.values():
        assert list(kept) == sorted(set(kept))
        assert max(kept) < 24
    rebuilt = prune.reshape(TinyNet(), steps.shape)
    rebuilt.load_state_dict(steps.model.state_dict())


def test_a_ratio_that_removes_nothing_more_is_left_out(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    fields = {"ratios": (0.2, 0.5, 0.55), "round_to": 6, "max_drop": 100.0, "quantize": ("none",)}
    outcome, _ = run(trained, tools, train, selection, tmp_path, controls=("random",), **fields)
    assert [row["name"] for row in outcome.rows] == [
        "original fp32", "20 % fp32", "50 % fp32", "trained further, original fp32",
        "random, 50 % fp32",
    ]  # fmt: skip
    ((name, why),) = outcome.left_out
    assert name == "55 %"
    assert "packs of 6" in why
    assert "the same network as 50 %" in why
    assert len(tools.recover.calls) == 5, "two, and two and one of the controls: none for what is left out"  # type: ignore[attr-defined]
    assert outcome.winner.name == "50 % fp32"


def test_nothing_to_choose_or_judge_by(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    nothing = Images(lambda rows: (selection.images[rows], selection.labels[rows]), np.arange(0))
    with pytest.raises(CompressionError, match="no validation images"):
        search(
            trained,
            CompressSpec(),
            tools,
            input_shape=SHAPE,
            calibration=train.images,
            selection=nothing,
            folder=tmp_path,
        )
    with pytest.raises(CompressionError, match="at least 16 training images"):
        search(
            trained, CompressSpec(prune="none"), tools, input_shape=SHAPE, calibration=train.images[:3],
            selection=images(selection), folder=tmp_path,
        )  # fmt: skip
    outcome, spec = run(trained, tools, train, selection, tmp_path, prune="none", quantize=("none",))
    with pytest.raises(CompressionError, match="no test images"):
        judge(outcome, nothing, tools, spec)
    with pytest.raises(CompressionError, match="from scratch"):
        run(
            trained, replace(tools, scratch=None), train, selection, tmp_path, controls=("scratch",), max_drop=100.0,
            quantize=("none",), finetune_epochs=0,
        )  # fmt: skip


def test_the_front_holds_what_nothing_beats() -> None:
    def candidate(
        name: str, accuracy: float, size: int, milliseconds: float, control: bool = False
    ) -> budget.Candidate:
        row = {"accuracy": accuracy, "bytes": size, "latency_ms": milliseconds}
        return budget.Candidate(name, 0.0, "fp32", Path(), row, np.zeros(0, np.int64), control)

    found = [
        candidate("best", 0.9, 100, 10),
        candidate("small", 0.8, 50, 10),
        candidate("fast", 0.8, 60, 5),
        candidate("beaten", 0.8, 60, 10),
        candidate("control", 1.0, 1, 1, control=True),
    ]
    assert budget._front(found, CompressSpec(), 0.0) == ("best", "small", "fast")
    # One file timed twice, and a worse one that was 3 % faster by chance.
    found += [candidate("again", 0.9, 100, 10), candidate("lucky", 0.85, 100, 9.7)]
    assert budget._front(found, CompressSpec(), 0.0) == ("best", "small", "fast", "again", "lucky")
    assert budget._front(found, CompressSpec(), 0.05) == ("best", "small", "fast", "again")


def test_among_equally_small_files_speed_decides_and_then_accuracy() -> None:
    def candidate(name: str, drop: float, milliseconds: float, size: int = 1000) -> budget.Candidate:
        row = {"drop": drop, "loss": 0.0, "bytes": size, "latency_ms": milliseconds}
        return budget.Candidate(name, 0.0, "int8-static", Path(), row, np.zeros(0, np.int64))

    found = [candidate("original", 0.0, 50, 4000),
             candidate("slow", 0.04, 30), candidate("fast", 0.06, 9.8), candidate("as fast", 0.05, 10),
             candidate("large", 0.0, 1, 2000), candidate("lossy", 2.0, 1, 10)]  # fmt: skip
    assert budget._choose(found, CompressSpec(max_drop=1.0, sure=False))[0].name == "as fast"


def test_ties_go_to_the_lower_validation_loss() -> None:
    def candidate(name: str, drop: float, loss: float, size: int) -> budget.Candidate:
        row = {"drop": drop, "loss": loss, "bytes": size, "latency_ms": 1.0}
        return budget.Candidate(name, 0.0, "int8-static", Path(), row, np.zeros(0, np.int64))

    original = candidate("original", 0.0, 0.3, 4000)
    equals = [candidate("first", 0.5, 0.4, 1000), candidate("better", 0.5, 0.2, 1001), candidate("last", 0.5, 0.3, 999)]
    spec = CompressSpec(max_drop=1.0, sure=False)
    assert budget._choose([original, *equals], spec)[0].name == "better"
    nothing = CompressSpec(max_drop=0.25, sure=False)
    assert budget._choose([original, *equals], nothing)[0].name == "better", "the closest too"


def test_the_graph_of_8_bit_training_is_compared_with_its_network(
    trained: nn.Module, tools: Tools, train: Data, selection: Data, tmp_path: Path
) -> None:
    checked: list[nn.Module] = []

    def verify(content: bytes, model: nn.Module) -> Parity:
        if checked:  # the first is the original
            raise ExportError("another network")
        checked.append(model)
        return SAME

    outcome, _ = run(
        trained, replace(tools, verify_float=verify), train, selection, tmp_path, prune="none",
        quantize=("none", "static", "qat"), qat_epochs=1, max_drop=100.0,
    )  # fmt: skip
    assert [row["name"] for row in outcome.rows] == ["original fp32", "original int8-static"]
    assert outcome.left_out == (("original int8-qat", "another network"),)


def test_who_wants_to_be_sure_gets_what_chance_cannot_undo() -> None:
    def candidate(name: str, drop: float, high: float, size: int) -> budget.Candidate:
        row = {"drop": drop, "drop_interval": [drop - 1, high], "loss": 0.0, "bytes": size, "latency_ms": 1.0}
        return budget.Candidate(name, 0.0, "int8-static", Path(), row, np.zeros(0, np.int64))

    found = [
        candidate("original", 0.0, 0.0, 4000),
        candidate("sure", 0.1, 0.9, 1000),
        candidate("lucky", 0.2, 1.2, 500),
    ]
    assert budget._choose(found, CompressSpec(max_drop=1.0, sure=False))[0].name == "lucky"
    assert budget._choose(found, CompressSpec(max_drop=1.0, sure=True))[0].name == "sure"
    closest, why = budget._choose(found, CompressSpec(max_drop=0.5, sure=True))
    assert closest.name == "sure"
    assert why == "may lose 0.90 points, not 0.5"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratios": (0.5, 0.3)}, "must rise"),
        ({"ratios": (0.0,)}, "ratios"),
        ({"gradual": True}, "unstructured"),
        ({"gradual": True, "prune": "unstructured", "finetune_epochs": 1}, "at least 2"),
        ({"controls": ("random",), "prune": "none"}, "structured"),
        ({"controls": ("random",), "scope": "global"}, "scope: layer"),
        ({"max_drop": -1}, "max_drop"),
        ({"quantize": ()}, "quantize"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_the_spec_is_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CompressSpec(**fields)
