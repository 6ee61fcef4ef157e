"""The `evaluate:` section of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kitae.spec import Spec

Tta = Literal["none", "flip", "shift", "scale", "full"]


class EvaluateSpec(Spec):
    """How the trained model is measured.

    Attributes:
        batch_size: images that are read together; also those of a forward pass, which has fewer large ones on a CPU.
        tta: test-time augmentation, averaged in probability space: `flip` (2 views), `shift` (5), `scale` (3), `full`.
            Used in evaluation and prediction with the run; an exported file uses one view.
        temperature: fit a temperature on validation (of single views) and report calibrated probabilities.
    """

    batch_size: int = Field(256, ge=1)
    tta: Tta = "none"
    temperature: bool = True

    def passes(self, val: int, test: int, *, fold: bool = False) -> int:
        """Forward passes of the evaluation that ends a run, each of one image, with these numbers of images.

        Without augmentation the logits of the last validation are used. A fold keeps those of single views too.
        """
        views = {"none": 1, "flip": 2, "shift": 5, "scale": 3, "full": 14}[self.tta]
        return test if views == 1 else views * (val + test) + (test if fold else 0)
