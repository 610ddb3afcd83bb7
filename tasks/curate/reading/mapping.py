"""The setting `map`: meaning of columns that their names do not tell."""

import difflib
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from tasks.curate.reading.bad_rows import BadRow
from tasks.curate.reading.drafts import Columns, Draft, as_text, plain_name, tools_text, unpacked
from tasks.curate.reading.layouts import read_layout
from tasks.curate.reading.table_layouts import LETTERS, right_option, with_options
from tasks.curate.reading.turns import ROLES, is_turns, read_turns
from tasks.shared.formats.rows import Message
from tasks.shared.formats.targets import Call, Choice, Decline, Facts, Json, Labels, Number, Target, Text

TALK = ("messages", "system", "user", "assistant")
TARGETS = ("label", "labels", "facts", "accept", "number", "json", "text", "call", "choice", "decline")
FIELDS = ("id", "group", "tags", "evidence", "weight", "task", "tools", "reasoning")
KEYS = (*TALK, *TARGETS, *FIELDS)
MISSING = object()
TRUE = frozenset({"1", "true", "yes", "y", "decline", "refuse"})


def map_problem(mapping: Mapping[str, Any]) -> str:
    """Return the mistake in a `map` setting; empty if there is none."""
    found = next((problem for key, value in mapping.items() if (problem := _entry_problem(key, value))), "")
    if found:
        return found
    if "messages" in mapping and {"user", "assistant", "system"} & mapping.keys():
        return "give messages, or system, user and assistant"
    if {"system", "assistant"} & mapping.keys() and "user" not in mapping:
        return "user is missing: the column of the question"
    if {"facts", "accept"} <= mapping.keys():
        return "facts and accept are the same: give one"
    return ""


def _entry_problem(key: str, value: Any) -> str:
    if key not in KEYS:
        near = difflib.get_close_matches(key, KEYS, 1)
        return f"{key!r} is none of {', '.join(KEYS)}" + (f"; did you mean {near[0]!r}?" if near else "")
    if key == "messages":
        turns = value if isinstance(value, list | tuple) and value else [None]
        sound = all(isinstance(turn, Mapping) and len(turn) == 1 and set(turn) <= set(ROLES) for turn in turns)
        wanted = "messages is a column, or a list of turns such as [{user: question}, {assistant: reply}]"
        return "" if isinstance(value, str) or sound else wanted
    if key == "choice":
        sound = isinstance(value, Mapping) and set(value) == {"options", "right"}
        return "" if sound else "choice needs both columns: {options: COLUMN or [COLUMN, ...], right: COLUMN}"
    if key == "tags":
        return "tags is a column or a list of columns" if isinstance(value, Mapping) else ""
    return "" if isinstance(value, str) else f"{key} is the name of a column"


def read_mapped(record: Any, mapping: Mapping[str, Any], counts: Counter[str]) -> Draft:
    """Read a record by the `map` setting.

    What it does not name is read by the record's own format.


    Raises BadRow.
    """
    if not mapping:
        return read_layout(record, counts)
    if not isinstance(record, dict):
        raise BadRow("a record without columns", f"{type(record).__name__}", "leave out `map`")
    columns = Columns(record, counts)
    if set(TALK) & mapping.keys():
        draft = Draft("rows by `map`", _messages(record, mapping, counts))
        draft.used = {name for key in TALK for name in _named(mapping.get(key), record)}
    elif "choice" in mapping and not set(TALK) & mapping.keys():
        raise BadRow("map.choice without a question", "", "map: {user: COLUMN, choice: {options: ..., right: ...}}")
    else:
        draft = read_layout(record, counts)
    if "tools" in mapping:
        draft.tools = tools_text(lookup(record, mapping["tools"]))
    elif not draft.tools and columns.has("tools"):
        draft.tools = tools_text(columns.value("tools"))
        draft.used.add(columns.names["tools"])
    if "label" in mapping:
        draft.label = as_text(lookup(record, mapping["label"])).strip()
        if not draft.label:
            raise BadRow("a row without a label", f"{mapping['label']} is empty", "fill it in, or delete these rows")
    draft.targets += _targets(draft, record, mapping)
    if draft.messages[-1].role == "assistant" and "reasoning" in mapping:
        thoughts = as_text(lookup(record, mapping["reasoning"]))
        draft.messages[-1] = draft.messages[-1].model_copy(update={"reasoning": thoughts})
    draft.used |= {name for key in mapping.keys() - {"tags", "group"} for name in _named(mapping[key], record)}
    return draft


