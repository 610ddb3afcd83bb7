"""A small client for llama.cpp's server: requests by JSON over loopback, a few at once, with time limits."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tasks.shared.errors import EndpointError

Item = TypeVar("Item")
Result = TypeVar("Result")
START_S = 60.0
"""Time limit of a request that generates nothing, in seconds; reading a prompt is part of it."""
TOKEN_S = 5.0
"""Added for every token that may be generated: large models on few cores need seconds for one."""


class LlamaClient:
    """Requests to one running server.  base_url ends in /v1; llama.cpp's own routes lie beside it.  Raises EndpointError."""

    def __init__(self, base_url: str, parallel: int = 4) -> None:
        self.root = base_url.removesuffix("/").removesuffix("/v1")
        self.parallel = parallel
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({})
        )  # no proxy of the environment: this is loopback

    def post(self, route: str, body: dict[str, Any], limit: float = START_S) -> dict[str, Any]:
        """One request, the whole answer.  limit: seconds without a sign of life."""
        try:
            with self._open(route, body, limit) as response:
                return dict(json.load(response))
        except (http.client.HTTPException, OSError, ValueError) as error:  # it broke off, or is no JSON
            raise EndpointError(
                self.root + route, f"no answer: {type(error).__name__}: {error}", "a completion"
            ) from error

    def _open(self, route: str, body: dict[str, Any], limit: float) -> Any:
        request = urllib.request.Request(
            self.root + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )  # noqa: S310
        try:
            return self._opener.open(request, timeout=limit)
        except urllib.error.HTTPError as error:
            raise EndpointError(
                self.root + route, f"{error.code}: {error.read(400).decode(errors='replace')}", "a completion"
            ) from error
        except (urllib.error.URLError, TimeoutError) as error:
            raise EndpointError(
                self.root + route, f"no answer: {error}", f"a completion within {limit:.0f} s"
            ) from error

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
