"""Predict from an exported file with only onnxruntime, NumPy, Pillow and rich. PyTorch is never imported.

    from kitae.runtime import Model

    model = Model("model.onnx")
    predictions = model.predict(["cat.jpg", "dog.png"])
    print(predictions.names, predictions.probabilities.max(axis=1))

An exported file is one ONNX model whose metadata holds, under the key `kitae`, a JSON object: the class names, the
decode-and-resize rules of training, a SHA-256 of everything in the file but the metadata, and one of the metadata, so
that a truncated or damaged file is refused before a prediction is made with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kitae import console, views
from kitae.errors import DataError, ExportError, KitaeError, one_line, require
from kitae.files import user_path
from kitae.machine import cpuinfo
from kitae.preprocess import ImageLike, PreprocessRules, load, on_one_line, one_or_several, paths_of

if TYPE_CHECKING:
    import onnxruntime
    import pandas as pd

METADATA_KEY = "kitae"
FORMAT_VERSION = 1
INPUT, OUTPUT = "images", "probabilities"

_VNNI = {"avx512_vnni", "avx512vnni", "avx_vnni", "avx_vnni_int8"}


@dataclass(frozen=True, eq=False)
class Predictions:
    """A classifier's predictions for N images. Equal to others with the same values.

    Attributes:
        labels: int64 [N], the most probable class, as an index into `classes`.
        probabilities: float32 [N, K], rows sum to 1; calibrated where the run fitted a temperature.
        classes: the K class names.
        images: the N paths, where every image was given as one; else empty.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    classes: tuple[str, ...]
    images: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Predictions):
            return NotImplemented
        same = np.array_equal(self.labels, other.labels) and np.array_equal(self.probabilities, other.probabilities)
        return same and (self.classes, self.images) == (other.classes, other.images)

    @property
    def names(self) -> list[str]:
        """The most probable class of each image, by name."""
        return [self.classes[label] for label in self.labels]

    @property
    def confidence(self) -> NDArray[np.float32]:
        """float32 [N], the probability of the most probable class."""
        return np.asarray(self.probabilities.max(axis=1, initial=0.0), np.float32)

    def to_pandas(self) -> pd.DataFrame:
        """A row per image: `image` where its path is known, `class`, `confidence`, and a column per class.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        columns: dict[str, Any] = {"image": list(self.images)} if self.images else {}
        columns |= {"class": self.names, "confidence": self.confidence}
        for name, chances in zip(views.class_columns(self.classes), self.probabilities.T, strict=True):
            columns[name] = chances
        return views.frame(columns)

    def __repr__(self) -> str:
        shown = [
            f"{name} {console.percent(float(sure))}"
            for name, sure in zip(self.names[:3], self.confidence[:3], strict=True)
        ]
        more = ", ..." if len(self) > 3 else ""
        said = console.printable(f": {', '.join(shown)}{more}") if shown else ""
        return f"Predictions({console.plural(len(self), 'image')}, {len(self.classes)} classes{said})"

    def _repr_html_(self) -> str:
        rows: list[list[str]] = []
        for place, name, sure in zip(range(len(self)), self.names, self.confidence, strict=True):
            image = self.images[place] if self.images else str(place)
            rows.append([image, name, console.percent(float(sure))])
        return views.block(f"{len(self):,} predictions", [], ["image", "class", "confidence"], rows, left=2)


class Model:
    """An exported classifier. A copy, or what another process unpickles, reads the file again.

    Args:
        path: a file that `kitae export` or `kitae compress` wrote.
        threads: CPU threads for one prediction; None leaves the choice to onnxruntime.

    Raises:
        ExportError: the file is missing, not written by Kitae, truncated, damaged, or of a newer format.

    Warns:
        UserWarning: an INT8 file made for CPUs with VNNI is loaded on an x86 CPU without it.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        self.path = user_path(path)
        name = os.fspath(path)
        content = _read(self.path)
        self.session, self._threads = open_session(content, threads=threads, name=name), threads
        self.metadata: dict[str, Any] = read_metadata(content, name, self.session)
        try:
            self.classes: tuple[str, ...] = tuple(self.metadata["classes"])
            self.rules = PreprocessRules.from_dict(self.metadata["preprocess"])
        except DataError as error:  # the file is undamaged, so they are rules of another version of Kitae
            raise ExportError(f"{name}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ExportError(f"{name}: its metadata cannot be used ({error}); export the run again") from error
        if self.metadata.get("target") == "vnni" and has_vnni() is False:
            warnings.warn(
                f"{name} was made for CPUs with VNNI, which this CPU lacks: integer sums can saturate and the "
                f"accuracy fall; compress the run again with target any",
                UserWarning,
                stacklevel=2,
            )
        ends = (*self.session.get_inputs(), *self.session.get_outputs())
        found = [(end.name, end.type, *end.shape[1:]) for end in ends]
        wanted = [(INPUT, "tensor(uint8)", *self.input_shape), (OUTPUT, "tensor(float)", len(self.classes))]
        if found != wanted:  # predictions would fail or name the wrong classes
            raise ExportError(f"{name}: its graph has {found}, its metadata says {wanted}; export the run again")

    def __reduce__(self) -> tuple[Any, ...]:
        return Model, (self.path.absolute(), self._threads)

    def __repr__(self) -> str:
        shape = " x ".join(str(size) for size in self.rules.shape)
        return console.printable(f"Model({self.path}: images of {shape}, {len(self.classes)} classes)")

    @cached_property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the graph takes."""
        return self.rules.shape

    def predict(self, images: ImageLike | Iterable[ImageLike], batch_size: int = 32) -> Predictions:
        """Classify images.

        Args:
            images: one or several, see `preprocess.ImageLike`; or one uint8 array [N, C, H, W] at the model's size.
            batch_size: images per call of the graph. Memory grows with it; the results do not depend on it (files of
                precision int8-dynamic scale their activations by the batch, so they always take one image at a time).

        Raises:
            DataError: an image cannot be read; the message names it.
            ExportError: an array has another dtype or size than the model takes, or an output is not finite.
        """
        if batch_size < 1:
            raise ExportError(f"batch_size must be at least 1, not {batch_size}")
        if self.metadata.get("precision") == "int8-dynamic":
            batch_size = 1
        paths: tuple[str, ...] = ()
        batches: Iterator[Any]
        if isinstance(images, np.ndarray) and images.ndim == 4:
            batches = (images[start : start + batch_size] for start in range(0, max(len(images), 1), batch_size))
        else:
            several = one_or_several(images)
            paths = paths_of(several)
            batches = self._batches(several, batch_size)
        parts = [self.run(batch) for batch in batches]
        probabilities = np.concatenate(parts) if parts else np.empty((0, len(self.classes)), np.float32)
        if (bad := np.flatnonzero(~np.isfinite(probabilities).all(axis=1))).size:  # no class would be right
            name = on_one_line(paths[bad[0]]) if paths else f"image {bad[0]}"
            raise ExportError(
                f"{name}: the model's output for it is not finite; train again with a smaller train.optimizer.lr"
            )
        return Predictions(probabilities.argmax(axis=1).astype(np.int64), probabilities, self.classes, paths)

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The graph itself: uint8 [N, C, H, W] at the model's size -> probabilities float32 [N, K].

        Raises:
            ExportError: the batch has another dtype or shape.
        """
        batch = checked_batch(batch, self.input_shape, ExportError)
        return answers(self.session, [batch]) if len(batch) else np.empty((0, len(self.classes)), np.float32)

    def _batches(self, images: Sequence[Any], batch_size: int) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            yield np.stack([load(image, self.rules, f"image {start + k}") for k, image in enumerate(chunk)])


def checked_batch(batch: NDArray[Any], shape: tuple[int, int, int], error: type[KitaeError]) -> NDArray[np.uint8]:
    """The batch. Raises `error` unless it is a uint8 array [N, C, H, W] with this (C, H, W)."""
    if not isinstance(batch, np.ndarray):
        raise error(f"a batch must be a NumPy array, not {type(batch).__name__}")
    if batch.dtype != np.uint8 or batch.shape[1:] != shape:
        wanted = ", ".join(map(str, shape))
        raise error(
            f"a batch for this model must be uint8 with values 0 to 255, [N, {wanted}], not {batch.dtype} "
            f"{list(batch.shape)}; give images of other sizes as a list"
        )
    return batch


def open_session(
    source: bytes | Path, *, threads: int | None = None, optimize: bool = True, name: str = "the graph"
) -> onnxruntime.InferenceSession:
    """An ONNX file, or its content, in ONNX Runtime on this CPU.

    Args:
        threads: CPU threads for one call, at least 1; None leaves onnxruntime's own choice.
        optimize: False runs every node as it is written: an INT8 graph of QuantizeLinear and DequantizeLinear pairs is
            then computed in float, as quantization-aware training simulates it.
        name: what errors call it.

    Raises:
        ExportError: it is no ONNX file, cut short, or onnxruntime cannot run it.
    """
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        if threads < 1:
            raise ExportError(f"threads must be at least 1, not {threads}")
        options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if isinstance(source, bytes) and source[:1] != b"\x08":  # every ONNX file starts with its ir_version
        raise ExportError(f"{name}: not an ONNX file; give one that `kitae export` or `kitae compress` wrote")
    try:
        session: onnxruntime.InferenceSession = ort.InferenceSession(
            source, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        why = f"onnxruntime {ort.__version__} cannot load it ({one_line(error, 300)})"
        raise ExportError(f"{name}: {why}; export or copy it again, or upgrade onnxruntime") from error
    return session


def answers(session: onnxruntime.InferenceSession, batches: Iterable[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """What an exported graph gives for batches of images uint8 [n, C, H, W], one after the other: [N, K].

    Raises:
        ExportError: onnxruntime cannot run it, such as for lack of memory.
    """
    found = []
    for batch in batches:
        try:
            found.append(session.run([OUTPUT], {INPUT: np.ascontiguousarray(batch)})[0])
        except Exception as error:  # onnxruntime has types of its own
            why = f"onnxruntime cannot run the graph for a batch of {len(batch)} ({one_line(error, 300)})"
            raise ExportError(f"{why}; free some memory, or export the run again") from error
    return np.concatenate(found)


def read_metadata(content: bytes, name: str, session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """The JSON object that an exported file carries, after its hashes were checked.

    Args:
        content: the whole file.
        name: what errors call it.
        session: the file in ONNX Runtime.

    Raises:
        ExportError: not one of ours, damaged, or of a newer format.
    """
    try:
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ExportError(
                f"{name}: an ONNX file, but not one that kitae wrote (it carries no kitae metadata); export a run with "
                "`kitae export`"
            )
        metadata = json.loads(text)
        version = int(metadata["format"])
        recorded = str(metadata["sha256"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ExportError(f"{name}: its kitae metadata is damaged; export or copy it again") from error
    if version > FORMAT_VERSION:
        raise ExportError(f"{name}: format {version} is newer than this kitae's ({FORMAT_VERSION}): upgrade kitae")
    if recorded != content_hash(content, text) or metadata.get("checksum") != metadata_checksum(metadata):
        raise ExportError(
            f"{name}: damaged, or changed after it was exported (its hash differs); export or copy it again"
        )
    return dict(metadata)


def content_hash(content: bytes, metadata: str = "") -> str:
    """SHA-256, in hexadecimal, over an ONNX file's content without this kitae metadata."""
    entry = _field(14, _field(1, METADATA_KEY.encode()) + _field(2, metadata.encode()))
    before, _, after = content.rpartition(entry)
    return hashlib.sha256(before + after).hexdigest()


def metadata_checksum(metadata: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, over the metadata's own JSON without the key `checksum`."""
    rest = {key: value for key, value in metadata.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def has_vnni() -> bool | None:
    """Whether this CPU multiplies 8-bit integers without saturating; None if unknown.

    On x86 that is AVX512-VNNI or AVX-VNNI, read from /proc/cpuinfo. ARM's instructions do not saturate.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    flags = cpuinfo("flags")
    return None if flags is None else bool(set(flags.split()) & _VNNI)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror})") from error


def _field(number: int, payload: bytes) -> bytes:
    """A field of bytes as protobuf encodes it; the metadata are field 14 of an ONNX file, with a key (1) and value (2).

    Encoded here because the runtime does without the onnx package.
    """
    length, size = bytearray(), len(payload)
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + payload
