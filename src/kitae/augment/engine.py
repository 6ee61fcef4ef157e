"""`Augment`: ops in, augmented batches out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kitae.augment.checks import (
    Layout,
    as_batch,
    as_colour,
    as_keys,
    as_labels,
    as_size,
    check_program,
    is_torch,
    one_integer,
)
from kitae.augment.mix import mixed_targets
from kitae.augment.ops import CustomOp, Draw, Op, TransformOp
from kitae.augment.plan import Custom, Keys, Pipeline, Program, plan_sample
from kitae.augment.spec import MixSpec, make_op, validated
from kitae.errors import AugmentError

if TYPE_CHECKING:
    from kitae.augment.cpu import Executor

_MOST_SIZES = 1024  # of images that an Augment remembers; each takes some 5 KB


class Augment:
    """Augments whole uint8 batches, each sample by its own keyed draws.

        aug = Augment([{"random_crop": {"padding": 4}}, "horizontal_flip", {"color_jitter": {"brightness": 0.2}}],
                      seed=0, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
        for epoch in range(30):
            for images, labels, index in loader:           # uint8 [N, C, H, W], int64 [N], int64 [N]
                images = aug(images, epoch=epoch, index=index)

    Mixing aside, the result for sample `index` in `epoch` depends only on (seed, epoch, index): not on its batch, its
    position in the batch, threads, workers, processes or, up to rounding, the device. `index` is any integer that
    identifies the sample, usually its row in the data set; the global generators of torch, NumPy and Python are not
    used.

    See `Collate` for use as a DataLoader's `collate_fn`.

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
        threads: threads of the CPU executor; by default PyTorch's number, which is 1 in a DataLoader worker.
        executor: `cpu` (compiled kernels), `torch` (batched torch ops, any device), `auto`: torch for tensors that are
            not on the CPU, cpu for the rest.
        dtype: float32 or bfloat16 of normalised images. bfloat16 needs `mean` and `std`, and torch tensors.
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
        self.ops: tuple[Op, ...] = tuple(
            TransformOp(transform=entry) if callable(entry) and not isinstance(entry, Op | type) else make_op(entry)
            for entry in ops
        )
        if not isinstance(seed, int | np.integer) or not 0 <= int(seed) < 2**64:
            raise AugmentError(f"seed must be an integer in [0, 2**64), not {seed!r}")
        self.seed = int(seed)
        self._seen = (3, 224, 224)  # channels, height, width of the last batch
        self.mean, self.std = as_colour(mean, "mean"), as_colour(std, "std")
        if (self.mean is None) != (self.std is None):
            raise AugmentError("mean and std come together: give both, or neither for uint8 results")
        if isinstance(mix, Mapping):
            mix = validated(MixSpec, mix, "mix")
        if mix is not None and not isinstance(mix, MixSpec):
            raise AugmentError(f"mix must be a mapping or a MixSpec, such as {{'mixup_alpha': 1.0}}, not {mix!r}")
        self.mix = mix
        for name, count in (("num_classes", num_classes), ("threads", threads)):
            if count is not None and (not isinstance(count, int | np.integer) or count < 1):
                raise AugmentError(f"{name} must be an integer from 1 on, not {count!r}")
        self.num_classes, self.threads = num_classes, threads
        for name, value, valid in (
            ("executor", executor, ("auto", "cpu", "torch")),
            ("dtype", dtype, ("float32", "bfloat16")),
            ("layout", layout, ("nchw", "nhwc")),
        ):
            if value not in valid:
                raise AugmentError(f"{name} must be one of {', '.join(valid)}, not {value!r}")
        if dtype == "bfloat16" and self.mean is None:
            raise AugmentError("dtype bfloat16 needs mean and std: without them the result is uint8")
        self.executor, self.layout, self.channels_last = executor, layout, channels_last
        self.dtype = dtype if self.mean is not None else "uint8"
        self._pipelines: dict[tuple[int, int, int], Pipeline] = {}
        self._stages: dict[tuple[int, int, int], list[Executor | Custom]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pipelines": {}, "_stages": {}}  # a spawned worker builds its own

    # Pieces ------------------------------------------------------------------------------------------------------

    def pipeline(self, channels: int, height: int, width: int) -> Pipeline:
        """What the ops mean for images of this size."""
        key = (channels, height, width)
        made = self._pipelines.get(key)
        if made is None:
            if channels not in (1, 3) or not all(isinstance(n, int | np.integer) and n > 0 for n in (height, width)):
                raise AugmentError(f"images have 1 or 3 channels and whole sides from 1 on, not {list(key)}")
            for name, value in (("mean", self.mean), ("std", self.std)):
                if value is not None and len(value) not in (1, channels):
                    raise AugmentError(f"{name} has {len(value)} channels, the images have {channels}")
            if len(self._pipelines) >= _MOST_SIZES:  # where every image has its own size: start over
                self._pipelines.clear()
                self._stages.clear()
            made = Pipeline.make(self.ops, channels, height, width, self.mean, self.std, self.mix)
            self._pipelines[key] = made
        return made

    def _executors(self, pipeline: Pipeline) -> list[Executor | Custom]:
        """What runs a pipeline, part by part: compiled parts and, in between, users' ops."""
        key = (pipeline.channels, *pipeline.sizes[0])
        stages = self._stages.get(key)
        if stages is None:
            from kitae.augment.cpu import Executor

            parts = pipeline.segments()
            stages = self._stages[key] = [
                part
                if isinstance(part, Custom)
                else Executor(
                    part,
                    self.seed,
                    dtype=self.dtype if part is parts[-1] else "uint8",
                    channels_last=self.channels_last and part is parts[-1],
                    interleaved=self.layout == "nhwc" and part is parts[0],
                    threads=self.threads,
                )
                for part in parts
            ]
        return stages

    def prepare(self, channels: int, height: int, width: int) -> Augment:
        """Compile what images of this size need, before the first batch. Returns self."""
        for stage in self._executors(self.pipeline(channels, height, width)):
            if not isinstance(stage, Custom):
                stage.prepare()
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
        return self._apply(batch, targets, as_keys(epoch, index, step, len(batch)))

    def replay(self, images: Any, program: Program, targets: Any = None) -> Any:
        """Run a program made by `plan` on a batch, without drawing anything. Returns what a call returns."""
        batch = as_batch(images, self.layout)
        if any(isinstance(op, CustomOp) for op in self.ops):
            raise AugmentError("a pipeline with custom ops cannot be replayed: their draws are not in the program")
        return self._apply(batch, targets, check_program(program, self.pipeline(*self._size(batch)), len(batch)))

    def _size(self, batch: Any) -> tuple[int, int, int]:
        shape = batch.shape
        return (shape[1], shape[2], shape[3]) if self.layout == "nchw" else (shape[3], shape[1], shape[2])

    def _apply(self, batch: Any, targets: Any, source: Keys | Program) -> Any:
        given_torch = is_torch(batch)
        labels = as_labels(targets, len(batch), self.num_classes)
        self._seen = self._size(batch)
        pipeline = self.pipeline(*self._seen)
        if pipeline.mixing is not None and labels is None:
            raise AugmentError("mix needs targets: aug(images, targets, ...)")
        if self.dtype == "bfloat16" and not given_torch:
            raise AugmentError("dtype bfloat16 needs torch tensors; NumPy has no such type")
        on_cpu = not given_torch or batch.device.type == "cpu"
        if self.executor == "cpu" and not on_cpu:
            raise AugmentError("executor cpu needs images on the CPU")
        by = self._by_cpu if on_cpu and self.executor != "torch" else self._by_torch
        out, mix = by(batch, pipeline, source)
        if labels is None:
            return out
        mixed = mixed_targets(labels, self.num_classes, mix)
        like = targets if is_torch(targets) else batch
        if is_torch(like):
            import torch

            return out, torch.from_numpy(mixed).to(like.device)
        return out, mixed

    def _by_cpu(self, batch: Any, pipeline: Pipeline, source: Keys | Program) -> tuple[Any, Any]:
        """Augmented images, and how they are mixed: float64 [N, MIX] or None."""
        stages = self._executors(pipeline)
        array, mix = np.ascontiguousarray(batch.numpy() if is_torch(batch) else batch), None
        for stage in stages:
            if isinstance(stage, Custom):
                import torch

                images = torch.from_numpy(array.copy())
                if stage is stages[0] and self.layout == "nhwc":
                    images = images.permute(0, 3, 1, 2).contiguous()
                array = np.ascontiguousarray(self._custom(stage, images, source).numpy())
            else:
                array, mix = stage(array, source)
        if not is_torch(batch):
            return array.transpose(0, 3, 1, 2) if self.channels_last else array, mix
        import torch

        out = torch.from_numpy(array)
        out = out.view(torch.bfloat16) if self.dtype == "bfloat16" else out
        return out.permute(0, 3, 1, 2) if self.channels_last else out, mix

    def _by_torch(self, batch: Any, pipeline: Pipeline, source: Keys | Program) -> tuple[Any, Any]:
        """The same on the batch's own device."""
        import torch

        from kitae.augment import batched

        given = batch if is_torch(batch) else torch.from_numpy(np.array(batch))
        x = (given.permute(0, 3, 1, 2) if self.layout == "nhwc" else given).contiguous()
        erased, mix = None, None
        # A program is whole, and needs nothing compiled.
        stages: Sequence[Any] = self._executors(pipeline) if isinstance(source, Keys) else [None]
        for stage in stages:
            if isinstance(stage, Custom):
                x = self._custom(stage, x.clone(), source)
            else:
                program = stage.plan(source) if isinstance(source, Keys) else source
                part = stage.pipeline if stage is not None else pipeline
                x, erased = batched.run_steps(x, program, part.sizes[-1])
                mix = program.mix
        out: Any = batched.finish(x, erased, mix, pipeline, self.dtype, self.channels_last)
        if out.data_ptr() == given.data_ptr():
            out = out.clone(memory_format=torch.preserve_format)
        return out if is_torch(batch) else out.numpy(), mix

    def _custom(self, stage: Custom, images: Any, source: Keys | Program) -> Any:
        """Run a user's op on a tensor."""
        assert isinstance(source, Keys)  # such a pipeline is not replayed
        return stage.op.run(images, Draw(self.seed, source.epoch, source.index, stage.slot), stage.size)

    # Looking ahead -----------------------------------------------------------------------------------------------

    def plan(
        self, *, epoch: Any, index: Any, size: tuple[int, int], channels: int = 3, step: int | None = None
    ) -> Program:
        """The program of each sample, for images of `size` (height, width); `step` as in a call.

        A custom op appears as one step.
        """
        from kitae.augment.cpu import Executor

        return Executor(self.pipeline(channels, *as_size(size)), self.seed).plan(as_keys(epoch, index, step))

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
            step: number of its batch, as in a call; if that was given none, the first index of the batch.
        """
        seen, *seen_size = self._seen
        pipeline = self.pipeline(seen if channels is None else channels, *as_size(seen_size if size is None else size))
        epoch = one_integer(epoch, "epoch", 2**32)
        keys = as_keys(epoch, np.array([index]), step)
        program = plan_sample(pipeline, self.seed, epoch, int(keys.index[0]), keys.step)
        names = {pipeline.offsets[k]: repr(op) for k, op in enumerate(pipeline.ops) if isinstance(op, CustomOp)}
        return program.describe(0, names)

    def collate(self, *, epoch: int = 0) -> Collate:
        """A `collate_fn` for a DataLoader; see `Collate`."""
        return Collate(self, epoch)


class Collate:
    """Stacks samples and augments them, in whichever process calls it.

    The data set yields (image uint8 [C, H, W], label, index), or (image, index); NumPy or torch. The result is (images,
    targets) or images, torch. Targets are float32 [N, K] with `num_classes` or labels float32 [K], else int64 [N].

    The epoch lives in shared memory, so that persistent workers see it change.
    Set it before each pass over the loader:

        collate = aug.collate()
        loader = DataLoader(data, batch_size=128, num_workers=4, persistent_workers=True, collate_fn=collate)
        for epoch in range(30):
            collate.epoch = epoch
            for images, targets in loader: ...

    Samples do not depend on the number of workers. MixUp and CutMix pair neighbouring samples in the sampler's order.
    """

    def __init__(self, augment: Augment, epoch: int) -> None:
        import torch

        self.augment = augment
        # Not on torch's default device, which may be a GPU: workers share the memory of the CPU alone.
        self._epoch = torch.zeros(1, dtype=torch.int64, device="cpu").share_memory_()  # type: ignore[no-untyped-call]
        self.epoch = epoch

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()  # a copy is not shared, but forked workers must see it

    @property
    def epoch(self) -> int:
        """The epoch that samples are keyed by."""
        return int(self._epoch[0])

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._epoch[0] = one_integer(value, "epoch", 2**32)

    def __call__(self, samples: Sequence[Sequence[Any]]) -> Any:
        import torch

        if not samples or not isinstance(samples[0], Sequence) or len(samples[0]) not in (2, 3):
            raise AugmentError("the data set must yield (image, label, index) or (image, index)")
        try:
            pictures = [s[0] if is_torch(s[0]) else _tensor_of(s[0]) for s in samples]
        except (RuntimeError, TypeError, ValueError):  # a path, or an image of Pillow
            kind = type(samples[0][0]).__name__
            raise AugmentError(f"images must be torch tensors or NumPy arrays, uint8 [C, H, W], not {kind}") from None
        if len(shapes := {tuple(picture.shape) for picture in pictures}) > 1:
            a, b, *_ = (list(shape) for shape in sorted(shapes))
            raise AugmentError(f"the images of a batch must have one shape, not {a} and {b}: resize or convert them")
        images = torch.stack(pictures)
        index = [s[-1] for s in samples]
        if len(samples[0]) == 2:
            return self.augment(images, epoch=self.epoch, index=index)
        try:
            labels = torch.as_tensor(np.stack([np.asarray(s[1]) for s in samples]), device="cpu")
        except (TypeError, ValueError):  # words, None, or of different lengths
            first = samples[0][1]
            raise AugmentError(f"labels must be integers, or float32 [K] of one length, not {first!r}") from None
        mixes = self.augment.mix is not None and self.augment.mix.active
        if labels.ndim == 1 and self.augment.num_classes is None and not mixes:
            if labels.is_floating_point():
                raise AugmentError(f"labels must be integers, not {labels.dtype}")
            return self.augment(images, epoch=self.epoch, index=index), labels.to(torch.int64)
        return self.augment(images, labels, epoch=self.epoch, index=index)


def _tensor_of(image: Any) -> Any:
    """An image as a tensor that shares its memory, unless torch does not read its strides, or warns of its flags."""
    import torch

    if isinstance(image, np.ndarray) and (not image.flags.writeable or any(step < 0 for step in image.strides)):
        image = image.copy()
    return torch.as_tensor(image, device="cpu")
