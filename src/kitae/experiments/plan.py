"""What a study is going to do: its runs, how long they take, and the smallest effect they can show."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from kitae.console import rough_duration
from kitae.errors import RecipeError
from kitae.experiments.after import check, check_number, further_epochs, of_test
from kitae.experiments.design import Design, expand
from kitae.experiments.outcome import metric, step_of
from kitae.experiments.spec import StudySpec
from kitae.experiments.stats import ASSUMED_NOISE, MOST_SEEDS, POWER, seeds_for, seeds_within, smallest_effect
from kitae.experiments.tables import alias_text
from kitae.recipe import OPS_BY_NAME, Recipe, parse

Measure = Callable[[Recipe], Mapping[str, Any]]

_BUSY = 0.8  # programs; each takes a core from the measurement


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        variant, seed: which.
        recipe: resolved, with the seed, no early stopping, and the study's precision and threads.
        after: step -> settings, done after training.
        name: of its folder and files under runs/.
        folder: of the training run; jobs that differ only in `after` share it.
    """

    variant: str
    seed: int
    recipe: Recipe
    after: Mapping[str, Mapping[str, Any]]
    name: str
    folder: str

    @property
    def fingerprint(self) -> str:
        """Names what the run does; a finished run is recognised by it."""
        return _fingerprint(self.recipe, self.after)


@dataclass(frozen=True)
class Plan:
    """A study before its first run.

    Attributes:
        jobs: all variants of the first seed, then of the next, so that a study that was stopped is balanced.
        precision: what `auto` became, None where no recipe says auto.
        threads: of each run whose recipe leaves them open.
        seconds_per_epoch, images: time of an epoch and its training images, measured on the reference variant, or on
            one without data.limit where the reference has one; None if they were not.
        seconds: of the whole study with `workers` runs at a time, fine-tuning included; None likewise.
        load: programs that were running on this machine when that was measured.
        noise: standard deviation between runs in the metric's unit (relative where it is compared as a ratio), from
            which `smallest` follows; None where nothing is known of it.
        smallest: the effect that would be shown with 80 % probability.
        seeds_needed: claim -> seeds with which half the claimed effect would be shown; None is more than 100.
    """

    spec: StudySpec
    design: Design
    jobs: tuple[Job, ...]
    precision: str | None
    threads: int
    workers: int
    seconds_per_epoch: float | None
    images: int | None
    seconds: float | None
    noise: float | None
    smallest: float | None
    seeds_needed: Mapping[str, int | None] = field(default_factory=dict)
    load: float = 0.0

    @property
    def units(self) -> list[list[Job]]:
        """Jobs that share a training run, together."""
        groups: dict[str, list[Job]] = {}
        for job in self.jobs:
            groups.setdefault(job.folder, []).append(job)
        return list(groups.values())

    @property
    def run_threads(self) -> tuple[int, ...]:
        """How many threads the runs have: one number, or several where recipes of the study ask for others."""
        return tuple(sorted({job.recipe.train.threads or self.threads for job in self.jobs}))

    @property
    def _often(self) -> str:
        # What stays after uneven noise was allowed for; simulated by benchmarks/simulated_studies.py.
        return f"{POWER:.0%}" if len(self.design.variants) == 2 else "65 to 80 %"

    def text(self) -> str:
        """The plan for people, a few lines."""
        spec, design = self.spec, self.design
        ratio = metric(spec.metric).ratio
        unit = "%" if ratio else metric(spec.metric).unit or spec.metric
        scale = 100.0 if ratio else 1.0
        lines = [f"Study {spec.name}: {spec.design}, {len(design.variants)} variants x {len(spec.seeds)} seeds"]
        if spec.about:
            lines.append(f"  {spec.about}")
        trained = len(self.units)
        shared = f" ({trained} trainings, shared)" if trained < len(self.jobs) else ""
        first = self.jobs[0].recipe
        epochs = sorted({job.recipe.train.epochs for job in self.jobs})
        lines.append(
            f"  runs      {len(self.jobs)}{shared}, {' or '.join(str(e) for e in epochs)} epochs each, "
            f"{first.model.name} on {first.data.source}"
        )
        if self.seconds is None:
            lines.append("  time      not measured")
        else:
            threads = " or ".join(str(number) for number in self.run_threads)
            lines.append(
                f"  time      about {rough_duration(self.seconds)} of training "
                f"({rough_duration(self.seconds_per_epoch or 0)} an epoch, {self.workers} at a time, "
                f"{threads} thread{'s' * (threads != '1')} each)"
            )
            if self.load > _BUSY:
                lines.append(f"            measured beside {self.load:.0f} other programs: alone it may be far less")
        source = "given" if spec.noise is not None else "assumed"
        if self.noise is None:
            scatter = "relative, 0.02 for 2 %" if ratio else f"in {unit}"
            lines.append(f"  can show  not known; give noise: (how much runs vary between seeds, {scatter})")
        elif self.smallest is None:
            lines.append("  can show  nothing: one run of each variant leaves no estimate of the noise; add seeds")
        else:
            lines.append(
                f"  can show  effects from {self.smallest * scale:.2g} {unit} on ({self._often} of the time, after "
                f"Holm's correction, if runs vary by {self.noise * scale:g} {unit} between seeds, {source})"
            )
        for claim, seeds in self.seeds_needed.items():
            if seeds is None or seeds > len(spec.seeds):
                needed = f"more than {MOST_SEEDS}" if seeds is None else f"about {seeds}"
                within = spec.claims[claim].within
                what = "half the claimed effect" if within is None else f"an interval inside +-{within:g}"
                lines.append(f"  claim     {claim}: {what} needs {needed} seeds")
        if of_test(spec.metric):
            instead = "prune.val_accuracy" if step_of(spec.metric, ["prune"]) else "val.accuracy"
            lines.append(
                f"  metric    {spec.metric}: a report on test. To choose a recipe by a study, set metric: {instead}"
            )
        else:
            lines.append(f"  metric    {spec.metric}")
        lines.append(
            "  seeds are paired: same split and order across variants, and the same initial weights in all layers of "
            "the same name and shape; no early stopping"
        )
        if design.aliases:
            lines += ["", alias_text(design)]
        return "\n".join(lines)


