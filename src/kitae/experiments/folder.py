"""The folder of a study or a search: used by one process at a time, and only Kitae's own files in it are touched.

A study folder:

    study.yaml        the study, the plan and every run's recipe fingerprint, written before the first run
    runs/NAME/        the run folders; runs/NAME.json has what the study keeps of a run, runs/NAME.log its output
    runs.parquet      a row per run: variant, seed, status, all numbers, curves
    effects.parquet   a row per effect and metric
    effects.json      what tables, figures and pages need
    report.html, figures/   the page and its charts, by `kitae report`

A study can be killed at any moment and resumed by the same command. Finished runs are recognised by their recipe's
fingerprint, in `runs/` or in `runs.parquet`, so a published study, which has no `runs/`, can be resumed too.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from kitae import __version__
from kitae.data.spec import DataSpec
from kitae.data.store import open_store
from kitae.errors import TrainingError, one_line
from kitae.experiments.executors import Executor
from kitae.experiments.plan import Job, Plan, make_plan
from kitae.experiments.study_spec import StudySpec
from kitae.experiments.worker import Outcome, read_outcome
from kitae.files import plain, write_atomically, write_json
from kitae.folders import REPORT, SIGNS, Owned, lock
from kitae.machine import now
from kitae.recipe import YAML_ERRORS

FORMAT = 1
# Increased when the same recipe and seed give a different run. 2: initial weights are keyed by parameter names.
# 3: an epoch drops its short last batch, ties of epochs go to the lower loss, mixing draws one lambda per batch.
NUMERICS = 3
STUDY = SIGNS["study"]
STUDY_FOLDER = Owned(
    "study",
    (STUDY, "runs", "runs.parquet", "effects.parquet", "effects.json", "figures", REPORT),
    TrainingError,
    first=STUDY,
)
ANOTHER_OUT = "choose another --out, or --overwrite"
# The columns of runs.parquet that hold no number of a run.
COLUMNS = ("variant", "seed", "status", "error", "run", "fingerprint", "epochs", "correct", "machine", "store")


# ---- what a study or search writes down before its first run --------------------------------------------------------


def read_settings(file: Path, *keys: str) -> dict[str, Any] | None:
    """The content of study.yaml or search.yaml; None if there is no such file.

    Raises:
        TrainingError: the file is damaged, or from another version.
    """
    if not file.is_file():
        return None
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if content.get("format", FORMAT) == FORMAT and set(keys) <= set(content):
            return dict(content)
    except (*YAML_ERRORS, TypeError):
        pass
    raise TrainingError(f"{file}: is damaged, or from another version of Kitae; {ANOTHER_OUT}")


def write_settings(file: Path, content: Mapping[str, Any]) -> None:
    """Write study.yaml or search.yaml."""
    what = file.stem
    note = f"# Written before the first run. Do not edit: a {what} is resumed with the settings it was started with.\n"
    text = note + yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    write_atomically(file, text.encode())


def check_numerics(folder: Path, written: Mapping[str, Any]) -> None:
    """Refuse to mix runs of two versions that train the same recipe and seed differently.

    Args:
        written: what was written down before the first run.

    Raises:
        TrainingError: another version wrote it.
    """
    if written.get("numerics", 1) != NUMERICS:
        raise TrainingError(
            f"{folder}: was started by a version of Kitae that trains the same recipe differently, so its runs and new "
            f"ones cannot be compared; {ANOTHER_OUT}"
        )


def check_images(folder: Path, trained: Iterable[tuple[DataSpec, Outcome]]) -> None:
    """Refuse to add runs to a folder whose finished runs were trained on different images.

    Args:
        trained: data and outcome of each finished run.

    Raises:
        TrainingError: the images have changed.
    """
    found: dict[DataSpec, str] = {}
    for data, outcome in trained:
        if data not in found:
            found[data] = open_store(data).fingerprint
        if outcome["store"] != found[data]:
            raise TrainingError(
                f"{folder}: the images of {data.source} have changed since the first runs; {ANOTHER_OUT}"
            )


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str:
    """Where two nested mappings first differ: `base.train.epochs was 10, is 77`; empty if they are equal."""
    for name in dict.fromkeys((*now, *before)):
        path = f"{prefix}{name}"
        if name not in before or name not in now:
            return f"{path} was {'missing' if name not in before else 'set'} when it was started"
        then, here = before[name], now[name]
        if isinstance(then, Mapping) and isinstance(here, Mapping):
            if found := first_difference(then, here, f"{path}."):
                return found
        elif then != here:
            return f"{path} was {str(then)[:80]}, is {str(here)[:80]}"
    return ""


def study_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first field in which two dumped studies differ, without their descriptions, and seeds, which can be added."""
    free = ("about", "tiny", "seeds")
    then, here = ({n: value for n, value in study.items() if n not in free} for study in (before, now))
    return first_difference(then, here)


def remove(owned: Owned, folder: Path) -> None:
    """Remove an earlier study or search. Runs of one that was killed stop first: they may still be saving."""
    for held in folder.rglob(".*.lock"):  # see `worker.execute`
        with lock(held):
            pass
    owned.remove(folder)


def read_study(folder: Path) -> dict[str, Any] | None:
    """The content of study.yaml; None if there is none. Raises as `read_settings`."""
    return read_settings(folder / STUDY, "study", "runs", "threads", "precision", "plan")


