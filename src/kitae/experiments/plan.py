"""What a study is going to do: its runs, how long they take, and the smallest effect they can show."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scipy import optimize, stats

from kitae.console import data_name, plural, rough_duration
from kitae.errors import RecipeError
from kitae.experiments.after import ROBUSTNESS_IMAGES, check, check_number, further_epochs, of_test
from kitae.experiments.design import Design, expand
from kitae.experiments.outcome import step_of
from kitae.experiments.stats import half_interval, welch
from kitae.experiments.study_spec import StudySpec, base_recipe
from kitae.experiments.wording import aliases_text
from kitae.files import plain
from kitae.recipe import OPS_BY_NAME, Recipe, assignments
from kitae.reporting.effects import CONFIDENCE, metric
from kitae.reporting.values import significant

Resolved = tuple[Recipe, dict[str, dict[str, Any]]]
"""A recipe, and the settings of the steps after training."""

POWER = 0.80
MOST_SEEDS = 100  # the most that a plan proposes
ASSUMED_NOISE = 0.5  # points: what a plan assumes if nothing is known; there is no guess for other units
# Share of the images that one of two runs classifies correctly and the other does not, if only the seed differs: 8 to
# 11 % in studies of CIFAR-10 at 82 to 85 % (LOG.md, 2026-11-27). Half of it / images is the variance of an accuracy.
_DISAGREEMENT = 0.1
_BUSY = 0.8  # programs; each takes a core away from the measurement


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
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

    @cached_property
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
        workers: runs at a time.
        seconds_per_epoch, images: time of an epoch and its training images, measured on the reference variant, or on
            one without data.limit if the reference has one; None if they were not measured.
        load: programs that were running on this machine during the measurement.
        judged: images that the metric is measured on; None if they were not counted.
    """

    spec: StudySpec
    design: Design
    jobs: tuple[Job, ...]
    precision: str | None
    threads: int
    workers: int
    seconds_per_epoch: float | None = None
    images: int | None = None
    load: float = 0.0
    judged: int | None = None

    @cached_property
    def units(self) -> list[list[Job]]:
        """Jobs that share a training run, together."""
        groups: dict[str, list[Job]] = {}
        for job in self.jobs:
            groups.setdefault(job.folder, []).append(job)
        return list(groups.values())

    @property
    def seconds(self) -> float | None:
        """Time of the whole study, fine-tuning included; None if it was not measured."""
        if self.seconds_per_epoch is None or self.images is None:
            return None
        total = 0.0
        for unit in self.units:
            recipe = unit[0].recipe
            epochs = recipe.train.epochs + sum(further_epochs(job.after) for job in unit)
            total += epochs * self.seconds_per_epoch * (recipe.data.limit or self.images) / self.images
        return total / min(self.workers, len(self.units))

    @property
    def noise(self) -> float | None:
        """Standard deviation between runs, as `StudySpec.noise`; None if nothing is known about it.

        The value assumed for points grows below 2,000 images, where images on which runs disagree by chance dominate.
        """
        if self.spec.noise is not None or metric(self.spec.metric).unit != "points":
            return self.spec.noise
        few = 100 * math.sqrt(_DISAGREEMENT / 2 / self.judged) if self.judged else 0.0
        return max(ASSUMED_NOISE, round(few, 1))

    @cached_property
    def smallest(self) -> float | None:
        """The effect that would be shown with 80 % probability."""
        return None if self.noise is None else smallest_effect(self.design, len(self.spec.seeds), self.noise)

    @cached_property
    def seeds_needed(self) -> dict[str, int | None]:
        """Claim -> seeds with which half the claimed effect would be shown; None is more than `MOST_SEEDS`.

        Of the claims about the study's own metric that name a size.
        """
        needed: dict[str, int | None] = {}
        for name, claim in self.spec.claims.items():
            sizes = [abs(bound) for bound in claim.between or () if bound]
            if self.noise is None or claim.ratio or claim.metric not in (None, self.spec.metric):
                continue
            if claim.within is not None:
                needed[name] = seeds_within(self.design, claim.within, self.noise)
            elif sizes:
                needed[name] = seeds_for(self.design, min(sizes) / 2, self.noise)
        return needed

    @property
    def run_threads(self) -> tuple[int, ...]:
        """The threads of the runs: one number, or several if recipes of the study ask for different ones."""
        return tuple(sorted({job.recipe.train.threads or 1 for job in self.jobs}))

    def data(self) -> dict[str, Any]:
        """The plan as plain values, named as the attributes are."""
        names = (
            "precision", "workers", "seconds_per_epoch", "images", "judged", "seconds", "noise", "smallest",
            "seeds_needed",
        )  # fmt: skip
        content: dict[str, Any] = plain({
            "study": self.spec.name,
            "design": self.spec.design,
            "metric": self.spec.metric,
            "seeds": self.spec.seeds,
            "variants": {variant.name: variant.levels for variant in self.design.variants},
            "runs": len(self.jobs),
            "trainings": len(self.units),
            "epochs": sorted({job.recipe.train.epochs for job in self.jobs}),
            "threads": self.run_threads,
            **{name: getattr(self, name) for name in names},
        })  # fmt: skip
        return content

    def text(self) -> str:
        """The plan for people, a few lines."""
        spec, design = self.spec, self.design
        trained, first = len(self.units), self.jobs[0].recipe
        shared = f" ({trained} trainings, shared)" if trained < len(self.jobs) else ""
        lengths = sorted({job.recipe.train.epochs for job in self.jobs})
        each = " or ".join(plural(epochs, "epoch") for epochs in lengths)
        validation = "prune.val_accuracy" if step_of(spec.metric, ["prune"]) else "val.accuracy"
        on_test = f": a report on test. To choose a recipe by a study, set metric: {validation}"
        return "\n".join([
            f"Study {spec.name}: {spec.design}, {len(design.variants)} variants x {plural(len(spec.seeds), 'seed')}",
            *([f"  {spec.about}"] if spec.about else []),
            f"  runs      {len(self.jobs)}{shared}, {each} each, {first.model.name} on {data_name(first.data.source)}",
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
            lines.append(f"            measured with {self.load:.0f} other programs running; alone it may be far less")
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
        if source == "assumed" and self.judged and self.noise > ASSUMED_NOISE:
            source += f" for {self.judged:,} images"
        least = significant(self.smallest * scale, 2)
        return (
            f"  can show  effects of {least} {unit} or more ({often} of the time, after Holm's "
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
    images: int | None = None,
    judged: int | None = None,
    measure: Callable[[Recipe], Mapping[str, Any]] | None = None,
) -> Plan:
    """Resolve every run of a study. Anything wrong with its recipes is found here, before training starts.

    Args:
        workers: runs at a time, for the estimate of time.
        threads: of each run, if the recipe leaves it open.
        precision: what `precision: auto` means in this study, if that is already decided.
        images, judged: as in `Plan`, if they are already known.
        measure: recipe -> {"recipe": with precision resolved, "seconds_per_epoch", "train", "val", "test": images,
            "classes"}, on a few steps.

    Raises:
        RecipeError: a field, value or base recipe is wrong; names the variant.
    """
    design = expand(spec)
    base = base_recipe(spec.base, f"{spec.name}, base")
    for where, number in spec.wanted:
        if (step := step_of(number, spec.after)) is not None:
            check_number(step, number.removeprefix(f"{step}."), f"{spec.name}, {where}")
    resolved: dict[str, Resolved] = {}
    for variant in design.variants:
        recipe, after = resolve(base, spec, variant.overrides, where=f"{spec.name}, variant {variant.name!r}")
        resolved[variant.name] = (with_train(recipe, threads=recipe.train.threads or threads), after)
    undecided = [recipe for recipe, _ in resolved.values() if recipe.train.precision == "auto"]
    seconds_per_epoch, load = None, 0.0
    if measure is not None:
        # Prefer a recipe with the precision open, and one on all images: the others' time is a share of its time.
        choice = undecided or [recipe for recipe, _ in resolved.values()]
        reference = resolved[design.reference][0]
        facts = measure(min(choice, key=lambda recipe: (recipe.data.limit is not None, recipe is not reference)))
        seconds_per_epoch, images = float(facts["seconds_per_epoch"]), int(facts["train"])
        judged = _judged(spec.metric, facts, resolved[design.reference][1])
        load = float(facts.get("load", 0.0))
        precision = precision or facts["recipe"].train.precision
    if not undecided:
        precision = None
    elif precision is not None:
        for name, (recipe, after) in resolved.items():
            if recipe.train.precision == "auto":
                resolved[name] = (with_train(recipe, precision=precision), after)
    return Plan(
        spec, design, _jobs(spec, resolved), precision, threads, workers, seconds_per_epoch, images, load, judged
    )


def _judged(name: str, facts: Mapping[str, Any], after: Mapping[str, Mapping[str, Any]]) -> int | None:
    """How many images a number is measured on; `facts` as in `make_plan`, `after`: step -> settings."""
    on_validation = name == "gap" or name.startswith("val.") or name.rpartition(".")[2].startswith("val_")
    images: int | None = facts.get("val" if on_validation else "test")
    if images and ".per_class." in name:
        return max(1, images // int(facts.get("classes", 1)))
    if images and step_of(name, after) == "robustness":
        return min(images, int(after["robustness"].get("images", ROBUSTNESS_IMAGES)))
    return images


def resolve(base: Recipe, spec: StudySpec, overrides: Mapping[str, Any], where: str) -> Resolved:
    """A variant's recipe and its settings of the steps after training.

    Raises:
        RecipeError: a field or value is wrong; the line begins with `where`.
    """
    after = {step: dict(settings) for step, settings in spec.after.items()}
    fields: dict[str, Any] = {}
    for name, value in {**spec.set, **overrides}.items():
        step = step_of(name.removeprefix("after."), after) if name.startswith("after.") else None
        if step is None:
            fields[name] = value
        else:
            after[step][name.removeprefix(f"after.{step}.")] = value
    # The order is kept, since a field may be inside an earlier one (augment.mix, then augment.mix.prob). A whole
    # pipeline comes before changes to its ops.
    ordered = dict(sorted(fields.items(), key=lambda field: field[0].startswith(OPS_BY_NAME)))
    try:
        recipe = base.override(*assignments(ordered))
        for step, settings in after.items():
            check(step, settings)
    except RecipeError as error:
        raise RecipeError(f"{where}: {str(error).removeprefix('--set: ').removeprefix('--set ')}") from error
    if recipe.data.whole:
        raise RecipeError(f"{where}: data.folds: a study compares runs that have a validation split; set it to null")
    # Last, whatever base and overrides set. A length that was recut to fit minutes becomes the planned length.
    return with_train(recipe.model_copy(update={"train": recipe.train.straightened()}), early_stopping=None), after


def _jobs(spec: StudySpec, resolved: Mapping[str, Resolved]) -> tuple[Job, ...]:
    seen: dict[str, str] = {}
    for name, (recipe, after) in resolved.items():
        same = seen.setdefault(_fingerprint(recipe, after), name)
        if same != name:
            raise RecipeError(
                f"{spec.name}: variants {same!r} and {name!r} are the same recipe, so nothing is compared; remove one"
            )
    jobs = []
    folders: dict[str, str] = {}  # jobs of the same training share the folder of the first of them
    for seed in spec.seeds:
        for variant, (recipe, after) in resolved.items():
            seeded = with_train(recipe, seed=seed)
            slug = re.sub(r"[^A-Za-z0-9._=-]+", "-", variant).strip("-.")[:48] or "variant"
            name = f"{slug}-seed{seed}-{_fingerprint(seeded, after)[:8]}"
            folder = folders.setdefault(seeded.fingerprint, name)
            jobs.append(Job(variant, seed, seeded, after, name, folder))
    return tuple(jobs)


def with_train(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other, valid values of fields in `train`."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})


def _fingerprint(recipe: Recipe, after: Mapping[str, Mapping[str, Any]]) -> str:
    if not after:
        return recipe.fingerprint
    text = json.dumps([recipe.fingerprint, {step: dict(settings) for step, settings in after.items()}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- what a study can show before it has run ------------------------------------------------------------------------


def error_factor(design: Design, seeds: int) -> tuple[float, float]:
    """Standard error of a design's main effects for noise of 1, and degrees of freedom, if every run finishes."""
    count = len(design.variants)
    df: float = (count - 1) * (seeds - 1)
    if design.regression:
        most = max(len(levels) for levels in design.factors.values())  # the rarest level decides
        if seeds == 1:  # the noise is estimated from the misfit
            df = max(count - 1 - len(design.effects), 0)
        elif count > 2:  # as `stats._weighted_noise` gives for even noise: own variances vary by chance
            df = max(min(df, 2 * count / most * (seeds - 1)) / (1 + 2 / (seeds - 1)), seeds - 1)
        return math.sqrt(2.0 * most / (count * seeds)), df
    others = count - 1
    if others > 1 and seeds > 1:  # as `stats._separate_reference` gives for even noise
        df = welch((1 + 1 / others, seeds - 1), (1 - 1 / others, (others - 1) * (seeds - 1)))
    return math.sqrt(2.0 / seeds), df


def smallest_effect(design: Design, seeds: int, noise: float) -> float | None:
    """The effect that would be shown with 80 % probability, in the unit of `noise`; None without df.

    From the noncentral t distribution, at 5 % divided by the number of comparisons: what Holm's correction asks of the
    only effect there is.
    """
    factor, df = error_factor(design, seeds)
    if df < 1:
        return None
    critical = float(stats.t.isf((1 - CONFIDENCE) / 2 / len(set(design.compared)), df))

    def lacking(effect: float) -> float:
        # The far tail is left out: it adds less than 1e-6 at any effect with 80 % power.
        return float(stats.nct.sf(critical, df, effect)) - POWER

    return noise * factor * float(optimize.brentq(lacking, 0.1, 3.0 * critical))


def seeds_for(design: Design, effect: float, noise: float) -> int | None:
    """The fewest seeds with which this effect would be shown with 80 % probability; None beyond `MOST_SEEDS`."""
    enough = (s for s in range(2, MOST_SEEDS + 1) if (smallest_effect(design, s, noise) or math.inf) <= effect)
    return next(enough, None)


def seeds_within(design: Design, within: float, noise: float) -> int | None:
    """The fewest seeds with which the interval of no effect is inside +-`within` in about 80 % of studies.

    The interval's half width and the estimate's own scatter (1.28 standard errors cover it in 80 %) must fit in.
    """
    scatter = float(stats.norm.isf((1 - POWER) / 2))
    for seeds in range(2, MOST_SEEDS + 1):
        factor, df = error_factor(design, seeds)
        if df >= 1 and half_interval(noise * factor, df) + scatter * noise * factor <= within:
            return seeds
    return None
