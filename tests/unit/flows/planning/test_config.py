"""Composing: what Hydra lets through, we do not."""

import pytest

from flows.planning.config import Runtime, compose_recipe, recipe_names
from flows.planning.plan import build_plan
from tasks.shared.errors import ConfigError, StillroomError


def test_recipes_are_found() -> None:
    assert "support_bot" in recipe_names()


def test_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="support_bot"):
        compose_recipe("suport_bot")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+typo=1", "no such key"),
        ("+runtime.thread=2", "thread"),
        ("runtime.device=tpu", "device"),
        ("+gate.enfroce=true", "enfroce"),
    ],
)
def test_unknown_keys_are_refused(override: str, words: str) -> None:
    with pytest.raises(StillroomError, match=words):
        compose_recipe("support_bot", [override])


@pytest.mark.needs_embedded
def test_swapping_a_technique_keeps_the_graph() -> None:
    plan = build_plan(compose_recipe("support_bot", ["quantize@steps.quick4=rtn"]).recipe)
    assert plan.step("quick4").target == "tasks.quantize.rtn.RTN"


@pytest.mark.needs_embedded
def test_adding_a_step_from_the_command_line() -> None:
    plan = build_plan(
        compose_recipe(
            "support_bot", ["+prune@steps.slim2=depth", "+steps.slim2.inputs={model: student, calibration: corpus}"]
        ).recipe
    )
    names = [step.name for step in plan.steps]
    assert names.index("slim2") > names.index("student")


@pytest.mark.needs_embedded
def test_removing_a_technique_but_not_its_settings_is_explained() -> None:
    with pytest.raises(StillroomError, match="without a technique"):
        build_plan(compose_recipe("support_bot", ["~prune@steps.slim"]).recipe)


def test_root_defaults_to_the_project() -> None:
    assert (Runtime().folder / "conf" / "config.yaml").is_file()


@pytest.mark.parametrize(
    ("override", "wanted"), [("dry_run=false", False), ("dry_run=true", True), ("dry_run=graph", "graph")]
)
def test_a_dry_run_may_show_the_graph(override: str, wanted: object) -> None:
    assert compose_recipe("tiny", [override]).dry_run == wanted


def test_a_misspelled_dry_run_starts_nothing() -> None:
    with pytest.raises(StillroomError, match="true, false or graph"):
        compose_recipe("tiny", ["dry_run=grpah"])
