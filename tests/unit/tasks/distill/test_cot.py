"""Reasoning: both terms add up to fine-tuning on both, marks stand where the reasoning ends, the two tasks stay one row each."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tasks.distill.cot import RATIONALE, CoT, Rationales, joint_rows, two_rows
from tasks.distill.training.objective import Answers
from tasks.distill.training.validation import split_groups
from tasks.shared.errors import DataError
from tasks.shared.formats.rows import Message, Row, write_rows
from tasks.shared.model.encoding import IGNORED, collate
from tasks.shared.model.turns import examples
from tasks.shared.technique import Artifact, Inputs, Kind
from tasks.shared.text.answer_format import split_answer
from tests.chat_templates import FAMILIES, tokenizer_of
from tests.settings_case import Case, Change
from tests.support_rows import support_row
from tests.tiny_llama import build_model, build_tokenizer, empty_run, save_tiny, sentences
from tests.training_changes import OPTION_CHANGES, TRAINING_CHANGES
from tests.unit.tasks.distill.test_sft import TALKING

RATIONAL = "The article is: kettle warranty.\nSo 24 months."


EARLIER = (Message(role="user", content="It drips."), Message(role="assistant", content="Since when?"))


def reasoned(count: int = 12) -> list[Row]:
    """Every second row has its reasoning, every third one is gold."""
    return [
        support_row(
            id=f"r{index}", kind="faq", intent="returns", group=f"g{index // 2}", source="teacher" if index % 3 else "gold",
            reasoning=RATIONAL if index % 2 else "",
            messages=(
                *(EARLIER if index == TALKING else ()),
                Message(role="user", content=ask), Message(role="assistant", content=f"returns\n{ask}"),
            ),
        )
        for index, ask in enumerate(sentences(count, seed=5))
    ]  # fmt: skip


def spoken(one: dict[str, Any], which: int) -> str:
    pairs = zip(one["labels"], one["rationale"], strict=True)
    return str(build_tokenizer().decode([label for label, part in pairs if label != IGNORED and part == which]))


def test_a_joint_target_is_marked_up_to_its_answer() -> None:
    plain, thought = joint_rows(reasoned(2))
    assert split_answer(thought.answer) == split_answer(reasoned(2)[1].answer), "graders find the same answer"
    first, second = Rationales(1.0).encode([plain, thought], build_tokenizer(), 512)
    assert spoken(second, 1) == f"<think>\n{RATIONAL}\n</think>\n\n"
    assert spoken(second, 0) == f"{reasoned(2)[1].answer}<|im_end|>"
    assert not any(first["rationale"]) and spoken(first, 0) == f"{plain.answer}<|im_end|>"


def test_reasoning_is_marked_after_whatever_the_template_puts_before_it() -> None:
    (row,) = joint_rows(reasoned(2)[1:])
    tokenizer = tokenizer_of(next(family for family in FAMILIES if family.name == "deepseek_r1"))
    (one,) = Rationales(1.0).encode([row], tokenizer, 512)
    pairs = list(zip(one["labels"], one["rationale"], strict=True))
    thought, answer = (
        tokenizer.decode([label for label, part in pairs if label != IGNORED and part == which]) for which in (1, 0)
    )
    assert thought == f"{RATIONAL}\n</think>\n\n", "the prompt opens the thought"
    assert answer == f"{reasoned(2)[1].answer}<|end_of_sentence|>"


def test_earlier_turns_are_learned_once() -> None:
    tokenizer = build_tokenizer()
    rows = examples(two_rows([reasoned()[TALKING]], "Explain."), tokenizer, "all", apart=True)
    ids = [row.id for row in rows]
    assert ids == [f"r{TALKING}#turn1", f"r{TALKING}", f"r{TALKING}{RATIONALE}"]
    marks = Rationales(1.0).encode(rows, tokenizer, 512)
    assert [any(one["rationale"]) for one in marks] == [False, False, True]


def test_two_tasks_are_told_apart_by_the_instruction_and_stay_on_one_side() -> None:
    rows = two_rows(reasoned(), "Explain.")
    assert [row for row in rows if not row.id.endswith(RATIONALE)] == reasoned(), (
        "whoever wants the answer is asked as ever"
    )
    explaining = [row for row in rows if row.id.endswith(RATIONALE)]
    assert len(explaining) == 6
    for row in explaining:
        assert row.prompt[-1]["content"].endswith("\n\nExplain.") and row.answer == RATIONAL
    one = Rationales(1.0).encode(explaining[:1], build_tokenizer(), 512)[0]
    assert spoken(one, 1) == f"{RATIONAL}<|im_end|>" and spoken(one, 0) == ""
    training, validation = split_groups(rows, 0.4, seed=0)
    assert validation and not {row.group for row in training} & {row.group for row in validation}


@pytest.mark.parametrize("tasks", ["joint", "two"])
def test_at_weight_one_the_terms_add_up_to_plain_fine_tuning(tasks: str) -> None:
    import torch

    rows = joint_rows(reasoned(4)) if tasks == "joint" else two_rows(reasoned(4), "Explain.")
    encoded = Rationales(1.0).encode(rows, build_tokenizer(), 512)
    batch, model = collate(encoded, 0), build_model()
    terms, whole = Rationales(1.0).terms(model, batch, None), Answers().terms(model, batch, None)
    torch.testing.assert_close(terms["answer"] + terms["rationale"], whole["hard"])
    heavier = Rationales(2.5).terms(model, batch, None)
    torch.testing.assert_close(heavier["rationale"], 2.5 * terms["rationale"])
    torch.testing.assert_close(heavier["answer"], terms["answer"])
    count = int((batch["labels"][:, 1:] != IGNORED).sum())
    halves = [Rationales(2.5).terms(model, collate(part, 0), count) for part in (encoded[:2], encoded[2:])]
    for name, value in heavier.items():
        torch.testing.assert_close(halves[0][name] + halves[1][name], value, msg="parts of a batch add up")


def test_the_terms_part_at_every_token() -> None:
    """An answer's token is in the answer's gradient alone: without its reasoning a row gives the rationale term nothing."""
    batch, model = (
        collate(Rationales(1.0).encode(joint_rows(reasoned(2))[:1], build_tokenizer(), 512), 0),
        build_model(),
    )
    terms = Rationales(1.0).terms(model, batch, None)
    assert terms["rationale"].item() == 0 and terms["answer"].item() > 0


def test_marks_within_a_reasoning_do_not_end_it() -> None:
    row = reasoned(2)[1].model_copy(update={"reasoning": "<think>One.</think> Two."})
    assert split_answer(joint_rows([row])[0].answer) == split_answer(row.answer)


def test_training_tells_both_terms(tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    metrics = CoT(epochs=2, batch_size=4, precision="float32", learning_rate=3e-3, tasks="two")(
        make_inputs(tmp_path), out, run
    )
    assert (metrics["with_reasoning"], metrics["without_reasoning"]) == (6, 6)
    assert int(metrics["answer_tokens"]) > 0 and int(metrics["reasoning_tokens"]) > 0
    with (out / "loss.csv").open() as stream:
        told = [row for row in csv.DictReader(stream) if row["train_loss"]]
    for row in told:
        assert float(row["answer_loss"]) + float(row["rationale_loss"]) == pytest.approx(
            float(row["train_loss"]), abs=2e-4
        )


def test_rows_that_bring_no_reasoning_are_refused(tmp_path: Path) -> None:
    inputs = make_inputs(
        tmp_path, [row.with_answer(row.messages[-1].model_copy(update={"reasoning": " "})) for row in reasoned()]
    )
    with pytest.raises(DataError, match="none of 12 rows"):
        CoT()(inputs, *empty_run(tmp_path))


def make_inputs(folder: Path, rows: list[Row] | None = None, layers: int = 1) -> Inputs:
    traces = folder / "traces"
    traces.mkdir()
    write_rows(traces / "train.jsonl", rows or reasoned())
    model = save_tiny(folder / "model", build_model(num_hidden_layers=layers))
    return Inputs({"model": (Artifact("m", Kind.MODEL, model),), "data": (Artifact("d", Kind.TRACES, traces),)})


CHANGES = {
    **TRAINING_CHANGES,
    **OPTION_CHANGES,
    "tasks": Change("two"),
    "rationale_weight": Change(2.0),
    "instruction": Change("Why?", {"tasks": "two"}),
    "without_reasoning": Change("drop"),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    inputs = make_inputs(folder, layers=2)
    yield Case(folder, inputs, {"epochs": 1, "batch_size": 2, "precision": "float32", "learning_rate": 3e-3})
