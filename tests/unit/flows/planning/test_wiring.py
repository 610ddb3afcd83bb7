"""Inputs that a recipe leaves out: wired where one way is possible, refused where several are, and the same as written in full."""

from pathlib import Path
from typing import Any

import pytest

from flows.planning.config import Runtime, compose_recipe, recipe_names
from flows.planning.plan import build_plan
from flows.planning.session import Session
from flows.planning.steps import Plan
from flows.planning.wiring import Node, Wiring, recipe_inputs, wire
from flows.versioning.params import recipe_of, recipe_params
from tasks.shared.errors import ErrorList
from tasks.shared.store.keys import PROJECT
from tasks.shared.technique import Kind, Port
from tests.benchmark_data import write_benchmark_data
from tests.project_files import matching
from tests.tiny_llama import save_tiny

BENCHES = ("support_bot_bench", "pruning_benchmarks")
"""Recipes on data that the user brings."""
CORPUS, TRACES, MODEL, SCORES = Kind.CORPUS, Kind.TRACES, Kind.MODEL, Kind.SCORES
TRAINING = {"model": Port((MODEL,)), "data": Port((TRACES, CORPUS))}
TAUGHT = {**TRAINING, "teacher": Port((MODEL,))}
MEASURED = {
    "baseline": Port((MODEL,), wire="reader"),
    "candidates": Port((MODEL,), many=True, optional=True, wire="reader"),
}
JUDGED = {**MEASURED, "scores": Port((SCORES,), many=True, wire="recipe")}
SHOWN = {
    "verdict": Port((Kind.VERDICT,)),
    "models": Port((MODEL,), many=True, optional=True, wire="inputs"),
    "corpus": Port((CORPUS,), optional=True, wire="inputs"),
}


def corpus() -> Node:
    return Node({}, CORPUS, {})


def traces() -> Node:
    return Node({"prompts": Port((CORPUS,))}, TRACES, {})


def train(**inputs: tuple[str, ...]) -> Node:
    return Node(TRAINING, MODEL, inputs)


def said(wiring: Wiring) -> dict[str, str]:
    """The problems by step, as text."""
    return {step: "\n".join(map(str, found)) for step, found in wiring.problems.items()}


def test_the_only_artifact_that_fits_is_taken() -> None:
    found = wire({"corpus": corpus(), "tuned": train()}, ["models.base"])
    assert not found.problems
    assert found.inputs["tuned"] == {"model": ("models.base",), "data": ("corpus",)}
    assert found.wired == {"corpus": (), "tuned": ("model", "data")}


def test_a_port_takes_the_first_of_its_kinds_that_the_recipe_has() -> None:
    found = wire({"tuned": train(), "corpus": corpus(), "traces": traces()}, ["models.base"])
    assert found.inputs["traces"]["prompts"] == ("corpus",) and found.inputs["tuned"]["data"] == ("traces",)


def test_what_is_made_from_a_step_is_no_candidate_for_it() -> None:
    nodes = {"corpus": corpus(), "tuned": train(), "slim": train(model=("tuned",)), "student": train(model=("slim",))}
    assert wire(nodes, ["models.base"]).inputs["tuned"]["model"] == ("models.base",)
    teacher = Node({"teacher": Port((MODEL,)), "prompts": Port((CORPUS,))}, TRACES, {"teacher": ("tuned",)})
    found = wire(nodes | {"traces": teacher}, ["models.base"])
    assert found.inputs["tuned"]["data"] == ("corpus",), "the traces of tuned cannot train it"
    assert found.inputs["slim"]["data"] == ("traces",)


def test_an_edge_that_is_wired_rules_out_candidates_of_other_ports() -> None:
    asked = Node({"teacher": Port((MODEL,)), "prompts": Port((CORPUS,))}, TRACES, {"teacher": ("slim",)})
    nodes = {"slim": train(), "tuned": train(model=("models.base",)), "traces": asked, "corpus": corpus()}
    found = wire(nodes, ["models.base"])
    assert found.inputs["tuned"]["data"] == ("traces",), "answers of slim"
    assert found.inputs["slim"] == {"model": ("models.base",), "data": ("corpus",)}, "so slim is not made from tuned"
    apart = nodes | {"tuned": train(model=("models.base",), data=("corpus",))}
    assert "2 fit: models.base, tuned" in said(wire(apart, ["models.base"]))["slim"]


def test_two_candidates_are_an_error_that_lists_both_and_says_what_to_type() -> None:
    found = wire({"corpus": corpus(), "other": corpus(), "tuned": train()}, ["models.base"])
    assert "data" not in found.inputs["tuned"]
    for words in (
        "steps.tuned.inputs.data: missing, and 2 fit: corpus, other",
        "tuned: {inputs: {data: other}}",
        "'+steps.tuned.inputs.data=other'",
    ):
        assert words in said(found)["tuned"]


