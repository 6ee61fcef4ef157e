"""What is changed for a while and then restored: the mode of a network, torch's threads, its defaults and TF32."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from kitae.machine import after_fork

if TYPE_CHECKING:
    from torch import nn

GENERATORS = threading.RLock()
"""Held while global generators are seeded and drawn from: all threads of a process share them."""

after_fork(GENERATORS._at_fork_reinit)  # type: ignore[attr-defined]

_WHOLE = ("none", "ieee")  # settings with which float32 is not rounded


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network and all its modules in eval mode, and restore the mode of each module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def threads_restored() -> Iterator[None]:
    """Restore torch's number of threads afterwards, which `train.threads` sets for the whole process."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Use torch's own defaults, float32, the CPU and gradients, and restore the caller's afterwards.

    A notebook may have set others for its whole process. Under them, networks would have other initial weights and
    another precision, or could not be trained. An autocast around the call has no effect, and float32 is not multiplied
    in fewer bits, which `torch.set_float32_matmul_precision("medium")` allows, on a CPU too.
    """
    import torch

    cpu = torch.device("cpu")
    with _process_defaults(), ExitStack() as held:
        if torch.get_default_device() != cpu:
            held.enter_context(cpu)
        held.enter_context(torch.inference_mode(False))
        held.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                held.enter_context(torch.autocast(kind, enabled=False))
        yield


def for_all_threads(change: Callable[[], AbstractContextManager[None]]) -> Callable[[], AbstractContextManager[None]]:
    """A change of what belongs to the whole process: the first thread inside makes it, and the last one undoes it.

    Each on its own would restore what it found, which another thread had changed.
    """
    lock, held, inside = threading.Lock(), ExitStack(), 0
    after_fork(lock._at_fork_reinit)  # type: ignore[attr-defined]

    @contextmanager
    @functools.wraps(change)
    def shared() -> Iterator[None]:
        nonlocal inside
        with lock:
            if not inside:
                held.enter_context(change())
            inside += 1
        try:
            yield
        finally:
            with lock:
                inside -= 1
                if not inside:
                    held.close()

    return shared


@for_all_threads
@contextmanager
def _process_defaults() -> Iterator[None]:
    """Take float32 as default and multiply it in float32.

    Restores what the caller has set by torch's old functions and its new ones.
    """
    import torch

    before = torch.get_default_dtype()
    backends: Any = torch.backends
    products = backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv
    with ExitStack() as held:
        if before != torch.float32:
            held.callback(torch.set_default_dtype, before)
            torch.set_default_dtype(torch.float32)

        def hold(backend: Any, value: str) -> None:
            held.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
            backend.fp32_precision = value

        if backends.fp32_precision not in _WHOLE:
            hold(backends, "none")
        try:
            old = torch.get_float32_matmul_precision()
        except RuntimeError:  # torch's answer where only the new settings were changed
            old = "highest"
        if old != "highest" or any(backend.fp32_precision not in _WHOLE for backend in products):
            for backend in products:
                hold(backend, "ieee")
            held.callback(torch.set_float32_matmul_precision, old)  # before the new ones, which it changes
            torch.set_float32_matmul_precision("highest")
        yield


@for_all_threads
@contextmanager
def convolutions_in_float32() -> Iterator[None]:
    """Let GPUs convolve float32 tensors in float32: by default cuDNN rounds them to TF32, which has 10 bits.

    Its RNNs and the older switch of torch agree with that. Otherwise torch refuses `torch.backends.cudnn.flags`, which
    a network may use.
    """
    import torch

    cudnn: Any = torch.backends.cudnn
    parts = cudnn.conv, cudnn.rnn
    with ExitStack() as held:
        for part in parts:
            held.callback(setattr, part, "fp32_precision", part.fp32_precision)
        with suppress(RuntimeError):  # torch's answer where only the new settings were changed
            before = cudnn.allow_tf32
            cudnn.allow_tf32 = False
            held.callback(setattr, cudnn, "allow_tf32", before)  # before the new ones, which it changes
        for part in parts:
            part.fp32_precision = "ieee"
        yield
