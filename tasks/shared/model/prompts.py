"""Prompts and answers as text, rendered by the model's chat template, whatever its shape.

A turn is learned as generation meets it: the prompt is the conversation before the turn, rendered with `add_generation_prompt`,
and everything that the template writes after it is the answer's text, up to the token that ends the turn.  If a template puts an
empty thought (Qwen3, SmolLM3) or a space (Mistral, Llama 2) before the answer, the model has to write it itself, so it is learned.
`{% generation %}` marks are not needed for that, and may be missing.
"""

import json
import logging
import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import ModelError
from tasks.shared.model.special_tokens import first_special, special_tokens
from tasks.shared.model.template_edits import (
    DATE,
    FOLDED,
    MERGED,
    PROGRAM_ERRORS,
    has_clock,
    merging,
    pinned,
    plain_template,
    with_variable,
)
from tasks.shared.text.reasoning import CLOSE, OPEN, split_reasoning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
Chat = Mapping[str, Any]
"""A message as chat templates take it: role, content, and where present tool_calls, name, tool_call_id."""
MARK = "\u241ean answer\u241e"
"""Stand-in for an answer, by which its place in a rendering is found."""
FOLD_FIX = "models.NAME.system=fold puts it into the next user turn; or remove the system turns from the data"


@dataclass(frozen=True)
class Turn:
    """A turn to learn.

    prompt: text that generation is given.  text: text that it must write, end of turn included.

    head: part of `text` before the answer's content.
    """

    prompt: str
    text: str
    head: str


def render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Chat], add_generation_prompt: bool = True, tools: str = ""
) -> str:
    """Render a conversation with the model's chat template, or as plain text if it has none.

    tools: JSON text of a list of tools; empty for none.
    Raises ModelError if the template refuses the conversation or leaves its system turn out.
    """
    turns = accepted(tokenizer, messages)
    text = _written(tokenizer, turns, add_generation_prompt, tools)
    for turn in turns:
        if turn["role"] != "assistant" and not _is_in(turn["content"], text):
            raise ModelError(
                "chat template",
                f"it leaves the {turn['role']} turn {turn['content'][:40]!r} out of the prompt",
                f"a template that writes {turn['role']} turns, or conversations without them",
                FOLD_FIX if turn["role"] == "system" else "use another `template` on the model in the recipe",
            )
    return text


def _is_in(content: str, text: str) -> bool:
    """Return True if a line of the content is in the text.

    A template may remove a mark such as /no_think, or write JSON.
    """
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    return not lines or any(line in text or json.dumps(line, ensure_ascii=False)[1:-1] in text for line in lines)


def accepted(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Chat]) -> list[dict[str, Any]]:
    """Return the messages, with `developer` as `system` if the template lacks that role.

    For a template that merges turns (`templates.merging`), consecutive turns are one here as well.
    """
    template = str(tokenizer.chat_template or "")
    turns: list[dict[str, Any]] = []
    for message in messages:
        turn = dict(message)
        if turn["role"] == "developer" and "developer" not in template:
            turn["role"] = "system"
        last = turns[-1] if turns else {}
        joins = merges(tokenizer) and turn["role"] in ("user", "assistant") and last.get("role") == turn["role"]
        if joins and not turn.get("tool_calls") and not last.get("tool_calls"):
            turns[-1] = {**last, "content": f"{last['content']}\n\n{turn['content']}"}
        else:
            turns.append(turn)
    return turns


def folds(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return True if the template puts system turns into the next user turn."""
    return FOLDED in str(tokenizer.chat_template or "")


def merges(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return True if the template joins consecutive turns of one role."""
    return MERGED in str(tokenizer.chat_template or "")


def merged_turns(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Chat]) -> int:
    """Number of turns that the template joins to the one before, or leaves out as a greeting."""
    if not merges(tokenizer):
        return 0
    turns = accepted(tokenizer, messages)
    spoken = [turn for turn in turns if turn["role"] != "system"]
    return len(messages) - len(turns) + bool(spoken and spoken[0]["role"] == "assistant")


def learned_turn(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Chat], tools: str = "") -> Turn:
    """Return the last message, the assistant's, as it is learned.

    A template may end a prompt otherwise than it begins the answer in a conversation: after a closed thought the answer follows at
    once, and a thought that the prompt opens (DeepSeek-R1) is closed by the answer.
    Raises ModelError for a template that changes the answer's text or drops its reasoning or tool calls.
    """
    turns = accepted(tokenizer, messages)
    *before, last = turns
    prompt, whole = render(tokenizer, before, True, tools), render(tokenizer, turns, False, tools)
    marked = _written(tokenizer, [*before, {**last, "content": MARK}], False, tools)
    common = len(os.path.commonprefix([prompt, whole, marked]))
    head, end = _content_place(whole[common:], marked[common:], last)
    stop = end + len(_end_of(tokenizer, whole[common + end :], bool(last.get("tool_calls"))))
    told, text = prompt[common:], whole[common : common + stop]
    thought, answer = split_reasoning(last["content"])
    if OPEN in told and CLOSE not in told.rpartition(OPEN)[2]:
        closing = f"{thought}\n{CLOSE}\n\n"
        text, head = closing + answer + text[end:], closing
    elif not told.strip():
        cut = len(text) - len(text.lstrip()) if told else 0
        text, head = text[cut:], head[cut:]
    elif head.strip():
        got = f"it writes {told!r} before an answer in a prompt, and {head!r} in a conversation"
        raise ModelError("chat template", got, "the same text", "use a template that only appends turns")
    if thought and thought not in text:
        raise ModelError(
            "chat template", "it drops the reasoning of an answer", "a template that writes what is between <think> marks",
            "distill/sft on answers without reasoning, or another `template` on the model",
        )  # fmt: skip
    if missing := [
        call["function"]["name"] for call in last.get("tool_calls", ()) if call["function"]["name"] not in text
    ]:
        raise ModelError(
            "chat template",
            f"it leaves out the tool call {missing[0]}",
            "a template that writes tool calls",
            "use another `template` on the model in the recipe",
        )
    return Turn(prompt, text + _added_end(tokenizer, text), head)


