"""Choice of weights: exact counts, whatever the ties."""

import pytest
import torch

from tasks.prune.masking.choice import Cut, lowest_of_groups
from tasks.shared.model.prunable import lowest, lowest_of_matrix


def tied_scores(*shape: int) -> torch.Tensor:
    """Scores with many ties, zeros among them."""
    return torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize("count", [0, 1, 7, 12])
def test_each_row_loses_exactly_its_count_of_lowest_scores(count: int) -> None:
    scores = tied_scores(6, 12)
    zeros = lowest(scores, count)
    assert (zeros.sum(-1) == count).all()
    for row, gone in zip(scores, zeros, strict=True):
        assert not count or row[gone].max() <= row.masked_fill(gone, 9.0).min()
    wanted = torch.zeros_like(zeros).scatter(1, scores.argsort(dim=-1, stable=True)[:, :count], True)
    assert torch.equal(zeros, wanted), "of equal scores, the first"


def test_a_matrix_loses_exactly_its_count() -> None:
    assert int(lowest_of_matrix(tied_scores(6, 12), 31).sum()) == 31
    assert int(lowest_of_matrix(tied_scores(12, 6).T, 31).sum()) == 31, "also one that is not contiguous"


@pytest.mark.parametrize(("pattern", "kept"), [("2:4", 2), ("1:4", 1), ("3:8", 3)])
def test_every_group_keeps_its_best(pattern: str, kept: int) -> None:
    scores = tied_scores(5, 24)
    left = ~lowest_of_groups(scores, pattern)
    groups = left.unflatten(-1, (-1, int(pattern[-1])))
    assert (groups.sum(-1) == kept).all()
    best = scores.unflatten(-1, groups.shape[1:]).topk(kept, dim=-1).values.sum()
    assert scores[left].sum() == best


@pytest.mark.parametrize("count", [1, 40, 99, 150])
@pytest.mark.parametrize("tied", [True, False])
def test_the_cut_over_all_matrices_is_that_of_their_concatenation(count: int, tied: bool) -> None:
    parts = [tied_scores(6, 12), tied_scores(4, 20)] if tied else [torch.rand(6, 12), torch.rand(4, 20)]
    cut = Cut(lambda: parts, count)
    zeros = torch.cat([cut.take(part).flatten() for part in parts])
    assert torch.equal(zeros, lowest(torch.cat([part.flatten() for part in parts])[None], count)[0])
