"""Training that never looks at test says of validation what whole training says."""

from __future__ import annotations

from pathlib import Path

from kitae import pipeline
from kitae.experiments import validation
from kitae.recipe import Recipe


def test_validation_has_the_same_numbers_with_and_without_test(tmp_path: Path) -> None:
    recipe = Recipe.load("fashion-mini").override(
        "data.limit=200", "model.width=4", "train.epochs=1", "train.batch_size=50", "train.precision=fp32",
        "train.threads=1",
    )  # fmt: skip
    whole = pipeline.train(recipe, tmp_path / "whole")
    without = validation.train(recipe, tmp_path / "without", resume=True)
    expected = whole.evaluation()
    assert expected["temperature"] != 1
    expected.pop("test")
    found = without.evaluation()
    assert {name: found[name] for name in ("val", "temperature", "precision", "tta", "best_epoch")} == {
        name: expected[name] for name in ("val", "temperature", "precision", "tta", "best_epoch")
    }
    assert "test" not in found
    assert without.test_openings == 0
    assert without.facts()["temperature"] == expected["temperature"]
