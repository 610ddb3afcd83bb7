"""llama.cpp as an engine: the same prompts, labels and distributions as transformers."""

import json
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.shared.engines.label_proof import Step
from tasks.shared.engines.labels import label_prompts
from tasks.shared.engines.llama_engine import LLAMA_CPP, LlamaSession, answer_steps
from tasks.shared.engines.protocol import Opening, check_room
from tasks.shared.engines.transformers_engine import TRANSFORMERS, TransformersSession
from tasks.shared.errors import EndpointError, ModelError
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.model.loading import load_model, load_tokenizer
from tests.tiny_llama import overflowing_model, save_tiny

ITEMS = 16
SINGLE = list("abcdefgh")  # one byte is one token in any byte-level vocabulary
LABELS = [f"{kind}_{what}" for kind in ("card", "top_up", "refund") for what in ("arrival", "not working", "fee")]
LABELS += ["refund", "退款", "退货"]
PAIRS = [first + second for first in "abcdefgh" for second in "xz"]
TOOL = {
    "type": "function",
    "function": {"name": "stock", "description": "Count.", "parameters": {"type": "object", "properties": {}}},
}
TEMPLATE = "{% if tools %}{{ tools | tojson }}{% endif %}"


def prompts_of(session: Any) -> list[str]:
    """With random weights, choices depend on the last token, so it varies here."""
    talks = [[{"role": "user", "content": f"Is the kettle {index} covered?"}] for index in range(ITEMS)]
    return [session.render(talk) + str(index % 10) for index, talk in enumerate(talks)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template writes tools, as f32 GGUF beside its folder."""
    root = tmp_path_factory.mktemp("tiny")
    file = save_tiny(root / "model") / "chat_template.jinja"
    file.write_text(TEMPLATE + file.read_text("utf-8"), encoding="utf-8")
    write_gguf(root / "model", root / "model.gguf", "f32", "same")
    return root


@pytest.fixture(scope="module")
def llama(folder: Path) -> Iterator[LlamaSession]:
    with LLAMA_CPP.open(folder / "model.gguf", Opening(2, context=512)) as session:
        yield session


@pytest.fixture(scope="module")
def torch_session(folder: Path) -> TransformersSession:
    return TransformersSession(load_model(folder / "model"), load_tokenizer(folder / "model"), 16)


def test_both_engines_render_and_tokenize_alike(llama: LlamaSession, torch_session: TransformersSession) -> None:
    talk = [{"role": "system", "content": "You are the bot."}, {"role": "user", "content": "Is 退款 {x} covered?"}]
    for tools in ("", json.dumps([TOOL])):
        text = torch_session.render(talk, tools)
        assert llama.render(talk, tools) == text and ("stock" in text) == bool(tools)
        assert llama.tokens(text) == torch_session.tokens(text)


@pytest.mark.parametrize("labels", [SINGLE, PAIRS, LABELS], ids=["one token each", "two tokens", "many tokens"])
def test_both_engines_choose_the_same_labels(
    llama: LlamaSession, torch_session: TransformersSession, labels: list[str]
) -> None:
    prompts = prompts_of(llama)
    ours, theirs = (session.choose(prompts, labels) for session in (llama, torch_session))
    assert theirs.scores is not None and ours.scores is None and ours.method
    best = [max(row) - row[labels.index(label)] for row, label in zip(theirs.scores, ours.labels, strict=True)]
    assert max(best) < 0.05, "only near ties may differ"
    assert len(set(ours.labels)) > 1 or labels is LABELS
    ends = [session.choose(prompts[:4], LABELS, "<|im_end|>").labels for session in (llama, torch_session)]
    assert ends[0] == ends[1]


def test_a_search_takes_a_request_per_token_and_one_for_single_tokens(
    llama: LlamaSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [f"question {index}<|im_end|>\n<|im_start|>assistant\n" for index in range(ITEMS)]
    requests, post = [], llama.client.post

    def count(route: str, body: Any, *args: Any) -> Any:
        requests.append(route)
        return post(route, body, *args)

    monkeypatch.setattr(llama.client, "post", count)
    llama.choose(prompts, SINGLE)
    assert requests.count("/completion") == ITEMS
    assert requests.count("/tokenize") < ITEMS * 4 + 2 * len(SINGLE) + 10


def test_log_probabilities_are_the_models_own(llama: LlamaSession, torch_session: TransformersSession) -> None:
    ids = llama.tokens(prompts_of(llama)[0])
    ours, theirs = llama.next_token(ids, 20), torch_session.next_token(ids, 20)
    assert list(ours)[:5] == list(theirs)[:5] and len(ours) == 20
    for token in ours.keys() & theirs.keys():
        assert ours[token] == pytest.approx(theirs[token], abs=5e-3)
    rare = [token for token in range(3, 512) if token not in ours][:3]
    everything = torch_session.next_token(ids, 512)
    found = llama.among(ids, rare)
    best = max(rare, key=lambda token: everything[token])
    assert found[best] == pytest.approx(everything[best], abs=2e-3) and found.keys() >= set(list(ours)[:10])


def test_tokens_that_end_inside_a_character_have_log_probabilities(llama: LlamaSession) -> None:
    ids = llama.tokens(prompts_of(llama)[0])
    (prompt,) = label_prompts(lambda text: llama.client.tokens(text, True), llama.tokens, ["x"], ["退款"], "\n")
    partial = prompt.labels[0][0]
    assert -inf < llama.among(ids, [partial])[partial] < 0


def test_answers_end_at_stop_strings_and_follow_grammars(
    llama: LlamaSession, torch_session: TransformersSession
) -> None:
    prompts = prompts_of(llama)[:3]
    ours, theirs = (session.answer(prompts, 8) for session in (llama, torch_session))
    assert ours == theirs
    stop = [found.text[2] for found in ours if len(found.text) > 3][:1]
    assert stop
    cut = [session.answer(prompts, 8, stop) for session in (llama, torch_session)]
    assert cut[0] == cut[1] != ours
    assert all(stop[0] not in found.text for found in cut[0]) and any(found.ended for found in cut[0])
    assert {found.text for found in llama.answer(prompts, 8, grammar='root ::= "yes" | "no"')} <= {"yes", "no"}
    with pytest.raises(Exception, match="lacks `grammar`"):
        torch_session.answer(prompts, 8, grammar='root ::= "yes"')


def test_labels_that_answers_prove_are_those_of_a_search(
    llama: LlamaSession, torch_session: TransformersSession
) -> None:
    prompts = prompts_of(llama)
    for labels in (SINGLE, LABELS):
        written = llama.answer(prompts, 4, labels=labels)
        assert [answer.text for answer in written] == [answer.text for answer in llama.answer(prompts, 4)]
        wanted = llama.choose(prompts, labels).labels
        assert all(answer.label in ("", other) for answer, other in zip(written, wanted, strict=True))
        assert any(answer.label for answer in written) or labels is LABELS


def test_an_answer_with_a_token_that_is_not_reported_proves_nothing() -> None:
    whole = {
        "id": 5,
        "bytes": [97],
        "logprob": -0.1,
        "top_logprobs": [{"id": 5, "logprob": -0.1}, {"id": 6, "logprob": None}],
    }
    assert answer_steps({"text": "a", "logprobs": {"content": [whole]}}) == [Step(5, {5: -0.1, 6: -inf}, -inf)]
    assert answer_steps({"text": "ba", "logprobs": {"content": [whole]}}) == [] == answer_steps({"text": "a"})


def test_a_prompt_that_leaves_no_room_is_refused_in_both_engines(
    llama: LlamaSession, torch_session: TransformersSession
) -> None:
    for session in (llama, torch_session):
        assert session.context == 512
        check_room(session, ["words " * 20], 32, "")
        with pytest.raises(ModelError, match=r"context: 512 tokens, .* needs (\d+)\n.*\n.*ask for \1"):
            check_room(session, ["kettle's " * 300], 32, "ask for {}")


def test_the_memory_is_the_server_s(llama: LlamaSession) -> None:
    assert (llama.memory() or 0) > 1e7


def test_a_broken_file_is_refused_before_its_answers(tmp_path: Path) -> None:
    from tests.tiny_llama import build_model

    model = build_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    write_gguf(save_tiny(tmp_path / "bad", model), tmp_path / "bad.gguf", "f16")
    with (
        LLAMA_CPP.open(tmp_path / "bad.gguf", Opening(1, context=128)) as session,
        pytest.raises(ModelError, match="broken"),
    ):
        session.check("Hello")
    save_tiny(tmp_path / "overflows", overflowing_model())
    with TRANSFORMERS.open(tmp_path / "overflows", Opening(1)) as other, pytest.raises(ModelError, match="not finite"):
        other.check("Hello")


def test_a_server_that_is_gone_is_an_error_of_the_endpoint() -> None:
    with pytest.raises(EndpointError, match="no answer"):
        LlamaSession("http://127.0.0.1:9/v1", 0, 64).next_token([1], 1)


class SilentClient:
    """A server that reports no probability for its own token, which ends inside a character."""

    def __init__(self, value: float | None) -> None:
        self.value = value

    def complete(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"text": "", "logprobs": {"content": []}}

    def tokens(self, text: str, whole: bool = False) -> list[int]:
        return [1]

    def post(self, _: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"completion_probabilities": [{"top_logprobs": [{"id": 7, "logprob": self.value}]}]}


def test_a_first_token_inside_a_character_is_no_broken_model() -> None:
    session = LlamaSession("", 0, 64)
    session.__dict__["client"] = SilentClient(-0.5)
    session.check("Hello")
    session.__dict__["client"] = SilentClient(None)
    with pytest.raises(ModelError, match="broken"):
        session.check("Hello")
