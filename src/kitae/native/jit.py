"""Compiles plain functions to machine code, once per machine.

`native(function, signature)` compiles a function on pointers and integers to a C callback and returns its address.
Plain Python functions that it calls are compiled with it, so the sources stay free of decorators, and the plans in
`augment.ops` also run uncompiled. The machine code is cached on disk under a fingerprint of everything it depends on,
and later processes load it. The first compilation prints one line to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, TypeGuard

import numba
import numpy as np
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.serialize import dumps
from numba.extending import _Intrinsic

from kitae import files
from kitae.errors import DataError, KitaeError

# A float division by zero is IEEE, not an exception, so loops vectorise.
OPTIONS = {"nogil": True, "error_model": "numpy"}

compiled = 0  # how many functions this process compiled
_natives: dict[tuple[FunctionType, Any], Any] = {}


def _plain(value: Any) -> TypeGuard[FunctionType]:
    return isinstance(value, FunctionType) and value.__module__.startswith("kitae.")


def _names(code: CodeType) -> set[str]:
    """Every global that code names, in functions inside it too."""
    inside = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inside))


def _fingerprint(function: FunctionType, seen: set[FunctionType]) -> bytes:
    """What the machine code depends on: code, constants, and the same of every function and global it names.

    The module counts too: the file of machine code imports it when it is loaded.
    """
    seen.add(function)
    digest = hashlib.sha256(f"{function.__module__}.{function.__qualname__}".encode())

    def feed(code: CodeType) -> None:
        for part in (code.co_code, code.co_names, code.co_varnames, code.co_cellvars, code.co_freevars):
            digest.update(repr(part).encode())
        for constant in code.co_consts:
            feed(constant) if isinstance(constant, CodeType) else digest.update(repr(constant).encode())

    feed(function.__code__)
    named = {name: function.__globals__.get(name) for name in sorted(_names(function.__code__))}
    cells = (cell.cell_contents for cell in function.__closure__ or ())
    for name, value in [*named.items(), *zip(function.__code__.co_freevars, cells, strict=True)]:
        value = value._defn if isinstance(value, _Intrinsic) else value
        if _plain(value):
            if value not in seen:
                digest.update(_fingerprint(value, seen))
        elif isinstance(value, int | float | str | tuple | np.generic | numba.types.Type):
            digest.update(f"{name}={value!r}".encode())
    return digest.digest()


def _linked(function: FunctionType) -> FunctionType:
    """The same function, its plain helpers replaced by compiled ones."""
    names = function.__code__.co_names
    inner = {n: _helper(function.__globals__[n]) for n in names if _plain(function.__globals__.get(n))}
    return FunctionType(function.__code__, {**function.__globals__, **inner}, function.__name__, function.__defaults__)


@functools.cache
def _helper(function: FunctionType) -> Any:
    return numba.njit(_linked(function), **OPTIONS)


@functools.cache
def cache_folder() -> Path | None:
    """Where machine code is cached: NUMBA_CACHE_DIR or beside this file, else Kitae's cache; None if neither works."""
    places = [Path(os.environ.get("NUMBA_CACHE_DIR") or Path(__file__).with_name("__pycache__"))]
    with contextlib.suppress(DataError):  # a user without a home folder
        places.append(files.cache_folder() / "kernels")
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=place).close()
            return place
    return None


def _file_name(function: FunctionType, signature: Any) -> str:
    """Of a function's machine code. Versions, of numba and Python too, and processors share no file."""
    compiler = numba.__version__, sys.implementation.cache_tag, cpu_target.target_context.codegen().magic_tuple()
    stamp = hashlib.sha256(_fingerprint(function, set()) + repr((*compiler, signature)).encode()).hexdigest()
    return f"{function.__qualname__}-{stamp[:32]}.kernel"


class _Cache:
    """A function's machine code in one file, which is replaced as a whole. Numba's own cache needs two."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()  # without it, what the code refers to may be missing
        try:
            return CompileResult._rebuild(target_context, *pickle.loads(self._file.read_bytes()))
        except Exception:  # no file, or one cut short by a power failure: unpickling it raises almost anything
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(KitaeError):  # a full disk, or a file of another user: the next process compiles again
            files.write_atomically(self._file, dumps(data._reduce()))


class _Native(CFunc):
    _cache: Any

    def _compile_uncached(self) -> Any:
        global compiled
        compiled += 1
        if compiled == 1:
            text = "kitae: compiling kernels for this machine (once, takes a few seconds)"
            print(text, file=sys.stderr, flush=True)
        return super()._compile_uncached()  # type: ignore[misc]


def native(function: Any, signature: Any) -> Any:
    """A plain function, compiled, with `.address` and `.ctypes`.

    Compiled or loaded on the first call, kept from then on. Numba compiles in one thread at a time.
    """
    key = (function, signature)
    if key not in _natives:
        made = _Native(_linked(function), (signature.args, signature.return_type), {}, dict(OPTIONS))
        if (folder := cache_folder()) is not None:
            made._cache = _Cache(folder / _file_name(function, signature))
        made.compile()
        _natives.setdefault(key, made)  # the first stays, as its address may be in use
    return _natives[key]


@functools.cache
def by_address(function: Callable[..., Any], signature: Any) -> Any:
    """A compiled function that takes addresses as integers, and runs without the interpreter lock."""
    words = [ctypes.c_int64] * len(signature.args)
    return ctypes.CFUNCTYPE(None, *words)(native(function, signature).address)
