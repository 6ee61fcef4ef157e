"""The result of a study: a table of its runs, its effects, and the verdicts on its claims."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from kitae import views
from kitae.console import plural, printable
from kitae.errors import KitaeError, TrainingError
from kitae.experiments import wording
from kitae.experiments.design import Design, expand
from kitae.experiments.folder import COLUMNS, STUDY, done, plan_again, read_outcomes, read_study, read_table
from kitae.experiments.outcome import CURVES
from kitae.experiments.plan import Job, Plan
from kitae.experiments.stats import Judged, analyse
from kitae.experiments.study_spec import StudySpec
from kitae.experiments.worker import Outcome
from kitae.files import plain, read_json, user_path, write_json, write_parquet
from kitae.reporting.effects import Analysis, Effect, amount, interval, metric, noise_line, sentence
from kitae.reporting.study_labels import effect_label
from kitae.reporting.study_results import StudyRecord
from kitae.reporting.values import finite

Verdict = Literal["confirmed", "not shown", "refuted"]


@dataclass(frozen=True, eq=False)
class StudyResult:
    """A study's runs and what they show.

    Attributes:
        path: the study folder.
        spec: the study.
        runs: a row per planned run: variant, seed, status (done, failed, missing), error, run, fingerprint, every
            number, `epochs` (JSON: the curves), `correct` (which test images it got right, packed), `machine` (JSON),
            `store` (fingerprint of its images).
        settings: base, model, images, epochs, precision, threads (of a run; a list if runs differ), machine (of the
            finished runs; a list of what they differ in), hours.
        added: seeds that were added after the study was started: {seeds, when, finished: runs that were done by then}.
    """

    path: Path
    spec: StudySpec
    runs: pd.DataFrame
    settings: Mapping[str, Any]
    added: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(
        cls, path: Path, plan: Plan, outcomes: Mapping[str, Outcome], added: Sequence[Mapping[str, Any]]
    ) -> StudyResult:
        """The result of the runs so far; `outcomes` by fingerprint."""
        return cls(path, plan.spec, _table(plan.jobs, outcomes), _settings(plan, outcomes), added)

    @classmethod
    def open(cls, path: str | Path) -> StudyResult:
        """A study folder, finished or not, with or without its run folders.

        Raises:
            KitaeError: no study there, or a file is damaged.
        """
        folder = user_path(path)
        content = read_study(folder)
        if content is None:
            raise TrainingError(f"{folder}: no study there (it has no {STUDY})")
        spec, added = StudySpec.parse(content["study"], str(folder / STUDY)), content.get("added") or ()
        # effects.json is written last. Without it the table may be incomplete, and the runs have to be collected.
        if (folder / "runs.parquet").is_file() and (folder / "effects.json").is_file():
            try:
                settings = read_json(folder / "effects.json", "settings")["settings"]
            except KitaeError as error:
                raise KitaeError(f"{error}; remove the file, and resume the study") from error
            return cls(folder, spec, read_table(folder / "runs.parquet"), settings, added)
        plan = plan_again(content, spec)
        return cls.of(folder, plan, read_outcomes(folder, plan), added)

    @cached_property
    def design(self) -> Design:
        """What was run and what is estimated."""
        return expand(self.spec)

    @cached_property
    def finished(self) -> pd.DataFrame:
        """The rows of `runs` that are done."""
        return self.runs[self.runs["status"] == "done"]

    @cached_property
    def analyses(self) -> dict[str, Analysis]:
        """Metric -> its effects and noise: the study's own first, then those of `also` and of the claims."""
        correct = self._correct() if self.spec.cover == "both" else None
        return {
            name: analyse(self.finished, self.design, name, correct)
            for name in dict.fromkeys(number for _, number in self.spec.wanted)
            if name == self.spec.metric or (name in self.finished and self.finished[name].notna().any())
        }

    @property
    def effects(self) -> pd.DataFrame:
        """A row per effect and metric; columns as the fields of `reporting.effects.Effect`, and a sentence."""
        effects = [effect for analysis in self.analyses.values() for effect in analysis.effects]
        return pd.DataFrame(
            [{**e.model_dump(exclude={"neutral", "text"}), "words": self._sentence(e)} for e in effects]
        )

    @property
    def failed(self) -> pd.DataFrame:
        """The runs that did not finish: variant, seed, status, error."""
        return self.runs.loc[self.runs["status"] != "done", ["variant", "seed", "status", "error"]]

    @property
    def numberless(self) -> pd.DataFrame:
        """The runs that finished without a finite number of the study's metric: variant, seed."""
        name = self.spec.metric
        rows = self.finished[self.finished[name].isna()] if name in self.finished else self.finished
        return rows[["variant", "seed"]]

    @property
    def sentences(self) -> list[str]:
        """What the study shows about its metric, one sentence per effect."""
        return [self._sentence(effect) for effect in self.analyses[self.spec.metric].effects]

    @property
    def notes(self) -> list[str]:
        """What a reader has to know of how the study was run."""
        added = [
            f"Seeds {', '.join(str(seed) for seed in row['seeds'])} were added on {str(row['when'])[:10]}, "
            + (
                f"after {plural(row['finished'], 'run')} had finished: the number of seeds was raised after a first "
                "look at the data."
                if row["finished"]
                else "before any run had finished."
            )
            for row in self.added
        ]
        facts = [json.loads(text or "{}") for text in self.finished["machine"]]
        machines = sorted({str(one.get("gpu") or one.get("processor")) for one in facts})
        if len(machines) > 1 and any(metric(name).ratio for name in self.analyses):
            added.append(
                f"The runs were made on different machines ({'; '.join(machines)}), so differences in time, rate and "
                "memory may be those of the machines."
            )
        lacking = dict.fromkeys(name for _, name in self.spec.wanted if name not in self.analyses)
        return added + [f"No finished run has a number {name}." for name in lacking if len(self.finished)]

    def effect(self, metric: str, name: str) -> Effect | None:
        """The effect of this name on a metric, or None if it was not measured."""
        return self.analyses.get(metric, Analysis()).effect(name)

    def to_pandas(self) -> pd.DataFrame:
        """`effects`: a row per effect and metric."""
        return self.effects

    def __repr__(self) -> str:
        state = f"{len(self.finished)} of {len(self.runs)} runs finished"
        what = f"{self.spec.name}, {self.spec.design}, {state}, {self.spec.metric}"
        return printable(f"StudyResult({self.path}: {what})")

    def _repr_html_(self) -> str:
        effects, labels = self.analyses[self.spec.metric].effects, self._labels()
        rows = [[labels[e.name], amount(e.estimate, e), interval(e), "yes" if e.shown else "no"] for e in effects]
        title = f"{self.spec.name}: {len(self.finished)} of {len(self.runs)} runs finished ({self.path})"
        about = [self.spec.about] if self.spec.about else []
        columns = [self.spec.metric, "effect", "95 % interval", "shown"]
        return views.block(title, [*about, *self.notes], columns, rows)

    def _sentence(self, effect: Effect) -> str:
        if len(self.finished) and not self.analyses[effect.metric].runs:
            return f"{effect.name}: nothing can be said: no finished run has a value of {effect.metric}"
        return sentence(effect, len(self.spec.seeds), len(self.runs))

    def _in_words(self) -> list[str]:
        """`sentences`, each with what was changed in words instead of the effect's name, as on the page."""
        effects, labels = self.analyses[self.spec.metric].effects, self._labels()
        return [self._sentence(one.model_copy(update={"name": labels[one.name]})) for one in effects]

    def _labels(self) -> dict[str, str]:
        """What was changed in words, by the name of each effect on the study's metric."""
        return {one.name: effect_label(self._record, one.name) for one in self.analyses[self.spec.metric].effects}

    @property
    def claims(self) -> list[dict[str, Any]]:
        """Each claim with its effect and verdict: name, says, effect, metric, estimate, low, high, verdict, remark."""
        rows = []
        for name, claim in self.spec.claims.items():
            about = claim.metric or self.spec.metric
            effect = self.effect(about, claim.effect)
            verdict, remark = ("not shown", "not measured")
            if effect is not None and effect.ratio != claim.ratio:  # a number of 0 has no ratio
                remark = "a value of 0 left only a difference to compare"
            elif effect is not None:
                verdict, remark = judge(effect, claim.between, claim.within)
            rows.append({
                "name": name, "says": claim.says, "effect": claim.effect, "metric": about,
                "estimate": effect and effect.estimate, "low": effect and effect.low, "high": effect and effect.high,
                "ratio": claim.ratio if effect is None else effect.ratio, "verdict": verdict, "remark": remark,
            })  # fmt: skip
        return rows

    def table(self) -> str:
        """The result as text: variants, effects, noise, sentences, claims, and the runs that failed."""
        return wording.text(self.parts())

    def parts(self) -> list[str | wording.Table]:
        """What `table` shows, one by one: lines, and tables as a head and rows."""
        spec, main = self.spec, self.analyses[self.spec.metric]
        pairs = zip(self.design.compared, main.effects, strict=True)
        tested = len({compared for compared, effect in pairs if not math.isnan(effect.p)})
        what = f"{spec.metric} in {main.unit}" if main.unit else spec.metric
        parts: list[str | wording.Table] = [
            f"{spec.name}: {spec.design}, {len(self.design.variants)} variants x {plural(len(spec.seeds), 'seed')}, "
            f"{len(self.finished)} of {len(self.runs)} runs finished",
            f"{what}; 95 % intervals, covering {main.covers}; p after Holm over {plural(tested, 'effect')}",
            *self.notes,
            "",
            wording.variants_table(self._variants(), list(self.analyses)),
            "",
            wording.effects_table(main.effects),
            noise_line(main),
            *(["", wording.aliases_text(self.design)] if self.design.aliases else []),
            "",
            *self._in_words(),
        ]
        if any(effect.uneven for effect in main.effects):
            parts.append(
                "* this variant or its reference varies more than the others, so its interval uses only their own pairs"
            )
        parts += [wording.metric_line(name, one.effects) for name, one in self.analyses.items() if name != spec.metric]
        if self.spec.claims:
            claims = [(row, self.effect(row["metric"], row["effect"])) for row in self.claims]
            parts += ["", wording.claims_table(claims)]
        parts += wording.runs_lines(self.failed, "did not finish, not included above:")
        without = f"finished without a finite {spec.metric}, left out of its effects:"
        return parts + wording.runs_lines(self.numberless, without)

    def data(self) -> dict[str, Any]:
        """What effects.json holds; plain values."""
        return dict(plain(self._record.model_dump()))

    @cached_property
    def _record(self) -> StudyRecord:
        """The result as pages read it."""
        return StudyRecord.model_validate({
            "name": self.spec.name,
            "about": self.spec.about,
            "design": self.spec.design,
            "metric": self.spec.metric,
            "cover": self.spec.cover,
            "seeds": self.spec.seeds,
            "added": self.added,
            "settings": self.settings,
            "runs": {
                "planned": len(self.runs), "finished": len(self.finished),
                "failed": self.failed.to_dict(orient="records"),
            },
            "analyses": self.analyses,
            "sentences": [*self.sentences, *self.notes],
            "claims": self.claims,
            "contrasts": self.spec.contrasts,
            "variants": self._variants(),
            "curves": self._curves(),
            "levels": {v.name: v.levels for v in self.design.variants},
            "factors": self.design.factors,
            "numeric": [name for name in self.design.factors if _is_numeric(self.spec, self.design, name)],
            "aliases": {
                name: [[a, b, c] for (a, b), c in row.items()] for name, row in self.design.aliases.items()
            },
        })  # fmt: skip

    def write(self) -> None:
        """Write runs.parquet, effects.parquet and effects.json; the same runs give the same bytes."""
        for frame, name in ((self.runs, "runs.parquet"), (self.effects, "effects.parquet")):
            write_parquet(pa.Table.from_pandas(frame, preserve_index=False), self.path / name)
        write_json(self.path / "effects.json", self.data())

    def _variants(self) -> list[dict[str, Any]]:
        rows = []
        for variant in self.design.variants:
            own = self.finished[self.finished["variant"] == variant.name]
            numbers: dict[str, Any] = {}
            for name in self.analyses:
                values = own[name].dropna().to_numpy(np.float64) * metric(name).scale if name in own else np.empty(0)
                numbers[name] = {
                    "mean": float(values.mean()) if len(values) else None,
                    "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
                    "values": values.tolist(),
                }
            rows.append({"name": variant.name, "runs": len(own), "overrides": variant.overrides, "numbers": numbers})
        return rows

    def _curves(self) -> dict[str, dict[str, Any]]:
        """Variant -> column -> mean and range over seeds, an entry for each epoch in which all runs have it."""
        curves: dict[str, dict[str, Any]] = {}
        for variant in self.design.variants:
            texts = self.finished.loc[self.finished["variant"] == variant.name, "epochs"]
            runs = [json.loads(text) for text in texts]
            length = min((len(run) for run in runs), default=0)
            found: dict[str, Any] = {"epoch": [row["epoch"] for row in runs[0][:length]] if runs else []}
            for column in CURVES:
                places = [at for at in range(length) if all(column in run[at] for run in runs)]
                if places:
                    values = np.array([[run[at][column] for at in places] for run in runs])
                    found[column] = {
                        **({"epoch": [runs[0][at]["epoch"] for at in places]} if len(places) < length else {}),
                        "mean": values.mean(axis=0).tolist(),
                        "low": values.min(axis=0).tolist(),
                        "high": values.max(axis=0).tolist(),
                    }
            curves[variant.name] = found
        return curves

    def _correct(self) -> dict[tuple[str, int], Judged]:
        found = {}
        for variant, seed, text in zip(self.runs["variant"], self.runs["seed"], self.runs["correct"], strict=True):
            if isinstance(text, str):
                count, packed, *more = text.split(":")
                bits = np.unpackbits(np.frombuffer(base64.b64decode(packed), np.uint8), count=int(count))
                groups = [np.frombuffer(zlib.decompress(base64.b64decode(one)), "<i4") for one in more]
                found[(str(variant), int(seed))] = Judged(bits.astype(bool), *groups)
        return found


