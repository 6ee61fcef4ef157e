from __future__ import annotations

import copy
import io
import json
import os
import pickle
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import kitae.runtime
from kitae.deployment.onnx import Card, serialize
from kitae.errors import DataError, ExportError, KitaeError
from kitae.preprocess import PreprocessRules, decode
from kitae.runtime import Model, Predictions, content_hash, has_vnni, metadata_checksum, open_session, read_metadata
from tests.images import encode, turned_by
from tests.refusals import refused

CARD = Card(("red", "green", "blue"), PreprocessRules(8, 3, "crop"), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def colour_graph() -> onnx.ModelProto:
    """Softmax of each channel's mean: says which of red, green and blue an image has most of."""
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("GlobalAveragePool", ["scaled"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.float32(0.02), "scale")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def overflowing_graph() -> onnx.ModelProto:
    """The same, which overflows for bright images."""
    graph = colour_graph()
    graph.graph.node[1].op_type = "Exp"
    del graph.graph.node[1].input[1], graph.graph.initializer[:]
    return graph


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.onnx"
    file.write_bytes(serialize(colour_graph(), CARD))
    return file


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (30, 20)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 40, (size[1], size[0], 3))
    return Image.fromarray((noise + np.array(colour) * 0.8).clip(0, 255).astype(np.uint8))


def test_all_kinds_of_images(path: Path, tmp_path: Path) -> None:
    red, green, blue = picture((255, 0, 0)), picture((0, 255, 0)), picture((0, 0, 255))
    file = tmp_path / "red.png"
    red.save(file)
    model = Model(path)
    assert repr(model).startswith(f"Model({path}: images of 3 x 8 x 8")
    predictions = model.predict([str(file), file, encode(green), blue, np.asarray(green)])
    assert predictions.names == ["red", "red", "green", "blue", "green"]
    assert predictions.labels.dtype == np.int64
    assert predictions.probabilities.shape == (5, 3)
    assert predictions.probabilities.dtype == np.float32
    assert predictions.classes == ("red", "green", "blue")
    assert len(predictions) == 5
    np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1, rtol=1e-6)


def test_one_image_none_and_a_generator(path: Path) -> None:
    model = Model(path)
    assert model.predict(picture((255, 0, 0))).names == ["red"]
    upload = io.BytesIO(encode(picture((255, 0, 0))))  # an open file is iterable, but its lines are no images
    assert model.predict(upload).names == ["red"]
    assert model.predict([picture((0, 0, 255)), io.BytesIO(upload.getvalue())]).names == ["blue", "red"]
    assert model.predict([]).probabilities.shape == (0, 3)
    assert model.predict(np.zeros((0, 3, 8, 8), np.uint8)).probabilities.shape == (0, 3)
    assert model.predict(picture(c) for c in [(0, 0, 255), (0, 255, 0)]).names == ["blue", "green"]


def test_a_column_of_paths_is_several_images(path: Path, tmp_path: Path) -> None:
    for place, colour in enumerate([(255, 0, 0), (0, 0, 255)]):
        picture(colour).save(tmp_path / f"{place}.png")
    files = [str(tmp_path / f"{place}.png") for place in range(2)]
    model = Model(path)
    for column in (np.array(files), np.array(files, object)):
        found = model.predict(column)
        assert (found.names, found.images) == (["red", "blue"], tuple(files))
    assert len(model.predict(np.array([]))) == 0


def test_predictions_with_equal_values_are_equal(path: Path) -> None:
    model = Model(path)
    first, second, other = (model.predict(picture(colour)) for colour in [(255, 0, 0), (255, 0, 0), (0, 255, 0)])
    assert first == second
    assert first != other
    assert first != Predictions(first.labels, first.probabilities, first.classes, ("red.png",))
    assert first != "red"
    assert model.predict([picture((255, 0, 0))] * 2) != first


def test_a_model_can_be_copied_and_sent_to_another_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    model = Model(path.name, threads=1)
    sent = pickle.dumps(model)
    monkeypatch.chdir("/")
    image = picture((0, 0, 255))
    for other in (pickle.loads(sent), copy.deepcopy(pickle.loads(sent))):
        assert other.predict(image) == model.predict(image)
        assert other.session.get_session_options().intra_op_num_threads == 1


