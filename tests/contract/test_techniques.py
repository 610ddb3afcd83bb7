"""One hop: conf/<stage>/<technique>.yaml -> tasks/<stage>/<technique>.py -> tests/unit/tasks/<stage>/test_<technique>.py."""

import ast
import importlib
import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from inspect import isfunction, signature
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.planning.plan import STAGES, find_technique
from flows.planning.steps import plain
from flows.versioning.documents import PAGE, README, stale_documents
from tasks.shared.forecast import Dimensions, Forecasts, Rows, Size, Workload
from tasks.shared.store.keys import PROJECT
from tasks.shared.technique import WEIGHTS, Compute, Kind, Port, ReadsFiles, Spec, Technique
from tests.project_files import matching, technique_options
from tests.settings_case import setting_names

OPTIONS = technique_options()
IDS = [f"{file.parent.name}/{file.stem}" for file in OPTIONS]
STAGE_MODULES = [file for stage in STAGES for file in matching(f"tasks/{stage}/*.py") if file.stem != "__init__"]
"""Modules directly in a stage's folder: its techniques, and what several of them use."""
OUTSIDE = {("tasks", "shared")}
MODULES = matching("tasks/**/*.py", "flows/**/*.py")


def test_every_stage_has_a_technique() -> None:
    assert {file.parent.name for file in OPTIONS} == set(STAGES)


@pytest.mark.parametrize("option", OPTIONS, ids=IDS)
def test_all_three_files_exist_and_agree(option: Path) -> None:
    stage, name = option.parent.name, option.stem
    content: dict[str, Any] = yaml.safe_load(option.read_text("utf-8"))
    target = content.pop("_target_")
    assert target.startswith(f"tasks.{stage}.{name}.")
    technique = find_technique("test", target)
    assert isinstance(technique(**content), Technique)
    assert content == plain(asdict(technique())), "the YAML's keys and values are the class defaults"
    assert (PROJECT / "tests" / "unit" / "tasks" / stage / f"test_{name}.py").is_file()


def test_every_technique_has_its_yaml() -> None:
    written = {f"tasks.{option.parent.name}.{option.stem}" for option in OPTIONS}
    found = [(file.parent.name, file.stem, cls) for file in STAGE_MODULES for cls in _techniques(file)]
    assert len(found) >= len(OPTIONS)
    missing = [
        f"conf/{stage}/{name}.yaml for {cls}" for stage, name, cls in found if f"tasks.{stage}.{name}" not in written
    ]
    assert missing == []


