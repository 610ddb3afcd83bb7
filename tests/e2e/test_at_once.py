"""Two commands at once in one checkout: every step is made once, nothing is torn, nobody waits for ever."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.project_files import matching
from tests.workshop import STEPS, Workshop, build_workshop

SLOW = [f"steps.{name}.delay_s=1" for name in STEPS]


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return build_workshop(tmp_path / "shop")


def start(shop: Workshop, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "flows.compress", *arguments, "runtime.orchestrator=none", "tracking=none"]
    return subprocess.Popen(command, cwd=shop.folder, env=shop.environment, stderr=subprocess.PIPE, text=True)


def finish(*children: "subprocess.Popen[str]") -> list[str]:
    said = [child.communicate(timeout=180)[1] for child in children]
    assert [child.returncode for child in children] == [0] * len(children), said
    return said


def test_the_same_recipe_twice_is_made_once(shop: Workshop) -> None:
    said = finish(start(shop, "+recipe=toy", *SLOW), start(shop, "+recipe=toy", *SLOW))
    assert sorted(shop.executed()) == sorted(STEPS)
    assert any("is being made by another run; waiting for it" in text for text in said)


def test_as_written_twice_and_a_variant_beside_them(shop: Workshop) -> None:
    finish(start(shop, "+recipe=toy"), start(shop, "+recipe=toy"), start(shop, "+recipe=toy", "steps.slim.ratio=0.1"))
    executed = shop.executed()
    assert {name: executed.count(name) for name in STEPS} == {
        "corpus": 1, "tuned": 1, "slim": 2, "small": 1, "student": 2, "verdict": 2,
    }  # fmt: skip
    assert "nothing to do" in shop.compress("+recipe=toy").stderr
    assert shop.dvc("repro", *(f"toy-{name}" for name in STEPS)).returncode == 0
    assert shop.executed() == []


def test_two_recipes_share_what_is_alike_and_keep_the_rest_apart(shop: Workshop) -> None:
    finish(start(shop, "+recipe=toy"), start(shop, "+recipe=toy_too"))
    assert sorted(shop.executed()) == sorted([*STEPS, *STEPS]), "their corpora differ, and so does all that follows"
    for recipe in ("toy", "toy_too"):
        assert "nothing to do" in shop.compress(f"+recipe={recipe}").stderr
    assert shop.dvc("repro").returncode == 0 and shop.executed() == []


def test_who_waits_goes_on_when_the_other_is_killed(shop: Workshop) -> None:
    first = start(shop, "+recipe=toy", "steps.corpus.delay_s=60")
    deadline = time.monotonic() + 60
    while not (shop.log.exists() and "start corpus" in shop.log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second = start(shop, "+recipe=toy")
    assert second.stderr is not None
    while "waiting for it" not in (line := second.stderr.readline()):
        assert line, "it ended without waiting"
    family = [first.pid, *(child.pid for child in psutil.Process(first.pid).children(recursive=True))]
    for pid in family:
        psutil.Process(pid).kill()
    first.communicate()
    finish(second)
    assert sorted(shop.executed()) == sorted(STEPS)


def test_a_flow_and_dvc_repro_at_once(shop: Workshop) -> None:
    flow = start(shop, "+recipe=toy")
    repro = shop.dvc("repro", *(f"toy-{name}" for name in STEPS))
    assert repro.returncode == 0, repro.stderr
    finish(flow)
    assert sorted(shop.executed()) == sorted(STEPS), "each step was made once, whoever came first"
    assert shop.compress("+recipe=toy").returncode == 0
    assert shop.dvc("repro", *(f"toy-{name}" for name in STEPS)).returncode == 0
    assert shop.executed() == []


def test_each_artifact_is_called_made_by_one_run_alone(shop: Workshop) -> None:
    command = [
        sys.executable,
        "-m",
        "flows.compress",
        "+recipe=toy",
        *SLOW,
        "runtime.orchestrator=none",
        "tracking=none",
    ]
    runs = [
        subprocess.Popen(command, cwd=shop.folder, env=shop.environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [run.communicate(timeout=180)[0] for run in runs]
    assert sum(text.count("│ made ") for text in said) == len(STEPS), said
    assert sum(text.count("│ cached ") for text in said) == len(STEPS)


def test_steps_that_differ_in_name_alone_are_made_once(shop: Workshop) -> None:
    twin = [
        "+prune@steps.twin=toy",
        "+steps.twin.inputs={model: tuned}",
        "steps.twin.ratio=0.75",
        "steps.small.delay_s=2",
    ]
    finish(start(shop, "+recipe=toy", *twin, "runtime.parallel=3"))
    executed = shop.executed()
    assert executed.count("small") + executed.count("twin") == 1


def test_a_recipe_that_changes_beside_dvc_repro_mixes_nothing(shop: Workshop) -> None:
    """The step that DVC runs was told of one input; the flow puts another into the recipe's folder before it is read."""
    recipe = shop.folder / "conf/recipe/toy.yaml"
    text = recipe.read_text()
    assert shop.compress("+recipe=toy").returncode == 0
    shop.executed()
    recipe.write_text(
        text.replace("data: corpus}}\n  verdict", "data: corpus}, delay_s: 6}\n  verdict").replace(
            "ratio: 0.25", "ratio: 0.26"
        )
    )
    assert shop.python("flows.sync").returncode == 0
    repro = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "toy-student"],
        cwd=shop.folder, env=shop.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (shop.log.exists() and "start student" in shop.log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    recipe.write_text(recipe.read_text().replace("ratio: 0.26", "ratio: 0.27"))
    finish(start(shop, "+recipe=toy", "runtime.dvc=false"))
    repro.wait(60)
    for manifest in matching("artifacts/.store/student/*/manifest.json", root=shop.folder):
        told = json.loads(manifest.read_text())["inputs"]["model"]["slim"]
        read = dict(
            (name, digest) for _, name, digest in json.loads((manifest.parent / "out/content.json").read_text())["read"]
        )
        slim = next(
            place for place in shop.folder.glob("artifacts/.store/slim/*/manifest.json")
            if json.loads(place.read_text())["output"] == told
        )  # fmt: skip
        assert hashlib.sha256((slim.parent / "out/content.json").read_bytes()).hexdigest() == read["slim"]