def _content_place(turn: str, marked: str, message: Chat) -> tuple[str, int]:
    """Return the text before the content in a rendered turn, and the place of the content's end.

    marked: the same turn with MARK as content.  Some templates (Llama 3's) write a tool call without the text beside it.
    """
    head, found, tail = marked.partition(MARK)
    content = str(message["content"])
    for form in (content, content.strip(), content.rstrip(), content.lstrip()):
        if found and turn == head + form + tail:
            return head, len(head) + len(form)
    answer = split_reasoning(content)[1] or content.strip()
    place = turn.find(answer, 0 if CLOSE not in turn else turn.rfind(CLOSE) + len(CLOSE))
    if message.get("tool_calls") and not found:
        return "", 0
    if place < 0 or not found:
        raise ModelError(
            "chat template", f"it changes the answer {answer[:40]!r} to {turn[:60]!r}", "a template that writes answers as they are",
            "use a model with a plain chat template, or another `template` on the model in the recipe",
        )  # fmt: skip
    return turn[: place if answer else 0], place + len(answer)


def _end_of(tokenizer: "PreTrainedTokenizerBase", tail: str, calls: bool) -> str:
    """Text after an answer, with the token that ends the turn; "" if the template writes none.

    calls: tool calls come first, whose markup may have special tokens of its own.
    """
    own = str(tokenizer.eos_token or "")
    if calls and own and own in tail:
        return tail[: tail.index(own) + len(own)]
    found = first_special(tokenizer, tail)
    if found is None:
        return tail.rstrip() if calls else ""
    return tail[: found[0] + len(found[1])]


def _added_end(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """End of text for a turn that no special token ends; without one, a model would never stop."""
    if any(text.endswith(token) for token in special_tokens(tokenizer)):
        return ""
    if not tokenizer.eos_token:
        raise ModelError(
            "tokenizer", "neither its chat template nor an eos token ends a turn", "a token that ends an answer",
            "set eos_token in tokenizer_config.json",
        )  # fmt: skip
    return str(tokenizer.eos_token)


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the special token that the template writes after an answer; "" if it writes none.

    It is searched for at the end of a conversation, then before a user's next turn, where the token that starts that turn is not it.
    """
    asked = {"role": "user", "content": "\u241ea question\u241e"}
    talk = [asked, {"role": "assistant", "content": MARK}]
    try:
        alone, opened, both = (_written(tokenizer, turns, False) for turns in (talk, talk[:1], [*talk, asked]))
    except ModelError:
        return ""
    found = first_special(tokenizer, alone.partition(MARK)[2])
    if found:
        return found[1]
    between = first_special(tokenizer, both.partition(MARK)[2].partition(asked["content"])[0])
    if between and between[1] not in opened.partition(asked["content"])[0]:
        return between[1]
    return ""


def settle_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Fit the template of a loaded tokenizer, and make its end of turn the eos token.

    Its clock is held still, and it joins turns if it demands alternation.
    Some templates write `eos_token` elsewhere than at the end of a turn (Phi-3, after the conversation); its text is kept there.
    """
    template = str(tokenizer.chat_template)
    tokenizer.chat_template = pinned(template)
    if has_clock(template):
        log.info("the chat template writes today's date: it is held at %s in every prompt (`date` of the model)", DATE)
    if _demands_alternation(tokenizer):
        tokenizer.chat_template = merging(tokenizer.chat_template)
        log.info(
            "the chat template demands that user and assistant alternate: consecutive turns of one role are joined"
        )
    end = end_of_turn(tokenizer)
    if end and end != tokenizer.eos_token:
        if tokenizer.eos_token and "eos_token" in tokenizer.chat_template:
            tokenizer.chat_template = with_variable(tokenizer.chat_template, "eos_token", str(tokenizer.eos_token))
        tokenizer.eos_token = end


def _demands_alternation(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return True if the template takes a question and answer, but not two or a greeting."""
    user, assistant = ({"role": role, "content": "x"} for role in ("user", "assistant"))
    if not _takes(tokenizer, [user, assistant]):
        return False
    return not (_takes(tokenizer, [user, user, assistant]) and _takes(tokenizer, [assistant, user, assistant]))


def _takes(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Chat]) -> bool:
    try:
        return bool(_written(tokenizer, messages, False))
    except ModelError:
        return False


def ignores_tools(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Chat], tools: str) -> bool:
    """Return True if the template renders a conversation alike with and without its tools."""
    return render(tokenizer, messages, True, tools) == render(tokenizer, messages)


def _written(
    tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Chat], add_generation_prompt: bool, tools: str = ""
) -> str:
    """Apply the template as it is.  Raises ModelError if it refuses these turns."""
    from jinja2 import TemplateError

    template = tokenizer.chat_template or plain_template(tokenizer)
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(turn) for turn in turns], tools=json.loads(tools) if tools else None, chat_template=template,
                tokenize=False, add_generation_prompt=add_generation_prompt,
            )
        )  # fmt: skip
    except (TemplateError, *PROGRAM_ERRORS) as error:
        roles = ", ".join(str(turn["role"]) for turn in turns)
        system = any(turn["role"] == "system" for turn in turns)
        raise ModelError(
            "chat template", f"it refuses turns of {roles}: {error}", "a template that accepts them",
            FOLD_FIX if system else "",
        ) from error  # fmt: skip
