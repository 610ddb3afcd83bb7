"""Settings that every way of training has."""

from dataclasses import field
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.distill.training.lora import Lora
from tasks.shared.errors import ConfigError

Option = Literal["packing", "weights", "lora"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Training:
    """How a model is trained, whatever on: techniques of this stage inherit these settings."""

    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "trl", "accelerate", "peft", "tokenizers", "gguf")
    unkeyed: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})
    """The recomputed activations are those of the forward pass bit for bit: dropout draws the same numbers again."""
    supports: ClassVar[frozenset[Option]] = frozenset()
    """Options that the technique's objective works with; the others are refused."""

    epochs: Annotated[float, Field(gt=0)] = 6
    """Passes over the training rows at the most."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak step size of AdamW."""
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """How the step size falls after the warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps over which the step size rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    batch_size: Annotated[int, Field(gt=0)] = 16
    """Conversations (with `packing`: packs) per forward pass, over all processes."""
    accumulation: Annotated[int, Field(gt=0)] = 1
    """Forward passes per optimizer step."""
    max_tokens: Annotated[int, Field(gt=8)] = 512
    """Longer conversations are refused, not cut: a cut answer teaches cut answers."""
    validation: Annotated[float, Field(ge=0, lt=0.5)] = 0.08
    """Share of phrasing groups kept from training to watch for overfitting; 0 trains on all and stops at the last epoch."""
    patience: Annotated[int, Field(ge=0)] = 2
    """Stop after this many epochs without a better validation loss; 0 trains all epochs. The best epoch is kept either way."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward and backward pass; the weights stay float32. auto: bfloat16 where the processor has it."""
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    """Leave the embedding (and a head tied to it) and this many first layers as they are: the backward pass ends there.

    Language and form sit low in a model and are kept; facts and answers are learnt in the layers above.
    """
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about 30 % more time."""
    packing: bool = False
    """Put conversations together in packs of at most `max_tokens` tokens, none of which sees another, so that nothing is padded.
    A step then holds several times as many conversations: lower `batch_size`, or there are too few steps."""
    teacher_weight: Annotated[float, Field(gt=0)] = 1.0
    """How often the tokens of rows that the teacher answered count in the loss.  A weight, not a share of samples drawn: every row
    is still seen once an epoch, in as many steps, so that mixtures compare at equal budget."""
    gold_weight: Annotated[float, Field(gt=0)] = 1.0
    """The same for the corpus' own answers."""
    lora: Lora = field(default_factory=Lora)
    """Train low-rank adapters in place of the weights."""

    def __post_init__(self) -> None:
        """Raises ConfigError for options that the technique does not support."""
        asked: dict[Option, tuple[bool, str]] = {
            "packing": (self.packing, "packing: false"),
            "weights": ((self.teacher_weight, self.gold_weight) != (1, 1), "teacher_weight: 1 and gold_weight: 1"),
            "lora": (self.lora.rank > 0, "lora.rank: 0"),
        }
        for name, (wanted, fix) in asked.items():
            if wanted and name not in self.supports:
                raise ConfigError(name, f"{type(self).__name__} cannot work with it", "a technique that can, such as SFT", fix)
