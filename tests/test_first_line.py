"""The benchmark of first lines finds each part of a command's output, and stops the command after the last."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import first_line

SLOW = """
import sys, time
print("starting", flush=True)
time.sleep(0.2)
print("x on y; everything goes to z", flush=True)
if sys.argv[1:]:
    raise SystemExit("no luck")
time.sleep(0.2)
print("epoch 1/15  step 1/42", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_each_part_is_timed_and_the_command_stopped_after_the_last(terminal: bool) -> None:
    began = time.perf_counter()
    marks = first_line.MARKS["terminal" if terminal else "piped"]
    found = first_line.watch([sys.executable, "-c", SLOW], marks, terminal=terminal)
    assert list(found) == ["first byte", "header", "step"]
    assert found["first byte"] + 0.1 < found["header"] < found["step"] - 0.1
    assert time.perf_counter() - began < 55


def test_a_part_that_never_comes_is_named_with_the_last_line() -> None:
    with pytest.raises(SystemExit, match=re.escape("ended without ['step']: no luck")):
        first_line.watch([sys.executable, "-c", SLOW, "fail"], first_line.MARKS["piped"], terminal=False)


def test_the_help_is_timed_to_its_end() -> None:
    found = first_line.watch([sys.executable, "-c", "print('usage')"], {}, terminal=False)
    assert list(found) == ["first byte", "end"]
    assert found["first byte"] <= found["end"]
    with pytest.raises(SystemExit, match="ended with status 1: no luck"):
        first_line.watch([sys.executable, "-c", "raise SystemExit('no luck')"], {}, terminal=False)


@pytest.mark.slow
def test_a_quick_run_writes_its_results(tmp_path: Path) -> None:
    out = tmp_path / "first_line.json"
    assert first_line.main(["--quick", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["quick"]
    assert found["machine"]["processor"]
    assert {name: list(marks) for name, marks in found["seconds"].items()} == {
        "help": ["first byte", "end"], "piped": ["first byte", "header", "step"],
        "terminal": ["first byte", "header", "step"],
    }  # fmt: skip
