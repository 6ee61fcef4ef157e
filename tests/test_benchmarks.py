"""The benchmarks run in a tiny mode, write valid results, and name who is not there. No figure is judged here."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kitae as kt
from kitae.data.splits import Splits
from tests.images import assert_alike
from tests.images import picture as pixels

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def module(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def run(script: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def holds(found: dict[str, Any], *conditions: str) -> None:
    """Each condition, in the words of the results."""
    for condition in conditions:
        assert eval(condition, dict(found)), condition


# script, arguments, what holds of the results
SMOKES = [
    ("memory", "--quick --images 30", ["runs and growth_percent"]),
    ("cold_start", "--quick", ["seconds and control_ratio and model and beyond_load"]),
    ("infer", "--quick --batch 1 --threads 1", ["contestants and absent and batches"]),
    ("store", "--quick", ["build and speed and sharpness"]),
    ("store", "--quick --cold", ["images_per_second and bytes_read and blocks_over"]),
    ("shards", "--quick", ["memory and images_per_second and kitae_over"]),
    ("ties", "--quick", ["means and rows"]),
    (
        "train",  # the bare step, our command and two loops; an absent library is named
        "--tiny --contestants bare kept kitae tuned lightning timm",
        [
            "all({'bare', 'kept', 'kitae', 'tuned'} <= row['images_per_second'].keys() for row in rows.values())",
            "all(row['images_per_second'].keys() | row['left_out'].keys()"
            " == {'bare', 'kept', 'kitae', 'tuned', 'lightning', 'timm'} for row in rows.values())",
            "all(row['kitae_over'].keys() == row['images_per_second'].keys() - {'kitae'} for row in rows.values())",
            "all(rate['median'] > 0 and rate['n'] == 2"
            " for row in rows.values() for rate in row['images_per_second'].values())",
            "all(row['peak_memory_bytes'][loop] > size > 0"
            " for row in rows.values() for loop, size in row['memory_between_steps_bytes'].items())",
            "all(rate['median'] > 0 for row in rows.values() for rate in row['cpu_seconds_per_1000_images'].values())",
            "all({'kitae', 'tuned'} <= row['image_share'].keys() and not {'bare', 'kept'} & row['image_share'].keys()"
            " for row in rows.values())",
            "all(0 < row['image_share']['kitae'] < 1 for row in rows.values())",
            "all(0 <= row['image_share']['tuned'] < 1 for row in rows.values())",
        ],
    ),
    (
        "depthwise",
        "--tiny",
        [
            "networks[0]['over_ours'].keys() == {'fp32', 'bf16', 'bf16, depthwise in fp32'}",
            "[row['of'] for row in layers] == ['input', 'weights']",
        ],
    ),
    (
        "threads",  # while training, no processes beside
        "--tiny",
        [
            "all(row['over_one'].keys() == {'two threads', 'two processes'} for row in rows if not row['training'])",
            "all(row['over_one'].keys() == {'two threads'} for row in rows if row['training'])",
            "{row['training'] for row in rows} == {False, True}",
        ],
    ),
    (
        "thread_profile",  # the parts of a batch add up, and so do their losses
        "--tiny",
        [
            "[row['training'] for row in rows] == [False, True]",
            "all(set(row['milliseconds']) == {'1', '2'} for row in rows)",
            "all(abs(sum(of[part]['values'][k] for part in ('python', 'waking', 'kernels', 'waiting'))"
            " / of['total']['values'][k] - 1) < 1e-3"
            " for row in rows for of in row['milliseconds'].values() for k in range(2))",
            "all(row['milliseconds'][n]['kernels']['min'] > 0 for row in rows for n in '12')",
            "all(row['milliseconds'][n]['waking']['min'] > 0 for row in rows for n in '12')",
            "all(row['milliseconds']['1']['waiting']['max'] == 0 for row in rows)",  # a thread alone waits for none
            "all(row['limits'].keys() == {'copy', 'arithmetic'} for row in rows)",
        ],
    ),
    (
        "passes",
        "--tiny",
        [
            "[row['kept'] for row in rows] == [False, True]",
            "all(row['few_over_whole']['n'] == 2 and row['images_per_pass'] == 3136 for row in rows)",
            "all(row['largest_difference'] < 1e-4 for row in rows)",
        ],
    ),
    (
        "folding",
        "--tiny",
        [
            "[row['precision'] for row in rows] == ['bf16', 'fp32']",
            "all(row['folded_over_plain']['n'] == 2 for row in rows)",
        ],
    ),
    (
        "waiting",
        "--tiny",
        [
            "[row['beside'] > 0 for row in rows] == [False, True]",
            "all(row['images_per_second'].keys() == {'pytorch', 'kitae'} for row in rows)",
            "all(row['over_pytorch']['n'] == 2 for row in rows)",
        ],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "words", "conditions"), SMOKES)
def test_a_quick_run_writes_its_results(
    script: str, words: str, conditions: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KITAE_DATA", str(tmp_path))  # no photographs there: some are generated
    out = tmp_path / f"{script}.json"
    run(f"{script}.py", *words.split(), "--out", out)
    found = json.loads(out.read_text())
    holds(found, "machine['processor']", *conditions, *["quick"] * ("--quick" in words))


# script, what measures, arguments of one run after another, what holds of the results
GROWING = [
    (
        "quality",  # two sets of a few pictures
        "run",
        [
            "--budgets 0.05 --seeds 0 --contestants torchvision-scratch --sets {tmp}/tiny {tmp}/photos:20",
            "--budgets 0.05 --seeds 0 --contestants kitae-scratch --sets {tmp}/tiny",
        ],
        [
            "machine['contestants']['torchvision']",
            "len(rows) == 3",
            "all(row['n'] == 6 and row['interval'][0] <= row['accuracy'] <= row['interval'][1] for row in rows)",
            "all(row['steps'] >= 1 and row['seconds'] > 0 and row['peak_memory_bytes'] > 50e6 for row in rows)",
            "all(row['when'] >= machine['when'] and row['commit'] == machine['commit'] for row in rows)",
            "[line['difference'] is None for line in paired] == [False, True, True]",
        ],
    ),
    (
        "minutes",  # alone and beside busy processes
        "run",
        ["--set photos-mini:60 --minutes 0.2 --seeds 0"],
        [
            "[row['beside'] > 0 for row in rows] == [False, True]",
            "all(row['minutes'] == 0.2 and row['seconds'] > 0 for row in rows)",
            "rows[0]['n'] == rows[1]['n'] > 0",
        ],
    ),
    (
        "settings",  # on validation
        "score",
        [
            "--sets photos-mini:60 --seeds 0 --sizes 64",
            "--sets photos-mini:60 --seeds 0 --rates 0.0005 --minutes 0.3",
        ],
        [
            "(rows[0]['image_size'], rows[0]['epochs'], rows[0]['rate']) == (64, 0, None)",
            "rows[0]['val_accuracy'] == rows[0]['probe_val_accuracy']",
            "rows[1]['rate'] == 0.0005 and rows[1]['probe_val_accuracy'] is not None",
            "len(rows) == 2",
        ],
    ),
    (
        "fine_tuning",  # in equal steps
        "score",
        [
            "--sets photos-mini:60 --size 64 --steps 12 --seeds 0"
            " --variants short=warmup:0.1 fast=train.optimizer.lr:0.001 mild=scale:0.7"
        ],
        [
            "len(rows) == 3 and rows[0]['probe'] == rows[1]['probe']",  # scale changes its augmented view
            "[len(row['epochs']) for row in rows] == [6, 6, 6]",
            "rows[1]['learning_rate'] == 0.001 != rows[0]['learning_rate']",
        ],
    ),
    (
        "from_scratch",  # in equal passes
        "score",
        [
            "--sets photos-mini:60 --size 64 --passes 3 --seeds 0 1"
            " --variants sgd=sgd:0.4 muon=muon:0.24,mix:0.5,until:0.8,model.width:8"
        ],
        [
            "len(rows) == 4 and rows[0]['image_size'] == 64",
            "rows[0]['steps'] == rows[1]['steps'] > 0 and rows[0]['train_loss'] != rows[1]['train_loss']",
        ],
    ),
    (
        "reconstruction",  # from one network
        "score",
        [
            "--sets photos-mini:60 --size 64 --passes 2 --seeds 0 --trainings muon --ratios 0.3 0.5"
            " --variants off=finetune_epochs:0,reconstruct:false alone=finetune_epochs:0"
        ],
        [
            "len(rows) == 2 and rows[0]['original'] == rows[1]['original']",
            "list(rows[0]['ratios']) == ['0.3', '0.5']",
            "rows[0]['ratios'] != rows[1]['ratios']",
        ],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "measure", "runs", "conditions"), GROWING)
def test_what_was_measured_is_not_measured_again(
    script: str, measure: str, runs: list[str], conditions: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = module(monkeypatch, script)
    monkeypatch.setattr(benchmark.common, "SCRATCH", tmp_path / "scratch")
    for name, side in (("tiny", 24), ("photos", 80)):
        for label, number in itertools.product(range(2), range(15)):
            (inside := tmp_path / name / f"class {label}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(label, number, (side, side), 2)).save(inside / f"{number}.png")
    arguments = [[*words.format(tmp=tmp_path).split(), "--out", str(tmp_path / "out.json")] for words in runs]
    for words in arguments:
        assert benchmark.main(words) == 0
    holds(json.loads((tmp_path / "out.json").read_text()), *conditions)
    monkeypatch.setattr(benchmark, measure, lambda *_, **__: pytest.fail("is there already"))
    assert benchmark.main(arguments[0]) == 0


def test_a_variant_does_not_take_the_rows_of_another_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fine_tuning, out = module(monkeypatch, "fine_tuning"), tmp_path / "out.json"
    row = {"set": "photos-mini", "seed": 0, "size": 64, "steps": 8, "variant": "short", "fields": {"warmup": "0.1"}}
    out.write_text(json.dumps({"rows": [row]}))
    monkeypatch.setattr(fine_tuning.quality, "add_rows", lambda *_: [])
    words = ["--size", "64", "--steps", "8", "--seeds", "0", "--out", str(out), "--variants"]
    assert fine_tuning.main([*words, "short=warmup:0.1", "long=warmup:0.4"]) == 0
    with pytest.raises(SystemExit):
        fine_tuning.main([*words, "short=warmup:0.2"])
    assert "--variants short: " in capsys.readouterr().err
    assert fine_tuning.main(["--steps", "9", *words[:2], *words[4:], "short=warmup:0.2"]) == 0  # other rows


@pytest.mark.slow
def test_augmentation_is_compared_and_who_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny run with a peer that is not installed and one whose Python does not start."""
    broken = tmp_path / "peers" / "albumentations" / "bin" / "python"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\necho no such library >&2\nexit 3\n")
    broken.chmod(0o755)
    words = "--quick --size 32 --only standard --only salt_and_pepper"
    contestants = "kitae,torchvision-v2,kornia,albumentations,copy"
    places = ["--peers", tmp_path / "peers", "--out", tmp_path / "out.json", "--data", tmp_path]
    run("augment.py", *words.split(), "--contestants", contestants, *places, "--docs", tmp_path / "docs")
    found = json.loads((tmp_path / "out.json").read_text())
    holds(
        found,
        "machine['processor'] and machine['versions']['torch'] and quick and not complete",
        "[each['work'] for each in works] == ['standard', 'salt_and_pepper']",
        "'peers.sh' in works[0]['absent']['kornia'] == contestants['kornia']['absent']",
        "'no such library' in works[0]['absent']['albumentations']",
        "works[1]['missing']['torchvision-v2'] == 'no such transform'",
    )
    standard = found["works"][0]
    assert standard["images"].startswith("generated")
    for mode, entries in standard["modes"].items():
        assert set(entries) == {"kitae", "kitae (control)", "torchvision-v2", "copy"}
        for entry in entries.values():
            assert entry["n"] == len(entry["values"]) == 2
            assert 0 < entry["min"] <= entry["median"] <= entry["max"]
            assert entry["output"]["std"] > 0.05
        said = standard["summary"][mode]
        assert said["torchvision"]["name"] == said["peer"]["name"] == "torchvision-v2"
        assert said["peer"]["median"] > 0
        assert said["copy"]["name"] == "copy"
    page = (tmp_path / "docs" / "augment.md").read_text()
    cells = (module(monkeypatch, "augment_docs")._rate(standard["modes"][mode]["kitae"]) for mode in ("one", "all"))
    row = f"| Kitae, CPU executor | {' | '.join(cells)} | "
    for text in (row, "figures mean nothing", "no such library"):
        assert text in page
    for picture in ("augment.png", "augment-peers.png"):
        assert (tmp_path / "docs" / picture).read_bytes().startswith(b"\x89PNG")
        assert picture in page
    run("augment.py", "--docs-only", "--out", tmp_path / "out.json", "--docs", tmp_path / "again")
    assert (tmp_path / "again" / "augment.md").read_text() == page