def make_plan(
    spec: StudySpec,
    *,
    workers: int = 1,
    threads: int = 1,
    precision: str | None = None,
    measure: Measure | None = None,
) -> Plan:
    """Resolve every run of a study; all that is wrong with its recipes shows here, before anything is trained.

    Args:
        workers: runs at a time, for the estimate of time.
        threads: of each run, where the recipe leaves it open.
        precision: what `precision: auto` means in this study, where that is decided already.
        measure: recipe -> {"recipe": with precision resolved, "seconds_per_epoch", "train": images}, on a few steps.

    Raises:
        RecipeError: a field, value or base recipe is wrong; names the variant.
    """
    design = expand(spec)
    base = load_base(spec)
    claimed = ((f"claims.{name}.metric", claim.metric) for name, claim in spec.claims.items() if claim.metric)
    for where, number in (("metric", spec.metric), *(("also", name) for name in spec.also), *claimed):
        step = step_of(number, spec.after)
        if step is not None:
            try:
                check_number(step, number.removeprefix(f"{step}."))
            except RecipeError as error:
                raise RecipeError(f"{spec.name}, {where}: {error}") from error
    recipes: dict[str, tuple[Recipe, dict[str, dict[str, Any]]]] = {}
    for variant in design.variants:
        recipe, after = resolve(base, spec, variant.overrides, where=f"{spec.name}, variant {variant.name!r}")
        if recipe.train.threads is None:
            recipe = _train(recipe, threads=threads)
        recipes[variant.name] = (recipe, after)
    undecided = [recipe for recipe, _ in recipes.values() if recipe.train.precision == "auto"]
    reference = recipes[design.reference][0]
    seconds_per_epoch = images = None
    load = 0.0
    if measure is not None:
        # One that leaves the precision open, and one on all images, whose number the others' time is a share of.
        choice = undecided or [recipe for recipe, _ in recipes.values()]
        facts = measure(min(choice, key=lambda recipe: (recipe.data.limit is not None, recipe is not reference)))
        seconds_per_epoch, images = float(facts["seconds_per_epoch"]), int(facts["train"])
        load = float(facts.get("load", 0.0))
        precision = precision or facts["recipe"].train.precision
    if undecided and precision is not None:
        recipes = {
            name: (_train(recipe, precision=precision) if recipe.train.precision == "auto" else recipe, after)
            for name, (recipe, after) in recipes.items()
        }
    jobs = _jobs(spec, design, recipes)
    noise = spec.noise
    if noise is None and metric(spec.metric).unit == "points":
        noise = ASSUMED_NOISE
    plan = Plan(
        spec, design, jobs, precision if undecided else None, threads, workers, seconds_per_epoch, images, None, noise,
        None if noise is None else smallest_effect(design, len(spec.seeds), noise), _seeds_needed(design, noise, spec),
    )  # fmt: skip
    if seconds_per_epoch is None or images is None:
        return plan
    total = 0.0
    for unit in plan.units:
        recipe = unit[0].recipe
        epochs = recipe.train.epochs + sum(further_epochs(job.after) for job in unit)
        total += epochs * seconds_per_epoch * (recipe.data.limit or images) / images
    return replace(plan, seconds=total / max(1, min(workers, len(plan.units))), load=load)


