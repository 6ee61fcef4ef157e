"""What every error of Kitae has in common."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import pickle
import re
from pathlib import Path

import pytest

from kitae.errors import KitaeError, RecipeError, TrainingInterruptedError, install, lacking


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    assert str(RecipeError("--set =\x1f\n: not valid\r\n")) == "--set =\x1f : not valid"
    assert str(KitaeError(3)) == "3"
    stopped = TrainingInterruptedError("stopped\nin epoch 3", "resume")
    assert str(stopped) == "stopped in epoch 3; resume"
    assert str(pickle.loads(pickle.dumps(stopped))) == str(stopped), "it crosses processes"


@pytest.mark.parametrize(
    ("origin", "pip", "command"),
    [
        (None, True, "pip install 'kitae[train]'"),
        (None, False, "uv pip install 'kitae[train]'"),
        ({"url": "file:///my%20clone", "dir_info": {"editable": True}}, True, "pip install -e '/my clone[train]'"),
        ({"url": "file:///clone", "dir_info": {}}, True, "pip install '/clone[train]'"),
        ({"url": "https://x/k", "vcs_info": {"vcs": "git"}}, True, "pip install 'kitae[train] @ git+https://x/k'"),
        ({"url": "https://x/k.whl"}, True, "pip install 'kitae[train] @ https://x/k.whl'"),
    ],
)
def test_an_extra_is_installed_as_kitae_was(
    origin: object, pip: bool, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if origin is None else json.dumps(origin)

    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Installed())
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: pip or None)
    assert install("train") == command


def test_an_extra_installs_every_module_that_is_required() -> None:
    source = Path(__file__).parents[1] / "src"
    modules = {name for path in source.rglob("*.py") for name in re.findall(r'require\("(.+?)"\)', path.read_text())}
    assert {"onnx", "torchao.quantization.pt2e", "timm"} < modules
    assert not [name for name in modules if lacking(name) is None]
    assert "[runtime]" in str(lacking("onnxruntime"))
    assert "[compress]" in str(lacking("onnxruntime.quantization.calibrate"))
    assert lacking("numpy") is None
    assert lacking(None) is None
