"""Predict labels and generate answers with one model, loaded once in its own process."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.evaluate.grading.replies import Reply
from tasks.evaluate.models_under_test.isolated_runs import Resources
from tasks.evaluate.models_under_test.label_choice import (
    LabelLayout,
    LabelMethod,
    choice_contexts,
    label_end,
    likeliest_choices,
    proven_choices,
    same_prompts,
    written_choices,
)
from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest, RowPrompts
from tasks.shared.engines.protocol import Choices, Opening, Session, check_room
from tasks.shared.engines.registry import ENGINES
from tasks.shared.model.generation import Written
from tasks.shared.model.weights import is_gguf, read_gguf

MORE_ROOM = "context: {} for a GGUF file; for a folder, a shorter prompt or a lower max_new_tokens"


@dataclass(frozen=True)
class GenerationPlan:
    """Prompts and settings of one model's generation run.

    labels: to choose from; empty skips the label choice.  labeled: answers start with a label line.
    max_new_tokens: length limit of an answer; 0 skips generation.
    batch_size: prompts generated together in transformers.  context: tokens of prompt and answer in llama.cpp.
    reversed_order: send prompts to llama.cpp in reverse, so that its prefix cache holds other prefixes.
    stop: strings that end an answer.
    choice: how a label is found; see label_choice.py.  layout: the label's place in an answer.
    reuse: read beginnings that prompts share once, and take labels from the answers' probabilities where these prove them.
    """

    prompts: Sequence[RowPrompts]
    labels: Sequence[str]
    labeled: bool
    max_new_tokens: int
    batch_size: int
    context: int
    reversed_order: bool = False
    stop: Sequence[str] = ()
    choice: LabelMethod = "likeliest"
    layout: LabelLayout = "first_line"
    reuse: bool = False


@dataclass(frozen=True)
class Predictions:
    """One model's replies, one per row, in the plan's order.

    label_method: how labels were chosen; empty for none.  reading: how prompts were read; empty for each as a whole.
    """

    replies: list[Reply]
    label_method: str = ""
    reading: str = ""


def generate_replies(model: ModelUnderTest, plan: GenerationPlan, resources: Resources) -> Predictions:
    """Run one model over a plan, with labels and answers as the plan asks for.

    Raises ModelError if the model cannot be loaded or run, its logits are not finite, or a prompt and its answer exceed its context.
    """
    opening = Opening(
        resources.threads,
        resources.device,
        plan.context,
        batch_size=plan.batch_size,
        reverse=plan.reversed_order,
        reuse=plan.reuse,
    )
    with ENGINES[model.engine].open(model.weights, opening) as session:
        return ask(session, plan)


def ask(session: Session, plan: GenerationPlan) -> Predictions:
    """Put a plan's prompts to an open model; see `generate_replies`."""
    written = _answers(session, plan)
    chosen = _labels(session, plan, written)
    replies = zip(chosen.labels, written, strict=True)
    return Predictions(
        [Reply(label, found.text, found.ended, plan.labeled) for label, found in replies],
        chosen.method,
        session.reading,
    )


def _answers(session: Session, plan: GenerationPlan) -> list[Written]:
    prompts = [session.render(question.answer_messages, question.tools) for question in plan.prompts]
    check_room(session, prompts, plan.max_new_tokens, MORE_ROOM)
    session.check(prompts[0])  # after the lengths: a pass over a prompt of 10^6 tokens would take hours
    if not plan.max_new_tokens:
        return [Written("", True)] * len(prompts)
    labels = known_labels(plan)
    if plan.reuse and labels and plan.choice == "likeliest" and all(map(same_prompts, plan.prompts)):
        end = label_end(session, plan.layout)
        return session.answer(prompts, plan.max_new_tokens, plan.stop, labels=labels, end=end)
    return session.answer(prompts, plan.max_new_tokens, plan.stop)


def known_labels(plan: GenerationPlan) -> list[str]:
    """Return the plan's labels without the empty one of rows that have none."""
    return [label for label in plan.labels if label]


def _labels(session: Session, plan: GenerationPlan, written: Sequence[Written]) -> Choices:
    labels = known_labels(plan)
    if not labels:
        return Choices([""] * len(written), None, "")
    if plan.choice == "written":
        return written_choices(written, labels, plan.layout)
    contexts = choice_contexts(session.render, plan.prompts, written)
    check_room(session, contexts, max(len(session.tokens(label)) for label in labels), MORE_ROOM)
    return likeliest_choices(session, contexts, labels, plan.layout, proven_choices(written))


def label_notes(results: Mapping[str, Predictions]) -> list[str]:
    """Return a note for each way in which labels were chosen, with the models."""
    names: dict[str, list[str]] = {}
    for name, found in results.items():
        names.setdefault(found.label_method, []).append(name)
    return [f"Labels of {', '.join(found)}: {method}." for method, found in names.items() if method]


def reading_notes(results: Mapping[str, Predictions]) -> list[str]:
    """Return a note for each way of reading prompts, with the models; none for one by one."""
    names: dict[str, list[str]] = {}
    for name, found in results.items():
        names.setdefault(found.reading, []).append(name)
    return [f"Prompts of {', '.join(found)}: {method}." for method, found in names.items() if method]


def template_notes(models: Sequence[ModelUnderTest]) -> list[str]:
    """Return a note for each model without a chat template, which is prompted in ChatML instead.

    Loading refuses a folder without a template whose vocabulary lacks ChatML's markup; llama.cpp refuses none.
    """
    untemplated = [model.name for model in models if not model.failure and not has_template(model.weights)]
    return [f"{name} has no chat template and is prompted in ChatML." for name in dict.fromkeys(untemplated)]


def has_template(weights: Path) -> bool:
    """Return True if a model folder or GGUF file has a chat template, or cannot be read."""
    if is_gguf(weights):
        return read_gguf(weights).get_field("tokenizer.chat_template") is not None
    config = weights / "tokenizer_config.json"
    if (weights / "chat_template.jinja").is_file() or not config.is_file():
        return True
    with contextlib.suppress(ValueError, AttributeError):  # not JSON, or not an object: loading it reports the error
        return bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
    return True
