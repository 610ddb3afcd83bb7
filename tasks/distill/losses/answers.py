"""Hard targets: cross-entropy of labeled tokens."""

from typing import TYPE_CHECKING

from tasks.shared.model.encoding import IGNORED, counted
from tasks.shared.model.head import Head, sum_over_chunks

if TYPE_CHECKING:
    from torch import Tensor


def answer_loss(
    hidden: "Tensor", head: Head, labels: "Tensor", count: "Tensor | int | None" = None, weights: "Tensor | None" = None
) -> "Tensor":
    """Mean cross-entropy of the labeled tokens; the head is applied to these only.

    hidden: (batch, tokens, width), the last layer's output.  labels: (batch, tokens), IGNORED where nothing counts.
    count: (), the divisor, for batches that are parts of a larger one; None: the tokens counted here.  weights: (batch, tokens), how often
    each token counts in the sum, as if its row stood in the batch so many times; None: once.  Returns a float32 scalar,
    0 with a zero gradient when nothing counts.  A small model's head is a fifth of its work, and answers are a quarter of
    the tokens.
    """
    from torch.nn.functional import cross_entropy

    def score(logits: "Tensor", tokens: "Tensor") -> "Tensor":
        return cross_entropy(logits.float(), tokens, reduction="sum").view(1)

    def weighted(logits: "Tensor", tokens: "Tensor", weights: "Tensor") -> "Tensor":
        return (cross_entropy(logits.float(), tokens, reduction="none") * weights).sum().view(1)

    states, tokens = counted(hidden, labels)
    if weights is None:
        return sum_over_chunks(score, head, states, tokens)[0] / divisor(tokens, count)
    chosen = weights[:, 1:][labels[:, 1:] != IGNORED]
    return sum_over_chunks(weighted, head, states, tokens, chosen)[0] / divisor(tokens, count)


def divisor(tokens: "Tensor", count: "Tensor | int | None") -> "Tensor | int":
    """Divisor of sums over tokens: the whole batch's count, or these tokens', at least 1.

    tokens: (tokens,), those that count.  count: (), the whole batch's; None: the number of `tokens`.
    """
    return max(1, tokens.shape[0]) if count is None else count


def row_shares(labels: "Tensor", count: "Tensor | int | None" = None) -> "Tensor":
    """Share of each row in the step's counted tokens.

    It is the weight of a row's mean, for terms that are means over other tokens.

    labels: (batch, tokens), count: (), both as in `answer_loss`.  Returns (batch,), float32; over all batches of a step they add up to 1, so that parts
    of a step add up to the whole.
    """
    own = (labels[:, 1:] != IGNORED).sum(dim=1)
    return own.float() / (own.sum().clamp_min(1) if count is None else count)
