"""AutoAugment, RandAugment, TrivialAugmentWide and AugMix against torchvision 0.29 v2.

The tables are compared entry by entry. Then whole samples are replayed by hand: the draws of a sample are read from the
keyed stream (see `kitae.keyed`), torchvision's own tables and its own code turn them into ops, and each op is compared
on the very image that reached it, so that a difference of one level, which the contract allows for some ops, cannot
grow in the next. The images between steps come from replaying our program up to a step; the last one is the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2
from torchvision.transforms.functional import _get_inverse_affine_matrix

from kitae import keyed
from kitae.augment import Augment
from kitae.augment import ops as o
from kitae.augment.ops import policies as p
from kitae.augment.plan import Program
from tests.augment.parity import EXECUTORS, Batch, affine_points, batch, check, check_nearest, covering, photo
from tests.augment.parity import one_thread as one_thread

NAMES = dict(
    zip(
        p.POLICY_OPS,
        ["Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
         "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert"],
        strict=True,
    )
)  # fmt: skip
WARPS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
# Levels that each op may be off, as the specification has it; warps by the tie rule, or 1 where bilinear.
LEVELS = {"Brightness": 1, "Color": 1, "Contrast": 1, "Sharpness": 1}
SIZES = [(32, 32), (33, 47), (224, 224), (1, 1), (331, 100)]


# Tables ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["cifar10", "imagenet", "svhn"])
def test_auto_augment_tables(policy: str) -> None:
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy(policy))._policies
    ours = [tuple((NAMES[op], chance, level) for op, chance, level in sub) for sub in p.table(policy)]
    assert ours == theirs


@covering("size, bins", SIZES, [2, 10, 31, 50])
@pytest.mark.parametrize(
    ("kind", "space"),
    [
        ("standard", v2.AutoAugment._AUGMENTATION_SPACE),
        ("standard", v2.RandAugment._AUGMENTATION_SPACE),
        ("wide", v2.TrivialAugmentWide._AUGMENTATION_SPACE),
        ("augmix", v2.AugMix._AUGMENTATION_SPACE),
    ],
    ids=["auto", "rand", "trivial", "augmix"],
)
def test_magnitude_tables(kind: str, space: dict[str, Any], bins: int, size: tuple[int, int]) -> None:
    """Bit for bit, the float32 rounding of torch.linspace included."""
    for at, name in enumerate(p.POLICY_OPS):
        if NAMES[name] not in space:
            continue
        function, signed = space[NAMES[name]]
        theirs = function(bins, *size)
        assert signed == (1 <= at <= p.SIGNED), name
        if theirs is not None:
            ours = p.magnitudes(kind, at, bins, *size)
            np.testing.assert_array_equal(ours, theirs.numpy().astype(np.float64), err_msg=f"{kind} {name} {size}")


def test_the_ops_of_each_policy() -> None:
    without_identity = [NAMES[n] for n in p.POLICY_OPS[1:]]
    assert sorted(v2.AutoAugment._AUGMENTATION_SPACE) == sorted(without_identity)
    fourteen = [NAMES[n] for n in p.POLICY_OPS[: p.INVERTED]]
    assert sorted(v2.RandAugment._AUGMENTATION_SPACE) == sorted(fourteen)
    assert sorted(v2.TrivialAugmentWide._AUGMENTATION_SPACE) == sorted(fourteen)
    assert list(v2.AugMix._AUGMENTATION_SPACE) == [NAMES[p.POLICY_OPS[i]] for i in p._AUGMIX_OPS]
    assert list(v2.AugMix._PARTIAL_AUGMENTATION_SPACE) == [NAMES[p.POLICY_OPS[i]] for i in p._AUGMIX_OPS[:9]]


# Draws by hand --------------------------------------------------------------------------------------------------------


@dataclass
class Stream:
    """The keyed numbers of one sample for the only op of its name in a pipeline."""

    name: str
    seed: int
    epoch: int
    index: int

    def __call__(self, slot: int) -> list[float]:
        return [float(u) for u in keyed.uniforms(self.seed, self.epoch, self.index, keyed.op_slot(self.name) + slot)]


Sub = tuple[str, float] | None  # a torchvision op and its magnitude; None where the step does nothing


def draw_auto(draw: Stream, height: int, width: int, policy: str = "imagenet") -> list[Sub]:
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy(policy))
    out: list[Sub] = []
    for step, (op, chance, level) in enumerate(theirs._policies[int(draw(0)[0] * 25)]):
        run, sign = draw(1)[2 * step : 2 * step + 2]
        sub = drawn(theirs._AUGMENTATION_SPACE, op, 10, height, width, level, sign)
        out.append(sub if run < chance else None)
    return out


def draw_rand(
    draw: Stream, height: int, width: int, num_ops: int = 2, magnitude: int = 9, num_magnitude_bins: int = 31
) -> list[Sub]:
    out: list[Sub] = []
    for step in range(num_ops):
        which, sign, *_ = draw(step)
        op = NAMES[p.POLICY_OPS[int(which * 14)]]
        space = v2.RandAugment._AUGMENTATION_SPACE
        out.append(drawn(space, op, num_magnitude_bins, height, width, magnitude, sign))
    return out


def draw_trivial(draw: Stream, height: int, width: int) -> list[Sub]:
    which, level, sign, _ = draw(0)
    op = NAMES[p.POLICY_OPS[int(which * 14)]]
    return [drawn(v2.TrivialAugmentWide._AUGMENTATION_SPACE, op, 31, height, width, int(level * 31), sign)]


def drawn(space: dict[str, Any], op: str, bins: int, height: int, width: int, level: int, sign: float) -> Sub:
    """An op and the signed entry of torchvision's own table of its magnitudes."""
    function, has_sign = space[op]
    table = function(bins, height, width)
    magnitude = 0.0 if table is None else float(table[level])
    return op, -magnitude if has_sign and sign < 0.5 else magnitude


