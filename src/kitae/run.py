"""The run folder: the files that training writes. Only this module knows their names.

recipe.yaml           the recipe with `auto` resolved
asked_length.json     of a run with minutes: the epochs, steps and warm-up before the minutes changed them
environment.json      hardware, versions, threads
model.json            to rebuild the network and prepare an image: classes, size, normalisation, temperature
splits.npz            store rows of train, val and test
metrics.jsonl         a line per epoch; epoch 0 is the probe
features/             the frozen network's features of the training images, until the run is finished
best.safetensors      weights of the best epoch
last/checkpoint.safetensors   the whole state, to resume from
evaluation.json       validation and test, at the end
predictions.parquet   every test image with its probabilities
test_openings.jsonl   a line for each time test was opened, written before it is
folds/1, ...          a run for each fold, where the recipe has data.folds
report.html, figures/ the page and its charts, by `kitae report`
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kitae import keyed, views
from kitae.errors import DataError, RecipeError, TrainingError
from kitae.evaluation.spec import Tta
from kitae.files import read_json, require_format, write_atomically, write_json, write_parquet
from kitae.folders import LOCK, Owned, lock
from kitae.machine import machine, now
from kitae.preprocess import ImageLike, PreprocessRules
from kitae.recipe import Recipe, differences
from kitae.training.spec import merit

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from torch import nn

    from kitae import Plots
    from kitae.data.loader import ImageSet
    from kitae.data.splits import Splits
    from kitae.data.store import Store
    from kitae.models.spec import ModelSpec
    from kitae.models.weights import Weights
    from kitae.predictor import Predictor
    from kitae.runtime import Predictions

_FORMAT = 1
RUN_FOLDER = Owned("run", (
    "last", "features", "folds", "figures", "tensorboard", "recipe.yaml", "asked_length.json",
    "environment.json", "model.json", "splits.npz", "metrics.jsonl", "best.safetensors", "evaluation.json",
    "predictions.parquet", "test_logits.npy", "test_openings.jsonl", "report.html",
), TrainingError, first="recipe.yaml")  # fmt: skip


class Run:
    """A run folder, open for reading; `Run.create` also locks it for writing.

    Attributes:
        path: the folder.
        recipe: the recipe with `auto` resolved.
        checkpoint, best: the files of the whole training state, and of the best weights.
        features, tensorboard: the folders of the probe's features so far, and of TensorBoard's event files.
        asked_length: the file of the length before the minutes changed it.
        report: the page.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe
        self.checkpoint = path / "last" / "checkpoint.safetensors"
        self.best, self.report = path / "best.safetensors", path / "report.html"
        self.features, self.tensorboard = path / "features", path / "tensorboard"
        self.asked_length = path / "asked_length.json"
        self._lock = ExitStack()
        self._new = False
        self._parents: list[Path] = []  # folders that are made with the run's

    def __repr__(self) -> str:
        return views.run_line(self)

    def _repr_html_(self) -> str:
        return views.run_html(self)

    def to_pandas(self) -> pd.DataFrame:
        """`metrics()` as a data frame: a row per epoch."""
        return views.frame(self.metrics())

    @property
    def plot(self) -> Plots:
        """Figures: `run.plot.curves()`, `confusion()`, `calibration()`, `mistakes()`."""
        from kitae import Plots

        return Plots(self)

    # ---- the folder -------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """A run that exists.

        Raises:
            TrainingError: no run there.
        """
        folder = Path(path)
        if not (folder / "recipe.yaml").is_file():
            raise TrainingError(f"{folder}: not a run folder (it has no recipe.yaml)")
        return cls(folder, Recipe.load(folder / "recipe.yaml"))

    @staticmethod
    def check_free(path: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
        """Refuse a folder that holds a run, unless it is to be resumed or replaced.

        Raises:
            TrainingError: it does, or both are asked for.
        """
        if resume and overwrite:
            raise TrainingError("--resume and --overwrite cannot be used together; choose one")
        if not (resume or overwrite) and (Path(path) / "recipe.yaml").exists():
            raise TrainingError(f"{path}: already has a run; add --resume or --overwrite, or choose another --out")

    @classmethod
    def create(cls, path: str | Path, recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> Run:
        """Make a folder for a run, or use an existing one, and lock it until `close` or the process ends.

        Args:
            resume: resume the run that is there, which must be of the same recipe; without one a new run starts.
            overwrite: replace the run that is there. Never deletes a file that no run wrote.

        Raises:
            TrainingError: the folder holds something else or a run of another recipe, or another process writes to it.
        """
        run = cls(Path(path), recipe)
        # Before the lock, which would be left in a folder that is not ours. Other files may lie beside a resumed run.
        if not (resume and (run.path / "recipe.yaml").exists()):
            RUN_FOLDER.check(run.path)
        run._parents = [folder for folder in run.path.absolute().parents if not folder.exists()]
        with ExitStack() as stack:
            stack.enter_context(RUN_FOLDER.locked(run.path))
            run._begin(resume=resume, overwrite=overwrite)
            run._lock = stack.pop_all()
        return run

    def _begin(self, *, resume: bool, overwrite: bool) -> None:
        self.check_free(self.path, resume=resume, overwrite=overwrite)
        # The previous run comes back if the new one fails before its first epoch has ended.
        RUN_FOLDER.set_aside(self.path, replace=overwrite)
        if not (self.path / "recipe.yaml").exists():
            self._new = True
            self.recipe.save(self.path / "recipe.yaml")
            return
        # The images may have been moved; that they are the same is checked with the splits.
        saved = Recipe.load(self.path / "recipe.yaml").located(self.recipe.data.source, self.recipe.data.cache)
        changed = differences(saved, self.recipe)
        if changed:
            other = f"has a run of another recipe ({changed[0]})"
            raise TrainingError(f"{self.path}: {other}; choose another --out, or {self._cure}")
        self.recipe = saved

    def discard_unless_trained(self) -> None:
        """Remove the files that this object made if no training was saved, so that a failed start leaves nothing."""
        learnt = any(path.exists() for path in (self.features, self.checkpoint, self.best))
        if not self._new or learnt or self.metrics() or any(self.fold(1).parent.glob("*/*")):
            return
        RUN_FOLDER.remove(self.path)
        (self.path / LOCK).unlink(missing_ok=True)
        RUN_FOLDER.bring_back(self.path)
        with suppress(OSError):
            for folder in (self.path, *self._parents):
                folder.rmdir()

    @property
    def resume_command(self) -> str:
        """The command that resumes the run, to be copied."""
        return f"kitae train --resume {shlex.quote(str(self.path))}"

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def resolve(self, recipe: Recipe) -> None:
        """Save the recipe with `auto` resolved."""
        self.recipe = recipe
        recipe.save(self.path / "recipe.yaml")

    def fold(self, number: int) -> Path:
        """The folder of the run of a fold, from 1."""
        return self.path / "folds" / str(number)

    @property
    def _cure(self) -> str:
        return f"resume it with: {self.resume_command}"

    @property
    def finished(self) -> bool:
        """Whether it was trained and evaluated to the end."""
        return (self.path / "evaluation.json").is_file()

    def require_finished(self) -> None:
        """Require that the run is finished; test stays closed until then.

        Raises:
            TrainingError: the run can still be resumed.
        """
        if not self.finished:
            raise TrainingError(f"{self.path}: is not finished, so it cannot be evaluated on test; {self._cure}")

    # ---- what was measured ------------------------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, Any]]:
        """One row per epoch, from metrics.jsonl; empty before the first epoch has ended."""
        return self._lines("metrics.jsonl")

    def best_epoch(self) -> int | None:
        """The epoch (from 1) whose weights are kept; None before one has a finite score.

        Of a model on everything, which has no validation, it is the last one.
        """
        if self.recipe.data.whole:
            return max((row["epoch"] for row in self.metrics()), default=None)
        select = self.recipe.train.selection
        scored = [(merit(row, select), row["epoch"]) for row in self.metrics()]
        return max(((value, epoch) for value, epoch in scored if value is not None), default=(None, None))[1]

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace metrics.jsonl."""
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        write_atomically(self.path / "metrics.jsonl", text.encode())
        RUN_FOLDER.discard_aside(self.path)

    def evaluation(self) -> dict[str, Any]:
        """evaluation.json.

        Raises:
            TrainingError: the run is not finished.
        """
        return self._json("evaluation.json", f"the run is not finished; {self._cure}")

    def write_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Replace evaluation.json; its count of test openings is added here."""
        write_json(self.path / "evaluation.json", {**evaluation, "test_openings": self.test_openings})
        shutil.rmtree(self.features, ignore_errors=True)

    def environment(self) -> dict[str, Any]:
        """environment.json."""
        return self._json("environment.json", "the run was never started")

    def machine_changes(self, processes: int) -> list[str]:
        """Differences from the machine that the run was started on, which may change the last bits; a line each."""
        file = self.path / "environment.json"
        if not file.is_file():
            return []
        before, now = self.environment(), {**machine(), "processes": processes}
        return [
            f"{name} was {before.get(name)}, is {now[name]}: the result may differ in the last bits"
            for name in ("processor", "gpu", "processes")
            if before.get(name) != now[name]
        ]

    def write_environment(self, facts: Mapping[str, Any]) -> None:
        """Replace environment.json: the machine, the versions, and the given facts."""
        write_json(self.path / "environment.json", {**machine(), **facts})

    def weights_source(self) -> str | None:
        """Source of the pretrained weights that the run started from; None without, or before it has started."""
        file = self.path / "environment.json"
        return self.environment().get("weights") if file.is_file() else None

    @property
    def test_openings(self) -> int:
        """How often the test set of this run was opened."""
        return len(self.openings())

    def openings(self) -> list[dict[str, str]]:
        """Each opening of test, the first one first: `when` and `why`."""
        return self._lines("test_openings.jsonl")

    def count_test_opening(self, why: str) -> None:
        """Note that test is about to be opened. Several processes may evaluate one run."""
        file = self.path / "test_openings.jsonl"
        line = json.dumps({"when": now(), "why": why})
        with lock(self.path / ".openings.lock"):
            before = file.read_text() if file.is_file() else ""
            write_atomically(file, f"{before}{line}\n".encode())
            if self.finished:
                self.write_evaluation(self.evaluation())

    def write_predictions(self, table: Any) -> None:
        """Write a pyarrow Table as predictions.parquet."""
        write_parquet(table, self.path / "predictions.parquet")

    def predictions(self) -> Any:
        """predictions.parquet as a pyarrow Table."""
        import pyarrow.parquet

        file = self.path / "predictions.parquet"
        if not file.is_file():
            why = "it was trained without a test, or the file was deleted" if self.finished else self._cure
            raise TrainingError(f"{self.path}: has no predictions.parquet; {why}")
        return pyarrow.parquet.read_table(file)

    def _json(self, name: str, why: str, *keys: str) -> dict[str, Any]:
        file = self.path / name
        if not file.is_file():
            raise TrainingError(f"{self.path}: has no {name}: {why}")
        return read_json(file, *keys, error=TrainingError)

    def _lines(self, name: str) -> list[dict[str, Any]]:
        file = self.path / name
        if not file.is_file():
            return []
        try:
            return [json.loads(line) for line in file.read_text().splitlines()]
        except ValueError as error:
            raise TrainingError(f"{file}: is damaged (a line is not JSON)") from error

    # ---- the data, as this run sees it ------------------------------------------------------------------------------

    def open_store(self, progress: Callable[[int, int], None] | None = None) -> Store:
        """The decoded images of the run's source, prepared as the run's own images were."""
        from kitae.data.store import open_store, reopen_store

        spec, begun = self.recipe.data, (self.path / "environment.json").is_file()
        if begun:
            store = reopen_store(spec, str(self.environment().get("store")), self.path / "recipe.yaml", progress)
        else:
            store = open_store(spec, progress)
        if (self.path / "model.json").is_file() and store.rules != self.rules:
            # Of a version that found other rules for the same recipe.
            store = open_store(spec, progress=progress, rules=self.rules)
        return store

    def splits(self, store: Store) -> Splits:
        """The run's splits: made and written down the first time, read back afterwards.

        Raises:
            DataError: the data are not those the splits were made from.
        """
        from kitae.data.splits import Splits, make_splits

        file = self.path / "splits.npz"
        if file.is_file():
            splits = Splits.load(file)
            if splits.fingerprint != store.fingerprint:
                raise DataError(
                    f"{self.recipe.data.source}: has changed since {self.path} was trained; restore it, or train again"
                )
            return splits
        splits = make_splits(store, self.recipe.data)
        splits.save(file)
        return splits

    # ---- the model --------------------------------------------------------------------------------------------------

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Replace model.json."""
        write_json(self.path / "model.json", {"format": _FORMAT, **facts})

    def facts(self) -> dict[str, Any]:
        """model.json: `classes`, `preprocess`, `mean`, `std`, `temperature`, `parameters`, `macs`.

        Raises:
            TrainingError: it is missing, damaged, or of a newer version of Kitae.
        """
        keys = ("classes", "preprocess", "mean", "std", "temperature")
        facts = self._json("model.json", "the run was never started", *keys)
        require_format(facts, _FORMAT, self.path / "model.json", TrainingError)
        return facts

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the outputs."""
        return tuple(self.facts()["classes"])

    @property
    def rules(self) -> PreprocessRules:
        """How an image is prepared for this model."""
        return PreprocessRules.from_dict(self.facts()["preprocess"])

    def build_model(self, *, free: bool = False) -> nn.Module:
        """The network with its initial weights; `free`: every layer can be trained, whatever the recipe froze."""
        return build_network(self.recipe, self.classes, self.rules, free=free)

    def load_model(self, *, free: bool = False) -> nn.Module:
        """The network with its best weights, in eval mode on the CPU.

        Args:
            free: every layer can be trained, whatever the recipe froze: what was pruned has to be fine-tuned.

        Raises:
            TrainingError: there is no best model yet, or its file is damaged.
        """
        from kitae.training.checkpoint import load_weights

        if not self.best.is_file():
            cure = f"train again from {self.path / 'recipe.yaml'}" if self.finished else self._cure
            raise TrainingError(f"{self.path}: has no best.safetensors; {cure}")
        model = self.build_model(free=free)
        try:
            model.load_state_dict(load_weights(self.best)[0])
        except RuntimeError as error:
            raise TrainingError(f"{self.best}: its weights do not fit the model of recipe.yaml") from error
        return model.eval()

    def predictor(self, model: nn.Module | None = None, tta: Tta | None = None) -> Predictor:
        """A predictor with this run's temperature, normalisation and views.

        Args:
            model: on any device; None is the run's best.
            tta: test-time augmentation, see EvaluateSpec; None is the recipe's.
        """
        from kitae.predictor import Predictor

        return Predictor(
            self.load_model() if model is None else model,
            self.facts(),
            tta=self.recipe.evaluate.tta if tta is None else tta,
            batch_size=self.recipe.evaluate.batch_size,
        )

    def logits(
        self, images: ImageSet, model: nn.Module | None = None, tta: Tta | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Logits float32 [N, K] and labels int64 [N] of these images, in the order of their rows.

        Args:
            model, tta: as of `predictor`.
        """
        return self.predictor(model, tta).logits(images.gather, images.rows)

    def evaluate(self, split: str = "test", tta: Tta | None = None) -> dict[str, Any]:
        """Measure the best model on `train`, `val` or `test`; opening test is counted in the run folder.

        Args:
            tta: test-time augmentation, see EvaluateSpec; None is the recipe's.

        Returns:
            The same fields as a split in evaluation.json.
        """
        from kitae.data.loader import ImageSet
        from kitae.evaluation.evaluate import evaluate

        if split not in ("train", "val", "test"):
            raise RecipeError(f"split: {split!r} must be train, val or test")
        if split == "test":
            self.require_finished()
        predictor, store = self.predictor(tta=tta), self.open_store()
        splits = self.splits(store)
        if not {"train": len(splits.train), "val": len(splits.val), "test": splits.test_count}[split]:
            raise RecipeError(
                f"split: {self.path} has no {split} images (data.folds); see out_of_fold in evaluation.json"
            )
        if split == "test":
            rows = splits.open_test(lambda: self.count_test_opening(f"evaluate, tta {predictor.tta}"))
        else:
            rows = splits.train if split == "train" else splits.val
        images = ImageSet(store.images, rows, store.labels, store.classes, guard=splits.guard)
        logits, labels = predictor.logits(images.gather, images.rows)
        copies = splits.copies(store.twins, rows) if split == "test" else None
        return evaluate(logits, labels, predictor.classes, predictor.temperature, copies)

    def predict(
        self, images: NDArray[np.uint8] | ImageLike | Iterable[ImageLike], *, tta: Tta | None = None
    ) -> Predictions:
        """Classify images with the best model, as the evaluation did; see `Predictor.predict`.

        Args:
            tta: test-time augmentation, see EvaluateSpec; None is the recipe's.

        Raises:
            DataError: an image cannot be read, or an array has another shape or dtype.
        """
        return self.predictor(tta=tta).predict(images)


def build_network(
    recipe: Recipe, classes: Sequence[str], rules: PreprocessRules, *, model: ModelSpec | None = None,
    weights: Weights | None = None, free: bool = False,
) -> nn.Module:  # fmt: skip
    """A recipe's network on the CPU, with initial weights that are a pure function of the seed.

    Args:
        model: another network instead.
        weights: pretrained weights to start from; without them none are loaded, whatever the recipe says.
        free: every layer can be trained, whatever the recipe froze.
    """
    import torch

    from kitae.models.build import build

    spec = (model or recipe.model).model_copy(update={} if weights is not None else {"pretrained": False})
    spec = spec.model_copy(update={"freeze": "none", "freeze_first": 0}) if free else spec
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed.derive_seed(recipe.train.seed, 0, 0, keyed.SLOT_MODEL))
        return build(spec, classes=len(classes), channels=rules.channels, image_size=rules.image_size, weights=weights)
