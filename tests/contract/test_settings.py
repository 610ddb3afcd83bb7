"""Every setting of every technique: known to the key if it changes what comes out, out of it if it cannot, and read by someone.

What it needs of each technique stands in its own unit test: see tests/settings_case.py.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from importlib.util import source_from_cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.plan import STAGES, Step, find_technique
from tasks.shared.errors import StillroomError
from tasks.shared.keys import PROJECT, UNKEYED, code_digest, code_files, module_file, step_key
from tasks.shared.technique import Metrics
from tests.settings_case import Case, Change, Result, empty_folders, nested, setting_names, watch_settings

OPTIONS = sorted(f"{file.parent.name}/{file.stem}" for stage in STAGES for file in (PROJECT / "conf" / stage).glob("*.yaml"))


@cache
def class_of(option: str) -> tuple[str, type[Any]]:
    """Dotted name and class of a technique."""
    target = yaml.safe_load((PROJECT / "conf" / f"{option}.yaml").read_text("utf-8"))["_target_"]
    return target, find_technique("test", target)


@dataclass
class Bench:
    """One technique, its case, and the runs made so far."""

    option: str
    changes: Mapping[str, Change]
    case: Case
    done: dict[str, tuple[Path, Metrics]] = field(default_factory=dict)
    read: dict[str, set[str]] = field(default_factory=dict)
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
        return step_key(step.identity(0), code_digest(step.module), {})

    def run(self, settings: Mapping[str, Any], again: bool = False) -> Result:
        """What the technique gives with these settings; each run is made once."""
        return self.case.result(*self.outcome(settings, again))

    def outcome(self, settings: Mapping[str, Any], again: bool = False) -> tuple[Path, Metrics]:
        name = json.dumps([dict(settings), again], sort_keys=True)
        if name not in self.done:
            out, run = empty_folders(self.case.folder / f"run{next(self.numbers)}")
            technique = self.build(settings)
            with watch_settings(technique) as read:
                metrics = technique(self.case.inputs, out, run)
            self.done[name], self.read[name] = (out, metrics), read
        return self.done[name]

    def settings_read(self, settings: Mapping[str, Any]) -> set[str]:
        self.outcome(settings)
        return self.read[json.dumps([dict(settings), False], sort_keys=True)]

    def stable(self, out: Path, metrics: Metrics) -> Result:
        return (self.case.stable or self.case.result)(out, metrics)


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    stage, name = request.param.split("/")
    module = importlib.import_module(f"tests.unit.tasks.{stage}.test_{name}")
    with ExitStack() as stack:
        case = stack.enter_context(module.settings_case(tmp_path_factory.mktemp(name)))
        yield Bench(request.param, module.CHANGES, case)


def every_technique() -> Any:
    return pytest.mark.parametrize("bench", OPTIONS, indirect=True, scope="module")


SETTINGS = [(option, name) for option in OPTIONS for name in sorted(setting_names(class_of(option)[1]()))]


@every_technique()
def test_each_setting_has_its_change_and_a_key_of_its_own(bench: Bench) -> None:
    technique = bench.build({})
    assert set(bench.changes) == setting_names(technique), "CHANGES lists exactly the settings"
    unkeyed = getattr(technique, "unkeyed", frozenset())
    assert unkeyed <= setting_names(technique), "unkeyed names settings"
    base = bench.key({})
    keys = {name: bench.key(bench.changed(name)) for name in bench.changes}
    for name, key in keys.items():
        assert (key == bench.key(bench.changes[name].given)) == (name in unkeyed), name
    keyed = [key for name, key in keys.items() if name not in unkeyed]
    assert len({*keyed, base}) == len(keyed) + 1, "two changes share a key"


@every_technique()
def test_the_same_settings_give_the_same_result(bench: Bench) -> None:
    assert bench.run({}) == bench.run({}, again=True), "otherwise no difference below would mean anything"


@pytest.mark.parametrize(("bench", "name"), SETTINGS, indirect=["bench"], scope="module")
def test_a_keyed_setting_changes_the_result_and_an_unkeyed_one_never(bench: Bench, name: str) -> None:
    change = bench.changes[name]
    before = bench.run(change.given)
    if change.refused:
        with pytest.raises(StillroomError, match=change.refused):
            bench.run(bench.changed(name))
        return
    after = bench.run(bench.changed(name))
    assert name in bench.settings_read(bench.changed(name)), "nobody reads it"
    assert (after == before) == (name in getattr(bench.build({}), "unkeyed", ()))


@every_technique()
def test_the_key_knows_every_file_of_ours_that_a_run_opens(bench: Bench) -> None:
    """In a process of its own, the processes that it starts included: code, templates, the knowledge base."""
    target, _ = class_of(bench.option)
    opened, result = run_alone(bench, target)
    module = target.rpartition(".")[0]
    known = {*code_files(module), *(file for name in UNKEYED if (file := module_file(name)))}
    assert opened, "nothing was noted"
    holes = sorted(file.relative_to(PROJECT).as_posix() for file in opened - known if not is_empty_package(file))
    assert not holes, "opened when it runs, and not in its key"
    assert result == bench.stable(*bench.outcome(bench.case.alone))


def run_alone(bench: Bench, target: str) -> tuple[set[Path], Result]:
    folder = bench.case.folder / "alone"
    out, run = empty_folders(folder)
    ports = {
        port: [[item.name, str(item.kind), str(item.path)] for item in items]
        for port, items in bench.case.inputs.ports.items()
    }
    job = folder / "job.json"
    job.write_text(json.dumps({"target": target, "settings": nested(bench.case.settings | bench.case.alone), "ports": ports, "folder": str(folder)}))
    notes = folder / "opened"
    subprocess.run(
        [sys.executable, str(PROJECT / "tests" / "run_alone.py"), str(job)],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        timeout=300,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(PROJECT / "tests" / "opened_files"), str(PROJECT)]),
            "STILLROOM_OPENED": str(notes),
            "STILLROOM_WATCHED": f"{PROJECT / 'tasks'}{os.sep}",
        },
    )
    opened = {Path(line) for line in notes.read_text("utf-8").splitlines()}
    sources = {Path(source_from_cache(str(file))) if file.suffix == ".pyc" else file for file in opened}
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    return {file for file in sources if file.is_file()}, bench.stable(out, metrics)


def is_empty_package(file: Path) -> bool:
    """A package's file that holds nothing but its doc string."""
    import ast

    body = ast.parse(file.read_text("utf-8")).body if file.name == "__init__.py" else [ast.Pass()]
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)
