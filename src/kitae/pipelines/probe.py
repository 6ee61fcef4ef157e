"""The probe: a linear head on the features of the pretrained network, which training then starts from.

Features are computed once: of the training images as evaluation sees them, and of a few augmented views of each. They
are saved in the run folder, a few hundred images per file, so that a killed run only computes the missing ones.
Images and views that do not fit into the minutes are left out; the recipe of the run then has fewer.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kitae import console
from kitae.augment import Augment
from kitae.data.groups import assign_folds, together
from kitae.errors import TrainingInterruptedError
from kitae.evaluation.evaluate import predict_logits
from kitae.models.folding import folded
from kitae.models.structure import linear_classifier
from kitae.modes import evaluating
from kitae.pipelines.pace import Clock, head_seconds
from kitae.pipelines.setup import Setup
from kitae.run import Run
from kitae.training import distributed, precision
from kitae.training.checkpoint import load_weights, save_weights
from kitae.training.distributed import World
from kitae.training.fit import Watcher
from kitae.training.guards import SignalFlag, probe_memory_named
from kitae.training.precision import Precision
from kitae.training.probe import Head, fit_head
from kitae.training.spec import ProbeSpec

_SHARD = 256  # images per file
_FILES = 3  # how features are computed, and which are in which file; a higher number for each change
_BATCH = 32
_JUDGED = 2  # an image is judged in float32, which takes about as many times as long as its features do
_LEAST = 10  # images for each class, on average, whose features are computed in any case
_VIEWS_FROM = 1 << 31  # first of the epochs that key the augmented views; no training reaches them


class Features:
    """The features of a run's training images, which are in its folder as far as they have been computed.

    Its folds may share them.

    Attributes:
        rows: int64 [n], the rows of these images, sorted.
        waited: seconds spent on reading and augmenting images.
    """

    def __init__(self, run: Run, setup: Setup, watcher: Watcher, clock: Clock | None, *, shared: bool = False) -> None:
        """
        Args:
            clock: the minutes; what does not fit into them is left out.
            shared: the folds need the features of all images.
        """
        self.run, self.setup, self._watcher, self._clock = run, setup, watcher, clock
        self.spec = cast(ProbeSpec, run.recipe.train.probe)
        self.waited = 0.0
        self._key = _key(run, setup)
        drawn = setup.shuffled_train[: self.spec.limit]
        # Files of images in a drawn order, so that the first few are a sample; but not where reading that is slow.
        sampled = setup.blocks is None
        self._parts = list(map(np.sort, _parts(drawn if sampled else np.sort(drawn), _SHARD)))
        self._may_stop = sampled and not shared
        self._least = _LEAST * len(setup.store.classes)

    @property
    def rows(self) -> NDArray[np.int64]:
        return np.sort(np.concatenate(self._parts))

    @staticmethod
    def shareable(run: Run, setup: Setup) -> bool:
        """Whether the folds of a run use its features: no other images, and the same normalisation."""
        data, spec = run.recipe.data, run.recipe.train.probe
        if not isinstance(spec, ProbeSpec) or len(setup.splits.train) > spec.limit:
            return False
        return data.limit is None and data.normalize != "train"

    def prepare(self, model: nn.Module, world: World) -> None:
        """Compute what is missing, in the main process. `model`: the network before any training."""
        if world.is_main:
            with SignalFlag() as interrupted, probe_memory_named():
                self.read(model, world.device, interrupted)
                _check(interrupted)
        self.run.recipe = distributed.from_main(self.run.recipe, world)

    def read(self, model: nn.Module, device: torch.device, interrupted: SignalFlag) -> Tensor:
        """Features float32 [views + 1, n, D]: of the images as evaluation sees them, and of the augmented views.

        The recipe of the run gets the numbers of images and views for which there was time.

        Raises:
            TrainingInterruptedError: a signal came; the features so far are kept.
        """
        network = _Backbone(self._fast(model, device), self.run.recipe.train.resolved_precision, device)
        augment = self.setup.augment(self.run.recipe.train.seed, mix=False)

        def saved(number: int, place: int) -> Tensor | None:
            if not (path := self._file(number, place)).is_file():
                return None
            tensors, facts = load_weights(path)
            return tensors["features"] if facts.get("key") == self._key else None

        def computed(number: int, place: int, rows: NDArray[np.int64]) -> Tensor:
            _check(interrupted)
            if number == 0:
                features = self._evaluated(network, rows)
            else:
                features = self._augmented(network, augment, rows, _VIEWS_FROM + number)
            save_weights({"features": features}, self._file(number, place), {"key": self._key})
            return features

        views, each = [], 0.0
        for number in range(self.spec.views + 1):
            count, spent, timed, found = 0, 0.0, 0, []
            for place, rows in enumerate(self._parts):
                features = saved(number, place)
                if features is None:
                    if self._ends(number, place, count, each):
                        break
                    begun = time.perf_counter()
                    features = computed(number, place, rows)
                    spent, timed = spent + time.perf_counter() - begun, timed + len(rows)
                    each = spent / timed
                found.append(features)
                count += len(rows)
            if not found:
                break  # there is no time for this view
            views.append(torch.cat(found))
        return torch.stack(views)[:, torch.from_numpy(np.argsort(np.concatenate(self._parts)))]

    def _fast(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The network with BatchNorm folded into its convolutions, on a CPU, where that was measured."""
        if device.type != "cpu":
            return model
        images = torch.rand((2, *self.setup.store.rules.shape), generator=torch.Generator().manual_seed(0))
        return folded(model, lambda network: cast(Tensor, _Backbone(network, "fp32", device)(images)))

    def _ends(self, view: int, place: int, count: int, each: float) -> bool:
        """Whether a view ends before a file, after `count` images of `each` seconds; what it leaves out is noted."""
        images, more = sum(map(len, self._parts)), len(self._parts[place])
        if view and place == 0 and not self._fit(images, each, (view + 1) * images):
            self._leave("views", view - 1, f"{console.plural(view - 1, 'augmented view')} of each image")
            return True
        may_end = view == 0 and self._may_stop and count >= self._least
        if may_end and not self._fit(more, each, count + more):
            self._parts = self._parts[:place]
            self._leave("limit", count, console.plural(count, "image"))
            return True
        return False

    def _file(self, view: int, place: int) -> Path:
        return self.run.features / f"view-{view}-{place:05d}.safetensors"

    def _fit(self, images: int, each: float, seen: int) -> bool:
        """Whether the minutes have room for the features of so many images, and then for a head.

        Args:
            each: seconds of an image's features.
            seen: images, each view counted, that the head would be fitted on.
        """
        if self._clock is None:
            return True
        setup = self.setup
        judged = _JUDGED * each * (setup.judged + setup.passes_at_end)
        head = head_seconds(seen, len(setup.store.classes))
        return images * each + head + judged + self._clock.after <= self._clock.left

    def _leave(self, field: str, most: int, what: str) -> None:
        """Continue with fewer views or images than the recipe has."""
        self._watcher.note(
            f"features take longer than measured before: the head is fitted on {what} (saved as train.probe.{field} in "
            "the recipe)"
        )
        self.spec = self.spec.model_copy(update={field: most})
        train = self.run.recipe.train.model_copy(update={"probe": self.spec})
        self.run.resolve(self.run.recipe.model_copy(update={"train": train}))

    def _evaluated(self, network: _Backbone, rows: NDArray[np.int64]) -> Tensor:
        mean, std = self.setup.normalization
        gather = self._timed(self.setup.image_set(rows).gather)
        features, _ = predict_logits(
            network, gather, rows, mean=mean, std=std, batch_size=_BATCH, device=network.device
        )
        return torch.from_numpy(features)

    def _augmented(self, network: _Backbone, augment: Augment, rows: NDArray[np.int64], epoch: int) -> Tensor:
        images = self.setup.drawn_set(rows)

        def batch(index: NDArray[np.int64]) -> Tensor:
            pixels, labels = images.gather(index, seed=self.run.recipe.train.seed, epoch=epoch)
            inputs, _ = augment(
                torch.from_numpy(pixels).to(network.device), torch.from_numpy(labels).to(network.device),
                epoch=epoch, index=index,
            )  # fmt: skip
            return cast(Tensor, inputs)

        made = self._timed(batch)
        with evaluating(network), torch.no_grad():
            return torch.cat([network(made(index)).cpu() for index in _parts(rows, _BATCH)])

    def _timed(self, call: Callable[[NDArray[np.int64]], Any]) -> Callable[[NDArray[np.int64]], Any]:
        def timed(index: NDArray[np.int64]) -> Any:
            asked = time.perf_counter()
            made = call(index)
            self.waited += time.perf_counter() - asked
            return made

        return timed


