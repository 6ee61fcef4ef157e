"""Write docs/recipe.md: every field of a recipe with its type, default and meaning, from the specs themselves.

python scripts/recipe_reference.py
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kitae.compression.spec import CompressSpec
from kitae.experiments.study_spec import StudySpec
from kitae.recipe import Recipe
from op_reference import limits

PAGE = Path(__file__).parents[1] / "docs" / "recipe.md"
_HEAD = """\
# Recipe reference

<!-- Made by scripts/recipe_reference.py from the specs; do not edit. -->

Every field of a recipe file, with its type, its default and what it means. `kitae recipe --schema` prints the same as a
JSON schema. `--set section.field=value` sets any of them on the command line, and
`Recipe.override("section.field=value")` in Python. An unknown field is an error that names the valid ones. At the end
are the fields of a [compression](#compression) and of a [study file](#study-file).
"""


_BAR = chr(92) + "|"  # a bar inside a cell


def page() -> str:
    """The whole page."""
    parts = [_HEAD, *_section(Recipe, "", "Recipe")]
    parts += ["\nThe ops of `augment.train` are listed in [Augmentation](augmentation.md#the-ops).\n"]
    parts += _section(CompressSpec, "compress", "Compression", "Options of `kitae compress --set` and `kt.compress`.")
    parts += _section(StudySpec, "study", "Study file", "The fields of a study; see [Studies](studies.md).")
    return "".join(parts)


def _section(spec: type[BaseModel], prefix: str, title: str, about: str = "") -> list[str]:
    text, meanings = _documented(spec)
    level = "##" if prefix.count(".") == 0 else "###"
    parts = [f"\n{level} {title}\n\n", f"{about or text}\n\n"]
    parts += ["| field | type | default | meaning |\n", "|---|---|---|---|\n"]
    inner: list[tuple[str, type[BaseModel]]] = []
    for name, field in spec.model_fields.items():
        sections = _specs(field.annotation)
        if len(sections) == 1:
            inner.append((name, sections[0]))
        meaning = meanings.get(name, "") or (
            f"see [{_path(prefix, name)}](#{_anchor(prefix, name)})" if sections else ""
        )
        kind = f"{_type(field.annotation)}{_bounds(field)}"
        cells = [f"`{name}`", f"`{kind}`", f"`{_default(field)}`", meaning]
        parts.append(f"| {' | '.join(cell.replace('|', _BAR) for cell in cells)} |\n")
    for name, section in inner:
        parts += _section(section, _path(prefix, name), _path(prefix, name))
    return parts


def _path(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _anchor(prefix: str, name: str) -> str:
    return re.sub(r"[^\w\- ]", "", _path(prefix, name).lower()).replace(" ", "-")


def _documented(spec: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """The text of a docstring before its attributes as one paragraph, and each attribute's meaning."""
    text, _, listed = inspect.cleandoc(spec.__doc__ or "").partition("\nAttributes:\n")
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in listed.splitlines():
        found = re.match(r"    ([a-z_0-9]+(?:, [a-z_0-9]+)*): (.*)", line)
        if found:
            names = found[1].split(", ")
            meanings |= dict.fromkeys(names, found[2].strip())
        elif names and line.strip():
            meanings |= {name: f"{meanings[name]} {line.strip()}" for name in names}
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    return "\n\n".join(paragraphs), meanings


def _specs(annotation: Any) -> list[type[BaseModel]]:
    """The specs that a field may hold."""
    kinds = [annotation, *typing.get_args(annotation)]
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return " or ".join(str(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(one) for one in arguments))
    if annotation is type(None):
        return "null"
    if origin in (tuple, list):
        return f"[{', '.join('...' if one is Ellipsis else _type(one) for one in arguments)}]"
    if origin in (dict, Mapping):
        return f"{{{': '.join(map(_type, arguments))}}}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    names = {str: "text", bool: "true or false", float: "number", int: "integer"}
    return names.get(annotation, getattr(annotation, "__name__", "any").lower())


def _bounds(field: FieldInfo) -> str:
    found = limits(field)
    return f", {', '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "as below"
    return json.dumps(value if not isinstance(value, tuple) else list(value)).strip('"') or "empty"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
