"""Every `kitae` command that the README and the docs show is run, in a folder that has what they name.

Only sizes are changed: fewer minutes, epochs and images, and small photographs where a recipe downloads CIFAR-10.
"""

from __future__ import annotations

import csv
import shlex
import shutil
import webbrowser
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.command import kitae
from tests.data.shard_files import image, pack
from tests.images import encode
from tests.test_docs import COMMANDS, place

__all__ = ["place"]  # a fixture

QUICK = ("kitae data check", "kitae data fix", "kitae recipe", "kitae show mistakes", "kitae predict", "kitae report")
NOT_RUN = {
    "10.0.0.1": "of a cluster at this address",
    "--ray auto --gpus": "of a cluster with GPUs",
}
SMALL = ["data.source=folder:photos", "data.image_size=32", "data.limit=null", "train.batch_size=8"]
SHORT = ["train.epochs=1", "train.threads=1"]
LINES = sorted({shlex.join(shlex.split(line, comments=True)) for line in COMMANDS})


def marked(line: str) -> object:
    """A command as a parameter: those that train or compress, or need what such commands make, are slow."""
    quick = line.startswith(QUICK) and not line.startswith("kitae report runs/photos-small")
    return pytest.param(line, marks=() if quick else pytest.mark.slow)


def sized(line: str) -> list[str]:
    """The words of a command, with less to do."""
    words = shlex.split(line)[1:]
    words = [
        word.replace("/data/", "data/").replace("{000..099}", "000").replace("{000..009}", "000") for word in words
    ]
    if "--minutes" in words:
        words[words.index("--minutes") + 1] = "0.2"
    elif words[0] == "train" and "--folds" in words:
        words += ["--minutes", "1"]
    if words[0] == "train" and "--resume" not in words and "--minutes" not in words:
        fields = list(SHORT)
        if words[1].startswith("cifar10"):
            fields += SMALL
        elif words[1] == "fashion-mini":
            fields += ["data.limit=100", "train.batch_size=32"]
        words += ["--overwrite", "--set", *fields]
    if words[0] == "study":
        cifar = (words[1] == "ablate" and words[2].startswith("cifar10")) or words[1] not in ("ablate", "mine.yaml")
        if "--ray" in words:
            words += ["--set", *SMALL, *SHORT, "model.width=8", "study.seeds=[0, 1]", "--overwrite"]
        elif words[1] != "mine.yaml":
            words += [] if "--plan" in words else ["--plan"]
            words += ["--set", *SMALL] if cifar else []
    if words[:2] == ["bench", "precision"] and words[2].startswith("cifar10"):
        words += ["--set", *SMALL]
    return words


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the Python blocks, and what the commands name besides."""
    folder = tmp_path / "here"
    shutil.copytree(place, folder, symlinks=True, ignore=shutil.ignore_patterns("cache"))
    shutil.copytree(folder / "runs/photos", folder / "runs/other")
    shutil.copyfile(folder / "model.onnx", folder / "photos.onnx")
    for split in ("train", "val", "test"):
        shutil.copytree(folder / "photos", folder / "shapes" / split)
    for kind in sorted((folder / "photos").iterdir()):
        for number, file in enumerate(sorted(kind.glob("*.*"))):
            below = kind / f"patient{number // 2}"
            below.mkdir(exist_ok=True)
            file.rename(below / file.name)
    rows = [
        (path.relative_to(folder), path.parts[-3], path.parts[-2]) for path in sorted(folder.glob("photos/*/*/*.*"))
    ]  # fmt: skip
    with (folder / "photos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "patient"), *rows])
    study = {
        "name": "mine", "base": "fashion-mini", "seeds": [0, 1],
        "set": {"data.limit": 100, "train.epochs": 1, "train.batch_size": 32, "model.width": 8, "train.threads": 1},
        "design": "compare", "variants": {"plain": {}, "smoothed": {"train.label_smoothing": 0.1}},
    }  # fmt: skip
    (folder / "mine.yaml").write_text(yaml.safe_dump(study))
    for split, first in (("train", 0), ("val", 500)):
        cells = []
        for number in range(first, first + 24):
            cells += [(f"{number}.png", encode(image(number, number % 2))), (f"{number}.cls", b"%d" % (number % 2))]
        pack(folder / f"data/{split}-000.tar", cells)
    monkeypatch.setattr(webbrowser, "open", lambda *_, **__: True)
    return folder


@pytest.mark.parametrize("line", [marked(line) for line in LINES])
def test_a_command_of_the_docs_runs(line: str, here: Path) -> None:
    for part, why in NOT_RUN.items():
        if part in line:
            pytest.skip(why)
    if "--ray" in line and find_spec("ray") is None:
        pytest.skip("needs the extra cluster")
    words = sized(line)
    if words[0] == "predict" and words[1].endswith("-small/model.onnx"):  # of a compression, which other commands make
        (here / words[1]).parent.mkdir()
        shutil.copyfile(here / "model.onnx", here / words[1])
    if words[0] == "report" and words[1].endswith("-small"):
        kitae(here, "compress", words[1].removesuffix("-small"), "--prune", "none", "--quantize", "static")
    kitae(here, *words)


def test_what_is_not_run_is_in_the_docs() -> None:
    for part in NOT_RUN:
        assert any(part in line for line in COMMANDS), part
