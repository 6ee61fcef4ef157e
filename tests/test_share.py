"""Work that is shared among threads."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from kitae.native.share import share


@pytest.mark.parametrize("threads", [None, 1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_each_place_is_worked_on_once(count: int, threads: int | None) -> None:
    done: list[int] = []
    share(count, done.append, threads)
    assert sorted(done) == list(range(count))


def test_a_slow_place_holds_up_its_own_thread_alone() -> None:
    others = threading.Semaphore(0)

    def work(place: int) -> None:
        if place:
            others.release()
        else:
            for _ in range(49):
                assert others.acquire(timeout=30)

    share(50, work, 2)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_place_that_fails_is_the_error_and_ends_the_work(threads: int) -> None:
    done: list[int] = []

    def work(place: int) -> None:
        done.append(place)
        if place > 4:
            time.sleep(0.1 if place == 5 else 0.001)
        if place in (5, 6):
            raise ValueError(place)

    with pytest.raises(ValueError, match="5"):
        share(1000, work, threads)
    assert len(done) < 1000


def test_a_place_that_was_taken_before_another_failed_is_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()

    class Places:
        """Hands out place 0 after place 1 has failed, as to a thread that waited for its turn in between."""

        left = iter(range(2))

        def __iter__(self) -> Places:
            return self

        def __next__(self) -> int:
            place = next(self.left)
            if place == 0:
                assert begun.wait(30)
                time.sleep(0.1)
            return place

    def work(place: int) -> None:
        begun.set()
        raise ValueError(place)

    monkeypatch.setattr("kitae.native.share.iter", lambda _: Places(), raising=False)
    with pytest.raises(ValueError, match="0"):
        share(2, work, 2)


def test_an_interrupt_waits_for_the_work_of_other_threads() -> None:
    """They may write to memory by address, which the caller frees."""
    main = threading.get_ident()
    begun, ended = threading.Event(), threading.Event()

    def work(place: int) -> None:
        if threading.get_ident() == main:
            assert begun.wait(30)
            return
        begun.set()
        time.sleep(0.2)  # until the main thread waits
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.5)
        ended.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell starts in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            share(2, work, 2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.is_set()
