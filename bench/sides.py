"""Measurements in child processes: two sides in turns, and the ratio of ours to theirs."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from bench.patience import Neighbors
from bench.tables import console

SIDES = ("ours", "by hand")


def compared(
    bench: str,
    job: dict[str, Any],
    measures: Sequence[str],
    rounds: int,
    neighbors: Neighbors,
    sides: Sequence[str] = SIDES,
) -> Iterator[tuple[str, ...]]:
    """Yield a row of medians for each side, and one of the ratios of ours to theirs.

    bench: module that is run with `--job`, a JSON object with `side` added to `job`, and prints one of figures.
    """
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for turn in range(rounds):
        for side in sides if turn % 2 == 0 else reversed(sides):
            with neighbors.running():
                found[side].append(child(bench, **job, side=side))
    for side in sides:
        yield side, *(spread([one[key] for one in found[side]]) for key in measures)
    if len(sides) < 2:
        return
    pairs = list(zip(*found.values(), strict=True))
    yield "ratio", *(spread([ours[key] / theirs[key] for ours, theirs in pairs]) for key in measures)


def spread(values: Sequence[float]) -> str:
    """Median with the extremes; the value alone if there is one."""
    whole = f"{median(values):.3g}"
    return f"{whole} [{min(values):.3g}, {max(values):.3g}]" if len(values) > 1 else whole


def child(bench: str, **job: Any) -> dict[str, float]:
    """Measure in a process of its own."""
    words = [sys.executable, "-m", bench, "--job", json.dumps(job)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def say_machine() -> None:
    """Print the machine and its load."""
    machine = platform.processor() or platform.machine()
    console.print(f"{machine}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
