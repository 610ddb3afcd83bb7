"""vLLM as an engine, with a stand-in for its server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.shared.engines.protocol import Opening
from tasks.shared.engines.transformers_engine import TransformersSession
from tasks.shared.engines.vllm_engine import VLLM, VllmSession
from tasks.shared.errors import EndpointError, TechniqueError
from tasks.shared.model.generation import Written
from tasks.shared.model.loading import load_tokenizer
from tests.fake_vllm import serving, write_command
from tests.tiny_llama import build_model, save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def session(folder: Path) -> Iterator[VllmSession]:
    opening = Opening(1, context=256, batch_size=2, limit_s=20, command=str(write_command(folder.parent)))
    with VLLM.open(folder, opening) as opened:
        yield opened


def test_prompts_are_those_of_transformers(session: VllmSession, folder: Path) -> None:
    other = TransformersSession(build_model(), load_tokenizer(folder), 1)
    talk = [{"role": "user", "content": "Is 退款 {x} covered?"}]
    assert session.render(talk) == other.render(talk)
    assert session.tokens(session.render(talk)) == other.tokens(other.render(talk))
    assert session.context == 256 and (session.memory() or 0) > 1e6


def test_answers_come_in_order_and_end_at_stop_strings(session: VllmSession) -> None:
    session.check("Hello")
    assert session.answer(["a", "b", "c"], 2) == [Written("word word", False)] * 3
    assert session.answer(["a"], 2, ["x"]) == [Written("word", True)]


def test_prompts_are_sent_as_tokens(folder: Path) -> None:
    with serving() as server:
        session = VllmSession(server.url, 0, folder, 256, 1)
        session.answer(["Hello kettle"], 3, ["."])
    (body,) = server.asked
    assert body["prompt"] == session.tokens("Hello kettle") and body["stop"] == ["."] and body["max_tokens"] == 3


def test_what_vllm_lacks_is_refused_by_name(session: VllmSession) -> None:
    with pytest.raises(TechniqueError, match="vllm: it lacks `labels`"):
        session.choose(["a"], ["x", "y"])
    with pytest.raises(TechniqueError, match="lacks `top_tokens`"):
        session.next_token([1], 3)
    with pytest.raises(TechniqueError, match="lacks `grammar`"):
        session.answer(["a"], 2, grammar="root ::= x")
    assert VLLM.capabilities.missing(["labels", "stop", "grammar"]) == ["grammar", "labels"]


def test_a_response_without_choices_is_an_error(folder: Path) -> None:
    with serving("short") as server, pytest.raises(EndpointError, match="without choices"):
        VllmSession(server.url, 0, folder, 256, 1).answer(["a"], 2)
