"""A small client for llama.cpp's server: requests by JSON over loopback, a few at once, with time limits."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tasks.shared.errors import EndpointError

Item = TypeVar("Item")
Result = TypeVar("Result")
TIMEOUT_S = 120.0


class LlamaClient:
    """Requests to one running server.  base_url ends in /v1; llama.cpp's own routes lie beside it.  Raises EndpointError."""

    def __init__(self, base_url: str, parallel: int = 4) -> None:
        self.root = base_url.removesuffix("/").removesuffix("/v1")
        self.parallel = parallel

    def post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request, the whole answer."""
        with self._open(route, body) as response:
            return dict(json.load(response))

    def _open(self, route: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.root + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )  # noqa: S310
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
        except urllib.error.HTTPError as error:
            raise EndpointError(
                self.root + route, f"{error.code}: {error.read(400).decode(errors='replace')}", "a completion"
            ) from error
        except (urllib.error.URLError, TimeoutError) as error:
            raise EndpointError(
                self.root + route, f"no answer: {error}", f"a completion within {TIMEOUT_S:.0f} s"
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
        choices = self.post("/v1/completions", body).get("choices")
        if not choices:
            raise EndpointError(self.root, "an answer without choices", "a completion")
        return dict(choices[0])
