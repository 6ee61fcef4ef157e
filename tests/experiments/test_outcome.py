"""What numbers a study keeps of a run, and which way each of them is better."""

from __future__ import annotations

from kitae.experiments.outcome import flatten, numbers
from kitae.reporting.effects import metric

SPLIT = {
    "accuracy": 0.9, "accuracy_interval": [0.8, 1.0], "count": 9, "confusion": [[1]], "classes_absent": [],
    "per_class": {"count": {"accuracy": 0.5, "count": 3}, "cat": {"accuracy": None, "count": 0}},
}  # fmt: skip


def test_numbers_of_an_evaluation_leave_out_what_is_no_result() -> None:
    found = numbers({"test": SPLIT, "temperature": 1.5, "test_openings": 2}, [])  # 2, if a step after it was cut
    assert found == {"test.accuracy": 0.9, "test.per_class.count.accuracy": 0.5, "temperature": 1.5}


def test_times_of_a_run() -> None:
    """A median hides what short epochs save, a sum does not."""
    epochs = [{"epoch": number, "seconds": seconds} for number, seconds in enumerate([9.0, 1.0, 2.0, 4.0, 4.0, 4.0], 1)]
    found = numbers({}, epochs)
    assert found["epoch_seconds"] == 4.0
    assert found["training_seconds"] == 24.0
    after_a_probe = numbers({}, [{"epoch": 0, "seconds": 90.0}, *epochs[:3]])
    assert after_a_probe["epoch_seconds"] == 1.5, "without the probe, and without the epoch that compiles"
    assert after_a_probe["training_seconds"] == 102.0
    assert numbers({}, [{"epoch": 0, "seconds": 90.0}])["epoch_seconds"] == 90.0


def test_a_step_of_ones_own_may_call_its_numbers_anything() -> None:
    assert flatten({"count": 3, "deep": {"confusion": 0.5}}, "my:step.") == {
        "my:step.count": 3.0, "my:step.deep.confusion": 0.5,
    }  # fmt: skip


def test_which_way_a_number_is_better() -> None:
    ways = {
        1: "test.accuracy images_per_second test.per_class.cat.accuracy robustness.rotation_accuracy test.macro_f1",
        -1: "val.loss test.ece gap epoch_seconds training_seconds peak_memory_bytes prune.parameters"
            " my:step.loss_of_pieces",
        0: "prune.sparsity best_epoch my.module:step.widgets my:step.pieces my:step.glossary my:step.gaps",
    }  # fmt: skip
    for better, names in ways.items():
        for name in names.split():
            assert metric(name).better == better, name


def test_the_unit_of_a_number_is_a_word_of_its_name() -> None:
    units = {
        "points": "test.accuracy val.ece test.macro_f1 gap robustness.blur_accuracy",
        "": "my:step.pieces my:step.milliseconds my:step.kilobytes",
        "s": "epoch_seconds", "MiB": "peak_memory_bytes", "images/s": "images_per_second",
    }  # fmt: skip
    for unit, names in units.items():
        for name in names.split():
            assert metric(name).unit == unit, name
