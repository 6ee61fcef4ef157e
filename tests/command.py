"""`kitae WORDS`, in this process: a process of its own takes seconds to import torch."""

from __future__ import annotations

import io
import re
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from kitae import console
from kitae.cli import main


class Done(NamedTuple):
    """What a command printed."""

    stdout: str
    stderr: str


def kitae(home: Path, *words: object, code: int = 0, columns: int = 80) -> Done:
    """Run a command in the folder `home`, with its cache there, and check its exit code."""
    out, err = io.StringIO(), io.StringIO()
    threads, found = torch.get_num_threads(), 0
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
        patch.chdir(home)
        patch.setattr(sys, "argv", ["kitae", *map(str, words)])
        patch.setenv("KITAE_CACHE", str(home / "cache"))
        patch.setattr(console.console, "width", columns)
        warnings.filterwarnings("ignore", message="Cyclopts application invoked without tokens")  # as it is meant to be
        try:
            main()
        except SystemExit as leaving:
            found = leaving.code or 0  # type: ignore[assignment]
        finally:
            torch.set_num_threads(threads)
    assert found == code, out.getvalue() + err.getvalue()
    return Done(out.getvalue(), err.getvalue())


def refused(home: Path, *words: object) -> str:
    """The one line of a command that cannot be done, without its `error: `."""
    error = kitae(home, *words, code=2).stderr
    error = re.sub(r"^starting: kitae .+\n", "", error)  # where standard output is for the result
    error = re.sub(r"^\w+ images: \d+ of \d+\n", "", error, flags=re.MULTILINE)  # printed where a machine is slow
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error.removeprefix("error: ").strip()
