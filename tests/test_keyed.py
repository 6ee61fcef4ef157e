"""Keyed randomness: published vectors, frozen values, and the same bits in Numba."""

from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kitae import keyed

# The known-answer vectors that the authors publish with Random123 (philox4x32, 10 rounds): counter, key, output
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    out = keyed.philox(*(np.uint64(word) for word in (*counter, *key)))
    assert tuple(int(word) for word in out) == expected


def test_words_put_index_epoch_slot_and_seed_where_the_docstring_says() -> None:
    direct = keyed.philox(*(np.uint64(word) for word in (10, 11, 12, 13, 14, 15)))
    words = keyed.words(seed=14 | 15 << 32, epoch=12, index=10 | 11 << 32, slot=13)
    assert words.tolist() == [int(word) for word in direct]
    assert keyed.words(0, 0, 0, 0).tolist() == list(KNOWN_ANSWERS[0][2])


def test_an_order_of_many_samples_takes_little_more_than_its_own_memory() -> None:
    index = np.arange(1 << 20)
    tracemalloc.start()
    try:
        found = keyed.sort_keys(3, 4, index, keyed.SLOT_ORDER)
        assert tracemalloc.get_traced_memory()[1] < 4 * found.nbytes
    finally:
        tracemalloc.stop()
    some = index[::9973]
    words = keyed.words(3, 4, some, keyed.SLOT_ORDER).astype(np.uint64)
    assert (found[some] == words[:, 0] << np.uint64(32) | words[:, 1]).all()


def test_numba_has_the_same_bits_as_numpy() -> None:
    numba = pytest.importorskip("numba")
    philox = numba.njit(keyed.philox)

    @numba.njit
    def fill(seed_low, seed_high, epoch, slot, out):  # type: ignore[no-untyped-def]
        for i in range(len(out)):
            a, b, c, d = philox(np.uint64(i), np.uint64(0), epoch, slot, seed_low, seed_high)
            out[i, 0], out[i, 1], out[i, 2], out[i, 3] = a, b, c, d

    out = np.empty((4096, 4), np.uint64)
    seed = 0x123456789ABCDEF0
    fill(np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32), np.uint64(5), np.uint64(keyed.SLOT_OPS), out)
    assert (out == keyed.words(seed, 5, np.arange(4096), keyed.SLOT_OPS)).all()


def test_golden_values_never_change() -> None:
    """A change here changes every run that anyone has made: raise the version of whatever writes them down."""
    index = np.arange(1000)
    assert _digest(keyed.words(1, 2, index, 3)) == GOLDEN["words"]
    assert _digest(keyed.uniforms(1, 2, index, 3)) == GOLDEN["uniforms"]
    assert _digest(keyed.integers(1, 2, index, 3, high=10)) == GOLDEN["integers"]
    assert _digest(keyed.normals(1, 2, index, 3)) == GOLDEN["normals"]
    assert _digest(keyed.permutation(1, 2, 1000)) == GOLDEN["permutation"]
    assert keyed.permutation(0, 0, 8).tolist() == GOLDEN["short permutation"]
    assert keyed.derive_seed(0, 0, 0, keyed.SLOT_MODEL) == GOLDEN["derived seed"]
    assert (keyed.op_slot("rotate"), keyed.op_slot("rotate", 1)) == (1839867776, 1445576512), "the second draws anew"


GOLDEN = {
    "words": "1fb262a1c7764c58",
    "uniforms": "0c534cec97318264",
    "integers": "3d96b1a13380307a",
    "normals": "47bb91247aa49c87",
    "permutation": "a17ab3d5300b371e",
    "short permutation": [2, 4, 0, 7, 5, 6, 3, 1],
    "derived seed": 5339084418283415324,
}


def test_arguments_broadcast_and_order_does_not_matter() -> None:
    whole = keyed.words(7, np.arange(3)[:, None], np.arange(50)[None], 9)
    assert whole.shape == (3, 50, 4)
    shuffled = np.random.default_rng(0).permutation(50)
    assert (keyed.words(7, 1, shuffled, 9) == whole[1, shuffled]).all()
    assert (keyed.words(7, 2, 41, 9) == whole[2, 41]).all()
    assert (keyed.uniform(7, 2, 41, 9) == keyed.uniforms(7, 2, 41, 9)[0]).all()


