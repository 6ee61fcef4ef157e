"""Memory of this process, as Linux reports it."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")
needs_status = pytest.mark.skipif(not STATUS.exists(), reason="needs Linux's /proc")


def anonymous_memory() -> int:
    """RssAnon in bytes: what is neither a file nor shared."""
    gc.collect()
    return int(next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon")).split()[1]) * 1024
