"""CONTRIBUTING.md is true: a model, a source and a pipeline are added to a copy of the package step by step.

An op is added in tests/augment/test_new_op.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kitae
from tests import test_architecture

ROOT = Path(__file__).parents[1]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, in a folder that can be put on the path."""
    return shutil.copytree(
        Path(kitae.__file__).parent, tmp_path / "kitae", ignore=shutil.ignore_patterns("__pycache__")
    )


def insert(file: Path, before: str, text: str) -> None:
    old = file.read_text()
    assert old.count(before) == 1, before
    file.write_text(old.replace(before, text + before))


def run(copy: Path, *words: object, cwd: Path | None = None) -> str:
    """What a Python that imports the copy prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": f"{copy.parent}{os.pathsep}{ROOT}", "KITAE_CACHE": str(copy.parent / "cache")}
    words = (sys.executable, *map(str, words))
    done = subprocess.run(words, env=environment, cwd=cwd or copy.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_file_it_names_exists() -> None:
    code = re.findall(r"`([^`]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    files = [word for text in code for word in text.split() if "/" in word]
    assert len(files) > 20
    places = (ROOT, ROOT / "src" / "kitae")
    assert not [file for file in files if not any((place / file).exists() for place in places)]


# A model

NET = """
from torch import Tensor, nn

from kitae.models.layers import classifier, stochastic_depth


class SmallNet(nn.Module):
    def __init__(self, width: int, *, classes: int, channels: int, drop: float, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.one, self.two = (
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)) for _ in range(2)
        )
        self.drop = stochastic_depth(drop)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = classifier(width, classes, dropout)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = (x + self.one(x)).relu()
        return self.classifier(self.pool((x + self.drop(self.two(x))).relu()).flatten(1))
"""
FACTORY = """
from kitae.models.small_net import SmallNet


def _small_net(spec: ModelSpec, *, classes: int, channels: int, image_size: Size) -> nn.Module:
    refuse(spec, "stem")
    rates = {"drop": spec.stochastic_depth, "dropout": spec.dropout}
    return SmallNet(spec.width or 16, classes=classes, channels=channels, **rates)


"""
OWN_TEST = """
from kitae.models.build import build, supports
from kitae.models.spec import ModelSpec
from kitae.models.structure import count_parameters


def test_small_net() -> None:
    model = build(ModelSpec(name="small_net"), classes=10, channels=3, image_size=32)
    assert count_parameters(model) == (27 * 16 + 16) + 2 * (9 * 16 * 16 + 32) + 170
    assert supports("small_net", width=8, stochastic_depth=0.5)
    assert not supports("small_net", stem="large")
"""


def test_a_model_is_a_module_and_an_entry(copy: Path, tmp_path: Path) -> None:
    (copy / "models" / "small_net.py").write_text(NET)
    insert(copy / "models" / "build.py", "MODELS: dict", FACTORY)
    insert(copy / "models" / "build.py", '    "simple_cnn": _simple_cnn,\n', '    "small_net": _small_net,\n')
    (tmp_path / "test_small_net.py").write_text(OWN_TEST)
    said = run(
        copy, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-c", "pyproject.toml", "-k", "small_net",
        "tests/models/test_build.py", tmp_path / "test_small_net.py", cwd=ROOT,
    )  # fmt: skip
    for test in ("test_shapes[1-small_net]", "test_eval_is_a_function[small_net]", "test_export[small_net]"):
        assert f"{test} PASSED" in said
    assert "::test_small_net PASSED" in said


# A data source

LEVELS = """
from kitae.data.base import Source, Table, numbered
from kitae.errors import DataError
from kitae.files import user_path

import numpy as np


class LevelSource(Source):
    \"\"\"Grey squares: a class and a level a line.\"\"\"

    def __init__(self, path, name):
        super().__init__(name)
        self.path = user_path(path)
        try:
            self._rows = [line.split() for line in self.path.read_text(encoding="utf-8").splitlines()]
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error.strerror})") from error
        for number, row in enumerate(self._rows, start=1):
            if len(row) != 2 or not row[1].isdecimal():
                raise DataError(f"{self.name}: line {number}: expected a class and a level")

    def files(self):
        return [self.path]

    def load_table(self):
        classes, labels = numbered([name for name, _ in self._rows])
        rows = np.arange(len(labels))
        return Table(classes, labels, np.zeros(len(rows), np.uint8), [f"line {row + 1}" for row in rows], rows)

    def images(self):
        return (np.full((8, 8), int(level), np.uint8) for _, level in self._rows)
"""
ENTRY = '    "levels": Kind(lambda _, path, spec, __: LevelSource(path, spec.source), "PATH", ".levels"),\n'
SOURCE_CHECK = """
from pathlib import Path