def test_an_optional_port_that_is_wired_must_be_named_if_several_fit() -> None:
    asks = Node({"data": Port((CORPUS,), optional=True, wire="recipe")}, SCORES, {})
    found = wire({"corpus": corpus(), "other": corpus(), "asks": asks}, [])
    assert "2 fit: corpus, other" in said(found)["asks"] and "or null for none" in said(found)["asks"]
    assert wire({"asks": asks}, []).problems == {}
    assert wire({"corpus": corpus(), "asks": asks}, []).inputs["asks"] == {"data": ("corpus",)}


def test_no_candidate_says_which_kind_is_missing() -> None:
    found = wire({"tuned": train()}, ["models.base"])
    assert "steps.tuned.inputs.data: missing, and the recipe has no traces or corpus" in said(found)["tuned"]
    assert "+<stage>@steps.<name>=<technique>" in said(found)["tuned"]


def test_a_kind_that_does_not_fit_is_never_taken() -> None:
    engine = Node({"model": Port((MODEL,))}, Kind.ENGINE, {})
    found = wire({"gguf": engine, "again": engine}, [])
    assert set(said(found)) == {"gguf", "again"} and "the recipe has no model" in said(found)["gguf"]


def test_a_candidate_that_would_close_a_cycle_is_named() -> None:
    found = wire({"corpus": corpus(), "tuned": train(), "slim": train(model=("tuned",))}, [])
    assert "steps.tuned.inputs.model: missing; slim would close a cycle: made from tuned" in said(found)["tuned"]


def test_two_steps_that_could_only_take_each_other_close_no_cycle() -> None:
    found = wire({"corpus": corpus(), "one": train(), "two": train()}, [])
    assert found.inputs["one"]["model"] == ("two",) and "one would close a cycle" in said(found)["two"]


def test_what_the_recipe_says_wins_also_if_it_says_none() -> None:
    asks = {"data": Port((CORPUS,), optional=True, wire="recipe")}
    for given, wanted in ((("other",), {"data": ("other",)}), ((), {})):
        node = Node(asks, SCORES, {"data": given})
        found = wire({"corpus": corpus(), "other": corpus(), "asks": node}, [])
        assert found.inputs["asks"] == wanted and found.wired["asks"] == () and not found.problems


def test_none_at_a_required_port_is_refused() -> None:
    found = wire({"corpus": corpus(), "tuned": train(data=())}, ["models.base"])
    assert "steps.tuned.inputs.data: missing" in said(found)["tuned"] and "corpus" in said(found)["tuned"]


def test_an_optional_port_that_does_not_declare_it_stays_empty() -> None:
    node = Node({"model": Port((MODEL,)), "calibration": Port((CORPUS,), optional=True)}, MODEL, {})
    assert wire({"corpus": corpus(), "slim": node}, ["models.base"]).inputs["slim"] == {"model": ("models.base",)}


def test_a_required_list_is_collected_only_if_it_declares_it() -> None:
    quiet = Node({"data": Port((CORPUS,), many=True)}, MODEL, {})
    assert "steps.slim.inputs.data: missing" in said(wire({"corpus": corpus(), "slim": quiet}, []))["slim"]
    eager = Node({"data": Port((CORPUS,), many=True, wire="recipe")}, MODEL, {})
    assert wire({"a": corpus(), "b": corpus(), "slim": eager}, []).inputs["slim"] == {"data": ("a", "b")}


def test_a_model_is_not_its_own_teacher() -> None:
    nodes = {"corpus": corpus(), "slim": train(), "student": Node(TAUGHT, MODEL, {"model": ("slim",)})}
    assert wire(nodes, ["models.base"]).inputs["student"]["teacher"] == ("models.base",)
    alone = {"corpus": corpus(), "student": Node(TAUGHT, MODEL, {})}
    assert "steps.student.inputs.teacher: missing" in said(wire(alone, ["models.base"]))["student"]


def judged(**more: Node) -> dict[str, Node]:
    return {
        "corpus": corpus(),
        "tuned": train(),
        "int4": train(model=("tuned",)),
        "answers": Node({**MEASURED, "data": Port((CORPUS,))}, SCORES, {}),
        "speed": Node(MEASURED, SCORES, {}),
        "verdict": Node(JUDGED, Kind.VERDICT, {"baseline": ("tuned",), "candidates": ("int4",)}),
        **more,
    }


