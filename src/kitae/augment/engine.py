"""`Augment`: ops in, augmented batches out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kitae.augment.checks import (
    Layout,
    as_batch,
    as_colour,
    as_keys,
    as_labels,
    as_step,
    check_program,
    integers,
    is_torch,
    scale_and_shift,
)
from kitae.augment.draw import Draw
from kitae.augment.mix import mixed_targets
from kitae.augment.ops import CustomOp, Op, TransformOp
from kitae.augment.plan import Pipeline, Program, plan_sample
from kitae.augment.spec import MixSpec, make_op
from kitae.errors import AugmentError


class Augment:
    """Augments whole uint8 batches, each sample by its own keyed draws.

        aug = Augment([{"random_crop": {"padding": 4}}, "horizontal_flip", {"color_jitter": {"brightness": 0.2}}],
                      seed=0, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
        for epoch in range(30):
            for images, labels, index in loader:           # uint8 [N, C, H, W], int64 [N], int64 [N]
                images = aug(images, epoch=epoch, index=index)

    The result for sample `index` in `epoch` depends only on (seed, epoch, index): not on its batch, its position in
    the batch, threads, workers, processes or device. `index` is any number that identifies the sample, usually its row
    in the data set; the global generators of torch, NumPy and Python are not used.

    As a DataLoader's `collate_fn`, where the data set yields (image uint8 [C, H, W], label, index):

        loader = DataLoader(data, batch_size=128, num_workers=4, persistent_workers=True, collate_fn=aug.collate())

    See `Collate` for how the epoch reaches workers that live longer than it.

    Args:
        ops: objects of `kitae.augment.ops`, names, or mappings as in a recipe; a torchvision transform (or any function
            on a uint8 [C, H, W] tensor) may be among them.
        seed: in [0, 2**64).
        mean, std: per channel, of pixel values in [0, 1]; both or neither. With them the result is
            (x / 255 - mean) / std, and erasing without a value writes 0 after normalisation, which is the mean colour.
            Without them the result is uint8, and erasing writes 0.
        mix: a `MixSpec` or its mapping: MixUp and CutMix within the pairs (0, 1), (2, 3), ... of the batch. In uint8
            the result is rounded to the nearest level, halves up.
        num_classes: number of columns of the targets made from integer labels.
        threads: threads of the CPU executor; by default the CPUs this process may use, and 1 in a DataLoader worker.
        executor: `cpu` (compiled kernels), `torch` (batched torch ops, any device), `auto`: torch for tensors that are
            not on the CPU, cpu for the rest.
        dtype: float32 or bfloat16 of normalised images. bfloat16 needs torch tensors.
        channels_last: the result [N, C, H, W] is stored as [N, H, W, C] (torch.channels_last).
        layout: layout of the input: `nchw`, or `nhwc` for [N, H, W, C]. The result is always [N, C, H, W].

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
        if isinstance(ops, str | Mapping | Op) or not isinstance(ops, Iterable):
            raise AugmentError(f"ops is a list of ops, not {ops!r}")
        self.ops: tuple[Op, ...] = tuple(_op(entry) for entry in ops)
        if not isinstance(seed, int | np.integer) or not 0 <= int(seed) < 2**64:
            raise AugmentError(f"seed must be an integer in [0, 2**64), not {seed!r}")
        self.seed = int(seed)
        self._seen = (3, 224, 224)  # channels, height, width of the last batch
        self.mean, self.std = as_colour(mean, "mean"), as_colour(std, "std")
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
            for name, value in (("mean", self.mean), ("std", self.std)):
                if value is not None and len(value) not in (1, channels):
                    raise AugmentError(f"{name} has {len(value)} channels, the images have {channels}")
            found = Pipeline.make(self.ops, channels, height, width, self.mean, self.mix)
            self._pipelines[key] = found
        return found

    def _executor(self, pipeline: Pipeline, position: int, last: bool) -> Any:
        """The CPU executor of segment `position` of a pipeline."""
        key = (pipeline.channels, pipeline.height, pipeline.width, position)
        found = self._executors.get(key)
        if found is None:
            from kitae.augment.cpu import Executor

            normal = last and self.mean is not None
            scale, shift = scale_and_shift(self.mean, self.std) if normal else ([1.0], [0.0])
            found = Executor(
                pipeline,
                seed=self.seed,
                scale=scale,
                shift=shift,
                dtype=self.dtype if last else "uint8",
                channels_last=self.channels_last and last,
                interleaved=self.layout == "nhwc" and position == 0,
                threads=self.threads,
            )
            self._executors[key] = found
        return found

    def prepare(self, channels: int, height: int, width: int) -> Augment:
        """Compile what images of this size need, before the first batch. Returns self."""
        segments = self.pipeline(channels, height, width).segments()
        for position, part in enumerate(segments):
            if isinstance(part, Pipeline):
                self._executor(part, position, position == len(segments) - 1).prepare()
        return self

    # Calls -------------------------------------------------------------------------------------------------------

    def __call__(self, images: Any, targets: Any = None, *, epoch: Any, index: Any, step: int | None = None) -> Any:
        """Augment a batch.

        Args:
            images: uint8 [N, C, H, W] (or [N, H, W, C], see `layout`), C 1 or 3; NumPy or torch. Never changed.
            targets: int64 [N] labels, or float32 [N, K].
            epoch: integer in [0, 2**32), or one per sample.
            index: int64 [N] in [0, 2**63).
            step: number of the batch in its epoch, in [0, 2**63): the key of what is drawn once per batch (mixing with
                `per: batch`), so pass the same step for all parts of a batch. None is the batch's first index.

        Returns:
            images [N, C, H', W'], of the kind given (NumPy or torch, same device); with targets, (images, targets)
            where targets are float32 [N, K].

        Raises:
            AugmentError: wrong type, shape, channels, or lengths.
        """
        batch = as_batch(images, self.layout)
        epochs, rows = as_keys(epoch, index, batch.shape[0])
        return self._apply(batch, targets, epochs, rows, None, as_step(step, rows))

    def replay(self, images: Any, program: Program, targets: Any = None) -> Any:
        """Run a program made by `plan` on a batch, without drawing anything. Returns what a call returns."""
        batch = as_batch(images, self.layout)
        if any(isinstance(op, CustomOp) for op in self.ops):
            raise AugmentError("a pipeline with ops of your own cannot be replayed: their draws are not in the program")
        program = check_program(program, self.pipeline(*self._size(batch)), len(batch))
        return self._apply(batch, targets, None, None, program)

    def _size(self, batch: Any) -> tuple[int, int, int]:
        shape = batch.shape
        return (shape[1], shape[2], shape[3]) if self.layout == "nchw" else (shape[3], shape[1], shape[2])

    def _apply(
        self,
        batch: Any,
        targets: Any,
        epochs: int | NDArray[np.int64] | None,
        rows: NDArray[np.int64] | None,
        program: Program | None,
        step: int = 0,
    ) -> Any:
        tensor = batch if is_torch(batch) else None
        labels, classes = as_labels(targets, batch.shape[0], self.num_classes)
        self._seen = self._size(batch)
        pipeline = self.pipeline(*self._seen)
        if pipeline.mixing is not None and labels is None:
            raise AugmentError("mix needs targets: aug(images, targets, ...)")
        on_cpu = tensor is None or tensor.device.type == "cpu"
        if self.executor == "cpu" and not on_cpu:
            raise AugmentError("executor cpu needs images on the CPU")
        if self.executor == "torch" or not on_cpu:
            out, mixed = self._by_torch(batch, tensor, pipeline, labels, classes, epochs, rows, program, step)
        else:
            array = batch if tensor is None else tensor.numpy()
            array = np.ascontiguousarray(array)
            out, mixed = self._by_cpu(array, pipeline, labels, classes, epochs, rows, program, step)
            out = self._wrap(out, tensor is not None)
        if mixed is None:
            return out
        like = targets if is_torch(targets) else tensor
        if like is not None:
            import torch

            return out, torch.from_numpy(mixed).to(like.device)
        return out, mixed

    def _by_cpu(self, array: Any, pipeline: Pipeline, labels: Any, classes: int, epochs: Any, rows: Any,
                program: Program | None, step: int) -> tuple[Any, Any]:  # fmt: skip
        if not pipeline.custom:
            return self._executor(pipeline, 0, True)(array, epochs, rows, labels, classes, program, step)  # type: ignore[no-any-return]
        import torch

        segments = pipeline.segments()
        mixed = None
        for position, part in enumerate(segments):
            last = position == len(segments) - 1
            if isinstance(part, Pipeline):
                run = self._executor(part, position, last)
                array, mixed = run(array, epochs, rows, labels if last else None, classes, step=step)
            else:
                if position == 0 and self.layout == "nhwc":
                    array = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
                array = self._custom(pipeline, part, torch.from_numpy(np.array(array)), epochs, rows).numpy()
                array = np.ascontiguousarray(array)
        return array, mixed

    def _by_torch(self, batch: Any, tensor: Any, pipeline: Pipeline, labels: Any, classes: int, epochs: Any, rows: Any,
                  program: Program | None, step: int) -> tuple[Any, Any]:  # fmt: skip
        import torch

        from kitae.augment import batched

        x = tensor if tensor is not None else torch.from_numpy(np.array(batch))
        x = x.permute(0, 3, 1, 2) if self.layout == "nhwc" else x
        x = x.contiguous()
        erased, mix = None, None
        segments = pipeline.segments()
        for position, part in enumerate(segments):
            if isinstance(part, Pipeline):
                steps = program or self._executor(part, position, position == len(segments) - 1).plan(
                    epochs, rows, step
                )
                x, erased = batched.run_steps(x, steps)
                mix = steps.mix
            else:
                x = self._custom(pipeline, part, x.clone(), epochs, rows)
        scale, shift = scale_and_shift(self.mean, self.std) if self.mean is not None else ([1.0], [0.0])
        out: Any = batched.finish(x, erased, mix, scale, shift, self.dtype, self.channels_last)
        if tensor is not None and out.data_ptr() == tensor.data_ptr():
            out = out.clone(memory_format=torch.preserve_format)
        if tensor is None:
            if self.dtype == "bfloat16":
                raise AugmentError("dtype bfloat16 needs torch tensors; NumPy has no such type")
            out = out.numpy()
        return out, mixed_targets(labels, classes, mix)

    def _custom(self, pipeline: Pipeline, part: tuple[int, CustomOp], x: Any, epochs: Any, rows: Any) -> Any:
        """Run a user's op on a tensor."""
        k, op = part
        return op.run(x, Draw(self.seed, epochs, rows, pipeline.slots[k]), pipeline.sizes[k + 1])

    def _wrap(self, out: NDArray[Any], torch_out: bool) -> Any:
        if not torch_out:
            if self.dtype == "bfloat16":
                raise AugmentError("dtype bfloat16 needs torch tensors; NumPy has no such type")
            return out.transpose(0, 3, 1, 2) if self.channels_last else out
        import torch

        result = torch.from_numpy(out)
        if self.dtype == "bfloat16":
            result = result.view(torch.bfloat16)
        return result.permute(0, 3, 1, 2) if self.channels_last else result

    # Looking ahead -----------------------------------------------------------------------------------------------

    def plan(
        self, *, epoch: Any, index: Any, size: tuple[int, int], channels: int = 3, step: int | None = None
    ) -> Program:
        """The program of each sample, for images of `size` (height, width); `step` as in a call.

        Ops of your own show as one step.
        """
        rows = integers(index, "index", 2**63)
        epochs, rows = as_keys(epoch, rows, len(rows))
        pipeline = self.pipeline(channels, *size)
        from kitae.augment.cpu import Executor

        return Executor(pipeline, seed=self.seed, scale=[1.0], shift=[0.0], dtype="uint8").plan(
            epochs, rows, as_step(step, rows)
        )

    def __repr__(self) -> str:
        return f"Augment([{', '.join(map(repr, self.ops))}], seed={self.seed})"

    def explain(
        self, *, epoch: int, index: int, size: tuple[int, int] | None = None, channels: int | None = None,
        step: int | None = None,
    ) -> list[str]:  # fmt: skip
        """What happens to one sample, step by step, in words.

        Args:
            size, channels: of the image, height and width first; None takes those of the last batch, or 224 x 224 and 3
                before there was one.
            step: number of its batch, as in a call.
        """
        given = (channels or self._seen[0], *(size or self._seen[1:]))
        _, rows = as_keys(int(epoch), np.array([index]), 1)
        pipeline = self.pipeline(*given)
        program = plan_sample(pipeline, self.seed, int(epoch), int(rows[0]), as_step(step, rows))
        names = {pipeline.offsets[k]: repr(pipeline.ops[k]) for k in pipeline.custom}
        return program.describe(0, names)

    def collate(self, *, epoch: int = 0) -> Collate:
        """A `collate_fn` for a DataLoader; see `Collate`."""
        return Collate(self, epoch)


class Collate:
    """Stacks samples and augments them, in whichever process calls it.

    The data set yields (image uint8 [C, H, W], label, index), or (image, index); NumPy or torch. The result is (images,
    targets) or images, torch. With `num_classes` targets are float32 [N, K], else the labels as int64 [N].

    The epoch lives in shared memory, so that persistent workers see it change.
    Set it before each pass over the loader:

        collate = aug.collate()
        loader = DataLoader(data, batch_size=128, num_workers=4, persistent_workers=True, collate_fn=collate)
        for epoch in range(30):
            collate.epoch = epoch
            for images, targets in loader: ...

    Samples do not depend on the number of workers. Mixing pairs neighbours in the sampler's order.
    """

    def __init__(self, augment: Augment, epoch: int) -> None:
        import torch

        self.augment = augment
        self._epoch = torch.tensor([0], dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]
        self.epoch = epoch

    @property
    def epoch(self) -> int:
        """The epoch that samples are keyed by."""
        return int(self._epoch[0])

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._epoch[0] = int(integers(value, "epoch", 2**32))

    def __call__(self, samples: Sequence[Sequence[Any]]) -> Any:
        import torch

        if not samples or len(samples[0]) not in (2, 3):
            raise AugmentError("the data set must yield (image, label, index) or (image, index)")
        images = torch.stack([torch.as_tensor(s[0]) for s in samples])
        index = np.array([int(s[-1]) for s in samples], np.int64)
        if len(samples[0]) == 2:
            return self.augment(images, epoch=self.epoch, index=index)
        labels = torch.as_tensor(np.stack([np.asarray(s[1]) for s in samples]))
        if labels.ndim == 1 and self.augment.num_classes is None:
            return self.augment(images, epoch=self.epoch, index=index), labels.to(torch.int64)
        return self.augment(images, labels, epoch=self.epoch, index=index)


def _op(entry: Any) -> Op:
    if callable(entry) and not isinstance(entry, Op | type):
        return TransformOp(transform=entry)
    return make_op(entry)
