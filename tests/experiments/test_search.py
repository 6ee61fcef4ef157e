"""Policy search on a stand-in for training: presets first, halving, resumable, and an honest verdict."""

from __future__ import annotations

import html
import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("optuna")

import kitae as kt
from kitae import console
from kitae.cli import research
from kitae.console import rough_duration
from kitae.data.spec import DataSpec
from kitae.data.splits import make_splits
from kitae.data.store import open_store
from kitae.errors import RecipeError, TrainingError
from kitae.experiments.executors import Inline
from kitae.experiments.search import FRESH_SEED, _verdict, search
from kitae.experiments.search_result import Arm, SearchResult
from kitae.experiments.space import PRESETS, SUBSET, apply, suggest
from kitae.experiments.study import study
from kitae.recipe import Recipe
from tests.experiments import fake_train
from tests.refusals import refused, unchanged

FAKE = {
    "train": "tests.experiments.fake_train:search_train",
    "measure": "tests.experiments.fake_train:search_measure",
}


def run(folder: Path, *overrides: str, **options: Any) -> Any:
    options = {"executor": Inline(), "arms": 24, **FAKE, **options}
    return search("fashion-mini", folder, "train.epochs=9", *overrides, **options)


def make_images(folder: Path, classes: Sequence[str], sizes: Sequence[tuple[int, int]], mode: str = "RGB") -> str:
    """A source of images of these sizes."""
    for name, (number, size) in itertools.product(classes, enumerate(sizes)):
        file = folder / name / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, color=(number, 20 * number, 0)).convert(mode).save(file)
    return f"data.source=folder:{folder}"


def test_presets_are_the_first_arms_and_rungs_are_thirds(tmp_path: Path) -> None:
    result = run(tmp_path / "s")
    assert [arm.name for arm in result.arms[: len(PRESETS)]] == list(PRESETS)
    assert len(result.arms) == 24
    assert result.arms[0].recipe.augment == Recipe.load("fashion-mini").augment
    assert {tuple(epochs for epochs, _, _ in arm.rungs) for arm in result.arms} <= {(1,), (1, 3), (1, 3, 9)}
    assert all(loss == pytest.approx(1 - score) for arm in result.arms for _, score, loss in arm.rungs)
    complete = [arm for arm in result.arms if arm.state == "complete"]
    assert result.best in complete
    assert all(arm.state == "complete" for arm in result.arms if arm.preset)
    assert 0 < sum(not arm.preset for arm in complete) < 9  # halving leaves few to the full length
    assert all(arm.recipe.train.seed == 0 for arm in result.arms)


