"""MixUp, CutMix, erasing and normalisation against torchvision 0.29 v2, and the order in which they come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from kitae.augment import Augment
from kitae.augment import functional as F
from kitae.augment import ops as o
from kitae.errors import AugmentError
from tests.augment.parity import BATCHES, EXECUTORS, Batch, batch, one_by_one
from tests.augment.parity import one_thread as one_thread

pytestmark = [pytest.mark.parametrize("executor", EXECUTORS)]
every = pytest.mark.parametrize("name", BATCHES)

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CLASSES = 7


def colour(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return MEAN[:channels], STD[:channels]


def normalised(images: Batch) -> NDArray[np.float32]:
    """torchvision's to_dtype and normalize."""
    mean, std = colour(images.shape[1])
    scaled = tv.to_dtype(torch.from_numpy(images.copy()), torch.float32, scale=True)
    return np.asarray(tv.normalize(scaled, list(mean), list(std)))


def close(ours: Any, reference: NDArray[np.float32], what: str) -> None:
    """Within a few units in the last place of float32."""
    np.testing.assert_allclose(np.asarray(ours), reference, rtol=2e-6, atol=2e-6, err_msg=what)


@every
def test_normalize(name: str, executor: str) -> None:
    images = batch(name)
    mean, std = colour(images.shape[1])
    close(F.normalize(images, mean, std, executor=executor), normalised(images), name)
    aug: Any = Augment([], mean=mean, std=std, executor=executor)
    close(aug(images, epoch=0, index=np.arange(len(images))), normalised(images), name)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("op", [{"random_erasing": {"p": 1.0}}, {"cutout": {"size": 9}}], ids=["erasing", "cutout"])
def test_erasing_comes_after_normalisation(op: dict[str, Any], channels: int, executor: Any) -> None:
    """The order ToDtype, Normalize, RandomErasing(value=0): zeros in the normalised image, the mean colour."""
    images = batch("rgb 33x47" if channels == 3 else "grey 33x47")
    mean, std = colour(channels)
    aug = Augment([op], seed=2, mean=mean, std=std, executor=executor)
    index = np.arange(len(images))
    program = aug.plan(epoch=1, index=index, size=(33, 47), channels=channels)
    assert (program.codes == o.ERASE_AFTER).all()
    reference = normalised(images)
    for i in range(len(images)):
        top, left, height, width = (int(v) for v in program.args[i, 0, :4])
        erased = tv.erase(torch.from_numpy(reference[i]), top, left, height, width, torch.zeros(1, 1, 1))
        reference[i] = erased.numpy()
    ours = aug(images, epoch=1, index=index)
    close(ours, reference, "erasing")
    assert ((ours == 0).all(1).sum((1, 2)) >= program.args[:, 0, 2] * program.args[:, 0, 3]).all()


def test_erasing_with_a_value_comes_before_normalisation(executor: Any) -> None:
    images = batch("rgb 33x47")
    op = {"random_erasing": {"p": 1.0, "value": (10, 200, 77)}}
    aug = Augment([op], seed=2, mean=MEAN, std=STD, executor=executor)
    index = np.arange(len(images))
    boxes = aug.plan(epoch=1, index=index, size=(33, 47)).args[:, 0, :4].astype(int).tolist()
    levels = torch.tensor([10, 200, 77], dtype=torch.uint8).view(3, 1, 1)
    reference = one_by_one(lambda x, *box: tv.erase(x, *box, levels), images, boxes)
    close(aug(images, epoch=1, index=index), normalised(reference), "erasing")


def test_the_standard_pipeline_is_torchvisions(executor: Any) -> None:
    """Crop, flip, jitter, normalise, erase, with the drawn parameters, in torchvision's order of its own steps."""
    images = batch("rgb 32")
    jitter = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}
    ops = [{"random_crop": {"padding": 4}}, "horizontal_flip", {"color_jitter": jitter}, {"random_erasing": {"p": 0.5}}]
    aug = Augment(ops, seed=5, mean=MEAN, std=STD, executor=executor)
    codes = {o.BRIGHTNESS: "brightness", o.CONTRAST: "contrast", o.SATURATION: "saturation", o.HUE: "hue"}
    worst, equal, values = 0.0, 0, 0
    for epoch in range(8):
        index = np.arange(len(images)) + 100
        program = aug.plan(epoch=epoch, index=index, size=(32, 32))
        out = aug(images, epoch=epoch, index=index)
        for i in range(len(images)):
            x = torch.from_numpy(images[i].copy())
            after: list[tuple[int, ...]] = []
            for code, args in zip(program.codes[i].tolist(), program.args[i].tolist(), strict=True):
                if code == o.CROP:
                    x = tv.crop(tv.pad(x, [4, 4, 4, 4]), int(args[0]) + 4, int(args[1]) + 4, 32, 32)
                elif code == o.HFLIP:
                    x = tv.horizontal_flip(x)
                elif code in codes:
                    x = getattr(tv, f"adjust_{codes[code]}")(x, args[0])
                elif code == o.ERASE_AFTER:
                    after.append(tuple(int(v) for v in args[:4]))
                else:
                    assert code == o.NOP
            y = torch.from_numpy(normalised(x.numpy()[None])[0])
            for top, left, height, width in after:
                y = tv.erase(y, top, left, height, width, torch.zeros(1, 1, 1))
            levels = np.abs(out[i] - y.numpy()) * 255 * np.array(STD)[:, None, None]
            worst, equal, values = (
                max(worst, float(levels.max())),
                equal + int((levels < 1e-3).sum()),
                values + y.numel(),
            )
    # Four ops of one level each; hue and contrast may stretch what came before.
    assert worst < 6, f"up to {worst:.2f} levels off"
    assert equal / values > 0.99, f"only {equal / values:.3%} of the values equal torchvision's"


