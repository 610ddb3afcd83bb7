"""Feature distillation: nothing to learn from oneself, padding is nothing, parts add up, and no projection is left in the artifact."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tasks.distill.features import PROJECTIONS, Features, Matching, projection
from tasks.distill.layers import layer_pairs
from tasks.distill.losses.answers import row_shares
from tasks.distill.losses.features import attention_divergence, mean_over_tokens, state_distance
from tasks.prune.depth import drop_layers, write_influence
from tasks.shared.errors import ModelError, TechniqueError
from tasks.shared.model.encoding import IGNORED, Encoded, collate, encode
from tasks.shared.model.loading import load_model
from tasks.shared.model.saving import save_model
from tasks.shared.technique import Artifact, Inputs, Kind, Upstream
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, build_tokenizer, empty_run, save_tiny
from tests.training_changes import TRAINING_CHANGES
from tests.unit.tasks.distill import test_sft
from tests.unit.tasks.distill.test_sft import losses, make_rows
from tests.unit.tasks.distill.training.test_checkpoints import digest, interrupted

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 4, "precision": "float32", "validation": 0, "learning_rate": 3e-3}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Matrices of these sizes take longer on two threads than on one, and very much longer on a busy machine."""
    import torch

    torch.set_num_threads(1)


def make_inputs(folder: Path, rows: int = 24, teacher: Any = None, **overrides: Any) -> Inputs:
    """A student, its data and a teacher: by default a wider and deeper one, of other weights."""
    inputs = test_sft.make_inputs(folder, rows, **overrides)
    if teacher is None:
        teacher = build_model(seed=1, hidden_size=96, num_hidden_layers=6)
    place = save_tiny(folder / "teacher", teacher)
    return Inputs({**inputs.ports, "teacher": (Artifact("teacher", Kind.MODEL, place),)})


def matching(tmp_path: Path, teacher: Any, student: Any, **settings: Any) -> Matching:
    """An objective with its teacher loaded, and projections hung into the student."""
    place = save_tiny(tmp_path / "taught", teacher)
    made = Matching(Features(**settings), place, place, seed=0)
    made.attach(student, "cpu")
    return made


def rows_of(made: Matching, count: int = 6) -> list[Encoded]:
    return made.label(encode(make_rows(count), build_tokenizer(), 512))


