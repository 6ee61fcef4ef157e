"""The report: one HTML file of a run, a study or a compression, or of several runs side by side.

Everything is inside the file (style, charts, photographs), so it works offline and can be mailed. Pages are templates
over validated records: every string that came from data is escaped, and a Content-Security-Policy allows no request, no
script but the page's own (by its hash), and no picture but data in it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from inspect import getmembers, isfunction
from pathlib import Path
from typing import Any, Protocol

from kitae import __version__, console
from kitae.errors import KitaeError, require
from kitae.files import user_path, write_atomically
from kitae.folders import REPORT, SIGNS, known_kind
from kitae.reporting import comparison_page, compression_page, run_page, study_page, values
from kitae.reporting.compression_results import CompressionRecord
from kitae.reporting.results import RunRecord
from kitae.reporting.study_results import StudyRecord
from kitae.reporting.svg import Chart
from kitae.run import Run

_MARK = b'<meta name="generator" content="kitae '


class Result(Protocol):
    """What `study` and `compress` return, which knows its folder."""

    @property
    def path(self) -> Path: ...


def report(target: Run | Result | str | Path, *others: Run | str | Path) -> Path:
    """Write report.html into the folder of a run, a study or a compression, or compare several runs.

    An unfinished run gives a page of what is known so far. The charts of the page are also written as SVG files into
    the folder's `figures/`.

    Args:
        target: a Run, what `study` or `compress` returned, or a folder, whose kind is detected from its files.
        others: further runs, for a page that compares them all; see `compare`.

    Returns:
        The path of the page.

    Raises:
        KitaeError: not a folder of Kitae, a damaged file, or no permission to write.
    """
    if not others:
        return write(target)[0]
    return compare([target if isinstance(target, Run) else _place(target), *others])


def _place(target: Any) -> Any:
    """The folder of a result; anything else as it is."""
    return getattr(target, "path", target)


def write(target: Run | Result | str | Path) -> tuple[Path, list[tuple[str, str]]]:
    """`report` of one folder; the page, and its next commands: what each is for, and the command."""
    if isinstance(target, Run):
        return _write("run", run_page.content(RunRecord.open(target)), target.path)
    folder = user_path(_place(target))
    kind = known_kind(folder)
    if kind == "search":
        found = next((folder / "rematch").glob(f"*/{SIGNS['study']}"), None)
        cure = f"give the study of its rematch, {found.parent}" if found else "it had no rematch"
        raise KitaeError(f"{folder}: a search has no page; {cure}")
    if kind == "compression":
        return _write(kind, compression_page.content(CompressionRecord.open(folder), folder), folder)
    if kind == "study":
        return _write(kind, study_page.content(StudyRecord.open(folder), folder), folder)
    return write(Run.open(folder))


def write_and_say(folder: Path) -> tuple[Path | None, list[str]]:
    """Write a folder's page after a long function, and print where it is, or why it was not written.

    Returns the page, if it could be written, and its next commands.
    """
    try:
        page, found = write(folder)
    except (KitaeError, OSError) as problem:  # the result is kept
        console.say(f"note: report.html was not written: {problem}")
        return None, []
    console.say(f"page: {page}")
    return page, [command for _, command in found]


def compare(targets: Sequence[Run | str | Path], out: str | Path | None = None) -> Path:
    """Write one page that compares several runs.

    Args:
        targets: two or more runs, or their folders.
        out: the page; None is comparison.html beside the folder of the first run.

    Raises:
        KitaeError: fewer than two runs, the same one twice, a folder that is not a run, or a file of this name that
            Kitae did not write.
    """
    runs = [target if isinstance(target, Run) else Run.open(target) for target in targets]
    paths = [run.path.resolve() for run in runs]
    if len(runs) < 2:
        raise KitaeError(f"a comparison needs two runs or more, not {len(runs)}")
    if twice := [run.path for run, path in zip(runs, paths, strict=True) if paths.count(path) > 1]:
        raise KitaeError(f"{twice[-1]}: is listed twice; give each run once")
    file = user_path(out) if out is not None else paths[0].with_name("comparison.html")
    if file.is_dir():
        raise KitaeError(f"{file}: is a folder; give a file, such as {file / 'comparison.html'}")
    if file.exists() and _MARK not in file.read_bytes()[:4096]:
        raise KitaeError(f"{file}: was not written by Kitae, so it is not replaced; choose another --out")
    html = render("comparison.html", comparison_page.content([RunRecord.open(run) for run in runs]))
    _save(file, html)
    return file


def render(template: str, content: Mapping[str, Any]) -> str:
    """The HTML of a page.

    Args:
        content: what the template names; on every page `over` (the kind of page), `title`, `subtitle`, `warnings`,
            `answer` (the conclusion, in paragraphs) and `commands` ((what for, the command)).
    """
    jinja2 = require("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kitae.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_held,
    )
    environment.filters |= {**dict(getmembers(values, isfunction)), "plural": console.plural}
    environment.globals["MAX_ROWS"] = values.MAX_ROWS
    script = resources.files("kitae.reporting").joinpath("templates/page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    text: str = environment.get_template(template).render(
        version=__version__, when=when, script=script, script_hash=f"sha256-{digest}", **content
    )
    return text


def _held(value: Any) -> Any:
    """Text in which no line breaks between a number and its `%`; what is HTML already, such as a command, as it is."""
    return re.sub(r"(?<=\d) (?=%)", "\u00a0", value) if type(value) is str else value


def _save(file: Path, text: str) -> None:
    write_atomically(file, console.printable(text).encode())


def _write(kind: str, content: Mapping[str, Any], folder: Path) -> tuple[Path, list[tuple[str, str]]]:
    for name, chart in content.items():
        if isinstance(chart, Chart):
            _save(folder / "figures" / f"{name}.svg", chart.file())
    page = folder / REPORT
    _save(page, render(f"{kind}.html", content))
    return page, content["commands"]