def test_ties_go_to_the_lower_loss_then_the_later_arm() -> None:
    recipe = Recipe.load("fashion-mini")

    def arm(number: int, *rungs: tuple[int, float, float | None]) -> Arm:
        return Arm(number=number, name=f"searched {number}", point={}, recipe=recipe, rungs=rungs, state="complete")

    ranked = [
        arm(9), arm(0, (1, 0.9, 0.1)), arm(1, (1, 0.5, 1.0), (3, 0.7, 0.2)), arm(7, (1, 0.5, 1.0), (3, 0.8, None)),
        arm(6, (1, 0.5, 1.0), (3, 0.8, 0.6)), arm(4, (1, 0.5, 1.0), (3, 0.8, 0.5)),
        arm(5, (1, 0.5, 1.0), (3, 0.8, 0.5)),
    ]  # fmt: skip
    backwards = ranked[::-1]
    assert sorted(backwards, key=lambda arm: arm.standing) == ranked
    assert max(backwards, key=lambda arm: arm.standing).number == 5


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1"])
def test_arms_are_judged_by_what_selects_epochs(metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SUBSET", "0.05")
    seed = f"train.seed={FRESH_SEED + 1}"  # which the rematch leaves out
    options: dict[str, Any] = {"arms": 40, "rematch_seeds": 3}
    result = run(tmp_path / "s", f"train.select=val_{metric}", seed, threads=1, **options)
    assert result.metric == result.rematch.spec.metric == f"val.{metric}"
    assert max(score for arm in result.arms for _, score, _ in arm.rungs) < 0.5
    assert result.rematch.spec.seeds == (FRESH_SEED, FRESH_SEED + 2, FRESH_SEED + 3)
    lines: list[str] = []
    again = run(tmp_path / "s", f"train.select=val_{metric}", seed, threads=2, report=lines.append, **options)
    assert any(line.startswith("threads: 2 is ignored") for line in lines)
    assert again.rematch.settings["threads"] == 1


def test_a_search_that_finds_something_wins_on_fresh_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SUBSET", "0.05")
    result = run(tmp_path / "s", arms=40)
    assert result.verdict.startswith("The search won: +")
    assert any(set(SUBSET) & set(op) for op in result.winner.augment.train)
    assert result.rematch.spec.seeds == tuple(range(FRESH_SEED, FRESH_SEED + 5))
    asked, fresh = Recipe.load("fashion-mini").data, DataSpec.model_validate(result.rematch.spec.base["data"])
    store = open_store(asked)
    first, second = make_splits(store, asked), make_splits(store, fresh)
    assert first.open_test(lambda: None).tolist() == second.open_test(lambda: None).tolist()
    assert len(set(first.val) & set(second.val)) < len(first.val) / 2
    assert result.winner.data == asked
    assert "its own validation" not in result.verdict
    assert Recipe.load(tmp_path / "s" / "winner.yaml") == result.winner
    content = json.loads((tmp_path / "s" / "search.json").read_text())
    assert content["verdict"] == result.verdict
    assert "The search won" in result.table()
    opened = kt.load(tmp_path / "s")
    assert isinstance(opened, SearchResult)
    assert (opened.arms, opened.best, opened.preset) == (result.arms, result.best, result.preset)
    assert opened.winner == result.winner
    assert opened.rematch is not None
    assert opened.rematch.effects.equals(result.rematch.effects)
    assert opened.data() == result.data() == content
    assert repr(result) == (
        f"SearchResult({tmp_path / 's'}: 40 arms, best {result.best.name!r} with val.accuracy "
        f"{console.percent(result.best.rungs[-1][1])}; The search won)"
    )
    shown = result._repr_html_()
    assert html.escape(result.verdict) in shown
    assert shown.index(f">{result.best.name}<") < shown.index(f">{result.preset.name}<")
    table = result.to_pandas()
    assert list(table.columns) == ["name", "preset", "state", "epochs", "score", "loss", "ops"]
    assert list(table["name"]) == [arm.name for arm in result.arms]
    assert table["score"][result.best.number] == result.best.rungs[-1][1]


def test_a_search_is_a_table_for_programs_and_text_for_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(tmp_path / "s", arms=len(PRESETS) + 1)
    monkeypatch.setattr("kitae.experiments.search.search", lambda *_, **__: result)
    research.search("fashion-mini")
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    head, *rows = lines[next(place for place, line in enumerate(lines) if line[0] == "arm") :]
    assert head == ["arm", "epochs", "val.accuracy", "state", "ops"]
    assert [len(row) for row in rows[: len(PRESETS) + 1]] == [5] * (len(PRESETS) + 1)
    assert [result.verdict] in rows
    monkeypatch.setattr(console, "interactive", lambda: True)
    research.search("fashion-mini")
    assert result.table() + "\n" in capsys.readouterr().out


def test_fields_are_set_as_in_training_and_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"executor": Inline(), "arms": len(PRESETS) + 1, **FAKE}
    optuna = pytest.importorskip("optuna")
    monkeypatch.setattr(optuna.logging, "get_verbosity", lambda: 17)
    levels: list[int] = []
    monkeypatch.setattr(optuna.logging, "set_verbosity", levels.append)
    numbers: dict[str, Any] = {"seed": np.int64(0), "rematch_seeds": np.int64(5), "threads": np.int64(1)}
    result = search("fashion-mini", set={"train.epochs": 9, "train.seed": 3}, **options, **numbers)
    assert levels == [optuna.logging.WARNING, 17]  # the user's own, in a notebook
    assert result.path == Path("runs/search")
    assert (result.winner.train.epochs, result.winner.train.seed) == (9, 3)
    again = search("fashion-mini", None, "train.epochs=9", set="train.seed=3", threads=1, **options)
    assert again == SearchResult.open(again.path)
    assert again.data() == result.data(), "resumed"
    refused(RecipeError, "set takes texts", search, "fashion-mini", set=[3], **options)
    # Data are searched with a shipped recipe in length and model.
    make_images(tmp_path / "photos", ("cat", "dog"), [(28, 28)] * 12)
    found = search(tmp_path / "photos", tmp_path / "of photos", "train.epochs=1", **options).winner
    usual = Recipe.load("fashion-mini").override("train.epochs=1")
    assert found.data.source == f"folder:{tmp_path / 'photos'}"
    assert (found.model, found.train.optimizer) == (usual.model, usual.train.optimizer)


