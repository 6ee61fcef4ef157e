"""Claims against what was measured."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kitae.experiments.result import judge
from kitae.reporting.effects import Effect
from tests.experiments.test_wording import effect


@pytest.mark.parametrize(
    ("given", "between", "within", "verdict", "remark"),
    [
        (effect(1.5, 1.0, 2.0), (1, 2), None, "confirmed", ""),
        (effect(0.8, 0.3, 1.3), (1, 2), None, "confirmed", "at the low end"),
        (effect(5.0, 4.0, 6.0), (1, 2), None, "confirmed", "larger than claimed"),
        (effect(0.4, 0.1, 0.7), (1, 2), None, "refuted", "smaller than claimed"),
        (effect(0.1, -0.4, 0.6, 0.9), (1, 2), None, "refuted", "not of that size"),
        (effect(-0.8, -1.3, -0.3), (1, 2), None, "refuted", "the opposite"),
        (effect(0.9, -0.1, 1.9, 0.08), (1, 2), None, "not shown", ""),
        (effect(-0.8, -1.3, -0.3), (None, 0), None, "confirmed", ""),
        (effect(0.8, 0.3, 1.3), (None, 0), None, "refuted", "the opposite"),
        (effect(0.2, -0.3, 0.7, 0.6), (None, 0), None, "not shown", ""),
        (effect(0.1, -0.4, 0.6, 0.9), None, 1.0, "confirmed", ""),
        (effect(0.1, -1.4, 0.6, 0.9), None, 1.0, "not shown", "the interval is wider than the claim"),
        (effect(2.0, 1.4, 2.6), None, 1.0, "refuted", "a larger difference"),
        (effect(0.0, 0.0, 0.0, 1.0), None, 1.0, "not shown", "all pairs differ by the same number of images"),
        (effect(0.0, 0.0, 0.0, 1.0, metric="prune.sparsity"), None, 1.0, "confirmed", ""),
        (effect(0.5, 0.4, 0.6, ratio=True), (0.33, 0.67), None, "confirmed", ""),
        (effect(0.9, 0.85, 0.95, ratio=True), (0.33, 0.67), None, "refuted", "smaller than claimed"),
        (effect(1.2, 1.1, 1.3, ratio=True), (0.33, 0.67), None, "refuted", "the opposite"),
        (effect(0.1, math.nan, math.nan, math.nan), (1, 2), None, "not shown", "no interval"),
    ],
)  # fmt: skip
def test_verdicts(given: Effect, between: Any, within: Any, verdict: str, remark: str) -> None:
    assert judge(given, between, within) == (verdict, remark)
