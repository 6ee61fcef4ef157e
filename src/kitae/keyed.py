"""Keyed randomness: every random number is a pure function of (seed, epoch, index, slot).

There is no generator and no state. The same arguments give the same bits in any order, on any machine, in NumPy or in a
Numba kernel. So the augmentation of a sample does not depend on its batch, on the worker that made it, or on whether
the run was resumed.

The hash is Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11): a
counter of 128 bits, here (index low, index high, epoch, slot), is scrambled under a key of 64 bits, here the seed,
into four words of 32 bits. It passes BigCrush, and its known-answer vectors are in the tests.

    index  which sample: the row in the data store; the high 32 bits count repeats where a sampler draws a row again
    epoch  which pass over the data
    slot   which decision: one of the constants below

The seed is one number; all other arguments broadcast against each other as NumPy arrays do.
"""

from __future__ import annotations

import operator
import zlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Slots: one number per decision, so that no two decisions share a random number.
SLOT_ORDER = 1  # the order of samples in an epoch
SLOT_SPLIT = 2  # which samples go to validation and test
SLOT_LIMIT = 3  # which samples `data.limit` keeps
SLOT_SAMPLER = 4  # which samples a balancing sampler repeats
SLOT_BLOCKS = 5  # the order of blocks of images (shards, stretches of a store) in an epoch
SLOT_MIX = 8  # 8 to 15: the switch, lambda and box of MixUp and CutMix
SLOT_BOOTSTRAP = 16  # resampling in evaluation
SLOT_FOLDS = 17  # which fold of a cross-validation an image belongs to
SLOT_MODEL = 24  # the seed of torch's generator for initial weights
SLOT_STEP = 25  # the seed of torch's generator at each step
SLOT_TUNING = 26  # the seed of fine-tuning in a study
SLOT_OPS = 64  # ops of an augmentation pipeline: from here up, see `op_slot`
SLOTS_PER_OP = 64

# As uint64 scalars, the same lines run on scalars, on NumPy arrays and in Numba, and never become floats.
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint64(0x9E3779B9)
_W1 = np.uint64(0xBB67AE85)

TWO_POW_MINUS_32 = 2.0**-32
_AT_ONCE = 1 << 16  # keys to sort by that are made at once, each of which takes many times its own memory meanwhile


