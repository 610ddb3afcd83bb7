"""Sizes of a model by precision, from the forecasts of the techniques that write it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flows.planning.catalog import Entry
from tasks.shared.forecast import Forecasts, Rows, Size, Workload
from tasks.shared.technique import Compute

Hardware = Literal["cpu", "gpu", "fp8-gpu"]


@dataclass(frozen=True)
class Precision:
    """A form that a model can have on disk and in memory.

    technique: that writes it, as stage/name.  settings: of the technique.  hardware: on which it is served.
    """

    name: str
    technique: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    hardware: tuple[Hardware, ...] = ("cpu",)


GPUS: tuple[Hardware, ...] = ("gpu", "fp8-gpu")
SIXTEEN = Precision("bf16", "quantize/cast", {}, ("cpu", *GPUS))
EIGHT: Mapping[Hardware, Precision] = {
    "cpu": Precision("q8_0", "export/gguf", {"scheme": "q8_0"}),
    "gpu": Precision("int8", "quantize/smoothquant", {}, GPUS),
    "fp8-gpu": Precision("fp8", "quantize/fp8", {}, ("fp8-gpu",)),
}
"""The form in 8 bits by hardware."""
INT4 = Precision("int4", "quantize/gptq", {}, GPUS)
FOUR: Mapping[Hardware, Precision] = {
    "cpu": Precision("iq4_nl", "export/gguf", {"scheme": "iq4_nl"}),
    "gpu": INT4,
    "fp8-gpu": INT4,
}
"""The form in 4 bits by hardware."""
PRECISIONS: tuple[Precision, ...] = (
    SIXTEEN, EIGHT["fp8-gpu"], EIGHT["gpu"], INT4, Precision("int3", "quantize/autoround", {"bits": 3}, GPUS), EIGHT["cpu"],
    *(Precision(scheme, "export/gguf", {"scheme": scheme}) for scheme in ("q6_k", "q5_k", "q5_0", "q4_1", "q4_k", "q4_0")), FOUR["cpu"],
    *(Precision(scheme, "export/gguf", {"scheme": scheme}) for scheme in ("q3_k", "q2_k")),
)  # fmt: skip
"""The table's rows, each on the hardware where engines have kernels for it."""


@dataclass(frozen=True)
class Form:
    """A model in one precision; bytes: of its weights."""

    precision: Precision
    bytes: float
    bits: float


def form_of(size: Size, precision: Precision, techniques: Mapping[str, Entry]) -> Form | None:
    """Return the model's size in a precision; None if no technique writes it.

    techniques: the project's, as stage/name.  bits: per parameter, scales and matrices in other types included.
    """
    entry = techniques.get(precision.technique)
    technique = entry.technique(**precision.settings) if entry else None
    if not isinstance(technique, Forecasts):
        return None
    found = technique.forecast(Workload({"model": (size,)}, Rows(), Compute(1, "cpu"), 1.0)).size
    return Form(precision, found.bytes, 8 * found.bytes / size.parameters) if found else None


def forms(size: Size, hardware: Hardware, techniques: Mapping[str, Entry]) -> list[Form]:
    """Return the model's sizes in every precision that this hardware runs, largest first."""
    wanted: Collection[Precision] = [one for one in PRECISIONS if hardware in one.hardware]
    found = [form for precision in wanted if (form := form_of(size, precision, techniques))]
    return sorted(found, key=lambda form: -form.bytes)
