"""llama.cpp's server inside a step, for a technique whose endpoint has no URL."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.shared.engines.engine import find_weights
from tasks.shared.engines.llama_server import serve
from tasks.shared.errors import ModelError


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Embedded:
    """Settings of llama.cpp's server, used when `base_url` is empty.

    It decodes `concurrency` answers at once.
    """

    context: Annotated[int, Field(ge=256)] = 1536
    """Context length: most tokens of one prompt and its answer."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Loopback port; 0 takes a free one."""


@contextmanager
def serve_embedded(
    path: Path, settings: Embedded, *, threads: int, parallel: int, digest: str = ""
) -> Iterator[tuple[str, str]]:
    """Run a GGUF in llama.cpp; yield its base URL and its identity in digests of requests.

    path: a file, or a folder with one.
    parallel: requests decoded together.
    digest: of the weights; empty to identify them by name and size.
    Raises ModelError if there is no such file, or llama.cpp cannot load it.
    """
    found = find_weights(path, llama=True)
    if found.fault:
        fix = "give a GGUF, or serve this model elsewhere and set base_url"
        raise ModelError(str(path), f"{found.fault} for the embedded server", "one .gguf file", fix)
    with serve(found.path, threads=threads, parallel=parallel, context=settings.context, port=settings.port) as url:
        weights = digest or f"{found.path.name}:{found.path.stat().st_size}"
        yield url, f"llama.cpp {version('xllamacpp')} {weights}"
