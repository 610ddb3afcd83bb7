"""Divergences: zero and flat where student equals teacher, right by finite differences, and against torch's own."""

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import kl_div, log_softmax

from tasks.distill.losses.soft import ABSENT, Divergence, coarse, divergence

KINDS = get_args(Divergence)


def logits(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mix", [0.1, 0.5, 0.9])
def test_equal_distributions_have_no_divergence_and_no_gradient(kind: Divergence, mix: float) -> None:
    scores = logits(0, 4, 9).requires_grad_()
    found = divergence(log_softmax(scores, -1), log_softmax(scores.detach(), -1), kind, mix)
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-12, rtol=0)
    found.sum().backward()
    assert scores.grad is not None and scores.grad.abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind: Divergence) -> None:
    teacher = log_softmax(logits(1, 3, 6), -1)

    def loss(scores: torch.Tensor) -> torch.Tensor:
        return divergence(log_softmax(scores, -1), teacher, kind, 0.3).sum()

    assert torch.autograd.gradcheck(loss, (logits(2, 3, 6).requires_grad_(),))


@given(st.integers(0, 10_000), st.sampled_from(KINDS), st.floats(0, 1))
def test_never_negative_and_bounded_where_theory_says_so(seed: int, kind: Divergence, mix: float) -> None:
    student, teacher = (log_softmax(logits(seed + shift, 5, 7), -1) for shift in (0, 1))
    found = divergence(student, teacher, kind, mix)
    assert (found >= -1e-12).all()
    if kind == "jsd":
        assert (found <= math.log(2) + 1e-9).all()
    if kind == "total_variation":
        assert (found <= 1).all()


def test_against_torch_and_by_definition() -> None:
    student, teacher = (log_softmax(logits(seed, 5, 7), -1) for seed in (3, 4))
    kl = kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(divergence(student, teacher, "forward_kl"), kl)
    torch.testing.assert_close(divergence(teacher, student, "reverse_kl"), kl)
    torch.testing.assert_close(divergence(student, teacher, "skew_kl", 0.0), kl, msg="no mixing leaves KL")
    torch.testing.assert_close(divergence(teacher, student, "skew_reverse_kl", 0.0), kl)
    middle = (0.5 * (student.exp() + teacher.exp())).log()
    half = [kl_div(middle, one, reduction="none", log_target=True).sum(-1) for one in (student, teacher)]
    torch.testing.assert_close(divergence(student, teacher, "jsd", 0.5), 0.5 * (half[0] + half[1]))


def test_a_category_that_neither_has_changes_nothing() -> None:
    pair = [log_softmax(logits(seed, 2, 5), -1) for seed in (5, 6)]
    padded = [torch.cat([one, torch.full((2, 3), ABSENT)], -1) for one in pair]
    for kind in KINDS:
        torch.testing.assert_close(divergence(*padded, kind, 0.4), divergence(*pair, kind, 0.4))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_coarse_distributions_are_whole(temperature: float) -> None:
    scores = logits(7, 6, 40)
    ids = scores.topk(5).indices
    found = coarse(scores, ids, temperature)
    whole = log_softmax(scores / temperature, -1)
    torch.testing.assert_close(found[:, :5], whole.gather(-1, ids))
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(6, dtype=torch.float64))


def test_the_rest_is_exact_where_one_minus_the_others_would_be_rounding_error() -> None:
    scores = torch.tensor([[60.0, 0.0, 0.0, 0.0]])
    found = coarse(scores, torch.tensor([[0]]), 1.0)
    assert float(found[0, 1]) == pytest.approx(-60 + math.log(3), abs=1e-4)
    assert float(1 - found[0, 0].exp()) == 0, "in float32 nothing is left"


def test_tokens_that_the_student_lacks_uncover_nothing() -> None:
    scores = logits(8, 3, 12)
    ids = torch.tensor([[0, 4, -1], [-1, 0, 7], [5, -1, 0]])
    found = coarse(scores, ids, 2.0)
    whole = log_softmax(scores / 2.0, -1)
    for row in range(3):
        kept = [int(one) for one in ids[row] if one >= 0]
        rest = [token for token in range(12) if token not in kept]
        torch.testing.assert_close(found[row, -1], torch.logsumexp(whole[row, rest], 0))
    assert (found[:, :3][ids < 0] == ABSENT).all()


def test_all_tokens_kept_leave_no_rest_and_finite_gradients() -> None:
    scores = logits(9, 2, 4).requires_grad_()
    found: Any = coarse(scores, torch.arange(4).expand(2, -1), 1.0)
    assert (found[:, -1] == ABSENT).all()
    found[:, :4].exp().sum().backward()
    assert scores.grad is not None and torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_merging_categories_never_raises_a_divergence(kind: Divergence) -> None:
    student, teacher = logits(10, 30, 50), logits(11, 30, 50)
    ids = teacher.topk(8).indices
    merged = divergence(coarse(student, ids, 1.0), coarse(teacher, ids, 1.0), kind, 0.4)
    whole = divergence(log_softmax(student, -1), log_softmax(teacher, -1), kind, 0.4)
    assert (merged <= whole + 1e-12).all()
