"""Near duplicates: copies that were re-encoded, resized, or made brighter, darker or grey.

Most copies that were cropped, mirrored, rotated or have a large overlay are missed. The search has two steps:

1. Candidates: images whose 64-bit perceptual hashes differ in at most 7 bits. The hash holds the signs of the lowest
   8 x 8 DCT coefficients against their median (Zauner, "Implementation and benchmarking of perceptual image hash
   functions", 2010). If 64 bits differ in at most 7 places, one of their four 16-bit parts differs in at most one
   (pigeonhole), so equal parts, with up to one bit flipped, find every candidate without comparing all pairs (Norouzi,
   Punjani and Fleet, "Fast search in Hamming space with multi-index hashing", CVPR 2012).
2. Confirmation: the cosine of the two 16 x 16 grey thumbnails after whitening by the whole set's second moments.
   Whitening takes away what all images of the set have in common; without it, any two pairs of trousers on black are
   "the same".
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

HAMMING = 7
SIMILARITY = 0.8  # cosine after whitening: above are re-encoded, resized and recoloured copies, below distinct images
_RIDGE = 0.03  # of the mean variance: directions with less than that are mostly noise
_FLAT = 2.0  # grey levels of standard deviation below which a thumbnail shows nothing to compare
_MAX_CANDIDATES = 200_000_000
_MAX_PAIRS = 100_000
_BLOCK = 1 << 14  # images compared at a time
_CHUNK = 1 << 18  # pairs with an equal part compared at a time

_FREQUENCIES = np.cos(np.pi * (2 * np.arange(32)[None] + 1) * np.arange(8)[:, None] / 64)  # DCT-II, rows of frequency
_BITS = np.uint64(1) << np.arange(63, dtype=np.uint64)


def perceptual_hashes(grey: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """uint8 [n, 32, 32] to uint64 [n]: one bit for each of 63 frequencies (the mean brightness is left out)."""
    spectra = (_FREQUENCIES @ grey.astype(np.float64) @ _FREQUENCIES.T).reshape(len(grey), -1)[:, 1:]
    bits = spectra > np.median(spectra, axis=1, keepdims=True)
    return np.asarray(np.where(bits, _BITS, np.uint64(0)).sum(axis=1, dtype=np.uint64))


def near_duplicates(hashes: NDArray[np.uint64], thumbs: NDArray[np.uint8]) -> tuple[list[tuple[int, int, float]], bool]:
    """Pairs (i, j, similarity) with i < j, most similar first; and whether the search was cut short.

    Args:
        hashes: uint64 [n], see `perceptual_hashes`.
        thumbs: uint8 [n, d], the grey levels of thumbnails.
    """
    spread = [thumbs[part].std(axis=1, dtype=np.float32) for part in _blocks(len(thumbs))]
    kept = np.flatnonzero(np.concatenate([np.empty(0), *spread]) >= _FLAT)
    if len(kept) < 2:
        return [], False
    vectors = _whitened(thumbs[kept])
    hashes = hashes[kept]
    found: dict[tuple[int, int], float] = {}
    candidates, truncated = 0, False
    for one, other in _candidates(hashes):
        candidates += len(one)
        similarity = np.einsum("ij,ij->i", vectors[one].astype(np.float32), vectors[other].astype(np.float32))
        for k in np.flatnonzero(similarity >= SIMILARITY):
            found[int(kept[one[k]]), int(kept[other[k]])] = float(min(similarity[k], 1.0))
        if candidates > _MAX_CANDIDATES or len(found) > _MAX_PAIRS:
            truncated = True
            break
    return sorted(((i, j, s) for (i, j), s in found.items()), key=lambda pair: (-pair[2], pair)), truncated


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, n, _BLOCK))


def _whitened(thumbs: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Unit vectors [n, d]: contrast-normalised thumbnails uint8 [n, d], whitened by their own second moments.

    In blocks and in half precision, since a data set may have millions of images; a cosine is off by 0.001 at most.
    """
    n, d = thumbs.shape

    def normalised(part: slice) -> NDArray[np.float32]:
        pixels = thumbs[part].astype(np.float32)
        pixels -= pixels.mean(axis=1, keepdims=True)
        pixels /= pixels.std(axis=1, keepdims=True)
        return pixels

    moments = np.zeros((d, d))
    for part in _blocks(n):
        pixels = normalised(part)
        moments += pixels.T @ pixels
    variance, axes = np.linalg.eigh(moments / n)
    # With few images, the moments are unreliable in directions that the images do not span: shrink towards the mean.
    trust = 4 * n / (4 * n + d)
    variance = trust * np.maximum(variance, 0) + (1 - trust + _RIDGE) * variance.mean()
    scale = (axes / np.sqrt(variance)).astype(np.float32)
    vectors = np.empty((n, d), np.float16)
    for part in _blocks(n):
        turned = normalised(part) @ scale
        vectors[part] = turned / np.linalg.norm(turned, axis=1, keepdims=True)
    return vectors


def _candidates(hashes: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs i < j of hashes that differ in at most 7 bits, in chunks; a pair may come several times."""
    parts = np.ascontiguousarray(hashes).view(np.uint16).reshape(-1, 4)
    ones = np.array([value.bit_count() for value in range(1 << 16)], dtype=np.uint8)
    for part in range(4):
        values = parts[:, part].astype(np.int64)
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        for flip in (0, *(1 << bit for bit in range(16))):
            low = np.searchsorted(ordered, values ^ flip, side="left")
            ends = np.cumsum(np.searchsorted(ordered, values ^ flip, side="right") - low)
            start = 0
            while start < len(values):
                done = int(ends[start - 1]) if start else 0
                stop = max(start + 1, int(np.searchsorted(ends, done + _CHUNK)))
                counts = np.diff(ends[start:stop], prepend=done)
                one = np.repeat(np.arange(start, stop), counts)
                within = np.arange(len(one)) - np.repeat(np.cumsum(counts) - counts, counts)
                other = order[low[one] + within]
                close = (one < other) & (ones[parts[one] ^ parts[other]].sum(axis=1) <= HAMMING)
                if close.any():
                    yield one[close], other[close]
                start = stop
