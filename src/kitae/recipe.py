"""The recipe: everything that determines a run, in one frozen, validated object.

It combines the specs that the stages define in their own `spec.py`. A recipe is loaded from a YAML file or by the name
of a shipped one, changed with `override`, and saved as YAML that loads to an equal recipe.
"""

from __future__ import annotations

import hashlib
import json
import os
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from kitae import views
from kitae.augment.spec import OPS, AugmentSpec, make_op
from kitae.console import plural, printable
from kitae.data.spec import DataSpec
from kitae.errors import AugmentError, RecipeError, did_you_mean
from kitae.evaluation.spec import EvaluateSpec
from kitae.files import one_line_yaml, user_path, write_atomically
from kitae.folders import SIGNS
from kitae.models.spec import ModelSpec
from kitae.spec import Spec
from kitae.training.spec import TrainSpec

S = TypeVar("S", bound=Spec)

SHIPPED = Path(__file__).with_name("recipes")

OPS_BY_NAME = "augment.train."
"""Prefix of an op in an override, by its name or by its position in the list."""

# PyYAML does not catch errors of its constructors, such as those of impossible dates, odd tags and huge numbers.
YAML_ERRORS = (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, OverflowError)
_MAX_DEPTH = 50  # of lists and mappings in each other; PyYAML needs minutes for 10,000
_OPTIMIZER = "train.optimizer.name"
_MAX_BYTES = 1 << 20  # a recipe is a page of text; anything larger is a mistake or an attack


class Recipe(Spec):
    """What to train, on what, how; see each stage's spec for its fields.

    Attributes:
        name: names the run's page, and its folder (runs/NAME) unless another is given.
    """

    name: str = Field("unnamed", min_length=1, max_length=100)
    data: DataSpec = DataSpec()
    augment: AugmentSpec = AugmentSpec()
    model: ModelSpec = ModelSpec()
    train: TrainSpec = TrainSpec()
    evaluate: EvaluateSpec = EvaluateSpec()

    @classmethod
    def load(cls, path_or_name: str | Path) -> Self:
        """Read a YAML file, or a shipped recipe by its name.

        Raises:
            RecipeError: no such file or name, or a field is wrong (named, with its line).
        """
        text, origin = read_text(path_or_name)
        value, node = parse_yaml(text, origin)
        return checked(cls, value, origin, node)

    def override(self, *assignments: str) -> Self:
        """A copy with fields replaced, each given as `a.b=value`; the value is YAML, so numbers, lists and null work.

        An op of the pipeline is a field by its name: `augment.train.cutout={size: 8}` adds or replaces it,
        `augment.train.cutout.size=8` changes a parameter, `augment.train.cutout=null` removes it. A new
        `train.optimizer.name` also sets its usual rates, weight decay and eps, unless they are given, and a new
        `model.name` removes `model.pretrained_sha256`, the hash of the other network's weights.
        A whole section resets the fields that it does not name, but `data={...}` without a source keeps the source.

        Raises:
            RecipeError: an assignment without `=`, an unknown field, or a value that does not fit.
        """
        return override(self, assignments)

    def __repr__(self) -> str:
        train, optimizer = self.train, self.train.optimizer
        return printable(
            f"Recipe({self.name}: {self.model.name} on {self.data.source}, {plural(train.epochs, 'epoch')}, "
            f"batch {train.batch_size}, {optimizer.name} lr {optimizer.lr:g})"
        )

    def __str__(self) -> str:
        return self.to_yaml()

    def _repr_html_(self) -> str:
        train = self.train
        rows = [
            ["data", self.data.source],
            ["augmentation", ", ".join(name for op in self.model_dump()["augment"]["train"] for name in op) or "none"],
            ["model", self.model.name],
            ["epochs, batch size", f"{train.epochs}, {train.batch_size}"],
            ["optimizer", f"{train.optimizer.name}, lr {train.optimizer.lr:g}"],
            ["schedule", train.schedule.name],
        ]
        return views.block(f"recipe {self.name}", [], [], rows, left=2) + views.folded("all fields", self.to_yaml())

    def save(self, path: str | Path) -> None:
        """Write the whole recipe, defaults included, as YAML."""
        write_atomically(user_path(path), self.to_yaml().encode())

    def to_yaml(self) -> str:
        """The whole recipe as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    @property
    def fingerprint(self) -> str:
        """A hash of the recipe, 16 hex digits; equal recipes have equal fingerprints.

        `train.recut` does not count: a run writes it while training, and its checkpoints stay valid.
        """
        plan = self.model_copy(update={"train": self.train.model_copy(update={"recut": ()})})
        text = json.dumps(plan.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def training_fingerprint(self) -> str:
        """`fingerprint` without the paths of the data, so that a checkpoint stays valid when the images are moved.

        The content of the images is checked apart, by the fingerprint of the store in a run's splits.
        """
        return self.located("", None).fingerprint

    def located(self, source: str, cache: str | None) -> Recipe:
        """The recipe for the same images in another place."""
        return self.model_copy(update={"data": self.data.model_copy(update={"source": source, "cache": cache})})


_LENGTHS = ("train.epochs", "train.epoch_steps", "train.batch_size", "train.accumulate")
# Fields that a run fills in if the user did not set them.
_FILLED_IN = ("data.order", "model.pretrained_sha256", "train.probe", "train.recut")


def differences(saved: Recipe, asked: Recipe) -> list[str]:
    """The fields in which a recipe differs from a run's own; `auto` and fields that a run fills in match any value."""
    before, now = flat(saved.model_dump(mode="json")), flat(asked.model_dump(mode="json"))
    open_ = tuple(field for field in _FILLED_IN if not any(f"{name}.".startswith(f"{field}.") for name in now))
    return [
        f"{field} was {before.get(field)}, is {now.get(field)}"
        for field in sorted(before.keys() | now.keys())
        if before.get(field) != now.get(field)
        and now.get(field) != "auto"
        and not any(f"{field}.".startswith(f"{name}.") for name in open_)
    ]


