"""compress(run): the smallest model within a budget, in a folder of its own.

A compression folder holds

    compression.json   the budget, every number, and the machine they were measured on
    front.parquet      a line per candidate
    model.onnx         the winner; `closest.onnx` instead where nothing met the budget
    model.json, model.safetensors   rebuild the winner in PyTorch: the run's network, its shape, its weights
    stages/            fine-tuned networks, so that another budget does not train them again
    figures/           the first layer's filters, and the charts of the page
    .lock              held while a search writes here
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import pyarrow
from pydantic import ValidationError
from torch import nn

import kitae
from kitae import console, views
from kitae.compression.shape import Shape, reshape
from kitae.compression.spec import CompressOptions, CompressSpec
from kitae.errors import (
    BudgetError,
    CompressionError,
    KitaeError,
    MissingExtraError,
    TrainingError,
    TrainingInterruptedError,
    one_line,
)
from kitae.files import read_json, user_path, write_atomically, write_json, write_parquet
from kitae.folders import LOCK, REPORT, SIGNS, Owned
from kitae.machine import machine
from kitae.models.build import build_seeded
from kitae.modes import threads_restored, torch_defaults
from kitae.pipelines.budget import Outcome, judge, search
from kitae.pipelines.candidates import Bench
from kitae.pipelines.export import beside
from kitae.pipelines.networks import Networks, Say
from kitae.preprocess import PreprocessRules
from kitae.recipe import Recipe, explain, override
from kitae.reporting import compression_page, values
from kitae.reporting.compression_results import COMPRESSION_FORMAT, CompressionRecord
from kitae.reporting.figures import filters_picture
from kitae.run import Run
from kitae.runtime import has_vnni
from kitae.training.checkpoint import load_weights, save_weights

if TYPE_CHECKING:
    import pandas as pd

_AGAIN = "compress the run again"
_FACTS = SIGNS["compression"]
_FILES = (_FACTS, "front.parquet", "model.onnx", "closest.onnx", "model.json", "model.safetensors", REPORT)
_CANDIDATES = "candidates"
COMPRESSION = Owned(
    "compression", (*_FILES, "stages", _CANDIDATES, "figures"), CompressionError, first=LOCK, last=_FACTS
)
_NEW = ".new.tmp"  # a result that is not complete yet


@dataclass(frozen=True)
class CompressionResult:
    """A finished compression folder.

    Attributes:
        path: the folder.
        record: compression.json, validated.
    """

    path: Path
    record: CompressionRecord

    @classmethod
    def open(cls, path: str | Path) -> CompressionResult:
        """A compression that exists.

        Raises:
            CompressionError: none there, or its file is damaged.
        """
        file = user_path(path) / _FACTS
        if not file.is_file():
            raise CompressionError(f"{path}: no compression there (it has no compression.json)")
        return cls(file.parent, CompressionRecord.open(file.parent))

    @property
    def facts(self) -> dict[str, Any]:
        """compression.json.

        In addition to the other properties: `baseline`, the original's row; `smaller` and `faster`, the factors between
        it and the winner; `why_not`, what the closest one exceeds; `stopped`, why larger ratios were not tried; `sure`,
        whether the upper end of each drop's interval was compared with the budget; `left_out`, the candidates that
        could not be made, each with a `name` and `why`; `size`, the column by which size is judged (`packed_bytes` with
        unstructured pruning, else `bytes`); `sensitivity`, what quantizing each `layer` alone does (the first row,
        without a layer, is the float network): `divergence` in nats, `flips`, `accuracy`; `latency`, how times were
        taken; `images` in `train` and `val`; `spec`, `machine`, `recipe`, `run`.
        """
        return self.record.data()

    @property
    def model_file(self) -> Path:
        """The winner, or the closest."""
        return self.path / self.record.file

    @property
    def within_budget(self) -> bool:
        """Whether the winner was within the budget on validation."""
        return self.record.within_budget

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row per candidate, the original in float32 first.

        Bytes, latency and predictions are measured on the exported file; the images are those of validation.
        Proportions are in [0, 1], and NAME_interval is [low, high] at 95 %.

        - `name`; `prune` and the `ratio` of the channels or weights that were removed; `precision` (fp32, int8-dynamic,
          int8-static or int8-qat), the `calibration` of its ranges, and `float_layers`, how many of its first layers
          are not quantized
        - `parameters`; `nonzero`: the number of nonzero weights; `sparsity`: the share of zero weights; `macs`:
          multiply-adds for one image; `bytes` of the file; `weight_bytes`: of them the weights, biases and scales, the
          rest is the graph and the metadata; `packed_bytes`: the file packed with zlib
        - `accuracy`; `loss`: mean negative log likelihood, in nats; `drop`: points of accuracy (percent) lost against
          the original on the same images, negative for a gain; `flips`: share of the images whose class changes
        - `latency_ms`: median milliseconds for one image on this machine; `speedup`: how many times faster than the
          original
        - `parity_error`: largest difference of a probability from what the file must compute (the network in PyTorch;
          for 8 bits its integers in float arithmetic); `parity_flips`: share of the images whose class differs there;
          `masked_error`: largest difference of an output, as a share of the largest one, between the network right
          after its last channels were removed and one with zeros in their place; None without such a removal
        - `front`: no other candidate beats it in accuracy, size and latency; `winner`; `control`: measured for
          comparison, and never the winner
        """
        return [row.data() for row in self.record.candidates]

    @property
    def winner(self) -> dict[str, Any]:
        """The row of the winner: the smallest within the budget, or the one closest to it."""
        return self.record.winner.data()

    @property
    def test(self) -> dict[str, Any] | None:
        """The original and the winner on test; None where test was not opened, since nothing was within the budget.

        `baseline` and `winner` each have `name`, `accuracy` and its interval; `drop` is in points (percent), with its
        paired interval; `count` is the number of test images; `within_budget`: whether the drop is within it on test.
        """
        return None if self.record.test is None else self.record.test.data()

    def to_pandas(self) -> pd.DataFrame:
        """A row per candidate."""
        return views.frame(self.rows)

    def __repr__(self) -> str:
        answer = compression_page.answer(self.record)[0].removesuffix(".")
        return console.printable(f"CompressionResult({self.path}: {answer})")

    def _repr_html_(self) -> str:
        rows = [
            [self.record.label(row), values.share(row.accuracy, 2), values.points(row.drop),
             values.size(row.bytes), values.milliseconds(row.latency_ms)]
            for row in self.record.candidates
        ]  # fmt: skip
        columns = ["candidate", "validation accuracy", "lost", "file", "latency"]
        return views.block(str(self.path), compression_page.answer(self.record), columns, rows)

    @torch_defaults()
    def load_model(self) -> nn.Module:
        """The winner's network in PyTorch (before any rounding to 8 bits), in eval mode on the CPU.

        Raises:
            CompressionError: a file of the folder is missing or damaged; the message names it.
            MissingExtraError: a library that the network needs is missing.
        """
        file = self.path / "model.json"
        facts = read_json(file, "recipe", "classes", "preprocess", "shape", error=CompressionError)
        try:
            recipe = Recipe.model_validate(facts["recipe"])
            rules = PreprocessRules.from_dict(facts["preprocess"])
            model = build_seeded(recipe.model.trainable, recipe.train.seed, len(facts["classes"]), rules)
            model = reshape(model, Shape.model_validate(facts["shape"]))
        except MissingExtraError:
            raise
        except (KitaeError, ValueError, TypeError) as error:
            raise CompressionError(f"{file}: is damaged ({one_line(error)}); {_AGAIN}") from error
        file = self.path / "model.safetensors"
        try:
            model.load_state_dict(load_weights(file)[0])
        except TrainingError as error:  # it names the file
            raise CompressionError(str(error)) from error
        except RuntimeError as error:
            raise CompressionError(
                f"{file}: its weights are not those of the network in model.json; {_AGAIN}"
            ) from error
        return model.eval()


