"""Settings of techniques that set single weights to zero, and what the plan knows of them."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.shared.errors import TechniqueError
from tasks.shared.forecast import SAVED_BYTES, Forecast, Workload, forecast_reading, with_compared
from tasks.shared.model.families import CONV1D, has_parts, is_mixture
from tasks.shared.model.masks import parse_pattern
from tasks.shared.model.widths import ragged, shortened
from tasks.shared.technique import Kind, Port, Refusal, Spec

SECONDS_PER_BYTE = 2 / 4e7
"""Time to compress the weights in memory, before and after, by measurement on a CPU core."""
YAML_BASE = 60
ZEROS_ARE_STORED = (
    "zeros are stored and multiplied like any other weights: the file is as large as before and computes no faster"
)
"""Caveat of masks, for the plan."""


def checked_pattern(value: Any) -> Any:
    """Return "N:M", also where YAML read an unquoted 2:4 as 124, a number to base 60.

    Raises ValueError for other text, or if not 1 <= N < M.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = f"{value // YAML_BASE}:{value % YAML_BASE}"
    if value == "":
        return value
    if not (isinstance(value, str) and re.fullmatch(r"[1-9]\d*:[1-9]\d*", value)):
        raise ValueError(f"{value!r} is no pattern: write N:M, such as 2:4, or leave it empty")
    keep, of = parse_pattern(value)
    if keep >= of:
        raise ValueError(f"{value} removes nothing: of N:M, N weights of every M stay, so N has to be smaller")
    return value


Pattern = Annotated[str, BeforeValidator(checked_pattern)]


def without_matrices(config: Mapping[str, Any]) -> Refusal | None:
    """Refuse models whose matrices are not one linear layer each."""
    if has_parts(config):
        return Refusal("several parts; its layers are those of the language model within", "a text-only model")
    if is_mixture(config):
        return Refusal(
            "its experts are stacked in one tensor, and each expert sees only some of the tokens", "prune/depth"
        )
    return None


def masking_spec(summary: str, calibration: Port, paper: str, caveat: str = ZEROS_ARE_STORED) -> Spec:
    """Spec of a technique that changes the matrices in the decoder layers, and no sizes."""
    return Spec(
        summary=summary,
        ports={"model": Port((Kind.MODEL,)), "calibration": calibration},
        produces=Kind.MODEL,
        libraries=("torch", "transformers", "tokenizers", "gguf"),
        device="accelerator",
        accepts="dense",
        gives="dense",
        paper=paper,
        caveat=caveat,
    )


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Masking:
    """Settings of techniques that set weights of all matrices in the decoder layers to zero.

    Embedding, head, norms and biases stay as they are.
    """

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Fraction of the weights that become zero.  0 only records the zeros that are there, so that later steps keep them."""
    pattern: Pattern = ""
    """N:M, such as 2:4: of every M consecutive inputs of an output, the N best weights stay; overrides `sparsity`."""
    check_rows: Annotated[int, Field(ge=1)] = 8
    """Conversations of the calibration split, held out of the calibration, on which the written model is compared with its source."""
    max_tokens: Annotated[int, Field(ge=8)] = 256
    """Most tokens per calibration conversation; longer ones are truncated."""

    @property
    def by_rows(self) -> bool:
        """True if every output loses the same share of its inputs."""
        return False

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse models whose matrices are not one linear layer each."""
        if (found := without_matrices(config)) is not None:
            return found
        if self.pattern and config.get("model_type") in CONV1D:
            return Refusal(
                "its matrices are stored with inputs first (Conv1D), and no runtime reads N:M that way", "sparsity without a pattern"
            )  # fmt: skip
        return None

    def check_widths(self, widths: Mapping[str, int]) -> None:
        """Refuse a pattern that does not divide a width, or a sparsity that empties rows."""
        if self.pattern:
            _, of = parse_pattern(self.pattern)
            if bad := ragged(widths, of):
                raise TechniqueError(
                    "pattern",
                    f"groups of {of} do not divide {len(bad)} input sizes: {shortened(bad)}",
                    "a pattern N:M whose M divides every input size",
                    "pattern=2:4, or sparsity without a pattern",
                )
        elif self.by_rows and (
            empty := [name for name, width in widths.items() if round(self.sparsity * width) == width]
        ):
            least = min(widths[name] for name in empty)
            raise TechniqueError(
                "sparsity",
                f"{self.sparsity} leaves nothing of the rows of {shortened(empty)}",
                "at least one weight in every row",
                f"sparsity={(least - 1) / least:.3f} or less",
            )

    def forecast(self, work: Workload) -> Forecast:
        """Forecast the time to choose and compress, and a file as large as a dense one."""
        size = work.size()
        seconds = SECONDS_PER_BYTE * SAVED_BYTES * size.parameters
        found = forecast_reading(work, seconds, size.parameters, size.saved())
        return with_compared(found, work, self.check_rows, self.max_tokens)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Calibrated(Masking):
    """Settings of techniques that read what enters each matrix."""

    calibration_rows: Annotated[int, Field(ge=1)] = 64
    """Conversations of the calibration split, answers included."""

    def forecast(self, work: Workload) -> Forecast:
        """Add two passes over the calibration rows: statistics, and the next layer's inputs."""
        found, tokens = super().forecast(work), self.calibration_rows * self.max_tokens
        states = 4.0 * tokens * work.size().shape.width
        seconds = found.seconds + 2 * work.reading(work.size(), tokens)
        return dataclasses.replace(found, seconds=seconds, memory=found.memory + states)
