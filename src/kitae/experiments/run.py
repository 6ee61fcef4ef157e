"""study(spec): write the study down, run what is missing, and say what it shows.

A study folder:

    study.yaml        the study, the plan and every run's recipe fingerprint, written before the first run
    runs/NAME/        a run folder each; runs/NAME.json is what the study keeps of it, runs/NAME.log its output
    runs.parquet      a row a run: variant, seed, status, all numbers, curves
    effects.parquet   a row an effect and metric
    effects.json      all that tables and figures need
    figures/          pictures, drawn from effects.json

A study can be killed at any moment and started again with the same command: finished runs are recognised by their
recipe's fingerprint, a run that was cut goes on from its checkpoint, and the table in the end is the same.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from kitae import __version__
from kitae.console import rough_duration
from kitae.data.spec import DataSpec
from kitae.data.store import open_store
from kitae.errors import KitaeError, RecipeError, TrainingError
from kitae.experiments.design import Design, expand
from kitae.experiments.executors import Executor, LocalProcesses, threads_each
from kitae.experiments.folder import NUMERICS, check_numerics, check_owned, first_difference, locked, remove_owned
from kitae.experiments.outcome import metric
from kitae.experiments.plan import Job, Plan, make_plan
from kitae.experiments.spec import StudySpec
from kitae.experiments.stats import Analysis, Effect, analyse, judge, wording
from kitae.experiments.tables import result_text
from kitae.experiments.worker import function, read_outcome
from kitae.files import write_atomically, write_json

FORMAT = 1
TRAIN = "kitae.pipelines.train:train"
TRAIN_WITHOUT_TEST = "kitae.pipelines.train:train_without_test"
MEASURE = "kitae.pipelines.estimate:estimate"
_CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "train_clean_accuracy")
_WRITTEN = ("study.yaml", "runs", "runs.parquet", "effects.parquet", "effects.json", "figures", "report.html")

Report = Callable[[str], None]


def plan_study(
    spec: StudySpec | str | Path, *overrides: str, tiny: bool = False, workers: int = 1, threads: int | None = None,
    measure: str | None = MEASURE,
) -> Plan:  # fmt: skip
    """What `study` would do; writes nothing but the decoded images.

    Args:
        spec: a study, a file, or the name of a shipped one; `overrides` and `tiny` as in `StudySpec.load`.
        workers, threads: as in `study`.
        measure: a function that times a few steps (see `kitae.pipelines.estimate`); None for no estimate of time.
    """
    return make_plan(
        _spec(spec, overrides, tiny), workers=workers, threads=threads_each(threads, workers),
        measure=None if measure is None else function(measure),
    )  # fmt: skip


def study(
    spec: StudySpec | str | Path,
    out: str | Path | None = None,
    *overrides: str,
    tiny: bool = False,
    workers: int = 1,
    threads: int | None = None,
    executor: Executor | None = None,
    overwrite: bool = False,
    figures: bool = True,
    report: Report | None = None,
    train: str | None = None,
    measure: str | None = MEASURE,
) -> StudyResult:
    """Run a study, or go on with it, and analyse it.

    Args:
        spec: a study, a file, or the name of a shipped one.
        out: the study folder; None is runs/study-NAME. A folder that holds the same study is gone on with.
        overrides: `field=value` for all variants, `study.field=value` for the study itself.
        tiny: the study's tiny twin: does the file run? Its numbers mean nothing.
        workers: runs at a time on this machine.
        threads: of each run; None shares the cores out. Written down: a study keeps its number of threads.
        executor: where runs happen, instead of `workers` local processes.
        overwrite: replace the study in `out`, once the new one is planned.
        figures: draw them at the end.
        report: gets the plan, and a line for each run as it ends.
        train: the function that trains, as module:function. None is `kitae.pipelines.train.train`, or the one that
            never opens test where the study asks for no number of test.
        measure: as in `plan_study`; needed once where a recipe says `precision: auto`.

    Raises:
        KitaeError: anything the user can mend, in one line. A run that fails is no error; it is in the result.
    """
    asked = _spec(spec, overrides, tiny)
    folder = Path("runs") / f"study-{asked.name}" if out is None else Path(out)
    with locked(folder):
        plan, when = _written_plan(folder, asked, workers, threads_each(threads, workers), measure, overwrite)
        say = report or (lambda _: None)
        say(plan.text())
        if threads is not None and plan.run_threads != (threads,):
            kept = " and ".join(str(number) for number in plan.run_threads)
            say(f"threads: {threads} is not used; the study's runs have {kept}, from its beginning or its recipes")
        outcomes = _outcomes(folder, plan)
        missing = [unit for unit in plan.units if any(not _done(outcomes, job) for job in unit)]
        todo = sum(not _done(outcomes, job) for job in plan.jobs)
        if 0 < todo < len(plan.jobs):
            say(f"going on: {len(plan.jobs) - todo} of {len(plan.jobs)} runs are done already (begun {when})")
        place = executor or LocalProcesses(workers)
        if missing:
            check_numerics(folder, _read(folder) or {})
            _check_images(folder, plan, outcomes)
        by_fingerprint = {job.fingerprint: job for job in plan.jobs}
        began = time.monotonic()
        train = train or (TRAIN if _asks_for_test(asked) else TRAIN_WITHOUT_TEST)
        units = [_unit(folder, [job for job in unit if not _done(outcomes, job)], train) for unit in missing]
        for count, outcome in enumerate(place.outcomes(units), start=1):
            job = by_fingerprint[outcome["fingerprint"]]
            outcomes[job.fingerprint] = outcome = _kept(folder, job, outcome)
            left = (time.monotonic() - began) / count * (todo - count)
            say(f"[{count}/{todo}] {job.variant}, seed {job.seed}: {_headline(plan.spec, outcome)}"
                + (f"; about {rough_duration(left)} left" if count < todo else ""))  # fmt: skip
        result = StudyResult(folder, plan.spec, _frame(plan.jobs, outcomes), _settings(plan, outcomes))
        result.write()
        if figures:
            from kitae.reporting.effects import draw_study

            draw_study(result.data(), folder / "figures")
        return result


@dataclass(frozen=True)
class StudyResult:
    """A study's runs and what they show.

    Attributes:
        path: the study folder.
        spec: the study.
        runs: a row a planned run: variant, seed, status (done, failed, missing), error, run, fingerprint, every number,
            `epochs` (JSON: the curves), `correct` (which test images it got right, packed).
        settings: base, model, images, epochs, precision, threads (of a run; a list where runs differ), machine, hours.
    """

    path: Path
    spec: StudySpec
    runs: pd.DataFrame
    settings: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> StudyResult:
        """A study folder, finished or not; also one of which the runs themselves were not kept.

        Raises:
            TrainingError: no study there.
        """
        folder = Path(path)
        content = _read(folder)
        if content is None:
            raise TrainingError(f"{folder}: no study there (it has no study.yaml)")
        spec = StudySpec.parse(content["study"], str(folder / "study.yaml"))
        # effects.json is written last: without it, the table may be of another start, and the runs are there.
        if (folder / "runs.parquet").is_file() and (folder / "effects.json").is_file():
            return cls(
                folder, spec, pd.read_parquet(folder / "runs.parquet"), _json(folder / "effects.json")["settings"]
            )
        plan = make_plan(spec, threads=content["threads"], precision=content["precision"])
        plan = replace(plan, images=content["plan"]["images"])
        outcomes = _outcomes(folder, plan)
        return cls(folder, spec, _frame(plan.jobs, outcomes), _settings(plan, outcomes))

    @cached_property
    def design(self) -> Design:
        """What was run and what is estimated."""
        return expand(self.spec)

    @cached_property
    def analyses(self) -> dict[str, Analysis]:
        """Metric -> its effects and noise: the study's own first, then those of `also` and of the claims."""
        wanted = [self.spec.metric, *self.spec.also, *(c.metric for c in self.spec.claims.values() if c.metric)]
        finished = self.runs[self.runs["status"] == "done"]
        correct = self._correct() if self.spec.cover == "both" else None
        return {
            name: analyse(finished, self.design, name, correct)
            for name in dict.fromkeys(wanted)
            if name == self.spec.metric or (name in finished and finished[name].notna().any())
        }

    @property
    def effects(self) -> pd.DataFrame:
        """A row an effect and metric; columns as the fields of `stats.Effect`, and the verdict in words."""
        rows = []
        for analysis in self.analyses.values():
            for effect in analysis.effects:
                row = asdict(effect)
                rows.append({**row, "shown": effect.shown, "words": self._words(effect)})
        return pd.DataFrame(rows)

    @property
    def failed(self) -> pd.DataFrame:
        """The runs that did not finish: variant, seed, status, error."""
        return self.runs.loc[self.runs["status"] != "done", ["variant", "seed", "status", "error"]]

    @property
    def numberless(self) -> pd.DataFrame:
        """The runs that finished without a finite number of the study's metric: variant, seed."""
        done, name = self.runs["status"] == "done", self.spec.metric
        has = self.runs[name].notna() if name in self.runs else done & False
        return self.runs.loc[done & ~has, ["variant", "seed"]]

    @property
    def sentences(self) -> list[str]:
        """What the study shows of its metric, one honest sentence an effect."""
        return [self._words(effect) for effect in self.analyses[self.spec.metric].effects]

    def effect(self, metric: str, name: str) -> Effect | None:
        """The effect of this name on a metric, or None where it was not measured."""
        analysis = self.analyses.get(metric)
        return next((e for e in analysis.effects if e.name == name), None) if analysis else None

    def _words(self, effect: Effect) -> str:
        finished = self.runs[self.runs["status"] == "done"]
        if len(finished) and (effect.metric not in finished or not finished[effect.metric].notna().any()):
            return f"{effect.name}: nothing can be said, no finished run has a number {effect.metric}"
        return wording(effect, len(self.spec.seeds), len(self.runs))

    @property
    def claims(self) -> list[dict[str, Any]]:
        """Each claim with its effect and verdict: name, says, effect, metric, estimate, low, high, verdict, remark."""
        rows = []
        for name, claim in self.spec.claims.items():
            effect = self.effect(claim.metric or self.spec.metric, claim.effect)
            row: dict[str, Any] = {"name": name, "says": claim.says, "effect": claim.effect}
            row["metric"] = claim.metric or self.spec.metric
            if effect is None:
                row |= {"estimate": None, "low": None, "high": None, "ratio": claim.ratio}
                row |= {"verdict": "not shown", "remark": "not measured"}
            else:
                verdict, remark = judge(effect, claim.between, claim.within)
                row |= {"estimate": effect.estimate, "low": effect.low, "high": effect.high, "ratio": effect.ratio}
                row |= {"verdict": verdict, "remark": remark}
            rows.append(row)
        return rows

    def table(self) -> str:
        """The result for people, as text."""
        return result_text(self)

    def data(self) -> dict[str, Any]:
        """What effects.json holds; plain values."""
        done = self.runs[self.runs["status"] == "done"]
        content: dict[str, Any] = _plain(
            {
                "format": FORMAT,
                "name": self.spec.name,
                "about": self.spec.about,
                "design": self.spec.design,
                "metric": self.spec.metric,
                "cover": self.spec.cover,
                "seeds": list(self.spec.seeds),
                "settings": dict(self.settings),
                "runs": {
                    "planned": len(self.runs), "finished": len(done), "failed": self.failed.to_dict(orient="records"),
                },
                "analyses": {name: _analysis(analysis) for name, analysis in self.analyses.items()},
                "sentences": self.sentences,
                "claims": self.claims,
                "variants": self._variants(done),
                "curves": self._curves(done),
                "levels": {v.name: dict(v.levels) for v in self.design.variants},
                "factors": {name: list(labels) for name, labels in self.design.factors.items()},
                "numeric": [name for name in self.design.factors if _is_numeric(self.spec, name)],
                "aliases": {
                    name: [[a, b, c] for (a, b), c in row.items()] for name, row in self.design.aliases.items()
                },
            }
        )  # fmt: skip
        return content

    def write(self) -> None:
        """Write runs.parquet, effects.parquet and effects.json; the same runs give the same bytes."""
        _parquet(self.runs, self.path / "runs.parquet")
        _parquet(self.effects, self.path / "effects.parquet")
        write_json(self.path / "effects.json", self.data())

    def _variants(self, done: pd.DataFrame) -> list[dict[str, Any]]:
        rows = []
        for variant in self.design.variants:
            own = done[done["variant"] == variant.name]
            means: dict[str, Any] = {}
            for name in self.analyses:
                values = (
                    own[name].dropna().to_numpy(dtype=np.float64) * metric(name).scale if name in own else np.empty(0)
                )
                means[name] = {
                    "mean": float(values.mean()) if len(values) else None,
                    "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
                    "values": values.tolist(),
                }
            rows.append(
                {"name": variant.name, "runs": len(own), "overrides": dict(variant.overrides), "numbers": means}
            )
        return rows

    def _curves(self, done: pd.DataFrame) -> dict[str, dict[str, Any]]:
        """Variant -> column -> mean and range over seeds, an entry an epoch."""
        curves: dict[str, dict[str, Any]] = {}
        for variant in self.design.variants:
            runs = [json.loads(text) for text in done.loc[done["variant"] == variant.name, "epochs"]]
            length = min((len(run) for run in runs), default=0)
            found: dict[str, Any] = {"epoch": [row["epoch"] for row in runs[0][:length]] if runs else []}
            for column in _CURVES:
                if runs and all(column in row for run in runs for row in run[:length]):
                    values = np.array([[row[column] for row in run[:length]] for run in runs])
                    found[column] = {
                        "mean": values.mean(axis=0).tolist(),
                        "low": values.min(axis=0).tolist(),
                        "high": values.max(axis=0).tolist(),
                    }
            curves[variant.name] = found
        return curves

    def _correct(self) -> dict[tuple[str, int], Any]:
        found = {}
        for variant, seed, text in zip(self.runs["variant"], self.runs["seed"], self.runs["correct"], strict=True):
            if isinstance(text, str):
                count, _, packed = text.partition(":")
                bits = np.unpackbits(np.frombuffer(base64.b64decode(packed), np.uint8), count=int(count))
                found[(str(variant), int(seed))] = bits.astype(bool)
        return found