@pytest.mark.parametrize("distance", ["mse", "cosine"])
@pytest.mark.parametrize("tokens", ["all", "answers"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path: Path, distance: str, tokens: str) -> None:
    student = build_model()
    student.set_attn_implementation("eager")
    made = matching(
        tmp_path,
        build_model(),
        student,
        distance=distance,
        tokens=tokens,
        hard_weight=0,
        hidden_weight=1,
        attention_weight=1,
    )
    batch = collate(rows_of(made), 0)
    terms = made.terms(student, batch, None)
    assert set(terms) == {"hidden", "attention"} and all(abs(term.item()) < 1e-6 for term in terms.values())
    sum(terms.values()).backward()
    assert all(p.grad is None or float(p.grad.abs().max()) < 1e-5 for p in student.parameters())
    other = build_model(seed=3)
    made.attach(other, "cpu")
    assert all(term.item() > 0.01 for term in made.terms(other, batch, None).values())


def test_padding_is_nothing_and_parts_of_a_step_add_up(tmp_path: Path) -> None:
    student = build_model(num_hidden_layers=3)
    made = matching(tmp_path, build_model(seed=1, hidden_size=96, num_hidden_layers=6), student, attention_weight=1)
    rows = rows_of(made)
    whole = made.terms(student, collate(rows, 0), None)
    assert len({len(row["input_ids"]) for row in rows}) > 1, "some are padded"
    other = made.terms(student, collate(rows, 7), None)
    count = sum(label != IGNORED for row in rows for label in row["labels"])
    parts = [made.terms(student, collate(rows[start : start + 2], 0), count) for start in (0, 2, 4)]
    for name, value in whole.items():
        assert other[name].item() == value.item(), "what a pad is called changes nothing"
        assert sum(part[name].item() for part in parts) == pytest.approx(value.item(), rel=1e-5)


def test_a_row_that_the_teacher_cannot_read_is_not_matched(tmp_path: Path) -> None:
    student = build_model()
    made = matching(tmp_path, build_model(seed=1), student)
    rows = rows_of(made)
    strange = [{**row, "known": int(place > 0)} for place, row in enumerate(rows)]
    count = sum(label != IGNORED for row in rows for label in row["labels"])
    found = made.terms(student, collate(strange, 0), count)
    assert found["hidden"].item() == pytest.approx(
        made.terms(student, collate(rows[1:], 0), count)["hidden"].item(), rel=1e-5
    )
    assert found["hard"].item() == made.terms(student, collate(rows, 0), count)["hard"].item()


def test_distances_have_the_gradients_of_finite_differences() -> None:
    import torch

    draw = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    shares = torch.tensor([0.75, 0.25], dtype=torch.float64)
    student, teacher = (torch.rand(2, 3, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    for kind in ("mse", "cosine"):
        state = student.clone().requires_grad_()
        value = mean_over_tokens(state_distance(state, teacher, kind), mask, shares)
        value.backward()
        assert not state.grad[0, 2].any() and not state.grad[1, 1:].any(), "masked tokens pull at nothing"
        step = torch.zeros_like(student)
        step[0, 1, 2] = 1e-2
        ahead, behind = (
            mean_over_tokens(state_distance(student + sign * step, teacher, kind), mask, shares) for sign in (1, -1)
        )
        assert float((ahead - behind) / 2e-2) == pytest.approx(float(state.grad[0, 1, 2]), rel=2e-2)


def test_the_squared_error_is_relative_and_the_cosine_knows_no_length() -> None:
    import torch

    teacher = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(state_distance(0 * teacher, teacher, "mse"), torch.ones(2, 3))
    torch.testing.assert_close(state_distance(100 * teacher, 50 * teacher, "mse"), torch.ones(2, 3))
    torch.testing.assert_close(state_distance(9 * teacher, teacher, "cosine"), torch.zeros(2, 3), atol=1e-6, rtol=0)


def test_attention_divergence_is_that_of_distributions() -> None:
    import torch

    scores = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    later = torch.ones(5, 5).triu(1).bool()
    teacher, student = (torch.softmax((scale * scores).masked_fill(later, -torch.inf), dim=-1) for scale in (1.0, 0.5))
    found = attention_divergence(student, teacher)
    assert found.shape == (2, 5) and (found[:, 0] == 0).all() and (found[:, 1:] > 0).all()
    last = torch.nn.functional.kl_div(student[0, :, 4].log(), teacher[0, :, 4], reduction="sum") / 4
    torch.testing.assert_close(found[0, 4], last)
    assert not attention_divergence(teacher, teacher).any()


def test_shares_of_rows_add_up_over_a_step() -> None:
    import torch

    labels = torch.tensor([[IGNORED, 3, 4, IGNORED], [IGNORED, IGNORED, 5, IGNORED], [IGNORED] * 4])
    assert row_shares(labels).tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert row_shares(labels[:1], 3).tolist() == pytest.approx([2 / 3])


@pytest.mark.parametrize(
    ("rule", "sizes", "pairs"),
    [
        ("uniform", (3, 6), [(0, 1), (1, 3), (2, 5)]),
        ("uniform", (3, 4), [(0, 1), (1, 2), (2, 3)]),
        ("uniform", (4, 2), [(0, 0), (1, 0), (2, 1), (3, 1)]),
        ("last", (2, 6), [(0, 4), (1, 5)]),
        ("last", (6, 2), [(4, 0), (5, 1)]),
        ("first", (2, 6), [(0, 0), (1, 1)]),
    ],
)
def test_rules_of_layers(rule: Any, sizes: tuple[int, int], pairs: list[tuple[int, int]]) -> None:
    assert list(layer_pairs(rule, *sizes)) == pairs


def test_a_pruned_student_knows_what_it_kept(tmp_path: Path) -> None:
    teacher = build_model(num_hidden_layers=5)
    inputs = make_inputs(tmp_path, teacher=teacher)
    student = inputs.one("model").path
    drop_layers(teacher, [1, 3])
    save_model(teacher, build_tokenizer(), student)
    out, run = empty_run(tmp_path, "without")
    with pytest.raises(TechniqueError, match="no influence.csv"):
        Features(layers="kept", **QUICK)(inputs, out, run)
    write_influence(student / "influence.csv", [0.0] * 5, [1, 3])
    metrics = Features(layers="kept", **QUICK)(inputs, *empty_run(tmp_path))
    assert metrics["pairs"] == "0:0 1:2 2:4"
    write_influence(student / "influence.csv", [0.0] * 4, [1])
    with pytest.raises(TechniqueError, match="3 layers out of 4; the student has 3, the teacher 5"):
        Features(layers="kept", **QUICK)(inputs, *empty_run(tmp_path, "other"))


def test_states_come_nearer_and_the_artifact_is_a_plain_model(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, 14)
    out, run = empty_run(tmp_path)
    metrics = Features(**QUICK | {"epochs": 6, "hard_weight": 0})(inputs, out, run)
    curve = losses(out)
    assert curve[-1] < 0.5 * curve[0] and metrics["pairs"] == "0:1 1:2 2:4 3:5"
    model = load_model(out)
    assert set(model.state_dict()) == set(build_model().state_dict())
    assert not any(
        PROJECTIONS in name for name in (out / "model.safetensors").read_bytes()[:9000].decode("latin-1").split('"')
    )


def test_what_cannot_be_matched_is_refused(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, teacher=build_model(hidden_size=96, num_attention_heads=6))
    with pytest.raises(TechniqueError, match="4 attention heads, the teacher 6"):
        Features(attention_weight=1, **QUICK)(inputs, *empty_run(tmp_path, "heads"))
    with pytest.raises(TechniqueError, match=r"no such layers: \[\(0, 4\)\]"):
        Features(pairs=((0, 4),), **QUICK)(inputs, *empty_run(tmp_path, "pairs"))
    with pytest.raises(TechniqueError, match="twice"):
        Features(pairs=((0, 1), (0, 1)), **QUICK)(inputs, *empty_run(tmp_path, "twice"))
    save_model(build_model(vocab_size=300), build_tokenizer(300), inputs.one("teacher").path)
    with pytest.raises(ModelError, match="gold"):
        Features(**QUICK)(inputs, *empty_run(tmp_path, "tokens"))


def test_the_plan_knows_what_cannot_work() -> None:
    inputs = {"model": ("tuned",), "teacher": ("tuned",), "data": ("traces",)}
    upstream = {"tuned": Upstream(Features(), {})}
    problems = list(Features(hidden_weight=0, layers="kept").plan_problems("steps.s", inputs, upstream))
    assert [problem.where for problem in problems] == ["steps.s", "steps.s.layers"]
    assert not list(Features(pairs=((0, 0),), layers="kept").plan_problems("steps.s", inputs, upstream))


def test_projections_are_the_identity_or_keep_lengths() -> None:
    import torch

    assert torch.equal(projection(8, 8, 0).weight, torch.eye(8))
    up, down = projection(4, 8, 0).weight, projection(8, 4, 0).weight
    torch.testing.assert_close(up.T @ up, torch.eye(4))
    torch.testing.assert_close(down @ down.T, torch.eye(4))
    assert torch.equal(up, projection(4, 8, 0).weight) and not torch.equal(up, projection(4, 8, 1).weight)


def test_cut_short_and_gone_on_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The projections are no identity here, and they have moved: without them the curve would jump."""
    inputs = make_inputs(tmp_path, 14)
    technique = Features(**QUICK | {"epochs": 2, "validation": 0.2, "batch_size": 2, "accumulation": 2})
    expected, run = empty_run(tmp_path, "whole")
    technique(inputs, expected, run)
    out, run = interrupted(technique, inputs, tmp_path, monkeypatch, lambda trainer: trainer.state.global_step == 4)
    technique(inputs, out, run)
    assert (out / "loss.csv").read_text() == (expected / "loss.csv").read_text() and digest(out) == digest(expected)


RISING = {
    "epochs": 6,
    "learning_rate": 0.2,
    "schedule": "constant_with_warmup",
    "patience": 0,
    "distance": "cosine",
    "hidden_weight": 1.0,
}
CHANGES = TRAINING_CHANGES | {
    "patience": Change(1, RISING),
    "layers": Change("last"),
    "pairs": Change(((0, 2),)),
    "distance": Change("cosine"),
    "tokens": Change("answers"),
    "hard_weight": Change(0.1),
    "hidden_weight": Change(0.1),
    "attention_weight": Change(1.0),
    "teacher_dtype": Change("bfloat16"),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    teacher = build_model(seed=1)
    inputs = make_inputs(folder, rows=12, teacher=teacher, num_hidden_layers=2)
    yield Case(folder, inputs, {"epochs": 1, "batch_size": 2, "precision": "float32", "learning_rate": 3e-3})