def test_pixels_are_prepared_as_in_training(path: Path, tmp_path: Path) -> None:
    """An image turned by EXIF, with alpha, of an odd size: the graph sees what `preprocess.decode` gives."""
    image = picture((255, 0, 0), (31, 17))
    image.putpixel((0, 0), (0, 0, 255))
    image.save(tmp_path / "turned.jpg", exif=turned_by(6), quality=95)
    model = Model(path)
    expected = model.run(decode(tmp_path / "turned.jpg", CARD.rules)[None])
    np.testing.assert_array_equal(model.predict(tmp_path / "turned.jpg").probabilities, expected)
    np.testing.assert_array_equal(model.predict((tmp_path / "turned.jpg").read_bytes()).probabilities, expected)


def test_12_bit_images_are_read_with_the_depth_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4095 is white with depth 12, and nearly black with depth 16."""
    grey = np.random.default_rng(2).integers(0, 4096, (17, 31), np.uint16)
    Image.fromarray(grey).save(tmp_path / "12-bit.png")
    rules = replace(CARD.rules, depth=12)
    (tmp_path / "deep.onnx").write_bytes(serialize(colour_graph(), replace(CARD, rules=rules)))
    model = Model(tmp_path / "deep.onnx")
    assert model.rules.depth == 12
    given: list[np.ndarray] = []
    inner = model.run
    monkeypatch.setattr(model, "run", lambda batch: (given.append(batch), inner(batch))[1])
    model.predict(tmp_path / "12-bit.png")
    np.testing.assert_array_equal(given[0][0], decode(tmp_path / "12-bit.png", rules))
    assert 100 < given[0].mean() < 155  # with depth 16: 8


def test_an_output_that_is_not_finite_is_no_class(tmp_path: Path) -> None:
    file = tmp_path / "bright.png"
    picture((250, 250, 250)).save(file)
    (tmp_path / "model.onnx").write_bytes(serialize(overflowing_graph(), CARD))
    model = Model(tmp_path / "model.onnx")
    dark = Image.new("RGB", (8, 8), (3, 1, 1))
    assert model.predict([dark]).names == ["red"]
    refused(ExportError, f"{file}: the model's output for it is not finite; train again", model.predict, [file])
    refused(ExportError, "image 33: the model's output", model.predict, [*[dark] * 33, picture((250, 250, 250))])


def test_dynamic_files_take_one_image_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their activations are scaled by the batch: with more at a time an answer would depend on the neighbours."""
    file = tmp_path / "dynamic.onnx"
    file.write_bytes(serialize(colour_graph(), replace(CARD, precision="int8-dynamic")))
    model = Model(file)
    sizes: list[int] = []
    inner = model.run
    monkeypatch.setattr(model, "run", lambda batch: (sizes.append(len(batch)), inner(batch))[1])
    assert len(model.predict([picture((200, 0, 0))] * 3).names) == 3
    assert sizes == [1, 1, 1]


def test_the_batch_size_does_not_matter(path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (11, 3, 8, 8), np.uint8)
    model = Model(path, threads=1)
    one, four = (model.predict(images, batch_size=n).probabilities for n in (1, 4))
    np.testing.assert_allclose(one, four, atol=1e-6)
    np.testing.assert_array_equal(model.predict(list(images)).probabilities, model.predict(images).probabilities)


def test_a_graph_that_cannot_be_run_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where memory is short: onnxruntime's error is of a type of its own."""

    def fail(*_: Any) -> None:
        raise RuntimeError("[ONNXRuntimeError]\nFailed to allocate memory")

    model = Model(path)
    monkeypatch.setattr(model, "session", SimpleNamespace(run=fail))
    words = r"onnxruntime cannot run the graph for a batch of 1 .*Failed to allocate memory\); free some memory"
    refused(ExportError, words, model.predict, picture((1, 2, 3)))


