"""The command `kitae` and its groups; importing the modules of the verbs registers them here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from kitae import __version__, console
from kitae.errors import KitaeError

START = Group("Start", sort_key=1)
SHIP = Group("Ship", sort_key=2)
DATA = Group("Data", sort_key=3)
RESEARCH = Group("Research", sort_key=4)

app = App(
    name="kitae",
    version=__version__,
    help="From a folder of images to a small, fast, trusted classifier.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # main says what to do next
)


def _part(name: str, about: str, group: Group, sort_key: int | None = None) -> App:
    """A verb with subcommands."""
    return App(name=name, help=about, help_format="plaintext", group=group, sort_key=sort_key)


data_app = _part("data", "Check a data source, correct it, or decode it ahead of time.", DATA)
study_app = _part("study", "Measure what techniques contribute, with paired seeds and intervals.", RESEARCH, 1)
bench_app = _part("bench", "Measure what a recipe costs on this machine.", RESEARCH, 3)
show_app = _part("show", "Draw what something does, as PNG files.", RESEARCH, 4)
for inner in (data_app, study_app, bench_app, show_app):
    app.command(inner)


@app.command(name="--install-completion", group="Commands")
def install_completion(
    *, shell: Literal["bash", "zsh", "fish", "powershell"] | None = None, output: Path | None = None
) -> None:
    """Install the completion of commands and options for your shell.

    Example: kitae --install-completion --shell bash

    Parameters
    ----------
    shell
        Default is the shell that you are in.
    output
        Only write the script to this file; the start-up file of the shell is not changed.
    """
    try:
        script = app.install_completion(shell=shell, output=output, add_to_startup=output is None)
    except OSError:
        raise
    except Exception as error:  # a shell that is not known: cyclopts does not export the type of this error
        if type(error).__name__ != "ShellDetectionError":
            raise
        raise KitaeError("the shell is not known: give --shell bash, zsh, fish or powershell") from error
    console.say(f"completion script: {script}")
    if output is None:
        console.say("open a new shell to use it")


Sets = Annotated[
    list[str] | None,
    Parameter(name="--set", consume_multiple=True, negative=(), help="Override fields: a.b=value c=value ..."),
]

_Json = Annotated[
    bool, Parameter(name="--json", negative=(), help="Print the result as JSON, and everything else to stderr.")
]


def answering(verb: Callable[..., None]) -> Callable[..., None]:
    """Add the option `--json` to a verb: it then only prints to stdout what it passes to `console.answer`."""

    @functools.wraps(verb)
    def with_json(*args: Any, json: bool = False, **options: Any) -> None:
        with console.json_only(json):
            verb(*args, **options)

    signature = inspect.signature(verb, eval_str=True)
    option = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Json)
    with_json.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), option]
    )
    with_json.__annotations__ = {**verb.__annotations__, "json": _Json}
    return with_json
