"""load(path): open anything that Kitae wrote, and detect its kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kitae.errors import KitaeError

if TYPE_CHECKING:
    from kitae.experiments.result import StudyResult
    from kitae.pipelines.compress import CompressionResult
    from kitae.run import Run
    from kitae.runtime import Model


def load(path: str | Path) -> Run | StudyResult | CompressionResult | Model:
    """Open a run, study or compression folder, or an exported .onnx file.

    Raises:
        KitaeError: there is no such file or folder, Kitae did not write it, or it is damaged.
    """
    target = Path(path)
    if target.suffix == ".onnx" and not target.is_dir():
        from kitae.runtime import Model

        return Model(target)
    if not target.is_dir():
        raise KitaeError(f"{target}: no such folder; give the folder of a run, study or compression, or an .onnx file")
    if (target / "compression.json").is_file():
        from kitae.pipelines.compress import CompressionResult

        return CompressionResult.open(target)
    if (target / "study.yaml").is_file():
        from kitae.experiments.result import StudyResult

        return StudyResult.open(target)
    if (target / "recipe.yaml").is_file():
        from kitae.run import Run

        return Run.open(target)
    raise KitaeError(f"{target}: holds no run, study or compression (no recipe.yaml, study.yaml or compression.json)")
