"""The errors that Kitae raises.

KitaeError                caused by the user; one line says what, where, and the cure. The command line exits with 2.
├── RecipeError           a recipe, study file or override: names the field and the valid names or range
├── DataError             a source, image, label or split: names the file
├── AugmentError          wrong image batch or op parameters
├── TrainingError         the loop, its checkpoints, the run folder
│   ├── TrainingInterruptedError   a signal arrived; the work so far is kept
│   └── TrainingDivergedError      numbers were not finite, as they would be again
├── CompressionError      pruning, quantization
│   └── BudgetError           nothing met the budget; the closest is kept
├── ExportError           writing, verifying or reading an exported file
└── MissingExtraError     a library that an extra would install is missing

Anything else is a bug in Kitae and shows its traceback, but for errors of the file system.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType


class KitaeError(Exception):
    """An error that the user can correct; its message is always one line."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(" ".join(arg.splitlines()) if isinstance(arg, str) else arg for arg in args))


class RecipeError(KitaeError):
    """A recipe, study file or override is wrong."""


class DataError(KitaeError):
    """A data source, image, label or split is wrong."""


class AugmentError(KitaeError):
    """An image batch or an op's parameters are wrong."""


class TrainingError(KitaeError):
    """Training cannot start or continue."""


class TrainingInterruptedError(TrainingError):
    """SIGTERM or SIGINT arrived; the state was saved if there is a checkpoint.

    Attributes:
        where: what stopped, and when.
        kept: what was kept, and how to resume.
    """

    def __init__(self, where: str, kept: str) -> None:
        super().__init__(where, kept)
        self.where, self.kept = map(str, self.args)

    def __str__(self) -> str:
        return f"{self.where}; {self.kept}"


class TrainingDivergedError(TrainingError):
    """Losses or gradients were not finite; the same training would diverge again."""


class CompressionError(KitaeError):
    """A model cannot be compressed as asked."""


class BudgetError(CompressionError):
    """Nothing met the budget.

    Attributes:
        folder: the compression folder, with the figures of every candidate and the file of the closest one.
        closest: the closest candidate, in brackets, and the limits that it exceeds.
    """

    def __init__(self, folder: Path, closest: str) -> None:
        super().__init__(folder, closest)
        self.folder, self.closest = folder, closest

    def __str__(self) -> str:
        return (
            f"{self.folder}: no candidate is within the budget; the closest {self.closest}; it is kept as closest.onnx"
        )


class ExportError(KitaeError):
    """An exported file cannot be written, verified or read."""


class MissingExtraError(KitaeError):
    """A library that one of Kitae's extras installs is missing."""


# Module -> the extra that installs it.
_EXTRAS = {
    **dict.fromkeys(("torch", "torchvision", "numba", "scipy", "pandas", "safetensors", "pyarrow",
                     "matplotlib", "jinja2", "filelock", "fsspec"), "train"),
    **dict.fromkeys(("onnx", "onnxruntime.quantization", "onnxscript", "torch_pruning", "torchao"), "compress"),
    **dict.fromkeys(("huggingface_hub", "timm"), "models"),
    "onnxruntime": "runtime", "optuna": "search", "ray": "cluster", "tensorboard": "track",
}  # fmt: skip


def one_line(error: BaseException, limit: int = 200) -> str:
    """The message of another library's error on one line of at most `limit` characters, or the error's name."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """A hint for a mistyped name, ` (did you mean epochs?)`; empty where no valid name is close."""
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def lacking(module: str | None) -> MissingExtraError | None:
    """An error that names the extra which installs a module; None if no extra does."""
    parts = (module or "").split(".")
    extra = _EXTRAS.get(".".join(parts[:2])) or _EXTRAS.get(parts[0])
    return None if extra is None else MissingExtraError(f"{module} is not installed: {install(extra)}")


def install(extra: str) -> str:
    """The command that installs one of Kitae's extras into this environment, from where Kitae itself was installed.

    From a folder, a wheel or a repository it names that (PEP 610).
    """
    import importlib.metadata
    import json
    import shlex
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        origin = json.loads(importlib.metadata.distribution("kitae").read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        origin = {}
    url = str(origin.get("url", ""))
    if url.startswith("file://"):
        folder = shlex.quote(f"{url2pathname(urlsplit(url).path)}[{extra}]")
        return f"{_installer()} {'-e ' if origin.get('dir_info', {}).get('editable') else ''}{folder}"
    if control := origin.get("vcs_info"):
        revision = control.get("requested_revision")  # without it, the default branch would be installed
        url = f"{control['vcs']}+{url}{f'@{revision}' if revision else ''}"
    return f"{_installer()} 'kitae[{extra}]{f' @ {url}' if url else ''}'"


def _installer() -> str:
    """The command that installs a package into this environment, up to the name of the package."""
    import importlib.util
    import shlex
    import shutil

    if importlib.util.find_spec("pip") is None:  # made by uv
        return f"uv pip install --python {shlex.quote(sys.executable)}"
    found = shutil.which("pip")
    if found is not None and Path(found).parent.resolve().is_relative_to(Path(sys.prefix).resolve()):
        return "pip install"
    return f"{shlex.quote(sys.executable)} -m pip install"  # the shell's pip installs elsewhere


def require(module: str) -> ModuleType:
    """Import `module`, or raise an error that names the extra which installs it, or what it imports.

    Raises:
        MissingExtraError: a module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        of_extra = lacking(module if module.startswith(missing) else missing)
        if of_extra is None:
            raise
        raise of_extra from error
