"""What all tests share."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import pytest

# Before torch is loaded, and for processes that tests start: networks are so small that threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# With `--dist loadfile --no-loadscope-reorder` a file that takes long and begins last is waited for.
LONGEST = (
    "pipelines/test_budget.py", "pipelines/test_compress.py", "pipelines/test_train.py", "pipelines/test_probe.py",
    "pipelines/test_folds.py", "test_cli.py", "test_cli_compress.py", "test_docs.py", "test_resume.py",
    "pipelines/test_plan.py", "experiments/test_shipped.py", "experiments/test_search.py",
    "compression/test_quantize.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; the others, and the tests of a file, keep their order."""

    def place(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((at for at, name in enumerate(LONGEST) if path.endswith(f"tests/{name}")), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def operators_read_once() -> Iterator[None]:
    """torch.onnx.export reads its table of operators again for every file: a third of the time of a small one."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield
