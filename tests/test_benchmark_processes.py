"""The benchmark of several processes runs in a tiny mode, and its results are whole. No figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "processes.py"


@pytest.mark.slow
def test_processes_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--tiny", "--out", str(out)], capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stderr[-3000:]
    text = out.read_text()
    assert str(tmp_path) not in text.replace(str(out), "")
    found = json.loads(text)
    assert found["batches"]["equal"]
    assert set(found["batches"]["sha256"]) == set(found["processes"]) == {"1", "2", "3"}
    assert all(row["largest_difference_of_losses"] < 2e-4 for row in found["processes"].values())
    assert all("lost another process" in row["message"] for row in found["killed"].values())
    if find_spec("ray") is None:
        assert found["left_out"] == {"ray": "not installed"}
    else:
        assert found["ray"]["same_as_one_process"]
        assert all(spread["n"] == 1 for spread in found["ray"]["seconds_until_run_again"].values())