def test_a_search_that_is_damaged_or_not_finished_is_not_opened(tmp_path: Path) -> None:
    result = run(tmp_path / "s", arms=len(PRESETS) + 1)
    file = tmp_path / "s" / "search.json"
    content = json.loads(file.read_text())
    assert kt.load(tmp_path / "s").data() == result.data() == content
    changed: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "it has no metric"), ({**content, "format": 9}, "newer version"), ({**content, "best": 99}, "damaged"),
        ({**content, "arms": [{"number": 0}]}, "damaged"), ({**content, "winner": {"train": 3}}, "damaged"),
    )  # fmt: skip
    for wrong, why in changed:
        file.write_text(json.dumps(wrong))
        refused(TrainingError, rf"search\.json.*{why}", kt.load, tmp_path / "s")
    file.unlink()
    refused(TrainingError, r"no finished search there \(it has no search\.json\)", kt.load, tmp_path / "s")


def test_a_source_with_its_own_validation_images_is_judged_by_them_and_the_verdict_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SUBSET", "0.05")
    monkeypatch.chdir(tmp_path)  # the stand-in's noise depends on the recipe, which names the folder
    for split in ("train", "val", "test"):
        make_images(tmp_path / "images" / split, ("cat", "dog"), [(8, 8)] * 3, "L")
    result = run(tmp_path / "s", "data.source=folder:images", arms=40)
    assert result.rematch is not None
    assert "val_seed" not in result.rematch.spec.base["data"]
    assert "its own validation images" in result.verdict


@pytest.mark.parametrize(("sizes", "side"), [([(96, 128), (128, 96)], 64), ([(20, 30), (30, 20)], 25)])
def test_images_of_several_sizes_are_searched_at_one(sizes: list[tuple[int, int]], side: int, tmp_path: Path) -> None:
    source = make_images(tmp_path / "images", ("cat", "dog"), sizes * 6)
    lines: list[str] = []
    result = run(tmp_path / "s", source, "data.resize=pad", report=lines.append, arms=len(PRESETS) + 1)
    assert (result.winner.data.image_size, result.winner.data.resize) == (side, "pad")
    assert lines[0] == f"data.image_size: searching with {side} pixels"


def test_a_search_that_found_luck_says_so(tmp_path: Path) -> None:
    result = run(tmp_path / "s")
    assert result.verdict.startswith("The search did not win: ")
    assert result.winner.augment == result.preset.recipe.augment
    assert result.preset.name in result.verdict


def test_an_arm_that_is_a_preset_again_is_no_opponent_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = PRESETS["rand_augment"]  # the best with this seed

    def again(trial: Any) -> dict[str, Any]:
        point = suggest(trial)
        return point if trial.number < len(PRESETS) else {**preset, "erasing": 0.004, "smoothing": 0.0001}

    monkeypatch.setattr("kitae.experiments.search.suggest", again)
    result = run(tmp_path / "s", "train.seed=3")
    assert any(arm.recipe == result.preset.recipe for arm in result.arms if not arm.preset and arm.state == "complete")
    assert (result.best.name, result.rematch) == ("rand_augment", None)
    assert result.verdict.startswith("The search did not win: no searched setting was better than the preset")


def test_the_opponent_is_the_best_preset_at_the_full_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SUBSET", "0.08")
    monkeypatch.setenv("FAKE_LATE", "yes")
    result = run(tmp_path / "s", arms=40)
    assert result.preset.name == "auto_augment"
    assert result.rematch is not None
    assert "auto_augment" in result.rematch.spec.base["augment"]["train"][-1]


