"""Choice of the assistant's turns to learn, and their sequences of text."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tasks.shared.formats.rows import Message, Row, to_chat
from tasks.shared.model.prompts import Turn, folds, ignores_tools, learned_turn, merged_turns, merges

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = Literal["all", "last"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """A part of a conversation's text.  learned: True for text that the model must write."""

    text: str
    learned: bool


def learned_places(messages: Sequence[Message], turns: Turns = "all") -> list[int]:
    """Indexes of the messages that are learned, in order.

    turns: all of the assistant's turns that answer something, or the last of them.  A message's own `learn` takes precedence.
    """
    asked = next((place for place, message in enumerate(messages) if message.role in ("user", "tool")), len(messages))
    spoken = [
        place
        for place, message in enumerate(messages)
        if place > asked and message.role == "assistant" and (message.content.strip() or message.tool_calls)
    ]
    chosen = spoken if turns == "all" else spoken[-1:]
    return [place for place in spoken if messages[place].learn or (messages[place].learn is None and place in chosen)]


def examples(rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", turns: Turns, apart: bool = False) -> list[Row]:
    """Return the rows as they are learned.

    They are cut after their last learned turn, with `learn` set on every turn of the assistant.
    A row becomes several, one per learned turn, if its turns do not fit into one text: a template that drops the thoughts of
    earlier turns (Qwen3) writes a turn otherwise once another follows.

    apart: one row per learned turn in any case, for objectives with one answer per row.
    """
    found: list[Row] = []
    counts: Counter[str] = Counter()
    for row in rows:
        counts["toolless"] += bool(row.tools) and ignores_tools(tokenizer, row.prompt, row.tools)
        counts["folded"] += folds(tokenizer) and any(turn.role in ("system", "developer") for turn in row.messages)
        counts["merged"] += bool(merged_turns(tokenizer, row.chat))
        places = _run_ends(tokenizer, row, learned_places(row.messages, turns))
        counts["unlearned"] += sum(message.role == "assistant" for message in row.messages) - len(places)
        learned = _turns(tokenizer, row, places)
        counts["textless"] += any(
            row.messages[place].content.strip() not in turn.text
            for place, turn in zip(places, learned, strict=True)
            if row.messages[place].tool_calls
        )
        if len(places) < 2 or (not apart and joined(learned) is not None):
            found.append(marked(row, places))
        else:
            counts["split"] += 1
            earlier = (marked(row, [place], f"#turn{place}") for place in places[:-1])
            found += [*earlier, marked(row, places[-1:])]
    _report(counts, len(rows))
    return found


def _report(counts: Counter[str], rows: int) -> None:
    """Log how many conversations the template changed, split or left incomplete."""
    if counts["folded"]:
        log.info("the system turn is put into the next user turn in %d of %d conversations", counts["folded"], rows)
    if counts["merged"]:
        log.info(
            "turns of one role are joined, and greetings before the first question left out, in %d of %d conversations: this chat "
            "template demands that user and assistant alternate", counts["merged"], rows,
        )  # fmt: skip
    if counts["toolless"]:
        log.warning(
            "the chat template leaves out the tools of %d conversations: the model never sees them", counts["toolless"]
        )
    if counts["textless"]:
        log.warning("the chat template leaves out the text beside tool calls in %d conversations", counts["textless"])
    if counts["split"]:
        log.info("%d of %d conversations are learned turn by turn, a sequence for each answer", counts["split"], rows)
    if counts["unlearned"]:
        log.info(
            "%d turns of the assistant are context only (`turns`, `learn: false`, or no question before them)",
            counts["unlearned"],
        )


def marked(row: Row, places: Sequence[int], suffix: str = "") -> Row:
    """Return the row up to its last learned turn, with `learn` set on the assistant's turns."""
    end = places[-1] + 1 if places else len(row.messages)
    messages = tuple(
        message.model_copy(update={"learn": place in places}) if message.role == "assistant" else message
        for place, message in enumerate(row.messages[:end])
    )
    return row.model_copy(update={"id": row.id + suffix, "messages": messages})


def learned_pieces(tokenizer: "PreTrainedTokenizerBase", row: Row) -> list[Piece]:
    """Return a row's text up to its last learned turn, in pieces; none without a turn to learn.

    Turns that do not fit into one text are left to `examples`; here only the last of them is learned.
    """
    turns = _turns(tokenizer, row, _run_ends(tokenizer, row, learned_places(row.messages)))
    return (joined(turns) or joined(turns[-1:]) or []) if turns else []


def joined(turns: Sequence[Turn]) -> list[Piece] | None:
    """Return the turns as pieces of one text; None if a prompt does not continue the last turn."""
    pieces: list[Piece] = []
    text = ""
    for turn in turns:
        if not turn.prompt.startswith(text):
            return None
        pieces += [Piece(turn.prompt[len(text) :], False), Piece(turn.text, True)]
        text = turn.prompt + turn.text
    return pieces


def _turns(tokenizer: "PreTrainedTokenizerBase", row: Row, places: Sequence[int]) -> list[Turn]:
    return [learned_turn(tokenizer, to_chat(row.messages[: place + 1]), row.tools) for place in places]


def _run_ends(tokenizer: "PreTrainedTokenizerBase", row: Row, places: Sequence[int]) -> list[int]:
    """Drop places whose turn the template joins to the next, which has the whole text."""
    following = {
        place for place in places if row.messages[place + 1 : place + 2] and row.messages[place + 1].role == "assistant"
    }
    return [place for place in places if place not in following or not merges(tokenizer)]