@threads_restored()
@torch_defaults()
def compress(
    run: Run | str | Path,
    out: str | Path | None = None,
    *,
    spec: CompressSpec | None = None,
    overwrite: bool = False,
    say: Say | None = None,
    **options: Unpack[CompressOptions],
) -> CompressionResult:
    """Find the smallest model within a budget: prune, fine-tune, quantize, export, measure, and open test once.

    Args:
        run: a trained run, or its folder.
        out: the compression folder; by default the run's with `-small` added. An interrupted search is
            resumed.
        spec: the budget and where to look. `options` are its fields, and override it
            (`max_drop=1.0, ratios=(0.3, 0.5)`); with ratios but no max_drop, all of them are measured.
        overwrite: replace the compression in `out`; fine-tuned stages that still fit are used again.
        say: called with lines of progress; None prints them on a terminal and in a notebook, and writes the page.

    Raises:
        BudgetError: nothing met the budget; the folder holds the closest, and the message says how close.
        CompressionError: the network cannot be compressed as asked.
        TrainingError: the run has no best model yet, is not finished, or is read-only; or a signal came (the ratios
            that were done are kept).
        ExportError: a file does not compute what it should.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    run.require_split("test")
    if run.recipe.data.whole:
        raise CompressionError(
            f"{run.path}: trained on everything (data.folds), so no images are left to measure the loss in accuracy; "
            "compress a run that was trained without --folds"
        )
    spec = resolve_spec(spec, options)
    folder = user_path(out) if out is not None else beside(run.path, "-small")
    with COMPRESSION.locked(folder, check=True):
        if (folder / _FACTS).exists() and not overwrite:
            raise CompressionError(f"{folder}: already has a compression; add --overwrite, or choose another --out")
        for left in (_CANDIDATES, _NEW):  # by an interrupted search
            shutil.rmtree(folder / left, ignore_errors=True)
        result = _compress(run, folder, spec, console.reporter(say))
    if say is None and console.interactive():
        from kitae.reporting.page import write_and_say

        write_and_say(folder)
    if not result.within_budget:
        record = result.record
        raise BudgetError(folder, f"({record.label(record.winner)}) {record.why_not}")
    return result


def _compress(run: Run, folder: Path, spec: CompressSpec, say: Say) -> CompressionResult:
    if spec.target == "vnni" and has_vnni() is False:
        say("note: target vnni, and this CPU has no VNNI: its integer sums can saturate, so accuracies of 8-bit files "
            "may be too low; target any is safe here")  # fmt: skip
    networks = Networks(run, spec, folder / "stages", say)
    bench = Bench(networks, folder / _CANDIDATES)
    try:
        outcome = search(bench)
    except TrainingInterruptedError as error:
        kept = f"{folder} keeps the finished ratios; run the same command again to resume"
        raise TrainingInterruptedError(f"{error.where} of a fine-tuning", kept) from error
    setup, found = networks.setup, outcome.record
    winner, test = found.label(found.winner), None
    if found.within_budget:
        say("opening test for the original and the winner")
        rows = setup.splits.open_test(lambda: run.count_test_opening(f"compress, {winner}"))
        scoring = replace(bench.scoring, labels=setup.store.labels[rows], groups=setup.store.groups_of(rows))
        test = judge(outcome, setup.image_set(rows), spec, scoring)
    about = {
        "format": COMPRESSION_FORMAT,
        "kitae": kitae.__version__,
        "run": run.path.name,
        "run_path": os.path.relpath(run.path, folder),
        "recipe": run.recipe.name,
        "machine": {**machine(), "vnni": has_vnni()},
        "images": {"train": len(setup.splits.train), "val": len(setup.splits.val)},
        "test": test,
    }
    record = found.model_copy(update=about)
    _write(folder, run, outcome, record)
    return CompressionResult(folder, record)


def resolve_spec(
    spec: CompressSpec | None, options: Mapping[str, Any], assignments: Sequence[str] = ()
) -> CompressSpec:  # fmt: skip
    """A spec with fields replaced, as `compress` takes them.

    Args:
        assignments: further fields, each `name=value`, applied last.

    Raises:
        CompressionError: a field, or two that do not go together, in one line.
        RecipeError: the same of an assignment.
    """
    named = {text.partition("=")[0].strip() for text in assignments}
    spec = spec or CompressSpec()
    given = options.keys() | named | spec.model_fields_set
    if "ratios" in given and not {"max_drop", "abandon"} & given:
        options = {**options, "abandon": False}  # ratios without a budget ask for the whole curve
    try:
        made = CompressSpec.model_validate({**spec.model_dump(), **options})
    except ValidationError as error:
        raise CompressionError(explain(error, CompressSpec, "compress", None)) from error
    made = override(made, list(assignments))
    if made.prune == "none" and "ratios" in options.keys() | named:
        raise CompressionError("ratios: nothing is removed with prune: none; leave one of them out")
    return made


def _write(folder: Path, run: Run, outcome: Outcome, record: CompressionRecord) -> None:
    new = folder / _NEW
    try:
        write_atomically(new / record.file, outcome.winner.path.read_bytes())
        write_parquet(pyarrow.Table.from_pylist([row.data() for row in record.candidates]), new / "front.parquet")
        save_weights(outcome.winner.model.state_dict(), new / "model.safetensors")
        write_json(new / "model.json", {
            **run.facts(), "parameters": record.winner.parameters, "macs": record.winner.macs,
            "temperature": outcome.winner.temperature, "recipe": run.recipe.model_dump(mode="json"),
            "shape": outcome.shape.model_dump(mode="json"),
        })  # fmt: skip
        if outcome.filters is not None:
            write_atomically(new / "figures" / "filters.png", filters_picture(*outcome.filters))
        write_json(new / _FACTS, record.data())
        # Everything is written, so the disk cannot fill up any more: replace the earlier compression with this one.
        shutil.rmtree(folder / "figures", ignore_errors=True)
        for old in _FILES:
            (folder / old).unlink(missing_ok=True)
        for entry in sorted(new.iterdir(), key=lambda entry: entry.name == _FACTS):
            os.replace(entry, folder / entry.name)  # last: its presence means that the folder is complete
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(folder / _CANDIDATES, ignore_errors=True)
