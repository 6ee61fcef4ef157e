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
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from kitae import __version__
from kitae.data.spec import DataSpec
from kitae.data.store import open_store
from kitae.errors import TrainingError
from kitae.experiments.plan import Job, Plan
from kitae.experiments.worker import read_outcome
from kitae.files import write_atomically, write_json
from kitae.folders import Owned
from kitae.machine import now

FORMAT = 1
# Increased when the same recipe and seed give a different run. 2: initial weights are keyed by parameter names.
# 3: an epoch drops its short last batch, ties of epochs go to the lower loss, mixing draws one lambda per batch.
NUMERICS = 3
STUDY = "study.yaml"
STUDY_FOLDER = Owned(
    "study",
    (STUDY, "runs", "runs.parquet", "effects.parquet", "effects.json", "figures", "report.html"),
    TrainingError,
    first=STUDY,
)
ANOTHER_OUT = "choose another --out, or --overwrite"
# The columns of runs.parquet that are no numbers of a run.
COLUMNS = ("variant", "seed", "status", "error", "run", "fingerprint", "epochs", "correct", "machine", "store")

Outcome = Mapping[str, Any]


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


def check_images(folder: Path, trained: Iterable[tuple[DataSpec, str | None]]) -> None:
    """Refuse to add runs to a folder whose finished runs were trained on different images.

    Args:
        trained: data and image store's fingerprint of each finished run; None, from old versions, is not checked.

    Raises:
        TrainingError: the images have changed.
    """
    now: dict[DataSpec, str] = {}
    for data, then in trained:
        if then is None:
            continue
        if data not in now:
            now[data] = open_store(data).fingerprint
        if then != now[data]:
            raise TrainingError(
                f"{folder}: the images of {data.source} have changed since the first runs; {ANOTHER_OUT}"
            )


def first_difference(before: Any, now: Any, path: str) -> str:
    """Where two nested values first differ: `base.train.epochs was 10, is 77`; empty if they are equal."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys((*now, *before)):
            if name not in before or name not in now:
                return f"{path}.{name} was {'missing' if name not in before else 'set'} when it was started"
            if found := first_difference(before[name], now[name], f"{path}.{name}"):
                return found
        return ""
    return "" if before == now else f"{path} was {str(before)[:80]}, is {str(now)[:80]}"


# ---- study.yaml -----------------------------------------------------------------------------------------------------


def study_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first field in which two dumped studies differ; their descriptions may differ."""
    for name in now:
        if name not in ("about", "claims", "tiny") and before.get(name) != now[name]:
            return first_difference(before.get(name), now[name], name)
    claimed, claims = before.get("claims") or {}, now["claims"]
    for name in dict.fromkeys((*claimed, *claims)):
        if claimed.get(name) != claims.get(name):
            how = "changed" if name in claimed and name in claims else "added" if name in claims else "removed"
            return f"claims.{name} was {how} after the study was started"
    return ""


def read_study(folder: Path) -> dict[str, Any] | None:
    """The content of study.yaml; None if there is none.

    Raises:
        TrainingError: the file is damaged, or from another version.
    """
    file = folder / STUDY
    if not file.is_file():
        return None
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if content["format"] == FORMAT and {"study", "runs", "threads", "precision"} <= set(content):
            return dict(content)
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        pass
    raise TrainingError(f"{file}: is damaged, or from another version of Kitae")


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
            "images": plan.images,
        },
        "study": plan.spec.dump(),
        "runs": _rows(plan),
    }  # fmt: skip
    _write(folder, content)
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
    _write(folder, content)
    return content


def _rows(plan: Plan) -> list[dict[str, Any]]:
    return [
        {"variant": job.variant, "seed": job.seed, "run": job.name, "fingerprint": job.fingerprint} for job in plan.jobs
    ]


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    note = "# Written before the first run. Do not edit: a study is resumed with the settings it was started with.\n"
    text = note + yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    write_atomically(folder / STUDY, text.encode())


# ---- the runs -------------------------------------------------------------------------------------------------------


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


def _table_outcomes(file: Path) -> dict[str, dict[str, Any]]:
    """The finished runs of a runs.parquet; none if there is no such file, or it cannot be read."""
    try:
        table = pd.read_parquet(file)
        rows = table[table["status"] == "done"].to_dict("records")
    except (OSError, ValueError, KeyError):
        return {}
    names = [name for name in table if name not in COLUMNS]
    return {
        row["fingerprint"]: {
            "fingerprint": row["fingerprint"], "status": "done", "error": None,
            "numbers": {name: row[name] for name in names if math.isfinite(row[name])},
            "epochs": json.loads(row["epochs"]),
            "correct": row["correct"] if isinstance(row["correct"], str) else None,
            # Tables of old versions lack these two.
            "machine": json.loads(row["machine"]) if isinstance(row.get("machine"), str) else {},
            "store": row["store"] if isinstance(row.get("store"), str) else None,
        }
        for row in rows
    }  # fmt: skip


def keep_outcome(folder: Path, job: Job, outcome: dict[str, Any]) -> dict[str, Any]:
    """Store an outcome, if its worker could not (another machine, a lost process); returns what is stored now.

    A finished run stays finished: only a failure is replaced.
    """
    file = folder / "runs" / f"{job.name}.json"
    before = read_outcome(file, job.fingerprint)
    if before is not None and before["status"] == "done":
        return before
    if before != outcome:
        write_json(file, outcome)
    return outcome
