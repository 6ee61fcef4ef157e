"""What a study file can contain.

    name: mine
    base: fashion-mini            # a recipe, by name or path
    set: {train.epochs: 5}        # overrides shared by all variants
    design: screening             # compare | sweep | one_out | one_in | factorial | screening
    factors:                      # name: {field: [off, on]}, or a list of values for a sweep
      smoothing: {train.label_smoothing: [0.0, 0.1]}
      mixing:    {augment.mix.prob: [0.0, 1.0]}
    seeds: [0, 1, 2]

A field is a recipe field, as `--set` takes it. Two kinds of field are special:

    augment.train.OP      one op of the pipeline, by name: null removes it, a mapping sets its parameters. So factors
                          can switch ops of one list independently; an op that the base lacks is appended.
    after.STEP.NAME       a setting of a step that runs after training (see `after`), such as after.prune.ratio.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import to_jsonable_python

from kitae.console import plural
from kitae.data.spec import SPLIT
from kitae.errors import RecipeError, did_you_mean
from kitae.experiments.outcome import EVALUATION, OF_RUN, known, step_of
from kitae.experiments.techniques import chosen, repeated
from kitae.files import plain, user_path
from kitae.folders import SIGNS, kind_of
from kitae.recipe import Recipe, assignment, assignments, assigns, checked, explain, parse_yaml, read_text
from kitae.reporting.effects import metric
from kitae.spec import Spec

DesignName = Literal["compare", "sweep", "one_out", "one_in", "factorial", "screening"]
# Fields that only some designs take.
_BELONGS = {
    "factors": ("sweep", "one_out", "one_in", "factorial", "screening"),
    "variants": ("compare",),
    "reference": ("compare",),
    "contrasts": ("compare", "sweep", "one_out", "one_in"),  # the others' effects are averages over all runs
    "foldover": ("screening",),
}
SHIPPED = Path(__file__).resolve().parent.parent / "studies"
MAX_RUNS = 2000

# What turns a study into its tiny version: the same design in seconds, without a download. It checks that the file
# runs; its numbers mean nothing.
TINY: dict[str, Any] = {
    "data.source": "fashion-mini",
    "data.limit": 96,
    "train.epochs": 1,
    "train.batch_size": 32,
    "train.precision": "fp32",
    "model.width": 4,
}


def _name(value: Any) -> Any:
    """YAML 1.1 reads a bare `on` or `off` as a boolean and `0.1` as a number; as names they are taken literally."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value) if isinstance(value, int | float) else value


def _factors(value: Any) -> Any:
    for name, levels in value.items() if isinstance(value, Mapping) else ():
        if isinstance(levels, list):
            example = f"{str(name).rpartition('.')[2]}: {{{name}: {levels}}}"
            raise ValueError(f"{name}: a factor has a name and fields, such as `{example}`")
    return value


def _list(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"must be a list, such as [{value}]")
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f"must be a list, such as {list(range(value)) if 0 < value <= 20 else [0, 1, 2]}, not {value}")
    return value


def _plain(value: Any) -> Any:
    """The value as study.yaml stores it: a date becomes text."""
    return to_jsonable_python(value, fallback=plain)


Fields = Annotated[dict[str, Any], AfterValidator(_plain)]
Levels = Annotated[dict[str, list[Any]], AfterValidator(_plain)]
Name = Annotated[str, BeforeValidator(_name), Field(min_length=1, max_length=60, pattern=r"^[^\x00-\x1f]+$")]
Reference = Annotated[str, BeforeValidator(_name)]
# A bare `none:` is a variant that changes nothing.
Changes = Annotated[Fields, BeforeValidator(lambda value: {} if value is None else value)]


class ClaimSpec(Spec):
    """What is claimed about one effect, written down before the first run.

    Attributes:
        says: the claim in words.
        effect: the effect's name in the study's table.
        between: the claimed size, `[low, high]` in the metric's unit (points for accuracies); null leaves a side open.
            With `ratio`, the claimed factor.
        within: instead of `between`: the claim of no difference larger than this, either way.
        metric: if it is not the study's own.
        ratio: the effect is variant / reference instead of variant - reference (time, memory, bytes).
    """

    says: str
    effect: Reference
    between: tuple[float | None, float | None] | None = None
    within: float | None = Field(None, gt=0)
    metric: str | None = None
    ratio: bool = False

    @model_validator(mode="after")
    def _one_form(self) -> ClaimSpec:
        if (self.between is None) == (self.within is None):
            raise ValueError("give either between: [low, high] or within: size")
        if self.between is not None:
            low, high = self.between
            if low is None and high is None:
                raise ValueError("between needs at least one bound")
            if low is not None and high is not None and low > high:
                raise ValueError(f"between: {low:g} is above {high:g}")
            neutral = 1.0 if self.ratio else 0.0
            if (low is None or low < neutral) and (high is None or high > neutral):
                raise ValueError(f"between must lie on one side of {neutral:g}; for no difference, use within")
        return self


