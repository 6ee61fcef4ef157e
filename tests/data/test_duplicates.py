"""Equal images are found by one hash each."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kitae.data.duplicates import HASH_BYTES, first_alike, pixel_hash


@given(st.lists(st.integers(0, 5), max_size=40))
def test_the_first_image_with_the_same_pixels(images: list[int]) -> None:
    hashes = b"".join(pixel_hash(bytes([image])) for image in images)
    alike = first_alike(np.frombuffer(hashes, np.uint8).reshape(-1, HASH_BYTES))
    assert alike.tolist() == [images.index(image) for image in images]


def test_size_tells_images_with_the_same_bytes_apart() -> None:
    assert pixel_hash(b"\0" * 12, "(3, 4)") != pixel_hash(b"\0" * 12, "(4, 3)")
    assert len(pixel_hash(b"")) == HASH_BYTES