# Mixing ---------------------------------------------------------------------------------------------------------------


def pairs(values: Any) -> Any:
    """Each pair of positions (2k, 2k + 1) alone, where torchvision's roll by one is the exchange."""
    return [values[k : k + 2] for k in range(0, len(values) // 2 * 2, 2)]


def labels_of(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(3).integers(0, CLASSES, count)


def one_hot(labels: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.eye(CLASSES, dtype=np.float32)[labels]


def mixup_theirs(x: torch.Tensor, y: torch.Tensor, lam: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """torchvision's MixUp with a given lambda."""
    mix = v2.MixUp(num_classes=CLASSES)
    params = {"labels": y, "batch_size": len(y), "lam": lam}
    return mix.transform(x, params).numpy(), mix.transform(y, params).numpy()


def cutmix_theirs(x: torch.Tensor, y: torch.Tensor, box: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """torchvision's CutMix with a given box."""
    mix = v2.CutMix(num_classes=CLASSES)
    x1, y1, x2, y2 = box
    lam = float(1.0 - (x2 - x1) * (y2 - y1) / (x.shape[-1] * x.shape[-2]))
    params = {"labels": y, "batch_size": len(y), "box": (x1, y1, x2, y2), "lam_adjusted": lam}
    return mix.transform(x, params).numpy(), mix.transform(y, params).numpy()


@every
@pytest.mark.parametrize("lam", [0.0, 0.25, 0.5, 0.731, 1.0])
def test_mixup(lam: float, name: str, executor: str) -> None:
    """On uint8 ours rounds halves up; torchvision mixes floats, so it gets the levels as floats."""
    images = batch(name)
    labels = labels_of(len(images))
    mine, targets = F.mixup(images, one_hot(labels), lam, executor=executor)
    levels = torch.from_numpy(images.astype(np.float32))
    for k, (x, y) in enumerate(zip(pairs(levels), pairs(torch.from_numpy(labels)), strict=True)):
        reference, mixed = mixup_theirs(x, y, lam)
        exact = np.abs(mine[2 * k : 2 * k + 2] - reference)
        assert exact.max() <= 0.5 + 1e-3, f"mixup {lam}: {exact.max()} levels off, and rounding explains only half"
        np.testing.assert_allclose(targets[2 * k : 2 * k + 2], mixed, atol=1e-6)


@every
def test_cutmix(name: str, executor: str) -> None:
    images = batch(name)
    n, _, h, w = images.shape
    labels, rng = labels_of(n), np.random.default_rng(13)
    boxes = [(0, 0, w, h), (3, 5, 3, 5)]
    for _ in range(3):
        x1, y1 = int(rng.integers(0, w)), int(rng.integers(0, h))
        boxes.append((x1, y1, int(rng.integers(x1, w + 1)), int(rng.integers(y1, h + 1))))
    for box in boxes:
        mine, targets = F.cutmix(images, one_hot(labels), box, executor=executor)
        both = zip(pairs(torch.from_numpy(images.copy())), pairs(torch.from_numpy(labels)), strict=True)
        for k, (x, y) in enumerate(both):
            reference, mixed = cutmix_theirs(x, y, box)
            np.testing.assert_array_equal(mine[2 * k : 2 * k + 2], reference)
            np.testing.assert_allclose(targets[2 * k : 2 * k + 2], mixed, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), [("rgb 32", "mixup"), ("rgb 33x47", "cutmix"), ("grey 33x47", "both")])
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_mixing_of_normalised_batches(per: str, kind: str, name: str, executor: Any) -> None:
    """The whole call: drawn lambda and box of each sample, torchvision's arithmetic on its normalised floats."""
    images = batch(name)
    n, c, h, w = images.shape
    mean, std = colour(c)
    alphas = {"mixup": (1.0, 0.0), "cutmix": (0.0, 1.0), "both": (0.4, 1.0)}[kind]
    mix = {"mixup_alpha": alphas[0], "cutmix_alpha": alphas[1], "prob": 0.9, "per": per}
    aug = Augment([], seed=8, mean=mean, std=std, mix=mix, num_classes=CLASSES, executor=executor)
    labels = labels_of(n)
    index = np.arange(n) * 3
    program = aug.plan(epoch=6, index=index, size=(h, w), channels=c)
    assert program.mix is not None
    assert (program.mix[:, 0] > 0).any()
    out, targets = aug(images, labels, epoch=6, index=index)
    floats = normalised(images)
    for i in range(n):
        partner = i ^ 1
        order = [i, partner]
        x, y = torch.from_numpy(floats[order]), torch.from_numpy(labels[order])
        what, lam, *box = program.mix[i].tolist()
        if what == 0:
            reference, mixed = floats[order], one_hot(labels[order])
        elif what == 1:
            reference, mixed = mixup_theirs(x, y, lam)
        else:
            reference, mixed = cutmix_theirs(x, y, [int(v) for v in box])
            assert lam == 1.0 - (box[2] - box[0]) * (box[3] - box[1]) / (h * w)
        close(out[i], reference[0], f"{kind} sample {i}")
        np.testing.assert_allclose(targets[i], mixed[0], atol=1e-6)


@pytest.mark.parametrize("box", [(0.5, 0, 3, 4), (0, 0, 3), (0, 0, 5, 4), (0, 0, float("nan"), 4)])
def test_a_box_that_is_none_is_refused(box: Any, executor: Any) -> None:
    """Of half a pixel, the targets would say another share than the image shows."""
    with pytest.raises(AugmentError, match="box must be"):
        F.cutmix(np.zeros((2, 3, 4, 4), np.uint8), np.eye(2, dtype=np.float32), box, executor=executor)