def _spec(spec: StudySpec | str | Path, overrides: Sequence[str], tiny: bool) -> StudySpec:
    if isinstance(spec, StudySpec):
        if tiny:
            raise RecipeError("tiny: belongs to a study file, not to a study that is loaded already")
        from kitae.experiments.spec import with_overrides

        return StudySpec.parse(with_overrides(spec.dump(), tuple(overrides))) if overrides else spec
    return StudySpec.load(spec, *overrides, tiny=tiny)


# ---- the folder -----------------------------------------------------------------------------------------------------


def _written_plan(
    folder: Path, spec: StudySpec, workers: int, threads: int, measure: str | None, overwrite: bool
) -> tuple[Plan, str]:
    """The plan as it was written down before the first run; written now where there is none, or one to replace."""
    content = None if overwrite else _read(folder)
    if content is None:
        check_owned(folder, "study.yaml", _WRITTEN, "study")
        plan = make_plan(spec, workers=workers, threads=threads, measure=None if measure is None else function(measure))
        remove_owned(folder, "study.yaml", _WRITTEN)  # not before the new plan stands: a mistake must not cost the old
        when = datetime.now(UTC).isoformat(timespec="seconds")
        write_atomically(folder / "study.yaml", _study_yaml(plan, when).encode())
        return plan, when
    changed = difference(content["study"], spec.dump())
    if changed:
        raise TrainingError(
            f"{folder}: holds another study ({changed}); choose another --out, or --overwrite. A study keeps the "
            "seeds, the metric and the claims it was begun with"
        )
    plan = make_plan(spec, workers=workers, threads=content["threads"], precision=content["precision"])
    for job, row in zip(plan.jobs, content["runs"], strict=True):
        if job.fingerprint != row["fingerprint"]:
            raise TrainingError(
                f"{folder}: the recipe of {job.variant!r} has changed since the study was begun; choose another --out, "
                "or --overwrite"
            )
    return replace(plan, images=content["plan"]["images"]), str(content["written"])


