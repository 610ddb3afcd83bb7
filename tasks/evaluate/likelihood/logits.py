"""What a model expects next, over given tokens: the part that perplexity and divergence share.

llama.cpp's server tells no probabilities of a prompt's tokens, and of the next one only the likeliest.  So every model is run by
transformers here, a .gguf file with its weights expanded: what is measured is the weights, not llama.cpp's arithmetic.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tasks.evaluate.models_under_test.isolated_runs import Workspace
from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest
from tasks.shared.errors import ModelError
from tasks.shared.model.loading import Dtype, load_model, load_tokenizer, render

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BROKEN = "this model is broken: look at the step that made it"


def in_transformers(subjects: Sequence[ModelUnderTest]) -> list[ModelUnderTest]:
    """The same models, each to be run by transformers."""
    return [
        subject
        if subject.engine == "transformers" or subject.broken
        else replace(subject, engine="transformers", format=f"{subject.format}, expanded")
        for subject in subjects
    ]


def expanded_notes(subjects: Sequence[ModelUnderTest]) -> list[str]:
    """What has to be said when some of the models are .gguf files."""
    files = [subject.name for subject in subjects if subject.is_gguf and not subject.broken]
    if not files:
        return []
    return [
        f"{', '.join(files)}: the .gguf file's weights, expanded and run by transformers. llama.cpp also rounds activations, which this leaves out."
    ]


def called(subject: ModelUnderTest) -> str:
    """The model as errors name it, which are kept in artifacts: no path of this machine."""
    return f"{subject.role} {subject.name}"


def open_model(
    subject: ModelUnderTest, dtype: Dtype, workspace: Workspace, chat: bool = True
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load it.  chat: conversations will be rendered, for which it needs a chat template.  Raises ModelError that names it."""
    import torch

    torch.set_num_threads(workspace.threads)
    try:
        return load_model(subject.weights, dtype, workspace.device), load_tokenizer(subject.weights, chat)
    except ModelError as error:
        raise ModelError(called(subject), error.got, error.wanted, error.fix) from error


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[dict[str, str]]) -> list[int]:
    """Tokens of a conversation in the model's own chat format, up to where its answer begins."""
    return text_ids(tokenizer, render(tokenizer, messages))


def text_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Tokens of the text alone, nothing put before or after it."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def next_logits(model: "PreTrainedModel", ids: Sequence[int], count: int, where: str) -> "Tensor":
    """Logits of the next token after each of the last `count` tokens: (count, vocabulary), in the model's dtype.

    One sequence by itself: there is no padding, and no neighbor in a batch whose rounding it shares.
    Raises ModelError for a token that the model has no embedding of, a sequence longer than it has positions for, or NaN logits.
    """
    import torch

    _check_fits(model, ids, where)
    running: Any = model
    options = {"logits_to_keep": count} if running._supports_logits_to_keep() else {}  # spares the prompt's logits
    with torch.inference_mode():
        tokens = torch.tensor([list(ids)], device=model.device)  # (1, length)
        logits = running(input_ids=tokens, use_cache=False, **options).logits[0, -count:]
        if bool(logits.isnan().any()):
            raise ModelError(where, "NaN logits", "finite logits", BROKEN)
    return logits


def _check_fits(model: "PreTrainedModel", ids: Sequence[int], where: str) -> None:
    embedding: Any = model.get_input_embeddings()
    if max(ids) >= embedding.num_embeddings:
        got = f"its tokenizer gives token {max(ids)}, its embedding has {embedding.num_embeddings} rows"
        raise ModelError(where, got, "tokenizer and weights of one model", BROKEN)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions and len(ids) > positions:
        wanted = f"at most {positions}, the positions it was made for"
        raise ModelError(where, f"{len(ids)} tokens in one pass", wanted, "shorter texts, or a smaller context")


def token_losses(logits: "Tensor", targets: "Tensor") -> "Tensor":
    """Negative log-likelihood of the token that came, in nats: (count, vocabulary) and (count,) -> (count,), float32."""
    scores = logits.float()
    return scores.logsumexp(-1) - scores.gather(1, targets.unsqueeze(1)).squeeze(1)


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Sum of value x weight over the sum of weights."""
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
