"""Every shipped recipe composes and plans; the generated files match; the commands and recipes of README and docs are real."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml

from flows.console.show import mermaid
from flows.planning.config import compose_recipe, recipe_names
from flows.planning.plan import build_plan
from flows.planning.steps import Plan
from flows.versioning.params import recipe_of, tracked_params
from flows.versioning.pipeline import dvc_yaml
from tasks.shared.errors import ErrorList
from tasks.shared.store.keys import PROJECT
from tests.benchmark_data import write_benchmark_data
from tests.forked import run_module
from tests.project_files import matching
from tests.tiny_llama import save_tiny

README = (PROJECT / "README.md").read_text("utf-8")
RECIPE_PAGE = (PROJECT / "docs" / "recipe.md").read_text("utf-8")
DATA_PAGE = (PROJECT / "docs" / "your-data.md").read_text("utf-8")
RECIPES = recipe_names()
DATA = {"support_bot_bench": "steps.bench.data", "pruning_benchmarks": "steps.bench.data"}
"""By recipe: the setting for a folder of data that the user brings; a stand-in takes its place here."""


def test_there_are_recipes() -> None:
    assert {"support_bot", "tiny"} <= set(RECIPES)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmark_data(tmp_path_factory.mktemp("data"))


@cache
def plan_of(name: str, data: Path) -> Plan:
    return build_plan(compose_recipe(name, [f"{DATA[name]}={data}"] if name in DATA else []).recipe)


@pytest.mark.needs_embedded
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_composes_and_plans(name: str, data: Path) -> None:
    plan = plan_of(name, data)
    assert plan.recipe == name, "a recipe's name is its file's"
    assert plan.steps


@pytest.mark.needs_embedded
@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_a_recipe_names_is_its_techniques(name: str, data: Path) -> None:
    text = (PROJECT / "conf" / "recipe" / f"{name}.yaml").read_text("utf-8")
    plan = plan_of(name, data)
    for step, node in (yaml.safe_load(text)["steps"] or {}).items():
        assert set(node) - {"inputs"} <= set(plan.step(step).settings())


@pytest.mark.needs_embedded
@pytest.mark.parametrize("name", DATA)
def test_a_recipe_without_its_data_says_which_files_and_where_they_are(name: str) -> None:
    with pytest.raises(ErrorList, match=r"not set; required for \d tasks") as refused:
        build_plan(compose_recipe(name).recipe)
    for line in (
        "crows_pairs_en: crows_pairs/crows_pairs_anonymized.csv, from github.com/nyu-mll/crows-pairs",
        "fix: steps.bench.data=",
    ):
        assert line in str(refused.value)


def test_no_recipe_brings_data_from_outside_the_project() -> None:
    for name in RECIPES:
        assert "shared" not in (PROJECT / "conf" / "recipe" / f"{name}.yaml").read_text("utf-8")


@pytest.mark.needs_embedded
def test_dvc_yaml_has_a_stage_per_planned_step() -> None:
    plans = [build_plan(recipe_of(name, params)) for name, params in tracked_params().items()]
    assert plans, "support_bot is tracked"
    written = yaml.safe_load((PROJECT / "dvc.yaml").read_text("utf-8"))
    assert written == dvc_yaml(plans)
    assert set(written["stages"]) == {f"{plan.recipe}-{step.name}" for plan in plans for step in plan.steps}


def test_params_hold_no_machine_paths_or_secrets() -> None:
    for file in [PROJECT / "params.yaml", PROJECT / "dvc.yaml", *matching("conf/**/*.yaml")]:
        text = file.read_text("utf-8")
        assert "oc.env" not in text and str(Path.home()) not in text and "sk-" not in text, file


@cache
def dry_run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Type a command with `dry_run=true`; pages that name the same one share its run."""
    return run_module("flows.compress", [*arguments, "dry_run=true"], PROJECT, os.environ)


def pages() -> list[str]:
    """The documents that show commands to type, log and decisions aside."""
    found = sorted((PROJECT / "docs").glob("*.md"))
    assert found, "docs/ holds no pages"
    return [README, *(file.read_text("utf-8") for file in [PROJECT / "CONTRIBUTING.md", *found])]


COMMAND = r"python -m flows\.\w+[^\n#`]*|make \w+"
COMMANDS = sorted({
    command.strip()
    for page in pages()
    for found in re.findall(rf"^\s*(?:\$ )?({COMMAND})|`({COMMAND})`", page, re.MULTILINE)
    for command in found
    if command
})  # fmt: skip
"""On lines of their own, or in backticks."""
PLANNED = [item for item in COMMANDS if item.startswith("python -m flows.compress ") and "my_conf" not in item]


def short_recipe() -> str:
    """The recipe that README shows."""
    return README.partition("<!-- recipe: short -->\n```yaml\n")[2].partition("```")[0]


