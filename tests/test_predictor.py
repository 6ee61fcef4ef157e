"""A network and what its predictions depend on, without a run folder."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kitae.errors import DataError, RecipeError, TrainingError
from kitae.predictor import Predictor
from tests.refusals import refused

FACTS = {
    "classes": ["dark", "light"], "preprocess": {"image_size": 4, "channels": 1, "resize": "crop", "version": 1},
    "mean": [0.5], "std": [0.25], "temperature": 2.0,
}  # fmt: skip


class Brightness(nn.Module):
    """Logits [-m, m] of the mean m of the normalised left half of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.one * x[..., :2].mean(dim=(1, 2, 3))
        return torch.stack([-mean, mean], dim=1)


def predictor(**options: Any) -> Predictor:
    return Predictor(Brightness(), FACTS, **{"tta": "none", "batch_size": 2, **options})


def test_normalisation_and_temperature_are_those_of_the_run() -> None:
    image = Image.new("L", (9, 9), 204)  # 0.8, so a mean of 1.2
    found = predictor().predict([image, image, Image.new("L", (9, 9), 0)])
    assert found.names == ["light", "light", "dark"]
    assert found.probabilities[0, 1] == pytest.approx(1 / (1 + np.exp(-2 * 1.2 / 2)), abs=1e-6)
    assert predictor().predict(image).probabilities.tolist() == found.probabilities[:1].tolist()
    assert predictor().predict([]).probabilities.shape == (0, 2)


def test_progress_counts_each_batch_where_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[int, int]] = []
    monkeypatch.setattr("kitae.predictor.counter", lambda *_: nullcontext(lambda *images: counted.append(images)))
    predictor().predict([Image.new("L", (9, 9), 0)] * 5)
    assert not counted
    predictor().predict([Image.new("L", (9, 9), 0)] * 5, show=True)
    assert counted == [(2, 5), (4, 5), (5, 5)]


def test_out_of_memory_names_the_batch_of_evaluation() -> None:
    class Full(Brightness):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TrainingError, match=r"out of memory at evaluate\.batch_size 2: halve it"):
        Predictor(Full(), FACTS, tta="none", batch_size=2).predict(Image.new("L", (9, 9), 0))


def test_views_are_averaged() -> None:
    pixels = np.zeros((1, 1, 4, 4), np.uint8)
    pixels[..., 2:] = 255  # the network sees the dark half, and in the mirrored view the light one
    assert predictor().predict(pixels).probabilities[0, 1] == pytest.approx(
        1 / (1 + np.exp(2))
    )  # not read as [H, W, C]
    assert predictor(tta="flip").predict(pixels).probabilities[0] == pytest.approx([0.5, 0.5])


def test_a_batch_and_an_augmentation_of_another_kind_are_named() -> None:
    for batch in (np.zeros((1, 3, 4, 4), np.uint8), np.zeros((1, 1, 4, 4), np.float32)):
        refused(DataError, r"\[N, 1, 4, 4\]", predictor().predict, batch)
    refused(RecipeError, r"tta: 'flips'.*flip", predictor, tta="flips")
