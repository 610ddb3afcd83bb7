"""Rounds of timing over all models, and what they come to: medians, ranges, and ratios within a round.

Seconds on a machine that others use, or that heats up, drift.  Two models timed in the same round share most of that, so the
ratio of their speeds, round by round, is the figure to trust.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from tasks.evaluate.timing.engines import Effort, Probe, Sample
from tasks.shared.engines.engine import Engine
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
"""Unit of each figure, and whether more is better; with `_batch_<streams>` behind a name, that of so many streams together."""
SPEED, BATCH = "tokens_per_second", "_batch_"


@dataclass(frozen=True)
class Timed:
    """One model in one engine, every round of it.  failure: why there are none."""

    probe: Probe
    samples: Sequence[Sample]
    failure: str = ""


def time_in_rounds(
    probes: Sequence[Probe], effort: Effort, rounds: int, baseline: str, take: Callable[[Probe, Effort], Sample]
) -> list[Timed]:
    """A B C A B C: every probe once a round.  One that fails is left out from then on, with what it gave before.

    Raises ModelError when that is the baseline in its first engine.
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
    """Median and range of each figure; of a peak the largest.  A figure that a repeat lacks is left out."""
    names = [name for name in samples[0] if all(name in sample for sample in samples)] if samples else []
    return {name: _figure(name, [sample[name] for sample in samples]) for name in names}


def _figure(name: str, values: Sequence[float]) -> Figure:
    unit, better = UNITS[name.partition(BATCH)[0]]
    if better is None:
        return Figure(value=values[0], unit=unit)
    return spread(values, "repeats", unit, better, max(values) if name.startswith("peak") else median(values))


def spread(values: Sequence[float], of: str, unit: str, better: Better, value: float | None = None) -> Figure:
    """A value (the median) with its range; no range where there is one value only."""
    middle = median(values) if value is None else value
    if len(values) == 1:
        return Figure(value=middle, unit=unit, better=better)
    return Figure(
        value=middle, low=min(values), high=max(values), bounds=f"range of {len(values)} {of}", unit=unit, better=better
    )


def ratios(own: Sequence[Sample], other: Sequence[Sample], name: str) -> dict[str, Figure]:
    """Speed over the other's in the same round, for one stream (`name`) and for each batch size (`name`_batch_<streams>)."""
    return {found: spread(values, "rounds", "x", "higher") for found, values in _by_round(own, other, name).items()}


def _by_round(own: Sequence[Sample], other: Sequence[Sample], name: str) -> dict[str, list[float]]:
    speeds = [speed for speed in (own[0] if own and other else {}) if speed.startswith(SPEED)]
    return {
        speed.replace(SPEED, name): [mine[speed] / its[speed] for mine, its in zip(own, other, strict=True)]
        for speed in speeds
    }


def slower(child: str, parent: str, engine: Engine, own: Sequence[Sample], other: Sequence[Sample]) -> list[str]:
    """A sentence for each number of streams at which the child is shown to be slower (`below_one`)."""
    return [
        f"{child} is slower than {parent}, which it was made from: {median(values):.2f}x [{min(values):.2f}, {max(values):.2f}] "
        f"in {engine}, {streams_of(name)}."
        for name, values in _by_round(own, other, SPEED).items()
        if below_one(values)
    ]


def below_one(ratios: Sequence[float]) -> bool:
    """Whether ratios, one a round, are shown to be below 1: each of them is, and so is their mean (Student's t of the logarithms, 5 %, one-sided).

    Each alone would be said of one in eight pairs of equal models with three rounds.  One round shows nothing.
    """
    from scipy.stats import t

    if len(ratios) < 2 or max(ratios) >= 1:
        return False
    logs = [math.log(ratio) for ratio in ratios]
    return fmean(logs) + float(t.ppf(0.95, len(logs) - 1)) * stdev(logs) / math.sqrt(len(logs)) < 0


def streams_of(name: str) -> str:
    """Words for how many streams a figure is of."""
    _, _, streams = name.partition(BATCH)
    return f"{streams} streams together" if streams else "one stream"


def of_engine(figures: Mapping[str, Figure], engine: Engine, first: bool) -> dict[str, Figure]:
    """Figures under their own names for the model's first engine, with the engine behind them for another."""
    return dict(figures) if first else {f"{name} ({engine})": figure for name, figure in figures.items()}


def of_model(timed: Iterable[Timed], name: str) -> list[Timed]:
    """All that a model was timed in, the engine that counts first."""
    return sorted((item for item in timed if item.probe.name == name), key=lambda item: not item.probe.first)


def in_engine(timed: Iterable[Timed], name: str, engine: Engine) -> Sequence[Sample]:
    """Every round of a model in an engine; none if it was not timed there."""
    return next((item.samples for item in timed if (item.probe.name, item.probe.engine) == (name, engine)), ())
