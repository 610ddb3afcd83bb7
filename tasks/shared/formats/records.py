"""Typed records that several file formats share."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Better = Literal["higher", "lower"]


class Record(BaseModel):
    """Base class of records: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(Record):
    """A number about a whole model, with bounds if it was measured more than once.

    low, high: as described by `bounds`.  unit: such as "s", "bytes", "tokens/s", "share", "nats".
    """

    value: float
    low: float | None = None
    high: float | None = None
    bounds: str = ""
    """Such as "range of 3 repeats" or "95 % bootstrap"."""
    unit: str = ""
    better: Better | None = None
    """None if neither direction is better."""


class Machine(Record):
    """Machine that the figures were measured on."""

    cpu: str
    cores: int
    memory_bytes: int
    platform: str
    accelerator: str = ""
