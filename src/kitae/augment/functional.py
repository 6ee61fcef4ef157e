"""Single ops with given parameters, without randomness.

Images are uint8 [N, C, H, W], NumPy or torch; the result is a new batch of the same kind. A parameter is a number, or
one number per sample, [N]. `executor` is `cpu`, `torch`, or `auto` (torch for tensors that are not on the CPU). Results
and directions are those of torchvision's `transforms.v2.functional`, unless stated otherwise; names and arguments are
those of Kitae's ops. A wrong argument raises AugmentError.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kitae.augment.checks import as_batch, as_colour, is_torch
from kitae.augment.engine import Augment
from kitae.augment.ops import OPS, STEPS, Op, Site, Step
from kitae.augment.ops import base as o
from kitae.augment.ops.geometry import RandomCrop, write_affine
from kitae.augment.ops.noise import GaussianBlur
from kitae.augment.plan import Program
from kitae.augment.spec import MixSpec, make_op
from kitae.errors import AugmentError

Executor = Literal["auto", "cpu", "torch"]
Fill = float | tuple[float, ...] | list[float] | None


class _Given(Op):
    """One step with given numbers."""

    code: int
    size: tuple[int, int] | None

    @property
    def writes(self) -> tuple[Step, ...]:  # type: ignore[override]
        return (STEPS[self.code],)

    def result(self, height: int, width: int) -> tuple[int, int]:
        return self.size or (height, width)


@functools.lru_cache(maxsize=64)
def _augment(*ops: Op, **settings: Any) -> Augment:
    return Augment(ops, **settings)


def _run(
    images: Any, code: int, numbers: Sequence[ArrayLike], executor: Executor, new: tuple[int, int] | None = None
) -> Any:
    """Run one step on every sample; its numbers in order, each one or one per sample."""
    count = _count(images)[0]
    args = np.zeros((count, 1, o.ARGS))
    for column, values in enumerate(numbers):
        args[:, 0, column] = values
    program = Program(np.full((count, 1), code, np.int64), args)
    return _augment(_Given(code=code, size=new), executor=executor).replay(images, program)


def _last(images: Any, mixing: NDArray[np.float64] | None = None, targets: Any = None, **settings: Any) -> Any:
    """Run the last write alone, with settings of `Augment`."""
    count = _count(images)[0]
    program = Program(np.zeros((count, 0), np.int64), np.zeros((count, 0, o.ARGS)), mixing)
    return _augment(**settings).replay(images, program, targets)


def _floats(value: Any, name: str) -> NDArray[np.float64]:
    """Numbers of Python, NumPy or torch as float64, of their own shape."""
    try:
        return np.asarray(value.detach().cpu().double().numpy() if is_torch(value) else value, np.float64)
    except (ValueError, TypeError):  # words, or rows of different lengths
        raise AugmentError(f"{name} must be numbers, not {value!r}") from None


def _numbers(
    value: ArrayLike, name: str, count: int, low: float = -math.inf, high: float = math.inf, whole: bool = False
) -> NDArray[np.float64]:
    try:
        array = np.broadcast_to(_floats(value, name), (count,))
    except (ValueError, AugmentError):
        raise AugmentError(f"{name} must be a number or one per sample, [{count}], not {value!r}") from None
    if count and not (np.isfinite(array).all() and array.min() >= low and array.max() <= high):
        bounds = f"in [{low:g}, {high:.16g}]" if math.isfinite(low) or math.isfinite(high) else "finite"
        raise AugmentError(f"{name} must be {bounds}, not {value!r}")
    if whole and (array != np.rint(array)).any():
        raise AugmentError(f"{name} must be whole, not {value!r}")
    return np.asarray(array)


def _levels(fill: Fill, name: str = "fill") -> list[float]:
    """A fill as three levels; NaN stands for none."""
    if fill is None:
        return o.fills(None)
    try:
        values = [float(v) for v in np.atleast_1d(np.asarray(fill))]
    except (TypeError, ValueError):  # a colour's name, or nested
        values = []
    if len(values) not in (1, 3) or not all(0 <= v <= 255 for v in values):
        raise AugmentError(f"{name} must be a level or one per channel in [0, 255], or None, not {fill!r}")
    return (values * 3)[:3]


def _window(
    images: Any, top: ArrayLike, left: ArrayLike, height: ArrayLike, width: ArrayLike, least: int, what: str
) -> list[NDArray[np.float64]]:
    """Top, left, height and width inside the image, of at least `least` pixels."""
    n, _, h, w = _count(images)
    rows = _numbers(height, "height", n, least, h, whole=True)
    columns = _numbers(width, "width", n, least, w, whole=True)
    t, s = _numbers(top, "top", n, 0, h, whole=True), _numbers(left, "left", n, 0, w, whole=True)
    if (t + rows > h).any() or (s + columns > w).any():
        raise AugmentError(f"the {what} must lie inside the image, {h} x {w}")
    return [t, s, rows, columns]


def _count(images: Any) -> tuple[int, int, int, int]:
    n, c, h, w = as_batch(images, "nchw").shape
    return int(n), int(c), int(h), int(w)


def _warp(interpolation: str, nearest: int) -> int:
    if interpolation not in ("nearest", "bilinear"):
        raise AugmentError(f"interpolation must be nearest or bilinear, not {interpolation!r}")
    return nearest + (interpolation == "bilinear")


# Generated: a function for each row with `takes` ----------------------------------------------------------------------


def _function(step: Step, takes: Sequence[o.Argument]) -> Callable[..., Any]:
    """The function of a step, with the signature (images, its arguments, *, executor)."""
    parameters = [inspect.Parameter("images", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for argument in takes:
        default = inspect.Parameter.empty if argument.default is None else argument.default
        parameters.append(inspect.Parameter(argument.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default))
    parameters.append(inspect.Parameter("executor", inspect.Parameter.KEYWORD_ONLY, default="auto"))
    signature = inspect.Signature(parameters)

    def function(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        images, count = given.arguments["images"], _count(given.arguments["images"])[0]
        columns: dict[int, ArrayLike] = {}
        for argument in takes:
            name, at = argument.name, argument.at
            values = _numbers(given.arguments[name], name, count, argument.low, argument.high, argument.whole)
            if name == "key":
                columns[at], columns[at + 1] = np.divmod(values, 2.0**32)
            else:
                columns[at] = values
        return _run(images, step.code, [columns[at] for at in sorted(columns)], given.arguments["executor"])

    function.__name__ = function.__qualname__ = step.name
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__doc__ = _docstring(step, takes)
    return function


def _docstring(step: Step, takes: Sequence[o.Argument]) -> str:
    """What the op of a step does, and the arguments of the function."""
    about = next((op.__doc__ or "" for op in OPS.values() if op.writes[0] is step), "")
    lines = [*inspect.cleandoc(about).partition("\n\n")[0].splitlines(), "", "Args:"]
    lines.append("    images: uint8 [N, C, H, W], NumPy or torch.")
    for argument in takes:
        span = f"{argument.low:g} " + ("or more" if math.isinf(argument.high) else f"to {argument.high:.16g}")
        whole = "a whole number" if argument.whole else "a number"
        lines.append(f"    {argument.name}: {argument.meaning}: {whole}, {span}, or one per sample, [N].")
    lines.append("    executor: `cpu`, `torch`, or `auto`, which takes torch for tensors that are not on the CPU.")
    lines += ["", "Returns:", "    A new batch of the same kind, shape and type.", ""]
    return "\n".join([*lines, "Raises:", "    AugmentError: other images, or an argument that is outside its range."])


globals().update({s.name: _function(s, s.takes) for s in STEPS.values() if s.takes is not None})

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


# Written by hand: what takes windows, matrices or points --------------------------------------------------------------


def crop(
    images: Any,
    top: ArrayLike,
    left: ArrayLike,
    height: int,
    width: int,
    padding: int | tuple[int, int] | tuple[int, int, int, int] = 0,
    mode: str = "zero",
    fill: Fill = 0,
    *,
    executor: Executor = "auto",
) -> Any:
    """Pad the images and cut a window out of them.

    Args:
        images: uint8 [N, C, H, W].
        top, left: pixels of the padded image, from 0; one or one per sample.
        height, width: pixels of the window, not larger than the padded image.
        padding: pixels on all sides, or (left and right, top and bottom), or (left, top, right, bottom).
        mode: `zero` pads with `fill`, `reflect` mirrors without the border pixel, `edge` repeats the border pixel.
        fill: a level or one per channel, 0 to 255; None is black.

    Returns:
        uint8 [N, C, height, width].
    """
    n, c, h, w = _count(images)
    op = make_op({RandomCrop.name: {"size": (height, width), "padding": padding, "mode": mode}})
    assert isinstance(op, RandomCrop)
    left_pad, top_pad, right_pad, bottom_pad = op.borders()
    op.numbers(Site(c, h, w))
    t = _numbers(top, "top", n, 0, h + top_pad + bottom_pad - height, whole=True) - top_pad
    s = _numbers(left, "left", n, 0, w + left_pad + right_pad - width, whole=True) - left_pad
    levels = _levels(0 if fill is None else fill)
    return _run(images, o.CROP, [t, s, height, width, o.MODES.index(mode), *levels], executor, (height, width))


def resized_crop(
    images: Any,
    top: ArrayLike,
    left: ArrayLike,
    height: ArrayLike,
    width: ArrayLike,
    size: int | tuple[int, int],
    *,
    executor: Executor = "auto",
) -> Any:
    """Cut windows and resize them, bilinear with antialias.

    Args:
        images: uint8 [N, C, H, W].
        top, left, height, width: whole pixels of a window inside the image; one or one per sample.
        size: (height, width) in pixels, or the side of a square.

    Returns:
        uint8 [N, C, *size].
    """
    sides = _floats(size, "size").ravel()
    whole = np.isfinite(sides) & (sides >= 1) & (sides == np.rint(sides))
    if len(sides) not in (1, 2) or not whole.all():
        raise AugmentError(f"size must be one or two whole numbers from 1 on, not {size}")
    new = int(sides[0]), int(sides[-1])
    window = _window(images, top, left, height, width, 1, "window")
    return _run(images, o.RESIZED_CROP, [*window, *new], executor, new)


def resize(images: Any, size: int | tuple[int, int], *, executor: Executor = "auto") -> Any:
    """Resize images uint8 [N, C, H, W] to `size`, (height, width) or the side of a square; bilinear with antialias."""
    _, _, h, w = _count(images)
    return resized_crop(images, 0, 0, h, w, size, executor=executor)


def rotate(
    images: Any,
    degrees: ArrayLike,
    interpolation: str = "nearest",
    fill: Fill = None,
    center: tuple[float, float] | None = None,
    *,
    executor: Executor = "auto",
) -> Any:
    """Turn images uint8 [N, C, H, W] counter-clockwise.

    Args:
        degrees: one or one per sample.
        interpolation: `nearest` or `bilinear`.
        fill: a level or one per channel, 0 to 255, of what comes from outside; None is black.
        center: (x, y) in pixels from the upper left corner; None is the middle.
    """
    turned = -_numbers(degrees, "degrees", _count(images)[0])
    return affine(images, turned, interpolation=interpolation, fill=fill, center=center, executor=executor)


def affine(
    images: Any,
    degrees: ArrayLike = 0.0,
    translate_x: ArrayLike = 0.0,
    translate_y: ArrayLike = 0.0,
    scale: ArrayLike = 1.0,
    shear_x: ArrayLike = 0.0,
    shear_y: ArrayLike = 0.0,
    interpolation: str = "nearest",
    fill: Fill = None,
    center: tuple[float, float] | None = None,
    *,
    executor: Executor = "auto",
) -> Any:
    """Shear, scale and turn images uint8 [N, C, H, W], then shift them.

    Args:
        degrees: clockwise; like all numbers here, one or one per sample.
        translate_x, translate_y: pixels to the right and down.
        scale: factor, above 0.
        shear_x, shear_y: degrees, -89.9 to 89.9.
        interpolation, fill, center: as in `rotate`.
    """
    n, _, h, w = _count(images)
    code = _warp(interpolation, o.AFFINE_NEAREST)
    at = np.array([0.5 * w, 0.5 * h]) if center is None else _floats(center, "center")
    if at.shape != (2,) or not np.isfinite(at).all():
        raise AugmentError(f"center must be (x, y), two finite numbers, not {center!r}")
    cx, cy = at - (0.5 * w, 0.5 * h)
    angle = _numbers(degrees, "degrees", n)
    tx, ty = _numbers(translate_x, "translate_x", n), _numbers(translate_y, "translate_y", n)
    factor = _numbers(scale, "scale", n, 1e-6)
    sx, sy = _numbers(shear_x, "shear_x", n, -89.9, 89.9), _numbers(shear_y, "shear_y", n, -89.9, 89.9)
    matrix = np.zeros((n, 6))
    for i in range(n):
        turn, x, y = math.radians(angle[i]), math.radians(sx[i]), math.radians(sy[i])
        write_affine(matrix[i], 0, turn, tx[i], ty[i], factor[i], x, y, cx, cy)
    return _run(images, code, [*matrix.T, *_levels(fill)], executor)


def perspective_coefficients(startpoints: ArrayLike, endpoints: ArrayLike) -> NDArray[np.float64]:
    """The eight coefficients that map endpoints back to startpoints, as `perspective` takes them.

    Args:
        startpoints, endpoints: four corners (x, y) in pixels, [..., 4, 2]. No three endpoints may lie on a line.

    Returns:
        float64 [..., 8].
    """
    start, end = _floats(startpoints, "startpoints"), _floats(endpoints, "endpoints")
    if start.shape[-2:] != (4, 2) or end.shape[-2:] != (4, 2):
        raise AugmentError(
            f"startpoints and endpoints are four corners (x, y), not shapes {start.shape} and {end.shape}"
        )
    try:
        start, end = np.broadcast_arrays(start, end)
    except ValueError:
        raise AugmentError(f"startpoints are of {len(start)} samples, endpoints of {len(end)}") from None
    x, y, u, v = end[..., 0], end[..., 1], start[..., 0], start[..., 1]
    one, zero = np.ones_like(x), np.zeros_like(x)
    across = np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1)
    down = np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1)
    matrix = np.stack([across, down], -2).reshape(*end.shape[:-2], 8, 8)
    try:
        solved = np.linalg.solve(matrix, start.reshape(*start.shape[:-2], 8, 1))
        return np.asarray(solved[..., 0], np.float64)
    except np.linalg.LinAlgError:
        raise AugmentError("endpoints: three corners lie on a line") from None


def perspective(
    images: Any,
    startpoints: ArrayLike | None = None,
    endpoints: ArrayLike | None = None,
    coefficients: ArrayLike | None = None,
    interpolation: str = "bilinear",
    fill: Fill = None,
    *,
    executor: Executor = "auto",
) -> Any:
    """Warp images uint8 [N, C, H, W] so that four points go to others.

    Args:
        startpoints, endpoints: four corners (x, y) in pixels, [4, 2] or [N, 4, 2].
        coefficients: instead of them, those of the inverse, [8] or [N, 8]; see `perspective_coefficients`.
        interpolation, fill: as in `rotate`.
    """
    n = _count(images)[0]
    given = [value is not None for value in (startpoints, endpoints, coefficients)]
    if given not in ([True, True, False], [False, False, True]):
        raise AugmentError("perspective takes startpoints and endpoints, or coefficients")
    if coefficients is None:
        coefficients = perspective_coefficients(startpoints, endpoints)  # type: ignore[arg-type]
    table = _floats(coefficients, "coefficients")
    if table.shape not in ((8,), (1, 8), (n, 8)):
        raise AugmentError(
            f"coefficients (of four points) must be [8], or one row per sample, [{n}, 8], not {list(table.shape)}"
        )
    if not np.isfinite(table).all():
        raise AugmentError("coefficients must be finite")
    code = _warp(interpolation, o.PERSPECTIVE_NEAREST)
    return _run(images, code, [*table.T, *_levels(fill)], executor)


def gaussian_blur(
    images: Any, kernel_size: int | tuple[int, int], sigma: ArrayLike | None = None, *, executor: Executor = "auto"
) -> Any:
    """Convolve images uint8 [N, C, H, W] with a Gaussian.

    Args:
        kernel_size: odd pixels, a number or (width, height).
        sigma: standard deviation in pixels, 1e-6 or more, one or one per sample; None is 0.15 * kernel_size + 0.35.
    """
    n, c, h, w = _count(images)
    op = make_op({GaussianBlur.name: {"kernel_size": kernel_size}})
    (kx, _, _), (ky, _, _), *_ = op.ranges(Site(c, h, w))
    sx = 0.15 * kx + 0.35 if sigma is None else _numbers(sigma, "sigma", n, 1e-6)
    sy = 0.15 * ky + 0.35 if sigma is None else sx
    return _run(images, o.GAUSSIAN_BLUR, [kx, ky, sx, sy], executor)


def erase(
    images: Any,
    top: ArrayLike,
    left: ArrayLike,
    height: ArrayLike,
    width: ArrayLike,
    value: Fill = 0,
    *,
    executor: Executor = "auto",
) -> Any:
    """Write levels into a rectangle of images uint8 [N, C, H, W].

    Args:
        top, left, height, width: whole pixels of a rectangle inside the image, which may be empty; one or one per
            sample.
        value: a level or one per channel, 0 to 255.
    """
    if value is None:
        raise AugmentError("value must be a level or one per channel")
    window = _window(images, top, left, height, width, 0, "rectangle")
    return _run(images, o.ERASE, [*window, *_levels(value, "value")], executor)


def normalize(images: Any, mean: Any, std: Any, *, executor: Executor = "auto") -> Any:
    """(level / 255 - mean) / std of images uint8 [N, C, H, W].

    Args:
        mean, std: one per channel, of levels in [0, 1]; std is above 0.

    Returns:
        float32 [N, C, H, W].
    """
    if mean is None or std is None:
        raise AugmentError("mean and std come together: give both")
    return _last(images, executor=executor, mean=as_colour(mean, "mean"), std=as_colour(std, "std"))


def _mixed(images: Any, targets: Any, mix: NDArray[np.float64], executor: Executor) -> Any:
    given = np.zeros((len(mix), 1), np.float32) if targets is None else targets
    out = _last(images, mix, given, executor=executor, mix=MixSpec())
    return out[0] if targets is None else out


def mixup(images: Any, targets: Any, lam: ArrayLike, *, executor: Executor = "auto") -> Any:
    """Mix each image with its partner (positions 2k and 2k + 1); an odd last sample stays as it is.

    Args:
        images: uint8 [N, C, H, W].
        targets: float32 [N, K], mixed alike, or None.
        lam: share of the image itself, 0 to 1, one or one per sample; levels are rounded, halves up.

    Returns:
        The images, or with targets (images, targets).
    """
    n = _count(images)[0]
    mix = np.zeros((n, 6))
    mix[:, 0], mix[:, 1] = 1.0, _numbers(lam, "lam", n, 0, 1)
    return _mixed(images, targets, mix, executor)


def cutmix(images: Any, targets: Any, box: ArrayLike, *, executor: Executor = "auto") -> Any:
    """Show in each image a part of its partner (positions 2k and 2k + 1); an odd last sample stays as it is.

    Args:
        images: uint8 [N, C, H, W].
        targets: float32 [N, K], mixed by the areas, or None.
        box: (x1, y1, x2, y2) in whole pixels inside the image, [4] or [N, 4].

    Returns:
        The images, or with targets (images, targets).
    """
    n, _, h, w = _count(images)
    table = _floats(box, "box")
    if table.shape not in ((4,), (n, 4)):
        raise AugmentError(f"box must be (x1, y1, x2, y2), one or one per sample, [{n}, 4], not {list(table.shape)}")
    x1, y1, x2, y2 = np.broadcast_to(table, (n, 4)).T
    if (table != np.rint(table)).any():  # the pixels would be those of another box than the targets
        raise AugmentError(f"box must be whole, not {box!r}")
    if n and not ((x1 >= 0) & (x1 <= x2) & (x2 <= w) & (y1 >= 0) & (y1 <= y2) & (y2 <= h)).all():
        raise AugmentError(f"box must be (x1, y1, x2, y2) inside the image, {h} x {w}, not {box!r}")
    mix = np.column_stack([np.full(n, 2.0), 1.0 - (x2 - x1) * (y2 - y1) / (h * w), x1, y1, x2, y2])
    return _mixed(images, targets, mix, executor)
