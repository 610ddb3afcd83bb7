"""Client for an OpenAI-compatible chat endpoint: retries, limits on time and concurrency."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, Field, SecretStr, ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from tasks.shared.engines.endpoint_settings import check_url, shown
from tasks.shared.errors import EndpointError, RefusedError, StillroomError

MAX_WAIT_S = 60.0
"""Longest pause before another attempt, in seconds; a longer Retry-After is an error."""
FIRST_WAIT_S = 0.5
QUOTE = 200
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
REFUSED = frozenset({400, 413, 422})
"""Status codes that may concern this request only."""
FIXES = {
    400: "check the settings of the step (model, max_tokens, sampling) against what the endpoint accepts",
    401: "check the key in the environment variable that `api_key_env` names",
    403: "check that the key may use this model",
    404: "check `base_url` (it usually ends in /v1) and `model`",
}
Item = TypeVar("Item")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Completion:
    """Answer to one request.

    prompt_tokens, completion_tokens: 0 if the endpoint reports no usage.
    attempts: requests sent.  seconds: total time, retries included.
    reasoning: reasoning that the endpoint returns separately from the answer.
    """

    text: str
    finish_reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 1
    seconds: float = 0.0
    reasoning: str = ""


class _Reply(BaseModel):
    class Choice(BaseModel):
        class Content(BaseModel):
            content: str | None = None
            reasoning_content: str | None = None
            reasoning: str | None = None

        message: Content
        finish_reason: str

    class Usage(BaseModel):
        prompt_tokens: int = 0
        completion_tokens: int = 0

    choices: list[Choice] = Field(min_length=1)
    usage: Usage | None = None


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
    ) -> None:
        parts = urlsplit(base_url)
        self._url = parts._replace(path=parts.path.rstrip("/") + "/chat/completions").geturl()
        self.where = shown(self._url)
        self._client, self._model, self._key = client, model, key
        self._timeout, self._max_attempts = timeout, max_attempts

    async def chat(self, messages: Sequence[Mapping[str, str]], sampling: Mapping[str, Any]) -> Completion:
        """Request one completion of `messages`.

        sampling: fields of the request body, sent unchanged.

        Retries on 429, 5xx, timeouts and broken connections after a growing, jittered pause (or that of Retry-After), up to
        max_attempts in total.  Raises EndpointError if they all fail or for any other problem; RefusedError if the endpoint
        may answer other requests.
        """
        body = {"messages": list(messages), **({"model": self._model} if self._model else {}), **sampling}
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
                    completion = await self._once(body)
        except _Again as last:
            raise self._error(
                f"{last} ({attempts} attempts)",
                "an answer",
                "try later; raise max_attempts or timeout_s, or lower concurrency",
                retryable=True,
            ) from None
        return replace(completion, attempts=attempts, seconds=asyncio.get_running_loop().time() - begun)

    async def _once(self, body: Mapping[str, Any]) -> Completion:
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.post(self._url, json=body)
        except (TimeoutError, httpx.TimeoutException):
            raise _Again(f"no answer within {self._timeout:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Again(f"connection failed: {self._redact(str(error) or type(error).__name__)}") from None
        if response.status_code in RETRIED or response.status_code >= 500:
            raise _Again(f"status {response.status_code}: {self._quote(response)}", self._after(response))
        if response.status_code != 200:
            fix = FIXES.get(response.status_code, "check `base_url`")
            got = f"status {response.status_code}: {self._quote(response)}"
            raise (RefusedError if response.status_code in REFUSED else EndpointError)(
                self.where, got, "status 200", fix
            )
        return self._read(response)

    def _read(self, response: httpx.Response) -> Completion:
        reply, problem = _parse(response.content)
        if reply is None:
            got = f"not a chat completion: {self._redact(problem)}: {self._quote(response)}"
            raise self._error(got, "JSON with choices[0].message and finish_reason", FIXES[404])
        usage = reply.usage or _Reply.Usage()
        choice = reply.choices[0]
        message = choice.message
        return Completion(
            message.content or "", choice.finish_reason, usage.prompt_tokens, usage.completion_tokens,
            reasoning=message.reasoning_content or message.reasoning or "",
        )  # fmt: skip

    def _after(self, response: httpx.Response) -> float | None:
        seconds = retry_after(response.headers.get("Retry-After", ""))
        if seconds is not None and seconds > MAX_WAIT_S:
            got = f"status {response.status_code} with Retry-After {seconds:.0f} s"
            raise self._error(got, f"at most {MAX_WAIT_S:.0f} s", "run again later: finished answers are kept")
        return seconds

    def _quote(self, response: httpx.Response) -> str:
        text = re.sub(r"\s+", " ", response.text).strip()
        return self._redact(text)[:QUOTE] or "(empty body)"

    def _redact(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key.get_secret_value(), "(key)")

    def _error(self, got: str, wanted: str, fix: str, retryable: bool = False) -> EndpointError:
        return EndpointError(self.where, got, wanted, fix, retryable)


def _parse(content: bytes) -> tuple[_Reply | None, str]:
    """Parse a response; return it, or None and the problem.

    Raises nothing, since pydantic's errors quote their input.
    """
    try:
        return _Reply.model_validate_json(content), ""
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return None, f"`{place}`: {first['msg']}" if place else first["msg"]


def retry_after(header: str) -> float | None:
    """Seconds of a Retry-After header (a number or an HTTP date); None if it cannot be parsed."""
    if re.fullmatch(r"\d+(\.\d+)?", header.strip()):
        return float(header)
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


_backoff = wait_random_exponential(multiplier=FIRST_WAIT_S, max=MAX_WAIT_S)


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    after = error.after if isinstance(error, _Again) else None
    seconds = _backoff(state) if after is None else after
    log.info("attempt %d failed (%s); next in %.1f s", state.attempt_number, error, seconds)
    return seconds


@asynccontextmanager
async def connect(
    base_url: str, model: str, key: SecretStr | None, *, timeout: float, max_attempts: int, concurrency: int
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
    async with httpx.AsyncClient(auth=_Bearer(key), timeout=timeout, limits=limits, trust_env=not local) as client:
        yield Endpoint(client, base_url, model, key, timeout, max_attempts)


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
