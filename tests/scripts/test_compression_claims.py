"""Verdicts on claims that no study answers follow from the intervals of the committed results."""

from __future__ import annotations

import json
import math

import pytest

import compression_claims
from compression_claims import HEAD, RESULTS, rows, verdict


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.9, 0.1, "confirmed"),
        (0.5, 1.0, "confirmed"),
        (0.5, 1.1, "not shown"),
        (1.1, 3.0, "refuted"),
    ],
)
def test_a_claim_of_at_most_one_point(low: float, high: float, said: str) -> None:
    assert verdict(low, high, -math.inf, 1.0) == f"**{said}**"


def test_below_a_claimed_range_is_refuted_too() -> None:
    assert verdict(0.18, 0.2, 1.5, 2.5) == "**refuted**"


def test_every_row_has_the_numbers_of_its_result() -> None:
    found = rows()
    assert len(found) == 13
    assert all(len(row) == len(HEAD) for row in found)
    pruned = next(row for row in found if row[4] == "few")
    facts = [json.loads((RESULTS / "compression" / f"few-{seed}.json").read_text()) for seed in range(3)]
    drops = [one["drop"] for of in facts for one in of["candidates"] if one["name"] == "50 % fp32"]
    assert f"{sum(drops) / 3:+.2f} points lost" in pruned[1]
    assert "3 seeds" in pruned[3]


def test_a_drop_beyond_the_claim_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compression_claims._load

    def worse(name: str) -> dict[str, object]:
        facts = whole(name)
        for one in facts["candidates"]:
            one.update(drop=one["drop"] + 5, drop_interval=[end + 5 for end in one["drop_interval"]])
        return facts

    monkeypatch.setattr(compression_claims, "_load", worse)
    lost = [row for row in rows() if "loses" in row[0]]
    assert len(lost) == 6
    assert {row[5] for row in lost if row[4] != "few"} == {"**refuted**"}
