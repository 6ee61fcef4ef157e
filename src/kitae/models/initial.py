"""Initial weights keyed by the names of parameters.

Libraries draw initial weights from one generator, layer after layer. A different head, width or depth shifts all later
draws, so two networks with the same seed share almost no values. Here every random operation of a network's
construction is seeded by (seed, name of the parameter it ends up in), so networks with the same seed have equal initial
values wherever name, shape and distribution are the same.

The construction itself runs as its authors wrote it, with their zeros, truncated normals and rescalings; only the state
of torch's generator before each random operation is changed. The parameter of an operation is only known at the end,
when parameters have names. So the network is first built without values, which is cheap, and then with values, which
checks the result. If the two builds disagree, it is built again with the new assignment: once, unless the number of
draws depends on the drawn values.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kitae.console import quiet

_Purposes = Mapping[int, tuple[str, int]]
"""Number of a random operation -> its parameter, and the number of earlier operations for this parameter."""

_TRIES = 8
_RANDOM = torch.Tag.nondeterministic_seeded
_EMPTY = torch.ops.aten.empty.memory_format
_FILLS = frozenset(getattr(torch.ops.aten, name).default for name in ("uniform_", "normal_", "zero_"))


def keyed_by_name(construct: Callable[[], nn.Module], outline: Callable[[], nn.Module]) -> nn.Module:
    """The network of `construct`, its random numbers keyed by names under one draw from torch's global generator.

    An operation that ends up in no parameter or buffer is keyed by its number. The global generator advances by that
    one draw for any network. Numbers from other generators (NumPy, a device's own) are not changed.

    Args:
        construct: builds the network on the CPU; called again until its draws are the same as in the call before.
        outline: builds the same network without values (its empty tensors are on the meta device). May fail.
    """
    seed = int(torch.randint(2**63 - 1, (), device="cpu"))
    with torch.random.fork_rng(devices=[]):
        purposes = _outlined(outline)
        for _ in range(_TRIES):  # the last one also has proper initial weights, but shares fewer with other networks
            draws = _Draws(seed, purposes)
            with draws:
                model = construct()
            found = draws.purposes(model)
            if found == purposes:
                break
            purposes = found
    return model


def _outlined(outline: Callable[[], nn.Module]) -> _Purposes:
    draws = _Draws(0, {}, values=False)
    # A network may read values that these tensors do not have. A real error is raised again by the build with values.
    with contextlib.suppress(Exception), quiet():
        with draws:
            model = outline()
        return draws.purposes(model)
    return {}


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Seeds the random operations of a construction, and tracks the tensors that contain their numbers.

    Without `values`, empty tensors are created on the meta device and stay there, which needs no memory or time.
    """

    def __init__(self, seed: int, purposes: _Purposes, *, values: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seed, self._known, self._values = seed, purposes, values
        self._count = 0
        self._in: dict[int, frozenset[int]] = {}  # storage -> numbers of the operations in it
        self._alive: list[torch.UntypedStorage] = []  # as long as a storage lives, no other one has its address

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch asks this; with the default it imports torch._dynamo at the first operation, which takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        drawn = self._drawn((*args, *kwargs.values())) if self._in else frozenset()
        if _RANDOM in func.tags:
            drawn |= {self._count}
            torch.default_generator.manual_seed(self._key(self._count))
            self._count += 1
        if not self._values and func is _EMPTY:
            result = func(*args, **{**kwargs, "device": "meta"})
        elif func in _FILLS and args[0].is_meta:
            result = args[0]  # skipped, since torch is slow even though there is nothing to fill
        else:
            result = func(*args, **kwargs)
        if drawn:
            self._follow(result, drawn)
        return result

    def _drawn(self, value: Any) -> frozenset[int]:
        """The operations in a tensor, or in any of a list's."""
        if isinstance(value, Tensor):
            return self._in.get(value.untyped_storage()._cdata, frozenset())
        if isinstance(value, list | tuple):
            return frozenset().union(*map(self._drawn, value))
        return frozenset()

    def _follow(self, value: Any, drawn: frozenset[int]) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            if storage._cdata not in self._in:
                self._alive.append(storage)
            self._in[storage._cdata] = self._in.get(storage._cdata, frozenset()) | drawn
        elif isinstance(value, list | tuple):
            for inner in value:
                self._follow(inner, drawn)

    def _key(self, number: int) -> int:
        name, occurrence = self._known.get(number, ("", number))
        digest = hashlib.blake2b(f"{self._seed} {occurrence} {name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) >> 1

    def purposes(self, model: nn.Module) -> dict[int, tuple[str, int]]:
        """The parameter of each operation; an operation in several tensors belongs to the first of them."""
        found: dict[int, tuple[str, int]] = {}
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            for occurrence, number in enumerate(sorted(self._drawn(tensor))):
                found.setdefault(number, (name, occurrence))
        return found
