"""Accuracy of a trained run on corrupted images."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from kitae.cli.start import evaluate
from kitae.errors import RecipeError
from kitae.experiments.after import robustness as step
from kitae.pipelines.robustness import CORRUPTIONS, classified, corrupted, robustness
from kitae.pipelines.setup import Setup
from kitae.run import Run
from tests.refusals import refused
from tests.runs import small_run


@pytest.mark.parametrize("shape", [(32, 32), (64, 256), (256, 64), (16, 256)])
def test_corruptions_fit_images_that_are_not_square(shape: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 100, (2, 3, *shape), np.uint8)
    for name, (_, severities, *_rest) in CORRUPTIONS.items():
        for severity in severities:
            worse = corrupted(name, severity, images, np.arange(2))
            assert (worse.shape, worse.dtype) == (images.shape, np.uint8), name
    covered = (corrupted("occlusion", 0.5, images, np.arange(2)) == 128).all(axis=(0, 1))
    rows, columns = (np.flatnonzero(covered.any(axis=axis)) for axis in (1, 0))
    assert len(rows) == len(columns) == min(shape) // 2
    assert rows[0] + rows[-1] == shape[0] - 1, "in the centre"
    assert columns[0] + columns[-1] == shape[1] - 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("robustness") / "run")


def test_one_run_is_measured_as_those_of_a_study_are(run: Run) -> None:
    found = robustness(run, images=50)
    assert run.openings()[-1]["why"] == "evaluate, robustness"
    of_study = step(run, run.path, images=50)
    assert list(found["corruptions"]) == list(CORRUPTIONS)
    for name, row in found["corruptions"].items():
        assert row["accuracy_interval"][0] < row["accuracy"] < row["accuracy_interval"][1]
        if name not in ("noise", "occlusion"):  # as numbers of a study these are the whole kind
            assert row["accuracy"] == pytest.approx(of_study[f"{name}_accuracy"])
    opened, val = run.test_openings, robustness(run, "val", images=10_000)
    whole = run.evaluate("val", tta="none")
    assert (val["count"], val["clean"]["accuracy"]) == (whole["count"], whole["accuracy"])
    assert val["clean"]["accuracy_interval"] == whole["accuracy_interval"]
    assert run.test_openings == opened, "only for images of test"


@pytest.mark.parametrize("right", [True, False])
def test_images_that_are_all_right_or_all_wrong_leave_the_accuracy_open(
    run: Run, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a good model under a mild corruption: a normal interval has no width there."""
    module = importlib.import_module("kitae.pipelines.robustness")
    wanted = [(name, severity) for name, (_, severities, *_rest) in CORRUPTIONS.items() for severity in severities]
    hits = np.full(40, right)
    monkeypatch.setattr(module, "classified", lambda *_, **__: dict.fromkeys([("clean", 0.0), *wanted], hits))
    found = robustness(run, "val", images=40)
    assert found["clean"]["accuracy_interval"] == pytest.approx((0.9124, 1.0) if right else (0.0, 0.0876), abs=1e-4)
    for row in found["corruptions"].values():
        assert row == {name: pytest.approx(value) for name, value in found["clean"].items()}


def test_the_command_prints_each_corruption(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(run.path, split="val", robustness=True)
    lines = capsys.readouterr().out.splitlines()
    assert "accuracy on 600 images" in lines[0]
    assert [line.split("\t")[0] for line in lines[2:]] == ["none", *CORRUPTIONS]
    assert lines[3].startswith("rotation\tviewpoint\t10, 20, 30\t")
    refused(RecipeError, "--tta flip: --robustness takes one view", evaluate, run.path, tta="flip", robustness=True)
    refused(RecipeError, "split: 'all' must be train, val or test", robustness, run, "all")
    done: list[tuple[int, int]] = []
    setup = Setup.of(run)
    classified(run, setup, setup.splits.val, 5, progress=lambda *counted: done.append(counted))
    assert done == [(count, 24) for count in range(1, 25)]
    opened = run.test_openings
    for images in (0, 1e3, float("nan")):
        refused(RecipeError, f"images: {images} must be a whole number", lambda n=images: robustness(run, images=n))
    assert run.test_openings == opened, "not for nothing"
