"""What only a GPU can show: one part per call, JSON out. `gpu.sh` runs all parts.

    python benchmarks/gpu.py parity       # the torch executor on the device against the compiled one, every op
    python benchmarks/gpu.py augment      # images/s: ours on the device, ours on the CPU, Kornia, torchvision
    python benchmarks/gpu.py steps        # time and memory of a training step in every precision, against a bare loop
    python benchmarks/gpu.py host         # what a step costs the host, where the images are too small to count
    python benchmarks/gpu.py syncs        # how often a step waits for the device
    python benchmarks/gpu.py loop         # the loop of `kitae train`, the bare step and torchvision's loop, in turns
    python benchmarks/gpu.py plan         # `kitae train photos-mini --minutes 1`: does a plan hold?
    python benchmarks/gpu.py ddp          # one and two processes: batches, losses, images/s, and one that is killed
    python benchmarks/gpu.py train --recipe cifar10-speed --source parquet:cifar10.parquet    # what trainings reach

`--device cpu --tiny` runs the same code with small settings, to see whether it works; its results do not go to
benchmarks/results. Contestants of `augment` and `loop` take turns, round by round, so that a busy moment hits all of
them; `steps` measures one after the other, and ours twice.

`loop` runs the loops of `train.py`, each with a validation after every epoch; without the images of `train.py` it
generates some. `ddp` starts processes as `processes.py` does. nccl does not let two processes share a GPU, so on a
machine with one GPU one process forms a group with nccl, and two that share the GPU one with gloo.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import processes
import torch
from common import DATA, RESULTS, SCRATCH, available_cores, generated, hardware, images, load, ratio, save, spread
from contestants import JITTER, MEAN, STD
from PIL import Image
from recipe import facts
from torch import Tensor, nn

import kitae as kt
from kitae.augment import OPS, Augment
from kitae.augment.ops import CustomOp, Op, Site
from kitae.models.build import build
from kitae.models.spec import ModelSpec
from kitae.training.batches import EpochShape
from kitae.training.checkpoint import Progress
from kitae.training.distributed import World
from kitae.training.learner import Learner
from kitae.training.precision import candidates
from kitae.training.spec import TrainSpec

Parts = dict[str, Callable[[torch.device, bool], Iterator[dict[str, Any]]]]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Parity -----------------------------------------------------------------------------------------------------------


def examples(side: int) -> dict[str, list[Op]]:
    """Every op that needs nothing of the user, and some pipelines."""
    site = Site(3, side, side)
    found = {name: [kind.example(site)] for name, kind in OPS.items() if not issubclass(kind, CustomOp)}
    return found | {"standard": [Augment(STANDARD).ops[k] for k in range(len(STANDARD))]}


STANDARD: list[Any] = [
    {"random_crop": {"padding": 4}}, "horizontal_flip", {"color_jitter": JITTER}, {"random_erasing": {"p": 0.5}},
]  # fmt: skip


def parity(device: torch.device, tiny: bool) -> Iterator[dict[str, Any]]:
    """Levels between the compiled executor on the CPU and the torch executor on the device, for the same draws."""
    rows = {}
    for side, count in ((32, 16),) if tiny else ((32, 512), (224, 64)):
        batch, _ = images(side, count)
        index = np.arange(count)
        for name, ops in examples(side).items():
            compiled = Augment(ops, executor="cpu")(batch, epoch=3, index=index).astype(np.int16)
            there = torch.from_numpy(batch).to(device)
            batched = Augment(ops, executor="torch")(there, epoch=3, index=index).cpu().numpy().astype(np.int16)
            gap = np.abs(compiled - batched)
            rows[f"{name} {side}"] = {"most_levels": int(gap.max()), "share_of_values": float((gap > 0).mean())}
    yield {"ops": rows, "equal": sum(row["most_levels"] == 0 for row in rows.values()), "of": len(rows)}


# Augmentation -----------------------------------------------------------------------------------------------------

WORKS: dict[str, Callable[[int], list[Any]]] = {
    "standard": lambda side: STANDARD,
    "auto_augment": lambda side: [{"auto_augment": {"policy": "cifar10"}}],
    "rand_augment": lambda side: ["rand_augment"],
    "random_resized_crop": lambda side: [{"random_resized_crop": {"size": side}}, "horizontal_flip"],
}


def augment(device: torch.device, tiny: bool) -> Iterator[dict[str, Any]]:
    """Images/s from uint8 images in host memory to normalised float32 on the device."""
    rows: dict[str, Any] = {}
    for side, count in ((32, 16),) if tiny else ((32, 1024), (224, 128)):
        batch, what = images(side, count)
        for name, ops in WORKS.items():
            runs = contestants(ops(side), name, side, torch.from_numpy(batch), device)
            row = rows[f"{name} {side}"] = {"images": what, "batch": count, **timed(runs, count, device, tiny)}
            if find_spec("kornia") is None:
                row["left_out"]["kornia"] = "not installed"
            print(name, side, {k: round(v["median"]) for k, v in rows[f"{name} {side}"]["images_per_second"].items()})
            yield {"works": rows}


def contestants(
    ops: list[Any], name: str, side: int, batch: Tensor, device: torch.device
) -> dict[str, Callable[[], Tensor]]:
    index = np.arange(len(batch))
    pinned = batch.pin_memory() if device.type == "cuda" else batch
    on_device = Augment(ops, mean=MEAN, std=STD, executor="torch")
    compiled = Augment(ops, mean=MEAN, std=STD, executor="cpu")
    epochs = iter(range(10**9))
    runs: dict[str, Callable[[], Tensor]] = {
        "kitae, torch executor on the device": lambda: on_device(
            pinned.to(device, non_blocking=True), epoch=next(epochs), index=index
        ),
        "kitae, compiled executor, then copied": lambda: compiled(batch, epoch=next(epochs), index=index).to(
            device, non_blocking=True
        ),
    }
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))
    if find_spec("kornia") is not None:
        import kornia.augmentation as k

        made: dict[str, list[Any]] = {
            "standard": [
                k.RandomCrop((side, side), padding=4), k.RandomHorizontalFlip(), k.ColorJitter(0.2, 0.2, 0.2, 0.1),
                k.RandomErasing(p=0.5),
            ],
            "rand_augment": [k.auto.RandAugment(n=2, m=9)],
            "auto_augment": [k.auto.AutoAugment(policy="cifar10")],
            "random_resized_crop": [k.RandomResizedCrop((side, side)), k.RandomHorizontalFlip()],
        }  # fmt: skip
        pipe = k.AugmentationSequential(*made[name], data_keys=["input"])

        def kornia() -> Tensor:
            x = pinned.to(device, non_blocking=True).float() / 255
            out: Tensor = (pipe(x) - mean) / std
            return out

        runs["kornia"] = kornia
    from torchvision.transforms import v2

    chain = v2.Compose({
        "standard": [
            v2.RandomCrop(side, padding=4), v2.RandomHorizontalFlip(), v2.ColorJitter(0.2, 0.2, 0.2, 0.1),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), v2.RandomErasing(p=0.5),
        ],
        "rand_augment": [v2.RandAugment(2, 9), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)],
        "auto_augment": [
            v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)
        ],
        "random_resized_crop": [
            v2.RandomResizedCrop(side, antialias=True), v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
        ],
    }[name])  # fmt: skip
    runs["torchvision, image by image on the device"] = lambda: torch.stack(
        [chain(image) for image in pinned.to(device, non_blocking=True)]
    )
    return runs


def timed(
    runs: dict[str, Callable[[], Tensor]], count: int, device: torch.device, tiny: bool, rounds: int = 7
) -> dict[str, Any]:
    rates: dict[str, list[float]] = {}
    left_out: dict[str, str] = {}
    for name, run in runs.items():
        try:
            for _ in range(1 if tiny else 3):
                run()
            wait(device)
            rates[name] = []
        except Exception as error:  # a peer that cannot do this work here is named, and does not end the benchmark
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    for _ in range(2 if tiny else rounds):
        for name in rates:
            began, made = time.perf_counter(), 0
            while made == 0 or time.perf_counter() - began < (0.01 if tiny else 0.15):
                runs[name]()
                wait(device)
                made += count
            rates[name].append(made / (time.perf_counter() - began))
    spreads = {name: spread(values) for name, values in rates.items()}
    best = max((n for n in spreads if n.startswith("kitae")), key=lambda n: spreads[n]["median"])
    versus = {n: ratio(spreads[best], found) for n, found in spreads.items() if not n.startswith("kitae")}
    return {"images_per_second": spreads, "best_of_ours": best, "ours_over": versus, "left_out": left_out}


# Steps ------------------------------------------------------------------------------------------------------------

NETWORKS: dict[str, tuple[str, int | None, int, int]] = {
    "resnet9-w32-32": ("resnet9", 32, 32, 512),
    "resnet18-32": ("resnet18", None, 32, 512),
    "resnet50-224": ("resnet50", None, 224, 128),
    "efficientnet_b0-224": ("timm:efficientnet_b0", None, 224, 128),
}


def steps(device: torch.device, tiny: bool) -> Iterator[dict[str, Any]]:
    """Seconds and peak memory of a step of `Learner` in each precision and compiled, and of a bare bf16 loop."""
    rows: dict[str, Any] = {}
    networks = {"resnet9-w8-32": ("resnet9", 8, 32, 16)} if tiny else NETWORKS
    for label, (name, width, side, count) in networks.items():
        x = torch.randn(count, 3, side, side, device=device).to(memory_format=torch.channels_last)
        network = (name, width, side, device)
        y = nn.functional.one_hot(torch.arange(count, device=device) % 10, 10).float()
        row: dict[str, Any] = {"batch": count, "seconds": {}, "peak_bytes": {}, "left_out": {}}
        for precision in candidates(device):
            _measure(row, precision, partial(_ours, *network, precision, False), x, y, tiny)
        fast = "bf16" if "bf16" in row["seconds"] else "fp32"
        _measure(row, f"bare {fast}", partial(_bare, *network, fast), x, y, tiny)
        _measure(row, f"{fast} again", partial(_ours, *network, fast, False), x, y, tiny)
        if not tiny:
            _measure(row, f"{fast} compiled", partial(_ours, *network, fast, True), x, y, tiny)
        seconds = {key: value["median"] for key, value in row["seconds"].items()}
        pair = (fast, f"{fast} again")
        if {f"bare {fast}", *pair} <= seconds.keys():
            row["of_the_bare_step"] = 2 * seconds[f"bare {fast}"] / sum(seconds[one] for one in pair)
        rows[label] = row
        print(label, {k: f"{1000 * v:.2f} ms" for k, v in seconds.items()}, row.get("of_the_bare_step"))
        yield {"networks": rows}


def _network(name: str, width: int | None, side: int, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    model = build(ModelSpec(name=name, width=width), classes=10, channels=3, image_size=side)
    return model.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload,no-any-return]


def _ours(
    name: str, width: int | None, side: int, device: torch.device, precision: Any, compiled: bool,
    asynchronous: bool | None = None, optimizer: str = "sgd", accumulate: int = 1,
) -> Callable[[Tensor, Tensor], Any]:  # fmt: skip
    spec = TrainSpec(optimizer={"name": optimizer, "lr": 0.01}, compile=compiled)  # type: ignore[arg-type]
    shape = EpochShape(128, accumulate, 10**6, 10**6)
    learner = Learner(_network(name, width, side, device), spec, shape, World(0, 1, device), precision)
    if asynchronous is not None:
        learner.asynchronous = asynchronous
    learner.__enter__()
    at = Progress()

    def step(x: Tensor, y: Tensor) -> None:
        learner.step(x, y, at)
        at.step += 1

    return step


def _bare(name: str, width: int | None, side: int, device: torch.device, precision: str) -> Callable[..., Any]:
    """What anybody would write by hand, with everything that is fast and nothing that is safe."""
    model = _network(name, width, side, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)

    def step(x: Tensor, y: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _measure(
    row: dict[str, Any], label: str, make: Callable[[], Callable[[Tensor, Tensor], Any]], x: Tensor, y: Tensor,
    tiny: bool, rounds: int = 7, length: int = 15,
) -> None:  # fmt: skip
    try:
        step = make()
        for _ in range(1 if tiny else 6):
            step(x, y)
        wait(x.device)
        if x.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        taken = []
        for _ in range(2 if tiny else rounds):
            began = time.perf_counter()
            for _ in range(1 if tiny else length):
                step(x, y)
            wait(x.device)
            taken.append((time.perf_counter() - began) / (1 if tiny else length))
        row["seconds"][label] = spread(taken)
        if x.device.type == "cuda":
            row["peak_bytes"][label] = torch.cuda.max_memory_allocated()
            torch.cuda.empty_cache()
    except Exception as error:
        row["left_out"][label] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


# The host ---------------------------------------------------------------------------------------------------------


def host(device: torch.device, tiny: bool) -> Iterator[dict[str, Any]]:
    """Milliseconds of a step on 4 images of 16 px, one torch thread: nearly all of it is spent on starting kernels."""
    torch.set_num_threads(1)
    network = ("resnet9", 4, 16, device)
    x = torch.randn(4, 3, 16, 16, device=device).to(memory_format=torch.channels_last)
    y = nn.functional.one_hot(torch.arange(4, device=device), 10).float()
    contestants = {
        "bare": _bare(*network, "fp32"),
        "the host decides": _ours(*network, "fp32", False, asynchronous=False),
        "the device decides": _ours(*network, "fp32", False, asynchronous=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    rounds, steps_each = (2, 2) if tiny else (15, 60)
    for number in range(rounds):
        for name, step in contestants.items():
            began = time.perf_counter()
            for _ in range(steps_each):
                step(x, y)
            wait(device)
            if number:  # the first round warms up
                taken[name].append(1000 * (time.perf_counter() - began) / steps_each)
    over = {name: statistics.median(mine) - statistics.median(taken["bare"]) for name, mine in taken.items()}
    yield {"milliseconds": {name: spread(mine) for name, mine in taken.items()}, "over_bare": over}


# Waits ------------------------------------------------------------------------------------------------------------


def syncs(device: torch.device, tiny: bool) -> Iterator[dict[str, Any]]:
    """How many times ten training steps make the host wait for the device."""
    network = ("resnet9", 8, 32, device, candidates(device)[min(1, len(candidates(device)) - 1)], False)
    kinds = {
        "sgd": _ours(*network),
        "muon": _ours(*network, optimizer="muon"),
        "sgd, two batches an update": _ours(*network, accumulate=2),
    }
    x, y = torch.randn(32, 3, 32, 32, device=device), torch.full((32, 10), 0.1, device=device)
    rows: dict[str, Any] = {}
    for name, step in kinds.items():
        for _ in range(4):
            step(x, y)
        wait(device)
        rows[name] = {"waits": None, "where": []} if device.type != "cuda" else _waits(partial(step, x, y))
    yield {"steps": 10, "kinds": rows}


def _waits(step: Callable[[], Any]) -> dict[str, Any]:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(10):
                step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in seen if "synchroniz" in str(w.message)]
    return {"waits": len(waits), "where": sorted({f"{Path(w.filename).name}:{w.lineno}" for w in waits})}


# The loop ---------------------------------------------------------------------------------------------------------


def loop(device: torch.device, tiny: bool) -> Iterator[dict[str, Any]]:
    """The loops of `train.py` in turns, with data, augmentation and a validation after each epoch."""
    import train as loops

    rows: dict[str, Any] = {}
    lead = 2 if tiny else 2 * available_cores() + 8  # batches that workers have made while the loop stood still
    with tempfile.TemporaryDirectory(prefix="kitae.") as name, _variables(KITAE_CACHE=f"{name}/cache"):
        for row in ["loop-tiny"] if tiny else ["loop-resnet18", "loop-resnet50"]:
            side = loops.ROWS[row].side
            file = DATA / ("cifar10.parquet" if side <= 64 else "imagenette-small.parquet")
            what = file.name
            if tiny or not file.is_file():
                file = Path(name) / file.name
                what = write_generated(file, side, 120 if tiny else 20_000 if side <= 64 else 6_400)
            with _variables(KITAE_DATA=str(file.parent)):
                contestants = ("bare", "kitae", "tutorial", "tuned")
                rounds, warmup = (2, 1) if tiny else (5, 10)
                rows[row] = {"images": what, **loops.compared(row, contestants, rounds, warmup, device.type, lead)}
                if not tiny:
                    rows[row]["parts_milliseconds"] = loops.part_times(row, warmup, device.type)
            medians = {one: round(rate["median"]) for one, rate in rows[row]["images_per_second"].items()}
            print(row, medians, rows[row]["left_out"])
            yield {"rows": rows}


@contextlib.contextmanager
def _variables(**values: str) -> Iterator[None]:
    """Environment variables for the processes that are started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def write_generated(path: Path, side: int, count: int, classes: int = 10) -> str:
    """A Parquet file of generated images, PNG up to 64 px, JPEG above, one in ten of them for test; what they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = generated(side, min(count, 400)).transpose(0, 2, 3, 1)
    cells = []
    for number in range(count):
        # Each differs from the others: its picture is shifted, a pixel further at each repetition.
        buffer = io.BytesIO()
        image = Image.fromarray(np.roll(made[number % len(made)], number // len(made), axis=1))
        image.save(buffer, "PNG" if side <= 64 else "JPEG", quality=90)
        cells.append(buffer.getvalue())
    number = np.arange(count)
    columns = {
        "image": pa.array(cells, pa.binary()),
        "label": pa.array(number % classes, pa.int32()),
        "class_name": pa.array([f"class {k % classes}" for k in number]),
        "split": pa.array(["test" if k // classes % 10 == 9 else "train" for k in number]),
        "path": pa.array([f"{k}.png" for k in number]),
    }
    pq.write_table(pa.table(columns), path)
    return f"generated: gradients, rectangles and noise, {count} images"


# Minutes ----------------------------------------------------------------------------------------------------------


def plan(device: torch.device, tiny: bool) -> Iterator[dict[str, Any]]:
    """`kitae train photos-mini --minutes 1`: what is planned and printed, the seconds it takes, and what it reaches."""
    minutes = 0.25 if tiny else 1.0
    small = ["--image-size", "64", "--set", "data.limit=90"] if tiny else []
    with tempfile.TemporaryDirectory(prefix="kitae.") as name, _variables(KITAE_CACHE=f"{name}/cache"):
        words = ["train", "photos-mini", "--minutes", f"{minutes:g}", "--device", device.type, *small]
        command = [sys.executable, "-m", "kitae", *words, "--out", f"{name}/run"]
        began = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"kitae {' '.join(words)} ended with {done.returncode}: {done.stdout[-3000:]}")
        run = kt.Run.open(Path(name) / "run")
        rows, evaluation = run.metrics(), run.evaluation()
        yield {
            "command": ["kitae", *words],
            "minutes": minutes,
            "seconds_taken": seconds,
            "of_the_minutes": seconds / 60 / minutes,
            "said": done.stdout.replace(name, "OUT").splitlines(),
            "recipe": run.recipe.model_dump(mode="json"),
            "test": {score: evaluation["test"][score] for score in ("count", "accuracy", "accuracy_interval", "loss")},
            "validation": {score: evaluation["val"][score] for score in ("count", "accuracy")},
            "epochs": rows[-1]["epoch"],
            "updates": rows[-1]["step"],
            "images_per_second": [row.get("images_per_second") for row in rows],
            "peak_memory_bytes": max(row["peak_memory_bytes"] for row in rows),
        }


# Processes --------------------------------------------------------------------------------------------------------

PATIENCE = 20  # seconds of `train.process_timeout`, of trainings in which a process is killed
ENDING = 35  # seconds that torchrun may take to end the others: after 30 it kills those that do not answer


def ways(device: str, count: int, tiny: bool) -> dict[str, processes.Way]:
    """How many processes, and who connects them, on a machine with so many GPUs; the first is the reference."""
    if device == "cpu":
        # Tiny, the single process has a group of its own, as it has on a GPU.
        return {"1": processes.Way(1, "gloo" if tiny else None), "2": processes.Way(2)}
    alone = {"1, nccl": processes.Way(1, "nccl")}
    shared = {"2, gloo, sharing the GPU": processes.Way(2, "gloo")}
    return alone | ({"2, nccl": processes.Way(2)} if count > 1 else shared)


def ddp(device: torch.device, tiny: bool) -> Iterator[dict[str, Any]]:
    """One and two processes: sums, batches, losses, evaluation, images/s, and how a killed process ends the others."""
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    chosen = ways(device.type, count, tiny)
    where = f"train.device={device.type}"
    found: dict[str, Any] = {
        "gpus": count,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if count else None,
        "ways": {
            name: {
                "processes": way.processes,
                "backend": way.backend or (None if way.processes == 1 else "nccl" if count else "gloo"),
                "share_a_gpu": way.processes > 1 and count == 1,
            }
            for name, way in chosen.items()
        },
    }
    with tempfile.TemporaryDirectory(prefix="kitae.") as name, _variables(KITAE_CACHE=f"{name}/cache"):
        folder = Path(name)
        if count == 1:  # what `kitae train` itself says to two processes
            words = ["fashion-mini", "--out", str(folder / "refused"), "--set", *processes.FIELDS, where]
            done = processes.launch(2, "kitae", "train", *words, check=False)
            errors = [line.strip() for line in done.stderr.splitlines() if "train.device" in line]
            found["refused"] = {"exit_status": done.returncode, "message": errors[0] if errors else None}
        found["exchange"] = {}
        for label, way in chosen.items():
            out = folder / f"exchange-{label}"
            processes.crew(out, way.processes, "exchange", where, variables=way.variables)
            summed = load(out / "exchange.json")
            found["exchange"][label] = summed | {"seconds": spread(summed["seconds"][1:])}
        yield found
        found["batches"] = processes.batches(folder, [where], chosen)
        if count:
            on_cpu = processes.batches(folder / "cpu", ["train.device=cpu"], {"cpu": processes.Way(1)})
            found["batches"]["sha256"] |= on_cpu["sha256"]
            found["batches"]["equal"] = len(set(found["batches"]["sha256"].values())) == 1
        yield found
        found["same"] = processes.trained(folder, [where], chosen)
        yield found
        found["killed"] = {
            "process_timeout": PATIENCE,
            "ways": processes.killed(folder, 1, [where, f"train.process_timeout={PATIENCE}"], chosen),
        }
        for ended in found["killed"]["ways"].values():
            ended["in_time"] = ended["seconds"]["max"] < PATIENCE + ENDING
        yield found
        if not tiny:
            found["speed_fields"] = [
                "data.limit=null", "model={name: resnet18}", "train.precision=auto", "train.batch_size=512",
                "train.epoch_steps=60", "train.epochs=4",
            ]  # fmt: skip
            found["speed"] = processes.trained(folder / "speed", [where, *found["speed_fields"]], chosen)
            yield found


# Trainings --------------------------------------------------------------------------------------------------------

TINY = (
    "data.source=fashion-mini", "data.channels=3", "data.limit=200", "model={name: resnet8, width: 8}",
    "train.batch_size=32", "train.epochs=1",
)  # fmt: skip


def train(
    recipe: str, source: str | None, epochs: int | None, seeds: Sequence[int], device: torch.device, tiny: bool
) -> Iterator[dict[str, Any]]:
    """What whole trainings of a recipe reach and cost, one after the other; on test with the model of each."""
    given = {"train.device": device.type, "data.source": source, "train.epochs": epochs}
    settings = [f"{field}={value}" for field, value in given.items() if value is not None] + [*TINY] * tiny
    runs = []
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="kitae.") as folder:
            run = kt.train(kt.Recipe.load(recipe).override(*settings, f"train.seed={seed}"), Path(folder) / "run")
            runs.append({**facts(run, ""), "metrics": run.metrics()})
        yield {"recipe": recipe, "runs": runs}


PARTS: Parts = {
    "parity": parity, "augment": augment, "steps": steps, "host": host, "syncs": syncs,
    "loop": loop, "plan": plan, "ddp": ddp,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "train"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small settings: does it run?")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--recipe", default="cifar10-strong", help="of train")
    parser.add_argument("--source", help="of train: data.source, if not the recipe's")
    parser.add_argument("--epochs", type=int, help="of train, if not the recipe's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of train")
    given = parser.parse_args()
    trained = partial(train, given.recipe, given.source, given.epochs, given.seeds)
    out = given.out or (SCRATCH if given.tiny else RESULTS) / "gpu"
    name = f"train-{given.recipe}" if given.part == "train" else given.part
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device: PyTorch finds no GPU here; --device cpu --tiny shows whether this runs")
    began = time.perf_counter()
    name_of_gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    machine = {**hardware(), "device": name_of_gpu, "cuda": torch.version.cuda}
    for found in (PARTS | {"train": trained})[given.part](device, given.tiny):
        # Saved row by row: time on a GPU ends when it ends.
        save(out / f"{name}.json", {"machine": machine, "seconds": time.perf_counter() - began, **found})
    shown = {key: value for key, value in found.items() if not isinstance(value, dict | list)}
    print(f"{name}: {shown} in {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
