"""The teacher's prompt: the bot's system text, worked examples, the article, the question."""

from collections.abc import Mapping, Sequence
from hashlib import sha256

from tasks.shared.errors import DataError
from tasks.shared.formats.articles import Article, question_of, with_article
from tasks.shared.formats.rows import Row
from tasks.shared.text.answer_format import split_answer
from tasks.shared.text.reasoning import join_reasoning
from tasks.traces.reasoning import FORM, example_reasoning

ASK = "\n\nAnswer in one short sentence with the fact from the article."
ASK_HINT = "\n\nAnswer in one short sentence that says: {fact}."
ASK_ALONE = "\n\nAnswer in one short sentence."
DECLINE = "\n\nThis is against our policy. Decline in one polite sentence: say that you can't help with it."
EXAMPLE_WORDS = 25
"""Most words in a worked example; short examples make the teacher brief."""

Turn = dict[str, str]


def rank(seed: int, name: str) -> int:
    """Pseudo-random number of a name and a seed; sorting by it is a seeded choice."""
    return int.from_bytes(sha256(f"{seed}:{name}".encode()).digest()[:8])


def choose_examples(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Choose `count` + 1 rows with short gold answers about different articles, by seed.

    The last one replaces an example that is about the article of the prompt.
    """
    found: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: rank(seed, row.id)):
        short = len(split_answer(row.answer)[1].split()) <= EXAMPLE_WORDS
        if len(row.messages) <= 3 and short and len(found) <= count:
            found.setdefault(row.evidence, row)
    return list(found.values())


def choose_refusals(row: Row, refused: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Choose at most `count` refusals of the same intent in other words, by seed.

    An example of another intent would lead the teacher to state that intent's reason.
    """
    found = [other for other in refused if other.label == row.label and other.group != row.group]
    return sorted(found, key=lambda other: rank(seed, other.id))[:count]


def teacher_messages(
    row: Row,
    examples: Sequence[Row],
    count: int,
    articles: Mapping[str, Article] | None,
    hint: bool = False,
    reason: bool = False,
) -> list[Turn]:
    """Build the chat that requests `row`'s answer from the teacher.

    examples: from `choose_examples` or `choose_refusals`.
    count: most examples to show.
    articles: by id; None leaves articles out of the prompt.
    hint: state the fact in the prompt and in the examples, so that the teacher only words it (rationalization: Zelikman et al.
    2022, STaR, arXiv 2203.14465, section 3.2).
    reason: request a short reasoning before the answer.

    Worked examples come first and are the same for all answerable prompts about other articles, so an endpoint with a prefix
    cache computes them once.  The article is in the user's turn, because small models overlook a system text.
    Earlier turns of the row remain turns.
    """
    shown = [example for example in examples if row.declines or example.evidence != row.evidence][:count]
    turns = [turn for turn in row.prompt if turn["role"] == "system"]
    for example in shown:
        turns.append(
            {"role": "user", "content": _user_turn(example, example.prompt[-1]["content"], articles, hint, reason)}
        )
        thought = example_reasoning(example, articles) if reason else ""
        turns.append({"role": "assistant", "content": join_reasoning(thought, split_answer(example.answer)[1])})
    *earlier, last = (turn for turn in row.prompt if turn["role"] != "system")
    turns.extend(earlier)
    return [*turns, {"role": "user", "content": _user_turn(row, last["content"], articles, hint, reason)}]


def _user_turn(row: Row, content: str, articles: Mapping[str, Article] | None, hint: bool, reason: bool) -> str:
    form = FORM if reason else ""
    if row.declines:
        return content + form + DECLINE
    known = articles is not None and bool(row.evidence)
    if articles is not None and row.evidence:
        content = with_article(question_of(content), find_article(row, articles))
    if hint:
        return content + form + ASK_HINT.format(fact=" and ".join(group[0] for group in row.facts))
    return content + form + (ASK if known else ASK_ALONE)


def find_article(row: Row, articles: Mapping[str, Article]) -> Article:
    """Return the article of a row.  Raises DataError if the corpus does not contain it."""
    if row.evidence not in articles:
        got = f"no article {row.evidence!r}, which row {row.id!r} refers to"
        raise DataError(
            "articles.jsonl", got, "every article that a row refers to", "add it, or clear the row's `article`"
        )
    return articles[row.evidence]


def sources(row: Row, articles: Mapping[str, Article] | None) -> str:
    """Text that may support an answer: article, conversation, gold answer, the fact's strings."""
    article = articles.get(row.evidence) if articles else None
    parts = [article.title, article.text] if article else []
    return "\n".join([*parts, narrow_sources(row)])


def narrow_sources(row: Row) -> str:
    """Text that may support an answer to this very question: `sources` without the article."""
    parts = [question_of(turn["content"]) for turn in row.prompt if turn["role"] != "system"]
    return "\n".join([*parts, split_answer(row.answer)[1], *(phrase for group in row.facts for phrase in group)])
