"""One hop: conf/<stage>/<technique>.yaml -> tasks/<stage>/<technique>.py -> tests/unit/tasks/<stage>/test_<technique>.py."""

import ast
import importlib
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.planning.plan import STAGES, find_technique
from flows.planning.steps import plain
from tasks.shared.store.keys import PROJECT
from tasks.shared.technique import Kind, Port, Technique

OPTIONS = sorted(file for stage in STAGES for file in (PROJECT / "conf" / stage).glob("*.yaml"))
IDS = [f"{file.parent.name}/{file.stem}" for file in OPTIONS]
MODULES = sorted(PROJECT.glob("tasks/**/*.py")) + sorted(PROJECT.glob("flows/**/*.py"))


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


@pytest.mark.parametrize("option", OPTIONS, ids=IDS)
def test_ports_and_fields_are_documented(option: Path) -> None:
    technique = find_technique("test", yaml.safe_load(option.read_text("utf-8"))["_target_"])
    assert isinstance(technique.produces, Kind) and all(isinstance(port, Port) for port in technique.ports.values())
    undocumented = [
        name for cls in technique.__mro__ if cls.__module__.startswith("tasks.") for name in _undocumented(cls)
    ]
    assert not undocumented, "every setting has its doc string under it"


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


@pytest.mark.parametrize("option", OPTIONS, ids=IDS)
def test_importing_a_technique_is_light(option: Path) -> None:
    module = f"tasks.{option.parent.name}.{option.stem}"
    heavy = "{'torch', 'transformers', 'trl', 'llmcompressor', 'lm_eval', 'prefect', 'mlflow', 'datasets', 'matplotlib', 'scipy'}"
    shown = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print({heavy} & set(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=PROJECT,
    )
    assert shown.stdout.strip() == "set()"


def _imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("file", MODULES, ids=[file.relative_to(PROJECT).as_posix() for file in MODULES])
def test_wiring_stays_out_of_the_library(file: Path) -> None:
    banned = (
        {"prefect", "hydra", "omegaconf", "dvc", "flows"} if "tasks" in file.relative_to(PROJECT).parts[:1] else set()
    )
    if file.parent != PROJECT / "flows" / "tracking":
        banned = banned | {"mlflow"}
    assert not _imports(file) & banned
