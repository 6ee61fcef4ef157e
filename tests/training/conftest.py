"""The toy world as a fixture."""

from __future__ import annotations

from typing import Any

import pytest

from tests.training.toy_world import WORLD, ToyAugment, ToyData, ToyValidate


@pytest.fixture
def toy() -> dict[str, Any]:
    data = ToyData()
    return {
        "data": data,
        "augment": ToyAugment(),
        "validate": ToyValidate(data),
        "world": WORLD,
        "precision": "fp32",
    }
