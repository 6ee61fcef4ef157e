"""Weights and training state on disk: safetensors, never a pickle, and atomically.

One file holds a whole checkpoint: tensors under `model.`, `ema.` and `optimizer.`, and everything else as canonical
JSON under the single metadata key `kitae`, so equal states are equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from kitae.errors import TrainingError
from kitae.files import write_atomically

_KEY = "kitae"

# Increased when the same recipe and seed train differently, or the optimizer's groups of parameters are others.
LOOP = 4


def save_weights(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write tensors as safetensors, atomically; equal tensors and metadata give equal bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(dict(metadata or {}), sort_keys=True)
    write_atomically(Path(path), save(plain, metadata={_KEY: text}))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that `save_weights` wrote.

    Raises:
        TrainingError: the file cannot be read, is truncated, or is not one of ours.
    """
    try:
        content = path.read_bytes()  # safetensors itself opens only paths in UTF-8
        tensors, end = load(content), 8 + int.from_bytes(content[:8], "little")
        return tensors, json.loads(json.loads(content[8:end])["__metadata__"][_KEY])
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read ({error.strerror})") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise TrainingError(
            f"{path}: not a whole checkpoint of Kitae (truncated or another program's); copy it again, or train again"
        ) from error


def weights_digest(model: nn.Module) -> str:
    """A digest of all parameters and buffers, independent of their layout in memory."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass
class Progress:
    """The position of a run: what a resumed run needs besides tensors.

    Attributes:
        epoch, step: the next batch to train on is number `step` of `epoch`.
        updates: optimizer steps made so far.
        loss_sum, correct_sum, seen: running sums of the current epoch.
        skipped: steps skipped because loss or gradient was not finite.
        best, best_epoch: the `merit` of the best epoch so far, and its number from 0; None before the first validation,
            -1 for the start.
        stop_value, stop_epoch: the best value of early stopping's metric (larger is better), and its epoch.
        seconds: wall time of the current epoch so far.
        scaler: state of the fp16 gradient scaler.
    """

    epoch: int = 0
    step: int = 0
    updates: int = 0
    loss_sum: float = 0.0
    correct_sum: float = 0.0
    seen: int = 0
    skipped: int = 0
    best: tuple[float, float] | None = None
    best_epoch: int = -1
    stop_value: float | None = None
    stop_epoch: int = -1
    seconds: float = 0.0
    scaler: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    path: Path, progress: Progress, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, fingerprint: str
) -> None:
    """Write the whole state. `modules` are `Learner.modules`; `fingerprint` identifies the recipe."""
    tensors = {f"{kind}.{name}": value for kind, net in modules.items() for name, value in net.state_dict().items()}
    scalars: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                scalars[f"{index}.{name}"] = value
    metadata = {
        "progress": vars(progress),
        "optimizer": scalars,
        "fingerprint": fingerprint,
        "loop": LOOP,
        "threads": torch.get_num_threads(),  # must be equal for a bit-exact resume
        "torch": torch.__version__,
    }
    save_weights(tensors, path, metadata)


def load_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, fingerprint: str
) -> tuple[Progress, list[str]]:
    """Restore the modules and the optimizer in place.

    Returns:
        Progress, and differences that may cost bit-exactness (thread count, torch version), a line each.

    Raises:
        TrainingError: the file is damaged, or belongs to another recipe or to an earlier training loop.
    """
    tensors, metadata = load_weights(path)
    if metadata.get("loop", 1) != LOOP:
        raise TrainingError(
            f"{path}: was written by a version of Kitae whose training loop differs, so it cannot be resumed; train "
            "again with --overwrite"
        )
    if metadata.get("fingerprint") != fingerprint:
        raise TrainingError(
            f"{path}: was saved with a different recipe; resume with the run's own recipe.yaml, or choose another --out"
        )
    for kind, module in modules.items():
        own = {name.removeprefix(f"{kind}."): value for name, value in tensors.items() if name.startswith(f"{kind}.")}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise TrainingError(
                f"{path}: its weights do not fit this model; give the file of the same recipe"
            ) from error
    state: dict[int, dict[str, Any]] = {}
    saved = {key: value for key, value in tensors.items() if key.startswith("optimizer.")}
    scalars = {f"optimizer.{key}": value for key, value in metadata["optimizer"].items()}
    for key, value in (saved | scalars).items():
        _, index, name = key.split(".", 2)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # The file holds plain contiguous tensors; the fused kernels walk memory and need a momentum laid out as its weight.
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    warnings = []
    for name, now in (("threads", torch.get_num_threads()), ("torch", torch.__version__)):
        if metadata[name] != now:
            warnings.append(f"{name} was {metadata[name]}, is {now}: the result may differ in the last bits")
    progress = Progress(**metadata["progress"])
    if progress.best is not None:  # a list in JSON
        score, loss = progress.best
        progress.best = (score, loss)
    return progress, warnings
