"""Logits and predictions of a run's network: its preprocessing, temperature and test-time augmentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from torch import nn

from kitae.console import counter
from kitae.errors import DataError, RecipeError
from kitae.evaluation.calibration import probabilities
from kitae.evaluation.evaluate import Gather, predict_logits
from kitae.evaluation.spec import Tta
from kitae.modes import torch_defaults
from kitae.preprocess import ImageLike, PreprocessRules, load, one_or_several, paths_of
from kitae.runtime import Predictions, checked_batch
from kitae.training.guards import evaluation_memory_named


class Predictor:
    """A network with everything that its predictions depend on.

    Attributes:
        classes: class names, in the order of the outputs.
        rules: how an image is prepared.
        temperature: of the calibration.
        tta: test-time augmentation, see EvaluateSpec.

    Raises:
        RecipeError: `tta` has no such kind.
    """

    def __init__(self, model: nn.Module, facts: Mapping[str, Any], *, tta: Tta, batch_size: int) -> None:
        """Take a network on any device, and the facts of its model.json."""
        if tta not in get_args(Tta):
            raise RecipeError(f"tta: {tta!r} must be one of {', '.join(get_args(Tta))}")
        self._model, self._mean, self._std, self._batch_size = model, facts["mean"], facts["std"], batch_size
        self.classes: tuple[str, ...] = tuple(facts["classes"])
        self.rules = PreprocessRules.from_dict(facts["preprocess"])
        self.temperature: float = facts["temperature"]
        self.tta = tta

    def logits(
        self, gather: Gather, rows: NDArray[np.int64], *, show: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Logits float32 [N, K] and labels int64 [N] of the images that `gather` fetches, in the order of `rows`.

        Args:
            show: show progress on a terminal and in a notebook.
        """
        from kitae.augment.tta import views

        done = 0

        def counted(batch: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
            nonlocal done
            done += len(batch)
            if progress is not None:
                progress(done, len(rows))
            return gather(batch)

        counting = counter(None, "classifying images") if show else nullcontext()
        with counting as progress, evaluation_memory_named(self._batch_size), torch_defaults():
            return predict_logits(
                self._model,
                counted,
                rows,
                mean=self._mean,
                std=self._std,
                batch_size=self._batch_size,
                device=next(self._model.parameters()).device,
                views=None if self.tta == "none" else partial(views, kind=self.tta),
                temperature=self.temperature,
            )

    def predict(
        self,
        images: NDArray[np.uint8] | ImageLike | Iterable[ImageLike],
        *,
        show: bool = False,
    ) -> Predictions:
        """Classify images as the evaluation did: same precision, temperature and views.

        Args:
            images: one or several, see `preprocess.ImageLike`; or one uint8 array [N, C, H, W] at the model's size.
            show: as in `logits`.

        Raises:
            DataError: an image cannot be read, or an array has another shape or dtype.
        """
        several: list[ImageLike] | NDArray[Any]
        paths: tuple[str, ...]
        if isinstance(images, np.ndarray) and images.ndim == 4:
            several, fetch, paths = images, checked_batch(images, self.rules.shape, DataError).__getitem__, ()
        else:
            several = one_or_several(images)
            fetch, paths = partial(self._prepared, several), paths_of(several)
        if len(several) == 0:
            empty = np.empty((0, len(self.classes)), np.float32)
            return Predictions(np.empty(0, np.int64), empty, self.classes)
        logits, _ = self.logits(
            lambda rows: (fetch(rows), np.zeros(len(rows), np.int64)), np.arange(len(several)), show=show
        )
        shares = probabilities(logits, self.temperature).astype(np.float32)
        return Predictions(logits.argmax(axis=1), shares, self.classes, paths)

    def _prepared(self, images: list[ImageLike], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.stack([load(images[row], self.rules, f"image {row}") for row in rows])