def write_study(folder: Path, plan: Plan) -> dict[str, Any]:
    """Write study.yaml, before the first run; returns what it says."""
    content = {
        "format": FORMAT,
        "written": now(),
        "kitae": __version__,
        "numerics": NUMERICS,
        "threads": plan.threads,
        "precision": plan.precision,
        "plan": {
            "runs": len(plan.jobs), "noise": plan.noise, "smallest_effect": plan.smallest, "seconds": plan.seconds,
            "images": plan.images, "judged": plan.judged,
        },
        "study": plan.spec.dump(),
        "runs": _rows(plan),
    }  # fmt: skip
    write_settings(folder / STUDY, content)
    return content


def add_seeds(
    folder: Path, content: Mapping[str, Any], plan: Plan, seeds: Sequence[int], finished: int
) -> dict[str, Any]:
    """Write into study.yaml, before their first run, that seeds were added; returns what it says now.

    The section `plan` stays as it was before the first run.

    Args:
        content: of study.yaml so far.
        plan: with the seeds.
        finished: runs that were done by now, so that a reader knows how many results were known when seeds were added.
    """
    (folder / "effects.json").unlink(missing_ok=True)  # of fewer seeds than study.yaml is going to have
    added = {"seeds": list(seeds), "when": now(), "finished": finished}
    content = {
        **content, "study": plan.spec.dump(), "runs": _rows(plan), "added": [*content.get("added", ()), added],
    }  # fmt: skip
    write_settings(folder / STUDY, content)
    return content


def plan_again(content: Mapping[str, Any], spec: StudySpec) -> Plan:
    """The plan of a study that was started; `spec` may have more seeds than its study.yaml."""
    known = content["plan"]
    return make_plan(
        spec, threads=content["threads"], precision=content["precision"], images=known["images"],
        judged=known.get("judged"),
    )  # fmt: skip


def _rows(plan: Plan) -> list[dict[str, Any]]:
    return [
        {"variant": job.variant, "seed": job.seed, "run": job.name, "fingerprint": job.fingerprint} for job in plan.jobs
    ]


# ---- the runs -------------------------------------------------------------------------------------------------------


def run_jobs(
    runs: Path, jobs: Iterable[Job], train: str, place: Executor
) -> Generator[tuple[Job, Outcome], None, None]:
    """Run jobs, and yield each with its outcome, which is kept in the folder `runs`.

    A finished run stays finished: only a failure is replaced. Jobs of the same training share it. Closing the generator
    stops the runs.
    """
    runs = runs.resolve()
    wanted = {job.fingerprint: job for job in jobs}
    units: dict[str, dict[str, Any]] = {}
    for job in wanted.values():
        recipe = job.recipe.model_dump(mode="json")
        new = {"train": train, "recipe": recipe, "folder": str(runs / job.folder), "jobs": []}
        units.setdefault(job.folder, new)["jobs"].append(
            {"fingerprint": job.fingerprint, "outcome": str(runs / f"{job.name}.json"), "after": plain(job.after)}
        )
    for outcome in place.outcomes(list(units.values())):
        job = wanted[outcome["fingerprint"]]
        kept = read_outcome(runs / f"{job.name}.json", job.fingerprint)
        if kept is None or (kept["status"] != "done" and kept != outcome):  # of another machine, or a lost process
            write_json(runs / f"{job.name}.json", outcome)
            kept = outcome
        yield job, kept


def done(outcomes: Mapping[str, Outcome], job: Job) -> bool:
    """Whether a job is finished; `outcomes` by fingerprint."""
    return job.fingerprint in outcomes and outcomes[job.fingerprint]["status"] == "done"


def read_outcomes(folder: Path, plan: Plan) -> dict[str, Outcome]:
    """Fingerprint -> outcome, of the runs that have one, from `runs/` or else from runs.parquet.

    A damaged file counts as no run. A finished run in the table takes precedence over a failure in `runs/`.
    """
    table = _table_outcomes(folder / "runs.parquet")
    found: dict[str, Outcome] = {}
    for job in plan.jobs:
        outcome = read_outcome(folder / "runs" / f"{job.name}.json", job.fingerprint)
        if outcome is None or outcome["status"] != "done":
            outcome = table.get(job.fingerprint, outcome)
        if outcome is not None:
            found[job.fingerprint] = outcome
    return found


def read_table(file: Path) -> pd.DataFrame:
    """The table of a runs.parquet.

    Raises:
        TrainingError: it cannot be read, or has other columns.
    """
    try:
        table = pd.read_parquet(file)
        table[[*COLUMNS]]
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(f"{file}: cannot be read ({one_line(error)}); remove it, and resume the study") from error
    return table


def _table_outcomes(file: Path) -> dict[str, Outcome]:
    """The finished runs of a runs.parquet; none if there is no such file, or it cannot be read."""
    try:
        table = read_table(file).astype("object")
    except TrainingError:
        return {}
    rows = table[table["status"] == "done"]
    return {
        row["fingerprint"]: {
            **{name: row[name] for name in ("fingerprint", "status", "error", "correct", "store")},
            **{name: json.loads(row[name]) for name in ("epochs", "machine")},
            "numbers": {name: value for name, value in row.items() if name not in COLUMNS and value is not None},
        }
        for row in rows.where(rows.notna(), None).to_dict("records")
    }
