"""`Draw`: keyed randomness for custom ops."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kitae import keyed
from kitae.errors import AugmentError


class Draw:
    """Random numbers of an op, one per sample, by slot.

    The same slot gives the same numbers again; slots 0 to 63 belong to this op alone.

    Args:
        seed: in [0, 2**64).
        epoch: an integer in [0, 2**32), or one per sample.
        index: int64 [N] in [0, 2**63), which samples.
        first: the op's first slot, see `keyed.op_slot`.
    """

    def __init__(self, seed: int, epoch: int | NDArray[np.int64], index: NDArray[np.int64], first: int) -> None:
        self.seed, self.epoch, self.index, self._first = seed, epoch, index, first

    def _slot(self, slot: int) -> int:
        if not 0 <= slot < keyed.SLOTS_PER_OP:
            raise AugmentError(f"slot must be in [0, {keyed.SLOTS_PER_OP}), not {slot}")
        return self._first + slot

    def uniform(self, slot: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """float64 [N] in [low, high)."""
        return low + (high - low) * keyed.uniform(self.seed, self.epoch, self.index, self._slot(slot))

    def integers(self, slot: int, low: int, high: int) -> NDArray[np.int64]:
        """int64 [N] in [low, high)."""
        return low + keyed.integers(self.seed, self.epoch, self.index, self._slot(slot), high=high - low)

    def normal(self, slot: int) -> NDArray[np.float64]:
        """float64 [N], standard normal."""
        return keyed.normals(self.seed, self.epoch, self.index, self._slot(slot))[..., 0]

    def seeds(self, slot: int) -> NDArray[np.int64]:
        """int64 [N] in [0, 2**63), to seed a generator with."""
        keys = keyed.sort_keys(self.seed, self.epoch, self.index, self._slot(slot))
        return (keys >> np.uint64(1)).astype(np.int64)