class StudySpec(Spec):
    """A study: a base recipe, what is varied, how, and with which seeds.

    Attributes:
        name: names the study's folder and its tables.
        about: what the study asks, in one sentence.
        base: a recipe by name or path (first looked up beside the study file), or a whole recipe.
        set: overrides shared by all variants.
        design: how factors or variants become runs, see `kitae.experiments.design`. `compare` takes `variants`, the
            others take `factors`.
        factors: name: {field: [level, level, ...]}; two levels (off, on) except in a sweep or factorial. All fields of
            a factor change together. In a file, `recipe` means every technique that the base recipe uses, and a list
            of names some of them (`kitae study ablate RECIPE --plan` lists them).
        variants: for `compare`: name: {field: value}.
        reference: for `compare`: what the others are compared with; by default the first variant.
        contrasts: further pairs of variants to compare, name: [this, minus that].
        seeds: one run of every variant for each. A seed fixes the initial weights of each layer by its name, the order
            of samples and the augmentation, so runs of the same seed are compared in pairs. The split depends on
            data.split_seed and is the same in all runs.
        metric: what is compared: a number of evaluation.json (test.accuracy, val.accuracy, test.balanced_accuracy,
            test.loss, ...) or of the run (gap, epoch_seconds, peak_memory_bytes), see `kitae.experiments.outcome`.
            The default reports on test. To choose a recipe by a study, use val.accuracy.
        also: further metrics in the table, each corrected for its own number of comparisons.
        foldover: for `screening`: add the mirrored runs, which frees main effects from two-factor interactions.
        after: steps after training whose results are metrics too: {robustness: {...}}, {prune: {...}}.
        cover: what intervals cover: `seeds` (other initial weights and orders, on these test images), or `both` seeds
            and test images, or groups of them where they have some (with metric test.accuracy, in compare, sweep,
            one_out and one_in).
        noise: the standard deviation between runs that the plan assumes, in the metric's unit (relative, 0.02 for 2 %,
            if it is compared as a ratio); from an earlier study. Null means 0.5 if the unit is points, and more if
            fewer than 2,000 images are judged.
        claims: what is claimed, for the ledger.
        tiny: what the tiny version changes besides `TINY`: any of the keys above (`set` is merged).
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)
    about: str = ""
    base: str | dict[str, Any]
    set: Fields = Field(default_factory=dict)
    design: DesignName
    factors: Annotated[dict[Name, Levels], BeforeValidator(_factors)] = Field(default_factory=dict)
    variants: dict[Name, Changes] = Field(default_factory=dict)
    reference: Annotated[str | None, BeforeValidator(_name)] = None
    contrasts: dict[Name, tuple[Reference, Reference]] = Field(default_factory=dict)
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], BeforeValidator(_list)] = (0, 1, 2)
    metric: str = "test.accuracy"
    also: Annotated[tuple[str, ...], BeforeValidator(_list)] = (
        "val.accuracy", "gap", "epoch_seconds", "peak_memory_bytes",
    )  # fmt: skip
    foldover: bool = False
    after: dict[str, Fields] = Field(default_factory=dict)
    cover: Literal["seeds", "both"] = "seeds"
    noise: float | None = Field(None, gt=0)
    claims: dict[Name, ClaimSpec] = Field(default_factory=dict)
    tiny: dict[str, Any] = Field(default_factory=dict)

    def __repr__(self) -> str:
        base = self.base if isinstance(self.base, str) else self.base.get("name", "a recipe")
        varied = plural(len(self.variants), "variant") if self.variants else plural(len(self.factors), "factor")
        seeds = plural(len(self.seeds), "seed")
        return f"StudySpec({self.name}: {self.design} of {base}, {varied}, {seeds}, {self.metric})"

    __str__ = __repr__

    @property
    def wanted(self) -> tuple[tuple[str, str], ...]:
        """(field, metric) of every metric that the study asks for, its own first."""
        claims = ((f"claims.{name}.metric", claim.metric) for name, claim in self.claims.items() if claim.metric)
        return (("metric", self.metric), *(("also", name) for name in self.also), *claims)

    @model_validator(mode="after")
    def _consistent(self) -> StudySpec:
        if not self.seeds:
            raise ValueError("seeds: at least one is needed, three or more for a useful interval")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} lists a seed twice")
        for field, designs in _BELONGS.items():
            if getattr(self, field) and self.design not in designs:
                raise ValueError(f"{field}: works only with design: {', '.join(designs)}, not {self.design}")
        if self.design == "compare":
            if len(self.variants) < 2:
                raise ValueError("variants: a comparison needs at least two, name: {field: value}")
            if self.reference is not None and self.reference not in self.variants:
                raise ValueError(f"reference: {self.reference!r} is not a variant; valid: {', '.join(self.variants)}")
        else:
            self._check_factors()
        if self.cover == "both" and (self.metric != "test.accuracy" or self.design in ("factorial", "screening")):
            at = f"design {self.design}" if self.metric == "test.accuracy" else f"metric {self.metric}"
            raise ValueError(
                f"cover: both is for test.accuracy in compare, sweep, one_out, one_in, not for {at}; use cover: seeds"
            )
        self._check_fields()
        for field, number in self.wanted:
            if not known(number, self.after):
                raise ValueError(
                    f"{field}: no run has a number {number!r}; valid: test. or val. and {', '.join(EVALUATION)}, "
                    f"per_class.CLASS.accuracy; {', '.join(OF_RUN)}; STEP.NAME of a step under after"
                )
        for name, claim in self.claims.items():
            number = claim.metric or self.metric
            ratio = metric(number).ratio
            if claim.ratio != ratio:
                how = "as variant / reference" if ratio else "as a difference"
                raise ValueError(f"claims.{name}.ratio: {number} is compared {how}; set ratio: {str(ratio).lower()}")
        return self

    def _check_factors(self) -> None:
        if not self.factors:
            raise ValueError(f"factors: design {self.design} needs at least one, name: {{field: [off, on]}}")
        for name, levels in self.factors.items():
            if not levels:
                raise ValueError(f"factors.{name}: names no field")
            counts = {field: len(values) for field, values in levels.items()}
            if len(set(counts.values())) > 1:
                raise ValueError(f"factors.{name}: its fields change together and need equally many levels: {counts}")
            field, count = next(iter(counts.items()))
            if count < 2:
                raise ValueError(f"factors.{name}.{field}: at least two levels are needed, {count} given")
            if self.design in ("one_out", "one_in", "screening") and count != 2:
                raise ValueError(
                    f"factors.{name}.{field}: design {self.design} takes two levels [off, on], {count} given"
                )
        if self.design == "sweep" and len(self.factors) != 1:
            raise ValueError(f"factors: a sweep has one factor, {len(self.factors)} given; for several use factorial")
        if self.design == "screening" and len(self.factors) < (3 if self.foldover else 2):
            raise ValueError("factors: screening needs two or more (three with foldover); for fewer use factorial")

    def _check_fields(self) -> None:
        """Seeds belong under `seeds`, two factors cannot set the same field, nor `set` a part of what is varied."""
        varied: dict[str, Mapping[str, Any]] = {f"variants.{name}": fields for name, fields in self.variants.items()}
        varied |= {f"factors.{name}": levels for name, levels in self.factors.items()}
        for group, fields in {"set": self.set, **varied}.items():
            for field, value in fields.items():
                if field in ("train.seed", "seed"):
                    raise ValueError(f"{group}.{field}: list a study's seeds under seeds")
                values = value if group.startswith("factors.") else (value,)
                if f"{field}.".startswith("train.early_stopping.") and any(one is not None for one in values):
                    raise ValueError(
                        f"{group}.{field}: early stopping is off in studies, so that all runs are equally long; "
                        "remove it"
                    )
                if field.startswith("after.") and step_of(field.removeprefix("after."), self.after) is None:
                    steps = ", ".join(self.after) or "none"
                    raise ValueError(f"{group}.{field}: must be after.STEP.SETTING; steps under after: {steps}")
        for group, fields in varied.items():
            for field in fields:
                if field in SPLIT or field == "data":  # otherwise their runs would not be pairs
                    raise ValueError(
                        f"{group}.{field}: all variants of a study have the same images and the same split; "
                        + ("name the fields of data one by one" if field == "data" else "move it to set")
                    )
            for shared, field in itertools.product(self.set, fields):
                # It would change only the variants that leave the field alone, or in a list of ops only the others.
                if shared.startswith(f"{field}."):
                    raise ValueError(
                        f"set.{shared}: is a part of {field}, which {group} sets, so it would change only some "
                        f"variants; move it to {group.partition('.')[0]}"
                    )
            if "train" in fields:
                raise ValueError(
                    f"{group}.train: name its fields one by one, for example train.label_smoothing; the whole section "
                    "would reset all others, such as the epochs and the learning rate"
                )
        for (a, left), (b, right) in itertools.combinations(self.factors.items(), 2):
            for x, y in itertools.product(left, right):
                if f"{x}.".startswith(f"{y}.") or f"{y}.".startswith(f"{x}."):
                    raise ValueError(f"factors.{b}.{y}: factors.{a} already sets {x}; each factor needs its own fields")

    @classmethod
    def load(cls, source: str | Path, *overrides: str, tiny: bool = False) -> StudySpec:
        """Read a study file, by path or by the name of a shipped one.

        Args:
            source: a path, or a name of `shipped()`. The study.yaml of a study folder is the study that it records.
            overrides: `field=value`, a recipe field for all variants (as under `set`), or with `study.` before it a
                field of the study itself: `study.seeds=[0, 1]`.
            tiny: the tiny version of the study.

        Raises:
            RecipeError: the file is missing or wrong; one line that names the field.
        """
        path = find(source)
        content, node = parse_yaml(*read_text(path))
        if isinstance(content.get("study"), dict) and "runs" in content:
            content, node = content["study"], None
        for field, block in (("set", content), ("tiny", content), ("tiny.set", content.get("tiny"))):
            value = block.get(field.rpartition(".")[2]) if isinstance(block, Mapping) else None
            if value is not None and not isinstance(value, Mapping):
                raise RecipeError(f"{path}: {field}: must be a mapping, such as {{train.epochs: 5}}, not {value!r}")
        content = with_overrides(shrink(content) if tiny else content, overrides)
        base = content.get("base")
        if isinstance(base, str):  # a file is included whole, so that the study no longer depends on it
            own = user_path(base)
            file = next((place for place in (path.parent / own, own) if os.path.isfile(place)), None)
            if file is not None:
                Recipe.load(file)  # a mistake in it is reported with its own name and line
                content["base"] = parse_yaml(*read_text(file))[0]
        names = content.get("factors")
        from_recipe = names == "recipe" or (isinstance(names, list) and bool(names))
        if from_recipe and isinstance(content.get("base"), str | Mapping):  # otherwise `parse` says what is wrong
            content |= _factors_of_base(content, str(path))
        return cls.parse(content, str(path), None if tiny or overrides or from_recipe else node)

    @classmethod
    def parse(cls, content: Mapping[str, Any], where: str = "study", node: yaml.Node | None = None) -> StudySpec:
        """Validate a mapping; an error is one line that starts with `where`.

        Raises:
            RecipeError: a field is unknown, missing or wrong.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "extra_forbidden" and first["loc"][0] == "claims":
                *path, field = (str(part) for part in first["loc"])
                valid = ", ".join(ClaimSpec.model_fields)
                raise RecipeError(f"{where}: unknown field {field!r} in {'.'.join(path)}; valid: {valid}") from error
            raise RecipeError(explain(error, cls, where, node)) from error

    def dump(self) -> dict[str, Any]:
        """Plain values, defaults included, from which `parse` makes an equal study."""
        return self.model_dump(mode="json")


