"""Verifies that a file computes the same as the network, before the file is kept.

The reference is the PyTorch network; its input is normalised here independently from the mean and standard deviation,
so that a mistake in the exported normalisation is noticed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kitae.errors import ExportError, one_line, require
from kitae.keyed import uniform
from kitae.modes import convolutions_in_float32, evaluating
from kitae.runtime import answers, open_session

if TYPE_CHECKING:
    import onnx

BATCH_SIZES = (1, 2, 7, 32)

# A different order of float operations changes a logit by about 1e-6 of the largest activation, and a probability by
# the same share of itself; the absolute term covers probabilities that are nearly zero.
RELATIVE, ABSOLUTE = 5e-3, 1e-5

# A network with huge activations amplifies rounding, in PyTorch too: a file may be this many times as far from the
# float64 result as PyTorch in float32 is.
_TIMES_OWN_ROUNDING = 4.0

# A class that changes between two answers of nearly equal probability is rounding; a clear one is a wrong kernel.
_CLEAR_MARGIN = 0.1

# Smallest share of images in whose class an INT8 file must agree with its simulation in float (clear changes count).
_AGREEING = 0.95

RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
)

Reference = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Parity:
    """How far a file is from its reference.

    Attributes:
        images: how many images were compared.
        max_error: largest absolute difference of a probability.
        flips: images whose most probable class differs.
        clear_flips: those of them where the reference puts the two classes 0.1 or more apart.
        batch_sizes: those tried.
    """

    images: int
    max_error: float
    flips: int
    clear_flips: int
    batch_sizes: tuple[int, ...]


def file_reference(content: bytes, *, optimize: bool = True) -> Reference:
    """A file in ONNX Runtime as a function: uint8 [N, C, H, W] -> probabilities float32 [N, K]."""
    session = open_session(content, optimize=optimize)
    return lambda images: answers(session, [images])


def torch_reference(
    network: nn.Module, mean: Sequence[float], std: Sequence[float], temperature: float = 1.0, *, double: bool = False
) -> Reference:
    """A network in PyTorch as a function: uint8 [N, C, H, W] -> probabilities float32 [N, K].

    The network is put into eval mode while it is called, and left as it was. `double` computes in float64, on a copy.
    """
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    dtype = torch.float64 if double else torch.float32
    if double:
        network = copy.deepcopy(network).double()
    centre = torch.tensor(tuple(mean), dtype=dtype, device=device).reshape(1, -1, 1, 1)
    spread = torch.tensor(tuple(std), dtype=dtype, device=device).reshape(1, -1, 1, 1)

    def probabilities(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with evaluating(network), torch.no_grad(), convolutions_in_float32():
            pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device, dtype) / 255.0
            logits = network((pixels - centre) / spread).to(dtype)
            result: NDArray[np.float32] = torch.softmax(logits / temperature, dim=1).float().cpu().numpy()
        return result

    return probabilities


def check_graph(proto: onnx.ModelProto) -> None:
    """Raise ExportError unless the graph is sound and free of random operations, with a free batch size."""
    random = sorted({node.op_type for node in proto.graph.node if node.op_type in RANDOM_OPS})
    if random:
        raise ExportError(
            f"the graph draws random numbers ({', '.join(random)}): export the network in eval mode, its dropout and "
            f"stochastic depth off"
        )
    if not proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ExportError("the graph's batch size is fixed")
    try:
        require("onnx").checker.check_model(proto, full_check=True)
    except Exception as error:
        raise ExportError(f"the graph is not valid ONNX: {one_line(error, 300)}") from error


def compare(
    candidate: Reference,
    reference: Reference,
    images: NDArray[np.uint8],
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> tuple[Parity, NDArray[np.float32], NDArray[np.float32]]:
    """Run both over the images: a first batch of each size, then all of them in batches of the largest.

    Args:
        candidate, reference: uint8 [N, C, H, W] -> probabilities [N, K].
        images: uint8 [N, C, H, W], one or more; batch sizes above N are skipped.

    Returns:
        How far they are apart; then all outputs of the candidate and of the reference, float32 [M, K].

    Raises:
        ExportError: an output is not finite, or one of the candidate has another shape.
    """
    sizes = tuple(size for size in batch_sizes if size <= len(images))
    chunks = [images[start : start + max(sizes)] for start in range(0, len(images), max(sizes))]
    wanted = np.concatenate([reference(chunk) for chunk in chunks])
    trials = [candidate(images[:size]) for size in sizes]
    sweep = np.concatenate([candidate(chunk) for chunk in chunks])
    for size, part in zip((*sizes, len(images)), (*trials, sweep), strict=True):
        if part.shape != (size, wanted.shape[1]):
            raise ExportError(f"{size} images give {list(part.shape)}, not {[size, wanted.shape[1]]}")
    got = np.concatenate([*trials, sweep])
    expected = np.concatenate([*(wanted[:size] for size in sizes), wanted])
    if not np.isfinite(expected).all():  # no difference from it would count as too large
        raise ExportError("the network's own output is not finite; train again with a smaller train.optimizer.lr")
    if not np.isfinite(got).all():
        raise ExportError("an output is not finite, though the network's are")
    rows, said, true = np.arange(len(images)), sweep.argmax(axis=1), wanted.argmax(axis=1)
    apart = wanted[rows, true] - wanted[rows, said]  # 0 where the two agree
    parity = Parity(
        images=len(images),
        max_error=float(np.abs(got - expected).max()),
        flips=int((said != true).sum()),
        clear_flips=int((apart >= _CLEAR_MARGIN).sum()),
        batch_sizes=sizes,
    )
    return parity, got, expected


def verify_float(content: bytes, reference: Callable[..., Reference], images: NDArray[np.uint8]) -> Parity:
    """Accept a float file if it computes what the reference computes, at every batch size.

    Args:
        reference: `torch_reference` of the network. Where the two differ by more than is usual, its `double` tells
            rounding, which PyTorch has too, from a mistake.
        images: uint8 [N, C, H, W], real ones if there are any.

    Raises:
        ExportError: the graph is unsound, or a probability differs by more than rounding can.
    """
    check_graph(_parse(content))
    candidate = file_reference(content)
    parity, got, expected = compare(candidate, reference(), images)
    excess = np.abs(got - expected) - (ABSOLUTE + RELATIVE * expected)
    if float(excess.max()) > 0:
        _, _, truth = compare(candidate, reference(double=True), images)
        rounding = _TIMES_OWN_ROUNDING * float(np.abs(expected - truth).max())
        excess = np.abs(got - truth) - (ABSOLUTE + RELATIVE * truth + rounding)
    if float(excess.max()) > 0:
        raise ExportError(
            f"the exported graph does not compute what the network computes: a probability differs by "
            f"{parity.max_error:.2g} ({parity.flips} of {parity.images} images change their class)"
        )
    return parity


def verify_integer(content: bytes, images: NDArray[np.uint8]) -> Parity:
    """Accept an INT8 file if this CPU's integer kernels compute what its scales and integers define.

    The reference is the same graph run node by node in float: its pairs of QuantizeLinear and DequantizeLinear as they
    are written, integer operators (of dynamic quantization) as float ones over the same integers. The two differ by
    rounding only, unless integer sums saturate (a file for `vnni` on a CPU without it) or a kernel is wrong. Classes
    that the reference itself can hardly tell apart (by less than 0.1) do not count. Dynamic ranges are those of a
    batch, so such a file is compared image by image, as the runtime serves it.

    Args:
        images: uint8 [N, C, H, W], real ones if there are any.

    Raises:
        ExportError: the graph is unsound, or they agree on too few images.
    """
    proto = _parse(content)
    check_graph(proto)
    plain = _without_integer_operators(proto)
    simulated = file_reference(content if plain is None else plain, optimize=False)
    batch_sizes = BATCH_SIZES if plain is None else (1,)
    parity, _, _ = compare(file_reference(content), simulated, images, batch_sizes)
    if 1.0 - parity.clear_flips / parity.images < _AGREEING:
        raise ExportError(
            f"the INT8 graph gives wrong results on this CPU: {parity.clear_flips} of {parity.images} images change "
            f"their class between onnxruntime's integer kernels and the same graph in float; on a CPU without VNNI "
            f"use target any"
        )
    return parity


_IN_FLOAT = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}


def _without_integer_operators(proto: onnx.ModelProto) -> bytes | None:
    """The graph with the integer operators of dynamic quantization computed in float; None where it has none.

    Their int32 sums become float32 sums of the same integers, less their zero points (as ONNX defines the operators):
    exact up to 2**24, and rounded by no more than a ten-millionth above it.
    """
    if not any(node.op_type in _IN_FLOAT for node in proto.graph.node):
        return None
    helper = require("onnx.helper")
    kind = require("onnx").TensorProto.FLOAT
    work = copy.deepcopy(proto)
    nodes: list[onnx.NodeProto] = []
    for node in work.graph.node:
        if node.op_type not in _IN_FLOAT:
            nodes.append(node)
            continue
        inputs = []
        for side, (values, zero) in enumerate(zip(node.input[:2], (*node.input[2:], "", "")[:2], strict=True)):
            inputs.append(f"{node.output[0]}/in_float/{side}")
            nodes.append(helper.make_node("Cast", [values], [f"{inputs[-1]}/values"], to=kind))
            if zero:
                nodes.append(helper.make_node("Cast", [zero], [f"{inputs[-1]}/zero"], to=kind))
                nodes.append(helper.make_node("Sub", [f"{inputs[-1]}/values", f"{inputs[-1]}/zero"], [inputs[-1]]))
            else:
                inputs[-1] += "/values"
        plain = helper.make_node(_IN_FLOAT[node.op_type], inputs, list(node.output), name=node.name)
        plain.attribute.extend(node.attribute)
        nodes.append(plain)
    del work.graph.node[:]
    work.graph.node.extend(nodes)
    del work.graph.value_info[:]  # they say int32 of what is float now
    content: bytes = work.SerializeToString()
    return content


def probe_images(shape: tuple[int, int, int], count: int = 64) -> NDArray[np.uint8]:
    """Images to verify with if there are no real ones: keyed blobs of colour under noise, uint8 [count, C, H, W]."""
    channels, height, width = shape
    cells = uniform(0, 0, np.arange(count * channels * 16), 1).reshape(count, channels, 4, 4)
    rows, columns = (np.arange(size) * 4 // size for size in (height, width))
    noise = uniform(0, 0, np.arange(channels * height * width), 2).reshape(shape)
    pictures = np.empty((count, *shape), np.uint8)
    for k, picture in enumerate(pictures):
        picture[:] = cells[k][:, rows][:, :, columns] * 224.0 + np.roll(noise, 7 * k, axis=2) * 31.0
    return pictures


def _parse(content: bytes) -> onnx.ModelProto:
    proto: onnx.ModelProto = require("onnx").load_model_from_string(content)
    return proto
