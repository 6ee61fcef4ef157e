"""A linear head on the features of a frozen network: multinomial logistic regression, its strength cross-validated.

The loss is the mean cross-entropy plus strength / 2 times the squared weights, on standardised features, without a
penalty on the biases: what scikit-learn's LogisticRegression minimises with C = 1 / (strength * samples). The problem
is convex, so the result depends on neither seed nor order.

It is solved by L-BFGS in the principal axes of the features, each scaled by about the curvature that loss and penalty
have along it, so that some tens of steps suffice where plain coordinates take thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kitae.modes import threads_restored

STRENGTHS = tuple(float(value) for value in 10.0 ** np.arange(1.0, -6.01, -0.5))
"""From the strongest down; the search starts at `_FIRST` and goes downhill."""

_FIRST = 5
_STEPS = 300  # limit of L-BFGS steps; a few tens are usual
_SMALLEST = -60.0  # logarithm of the smallest probability that is distinguished from zero
_GRADIENT, _ROUGH_GRADIENT = 1e-5, 1e-4  # gradient to stop at; the held-out loss converges before the solution


@dataclass(frozen=True)
class Head:
    """A linear classifier of raw features, and how it was found.

    Attributes:
        weight: float32 [K, D]; bias: float32 [K].
        strength: of the penalty.
        losses: strength -> mean cross-entropy of the images left out, for each strength that was tried.
        train_loss, train_accuracy: of the features that it was fitted on, each image once.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    losses: dict[float, float]
    train_loss: float
    train_accuracy: float


def fit_head(
    features: Tensor,
    labels: NDArray[np.int64],
    classes: int,
    *,
    folds: NDArray[np.int64],
    weights: NDArray[np.float32] | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> Head:
    """Fit a head, with the strength that predicts best what was left out.

    Args:
        features: float32 [V, n, D]: V views of n images, the first one without augmentation. All views of an image
            share its weight; the images left out are judged by their first view.
        labels: int64 [n] in [0, classes).
        folds: int64 [n], the part of the cross-validation that each image is in, see `data.groups.assign_folds`; with
            one strength there is none.
        weights: float32 [K], of the classes in the loss.
    """
    problem = _Problem(features, labels, classes, weights)
    losses: dict[float, float] = {}
    with threads_restored():
        # Between short products, torch's other threads spin, which takes the core that L-BFGS runs on. On two cores,
        # one thread is 2 to 3 times faster than two for 2,160 to 10,800 images (LOG.md, 2026-11-26).
        torch.set_num_threads(1)
        if len(strengths) > 1:
            losses = _cross_validated(problem, list(strengths), folds)
        strength = min(losses, key=lambda value: losses[value]) if losses else strengths[0]
        everything = np.ones(len(labels), dtype=np.bool_)
        solution = problem.solve(strength, everything, None, _GRADIENT)
    logits = problem.logits(solution, strength, everything)
    weight, bias = problem.head(solution, strength)
    return Head(
        weight,
        bias,
        strength,
        losses,
        train_loss=float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))),
        train_accuracy=float((logits.argmax(dim=1).numpy() == labels).mean()),
    )


def _cross_validated(problem: _Problem, strengths: Sequence[float], fold: NDArray[np.int64]) -> dict[float, float]:
    """Mean held-out loss of the strengths tried by the downhill search; a worse strength ends its direction."""
    labels = torch.from_numpy(problem.labels)
    parts = [fold != part for part in np.unique(fold)]

    def left_out(place: int, near: Sequence[Tensor | None], before: float) -> tuple[float, list[Tensor]]:
        strength, total, found = strengths[place], 0.0, []
        for kept, start in zip(parts, near, strict=True):
            begin = None if start is None else problem.rescaled(start, before, strength)
            solution = problem.solve(strength, kept, begin, _ROUGH_GRADIENT)
            losses = torch.nn.functional.cross_entropy(
                problem.logits(solution, strength, ~kept), labels[torch.from_numpy(~kept)], reduction="none"
            )
            total += float((losses * problem.sample_weights[torch.from_numpy(~kept)]).sum())
            found.append(solution)
        return total / float(problem.sample_weights.sum()), found

    first = min(_FIRST, len(strengths) - 1)
    losses: dict[float, float] = {}
    losses[strengths[first]], begun = left_out(first, [None] * len(parts), 0.0)
    for step in (1, -1):
        place, best = first, losses[strengths[first]]
        near: Sequence[Tensor | None] = begun
        while 0 <= place + step < len(strengths):
            value, found = left_out(place + step, near, strengths[place])
            place, near = place + step, found
            losses[strengths[place]] = value
            if value >= best:
                break
            best = value
        if best < losses[strengths[first]]:  # it went down this way, so the other way is up
            break
    return losses