def flat(value: Any, prefix: str = "", *, lists: bool = True) -> dict[str, Any]:
    """The values inside mappings and lists, by their dotted names; without `lists`, a list is one value."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and value and lists:
        items = enumerate(value)
    else:  # an empty one too: an op without parameters is {name: {}}
        return {prefix[:-1]: value}
    return {name: leaf for key, inner in items for name, leaf in flat(inner, f"{prefix}{key}.", lists=lists).items()}


def shipped() -> dict[str, str]:
    """The shipped recipes: name to YAML text."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(SHIPPED.glob("*.yaml"))}


def read_text(path_or_name: str | Path) -> tuple[str, str]:
    """The text of a YAML file or a shipped recipe, and its name for messages."""
    path = user_path(path_or_name)
    # `Path.is_file` raises an error where a name is too long.
    if path.suffix not in {".yaml", ".yml"} and not os.path.isfile(path):
        recipes = shipped()
        name = str(path_or_name)
        if name in recipes:
            return recipes[name], name
        if os.path.isdir(path):
            raise RecipeError(f"{path}: is a folder, not a recipe; give a .yaml file, such as a run's {SIGNS['run']}")
        raise RecipeError(
            f"no recipe {name!r}{did_you_mean(name, recipes)}: give a .yaml file or one of {', '.join(recipes)}"
        )
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RecipeError(f"{path}: larger than {_MAX_BYTES} bytes, so not a recipe or study")
        return path.read_text(encoding="utf-8"), str(path)
    except OSError as error:
        raise RecipeError(f"{path}: cannot read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text; save it as UTF-8") from error


