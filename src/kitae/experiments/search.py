"""Policy search: find the augmentation, mixing and label smoothing that suit the user's data.

    arms        Optuna proposes settings (TPE, Bergstra et al. 2011). The published presets and the recipe's own
                augmentation are the first arms, so the search starts from what everybody would try.
    halving     every arm is trained for a few epochs. Only arms among the best third of their rung are trained again
                for three times as long, up to the recipe's own length (successive halving, Jamieson and Talwalkar 2016,
                as in Optuna's asynchronous pruner). Each rung is a complete run with its own schedule. Presets are
                never cut, so that the best of them is the best at the full length, not the first that was tried.
    judge       validation accuracy, or balanced accuracy or macro F1 if these choose the epoch; ties go to the lower
                validation loss, then the later arm. No arm ever opens the test set.
    rematch     the best of many arms looks better than it is, since it was chosen by its score. So the winner and
                the best preset are trained again on fresh seeds and a fresh validation split, as a study of two
                variants, and that study says whether the search has won. The test images stay the same. If the source
                has its own validation split there is no fresh one, and the verdict says so.

A search folder holds search.yaml (written first), arms/ (a folder per run), search.json, winner.yaml and rematch/,
which holds a study folder. A search that was killed can be resumed: proposals are a function of the seed and of the
results so far, and finished runs are not run again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np

from kitae.console import plural, reporter, rough_duration
from kitae.data.base import VAL
from kitae.data.store import open_store
from kitae.errors import RecipeError, TrainingError, require
from kitae.experiments.executors import Executor, LocalProcesses, threads_each
from kitae.experiments.folder import (
    ANOTHER_OUT,
    NUMERICS,
    check_images,
    check_numerics,
    first_difference,
    read_study,
    remove,
    run_jobs,
    write_settings,
)
from kitae.experiments.plan import Job, with_train
from kitae.experiments.result import StudyResult
from kitae.experiments.search_result import SEARCH, Arm, SearchResult, base_of, read_search
from kitae.experiments.space import PRESETS, apply, suggest
from kitae.experiments.study import MEASURE, TRAIN_WITHOUT_TEST, study
from kitae.experiments.study_spec import StudySpec
from kitae.experiments.worker import Outcome, read_outcome
from kitae.files import plain, write_atomically, write_json
from kitae.folders import REPORT, Owned, out_folder
from kitae.pipelines.choices import set_fields, understand
from kitae.pipelines.facts import framed
from kitae.recipe import Recipe, assigns
from kitae.reporting.effects import amount, interval
from kitae.reporting.study_charts import arms_chart

REDUCTION = 3
FRESH_SEED = 1000  # the first seed of the rematch; arms use the recipe's own seed
_PHOTO_SIZE = 64  # pixels of photographs, unless data.image_size is set
SEARCH_FOLDER = Owned(
    "search",
    (SEARCH, "arms", "rematch", "search.json", "winner.yaml", "figures", REPORT),
    TrainingError,
    first=SEARCH,
)


@dataclass(frozen=True)
class _Setting:
    """A search as written down when it was started.

    Attributes:
        base: the recipe, with precision, threads and selection decided.
        image_size: pixels of the shorter side.
        seconds: of an epoch.
    """

    folder: Path
    base: Recipe
    image_size: int
    seconds: float

    @property
    def metric(self) -> str:
        """What judges the arms."""
        chosen = self.base.train.selection.removeprefix("val_")
        return "val.accuracy" if chosen == "loss" else f"val.{chosen}"

    @property
    def rungs(self) -> list[int]:
        """Epochs of each rung: the full length, a third, a ninth; equal rungs are one."""
        return sorted({max(1, round(self.base.train.epochs / REDUCTION**k)) for k in range(3)})

    def time(self, arms: int, rematch_seeds: int, workers: int) -> str:
        """How long the search will take, if each rung keeps its share of the arms other than presets."""
        presets = len(PRESETS) * sum(self.rungs)
        others = (arms - len(PRESETS)) * sum(epochs / REDUCTION**k for k, epochs in enumerate(self.rungs))
        epochs = (presets + others, presets, 2 * rematch_seeds * self.rungs[-1])
        parts = [rough_duration(self.seconds * count / workers) for count in epochs]
        return (
            f"about {parts[0]} of training for the arms ({parts[1]} for the presets), then {parts[2]} for the rematch"
        )


def _recipe_of(given: Recipe | str | Path) -> Recipe:
    """The recipe, or for data the one that gives model and length."""
    if isinstance(given, Recipe):
        return given
    kind, what = understand(str(given))
    return Recipe.load(what) if kind == "recipe" else Recipe.load("fashion-mini").located(what, None)


def _asked(given: Recipe | str | Path, fields: Sequence[str], say: Callable[[str], None]) -> Recipe:
    """The recipe to search for, with these fields and an image size.

    Raises:
        RecipeError: its runs cannot be compared.
    """
    asked = _recipe_of(given).override(*fields)
    asked = asked.model_copy(update={"train": asked.train.straightened()})
    if not asked.train.epochs:
        raise RecipeError("train.epochs: 0 leaves nothing to compare in a search; set it to 1 or more")
    if asked.data.whole:
        raise RecipeError("data.folds: a search compares runs that have a validation split; set it to null")
    data = framed(asked.data, _PHOTO_SIZE, resize=assigns(fields, "data.resize"))
    if data != asked.data:
        say(f"data.image_size: searching with {data.image_size} pixels")
    return asked.model_copy(update={"data": data})


def search(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
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
    set: Sequence[str] | str | Mapping[str, Any] | None = None,
) -> SearchResult:
    """Search for the augmentation, mixing and label smoothing that suit your data.

        kt.search("photos/", set={"train.epochs": 9})

    Args:
        recipe: with the data, model and length to search for, as a Recipe, a name or a file; or data as `kt.train`
            takes them, for which the recipe fashion-mini gives model and length. `overrides` as in `Recipe.override`.
        out: the search folder; None is runs/search. If it holds the same search, that is resumed.
        arms: settings to try, the presets included.
        rematch_seeds: seeds of the rematch, FRESH_SEED and up without the recipe's own; two or more.
        workers: arms that are proposed and trained at a time, also with an `executor`: on a cluster, as many as it can
            run, or most of it waits.
        threads, executor, report, train, measure: as in `study`.
        seed: of the proposals.
        overwrite: replace the search in `out`, once the new one is measured.
        set: as in `study`.

    Raises:
        KitaeError: anything the user can correct, in one line.
    """
    require("optuna")
    say = reporter(report)
    if arms < len(PRESETS) + 1:
        raise RecipeError(
            f"arms: {arms} leaves nothing to search, since the first {len(PRESETS)} are presets; set it to "
            f"{len(PRESETS) + 1} or more"
        )
    if rematch_seeds < 2:
        raise RecipeError(f"rematch_seeds: {rematch_seeds} gives the verdict no interval; use two or more, such as 5")
    if not 0 <= seed < 2**32:
        raise RecipeError(f"seed: {seed} must be 0 to {2**32 - 1}")
    asked = _asked(recipe, (*overrides, *set_fields({"set": set})), say)
    folder = Path("runs/search") if out is None else out_folder(out)
    place = executor or LocalProcesses(workers)
    each = threads_each(threads, workers)
    with SEARCH_FOLDER.locked(folder, check=overwrite or not (folder / SEARCH).is_file()):
        setting = _written(
            folder, asked, each, measure, overwrite,
            {"arms": arms, "workers": workers, "seed": seed, "rematch_seeds": rematch_seeds},
        )  # fmt: skip
        kept = setting.base.train.threads
        if threads not in (None, kept):
            say(f"threads: {threads} is ignored; this search's runs use {kept}, from its first start or its recipe")
        before = [read_outcome(file, file.stem) for file in (folder / "arms").glob("*.json")]
        outcomes = {one["fingerprint"]: one for one in before if one is not None and one["status"] == "done"}
        check_images(folder, ((asked.data, outcome) for outcome in outcomes.values()))
        say(
            f"search: {arms} arms, rungs of {', '.join(str(r) for r in setting.rungs)} epochs, judged by "
            f"{setting.metric}; the {len(PRESETS)} presets are trained on all of them"
        )
        say(setting.time(arms, rematch_seeds, workers))

        def score(tasks: Sequence[Recipe]) -> list[Outcome]:
            """The outcome of each recipe's run; finished runs are not repeated."""
            jobs = [Job("", task.train.seed, task, {}, task.fingerprint, task.fingerprint) for task in tasks]
            todo = [job for job in jobs if setting.metric not in outcomes.get(job.name, {}).get("numbers", {})]
            for job, outcome in run_jobs(folder / "arms", todo, train, place):
                outcomes[job.name] = outcome
            return [outcomes[job.name] for job in jobs]

        with _quiet():
            tried = _climb(setting, arms, workers, seed, score, say)
        best, preset = _leaders(folder, tried)
        rematch, winner = None, preset
        verdict = (
            f"The search did not win: no searched setting was better than the preset {preset.name!r}. Use the preset."
        )
        if not best.preset:
            rematch = study(
                *_rematch(setting, best, preset, rematch_seeds), workers=workers, threads=kept,
                executor=executor, report=report, train=train, measure=None,
            )  # fmt: skip
            verdict, won = _verdict(rematch, setting.metric, preset, len(rematch.spec.seeds))
            winner = best if won else preset
        # Without what was resolved for this machine, since it may be trained on another one.
        own = {name: getattr(asked.train, name) for name in ("precision", "threads", "early_stopping", "select")}
        result = SearchResult(
            folder, tuple(tried), setting.metric, best, preset, rematch, verdict, with_train(winner.recipe, **own)
        )
        found = result.data()
        write_json(folder / "search.json", found)
        result.winner.save(folder / "winner.yaml")
        write_atomically(folder / "figures" / "search.svg", arms_chart(found["arms"], found["best"]).file().encode())
        return result


