"""Format of an answer, and rules for facts and refusals in it.

The first line of an answer is the intent, the rest is the text; reasoning may precede them.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tasks.shared.errors import ModelError
from tasks.shared.text.reasoning import split_reasoning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFUSALS = re.compile(
    r"\b(?:can(?:no|')t|cannot|can not|unable to|not able to|not allowed to|won't|will not|must not)\b"
    r"[^.?!]{0,40}?\b(?:help|share|give|provide|advise|assist|discuss|do|answer|look up|change|disclose|support|offer|comment)\b",
    re.IGNORECASE,
)


def join_answer(intent: str, text: str) -> str:
    """Join an assistant's message: the intent on the first line, then the answer."""
    return f"{intent}\n{text}"


def split_answer(content: str) -> tuple[str, str]:
    """Split an assistant's message into intent and answer, without reasoning.

    The intent is empty if there is only one line.
    """
    first, separator, rest = split_reasoning(content)[1].partition("\n")
    return (first.strip(), rest.strip()) if separator else ("", first.strip())


def normalize(text: str) -> str:
    """Normalize text for comparison of facts.

    The result is lower-case and NFKC, with straight quotes and single spaces, without thousands separators.
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return re.sub(r"\s+", " ", text).strip()


def contains(text: str, phrase: str) -> bool:
    """Return True if `text` contains `phrase` as whole words.

    For example, "45 days" does not contain "5 days", nor "12.5" "12".
    """
    pattern = r"(?<![\w.])" + re.escape(normalize(phrase)) + r"(?!\w|[.,]\d)"
    return re.search(pattern, normalize(text)) is not None


def states_fact(text: str, accept: Sequence[Sequence[str]]) -> bool:
    """Return True if the answer contains a string of every group; False without groups."""
    return bool(accept) and all(any(contains(text, phrase) for phrase in group) for group in accept)


def refuses(text: str) -> bool:
    """Return True if the answer declines ("I can't help with ...")."""
    return REFUSALS.search(text.replace("’", "'")) is not None


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