BROKEN = encode(picture((1, 2, 3)))[:60]
BLACK = picture((0, 0, 0))


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (np.zeros((2, 3, 9, 8), np.uint8), ExportError, r"\[N, 3, 8, 8\], not uint8 \[2, 3, 9, 8\]"),
        (np.zeros((2, 1, 8, 8), np.uint8), ExportError, r"\[N, 3, 8, 8\], not uint8 \[2, 1, 8, 8\]"),
        (np.zeros((2, 3, 8, 8), np.float32), ExportError, "uint8 with values 0 to 255, .*, not float32"),
        ([np.zeros((8, 8), np.float64)], DataError, "image 0: .*uint8.*float64"),
        ([np.zeros((3, 12, 12), np.uint8)], DataError, "image 0: "),
        ([BLACK, 3.5], DataError, "image 1: .*float"),
        (7, DataError, "not int"),
        (["broken.png"], DataError, r"^broken\.png: cannot be decoded"),
        ([BLACK, b"nonsense"], DataError, "image 1: not an image"),
        (Image.open(io.BytesIO(encode(picture((1, 2, 3)))[:-30])), DataError, "image 0: cannot be decoded"),
    ],
)
def test_what_is_no_image_is_named(
    images: Any, error: type[KitaeError], words: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    Path("broken.png").write_bytes(BROKEN)
    refused(error, words, Model(path).predict, images)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda path: Model(path.parent / "absent.onnx"), r"absent\.onnx: cannot be read \(No such file"),
        (lambda path: Model(path.parent), "cannot be read"),
        (lambda path: Model(path, threads=0), "threads"),
        (lambda path: Model(path).predict([], batch_size=0), "batch_size"),
        (lambda path: Model(path).run([[0]]), "must be a NumPy array, not list"),
    ],
)
def test_what_no_model_can_be_asked(call: Callable[[Path], object], words: str, path: Path) -> None:
    refused(ExportError, words, call, path)


def metadata_of(content: bytes) -> dict[str, Any]:
    return read_metadata(content, "model.onnx", open_session(content))


def test_every_truncation_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for length in range(len(content)):
        refused(ExportError, "", metadata_of, content[:length])


def stamped(metadata: object) -> bytes:
    proto = colour_graph()
    helper.set_model_props(proto, {"kitae": metadata if isinstance(metadata, str) else json.dumps(metadata)})
    return proto.SerializeToString()


def as_written(**changes: object) -> bytes:
    """A file that says other things of itself, with the checksum of the whole."""
    metadata = CARD.to_metadata(content_hash(colour_graph().SerializeToString())) | changes
    return stamped({**metadata, "checksum": metadata_checksum(metadata)})


def test_metadata_has_a_checksum_of_its_own(path: Path) -> None:
    metadata = Model(path).metadata
    assert metadata["checksum"] == metadata_checksum(metadata)


def changed(change: Callable[[onnx.GraphProto], object]) -> bytes:
    """A file of ours with another graph."""
    proto = colour_graph()
    change(proto.graph)
    return serialize(proto, CARD)


def renamed(graph: onnx.GraphProto) -> None:
    graph.input[0].name = graph.node[0].input[0] = "pixels"


