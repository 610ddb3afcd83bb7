"""Objectives: one class per technique, which computes the terms of the loss for a batch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.distill.losses.answers import answer_loss
from tasks.shared.model.encoding import encode
from tasks.shared.model.head import core_of, output_head

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from tasks.shared.formats.rows import Row
    from tasks.shared.model.encoding import Encoded

Batch = Mapping[str, "Tensor"]


class Objective(ABC):
    """Weighted terms that add up to the loss; each is logged, with its gradient norm."""

    knob: str = ""
    """Settings that weight the terms, for the warning about negligible terms."""

    step: int = 0
    """Optimizer steps done, set by the trainer before it calls `terms`.  Random draws are seeded by it, so that a resumed run repeats
    them."""

    one_turn: bool = False
    """True if a row may have one learned turn only; `turns.examples` then makes a row of each."""

    def attach(self, model: "PreTrainedModel", device: str) -> None:  # noqa: B027 - most objectives have nothing to do here
        """Prepare for training: move the teacher to the device, add auxiliary modules to the model.

        `detach` removes these modules.
        """

    def detach(self, model: "PreTrainedModel") -> None:  # noqa: B027
        """Remove the modules that `attach` added, after training, so that a plain model is saved."""

    def encode(self, rows: "Sequence[Row]", tokenizer: Any, max_tokens: int) -> "list[Encoded]":
        """Encode rows as token ids, in their order, with the fields that `label` adds."""
        return self.label(encode(rows, tokenizer, max_tokens))

    def label(self, rows: "Sequence[Encoded]") -> "list[Encoded]":
        """Add the fields by which `terms` finds its targets; refuse rows without targets."""
        return list(rows)

    @abstractmethod
    def terms(self, model: Any, batch: Batch, count: "Tensor | int | None") -> "dict[str, Tensor]":
        """Return the weighted terms of a batch, float32 scalars.

        count: counted tokens of the whole step, of which this batch may be a part (`answer_loss`).
        """

    def figures(self) -> Mapping[str, float | int | str]:
        """Return metrics of the targets for the step's table."""
        return {}


class Answers(Objective):
    """Hard labels only: cross-entropy of the answers."""

    def terms(self, model: Any, batch: Batch, count: "Tensor | int | None") -> "dict[str, Tensor]":
        """Return one term, `hard`."""
        hidden, head = last_hidden(model, batch), output_head(model)
        return {"hard": answer_loss(hidden, head, batch["labels"], count, batch.get("weights"))}


def last_hidden(model: Any, batch: Batch) -> "Tensor":
    """Output of the last layer, (batch, tokens, width), without the head.

    On a CPU, the head over all tokens would take a fifth of a step's time.
    """
    return states_of(model, batch).last_hidden_state


def states_of(model: Any, batch: Batch, **asked: Any) -> Any:
    """Output of the decoder, without the head.  asked: output_hidden_states, output_attentions."""
    positions = {"position_ids": batch["position_ids"]} if "position_ids" in batch else {}
    mask = {} if positions else {"attention_mask": batch["attention_mask"]}  # positions separate packed rows
    return core_of(model).base_model(input_ids=batch["input_ids"], use_cache=False, **mask, **positions, **asked)
