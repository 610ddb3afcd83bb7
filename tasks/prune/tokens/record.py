"""Record of a vocabulary trimming: the old id of every new token, with figures."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

VOCABULARY_FILE = "vocabulary.json"


class Trial(BaseModel):
    """Cross-check of a trimming: chosen without a tenth of the topics, measured on them.

    kept: share of their tokens, as they were, that the trimmed vocabulary has.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    texts: int
    tokens_per_text_before: float
    tokens_per_text: float
    kept: float


class Trimming(BaseModel):
    """Figures of a trimming; `old_ids[new]` is the id of token `new` before it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tokens_before: int
    tokens: int
    merges_before: int
    merges: int
    rows_before: int
    """Rows of the embedding, possibly more than there were tokens."""
    parameters_before: int
    parameters: int
    used: int
    """Tokens that the texts of the domain use."""
    held_out: Trial | None
    old_ids: tuple[Annotated[int, Field(ge=0)], ...]


def write_trimming(folder: Path, trimming: Trimming) -> None:
    """Write the record into a model's folder."""
    (folder / VOCABULARY_FILE).write_text(trimming.model_dump_json(), encoding="utf-8")
