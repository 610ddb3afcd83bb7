"""What perplexity is taken over: the test rows' answers, or a user's own texts in pieces."""

from collections.abc import Mapping, Sequence

from tasks.evaluate.grading.eval_rows import last_question
from tasks.shared.formats.rows import Row
from tasks.shared.text.files import Document


def answers_of(rows: Sequence[Row], tags: Mapping[str, dict[str, str]]) -> list[Document]:
    """The answer of each row, after its prompt.  tags: by row id."""
    return [Document(row.id, row.answer, row.prompt, last_question(row), tags[row.id], row.group) for row in rows]