def load_base(spec: StudySpec) -> Recipe:
    """The study's base recipe.

    Raises:
        RecipeError: there is none, or it is wrong.
    """
    if isinstance(spec.base, str):
        return Recipe.load(spec.base)
    return parse(Recipe, yaml.safe_dump(spec.base), f"{spec.name}, base")


def resolve(
    base: Recipe, spec: StudySpec, overrides: Mapping[str, Any], where: str
) -> tuple[Recipe, dict[str, dict[str, Any]]]:
    """A variant's recipe and its settings of the steps after training.

    Raises:
        RecipeError: a field or value is wrong; the line begins with `where`.
    """
    after: dict[str, dict[str, Any]] = {step: dict(settings) for step, settings in spec.after.items()}
    plain: dict[str, Any] = {}
    ops: dict[str, Any] = {}
    for name, value in {**spec.set, **overrides}.items():
        if name.startswith("after."):
            step = step_of(name.removeprefix("after."), after)
            if step is None:
                raise RecipeError(f"{where}: {name}: is written after.STEP.SETTING, with STEP under after")
            after[step][name.removeprefix(f"after.{step}.")] = value
        elif name.startswith(OPS_BY_NAME):
            ops[name] = value
        else:
            plain[name] = value
    try:
        # A later field may be inside an earlier one (augment.mix, then augment.mix.prob), so order is kept; a whole
        # pipeline comes before what is changed in it.
        recipe = base.override(*(f"{name}={_yaml(value)}" for name, value in {**plain, **ops}.items()))
        for step, settings in after.items():
            check(step, settings)
    except RecipeError as error:
        raise RecipeError(f"{where}: {str(error).removeprefix('--set: ').removeprefix('--set ')}") from error
    return _train(recipe, early_stopping=None), after  # last, whatever base and overrides say


def _jobs(
    spec: StudySpec, design: Design, recipes: Mapping[str, tuple[Recipe, dict[str, dict[str, Any]]]]
) -> tuple[Job, ...]:
    seen: dict[str, str] = {}
    for name, (recipe, after) in recipes.items():
        twin = seen.setdefault(_fingerprint(recipe, after), name)
        if twin != name:
            raise RecipeError(
                f"{spec.name}: variants {twin!r} and {name!r} are the same recipe, so nothing is compared"
            )
    jobs = []
    folders: dict[str, str] = {}  # jobs of the same training share the folder of the first of them
    for seed in spec.seeds:
        for variant, (recipe, after) in recipes.items():
            seeded = _train(recipe, seed=seed)
            name = f"{_slug(variant)}-seed{seed}-{_fingerprint(seeded, after)[:8]}"
            folder = folders.setdefault(seeded.fingerprint, name)
            jobs.append(Job(variant, seed, seeded, after, name, folder))
    return tuple(jobs)


def _train(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})


def _fingerprint(recipe: Recipe, after: Mapping[str, Mapping[str, Any]]) -> str:
    if not after:
        return recipe.fingerprint
    text = json.dumps([recipe.fingerprint, {step: dict(settings) for step, settings in after.items()}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _seeds_needed(design: Design, noise: float | None, spec: StudySpec) -> dict[str, int | None]:
    """Of the claims about the study's own metric that name a size."""
    needed: dict[str, int | None] = {}
    for name, claim in spec.claims.items():
        sizes = [abs(bound) for bound in claim.between or () if bound]
        if noise is None or claim.ratio or claim.metric not in (None, spec.metric):
            continue
        if claim.within is not None:
            needed[name] = seeds_within(design, claim.within, noise)
        elif sizes:
            needed[name] = seeds_for(design, min(sizes) / 2, noise)
    return needed


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", name).strip("-.")[:48] or "variant"


def _yaml(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1 << 30, allow_unicode=True).removesuffix("...\n").strip()
    )
