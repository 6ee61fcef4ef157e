from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any

import onnx
import pytest
from torch import nn

from kitae.deployment import onnx as deployment
from kitae.pipelines import candidates
from kitae.pipelines.train import train
from kitae.recipe import Recipe
from kitae.run import Run


def undescribed(names: Iterable[str], described: object) -> list[str]:
    """The fields that a docstring does not name; an interval is named with its number."""
    words = set(re.findall(r"`(\w+)`", inspect.getdoc(described) or ""))
    return [name for name in names if name.removesuffix("_interval") not in words]


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stores of a module's tests in a cache of their own."""
    with pytest.MonkeyPatch.context() as context:
        context.setenv("KITAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small trained run, never changed but for its count of test openings. An epoch of fine-tuning is four steps."""
    recipe = Recipe.load("fashion-mini").override(
        "data.limit=600", "model.name=resnet8", "model.width=8", "model.stochastic_depth=0.2", "train.epochs=2",
        "train.batch_size=32", "train.precision=fp32", "train.threads=1", "train.optimizer.lr=0.1",
    )  # fmt: skip
    run = train(recipe, tmp_path_factory.mktemp("runs") / "tiny")
    run.recipe = recipe.override("train.epoch_steps=4")
    return run


@pytest.fixture(scope="session")
def _graphs() -> dict[bytes, onnx.ModelProto]:
    return {}


@pytest.fixture
def export_once(
    _graphs: dict[bytes, onnx.ModelProto], operators_read_once: None, patterns_traced_once: None,
    one_thread_a_session: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Networks of equal weights are exported once, and files timed briefly: nothing else here takes longer."""
    export = deployment.to_onnx

    def to_onnx(model: nn.Module, card: Any) -> onnx.ModelProto:
        key = b"".join(value.numpy().tobytes() for value in model.state_dict().values()) + repr(card).encode()
        if key not in _graphs:
            _graphs[key] = export(model, card)
        return copy.deepcopy(_graphs[key])

    for module in (candidates, deployment):
        monkeypatch.setattr(module, "to_onnx", to_onnx)
    monkeypatch.setattr(candidates, "_TIMINGS", 6)  # the fewest that give an interval
