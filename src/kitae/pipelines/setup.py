"""A recipe's data, network, augmentation and validation, as the loop takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kitae import keyed
from kitae.augment import Augment
from kitae.augment.ops import Op
from kitae.crops import EncodedCrop, PictureCrop, first_crop
from kitae.data.ahead import ReadAhead
from kitae.data.encoded import Encoded
from kitae.data.loader import ImageSet, begun_order, blocks_of
from kitae.data.order import Blocks
from kitae.data.splits import Splits, make_splits
from kitae.data.store import Store, open_store
from kitae.errors import DataError, RecipeError, TrainingError
from kitae.evaluation.evaluate import label_scores, predict_logits
from kitae.machine import processors
from kitae.models.build import build_seeded, normalization
from kitae.models.spec import ModelSpec
from kitae.models.starts import stem_of, whiten, whitens
from kitae.models.structure import count_macs, count_parameters, layer_groups, linear_classifier
from kitae.models.weights import Weights, load
from kitae.recipe import Recipe
from kitae.run import Run
from kitae.training import distributed, precision
from kitae.training.checkpoint import weights_digest
from kitae.training.distributed import World
from kitae.training.fit import Source, Tuning, Watcher, fit
from kitae.training.guards import evaluation_memory_named, keep_freed_memory
from kitae.training.spec import Metric, ProbeSpec, TrainSpec, merit

Progress = Callable[[int, int], None]
"""(done, total), called while images are decoded."""

_UNEVEN = 3
_MOST_THREADS = 64  # for each processor; with 32, a step takes half a minute, and with 500 none ends
# Training images without augmentation, for the gap to validation: half as many as in validation, within these bounds.
_MOST_CLEAN, _FEWEST_CLEAN = 1000, 200
_FEWEST_CLEAN_TUNING = 50  # fine-tuning is short and has large images
_WHITENING_IMAGES = 1024
_STATISTICS_IMAGES, _STATISTICS_BATCH = 2048, 128  # for `clean_batches`


def begin(spec: TrainSpec) -> World:
    """Set up this process, and join the others."""
    keep_freed_memory()
    if spec.threads is not None:
        if spec.threads > _MOST_THREADS * processors():
            raise RecipeError(
                f"train.threads: {spec.threads} threads wait for each other all the time on {processors()} processors; "
                "set it to null, or to their number"
            )
        torch.set_num_threads(spec.threads)
    return distributed.join(spec.device, spec.process_timeout)


def placed(model: nn.Module, spec: TrainSpec, world: World) -> nn.Module:
    """The network on the device, in the memory layout of its training."""
    layout = torch.channels_last if spec.channels_last else torch.contiguous_format
    return model.to(device=world.device, memory_format=layout)  # type: ignore[call-overload,no-any-return]


@dataclass(frozen=True)
class _Judged:
    """The logits of the validation images for certain weights."""

    merit: tuple[float, float]
    weights: str
    logits: NDArray[np.float32]


@dataclass(frozen=True)
class Setup:
    """The data, normalisation and functions that the training loop needs, as determined by a run's recipe."""

    recipe: Recipe
    store: Store
    splits: Splits
    _best: list[_Judged] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def of(cls, run: Run, progress: Progress | None = None) -> Setup:
        """Open the store and the splits of a run."""
        store = run.open_store(progress)
        recipe = run.recipe
        if run.checkpoint.is_file():
            recipe = recipe.model_copy(update={"data": begun_order(store.images, recipe.data)})
        return cls(recipe, store, run.splits(store))

    @classmethod
    def without_run(cls, recipe: Recipe, progress: Progress | None = None) -> Setup:
        """Open the store of a recipe and split it as a run would; only the decoded store is written."""
        store = open_store(recipe.data, progress=progress)
        return cls(recipe, store, make_splits(store, recipe.data))

    def agreed(self, world: World) -> Setup:
        """This setup with the main process's order of an epoch, since `order: auto` depends on a machine's memory.

        Raises:
            DataError: this process's images are not those of the main process.
        """
        order = "full" if self.blocks is None else "blocks"
        fingerprint, agreed = distributed.from_main((self.store.fingerprint, order), world)
        if fingerprint != self.store.fingerprint:
            raise DataError(
                f"{self.recipe.data.source}: process {world.rank} reads other images than process 0; copy the same "
                "files to all machines"
            )
        if agreed == order:
            return self
        data = self.recipe.data.model_copy(update={"order": agreed})
        return replace(self, recipe=self.recipe.model_copy(update={"data": data}))

    @cached_property
    def images(self) -> ImageSet:
        """The training images as the loop draws them."""
        ahead = None if self.blocks is None else ReadAhead(self.store.images)
        drawn = self.drawn_set(self.splits.train)
        return replace(drawn, balance=self.recipe.data.balance, blocks=self.blocks, ahead=ahead)

    def drawn_set(self, rows: NDArray[np.int64]) -> ImageSet:
        """Some rows of the store as training draws them: with an epoch, cut out of whole pictures by `crop`."""
        return replace(self.image_set(rows), crop=self.crop)

    @cached_property
    def blocks(self) -> Blocks | None:
        """The blocks of images if an epoch is shuffled by blocks; None if all images are shuffled at once."""
        return blocks_of(self.store.images, self.splits.train, self.recipe.data, self.recipe.train.batch_size)

    @cached_property
    def _drawing(self) -> tuple[PictureCrop | EncodedCrop | None, tuple[Op, ...]]:
        return first_crop(self.recipe.augment, self.store.images, torch.get_num_threads())

    @property
    def crop(self) -> PictureCrop | EncodedCrop | None:
        """Cuts training images out of whole pictures: the recipe's first op, if that is a random resized crop."""
        return self._drawing[0]

    @property
    def drawn(self) -> tuple[int, int, int]:
        """(C, H, W) of training images as they are drawn, before `augment`."""
        return self.store.rules.shape if self.crop is None else self.crop.shape

    def image_set(self, rows: NDArray[np.int64]) -> ImageSet:
        """Some rows of the store; reading a test image among them raises an error until test has been opened."""
        store = self.store
        return ImageSet(store.images, rows, store.labels, store.classes, guard=self.splits.guard)

    @cached_property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel, of pixels in [0, 1]."""
        given, channels = self.recipe.data.normalize, self.store.rules.channels
        if given == "train":
            return self.images.statistics()
        if given == "pretrained":
            known = normalization(self.recipe.model, channels)
            if known is None:
                raise RecipeError(
                    f"data.normalize: pretrained, but {self.recipe.model.name} names no normalisation; use train, or "
                    "for weights of a run the mean and std in its model.json"
                )
            return known
        if not len(given.mean) == len(given.std) == channels:
            raise RecipeError(f"data.normalize: mean and std need {channels} values, one per channel")
        return given.mean, given.std

    @cached_property
    def shuffled_train(self) -> NDArray[np.int64]:
        """Training rows in a keyed order, so that the first few are a sample."""
        rows = self.splits.train
        return rows[keyed.permutation(self.recipe.data.split_seed, 2, len(rows), keyed.SLOT_SPLIT)]

    def clean_batches(
        self, device: torch.device, size: int = _STATISTICS_BATCH
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Some training images as the network takes them, without augmentation: [n, C, H, W] and labels int64 [n].

        Used to measure BatchNorm's statistics, importances and ranges of activations.
        """
        mean, std = (torch.tensor(value, device=device).reshape(1, -1, 1, 1) for value in self.normalization)
        count = min(len(self.shuffled_train), _STATISTICS_IMAGES)
        # Whole batches only: a small batch would have the same weight in BatchNorm's statistics as a full one.
        rows = self.shuffled_train[: count - count % size or count]
        images = self.image_set(rows)
        for start in range(0, len(rows), size):
            pixels, labels = images.gather(rows[start : start + size])
            values = torch.from_numpy(pixels).to(device).float() / 255.0
            yield (values - mean) / std, torch.from_numpy(labels).to(device)

    @cached_property
    def weights(self) -> Weights | None:
        """The pretrained weights that the recipe asks for."""
        return load(self.recipe.model) if self.recipe.model.pretrained else None

    def initial_model(self, world: World, *, pretrained: bool = True) -> nn.Module:
        """The network with its initial weights, a pure function of the seed, on the device.

        Args:
            pretrained: False does not load pretrained weights, if they are replaced later or do not matter.
        """
        weights = self.weights if pretrained else None
        recipe, store = self.recipe, self.store
        model = build_seeded(recipe.model, recipe.train.seed, len(store.classes), store.rules, weights=weights)
        return placed(model if weights else self.whitened(model, recipe.model), recipe.train, world)

    def whitened(self, model: nn.Module, spec: ModelSpec) -> nn.Module:
        """Compute the stem of a fresh network on the CPU from training images, in place, if `spec` asks for it."""
        if whitens(spec):
            images, _ = next(self.clean_batches(torch.device("cpu"), _WHITENING_IMAGES))
            whiten(stem_of(model), images)
        return model

    def facts(self, model: nn.Module) -> dict[str, Any]:
        """What model.json says, before calibration."""
        mean, std = self.normalization
        rules = self.store.rules
        return {
            "model": self.recipe.model.model_dump(mode="json"),
            "classes": list(self.store.classes),
            "preprocess": rules.to_dict(),
            "mean": list(mean),
            "std": list(std),
            "temperature": 1.0,
            "parameters": count_parameters(model),
            "macs": count_macs(model, rules.channels, rules.image_size),
            "clean_images": self.judged - len(self.splits.val),
        }

    def augment(self, seed: int, *, mix: bool = True) -> Augment:
        """The recipe's augmentation, from uint8 images as they are drawn to the network's input.

        Args:
            mix: False leaves mixing out.
        """
        mean, std = self.normalization
        spec = self.recipe.augment
        return Augment(
            self._drawing[1],
            mix=spec.mix if mix else None,
            seed=seed,
            mean=mean,
            std=std,
            num_classes=len(self.store.classes),
            threads=torch.get_num_threads(),
            channels_last=self.recipe.train.channels_last,
        )

    @property
    def judged(self) -> int:
        """Number of images in a validation, including the clean training images."""
        fewest = _FEWEST_CLEAN_TUNING if self.recipe.model.pretrained else _FEWEST_CLEAN
        clean = min(_MOST_CLEAN, max(fewest, len(self.splits.val) // 2))
        return len(self.splits.val) + min(clean, len(self.splits.train))

    @property
    def passes_at_end(self) -> int:
        """Forward passes of the evaluation that ends a run, each of one image."""
        fold = self.recipe.data.fold is not None
        return self.recipe.evaluate.passes(len(self.splits.val), self.splits.test_count, fold=fold)

    def validator(self, world: World, selection: Metric = "val_accuracy") -> Callable[[nn.Module], dict[str, float]]:
        """Scores on validation, if there is one, and accuracy on a fixed clean part of train; never on test.

        Always in float32, like the final evaluation, predictions and exported files, so that an epoch's score and the
        final score of the same weights are the same number.

        Args:
            selection: the metric that chooses the best epoch, whose logits are kept for `judgement`.
        """
        mean, std = self.normalization
        shuffled = keyed.permutation(self.recipe.data.split_seed, 1, len(self.splits.train), keyed.SLOT_SPLIT)
        clean = np.sort(self.splits.train[shuffled[: self.judged - len(self.splits.val)]])
        rows = np.concatenate([self.splits.val, clean])
        images = self.image_set(rows)
        labels = np.asarray(self.store.labels[rows])
        count, batch_size = len(self.splits.val), self.recipe.evaluate.batch_size

        def judge(model: nn.Module, some: NDArray[np.int64]) -> NDArray[np.float32]:
            mine = np.array_split(np.arange(len(some)), world.size)[world.rank]  # few shards for each process
            # Stays NaN where outputs are not finite: no score, so never the best epoch.
            local = np.full((len(mine), len(self.store.classes)), np.nan, np.float32)
            with evaluation_memory_named(batch_size), suppress(TrainingError):
                if len(mine):
                    local, _ = predict_logits(
                        model, images.gather, some[mine], mean=mean, std=std, batch_size=batch_size,
                        device=world.device,
                    )  # fmt: skip
            return distributed.gather_rows(local, mine, len(some), world)

        def validate(model: nn.Module) -> dict[str, float]:
            # Evaluated separately, so that validation images are batched as in the final evaluation.
            logits = np.concatenate([judge(model, part) for part in (rows[:count], rows[count:]) if len(part)])
            predicted = logits.argmax(axis=1)
            clean_accuracy = float((predicted[count:] == labels[count:]).mean())
            if not count:
                return {"train_clean_accuracy": clean_accuracy if np.isfinite(logits).all() else float("nan")}
            loss = float(
                nn.functional.cross_entropy(torch.from_numpy(logits[:count]), torch.from_numpy(labels[:count]))
            )
            scores = {"val_loss": loss, **label_scores(predicted[:count], labels[:count])}
            scores["train_clean_accuracy"] = clean_accuracy
            if world.size == 1:  # several processes split the batches otherwise
                self._remember(model, merit(scores, selection), logits[:count])
            return scores if np.isfinite(loss) else {**dict.fromkeys(scores, float("nan")), "val_loss": loss}

        return validate

    def _remember(self, model: nn.Module, found: tuple[float, float] | None, logits: NDArray[np.float32]) -> None:
        if found is not None and (not self._best or found >= self._best[0].merit):
            self._best[:] = [_Judged(found, weights_digest(model), logits)]

    def judgement(self, model: nn.Module) -> NDArray[np.float32] | None:
        """Logits of the validation images, if these weights were the best that this process has validated."""
        return next((best.logits for best in self._best if best.weights == weights_digest(model)), None)

    @property
    def mixes_until(self) -> float:
        """Where mixing ends, as a fraction of a run; 1 without mixing."""
        return self.recipe.augment.mix.until if self.recipe.augment.mix is not None else 1.0

    def fit(self, model: nn.Module, spec: TrainSpec, world: World, *, mix: bool = True, **options: Any) -> None:
        """Run the loop on this data; `options` are those of `training.fit.fit`, and `mix` is that of `augment`."""
        until = self.mixes_until if mix else 1.0
        source = Source(
            data=self.images,
            augment=self.augment(spec.seed, mix=mix).prepare(*self.drawn),
            validate=self.validator(world, spec.selection),
            class_weights=self.images.class_weights() if self.recipe.data.balance == "loss" else None,
            layers=layer_groups(model) if spec.optimizer.layer_decay is not None else (),
            unmixed=self.augment(spec.seed, mix=False).prepare(*self.drawn) if until < 1 else None,
            mix_until=until,
        )
        fit(model, spec, source, world, spec.resolved_precision, **options)

    def recover(
        self, model: nn.Module, *, epochs: int, seed: int, rate: float = 0.1, tuning: Tuning | None = None,
        watcher: Watcher | None = None,
    ) -> nn.Module:  # fmt: skip
        """Fine-tune a compressed model with the same loop and a cosine, without warm-up, averaging or early stopping.

        It goes on from the end of the run: at full size, and without mixing if that ended before the run did. Where
        this device does not have the run's precision, it is done in float32.

        Args:
            seed: the key of order, augmentation and dropout; different from the training's, to get other epochs.
            rate: the share of the recipe's learning rate to start with.
        """
        spec = self.recipe.train
        world = World(0, 1, next(model.parameters()).device)
        known = spec.resolved_precision in precision.candidates(world.device)  # else it was trained on another device
        optimizer = spec.optimizer.scaled(rate)
        if not any(isinstance(module, nn.Linear | nn.Conv2d) for module in model.modules()):
            # A traced graph (simulated quantization) has no layers to tell apart.
            optimizer = optimizer.model_copy(update={"layer_decay": None})
        tuned = spec.lasting(epochs).model_copy(
            update={
                "seed": seed,
                "validate_every": 1,
                "early_stopping": None,
                "ema": None,
                "progressive": None,
                "precision": spec.precision if known else "fp32",
                "optimizer": optimizer,
                "schedule": spec.schedule.model_copy(update={"name": "cosine", "warmup_epochs": 0.0, "final": 0.0}),
            }
        )
        self.fit(model, tuned, world, mix=self.mixes_until == 1, tuning=tuning, watcher=watcher)
        return model


class FirstBatch:
    """The first images of the first epoch as training takes them, to measure with.

    Attributes:
        index: int64 [count], their keyed indices, see `ImageSet.order`.
        augment: from uint8 images and labels to the network's input and targets, on the CPU.
    """

    def __init__(self, setup: Setup, count: int, world: World) -> None:
        self._setup, self._device, self._seed = setup, world.device, setup.recipe.train.seed
        self.index = setup.images.order(self._seed, 0)[:count]
        augment = setup.augment(self._seed).prepare(*setup.drawn)
        self.augment = partial(augment, epoch=0, index=self.index)

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images uint8 [count, C, H, W] and labels int64 [count]."""
        images, labels = self._setup.images.gather(self.index, seed=self._seed, epoch=0)
        return torch.from_numpy(images), torch.from_numpy(labels)

    def make(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs float [count, C, H, W] and targets float32 [count, K], on the device."""
        inputs, targets = self.augment(*self.read())
        return inputs.to(self._device), targets.to(self._device)


def uneven(counts: NDArray[np.int64]) -> bool:
    """Whether accuracy misleads, since the largest class has more than `_UNEVEN` times the images of the smallest."""
    return bool(counts.max() > _UNEVEN * counts[counts > 0].min())


def resolved(recipe: Recipe, setup: Setup, world: World, model: nn.Module, weights: Weights | None = None) -> Recipe:
    """The recipe with every `auto` of training resolved, by rules without measurements: the same at every start.

    Args:
        weights: the pretrained weights that were loaded; the recipe then records them.

    Raises:
        RecipeError: a probe, but the network's classifier is not linear; nothing to train; or a precision that the
            device does not have.
    """
    spec = recipe.train
    if recipe.data.whole and spec.early_stopping is not None:
        raise RecipeError(
            "train.early_stopping: with data.folds the last model trains on all images, so nothing validates it; set "
            "it to null"
        )
    decided: dict[str, Any] = {}
    linear = linear_classifier(model) is not None
    if spec.probe == "auto":
        if recipe.model.pretrained:
            decided["probe"] = ProbeSpec() if linear else None
        if spec.epochs == 0 and not decided.get("probe"):
            lacking = "model.pretrained is not set" if linear else f"{recipe.model.name} has no linear classifier"
            raise RecipeError(
                f"train.epochs: 0 trains only a probe, a linear classifier on pretrained features, but {lacking}; set "
                "epochs to 1 or more"
            )
    elif spec.probe is not None and not linear:
        raise RecipeError(
            f"train.probe: the classifier of {recipe.model.name} is not one linear layer with a bias; set it to null"
        )
    if spec.precision == "auto":
        decided["precision"] = precision.choose(world.device)
    elif spec.precision not in (possible := precision.candidates(world.device)):
        raise RecipeError(
            f"train.precision: {spec.precision} is not possible on {world.device.type}; set it to auto or "
            f"{' or '.join(possible)}"
        )
    if spec.select == "auto":
        decided["select"] = "val_balanced_accuracy" if uneven(setup.images.counts()) else "val_accuracy"
    if spec.early_stopping is not None and spec.early_stopping.metric == "auto":
        metric = decided.get("select", spec.select)
        decided["early_stopping"] = spec.early_stopping.model_copy(update={"metric": metric})
    update: dict[str, Any] = {"train": spec.model_copy(update=decided)}
    if setup.blocks is not None and recipe.data.order == "auto" and not isinstance(setup.store.images, Encoded):
        update["data"] = recipe.data.model_copy(update={"order": "blocks"})
    if weights is not None:
        update["model"] = recipe.model.model_copy(update={"pretrained_sha256": weights.sha256})
    return recipe.model_copy(update=update)
