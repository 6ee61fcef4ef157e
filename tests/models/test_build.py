"""One contract for every net, then what each has of its own."""

from __future__ import annotations

import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from kitae.errors import RecipeError
from kitae.models.build import MODELS, build, build_seeded, normalization, supports
from kitae.models.layers import DropoutLinear
from kitae.models.libraries import build_timm
from kitae.models.spec import ModelSpec
from kitae.models.structure import classifier_names, count_macs, count_parameters, layer_groups
from kitae.preprocess import PreprocessRules, Size
from tests.refusals import refused

LIBRARY = ["timm:test_resnet", "timm:test_vit", "torchvision:mobilenet_v3_small", "torchvision:resnet18"]
DEEPER = ("resnet34", "resnet56", "wide_resnet28_10")  # more of the blocks that others have too
SMALL = ["simple_cnn", "resnet8", "resnet9", "timm:test_resnet", "torchvision:resnet18"]


def make(
    name: str, classes: int = 7, channels: int = 3, image_size: Size = 32, seed: int = 0, **options: Any
) -> nn.Module:
    torch.manual_seed(seed)
    if name == "resnet9":
        options.setdefault("width", 16)
    return build(ModelSpec(name=name, **options), classes=classes, channels=channels, image_size=image_size)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(name: str, channels: int) -> None:
    for size in (28, 32, 64, 224):
        with torch.device("meta"):
            model = make(name, channels=channels, image_size=size)
            assert model(torch.zeros(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", LIBRARY)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_of_libraries(name: str, channels: int) -> None:
    model = make(name, channels=channels, image_size=64)
    assert model(torch.zeros(2, channels, 64, 64)).shape == (2, 7)


def test_weights_of_a_run_are_a_function_of_its_seed_alone() -> None:
    spec, before = ModelSpec(name="resnet8", pretrained="missing.safetensors", freeze="backbone"), torch.get_rng_state()
    first, second, other = (build_seeded(spec.unfrozen, seed, 7, PreprocessRules(16)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in first.parameters())
    frozen = [not parameter.requires_grad for parameter in build_seeded(spec, 3, 7, PreprocessRules(16)).parameters()]
    assert any(frozen)


def test_networks_that_threads_build_at_the_same_time_have_their_own_weights() -> None:
    seeds, spec = range(8), ModelSpec(name="resnet8", width=4)

    def built(seed: int) -> dict[str, Tensor]:
        return build_seeded(spec, seed, 7, PreprocessRules(16)).state_dict()

    expected, interval = [built(seed) for seed in seeds], sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(built, seeds))
    finally:
        sys.setswitchinterval(interval)
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_defaults_of_a_notebook_do_not_change_a_run_s_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec(name="resnet8", width=4)
    expected = build_seeded(spec, 3, 7, PreprocessRules(16)).state_dict()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs' generators are the user's"))
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"), torch.inference_mode():
            model = build_seeded(spec, 3, 7, PreprocessRules(16))
            assert (torch.get_default_dtype(), torch.get_default_device().type) == (torch.bfloat16, "meta")
            assert torch.is_inference_mode_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.is_inference() for parameter in model.parameters())


@pytest.mark.parametrize("name", [name for name in (*MODELS, *LIBRARY) if name not in DEEPER])
def test_eval_is_a_function(name: str) -> None:
    size = 16 if name in MODELS else 32
    depth = 0.5 if supports(name, stochastic_depth=0.5) else 0.0
    model = make(name, stochastic_depth=depth, dropout=0.5, image_size=size)
    images = torch.randn(2, 3, size, size)
    assert model.training
    with torch.no_grad():
        assert not torch.equal(model(images), model(images)), "dropout must do something in training"
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        model.eval()
        assert torch.equal(model(images), model(images))
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", [*MODELS, *LIBRARY])
def test_layer_groups_are_a_partition_that_ends_in_the_classifier(name: str) -> None:
    model = make(name, image_size=64)
    groups = layer_groups(model)
    names = [parameter for group in groups for parameter in group]
    assert sorted(names) == sorted(key for key, _ in model.named_parameters())
    assert all(groups)
    assert len(groups) >= 4
    heads = classifier_names(model)
    assert set(groups[-1]) == {key for key in names if key.rpartition(".")[0] in heads}
    assert model.get_submodule(heads[0]).weight.shape[0] == 7
    assert groups[0][0] == next(key for key, _ in model.named_parameters())


def test_a_residual_block_is_one_layer_group() -> None:
    groups = layer_groups(make("resnet18"))
    assert len(groups) == 1 + 8 + 1
    assert {name.split(".")[0] for name in groups[0]} == {"stem"}
    assert all(name.startswith("stages.0.1.") for name in groups[2])


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("simple_cnn", {}, 545_098),  # 3*32*9+32 + 32*64*9+64 + 4096*128+128 + 128*10+10
        ("resnet8", {}, 78_042),
        ("resnet20", {}, 272_474),  # 0.27 M (He et al. 2015, table 6)
        ("resnet56", {}, 855_770),  # 0.85 M
        ("resnet9", {"width": 64}, 6_573_120),  # Page 2018
        ("resnet18", {}, 11_173_962),
        ("resnet34", {}, 21_282_122),
        ("resnet50", {}, 23_520_842),
        ("wide_resnet28_10", {}, 36_479_194),  # 36.5 M (Zagoruyko and Komodakis 2016, table 4)
    ],
)
def test_parameter_counts_of_the_literature(name: str, options: dict[str, int], parameters: int) -> None:
    with torch.device("meta"):
        assert count_parameters(make(name, classes=10, **options)) == parameters


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)]
)
def test_with_the_large_stem_it_is_the_net_of_imagenet(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = make(name, classes=1000, image_size=224)
    assert count_parameters(model) == parameters
    assert next(p.shape for p in model.parameters() if p.ndim == 4) == (64, 3, 7, 7)


def test_the_stem_fits_the_image_unless_told_otherwise() -> None:
    def side(image_size: int, stem: str, name: str = "resnet18") -> int:
        """Of what leaves the stem."""
        with torch.device("meta"):
            first = make(name, image_size=image_size, stem=stem).stem
            return int(first(torch.empty(1, 3, image_size, image_size)).shape[-1])  # type: ignore[operator]

    assert [side(size, "auto") for size in (28, 64, 65, 224)] == [28, 64, 17, 56]
    for name in ("resnet18", "resnet9", "wide_resnet28_10"):
        assert [side(96, stem, name) for stem in ("small", "medium", "large")] == [96, 48, 24]


def test_macs_by_hand() -> None:
    expected = 27 * 32 * 32**2 + 288 * 64 * 16**2 + 4096 * 128 + 128 * 10
    assert count_macs(make("simple_cnn", classes=10), 3, 32) == expected
    model = make("resnet20", classes=10)
    assert count_macs(model, 3, 32) == 40_813_184  # 41 million in the literature
    assert model.training, "counting leaves the mode as it was"
    assert count_macs(
        nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.Flatten(), nn.Linear(128, 5)), 4, 4
    ) == (8 * 2 * 9 * 16 + 128 * 5)


