"""Tools of a row: in the prompt of every engine and of every step that renders one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.evaluate.likelihood import next_token_divergence, sliding
from tasks.evaluate.likelihood.documents import answer_documents
from tasks.evaluate.likelihood.next_token_divergence import (
    AnswerPlan,
    DivergencePlan,
    choose_answers,
    measure_divergence,
)
from tasks.evaluate.likelihood.sliding import PerplexityPlan, score_documents
from tasks.evaluate.models_under_test import answering
from tasks.evaluate.models_under_test.answering import GenerationPlan, generate_replies
from tasks.evaluate.models_under_test.isolated_runs import Resources
from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest, Prompt, inspect_model, tuned_prompts
from tasks.evaluate.timing.engines import Effort, Probe, take_sample
from tasks.export import parity
from tasks.export.gguf import Gguf
from tasks.shared.engines.registry import ENGINES
from tasks.shared.formats.rows import write_rows
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.model.loading import load_tokenizer
from tasks.shared.model.saving import save_model
from tasks.shared.model.template_edits import CHATML
from tasks.shared.technique import Artifact, Kind
from tests.tiny_llama import build_model, build_tokenizer, empty_run, inputs_of, make_row

NAME = "find_order"
TOOLS = f'[{{"type": "function", "function": {{"name": "{NAME}", "description": "Find.", "parameters": {{"type": "object"}}}}}}]'
"""With a description, which llama.cpp would add, empty, to a tool without one."""
ROW = make_row([("user", "Where is 4417?"), ("assistant", "On its way.")], tools=TOOLS)
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
    + CHATML
)
RESOURCES = Resources(Path(), 1, "cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelUnderTest]:
    """One model, as a folder and as a GGUF file."""
    folder = tmp_path_factory.mktemp("tools")
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    save_model(build_model(), tokenizer, folder / "model", "float32")
    write_gguf(folder / "model", folder / "model.gguf", "f16")
    return {
        "transformers": inspect_model(Artifact("folder", Kind.MODEL, folder / "model"), "baseline"),
        "llama.cpp": inspect_model(Artifact("file", Kind.ENGINE, folder / "model.gguf"), "candidate"),
    }


def recorder(seen: list[str], tokenizer: Any, genuine: Callable[..., Any]) -> Callable[..., Any]:
    """`next_logits` that also keeps the text that a model reads."""

    def next_logits(model: Any, ids: Any, *more: Any) -> Any:
        seen.append(tokenizer.decode(ids))
        return genuine(model, ids, *more)

    return next_logits


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_generation_and_label_choice_render_tools(
    models: dict[str, ModelUnderTest], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rooms = models[engine], list[list[str]]()
    monkeypatch.setattr(answering, "check_room", lambda session, prompts, *more: rooms.append(list(prompts)))
    plan = GenerationPlan(tuned_prompts([ROW]), ["a", "b"], True, 2, 1, 1024)
    generate_replies(model, plan, RESOURCES)
    answers, labels = rooms
    assert NAME in answers[0] and NAME in labels[0]
    assert model.engine == engine and engine in ENGINES


def test_likelihoods_are_those_after_the_tools(
    models: dict[str, ModelUnderTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = models["transformers"], list[str]()
    tokenizer = load_tokenizer(model.weights)
    for module in (next_token_divergence, sliding):
        monkeypatch.setattr(module, "next_logits", recorder(seen, tokenizer, module.next_logits))
    prompts = [Prompt.of(ROW)]
    for answers in ([ROW.answer], []):
        found = choose_answers(model, AnswerPlan(prompts, answers, 2, "float32"), RESOURCES)
    measure_divergence(model, DivergencePlan(prompts, found.answers, "float32", "", model), RESOURCES)
    (document,) = answer_documents([ROW], {ROW.id: {}})
    plan = PerplexityPlan([document.text], [Prompt(document.prompt, document.tools)], 1024, 512, "float32")
    score_documents(model, plan, RESOURCES)
    assert len(seen) == 5 and all(NAME in text for text in seen)


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_timing_reads_the_tools(models: dict[str, ModelUnderTest], engine: str) -> None:
    model = models[engine]
    effort = Effort(2, 1, (), 1024, 120, "off", "", 1, "cpu")
    bare, full = (
        take_sample(Probe("m", model.engine, model.weights, "", prompt), effort)["prompt_tokens"]
        for prompt in (Prompt(ROW.prompt), Prompt.of(ROW))
    )
    assert full > bare + 20, "tokens of the tool's schema"


def test_parity_is_measured_after_the_tools(
    models: dict[str, ModelUnderTest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "corpus").mkdir()
    write_rows(tmp_path / "corpus/calibration.jsonl", [ROW])
    seen, genuine = list[str](), parity.check_tokenizer

    def check_tokenizer(session: Any, tokenizer: Any, texts: Any, where: str) -> None:
        seen.extend([*texts, session.render(ROW.prompt, ROW.tools)])
        genuine(session, tokenizer, texts, where)

    monkeypatch.setattr(parity, "check_tokenizer", check_tokenizer)
    out, run = empty_run(tmp_path)
    settings: dict[str, Any] = {"scheme": "f16", "embedding": "f16", "tokens": 1, "importance_rows": 0}
    Gguf(**settings)(inputs_of(models["transformers"].weights, tmp_path / "corpus"), out, run)
    prompt, answer, rendered = seen
    assert NAME in prompt and answer == ROW.answer
    assert rendered == prompt, "llama.cpp renders as the source does"
