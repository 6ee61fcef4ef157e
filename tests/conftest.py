"""What all tests share."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator
from typing import Any

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


@pytest.fixture(scope="session")
def patterns_traced_once() -> Iterator[None]:
    """torchao traces the same few patterns, as a convolution with BatchNorm, again for every network and every epoch.

    Most of the time of simulated quantization of a small network.
    """
    from torchao.quantization.pt2e import qat_utils, utils

    trace, traced = getattr(utils, "_get_aten_graph_module_for_pattern", None), dict[Any, Any]()
    if trace is None:  # a private function, which another version may lack: then the tests take longer
        yield
        return

    def once(pattern: Any, inputs: tuple[Any, ...], is_cuda: bool = False, **options: Any) -> Any:
        cells = tuple(cell.cell_contents for cell in pattern.fn.__closure__ or ())
        key = (pattern.fn.__code__, cells, tuple(one.shape for one in inputs), is_cuda, tuple(options.items()))
        if key not in traced:
            traced[key] = trace(pattern, inputs, is_cuda, **options)
        return copy.deepcopy(traced[key])

    with pytest.MonkeyPatch.context() as patched:
        for module in (utils, qat_utils):
            patched.setattr(module, trace.__name__, once)
        yield


@pytest.fixture(scope="session")
def one_thread_a_session() -> Iterator[None]:
    """ONNX Runtime takes a thread for each core, which wait in a loop: the processes of the tests slow each other down.

    Where a test asks for threads it gets them.
    """
    import onnxruntime

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = 1

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(onnxruntime, "SessionOptions", Options)
        yield
