"""Time of whole steps by thread waiting and load, and cost of starting a step.

python -m bench.patience                         the embedded model, five rounds: hours on two cores, with no other program running
python -m bench.patience --quick                 a small random model, one round: some minutes
python -m bench.patience starts --rounds 7

Steps run idle and with other busy programs, with GNU OpenMP's default waiting and with ours.  Both take turns within a round; a
ratio is the seconds with GNU's waiting divided by those with ours in the same round.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from bench.tables import console, show
from flows.planning.config import Runtime, compose_recipe
from flows.planning.plan import build_plan
from flows.planning.session import Session
from flows.running.environment import SPIN_VARIABLES, step_variables
from flows.running.fork_template import third_party
from flows.running.runner import Run
from tasks.shared.fork_client import ForkServer
from tasks.shared.store.keys import PROJECT
from tasks.shared.technique import Artifact, Compute, Inputs, Kind, StepRun

BUSY = "while True: pass"
WAYS = ("GNU's", "ours")
MODULES = ("tasks.distill.sft", "tasks.quantize.gptq", "tasks.evaluate.generation")
STEPS = 4
"""Number of steps of the chain whose starts are timed.  The first one waits for the template's imports."""


@dataclass(frozen=True)
class Size:
    """Amount of work in each step.

    model: settings of a random Llama; None: the embedded model.
    """

    model: Mapping[str, int] | None
    rows: int
    batch: int
    calibration: int
    answers: int
    tokens: int