def _leaders(folder: Path, tried: Sequence[Arm]) -> tuple[Arm, Arm]:
    """The best arm, and the best preset; they may be the same.

    Raises:
        TrainingError: every preset failed.
    """
    whole = [arm for arm in tried if arm.state != "failed"]
    presets = [arm for arm in whole if arm.preset]
    if not presets:
        which = "preset failed, so there is nothing to compare with" if whole else "arm failed"
        raise TrainingError(f"{folder}: every {which}; see the logs in {folder / 'arms'}")
    best, preset = (max(among, key=lambda arm: arm.standing) for among in (whole, presets))
    # A point may round to the preset, and come later.
    return (preset if best.recipe.fingerprint == preset.recipe.fingerprint else best), preset


def _shortened(recipe: Recipe, epochs: int, full: int) -> Recipe:
    """The recipe with a different number of epochs; warm-up keeps its share of the run."""
    schedule = recipe.train.schedule
    warm_up = schedule.warmup_epochs * epochs / full
    return with_train(recipe, epochs=epochs, schedule=schedule.model_copy(update={"warmup_epochs": warm_up}))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's line for each trial, and restore the level afterwards: it is the whole process's."""
    logging = require("optuna").logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _climb(
    setting: _Setting, arms: int, workers: int, seed: int, score: Callable[[Sequence[Recipe]], list[Outcome]],
    say: Callable[[str], None],
) -> list[Arm]:  # fmt: skip
    """Ask, train, tell: in rounds of up to `workers` runs, promoted arms before new ones."""
    optuna = require("optuna")
    space = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=10, multivariate=True),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION),
    )
    for point in PRESETS.values():
        space.enqueue_trial(point)
    states = optuna.trial.TrialState
    names, rungs = list(PRESETS), setting.rungs
    live: list[tuple[Any, Arm]] = []
    finished: list[Arm] = []
    asked = 0
    while live or asked < arms:
        for _ in range(min(workers - len(live), arms - asked)):
            trial = space.ask()
            point, number = suggest(trial), trial.number
            name = names[number] if number < len(names) else f"searched {number}"
            recipe = apply(setting.base, point, setting.image_size)
            arm = Arm(number=number, name=name, preset=name in PRESETS, point=point, recipe=recipe)
            live.append((trial, arm))
            asked += 1
        tasks = [_shortened(arm.recipe, rungs[len(arm.rungs)], rungs[-1]) for _, arm in live]
        batch, live = live, []
        for (trial, arm), task, outcome in zip(batch, tasks, score(tasks), strict=True):
            epochs, numbers = task.train.epochs, outcome["numbers"]
            if setting.metric not in numbers:
                space.tell(trial, state=states.FAIL)
                why = outcome["error"] or f"it has no {setting.metric}"
                say(f"{arm.name}: failed at {plural(epochs, 'epoch')}: {why}")
                finished.append(arm.model_copy(update={"state": "failed"}))
                continue
            value = numbers[setting.metric]
            arm = arm.model_copy(update={"rungs": (*arm.rungs, (epochs, value, numbers.get("val.loss")))})
            trial.report(value, REDUCTION ** (len(arm.rungs) - 1))
            if len(arm.rungs) == len(rungs):
                space.tell(trial, value)
                arm = arm.model_copy(update={"state": "complete"})
            # The pruner is asked about presets too, so that it knows their values when it judges later arms.
            elif trial.should_prune() and not arm.preset:
                space.tell(trial, state=states.PRUNED)
                arm = arm.model_copy(update={"state": "pruned"})
            say(f"{arm.name}: {100 * value:.1f} % after {plural(epochs, 'epoch')}, {arm.state or 'continues'}")
            if arm.state:
                finished.append(arm)
            else:
                live.append((trial, arm))
    return sorted(finished, key=lambda arm: arm.number)


def _written(
    folder: Path, base: Recipe, threads: int, measure: str, overwrite: bool, settings: Mapping[str, Any]
) -> _Setting:
    """The settings that the search was started with; if it is new, the current ones, which are saved."""
    asked = {**plain(settings), "recipe": base.model_dump(mode="json")}
    content = None if overwrite else read_search(folder)
    if content is not None:
        if changed := first_difference(content["asked"], asked):
            raise TrainingError(f"{folder}: holds another search ({changed}); {ANOTHER_OUT}")
        check_numerics(folder, content)
        return _Setting(folder, base_of(folder, content), content["image_size"], content["seconds_per_epoch"])
    facts = resolve_name(measure)(base)
    decided = facts["recipe"].train
    base = with_train(
        base, precision=decided.precision, select=decided.select, threads=base.train.threads or threads,
        early_stopping=None,
    )  # fmt: skip
    setting = _Setting(folder, base, min(facts["image"][1:]), round(float(facts["seconds_per_epoch"]), 3))
    remove(SEARCH_FOLDER, folder)  # only now: a mistake in the new search must not cost the old one
    write_settings(folder / SEARCH, {
        "numerics": NUMERICS, "asked": asked, "base": base.model_dump(mode="json"), "image_size": setting.image_size,
        "seconds_per_epoch": setting.seconds,
    })  # fmt: skip
    return setting


def _has_own_validation(recipe: Recipe) -> bool:
    return bool((np.asarray(open_store(recipe.data).splits) == VAL).any())


def _rematch(setting: _Setting, best: Arm, preset: Arm, seeds: int) -> tuple[StudySpec, Path]:
    """The study of the best arm against the best preset, and its folder.

    The best arm was chosen because it did well on these validation images, so others are fairer. The test images must
    stay the same: with another split_seed, images of the recipe's own test set would judge here.
    """
    data, other = preset.recipe.data, best.recipe.model_dump(mode="json")
    own = _has_own_validation(preset.recipe)
    if not own:
        before = data.split_seed if data.val_seed is None else data.val_seed
        data = data.model_copy(update={"val_seed": (before + 1) % 2**32})
    fresh = range(FRESH_SEED, FRESH_SEED + seeds + 1)
    images = "the source's own validation images" if own else "a fresh validation split"
    spec = StudySpec.parse(
        {
            "name": "rematch",
            "about": f"The searched setting against the best preset, on fresh seeds and {images}.",
            "base": preset.recipe.model_copy(update={"data": data}).model_dump(mode="json"),
            "design": "compare",
            "variants": {
                "preset": {},
                "searched": {
                    "augment.train": other["augment"]["train"],
                    "augment.mix": other["augment"]["mix"],
                    "train.label_smoothing": other["train"]["label_smoothing"],
                },
            },
            "seeds": [seed for seed in fresh if seed != preset.recipe.train.seed][:seeds],
            "metric": setting.metric,
            "also": ["gap"],
        },
        "rematch",
    )
    # A different pair (an arm that failed before may have changed it) has a different folder.
    pair = hashlib.sha256(json.dumps(spec.dump(), sort_keys=True).encode()).hexdigest()[:8]
    folder = setting.folder / "rematch" / pair
    if (begun := read_study(folder)) is not None:  # its page says how to add seeds
        spec = spec.model_copy(update={"seeds": tuple(begun["study"]["seeds"])})
    return spec, folder


def _verdict(rematch: StudyResult, metric: str, preset: Arm, seeds: int) -> tuple[str, bool]:
    """The verdict of the rematch in words, and whether the searched setting won."""
    effect, failed, won = rematch.analyses[metric].effects[0], rematch.failed, False
    if math.isnan(effect.low) and not len(failed) and not math.isnan(effect.estimate):
        same = f"the difference was the same ({amount(effect.estimate, effect)})" if effect.estimate else ""
        verdict = (
            f"The rematch could not be decided: {same or 'both scored alike'} on all {seeds} seeds, which gives no "
            "interval. Use the preset, or search with more rematch seeds."
        )
    elif math.isnan(effect.low):
        error = next((str(text) for text in failed["error"] if text), f"no run gave a {metric}")
        verdict = (
            f"The rematch could not be decided: {len(failed)} of its {len(rematch.runs)} runs failed ({error}). "
            "Use the preset, or start the search again to retry them."
        )
    else:
        won = effect.shown and effect.estimate > 0
        shown = f"{amount(effect.estimate, effect)} over the preset {preset.name!r}"
        size = shown if effect.shown else f"no difference from the preset {preset.name!r} could be shown"
        paired = f"{effect.pairs} of " if effect.pairs != seeds else ""
        where = f"in the rematch on {paired}{seeds} fresh seeds, interval {interval(effect)}"
        verdict = f"The search {'won' if won else 'did not win'}: {size} {where}.{'' if won else ' Use the preset.'}"
    if _has_own_validation(preset.recipe):
        verdict += " The source has its own validation images, so the same images judged search and rematch."
    if rematch.added:
        verdict = " ".join([verdict, *rematch.notes])
    return verdict, won
