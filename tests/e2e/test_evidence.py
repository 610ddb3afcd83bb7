"""The evidence of a whole run: traced digest by digest, the shipped model in it, the same under DVC."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.workshop import Workshop, build_workshop

RECIPE = """\
# @package _global_
defaults:
  - /recipe/toy@_here_
  - /report@steps.report: html
  - _self_
name: shown
steps:
  verdict: {text: ship}
  report:  {inputs: {verdict: verdict, models: [tuned, slim, student, small], corpus: corpus}, licenses: {data: CC-BY-4.0}}
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    shop = build_workshop(tmp_path_factory.mktemp("evidence") / "shop")
    (shop.folder / "conf/recipe/shown.yaml").write_text(RECIPE)
    assert shop.python("flows.sync", "shown").returncode == 0
    shop.git("add", "-A")
    shop.git("commit", "-qm", "a recipe with a report")
    done = shop.compress("+recipe=shown")
    assert done.returncode == 0, done.stderr
    return shop


def manifest(shop: Workshop, step: str) -> dict[str, Any]:
    return dict(json.loads((shop.folder / f"artifacts/shown/{step}/manifest.json").read_text()))


def test_every_change_is_traced_to_the_manifests(shop: Workshop) -> None:
    log = json.loads((shop.folder / "artifacts/shown/report/out/performance.json").read_text())
    assert log["date"] == manifest(shop, "verdict")["made"] and log["shipped"] == "student"
    student = next(found for found in log["candidates"] if found["name"] == "student")
    assert student["traced"] and [change["step"] for change in student["changes"]] == ["slim", "student"]
    for change in student["changes"]:
        made = manifest(shop, change["step"])
        assert (change["after"], change["key"]) == (made["output"], made["key"])
        assert change["inputs"].items() >= made["inputs"]["model"].items()
    assert log["evidence"] == {step: manifest(shop, step)["output"] for step in log["evidence"]}


def test_the_shipped_model_is_there_and_takes_no_room(shop: Workshop) -> None:
    view, packed = shop.folder / "artifacts/shown/student/out", shop.folder / "artifacts/shown/report/out/model"
    names = {file.name for file in view.iterdir()}
    assert {file.name for file in packed.iterdir()} == names | {"README.md"}
    assert all((view / name).samefile(packed / name) for name in names)
    assert (shop.folder / "artifacts/shown/report/out/models/small/README.md").is_file()


def test_nothing_is_left_to_do_for_the_flow_and_for_dvc(shop: Workshop) -> None:
    assert "nothing to do" in shop.compress("+recipe=shown").stderr
    status = shop.dvc("status", "shown-report")
    assert status.returncode == 0 and "up to date" in status.stdout, status.stdout + status.stderr


def test_a_packed_file_that_was_changed_is_noticed(shop: Workshop) -> None:
    file: Path = shop.folder / "artifacts/shown/report/out/model/README.md"
    whole = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(b"ship it")
    done = shop.compress("+recipe=shown")
    assert done.returncode == 0 and "report is made again" in done.stderr, done.stderr
    assert file.read_bytes() == whole, "the same inputs give the same bytes, its date included"
