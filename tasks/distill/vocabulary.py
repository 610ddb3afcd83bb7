"""Token ids of a teacher and a student of one tokenizer family, padded or trimmed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

LEAST_COMMON = 0.98
"""Minimum share of the student's tokens in a teacher of its family.  Byte-level tokenizers of different makers share half."""


@dataclass(frozen=True)
class Family:
    """Correspondence of token ids.

    to_teacher: by student token, the teacher's id of the same token, -1 if the teacher has none (padding).
    to_student: by teacher token, the student's id of the same token, -1 if it was trimmed.
    same: True if both have the same tokens with the same ids.
    """

    to_teacher: "Tensor"
    to_student: "Tensor"
    same: bool

    def columns(self, student_rows: int, teacher_rows: int) -> "Tensor | None":
        """Return the teacher row of each row of the student's head, -1 for none; None if equal."""
        from torch.nn.functional import pad

        if self.same and student_rows == teacher_rows:
            return None
        return pad(self.to_teacher, (0, student_rows - len(self.to_teacher)), value=-1)

    def teacher_ids(self, ids: Sequence[int]) -> list[int] | None:
        """The teacher's ids of these tokens; None if it lacks one.  Negative ids (labels) stay."""
        if self.same:
            return list(ids)
        mapped = [token if token < 0 else int(self.to_teacher[token]) for token in ids]
        return None if any(new < 0 <= old for new, old in zip(mapped, ids, strict=True)) else mapped

    def add_teacher_ids(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Add `teacher_ids` and `known` to the rows.

        known: 0 for a row with a token that the teacher lacks, whose
        `teacher_ids` are filler.
        """
        found = []
        for row in rows:
            ids = self.teacher_ids(row["input_ids"])
            found.append({**row, "teacher_ids": ids or [0] * len(row["input_ids"]), "known": int(ids is not None)})
        return found


def match_vocabularies(student: Mapping[str, int], teacher: Mapping[str, int]) -> Family:
    """Match the tokens of two tokenizers by their text.

    Raises ModelError if they share too few: they would then split the same text differently, and positions would not match.
    """
    import torch

    shared = [token for token in student if token in teacher]
    if len(shared) < LEAST_COMMON * len(student):
        raise ModelError(
            "teacher and student",
            f"their tokenizers share {len(shared)} of the student's {len(student)} tokens",
            "one tokenizer family (padded and trimmed vocabularies are fine)",
            "distill across tokenizers: /distill@steps.<name>: gold; or learn the teacher's answers: sft",
        )
    to_teacher = torch.full((max(student.values()) + 1,), -1, dtype=torch.long)
    to_student = torch.full((max(teacher.values()) + 1,), -1, dtype=torch.long)
    for token in shared:
        to_teacher[student[token]] = teacher[token]
        to_student[teacher[token]] = student[token]
    return Family(to_teacher, to_student, student == teacher)
