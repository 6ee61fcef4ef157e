"""A stem made of the training images, and convolutions that start as identities, in any network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kitae.errors import RecipeError
from kitae.models import starts
from kitae.models.build import build
from kitae.models.spec import ModelSpec
from kitae.models.starts import stem_of, whiten
from kitae.pipelines.setup import Setup
from kitae.recipe import Recipe
from kitae.training.distributed import World
from tests.refusals import refused

CPU = World(0, 1, torch.device("cpu"))


def built(name: str, **fields: object) -> nn.Module:
    torch.manual_seed(0)
    return build(ModelSpec.model_validate({"name": name, **fields}), classes=10, channels=3, image_size=32)


def images(count: int = 40) -> torch.Tensor:
    torch.manual_seed(1)
    return nn.functional.avg_pool2d(torch.randn(count, 3, 34, 34), 3, 1)


@pytest.mark.parametrize("filters", [16, 54, 64])
def test_any_stem_can_be_whitened(filters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stem = nn.Conv2d(3, filters, 3, padding=1)
    before = stem.weight.detach().clone()
    monkeypatch.setattr(starts, "_EPS", 0.0)
    whiten(stem, images())
    half = min(filters // 2, 27)
    out = nn.functional.conv2d(images(), stem.weight).transpose(0, 1).flatten(1)
    torch.testing.assert_close(out[half : 2 * half], -out[:half])
    torch.testing.assert_close(out[:half] @ out[:half].T / out.shape[1], torch.eye(half), atol=2e-2, rtol=2e-2)
    assert torch.equal(stem.weight[2 * half :], before[2 * half :])
    kept = stem.weight[:half].flatten(1).norm(dim=1)
    assert torch.equal(kept.argsort(), torch.arange(half))  # the largest variance needs the smallest filter


def test_patches_of_many_images_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = nn.Conv2d(3, 54, 3, stride=2), nn.Conv2d(3, 54, 3, stride=2)
    whiten(whole, images())
    monkeypatch.setattr(starts, "_AT_ONCE", 20_000)
    whiten(parts, images())
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-4, atol=1e-4)


def test_a_convolution_that_does_not_see_the_image_is_not_whitened() -> None:
    refused(RecipeError, "does not see the image itself", whiten, nn.Conv2d(48, 64, 3), images())


def test_convolutions_of_any_network_can_start_as_identities() -> None:
    default, identity = built("resnet9", width=8), built("resnet9", width=8, identity_init=True)
    assert torch.equal(stem_of(default).weight, stem_of(identity).weight)
    changed = 0
    for one, other in zip(default.modules(), identity.modules(), strict=True):
        if isinstance(other, nn.Conv2d) and other is not stem_of(identity):
            maps = torch.randn(2, other.in_channels, 6, 6)
            same = min(other.in_channels, other.out_channels)
            out = nn.functional.conv2d(maps, other.weight, padding=other.padding)
            torch.testing.assert_close(out[:, :same], maps[:, :same])
            assert torch.equal(one.weight[same:], other.weight[same:])
            changed += 1
    assert changed == 7


def test_airbench_starts_in_both_ways_unless_told_otherwise() -> None:
    own, plain = built("airbench", width=8), built("airbench", width=8, whiten_stem=False, identity_init=False)
    assert not stem_of(own).weight.requires_grad
    assert stem_of(plain).weight.requires_grad
    assert torch.equal(own.blocks[1][4].weight, torch.eye(32).reshape(32, 32, 1, 1) * _centre())
    assert not torch.equal(own.blocks[1][4].weight, plain.blocks[1][4].weight)
    assert torch.equal(own.blocks[0][0].weight[24:], plain.blocks[0][0].weight[24:])


def _centre() -> torch.Tensor:
    kernel = torch.zeros(3, 3)
    kernel[1, 1] = 1
    return kernel


def test_a_run_whitens_where_the_recipe_asks_for_it() -> None:
    recipe = Recipe.load("fashion-mini").override("model.width=8", "data.limit=400", "train.device=cpu")
    plain, whitened = (
        Setup.without_run(recipe.override(f"model.whiten_stem={value}")).initial_model(CPU)
        for value in ("null", "true")
    )
    assert not torch.equal(stem_of(plain).weight, stem_of(whitened).weight)
    torch.testing.assert_close(stem_of(whitened).weight[4:8], -stem_of(whitened).weight[:4])
    own, without = (
        Setup.without_run(recipe.override("model.name=airbench", f"model.whiten_stem={value}")).initial_model(CPU)
        for value in ("null", "false")
    )
    torch.testing.assert_close(own.stem.weight[4:], -own.stem.weight[:4])
    assert not torch.allclose(without.stem.weight[4:], -without.stem.weight[:4])


@pytest.mark.parametrize("field", ["whiten_stem", "identity_init"])
def test_pretrained_weights_are_not_replaced(field: str) -> None:
    with pytest.raises(RecipeError, match=rf"model: {field}: would replace pretrained weights"):
        Recipe.load("fashion-mini").override(f"model={{name: timm:resnet18, pretrained: true, {field}: true}}")


def test_recipes_from_before_keep_their_fingerprint() -> None:
    dumped = Recipe.load("cifar10-speed").model_dump(mode="json")
    assert not {"whiten_stem", "identity_init"} & dumped["model"].keys()
