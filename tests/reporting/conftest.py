"""Invented run folders, and a way to look at pictures with numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kitae.preprocess import PreprocessRules
from kitae.recipe import Recipe
from kitae.run import Run

HOSTILE = ("<script>alert(1)</script>", "a\"'&b", "$\\frac{1}$ {{ 7*7 }} 猫")


def pixels(path: Path) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of a PNG that decodes completely."""
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with Image.open(path) as image:
        image.load()
        return np.asarray(image.convert("RGB"))


def epochs(count: int) -> list[dict[str, Any]]:
    return [
        {
            "epoch": e + 1, "step": 10 * (e + 1), "train_loss": 2.0 / (e + 1), "train_accuracy": 1 - 0.8 / (e + 1),
            "val_loss": 2.1 / (e + 1),
            "val_accuracy": 0.9 - 0.7 / (e + 1) - (0.05 if e == count - 1 and count > 1 else 0),
            "train_clean_accuracy": 0.95 - 0.7 / (e + 1), "learning_rate": 0.1 / (e + 1), "images_per_second": 1234.5,
            "seconds": 2.5, "data_share": 0.04, "peak_memory_bytes": 5e8,
        }
        for e in range(count)
    ]  # fmt: skip


def measured(classes: tuple[str, ...], n: int = 90) -> dict[str, Any]:
    """What evaluation.json says of a split; every third image of class 0 is taken for class 1."""
    k = len(classes)
    confusion = np.eye(k, dtype=int) * (n // k)
    confusion[0, 0] -= n // k // 3
    confusion[0, 1] += n // k // 3
    accuracy = float(np.trace(confusion) / confusion.sum())
    per_class = {
        name: {"accuracy": confusion[i, i] / (n // k), "accuracy_interval": [0.5, 1.0], "count": n // k}
        for i, name in enumerate(classes)
    }
    return {
        "count": int(confusion.sum()), "accuracy": accuracy, "accuracy_interval": [accuracy - 0.05, accuracy + 0.04],
        "balanced_accuracy": accuracy, "balanced_accuracy_interval": None, "loss": 0.4321, "loss_interval": [0.4, 0.45],
        "ece": 0.0123, "ece_interval": [0.01, 0.02], "per_class": per_class, "confusion": confusion.tolist(),
    }  # fmt: skip


def least_drop(count: int) -> float:
    """The smallest upper end, in points, of Tango's interval of a drop: that of `count` images and no change."""
    z = 1.959963984540054
    return 100 * z**2 / (count + z**2)


def measured_compression(name: str = "demo") -> dict[str, Any]:
    """compression.json as `kitae compress` wrote it; published figures move on, these do not."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / "compressions" / f"{name}.json").read_text())
    return found


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Builds run folders through Run's own writers."""

    def make(
        name: str = "run",
        *,
        classes: tuple[str, ...] = HOSTILE,
        done: bool = True,
        rows: int = 5,
        temperature: float = 1.3,
    ) -> Run:
        import pyarrow as pa

        recipe = Recipe.load("fashion-mini").override("train.epochs=9", "train.label_smoothing=0.1", f"name={name}")
        run = Run.create(tmp_path / name, recipe)
        run.close()
        if rows:
            run.write_metrics(epochs(rows))
            run.write_facts({
                "classes": list(classes), "preprocess": PreprocessRules(32).to_dict(), "mean": [0.5], "std": [0.25],
                "temperature": 1.0, "parameters": 11_173_962, "macs": 5.6e8,
            })  # fmt: skip
        if done:
            run.count_test_opening("end of training")
            rng = np.random.default_rng(0)
            shares = rng.dirichlet(np.full(len(classes), 0.3), 90).astype(np.float32)
            said, true = shares.argmax(axis=1), rng.integers(0, len(classes), 90)
            table = {
                "name": [f"photo {i} \"><img src='x'>.png" for i in range(90)],
                "label": [classes[i] for i in true],
                "predicted": [classes[i] for i in said],
                "confidence": shares.max(axis=1),
                "probabilities": shares.tolist(),
            }
            run.write_predictions(pa.table(table))
            split = measured(classes, max(90, 3 * len(classes)))
            run.write_evaluation({"test": split, "val": split, "temperature": temperature, "best_epoch": 3})
        return run

    return make