def parse_yaml(text: str, origin: str) -> tuple[dict[str, Any], yaml.Node | None]:
    """A YAML mapping, and its tree for line numbers. Aliases are refused: they can blow up to any size. So is nesting
    that no recipe needs.

    Duplicate keys in a mapping are refused too, since YAML would silently take the last.

    Raises:
        RecipeError: not YAML, not a mapping, with aliases, nested too deeply, or with a key twice.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise RecipeError(f"{origin}: YAML aliases (*name) are not allowed")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise RecipeError(
                    f"{origin}: lists or mappings are nested more than {_MAX_DEPTH} deep, which no recipe needs"
                )
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if twice := _doubled_key(node):
            raise RecipeError(f"{origin}:{twice.start_mark.line + 1}: {twice.value!r} is listed twice; remove one")
        value = yaml.safe_load(text)
    except YAML_ERRORS as error:
        mark, reason = getattr(error, "problem_mark", None), str(getattr(error, "problem", None) or error)
        where = f":{mark.line + 1}" if mark else ""
        raise RecipeError(f"{origin}{where}: not valid YAML ({' '.join(reason.split())})") from error
    if value is None:
        return {}, None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RecipeError(f"{origin}: must be a mapping of field names to values")
    return value, node


def _doubled_key(node: yaml.Node | None) -> yaml.ScalarNode | None:
    """The second of two equal keys of a mapping, anywhere in the tree."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        return key
                    seen.add(key.value)
                waiting.append(value)
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    return None


def checked(cls: type[S], value: Any, origin: str, node: yaml.Node | None = None) -> S:
    """A spec from plain values; the first wrong field is named, with its line if `node` is the YAML tree.

    Raises:
        RecipeError: a field is unknown or wrong.
    """
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        raise RecipeError(explain(error, cls, origin, node)) from error


def override(spec: S, assignments: tuple[str, ...] | list[str]) -> S:
    """A copy of any spec with fields replaced, each given as `a.b=value`. See `Recipe.override`."""
    tree = spec.model_dump(mode="json")
    if wrong := next((given for given in assignments if not isinstance(given, str)), None):
        raise RecipeError(f"override takes strings such as 'train.epochs=30', not {wrong!r}")
    given: set[str] = set()  # so that a length or a name does not reset what is given before it
    for text in assignments:
        field, value = assignment(text)
        given |= {field, *(f"{field}.{name}" for name in (value if isinstance(value, dict) else ()))}
        # A position in the list is an ordinary field.
        if isinstance(spec, Recipe) and field.startswith(OPS_BY_NAME) and not field.split(".")[2].isdigit():
            _set_op(_ops(tree), field, value)
            continue
        data = tree["data"] if isinstance(spec, Recipe) and isinstance(tree["data"], dict) else {}
        if field == "data" and isinstance(value, dict) and "source" in data:
            value = {"source": data["source"], **value}  # keep the source unless another one is given
        _assign(tree, field, value, type(spec))
        if isinstance(spec, Recipe) and field == _OPTIMIZER and str(value).lower() != spec.train.optimizer.name.lower():
            for usual in ("lr", "momentum", "weight_decay", "eps", "other_lr", "bias_lr", "norm"):
                if f"train.optimizer.{usual}" not in given:
                    tree["train"]["optimizer"].pop(usual, None)
        if isinstance(spec, Recipe) and field in _LENGTHS and "train.recut" not in given:
            tree["train"]["recut"] = []  # a plan recut by its minutes was of another length
        other = isinstance(spec, Recipe) and field == "model.name" and value != spec.model.name
        if other and "model.pretrained_sha256" not in given:
            tree["model"].pop("pretrained_sha256", None)  # another network has other weights
    return checked(type(spec), tree, "--set")


def assignments(fields: Mapping[str, Any]) -> list[str]:
    """Fields and their values as `Recipe.override` takes them, the inverse of `assignment`.

    Raises:
        RecipeError: a value that a recipe cannot hold, such as a function.
    """
    texts = []
    for field, value in fields.items():
        try:
            texts.append(f"{field}={one_line_yaml(value)}")
        except YAML_ERRORS as error:
            kind = type(value).__name__
            raise RecipeError(f"{field}: should be a number, a text, a list or a mapping, not {kind}") from error
    return texts


def assignment(text: str) -> tuple[str, Any]:
    """The field and the value of `a.b=value`.

    Raises:
        RecipeError: there is no `=` or no field, or the value is not YAML.
    """
    field, equals, value = text.partition("=")
    if not equals or not field.strip():
        raise RecipeError(f"--set {text}: must be FIELD=VALUE, for example train.epochs=30")
    try:
        return field.strip(), yaml.safe_load(value)
    except YAML_ERRORS as error:
        raise RecipeError(f"--set {text}: the value is not valid YAML") from error


