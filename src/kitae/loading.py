"""load(path): open anything that Kitae wrote, and detect its kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kitae.folders import known_kind

if TYPE_CHECKING:
    from kitae.experiments.result import StudyResult
    from kitae.experiments.search_result import SearchResult
    from kitae.pipelines.compress import CompressionResult
    from kitae.run import Run
    from kitae.runtime import Model


def load(path: str | Path) -> Run | StudyResult | SearchResult | CompressionResult | Model:
    """Open the folder of a run, a study, a finished search or a compression, or an exported .onnx file.

    Raises:
        KitaeError: there is no such file or folder, Kitae did not write it, or it is damaged.
    """
    target = Path(path)
    if target.suffix == ".onnx" and not target.is_dir():
        from kitae.runtime import Model

        return Model(target)
    kind = known_kind(target)
    if kind == "compression":
        from kitae.pipelines.compress import CompressionResult

        return CompressionResult.open(target)
    if kind == "search":
        from kitae.experiments.search_result import SearchResult

        return SearchResult.open(target)
    if kind == "study":
        from kitae.experiments.result import StudyResult

        return StudyResult.open(target)
    from kitae.run import Run

    return Run.open(target)
