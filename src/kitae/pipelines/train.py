"""train(recipe): the stages wired in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from kitae import console
from kitae.data.sources import SOURCES
from kitae.data.store import open_store
from kitae.errors import (
    KitaeError,
    RecipeError,
    TrainingDivergedError,
    TrainingError,
    TrainingInterruptedError,
    one_line,
    require,
)
from kitae.evaluation.calibration import fit_temperature
from kitae.evaluation.evaluate import evaluate, predictions_table
from kitae.files import user_path
from kitae.folders import default_folder, kind_of, out_folder
from kitae.models.structure import count_parameters
from kitae.modes import threads_restored, torch_defaults
from kitae.pipelines.choices import Choices, apply, set_fields, to_resume, understand, unknown_option
from kitae.pipelines.folds import keep_logits, out_of_fold, tunes
from kitae.pipelines.notes import machine_notes, notes_of
from kitae.pipelines.pace import Clock, Recutter, as_long_as, fitted, remember_length
from kitae.pipelines.plan import name_of, plan
from kitae.pipelines.probe import Features, probe
from kitae.pipelines.setup import Progress, Setup, begin, resolved
from kitae.recipe import Recipe, assignments
from kitae.run import Run
from kitae.training import distributed
from kitae.training.batches import epoch_shape
from kitae.training.distributed import World
from kitae.training.fit import Record, Tuning, Unwatched, Watcher
from kitae.training.optim import build_optimizer
from kitae.training.spec import ProbeSpec, TrainSpec


@threads_restored()
@torch_defaults()
def train(
    data: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    recipe: Recipe | str | Path | None = None,
    minutes: float | Clock | None = None,
    resume: bool = False,
    overwrite: bool = False,
    watcher: Watcher | None = None,
    progress: Progress | None = None,
    test: bool = True,
    show: bool | None = None,
    **choices: Unpack[Choices],
) -> Run:
    """Train, select and evaluate a classifier; everything is written to a run folder.

        kt.train(kt.Recipe.load("fashion-mini").override("train.epochs=5"))
        kt.train("photos/", minutes=5)
        kt.train("photos/", recipe="cifar10-quick", image_size=64)

    Args:
        data: a folder with one folder per class, a Parquet file, a CSV file of paths and labels, or the name of a
            source, for which a recipe is planned (see `pipelines.plan`). Or a recipe, its name or file.
        recipe: train with this recipe on the data, instead of planning one.
        minutes: time limit of the whole call, including the evaluation, or a running clock; the number of epochs is
            chosen to fit, and saved in the run's recipe. None takes the recipe's epochs, or for data without `epochs`
            up to `pipelines.plan.DEFAULT_MINUTES`.
        out: the run folder; None is runs/NAME, with a number added if that exists, unless `resume` or `overwrite` is
            given.
        resume: resume the unfinished run in `out`; a finished one is returned as it is. For data, no new recipe is
            planned then: the run keeps the one that it began with.
        overwrite: replace the run in `out`; it comes back if the new one cannot start, or diverges.
        watcher: shows progress of training. `progress(done, total)` shows the decoding of images.
        show: print progress where no `watcher` is given, and write the run's page at the end; None does so on a
            terminal and in a notebook.
        test: False does not evaluate on test: evaluation.json has `val` but no `test`, and no opening is counted.
        choices: fields of `pipelines.choices.Choices`, which override the plan or the recipe: `image_size=160`, or
            `folds=5`, which cross-validates and then trains on everything (see `pipelines.folds`).

    Raises:
        KitaeError: anything the user can correct, in one line.
    """
    for unknown in choices.keys() - Choices.__annotations__.keys():
        raise unknown_option(unknown)
    choices["set"] = set_fields(choices)  # once, since it may be a generator
    if watcher is None and (console.interactive() if show is None else show) and distributed.is_main():
        with console.counting("decoding images") as counted, console.TrainingView() as view:
            run = train(
                data, out, recipe=recipe, minutes=minutes, resume=resume, overwrite=overwrite, watcher=view,
                progress=progress or counted, test=test, **choices,
            )  # fmt: skip
        from kitae.reporting.page import write_and_say

        write_and_say(run.path)
        return run
    if out is not None and distributed.is_main():
        # Checked before the plan, which may take minutes. Only by the main process, which may have made the folder by
        # the time another process looks.
        Run.check_free(out_folder(out), resume=resume, overwrite=overwrite)
    if minutes is not None and not isinstance(minutes, Clock):
        minutes = Clock.of(minutes, time.monotonic())
    if resume and recipe is None and isinstance(data, str | Path):
        data, choices = _begun(str(data), out, choices)
    wanted, minutes, lines = asked(data, minutes, choices, recipe)
    world = begin(wanted.train)
    if wanted.train.tensorboard:
        require("tensorboard")  # before what takes long
    if watcher is None or not world.is_main:
        watcher = Unwatched()
    for line in lines:
        watcher.note(line)
    folder = default_folder(wanted.name, new=not (resume or overwrite)) if out is None else user_path(out)
    # Each process has made a plan from its own measurements; all use that of the main process.
    agreed: Recipe
    folder, agreed, most = distributed.from_main((folder, wanted, None if minutes is None else minutes.most), world)
    if minutes is not None:
        minutes = replace(minutes, most=most)
        if resume and kind_of(folder) == "run":
            agreed = as_long_as(Run.open(folder), agreed, minutes)
    if agreed.data.whole and not test:
        raise RecipeError(
            "data.folds: evaluates every fold on its test images, but test=False was given; set data.folds to null"
        )
    return _train(
        agreed, folder, world, minutes=minutes, resume=resume, overwrite=overwrite, watcher=watcher, progress=progress,
        test=test,
    )  # fmt: skip


def _train(
    recipe: Recipe,
    folder: Path,
    world: World,
    *,
    minutes: Clock | None,
    resume: bool,
    watcher: Watcher,
    overwrite: bool = False,
    progress: Progress | None = None,
    test: bool = True,
    shared: Features | None = None,
) -> Run:
    """`train` of one run into its folder. `shared`: of a fold, the features of all folds."""
    run = _opened(recipe, folder, world, resume=resume, overwrite=overwrite)
    try:
        if run.finished:
            if world.is_main:
                _save_place(run, progress)
            if run.recipe.data.fold is None:
                watcher.note(f"{run.path} was finished before, so nothing was trained")
            return run
        setup = Setup.of(run, progress).agreed(world)
        # A checkpoint contains all weights, so the pretrained ones are not needed to resume.
        begun = resume and run.checkpoint.is_file()
        model = setup.initial_model(world, pretrained=not begun)
        _describe(run, setup, model, world, minutes, watcher, resume=resume, begun=begun)
        folds: list[Run] = []
        tuning = Tuning(one_of_many=run.recipe.data.fold is not None)
        if run.recipe.data.whole:
            tuning = Tuning(keep="last")
            folds, minutes = _folds(run, setup, model, world, minutes, watcher)
            minutes = None if minutes is None else replace(minutes.share(1), starting=minutes.starting)
        probes = isinstance(run.recipe.train.probe, ProbeSpec)
        if world.is_main and minutes is not None and not begun:
            remember_length(run)  # before the minutes change anything in the recipe
        if probes:
            made = {} if begun else probe(run, setup, model, world, watcher, minutes, shared)
            tuning = replace(tuning, keep="last" if folds else "best or start", start_row=made)
        # The folds decided this on validation images, which this model does not have; the recipe keeps its epochs.
        probe_alone = probes and (not run.recipe.train.epochs or (bool(folds) and not tunes(folds)))
        if probe_alone and run.recipe.train.epochs:
            watcher.note("fine-tuning was no better than the probe in most folds, so this model is not fine-tuned")
        if minutes is not None and begun:
            minutes = minutes.resumed(run.metrics())
        if minutes is not None and not probe_alone:  # otherwise there is nothing to fit, and measuring takes seconds
            timed, reserve = fitted(run.recipe, setup, model, minutes, world, begun)
            if world.is_main and not begun:
                _note_shortened(run.recipe.train, timed.train, minutes, watcher)
                run.resolve(timed)
            run.recipe = distributed.from_main(run.recipe, world)
            tuning = replace(tuning, recut=Recutter(run, minutes, reserve, watcher))
        spec, fingerprint = run.recipe.train, run.recipe.training_fingerprint
        record = Record(
            run.checkpoint, run.best, _recorder(run), run.metrics(), resume=resume, fingerprint=fingerprint
        )  # fmt: skip
        setup.fit(
            model, spec.lasting(0) if probe_alone else spec, world, tuning=tuning, watcher=watcher, record=record
        )  # fmt: skip
        if world.is_main and folds:
            _finish_whole(run, setup, model, folds)
        elif world.is_main:
            results = _validated(run, setup, model)
            run.write_evaluation(_tested(run, setup, model, results) if test else results)
        distributed.barrier(world)
        return run
    except BaseException as error:
        told = _told(error, run, world)
        if told is error:
            raise
        raise told from error
    finally:
        run.close()


def _opened(recipe: Recipe, folder: Path, world: World, *, resume: bool, overwrite: bool) -> Run:
    """The run: the main process creates and locks it, or all processes raise its error; the others open it then."""
    created: Run | None = None
    refused: KitaeError | OSError | None = None
    try:
        created = Run.create(folder, recipe, resume=resume, overwrite=overwrite) if world.is_main else None
    except (KitaeError, OSError) as error:
        refused = error
    refused = distributed.from_main(refused, world)
    if refused is not None:
        raise refused
    run = created or Run.open(folder)
    run.recipe = distributed.from_main(run.recipe, world)  # the images may have been moved since it was saved
    return run


def _save_place(run: Run, progress: Progress | None) -> None:
    """Save where the images of a finished run are now; only that can differ from its recipe on the disk."""
    if run.recipe == Recipe.load(run.recipe_file):
        return
    run.splits(open_store(run.recipe.data, progress))  # raises an error where they are not the same
    run.resolve(run.recipe)
    for file in run.fold(1).parent.glob("*/recipe.yaml"):
        Recipe.load(file).located(run.recipe.data.source, run.recipe.data.cache).save(file)


def _describe(
    run: Run, setup: Setup, model: nn.Module, world: World, minutes: Clock | None, watcher: Watcher,
    *, resume: bool, begun: bool,
) -> None:  # fmt: skip
    """Save the environment, the resolved recipe and the facts, and show the first lines.

    Raises:
        KitaeError: the loop would refuse the recipe. It is checked here, before a probe, whose features take minutes.
    """
    epoch_shape(len(setup.images), run.recipe.train, world.size)
    build_optimizer(model, run.recipe.train.optimizer)
    for line in notes_of(setup, model):
        watcher.note(line)
    if world.is_main:
        before = run.environment() if run.begun else {}
        for line in machine_notes(before, world.size) if resume else ():
            watcher.note(line)
        weights = None if begun else setup.weights
        limit = before.get("minutes") if minutes is None else minutes.seconds / 60
        run.write_environment(
            {
                "store": setup.store.fingerprint,
                "processes": world.size,
                "device": str(world.device),
                "weights": weights.source if weights else before.get("weights"),
                "minutes": limit if run.recipe.data.fold is None else None,  # folds are resumed with their run
            }
        )
        run.resolve(resolved(run.recipe, setup, world, model, weights))
    run.recipe = distributed.from_main(run.recipe, world)
    if run.recipe.data.fold is None:
        watcher.note(_header(run, setup, model, world))
    if world.is_main:  # after the first line, since counting operations imports much of torch
        run.write_facts(setup.facts(model))


def _told(error: BaseException, run: Run, world: World) -> BaseException:
    """What to raise where training ended with `error`: itself, or one that says how to resume. Discards failed runs."""
    # Before a run that this one was to replace comes back, whose files these would be.
    kept = run.checkpoint.is_file() or run.features.is_dir() or run.fold(1).is_dir()
    if world.is_main:
        run.discard_failed(diverged=isinstance(error, TrainingDivergedError))
    if isinstance(error, TrainingInterruptedError) or (isinstance(error, KeyboardInterrupt) and kept):
        where = error.where if isinstance(error, TrainingInterruptedError) else "stopped by SIGINT"
        cure = f"resume with: {run.resume_command}" if kept else "nothing was saved; start again"
        return TrainingInterruptedError(where, cure)
    cause = error.__cause__  # of a fold's error, which names the fold's folder
    lost = distributed.lost_process(error) or (cause is not None and distributed.lost_process(cause))
    if world.size > 1 and lost:
        cure = run.resume_command if kept else "start again"
        return TrainingError(
            f"process {world.rank} of {world.size} lost another process, which died or did not answer in time "
            f"(train.process_timeout; {one_line(error)}); see that process's error, then, under torchrun: {cure}"
        )
    return error


def asked(
    data: Recipe | str | Path,
    minutes: Clock | None,
    choices: Choices,
    recipe: Recipe | str | Path | None = None,
    *,
    dry: bool = False,
) -> tuple[Recipe, Clock | None, tuple[str, ...]]:
    """What to train: the recipe, the clock, and the reasons of the plan, one line each.

    Args:
        data, recipe: as in `train`.
        dry: as in `plan`.
    """
    if not isinstance(data, Recipe | str | Path):
        raise RecipeError(f"train takes a recipe, a name or a path, not {type(data).__name__}")
    kind, what = ("recipe", data.name) if isinstance(data, Recipe) else understand(str(data))
    if recipe is not None:
        if kind == "recipe" and str(data) not in SOURCES:
            raise RecipeError(f"{what}: --recipe needs data, not a recipe")
        source = what if kind == "data" else f"{data}:"  # a shipped recipe's name, which a source has too
        return apply(_loaded(recipe).override(*assignments({"data.source": source})), choices), minutes, ()
    if kind == "data":
        return plan(what, minutes, choices, dry=dry)
    return apply(_loaded(data if isinstance(data, Recipe) else what), choices), minutes, ()


def _begun(data: str, out: str | Path | None, choices: Choices) -> tuple[str, Choices]:
    """What to resume with: see `to_resume`. A new plan depends on the machine's speed now, so it may be another one."""
    if out is None:
        kind, what = understand(data)
        if kind == "recipe":
            return data, choices
        out = default_folder(name_of(what), new=False)
    return to_resume(data, user_path(out), choices)


