"""kill -9 at random moments, then run again: the artifacts are those of a run that nobody disturbed.

STILLROOM_CHAOS_SEED repeats a run's choices (who is killed, and when; what the machine does by then is its own affair).
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil
import pytest

from tasks.shared.store.keys import PROJECT
from tests.forked import ForkedRun, left_by_forked_runs
from tests.outputs import fingerprints
from tests.trial_recipe import STEPS, Teacher, command_of, teacher_server, write_recipe

PLAIN = ("runtime.orchestrator=none", "tracking=none", "runtime.dvc=false")
Command = Callable[[Path], tuple[list[str], dict[str, str]]]


@dataclass
class Chaos:
    """One recipe that is killed again and again.

    command: what runs it below a root.  wanted: kills.  wait_s: longest time from the moment that a run is to be disturbed in.
    forked: runs are forked from a process that has loaded their libraries, and steps from the spare server of the run.
    hits: how often each step was the one at work, by who was killed.
    """

    recipe: str
    command: Command
    draw: random.Random
    wanted: int
    wait_s: float
    limit_s: float
    forked: bool = False
    hits: Counter[str] = field(default_factory=Counter)
    kills: int = 0

    def undisturbed(self, root: Path) -> None:
        """One run from beginning to end."""
        with tempfile.TemporaryFile("w+") as said:
            code = self._start(root, said).wait(self.limit_s)
            said.seek(0)
            assert code == 0, said.read()

    def disturbed(self, root: Path) -> bool:
        """One run with a kill in it; False if it came to its end before."""
        with tempfile.TemporaryFile("w+") as said:
            flow = self._start(root, said)
            try:
                alive = self._await_moment(flow, root)
                victim = self._kill(flow) if alive else ""
                alive = bool(victim)
                code = flow.wait(self.limit_s)
            finally:
                flow.kill()
                flow.wait()
            said.seek(0)
            words = said.read()
        assert "Traceback" not in words, words
        # a step that is killed when its artifact is in place has done its work, and the flow goes on
        assert code in {"step": {2, 0}, "": {0}}.get(victim, {-signal.SIGKILL}), words
        self.kills += alive
        return alive

    def _start(self, root: Path, said: IO[str]) -> "subprocess.Popen[bytes] | ForkedRun":
        command, environment = self.command(root)
        if self.forked:
            return ForkedRun("tiny", command[3:], environment, said)
        return subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=said, stderr=said)

    def _await_moment(self, flow: "subprocess.Popen[bytes] | ForkedRun", root: Path) -> bool:
        """Wait until another step is finished, or not, by chance, and then a random time; False if the run ended."""
        already = len(finished(root, self.recipe))
        wanted = already + (self.draw.random() < 0.4)
        until = time.monotonic() + self.limit_s
        while len(finished(root, self.recipe)) < wanted and flow.poll() is None:
            assert time.monotonic() < until, "no progress"
            time.sleep(0.05)
        try:
            flow.wait(self.draw.uniform(0.5, self.wait_s))
        except subprocess.TimeoutExpired:
            return True
        return False

    def _kill(self, flow: "subprocess.Popen[bytes] | ForkedRun") -> str:
        """SIGKILL for the flow, or the step that it waits for, or both with all their children; who, or "" if all had ended."""
        family = psutil.Process(flow.pid).children(recursive=True)
        steps = {process: name for process in family if (name := step_of(process))}
        who = self.draw.choice(["flow", "step", "all"] if steps else ["flow", "all"])
        for name in steps.values() or ["between steps"]:
            self.hits[f"{name} ({who})"] += 1
        victims = {"flow": [psutil.Process(flow.pid)], "step": list(steps), "all": [psutil.Process(flow.pid), *family]}
        killed = ""
        for victim in victims[who]:
            with suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
                victim.kill()
                killed = who
        return killed


def step_of(process: psutil.Process) -> str | None:
    """The step that a process makes, or None if it makes none."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return None
    return words[words.index("flows.stage") + 2] if "flows.stage" in words else None


def finished(root: Path, recipe: str) -> dict[str, int]:
    """Time stamps of the manifests in place, by step."""
    return {path.parent.name: path.stat().st_mtime_ns for path in root.glob(f"artifacts/{recipe}/*/manifest.json")}


def outputs(root: Path, recipe: str) -> dict[str, dict[str, str]]:
    """Fingerprints of every artifact; of the report, which shows times, the names of its files."""
    found = {step: fingerprints(root / "artifacts" / recipe / step / "out") for step in finished(root, recipe)}
    return found | {"report": dict.fromkeys(found.get("report", {}), "")}


