"""The timer, under a clock of our own: nothing here depends on how fast this machine is."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from kitae.evaluation.latency import measure


class World:
    """A clock that only calls move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def task(self, name: str, seconds: Callable[[int], float]) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds(len(self.order))
            self.order.append(name)

        return run


def test_ratios_of_known_times() -> None:
    world = World()
    tasks = {"slow": world.task("slow", lambda i: 0.4), "fast": world.task("fast", lambda i: 0.1)}
    result = measure(tasks, repeats=20, clock=lambda: world.now)
    assert result.reference == "slow"
    assert result.median("fast") == pytest.approx(0.1)
    assert result.ratio("fast") == pytest.approx(0.25)
    assert result.to_dict()["candidates"]["fast"]["ratio_interval"] == pytest.approx([0.25, 0.25])
    assert result.control_ratio == pytest.approx(1)
    assert result.noise == pytest.approx(0, abs=1e-9)
    other = measure(tasks, reference="fast", repeats=20, clock=lambda: world.now)
    assert other.ratio("slow") == pytest.approx(4)


def test_a_machine_that_slows_down_does_not_bias_the_ratio() -> None:
    """Times grow tenfold over the run. Timed one after the other, `b` would look several times slower; it is not."""
    world = World()
    drift = {name: world.task(name, lambda i: 0.01 * (1 + i / 40)) for name in ("a", "b")}
    result = measure(drift, repeats=120, clock=lambda: world.now)
    assert result.seconds["a"][-1] > 5 * result.seconds["a"][0]
    assert result.ratio("b") == pytest.approx(1, abs=0.03)
    low, high = result.to_dict()["candidates"]["b"]["ratio_interval"]
    assert low <= 1 <= high
    assert abs(result.control_ratio - 1) < 0.03


def test_every_round_times_each_once_and_the_reference_twice() -> None:
    world = World()
    tasks = {name: world.task(name, lambda i: 1.0) for name in ("a", "b", "c")}
    measure(tasks, reference="b", repeats=30, clock=lambda: world.now)
    assert world.order[:15] == ["a"] * 5 + ["b"] * 5 + ["c"] * 5, "warm-up"
    rounds = [world.order[15 + 4 * i : 19 + 4 * i] for i in range(30)]
    assert all(sorted(names) == ["a", "b", "b", "c"] for names in rounds)
    assert len({tuple(names) for names in rounds}) > 6, "in an order drawn anew"
    first = list(world.order)
    world.order.clear()
    measure(tasks, reference="b", repeats=30, clock=lambda: world.now)
    assert world.order == first, "by the seed"


def test_short_calls_are_repeated_until_the_clock_can_see_them() -> None:
    world = World()
    tasks = {"short": world.task("short", lambda i: 1e-4), "long": world.task("long", lambda i: 1.0)}
    result = measure(tasks, repeats=10, clock=lambda: world.now)
    assert result.calls["short"] in (20, 21)
    assert result.calls["long"] == 1
    assert result.median("short") == pytest.approx(1e-4)


def test_noise_shows_in_the_control() -> None:
    generator = np.random.default_rng(0)
    world = World()
    tasks = {name: world.task(name, lambda i: float(generator.uniform(0.5, 1.5))) for name in ("a", "b")}
    result = measure(tasks, repeats=40, clock=lambda: world.now)
    low, high = result.to_dict()["control"]["ratio_interval"]
    assert low < 1 < high
    assert result.noise > 0.02
    assert result.noise == max(1 - low, high - 1)


def test_the_garbage_collector_is_off_only_while_timing() -> None:
    seen: list[bool] = []

    def run() -> None:
        seen.append(gc.isenabled())
        if len(seen) > 20:
            raise KeyError("stop")

    assert gc.isenabled()
    with pytest.raises(KeyError):
        measure({"a": run}, repeats=50)
    assert gc.isenabled()
    assert not any(seen[5:])


def test_the_result_is_json() -> None:
    world = World()
    result = measure({"a": world.task("a", lambda i: 1.0)}, repeats=6, clock=lambda: world.now)
    written = result.to_dict()
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert written["candidates"]["a"]["seconds"] == pytest.approx(1.0)
    assert written["control"]["ratio_interval"] == [1.0, 1.0]


def test_it_runs_on_the_real_clock() -> None:
    result = measure({"a": lambda: sum(range(100)), "b": lambda: None}, repeats=6)
    assert all((times > 0).all() for times in result.seconds.values())
    assert all(a == b for a, b in pairwise([len(result.control), *(len(t) for t in result.seconds.values())]))
