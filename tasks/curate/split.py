"""A corpus from rows: split by group and label, with a wall between test and training."""

import tempfile
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tasks.curate.corpus_files import ROWS_FILE, describe_corpus, read_card
from tasks.curate.references import check_articles, corpus_metrics, read_article_file
from tasks.curate.splitting.settings import SplitSettings
from tasks.curate.splitting.splits import fill_splits, keep_apart
from tasks.shared.forecast import Forecast, Rows, Workload, forecast_light
from tasks.shared.formats.tasks import read_tasks
from tasks.shared.items import RowSample
from tasks.shared.paths import user_path
from tasks.shared.technique import Inputs, Kind, Metrics, Port, Spec, StepRun

ROWS_PER_S = 5000


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Split(SplitSettings):
    """Train, calibration and test from rows.

    Groups stay whole, labels keep their shares, copies stay out of training.
    A group's split follows from a digest of its name and the seed, so rows that are added later move none of the others.
    """

    spec: ClassVar[Spec] = Spec(
        summary="Rows split by group and label, with near-copies of the test kept out of training",
        ports={"rows": Port((Kind.ROWS,))},
        produces=Kind.CORPUS,
        libraries=("pydantic", "numpy"),
    )

    def sources(self) -> tuple[Path, ...]:
        """The file of articles, whose content is part of the key."""
        return (user_path(self.articles),) if self.articles else ()

    def forecast(self, work: Workload) -> Forecast:
        """Time by the number of rows."""
        expected = self.expect(work.rows.train)
        return forecast_light(
            2 + work.rows.train / ROWS_PER_S,
            Rows(expected["train"], expected["test"], work.rows.longest, work.rows.tokens),
        )

    def preview_rows(self, source: RowSample | None) -> RowSample | None:
        """Return the rows to split: all of them may be in the test."""
        return source

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Write the files of a corpus.

        Raises DataError if there are too few groups, or copies are refused.
        """
        source = inputs.one("rows").path
        articles = read_article_file(self.articles)
        check_articles([source / ROWS_FILE], articles)
        with tempfile.TemporaryDirectory(dir=run.scratch, prefix="split-") as folder:
            parts = fill_splits({"train": source / ROWS_FILE}, Path(folder), self, run.seed)
            overlap = keep_apart(parts, out, self)
        more = {"articles": len(articles), "reading": read_card(source), **parts.notes, "overlap": overlap}
        sizes = describe_corpus(out, articles.values(), read_tasks(source), more)
        return corpus_metrics(sizes, overlap)