def test_measuring_steps_take_the_models_of_their_verdict() -> None:
    found = wire(judged(), ["models.base"])
    assert not found.problems and found.inputs["verdict"]["scores"] == ("answers", "speed")
    for step in ("answers", "speed"):
        assert found.inputs[step].items() >= {"baseline": ("tuned",), "candidates": ("int4",)}.items()
    own = Node(MEASURED, SCORES, {"candidates": ()})
    assert wire(judged(speed=own), ["models.base"]).inputs["speed"] == {"baseline": ("tuned",)}


def test_a_baseline_is_never_guessed() -> None:
    nodes = judged(verdict=Node(JUDGED, Kind.VERDICT, {}))
    found = said(wire(nodes, ["models.base"]))
    assert set(found) == {"verdict"}, "once, not at every measuring step"
    assert (
        "steps.verdict.inputs.baseline: missing" in found["verdict"] and "models.base, tuned, int4" in found["verdict"]
    )


def test_readers_that_differ_are_an_error_that_lists_them() -> None:
    second = Node(JUDGED, Kind.VERDICT, {"baseline": ("int4",), "candidates": ("tuned",), "scores": ("speed",)})
    found = said(wire(judged(second=second), ["models.base"]))
    assert set(found) == {"speed"}
    assert (
        "steps.speed.inputs.baseline: missing, and its readers differ: verdict takes tuned; second takes int4"
        in found["speed"]
    )


def test_a_report_takes_what_its_verdict_is_made_from_and_nothing_else() -> None:
    report = Node(SHOWN, Kind.REPORT, {})
    found = wire(judged(aside=train(model=("tuned",)), spare=corpus(), report=report), ["models.base"])
    assert "2 fit: corpus, spare" in said(found)["tuned"]
    nodes = judged(aside=train(model=("tuned",)), report=report)
    assert wire(nodes, ["models.base"]).inputs["report"] == {
        "verdict": ("verdict",),
        "models": ("tuned", "int4"),
        "corpus": ("corpus",),
    }


def test_inputs_are_in_the_order_of_the_ports() -> None:
    found = wire({"corpus": corpus(), "tuned": Node(TRAINING, MODEL, {"data": ("corpus",)})}, ["models.base"])
    assert list(found.inputs["tuned"]) == ["model", "data"]


# Whole recipes.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def recipe(model: Path) -> dict[str, Any]:
    return {
        "name": "trial",
        "seed": 0,
        "models": {"base": {"path": str(model)}},
        "steps": {
            "corpus": {"_target_": "tasks.curate.support.Support"},
            "tuned": {"_target_": "tasks.distill.sft.SFT"},
            "slim": {"_target_": "tasks.prune.depth.Depth", "inputs": {"model": "tuned"}},
            "answers": {"_target_": "tasks.evaluate.generation.Generation"},
            "speed": {"_target_": "tasks.evaluate.runtime.Runtime", "inputs": {"data": None}},
            "verdict": {
                "_target_": "tasks.evaluate.paired.Paired",
                "inputs": {"baseline": "tuned", "candidates": ["slim"], "reference": "models.base"},
                "margins": {"fact": 0.1},
            },
        },
    }


def refused(recipe: dict[str, Any]) -> list[str]:
    with pytest.raises(ErrorList) as caught:
        build_plan(recipe)
    return [str(error) for error in caught.value.errors]


def test_a_plan_is_wired_and_says_where(recipe: dict[str, Any]) -> None:
    plan = build_plan(recipe)
    assert plan.step("slim").inputs == {"model": ("tuned",), "calibration": ("corpus",)}
    assert plan.step("slim").wired == ("calibration",)
    assert plan.step("answers").inputs["reference"] == ("models.base",)
    assert "reference" not in plan.step("speed").inputs and "data" not in plan.step("speed").inputs


def test_params_hold_all_inputs_so_that_nothing_is_wired_anew(recipe: dict[str, Any]) -> None:
    plan = build_plan(recipe)
    params = recipe_params(plan)
    assert params["steps"]["speed"]["inputs"] == {
        "baseline": "tuned", "candidates": ["slim"], "repeats": [], "data": None
    }  # fmt: skip
    again = build_plan(recipe_of("trial", params))
    assert again.steps == plan.steps and not any(step.wired for step in again.steps)
    more = recipe_of("trial", params)
    more["steps"]["other"] = {"_target_": "tasks.curate.support.Support"}
    assert [build_plan(more).step(step.name) for step in plan.steps] == list(plan.steps), "whatever else is there"


