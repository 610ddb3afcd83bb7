"""Prompts and answers as text and tokens, rendered by the model's chat template."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[dict[str, Any]],
    add_generation_prompt: bool = True,
    tools: str = "",
) -> str:
    """Render a conversation as text with the model's chat template.

    tools: JSON text of a list of tools; empty for none.
    Raises ModelError if the template refuses it (because of a system turn, for example).
    """
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), tools=json.loads(tools) if tools else None, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )  # fmt: skip
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ModelError(
            "chat template", f"it refuses turns of {roles}: {error}", "a template that accepts them"
        ) from error


def answer_tokens(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]]
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and for each, True if it belongs to the last message.

    The last message includes its end of turn.  Earlier turns of the assistant are context: they have no intent line and must not
    be learned as answers.
    Raises ModelError for a chat template that does not render the earlier turns as a prefix of the whole conversation, which
    generation needs as well.
    """
    turns = [dict(message) for message in messages]
    before = str(tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True))
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    answer = turns[-1]["content"].strip()
    if not whole.startswith(before + answer):
        raise ModelError(
            "chat template",
            "it rewrites earlier turns or adds to the answer",
            "a template that only appends turns",
            "use a model with a plain chat template",
        )
    stop = whole.find(str(tokenizer.eos_token), len(before) + len(answer))
    end = len(before) + len(answer) if stop < 0 else stop + len(str(tokenizer.eos_token))
    prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
    spoken = tokenizer(whole[len(before) : end], add_special_tokens=False)["input_ids"]
    return [*prompt, *spoken], [False] * len(prompt) + [True] * len(spoken)
