"""Results of a sweep: the candidates of its jobs, and the best of them.

Candidates are ranked by, in this order:

1. the verdict: ship, then not enough data, then do not ship;
2. the headroom: the distance from minus the margin to the lower bound of the difference from the baseline, in margins; the
   smallest over all deciding measures.  0: just inside.  1: shown to lose nothing.  A missing measure leaves no headroom;
3. the size on disk, the smaller first; then the order of the jobs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, isfinite
from pathlib import Path

from flows.planning.config import is_variant
from tasks.report.words.wording import DECISION_RANK, headroom
from tasks.shared.formats.verdict import Comparison, MeasureComparison, Verdict
from tasks.shared.store.keys import digest_json

TAG = "stillroom.sweep"
"""MLflow tag of the runs of a sweep's jobs."""
LOG_RATIO = 20
"""Ratio of the largest to the smallest swept value from which the axis is logarithmic."""


@dataclass
class Job:
    """Result of one job of a command.

    code: exit code of this job.
    verdict: verdict of its last verdict step, which `judge` names.
    folders: output folder by step.
    """

    overrides: list[str]
    code: int = 0
    error: BaseException | None = None
    seconds: float = 0.0
    verdict: Verdict | None = None
    judge: str = ""
    report: str = ""
    """The step whose folder holds its report; empty if it has none."""
    folders: Mapping[str, Path] = field(default_factory=dict)
    home: Path = field(default_factory=Path)
    """The folder of all artifacts."""

    @property
    def decision(self) -> str | None:
        """Decision of the verdict, if there is one."""
        return self.verdict.decision if self.verdict else None


@dataclass(frozen=True)
class Entry:
    """One candidate of one job."""

    job: int
    name: str
    verdict: Verdict

    @property
    def comparison(self) -> Comparison:
        """Comparison with its job's baseline."""
        return self.verdict.comparisons[self.name]

    @property
    def digest(self) -> str:
        """Digest of the model's files; empty if unknown."""
        return self.verdict.models[self.name].digest

    @property
    def size(self) -> int | None:
        """Bytes on disk, if known."""
        return self.verdict.models[self.name].size_bytes or None

    @property
    def deciding(self) -> dict[str, MeasureComparison]:
        """The measures with a margin that this candidate was measured on."""
        return {name: found for name in self.verdict.margin if (found := self.comparison.measures.get(name))}

    @property
    def headroom(self) -> float:
        """Smallest headroom of any deciding measure, in margins (see the module's docstring)."""
        found = self.deciding
        return min(map(headroom, found.values())) if found and len(found) == len(self.verdict.margin) else -inf

    @property
    def rank(self) -> tuple[int, float, float, int]:
        """Rank of the candidate: higher is better; among equals, the first in order wins."""
        return DECISION_RANK[self.comparison.decision], self.headroom, -(self.size or inf), -self.job

    def shown_better(self, other: "Entry") -> bool:
        """Return True if its bounds are above the other's on a deciding measure, and below on none."""
        pairs = [(mine, other.deciding[name]) for name, mine in self.deciding.items() if name in other.deciding]
        return any(a.low > b.high for a, b in pairs) and not any(b.low > a.high for a, b in pairs)


@dataclass(frozen=True)
class Row:
    """Row of one candidate, or of a job without candidates.

    first: first row of its job; only this row shows the overrides.
    """

    job: int
    entry: Entry | None
    first: bool


@dataclass(frozen=True)
class Axis:
    """Places of the jobs on a plot.

    places, labels: by job; places are the swept values if `numeric`.
    """

    title: str
    places: list[float]
    labels: list[str]
    numeric: bool = False
    log: bool = False


