"""Policy search: which augmentation, mixing and smoothing suit *these* data?

    arms        Optuna proposes settings (TPE, Bergstra et al. 2011). The published presets and the recipe's own
                augmentation are the first arms, so the search starts from what everybody would try.
    halving     every arm is trained for a few epochs; only arms among the best third of their rung are trained anew for
                three times as long, up to the recipe's own length (successive halving, Jamieson and Talwalkar 2016,
                as Optuna's asynchronous pruner does it). Each rung is a complete run with its own schedule. Presets
                are never cut, so that the best of them is the best at the full length, not the first that was tried.
    judge       validation accuracy. Test is never opened by an arm.
    rematch     the best of many arms looks better than it is, since it was chosen for looking good. So the winner and
                the best preset are trained again on fresh seeds and a fresh validation split, as a study of two
                variants, and that study says whether the search has won. The test images stay the same. Where the
                source has its own validation split there is no other, and the verdict says so.

A search folder holds search.yaml (written first), arms/ (a folder a run), search.json, winner.yaml and rematch/, which
is a study folder. A search that was killed is gone on with: proposals are a function of the seed and of the results so
far, and runs that are done are not run again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kitae.console import rough_duration
from kitae.data.base import VAL
from kitae.data.store import open_store
from kitae.errors import RecipeError, TrainingError, require
from kitae.experiments.executors import Executor, LocalProcesses, threads_each
from kitae.experiments.folder import NUMERICS, check_numerics, check_owned, first_difference, locked, remove_owned
from kitae.experiments.run import (
    MEASURE,
    TRAIN_WITHOUT_TEST,
    StudyResult,
    study,
)
from kitae.experiments.spec import StudySpec
from kitae.experiments.stats import amount
from kitae.experiments.worker import function, read_outcome
from kitae.files import write_atomically, write_json
from kitae.recipe import Recipe
from kitae.reporting.effects import draw_search

REDUCTION = 3
_WRITTEN = ("search.yaml", "arms", "rematch", "search.json", "winner.yaml", "figures", "report.html")
FRESH_SEED = 1000  # seeds of the rematch begin here; arms use the recipe's own seed

Parameters = dict[str, Any]

# The presets, as points of the search space. `own` is the recipe's augmentation as it is.
_WEAK: Parameters = {
    "policy": "none", "crop": True, "flip": True, "erasing": 0.0, "mix": "none", "smoothing": 0.0,
}  # fmt: skip
PRESETS: dict[str, Parameters] = {
    "own": {**_WEAK, "policy": "own", "crop": False, "flip": False},
    "none": {**_WEAK, "crop": False, "flip": False},
    "flip and crop": _WEAK,
    "rand_augment": {**_WEAK, "policy": "rand_augment", "num_ops": 2, "magnitude": 9},
    "trivial_augment_wide": {**_WEAK, "policy": "trivial_augment_wide"},
    "auto_augment": {**_WEAK, "policy": "auto_augment"},
    "mixup and cutmix": {
        **_WEAK, "mix": "both", "mixup_alpha": 1.0, "cutmix_alpha": 1.0, "mix_prob": 1.0, "smoothing": 0.1,
    },
}  # fmt: skip
POLICIES = ("own", "none", "rand_augment", "trivial_augment_wide", "auto_augment", "subset")
# Ops of the policy `subset`: each is in or out, and all share one strength in [0, 1].
SUBSET: dict[str, Callable[[float], Mapping[str, Any]]] = {
    "rotate": lambda strength: {"degrees": round(30 * strength, 2)},
    "affine": lambda s: {
        "translate": [round(0.15 * s, 3)] * 2,
        "scale": [round(1 - 0.2 * s, 3), round(1 + 0.2 * s, 3)],
    },
    "color_jitter": lambda s: {name: round(0.5 * s, 3) for name in ("brightness", "contrast", "saturation")},
    "gaussian_blur": lambda s: {"sigma": [0.1, round(0.1 + 1.5 * s, 3)], "p": 0.3},
    "sharpness": lambda s: {"factor": round(1 + 2 * s, 3)},
    "grayscale": lambda s: {"p": round(0.2 * s, 3)},
    "gaussian_noise": lambda s: {"sigma": round(0.1 * s, 4), "p": 0.5},
}


def suggest(trial: Any) -> Parameters:
    """A point of the search space from an Optuna trial (anything with its suggest_* methods)."""
    found: Parameters = {"policy": trial.suggest_categorical("policy", POLICIES)}
    if found["policy"] == "rand_augment":
        found["num_ops"] = trial.suggest_int("num_ops", 1, 4)
        found["magnitude"] = trial.suggest_int("magnitude", 1, 20)
    if found["policy"] == "subset":
        found["strength"] = trial.suggest_float("strength", 0.1, 1.0)
        for op in SUBSET:
            found[op] = trial.suggest_categorical(op, (True, False))
    found["crop"] = trial.suggest_categorical("crop", (True, False))
    found["flip"] = trial.suggest_categorical("flip", (True, False))
    found["erasing"] = trial.suggest_float("erasing", 0.0, 0.5)
    found["mix"] = trial.suggest_categorical("mix", ("none", "mixup", "cutmix", "both"))
    if found["mix"] in ("mixup", "both"):
        found["mixup_alpha"] = trial.suggest_float("mixup_alpha", 0.1, 2.0, log=True)
    if found["mix"] in ("cutmix", "both"):
        found["cutmix_alpha"] = trial.suggest_float("cutmix_alpha", 0.1, 2.0, log=True)
    if found["mix"] != "none":
        found["mix_prob"] = trial.suggest_float("mix_prob", 0.2, 1.0)
    found["smoothing"] = trial.suggest_float("smoothing", 0.0, 0.2)
    return found


def apply(recipe: Recipe, point: Mapping[str, Any], image_size: int) -> Recipe:
    """A recipe with the augmentation, mixing and smoothing of a point of the search space.

    Args:
        image_size: pixels of the shorter side; the random crop pads an eighth of it.
    """
    if point["policy"] == "own" and point == PRESETS["own"]:
        return recipe
    ops: list[dict[str, Any]] = [dict(op) for op in recipe.augment.train] if point["policy"] == "own" else []
    present = {name for op in ops for name in op}
    if point["crop"] and not present & {"random_crop", "random_resized_crop"}:
        ops.append({"random_crop": {"padding": max(1, image_size // 8)}})
    if point["flip"] and "horizontal_flip" not in present:
        ops.append({"horizontal_flip": {}})
    if point["policy"] == "rand_augment":
        ops.append({"rand_augment": {"num_ops": point["num_ops"], "magnitude": point["magnitude"]}})
    elif point["policy"] == "subset":
        ops += [{op: dict(make(point["strength"]))} for op, make in SUBSET.items() if point[op]]
    elif point["policy"] in ("trivial_augment_wide", "auto_augment"):
        ops.append({point["policy"]: {"policy": "cifar10"} if point["policy"] == "auto_augment" else {}})
    if point["erasing"] >= 0.01 and "random_erasing" not in present:
        ops.append({"random_erasing": {"p": round(point["erasing"], 3)}})
    mix = None
    if point["mix"] != "none":
        mix = {
            "mixup_alpha": round(point.get("mixup_alpha", 0.0), 3),
            "cutmix_alpha": round(point.get("cutmix_alpha", 0.0), 3),
            "prob": round(point["mix_prob"], 3),
        }
    tree = recipe.model_dump(mode="json")
    tree["augment"] = {"train": ops, "mix": mix}
    tree["train"]["label_smoothing"] = round(point["smoothing"], 3)
    return Recipe.model_validate(tree)


@dataclass(frozen=True)
class Arm:
    """One setting that was tried.

    Attributes:
        name: of the preset, or `searched NUMBER`.
        rungs: (epochs, validation accuracy) of each rung it reached.
        state: `complete` (trained to the full length), `pruned`, or `failed`.
    """

    number: int
    name: str
    point: Parameters
    recipe: Recipe
    rungs: tuple[tuple[int, float], ...]
    state: str

    @property
    def preset(self) -> bool:
        return self.name in PRESETS

    @property
    def standing(self) -> tuple[int, float]:
        """Sorts arms: first by the rung reached, then by the accuracy there."""
        return (len(self.rungs), self.rungs[-1][1]) if self.rungs else (0, 0.0)


@dataclass(frozen=True)
class SearchResult:
    """What a search found, and whether that is better than the best preset.

    Attributes:
        path: the search folder.
        arms: all settings tried, in order.
        best, preset: the best arm that did not fail, and the best among the presets.
        rematch: the study of the two on fresh seeds; None where the best arm is a preset.
        verdict: one honest sentence.
        winner: the recipe to use: the searched one only where the rematch showed it better. Precision, threads and
            early stopping are as they were asked for, not as this machine decided them for the search.
    """

    path: Path
    arms: tuple[Arm, ...]
    best: Arm
    preset: Arm
    rematch: StudyResult | None
    verdict: str
    winner: Recipe

    def data(self) -> dict[str, Any]:
        """What search.json holds; plain values."""
        return {
            "format": 1,
            "arms": [
                {"number": a.number, "name": a.name, "preset": a.preset, "state": a.state, "point": a.point,
                 "rungs": [list(rung) for rung in a.rungs]}
                for a in self.arms
            ],
            "best": self.best.number,
            "best_preset": self.preset.number,
            "verdict": self.verdict,
            "winner": self.winner.model_dump(mode="json"),
        }  # fmt: skip

    def table(self) -> str:
        """The best arms as text, and the verdict."""
        from kitae.experiments.tables import columns

        rows = [
            [
                arm.name,
                str(arm.rungs[-1][0]) if arm.rungs else "-",
                f"{100 * arm.rungs[-1][1]:.1f}" if arm.rungs else "-",
                arm.state,
                ", ".join(name for op in arm.recipe.augment.train for name in op) or "no ops",
            ]
            for arm in sorted(self.arms, key=lambda arm: arm.standing, reverse=True)[:12]
        ]
        return columns(["arm", "epochs", "val.accuracy", "state", "ops"], rows) + f"\n\n{self.verdict}"


def search(
    recipe: Recipe | str | Path,
    out: str | Path,
    *overrides: str,
    arms: int = 30,
    rematch_seeds: int = 5,
    workers: int = 1,
    threads: int | None = None,
    executor: Executor | None = None,
    seed: int = 0,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
    train: str = TRAIN_WITHOUT_TEST,
    measure: str = MEASURE,
) -> SearchResult:
    """Search augmentation, mixing and smoothing for a recipe's data.

    Args:
        recipe: with the data, model and length to search for; `overrides` as in `Recipe.override`.
        out: the search folder; one that holds the same search is gone on with.
        arms: settings to try, the presets included.
        rematch_seeds: seeds of the rematch, FRESH_SEED and up; two or more.
        workers, threads, executor, report, train, measure: as in `study`.
        seed: of the proposals.
        overwrite: replace the search in `out`, once the new one is measured.

    Raises:
        KitaeError: anything the user can mend, in one line.
    """
    optuna = require("optuna", "search")
    say = report or (lambda _: None)
    if arms < len(PRESETS) + 1:
        raise RecipeError(f"arms: {arms} leaves nothing to search: {len(PRESETS)} presets come first")
    if rematch_seeds < 2:
        raise RecipeError(f"rematch_seeds: {rematch_seeds} gives the verdict no interval; two or more, such as 5")
    asked = (recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)).override(*overrides)
    folder = Path(out)
    with locked(folder):
        base, image_size, seconds = _written(
            folder, asked, arms, workers, threads_each(threads, workers), seed, rematch_seeds, measure, overwrite
        )
        kept = base.train.threads
        if threads not in (None, kept):
            say(f"threads: {threads} is not used; the search's runs have {kept}, from its beginning or its recipe")
        _check_images(folder, base)
        rungs = _rungs(base.train.epochs)
        say(
            f"search: {arms} arms, rungs of {', '.join(str(r) for r in rungs)} epochs, judged by validation accuracy; "
            f"the {len(PRESETS)} presets go through all of them"
        )
        if seconds is not None:
            say(_time(seconds, rungs, arms, rematch_seeds, workers))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=10, multivariate=True),
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION),
        )
        for point in PRESETS.values():
            space.enqueue_trial(point)
        place = executor or LocalProcesses(workers)
        tried = _climb(space, optuna, base, image_size, rungs, arms, workers, folder, place, train, say)
        whole = [arm for arm in tried if arm.state != "failed"]
        if not whole:
            raise TrainingError(f"{folder}: every arm failed; see the logs in {folder / 'arms'}")
        if not any(arm.preset for arm in whole):
            raise TrainingError(
                f"{folder}: every preset failed, so there is nothing to compare with; see the logs in {folder / 'arms'}"
            )
        best = max(whole, key=lambda arm: arm.standing)
        preset = max((arm for arm in whole if arm.preset), key=lambda arm: arm.standing)
        result = _judge(folder, tried, best, preset, rematch_seeds, workers, kept, executor, report, train)
        result = replace(result, winner=_as_asked(result.winner, asked))
        write_json(folder / "search.json", result.data())
        result.winner.save(folder / "winner.yaml")
        draw_search(result.data(), folder / "figures" / "search.png")
        return result


def _rungs(epochs: int) -> list[int]:
    """Epochs of each rung: the full length, a third, a ninth; rungs that would be equal are one."""
    return sorted({max(1, round(epochs / REDUCTION**k)) for k in range(3)})


def _shortened(recipe: Recipe, epochs: int, full: int) -> Recipe:
    """The recipe with another length; warm-up keeps its share of the run."""
    warm_up = recipe.train.schedule.warmup_epochs * epochs / full
    schedule = recipe.train.schedule.model_copy(update={"warmup_epochs": warm_up})
    train = recipe.train.model_copy(update={"epochs": epochs, "schedule": schedule, "early_stopping": None})
    return recipe.model_copy(update={"train": train})


def _as_asked(recipe: Recipe, asked: Recipe) -> Recipe:
    """The recipe without what was decided for the search on this machine: it may be trained on another one."""
    settings = ("precision", "threads", "early_stopping")
    train = recipe.train.model_copy(update={name: getattr(asked.train, name) for name in settings})
    return recipe.model_copy(update={"train": train})


def _climb(
    space: Any, optuna: Any, base: Recipe, image_size: int, rungs: Sequence[int], arms: int, workers: int,
    folder: Path, place: Executor, train: str, say: Callable[[str], None],
) -> list[Arm]:  # fmt: skip
    """Ask, train, tell: in rounds of up to `workers` runs, arms that were promoted before new ones."""
    names = list(PRESETS)
    live: list[tuple[Any, Parameters, Recipe, list[tuple[int, float]]]] = []
    done: list[Arm] = []
    asked = 0
    while live or asked < arms:
        while len(live) < workers and asked < arms:
            trial = space.ask()
            point = suggest(trial)
            live.append((trial, point, apply(base, point, image_size), []))
            asked += 1
        batch, waiting = live[:workers], live[workers:]
        tasks = [_shortened(recipe, rungs[len(reached)], base.train.epochs) for _, _, recipe, reached in batch]
        values = _accuracies(folder, tasks, place, train)
        live = []
        for (trial, point, recipe, reached), task, (value, error) in zip(batch, tasks, values, strict=True):
            name = names[trial.number] if trial.number < len(names) else f"searched {trial.number}"
            state = ""
            if value is None:
                space.tell(trial, state=optuna.trial.TrialState.FAIL)
                state = "failed"
            else:
                reached.append((task.train.epochs, value))
                trial.report(value, REDUCTION ** (len(reached) - 1))
                if len(reached) == len(rungs):
                    space.tell(trial, value)
                    state = "complete"
                # The pruner is asked about presets too: it then knows their values when it judges later arms.
                elif trial.should_prune() and trial.number >= len(names):
                    space.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    state = "pruned"
            if value is None:
                say(f"{name}: failed at {task.train.epochs} epochs: {error}")
            else:
                say(f"{name}: {100 * value:.1f} % after {task.train.epochs} epochs, {state or 'goes on'}")
            if state:
                done.append(Arm(trial.number, name, point, recipe, tuple(reached), state))
            else:
                live.append((trial, point, recipe, reached))
        live += waiting
    return sorted(done, key=lambda arm: arm.number)


def _accuracies(
    folder: Path, recipes: Sequence[Recipe], place: Executor, train: str
) -> list[tuple[float | None, str | None]]:
    """Best validation accuracy of each recipe's run, or why there is none; runs that are done are only read."""
    found: dict[str, tuple[float | None, str | None]] = {}
    units: dict[str, dict[str, Any]] = {}
    for recipe in recipes:
        key = recipe.fingerprint
        file = (folder / "arms" / f"{key}.json").resolve()
        before = read_outcome(file, key)
        if before is not None and before["status"] == "done" and "val.accuracy" in before["numbers"]:
            found[key] = before["numbers"]["val.accuracy"], None
            continue
        units[key] = {
            "train": train, "recipe": recipe.model_dump(mode="json"), "folder": str(file.with_suffix("")),
            "jobs": [{"fingerprint": key, "outcome": str(file), "after": {}}],
        }  # fmt: skip
    for outcome in place.outcomes(list(units.values())):
        done = outcome["status"] == "done"
        value = outcome["numbers"].get("val.accuracy") if done else None
        why = outcome["error"] or "it has no val.accuracy"
        found[outcome["fingerprint"]] = (value, None if value is not None else str(why))
        write_json(Path(units[outcome["fingerprint"]]["jobs"][0]["outcome"]), outcome)
    return [found.get(recipe.fingerprint, (None, "it did not come back")) for recipe in recipes]


