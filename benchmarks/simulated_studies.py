"""Do the studies' statistics keep what they promise? Simulated studies whose effects are known, also with uneven noise.

    python benchmarks/simulated_studies.py             # some ten minutes on one core
    python benchmarks/simulated_studies.py --quick     # a handful of studies: does it run?

It writes benchmarks/results/simulated_studies.json, and with --quick runs/benchmarks/simulated_studies.json.

Each row is a design, a number of seeds, and whose runs scatter how many times as much as the others'. It says how often
the 95 % interval of an effect of zero covers zero (of the noisy variant, or of all effects where the reference or a run
of a screening is noisy), how often a study in which nothing helps names a winner, how wide the intervals are, and how
often an effect of the size that the plan names is shown.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd

from kitae.experiments.design import Design, expand
from kitae.experiments.plan import smallest_effect
from kitae.experiments.stats import analyse
from kitae.experiments.study_spec import StudySpec

METRIC = "test.accuracy"
NOISE = 0.5  # points
REFERENCE, VARIANT = "the reference", "one variant"
NOISES = ((None, 1.0), (REFERENCE, 1.5), (REFERENCE, 3.0), (REFERENCE, 5.0), (VARIANT, 3.0), (VARIANT, 5.0))


def design(kind: str, effects: int) -> Design:
    """A study of so many effects."""
    study: dict[str, Any] = {"name": "simulated", "base": "cifar10-quick", "design": kind}
    if kind == "compare":
        study["variants"] = {f"v{k}": {"train.ema": 0.9 + k / 1000} for k in range(effects + 1)}
    else:
        study["factors"] = {f"f{k}": {f"model.f{k}": [0, 1]} for k in range(effects)}
    return expand(StudySpec.parse(study))


def table(made: Design, seeds: int, sds: dict[str, float], helps: dict[str, float], rng: np.random.Generator) -> Any:
    """Runs of one simulated study; what all runs of a seed share is large, as it is in real ones."""
    rows = []
    for seed in range(seeds):
        shared = rng.normal(0, 2 * NOISE)
        for variant in made.variants:
            value = 70 + shared + helps.get(variant.name, 0.0) + rng.normal(0, sds[variant.name])
            rows.append((variant.name, seed, value / 100))
    return pd.DataFrame(rows, columns=["variant", "seed", METRIC])


def simulate(made: Design, seeds: int, who: str | None, times: float, studies: int) -> dict[str, Any]:
    """Coverage, false winners, width and power of one case."""
    rng = np.random.default_rng(0)
    noisy = made.reference if who == REFERENCE else made.variants[1].name if who == VARIANT else None
    sds = {variant.name: NOISE * (times if variant.name == noisy else 1.0) for variant in made.variants}
    covered: list[bool] = []
    widths: list[float] = []
    winners = 0
    for _ in range(studies):
        effects = analyse(table(made, seeds, sds, {}, rng), made, METRIC).effects
        judged = effects[:1] if who == VARIANT and not made.regression else effects
        covered += [effect.low <= 0 <= effect.high for effect in judged]
        widths += [effect.high - effect.low for effect in effects]
        winners += any(effect.shown for effect in effects)
    found: dict[str, Any] = {
        "covered": float(np.mean(covered)),
        "false_winners": winners / studies,
        "half_width": float(np.mean(widths)) / 2 / NOISE,  # in standard deviations of a run
    }
    if who is None:
        size = smallest_effect(made, seeds, NOISE)
        assert size is not None
        name = made.effects[0]
        helps = {v.name: size * (v.levels[name] if made.regression else v.name == name) for v in made.variants}
        shown = [analyse(table(made, seeds, sds, helps, rng), made, METRIC).effects[0].shown for _ in range(studies)]
        found |= {"planned_effect": size / NOISE, "planned_effect_shown": float(np.mean(shown))}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate every case and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a handful of studies")
    parser.add_argument("--studies", type=int, default=4000, help="simulated studies a case")
    parser.add_argument("--out", type=Path, default=None, help="folder for simulated_studies.json")
    given = parser.parse_args(arguments)
    folder = given.out or (common.SCRATCH if given.quick else common.RESULTS)
    studies = 5 if given.quick else given.studies
    rows = []
    for kind, effects, seeds in (("compare", 5, 3), ("compare", 5, 5), ("compare", 11, 3), ("screening", 7, 3)):
        made = design(kind, effects)
        for who, times in NOISES:
            if kind == "screening" and who == VARIANT:
                continue  # every run informs every effect: which one is noisy makes no difference
            row = {
                "design": kind, "effects": effects, "seeds": seeds, "noisy": who, "times": times, "studies": studies,
                **simulate(made, seeds, who, times, studies),
            }  # fmt: skip
            rows.append(row)
            chance = 100 * math.sqrt(0.05 * 0.95 / studies)
            whose = "even" if who is None else f"{who} x {times:g}"
            line = f"{kind} {effects} effects, {seeds} seeds, {whose}: covers {100 * row['covered']:.1f} %, "
            line += f"false winners {100 * row['false_winners']:.1f} % (+-{chance:.1f}), "
            line += f"half width {row['half_width']:.2f} sd"
            if "planned_effect" in row:
                line += f"; {row['planned_effect']:.2f} sd are shown in {100 * row['planned_effect_shown']:.0f} %"
            print(line, flush=True)
    common.save(folder / "simulated_studies.json", {"hardware": common.hardware(), "noise": NOISE, "rows": rows})


if __name__ == "__main__":
    main()
