"""Cost of orchestration: chains of empty steps, run in every supported way.

python -m bench.orchestration                     three rounds, about five minutes on two cores
python -m bench.orchestration --rounds 1

Each round changes a setting of the first step, so that every step runs again; then the same command runs with nothing to do.
Two lengths of the chain separate the cost of a step from the cost of a command.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.e2e.prefect_server import run_server
from tests.workshop import Workshop, build_workshop

SHORT, LONG = 2, 12
"""Number of steps of the two chains."""
RECIPE = """# @package _global_
defaults:
  - /curate@steps.s0: toy
{defaults}
  - _self_
name: chain
steps:
  s0: {{text: "round {number}"}}
  s1: {{inputs: {{data: s0}}}}
{steps}
"""
CALLS = """
import sys, tempfile, time
from pathlib import Path
from tasks.shared.technique import Artifact, Inputs, Kind, StepRun
from tasks.curate.toy import Toy as Curate
from tasks.distill.toy import Toy as Distill
from tasks.prune.toy import Toy as Prune
root = Path(tempfile.mkdtemp())
started = time.perf_counter()
inputs, port = Inputs({}), "data"
for number, technique in enumerate([Curate(), Distill(), *[Prune() for _ in range(10)]]):
    out = root / str(number)
    out.mkdir()
    technique(inputs, out, StepRun(f"s{number}", 0, root))
    inputs = Inputs({"data" if number == 0 else "model": (Artifact(f"s{number}", Kind.MODEL, out),)})
print(time.perf_counter() - started)
"""


@dataclass
class Figures:
    """Seconds of one way to run the chains, by round.

    again: the long chain with nothing to do.
    """

    short: list[float] = field(default_factory=list)
    long: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)

    def per_step(self) -> list[float]:
        """Seconds for each additional step, by round."""
        return [(long - short) / (LONG - SHORT) for short, long in zip(self.short, self.long, strict=True)]


def write_recipe(shop: Workshop, number: int, length: int) -> None:
    """Write the recipe of a chain, with a new setting in each round."""
    names = [f"s{index}" for index in range(length)]
    defaults = ["  - /distill@steps.s1: toy", *(f"  - /prune@steps.{name}: toy" for name in names[2:])]
    steps = [f"  {name}: {{inputs: {{model: {before}}}}}" for before, name in zip(names[1:], names[2:], strict=False)]
    text = RECIPE.format(defaults="\n".join(defaults), steps="\n".join(steps), number=number)
    (shop.folder / "conf/recipe/chain.yaml").write_text(text, "utf-8")


def timed(run: Callable[[], "subprocess.CompletedProcess[str]"]) -> float:
    """Return the seconds of a command; exit if it fails."""
    started = time.perf_counter()
    done = run()
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stderr)
    return seconds


def ways(shop: Workshop, url: str) -> dict[str, Callable[[], "subprocess.CompletedProcess[str]"]]:
    """All ways to run the chain, by their names in the table."""
    plain = ["+recipe=chain", "runtime.orchestrator=none"]
    return {
        "plain loop": lambda: shop.compress(*plain, "tracking=none", "runtime.dvc=false"),
        "plain loop, DVC": lambda: shop.compress(*plain, "tracking=none"),
        "plain loop, DVC, MLflow": lambda: shop.compress(*plain, "tracking=mlflow"),
        "Prefect (temporary server), DVC, MLflow": lambda: shop.compress(
            "+recipe=chain", "runtime.orchestrator=prefect", "tracking=mlflow"
        ),
        "Prefect (running server), DVC, MLflow": lambda: shop.compress(
            "+recipe=chain", "runtime.orchestrator=prefect", "tracking=mlflow", env={"PREFECT_API_URL": url}
        ),
        "dvc repro": lambda: shop.dvc("repro"),
    }


def measure(shop: Workshop, url: str, rounds: int) -> dict[str, Figures]:
    """Measure all ways in turn, in every round."""
    figures: dict[str, Figures] = {}
    number = 0
    for _ in range(rounds):
        calls = shop.command(sys.executable, "-c", CALLS)
        figures.setdefault("bare function calls", Figures()).long.append(float(calls.stdout))
        for name, run in ways(shop, url).items():
            found = figures.setdefault(name, Figures())
            for length, seconds in ((SHORT, found.short), (LONG, found.long)):
                number += 1
                write_recipe(shop, number, length)
                if shop.python("flows.sync", "chain").returncode:
                    sys.exit("flows.sync failed")
                shop.executed()
                seconds.append(timed(run))
                if len(shop.executed()) != length:
                    sys.exit(f"{name}: not every step ran")
            found.again.append(timed(run))
            if shop.executed():
                sys.exit(f"{name}: a step ran again")
    return figures


def spread(values: list[float]) -> str:
    """Median and range."""
    if not values:
        return "-"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        shop = build_workshop(Path(name) / "shop")
        write_recipe(shop, 0, SHORT)
        if shop.python("flows.sync", "chain", "--remove", "toy", "--remove", "toy_too").returncode:
            sys.exit("flows.sync failed")
        with run_server(shop, Path(name) / "prefect") as server:
            figures = measure(shop, server.url, options.rounds)
    table = Table(title=f"steps without work, seconds: median (range) of {options.rounds} rounds")
    for column in ("way", f"{LONG} steps", "each additional step", f"nothing to do, {LONG} steps"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, found in figures.items():
        per_step = found.per_step() if found.short else [value / LONG for value in found.long]
        table.add_row(way, spread(found.long), spread(per_step), spread(found.again))
    console = Console()
    console.print(table)
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