def _loaded(recipe: Recipe | str | Path) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)


def _header(run: Run, setup: Setup, model: nn.Module, world: World) -> str:
    """One line with the model, the data, the device and the run folder."""
    recipe, splits = run.recipe, setup.splits
    counts = (("train", len(setup.images)), ("val", len(splits.val)), ("test", splits.test_count))
    images = ", ".join(f"{count:,} {split}" for split, count in counts if count)
    threads = f", {console.plural(torch.get_num_threads(), 'thread')}" if world.device.type == "cpu" else ""
    processes = f", {world.size} processes" if world.size > 1 else ""
    return (
        f"{recipe.model.name} ({count_parameters(model):,} parameters) on {console.data_name(recipe.data.source)}: "
        f"{len(setup.store.classes)} classes, {images} images; {world.device}, {recipe.train.precision}{threads}"
        f"{processes}; everything goes to {run.path}"
    )


def train_without_test(recipe: Recipe, out: Path, *, resume: bool) -> Run:
    """`train` without opening test; a separate function, so that a study can refer to it by name."""
    return train(recipe, out, resume=resume, test=False)


def _folds(
    run: Run, setup: Setup, model: nn.Module, world: World, minutes: Clock | None, watcher: Watcher
) -> tuple[list[Run], Clock | None]:
    """The finished runs of all folds, in order; existing runs are resumed if unfinished, and reused if finished.

    Their probes share the features of `model`.

    Returns:
        The runs, and the clock less the time of the epochs that they had before.
    """
    shared = Features(run, setup, watcher, minutes, shared=True) if Features.shareable(run, setup) else None
    if shared is not None and not run.checkpoint.is_file():
        shared.prepare(model, world)
    data, folds = run.recipe.data, []
    count = data.folds or 0
    for number in range(1, count + 1):
        folder, recipe = run.fold(number), run.recipe.override(f"data.fold={number}")
        before: list[dict[str, Any]] = []
        if kind_of(folder) == "run":  # the minutes may have cut it, and the images may have been moved since
            begun = Run.open(folder)
            recipe, before = begun.recipe.located(data.source, data.cache), begun.metrics()
        watcher.note(f"fold {number} of {count}")
        share = None if minutes is None else minutes.share(count + 2 - number)
        folds.append(_train(recipe, folder, world, minutes=share, resume=True, watcher=watcher, shared=shared))
        minutes = None if minutes is None else minutes.resumed(before)
    watcher.note(f"the model on everything: {len(setup.splits.train):,} images")
    return folds, minutes


