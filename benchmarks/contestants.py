"""The works of the augmentation benchmark, and how each library does them.

Run as a program, this file is a worker: one process that holds one contestant, asked over a line protocol by
`augment.py` (one JSON object a line on stdin, one answer a line on stdout; what libraries print goes to stderr).

    {"do": "build", "id": 3, "work": "standard", "size": 32, "threads": 1, "variant": {...}}
    {"do": "round", "id": 3, "seconds": 0.2, "at": 1234.5}     run until that long has passed, start at that clock time
    {"do": "clear"}

It needs nothing of this package except in the contestants that are this package, so that it runs in the environments of
the peers (see `peers.sh`).

A job is the same for everyone: uint8 images in memory, in the form that the contestant likes best and prepared before
the clock starts (PIL images, tensors, HWC arrays, one uint8 array), become normalised float32 [n, 3, H, W], every image
by its own random draw. Drawing, normalising and collecting into a batch are inside the clock. So is looking at the
result: its type and shape, and a sum over every 32nd row, which must be finite. Every value of the first result, and of
some images of the last of each round, is checked when the clock has stopped.

Peers that work image by image write their results into one batch that is allocated once. Where nothing has to happen to
an image after normalisation, they may also normalise a small batch at once; the faster way is found before the first
round and named in the results. (That is kinder to them than what their documentation suggests.) A batch has 512 images
of 32 px or 64 of 224 px; chains of torch ops get 16 of 224 px, which are as fast or faster for them than more.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CLASSES = 10
MEAN_LEVELS = tuple(round(255 * m) for m in MEAN)


class MissingError(Exception):
    """The library cannot do this work; the message says why."""


@dataclass(frozen=True)
class Work:
    """One thing to do.

    Attributes:
        name: as on the command line.
        kind: `op` (one op alone, always applied) or `headline`.
        text: what it is, for a reader.
        ops: for an image side, our ops as a recipe has them.
        mix: our mixing.
        source: for an image side, the side of the images that go in.
    """

    name: str
    kind: str
    text: str
    ops: Callable[[int], list[Any]] = lambda size: []
    mix: dict[str, float] | None = None
    source: Callable[[int], int] = lambda size: size


def _op(name: str, text: str, **parameters: Any) -> Work:
    return Work(name, "op", text, lambda size: [{name: parameters}])


def larger(size: int) -> int:
    """The side of the images that a random resized crop starts from: 256 for 224, 40 for 32."""
    return {32: 40, 224: 256}.get(size, size * 8 // 7)


JITTER = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}

WORKS = [
    Work(
        "standard",
        "headline",
        "random crop (padding 4), flip, color jitter (.2, .2, .2, .1), normalise, erasing (.5)",
        lambda size: [
            {"random_crop": {"padding": 4}},
            "horizontal_flip",
            {"color_jitter": JITTER},
            {"random_erasing": {"p": 0.5}},
        ],
    ),
    Work(
        "auto_augment",
        "headline",
        "AutoAugment, CIFAR-10 policy",
        lambda size: [{"auto_augment": {"policy": "cifar10"}}],
    ),
    Work("rand_augment", "headline", "RandAugment (2 ops, magnitude 9 of 31)", lambda size: ["rand_augment"]),
    Work("trivial_augment_wide", "headline", "TrivialAugmentWide", lambda size: ["trivial_augment_wide"]),
    Work("augmix", "headline", "AugMix (severity 3, width 3, depth 1 to 3)", lambda size: ["augmix"]),
    Work(
        "mixup",
        "headline",
        "MixUp (alpha 1) of images and targets",
        mix={"mixup_alpha": 1.0, "cutmix_alpha": 0.0, "per": "sample"},
    ),
    Work(
        "cutmix",
        "headline",
        "CutMix (alpha 1) of images and targets",
        mix={"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "per": "sample"},
    ),
    Work(
        "random_resized_crop",
        "headline",
        "random resized crop, bilinear (256 to 224, 40 to 32)",
        lambda size: [{"random_resized_crop": {"size": size}}],
        source=larger,
    ),
    _op("horizontal_flip", "horizontal flip", p=1.0),
    _op("vertical_flip", "vertical flip", p=1.0),
    _op("random_crop", "random crop, padding 4", padding=4),
    _op("rotate", "rotation up to 15 degrees, nearest", degrees=15.0),
    _op(
        "affine",
        "affine (15 degrees, .1, .9 to 1.1, shear 10), bilinear",
        degrees=15.0,
        translate=(0.1, 0.1),
        scale=(0.9, 1.1),
        shear=10.0,
        interpolation="bilinear",
    ),
    _op("perspective", "perspective (.5), bilinear", distortion_scale=0.5, p=1.0),
    _op("color_jitter", "color jitter (.2, .2, .2, .1)", **JITTER),
    _op("brightness", "brightness .2", amount=0.2),
    _op("contrast", "contrast .2", amount=0.2),
    _op("saturation", "saturation .2", amount=0.2),
    _op("hue", "hue .1", amount=0.1),
    _op("grayscale", "grayscale", p=1.0),
    _op("gaussian_blur", "Gaussian blur, 5 x 5, sigma .1 to 2", kernel_size=5, sigma=(0.1, 2.0)),
    _op("gaussian_noise", "Gaussian noise, sigma .1", sigma=0.1),
    _op("salt_and_pepper", "salt and pepper, 2 %", amount=0.02),
    _op("posterize", "posterize to 4 bits", bits=4, p=1.0),
    _op("solarize", "solarize at 128", threshold=128.0, p=1.0),
    _op("autocontrast", "autocontrast", p=1.0),
    _op("equalize", "equalize", p=1.0),
    _op("invert", "invert", p=1.0),
    _op("sharpness", "sharpness 2", factor=2.0, p=1.0),
    _op("random_erasing", "random erasing", p=1.0),
    Work("cutout", "op", "cutout of half the side", lambda size: [{"cutout": {"size": size // 2}}]),
]
BY_NAME = {work.name: work for work in WORKS}

# One deterministic function of the image: a call on a whole batch does the same job as one call an image.
DETERMINISTIC = {
    "horizontal_flip", "vertical_flip", "grayscale", "posterize", "solarize", "autocontrast", "equalize", "invert",
    "sharpness",
}  # fmt: skip


@dataclass
class Step:
    """What a contestant built: a call that makes some images, and what a reader should know about it."""

    run: Callable[[int], tuple[Any, Any]]  # a running number -> float32 [n, 3, H, W], targets or None
    note: str = ""
    same_job: bool = True  # False: it draws once for the whole batch, so it is shown but not ranked


Variant = dict[str, Any]


class Contestant:
    """A library in one configuration.

    Attributes:
        name, label, configuration: for the command line and for readers.
        packages: whose versions are reported.
        environment: its folder under .venv-peers; empty for the environment of this package.
        all_cores: ways to use all cores that are tried: `processes` of one thread each, one process with `threads`.
        peer: whether it is someone else's.
    """

    name = ""
    label = ""
    configuration = ""
    packages: ClassVar[tuple[str, ...]] = ()
    environment = ""
    all_cores: ClassVar[tuple[str, ...]] = ("processes",)
    peer = True

    def __init__(self, pool: Pool, rank: int) -> None:
        self.pool, self.rank = pool, rank
        self._kept: dict[Any, Any] = {}

    def kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returned the first time: images in the contestant's own form. The last two are kept."""
        if key not in self._kept:
            while len(self._kept) > 1:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = make()
        return self._kept[key]

    def pil(self, side: int) -> list[Any]:
        """The pool as PIL images."""
        from PIL import Image

        return self.kept(side, lambda: [Image.fromarray(x) for x in self.interleaved(side)])  # type: ignore[no-any-return]

    def interleaved(self, side: int) -> list[np.ndarray]:
        """The pool as arrays uint8 [H, W, 3]."""
        return self.kept(  # type: ignore[no-any-return]
            (side, "hwc"), lambda: list(self.pool.array(side).transpose(0, 2, 3, 1).copy())
        )

    def prepare(self) -> None:
        """Import and settle the library."""

    def use_threads(self, threads: int) -> None:
        """Called before each round, outside the clock."""

    @staticmethod
    def variants(work: str) -> list[Variant]:
        """Configurations among which the fastest is taken."""
        return [{}]

    def build(self, work: str, size: int, threads: int, variant: Variant) -> Step:
        """Get ready for a work. Raises MissingError where the library has no such thing."""
        raise NotImplementedError


