"""The network of the speed records."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kitae.models.build import build
from kitae.models.spec import ModelSpec
from kitae.models.structure import count_macs
from kitae.pipelines.setup import Setup
from kitae.recipe import Recipe
from kitae.training.distributed import World


def test_it_costs_what_is_said() -> None:
    model = build(ModelSpec(name="airbench"), classes=10, channels=3, image_size=32)
    assert round(count_macs(model, 3, 32) / 1e6) == 118


def test_a_run_whitens_with_its_own_training_images() -> None:
    recipe = Recipe.load("fashion-mini").override(
        "model.name=airbench", "model.width=8", "data.limit=400", "train.device=cpu"
    )
    world = World(0, 1, torch.device("cpu"))
    first, second = (Setup.without_run(recipe).initial_model(world) for _ in range(2))
    assert torch.equal(first.stem.weight, second.stem.weight)
    other = Setup.without_run(recipe.override("data.split_seed=9")).initial_model(world)
    assert not torch.equal(first.stem.weight, other.stem.weight)
    assert torch.equal(first.classifier.weight, other.classifier.weight)


def test_a_loaded_stem_is_not_whitened_again(tmp_path: Path) -> None:
    recipe = Recipe.load("fashion-mini").override(
        "model.name=airbench", "model.width=8", "data.limit=400", "train.device=cpu"
    )
    world = World(0, 1, torch.device("cpu"))
    trained = Setup.without_run(recipe.override("data.split_seed=9")).initial_model(world)
    save_file({name: tensor.contiguous() for name, tensor in trained.state_dict().items()}, tmp_path / "w.safetensors")
    recipe = recipe.override(f"model.pretrained={tmp_path / 'w.safetensors'}")
    model = Setup.without_run(recipe).initial_model(world)
    assert torch.equal(model.stem.weight, trained.stem.weight)
    assert torch.equal(model.stem.bias, trained.stem.bias)


@pytest.mark.parametrize("frozen", [{"freeze": "statistics"}, {"freeze_first": 1}])
def test_what_is_fixed_stays_fixed_beside_frozen_layers(tmp_path: Path, frozen: dict[str, object]) -> None:
    def make(**options: object) -> torch.nn.Module:
        spec = ModelSpec.model_validate({"name": "airbench", "width": 8, **options})
        return build(spec, classes=10, channels=3, image_size=32)

    fresh = make()
    save_file({name: tensor.contiguous() for name, tensor in fresh.state_dict().items()}, tmp_path / "w.safetensors")
    fixed = {name for name, parameter in fresh.named_parameters() if not parameter.requires_grad}
    assert {"stem.weight", "blocks.2.5.weight"} <= fixed  # a BatchNorm's scale is fixed too
    model = make(pretrained=str(tmp_path / "w.safetensors"), **frozen)
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if name in fixed)
    assert model.classifier.weight.requires_grad
