"""Address of an endpoint: its URL, its API key, and the settings of techniques that use one."""

import os
import re
from dataclasses import field
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import ConfigDict, Field, SecretStr
from pydantic.dataclasses import dataclass

from tasks.shared.engines.endpoint_parameters import LENGTH, LengthParameter
from tasks.shared.errors import ConfigError

CREDENTIALS = re.compile(
    r"(?:.*[_-])?(?:(?:api|access|subscription)?[_-]?key|\w*token|sig|signature|\w*secret|password)", re.IGNORECASE
)
"""Names of query parameters that hold credentials, which must not get into manifests, reports and errors."""
OWN_FIELDS = frozenset({"model", "messages", "tools", "n", "stream", "temperature", "top_p", "stop", "seed", *LENGTH})
"""Fields of a request that `extra_body` must not hold."""
HOST = re.compile(r"[\w.-]+(?::\d+)?(?:/[\w./-]*)?")
"""A URL without its scheme."""
ROUTE = re.compile(r"(?:/chat)?/completions/*$")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", hide_input_in_errors=True))
class EndpointSettings:
    """Settings of a technique that sends requests to an OpenAI-compatible endpoint."""

    base_url: str = ""
    """Endpoint URL up to and including /v1."""
    model: str = ""
    """Model name at the endpoint; required with `base_url`."""
    api_key_env: str = ""
    """Environment variable with the endpoint's API key; empty for none.  The key itself is never stored."""
    concurrency: Annotated[int, Field(ge=1)] = 8
    """Maximum number of concurrent requests."""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Time limit of one attempt at a request, in seconds."""
    max_attempts: Annotated[int, Field(ge=1)] = 5
    """Total attempts per request; retries on 429, 5xx, timeouts and broken connections."""
    length_parameter: LengthParameter = "auto"
    """Name of the length limit in a request; auto sends max_tokens, and max_completion_tokens to endpoints that refuse it."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """More fields of each request, such as {reasoning_effort: low} or {chat_template_kwargs: {enable_thinking: false}}."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a wrong URL, a URL or model alone, or a wrong `extra_body`."""
        if self.base_url:
            check_url(self.base_url)
        if self.base_url and not self.model:
            fix = "model: NAME, as GET /models of the endpoint lists it; llama.cpp's server takes any name"
            raise ConfigError("model", "empty, but base_url is set", "the model's name at the endpoint", fix)
        if self.model and not self.base_url:
            got = f"{self.model!r}, but base_url is empty, so no endpoint serves it"
            raise ConfigError("model", got, "the endpoint too, or neither", "set base_url, or leave model empty")
        if any(CREDENTIALS.fullmatch(name) for name in self.extra_body):
            wanted = "fields without credentials: settings are written into manifests"
            raise ConfigError(
                "extra_body", "it contains a key", wanted, "name its environment variable in `api_key_env`"
            )
        if taken := sorted(OWN_FIELDS & self.extra_body.keys()):
            got = f"it contains {', '.join(taken)}"
            raise ConfigError(
                "extra_body", got, "fields that no other setting sends, and one whole answer per request", "remove them"
            )

    @property
    def request_limits(self) -> dict[str, Any]:
        """Arguments of `endpoint.connect` that limit time, attempts and connections."""
        return {
            "timeout": self.timeout_s, "max_attempts": self.max_attempts, "concurrency": self.concurrency,
            "length_parameter": self.length_parameter,
        }  # fmt: skip


def read_key(variable: str) -> SecretStr | None:
    """Return the key in the environment variable `variable`; None for an empty name.

    Raises ConfigError, which names the variable but never its value, if it is not set or cannot be sent in a header.
    """
    if not variable:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            "api_key_env",
            f"environment variable {variable} is not set",
            "the endpoint's key in it",
            f"export {variable}=...",
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            "api_key_env",
            f"environment variable {variable} contains characters that no key has",
            "printable ASCII without spaces",
            f"set {variable} again",
        )
    return SecretStr(key)


def check_url(url: str) -> str:
    """Return `url` without surrounding space, trailing slashes and the route of completions.

    Raises ConfigError if it is not an http(s) URL, or contains a password, key or token.
    """
    url = url.strip()
    try:
        parts = urlsplit(url)
        good, secret = parts.scheme in ("http", "https") and bool(parts.hostname), "@" in parts.netloc
        secret = secret or any(
            CREDENTIALS.fullmatch(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True)
        )
        _ = parts.port
    except ValueError:
        good, secret = False, "@" in url
    if secret:
        raise ConfigError(
            "base_url",
            "it contains a user name, password or key",
            "a URL without credentials",
            "put the key into an environment variable and name that variable in `api_key_env`",
        )
    if not good:
        fix = f"base_url: http://{url.split('?')[0].rstrip('/')}/v1" if HOST.fullmatch(url) else "correct base_url"
        raise ConfigError("base_url", f"{url.split('?')[0]!r} is not a URL", "http://host:port/v1 or https://...", fix)
    return parts._replace(path=ROUTE.sub("", parts.path).rstrip("/")).geturl()


def is_versioned(url: str) -> bool:
    """Return True if the path of `url` names a version of the API, such as /v1."""
    return re.search(r"/v\d+(?:(?:alpha|beta)\d*)?(?:/|$)", urlsplit(url).path) is not None


def shown(url: str) -> str:
    """Return `url` without credentials, query and fragment, for display."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not a URL)"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else parts.path
