"""A corpus from your own conversations in any common format, in one file or three."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tasks.curate.corpus_files import describe_corpus
from tasks.curate.reading.bad_rows import Quarantine, quarantine_in
from tasks.curate.reading.files import (
    ROWS_PER_S,
    Account,
    Ids,
    key_files,
    known_tasks,
    log_reading,
    make_unique,
    reading_card,
    write_file_rows,
)  # fmt: skip
from tasks.curate.reading.preview import preview_rows, rows_in
from tasks.curate.reading.row_reader import RowReader
from tasks.curate.reading.settings import ReadSettings
from tasks.curate.references import check_articles, corpus_metrics, read_article_file
from tasks.curate.splitting.settings import SplitSettings
from tasks.curate.splitting.splits import expected_rows, fill_splits, keep_apart
from tasks.shared.errors import ConfigError, DataError, ErrorList, StillroomError
from tasks.shared.forecast import Forecast, Workload, forecast_light
from tasks.shared.formats.articles import Article
from tasks.shared.formats.rows import Row, Split
from tasks.shared.formats.tasks import DEFAULT_TASK
from tasks.shared.items import RowSample
from tasks.shared.paths import user_path
from tasks.shared.technique import Inputs, Kind, Metrics, Spec, StepRun, Upstream


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Jsonl(ReadSettings, SplitSettings):
    """A corpus from your own files: one that is split, or one for each split.

    Reads what `curate/read` reads and splits as `curate/split` does.  A split that has no file is taken from train.
    """

    path: str = ""
    """File or folder of conversations, to be split; FILE.json#train takes the list `train` of a JSON object."""
    train: str = ""
    """File of conversations for training only; without `path`, splits that have no file are taken from it."""
    calibration: str = ""
    """File for pruning and quantization statistics; empty: taken from the training conversations."""
    test: str = ""
    """File of test conversations; empty: taken from the training conversations."""

    spec: ClassVar[Spec] = Spec(
        summary="Your own conversations in any common format, one file or three; bad lines and copies of the test set aside",
        ports={},
        produces=Kind.CORPUS,
        libraries=("pydantic", "pyarrow", "numpy"),
    )

    @property
    def given(self) -> dict[str, str]:
        """Paths by setting, as given."""
        paths = {"path": self.path, "train": self.train, "calibration": self.calibration, "test": self.test}
        return {name: path for name, path in paths.items() if path}

    def sources(self) -> tuple[Path, ...]:
        """User files whose content is part of the key."""
        files = [file for path in self.given.values() for file in key_files(path)]
        return (*dict.fromkeys(files), *((user_path(self.articles),) if self.articles else ()))

    def forecast(self, work: Workload) -> Forecast:
        """Time and rows by the sizes of the files."""
        rows = sum(rows_in(path, self.encoding) for path in self.given.values())
        return forecast_light(5 + rows / ROWS_PER_S * 3, expected_rows(self.given, self, self.encoding))

    def plan_problems(
        self, where: str, inputs: Mapping[str, tuple[str, ...]], upstream: Mapping[str, Upstream]
    ) -> Iterator[ConfigError]:
        """Yield an error if no file is given."""
        if not (self.path or self.train):
            yield no_file(where)

    def preview_rows(self, source: RowSample | None) -> RowSample | None:
        """Return the rows at the beginning of the file that the test is taken from."""
        path = self.test or self.path or self.train
        return preview_rows(path, self) if path else None

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the files of a corpus, and quarantine.jsonl if there are bad records.

        Raises ErrorList with the problems of all files at once.
        """
        if not (self.path or self.train):
            raise no_file(f"steps.{run.step}")
        reader, ids = RowReader(self, known_tasks(*self.given.values())), Ids()
        with tempfile.TemporaryDirectory(dir=run.scratch, prefix="rows-") as name:
            folder = Path(name)
            try:
                with quarantine_in(out) as quarantine:
                    accounts, files, articles = self._read(folder, reader, quarantine, ids)
            except StillroomError:
                (out / "quarantine.jsonl").unlink(missing_ok=True)
                raise
            renamed = make_unique(list(files.values()), ids)
            log_reading(reader, accounts, quarantine, renamed)
            parts = fill_splits(files, folder, self, run.seed)
            overlap = keep_apart(parts, out, self)
        reading = reading_card(reader, accounts, quarantine, renamed)
        more = {"articles": len(articles), "reading": reading, **parts.notes, "overlap": overlap}
        sizes = describe_corpus(out, articles.values(), reader.tasks, more)
        return corpus_metrics(sizes, overlap) | {"quarantined": quarantine.count}

    def _read(
        self, folder: Path, reader: RowReader, quarantine: Quarantine, ids: Ids
    ) -> tuple[dict[str, Account], dict[str, Path], dict[str, Article]]:
        errors: list[StillroomError] = []
        articles: dict[str, Article] = {}
        accounts: dict[str, Account] = {}
        files = {name: folder / f"{name}.jsonl" for name in self.given}
        try:
            articles = read_article_file(self.articles)
        except DataError as error:
            errors.append(error)
        for name, file in files.items():
            try:
                accounts[name] = write_file_rows(name, self.given[name], file, reader, quarantine, ids)
            except DataError as error:
                errors.append(error)
        try:
            check_articles([files[name] for name in accounts], articles)
        except DataError as error:
            errors.append(error)
        if errors:
            raise errors[0] if len(errors) == 1 else ErrorList(errors)
        return accounts, files, articles


def no_file(where: str) -> ConfigError:
    """Return the error for a step without a file.  where: place of the step in the recipe."""
    wanted = "a file of conversations: path=..., or train=... with test=..."
    return ConfigError(f"{where}.path", "no file given", wanted, f"{where}.path=path/to/data.jsonl")


def read_split(split: Split, path: str, task: str = DEFAULT_TASK) -> list[Row]:
    """Read the rows of one file of any format that `Jsonl` reads.

    split: also the prefix of new ids.  task: name of the task of rows that have none of their own.
    Raises DataError for a missing file, a file that is no data, or too many bad lines.
    """
    if not path:
        raise DataError(f"curate.{split}", "no file given", "a file of conversations", f"{split}=path/to/data.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        write_file_rows(split, path, file, RowReader(Jsonl(), known_tasks(path)), Quarantine(), Ids())
        with file.open("rb") as stream:
            rows = [Row.model_validate_json(line) for line in stream]
    return [row.model_copy(update={"task": task}) if row.task == DEFAULT_TASK else row for row in rows]
