"""Every seeded mistake is noticed by the tests that guard its place."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutations.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]


def test_the_text_to_mutate_occurs_once() -> None:
    for mutation in MUTATIONS:
        assert (ROOT / "src" / "kitae" / mutation.file).read_text().count(mutation.text) == 1, mutation


def test_there_are_enough() -> None:
    assert len(MUTATIONS) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("tests", sorted({mutation.tests for mutation in MUTATIONS}))
def test_without_a_mutation_the_tests_pass(tests: str) -> None:
    """Else a test that fails anyway would catch everything."""
    result = run(tests, ROOT / "src")
    assert result.returncode == 0, result.stdout[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.file}:{m.text[:32]}")
def test_a_mutation_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "src" / "kitae" / mutation.file
    before = file.read_text()
    assert mutation.text in before  # another change may have moved it since this run began
    file.write_text(before.replace(mutation.text, mutation.replacement))
    result = run(mutation.tests, tmp_path / "src")
    assert result.returncode == 1, result.stdout[-2000:]  # 1: a test failed; 5: none ran


def run(tests: str, source: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *shlex.split(tests)]
    env = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
