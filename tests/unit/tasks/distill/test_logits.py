"""Soft-target distillation, teacher in memory and stored: the same training, from either."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from tasks.distill.logits import Logits, OnlineTargets, StoredTargets
from tasks.distill.losses.mixed import Blend
from tasks.logits.topk import TopK
from tasks.shared.errors import DataError, ModelError
from tasks.shared.formats.rows import read_rows, write_rows
from tasks.shared.formats.soft_targets import SoftTargets
from tasks.shared.model.encoding import IGNORED, collate, encode
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.saving import save_model
from tasks.shared.technique import Artifact, Inputs, Kind, Upstream
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, build_tokenizer, empty_run, save_tiny
from tests.training_changes import LORA_CHANGES, TRAINING_CHANGES
from tests.unit.tasks.distill.test_sft import make_rows

BASE: dict[str, Any] = {"epochs": 1, "batch_size": 4, "precision": "float32", "learning_rate": 3e-3, "validation": 0.0}
K = 500
"""Of 512 tokens: nearly all of the mass of a random teacher, which is flat."""


def make_inputs(folder: Path, rows: int = 24, k: int = K, **overrides: Any) -> Inputs:
    """A student, a teacher with other weights, data, and stored targets of that teacher."""
    data = folder / "data"
    data.mkdir()
    write_rows(data / "train.jsonl", make_rows(rows))
    student = save_tiny(folder / "student", build_model(0, **overrides))
    teacher = save_tiny(folder / "teacher", build_model(1, **overrides))
    out, run = empty_run(folder, "targets")
    given = {
        "teacher": (Artifact("teacher", Kind.MODEL, teacher),),
        "data": (Artifact("traces", Kind.TRACES, data),),
    }
    TopK(k=k, temperatures=(1.0, 2.0))(Inputs(given), out, run)
    return Inputs(
        {**given, "model": (Artifact("m", Kind.MODEL, student),), "targets": (Artifact("t", Kind.LOGITS, out),)}
    )


def choose(inputs: Inputs, port: str) -> Inputs:
    """The same without the other source of targets."""
    other = {"teacher": "targets", "targets": "teacher"}[port]
    return Inputs({name: items for name, items in inputs.ports.items() if name != other})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def curve(out: Path) -> list[dict[str, float]]:
    with (out / "loss.csv").open() as stream:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]


def batch_of(inputs: Inputs, objective: Any, count: int = 3) -> dict[str, torch.Tensor]:
    tokenizer = load_tokenizer(inputs.one("model").path)
    rows = encode(read_rows(inputs.one("data").path / "train.jsonl")[:count], tokenizer, 512)
    return collate(objective.label(rows), tokenizer.pad_token_id)


@pytest.mark.parametrize("port", ["teacher", "targets"])
def test_the_loss_is_that_of_the_models_own_logits(inputs: Inputs, port: str) -> None:
    """Padding and prompts do not count, by a second way to the same number."""
    student = load_model(inputs.one("model").path)
    blend = Blend(0.4, 2.0, "forward_kl", 0.5)
    objective: Any
    if port == "teacher":
        objective = OnlineTargets(inputs.one("teacher").path, inputs.one("model").path, blend, "float32")
    else:
        objective = StoredTargets(SoftTargets(inputs.one("targets").path), inputs.one("model").path, blend)
    objective.attach(student, "cpu")
    batch = batch_of(inputs, objective)
    terms = objective.terms(student, batch, None)
    teacher = load_model(inputs.one("teacher").path)
    mask = batch["labels"][:, 1:] != IGNORED
    logits, expected = (
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][mask]
        for model in (student, teacher)
    )
    hard = cross_entropy(logits, batch["labels"][:, 1:][mask])
    soft = kl_div(log_softmax(logits / 2, -1), log_softmax(expected / 2, -1), reduction="batchmean", log_target=True)
    torch.testing.assert_close(terms["hard"], 0.6 * hard)
    near = {"teacher": {}, "targets": {"rtol": 0.03, "atol": 0.0}}[port]  # the tail is merged
    torch.testing.assert_close(terms["soft"], 0.4 * 4 * soft, **near)


def test_a_student_that_is_its_teacher_stays(inputs: Inputs, tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    same = Inputs({**choose(inputs, "teacher").ports, "teacher": inputs.ports["model"]})
    settings = {"alpha": 1.0, "weight_decay": 0.0, "learning_rate": 1e-6}
    metrics = Logits(**BASE | settings)(same, out, run)
    assert float(metrics["train_loss"]) == pytest.approx(0, abs=1e-5)
    before, after = (load_model(path).state_dict() for path in (inputs.one("model").path, out))
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight.bfloat16().float(), atol=0.02, rtol=0.0)


@pytest.mark.parametrize("port", ["teacher", "targets"])
def test_both_terms_fall_and_are_told_with_their_gradients(inputs: Inputs, tmp_path: Path, port: str) -> None:
    out, run = empty_run(tmp_path)
    settings = {"epochs": 8, "validation": 0.1, "patience": 0, "alpha": 0.9}
    metrics = Logits(**BASE | settings)(choose(inputs, port), out, run)
    told = [row for row in curve(out) if "soft_loss" in row]
    assert told[-1]["soft_loss"] < 0.7 * told[0]["soft_loss"] and told[-1]["hard_loss"] < told[0]["hard_loss"]
    for row in told:
        assert row["soft_loss"] + row["hard_loss"] == pytest.approx(row["train_loss"], rel=1e-3)
    norms = [row for row in told if "soft_gradient" in row]
    assert len(norms) == 8 and all(row["soft_gradient"] > 0 and row["hard_gradient"] > 0 for row in norms)
    assert "negligible_terms" not in metrics and float(metrics["validation_loss"]) > 0


def test_stored_targets_train_nearly_the_same_student(inputs: Inputs, tmp_path: Path) -> None:
    made = []
    for port in ("teacher", "targets"):
        out, run = empty_run(tmp_path, port)
        made.append(float(Logits(**BASE | {"epochs": 3})(choose(inputs, port), out, run)["train_loss"]))
    assert made[1] == pytest.approx(made[0], rel=0.03)


def test_a_term_without_a_say_is_told(inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out, run = empty_run(tmp_path)
    metrics = Logits(**BASE, alpha=1e-4)(choose(inputs, "targets"), out, run)
    assert metrics["negligible_terms"] == "soft"
    assert "the soft term is negligible" in caplog.text and "alpha and temperature" in caplog.text


def test_small_batches_add_up_to_a_large_one(inputs: Inputs, tmp_path: Path) -> None:
    """Accumulation divides by the tokens of the whole step, not of each part."""
    made = []
    for name, settings in {"large": {"batch_size": 8}, "small": {"batch_size": 2, "accumulation": 4}}.items():
        out, run = empty_run(tmp_path, name)
        Logits(**BASE | settings)(choose(inputs, "targets"), out, run)
        made.append(curve(out))
    assert [row["step"] for row in made[0]] == [row["step"] for row in made[1]]
    for large, small in zip(*made, strict=True):
        assert small["train_loss"] == pytest.approx(large["train_loss"], rel=1e-3)


def test_a_conversation_that_the_teacher_never_saw_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = make_rows(24)
    other = rows[3].model_copy(update={"messages": (*rows[3].messages[:-1], rows[4].messages[-1])})
    write_rows(data / "train.jsonl", [*rows[:3], other, *rows[4:]])
    ports = {**choose(inputs, "targets").ports, "data": (Artifact("traces", Kind.TRACES, data),)}
    with pytest.raises(DataError, match="1 of 24 conversations"):
        Logits(**BASE)(Inputs(ports), *empty_run(tmp_path))


def test_a_student_without_the_padding_of_its_teachers_head(inputs: Inputs, tmp_path: Path) -> None:
    """Random rows of padding are among the teacher's likeliest here; the student has no such rows."""
    tokens = len(load_tokenizer(inputs.one("teacher").path))
    assert tokens < 512, "the tiny model's head is padded"
    student = save_tiny(tmp_path / "student", build_model(2, vocab_size=tokens))
    for port in ("teacher", "targets"):
        ports = {**choose(inputs, port).ports, "model": (Artifact("m", Kind.MODEL, student),)}
        metrics = Logits(**BASE)(Inputs(ports), *empty_run(tmp_path, port))
        assert "rows_without_targets" not in metrics


