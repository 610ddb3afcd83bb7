"""Greedy answers in transformers, and whether each of them came to its own end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import ModelError
from tasks.shared.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Written:
    """A continuation without special tokens, and whether it ended by itself within its length limit."""

    text: str
    ended: bool


def write_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 32,
) -> list[Written]:
    """Greedy continuations of rendered prompts, in the order given; see `plain_greedy`.

    Batches hold prompts of similar length and are padded on the left, so that every row ends at its own last token.
    """
    import torch

    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    found: dict[int, Written] = {}
    generating: Any = model
    stops = stop_tokens(model, tokenizer)
    with progress_bar("answers", len(prompts)) as advance, plain_greedy(model), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = tokenizer(
                [prompts[index] for index in chosen], return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
            ).to(model.device)  # fmt: skip
            output = generating.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=max_new_tokens,
                do_sample=False, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id,
            )  # (batch, prompt + new)  # fmt: skip
            new = output[:, batch["input_ids"].shape[1] :]
            answers = tokenizer.batch_decode(new, skip_special_tokens=True)
            for index, answer, ids in zip(chosen, answers, new.tolist(), strict=True):
                found[index] = Written(answer.strip(), not set(stops).isdisjoint(ids))
            advance(len(chosen))
    return [found[index] for index in range(len(prompts))]


def stop_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids that end an answer: the tokenizer's and those of the generation config (some models end a turn and a text differently)."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    more = configured if isinstance(configured, list) else [configured]
    return sorted({int(token) for token in (tokenizer.eos_token_id, *more) if token is not None})


@contextmanager
def plain_greedy(model: "PreTrainedModel") -> Iterator[None]:
    """Within it, `generate(do_sample=False)` takes the likeliest token at every step, and nothing else.

    A model's generation_config.json may name penalties and banned repeats (repetition_penalty, no_repeat_ngram_size, ...), which
    transformers applies to greedy answers too and llama.cpp's server, which gets a GGUF without them, does not.  The ids of
    special tokens stay.
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
    """One pass over one prompt.  Raises ModelError for logits that are not numbers: decoding would go on and write nonsense."""
    import torch

    batch = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
    with torch.inference_mode():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if not torch.isfinite(logits).all():
        raise ModelError(
            "logits", "not finite (NaN or infinity)", "numbers", "this model is broken: look at the step that made it"
        )
