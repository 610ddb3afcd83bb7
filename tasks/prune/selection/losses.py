"""Loss of a text, with which units and layers are compared."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tasks.shared.model.head import output_head, sum_over_chunks

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def text_loss(model: "PreTrainedModel", batch: Mapping[str, "Tensor"]) -> "Tensor":
    """Negative log-likelihood in nats, summed over the tokens of a batch without padding.

    batch: input_ids and attention_mask, (batch, length) each, padded on the right.
    Logits exist for a chunk of tokens at a time.
    """
    from torch.nn.functional import cross_entropy

    placed = {name: tensor.to(model.device) for name, tensor in batch.items()}
    states = model.base_model(**placed, use_cache=False).last_hidden_state
    real = placed["attention_mask"][:, 1:] == 1
    return sum_over_chunks(
        lambda logits, tokens: cross_entropy(logits.float(), tokens, reduction="sum").view(1),
        output_head(model),
        states[:, :-1][real],
        placed["input_ids"][:, 1:][real],
    )[0]