def _check_images(folder: Path, base: Recipe) -> None:
    """Refuse to rank arms on other images beside those that are done."""
    done = [read_outcome(file, file.stem) for file in (folder / "arms").glob("*.json")]
    stores = {outcome["store"] for outcome in done if outcome is not None and outcome.get("store") is not None}
    if stores and stores != {open_store(base.data).fingerprint}:
        raise TrainingError(
            f"{folder}: the images of {base.data.source} have changed since the search was begun; choose another "
            "--out, or --overwrite"
        )


def _written(
    folder: Path, base: Recipe, arms: int, workers: int, threads: int, seed: int, rematch_seeds: int, measure: str,
    overwrite: bool,
) -> tuple[Recipe, int, float | None]:  # fmt: skip
    """The base recipe with precision and threads decided, the size of its images and the seconds of an epoch, as
    written down when the search was begun."""
    asked = {
        "arms": arms, "workers": workers, "seed": seed, "rematch_seeds": rematch_seeds,
        "recipe": base.model_dump(mode="json"),
    }  # fmt: skip
    file = folder / "search.yaml"
    if file.is_file() and not overwrite:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            before, base, image_size = content["asked"], Recipe.model_validate(content["base"]), content["image_size"]
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{file}: is damaged") from error
        for name, value in asked.items():
            if before.get(name) != value:
                what = first_difference(before.get(name), value, name)
                raise TrainingError(f"{folder}: holds another search ({what}); choose another --out, or --overwrite")
        check_numerics(folder, content)
        return base, int(image_size), content.get("seconds_per_epoch")
    check_owned(folder, "search.yaml", _WRITTEN, "search")
    facts = function(measure)(base)
    train = base.train.model_copy(
        update={
            "precision": facts["recipe"].train.precision,
            "threads": base.train.threads or threads,
            "early_stopping": None,
        }
    )
    base = base.model_copy(update={"train": train})
    image_size, seconds = min(facts["image"][1:]), float(facts["seconds_per_epoch"])
    content = {
        "numerics": NUMERICS, "asked": asked, "base": base.model_dump(mode="json"), "image_size": image_size,
        "seconds_per_epoch": round(seconds, 3),
    }  # fmt: skip
    note = "# Written before the first arm. Do not change: the search is gone on with only as it was begun.\n"
    remove_owned(folder, "search.yaml", _WRITTEN)  # not before the new one is measured
    write_atomically(file, (note + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)).encode())
    return base, image_size, seconds


