"""How fast does an exported model answer, and how large is it?

    python benchmarks/infer.py                          ResNet-18 for 32-pixel images, batches of 1 and 32 (minutes)
    python benchmarks/infer.py --run RUN --compressed RUN-small     a trained run, and what `kitae compress` made of it
    python benchmarks/infer.py --quick                  does it run? (figures mean nothing)

The same network as each engine takes it, from uint8 images to probabilities: PyTorch eager and torch.compile, a plain
ONNX export in ONNX Runtime, OpenVINO in float32, bfloat16 and INT8 where it is installed, and Kitae's files through
`kitae.runtime`: float32, INT8 for any CPU and for CPUs with VNNI, and INT8 with half of the channels removed (without
`--compressed`, of untrained weights: its time and size mean something, its answers nothing).

Every round times each contestant once, in a drawn order, in one process; the reference (plain ONNX Runtime) is timed
twice a round, and the ratio of the two says how large a difference this machine makes out of nothing. Before anything
is timed, the contestants' answers are compared with PyTorch's.

Results go to benchmarks/results/infer.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

# Several engines' thread pools live in this one process. OpenMP's would spin while it waits and take the cores from the
# others; it has to be told before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import common
import numpy as np
import torch
from torch import nn

from kitae.compression.calibrate import calibrate
from kitae.compression.channels import remove_channels
from kitae.compression.quantize import static
from kitae.deployment.onnx import Card, Classifier, serialize, to_onnx
from kitae.evaluation.latency import measure
from kitae.preprocess import PreprocessRules
from kitae.runtime import Model, has_vnni, open_session

REFERENCE = "onnxruntime fp32"
Call = Callable[[np.ndarray], np.ndarray]


@dataclass
class Contestant:
    """uint8 [N, C, H, W] -> probabilities, and the bytes that it needs on disk."""

    call: Call
    bytes: int | None
    note: str = ""


def network(options: argparse.Namespace) -> tuple[nn.Module, Card, str]:
    """The network, what its files say, and what it is."""
    if options.run is not None:
        from kitae.pipelines.export import card
        from kitae.run import Run

        run = Run.open(options.run)
        return run.load_model(), card(run), f"{run.recipe.model.name} of the run {run.path.name}"
    from kitae.models.build import build
    from kitae.models.spec import ModelSpec

    torch.manual_seed(0)
    model = build(ModelSpec(name=options.model), classes=10, channels=3, image_size=options.size)
    pictures, _ = common.images(options.size, 256)
    with torch.no_grad():  # BatchNorm has to have seen something, or INT8 has nothing to represent
        for part in torch.from_numpy(pictures).split(64):
            model((part.float() / 255 - 0.5) / 0.25)
    names = tuple(f"class {k}" for k in range(10))
    about = Card(names, PreprocessRules(options.size), (0.5,) * 3, (0.25,) * 3, recipe=options.model)
    return model.eval(), about, f"{options.model}, untrained"


def samples(about: Card, run: Path | None, count: int = 256) -> tuple[np.ndarray, np.ndarray, str]:
    """Images to answer, others to calibrate with, each uint8 [count, C, H, W], and what they are."""
    if run is None:
        both, source = common.images(about.rules.image_size, 2 * count)
        both = np.ascontiguousarray(both[:, : about.rules.channels])
        return both[:count], both[count:], f"{source}; the second half to calibrate with"
    from kitae.pipelines.setup import Setup
    from kitae.run import Run

    setup = Setup.of(Run.open(run))
    shown, seen = (
        setup.image_set(rows[:count]).gather(rows[:count])[0] for rows in (setup.splits.val, setup.splits.train)
    )
    return shown, seen, "validation images of the run; training images to calibrate with"


def contestants(
    model: nn.Module,
    about: Card,
    pictures: np.ndarray,
    calibration: np.ndarray,
    options: argparse.Namespace,
    folder: Path,
) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Those that run here, and why the others do not."""
    found: dict[str, Contestant] = {}
    absent: dict[str, str] = {}
    whole = Classifier(model, about).eval()

    def from_torch(forward: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        def call(batch: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return forward(torch.from_numpy(batch)).numpy()

        return call

    weights = io.BytesIO()
    torch.save(model.state_dict(), weights)
    found["torch eager"] = Contestant(from_torch(whole), len(weights.getvalue()), "bytes are of its state dict")
    try:
        compiled = torch.compile(whole)
        from_torch(compiled)(pictures[:1])
        found["torch.compile"] = Contestant(from_torch(compiled), None)
    except Exception as error:  # no compiler, most often
        absent["torch.compile"] = " ".join(str(error).split())[:200]

    plain = folder / "plain.onnx"
    torch.onnx.export(
        whole, (torch.from_numpy(pictures[:2]),), plain, dynamo=True, external_data=False, verbose=False,
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}}, input_names=["images"],
    )  # fmt: skip
    session = open_session(plain.read_bytes(), threads=options.threads)
    found[REFERENCE] = Contestant(lambda batch: session.run(None, {"images": batch})[0], plain.stat().st_size)

    def ours(name: str, graph: Any, card: Card, note: str = "") -> Path:
        path = folder / f"{name.replace(' ', '-').replace(',', '')}.onnx"
        path.write_bytes(serialize(graph, card))
        loaded = Model(path, threads=options.threads)
        found[name] = Contestant(loaded.run, path.stat().st_size, note)
        return path

    graph = to_onnx(model, about)
    float_file = ours("kitae fp32", graph, about)
    ranges = calibrate(graph, calibration)
    targets = ("any", "vnni") if has_vnni() else ("any",)
    for target in targets:
        made = static(graph, ranges, target=target)
        integer_file = ours(f"kitae int8, {target}", made, replace(about, precision="int8-static", target=target))
    if "vnni" not in targets:
        absent["kitae int8, vnni"] = "this CPU has no VNNI"
    if options.compressed is not None:
        path = options.compressed / "model.onnx" if options.compressed.is_dir() else options.compressed
        loaded = Model(path, threads=options.threads)
        found["kitae compressed"] = Contestant(loaded.run, path.stat().st_size, str(loaded.metadata["notes"]))
    else:
        smaller = remove_channels(model, about.rules.shape, options.ratio, round_to=8).model
        cut = to_onnx(smaller, about)
        made = static(cut, calibrate(cut, calibration), target=targets[-1])
        ours(
            f"kitae {100 * options.ratio:g} % pruned, int8", made,
            replace(about, precision="int8-static", target=targets[-1]), "not fine-tuned: its answers mean nothing",
        )  # fmt: skip

    try:
        openvino = __import__("openvino")
    except ModuleNotFoundError:
        reason = "not installed; sh benchmarks/peers.sh openvino, then run this with .venv-peers/openvino/bin/python"
        absent.update(dict.fromkeys(("openvino fp32", "openvino bf16", "openvino int8"), reason))
        return found, absent
    core = openvino.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": options.threads}
    for name, file, precision in (
        ("openvino fp32", float_file, "f32"),
        ("openvino bf16", float_file, "bf16"),
        ("openvino int8", integer_file, "f32"),
    ):
        try:
            request = core.compile_model(
                core.read_model(file), "CPU", {**settings, "INFERENCE_PRECISION_HINT": precision}
            ).create_infer_request()
            call = _openvino(request)
            call(pictures[:1])
            found[name] = Contestant(call, file.stat().st_size, f"reads {file.name}")
        except Exception as error:
            absent[name] = " ".join(str(error).split())[:200]
    return found, absent