SIZES = {
    False: Size(None, rows=96, batch=16, calibration=32, answers=16, tokens=24),
    True: Size({"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6}, rows=64, batch=16, calibration=16, answers=8, tokens=16),
}  # fmt: skip


@dataclass(frozen=True)
class Neighbors:
    """Other busy programs: their number, and whether they have low priority (nice 10)."""

    count: int = 0
    niced: bool = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the programs during the block."""
        words = ["nice", "-n", "10"] if self.niced else []
        programs = [subprocess.Popen([*words, sys.executable, "-c", BUSY]) for _ in range(self.count)]
        try:
            yield
        finally:
            for program in programs:
                program.kill()
                program.wait()

    def __str__(self) -> str:
        return f"{self.count} busy{', niced' if self.niced else ''}" if self.count else "idle"


NEIGHBORS = (Neighbors(), *(Neighbors(count, niced) for count, niced in product((1, 3), (True, False))))


def prepare(folder: Path, size: Size) -> None:
    """Write the model and the corpus that every step reads."""
    from tests.tiny_llama import build_model, save_tiny

    if size.model is not None:
        save_tiny(folder / "model", build_model(**size.model, max_position_embeddings=1024))
    else:
        from tasks.shared.model.loading import load_model, load_tokenizer
        from tasks.shared.model.saving import save_model

        source = build_plan(compose_recipe("tiny").recipe).sources["models.teacher"].path
        save_model(load_model(source, "float32"), load_tokenizer(source), folder / "model", dtype="float32")
    recipe = {"name": "patience", "seed": 0, "models": {}, "steps": {"corpus": corpus(size.rows, size.calibration)}}
    plan = build_plan(recipe)
    (folder / "corpus").mkdir()
    plan.steps[0].technique(Inputs({}), folder / "corpus", StepRun("corpus", 0, folder))


def corpus(rows: int, calibration: int) -> dict[str, Any]:
    """Return the node of a step that makes a corpus of this size."""
    return {
        "_target_": "tasks.curate.support.Support", "train_size": rows, "calibration_size": calibration, "test_size": 12,
        "articles": 2, "min_train_phrasings": 2, "grounded_rate": 0.0, "held_out_share": 0.0,
    }  # fmt: skip


def work(name: str, folder: Path, size: Size) -> float:
    """Run one step in this process, after its imports, and return its seconds."""
    from tasks.distill.sft import SFT
    from tasks.evaluate.generation import Generation
    from tasks.quantize.gptq import GPTQ

    model, data = Artifact("model", Kind.MODEL, folder / "model"), Artifact("corpus", Kind.CORPUS, folder / "corpus")
    techniques: Mapping[str, tuple[Any, Mapping[str, tuple[Artifact, ...]]]] = {
        "training": (SFT(epochs=1, batch_size=size.batch, validation=0, max_tokens=768), {"model": (model,), "data": (data,)}),
        "calibration": (GPTQ(calibration_rows=size.calibration, check_rows=2), {"model": (model,), "calibration": (data,)}),
        "answers": (
            Generation(limit=size.answers, max_new_tokens=size.tokens),
            {"baseline": (model,), "candidates": (Artifact("same", Kind.MODEL, model.path),), "data": (data,)},
        ),
    }  # fmt: skip
    technique, ports = techniques[name]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        out, scratch = Path(place) / "out", Path(place) / "scratch"
        out.mkdir()
        scratch.mkdir()
        run = StepRun(name, 0, scratch, compute=Compute(threads=len(os.sched_getaffinity(0))))
        started = time.perf_counter()
        technique(Inputs(ports), out, run)
        return time.perf_counter() - started


def print_work(name: str, folder: str, quick: bool) -> None:
    """Run one step and print its seconds in the last line."""
    sys.stdout.write(json.dumps(work(name, Path(folder), SIZES[quick])) + "\n")


def start_servers() -> dict[str, ForkServer]:
    """Start a fork server for each way of waiting, which libraries read when they are loaded."""
    given = {key: value for key, value in os.environ.items() if key not in SPIN_VARIABLES}
    ours = given | step_variables(len(os.sched_getaffinity(0)), given)
    theirs = {key: value for key, value in ours.items() if key not in SPIN_VARIABLES}
    modules = [name for module in MODULES for name in third_party(module)]
    return {way: ForkServer.start(modules, variables) for way, variables in zip(WAYS, (theirs, ours), strict=True)}


def timed(server: ForkServer, name: str, folder: Path, quick: bool, way: str) -> float:
    """Run one step in a process of its own and return its seconds."""
    reading, writing = os.pipe()
    variables = dict(os.environ) | step_variables(len(os.sched_getaffinity(0)), os.environ)
    forked = server.fork(writing, {
        "entry": "bench.patience:print_work", "arguments": [name, str(folder), quick], "own_group": True, "spare": True,
        "environment": variables, "directory": str(Path.cwd()), "path": [str(PROJECT), *sys.path],
    })  # fmt: skip
    os.close(writing)
    with os.fdopen(reading) as stream:
        output = stream.read()
    if forked.wait():
        sys.exit(f"{name}, {way} waiting: {output}")
    forked.close()
    return float(json.loads(output.splitlines()[-1]))


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median and range."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def waits(rounds: int, quick: bool, names: Sequence[str], neighbors: Sequence[Neighbors]) -> None:
    """Measure each step under each load, with both ways of waiting."""
    seconds: dict[tuple[str, Neighbors, str], list[float]] = {}
    servers = start_servers()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, SIZES[quick])
        for way, server in servers.items():  # after a first step, the imports are finished
            timed(server, names[0], folder, quick, way)
        for number, name, load in product(range(rounds), names, neighbors):
            for way in WAYS if number % 2 else reversed(WAYS):
                with load.running():
                    seconds.setdefault((name, load, way), []).append(timed(servers[way], name, folder, quick, way))
    for server in servers.values():
        server.close()
    rows = []
    for name, load in product(names, neighbors):
        before, after = (seconds[name, load, way] for way in WAYS)
        ratios = [old / new for old, new in zip(before, after, strict=True)]
        rows.append((name, load, spread(before), spread(after), spread(ratios, 2)))
    show(
        f"seconds of a step: median (range) of {rounds} rounds",
        ("step", "load", "GNU's waiting", "ours", "ratio"),
        rows,
    )


def starts(rounds: int) -> None:
    """Measure steps on a model of 0.4 MB, as plain processes and forked from a template."""
    found: dict[str, list[tuple[float, float, bool]]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, Size({}, 48, 8, 8, 4, 4))
        for number, template in product(range(rounds), (False, True)):
            runtime = Runtime(root=str(folder / f"{number}-{template}"), dvc=False, template=template)
            found.setdefault("template" if template else "plain process", []).extend(timed_chain(folder, runtime))
    rows = []
    for way, steps in found.items():
        first, later = ([wall for wall, _, is_first in steps if is_first is wanted] for wanted in (True, False))
        over = [wall - seconds for wall, seconds, is_first in steps if not is_first]
        rows.append((way, spread(first, 2), spread(later, 2), spread(over, 2)))
    show(
        f"seconds of a step that drops a layer: median (range) of {rounds} rounds",
        ("start", "first step", "later steps", "later, minus their work"),
        rows,
    )


def timed_chain(folder: Path, runtime: Runtime) -> Iterator[tuple[float, float, bool]]:
    """Run a chain; yield wall-clock seconds, seconds of work, and whether the step is first.

    The first step has to wait for the imports.  Seconds of work are those in the manifest.
    """
    steps: dict[str, Any] = {"corpus": corpus(48, 4)}
    for number in range(STEPS):
        inputs = {"model": "models.tiny", "calibration": "corpus"}
        steps[f"slim{number}"] = {"_target_": "tasks.prune.depth.Depth", "ratio": 0.5, "seed": number, "inputs": inputs}
    recipe = {"name": "starts", "seed": 0, "models": {"tiny": {"path": str(folder / "model")}}, "steps": steps}
    run = Run(Session(build_plan(recipe), runtime), tracked=False)
    try:
        for step in run.session.plan.steps:
            started = time.perf_counter()
            outcome = run.obtain(step)
            if step.name != "corpus":
                yield time.perf_counter() - started, float(outcome.manifest["duration_s"]), step.name == "slim0"
    finally:
        run.template.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=["waits", "starts"], help="waits, starts")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--steps", nargs="+", default=["training", "calibration", "answers"])
    parser.add_argument("--load", type=int, nargs="+", default=[0, 1, 3], help="numbers of busy programs")
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.quick else 5)
    if "waits" in options.tables:
        waits(rounds, options.quick, options.steps, [item for item in NEIGHBORS if item.count in options.load])
    if "starts" in options.tables:
        starts(rounds)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