def test_counting_macs_in_threads_leaves_attention_as_it_was() -> None:
    class Waiting(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            entered.set()
            self.leave.wait(60)
            return images

    entered, models = threading.Event(), [Waiting(1, 1), Waiting(1, 1)]
    with ThreadPoolExecutor(2) as pool:
        futures = []
        for model in models:
            model.leave = threading.Event()
            entered.clear()
            futures.append(pool.submit(count_macs, model, 1, 4))
            assert entered.wait(60)
        for model, future in zip(models, futures, strict=True):
            model.leave.set()
            assert future.result() == 0
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()


def test_macs_include_attention() -> None:
    tokens, width, hidden = 17, 64, 128
    block = tokens * width * 4 * width + 2 * tokens**2 * width + 2 * tokens * width * hidden
    expected = 16 * (3 * 8**2) * width + 2 * block + width * 10
    model = VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=width, mlp_dim=hidden, num_classes=10)
    assert count_macs(model, 3, 32) == expected
    assert torch.backends.mha.get_fastpath_enabled(), "counting leaves torch's settings as they were"
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": width, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    assert count_macs(timm.create_model("vit_tiny_patch16_224", num_classes=10, **sizes), 3, 32) == expected


def test_width_32_resnet9_trains_at_572_mflop_an_image() -> None:
    macs = count_macs(make("resnet9", classes=10, width=32), 3, 32)
    assert macs == 95_259_136
    assert round(6 * macs / 1e6) == 572


