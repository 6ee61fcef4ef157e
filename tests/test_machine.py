"""What a process is told about the machine before PyTorch is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kitae.machine import SPINS, sleep_while_waiting


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, {"GOMP_SPINCOUNT": SPINS}),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_what_the_user_has_set_is_kept(given: dict[str, str], kept: dict[str, str]) -> None:
    sleep_while_waiting(given)
    assert given == kept


def test_a_command_says_it_before_pytorch_is_loaded() -> None:
    program = """
import os, sys
from kitae import cli
os.environ.pop("GOMP_SPINCOUNT", None), os.environ.pop("OMP_WAIT_POLICY", None)
cli.app = lambda **_: print(os.environ["GOMP_SPINCOUNT"], "torch" in sys.modules)
sys.argv = ["kitae", "train"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [SPINS, "False"]
