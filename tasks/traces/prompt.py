"""The teacher's prompt: instruction, worked examples, conversation, article, wish."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from tasks.shared.errors import DataError
from tasks.shared.formats.articles import Article, question_of, with_article
from tasks.shared.formats.rows import Message, Row
from tasks.shared.formats.tasks import Task
from tasks.shared.grading.answer import read_answer
from tasks.shared.text.answer_format import split_answer
from tasks.shared.text.reasoning import join_reasoning
from tasks.traces.defaults import is_sentence, requests_of, teacher_instruction
from tasks.traces.reasoning import FORM, example_reasoning

EXAMPLE_WORDS = 25
"""Most words in a worked example; short examples make the teacher brief."""

Turn = dict[str, Any]
SYSTEM = ("system", "developer")


def rank(seed: int, name: str) -> int:
    """Pseudo-random number of a name and a seed; sorting by it is a seeded choice."""
    return int.from_bytes(sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()[:8])


def rank_of(seed: int, row: Row) -> int:
    """Pseudo-random number of a row's prompt and a seed.

    Another id of the row changes no choice, and so no request.
    """
    return rank(seed, "\0".join([f"{message.role}\1{message.content}" for message in row.before]))


def can_ask(row: Row) -> bool:
    """Return True if an endpoint can answer the row's prompt: it ends with a user or a tool."""
    return bool(row.before) and row.before[-1].role in ("user", "tool")


def choose_examples(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Choose `count` + 1 rows whose short answers state facts of different articles, by seed.

    The last one replaces an example that is about the article of the prompt.
    """
    found: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: rank_of(seed, row)):
        if _is_example(row) and len(found) <= count:
            found.setdefault(row.evidence, row)
    return list(found.values())


def _is_example(row: Row) -> bool:
    """Return True for a question without its article, and a short answer from the article."""
    states = bool(row.evidence and row.facts and not row.declines and len(row.messages) <= 3)
    bare = all(question_of(turn["content"]) == turn["content"] for turn in row.prompt)
    return states and bare and len(split_answer(row.answer)[1].split()) <= EXAMPLE_WORDS


def choose_refusals(row: Row, refused: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Choose at most `count` refusals with the same label in other words, by seed.

    An example with another label would lead the teacher to state the reason of that one.
    """
    found = [other for other in refused if other.label == row.label and other.group != row.group]
    return sorted(found, key=lambda other: rank_of(seed, other))[:count]


def teacher_messages(
    row: Row,
    task: Task,
    examples: Sequence[Row] = (),
    count: int = 0,
    articles: Mapping[str, Article] | None = None,
    hint: bool = False,
    reason: bool = False,
) -> list[Turn]:
    """Build the chat that requests `row`'s answer, in the format of an endpoint.

    examples: from `choose_examples` or `choose_refusals`; shown for tasks that are answered in one sentence.
    count: most examples to show.
    articles: by id; None leaves articles out of the prompt.
    hint: state the fact in the prompt and in the examples, so that the teacher only words it (rationalization: Zelikman et al.
    2022, STaR, arXiv 2203.14465, section 3.2).
    reason: request a short reasoning before the answer.

    The row's own turns stay as they are.  Worked examples come first and are the same for all answerable prompts about other
    articles, so an endpoint with a prefix cache computes them once.  An article is in the last user turn, because small models
    overlook a system text; so are the task's wishes to the teacher.  Its instruction is in the system turn.
    """
    system = [to_wire(message) for message in row.before if message.role in SYSTEM]
    others = [to_wire(message) for message in row.before if message.role not in SYSTEM]
    if not is_sentence(task):
        turns = _instruct([to_wire(message) for message in row.before], teacher_instruction(task))
    else:
        shown = [example for example in examples if row.declines or example.evidence != row.evidence][:count]
        turns = _instruct(system, teacher_instruction(task))
        for example in shown:
            asked = _user_turn(example, task, example.prompt[-1]["content"], articles, hint, reason)
            thought = example_reasoning(example, articles) if reason else ""
            turns.append({"role": "user", "content": asked})
            turns.append({"role": "assistant", "content": join_reasoning(thought, split_answer(example.answer)[1])})
        turns += others
    if turns[-1]["role"] == "user":
        turns[-1] = {**turns[-1], "content": _user_turn(row, task, turns[-1]["content"], articles, hint, reason)}
    return turns


def to_wire(message: Message) -> Turn:
    """Convert a message to an endpoint's format; arguments of calls stay text."""
    turn: Turn = {"role": message.role, "content": message.content}
    if message.name:
        turn["name"] = message.name
    if message.tool_calls:
        turn["content"] = message.content or None
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _instruct(turns: list[Turn], instruction: str) -> list[Turn]:
    """Add the instruction to the first turn if that is the system's, else as a turn of its own."""
    if not instruction:
        return turns
    if not turns or turns[0]["role"] not in SYSTEM:
        return [{"role": "system", "content": instruction}, *turns]
    first = turns[0]["content"]
    joined = first if instruction in first else f"{first}\n\n{instruction}"
    return [{**turns[0], "content": joined}, *turns[1:]]


def _user_turn(
    row: Row, task: Task, content: str, articles: Mapping[str, Article] | None, hint: bool, reason: bool
) -> str:
    texts = requests_of(task)
    parts = [FORM] if reason else []
    if row.declines:
        parts.append(texts.decline)
    else:
        known = articles is not None and bool(row.evidence)
        if articles is not None and row.evidence:
            content = with_article(question_of(content), find_article(row, articles))
        if hint and row.facts:
            fact = " and ".join(group[0] for group in row.facts)
            parts.append(texts.ask_fact.replace("{fact}", fact))
        else:
            parts.append((texts.ask_article if known else "") or texts.ask)
    return "\n\n".join([content, *filter(None, parts)])


def find_article(row: Row, articles: Mapping[str, Article]) -> Article:
    """Return the article of a row.  Raises DataError if the corpus does not contain it."""
    if row.evidence not in articles:
        got = f"no article {row.evidence!r}, which row {row.id!r} refers to"
        raise DataError(
            "articles.jsonl", got, "every article that a row refers to", "add it, or clear the row's `evidence`"
        )
    return articles[row.evidence]


def sources(row: Row, task: Task, articles: Mapping[str, Article] | None) -> str:
    """Text that may support an answer: article, conversation, gold answer, the fact's strings."""
    article = articles.get(row.evidence) if articles else None
    parts = [article.title, article.text] if article else []
    return "\n".join([*parts, narrow_sources(row, task)])


def narrow_sources(row: Row, task: Task) -> str:
    """Text that may support an answer to this very question: `sources` without the article."""
    parts = [question_of(turn["content"]) for turn in row.prompt if turn["role"] not in SYSTEM]
    gold = read_answer(row.answer, task).text
    return "\n".join([*parts, gold, *(phrase for group in row.facts for phrase in group)])


def tools_of(row: Row) -> list[Any]:
    """Return the tools that the teacher may call.

    Raises DataError if the row's tools are not a JSON list.
    """
    if not row.tools:
        return []
    try:
        tools = json.loads(row.tools)
    except ValueError:
        tools = None
    if not isinstance(tools, list):
        raise DataError(
            f"row {row.id}", "`tools` is not a JSON list", "a list of tools in OpenAI's format", "correct the row"
        )
    return tools


def tool_names(row: Row) -> frozenset[str]:
    """Return the names of the tools that the row offers."""
    functions = [tool.get("function", tool) for tool in tools_of(row) if isinstance(tool, dict)]
    return frozenset(str(function.get("name", "")) for function in functions if isinstance(function, dict))
