"""Models compared without a recipe of their own: what an argument means, and the evaluation that is borrowed."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from flows import compare as module
from flows.compare import main
from flows.comparison.contestants import Contestant, as_name, at_path, find_contestant, with_distinct_names
from flows.comparison.evaluation import evaluation_of
from flows.planning.config import CONF, compose_recipe
from flows.planning.plan import build_plan
from tasks.shared.errors import ConfigError
from tests.tiny_files import bare_folder
from tests.verdict_samples import a_verdict


def make_step(root: Path, recipe: str, step: str, kind: str = "model") -> Path:
    """A finished step in a recipe's folder, as far as its manifest tells."""
    folder = root / "artifacts" / recipe / step
    (folder / "out").mkdir(parents=True)
    bare_folder(folder / "out")
    (folder / "manifest.json").write_text(json.dumps({"recipe": recipe, "step": step, "kind": kind, "key": "0" * 64}))
    return folder / "out"


def test_an_argument_is_a_path_a_step_or_a_run(tmp_path: Path) -> None:
    out = make_step(tmp_path, "bot", "student")
    assert find_contestant("bot/student", tmp_path, "") == Contestant("student", out, "bot")
    assert (
        find_contestant(str(out), tmp_path, "")
        == find_contestant(str(out.parent), tmp_path, "")
        == Contestant("student", out, "bot")
    )
    plain = tmp_path / "My Model-1.5"
    plain.mkdir()
    assert find_contestant(str(plain), tmp_path, "") == Contestant("my_model_1_5", plain)
    verdict = make_step(tmp_path, "bot", "verdict", "verdict")
    (verdict / "verdict.json").write_text(a_verdict().model_dump_json())
    assert find_contestant("bot", tmp_path, "").path == out, "the candidate nearest to shipping"


def test_what_is_no_model_is_refused_with_what_there_is(tmp_path: Path) -> None:
    make_step(tmp_path, "bot", "student")
    with pytest.raises(ConfigError, match="finished: bot/student"):
        find_contestant("bot/studnt", tmp_path, "")
    with pytest.raises(ConfigError, match="a corpus"):
        at_path(make_step(tmp_path, "bot", "corpus", "corpus"), tmp_path)


def test_the_champion_is_asked_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="champion:bot"):
        find_contestant("champion:bot", tmp_path, "")


def test_names_fit_a_recipe_and_differ() -> None:
    assert [as_name(text) for text in ("Qwen2.5-0.5B", "7b", "---")] == ["qwen2_5_0_5b", "m_7b", "m_"]
    same = [
        Contestant("student", Path("a"), "bot"),
        Contestant("student", Path("b"), "bench"),
        Contestant("x", Path("c")),
        Contestant("x", Path("d")),
    ]
    assert [one.name for one in with_distinct_names(same)] == ["bot_student", "bench_student", "x", "x_2"]


def test_the_evaluation_of_a_recipe_is_borrowed_whole(tmp_path: Path) -> None:
    models = [Contestant(name, make_step(tmp_path, "bot", name)) for name in ("big", "small")]
    recipe = compose_recipe("tiny", ["steps.answers.limit=5", "steps.verdict.explains=[student]"]).recipe
    found = evaluation_of(recipe, models)
    plan = build_plan(found)
    assert [step.name for step in plan.steps] == ["corpus", "answers", "speed", "verdict", "report"]
    assert plan.step("answers").settings()["limit"] == 5
    for step in ("answers", "speed", "verdict"):
        assert (plan.step(step).inputs["baseline"], plan.step(step).inputs["candidates"]) == (
            ("models.big",),
            ("models.small",),
        )
    assert set(found["models"]) == {"big", "small"}, "the recipe's own models are not needed"
    assert plan.step("answers").inputs["data"] == ("corpus",) and plan.step("verdict").inputs["scores"] == (
        "answers",
        "speed",
    ), "the recipe leaves them to its plan"
    assert plan.step("corpus").settings() == build_plan(recipe).step("corpus").settings(), (
        "the same key: it is made once for both"
    )


@pytest.mark.parametrize(("decision", "code"), [("ship", 0), ("do not ship", 3), ("not enough data", 4)])
def test_the_exit_code_is_the_decision(monkeypatch: pytest.MonkeyPatch, decision: str, code: int) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(module, "compare", lambda *told: (asked.append(told), decision)[1])
    assert main(["a", "b", "--recipe", "tiny", "steps.answers.limit=5"]) == code
    assert asked == [(["a", "b"], "tiny", ["steps.answers.limit=5"], None)]


def test_a_recipe_of_the_user_s_own_is_the_models_own_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my_conf"
    (folder / "recipe").mkdir(parents=True)
    text = (CONF / "recipe" / "tiny.yaml").read_text()
    (folder / "recipe" / "mine.yaml").write_text(text.replace("name: tiny", "name: mine"))
    for name in ("big", "small"):
        make_step(tmp_path, "mine", name)
    seen: list[Any] = []
    monkeypatch.setattr(
        "flows.orchestration.execute.execute",
        lambda *given, **named: seen.append((*given, named)) or Namespace(run=None, outcomes=None),
    )
    monkeypatch.setattr("flows.console.show.show_result", lambda *told: Namespace(decision="ship"))
    models = ["mine/big", "mine/small", f"runtime.root={tmp_path}"]
    assert main([*models, "--config-dir", str(folder), "steps.answers.limit=5"]) == 0
    assert (
        "measures and margins of mine" in capsys.readouterr().err
        and seen[0][0].recipe["steps"]["answers"]["limit"] == 5
    )
    assert seen[0][2:] == ([], {"variant": True}), "no made-up override keeps it out of the recipe's folder"
    assert main([*models, "--recipe", "mine"]) == 2, "it is not among those that ship"


def test_one_model_is_not_enough(caplog: pytest.LogCaptureFixture) -> None:
    assert main(["a"]) == 2
