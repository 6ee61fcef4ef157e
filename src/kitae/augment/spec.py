"""What `augment:` in a recipe may contain. Names and parameters are checked here, without torch or numba."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator

from kitae.augment.ops import OPS, Op
from kitae.errors import AugmentError, did_you_mean
from kitae.spec import GrowingSpec, Spec

__all__ = ["OPS", "AugmentSpec", "MixSpec", "make_op", "validated"]

S = TypeVar("S", bound=Spec)


def make_op(entry: Any) -> Op:
    """An op from its entry in a recipe: `name`, or `{name: {parameter: value}}`. An op is returned unchanged.

    Raises:
        AugmentError: an unknown op or parameter, or a value out of range; one line that names what is valid.
    """
    if isinstance(entry, Op):
        return entry
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise AugmentError(f"an op must be a name or {{name: {{parameter: value}}}}, not {entry!r}")
    name, parameters = next(iter(entry.items()))
    if name not in OPS:
        raise AugmentError(f"unknown op {name!r}{did_you_mean(str(name), OPS)}; valid names: {', '.join(OPS)}")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise AugmentError(f"{name}: parameters are a mapping, not {parameters!r}")
    return validated(OPS[name], parameters or {}, name)


def validated(spec: type[S], parameters: Mapping[str, Any], name: str) -> S:
    """A spec with these parameters. Raises AugmentError: the first that is wrong, by the spec's name and its own."""
    try:
        return spec.model_validate(dict(parameters))
    except ValidationError as error:
        problem = error.errors()[0]
    where = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "extra_forbidden":
        raise AugmentError(f"{name}: unknown parameter {where!r}; valid: {', '.join(spec.model_fields)}")
    if problem["type"] == "value_error":  # a validator of ours, which names the parameter itself
        raise AugmentError(f"{name}: {problem['msg'].removeprefix('Value error, ')}")
    raise AugmentError(f"{name}.{where}: {problem['msg']}, not {problem['input']!r}")


class MixSpec(GrowingSpec):
    """MixUp and CutMix within pairs of neighbours. Both are on unless one is switched off:
    `{mixup_alpha: 0.2, cutmix_alpha: 0}` is MixUp alone.

    Attributes:
        per: `batch` draws once for a whole batch whether it is mixed, which of the two, lambda and box, as torchvision
            and timm do; it suits short trainings. `sample` draws them for each sample, which is more varied and needs
            longer training.
        mixup_alpha: lambda ~ Beta(alpha, alpha) of MixUp; 0 switches MixUp off.
        cutmix_alpha: the same for CutMix.
        prob: share of batches (or samples) that are mixed at all.
        switch_prob: share of CutMix where both are on.
        until: where mixing ends, as a fraction of the run. From there on, training sees whole images, like those the
            network is for (He et al., "Data Augmentation Revisited", 2019). An `Augment` of your own mixes always.
    """

    newer: ClassVar[frozenset[str]] = frozenset({"until"})

    per: Literal["batch", "sample"] = "batch"
    mixup_alpha: float = Field(1.0, ge=0, le=1000)
    cutmix_alpha: float = Field(1.0, ge=0, le=1000)
    prob: float = Field(1.0, ge=0, le=1)
    switch_prob: float = Field(0.5, ge=0, le=1)
    until: float = Field(1.0, gt=0, le=1)

    @property
    def active(self) -> bool:
        """Whether any sample can be mixed."""
        return self.prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


class AugmentSpec(Spec):
    """What happens to training images: ops in order, then mixing.

    Attributes:
        train: ops in order, each `name` or `{name: {parameter: value}}`.
        mix: MixUp and CutMix; null mixes nothing.
    """

    train: tuple[dict[str, dict[str, Any]], ...] = ()
    mix: MixSpec | None = None

    @field_validator("train", mode="before")
    @classmethod
    def _train(cls, value: Any) -> Any:
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise ValueError(f"train is a list of ops, not {value!r}")
        out = []
        for at, entry in enumerate(value):
            if isinstance(entry, Op):
                if OPS.get(entry.name) is not type(entry):
                    raise ValueError(f"op {at + 1}: {entry!r} is not an op of recipes; pass it to Augment")
                entry = {entry.name: entry.model_dump(exclude_defaults=True)}
            try:
                make_op(entry)
            except AugmentError as error:
                raise ValueError(f"op {at + 1}: {error}") from None
            out.append({entry: {}} if isinstance(entry, str) else {k: dict(v or {}) for k, v in entry.items()})
        return tuple(out)

    def ops(self) -> tuple[Op, ...]:
        """An op for each entry of `train`."""
        return tuple(make_op(entry) for entry in self.train)
