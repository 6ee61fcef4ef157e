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
from kitae.experiments.power import ASSUMED_NOISE, MOST_SEEDS, POWER, seeds_for, seeds_within, smallest_effect
from kitae.experiments.study_spec import StudySpec, assignments
from kitae.experiments.wording import aliases_text
from kitae.files import plain
from kitae.recipe import OPS_BY_NAME, Recipe, parse

Measure = Callable[[Recipe], Mapping[str, Any]]

_BUSY = 0.8  # programs; each takes a core away from the measurement


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        variant, seed: which.
        recipe: resolved, with the seed, without early stopping, and with the study's precision and threads.
        after: step -> settings, run after training.
        name: of its folder and files under runs/.
        folder: of the training run, shared by jobs that differ only in `after`.
    """

    variant: str
    seed: int
    recipe: Recipe
    after: Mapping[str, Mapping[str, Any]]
    name: str
    folder: str

    @property
    def fingerprint(self) -> str:
        """Identifies what the run does; a finished run is recognised by it."""
        return _fingerprint(self.recipe, self.after)


@dataclass(frozen=True)
class Plan:
    """A study before its first run.

    Attributes:
        jobs: all variants of the first seed, then of the next, so that a study that was stopped is balanced.
        precision: what `auto` became; None if no recipe says auto.
        threads: of each run whose recipe leaves them open.
        seconds_per_epoch, images: time of an epoch and its training images, measured on the reference variant, or on
            one without data.limit if the reference has one; None if they were not measured.
        seconds: of the whole study with `workers` runs at a time, fine-tuning included; None likewise.
        load: programs that were running on this machine during the measurement.
        noise: standard deviation between runs in the metric's unit (relative if it is compared as a ratio), from which
            `smallest` follows; None if nothing is known about it.
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
        """The threads of the runs: one number, or several if recipes of the study ask for different ones."""
        return tuple(sorted({job.recipe.train.threads or self.threads for job in self.jobs}))

    def data(self) -> dict[str, Any]:
        """The plan as plain values, named as the attributes are."""
        names = ("precision", "workers", "seconds_per_epoch", "images", "seconds", "noise", "smallest", "seeds_needed")
        content: dict[str, Any] = plain({
            "study": self.spec.name,
            "design": self.spec.design,
            "metric": self.spec.metric,
            "seeds": self.spec.seeds,
            "variants": {variant.name: dict(variant.levels) for variant in self.design.variants},
            "runs": len(self.jobs),
            "trainings": len(self.units),
            "epochs": sorted({job.recipe.train.epochs for job in self.jobs}),
            "threads": list(self.run_threads),
            **{name: getattr(self, name) for name in names},
        })  # fmt: skip
        return content

    def text(self) -> str:
        """The plan for people, a few lines."""
        spec, design = self.spec, self.design
        trained, first = len(self.units), self.jobs[0].recipe
        shared = f" ({trained} trainings, shared)" if trained < len(self.jobs) else ""
        epochs = " or ".join(str(e) for e in sorted({job.recipe.train.epochs for job in self.jobs}))
        validation = "prune.val_accuracy" if step_of(spec.metric, ["prune"]) else "val.accuracy"
        on_test = f": a report on test. To choose a recipe by a study, set metric: {validation}"
        return "\n".join([
            f"Study {spec.name}: {spec.design}, {len(design.variants)} variants x {len(spec.seeds)} seeds",
            *([f"  {spec.about}"] if spec.about else []),
            f"  runs      {len(self.jobs)}{shared}, {epochs} epochs each, {first.model.name} on {first.data.source}",
            *self._time_lines(),
            self._power_line(),
            *self._claim_lines(),
            f"  metric    {spec.metric}{on_test if of_test(spec.metric) else ''}",
            "  seeds are paired: same split and order across variants, and the same initial weights in all layers of "
            "the same name and shape; no early stopping",
            *(["", aliases_text(design)] if design.aliases else []),
        ])  # fmt: skip

    def _time_lines(self) -> list[str]:
        if self.seconds is None:
            return ["  time      not measured"]
        threads = " or ".join(str(number) for number in self.run_threads)
        lines = [
            f"  time      about {rough_duration(self.seconds)} of training "
            f"({rough_duration(self.seconds_per_epoch or 0)} an epoch, {self.workers} at a time, "
            f"{threads} thread{'s' * (threads != '1')} each)"
        ]
        if self.load > _BUSY:
            lines.append(f"            measured beside {self.load:.0f} other programs: alone it may be far less")
        return lines

    def _power_line(self) -> str:
        shown = metric(self.spec.metric)
        unit = "%" if shown.ratio else shown.unit or self.spec.metric
        scale = 100.0 if shown.ratio else 1.0
        if self.noise is None:
            scatter = "relative, 0.02 for 2 %" if shown.ratio else f"in {unit}"
            return f"  can show  not known; give noise: (how much runs vary between seeds, {scatter})"
        if self.smallest is None:
            return "  can show  nothing: one run of each variant leaves no estimate of the noise; add seeds"
        # The power that remains once uneven noise is allowed for, simulated by benchmarks/simulated_studies.py.
        often = f"{POWER:.0%}" if len(self.design.variants) == 2 else "65 to 80 %"
        source = "given" if self.spec.noise is not None else "assumed"
        return (
            f"  can show  effects from {self.smallest * scale:.2g} {unit} ({often} of the time, after Holm's "
            f"correction, if runs vary by {self.noise * scale:g} {unit} between seeds, {source})"
        )

    def _claim_lines(self) -> list[str]:
        lines = []
        for claim, seeds in self.seeds_needed.items():
            if seeds is None or seeds > len(self.spec.seeds):
                needed = f"more than {MOST_SEEDS}" if seeds is None else f"about {seeds}"
                within = self.spec.claims[claim].within
                what = "half the claimed effect" if within is None else f"an interval inside +-{within:g}"
                lines.append(f"  claim     {claim}: {what} needs {needed} seeds")
        return lines