@pytest.mark.parametrize(
    ("failing", "verdict"),
    [
        ("seed 1000 1001", r"The search won: \+.* in the rematch on 3 of 5 fresh seeds, interval"),
        (
            "seed 1000 1001 1002 1003",
            r"The rematch could not be decided: 8 of its 10 runs failed \(out of memory\)\. Use the preset",
        ),
    ],
)
def test_failed_runs_of_the_rematch_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, verdict: str
) -> None:
    monkeypatch.setenv("FAKE_SUBSET", "0.05")
    monkeypatch.setenv("FAKE_FAIL_RUNS", failing)
    result = run(tmp_path / "s", arms=40)
    assert re.match(verdict, result.verdict)
    assert "nan" not in result.verdict
    winner = {name for op in result.winner.augment.train for name in op}
    assert bool(winner & set(SUBSET)) == result.verdict.startswith("The search won")


@pytest.mark.parametrize(("estimate", "words"), [(0.0, "both scored alike"), (0.4, r"the difference was the same \(")])
def test_equal_differences_on_two_seeds_are_no_failure(estimate: float, words: str) -> None:
    effect = SimpleNamespace(low=math.nan, estimate=estimate, ratio=False, metric="val.accuracy")
    rematch = SimpleNamespace(analyses={"m": SimpleNamespace(effects=[effect])}, failed=[], runs=[1] * 4, added=())
    preset = SimpleNamespace(name="p", recipe=Recipe())
    verdict, won = _verdict(rematch, "m", preset, 2)
    assert not won
    assert re.search(f"{words}.*on all 2 seeds", verdict)
    assert "failed" not in verdict


def test_where_all_presets_failed_the_search_says_why_each_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAIL_RUNS", "without subset")
    lines: list[str] = []
    refused(TrainingError, "every preset failed", run, tmp_path / "s", arms=40, report=lines.append)
    assert "own: failed at 1 epoch: out of memory" in lines


@pytest.mark.parametrize("rotation", ["0", "0.05"])
def test_the_winner_keeps_no_machine_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rotation: str) -> None:
    monkeypatch.setenv("FAKE_SUBSET", rotation)
    result = run(tmp_path / "s", "train.early_stopping.patience=3", arms=40)
    for winner in (result.winner, Recipe.load(tmp_path / "s" / "winner.yaml")):
        assert winner.train.precision == "auto"
        assert winner.train.threads is None
        assert winner.train.early_stopping is not None


def test_a_search_that_was_cut_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SUBSET", "0.05")
    run(tmp_path / "whole")

    class Stops(Inline):
        left = 17

        def outcomes(self, units: Any) -> Any:
            for outcome in super().outcomes(units):
                Stops.left -= 1
                if not Stops.left:
                    raise KeyboardInterrupt
                yield outcome

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", executor=Stops())
    run(tmp_path / "cut")
    before, after = ((tmp_path / name / "search.json").read_text() for name in ("whole", "cut"))
    assert before == after
    assert {len(path.read_text()) for path in (tmp_path / "cut" / "arms").glob("*/trained")} == {1}


