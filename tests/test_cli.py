"""The command line, as a user meets it."""

from __future__ import annotations

import csv
import errno
import inspect
import io
import itertools
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet
import pytest
from cyclopts import CycloptsError
from PIL import Image
from rich.console import Console

from kitae import cli, console
from kitae.cli.app import write_page
from kitae.compression.spec import CompressSpec
from kitae.errors import DataError, KitaeError, RecipeError, TrainingError
from kitae.pipelines.export import export
from kitae.recipe import Recipe
from kitae.run import Run
from tests.command import kitae, refused
from tests.images import picture, write_folder, write_parquet

TINY = [
    "--set", "data.limit=200", "model.name=resnet8", "model.width=8", "train.epochs=1", "train.batch_size=32",
    "train.precision=fp32", "train.threads=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def printed(home: Path) -> str:
    """What a training prints; its folder is `run`."""
    return kitae(home, "train", "fashion-mini", "--out", "run", *TINY).stdout


@pytest.fixture(scope="module")
def run(home: Path, printed: str) -> Path:
    return home / "run"


@pytest.fixture(scope="module")
def pictures(home: Path) -> Path:
    """16 photographs of two classes."""
    return write_folder(home / "pictures", train=8, classes=2)


def test_help_loads_nothing_heavy(home: Path) -> None:
    """That of Kitae and of every command."""
    code = """
import sys
from kitae.cli import app, main

def show(within, *path):
    sys.argv = ["kitae", *path, "--help"]
    try:
        main()
    except SystemExit:
        shown.append(path)
    for name in within:
        if not name.startswith("-"):
            show(within[name], *path, name)

shown = []
show(app)
heavy = ("pydantic", "torch", "numba", "matplotlib", "pyarrow", "scipy")
print(len(shown), ("data", "check") in shown, [name for name in heavy if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, nested, heavy = result.stdout.splitlines()[-1].split(" ", 2)
    assert int(count) > 12
    assert (nested, heavy) == ("True", "[]")


def test_options_that_repeat_a_type_have_its_values() -> None:
    from typing import get_args

    from kitae.evaluation.spec import Tta

    assert get_args(get_args(inspect.signature(cli.start.evaluate).parameters["tta"].annotation)[0]) == get_args(Tta)


def test_groups_come_in_the_order_of_use_and_every_verb_has_an_example(home: Path) -> None:
    text = kitae(home, "--help").stdout
    order = ("─ Start", "│ train", "│ predict", "─ Ship", "─ Data", "─ Research", "│ study")
    places = [text.index(word) for word in order]
    assert places == sorted(places)
    assert "Example: kitae train photos/" in text
    assert "Example: kitae data check " in kitae(home, "data", "check", "--help").stdout.replace("\n", " ")
    assert kitae(home).stdout.startswith("kitae train fashion-mini")

    def missing(within: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
        for name in within:
            if not name.startswith("-"):
                inner = within[name]
                if f"Example: kitae {' '.join((*path, name))}" not in inner.help:
                    yield " ".join((*path, name))
                yield from missing(inner, (*path, name))

    assert list(missing(cli.app)) == []


def test_every_option_says_what_it_does() -> None:
    def silent(within: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
        for name in within:
            if not name.startswith("-"):
                inner = within[name]
                taken = inner.assemble_argument_collection(parse_docstring=True) if inner.default_command else ()
                yield from (" ".join((*path, name, one.name)) for one in taken if not one.parameter.help)
                yield from silent(inner, (*path, name))

    assert list(silent(cli.app)) == []


def test_the_help_of_compress_names_the_defaults(home: Path) -> None:
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", kitae(home, "compress", "--help").stdout).split())
    spec = CompressSpec()
    for default in (f"default {spec.max_drop:g}.", f"default {' '.join(map(str, spec.ratios))}.",
                    f"default {spec.finetune_epochs}.", f"default {' '.join(spec.quantize)},",
                    f"{spec.prune}, the default,", f"{spec.target}, the default,"):  # fmt: skip
        assert default in text
    assert "()" not in text


def test_shell_completion_is_installed(home: Path) -> None:
    env = {**os.environ, "HOME": str(home), "SHELL": "/bin/bash"}
    words = [sys.executable, "-m", "kitae", "--install-completion", "--shell", "bash"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    script = Path(done.stdout.splitlines()[0].removeprefix("completion script: "))
    assert script.is_relative_to(home)
    assert "kitae" in script.read_text()
    assert "kitae" in (home / ".bashrc").read_text()


def test_a_completion_script_is_replaced_by_a_new_one(home: Path) -> None:
    for shell in ("bash", "zsh", "fish", "powershell", "bash"):
        kitae(home, "--install-completion", "--shell", shell, "--output", "completion")
        assert "kitae" in (home / "completion").read_text()


def test_train_says_first_what_it_trains_on_what_and_then_accuracy_with_its_interval(printed: str) -> None:
    assert "\x1b" not in printed
    (header,) = (line for line in printed.splitlines() if "everything goes to" in line)
    facts = r"10 classes, [\d,]+ train, [\d,]+ val, [\d,]+ test images; cpu, fp32, 1 thread; "
    assert re.match(rf"resnet8 \([\d,]+ parameters\) on fashion-mini: {facts}", header)
    assert header.endswith("; everything goes to run")
    assert printed.index(header) < printed.index("epoch   1/1")
    assert "images/s" in printed
    assert re.search(r"test accuracy.* % .* to ", printed)
    assert "everything is in run" in printed


def test_folds_end_with_what_all_of_them_say(home: Path) -> None:
    write_folder(home / "pets", train=12, classes=2)
    out = kitae(
        home, "train", "pets", "--folds", 2, "--model", "resnet8", "--epochs", 1, "--image-size", 32, "--out", "folded",
        "--set", "model.width=4", "train.precision=fp32", "train.channels_last=false",
    ).stdout  # fmt: skip
    for line in ("2 folds of about", "fold 2 of 2", "out-of-fold accuracy (24 images)", "recall of class 1", "folded"):
        assert line in out
    assert "kitae compress" not in out
    assert kitae(home, "train", "--resume", "folded").stdout.count("epoch   1") == 0
    assert "class 0" in kitae(home, "predict", "folded", "pets").stdout


def on_terminal(home: Path, *words: object, stop_at: str = "", errors: int | None = None) -> tuple[str, int, str]:
    """What a command prints on a terminal, its exit code, and what it prints to standard error if that is a pipe.

    Args:
        stop_at: when this is printed, the process is sent SIGTERM.
        errors: `subprocess.PIPE`, or the terminal too.
    """
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kitae", *map(str, words)], stdout=slave, stderr=slave if errors is None else errors,
        cwd=home, env={**os.environ, "KITAE_CACHE": str(home / "cache"), "TERM": "xterm"},
    )  # fmt: skip
    os.close(slave)
    seen = b""
    with suppress(OSError):  # which is how a terminal ends
        while part := os.read(master, 4096):
            seen += part
            if stop_at and stop_at.encode() in seen:
                process.terminate()
                stop_at = ""
    os.close(master)
    _, error = process.communicate(timeout=120)
    return seen.decode(), process.returncode, (error or b"").decode()


@pytest.fixture(scope="module")
def stopped(home: Path) -> tuple[str, int, str]:
    """A training of many epochs on a terminal that got SIGTERM after the first one; its folder is `stopped`."""
    words = ("train", "fashion-mini", "--out", "stopped", *TINY, "train.epochs=40")
    return on_terminal(home, *words, stop_at="epoch   1/40", errors=subprocess.PIPE)


def test_train_draws_a_bar_on_a_terminal(stopped: tuple[str, int, str]) -> None:
    seen, _, _ = stopped
    assert "\x1b[" in seen
    assert "ETA" in seen


@pytest.fixture(scope="module")
def predicted(home: Path, run: Path) -> str:
    """What a prediction of 27 images into a file prints on a terminal."""
    write_folder(home / "many", train=9, classes=3)
    seen, code, _ = on_terminal(home, "predict", run, "many", "--out", "many.csv")
    assert code == 0, seen
    return seen


def test_a_terminal_shows_twenty_predictions(home: Path, run: Path, predicted: str) -> None:
    assert "7 more are in many.csv" in predicted
    assert len((home / "many.csv").read_text().splitlines()) == 28
    assert "more" not in kitae(home, "predict", run, "many").stdout


def test_mistakes_of_a_run(home: Path, run: Path) -> None:
    predicted = pyarrow.parquet.read_table(run / "predictions.parquet").to_pylist()
    wrong = sorted((row for row in predicted if row["label"] != row["predicted"]), key=lambda row: -row["confidence"])
    assert len(wrong) > 20
    found = json.loads(kitae(home, "show", "mistakes", "run", "--json").stdout)
    assert (found["where"], found["images"]) == ("test", len(predicted))
    assert [row["confidence"] for row in found["mistakes"]] == pytest.approx([row["confidence"] for row in wrong])
    assert {row["image"]: (row["class"], row["predicted"]) for row in found["mistakes"]} == {
        row["name"]: (row["label"], row["predicted"]) for row in wrong
    }

    lines = kitae(home, "show", "mistakes", "run").stdout.splitlines()
    assert lines[0] == "image\tclass\tpredicted\tconfidence"
    assert len(lines) == 1 + len(wrong)
    seen, code, _ = on_terminal(home, "show", "mistakes", "run")
    assert code == 0, seen
    assert f"{len(wrong) - 20} more not shown" in seen

    name = wrong[0]["predicted"]
    of_class = json.loads(kitae(home, "show", "mistakes", "run", "--class", name, "--json").stdout)["mistakes"]
    assert len(of_class) == sum(name in (row["label"], row["predicted"]) for row in wrong) < len(wrong)


def test_counting_draws_a_bar_only_while_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=seen, force_terminal=True, width=80))
    with console.counting("decoding images") as count:
        assert seen.getvalue() == ""
        count(1, 3)
        assert "decoding images" in seen.getvalue()
        count(3, 3)
        length = len(seen.getvalue())
        console.say("epoch 1")
        assert "decoding" not in seen.getvalue()[length:]


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["train", "--resume", "run"], {"path", "test", "val", "best_epoch"}),
        (["train", "fashion-mini", "--dry-run", *TINY], {"recipe", "parameters", "seconds"}),
        (["evaluate", "run", "--split", "val"], {"split", "accuracy", "per_class"}),
        (["predict", "run", "pictures"], {"predictions", "skipped"}),
        (["data", "check", "pictures"], {"verdict", "counts", "cures"}),
        (["data", "fix", "pictures", "--out", "as-json.csv"], {"path", "kept", "left_out"}),
        (["recipe", "fashion-mini"], {"data", "train"}),
        (["bench", "fashion-mini", *TINY], {"milliseconds", "share"}),
        (["study", "mixing", "--plan", "--tiny"], {"runs", "variants", "seconds"}),
    ],
    ids=lambda words: " ".join(words[:2]) if isinstance(words, list) else "",
)
@pytest.mark.usefixtures("run", "pictures")
def test_json_is_all_that_stdout_has(home: Path, words: list[str], keys: set[str]) -> None:
    document = json.loads(kitae(home, *words, "--json").stdout)
    assert keys <= document.keys()
    if words[0] == "evaluate":
        out = kitae(home, *words).stdout
        assert "val accuracy" in out
        assert "Ankle boot" in out


def test_lists_are_tab_separated_or_json(home: Path) -> None:
    for what, name in (("recipe", "cifar10-strong"), ("study", "mixing")):
        lines = kitae(home, what).stdout.splitlines()
        names = [line.split("\t")[0] for line in lines[1:]]
        assert name in names
        assert [row["name"] for row in json.loads(kitae(home, what, "--json").stdout)] == names
        assert all(line.count("\t") == 1 for line in lines)
        # Whole sentences, not the first line of one.
        assert all(line[-1] in ".?" and line.count("(") == line.count(")") for line in lines[1:])
    assert "epochs: 7" in kitae(home, "recipe", "fashion-mini", "--set", "train.epochs=7").stdout
    out = kitae(home, "study", "mixing", "--tiny", "--plan", "--set", "data.source=fashion-mini").stdout
    assert "3 variants x 2 seeds" in out
    assert not list((home / "runs").glob("study*"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train", "fashion-mini", "--out", "run", *TINY], "--resume or --overwrite"),
        (["train", "--resume", "run", "--recipe", "finetune"], "--recipe finetune: cannot be used with --resume"),
        (["train", "run/recipe.yaml", "--recipe", "finetune"], "run/recipe.yaml: --recipe needs data, not a recipe"),
        (["show", "mistakes", "run", "--class", "Shrt"], "--class Shrt: is not a class of run (did you mean Shirt?)"),
        (["predict", "run", "pictures", "--out", "run/predictions.parquet"], "is a file of the run itself"),
        (
            ["predict", "run", "pictures", "--out", "labels.csv"],
            "--out labels.csv: exists and does not hold predictions",
        ),
        (
            ["predict", "run", "pictures", "--out", "data.parquet"],
            "--out data.parquet: exists and does not hold predictions",
        ),
        (["report", "run", "--out", "one.html"], "--out"),
        (["export", "run", "--out", "model.txt"], "model.txt: must end in .onnx"),
        (["show", "mistakes", "untested"], "has no predictions.parquet"),
        (["data", "check", "nowhere/", "--out", "labels.csv"], "labels.csv is a file, not a folder; choose another"),
    ],
)
def test_mistakes_about_a_run_change_nothing(
    home: Path, run: Path, pictures: Path, words: list[str], named: str
) -> None:  # fmt: skip
    (home / "labels.csv").write_text("path,label\na.png,cat\n")
    if not (home / "untested").exists():
        shutil.copytree(run, home / "untested", ignore=shutil.ignore_patterns("predictions.parquet"))
    pyarrow.parquet.write_table(pyarrow.table({"image": [b"x"], "label": [0]}), home / "data.parquet")
    before = {path: path.stat().st_mtime_ns for path in (*home.iterdir(), *run.iterdir())}
    assert named in refused(home, *words)
    assert {path: path.stat().st_mtime_ns for path in (*home.iterdir(), *run.iterdir())} == before


def test_a_second_process_of_torchrun_prints_only_its_errors(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    done = kitae(home, "train", "nothing-here", code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: nothing-here")


@pytest.mark.parametrize("words", ["study mixing", "study ablate fashion-mini", "search fashion-mini"])
def test_gpus_are_given_by_ray(home: Path, words: str) -> None:
    assert refused(home, *words.split(), "--gpus", 0.5).startswith("--gpus 0.5: only Ray gives GPUs")


@pytest.mark.parametrize("words", ["study mixing", "study ablate fashion-mini", "search fashion-mini"])
def test_ray_is_missed_before_anything_is_measured(home: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for late in ("study.plan_study", "search.resolve_name"):
        monkeypatch.setattr(f"kitae.experiments.{late}", lambda *_, **__: pytest.fail("it was planned"))
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refused(home, *words.split(), "--ray", "local").startswith("ray is not installed: ")


def test_dry_run_prints_the_plan_and_writes_no_run(home: Path) -> None:
    out = kitae(home, "train", "fashion-mini", "--dry-run", "--out", "dry", *TINY).stdout
    assert all(part in out for part in ("parameters", "estimated time", "precision: fp32"))
    assert "--minutes" not in out
    assert not (home / "dry").exists()
    document = json.loads(kitae(home, "train", "fashion-mini", "--dry-run", "--minutes", 5, "--json", *TINY).stdout)
    assert any(note.startswith("--minutes 5: ") for note in document["notes"])


def test_predict_files_and_folders_and_write_tables(home: Path, run: Path, pictures: Path) -> None:
    out = kitae(home, "predict", "run", "pictures", "--out", "p.csv").stdout
    assert "0.jpg" in out
    rows = list(csv.reader((home / "p.csv").open()))
    assert rows[0][:3] == ["image", "class", "T-shirt/top"]
    assert len(rows) == 1 + 16
    assert sum(map(float, rows[1][2:])) == pytest.approx(1, abs=1e-4)
    shutil.copytree(run, home / "renamed")
    facts = json.loads((run / "model.json").read_text())
    facts["classes"][:2] = ["image", "class"]
    (home / "renamed" / "model.json").write_text(json.dumps(facts))
    kitae(home, "predict", "renamed", "pictures", "--out", "q.csv")
    assert next(csv.reader((home / "q.csv").open()))[:4] == ["image", "class", "image (class)", "class (class)"]
    for _ in range(2):  # predictions may be replaced
        kitae(home, "predict", "run", "pictures/class 0/0.jpg", "--out", "p.csv")
        kitae(home, "predict", "run", "pictures/class 0/0.jpg", "--out", "p.parquet")
    assert len(list(csv.reader((home / "p.csv").open()))) == 1 + 1
    table = pyarrow.parquet.read_table(home / "p.parquet")
    assert json.loads(table.schema.metadata[b"classes"]) == json.loads((run / "model.json").read_text())["classes"]


def test_a_run_that_is_not_finished_says_so(home: Path, run: Path, pictures: Path) -> None:
    shutil.copytree(run, home / "killed")
    (home / "killed" / "evaluation.json").unlink()
    note = "note: killed is not finished, so its probabilities are not calibrated; resume it with: kitae train --resume"
    assert note in kitae(home, "predict", "killed", "pictures").stderr
    assert note in kitae(home, "export", "killed", "--out", "killed.onnx").stderr
    assert note in kitae(home, "evaluate", "killed", "--split", "val").stderr
    assert "not finished" not in kitae(home, "predict", "run", "pictures").stderr


def test_a_run_chosen_by_balanced_accuracy_is_evaluated_by_it(
    home: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, home / "balanced"))
    cli.start.evaluate(copy, split="val")
    assert "balanced" not in capsys.readouterr().out
    opened = Run.open(copy)
    opened.resolve(opened.recipe.override("train.select=val_balanced_accuracy"))
    cli.start.evaluate(copy, split="val")
    result = opened.evaluate("val")
    shown = console.percent(result["balanced_accuracy"], result["balanced_accuracy_interval"])
    assert f"balanced val accuracy {shown}  macro F1 " in capsys.readouterr().out


def test_a_name_that_the_output_cannot_encode_is_escaped(home: Path) -> None:
    photos = write_folder(home / "猫", train=12, classes=2)
    done = subprocess.run(
        [sys.executable, "-m", "kitae", "data", "check", photos], capture_output=True, cwd=home,
        env={**os.environ, "PYTHONIOENCODING": "latin-1", "KITAE_CACHE": str(home / "cache")},
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    assert rb"\u732b" in done.stdout


def test_a_closed_pipe_costs_no_table(home: Path, run: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is written before the first line of the table."""

    def closed(*arguments: Any, **options: Any) -> None:
        raise KitaeError("nobody reads this")

    monkeypatch.setattr(console, "table", closed)
    kitae(home, "predict", "run", "pictures", "--out", "piped.csv", code=2)
    assert len((home / "piped.csv").read_text().splitlines()) == 1 + 16


@pytest.mark.parametrize("found", [[("a", "kitae a")], [("a", "kitae a"), ("b", "kitae b"), ("c", "kitae c")]])
def test_a_page_is_opened_only_where_asked_and_two_commands_follow(
    found: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, opened = tmp_path / "report.html", Mock()
    monkeypatch.setattr(webbrowser, "open", opened)
    monkeypatch.setattr("kitae.reporting.page.write", lambda _: (page, found))
    write_page(tmp_path)
    opened.assert_not_called()
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [f"page: {page}", "next: kitae a"]
    assert len(said) == 3
    write_page(tmp_path, browser=True)
    opened.assert_called_once_with(page.as_uri())
    opened.return_value = False
    capsys.readouterr()
    write_page(tmp_path, browser=True)
    assert capsys.readouterr().err == "note: --open found no browser on this machine\n"
    opened.reset_mock()
    monkeypatch.setattr("kitae.reporting.page.write", Mock(side_effect=KitaeError("full")))
    write_page(tmp_path, browser=True)
    assert "was not written: full" in capsys.readouterr().out
    opened.assert_not_called()


def test_data_prepare_and_check(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_parquet(home / "d.parquet", train=3, test=1)
    assert "40 images of 3 x 32 x 32, 10 classes" in kitae(
        home, "data", "prepare", f"parquet:{source}", "--set", "data.image_size=32"
    ).stdout  # fmt: skip
    mixed = write_folder(home / "of several sizes", classes=2)
    out = kitae(home, "data", "prepare", mixed, "--set", "data.image_size=40").stdout
    assert "24 images" in out
    stores = len(list((home / "cache" / "stores").iterdir()))
    kitae(home, "train", mixed, "--image-size", 40, "--model", "resnet8", "--epochs", 1, "--out", "mixed")
    assert len(list((home / "cache" / "stores").iterdir())) == stores, "decoded once"
    out = kitae(home, "data", "check", source, "--out", "report", code=1).stdout  # its pictures are alike
    assert out.splitlines()[-1].startswith("not ready: 8 label conflicts")
    assert "class 3" in out
    assert (home / "report" / "check.json").exists()
    assert (home / "report" / "contact-sheet.png").exists()
    photos = write_folder(home / "photos with a broken one", train=12, classes=2)
    (photos / "class 0" / "0.jpg").write_bytes(b"no image")
    out = kitae(home, "data", "check", photos, code=1).stdout
    assert "unreadable images: 1" in out
    assert out.splitlines()[-1].startswith("not ready: 1 unreadable image")
    kitae(home, "data", "fix", photos, "--out", "fixed.csv")
    assert kitae(home, "data", "check", "fixed.csv").stdout.splitlines()[-1] == "ready"
    kitae(home, "data", "fix", photos, "--out", "fixed.csv", code=2)
    kitae(photos, "data", "fix", ".")
    assert (home / f"{photos.name}-fixed.csv").is_file()
    (home / f"{photos.name}-fixed.csv").unlink()
    monkeypatch.setenv("HOME", str(home))
    kitae(photos, "data", "fix", f"folder:~/{photos.name}")
    assert (home / f"{photos.name}-fixed.csv").is_file()


def test_the_fixed_copy_of_an_embedded_data_set_is_not_named_as_a_source(home: Path) -> None:
    *_, fixed, following = kitae(home, "data", "fix", "fashion-mini:").stdout.splitlines()
    assert fixed == "fashion-mini-fixed.parquet: 6,998 images, 2 left out"
    assert following == "next: kitae train fashion-mini-fixed.parquet"
    (home / "fashion-mini-fixed.parquet").unlink()


def test_an_unknown_command_is_answered_with_the_commands_in_the_order_of_use(home: Path) -> None:
    assert refused(home, "serve") == (
        "there is no command 'serve'; the commands are train, predict, evaluate, report, compress, export, data, "
        "study, search, bench, show, recipe"
    )


def test_a_field_without_effect_on_data_is_noted(tmp_path: Path) -> None:
    write_folder(tmp_path / "cats", train=12, classes=2)
    words = ("data", "fix", "cats", "--out", "f.csv", "--set", "train.epochs=3", "data.val_fraction=0.2", "name=a b")
    note = "note: only fields of data have an effect here, not --set train.epochs=3 'name=a b'\n"
    assert note in kitae(tmp_path, *words).stderr


def test_prepare_decodes_what_train_would(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def asked(data: str, clock: Any, choices: Any, *_: Any) -> Any:
        seen.append((data, clock and clock.seconds, choices["set"]))
        return Recipe.load("fashion-mini").override("data.image_size=20"), clock, ("the plan",)

    monkeypatch.setattr("kitae.pipelines.train.asked", asked)
    out = kitae(home, "data", "prepare", "photos-mini", "--minutes", 3, "--set", "data.val_fraction=0.2").stdout
    assert seen == [("photos-mini", 180, ("data.val_fraction=0.2",))]
    assert out.startswith("the plan\n7,000 images of 1 x 20 x 20")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["fit"], "train"),
        (["trian"], "(did you mean train?)"),
        (["help"], "use kitae --help"),
        (["data", "prepair"], "there is no command 'data prepair' (did you mean prepare?); the commands are check, "),
        (["compress", "run", "--epochs", "3"], "there is no option --epochs: use --finetune-epochs"),
        (["compress", "run", "--drop", "3"], "use --max-drop"),
        (["compress", "run", "--importance", "taylor"], "use --set importance=VALUE"),
        (["compress", "run", "--max-drop", "1", "--set", "max_drop=2"], "--max-drop and --set max_drop: are the same"),
        (["compress", "run", "--lr", "1"], "there is no option --lr; see kitae compress --help"),
        (["data", "check", "photos-mini", "--epochs", "3"], "no option --epochs; see kitae data check --help"),
        (["data", "check", "photos-mini", "--val-split", "0.2"], "use --set data.val_fraction=VALUE"),
        (["show", "augment", "--limit", "9"], "use --set data.limit=VALUE"),
        (["train", "fashion-mini", "--val_split", "0.2"], "use --set data.val_fraction=VALUE"),
        (["train", "--source", "photos"], "--source: DATA is given without an option: kitae train DATA"),
        (["predict", "run", "x.png", "--topk", "5"], "there is no option --topk: use --top"),
        (["predict", "run", "x.png", "--conf", "0.5"], "there is no option --conf; see kitae predict --help"),
        (["predict", "run", "--source", "x.png"], "IMAGES is given without an option: kitae predict MODEL IMAGES"),
        (["predict", "--model", "a", "b"], "--model: MODEL is given without an option: kitae predict MODEL IMAGES"),
        (["evaluate", "run", "--data", "x"], "there is no option --data; see kitae evaluate --help"),
        (["evaluate", "--weights", "run"], "RUN is given without an option: kitae evaluate RUN"),
        (["train", "fashion-mini", "--epohcs", "3"], "--epochs"),
        (["train", "fashion-mini", "--learning-rate", "0.1"], "--lr"),
        (["train", "fashion-mini", "--imgsz", "64"], "--image-size"),
        (["train", "fashion-mini", "--weight-decay", "0"], "--set train.optimizer.weight_decay="),
        (["train", "fashion-mini", "--patience", "3"], "--set train.early_stopping.patience="),
        (["train", "fashion-mini", "--crop-pct", "0.9"], "--set data.crop_pct="),
        (["study", "--epochs", "3"], "--set train.epochs="),
        (["study", "mixing", "--seed", "3"], "there is no option --seed: use --set study.seeds=VALUE"),
        (["study", "mixing", "--metric", "val.accuracy"], "use --set study.metric=VALUE"),
        (["study", "ablate", "fashion-mini", "--seed", "3"], "there is no option --seed (did you mean --seeds?)"),
        (["train", "fashion-min"], "did you mean fashion-mini"),
        (["train", "fashion-mini", "--set", "train.epoch=3"], "did you mean epochs"),
        (["train", "fashion-mini", "--set", "data.source=folder:nowhere"], "nowhere"),
        (["train", "fashion-mini", "--set", "data.source=imagenet21k"], "imagenet21k"),
        (["train", "fashion-mini", "--resume"], "--resume needs the run folder"),
        (["train", "fashion-mini", "--folds", "1"], "--folds 1"),
        (["train"], "DATA is missing; see kitae train --help"),
        (["train", "--set", "train.epochs=1", "fashion-mini"], "DATA is missing; give it before --set, which takes"),
        (["compress", "--ratios", ".2", ".5", "run", "--open"], "RUN is missing; give it before --ratios"),
        (["predict", "--top", "5", "run"], "IMAGES is missing; see kitae predict --help"),
        (["train", "fashion-mini", "train.epochs=1"], "train.epochs=1: use --set train.epochs=1"),
        (["train", "fashion-mini", "data.source=my cats"], "data.source=my cats: use --set 'data.source=my cats'"),
        (["export", "runs/a", "runs/lr=1"], "runs/lr=1: unexpected argument; see kitae export --help"),
        (["train", "fashion-mini", "--set", "epochs=1"], "did you mean train.epochs?"),
        (["train", "fashion-mini", "--epochs", "-1"], "epochs: should be greater than or equal to 0, not -1"),
        (["train", "fashion-mini", "--epochs", "1.5"], "--epochs: '1.5' is not a whole number"),
        (["train", "fashion-mini", "--epochs", "3", "--set", "train.epochs=4"], "epochs and set train.epochs=4"),
        (["train", "fashion-mini", "--image-size", "0"], "image_size: should be greater than or equal to 4, not 0"),
        (["data", "check", "no-such/"], "no-such/: no such file or folder"),
        (["train", "fashion-mini", "--gpu"], "there is no option --gpu: use --device"),
        (["data", "check", "webdatasett:a/b.tar"], "did you mean webdataset?"),
        (["data", "fix", "fashion-mini", "--out", "x.csv"], "x.csv: must end in .parquet"),
        (["evaluate", "nowhere"], "not a run folder (there is no such folder)"),
        (["predict", "nowhere", "x.png"], "x.png"),
        (["data", "check", "folder:nowhere"], "nowhere"),
        (["recipe", "nope"], "no recipe 'nope'"),
        (["search", "fashion-mini", "--recipe", "fashion-mini:", "--arms", "3"], "no recipe 'fashion-mini:'"),
        (["recipe", "--set", "train.epochs=7"], "--set: needs the name of a recipe"),
        (["recipe", "fashion-mini", "--schema"], "--schema: is the same for all recipes; leave out fashion-mini"),
        (["study", "--set", "train.epochs=1", "mixing"], "--set: needs the name of a study: kitae study NAME --set"),
        (["train", "--resume", "runs/typo"], "runs/typo"),
        (["train", "fashion-mini", "--set", "augment.train.cutout.size=4"], "augment.train has no cutout"),
        (["show", "augment", "nowhere", "--out", "taken"], "taken is a file, not a folder"),
        (["data", "fix", "fashion-mini", "--out", "taken/x.parquet"], "taken is a file, not a folder; choose another"),
        (["show", "augment", "fashion-mini", "--set", "data.image_size=4"], "at least 8 x 8"),
        (["report", "x" * 300], "there is no such folder"),
        (["--install-completion", "--shell", "tcsh"], "tcsh"),
        (["--install-completion", "--shell", "bash", "--output", "taken"], "taken: exists and is no completion"),
        (["predict", "run", ""], "the argument after run: is empty; is a shell variable not set?"),
        (["data", "check", "fashion-mini", "--out="], "--out=: is empty"),
        (["train", "fashion-mini", "--set"], "--set: has no value; is a shell variable not set?"),
        (["compress", "run", "--ratios", "--max-drop", "1"], "--ratios: has no value; is a shell variable not set?"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path: Path, words: list[str], named: str) -> None:
    (tmp_path / "taken").write_text("")
    assert named in refused(tmp_path, *words)
    left = [path for path in tmp_path.iterdir() if path.name != "cache"]
    assert left == [tmp_path / "taken"], "nothing is left behind"


def test_the_home_folder_is_meant_after_an_equals_sign_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the shell leaves the `~`, and a folder of this name was made."""
    monkeypatch.setenv("HOME", "/home/me")
    for given, meant in (("~/p.txt", "/home/me/p.txt"), ("a~/p.txt", "a~/p.txt"), ("~p.txt", "~p.txt")):
        assert refused(tmp_path, "predict", "m", "x", f"--out={given}").startswith(f"--out {meant}: must end in .csv")


def test_sigterm_exits_143_and_the_run_goes_on(home: Path, stopped: tuple[str, int, str]) -> None:
    _, code, error = stopped
    assert code == 143, error
    assert error.rstrip().endswith("kitae train --resume stopped"), error
    assert (home / "stopped" / "last" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("what", "shown"),
    [
        ((), ("the limit", "forward and backward, fp32")),
        (("train",), ("data", "augment", "forward", "backward", "optimizer", "other", "images/s")),
        (("precision",), ("(auto)", "fp32")),
    ],
)
def test_bench_shows_where_the_time_goes(home: Path, what: tuple[str, ...], shown: tuple[str, ...]) -> None:
    out = kitae(home, "bench", *what, "fashion-mini", *TINY).stdout
    assert all(part in out for part in shown)


@pytest.mark.parametrize("command", [("data", "check"), ("show", "augment")])
def test_pictures_are_not_written_where_they_would_be_a_class(home: Path, command: tuple[str, str]) -> None:
    photos = write_folder(home / f"photos to {command[1]}", train=2, classes=2)
    before = sorted(photos.rglob("*"))
    for out in ("found", "."):
        told = kitae(photos, *command, ".", "--out", out, code=2).stderr
        assert f"in {photos.resolve()}, so its pictures would be read as data" in told
    assert sorted(photos.rglob("*")) == before


def test_show_augment_draws_training_images_of_every_class(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn is looked at in tests/reporting/test_gallery.py and, with this command's function, test_docs.py."""
    drawn = Mock(return_value=[Path("gallery/colour.png"), Path("gallery/noise.png")])
    monkeypatch.setattr("kitae.reporting.gallery.draw_gallery", drawn)
    out = kitae(home, "show", "augment", "fashion-mini", "--out", "gallery", "--seed", 3).stdout
    assert out.splitlines() == ["gallery/colour.png", "gallery/noise.png"]
    images, labels, classes, folder, seed = drawn.call_args.args
    assert (images.shape, images.dtype) == ((80, 1, 28, 28), np.uint8)
    assert labels.tolist() == np.repeat(range(10), 8).tolist()
    assert (len(classes), folder, seed) == (10, Path("gallery"), 3)


def test_the_gallery_shows_of_a_photograph_what_it_is_told_to(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Mock(return_value=[])
    monkeypatch.setattr("kitae.reporting.gallery.draw_gallery", drawn)
    for label in range(2):
        folder = home / "oblong" / str(label)
        folder.mkdir(parents=True)
        for number in range(4):
            Image.fromarray(picture(label, number, (120, 160), 2)).save(folder / f"{number}.png")
    shown = {}
    for given in ("", "squash", "crop"):
        kitae(home, "show", "augment", "oblong", *(["--set", f"data.resize={given}"] if given else []))
        shown[given] = drawn.call_args.args[0]
    assert np.array_equal(shown[""], shown["squash"])
    assert not np.array_equal(shown["crop"], shown["squash"])


AGAIN = "; run the same command again to resume"
WITHOUT = "; run the same command without --overwrite to resume"


@pytest.mark.parametrize(
    ("words", "interrupted", "more"),
    [
        ("compress run", "run.Run.open", AGAIN),
        ("evaluate run", "run.Run.open", ""),
        ("study fashion-mini", "experiments.study.study", AGAIN),
        ("study fashion-mini --plan", "experiments.study.plan_study", ""),
        ("search fashion-mini", "experiments.search.search", AGAIN),
        ("study fashion-mini --overwrite", "experiments.study.study", WITHOUT),
        ("search fashion-mini --overwrite", "experiments.search.search", WITHOUT),
    ],
)
def test_an_interruption_is_one_line_that_says_how_to_go_on(
    words: str, interrupted: str, more: str, home: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"kitae.{interrupted}", Mock(side_effect=KeyboardInterrupt))
    assert kitae(home, *words.split(), code=130).stderr.splitlines()[-1] == f"error: interrupted{more}"


def test_a_current_folder_that_is_gone_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after another shell has cloned it anew; PyTorch would blame a library of Intel's."""
    monkeypatch.setattr(sys, "argv", ["kitae", "recipe"])
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err.startswith("error: the current folder no longer exists; change to one that does")


@pytest.mark.parametrize("problem", [CycloptsError(msg="a"), RecipeError("a"), DataError("a")])
def test_processes_of_one_machine_report_a_wrong_recipe_once(
    problem: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kitae", "train", "x"])
    monkeypatch.setattr(cli, "app", Mock(side_effect=problem))
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        said.append(capsys.readouterr().err.count("error: "))
    assert said == [1, 1 if isinstance(problem, DataError) else 0], "another process may not see a file that this does"


def test_a_disk_that_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["kitae", "export", "runs/a"])

    def fails(number: int) -> None:
        def app(**options: object) -> None:
            raise OSError(number, os.strerror(number), "runs/a.onnx")

        monkeypatch.setattr(cli, "app", app)

    fails(errno.ENOSPC)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err.strip() == "error: runs/a.onnx: No space left on device"
    fails(errno.EBADF)  # which no disk does: a mistake of ours, and shown whole
    with pytest.raises(OSError, match="Bad file"):
        cli.main()


def test_a_missing_extra_is_named(home: Path) -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nsys.argv = ['kitae', 'train', 'fashion-mini', '--out', 'none']\n"
        "from kitae.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=home)
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch is not installed: ")
    assert done.stderr.strip().endswith("[train]'")


def test_without_pytorch_a_wrong_path_is_not_answered_with_it(home: Path) -> None:
    """PyTorch would not help."""
    Image.new("RGB", (8, 8)).save(home / "a.png")
    code = (
        "import sys\nsys.modules['torch'] = None\nsys.argv[1:] = ['predict', 'modle.onx', 'a.png']\n"
        "from kitae.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=home)
    assert done.returncode == 2
    assert done.stderr.endswith("error: modle.onx: not a run folder (there is no such folder)\n")


@pytest.mark.parametrize("words", ["predict run a.png", "train fashion-mini --out none"])
def test_windows_is_told_what_runs_there(home: Path, run: Path, words: str) -> None:
    """It has no `resource` and no fork."""
    code = (
        "import concurrent.futures.thread, os, sys, torch.utils.data\n"
        f"del os.register_at_fork\nsys.modules['resource'] = None\nsys.argv[1:] = {words.split()}\n"
        "from kitae.cli import main\nmain()"
    )
    Image.new("RGB", (8, 8)).save(home / "a.png")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=home)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: runs need Linux or macOS; here, predict from a file")
    assert "Traceback" not in done.stderr


LONG = ("train missing/", "study missing.yaml", "study ablate missing.yaml", "search missing/")
PIPED = (
    "predict missing x.png", "predict missing.onnx x.png", "evaluate missing", "bench missing.yaml",
    "bench train missing.yaml", "bench precision missing.yaml", "export missing", "show augment missing/",
)  # fmt: skip


@pytest.mark.parametrize("words", LONG)
def test_long_commands_say_at_once_that_they_began(home: Path, words: str) -> None:
    """Before they import or read anything: where output is piped no bar shows it."""
    assert kitae(home, *words.split(), code=2).stdout == f"starting: kitae {words}\n"


@pytest.mark.parametrize("words", PIPED)
def test_commands_whose_output_is_piped_say_it_on_standard_error(home: Path, words: str) -> None:
    for more in ((), ("--json",)) if words.split()[0] not in ("export", "show") else ((),):
        done = kitae(home, *words.split(), *more, code=2)
        assert done.stdout == ""
        began, error = done.stderr.splitlines()
        assert began == f"starting: kitae {words.removesuffix(' x.png')}"
        assert error.startswith("error: ")


def test_a_terminal_shows_at_once_that_a_command_runs_and_erases_it(predicted: str) -> None:
    shown, _, rest = predicted.partition("\n")  # the line, before anything that ends one
    assert "running: kitae predict" in shown
    assert "\x1b[2K" in rest.partition("image")[0], "it is erased before the table"
    assert "starting" not in predicted


def test_a_status_is_one_line_that_ends_with_the_first_output(monkeypatch: pytest.MonkeyPatch) -> None:
    told, shown = io.StringIO(), io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=told, force_terminal=True))
    monkeypatch.setattr(console, "errors", Console(file=shown, force_terminal=True, width=40, soft_wrap=True))
    with console.status("predict " + "[x]" * 40):
        assert "running: kitae predict [x]" in shown.getvalue()
        assert "…" in shown.getvalue()
        assert "\x1b[2K" not in shown.getvalue()
        console.say("a result")
        assert shown.getvalue().endswith("\x1b[2K")
        ended = shown.getvalue()
    assert shown.getvalue() == ended
    assert told.getvalue() == "a result\n"
    with pytest.raises(KitaeError), console.status("evaluate x"):
        raise KitaeError("no")
    assert shown.getvalue().endswith("\x1b[2K")


def test_what_others_print_to_standard_error_does_not_end_the_line_of_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as that kernels are compiled, and warnings."""
    shown, before = io.StringIO(), sys.stderr
    monkeypatch.setattr(console, "errors", Console(file=shown, force_terminal=True, width=80, soft_wrap=True))
    with console.status("bench"):
        print("compiling", file=sys.stderr, flush=True)
    assert re.search(r"\x1b\[2K(\x1b\[0m)?compiling(\x1b\[0m)?\n", shown.getvalue()), repr(shown.getvalue())
    assert shown.getvalue().endswith("\x1b[2K")
    assert sys.stderr is before


def test_evaluate_and_export_count_the_images_that_they_decode(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def open_store(self: Run, progress: Any = None) -> None:
        given.append(progress)
        raise KitaeError("enough")

    monkeypatch.setattr(Run, "open_store", open_store)
    monkeypatch.setattr(console, "interactive", lambda: True)
    with pytest.raises(KitaeError, match="enough"):
        Run.open(run).evaluate("val")
    with pytest.raises(KitaeError, match="enough"):
        export(run, tmp_path / "m.onnx")
    assert len(given) == 2
    assert all(map(callable, given))


def test_report_is_one_page_of_a_run_or_of_several(home: Path, run: Path) -> None:
    kitae(home, "report", "run")
    page = (run / "report.html").read_text()
    assert "data:image/" in page
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")
    shutil.copytree(run, home / "two words")
    kitae(home, "report", "run", "two words", "--out", "both.html")
    assert "Comparison" in (home / "both.html").read_text()
    out = kitae(home, "train", "--resume", "two words").stdout
    assert "two words was finished before, so nothing was trained\n" in out
    assert out.startswith("starting")
    assert "test accuracy" in out
    assert "kitae predict 'two words' IMAGES" in out


def test_export_and_predict_without_the_run(home: Path, run: Path, pictures: Path) -> None:
    pytest.importorskip("onnxscript")
    kitae(home, "export", "run", "--out", "m.onnx")
    tables, written = [], []
    for model, out in (("run", "a.csv"), ("m.onnx", "b.csv")):
        told = kitae(home, "predict", model, "pictures", "--out", out).stdout
        tables.append([line for line in told.splitlines() if "\t" in line])
        written.append(np.loadtxt(home / out, delimiter=",", skiprows=1, usecols=range(2, 12)))
    assert tables[0] == tables[1]
    assert len(tables[0]) == len(written[0]) + 1 == 1 + 16
    np.testing.assert_allclose(*written, rtol=0, atol=1e-4)


@pytest.fixture
def classify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`kitae predict` with a model that gives every image these probabilities of the classes a, b, c, ..."""

    def predict(*shares: float, images: int = 1, **options: Any) -> None:
        model = SimpleNamespace(
            classes=tuple("abcdefgh"[: len(shares)]),
            predict=lambda images: SimpleNamespace(probabilities=np.array([shares] * len(images), np.float32)),
        )
        monkeypatch.setattr("kitae.runtime.Model", lambda _: model)
        files = [tmp_path / f"{number}.png" for number in range(images)]
        for file in files:
            file.touch()
        cli.start.predict(tmp_path / "m.onnx", files, **options)

    return predict


def test_of_equal_classes_the_first_is_shown_and_written(
    tmp_path: Path, classify: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    classify(0.1, 0.4, 0.1, 0.4, out=tmp_path / "p.csv", top=4)
    assert "\tb\tb 40.0 %  d 40.0 %  a 10.0 %  c 10.0 %\n" in capsys.readouterr().out
    assert f"{tmp_path / '0.png'},b," in (tmp_path / "p.csv").read_text()


def test_no_cell_of_predictions_is_a_formula_of_a_spreadsheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = ("=1+1", "+cmd|x", "-5", "@sum", "a=b")
    answer = SimpleNamespace(probabilities=np.eye(5, dtype=np.float32))
    model = SimpleNamespace(classes=classes, predict=lambda images: answer)
    monkeypatch.setattr("kitae.runtime.Model", lambda _: model)
    monkeypatch.chdir(tmp_path)
    files = [Path(name) for name in ("=1+1.png", "+x.png", "-x.png", "@x.png", "x=.png")]
    for file in files:
        file.touch()
    for _ in range(2):  # the second time the file is replaced
        cli.start.predict(Path("m.onnx"), files, out=Path("p.csv"))
    head, *rows = csv.reader(Path("p.csv").read_text().splitlines())
    assert head[2:] == [row[1] for row in rows] == ["'=1+1", "'+cmd|x", "-5", "'@sum", "a=b"]
    assert [row[0] for row in rows] == ["./=1+1.png", "./+x.png", "./-x.png", "./@x.png", "x=.png"]


@pytest.mark.parametrize(
    "more",
    [",split,group\n0.png,a,train,1", ",split,group\n0.png,a", ",x,y\n0.png,a,0.250000,0.750000", ",a,b\n0.png,a,1,0"],
)
def test_a_list_of_labels_is_not_replaced_by_predictions(
    more: str, tmp_path: Path, classify: Callable[..., None]
) -> None:
    """A data source may have the columns `image` and `class` too."""
    labels = tmp_path / "labels.csv"
    labels.write_text(f"image,class{more}\n")
    with pytest.raises(RecipeError, match="does not hold predictions"):
        classify(0.25, 0.75, out=labels)
    assert labels.read_text() == f"image,class{more}\n"
    for images in (2, 0, 1):  # predictions are replaced, also those of no image
        classify(0.25, 0.75, images=images, out=tmp_path / "p.csv")
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 1 + 1


def test_a_table_of_no_image_has_the_columns_of_others(tmp_path: Path, classify: Callable[..., None]) -> None:
    tables = []
    for images in (2, 0):
        classify(0.25, 0.75, images=images, out=tmp_path / "p.parquet")
        tables.append(pyarrow.parquet.read_table(tmp_path / "p.parquet"))
    assert tables[0].schema == tables[1].schema
    assert tables[0]["probabilities"].type == pyarrow.list_(pyarrow.float32(), 2)  # as the model gives them
    assert tables[0]["probabilities"].to_pylist() == [[0.25, 0.75]] * 2


def test_tables_in_a_folder_whose_name_is_not_utf8(tmp_path: Path, classify: Callable[..., None]) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    for images in (1, 2):  # predictions may be replaced
        classify(0.25, 0.75, images=images, out=folder / "p.parquet")
    with (folder / "p.parquet").open("rb") as file:
        assert len(pyarrow.parquet.read_table(file)) == 2
    run = Run(folder, Recipe())
    run.write_predictions(pyarrow.table({"name": ["a"]}))
    assert run.predictions()["name"].to_pylist() == ["a"]


def test_a_run_may_be_called_as_an_exported_file(tmp_path: Path) -> None:
    Recipe().save(tmp_path / "mine.onnx" / "recipe.yaml")
    (tmp_path / "a.png").touch()
    with pytest.raises(TrainingError, match=r"mine\.onnx: has no best\.safetensors"):
        cli.start.predict(tmp_path / "mine.onnx", [tmp_path / "a.png"])


def test_as_json_a_terminal_is_not_told_that_predictions_are_missing(
    classify: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=told, force_terminal=True, highlight=False))
    classify(0.25, 0.75, images=25)
    assert "5 more not shown" in told.getvalue()
    told.truncate(0)
    classify(0.25, 0.75, images=25, json=True)
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 25
    assert "not shown" not in told.getvalue()


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("p.parquet", "pyarrow is not installed"),
        ("folder.csv", "is a folder"),
        ("a.png/p.csv", "a.png is a file, not a folder"),
        ("read-only/new/p.csv", "read-only cannot be written to"),
    ],
)
def test_where_predictions_cannot_be_written_nothing_is_classified(
    out: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kitae.runtime.Model", lambda _: pytest.fail("the model was used"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    access = os.access  # root may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "read-only" and access(path, mode))
    for name in ("folder.csv", "read-only"):
        (tmp_path / name).mkdir()
    image = tmp_path / "a.png"
    image.touch()
    with pytest.raises(KitaeError, match=why):
        cli.start.predict(tmp_path / "m.onnx", [image], out=tmp_path / out)


def test_progress_is_not_among_the_predictions(
    classify: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count(0, 20)
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    classify(0.25, 0.75)
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "image\tclass\tbest 2"
    assert re.fullmatch(r"starting: kitae predict .+m\.onnx\nclassifying images: 1 of 1\n", said.err)


def test_names_beyond_the_basic_plane_reach_the_data(home: Path) -> None:
    write_folder(home / "\U00020bb7野", train=4, classes=2)
    assert "8 images" in kitae(home, "data", "prepare", "folder:\U00020bb7野", "--set", "data.image_size=32").stdout


LISTED = (["recipe", "fashion-mini"], ["recipe"], ["recipe", "--json"])  # as text, as a table, as JSON


def written_to(output: int, home: Path, words: list[str]) -> tuple[int, str]:
    """The exit code and the errors of a command whose standard output is this file."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    words = [sys.executable, "-m", "kitae", *words]
    done = subprocess.run(words, stdout=output, stderr=subprocess.PIPE, env=environment, cwd=home, text=True)
    os.close(output)
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", LISTED, ids=" ".join)
def test_a_closed_pipe_is_no_error_of_the_interpreter(home: Path, words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    assert written_to(write, home, words) == (1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full disk to write to")
@pytest.mark.parametrize("words", LISTED, ids=" ".join)
def test_an_output_on_a_full_disk_is_one_line(home: Path, words: list[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    assert written_to(full, home, words) == (2, "error: standard output: No space left on device\n")


def test_an_output_that_is_closed_from_the_start_is_no_error(home: Path) -> None:
    words = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "kitae", "recipe", "--json"]
    done = subprocess.run(words, stderr=subprocess.PIPE, cwd=home, text=True)
    assert (done.returncode, done.stderr) == (0, "")