# Options


def test_what_a_net_does_not_refuse_it_has() -> None:
    with torch.device("meta"):
        scaling = [name for name in MODELS if supports(name, width=8)]
        for name in scaling:
            assert count_parameters(make(name, width=8)) < count_parameters(make(name, width=12)), name
    assert set(scaling) == set(MODELS) - {"simple_cnn"}
    assert not supports("simple_cnn", stochastic_depth=0.5)
    assert not supports("timm:test_resnet", width=8)


def test_dropout_lies_before_the_classifier_and_keeps_the_names_of_weights() -> None:
    for name in SMALL:
        plain, dropped = make(name), make(name, dropout=0.5)
        assert list(plain.state_dict()) == list(dropped.state_dict())
        layer = dropped.get_submodule(classifier_names(dropped)[0])
        assert isinstance(layer, DropoutLinear)
        ones = torch.ones(1, layer.in_features)
        outputs = {round(layer(ones).sum().item(), 4) for _ in range(5)}
        assert len(outputs) > 1
        layer.eval()
        assert torch.equal(layer(ones), nn.functional.linear(ones, layer.weight, layer.bias))


def test_a_librarys_own_dropout_is_what_the_recipe_says() -> None:
    def rates(**options: float) -> list[float]:
        model = make("torchvision:mobilenet_v3_small", **options)
        return [module.p for module in model.modules() if isinstance(module, nn.Dropout)]

    assert rates() == [0.0]  # torchvision's own default is 0.2
    assert rates(dropout=0.3) == [0.3]


@pytest.mark.parametrize("name", ["samvit_base_patch16_224", "levit_128s"])
def test_a_head_s_own_dropout_is_taken_before_those_beside_it(name: str) -> None:
    with torch.device("meta"):
        spec = ModelSpec(name=f"timm:{name}", dropout=0.3)
        model = build_timm(name, spec, None, classes=3, channels=3, image_size=224)
    on = {key for key, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p > 0}
    assert on == {f"{head}.drop" for head in classifier_names(model)}  # samvit has another one after its positions


def test_no_dropout_of_a_library_stays_on_where_the_recipe_has_none() -> None:
    model = make("timm:ghostnet_050")  # which drops its features by a rate of its own, 0.2
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), model(images))
    # Its classifier is a subclass of nn.Linear.
    (name,) = classifier_names(model)
    assert isinstance(make("timm:ghostnet_050", dropout=0.3).get_submodule(name), DropoutLinear)


def test_frozen_layers_drop_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", make("timm:test_vit"))
    model = make("timm:test_vit", pretrained=path, freeze_first=4, stochastic_depth=0.6)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    drops = {name: module for name, module in model.named_modules() if type(module).__name__ == "DropPath"}
    assert drops
    for name, module in drops.items():
        block = name.rpartition(".")[0]
        assert module.training == any(key.startswith(f"{block}.") for key in trained), name
    assert len({module.training for module in drops.values()}) == 2


def test_a_file_of_three_channels_fits_one(tmp_path: Path) -> None:
    wide = make("resnet8")
    grey = make("resnet8", channels=1, pretrained=saved(tmp_path / "w.safetensors", wide))
    torch.testing.assert_close(grey.stem[0].weight, wide.stem[0].weight.sum(1, keepdim=True))


