"""Labels from answers, and what a label is scored after."""

from typing import Any

from tasks.evaluate.models_under_test.label_choice import choice_contexts, likeliest_choices, written_choices
from tasks.evaluate.models_under_test.model_under_test import reference_prompts, tuned_prompts
from tasks.shared.engines.transformers_engine import TransformersSession
from tasks.shared.formats.rows import Message
from tasks.shared.model.generation import Written
from tests.support_rows import TASKS, support_row
from tests.tiny_llama import build_model, build_tokenizer

LABELS = ["refund", "refund status", "other"]


def texts(*words: str) -> list[Written]:
    return [Written(text, True) for text in words]


def test_the_label_line_of_an_answer_is_its_label() -> None:
    written = texts(
        "refund\nYes.", "refund status \nNo.", "<think>\nother\n</think>\n\nother\nYes.", "Refund please", "refund", ""
    )
    assert written_choices(written, LABELS, "first_line").labels == [
        "refund",
        "refund status",
        "other",
        "",
        "refund",
        "",
    ]


def test_a_label_that_is_the_whole_answer_stands_alone() -> None:
    found = written_choices(texts("refund", "refund status", "refund\nYes.", "<think>x</think> other"), LABELS, "alone")
    assert (
        found.labels == ["refund", "refund status", "", "other"]
        and found.scores is None
        and "known label" in found.method
    )


def test_the_layout_decides_what_ends_a_label() -> None:
    session = TransformersSession(build_model(), build_tokenizer(), 8)
    prompts = [session.render([{"role": "user", "content": word}]) for word in ("a", "b c", "d")]
    for layout, end in (("first_line", "\n"), ("alone", "<|im_end|>")):
        scores = likeliest_choices(session, prompts, LABELS, layout).scores  # type: ignore[arg-type]
        assert scores == session.choose(prompts, LABELS, end).scores


def test_a_label_is_chosen_after_the_models_own_reasoning() -> None:
    turns = (Message(role="user", content="q"), Message(role="assistant", content="i\na"))
    row = support_row(id="a", intent="i", group="g", messages=turns)
    tuned, other = tuned_prompts([row])[0], reference_prompts([row], {}, TASKS)[0]
    words = texts("i\na", "<think>\nt\n</think>\n\ni\na", "<think>\nt", "<think>\nt\n</think>\na")

    def write(messages: Any, tools: str) -> str:
        return "P"

    told = choice_contexts(write, [tuned, tuned, tuned, other], words)
    assert told == ["P", "P<think>\nt\n</think>\n\n", "P", "P"]