def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10: the counter (c0, c1, c2, c3) under the key (k0, k1), all uint64 holding 32-bit values.

    Plain arithmetic on uint64, so that `numba.njit(philox)` compiles the scalar version from the same source.

    Returns:
        Four uint64 values (or arrays) in [0, 2**32).
    """
    for _ in range(10):
        p0 = _M0 * c0
        p1 = _M1 * c2
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _MASK, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _MASK
        k0 = (k0 + _W0) & _MASK
        k1 = (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def op_slot(name: str, occurrence: int = 0) -> int:
    """The first of the SLOTS_PER_OP slots of an op, from its name and the number of ops of that name before it.

    It does not depend on the op's position in the pipeline, so adding or removing another op leaves its decisions as
    they were: two variants of a study differ only in the op that was changed.
    """
    return SLOT_OPS + (zlib.crc32(f"{name} {occurrence}".encode()) >> 7) * SLOTS_PER_OP


def _uint64(value: ArrayLike, name: str, limit: int) -> NDArray[np.uint64]:
    array = np.asarray(value)
    if array.size and array.dtype.kind not in "iu":  # an empty list is of floats
        raise TypeError(f"{name} must be integer, not {array.dtype}")
    if array.size and (array.min() < 0 or int(array.max()) >= limit):
        raise ValueError(f"{name} must be in [0, {limit})")
    return array.astype(np.uint64)


def words(seed: int, epoch: ArrayLike, index: ArrayLike, slot: ArrayLike) -> NDArray[np.uint32]:
    """Four random 32-bit words for each key.

    Args:
        seed: in [0, 2**64).
        epoch, slot: integers in [0, 2**32).
        index: integers in [0, 2**63).

    Returns:
        uint32 [..., 4], where ... is the broadcast shape of the arguments.

    Raises:
        TypeError, ValueError: an argument is not an integer, or out of its range.
    """
    key = operator.index(seed)
    if not 0 <= key < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), not {seed}")
    e, i, s = _uint64(epoch, "epoch", 2**32), _uint64(index, "index", 2**63), _uint64(slot, "slot", 2**32)
    e, i, s = np.broadcast_arrays(e, i, s)
    out = philox(i & _MASK, i >> _SHIFT, e, s, np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32))
    return np.stack(out, axis=-1).astype(np.uint32)


def uniforms(seed: int, epoch: ArrayLike, index: ArrayLike, slot: ArrayLike) -> NDArray[np.float64]:
    """Four uniforms for each key: float64 [..., 4], multiples of 2**-32 in [0, 1). Arguments as `words`."""
    return words(seed, epoch, index, slot).astype(np.float64) * TWO_POW_MINUS_32


def uniform(seed: int, epoch: ArrayLike, index: ArrayLike, slot: ArrayLike) -> NDArray[np.float64]:
    """One uniform for each key: float64 [...], in [0, 1); the first of `uniforms`."""
    return uniforms(seed, epoch, index, slot)[..., 0]


def integers(seed: int, epoch: ArrayLike, index: ArrayLike, slot: ArrayLike, *, high: ArrayLike) -> NDArray[np.int64]:
    """Integers in [0, high): int64 [...]. `high` is in [1, 2**31] and broadcasts.

    floor(word * high / 2**32) (Lemire 2019 without the rejection step): no value is favoured by more than
    high / 2**32 relative.

    Raises:
        TypeError, ValueError: an argument is not an integer, or out of its range (see `words`).
    """
    bound = _uint64(high, "high", 2**31 + 1)
    if bound.size and int(bound.min()) < 1:
        raise ValueError("high must be at least 1")
    word = words(seed, epoch, index, slot)[..., 0].astype(np.uint64)
    return ((word * bound) >> _SHIFT).astype(np.int64)


def normals(seed: int, epoch: ArrayLike, index: ArrayLike, slot: ArrayLike) -> NDArray[np.float64]:
    """Four standard normals for each key: float64 [..., 4], |x| < 6.4. Arguments as `words`."""
    return normal_quantile((words(seed, epoch, index, slot).astype(np.float64) + 0.5) * TWO_POW_MINUS_32)


def permutation(seed: int, epoch: int, count: int, slot: int = SLOT_ORDER) -> NDArray[np.int64]:
    """A permutation of range(count) for this (seed, epoch, slot): int64 [count].

    Sorts by a keyed 64-bit number of each index, so removing an index from the data never reshuffles the others.

    Raises:
        TypeError, ValueError: an argument is not an integer, or out of its range (see `words`); `count` is negative.
    """
    if operator.index(count) < 0:
        raise ValueError(f"count must not be negative, not {count}")
    return shuffled(seed, epoch, np.arange(count, dtype=np.int64), slot)


def shuffled(seed: int, epoch: int, index: NDArray[np.int64], slot: int) -> NDArray[np.int64]:
    """The positions of `index` in a keyed random order: int64 [n]; equal indices keep their order."""
    return np.argsort(sort_keys(seed, epoch, index, slot), kind="stable")


def sort_keys(seed: int, epoch: ArrayLike, index: ArrayLike, slot: ArrayLike) -> NDArray[np.uint64]:
    """A random 64-bit number for each key: uint64 [...]. Sorting by it shuffles."""
    whole = np.asarray(index)
    if whole.ndim == 1 and len(whole) > _AT_ONCE and np.ndim(epoch) == np.ndim(slot) == 0:
        parts = (whole[start : start + _AT_ONCE] for start in range(0, len(whole), _AT_ONCE))
        return np.concatenate([sort_keys(seed, epoch, part, slot) for part in parts])
    pair = words(seed, epoch, index, slot)
    return (pair[..., 0].astype(np.uint64) << _SHIFT) | pair[..., 1].astype(np.uint64)


def derive_seed(seed: int, epoch: int, index: int, slot: int) -> int:
    """A seed in [0, 2**63) for a library that needs its own generator (torch, at one step)."""
    return int(sort_keys(seed, epoch, index, slot)) >> 1


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm from IEEE +, -, *, / alone: the platform's own differs in the last bit."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < 0.7071067811865476
    mantissa = np.where(small, mantissa * 2.0, mantissa)
    exponent = np.where(small, exponent - 1, exponent)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    series = np.full_like(s, 1.0 / 23.0)
    for denominator in range(21, 0, -2):
        series = series * square + 1.0 / denominator
    return np.asarray(exponent * 0.6931471805599453 + 2.0 * s * series)


# Wichura, "Algorithm AS 241: the percentage points of the normal distribution", Applied Statistics 37 (1988), PPND16.
# Relative accuracy about 1e-16. Coefficients from the highest power down.
_CENTRAL = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_MIDDLE = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
     3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
     0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
)  # fmt: skip
_FAR = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
     0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4,
     0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1.0),
)  # fmt: skip


def _ratio(x: NDArray[np.float64], coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> NDArray[np.float64]:
    top, bottom = (np.full_like(x, c[0]) for c in coefficients)
    for a, b in zip(coefficients[0][1:], coefficients[1][1:], strict=True):
        top, bottom = top * x + a, bottom * x + b
    return np.asarray(top / bottom)


def normal_quantile(p: ArrayLike) -> NDArray[np.float64]:
    """Inverse of the standard normal distribution function for p in (0, 1): float64, same shape.

    Uses only IEEE basic operations and the square root, so the bits are the same everywhere.
    """
    p = np.asarray(p, dtype=np.float64)
    q = p - 0.5
    central = q * _ratio(0.180625 - q * q, _CENTRAL)
    tail = np.clip(np.where(q < 0, p, 1.0 - p), 1e-300, 0.5)
    r = np.sqrt(-_log(tail))
    outer = np.where(r <= 5.0, _ratio(r - 1.6, _MIDDLE), _ratio(r - 5.0, _FAR))
    return np.asarray(np.where(np.abs(q) <= 0.425, central, np.where(q < 0, -outer, outer)))