def _ops(tree: dict[str, Any]) -> list[Any]:
    """The list `augment.train` of a tree of overrides, made where a section is null."""
    section = tree["augment"] or {}
    ops = section.get("train") if isinstance(section, dict) else False
    if ops is not None and not isinstance(ops, list):
        raise RecipeError("--set: augment.train: should be a list of ops")
    ops = [{entry: None} if isinstance(entry, str) else entry for entry in ops or ()]
    tree["augment"] = {**section, "train": ops}
    return ops


def _set_op(ops: list[dict[str, Any]], field: str, value: Any) -> None:
    """Set an op by its name: augment.train.OP (null removes it) or augment.train.OP.PARAMETER."""
    op, _, parameter = field.removeprefix(OPS_BY_NAME).partition(".")
    if op not in OPS:
        try:
            make_op(op)
        except AugmentError as error:
            raise RecipeError(f"--set: {field}: {error}") from error
    places = [place for place, entry in enumerate(ops) if isinstance(entry, dict) and op in entry]
    if len(places) > 1:
        raise RecipeError(
            f"--set: {field}: augment.train has {len(places)} {op} ops; use a position, as in {OPS_BY_NAME}{places[0]}"
        )
    if parameter:
        if not places:
            raise RecipeError(f"--set: {field}: the recipe's augment.train has no {op}")
        before = ops[places[0]][op]
        ops[places[0]][op] = {**(before if isinstance(before, dict) else {}), parameter: value}
    elif value is None:
        ops[:] = [entry for place, entry in enumerate(ops) if place not in places]
    elif places:
        ops[places[0]] = {op: value}
    else:
        ops.append({op: value})


def _assign(tree: Any, field: str, value: Any, cls: type[BaseModel]) -> None:
    *parents, last = field.split(".")
    at: Any = tree
    owner: type[BaseModel] | None = cls
    for depth, key in enumerate(parents):
        inside = at[int(key)] if isinstance(at, list) and key.isdigit() and int(key) < len(at) else None
        owner = _section(owner, key) if owner is not None else None
        if isinstance(at, dict):
            inside = at.get(key)
            # A section that is null, at its default or a word, such as train.early_stopping and train.probe.
            if owner is not None and (inside is None or isinstance(inside, str)):
                inside = at[key] = {}
        if not isinstance(inside, dict | list):
            if owner is not None:
                raise RecipeError(f"--set: {'.'.join(parents[: depth + 1])}: should be a section, not {inside!r}")
            raise RecipeError(_unknown([*parents, last][: depth + 2], cls, "--set"))
        at = inside
    if isinstance(at, list):
        if not last.isdigit() or int(last) >= len(at):
            positions = f"has positions 0 to {len(at) - 1}" if at else "is empty"
            raise RecipeError(f"--set: {field}: the list {positions}")
        at[int(last)] = value
    else:
        at[last] = value  # an unknown name is found by the validation that follows


def explain(error: ValidationError, cls: type[BaseModel], origin: str, node: yaml.Node | None) -> str:
    """The first error of a validation as one line: file, line, field, what is wrong, what would be right."""
    errors = error.errors()
    first = errors[0]
    if first["type"] == "literal_error" and isinstance(first["input"], dict):  # a section in place of a word
        first = next((one for one in errors[1:] if one["loc"][: len(first["loc"]) - 1] == first["loc"][:-1]), first)
    path = [str(part) for part in first["loc"]]
    line = _line(node, path)
    where = f"{origin}:{line}" if line else origin
    if first["type"] == "extra_forbidden":
        branches = [part for part in path[:-1] if part[:1].isupper()]
        return _unknown([part for part in path if part not in branches], cls, where)
    # Without what pydantic adds to a location for the branches of a union.
    shown = ".".join(part for part in path if not set("[-") & set(part) and not part[:1].isupper())
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    given = first.get("input")
    plain = isinstance(given, str | int | float | bool)
    suffix = f", not {given!r}" if plain and first["type"] != "value_error" else ""
    if first["type"] in ("tuple_type", "list_type"):
        message, suffix = f"should be a list{f', such as [{given}]' if plain else ''}", ""
    elif first["type"] in ("dict_type", "model_type"):
        message = "should be a mapping, {name: value}"
    return f"{where}: {shown + ': ' if shown else ''}{message}{suffix}"


