"""The ranges of a network's activations, by ONNX Runtime's own calibrators."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kitae.compression.graph import prepared, quantizable
from kitae.compression.spec import Method
from kitae.console import quiet
from kitae.errors import CompressionError, require
from kitae.files import temporary_folder
from kitae.runtime import INPUT, open_session

if TYPE_CHECKING:
    import onnx

Ranges = dict[str, tuple[np.float32, np.float32]]

FEWEST_IMAGES = 16
"""Calibration with fewer images is refused: their range is not the range of the data."""

_NOT_FINITE = "an activation is not finite on the calibration images; train again with a smaller train.optimizer.lr"
_BATCH = 32
_MEMORY = 256 * 2**20  # bytes of activations held at once
_OPTIONS: dict[Method, dict[str, Any]] = {
    "minmax": {},
    "average": {"moving_average": True},  # of the extremes of each batch; over one collection it is their plain mean
    "percentile": {"symmetric": False, "num_bins": 2048, "percentile": 99.99},
    "entropy": {"symmetric": False, "num_bins": 512, "num_quantized_bins": 128},
}


def calibrate(proto: onnx.ModelProto, images: NDArray[np.uint8], method: Method = "minmax") -> Ranges:
    """The range of every activation that may be quantized, measured on training images.

    Args:
        images: uint8 [N, C, H, W], *training* images at the model's size; 200 to 1,000 are usual.
        method: `minmax` takes the extremes; `average` the mean of each batch's extremes; `percentile` leaves out
            0.005 % of the values on each side; `entropy` picks the range whose 8-bit histogram has the smallest
            divergence from the full one (Migacz 2017).

    Returns:
        (lowest, highest) as float32 by tensor name.

    Raises:
        CompressionError: fewer than 16 images, or an activation that is not finite.
    """
    if len(images) < FEWEST_IMAGES:
        raise CompressionError(
            f"calibration needs at least {FEWEST_IMAGES} training images (a few hundred are better), not "
            f"{len(images)}; use --quantize none or dynamic"
        )
    calibration = require("onnxruntime.quantization.calibrate")
    extremes = method in ("minmax", "average")
    kind = calibration.CalibrationMethod["MinMax" if extremes else method.capitalize()]
    work, _ = prepared(proto)
    # The extremes of all images do not depend on how they are batched; the mean of the extremes of batches does.
    batch_size = _BATCH if method == "average" else _batch_that_fits(work)
    if method == "average":  # a short last batch has narrower extremes, and would weigh as much as a full one
        images = images[: max(len(images) - len(images) % batch_size, min(len(images), batch_size))]
    feeds = ({INPUT: images[start : start + batch_size]} for start in range(0, len(images), batch_size))
    with quiet(), temporary_folder() as folder, redirect_stdout(io.StringIO()):  # the lock of `quiet` for stdout too
        source, probe = folder / "float.onnx", folder / "probe.onnx"
        require("onnx").save(work, source)
        calibrator = calibration.create_calibrator(
            source, sorted(quantizable(work)), str(probe), kind, extra_options=_OPTIONS[method]
        )
        calibrator.infer_session = open_session(probe)  # its own session leaves out every optimization
        # The extremes of all batches are few numbers. For histograms one batch of activations is held at a time.
        for chunk in (feeds,) if extremes else ((feed,) for feed in feeds):
            try:
                calibrator.collect_data(SimpleNamespace(get_next=partial(next, iter(chunk), None)))
            except ValueError as error:  # NumPy makes no histogram of what is not finite
                raise CompressionError(_NOT_FINITE) from error
        found = calibrator.compute_data()
    ranges = {name: tuple(np.float32(np.ravel(end)[0]) for end in item.range_value) for name, item in found.items()}
    if not all(np.isfinite(pair).all() for pair in ranges.values()):
        raise CompressionError(_NOT_FINITE)
    return ranges  # type: ignore[return-value]


def _batch_that_fits(work: onnx.ModelProto) -> int:
    """How many images' activations, of a graph with inferred shapes, are held at once."""
    shapes = [info.type.tensor_type.shape.dim for info in (*work.graph.value_info, *work.graph.output)]
    bytes_each = sum(4 * int(np.prod([dim.dim_value for dim in shape[1:]])) for shape in shapes)
    return int(np.clip(_MEMORY // max(1, bytes_each), 1, _BATCH))