def shipped() -> list[str]:
    """Names of the studies that come with Kitae."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def find(source: str | Path) -> Path:
    """The study file of a path or of a shipped study's name.

    Raises:
        RecipeError: there is none.
    """
    path, names = user_path(source), shipped()
    if os.path.isfile(path):  # `Path.is_file` raises an error where a name is too long
        return path
    if str(source) in names:
        return SHIPPED / f"{source}.yaml"
    if kind_of(path) == "study":
        again = shlex.join(["kitae", "study", str(path / SIGNS["study"]), "--out", str(path)])
        raise RecipeError(f"{source}: is a study folder; resume it with: {again}")
    hint = did_you_mean(str(source), names)
    raise RecipeError(f"{source}: no such study file{hint}; shipped studies: {', '.join(names)}")


def with_overrides(content: Mapping[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """`content` with each `field=value` under `set`, and each `study.field=value` in the study itself.

    Raises:
        RecipeError: a field of the study without `study.` before it, or `study.set` is no mapping.
    """
    result = dict(content)
    shared: dict[str, Any] = {}
    for override in overrides:
        field, value = assignment(override)
        if field.startswith("study."):
            result[field.removeprefix("study.")] = value
        elif (own := field.partition(".")[0]) in StudySpec.model_fields.keys() - Recipe.model_fields.keys() - {"after"}:
            raise RecipeError(f"{field}: is a field of the study, not of a recipe; set study.{own} instead")
        else:
            shared[field] = value
    if shared:
        before = result.get("set") or {}
        if not isinstance(before, Mapping):  # of study.set=...
            raise RecipeError(f"study.set: must be a mapping, such as {{train.epochs: 5}}, not {before!r}")
        result["set"] = {**before, **shared}
    return result


def shrink(content: Mapping[str, Any]) -> dict[str, Any]:
    """The tiny version of a study file's content: `TINY` and its own `tiny` block applied, two seeds, no claims.

    A field of `TINY` inside a field that is varied is left out, since it would change only some of the variants.
    """
    own = dict(content.get("tiny") or {})
    of_set = own.pop("set", None) or {}
    result = {**content, "seeds": [0, 1], **own, "name": f"{content.get('name')}-tiny", "claims": {}, "tiny": {}}
    blocks = [result.get(name) for name in ("factors", "variants")]
    groups = [group for block in blocks if isinstance(block, Mapping) for group in block.values()]
    varied = [field for group in groups if isinstance(group, Mapping) for field in group]
    small = {name: value for name, value in TINY.items() if not any(name.startswith(f"{field}.") for field in varied)}
    if isinstance(names := result.get("factors"), list) and "mixed precision" in names:
        small.pop("train.precision", None)  # in fp32, the recipe would not use this technique
    return {**result, "set": {**(content.get("set") or {}), **small, **of_set}}


def base_recipe(base: str | Mapping[str, Any], where: str) -> Recipe:
    """The recipe of a study's `base`, given whole or by name. Raises RecipeError: there is none, or it is wrong."""
    return Recipe.load(base) if isinstance(base, str) else checked(Recipe, base, where)


