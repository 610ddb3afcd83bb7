"""Soft targets across tokenizers: nothing to learn from oneself, bytes that meet, parts that add up, a loss that falls, resumable."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tasks.distill.gold import Gold, OtherTokens
from tasks.distill.losses.universal import Side, UniversalLoss, answer_offsets
from tasks.shared.errors import ModelError, TechniqueError
from tasks.shared.model.encoding import IGNORED, Encoded, collate, encode
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.saving import save_model
from tasks.shared.technique import Artifact, Inputs, Kind
from tests.chat_templates import FOLDER
from tests.settings_case import Case, Change
from tests.tiny_llama import build_model, build_tokenizer, empty_run, save_tiny
from tests.training_changes import LORA_CHANGES, TRAINING_CHANGES
from tests.unit.tasks.distill import test_sft
from tests.unit.tasks.distill.test_features import one_thread  # noqa: F401 - a fixture
from tests.unit.tasks.distill.test_sft import TALKING, losses, make_rows
from tests.unit.tasks.distill.training.test_checkpoints import digest, interrupted

QUICK: dict[str, Any] = {
    "epochs": 1, "batch_size": 4, "precision": "float32", "validation": 0, "learning_rate": 3e-3
}  # fmt: skip
FEW = 290
"""Tokens of the teacher: bytes and a few merges, so that it cuts every word otherwise."""


def save_teacher(folder: Path, model: Any = None, vocabulary: int = FEW) -> Path:
    save_model(model or build_model(seed=1, vocab_size=vocabulary), build_tokenizer(vocabulary), folder, "float32")
    return folder


def make_inputs(folder: Path, rows: int = 24, teacher: Any = None, **overrides: Any) -> Inputs:
    inputs = test_sft.make_inputs(folder, rows, **overrides)
    place = save_teacher(folder / "teacher", teacher)
    return Inputs({**inputs.ports, "teacher": (Artifact("teacher", Kind.MODEL, place),)})


def prepared(tmp_path: Path, teacher: Path, student: Any, **settings: Any) -> tuple[OtherTokens, list[Encoded]]:
    """An objective with its teacher loaded, and its rows."""
    rows = make_rows(6)
    made = OtherTokens(Gold(**settings), save_tiny(tmp_path / "student"), teacher, rows)
    labeled = made.label(encode(rows, build_tokenizer(), 512))
    made.attach(student, "cpu")
    return made, labeled


@pytest.mark.parametrize("template", ["qwen3", "mistral"])
def test_text_that_a_template_puts_before_the_answer_is_not_compared(tmp_path: Path, template: str) -> None:
    teacher = save_teacher(tmp_path / "teacher")
    (teacher / "chat_template.jinja").write_text((FOLDER / f"{template}.jinja").read_text("utf-8"), "utf-8")
    rows = [row.model_copy(update={"messages": row.messages[1:]}) for row in make_rows(TALKING + 1)]
    made = OtherTokens(Gold(), save_tiny(tmp_path / "student"), teacher, rows)
    assert len(made.twins) == len(rows) + 1, "each turn of the assistant has a twin"
    tokenizer = load_tokenizer(teacher)
    answers = {message.content for row in rows for message in row.messages if message.role == "assistant"}
    for ids, twin in made.twins.items():
        mine = build_tokenizer().decode(ids[twin.starts[0] :])
        theirs = tokenizer.decode(twin.ids[twin.starts[1] :]).strip()
        assert theirs.removesuffix(tokenizer.eos_token) == mine.removesuffix("<|im_end|>") in answers
        assert twin.offsets[0][0][0] == twin.offsets[1][0][0] == 0 and twin.offsets[0][-1] == twin.offsets[1][-1]


@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("alignment", ["bytes", "positions"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    tmp_path: Path, alignment: str, hybrid: bool, caplog: pytest.LogCaptureFixture
) -> None:
    student = build_model()
    settings = {"alignment": alignment, "hybrid": hybrid, "hard_weight": 0}
    made, rows = prepared(tmp_path, save_tiny(tmp_path / "same"), student, **settings)
    assert "distill/logits compares them directly" in caplog.text
    loss = made.terms(student, collate(rows, 0), None)["soft"]
    loss.backward()
    assert abs(loss.item()) < 1e-6 and all(float(p.grad.abs().max()) < 1e-5 for p in student.parameters())
    other = build_model(seed=2)
    assert made.terms(other, collate(rows, 0), None)["soft"].item() > 0.01


def test_parts_of_a_step_add_up_and_padding_is_nothing(tmp_path: Path) -> None:
    student = build_model()
    made, rows = prepared(tmp_path, save_teacher(tmp_path / "teacher"), student)
    whole = made.terms(student, collate(rows, 0), None)
    other = made.terms(student, collate(rows, 9), None)
    count = sum(label != IGNORED for row in rows for label in row["labels"])
    parts = [made.terms(student, collate(rows[start : start + 2], 0), count) for start in (0, 2, 4)]
    for name in ("hard", "soft"):
        assert other[name].item() == whole[name].item() > 0
        assert sum(part[name].item() for part in parts) == pytest.approx(whole[name].item(), rel=1e-5)


def test_tokens_are_brought_together_by_their_bytes() -> None:
    """A sure teacher of bytes, and a student whose single token is those bytes: as sure, no distance; unsure, some."""
    import torch

    large, small = build_tokenizer(), build_tokenizer(FEW)
    text = " delivery"
    ids = [tokenizer(text)["input_ids"] for tokenizer in (large, small)]
    assert len(ids[0]) < len(ids[1])
    loss = UniversalLoss(large, small, "bytes", False, 1.0, "cpu")

    def side(tokenizer: Any, tokens: list[int], sure: float) -> Side:
        spoken = [*tokens, tokenizer.eos_token_id]
        offsets = torch.tensor([[0, 0], *answer_offsets(tokenizer, spoken, text)])
        logits = torch.nn.functional.one_hot(torch.tensor([*spoken, 0]), len(tokenizer)).float() * sure
        return Side(logits, torch.tensor([0, *spoken]), offsets)

    teacher = side(small, ids[1], 50.0)
    assert loss(side(large, ids[0], 50.0), teacher).item() == pytest.approx(0, abs=1e-5)
    unsure = loss(side(large, ids[0], 0.0), teacher).item()
    assert unsure == pytest.approx(2 * (1 - 1 / len(large)), rel=1e-2), "all mass is elsewhere"


def test_offsets_are_of_bytes_and_the_end_of_turn_stands_at_the_end() -> None:
    tokenizer = build_tokenizer(FEW)
    text = "Kettle: 3.95 €, naïve 🙂"
    ids = tokenizer(text + "<|im_end|>")["input_ids"]
    offsets = answer_offsets(tokenizer, ids, text)
    size = len(text.encode())
    assert len(offsets) == len(ids) and offsets[-1] == [size, size] and offsets[-2][1] == size
    assert offsets[0][0] == 0 and all(
        before[1] == after[0] for before, after in zip(offsets, offsets[1:], strict=False)
    )
    with pytest.raises(ModelError, match="alignment=positions"):
        answer_offsets(tokenizer, ids[1:], text)


def test_a_tokenizer_that_is_not_of_bytes_is_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"kettle": 0, "?": 1}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="byte-level"):
        answer_offsets(PreTrainedTokenizerFast(tokenizer_object=core), [0], "kettle")


def test_the_loss_falls_and_the_artifact_is_a_plain_model(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, 14)
    out, run = empty_run(tmp_path)
    Gold(**QUICK | {"epochs": 5, "hard_weight": 0})(inputs, out, run)
    curve = losses(out)
    assert curve[-1] < 0.8 * curve[0]
    assert set(load_model(out).state_dict()) == set(build_model().state_dict())


def test_cut_short_and_gone_on_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(tmp_path, 14)
    technique = Gold(**QUICK | {"epochs": 2, "validation": 0.2, "batch_size": 2, "accumulation": 2})
    expected, run = empty_run(tmp_path, "whole")
    technique(inputs, expected, run)
    out, run = interrupted(technique, inputs, tmp_path, monkeypatch, lambda trainer: trainer.state.global_step == 4)
    technique(inputs, out, run)
    assert (out / "loss.csv").read_text() == (expected / "loss.csv").read_text() and digest(out) == digest(expected)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, teacher=build_model(seed=1, vocab_size=FEW, max_position_embeddings=40))
    with pytest.raises(TechniqueError, match=r"takes \d+ of its tokens, it has 40 positions"):
        Gold(**QUICK)(inputs, *empty_run(tmp_path, "long"))
    build_model(vocab_size=FEW - 10).save_pretrained(inputs.one("teacher").path)
    with pytest.raises(ModelError, match="10 tokens have no row in the embedding of 280 rows"):
        Gold(**QUICK)(inputs, *empty_run(tmp_path, "head"))


def test_vocabularies_without_a_common_token_are_refused() -> None:
    class Foreign:
        def get_vocab(self) -> dict[str, int]:
            return {"▁kettle": 0}

    with pytest.raises(TechniqueError, match="hybrid=false"):
        UniversalLoss(build_tokenizer(), Foreign(), "positions", True, 1.0, "cpu")  # type: ignore[arg-type]


def test_the_plan_knows_a_teacher_without_a_say() -> None:
    assert [problem.where for problem in Gold(soft_weight=0).plan_problems("steps.s", {}, {})] == [
        "steps.s.soft_weight"
    ]
    assert not list(Gold().plan_problems("steps.s", {}, {}))


RISING = {"epochs": 6, "learning_rate": 0.05, "schedule": "constant_with_warmup", "patience": 0, "soft_weight": 0.1}
CHANGES = (
    TRAINING_CHANGES
    | LORA_CHANGES
    | {
        "patience": Change(1, RISING),
        "hard_weight": Change(0.1),
        "soft_weight": Change(0.1),
        "temperature": Change(3.0),
        "alignment": Change("positions"),
        "hybrid": Change(False),
        "teacher_dtype": Change("bfloat16"),
    }
)


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    teacher = build_model(seed=1, vocab_size=FEW, num_hidden_layers=2)
    inputs = make_inputs(folder, rows=12, teacher=teacher, num_hidden_layers=2)
    yield Case(folder, inputs, {"epochs": 1, "batch_size": 2, "precision": "float32", "learning_rate": 3e-3})
