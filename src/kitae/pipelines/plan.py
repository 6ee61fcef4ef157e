"""plan(data): make a recipe from images, classes, sizes, installed weights, this machine's speed and the minutes.

Times are measured here and become plain numbers of steps, so the result is an ordinary recipe.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kitae import console
from kitae.data.parallel import processors
from kitae.data.spec import DataSpec
from kitae.errors import MissingExtraError, install
from kitae.files import user_path
from kitae.models.spec import ModelSpec
from kitae.models.weights import PACKAGES, within_reach
from kitae.pipelines.choices import Choices
from kitae.pipelines.facts import Facts, framing, look
from kitae.pipelines.folds import split_clock
from kitae.pipelines.pace import (
    FEWEST_STEPS,
    FEWEST_TUNING_STEPS,
    Clock,
    Pace,
    fill,
    head_seconds,
    measured,
    most_steps,
    replan,
)
from kitae.pipelines.setup import begin
from kitae.recipe import Recipe, assigns
from kitae.training.distributed import World

DEFAULT_MINUTES = 10.0
"""Time limit of a plan without `minutes` on a CPU; it ends sooner if more training would gain little."""

NET = "tf_efficientnet_lite0"
"""The pretrained net of a plan. Its weights can be installed with pip, and it has been measured."""

_SIZES = (224, 192, 160, 128, 112, 96)
_SCRATCH_SIZES = (128, 96, 64)
_MEASURED_TOGETHER = 32  # batch size of measurements of small networks, whose overhead dominates smaller batches
_JUDGED_AT_ONCE = 32  # larger batches of large images do not fit into the processor's cache
_SMALLEST_TUNED = 128  # pixels; fine-tuning on smaller pictures ended worse than its probe (LOG.md, 2026-11-26)
# Share of the side at which the probe alone fits. Below it, the probe loses more accuracy than a few steps gain.
_TUNED_SIDE = 0.7
_TUNED_MARGIN = 1.2  # times the fewest steps, since the second measurement before training may be slower
# Passes through photographs, and at least 1,000 steps, from which CutMix on half of the batches helps; it needs time
# (LOG.md, 2026-11-27).
_MIXED_FROM = 80
_FEW = 1000  # with fewer images, a single split is unreliable


@dataclass(frozen=True)
class Plan:
    """A recipe, and the reasons for it.

    Attributes:
        recipe: a complete, ordinary recipe.
        lines: the reasons as text; the first line summarises the plan.
        clock: the clock it was made for.
    """

    recipe: Recipe
    lines: tuple[str, ...]
    clock: Clock


def plan(source: str, minutes: float | Clock | None = None, choices: Choices | None = None) -> Plan:
    """Plan a recipe for a data source.

    Args:
        source: as data.source.
        minutes: time limit of the whole command, from now on, or a running clock; None chooses, up to
            `DEFAULT_MINUTES`.

    Raises:
        DataError: the source cannot be read, or its images cannot be split.
        RecipeError: a choice that does not exist.
    """
    patient = minutes is not None
    clock = minutes if isinstance(minutes, Clock) else Clock.of(minutes or DEFAULT_MINUTES, time.monotonic())
    choices = choices or Choices()
    bare = Recipe(name=_name(source), data=DataSpec(source=source))
    choices.applied(bare)  # fail on a wrong choice before reading the data
    base = bare.override(
        *(f"train.device={choices.device}" for _ in range(choices.device is not None)),
        *(f"data.folds={choices.folds}" for _ in range(choices.folds is not None)),
        *(entry for entry in choices.set if entry.startswith(("data.", "train.device", "train.threads"))),
    )
    if base.data.whole:  # planned as the run of one fold; there is a run for each fold and one on everything
        base = base.override("data.fold=1")
    facts, data = look(base.data, fraction=assigns(choices.set, "data.val_fraction"))
    base = base.model_copy(update={"data": data})
    world = begin(base.train)
    share = clock if facts.folds is None else split_clock(clock, facts.folds + 1)
    planner = _Planner(facts, base, choices, share, world, patient=patient)
    weights, why_not = planner.weights()
    recipe, lines = planner.transfer(weights) if weights else planner.scratch(why_not)
    most = most_steps(facts.train, recipe.train.batch_size, patient=True, pretrained=bool(weights))
    return Plan(recipe, tuple(lines), replace(clock, most=None if choices.epochs is not None else most))


def _name(source: str) -> str:
    kind, _, path = source.partition(":")
    name = user_path(path).resolve().stem if path else kind
    return name[:100] or kind


class _Planner:
    """Makes the recipe of either kind."""

    def __init__(
        self, facts: Facts, base: Recipe, choices: Choices, clock: Clock, world: World, *, patient: bool
    ) -> None:
        self.facts, self.base, self.choices, self.clock, self.world = facts, base, choices, clock, world
        self.patient = patient

    # ---- which kind ----------------------------------------------------------------------------------------------

    def weights(self) -> tuple[str | None, str]:
        """The source of the pretrained weights, or why there are none."""
        name = self.choices.model or f"timm:{NET}"
        library, _, net = name.rpartition(":")
        if library != "timm":
            return None, f"{name} has no published weights"
        if self.choices.model is None and self.facts.tiny and self.facts.channels == 1:
            return None, f"grey images of {self.facts.side[0]} x {self.facts.side[1]} are no photographs"
        try:
            found = within_reach(net)
        except MissingExtraError as error:
            return None, str(error)
        if found is None:
            package = PACKAGES.get(net)
            cure = install("weights") if package else "connect to the network once"
            return None, f"no pretrained weights are available ({cure})"
        return found, ""

    # ---- what both have ------------------------------------------------------------------------------------------

    def batch_size(self, usual: int) -> int:
        """Smaller for few images, so that a pass has several steps; each process gets an equal, even part of it."""
        if self.choices.batch_size is not None:
            return self.choices.batch_size
        fitting = 1 << int(math.log2(max(2, self.facts.train / 8)))
        part = 2 * self.world.size
        return max(part, min(usual, fitting) // part * part)

    def before_training(self) -> float:
        """Seconds that starting and decoding take."""
        return self.facts.images * self.facts.seconds / processors()

    def after_training(self, pace: Pace) -> float:
        """Seconds of the test and the pages; validation needs no time, since the best epoch's results are reused."""
        return self.facts.test * pace.judge + self.clock.after

    def judging(self, pace: Pace) -> float:
        """Seconds of a validation."""
        return (self.facts.val + max(50, self.facts.val // 2)) * pace.judge

    def pace(self, model: ModelSpec, size: int, before: Pace | None = None, **batch: int) -> Pace:
        return measured(
            model, self.base.train, self.world, classes=len(self.facts.counts), channels=self.facts.channels,
            size=(size, size), before=before, **batch,
        )  # fmt: skip

    def said(self, net: str, size: int, seconds: float) -> str:
        classes = len(self.facts.counts)
        spent = (self.clock.starting + seconds) * (1 if self.facts.folds is None else self.facts.folds + 1)
        return (
            f"{self.facts.images:,} {self.facts.noun}, {classes} classes; {net}; {size} px; about "
            f"{console.rough_duration(spent)}"
        )

    def remarks(self) -> list[str]:
        facts = self.facts
        if facts.folds is None:
            lines = [f"split: {facts.train:,} train, {facts.val:,} validation, {facts.test:,} test"]
        else:
            lines = [
                f"{facts.folds} folds of about {facts.test:,} {facts.noun}, each with {facts.train:,} to train and "
                f"{facts.val:,} to validate; then a model on everything"
            ]
        smallest, largest = min(facts.counts), max(facts.counts)
        if largest > 3 * smallest:
            lines.append(
                f"classes of {smallest:,} to {largest:,} images: the best epoch is chosen by balanced accuracy"
            )
        if facts.images < _FEW and facts.folds is None:
            lines.append(f"one split of {facts.images:,} {facts.noun} says little: --folds 5 measures on more of them")
        return lines

    def finished(self, recipe: dict[str, Any]) -> Recipe:
        """The recipe with the user's choices, which override the plan's."""
        made = Recipe.model_validate({**recipe, "name": self.base.name})
        chosen = replace(self.choices, model=None)  # the plan has it
        made = chosen.applied(made)
        if self.facts.folds is None:
            return made
        return made.model_copy(update={"data": made.data.model_copy(update={"fold": None})})

    # ---- from pretrained weights ---------------------------------------------------------------------------------

    def transfer(self, weights: str) -> tuple[Recipe, list[str]]:
        facts = self.facts
        name = self.choices.model or f"timm:{NET}"
        first = 6 if name.rpartition(":")[2].removesuffix(".in1k") == NET else 0
        model = ModelSpec(name=name, pretrained=True, freeze="statistics", freeze_first=first)
        batch = self.batch_size(32)
        size, epochs, steps, seconds = self.settled(model, batch)
        if self.choices.epochs is not None:
            epochs, steps = self.choices.epochs, 0
        per_pass = max(1, facts.train // batch)
        data = self.base.data.model_copy(
            update={
                "image_size": size,
                "normalize": "pretrained",
                **framing(facts, self.base.data, pretrained=True),
            }
        )
        recipe = {
            "data": data.model_dump(mode="json"),
            "augment": {"train": _PHOTO_OPS},
            "model": model.model_dump(mode="json"),
            "train": {
                **self.base.train.model_dump(mode="json", include={"device", "threads"}),
                "epochs": epochs,
                "epoch_steps": steps if epochs and steps != per_pass and steps else None,
                "batch_size": batch,
                "optimizer": {
                    "name": "adamw", "lr": 1e-3 * math.sqrt(batch / 32), "weight_decay": 0.02, "layer_decay": 0.9,
                },
                "schedule": {"name": "cosine", "warmup_epochs": round(0.1 * epochs, 2)},
                "label_smoothing": 0.1,
                "clip_norm": 1.0,
                "probe": {"views": 0},
            },
            "evaluate": {"batch_size": _JUDGED_AT_ONCE},
        }  # fmt: skip
        net = f"{name.rpartition(':')[2].removeprefix('tf_')} pretrained"
        made = self.finished(recipe)
        lines = [self.said(net, size, seconds), *self.remarks(), f"weights: {weights}"]
        head = f"a linear head on the frozen network's features first (epoch 0, on {facts.train:,} images)"
        if made.train.epochs == 0:
            lines.append(f"{head}; the minutes allow no fine-tuning")
        else:
            each = made.train.epoch_steps or per_pass
            epochs_said = console.plural(made.train.epochs, "epoch")
            lines.append(f"{head}, then {epochs_said} of {each} steps, {batch} images each")
        return made, lines

    def settled(self, model: ModelSpec, batch: int) -> tuple[int, int, int, float]:
        """The result of `fitting` at the pace of this machine."""
        sizes = self.sizes(_SIZES)
        at = min(sizes, key=lambda size: abs(size - 128))

        def plan() -> tuple[int, int, int, float]:
            nonlocal at
            pace = self.pace(model, at)
            chosen = self.fitting(sizes, pace, batch)
            if chosen[0] > at:  # larger pictures do not fit into the cache, so their time per pixel is higher
                pace = self.pace(model, chosen[0], pace)
                chosen = self.fitting([size for size in sizes if size <= chosen[0]], pace, batch)
            at = chosen[0]
            return chosen

        def unused(chosen: tuple[int, int, int, float]) -> float:
            return 0 if chosen[1] else self.clock.left - chosen[3]

        return replan(plan, unused, self.clock, self.world)

    def sizes(self, usual: Sequence[int]) -> tuple[int, ...]:
        """Sizes to choose from, the largest first: the user's, or those that do not just enlarge the pictures."""
        if self.choices.image_size is not None:
            return (self.choices.image_size,)
        if isinstance(given := self.base.data.image_size, int):
            return (given,)
        most = max(128, 2 * min(self.facts.side))
        return tuple(size for size in usual if size <= most)

    def fitting(self, sizes: Sequence[int], measured: Pace, batch: int) -> tuple[int, int, int, float]:
        """Size, epochs, steps per epoch, and seconds in all: the largest size that leaves enough steps to fine-tune.

        If there is none, or it is much smaller than the probe alone allows, the largest size at which the probe fits.
        """
        facts = self.facts
        per_pass = max(1, facts.train // batch)
        most = most_steps(facts.train, batch, patient=self.patient, pretrained=True)
        wanted = min(most, max(round(_TUNED_MARGIN * FEWEST_TUNING_STEPS), 4 * per_pass))
        best: tuple[int, int, int, float] | None = None
        for size in sizes:
            pace = measured.at(size * size)
            judging = self.judging(pace)
            overhead = self.overhead(pace)
            room = self.clock.left - overhead
            epochs, steps = fill(max(0.0, room), batch, per_pass, judging, pace.step, most) if room > 0 else (0, 0)
            total = overhead + epochs * (judging + steps * batch * pace.step)
            if best is None and room > 0:
                best = size, 0, 0, overhead
            smallest = _SMALLEST_TUNED if best is None else max(_SMALLEST_TUNED, _TUNED_SIDE * best[0])
            if epochs * steps >= wanted and (size >= smallest or len(sizes) == 1):
                return size, epochs, steps, total
        if best is None:
            best = sizes[-1], 0, 0, self.overhead(measured.at(sizes[-1] ** 2))
        return best

    def overhead(self, pace: Pace) -> float:
        """Seconds of everything except fine-tuning."""
        probing = (
            self.facts.train * pace.feature
            + head_seconds(self.facts.train, len(self.facts.counts))
            + self.judging(pace)
        )
        return self.before_training() + probing + self.after_training(pace)

    # ---- from scratch --------------------------------------------------------------------------------------------

    def scratch(self, why: str) -> tuple[Recipe, list[str]]:
        facts = self.facts
        batch = self.batch_size(128)
        sizes: tuple[int, ...] = (max(facts.side),) if facts.tiny else self.sizes(_SCRATCH_SIZES)
        if self.choices.image_size is not None:
            sizes = (self.choices.image_size,)
        name = self.choices.model or "resnet9"
        model = ModelSpec(name=name)
        if name == "resnet9":
            # In equal time the medium stem is better than the large one with more steps (LOG.md, 2026-11-27).
            model = ModelSpec(name=name, width=16, stem="auto" if facts.tiny else "medium")
        per_pass = max(1, facts.train // batch)
        most = most_steps(facts.train, batch, patient=self.patient, pretrained=False)
        # A larger size must leave this many steps. With the same time, 128 px and more steps at 96 px were equally good
        # (LOG.md, 2026-11-27).
        enough = max(600, 40 * per_pass) if self.patient else max(300, 15 * per_pass)
        chosen = sizes[-1], 1, per_pass, 0.0
        for size in sizes:
            # The pace is measured at each size, because small images may use a different stem.
            at = self.pace(model, size, images=min(batch, _MEASURED_TOGETHER)).at(size * size)
            judging = self.judging(at)
            overhead = self.before_training() + self.after_training(at)
            epochs, steps = fill(max(0.0, self.clock.left - overhead), batch, per_pass, judging, at.step, most)
            if epochs * steps >= min(most, enough) or size == sizes[-1]:
                epochs, steps = (epochs, steps) if epochs else (1, FEWEST_STEPS)
                chosen = size, epochs, steps, overhead + epochs * (judging + steps * batch * at.step)
                break
        size, epochs, steps, seconds = chosen
        if self.choices.epochs is not None:
            epochs, steps = self.choices.epochs, 0
        oblong = facts.tiny and facts.same and self.choices.image_size is None and len(set(facts.side)) > 1
        image_size = facts.side if oblong else size  # not null, since only a sample of the pictures was read
        frame = framing(facts, self.base.data, pretrained=False)
        data = self.base.data.model_copy(update={"image_size": image_size, **frame})
        augment: dict[str, Any] = {"train": _tiny_ops(size) if facts.tiny else _PHOTO_OPS}
        if not facts.tiny and epochs * (steps or per_pass) >= max(1000, _MIXED_FROM * per_pass):
            augment["mix"] = {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "prob": 0.5}
        recipe = {
            "data": data.model_dump(mode="json"),
            "augment": augment,
            "model": model.model_dump(mode="json"),
            "train": {
                **self.base.train.model_dump(mode="json", include={"device", "threads"}),
                "epochs": epochs,
                "epoch_steps": steps if steps and steps != per_pass else None,
                "batch_size": batch,
                "optimizer": {"name": "sgd", "lr": 0.4 * batch / 128, "momentum": 0.9, "weight_decay": 5e-4},
                "schedule": {"name": "one_cycle"},
                "label_smoothing": 0.1,
            },
        }
        made = self.finished(recipe)
        lines = [self.said(f"{name} from scratch", size, seconds), *self.remarks(), f"{why}: trains from scratch"]
        each = made.train.epoch_steps or per_pass
        lines.append(f"{console.plural(made.train.epochs, 'epoch')} of {each} steps, {batch} images each")
        return made, lines


_PHOTO_OPS: list[dict[str, Any]] = [
    {"random_resized_crop": {"scale": [0.35, 1.0]}},
    {"horizontal_flip": {}},
]


def _tiny_ops(size: int) -> list[dict[str, Any]]:
    return [
        {"random_crop": {"padding": max(1, size // 12), "mode": "reflect"}},
        {"horizontal_flip": {}},
        {"random_erasing": {"p": 0.25}},
    ]