def _finish_whole(run: Run, setup: Setup, model: nn.Module, folds: list[Run]) -> None:
    """Save the folds' results as those of the model on everything, and evaluate on the source's own test, if any."""
    measured, table = out_of_fold(setup, folds)
    run.write_facts({**setup.facts(model), "temperature": measured["temperature"]})
    results = {**measured, **_settings(run, setup)}
    if setup.splits.test_count:
        results = _tested(run, setup, model, results)
    else:
        run.write_predictions(table)
    run.write_evaluation(results)


def _tested(run: Run, setup: Setup, model: nn.Module, results: dict[str, Any]) -> dict[str, Any]:
    """Open test: the results with `test` before them."""
    store, splits, classes = setup.store, setup.splits, setup.store.classes
    temperature = results["temperature"]
    test = splits.open_test(lambda: run.count_test_opening("end of training"))
    test_logits, test_labels = run.logits(setup.image_set(test), model)
    if run.recipe.data.fold is not None:
        plain = run.recipe.evaluate.tta == "none"
        keep_logits(run, test_logits, None if plain else run.logits(setup.image_set(test), model, tta="none")[0])
    names, copies, groups = [store.names[row] for row in test], splits.copies(store.twins, test), store.groups_of(test)
    run.write_predictions(predictions_table(names, test_labels, test_logits, classes, temperature, groups))
    return {"test": evaluate(test_logits, test_labels, classes, temperature, copies, groups), **results}


