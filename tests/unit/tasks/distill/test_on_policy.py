"""On-policy distillation: draws that depend on nothing by accident, nothing to learn from oneself, TRL's divergence, resumable."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tasks.distill.on_policy import OnPolicy, OwnAnswers
from tasks.distill.training.own_samples import draw_tokens, row_draws, sample_answers
from tasks.shared.errors import ModelError, TechniqueError
from tasks.shared.model.encoding import IGNORED, Encoded, collate, encode
from tasks.shared.model.loading import load_model
from tasks.shared.model.saving import save_model
from tasks.shared.technique import Inputs
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, build_tokenizer, empty_run, save_tiny
from tests.training_changes import LORA_CHANGES, TRAINING_CHANGES
from tests.unit.tasks.distill.test_features import make_inputs, one_thread  # noqa: F401 - a fixture
from tests.unit.tasks.distill.test_sft import make_rows
from tests.unit.tasks.distill.training.test_checkpoints import digest, interrupted

QUICK: dict[str, Any] = {
    "epochs": 1, "batch_size": 4, "precision": "float32", "validation": 0, "learning_rate": 3e-3, "max_new_tokens": 6
}  # fmt: skip


def prepared(tmp_path: Path, teacher: Any, student: Any, **settings: Any) -> tuple[OwnAnswers, list[Encoded]]:
    """An objective with its teacher loaded, and its rows."""
    place = save_tiny(tmp_path / "taught", teacher)
    made = OwnAnswers(OnPolicy(**{"max_new_tokens": 6} | settings), place, place, seed=0)
    rows = made.label(encode(make_rows(6), build_tokenizer(), 512))
    made.attach(student, "cpu")
    return made, rows


def test_tokens_are_drawn_by_their_probabilities() -> None:
    import torch

    logits = torch.tensor([0.0, -torch.inf, 1.0, 2.0])
    draws = torch.arange(10_000, dtype=torch.float64) / 10_000
    for temperature in (1.0, 0.5):
        found = draw_tokens(logits.expand(10_000, 4), draws, temperature)
        shares = torch.bincount(found, minlength=4) / 10_000
        torch.testing.assert_close(shares, torch.softmax(logits / temperature, dim=-1), atol=2e-4, rtol=0)
    never_first = torch.tensor([[-torch.inf, 1.0]])
    assert draw_tokens(never_first, torch.zeros(1, dtype=torch.float64), 1.0).tolist() == [1]


def test_draws_know_seed_step_and_row_and_nothing_else() -> None:
    import torch

    draws = row_draws(0, 3, [11, 22], 5)
    torch.rand(3)
    assert torch.equal(row_draws(0, 3, [22], 5)[0], draws[1]) and torch.equal(
        row_draws(0, 3, [11, 22], 4), draws[:, :4]
    )
    others = [row_draws(1, 3, [11], 5)[0], row_draws(0, 4, [11], 5)[0], draws[1]]
    assert not any(torch.equal(draws[0], other) for other in others) and bool(((draws >= 0) & (draws < 1)).all())


def test_answers_do_not_depend_on_the_batch_and_end_with_the_turn() -> None:
    model = build_model()
    prompts = [[5, 6, 7], [9] * 9, [8, 4]]
    draws = row_draws(0, 0, [1, 2, 3], 40)
    together = sample_answers(model, prompts, draws, 1.0, end=2, pad=0)
    apart = [sample_answers(model, [prompts[row]], draws[row : row + 1], 1.0, 2, 0)[0] for row in range(3)]
    assert together == apart and len(together[0]) == 40
    end = together[0][3]
    cut = sample_answers(model, prompts, draws, 1.0, end, 0)
    assert cut[0] == together[0][: together[0].index(end) + 1], "up to and with the end of turn"


def test_cold_answers_are_the_likeliest_and_the_model_is_left_as_it_was() -> None:
    import torch

    model = build_model().train()
    model.generation_config.repetition_penalty = 9.0
    found = sample_answers(model, [[5, 6, 7]], row_draws(0, 0, [1], 8), 1e-4, 2, 0)[0]
    ids = [5, 6, 7]
    for token in found:
        assert token == int(model.eval()(torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
    assert model.generation_config.repetition_penalty == 9.0
    model.train()
    sample_answers(model, [[5, 6, 7]], row_draws(0, 0, [1], 1), 1.0, 2, 0)
    assert model.training and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("lmbda", [0.0, 1.0])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path: Path, beta: float, lmbda: float) -> None:
    student = build_model().train()
    made, rows = prepared(tmp_path, build_model(), student, beta=beta, lmbda=lmbda)
    loss = made.terms(student, collate(rows, 0), None)["divergence"]
    loss.backward()
    assert abs(loss.item()) < 1e-6 and all(float(p.grad.abs().max()) < 1e-5 for p in student.parameters())
    other = build_model(seed=2).train()
    assert made.terms(other, collate(rows, 0), None)["divergence"].item() > 0.01


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_is_that_of_trls_gkd(tmp_path: Path, beta: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of being experimental
        from trl.experimental.gkd import GKDTrainer
    student, teacher = build_model(seed=1).train(), build_model()
    made, rows = prepared(tmp_path, teacher, student, beta=beta, lmbda=0)
    batch = collate(rows, 0)
    ours = made.terms(student, batch, None)["divergence"]
    logits = [
        part(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1] for part in (student, teacher)
    ]
    theirs = GKDTrainer.generalized_jsd_loss(*logits, labels=batch["labels"][:, 1:], beta=beta)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)


@pytest.mark.parametrize("lmbda", [0.0, 1.0])
def test_parts_of_a_step_add_up(tmp_path: Path, lmbda: float) -> None:
    student = build_model(seed=1).train()
    made, rows = prepared(tmp_path, build_model(), student, lmbda=lmbda)
    whole = made.terms(student, collate(rows, 0), None)["divergence"].item()
    count = sum(label != IGNORED for row in rows for label in row["labels"])
    parts = [
        made.terms(student, collate(rows[start : start + 2], 0), count)["divergence"].item() for start in (0, 2, 4)
    ]
    assert sum(parts) == pytest.approx(whole, rel=1e-5)
    made.step = 1
    again = made.terms(student, collate(rows, 0), None)["divergence"].item()
    assert (again == pytest.approx(whole, rel=1e-6)) == (lmbda == 0), "another step draws other answers"
    made.step, student = 0, student.eval()
    held = made.terms(student, collate(rows, 0), None)["divergence"].item()
    made.step = 1
    assert made.terms(student, collate(rows, 0), None)["divergence"].item() == held, "validation draws nothing"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.7, 1.0])
def test_own_steps_are_spread_evenly(tmp_path: Path, share: float) -> None:
    place = save_tiny(tmp_path / "model")
    made = OwnAnswers(OnPolicy(lmbda=share), place, place, 0)
    own = [made.is_own(step) for step in range(100)]
    assert all(abs(sum(own[:steps]) - steps * share) <= 0.5 + 1e-9 for steps in range(101))
    assert own[0] == (share >= 0.5)


def test_the_student_comes_nearer_on_its_own_answers(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, 14, teacher=build_model(seed=1))
    out, run = empty_run(tmp_path)
    OnPolicy(**QUICK | {"epochs": 6, "lmbda": 1.0})(inputs, out, run)
    made, rows = prepared(tmp_path, build_model(seed=1), student := load_model(out).train(), lmbda=1.0)
    before = made.terms(build_model().train(), collate(rows, 0), None)["divergence"].item()
    assert made.terms(student, collate(rows, 0), None)["divergence"].item() < 0.7 * before
    assert set(student.state_dict()) == set(build_model().state_dict())


def test_cut_short_and_gone_on_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(tmp_path, 14, teacher=build_model(seed=1), attention_dropout=0.2)
    technique = OnPolicy(**QUICK | {"epochs": 2, "validation": 0.2, "batch_size": 2, "accumulation": 2, "lmbda": 0.7})
    expected, run = empty_run(tmp_path, "whole")
    technique(inputs, expected, run)
    out, run = interrupted(technique, inputs, tmp_path, monkeypatch, lambda trainer: trainer.state.global_step == 4)
    technique(inputs, out, run)
    assert (out / "loss.csv").read_text() == (expected / "loss.csv").read_text() and digest(out) == digest(expected)


def test_what_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, teacher=build_model(seed=1))
    with pytest.raises(TechniqueError, match=r"max_new_tokens: 500 after a prompt of \d+ tokens"):
        OnPolicy(**QUICK | {"max_new_tokens": 500})(inputs, *empty_run(tmp_path, "long"))
    save_model(build_model(vocab_size=300), build_tokenizer(300), inputs.one("teacher").path)
    with pytest.raises(ModelError, match="gold"):
        OnPolicy(**QUICK)(inputs, *empty_run(tmp_path, "tokens"))


def test_tokens_that_the_teacher_lacks_are_neither_scored_nor_asked_for(tmp_path: Path) -> None:
    """A student whose head is padded speaks of rows that mean nothing; its teacher has not even numbers for them."""
    import torch

    student = build_model(vocab_size=640).train()
    made, rows = prepared(tmp_path, build_model(seed=1), student, lmbda=1.0)
    batch = collate(rows, 0)
    own = made.own(student, batch)
    assert int(own["input_ids"].max()) < 512 and (own["labels"] != IGNORED).sum() < 6 * 6, "some answers are cut"
    made.terms(student, batch, None)["divergence"].backward()
    gradient = student.get_input_embeddings().weight.grad
    assert torch.isfinite(gradient).all() and not gradient[512:].any()


def test_a_trimmed_student_is_scored_by_a_whole_teacher(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, teacher=build_model(seed=1))
    save_model(build_model(vocab_size=300), build_tokenizer(300), inputs.one("model").path)
    out, run = empty_run(tmp_path)
    OnPolicy(**QUICK | {"lmbda": 1.0})(inputs, out, run)
    assert load_model(out).config.vocab_size == 300


def test_the_plan_knows_that_nobody_teaches_itself() -> None:
    inputs = {"model": ("tuned",), "teacher": ("tuned",), "data": ("traces",)}
    assert [problem.where for problem in OnPolicy().plan_problems("steps.s", inputs, {})] == ["steps.s.inputs.teacher"]
    assert not list(OnPolicy().plan_problems("steps.s", inputs | {"teacher": ("models.teacher",)}, {}))


RISING = {"epochs": 6, "learning_rate": 0.1, "schedule": "constant_with_warmup", "patience": 0, "lmbda": 0.0}
CHANGES = (
    TRAINING_CHANGES
    | LORA_CHANGES
    | {
        "patience": Change(1, RISING),
        "lmbda": Change(1.0),
        "beta": Change(0.0),
        "temperature": Change(3.0),
        "max_new_tokens": Change(2),
        "teacher_dtype": Change("bfloat16"),
    }
)


def case_inputs(folder: Path) -> Inputs:
    return make_inputs(folder, rows=12, teacher=build_model(seed=1, num_hidden_layers=2), num_hidden_layers=2)


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    settings = {"epochs": 1, "batch_size": 2, "precision": "float32", "learning_rate": 3e-3, "max_new_tokens": 4}
    yield Case(folder, case_inputs(folder), settings)