def test_what_is_quick_or_partial_does_not_replace_the_committed_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ties, simulated = module(monkeypatch, "ties"), module(monkeypatch, "simulated_studies")
    precision = module(monkeypatch, "precision")
    epoch = {"val_accuracy": 0.5, "val_loss": 1.0, "test_accuracy": 0.5}
    monkeypatch.setattr(ties, "epochs", lambda *_: [epoch])
    monkeypatch.setattr(simulated, "simulate", lambda *_: {"covered": 1.0, "false_winners": 0.0, "half_width": 1.0})
    timed = {"precisions": {}, "chosen": "fp32", "behind": 1.0}
    monkeypatch.setattr(precision, "row", lambda name, steps: {**timed, "model": name})
    committed, scratch = tmp_path / "committed", tmp_path / "scratch"
    for place, folder in (("RESULTS", committed), ("SCRATCH", scratch)):
        monkeypatch.setattr(ties.common, place, folder)
        monkeypatch.setattr(precision, place, folder)
    ties.main(["--quick"])
    simulated.main(["--quick"])
    precision.main(["resnet9-w32-32"])
    assert not committed.exists()
    assert len(list(scratch.iterdir())) == 3
    precision.main(["resnet18-32"])  # beside the row that is there
    file = scratch / "precision.json"
    assert list(json.loads(file.read_text())["rows"]) == ["resnet9-w32-32", "resnet18-32"]
    precision.main(["--steps", "6", "resnet18-32"])
    assert list(json.loads(file.read_text())["rows"]) == ["resnet18-32"]
    here = precision.hardware()
    monkeypatch.setattr(precision, "hardware", lambda: {**here, "versions": {**here["versions"], "torch": "9.9"}})
    precision.main(["--steps", "6", "simple_cnn-32"])
    assert list(json.loads(file.read_text())["rows"]) == ["simple_cnn-32"], "not beside those of another torch"
    precision.main([])
    assert json.loads((committed / "precision.json").read_text())["rows"].keys() == precision.NETWORKS.keys()


