"""compress(run) and export(run): the rooms that shrink a trained network and write it down, wired in order.

A compression folder holds

    compression.json   the budget, every number, and the machine they were measured on
    front.parquet      a line a candidate
    model.onnx         the winner; `closest.onnx` instead where nothing met the budget
    model.json, model.safetensors   what rebuilds the winner in PyTorch: the run's network, its shape, its weights
    stages/            fine-tuned networks, so that another budget does not train them again
    figures/           pictures
    .lock              held while a search writes here
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kitae
from kitae import keyed
from kitae.compression.prune import Shape, reshape
from kitae.compression.quantize import FEWEST_IMAGES
from kitae.compression.spec import CompressSpec
from kitae.deployment.onnx import Card, Exported, serialize, to_onnx
from kitae.deployment.onnx import export as write_onnx
from kitae.deployment.verify import Parity, torch_reference, verify_float, verify_integer
from kitae.errors import (
    BudgetError,
    CompressionError,
    DataError,
    KitaeError,
    TrainingError,
    TrainingInterruptedError,
    one_line,
)
from kitae.evaluation import intervals, latency
from kitae.evaluation.calibration import fit_temperature
from kitae.files import LOCK, lock_folder, write_atomically, write_json
from kitae.models.build import SCALING, build, count_macs, count_parameters
from kitae.pipelines.budget import Images, Outcome, Tools, judge, search, size_field
from kitae.pipelines.setup import Setup, begin
from kitae.preprocess import PreprocessRules
from kitae.recipe import Recipe
from kitae.reporting import figures
from kitae.run import Run, machine, write_parquet
from kitae.runtime import has_vnni
from kitae.training.batches import epoch_shape
from kitae.training.checkpoint import load_weights, save_weights
from kitae.training.distributed import World
from kitae.training.fit import Tuning
from kitae.training.learner import Teacher

Say = Callable[[str], None]

_FILES = ("compression.json", "front.parquet", "model.onnx", "closest.onnx", "model.json", "model.safetensors",
          "report.html")  # fmt: skip
_CANDIDATES = "candidates"
_FOLDERS = ("stages", _CANDIDATES, "figures")
_NEW = ".new.tmp"  # a result that is not whole yet
_VERIFY_IMAGES = 256
_FORMAT = 1
_FACTS = {"within_budget", "candidates", "winner", "test"}  # of compression.json; what the properties below read


@dataclass(frozen=True)
class CompressionResult:
    """A finished compression folder.

    Attributes:
        path: the folder.
        facts: compression.json.
    """

    path: Path
    facts: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> CompressionResult:
        """A compression that exists.

        Raises:
            CompressionError: none there, or its file is damaged.
        """
        file = Path(path) / "compression.json"
        if not file.is_file():
            raise CompressionError(f"{path}: no compression there (it has no compression.json)")
        return cls(Path(path), _read_json(file, _FACTS))

    @property
    def model_file(self) -> Path:
        """The winner, or the closest."""
        return self.path / ("model.onnx" if self.within_budget else "closest.onnx")

    @property
    def within_budget(self) -> bool:
        """Whether the winner was within the budget on validation."""
        return bool(self.facts["within_budget"])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A line a candidate."""
        return list(self.facts["candidates"])

    @property
    def winner(self) -> dict[str, Any]:
        """The line of the winner."""
        return dict(self.facts["winner"])

    @property
    def test(self) -> dict[str, Any] | None:
        """The original and the winner on test, or None where test was not opened."""
        return None if self.facts["test"] is None else dict(self.facts["test"])

    def load_model(self) -> nn.Module:
        """The winner's network in PyTorch (before any rounding to 8 bits), in eval mode on the CPU.

        Raises:
            CompressionError: a file of the folder is missing or damaged; the message names it.
        """
        file = self.path / "model.json"
        facts = _read_json(file, {"recipe", "classes", "preprocess", "shape"})
        try:
            recipe = Recipe.model_validate(facts["recipe"])
            rules = PreprocessRules.from_dict(facts["preprocess"])
            model = reshape(_fresh(recipe, facts["classes"], rules), Shape.from_dict(facts["shape"]))
        except (KitaeError, ValueError, TypeError) as error:
            raise CompressionError(f"{file}: is damaged ({one_line(error)})") from error
        file = self.path / "model.safetensors"
        try:
            model.load_state_dict(load_weights(file)[0])
        except TrainingError as error:  # it names the file
            raise CompressionError(str(error)) from error
        except RuntimeError as error:
            raise CompressionError(f"{file}: its weights are not those of the network in model.json") from error
        return model.eval()


