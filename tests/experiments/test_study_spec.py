"""Study files: what they can contain, and the one line that a mistake gets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kitae.errors import RecipeError
from kitae.experiments.design import expand
from kitae.experiments.plan import make_plan
from kitae.experiments.study_spec import StudySpec, find, shipped, shrink
from tests.refusals import refused

SMOOTHING: dict[str, Any] = {"smoothing": {"train.label_smoothing": [0.0, 0.1]}}


def study(**fields: Any) -> dict[str, Any]:
    return {"name": "s", "base": "fashion-mini", "design": "one_in", "factors": SMOOTHING, **fields}


# A mistake | the field that is named, and what else the line says
MISTAKES = """
desing: sweep                                        | unknown field 'desing', did you mean design
design: sweeep                                       | design, 'compare', 'sweep'
seeds: []                                            | seeds: at least one
seeds: [1, 1]                                        | seeds: [1, 1], twice
seeds: [-1]                                          | seeds.0, greater than or equal to 0
seeds: 3                                             | seeds: must be a list, [0, 1, 2]
name: a/b                                            | name:
base: null                                           | base
factors: {}                                          | factors: design one_in
factors: {x: {}}                                     | factors.x: names no field
factors: {x: {train.ema: [0.9]}}                     | factors.x.train.ema: at least two, 1 given
factors: {x: {train.ema: [0.9, 0.8, 0.7]}}           | factors.x.train.ema: design one_in takes two levels, 3 given
factors: {x: {a.b: [1, 2], a.c: [1, 2, 3]}}          | factors.x: its fields
factors: {x: {a.b: [1, 2]}, y: {a.b: [3, 4]}}        | factors.y.a.b: factors.x already sets a.b
factors: {x: {a.b: [1, 2]}, y: {a.b.c: [3, 4]}}      | factors.y.a.b.c: factors.x already
factors: {x: {a.b.c: [1, 2]}, y: {a.b: [3, 4]}}      | factors.y.a.b: factors.x already
factors: {x: {after.prune.ratio: [0, 1]}}            | factors.x.after.prune.ratio, after.STEP.SETTING, none
{design: sweep, factors: {x: {a: [1, 2]}, y: {b: [1, 2]}}}  | factors: a sweep has one factor, 2 given
design: screening                                    | factors: screening
{design: screening, foldover: true, factors: {x: {a: [1, 2]}, y: {b: [1, 2]}}}  | factors: screening, three
{design: factorial, contrasts: {c: [a, b]}}          | contrasts: works only with, not factorial
variants: {a: {}, b: {train.ema: 0.9}}               | variants: works only with design: compare
reference: a                                         | reference: works only with design: compare
foldover: true                                       | foldover: works only with design: screening
design: compare                                      | factors: works only with, not compare
{design: compare, factors: {}, variants: {a: {}}}    | variants: a comparison needs at least two
{design: compare, factors: {}, variants: {a: {}, b: {a.b: 1}}, reference: c}  | reference: 'c', a, b
set: {train.seed: 3}                                 | set.train.seed, under seeds
set: {train.early_stopping: {}}                      | set.train.early_stopping: early stopping is off
set: {train.early_stopping.patience: 3}              | set.train.early_stopping.patience: early stopping is off
factors: {x: {train.early_stopping: [null, {}]}}     | factors.x.train.early_stopping: early stopping is off
{design: compare, factors: {}, variants: {a: {}, b: {train.early_stopping: {}}}}  | variants.b.train.early_stopping
{design: compare, factors: {}, variants: {a: {}, b: {augment.mix: {}}}, set: {augment.mix.prob: 1}}  | \
set.augment.mix.prob, variants.b sets, to variants
{factors: {x: {augment.train: [[], []]}}, set: {augment.train.rotate: {}}}  | set.augment.train.rotate, factors.x sets
{factors: {x: {augment.train.cutout: [null, {}]}}, set: {augment.train.cutout.size: 5}}  | set.augment.train.cutout.size
factors: {x: {data.source: [1, 2]}}                  | factors.x.data.source: all variants, the same split, set
factors: {x: {data.split_seed: [1, 2]}}              | factors.x.data.split_seed: all variants
factors: {x: {data.val_seed: [1, 2]}}                | factors.x.data.val_seed: all variants
factors: {x: {data.val_fraction: [1, 2]}}            | factors.x.data.val_fraction: all variants
factors: {x: {data.test_fraction: [1, 2]}}           | factors.x.data.test_fraction: all variants
factors: {x: {data.fold: [1, 2]}}                    | factors.x.data.fold: all variants, move it to set
factors: {x: {data.folds: [2, 3]}}                   | factors.x.data.folds: all variants
factors: {x: {data.groups: [null, parent]}}          | factors.x.data.groups: all variants
factors: {x: {data.image_column: [a, b]}}            | factors.x.data.image_column: all variants
factors: {x: {data.label_column: [a, b]}}            | factors.x.data.label_column: all variants
factors: {x: {data.on_corrupt: [error, skip]}}       | factors.x.data.on_corrupt: all variants
{design: compare, factors: {}, variants: {a: {}, b: {data: {limit: 3}}}}  | variants.b.data: all variants, one by one
{design: compare, factors: {}, variants: {a: {}, b: {train: {ema: 0.9}}}} | variants.b.train, one by one, would reset
factors: {x: {train: [{ema: 0.9}, {ema: 0.99}]}}     | factors.x.train, one by one, would reset
metric: test.acuracy                                 | metric: no run has a number 'test.acuracy', accuracy
also: [speed]                                        | also: no run has a number 'speed'
also: gap                                            | also: must be a list, [gap]
factors: {train.label_smoothing: [0, 0.1]}           | factors: , `label_smoothing: {train.label_smoothing: [0, 0.1]}`
claims: {c: {says: x, effect: s}}                    | claims.c: give either between
claims: {c: {says: x, effect: s, between: [2, 1]}}   | claims.c: between: 2 is above 1
claims: {c: {says: x, effect: s, between: [-1, 1]}}  | claims.c: between must lie
claims: {c: {sayz: x, says: x, effect: s}}           | unknown field 'sayz' in claims.c, says
claims: {c: {says: x, effect: s, within: 1, metric: speed}}  | claims.c.metric: no run has a number 'speed'
claims: {c: {says: x, effect: s, within: 1, metric: images_per_second}}  | claims.c.ratio, set ratio: true
claims: {c: {says: x, effect: s, within: 1, ratio: true}}  | claims.c.ratio: test.accuracy, set ratio: false
{cover: both, design: factorial}                     | cover: both, not for design factorial, use cover: seeds
{cover: both, metric: val.accuracy}                  | cover: both, not for metric val.accuracy
"""


@pytest.mark.parametrize("line", MISTAKES.strip().splitlines())
def test_a_mistake_is_one_line_that_names_the_field(line: str) -> None:
    text, _, parts = line.partition("  | ") if "  | " in line else line.partition(" | ")
    message = str(refused(RecipeError, "", StudySpec.parse, study(**yaml.safe_load(text))))
    assert all(part.strip() in message for part in parts.split(", ")), message


def test_that_nothing_stops_early_may_be_said_anywhere() -> None:
    """A study stops no run early, so that is what it does anyway."""
    off = {"train.early_stopping": None}
    StudySpec.parse(study(set=off))
    StudySpec.parse(study(factors={"x": {"train.ema": [None, 0.9], "train.early_stopping": [None, None]}}))
    StudySpec.parse(study(design="compare", factors={}, variants={"a": off, "b": {**off, "train.ema": 0.9}}))


def test_all_variants_may_share_another_split() -> None:
    shared = {"data.folds": 5, "data.fold": 2, "data.groups": "parent", "data.label_column": "species"}
    assert StudySpec.parse(study(set=shared)).set == shared


@pytest.mark.parametrize("varied", ["augment.train", "augment.train.rotate", "augment.train.rotate.degrees"])
def test_variants_may_replace_or_edit_what_set_gave(varied: str) -> None:
    StudySpec.parse(
        study(factors={"x": {varied: [None, 3]}}, set={"augment.train": [{"rotate": {}}], "train.ema": 0.9})
    )


@pytest.mark.parametrize("assignment", ["augment.mix.prob=0.5", "augment.mix.mixup_alpha=0.2"])
def test_an_override_does_not_turn_the_reference_into_another(assignment: str) -> None:
    words = r"mixing\.yaml: set\.augment\.mix\..* which variants\.mixup sets.*; move it to variants"
    refused(RecipeError, words, StudySpec.load, "mixing", assignment)


ONE_IN = "design: one_in\nfactors: {x: {train.ema: [null, .9]}}\n"


def written(folder: Path, text: str, base: str = "fashion-mini") -> Path:
    file = folder / "mine.yaml"
    file.write_text(f"name: mine\nbase: {base}\n{text}")
    return file


OF_BASE = f"base: fashion-mini\n{ONE_IN}"
OF_RECIPE = "design: one_out\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{OF_BASE}seeed: [1]\n", r"mine\.yaml:5: unknown field 'seeed' \(did you mean seeds\?\)"),
        (f"{OF_BASE}set: [train.epochs=5]", r"mine\.yaml: set: must be a mapping, such as {train\.epochs: 5}, not \["),
        (f"{OF_BASE}tiny: 3", r"mine\.yaml: tiny: must be a mapping"),
        (f"{OF_BASE}tiny: {{set: train.epochs=5}}", r"mine\.yaml: tiny\.set: must be a mapping"),
        (f"{OF_BASE}name: again", r"mine\.yaml:5: 'name' is listed twice"),
        (f"{OF_RECIPE}base: base.yaml\nfactors: recipe", r"base\.yaml:2: unknown field 'epochz' in train"),
        (f"{OF_RECIPE}base: [1]\nfactors: recipe", r"mine\.yaml: base\.str: should be a valid string"),
        (f"{OF_RECIPE}factors: recipe", r"mine\.yaml: base: Field required"),
        (f"{OF_RECIPE}base: fashion-mini\nfactors: [{{mixing: {{a.b: [0, 1]}}}}]", "factors: a list has names"),
        (f"{OF_RECIPE}base: fashion-mini\nfactors: [{{}}]", r"factors: a list has names .*, not \{\}"),
        (f"{OF_RECIPE}base: fashion-mini\nfactors: recipe\nset: {{1: 2}}", "unknown field '1'"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: base\ntrain: {epochz: 3}\n")
    (tmp_path / "mine.yaml").write_text(f"name: mine\n{text}\n")
    refused(RecipeError, message, StudySpec.load, tmp_path / "mine.yaml")
    message = message.split(": ", 1)[-1]  # with overrides there is no line
    for tiny in (False, True):
        refused(RecipeError, message, StudySpec.load, tmp_path / "mine.yaml", "train.epochs=3", tiny=tiny)


def test_names_that_yaml_reads_as_truth_values_or_numbers_are_names(tmp_path: Path) -> None:
    text = (
        "design: compare\nreference: off\nvariants:\n  off:\n  on: {train.ema: 0.9}\n  0.5: {train.ema: 0.5}\n"
        "contrasts: {1: [on, 0.5]}\nclaims: {2: {says: more, effect: 0.5, between: [0, 1]}}\n"
    )
    spec = StudySpec.load(written(tmp_path, text))
    assert spec.variants == {"off": {}, "on": {"train.ema": 0.9}, "0.5": {"train.ema": 0.5}}
    assert spec.reference == "off"
    assert spec.contrasts == {"1": ("on", "0.5")}
    assert spec.claims["2"].effect == "0.5"


def test_overrides_reach_all_variants_or_the_study_itself(tmp_path: Path) -> None:
    file = written(tmp_path, ONE_IN)
    spec = StudySpec.load(file, "train.epochs=3", "study.seeds=[4, 5]", "data.source=parquet:a=b.parquet")
    assert spec.set == {"train.epochs": 3, "data.source": "parquet:a=b.parquet"}
    assert spec.seeds == (4, 5)
    spec = StudySpec.load(file, "train.epochs=3", "study.set={train.ema: 0.5, train.epochs: 4}")
    assert spec.set == {"train.ema": 0.5, "train.epochs": 3}
    for wrong, message in (
        (("study.set=3", "train.epochs=3"), r"study\.set: must be a mapping"),
        (("metric=val.accuracy",), r"metric: is a field of the study, not of a recipe; set study\.metric instead"),
        (("claims.c.says=more",), r"set study\.claims instead"),
        (("train.epochs",), "must be FIELD=VALUE"),
        (("train.epochs=[1",), "not valid YAML"),
        (("study.name=2024-13-45",), "not valid YAML"),
    ):
        refused(RecipeError, message, StudySpec.load, file, *wrong)


def test_a_base_beside_the_study_file_is_found_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: base\n")
    spec = StudySpec.load(written(tmp_path, ONE_IN, "base.yaml"))
    assert spec.base == {"name": "base"}  # whole, so that the study can be resumed as it was


@pytest.mark.parametrize("load", [{"tiny": True}, {"overrides": ["study.base=base.yaml"]}])
def test_another_base_is_looked_up_beside_the_study_file_too(tmp_path: Path, load: dict[str, Any]) -> None:
    (tmp_path / "base.yaml").write_text("name: base\n")
    file = written(tmp_path, ONE_IN + "tiny: {base: base.yaml}\n")
    assert StudySpec.load(file, *load.get("overrides", ()), tiny=load.get("tiny", False)).base == {"name": "base"}


@pytest.mark.parametrize("tiny", [False, True])
def test_set_may_change_a_part_of_a_technique_of_the_recipe(tmp_path: Path, tiny: bool) -> None:
    text = "name: mine\nbase: cifar10-strong\ndesign: one_out\nafter: {prune: {}}\nfactors: [mixing]\n"
    file = tmp_path / "mine.yaml"
    file.write_text(text + "set: {augment.mix.prob: 0.25, train.epochs: 7, after.prune.epochs: 1}\n")
    plan = make_plan(StudySpec.load(file, tiny=tiny))
    mixes = [job.recipe.augment.mix for job in plan.jobs[:2]]
    assert (mixes[0] and mixes[0].prob, mixes[1]) == (0.25, None)
    assert {(job.recipe.train.epochs, job.after["prune"]["epochs"]) for job in plan.jobs} == {(1 if tiny else 7, 1)}


@pytest.mark.parametrize("tiny", [False, True])
def test_mixed_precision_may_be_one_of_the_techniques_of_a_list(tmp_path: Path, tiny: bool) -> None:
    text = "factors: [mixed precision, mixing]\nset: {train.precision: bf16}\n"
    file = written(tmp_path, OF_RECIPE + text, "cifar10-strong")
    assert StudySpec.load(file, tiny=tiny).factors["mixed precision"] == {"train.precision": ["fp32", "bf16"]}


def test_a_date_in_a_study_is_text() -> None:
    own = "tests.experiments.fake_train:after_step"
    given = yaml.safe_load("{since: 2026-11-27, at: 2026-11-27T10:00:00Z}")
    spec = StudySpec.parse(study(after={own: {"ratio": given["since"]}}, set={f"after.{own}.ratio": given["at"]}))
    assert spec.after[own]["ratio"] == "2026-11-27"
    assert StudySpec.parse(spec.dump()) == spec
    assert make_plan(spec).jobs[0].fingerprint


def test_a_missing_study_names_the_nearest() -> None:
    for name in ("no-such-thing-at-all", "x" * 300):
        refused(RecipeError, "no such study file", find, name)
    name = shipped()[0]
    refused(RecipeError, f"did you mean {name}", find, name + "x")


def test_a_study_folder_is_named_with_the_command_that_resumes_it(tmp_path: Path) -> None:
    folder = tmp_path / "my study"
    folder.mkdir()
    (folder / "study.yaml").write_text("study: {}\nruns: []\n")
    command = f"kitae study '{folder / 'study.yaml'}' --out '{folder}'"
    refused(RecipeError, f"is a study folder; resume it with: {re.escape(command)}$", find, folder)


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


def test_the_tiny_twin_leaves_a_block_that_is_varied_alone() -> None:
    variants = {size: {"model": {"name": "resnet9", "width": width}} for size, width in (("small", 8), ("big", 16))}
    twin = StudySpec.parse(shrink(study(design="compare", factors={}, variants=variants)))
    assert "model.width" not in twin.set
    assert twin.set["train.epochs"] == 1
