"""load(path): open anything that Kitae wrote, and detect its kind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kitae.files import user_path
from kitae.folders import SIGNS, known_kind

if TYPE_CHECKING:
    from kitae.experiments.result import StudyResult
    from kitae.experiments.search_result import SearchResult
    from kitae.experiments.study_spec import StudySpec
    from kitae.pipelines.compress import CompressionResult
    from kitae.recipe import Recipe
    from kitae.run import Run
    from kitae.runtime import Model


def load(path: str | Path) -> Run | StudyResult | SearchResult | CompressionResult | Model | Recipe | StudySpec:
    """Open the folder of a run, a study, a finished search or a compression, an exported .onnx file, or a .yaml file.

    A .yaml file is a recipe, or the definition of a study: what `train` and `study` take.

    Raises:
        KitaeError: there is no such file or folder, Kitae did not write it, or it is damaged.
    """
    target = user_path(path)
    if target.suffix == ".onnx" and not target.is_dir():
        from kitae.runtime import Model

        return Model(target)
    if target.suffix in {".yaml", ".yml"} and target.name != SIGNS["search"] and os.path.isfile(target):
        from kitae.recipe import Recipe, parse_yaml, read_text

        content, _ = parse_yaml(*read_text(target))
        if content.keys() & {"study", "design"}:
            from kitae.experiments.study_spec import StudySpec

            return StudySpec.load(target)
        return Recipe.load(target)
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
