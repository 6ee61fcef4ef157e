"""Images with the same pixels, found by one hash an image."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

HASH_BYTES = 16


def pixel_hash(pixels: bytes | memoryview, about: str = "") -> bytes:
    """BLAKE2b over an image's pixels, 16 bytes.

    Args:
        pixels: in one fixed order and colour mode.
        about: text that distinguishes images with the same bytes, such as their size.
    """
    digest = hashlib.blake2b(about.encode(), digest_size=HASH_BYTES)
    digest.update(pixels)
    return digest.digest()


def first_alike(hashes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each image, the first image with the same hash (possibly itself): uint8 [N, 16] to int64 [N]."""
    if not len(hashes):
        return np.empty(0, np.int64)
    words = np.ascontiguousarray(hashes).view(np.uint64)
    order = np.lexsort((words[:, 1], words[:, 0]))  # stable: of equals, the first image comes first
    ordered = words[order]
    new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    alike = np.empty(len(words), np.int64)
    alike[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return alike