def finished(folder: Path, train: int, *fields: str, rows: list[dict[str, Any]]) -> Any:
    """A run of so many training images, as `recipe.facts` reads it."""
    whole = {"count": 8, "accuracy": 0.5, "accuracy_interval": [0.2, 0.8], "loss": 1.0, "ece": 0.1}
    Splits(np.arange(train), np.arange(0), "a store", np.arange(0)).save(folder / "splits.npz")
    return SimpleNamespace(
        path=folder, recipe=kt.Recipe.load("fashion-mini").override(*fields), metrics=lambda: rows,
        facts=lambda: {"parameters": 1, "macs": 3}, environment=dict,
        evaluation=lambda: {"test": whole, "val": whole, "test_openings": 1},
    )  # fmt: skip


def test_a_probe_before_the_first_epoch_is_no_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = module(monkeypatch, "recipe")
    measured = {"seconds": 2.0, "images_per_second": 100.0, "data_share": 0.1, "peak_memory_bytes": 10}
    rows = [{"epoch": epoch, "step": step, **measured} for epoch, step in ((0, 0), (1, 5), (2, 8))]
    run = finished(tmp_path, 32, "train.batch_size=4", "train.accumulate=2", rows=rows)
    found = recipe.facts(run, "")
    assert (found["epochs"], found["images_seen"], found["training_flops"]) == (2, 8 * 4 * 2, 6 * 3 * 64)
    assert (found["training_seconds"], found["images_per_second"]["n"]) == (6.0, 2)
    few = finished(tmp_path, 7, "train.batch_size=128", "train.accumulate=2", rows=rows)
    assert recipe.facts(few, "")["images_seen"] == 8 * 6, "an update of all images but the odd one"
    del rows[1:]
    with pytest.raises(SystemExit, match=": only a probe was fitted"):
        recipe.facts(run, "")


