"""A copy of the project in a folder of its own, with techniques that take no time, so that the graph itself can be tried.

Every toy step writes a text made of its settings and inputs, and a line into the file that $TOY_LOG names: who ran, when.
"""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any

from tasks.shared.store.keys import PROJECT
from tests.forked import run_module
from tests.verdict_samples import a_verdict

PORTS = {
    "curate": "{}",
    "distill": '{"model": Port((Kind.MODEL,), optional=True), "data": Port((Kind.CORPUS,))}',
    "prune": '{"model": Port((Kind.MODEL,)), "calibration": Port((Kind.CORPUS,), optional=True)}',
    "evaluate": '{"baseline": Port((Kind.MODEL,)), "candidates": Port((Kind.MODEL,), many=True)}',
}
PLOTS = {
    "distill": '(Plot(file="loss.csv", title="loss", x="step", y=("train_loss", "validation_loss"), x_label="", y_label=""),)',
}
KINDS = {"curate": "CORPUS", "distill": "MODEL", "prune": "MODEL", "evaluate": "VERDICT"}

TECHNIQUE = '''"""A toy: writes what it was given."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from tasks.shared.errors import EndpointError
from tasks.shared.progress import progress_bar
from tasks.shared.technique import Inputs, Kind, Metrics, Plot, Port, Spec, StepRun


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class {name}:
    """A toy."""

    ratio: float = 0.5
    """Is in the output."""
    text: str = ""
    """Is in the output."""
    fail: str = ""
    """A message to fail with."""
    delay_s: float = 0.0
    """Seconds to take; in no key."""
    flaky: int = 0
    """Times to fail before it succeeds; in no key."""

    spec: ClassVar[Spec] = Spec(
        summary="A toy",
        ports={ports},
        produces=Kind.{kind},
        libraries=(),
        unkeyed=frozenset({{"delay_s", "flaky"}}),
        retries={retries},
        exclusive={exclusive},
        gives={gives},
        plots={plots},
    )

    def __call__(self, inputs: Inputs, out: Path, run: StepRun) -> Metrics:
        """Say that it runs, take its time in ticks, write."""
        self._note(f"start {{run.step}}")
        if self.fail:
            raise EndpointError(f"steps.{{run.step}}", self.fail)
        tries = run.scratch / "tries"
        tried = len(tries.read_text()) if tries.exists() else 0
        tries.write_text("x" * (tried + 1))
        if tried < self.flaky:
            raise EndpointError(f"steps.{{run.step}}", f"try {{tried + 1}} failed", retryable=True)
        with progress_bar(f"working on {{run.step}}", 20) as advance:
            for _ in range(20):
                time.sleep(self.delay_s / 20)
                advance()
        read = [
            [port, artifact.name, hashlib.sha256((artifact.path / "content.json").read_bytes()).hexdigest()]
            for port, artifacts in inputs.ports.items()
            for artifact in artifacts
        ]
        content = {{"ratio": self.ratio, "text": self.text, "seed": run.seed, "read": read}}
        (out / "content.json").write_text(json.dumps(content))
        self._extras(out)
        self._note(f"end {{run.step}}")
        return {{"ratio": self.ratio}}

    def _extras(self, out: Path) -> None:
        if self.spec.produces is Kind.MODEL:
            rows = [f"{{step}},{{step / 10}},{{self.ratio / step}}," for step in (1, 2, 3)]
            (out / "loss.csv").write_text("\\n".join(["step,epoch,train_loss,validation_loss", *rows]) + "\\n")
        elif self.spec.produces is Kind.VERDICT:
            verdict = json.loads(Path(__file__).with_name("toy_verdict.json").read_text())
            if self.text == "ship":
                verdict |= {{"decision": "ship", "shipped": "student"}}
            (out / "verdict.json").write_text(json.dumps(verdict))
            (out / "metrics.json").write_text(json.dumps({{"student": {{"fact": self.ratio}}}}))

    def _note(self, words: str) -> None:
        if file := os.environ.get("TOY_LOG"):
            with Path(file).open("a") as stream:
                stream.write(f"{{words}} {{os.getpid()}} {{time.time()}}\\n")
'''
RECIPE = """
    # @package _global_
    defaults:
      - /curate@steps.corpus: toy
      - /distill@steps.tuned: toy
      - /prune@steps.slim: toy
      - /prune@steps.small: toy
      - /distill@steps.student: toy
      - /evaluate@steps.verdict: toy
      - _self_
    name: {name}
    steps:
      corpus:  {{text: {text}}}
      tuned:   {{inputs: {{data: corpus}}}}
      slim:    {{inputs: {{model: tuned, calibration: corpus}}, ratio: 0.25}}
      small:   {{inputs: {{model: tuned}}, ratio: 0.75}}
      student: {{inputs: {{model: slim, data: corpus}}}}
      verdict: {{inputs: {{baseline: tuned, candidates: [student, small]}}}}
"""
STEPS = ("corpus", "tuned", "slim", "small", "student", "verdict")
"""The steps of both toy recipes: slim -> student and small are branches."""


