"""Documents that perplexity scores from a corpus."""

from collections.abc import Mapping, Sequence

from tasks.evaluate.grading.eval_rows import last_question
from tasks.shared.formats.rows import Row
from tasks.shared.text.files import Document


def answer_documents(rows: Sequence[Row], tags: Mapping[str, dict[str, str]]) -> list[Document]:
    """Return each row's answer as a document conditioned on its prompt.  tags: by row id."""
    return [Document(row.id, row.answer, row.prompt, last_question(row), tags[row.id], row.group) for row in rows]
