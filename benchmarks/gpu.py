"""What only a GPU can show: one part per call, JSON out. `gpu.sh` runs all parts.

    python benchmarks/gpu.py parity       # the torch executor on the device against the compiled one, every op
    python benchmarks/gpu.py augment      # images/s: ours on the device, ours on the CPU, Kornia, torchvision
    python benchmarks/gpu.py steps        # time and memory of a training step in every precision, against a bare loop
    python benchmarks/gpu.py host         # what a step costs the host, where the images are too small to count
    python benchmarks/gpu.py syncs        # how often a step waits for the device
    python benchmarks/gpu.py train --recipe cifar10-speed --source parquet:cifar10.parquet    # what trainings reach

`--device cpu --tiny` runs the same code with small settings, to see whether it works; its results do not go to
benchmarks/results. Contestants of `augment` take turns, round by round, so that a busy moment hits all of them; `steps`
measures one after the other, and ours twice.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, SCRATCH, hardware, images, ratio, save, spread
from contestants import JITTER, MEAN, STD
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
            rows[f"{name} {side}"] = {"images": what, "batch": count, **timed(runs, count, device, tiny)}
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
    try:
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
    except ImportError:
        pass
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
        row["of_the_bare_step"] = 2 * seconds[f"bare {fast}"] / (seconds[fast] + seconds[f"{fast} again"])
        rows[label] = row
        print(label, {k: f"{1000 * v:.2f} ms" for k, v in seconds.items()}, f"{row['of_the_bare_step']:.3f} of bare")
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


PARTS: Parts = {"parity": parity, "augment": augment, "steps": steps, "host": host, "syncs": syncs}


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
    began = time.perf_counter()
    machine = {**hardware(), "device": torch.cuda.get_device_name(device) if device.type == "cuda" else None}
    for found in (PARTS | {"train": trained})[given.part](device, given.tiny):
        # Saved row by row: time on a GPU ends when it ends.
        save(out / f"{name}.json", {"machine": machine, "seconds": time.perf_counter() - began, **found})
    shown = {key: value for key, value in found.items() if not isinstance(value, dict | list)}
    print(f"{name}: {shown} in {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
