"""The torch executor: runs the same programs on whole batches with plain torch operations, on any device. The
reference in tests.

Steps are aligned (step s of every sample belongs to the same op), so the batch is processed step by step, and at each
step the samples with the same op code are processed together. `twins` has a function for each compiled kernel. Integer
ops give the same bits as the CPU executor. Float ones may differ by a level, since the kernels fuse multiplications
with additions, and a blur adds its terms in another order.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kitae.augment.ops import STEPS
from kitae.augment.ops.base import AUGMIX_BEGIN, AUGMIX_END, CHAIN_BEGIN, CHAIN_END, ERASE_AFTER, NOP
from kitae.augment.plan import Pipeline, Program
from kitae.augment.twins.move import covered
from kitae.augment.twins.numbers import Numbers, level


def run_steps(x: Tensor, program: Program, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """The uint8 images after a program, and what is erased after normalisation: bool [N, 1, H, W], or None.

    `size`: height and width of the result, which a program of no samples does not say.
    """
    if not len(x):
        return x.new_empty(0, x.shape[1], *size), None
    device = x.device
    base = sums = x  # of AugMix: the original, and the sum of what was made of it
    erased: Tensor | None = None
    for step in range(program.codes.shape[1]):
        column = program.codes[:, step]
        for code in np.unique(column).tolist():
            if code == NOP:
                continue
            rows = np.flatnonzero(column == code)
            a = Numbers(program.args[rows, step], device)
            if code == AUGMIX_BEGIN:
                base, sums = x, x.float() * a[0]
            elif code == CHAIN_BEGIN:
                x = base
            elif code == CHAIN_END:
                sums = sums + x.float() * a[0]
            elif code == AUGMIX_END:
                x = level(sums)
            elif code == ERASE_AFTER:
                if erased is None:
                    erased = torch.zeros(len(x), 1, *x.shape[2:], dtype=torch.bool, device=device)
                erased[torch.from_numpy(rows).to(device)] |= covered(x, a)
            else:
                twin = STEPS[code].twin
                assert twin is not None
                if len(rows) == len(x):
                    x = twin(x, a)
                else:
                    pick = torch.from_numpy(rows).to(device)
                    x = x.index_copy(0, pick, twin(x[pick], a))
    return x, erased


def finish(
    x: Tensor,
    erased: Tensor | None,
    mix: NDArray[np.float64] | None,
    pipeline: Pipeline,
    dtype: str,
    channels_last: bool,
) -> Tensor:
    """Normalise, erase, mix; as `kernels.write`."""
    if dtype == "uint8":
        v = x.float() if mix is not None else x
    else:
        numbers = torch.tensor((pipeline.scale, pipeline.shift), dtype=torch.float32, device=x.device)
        scale, shift = numbers[:, : x.shape[1], None, None].unbind()
        v = x.float() * scale + shift
    if erased is not None:
        v = v.masked_fill(erased, 0)
    pairs = len(v) // 2 * 2
    if mix is not None and pairs:
        a = Numbers(mix[:pairs], x.device)
        own, other = v[:pairs], v[:pairs].view(-1, 2, *v.shape[1:]).flip(1).reshape(pairs, *v.shape[1:])
        y = torch.arange(v.shape[2], device=x.device).view(1, 1, -1, 1)
        z = torch.arange(v.shape[3], device=x.device).view(1, 1, 1, -1)
        box = (z >= a.integer(2)) & (z < a.integer(4)) & (y >= a.integer(3)) & (y < a.integer(5))
        blend = own * a[1] + other * a.float32(1.0 - a.host(1))
        kind = a.integer(0)
        mixed = torch.where(kind == 1, blend, torch.where((kind == 2) & box, other, own))
        v = torch.cat((mixed, v[pairs:])) if pairs < len(v) else mixed
    if dtype == "uint8":
        v = (v + 0.5).to(torch.uint8) if v.is_floating_point() else v
    elif dtype == "bfloat16":
        v = v.to(torch.bfloat16)
    return v.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