@dataclass(frozen=True)
class Sweep:
    """Jobs of one sweep.

    name: name of its page, and its tag in MLflow.
    """

    name: str
    jobs: Sequence[Job]

    @cached_property
    def entries(self) -> list[Entry]:
        """Every candidate of every job that has a verdict."""
        judged = [(number, job.verdict) for number, job in enumerate(self.jobs) if job.verdict is not None]
        return [Entry(number, name, verdict) for number, verdict in judged for name in verdict.proposed]

    @cached_property
    def own(self) -> list[list[str]]:
        """Overrides by job, without those that all jobs share."""
        common = set.intersection(*(set(job.overrides) for job in self.jobs))
        return [[item for item in job.overrides if item not in common] for job in self.jobs]

    @cached_property
    def varied(self) -> list[str]:
        """Settings that differ between the jobs, such as steps.student.temperature."""
        return list(dict.fromkeys(item.partition("=")[0].lstrip("+~") for items in self.own for item in items))

    @cached_property
    def labels(self) -> list[str]:
        """Label by job: its own overrides, each name shortened to its distinct end."""
        names = short_names(self.varied)
        return [" ".join(short_override(item, names) for item in items) or "as written" for items in self.own]

    @cached_property
    def axis(self) -> Axis:
        """Axis of the plots: by value if all jobs differ in one number other than a seed."""
        title, each = ", ".join(self.varied), [float(number) for number in range(len(self.jobs))]
        if len(self.varied) != 1 or any(len(items) != 1 for items in self.own):
            return Axis(title, each, self.labels)
        labels = [items[0].partition("=")[2] for items in self.own]
        values = [as_number(label) for label in labels]
        known = [value for value in values if value is not None]
        if len(known) < len(values) or self.varied[0].rpartition(".")[2] == "seed":
            return Axis(title, each, labels)
        return Axis(title, known, labels, numeric=True, log=min(known) > 0 and max(known) / min(known) >= LOG_RATIO)

    @cached_property
    def candidates(self) -> list[str]:
        """Names of all candidates."""
        return list(dict.fromkeys(entry.name for entry in self.entries))

    @cached_property
    def measures(self) -> list[str]:
        """All measures that decide in any job."""
        return list(dict.fromkeys(name for entry in self.entries for name in entry.verdict.margin))

    @cached_property
    def best(self) -> Entry | None:
        """The best candidate by its verdict, if any job has one."""
        return max(self.entries, key=lambda entry: entry.rank, default=None)

    @cached_property
    def rivals(self) -> list[Entry]:
        """Other models that the best one is not shown to be better than."""
        best = self.best
        if best is None:
            return []
        others = [one for one in self.entries if one is not best and not (one.digest and one.digest == best.digest)]
        return [
            one for one in others if baseline_of(one.verdict) != baseline_of(best.verdict) or not best.shown_better(one)
        ]

    @cached_property
    def models(self) -> int:
        """Number of judged models; a model of several jobs counts once."""
        return len({(entry.name, entry.digest or str(entry.job)) for entry in self.entries})


def sweep_name(arguments: Sequence[str]) -> str:
    """Name of a sweep: its recipe and a digest of its overrides, the same for every run.

    arguments: command line, whose flags are ignored.
    """
    typed = [item for item in arguments if not item.startswith("-") and not item.lstrip("+~").startswith("hydra")]
    recipes = [item.partition("=")[2] for item in typed if item.lstrip("+").startswith("recipe=")]
    changed = sorted(item for item in typed if is_variant([item]))
    return f"{re.sub(r'[^A-Za-z0-9_]+', '-', recipes[0]) if recipes else 'sweep'}-{digest_json([recipes, changed])[:8]}"


def as_number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Shorten dotted names to distinct ends: ratio, or slim.ratio if student.ratio exists."""
    found = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
        found[key] = next(
            end
            for end in ends
            if end == key or not any(f".{other}".endswith(f".{end}") for other in keys if other != key)
        )
    return found


def short_override(item: str, names: Mapping[str, str]) -> str:
    """Return an override with its name shortened."""
    key, equals, value = item.partition("=")
    bare = key.lstrip("+~")
    return f"{'~' * key.startswith('~')}{names[bare]}{equals}{value}"


def baseline_of(verdict: Verdict) -> object:
    """Identity of the baseline: its digest, else its scores."""
    model = verdict.models[verdict.baseline]
    return model.digest or {name: score.value for name, score in model.scores.items()}


def table_rows(sweep: Sweep) -> list[Row]:
    """Return a row for each candidate, or for a job without candidates."""
    rows = []
    for number in range(len(sweep.jobs)):
        own: list[Entry | None] = [entry for entry in sweep.entries if entry.job == number]
        rows += [Row(number, entry, index == 0) for index, entry in enumerate(own or [None])]
    return rows
