"""Client for an OpenAI-compatible chat endpoint: retries, limits on time and concurrency."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from tasks.shared.engines.chat_errors import Problem, plain_text, read_error, retry_after
from tasks.shared.engines.chat_reply import Completion, read_reply
from tasks.shared.engines.endpoint_parameters import LENGTH, Dialect, LengthParameter
from tasks.shared.engines.endpoint_settings import check_url, is_versioned, shown
from tasks.shared.errors import ConfigError, EndpointError, RefusedError, StillroomError
from tasks.shared.text.stops import cut_at

MAX_WAIT_S = 60.0
"""Longest pause before another attempt, in seconds; a longer Retry-After is an error."""
FIRST_WAIT_S = 0.5
QUOTE = 300
MAX_BYTES = 64 * 2**20
"""Largest body that is read."""
REFUSED = frozenset({400, 413, 422})
"""Status codes that may concern this request only."""
FLAGGED = re.compile(r"moderation|flagged|content policy|safety", re.IGNORECASE)
FIXES = {
    400: "check the settings of the step (model, max_tokens, sampling) against what the endpoint accepts",
    401: "check the key in the environment variable that `api_key_env` names",
    402: "the account has no credit left; finished answers are kept",
    403: "check that the key may use this model",
    404: "check `base_url` (it usually ends in /v1) and `model`",
    413: "the prompt is longer than the endpoint takes",
    429: "the account's quota is used up; finished answers are kept",
}
TLS_FIXES = {
    "CERTIFICATE_VERIFY_FAILED": "set SSL_CERT_FILE to a file with the certificate of the endpoint's authority",
    "WRONG_VERSION_NUMBER": "the port does not speak TLS: start base_url with http://",
}
"""Fixes of failures that no repetition mends."""
Item = TypeVar("Item")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Response:
    status: int
    headers: httpx.Headers
    content: bytes


class _Again(Exception):
    """A failure that may pass.  after: seconds to wait, from Retry-After."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class _Bearer(httpx.Auth):
    """Authentication that keeps the key out of header objects, which might be logged."""

    def __init__(self, key: SecretStr | None) -> None:
        self.key = key

    def auth_flow(self, request: httpx.Request) -> Any:
        if self.key is not None:
            request.headers["Authorization"] = f"Bearer {self.key.get_secret_value()}"
        yield request


