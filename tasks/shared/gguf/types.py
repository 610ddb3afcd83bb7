"""GGUF's types: bytes of their blocks, fallbacks, and the plan of a file's tensors."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tasks.shared.errors import TechniqueError
from tasks.shared.model.widths import DIVISORS, shortened

Scheme = Literal[
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_1", "q5_k", "q5_0", "q4_1", "q4_k", "q4_0", "iq4_nl", "iq4_xs", "nvfp4", "mxfp4", "q3_k",
    "iq3_s", "iq3_xxs", "q2_k", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "q2_0", "tq2_0", "tq1_0",
]  # fmt: skip
EmbeddingScheme = Literal[
    "same", "f32", "f16", "bf16", "q8_0", "q6_k", "q5_1", "q5_k", "q5_0", "q4_1", "q4_k", "q4_0", "iq4_nl", "iq4_xs", "nvfp4", "mxfp4", "q3_k",
    "iq3_s", "iq3_xxs", "q2_k", "iq2_s", "q2_0", "tq2_0", "tq1_0",
]  # fmt: skip
BLOCK_BYTES: Mapping[str, int] = {
    "f32": 4, "f16": 2, "bf16": 2, "q8_0": 34, "q6_k": 210, "q5_1": 24, "q5_k": 176, "q5_0": 22, "q4_1": 20, "q4_k": 144, "q4_0": 18, "iq4_nl": 18,
    "iq4_xs": 136, "nvfp4": 36, "mxfp4": 17, "q3_k": 110, "iq3_s": 110, "iq3_xxs": 98, "q2_k": 84, "iq2_s": 82, "iq2_xs": 74, "iq2_xxs": 66,
    "iq1_m": 56, "iq1_s": 50, "q2_0": 18, "tq2_0": 66, "tq1_0": 54,
}  # fmt: skip
"""Bytes of a block, scales included; its weights are `DIVISORS`."""
FLOATS = frozenset({"f32", "f16", "bf16"})
NEEDS_IMPORTANCE = frozenset({"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs"})
"""Types that llama.cpp does not round to without importance."""
WITH_ZERO = FLOATS | {"q8_0", "q6_k", "q5_0", "q4_0", "nvfp4", "mxfp4", "q3_k", "q2_0", "tq2_0", "tq1_0"}
"""Types in which a zero stays zero: their levels are multiples of the scale.  In the others they are shifted, and a zero becomes some small number."""
FALLBACKS: Mapping[str, str] = {"q6_k": "q8_0", "q5_k": "q5_1"}
"""Type for rows that blocks of 256 or 64 do not fill; all others take iq4_nl, the best 4.5 bits in blocks of 32 (docs/log)."""
SMALLEST_FALLBACK = "iq4_nl"


def bits(scheme: str) -> float:
    """Bits per weight, scales included."""
    return BLOCK_BYTES[scheme] * 8 / DIVISORS[scheme]


def fitting_type(scheme: str, row: int) -> str:
    """Return the scheme, its fallback if its blocks do not fill a row, or an empty string.

    row: weights of a row.
    """
    for name in (scheme, FALLBACKS.get(scheme, SMALLEST_FALLBACK)):
        if row % DIVISORS[name] == 0:
            return name
    return ""


@dataclass(frozen=True)
class PlannedTensor:
    """A matrix of a file.

    row: weights of a row.  wanted, type: type that the settings ask for, and that it gets.
    copied: True once it is written with the levels that the source has already.
    """

    name: str
    row: int
    weights: int
    wanted: str
    type: str
    copied: bool = False

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return self.weights // DIVISORS[self.type] * BLOCK_BYTES[self.type]


def plan_tensor(name: str, row: int, weights: int, wanted: str, fallback: bool = True) -> PlannedTensor:
    """Choose a matrix's type; it is empty if none fits, or only a refused fallback."""
    found = fitting_type(wanted, row)
    return PlannedTensor(name, row, weights, wanted, found if fallback or found == wanted else "")


def check_plan(tensors: Iterable[PlannedTensor]) -> None:
    """Raise TechniqueError that lists every matrix whose rows no type fills."""
    bad = [tensor for tensor in tensors if not tensor.type]
    if not bad:
        return
    wanted = sorted({tensor.wanted for tensor in bad})
    fitting = all(fitting_type(tensor.wanted, tensor.row) for tensor in bad)
    raise TechniqueError(
        "scheme",
        f"blocks of {max(DIVISORS[name] for name in wanted)} weights ({', '.join(wanted)}) do not fill the rows of "
        + shortened([f"{tensor.name} (row={tensor.row})" for tensor in bad]),
        f"rows that are multiples of {min(DIVISORS[name] for name in wanted)}",
        "fallback=true, or scheme=iq4_nl and embedding=q8_0" if fitting else "scheme=f16 and embedding=same",
    )


def describe_fallbacks(tensors: Iterable[PlannedTensor]) -> list[str]:
    """Return a line per type that falls back: how often, where, and what that costs in bits."""
    tensors = list(tensors)
    lines: list[str] = []
    for (wanted, given), count in sorted(Counter((tensor.wanted, tensor.type) for tensor in tensors).items()):
        if wanted == given:
            continue
        same = [tensor for tensor in tensors if tensor.wanted == wanted]
        rows = sorted({tensor.row for tensor in same if tensor.type == given})
        mean = sum(tensor.bytes for tensor in same) * 8 / sum(tensor.weights for tensor in same)
        lines.append(
            f"{wanted} becomes {given} in {count} of {len(same)} matrices, whose rows of {', '.join(map(str, rows))} its blocks of "
            f"{DIVISORS[wanted]} do not fill: {mean:.2f} bits per weight on average, {bits(SMALLEST_FALLBACK):.2f} with iq4_nl"
        )
    return lines
