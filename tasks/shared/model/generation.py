"""Greedy generation with transformers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import ModelError
from tasks.shared.progress import progress_bar
from tasks.shared.text.stops import cut_at

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Written:
    """A continuation without special tokens.

    ended: False if the length limit cut it off.  label: the likeliest of the labels asked for, where the continuation's own
    probabilities prove it; empty otherwise.
    """

    text: str
    ended: bool
    label: str = ""


def write_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 32,
    stop: Sequence[str] = (),
) -> list[Written]:
    """Greedy continuations of rendered prompts, in their order; see `plain_greedy`.

    stop: strings that end an answer and are not part of it.
    Batches consist of prompts of similar length, padded on the left, so that every row ends with its prompt's last token.
    """
    import torch

    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    found: dict[int, Written] = {}
    generating: Any = model
    stops = stop_tokens(model.generation_config, tokenizer)
    strings: dict[str, Any] = {"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}
    with progress_bar("answers", len(prompts)) as advance, plain_greedy(model), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = tokenizer(
                [prompts[index] for index in chosen], return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
            ).to(model.device)  # fmt: skip
            output = generating.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=max_new_tokens,
                do_sample=False, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id, **strings,
            )  # (batch, prompt + new)  # fmt: skip
            new = output[:, batch["input_ids"].shape[1] :]
            answers = tokenizer.batch_decode(new, skip_special_tokens=True)
            for index, answer, ids in zip(chosen, answers, new.tolist(), strict=True):
                text, cut = cut_at(answer, stop)
                found[index] = Written(text.strip(), cut or not set(stops).isdisjoint(ids))
            advance(len(chosen))
    return [found[index] for index in range(len(prompts))]


def stop_tokens(settings: "GenerationConfig | None", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids that end an answer, from the tokenizer and the model's generation settings.

    Some models have different tokens for the end of a turn and the end of a text.
    """
    configured = getattr(settings, "eos_token_id", None)
    more = configured if isinstance(configured, list) else [configured]
    return sorted({int(token) for token in (tokenizer.eos_token_id, *more) if token is not None})


@contextmanager
def plain_greedy(model: "PreTrainedModel") -> Iterator[None]:
    """Make `generate(do_sample=False)` take the most likely token at every step.

    A model's generation_config.json may set penalties and bans (repetition_penalty, no_repeat_ngram_size, ...).  Transformers
    applies them to greedy decoding too, but llama.cpp's server does not, since GGUF files lack them.  Special tokens are kept.
    """
    from transformers import GenerationConfig

    own: Any = model.generation_config
    ids = {name: getattr(own, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    try:
        yield
    finally:
        model.generation_config = own


def check_logits(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompt: str) -> None:
    """Run one prompt; raise ModelError for non-finite logits, which would decode to nonsense."""
    import torch

    batch = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
    with torch.inference_mode():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if not torch.isfinite(logits).all():
        raise ModelError(
            "logits",
            "not finite (NaN or infinity)",
            "finite numbers",
            "the model is broken: check the step that made it",
        )
