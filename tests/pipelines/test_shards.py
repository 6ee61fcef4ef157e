"""Training on shards and on stores larger than memory: the same loop, the same promises."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from kitae.data import loader
from kitae.data.encoded import Encoded
from kitae.data.order import Blocks
from kitae.data.remote import ShardCache
from kitae.errors import DataError
from kitae.pipelines.choices import Choices
from kitae.pipelines.plan import plan
from kitae.pipelines.setup import Setup
from kitae.pipelines.train import train
from kitae.recipe import Recipe
from kitae.reporting.results import RunRecord
from kitae.reporting.samples import Samples
from kitae.run import Run
from kitae.training import distributed
from kitae.training.batches import augmented_batches, epoch_shape
from kitae.training.distributed import World
from tests.data.shard_files import pack, samples, shards
from tests.images import encode
from tests.memory import anonymous_memory, needs_status
from tests.refusals import refused
from tests.test_resume import assert_same, go, outcome

pytestmark = pytest.mark.usefixtures("own_cache")

CROPS = "augment.train=[{random_resized_crop: {scale: [0.3, 1]}}, {horizontal_flip: {}}]"
TINY = (
    "model.name=resnet8", "model.width=8", "train.epochs=1", "train.batch_size=16", "train.precision=fp32",
    "train.threads=1", "data.image_size=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shards(tmp_path_factory.mktemp("shards"), 8, 20)


def tiny(*fields: str) -> Recipe:
    return Recipe.load("fashion-mini").override(*TINY, *fields)


@pytest.fixture(scope="module")
def run(source: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "run"
    return train(tiny(f"data.source={source}", "data.shuffle_buffer=32", CROPS), out)


def test_a_run_on_shards_is_a_run(run: Run) -> None:
    assert 0 <= run.evaluation()["test"]["accuracy"] <= 1
    assert len(run.predictions()) == 32
    setup = Setup.of(run)
    assert isinstance(setup.store.images, Encoded)
    assert setup.crop is not None
    assert [op.name for op in setup.augment(0).ops] == ["horizontal_flip"]
    assert setup.blocks is not None
    assert setup.blocks.lanes == 4
    assert setup.blocks.buffer == 32
    assert Samples.find(RunRecord.open(run)) is not None


@pytest.mark.slow
def test_a_killed_training_on_shards_resumes_bit_exactly(source: str, tmp_path: Path) -> None:
    fields = (*TINY[3:], f"data.source={source}", "data.limit=null", "data.shuffle_buffer=32", "train.epochs=2", CROPS)
    assert go(tmp_path / "whole", "never", 1, *fields) == 0
    assert go(tmp_path / "cut", "step", 9, *fields) == -signal.SIGKILL
    assert go(tmp_path / "cut", "never", 1, *fields) == 0
    assert_same(outcome(tmp_path / "cut"), outcome(tmp_path / "whole"))


def test_validation_shards_validate(tmp_path: Path) -> None:
    train_shards = shards(tmp_path, 2, 20, name="train")
    pack(tmp_path / "val-0.tar", samples(900, 6))
    setup = Setup.without_run(tiny(f"data.source={train_shards}::{tmp_path}/val-0.tar"))
    assert setup.splits.val.tolist() == list(range(40, 46))


def test_each_process_opens_shards_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes, opened = 16, set()
    shards(tmp_path, 2 * processes, 4, name="train")
    for number in range(processes):  # they validate, and give the lanes nothing
        pack(tmp_path / f"val-{number}.tar", samples(900 + 2 * number, 2))
    pack(tmp_path / "test-0.tar", samples(950, 2))
    setup = Setup.without_run(
        tiny(
            f"data.source=webdataset:{tmp_path}/*.tar", "train.batch_size=32", "data.shuffle_buffer=32",
            "data.channels=3", "data.normalize={mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}",
        )
    )  # fmt: skip
    read = ShardCache.read

    def noted(cache: ShardCache, shard: str, offset: int, size: int) -> bytes:
        opened.add(Path(shard).stem)
        return read(cache, shard, offset, size)

    monkeypatch.setattr(ShardCache, "read", noted)
    monkeypatch.setattr(distributed, "gather_rows", lambda local, rows, total, world: np.zeros((total, 2), np.float32))
    augment, shape = setup.augment(0).prepare(*setup.drawn), epoch_shape(len(setup.images), setup.recipe.train)
    model = setup.initial_model(World(0, 1, torch.device("cpu")))
    trained, validated = [], []
    for rank in range(processes):
        world = World(rank, processes, torch.device("cpu"))
        opened.clear()
        assert len(list(augmented_batches(setup.images, augment, shape, world, seed=0, epoch=0, first=0))) == 4
        for thread in threading.enumerate():
            if thread.name == "kitae-ahead":
                thread.join()
        trained += opened
        opened.clear()
        setup.validator(world)(model)
        validated += opened
    assert len(trained) == len(set(trained)) == 2 * processes
    assert len(validated) == len(set(validated)) == 3 * processes


@pytest.mark.slow
@needs_status
def test_twice_the_images_take_no_more_memory(tmp_path: Path) -> None:
    """118 MB of pixels go by, in 8 shards, of which 256 images at a time are shuffled."""
    pixels = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    for shard in range(8):
        files = []
        for number in range(300 * shard, 300 * shard + 300):
            files.append((f"{number:04d}.jpg", encode(np.roll(pixels, number, axis=1), "JPEG", quality=95)))
            files.append((f"{number:04d}.cls", b"%d" % (number % 2)))
        pack(tmp_path / f"train-{shard}.tar", files)
    pack(tmp_path / "val-0.tar", samples(9000, 6))
    pack(tmp_path / "test-0.tar", samples(9500, 6))
    setup = Setup.without_run(
        tiny(
            f"data.source=webdataset:{tmp_path}/*.tar", "data.shuffle_buffer=256", "data.channels=3", CROPS,
            "data.normalize={mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}",
        )
    )  # fmt: skip
    shape = epoch_shape(len(setup.images), setup.recipe.train)
    augment, world = setup.augment(0).prepare(*setup.drawn), World(0, 1, torch.device("cpu"))
    memory = {}
    for step, _ in enumerate(augmented_batches(setup.images, augment, shape, world, seed=0, epoch=0, first=0), 1):
        if step in (50, 100, 150):
            memory[step] = anonymous_memory()
    assert step == 150
    assert max(memory.values()) - memory[50] < 2 << 20, memory


def test_an_unreadable_image_stops_a_training_with_its_name(tmp_path: Path) -> None:
    broken = [part for name in ("x", "y") for part in ((f"{name}.png", b"\x89PNG"), (f"{name}.cls", b"1"))]
    pack(tmp_path / "train-0.tar", [*samples(0, 16), *broken])
    pack(tmp_path / "val-0.tar", samples(900, 6))
    pack(tmp_path / "test-0.tar", samples(950, 6))
    wanted = tiny(
        f"data.source=webdataset:{tmp_path}/{{train,val,test}}-0.tar",
        "data.normalize={mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}", "data.channels=3", CROPS,
    )  # fmt: skip
    refused(DataError, r"train-0\.tar/[xy]", train, wanted, tmp_path / "run")


def test_shards_are_planned_for_as_other_data(source: str) -> None:
    planned = plan(source, None, Choices())
    assert planned.recipe.data.source == source


def test_a_store_larger_than_memory_is_shuffled_by_blocks_and_the_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Recipe.load("fashion-mini").override("data.limit=200", "data.shuffle_buffer=32", *TINY[:-1])
    begun = train(wanted, tmp_path / "full")
    monkeypatch.setattr(loader, "memory_bytes", lambda: 1 << 20)
    assert Setup.of(begun).blocks is None, "a run that began with a full shuffle goes on with it"
    setup = Setup.without_run(wanted)
    assert isinstance(setup.blocks, Blocks)
    assert setup.images.ahead is not None
    assert sorted(setup.images.order(0, 0)) == sorted(setup.splits.train)
    run = train(wanted, tmp_path / "run")
    assert Run.open(run.path).recipe.data.order == "blocks"
    monkeypatch.undo()
    assert train(wanted, run.path, resume=True).finished  # on a machine with more memory it is the same run
    full = Setup.without_run(wanted.override("data.order=full"))
    assert full.blocks is None
    assert not np.array_equal(full.images.order(0, 0), setup.images.order(0, 0))


def test_all_processes_shuffle_as_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their machines may differ in memory, or in their images."""
    wanted = Recipe.load("fashion-mini").override("data.limit=200", "data.shuffle_buffer=32", *TINY[:-1])
    world, large = World(1, 2, torch.device("cpu")), Setup.without_run(wanted)
    assert large.blocks is None
    monkeypatch.setattr(loader, "memory_bytes", lambda: 1 << 20)
    small = Setup.without_run(wanted)
    assert small.blocks is not None
    for first, other, order in ((large, small, "full"), (small, large, "blocks")):
        said = first.store.fingerprint, order
        monkeypatch.setattr(distributed, "from_main", lambda mine, world, said=said: said)
        agreed = other.agreed(world)
        assert np.array_equal(agreed.images.order(0, 0), first.images.order(0, 0))
        assert not np.array_equal(agreed.images.order(0, 0), other.images.order(0, 0))
    monkeypatch.setattr(distributed, "from_main", lambda mine, world: ("of other images", "full"))
    refused(DataError, "^fashion-mini: process 1 reads other images than process 0; copy", large.agreed, world)
