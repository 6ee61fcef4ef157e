"""Networks of other libraries go through every step: train, prune, quantize, export, verify, predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kitae.pipelines.compress import compress
from kitae.pipelines.train import train
from kitae.recipe import Recipe
from kitae.runtime import Model

pytestmark = pytest.mark.slow

NETWORKS = ("torchvision:mobilenet_v2", "timm:efficientnet_b0", "timm:convnext_atto", "resnet18")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("prune", ["structured", "unstructured"])
def test_every_step(name: str, prune: str, tmp_path: Path) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    recipe = Recipe.load("fashion-mini").override(
        "data.limit=400", f"model.name={name}", "model.width=null", "data.image_size=32", "train.epochs=1",
        "train.batch_size=64", "train.precision=fp32", "train.threads=2", "train.optimizer.lr=0.005",
        "augment.train=[]",
    )  # fmt: skip
    run = train(recipe, tmp_path / "run")
    result = compress(
        run, tmp_path / "small", prune=prune, ratios=(0.25,), finetune_epochs=1, qat_epochs=1, max_drop=100.0,
        quantize=("none", "dynamic", "static", "qat"), calibration=("minmax",), sensitivity=False,
    )  # fmt: skip
    names = {row["precision"] for row in result.rows}
    assert names == {"fp32", "int8-dynamic", "int8-static", "int8-qat"}
    assert sum(not row["control"] for row in result.rows) == 8
    controls, winner = ([row["precision"] for row in result.rows if row[is_]] for is_ in ("control", "winner"))
    assert len(winner) == 1
    assert controls == winner  # the original, trained as long as the winner
    whole, cut = (next(r for r in result.rows if r["precision"] == "fp32" and r["ratio"] == x) for x in (0, 0.25))
    assert cut["nonzero"] < 0.9 * whole["nonzero"]
    if prune == "structured":
        assert cut["macs"] < 0.9 * whole["macs"]
        assert cut["bytes"] < 0.9 * whole["bytes"]
    static = next(r for r in result.rows if r["precision"] == "int8-static" and r["ratio"] == 0)
    assert static["bytes"] < 0.4 * whole["bytes"]
    images = np.array(run.open_store().images[:5])
    np.testing.assert_allclose(Model(result.model_file).predict(images).probabilities.sum(1), 1, atol=1e-3)
