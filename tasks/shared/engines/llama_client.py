"""Client for llama.cpp's server: concurrent JSON requests over loopback with time limits."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tasks.shared.engines.loopback_client import START_S, ServerClient
from tasks.shared.errors import EndpointError

Item = TypeVar("Item")
Result = TypeVar("Result")
TOKEN_S = 5.0
"""Seconds of time limit per generated token: a large model on few cores needs seconds for each."""


class LlamaClient(ServerClient):
    """Client of one running llama.cpp server; its methods raise EndpointError.

    base_url: ends in /v1; llama.cpp's own routes start at the server's root.
    """

    def __init__(self, base_url: str, parallel: int = 4) -> None:
        super().__init__(base_url)
        self.parallel = parallel

    def each(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Apply `function` to all items, `parallel` at a time; yield the results in order."""
        with ThreadPoolExecutor(self.parallel) as pool:
            yield from pool.map(function, items)

    def render(self, messages: Sequence[Mapping[str, Any]], tools: str = "") -> str:
        """Render the conversation with the file's chat template, up to the assistant's turn.

        tools: JSON text of a list of tool schemas; empty for none.
        """
        body: dict[str, Any] = {"messages": [dict(message) for message in messages]}
        return str(self.post("/apply-template", body | ({"tools": json.loads(tools)} if tools else {}))["prompt"])

    def tokens(self, text: str, whole: bool = False) -> list[int]:
        """Tokenize a text; chat markup becomes special tokens.

        whole: add the tokens that the file puts before a whole prompt; otherwise none is added.
        """
        return list(self.post("/tokenize", {"content": text, "add_special": whole, "parse_special": True})["tokens"])

    def complete(self, prompt: str | list[int], max_tokens: int, **options: Any) -> dict[str, Any]:
        """Return the first choice of a greedy completion: `text`, `logprobs`, `finish_reason`."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "cache_prompt": True, **options}
        choices = self.post("/v1/completions", body, START_S + TOKEN_S * max_tokens).get("choices")
        if not choices:
            raise EndpointError(self.root, "a response without choices", "a completion")
        return dict(choices[0])