def _validated(run: Run, setup: Setup, model: nn.Module) -> dict[str, Any]:
    """Evaluate the best weights on validation, after calibrating on it, and save what predictions need.

    Returns:
        The fields of `Run.evaluation`, without those of test.
    """
    images, labels = setup.image_set(setup.splits.val), setup.store.labels[setup.splits.val]
    logits = setup.judgement(model)  # the best epoch's, which were computed as these are
    if logits is None:
        logits, _ = run.logits(images, model, tta="none")
    # Fitted on single views: with test-time augmentation, each view is divided by it before averaging.
    temperature = fit_temperature(logits, labels) if run.recipe.evaluate.temperature else 1.0
    run.write_facts({**setup.facts(model), "temperature": temperature})
    if run.recipe.evaluate.tta != "none":
        logits, _ = run.logits(images, model)
    groups = setup.store.groups_of(setup.splits.val)
    return {
        "val": evaluate(logits, labels, setup.store.classes, temperature, groups=groups),
        "temperature": temperature,
        **_settings(run, setup),
    }


def _settings(run: Run, setup: Setup) -> dict[str, Any]:
    """The settings that evaluation.json records with the numbers."""
    return {
        "precision": "fp32",
        "train_precision": run.recipe.train.precision,
        "tta": run.recipe.evaluate.tta,
        "best_epoch": run.best_epoch(),
        "duplicates": setup.splits.duplicates(setup.store.twins),
        **({} if setup.store.groups is None else {"groups": setup.splits.group_counts(setup.store.groups)}),
    }