def lookup(record: Mapping[str, Any], name: str) -> Any:
    """Value of a column, a field inside it (a.b, a.0), or a template with columns in braces.

    Raises BadRow if a column is missing.
    """
    if "{" in name:
        return re.sub(r"\{([^{}]+)\}", lambda found: as_text(lookup(record, found[1])), name)
    found = _find(record, name)
    if found is not MISSING:
        return found
    near = difflib.get_close_matches(name, [str(key) for key in record], 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise BadRow(f"map names a column that is missing: {name}", "", f"{hint}columns: {', '.join(map(str, record))}")


def _find(record: Any, name: str) -> Any:
    if isinstance(record, dict):
        if name in record:
            return record[name]
        if (key := next((key for key in record if plain_name(key) == plain_name(name)), None)) is not None:
            return record[key]
    first, dot, rest = name.partition(".")
    if not dot:
        if isinstance(record, list) and name.lstrip("-").isdigit() and -len(record) <= int(name) < len(record):
            return record[int(name)]
        return MISSING
    inner = _find(record, first)
    return MISSING if inner is MISSING else _find(inner, rest)


def _named(value: Any, record: Mapping[str, Any]) -> list[str]:
    """Columns that a part of the mapping names."""
    if isinstance(value, Mapping):
        return [name for item in value.values() for name in _named(item, record)]
    if isinstance(value, list | tuple):
        return [name for item in value for name in _named(item, record)]
    if not isinstance(value, str):
        return []
    names = re.findall(r"\{([^{}]+)\}", value) if "{" in value else [value]
    keys = {plain_name(key): key for key in record}
    return [
        keys[plain]
        for name in names
        for plain in (plain_name(name), plain_name(name.partition(".")[0]))
        if plain in keys
    ]


def _messages(record: Mapping[str, Any], mapping: Mapping[str, Any], counts: Counter[str]) -> list[Message]:
    wanted = mapping.get("messages")
    if isinstance(wanted, str):
        turns = unpacked(lookup(record, wanted))
        if not is_turns(turns):
            raise BadRow(
                f"map.messages names a column without turns: {wanted}",
                f"{turns!r:.60}",
                "map: {user: COLUMN, assistant: COLUMN}",
            )
        return read_turns(turns, counts)
    parts = wanted if wanted else [{role: mapping[role]} for role in ("system", "user", "assistant") if role in mapping]
    found = []
    for place, part in enumerate(parts):
        ((role, column),) = part.items()
        text = as_text(lookup(record, column))
        if text.strip():
            found.append(Message(role=ROLES[role], content=text))
        elif ROLES[role] == "user" or (place + 1 < len(parts) and ROLES[role] != "system"):
            raise BadRow("an empty turn", f"{column} is empty", "delete these rows")
    if not any(message.role == "user" for message in found):
        raise BadRow("no question", "the user's text is blank", "delete these rows")
    return found


def _targets(draft: Draft, record: Mapping[str, Any], mapping: Mapping[str, Any]) -> list[Target]:
    found: list[Target] = []
    for key in TARGETS:
        if key not in mapping or key == "label":
            continue
        if key == "choice":
            found.append(_choice(draft, record, mapping["choice"]))
            continue
        value = lookup(record, mapping[key])
        if value is None or value in ("", []):
            continue
        try:
            found += _target(key, value)
        except ValidationError as error:
            raise BadRow(
                f"a column that cannot be read as {key}", f"{mapping[key]}: {error.errors()[0]['msg']}"
            ) from error
    return found


def _target(key: str, value: Any) -> list[Target]:
    if key == "labels":
        return [Labels(labels=tuple(_items(value)))]
    if key in {"facts", "accept"}:
        groups = unpacked(value)
        groups = groups if isinstance(groups, list) else [groups]
        return [
            Facts(
                groups=tuple(
                    tuple(map(as_text, group)) if isinstance(group, list) else (as_text(group),) for group in groups
                )
            )
        ]
    if key == "number":
        return [Number(value=to_number(value))]
    if key == "text":
        return [Text(references=tuple(map(as_text, value)) if isinstance(value, list) else (as_text(value),))]
    if key == "json":
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        try:
            json.loads(text)
        except ValueError as error:
            raise BadRow(
                "map.json names a column that is not JSON", str(error), "name a column of JSON text"
            ) from error
        return [Json(value=text)]
    if key == "call":
        return list(_calls(value))
    return [Decline()] if as_text(value).strip().lower() in TRUE else []


def _items(value: Any) -> list[str]:
    found = unpacked(value)
    if isinstance(found, str):
        found = re.split(r"\s*[,;|]\s*", found.strip())
    return [as_text(item).strip() for item in (found if isinstance(found, list) else [found]) if as_text(item).strip()]


def to_number(value: Any) -> float:
    """Parse a number; thousands separators, currency and percent signs are left out.

    Raises BadRow.
    """
    try:
        return float(re.sub(r"[,$€£%\s]", "", as_text(value)))
    except ValueError as error:
        raise BadRow(
            "a number that cannot be read", f"{as_text(value)[:40]!r}", "map.number names a column of numbers"
        ) from error


def _calls(value: Any) -> list[Target]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRow(
                "map.call names a column that is not JSON", str(error), "name a column of JSON text"
            ) from error
    turn = {"role": "assistant", "tool_calls": value if isinstance(value, list) else [value]}
    return [Call(name=call.name, arguments=call.arguments) for call in read_turns([turn], Counter())[0].tool_calls]


def _choice(draft: Draft, record: Mapping[str, Any], names: Mapping[str, Any]) -> Choice:
    """The options as target, and below the question if nobody answers otherwise."""
    columns = names["options"]
    found = (
        unpacked(lookup(record, columns)) if isinstance(columns, str) else [lookup(record, name) for name in columns]
    )
    options = [as_text(item) for item in found] if isinstance(found, list) else []
    if len(options) < 2:
        raise BadRow("fewer than two options", f"{columns}", "options: a column with a list, or a list of columns")
    place = right_option(lookup(record, names["right"]), options, [])
    if draft.messages[-1].role == "user":
        asked = draft.messages[-1]
        draft.messages[-1] = asked.model_copy(update={"content": with_options(asked.content, options)})
        draft.messages.append(Message(role="assistant", content=LETTERS[place]))
    return Choice(options=tuple(options), right=place)