class Endpoint:
    """Chat completions of one model at one URL.  Use through `connect`."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        base_url: str,
        model: str,
        key: SecretStr | None,
        timeout: float,
        max_attempts: int,
        length_parameter: LengthParameter = "auto",
    ) -> None:
        parts = urlsplit(base_url)
        self._url = parts._replace(path=parts.path.rstrip("/") + "/chat/completions").geturl()
        self.where = shown(self._url)
        self._client, self._model, self._key = client, model, key
        self._timeout, self._max_attempts = timeout, max_attempts
        self._dialect = Dialect(length_parameter)

    async def chat(
        self, messages: Sequence[Mapping[str, Any]], sampling: Mapping[str, Any], tools: Sequence[Any] = ()
    ) -> Completion:
        """Request one completion of `messages`.

        sampling: fields of the request body; the length limit is called max_tokens here, whatever the endpoint calls it.
        tools: tools that the model may call, in OpenAI's format.

        A parameter that the endpoint refuses is left out of this and all later requests, with a warning; the completion lists it.
        Retries on 429, 5xx, their like inside a 200, broken responses, timeouts and broken connections after a growing, jittered
        pause (or that of Retry-After), up to max_attempts in total.  Raises EndpointError if they all fail or for any other
        problem; RefusedError if the endpoint may answer other requests.
        """
        body = {"messages": list(messages), **({"model": self._model} if self._model else {})}
        if tools:
            body["tools"] = list(tools)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Again),
            stop=stop_after_attempt(self._max_attempts),
            wait=_pause,
            reraise=True,
        )
        begun = asyncio.get_running_loop().time()
        attempts = 0
        try:
            async for attempt in retrying:
                with attempt:
                    attempts = attempt.retry_state.attempt_number
                    completion = await self._once(body, sampling)
        except _Again as last:
            raise self._error(
                f"{last} ({attempts} attempts)",
                "an answer",
                "try later; raise max_attempts or timeout_s, or lower concurrency",
                retryable=True,
            ) from None
        return replace(completion, attempts=attempts, seconds=asyncio.get_running_loop().time() - begun)

    async def _once(self, body: Mapping[str, Any], sampling: Mapping[str, Any]) -> Completion:
        while True:
            sent = self._dialect.translate(sampling)
            turns = self._dialect.write(body["messages"])
            response = await self._send({**body, "messages": turns, **sent})
            room = int(sampling.get(LENGTH[0], 0))
            good = 200 <= response.status < 300
            found = read_reply(response.content, room) if good else read_error(response.status, response.content)
            if isinstance(found, Completion):
                return self._finished(found, sampling)
            if not self._dialect.learn(found, sent, turns):
                raise self._failure(found, response)

    async def _send(self, body: Mapping[str, Any]) -> _Response:
        """Send one request; raise _Again if no whole response comes within the time limit."""
        content = bytearray()
        try:
            async with asyncio.timeout(self._timeout), self._client.stream("POST", self._url, json=body) as response:
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > MAX_BYTES:
                        raise self._error(
                            f"more than {MAX_BYTES >> 20} MiB in a response", "a completion", "check `base_url`"
                        )
        except (TimeoutError, httpx.TimeoutException):
            raise _Again(f"no answer within {self._timeout:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            told = f"connection failed: {self._redact(str(error) or type(error).__name__)}"
            if fix := next((fix for sign, fix in TLS_FIXES.items() if sign in told), ""):
                raise self._error(told, "a secure connection", fix) from None
            raise _Again(told) from None
        return _Response(response.status_code, response.headers, bytes(content))

    def _finished(self, completion: Completion, sampling: Mapping[str, Any]) -> Completion:
        """The completion, ended at the stop strings where the endpoint does not take them."""
        dropped = self._dialect.dropped(sampling)
        if "stop" in dropped:
            text, cut = cut_at(completion.text, sampling["stop"])
            completion = replace(completion, text=text, finish_reason="stop" if cut else completion.finish_reason)
        return replace(completion, dropped=dropped)

    def _failure(self, problem: Problem, response: _Response) -> Exception:
        """The exception for a response without an answer."""
        text = self._redact(problem.message)[:QUOTE]
        if problem.quote:
            text = f"{text}: {self._redact(plain_text(response.content))[:QUOTE] or '(empty body)'}"
        got = f"status {problem.status}: {text}"
        if response.status < 300 <= problem.status:
            got += " (inside a response with status 200)"
        if problem.passes:
            return _Again(got, self._after(response))
        if "location" in response.headers:
            got += f", redirects to {self._redact(shown(response.headers['location']))[:QUOTE]}"
        flagged = problem.status in (403, 451) and FLAGGED.search(problem.message)
        kind = RefusedError if problem.status in REFUSED or flagged else EndpointError
        return kind(self.where, got, "a chat completion", self._fix(problem))

    def _fix(self, problem: Problem) -> str:
        if problem.status == 401 and self._key is None:
            return (
                "the endpoint wants a key: put it into an environment variable and name that variable in `api_key_env`"
            )
        if problem.status in (200, 404, 405) and not is_versioned(self._url):
            return f"base_url has no version: try {self.where.removesuffix('/chat/completions')}/v1"
        if problem.status == 404 and "model" in problem.message.lower():
            return "check `model`: the endpoint does not serve this name"
        return FIXES.get(problem.status, "check `base_url`" if problem.status != 200 else FIXES[404])

    def _after(self, response: _Response) -> float | None:
        seconds = retry_after(response.headers.get("Retry-After", ""))
        if seconds is None and (milliseconds := retry_after(response.headers.get("Retry-After-Ms", ""))) is not None:
            seconds = milliseconds / 1000
        if seconds is not None and seconds > MAX_WAIT_S:
            got = f"status {response.status} with Retry-After {seconds:.0f} s"
            raise self._error(got, f"at most {MAX_WAIT_S:.0f} s", "run again later: finished answers are kept")
        return seconds

    def _redact(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key.get_secret_value(), "(key)")

    def _error(self, got: str, wanted: str, fix: str, retryable: bool = False) -> EndpointError:
        return EndpointError(self.where, got, wanted, fix, retryable)


_backoff = wait_random_exponential(multiplier=FIRST_WAIT_S, max=MAX_WAIT_S)


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    after = error.after if isinstance(error, _Again) else None
    seconds = _backoff(state) if after is None else after
    log.info("attempt %d failed (%s); next in %.1f s", state.attempt_number, error, seconds)
    return seconds


@asynccontextmanager
async def connect(
    base_url: str,
    model: str,
    key: SecretStr | None,
    *,
    timeout: float,
    max_attempts: int,
    concurrency: int,
    length_parameter: LengthParameter = "auto",
) -> AsyncIterator[Endpoint]:
    """Open an `Endpoint` with at most `concurrency` connections.

    timeout: total seconds for one attempt.
    Redirects are not followed, since they would send the key elsewhere; the environment's proxies are not used for loopback.
    """
    base_url = check_url(base_url)
    for noisy in ("httpx", "httpcore"):  # their INFO and DEBUG lines show full URLs
        logging.getLogger(noisy).setLevel(logging.WARNING)
    local = urlsplit(base_url).hostname in ("127.0.0.1", "localhost", "::1")
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    try:
        client = httpx.AsyncClient(auth=_Bearer(key), timeout=timeout, limits=limits, trust_env=not local)
    except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
        fix = "correct or unset ALL_PROXY, HTTPS_PROXY, HTTP_PROXY and SSL_CERT_FILE, or name the host in NO_PROXY"
        raise ConfigError(
            "environment", f"its proxy or certificates cannot be used: {error}", "usable ones", fix
        ) from None
    async with client:
        yield Endpoint(client, base_url, model, key, timeout, max_attempts, length_parameter)


async def for_each(items: Iterable[Item], work: Callable[[Item], Awaitable[None]], concurrency: int) -> None:
    """Run `work` on all items, started in order, at most `concurrency` at a time.

    After the first StillroomError no further item starts; it is raised once the running ones have ended, since their answers
    are paid for.  Any other exception cancels them at once.
    """
    queue = iter(items)
    failed: list[StillroomError] = []

    async def worker() -> None:
        for item in queue:
            try:
                await work(item)
            except StillroomError as error:
                failed.append(error)
            if failed:
                return

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    if failed:
        raise failed[0]
