"""Agreement between the next-token distributions of two models."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import TechniqueError

if TYPE_CHECKING:
    from torch import Tensor


def token_agreement(reference: "Tensor", other: "Tensor") -> tuple["Tensor", "Tensor"]:
    """KL(reference || other) in nats and top-1 agreement, per position.

    reference, other: (tokens, vocabulary) logits, any float dtype.
    Returns KL (tokens,), float32, >= 0; and (tokens,), bool, True where the most likely token is the same.
    """
    first, second = reference.float().log_softmax(-1), other.float().log_softmax(-1)
    divergence = (first.exp() * (first - second)).sum(-1).clamp(min=0.0)
    return divergence, reference.argmax(-1) == other.argmax(-1)


def truncated_divergence(reference: Mapping[int, float], other: Mapping[int, float]) -> float:
    """KL(reference || other) in nats from the top tokens of `other`; the rest is one outcome.

    reference: probability of every token in `other`, at least.
    other: probability of its most likely tokens.
    By the data-processing inequality this is a lower bound of the full divergence, and close to it if these tokens have most of
    the mass.
    """
    from math import log

    floor = 1e-9
    pairs = [(reference.get(token, 0.0), probability) for token, probability in other.items()]
    pairs.append((1.0 - sum(first for first, _ in pairs), 1.0 - sum(second for _, second in pairs)))
    return max(
        0.0, sum(first * (log(max(first, floor)) - log(max(second, floor))) for first, second in pairs if first > 0.0)
    )


def logits_of(model: Any, ids: Sequence[Sequence[int]]) -> list["Tensor"]:
    """Logits of each row, run without padding: (length, vocabulary), float32, on the CPU."""
    import torch

    with torch.inference_mode():
        return [
            model(torch.tensor([list(row)], device=model.device), use_cache=False).logits[0].float().cpu()
            for row in ids
        ]


def compare_logits(
    logits: Sequence["Tensor"], source_logits: Sequence["Tensor"], ids: Sequence[Sequence[int]], where: str
) -> dict[str, float]:
    """Compare a model's logits with its source's.

    logits, source_logits: (length, vocabulary) per row of `ids`.
    Returns kl_to_source (nats per token), same_top_token (0..1), perplexity and source_perplexity on these rows.
    Raises TechniqueError if the model's logits are not finite.
    """
    import torch

    if not all(bool(torch.isfinite(row).all()) for row in logits):
        raise TechniqueError(
            where,
            "the written model's logits are not finite",
            "finite logits",
            "milder settings: more bits or less sparsity, larger damping, more calibration rows",
        )
    pairs = zip(source_logits, logits, strict=True)
    # Row by row: the copies that a comparison needs are several times as large as the logits.
    divergences, same = zip(*(token_agreement(theirs, ours) for theirs, ours in pairs), strict=True)
    return {
        "kl_to_source": float(torch.cat(divergences).mean()), "same_top_token": float(torch.cat(same).float().mean()),
        "perplexity": perplexity(logits, ids), "source_perplexity": perplexity(source_logits, ids),
    }  # fmt: skip


def perplexity(logits: Sequence["Tensor"], ids: Sequence[Sequence[int]]) -> float:
    """Exp of the mean negative log-likelihood of every token after the first of its row.

    logits: (length, vocabulary) per row.
    """
    import torch
    from torch.nn.functional import cross_entropy

    losses = [
        cross_entropy(row[:-1], torch.tensor(list(tokens[1:])), reduction="none")
        for row, tokens in zip(logits, ids, strict=True)
    ]
    return float(torch.cat(losses).mean().exp())
