"""What a caller sees: clear errors, ops of one's own, torchvision transforms, lazy imports, one compilation a
machine."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import os
import pickle
import random
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kitae.augment import cpu, tta
from kitae.augment import functional as f
from kitae.augment.engine import Augment
from kitae.augment.ops import CustomOp, Draw, RandomCrop, TransformOp
from kitae.augment.spec import OPS, AugmentSpec, MixSpec, make_op
from kitae.errors import AugmentError
from kitae.native import jit
from tests.refusals import refused

from .test_engine_executors import pictures

X = pictures(6, 3, 16, 16)
ROWS = np.arange(6)


refuse = functools.partial(refused, AugmentError)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("horizontal_flop", "horizontal_flop.*did you mean horizontal_flip"),
        ("xyz", "valid names: horizontal_flip, vertical_flip"),
        ({"random_crop": {"pad": 3}}, "random_crop: unknown parameter 'pad'; valid: size, padding, mode, fill"),
        ({"random_crop": {"padding": -1}}, "random_crop.padding: .*-1"),
        ({"rotate": {10: 3}}, "rotate.10: .*strings"),  # YAML keys may be numbers
        ({"random_crop": {"mode": "wrap"}}, "random_crop.mode"),
        ({"horizontal_flip": {"p": float("nan")}}, "horizontal_flip.p"),
        ({"horizontal_flip": {"p": 1.5}}, "horizontal_flip.p"),
        ({"color_jitter": {"hue": 0.6}}, "hue must be"),
        ({"color_jitter": {"brightness": (1.2, 0.8)}}, "brightness must be"),
        ({"rotate": {"degrees": float("inf")}}, "rotate.degrees"),
        ({"rotate": {"degrees": (5, -5)}}, "degrees must be a number of at least 0 or a rising pair, not"),
        ({"gaussian_blur": {"kernel_size": 4}}, "kernel_size must be odd"),
        ({"random_resized_crop": {"scale": (0.5, 0.2)}}, "scale must be a rising pair"),
        ({"auto_augment": {"policy": "mnist"}}, "auto_augment.policy"),
        ({"rand_augment": {"magnitude": 31}}, "magnitude must be below"),
        ({"rotate": {}, "invert": {}}, "an op must be a name or"),
        (3, "an op must be a name or"),
    ],
)
def test_wrong_ops_are_named(entry, message: str) -> None:
    refuse(message, make_op, entry)
    refuse(message, Augment, [entry])
    with pytest.raises(ValueError, match="op 2: "):
        AugmentSpec(train=["invert", entry])


def test_spec() -> None:
    spec = AugmentSpec(
        train=["horizontal_flip", {"random_crop": {"padding": 4, "mode": "reflect"}}, {"random_erasing": None}],
        mix={"mixup_alpha": 0.2},
    )
    assert [op.name for op in spec.ops()] == ["horizontal_flip", "random_crop", "random_erasing"]
    assert AugmentSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert spec.mix == MixSpec(mixup_alpha=0.2)
    assert AugmentSpec(train=[RandomCrop(padding=2)]).train == ({"random_crop": {"padding": 2}},)
    assert all(op.__doc__ for op in OPS.values())


def test_wrong_images_are_named() -> None:
    aug = Augment(["invert"])
    refuse("must be uint8, not float32", aug, X.astype(np.float32), epoch=0, index=ROWS)
    refuse("must be uint8, not float32", aug, torch.zeros(6, 3, 4, 4), epoch=0, index=ROWS)
    refuse(r"must be \[N, C, H, W\], not \[3, 16, 16\]", aug, X[0], epoch=0, index=ROWS)
    refuse(r"with 1 or 3 channels, not \[6, 16, 16, 3\]", aug, X.transpose(0, 2, 3, 1), epoch=0, index=ROWS)
    refuse("no pixels", aug, X[:, :, :0], epoch=0, index=ROWS)
    refuse("NumPy array or a torch tensor, not list", aug, X.tolist(), epoch=0, index=ROWS)
    refuse(r"one integer per sample, \[6\], not \[5\]", aug, X, epoch=0, index=ROWS[:5])
    refuse(r"one integer per sample, \[0\], not \[0, 3\]", aug, X[:0], epoch=0, index=np.zeros((0, 3), np.int64))
    refuse("index must be integer, not float64", aug, X, epoch=0, index=ROWS * 1.0)
    refuse(r"index must be integer, not \[0, \[1, 2\]\]", aug, X, epoch=0, index=[0, [1, 2]])
    refuse(r"index must be in \[0, 9223372036854775808\)", aug, X, epoch=0, index=ROWS - 1)
    refuse("epoch must be in", aug, X, epoch=-1, index=ROWS)
    refuse("epoch must be in", aug, X, epoch=2**32, index=ROWS)
    refuse("epoch must be an integer or one per sample", aug, X, epoch=[1, 2], index=ROWS)
    refuse("larger than the padded image", Augment([{"random_crop": {"size": 20}}]), X, epoch=0, index=ROWS)
    refuse("reflected padding", Augment([{"random_crop": {"padding": 16, "mode": "reflect"}}]), X, epoch=0, index=ROWS)
    refuse("needs an image larger", Augment([{"gaussian_blur": {"kernel_size": 33}}]), X, epoch=0, index=ROWS)
    refuse(
        "mean has 3 channels, the images have 1",
        Augment([], mean=(0, 0, 0), std=(1, 1, 1)),
        X[:, :1],
        epoch=0,
        index=ROWS,
    )
    assert aug(X, epoch=0, index=ROWS + 2**62).shape == X.shape


def test_wrong_settings_are_named() -> None:
    refuse("mean and std come together", Augment, [], mean=0.5)
    refuse("std must be above 0", Augment, [], mean=0.5, std=0.0)
    refuse("mean must be 1 or 3 finite", Augment, [], mean=float("nan"), std=1.0)
    refuse(r"mean is in units of \[0, 1\], not .*: divide it by 255", Augment, [], mean=(123, 116, 103), std=0.2)
    refuse("mean must be 1 or 3 finite numbers .* not x", Augment, [], mean="x", std=1.0)
    refuse("std must be 1 or 3 finite numbers", Augment, [], mean=0.5, std=[[0.5], [0.5, 0.5]])
    refuse("ops is a list of ops, not None", Augment, None)
    refuse("seed must be", Augment, [], seed=-1)
    refuse("threads must be", Augment, [], threads=0)
    refuse("num_classes must be an integer", Augment, [], num_classes="3")
    refuse("whole sides", Augment([]).plan, epoch=0, index=ROWS, size=(0, 0))
    refuse(r"size must be \(height, width\), not 32", Augment([]).plan, epoch=0, index=ROWS, size=32)
    refuse(r"size must be \(height, width\), not \(3, 8, 8\)", Augment([]).explain, epoch=0, index=0, size=(3, 8, 8))
    refuse("1 or 3 channels", Augment([]).explain, epoch=0, index=0, channels=5)
    refuse("epoch must be integer", Augment([]).explain, epoch=0.7, index=0)
    refuse(r"epoch must be one integer, not \[1\]", Augment([]).explain, epoch=[1], index=0)
    refuse(r"step must be one integer, not \[3\]", Augment([]).plan, epoch=0, index=ROWS, size=(8, 8), step=[3])
    refuse(r"epoch must be one integer, not \[1, 2\]", Augment([]).collate, epoch=[1, 2])
    refuse("executor must be one of", Augment, [], executor="gpu")
    refuse("layout must be one of", Augment, [], layout="chw")
    refuse("mix.prob: .*, not 2", Augment, [], mix={"prob": 2})
    refuse("mix: unknown parameter 'mixup'; valid: per, mixup_alpha", Augment, [], mix={"mixup": 1.0})
    refuse("mix.1: .*strings", Augment, [], mix={1: 1.0})
    refuse("mix must be a mapping or a MixSpec, .*, not True", Augment, [], mix=True)
    refuse("ops is a list", Augment, "invert")
    refuse("bfloat16 needs mean and std", Augment, [], dtype="bfloat16")
    refuse("bfloat16 needs torch", Augment([], mean=0.5, std=0.5, dtype="bfloat16"), X, epoch=0, index=ROWS)


def test_wrong_targets_are_named() -> None:
    aug = Augment([], num_classes=3, mix={})
    refuse("mix needs targets", aug, X, epoch=0, index=ROWS)
    refuse(r"targets \[N\] must be in \[0, 3\)", aug, X, ROWS, epoch=0, index=ROWS)
    refuse(r"targets must be \[N\] or \[N, K\]", aug, X, ROWS[:3], epoch=0, index=ROWS)
    refuse(r"targets must be .* with N = 6, not \[0, \[1, 2\]\]", aug, X, [0, [1, 2]], epoch=0, index=ROWS)
    refuse(r"targets \[N\] must be integer, not float64", aug, X, ROWS * 0.5, epoch=0, index=ROWS)
    refuse("targets have 4 classes, num_classes is 3", aug, X, np.ones((6, 4), np.float32), epoch=0, index=ROWS)
    refuse("need num_classes", Augment([]), X, ROWS, epoch=0, index=ROWS)
    refuse("must be integer, not str_", Augment([]), X, [*"abcdef"], epoch=0, index=ROWS)
    _, targets = Augment([], num_classes=6)(X, ROWS, epoch=0, index=ROWS)
    np.testing.assert_array_equal(targets, np.eye(6, dtype=np.float32))


def test_images_of_many_sizes_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kitae.augment.engine._MOST_SIZES", 3)
    aug = Augment(["horizontal_flip"])
    for side in (*range(4, 12), 4):
        images = pictures(2, 3, side, side)
        out = aug(images, epoch=0, index=[0, 1])
        assert aug.explain(epoch=0, index=0) in ([], ["horizontal flip"])
        np.testing.assert_array_equal(out, Augment(["horizontal_flip"])(images, epoch=0, index=[0, 1]))
        assert 0 < len(aug._stages) <= len(aug._pipelines) <= 3


def test_parameters_may_be_tensors_of_any_kind() -> None:
    box = torch.tensor([0.0, 0.0, 2.0, 3.0], dtype=torch.bfloat16, requires_grad=True)
    np.testing.assert_array_equal(f.cutmix(X, None, box), f.cutmix(X, None, [0, 0, 2, 3]))
    factor = torch.tensor(1.5, dtype=torch.bfloat16)
    np.testing.assert_array_equal(f.brightness(X, factor), f.brightness(X, 1.5))
    np.testing.assert_array_equal(f.rotate(X, 30, center=box[:2]), f.rotate(X, 30, center=(0, 0)))


def test_wrong_functional_parameters_are_named() -> None:
    refuse("factor must be", f.brightness, X, -0.1)
    refuse("factor must be", f.contrast, X, float("nan"))
    refuse(r"factor must be in \[-0.5, 0.5\]", f.hue, X, 0.6)
    refuse(r"factor must be a number or one per sample, \[6\]", f.brightness, X, [1.0, 2.0])
    refuse(r"factor must be a number or one per sample, \[6\], not \[1.0, \[2.0\]\]", f.brightness, X, [1.0, [2.0]])
    refuse("bits must be whole", f.posterize, X, 2.5)
    refuse("bits must be in", f.posterize, X, 9)
    refuse("interpolation must be", f.rotate, X, 10, "cubic")
    refuse("the window must lie inside", f.resized_crop, X, 4, 4, 16, 4, 8)
    refuse("the rectangle must lie inside", f.erase, X, 0, 10, 4, 7)
    refuse("fill must be", f.rotate, X, 10, fill=300)
    refuse("fill must be .*'red'", f.rotate, X, 10, fill="red")
    for key in (-1, 0.5, 2**53 + 1):
        refuse("key must be (whole|in)", f.gaussian_noise, X, 1.0, key=key)
    refuse(r"key must be in \[0, 9007199254740991\]", f.gaussian_noise, X, 1.0, key=2**53)
    f.gaussian_noise(X, 1.0, key=[2**53 - 1, 0, 1, 2, 3, 4])
    for size in ((7.9, 3), 0, float("nan"), (4, 4, 4), ()):
        refuse(f"size must be one or two whole numbers from 1 on, not {re.escape(str(size))}", f.resize, X, size)
    assert f.resize(X, np.array(3)).shape[2:] == (3, 3)
    refuse("mean and std come together", f.normalize, X, None, 0.5)
    refuse(r"center must be \(x, y\)", f.affine, X, center=(float("nan"), 0.0))
    refuse(r"center must be \(x, y\)", f.rotate, X, 10, center=3)
    refuse("center must be numbers", f.rotate, X, 10, center=("left", "top"))
    refuse("box must be numbers", f.cutmix, X, None, "left")
    refuse("box must be numbers", f.cutmix, X, None, [[0, 0], [1]])
    refuse("coefficients must be numbers", f.perspective, X, coefficients="wide")
    refuse("startpoints must be numbers", f.perspective, X, [[0, 0], [1]], [[0, 0], [1]])
    refuse("size must be numbers", f.resize, X, [[4], [4, 4]])
    refuse("perspective takes", f.perspective, X)
    corners = np.array([[0, 0], [15, 0], [15, 15], [0, 15]])
    same = [1, 0, 0, 0, 1, 0, 0, 0]
    refuse("perspective takes", f.perspective, X, corners, coefficients=same)
    refuse("perspective takes", f.perspective, X, endpoints=corners, coefficients=same)
    refuse(r"coefficients .* must be \[8\], .*, not \[3\]", f.perspective, X, coefficients=[1, 2, 3])
    refuse(r"one row per sample, \[6, 8\], not \[2, 8\]", f.perspective, X, [corners] * 2, corners)
    refuse("startpoints are of 2 samples, endpoints of 6", f.perspective, X, [corners] * 2, [corners] * 6)
    refuse(
        "three corners lie on a line",
        f.perspective,
        X,
        [[0, 0], [1, 0], [1, 1], [0, 1]],
        [[0, 0], [1, 1], [2, 2], [3, 3]],
    )
    refuse("value must be a level or one per channel", f.erase, X, 0, 0, 4, 4, value=300)
    refuse("executor must be", f.invert, X, executor="numba")
    refuse("unknown test-time augmentation", tta.views, X, "flips")
    for kind in ("none", "flip", "shift"):
        refuse("NumPy array or a torch tensor, not list", tta.views, X.tolist(), kind)
        refuse(r"must be \[N, C, H, W\], not \[3, 16, 16\]", tta.views, X[0], kind)


def test_integers_of_numpy_are_sizes() -> None:
    np.testing.assert_array_equal(f.resize(X, np.int64(8)), f.resize(X, 8))
    np.testing.assert_array_equal(f.resize(X, (np.int32(8), np.uint8(4))), f.resize(X, (8, 4)))


def test_levels_of_numpy_and_torch_fill() -> None:
    for level in (np.uint8(3), np.int64(3), torch.tensor(3)):
        np.testing.assert_array_equal(f.rotate(X, 10, fill=level), f.rotate(X, 10, fill=3))
        np.testing.assert_array_equal(f.erase(X, 0, 0, 4, 4, level), f.erase(X, 0, 0, 4, 4, 3))


def test_soft_targets_in_half_precision() -> None:
    aug = Augment([], mean=0.5, std=0.5)
    for dtype in (torch.bfloat16, torch.float16):
        _, targets = aug(torch.from_numpy(X), torch.eye(6, dtype=dtype), epoch=0, index=ROWS)
        assert torch.equal(targets, torch.eye(6))


def test_what_collate_cannot_use_is_named() -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    rows = [(image, 0.7, 0), (image, 1.6, 1)]
    refuse("labels must be integers, not torch", Augment([], mean=0.5, std=0.5).collate(), rows)
    refuse("integer targets need num_classes", Augment([], mix={}).collate(), [(image, 0, 0), (image, 1, 1)])
    refuse(r"not \[3, 6, 8\] and \[3, 8, 8\]", Augment([]).collate(), [(image, 0, 0), (image[:, 2:], 1, 1)])
    refuse(r"not \[1, 8, 8\] and \[3, 8, 8\]: resize or convert", Augment([]).collate(), [(image, 0), (image[:1], 1)])
    collate = Augment([], num_classes=2).collate()
    refuse(r"labels must be integers, or .* of one length, not 'cat'", collate, [(image, "cat", 0), (image, "dog", 1)])
    refuse(r"labels must be .*, not \[0.5, 0.5\]", collate, [(image, [0.5, 0.5], 0), (image, [1.0], 1)])
    refuse("images must be .*, not Image", collate, [(Image.new("RGB", (8, 8)), 0, 0)])
    refuse("must yield", collate, [{"image": image, "label": 0, "index": 0}])
    for wrong, kind in ((0.7, "float64"), ("a.png", "str")):
        refuse(f"index must be integer, not {kind}", collate, [(image, 0, wrong), (image, 1, wrong)])
        refuse(f"index must be integer, not {kind}", collate, [(image, wrong)])
    assert collate([(image, 0, torch.tensor(0)), (image, 1, np.int64(1))])[1].tolist() == [[1, 0], [0, 1]]


@pytest.mark.filterwarnings("error")
def test_collate_takes_flipped_and_read_only_arrays() -> None:
    read_only = X[1].copy()
    read_only.flags.writeable = False
    images = Augment([]).collate()([(X[0, :, :, ::-1], 0), (read_only, 1)])
    np.testing.assert_array_equal(images.numpy(), [X[0, :, :, ::-1], X[1]])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda collate: pickle.loads(pickle.dumps(collate))])
def test_a_forked_worker_sees_the_epoch_of_a_copied_collate(copied) -> None:
    collate = copied(Augment([]).collate(epoch=3))
    child = multiprocessing.get_context("fork").Process(target=setattr, args=(collate, "epoch", 7))
    child.start()
    child.join(60)
    assert collate.epoch == 7


def test_collate_leaves_arrays_on_the_cpu_whatever_torch_s_default_device() -> None:
    """Workers that were forked cannot use a GPU."""
    with torch.device("meta"):
        collate = Augment([]).collate(epoch=3)
        images, labels = collate([(x, row, row) for row, x in enumerate(X)])
    assert collate.epoch == 3
    np.testing.assert_array_equal(images.numpy(), X)
    assert labels.tolist() == list(range(6))


def test_torch_in_torch_out() -> None:
    x = torch.from_numpy(X)
    for call in (f.invert, lambda y: f.rotate(y, torch.tensor([1.0, 2, 3, 4, 5, 6]))):
        out = call(x)
        assert isinstance(out, torch.Tensor)
        assert isinstance(call(X), np.ndarray)
        assert torch.equal(out, torch.from_numpy(call(X)))
        assert torch.equal(x, torch.from_numpy(X))


class Shift(CustomOp):
    """Adds a keyed number to all levels."""

    name = "shift"
    most: int = 9

    def draw(self, key, height, width):
        assert (height, width) == (16, 16)
        return {"by": key.integers(0, 1, self.most + 1), "on": key.uniform(1) < 0.5}

    def apply(self, images, by, on):
        return images + (by * on).to(torch.uint8).view(-1, 1, 1, 1)


@pytest.mark.parametrize("executor", ["cpu", "torch"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_op_of_ones_own(executor: str, place: int) -> None:
    ops: list = ["horizontal_flip", {"random_crop": {"padding": 2}}]
    ops.insert(place, Shift(most=5))
    aug = Augment(ops, seed=2, mean=0.0, std=1.0 / 255, executor=executor)
    out = aug(X, epoch=1, index=ROWS)
    others = [op for op in ops if not isinstance(op, Shift)]
    for row in range(6):  # sample by sample gives the same
        np.testing.assert_array_equal(aug(X[row : row + 1], epoch=1, index=ROWS[row : row + 1]), out[row : row + 1])
    assert not np.array_equal(out, Augment(others, seed=2, mean=0.0, std=1.0 / 255)(X, epoch=1, index=ROWS))
    assert any("Shift(most=5)" in line for line in aug.explain(epoch=1, index=0, size=(16, 16)))
    refuse("cannot be replayed", aug.replay, X, aug.plan(epoch=1, index=ROWS, size=(16, 16)))


def test_an_op_of_ones_own_is_not_part_of_a_recipe() -> None:
    for op in (Shift(most=5), TransformOp(transform=torch.neg)):
        with pytest.raises(ValueError, match=r"op 2: .* is not an op of recipes; pass it to Augment"):
            AugmentSpec(train=["invert", op])


def test_an_op_that_returns_something_else_is_named() -> None:
    class Broken(CustomOp):
        name = "broken"

        def apply(self, images):
            return images.float()

    refuse("broken: apply must return uint8", Augment([Broken()]), X, epoch=0, index=ROWS)


def test_torchvision_transforms() -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    aug = Augment([v2.RandomPhotometricDistort(p=1.0), v2.RandomRotation(30)], mean=0.5, std=0.5)
    out = aug(X, epoch=0, index=ROWS)
    np.testing.assert_array_equal(aug(X[3:5], epoch=0, index=ROWS[3:5]), out[3:5])
    assert not np.array_equal(out, aug(X, epoch=1, index=ROWS))
    assert "RandomPhotometricDistort" in aug.explain(epoch=0, index=0, size=(16, 16))[0]


def noisy(image: torch.Tensor) -> torch.Tensor:
    """Draws from the generators of torch, Python and NumPy."""
    return image + int(torch.randint(0, 80, (1,))) + random.randrange(80) + np.random.randint(80)


def test_threads_do_not_take_each_other_s_random_numbers() -> None:
    aug, rows = Augment([noisy]), np.arange(200)
    images = np.zeros((200, 1, 4, 4), np.uint8)
    expected = aug(images, epoch=0, index=rows)
    before = torch.get_rng_state(), random.getstate()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: aug(images, epoch=0, index=rows), range(12)))
    assert all(np.array_equal(out, expected) for out in found)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_what_cannot_be_drawn_is_named() -> None:
    draw = Draw(0, 0, ROWS, 64)
    refuse(r"high must be above low, by 2\*\*31 at most, not 9 and 9", draw.integers, 0, 9, 9)
    refuse("not 0 and 4294967296", draw.integers, 0, 0, 2**32)
    assert set(draw.integers(0, 9, 10).tolist()) == {9}


def test_what_is_explained_is_of_the_size_that_was_augmented() -> None:
    aug = Augment(["random_erasing"], seed=0)
    assert aug.explain(epoch=0, index=2) == aug.explain(epoch=0, index=2, size=(224, 224))
    aug(np.zeros((4, 3, 32, 32), np.uint8), epoch=0, index=np.arange(4))
    assert aug.explain(epoch=0, index=2) == aug.explain(epoch=0, index=2, size=(32, 32))


def test_a_size_may_be_an_array() -> None:
    aug = Augment(["random_erasing"], seed=0)
    assert aug.explain(epoch=0, index=2, size=np.array([32, 32])) == aug.explain(epoch=0, index=2, size=(32, 32))
    refuse("1 or 3 channels", aug.explain, epoch=0, index=0, channels=0)


def test_pickled_pipelines_work() -> None:
    aug = Augment(["horizontal_flip", {"rotate": {}}], seed=4)
    expected = aug(X, epoch=0, index=ROWS)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(aug))(X, epoch=0, index=ROWS), expected)


@pytest.mark.parametrize("kind", ["none", "flip", "shift", "scale", "full"])
def test_views(kind: str) -> None:
    for x in (X, torch.from_numpy(X[:, :1])):
        views = list(tta.views(x, kind))
        assert len(views) == {"none": 1, "flip": 2, "shift": 5, "scale": 3, "full": 14}[kind]
        assert all(type(v) is type(x) and v.shape == x.shape and v.dtype == x.dtype for v in views)
        assert np.array_equal(views[0], x)
        assert len({np.asarray(v).tobytes() for v in views}) == len(views)


def run(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}, check=True
    )


def test_recipes_are_checked_without_torch_or_numba() -> None:
    code = """
