"""Log of an endpoint's answers by the content of their requests, shared by all runs."""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.shared.formats.rows import ToolCall
from tasks.shared.technique import StepRun

FLUSH_EVERY = 8
CHUNK = 1 << 16


class Sample(BaseModel):
    """One answer of an endpoint.

    row: id of the row that it answers.  sample: number of the sample for this row.  digest: of the request.
    rejection: reason why it was rejected; empty if accepted.  note: details of the rejection.
    hinted: True if the prompt contained the fact.
    reasoning: reasoning that the endpoint returned separately from the text.
    dropped: sampling parameters that the endpoint did not take.
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
    note: str = ""
    hinted: bool = False
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    dropped: tuple[str, ...] = ()

    def line(self) -> str:
        """Format the artifact's line, without fields that differ when the request is repeated."""
        return self.model_dump_json(exclude={"attempts", "seconds"}) + "\n"


def request_digest(
    model: str, messages: Iterable[Mapping[str, Any]], sampling: Mapping[str, Any], tools: str = "", number: int = 0
) -> str:
    """Digest of a request: its model, prompt, tools and sampling settings, seed included.

    number: tells requests apart that are the same but for a seed that is not sent.
    """
    content: list[Any] = [model, [dict(turn) for turn in messages], dict(sampling)]
    content += [tools, number] if tools or number else []
    return sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[
        :24
    ]


def answer_file(run: StepRun, identity: str) -> Path:
    """File of a model's answers, shared by all runs and versions of the code.

    identity: the model that answers; a request's digest names everything else that its answer depends on.
    Without a shared cache, the file is in the step's scratch folder.
    """
    folder = run.scratch if run.prediction_cache is None else run.prediction_cache.parent / "answers"
    return folder / f"{sha256(identity.encode()).hexdigest()[:16]}.jsonl"


class SampleStore:
    """Append-only file of samples by the digest of their request; a context manager.

    Several processes may use one file at the same time: each line is appended under a lock, and a look-up that finds nothing
    reads what the others have added.  A line that a kill cut short is removed by the next append, and lines that cannot be
    parsed are skipped.  Lines are flushed to disk (fsync) every FLUSH_EVERY samples and at the end: a power cut loses at most
    these samples, a kill at most the line being written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.added: list[Sample] = []
        self._found: dict[str, Sample] = {}
        self._read = 0
        self._pending = 0
        self._stream: IO[bytes]

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.path.open("a+b", buffering=0)
        self._refresh()
        return self

    def __exit__(self, *failure: object) -> None:
        self._sync()
        self._stream.close()

    def find(self, row: str, sample: int, digest: str) -> Sample | None:
        """Return the stored answer to the request with this digest, or None.

        row, sample: to which the returned copy belongs; another row may have asked the same.
        """
        if digest not in self._found:
            self._refresh()
        found = self._found.get(digest)
        return found and found.model_copy(update={"row": row, "sample": sample})

    def add(self, sample: Sample) -> None:
        """Append one answer."""
        fcntl.flock(self._stream, fcntl.LOCK_EX)
        try:
            self._end_last_line()
            self._stream.write(sample.model_dump_json().encode() + b"\n")
        finally:
            fcntl.flock(self._stream, fcntl.LOCK_UN)
        self._found[sample.digest] = sample
        self.added.append(sample)
        self._pending += 1
        if self._pending >= FLUSH_EVERY:
            self._sync()

    def _end_last_line(self) -> None:
        """Remove what follows the last line break; nobody else writes while the lock is held."""
        end = self._stream.seek(0, os.SEEK_END)
        whole, place = end, end
        while place:
            start = max(0, place - CHUNK)
            self._stream.seek(start)
            found = self._stream.read(place - start).rfind(b"\n")
            if found >= 0:
                whole = start + found + 1
                break
            whole = place = start
        if whole < end:
            self._stream.truncate(whole)

    def _refresh(self) -> None:
        """Read the whole lines that were added since the last time."""
        if os.fstat(self._stream.fileno()).st_size <= self._read:
            return
        self._stream.seek(self._read)
        content = self._stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.split(b"\n"):
            try:
                sample = Sample.model_validate_json(line)
            except ValidationError:
                continue
            self._found.setdefault(sample.digest, sample)

    def _sync(self) -> None:
        os.fsync(self._stream.fileno())
        self._pending = 0