@dataclass
class Pool:
    """The images that all contestants see, and how many of them a call takes."""

    folder: Path
    quick: bool = False
    _arrays: dict[int, np.ndarray] = field(default_factory=dict)

    def array(self, side: int) -> np.ndarray:
        """uint8 [P, 3, side, side], in memory, contiguous."""
        if side not in self._arrays:
            self._arrays[side] = np.ascontiguousarray(np.load(self.folder / f"images-{side}.npy"))
        return self._arrays[side]

    def batch(self, size: int) -> int:
        """Images a call of a batched library: a training batch."""
        if self.quick:
            return 16
        return 512 if size <= 64 else 64

    def torch_batch(self, size: int) -> int:
        """The same for chains of torch ops, which at 224 px are as fast or faster with fewer."""
        return min(self.batch(size), 512 if size <= 64 else 16)

    def unit(self, size: int) -> int:
        """Images between two looks at the clock, and normalised at once, for image-wise libraries."""
        return 8 if size > 64 or self.quick else 64

    def labels(self, side: int) -> np.ndarray:
        """int64 [P]."""
        return np.arange(len(self.array(side))) % CLASSES


def slices(count: int, size: int) -> Callable[[int], slice]:
    """The running number of a call -> which images it takes, going round the pool."""
    turns = count // size
    return lambda k: slice(k % turns * size, k % turns * size + size)


# Ours ----------------------------------------------------------------------------------------------------------------


class Kitae(Contestant):
    name, label, packages, all_cores, peer = "kitae", "Kitae, CPU executor", ("kitae", "numba"), ("threads",), False
    configuration = "Augment(ops, mean, std, executor='cpu', threads=n) on uint8 NumPy batches; one process"
    executor = "cpu"

    def build(self, work: str, size: int, threads: int, variant: Variant) -> Step:
        from kitae.augment import Augment

        w = BY_NAME[work]
        aug = Augment(
            w.ops(size),
            seed=self.rank,
            mean=MEAN,
            std=STD,
            mix=w.mix,
            num_classes=CLASSES,
            threads=threads,
            executor=self.executor,  # type: ignore[arg-type]
        )
        images, labels = self.pool.array(w.source(size)), self.pool.labels(w.source(size))
        index = np.arange(len(images))
        convert: Callable[[Any], Any] = lambda x: x  # noqa: E731
        n = self.pool.batch(size)
        if self.executor == "torch":
            import torch

            convert, n = torch.from_numpy, self.pool.torch_batch(size)
        images, labels = convert(images), convert(labels)
        take = slices(len(images), n)

        def run(k: int) -> tuple[Any, Any]:
            at = take(k)
            epoch = k * n // len(index)
            if w.mix is None:
                return aug(images[at], epoch=epoch, index=index[at]), None
            return aug(images[at], labels[at], epoch=epoch, index=index[at])

        return Step(run)