import sys
from kitae.augment.spec import AugmentSpec
import kitae.augment
AugmentSpec(train=["horizontal_flip", {"augmix": {}}], mix={})
assert not {"torch", "numba", "scipy"} & set(sys.modules), set(sys.modules)
import torch
from kitae.augment import functional
functional.rotate(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 20.0, executor="torch")
assert "numba" not in sys.modules  # nothing is compiled for given numbers in torch
"""
    run(code)


FORK = """
import os, threading, time
import numpy as np
from kitae.augment import Augment, cpu

aug = Augment(["horizontal_flip", "invert"], mean=0.5, std=0.5)
images, index = np.zeros((64, 3, 32, 32), np.uint8), np.arange(64)  # large enough for memory that is used again
expected = np.array(aug(images, epoch=0, index=index))
held, done = threading.Event(), threading.Event()


def busy():
    cpu._lock.acquire()
    held.set()
    done.wait()


threading.Thread(target=busy, daemon=True).start()
assert held.wait(60)
child = os.fork()
if child == 0:
    again = aug(images, epoch=0, index=index)
    fresh = Augment(["solarize"])(images, epoch=0, index=index)  # compiles, or loads
    os._exit(0 if np.array_equal(again, expected) and fresh.shape == images.shape else 1)
for _ in range(600):
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid:
        break
    time.sleep(0.1)