class _Problem:
    """The features in their principal axes, and the loss there."""

    def __init__(
        self, features: Tensor, labels: NDArray[np.int64], classes: int, weights: NDArray[np.float32] | None
    ) -> None:
        views, count, width = features.shape
        self.labels, self.classes = labels, classes
        own = np.ones(count, np.float32) if weights is None else weights[labels]
        self.sample_weights = torch.from_numpy(own / own.mean())
        self._mean = features[0].double().mean(dim=0)
        deviation = features[0].double().std(dim=0, correction=0)
        # A constant feature contains no information, and its deviation is too small to divide by.
        floor = 1e-3 * float(deviation.mean()) + 1e-12
        self._deviation = torch.where(deviation > floor, deviation, torch.inf)
        standard = (features - self._mean.float()).div_(self._deviation.float()).reshape(views * count, width)
        values, axes = torch.linalg.eigh((standard.T @ standard).double() / len(standard))
        kept = values > 1e-7 * values.max().clamp_min(1e-12)
        self._values, self._axes = values[kept], axes[:, kept]
        self._views = (standard @ self._axes.float()).reshape(views, count, -1)
        self._one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels), classes).float()
        self._curvature = max(1, classes - 1) / classes**2

    def _scale(self, strength: float) -> Tensor:
        scale: Tensor = (self._curvature * self._values + strength).rsqrt()
        return scale

    def rescaled(self, solution: Tensor, before: float, strength: float) -> Tensor:
        """The same head in the coordinates of another strength."""
        moved: Tensor = solution.clone()
        moved[:-1] *= (self._scale(before) / self._scale(strength)).unsqueeze(1)
        return moved

    def logits(self, solution: Tensor, strength: float, images: NDArray[np.bool_]) -> Tensor:
        """Logits of the first view of some images: float32 [n, K]."""
        weight = (self._scale(strength).unsqueeze(1) * solution[:-1]).float()
        logits: Tensor = self._views[0][torch.from_numpy(images)] @ weight + solution[-1].float()
        return logits

    def head(self, solution: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        """Weight [K, D] and bias [K] for raw features."""
        inner = self._axes @ (self._scale(strength).unsqueeze(1) * solution[:-1])
        weight = (inner / self._deviation.unsqueeze(1)).T
        bias = solution[-1] - weight @ self._mean
        return weight.float().contiguous(), (bias - bias.mean()).float()

    def solve(self, strength: float, images: NDArray[np.bool_], start: Tensor | None, tolerance: float) -> Tensor:
        """The solution on some images: float64 [r + 1, K], the last row is the bias."""
        from scipy.optimize import minimize

        kept = torch.from_numpy(images)
        rows = (self._views if bool(images.all()) else self._views[:, kept]).flatten(0, 1)
        # With few classes, the products are faster as [K, r] x [r, n] and [K, n] x [n, r]: a quarter of the time.
        columns = rows.T.contiguous()
        views = self._views.shape[0]
        target = self._one_hot[kept].repeat(views, 1).T.contiguous()
        sample = self.sample_weights[kept].repeat(views)
        sample = sample / sample.sum()
        scale = self._scale(strength)
        shape = (len(self._values) + 1, self.classes)

        def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            point = torch.from_numpy(flat).reshape(shape)
            weight = scale * point[:-1].T
            logs = torch.log_softmax(weight.float() @ columns + point[-1].float().unsqueeze(1), dim=0)
            value = -float((target * logs * sample).sum(dtype=torch.float64))
            # Denormal numbers would make the products many times slower.
            residual = (logs.clamp_min(_SMALLEST).exp() - target) * sample
            gradient = torch.empty(shape, dtype=torch.float64)
            gradient[:-1] = (scale * ((residual @ rows).double() + strength * weight)).T
            gradient[-1] = residual.sum(dim=1, dtype=torch.float64)
            return value + 0.5 * strength * float((weight**2).sum()), gradient.numpy().ravel()

        begin = np.zeros(shape) if start is None else start.numpy()
        found = minimize(
            loss, begin.ravel(), jac=True, method="L-BFGS-B",
            options={"maxiter": _STEPS, "maxcor": 20, "gtol": tolerance, "ftol": 1e-9},
        )  # fmt: skip
        return torch.from_numpy(np.asarray(found.x)).reshape(shape)
