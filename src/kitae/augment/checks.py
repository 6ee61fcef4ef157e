"""Checks of a caller's arguments: images, keys, targets, colours, programs. What is wrong is an AugmentError."""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kitae.augment.ops.base import ARGS, CROP, ERASE, ERASE_AFTER, GAUSSIAN_BLUR, NOP, RESIZED_CROP
from kitae.augment.plan import Keys, Pipeline, Program
from kitae.errors import AugmentError

Layout = Literal["nchw", "nhwc"]


def is_torch(value: Any) -> bool:
    """Whether a value is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_batch(images: Any, layout: Layout) -> Any:
    """The images, where they are a batch: uint8, four dimensions, 1 or 3 channels."""
    if not (isinstance(images, np.ndarray) or is_torch(images)):
        raise AugmentError(f"images must be a NumPy array or a torch tensor, not {type(images).__name__}")
    if images.dtype != (np.uint8 if isinstance(images, np.ndarray) else sys.modules["torch"].uint8):
        raise AugmentError(f"images must be uint8, not {str(images.dtype).removeprefix('torch.')}")
    form = "[N, C, H, W]" if layout == "nchw" else "[N, H, W, C]"
    shape = list(images.shape)
    if len(shape) != 4:
        raise AugmentError(f"images must be {form}, not {shape}")
    if shape[1 if layout == "nchw" else 3] not in (1, 3):
        raise AugmentError(f"images must be {form} with 1 or 3 channels, not {shape}")
    if 0 in shape[1:]:
        raise AugmentError(f"images have no pixels: {shape}")
    return images.detach() if is_torch(images) else images


def as_size(size: Any) -> tuple[Any, Any]:
    """Height and width of images; `Augment.pipeline` checks the two."""
    try:
        height, width = size
    except (TypeError, ValueError):  # a number, or three
        raise AugmentError(f"size must be (height, width), not {size!r}") from None
    return height, width


def as_colour(values: Any, name: str) -> tuple[float, ...] | None:
    """A mean or std: 1 or 3 finite numbers, a std above 0."""
    if values is None:
        return None
    try:
        out = tuple(float(v) for v in np.atleast_1d(np.asarray(values, np.float64)))
    except (TypeError, ValueError):  # words, or nested
        out = ()
    if len(out) not in (1, 3) or not all(np.isfinite(out)):
        raise AugmentError(f"{name} must be 1 or 3 finite numbers in units of [0, 1], not {values}")
    if name == "std" and min(out) <= 0:
        raise AugmentError(f"std must be above 0, not {values}")
    if max(out) > 1:
        raise AugmentError(f"{name} is in units of [0, 1], not {values}: divide it by 255")
    return out


def check_program(program: Program, pipeline: Pipeline, count: int) -> Program:
    """The program of `count` samples as contiguous arrays, safe for the kernels, which do not check its numbers."""
    shape = (count, pipeline.steps)
    if program.codes.shape != shape or program.args.shape != (*shape, ARGS):
        raise AugmentError(f"the program is for {program.codes.shape} (samples, steps), not {shape}")
    codes = np.ascontiguousarray(program.codes, np.int64)
    args = np.ascontiguousarray(program.args, np.float64)
    mix = None if program.mix is None else np.ascontiguousarray(program.mix, np.float64)
    bad = (mix is None) != (pipeline.mixing is None)
    for k, op in enumerate(pipeline.ops):
        at, end = pipeline.offsets[k], pipeline.offsets[k + 1]
        c, a = codes[:, at:end], args[:, at:end]
        (h, w), (nh, nw) = pipeline.sizes[k], pipeline.sizes[k + 1]
        known = [step.code for step in op.writes] + ([NOP] if (h, w) == (nh, nw) else [])
        inside = (a[..., :4] >= 0).all(-1) & (a[..., 0] + a[..., 2] <= h) & (a[..., 1] + a[..., 3] <= w)
        reach = (a[..., 0] > -h) & (a[..., 1] > -w) & (a[..., 0] + nh < 2 * h) & (a[..., 1] + nw < 2 * w)
        crops = (
            np.isfinite(a[..., :5]).all(-1)
            & (a[..., 2] == nh)
            & (a[..., 3] == nw)
            & np.isin(a[..., 4], (0, 1, 2))
            & ((a[..., 4] != 1) | reach)
        )
        sizes = (a[..., 2] >= 1) & (a[..., 3] >= 1) & (a[..., 4] == nh) & (a[..., 5] == nw)
        kernel = a[..., :2]
        # A box that is zero after normalisation lies in the result, so no size changes after it.
        early = (c == ERASE_AFTER) & ((h, w) != pipeline.sizes[-1])
        blurs = ((kernel % 2 == 1) & (kernel >= 1) & (kernel <= 63) & (kernel // 2 < [w, h])).all(-1)
        wrong = ~np.isin(c, known) | (np.isin(c, (ERASE, ERASE_AFTER)) & ~inside) | ((c == CROP) & ~crops)
        wrong |= ((c == RESIZED_CROP) & ~(inside & sizes)) | ((c == GAUSSIAN_BLUR) & ~blurs) | early
        bad = bad or bool(wrong.any())
    if mix is not None:
        h, w = pipeline.sizes[-1]
        bad = bad or mix.shape != (len(codes), 6) or not np.isfinite(mix).all()
        if not bad:
            kind, x1, y1, x2, y2 = mix[:, 0], *mix[:, 2:].T
            boxes = (x1 >= 0) & (x1 <= x2) & (x2 <= w) & (y1 >= 0) & (y1 <= y2) & (y2 <= h)
            bad = not (np.isin(kind, (0, 1, 2)) & boxes).all()
    if bad:
        raise AugmentError("the program was not made by this pipeline for images of this size")
    return Program(codes, args, mix)


def as_keys(epoch: Any, index: Any, step: int | None, count: int | None = None) -> Keys:
    """The keys of a batch, of `count` samples where that is known; a step of None is the first index."""
    rows = integers(index, "index", 2**63)
    if rows.ndim != 1 or count not in (None, len(rows)):
        raise AugmentError(
            f"index must be one integer per sample, [{'N' if count is None else count}], not {list(rows.shape)}"
        )
    if type(epoch) is not int or not 0 <= epoch < 2**32:
        epochs = integers(epoch, "epoch", 2**32)
        if epochs.shape not in ((), (len(rows),)):
            raise AugmentError(f"epoch must be an integer or one per sample, [{len(rows)}], not {list(epochs.shape)}")
        epoch = epochs if epochs.ndim else int(epochs)
    if step is None:
        return Keys(epoch, rows, int(rows[0]) if len(rows) else 0)
    return Keys(epoch, rows, one_integer(step, "step", 2**63))


def one_integer(value: Any, name: str, limit: int) -> int:
    """An integer in [0, limit)."""
    found = integers(value, name, limit)
    if found.ndim:
        raise AugmentError(f"{name} must be one integer, not {value!r}")
    return int(found)


def integers(value: Any, name: str, limit: int) -> NDArray[np.int64]:
    """Integers in [0, limit) as int64."""
    try:
        array = value.detach().cpu().numpy() if is_torch(value) else np.asarray(value)
    except ValueError:  # rows of different lengths
        raise AugmentError(f"{name} must be integer, not {value!r}") from None
    if array.size == 0:  # an empty list is of floats
        return np.zeros(array.shape, np.int64)
    if array.dtype.kind not in "iu":
        raise AugmentError(f"{name} must be integer, not {array.dtype.type.__name__}")
    whole = np.asarray(array, np.int64, order="C")
    # As unsigned integers, negative numbers are too large, so one pass checks both bounds.
    if int(np.maximum.reduce(whole.view(np.uint64), axis=None)) >= limit:
        raise AugmentError(f"{name} must be in [0, {limit}), not {array.min()} to {array.max()}")
    return whole


def as_labels(targets: Any, count: int, num_classes: int | None) -> NDArray[Any] | None:
    """Targets as int64 [N] or float32 [N, K]; None where there are none."""
    if targets is None:
        return None
    if is_torch(targets):
        targets = (targets.float() if targets.is_floating_point() else targets).detach().cpu()  # NumPy has no bfloat16
    try:
        array = np.asarray(targets)
    except ValueError:  # rows of different lengths
        raise AugmentError(f"targets must be [N] or [N, K] with N = {count}, not {targets!r}") from None
    if array.ndim not in (1, 2) or len(array) != count:
        raise AugmentError(f"targets must be [N] or [N, K] with N = {count}, not {list(array.shape)}")
    if array.ndim == 2:
        if array.dtype.kind != "f":
            raise AugmentError(f"targets [N, K] must be float32, not {array.dtype}")
        if num_classes is not None and array.shape[1] != num_classes:
            raise AugmentError(
                f"targets have {array.shape[1]} classes, num_classes is {num_classes}: give one of the two"
            )
        return np.ascontiguousarray(array, np.float32)
    labels = integers(array, "targets [N]", num_classes or 2**63)
    if num_classes is None:
        raise AugmentError("integer targets need num_classes; or give float32 [N, K]")
    return labels