def _study_yaml(plan: Plan, when: str) -> str:
    content = {
        "format": FORMAT,
        "written": when,
        "kitae": __version__,
        "numerics": NUMERICS,
        "threads": plan.threads,
        "precision": plan.precision,
        "plan": {
            "runs": len(plan.jobs),
            "noise": plan.noise,
            "smallest_effect": plan.smallest,
            "seconds": plan.seconds,
            "images": plan.images,
        },
        "study": plan.spec.dump(),
        "runs": [
            {"variant": job.variant, "seed": job.seed, "run": job.name, "fingerprint": job.fingerprint}
            for job in plan.jobs
        ],
    }
    note = "# Written before the first run. Do not change: the study is gone on with only as it was begun.\n"
    return note + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _read(folder: Path) -> dict[str, Any] | None:
    file = folder / "study.yaml"
    if not file.is_file():
        return None
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if content["format"] == FORMAT and {"study", "runs", "threads", "precision"} <= set(content):
            return dict(content)
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        pass
    raise TrainingError(f"{file}: is damaged, or from another version of Kitae")


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first field in which two studies differ; what is only said about them may differ."""
    for name in now:
        if name not in ("about", "claims", "tiny") and before.get(name) != now[name]:
            return first_difference(before.get(name), now[name], name)
    claimed, claims = before.get("claims") or {}, now["claims"]
    for name in dict.fromkeys((*claimed, *claims)):
        if claimed.get(name) != claims.get(name):
            how = "changed" if name in claimed and name in claims else "added" if name in claims else "taken out"
            return f"claims.{name} was {how} after the study was begun"
    return ""


def _asks_for_test(spec: StudySpec) -> bool:
    wanted = (spec.metric, *spec.also, *(claim.metric or "" for claim in spec.claims.values()))
    return bool(spec.after) or any(name.startswith("test.") for name in wanted)


def _unit(folder: Path, jobs: Sequence[Job], train: str) -> dict[str, Any]:
    runs = (folder / "runs").resolve()
    return {
        "train": train,
        "recipe": jobs[0].recipe.model_dump(mode="json"),
        "folder": str(runs / jobs[0].folder),
        "jobs": [
            {
                "fingerprint": job.fingerprint,
                "outcome": str(runs / f"{job.name}.json"),
                "after": {step: dict(settings) for step, settings in job.after.items()},
            }
            for job in jobs
        ],
    }


def _outcomes(folder: Path, plan: Plan) -> dict[str, dict[str, Any]]:
    """Fingerprint -> outcome, of the runs that have one. A damaged file counts as no run."""
    found = {}
    for job in plan.jobs:
        outcome = read_outcome(folder / "runs" / f"{job.name}.json", job.fingerprint)
        if outcome is not None:
            found[job.fingerprint] = outcome
    return found


def _check_images(folder: Path, plan: Plan, outcomes: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to add runs on other images to those that are done; outcomes from before `store` was kept pass."""
    now: dict[DataSpec, str] = {}
    for job in plan.jobs:
        then = outcomes[job.fingerprint].get("store") if _done(outcomes, job) else None
        if then is None:
            continue
        data = job.recipe.data
        if data not in now:
            now[data] = open_store(data).fingerprint
        if then != now[data]:
            raise TrainingError(
                f"{folder}: the images of {data.source} have changed since {job.variant!r}, seed {job.seed}, was "
                "trained on them; choose another --out, or --overwrite"
            )