def test_a_teacher_of_another_tokenizer_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(300)
    save_model(build_model(vocab_size=300), tokenizer, tmp_path / "teacher", "float32")
    small = {**choose(inputs, "teacher").ports, "teacher": (Artifact("t", Kind.MODEL, tmp_path / "teacher"),)}
    with pytest.raises(ModelError, match="gold"):
        Logits(**BASE)(Inputs(small), *empty_run(tmp_path))


def problems(technique: Logits, upstream: dict[str, Upstream], **inputs: str) -> list[str]:
    named = {port: (name,) for port, name in inputs.items()}
    return [str(problem) for problem in technique.plan_problems("steps.student", named, upstream)]


def test_a_recipe_is_told_what_does_not_fit_before_it_runs() -> None:
    targets = Upstream(TopK(temperatures=(1.0, 4.0)), {"teacher": ("models.teacher",), "data": ("traces",)})
    upstream = {"targets": targets}
    assert problems(Logits(temperature=4.0), upstream, model="m", data="traces", targets="targets") == []
    assert "neither" in problems(Logits(), {}, model="m", data="traces")[0]
    assert "teacher and targets" in problems(Logits(), {}, model="m", data="traces", teacher="t", targets="u")[0]
    (wrong,) = problems(Logits(temperature=2.0), upstream, model="m", data="traces", targets="targets")
    assert "steps.targets.temperatures=[1,4,2]" in wrong
    assert (
        "the same data" in problems(Logits(temperature=4.0), upstream, model="m", data="corpus", targets="targets")[0]
    )


CHANGES = {
    "alpha": Change(0.9),
    "temperature": Change(1.0),
    "divergence": Change("jsd"),
    "mix": Change(0.1, {"divergence": "jsd"}),
    "teacher_dtype": Change("bfloat16", inputs="online"),
    **TRAINING_CHANGES,
    "turns": Change("last", inputs="online"),
    "patience": Change(1, {"epochs": 6, "learning_rate": 0.2, "schedule": "constant_with_warmup", "patience": 0}),
    **LORA_CHANGES,
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    inputs = make_inputs(folder, rows=12, k=16, num_hidden_layers=2)
    settings = BASE | {"batch_size": 2, "validation": 0.08}
    yield Case(folder, choose(inputs, "targets"), settings, more={"online": choose(inputs, "teacher")})


@pytest.mark.parametrize("k", [8, K])
def test_targets_that_are_mostly_tail_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture, k: int) -> None:
    inputs = make_inputs(tmp_path, rows=8, k=k)
    out, run = empty_run(tmp_path)
    metrics = Logits(**BASE, temperature=2.0)(choose(inputs, "targets"), out, run)
    mostly = k == 8  # a random teacher expects each of 512 tokens about alike
    assert (float(metrics["tail"]) > 0.9) is mostly
    assert (f"mass is outside its {k} stored tokens" in caplog.text) is mostly
