"""The probe: a linear head on the features of the pretrained network, which training then starts from.

Features are computed once: of the training images as evaluation sees them, and of a few augmented views of each. They
are saved in the run folder, a few hundred images per file, so that a killed run only computes the missing ones.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kitae.data.groups import assign_folds, together
from kitae.errors import TrainingInterruptedError
from kitae.evaluation.evaluate import predict_logits
from kitae.models.structure import linear_classifier
from kitae.modes import evaluating
from kitae.pipelines.setup import Setup
from kitae.run import Run
from kitae.training import distributed, precision
from kitae.training.checkpoint import load_weights, save_weights
from kitae.training.distributed import World
from kitae.training.fit import Watcher
from kitae.training.guards import SignalFlag, memory_named
from kitae.training.precision import Precision
from kitae.training.probe import Head, fit_head
from kitae.training.spec import ProbeSpec

_SHARD = 256  # images per file
_BATCH = 32
_VIEWS_FROM = 1 << 31  # first of the epochs that key the augmented views; no training reaches them


@dataclass(frozen=True)
class Shared:
    """A run whose features are shared by its folds: its folder, and all images of the folds."""

    run: Run
    setup: Setup

    @classmethod
    def of(cls, run: Run, setup: Setup) -> Shared | None:
        """None if the folds cannot share features: no probe, other images, or another normalisation."""
        data, spec = run.recipe.data, run.recipe.train.probe
        if not isinstance(spec, ProbeSpec) or len(setup.splits.train) > spec.limit:
            return None
        return cls(run, setup) if data.limit is None and data.normalize != "train" else None

    def compute(self, model: nn.Module, world: World) -> None:
        """Compute the missing features for all folds. `model`: the network before any training."""
        spec = cast(ProbeSpec, self.run.recipe.train.probe)
        if world.is_main:
            with SignalFlag() as interrupted, memory_named(self.run.recipe.train):
                reader = _Reader(self.run, self.setup, model, world.device, interrupted)
                for number in range(spec.views + 1):
                    reader.view(number, self.setup.splits.train)
        distributed.barrier(world)


def probe(
    run: Run, setup: Setup, model: nn.Module, world: World, watcher: Watcher | None = None,
    shared: Shared | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Fit a head on the features of `model` and put it into the model.

    The main process fits the head and sends it to the others.

    Args:
        shared: the run whose features are used.

    Returns:
        The probe's fields in the metrics of epoch 0.

    Raises:
        TrainingInterruptedError: after SIGTERM or SIGINT; the features so far are kept.
    """
    spec = cast(ProbeSpec, run.recipe.train.probe)
    layer = cast(nn.Linear, linear_classifier(model))
    facts: dict[str, Any] = {}
    found: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    if world.is_main:
        begun = time.perf_counter()
        rows = np.sort(setup.shuffled_train[: spec.limit])
        with SignalFlag() as interrupted, memory_named(run.recipe.train):
            source = shared or Shared(run, setup)
            computed = rows if shared is None else source.setup.splits.train
            place = torch.from_numpy(np.searchsorted(computed, rows))
            reader = _Reader(source.run, source.setup, model, world.device, interrupted)
            features = torch.stack([reader.view(number, computed)[place] for number in range(spec.views + 1)])
            read = time.perf_counter() - begun
            head = _fitted(features, setup, rows, spec)
        seconds = time.perf_counter() - begun
        found = head.weight.numpy(), head.bias.numpy()
        facts = {
            "train_loss": head.train_loss,
            "train_accuracy": head.train_accuracy,
            "images_per_second": len(rows) * (spec.views + 1) / read,
            "seconds": seconds,
            "data_share": reader.waited / seconds,
        }
        if watcher is not None:
            watcher.note(
                f"probe: a linear head on the features of {len(rows):,} images"
                + (f" and {spec.views} augmented view(s) of each" if spec.views else "")
                + f", strength {head.strength:.2g}, {seconds:.0f} s"
            )
    weight, bias = distributed.from_main(found, world)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return facts


