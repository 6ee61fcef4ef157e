"""The command `kitae` and its groups; importing the modules of the verbs registers them here."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter, Token

from kitae import __version__, console
from kitae.errors import KitaeError
from kitae.files import unwritable

START = Group("Start", sort_key=1)
SHIP = Group("Ship", sort_key=2)
DATA = Group("Data", sort_key=3)
RESEARCH = Group("Research", sort_key=4)

app = App(
    name="kitae",
    version=__version__,
    help="From a folder of images to a small, fast, trusted classifier.\n\nExample: kitae train photos/ --minutes 10",
    help_format="plaintext",
    default_parameter=Parameter(negative=(), consume_multiple=True),
    suppress_keyboard_interrupt=False,  # main says what to do next
)
# Verbs with subcommands.
data_app = App(
    "data",
    "Check a data source, correct it, or decode it ahead of time.\n\nExample: kitae data check photos/",
    group=DATA,
)
study_app = App(
    "study",
    "Measure what techniques contribute, with paired seeds and intervals.\n\nExample: kitae study mixing --plan",
    group=RESEARCH,
    sort_key=1,
)
bench_app = App(
    "bench",
    "Measure what a recipe costs on this machine.\n\nExample: kitae bench cifar10-quick",
    group=RESEARCH,
    sort_key=3,
)
show_app = App(
    "show",
    "Show what augmentation does to your images, and which images a model gets wrong.\n\n"
    "Example: kitae show mistakes runs/mine",
    group=RESEARCH,
    sort_key=4,
)
for inner in (data_app, study_app, bench_app, show_app):
    app.command(inner)


def note_unfinished(run: Any) -> None:
    """Say it if a run that is used for predictions, a `Run`, is not finished."""
    if not run.finished:
        console.remark(
            f"note: {run.path} is not finished, so its probabilities are not calibrated; resume it with: "
            f"{run.resume_command}"
        )


def _whole(_: Any, tokens: Sequence[Token]) -> int:
    """A whole number; cyclopts alone would round `1.5`."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is not a whole number") from None


Whole = Annotated[int, Parameter(converter=_whole)]
WholeOrDefault = Annotated[int | None, Parameter(converter=_whole)]
Sets = Annotated[list[str] | None, Parameter(name="--set", help="Override fields: a.b=value c=value ...")]
Open = Annotated[bool, Parameter(name="--open", help="Open the page in a browser at the end.")]
_Json = Annotated[bool, Parameter(name="--json", help="Print the result as JSON, and everything else to stderr.")]


@app.command(name="--install-completion", group="Commands")
def install_completion(
    *, shell: Literal["bash", "zsh", "fish", "powershell"] | None = None, output: Path | None = None
) -> None:
    """Install tab completion for your shell.

    Example: kitae --install-completion --shell bash

    Args:
        shell: Default is the current shell.
        output: Only write the script to this file; the shell's startup file is not changed.
    """
    from cyclopts.completion.detect import ShellDetectionError

    if output is not None and output.is_file():
        with output.open("rb") as script_before:
            if b"kitae" not in script_before.readline(1000):  # the first line of a script names the command
                raise KitaeError(f"--output {output}: exists and is no completion script of kitae; choose another file")
    try:
        script = app.install_completion(shell=shell, output=output, add_to_startup=output is None)
    except ShellDetectionError as error:
        raise KitaeError("cannot tell which shell this is: give --shell bash, zsh, fish or powershell") from error
    console.say(f"completion script: {script}")
    if output is None:
        console.say("open a new shell to use it")


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


def write_page(folder: Path, *commands: str, browser: bool = False) -> None:
    """Write the folder's report.html, and print its path and two commands to run next: these, or the page's first two.

    If the page cannot be written, the result is kept and the reason is printed as a note.
    """
    from kitae.reporting.page import write_and_say

    page, found = write_and_say(folder)
    if page is not None:
        commands = (*(commands or found), f"kitae report {shlex.quote(str(folder))} --open")[:2]
    for command in commands:
        console.say(f"next: {command}")
    if browser and page is not None:
        show(page)


def require_writable(out: Path, *, folder: bool = False) -> None:
    """Refuse an `--out`, a file or a folder to write into, that cannot be written, before the work that it is for."""
    if problem := unwritable(out / "file" if folder else out):
        raise KitaeError(f"--out {out}: {problem}; choose another --out")


def show(page: Path) -> None:
    """Open a page in the user's browser."""
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        console.remark("note: --open found no browser on this machine")
