"""Layouts of a record: formats of conversations, told apart by their columns."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from tasks.curate.reading.bad_rows import BadRow
from tasks.curate.reading.drafts import Columns, Draft, talk, tools_text, unpacked
from tasks.curate.reading.table_layouts import TABLES
from tasks.curate.reading.turns import ROLES, is_turns, read_turns
from tasks.shared.formats.earlier_rows import is_earlier, upgrade
from tasks.shared.formats.rows import Message, Row
from tasks.shared.formats.targets import Decline

OWN, EARLIER = "rows of this project", "rows of this project's earlier schema"
LISTS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns", "chat", "contents", "log")
"""Columns that hold a list of turns."""
MARKS = (
    "<|im_start|>",
    "[INST]",
    "<start_of_turn>",
    "<|start_header_id|>",
    "### Human:",
    "### Instruction:",
    "### User:",
    "USER:",
)
"""Marks of a chat template that was applied already."""
HINTS = {
    "mapping": "a ChatGPT export holds a tree: convert each path to {'messages': [...]}",
    "paragraphs": "SQuAD's nested form: write one question per row, {'context', 'question', 'answers'}",
    "translation": "name the languages: map: {user: translation.en, assistant: translation.fr}",
    "instances": "write one row per instance, {'instruction', 'input', 'output'}",
}


def read_layout(record: Any, counts: Counter[str]) -> Draft:
    """Find a record's format and read its conversation.

    counts: gets remarks on what was taken for something.
    Raises BadRow if no format fits, or the record is not sound.
    """
    if is_turns(record):
        return Draft("transcripts (lists of turns)", read_turns(record, counts))
    if isinstance(record, list) and len(record) == 2 and all(isinstance(item, str) for item in record):
        return Draft("pairs of text and label", talk(record[0], None), label=record[1])
    if isinstance(record, dict) and "row_idx" in record and isinstance(record.get("row"), dict):  # the hub's viewer
        record = record["row"]
    if not isinstance(record, dict):
        raise BadRow("a record that is not an object", f"{type(record).__name__}: {record!r:.60}")
    columns = Columns(record, counts)
    for reader in READERS:
        if draft := reader(columns):
            return draft
    raise _unknown(record)


def _unknown(record: dict[str, Any]) -> BadRow:
    names = ", ".join(map(str, list(record)[:12])) or "none"
    hint = next((words for name, words in HINTS.items() if name in record), "")
    fix = hint or "say which column is what: map: {user: COLUMN, assistant: COLUMN}, or {user: COLUMN, label: COLUMN}"
    if isinstance(text := record.get("text"), str):
        fix = (
            "map: {user: text, labels: labels} reads lists of labels, with task: {type: classification}"
            if record.get("labels") is not None
            else "texts without a question and an answer are no conversations; map: {user: text} lets a teacher answer them"
        )
        if mark := next((mark for mark in MARKS if mark in text), ""):
            return BadRow(
                f"a conversation in one text, with marks such as {mark}", "", "split it into turns: {'messages': [...]}"
            )
    return BadRow(f"no known format: columns {names}", "", fix)


def _rows(columns: Columns) -> Draft | None:
    """Rows in the schema of the corpus, today's or the earlier one."""
    record = columns.record
    earlier = is_earlier(record)
    if not earlier and not ({"messages", "id", "group"} <= record.keys() and {"key", "task", "tags"} & record.keys()):
        return None
    try:
        row = Row.model_validate(upgrade(dict(record)) if earlier else record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "row"
        raise BadRow(
            "a row of this project's schema that is not valid", f"{place}: {first['msg']}", "see corpus.schema.json"
        ) from error
    return Draft(EARLIER if earlier else OWN, list(row.messages), row.tools, used=set(record), row=row)


def _chat(columns: Columns) -> Draft | None:
    """A column of turns, with tools in another: OpenAI, ShareGPT, Gemini, transcripts."""
    if isinstance(body := columns.value("body"), dict) and isinstance(body.get("messages"), list):
        columns = Columns(
            {**body, **{name: value for name, value in columns.record.items() if name != "body"}}, columns.counts
        )
    name = next((name for name in LISTS if name in columns.names and columns.value(name) is not None), "")
    turns = unpacked(columns.value(name)) if name else None
    if not isinstance(turns, list):
        return None
    column = columns.names[name]
    if not turns:
        raise BadRow("no messages", f"{column} is empty", "delete these rows")
    if not is_turns(turns):
        return _alternating(column, name, turns)
    messages = read_turns(turns, columns.counts)
    draft = Draft(_chat_name(name, turns[0]), messages, used={column, "body", "parallel_tool_calls", "tool_choice"})
    if turns[-1].get("refusal") and messages[-1].role == "assistant":
        draft.targets.append(Decline())
    _add_tools(draft, columns)
    system = columns.find(("system", "system_prompt", "system_message"))
    if system and messages[0].role != "system" and (text := columns.text(system)).strip():
        draft.messages.insert(0, Message(role="system", content=text))
        draft.used.add(system)
    return draft


def _chat_name(name: str, first: dict[str, Any]) -> str:
    if "from" in first and "value" in first:
        return "ShareGPT"
    if name == "contents":
        return "Gemini contents"
    return "OpenAI chat" if "role" in first else "transcripts (lists of turns)"


def _alternating(column: str, name: str, turns: list[Any]) -> Draft:
    if all(isinstance(turn, str) for turn in turns):
        if name == "turns":  # MT-bench: the questions only
            return Draft(
                "questions of several turns", [Message(role="user", content=turn) for turn in turns], used={column}
            )
        roles = ("user", "assistant")
        messages = [Message(role=roles[place % 2], content=turn) for place, turn in enumerate(turns)]  # type: ignore[arg-type]
        return Draft("turns without roles, the user first", messages, used={column})
    if all(isinstance(turn, list) and len(turn) == 2 and str(turn[0]).lower() in ROLES for turn in turns):
        pairs = [{"role": turn[0], "content": turn[1]} for turn in turns]
        return Draft("pairs of role and text", read_turns(pairs, Counter()), used={column})
    raise BadRow(
        "turns without roles", f"the items of {column} name no role", "each turn: {'role': ..., 'content': ...}"
    )


def _add_tools(draft: Draft, columns: Columns) -> None:
    for name, legacy in (("tools", False), ("functions", True)):
        if columns.has(name) and columns.value(name) is not None:
            draft.tools = draft.tools or tools_text(columns.value(name), legacy)
            draft.used.add(columns.names[name])


def _preference(columns: Columns) -> Draft | None:
    """Chosen and rejected answers: the chosen one is taken."""
    if columns.has("preferred_output", "non_preferred_output") and isinstance(columns.value("input"), dict):
        turns = [*columns.value("input").get("messages", []), *columns.value("preferred_output")]
        draft = Draft(
            "OpenAI preference data, the preferred answers", read_turns(turns, columns.counts), used=set(columns.record)
        )
        draft.tools = tools_text(columns.value("input").get("tools"))
        return draft
    if not columns.has("chosen", "rejected"):
        return None
    chosen = unpacked(columns.value("chosen"))
    used = {columns.names[name] for name in ("chosen", "rejected")}
    layout = "preference data, the chosen answers"
    if isinstance(chosen, str) and re.match(r"\s*Human:", chosen):
        return Draft(layout, _transcript(chosen), used=used)
    question = columns.find(("prompt", "messages", "question", "instruction", "input", "query"))
    asked = unpacked(columns.record[question]) if question else None
    before: list[Message] = read_turns(asked, columns.counts) if is_turns(asked) else []
    if asked is not None and not before:
        text, more = _asked(columns, question)
        before = talk(text, None, columns.text(columns.find(("system", "system_prompt")) or ""))
        used |= {*more, columns.find(("system", "system_prompt"))}
    if isinstance(chosen, dict):
        chosen = [chosen]
    if is_turns(chosen):
        answer = read_turns(chosen, columns.counts)
        before = [] if answer[0].role != "assistant" and len(answer) > 1 else before
    else:
        answer = [Message(role="assistant", content=columns.text(columns.names["chosen"]))]
    if not before and answer[0].role == "assistant":
        raise BadRow("preference data without a question", "", "map: {user: COLUMN, assistant: chosen}")
    draft = Draft(layout, [*before, *answer], used=used | {question})
    if columns.find(("output",)) and columns.value("output") == columns.value("chosen"):
        draft.used.add(columns.names["output"])
    _add_tools(draft, columns)
    return draft


def _asked(columns: Columns, question: str) -> tuple[str, set[str]]:
    """Question of preference data; an instruction with its input."""
    extra = columns.find(("input",))
    if columns.names.get("instruction") == question and extra and columns.text(extra).strip():
        return f"{columns.text(question)}\n\n{columns.text(extra)}", {question, extra}
    return columns.text(question), {question, *([extra] if extra and not columns.text(extra).strip() else [])}


def _transcript(text: str) -> list[Message]:
    """A conversation in one string, as Anthropic's HH data have it."""
    parts = re.split(r"(?:^|\n\n)\s*(Human|Assistant):[ ]?", text)
    turns = list(zip(parts[1::2], parts[2::2], strict=False))
    return [Message(role="user" if who == "Human" else "assistant", content=said) for who, said in turns]


def _completion(columns: Columns) -> Draft | None:
    """Prompt and completion, as strings or as lists of turns (TRL); a prompt alone."""
    prompt = unpacked(columns.value("prompt"))
    name = columns.find(("completion", "response", "answer", "output", "reply", "completions", "reference_response"))
    if prompt is None:
        return None
    used = {columns.names["prompt"], *([name] if name else [])}
    answer = unpacked(columns.record[name]) if name else None
    layout = "prompt/completion" if name else "prompts without answers"
    if is_turns(prompt):
        before = read_turns(prompt, columns.counts)
        after = read_turns(answer, columns.counts) if is_turns(answer) else []
        if not after and answer not in (None, "", []):
            after = [Message(role="assistant", content=columns.text(name))]
        draft = Draft(layout, before + after, used=used)
    elif isinstance(prompt, str):
        said = (
            read_turns(answer, columns.counts)[-1].content if is_turns(answer) else columns.text(name) if name else None
        )
        system = columns.find(("system", "system_prompt"))
        draft = Draft(layout, talk(prompt, said, columns.text(system)), used=used | {system})
    else:
        return None
    if name and columns.value("label") is False:  # KTO: an answer that people did not want
        draft.messages = draft.messages[:-1] if draft.messages[-1].role == "assistant" else draft.messages
        columns.counts["unwanted completions (label false) left out, the prompts kept"] += 1
    _add_tools(draft, columns)
    return draft


READERS: tuple[Callable[[Columns], Draft | None], ...] = (
    _rows,
    _preference,
    _chat,
    *TABLES[:1],
    _completion,
    *TABLES[1:],
)
"""Layouts in the order in which they are tried; options (first of TABLES) before prompts, which they may have as well."""
