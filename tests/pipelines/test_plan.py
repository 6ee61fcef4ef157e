"""Recipes planned from facts about data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kitae.errors import DataError, RecipeError
from kitae.pipelines.plan import Facts, explain, is_data, look, recipe_for, recipe_of
from kitae.recipe import Recipe
from tests.images import encode, picture

PHOTOS = Facts("folder:photos", 2000, 1440, 5, 300, 500, 480, 640, False, "a package", "cpu")


def folder(root: Path, classes: int = 2, each: int = 6, size: tuple[int, int] = (80, 100), grey: bool = False) -> Path:
    for label in range(classes):
        (root / f"class {label}").mkdir(parents=True)
        for number in range(each):
            pixels = picture(label, number, size)
            pixels = np.repeat(pixels[..., :1], 3, axis=2) if grey else pixels
            (root / f"class {label}" / f"{number}.png").write_bytes(encode(pixels))
    return root


def test_facts_of_a_folder(tmp_path: Path) -> None:
    facts = look(str(folder(tmp_path / "photos", classes=3)))
    assert (facts.images, facts.classes, facts.smallest, facts.largest) == (18, 3, 6, 6)
    assert (facts.height, facts.width, facts.grey) == (80, 100, False)
    assert facts.photographs
    assert not look(str(folder(tmp_path / "grey", grey=True))).photographs, "grey pictures that are saved as RGB"
    assert not look(str(folder(tmp_path / "tiny", size=(20, 20)))).photographs


def test_the_same_facts_give_the_same_recipe_in_plain_numbers() -> None:
    recipe = recipe_of(PHOTOS)
    assert recipe == recipe_of(PHOTOS)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert recipe.model.pretrained
    assert recipe.data.normalize == "pretrained"
    assert isinstance(recipe.data.image_size, int)


def test_more_minutes_never_train_less() -> None:
    recipes = [recipe_of(PHOTOS, minutes=minutes) for minutes in (0.5, 1, 3, 10, 60)]
    work = [(r.data.image_size, r.train.epochs) for r in recipes]
    assert work[0][1] == 0, "half a minute is enough for the probe alone"
    assert [size for size, _ in work] == sorted(size for size, _ in work)
    assert work[-1][1] > 0


def test_without_weights_or_photographs_it_starts_from_scratch() -> None:
    for facts in (replace(PHOTOS, weights=None), replace(PHOTOS, grey=True), replace(PHOTOS, height=28, width=28)):
        recipe = recipe_of(facts)
        assert not recipe.model.pretrained
        assert recipe.train.optimizer.name == "sgd"
    assert any(
        "weights" in line for line in explain(replace(PHOTOS, weights=None), recipe_of(replace(PHOTOS, weights=None)))
    )
    ops = [name for op in recipe_of(replace(PHOTOS, grey=True)).augment.train for name in op]
    assert "horizontal_flip" not in ops, "a mirrored digit is another one"


@pytest.mark.parametrize("train", [30, 210, 1000, 20_000])
@pytest.mark.parametrize("weights", [None, "a package"])
def test_an_epoch_has_ten_steps_or_the_smallest_batch(train: int, weights: str | None) -> None:
    recipe = recipe_of(replace(PHOTOS, images=train, train=train, weights=weights))
    batch = recipe.train.batch_size
    assert batch % 2 == 0
    assert batch == 8 or train // batch >= 10


def test_what_is_data_and_what_is_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "photos")
    assert is_data("photos")
    assert is_data("folder:photos")
    assert is_data("photos-mini")
    assert not is_data("fashion-mini")
    Recipe().save(tmp_path / "mine.yaml")
    assert not is_data("mine.yaml")
    assert not is_data("nothing-of-this-name")
    (tmp_path / "fashion-mini").mkdir()
    with pytest.raises(DataError, match="fashion-mini"):
        is_data("fashion-mini")


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 3"):
        recipe_for(folder(tmp_path / "few", each=1))
    with pytest.raises(RecipeError, match="minutes"):
        recipe_for("fashion-mini", minutes=3)
    with pytest.raises(RecipeError, match="fashon-mini"):
        recipe_for("fashon-mini")
