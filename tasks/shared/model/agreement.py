"""Agreement between the next-token distributions of two models."""

from collections.abc import Iterator, Mapping, Sequence
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
    """Logits of a source model for each row, run without padding: (length, vocabulary).

    They are float32, on the CPU.
    Raises TechniqueError if they are not finite, before work is spent on the model; it names where in the model that begins.
    """
    import torch

    found = []
    for row, logits in zip(ids, iterate_logits(model, ids), strict=True):
        if not bool(torch.isfinite(logits).all()):
            raise TechniqueError(
                "model",
                f"the source's logits are not finite; the first such outputs are those of {first_not_finite(model, row)}",
                "a source with finite logits",
                "check it with evaluate/perplexity, and take an earlier checkpoint or train with a smaller learning rate",
            )
        found.append(logits)
    return found


def first_not_finite(model: Any, row: Sequence[int]) -> str:
    """Return the name of the first module whose outputs for a row are not finite."""
    import torch

    broken: list[str] = []

    def watch(name: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            if isinstance(states, torch.Tensor) and not bool(torch.isfinite(states).all()):
                broken.append(name)

        return hook

    hooks = [part.register_forward_hook(watch(name or "the model")) for name, part in model.named_modules()]
    try:
        list(iterate_logits(model, [row]))
    finally:
        for hook in hooks:
            hook.remove()
    return next(iter(broken), "no module")


def iterate_logits(model: Any, ids: Sequence[Sequence[int]]) -> Iterator["Tensor"]:
    """Yield the logits of one row after the other: (length, vocabulary), float32, on the CPU."""
    import torch

    for row in ids:
        with torch.inference_mode():
            yield model(torch.tensor([list(row)], device=model.device), use_cache=False).logits[0].float().cpu()


def mean_divergence(model: Any, source_logits: Sequence["Tensor"], ids: Sequence[Sequence[int]]) -> float:
    """Return the mean KL divergence of a model from its source, in nats per token.

    source_logits: (length, vocabulary) per row of `ids`.  One row of the model's logits is in memory at a time.
    """
    pairs = zip(source_logits, iterate_logits(model, ids), strict=True)
    return sum(float(token_agreement(theirs, ours)[0].double().sum()) for theirs, ours in pairs) / sum(map(len, ids))


def compare_logits(
    model: Any, source_logits: Sequence["Tensor"], ids: Sequence[Sequence[int]], where: str
) -> dict[str, float]:
    """Compare a model's logits with its source's, row by row.

    source_logits: (length, vocabulary) per row of `ids`, finite, as `logits_of` returns them.
    where: the model, for the error message.
    Returns kl_to_source (nats per token), same_top_token (0..1), perplexity and source_perplexity on these rows.
    Raises TechniqueError if the model's logits are not finite.
    """
    import torch

    divergences, same, ours, theirs = list["Tensor"](), list["Tensor"](), list["Tensor"](), list["Tensor"]()
    for row, source, logits in zip(ids, source_logits, iterate_logits(model, ids), strict=True):
        if not bool(torch.isfinite(logits).all()):
            raise TechniqueError(
                where,
                "the written model's logits are not finite",
                "finite logits",
                "milder settings: more bits or less sparsity, larger damping, more calibration rows",
            )
        divergence, equal = token_agreement(source, logits)
        divergences.append(divergence)
        same.append(equal)
        ours.append(token_losses(logits, row))
        theirs.append(token_losses(source, row))
    return {
        "kl_to_source": float(torch.cat(divergences).mean()), "same_top_token": float(torch.cat(same).float().mean()),
        "perplexity": float(torch.cat(ours).mean().exp()), "source_perplexity": float(torch.cat(theirs).mean().exp()),
    }  # fmt: skip


def token_losses(logits: "Tensor", row: Sequence[int]) -> "Tensor":
    """Negative log-likelihood of every token after the first, in nats: (length - 1,).

    logits: (length, vocabulary).
    """
    import torch
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits[:-1], torch.tensor(list(row[1:])), reduction="none")
