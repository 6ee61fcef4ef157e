"""What the page of a study says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kitae.errors import KitaeError
from kitae.reporting.pictures import read_pictures
from kitae.reporting.results import Analysis, StudyRecord
from kitae.reporting.values import between


def content(record: StudyRecord | None, folder: Path) -> dict[str, Any]:
    """What study.html names.

    Args:
        record: None where the study has no result yet.
    """
    try:
        asked = (folder / "study.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KitaeError(f"{folder / 'study.yaml'}: cannot be read ({error})") from error
    warnings = []
    if record is None:
        warnings.append("This study is not finished: its effects have not been worked out yet.")
    elif record.runs.failed:
        failed, planned = len(record.runs.failed), record.runs.planned
        warnings.append(f"{failed} of {planned} runs did not finish; they are in no number below.")
    return {
        "over": "Study",
        "title": folder.resolve().name if record is None else record.name,
        "subtitle": "" if record is None else record.about,
        "warnings": warnings,
        "study": record,
        "asked": asked,
        "noise": noise,
        "pictures": read_pictures(folder),
    }


def noise(analysis: Analysis) -> str:
    """How much runs scatter that differ in nothing but the seed."""
    found = analysis.noise
    unit, scale = ("%", 100.0) if analysis.ratio else (analysis.unit, 1.0)
    if found.sd is None or not found.df:
        return "Noise between runs: not known; more seeds are needed."
    interval = between((found.low, found.high), scale, 2)
    return (
        f"Noise: runs that differ in nothing but the seed scatter by {found.sd * scale:.2f} {unit} (standard "
        f"deviation, {interval}, {found.df:g} degrees of freedom)."
    )