else:
    os.kill(child, 9)
    raise SystemExit("the child waits for a thread that it does not have")
assert os.waitstatus_to_exitcode(status) == 0
"""


def test_a_batch_is_shared_where_that_is_faster() -> None:
    pace, now = cpu.Pace(), 0.0
    chosen = []
    for _ in range(500):  # one thread takes 1 s; sharing at first half of it, later ten times as long
        shared = pace.share()
        took = (0.5 if now < 100 else 10.0) if shared else 1.0
        pace.took(shared, took, 10)
        now += took
        chosen.append((now, shared))
    early = [shared for then, shared in chosen if then < 100]
    late = [shared for then, shared in chosen if then > 120]
    assert early[:2] == [False, True]
    assert sum(early) > 0.9 * len(early)
    assert 0 < sum(late) < 0.01 * len(late)


def test_both_ways_are_tried_whatever_comes_between_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[int] = []
    share_parts = cpu.share_parts

    def noting(function: Any, arguments: Any, count: int, parts: int, *rest: Any) -> None:
        ways.append(parts)
        share_parts(function, arguments, count, parts, *rest)

    augment = Augment(["horizontal_flip"], threads=2)
    images = np.zeros((64, 3, 32, 32), np.uint8)
    monkeypatch.setattr(cpu, "share_parts", noting)
    for epoch in range(3):  # a step of training takes far longer than the batch
        augment(images, epoch=epoch, index=np.arange(64))
        time.sleep(0.1)
    assert ways[:2] == [1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_other_threads_augment() -> None:
    run(FORK)


FORKED = """
import multiprocessing
import numpy as np
import torch

