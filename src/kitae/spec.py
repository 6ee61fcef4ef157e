"""The base of every spec: a frozen, closed pydantic model. Each stage's own spec lives beside its code."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Spec(BaseModel):
    """Immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GrowingSpec(Spec):
    """A spec that omits its `newer` fields at their defaults, so that the fingerprints of old recipes do not change."""

    newer: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        unused = {name for name in self.newer if getattr(self, name) == fields[name].default}
        return {name: value for name, value in handler(self).items() if name not in unused}
