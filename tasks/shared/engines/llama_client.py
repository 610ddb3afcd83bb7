"""A small client for llama.cpp's server: requests by JSON over loopback, a few at once, with time limits."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tasks.shared.engines.client import START_S, ServerClient
from tasks.shared.errors import EndpointError

Item = TypeVar("Item")
Result = TypeVar("Result")
TOKEN_S = 5.0
"""Added for every token that may be generated: large models on few cores need seconds for one."""


class LlamaClient(ServerClient):
    """Requests to one running server.  base_url ends in /v1; llama.cpp's own routes lie beside it.  Raises EndpointError."""

    def __init__(self, base_url: str, parallel: int = 4) -> None:
        super().__init__(base_url)
        self.parallel = parallel

    def each(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """`function` of every item, a few at once, results in order."""
        with ThreadPoolExecutor(self.parallel) as pool:
            yield from pool.map(function, items)

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The conversation in the file's own chat format, ready for the assistant's turn."""
        return str(self.post("/apply-template", {"messages": list(messages)})["prompt"])

    def tokens(self, text: str) -> list[int]:
        """Token ids, chat markup read as such, nothing added in front."""
        return list(self.post("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"])

    def complete(self, prompt: str | list[int], max_tokens: int, **options: Any) -> dict[str, Any]:
        """Greedy completion: the first choice, with `text`, `logprobs` and `finish_reason`."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "cache_prompt": True, **options}
        choices = self.post("/v1/completions", body, START_S + TOKEN_S * max_tokens).get("choices")
        if not choices:
            raise EndpointError(self.root, "an answer without choices", "a completion")
        return dict(choices[0])