DRAW: dict[str, Any] = {"auto_augment": draw_auto, "rand_augment": draw_rand, "trivial_augment_wide": draw_trivial}


# Replay ---------------------------------------------------------------------------------------------------------------


def torchvision_op(image: Batch, op: str, magnitude: float, interpolation: str, fill: Any) -> Batch:
    """One sub-op [C, H, W] by torchvision's own code."""
    policy = v2.AutoAugment(interpolation=v2.InterpolationMode(interpolation), fill=fill)
    tensor = torch.from_numpy(image.copy())
    out = policy._apply_image_or_video_transform(tensor, op, magnitude, policy.interpolation, policy._fill)
    return np.asarray(out)


def warp_matrix(op: str, magnitude: float, height: int, width: int) -> list[float]:
    """torchvision's inverse matrix of a sub-op."""
    middle, angle, shift, shear = [0.0, 0.0], 0.0, [0.0, 0.0], [0.0, 0.0]
    if op.startswith("Shear"):
        middle = [-0.5 * width, -0.5 * height]
        shear[op == "ShearY"] = math.degrees(math.atan(magnitude))
    elif op.startswith("Translate"):
        shift[op == "TranslateY"] = float(int(magnitude))
    else:
        angle = -(magnitude % 360)
    return list(_get_inverse_affine_matrix(middle, angle, shift, 1.0, shear))


def check_sub_op(before: Batch, after: Batch, sub: Sub, interpolation: str, fill: Any, what: str) -> None:
    if sub is None:
        np.testing.assert_array_equal(after, before, err_msg=what)
        return
    op, magnitude = sub
    reference = torchvision_op(before, op, magnitude, interpolation, fill)
    what = f"{what}: {op} {magnitude}"
    if op in WARPS and interpolation == "nearest":
        points = affine_points(warp_matrix(op, magnitude, *before.shape[1:]), *before.shape[1:])
        check_nearest(before, after, reference, points, fill, what)
    else:
        check(after[None], reference[None], 1 if op in WARPS else LEVELS.get(op, 0), what)


