"""Kernels follow addresses, so what reaches them is checked, and they stay inside what they are given."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from kitae.augment import Augment, Program, functional
from kitae.augment.ops.base import ERASE, ERASE_AFTER, NOP
from kitae.augment.spec import OPS, MixSpec
from kitae.errors import AugmentError

from .test_engine_plan import BUSY

INDEX = np.arange(8)
SIZE = {"size": (32, 32)}


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_op_replays_its_own_plan(name: str) -> None:
    augment = Augment([{name: BUSY.get(name, {})}], seed=1, mean=0.5, std=0.5)
    images = np.random.default_rng(0).integers(0, 256, (400, 3, 32, 32), np.uint8)
    index = np.arange(len(images))  # so many that policies draw all of their ops
    program = augment.plan(epoch=0, index=index, **SIZE)
    np.testing.assert_array_equal(augment.replay(images, program), augment(images, epoch=0, index=index))


@pytest.mark.parametrize(
    ("planned", "size", "replayed"),
    [
        (["invert"], (32, 32), ["horizontal_flip"]),
        ([{"random_crop": {"padding": 4}}], (64, 64), [{"random_crop": {"padding": 4}}]),
        ([{"random_erasing": {"p": 1.0}}], (200, 200), [{"random_erasing": {"p": 1.0}}]),
        ([{"random_resized_crop": {"size": 32}}], (200, 200), [{"random_resized_crop": {"size": 32}}]),
    ],
)
def test_a_program_of_another_pipeline_or_size_is_refused(planned: Any, size: Any, replayed: Any) -> None:
    program = Augment(planned, seed=3).plan(epoch=0, index=INDEX, size=size)
    with pytest.raises(AugmentError, match="was not made by this pipeline"):
        Augment(replayed, seed=3).replay(np.zeros((8, 3, 32, 32), np.uint8), program)


def test_a_program_with_numbers_that_are_none_is_refused() -> None:
    augment = Augment([{"random_crop": {"padding": 4}}])
    program = augment.plan(epoch=0, index=INDEX, **SIZE)
    args = program.args.copy()
    args[0, 0, 0] = np.nan
    with pytest.raises(AugmentError, match="was not made by this pipeline"):
        augment.replay(np.zeros((8, 3, 32, 32), np.uint8), Program(program.codes, args, None))


@pytest.mark.parametrize("side", [-1, 0, 2, 65, np.nan])
def test_a_blur_of_a_size_that_the_kernel_cannot_have_is_refused(side: float) -> None:
    augment = Augment(["gaussian_blur"])
    program = augment.plan(epoch=0, index=INDEX, size=(80, 80))
    args = program.args.copy()
    args[3, 0, 1] = side
    with pytest.raises(AugmentError, match="was not made by this pipeline"):
        augment.replay(np.zeros((8, 3, 80, 80), np.uint8), Program(program.codes, args))


@pytest.mark.parametrize("op", [{"random_resized_crop": {"size": 64}}, {"random_crop": {"size": 16}}])
def test_a_step_that_changes_the_size_cannot_be_left_out(op: Any) -> None:
    """The steps after it would read an image of another size than there is."""
    augment = Augment([op, "invert"])
    program = augment.plan(epoch=0, index=INDEX, **SIZE)
    codes = program.codes.copy()
    codes[3, 0] = NOP
    with pytest.raises(AugmentError, match="was not made by this pipeline"):
        augment.replay(np.zeros((8, 3, 32, 32), np.uint8), Program(codes, program.args))


def test_a_box_of_the_result_lies_inside_it() -> None:
    augment = Augment([{"random_erasing": {"p": 1.0}}, {"random_crop": {"size": 8}}], mean=0.5, std=0.5)
    program = augment.plan(epoch=0, index=INDEX, **SIZE)
    codes = np.where(program.codes == ERASE, ERASE_AFTER, program.codes)
    with pytest.raises(AugmentError, match="was not made by this pipeline"):
        augment.replay(np.zeros((8, 3, 32, 32), np.uint8), Program(codes, program.args))


def guarded(shape: tuple[int, ...], end: bool) -> tuple[NDArray[np.uint8], mmap.mmap]:
    """An array that starts (or ends) exactly where memory that may not be touched begins."""
    page, count = mmap.PAGESIZE, int(np.prod(shape))
    pages = -(-count // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for edge in (start, start + (pages + 1) * page):
        assert protect(ctypes.c_void_p(edge), ctypes.c_size_t(page), 0) == 0
    offset = page + (pages * page - count if end else 0)
    return np.frombuffer(memory, np.uint8, count, offset).reshape(shape), memory


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("name", ["sharpness", "brightness", "gaussian_blur", "equalize", "rotate", "horizontal_flip"])
def test_ops_stay_inside_the_batch(name: str, end: bool) -> None:
    images, _memory = guarded((1, 1, 64, 64), end)
    arguments: dict[str, Any] = {
        "sharpness": {"factor": 2.0}, "brightness": {"factor": 1.3}, "gaussian_blur": {"kernel_size": 5, "sigma": 1.0},
        "rotate": {"degrees": 20.0},
    }.get(name, {})  # fmt: skip
    getattr(functional, name)(images, **arguments)  # a touch outside would end the process


def test_more_boxes_than_are_kept_are_all_erased() -> None:
    images = np.full((4, 3, 32, 32), 200, np.uint8)
    cutouts = [{"cutout": {"size": 2}}] * 9
    results = [
        Augment(cutouts, mean=0.5, std=0.5, executor=executor)(images, epoch=0, index=np.arange(4))
        for executor in ("cpu", "torch")
    ]
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)


@pytest.mark.parametrize("executor", ["cpu", "torch"])
def test_a_later_box_covers_an_earlier_one(executor: Literal["cpu", "torch"]) -> None:
    ops = [{"cutout": {"size": 64}}, {"cutout": {"size": 64, "value": 255}}]
    augment = Augment(ops, mean=0.5, std=0.5, executor=executor)
    assert (augment(np.zeros((4, 3, 32, 32), np.uint8), epoch=0, index=np.arange(4)) == 1.0).all()


@pytest.mark.parametrize("mix", [None, MixSpec(per="sample", cutmix_alpha=0)])
def test_boxes_of_a_normalised_image_are_erased_without_normalisation(mix: MixSpec | None) -> None:
    images = np.random.default_rng(0).integers(1, 256, (8, 3, 32, 32), np.uint8)
    ops, targets = [{"random_erasing": {"p": 1.0}}], np.eye(8, dtype=np.float32)
    program = Augment(ops, mean=0.5, std=0.5, mix=mix).plan(epoch=0, index=INDEX, **SIZE)
    ours, theirs = (
        Augment(ops, mix=mix, executor=executor).replay(images, program, targets)[0] for executor in ("cpu", "torch")
    )
    assert (ours == 0).any()
    np.testing.assert_array_equal(ours, theirs)


def test_an_extreme_window_has_at_least_a_pixel() -> None:
    augment = Augment([{"random_resized_crop": {"size": 32, "ratio": (100.0, 200.0), "scale": (1.0, 1.0)}}])
    out = augment(np.full((4, 3, 32, 32), 9, np.uint8), epoch=0, index=np.arange(4))
    assert (out == 9).all()