def changed(text: str, page: str) -> str:
    """A recipe after the change that a page shows as a diff: lines are added where the line before them is, or was."""
    lines, place = text.splitlines(), 0
    for line in page[page.index("```diff\n") + 8 :].partition("```")[0].splitlines():
        if line.startswith("+"):
            lines.insert(place, line[1:])
            place += 1
            continue
        assert line[1:] in lines, f"the recipe has no line {line[1:]!r}"
        place = lines.index(line[1:])
        if line.startswith("-"):
            del lines[place]
        else:
            place += 1
    return "\n".join(lines) + "\n"


def in_new_interpreter(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """As `dry_run`, without a fork of a process that has loaded Hydra."""
    command = [sys.executable, "-m", "flows.compress", *arguments, "dry_run=true"]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)


def plan_written(text: str, folder: Path, run: "Callable[..., subprocess.CompletedProcess[str]]" = dry_run) -> str:
    """What a dry run prints of a recipe of the user's own, less its first words."""
    name = re.findall(r"^name: (\w+)$", text, re.MULTILINE)[0]
    (folder / "conf" / "recipe").mkdir(parents=True)
    (folder / "conf" / "recipe" / f"{name}.yaml").write_text(text)
    done = run("--config-dir", str(folder / "conf"), f"+recipe={name}")
    assert done.returncode == 0, done.stderr
    return done.stdout.partition(f"plan of {name}: ")[2]


@pytest.mark.needs_embedded
def test_the_page_shows_the_recipe_and_the_plan_that_run() -> None:
    recipe = (PROJECT / "conf" / "recipe" / "support_bot.yaml").read_text("utf-8")
    assert f"```yaml\n{recipe[recipe.index('defaults:') :].rstrip()}\n```" in RECIPE_PAGE
    assert f"```mermaid\n{mermaid(build_plan(compose_recipe('support_bot').recipe))}\n```" in RECIPE_PAGE


@pytest.mark.needs_embedded
def test_readme_shows_a_recipe_that_plans(tmp_path: Path) -> None:
    assert plan_written(short_recipe(), tmp_path, in_new_interpreter).startswith("6 steps")


@pytest.mark.needs_embedded
def test_the_way_to_own_data_plans(tmp_path: Path) -> None:
    shipped = (PROJECT / "conf" / "recipe" / "support_bot.yaml").read_text("utf-8")
    save_tiny(tmp_path / "model")
    write_chats(tmp_path / "chats.jsonl")
    text = changed(shipped, DATA_PAGE).replace("/models/my-8b", str(tmp_path / "model"))
    assert plan_written(text.replace("data/", f"{tmp_path}/"), tmp_path).startswith("14 steps")


def test_readmes_way_to_own_data_looks_writes_and_plans(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    write_chats(tmp_path / "chats.jsonl")
    block = README.partition("## Your own model and data")[2].partition("```sh\n")[2].partition("```")[0]
    commands = [line.split() for line in block.splitlines()]
    assert [words[2] for words in commands] == ["flows.look", "flows.look", "flows.compress"]
    places = {"data": str(tmp_path), "my_conf": str(tmp_path / "my_conf"), "/models/my-8b": str(tmp_path / "model")}
    for words in commands:
        typed = [
            re.sub("^(data|my_conf|/models/my-8b)(?=/|$)", lambda found: places[found[0]], word) for word in words[1:]
        ]
        last = ["dry_run=true"] if "flows.compress" in typed else []
        done = run_module(typed[1], [*typed[2:], *last], PROJECT, os.environ)
        assert done.returncode == 0, done.stderr
    assert "plan of my_recipe: 6 steps" in done.stdout


def write_chats(file: Path) -> None:
    row = '{"messages": [{"role": "user", "content": "question %d"}, {"role": "assistant", "content": "answer %d"}]}\n'
    file.write_text("".join(row % (number, number) for number in range(40)))


def test_readme_shows_the_two_commands() -> None:
    assert "make run" in COMMANDS and "make test" in COMMANDS and len(PLANNED) > 5


@pytest.mark.needs_embedded
@pytest.mark.parametrize("command", PLANNED)
def test_commands_plan(command: str, data: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model") if "/models/my-8b" in command else tmp_path
    typed = command.strip().replace("/your/benchmarks", str(data)).replace("/models/my-8b", str(model))
    arguments = shlex.split(typed)[3:]
    assert any(item.startswith("+recipe=") for item in arguments)
    done = dry_run(*(item for item in arguments if item != "dry_run=true"))
    assert done.returncode == 0, done.stderr
    assert "plan of" in done.stdout


@pytest.mark.parametrize("target", [item.split()[1] for item in COMMANDS if item.startswith("make ")])
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (PROJECT / "Makefile").read_text("utf-8"), re.MULTILINE)