def test_seeds_that_were_added_to_the_rematch_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of the rematch says how to add seeds; the search is then resumed with them."""
    monkeypatch.setenv("FAKE_SUBSET", "0.05")
    rematch = run(tmp_path / "s", rematch_seeds=2).rematch
    seeds = [*rematch.spec.seeds, 2000]
    study(rematch.path / "study.yaml", rematch.path, f"study.seeds={seeds}", **{"executor": Inline(), **FAKE})
    again = run(tmp_path / "s", rematch_seeds=2)
    assert again.rematch.spec.seeds == tuple(seeds)
    assert "on 3 fresh seeds" in again.verdict
    assert "Seeds 2000 were added" in again.verdict
    assert kt.load(tmp_path / "s").verdict == again.verdict


def test_the_folder_is_taken_until_the_rematch_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SUBSET", "0.05")
    met: list[bool] = []

    def also_here(line: str) -> None:
        if line.startswith("Study rematch"):
            refused(TrainingError, "another process", run, tmp_path / "s", overwrite=True)
            met.append(True)

    run(tmp_path / "s", arms=40, report=also_here)
    assert met == [True]


def test_an_arm_that_is_tried_again_may_change_the_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SUBSET", "0.05")
    whole = run(tmp_path / "whole", arms=40)
    monkeypatch.setenv("FAKE_FAIL", whole.preset.recipe.fingerprint)
    first = run(tmp_path / "s", arms=40)
    assert first.preset.name != whole.preset.name
    monkeypatch.delenv("FAKE_FAIL")
    second = run(tmp_path / "s", arms=40)
    assert second.preset.name == whole.preset.name
    assert second.rematch.path != first.rematch.path
    assert first.rematch.path.is_dir()


def test_a_search_says_how_long_it_takes_also_when_resumed(tmp_path: Path) -> None:
    lines: list[str] = []
    run(tmp_path / "s", report=lines.append)
    presets = len(PRESETS) * (1 + 3 + 9)
    others = (24 - len(PRESETS)) * (1 + 3 / 3 + 9 / 9)
    seconds = fake_train.search_measure(Recipe.load("fashion-mini"))["seconds_per_epoch"]
    arms, alone, rematch = (rough_duration(seconds * n) for n in (presets + others, presets, 2 * 5 * 9))
    assert all(part in lines[1] for part in (f"about {arms}", f"({alone}", f"{rematch} for the rematch"))
    again: list[str] = []
    run(tmp_path / "s", report=again.append)
    assert again[1] == lines[1]


def test_a_search_is_not_resumed_on_other_images(tmp_path: Path) -> None:
    run(tmp_path / "s", arms=8)
    for file in (tmp_path / "s" / "arms").glob("*.json"):
        content = json.loads(file.read_text())
        assert content["store"]
        file.write_text(json.dumps({**content, "store": "of other images"}))
    refused(TrainingError, r"the images of fashion-mini have changed .* or --overwrite$", run, tmp_path / "s", arms=8)


def test_another_search_takes_the_folder_only_when_asked_to(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    run(folder)
    another = r"holds another search \(arms was 24, is 25\).* or --overwrite$"
    refused(TrainingError, another, run, folder, arms=25)
    (folder / "arms" / "old.json").write_text("{}")
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "photo.jpg").write_bytes(b"")
    with unchanged(tmp_path):  # a mistake costs nothing, and no lock is left in a folder that is not ours
        refused(RecipeError, "arms: 7 leaves nothing to search", run, tmp_path / "t", arms=7)
        refused(RecipeError, "rematch_seeds: 1 gives the verdict no interval", run, tmp_path / "t", rematch_seeds=1)
        refused(RecipeError, r"data\.folds: a search compares runs that have", run, tmp_path / "t", "data.folds=5")
        refused(RecipeError, r"train\.epochs: 0 leaves nothing to compare", run, tmp_path / "t", "train.epochs=0")
        refused(RecipeError, "epochs", run, folder, "train.epochs=-1", overwrite=True)
        refused(TrainingError, r"photo\.jpg.* choose another --out", run, strange)
    assert len(run(folder, arms=10, overwrite=True).arms) == 10
    assert not (folder / "arms" / "old.json").exists()
    (folder / "mine.txt").write_text("notes")
    refused(TrainingError, r"mine\.txt.* choose another --out", run, folder, overwrite=True)
    assert (folder / "search.json").is_file()
    file = folder / "search.yaml"
    file.write_text(file.read_text().replace("numerics: 3\n", ""))  # of a version that trains differently
    refused(TrainingError, r"version of Kitae.*--overwrite$", run, folder, arms=10)


@pytest.mark.parametrize(
    ("size", "crop", "policy"),
    [
        (28, {"random_crop": {"padding": 3}}, "cifar10"), (95, {"random_crop": {"padding": 11}}, "cifar10"),
        (96, {"random_resized_crop": {}}, "imagenet"), (224, {"random_resized_crop": {}}, "imagenet"),
    ],
)  # fmt: skip
def test_the_search_space_follows_the_size_of_the_images(size: int, crop: dict[str, Any], policy: str) -> None:
    base = Recipe.load("fashion-mini")
    flip, auto = {"horizontal_flip": {}}, {"auto_augment": {"policy": policy}}
    assert list(apply(base, PRESETS["auto_augment"], size).augment.train) == [crop, flip, auto]
    assert apply(base, PRESETS["own"], size) == base


def test_every_point_of_the_space_is_a_valid_recipe() -> None:
    import optuna

    base = Recipe.load("fashion-mini")
    space = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen: set[str] = set()
    for _ in range(200):
        recipe = apply(base, suggest(space.ask()), 28)
        seen |= {name for op in recipe.augment.train for name in op}
    assert set(SUBSET) | {"rand_augment", "auto_augment", "trivial_augment_wide", "random_crop"} <= seen
    for point in PRESETS.values():
        apply(base, point, 28)
