"""The benchmarks run in a tiny mode, write valid results, and name who is not there. No figure is judged here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

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


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A tiny run with a peer that is not installed and one whose Python does not start."""
    folder = tmp_path_factory.mktemp("benchmark")
    broken = folder / "peers" / "albumentations" / "bin" / "python"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\necho no such library >&2\nexit 3\n")
    broken.chmod(0o755)
    run(
        "augment.py", "--quick", "--size", "32", "--only", "standard", "--only", "salt_and_pepper",
        "--contestants", "kitae,torchvision-v2,kornia,albumentations,copy", "--peers", folder / "peers",
        "--out", folder / "out.json", "--docs", folder / "docs", "--data", folder,
    )  # fmt: skip
    return json.loads((folder / "out.json").read_text()), folder


@pytest.mark.slow
def test_results_are_whole(results: tuple[dict[str, Any], Path]) -> None:
    found, _ = results
    assert found["machine"]["processor"]
    assert found["machine"]["versions"]["torch"]
    assert found["quick"]
    assert not found["complete"]
    assert [w["work"] for w in found["works"]] == ["standard", "salt_and_pepper"]
    standard = found["works"][0]
    assert standard["images"].startswith("generated")
    for entries in standard["modes"].values():
        assert set(entries) == {"kitae", "kitae (control)", "torchvision-v2", "copy"}
        for entry in entries.values():
            assert entry["n"] == len(entry["values"]) == 2
            assert 0 < entry["min"] <= entry["median"] <= entry["max"]
            assert entry["output"]["std"] > 0.05
    for mode in standard["modes"]:
        said = standard["summary"][mode]
        assert said["torchvision"]["name"] == said["peer"]["name"] == "torchvision-v2"
        assert said["peer"]["median"] > 0
        assert said["copy"]["name"] == "copy"


@pytest.mark.slow
def test_who_is_not_there_is_named(results: tuple[dict[str, Any], Path]) -> None:
    found, _ = results
    absent = found["works"][0]["absent"]
    assert "peers.sh" in absent["kornia"]
    assert "no such library" in absent["albumentations"]
    assert found["contestants"]["kornia"]["absent"] == absent["kornia"]
    assert found["works"][1]["missing"]["torchvision-v2"] == "no such transform"