def _read_json(file: Path, keys: set[str]) -> dict[str, Any]:
    """The JSON object of a file, which holds these keys at least."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CompressionError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CompressionError(f"{file}: is damaged (not JSON)") from error
    lacking = sorted(keys - value.keys()) if isinstance(value, dict) else sorted(keys)
    if lacking:
        raise CompressionError(f"{file}: is damaged (it has no {lacking[0]})")
    return dict(value)


def export(run: Run | str | Path, path: str | Path | None = None) -> Exported:
    """Write a run's best weights as one verified ONNX file.

    Args:
        path: where to; by default beside the run's folder, under its name.

    Raises:
        TrainingError: the run has no best model yet.
        ExportError: the network cannot be exported, or the file does not compute what it computes.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    model = run.load_model()
    try:
        images = _rows(Setup.of(run), "val").first(_VERIFY_IMAGES)
    except DataError:  # the data has moved; made-up pictures verify a file too
        images = None
    file = Path(path) if path is not None else _beside(run.path, ".onnx")
    return write_onnx(model, file, card(run), images)


def _beside(folder: Path, suffix: str) -> Path:
    """A neighbour of a folder under its name, also of `.`."""
    whole = folder.resolve()
    return whole.with_name(f"{whole.name}{suffix}")


def card(run: Run) -> Card:
    """What an exported file of this run says about itself."""
    facts = run.facts()
    return Card(
        classes=run.classes,
        rules=run.rules,
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        temperature=float(facts["temperature"]),
        recipe=run.recipe.name,
    )