@dataclass(frozen=True)
class Workshop:
    """The copy: its folder, and ways to type a command in it."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Ours, without anything that would lead out of the copy."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT", "MLFLOW", "DVC", "GIT_", "PYTHONPATH"))
        }
        return kept | {
            "TOY_LOG": str(self.log),
            "COLUMNS": "120",
            "HOME": str(self.folder.parent),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # "python" in dvc.yaml
        }

    @property
    def log(self) -> Path:
        """Where toy steps say that they run; outside the checkout."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def executed(self) -> list[str]:
        """Names of the steps that ran to their end since the last call, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line.split()[1] for line in lines if line.startswith("end ")]

    def command(
        self, *arguments: str, env: dict[str, str] | None = None, timeout: int = 240
    ) -> "subprocess.CompletedProcess[str]":
        """Any command in the copy."""
        return subprocess.run(
            arguments,
            cwd=self.folder,
            env=self.environment | (env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def python(
        self, module: str, *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """`python -m ...`, forked: for a process that a test looks at, kills or runs beside another one, use subprocess."""
        return run_module(module, arguments, cwd or self.folder, self.environment | (env or {}))

    def compress(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """A flow without Prefect and MLflow unless the arguments say otherwise."""
        plain = {"runtime.orchestrator": "none", "tracking": "none"}
        defaults = [f"{key}={value}" for key, value in plain.items() if not any(key in item for item in arguments)]
        return self.python("flows.compress", *arguments, *defaults, **options)

    def dvc(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """A DVC command."""
        return self.python("dvc", *arguments, **options)

    def git(self, *arguments: str) -> str:
        """A git command that has to succeed; returns what it printed."""
        done = self.command("git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


def build_workshop(folder: Path) -> Workshop:
    """Copy the tracked files into `folder`, add the toys, track two recipes, `toy` and `toy_too`, commit."""
    return copy_workshop(Workshop(built_workshop()), folder)


def copy_workshop(shop: Workshop, folder: Path) -> Workshop:
    """A copy of a workshop as it is; hard links stay such."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", str(shop.folder), str(folder)], check=True)
    return Workshop(folder)


@cache
def built_workshop() -> Path:
    """The workshop that all others of this process are copies of."""
    base = tempfile.mkdtemp(prefix="workshop-")
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    folder = Path(base) / "shop"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, folder / name)
    for compiled in (
        place / "__pycache__"
        for part in ("flows", "tasks")
        for place in {PROJECT / part, *(PROJECT / part).rglob("*/")}
    ):
        if compiled.is_dir() and (target := folder / compiled.relative_to(PROJECT)).parent.is_dir():
            shutil.copytree(compiled, target)  # valid for the copied files, which have kept their times
    for stage in PORTS:
        add_toy(folder, stage)
    (folder / "tasks/evaluate/toy_verdict.json").write_text(toy_verdict())
    for name, text in (("toy", "one"), ("toy_too", "two")):
        (folder / f"conf/recipe/{name}.yaml").write_text(dedent(RECIPE.format(name=name, text=text)))
    for name in ("params.yaml", "dvc.yaml", "dvc.lock"):
        (folder / name).unlink(missing_ok=True)
    shop = Workshop(folder)
    shop.git("init", "-q")
    done = shop.python("flows.sync", "toy", "toy_too")
    assert done.returncode == 0, done.stderr
    shop.git("add", "-A")
    shop.git("commit", "-qm", "workshop")
    return folder


def add_toy(folder: Path, stage: str, name: str = "toy", retries: int = 0) -> None:
    """Add a technique to a stage: its module and its option."""
    cls = name.capitalize()
    text = TECHNIQUE.format(
        name=cls, ports=PORTS[stage], kind=KINDS[stage], retries=retries, exclusive=stage == "evaluate",
        gives=repr("dense" if KINDS[stage] == "MODEL" else None), plots=PLOTS.get(stage, "()"),
    )  # fmt: skip
    (folder / f"tasks/{stage}/{name}.py").write_text(text)
    settings = {"ratio": 0.5, "text": "", "fail": "", "delay_s": 0.0, "flaky": 0}
    option = [
        f"_target_: tasks.{stage}.{name}.{cls}",
        *(f"{key}: {json.dumps(value)}" for key, value in settings.items()),
    ]
    (folder / f"conf/{stage}/{name}.yaml").write_text("\n".join(option) + "\n")


def toy_verdict() -> str:
    """A valid verdict on the toy recipes' models."""
    sample = a_verdict()
    models = {"tuned": sample.models["tuned"], "student": sample.models["student"], "small": sample.models["slim"]}
    comparisons = {"student": sample.comparisons["student"], "small": sample.comparisons["slim"]}
    return a_verdict(models=models, comparisons=comparisons, flips=[], reference=None).model_dump_json()
