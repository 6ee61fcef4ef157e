"""Distillation from the unpruned network: the teacher, and the distance of a student from it.

The loss itself (Hinton, Vinyals and Dean 2015) is part of the training loop.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kitae.errors import CompressionError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Distance:
    """The distance of two classifiers on the same images.

    Attributes:
        divergence: mean Kullback-Leibler divergence KL(teacher || student) in nats.
        flips: share of the images whose most probable class differs, in [0, 1].
    """

    divergence: float
    flips: float


def distance(teacher: NDArray[np.float32], student: NDArray[np.float32]) -> Distance:
    """Compare probabilities [N, K] with probabilities [N, K].

    Raises:
        CompressionError: the shapes differ, or there are no images.
    """
    if teacher.shape != student.shape or len(teacher) == 0:
        raise CompressionError(f"cannot compare probabilities {list(teacher.shape)} with {list(student.shape)}")
    p, q = teacher.astype(np.float64), np.maximum(student.astype(np.float64), 1e-12)
    terms = np.where(p > 0, p * np.log(np.maximum(p, 1e-300) / q), 0.0)
    return Distance(float(terms.sum(axis=1).mean()), float((p.argmax(axis=1) != q.argmax(axis=1)).mean()))


def as_teacher(model: nn.Module) -> nn.Module:
    """A copy of a network to learn from: in eval mode, without gradients, independent of the original."""
    return copy.deepcopy(model).eval().requires_grad_(False)
