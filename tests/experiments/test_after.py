"""Steps after training, by themselves."""

from __future__ import annotations

import numpy as np
import pytest

from kitae.experiments.after import CORRUPTIONS, _corruption


@pytest.mark.parametrize("shape", [(32, 32), (64, 256), (256, 64), (16, 256)])
def test_corruptions_fit_images_that_are_not_square(shape: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 100, (2, 3, *shape), np.uint8)
    for name, (_, severities, *_rest) in CORRUPTIONS.items():
        for severity in severities:
            assert _corruption(name, severity)(images, np.arange(2)).shape == images.shape, name
    covered = (_corruption("occlusion", 0.5)(images, np.arange(2)) == 128).all(axis=(0, 1))
    rows, columns = (np.flatnonzero(covered.any(axis=axis)) for axis in (1, 0))
    assert len(rows) == len(columns) == min(shape) // 2
    assert rows[0] + rows[-1] == shape[0] - 1, "in the centre"
    assert columns[0] + columns[-1] == shape[1] - 1
