"""Settings that say how files of conversations are read."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass

from tasks.curate.reading.mapping import map_problem
from tasks.shared.formats.tasks import Task


def _task(value: Mapping[str, Any]) -> None:
    """Raise ValueError that names the wrong field of a task."""
    try:
        Task.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ReadSettings:
    """Settings that every reader of the user's files has."""

    map: dict[str, Any] = Field(default_factory=dict)
    """Columns by what they are, where their names do not say it: {user: question, assistant: reply, label: intent, id: ticket, group:
    customer}; `messages` takes a column of turns, or a list such as [{user: question}, {assistant: reply}].  A value may be a field
    inside a column (a.b) or a template ("{title}: {body}").  Targets: label, labels, facts, number, json, text, call, decline, choice
    ({options: ..., right: ...}).  Others: tags, evidence, weight, task, tools, reasoning.  Empty: the format is found."""
    task: dict[str, Any] = Field(default_factory=dict)
    """Task of all rows: type, layout, instruction, labels and more (`tasks/shared/formats/tasks.py`).  Empty: chat, or classification
    for a table of texts and labels."""
    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Tasks by name, for files with several; `map: {task: COLUMN}` says which column names them."""
    encoding: str = ""
    """Encoding of the files, such as cp1252; empty: UTF-8 for JSON, found for tables."""
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Largest share of records that may be unreadable; they go to quarantine.jsonl.  One is always allowed."""
    max_line_mb: Annotated[int, Field(ge=1)] = 32
    """Largest line or record, in MB; larger ones are quarantined."""

    @field_validator("map")
    @classmethod
    def _known_map(cls, value: dict[str, Any]) -> dict[str, Any]:
        if problem := map_problem(value):
            raise ValueError(problem)
        return value

    @field_validator("task")
    @classmethod
    def _valid_task(cls, value: dict[str, Any]) -> dict[str, Any]:
        _task(value)
        return value

    @field_validator("tasks")
    @classmethod
    def _valid_tasks(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for entry in value.values():
            _task(entry)
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        if value:
            try:
                "".encode(value)
            except LookupError as error:
                raise ValueError(
                    f"{value!r} is not an encoding that Python knows, such as utf-8, cp1252, latin-1, utf-16"
                ) from error
        return value

    @model_validator(mode="after")
    def _one_way_of_tasks(self) -> "ReadSettings":
        if self.task and self.tasks:
            raise ValueError("give task or tasks, not both")
        if self.tasks and "task" not in self.map:
            raise ValueError("tasks needs `map: {task: COLUMN}`, the column that names each row's task")
        return self

    @property
    def max_bytes(self) -> int:
        """Bytes of the largest line."""
        return self.max_line_mb * 1_000_000
