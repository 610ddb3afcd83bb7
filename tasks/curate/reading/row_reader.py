"""Records to rows: conversation, task, answer key, tags and group of each."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from tasks.curate.reading.answer_keys import STATED, UNSTATED, add_label, add_targets
from tasks.curate.reading.bad_rows import BadRow, Record
from tasks.curate.reading.drafts import Columns, Draft, as_text
from tasks.curate.reading.mapping import lookup, read_mapped, to_number
from tasks.curate.reading.settings import ReadSettings
from tasks.curate.reading.table_layouts import LABELS
from tasks.shared.errors import DataError
from tasks.shared.formats.rows import Message, Row, Source
from tasks.shared.formats.targets import Choice
from tasks.shared.formats.tasks import DEFAULT_TASK, Task, default_task
from tasks.shared.text.fact_matching import normalize
from tasks.shared.text.overlap import user_text

LONGEST_TAG = 100
"""Characters of a column's value that becomes a tag."""
LONGEST_GROUP = 200
"""Characters of the user's words that name a group; longer ones are named by their digest."""
IDS = ("id", "_id", "uid", "custom_id", "conversation_id", "question_id", "row_id", "idx")


class RowReader:
    """Converter of records to rows, with counts of formats and remarks.

    settings: of the step.  known: tasks by name of rows that name their own.
    formats: records by format.  remarks: rows by what was taken for something.  tasks: by name, of the rows so far.
    stated: number of answers that state their label.  unstated: first row whose answer does not.
    """

    def __init__(self, settings: ReadSettings, known: Mapping[str, Task] | None = None) -> None:
        self.settings = settings
        self.known = dict(known or {})
        self.named = {name: self._with_layout(entry) for name, entry in settings.tasks.items()}
        self.given = self._with_layout(settings.task) if settings.task else None
        self.formats: Counter[str] = Counter()
        self.remarks: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.tasks: dict[str, Task] = {}
        self.stated = 0
        self.unstated: Row | None = None

    def _with_layout(self, entry: Mapping[str, Any]) -> Task:
        task = Task.model_validate(entry)
        default = task.type == "classification" and "layout" not in entry
        return task.model_copy(update={"layout": "alone"}) if default else task

    def read(self, record: Record, file: str, prefix: str) -> Row:
        """Convert a record.

        file: name for the row's source.  prefix: of ids for rows without one.
        Raises BadRow.
        """
        if record.error:
            raise record.error
        counts: Counter[str] = Counter()
        try:
            draft = read_mapped(record.value, self.settings.map, counts)
            row = self._own(draft, record.value) if draft.row else self._row(draft, record, file, prefix, counts)
            row.model_dump_json()
        except ValidationError as error:
            first = error.errors()[0]
            raise BadRow(f"not valid: {'.'.join(map(str, first['loc']))}", first["msg"]) from error
        except (
            TypeError,
            AttributeError,
            KeyError,
            IndexError,
        ) as error:  # a number where the format has a list, and the like
            raise BadRow("a value of the wrong type for its format", str(error)) from error
        except (UnicodeEncodeError, ValueError) as error:
            if isinstance(error, UnicodeEncodeError) or "surrogate" in str(error):
                raise BadRow("half of a surrogate pair in a text", "", "repair the escape sequence \\ud8xx") from error
            raise
        self.formats[draft.layout] += 1
        self.stated += counts.pop(STATED, 0)
        if counts[UNSTATED] and self.unstated is None:
            self.unstated = row
        self.remarks.update(+counts)
        return row

    def check(self, where: str) -> None:
        """Raise DataError if rows have labels and no answer states its own.

        A model would learn to give none.  where: file of the rows.
        """
        row = self.unstated
        if row is None or self.stated:
            return
        task = self.tasks[row.task]
        got = (
            f"none of {self.remarks[UNSTATED]} answers states its label; first: line {row.source.line}, label {row.label[:60]!r}, "
            f"answer {row.answer[:60]!r}"
        )
        wanted = f"answers that state their label in the layout {task.layout} of the task (type {task.type})"
        fix = (
            "leave the answer out of map, so that the label is the answer; or name another column as label; or task: {type: chat}, which "
            "keeps the answers and makes the label a tag"
        )
        raise DataError(where, got, wanted, fix)

    def _own(self, draft: Draft, record: Any) -> Row:
        """A row in the schema of the corpus as it is, unless settings give another task or group."""
        assert draft.row is not None
        row = draft.row
        update: dict[str, Any] = {}
        if self.given:
            update["task"] = self.given.type
            self.tasks[self.given.type] = self.given
        else:
            self.tasks[row.task] = self.known.get(row.task, default_task(row.task))
        if "group" in self.settings.map:
            update["group"] = as_text(lookup(record, self.settings.map["group"])) or row.group
        return row.model_copy(update=update) if update else row

    def _task(self, draft: Draft, record: Any) -> tuple[str, Task]:
        """Name and task of a row: by its column, by the setting, or by its format."""
        if "task" in self.settings.map:
            name = as_text(lookup(record, self.settings.map["task"])).strip()
            if name not in self.named:
                raise BadRow(
                    "a task that is not in the setting `tasks`",
                    repr(name),
                    f"tasks by name: {{{name or 'NAME'}: {{type: ...}}}}"
                    + (f" (given: {', '.join(self.named)})" if self.named else ""),
                )
            return name, self.named[name]
        if self.given:
            return self.given.type, self.given
        answered = draft.messages[-1].role == "assistant"
        if draft.label is not None and (not answered or draft.messages[-1].content.strip() == draft.label):
            return "classification", Task(type="classification", layout="alone")
        if any(isinstance(target, Choice) for target in draft.targets):
            return "reasoning", Task(type="reasoning")
        return DEFAULT_TASK, Task()

    def _row(self, draft: Draft, record: Record, file: str, prefix: str, counts: Counter[str]) -> Row:
        value: Any = record.value
        columns = Columns(value if isinstance(value, dict) else {}, counts)
        _clean_end(draft, counts)
        name, task = self._task(draft, value)
        own = self.settings.map.get("id") or columns.find(IDS)
        key = as_text(lookup(value, own) if isinstance(value, dict) and own else None).strip()
        draft.used.add(own)
        tags = self._tags(draft, columns)
        if (
            draft.label and task.layout == "none" and task.type != "classification"
        ):  # nothing says how an answer would state it
            tags["label"], draft.label = draft.label, None
            counts["labels beside free answers became tags; a task with a layout grades them"] += 1
        if task.type == "classification" and draft.label is None:
            self._label_beside(draft, columns, tags, counts)
        add_label(draft, task, counts)
        add_targets(draft, task, counts)
        _remark_order(draft.messages, counts)
        row = Row(
            id=key or f"{prefix}-{record.line:05d}",
            task=name,
            messages=tuple(draft.messages),
            tools=draft.tools,
            key=tuple(draft.targets),
            tags=tags,
            group="new",
            evidence=self._text("evidence", value),
            weight=to_number(self._text("weight", value) or "1"),
            source=Source(file=file, line=record.line),
        )
        self.tasks[name] = task
        return row.model_copy(update={"group": self._text("group", value) or text_group(row)})

    def _label_beside(self, draft: Draft, columns: Columns, tags: dict[str, str], counts: Counter[str]) -> None:
        """Take the label of an unanswered question from a column that is named so."""
        name = columns.find(LABELS)
        if draft.messages[-1].role != "assistant" and tags.get(name):
            draft.label = tags.pop(name)
            counts[f"labels taken from {name!r}"] += 1

    def _text(self, key: str, record: Any) -> str:
        """Text of a column that the mapping names; empty if it names none."""
        column = self.settings.map.get(key)
        return as_text(lookup(record, column)).strip() if column else ""

    def _tags(self, draft: Draft, columns: Columns) -> dict[str, str]:
        """Tags: the columns that the mapping names, or all short ones that nothing else uses."""
        wanted = self.settings.map.get("tags")
        if wanted is not None:
            names = [wanted] if isinstance(wanted, str) else wanted
            found = {str(name): as_text(lookup(columns.record, name)) for name in names}
            return {name: value for name, value in found.items() if value.strip()}
        found = {}
        for name, value in columns.record.items():
            if name in draft.used or value is None or value == "" or value in ([], {}):
                continue
            inner = (
                {f"{name}.{key}": item for key, item in value.items()}
                if isinstance(value, dict)
                else {str(name): value}
            )
            for key, item in inner.items():
                text = "" if isinstance(item, list | dict) else as_text(item).strip()
                if text and len(text) <= LONGEST_TAG and "\n" not in text:
                    found[key] = text
                elif item not in (None, "", [], {}):
                    self.left_out[key] += 1
        return found


