"""Conversation rows: the schema of corpus and traces, read and written as JSON lines."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.shared.errors import DataError
from tasks.shared.formats.earlier_rows import is_earlier, upgrade
from tasks.shared.formats.targets import Decline, Facts, Label, Target
from tasks.shared.formats.tasks import DEFAULT_TASK

Name = Annotated[str, Field(min_length=1, pattern=r"\S")]
Parsed = TypeVar("Parsed")
Item = TypeVar("Item")
Role = Literal["system", "developer", "user", "assistant", "tool"]
Split = Literal["train", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "test")
log = logging.getLogger(__name__)


class ToolCall(BaseModel):
    """A call of a tool by the assistant.

    arguments: JSON text of an object.  Text, because a typed column would fill objects of different calls with nulls.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str = ""
    name: Name
    arguments: str = "{}"


class Message(BaseModel):
    """One turn of a conversation, verbatim.

    content: may be empty beside tool calls.  tool_call_id: of the call that a `tool` message answers.
    reasoning: thoughts of the assistant, kept apart from its answer.
    learn: True or False to train on this turn or not; None follows the setting of the training step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Role
    content: str = ""
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    reasoning: str = ""
    learn: bool | None = None


class Source(BaseModel):
    """Place of a row in the user's data: file name and line or record number, from 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: str = ""
    line: int = 0


class Row(BaseModel):
    """A conversation as it was written, with an answer key beside it.

    The last message may be the user's: then only a teacher or a model under test answers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Name
    task: Name = DEFAULT_TASK
    """Name of the task in the corpus' tasks.json."""
    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    tools: str = ""
    """JSON text of the list of tools that the assistant may call, in OpenAI's format."""
    key: tuple[Target, ...] = ()
    """Answer key: targets that an answer is graded by; may be empty."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Columns of the data by which results can be sliced."""
    group: Name
    """Rows of one group ask the same thing or belong together; a group is never divided between splits."""
    evidence: str = ""
    """Id of the article that contains the answer; empty if there is none."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the row in training."""
    origin: Literal["gold", "teacher", "human", "synthetic"] = "gold"
    source: Source = Source()

    @property
    def answered(self) -> bool:
        """True if the last message is the assistant's."""
        return self.messages[-1].role == "assistant"

    @property
    def before(self) -> tuple[Message, ...]:
        """All messages before the final answer."""
        return self.messages[:-1] if self.answered else self.messages

    @property
    def prompt(self) -> list[dict[str, Any]]:
        """All messages before the final answer, in the format of chat templates."""
        return to_chat(self.before)

    @property
    def chat(self) -> list[dict[str, Any]]:
        """All messages, in the format of chat templates."""
        return to_chat(self.messages)

    @property
    def answer(self) -> str:
        """Content of the final answer, verbatim; empty if there is none."""
        return self.messages[-1].content if self.answered else ""

    @property
    def reasoning(self) -> str:
        """Reasoning of the final answer; empty if there is none."""
        return self.messages[-1].reasoning if self.answered else ""

    @property
    def label(self) -> str:
        """Label in the answer key; empty if there is none."""
        return next((target.label for target in self.key if isinstance(target, Label)), "")

    @property
    def facts(self) -> tuple[tuple[str, ...], ...]:
        """Groups of accepted strings in the answer key; empty if there are none."""
        return next((target.groups for target in self.key if isinstance(target, Facts)), ())

    @property
    def declines(self) -> bool:
        """True if the answer must decline the request."""
        return any(isinstance(target, Decline) for target in self.key)

    def with_answer(self, message: Message, **update: Any) -> "Row":
        """Return the row with `message` as its final answer and the fields in `update` replaced."""
        return self.model_copy(update={"messages": (*self.before, message), **update})


def to_chat(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Convert messages to the dictionaries that chat templates take.

    Arguments of tool calls become objects again, as templates expect; text that is not JSON stays text.  Reasoning is left out.
    """
    return [_to_template(message) for message in messages]


def _to_template(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        turn["name"] = message.name
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _parsed(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_lines(path: Path, parse: Callable[[str, int], Parsed]) -> list[Parsed]:
    """Parse the lines of a JSON-lines file.

    parse: gets the text and number of a line; may raise ValidationError.
    Raises DataError that lists every bad line (up to ten) with its number and reason.
    """
    if not path.is_file():
        raise DataError(str(path), "no such file", "a JSON-lines file", "check the path, or the step that writes it")
    found: list[Parsed] = []
    problems: list[str] = []
    for number, raw in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            found.append(parse(raw.decode("utf-8"), number))
        except UnicodeDecodeError as error:
            problems.append(f"line {number}: not UTF-8 ({error.reason} at byte {error.start})")
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "row"
            problems.append(f"line {number}: {place}: {first['msg']}")
    if problems:
        shown = "\n    ".join(problems[:10]) + (f"\n    and {len(problems) - 10} more" if len(problems) > 10 else "")
        got = f"{len(problems)} bad lines\n    {shown}"
        raise DataError(str(path), got, "one valid JSON object per line", "correct or delete these lines")
    return found


def parse_row(text: str) -> tuple[Row, bool]:
    """Parse one line of a rows file.

    Returns the row, and True if it was in the earlier schema (`kind`, `intent`, `accept`).
    Raises ValidationError.
    """
    content = from_json(text)
    earlier = is_earlier(content)
    return Row.model_validate(upgrade(content) if earlier else content), earlier


def from_json(text: str) -> Any:
    """Parse JSON; raise ValidationError with its reason if it is not valid."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValidationError.from_exception_data(
            "row", [{"type": "value_error", "loc": ("row",), "input": text[:100], "ctx": {"error": error}}]
        ) from error


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a JSON-lines file; rows in the earlier schema are converted, with a note.

    Raises DataError that lists every bad line (up to ten) with its number and reason, or if there are no rows.
    """
    found = parse_lines(path, lambda text, _: parse_row(text))
    if not found:
        raise DataError(str(path), "no rows", "at least one conversation")
    if count := sum(earlier for _, earlier in found):
        log.info("%s: %d rows in the earlier schema (kind, intent, accept), read as %s", path.name, count, EARLIER_READ)
    return [row for row, _ in found]


EARLIER_READ = "tags, a label and facts of the answer key"


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, UTF-8, keys in schema order."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row.model_dump(mode="json"), ensure_ascii=False) + "\n" for row in rows)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Select `count` evenly spaced items; all of them for 0, or if there are fewer."""
    if count == 0 or len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
