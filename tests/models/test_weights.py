"""Where pretrained weights come from, and that they are the ones that were asked for."""

from __future__ import annotations

import hashlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from kitae.errors import RecipeError
from kitae.models import weights
from kitae.models.build import build
from kitae.models.spec import ModelSpec
from kitae.models.weights import PACKAGES, Package, Weights, load, within_reach
from tests.refusals import refused

NET = "test_efficientnet"
SPEC = ModelSpec(name=f"timm:{NET}", pretrained=True)


def tensors(seed: int = 5, net: str = NET) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(timm.create_model(net).state_dict())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """An installed package whose file names the layers in its own way."""
    folder = tmp_path / "site" / "weights_of_test"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('nothing of it is run')")
    own = tensors()
    renamed = {f"_layer{place}.{name.rpartition('.')[2]}": tensor for place, (name, tensor) in enumerate(own.items())}
    torch.save(renamed, folder / "w.pth")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    made = Package(
        distribution="weights-of-test", module="weights_of_test", file="w.pth",
        file_sha256=hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest(),
    )  # fmt: skip
    monkeypatch.setitem(PACKAGES, NET, made)
    return made


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)


def same(a: dict[str, torch.Tensor], b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_package_s_weights_get_the_net_s_names(package: Package) -> None:
    found = load(SPEC)
    assert same(tensors(), found.tensors)
    assert found.source == "weights-of-test"
    assert "weights_of_test" not in sys.modules
    assert within_reach(NET) == "weights-of-test"


def test_a_package_s_file_must_be_the_published_one(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "site" / "weights_of_test" / "w.pth"
    torch.save(tensors(seed=6), file)
    refused(RecipeError, r"w\.pth is not the file", load, SPEC)
    other = tensors(net="test_resnet")
    torch.save(other, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(PACKAGES, NET, Package("p", "weights_of_test", "w.pth", digest))
    refused(RecipeError, "do not fit", load, SPEC)


def test_a_run_s_weights_are_pinned(package: Package, tmp_path: Path) -> None:
    pinned = SPEC.model_copy(update={"pretrained_sha256": load(SPEC).sha256})
    assert load(pinned).source == "weights-of-test"
    path = tmp_path / "other.safetensors"
    save_file(tensors(seed=6), path)
    others = pinned.model_copy(update={"pretrained": str(path)})
    refused(RecipeError, r"other\.safetensors are not those of the recipe", load, others)


def test_the_hash_is_of_values_and_names() -> None:
    own = tensors()
    digest = Weights(own, "here").sha256
    assert Weights(dict(reversed(own.items())), "there").sha256 == digest
    name = next(iter(own))
    assert Weights({**own, name: own[name] + 1}, "").sha256 != digest
    assert Weights({("x" if key == name else key): value for key, value in own.items()}, "").sha256 != digest


def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    published = tensors(net="test_resnet")
    save_file(published, tmp_path / "model.safetensors")
    asked = []

    def download(repository: str, filename: str) -> str:
        asked.append((repository, filename))
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(weights, "hub_answers", lambda repository: True)
    spec = ModelSpec(name="timm:test_resnet", pretrained=True)
    assert within_reach("test_resnet") == "timm/test_resnet.r160_in1k"
    assert not asked, "nothing is fetched to find that out"
    model = build(spec, classes=3, channels=3, image_size=32)
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    first = next(iter(published))
    assert torch.equal(model.state_dict()[first], published[first])
    assert not model.get_classifier().weight.any()  # type: ignore[operator]
    grey = build(spec, classes=3, channels=1, image_size=32)
    assert torch.allclose(grey.state_dict()[first], published[first].sum(1, keepdim=True), atol=1e-6)


def test_no_network_costs_no_time(no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: pytest.fail("tries again and again"))
    with pytest.raises(RecipeError, match=r"timm:test_resnet .*; connect to the network, or give"):
        load(ModelSpec(name="timm:test_resnet", pretrained=True))
    assert within_reach("test_resnet") is None


def test_a_resolver_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: Any, **options: Any) -> None:
        time.sleep(2)
        raise OSError

    monkeypatch.setattr(weights, "_ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(socket, "create_connection", hang)
    begun = time.monotonic()
    assert not weights.hub_answers("timm/x")
    assert time.monotonic() - begun < 1.5


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], str]]:
    """Starts a server that answers everything with a status, as the hub or as a proxy, and returns its address."""
    import huggingface_hub

    servers: list[ThreadingHTTPServer] = []

    def start(status: int) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                seen.append(self.path)
                self.send_response(status)
                self.end_headers()

            def do_CONNECT(self) -> None:
                self.do_HEAD()

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    seen: list[str] = []
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    huggingface_hub.close_session()  # it keeps the proxies that it began with
    start.seen = seen  # type: ignore[attr-defined]
    yield start
    huggingface_hub.close_session()
    for one in servers:
        one.shutdown()
        one.server_close()


@pytest.mark.parametrize(("status", "has"), [(200, True), (401, False), (404, False), (503, False)])
def test_the_hub_is_asked_for_the_file(server: Any, monkeypatch: pytest.MonkeyPatch, status: int, has: bool) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server(status))
    assert weights.hub_answers("timm/x") == has
    assert server.seen == ["/timm/x/resolve/main/model.safetensors"]


def test_a_proxy_that_refuses_is_no_network(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", server(403))
    assert not weights.hub_answers("timm/x")
    assert server.seen == ["huggingface.co:443"]


def test_offline_mode_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("asked the network"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not weights.hub_answers("timm/x")


def test_a_missing_package_is_named(no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setitem(PACKAGES, NET, Package("weights-of-test", "not_installed", "w.pth", ""))
    refused(RecipeError, r"\[weights\]", load, SPEC)


def test_efficientnet_lite0_is_the_one_that_was_measured() -> None:
    if PACKAGES["tf_efficientnet_lite0"].find() is None:
        pytest.skip("the extra `weights` is not installed")
    found = load(ModelSpec(name="timm:tf_efficientnet_lite0", pretrained=True))
    assert found.sha256 == "b74918d7d2733b5c74599728baffddd1c2592031706f669625969cc55c6b3dea"
