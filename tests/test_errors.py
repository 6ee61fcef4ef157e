"""What every error of Kitae has in common."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import pickle
import re
import shutil
import sys
import urllib.request
from pathlib import Path

import pytest

from kitae.errors import KitaeError, RecipeError, TrainingInterruptedError, install, lacking


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    assert str(RecipeError("--set =\x1f\n: not valid\r\n")) == "--set =\x1f : not valid"
    assert str(KitaeError(3)) == "3"
    stopped = TrainingInterruptedError("stopped\nin epoch 3", "resume")
    assert str(stopped) == "stopped in epoch 3; resume"
    assert str(pickle.loads(pickle.dumps(stopped))) == str(stopped), "it crosses processes"


class Origin:
    """A distribution that was installed from there."""

    def __init__(self, origin: object) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "pip", "command"),
    [
        (None, True, "pip install 'kitae[train]'"),
        (None, False, "uv pip install --python '/my env/bin/python' 'kitae[train]'"),
        ({"url": "file:///my%20clone", "dir_info": {"editable": True}}, True, "pip install -e '/my clone[train]'"),
        ({"url": "file:///clone", "dir_info": {}}, True, "pip install '/clone[train]'"),
        ({"url": "file:///a'b", "dir_info": {}}, True, """pip install '/a'"'"'b[train]'"""),
        ({"url": "https://x/k", "vcs_info": {"vcs": "git"}}, True, "pip install 'kitae[train] @ git+https://x/k'"),
        (
            {"url": "https://x/k", "vcs_info": {"vcs": "git", "requested_revision": "v2"}},
            True,
            "pip install 'kitae[train] @ git+https://x/k@v2'",
        ),
        ({"url": "https://x/k.whl"}, True, "pip install 'kitae[train] @ https://x/k.whl'"),
    ],
)
def test_an_extra_is_installed_as_kitae_was(
    origin: object, pip: bool, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Origin(origin))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: pip or None)
    monkeypatch.setattr(sys, "executable", "/my env/bin/python")
    monkeypatch.setattr(shutil, "which", lambda _: f"{sys.prefix}/bin/pip")
    assert install("train") == command


def test_a_clone_on_windows_is_named_as_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Origin({"url": "file:///C:/my%20clone"}))
    monkeypatch.setattr(urllib.request, "url2pathname", {"/C:/my%20clone": r"C:\my clone"}.__getitem__)
    assert install("train").endswith(r" install 'C:\my clone[train]'")


def test_an_extra_installs_every_module_that_is_required() -> None:
    source = Path(__file__).parents[1] / "src"
    modules = {name for path in source.rglob("*.py") for name in re.findall(r'require\("(.+?)"\)', path.read_text())}
    assert {"onnx", "torchao.quantization.pt2e", "timm"} < modules
    assert not [name for name in modules if lacking(name) is None]
    assert "[runtime]" in str(lacking("onnxruntime"))
    assert "[compress]" in str(lacking("onnxruntime.quantization.calibrate"))
    assert lacking("numpy") is None
    assert lacking(None) is None


@pytest.mark.parametrize("found", [None, "/usr/bin/pip", "beside/bin/pip"])
def test_a_pip_of_another_environment_is_not_named(
    found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell's pip would install it where this Python does not look."""
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Origin(None))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "mine"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my own" / "python"))
    monkeypatch.setattr(shutil, "which", lambda _: found and str(tmp_path / found))
    assert install("train") == f"'{tmp_path}/my own/python' -m pip install 'kitae[train]'"
    (tmp_path / "mine" / "bin").mkdir(parents=True)
    (tmp_path / "same").symlink_to(tmp_path / "mine")
    monkeypatch.setattr(shutil, "which", lambda _: str(tmp_path / "same" / "bin" / "pip"))
    assert install("train") == "pip install 'kitae[train]'"