def _factors_of_base(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The factors of a file that names techniques of its base recipe, or says `recipe` for all of them.

    If `set` changes a part of a technique, that belongs to its level `on`, so `set` is made a part of the base.
    """
    recipe = base_recipe(content["base"], f"{where}: base")
    given = content.get("set") or {}
    shared = {f: value for f, value in given.items() if not str(f).startswith("after.")}
    names = () if content["factors"] == "recipe" else content["factors"]
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise RecipeError(
            f"{where}: factors: a list has names of the recipe's techniques, not {wrong[0]!r}; factors of your own are "
            "a mapping, name: {field: [off, on]}"
        )
    recipe = recipe.override(*assignments(shared))
    factors = chosen(recipe, names, f"{where}: factors")
    varied = [field for fields in factors.values() for field in fields]
    if not any(str(name).startswith(f"{field}.") for name, field in itertools.product(shared, varied)):
        return {"factors": factors}
    after = {name: value for name, value in given.items() if name not in shared}
    return {"factors": factors, "base": recipe.model_dump(mode="json"), "set": after}


def ablation(
    recipe: Recipe | str | Path,
    *overrides: str,
    design: Literal["one_out", "one_in", "screening"] = "one_out",
    seeds: int | Sequence[int] = 3,
    only: Sequence[str] = (),
    metric: str = "test.accuracy",
    foldover: bool = False,
) -> StudySpec:
    """The study that measures what each technique of a recipe contributes.

    Args:
        recipe: a recipe, file or shipped name; `overrides` as in `Recipe.override`.
        seeds: how many (0, 1, ...), or which.
        only: names of `techniques` to measure; the others stay on. Empty is all.
        design, metric, foldover: as in a study file.

    Raises:
        RecipeError: the recipe uses no technique, or not the ones named; an override of `train.seed`.
    """
    base = (recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)).override(*overrides)
    if assigns(overrides, "train.seed"):
        raise RecipeError("train.seed: every run of a study has a seed of its own; choose them by seeds")
    factors = chosen(base, only, "only")
    if not factors:
        raise RecipeError(f"{base.name}: uses no technique that could be left out")
    skipped = [] if only else repeated(base)
    also = f" Not measured, since the recipe lists them more than once: {', '.join(skipped)}." if skipped else ""
    slug = re.sub(r"[^A-Za-z0-9._-]", "-", base.name).strip("-_.")[:60].rstrip("-_.") or "recipe"
    return StudySpec.parse(
        {
            "name": f"{slug}-{design.replace('_', '-')}",
            "about": f"What each technique of {base.name} contributes.{also}",
            "base": base.model_dump(mode="json"),
            "design": design,
            "factors": factors,
            "seeds": list(range(seeds)) if isinstance(seeds, int) else list(seeds),
            "metric": metric,
            "foldover": foldover,
        },
        f"ablation of {base.name}",
    )
