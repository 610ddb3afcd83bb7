"""Answers of an endpoint as they come in: one JSON line each, so that a killed run goes on where it stopped."""

import json
import os
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

FLUSH_EVERY = 8


class Sample(BaseModel):
    """One answer.  row, sample: what it answers, and which try.  digest: of everything that asked for it.

    rejection: "" if accepted, else the reason.  hinted: the teacher was told the fact.  reasoning: what the endpoint gave beside the text.
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
        """Its line in the artifact: without what differs when the same answer is asked for again."""
        return self.model_dump_json(exclude={"attempts", "seconds"}) + "\n"


def request_digest(model: str, messages: Iterable[Mapping[str, str]], sampling: Mapping[str, Any]) -> str:
    """Digest of one request: another prompt, sampling setting, seed or model gives another one."""
    payload = json.dumps([model, [dict(turn) for turn in messages], dict(sampling)], sort_keys=True, ensure_ascii=False)
    return sha256(payload.encode()).hexdigest()[:24]


class SampleStore:
    """An append-only file of samples, found again by (row, sample, digest).  Use as a context manager.

    On opening, a last line that a kill cut short is cut off the file; whole lines that cannot be read are passed over.
    Lines reach the disk (fsync) every FLUSH_EVERY samples and at the end: a power cut loses at most those, a killed
    process at most the line it was writing.
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
        """The stored answer to this very request, or None."""
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
