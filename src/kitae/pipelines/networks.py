"""The networks of a compression: pruned and fine-tuned, trained for 8 bits, and the controls.

Every training is saved under a key of everything that its weights depend on, so that no training is repeated with
another budget, or when the same command is run again after an interruption.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import kitae
from kitae.compression.channels import remove_channels, whole_packs
from kitae.compression.counting import prunable_layers, require_layers, weight_of, widths_of
from kitae.compression.masks import Gradual, apply_masks, magnitude_masks, most
from kitae.compression.qat import Simulated
from kitae.compression.reconstruct import reconstruct
from kitae.compression.shape import UNCHANGED, Shape, difference, reshape
from kitae.compression.spec import CompressSpec
from kitae.errors import CompressionError, TrainingError
from kitae.models.build import build_seeded, supports
from kitae.models.spec import ModelSpec
from kitae.pipelines.setup import Setup, begin, placed
from kitae.run import Run
from kitae.training.batches import epoch_shape
from kitae.training.checkpoint import load_weights, save_weights
from kitae.training.fit import Tuning, Unwatched
from kitae.training.learner import Teacher

Say = Callable[[str], None]

_FORMAT = 12  # increased when the same settings give different networks than before
_WIDTHS = (4, 6, 8, 12, 16, 20, 24, 32, 48, 64)  # of the small networks


@dataclass(frozen=True)
class Network:
    """A network of the search.

    Attributes:
        ratio: share of channels or weights removed.
        shape: rebuilds it from the run's network.
        key: identifies its weights among all networks that can be made from this run.
        control: the name of a network that is only for comparison.
        masked_error: as in `Pruned`; None where no channel was removed.
    """

    ratio: float
    model: nn.Module
    shape: Shape
    key: str = ""
    control: str = ""
    masked_error: float | None = None

    @property
    def name(self) -> str:
        """Its name in the tables, without the precision."""
        return self.control or percent(self.ratio)


def percent(ratio: float) -> str:
    """A pruning ratio as text."""
    return "original" if ratio == 0 else f"{100 * ratio:g} %"


class Networks:
    """Trains the networks of one compression, through the run's own training loop.

    Args:
        folder: where fine-tuned networks are kept.
        say: called with lines of progress.

    Attributes:
        original: the run's best network; never changed.

    Raises:
        CompressionError: a field names a layer that the network does not have, or that cannot be pruned.
        TrainingError: the run has no best model.
    """

    def __init__(self, run: Run, spec: CompressSpec, folder: Path, say: Say) -> None:
        self.run, self.spec, self.folder, self.say = run, spec, folder, say
        self.world = begin(run.recipe.train)
        self.device = self.world.device
        model = run.load_model(free=True).to(self.device)
        self.setup = Setup.of(run)
        origin = run.best.read_bytes() + f"{self.setup.store.fingerprint}{run.recipe.training_fingerprint}".encode()
        self._origin = hashlib.sha256(origin).hexdigest()
        layers = prunable_layers(model)
        require_layers(layers, spec.layer_ratios, "layer_ratios: ")
        require_layers(layers, spec.skip, "skip: ")
        self.original = Network(0.0, model, UNCHANGED, self._key([]))
        self._teacher = _teacher(model) if spec.distill else None
        self._batches = partial(self.setup.clean_batches, self.device)
        self.input_shape = run.rules.shape

    def prune(self, reached: Sequence[Network], ratio: float, *, like: Network | None = None) -> Network | None:
        """The next network: pruned from the last of `reached` to `ratio` of the original, and fine-tuned.

        Args:
            reached: the original and what was pruned from it so far.
            like: leave each layer as many channels as this network has, and choose them at random; for the control.

        Returns:
            None if rounding to packs of channels removes nothing.

        Raises:
            CompressionError: it cannot be pruned as asked.
            TrainingError: fine-tuning diverged.
        """
        more = {} if like is None else {"like": like.key}
        key = self._key([network.ratio for network in reached[1:]] + [ratio], **more)

        def train() -> Network | None:
            if self.spec.prune == "structured":
                return self._cut(reached[-1], ratio, like, _seed(key))
            return self._masked(reached[-1], ratio, key)

        def build_for(shape: Shape) -> nn.Module:
            return reshape(self._fresh(self.run.recipe.model.trainable), shape)

        found = self._once(key, build_for, train)
        return None if found is None else replace(found, ratio=ratio)

    def aware(self, network: Network) -> Network:
        """The network after quantization-aware training; zeros of unstructured pruning stay zero.

        Raises:
            CompressionError: it cannot be traced.
            TrainingError: training diverged.
        """
        spec = self.spec
        key = self._key([], of=network.key, qat=[spec.qat_epochs, spec.qat_rate, spec.target])

        def train() -> nn.Module:
            simulated = Simulated(network.model, self.input_shape, spec.target).observe(self._batches)
            hold = _hold_zeros(simulated, network.model) if spec.prune == "unstructured" and network.ratio else None
            teacher = _teacher(network.model) if spec.distill else None
            # Before its first step it computes the same as the static file. A training that only makes it worse is
            # discarded.
            self._recover(
                simulated, spec.qat_epochs, spec.qat_rate, _seed(key), after_step=hold, teacher=teacher,
                keep="best or start",
            )  # fmt: skip
            return simulated.weights_into(network.model)

        return self._like(network, key, train)

    def further(self, epochs: int) -> Network:
        """The original, fine-tuned for as many epochs as a pruned network was, with the same teacher."""
        key = self._key([], original=epochs)

        def train() -> nn.Module:
            model = copy.deepcopy(self.original.model)
            return self._recover(model, epochs, self.spec.finetune_rate, _seed(key))

        return self._like(replace(self.original, control="trained further, original"), key, train)

    def from_scratch(self, network: Network, more: int) -> Network:
        """The shape of a pruned network, trained from initial weights."""
        fresh = reshape(self.setup.whitened(self._fresh(), self.run.recipe.model), network.shape)
        control = replace(network, model=fresh, control=f"from scratch, {network.name}")
        return self._scratch(control, more, self._key([], of=network.key, scratch=more))

    def small(self) -> dict[str, nn.Module]:
        """Untrained networks, the narrowest first: of the run's family if it supports widths, else ResNet-9s."""
        given = self.run.recipe.model
        family = given.name if supports(given.name, width=_WIDTHS[0]) else "resnet9"
        plain = given.unfrozen.model_copy(update={"name": family, "stem": "auto", "features": "last"})
        specs = [plain.model_copy(update={"width": width}) for width in _WIDTHS]
        return {
            f"{family} of width {spec.width}": self.setup.whitened(self._fresh(spec), spec).eval() for spec in specs
        }

    def small_from_scratch(self, title: str, model: nn.Module, more: int) -> Network:
        """A small network, trained from initial weights."""
        control = Network(0.0, model, UNCHANGED, control=f"small net, {title}")
        return self._scratch(control, more, self._key([], small=title, scratch=more))

    def _scratch(self, network: Network, more: int, key: str) -> Network:
        """Train with the run's recipe for `more` extra epochs, with the teacher of fine-tuning."""
        recipe = self.run.recipe.train
        if recipe.last_epoch + more == 0:
            raise CompressionError("the run and its fine-tuning have no epochs in which it could be trained")
        model = placed(network.model, recipe, self.world)

        def train() -> nn.Module:
            longer = recipe.lasting(recipe.last_epoch + more).model_copy(update={"seed": _seed(key)})
            watcher = _Epochs(self.say, longer.epochs)
            self.setup.fit(model, longer, self.world, watcher=watcher, tuning=Tuning(self._teacher))
            return model

        return self._like(network, key, train)

    def _recover(self, model: nn.Module, epochs: int, rate: float, seed: int, **options: Any) -> nn.Module:
        """Fine-tune in place; `options` are those of `Tuning`, with the original as the teacher by default."""
        options = {"teacher": self._teacher, **options}
        tuning, watcher = Tuning(**options), _Epochs(self.say, epochs)
        return self.setup.recover(model, epochs=epochs, rate=rate, seed=seed, tuning=tuning, watcher=watcher)

    def _fresh(self, spec: ModelSpec | None = None) -> nn.Module:
        run, recipe = self.run, self.run.recipe
        return build_seeded(spec or recipe.model.unfrozen, recipe.train.seed, len(run.classes), run.rules)

    # ---- what is kept -------------------------------------------------------------------------------------------

    def _key(self, ratios: Sequence[float], **more: Any) -> str:
        spec = self.spec
        matters = ("prune", "importance", "ranked", "skip", "layer_ratios", "round_to", "gradual", "finetune_epochs",
                   "finetune_rate", "distill", "reconstruct", "seed")  # fmt: skip
        facts = {name: getattr(spec, name) for name in matters} | {"ratios": list(ratios), "from": self._origin}
        facts["layer_ratios"] = list(spec.layer_ratios.items())  # in their order: of coupled layers the first counts
        facts |= {"format": _FORMAT, "kitae": kitae.__version__, **more}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def _like(self, network: Network, key: str, train: Callable[[], nn.Module]) -> Network:
        """The network with the weights that `train` gives a network of its shape."""
        found = self._once(key, lambda _: copy.deepcopy(network.model), lambda: Network(0.0, train(), UNCHANGED))
        assert found is not None
        return replace(network, model=found.model, key=key)

    def _once(
        self, key: str, build_for: Callable[[Shape], nn.Module], train: Callable[[], Network | None]
    ) -> Network | None:
        """The network of this key: loaded if an earlier search saved it, else trained and saved."""
        file = self.folder / f"{key}.safetensors"
        if file.is_file():
            with suppress(TrainingError, CompressionError, KeyError, ValueError, RuntimeError):  # damaged: replaced
                weights, facts = load_weights(file)
                model = build_for(shape := Shape.model_validate(facts["shape"]))
                model.load_state_dict(weights)
                return Network(0.0, model.to(self.device).eval(), shape, key, masked_error=facts["masked_error"])
        found = train()
        if found is None:
            return None
        found.model.eval()
        facts = {"shape": found.shape.model_dump(mode="json"), "masked_error": found.masked_error}
        save_weights(found.model.state_dict(), file, facts)
        return replace(found, key=key)

    # ---- pruning ------------------------------------------------------------------------------------------------

    def _cut(self, before: Network, ratio: float, like: Network | None, seed: int) -> Network | None:
        """Remove channels and fine-tune."""
        spec, original = self.spec, self.original.model
        full, now = (widths_of(model) for model in (original, before.model))
        ratios: float | dict[str, float] = ratio
        importance, scope, round_to = spec.importance, spec.ranked, spec.round_to
        if like is not None:
            importance, scope, round_to = "random", "layer", 1
            ratios = {name: 1 - width / now[name] for name, width in widths_of(like.model).items()}
        elif scope == "layer":
            # Computed from the original's widths, so that rounding errors do not accumulate from ratio to ratio.
            # Layers that were named come first: of coupled layers the first one counts.
            ratios, round_to = {}, 1
            for name, share in self._by_layer(original, ratio).items():
                width = full[name]
                fewest = max(width - most(width), round((1 - share) * width))
                stay = whole_packs(fewest, width, spec.round_to) if share else width
                ratios[name] = max(0.0, 1 - stay / now[name])
        result = remove_channels(
            before.model, self.input_shape, ratios, importance=importance, scope=scope, skip=spec.skip,
            required=[name for name, own in spec.layer_ratios.items() if own > 0], batches=self._batches,
            round_to=round_to, widths=full, seed=spec.seed,
        )  # fmt: skip
        if not result.removed:
            return None
        kept = dict(before.shape.kept)
        for name, positions in result.shape.kept.items():
            earlier = kept.get(name, tuple(range(full[name])))
            kept[name] = tuple(earlier[i] for i in positions)
        shape = difference(original, result.model, kept)
        reconstruct(before.model, result.model, result.removed, self._batches, weights=spec.reconstruct)
        if spec.finetune_epochs:  # from solved weights, it may only make the network worse
            self._recover(result.model, spec.finetune_epochs, spec.finetune_rate, seed, keep="best or start")
        return Network(ratio, result.model, shape, masked_error=result.masked_error)

    def _masked(self, before: Network, ratio: float, key: str) -> Network:
        """Set weights to zero and fine-tune."""
        spec = self.spec
        model, epochs, rate = copy.deepcopy(before.model), spec.finetune_epochs, spec.finetune_rate
        if spec.gradual:
            rising = max(1, round(epochs * 2 / 3))
            steps = epoch_shape(len(self.setup.splits.train), self.run.recipe.train, self.world.size).updates
            gradual = Gradual(
                ratio, rising * steps, every=max(1, steps // 10), scope=spec.ranked, skip=spec.skip,
                initial=before.ratio, masks=magnitude_masks(model, before.ratio, scope=spec.ranked, skip=spec.skip),
            )  # fmt: skip
            # The last epoch, not the best: the best is likely the first, before anything was pruned.
            self._recover(model, rising, rate, _seed(key, "rising"), after_step=gradual, keep="last")
            epochs -= rising
        shares = self._by_layer(model, ratio) if spec.ranked == "layer" else ratio
        masks = magnitude_masks(model, shares, scope=spec.ranked, skip=spec.skip)
        apply_masks(model, masks)
        reconstruct(before.model, model, {}, self._batches, weights=False)
        if epochs:
            hold = partial(apply_masks, masks=masks)
            self._recover(model, epochs, rate, _seed(key), after_step=hold)
        return Network(ratio, model, UNCHANGED)

    def _by_layer(self, model: nn.Module, ratio: float) -> dict[str, float]:
        """The ratio of each layer: its own if it has one, else `ratio`."""
        own = self.spec.layer_ratios
        others = {name: ratio for name in prunable_layers(model) if name not in own and name not in self.spec.skip}
        return {**own, **others}


def _seed(key: str, part: str = "") -> int:
    """The seed of a training, so that no two trainings, nor the run itself, see the same augmented epochs."""
    return int(hashlib.sha256(f"{key} {part}".encode()).hexdigest()[:8], 16)


def _teacher(model: nn.Module) -> Teacher:
    """A copy to learn from."""
    return Teacher(copy.deepcopy(model).eval().requires_grad_(False))


def _hold_zeros(simulated: Simulated, model: nn.Module) -> Callable[[nn.Module], None]:
    """Keep the zeros of `model` in the network that simulates its quantization."""
    gone = {f"{name}.weight": weight_of(layer) == 0 for name, layer in prunable_layers(model).items()}
    weights = {name: weight for name, weight in simulated.graph.named_parameters() if name in gone}

    def hold(_: nn.Module) -> None:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.masked_fill_(gone[name], 0.0)

    return hold


class _Epochs(Unwatched):
    """Prints one line per epoch."""

    def __init__(self, say: Say, epochs: int) -> None:
        self.say, self.epochs = say, epochs

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        shown = ""
        if "val_accuracy" in row:
            score = row["val_accuracy"]
            shown = f"{'no score' if score is None else f'{100 * score:.2f} %'} on validation, "
        self.say(f"  epoch {row['epoch']}/{self.epochs}: {shown}{row['images_per_second']:,.0f} images/s")

    def note(self, text: str) -> None:
        self.say(text)
