"""Layouts of flat records.

Instructions, questions with options or answers, documents with summaries, texts with labels.
"""

import re
from collections.abc import Callable
from typing import Any

from tasks.curate.reading.bad_rows import BadRow
from tasks.curate.reading.drafts import Columns, Draft, as_text, talk, unpacked
from tasks.shared.formats.rows import Message
from tasks.shared.formats.targets import Choice

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ASKED = (
    "user", "question", "query", "prompt", "input", "utterance", "human", "request", "problem", "user_message", "customer_message", "q",
    "customer", "client", "src",
)  # fmt: skip
ANSWERS = (
    "assistant", "answer", "best_answer", "response", "reply", "output", "completion", "bot", "solution", "assistant_message",
    "agent_response", "answers", "target", "a", "agent", "ai", "tgt", "gold_answer", "ground_truth",
)  # fmt: skip
TEXTS = (
    "text",
    "utterance",
    "sentence",
    "query",
    "question",
    "message",
    "content",
    "input",
    "review",
    "tweet",
    "document",
    "title",
    "body",
)
LABELS = ("intent", "label_text", "label_name", "label", "category", "class", "topic", "sentiment", "target", "labels")
SYSTEM = ("system", "system_prompt", "system_message")


def _options(columns: Columns) -> tuple[list[str], set[str]]:
    """Options of a question, and the columns that hold them."""
    name = columns.find(("choices", "options", "endings"))
    if name:
        found = unpacked(columns.record[name])
        if isinstance(found, dict):
            found = found.get("text") or list(found.values())
        return (
            ([as_text(item) for item in found], {name}) if isinstance(found, list) and len(found) > 1 else ([], set())
        )
    for pattern in (
        "choice{}",
        "option{}",
        "ending{}",
        "option_{}",
        "choice_{}",
        "ending_{}",
        "answer_{}",
        "sol{}",
        "{}",
    ):
        for marks in ("0123456789", "123456789", "abcdefgh"):
            names = []
            for mark in marks:
                if pattern.format(mark) not in columns.names:
                    break
                names.append(columns.names[pattern.format(mark)])
            if len(names) > 1:
                return [columns.text(name) for name in names if columns.text(name).strip()], set(names)
    return [], set()


def _choice(columns: Columns) -> Draft | None:
    """A question with options and the right one."""
    options, used = _options(columns)
    right = columns.find(
        (
            "gold",
            "answerkey",
            "answer_key",
            "answer",
            "label",
            "correct",
            "correct_answer",
            "answer_idx",
            "right",
            "target",
        )
    )
    asked = [
        columns.find(names)
        for names in (("premise", "ctx", "context"), ("query", "question", "prompt", "stem", "sentence", "goal"))
    ]
    asked = [name for name in asked if name]
    if len(options) < 2 or not asked:
        return None
    text = "\n".join(columns.text(name) for name in asked)
    used |= {*asked}
    draft = Draft("questions with options", talk(with_options(text, options), None), used=used)
    if right:
        place = right_option(columns.record[right], options, _names(columns))
        draft.used.add(right)
        draft.targets.append(Choice(options=tuple(options), right=place))
        draft.messages.append(Message(role="assistant", content=LETTERS[place]))
    return draft


def _names(columns: Columns) -> list[str]:
    """Names of the options where the data give them (ARC)."""
    found = columns.value("choices")
    return [str(name) for name in found.get("label", [])] if isinstance(found, dict) else []


def with_options(question: str, options: list[str]) -> str:
    """Question with its options below, by letter."""
    return f"{question}\n\n" + "\n".join(f"{LETTERS[place % 26]}. {option}" for place, option in enumerate(options))


def right_option(value: Any, options: list[str], names: list[str]) -> int:
    """Index of the right option, given as index from 0, letter, name or text of the option.

    Raises BadRow if it is none of these.
    """
    text = as_text(value).strip()
    if isinstance(value, list) and len(value) == 1:
        text = as_text(value[0]).strip()
    if text in names:
        return names.index(text)
    if text in options:
        return options.index(text)
    if re.fullmatch(r"\d+", text) and int(text) < len(options):
        return int(text)
    letter = text.strip("().").upper()
    if len(letter) == 1 and letter in LETTERS[: len(options)]:
        return LETTERS.index(letter)
    detail = f"{text[:40]!r} of {len(options)} options"
    raise BadRow("the right option is not among the options", detail, "an index from 0, a letter, or the option's text")


