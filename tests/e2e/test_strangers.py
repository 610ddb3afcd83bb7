"""Strangers' data from a first look to grades and a verdict, on tiny models: JSON answers; chats without any label."""

import json
from pathlib import Path

import pytest
import yaml

from flows.look import main as look
from tasks.curate.jsonl import Jsonl
from tasks.evaluate.divergence import Divergence
from tasks.evaluate.generation import Generation
from tasks.evaluate.judge import Judge
from tasks.evaluate.paired import Paired
from tasks.shared.formats.scores import read_scores
from tasks.shared.formats.verdict import read_verdict
from tasks.shared.technique import Artifact, Inputs, Kind, Technique
from tests.chat_files import chat, question, write
from tests.tiny_llama import build_model, empty_run, save_tiny
from tests.unit.tasks.evaluate.test_judge import Referee


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Artifact, ...]]:
    """A baseline and a shorter candidate, at the ports of an evaluation."""
    folder = tmp_path_factory.mktemp("models")
    made = {
        name: save_tiny(folder / name, build_model(num_hidden_layers=depth))
        for name, depth in (("tuned", 2), ("slim", 1))
    }
    tuned, slim = (Artifact(name, Kind.MODEL, path) for name, path in made.items())
    return {"baseline": (tuned,), "candidates": (slim,)}


def step(folder: Path, name: str, technique: Technique, **ports: tuple[Artifact, ...]) -> Artifact:
    """Run a technique on these inputs and return its artifact."""
    out, run = empty_run(folder, name)
    technique(Inputs(ports), out, run)
    return Artifact(name, technique.spec.produces, out)


def test_json_answers_are_found_and_graded_as_json(tmp_path: Path, models: dict[str, tuple[Artifact, ...]]) -> None:
    rows = [chat(question(n), json.dumps({"item": question(n)[:4], "count": n})) for n in range(60)]
    path, recipe = write(tmp_path / "orders.jsonl", *rows), tmp_path / "recipe" / "orders.yaml"
    assert look([path, "--write", str(recipe)]) == 0
    steps = yaml.safe_load(recipe.read_text("utf-8").partition("steps:\n")[2])
    data = step(tmp_path, "corpus", Jsonl(**steps["corpus"], test_share=0.2))
    scores = read_scores(step(tmp_path, "answers", Generation(max_new_tokens=4), **models, data=(data,)).path)
    assert {"json_valid", "json_exact", "field_f1", "format"} <= scores.summary.measures.keys()
    assert steps["verdict"]["margins"] == {"json_exact": 0.05}
    exact = [item for item in scores.items if item.measure == "json_exact"]
    assert exact and all(json.loads(item.wanted)["item"] and set(item.values) == {"tuned", "slim"} for item in exact)


def test_chats_without_labels_are_decided_by_divergence_and_a_judge(
    tmp_path: Path, models: dict[str, tuple[Artifact, ...]]
) -> None:
    path = write(tmp_path / "chats.jsonl", *(chat(question(n), f"It is {question(n + 1)}") for n in range(60)))
    data = step(tmp_path, "corpus", Jsonl(path=path, test_share=0.2))
    answers = step(tmp_path, "answers", Generation(max_new_tokens=6), **models, data=(data,))
    divergence = step(tmp_path, "divergence", Divergence(), **models, data=(data,))
    with Referee(lambda body, count: "Verdict: tie") as referee:
        technique = Judge(base_url=referee.url, model="judge", concurrency=1)
        judged = step(tmp_path, "judged", technique, answers=(answers,), data=(data,))
    assert referee.seen, "the answers differ, so the judge was asked"
    paired = Paired(margins={"judged": 0.3, "kl": 1e-6})
    verdict = read_verdict(
        step(tmp_path, "verdict", paired, **models, scores=(answers, divergence, judged)).path / "verdict.json"
    )
    assert set(verdict.margin) == {"judged", "kl"} and verdict.decision == "do not ship"
    found = verdict.comparisons["slim"].measures
    assert found["kl"].difference < 0 and found["judged"].difference == 0
