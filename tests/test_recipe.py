"""Recipes: loading, overriding, saving, and what is said about wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from kitae.errors import RecipeError
from kitae.recipe import Recipe, assigns, checked, override, parse_yaml, shipped
from kitae.training.spec import ProbeSpec
from tests.command import kitae
from tests.refusals import refused


@pytest.mark.parametrize("name", sorted({*shipped(), "fashion-mini", "cifar10-quick", "cifar10-strong", "finetune"}))
def test_shipped_recipes_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    assert f"kitae train {name}" in shipped()[name]
    recipe = Recipe.load(name)
    assert recipe.name == name
    recipe.save(tmp_path / "recipe.yaml")
    again = Recipe.load(tmp_path / "recipe.yaml")
    assert again == recipe
    assert again.fingerprint == recipe.fingerprint
    tree = yaml.safe_load(Recipe().to_yaml())  # which holds every default
    assert (tree["train"]["schedule"]["name"], tree["data"]["val_fraction"]) == ("cosine", 0.1)
    with pytest.raises(Exception, match="frozen"):
        recipe.train.epochs = 3  # type: ignore[misc]


def test_a_recipe_is_found_in_the_users_folder_as_data_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Recipe(name="mine").save(tmp_path / "mine.yaml")
    assert Recipe.load("~/mine.yaml").name == "mine"


def test_override_is_typed_and_leaves_the_original_alone() -> None:
    recipe = Recipe.load("fashion-mini")
    changed = recipe.override(
        "train.epochs=3", "train.optimizer.lr=1e-3", "data.limit=null", "model.name=resnet20", "train.ema=0.99"
    )
    assert (changed.train.epochs, changed.train.optimizer.lr, changed.data.limit) == (3, 1e-3, None)
    assert (changed.model.name, changed.train.ema) == ("resnet20", 0.99)
    assert recipe == Recipe.load("fashion-mini")
    assert changed.fingerprint != recipe.fingerprint


def test_another_length_forgets_how_a_run_was_recut() -> None:
    recipe = Recipe.load("fashion-mini").override("train.epochs=6", "train.recut=[[2, 9]]")
    assert recipe.train.last_epoch == 9
    assert recipe.override("train.epochs=30").train.last_epoch == 30
    assert recipe.override("train.seed=3").train.last_epoch == 9
    assert recipe.override("train.recut=[[3, 5]]", "train.epochs=6").train.last_epoch == 5


def test_another_network_forgets_the_hash_of_the_weights() -> None:
    """No file of another network could have it, so a run's recipe could not be tried with one."""
    recipe = Recipe().override(
        "model.name=timm:resnet18", "model.pretrained=true", f"model.pretrained_sha256={'a' * 64}"
    )
    assert recipe.override("model.name=timm:resnet50").model.pretrained_sha256 is None
    assert recipe.override("model.pretrained_sha256=" + "b" * 64, "model.name=x").model.pretrained_sha256 == "b" * 64
    for same in ("model.name=timm:resnet18", "model.pretrained=elsewhere.safetensors"):
        assert recipe.override(same).model.pretrained_sha256 == "a" * 64


def test_override_reaches_into_lists_and_opens_null_sections() -> None:
    recipe = Recipe.load("fashion-mini")
    assert recipe.train.early_stopping is None
    changed = recipe.override("train.early_stopping.patience=4", "augment.train.0.random_crop.padding=3")
    assert changed.train.early_stopping is not None
    assert changed.train.early_stopping.patience == 4
    assert "padding: 3" in changed.to_yaml()


def test_override_names_an_op_by_itself() -> None:
    recipe = Recipe.load("fashion-mini")
    ops = [next(iter(op)) for op in recipe.augment.train]
    assert "random_crop" in ops
    assert "cutout" not in ops
    changed = recipe.override("augment.train.random_crop.padding=3", "augment.train.cutout={size: 8}")
    assert [next(iter(op)) for op in changed.augment.train] == [*ops, "cutout"]
    assert "padding: 3" in changed.to_yaml()
    without = changed.override("augment.train.random_crop=null", "augment.train.cutout.size=6")
    assert [next(iter(op)) for op in without.augment.train] == [*(op for op in ops if op != "random_crop"), "cutout"]
    assert "size: 6" in without.to_yaml()
    assert without.override("augment.train.rotate=null") == without


def test_override_opens_a_section_that_is_at_its_default_or_a_word() -> None:
    recipe = Recipe().override("train.progressive.start=0.5", "train.probe.views=3")
    assert recipe.train.progressive is not None
    assert recipe.train.progressive.start == 0.5
    assert isinstance(recipe.train.probe, ProbeSpec)
    assert recipe.train.probe.views == 3