class _Backbone(nn.Module):
    """A network up to its classifier: images float [N, C, H, W] to features float32 [N, D]."""

    def __init__(self, model: nn.Module, chosen: Precision, device: torch.device) -> None:
        super().__init__()
        self.model, self.device, self._precision = model, device, chosen
        self._layer = (cast(nn.Linear, linear_classifier(model)),)  # in a tuple, so it is not a submodule

    def forward(self, images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = self._layer[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with precision.inference(self.model, self._precision, self.device):
                self.model(images)
        finally:
            handle.remove()
        return seen[0].float()


def probe(
    run: Run,
    setup: Setup,
    model: nn.Module,
    world: World,
    watcher: Watcher,
    clock: Clock | None = None,
    shared: Features | None = None,
) -> dict[str, Any]:
    """Fit a head on the features of `model` and put it into the model.

    The main process fits the head and sends it to the others.

    Args:
        clock: the minutes; images and augmented views that do not fit are left out.
        shared: the features to use, of at least this run's images; None computes this run's own.

    Returns:
        The probe's fields in the metrics of epoch 0.

    Raises:
        TrainingInterruptedError: after SIGTERM or SIGINT; the features so far are kept.
    """
    layer = cast(nn.Linear, linear_classifier(model))
    facts: dict[str, Any] = {}
    head: Head | None = None
    if world.is_main:
        begun = time.perf_counter()
        own = Features(run, setup, watcher, clock)
        source = shared or own
        waited = source.waited
        with SignalFlag() as interrupted, probe_memory_named():
            features = source.read(model, world.device, interrupted)
            rows = own.rows  # once they are read, since there may be fewer
            features = features[:, torch.from_numpy(np.searchsorted(source.rows, rows))]
            read, views = time.perf_counter() - begun, len(features) - 1
            head = _fitted(features, setup, rows, source.spec)
            _check(interrupted)
        seconds = time.perf_counter() - begun
        facts = {
            "train_loss": head.train_loss,
            "train_accuracy": head.train_accuracy,
            "images_per_second": len(rows) * (views + 1) / read,
            "seconds": seconds,
            "data_share": (source.waited - waited) / seconds,
        }
        watcher.note(
            f"probe: a linear head on the features of {len(rows):,} images"
            + (f" and {console.plural(views, 'augmented view')} of each" if views else "")
            + f", strength {head.strength:.2g}, {seconds:.0f} s"
        )
    head = cast(Head, distributed.from_main(head, world))
    run.recipe = distributed.from_main(run.recipe, world)
    with torch.no_grad():
        layer.weight.copy_(head.weight)
        layer.bias.copy_(head.bias)
    return facts


def _check(interrupted: SignalFlag) -> None:
    if interrupted.name is not None:
        raise TrainingInterruptedError(
            f"stopped by {interrupted.name} in the probe", "its features are saved; resume with --resume"
        )


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


def _parts(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _key(run: Run, setup: Setup) -> str:
    """A key of everything that features depend on, so that features of another recipe or machine are not reused."""
    recipe = run.recipe
    spec = recipe.train
    said = [
        _FILES, recipe.model_dump(mode="json", include={"data", "augment", "model"}), spec.precision, spec.seed,
        spec.channels_last, setup.splits.fingerprint, torch.__version__, torch.get_num_threads(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
