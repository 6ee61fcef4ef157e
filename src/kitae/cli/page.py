"""The page that train, compress and study write at the end, and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kitae import console
from kitae.errors import KitaeError

Open = Annotated[bool, Parameter(name="--open", negative=(), help="Open the page in a browser at the end.")]


def write_page(folder: Path, *commands: str, browser: bool = False) -> None:
    """Write the folder's report.html, and print its path and the commands to run next.

    If the page cannot be written, the result is kept and the reason is printed as a note.
    """
    from kitae.reporting.page import report

    try:
        page = report(folder)
    except KitaeError as problem:
        console.say(f"note: there is no page: {problem}")
        page = None
    if page is not None:
        console.say(f"page: {page}")
    for command in commands:
        console.say(f"next: {command}")
    if browser and page is not None:
        show(page)


def show(page: Path) -> None:
    """Open a page in the user's browser."""
    import webbrowser

    webbrowser.open(page.resolve().as_uri())
