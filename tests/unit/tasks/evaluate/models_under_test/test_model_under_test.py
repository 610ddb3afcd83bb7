"""Model inspection without loading, and failures of candidates that cannot be inspected."""

from pathlib import Path

import pytest

from tasks.evaluate.likelihood.logits import in_transformers
from tasks.evaluate.models_under_test.answering import has_template, template_notes
from tasks.evaluate.models_under_test.isolated_runs import Resources, evaluate_each
from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest, Prompt, list_models
from tasks.evaluate.timing.probes import make_probe
from tasks.evaluate.verdict.description import describe_models
from tasks.evaluate.verdict.evidence import gather_evidence
from tasks.shared.errors import ModelError
from tasks.shared.formats.scores import read_scores
from tasks.shared.isolation import Failure
from tasks.shared.technique import Artifact, Inputs, Kind
from tests.score_samples import FACT, items_of, write_step_scores
from tests.tiny_llama import empty_run, save_tiny


def broken_models(folder: Path) -> dict[str, Artifact]:
    """Return candidates that cannot be read."""
    from tasks.shared.gguf.writer import write_gguf

    sound = folder / "sound.gguf"
    write_gguf(save_tiny(folder / "tuned"), sound, "f16")
    content = sound.read_bytes()
    for name, files in {
        "short": [content[:300]],
        "cut": [content[:-4000]],
        "two": [content, content],
        "empty": [],
    }.items():
        (folder / name).mkdir()
        for number, file in enumerate(files):
            (folder / name / f"{number}.gguf").write_bytes(file)
    (save_tiny(folder / "bare") / "config.json").unlink()
    (save_tiny(folder / "torn") / "config.json").write_text('{"dtype": ', encoding="utf-8")
    (save_tiny(folder / "list") / "config.json").write_text("[]", encoding="utf-8")
    engines = {name: Artifact(name, Kind.ENGINE, folder / name) for name in ("short", "cut", "two")}
    return engines | {name: Artifact(name, Kind.MODEL, folder / name) for name in ("empty", "bare", "torn", "list")}


def ask_nobody(model: ModelUnderTest, plan: str, resources: Resources) -> str:
    raise AssertionError("a broken model is not asked")


def test_a_broken_candidate_is_its_own_failure_and_no_error_of_the_step(tmp_path: Path) -> None:
    broken = broken_models(tmp_path)
    tuned = Artifact("tuned", Kind.MODEL, tmp_path / "tuned")
    inputs = Inputs({"baseline": (tuned,), "candidates": tuple(broken.values())})
    models = list_models(inputs)
    others = models[1:]
    assert not models[0].failure and all(model.failure for model in others)
    assert not [model for model in others if str(tmp_path) in model.failure or "\n" in model.failure]
    _, run = empty_run(tmp_path)
    found = evaluate_each(in_transformers(others), {}, ask_nobody, str, run)
    assert found == {model.name: Failure(model.failure) for model in others}
    assert found["two"] == Failure("2 GGUF files") and found["bare"] == Failure(
        "no readable config.json (FileNotFoundError)"
    )
    assert template_notes(models) == []
    probe, note = make_probe(others[0], "auto", Prompt([]), tmp_path)
    assert probe is None and note == f"short: not timed: {others[0].failure}."
    failed = {name: {"failure": "broken"} for name in broken}
    summary = write_step_scores(tmp_path / "scores", {"fact": FACT}, items_of("fact", {"tuned": [1.0, 0.0]}), **failed)
    described = describe_models(
        models, inputs, gather_evidence([("scores", read_scores(summary.path))]), (), frozenset(), 0
    )
    assert {(described[name].parameters, described[name].size_bytes) for name in broken} == {(None, 0)}
    assert described["tuned"].parameters


def test_weights_whose_header_is_torn_do_not_end_the_verdict(tmp_path: Path) -> None:
    save_tiny(tmp_path / "tuned")
    (file,) = save_tiny(tmp_path / "torn").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    tuned, torn = (Artifact(name, Kind.MODEL, tmp_path / name) for name in ("tuned", "torn"))
    inputs = Inputs({"baseline": (tuned,), "candidates": (torn,)})
    summary = write_step_scores(
        tmp_path / "scores", {"fact": FACT}, items_of("fact", {"tuned": [1.0]}), torn={"failure": "broken"}
    )
    evidence = gather_evidence([("scores", read_scores(summary.path))])
    assert describe_models(list_models(inputs), inputs, evidence, (), frozenset(), 0)["torn"].parameters is None


def test_a_baseline_must_be_sound_and_every_path_be_there(tmp_path: Path) -> None:
    tuned = Artifact("tuned", Kind.MODEL, save_tiny(tmp_path / "tuned"))
    nowhere = Artifact("slim", Kind.MODEL, tmp_path / "nowhere")
    with pytest.raises(ModelError, match="slim.*no such file"):
        list_models(Inputs({"baseline": (tuned,), "candidates": (nowhere,)}))
    (tuned.path / "tokenizer_config.json").write_text("[", encoding="utf-8")
    assert has_template(tuned.path)
    (tuned.path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="no readable config.json"):
        list_models(Inputs({"baseline": (tuned,)}))
