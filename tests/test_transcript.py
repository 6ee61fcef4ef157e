"""With the README alone, in an empty environment: train on a folder of photographs, read the conclusion, compress, and
predict where PyTorch is not installed. Every command is the README's own, on few photographs. It installs PyTorch,
trains for the README's minutes, and searches as many ratios as `kitae compress` does.

KITAE_BIN names the bin folder of an environment that has Kitae already, to follow the commands without installing it.
"""

from __future__ import annotations

import html
import os
import re
import shlex
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIGHT = "kitae predict runs/photos-small/model.onnx"  # without PyTorch
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> list[str]:
    """The commands of a section of the README, without their comments."""
    text = README.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for block in re.findall(r"```\n(.*?)```", text, re.S) for line in block.splitlines()]
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if line.strip()]


def command(title: str, start: str) -> str:
    """The one command of a section that begins so; a README without it fails here."""
    (found,) = [line for line in section(title) if line.startswith(start)]
    return found


def reachable() -> bool:
    """Whether pip reaches a registry."""
    words = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed", "wheel"]
    try:
        return subprocess.run(words, capture_output=True, timeout=60).returncode == 0
    except subprocess.TimeoutExpired:
        return False


class Shell:
    """Runs the README's commands in a folder, with an environment's programs first."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" or "KITAE_BIN" in os.environ}
        self.env = {**kept, "PATH": path, "KITAE_CACHE": str(folder / "cache")}

    def __call__(self, line: str, cwd: Path | None = None, codes: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            shlex.split(line), cwd=cwd or self.folder, env=self.env, capture_output=True, text=True, timeout=3600
        )
        assert done.returncode in codes, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def environment(folder: Path, clone: Path, install: str) -> Path:
    """The bin folder of a new environment, with Kitae installed by a command of the README."""
    venv.create(folder, with_pip=True)
    Shell(folder, folder / "bin")(install, clone)
    return folder / "bin"


def photographs(folder: Path, count: int) -> None:
    """Some of the embedded photographs as files, one folder per class."""
    import pyarrow.parquet as pq

    table = pq.read_table(ROOT / "src/kitae/data/assets/photos-mini.parquet").to_pylist()
    seen: dict[str, int] = {}
    for row in table:
        label = str(row.get("class_name") or row["label"])
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= count:
            image = row["image"] if isinstance(row["image"], bytes) else row["image"]["bytes"]
            (folder / label).mkdir(parents=True, exist_ok=True)
            (folder / label / f"{seen[label]:03}.jpg").write_bytes(image)


def after_compressing(told: str, work: Path) -> str:
    """The README's next command; where nothing was within the budget, the one that `kitae compress` printed instead.

    One image of few is more than a point, so a small set may have no file within the README's budget.
    """
    line = command("Your own photographs", LIGHT)
    if (work / "runs/photos-small/model.onnx").is_file():
        return line
    (printed,) = re.findall(r"^next: (kitae predict \S+/closest\.onnx) IMAGES$", told, re.MULTILINE)
    return f"{printed} new-photos/"


def test_the_readme_has_the_commands() -> None:
    assert command("Install", "pip install -e '.[all]'")
    assert command("Install", "pip install -e '.[runtime]'")
    for start in ("kitae data check", "kitae train", "kitae predict runs/photos ", "kitae compress", LIGHT):
        assert command("Your own photographs", start)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_readme_in_an_empty_environment(tmp_path: Path) -> None:
    given = os.environ.get("KITAE_BIN")
    if not reachable():
        pytest.skip("pip reaches no registry")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(clone)], check=True)
    work = tmp_path / "work"
    photographs(work / "photos", 50)
    photographs(work / "new-photos", 2)
    everything = command("Install", "pip install -e '.[all]'")
    run = Shell(work, Path(given) if given else environment(tmp_path / "all", clone, everything))

    own = "Your own photographs"
    assert run(command(own, "kitae data check")).splitlines()[-1] == "ready"
    told = run(command(own, "kitae train"))
    page = work / told.split("page: ")[1].splitlines()[0]
    text = html.unescape(re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8")))
    assert re.search(r"\d+\.\d\s% on test \(\d+\.\d to \d+\.\d\)", text)
    run(command(own, "kitae predict runs/photos "))
    assert (work / "predictions.csv").read_text().startswith("image,class,cardboard,")
    told = run(command(own, "kitae compress"), codes=(0, 2))

    light = environment(tmp_path / "light", clone, command("Install", "pip install -e '.[runtime]'"))
    assert "torch" not in {path.name for path in (tmp_path / "light").rglob("site-packages/*")}
    assert "cardboard" in Shell(work, light)(after_compressing(told, work))