def _alpaca(columns: Columns) -> Draft | None:
    """An instruction, its input and the output (Alpaca, Dolly, self-instruct)."""
    instruction = columns.find(("instruction",))
    instances = columns.value("instances")
    if not instruction:
        return None
    if isinstance(instances, list) and not columns.has("output"):
        if len(instances) != 1:
            raise BadRow("an instruction with several instances", f"{len(instances)}", "write one row per instance")
        inner = Columns({"instruction": columns.record[instruction], **instances[0]}, columns.counts)
        draft = _alpaca(inner)
        return Draft("self-instruct", draft.messages, used={instruction, columns.names["instances"]}) if draft else None
    output = columns.find(("output", "response", "answer", "completion"))
    extra = columns.find(("input", "context"))
    system = columns.find(SYSTEM)
    text, more = columns.text(instruction), columns.text(extra) if extra else ""
    question = f"{text}\n\n{more}" if text.strip() and more.strip() else text if text.strip() else more
    messages = talk(question, columns.text(output) if output else None, columns.text(system))
    history = columns.find(("history",))
    if history and isinstance(columns.record[history], list):
        place = 1 if messages[0].role == "system" else 0
        messages[place:place] = _history(columns.record[history])
    used = {name for name in (instruction, output, extra, system, history) if name}
    return Draft("Alpaca" if columns.has("output") else "instruction/response", messages, used=used)


def _history(pairs: list[Any]) -> list[Message]:
    found = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow("a history that is not made of pairs", f"{pair!r:.60}", "history: [[question, answer], ...]")
        found += [Message(role="user", content=as_text(pair[0])), Message(role="assistant", content=as_text(pair[1]))]
    return found


def _summary(columns: Columns) -> Draft | None:
    """A document and its summary."""
    summary = columns.find(("summary", "highlights", "abstract", "tldr"))
    document = columns.find(("document", "article", "dialogue", "text", "content", "source", "body"))
    if not summary or not document or not isinstance(columns.record[document], str):
        return None
    messages = talk(columns.text(document), columns.text(summary))
    return Draft("document/summary", messages, used={summary, document})


def _question(columns: Columns) -> Draft | None:
    """A question and its answer; SQuAD's with a context and several answers."""
    answer = columns.find(ANSWERS)
    asked = columns.find(tuple(name for name in ASKED if columns.names.get(name) != answer))
    if not answer or not asked:
        return None
    value = columns.record[answer]
    several = value.get("text") if isinstance(value, dict) else value if isinstance(value, list) else None
    references = tuple(dict.fromkeys(as_text(item) for item in several if as_text(item).strip())) if several else ()
    context = columns.find(("context", "passage", "background"))
    system = columns.find(SYSTEM)
    text = columns.text(asked)
    if context and columns.text(context).strip():
        text = f"{columns.text(context)}\n\n{text}"
    said = references[0] if references else None if several is not None else columns.text(answer)
    used = {name for name in (answer, asked, context, system) if name}
    return Draft("question/answer", talk(text, said, columns.text(system)), references=references, used=used)


def _label(columns: Columns) -> Draft | None:
    """A text and its label."""
    label = columns.find(LABELS)
    text = columns.find(tuple(name for name in TEXTS if columns.names.get(name) != label))
    if not label and set(columns.names) == {"column1", "column2"}:  # a table without a header
        first, second = (columns.text(columns.names[name]) for name in ("column1", "column2"))
        text, label = (
            ("column2", "column1") if len(first.split()) <= 2 < len(second.split()) else ("column1", "column2")
        )
        text, label = columns.names[text], columns.names[label]
    if text and not label and any(name in columns.names for name in LABELS[:6]):
        raise BadRow("a row without a label", "it is null", "fill it in, or delete these rows")
    if not label or not text:
        return None
    value = columns.record[label]
    if isinstance(value, list | dict):
        return None
    if not as_text(value).strip():
        raise BadRow("a row without a label", f"{label} is empty", "fill it in, or delete these rows")
    used = {label, text}
    found = Draft(
        f"texts ({text}) with labels ({label})", talk(columns.text(text), None), label=as_text(value).strip(), used=used
    )
    if (
        label != columns.names.get("label")
        and columns.has("label")
        and label in {columns.names.get("label_text"), columns.names.get("label_name")}
    ):
        found.used.add(columns.names["label"])
    return found


TABLES: tuple[Callable[[Columns], Draft | None], ...] = (_choice, _alpaca, _summary, _question, _label)
