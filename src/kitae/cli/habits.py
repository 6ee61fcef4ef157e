"""Commands of other tools and their names in Kitae, and errors of the command line in our terms."""

from __future__ import annotations

from cyclopts import CycloptsError, MissingArgumentError, UnknownOptionError, UnusedCliTokensError

COMMANDS = {
    "fit": "train", "finetune": "train", "fine-tune": "train", "val": "evaluate", "validate": "evaluate",
    "test": "evaluate", "eval": "evaluate", "infer": "predict", "classify": "predict", "prune": "compress",
    "quantize": "compress", "benchmark": "bench", "ablate": "study ablate", "check": "data check", "fix": "data fix",
    "completion": "--install-completion",
}  # fmt: skip


def hint(problem: UnknownOptionError) -> str | None:
    """One line that names our option, or the recipe field to set; None where neither is known."""
    given = (problem.token.keyword or problem.token.value).partition("=")[0]
    word = given.lstrip("-").replace("-", "_")
    from kitae.recipe import NAMES_ELSEWHERE, field_ending

    ours = NAMES_ELSEWHERE.get(word, word)
    known = {name for argument in problem.argument_collection for name in argument.names}
    option = f"--{ours.replace('_', '-')}"
    if option in known:
        return f"there is no option {given}: use {option}"
    field = field_ending(ours) if "--set" in known else None
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