def cut(program: Program, steps: int) -> Program:
    """The program with nothing after its first steps."""
    codes = program.codes.copy()
    codes[:, steps:] = o.NOP
    return Program(codes, program.args)


def images_for(count: int, channels: int, size: tuple[int, int]) -> Batch:
    images = np.stack([photo(s % 7, *size) for s in range(count)])
    images[-3:] = batch("rgb 32")[-3:, :, : size[0], : size[1]] if size == (32, 32) else images[-3:]
    return np.ascontiguousarray(images[:, :channels])


class Row(NamedTuple):
    """So many samples of a policy, step by step with torchvision."""

    policy: str
    settings: dict[str, Any]
    size: tuple[int, int]
    count: int
    channels: int = 3
    interpolation: str = "nearest"
    fill: Any = None


def replay(row: Row, executor: Any, seed: int = 3, epoch: int = 2) -> None:
    fill, size, channels = row.fill, row.size, row.channels
    given = {**row.settings, "interpolation": row.interpolation, **({} if fill is None else {"fill": fill})}
    aug = Augment([{row.policy: given}], seed=seed, executor=executor)
    images = images_for(row.count, channels, size)
    index = np.arange(row.count) * 977 + (np.arange(row.count) % 2 << 32)
    program = aug.plan(epoch=epoch, index=index, size=size, channels=channels)
    stages = [images] + [aug.replay(images, cut(program, k + 1)) for k in range(program.codes.shape[1])]
    np.testing.assert_array_equal(aug(images, epoch=epoch, index=index), stages[-1])
    for i in range(row.count):
        subs = DRAW[row.policy](Stream(row.policy, seed, epoch, int(index[i])), *size, **row.settings)
        assert len(subs) == len(stages) - 1
        words = aug.explain(epoch=epoch, index=int(index[i]), size=size, channels=channels)
        moving = [sub for sub in subs if sub is not None and sub[0] != "Identity"]
        assert len(words) == len(moving), f"{words} against {subs}"
        for k, sub in enumerate(subs):
            what = f"{row.policy} {executor} sample {i} step {k}"
            level = fill[:channels] if isinstance(fill, tuple) else fill
            check_sub_op(stages[k][i], stages[k + 1][i], sub, row.interpolation, level, what)


POLICIES = ({"policy": "cifar10"}, {"policy": "imagenet"}, {"policy": "svhn"})
MORE_OPS = {"num_ops": 3, "magnitude": 4, "num_magnitude_bins": 5}
FILLED = (("nearest", 128), ("bilinear", None), ("bilinear", (124, 116, 104)))
BY_EXECUTOR = [  # one size on each
    [
        *(Row("auto_augment", policy, size, 160) for policy in POLICIES),
        Row("rand_augment", {}, size, 160),
        Row("rand_augment", MORE_OPS, size, 60),
        Row("trivial_augment_wide", {}, size, 240),
    ]
    for size in ((32, 32), (33, 47))
]
ON_BOTH = [
    Row("auto_augment", {"policy": "svhn"}, (28, 28), 60, channels=1),
    Row("rand_augment", {}, (28, 28), 60, channels=1),
    Row("trivial_augment_wide", {}, (28, 28), 60, channels=1),
    Row("auto_augment", {}, (224, 224), 12),
    Row("trivial_augment_wide", {}, (224, 224), 12),
    *(Row("auto_augment", {"policy": "svhn"}, (32, 40), 80, 3, *filled) for filled in FILLED),
    *(Row("trivial_augment_wide", {}, (32, 40), 120, 3, *filled) for filled in FILLED),
]


@pytest.mark.parametrize(
    ("row", "executor"),
    [(row, executor) for executor, rows in zip(EXECUTORS, BY_EXECUTOR, strict=True) for row in (*rows, *ON_BOTH)],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value)),
)
def test_policies(row: Row, executor: str) -> None:
    replay(row, executor)


