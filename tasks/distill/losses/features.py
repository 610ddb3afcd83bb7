"""Distances between a student's and a teacher's hidden states and attention."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Distance = Literal["mse", "cosine"]


def state_distance(student: "Tensor", teacher: "Tensor", kind: Distance) -> "Tensor":
    """Distance of each token's states; 0 with a zero gradient if they are equal.

    student, teacher: (..., width), any float dtype, the student's already projected.  Returns (...), float32.
      mse     squared error over the teacher's mean square, so that layers of large states do not outweigh others
              (FitNets, Romero et al. 2015, arXiv 1412.6550, equation 3; TinyBERT, Jiao et al. 2020, arXiv 1909.10351, equation 8)
      cosine  1 minus the cosine: direction only, half of PKD's error of unit vectors (Sun et al. 2019, arXiv 1908.09355, equation 7)
    """
    from torch.nn.functional import cosine_similarity

    student, teacher = student.float(), teacher.float()
    if kind == "cosine":
        return 1 - cosine_similarity(student, teacher, dim=-1)
    return (student - teacher).square().mean(dim=-1) / teacher.square().mean(dim=-1).clamp_min(1e-6)


def attention_divergence(student: "Tensor", teacher: "Tensor") -> "Tensor":
    """KL(teacher || student) of each token's attention, mean over heads.

    Source: MiniLM, Wang et al. 2020, arXiv 2002.10957, equation 1.

    student, teacher: (batch, heads, tokens, tokens), attention probabilities.  Returns (batch, tokens), float32.
    Masked positions (later tokens) are 0 in both and add nothing.
    """
    import torch

    student, teacher = student.float(), teacher.float()
    least = torch.finfo(torch.float32).tiny
    logs = teacher.clamp_min(least).log() - student.clamp_min(least).log()
    return (teacher * logs).sum(dim=-1).mean(dim=1)


def mean_over_tokens(values: "Tensor", mask: "Tensor", shares: "Tensor") -> "Tensor":
    """Mean over each row's marked tokens, summed with the rows' shares as weights.

    values: (batch, tokens).  mask: (batch, tokens), true on tokens that count.  shares: (batch,), `row_shares`.  Returns a scalar.
    """
    marked = mask.to(values.dtype)
    means = (values * marked).sum(dim=1) / marked.sum(dim=1).clamp_min(1)
    return (means * shares).sum()
