"""The linear head: the optimum that its loss has, and how its strength and folds are chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kitae.data.groups import assign_folds
from kitae.training.probe import STRENGTHS, Head, fit_head


def clouds(
    count: int = 120, width: int = 10, classes: int = 3, spread: float = 1.5, seed: int = 0
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Features float32 [1, n, D] around a centre per class, with scales that differ a thousandfold, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = rng.normal(0, 1, (classes, width))
    scale = 10.0 ** rng.uniform(-1, 2, width)
    features = (centres[labels] + rng.normal(0, spread, (count, width))) * scale + 3.0
    return torch.from_numpy(features.astype(np.float32))[None], labels


def fitted(features: torch.Tensor, labels: NDArray[np.int64], **options: object) -> Head:
    folds = assign_folds(labels, np.arange(len(labels)), 5, 0)
    return fit_head(features, labels, int(labels.max()) + 1, folds=folds, **options)  # type: ignore[arg-type]


def objective(head: Head, features: torch.Tensor, labels: NDArray[np.int64], strength: float) -> torch.Tensor:
    """The gradient of the loss in the standardised features, by autograd."""
    flat = features.flatten(0, 1).double()
    mean, deviation = features[0].double().mean(0), features[0].double().std(0, correction=0)
    weight = (head.weight.double() * deviation).requires_grad_()
    bias = (head.bias.double() + head.weight.double() @ mean).requires_grad_()
    logits = ((flat - mean) / deviation) @ weight.T + bias
    targets = torch.from_numpy(np.tile(labels, len(features)))
    loss = torch.nn.functional.cross_entropy(logits, targets) + 0.5 * strength * (weight**2).sum()
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, (weight, bias))])


@pytest.mark.parametrize("strength", [1.0, 0.01, 1e-4])
@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("width", [10, 300])
def test_it_is_the_optimum_of_its_loss(strength: float, views: int, width: int) -> None:
    features, labels = clouds(width=width)
    noise = torch.from_numpy(np.random.default_rng(1).normal(0, 0.1, (views, *features.shape[1:]))).float()
    features = features * (1 + noise * torch.arange(views).clamp(max=1)[:, None, None])
    head = fitted(features, labels, strengths=(strength,))
    assert objective(head, features, labels, strength).abs().max() < 1e-4
    assert head.strength == strength


def test_it_agrees_with_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    features, labels = clouds(count=300, width=40, classes=5)
    head = fitted(features, labels)
    plain = features[0].numpy()
    standard = (plain - plain.mean(0)) / plain.std(0)
    other = linear.LogisticRegression(C=1 / (head.strength * len(labels)), max_iter=10_000, tol=1e-8)
    other.fit(standard, labels)
    logits = plain @ head.weight.numpy().T + head.bias.numpy()
    shares = torch.softmax(torch.from_numpy(logits), 1).numpy()
    np.testing.assert_allclose(shares, other.predict_proba(standard), atol=2e-3)
    assert head.train_accuracy == pytest.approx((other.predict(standard) == labels).mean())


def test_the_strength_is_the_one_that_predicts_best() -> None:
    features, labels = clouds(spread=3.0)
    head = fitted(features, labels)
    everywhere = {value: fitted(features, labels, strengths=(value,)) for value in STRENGTHS}
    test, truth = clouds(count=3000, spread=3.0, seed=0)  # the same centres, and more images
    losses = {
        value: float(torch.nn.functional.cross_entropy(test[0] @ one.weight.T + one.bias, torch.from_numpy(truth)))
        for value, one in everywhere.items()
    }
    assert losses[head.strength] < 1.1 * min(losses.values())
    assert min(head.losses, key=lambda value: head.losses[value]) == head.strength
    separable, labels = clouds(spread=0.05)
    assert fitted(separable, labels).strength < head.strength


def test_the_search_leaves_the_end_of_the_strengths_that_it_starts_at() -> None:
    features, labels = clouds(spread=3.0)
    head = fitted(features, labels, strengths=(0.1, 1e-3, 1e-6))  # it starts at the last of fewer than six
    assert head.strength == 0.1
    assert set(head.losses) == {0.1, 1e-3, 1e-6}


def test_the_same_images_give_the_same_head_whatever_the_other_seeds() -> None:
    features, labels = clouds()
    first = fitted(features, labels)
    torch.manual_seed(9)
    np.random.seed(9)
    assert torch.equal(first.weight, fitted(features, labels).weight)


def test_classes_are_weighed() -> None:
    features, labels = clouds(count=200, classes=2, spread=4.0)
    keep = (labels == 0) | (np.arange(200) % 10 == 1)
    features, labels = features[:, torch.from_numpy(keep)], labels[keep]
    weights = (len(labels) / (2 * np.bincount(labels))).astype(np.float32)

    def share(head: Head) -> float:
        return float((features[0] @ head.weight.T + head.bias).argmax(1).float().mean())

    plain, weighed = fitted(features, labels), fitted(features, labels, weights=weights)
    assert share(weighed) > share(plain) + 0.1


@pytest.mark.parametrize("case", ["one image per class", "constant features", "equal images", "two images"])
def test_hardly_any_data(case: str) -> None:
    features, labels = clouds(count=12, classes=12)
    if case == "constant features":
        features, labels = torch.ones(1, 12, 10), np.arange(12) % 3
        features[..., 0] = torch.arange(12)
    elif case == "equal images":
        features, labels = torch.ones(1, 12, 10), np.arange(12) % 3
    elif case == "two images":
        features, labels = features[:, :2], np.array([0, 1])
    head = fitted(features, labels)
    assert head.weight.isfinite().all()
    assert head.bias.isfinite().all()
