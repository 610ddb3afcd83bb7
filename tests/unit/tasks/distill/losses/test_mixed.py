"""Hard and soft targets together: algebra of the two terms."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from tasks.distill.losses.mixed import Blend, Online, Stored, blended_loss, without_absent
from tasks.distill.losses.soft import ABSENT, coarse
from tasks.logits.topk import top_and_tails

WIDTH, VOCABULARY, TOKENS = 6, 30, 11


class Problem:
    """A student's head and states, a teacher's, and the tokens that were said."""

    def __init__(self, same: bool = False) -> None:
        torch.manual_seed(0)
        self.student = torch.nn.Linear(WIDTH, VOCABULARY)
        self.teacher = self.student if same else torch.nn.Linear(WIDTH, VOCABULARY)
        self.states = torch.randn(TOKENS, WIDTH, requires_grad=True)
        self.expected = self.states.detach() if same else torch.randn(TOKENS, WIDTH)
        self.tokens = torch.randint(0, VOCABULARY, (TOKENS,))
        self.known = torch.ones(TOKENS, dtype=torch.bool)

    def online(self) -> Online:
        return Online((self.expected,), self.teacher, None)

    def stored(self, k: int, temperature: float) -> Stored:
        with torch.no_grad():
            ids, top, tails = top_and_tails(self.teacher(self.expected), k, (temperature,))
        masses = torch.cat([top / temperature, tails], -1)
        return Stored((ids, masses - torch.logsumexp(masses, -1, keepdim=True)))

    def terms(self, teacher: Any, count: int | None = None, **settings: Any) -> dict[str, torch.Tensor]:
        blend = Blend(**({"alpha": 0.3, "temperature": 2.0, "kind": "forward_kl", "mix": 0.5} | settings))
        return blended_loss(self.states, self.student, self.tokens, self.known, teacher, blend, count)


def test_the_terms_are_hintons() -> None:
    problem = Problem()
    found = problem.terms(problem.online())
    student, teacher = problem.student(problem.states), problem.teacher(problem.expected)
    kl = kl_div(log_softmax(student / 2, -1), log_softmax(teacher / 2, -1), reduction="batchmean", log_target=True)
    torch.testing.assert_close(found["soft"], 0.3 * 4 * kl)
    torch.testing.assert_close(found["hard"], 0.7 * cross_entropy(student, problem.tokens))


@pytest.mark.parametrize("stored", [False, True])
def test_a_student_that_equals_its_teacher_has_no_soft_loss_and_no_gradient(stored: bool) -> None:
    problem = Problem(same=True)
    term = problem.terms(problem.stored(5, 2.0) if stored else problem.online())["soft"]
    assert float(term.detach()) == pytest.approx(0, abs=1e-6)
    term.backward()
    assert problem.states.grad is not None and problem.states.grad.abs().max() < 1e-6


def test_stored_targets_approach_the_teacher_in_memory_from_below() -> None:
    problem = Problem()
    whole = float(problem.terms(problem.online())["soft"].detach())
    found = [float(problem.terms(problem.stored(k, 2.0))["soft"].detach()) for k in (1, 4, 12, VOCABULARY - 1)]
    assert found == sorted(found) and found[-1] == pytest.approx(whole, rel=1e-5) and found[0] < whole


def test_gradients_keep_their_size_when_the_temperature_rises() -> None:
    """T^2 D_T tends to a constant for large T (Hinton et al. 2015, eq. 4); without T^2 it would fall by 25 from 20 to 100."""
    sizes = []
    for temperature in (20.0, 100.0):
        problem = Problem()
        problem.terms(problem.online(), temperature=temperature)["soft"].backward()
        assert problem.states.grad is not None
        sizes.append(float(problem.states.grad.norm()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def test_parts_of_a_batch_add_up_to_it() -> None:
    problem = Problem()
    whole = problem.terms(problem.online())
    halves = []
    for part in (slice(0, 4), slice(4, TOKENS)):
        blend = Blend(0.3, 2.0, "forward_kl", 0.5)
        teacher = Online((problem.expected[part],), problem.teacher, None)
        known = problem.known[part]
        halves.append(
            blended_loss(problem.states[part], problem.student, problem.tokens[part], known, teacher, blend, TOKENS)
        )
    for name, value in whole.items():
        torch.testing.assert_close(halves[0][name] + halves[1][name], value)


def test_a_term_that_weighs_nothing_is_left_out() -> None:
    problem = Problem()
    assert set(problem.terms(problem.online(), alpha=0.0)) == {"hard"}
    assert set(problem.terms(problem.online(), alpha=1.0)) == {"soft"}


def test_tokens_without_soft_targets_learn_from_hard_ones_with_their_full_weight() -> None:
    problem = Problem()
    problem.known[:] = False
    found = problem.terms(problem.online(), alpha=1.0)
    torch.testing.assert_close(found["hard"], cross_entropy(problem.student(problem.states), problem.tokens))
    assert float(found["soft"].detach()) == 0


def test_a_padded_student_learns_nothing_of_tokens_that_nobody_has() -> None:
    problem = Problem()
    wide = torch.nn.Linear(WIDTH, VOCABULARY + 4)
    with torch.no_grad():
        wide.weight[:VOCABULARY], wide.bias[:VOCABULARY] = problem.student.weight, problem.student.bias
    columns = torch.cat([torch.arange(VOCABULARY), torch.full((4,), -1)])
    narrow = problem.terms(problem.online())["soft"]
    problem.student = wide
    torch.testing.assert_close(problem.terms(Online((problem.expected,), problem.teacher, columns))["soft"], narrow)


def test_a_trimmed_students_targets_are_the_teachers_among_its_tokens() -> None:
    """Stored and in memory agree: what was trimmed away is left out, and the rest brought to 1."""
    problem = Problem()
    kept = torch.arange(0, VOCABULARY, 2)
    to_student = torch.full((VOCABULARY,), -1)
    to_student[kept] = torch.arange(len(kept))
    logits = problem.teacher(problem.expected).detach()
    ids, top, tails = top_and_tails(logits, VOCABULARY - 1, (1.0,))
    mapped, logs = without_absent(ids, torch.cat([top, tails], -1), to_student)
    small = torch.nn.Linear(WIDTH, len(kept))
    student, expected = Stored((mapped, logs)).pair(small(problem.states), (mapped, logs), 1.0)
    assert ((mapped < 0) == (expected[:, :-1] == ABSENT)).all()
    torch.testing.assert_close(expected.exp().sum(-1), torch.ones(TOKENS))
    for row in range(TOKENS):
        last = int(logits[row].argmin())  # the one token that is not among the stored, and so the rest
        among = [token for token in kept.tolist() if token != last]
        wanted = log_softmax(logits[row, [*among, last]], -1)
        order = [int(mapped[row].eq(to_student[token]).nonzero()) for token in among]
        torch.testing.assert_close(expected[row, [*order, -1]], wanted)
    torch.testing.assert_close(student, coarse(small(problem.states), mapped, 1.0))


def test_rows_of_a_padded_teacher_are_nobodys_tokens() -> None:
    ids = torch.tensor([[1, 5, 2]])  # 4 tokens, and a head of 6 rows
    logs = torch.log_softmax(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), -1)
    mapped, kept = without_absent(ids, logs, torch.arange(4))
    assert mapped.tolist() == [[1, -1, 2]] and float(kept[0, 1]) == ABSENT
    assert float(kept.exp().sum()) == pytest.approx(1)
