"""The run folder: the files that training writes.

recipe.yaml           the recipe with `auto` resolved
asked_length.json     of a run with minutes: the epochs, steps, validations and warm-up before the minutes changed them
environment.json      hardware, versions, threads; minutes of a run that has a limit
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

import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kitae import console, files, views
from kitae.errors import DataError, RecipeError, TrainingError
from kitae.evaluation.spec import Tta
from kitae.files import read_json, read_json_lines, write_json, write_json_lines, write_parquet
from kitae.folders import REPORT, SIGNS, Owned, lock, why_not
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
    from kitae.predictor import Predictor
    from kitae.runtime import Predictions

_FORMAT = 1
_RECIPE = SIGNS["run"]
RUN_FOLDER = Owned("run", (
    "last", "features", "folds", "figures", "tensorboard", _RECIPE, "asked_length.json",
    "environment.json", "model.json", "splits.npz", "metrics.jsonl", "best.safetensors", "evaluation.json",
    "predictions.parquet", "test_logits.npy", "test_openings.jsonl", REPORT,
), TrainingError, first=_RECIPE,
    work=("features", "last/checkpoint.safetensors", "best.safetensors", "metrics.jsonl", "folds/*/*"))  # fmt: skip


class Run:
    """A run folder, open for reading; `Run.create` also locks it for writing.

    Attributes:
        path: the folder.
        recipe: the recipe with `auto` resolved.
        recipe_file, metrics_file, facts_file, evaluation_file, openings_file: the files of those names.
        checkpoint, best: the files of the whole training state, and of the best weights.
        features, tensorboard: the folders of the probe's features so far, and of TensorBoard's event files.
        asked_length: the file of the length before the minutes changed it. report: the page.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe
        self.checkpoint = path / "last" / "checkpoint.safetensors"
        self.recipe_file, self.metrics_file = path / _RECIPE, path / "metrics.jsonl"
        self.facts_file, self.evaluation_file = path / "model.json", path / "evaluation.json"
        self.openings_file = path / "test_openings.jsonl"
        self.best, self.report = path / "best.safetensors", path / REPORT
        self.features, self.tensorboard = path / "features", path / "tensorboard"
        self.asked_length = path / "asked_length.json"
        self._lock = ExitStack()
        self._new = False
        self._made: list[Path] = []  # the folder and those above it that did not exist

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
        folder = files.user_path(path)
        if not (folder / _RECIPE).is_file():
            raise TrainingError(f"{folder}: not a run folder ({why_not(folder, 'run')})")
        return cls(folder, Recipe.load(folder / _RECIPE))

    @staticmethod
    def check_free(path: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
        """Raise TrainingError for a folder that cannot be made, or holds anything but a run to resume or replace."""
        exists = (files.user_path(path) / _RECIPE).exists()
        if resume and overwrite:
            raise TrainingError("--resume and --overwrite cannot be used together; choose one")
        if exists and not (resume or overwrite):
            raise TrainingError(f"{path}: already has a run; add --resume or --overwrite, or choose another --out")
        if not (exists and resume):  # other files may lie beside a run that is resumed
            RUN_FOLDER.check(files.user_path(path))

    @classmethod
    def create(cls, path: str | Path, recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> Run:
        """Make a folder for a run, or use an existing one, and lock it until `close` or the process ends.

        Args:
            resume: resume the run that is there, which must be of the same recipe; without one a new run starts.
            overwrite: replace the run that is there. Never deletes a file that no run wrote.

        Raises:
            TrainingError: the folder holds something else or a run of another recipe, or another process writes to it.
        """
        run = cls(files.user_path(path), recipe)
        # Before the lock too, which would be left in a folder that is not ours.
        cls.check_free(run.path, resume=resume, overwrite=overwrite)
        run._made = [f for f in (run.path.absolute(), *run.path.absolute().parents) if not f.exists()]
        with ExitStack() as stack:
            stack.enter_context(RUN_FOLDER.locked(run.path))
            run._begin(resume=resume, overwrite=overwrite)
            run._lock = stack.pop_all()
        return run

    def _begin(self, *, resume: bool, overwrite: bool) -> None:
        self.check_free(self.path, resume=resume, overwrite=overwrite)
        # Until the new run is finished, so that the previous one can come back.
        RUN_FOLDER.set_aside(self.path, replace=overwrite, finished=self.finished)
        if not self.recipe_file.exists():
            self._new = True
            RUN_FOLDER.write_first(self.path, lambda: self.recipe.save(self.recipe_file))
            return
        # The images may have been moved; that they are the same is checked with the splits.
        saved = Recipe.load(self.recipe_file).located(self.recipe.data.source, self.recipe.data.cache)
        if changed := differences(saved, self.recipe):
            other = f"has a run of another recipe ({changed[0]})"
            raise TrainingError(f"{self.path}: {other}; choose another --out, or {self._cure}")
        self.recipe = saved

    def discard_failed(self, *, diverged: bool) -> None:
        """Remove a run that learnt nothing, or diverged where it was to replace another one, which comes back."""
        if (self._new and not RUN_FOLDER.has_work(self.path)) or (diverged and RUN_FOLDER.has_aside(self.path)):
            RUN_FOLDER.undo(self.path, self._made)

    @property
    def resume_command(self) -> str:
        """The command that resumes the run, to be copied; with the minutes that the run has."""
        minutes = self.environment().get("minutes") if self.begun else None
        return f"kitae train --resume {shlex.quote(str(self.path))}" + (f" --minutes {minutes:g}" if minutes else "")

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def resolve(self, recipe: Recipe) -> None:
        """Save the recipe with `auto` resolved."""
        self.recipe = recipe
        recipe.save(self.recipe_file)

    def fold(self, number: int) -> Path:
        """The folder of a fold's run; folds are numbered from 1."""
        return self.path / "folds" / str(number)

    @property
    def _cure(self) -> str:
        return f"resume it with: {self.resume_command}"

    @property
    def begun(self) -> bool:
        """Whether training has started; `environment` exists from then on."""
        return (self.path / "environment.json").is_file()

    @property
    def finished(self) -> bool:
        """Whether the run was trained and evaluated to the end."""
        return self.evaluation_file.is_file()

    def require_finished(self) -> None:
        """Raise TrainingError if the run can still be resumed; test stays closed until it is finished."""
        if not self.finished:
            raise self._error(f"is not finished, so it cannot be evaluated on test; {self._cure}")

    def _error(self, problem: str) -> TrainingError:
        cure = "give the whole path of the run if the program has changed its working folder"
        return TrainingError(f"{self.path}: {problem if self.path.is_dir() else f'no such folder; {cure}'}")

    def require_split(self, split: str) -> None:
        """Require that `train`, `val` or `test` may be measured, before anything is read.

        Raises:
            RecipeError: there is no such split.
            TrainingError: for test, the run is not finished, or read-only.
        """
        if split not in ("train", "val", "test"):
            raise RecipeError(f"split: {split!r} must be train, val or test")
        if split == "test":
            self.require_finished()
            if not os.access(self.path, os.W_OK):
                raise TrainingError(f"{self.path}: is read-only, but each use of test is recorded there; copy the run")

    # ---- what was measured ------------------------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, Any]]:
        """metrics.jsonl: one row per epoch; empty before the first epoch has ended.

        Returns:
            Losses in nats, accuracies and F1 in [0, 1]; None if not finite, missing if an epoch was not validated.

            - `epoch`, from 1 (0 is the probe); `step`: optimizer steps so far; `learning_rate` at the end
            - `train_loss`, `train_accuracy`: on the training images as they were augmented
            - `train_clean_accuracy`: on some training images (at most 1,000) without augmentation
            - `val_loss`, `val_accuracy`, `val_balanced_accuracy`, `val_macro_f1`: on validation, see `evaluate`
            - `seconds` of training; `data_share`: the share of them, in [0, 1], spent on reading and augmenting;
              `images_per_second`; `validation_seconds`
            - `peak_memory_bytes`: of the GPU in this epoch, else of the process so far
            - `skipped_steps` so far, whose loss or gradient was not finite

        Raises:
            TrainingError: the file is damaged.
        """
        return read_json_lines(self.metrics_file, error=TrainingError)

    def best_epoch(self) -> int | None:
        """The epoch (from 1) whose weights are kept; None before one has a finite score.

        Of a model on everything, which has no validation, it is the last one.
        """
        if self.recipe.data.whole:
            return max((row["epoch"] for row in self.metrics()), default=None)
        scored = [(merit(row, self.recipe.train.selection), row["epoch"]) for row in self.metrics()]
        return max(((value, epoch) for value, epoch in scored if value is not None), default=(None, None))[1]

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace metrics.jsonl."""
        write_json_lines(self.metrics_file, rows)

    def evaluation(self) -> dict[str, Any]:
        """evaluation.json: the numbers of the best model, measured at the end of training.

        Returns:
            - `test`, `val`, and of a cross-validation `out_of_fold`: what `evaluate` returns, each only if it was
              measured; `out_of_fold` also has `folds`: `fold`, from 1, `count` and `accuracy` of its images, its
              `best_epoch`, and how many images it was `trained_on`
            - `temperature` of the calibration; `precision` of the evaluation; `train_precision`; `tta`; `best_epoch`,
              from 1 (0 is the probe)
            - `duplicates`: `images` that have the pixels of another one and the number of their `groups`; those of
              `val` and `test` with the pixels of an image that was trained (or validated) on
            - `groups`: how many there are in each split, if the images have groups
            - `test_openings`: how often test was opened

        Raises:
            TrainingError: the run is not finished, or the file is damaged.
        """
        return self._json("evaluation.json", f"the run is not finished; {self._cure}")

    def write_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Replace evaluation.json, add the count of test openings, remove what only an unfinished run needs."""
        write_json(self.evaluation_file, {**evaluation, "test_openings": self.test_openings})
        shutil.rmtree(self.features, ignore_errors=True)
        RUN_FOLDER.discard_aside(self.path)

    def environment(self) -> dict[str, Any]:
        """environment.json."""
        return self._json("environment.json", "the run was never started")

    def write_environment(self, facts: Mapping[str, Any]) -> None:
        """Replace environment.json: the machine, the versions, and the given facts."""
        write_json(self.path / "environment.json", {**machine(), **facts})

    @property
    def test_openings(self) -> int:
        """How often the test set of this run was opened."""
        return len(self.openings())

    def openings(self) -> list[dict[str, str]]:
        """Each opening of test, the first one first: `when` and `why`."""
        return read_json_lines(self.openings_file, error=TrainingError)

    def count_test_opening(self, why: str) -> None:
        """Note that test is about to be opened. Several processes may evaluate one run."""
        with lock(self.path / ".openings.lock"):
            write_json_lines(self.openings_file, [*self.openings(), {"when": now(), "why": why}])
            if self.finished:
                self.write_evaluation(self.evaluation())

    def write_predictions(self, table: Any) -> None:
        """Write a pyarrow Table as predictions.parquet."""
        write_parquet(table, self.path / "predictions.parquet")

    def predictions(self) -> Any:
        """predictions.parquet as a pyarrow Table: a row per test image, or per out-of-fold image without a test.

        Returns:
            The columns `name` (the image's, or its path), `label` and `predicted` (class names), `confidence` (float32,
            the probability of `predicted`) and `probabilities` (K float32 that sum to 1, in the order of `classes`);
            and `group` (int64, equal for images of one group), if the images have groups.

        Raises:
            TrainingError: the file is damaged, or missing: the run is not finished, or was trained without a test.
        """
        file = self.path / "predictions.parquet"
        if not file.is_file():
            why = "it was trained without a test, or the file was deleted" if self.finished else self._cure
            raise TrainingError(f"{self.path}: has no predictions.parquet; {why}")
        return files.read_parquet(file, error=TrainingError)

    def _json(self, name: str, why: str, *keys: str) -> dict[str, Any]:
        file = self.path / name
        if not file.is_file():
            raise TrainingError(f"{self.path}: has no {name}: {why}")
        return read_json(file, *keys, error=TrainingError)

    # ---- the data, as this run sees it ------------------------------------------------------------------------------

    def open_store(self, progress: Callable[[int, int], None] | None = None) -> Store:
        """The decoded images of the run's source, prepared as the run's own images were."""
        from kitae.data.store import open_store, reopen_store

        spec = self.recipe.data
        if self.begun:
            store = reopen_store(spec, str(self.environment().get("store")), self.recipe_file, progress)
        else:
            store = open_store(spec, progress)
        if self.facts_file.is_file() and store.rules != self.rules:
            # model.json is from a version of Kitae that derived other rules from the same recipe.
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
        write_json(self.facts_file, {"format": _FORMAT, **facts})

    def facts(self) -> dict[str, Any]:
        """model.json: model, classes, preprocess, mean, std, temperature, parameters, macs and clean_images.

        Raises:
            TrainingError: it is missing, damaged, or of a newer version of Kitae.
        """
        facts = self._json("model.json", "the run was never started", *files.MODEL_FACTS)
        files.require_model_facts(facts, _FORMAT, self.facts_file, TrainingError)
        return facts

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the outputs."""
        return tuple(self.facts()["classes"])

    @property
    def rules(self) -> PreprocessRules:
        """How an image is prepared for this model."""
        return PreprocessRules.from_dict(self.facts()["preprocess"])

    def load_model(self, *, free: bool = False) -> nn.Module:
        """The network with its best weights, in eval mode on the CPU.

        Args:
            free: make all weights trainable, whatever the recipe froze: a pruned network is fine-tuned as a whole.

        Raises:
            TrainingError: there is no best model yet, or its file is damaged.
        """
        from kitae.models.build import build_seeded
        from kitae.training.checkpoint import load_weights

        if not self.best.is_file():
            cure = f"train again from {self.recipe_file}" if self.finished else self._cure
            raise self._error(f"has no best.safetensors; {cure}")
        spec = self.recipe.model.trainable if free else self.recipe.model
        model = build_seeded(spec, self.recipe.train.seed, len(self.classes), self.rules)
        try:
            model.load_state_dict(load_weights(self.best)[0])
        except RuntimeError as error:
            raise TrainingError(f"{self.best}: does not fit recipe.yaml's model; restore it, or train again") from error
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
            model, tta: as in `predictor`.
        """
        return self.predictor(model, tta).logits(images.gather, images.rows)

    def evaluate(self, split: str = "test", tta: Tta | None = None) -> dict[str, Any]:
        """Measure the best model on `train`, `val` or `test`; opening test is counted in the run folder.

        Args:
            tta: test-time augmentation, see EvaluateSpec; None is the recipe's.

        Returns:
            Proportions are in [0, 1]. Each number of the first two items, but `count` and `temperature`, comes with
            NAME_interval: [low, high] at 95 %, or None.

            - `count` of images; `accuracy`; `top5` (with more than 5 classes); `balanced_accuracy`: mean recall of the
              classes present; `macro_f1`: mean F1 of the classes present or predicted
            - `loss`: mean negative log likelihood, in nats; `brier`: sum over classes of the squared error, in [0, 2];
              `ece`: expected calibration error, 15 bins; `temperature`, which divides the logits of these three
            - `per_class`: by name, `accuracy` (its recall), `precision` and `f1`, each with its interval, and `count`;
              None where there is nothing to divide by
            - `confusion`: counts, rows true, columns predicted; `classes_absent`: names of those without an image
            - `intervals`: the method of each interval, and what they cover
            - `without_duplicates`, if test images have the pixels of training or validation images: `count`,
              `accuracy` and `accuracy_interval` of the others

        Raises:
            RecipeError: there is no such split or `tta`, or the run has no images of the split.
            TrainingError: there is no best model yet; for test, the run is not finished, or read-only.
            DataError: the images have changed since the run was trained, or cannot be read.
        """
        from kitae.data.loader import ImageSet
        from kitae.evaluation.evaluate import evaluate

        self.require_split(split)
        predictor = self.predictor(tta=tta)
        with console.counter(None, "decoding images") as progress:
            store = self.open_store(progress)
        splits = self.splits(store)
        rows = splits.rows(split, lambda: self.count_test_opening(f"evaluate, tta {predictor.tta}"))
        images = ImageSet(store.images, rows, store.labels, store.classes, guard=splits.guard)
        logits, labels = predictor.logits(images.gather, images.rows, show=True)
        copies = splits.copies(store.twins, rows) if split == "test" else None
        return evaluate(logits, labels, predictor.classes, predictor.temperature, copies, store.groups_of(rows))

    def predict(
        self, images: NDArray[np.uint8] | ImageLike | Iterable[ImageLike], *, tta: Tta | None = None
    ) -> Predictions:
        """Classify images with the best model, as the evaluation did; see `Predictor.predict`.

        Args:
            tta: test-time augmentation, see EvaluateSpec; None is the recipe's.

        Raises:
            DataError: an image cannot be read, or an array has another shape or dtype.
        """
        return self.predictor(tta=tta).predict(images, show=True)