def test_overrides_apply_in_order_and_a_section_keeps_what_follows_it() -> None:
    recipe = Recipe.load("fashion-mini")
    assert recipe.override("train={epochs: 3}", "train.epochs=5").train.epochs == 5
    assert recipe.override("train.epochs=5", "train={epochs: 3}").train.epochs == 3
    chosen = recipe.override("train.optimizer={name: adamw, lr: 0.01}", "train.optimizer.name=sgd").train.optimizer
    assert (chosen.name, chosen.lr) == ("sgd", 0.01)
    before = recipe.override("train.optimizer.lr=0.3", "train.optimizer.name=adamw").train.optimizer
    assert before == recipe.override("train.optimizer.name=adamw", "train.optimizer.lr=0.3").train.optimizer
    emptied = recipe.override("augment=null", "augment.train.cutout=8", "augment.train.cutout.size=4")
    assert [dict(op) for op in emptied.augment.train] == [{"cutout": {"size": 4}}]
    named = recipe.override("augment.train=[horizontal_flip]", "augment.train.horizontal_flip.p=0.25")
    assert [dict(op) for op in named.augment.train] == [{"horizontal_flip": {"p": 0.25}}]


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["train.epoch=3"], r"unknown field 'epoch' in train \(did you mean epochs\?\); valid: epochs"),
        (["trian.epochs=3"], r"unknown field 'trian' \(did you mean train\?\)"),
        (["train.epochs=many"], r"train\.epochs: should be a valid integer.*'many'"),
        (["train.epochs=-1"], r"train\.epochs: .*greater than or equal to 0"),
        ([f"train.epochs=1{'0' * 400}"], r"train\.epochs: should be less than 2147483648"),
        (["train.batch_size=33"], r"train\.batch_size: .*multiple of 2"),
        (["train.epochs"], "must be FIELD=VALUE"),
        (["train.epochs.x=1"], "epochs is a single value and has no field 'x'"),
        (["data.resize=stretch"], r"data\.resize: should be 'crop', 'squash' or 'pad'"),
        (['data.cache="a\\0b"'], r"data\.cache: must be the path of a folder"),
        (['data.cache="\\ud800"'], r"data\.cache: must be the path of a folder"),
        (["train.optimizer.lr=nan"], r"train\.optimizer\.lr"),
        (["train.optimizer.lr=1e+40"], r"train\.optimizer\.lr: should be less than or equal to 10{15}, "),
        (["train.optimizer.weight_decay=1.0e+40"], r"train\.optimizer\.weight_decay: should be less than or equal"),
        (["augment.train.9={}"], "the list has positions 0 to"),
        (["augment.train.horizontal_flap=null"], "horizontal_flap.*did you mean horizontal_f"),
        (["augment.train.cutout.size=4"], "augment.train.cutout.size: the recipe's augment.train has no cutout"),
        (["train.epochs=["], "not valid YAML"),
        (["name=2024-13-45"], "not valid YAML"),
        (['train.epochs=!!int ""'], "not valid YAML"),
        ([f"train.ema=1{':1' * 300}.0"], "not valid YAML"),
        (["train.progressive.start=64"], r"train\.progressive\.start: should be less than 1, not 64"),
        (["train.probe.view=2"], r"unknown field 'view' in train\.probe \(did you mean views\?\)"),
        (["data.limit.x=1"], "data.limit is a single value and has no field 'x'"),
        (["data.image_size=[96]"], r"data\.image_size"),
        (["data.image_size=[96, 2]"], r"data\.image_size"),
        (["data.image_size=3"], r"data\.image_size"),
        (["data.store_size=3"], r"data\.store_size"),
        (["data.image_size=[96, 128]", "data.store_size=95"], r"store_size: must be at least image_size \(96\)"),
        (["data.normalize={mean: [124], std: [58]}"], r"data\.normalize: mean and std are of pixels .*divide both"),
        (["augment.train=[]", "augment.train.0=3"], r"augment\.train\.0: the list is empty"),
        (["train=3", "train.epochs=3"], "should be a section"),
        (["augment.train=3", "augment.train.cutout={}"], "should be a list of ops"),
        *(
            [[f"train.recut={recut}", "train.epochs=6"], r"recut: .*: the first number must be above"]
            for recut in ("[[6, 9]]", "[[2, 1]]", "[[0, 3]]", "[[2, 4], [4, 8]]")
        ),
    ],
)
def test_wrong_overrides_say_what_would_be_right(assignments: list[str], message: str) -> None:
    refused(RecipeError, message, Recipe.load("fashion-mini").override, *assignments)


