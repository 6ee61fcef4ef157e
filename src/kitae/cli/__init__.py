"""The command line: parses, calls the public function, prints.

Everything heavy is imported inside the verb that needs it, so `kitae --help` loads neither torch nor numba.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings

from cyclopts import CycloptsError, MissingArgumentError, UnknownOptionError, UnusedCliTokensError

from kitae import console
from kitae.cli import data, research, ship, start  # noqa: F401  # they register the verbs
from kitae.cli.app import app
from kitae.errors import KitaeError, RecipeError, TrainingInterruptedError, lacking
from kitae.machine import sleep_while_waiting

__all__ = ["app", "main"]

# Commands of other tools -> ours.
_COMMANDS = {
    "fit": "train", "finetune": "train", "fine-tune": "train", "val": "evaluate", "validate": "evaluate",
    "test": "evaluate", "eval": "evaluate", "infer": "predict", "classify": "predict", "prune": "compress",
    "quantize": "compress", "benchmark": "bench", "ablate": "study ablate", "check": "data check", "fix": "data fix",
    "completion": "--install-completion",
}  # fmt: skip
# File system errors that are not bugs of this program.
_USER_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
_AGAIN = "; run the same command again to resume"
_AGAIN_WITHOUT = "; run the same command without --overwrite to resume"  # with it, the finished runs would be deleted
_FIRST_STEPS = """\
kitae train fashion-mini         train a first classifier, on images that come with the package
kitae predict runs/NAME IMAGES   classify images with it
kitae --help                     everything else"""


def main() -> None:
    """Entry point.

    Exit codes: 0 done; 1 a bad verdict, or the reader of a pipe has gone; 2 an error of the user, in one line; 130 or
    143 stopped by a signal.
    """
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal's encoding lacks must not end a command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:]
    if not words:
        console.say(_FIRST_STEPS)
        return
    if words[0] in _COMMANDS:
        console.error(f"there is no command {words[0]!r}: use kitae {_COMMANDS[words[0]]}")
        sys.exit(2)
    sleep_while_waiting(os.environ)
    for about in (r"Image size \(\d+ pixels\) exceeds limit", "Corrupt EXIF data"):
        warnings.filterwarnings("ignore", about)  # of Pillow: photographs have more pixels today; bad files have errors
    try:
        app(exit_on_error=False, print_error=False)
        sys.stdout.flush()  # here a closed pipe is caught; at the exit it would not be
    except CycloptsError as problem:
        if _first_here():
            console.error(_reworded(problem))
        sys.exit(2)
    except KitaeError as problem:
        if _first_here() or not isinstance(problem, RecipeError):
            console.error(str(problem))
        if isinstance(problem, TrainingInterruptedError):
            sys.exit(143 if "SIGTERM" in str(problem) else 130)
        sys.exit(2)
    except ModuleNotFoundError as problem:
        of_extra = lacking(problem.name)
        if of_extra is None:
            raise
        console.error(str(of_extra))
        sys.exit(2)
    except BrokenPipeError:  # `kitae ... | head`: the reader has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as problem:
        if problem.errno not in _USER_ERRORS:
            raise
        console.error(f"{problem.filename or 'a file'}: {problem.strerror}")
        sys.exit(2)
    except KeyboardInterrupt:
        again = _AGAIN if words[0] in ("compress", "study", "search") else ""
        if words[0] in ("study", "search") and "--overwrite" in words:
            again = _AGAIN_WITHOUT
        console.error(f"interrupted{again}")
        sys.exit(130)


def _first_here() -> bool:
    """Whether this is the first of torchrun's processes on this machine, or the only one.

    All read the same options and recipe, so one of them reports what is wrong with these.
    """
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _hint(problem: UnknownOptionError) -> str | None:
    """One line that names our option, or the recipe field to set; None where neither is known."""
    from kitae.recipe import NAMES_ELSEWHERE, field_ending

    given = (problem.token.keyword or problem.token.value).partition("=")[0]
    word = given.lstrip("-").replace("-", "_")
    ours = NAMES_ELSEWHERE.get(word, word)
    known = {name for argument in problem.argument_collection for name in argument.names}
    option = f"--{ours.replace('_', '-')}"
    if option in known:
        return f"there is no option {given}: use {option}"
    field = field_ending(ours) if "--set" in known else None
    return None if field is None else f"there is no option {given}: use --set {field}=VALUE"


def _reworded(problem: CycloptsError) -> str:
    """The parser's error as one line in Kitae's terms."""
    if isinstance(problem, UnknownOptionError):
        return _hint(problem) or str(problem)
    command = " ".join(("kitae", *(problem.command_chain or ())))
    if isinstance(problem, MissingArgumentError) and problem.keyword is None:
        argument = problem.argument
        if argument is not None and argument.field_info.is_positional:
            return f"{argument.name.lstrip('-').upper()} is missing; see {command} --help"
    if isinstance(problem, UnusedCliTokensError) and problem.unused_tokens:
        extra = problem.unused_tokens[0]
        return f"{extra}: use --set {extra}" if "=" in extra else f"{extra}: unexpected argument; see {command} --help"
    return str(problem)