def make_plan(
    spec: StudySpec,
    *,
    workers: int = 1,
    threads: int = 1,
    precision: str | None = None,
    measure: Measure | None = None,
) -> Plan:
    """Resolve every run of a study. Anything wrong with its recipes is found here, before training starts.

    Args:
        workers: runs at a time, for the estimate of time.
        threads: of each run, if the recipe leaves it open.
        precision: what `precision: auto` means in this study, if that is already decided.
        measure: recipe -> {"recipe": with precision resolved, "seconds_per_epoch", "train": images}, on a few steps.

    Raises:
        RecipeError: a field, value or base recipe is wrong; names the variant.
    """
    design = expand(spec)
    base = load_base(spec)
    for where, number in spec.wanted:
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
        # Prefer a recipe with the precision open, and one on all images: the others' time is a share of its time.
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
                raise RecipeError(f"{where}: {name}: must be after.STEP.SETTING, with STEP under after")
            after[step][name.removeprefix(f"after.{step}.")] = value
        elif name.startswith(OPS_BY_NAME):
            ops[name] = value
        else:
            plain[name] = value
    try:
        # The order is kept, since a field may be inside an earlier one (augment.mix, then augment.mix.prob). A whole
        # pipeline comes before changes to its ops.
        recipe = base.override(*assignments({**plain, **ops}))
        for step, settings in after.items():
            check(step, settings)
    except RecipeError as error:
        raise RecipeError(f"{where}: {str(error).removeprefix('--set: ').removeprefix('--set ')}") from error
    if recipe.data.whole:
        raise RecipeError(f"{where}: data.folds: a study compares runs that have a validation split; set it to null")
    return _train(recipe, early_stopping=None), after  # last, whatever base and overrides set


def _jobs(
    spec: StudySpec, design: Design, recipes: Mapping[str, tuple[Recipe, dict[str, dict[str, Any]]]]
) -> tuple[Job, ...]:
    seen: dict[str, str] = {}
    for name, (recipe, after) in recipes.items():
        same = seen.setdefault(_fingerprint(recipe, after), name)
        if same != name:
            raise RecipeError(
                f"{spec.name}: variants {same!r} and {name!r} are the same recipe, so nothing is compared"
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
