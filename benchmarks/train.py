"""Training speed: the same network, images, batch, precision and cores in other people's loops and in ours.

    python benchmarks/train.py --rows resnet9 resnet18 strong efficientnet resnet50
    python benchmarks/train.py --tiny                       small settings: does it run?

Each contestant is a process of its own that trains without end. They take turns: one trains some steps while the others
stand still, round after round, so that a busy moment hits all of them. Contestants:

    bare          the limit: forward, backward and a fused optimizer on one batch that is already a float tensor
    kept          the same in a process that keeps freed memory, as Kitae's does (`training.guards.keep_freed_memory`)
    kitae         `kt.train` of a recipe, with its run folder. Without checkpoints inside an epoch: by the clock one
                  would be due in nearly every turn, after those of all the others
    compiled      the same with `train.compile`; needs a C++ compiler, and compiles before its first turn
    tutorial      DataLoader, torchvision's transforms on PIL images, float32: what most tutorials show
    tuned         the same loop with bfloat16 and channels_last, and two workers that stay
    lightning     Lightning's Trainer, bf16-mixed and channels_last, the same DataLoader
    timm          timm's loader, mixup, optimizer, schedule and averaged weights, in the order of its train script

What a checkpoint takes is measured after the turns, by a run that writes one after each step, and the parts of Kitae's
step as `kitae bench train` prints them.

The share of processor time that the images take (reading, decoding, augmenting and collecting them) is counted during
the turns: for Kitae the time of this process, all its threads included, while the loop asks for the next batch; for the
others that of the DataLoader's workers, and of the thread that trains while it asks for the next batch.

`gpu.py loop` runs the same loops on another device, with a validation after each epoch (`Row.validation`).

Lightning is left out where it is not installed (`pip install lightning`, or into a folder that PYTHONPATH names).
Composer asks for torch below 2.7.1 (version 0.32.1). Images come from `cifar10.parquet` and `imagenette-
small.parquet` (KITAE_DATA). At 224 px the DataLoader contestants decode JPEG files from memory; Kitae reads its
store, which is built before.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CONTESTANTS = ("bare", "kept", "kitae", "compiled", "tutorial", "tuned", "lightning", "timm")
NEEDS = {"lightning": "lightning", "timm": "timm"}


@dataclass(frozen=True)
class Row:
    """One network at one size.

    Attributes:
        model: as in a recipe.
        side: of the images. `batch`: images a step.
        steps: of a turn. `strong`: whether with AutoAugment, mixing, erasing, smoothing and averaged weights.
        validation: the share of the images that every loop but the bare step is validated on after each epoch; a turn
            is then at least so many steps, in whole epochs. None: only Kitae validates, on one image in a hundred.
    """

    model: Mapping[str, Any]
    side: int
    batch: int
    steps: int
    strong: bool = False
    validation: float | None = None


ROWS = {
    "resnet9": Row({"name": "resnet9", "width": 32}, 32, 128, 24),
    "resnet18": Row({"name": "resnet18"}, 32, 128, 4),
    "strong": Row({"name": "resnet18", "stochastic_depth": 0.1}, 32, 128, 4, strong=True),
    "efficientnet": Row({"name": "timm:efficientnet_b0"}, 224, 32, 3),
    "resnet50": Row({"name": "resnet50"}, 224, 32, 2),
    "tiny": Row({"name": "resnet9", "width": 8}, 32, 16, 2),
    "tiny-strong": Row({"name": "resnet9", "width": 8}, 32, 16, 2, strong=True),
    "loop-resnet18": Row({"name": "resnet18"}, 32, 512, 80, validation=0.1),
    "loop-resnet50": Row({"name": "resnet50"}, 224, 128, 60, validation=0.1),
    "loop-tiny": Row({"name": "resnet9", "width": 8}, 32, 16, 4, validation=0.2),
}
BARE = ("bare", "kept")  # which read no images
CLASSES = 10


# ------------------------------------------------------------------------------------------------- in the child process


class Gate:
    """Lets a loop run for some steps when the parent asks for them, and says how long they took.

    Attributes:
        device: of the network.
        epoch: steps of an epoch, where the loop has epochs: turns without a number are then whole epochs.
    """

    def __init__(self, warmup: int, steps: int, device: str = "cpu") -> None:
        """`steps` of a turn without a number, at least."""
        self.device, self.epoch = device, 1
        self._usual, self._left, self._lead = steps, warmup, 0
        self._start()

    def fetched(self) -> None:
        """A batch has arrived that was asked for when the last step, or a validation, ended."""
        self._waited += time.perf_counter() - self._last
        self._images += time.thread_time() - self._thread

    def validated(self) -> None:
        """A validation has ended."""
        self._last, self._thread = time.perf_counter(), time.thread_time()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Inside, all threads of this process work on images, and on nothing else."""
        began = time.process_time()
        yield
        self._images += time.process_time() - began

    def stepped(self, count: int = 1) -> None:
        """Steps have ended; waits for the parent after the last one of a turn."""
        if self._lead > 0:
            self._lead -= count
            if self._lead <= 0:
                self._start()
            return
        self._left -= count
        self._steps += count
        if self._left <= 0:
            self._sync()
            answer = {"seconds": time.perf_counter() - self._began, "waited": self._waited, "steps": self._steps}
            answer["host_seconds"] = time.thread_time() - self._host
            mine, workers = _cpu_seconds()
            answer["cpu_seconds"] = mine + workers - sum(self._used)
            answer["image_seconds"] = self._images + workers - self._used[1]
            memory = {"memory": _memory(), "peak": _peak(), "device_peak": self._device_peak()}
            print(json.dumps({**answer, **memory}), file=_ANSWERS, flush=True)
            asked = sys.stdin.readline()
            if not asked.strip():
                os._exit(0)
            steps, self._lead = map(int, asked.split())
            self._left = steps or self.epoch * -(-self._usual // self.epoch)
            self._start()
        self._last, self._thread = time.perf_counter(), time.thread_time()

    def _start(self) -> None:
        self._sync()
        self._waited, self._images, self._steps, self._used = 0.0, 0.0, 0, _cpu_seconds()
        self._began = self._last = time.perf_counter()
        self._host = self._thread = time.thread_time()

    def _sync(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def _device_peak(self) -> int | None:
        if self.device != "cuda":
            return None
        import torch

        return torch.cuda.max_memory_allocated()


_ANSWERS: Any = sys.stdout


def _family() -> set[int]:
    """This process and its workers."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    mine, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in mine} - mine
        mine, grown = mine | more, bool(more)
    return mine


def _memory(leave_out: int = 0) -> int:
    """Bytes of this process and its workers, but not of one of them; shared ones once."""
    total = 0
    for pid in _family() - {leave_out}:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def _peak() -> int:
    """Most bytes that this process has had, activations included, and those of its workers now."""
    status = Path("/proc/self/status").read_text().splitlines()
    most = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    return most + _memory(leave_out=os.getpid())


def _cpu_seconds() -> tuple[float, float]:
    """Processor time of this process, and of its workers."""
    ticks = [0, 0]
    for pid in _family():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks[pid != os.getpid()] += int(fields[11]) + int(fields[12])
    mine, workers = (count / os.sysconf("SC_CLK_TCK") for count in ticks)
    return mine, workers


def network(row: Row) -> Any:
    """The network of all contestants, with the same initial weights."""
    import torch

    from kitae.models.build import build
    from kitae.models.spec import ModelSpec

    torch.manual_seed(0)
    return build(ModelSpec.model_validate(row.model), classes=CLASSES, channels=3, image_size=row.side).train()


class Images:
    """The training images as a torch data set: encoded images at 224 px, arrays at 32, as torchvision's CIFAR10 has."""

    def __init__(self, row: Row, transform: Any = None, *, validates: bool = False) -> None:
        import pyarrow.parquet as pq

        table = pq.read_table(source(row), filters=[("split", "=", "train")], columns=["image", "label"])
        held = round(len(table) * (row.validation or 0.0))
        table = table[:held] if validates else table[held:]
        cells = [cell["bytes"] if isinstance(cell, dict) else cell for cell in table.column("image").to_pylist()]
        self._labels = [int(label) for label in table.column("label").to_pylist()]
        self._images: list[Any] = [_decoded(cell) for cell in cells] if row.side <= 64 else cells
        self.transform, self.target_transform = transform, None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        image = self._images[index]
        opened = Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(io.BytesIO(image))
        return self.transform(opened.convert("RGB")), self._labels[index]


def _decoded(cell: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(cell)) as image:
        return np.asarray(image.convert("RGB"))


def source(row: Row) -> Path:
    """The Parquet file of a row's images."""
    tiny = common.ROOT / "src" / "kitae" / "data" / "assets" / "photos-mini.parquet"
    found = common.DATA / ("cifar10.parquet" if row.side <= 64 else "imagenette-small.parquet")
    return found if found.is_file() else tiny


def transforms(row: Row) -> Any:
    """torchvision's, on PIL images."""
    from torchvision import transforms as t

    ops: list[Any] = (
        [t.RandomCrop(row.side, padding=4, padding_mode="reflect")]
        if row.side <= 64 and source(row).name.startswith("cifar")
        else [t.RandomResizedCrop(row.side, scale=(0.35, 1.0))]
    )
    ops.append(t.RandomHorizontalFlip())
    if row.strong:
        ops.append(t.AutoAugment(t.AutoAugmentPolicy.CIFAR10))
    ops += [t.ToTensor(), t.Normalize(MEAN, STD)]
    if row.strong:
        ops.append(t.RandomErasing(p=0.25))
    return t.Compose(ops)


def loader(row: Row, *, pinned: bool = False) -> Any:
    """A DataLoader as the field uses it."""
    from torch.utils.data import DataLoader, default_collate

    collate = default_collate
    if row.strong:
        from torchvision.transforms import v2

        mix = v2.RandomApply([v2.RandomChoice([v2.MixUp(num_classes=CLASSES), v2.CutMix(num_classes=CLASSES)])], p=0.5)

        def collate(samples: Any) -> Any:
            return mix(*default_collate(samples))

    return DataLoader(
        Images(row, transforms(row)), row.batch, shuffle=True, drop_last=True, num_workers=common.available_cores(),
        persistent_workers=True, collate_fn=collate, pin_memory=pinned,
    )  # fmt: skip


def validation(row: Row, *, pinned: bool = False) -> Any:
    """The DataLoader of the images that are held out."""
    from torch.utils.data import DataLoader
    from torchvision import transforms as t

    small = [] if source(row).name.startswith("cifar") else [t.Resize((row.side, row.side))]
    ops = small if row.side <= 64 else [t.Resize(row.side * 8 // 7), t.CenterCrop(row.side)]
    held = Images(row, t.Compose([*ops, t.ToTensor(), t.Normalize(MEAN, STD)]), validates=True)
    return DataLoader(
        held, row.batch, num_workers=common.available_cores(), persistent_workers=True, pin_memory=pinned
    )  # fmt: skip


def endless(batches: Any) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from batches


def sgd(net: Any) -> Any:
    """The optimizer of all loops that bring none."""
    import torch

    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def bare(row: Row, gate: Gate) -> None:
    """Nothing but the network: everything that is fast, nothing that is safe."""
    import torch
    from torch import nn

    net = network(row).to(gate.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    images = torch.randn(row.batch, 3, row.side, row.side, device=gate.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(row.batch, device=gate.device) % CLASSES
    while True:
        with torch.autocast(gate.device, torch.bfloat16):
            loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        gate.stepped()


def kept(row: Row, gate: Gate) -> None:
    """The bare step where freed memory is kept for the next one."""
    from kitae.training.guards import keep_freed_memory

    keep_freed_memory()
    bare(row, gate)


def tutorial(row: Row, gate: Gate, *, tuned: bool = False) -> None:
    """The loop of tutorials."""
    import torch
    from torch import nn

    net = network(row).to(gate.device)
    if tuned:
        net = net.to(memory_format=torch.channels_last)
    optimizer = sgd(net)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1 if row.strong else 0.0)
    average = None
    if row.strong:
        average = torch.optim.swa_utils.AveragedModel(
            net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
        )
    pinned = tuned and gate.device == "cuda"
    batches = loader(row, pinned=pinned)
    held = validation(row, pinned=pinned) if row.validation else ()
    gate.epoch = len(batches)

    def placed(images: Any, labels: Any) -> tuple[Any, Any]:
        images, labels = (tensor.to(gate.device, non_blocking=pinned) for tensor in (images, labels))
        return images.contiguous(memory_format=torch.channels_last) if tuned else images, labels

    while True:
        for images, labels in batches:
            gate.fetched()
            images, labels = placed(images, labels)
            optimizer.zero_grad()
            with torch.autocast(gate.device, torch.bfloat16, enabled=tuned):
                loss = criterion(net(images), labels)
            loss.backward()
            optimizer.step()
            if average is not None:
                average.update_parameters(net)
            gate.stepped()
        if held:
            net.eval()
            right = torch.zeros((), dtype=torch.int64, device=gate.device)
            with torch.inference_mode(), torch.autocast(gate.device, torch.bfloat16, enabled=tuned):
                for images, labels in held:
                    images, labels = placed(images, labels)
                    right += (net(images).argmax(1) == labels).sum()
            right.item()
            net.train()
            gate.validated()


def tuned(row: Row, gate: Gate) -> None:
    """The tutorial's loop with bfloat16 and channels_last."""
    tutorial(row, gate, tuned=True)


def lightning(row: Row, gate: Gate) -> None:
    """Lightning's Trainer with its defaults, but no logger and no checkpoints."""
    import lightning as pl  # type: ignore[import-not-found,unused-ignore]
    import torch
    from torch import nn

    class Module(pl.LightningModule):  # type: ignore[misc,name-defined,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.net = network(row).to(memory_format=torch.channels_last)

        def training_step(self, batch: Any, number: int) -> Any:
            images, labels = batch
            logits = self.net(images.contiguous(memory_format=torch.channels_last))
            return nn.functional.cross_entropy(logits, labels, label_smoothing=0.1 if row.strong else 0.0)

        def configure_optimizers(self) -> Any:
            return sgd(self)

    class Turns(pl.Callback):  # type: ignore[misc,name-defined,unused-ignore]
        def on_train_batch_start(self, *_: Any) -> None:
            gate.fetched()

        def on_train_batch_end(self, *_: Any) -> None:
            gate.stepped()

    callbacks: list[Any] = [Turns()]
    if row.strong:
        from lightning.pytorch.callbacks import EMAWeightAveraging  # type: ignore[import-not-found,unused-ignore]

        callbacks.insert(0, EMAWeightAveraging(decay=0.998))
    trainer = pl.Trainer(
        accelerator="cpu", precision="bf16-mixed", logger=False, enable_checkpointing=False, max_epochs=-1,
        callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(Module(), loader(row))


def timm(row: Row, gate: Gate) -> None:
    """timm's parts in the order of its train script, with bfloat16 and channels_last."""
    import torch
    from timm.data import Mixup, create_loader
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import ModelEmaV3

    net = network(row).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(net, opt="sgd", lr=0.05, weight_decay=5e-4, momentum=0.9)
    data = Images(row)
    batches = create_loader(
        data, (3, row.side, row.side), row.batch, is_training=True, use_prefetcher=False, scale=(0.35, 1.0),
        auto_augment="original" if row.strong else None, re_prob=0.25 if row.strong else 0.0, mean=MEAN, std=STD,
        color_jitter=None, num_workers=common.available_cores(), pin_memory=False, device=torch.device("cpu"),
    )  # fmt: skip
    if row.side <= 64:  # its own crop enlarges small images; all contestants pad and shift them
        data.transform = transforms(row)
    mixup = Mixup(mixup_alpha=1.0, cutmix_alpha=1.0, prob=0.5, num_classes=CLASSES) if row.strong else None
    criterion: Any = SoftTargetCrossEntropy() if row.strong else LabelSmoothingCrossEntropy(0.0)
    average = ModelEmaV3(net, decay=0.998) if row.strong else None
    schedule = CosineLRScheduler(optimizer, t_initial=100 * len(batches), t_in_epochs=False)
    for step, (images, labels) in enumerate(endless(batches), 1):
        if mixup is not None:
            images, labels = mixup(images, labels)
        gate.fetched()
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            loss = criterion(net(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update(net, step=step)
        schedule.step_update(step)
        gate.stepped()


def kitae(row: Row, gate: Gate, **how: bool) -> None:
    """Ours: the command, with its run folder, on the store of the same images."""
    from kitae.training import fit

    made = 0

    class Turns:
        def on_plan(self, epochs: int) -> None: ...

        def on_step(self, epoch: int, step: int, steps: int, loss: float, rate: float, share: float) -> None:
            nonlocal made
            gate.epoch = steps
            # On a GPU this is called after every few steps, and after the last one of an epoch.
            gate.stepped(epoch * steps + step - made)
            made = epoch * steps + step

        def on_epoch(self, row: Mapping[str, Any]) -> None: ...

        def note(self, text: str) -> None: ...

    batches = fit.augmented_batches

    def counted(*arguments: Any, **options: Any) -> Iterator[Any]:
        found = batches(*arguments, **options)
        while True:
            with gate.reading():
                batch = next(found, None)
            if batch is None:
                return
            yield batch

    if gate.device == "cpu":  # on a GPU another thread augments, while this one trains
        fit.augmented_batches = counted

    import kitae as kt

    with tempfile.TemporaryDirectory() as folder:
        wanted = kt.Recipe.model_validate(recipe(row, gate.device, **how))
        kt.train(wanted, Path(folder) / "run", watcher=Turns())


def compiled(row: Row, gate: Gate) -> None:
    """Ours, with torch.compile."""
    kitae(row, gate, compiles=True)


def saving(row: Row, gate: Gate) -> None:
    """Ours, with a checkpoint after each step."""
    kitae(row, gate, saves=True)


def parts(row: Row, device: str) -> dict[str, Any]:
    """The parts of our step, in milliseconds."""
    import kitae as kt
    from kitae.pipelines.bench import bench_train

    found: dict[str, Any] = bench_train(kt.Recipe.model_validate(recipe(row, device)))["milliseconds"]
    return found


def recipe(row: Row, device: str = "cpu", *, saves: bool = False, compiles: bool = False) -> dict[str, Any]:
    """Our recipe of a row: the transforms, loss and averages of the others."""
    small = row.side <= 64 and source(row).name.startswith("cifar")
    ops: list[Any] = [
        {"random_crop": {"padding": 4, "mode": "reflect"}}
        if small
        else {"random_resized_crop": {"scale": [0.35, 1.0]}},
        {"horizontal_flip": {}},
    ]
    if row.strong:
        ops += [{"auto_augment": {"policy": "cifar10"}}, {"random_erasing": {"p": 0.25}}]
    mix = {"mix": {"mixup_alpha": 1.0, "cutmix_alpha": 1.0, "prob": 0.5, "switch_prob": 0.5}} if row.strong else {}
    return {
        "name": "benchmark",
        "data": {
            "source": f"parquet:{source(row)}", "image_size": None if small else row.side,
            "val_fraction": row.validation or 0.01,
            "normalize": {"mean": list(MEAN), "std": list(STD)},
        },
        "augment": {"train": ops, **mix},
        "model": dict(row.model),
        "train": {
            "epochs": 1000, "batch_size": row.batch, "precision": "bf16", "device": device,
            "checkpoint_seconds": 1e-9 if saves else 1e9, "compile": compiles,
            "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
            **({"label_smoothing": 0.1, "ema": 0.998} if row.strong else {}),
        },
    }  # fmt: skip


LOOPS: dict[str, Callable[[Row, Gate], None]] = {
    "bare": bare, "kept": kept, "kitae": kitae, "compiled": compiled, "tutorial": tutorial, "tuned": tuned,
    "lightning": lightning, "timm": timm, "saving": saving,
}  # fmt: skip


def child(contestant: str, row: Row, warmup: int, device: str) -> None:
    """Train without end; answers go to the parent, all else to stderr."""
    import torch

    global _ANSWERS
    _ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(common.available_cores())
    torch.manual_seed(0)
    if contestant == "parts":
        print(json.dumps(parts(row, device)), file=_ANSWERS, flush=True)
    else:
        LOOPS[contestant](row, Gate(warmup, row.steps, device))


# ------------------------------------------------------------------------------------------------ in the parent process


class Contestant:
    """The process of a contestant."""

    def __init__(self, name: str, row: str, warmup: int, device: str = "cpu") -> None:
        command = [sys.executable, __file__, "--child", name, "--rows", row, "--warmup", str(warmup)]
        command += ["--device", device]
        self.name, self._said = name, tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
        )
        self.first = self._answer()

    def turn(self, steps: int, lead: int = 0) -> dict[str, Any]:
        """Train some steps, 0 for the usual number, after some that do not count."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps} {lead}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            last = (self._said.read().strip().splitlines() or ["it ended without a word"])[-1]
            raise RuntimeError(last)
        found: dict[str, Any] = json.loads(line)
        return found


def in_turns(
    name: str, contestants: Sequence[str], rounds: int, warmup: int, device: str = "cpu", lead: int = 0
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """What each contestant says of its turns, and why others are left out."""
    row, left_out = ROWS[name], dict[str, str]()
    running: list[Contestant] = []
    try:
        for contestant in contestants:
            try:
                running.append(Contestant(contestant, name, warmup, device))
            except RuntimeError as error:
                left_out[contestant] = str(error)
        if not running:
            told = "; ".join(f"{one}: {why}" for one, why in left_out.items())
            raise SystemExit(f"{name}: no contestant runs here ({told})")
        turns: dict[str, list[dict[str, Any]]] = {one.name: [] for one in running}
        for number in range(rounds):
            for one in running[number % len(running) :] + running[: number % len(running)]:
                turns[one.name].append(one.turn(0 if row.validation else row.steps, lead))
    finally:
        for one in running:
            one.close()
    return turns, left_out


def compared(
    name: str, contestants: Sequence[str], rounds: int, warmup: int, device: str = "cpu", lead: int = 0
) -> dict[str, Any]:
    """Every contestant's images a second, and ratios within rounds; memory, and the time of processors.

    Args:
        lead: steps at the beginning of a turn that do not count, since their batches were made before it.
    """
    row = ROWS[name]
    turns, left_out = in_turns(name, contestants, rounds, warmup, device, lead)

    def each(value: Callable[[dict[str, Any]], float], *, unless: Sequence[str] = ()) -> dict[str, Any]:
        return {one: common.spread([value(turn) for turn in made]) for one, made in turns.items() if one not in unless}

    def total(of: str, over: str, *, unless: Sequence[str]) -> dict[str, float]:
        return {
            one: sum(turn[of] for turn in made) / sum(turn[over] for turn in made)
            for one, made in turns.items()
            if one not in unless and sum(turn[over] for turn in made)
        }

    def most(of: str) -> dict[str, int]:
        return {one: max(turn[of] for turn in made) for one, made in turns.items() if made[0][of] is not None}

    rates = each(lambda turn: turn["steps"] * row.batch / turn["seconds"])
    ours = ("kitae", "compiled")
    return {
        "model": dict(row.model), "side": row.side, "batch": row.batch, "strong": row.strong,
        "steps": row.steps if row.validation is None else {one: made[0]["steps"] for one, made in turns.items()},
        "images_per_second": rates,
        "kitae_over": {
            one: common.ratio(rates["kitae"], rates[one]) for one in rates if one != "kitae" and "kitae" in rates
        },
        "waiting_share": total("waited", "seconds", unless=[*BARE, *ours]),
        "image_share": total("image_seconds", "cpu_seconds", unless=BARE if device == "cpu" else [*BARE, *ours]),
        "memory_between_steps_bytes": most("memory"),
        "peak_memory_bytes": most("peak"),
        "device_peak_bytes": most("device_peak"),
        "host_milliseconds_per_step": each(lambda turn: 1000 * turn["host_seconds"] / turn["steps"]),
        "cpu_seconds_per_1000_images": each(lambda turn: 1000 * turn["cpu_seconds"] / (turn["steps"] * row.batch)),
        "left_out": left_out,
    }  # fmt: skip


def part_times(name: str, warmup: int, device: str = "cpu") -> dict[str, float]:
    """Milliseconds of the parts of our step."""
    own = Contestant("parts", name, warmup, device)
    own.close()
    return own.first


def measure(name: str, contestants: list[str], rounds: int, warmup: int) -> dict[str, Any]:
    """One row: the comparison, what a checkpoint takes, and the parts of our step."""
    found = compared(name, contestants, rounds, warmup)
    saved, _ = in_turns(name, ["kitae", "saving"], rounds, warmup)
    taken = zip(saved["saving"], saved["kitae"], strict=True)
    steps = ROWS[name].steps
    found["checkpoint_seconds"] = common.spread([(more["seconds"] - less["seconds"]) / steps for more, less in taken])
    return {**found, "parts_milliseconds": part_times(name, warmup)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=["resnet9", "resnet18", "strong"], choices=ROWS)
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=6, help="steps before the first turn")
    parser.add_argument("--tiny", action="store_true", help="small settings: does it run?")
    parser.add_argument("--out", type=Path, default=None, help="default benchmarks/results/train.json")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)  # of a child
    options = parser.parse_args(arguments)
    if options.child is not None:
        child(options.child, ROWS[options.rows[0]], options.warmup, options.device)
        return 0
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    if options.tiny:
        options.rows, options.rounds, options.warmup = ["tiny", "tiny-strong"], 2, 1
    out = options.out or (common.SCRATCH if options.tiny else common.RESULTS) / "train.json"
    results = common.load(out) if out.is_file() and not options.tiny else {"rows": {}}
    results["what"] = "images per second of training, in turn; ratios within a round, above 1 Kitae is faster"
    results["machine"] = common.hardware(common.available_cores())
    absent = {one for one in options.contestants if importlib.util.find_spec(NEEDS.get(one, "torch")) is None}
    wanted = [one for one in options.contestants if one not in absent]
    if not wanted:
        parser.error(f"--contestants: not installed: {', '.join(sorted(absent))} (pip install)")
    for name in options.rows:
        row = measure(name, wanted, options.rounds, options.warmup)
        row["left_out"] |= dict.fromkeys(sorted(absent), "not installed")
        row["machine"] = results["machine"]
        results["rows"][name] = row
        common.save(out, results)
        medians = {one: rate["median"] for one, rate in row["images_per_second"].items()}
        said = ", ".join(f"{one} {common.text_number(value)}" for one, value in medians.items())
        print(
            f"{name}: {said} images/s", *(f"left out: {one}: {why}" for one, why in row["left_out"].items()), sep="\n"
        )
    print(f"results: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