def processes_below(root: Path) -> list[psutil.Process]:
    """Processes that name the root or a step's job in their command line or environment, or that a forked run has left."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(root) in word for word in process.cmdline()) or process.environ().get("CHAOS") == str(root):
                found.append(process)
        except psutil.Error:
            continue
    return [*found, *left_by_forked_runs()]


def check_tidy(root: Path, recipe: str) -> None:
    """Nothing half made in place, nothing left at work, nobody left running."""
    artifacts = root / "artifacts"
    assert not [path for path in (artifacts / recipe).iterdir() if path.name.startswith(".")]
    for folder in (artifacts / recipe).iterdir():
        assert {path.name for path in folder.iterdir()} == {"out", "manifest.json"}
    left = sorted(path.relative_to(artifacts).as_posix() for path in (artifacts / ".work").rglob("*"))
    assert left == [], "work that was published is tidied up"
    until = time.monotonic() + 10
    while (orphans := processes_below(root)) and time.monotonic() < until:
        time.sleep(0.2)
    assert orphans == []


def wreck(chaos: Chaos, base: Path, most_rounds: int = 6) -> None:
    """Kill as often as is wanted, from the start again if a run came through before; compare each time."""
    chaos.undisturbed(base / "calm")
    expected = outputs(base / "calm", chaos.recipe)
    for number in range(most_rounds):
        root = base / f"chaos{number}"
        shutil.copytree(base / "calm/artifacts/.checked", root / "artifacts/.checked")  # before the first step
        stamps: dict[str, int] = {}
        while chaos.kills < chaos.wanted and chaos.disturbed(root):
            now = finished(root, chaos.recipe)
            assert stamps.items() <= now.items(), "what is finished is not made again"
            stamps = now
        chaos.undisturbed(root)
        assert stamps.items() <= finished(root, chaos.recipe).items()
        assert outputs(root, chaos.recipe) == expected
        check_tidy(root, chaos.recipe)
        if chaos.kills >= chaos.wanted:
            return
        shutil.rmtree(root)
    pytest.fail(f"only {chaos.kills} kills in {most_rounds} rounds")


def report(chaos: Chaos, seed: int, started: float) -> None:
    """Figures for the log, shown with pytest -s or when the test fails."""
    steps = ", ".join(f"{name} {count}" for name, count in sorted(chaos.hits.items()))
    sys.stdout.write(f"\nchaos seed {seed}: {chaos.kills} kills in {time.monotonic() - started:.0f} s: {steps}\n")


@pytest.fixture
def seed() -> int:
    chosen = int(os.environ.get("STILLROOM_CHAOS_SEED", time.time_ns() % 100_000))
    sys.stdout.write(f"STILLROOM_CHAOS_SEED={chosen}\n")
    return chosen


@pytest.fixture
def teacher() -> Iterator[str]:
    with teacher_server() as url:
        yield url


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_of_the_trial_recipe(tmp_path: Path, teacher: str, seed: int, kills: int) -> None:
    conf = write_recipe(tmp_path, teacher)

    def command(root: Path) -> tuple[list[str], dict[str, str]]:
        words, environment = command_of(root, *PLAIN, conf=conf)
        return words, environment | {"CHAOS": str(root)}

    started, asked = time.monotonic(), Teacher.asked
    chaos = Chaos("trial", command, random.Random(seed), kills, wait_s=5, limit_s=300, forked=kills < 20)
    try:
        wreck(chaos, tmp_path)
    finally:
        report(chaos, seed, started)
    usage = json.loads((tmp_path / "calm/artifacts/trial/traces/out/usage.json").read_text())
    assert set(finished(tmp_path / "calm", "trial")) == set(STEPS)
    assert usage["requests"] > 0 and Teacher.asked - asked >= 2 * usage["requests"]


@pytest.mark.slow
@pytest.mark.needs_embedded
def test_twenty_kills_of_the_shipped_recipe(tmp_path: Path, seed: int) -> None:
    def command(root: Path) -> tuple[list[str], dict[str, str]]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
        words = [sys.executable, "-m", "flows.compress", "+recipe=tiny", f"runtime.root={root}", *PLAIN]
        return words, environment | {"CHAOS": str(root)}

    started = time.monotonic()
    chaos = Chaos("tiny", command, random.Random(seed), 20, wait_s=12, limit_s=1800)
    try:
        wreck(chaos, tmp_path)
    finally:
        report(chaos, seed, started)
