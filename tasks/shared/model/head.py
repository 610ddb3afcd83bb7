"""Losses over the output head, computed in chunks of tokens.

Logits are by far the largest tensors of a training step: tokens x vocabulary x 4 bytes, several times over.  They are computed
for labeled tokens only, one chunk at a time, and recomputed in the backward pass.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import TechniqueError

if TYPE_CHECKING:
    from torch import Tensor

Head = Callable[["Tensor"], "Tensor"]
"""Function from hidden states (tokens, width) to logits (tokens, vocabulary)."""
PROBED = 4
"""Tokens on which the head is checked."""
HEAD_ERROR = 0.05
"""Largest relative difference of logits that rounding to bfloat16 explains."""
CHUNK_ELEMENTS = 2**25
"""Number of logits in one chunk: 128 MiB in float32, and a few such tensors exist at a time."""


def core_of(model: Any) -> Any:
    """Return the language model without peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def output_head(model: Any) -> Head:
    """Return the head as the model applies it, scaled (Cohere, Granite) and capped (Gemma).

    `check_head` finds models that apply it otherwise.
    """
    import torch

    model = core_of(model)
    config = model.config.get_text_config()
    layer = model.get_output_embeddings()
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def head(hidden: "Tensor") -> "Tensor":
        logits = layer(hidden).float()
        logits = logits if scale == 1.0 else logits * scale
        return logits if cap is None else cap * torch.tanh(logits / cap)

    head.vocabulary = int(layer.weight.shape[0])  # type: ignore[attr-defined]
    return head


def check_head(model: Any) -> None:
    """Check that `output_head` gives the model's own logits, on a few tokens.

    Raises TechniqueError if it does not: losses and soft targets would be those of another model.
    """
    import torch

    ids = torch.arange(min(PROBED, model.config.get_text_config().vocab_size), device=model.device)[None]
    training = model.training
    model.eval()
    with torch.no_grad():
        own = model(input_ids=ids, use_cache=False).logits.float()
        found = output_head(model)(core_of(model).base_model(input_ids=ids, use_cache=False).last_hidden_state)
    model.train(training)
    error = float((own - found).abs().max() / own.abs().max().clamp_min(1e-9))
    if own.isfinite().all() and not error < HEAD_ERROR:  # numbers that are none are reported where they are used
        raise TechniqueError(
            type(core_of(model)).__name__,
            f"its logits are not the head's product with the last states: they differ by {error:.0%}",
            "a head that is only scaled (Cohere, Granite) or capped (Gemma)",
            "train and evaluate a model of another family",
        )


def sum_over_chunks(
    score: Callable[..., "Tensor"], head: Head, hidden: "Tensor", *rows: "Tensor", elements: int = CHUNK_ELEMENTS
) -> "Tensor":
    """Sum score(head(hidden), *rows) over chunks of tokens with at most `elements` logits each.

    score: (logits, *rows) -> (terms,), each a sum over the chunk's tokens.
    hidden: (tokens, width).
    rows: (tokens, ...) each; divided into the same chunks.
    Returns (terms,) float32; zeros with a zero gradient if there are no tokens.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    def part(hidden: "Tensor", *rows: "Tensor") -> "Tensor":
        return score(head(hidden), *rows)

    size = max(1, elements // vocabulary_of(head, hidden))
    count = hidden.shape[0]
    if count <= size:
        return part(hidden, *rows)
    starts = range(0, count, size)
    chunks = [[tensor[start : start + size] for tensor in (hidden, *rows)] for start in starts]
    parts = [checkpoint(part, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.stack([item for item in parts if item is not None]).sum(dim=0)


def vocabulary_of(head: Head, hidden: "Tensor") -> int:
    """Number of logits per token.

    hidden: (tokens, width), used only if the head does not state its size.
    """
    known = getattr(head, "vocabulary", None) or getattr(head, "out_features", None)
    return int(known) if known else int(head(hidden[:1].detach()).shape[-1])
