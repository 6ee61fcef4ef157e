"""What is changed for a while and then restored."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from kitae import console
from kitae.modes import GENERATORS, convolutions_in_float32, torch_defaults

BACKENDS: Any = torch.backends
PRODUCTS = BACKENDS, BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv


def settings() -> list[str]:
    return [backend.fp32_precision for backend in PRODUCTS]


@pytest.fixture
def restored() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    for backend in PRODUCTS:
        backend.fp32_precision = "none"


def old() -> None:
    torch.set_float32_matmul_precision("medium")


def new() -> None:
    BACKENDS.cuda.matmul.fp32_precision = "tf32"
    BACKENDS.mkldnn.conv.fp32_precision = "bf16"


def everywhere() -> None:
    BACKENDS.fp32_precision = "tf32"


def mixed() -> None:
    torch.set_float32_matmul_precision("high")
    BACKENDS.mkldnn.matmul.fp32_precision = "ieee"


@pytest.mark.parametrize("rounding", [old, new, everywhere, mixed])
def test_products_of_float32_are_not_rounded_whatever_a_notebook_allows(
    rounding: Callable[[], None], restored: None
) -> None:
    rounding()
    before = settings()
    with torch_defaults():
        assert set(settings()) <= {"none", "ieee"}
        assert torch.get_float32_matmul_precision() == "highest"
    assert settings() == before


def test_where_nothing_is_set_nothing_changes() -> None:
    before = settings()
    with torch_defaults():
        assert settings() == before
    assert settings() == before


@pytest.mark.parametrize("mixed", [False, True])
def test_a_network_may_use_the_flags_of_cudnn_where_convolutions_are_in_float32(mixed: bool) -> None:
    parts, cudnn = (BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn), BACKENDS.cudnn
    start = [part.fp32_precision for part in parts]
    try:
        if mixed:  # as a caller may leave it; then torch refuses the flags before, too
            cudnn.rnn.fp32_precision = "ieee"
        before = [part.fp32_precision for part in parts]
        with convolutions_in_float32():
            assert {part.fp32_precision for part in parts} == {"ieee"}
            if not mixed:
                assert not cudnn.allow_tf32
                with cudnn.flags(enabled=False):
                    pass
        assert [part.fp32_precision for part in parts] == before
    finally:
        for part, precision in zip(parts, start, strict=True):
            part.fp32_precision = precision
    assert cudnn.allow_tf32


def test_an_autocast_around_a_call_has_no_effect() -> None:
    linear, inputs = torch.nn.Linear(4, 2), torch.ones(1, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch_defaults():
            assert linear(inputs).dtype == torch.float32
        assert linear(inputs).dtype == torch.bfloat16


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("lock", [GENERATORS, console._silence])
def test_a_forked_process_does_not_wait_for_threads_of_its_parent(lock: Any) -> None:
    held, done = threading.Event(), threading.Event()

    def holding() -> None:
        with lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=holding)
    thread.start()
    assert held.wait(60)
    child = multiprocessing.get_context("fork").Process(target=lock.acquire)
    child.start()
    child.join(60)
    child.kill()
    done.set()
    thread.join()
    assert child.exitcode == 0


@pytest.mark.parametrize("change", [torch_defaults, convolutions_in_float32])
def test_threads_share_a_change_until_the_last_one_ends(
    change: Callable[[], AbstractContextManager[None]], restored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as predictions in the threads of a server."""

    def state() -> list[Any]:
        return [*settings(), BACKENDS.cudnn.conv.fp32_precision, BACKENDS.cudnn.allow_tf32, torch.get_default_dtype()]

    monkeypatch.setattr(BACKENDS.cudnn, "allow_tf32", True)
    new()
    torch.set_default_dtype(torch.float64)
    try:
        before, first, second = state(), change(), change()
        first.__enter__()
        inside = state()
        assert inside != before
        with ThreadPoolExecutor(1) as pool:
            pool.submit(second.__enter__).result()
            first.__exit__(None, None, None)
            assert state() == inside
            pool.submit(second.__exit__, None, None, None).result()
        assert state() == before
    finally:
        torch.set_default_dtype(torch.float32)
