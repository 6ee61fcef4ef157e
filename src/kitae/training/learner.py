"""One training step: forward, loss, backward, and at the end of an update the optimizer, the average and the scaler."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kitae import keyed
from kitae.modes import GENERATORS
from kitae.training import distributed
from kitae.training.batches import EpochShape
from kitae.training.checkpoint import Progress
from kitae.training.depthwise import DepthwiseGradients, depthwise_layers
from kitae.training.distributed import World
from kitae.training.guards import compilation_named
from kitae.training.losses import distillation_loss, target_accuracy
from kitae.training.muon import Muon
from kitae.training.optim import AveragedWeights, build_optimizer, fill_momentum, set_learning_rate
from kitae.training.precision import Precision, autocast, fast_depthwise, float_depthwise
from kitae.training.schedule import planned_step, rate_factor, size_at
from kitae.training.spec import TrainSpec


@dataclass(frozen=True)
class Teacher:
    """Learn from another model as well: loss = (1 - weight) * loss + weight * distillation (Hinton et al. 2015)."""

    model: nn.Module
    weight: float = 0.5
    temperature: float = 4.0


@dataclass(frozen=True)
class Step:
    """Result of a step: mean loss of the batch, target mass on the predicted classes (a sum), and whether it counted.

    A step that was not finite is skipped, and does not change weights, averages or BatchNorm's statistics. In fp16, a
    step whose gradients overflow leaves the weights, but counts: overflows are usual while the scale is adjusted. All
    three are 0-d tensors on the device; reading one waits for the step.
    """

    loss: Tensor
    correct: Tensor
    healthy: Tensor


class Learner:
    """A network in training, with everything that a step changes. Steps must run inside `with learner:`.

    Attributes:
        model: the network whose parameters are trained.
        average: its averaged weights, or None.
        judged: the model that is validated, kept and exported: the average if there is one.
        modules: what a checkpoint holds the weights of: `model`, and the average as `ema`.
        optimizer, scaler: torch's; the scaler is only used in fp16.
        asynchronous: whether the device decides to skip a step, so that the host need not wait. That requires a fused
            optimizer or Muon, and not fp16, whose scaler decides on the host; on a CPU it has no advantage.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: TrainSpec,
        shape: EpochShape,
        world: World,
        precision: Precision,
        *,
        layers: Sequence[Sequence[str]] = (),
        class_weights: NDArray[np.float32] | None = None,
        teacher: Teacher | None = None,
        after_step: Callable[[nn.Module], None] | None = None,
    ) -> None:
        self.model, self.spec, self.shape, self.world, self.precision = model, spec, shape, world, precision
        self.optimizer = build_optimizer(model, spec.optimizer, layers)
        self.average = AveragedWeights(model, spec.ema) if spec.ema is not None else None
        self.judged = self.average.model if self.average else model
        self.modules = {"model": model} | ({"ema": self.average.model} if self.average else {})
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=precision == "fp16")
        skips = isinstance(self.optimizer, Muon) or all(group.get("fused") for group in self.optimizer.param_groups)
        self.asynchronous = world.device.type == "cuda" and skips and precision != "fp16"
        self._weight = None if class_weights is None else torch.from_numpy(class_weights).to(world.device)
        self._teacher, self._after_step = teacher, after_step
        self._forward: Callable[[Tensor], Tensor] = model  # also with DDP and torch.compile around it
        self._parallel: nn.parallel.DistributedDataParallel | None = None

    def __enter__(self) -> Learner:
        """Set up DDP, torch.compile and the precision, after the initial weights are loaded."""
        device = self.world.device
        fast = fast_depthwise(self.precision, device) and not self.spec.compile
        self._hooks = [] if fast else float_depthwise(self.model, self.precision, device)
        self._gradients = DepthwiseGradients() if fast and depthwise_layers(self.model) else contextlib.nullcontext()
        self._unsync = distributed.sync_batchnorm(self.model, self.world) if self.spec.sync_bn else None
        if self._forward is self.model:  # else it was entered before, and would compile its compiled network again
            if self.world.size > 1:
                ids = [device.index] if device.type == "cuda" else None
                self._forward = self._parallel = nn.parallel.DistributedDataParallel(self.model, device_ids=ids)
            if self.spec.compile:
                self._forward = torch.compile(self._forward)
        self._buffers = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        if self._buffers:  # copies that share one flat tensor
            self._flat_before = torch.cat([buffer.flatten() for buffer in self._buffers])
            self._buffers_before = _cut(self._flat_before, self._buffers)
        if self.asynchronous or self.precision == "fp16":  # whose scaler leaves the skipping to a fused optimizer
            fill_momentum(self.optimizer)
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            self._generators.append(torch.cuda.default_generators[device.index or 0])
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        if self._unsync is not None:
            self._unsync()

    @contextlib.contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """Seed the global generators, and restore what other threads and the program itself draw from."""
        with GENERATORS:
            before = [generator.get_state() for generator in self._generators]
            try:
                for generator in self._generators:
                    generator.manual_seed(seed)
                yield
            finally:
                for generator, state in zip(self._generators, before, strict=True):
                    generator.set_state(state)

    def step(self, images: Tensor, targets: Tensor, at: Progress) -> Step:
        """Learn from this process's part of a batch, number `at.step` of epoch `at.epoch`.

        At the end of an update `at.updates` goes up; nothing else of `at` changes.

        Args:
            images: float [b, C, H, W]; targets: float32 [b, K]; both on the device.
        """
        if self._buffers:  # saved, since a skipped step must not change BatchNorm's statistics
            torch._foreach_copy_(self._buffers_before, self._buffers)
        full = images.shape[2], images.shape[3]
        images = shrunk(images, size_at(full, at.updates, self.spec, self.shape.updates))
        last = (at.step + 1) % self.shape.accumulate == 0
        number = at.epoch * self.shape.steps + at.step
        seed = keyed.derive_seed(self.spec.seed, self.world.rank, number, keyed.SLOT_STEP)
        # Processes exchange gradients once per update, at its last batch.
        exchange = contextlib.nullcontext() if last or self._parallel is None else self._parallel.no_sync()
        with exchange, compilation_named() if self.spec.compile else contextlib.nullcontext():
            with self._seeded(seed), autocast(self.precision, self.world.device), self._gradients:
                logits = self._forward(images)
                loss = self._loss(images, logits, targets)
            share = loss if self.shape.accumulate == 1 else loss / self.shape.accumulate
            self.scaler.scale(share).backward()  # type: ignore[no-untyped-call]
        loss = loss.detach()
        correct = target_accuracy(logits.detach(), targets).sum(dtype=torch.float64)
        if self.asynchronous:
            healthy = self._update_on_device(loss, last, at)
        else:
            healthy = torch.tensor(self._decided(math.isfinite(loss.item()), last, at), device=self.world.device)
        if last:
            self.optimizer.zero_grad(set_to_none=True)
            at.updates += 1
        return Step(loss, correct, healthy)

    def _decided(self, healthy: bool, last: bool, at: Progress) -> bool:
        """Decide on the host whether the step counts, and make the update if this is its last batch."""
        if last:
            healthy = self._update(healthy, at)
        elif distributed.any_true(not healthy, self.world):
            healthy = False
            self.optimizer.zero_grad(set_to_none=True)
        if not healthy and self._buffers:
            torch._foreach_copy_(self._buffers, self._buffers_before)
        return healthy

    @property
    def learning_rate(self) -> float:
        """The rate of the last update, before the scales of layers."""
        group = self.optimizer.param_groups[-1]
        return float(group["lr"] / group["scale"])

    def _loss(self, images: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        # In float32, since half precision has too few digits. The mean is over samples, not over class weights.
        eps = self.spec.label_smoothing
        if self._weight is not None:
            # A sample weighs as much as its own class. With torch's `weight`, what smoothing gives to other classes is
            # multiplied by theirs: beside a class 99 times rarer, the best answer to any image would be the rare one.
            targets = targets * self._weight
            targets = (1 - eps) * targets + eps / targets.shape[1] * targets.sum(dim=1, keepdim=True)
            eps = 0.0
        loss = nn.functional.cross_entropy(logits.float(), targets, label_smoothing=eps)
        if self._teacher is None:
            return loss
        with torch.no_grad():
            taught = self._teacher.model(images)
        lesson = distillation_loss(logits, taught, self._teacher.temperature)
        return (1 - self._teacher.weight) * loss + self._teacher.weight * lesson

    def _update(self, healthy: bool, at: Progress) -> bool:
        """The optimizer's step, unless a loss or gradient of any process is not finite."""
        self.scaler.unscale_(self.optimizer)
        norm = self._gradient_norm()
        # fp16's scaler checks gradients itself, and overflows are normal while it adjusts its scale.
        if self.precision != "fp16" or self.scaler.get_scale() < 1:
            healthy = healthy and math.isfinite(norm.item())
        healthy = not distributed.any_true(not healthy, self.world)
        if healthy:
            self._prepare(norm, at)
            self.scaler.step(self.optimizer)
            if self._after_step is not None:
                self._after_step(self.model)
            if self.average is not None:
                self.average.update(self.model, at.updates)
        self.scaler.update()
        return healthy

    def _update_on_device(self, loss: Tensor, last: bool, at: Progress) -> Tensor:
        """`_decided` for a host that runs ahead: the device decides, and a step that does not count changes nothing.

        On small images, a GPU is limited by the host's time, so tensors are processed together and not one by one.
        """
        norm = self._gradient_norm() if last else torch.zeros_like(loss)
        # Neither is negative, so the sum is finite if both are.
        unhealthy = distributed.all_sum((~torch.isfinite(loss + norm)).float(), self.world).clamp(max=1)
        healthy = unhealthy == 0
        if self._buffers:
            now = torch.cat([buffer.flatten() for buffer in self._buffers])
            kept = torch.where(healthy, now, self._flat_before)
            torch._foreach_copy_(self._buffers, _cut(kept, self._buffers))
        if not last:  # what the update has gathered so far is dropped if this batch does not count
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(~healthy, 0)
            return healthy
        self._prepare(norm, at)
        # As GradScaler does: the optimizer makes no step if this is 1.
        self.optimizer.found_inf = unhealthy  # type: ignore[attr-defined]
        self.optimizer.step()
        if self._after_step is not None:
            self._after_step(self.model)
        if self.average is not None:
            self.average.update(self.model, at.updates, healthy)
        return healthy

    def _gradient_norm(self) -> Tensor:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return norm

    def _prepare(self, norm: Tensor, at: Progress) -> None:
        """Clip the gradients and set the learning rate of the update."""
        spec, per_epoch = self.spec, self.shape.updates
        if spec.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), spec.clip_norm, norm)
        planned = planned_step(at.updates, spec, per_epoch)
        factor = rate_factor(planned, spec=spec.schedule, steps_per_epoch=per_epoch, epochs=spec.epochs)
        set_learning_rate(self.optimizer, spec.optimizer.lr * factor)


def shrunk(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [N, C, H, W] at a smaller height and width; unchanged if they already have that size."""
    if size == (images.shape[2], images.shape[3]):
        return images
    return nn.functional.interpolate(images, size, mode="bilinear", antialias=True)


def _cut(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A flat tensor as parts with the shapes of `like`."""
    parts = torch.split(flat, [tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]
