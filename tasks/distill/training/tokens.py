"""Whether two models mean the same by a token's number."""

from pathlib import Path

from tasks.shared.errors import ModelError
from tasks.shared.models import load_tokenizer


def check_same_tokens(student: Path, teacher: Path, fix: str) -> None:
    """Raises ModelError unless both tokenizers have the same tokens under the same numbers.  fix: what to do instead."""
    mine, theirs = (load_tokenizer(source).get_vocab() for source in (student, teacher))
    if mine != theirs:
        shared = sum(theirs.get(token) == number for token, number in mine.items())
        raise ModelError(
            "inputs.teacher",
            f"another vocabulary than the student's: {len(theirs)} tokens and {len(mine)}, {shared} of them the same",
            "a teacher that reads the student's token numbers",
            fix,
        )