def test_stochastic_depth_of_libraries() -> None:
    def rates(model: nn.Module) -> list[float]:
        kinds = {"DropPath": "drop_prob", "StochasticDepth": "p"}
        return [getattr(m, kinds[type(m).__name__]) for m in model.modules() if type(m).__name__ in kinds]

    drops = rates(make("timm:test_vit", stochastic_depth=0.2))
    assert max(drops) == pytest.approx(0.2)
    assert rates(make("timm:test_vit")) == []
    default = rates(make("torchvision:efficientnet_b0"))
    assert default
    assert set(default) == {0.0}, "torchvision's own default is 0.2; the recipe said nothing"
    assert max(rates(make("torchvision:efficientnet_b0", stochastic_depth=0.4))) > 0.35
    assert max(rates(make("torchvision:swin_t", stochastic_depth=0.4))) == pytest.approx(0.4)  # it has 0.2 of its own
    assert set(rates(make("torchvision:swin_t"))) == {0.0}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "resnet19"}, r"model\.name.*'resnet19' \(did you mean resnet"),
        ({"name": "nonsense"}, r"valid: simple_cnn, resnet8, .*wide_resnet28_10, timm:NAME, torchvision:NAME"),
        ({"name": "timm:resnet181"}, r"timm net 'resnet181' \(did you mean resnet"),
        ({"name": "torchvision:resnet19"}, r"did you mean resnet"),
        ({"name": "hub:resnet18"}, r"unknown name 'hub:resnet18'"),
        ({"name": "simple_cnn", "width": 8}, r"model\.width: simple_cnn does not support it"),
        ({"name": "simple_cnn", "stochastic_depth": 0.1}, r"model\.stochastic_depth: simple_cnn does not support it"),
        ({"name": "simple_cnn", "stem": "large"}, r"model\.stem"),
        ({"name": "timm:test_resnet", "width": 8}, r"model\.width: timm:test_resnet does not support it"),
        ({"name": "timm:test_resnet", "stem": "small"}, r"model\.stem"),
        ({"name": "torchvision:resnet18", "stochastic_depth": 0.1}, r"depth: torchvision:resnet18 does not"),
        ({"name": "timm:vgg11", "stochastic_depth": 0.1}, r"model\.stochastic_depth: timm:vgg11 does not support it"),
        ({"name": "torchvision:swin_t", "pretrained": True}, r"pickles"),
        ({"name": "torchvision:resnet18", "pretrained": True}, r"timm:resnet18\.tv_in1k"),
        ({"name": "resnet18", "pretrained": True}, r"no published weights of resnet18"),
        ({"name": "resnet8", "pretrained": "weights.pth"}, r"reads no pickle"),
        ({"name": "resnet8", "pretrained": "nowhere.safetensors"}, r"there is no file nowhere\.safetensors"),
        ({"name": "torchvision:inception_v3"}, r"does not run on 32x32 .*; set data\.image_size"),
        ({"name": "timm:gcvit_xxtiny", "image_size": 16}, r"gcvit_xxtiny does not run on 16x16 .*; set data"),
        ({"name": "timm:efficientvit_m0", "image_size": 8}, r"timm:efficientvit_m0 does not run on 8x8"),
        ({"name": "resnet8", "classes": 1}, "at least 2 classes"),
        ({"name": "resnet8", "channels": 2}, "at least 2 classes, 1 or 3 channels"),
        ({"name": "resnet8", "image_size": 2}, "at least 2 classes, 1 or 3 channels and 4 pixels"),
        ({"name": "resnet8", "image_size": (3, 64)}, "4 pixels"),
        ({"name": "torchvision:vit_b_32", "image_size": (32, 64)}, r"model\.name.*squares.*data\.image_size"),
    ],
)
def test_mistakes_in_a_spec_and_impossible_sizes_are_named(spec: dict[str, Any], message: str) -> None:
    images = {name: spec.get(name, usual) for name, usual in (("classes", 7), ("channels", 3), ("image_size", 32))}
    fields = {name: value for name, value in spec.items() if name not in images}
    refused(RecipeError, message, build, ModelSpec(**fields), **images)


