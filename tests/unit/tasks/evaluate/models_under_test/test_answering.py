"""Answers and labels of one model by a plan, in any engine."""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.evaluate.models_under_test import answering
from tasks.evaluate.models_under_test.answering import (
    GenerationPlan,
    Predictions,
    generate_replies,
    label_notes,
    reading_notes,
)
from tasks.evaluate.models_under_test.isolated_runs import Resources
from tasks.evaluate.models_under_test.label_choice import PROVEN, proven_choices
from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest, tuned_prompts
from tasks.shared.engines.protocol import Choices, Opening
from tasks.shared.errors import ModelError
from tasks.shared.formats.rows import Message
from tasks.shared.model.generation import Written
from tests.support_rows import support_row

ROWS = [
    support_row(
        id=f"r{index}", intent="i", group=f"g{index}",
        messages=(Message(role="user", content="word " * index), Message(role="assistant", content="i\na")),
    )
    for index in (3, 30)
]  # fmt: skip
PLAN = GenerationPlan(tuned_prompts(ROWS), ["i", "j"], True, 8, 4, 64)


class Session:
    """Session with one token per word, which writes "j" and chooses "i"."""

    url, context, reading = "", 64, ""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def render(self, messages: Sequence[Any], tools: str = "") -> str:
        return str(messages[-1]["content"])

    def tokens(self, text: str) -> list[int]:
        return [0] * len(text.split())

    def check(self, prompt: str) -> None:
        self.calls.append(("check", prompt))

    def answer(
        self, prompts: Sequence[str], limit: int, stop: Sequence[str] = (), labels: Sequence[str] = (), end: str = ""
    ) -> list[Written]:
        self.calls.append(("answer", limit, stop, *labels))
        proven = ["j", ""] if labels else ["", ""]
        return [Written("j\nYes.", True, label) for label in proven]

    def choose(self, prompts: Sequence[str], labels: Sequence[str], end: str) -> Choices:
        self.calls.append(("choose", tuple(labels), end))
        return Choices(["i"] * len(prompts), None, "by toss")


def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plan: GenerationPlan
) -> tuple[Predictions, Session, list[Opening]]:
    session, openings = Session(), []

    class Engine:
        @contextmanager
        def open(self, weights: Path, opening: Opening) -> Any:
            openings.append(opening)
            yield session

    monkeypatch.setattr(answering, "ENGINES", {"llama.cpp": Engine()})
    model = ModelUnderTest("m", "candidate", "engine", tmp_path, "llama.cpp", "")
    return generate_replies(model, plan, Resources(tmp_path, 2, "cpu")), session, openings


def test_a_plan_is_run_in_the_model_s_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, session, openings = run(monkeypatch, tmp_path, replace(PLAN, stop=("\n\n",), reversed_order=True))
    assert [(reply.choice, reply.output) for reply in found.replies] == [("i", "j\nYes.")] * 2
    assert [call[0] for call in session.calls] == ["check", "answer", "choose"]
    assert session.calls[1:] == [("answer", 8, ("\n\n",)), ("choose", ("i", "j"), "\n")]
    assert openings == [Opening(2, "cpu", 64, batch_size=4, reverse=True)]
    assert label_notes({"m": found, "n": found, "o": Predictions([])}) == ["Labels of m, n: by toss."]


def test_rows_whose_answer_proves_their_label_are_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found, session, openings = run(monkeypatch, tmp_path, replace(PLAN, reuse=True))
    assert [reply.choice for reply in found.replies] == ["j", "i"] and openings[0].reuse
    assert session.calls[1:] == [("answer", 8, (), "i", "j"), ("choose", ("i", "j"), "\n")]
    assert found.label_method == f"{PROVEN}; where these do not decide, by toss"
    monkeypatch.setattr(Session, "reading", "backwards")
    found, session, _ = run(monkeypatch, tmp_path, replace(PLAN, reuse=True, choice="written"))
    assert session.calls[1:] == [("answer", 8, ())] and reading_notes({"m": found}) == ["Prompts of m: backwards."]


def test_labels_after_reasoning_and_of_other_prompts_are_not_taken_from_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert proven_choices([Written("<think>a</think>j", True, "j"), Written("j", True, "j")]) == ["", "j"]
    prompts = [replace(prompt, label_messages=[{"role": "user", "content": "?"}]) for prompt in PLAN.prompts]
    _, session, _ = run(monkeypatch, tmp_path, replace(PLAN, reuse=True, prompts=prompts))
    assert session.calls[1:] == [("answer", 8, ()), ("choose", ("i", "j"), "\n")]


def test_a_written_label_takes_no_second_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, session, _ = run(monkeypatch, tmp_path, replace(PLAN, choice="written"))
    assert [reply.choice for reply in found.replies] == ["j", "j"]
    assert [call[0] for call in session.calls] == ["check", "answer"]


@pytest.mark.parametrize("labels", [[], [""]])
def test_what_is_not_wanted_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, labels: list[str]) -> None:
    """A corpus whose rows have no label has an empty one."""
    found, session, _ = run(monkeypatch, tmp_path, replace(PLAN, labels=labels, max_new_tokens=0))
    assert [(reply.choice, reply.output) for reply in found.replies] == [("", "")] * 2
    assert [call[0] for call in session.calls] == ["check"] and found.label_method == ""


def test_a_prompt_that_the_context_would_cut_is_refused_with_the_number_that_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(
        ModelError, match=r"context: 64 tokens, .*needs 72\n.*at least 72\n.*context: 72 for a GGUF file"
    ):
        run(monkeypatch, tmp_path, replace(PLAN, max_new_tokens=40))
    long = replace(PLAN, max_new_tokens=0, labels=["i", "so many words " * 12])
    with pytest.raises(ModelError, match="needs 68"):
        run(monkeypatch, tmp_path, long)


def test_a_prompt_beyond_the_context_is_refused_before_any_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Session, "check", lambda *_: pytest.fail("a pass over a prompt that is too long"))
    with pytest.raises(ModelError, match="the longest prompt with its answer needs"):
        run(monkeypatch, tmp_path, replace(PLAN, max_new_tokens=60))
