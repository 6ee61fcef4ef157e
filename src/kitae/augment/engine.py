"""`Augment`: ops in, augmented batches out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kitae.augment.ops import CustomOp, Op
from kitae.augment.plan import Draw, Pipeline, Program, plan_sample
from kitae.augment.spec import MixSpec, make_op
from kitae.errors import AugmentError

Layout = Literal["nchw", "nhwc"]


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _colour(values: Any, name: str) -> tuple[float, ...] | None:
    if values is None:
        return None
    out = tuple(float(v) for v in np.atleast_1d(np.asarray(values, np.float64)))
    if len(out) not in (1, 3) or not all(np.isfinite(out)):
        raise AugmentError(f"{name} must be 1 or 3 finite numbers in units of [0, 1], not {values}")
    if name == "std" and min(out) <= 0:
        raise AugmentError(f"std must be above 0, not {values}")
    return out


class Augment:
    """Augments whole uint8 batches, each sample by its own keyed draws.

        aug = Augment([{"random_crop": {"padding": 4}}, "horizontal_flip", {"color_jitter": {"brightness": 0.2}}],
                      seed=0, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
        for epoch in range(30):
            for images, labels, index in loader:           # uint8 [N, C, H, W], int64 [N], int64 [N]
                images = aug(images, epoch=epoch, index=index)

    What sample `index` gets in `epoch` depends on (seed, epoch, index) alone: not on the batch it comes in, its place
    there, threads, workers, processes or device. `index` is any number that names the sample, usually its row in the data
    set; the global generators of torch, NumPy and Python are neither used nor touched.

    As a DataLoader's `collate_fn`, where the data set yields (image uint8 [C, H, W], label, index):

        loader = DataLoader(data, batch_size=128, num_workers=4, persistent_workers=True, collate_fn=aug.collate(epoch=0))

    `collate` says how the epoch reaches workers that outlive it.

    Args:
        ops: objects of `kitae.augment.ops`, names, or mappings as in a recipe; a torchvision transform (or any function
            on a uint8 [C, H, W] tensor) may stand among them.
        seed: in [0, 2**64).
        mean, std: per channel, of pixel values in [0, 1]; both or neither. With them the result is (x / 255 - mean) / std,
            else uint8. Erasing without a value then writes 0 after normalisation, the mean colour; in uint8 it writes 0.
        mix: a `MixSpec` or its mapping: MixUp and CutMix within the pairs (0, 1), (2, 3), ... of the batch. In uint8 the
            result is rounded to the nearest level, halves up.
        num_classes: width of the targets that are made of integer labels.
        threads: of the CPU executor; by default the CPUs this process may use, and 1 in a DataLoader worker.
        executor: `cpu` (compiled kernels), `torch` (batched torch ops, any device), `auto`: torch for tensors that are
            not on the CPU, cpu for the rest.
        dtype: float32 or bfloat16 of normalised images. bfloat16 needs torch tensors.
        channels_last: the result [N, C, H, W] lies in memory as [N, H, W, C] (torch.channels_last).
        layout: of the images given: `nchw`, or `nhwc` for [N, H, W, C]. The result is [N, C, H, W] always.

    Raises:
        AugmentError: an unknown op, a parameter out of range, settings that contradict each other.
    """

    def __init__(
        self,
        ops: Sequence[Op | str | Mapping[str, Any] | Callable[..., Any]] = (),
        *,
        seed: int = 0,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        mix: MixSpec | Mapping[str, Any] | None = None,
        num_classes: int | None = None,
        threads: int | None = None,
        executor: Literal["auto", "cpu", "torch"] = "auto",
        dtype: Literal["float32", "bfloat16"] = "float32",
        channels_last: bool = False,
        layout: Layout = "nchw",
    ) -> None:
        if isinstance(ops, str | Mapping | Op):
            raise AugmentError(f"ops is a list of ops, not {ops!r}")
        self.ops: tuple[Op, ...] = tuple(_op(entry) for entry in ops)
        if not isinstance(seed, int | np.integer) or not 0 <= int(seed) < 2**64:
            raise AugmentError(f"seed must be an integer in [0, 2**64), not {seed!r}")
        self.seed = int(seed)
        self.mean, self.std = _colour(mean, "mean"), _colour(std, "std")
        if (self.mean is None) != (self.std is None):
            raise AugmentError("mean and std come together: give both, or neither for uint8 results")
        if isinstance(mix, Mapping):
            try:
                mix = MixSpec(**mix)
            except ValueError as error:
                raise AugmentError(f"mix: {str(error).splitlines()[-2].strip()}") from None
        self.mix = mix
        if num_classes is not None and num_classes < 1:
            raise AugmentError(f"num_classes must be at least 1, not {num_classes}")
        self.num_classes = num_classes
        if threads is not None and threads < 1:
            raise AugmentError(f"threads must be at least 1, not {threads}")
        self.threads = threads
        for name, value, valid in (
            ("executor", executor, ("auto", "cpu", "torch")),
            ("dtype", dtype, ("float32", "bfloat16")),
            ("layout", layout, ("nchw", "nhwc")),
        ):
            if value not in valid:
                raise AugmentError(f"{name} must be one of {', '.join(valid)}, not {value!r}")
        self.executor, self.layout, self.channels_last = executor, layout, channels_last
        self.dtype = dtype if self.mean is not None else "uint8"
        self._pipelines: dict[tuple[int, int, int], Pipeline] = {}
        self._executors: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pipelines": {}, "_executors": {}}  # a spawned worker builds its own

    # Pieces ------------------------------------------------------------------------------------------------------

    def pipeline(self, channels: int, height: int, width: int) -> Pipeline:
        """What the ops mean for images of this size."""
        key = (channels, height, width)
        found = self._pipelines.get(key)
        if found is None:
            if self.mean is not None and len(self.mean) not in (1, channels):
                raise AugmentError(f"mean has {len(self.mean)} channels, the images have {channels}")
            found = Pipeline.make(self.ops, channels, height, width, self.mean, self.mix)
            self._pipelines[key] = found
        return found

    def _executor(self, pipeline: Pipeline, first: bool, last: bool) -> Any:
        key = (id(pipeline), first, last)
        found = self._executors.get(key)
        if found is None:
            from kitae.augment.cpu import Executor

            mean, std = self.mean or (0.0,), self.std or (1.0,)
            found = Executor(
                pipeline,
                seed=self.seed,
                scale=[1.0 / (255.0 * s) for s in std],
                shift=[-m / s for m, s in zip(mean, (std * 3)[: len(mean)], strict=True)],
                dtype=self.dtype if last else "uint8",
                channels_last=self.channels_last and last,
                interleaved=self.layout == "nhwc" and first,
                threads=self.threads,
            )
            self._executors[key] = found
        return found

    # Calls -------------------------------------------------------------------------------------------------------

    def __call__(self, images: Any, targets: Any = None, *, epoch: Any, index: Any) -> Any:
        """Augment a batch.

        Args:
            images: uint8 [N, C, H, W] (or [N, H, W, C], see `layout`), C 1 or 3; NumPy or torch. Never changed.
            targets: int64 [N] labels, or float32 [N, K].
            epoch: integer in [0, 2**32), or one a sample.
            index: int64 [N] in [0, 2**63).

        Returns:
            images [N, C, H', W'], of the kind given (NumPy or torch, same device); with targets, (images, targets) where
            targets are float32 [N, K].

        Raises:
            AugmentError: wrong type, shape, channels, or lengths.
        """
        batch, tensor = self._images(images)
        count = len(batch)
        keys = _keys(epoch, index, count)
        labels, classes = self._targets(targets, count)
        c, h, w = batch.shape[1:] if self.layout == "nchw" else (batch.shape[3], *batch.shape[1:3])
        pipeline = self.pipeline(c, h, w)
        if pipeline.custom:
            raise NotImplementedError
        out, mixed = self._executor(pipeline, True, True)(batch, *keys, labels, classes)
        result = self._wrap(out, tensor)
        if targets is None:
            return result
        if tensor is not None:
            import torch

            return result, torch.from_numpy(mixed).to(tensor.device)
        return result, mixed

    def _wrap(self, out: NDArray[Any], tensor: Any) -> Any:
        if tensor is None:
            if self.dtype == "bfloat16":
                raise AugmentError("dtype bfloat16 needs torch tensors; NumPy has no such type")
            return out.transpose(0, 3, 1, 2) if self.channels_last else out
        import torch

        result = torch.from_numpy(out)
        if self.dtype == "bfloat16":
            result = result.view(torch.bfloat16)
        return result.permute(0, 3, 1, 2) if self.channels_last else result

    def _images(self, images: Any) -> tuple[NDArray[np.uint8], Any]:
        tensor = images if _is_torch(images) else None
        if tensor is not None:
            import torch

            if tensor.dtype != torch.uint8:
                raise AugmentError(f"images must be uint8, not {str(tensor.dtype).removeprefix('torch.')}")
            images = tensor.detach().numpy()
        elif not isinstance(images, np.ndarray):
            raise AugmentError(f"images must be a NumPy array or a torch tensor, not {type(images).__name__}")
        if images.dtype != np.uint8:
            raise AugmentError(f"images must be uint8, not {images.dtype}")
        shape = "[N, C, H, W]" if self.layout == "nchw" else "[N, H, W, C]"
        if images.ndim != 4:
            raise AugmentError(f"images must be {shape}, not {list(images.shape)}")
        channels = images.shape[1 if self.layout == "nchw" else 3]
        if channels not in (1, 3):
            raise AugmentError(
                f"images must have 1 or 3 channels in {shape}, not {channels} (shape {list(images.shape)})"
            )
        if 0 in images.shape[1:]:
            raise AugmentError(f"images are empty: shape {list(images.shape)}")
        return np.ascontiguousarray(images), tensor

    def _targets(self, targets: Any, count: int) -> tuple[NDArray[Any] | None, int]:
        if targets is None:
            return None, 0
        array = targets.detach().cpu().numpy() if _is_torch(targets) else np.asarray(targets)
        if len(array) != count or array.ndim not in (1, 2):
            raise AugmentError(f"targets must be [N] or [N, K] with N = {count}, not {list(array.shape)}")
        if array.ndim == 2:
            if array.dtype.kind != "f":
                raise AugmentError(f"targets [N, K] must be float32, not {array.dtype}")
            return np.ascontiguousarray(array, np.float32), array.shape[1]
        if array.dtype.kind not in "iu":
            raise AugmentError(f"targets [N] must be integer labels, not {array.dtype}")
        if self.num_classes is None:
            raise AugmentError("integer targets need num_classes; or give float32 [N, K]")
        if count and not (0 <= int(array.min()) and int(array.max()) < self.num_classes):
            raise AugmentError(f"targets must be in [0, {self.num_classes}), not {array.min()} to {array.max()}")
        return np.ascontiguousarray(array, np.int64), self.num_classes

    def explain(self, *, epoch: int, index: int, size: tuple[int, int] = (224, 224), channels: int = 3) -> list[str]:
        """What will happen to one sample, step by step, in words. size: height and width of the image."""
        return plan_sample(self.pipeline(channels, *size), self.seed, epoch, index).describe(0)


def _keys(epoch: Any, index: Any, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows = _integers(index, "index", 2**63)
    if rows.ndim != 1 or len(rows) != count:
        raise AugmentError(f"index must be one integer a sample, [{count}], not {list(rows.shape)}")
    epochs = _integers(epoch, "epoch", 2**32)
    if epochs.ndim == 0:
        return np.full(count, epochs, np.int64), rows
    if epochs.shape != (count,):
        raise AugmentError(f"epoch must be an integer or one a sample, [{count}], not {list(epochs.shape)}")
    return epochs, rows


def _integers(value: Any, name: str, limit: int) -> NDArray[np.int64]:
    array = value.detach().cpu().numpy() if _is_torch(value) else np.asarray(value)
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu":
        raise AugmentError(f"{name} must be integer, not {array.dtype}")
    if int(array.min()) < 0 or int(array.max()) >= limit:
        raise AugmentError(f"{name} must be in [0, {limit}), not {array.min()} to {array.max()}")
    return np.asarray(array, np.int64, order="C")


def _op(entry: Any) -> Op:
    return make_op(entry)


__all__ = ["Augment", "CustomOp", "Draw", "Program"]
