"""The benchmark of training loops with torch.compile. No figure is judged here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "train.py"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
def test_a_compiled_network_takes_turns(tmp_path: Path) -> None:
    out = tmp_path / "train.json"
    words = [str(SCRIPT), "--rows", "tiny", "--rounds", "1", "--warmup", "1", "--out", str(out)]
    words += ["--contestants", "kitae", "compiled"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    row = json.loads(out.read_text())["rows"]["tiny"]
    assert set(row["kitae_over"]) == {"compiled"}
    assert not row["left_out"]