@pytest.mark.slow
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("seed", range(4))
def test_policies_with_more_draws(seed: int, executor: str) -> None:
    for size in ((32, 32), (64, 48)):
        for policy in POLICIES:
            replay(Row("auto_augment", policy, size, 800), executor, seed)
        replay(Row("rand_augment", {}, size, 800), executor, seed)
        replay(Row("trivial_augment_wide", {}, size, 1600), executor, seed)


# AugMix ---------------------------------------------------------------------------------------------------------------


def draw_augmix(
    draw: Stream, height: int, width: int, severity: int, depth: int
) -> tuple[float, list[tuple[float, list[Sub]]]]:
    """Weight of the image, and (weight, ops) of three chains, at alpha 1, where Beta(1, 1) is uniform."""
    m = draw(0)[0]
    rest, slot, chains = 1.0 - m, 1, []
    for left in (2, 1, 0):
        how_deep, share, *_ = draw(slot)
        steps = depth if depth > 0 else 1 + int(how_deep * 3)
        # A piece of a Dirichlet(1, 1, 1) is Beta(1, pieces left); its quantile at u is 1 - (1 - u)**(1 / left).
        piece = 1.0 if left == 0 else 1.0 - (1.0 - share) ** (1.0 / left)
        subs: list[Sub] = []
        for link in range(steps):
            which, level, sign, _ = draw(slot + 1 + link)
            op = list(v2.AugMix._AUGMENTATION_SPACE)[int(which * 13)]
            space = v2.AugMix._AUGMENTATION_SPACE
            subs.append(drawn(space, op, 10, height, width, int(level * severity), sign))
        slot += 1 + (3 if depth < 0 else depth)
        chains.append((rest * piece, subs))
        rest *= 1.0 - piece
    return m, chains


@pytest.mark.parametrize("executor", EXECUTORS)
@covering("size, severity, depth, interpolation", [(32, 32), (33, 47)], [3, 10], [-1, 2], ["bilinear", "nearest"])
def test_augmix(size: tuple[int, int], severity: int, depth: int, interpolation: str, executor: Any) -> None:
    """Each chain op by op, then the weighted mean: float32, truncated, as torchvision's AugMix ends."""
    count, seed, epoch = 60, 9, 4
    settings = {"severity": severity, "chain_depth": depth, "interpolation": interpolation}
    aug = Augment([{"augmix": settings}], seed=seed, executor=executor)
    images = images_for(count, 3, size)
    index = np.arange(count) * 31
    program = aug.plan(epoch=epoch, index=index, size=size)
    out = aug(images, epoch=epoch, index=index)
    deepest = 3 if depth < 0 else depth
    # A chain alone is the program whose mean gives it all the weight, cut after each of its links.
    stages: dict[tuple[int, int], Batch] = {}
    for chain in range(3):
        first = 1 + chain * (deepest + 2)
        for link in range(deepest + 1):
            codes, args = program.codes.copy(), program.args.copy()
            args[:, 0, 0] = 0.0
            for other in range(3):
                args[:, 1 + other * (deepest + 2) + deepest + 1, 0] = float(other == chain)
            codes[:, first + 1 + link : first + 1 + deepest] = o.NOP
            stages[chain, link] = aug.replay(images, Program(codes, args))
    for i in range(count):
        m, chains = draw_augmix(Stream("augmix", seed, epoch, int(index[i])), *size, severity, depth)
        assert abs(program.args[i, 0, 0] - m) < 1e-12
        mix: NDArray[np.float32] = np.float32(m) * images[i].astype(np.float32)
        for chain, (weight, subs) in enumerate(chains):
            for k, sub in enumerate(subs):
                what = f"augmix {executor} sample {i} chain {chain} op {k}"
                check_sub_op(stages[chain, k][i], stages[chain, k + 1][i], sub, interpolation, None, what)
            mix = mix + np.float32(weight) * stages[chain, len(subs)][i].astype(np.float32)
        check(out[i : i + 1], np.trunc(mix).astype(np.uint8)[None], 1, f"augmix {executor} sample {i}")
