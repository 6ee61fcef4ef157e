"""Study files: what they may say, and the one line a mistake gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kitae.errors import RecipeError
from kitae.experiments.design import expand
from kitae.experiments.study_spec import StudySpec, find, shipped, shrink

SMOOTHING: dict[str, Any] = {"smoothing": {"train.label_smoothing": [0.0, 0.1]}}
EMA: dict[str, Any] = {"ema": {"train.ema": [None, 0.99]}}
VARIANTS: dict[str, Any] = {"a": {}, "b": {"train.ema": 0.9}}


def study(**fields: Any) -> dict[str, Any]:
    return {"name": "s", "base": "fashion-mini", "design": "one_in", "factors": SMOOTHING, **fields}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"desing": "sweep"}, r"unknown field 'desing' \(did you mean design\?\)"),
        ({"design": "sweeep"}, r"study: design: .*'compare', 'sweep'"),
        ({"seeds": []}, "seeds: at least one"),
        ({"seeds": [1, 1]}, "seeds: .* lists a seed twice"),
        ({"seeds": [-1]}, r"seeds\.0: .*greater than or equal to 0"),
        ({"factors": {}}, "factors: design one_in needs at least one"),
        ({"factors": {"x": {}}}, r"factors\.x: names no field"),
        ({"factors": {"x": {"train.ema": [0.9]}}}, r"factors\.x\.train\.ema: at least two levels are needed, 1 given"),
        ({"factors": {"x": {"train.ema": [0.9, 0.8, 0.7]}}}, r"factors\.x\.train\.ema: .*takes two levels .*, 3"),
        ({"factors": {"x": {"a.b": [1, 2], "a.c": [1, 2, 3]}}}, r"factors\.x: its fields change"),
        ({"factors": {"x": {"a.b": [1, 2]}, "y": {"a.b": [3, 4]}}}, r"factors\.y\.a\.b: factors\.x already sets a\.b"),
        ({"factors": {"x": {"a.b": [1, 2]}, "y": {"a.b.c": [3, 4]}}}, r"factors\.y\.a\.b\.c: factors\.x already"),
        ({"design": "sweep", "factors": {**SMOOTHING, **EMA}}, "factors: a sweep has one factor, 2 given"),
        ({"design": "screening"}, "factors: screening needs two or more"),
        ({"variants": VARIANTS}, "variants: belongs to design: compare"),
        ({"reference": "a"}, "reference: belongs to design: compare"),
        ({"foldover": True}, "foldover: belongs to design: screening"),
        ({"design": "compare"}, "factors: design compare takes variants"),
        ({"design": "compare", "factors": {}, "variants": {"a": {}}}, "variants: a comparison needs at least two"),
        ({"design": "compare", "factors": {}, "variants": VARIANTS, "reference": "c"}, "reference: 'c' is none"),
        ({"set": {"train.seed": 3}}, r"set\.train\.seed: list a study's seeds"),
        ({"set": {"train.early_stopping": {}}}, r"set\.train\.early_stopping: early stopping is off"),
        ({"set": {"train.early_stopping.patience": 3}}, r"set\.train\.early_stopping\.patience: early stopping is off"),
        ({"factors": {"x": {"train.early_stopping": [None, {}]}}}, r"factors\.x\.train\.early_stopping: early"),
        (
            {"design": "compare", "factors": {}, "variants": {"a": {}, "b": {"train.early_stopping": {}}}},
            r"variants\.b\.train\.early_stopping: early stopping is off",
        ),
        (
            {"design": "compare", "factors": {}, "variants": {"a": {}, "b": {"augment.mix": {}}},
             "set": {"augment.mix.prob": 0.5}},
            r"set\.augment\.mix\.prob: is a part of augment\.mix, which variants\.b sets.*; move it to variants",
        ),
        (
            {"factors": {"x": {"augment.train": [[], [{"rotate": {}}]]}}, "set": {"augment.train.horizontal_flip": {}}},
            r"set\.augment\.train\.horizontal_flip: is a part of augment\.train, which factors\.x sets",
        ),
        (
            {"factors": {"x": {"augment.train.rotate": [None, {}]}}, "set": {"augment.train.rotate.degrees": 5}},
            r"set\.augment\.train\.rotate\.degrees: is a part of augment\.train\.rotate, which factors\.x sets",
        ),
        ({"factors": {"x": {"after.prune.ratio": [0, 1]}}}, r"factors\.x\.after\.prune\.ratio: must be .* none"),
        ({"metric": "test.acuracy"}, r"metric: no run has a number 'test\.acuracy'; valid: .*accuracy"),
        ({"also": ["speed"]}, "also: no run has a number 'speed'"),
        ({"claims": {"c": {"says": "x", "effect": "smoothing"}}}, r"claims\.c: give either between"),
        ({"claims": {"c": {"says": "x", "effect": "s", "between": [2, 1]}}}, r"claims\.c: between: 2 is above 1"),
        ({"claims": {"c": {"says": "x", "effect": "s", "between": [-1, 1]}}}, r"claims\.c: between must lie"),
        ({"claims": {"c": {"sayz": "x", "says": "x", "effect": "s"}}}, r"field .sayz. in claims\.c; valid: says"),
        (
            {"claims": {"c": {"says": "x", "effect": "s", "within": 1, "metric": "speed"}}},
            r"claims\.c\.metric: no run has a number 'speed'",
        ),
        (
            {"claims": {"c": {"says": "x", "effect": "s", "within": 1, "metric": "images_per_second"}}},
            r"claims\.c\.ratio: images_per_second is compared as variant / reference; set ratio: true",
        ),
        (
            {"claims": {"c": {"says": "x", "effect": "s", "within": 1, "ratio": True}}},
            r"claims\.c\.ratio: test\.accuracy is compared as a difference; set ratio: false",
        ),
        ({"seeds": 3}, r"study: seeds: is a list, such as \[0, 1, 2\], not 3"),
        *(
            ({"factors": {"x": {f"data.{field}": [1, 2]}}}, rf"factors\.x\.data\.{field}: all variants .* same split")
            for field in ("source", "split_seed", "val_seed", "val_fraction", "test_fraction")
        ),
        (
            {"design": "compare", "factors": {}, "variants": {"a": {}, "b": {"data": {"split_seed": 3}}}},
            r"variants\.b\.data: all variants .*; name the fields of data one by one",
        ),
        ({"cover": "both", "design": "factorial"}, "cover: both is for .*, not for design factorial; use cover: seeds"),
        ({"cover": "both", "metric": "val.accuracy"}, r"cover: both is for .*, not for metric val\.accuracy"),
        ({"name": "a/b"}, "study: name: "),
        ({"base": None}, "study: base"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        StudySpec.parse(study(**fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("varied", ["augment.train", "augment.train.rotate", "augment.train.rotate.degrees"])
def test_variants_may_replace_or_edit_what_set_gave(varied: str) -> None:
    StudySpec.parse(
        study(factors={"x": {varied: [None, 3]}}, set={"augment.train": [{"rotate": {}}], "train.ema": 0.9})
    )


@pytest.mark.parametrize("assignment", ["augment.mix.prob=0.5", "augment.mix.mixup_alpha=0.2"])
def test_an_override_does_not_turn_the_reference_into_another(assignment: str) -> None:
    with pytest.raises(RecipeError, match=r"mixing\.yaml: set\.augment\.mix\..* which variants\.mixup sets"):
        StudySpec.load("mixing", assignment)


def test_a_mistake_in_a_file_has_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nbase: fashion-mini\ndesign: one_in\nfactors:\n  x: {train.ema: [null, .9]}\nseeed: [1]\n"
    )
    with pytest.raises(RecipeError, match=r"mine\.yaml:6: unknown field 'seeed' \(did you mean seeds\?\)"):
        StudySpec.load(file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "set: [train.epochs=5]",
            r"mine\.yaml: set: must be a mapping, as {train\.epochs: 5}, not \['train\.epochs=5'\]",
        ),
        ("tiny: 3", r"mine\.yaml: tiny: must be a mapping"),
        ("tiny: {set: train.epochs=5}", r"mine\.yaml: tiny\.set: must be a mapping"),
        ("name: again", r"mine\.yaml:5: 'name' is listed twice"),
    ],
)
@pytest.mark.parametrize("tiny", [False, True])
def test_a_block_that_is_no_mapping_or_stands_twice_is_one_line(
    tmp_path: Path, line: str, message: str, tiny: bool
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"name: mine\nbase: fashion-mini\ndesign: one_in\nfactors: {{x: {{train.ema: [null, .9]}}}}\n{line}\n"
    )
    with pytest.raises(RecipeError, match=message) as caught:
        StudySpec.load(file, "train.epochs=3", tiny=tiny)
    assert "\n" not in str(caught.value)


def test_names_that_yaml_reads_as_truth_values_or_numbers_are_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nbase: fashion-mini\ndesign: compare\nreference: off\nvariants: {off: {}, on: {train.ema: 0.9}, "
        "0.5: {train.ema: 0.5}}\ncontrasts: {more: [on, 0.5]}\n"
    )
    spec = StudySpec.load(file)
    assert list(spec.variants) == ["off", "on", "0.5"]
    assert spec.reference == "off"
    assert spec.contrasts == {"more": ("on", "0.5")}


def test_numbers_are_names_of_contrasts_and_claims_too_and_a_bare_variant_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nbase: fashion-mini\ndesign: compare\nvariants:\n  none:\n  0.5: {train.ema: 0.5}\n"
        "contrasts: {1: [0.5, none]}\nclaims: {2: {says: more, effect: 0.5, between: [0, 1]}}\n"
    )
    spec = StudySpec.load(file)
    assert spec.variants == {"none": {}, "0.5": {"train.ema": 0.5}}
    assert (list(spec.contrasts), list(spec.claims)) == (["1"], ["2"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "factors: {train.label_smoothing: [0, 0.1]}",
            r"factors: train.label_smoothing: a factor has a name and fields, such as "
            r"`label_smoothing: {train.label_smoothing: \[0, 0.1\]}`",
        ),
        ("factors: {x: {train.ema: [null, .9]}}\nalso: gap", r"also: is a list, such as \[gap\]"),
    ],
)
def test_what_people_write_at_first_is_answered_with_an_example(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"name: mine\nbase: fashion-mini\ndesign: one_in\n{text}\n")
    with pytest.raises(RecipeError, match=message):
        StudySpec.load(file)


def test_overrides_reach_all_variants_or_the_study_itself(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nbase: fashion-mini\ndesign: one_in\nfactors: {x: {train.ema: [null, .9]}}\n")
    spec = StudySpec.load(file, "train.epochs=3", "study.seeds=[4, 5]", "data.source=parquet:a=b.parquet")
    assert spec.set == {"train.epochs": 3, "data.source": "parquet:a=b.parquet"}
    assert spec.seeds == (4, 5)
    spec = StudySpec.load(file, "train.epochs=3", "study.set={train.ema: 0.5, train.epochs: 4}")
    assert spec.set == {"train.ema": 0.5, "train.epochs": 3}
    with pytest.raises(RecipeError, match=r"study\.set: must be a mapping"):
        StudySpec.load(file, "study.set=3", "train.epochs=3")
    with pytest.raises(RecipeError, match="must be field=value"):
        StudySpec.load(file, "train.epochs")
    with pytest.raises(RecipeError, match="not a YAML value"):
        StudySpec.load(file, "train.epochs=[1")


def test_a_base_beside_the_study_file_is_found_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: base\n")
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nbase: base.yaml\ndesign: one_in\nfactors: {x: {train.ema: [null, .9]}}\n")
    assert StudySpec.load(file).base == {"name": "base"}  # whole, so that the study can be gone on with as it was


def test_a_missing_study_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="no such study file"):
        find("no-such-thing-at-all")
    name = shipped()[0]
    with pytest.raises(RecipeError, match=f"did you mean {name}"):
        find(name + "x")


def test_dump_and_parse_are_inverse() -> None:
    spec = StudySpec.parse(study(claims={"c": {"says": "x", "effect": "smoothing", "between": [0.5, None]}}))
    assert StudySpec.parse(spec.dump()) == spec


def test_the_tiny_twin_keeps_the_design_and_what_is_varied() -> None:
    content = study(
        set={"train.epochs": 50, "train.ema": 0.9}, factors={"limit": {"data.limit": [1000, 2000]}},
        design="sweep", tiny={"factors": {"limit": {"data.limit": [40, 80]}}, "set": {"model.width": 8}},
    )  # fmt: skip
    twin = StudySpec.parse(shrink(content))
    assert twin.name == "s-tiny"
    assert twin.factors == {"limit": {"data.limit": [40, 80]}}
    assert twin.set["train.epochs"] == 1
    assert twin.set["train.ema"] == 0.9
    assert twin.set["model.width"] == 8
    assert [v.overrides for v in expand(twin).variants] == [{"data.limit": 40}, {"data.limit": 80}]
    assert twin.seeds == (0, 1)
