"""The command line: parses, calls the public function, prints.

Everything heavy is imported inside the verb that needs it, so `kitae --help` loads neither torch nor numba.
"""

from __future__ import annotations

import difflib
import errno
import inspect
import io
import os
import re
import shlex
import sys
import warnings
from itertools import pairwise
from typing import Any

from cyclopts import (
    ArgumentOrderError,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from kitae import console
from kitae.cli import data, research, ship, start  # noqa: F401  # they register the verbs
from kitae.cli.app import app
from kitae.errors import KitaeError, RecipeError, TrainingInterruptedError, lacking
from kitae.machine import sleep_while_waiting

__all__ = ["app", "main"]

# Commands of other tools -> ours.
_COMMANDS = {
    "fit": "train", "finetune": "train", "fine-tune": "train", "finetuning": "train", "fine-tuning": "train",
    "training": "train", "resume": "train --resume", "plan": "train --dry-run", "val": "evaluate",
    "validate": "evaluate", "test": "evaluate", "eval": "evaluate", "infer": "predict", "inference": "predict",
    "classify": "predict", "compare": "report", "prune": "compress", "quantize": "compress", "convert": "export",
    "onnx": "export", "tune": "search", "hpo": "search", "optimize": "search", "benchmark": "bench",
    "ablate": "study ablate", "check": "data check", "fix": "data fix", "prepare": "data prepare",
    "augment": "show augment", "mistakes": "show mistakes", "recipes": "recipe", "list": "recipe", "help": "--help",
    "version": "--version", "completion": "--install-completion",
}  # fmt: skip
# What other tools have options for -> the names of the arguments that it may be here, which are given without one.
_ARGUMENTS = {
    "source": ("images", "data"), "input": ("images", "data"), "images": ("images",), "data": ("data", "source"),
    "dataset": ("data", "source"), "data_dir": ("data", "source"), "model": ("model", "run"),
    "weights": ("model", "run"), "checkpoint": ("model", "run"), "ckpt": ("model", "run"),
}  # fmt: skip
# Commands whose --set does not take fields of a whole recipe.
_OF_DATA = (("data", "check"), ("data", "fix"), ("show", "augment"))
_SEVERAL = ("--set", "--only", "--ratios", "--quantize")  # options that take all words after them
_EMPTY = re.compile(r"(--[\w-]+=)?")
_OF_HOME = re.compile(r"(--[\w-]+=)(~(?:/.*)?)", re.DOTALL)
_CLOSE = 0.7  # similarity of two names from which one may be a typing mistake for the other
# File system errors that are not bugs of this program.
_USER_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
_FIRST_STEPS = """\
kitae train fashion-mini         train a first classifier, on images that come with the package
kitae predict runs/NAME IMAGES   classify images with it
kitae --help                     everything else"""


def main() -> None:
    """Entry point.

    Exit codes: 0 done; 1 a bad verdict, or the reader of a pipe has gone; 2 an error of the user, in one line; 130 or
    143 stopped by a signal.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller, as by `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):  # a name that the encoding lacks must not end a command
            stream.reconfigure(errors="backslashreplace")
    sys.argv[1:] = words = [_at_home(word) for word in sys.argv[1:]]
    if not words:
        console.say(_FIRST_STEPS)
        return
    for word, after in pairwise(("kitae", *words, "--")):
        what = ""
        if _EMPTY.fullmatch(after):  # as a path it would be the current folder
            what = f"{after or f'the argument after {word}'}: is empty"
        elif word in _SEVERAL and after.startswith("--"):  # which would be ignored
            what = f"{word}: has no value"
        if what:
            if _first_here():
                console.error(f"{what}; is a shell variable not set?")
            sys.exit(2)
    if words[0] in _COMMANDS:
        console.error(f"there is no command {words[0]!r}: use kitae {_COMMANDS[words[0]]}")
        sys.exit(2)
    try:
        os.getcwd()
    except FileNotFoundError:  # deleted, or made anew, since the shell entered it; even PyTorch cannot be loaded
        console.error('the current folder no longer exists; change to one that does, such as with: cd "$PWD"')
        sys.exit(2)
    sleep_while_waiting(os.environ)
    for about in (r"Image size \(\d+ pixels\) exceeds limit", "Corrupt EXIF data"):
        warnings.filterwarnings("ignore", about)  # of Pillow: photographs have more pixels today; bad files have errors
    try:
        _run()
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
        _flushed()
        sys.exit(1)
    except OSError as problem:
        if problem.errno not in _USER_ERRORS:
            raise
        unnamed = "a file" if _flushed() else "standard output"
        console.error(f"{problem.filename or unnamed}: {problem.strerror}")
        sys.exit(2)
    except KeyboardInterrupt:
        resumed = words[0] in ("compress", "study", "search") and "--plan" not in words
        # With --overwrite, a study or a search would delete its finished runs.
        how = "without --overwrite" if "--overwrite" in words and words[0] != "compress" else "again"
        console.error("interrupted" + (f"; run the same command {how} to resume" if resumed else ""))
        sys.exit(130)


def _at_home(word: str) -> str:
    """The word with the `~` of `--out=~/runs` expanded, which a shell only does at the beginning of a word."""
    found = _OF_HOME.fullmatch(word)
    return word if found is None else found[1] + os.path.expanduser(found[2])


def _run() -> None:
    """Run the command, and write what it printed: if that fails, only the interpreter's end would say so."""
    try:
        app(exit_on_error=False, print_error=False)
    except SystemExit:  # which ends every command, with or without an error
        sys.stdout.flush()
        raise


def _flushed() -> bool:
    """Write what was printed, or drop it where that fails: it would fail again when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _first_here() -> bool:
    """Whether this is the first of torchrun's processes on this machine, or the only one.

    All read the same options and recipe, so one of them reports what is wrong with these.
    """
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _hint(problem: UnknownOptionError) -> str:
    """One line that names our option or argument, or the field to set, where one is known."""
    from kitae.recipe import NAMES_ELSEWHERE

    given = (problem.token.keyword or problem.token.value).partition("=")[0]
    word, chain = given.lstrip("-").replace("_", "-"), tuple(problem.command_chain or ())
    named = word.replace("-", "_")
    ours = NAMES_ELSEWHERE.get(named, named)
    options = {
        name
        for argument in problem.argument_collection
        if not argument.field_info.is_positional
        for name in argument.names
    }
    unknown = f"there is no option {given}"
    if (option := f"--{ours.replace('_', '-')}") in options:
        return f"{unknown}: use {option}"
    arguments = [one.name.lstrip("-") for one in problem.argument_collection if one.field_info.is_positional]
    for argument in _ARGUMENTS.get(named, ()):
        if argument in arguments:
            return f"{unknown}: {_without_option(argument, chain, arguments)}"
    longer = [name for name in options if name.endswith(f"-{word}")]
    if len(longer) == 1:  # `--epochs` of `kitae compress`, which is --finetune-epochs there
        return f"{unknown}: use {longer[0]}"
    if "--set" in options and (field := _settable(ours, chain)) is not None:
        return f"{unknown}: use --set {field}=VALUE"
    close = difflib.get_close_matches(word, [name.lstrip("-") for name in options], n=1, cutoff=_CLOSE)
    if close:
        return f"{unknown} (did you mean --{close[0]}?)"
    return f"{unknown}; see {' '.join(('kitae', *chain))} --help"


def _settable(name: str, chain: tuple[str, ...]) -> str | None:
    """The field of this name that `--set` of a command takes; None if there is none."""
    if chain == ("compress",):
        from kitae.compression.spec import CompressSpec

        return name if name in CompressSpec.model_fields else None
    from kitae.recipe import field_ending

    if chain == ("study",):
        from kitae.experiments.study_spec import StudySpec

        own = "seeds" if name == "seed" else name
        if own in StudySpec.model_fields:
            return f"study.{own}"
    field = field_ending(name)
    if field is None or (chain in _OF_DATA and not field.startswith("data.")):
        return None
    return None if chain == ("study", "ablate") and field == "train.seed" else field  # there it is --seeds


def _without_option(argument: str, chain: tuple[str, ...], arguments: list[str]) -> str:
    whole = " ".join(("kitae", *chain, *(name.upper() for name in arguments)))
    return f"{argument.upper()} is given without an option: {whole}"


def _unknown_command(problem: UnknownCommandError) -> str:
    """One line that names the commands there are, in the order of use."""
    given, within = (problem.unused_tokens or [""])[0], problem.app or app

    def place(name: str) -> tuple[list[int], int]:
        inner: Any = within[name]
        return [group.sort_key for group in inner.group], inner.sort_key or 0

    names = sorted((name for name in within if not name.startswith("-")), key=place)
    close = difflib.get_close_matches(given, names, n=1, cutoff=_CLOSE)
    hint = f" (did you mean {close[0]}?)" if close else ""
    whole = " ".join((*(problem.command_chain or ()), given))
    return f"there is no command {whole!r}{hint}; the commands are {', '.join(names)}"


def _taking(words: list[str]) -> str | None:
    """The first option that has taken several words, of which the last may be an argument."""
    option, taken = "", 0
    for word in words:
        option, taken = (word, 0) if word.startswith("--") else (option, taken + 1)
        if taken > 1 and option in _SEVERAL:
            return option
    return None


def _reworded(problem: CycloptsError) -> str:
    """The parser's error as one line in Kitae's terms."""
    chain = tuple(problem.command_chain or ())
    if isinstance(problem, UnknownOptionError):
        return _hint(problem)
    if isinstance(problem, UnknownCommandError):
        return _unknown_command(problem)
    command = " ".join(("kitae", *chain))
    if isinstance(problem, ArgumentOrderError) and problem.argument is not None:
        first = problem.prior_positional_or_keyword_supplied_as_keyword_arguments[0]
        names = [first.name.lstrip("-"), problem.argument.name.lstrip("-")]
        return f"--{names[0]}: {_without_option(names[0], chain, names)}"
    if isinstance(problem, MissingArgumentError) and getattr(problem, "keyword", None) is None:  # not in cyclopts 4.0
        argument = problem.argument
        if argument is not None and argument.field_info.is_positional:
            name = argument.name.lstrip("-").upper()
            if option := _taking(problem.root_input_tokens or []):
                return f"{name} is missing; give it before {option}, which takes all words after it"
            return f"{name} is missing; see {command} --help"
    if isinstance(problem, UnusedCliTokensError) and problem.unused_tokens:
        extra = problem.unused_tokens[0]
        settable = "set_" in inspect.signature(problem.target).parameters if problem.target else False
        if "=" in extra and settable:
            return f"{extra}: use --set {shlex.quote(extra)}"
        return f"{extra}: unexpected argument; see {command} --help"
    return str(problem)