def _fitted(features: Tensor, setup: Setup, rows: NDArray[np.int64], spec: ProbeSpec) -> Head:
    store = setup.store
    labels, units = store.labels[rows], together(store.groups, rows, store.twins)
    return fit_head(
        features,
        labels,
        len(store.classes),
        folds=assign_folds(labels, store.keys[rows], spec.folds, setup.recipe.data.split_seed, units),
        weights=None if setup.recipe.data.balance == "none" else setup.images.class_weights(),
    )


class Features(nn.Module):
    """A network up to its classifier: images float [N, C, H, W] to features float32 [N, D]."""

    def __init__(self, model: nn.Module, chosen: Precision, device: torch.device) -> None:
        super().__init__()
        self.model, self._precision, self._device = model, chosen, device
        self._layer = (cast(nn.Linear, linear_classifier(model)),)  # in a tuple, so it is not a submodule

    def forward(self, images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = self._layer[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with precision.inference(self.model, self._precision, self._device):
                self.model(images)
        finally:
            handle.remove()
        return seen[0].float()


class _Reader:
    """Computes features, or reads those that are in the run folder."""

    def __init__(self, run: Run, setup: Setup, model: nn.Module, device: torch.device, interrupted: SignalFlag) -> None:
        chosen = run.recipe.train.precision
        self._run, self._setup, self._device, self._interrupted = run, setup, device, interrupted
        self._network = Features(model, "fp32" if chosen == "auto" else chosen, device)
        self._augment = setup.augment(run.recipe.train.seed, mix=False)
        self._key = _key(run, setup)
        self.waited = 0.0

    def view(self, number: int, rows: NDArray[np.int64]) -> Tensor:
        """Features of one view of some images: float32 [n, D]; view 0 is the images as evaluation sees them."""
        return torch.cat([self._shard(number, place, part) for place, part in enumerate(_parts(rows, _SHARD))])

    def _shard(self, number: int, place: int, rows: NDArray[np.int64]) -> Tensor:
        path = self._run.features / f"view-{number}-{place:05d}.safetensors"
        if (kept := self._kept(path)) is not None:
            return kept
        if self._interrupted.name is not None:
            raise TrainingInterruptedError(
                f"stopped by {self._interrupted.name} in the probe", "its features are saved; resume with --resume"
            )
        computed = self._evaluated(rows) if number == 0 else self._augmented(number, rows)
        save_weights({"features": computed}, path, {"key": self._key})
        return computed

    def _kept(self, path: Path) -> Tensor | None:
        if not path.is_file():
            return None
        tensors, facts = load_weights(path)
        return tensors["features"] if facts.get("key") == self._key else None

    def _evaluated(self, rows: NDArray[np.int64]) -> Tensor:
        mean, std = self._setup.normalization
        images = self._setup.image_set(rows)
        features, _ = predict_logits(
            self._network, self._timed(images.gather), rows, mean=mean, std=std, batch_size=_BATCH, device=self._device
        )
        return torch.from_numpy(features)

    def _augmented(self, number: int, rows: NDArray[np.int64]) -> Tensor:
        images, seed, epoch = self._setup.drawn_set(rows), self._run.recipe.train.seed, _VIEWS_FROM + number

        def batch(index: NDArray[np.int64]) -> Tensor:
            pixels, labels = images.gather(index, seed=seed, epoch=epoch)
            inputs, _ = self._augment(
                torch.from_numpy(pixels).to(self._device), torch.from_numpy(labels).to(self._device),
                epoch=epoch, index=index,
            )  # fmt: skip
            return cast(Tensor, inputs)

        made = self._timed(batch)
        with evaluating(self._network), torch.no_grad():
            return torch.cat([self._network(made(index)).cpu() for index in _parts(rows, _BATCH)])

    def _timed(self, call: Callable[[NDArray[np.int64]], Any]) -> Callable[[NDArray[np.int64]], Any]:
        def timed(index: NDArray[np.int64]) -> Any:
            asked = time.perf_counter()
            made = call(index)
            self.waited += time.perf_counter() - asked
            return made

        return timed


def _parts(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _key(run: Run, setup: Setup) -> str:
    """A key of everything that features depend on, so that features of another recipe or machine are not reused."""
    recipe = run.recipe
    spec = recipe.train
    said = [
        recipe.model_dump(mode="json", include={"data", "augment", "model"}), spec.precision, spec.seed,
        spec.channels_last, setup.splits.fingerprint, torch.__version__, torch.get_num_threads(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