# Pretrained weights and freezing


def saved(path: Path, model: nn.Module) -> str:
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
    return str(path)


@pytest.mark.parametrize("name", SMALL)
def test_local_weights(name: str, tmp_path: Path) -> None:
    teacher = make(name, classes=10, seed=1)
    path = saved(tmp_path / "w.safetensors", teacher)
    same = make(name, classes=10, seed=2, pretrained=path)
    assert all(
        torch.equal(a, b) for a, b in zip(teacher.state_dict().values(), same.state_dict().values(), strict=True)
    )

    other = make(name, classes=4, seed=2, pretrained=path)
    heads = classifier_names(other)
    for key, tensor in other.state_dict().items():
        is_head = key.rpartition(".")[0] in heads
        expected = torch.zeros_like(tensor) if is_head else teacher.state_dict()[key]
        assert torch.equal(tensor, expected), key


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "resnet8"])
def test_a_classifier_for_other_classes_learns(name: str, tmp_path: Path) -> None:
    """SqueezeNet has a ReLU after it, which passes no gradient at zero."""
    path = saved(tmp_path / "w.safetensors", make(name, classes=10))
    model = make(name, classes=3, pretrained=path)
    nn.functional.cross_entropy(model(torch.randn(6, 3, 32, 32)), torch.arange(6) % 3).backward()
    for head in classifier_names(model):
        assert model.get_submodule(head).weight.grad.any()  # type: ignore[union-attr]


def test_local_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", make("resnet8", classes=10))
    refused(RecipeError, r"size mismatch for stem\.0\.weight", make, "resnet8", width=8, pretrained=path)
    refused(RecipeError, r"does not fit: .*Missing key", make, "resnet20", pretrained=path)
    wide = saved(tmp_path / "wide.safetensors", make("resnet8", classes=10, width=32))
    refused(RecipeError, "does not fit", make, "resnet8", classes=7, pretrained=wide)
    tensors = load_file(path)
    save_file({**tensors, "stem.1.weight": torch.zeros(16, 3, 3, 3)}, path)  # a convolution where there is a norm
    refused(RecipeError, "does not fit", make, "resnet8", pretrained=path)
    save_file(tensors, path)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(Path(path).read_bytes()[:1000])
    refused(RecipeError, r"broken\.safetensors cannot be read", make, "resnet8", pretrained=str(broken))


def test_normalization_is_that_of_the_pretrained_net() -> None:
    assert normalization(ModelSpec(name="timm:test_vit")) is None, "fresh weights have none"
    assert normalization(ModelSpec(name="resnet18", pretrained="x.safetensors")) is None
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalization(ModelSpec(name="timm:resnet18", pretrained=True)) == imagenet
    assert normalization(ModelSpec(name="torchvision:resnet18", pretrained="x.safetensors")) == imagenet
    half = normalization(ModelSpec(name="timm:vit_tiny_patch16_224", pretrained=True))
    assert half == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    grey = normalization(ModelSpec(name="timm:resnet18", pretrained=True), channels=1)
    assert grey is not None
    assert grey[0] == pytest.approx((0.449,))


@pytest.mark.parametrize("name", ["resnet8", "timm:test_resnet", "torchvision:mobilenet_v3_small"])
def test_a_frozen_backbone_does_not_move(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", make(name, classes=10))
    model = make(name, classes=3, pretrained=path, freeze="backbone", dropout=0.5)
    heads = classifier_names(model)
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {key for key, _ in model.named_parameters() if key.rpartition(".")[0] in heads}

    twin = copy.deepcopy(model)  # as EMA and the measuring of precision do
    before = {key: tensor.clone() for key, tensor in twin.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=1.0)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    for _ in range(2):
        twin.train()
        nn.functional.cross_entropy(twin(images), labels).backward()
        optimizer.step()
    for key, tensor in twin.state_dict().items():
        assert torch.equal(tensor, before[key]) == (key.rpartition(".")[0] not in heads), key
    dropouts = [m for m in twin.modules() if isinstance(m, nn.Dropout | DropoutLinear) and m.p > 0]
    assert [module.training for module in dropouts] == [True], "dropout before the classifier is still on"
    assert not any(module.training for module in twin.modules() if isinstance(module, nn.BatchNorm2d))
    assert not any(module.training for module in twin.eval().modules())
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before), "the copy is a copy"


