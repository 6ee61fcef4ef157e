"""What a plan promises is what simulated studies show."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kitae.experiments.design import expand
from kitae.experiments.plan import error_factor, seeds_for, seeds_within, smallest_effect
from kitae.experiments.stats import analyse
from kitae.experiments.study_spec import StudySpec
from tests.experiments.test_stats import METRIC, design, runs


@pytest.mark.parametrize(("count", "often"), [(1, 0.80), (3, 0.70)])
def test_the_smallest_effect_is_found_as_often_as_the_plan_says(count: int, often: float) -> None:
    made = design("compare", count)
    smallest = smallest_effect(made, 3, 0.4)
    assert smallest is not None
    rng = np.random.default_rng(16)
    truth = {variant.name: smallest if variant.name == "v1" else 0.0 for variant in made.variants}
    found = sum(analyse(runs(made, truth, 0.4, rng), made, METRIC).effects[0].shown for _ in range(500))
    assert abs(found / 500 - often) <= 0.06


@pytest.mark.parametrize("kind", ["compare", "one_out", "screening"])
def test_what_can_be_shown_allows_for_the_number_of_effects(kind: str) -> None:
    made = design(kind, 7)
    smallest, (error, df) = smallest_effect(made, 2, 0.4), error_factor(made, 2)
    assert smallest is not None
    critical = stats.t.isf(0.05 / 7 / 2, df)
    assert stats.nct.sf(critical, df, smallest / (0.4 * error)) == pytest.approx(0.8)


@pytest.mark.parametrize(("levels", "seeds"), [((3,), 2), ((2, 2, 3), 1)])
def test_a_factor_of_three_levels_has_degrees_of_freedom_wherever_its_analysis_has(
    levels: tuple[int, ...], seeds: int
) -> None:
    factors = {f"f{k}": {f"train.optimizer.x{k}": list(range(count))} for k, count in enumerate(levels)}
    made = expand(StudySpec.parse({"name": "s", "base": "b", "design": "factorial", "factors": factors}))
    rng = np.random.default_rng(0)
    truth = dict.fromkeys((variant.name for variant in made.variants), 0.0)
    effects = analyse(runs(made, truth, 0.4, rng, tuple(range(seeds))), made, METRIC).effects
    assert all(effect.df >= 1 for effect in effects)
    assert error_factor(made, seeds)[1] >= 1
    assert smallest_effect(made, seeds, 0.4) is not None


def test_the_smallest_effect_of_a_level_among_several_is_found_as_often() -> None:
    factors = {"limit": {"data.limit": [1, 2, 3, 4, 5, 6]}, "ema": {"train.ema": [None, 0.9]}}
    made = expand(StudySpec.parse({"name": "s", "base": "b", "design": "factorial", "factors": factors}))
    smallest = smallest_effect(made, 3, 0.4)
    assert smallest is not None
    rng = np.random.default_rng(30)
    truth = {variant.name: smallest if variant.levels["limit"] == 5 else 0.0 for variant in made.variants}
    found = sum(analyse(runs(made, truth, 0.4, rng), made, METRIC).effects[4].shown for _ in range(150))
    assert 0.75 <= found / 150 <= 0.95


def test_more_seeds_see_smaller_effects_and_the_needed_number_is_the_first_that_does() -> None:
    made = design("one_out", 5)
    needed = seeds_for(made, 0.5, 0.4)
    assert needed is not None
    here, fewer = smallest_effect(made, needed, 0.4), smallest_effect(made, needed - 1, 0.4)
    assert here is not None
    assert here <= 0.5
    assert fewer is None or fewer > 0.5
    assert seeds_for(made, 0.001, 0.4) is None
    assert smallest_effect(made, 1, 0.4) is None


def test_seeds_that_an_equivalence_needs() -> None:
    made = design("compare", 1)
    needed = seeds_within(made, 0.5, 0.5)
    assert needed is not None
    rng = np.random.default_rng(26)
    inside = []
    for _ in range(400):
        table = runs(made, {"v0": 0.0, "v1": 0.0}, 0.5, rng, seeds=tuple(range(needed)))
        (effect,) = analyse(table, made, METRIC).effects
        inside.append(effect.low >= -0.5 and effect.high <= 0.5)
    assert 0.72 <= np.mean(inside) <= 0.92
    assert seeds_within(made, 0.01, 0.5) is None
