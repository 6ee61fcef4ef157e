"""Ops that users write in torch, with the keyed randomness they draw from, and torchvision transforms as ops."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kitae import keyed
from kitae.augment.ops.base import CUSTOM, Op, Site, Step
from kitae.errors import AugmentError
from kitae.modes import GENERATORS

if TYPE_CHECKING:
    import torch


class Draw:
    """Random numbers of an op, one per sample, by slot.

    The same slot gives the same numbers again; slots 0 to 63 belong to this op alone.

    Args:
        seed: in [0, 2**64).
        epoch: an integer in [0, 2**32), or one per sample.
        index: int64 [N] in [0, 2**63), which samples.
        first: the op's first slot, see `keyed.op_slot`.
    """

    def __init__(self, seed: int, epoch: int | NDArray[np.int64], index: NDArray[np.int64], first: int) -> None:
        self.seed, self.epoch, self.index, self._first = seed, epoch, index, first

    def _key(self, slot: int) -> tuple[int, int | NDArray[np.int64], NDArray[np.int64], int]:
        if not 0 <= slot < keyed.SLOTS_PER_OP:
            raise AugmentError(f"slot must be in [0, {keyed.SLOTS_PER_OP}), not {slot}")
        return self.seed, self.epoch, self.index, self._first + slot

    def uniform(self, slot: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """float64 [N] in [low, high)."""
        return low + (high - low) * keyed.uniform(*self._key(slot))

    def integers(self, slot: int, low: int, high: int) -> NDArray[np.int64]:
        """int64 [N] in [low, high), whose ends are at most 2**31 apart."""
        spread = np.subtract(high, low)
        if not ((spread > 0) & (spread <= 2**31)).all():
            raise AugmentError(f"high must be above low, by 2**31 at most, not {low} and {high}")
        return low + keyed.integers(*self._key(slot), high=spread)

    def normal(self, slot: int) -> NDArray[np.float64]:
        """float64 [N], standard normal."""
        return keyed.normals(*self._key(slot))[..., 0]

    def seeds(self, slot: int) -> NDArray[np.int64]:
        """int64 [N] in [0, 2**63), to seed a generator with."""
        return (keyed.sort_keys(*self._key(slot)) >> np.uint64(1)).astype(np.int64)


class CustomOp(Op):
    """The base class of custom ops. Define two methods, and the op runs on both executors.

        class Pixelate(CustomOp):
            p: float = 0.3

            def draw(self, key, height, width):
                return {"on": key.uniform(0) < self.p, "block": key.integers(1, 2, 9)}

            def apply(self, images, on, block):
                ...  # torch uint8 [N, C, H, W] in and out, on the executor's device

    `draw` gets a `Draw`: keyed uniforms, integers and normals, one per sample, by slot (0 to 63). It returns arrays
    whose first dimension is N. `apply` gets the images (a fresh tensor that it may change) and those arrays, and
    returns uint8 images of `result`'s size. It must not use other randomness, and the result for a sample must not
    depend on other samples.
    """

    name = "custom"
    writes = (Step(CUSTOM, "custom"),)

    def numbers(self, site: Site) -> list[float]:
        return [1.0, CUSTOM, 0]

    def draw(self, key: Draw, height: int, width: int) -> dict[str, Any]:
        """Keyed parameters of each sample: arrays with first dimension N."""
        return {}

    def apply(self, images: torch.Tensor, **parameters: Any) -> torch.Tensor:
        """The images, uint8 [N, C, H, W], changed."""
        raise NotImplementedError

    def run(self, images: torch.Tensor, key: Draw, size: tuple[int, int]) -> torch.Tensor:
        """Draw and apply: uint8 [N, C, H, W] in, uint8 [N, C, *size] out.

        Raises:
            AugmentError: `apply` returned something else.
        """
        import torch

        parameters = {
            name: torch.from_numpy(value).to(images.device) if isinstance(value, np.ndarray) else value
            for name, value in self.draw(key, *images.shape[2:]).items()
        }
        shape = (*images.shape[:2], *size)
        out = self.apply(images, **parameters)
        if not isinstance(out, torch.Tensor) or out.dtype != torch.uint8 or tuple(out.shape) != shape:
            got = f"{out.dtype} {list(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
            raise AugmentError(f"{self.name}: apply must return uint8 {list(shape)}, not {got}")
        return out


class TransformOp(CustomOp):
    """A torchvision transform, or any function on one uint8 [C, H, W] tensor, as an op. It runs sample by sample.

    Its randomness comes from the generators of torch, Python and NumPy, which are seeded for each sample from its key
    and restored afterwards.
    """

    name = "transform"
    transform: Any

    def __repr__(self) -> str:
        return f"transform {self.transform!r}"

    def draw(self, key: Draw, height: int, width: int) -> dict[str, Any]:
        return {"seeds": key.seeds(0)}

    def apply(self, images: torch.Tensor, **parameters: Any) -> torch.Tensor:
        import torch

        devices = [images.device] if images.is_cuda else []
        out = []
        with GENERATORS, torch.random.fork_rng(devices=devices):
            python, legacy = random.getstate(), np.random.get_state()
            try:
                for image, seed in zip(images, parameters["seeds"].tolist(), strict=True):
                    torch.default_generator.manual_seed(seed)
                    for device in devices:
                        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
                    random.seed(seed)
                    np.random.seed(seed & 0xFFFFFFFF)
                    out.append(self.transform(image))
            finally:
                random.setstate(python)
                np.random.set_state(legacy)
        if not out:
            return images
        if not all(isinstance(image, torch.Tensor) and image.shape == out[0].shape for image in out):
            raise AugmentError(f"{self!r} must return tensors of one shape")
        return torch.stack(out)