def _time(seconds_per_epoch: float, rungs: Sequence[int], arms: int, rematch_seeds: int, workers: int) -> str:
    """How long the search will take, if each rung keeps its share of the arms that are no presets."""
    presets = len(PRESETS) * sum(rungs)
    others = (arms - len(PRESETS)) * sum(epochs / REDUCTION**k for k, epochs in enumerate(rungs))
    rematch = 2 * rematch_seeds * rungs[-1]
    parts = [rough_duration(seconds_per_epoch * epochs / workers) for epochs in (presets + others, presets, rematch)]
    return f"about {parts[0]} of training for the arms ({parts[1]} for the presets), then {parts[2]} for the rematch"


def _judge(
    folder: Path, arms: Sequence[Arm], best: Arm, preset: Arm, seeds: int, workers: int, threads: int | None,
    executor: Executor | None, report: Callable[[str], None] | None, train: str,
) -> SearchResult:  # fmt: skip
    if best.preset:
        verdict = f"The search did not win: no searched setting reached the preset {preset.name!r}. Use the preset."
        return SearchResult(folder, tuple(arms), best, preset, None, verdict, preset.recipe)
    # The searched setting was chosen because it did well on these validation images; others are fairer. The test images
    # must stay the same: another split_seed would let those of the winner's recipe judge here.
    data = preset.recipe.data
    own_validation = bool((np.asarray(open_store(data).splits) == VAL).any())
    before = data.split_seed if data.val_seed is None else data.val_seed
    base = preset.recipe.model_copy(
        update={"data": data if own_validation else data.model_copy(update={"val_seed": (before + 1) % 2**32})}
    )
    images = "the source's own validation images" if own_validation else "a fresh validation split"
    other = best.recipe
    spec = StudySpec.parse(
        {
            "name": "rematch",
            "about": f"The searched setting against the best preset, on fresh seeds and {images}.",
            "base": base.model_dump(mode="json"),
            "design": "compare",
            "variants": {
                "preset": {},
                "searched": {
                    "augment.train": other.model_dump(mode="json")["augment"]["train"],
                    "augment.mix": other.model_dump(mode="json")["augment"]["mix"],
                    "train.label_smoothing": other.train.label_smoothing,
                },
            },
            "seeds": list(range(FRESH_SEED, FRESH_SEED + seeds)),
            "metric": "val.accuracy",
            "also": ["gap"],
        },
        "rematch",
    )
    # Another pair (an arm that failed before may have changed it) has a folder of its own.
    pair = hashlib.sha256(json.dumps(spec.dump(), sort_keys=True).encode()).hexdigest()[:8]
    rematch = study(
        spec, folder / "rematch" / pair, workers=workers, threads=threads, executor=executor, report=report,
        train=train, measure=None,
    )  # fmt: skip
    effect = rematch.analyses["val.accuracy"].effects[0]
    failed = rematch.failed
    winner = preset.recipe
    if math.isnan(effect.low):
        error = next((str(text) for text in failed["error"] if text), "no run gave a val.accuracy")
        verdict = (
            f"The rematch could not be decided: {len(failed)} of its {len(rematch.runs)} runs failed ({error}). "
            "Use the preset, or start the search again to try them once more."
        )
    else:
        measured = f"{amount(effect.estimate, effect)} over the preset {preset.name!r}"
        interval = f"interval {amount(effect.low, effect, unit=False)} to {amount(effect.high, effect, unit=False)}"
        paired = f"{effect.pairs} of " if effect.pairs != seeds else ""
        seen = f"in the rematch on {paired}{seeds} fresh seeds, {interval}"
        if effect.shown and effect.estimate > 0:
            verdict, winner = f"The search won: {measured} {seen}.", best.recipe
        elif effect.shown:
            verdict = f"The search did not win: {measured} {seen}. Use the preset."
        else:
            verdict = (
                f"The search did not win: no difference to the preset {preset.name!r} could be shown {seen}. "
                "Use the preset."
            )
    if own_validation:
        verdict += " The source has its own validation images, so the same ones judged search and rematch."
    return SearchResult(folder, tuple(arms), best, preset, rematch, verdict, winner)
