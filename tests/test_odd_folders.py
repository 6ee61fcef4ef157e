"""Odd folders of photographs with the plan that a user gets: published weights, the real pace, a short time limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kitae.models.weights import PACKAGES
from kitae.pipelines.plan import NET
from kitae.run import Run
from tests.command import kitae
from tests.images import picture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGES[NET].find() is None, reason="needs the extra `weights`"),
]


def photos(home: Path, classes: int, each: int, size: tuple[int, int] = (96, 128), *, turned: bool = False) -> None:
    for label in range(classes):
        folder = home / "photos" / f"class {label:03d}"
        folder.mkdir(parents=True)
        for number in range(each):
            shape = size[::-1] if turned and number % 2 else size
            Image.fromarray(picture(label, number, shape, classes)).save(folder / f"{number}.jpg")


def trained(home: Path, minutes: float = 0.5) -> Run:
    kitae(home, "train", "photos", "--minutes", minutes, "--out", "run")
    run = Run.open(home / "run")
    assert run.finished
    assert run.recipe.model.pretrained
    return run


def test_two_classes_of_five_images_and_a_stray_file(tmp_path: Path) -> None:
    photos(tmp_path, 2, 5)
    (tmp_path / "photos" / "class 000" / "contract.pdf").write_bytes(b"%PDF-1.4")
    assert trained(tmp_path).evaluation()["test"]["count"] == 2


def test_upright_and_lying_photographs(tmp_path: Path) -> None:
    photos(tmp_path, 2, 20, turned=True)
    run = trained(tmp_path)
    assert run.recipe.data.resize == "squash"
    assert run.evaluation()["test"]["accuracy"] == 1


def test_400_classes(tmp_path: Path) -> None:
    photos(tmp_path, 400, 5, (48, 64))
    assert len(trained(tmp_path, 1).evaluation()["test"]["per_class"]) == 400


def test_a_photograph_of_108_megapixels(tmp_path: Path) -> None:
    photos(tmp_path, 2, 10)
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(noise).resize((12_000, 9_000)).save(tmp_path / "photos" / "class 000" / "large.jpg")
    assert trained(tmp_path).evaluation()["test"]["count"] >= 4


def test_one_image_per_class(tmp_path: Path) -> None:
    photos(tmp_path, 5, 1)
    said = kitae(tmp_path, "train", "photos", code=2).stderr
    assert said.startswith("error: ")
    assert said.count("\n") == 1