class KitaeTorch(Kitae):
    name, label, packages = "kitae-torch", "Kitae, torch executor", ("kitae", "torch")
    configuration = "Augment(ops, mean, std, executor='torch') on uint8 CPU tensors; torch threads = cores"
    executor = "torch"

    def use_threads(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)


class Copy(Contestant):
    """Not a library: the least that anyone must do."""

    name, label, packages, peer = "copy", "the limit: a normalising copy", ("numba",), False
    # Waking a thread takes longer than half the copy of a batch of small images: a limit must not pay for that.
    all_cores = ("threads", "processes")
    configuration = (
        "Numba loop, uint8 -> float32, x * scale + shift, into one batch allocated once; plain threads,"
        " or one process a core"
    )

    def prepare(self) -> None:
        import numba

        @numba.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
        def loop(source, out, scale, shift, start, stop):  # type: ignore[no-untyped-def]
            for i in range(start, stop):
                for c in range(3):
                    a, b = scale[c], shift[c]
                    plane, target = source[i, c], out[i, c]
                    for p in range(plane.shape[0]):
                        target[p] = np.float32(plane[p]) * a + b

        self.loop = loop

    def build(self, work: str, size: int, threads: int, variant: Variant) -> Step:
        from concurrent.futures import ThreadPoolExecutor

        loop = self.loop
        images = self.pool.array(size).reshape(-1, 3, size * size)
        n = self.pool.batch(size)
        out = np.empty((n, 3, size * size), np.float32)
        result = out.reshape(n, 3, size, size)
        scale = np.array([1 / (255 * s) for s in STD], np.float32)
        shift = np.array([-m / s for m, s in zip(MEAN, STD, strict=True)], np.float32)
        cuts = [n * t // threads for t in range(threads + 1)]
        helpers = ThreadPoolExecutor(threads - 1) if threads > 1 else None
        take = slices(len(images), n)

        def run(k: int) -> tuple[Any, Any]:
            source = images[take(k)]
            waiting = [
                helpers.submit(loop, source, out, scale, shift, cuts[t], cuts[t + 1])  # type: ignore[union-attr]
                for t in range(1, threads)
            ]
            loop(source, out, scale, shift, cuts[0], cuts[1])
            for w in waiting:
                w.result()
            return result, None

        return Step(run)


# torchvision ---------------------------------------------------------------------------------------------------------


def torchvision_ops(t: Any, work: str, size: int, v1: bool) -> tuple[list[Any], list[Any]]:
    """The transforms before and after normalisation, of `torchvision.transforms` or `.v2`."""
    from torchvision.transforms import AutoAugmentPolicy, InterpolationMode

    bilinear = InterpolationMode.BILINEAR
    jitter = tuple(JITTER.values())
    makers: dict[str, Callable[[], list[Any]]] = {
        "standard": lambda: [t.RandomCrop(size, padding=4), t.RandomHorizontalFlip(), t.ColorJitter(*jitter)],
        "auto_augment": lambda: [t.AutoAugment(AutoAugmentPolicy.CIFAR10)],
        "rand_augment": lambda: [t.RandAugment(2, 9)],
        "trivial_augment_wide": lambda: [t.TrivialAugmentWide()],
        "augmix": lambda: [t.AugMix()],
        "random_resized_crop": lambda: [t.RandomResizedCrop(size, antialias=True)],
        "horizontal_flip": lambda: [t.RandomHorizontalFlip(1.0)],
        "vertical_flip": lambda: [t.RandomVerticalFlip(1.0)],
        "random_crop": lambda: [t.RandomCrop(size, padding=4)],
        "rotate": lambda: [t.RandomRotation(15)],
        "affine": lambda: [t.RandomAffine(15, (0.1, 0.1), (0.9, 1.1), 10, interpolation=bilinear)],
        "perspective": lambda: [t.RandomPerspective(0.5, p=1.0)],
        "color_jitter": lambda: [t.ColorJitter(*jitter)],
        "brightness": lambda: [t.ColorJitter(brightness=0.2)],
        "contrast": lambda: [t.ColorJitter(contrast=0.2)],
        "saturation": lambda: [t.ColorJitter(saturation=0.2)],
        "hue": lambda: [t.ColorJitter(hue=0.1)],
        "grayscale": lambda: [t.RandomGrayscale(1.0)],
        "gaussian_blur": lambda: [t.GaussianBlur(5, (0.1, 2.0))],
        "posterize": lambda: [t.RandomPosterize(4, 1.0)],
        "solarize": lambda: [t.RandomSolarize(128, 1.0)],
        "autocontrast": lambda: [t.RandomAutocontrast(1.0)],
        "equalize": lambda: [t.RandomEqualize(1.0)],
        "invert": lambda: [t.RandomInvert(1.0)],
        "sharpness": lambda: [t.RandomAdjustSharpness(2.0, 1.0)],
    }
    erasers: dict[str, Callable[[], list[Any]]] = {
        "standard": lambda: [t.RandomErasing(0.5, inplace=True)],
        "random_erasing": lambda: [t.RandomErasing(1.0, inplace=True)],
        "cutout": lambda: [t.RandomErasing(1.0, (0.25, 0.25), (1.0, 1.0), inplace=True)],
    }
    if not v1:
        makers["gaussian_noise"] = lambda: [t.GaussianNoise(0.0, 0.1)]
    if work not in makers and work not in erasers:
        raise MissingError("v1 has no such transform" if v1 and work == "gaussian_noise" else "no such transform")
    none: Callable[[], list[Any]] = list
    return makers.get(work, none)(), erasers.get(work, none)()


CUTOUT_NOTE = "a square inside the image (its random erasing), ours may leave it"


class _Torch(Contestant):
    """Everything whose results are torch tensors."""

    def prepare(self) -> None:
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(self.rank)
        torch.set_grad_enabled(False)

    def use_threads(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)

    def _constants(self) -> tuple[Any, Any]:
        """For levels: float32 [1, 3, 1, 1] to subtract and to multiply with."""
        import torch

        mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
        return mean * 255, 1 / (255 * std)

    def _image_wise(
        self,
        size: int,
        one: Callable[[int], Any],
        count: int,
        levels: str = "",
        after: Callable[[Any], Any] | None = None,
    ) -> Callable[[int], tuple[Any, Any]]:
        """A step of `unit` images.

        Args:
            one: number of an image in the pool -> the image: float32 tensor [3, H, W], normalised; or levels.
            levels: of uint8 levels, their form: `chw`, a tensor; or `hwc`, what NumPy sees as [H, W, 3]. They are
                normalised together.
            after: changes one normalised image of levels in place.
        """
        import torch

        unit, total = self.pool.unit(size), max(self.pool.batch(size), self.pool.unit(size))
        out = torch.empty((total, 3, size, size))
        shape = (unit, size, size, 3) if levels == "hwc" else (unit, 3, size, size)
        together = torch.empty(shape, dtype=torch.uint8)
        array, planes = together.numpy(), together.permute(0, 3, 1, 2) if levels == "hwc" else together
        subtract, multiply = self._constants()
        source, target = slices(count, unit), slices(total, unit)

        def run(k: int) -> tuple[Any, Any]:
            rows, first = out[target(k)], source(k).start
            if not levels:
                for j in range(unit):
                    rows[j].copy_(one(first + j))
                return rows, None
            for j in range(unit):
                if levels == "hwc":
                    array[j] = one(first + j)
                else:
                    together[j].copy_(one(first + j))
            rows.copy_(planes)
            rows.sub_(subtract).mul_(multiply)
            if after is not None:
                for j in range(unit):
                    after(rows[j])
            return rows, None

        return run


NORMALISE: list[Variant] = [{"normalise": "image"}, {"normalise": "batch"}]


class TorchvisionV1(_Torch):
    name, label, packages = "torchvision-v1", "torchvision v1 on PIL images", ("torchvision", "torch", "pillow")
    configuration = (
        "torchvision.transforms on PIL images made beforehand, ToTensor and Normalize(inplace) or the normalisation of"
        " a small batch, RandomErasing(inplace); one process a core, one thread each"
    )

    @staticmethod
    def variants(work: str) -> list[Variant]:
        return NORMALISE

    def build(self, work: str, size: int, threads: int, variant: Variant) -> Step:
        import torchvision.transforms as t

        before, after = torchvision_ops(t, work, size, v1=True)
        batch_wise = variant["normalise"] == "batch"
        images = self.pil(BY_NAME[work].source(size))
        whole = [*before, t.ToTensor(), t.Normalize(MEAN, STD, inplace=True), *after]
        chain = t.Compose(before if batch_wise else whole)
        erase = t.Compose(after) if after and batch_wise else None
        run = self._image_wise(size, lambda i: chain(images[i]), len(images), "hwc" if batch_wise else "", erase)
        return Step(run, CUTOUT_NOTE if work == "cutout" else "")


class TorchvisionV2(_Torch):
    name, label, packages = "torchvision-v2", "torchvision v2 on tensors", ("torchvision", "torch")
    configuration = (
        "torchvision.transforms.v2 on uint8 tensors, image by image; [C, H, W] contiguous or seen from [H, W, C];"
        " ToDtype(scale) and Normalize(inplace) or the normalisation of a small batch; one process a core"
    )

    @staticmethod
    def variants(work: str) -> list[Variant]:
        return [{**n, "memory": m} for n in NORMALISE for m in ("chw", "hwc")]

    def build(self, work: str, size: int, threads: int, variant: Variant) -> Step:
        import torch
        from torchvision.transforms import v2 as t

        if work in ("mixup", "cutmix"):
            raise MissingError("works on batches; see torchvision-v2-batch")
        before, after = torchvision_ops(t, work, size, v1=False)
        batch_wise = variant["normalise"] == "batch"
        pixels = torch.from_numpy(self.pool.array(BY_NAME[work].source(size)))
        if variant["memory"] == "hwc":
            pixels = self.kept(len(pixels[0, 0]), lambda: pixels.contiguous(memory_format=torch.channels_last))
        images = list(pixels)
        rest = (
            [] if batch_wise else [t.ToDtype(torch.float32, scale=True), t.Normalize(MEAN, STD, inplace=True), *after]
        )
        steps = [*before, *rest]
        chain: Any = t.Compose(steps) if steps else lambda x: x
        erase = t.Compose(after) if after and batch_wise else None
        run = self._image_wise(size, lambda i: chain(images[i]), len(images), "chw" if batch_wise else "", erase)
        return Step(run, CUTOUT_NOTE if work == "cutout" else "")


class TorchvisionV2Batch(_Torch):
    name, label, packages = "torchvision-v2-batch", "torchvision v2 on batches", ("torchvision", "torch")
    configuration = (
        "torchvision.transforms.v2 on uint8 batches [N, C, H, W]: one draw for the whole batch, so another job wherever"
        " something is drawn (shown, not ranked); torch threads = cores, or one process a core"
    )
    all_cores = ("threads", "processes")

    def build(self, work: str, size: int, threads: int, variant: Variant) -> Step:
        import torch
        from torchvision.transforms import v2 as t

        pixels = torch.from_numpy(self.pool.array(BY_NAME[work].source(size)))
        take = slices(len(pixels), self.pool.torch_batch(size))
        rest = [t.ToDtype(torch.float32, scale=True), t.Normalize(MEAN, STD, inplace=True)]
        if work in ("mixup", "cutmix"):
            labels = torch.from_numpy(self.pool.labels(size))
            chain = t.Compose(rest)
            mix = (t.MixUp if work == "mixup" else t.CutMix)(alpha=1.0, num_classes=CLASSES)
            return Step(
                lambda k: mix(chain(pixels[take(k)]), labels[take(k)]),
                "one lambda (and box) a batch: torchvision has no other",
            )
        before, after = torchvision_ops(t, work, size, v1=False)
        chain = t.Compose([*before, *rest, *after])
        same = work in DETERMINISTIC
        return Step(lambda k: (chain(pixels[take(k)]), None), "" if same else "one draw a batch: another job", same)


# timm ----------------------------------------------------------------------------------------------------------------


class Timm(_Torch):
    name, label, packages = "timm", "timm", ("timm", "torch", "pillow")
    configuration = (
        "its own ops, on PIL images one by one (policies, crops) or on float batches (erasing, mixing by element; its"
        " mixing collate on uint8 too); normalised by image or by small batch; one process a core, one thread each"
    )

    @staticmethod
    def variants(work: str) -> list[Variant]:
        if work in ("mixup", "cutmix"):
            return [{"mix": "batch"}, {"mix": "collate"}]
        return [{}] if work == "random_erasing" else NORMALISE

    def build(self, work: str, size: int, threads: int, variant: Variant) -> Step:
        import torch
        import torchvision.transforms as t
        from timm.data import auto_augment as aa
        from timm.data import transforms as timm_transforms
        from timm.data.mixup import FastCollateMixup, Mixup
        from timm.data.random_erasing import RandomErasing

        subtract, multiply = self._constants()
        array = self.pool.array(BY_NAME[work].source(size))
        unit = self.pool.unit(size)
        take = slices(len(array), unit)
        total = max(self.pool.batch(size), unit)
        out, target = torch.empty((total, 3, size, size)), slices(total, unit)

        def normalised(levels: Any, k: int) -> Any:
            return out[target(k)].copy_(levels).sub_(subtract).mul_(multiply)

        if work in ("mixup", "cutmix"):
            alphas = {"mixup_alpha": float(work == "mixup"), "cutmix_alpha": float(work == "cutmix")}
            options: dict[str, Any] = {
                **alphas, "prob": 1.0, "mode": "elem", "label_smoothing": 0.0, "num_classes": CLASSES,
            }  # fmt: skip
            pixels, labels = torch.from_numpy(array), torch.from_numpy(self.pool.labels(size))
            if variant["mix"] == "batch":
                mixup = Mixup(**options)
                return Step(lambda k: mixup(normalised(pixels[take(k)], k), labels[take(k)]))
            collate = FastCollateMixup(**options)
            rows = list(zip(array, self.pool.labels(size).tolist(), strict=True))

            def collated(k: int) -> tuple[Any, Any]:
                levels, targets = collate(rows[take(k)])
                return normalised(levels, k), targets

            return Step(collated)
        if work == "random_erasing":
            erase = RandomErasing(probability=1.0, mode="const", device="cpu")
            pixels = torch.from_numpy(array)
            return Step(lambda k: (erase(normalised(pixels[take(k)], k)), None))
        hparams = {"translate_const": int(size * 0.45), "img_mean": MEAN_LEVELS}
        note = ""
        if work == "rand_augment":
            op, note = (
                aa.rand_augment_transform("rand-m9-n2-mstd0", hparams),
                "its own set of 15 ops, magnitude 9 of 10",
            )
        elif work == "augmix":
            op = aa.augment_and_mix_transform("augmix-m3-w3", hparams)
        elif work == "random_resized_crop":
            op = timm_transforms.RandomResizedCropAndInterpolation(size, interpolation="bilinear")
        elif work == "auto_augment":
            raise MissingError("has AutoAugment's ImageNet policy, not CIFAR-10's")
        else:
            raise MissingError("no op of its own (it uses torchvision's)")
        images = self.pil(BY_NAME[work].source(size))
        batch_wise = variant["normalise"] == "batch"
        chain = t.Compose([op] if batch_wise else [op, t.ToTensor(), t.Normalize(MEAN, STD, inplace=True)])
        run = self._image_wise(size, lambda i: chain(images[i]), len(images), "hwc" if batch_wise else "")
        return Step(run, note)


# kornia --------------------------------------------------------------------------------------------------------------


class Kornia(_Torch):
    name, label, packages, environment = "kornia", "kornia, batched", ("kornia", "torch"), "kornia"
    configuration = (
        "kornia.augmentation modules in nn.Sequential on float batches, a draw a sample, gradients off; conversion from"
        " uint8 inside the clock; torch threads = cores, or one process a core"
    )
    all_cores = ("threads", "processes")

    @staticmethod
    def variants(work: str) -> list[Variant]:
        if work == "random_resized_crop":
            return [{"cropping_mode": "slice"}, {"cropping_mode": "resample"}]
        return [{}]

    def build(self, work: str, size: int, threads: int, variant: Variant) -> Step:
        import kornia.augmentation as K
        import torch
        from kornia.augmentation import auto

        pixels = torch.from_numpy(self.pool.array(BY_NAME[work].source(size)))
        take = slices(len(pixels), self.pool.torch_batch(size))
        jitter = tuple(JITTER.values())
        normalise = K.Normalize(torch.tensor(MEAN), torch.tensor(STD))
        box = (size, size)

        def floats(k: int) -> Any:
            return pixels[take(k)].to(torch.float32).div_(255)

        if work in ("mixup", "cutmix"):
            labels = torch.from_numpy(self.pool.labels(size))
            keys = ["input", "class"]
            mix = (
                K.RandomMixUpV2(torch.tensor([0.0, 1.0]), p=1.0, data_keys=keys)
                if work == "mixup"
                else K.RandomCutMixV2(p=1.0, data_keys=keys, use_correct_lambda=True)
            )

            def mixed(k: int) -> tuple[Any, Any]:
                images, targets = mix(normalise(floats(k)), labels[take(k)])
                return images, targets.reshape(len(images), -1)

            return Step(mixed, "targets as (label, label of the partner, lambda)")
        makers: dict[str, Callable[[], list[Any]]] = {
            "standard": lambda: [K.RandomCrop(box, padding=4), K.RandomHorizontalFlip(), K.ColorJitter(*jitter)],
            "auto_augment": lambda: [auto.AutoAugment("cifar10")],
            "rand_augment": lambda: [auto.RandAugment(n=2, m=9)],
            "trivial_augment_wide": lambda: [auto.TrivialAugment()],
            "random_resized_crop": lambda: [K.RandomResizedCrop(box, **variant)],
            "horizontal_flip": lambda: [K.RandomHorizontalFlip(1.0)],
            "vertical_flip": lambda: [K.RandomVerticalFlip(1.0)],
            "random_crop": lambda: [K.RandomCrop(box, padding=4)],
            "rotate": lambda: [K.RandomRotation(15.0, resample="NEAREST", p=1.0)],
            "affine": lambda: [K.RandomAffine(15.0, (0.1, 0.1), (0.9, 1.1), 10.0, p=1.0)],
            "perspective": lambda: [K.RandomPerspective(0.5, p=1.0)],
            "color_jitter": lambda: [K.ColorJitter(*jitter)],
            "brightness": lambda: [K.RandomBrightness((0.8, 1.2))],
            "contrast": lambda: [K.RandomContrast((0.8, 1.2))],
            "saturation": lambda: [K.RandomSaturation((0.8, 1.2))],
            "hue": lambda: [K.RandomHue((-0.1, 0.1))],
            "grayscale": lambda: [K.RandomGrayscale(p=1.0)],
            "gaussian_blur": lambda: [K.RandomGaussianBlur(5, (0.1, 2.0), p=1.0)],
            "gaussian_noise": lambda: [K.RandomGaussianNoise(0.0, 0.1, p=1.0)],
            "salt_and_pepper": lambda: [K.RandomSaltAndPepperNoise((0.02, 0.02), (0.5, 0.5), p=1.0)],
            "posterize": lambda: [K.RandomPosterize((4, 4), p=1.0)],
            "solarize": lambda: [K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=1.0)],
            "autocontrast": lambda: [K.RandomAutoContrast(p=1.0)],
            "equalize": lambda: [K.RandomEqualize(p=1.0)],
            "invert": lambda: [K.RandomInvert(p=1.0)],
            "sharpness": lambda: [K.RandomSharpness((2.0, 2.0), p=1.0)],
        }
        erasers: dict[str, Callable[[], list[Any]]] = {
            "standard": lambda: [K.RandomErasing(p=0.5)],
            "random_erasing": lambda: [K.RandomErasing(p=1.0)],
            "cutout": lambda: [K.RandomErasing((0.25, 0.25), (1.0, 1.0), p=1.0)],
        }
        if work not in makers and work not in erasers:
            raise MissingError("no such augmentation")
        none: Callable[[], list[Any]] = list
        chain = torch.nn.Sequential(*makers.get(work, none)(), normalise, *erasers.get(work, none)())
        note = {
            "auto_augment": "one sub-policy a batch: another job",
            "rand_augment": "the same ops for the whole batch: another job",
            "trivial_augment_wide": "one op a batch, not the wide space: another job",
            "standard": "one order of the jitter a batch",
            "color_jitter": "one order of the jitter a batch",
            "cutout": CUTOUT_NOTE,
            "random_resized_crop": "no antialias",
        }.get(work, "")
        return Step(lambda k: (chain(floats(k)), None), note, "another job" not in note)


