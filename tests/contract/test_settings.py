"""Every setting of every technique: known to the key if it changes what comes out, out of it if it cannot, and read by someone.

What it needs of each technique stands in its own unit test: see tests/settings_case.py.
"""

import ast
import csv
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from importlib.util import source_from_cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.planning.plan import find_technique
from flows.planning.steps import Step
from tasks.shared.errors import StillroomError
from tasks.shared.store.keys import PROJECT, UNKEYED, code_digest, code_files, module_file, step_key
from tasks.shared.technique import Metrics
from tests.optional_packages import missing_extra, needs_extra
from tests.project_files import technique_options
from tests.settings_case import Case, Change, Result, empty_folders, nested, setting_names, watch_settings
from tests.training_changes import OPTION_CHANGES, TRAINING_CHANGES

OPTIONS = sorted(f"{file.parent.name}/{file.stem}" for file in technique_options())


@cache
def class_of(option: str) -> tuple[str, type[Any]]:
    """Dotted name and class of a technique."""
    target = yaml.safe_load((PROJECT / "conf" / f"{option}.yaml").read_text("utf-8"))["_target_"]
    return target, find_technique("test", target)


@cache
def code_of(module: str) -> str:
    """Digest of a technique's code, read once for all its settings."""
    return code_digest(module)


@dataclass(frozen=True)
class Run:
    """A run's output folder, its figures, and the settings that it read."""

    out: Path
    metrics: Metrics
    read: set[str]


@dataclass
class Bench:
    """One technique, its case, and the runs made so far."""

    option: str
    changes: Mapping[str, Change]
    case: Case
    done: dict[str, Run] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)

    def build(self, settings: Mapping[str, Any]) -> Any:
        return class_of(self.option)[1](**nested(self.case.settings | settings))

    def value(self, name: str) -> Any:
        value = self.changes[name].value
        return value(self.case) if callable(value) else value

    def changed(self, name: str) -> dict[str, Any]:
        return {**self.changes[name].given, name: self.value(name)}

    def key(self, settings: Mapping[str, Any]) -> str:
        target, _ = class_of(self.option)
        step = Step("step", self.option.split("/")[0], target, self.build(settings), {})
        return step_key(step.identity(0), code_of(step.module), {})

    def run(self, settings: Mapping[str, Any], inputs: str = "", again: bool = False) -> Result:
        """What the technique gives with these settings; each run is made once."""
        made = self.outcome(settings, inputs, again)
        return self.case.result(made.out, made.metrics)

    def outcome(self, settings: Mapping[str, Any], inputs: str = "", again: bool = False) -> Run:
        name = json.dumps([dict(settings), inputs, again], sort_keys=True)
        if name not in self.done:
            out, run = empty_folders(self.case.folder / f"run{next(self.numbers)}")
            technique = self.build(settings)
            with watch_settings(technique) as read:
                metrics = technique(self.case.more[inputs] if inputs else self.case.inputs, out, run)
            self.done[name] = Run(out, metrics, read)
        return self.done[name]

    def stable(self, out: Path, metrics: Metrics) -> Result:
        return (self.case.stable or self.case.result)(out, metrics)


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Bench]]:
    """Each technique's bench, built when it is first asked for and kept until the last test."""
    with ExitStack() as stack:

        @cache
        def build(option: str) -> Bench:
            stage, name = option.split("/")
            module = importlib.import_module(f"tests.unit.tasks.{stage}.test_{name}")
            case = stack.enter_context(module.settings_case(tmp_path_factory.mktemp(name)))
            return Bench(option, module.CHANGES, case)

        yield build


@pytest.fixture
def bench(request: pytest.FixtureRequest, benches: Callable[[str], Bench]) -> Bench:
    return benches(request.param)


every_technique = pytest.mark.parametrize("bench", OPTIONS, indirect=True)
every_run = pytest.mark.parametrize(
    "bench", [pytest.param(option, marks=needs_extra(class_of(option)[1])) for option in OPTIONS], indirect=True
)


def marks(option: str, name: str) -> list[pytest.MarkDecorator]:
    """One loop trains for every way of teaching: what it reads is tried for one of them each time, for all in `make test-all`."""
    repeats = option.startswith("distill/") and option != "distill/sft" and name in TRAINING_CHANGES | OPTION_CHANGES
    return [needs_extra(class_of(option)[1]), *([pytest.mark.slow] if repeats else [])]


every_setting = pytest.mark.parametrize(
    ("bench", "name"),
    [
        pytest.param(option, name, marks=marks(option, name))
        for option in OPTIONS
        for name in sorted(setting_names(class_of(option)[1]()))
    ],
    indirect=["bench"],
)


