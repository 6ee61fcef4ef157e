"""The `train:` section of a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from kitae.spec import GrowingSpec, Spec

Beta = Annotated[float, Field(ge=0, lt=1)]

Metric = Literal["val_accuracy", "val_balanced_accuracy", "val_macro_f1", "val_loss"]
MetricChoice = Literal["auto", Metric]


def merit(scores: Mapping[str, float | None], metric: str) -> tuple[float, float] | None:
    """The value by which the best epoch or model is chosen (larger is better); None if the metric is not finite.

    First the metric, then the lower validation loss: accuracy on a small validation set is coarse, so ties are common.
    If two epochs are equal in both, the later one is taken, so compare with `>=`.

    Args:
        scores: validation metrics of an epoch, among them `metric` and `val_loss`.
    """
    value, loss = scores.get(metric), scores.get("val_loss")
    if value is None or not math.isfinite(value):
        return None
    loss = loss if loss is not None and math.isfinite(loss) else math.inf
    return (-value if metric == "val_loss" else value), -loss


# Name -> learning rate and weight decay where a recipe leaves them out.
# Adadelta has no rate of its own (Zeiler 2012): its steps are in units of the weights, and torch multiplies them by it.
_USUAL = {"sgd": (0.1, 5.0e-4), "adamw": (1.0e-3, 0.05), "muon": (0.05, 0.0), "adadelta": (1.0, 0.0)}
_USUAL_OTHERS = (1.0e-3, 0.0)
_LARGEST = 1e15  # whose square is a float32 too: torch refuses to multiply a tensor by a larger number
_EPS = {"adadelta": 1.0e-6, "adagrad": 1.0e-10}  # torch's; of the others it is 1e-8


class OptimizerSpec(GrowingSpec):
    """The optimizer and its arguments; one that an optimizer lacks has no effect, and a note says so.

    `muon` is Jordan's orthogonalised momentum (2024) for filters and matrices between the first and the last layer, and
    SGD with Nesterov momentum for norms, biases and those two layers.

    Attributes:
        name: an optimizer of torch.optim in lower case (sgd, adamw, rmsprop, ...), or `muon`.
        lr: the highest learning rate of the schedule. The default depends on the name: 0.1 for sgd, 0.05 for muon, 1
            for adadelta, 1e-3 for others.
        momentum: of sgd, rmsprop and muon.
        nesterov: Nesterov momentum, in sgd.
        weight_decay: not applied to norms, biases and other one-dimensional parameters, nor to position embeddings and
            class tokens. The default depends on the name: 5e-4 for sgd, 0.05 for adamw, 0 for others.
        betas: decay of the means of gradients and of their squares, in adamw, adam, nadam and others.
        eps: added to the denominator, in the optimizers that divide by a mean. The default is torch's: 1e-6 for
            adadelta, 1e-10 for adagrad, 1e-8 for others.
        layer_decay: the learning rate is multiplied by this for each layer group below the classifier (see
            `model.freeze_first`), so that early layers change less (Clark et al. 2020); null is 1.
        other_lr: learning rate of the parameters that muon trains with SGD; null is `lr`.
        bias_lr: learning rate of biases, including those of norms, with any optimizer; null is that of the other
            weights of their layer. With SGD and short trainings, a much higher one helps (Page 2019, "How to train your
            ResNet", 64 times; Jordan 2024).
        norm: muon keeps the norm of each filter matrix at (number of rows) ** 0.5: for networks that normalise after
            each convolution.
    """

    newer: ClassVar[frozenset[str]] = frozenset({"other_lr", "norm", "bias_lr"})

    name: str = "sgd"
    lr: float = Field(0.1, gt=0, le=_LARGEST)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(5.0e-4, ge=0, le=_LARGEST)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0, le=_LARGEST)
    layer_decay: float | None = Field(None, gt=0, le=1)
    other_lr: float | None = Field(None, gt=0, le=_LARGEST)
    bias_lr: float | None = Field(None, gt=0, le=_LARGEST)
    norm: bool = False

    @model_validator(mode="before")
    @classmethod
    def _follow_the_name(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not isinstance(name := value.get("name"), str):
            return value
        lr, decay = _USUAL.get(name.lower(), _USUAL_OTHERS)
        return {"lr": lr, "weight_decay": decay, "eps": _EPS.get(name.lower(), 1.0e-8), **value}

    def scaled(self, share: float) -> OptimizerSpec:
        """The same optimizer with this share of every rate: `other_lr` and `bias_lr` are rates of their own."""
        rates = {name: getattr(self, name) for name in ("lr", "other_lr", "bias_lr")}
        return self.model_copy(update={name: rate * share for name, rate in rates.items() if rate is not None})

    @property
    def unusual(self) -> list[str]:
        """A note for a learning rate or weight decay far from the usual one of this optimizer, such as another's.

        Fine-tuning takes low rates, so a rate is far above 10 times the usual one or below a 30th of it, a weight decay
        above 30 times or below a 30th. No weight decay at all is never far.
        """
        lr, decay = _USUAL.get(self.name.lower(), _USUAL_OTHERS)
        far = {"lr": (self.lr, lr)} if not lr / 30 <= self.lr <= lr * 10 else {}
        if decay and self.weight_decay and not decay / 30 <= self.weight_decay <= decay * 30:
            far["weight_decay"] = self.weight_decay, decay
        return [
            f"train.optimizer.{field}: {value:g} is far from the usual value for {self.name} (about {usual:g})"
            for field, (value, usual) in far.items()
        ]


class ScheduleSpec(Spec):
    """The learning rate over the run, set at every step.

    The peak is `train.optimizer.lr`. A field applies to the schedules that it names; the others ignore it, so that a
    study can change the name alone.

    Attributes:
        name: `cosine`: after warm-up, half a cosine down (Loshchilov 2017); `one_cycle`: linear up, then linear down
            (Smith 2018); `step`: after warm-up, lower at each milestone; `constant`: after warm-up, the peak.
        warmup_epochs: number of epochs of linear warm-up, half of the run at most (cosine, step, constant).
        final: the rate at the end, as a share of the peak (cosine, one_cycle).
        peak_at: where the peak is, as a fraction of the run (one_cycle).
        milestones: where the rate falls, as increasing fractions of the run (step).
        gamma: what the rate is multiplied by at each of them (step).
    """

    name: Literal["cosine", "one_cycle", "step", "constant"] = "cosine"
    warmup_epochs: float = Field(0.0, ge=0)
    final: float = Field(0.0, ge=0, le=1)
    peak_at: float = Field(0.25, gt=0, lt=1)
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = Field(0.1, gt=0, le=1)

    @field_validator("milestones")
    @classmethod
    def _fractions(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < milestone < 1 for milestone in value):
            raise ValueError(f"must be fractions of the run, in (0, 1) (epoch 30 of 90 is 0.33), not {list(value)}")
        if list(value) != sorted(set(value)):
            raise ValueError(f"must increase, not {list(value)}")
        return value

    @property
    def unused(self) -> tuple[str, ...]:
        """The fields that are set but have no effect in this schedule."""
        users = {
            "warmup_epochs": ("cosine", "step", "constant"), "final": ("cosine", "one_cycle"),
            "peak_at": ("one_cycle",), "milestones": ("step",), "gamma": ("step",),
        }  # fmt: skip
        plain = ScheduleSpec()
        return tuple(
            field for field, names in users.items()
            if self.name not in names and getattr(self, field) != getattr(plain, field)
        )  # fmt: skip


class EarlyStoppingSpec(Spec):
    """Stop when a metric has not improved for some epochs.

    Attributes:
        metric: what must improve; `auto` is `train.select`.
        patience: number of epochs without an improvement after which training stops.
        min_delta: gains up to this are no improvement; in the metric's unit (0.001 is 0.1 points of accuracy).
    """

    metric: MetricChoice = "auto"
    patience: int = Field(20, ge=1)
    min_delta: float = Field(0.0, ge=0)


class ProgressiveSpec(Spec):
    """Train on smaller pictures first, which makes steps faster while the network learns coarse features (Howard 2018).

    The side grows linearly, in steps of 4 pixels. Augmented pictures are shrunk by antialiased bilinear interpolation;
    validation, test and export always see the full size. The network must take pictures of any size.

    Attributes:
        start: the side at first, as a share of the full one.
        until: where the full size is reached, as a fraction of the run.
    """

    start: float = Field(0.75, ge=0.25, lt=1)
    until: float = Field(0.5, gt=0, le=1)


class ProbeSpec(Spec):
    """A linear head on the features of the frozen network, fitted before training: epoch 0.

    It is a multinomial logistic regression, see `training.probe`; the strength of its penalty is chosen by
    cross-validation inside train. Training starts from it, and is kept only if it is at least as good on validation.

    Attributes:
        views: augmented views of each training image to fit it on, in addition to the image itself.
        folds: number of folds of the cross-validation.
        limit: maximum number of training images to fit it on.
    """

    views: int = Field(0, ge=0, le=100)
    folds: int = Field(5, ge=2, le=20)
    limit: int = Field(20_000, ge=2)


class TrainSpec(GrowingSpec):
    """The training loop.

    Attributes:
        epochs: 0 trains nothing beyond the probe.
        epoch_steps: optimizer steps in an epoch, which is then a part of a pass through the training images, or several
            passes; null is one pass. Every pass has its own order, so short epochs see different images.
        recut: filled in by a run if the minutes turn out to be too short or too long: pairs (after, end), one for each
            time that the rest of the schedule after `after` epochs was squeezed or stretched to end at `end` epochs.
        validate_every: epochs from one validation to the next; the last epoch is always validated. Only an epoch that
            was validated can be the best, or stop the training early.
        progressive: smaller pictures at first; null is the full size throughout.
        batch_size: total over all processes; even, since mixing pairs neighbours. Images at the end of an epoch that do
            not fill an update are dropped (the order changes every epoch). Reduced if there are fewer training images.
        accumulate: number of batches for each optimizer step.
        label_smoothing: eps; target 1 - eps + eps/K on the true class, eps/K elsewhere (as torch does).
        precision: `auto` is bf16, or on some GPUs fp16, where the hardware multiplies it natively, else fp32; see
            `training.precision.choose`.
        ema: decay per step of the averaged weights, which are then validated, kept and exported. In early steps, it is
            (1 + t) / (10 + t) after t updates: 0.998 takes effect after 4,490 of them.
        select: the metric that chooses the best epoch; ties go to the lower validation loss, then the later epoch.
            `auto` is `val_balanced_accuracy` if the largest class has more than three times the images of the smallest,
            else `val_accuracy`.
        clip_norm: the gradient's norm is clipped to this; null does not clip.
        channels_last: images and filters are stored as [N, H, W, C], with which most convolutions are faster.
        compile: torch.compile. It made no network faster that was measured with it (ResNet-9, 18 and 50, on a GPU or
            two CPU cores); others may gain.
        device: `auto` is the GPU if torch sees one, else the CPU.
        threads: torch's CPU threads; null leaves torch's own choice. Bit-exact resume needs the same number.
        checkpoint_seconds: also save inside an epoch when this many seconds have passed since the last save.
        sync_bn: BatchNorm computes its statistics over the batches of all processes, not of each process separately.
        process_timeout: seconds that a process waits for the others before it gives up; must be longer than the longest
            task of a single process (building the store, the final evaluation). null is torch's own, 30 minutes on CPU
            and 10 on GPU. A process that is killed is noticed at once; a machine that loses power or its network, only
            after this time.
        tensorboard: also write every epoch's metrics for TensorBoard, into the run folder (extra `track`).
        nan_limit: a run stops after this many skipped (non-finite) steps.
        seed: the key of the initial weights, the order of images, augmentation and dropout; the split has its own,
            `data.split_seed`.
        probe: `auto` fits a probe if weights are pretrained and the classifier is linear; null fits none.
    """

    newer: ClassVar[frozenset[str]] = frozenset(
        {"epoch_steps", "recut", "validate_every", "probe", "progressive", "sync_bn", "process_timeout"}
    )

    epochs: int = Field(10, ge=0, lt=2**31)
    epoch_steps: int | None = Field(None, ge=1, lt=2**31)
    recut: tuple[tuple[int, int], ...] = ()
    validate_every: int = Field(1, ge=1)
    batch_size: int = Field(128, ge=2, multiple_of=2)
    accumulate: int = Field(1, ge=1)
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    progressive: ProgressiveSpec | None = None
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "auto"
    ema: float | None = Field(None, gt=0, lt=1)
    early_stopping: EarlyStoppingSpec | None = None
    select: MetricChoice = "auto"
    clip_norm: float | None = Field(None, gt=0)
    channels_last: bool = True
    compile: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(None, ge=1)
    checkpoint_seconds: float = Field(60.0, gt=0)
    sync_bn: bool = False
    process_timeout: float | None = Field(None, gt=0)
    tensorboard: bool = False
    nan_limit: int = Field(20, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)
    probe: Literal["auto"] | ProbeSpec | None = "auto"

    @model_validator(mode="after")
    def _learns(self) -> TrainSpec:
        if self.epochs == 0 and self.probe is None:
            raise ValueError("epochs: 0 trains nothing where probe is null; set epochs to 1 or more")
        at, planned = 0, self.epochs
        for after, end in self.recut:
            if not (at < after < planned and after <= end):
                raise ValueError(
                    f"recut: [{after}, {end}]: the first number must be above {at} and below {planned}, the second not "
                    "below the first"
                )
            at, planned = after, end
        return self

    def lasting(self, epochs: int) -> TrainSpec:
        """A copy with this many epochs, and without `recut`, which only fits the planned length."""
        return self.model_copy(update={"epochs": epochs, "recut": ()})

    def stretched(self, epochs: int) -> TrainSpec:
        """`lasting`, with warm-up at the same share of the run."""
        warmup = round(self.schedule.warmup_epochs * epochs / self.epochs, 4)
        schedule = self.schedule.model_copy(update={"warmup_epochs": warmup})
        return self.lasting(epochs).model_copy(update={"schedule": schedule})

    def straightened(self) -> TrainSpec:
        """A copy that plans as many epochs as are trained, without `recut`; warm-up keeps its share."""
        return self.stretched(self.last_epoch) if self.recut else self

    @property
    def last_epoch(self) -> int:
        """The number of epochs that are trained."""
        return self.recut[-1][1] if self.recut else self.epochs

    def validated(self, epochs: int) -> int:
        """The last of this many epochs after which the network was validated; 0 before the first such epoch."""
        return epochs if epochs == self.last_epoch else epochs - epochs % self.validate_every

    def validations(self, epochs: int, after: int = 0) -> int:
        """The number of validations of a training that ends after this many epochs, from epoch `after` + 1 on."""
        return math.ceil(epochs / self.validate_every) - after // self.validate_every

    @property
    def resolved_precision(self) -> Literal["fp32", "bf16", "fp16"]:
        """The precision that steps run in: float32 where `auto` was not resolved."""
        return "fp32" if self.precision == "auto" else self.precision

    @property
    def selection(self) -> Metric:
        """The metric that chooses the best epoch; accuracy if `auto` has not been resolved."""
        return "val_accuracy" if self.select == "auto" else self.select

    @property
    def by_class(self) -> bool:
        """Whether that metric is a mean over the classes, so that rare ones count as much as common ones."""
        return self.selection in ("val_balanced_accuracy", "val_macro_f1")
