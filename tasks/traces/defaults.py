"""Defaults that follow from a row's task: limits, stop strings, length, requests."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated

import pydantic
from pydantic import ConfigDict, Field

from tasks.shared.formats.rows import Row
from tasks.shared.formats.tasks import Requests, Task

ONE_SENTENCE = Requests(
    ask="Answer in one short sentence.",
    ask_article="Answer in one short sentence with the fact from the article.",
    ask_fact="Answer in one short sentence that says: {fact}.",
    decline="Decline in one polite sentence: say that you can't help with it.",
)
SENTENCE_STOP = ("\n", ". ")
"""Keeps one sentence, because weak teachers ramble."""
SENTENCE_TOKENS = 60


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Limits:
    """Limits that an accepted answer must keep; null takes the default of the row's task.

    One sentence below a label line (qa with the layout first_line) has strict limits of form; any other answer may be of any
    length and form.  An answer is checked against its sources if its row has facts or a refusal, see `rules_of`.
    """

    min_words: Annotated[int, Field(ge=1)] | None = None
    """Fewest words of an answer; null: 3 for one sentence below a label line, else 1."""
    max_words: Annotated[int, Field(ge=0)] | None = None
    """Most words of an answer, 0 for no limit; null: 40 for one sentence below a label line, else 0."""
    line_breaks: bool | None = None
    """Keep answers with line breaks; null: false for one sentence below a label line, else true."""
    markup: bool | None = None
    """Keep answers with lists, emphasis, code, tags and names of roles; null: as for `line_breaks`."""
    repetition: bool | None = None
    """Keep answers that say five words twice; null: as for `line_breaks`.  Endless loops are always dropped."""
    inventions: bool | None = None
    """Keep answers with numbers or addresses that no source has; null: false for rows with an article and those that `support` names, else true."""
    support: Annotated[float, Field(ge=0, le=1)] | None = None
    """Smallest fraction of the answer's content words that its sources contain, 0 for no check; null: 0.8 for rows with facts or a
    refusal that have an article or are answered in one sentence, else 0."""
    other_numbers: bool | None = None
    """Keep answers with numbers from the article that belong to other facts; null: false for the rows that `support` names, else true."""
    negations: bool | None = None
    """Keep answers with a negation that neither the gold answer nor the question has; null: false for the rows that `support` names, else true."""


@dataclass(frozen=True)
class Rules:
    """Limits of one row's answer, with every default filled in.

    refusals: True if an answer may decline although the row does not ask for it.
    """

    min_words: int = 1
    max_words: int = 0
    line_breaks: bool = True
    markup: bool = True
    repetition: bool = True
    inventions: bool = True
    support: float = 0.0
    other_numbers: bool = True
    negations: bool = True
    refusals: bool = True


ANY_FORM = Rules()
GROUNDED = Rules(inventions=False, support=0.8, other_numbers=False, negations=False, refusals=False)
_FORM = {"min_words": 3, "max_words": 40, "line_breaks": False, "markup": False, "repetition": False}
SENTENCE = replace(GROUNDED, **_FORM)  # type: ignore[arg-type]
PLAIN_SENTENCE = replace(ANY_FORM, **_FORM)  # type: ignore[arg-type]


def is_sentence(task: Task) -> bool:
    """Return True if answers are one sentence below a label line, as in the support corpus."""
    return task.type == "qa" and task.layout == "first_line"


def rules_of(row: Row, task: Task, limits: Limits) -> Rules:
    """Return the limits of a row's answer: those that are set, and the defaults of its task."""
    if is_sentence(task):
        found = SENTENCE if row.facts or row.declines else replace(PLAIN_SENTENCE, inventions=not row.evidence)
    elif row.evidence:
        found = GROUNDED if row.facts or row.declines else replace(ANY_FORM, inventions=False)
    else:
        found = ANY_FORM
    given = {item.name: getattr(limits, item.name) for item in fields(limits)}
    return replace(found, **{name: value for name, value in given.items() if value is not None})


def stops_of(task: Task, stop: Sequence[str] | None) -> tuple[str, ...]:
    """Return the strings that end an answer.  stop: the setting; None takes the task's."""
    if stop is not None:
        return tuple(stop)
    return task.stop or (SENTENCE_STOP if is_sentence(task) else ())


def length_of(task: Task, max_tokens: int) -> int:
    """Return the length limit of an answer, tokens.

    max_tokens: the setting; 0 takes the task's.
    """
    return max_tokens or (SENTENCE_TOKENS if is_sentence(task) and not task.max_new_tokens else task.answer_tokens)


def requests_of(task: Task) -> Requests:
    """Return the texts that end the last user turn of a prompt."""
    return task.requests or (ONE_SENTENCE if is_sentence(task) else Requests())


def teacher_instruction(task: Task) -> str:
    """Return the instruction for the teacher's system turn; empty if there is none to give."""
    if task.requests is not None:
        return ""
    if not task.instruction and task.type == "classification" and task.labels and task.layout in ("none", "alone"):
        return f"Answer with one of these labels and nothing else: {'; '.join(task.labels)}."
    return task.instruction