OURS = serialize(colour_graph(), CARD)
SAID = metadata_of(OURS)
SCALE = OURS.index(np.float32(0.02).tobytes())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an ONNX file"),
        (encode(picture((1, 2, 3))), "not an ONNX file"),
        (colour_graph().SerializeToString(), "not one that kitae wrote"),
        (OURS[: len(OURS) // 2], "cannot load it .*; export or copy it again, or upgrade onnxruntime"),
        (OURS[:SCALE] + bytes([OURS[SCALE] ^ 1]) + OURS[SCALE + 1 :], "hash differs"),
        (stamped(SAID | {"format": 2}), "upgrade"),
        (stamped("{"), "metadata is damaged"),
        (stamped(SAID | {"classes": ["red", "grean", "blue"]}), "hash differs"),
        (stamped(SAID | {"checksum": None}), "hash differs"),
        (stamped(SAID | {"checksum": ""}), "hash differs"),
        (stamped(SAID | {"temperature": 2.0}), "hash differs"),
        (as_written(preprocess={"image_size": 8, "colour": "yes"}), "colour"),
        (as_written(preprocess={"image_size": 8, "version": 99}), "version 99 is unknown.*; upgrade kitae$"),
        (as_written(preprocess="abc"), "its metadata cannot be used"),
        (as_written(preprocess={"image_size": 9}), r"3, 8, 8\).*, its metadata says .*3, 9, 9\)"),
        (as_written(preprocess={"image_size": 8, "channels": 1}), r"3, 8, 8\).*, its metadata says .*1, 8, 8\)"),
        (as_written(classes=[]), r"'tensor\(float\)', 3\).*, its metadata says .*'tensor\(float\)', 0\)"),
        (as_written(classes=None), "cannot be used"),
        (as_written(classes=["red", "green"]), r"'tensor\(float\)', 3\).*, its metadata says .*, 2\)"),
        (changed(lambda graph: setattr(graph.node[2], "op_type", "NoSuchOp")), "cannot load it"),
        (changed(renamed), "its graph has .*pixels"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    refused(ExportError, rf"model\.onnx: .*{words}", Model, file)


@pytest.mark.parametrize(("target", "vnni", "warns"), [("vnni", False, True), ("vnni", True, False),
                                                        ("vnni", None, False), ("any", False, False)])  # fmt: skip
def test_a_vnni_file_on_another_cpu_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, target, vnni, warns
) -> None:
    monkeypatch.setattr(kitae.runtime, "has_vnni", lambda: vnni)
    (tmp_path / "model.onnx").write_bytes(
        serialize(colour_graph(), replace(CARD, target=target, precision="int8-static"))
    )
    if warns:
        with pytest.warns(UserWarning, match="VNNI"):
            Model(tmp_path / "model.onnx")
    else:
        Model(tmp_path / "model.onnx")
        assert not recwarn.list


def test_vnni_is_read_from_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(Path, "read_text", lambda self, **_: "model name : x\nflags : sse avx512_vnni\n")
    assert has_vnni() is True
    monkeypatch.setattr(Path, "read_text", lambda self, **_: "flags\t\t: sse avx2\n")
    assert has_vnni() is False
    monkeypatch.setattr(Path, "read_text", lambda self, **_: "nothing known\n")
    assert has_vnni() is None
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert has_vnni() is True


LIGHT = """
import sys
from kitae.runtime import Model
assert Model(sys.argv[1]).predict(sys.argv[2]).names == ["red"]
heavy = {"torch", "numba", "onnx", "pydantic", "scipy", "pandas", "matplotlib", "torchvision"} & set(sys.modules)
assert not heavy, heavy
"""


def test_prediction_imports_nothing_heavy(path: Path, tmp_path: Path) -> None:
    picture((255, 0, 0)).save(tmp_path / "red.png")
    subprocess.run([sys.executable, "-c", LIGHT, str(path), str(tmp_path / "red.png")], check=True, timeout=120)


@pytest.mark.slow
def test_the_runtime_extra_is_enough(path: Path, tmp_path: Path) -> None:
    """In a virtual environment with `kitae[runtime]` and nothing else, the module and the command predict."""
    red, blue = tmp_path / "red.png", tmp_path / "blue.jpg"
    picture((255, 0, 0)).save(red)
    picture((0, 0, 255), (17, 90)).save(blue)
    root = Path(__file__).resolve().parents[1]
    venv.create(tmp_path / "env", with_pip=True)
    python, kitae = (tmp_path / "env" / "bin" / name for name in ("python", "kitae"))
    subprocess.run([python, "-m", "pip", "install", "-q", f"{root}[runtime]"], check=True, timeout=500)
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # not what the tests import
    alone["PATH"] = f"{tmp_path / 'env' / 'bin'}{os.pathsep}{alone['PATH']}"

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [str(word) for word in words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=alone, cwd=tmp_path)

    for absent in ("torch", "numba", "onnx", "pyarrow", "scipy"):
        assert f"No module named '{absent}'" in run(python, "-c", f"import {absent}").stderr
    done = run(python, "-c", LIGHT.replace('"pydantic", ', ""), path, red)
    assert done.returncode == 0, done.stderr

    done = run(kitae, "predict", path, red, blue, "--out", "all.csv")
    assert (done.returncode, done.stderr) == (0, f"starting: kitae predict {path}\nwritten to all.csv\n")
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == ["class", "red", "blue"]
    shares = [[float(x) for x in line.split(",")[2:]] for line in (tmp_path / "all.csv").read_text().splitlines()[1:]]
    np.testing.assert_allclose(shares, Model(path).predict([red, blue]).probabilities, atol=1e-5)

    done = run(kitae, "train", "fashion-mini")
    assert (done.returncode, done.stdout) == (2, "starting: kitae train fashion-mini\n")
    assert done.stderr.strip() == f"error: torch is not installed: pip install '{root}[train]'"
    done = run(kitae, "predict", path, red, "--out", "all.parquet")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: pyarrow is not installed: pip install '{root}[train]'"