def test_freezing_random_weights_is_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(ValidationError, match="needs pretrained weights"):
        ModelSpec(name="resnet8", freeze="backbone")


# What other stages rely on


@pytest.mark.parametrize("name", [name for name in MODELS if name not in (*DEEPER, "resnet18", "resnet20", "resnet50")])
def test_export(name: str) -> None:
    options = {"stochastic_depth": 0.2} if supports(name, stochastic_depth=0.2) else {}
    model = make(name, dropout=0.1, **options).eval()
    images = torch.randn(2, 3, 32, 32)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=True)
    more = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(more), model(more))


@pytest.mark.parametrize("name", ["resnet8", "resnet9", "resnet50", "wide_resnet28_10"])
def test_the_residual_sum_is_a_plain_addition(name: str) -> None:
    import operator

    with torch.device("meta"):
        model = make(name)
    graph = torch.fx.symbolic_trace(model).graph
    blocks = sum(
        type(module).__name__ in ("BasicBlock", "Bottleneck", "_Residual9", "PreActivationBlock")
        for module in model.modules()
    )
    assert sum(node.target is operator.add for node in graph.nodes) == blocks > 0
    assert not any(str(node.target).endswith("_") for node in graph.nodes if node.op == "call_method")


@pytest.mark.parametrize("name", ["simple_cnn", "resnet8", "resnet9"])
def test_no_layer_changes_another_layers_output(name: str) -> None:
    model = make(name)
    seen: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    for key, module in model.named_modules():
        if not any(module.children()):
            module.register_forward_hook(
                lambda m, i, output, key=key: seen.append((key, output, output.detach().clone()))
            )
    model(torch.randn(2, 3, 32, 32))
    assert seen
    assert all(torch.equal(output, copied) for _, output, copied in seen)


def test_bf16_and_channels_last_stay_that_way_from_stem_to_pool() -> None:
    """On a CPU this is the fast path; one layer that falls out of it copies every activation twice."""
    model = make("resnet9").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(6, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    outputs: list[tuple[str, torch.Tensor]] = []
    for key, module in model.named_modules():
        if not any(module.children()) and not key.startswith(("pool", "classifier")):
            module.register_forward_hook(lambda m, i, output, key=key: outputs.append((key, output)))
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile,
        torch.autocast("cpu", torch.bfloat16),
    ):
        loss = nn.functional.cross_entropy(model(images).float(), torch.arange(6))
        loss.backward()
    for key, output in outputs:
        assert output.dtype == torch.bfloat16, key
        assert output.is_contiguous(memory_format=torch.channels_last), key
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    shapes = [event.input_shapes[0] for event in profile.events() if event.name == "aten::copy_"]
    copies = [shape for shape in shapes if len(shape) == 4 and shape[0] == 6]
    assert copies == [[6, 3, 32, 32]], "the one cast of the input"


# Rectangles


@pytest.mark.parametrize("name", [*MODELS, "timm:resnet10t", "timm:vit_tiny_patch16_224", "torchvision:resnet18"])
def test_images_may_be_rectangles(name: str) -> None:
    size = (32, 64) if ":" in name or name == "simple_cnn" else (24, 40)
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    model = make(name, image_size=size)
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, *size)).shape == (2, 7)
    square = count_macs(make(name, image_size=64), 3, 64)
    assert count_macs(model, 3, size) < square
