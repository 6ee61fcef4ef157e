"""The learning rate as a function of the step."""

from __future__ import annotations

import itertools
import math

import pytest
from pydantic import ValidationError

from kitae.training.schedule import planned_step, progressive_share, progressive_size, rate_factor
from kitae.training.spec import ProgressiveSpec, ScheduleSpec, TrainSpec

EPOCHS, STEPS = 10, 20


def rates(**fields: object) -> list[float]:
    spec = ScheduleSpec.model_validate(fields)
    return [rate_factor(s, spec=spec, steps_per_epoch=STEPS, epochs=EPOCHS) for s in range(EPOCHS * STEPS)]


@pytest.mark.parametrize("name", ["cosine", "one_cycle", "step", "constant"])
def test_stays_in_range_and_is_never_zero_at_the_start(name: str) -> None:
    values = rates(name=name, warmup_epochs=2)
    assert all(0 <= value <= 1 for value in values)
    assert values[0] > 0
    assert max(values) > 0.95
    assert set(rates(name="constant")) == {1.0}
    assert rates(name="cosine", final=0.1)[-1] == pytest.approx(0.1, abs=0.001)


def test_cosine_after_warm_up_is_half_a_cosine() -> None:
    values = rates(name="cosine", warmup_epochs=2)
    ramp, rest = values[:40], values[40:]
    assert all(b > a for a, b in itertools.pairwise(ramp))
    for step, value in enumerate(rest):
        assert value == pytest.approx(0.5 * (1 + math.cos(math.pi * step / 160)))


def test_one_cycle_rises_to_its_peak_and_falls() -> None:
    values = rates(name="one_cycle", peak_at=0.25)
    assert values[:50] == pytest.approx([(step + 1) / 51 for step in range(50)])
    assert values[50:] == pytest.approx([(200 - step) / 151 for step in range(50, 200)])
    higher = rates(name="one_cycle", peak_at=0.25, final=0.2)
    assert higher[:50] == values[:50]
    assert higher[50:] == pytest.approx([0.2 + 0.8 * value for value in values[50:]])


def test_step_multiplies_by_gamma_at_each_milestone() -> None:
    values = rates(name="step", milestones=(0.5, 0.75), gamma=0.1)
    assert (values[99], values[100], values[149]) == pytest.approx((1.0, 0.1, 0.1))
    assert values[150] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("milestones", "message"),
    [([30, 60], "fractions of the run.*epoch 30 of 90 is 0.33"), ([-1, 0.5], "fractions"), ([0.9, 0.3], "increase")],
)
def test_milestones_are_fractions_that_rise(milestones: list[float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ScheduleSpec(name="step", milestones=milestones)


def test_fields_that_a_schedule_has_no_use_for_are_named() -> None:
    assert ScheduleSpec(name="one_cycle", warmup_epochs=2, final=0.1).unused == ("warmup_epochs",)
    assert ScheduleSpec(name="constant", final=0.1, gamma=0.2, warmup_epochs=1).unused == ("final", "gamma")
    assert ScheduleSpec(name="cosine", warmup_epochs=2, final=0.1).unused == ()


def test_warm_up_takes_half_of_a_short_run_at_most() -> None:
    spec = ScheduleSpec(name="cosine", warmup_epochs=5)
    values = [rate_factor(step, spec=spec, steps_per_epoch=100, epochs=1) for step in range(100)]
    assert max(values) > 0.9
    assert values[-1] < 0.1


def test_a_recut_schedule_squeezes_or_stretches_what_is_left() -> None:
    def steps(epochs: int, *recut: tuple[int, int]) -> list[float]:
        spec = TrainSpec(epochs=EPOCHS, recut=recut)
        return [planned_step(s, spec, STEPS) for s in range(epochs * STEPS)]

    assert steps(10) == list(range(200))
    assert all(isinstance(step, int) for step in steps(10)), "bit for bit as without"
    squeezed = steps(6, (2, 6))
    assert squeezed[:40] == list(range(40))
    assert squeezed[40:] == pytest.approx([40 + 2 * s for s in range(80)])
    stretched = steps(18, (2, 18))
    assert stretched[40:] == pytest.approx([40 + s / 2 for s in range(320)])
    twice = steps(8, (2, 6), (4, 8))  # half of the rest in two epochs, the other half in four
    assert twice[80:] == pytest.approx([120 + s for s in range(80)])
    assert steps(4, (4, 4)) == list(range(80))


def test_pictures_grow_in_steps_of_four_pixels_to_their_full_size() -> None:
    spec = ProgressiveSpec(start=0.5, until=0.4)
    sides = [progressive_size((32, 32), step / 100, spec)[0] for step in range(101)]
    assert sides[0] == 16
    assert set(sides[:40]) == {16, 20, 24, 28, 32}
    assert sides == sorted(sides)
    assert set(sides[40:]) == {32}


@pytest.mark.parametrize("size", [(30, 45), (5, 5), (225, 300)])
def test_the_full_size_is_reached_and_never_passed(size: tuple[int, int]) -> None:
    spec = ProgressiveSpec(start=0.9, until=0.5)
    for done in (0.0, 0.25, 0.49):
        assert all(now <= side for now, side in zip(progressive_size(size, done, spec), size, strict=True))
    assert progressive_size(size, 0.5, spec) == size


def test_the_mean_share_of_pixels_of_a_run_whose_pictures_grow() -> None:
    spec = ProgressiveSpec(start=0.5, until=0.4)
    sizes = [progressive_size((32, 24), step / 997, spec) for step in range(997)]
    share = sum(height * width for height, width in sizes) / (997 * 32 * 24)
    assert 0.7 < share < 0.9
    assert progressive_share((32, 24), spec) == pytest.approx(share, rel=0.02)
    assert progressive_share((32, 24), None) == 1.0
