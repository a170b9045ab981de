"""What sections of the config are made of: types of values, keys with their kind, the strict base class."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

PLACEMENT = "placement"
HORIZON = "horizon"

Auto = Literal["auto"]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"a range begins with its lower end, as in [{ends[1]}, {ends[0]}]")
    return ends


Range = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ascending)]
ShareRange = Annotated[tuple[Share, Share], AfterValidator(_ascending)]


def key(default: Any, description: str, kind: str | None = None, **constraints: Any) -> Any:
    """A key of the config; `kind` is PLACEMENT or HORIZON, identity where it is left out."""
    extra: dict[str, Any] | None = {"kind": kind} if kind else None
    return Field(default=default, description=description, json_schema_extra=extra, **constraints)


class Section(BaseModel):
    """A part of the config: unknown keys are refused, values are not changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)