def _note_shortened(asked: TrainSpec, made: TrainSpec, clock: Clock, watcher: Watcher) -> None:
    """Say it if epochs that were asked for do not fit into the minutes; those of a plan were never promised."""
    planned = asked.straightened()
    if clock.most is not None or (made.epochs, made.epoch_steps) == (planned.epochs, planned.epoch_steps):
        return
    instead = "only the linear head is trained"
    if made.epochs:
        steps = console.plural(made.epoch_steps or 0, "step")
        instead = f"{console.plural(made.epochs, 'epoch')} of {steps} are made instead"
    watcher.note(
        f"{console.plural(planned.epochs, 'epoch')} do not fit into {console.rough_duration(clock.seconds)}: {instead}"
    )


def _recorder(run: Run) -> Callable[[Sequence[Mapping[str, Any]]], None]:
    """A function that writes the metrics after each epoch, also for TensorBoard if the recipe asks for it."""
    if not run.recipe.train.tensorboard:
        return run.write_metrics
    from torch.utils.tensorboard import SummaryWriter

    def record(rows: Sequence[Mapping[str, Any]]) -> None:
        run.write_metrics(rows)
        last = rows[-1]
        # A resumed epoch replaces the lines written before the run was stopped.
        with SummaryWriter(str(run.tensorboard), purge_step=last["epoch"]) as board:
            for name, value in last.items():
                if name != "epoch" and value is not None:
                    board.add_scalar(name, value, last["epoch"])

    return record
