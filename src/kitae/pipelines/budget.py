"""The smallest model within a budget: every pruning ratio times every precision, judged on validation.

Three sets of images stay apart: training (fine-tuning, calibration, BatchNorm), validation (every choice), and test
(the winner and the original, once, at the end).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from kitae.compression.counting import prunable_layers, weight_of
from kitae.compression.shape import Shape
from kitae.compression.spec import CompressSpec
from kitae.console import plural
from kitae.data.loader import ImageSet
from kitae.errors import CompressionError, KitaeError, TrainingError, TrainingInterruptedError
from kitae.pipelines.candidates import NAMES, Bench, Candidate, Scoring, hopeless, lost, predict, within
from kitae.pipelines.networks import Network, percent
from kitae.reporting.compression_results import CompressionRecord, Tested

_EQUAL = 1.01  # files that differ by a few names in their metadata are equally small
_AS_FAST = 1.1


@dataclass(frozen=True)
class Outcome:
    """The result of a search.

    Attributes:
        record: its numbers, see `CompressionResult.facts`; those of the run, the machine and test are still missing.
        candidates: the files and their networks; the original in float32 first.
        winner: the smallest within the budget, or the one closest to it.
        shape: rebuilds the winner's network.
        filters: first convolution of the original [O, C, h, w], and what of it the winner kept (bool).
    """

    record: CompressionRecord
    candidates: tuple[Candidate, ...]
    winner: Candidate
    shape: Shape
    filters: tuple[NDArray[np.float32], NDArray[np.bool_]] | None


def search(bench: Bench) -> Outcome:
    """Prune, fine-tune, quantize, export and measure, and pick the smallest file within the budget.

    Raises:
        CompressionError: a network that cannot be pruned or quantized as asked, too few images.
        ExportError: the original's file does not compute what it should.
    """
    networks, spec, say = bench.networks, bench.spec, bench.say
    say("exporting the original")
    reached = [networks.original]
    candidates = bench.candidates(networks.original)
    stopped = ""
    for ratio in spec.ratios if spec.prune != "none" else ():
        say(f"{spec.prune} pruning, {100 * ratio:g} %: fine-tuning {plural(spec.finetune_epochs, 'epoch')}")
        try:
            network = networks.prune(reached, ratio)
        except TrainingInterruptedError:
            raise
        except (TrainingError, CompressionError) as error:  # the smaller ratios are still worth having
            if isinstance(error, CompressionError) and len(reached) == 1:
                raise  # it cannot be pruned as asked
            bench.leave_out(percent(ratio), str(error))
            what = "pruning" if isinstance(error, CompressionError) else "fine-tuning"
            stopped = _untried(spec, ratio, f"the {what} of this one failed")
            break
        if network is None:
            why = f"it is the same network as {percent(reached[-1].ratio)}: no more channels may be removed"
            if spec.round_to > 1:
                why += f" in packs of {spec.round_to} (round_to=1 removes single channels)"
            bench.leave_out(percent(ratio), why)
            continue
        reached.append(network)
        found = bench.candidates(network)
        candidates += found
        best = min((candidate.row["drop"] for candidate in found), default=0.0)
        if spec.abandon and best > hopeless(spec):
            stopped = _untried(spec, ratio, f"this one loses {best:.2f} points")
            break
    candidates, latency = bench.timed(candidates)
    winner, why_not = choose(candidates, spec)
    if spec.controls and winner.ratio == 0 and spec.prune != "none":
        say("the controls are skipped: they use the winner's pruning ratio, and the winner is not pruned")
    elif spec.controls and winner.ratio > 0:
        controls = _controls(winner, reached, bench)
        candidates += bench.timed([candidates[0], *controls])[0][1:]
    network = next(network for network in reached if network.ratio == winner.ratio)
    wanted = spec.sensitivity and {"static", "qat"} & set(spec.quantize)
    sensitivity = bench.sensitivity() if wanted else ()  # before left_out is read
    best, size = front(candidates, spec, latency["noise"]), size_field(spec)
    rows = [{**c.row, "front": c.name in best, "winner": c is winner, "control": c.control} for c in candidates]
    record = CompressionRecord.model_validate({
        "spec": networks.spec.model_dump(mode="json"),
        "within_budget": not why_not,
        "why_not": why_not,
        "stopped": stopped,
        "sure": spec.sure,
        "metric": bench.scoring.name,
        "least_drop": bench.scoring.least_drop,
        "left_out": bench.left_out,
        "baseline": rows[0],
        "winner": next(row for row in rows if row["winner"]),
        "size": size,
        "smaller": rows[0][size] / winner.row[size],
        "faster": winner.row["speedup"],
        "latency": latency,
        "candidates": rows,
        "sensitivity": [vars(item) for item in sensitivity],
    })  # fmt: skip
    return Outcome(record, tuple(candidates), winner, network.shape, _filters(networks.original.model, network))


def _untried(spec: CompressSpec, ratio: float, why: str) -> str:
    """Why larger ratios than this were not tried; empty where there are none."""
    return f"ratios above {ratio:g} were not tried: {why}" if ratio < spec.ratios[-1] else ""


def judge(outcome: Outcome, test: ImageSet, spec: CompressSpec, scoring: Scoring) -> Tested:
    """Measure the original and the winner on test; see `CompressionResult.test`. `scoring`: of the test images."""
    original, winner = outcome.candidates[0], outcome.winner
    before, after = (
        predict(item.path.read_bytes(), test, item.precision).argmax(axis=1) for item in (original, winner)
    )
    change = scoring.drop(before, after)
    return Tested.model_validate({
        "baseline": {"name": original.name, **scoring.accuracy(before)},
        "winner": {"name": winner.name, **scoring.accuracy(after)},
        **change,
        "count": len(test),
        "within_budget": within(change["drop"], spec),
    })  # fmt: skip


def size_field(spec: CompressSpec) -> str:
    """The column by which size is judged: a file keeps the zeros of unstructured pruning until it is packed."""
    return "packed_bytes" if spec.prune == "unstructured" else "bytes"


def _controls(winner: Candidate, reached: Sequence[Network], bench: Bench) -> list[Candidate]:
    """Controls at the winner's precision, to compare its pruning with.

    All are trained for as many epochs as the winner; a network with less training would lose for that reason alone.
    """
    networks, spec, say = bench.networks, bench.spec, bench.say
    original, *pruned = (network for network in reached if network.ratio <= winner.ratio)
    network, more = pruned[-1], spec.finetune_epochs * len(pruned)

    def control(name: str) -> Network:
        if name == "original":
            say(f"control: the original, trained for the winner's {more} further epochs")
            return networks.further(more)
        if name == "random":
            say(f"control: random pruning, {percent(winner.ratio)}")
            chain = [original]
            for step in pruned:
                same_size = networks.prune(chain, step.ratio, like=step)
                assert same_size is not None, "the step has removed channels"
                chain.append(same_size)
            return replace(chain[-1], control=f"random, {chain[-1].name}")
        if name == "scratch":
            say(f"control: the pruned shape from scratch, {percent(winner.ratio)}")
            return networks.from_scratch(network, more)
        title, net = bench.as_fast(network.model)
        say(f"control: {title} from scratch, with the same latency")
        return networks.small_from_scratch(title, net, more)

    found: list[Candidate] = []
    # A pruned network may gain from its further epochs, so the original with as many epochs is always measured.
    for name in dict.fromkeys(("original", *spec.controls)):
        if name == "original" and more == 0:
            continue  # the original as it is, which is in the table already
        try:
            found += bench.candidates(control(name), like=winner)
        except TrainingInterruptedError:
            raise
        except KitaeError as error:  # the winner does not need it
            bench.leave_out(f"control {name}", str(error))
    return found


def choose(candidates: Sequence[Candidate], spec: CompressSpec) -> tuple[Candidate, str]:
    """The smallest within the budget and '', or the closest and what it exceeds.

    Only what was asked for can win: no file of another precision, and the original only if there is nothing else.
    """
    asked = {NAMES[precision] for precision in spec.quantize}
    original = candidates[0]
    free = [c for c in candidates if c is not original and not c.control and c.precision in asked] or [original]

    def excess(candidate: Candidate) -> list[tuple[float, str]]:
        row = candidate.row
        found = []
        points = lost(row, spec)
        if not within(points, spec):
            share = (points - spec.max_drop) / max(spec.max_drop, 1.0)
            verb = "may lose" if spec.sure else "loses"
            found.append((share, f"{verb} {points:.2f} points, more than {spec.max_drop:g}"))
        if spec.max_bytes is not None and row["bytes"] > spec.max_bytes:
            found.append((row["bytes"] / spec.max_bytes - 1, f"has {row['bytes']:,} bytes, over {spec.max_bytes:,}"))
        if spec.max_latency_ms is not None and row["latency_ms"] > spec.max_latency_ms:
            share = row["latency_ms"] / spec.max_latency_ms - 1
            found.append((share, f"takes {row['latency_ms']:.3g} ms, more than {spec.max_latency_ms:g}"))
        return found

    inside = [candidate for candidate in free if not excess(candidate)]
    if inside:
        # Files that differ by a few names in their metadata are equally small. Among them speed decides (dynamic INT8
        # is as small as static, and may be slower than float), and among equally fast ones accuracy. Of files that are
        # equal in that too, the first: a discarded 8-bit training leaves the static file once more.
        size = size_field(spec)
        smallest = min(candidate.row[size] for candidate in inside)
        equal = [candidate for candidate in inside if candidate.row[size] <= _EQUAL * smallest]
        fastest = min(candidate.row["latency_ms"] for candidate in equal)
        fast = [candidate for candidate in equal if candidate.row["latency_ms"] <= _AS_FAST * fastest]
        return min(fast, key=lambda c: (c.row["drop"], c.row["loss"])), ""
    closest = min(free, key=lambda c: (sum(share for share, _ in excess(c)), c.row["drop"], c.row["loss"]))
    return closest, " and ".join(words for _, words in excess(closest))


def front(candidates: Sequence[Candidate], spec: CompressSpec, noise: float) -> set[str]:
    """Names of candidates that no other beats. To beat means to be better in one respect and no worse in the others.

    Args:
        noise: relative difference of two timings of one file; smaller differences do not count, and
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
    # The best are kept one by one, since `beats` may be circular with margins, which would leave none.
    for candidate in sorted((c for c in candidates if not c.control), key=merits):
        if not any(beats(one, candidate) for one in kept):
            kept = [one for one in kept if not beats(candidate, one)] + [candidate]
    return {one.name for one in kept}


def _filters(model: nn.Module, network: Network) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
    for name, layer in prunable_layers(model).items():
        weight = weight_of(layer)
        if weight.ndim == 4:
            values = weight.detach().float().cpu().numpy()
            kept = np.ones(values.shape, np.bool_)
            if name in network.shape.kept:
                kept[:] = False
                kept[list(network.shape.kept[name])] = True
            elif network.ratio > 0:
                now = weight_of(prunable_layers(network.model)[name])
                if now.shape == weight.shape:
                    kept = (now != 0).cpu().numpy()
            return values, kept
    return None
