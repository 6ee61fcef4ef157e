"""Training that never looks at test: for searches, and for studies that ask for no number of test."""

from __future__ import annotations

from pathlib import Path

from kitae.recipe import Recipe
from kitae.run import Run


def train(recipe: Recipe, out: Path, *, resume: bool) -> Run:
    """Train, select and calibrate as `kitae.pipeline.train` does, then evaluate on validation alone.

    The run's evaluation.json has `val` and no `test`, and its count of test openings is 0. One process;
    `train.precision` must be resolved.
    """
    import torch

    from kitae.pipeline import Setup, recorder, validated
    from kitae.training.allocator import keep_freed_memory
    from kitae.training.distributed import join

    keep_freed_memory()
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    run = Run.create(out, recipe, resume=resume)
    try:
        if run.finished:
            return run
        setup = Setup.of(run)
        world = join(recipe.train.device)
        model = setup.initial_model(world)
        run.write_environment({"store": setup.store.fingerprint, "processes": 1, "device": str(world.device)})
        run.write_facts(setup.facts(model))
        setup.fit(
            model,
            recipe.train,
            world,
            write_rows=recorder(run),
            rows=run.metrics(),
            checkpoint=run.checkpoint,
            best=run.best,
            resume=resume,
            fingerprint=recipe.fingerprint,
        )
        run.write_evaluation(validated(run, setup, model))
        return run
    finally:
        run.close()