@pytest.mark.slow
def test_page_is_made_from_the_results(results: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    found, folder = results
    page = (folder / "docs" / "augment.md").read_text()
    rate = found["works"][0]["modes"]["one"]["kitae"]["median"]
    assert "| Kitae, CPU executor | " in page
    assert "figures mean nothing" in page
    assert "no such library" in page
    assert f"{rate:.0f}"[:2] in page
    for picture in ("augment.png", "augment-peers.png"):
        assert (folder / "docs" / picture).read_bytes().startswith(b"\x89PNG")
        assert picture in page
    run("augment.py", "--docs-only", "--out", folder / "out.json", "--docs", tmp_path)
    assert (tmp_path / "augment.md").read_text() == page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words", "parts"),
    [
        ("memory", ["--images", "30"], ["runs", "growth_percent"]),
        ("cold_start", [], ["seconds", "control_ratio", "model", "beyond_load"]),
        ("infer", ["--batch", "1", "--threads", "1"], ["contestants", "absent", "batches"]),
        ("store", [], ["build", "speed", "sharpness"]),
        ("store", ["--cold"], ["images_per_second", "bytes_read", "blocks_over"]),
        ("shards", [], ["memory", "images_per_second", "kitae_over"]),
        ("ties", [], ["means", "rows"]),
    ],
)
def test_a_quick_run_writes_its_results(
    script: str, words: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KITAE_DATA", str(tmp_path))  # no photographs there: some are generated
    out = tmp_path / f"{script}.json"
    run(f"{script}.py", "--quick", *words, "--out", out)
    found = json.loads(out.read_text())
    assert found["quick"]
    assert found["machine"]["processor"]
    assert all(found[part] for part in parts)


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


def test_the_page_of_compression_is_that_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    compression = module(monkeypatch, "compression")
    page = compression.PAGE.read_text(encoding="utf-8")
    assert page == compression.text()
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


@pytest.mark.slow
def test_what_a_gpu_shows_runs_on_a_cpu_too(tmp_path: Path) -> None:
    words = ["sh", str(BENCHMARKS / "gpu.sh"), "ignored", str(tmp_path)]
    done = subprocess.run(
        words, env={**os.environ, "PYTHON": sys.executable, "TINY": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    trained = ["train-cifar10-strong", "train-cifar10-speed"]
    assert found.keys() == {"parity", "augment", "steps", "host", "syncs", *trained}
    assert all(part["machine"]["versions"] for part in found.values())
    assert found["parity"]["equal"] > 20
    assert set(found["steps"]["networks"]["resnet9-w8-32"]["seconds"]) >= {"fp32", "bare bf16"}
    assert {"sgd", "muon"} < found["syncs"]["kinds"].keys()
    for name in trained:
        assert [run["recipe"]["train"]["seed"] for run in found[name]["runs"]] == [0, 1, 2]
        for run in found[name]["runs"]:
            assert 0 <= run["test"]["accuracy"] <= 1
            assert len(run["metrics"]) == run["epochs"] == 1


@pytest.mark.slow
def test_quality_compares_on_the_same_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sets of a few pictures, in seconds; what was measured already is not measured again."""
    quality = module(monkeypatch, "quality")
    monkeypatch.setattr(quality.common, "SCRATCH", tmp_path / "scratch")
    for name, side in (("tiny", 24), ("photos", 80)):
        for label in range(2):
            inside = tmp_path / name / f"class {label}"
            inside.mkdir(parents=True)
            for number in range(15):
                Image.fromarray(pixels(label, number, (side, side), 2)).save(inside / f"{number}.png")
    arguments = ["--budgets", "0.05", "--seeds", "0", "--out", str(tmp_path / "quality.json")]
    arguments += ["--contestants", "torchvision-scratch", "--sets", str(tmp_path / "tiny")]
    assert quality.main([*arguments, f"{tmp_path / 'photos'}:20"]) == 0
    assert quality.main([*arguments, "--contestants", "kitae-scratch"]) == 0
    found = json.loads((tmp_path / "quality.json").read_text())
    assert found["machine"]["contestants"]["torchvision"]
    assert len(found["rows"]) == 3
    for row in found["rows"]:
        assert row["n"] == 6
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
        assert row["steps"] >= 1
        assert row["seconds"] > 0
        assert row["peak_memory_bytes"] > 50e6
        assert row["when"] >= found["machine"]["when"]
        assert row["commit"] == found["machine"]["commit"]
    assert [line["difference"] is None for line in found["paired"]] == [False, True, True]
    monkeypatch.setattr(quality, "run", lambda *_: pytest.fail("is there already"))
    assert quality.main(arguments) == 0


@pytest.mark.slow
def test_settings_are_scored_on_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = module(monkeypatch, "settings")
    monkeypatch.setattr(settings.common, "SCRATCH", tmp_path / "scratch")
    arguments = ["--sets", "photos-mini:60", "--seeds", "0", "--out", str(tmp_path / "settings.json")]
    assert settings.main([*arguments, "--sizes", "64"]) == 0
    assert settings.main([*arguments, "--rates", "0.0005", "--minutes", "0.3"]) == 0
    sized, rated = json.loads((tmp_path / "settings.json").read_text())["rows"]
    assert (sized["image_size"], sized["epochs"], sized["rate"]) == (64, 0, None)
    assert sized["val_accuracy"] == sized["probe_val_accuracy"]
    assert rated["rate"] == 0.0005
    assert rated["probe_val_accuracy"] is not None
    monkeypatch.setattr(settings, "score", lambda *_, **__: pytest.fail("is there already"))
    assert settings.main([*arguments, "--sizes", "64"]) == 0


@pytest.mark.slow
def test_fine_tunings_are_compared_in_equal_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = module(monkeypatch, "fine_tuning")
    monkeypatch.setattr(tuning.common, "SCRATCH", tmp_path / "scratch")
    arguments = ["--sets", "photos-mini:60", "--size", "64", "--steps", "12", "--seeds", "0"]
    arguments += ["--variants", "short=warmup:0.1", "mild=scale:0.7,train.optimizer.lr:0.001"]
    arguments += ["--out", str(tmp_path / "fine_tuning.json")]
    assert tuning.main(arguments) == 0
    short, mild = json.loads((tmp_path / "fine_tuning.json").read_text())["rows"]
    assert short["probe"] == mild["probe"]
    assert len(short["epochs"]) == len(mild["epochs"]) == 6
    assert mild["learning_rate"] == 0.001 != short["learning_rate"]
    monkeypatch.setattr(tuning, "score", lambda *_, **__: pytest.fail("is there already"))
    assert tuning.main(arguments) == 0


@pytest.mark.parametrize("kind", ["torchvision", "fastai", "timm"])
def test_the_schedules_of_quality_are_not_cut(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take four times as long as planned: fewer are made, and the rate still falls to its end."""
    quality = module(monkeypatch, "quality")
    now = [1000.0]
    monkeypatch.setattr(quality.time, "time", lambda: now[0])
    net = torch.nn.Sequential()
    net.features, net.classifier = torch.nn.Conv2d(3, 2, 1), torch.nn.Linear(2, 2)
    net.forward = lambda images: net.classifier(net.features(images).mean(dim=(2, 3)))

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        now[0] += 4.0
        return torch.nn.functional.cross_entropy(logits, labels)

    batches = [(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]))] * 7
    *_, (optimizer, schedule, steps, only_head) = quality._phases(kind, net, 100, 10, 4, pretrained=True)
    highest = max(group.get("max_lr", group["initial_lr"]) for group in optimizer.param_groups)
    done = quality._run_phase((optimizer, schedule, steps, only_head), net, batches, loss, now[0] + steps)
    assert done == -(-steps // 4)
    assert max(group["lr"] for group in optimizer.param_groups) < 0.01 * highest


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
def test_loops_take_turns(tmp_path: Path) -> None:
    """The bare step, our command and two loops; an absent library is named."""
    out = tmp_path / "train.json"
    contestants = ["bare", "kept", "kitae", "tuned", "lightning", "timm"]
    run("train.py", "--tiny", "--out", out, "--contestants", *contestants)
    for row in json.loads(out.read_text())["rows"].values():
        there = set(row["images_per_second"])
        assert {"bare", "kept", "kitae", "tuned"} <= there
        assert there | set(row["left_out"]) == set(contestants)
        assert set(row["kitae_over"]) == there - {"kitae"}
        assert all(rate["median"] > 0 and rate["n"] == 2 for rate in row["images_per_second"].values())
        between = row["memory_between_steps_bytes"]
        assert all(row["peak_memory_bytes"][loop] > size > 0 for loop, size in between.items())
        assert all(rate["median"] > 0 for rate in row["cpu_seconds_per_1000_images"].values())


@pytest.mark.slow
def test_gradients_of_depthwise_convolutions_take_turns(tmp_path: Path) -> None:
    out = tmp_path / "depthwise.json"
    run("depthwise.py", "--tiny", "--out", out)
    found = json.loads(out.read_text())
    assert set(found["networks"][0]["over_ours"]) == {"fp32", "bf16", "bf16, depthwise in fp32"}
    assert [row["of"] for row in found["layers"]] == ["input", "weights"]


@pytest.mark.slow
def test_threads_and_processes_take_turns(tmp_path: Path) -> None:
    out = tmp_path / "threads.json"
    run("threads.py", "--tiny", "--out", out)
    for row in json.loads(out.read_text())["rows"]:
        assert set(row["over_one"]) == {"two threads", "two processes"}


@pytest.mark.slow
def test_ways_of_waiting_take_turns(tmp_path: Path) -> None:
    out = tmp_path / "waiting.json"
    run("waiting.py", "--tiny", "--out", out)
    rows = json.loads(out.read_text())["rows"]
    assert [row["beside"] > 0 for row in rows] == [False, True]
    for row in rows:
        assert set(row["images_per_second"]) == {"pytorch", "kitae"}
        assert row["over_pytorch"]["n"] == 2


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
