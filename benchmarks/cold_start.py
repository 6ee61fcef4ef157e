"""How long does the first answer take? `kitae predict model.onnx one.png`, from nothing to the printed table.

    python benchmarks/cold_start.py                     ResNet-18 for 32-pixel images, in float32 (some minutes)
    python benchmarks/cold_start.py --model FILE.onnx   a file that `kitae export` or `kitae compress` wrote
    python benchmarks/cold_start.py --quick             does it run? (figures mean nothing)

Every timing is a process of its own, from its start to its end:

    python     an interpreter that does nothing
    load       one that imports onnxruntime, NumPy and Pillow and opens a session of the model: the limit, since nobody
               predicts with ONNX Runtime in less
    predict    the whole command

Every round times each once, in a drawn order, and `load` twice: the ratio of the two says how large a difference this
machine makes out of nothing. What counts is `predict` less `load` of the same round: what Kitae adds to the limit. It
may be one second. Files are in the system's cache, as those of a program that was used a minute ago: a first round that
is not counted brings them there.

Results go to benchmarks/results/cold_start.json.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import common
from PIL import Image

from kitae.runtime import Model, has_vnni

LIMIT = 1.0  # seconds that the command may take beyond the model's load
PYTHON, LOAD, CONTROL, PREDICT = "python", "load", "load (control)", "predict"
LOADING = """
import sys
import numpy, onnxruntime
from PIL import Image
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
"""


def export(file: Path, name: str, side: int) -> None:
    """Write an untrained network of `infer.py` as `kitae export` would."""
    import infer

    from kitae.deployment.onnx import serialize, to_onnx

    network, about, _ = infer.network(argparse.Namespace(run=None, model=name, size=side))
    file.write_bytes(serialize(to_onnx(network, about), about))


def commands(model: Path, image: Path) -> dict[str, list[str]]:
    """What is timed; the command line by the script that a user calls, where there is one."""
    script = Path(sys.executable).with_name("kitae")
    kitae = [str(script)] if script.is_file() else [sys.executable, "-m", "kitae"]
    load = [sys.executable, "-c", LOADING, str(model)]
    return {
        PYTHON: [sys.executable, "-c", "pass"],
        LOAD: load,
        CONTROL: load,
        PREDICT: [*kitae, "predict", str(model), str(image)],
    }


def finish(command: Sequence[str]) -> str:
    """Run a command to its end; what it printed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise SystemExit(f"cold_start.py: {' '.join(command)[:200]} failed: {lines[-1] if lines else ''}")
    return done.stdout


def measure(
    commands: Mapping[str, Sequence[str]], rounds: int, run: Callable[[Sequence[str]], object] = finish
) -> dict[str, list[float]]:
    """Seconds of each command in each round; a first round is not counted."""
    drawn = random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        order = list(commands)
        drawn.shuffle(order)
        for name in order:
            began = time.perf_counter()
            run(commands[name])
            if number:
                found[name].append(time.perf_counter() - began)
    return found


def summary(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What is told of the timings: differences and ratios are taken within rounds."""
    return {
        "seconds": {name: common.spread(values) for name, values in seconds.items()},
        "beyond_load": common.spread([a - b for a, b in zip(seconds[PREDICT], seconds[LOAD], strict=True)]),
        "control_ratio": common.spread([a / b for a, b in zip(seconds[CONTROL], seconds[LOAD], strict=True)]),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny network, few rounds: does it run?")
    parser.add_argument("--model", type=Path, default=None, help="an exported .onnx file (ResNet-18, untrained)")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="results, JSON")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (2 if options.quick else 30)
    standard = not options.quick and options.model is None
    out = options.out or (common.RESULTS if standard else common.SCRATCH) / "cold_start.json"

    with tempfile.TemporaryDirectory(prefix="kitae.") as name:
        folder = Path(name)
        file, what = options.model, options.model and options.model.name
        if file is None:
            network = "resnet8" if options.quick else "resnet18"
            file, what = folder / "model.onnx", f"{network}, untrained"
            export(file, network, side=32)
        image = folder / "one.png"
        Image.fromarray(common.generated(64, 1)[0].transpose(1, 2, 0)).save(image)
        known = Model(file)
        timed = commands(file, image)
        answer = known.predict(image).names[0]
        if answer not in finish(timed[PREDICT]):
            raise SystemExit(f"cold_start.py: the command does not answer {answer!r} as the runtime does")
        found = summary(measure(timed, rounds))
        held = file.stat().st_size
    beyond = found["beyond_load"]
    results = {
        "what": "seconds of a process from its start to its end; predict less load is what the command adds",
        "quick": options.quick,
        "machine": common.hardware(common.available_cores()) | {"vnni": has_vnni()},
        "settings": {"rounds": rounds, "limit_seconds": LIMIT},
        "model": {
            "what": what, "bytes": held, "precision": known.metadata.get("precision"), "input": known.input_shape
        },
        **found,
        "ok": beyond["median"] < LIMIT,
    }  # fmt: skip
    common.save(out, results)
    for label, entry in found["seconds"].items():
        print(f"{label:16} {entry['median']:7.3f} s ({entry['min']:.3f} to {entry['max']:.3f})")
    print(f"beyond the load  {beyond['median']:7.3f} s ({beyond['min']:.3f} to {beyond['max']:.3f})", end=", ")
    print(f"allowed {LIMIT:g} s; load against itself {found['control_ratio']['median']:.3f}")
    print(f"results: {out}")
    return 0 if results["ok"] or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
