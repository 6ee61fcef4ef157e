"""Commands and options that other tools have, and what they are called here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cyclopts import UnknownOptionError

COMMANDS = {
    "fit": "train", "finetune": "train", "fine-tune": "train", "val": "evaluate", "validate": "evaluate",
    "test": "evaluate", "eval": "evaluate", "infer": "predict", "classify": "predict", "prune": "compress",
    "quantize": "compress", "benchmark": "bench", "ablate": "study ablate", "check": "data check", "fix": "data fix",
    "completion": "--install-completion",
}  # fmt: skip

# An option elsewhere -> an option here, or the last parts of a recipe field.
_OPTIONS = {
    "learning_rate": "lr", "lr0": "lr", "batch": "batch_size", "bs": "batch_size", "img": "image_size",
    "imgsz": "image_size", "img_size": "image_size", "arch": "model", "weights": "model.pretrained", "gpus": "device",
    "wd": "weight_decay", "opt": "optimizer.name", "optimizer": "optimizer.name", "sched": "schedule.name",
    "scheduler": "schedule.name", "smoothing": "label_smoothing", "mixup": "mixup_alpha", "cutmix": "cutmix_alpha",
    "drop": "dropout", "drop_path": "stochastic_depth", "amp": "precision", "workers": "threads", "ema": "train.ema",
    "patience": "early_stopping.patience", "project": "out", "output": "out", "name": "out",
}  # fmt: skip


def hint(problem: UnknownOptionError) -> str | None:
    """One line that names our option, or the recipe field to set; None where neither is known."""
    given = (problem.token.keyword or problem.token.value).partition("=")[0]
    word = given.lstrip("-").replace("-", "_")
    ours = _OPTIONS.get(word, word)
    known = {name for argument in problem.argument_collection for name in argument.names}
    option = f"--{ours.replace('_', '-')}"
    if option in known:
        return f"there is no option {given}: use {option}"
    field = _field(ours) if "--set" in known else None
    return None if field is None else f"there is no option {given}: use --set {field}=VALUE"


def _field(ending: str) -> str | None:
    """The field of a recipe that ends so, if there is one."""
    from kitae.recipe import Recipe

    found = [
        name for name in (*_names(Recipe().model_dump(mode="json")), *_OPTIONAL) if f".{name}".endswith(f".{ending}")
    ]
    return found[0] if found else None


# Fields of sections that are null by default.
_OPTIONAL = ("train.early_stopping.patience", "augment.mix.mixup_alpha", "augment.mix.cutmix_alpha")


def _names(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    inner: Iterable[tuple[str, Any]] = tree.items()
    for name, value in inner:
        if isinstance(value, dict) and value:
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
