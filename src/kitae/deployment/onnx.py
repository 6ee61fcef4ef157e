"""Write a trained network as one ONNX file that needs nothing else: images in, calibrated probabilities out.

    images uint8 [N, C, H, W]  ->  (images / 255 - mean) / std  ->  network  ->  softmax(logits / temperature)

The weights are inside the file and N is free. The metadata (a JSON object under the key `kitae`) has the class names,
the decode-and-resize rules and the origin of the file. A file is written only after it was verified.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import kitae
from kitae.console import quiet
from kitae.deployment.rewrite import simplify
from kitae.deployment.verify import Parity, probe_images, torch_reference, verify_float
from kitae.errors import ExportError, one_line, require
from kitae.files import write_atomically
from kitae.preprocess import PreprocessRules
from kitae.runtime import FORMAT_VERSION, INPUT, METADATA_KEY, OUTPUT, content_hash, metadata_checksum

if TYPE_CHECKING:
    import onnx


_MOST_BYTES = 2**31 - 1  # of a protobuf message


@dataclass(frozen=True)
class Card:
    """The metadata of an exported file.

    Attributes:
        classes: K class names, in the order of the network's outputs.
        rules: how an image becomes the graph's input.
        mean, std: per channel, of pixel values scaled to [0, 1]; also inside the graph.
        temperature: divides the logits before the softmax; fitted on validation.
        precision: `fp32`, or how it was quantized: `int8-static`, `int8-qat`, `int8-dynamic`.
        target: `vnni` only for INT8 files whose sums can saturate on CPUs without VNNI.
        recipe: the name of the recipe of the run it came from.
        notes: anything else that is plain JSON (ratios, measured accuracy).
    """

    classes: tuple[str, ...]
    rules: PreprocessRules
    mean: tuple[float, ...]
    std: tuple[float, ...]
    temperature: float = 1.0
    precision: str = "fp32"
    target: Literal["any", "vnni"] = "any"
    recipe: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        channels = self.rules.channels  # a run's model.json can be edited
        if len(self.mean) != channels or len(self.std) != channels:
            raise ExportError(f"mean and std need {channels} values, not {len(self.mean)} and {len(self.std)}")
        if not 0 < self.temperature < math.inf:
            raise ExportError(f"temperature must be a positive number, not {self.temperature}")

    def to_metadata(self, sha256: str) -> dict[str, Any]:
        """The JSON object of the file's metadata."""
        metadata = asdict(self) | {
            "format": FORMAT_VERSION,
            "kitae": kitae.__version__,
            "preprocess": self.rules.to_dict(),
            "sha256": sha256,
        }
        del metadata["rules"]
        return {**metadata, "checksum": metadata_checksum(metadata)}


class Classifier(nn.Module):
    """The exported module: a network with the normalisation before it and the calibrated softmax after it."""

    def __init__(self, network: nn.Module, card: Card) -> None:
        super().__init__()
        self.network = network
        # One multiplication and one addition per pixel: (x / 255 - mean) / std = x * scale + shift.
        mean, std = (torch.tensor(value, dtype=torch.float64).reshape(1, -1, 1, 1) for value in (card.mean, card.std))
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", (1.0 / (255.0 * std)).float())
        self.register_buffer("shift", (-mean / std).float())
        self.sharpness = 1.0 / card.temperature

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, K]."""
        logits = self.network(images.float() * self.scale + self.shift)
        return torch.softmax(logits * self.sharpness, dim=1)


def to_onnx(network: nn.Module, card: Card) -> onnx.ModelProto:
    """The ONNX graph of a network, BatchNorm folded into the convolutions, with a free batch size.

    The network is copied to the CPU, set to eval mode and float32; the original is not touched.

    Raises:
        ExportError: an operation of the network has no ONNX counterpart (it is named), or its weights do not fit into
            one file.
    """
    require("onnx")
    require("onnxscript")
    weights = sum(tensor.numel() for tensor in (*network.parameters(), *network.buffers()))
    if 4 * weights > _MOST_BYTES:
        raise ExportError(
            f"the network's {weights:,} weights take {4 * weights / 2**30:.1f} GiB in float32, and one ONNX file holds "
            f"less than 2 GiB; export a smaller network"
        )
    classifier = Classifier(copy.deepcopy(network).to("cpu", torch.float32), card).eval()
    example = torch.zeros((2, *card.rules.shape), dtype=torch.uint8)  # two: a batch of one would be taken as fixed
    with torch.no_grad(), quiet():
        try:
            program = torch.onnx.export(
                classifier,
                (example,),
                dynamo=True,
                external_data=False,
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
        except Exception as error:
            raise ExportError(f"the network cannot be exported to ONNX: {_culprit(error)}") from error
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    _strip(proto)
    simplify(proto)
    return proto


def serialize(proto: onnx.ModelProto, card: Card) -> bytes:
    """A file's content: the graph, and the metadata with its hash. The same graph and card give the same bytes."""
    stamped = copy.deepcopy(proto)
    del stamped.metadata_props[:]
    digest = content_hash(bytes(stamped.SerializeToString(deterministic=True)))
    entry = stamped.metadata_props.add()
    entry.key = METADATA_KEY
    entry.value = json.dumps(card.to_metadata(digest), sort_keys=True, allow_nan=False)
    return bytes(stamped.SerializeToString(deterministic=True))


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: the file.
        bytes: its size; there is no second file.
        parity: how far it is from the network.
    """

    path: Path
    bytes: int
    parity: Parity


def export(network: nn.Module, path: str | Path, card: Card, images: NDArray[np.uint8] | None = None) -> Exported:
    """Export a network in float32, verify the file against it, and only then write it.

    Args:
        network: gives logits [N, K] for normalised float images [N, C, H, W]; not changed.
        path: the file; if anything fails, an earlier one is kept.
        card: class names, rules, normalisation, temperature.
        images: uint8 [N, C, H, W] to verify with, 32 or more; without them images are generated.

    Raises:
        ExportError: an operation cannot be exported, or the file does not compute what the network computes.
    """
    if images is None:
        images = probe_images(card.rules.shape)
    content = serialize(to_onnx(network, card), card)
    reference = partial(torch_reference, network, card.mean, card.std, card.temperature)
    parity = verify_float(content, reference, images)
    write_atomically(Path(path), content)
    return Exported(Path(path), len(content), parity)


def _strip(proto: onnx.ModelProto) -> None:
    """Remove stack traces and other traces of the exporting machine: they hold paths, and enlarge tiny networks."""
    graph = proto.graph
    for item in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]


def _culprit(error: BaseException) -> str:
    """The operation that could not be exported, or else the innermost error."""
    causes = [error]
    while (inner := causes[-1].__cause__ or causes[-1].__context__) and inner not in causes:  # they may form a ring
        causes.append(inner)
    operation = r"(?:<OpOverload\(op='|target=torch\.ops\.)([\w.]+)"
    if found := re.search(operation, "\n".join(map(str, causes))):
        return f"the operation {found[1]} has no ONNX counterpart here"
    return one_line(causes[-1], 300)
