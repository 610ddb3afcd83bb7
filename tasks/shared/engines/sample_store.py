"""Log of an endpoint's answers, one JSON line each, so that a killed run can resume."""

import json
import os
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

FLUSH_EVERY = 8


class Sample(BaseModel):
    """One answer of an endpoint.

    row: id of the row that it answers.  sample: number of the sample for this row.  digest: of the request.
    rejection: reason why it was rejected; empty if accepted.  hinted: True if the prompt contained the fact.
    reasoning: reasoning that the endpoint returned separately from the text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    row: str
    sample: int
    digest: str
    text: str
    finish_reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 1
    seconds: float = 0.0
    rejection: str = ""
    hinted: bool = False
    reasoning: str = ""

    def line(self) -> str:
        """Format the artifact's line, without fields that differ when the request is repeated."""
        return self.model_dump_json(exclude={"attempts", "seconds"}) + "\n"


def request_digest(model: str, messages: Iterable[Mapping[str, str]], sampling: Mapping[str, Any]) -> str:
    """Digest of a request: its model, prompt and sampling settings, seed included."""
    payload = json.dumps([model, [dict(turn) for turn in messages], dict(sampling)], sort_keys=True, ensure_ascii=False)
    return sha256(payload.encode()).hexdigest()[:24]


class SampleStore:
    """Append-only file of samples, indexed by (row, sample, digest); a context manager.

    Opening removes an incomplete last line, which a kill leaves behind, and skips whole lines that cannot be parsed.
    Lines are flushed to disk (fsync) every FLUSH_EVERY samples and at the end: a power cut loses at most these samples, a
    kill at most the line being written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.added: list[Sample] = []
        self._found: dict[tuple[str, int, str], Sample] = {}
        self._pending = 0
        self._stream: IO[bytes]

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            try:
                sample = Sample.model_validate_json(line)
            except ValidationError:
                continue
            self._found[sample.row, sample.sample, sample.digest] = sample
        self._stream = self.path.open("ab")
        if len(whole) < len(content):
            self._stream.truncate(len(whole))
        return self

    def __exit__(self, *failure: object) -> None:
        self._sync()
        self._stream.close()

    def find(self, row: str, sample: int, digest: str) -> Sample | None:
        """Return the stored answer to this request, or None."""
        return self._found.get((row, sample, digest))

    def add(self, sample: Sample) -> None:
        """Append one answer."""
        self._stream.write(sample.model_dump_json().encode() + b"\n")
        self._stream.flush()
        self.added.append(sample)
        self._pending += 1
        if self._pending >= FLUSH_EVERY:
            self._sync()

    def _sync(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._pending = 0