def test_rows_of_another_machine_are_not_put_beside_those_of_this_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    minutes, out = module(monkeypatch, "minutes"), tmp_path / "minutes.json"
    monkeypatch.setattr(minutes, "write_lists", lambda *_: pytest.fail("it began"))
    out.write_text(json.dumps({"machine": {"processor": "another"}, "rows": []}))
    with pytest.raises(SystemExit, match=r"minutes\.json: has rows of another machine"):
        minutes.main(["--out", str(out)])


def test_parity_asks_for_enough_seeds_before_it_trains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        module(monkeypatch, "parity").main(["fashion-mini", "--seeds", "1", "--limit", "60"])
    assert "--seeds: at least 2" in capsys.readouterr().err


def test_why_no_loop_trains_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    train = module(monkeypatch, "train")

    def no_start(*_: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr(train, "Contestant", no_start)
    with pytest.raises(SystemExit, match=r"resnet9: no contestant runs here \(bare: no memory; kept: no memory\)"):
        train.in_turns("resnet9", ["bare", "kept"], 1, 1)
    monkeypatch.setitem(train.NEEDS, "lightning", "no_such_library")
    with pytest.raises(SystemExit):
        train.main(["--tiny", "--contestants", "lightning"])
    assert "--contestants: not installed: lightning" in capsys.readouterr().err


def test_a_batch_of_more_images_than_there_are_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its time would be that of a smaller batch."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # which the benchmark sets, and this test takes back
    infer = module(monkeypatch, "infer")
    monkeypatch.setattr(infer.common, "DATA", tmp_path)
    threads = ["--threads", str(torch.get_num_threads())]
    for size in ("257", "0"):
        with pytest.raises(SystemExit):
            infer.main(["--quick", "--batch", size, *threads])
        assert "--batch: from 1 to 256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "python", "told"),
    [
        (["korni"], sys.executable, "korni: no such peer; there are kornia, "),
        (["kornia"], "no-such-python", "no-such-python: no such program; run make setup"),
    ],
)
def test_a_peer_that_cannot_be_installed_is_named(words: list[str], python: str, told: str) -> None:
    command = ["sh", str(BENCHMARKS / "peers.sh"), *words]
    done = subprocess.run(command, env={**os.environ, "PYTHON": python}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert told in done.stderr


def test_no_rounds_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    common, train = module(monkeypatch, "common"), module(monkeypatch, "train")
    monkeypatch.setattr(sys, "argv", ["threads.py", "--rounds", "0"])
    for call in (lambda: common.turns(None, "threads", 9, 0.1), lambda: train.main(["--rounds", "0"])):
        with pytest.raises(SystemExit):
            call()
        assert "--rounds: at least 1" in capsys.readouterr().err


def test_what_two_threads_lose_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch of 4 ms alone: 0.5 in Python, 0.1 to wake, 2.5 in kernels, 0.9 for the last one."""
    profile, docs = module(monkeypatch, "thread_profile"), module(monkeypatch, "augment_docs")
    one = [{"python": 0.4, "waking": 0.0, "kernels": 3.6, "waiting": 0.0, "total": 4.0}] * 3
    two = [{"python": 0.5, "waking": 0.1, "kernels": 2.5, "waiting": 0.9, "total": 4.0}] * 3
    found = profile.explained(one, two)
    lost = {part: each["median"] for part, each in found["lost_milliseconds"].items()}
    assert lost == pytest.approx({"python": 0.3, "waking": 0.1, "kernels": 0.7, "waiting": 0.9, "total": 2.0})
    assert (found["speedup"]["median"], found["kernel_speedup"]["median"]) == (1.0, 1.44)
    limits = {"copy": profile.common.spread([1.25]), "arithmetic": profile.common.spread([1.95])}
    times = {"1": {"total": profile.common.spread([4.0])}, "2": {"total": profile.common.spread([4.0])}}
    row = {"work": "auto_augment", "side": 32, "batch": 128, "training": True, "milliseconds": times, "limits": limits}
    machine = {
        "processor": "a processor",
        "cores_used": 2,
        "versions": {"torch": "2"},
        "when": "now",
        "load_average": 0,
    }
    text = docs.threads({"rows": [{**row, **found}], "machine": machine})
    cells = "4.000 | 4.000 | 1 x (1 to 1) | +0.300 | +0.100 | +0.700 | +0.900 | 1.25 x | 1.95 x |"
    assert f"| auto augment, in training | 128 | {cells}" in text
    assert "Medians of 3 rounds" in text


def test_the_share_of_images_has_a_column_where_it_was_measured() -> None:
    pages = importlib.import_module("benchmark_pages")
    found = json.loads((BENCHMARKS / "results" / "train.json").read_text())
    column = "of these for data and augmentation"
    name, row = next((name, row) for name, row in found["rows"].items() if "cpu_seconds_per_1000_images" in row)
    row.pop("image_share", None)
    before = pages.training(found)
    row["image_share"] = {"kitae": 0.0123}
    after = pages.training(found)
    assert after.count(column) == before.count(column) + 1
    section = after.partition(f"## {pages.ROWS[name]}\n")[2].partition("\n## ")[0]
    ours, bare = (next(line for line in section.splitlines() if line.startswith(f"| {pages.LOOPS[loop]} |"))
                  for loop in ("kitae", "bare"))  # fmt: skip
    assert ours.endswith("| 1.2 % |")
    assert bare.endswith("|  |")


def test_the_page_of_a_gpu_shows_what_was_measured(tmp_path: Path) -> None:
    """A part with results has a section, one without is named; remarks about certain figures end with them."""
    page = importlib.import_module("gpu_page")
    given = BENCHMARKS / "results" / "gpu"
    text = page.text(given)
    parts = {name: (title, about) for name, title, about, _ in page.SECTIONS}
    for name, (title, about) in parts.items():
        there = (given / f"{name}.json").is_file()
        assert (f"## {title}\n" in text) == there != (about in " ".join(text.split()).partition(" ## ")[0])
    steps = json.loads((given / "steps.json").read_text())
    assert "the file with these rows was lost" in text
    steps["machine"]["when"] = "2027-01-01T00:00:00+00:00"
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    assert "the file with these rows was lost" not in page.text(tmp_path)


def test_cold_start_is_what_the_command_adds_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    cold_start = module(monkeypatch, "cold_start")
    said = cold_start.summary(
        {"python": [0.1] * 3, "load": [1.0, 5.0, 2.0], "load (control)": [2.0, 5.0, 2.0], "predict": [1.5, 5.25, 3.0]}
    )
    assert said["beyond_load"]["values"] == [0.5, 0.25, 1.0]
    assert said["beyond_load"]["median"] == 0.5
    assert said["control_ratio"]["median"] == 1.0
    names = list("abcd")
    orders: list[str] = []
    found = cold_start.measure({name: [name] for name in names}, 6, lambda command: orders.append(command[0]))
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(names, 6)
    rounds = ["".join(orders[at : at + 4]) for at in range(0, len(orders), 4)]
    assert len(rounds) == 7  # the first is not counted
    assert len(set(rounds)) > 2
    assert all(sorted(order) == names for order in rounds)
    with pytest.raises(SystemExit, match="no luck"):
        cold_start.finish([sys.executable, "-c", "raise SystemExit('no luck')"])


def test_ratios_are_taken_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    augment = module(monkeypatch, "augment")

    def entry(*values: float, same_job: bool = True) -> dict[str, Any]:
        return {"values": list(values), "median": float(np.median(values)), "same_job": same_job}

    one = {"kitae": entry(10, 20, 30), "copy": entry(40, 80, 60)}
    every = {
        "kitae": entry(20, 30, 60),
        "torchvision-v1": entry(1, 1, 2),
        "torchvision-v2": entry(2, 2, 3),
        "torchvision-v2-batch": entry(50, 50, 50, same_job=False),  # another job: not ranked
        "kornia": entry(5, 5, 5),
        "kitae-torch": entry(99, 99, 99),  # ours: no peer
        "copy": entry(80, 120, 120),
    }
    said = augment.summary({"one": one, "all": every})
    assert said["all"]["torchvision"] == {"name": "torchvision-v2", "median": 15, "min": 10, "max": 20, "n": 3}
    assert said["all"]["peer"]["name"] == "kornia"
    with pytest.raises(ValueError, match="shorter"):  # which rounds belong together is not known
        augment.common.ratio(entry(1, 2), entry(1))
    assert said["all"]["copy"]["median"] == 0.25
    assert said["all_over_one"]["kitae"]["median"] == 2
    assert "torchvision" not in said["one"]
    work = {"work": "standard", "kind": "headline", "size": 32, "summary": said}
    slow = {"work": "hue", "kind": "op", "size": 32, "summary": {"all": {"peer": {"name": "kornia", "median": 0.9}}}}
    reached = {g["goal"]: g["ok"] for g in augment.goals([work, slow], 2)}
    assert reached == {
        "standard, 32 px: at least 30 x torchvision": False,
        "standard, 32 px: at least 4 x peer": True,
        "32 px, every op: no slower than the fastest peer": False,
        "32 px, every work: two threads at least 1.8 x one": True,
    }
    assert augment.goals([slow], 2)[0]["misses"] == {"hue": 0.9}


def test_a_run_with_fewer_rounds_is_not_a_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only a full run replaces the committed results and their page."""
    augment = module(monkeypatch, "augment")
    monkeypatch.setattr(augment, "Benchmark", lambda *_: SimpleNamespace(
        absent=dict.fromkeys(augment.CONTESTANTS, "not here"), start=lambda: None, close=lambda: None,
        measure=lambda work, size: {"work": work.name, "size": size, "kind": "op", "summary": {}},
    ))  # fmt: skip
    monkeypatch.setattr(augment, "line", lambda found: "")
    monkeypatch.setattr(augment.common, "keep_to", lambda cores: None)
    monkeypatch.setattr(augment.augment_docs, "write", lambda *_: pytest.fail("wrote the page"))
    monkeypatch.setattr(augment.common, "RESULTS", tmp_path / "committed")
    monkeypatch.setattr(augment.common, "SCRATCH", tmp_path / "scratch")
    augment.main(["--rounds", "1"])
    assert not (tmp_path / "committed").exists()
    assert not json.loads((tmp_path / "scratch" / "augment.json").read_text())["complete"]
    for words, told in ((["--modes", "both"], "'both'"), (["--docs-only"], "without --docs-only first")):
        with pytest.raises(SystemExit):
            augment.main(words)
        assert told in capsys.readouterr().err


def test_rates_of_different_modes_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that failed on all cores has its rate on one, and is not said to be slower than ours on all."""
    docs, common = module(monkeypatch, "augment_docs"), module(monkeypatch, "common")

    def entry(rate: float) -> dict[str, Any]:
        return {**common.spread([rate, rate]), "same_job": True, "note": "a note"}

    modes = {"one": {"kitae": entry(100), "timm": entry(50)}, "all": {"kitae": entry(200)}}
    work = {"work": "standard", "kind": "headline", "size": 32, "text": "standard", "modes": modes, "summary": {}}
    contestants = {name: {"label": name} for name in ("kitae", "timm")}
    text = docs._headline({"works": [work], "contestants": contestants, "settings": {"cores": 2}}, 32)
    assert "| timm | 50 (50 to 50) |  |  | a note |" in text
    modes["all"]["timm"] = entry(80)
    text = docs._headline({"works": [work], "contestants": contestants, "settings": {"cores": 2}}, 32)
    assert "| timm | 50 (50 to 50) | 80 (80 to 80) | 2.5 x | a note |" in text
    peer = {"peer": {"name": "timm", "median": 2.0, "min": 2.0, "max": 2.0}}  # where torchvision has no such work
    assert "\nall cores: 2 x (2 to 2) the fastest peer (timm).\n" in docs._sums({"summary": {"all": peer}})


@pytest.mark.parametrize(
    ("out", "targets", "problem"),
    [
        (np.zeros((2, 3, 32, 32)), None, "float32"),
        (np.zeros((2, 3, 31, 32), np.float32), None, "float32"),
        (np.full((2, 3, 32, 32), np.nan, np.float32), None, "nan"),
        (np.zeros((2, 3, 32, 32), np.float32), np.zeros((3, 10)), "targets"),
    ],
)
def test_wrong_results_are_noticed(
    monkeypatch: pytest.MonkeyPatch, out: np.ndarray, targets: np.ndarray | None, problem: str
) -> None:
    contestants = module(monkeypatch, "contestants")
    with pytest.raises(ValueError, match=problem):
        contestants.consume(out, targets, 32)


def test_results_that_are_no_images_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    contestants = module(monkeypatch, "contestants")
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    assert contestants.check(images)["mean"] == pytest.approx(0, abs=0.1)
    for wrong in (images * 100, images * 0):
        with pytest.raises(ValueError, match="not normalised"):
            contestants.check(wrong)


def test_worker_answers_and_outlives_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The protocol, without a process: a failure is an answer, and the next question is answered too."""
    common, contestants = module(monkeypatch, "common"), module(monkeypatch, "contestants")
    np.save(tmp_path / "images-32.npy", common.generated(32, 16))
    build = {"do": "build", "id": 1, "work": "horizontal_flip", "size": 32, "threads": 1, "variant": {}}
    commands = [
        {**build, "work": "no such work"},
        build,
        {"do": "round", "id": 1, "seconds": 0.0, "at": 0.0},
        {"do": "clear"},
        {"do": "round", "id": 1, "seconds": 0.0, "at": 0.0},
    ]
    lines = iter([json.dumps(c) for c in commands])
    hello, unknown, built, timed, cleared, gone = contestants.answers("kitae", 0, tmp_path, True, lines)
    assert hello["versions"]["kitae"]
    assert "KeyError" in unknown["error"]
    assert built["same_job"]
    assert timed["images"] == 16
    assert timed["seconds"] > 0
    assert cleared == {}
    assert "error" in gone


def test_generated_images_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    common = module(monkeypatch, "common")
    images, text = common.images(32, 4, Path("/no/such/folder"))
    assert images.shape == (4, 3, 32, 32)
    assert images.dtype == np.uint8
    assert text.startswith("generated")
    assert np.array_equal(images, common.generated(32, 4))
    assert images.std() > 20


def test_the_page_of_augmentation_is_that_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the benchmark's script again if this fails: python benchmarks/augment.py --docs-only"""
    common, augment_docs = module(monkeypatch, "common"), module(monkeypatch, "augment_docs")
    file, folder = common.RESULTS / "augment.json", common.ROOT / "docs" / "benchmarks"
    results, profile = common.load(file), module(monkeypatch, "augment").profile(file)
    assert (folder / "augment.md").read_text(encoding="utf-8") == augment_docs.text(results, profile)
    pictures = augment_docs.draw(results, tmp_path)
    assert [file.name for file in pictures] == ["augment.png", "augment-peers.png"]
    assert_alike(pictures, folder)


def test_the_page_of_compression_is_that_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the benchmark's script again if this fails: python benchmarks/compression.py"""
    compression = module(monkeypatch, "compression")
    page = compression.PAGE.read_text(encoding="utf-8")
    assert page == compression.text()
    for name, facts in compression.published().items():
        for file, chart in compression.charts(name, facts).items():
            assert (compression.PAGE.parent / file).read_text(encoding="utf-8") == chart, file
    # What an earlier loop trained is called so, and nothing else.
    for section in page.split("\n## ")[1:]:
        name = section.splitlines()[0]
        file = compression.RESULTS / f"{name}.json"
        if file.is_file():
            earlier = json.loads(file.read_text())["machine"]["when"] < "2026-11-26"
            assert (compression.EARLIER in section) == earlier, name


@pytest.mark.slow
def test_simulated_studies_run(tmp_path: Path) -> None:
    printed = run("simulated_studies.py", "--quick", "--out", tmp_path)
    assert "compare 5 effects, 3 seeds, even: covers" in printed
    rows = json.loads((tmp_path / "simulated_studies.json").read_text())["rows"]
    assert all(0 <= row["covered"] <= 1 and 0 <= row["false_winners"] <= 1 and row["half_width"] > 0 for row in rows)
    assert {row["noisy"] for row in rows} == {None, "the reference", "one variant"}
    # No benchmark may be called like a library: its folder comes first where Python looks.
    for script in BENCHMARKS.glob("*.py"):
        found = importlib.util.find_spec(script.stem)
        assert found is None or found.origin == str(script), script.name


def all_of_a_gpu(out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    words = ["sh", str(BENCHMARKS / "gpu.sh"), "ignored", str(out)]
    environment = {**os.environ, "PYTHON": sys.executable, "TINY": "1", **variables}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=2400)


@pytest.mark.slow
@pytest.mark.timeout(2500)
def test_what_a_gpu_shows_runs_on_a_cpu_too(tmp_path: Path) -> None:
    done = all_of_a_gpu(tmp_path, MINUTES="60")
    assert done.returncode == 0, done.stderr
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    trained = ["train-cifar10-strong", "train-cifar10-speed"]
    assert found.keys() == {"parity", "augment", "steps", "host", "syncs", "loop", "plan", "ddp", *trained}
    assert all(part["machine"]["versions"] for part in found.values())
    assert found["parity"]["equal"] > 20
    assert set(found["steps"]["networks"]["resnet9-w8-32"]["seconds"]) >= {"fp32", "bare bf16"}
    assert {"sgd", "muon"} < found["syncs"]["kinds"].keys()
    for name in trained:
        assert [run["recipe"]["train"]["seed"] for run in found[name]["runs"]] == [0, 1, 2]
        for run in found[name]["runs"]:
            assert 0 <= run["test"]["accuracy"] <= 1
            assert len(run["metrics"]) == run["epochs"] == 1
    for part, conditions in OF_A_GPU.items():
        holds(found[part], *conditions)
    text = importlib.import_module("gpu_page").text(tmp_path)  # all parts have a section
    assert "Not measured" not in text
    assert "tutorial loop: DataLoader, float32 |" in text
    assert "of its 15 s, with " in " ".join(text.split())
    assert "lost another process" in text


OF_A_GPU = {
    "loop": [
        "rows.keys() == {'loop-tiny'} and not rows['loop-tiny']['left_out']",
        "rows['loop-tiny']['images_per_second'].keys() == {'bare', 'kitae', 'tutorial', 'tuned'}",
        # whole epochs of at least 4 steps
        "all(count >= 4 for count in rows['loop-tiny']['steps'].values())",
        "rows['loop-tiny']['steps']['kitae'] == rows['loop-tiny']['steps']['tuned']",
        "all(value['median'] > 0 for value in rows['loop-tiny']['host_milliseconds_per_step'].values())",
        "rows['loop-tiny']['image_share'].keys() == {'kitae', 'tutorial', 'tuned'}",
    ],
    "plan": [
        "minutes == 0.25 and seconds_taken > 1 and abs(of_the_minutes - seconds_taken / 15) < 1e-9",
        "any('efficientnet_lite0 pretrained' in line for line in said)",
        "0.2 < test['accuracy'] <= 1 and peak_memory_bytes > 1e8",
    ],
    "ddp": [
        "[way['processes'] for way in ways.values()] == [1, 2]",
        "[summed['backend'] for summed in exchange.values()] == ['gloo', 'gloo']",
        "all(summed['sums_are_right'] for summed in exchange.values())",
        "batches['equal'] and batches['batches'] > 1 and batches['sha256'].keys() == ways.keys()",
        "all(way['largest_difference_of_losses'] < 2e-4 for way in same.values())",
        "len({way['test']['count'] for way in same.values()}) == 1",
        "killed['ways'].keys() == {'2'} and killed['process_timeout'] == 20",
        "all(way['in_time'] and 'lost another process' in way['message'] for way in killed['ways'].values())",
    ],
}


def test_parts_for_which_no_time_is_left_are_named(tmp_path: Path) -> None:
    done = all_of_a_gpu(tmp_path, MINUTES="0")
    assert done.returncode == 1
    assert done.stderr.count("left out, the minutes are over") == 10
    assert not list(tmp_path.iterdir())


def test_processes_are_started_as_the_number_of_gpus_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """nccl lets no two processes share a GPU."""
    gpu = module(monkeypatch, "gpu")

    def started(device: str, count: int) -> list[tuple[int, str | None]]:
        return [(way.processes, way.backend) for way in gpu.ways(device, count, False).values()]

    assert started("cpu", 0) == [(1, None), (2, None)]
    assert started("cuda", 1) == [(1, "nccl"), (2, "gloo")]
    assert started("cuda", 2) == started("cuda", 8) == [(1, "nccl"), (2, None)]


def test_a_gpu_and_a_peer_that_are_not_there_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu, page = module(monkeypatch, "gpu"), importlib.import_module("gpu_page")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "parity"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "--device: PyTorch finds no GPU here; --device cpu --tiny" in capsys.readouterr().err
    ours = "kitae, compiled executor, then copied"
    monkeypatch.setattr(gpu, "contestants", lambda *_: {ours: lambda: torch.zeros(1)})
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    *_, found = gpu.augment(torch.device("cpu"), True)
    text = page.augmentation({**found, "machine": {"cores": 2}})
    assert text.endswith("Left out: Kornia on the GPU (not installed).\n")


def test_a_bare_step_that_fails_does_not_end_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = module(monkeypatch, "gpu")

    def fails(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "_bare", fails)
    monkeypatch.setattr(gpu, "_ours", lambda *_: lambda x, y: None)
    (found,) = gpu.steps(torch.device("cpu"), True)
    (row,) = found["networks"].values()
    assert [name for name in row["left_out"] if name.startswith("bare")]
    assert "of_the_bare_step" not in row


def test_the_last_line_is_kept_where_no_known_one_ends_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = module(monkeypatch, "processes")

    def crew(out: Path, *_: Any, **__: Any) -> SimpleNamespace:
        out.mkdir(parents=True)
        (out / "ended").write_text("0.0")
        return SimpleNamespace(stderr="a warning\nan error of another version\n")

    monkeypatch.setattr(processes, "crew", crew)
    found = processes.killed(tmp_path, 1, [], {"2": processes.Way(2)})
    assert found["2"]["message"] == "an error of another version"


@pytest.mark.parametrize(("seconds", "capped"), [(4.0, False), (0.25, False), (0.25, True), (4.0, True)])
@pytest.mark.parametrize("kind", ["torchvision", "fastai", "timm"])
def test_the_schedules_of_quality_fill_the_time(
    kind: str, seconds: float, capped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps take four times as long as planned, or a quarter: the time is used, and the rate falls to its end."""
    quality = module(monkeypatch, "quality")
    now = [1000.0]
    monkeypatch.setattr(quality.time, "time", lambda: now[0])
    net = torch.nn.Sequential()
    net.features, net.classifier = torch.nn.Conv2d(3, 2, 1), torch.nn.Linear(2, 2)
    net.forward = lambda images: net.classifier(net.features(images).mean(dim=(2, 3)))

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        now[0] += seconds
        return torch.nn.functional.cross_entropy(logits, labels)

    batches = [(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]))] * 7
    *_, (optimizer, schedule, steps, only_head) = quality._phases(kind, net, 100, 10, 4, pretrained=True)
    highest = max(group.get("max_lr", group["initial_lr"]) for group in optimizer.param_groups)
    phase = (optimizer, schedule, steps, only_head)
    done = quality._run_phase(phase, net, batches, loss, now[0] + steps, capped=capped)
    assert done == (min(steps, math.ceil(steps / seconds)) if capped else math.ceil(steps / seconds))
    assert max(group["lr"] for group in optimizer.param_groups) < 0.01 * highest


def test_quality_cuts_photographs_to_a_shape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = module(monkeypatch, "quality").write_lists("photos-mini-2x1:20", [0], tmp_path)[0]
    with file.open(newline="") as rows:
        paths = [row["path"] for row in csv.DictReader(rows) if row["split"] == "train"]
    assert paths
    for path in paths:
        with Image.open(path) as image:
            assert abs(image.width - 2 * image.height) <= 1


def test_quality_splits_class_by_class_and_pairs_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    quality = module(monkeypatch, "quality")
    labels = [row % 2 for row in range(100)]
    parts = quality.split_rows(labels, [False] * 100, 0, None)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 60, "val": 20, "test": 20}
    assert sorted(row for rows in parts.values() for row in rows) == list(range(100))
    assert sum(labels[row] for row in parts["test"]) == 10
    assert quality.split_rows(labels, [False] * 100, 1, None)["test"] != parts["test"]
    given = quality.split_rows(labels, [row >= 70 for row in range(100)], 0, 40)
    assert given["test"] == list(range(70, 100))
    assert (len(given["train"]), len(given["val"])) == (30, 10)
    rows = [
        {"set": "a", "budget": 1.0, "seed": seed, "contestant": name, "accuracy": value, "seconds": 60.0}
        for name, values in (("kitae", (0.8, 0.9)), ("probe", (0.7, 0.85)), ("timm-scratch", (0.5,)))
        for seed, value in enumerate(values)
    ]
    lines = {line["contestant"]: line for line in quality.paired(rows)}
    assert lines["probe"]["difference"] == pytest.approx(-0.075)
    assert lines["probe"]["interval"] == pytest.approx([-0.075 - 0.3177, -0.075 + 0.3177], abs=1e-3)
    assert lines["kitae"]["difference"] is None
    assert lines["timm-scratch"]["difference"] is None, "without Kitae from scratch there is nothing to pair"
    said: list[str] = []
    quality.show(list(lines.values()), said.append)
    assert "-7.50" in next(line for line in said if "probe" in line)


@pytest.mark.slow
def test_the_record_s_recipe_trains_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    airbench = module(monkeypatch, "airbench")
    monkeypatch.setattr(airbench, "BATCH", 64)
    out = tmp_path / "airbench.json"
    words = ["airbench.py", "fashion-mini", "--limit", "300", "--epochs", "2.5", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    airbench.main()
    (row,) = json.loads(out.read_text())["rows"]
    assert [point["step"] for point in row["curve"]] == [4, 8, 10]
    assert row["curve"][-1]["loss"] < row["curve"][0]["loss"]
    assert 0.1 < row["test_accuracy"] <= 1