def augment():
    from kitae.augment import Augment
    aug = Augment(["horizontal_flip"], threads=2)
    for epoch in range(2):  # alone at first, then shared
        aug(np.zeros((64, 3, 32, 32), np.uint8), epoch=epoch, index=np.arange(64))

torch.set_num_threads(2)
torch.ones(1000, 1000).exp()  # threads, which the child does not have
child = multiprocessing.get_context("fork").Process(target=augment)
child.start()
child.join(60)
alive = child.is_alive()
child.kill()
raise SystemExit("the child waits for threads that it does not have" if alive else child.exitcode)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_first_augmentation_after_a_fork() -> None:
    run(FORKED)


COMPILE = """
import numpy as np
from kitae.augment import Augment
from kitae.native import jit
aug = Augment(["horizontal_flip", "invert"], mean=0.5, std=0.5)
aug(np.zeros((2, 3, 8, 8), np.uint8), epoch=0, index=np.arange(2))
print(jit.compiled)
"""
KERNELS = """
from kitae.augment.kernels import color
from kitae.native import jit, link
for kernel in (color.invert, color.solarize):
    jit.native(kernel, link.OP)
print(jit.compiled)
"""


@pytest.mark.parametrize("code", [KERNELS, pytest.param(COMPILE, marks=pytest.mark.slow)], ids=["kernels", "all"])
def test_compiled_once_a_machine(tmp_path, code: str) -> None:
    """Two kernels; with the loop that calls them it takes ten seconds."""
    first = run(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert int(first.stdout) > 1
    assert first.stderr.count("compiling kernels") == 1
    second = run(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert int(second.stdout) == 0
    assert second.stderr == ""


def test_machine_code_of_a_moved_function_is_not_found() -> None:
    """Its file imports the module that the function was compiled in, which may be gone."""

    def function(x: int) -> int:
        return x

    before = jit._fingerprint(function, set())
    function.__module__ = "kitae.elsewhere"
    assert jit._fingerprint(function, set()) != before