# albumentations ------------------------------------------------------------------------------------------------------


class Albumentations(_Torch):
    name, label, environment = "albumentations", "albumentations 2 (MIT)", "albumentations"
    packages = ("albumentations", "opencv-python-headless", "torch")
    configuration = (
        "Compose on HWC uint8 arrays made beforehand, cv2.setNumThreads(0), erasing on uint8 with the mean colour;"
        " Normalize and ToTensorV2, or the normalisation of a small batch; one process a core, one thread each"
    )
    new_names = False

    def prepare(self) -> None:
        import cv2

        super().prepare()
        cv2.setNumThreads(0)
        cv2.ocl.setUseOpenCL(False)

    @staticmethod
    def variants(work: str) -> list[Variant]:
        extra: list[Variant] = [{}]
        if work in ("autocontrast", "equalize"):
            extra = [{"method": "pil"}, {"method": "cdf" if work == "autocontrast" else "cv"}]
        return [{**n, **e} for n in NORMALISE for e in extra]

    def _jitter(self, **ranges: tuple[float, float]) -> Any:
        import albumentations as A

        whole = {
            "brightness": (1.0, 1.0),
            "contrast": (1.0, 1.0),
            "saturation": (1.0, 1.0),
            "hue": (0.0, 0.0),
            **ranges,
        }
        ending = "_range" if self.new_names else ""
        return A.ColorJitter(**{k + ending: v for k, v in whole.items()}, p=1.0)

    def _ops(self, work: str, size: int, variant: Variant) -> tuple[list[Any], str]:
        import albumentations as A
        import cv2

        new = self.new_names
        jitter = {k: (-v, v) if k == "hue" else (1 - v, 1 + v) for k, v in JITTER.items()}
        crop = [A.Pad(padding=4), A.RandomCrop(size, size)]
        blur = {"blur_range" if new else "blur_limit": (5, 5), "sigma_range" if new else "sigma_limit": (0.1, 2.0)}
        salt = {"amount_range": (0.02, 0.02), "salt_vs_pepper_range": (0.5, 0.5)}
        sharpen = {"alpha_range" if new else "alpha": (1.0, 1.0), "lightness_range" if new else "lightness": (1.0, 1.0)}
        salt = salt if new else {k.removesuffix("_range"): v for k, v in salt.items()}
        half = (size // 2, size // 2)
        makers: dict[str, Callable[[], list[Any]]] = {
            "standard": lambda: [
                *crop,
                A.HorizontalFlip(p=0.5),
                self._jitter(**jitter),
                A.Erasing(fill=MEAN_LEVELS, p=0.5),
            ],
            "random_resized_crop": lambda: [A.RandomResizedCrop((size, size))],
            "horizontal_flip": lambda: [A.HorizontalFlip(p=1.0)],
            "vertical_flip": lambda: [A.VerticalFlip(p=1.0)],
            "random_crop": lambda: crop,
            "rotate": lambda: [
                A.Rotate(**{"angle_range" if new else "limit": (-15, 15)}, interpolation=cv2.INTER_NEAREST, p=1.0)
            ],
            "affine": lambda: [
                A.Affine(
                    scale=(0.9, 1.1),
                    translate_percent={"x": (-0.1, 0.1), "y": (-0.1, 0.1)},
                    rotate=(-15, 15),
                    shear={"x": (-10, 10), "y": (0, 0)},
                    p=1.0,
                )
            ],
            "perspective": lambda: [A.Perspective(scale=(0.0, 0.25), p=1.0)],
            "color_jitter": lambda: [self._jitter(**jitter)],
            "brightness": lambda: [self._jitter(brightness=(0.8, 1.2))],
            "contrast": lambda: [self._jitter(contrast=(0.8, 1.2))],
            "saturation": lambda: [self._jitter(saturation=(0.8, 1.2))],
            "hue": lambda: [self._jitter(hue=(-0.1, 0.1))],
            "grayscale": lambda: [A.ToGray(p=1.0)],
            "gaussian_blur": lambda: [A.GaussianBlur(**blur, p=1.0)],
            "gaussian_noise": lambda: [A.GaussNoise(std_range=(0.1, 0.1), per_channel=True, p=1.0)],
            "salt_and_pepper": lambda: [A.SaltAndPepper(**salt, p=1.0)],
            "posterize": lambda: [A.Posterize(num_bits=(4, 4), p=1.0)],
            "solarize": lambda: [A.Solarize(threshold_range=(128 / 255, 128 / 255), p=1.0)],
            "autocontrast": lambda: [A.AutoContrast(cutoff=0, method=variant["method"], p=1.0)],
            "equalize": lambda: [A.Equalize(mode=variant["method"], p=1.0)],
            "invert": lambda: [A.InvertImg(p=1.0)],
            "sharpness": lambda: [A.Sharpen(**sharpen, p=1.0)],
            "random_erasing": lambda: [A.Erasing(fill=MEAN_LEVELS, p=1.0)],
            "cutout": lambda: [
                A.CoarseDropout((1, 1), (half[0], half[0]), (half[1], half[1]), fill=MEAN_LEVELS, p=1.0)
            ],
        }
        if work not in makers:
            raise MissingError("has no such policy" if "aug" in work else "has no such transform")
        note = {
            "random_resized_crop": "no antialias (its default)",
            "perspective": "the corners' shifts are drawn in another way",
            "sharpness": "its own 3 x 3 kernel",
            "cutout": CUTOUT_NOTE,
        }.get(work, "")
        return makers[work](), note

    def build(self, work: str, size: int, threads: int, variant: Variant) -> Step:
        import albumentations as A
        import torch
        from albumentations.pytorch import ToTensorV2

        ops, note = self._ops(work, size, variant)
        batch_wise = variant["normalise"] == "batch"
        images = self.interleaved(BY_NAME[work].source(size))
        rest = [] if batch_wise else [A.Normalize(MEAN, STD), ToTensorV2()]
        options: dict[str, Any] = {"telemetry": False} if self.new_names else {}
        chain = A.Compose([*ops, *rest], seed=self.rank, **options)
        if not batch_wise:
            assert chain(image=images[0])["image"].dtype == torch.float32
        form = "hwc" if batch_wise else ""
        run = self._image_wise(size, lambda i: chain(image=images[i])["image"], len(images), form)
        return Step(run, note)


class AlbumentationsX(Albumentations):
    name, label, environment = "albumentationsx", "AlbumentationsX 2.5 (AGPL)", "albumentationsx"
    packages = ("albumentationsx", "opencv-python-headless", "torch")
    new_names = True


CONTESTANTS: dict[str, type[Contestant]] = {
    c.name: c
    for c in (
        Kitae, KitaeTorch, TorchvisionV1, TorchvisionV2, TorchvisionV2Batch, Timm, Kornia, Albumentations,
        AlbumentationsX, Copy,
    )
}  # fmt: skip


# The worker ----------------------------------------------------------------------------------------------------------


def consume(out: Any, targets: Any, size: int) -> tuple[int, float]:
    """Look at a result, as a training step would: the number of images and a sum that is finite."""
    n = len(out)
    if tuple(out.shape) != (n, 3, size, size) or not str(out.dtype).endswith("float32"):
        raise ValueError(f"the result is {out.dtype} {list(out.shape)}, not float32 [n, 3, {size}, {size}]")
    total = float(out[:, :, 16::32].sum())
    if targets is not None:
        if len(targets) != n:
            raise ValueError(f"{len(targets)} targets for {n} images")
        total += float(targets.sum())
    if not math.isfinite(total):
        raise ValueError(f"the sum of the results is {total}")
    return n, total


def check(out: Any) -> dict[str, float]:
    """Every value of a result: finite, of the size that normalised levels have, and not all the same."""
    values = np.ascontiguousarray(out)
    low, high, mean, std = (float(f(values)) for f in (np.min, np.max, np.mean, np.std))
    if not (np.isfinite(values).all() and low >= -10 and high <= 10 and std > 0.05):
        raise ValueError(f"results in [{low}, {high}], deviation {std}: not normalised images")
    return {"low": low, "high": high, "mean": mean, "std": std}


def timed(step: Step, size: int, seconds: float, at: float, first: int) -> dict[str, Any]:
    """One round: calls until `seconds` have passed, at least one, from the (monotonic) time `at` on."""
    gc.collect()
    while time.monotonic() < at:
        pass
    images, total, k = 0, 0.0, first
    start = time.perf_counter()
    while True:
        out, targets = step.run(k)
        n, checksum = consume(out, targets, size)
        images, total, k = images + n, total + checksum, k + 1
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            break
    return {"images": images, "seconds": elapsed, "checksum": total, "calls": k - first, **check(out[:8])}


def versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    """What is installed of some packages."""
    from importlib import metadata

    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def answers(name: str, rank: int, folder: Path, quick: bool, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The worker's side of the protocol; the first answer says hello."""
    contestant = CONTESTANTS[name](Pool(folder, quick), rank)
    try:
        contestant.prepare()
        gc.collect()
        gc.freeze()  # the collection before each round then looks only at what came later
    except Exception as error:
        yield {"error": f"{type(error).__name__}: {error}"}
        return
    yield {"versions": versions(contestant.packages), "python": sys.version.split()[0]}
    steps: dict[int, tuple[Step, int, int, int]] = {}
    for line in lines:
        command = json.loads(line)
        try:
            if command["do"] == "clear":
                steps.clear()
                gc.collect()
                yield {}
            elif command["do"] == "build":
                size, threads = command["size"], command["threads"]
                contestant.use_threads(threads)
                step = contestant.build(command["work"], size, threads, command["variant"])
                out, targets = step.run(0)
                consume(out, targets, size)
                check(out)
                steps[command["id"]] = (step, size, threads, 1)
                yield {"note": step.note, "same_job": step.same_job}
            elif command["do"] == "round":
                step, size, threads, k = steps[command["id"]]
                contestant.use_threads(threads)
                result = timed(step, size, command["seconds"], command["at"], k)
                steps[command["id"]] = (step, size, threads, k + result["calls"])
                yield result
            else:
                yield {"error": f"unknown command {command['do']!r}"}
        except MissingError as error:
            yield {"missing": str(error)}
        except Exception as error:
            traceback.print_exc()
            last = traceback.extract_tb(error.__traceback__)[-1]
            yield {"error": f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"}


def main() -> None:
    """python contestants.py NAME RANK FOLDER QUICK: answer until stdin ends."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not look like an answer
    name, rank, folder, quick = sys.argv[1:5]
    for answer in answers(name, int(rank), Path(folder), quick == "1", iter(sys.stdin.readline, "")):
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
