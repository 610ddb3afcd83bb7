"""JSON client for a server that a step runs on loopback: plain and streamed requests.

`openai_endpoint.py` is the client for remote servers, with keys, proxies, retries and concurrent requests.
"""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from tasks.shared.errors import EndpointError

START_S = 60.0
"""Time limit in seconds of a request without generated tokens; covers reading the prompt."""
QUOTE = 400
"""Bytes of an error response that a message quotes."""
BROKEN = (http.client.HTTPException, OSError, ValueError)
"""Exceptions for a response that is cut short or not JSON."""


class ServerClient:
    """Client of one running server; its methods raise EndpointError.

    base_url: may end in /v1; routes start at the server's root.
    """

    def __init__(self, base_url: str) -> None:
        self.root = base_url.removesuffix("/").removesuffix("/v1")
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback needs no proxy

    def post(
        self, route: str, body: Mapping[str, Any], limit: float = START_S, wanted: str = "a completion"
    ) -> dict[str, Any]:
        """Send a request and return the whole response.

        limit: seconds without a byte.
        wanted: expected result, as named in errors.
        """
        try:
            with self._open(route, body, limit, wanted) as response:
                return dict(json.load(response))
        except BROKEN as error:
            raise self._no_answer(route, f"{type(error).__name__}: {error}", wanted) from error

    def stream(
        self, route: str, body: Mapping[str, Any], limit: float, wanted: str = "a completion"
    ) -> Iterator[dict[str, Any]]:
        """Send a request and yield its server-sent events, each a JSON object, as they arrive."""
        try:
            with self._open(route, body, limit, wanted) as response:
                for line in response:
                    if line.startswith(b"data: {"):
                        yield json.loads(line[6:])
        except BROKEN as error:
            raise self._no_answer(route, f"{type(error).__name__}: {error}", wanted) from error

    def is_ready(self, route: str, limit: float) -> bool:
        """Return True if a GET of the route returns status 200.  limit: seconds without a byte."""
        try:
            with self._opener.open(self.root + route, timeout=limit) as response:
                return bool(response.status == http.client.OK)
        except (http.client.HTTPException, OSError):
            return False

    def _open(self, route: str, body: Mapping[str, Any], limit: float, wanted: str) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.root + route, json.dumps(body).encode(), headers)
        try:
            return self._opener.open(request, timeout=limit)
        except urllib.error.HTTPError as error:
            quoted = error.read(QUOTE).decode(errors="replace")
            raise EndpointError(self.root + route, f"{error.code}: {quoted}", wanted) from error
        except (urllib.error.URLError, TimeoutError) as error:
            raise self._no_answer(route, str(error), f"{wanted} within {limit:.0f} s") from error

    def _no_answer(self, route: str, reason: str, wanted: str) -> EndpointError:
        return EndpointError(self.root + route, f"no answer: {reason}", wanted)