def _techniques(file: Path) -> list[str]:
    """Names of the classes of a module that can be called as a step: with inputs, an output folder and a run."""
    classes = [node for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
    module = importlib.import_module(f"tasks.{file.parent.name}.{file.stem}") if classes else None
    calls = {cls.name: getattr(getattr(module, cls.name), "__call__", None) for cls in classes}  # noqa: B004
    return [name for name, call in calls.items() if {"inputs", "out", "run"} <= _parameters(call)]


def _parameters(call: object) -> set[str]:
    return set(signature(call).parameters) if isfunction(call) else set()


def test_every_test_of_a_stage_is_named_after_its_module() -> None:
    files = matching(*(f"tests/unit/tasks/{stage}/test_*.py" for stage in STAGES))
    modules = {(file.parent.name, file.stem) for file in STAGE_MODULES}
    nameless = [file.name for file in files if (file.parent.name, file.stem.removeprefix("test_")) not in modules]
    assert nameless == [], (
        "a unit test is named after the module that it tests: tests/unit/tasks/<stage>/test_<module>.py"
    )


@pytest.mark.parametrize("option", OPTIONS, ids=IDS)
def test_fields_are_documented(option: Path) -> None:
    technique = find_technique("test", yaml.safe_load(option.read_text("utf-8"))["_target_"])
    undocumented = [
        name for cls in technique.__mro__ if cls.__module__.startswith("tasks.") for name in _undocumented(cls)
    ]
    assert not undocumented, "every setting has its doc string under it"


@pytest.mark.parametrize("option", OPTIONS, ids=IDS)
def test_the_spec_is_whole(option: Path) -> None:
    technique = find_technique("test", yaml.safe_load(option.read_text("utf-8"))["_target_"])
    spec = technique.spec
    assert isinstance(spec, Spec) and isinstance(spec.produces, Kind)
    assert all(isinstance(port, Port) for port in spec.ports.values())
    assert spec.summary and not spec.summary.endswith(".") and "|" not in spec.summary
    assert not spec.unkeyed - setting_names(technique()), "unkeyed names settings"
    if spec.gives == "same" or spec.accepts != "any":
        assert Kind.MODEL in spec.ports["model"].kinds, "accepts and gives are about the port `model`"
    assert (spec.gives is not None) == (spec.produces in WEIGHTS)
    assert spec.device == "accelerator" or not spec.distributed
    for plot in spec.plots:
        assert plot.file.endswith(".csv") and plot.x and plot.y and plot.title
        assert (PROJECT / ".dvc" / "plots" / f"{plot.template}.json").is_file()


def test_no_module_outside_the_techniques_names_one() -> None:
    """Planner, orchestration and shared code read specs; a stage or a technique by name would be one more place to edit."""
    names = {"tasks." + ".".join(part) for part in ((file.parent.name, file.stem) for file in OPTIONS)}
    compared = re.compile(rf"""\.stage\b\s*(==|!=|in\b)|match step\.stage|case "({"|".join(STAGES)})\"""")
    for file in MODULES:
        if file.relative_to(PROJECT).parts[:2] in OUTSIDE or file.relative_to(PROJECT).parts[0] == "flows":
            text = file.read_text("utf-8")
            assert not compared.search(text), f"{file}: a stage by name; ask for a kind or the spec"
            assert not {name for name in names if re.search(rf"\b{re.escape(name)}\b", text)}, file


@pytest.mark.parametrize("option", OPTIONS, ids=IDS)
def test_every_technique_has_a_forecast_of_its_own_or_computes_little(option: Path) -> None:
    technique = find_technique("test", yaml.safe_load(option.read_text("utf-8"))["_target_"])()
    if not isinstance(technique, Forecasts):
        assert technique.spec.device == "cpu" and technique.spec.gives is None
        return
    size = Size(1e9, 2e9, 1e8, Dimensions(16, 2048, 8192, 32, 2048, 512, 32000))
    sizes = {name: (size,) for name, port in technique.spec.ports.items() if set(port.kinds) & set(WEIGHTS)}
    if not isinstance(technique, ReadsFiles):
        work = Workload(sizes, Rows(), Compute(), 1e11)
        found = technique.forecast(work)
        assert found.seconds > 0 and found.memory > 0 and found.gpu_memory == 0
        assert (found.size is not None) == (technique.spec.gives is not None)
        if hasattr(technique, "check_rows"):  # the source's logits on these rows are in memory
            more = replace(technique, check_rows=2 * technique.check_rows).forecast(work)
            logits = technique.check_rows * 32000 * min(technique.max_tokens, Rows().longest)
            assert more.memory - found.memory == pytest.approx(4 * logits)


def test_the_generated_tables_are_up_to_date() -> None:
    assert README.is_file() and PAGE.is_file()
    assert not stale_documents(), "python -m flows.sync"


def _undocumented(cls: type[Any]) -> list[str]:
    """Settings of a class, its own and not inherited ones, without a doc string under them."""
    tree = ast.parse(Path(str(importlib.import_module(cls.__module__).__file__)).read_text("utf-8"))
    body = next(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    return [
        ast.unparse(node.target)
        for node, after in zip(body, [*body[1:], None], strict=True)
        if isinstance(node, ast.AnnAssign)
        and "ClassVar" not in ast.unparse(node.annotation)
        and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    ]


HEAVY = ("torch", "transformers", "trl", "llmcompressor", "lm_eval", "prefect", "mlflow", "datasets", "matplotlib", "scipy")  # fmt: skip
IMPORTS = """
import importlib, json, os, sys
import pydantic.dataclasses, yaml
heavy, *modules = sys.argv[1:]
for module in modules:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        importlib.import_module(module)
        print(json.dumps([module, sorted(set(heavy.split(",")) & set(sys.modules))]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, module
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """Heavy libraries that the import of each technique loads, in a process that has imported no other: forked, so that Python starts once."""
    modules = [f"tasks.{option.parent.name}.{option.stem}" for option in OPTIONS]
    command = [sys.executable, "-c", IMPORTS, ",".join(HEAVY), *modules]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=PROJECT, check=False)
    assert shown.returncode == 0, shown.stderr
    return {module: heavy for module, heavy in map(json.loads, shown.stdout.splitlines())}


@pytest.mark.parametrize("option", OPTIONS, ids=IDS)
def test_importing_a_technique_is_light(option: Path, imported: dict[str, list[str]]) -> None:
    assert imported[f"tasks.{option.parent.name}.{option.stem}"] == []