def test_empty_and_left_out_are_one_plan(recipe: dict[str, Any]) -> None:
    plan = build_plan(recipe)
    recipe["steps"]["verdict"]["inputs"]["repeats"] = []
    assert build_plan(recipe).steps == plan.steps
    assert recipe_inputs(plan.step("verdict"))["repeats"] == []


def test_a_broken_step_makes_no_second_error_elsewhere(recipe: dict[str, Any]) -> None:
    for step, change in (("corpus", {"train_size": -1}), ("slim", {"ratoi": 1}), ("verdict", {"alpha": 7})):
        broken = recipe | {"steps": recipe["steps"] | {step: recipe["steps"][step] | change}}
        assert len(refused(broken)) == 1
    del recipe["steps"]["corpus"]["_target_"]
    assert len(refused(recipe)) == 1
    assert len(refused(recipe | {"models": {"base": {"path": "/nowhere/at/all"}}})) >= 2


def test_inputs_that_are_no_mapping_are_refused(recipe: dict[str, Any]) -> None:
    recipe["steps"]["slim"]["inputs"] = "tuned"
    assert any("steps.slim.inputs: 'tuned'" in error for error in refused(recipe))


def test_wrong_inputs_and_missing_ones_are_reported_together(recipe: dict[str, Any]) -> None:
    recipe["steps"]["slim"]["inputs"] = {"model": "corpus"}
    recipe["steps"]["other"] = {"_target_": "tasks.curate.support.Support"}
    text = "\n".join(refused(recipe))
    assert "'corpus' is a corpus" in text and "steps.tuned.inputs.data: missing, and 2 fit: corpus, other" in text


LONG = f"hydra.searchpath=[file://{PROJECT / 'tests/long_recipes'}]"
"""The same recipes with every input written down."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmark_data(tmp_path_factory.mktemp("data"))


def keys(plan: Plan, root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Each step's key, as if every input were its own digest."""
    session = Session(plan, Runtime(root=str(root)))
    monkeypatch.setattr(session, "digest", lambda name: f"digest of {name}")
    return {step.name: session.key(step) for step in plan.steps}


@pytest.mark.needs_embedded
@pytest.mark.parametrize("name", [file.stem[5:] for file in matching("tests/long_recipes/recipe/*.yaml")])
def test_a_short_recipe_is_the_long_one_step_by_step(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [f"steps.bench.data={data}"] if name in BENCHES else []
    short = build_plan(compose_recipe(name, more).recipe)
    long = build_plan(compose_recipe(f"long_{name}", [*more, LONG]).recipe)
    assert [step.name for step in short.steps] == [step.name for step in long.steps]
    for one, other in zip(short.steps, long.steps, strict=True):
        assert one == other and list(one.inputs) == list(other.inputs)
    assert keys(short, tmp_path, monkeypatch) == keys(long, tmp_path, monkeypatch)
    assert recipe_params(short) == recipe_params(long)
    assert not any(step.wired for step in long.steps)


@pytest.mark.needs_embedded
@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_names_no_input_that_the_plan_would_wire(name: str, data: Path) -> None:
    composed = compose_recipe(name, [f"steps.bench.data={data}"] if name in BENCHES else []).recipe
    plan = build_plan(composed)
    for step, node in composed["steps"].items():
        for port in node.get("inputs", {}):
            left_out = {key: value for key, value in node["inputs"].items() if key != port}
            shorter = {**composed, "steps": {**composed["steps"], step: {**node, "inputs": left_out}}}
            try:
                assert build_plan(shorter).steps != plan.steps, f"{step}.inputs.{port} need not be named"
            except ErrorList as error:
                assert port in str(error)


@pytest.mark.parametrize(("name", "most"), [("support_bot", 30), ("closed_book", 30), ("minimal", 14)])
def test_recipes_stay_short(name: str, most: int) -> None:
    assert len((PROJECT / "conf/recipe" / f"{name}.yaml").read_text("utf-8").splitlines()) <= most


@pytest.mark.needs_embedded
def test_a_step_added_on_the_command_line_is_wired_too() -> None:
    added = ["+prune@steps.slim2=depth", "+steps.slim2.inputs={model: student}"]
    plan, before = (build_plan(compose_recipe("support_bot", more).recipe) for more in (added, []))
    assert plan.step("slim2").inputs == {"model": ("student",), "calibration": ("corpus",)}
    assert [step for step in plan.steps if step.name != "slim2"] == list(before.steps), "it is in no report"
    with pytest.raises(
        ErrorList,
        match="steps.slim2.inputs.model: missing, and 7 fit: models.teacher, tuned, quick4, words, slim, student, small4",
    ):
        build_plan(compose_recipe("support_bot", added[:1]).recipe)
