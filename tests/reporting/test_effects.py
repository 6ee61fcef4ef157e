"""Pictures of studies and searches: drawn whole from plain values, whatever is missing in them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from kitae.reporting.effects import (
    _decimals,
    _numbers,
    draw_curves,
    draw_effects,
    draw_response,
    draw_search,
    draw_study,
    numeric_factor,
)
from tests.reporting.conftest import HOSTILE, pixels


def effect(name: str, estimate: float | None, half: float | None, **more: Any) -> dict[str, Any]:
    low, high = (None, None) if estimate is None or half is None else (estimate - half, estimate + half)
    return {"name": name, "estimate": estimate, "low": low, "high": high, "shown": False, "ratio": False, **more}


def analysis(*effects: dict[str, Any], **more: Any) -> dict[str, Any]:
    noise = {"sd": 0.4, "df": 4, "reference": "a", "reference_mean": 70.0, "reference_sd": 0.3}
    return {"unit": "points", "better": 1, "noise": noise, "effects": list(effects), **more}


def curve(values: list[float]) -> dict[str, Any]:
    bands = {"mean": values, "low": [v - 0.01 for v in values], "high": [v + 0.01 for v in values]}
    return {"epoch": list(range(1, len(values) + 1)), "val_accuracy": bands, "train_loss": bands}


def study(variants: int = 3) -> dict[str, Any]:
    names = [f"{HOSTILE[0]} {k}" for k in range(variants)]
    return {
        "name": "a study",
        "metric": "test.accuracy",
        "analyses": {"test.accuracy": analysis(effect("b", 1.0, 0.5, shown=True), effect("c", None, None))},
        "variants": [
            {
                "name": name,
                "runs": 2,
                "numbers": {"test.accuracy": {"mean": 70.0 + k, "sd": 0.1, "values": [70 + k, 71]}},
            }
            for k, name in enumerate(names)
        ],
        "curves": {name: curve([0.3, 0.5, 0.6 + 0.01 * k]) for k, name in enumerate(names)},
        "factors": {"images": [str(100 * 4**k) for k in range(variants)]},
        "numeric": ["images"],
        "levels": {name: {"images": k} for k, name in enumerate(names)},
    }


@pytest.mark.parametrize(
    "given",
    [
        analysis(effect("a", 1.0, 0.5, shown=True), effect("b", -1.0, 0.5, shown=True), effect("c", 0.1, 0.5)),
        analysis(effect(HOSTILE[0] * 20, 1.0, 0.5), effect(HOSTILE[1] * 20, None, None)),
        analysis(effect("ratio", 0.6, 0.1, ratio=True, shown=True), better=-1, unit="s"),
        analysis(effect("one seed", 1.0, None), noise={"sd": None, "df": 0}),
        analysis(effect("nan", math.nan, 1.0)),
        analysis(*(effect("a twin", float(k), 1.0) for k in range(60))),
    ],
)
def test_effects_are_drawn_whatever_is_known(given: dict[str, Any], tmp_path: Path) -> None:
    path = draw_effects(given, "test.accuracy", tmp_path / "e.png")
    image = pixels(path)
    assert image.shape[1] == 960
    assert image.min() < 100  # something is drawn


def test_helping_and_hurting_have_their_colours(tmp_path: Path) -> None:
    def share(colour: tuple[int, int, int], given: dict[str, Any]) -> int:
        image = pixels(draw_effects(given, "x", tmp_path / "e.png"))[..., :3].astype(int)
        return int((abs(image - colour).sum(axis=-1) < 30).sum())

    blue, red = (0, 114, 178), (213, 94, 0)
    up = analysis(effect("a", 1.0, 0.5, shown=True))
    assert share(blue, up) > 100 > share(red, up)
    less_is_better = analysis(effect("a", 1.0, 0.5, shown=True), better=-1)
    assert share(red, less_is_better) > 100 > share(blue, less_is_better)
    neither = analysis(effect("a", 1.0, 0.5, shown=True), better=0)
    assert share(blue, neither) == share(red, neither) == 0
    unsure = analysis(effect("a", 1.0, 0.5))
    assert share(blue, unsure) == share(red, unsure) == 0


def test_small_numbers_have_room_for_their_decimals(tmp_path: Path) -> None:
    small = effect("a", -0.00034, 0.00012, standard_error=0.00005)
    assert _numbers(small, _decimals(small)) == "-0.000340  (-0.000460 to -0.000220)"
    image = pixels(draw_effects(analysis(small, unit=""), "val.brier", tmp_path / "e.png"))
    assert image[:, -6:, :3].min() > 250, "nothing is cut at the right edge"


@pytest.mark.parametrize("variants", [1, 3, 12])
def test_curves(variants: int, tmp_path: Path) -> None:
    assert pixels(draw_curves(study(variants), tmp_path / "c.png")).shape[1] == 960


def test_curves_without_a_column_or_a_variant(tmp_path: Path) -> None:
    data = study()
    first, second, _ = data["curves"]
    data["curves"][first] = {"epoch": []}
    del data["curves"][second]["train_loss"]
    draw_curves(data, tmp_path / "c.png")


def test_response_needs_a_factor_of_numbers(tmp_path: Path) -> None:
    data = study(4)
    assert numeric_factor(data) == "images"
    assert pixels(draw_response(data, tmp_path / "r.png")).shape[1] == 960
    data["numeric"] = []  # levels without a short name are called 0, 1, 2, ...
    assert numeric_factor(data) is None
    with pytest.raises(ValueError, match="no factor"):
        draw_response(data, tmp_path / "r.png")


def test_a_study_draws_what_it_has(tmp_path: Path) -> None:
    assert set(draw_study(study(), tmp_path)) == {"effects", "curves", "response"}
    data = study()
    data["curves"] = {name: {"epoch": []} for name in data["curves"]}
    data["factors"], data["numeric"] = {}, []
    data["analyses"]["test.accuracy"]["effects"] = [effect("b", None, None)]
    assert draw_study(data, tmp_path / "empty") == {}


def test_search_history(tmp_path: Path) -> None:
    arms = [
        {
            "number": k,
            "preset": k < 3,
            "state": "pruned",
            "rungs": [[1, 0.5], [3, 0.6], [9, 0.7 + k / 100]][: 1 + k % 3],
        }
        for k in range(12)
    ]
    arms.append({"number": 12, "preset": False, "state": "failed", "rungs": []})
    assert pixels(draw_search({"arms": arms}, tmp_path / "s.png")).shape[1] == 960
