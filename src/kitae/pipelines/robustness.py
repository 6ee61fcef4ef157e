"""robustness(run): accuracy of a trained run on corrupted images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kitae import keyed
from kitae.console import counter
from kitae.errors import RecipeError
from kitae.evaluation import intervals
from kitae.run import Run

if TYPE_CHECKING:  # a study is planned without torch
    from kitae.pipelines.setup import Setup


def _square(share: float, height: int, width: int) -> dict[str, int]:
    side = round(share * min(height, width))
    return {"top": (height - side) // 2, "left": (width - side) // 2, "height": side, "width": side, "value": 128}


def _blur(sigma: float, height: int, width: int) -> dict[str, Any]:
    wide = sigma * min(height, width) / 32
    return {"kernel_size": 2 * max(1, round(2 * wide)) + 1, "sigma": wide}


# Corruption -> what it imitates, its severities from mild to strong (as in Hendrycks and Dietterich 2019, "Benchmarking
# neural network robustness to common corruptions"), the op, and the op's arguments for a severity and the height and
# width of an image.
CORRUPTIONS: dict[str, tuple[str, tuple[float, ...], str, Callable[[float, int, int], dict[str, Any]]]] = {
    "rotation": (
        "viewpoint", (10.0, 20.0, 30.0), "rotate",
        lambda degrees, *_: {"degrees": degrees, "interpolation": "bilinear", "fill": 128},
    ),
    "zoom": (
        "viewpoint", (0.85, 0.7, 0.55), "affine",
        lambda scale, *_: {"scale": scale, "interpolation": "bilinear", "fill": 128},
    ),
    "darker": ("light", (0.7, 0.5, 0.3), "brightness", lambda factor, *_: {"factor": factor}),
    "brighter": ("light", (1.3, 1.6, 2.0), "brightness", lambda factor, *_: {"factor": factor}),
    "contrast": ("light", (0.7, 0.5, 0.3), "contrast", lambda factor, *_: {"factor": factor}),
    "noise": ("noise", (0.02, 0.05, 0.1), "gaussian_noise", lambda sigma, *_: {"sigma": sigma}),  # of [0, 1]
    "blur": (  # standard deviation in pixels of a 32-pixel image
        "noise", (0.5, 0.8, 1.2), "gaussian_blur", _blur,
    ),
    "occlusion": ("occlusion", (0.2, 0.35, 0.5), "erase", _square),  # a grey square, of the shorter side
}  # fmt: skip
KINDS = tuple(dict.fromkeys(kind for kind, *_ in CORRUPTIONS.values()))


def robustness(run: Run | str | Path, split: str = "test", *, images: int = 1000) -> dict[str, Any]:
    """Accuracy of a run's best model on corrupted images, with one view; opening test is counted in the run folder.

    Args:
        run: a trained run, or its folder.
        split: `train`, `val` or `test`.
        images: how many of it at most, the same each time.

    Returns:
        `count` of images; `clean`, and under `corruptions` each of `CORRUPTIONS`: `accuracy` and `accuracy_interval`,
        95 % over the choice of images, or of groups where they have some. Those of a corruption are means over its
        severities, with a normal interval; with Wilson's where all images have the same mean.

    Raises:
        RecipeError: there is no such split, the run has no images of it, or `images` is no whole number from 1 on.
        TrainingError: there is no best model yet; for test, the run is not finished, or read-only.
        DataError: the images have changed since the run was trained, or cannot be read.
    """
    from kitae.pipelines.setup import Setup

    run = run if isinstance(run, Run) else Run.open(run)
    if not isinstance(images, int | np.integer) or images < 1:
        raise RecipeError(f"images: {images} must be a whole number, 1 or more")
    run.require_split(split)
    with counter(None, "decoding images") as progress:
        setup = Setup.of(run, progress)
    rows = setup.splits.rows(split, lambda: run.count_test_opening("evaluate, robustness"))
    with counter(None, "measuring corruptions") as progress:
        right = classified(run, setup, rows, images, clean=True, progress=progress)
    clean, groups = right["clean", 0.0], setup.store.groups_of(_some(run, rows, images))
    found = {}
    for name, (_, severities, *_) in CORRUPTIONS.items():
        shares = np.mean([right[name, severity] for severity in severities], axis=0)
        mean = float(shares.mean())
        if np.ptp(shares):
            ends = intervals.normal_mean(shares, groups)
        else:  # where all images are right, for example, a normal interval would have no width
            count = intervals.effective(shares, groups)
            ends = intervals.wilson(mean * count, count)
        found[name] = {
            "accuracy": mean,
            "accuracy_interval": None if ends is None else [max(0.0, ends[0]), min(1.0, ends[1])],
        }
    return {"count": len(clean), "clean": intervals.accuracy(clean, groups), "corruptions": found}


def _some(run: Run, rows: NDArray[np.int64], images: int) -> NDArray[np.int64]:
    """At most so many of the rows, the same each time, in order."""
    return np.sort(rows[keyed.permutation(run.recipe.data.split_seed, 2, len(rows), keyed.SLOT_SPLIT)[:images]])


def classified(
    run: Run,
    setup: Setup,
    rows: NDArray[np.int64],
    images: int,
    *,
    clean: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[tuple[str, float], NDArray[np.bool_]]:
    """(corruption, severity) -> which of some of these images are classified correctly, bool [n].

    Args:
        clean: also without a corruption, as ("clean", 0).
        progress: called with (corruptions done, all of them), each severity counted.
    """
    rows = _some(run, rows, images)
    gather, predictor = setup.image_set(rows).gather, run.predictor(tta="none")

    def right(name: str, severity: float) -> NDArray[np.bool_]:
        def worse(batch: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
            pixels, labels = gather(batch)
            return pixels if name == "clean" else corrupted(name, severity, pixels, batch), labels

        logits, labels = predictor.logits(worse, rows)
        return np.asarray(logits.argmax(axis=1) == labels)

    wanted = [(name, severity) for name, (_, severities, *_) in CORRUPTIONS.items() for severity in severities]
    wanted = [("clean", 0.0)] * clean + wanted
    found = {}
    for name, severity in wanted:
        found[name, severity] = right(name, severity)
        if progress is not None:
            progress(len(found), len(wanted))
    return found


def corrupted(
    name: str, severity: float, images: NDArray[np.uint8], rows: NDArray[np.int64]
) -> NDArray[np.uint8]:  # fmt: skip
    """uint8 [n, C, H, W]; the rows key the noise, so that an image is corrupted the same way in every batch."""
    from kitae.augment import functional

    _, _, op, arguments = CORRUPTIONS[name]
    key = {"key": rows} if op == "gaussian_noise" else {}
    return np.asarray(
        getattr(functional, op)(images, **arguments(severity, *images.shape[-2:]), **key, executor="torch")
    )