def compress(
    run: Run | str | Path,
    out: str | Path | None = None,
    *,
    spec: CompressSpec | None = None,
    overwrite: bool = False,
    say: Say | None = None,
    **options: Any,
) -> CompressionResult:
    """Find the smallest model within a budget: prune, fine-tune, quantize, export, measure, and open test once.

    Args:
        run: a trained run, or its folder.
        out: the compression folder; by default the run's with `-small` added. A folder whose search was interrupted is
            gone on with.
        spec: the budget and where to look. `options` are its fields, and go before (`max_drop=1.0, ratios=(0.3, 0.5)`);
            with ratios but no max_drop, all of them are measured, hopeless or not.
        overwrite: replace the compression in `out`; fine-tuned stages that still fit are used again.
        say: gets a line of progress.

    Raises:
        BudgetError: nothing met the budget; the folder holds the closest, and the message says how close.
        CompressionError: the network cannot be compressed as asked.
        TrainingError: the run has no best model yet; or a signal came (the ratios that were done are kept).
        ExportError: a file does not compute what it should.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    run.load_model()  # says what is wrong with a run that has no best model
    run.require_finished()
    spec = resolve_spec(spec, options)
    folder = Path(out) if out is not None else _beside(run.path, "-small")
    if not os.access(run.path, os.W_OK):
        raise CompressionError(f"{run.path}: is read-only, and an opening of test is counted there; copy the run")
    with _taken(folder, overwrite):
        return _compress(run, folder, spec, say or (lambda line: None))


def _compress(run: Run, folder: Path, spec: CompressSpec, say: Say) -> CompressionResult:
    world = begin(run.recipe.train)
    if spec.target == "vnni" and has_vnni() is False:
        say("note: target vnni, and this CPU has no VNNI: its integer sums can saturate, so accuracies of 8-bit files "
            "may be too low; target any is safe here")  # fmt: skip
    model = run.load_model(free=True).to(world.device)
    setup = Setup.of(run)
    train, validation = _rows(setup, "train"), _rows(setup, "val")
    if len(train) < FEWEST_IMAGES and {"static", "qat"} & set(spec.quantize):
        raise CompressionError(
            f"{run.path}: {len(train)} training images are too few to calibrate with, at least {FEWEST_IMAGES} are "
            "needed; --quantize none or dynamic needs none"
        )
    about = card(run)
    calibrated = _Calibrated(run, setup, about, model)
    tools = _tools(run, spec, setup, calibrated, train, validation, folder, world, say)
    try:
        outcome = search(
            model,
            spec,
            tools,
            input_shape=about.input_shape,
            calibration=train.first(spec.calibration_images),
            selection=validation,
            folder=folder / _CANDIDATES,
        )
    except TrainingInterruptedError as error:
        kept = f"{folder} keeps the ratios that were done: the same command goes on from there"
        raise TrainingInterruptedError(f"{error.where} of a fine-tuning", kept) from error
    test: dict[str, Any] | None = None
    if outcome.within_budget:
        say("opening test for the original and the winner")
        rows = setup.splits.open_test(lambda: run.count_test_opening(f"compress, {outcome.winner.name}"))
        test = judge(outcome, Images(setup.image_set(rows).gather, rows), tools, spec)
    counts = {"train": len(train), "val": len(validation)}
    result = _write(folder, run, spec, outcome, test, counts, calibrated(outcome.model).temperature)
    if not outcome.within_budget:
        raise BudgetError(folder, f"{outcome.winner.name}, {outcome.why_not}")
    return result


def resolve_spec(spec: CompressSpec | None, options: Mapping[str, Any]) -> CompressSpec:
    """A spec with fields replaced, as `compress` takes them.

    Raises:
        CompressionError: a field, or two that do not go together, in one line.
    """
    from pydantic import ValidationError

    told = options.keys() | (spec.model_fields_set if spec else set())
    if "ratios" in options and not {"max_drop", "abandon"} & told:
        options = {**options, "abandon": False}  # who names ratios but no budget wants the whole curve
    try:
        return CompressSpec.model_validate({**(spec.model_dump() if spec else {}), **options})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "compress"
        raise CompressionError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error


@contextmanager
def _taken(folder: Path, overwrite: bool) -> Iterator[None]:
    """Make the folder, or take one that an earlier compression left, and hold it against other processes."""
    _require_ours(folder, overwrite)
    busy = "another process is compressing into it; choose another --out"
    lock = lock_folder(folder, CompressionError, busy)  # the search takes long: better to know now
    try:
        _require_ours(folder, overwrite)  # again: another process may have finished one in between
        for left in (_CANDIDATES, _NEW):  # by one that was stopped
            shutil.rmtree(folder / left, ignore_errors=True)
        yield
    finally:
        os.close(lock)


def _require_ours(folder: Path, overwrite: bool) -> None:
    """Never a folder with anything in it that no compression wrote."""
    if folder.exists() and not folder.is_dir():
        raise CompressionError(f"{folder}: is a file, not a folder")
    strangers = [] if not folder.exists() else sorted(
        entry.name for entry in folder.iterdir() if entry.name not in (*_FILES, *_FOLDERS, LOCK)
        and not entry.name.endswith(".tmp")
    )  # fmt: skip
    if strangers:
        raise CompressionError(
            f"{folder}: holds files that no compression wrote ({strangers[0]}); choose another --out"
        )
    if (folder / "compression.json").exists() and not overwrite:
        raise CompressionError(f"{folder}: holds a compression already; add --overwrite, or choose another --out")


class _Calibrated:
    """What a network's file says about itself: fine-tuning moves the logits, so each has a temperature of its own."""

    def __init__(self, run: Run, setup: Setup, about: Card, original: nn.Module) -> None:
        self.run, self.setup, self.about = run, setup, about
        self._known: dict[int, tuple[nn.Module, Card]] = {id(original): (original, about)}  # holds them, so ids stay

    def __call__(self, model: nn.Module) -> Card:
        if id(model) not in self._known:
            about = self.about
            if self.run.recipe.evaluate.temperature:
                validation = self.setup.image_set(self.setup.splits.val)
                try:
                    logits, labels = self.run.logits(validation, model, tta="none")
                except TrainingError as error:  # of 8-bit training that diverged: a file that cannot be had
                    raise CompressionError(str(error)) from error
                about = about.but(temperature=fit_temperature(logits, labels))
            self._known[id(model)] = (model, about)
        return self._known[id(model)][1]


def _fresh(recipe: Recipe, classes: Iterable[str], rules: PreprocessRules) -> nn.Module:
    """The run's network with initial weights, a pure function of its seed."""
    plain = recipe.model.model_copy(update={"pretrained": False, "freeze": "none"})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed.derive_seed(recipe.train.seed, 0, 0, keyed.SLOT_MODEL))
        return build(plain, classes=len(tuple(classes)), channels=rules.channels, image_size=rules.image_size)


