"""Rows without exact and near-copies of earlier ones; every near-copy is verified."""

import hashlib
import json
import logging
from array import array
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tasks.curate.corpus_files import ROWS_FILE, describe_rows, read_card
from tasks.shared.forecast import Forecast, Workload, forecast_light
from tasks.shared.formats.articles import question_of
from tasks.shared.formats.tasks import read_tasks
from tasks.shared.items import RowSample
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun
from tasks.shared.text.affixes import Affixes, ends_of, find_affixes
from tasks.shared.text.near_copies import is_copy
from tasks.shared.text.overlap import plain_text, shingles

if TYPE_CHECKING:
    import numpy as np

DROPPED = "dropped.jsonl"
BUCKETS = 1 << 20
"""Counters of shingles: those that fall into rare buckets are compared first."""
CACHED = 5000
"""Rows whose shingles stay in memory; others are read again when they are candidates."""
SAMPLE = 5000
"""Texts in which shared beginnings and ends are looked for."""
ROWS_PER_S = 2000
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Dedup:
    """Rows without copies: the first of each is kept.

    Candidates share one of their rarest shingles (Chaudhuri et al. 2006, "A primitive operator for similarity joins"), which misses no
    pair above the threshold.
    """

    threshold: Annotated[float, Field(gt=0.3, le=1)] = 0.8
    """Jaccard similarity of character 5-grams above which a row of 20 words or more copies another; shorter ones must be alike in their
    words as well (`tasks/shared/text/near_copies.py`).  1: exact copies only."""
    compare: Literal["conversation", "question"] = "conversation"
    """Text that is compared: everything that user and assistant say, or the user's turns only."""

    spec: ClassVar[Spec] = Spec(
        summary="Rows without exact and near-copies of earlier ones, each verified",
        ports={"rows": Port((Kind.ROWS,))},
        produces=Kind.ROWS,
        libraries=("numpy",),
    )

    def forecast(self, work: Workload) -> Forecast:
        """Time by the number of rows."""
        return forecast_light(2 + work.rows.train / ROWS_PER_S, work.rows)

    def preview_rows(self, source: RowSample | None) -> RowSample | None:
        """Return the rows of the input: those that remain are among them."""
        return source

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write rows.jsonl, dropped.jsonl, tasks.json and card.json.

        dropped.jsonl: id, the row that it copies, similarity.
        """
        source = inputs.one("rows").path
        finder = Finder(source / ROWS_FILE, self.threshold, self.compare)
        read = exact = near = 0
        with (
            (source / ROWS_FILE).open("rb") as stream,
            (out / ROWS_FILE).open("wb") as kept,
            (out / DROPPED).open("w", encoding="utf-8") as dropped,
        ):
            for read, line in enumerate(stream, start=1):  # noqa: B007
                row = json.loads(line)
                found = finder.copy_of(row, stream.tell() - len(line))
                if found is None:
                    kept.write(line)
                    continue
                exact, near = exact + (found[1] == 1.0), near + (found[1] < 1.0)
                entry = {"id": row["id"], "copy_of": found[0], "similarity": round(found[1], 4)}
                dropped.write(json.dumps(entry, ensure_ascii=False) + "\n")
        counts = {"read": read, "rows": read - exact - near, "exact": exact, "near": near}
        describe_rows(out, read_tasks(source), {**read_card(source), "dedup": counts})
        log.info("%d of %d rows kept; %d exact and %d near-copies dropped", counts["rows"], read, exact, near)
        return dict(counts)


class Finder:
    """Search for an earlier row that a row copies; keeps digests, not texts.

    file: rows that are asked for, in order.  threshold, compare: as in `Dedup`.
    """

    def __init__(self, file: Path, threshold: float, compare: str) -> None:
        import numpy as np

        self.file, self.threshold, self.compare = file, threshold, compare
        self.offsets, self.sizes = array("q"), array("q")
        self.kept = lru_cache(maxsize=CACHED)(self._kept)
        self.exact: dict[bytes, int] = {}
        self.places: dict[int, list[int]] = {}
        self.affixes = Affixes()
        self.counters = np.zeros(BUCKETS, dtype=np.uint32)
        if threshold < 1:
            self.affixes = find_affixes([ends_of(text) for text, _ in zip(self._texts(), range(SAMPLE), strict=False)])
            for text in self._texts():
                self.counters[(shingles(self.affixes.cut(text)) % BUCKETS).astype(np.int64)] += 1

    def copy_of(self, row: dict[str, Any], offset: int) -> tuple[str, float] | None:
        """Return id and similarity of the earlier row that a row copies, or None.

        A row that is new is remembered.

        offset: of the row in the file.
        """
        whole = self._text(row)
        text = plain_text(whole) or whole
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if (place := self.exact.get(digest)) is not None:
            return self.kept(place)[0], 1.0
        text = self.affixes.cut(whole)
        grams = shingles(text)
        rare = self._rare(grams)
        found = self._near(text, grams, rare)
        if found is None:
            self.exact[digest] = len(self.offsets)
            for gram in rare:
                self.places.setdefault(gram, []).append(len(self.offsets))
            self.offsets.append(offset)
            self.sizes.append(len(grams))
        return found

    def _near(self, text: str, grams: "np.ndarray", rare: list[int]) -> tuple[str, float] | None:
        import numpy as np

        for place in sorted({place for gram in rare for place in self.places.get(gram, ())}):
            if not self.threshold <= self.sizes[place] / len(grams) <= 1 / self.threshold:
                continue
            name, near, others = self.kept(place)
            shared = len(np.intersect1d(grams, others, assume_unique=True))
            similarity = shared / (len(grams) + len(others) - shared)
            if is_copy(similarity, text, near, self.threshold):
                return name, min(similarity, 0.9999)
        return None

    def _rare(self, grams: "np.ndarray") -> list[int]:
        """The rarest shingles, as many as a pair above the threshold cannot all miss.

        Empty for exact copies only.
        """
        import numpy as np

        if self.threshold >= 1:
            return []
        order = np.lexsort((grams, self.counters[(grams % BUCKETS).astype(np.int64)]))
        count = len(grams) - int(np.ceil(self.threshold * len(grams))) + 1
        return [int(gram) for gram in grams[order[:count]]]

    def _text(self, row: dict[str, Any]) -> str:
        roles = {"user"} if self.compare == "question" else {"user", "assistant"}
        return "\n".join(question_of(message["content"]) for message in row["messages"] if message["role"] in roles)

    def _texts(self) -> Iterator[str]:
        with self.file.open("rb") as stream:
            for line in stream:
                yield self._text(json.loads(line))

    def _kept(self, place: int) -> "tuple[str, str, np.ndarray]":
        """Id, text and shingles of a row that was remembered, from the file."""
        with self.file.open("rb") as stream:
            stream.seek(self.offsets[place])
            row = json.loads(stream.readline())
        text = self.affixes.cut(self._text(row))
        return str(row["id"]), text, shingles(text)
