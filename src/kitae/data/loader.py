"""Images in the order of an epoch: no worker processes, no state, no copy of the data.

The order is keyed by (seed, epoch, row), so it does not depend on threads, processes or a resume, and a batch is a
slice of it. Pixels are read from the memory-mapped store, or decoded from shards; the operating system's page cache is
the only cache. Data larger than memory are shuffled by blocks, see `order`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kitae import keyed
from kitae.data.ahead import ReadAhead
from kitae.data.encoded import Encoded
from kitae.data.order import Blocks, block_order, lanes_of
from kitae.data.parallel import memory_bytes
from kitae.data.pictures import Pictures, level_sums
from kitae.data.spec import DataSpec

Crop = Callable[[NDArray[np.int64], NDArray[np.int64], int, int], NDArray[np.uint8]]
"""rows int64 [b], indices int64 [b], seed, epoch -> images uint8 [b, C, H, W]."""

REPEAT_SHIFT = 32  # index = store row + (repeat << 32)
_ROW_MASK = (1 << REPEAT_SHIFT) - 1
_CHUNK_BYTES = 8 << 20
_STRETCH_BYTES = 4 << 20  # bytes of a store that are read sequentially, so that reading takes longer than a disk seek


def blocks_of(
    images: NDArray[np.uint8] | Pictures | Encoded, rows: NDArray[np.int64], spec: DataSpec, batch_size: int
) -> Blocks | None:
    """The blocks of a store's images if an epoch is shuffled by blocks; None if all images are shuffled at once.

    Args:
        rows: int64 [n], those of the training images, whose shards the lanes share.
    """
    if spec.order == "full":
        return None
    if isinstance(images, Encoded):
        shards = len(np.unique(images.of[rows]))
        return Blocks(images.of, spec.shuffle_buffer, lanes_of(shards, batch_size), batch_size)
    if spec.order == "auto" and images.nbytes <= memory_bytes() / 2:
        return None
    stretch = max(1, _STRETCH_BYTES * len(images) // images.nbytes)
    return Blocks(np.arange(len(images)) // stretch, spec.shuffle_buffer)


def begun_order(images: NDArray[np.uint8] | Pictures | Encoded, spec: DataSpec) -> DataSpec:
    """The data of a run that has begun, with `order: auto` resolved: one that shuffled by blocks has recorded `blocks`.

    So a run keeps its order on a machine with less memory. Images in shards are always shuffled by blocks with `auto`.
    """
    if spec.order != "auto" or isinstance(images, Encoded):
        return spec
    return spec.model_copy(update={"order": "full"})


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The images of one split.

    Attributes:
        images: all images of the store: uint8 [M, C, H, W], or whole pictures, or encoded images.
        rows: int64 [n], the rows of the store that belong to the set, each once.
        labels: int64 [M], of the whole store.
        classes: K names.
        balance: `sampler` makes `order` draw every class equally often.
        blocks: the blocks of images if `order` shuffles by blocks; None shuffles all images at once.
        ahead: reads the next window of `order` into the page cache while one is trained on.
        crop: reads training images from whole or encoded pictures: takes rows of the store, indices, seed and epoch,
            returns uint8 [b, C, H, W]; None reads images as an evaluation sees them.
        guard: called with the rows before they are gathered; raises for closed test rows (see `Splits.guard`).
    """

    images: NDArray[np.uint8] | Pictures | Encoded
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    balance: Literal["none", "sampler", "loss"] = "none"
    guard: Callable[[NDArray[np.int64]], None] | None = None
    crop: Crop | None = None
    blocks: Blocks | None = None
    ahead: ReadAhead | None = None

    def __len__(self) -> int:
        """Images in an epoch: the n of the set, also with `sampler`."""
        return len(self.rows)

    def counts(self) -> NDArray[np.int64]:
        """Images of each class: int64 [K]."""
        return np.bincount(self.labels[self.rows], minlength=len(self.classes))

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Keyed indices of one epoch, shuffled: int64 [n].

        An index is a store row; with `balance="sampler"`, the bits from 32 up count the earlier occurrences of the row
        in this epoch, so that each repeat is augmented differently. Every class then gets n / K places (the remaining
        places rotate through the classes from epoch to epoch): images of small classes are repeated, and of large
        classes a different part is used in every epoch.
        """
        index = self._balanced(seed, epoch) if self.balance == "sampler" else self.rows
        if self.blocks is not None:
            rows = index & _ROW_MASK
            index, windows = block_order(index, rows, self.blocks, seed, epoch)
            if self.ahead is not None:
                self.ahead.begin(index & _ROW_MASK, windows)
            return index
        return index[keyed.shuffled(seed, epoch, index, keyed.SLOT_ORDER)]

    def _balanced(self, seed: int, epoch: int) -> NDArray[np.int64]:
        counts = self.counts()
        present = np.flatnonzero(counts)
        share, left_over = divmod(len(self.rows), len(present))
        by_class = self.rows[np.argsort(self.labels[self.rows], kind="stable")]
        parts = []
        for place, rows in enumerate(np.split(by_class, np.cumsum(counts[present])[:-1])):
            quota = share + ((place - epoch) % len(present) < left_over)
            whole, part = divmod(quota, len(rows))
            repeats = np.arange(whole, dtype=np.int64)[:, None] << REPEAT_SHIFT
            more = rows[keyed.shuffled(seed, epoch, rows, keyed.SLOT_SAMPLER)[:part]]
            parts += [(rows + repeats).ravel(), more + (whole << REPEAT_SHIFT)]
        return np.concatenate(parts)

    def gather(
        self, index: NDArray[np.int64], *, seed: int = 0, epoch: int | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images and labels of some indices, in their order.

        Args:
            index: int64 [b], as `order` gives them, or any rows of the store; only `crop` uses the repeat bits.
            seed, epoch: the key of the random crops of `crop`; without an epoch, images are read as for an evaluation.

        Returns:
            uint8 [b, C, H, W], C-contiguous and writable, a copy; int64 [b].

        Raises:
            IndexError: a row beyond the store.
            TestClosedError: a test row before the test was opened, if the set has `Splits.guard`.
        """
        rows = np.asarray(index, dtype=np.int64) & _ROW_MASK
        if self.guard is not None:
            self.guard(rows)
        labels = np.asarray(self.labels[rows], dtype=np.int64)
        if self.ahead is not None and epoch is not None:
            self.ahead.reached(rows)
        if self.crop is None or epoch is None:
            return self._pixels(rows), labels
        return self.crop(rows, np.asarray(index, dtype=np.int64), seed, epoch), labels

    def _pixels(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        if isinstance(self.images, np.ndarray):
            return np.take(self.images.view(np.ndarray), rows, axis=0)
        return self.images[rows]

    def class_weights(self) -> NDArray[np.float32]:
        """Weights of the classes for `balance="loss"`: float32 [K].

        n / (K n_c): inverse to the class frequency, with mean 1 over the images, so that the scale of the loss and the
        learning rate keep their meaning (King and Zeng, "Logistic regression in rare events data", Political Analysis
        9, 2001; scikit-learn's `balanced`). A class without images has weight 0, and K counts the others.
        """
        counts = self.counts()
        weights = np.zeros(len(counts))
        np.divide(len(self.rows), np.count_nonzero(counts) * counts, out=weights, where=counts > 0)
        return weights.astype(np.float32)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and (population) standard deviation of pixel / 255, per channel, over the set.

        Computed from exact sums of the levels and of their squares: those in the store for whole pictures, else read in
        chunks; for encoded images from a keyed sample of 2,048.
        A channel that never varies has deviation 1, so that dividing by it is harmless.
        """
        images, rows = self.images, self.rows
        if isinstance(images, Pictures):
            n, sums = int((images.heights[rows] * images.widths[rows]).sum()), images.sums[rows].sum(axis=0)
        else:
            rows = np.sort(images.sample(rows) if isinstance(images, Encoded) else rows)
            _, channels, height, width = images.shape
            n, sums = len(rows) * height * width, np.zeros((2, channels), np.int64)
            step = max(1, _CHUNK_BYTES // (channels * height * width))
            for start in range(0, len(rows), step):
                sums += level_sums(self._pixels(rows[start : start + step])).sum(axis=1)
        means, deviations = [], []
        for first, second in sums.T.tolist():  # Python integers: exact however many pixels there are
            variance = (n * second - first * first) / (n * n)
            means.append(first / n / 255)
            deviations.append(variance**0.5 / 255 if variance else 1.0)
        return tuple(means), tuple(deviations)
