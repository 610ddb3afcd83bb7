"""Next-token logits over given tokens, shared by perplexity and divergence.

llama.cpp's server returns no probabilities of a prompt's tokens, and only the top ones of the next token (it lacks the capability
`distribution`).  So every model runs in transformers here, a .gguf file with its weights dequantized: this measures the weights, not
llama.cpp's arithmetic.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tasks.evaluate.models_under_test.isolated_runs import Resources
from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest, Prompt
from tasks.shared.errors import ModelError
from tasks.shared.model.encoding import text_ids
from tasks.shared.model.loading import Dtype, load_model, load_tokenizer
from tasks.shared.model.prompts import render

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BROKEN = "the model is broken: check the step that made it"


def in_transformers(models: Sequence[ModelUnderTest]) -> list[ModelUnderTest]:
    """Return the same models, each set to run in transformers."""
    return [
        model
        if model.engine == "transformers" or model.failure
        else replace(model, engine="transformers", format=f"{model.format}, dequantized")
        for model in models
    ]


def dequantized_notes(models: Sequence[ModelUnderTest]) -> list[str]:
    """Return a note if some of the models are .gguf files."""
    files = [model.name for model in models if model.is_gguf and not model.failure]
    if not files:
        return []
    return [
        f"{', '.join(files)}: the .gguf file's weights, dequantized and run in transformers. llama.cpp also quantizes activations, which this omits."
    ]


def error_name(model: ModelUnderTest) -> str:
    """Return the model's name for errors, which artifacts keep: no path of this machine."""
    return f"{model.role} {model.name}"


def load_for_scoring(
    model: ModelUnderTest, dtype: Dtype, resources: Resources, chat: bool = True
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load model and tokenizer.

    chat: conversations will be rendered, which needs a chat template.  Raises ModelError that names the model.
    """
    import torch

    torch.set_num_threads(resources.threads)
    try:
        return load_model(model.weights, dtype, resources.device), load_tokenizer(model.weights, chat)
    except ModelError as error:
        raise ModelError(error_name(model), error.got, error.wanted, error.fix) from error


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """Return the token ids of a prompt, rendered in the model's chat format."""
    return text_ids(tokenizer, render(tokenizer, prompt.messages, tools=prompt.tools))


def next_logits(model: "PreTrainedModel", ids: Sequence[int], count: int, where: str) -> "Tensor":
    """Logits of the next token after each of the last `count` tokens.

    One unpadded sequence, so that rounding does not depend on other sequences in a batch.
    Returns (count, vocabulary), in the model's dtype.  Raises ModelError for a token without embedding, a sequence longer than the
    model's positions, or NaN logits.
    """
    import torch

    _check_fits(model, ids, where)
    running: Any = model
    options = {"logits_to_keep": count} if running._supports_logits_to_keep() else {}  # skips the prompt's logits
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
        wanted = f"at most {positions}, its number of positions"
        raise ModelError(where, f"{len(ids)} tokens in one pass", wanted, "shorter texts, or a smaller context")


def token_losses(logits: "Tensor", targets: "Tensor") -> "Tensor":
    """Negative log-likelihood of the target tokens, in nats.

    logits: (count, vocabulary), any float dtype.  targets: (count,).  Returns (count,), float32.
    """
    scores = logits.float()
    return scores.logsumexp(-1) - scores.gather(1, targets.unsqueeze(1)).squeeze(1)