def _kept(folder: Path, job: Job, outcome: dict[str, Any]) -> dict[str, Any]:
    """Write an outcome down where its worker could not (another machine, a lost process), and what stands there now.

    A run that is done stays done: only a failure gives way.
    """
    file = folder / "runs" / f"{job.name}.json"
    before = read_outcome(file, job.fingerprint)
    if before is not None and before["status"] == "done":
        return before
    if before != outcome:
        write_json(file, outcome)
    return outcome


def _done(outcomes: Mapping[str, Mapping[str, Any]], job: Job) -> bool:
    return job.fingerprint in outcomes and outcomes[job.fingerprint]["status"] == "done"


def _headline(spec: StudySpec, outcome: Mapping[str, Any]) -> str:
    if outcome["status"] != "done":
        return f"FAILED: {outcome['error']}"
    shown = metric(spec.metric)
    value = outcome["numbers"].get(spec.metric)
    return f"no {spec.metric}" if value is None else f"{value * shown.scale:.4g} {shown.unit}".strip()


# ---- the tables -----------------------------------------------------------------------------------------------------


def _frame(jobs: Sequence[Job], outcomes: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """A row a planned run, in the plan's order."""
    names = sorted({name for outcome in outcomes.values() for name in outcome["numbers"]})
    rows = []
    for job in jobs:
        outcome = outcomes.get(job.fingerprint)
        rows.append(
            {
                "variant": job.variant,
                "seed": job.seed,
                "status": "missing" if outcome is None else outcome["status"],
                "error": None if outcome is None else outcome["error"],
                "run": job.name,
                "fingerprint": job.fingerprint,
                **{name: (outcome or {"numbers": {}})["numbers"].get(name) for name in names},
                "epochs": json.dumps([] if outcome is None else outcome["epochs"]),
                "correct": None if outcome is None else outcome["correct"],
            }
        )
    frame = pd.DataFrame(rows)
    texts = ("variant", "status", "error", "run", "fingerprint", "epochs", "correct")
    return frame.astype(dict.fromkeys(texts, "object") | dict.fromkeys(names, "float64"))


def _settings(plan: Plan, outcomes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Under what conditions the effects were measured, for the ledger."""
    recipe = next(job.recipe for job in plan.jobs if job.variant == plan.design.reference)
    precisions = dict.fromkeys(job.recipe.train.precision for job in plan.jobs)  # what a study varies is all named
    ordered = [outcomes[job.fingerprint] for job in plan.jobs if job.fingerprint in outcomes]
    seconds = []
    for unit in plan.units:  # runs that share a training count it once
        timed = [outcomes[job.fingerprint] for job in unit if _done(outcomes, job)]
        if timed and "epoch_seconds" in timed[0]["numbers"]:
            seconds.append(timed[0]["numbers"]["epoch_seconds"] * len(timed[0]["epochs"]))
    return {
        "base": recipe.name,
        "source": recipe.data.source,
        "images": recipe.data.limit or plan.images,
        "model": recipe.model.name,
        "width": recipe.model.width,
        "epochs": recipe.train.epochs,
        "batch_size": recipe.train.batch_size,
        "precision": " and ".join(precisions),
        "threads": plan.run_threads[0] if len(plan.run_threads) == 1 else list(plan.run_threads),
        "machine": ordered[0]["machine"] if ordered else {},
        "training_hours": sum(seconds) / 3600 if seconds else None,
    }


def _is_numeric(spec: StudySpec, factor: str) -> bool:
    """Whether a factor's levels are numbers, and not only called by numbers because they have no short names."""
    values = next(iter(spec.factors[factor].values()))
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _analysis(analysis: Analysis) -> dict[str, Any]:
    return {
        "unit": analysis.metric.unit,
        "better": analysis.metric.better,
        "runs": analysis.runs,
        "noise": asdict(analysis.noise),
        "effects": [
            {**asdict(effect), "shown": effect.shown, "neutral": effect.neutral} for effect in analysis.effects
        ],
    }


def _plain(value: Any) -> Any:
    """Values that JSON has: NaN becomes null, NumPy numbers plain ones."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parquet(frame: pd.DataFrame, path: Path) -> None:
    import io

    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write_atomically(path, buffer.getvalue())


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KitaeError(f"{path}: cannot be read") from error
    return dict(value)