from kitae.data.sources import open_source, path_of, source_of
from kitae.data.spec import DataSpec
from kitae.data.store import open_store
from kitae.pipelines.choices import understand
from kitae.errors import DataError
from tests.refusals import refused

Path("grey.levels").write_text("\\n".join(f"{('dark', 'light')[level > 99]} {level}" for level in range(200)))
Path("broken.levels").write_text("dark 3\\nlight")
Path("other.levles").touch()
assert source_of("grey.levels") == "levels:grey.levels"
assert understand("grey.levels") == ("data", "levels:grey.levels")
assert path_of("levels:grey.levels") == Path("grey.levels")
store = open_store(DataSpec(source="levels:grey.levels"))
assert store.classes == ("dark", "light")
assert store.images[120].max() == 120 and store.labels[120] == 1
for spec, words in (
    ({"source": "levels"}, "needs a path: levels:PATH"),
    ({"source": "level"}, "did you mean levels"),
    ({"source": "nothing"}, "levels:PATH"),
    ({"source": "levels:missing.levels"}, "levels:missing.levels: cannot be read"),
    ({"source": "levels:broken.levels"}, "levels:broken.levels: line 2"),
    ({"source": "levels:grey.levels", "groups": "parent"}, "set it to null"),
):
    refused(DataError, words, open_source, DataSpec(**spec))
refused(DataError, "a .levels", source_of, "other.levles")
"""


def test_a_source_is_a_class_and_an_entry(copy: Path) -> None:
    (copy / "data" / "level_source.py").write_text(LEVELS)
    sources = copy / "data" / "sources.py"
    insert(sources, "from kitae.data.parquet import", "from kitae.data.level_source import LevelSource\n")
    insert(sources, '    "fashion-mini": Kind(', ENTRY)
    run(copy, "-c", SOURCE_CHECK)


# A pipeline

PIPELINE = """
from kitae.models.build import build
from kitae.models.structure import count_parameters
from kitae.recipe import Recipe


def size(recipe: Recipe) -> int:
    \"\"\"The number of parameters of a recipe's model, for 10 classes of grey images of 28 x 28.\"\"\"
    return count_parameters(build(recipe.model, classes=10, channels=1, image_size=28))
"""
VERB = """

@app.command(group=SHIP)
@answering
def size(recipe: str) -> None:
    \"\"\"Count the parameters of a recipe's model.

    Args:
        recipe: A shipped recipe's name or a .yaml file.
    \"\"\"
    from kitae.pipelines.size import size as run_size
    from kitae.recipe import Recipe

    found = run_size(Recipe.load(recipe))
    console.answer({"parameters": found})
    console.say(f"{found:,} parameters")
"""
VERB_CHECK = """
import sys

import kitae as kt
from kitae.cli import main

assert "torch" not in sys.modules
sys.argv = ["kitae", "size", "fashion-mini", "--json"]
main()
assert "size" in dir(kt) and kt.size(kt.Recipe.load("fashion-mini").override("model={name: resnet8}")) > 1000
"""


@pytest.fixture
def architecture(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tests of the architecture, of the copy."""
    monkeypatch.setattr(test_architecture, "SOURCE", copy)
    test_architecture.modules.cache_clear()
    yield
    test_architecture.modules.cache_clear()


def test_a_pipeline_is_a_module_and_a_verb(copy: Path) -> None:
    (copy / "pipelines" / "size.py").write_text(PIPELINE)
    with (copy / "cli" / "ship.py").open("a") as file:
        file.write(VERB)
    insert(copy / "__init__.py", '    "study": ("kitae', '    "size": ("kitae.pipelines.size", "size"),\n')
    assert json.loads(run(copy, "-c", VERB_CHECK))["parameters"] > 10_000


@pytest.mark.usefixtures("architecture")
def test_what_a_pipeline_and_a_stage_may_import(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "pipelines" / "size.py").write_text(PIPELINE)
    (copy / "distillation").mkdir()
    stage = copy / "distillation" / "__init__.py"
    stage.write_text("from kitae.errors import TrainingError\n")
    test_architecture.modules.cache_clear()
    with pytest.raises(AssertionError, match="distillation"):
        test_architecture.test_every_part_has_its_place()
    monkeypatch.setitem(test_architecture.LEVEL, "distillation", test_architecture.LEVEL["models"])
    test_architecture.test_every_part_has_its_place()
    test_architecture.test_imports_point_one_way()
    test_architecture.test_no_import_cycles()
    for wrong in ("pipelines.size", "models.build"):
        stage.write_text(f"if TYPE_CHECKING:\n    import kitae.{wrong}\n")
        with pytest.raises(AssertionError, match=f"kitae.distillation imports kitae.{wrong}"):
            test_architecture.test_imports_point_one_way()
