"""estimate(recipe): what training would do and how long it would take, from a few discarded steps."""

from __future__ import annotations

import math
import os
import statistics
import time
from typing import Any

from kitae.pipelines.notes import notes_of
from kitae.pipelines.setup import Progress, Setup, begin, resolved
from kitae.recipe import Recipe
from kitae.training import precision
from kitae.training.batches import epoch_shape
from kitae.training.guards import memory_named
from kitae.training.measure import step_times
from kitae.training.optim import build_optimizer
from kitae.training.spec import ProbeSpec


def estimate(recipe: Recipe, progress: Progress | None = None, steps: int = 6) -> dict[str, Any]:
    """What `train` would do, measured on a few discarded steps; writes only the decoded store.

    Returns:
        `recipe` (precision resolved), `parameters`, `macs`, `train`, `val`, `test` (images), `classes`,
        `steps_per_epoch`, `seconds_per_epoch`, `seconds` (estimates), `notes` (what the recipe says without effect),
        `load` (how many programs were running on this
        machine before: threads that wait for a core make an estimate many times too long).
    """
    runs = 1 if recipe.data.folds is None or recipe.data.fold is not None else recipe.data.folds + 1
    if runs > 1:
        recipe = recipe.override("data.fold=1")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    world = begin(recipe.train)
    setup = Setup.without_run(recipe, progress)
    store = setup.store
    model = setup.initial_model(world, pretrained=False)
    facts, notes = setup.facts(model), notes_of(setup, model)
    shape = epoch_shape(len(setup.images), recipe.train, world.size)
    build_optimizer(model, recipe.train.optimizer)  # says what is wrong with its name
    recipe = resolved(recipe, setup, world, model)
    images, spec = setup.images, recipe.train
    batch = setup.first_batch(shape.batch_size, world)
    inputs, targets = batch()
    begun = time.perf_counter()
    batch()
    seconds = time.perf_counter() - begun
    chosen: precision.Precision = "fp32" if spec.precision == "auto" else spec.precision
    with memory_named(spec):
        taken = step_times(model, spec, inputs, targets, world, precisions=(chosen,), steps=steps)
    step = statistics.median(taken[chosen]) if chosen in taken else math.nan
    epoch = (seconds + step) * shape.steps
    # A step is about three forward passes.
    passes = 0 if not isinstance(spec.probe, ProbeSpec) else (spec.probe.views + 1) * len(images) / shape.batch_size
    if runs > 1:
        recipe = recipe.override("data.fold=null")
        notes.append(f"data.folds: {runs - 1} runs with these images, and one on everything")
    return {
        "recipe": recipe,
        "parameters": facts["parameters"],
        "macs": facts["macs"],
        "train": len(images),
        "val": len(setup.splits.val),
        "test": setup.splits.test_count,
        "classes": len(store.classes),
        "image": store.rules.shape,
        "steps_per_epoch": shape.steps,
        "seconds_per_epoch": epoch,
        "seconds": runs * (epoch * spec.last_epoch + passes * step / 3),
        "load": load,
        "notes": notes,
    }