def test_a_field_is_assigned_by_itself_or_in_its_section() -> None:
    for text in ("data.val_fraction=0.3", " data.val_fraction =0.3", "data={limit: 9, val_fraction: 0.3}"):
        assert assigns(["train.seed=1", text], "data.val_fraction")
    assert not assigns(["data={limit: 9}", "data.limit=9", "train={seed: 1}"], "data.val_fraction")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ntrain:\n  epochs: 3\n  epoch: 4\n", r":4: unknown field 'epoch' in train"),
        ("name: x\ntrain:\n  epochs: -3\n", r":3: train\.epochs: .*greater than or equal to 0, not -3"),
        ("name: x\ntrain: 7\n", r":2: train: .*"),
        ("name: x\naugment:\n  train:\n    - horizontal_flap: {}\n", ":3: .*op 1.*horizontal_flap.*horizontal_flip"),
        ("name: x\naugment:\n  train:\n    - random_crop: {paddding: 3}\n", ":3: .*op 1.*paddding.*padding"),
        ("name: [x\n", r":\d: not valid YAML"),
        ("- a\n- b\n", ".*must be a mapping"),
        ("a: &a [1]\nb: *a\n", ".*aliases"),
        ("name: x\ntrain:\n  epochs: 3\n  ema: 0.9\n  epochs: 4\n", ":5: 'epochs' is listed twice"),
        ("augment:\n  train:\n    - rotate: {p: 1, 'p': 0.5}\n", ":3: 'p' is listed twice"),
        ("!!python/object/apply:os.system ['true']\n", ".*not valid YAML"),
        ("train:\n  ema: !!float ''\n", ".*not valid YAML"),
        ("data: " + "[" * 20_000, ".*nested more than 50 deep"),
        ("#" * (1 << 21), ".*larger than"),
        (b"\xff\xfe\x00", ".*UTF-8"),
    ],
)
def test_wrong_files_name_the_field_and_the_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / "r.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    refused(RecipeError, rf"r\.yaml{message}", Recipe.load, tmp_path / "r.yaml")


def test_missing_file_and_unknown_name(tmp_path: Path) -> None:
    refused(RecipeError, "cannot read", Recipe.load, tmp_path / "nothing.yaml")
    refused(RecipeError, r"no recipe 'fashion-min' \(did you mean fashion-mini\?\)", Recipe.load, "fashion-min")
    refused(RecipeError, "no recipe 'aaa", Recipe.load, "a" * 300)
    refused(RecipeError, r"is a folder, not a recipe; .* a run's recipe\.yaml$", Recipe.load, tmp_path)


def test_the_schema_is_json_and_a_printed_recipe_is_the_file_with_its_comments(tmp_path: Path) -> None:
    schema = json.loads(kitae(tmp_path, "recipe", "--schema").stdout)
    assert {"data", "augment", "model", "train"} <= set(schema["properties"])
    assert kitae(tmp_path, "recipe", "fashion-mini").stdout == shipped()["fashion-mini"]


@given(st.text(max_size=60))
def test_any_text_is_a_recipe_or_one_line_of_error(text: str) -> None:
    try:
        value, node = parse_yaml(text, "r.yaml")
        checked(Recipe, value, "r.yaml", node)
    except RecipeError as error:
        assert "\n" not in str(error).strip()


@example("", "a\nb")
@example("train.epochs", "[1\n")
@given(st.text(max_size=20), st.text(max_size=20))
def test_any_override_works_or_is_one_line_of_error(field: str, value: str) -> None:
    try:
        override(Recipe(), [f"{field}={value}"])
    except RecipeError as error:
        assert str(error)
        assert "\n" not in str(error)


_FIELDS = (
    "train", "train.epochs", "train.optimizer", "train.optimizer.name", "train.optimizer.lr", "train.probe.views",
    "train.probe", "augment", "augment.train", "augment.train.cutout", "augment.train.cutout.size", "augment.train.0",
    "augment.mix", "augment.mix.mixup_alpha", "data", "data.normalize", "data.normalize.mean", "model.args.x",
)  # fmt: skip
_VALUES = ("null", "3", "0.5", "auto", "[]", "[1]", "{}", "{epochs: 2}", "{name: adamw}", "[cutout]", "[[]]", "true")


@example([("data", "null"), ("data", "{}"), ("data", "{}")])
@given(st.lists(st.tuples(st.sampled_from(_FIELDS), st.sampled_from(_VALUES)), min_size=2, max_size=4))
def test_any_overrides_in_a_row_work_or_are_one_line_of_error(pairs: list[tuple[str, str]]) -> None:
    try:
        Recipe.load("fashion-mini").override(*(f"{field}={value}" for field, value in pairs))
    except RecipeError as error:
        assert "\n" not in str(error)


def test_an_image_size_is_a_side_or_two(tmp_path: Path) -> None:
    recipe = Recipe().override("data.image_size=[96, 128]", "data.store_size=200")
    assert recipe.data.image_size == (96, 128)
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe
    assert "store_size" not in Recipe().model_dump(mode="json")["data"]
    assert Recipe().override("data.image_size=96").fingerprint != recipe.fingerprint


def test_of_two_optimizers_the_last_is_taken_with_its_usual_rate() -> None:
    optimizer = Recipe().override("train.optimizer.name=adamw", "train.optimizer.name=muon").train.optimizer
    assert optimizer == Recipe().override("train.optimizer.name=muon").train.optimizer
