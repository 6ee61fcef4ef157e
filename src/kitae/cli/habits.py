"""Commands and options of other tools, and their names in Kitae."""

from __future__ import annotations

from cyclopts import CycloptsError, MissingArgumentError, UnknownOptionError, UnusedCliTokensError

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
    field = None
    if "--set" in known:
        from kitae.recipe import field_ending

        field = field_ending(ours)
    return None if field is None else f"there is no option {given}: use --set {field}=VALUE"


def reworded(problem: CycloptsError) -> str:
    """The parser's error as one line in Kitae's terms."""
    command = " ".join(("kitae", *(problem.command_chain or ())))
    if isinstance(problem, MissingArgumentError) and problem.keyword is None:
        argument = problem.argument
        if argument is not None and argument.field_info.is_positional:
            return f"{argument.name.lstrip('-').upper()} is missing; see {command} --help"
    if isinstance(problem, UnusedCliTokensError) and problem.unused_tokens:
        extra = problem.unused_tokens[0]
        return (
            f"{extra}: use --set {extra}" if "=" in extra else f"{extra}: one argument too many; see {command} --help"
        )
    return str(problem)
