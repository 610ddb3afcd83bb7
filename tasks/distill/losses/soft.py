"""Soft targets: divergences between the next-token distributions of teacher and student.

Distributions are log-probabilities whose last dimension is the categories: all tokens of the vocabulary, or the teacher's top
k tokens and one category for all others (`coarse`).  Merging categories never raises an f-divergence, and the k + 1 categories
keep nearly all of it if the top k have nearly all of the mass.
"""

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Divergence = Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation"]
ABSENT = -1e4
"""Log-probability of a category that one of the two lacks: e to this is 0, and differences stay finite."""


def divergence(student: "Tensor", teacher: "Tensor", kind: Divergence, mix: float = 0.5) -> "Tensor":
    """Divergence of teacher and student at each token, in nats; total variation in [0, 1].

    student, teacher: (..., categories) log-probabilities, float32.  Returns (...), >= 0, and 0 with a zero gradient where they
    are equal.  p is the teacher, q the student:
      forward_kl       KL(p || q): mode-covering (Hinton et al. 2015, arXiv 1503.02531)
      reverse_kl       KL(q || p): mode-seeking (Gu et al. 2024, arXiv 2306.08543)
      jsd              mix KL(p || m) + (1 - mix) KL(q || m), m = mix p + (1 - mix) q (Agarwal et al. 2024, arXiv 2306.13649, eq. 1)
      skew_kl          KL(p || mix p + (1 - mix) q) (Ko et al. 2024, arXiv 2402.03898, section 3.1)
      skew_reverse_kl  KL(q || (1 - mix) p + mix q), ibid.
      total_variation  half the sum of |p - q| (Wen et al. 2023, arXiv 2307.15190)
    """
    match kind:
        case "forward_kl":
            return _kl(teacher, student)
        case "reverse_kl":
            return _kl(student, teacher)
        case "jsd":
            middle = _mixture(teacher, student, mix)
            return mix * _kl(teacher, middle) + (1 - mix) * _kl(student, middle)
        case "skew_kl":
            return _kl(teacher, _mixture(teacher, student, mix))
        case "skew_reverse_kl":
            return _kl(student, _mixture(student, teacher, mix))
        case "total_variation":
            return 0.5 * (teacher.exp() - student.exp()).abs().sum(dim=-1)


def _kl(first: "Tensor", second: "Tensor") -> "Tensor":
    return (first.exp() * (first - second)).sum(dim=-1)


def _mixture(first: "Tensor", second: "Tensor", share: float) -> "Tensor":
    """log(share e^first + (1 - share) e^second)."""
    import torch

    if share in (0, 1):
        return first if share else second
    return torch.logaddexp(first + math.log(share), second + math.log1p(-share))


def coarse(logits: "Tensor", ids: "Tensor", temperature: float) -> "Tensor":
    """Log-probabilities of the k tokens `ids` and, last, of all other tokens together.

    logits: (tokens, vocabulary) float32.  ids: (tokens, k), each row without repetitions; -1: no such token, ABSENT in the result.
    Returns (tokens, k + 1).  The tail's mass is summed over its own logits: computed as 1 minus the rest, it would be rounding error
    wherever the k tokens hold nearly all of the mass, which is the usual case.
    """
    import torch
    from torch.nn.functional import pad

    scaled = logits / temperature
    total = torch.logsumexp(scaled, dim=-1, keepdim=True)
    real = ids >= 0
    kept = (scaled.gather(-1, ids.clamp(min=0)) - total).masked_fill(~real, ABSENT)
    nowhere = scaled.shape[-1]  # one more column, for tokens that the student lacks
    places = torch.where(real, ids, nowhere)
    others = pad(scaled, (0, 1)).scatter(-1, places, torch.finfo(scaled.dtype).min / 2)[:, :nowhere]
    rest = torch.logsumexp(others, dim=-1, keepdim=True) - total
    return torch.cat([kept, rest.clamp(min=ABSENT)], dim=-1)
