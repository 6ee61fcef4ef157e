"""An effect in words says no more than its interval."""

from __future__ import annotations

import math

import pytest

from kitae.reporting.effects import Effect, amount, sentence


def effect(
    estimate: float, low: float, high: float, p_holm: float = 0.01, name: str = "mixing",
    metric: str = "test.accuracy", ratio: bool = False, error: float = 0.2,
) -> Effect:  # fmt: skip
    return Effect(
        name=name, metric=metric, estimate=estimate, low=low, high=high, p=p_holm / 2, p_holm=p_holm,
        standard_error=error, df=4, pairs=3, ratio=ratio,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (effect(0.1, -0.4, 0.6, 0.9), "mixing: no difference could be shown with 3 seeds (interval -0.4 to +0.6)"),
        (effect(0.8, 0.3, 1.3), "mixing: 0.8 points better (interval +0.3 to +1.3, 3 seeds)"),
        (effect(-0.8, -1.3, -0.3), "mixing: 0.8 points worse (interval -1.3 to -0.3, 3 seeds)"),
        (
            effect(0.6, 0.1, 1.1, 0.12),
            "mixing: +0.6 points (interval +0.1 to +1.1, 3 seeds), not certain after correction for the number "
            "of comparisons (Holm p = 0.12)",
        ),
        (effect(-0.1, -0.2, -0.05, metric="test.loss"), "mixing: 0.10 better (interval -0.20 to -0.05, 3 seeds)"),
        (
            effect(-0.0004, -0.0005, -0.0003, metric="test.brier", error=0.00004),
            "mixing: 0.000400 better (interval -0.000500 to -0.000300, 3 seeds)",
        ),
        (effect(3.0, 2.0, 4.0, metric="best_epoch"), "mixing: 3.00 more (interval +2.00 to +4.00, 3 seeds)"),
        (
            effect(-5000.0, -5500.0, -4500.0, metric="prune.parameters", error=200.0),
            "mixing: 5000 better (interval -5500 to -4500, 3 seeds)",
        ),
        (effect(0.03, -0.02, 0.08, 0.5), "mixing: no difference could be shown with 3 seeds (interval -0.02 to +0.08)"),
    ],
)  # fmt: skip
def test_the_sentence_says_no_more_than_the_interval(given: Effect, words: str) -> None:
    assert sentence(given, 3) == words


def test_amounts() -> None:
    assert amount(0.84, effect(0, 0, 0)) == "+0.8 points"
    assert amount(-0.04, effect(0, 0, 0)) == "-0.04 points"
    assert amount(0.4, effect(0, 0, 0, metric="epoch_seconds", ratio=True)) == "x 0.40"
    assert amount(math.nan, effect(0, 0, 0)) == "-"
