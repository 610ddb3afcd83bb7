"""Tasks of a corpus: the type of answer, its layout, and the defaults that follow from them."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tasks.shared.errors import DataError
from tasks.shared.formats.earlier_rows import EARLIER_TASK

TaskType = Literal["chat", "classification", "extraction", "qa", "summarization", "reasoning", "tools"]
Layout = Literal["none", "first_line", "alone", "json"]
FILE = "tasks.json"
DEFAULT_TASK = "chat"
"""Name of the task of rows that name none."""


class Requests(BaseModel):
    """Texts that end the last user turn of a teacher's prompt; empty ones are left out.

    ask: of every request.  ask_article: the same, with an article above the question; empty takes `ask`.
    ask_fact: the same, where the teacher is told the fact, which replaces {fact}.
    decline: of a request that the answer must decline.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    ask: str = ""
    ask_article: str = ""
    ask_fact: str = "Say in your answer: {fact}."
    decline: str = "Decline this request politely, in the language of the conversation."


class Task(BaseModel):
    """A task: what its answers are and how they are laid out.

    A corpus holds one or several tasks by name; every row names its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: TaskType = "chat"
    """Type of the answers; decides the default measures, margins and length limits."""
    layout: Layout = "none"
    """Where an answer states its label: nowhere, on its first line, alone as the whole answer, or in a JSON object."""
    instruction: str = ""
    """Instruction for models that were not trained on the task: the teacher, and an untrained reference."""
    labels: tuple[str, ...] = ()
    """Labels to choose from; empty takes those of the rows."""
    label_field: str = "label"
    """Field that holds the label, in the layout `json`."""
    max_new_tokens: Annotated[int, Field(ge=0)] = 0
    """Length limit of an answer, tokens; 0 takes the default of the type."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer."""
    refusals: tuple[str, ...] = ()
    """Regular expressions that match an answer that declines; empty takes common English phrases."""
    judge: str = ""
    """Criteria for the judge; empty takes general ones."""
    requests: Requests | None = None
    """Texts of a teacher's prompt; with them, the teacher gets no `instruction`.  None takes the defaults of the type."""

    @field_validator("refusals")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return patterns

    @property
    def answer_tokens(self) -> int:
        """Length limit of an answer, tokens."""
        return self.max_new_tokens or ANSWER_TOKENS[self.type]


ANSWER_TOKENS: Mapping[TaskType, int] = {
    "chat": 256, "classification": 32, "extraction": 256, "qa": 48, "summarization": 160, "reasoning": 256, "tools": 128,
}  # fmt: skip
"""Default length limit of an answer, tokens, by type."""


def default_task(name: str) -> Task:
    """Return the task for a name without a description: a plain chat, or that of earlier rows."""
    return Task(type="qa", layout="first_line") if name == EARLIER_TASK else Task()


def write_tasks(corpus: Path, tasks: Mapping[str, Task]) -> None:
    """Write the tasks of a corpus, by name, to tasks.json."""
    content = {name: task.model_dump(mode="json") for name, task in sorted(tasks.items())}
    (corpus / FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_tasks(corpus: Path, names: Iterable[str] = ()) -> dict[str, Task]:
    """Read the tasks of a corpus by name, with a default for each of `names` that it lacks.

    Raises DataError for a file that is not a valid tasks.json.
    """
    file = corpus / FILE
    found: dict[str, Task] = {}
    if file.is_file():
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            found = {str(name): Task.model_validate(entry) for name, entry in content.items()}
        except (ValueError, AttributeError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise DataError(str(file), reason, "tasks by name, as a curation step writes them") from error
    return {name: default_task(name) for name in (*names, DEFAULT_TASK)} | found