@every_technique
def test_each_setting_has_its_change_and_a_key_of_its_own(bench: Bench) -> None:
    technique = bench.build({})
    assert set(bench.changes) == setting_names(technique), "CHANGES lists exactly the settings"
    unkeyed = technique.spec.unkeyed
    assert unkeyed <= setting_names(technique), "unkeyed names settings"
    base = bench.key({})
    keys = {name: bench.key(bench.changed(name)) for name in bench.changes}
    for name, key in keys.items():
        assert (key == bench.key(bench.changes[name].given)) == (name in unkeyed), name
    keyed = [key for name, key in keys.items() if name not in unkeyed]
    assert len({*keyed, base}) == len(keyed) + 1, "two changes share a key"


@every_run
def test_the_same_settings_give_the_same_result(bench: Bench) -> None:
    assert bench.run({}) == bench.run({}, again=True), "otherwise no difference below would mean anything"


@every_run
def test_a_run_writes_the_plots_that_it_declares(bench: Bench) -> None:
    out = bench.outcome({}).out
    for plot in bench.build({}).spec.plots:
        with (out / plot.file).open(encoding="utf-8", newline="") as stream:
            assert {plot.x, *plot.y} <= set(next(csv.reader(stream)))


@every_setting
def test_a_keyed_setting_changes_the_result_and_an_unkeyed_one_never(bench: Bench, name: str) -> None:
    change, changed = bench.changes[name], bench.changed(name)
    before = bench.run(change.given, change.inputs)
    if change.refused:
        with pytest.raises(StillroomError, match=change.refused):
            bench.run(changed, change.inputs)
        return
    after = bench.run(changed, change.inputs)
    assert name in bench.outcome(changed, change.inputs).read, "nobody reads it"
    if name in bench.build({}).spec.unkeyed:
        assert after == before, "it must not change the result, or it must be in the key"
    else:
        assert after != before, "it changes nothing: find what it is for, or take it away"


@pytest.fixture(scope="module")
def alone(benches: Callable[[str], Bench], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every technique's base run in a process that had loaded nothing of ours: a folder of results by technique."""
    folder = tmp_path_factory.mktemp("alone")
    options = [option for option in OPTIONS if not missing_extra(class_of(option)[1])]
    jobs = [write_job(benches(option), folder / option) for option in options]
    watched = {
        "PYTHONPATH": os.pathsep.join([str(PROJECT / "tests" / "opened_files"), str(PROJECT)]),
        "STILLROOM_WATCHED": f"{PROJECT / 'tasks'}{os.sep}",
    }
    command = [sys.executable, str(PROJECT / "tests" / "run_alone.py"), *map(str, jobs)]
    with (folder / "log").open("wb") as log:
        subprocess.run(command, cwd=PROJECT, env=os.environ | watched, stdout=log, stderr=log, timeout=900, check=False)
    return folder


def write_job(bench: Bench, folder: Path) -> Path:
    """A job for tests/run_alone.py, which leaves its results beside it."""
    empty_folders(folder)
    ports = {
        port: [[item.name, str(item.kind), str(item.path), item.digest] for item in items]
        for port, items in bench.case.inputs.ports.items()
    }
    settings = nested(bench.case.settings | bench.case.alone)
    job = {"target": class_of(bench.option)[0], "settings": settings, "ports": ports}
    (folder / "job.json").write_text(json.dumps(job), "utf-8")
    return folder


@every_run
def test_the_key_knows_every_file_of_ours_that_a_run_opens(bench: Bench, alone: Path) -> None:
    """In a process of its own, the processes that it starts included: code, templates, the knowledge base."""
    folder = alone / bench.option
    assert (folder / "metrics.json").is_file(), (alone / "log").read_text("utf-8")[-2000:]
    noted = {Path(line) for line in (folder / "opened").read_text("utf-8").splitlines()}
    opened = {Path(source_from_cache(str(file))) if file.suffix == ".pyc" else file for file in noted}
    module = class_of(bench.option)[0].rpartition(".")[0]
    assert module_file(module) in opened, "nothing was noted"
    known = {*code_files(module), *(file for name in UNKEYED if (file := module_file(name)))}
    holes = [file for file in opened - known if file.is_file() and not is_empty_package(file)]
    assert not holes, "opened when it runs, and not in its key"
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    here = bench.outcome(bench.case.alone)
    assert bench.stable(folder / "out", metrics) == bench.stable(here.out, here.metrics)


def is_empty_package(file: Path) -> bool:
    """A package's file that holds nothing but its doc string."""
    body = ast.parse(file.read_text("utf-8")).body if file.name == "__init__.py" else [ast.Pass()]
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)