def _openvino(request: Any) -> Call:
    def call(batch: np.ndarray) -> np.ndarray:
        return np.array(request.infer([batch])[0])

    return call


def agreement(found: dict[str, Contestant], pictures: np.ndarray) -> dict[str, dict[str, float]]:
    """Each contestant's answers against PyTorch's: share of equal classes, largest difference of a probability."""
    expected = found["torch eager"].call(pictures)
    report = {}
    for name, contestant in found.items():
        got = np.concatenate([contestant.call(pictures[i : i + 32]) for i in range(0, len(pictures), 32)])
        report[name] = {
            "same_class_share": float((got.argmax(1) == expected.argmax(1)).mean()),
            "largest_difference": float(np.abs(got - expected).max()),
        }
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny network, few rounds: does it run?")
    parser.add_argument("--model", default=None, help="a name of kitae's models (resnet18), timm: or torchvision:")
    parser.add_argument("--size", type=int, default=32, help="image side")
    parser.add_argument("--run", type=Path, default=None, help="a trained run instead")
    parser.add_argument("--compressed", type=Path, default=None, help="a compression folder or .onnx file of it")
    parser.add_argument("--ratio", type=float, default=0.5, help="channels removed, without --compressed")
    parser.add_argument("--batch", type=int, action="append", help="repeatable (1 and 32)")
    parser.add_argument("--threads", type=int, default=common.available_cores(), help="for everyone")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="results, JSON")
    options = parser.parse_args(arguments)
    options.model = options.model or ("resnet8" if options.quick else "resnet18")
    rounds = options.rounds or (6 if options.quick else 60)
    chosen = any((options.quick, options.run, options.compressed, options.batch, options.rounds))
    standard = not chosen and options.model == "resnet18" and options.size == 32
    out = options.out or (common.RESULTS if standard else common.SCRATCH) / "infer.json"
    torch.set_num_threads(options.threads)

    model, about, what = network(options)
    pictures, calibration, source = samples(about, options.run)
    sizes = options.batch or [1, 32]
    if not 1 <= min(sizes) <= max(sizes) <= len(pictures):
        parser.error(f"--batch: from 1 to {len(pictures)}, the number of images")
    with tempfile.TemporaryDirectory(prefix="kitae.") as folder:
        found, absent = contestants(model, about, pictures, calibration, options, Path(folder))
        answers = agreement(found, pictures)
        batches = {}
        for size in sizes:
            batch = np.ascontiguousarray(pictures[:size])
            calls = {name: partial(contestant.call, batch) for name, contestant in found.items()}
            timed = measure(calls, reference=REFERENCE, repeats=rounds)
            batches[str(size)] = timed.to_dict()
            print(f"\nbatch {size}, {rounds} rounds; the reference against itself: {timed.control_ratio:.3f}")
            for name in sorted(found, key=timed.median):
                faster = 1 / timed.ratio(name)
                held = found[name].bytes
                shown = "" if held is None else f"{held / 1e6:9.2f} MB"
                print(f"  {name:28} {1e3 * timed.median(name):9.3f} ms  {faster:6.2f} x  {shown}")
    versions = {}
    for package in ("onnxruntime", "openvino", "torch", "onnx"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    common.save(
        out,
        {
            "machine": common.hardware(options.threads) | {"vnni": has_vnni(), "engines": versions},
            "quick": options.quick,
            "network": what,
            "input": [about.rules.channels, about.rules.image_size, about.rules.image_size],
            "images": source,
            "reference": REFERENCE,
            "contestants": {
                name: {"bytes": item.bytes, "note": item.note, **answers[name]} for name, item in found.items()
            },
            "absent": absent,
            "batches": batches,
        },
    )
    for name, reason in absent.items():
        print(f"absent: {name} ({reason})")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
