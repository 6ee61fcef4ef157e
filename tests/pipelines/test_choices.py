"""What `kitae train ARGUMENT` takes its argument for."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kitae.cli import research
from kitae.cli.data import data_spec
from kitae.data.spec import DataSpec
from kitae.errors import KitaeError, TrainingError
from kitae.pipelines.choices import Choices, apply, by_option, set_fields, to_resume, understand
from kitae.pipelines.train import asked
from kitae.recipe import Recipe, assignment
from tests.images import write_folder, write_parquet
from tests.refusals import refused


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos")
    write_parquet(tmp_path / "d.parquet")
    (tmp_path / "labels.csv").write_text("path,label\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("name: x\n")
    return tmp_path


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("fashion-mini", ("recipe", "fashion-mini")),
        ("recipe:fashion-mini", ("recipe", "fashion-mini")),
        ("run/recipe.yaml", ("recipe", "run/recipe.yaml")),
        ("mine.yaml", ("recipe", "mine.yaml")),
        ("./photos/", ("data", "folder:./photos/")),
        ("d.parquet", ("data", "parquet:d.parquet")),
        ("labels.csv", ("data", "csv:labels.csv")),
        ("photos-mini", ("data", "photos-mini")),
        ("fashion-mini:", ("data", "fashion-mini:")),
        ("cifar10:somewhere", ("data", "cifar10:somewhere")),
    ],
)
def test_it_is_found_out(here: Path, argument: str, meant: tuple[str, str]) -> None:
    assert understand(argument) == meant


@pytest.mark.parametrize("name", ["\U0001f408", "a\x7fb", "a: b #c", os.fsdecode(b"caf\xe9")])
def test_a_folder_of_any_name_is_the_source(here: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "photos").rename(here / name)
    source = f"folder:{name}"
    assert asked(name, None, {}, "fashion-mini")[0].data.source == source
    assert data_spec(name, ["data.limit=5"]).model_dump(include={"source", "limit"}) == {"source": source, "limit": 5}
    given: list[str] = []

    def noted(recipe: str, out: Path, *overrides: str, **_: object) -> SimpleNamespace:
        given.extend(overrides)
        return SimpleNamespace(data=dict, parts=list, path=out)

    monkeypatch.setattr("kitae.experiments.search.search", noted)
    research.search(name, out=here / "search")
    assert Recipe().override(*given).data.source == source


@pytest.mark.parametrize("name", ["fashion-mini", "photos-mini"])
def test_a_name_that_is_two_things_is_an_error_that_names_both(here: Path, name: str) -> None:
    (here / name).mkdir()
    with pytest.raises(KitaeError, match=rf"{name}.*folder.*\./{name}") as caught:
        understand(name)
    meant = "recipe:fashion-mini" if name == "fashion-mini" else "photos-mini:"
    assert meant in str(caught.value)
    assert understand(meant)[0] in ("recipe", "data")
    assert understand(f"./{name}") == ("data", f"folder:./{name}")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("fashion-mni", "did you mean fashion-mini"),
        ("nowhere/", "no such recipe, file, folder"),
        ("run", "--resume"),
        ("readme.txt", "readme.txt"),
    ],
)
def test_what_it_is_not(here: Path, argument: str, said: str) -> None:
    (here / "readme.txt").write_text("")
    with pytest.raises(KitaeError, match=said):
        understand(argument)


def test_a_run_is_resumed_with_its_own_plan_if_the_data_are_its_own(here: Path) -> None:
    (here / "run" / "recipe.yaml").write_text("name: x\ndata: {source: 'folder:photos'}\n")
    section: Choices = {"set": ("train={batch_size: 32}",)}
    for data in ("run", "run/recipe.yaml", "photos", "./photos/", "folder:photos", str(here / "photos")):
        assert to_resume(data, Path("run"), section) == ("run/recipe.yaml", {"batch_size": 32, "set": []})
    write_folder(here / "my photos")
    error = refused(
        TrainingError, "was trained on folder:photos, not on my photos", to_resume, "my photos", Path("run"), {}
    )
    assert "kitae train --resume run --set 'data.source=folder:my photos'" in str(error)
    recipe, new = ("fashion-mini", section), ("my photos", section)
    assert to_resume("fashion-mini", Path("run"), section) == recipe, "it is compared when the run is opened"
    assert to_resume("my photos", Path("new"), section) == new, "nothing to resume"


@pytest.mark.parametrize("name", ["set #2", "a: b", "my photos", "plain", "it's"])
def test_the_command_for_moved_images_names_their_folder(here: Path, name: str) -> None:
    (here / "run" / "recipe.yaml").write_text("name: x\ndata: {source: 'folder:gone'}\n")
    (here / "photos").rename(here / name)
    with pytest.raises(TrainingError, match="if the images were moved: ") as caught:
        to_resume(name, Path("run"), {})
    *command, text = shlex.split(str(caught.value).partition("were moved: ")[2])
    assert command == ["kitae", "train", "--resume", "run", "--set"]
    assert assignment(text) == ("data.source", f"folder:{name}")


def test_fields_are_set_by_texts_or_by_a_mapping() -> None:
    base = Recipe.load("fashion-mini")
    for given in (("train.epochs=3", "model.width=8"), {"train.epochs": np.int64(3), "model.width": 8}):
        recipe = apply(base, Choices(set=given))
        assert (recipe.train.epochs, recipe.model.width) == (3, 8)
    recipe = apply(base, Choices(set={"train.optimizer.lr": np.float64(0.25), "data.source": Path("mnist")}))
    assert (recipe.train.optimizer.lr, recipe.data.source) == (0.25, "mnist")
    assert apply(base, Choices(set=None)) == base
    assert set_fields(Choices(set={"study.seeds": range(3)})) == ("study.seeds=[0, 1, 2]",)
    with pytest.raises(KitaeError, match=r"^train\.epochs: should be a number, a text, .* not generator$"):
        set_fields(Choices(set={"train.epochs": (epochs for epochs in range(2))}))


@pytest.mark.parametrize("given", [[("train.epochs", 3)], 5, ["train.epochs=3", None], [b"train.epochs=3"]])
def test_set_takes_texts_or_a_mapping(given: Any) -> None:
    for call in (set_fields, by_option):
        with pytest.raises(KitaeError, match=r"^set takes texts such as 'train.epochs=30' or a mapping"):
            call(Choices(set=given))


def test_a_field_is_set_once() -> None:
    recipe = Recipe.load("fashion-mini")
    with pytest.raises(KitaeError, match=r"lr and set train\.optimizer\.lr=0\.2: are the same field"):
        apply(recipe, Choices(lr=0.1, set=("train.optimizer.lr=0.2",)))


def test_an_option_is_kept_beside_a_whole_section() -> None:
    recipe = apply(Recipe(), Choices(epochs=7, lr=0.2, set=("train={batch_size: 32}", "train.optimizer={name: adamw}")))
    train = recipe.train
    assert (train.epochs, train.batch_size, train.optimizer.name, train.optimizer.lr) == (7, 32, "adamw", 0.2)
    for text in ("train={epochs: 5}", "train={epochs: 5, optimizer: {lr: 0.1}}"):
        with pytest.raises(KitaeError, match=r"epochs and set train={epochs: 5.*: are the same field"):
            apply(Recipe(), Choices(epochs=7, set=text))
    with pytest.raises(KitaeError, match=r"lr and set train={optimizer: {lr: 0\.1}}: are the same field"):
        apply(Recipe(), Choices(lr=0.2, set="train={optimizer: {lr: 0.1}}"))


def test_a_section_without_a_source_keeps_the_one_that_was_given() -> None:
    recipe = Recipe(data=DataSpec(source="folder:photos", limit=9))
    for given in ("data={val_fraction: 0.3}", {"data": {"val_fraction": 0.3}}):
        assert apply(recipe, Choices(set=given)).data == DataSpec(source="folder:photos", val_fraction=0.3)
    assert apply(recipe, Choices(set="data={source: cifar10}")).data == DataSpec(source="cifar10")
    assert recipe.override("data.source=cifar10", "data={}").data.source == "cifar10"


def test_fields_with_an_option_become_it_unless_they_are_null() -> None:
    given = Choices(seed=1, set=("train.epochs=3", "train={epochs: 5, clip_norm: 1}", "train.seed=2",
                                 "data.image_size=[32, 48]", "data={limit: null, folds: null}", "train.batch_size='8'",
                                 "model.name=resnet8", "train.optimizer.lr=1e-3", "train.ema=0.9"))  # fmt: skip
    found = by_option(given)
    assert (found["epochs"], found["model"], found["seed"]) == (5, "resnet8", 1)
    assert (found["image_size"], found["batch_size"], found["lr"]) == ([32, 48], "8", "1e-3")  # text, as YAML reads it
    assert found["set"] == ["train.clip_norm=1", "train.seed=2", "data.limit=null", "data.folds=null", "train.ema=0.9"]


def test_a_size_is_a_tuple_or_a_list() -> None:
    for size in ((28, 40), [28, 40], (np.int64(28), np.int64(40))):
        assert apply(Recipe(), Choices(image_size=size)).data.image_size == (28, 40)