def text_group(row: Row) -> str:
    """Group of a row by the user's words: rows that ask the same are of one group.

    Empty words take the row's id.
    """
    words = normalize(user_text(row))
    if len(words) > LONGEST_GROUP:
        return "text-" + hashlib.blake2b(words.encode(), digest_size=12).hexdigest()
    return words or row.id


def _clean_end(draft: Draft, counts: Counter[str]) -> None:
    """Remove an empty final answer: a teacher or a model answers such a row.

    Raises BadRow if nobody says anything.
    """
    final = draft.messages[-1]
    if len(draft.messages) > 1 and final.role == "assistant" and not (final.content.strip() or final.tool_calls):
        draft.messages.pop()
        counts["empty answers left out, the questions kept"] += 1
    if not any(message.content.strip() for message in draft.messages if message.role in {"user", "tool", "assistant"}):
        blank = not any(message.content.strip() for message in draft.messages)
        got = "every message is blank" if blank else "only a system turn: nobody asks or answers"
        raise BadRow("no text", got, "delete these rows")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _remark_order(messages: list[Message], counts: Counter[str]) -> None:
    """Count what chat templates may not expect; the messages stay as they are."""
    talk = [message.role for message in messages if message.role not in {"system", "developer"}]
    pairs = list(itertools.pairwise(talk))
    system = [place for place, message in enumerate(messages) if message.role in {"system", "developer"}]
    found = {
        "two user turns in a row": ("user", "user") in pairs,
        "two assistant turns in a row": ("assistant", "assistant") in pairs,
        "the assistant speaks first": bool(talk) and talk[0] == "assistant",
        "the last turn is not the assistant's": bool(talk) and talk[-1] != "assistant",
        "several system turns": len(system) > 1,
        "a system turn after the first turn": bool(system) and system[-1] >= len(system),
        "tool calls whose arguments are not JSON": not all(
            _is_json(call.arguments) for message in messages for call in message.tool_calls
        ),
        "NUL characters": any("\0" in message.content for message in messages),
        "empty messages": any(not (message.content.strip() or message.tool_calls) for message in messages),
    }
    counts.update(name for name, is_so in found.items() if is_so)
