"""`model.features: stages`: what the classifier sees, and that the net below it stays what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from kitae.compression.channels import remove_channels
from kitae.errors import RecipeError
from kitae.models.build import build
from kitae.models.spec import ModelSpec
from kitae.models.stages import StageFeatures
from kitae.models.structure import layer_groups, linear_classifier
from kitae.training.optim import parameter_groups
from kitae.training.spec import OptimizerSpec


def make(name: str = "timm:test_resnet", classes: int = 4, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build(ModelSpec(name=name, **options), classes=classes, channels=3, image_size=64)


def saved(path: Path, model: nn.Module) -> str:
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
    return str(path)


def test_the_classifier_sees_the_mean_of_each_stage_and_the_net_s_own_features() -> None:
    model = make(features="stages").eval()
    assert isinstance(model, StageFeatures)
    images, seen = torch.rand(3, 3, 64, 64), []
    layer = linear_classifier(model)
    assert layer is model.classifier
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        logits = model(images)
    plain = timm.create_model("test_resnet", num_classes=0).eval()
    plain.load_state_dict(model.net.state_dict())
    stages: list[torch.Tensor] = []
    for stage in (plain.act1, plain.layer1, plain.layer2, plain.layer3):  # layer4's mean is the net's own features
        stage.register_forward_hook(lambda _, __, output: stages.append(output.mean((2, 3))))
    with torch.no_grad():
        own = plain(images)
    torch.testing.assert_close(seen[0], torch.cat([*stages, own], dim=1))
    torch.testing.assert_close(logits, layer(seen[0]))
    assert seen[0].shape == (3, 32 + 32 + 48 + 192 + 96)


def test_layer_groups_are_those_of_the_plain_net() -> None:
    plain, wide = layer_groups(make()), layer_groups(make(features="stages"))
    assert [[f"net.{name}" for name in group] for group in plain[:-1]] == wide[:-1]
    assert wide[-1] == ["classifier.weight", "classifier.bias"]


def test_weight_decay_leaves_out_what_the_net_names() -> None:
    def undecayed(model: nn.Module) -> set[str]:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = parameter_groups(model, OptimizerSpec(name="adamw"))
        return {names[id(one)] for group in groups if not group["weight_decay"] for one in group["params"]}

    with torch.device("meta"):
        plain = timm.create_model("efficientvit_m0", img_size=64, num_classes=0)
    wide = StageFeatures(plain, "timm:efficientvit_m0", 4)
    own = {f"net.{name}" for name in undecayed(plain)}
    assert any(name.endswith("attention_biases") for name in own)  # matrices of which only the net knows
    assert undecayed(wide) == own | {"classifier.bias"}
    assert StageFeatures(timm.create_model("test_resnet", num_classes=0), "", 4).no_weight_decay() == set()


@pytest.mark.parametrize("classes", [4, 7])
def test_weights_of_the_plain_net_and_its_own_are_taken(tmp_path: Path, classes: int) -> None:
    plain = make(classes=4, seed=1)
    path = saved(tmp_path / "plain.safetensors", plain)
    wide = make(classes=classes, features="stages", pretrained=path)
    tensors = wide.state_dict()
    for name, tensor in plain.state_dict().items():
        assert name.startswith("fc.") or torch.equal(tensors[f"net.{name}"], tensor), name
    assert not any(parameter.any() for parameter in wide.classifier.parameters()), "it starts at zero"
    nn.init.normal_(wide.classifier.weight)
    again = make(classes=classes, features="stages", pretrained=saved(tmp_path / "own.safetensors", wide))
    assert all(torch.equal(a, b) for a, b in zip(wide.parameters(), again.parameters(), strict=True))


def test_a_stem_that_is_frozen_stays_frozen(tmp_path: Path) -> None:
    path = saved(tmp_path / "plain.safetensors", make())
    plain, wide = (make(features=features, pretrained=path, freeze_first=3) for features in ("last", "stages"))
    frozen = [sum(not parameter.requires_grad for parameter in model.parameters()) for model in (plain, wide)]
    assert frozen[0] == frozen[1] > 0


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:resnet10t", "timm:mobilenetv3_small_050"])
def test_channels_can_be_removed(name: str) -> None:
    model = make(name, features="stages")
    batch = torch.randn(4, 3, 64, 64), torch.zeros(4, dtype=torch.int64)
    pruned = remove_channels(model, (3, 64, 64), 0.5, batches=lambda: [batch])
    assert pruned.model.classifier.in_features < model.classifier.in_features  # type: ignore[union-attr, operator]
    assert pruned.masked_error < 1e-4


@pytest.mark.parametrize("name", ["resnet8", "torchvision:resnet18"])
def test_other_nets_refuse_it(name: str) -> None:
    with pytest.raises(RecipeError, match=r"model\.features: .* does not support it; remove it"):
        make(name, features="stages")


def test_nets_whose_stages_timm_does_not_give_refuse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(timm.models.ResNet, "forward_intermediates")
    with pytest.raises(RecipeError, match=r"model\.features: .* timm:test_resnet; set it to last"):
        make(features="stages")