def _table(jobs: Sequence[Job], outcomes: Mapping[str, Outcome]) -> pd.DataFrame:
    """A row per planned run, in the plan's order."""
    # Names of classes and files need not be UTF-8, but those in a table do.
    numbers = {of: {printable(name): n for name, n in one["numbers"].items()} for of, one in outcomes.items()}
    names = sorted({name for found in numbers.values() for name in found})
    missing: Outcome = {"status": "missing", "error": None, "numbers": {}, "epochs": [], "correct": None, "machine": {}}
    rows = []
    for job in jobs:
        outcome, found = outcomes.get(job.fingerprint, missing), numbers.get(job.fingerprint, {})
        error = outcome["error"]
        rows.append({
            "variant": job.variant, "seed": job.seed, "status": outcome["status"],
            "error": None if error is None else printable(error),
            "run": job.name, "fingerprint": job.fingerprint,
            **{name: found.get(name) for name in names},
            "epochs": json.dumps(outcome["epochs"]), "correct": outcome["correct"],
            "machine": json.dumps(outcome["machine"]), "store": outcome.get("store"),
        })  # fmt: skip
    texts = dict.fromkeys((name for name in COLUMNS if name != "seed"), "object")
    return pd.DataFrame(rows).astype(texts | dict.fromkeys(names, "float64"))


