"""study(spec): write the plan to a file, run the missing jobs, and analyse the results.

The files of a study folder, and how a study is resumed, are described in `kitae.experiments.folder`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from kitae import console
from kitae.errors import RecipeError, TrainingError
from kitae.experiments.executors import Executor, LocalProcesses, threads_each
from kitae.experiments.folder import (
    ANOTHER_OUT,
    STUDY,
    STUDY_FOLDER,
    add_seeds,
    check_images,
    check_numerics,
    done,
    plan_again,
    read_outcomes,
    read_study,
    remove,
    run_jobs,
    study_difference,
    write_study,
)
from kitae.experiments.plan import Plan, make_plan
from kitae.experiments.result import StudyResult
from kitae.experiments.study_spec import StudySpec, with_overrides
from kitae.experiments.worker import Outcome
from kitae.folders import out_folder
from kitae.pipelines.choices import set_fields
from kitae.reporting.effects import metric
from kitae.reporting.values import significant

TRAIN = "kitae.pipelines.train:train"
TRAIN_WITHOUT_TEST = "kitae.pipelines.train:train_without_test"
MEASURE = "kitae.pipelines.bench:estimate"


def plan_study(
    spec: StudySpec | str | Path, *overrides: str, tiny: bool = False, workers: int = 1, threads: int | None = None,
    measure: str | None = MEASURE,
) -> Plan:  # fmt: skip
    """What `study` would do; writes nothing but the decoded images.

    Args:
        spec: a study, a file, or the name of a shipped one; `overrides` and `tiny` as in `StudySpec.load`.
        workers, threads: as in `study`.
        measure: the function that times a few steps, as module:function; None skips the estimate of time.
    """
    asked, each = _spec(spec, overrides, tiny), threads_each(threads, workers)
    return make_plan(asked, workers=workers, threads=each, measure=None if measure is None else resolve_name(measure))


def study(
    spec: StudySpec | str | Path,
    out: str | Path | None = None,
    *overrides: str,
    tiny: bool = False,
    workers: int = 1,
    threads: int | None = None,
    executor: Executor | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
    train: str | None = None,
    measure: str | None = MEASURE,
    set: Sequence[str] | str | Mapping[str, Any] | None = None,
) -> StudyResult:
    """Run a study, or resume it, and analyse it.

    Args:
        spec: a study, a file, or the name of a shipped one.
        out: the study folder; None is runs/study-NAME. If it holds the same study, that is resumed; further seeds are
            added to it, which study.yaml and the result then say.
        overrides: `field=value` for all variants, `study.field=value` for the study itself.
        tiny: run the tiny version, to check that the file works. Its numbers mean nothing.
        workers: runs at a time on this machine.
        threads: of each run; None divides the cores. A study keeps the number of threads it was started with.
        executor: where runs happen, instead of `workers` local processes: `Inline()` of `kitae.experiments.executors`
            is this process, `RayCluster(address)` a cluster.
        overwrite: replace the study in `out`, once the new one is planned.
        report: receives the plan, and a line for each run as it ends; None prints them on a terminal and in a notebook,
            and writes the page.
        train: the function that trains, as module:function. None is `TRAIN`, or if the study asks for no number of
            test, `TRAIN_WITHOUT_TEST`.
        measure: as in `plan_study`; needed once if a recipe says `precision: auto`.
        set: further overrides: one, several, or a mapping of fields to values.

    Raises:
        KitaeError: anything the user can correct, in one line. A failed run raises nothing; the result lists it.
    """
    asked = _spec(spec, (*overrides, *set_fields({"set": set})), tiny)
    folder = Path("runs") / f"study-{asked.name}" if out is None else out_folder(out)
    say = console.reporter(report)
    each = threads_each(threads, workers)
    with STUDY_FOLDER.locked(folder, check=overwrite or not (folder / STUDY).is_file()):
        plan, content, added = _written_plan(folder, asked, workers, each, measure, overwrite)
        outcomes = read_outcomes(folder, plan)
        todo = [job for job in plan.jobs if not done(outcomes, job)]
        finished = len(plan.jobs) - len(todo)
        if todo:
            check_numerics(folder, content)
            check_images(
                folder,
                ((job.recipe.data, outcomes[job.fingerprint]) for job in plan.jobs if done(outcomes, job)),
            )
        if added:  # only now: seeds that cannot be run could not be removed again
            content = add_seeds(folder, content, plan, added, finished)
        say(plan.text())
        if threads is not None and plan.run_threads != (threads,):
            kept = " and ".join(str(number) for number in plan.run_threads)
            say(f"threads: {threads} is ignored; this study's runs use {kept}, from its first start or its recipes")
        if 0 < len(todo) < len(plan.jobs):
            say(f"resuming: {finished} of {len(plan.jobs)} runs are done (started {content['written']})")
        if todo:
            (folder / "effects.json").unlink(missing_ok=True)  # of the runs before; its table stays, for resuming
            needs_test = asked.after or any(number.startswith("test.") for _, number in asked.wanted)
            train = train or (TRAIN if needs_test else TRAIN_WITHOUT_TEST)
            started = time.monotonic()
            ended = run_jobs(folder / "runs", todo, train, executor or LocalProcesses(workers))
            with closing(ended):  # an error, such as a full disk, ends the runs before the folder is free again
                for count, (job, outcome) in enumerate(ended, start=1):
                    outcomes[job.fingerprint] = outcome
                    left = (time.monotonic() - started) / count * (len(todo) - count)
                    say(f"[{count}/{len(todo)}] {job.variant}, seed {job.seed}: {_headline(asked.metric, outcome)}"
                        + (f"; about {console.rough_duration(left)} left" if count < len(todo) else ""))  # fmt: skip
        result = StudyResult.of(folder, plan, outcomes, content.get("added") or ())
        result.write()
    if report is None and console.interactive():
        from kitae.reporting.page import write_and_say

        write_and_say(folder)
    return result


def _spec(spec: StudySpec | str | Path, overrides: Sequence[str], tiny: bool) -> StudySpec:
    if not isinstance(spec, StudySpec):
        return StudySpec.load(spec, *overrides, tiny=tiny)
    if tiny:
        raise RecipeError("tiny: needs a study file or name, not a loaded study")
    return StudySpec.parse(with_overrides(spec.dump(), tuple(overrides))) if overrides else spec


def _written_plan(
    folder: Path, spec: StudySpec, workers: int, threads: int, measure: str | None, overwrite: bool
) -> tuple[Plan, dict[str, Any], list[int]]:
    """The plan as written down before the first run, and what study.yaml says; written now if there is none.

    Also the seeds of the plan that study.yaml does not have yet.
    """
    content = None if overwrite else read_study(folder)
    if content is None:
        plan = plan_study(spec, workers=workers, threads=threads, measure=measure)
        remove(STUDY_FOLDER, folder)  # only now: a mistake in the new study must not cost the old one
        return plan, write_study(folder, plan), []
    before = content["study"]["seeds"]
    removed = [str(seed) for seed in before if seed not in spec.seeds]
    added = [seed for seed in spec.seeds if seed not in before]
    if changed := study_difference(content["study"], spec.dump()):
        raise TrainingError(
            f"{folder}: holds another study ({changed}); {ANOTHER_OUT}. A study can only be resumed with the settings "
            "it was started with, and more seeds"
        )
    if removed:
        raise TrainingError(
            f"{folder}: seeds: {', '.join(removed)} cannot be removed from a study that was started with them; set "
            f"study.seeds={[*before, *added]}, or {ANOTHER_OUT}"
        )
    plan = plan_again(content, spec.model_copy(update={"seeds": (*before, *added)}))
    for job, row in zip(plan.jobs, content["runs"], strict=not added):  # jobs of added seeds come last
        if (job.variant, job.fingerprint) != (row["variant"], row["fingerprint"]):
            raise TrainingError(  # equal mappings can differ in order, which names variants and chooses the reference
                f"{folder}: {job.variant!r} has changed since the study was started (its recipe, or the order of the "
                f"variants, the factors or their fields); restore it, or {ANOTHER_OUT}"
            )
    return plan, content, added


def _headline(name: str, outcome: Outcome) -> str:
    if outcome["status"] != "done":
        return f"FAILED: {outcome['error']}"
    value = outcome["numbers"].get(name)
    shown = metric(name)
    return f"no {name}" if value is None else f"{significant(value * shown.scale, 4)} {shown.unit}".strip()
