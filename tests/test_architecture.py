"""Imports point one way, and light parts stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import kitae

SOURCE = Path(__file__).parents[1] / "src" / "kitae"
STAGES = {"data", "augment", "models", "training", "evaluation", "compression", "deployment"}

# Each part may import the parts above it, and itself.
ORDER = [
    {"errors"},
    {"files", "machine"},
    {"spec", "keyed", "console", "modes", "folders"},
    {"preprocess", "views", "native"},
    {"runtime"},
    STAGES,
    {"recipe", "predictor", "crops"},
    {"run"},
    {"reporting"},
    {"pipelines"},
    {"experiments"},
    {"loading"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(ORDER) for part in parts}
ANYWHERE = {"__init__"}  # the lazy public surface names every part
UPWARD = {("kitae.run", "kitae.reporting.plots")}  # Run.plot, the one property that leads to a later part


@cache
def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in SOURCE.rglob("*.py")
    }


def part_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@cache
def named(text: str) -> list[tuple[str, str]]:
    """(module, name or nothing) of each import of Kitae in a file's text, inside functions and for types too.

    A relative import fails: the checks below would not see where it leads.
    """
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"a relative import: {ast.unparse(node)}"
            found += [(node.module, alias.name) for alias in node.names]
    return [(module, name) for module, name in found if module.split(".")[0] == "kitae"]


def imports(path: Path) -> set[str]:
    """Kitae modules that a file imports."""
    known, found = modules(), set()
    for module, name in named(path.read_text()):
        inner = f"{module}.{name}"
        public = kitae._PUBLIC.get(name, (module,))[0] if module == "kitae" and name else module
        found.add(inner if inner in known else public)
    return found


def test_every_part_has_its_place() -> None:
    parts = {part_of(name) for name in modules()} - ANYWHERE
    assert parts <= LEVEL.keys(), f"parts without a place in the order: {parts - LEVEL.keys()}"


def test_imports_point_one_way() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, path in modules().items()
        if (part := part_of(name)) not in ANYWHERE
        for target in imports(path)
        if (other := part_of(target)) not in (part, "__init__")
        and LEVEL[other] >= LEVEL[part]
        and (name, target) not in UPWARD
    ]
    assert not wrong


def test_no_import_cycles() -> None:
    graph = {
        name: {target for target in imports(path) - {name} if (name, target) not in UPWARD}
        for name, path in modules().items()
    }
    state: dict[str, int] = {}

    def visit(name: str, trail: list[str]) -> None:
        if state.get(name) == 2 or name not in graph or name == "kitae":
            return
        assert state.get(name) != 1, " -> ".join([*trail, name])
        state[name] = 1
        for target in graph[name]:
            visit(target, [*trail, name])
        state[name] = 2

    for name in graph:
        visit(name, [])


def test_a_public_name_counts_as_an_import_of_its_module() -> None:
    assert "kitae.reporting.plots" in imports(SOURCE / "run.py")  # it says `from kitae import Plots`


def test_a_relative_import_does_not_pass_unseen() -> None:
    for text in ("from . import run", "from ..pipelines import train", "def f():\n    from .console import note"):
        with pytest.raises(AssertionError, match="a relative import: from"):
            named(text)


def test_no_module_is_longer_than_500_lines() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert not {name: length for name, length in lengths.items() if length > 500}, "split by responsibility"


HELP = """
import contextlib, io
from kitae.cli import main
sys.argv = ["kitae", "--help"]
with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
    main()
assert "compress" in said.getvalue()
"""


def _loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import kitae",
        "import kitae.cli",
        HELP,
        "from kitae.recipe import Recipe, shipped; [Recipe.load(name) for name in shipped()]",
        "import kitae.preprocess",
        "import kitae.runtime",
        "import kitae.data.store",
        "import kitae.data, kitae.augment, kitae.models, kitae.training, kitae.evaluation, kitae.experiments",
    ],
)
def test_light_parts_load_no_heavy_library(statement: str) -> None:
    heavy = {"torch", "numba", "matplotlib", "scipy", "pandas", "pyarrow", "torchvision"}
    assert not _loaded_after(statement) & heavy