def _settings(plan: Plan, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """The conditions under which the effects were measured, for the ledger."""
    recipe = next(job.recipe for job in plan.jobs if job.variant == plan.design.reference)
    precisions = dict.fromkeys(job.recipe.train.precision for job in plan.jobs)  # several if the study varies it
    machines = [outcomes[job.fingerprint]["machine"] for job in plan.jobs if done(outcomes, job)]
    facts: dict[str, list[Any]] = {}  # of the machines, each once
    for name, value in (fact for machine in machines for fact in machine.items()):
        if value not in facts.setdefault(name, []):
            facts[name].append(value)
    trained = {job.folder: outcomes[job.fingerprint] for job in plan.jobs if done(outcomes, job)}  # a training once
    numbers = [one["numbers"] for one in trained.values()]
    seconds = [each["training_seconds"] for each in numbers if "training_seconds" in each]
    return {
        "base": recipe.name,
        "source": recipe.data.source,
        "images": min(filter(None, (recipe.data.limit, plan.images)), default=None),
        "model": recipe.model.name,
        "width": recipe.model.width,
        "epochs": recipe.train.epochs,
        "batch_size": recipe.train.batch_size,
        "precision": " and ".join(precisions),
        "threads": plan.run_threads[0] if len(plan.run_threads) == 1 else list(plan.run_threads),
        "machine": {name: of[0] if len(of) == 1 else sorted(of, key=str) for name, of in facts.items()},
        "training_hours": sum(seconds) / 3600 if seconds else None,
    }


def _is_numeric(spec: StudySpec, design: Design, factor: str) -> bool:
    """Whether a factor's levels are numbers, rather than numbered because they have no short names of their own."""
    values = next(iter(spec.factors[factor].values()))
    return all(finite(value) is not None for value in values) and design.factors[factor] == tuple(map(str, values))


def judge(
    effect: Effect, between: tuple[float | None, float | None] | None, within: float | None
) -> tuple[Verdict, str]:
    """Compare a measured effect with a claimed one.

    confirmed   between: an effect in the claimed direction is shown, and its interval reaches the claimed size;
                within: the whole interval is inside.
    refuted     the whole interval is short of the claimed size (between), or outside (within).
    not shown   anything else: the runs do not decide.

    An interval of width 0 does not decide on a claim of no difference in a metric that counts images: a variant that
    loses 2 % of the images loses none of 24 with each of three seeds in 23 of 100 studies (0.98 ** 72).

    Returns:
        The verdict, and a remark such as `smaller than claimed`.
    """
    if math.isnan(effect.low):
        return "not shown", "no interval"
    none = effect.neutral
    if within is not None:
        counted = metric(effect.metric).unit == "points" and not effect.metric.endswith("sparsity")
        if counted and effect.low == effect.high:
            return "not shown", "all pairs differ by the same number of images"
        if none - within <= effect.low and effect.high <= none + within:
            return "confirmed", ""
        if effect.low > none + within or effect.high < none - within:
            return "refuted", "a larger difference"
        return "not shown", "the interval is wider than the claim"
    assert between is not None
    low, high = between
    sign = 1 if (none if low is None else low) >= none and (high is None or high > none) else -1
    # From here on everything is seen in the claimed direction: `least` is the claimed minimum, `most` its maximum.
    least, most = (low, high) if sign > 0 else (high, low)
    least = sign * (none if least is None else least)
    short, reach = sorted((sign * effect.low, sign * effect.high))
    estimate, none = sign * effect.estimate, sign * none
    if reach < least:
        how = "smaller than claimed" if estimate >= none else "the opposite"
        return "refuted", how if effect.shown else "not of that size"
    if effect.shown and estimate >= none:
        if most is not None and short > sign * most:
            return "confirmed", "larger than claimed"
        return "confirmed", "" if estimate >= least else "at the low end"
    clear = short > none or reach < none
    return "not shown", "not certain after Holm's correction" if clear and not effect.shown else ""
