"""What `train:` in a recipe may say."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from kitae.spec import Spec

Beta = Annotated[float, Field(ge=0, lt=1)]

Metric = Literal["val_accuracy", "val_loss"]


class OptimizerSpec(Spec):
    """An optimizer of torch.optim by its name in lower case, and its arguments.

    `momentum` and `nesterov` reach those that have them (sgd, rmsprop), `betas` and `eps` those that have them (adamw,
    adam, nadam, ...). Weight decay is not applied to norms, biases and other one-dimensional parameters.
    """

    name: str = "sgd"
    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(5.0e-4, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    layer_decay: float | None = Field(None, gt=0, le=1)  # learning rate times this for each stage below the classifier


class ScheduleSpec(Spec):
    """The learning rate over the run, set at every step.

    Warm-up is linear, and takes half of the run at most. A field reaches the schedules below that name it; the others
    pass over it, so that a study can change the name alone.

    cosine: warm-up over `warmup_epochs`, then half a cosine down to `final` times the peak (Loshchilov 2017).
    one_cycle: linear up over `peak_at` of the run, linear down to `final` times the peak (Smith 2018).
    step: after warm-up, times `gamma` at each of `milestones` (fractions of the run).
    constant: after warm-up, the peak.
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
            raise ValueError(f"are fractions of the run, between 0 and 1 (epoch 30 of 90 is 0.33), not {list(value)}")
        if list(value) != sorted(set(value)):
            raise ValueError(f"must rise, not {list(value)}")
        return value

    @property
    def unused(self) -> tuple[str, ...]:
        """The fields that say something which this schedule has no use for."""
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
    """Stop when `metric` has not improved by more than `min_delta` for `patience` epochs."""

    metric: Metric = "val_accuracy"
    patience: int = Field(20, ge=1)
    min_delta: float = Field(0.0, ge=0)


class TrainSpec(Spec):
    """The training loop.

    Attributes:
        batch_size: even, since mixing pairs neighbours; per process times processes under torchrun.
        accumulate: optimizer steps once every so many batches.
        label_smoothing: eps; target 1 - eps + eps/K on the true class, eps/K elsewhere (as torch does).
        precision: `auto` measures what the hardware has and takes the fastest that stays finite.
        ema: decay per step of the averaged weights, which are then the ones validated, kept and exported.
        select: what makes an epoch the best one.
        clip_norm: the gradient's norm is cut to this.
        compile: torch.compile; pays on a GPU, and on a CPU for long runs.
        threads: torch's CPU threads; null leaves torch's own choice. Bit-exact resume needs the same number.
        checkpoint_seconds: also save inside an epoch when so long has passed since the last save.
        tensorboard: also write every epoch's metrics for TensorBoard, into the run folder (extra `track`).
        nan_limit: skipped steps (not finite) in a run after which it stops.
    """

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(128, ge=2, multiple_of=2)
    accumulate: int = Field(1, ge=1)
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "auto"
    ema: float | None = Field(None, gt=0, lt=1)
    early_stopping: EarlyStoppingSpec | None = None
    select: Metric = "val_accuracy"
    clip_norm: float | None = Field(None, gt=0)
    channels_last: bool = True
    compile: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(None, ge=1)
    checkpoint_seconds: float = Field(60.0, gt=0)
    tensorboard: bool = False
    nan_limit: int = Field(20, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)
