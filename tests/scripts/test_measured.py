"""What is written into the pages of the techniques is that of the studies that they name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from measured import chosen


def test_a_study_that_is_not_there_is_no_empty_table() -> None:
    results = [SimpleNamespace(spec=SimpleNamespace(name=name)) for name in ("one", "two", "three")]
    assert [result.spec.name for result in chosen(results, ["three", "one"])] == ["three", "one"]
    with pytest.raises(KeyError, match="renamed"):
        chosen(results, ["one", "renamed"])
