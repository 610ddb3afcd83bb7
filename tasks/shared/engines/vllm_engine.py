"""vLLM as an engine: its server on loopback, for one model folder."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.engines.engine import EngineName
from tasks.shared.engines.loopback_client import START_S, ServerClient
from tasks.shared.engines.memory import peak_memory
from tasks.shared.engines.protocol import Capabilities, Choices, Conversation, Opening, lacking
from tasks.shared.engines.vllm_server import NAME, serve_vllm
from tasks.shared.errors import EndpointError, ModelError
from tasks.shared.model.encoding import text_ids
from tasks.shared.model.generation import Written
from tasks.shared.model.prompts import render
from tasks.shared.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKEN_S = 1.0
"""Seconds of time limit per generated token."""


@dataclass
class VllmSession:
    """One running server.

    Prompts are rendered and tokenized here, with the folder's own tokenizer.
    url: ends in /v1.  pid: of the parent of its workers.  context: tokens of prompt and answer.  batch_size: requests at once.
    """

    url: str
    pid: int
    weights: Path
    context: int
    batch_size: int

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The folder's tokenizer, loaded when it is first needed."""
        from tasks.shared.model.loading import load_tokenizer

        return load_tokenizer(self.weights)

    def render(self, messages: Conversation, tools: str = "") -> str:
        """Render a conversation with the folder's chat template."""
        return render(self.tokenizer, [dict(message) for message in messages], tools=tools)

    def tokens(self, text: str) -> list[int]:
        """Tokenize a text, without special tokens added."""
        return text_ids(self.tokenizer, text)

    def check(self, prompt: str) -> None:
        """Raise ModelError if vLLM writes nothing after a prompt."""
        if not self._complete(prompt, 1, ())["choices"]:
            raise ModelError(str(self.weights), "vLLM answers without a choice", "a token")

    @property
    def reading(self) -> str:
        """Empty: prompts are read one by one."""
        return ""

    def answer(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        grammar: str = "",
        labels: Sequence[str] = (),
        end: str = "\n",
    ) -> list[Written]:
        """Greedy answers, `batch_size` requests at once; a grammar and labels are refused."""
        if grammar:
            raise lacking(VLLM.name, "grammar")
        if labels:
            raise lacking(VLLM.name, "labels")

        def write(prompt: str) -> Written:
            choices = self._complete(prompt, max_new_tokens, stop).get("choices")
            if not choices:
                raise EndpointError(self.url, "a response without choices", "a completion")
            return Written(str(choices[0]["text"]).strip(), choices[0].get("finish_reason") == "stop")

        with ThreadPoolExecutor(self.batch_size) as pool:
            return list(track(pool.map(write, prompts), "answers", len(prompts)))

    def choose(self, prompts: Sequence[str], labels: Sequence[str], end: str = "\n") -> Choices:
        """Raise TechniqueError: vLLM reports the top log-probabilities only."""
        raise lacking(VLLM.name, "labels")

    def next_token(self, ids: Sequence[int], top: int) -> dict[int, float]:
        """Raise TechniqueError: vLLM names tokens in its log-probabilities by text, not by id."""
        raise lacking(VLLM.name, "top_tokens")

    def memory(self) -> int | None:
        """Peak resident bytes of the server and its workers."""
        return peak_memory(self.pid)

    def _complete(self, prompt: str, tokens: int, stop: Sequence[str]) -> dict[str, Any]:
        body: dict[str, Any] = {"model": NAME, "prompt": self.tokens(prompt), "max_tokens": tokens, "temperature": 0.0}
        limit = START_S + TOKEN_S * tokens
        return ServerClient(self.url).post("/v1/completions", body | ({"stop": list(stop)} if stop else {}), limit)


class VllmEngine:
    """Serves folders of safetensors from an environment of its own (`Opening.command`)."""

    name: EngineName = "vllm"
    capabilities = Capabilities(reads=("dense", "packed"), tools=True, stop=True, stream=True, accelerator=True)

    @contextmanager
    def open(self, weights: Path, opening: Opening) -> Iterator[VllmSession]:
        """Start the server; see `serve_vllm`."""
        with serve_vllm(opening.command, weights, opening.context, opening.limit_s) as server:
            yield VllmSession(server.url, server.pid, weights, opening.context, opening.batch_size)


VLLM = VllmEngine()
