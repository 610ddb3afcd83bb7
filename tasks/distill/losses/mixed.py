"""Hard and soft targets in one pass over the output head.

Source: Hinton et al. 2015, arXiv 1503.02531, section 2.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.distill.losses.answers import divisor
from tasks.distill.losses.soft import ABSENT, Divergence, coarse, divergence
from tasks.shared.model.head import Head, sum_over_chunks

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Blend:
    """alpha T^2 D(teacher, student) + (1 - alpha) cross-entropy, D at temperature T.

    T^2 keeps the soft gradient's size when T changes: gradients of softened distributions shrink by 1 / T^2 (ibid.).
    """

    alpha: float
    temperature: float
    kind: Divergence
    mix: float


@dataclass(frozen=True)
class Stored:
    """Stored targets: top-k tokens and tail.

    rows: ids (tokens, k), -1 for a token that the student does not have; and log-probabilities (tokens, k + 1), ABSENT there.
    """

    rows: "tuple[Tensor, ...]"

    def pair(self, logits: "Tensor", rows: "tuple[Tensor, ...]", temperature: float) -> "tuple[Tensor, Tensor]":
        """Log-probabilities of student and teacher over the k tokens and the rest.

        logits: (tokens, vocabulary), the student's.  rows: ids (tokens, k) and log-probabilities (tokens, k + 1) of the teacher.
        Returns two tensors of (tokens, k + 1).
        """
        ids, logs = rows
        return coarse(logits, ids, temperature), logs


@dataclass(frozen=True)
class Online:
    """A teacher in memory: last hidden states and head, which is applied in chunks too.

    rows: (tokens, teacher's width).
    columns: (student's tokens,), the teacher's id of each token, -1 for none; None if both number tokens alike.
    """

    rows: "tuple[Tensor, ...]"
    head: Head
    columns: "Tensor | None"

    def pair(self, logits: "Tensor", rows: "tuple[Tensor, ...]", temperature: float) -> "tuple[Tensor, Tensor]":
        """Log-probabilities over the shared tokens, renormalized without all others.

        logits: (tokens, student's vocabulary).  rows: (tokens, teacher's width), as the only item.
        Returns two tensors of (tokens, shared tokens).
        """
        import torch

        with torch.no_grad():
            expected = self.head(rows[0]).float()
        if self.columns is not None:
            real = self.columns >= 0
            logits, expected = logits[:, real], expected[:, self.columns[real]]
        return torch.log_softmax(logits / temperature, dim=-1), torch.log_softmax(expected / temperature, dim=-1)


Teacher = Stored | Online


def blended_loss(
    states: "Tensor",
    head: Head,
    tokens: "Tensor",
    known: "Tensor",
    teacher: Teacher,
    blend: Blend,
    count: "Tensor | int | None" = None,
) -> "dict[str, Tensor]":
    """Weighted terms `soft` and `hard`, float32 scalars; a term of weight 0 is left out.

    states: (tokens, width) and tokens: (tokens,), as `counted` returns them.  known: (tokens,) bool, True where soft targets exist; the
    other tokens have hard targets only, at full weight.  count: (), as in `answer_loss`.
    """
    import torch
    from torch.nn.functional import cross_entropy

    def score(logits: "Tensor", tokens: "Tensor", known: "Tensor", *rows: "Tensor") -> "Tensor":
        hard = cross_entropy(logits.float(), tokens, reduction="none")
        student, expected = teacher.pair(logits.float(), rows, blend.temperature)
        soft = divergence(student, expected, blend.kind, blend.mix) * blend.temperature**2
        weight = blend.alpha * known
        return torch.stack([(weight * soft).sum(), ((1 - weight) * hard).sum()])

    sums = sum_over_chunks(score, head, states, tokens, known.float(), *teacher.rows) / divisor(tokens, count)
    terms = {"soft": sums[0], "hard": sums[1]}
    if blend.alpha == 0:
        del terms["soft"]
    elif blend.alpha == 1 and bool(known.all()):
        del terms["hard"]
    return terms


def without_absent(ids: "Tensor", logs: "Tensor", to_student: "Tensor") -> "tuple[Tensor, Tensor]":
    """Map stored targets to the student's token ids, and renormalize without tokens it lacks.

    to_student: (teacher's tokens,), -1 for none; padding rows of the teacher's head have no token either.

    ids: (tokens, k), the teacher's ids.  logs: (tokens, k + 1).  Returns the same shapes, -1 and ABSENT for tokens left out.
    """
    import torch

    mapped = torch.where(ids < len(to_student), to_student[ids.clamp(max=len(to_student) - 1)], -1)
    gone = torch.cat([mapped < 0, torch.zeros_like(mapped[:, :1], dtype=torch.bool)], dim=-1)
    kept = logs.masked_fill(gone, -torch.inf)
    kept = kept - torch.logsumexp(kept, dim=-1, keepdim=True)
    return mapped, kept.masked_fill(gone, ABSENT)
