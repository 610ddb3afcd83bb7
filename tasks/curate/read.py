"""Rows from the user's own file, whatever its format.

Unsplit, for filters and `curate/split`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tasks.curate.corpus_files import ROWS_FILE, describe_rows
from tasks.curate.reading.bad_rows import quarantine_in
from tasks.curate.reading.files import (
    ROWS_PER_S,
    Ids,
    key_files,
    known_tasks,
    log_reading,
    make_unique,
    reading_card,
    write_file_rows,
)  # fmt: skip
from tasks.curate.reading.preview import preview_rows, rows_in, tokens_in
from tasks.curate.reading.row_reader import RowReader
from tasks.curate.reading.settings import ReadSettings
from tasks.shared.errors import ConfigError
from tasks.shared.forecast import Forecast, Rows, Workload, forecast_light
from tasks.shared.items import RowSample
from tasks.shared.technique import Inputs, Kind, Metrics, Spec, StepRun, Upstream


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Read(ReadSettings):
    """Rows of a file of conversations, whatever its format.

    OpenAI chat, prompt/completion, preferences, ShareGPT, Alpaca, questions and answers, options, texts and labels.

    JSON lines, a JSON array or object, CSV, TSV or Parquet, gzip'ed or not, by content; memory does not grow with the file.
    """

    path: str = ""
    """File, or folder of files; FILE.json#train takes the list `train` of a JSON object."""

    spec: ClassVar[Spec] = Spec(
        summary="Your own file, format found and named; bad lines to a quarantine, rows unsplit",
        ports={},
        produces=Kind.ROWS,
        libraries=("pydantic", "pyarrow"),
    )

    def sources(self) -> tuple[Path, ...]:
        """User files whose content is part of the key."""
        return key_files(self.path) if self.path else ()

    def forecast(self, work: Workload) -> Forecast:
        """Time and rows by the size of the file."""
        rows = rows_in(self.path, self.encoding)
        mean, longest = tokens_in(self.path, self.encoding)
        return forecast_light(2 + rows / ROWS_PER_S, Rows(rows, rows, longest, mean))

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """Yield an error if no file is given."""
        if not self.path:
            yield no_file(where)

    def preview_rows(self, source: RowSample | None) -> RowSample | None:
        """Return the rows at the beginning of the file."""
        return preview_rows(self.path, self) if self.path else None

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write rows.jsonl, tasks.json, card.json, and quarantine.jsonl if there are bad records."""
        if not self.path:
            raise no_file(f"steps.{run.step}")
        reader, ids = RowReader(self, known_tasks(self.path)), Ids()
        with quarantine_in(out) as quarantine:
            account = write_file_rows("path", self.path, out / ROWS_FILE, reader, quarantine, ids)
            renamed = make_unique([out / ROWS_FILE], ids)
        accounts = {"path": account}
        describe_rows(out, reader.tasks, reading_card(reader, accounts, quarantine, renamed))
        log_reading(reader, accounts, quarantine, renamed)
        return {"read": account.read, "rows": account.kept, "quarantined": quarantine.count}


def no_file(where: str) -> ConfigError:
    """Return the error for a step without a file.  where: place of the step in the recipe."""
    return ConfigError(f"{where}.path", "no file given", "a file of conversations", f"{where}.path=path/to/data.jsonl")
