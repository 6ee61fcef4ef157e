"""Steps after training, by themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kitae import keyed
from kitae.experiments.after import robustness
from kitae.pipelines.robustness import CORRUPTIONS, corrupted
from kitae.pipelines.setup import Setup
from kitae.run import Run
from tests.runs import small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("after") / "run")


def test_robustness_is_the_accuracy_on_corrupted_test_images(run: Run, tmp_path: Path) -> None:
    images = 50
    found = robustness(run, tmp_path, images=images)
    assert run.openings()[-1]["why"] == "study, robustness"
    setup = Setup.of(run)
    rows = setup.splits.open_test(lambda: None)
    rows = np.sort(rows[keyed.permutation(run.recipe.data.split_seed, 2, len(rows), keyed.SLOT_SPLIT)[:images]])
    pixels, labels = setup.image_set(rows).gather(rows)
    predictor = run.predictor(tta="none")
    kinds: dict[str, list[float]] = {}
    for name, (kind, severities, *_) in CORRUPTIONS.items():
        each = [predictor.predict(corrupted(name, severity, pixels, rows)).labels == labels for severity in severities]
        kinds.setdefault(kind, []).append(float(np.mean(each)))
        if name not in ("noise", "occlusion"):  # as numbers these are the whole kind
            assert found[f"{name}_accuracy"] == pytest.approx(kinds[kind][-1])
    for kind, values in kinds.items():
        assert found[f"{kind}_accuracy"] == pytest.approx(np.mean(values))
    assert found["mean_accuracy"] == pytest.approx(np.mean([value for values in kinds.values() for value in values]))


@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_the_batch_does_not_matter_to_robustness(
    run: Run, tmp_path: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, _, *rest = CORRUPTIONS["noise"]
    monkeypatch.setitem(CORRUPTIONS, "noise", (kind, (0.3, 0.5, 0.8), *rest))  # so strong that any other noise shows
    expected = robustness(run, tmp_path, images=60)
    other = Run.open(run.path)
    other.recipe = run.recipe.override(f"evaluate.batch_size={batch_size}")
    assert robustness(other, tmp_path, images=60) == expected
