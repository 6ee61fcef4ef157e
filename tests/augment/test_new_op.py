"""A new op is three edits: a class, a kernel and a torch twin. Everything else finds it."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import kitae
from kitae.augment import functional
from kitae.augment.ops import OPS, STEPS
from kitae.augment.ops.base import AUGMIX_BEGIN, AUGMIX_END, CHAIN_END, NOP
from kitae.native import jit
from op_reference import details, rewrite, rows

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

CLASS = '''

class Threshold(Op):
    """Levels below a threshold become 0."""

    name = "threshold"
    writes = (Step(40, "color.threshold", "threshold {0:.1f}", (Argument("level", high=255.0),)),)
    level: Factor = (10.0, 200.0)
    p: Probability = 0.5

    def ranges(self, site: Site) -> Sequence[Range]:
        return (pair(self.level),)
'''
KERNEL = """

def threshold(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    for i in range(channels * height * width):
        dst[i] = src[i] if np.float64(src[i]) >= args[0] else np.uint8(0)
    return 0
"""
TWIN = """

def threshold(x: Tensor, a: Numbers) -> Tensor:
    return torch.where(x.double() >= torch.from_numpy(a.host(0)).view(-1, 1, 1, 1), x, torch.zeros_like(x))
"""
WORK = """WORKS = [
    _op("threshold", "threshold at 100", level=100.0, p=1.0),
"""
CHECK = """
import json
from pathlib import Path
import numpy as np
import contestants
import kitae as kt
from kitae.augment import functional
from kitae.recipe import Recipe
from kitae.reporting import gallery
from op_reference import rows

assert "| `threshold` | level: [10, 200], p: 0.5 | Levels below a threshold become 0 |" in rows()
recipe = Recipe.load("fashion-mini").override("augment.train=[{threshold: {p: 1.0}}]")
assert any(op.name == "threshold" for op in recipe.augment.ops())
images = np.random.default_rng(0).integers(0, 256, (6, 3, 16, 16), np.uint8)
index = np.arange(6)
op = {"threshold": {"p": 1.0}}
by = {e: kt.augment.Augment([op], executor=e)(images, epoch=0, index=index) for e in ("cpu", "torch")}
np.testing.assert_array_equal(by["cpu"], by["torch"])
assert (by["cpu"] != images).any()
np.testing.assert_array_equal(functional.threshold(images, 100.0), np.where(images >= 100, images, 0))
assert kt.augment.Augment([{"threshold": {"level": 7, "p": 1}}]).explain(epoch=0, index=0) == ["threshold 7.0"]
titles = []
gallery.grid_figure = lambda rows, *, row_titles, **_: titles.extend(row_titles)
gallery.draw_ops(images, "abcdef", "colour")
assert "Threshold" in titles
np.save("images-32.npy", np.random.default_rng(0).integers(0, 256, (16, 3, 32, 32), np.uint8))
build = {"do": "build", "id": 0, "work": "threshold", "size": 32, "threads": 1, "variant": {}}
_, built = contestants.answers("kitae", 0, Path(), True, iter([json.dumps(build)]))
assert built.get("same_job"), built
"""


def test_a_new_op_is_a_class_a_kernel_and_a_twin(tmp_path: Path) -> None:
    source = Path(kitae.__file__).parent
    shutil.copytree(source, tmp_path / "kitae", ignore=shutil.ignore_patterns("__pycache__"))
    for folder, text in (("ops", CLASS), ("kernels", KERNEL), ("twins", TWIN)):
        with (tmp_path / "kitae" / "augment" / folder / "color.py").open("a") as file:
            file.write(text)
    works = (ROOT / "benchmarks" / "contestants.py").read_text()
    (tmp_path / "contestants.py").write_text(works.replace("WORKS = [\n", WORK))
    path = f"{tmp_path}{os.pathsep}{ROOT / 'scripts'}"
    environment = {**os.environ, "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(jit.cache_folder())}
    run = subprocess.run([sys.executable, "-c", CHECK], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_table_in_the_docs_is_up_to_date() -> None:
    for name, content in (("augmentation", rows()), ("ops", details())):
        page = (DOCS / f"{name}.md").read_text()
        assert rewrite(page, content) == page, "python scripts/op_reference.py"


@pytest.mark.parametrize("step", STEPS.values(), ids=lambda step: step.name)
def test_every_row_has_a_kernel_a_twin_and_words(step) -> None:
    alone = {NOP, AUGMIX_BEGIN, CHAIN_END, AUGMIX_END}  # the torch executor runs these itself
    if "." in step.run:
        assert step.kernel is not None
        assert (step.twin is None) == (step.code in alone)
    assert all(step.lines([1.0, 0.1, 2.0, -0.1, 1.0, 3.0] * 2))


def test_generated_functions_have_signatures_and_docstrings() -> None:
    found = {step.name for step in STEPS.values() if step.takes is not None}
    assert {"horizontal_flip", "brightness", "gaussian_noise", "posterize"} <= found <= set(dir(functional))
    assert str(inspect.signature(functional.gaussian_noise)) == "(images, sigma, mean=0.0, key=0, *, executor='auto')"
    for name in found:
        assert name in OPS
    assert all(argument.meaning for step in STEPS.values() for argument in step.takes or ())
    for name, function in inspect.getmembers(functional, inspect.isfunction):
        if name.startswith("_") or function.__module__ != functional.__name__:
            continue
        text, taken = inspect.getdoc(function) or "", inspect.signature(function).parameters
        assert all(re.search(rf"\b{one}\b", text) for one in taken if one != "executor"), name
        # Of an op's own fields, such as the range that it draws from, none is described.
        fields = OPS[name].model_fields.keys() - taken.keys() if name in found else ()
        assert not [field for field in fields if re.search(rf"\b{field}:", text)], name
    images = np.zeros((2, 3, 8, 8), np.uint8)
    with pytest.raises(TypeError):
        functional.brightness(images)
    assert isinstance(functional.invert(torch.from_numpy(images)), torch.Tensor)
