"""Timing rounds over all models: medians, ranges, and speed ratios within rounds.

Absolute times drift on a machine that is shared or heats up.  Two models timed in the same round share most of the drift, so the ratio
of their speeds, round by round, is the figure to trust.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from tasks.evaluate.timing.engines import Effort, Probe, Sample
from tasks.shared.engines.engine import EngineName
from tasks.shared.errors import ModelError, StillroomError
from tasks.shared.formats.records import Better, Figure
from tasks.shared.progress import track

log = logging.getLogger(__name__)
UNITS: Mapping[str, tuple[str, Better | None]] = {
    "tokens_per_second": ("tokens/s", "higher"),
    "time_to_first_token_s": ("s", "lower"),
    "time_per_token_s": ("s", "lower"),
    "end_to_end_s": ("s", "lower"),
    "load_s": ("s", "lower"),
    "peak_memory_bytes": ("bytes", "lower"),
    "peak_device_memory_bytes": ("bytes", "lower"),
    "energy_wh_per_1000": ("Wh", "lower"),
    "prompt_tokens": ("tokens", None),
    "answer_tokens": ("tokens", None),
}
"""Unit and direction of each figure; the suffix `_batch_<streams>` marks figures of several streams together."""
SPEED, BATCH = "tokens_per_second", "_batch_"


@dataclass(frozen=True)
class Timed:
    """One model in one engine, over all rounds.  failure: why there are no samples."""

    probe: Probe
    samples: Sequence[Sample]
    failure: str = ""


def time_in_rounds(
    probes: Sequence[Probe], effort: Effort, rounds: int, baseline: str, take: Callable[[Probe, Effort], Sample]
) -> list[Timed]:
    """Time every probe once per round (A B C A B C).

    A probe that fails is left out from then on, and its samples are dropped.  Raises ModelError if that is the baseline in its main engine.
    """
    samples: list[list[Sample]] = [[] for _ in probes]
    failures: dict[int, str] = {}
    order = [number for _ in range(rounds) for number in range(len(probes))]
    for number in track(order, "speed", len(order)):
        if number in failures:
            continue
        try:
            samples[number].append(take(probes[number], effort))
        except StillroomError as error:
            failures[number] = " ".join(str(error).split())
            if probes[number].name == baseline and probes[number].first:
                raise ModelError(f"baseline {baseline}", failures[number], "a model that can be timed") from error
            log.warning("%s was not timed in %s: %s", probes[number].name, probes[number].engine, failures[number])
    return [
        Timed(probe, [] if number in failures else samples[number], failures.get(number, ""))
        for number, probe in enumerate(probes)
    ]


def summarize(samples: Sequence[Sample]) -> dict[str, Figure]:
    """Return median and range of each figure that all repeats have; of a peak, the maximum."""
    names = [name for name in samples[0] if all(name in sample for sample in samples)] if samples else []
    return {name: _figure(name, [sample[name] for sample in samples]) for name in names}


def _figure(name: str, values: Sequence[float]) -> Figure:
    unit, better = UNITS[name.partition(BATCH)[0]]
    if better is None:
        return Figure(value=values[0], unit=unit)
    return median_with_range(
        values, "repeats", unit, better, max(values) if name.startswith("peak") else median(values)
    )


def median_with_range(
    values: Sequence[float], of: str, unit: str, better: Better, value: float | None = None
) -> Figure:
    """Return a value (default: the median) with its range; no range for a single value."""
    middle = median(values) if value is None else value
    if len(values) == 1:
        return Figure(value=middle, unit=unit, better=better)
    return Figure(
        value=middle, low=min(values), high=max(values), bounds=f"range of {len(values)} {of}", unit=unit, better=better
    )


def ratios(own: Sequence[Sample], other: Sequence[Sample], name: str) -> dict[str, Figure]:
    """Return speed ratios to the other model in the same round.

    Named `name` for one stream, and `name`_batch_<streams> for each batch size.
    """
    return {
        found: median_with_range(values, "rounds", "x", "higher")
        for found, values in _by_round(own, other, name).items()
    }


def _by_round(own: Sequence[Sample], other: Sequence[Sample], name: str) -> dict[str, list[float]]:
    speeds = [speed for speed in (own[0] if own and other else {}) if speed.startswith(SPEED)]
    return {
        speed.replace(SPEED, name): [mine[speed] / its[speed] for mine, its in zip(own, other, strict=True)]
        for speed in speeds
    }


def slower_notes(
    child: str, parent: str, engine: EngineName, own: Sequence[Sample], other: Sequence[Sample]
) -> list[str]:
    """Return a sentence for each number of streams at which the child is proven slower."""
    return [
        f"{child} is slower than its parent {parent}: {median(values):.2f}x [{min(values):.2f}, {max(values):.2f}] "
        f"in {engine}, {streams_of(name)}."
        for name, values in _by_round(own, other, SPEED).items()
        if below_one(values)
    ]


def below_one(ratios: Sequence[float]) -> bool:
    """Return True if per-round ratios are proven to be below 1.

    Each ratio is below 1, and so is their geometric mean (one-sided t-test of the logarithms at 5 %).  The first condition alone would hold
    for one in eight pairs of equal models in three rounds.  One round proves nothing.
    """
    from scipy.stats import t

    if len(ratios) < 2 or max(ratios) >= 1:
        return False
    logs = [math.log(ratio) for ratio in ratios]
    return fmean(logs) + float(t.ppf(0.95, len(logs) - 1)) * stdev(logs) / math.sqrt(len(logs)) < 0


def streams_of(name: str) -> str:
    """Return words for the number of streams behind a figure."""
    _, _, streams = name.partition(BATCH)
    return f"{streams} streams together" if streams else "one stream"


def named_by_engine(figures: Mapping[str, Figure], engine: EngineName, first: bool) -> dict[str, Figure]:
    """Return figures with plain names for the main engine, or with the engine's name appended."""
    return dict(figures) if first else {f"{name} ({engine})": figure for name, figure in figures.items()}


def timings_of(timed: Iterable[Timed], name: str) -> list[Timed]:
    """Return a model's timings in all engines, its main engine first."""
    return sorted((item for item in timed if item.probe.name == name), key=lambda item: not item.probe.first)


def samples_in_engine(timed: Iterable[Timed], name: str, engine: EngineName) -> Sequence[Sample]:
    """Return all rounds of a model in an engine; empty if it was not timed there."""
    return next((item.samples for item in timed if (item.probe.name, item.probe.engine) == (name, engine)), ())
