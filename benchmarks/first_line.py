"""How soon does a command say something? `kitae train fashion-mini` and `kitae --help`, from nothing to each line.

    python benchmarks/first_line.py             seven rounds (some minutes)
    python benchmarks/first_line.py --quick     one round: does it run? (figures mean nothing)

Every timing is a process of its own. Of a training, whose output goes to a pipe or to a terminal, the seconds are taken
until

    first byte    anything at all
    header        the line with the model, the data, the classes and the device
    step          the first step: a line in a pipe, the bar of the first epoch on a terminal

and the training is then stopped. Of `kitae --help` it is the first byte and the end. Every round times each once, in a
drawn order. A first round is not counted: it decodes the images, compiles what Numba keeps, and brings files into the
system's cache. The header may come after three seconds, the end of the help after 0.3.

Results go to benchmarks/results/first_line.json.
"""

from __future__ import annotations

import argparse
import os
import pty
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common

LIMITS = {("piped", "header"): 3.0, ("terminal", "header"): 3.0, ("help", "end"): 0.3}  # seconds
HEADER = re.compile(rb"everything goes to ")
MARKS: Mapping[str, Mapping[str, re.Pattern[bytes]]] = {
    "help": {},
    "piped": {"header": HEADER, "step": re.compile(rb"epoch 1/\d+  step ")},
    "terminal": {"header": HEADER, "step": re.compile(rb"epoch 1/\d+ ")},
}


def commands(data: str, folder: Path) -> dict[str, list[str]]:
    """What is timed, by the script that a user calls, where there is one."""
    script = Path(sys.executable).with_name("kitae")
    kitae = [str(script)] if script.is_file() else [sys.executable, "-m", "kitae"]
    train = [*kitae, "train", data, "--overwrite", "--out", str(folder / "run")]
    return {"help": [*kitae, "--help"], "piped": train, "terminal": train}


def watch(command: Sequence[str], marks: Mapping[str, re.Pattern[bytes]], *, terminal: bool) -> dict[str, float]:
    """Seconds until the first byte of a command's output and until each mark; without marks until its end.

    With marks, the command is stopped at the last one.
    """
    ours, theirs = pty.openpty() if terminal else os.pipe()
    wide = {**os.environ, "COLUMNS": "120", "LINES": "40", "TERM": "xterm-256color"}
    began = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=wide) as process:
        os.close(theirs)
        output, found = b"", {}
        while chunk := _read(ours):
            now = time.perf_counter() - began
            output += chunk
            found.setdefault("first byte", now)
            for name, mark in marks.items():
                if name not in found and mark.search(output):
                    found[name] = now
            if marks and marks.keys() <= found.keys():
                process.terminate()
        process.wait()
    if not marks:
        found["end"] = time.perf_counter() - began
    os.close(ours)
    missing = sorted(marks.keys() - found.keys())
    if missing or (process.returncode and not marks):
        last = output.decode(errors="replace").strip().splitlines()[-1:]
        how = f"ended without {missing}" if missing else f"ended with status {process.returncode}"
        raise SystemExit(f"first_line.py: {' '.join(command)[:200]} {how}: {''.join(last)}")
    return found


def _read(file: int) -> bytes:
    """What there is to read; nothing at the end, which a terminal tells by an error."""
    try:
        return os.read(file, 1 << 16)
    except OSError:
        return b""


def measure(timed: Mapping[str, Sequence[str]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each command and mark in each round; a first round is not counted."""
    drawn = random.Random(0)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in timed}
    for number in range(rounds + 1):
        for name in drawn.sample(list(timed), len(timed)):
            seen = watch(timed[name], MARKS[name], terminal=name == "terminal")
            for mark, seconds in seen.items() if number else ():
                found[name].setdefault(mark, []).append(seconds)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round: does it run?")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="results, JSON")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (1 if options.quick else 7)
    out = options.out or (common.SCRATCH if options.quick else common.RESULTS) / "first_line.json"
    data = "fashion-mini"
    with tempfile.TemporaryDirectory(prefix="kitae.") as name:
        seconds = measure(commands(data, Path(name)), rounds)
    spreads: dict[str, dict[str, Any]] = {
        name: {mark: common.spread(values) for mark, values in marks.items()} for name, marks in seconds.items()
    }
    held = all(spreads[name][mark]["median"] < limit for (name, mark), limit in LIMITS.items())
    results = {
        "what": "seconds from the start of a process to each part of its output",
        "quick": options.quick,
        "machine": common.hardware(common.available_cores()),
        "settings": {
            "rounds": rounds, "data": f"{data}, decoded before",
            "limit_seconds": {f"{name}, {mark}": limit for (name, mark), limit in LIMITS.items()},
        },
        "seconds": spreads,
        "ok": held,
    }  # fmt: skip
    common.save(out, results)
    for name, marks in spreads.items():
        for mark, entry in marks.items():
            limit = f", allowed {LIMITS[name, mark]:g} s" if (name, mark) in LIMITS else ""
            print(f"{name:9} {mark:11} {entry['median']:6.2f} s ({entry['min']:.2f} to {entry['max']:.2f}){limit}")
    print(f"results: {out}")
    return 0 if held or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
