"""What every record of results has: fields that may be unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from kitae.errors import KitaeError


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ends(value: Any) -> Any:
    if isinstance(value, list | tuple) and any(_finite(end) is None for end in value):
        return None
    return value


Number = Annotated[float | None, BeforeValidator(_finite)]
Interval = Annotated[tuple[float, float] | None, BeforeValidator(_ends)]


class Record(BaseModel):
    """A part of a file; what it does not name is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


Model = TypeVar("Model", bound=BaseModel)


def as_record(model: type[Model], value: Mapping[str, Any], file: Path) -> Model:
    """A value as a record.

    Args:
        file: where it came from.

    Raises:
        KitaeError: it does not fit; the message names file and field.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise KitaeError(f"{file}: is damaged ({field}: {first['msg']})") from error