def _rows(setup: Setup, split: str) -> Images:
    """Training images in a keyed order (so that the first few are a sample), or validation images in their own."""
    rows = setup.shuffled_train if split == "train" else setup.splits.val
    return Images(setup.image_set(rows).gather, rows)


def _small(run: Run) -> dict[str, Callable[[], nn.Module]]:
    """Networks of the run's own family where it comes in widths, else ResNet-9s, the narrowest first."""
    family = run.recipe.model.name if run.recipe.model.name in SCALING else "resnet9"

    def build_width(width: int) -> nn.Module:
        spec = run.recipe.model.model_copy(update={"name": family, "width": width, "stem": "auto"})
        recipe = run.recipe.model_copy(update={"model": spec})
        return _fresh(recipe, run.classes, run.rules)

    return {
        f"{family} of width {width}": partial(build_width, width) for width in (4, 6, 8, 12, 16, 20, 24, 32, 48, 64)
    }


class _Epochs:
    """A line an epoch, for trainings of minutes."""

    def __init__(self, say: Say, epochs: int) -> None:
        self.say, self.epochs = say, epochs

    def on_step(
        self, epoch: int, step: int, steps: int, loss: float, images_per_second: float, data_share: float
    ) -> None:
        pass

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        score = row["val_accuracy"]
        shown = "no score" if score is None else f"{100 * score:.2f} %"
        self.say(
            f"  epoch {row['epoch']}/{self.epochs}: {shown} on validation, {row['images_per_second']:,.0f} images/s"
        )

    def note(self, text: str) -> None:
        self.say(text)


