"""Documents that perplexity scores from a corpus."""

from collections.abc import Mapping, Sequence

from tasks.evaluate.grading.eval_rows import last_question
from tasks.shared.errors import DataError
from tasks.shared.formats.rows import Row, read_rows
from tasks.shared.items import Items, ItemSources
from tasks.shared.text.files import Document


def answered_rows(rows: Sequence[Row], where: str) -> list[Row]:
    """Return the rows with an answer in words, which can be read token by token.

    where: their file.  Raises DataError if there is none.
    """
    found = [row for row in rows if row.answer.strip()]
    if not found:
        got = f"none of {len(rows)} rows ends with an answer in words"
        raise DataError(where, got, "at least one", "leave this step out for such a corpus")
    return found


def count_answers(sources: ItemSources, limit: int) -> Items:
    """Return the most items of a measure on answers, from the corpus or its forecast.

    limit: of the step; 0 for none.  Raises DataError for a corpus without any.
    """
    if sources.corpus is not None:
        file = sources.corpus / "test.jsonl"
        found = len(answered_rows(read_rows(file), str(file)))
        return Items(min(limit or found, found), binary=False, exact=False)
    most = sources.at_most(limit)
    if sample := sources.all_rows:
        most = min(most, len(answered_rows(sample.rows, sample.where)))
    return Items(most, binary=False, exact=False)


def unanswered_note(rows: int, found: int) -> list[str]:
    """Return a note on the test rows that have no answer in words; none if there are none."""
    return [f"{rows - found} of {rows} test rows have no answer in words and are left out."] if found < rows else []


def answer_documents(rows: Sequence[Row], tags: Mapping[str, dict[str, str]]) -> list[Document]:
    """Return each row's answer as a document conditioned on its prompt.  tags: by row id."""
    return [
        Document(row.id, row.answer, row.prompt, row.tools, last_question(row), tags[row.id], row.group) for row in rows
    ]
