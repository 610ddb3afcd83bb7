"""Conversation rows: the schema of corpus and traces, read and written as JSON lines."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.shared.errors import DataError

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Parsed = TypeVar("Parsed")
Item = TypeVar("Item")


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Literal["system", "user", "assistant"]
    content: Text
    learn: bool | None = None


class Row(BaseModel):
    """A conversation; its last message is the assistant's answer, which starts with the intent."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Text
    kind: Literal["faq", "troubleshoot", "edge", "refuse"]
    """Type of request to a support bot."""
    intent: Text
    """Routing label: the first line of the answer."""
    article: str = ""
    """Id of the knowledge-base article with the answer; empty for refusals outside the knowledge base."""
    group: Text
    """Phrasing group: rows that ask the same in the same words, up to typos and tone; never divided between splits."""
    accept: tuple[tuple[str, ...], ...] = ()
    """The fact: the answer must contain one string of every inner tuple (compared by `chat.states_fact`)."""
    grounded: bool = False
    """True if the prompt contains the article."""
    source: Literal["gold", "teacher"] = "gold"
    reasoning: str = ""
    """Rationale for the answer, for techniques that train on it (`distill/cot`); not part of the messages."""
    messages: Annotated[tuple[Message, ...], Field(min_length=2)]

    @property
    def prompt(self) -> list[dict[str, str]]:
        """All messages but the last, in the format of chat templates."""
        return [message.model_dump() for message in self.messages[:-1]]

    @property
    def answer(self) -> str:
        """The last message: intent, line break, answer."""
        return self.messages[-1].content


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


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a JSON-lines file.

    Raises DataError that lists every bad line (up to ten) with its number and reason, or if there are no rows.
    """
    rows = parse_lines(path, lambda text, _: Row.model_validate_json(text))
    if not rows:
        raise DataError(str(path), "no rows", "at least one conversation")
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, UTF-8, keys in schema order."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row.model_dump(mode="json"), ensure_ascii=False) + "\n" for row in rows)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Select `count` evenly spaced items; all of them for 0, or if there are fewer."""
    if count == 0 or len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
