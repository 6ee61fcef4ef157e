"""What a process is told about the machine before PyTorch is loaded."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest

from kitae.machine import SPINS, commit, sleep_while_waiting


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


def test_the_commit_of_a_source_tree(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
    git = functools.partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True, text=True)
    git(["git", "init", "-q"])
    (tmp_path / "file").write_text("1")
    git(["git", "add", "file"])
    git(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"])
    head = git(["git", "rev-parse", "HEAD"]).stdout.strip()
    commit.cache_clear()
    assert commit(tmp_path) == head
    (tmp_path / "file").write_text("2")
    commit.cache_clear()
    assert commit(tmp_path) == head + "+"
    commit.cache_clear()


def test_a_machine_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path) is None
