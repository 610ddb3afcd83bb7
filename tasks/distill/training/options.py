"""Training settings that only some objectives support; those techniques inherit them.

Any other technique refuses them as unknown settings at plan time.
"""

from dataclasses import field
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.distill.training.lora import Lora
from tasks.shared.model.loading import Dtype

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Packed:
    """For objectives whose every column has one entry per token."""

    packing: bool = False
    """Put conversations together in packs of at most `max_tokens` tokens, none of which sees another, so that nothing is padded.
    A pack counts as one of `batch_size`, and holds several conversations: lower `batch_size`, or there are too few steps.
    Batches are of similar length anyway, which leaves 3 % of padding in the support corpus (0.6 % in packs): it pays where a batch
    holds few conversations, or lengths differ much."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Weighed:
    """For objectives that heed the column `weights`."""

    teacher_weight: Annotated[float, Field(gt=0)] = 1.0
    """How often the tokens of rows that the teacher answered count in the loss.  A weight, not a share of samples drawn: every row
    is still seen once an epoch, in as many steps, so that mixtures compare at equal budget."""
    gold_weight: Annotated[float, Field(gt=0)] = 1.0
    """The same for the corpus' own answers."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Adapted:
    """LoRA settings, for objectives without auxiliary modules.

    A checkpoint of adapters holds no other modules.
    """

    lora: Lora = field(default_factory=Lora)
    """Train low-rank adapters in place of the weights."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Taught:
    """For objectives with a teacher in memory, from the port `teacher`."""

    teacher_dtype: Dtype = "float32"
    """Weights of the teacher in memory."""