class _Stages:
    """Fine-tuned networks in the compression folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, key: str) -> tuple[dict[str, Tensor], Shape, float | None] | None:
        file = self.folder / f"{key}.safetensors"
        if not file.is_file():
            return None
        try:
            weights, metadata = load_weights(file)
            return weights, Shape.from_dict(metadata["shape"]), metadata["masked_error"]
        except (TrainingError, CompressionError, KeyError):  # damaged: trained again, and written anew
            return None

    def save(self, key: str, weights: dict[str, Tensor], shape: Shape, masked_error: float | None) -> None:
        facts = {"shape": shape.to_dict(), "masked_error": masked_error}
        save_weights(weights, self.folder / f"{key}.safetensors", facts)


def _tools(
    run: Run,
    spec: CompressSpec,
    setup: Setup,
    calibrated: _Calibrated,
    train: Images,
    validation: Images,
    folder: Path,
    world: World,
    say: Say,
) -> Tools:
    about = calibrated.about
    images = validation.first(_VERIFY_IMAGES)
    training = run.recipe.train

    def verify(content: bytes, model: nn.Module) -> Parity:
        reference = partial(torch_reference, model, about.mean, about.std, calibrated(model).temperature)
        return verify_float(content, reference(), images, partial(reference, double=True))

    def to_file(graph: Any, precision: str, notes: Mapping[str, Any], model: nn.Module) -> bytes:
        target = "any" if precision == "fp32" else spec.target
        return serialize(graph, calibrated(model).but(precision=precision, target=target, notes=notes))

    def recover(model: nn.Module, *, epochs: int, **options: Any) -> nn.Module:
        return setup.recover(model, epochs=epochs, watcher=_Epochs(say, epochs), **options)

    def scratch(model: nn.Module, more: int, teacher: nn.Module | None, seed: int) -> nn.Module:
        longer = training.model_copy(update={"epochs": training.epochs + more, "seed": seed})
        layout = torch.channels_last if training.channels_last else torch.contiguous_format
        model = model.to(device=world.device, memory_format=layout)  # type: ignore[call-overload]
        guide = None if teacher is None else Teacher(teacher)
        setup.fit(model, longer, world, watcher=_Epochs(say, longer.epochs), tuning=Tuning(guide))
        return model

    return Tools(
        recover=recover,
        fresh=lambda: _fresh(run.recipe, run.classes, run.rules),
        batches=partial(setup.clean_batches, world.device),
        to_graph=lambda model, calibrate=True: to_onnx(model, calibrated(model) if calibrate else about),
        to_file=to_file,
        verify_float=verify,
        verify_integer=lambda content: verify_integer(content, images),
        compare=intervals.paired_difference,
        interval=intervals.wilson,
        measure=lambda calls, reference: latency.measure(calls, reference=reference, repeats=50).to_dict(),
        describe=lambda model: {
            "parameters": count_parameters(model),
            "macs": count_macs(model, about.rules.channels, about.rules.image_size),
        },
        steps_per_epoch=epoch_shape(len(train), training, world.size).updates,
        fingerprint=hashlib.sha256(run.best.read_bytes() + setup.store.fingerprint.encode()
                                   + run.recipe.fingerprint.encode()).hexdigest(),
        scratch=scratch,
        small=_small(run),
        stages=_Stages(folder / "stages"),
        say=say,
    )  # fmt: skip


def _write(
    folder: Path, run: Run, spec: CompressSpec, outcome: Outcome, test: dict[str, Any] | None, counts: dict[str, int],
    temperature: float,
) -> CompressionResult:  # fmt: skip
    rows = outcome.rows
    winner = next(row for row in rows if row["winner"])
    size = size_field(spec)
    facts = {
        "format": _FORMAT,
        "kitae": kitae.__version__,
        "run": run.path.name,
        "recipe": run.recipe.name,
        "spec": spec.model_dump(mode="json"),
        "machine": {**machine(), "vnni": has_vnni()},
        "images": counts,
        "within_budget": outcome.within_budget,
        "why_not": outcome.why_not,
        "stopped": outcome.stopped,
        "sure": outcome.sure,
        "left_out": [{"name": name, "why": why} for name, why in outcome.left_out],
        "baseline": rows[0],
        "winner": winner,
        "size": size,
        "smaller": rows[0][size] / winner[size],
        "faster": winner["speedup"],
        "test": test,
        "latency": {name: value for name, value in outcome.latency.items() if name != "candidates"},
        "candidates": rows,
        "sensitivity": [vars(item) for item in outcome.sensitivity],
    }
    name = "model.onnx" if outcome.within_budget else "closest.onnx"
    new = folder / _NEW
    try:
        write_atomically(new / name, outcome.winner.path.read_bytes())
        write_parquet(_table(rows), new / "front.parquet")
        save_weights(outcome.model.state_dict(), new / "model.safetensors")
        write_json(new / "model.json", {
            **run.facts(), "temperature": temperature, "recipe": run.recipe.model_dump(mode="json"),
            "shape": outcome.shape.to_dict(),
        })  # fmt: skip
        _draw(new / "figures", spec, outcome, rows)
        write_json(new / "compression.json", facts)
        # Nothing is left that could run out of space: what an earlier compression left goes, and this takes its place.
        shutil.rmtree(folder / "figures", ignore_errors=True)
        for old in _FILES:
            (folder / old).unlink(missing_ok=True)
        for entry in sorted(new.iterdir(), key=lambda entry: entry.name == "compression.json"):
            os.replace(entry, folder / entry.name)  # that one last: its presence says that the folder is whole
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(folder / _CANDIDATES, ignore_errors=True)
    return CompressionResult(folder, facts)


def _table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow

    return pyarrow.Table.from_pylist(rows)


def _draw(folder: Path, spec: CompressSpec, outcome: Outcome, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    baseline = rows[0]
    figures.draw_compression(
        rows, folder / "pareto.png", baseline=baseline, winner={"name": outcome.winner.name}, max_drop=spec.max_drop,
        size=size_field(spec), within_budget=outcome.within_budget,
    )  # fmt: skip
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["precision"] != "fp32":
            continue
        removed = 1 - row["nonzero"] / baseline["parameters"]
        name = row["name"].split(",")[0] if row["control"] else "pruned"
        if row["ratio"] > 0 or spec.prune != "none":
            curves.setdefault(name, []).append({**row, "sparsity": removed})
    if curves:
        figures.draw_sparsity(curves, folder / "sparsity.png", baseline=baseline["accuracy"])
    figures.draw_latency(
        [{"name": row["name"], "milliseconds": row["latency_ms"], "milliseconds_interval": row["latency_ms_interval"],
          "speedup": row["speedup"]} for row in rows],
        folder / "latency.png", control=outcome.latency["control"]["ratio"],
    )  # fmt: skip
    if outcome.filters is not None:
        values, kept = outcome.filters
        figures.draw_filter_masks(kept, folder / "filters.png", weights=values)