def _unknown(path: list[str], cls: type[BaseModel], where: str) -> str:
    owner = cls
    prefix: list[str] = []
    for part in path[:-1]:
        inner = _section(owner, part)
        if inner is None:
            break
        owner, prefix = inner, [*prefix, part]
    name = path[len(prefix)]
    if name in owner.model_fields:  # a field that has no fields of its own
        several = typing.get_origin(owner.model_fields[name].annotation) in (tuple, list)
        what = "a list" if several else "a single value"
        return f"{where}: {'.'.join([*prefix, name])} is {what} and has no field {path[-1]!r}"
    valid = list(owner.model_fields)
    place = f" in {'.'.join(prefix)}" if prefix else ""
    whole = field_ending(name) if cls is Recipe and not prefix else None
    hint = f" (did you mean {whole}?)" if whole else did_you_mean(name, valid)
    return f"{where}: unknown field {name!r}{place}{hint}; valid: {', '.join(valid)}"


# An option of other trainers -> an option here, or the last parts of a recipe field.
NAMES_ELSEWHERE = {
    "learning_rate": "lr", "lr0": "lr", "batch": "batch_size", "bs": "batch_size", "img": "image_size",
    "imgsz": "image_size", "img_size": "image_size", "arch": "model", "weights": "model.pretrained", "gpu": "device",
    "gpus": "device", "cuda": "device", "wd": "weight_decay", "opt": "optimizer.name", "optimizer": "optimizer.name",
    "sched": "schedule.name", "scheduler": "schedule.name", "smoothing": "label_smoothing", "mixup": "mixup_alpha",
    "cutmix": "cutmix_alpha",
    "drop": "dropout", "drop_path": "stochastic_depth", "amp": "precision", "workers": "threads", "ema": "train.ema",
    "patience": "early_stopping.patience", "project": "out", "output": "out", "name": "out",
    "val_split": "val_fraction", "validation_split": "val_fraction", "topk": "top", "top_k": "top",
}  # fmt: skip


def assigns(assignments: Iterable[str], field: str) -> bool:
    """Whether one of some `a.b=value` sets this field, by itself or in its section."""
    section, _, name = field.partition(".")
    given = dict(assignment(text) for text in assignments)
    whole = given.get(section)
    return field in given or (isinstance(whole, dict) and name in whole)


def field_ending(ending: str) -> str | None:
    """The field of a recipe with this ending, such as `train.epochs` for `epochs`, if there is one."""
    return next((name for name in _field_names(Recipe) if f".{name}".endswith(f".{ending}")), None)


def _field_names(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All fields; a section itself only if it may also be null or a plain value."""
    for name, info in cls.model_fields.items():
        inner = _section(cls, name)
        if inner is not info.annotation:
            yield f"{prefix}{name}"
        if inner is not None:
            yield from _field_names(inner, f"{prefix}{name}.")


def _section(cls: type[BaseModel], field: str) -> type[BaseModel] | None:
    """The spec of a field, even if the field may also be null or a plain value."""
    info = cls.model_fields.get(field)
    if info is None:
        return None
    kinds = [info.annotation, *getattr(info.annotation, "__args__", ())]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _line(node: yaml.Node | None, path: list[str]) -> int | None:
    """The line, from 1, of the field in the YAML tree, or of its nearest parent that is there."""
    line = None
    for part in path:
        inner: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == part:
                    line, inner = key.start_mark.line + 1, value
        elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            inner = node.value[int(part)]
            line = inner.start_mark.line + 1
        if inner is None:
            return line
        node = inner
    return line
