"""Designs: orthogonal, balanced, with the right aliases, and the effects they promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kitae.errors import RecipeError
from kitae.experiments.design import alias_table, expand, hadamard, plackett_burman
from kitae.experiments.study_spec import StudySpec
from tests.refusals import refused

FACTORS: dict[str, Any] = {
    "smoothing": {"train.label_smoothing": [0.0, 0.1]},
    "ema": {"train.ema": [None, 0.99]},
    "decay": {"train.optimizer.weight_decay": [0.0, 5.0e-4]},
}


def spec(**fields: Any) -> StudySpec:
    return StudySpec.parse({"name": "s", "base": "fashion-mini", **fields})


def test_hadamard_matrices_have_orthogonal_rows() -> None:
    for order in (2, *range(4, 49, 4)):
        h = hadamard(order).astype(int)
        assert set(np.unique(h)) <= {-1, 1}
        np.testing.assert_array_equal(h @ h.T, order * np.eye(order, dtype=int))


def test_screening_designs_are_balanced_and_orthogonal() -> None:
    for factors in range(1, 48):
        design = plackett_burman(factors).astype(int)
        runs = len(design)
        assert runs % 4 == 0
        assert runs - 4 <= factors < runs
        np.testing.assert_array_equal(design.T @ design, runs * np.eye(factors, dtype=int))
        np.testing.assert_array_equal(design.sum(axis=0), 0)
        assert (design[0] == -1).all()  # the run with everything off


def test_twelve_runs_are_the_design_that_plackett_and_burman_published() -> None:
    # Their generator for N = 12, rotated, and a row of minuses: the same set of rows up to the order of columns and
    # signs has the same aliasing, 1/3 in size everywhere.
    table = alias_table(plackett_burman(11), tuple("abcdefghijk"))
    sizes = {round(abs(c), 6) for row in table.values() for c in row.values()}
    assert sizes == {round(1 / 3, 6)}
    assert all(len(row) == 45 for row in table.values())  # every pair of the ten others


def test_foldover_clears_main_effects_of_interactions() -> None:
    """Four factors in eight runs are clear already: the design is its own mirror image, which is not run twice."""
    for factors in (3, 4, 5, 6, 7, 8, 11, 13, 19, 23, 30, 43, 47):  # some designs that are full, and some that are not
        names = tuple(str(k) for k in range(factors))
        plain, folded = plackett_burman(factors), plackett_burman(factors, foldover=True)
        assert any(alias_table(plain, names).values()) == (factors != 4)
        assert len(folded) == len(plain) * (1 if factors == 4 else 2)
        assert not any(alias_table(folded, names).values())


def test_the_alias_table_predicts_what_an_interaction_does_to_a_main_effect() -> None:
    design = plackett_burman(7).astype(float)
    names = tuple("abcdefg")
    interaction = 3.0  # half the difference between the effect of a with b on and off
    y = 0.5 * interaction * design[:, 0] * design[:, 1]
    effects = {name: 2 * float(design[:, k] @ y) / len(design) for k, name in enumerate(names)}
    for name, row in alias_table(plackett_burman(7), names).items():
        assert effects[name] == pytest.approx(interaction * row.get(("a", "b"), 0.0))


def test_one_out_and_one_in() -> None:
    out = expand(spec(design="one_out", factors=FACTORS))
    assert [v.name for v in out.variants] == ["all", "without smoothing", "without ema", "without decay"]
    assert out.reference == "all"
    assert out.variants[0].overrides["train.label_smoothing"] == 0.1
    assert out.variants[1].overrides == {
        "train.label_smoothing": 0.0, "train.ema": 0.99, "train.optimizer.weight_decay": 5.0e-4,
    }  # fmt: skip
    assert [(c.name, c.plus, c.minus) for c in out.contrasts][1] == ("ema", "all", "without ema")
    into = expand(spec(design="one_in", factors=FACTORS))
    assert [v.name for v in into.variants] == ["none", "only smoothing", "only ema", "only decay"]
    assert next((c.name, c.plus, c.minus) for c in into.contrasts) == ("smoothing", "only smoothing", "none")


def test_compare_takes_the_first_variant_or_the_named_one_as_reference_and_further_contrasts() -> None:
    variants = {"none": {}, "mixup": {"train.label_smoothing": 0.1}, "cutmix": {"train.label_smoothing": 0.2}}
    design = expand(spec(design="compare", variants=variants, contrasts={"c over m": ["cutmix", "mixup"]}))
    assert [(c.name, c.plus, c.minus) for c in design.contrasts] == [
        ("mixup", "mixup", "none"), ("cutmix", "cutmix", "none"), ("c over m", "cutmix", "mixup"),
    ]  # fmt: skip
    named = expand(spec(design="compare", variants=variants, reference="mixup"))
    assert [c.name for c in named.contrasts] == ["none", "cutmix"]


def test_sweep_names_levels_by_their_values() -> None:
    design = expand(spec(design="sweep", factors={"smoothing": {"train.label_smoothing": [0.0, 0.05, 0.1]}}))
    assert [v.name for v in design.variants] == ["smoothing=0.0", "smoothing=0.05", "smoothing=0.1"]
    assert [c.minus for c in design.contrasts] == ["smoothing=0.0"] * 2


def test_factorial_crosses_all_levels() -> None:
    design = expand(spec(design="factorial", factors=THREE_LEVELS))
    assert len(design.variants) == 6
    assert design.variants[0].name == "images=10, ema=none"
    assert len({tuple(v.overrides.values()) for v in design.variants}) == 6
    for effect in ("images=20", "images=40", "ema", "images=40 x ema"):  # a claim may be about any of these
        assert effect in expand(spec(design="factorial", factors=THREE_LEVELS, claims=helps(effect))).effects


def test_screening_of_three_factors_takes_four_variants_that_differ() -> None:
    design = expand(spec(design="screening", factors=FACTORS))
    assert next(v.name for v in design.variants) == "none"
    assert len(design.variants) == 4
    assert len({v.name for v in design.variants}) == 4
    assert set(design.aliases["smoothing"]) == {("ema", "decay")}


def test_all_fields_of_a_factor_move_together() -> None:
    factors = {"schedule": {"train.schedule.name": ["constant", "cosine"], "train.schedule.warmup_epochs": [0, 1]}}
    design = expand(spec(design="factorial", factors=factors))
    assert [dict(v.overrides) for v in design.variants] == [
        {"train.schedule.name": "constant", "train.schedule.warmup_epochs": 0},
        {"train.schedule.name": "cosine", "train.schedule.warmup_epochs": 1},
    ]


def switches(count: int) -> dict[str, Any]:
    return {f"f{k}": {f"x.f{k}": [0, 1]} for k in range(count)}


def helps(effect: str) -> dict[str, Any]:
    return {"c": {"says": "helps", "effect": effect, "between": [0.5, 1]}}


THREE_LEVELS = {"images": {"data.limit": [10, 20, 40]}, "ema": {"train.ema": [None, 0.99]}}


@pytest.mark.parametrize(
    ("design", "factors", "claims", "words"),
    [
        ("factorial", switches(14), {}, "screening needs far fewer"),
        ("screening", switches(48), {}, "factors: screening takes at most 47, 48 given"),
        ("one_in", FACTORS, helps("smothing"), r"claims\.c\.effect: unknown 'smothing'; valid: .*smoothing"),
        ("factorial", THREE_LEVELS, helps("images"), "unknown 'images'; valid: images=20, images=40, ema, "),
    ],
)
def test_designs_and_claims_that_cannot_be(design: str, factors: Any, claims: Any, words: str) -> None:
    refused(RecipeError, words, expand, spec(design=design, factors=factors, claims=claims))
