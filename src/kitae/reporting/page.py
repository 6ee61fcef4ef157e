"""The report: one HTML file of a run, a study or a compression.

Everything is inside the file (style, pictures as data URIs), so it works offline, can be mailed, and asks nothing of
anybody. Pages are templates over validated records: every string that came from data is escaped, and a
Content-Security-Policy forbids what should have slipped through.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kitae import __version__
from kitae.errors import KitaeError, require
from kitae.files import write_atomically
from kitae.reporting import compression_page, run_page, study_page, values
from kitae.reporting.results import CompressionRecord, RunRecord, StudyRecord
from kitae.run import Run

_FILTERS = ("share", "between", "decimal", "significant", "milliseconds", "times_between", "count", "large", "size",
            "seconds", "times", "amount", "probability", "plural", "words", "leaves", "records", "signed")  # fmt: skip


def report(target: Run | str | Path) -> Path:
    """Write report.html into the folder of a run, a study or a compression.

    A run that is still training gives a page of what is known by now, which says so.

    Args:
        target: a Run, or a folder; its files tell what it is.

    Returns:
        The path of the page.

    Raises:
        KitaeError: nothing of ours there, a damaged file, or no permission to write.
    """
    if isinstance(target, Run):
        html = render("run.html", run_page.content(RunRecord.open(target), target))
        return _write(html, target.report)
    folder = Path(target)
    if not folder.is_dir():
        raise KitaeError(f"{folder}: no such folder; give the folder of a run, a study or a compression")
    if (folder / "compression.json").is_file():
        record = CompressionRecord.open(folder)
        return _write(render("compression.html", compression_page.content(record, folder)), folder / "report.html")
    if (folder / "study.yaml").is_file():
        html = render("study.html", study_page.content(StudyRecord.open(folder), folder))
        return _write(html, folder / "report.html")
    if (folder / "recipe.yaml").is_file():
        return report(Run.open(folder))
    raise KitaeError(
        f"{folder}: neither a run, a study nor a compression (it has no recipe.yaml, study.yaml or compression.json)"
    )


def render(template: str, content: Mapping[str, Any]) -> str:
    """The HTML of a page.

    Args:
        content: what the template names; `over` (the kind of page), `title`, `subtitle` and `warnings` on every page.
    """
    jinja2 = require("jinja2", "train")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kitae.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(values, name) for name in _FILTERS}
    environment.globals["amounts"] = values.amounts
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    text: str = environment.get_template(template).render(version=__version__, when=when, **content)
    return text


def _write(html: str, path: Path) -> Path:
    write_atomically(path, html.encode())
    return path
