"""Training settings that only some objectives support; those techniques inherit them.

Any other technique refuses them as unknown settings at plan time.
"""

from dataclasses import field
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.distill.training.lora import Lora
from tasks.shared.errors import ConfigError
from tasks.shared.model.grids import OnGrid
from tasks.shared.model.precision import DtypeSetting

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Packed:
    """Packing, for objectives whose every column has one entry per token."""

    packing: bool = False
    """Pack conversations into rows of up to `max_tokens` tokens to avoid padding; they do not attend to each other.  A pack counts as
    one row of `batch_size` but holds several conversations: lower `batch_size`, or there are too few steps.  Since batches are grouped
    by length anyway (3 % padding in the support corpus, 0.6 % in packs), packing pays off for small batches or very different
    lengths."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Weighed:
    """Weights by source of the answer, for objectives that use the column `weights`."""

    teacher_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight in the loss of tokens in the teacher's answers.  It does not change the sampling: every epoch has each row once, so that
    mixtures can be compared at equal budget."""
    gold_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight in the loss of tokens in the corpus's own answers."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Adapted:
    """LoRA settings, for objectives without auxiliary modules.

    Checkpoints of adapters contain no other modules.
    """

    lora: Lora = field(default_factory=Lora)
    """Low-rank adapters, trained instead of the weights."""

    def __post_init__(self) -> None:
        """Raise ConfigError for adapters with what needs the weights themselves trained."""
        gradual = getattr(self, "gradual", None)
        if self.lora.rank and gradual is not None and gradual.sparsity:
            raise ConfigError(
                "gradual.sparsity", f"{gradual.sparsity:g} with adapters of rank {self.lora.rank}, whose product has no zeros to keep",
                "the weights themselves trained", "lora.rank: 0",
            )  # fmt: skip
        if self.lora.rank and getattr(self, "early_step", 0):
            raise ConfigError(
                "early_step", f"{getattr(self, 'early_step', 0)} with adapters of rank {self.lora.rank}", "the weights themselves trained", "lora.rank: 0"
            )  # fmt: skip
        if self.lora.rank and isinstance(self, OnGrid) and self.weight_grid is not None:
            raise ConfigError(
                "qat.grid", f"{self.weight_grid.name} with adapters of rank {self.lora.rank}, which would be merged into rounded weights",
                "the weights themselves trained", "lora.rank: 0",
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Taught:
    """Settings for objectives with a teacher in memory, from the port `teacher`."""

    teacher_dtype: DtypeSetting = "float32"
    """Data type of the teacher's weights and arithmetic.  auto: bfloat16 where the hardware is fast in it, else float32."""