def test_global_generators_are_left_alone() -> None:
    np.random.seed(3)
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    keyed.normals(0, 0, np.arange(10), 0)
    keyed.permutation(0, 0, 10)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((-1, 0, 0, 0), ValueError),
        ((2**64, 0, 0, 0), ValueError),
        ((0, -1, 0, 0), ValueError),
        ((0, 2**32, 0, 0), ValueError),
        ((0, 0, -1, 0), ValueError),
        ((0, 0, 2**63, 0), ValueError),
        ((0, 0, 0, 2**32), ValueError),
        ((1.9, 0, 0, 0), TypeError),
        (("1", 0, 0, 0), TypeError),
        ((0, 0.5, 0, 0), TypeError),
        ((0, 0, [1.0], 0), TypeError),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: tuple[object, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        keyed.words(*arguments)  # type: ignore[arg-type]


def test_the_ends_of_every_range_work() -> None:
    for key in ((2**64 - 1, 0, 0, 0), (0, 2**32 - 1, 0, 0), (0, 0, 2**63 - 1, 0), (0, 0, 0, 2**32 - 1)):
        assert keyed.words(*key).shape == (4,)
    for none in (np.zeros(0, np.int64), []):
        assert keyed.words(0, 0, none, 0).shape == (0, 4)
    assert keyed.integers(0, 0, 0, 0, high=2**31) < 2**31
    with pytest.raises(ValueError, match="at least 1"):
        keyed.integers(0, 0, 0, 0, high=0)
    with pytest.raises(ValueError, match="high"):
        keyed.integers(0, 0, 0, 0, high=2**31 + 1)


def test_integers_take_a_bound_each() -> None:
    high = np.arange(1, 1001)
    assert (keyed.integers(0, 0, np.arange(1000), 0, high=high) < high).all()


def test_normal_quantile_agrees_with_scipy() -> None:
    p = np.concatenate([
        np.linspace(1e-9, 1 - 1e-9, 100_001), 10.0 ** np.arange(-15, 0), 1 - 10.0 ** np.arange(-12, 0),
        (np.array([0, 1, 2**31, 2**32 - 1]) + 0.5) * 2.0**-32, [0.075, 0.925, 0.5],
    ])  # fmt: skip
    expected = stats.norm.ppf(p)
    assert np.abs(keyed.normal_quantile(p) - expected).max() <= 1e-14 * np.abs(expected).max() + 1e-14
    assert keyed.normal_quantile(0.5) == 0
    assert (np.diff(keyed.normal_quantile(np.sort(p))) >= 0).all()
    p = np.arange(1, 1024) / 1024
    assert (keyed.normal_quantile(p) == -keyed.normal_quantile(1 - p)).all()


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 300))
def test_permutation_is_one(seed: int, epoch: int, count: int) -> None:
    assert sorted(keyed.permutation(seed, epoch, count)) == list(range(count))


def test_permutations_differ_by_seed_epoch_and_slot_and_repeat() -> None:
    base = keyed.permutation(0, 0, 100)
    for other in (keyed.permutation(1, 0, 100), keyed.permutation(0, 1, 100), keyed.permutation(0, 0, 100, slot=2)):
        assert (base != other).any()
    assert (base == keyed.permutation(0, 0, 100)).all()
    with pytest.raises(ValueError, match="negative"):
        keyed.permutation(0, 0, -1)
    with pytest.raises(TypeError):
        keyed.permutation(0, 0, 2.5)  # type: ignore[arg-type]


def test_a_longer_permutation_keeps_the_order_of_a_shorter_one() -> None:
    longer = keyed.permutation(3, 1, 1000)
    assert (longer[longer < 600] == keyed.permutation(3, 1, 600)).all()


def test_slots_do_not_collide() -> None:
    slots = {name: value for name, value in vars(keyed).items() if name.startswith("SLOT_")}
    taken = [value for name, value in slots.items() if name not in ("SLOT_MIX", "SLOT_OPS")]
    assert len(set(taken)) == len(taken)
    assert not any(keyed.SLOT_MIX <= value < keyed.SLOT_MIX + 8 for value in taken)
    assert max(taken) < keyed.SLOT_OPS
