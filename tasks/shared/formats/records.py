"""Small typed records that several files of ours are made of."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Better = Literal["higher", "lower"]


class Record(BaseModel):
    """Base of every part: no unknown keys, no NaN or infinity, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(Record):
    """A number about a whole model, with its bounds where it was measured more than once.

    low, high: what `bounds` says.  unit: such as "s", "bytes", "tokens/s", "share", "nats".
    """

    value: float
    low: float | None = None
    high: float | None = None
    bounds: str = ""
    """Such as "range of 3 repeats" or "95 % bootstrap"."""
    unit: str = ""
    better: Better | None = None
    """None: neither is good in itself."""


class Machine(Record):
    """Where it was measured."""

    cpu: str
    cores: int
    memory_bytes: int
    platform: str
    accelerator: str = ""
