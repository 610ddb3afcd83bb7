"""Timing of whole models: engines, failures, slower children, and one real run."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.evaluate import runtime
from tasks.evaluate.models_under_test.model_under_test import Prompt, inspect_model
from tasks.evaluate.runtime import Runtime, typical_row
from tasks.evaluate.timing import probes
from tasks.evaluate.timing.engines import Effort, Probe, Sample
from tasks.evaluate.timing.probe import answer
from tasks.evaluate.timing.probes import make_probe
from tasks.quantize.rtn import RTN
from tasks.shared.engines.memory import peak_memory
from tasks.shared.errors import ConfigError, EndpointError, ModelError
from tasks.shared.formats.rows import Message, Row, write_rows
from tasks.shared.formats.scores import Scores, read_scores
from tasks.shared.gguf.writer import write_gguf
from tasks.shared.isolation import Failure
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.technique import Artifact, Inputs, Kind
from tests.fake_vllm import write_command
from tests.settings_case import Case, Change, untimed_scores
from tests.support_rows import support_row
from tests.tiny_llama import build_model, empty_run, save_tiny

Clock = Callable[[Probe, Effort], Sample]


def make_rows() -> list[Row]:
    """Five questions; the third longest is "Question 2? 22"."""
    return [
        support_row(
            id=f"t{index}", kind="faq", intent="returns", article="a1", group=f"g{index}",
            messages=(Message(role="user", content=f"Question {index}? " + str(index) * index), Message(role="assistant", content="returns\nYes.")),
        )
        for index in (4, 0, 2, 1, 3)
    ]  # fmt: skip


def write_corpus(folder: Path) -> Path:
    folder.mkdir()
    write_rows(folder / "test.jsonl", make_rows())
    article = {"id": "a1", "title": "Times", "intent": "returns", "text": "Within 45 days."}
    (folder / "articles.jsonl").write_text(json.dumps(article) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Models in the store's layout: tuned -> slim -> student, and int4 and GGUF from student."""
    root = tmp_path_factory.mktemp("models")
    parents = {"tuned": "base", "slim": "tuned", "student": "slim", "int4": "student", "gguf": "student"}
    found: dict[str, Artifact] = {}
    for name, parent in parents.items():
        out = root / name / "out"
        out.mkdir(parents=True)
        (out.parent / "manifest.json").write_text(json.dumps({"inputs": {"model": {parent: "-"}}}), "utf-8")
        found[name] = Artifact(name, Kind.ENGINE if name == "gguf" else Kind.MODEL, out)
    save_tiny(found["tuned"].path)
    for name in ("slim", "student"):
        save_tiny(found[name].path, build_model(num_hidden_layers=2))
    write_gguf(found["student"].path, found["gguf"].path / "model.gguf", "q8_0")
    quantized, run = empty_run(root, "quantized")
    RTN()(Inputs({"model": (found["student"],)}), quantized, run)
    for file in quantized.iterdir():
        file.rename(found["int4"].path / file.name)
    return found


def inputs_of(models: dict[str, Artifact], *names: str, corpus: Path | None = None, reference: str = "") -> Inputs:
    ports = {"baseline": (models[names[0]],), "candidates": tuple(models[name] for name in names[1:])}
    ports |= {"data": (Artifact("corpus", Kind.CORPUS, corpus),)} if corpus else {}
    return Inputs(ports | ({"reference": (models[reference],)} if reference else {}))


def pretend(speeds: dict[str, float]) -> Clock:
    """Fake timing by model; transformers is ten times slower, and an unknown model fails."""

    def take(probe: Probe, effort: Effort) -> Sample:
        if probe.name not in speeds:
            raise EndpointError("http://127.0.0.1", f"{probe.name} does not answer")
        speed = speeds[probe.name] / (10 if probe.engine == "transformers" else 1)
        return {"tokens_per_second": speed, "end_to_end_s": effort.tokens / speed}

    return take


def time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, inputs: Inputs, clock: Clock, **settings: Any
) -> tuple[Scores, dict[str, Any]]:
    monkeypatch.setattr(runtime, "take_sample", clock)
    monkeypatch.setattr(
        probes, "run_isolated", lambda work, *arguments: work(*arguments)
    )  # tiny: no process of its own
    monkeypatch.setattr(runtime, "busy_notes", list)
    out, run = empty_run(tmp_path)
    metrics = Runtime(energy="off", **settings)(inputs, out, run)
    return read_scores(out), metrics


def values(scores: Scores, model: str) -> dict[str, float]:
    return {name: figure.value for name, figure in scores.summary.models[model].figures.items()}


def test_all_engines_on_real_models(models: dict[str, Artifact], tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    settings = Runtime(tokens=4, warm_up_tokens=2, batch_sizes=(2,), repeats=1, context=128)
    metrics = settings(inputs_of(models, "tuned", "gguf", "int4", corpus=write_corpus(tmp_path / "corpus")), out, run)
    scores = read_scores(out)
    assert scores.items == [] and scores.summary.measures == {}
    found = scores.summary.models
    assert {name: model.engine for name, model in found.items()} == {
        "tuned": "llama.cpp (f16 GGUF)", "gguf": "llama.cpp", "int4": "transformers",
    }  # fmt: skip
    assert not any(model.failure for model in found.values())
    common = {
        "size_bytes", "load_s", "time_to_first_token_s", "tokens_per_second", "time_per_token_s", "end_to_end_s", "prompt_tokens",
        "answer_tokens", "tokens_per_second_batch_2", "end_to_end_s_batch_2", "peak_memory_bytes",
    }  # fmt: skip
    for name, model in found.items():
        extra = {"speed_ratio", "speed_ratio_batch_2"} if name == "gguf" else set()
        assert set(model.figures) - {"energy_wh_per_1000"} == common | extra
        got = values(scores, name)
        assert got["time_per_token_s"] == pytest.approx(1 / got["tokens_per_second"])
        assert 0 < got["time_to_first_token_s"] < got["end_to_end_s"] < got["load_s"] + got["end_to_end_s"]
        assert got["answer_tokens"] == 4 and got["peak_memory_bytes"] > 1e7
    assert len({values(scores, name)["prompt_tokens"] for name in found}) == 1, "engines render and tokenize alike"
    assert values(scores, "gguf")["size_bytes"] == (models["gguf"].path / "model.gguf").stat().st_size
    assert metrics["gguf.speed_ratio"] == pytest.approx(
        values(scores, "gguf")["tokens_per_second"] / values(scores, "tuned")["tokens_per_second"]
    )
    assert any(
        note.startswith("int4: timed in transformers: llama.cpp does not read int4") for note in scores.summary.notes
    )
    assert "int4: timed in transformers, tuned not, so their speeds are not compared." in scores.summary.notes


def test_what_is_slower_than_its_parent_is_flagged(
    models: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = pretend({"tuned": 10, "slim": 20, "student": 16, "gguf": 30})
    scores, metrics = time(monkeypatch, tmp_path, inputs_of(models, "tuned", "slim", "student", "gguf"), clock)
    assert metrics["student.speed_ratio"] == 1.6
    assert values(scores, "student")["parent_ratio"] == 0.8 and values(scores, "gguf")["parent_ratio"] == 30 / 16
    assert [note for note in scores.summary.notes if "slower" in note] == [
        "student is slower than its parent slim: 0.80x [0.80, 0.80] in llama.cpp, one stream."
    ]


def test_one_model_in_several_engines(
    models: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    order: list[tuple[str, str]] = []
    known = pretend({"tuned": 10, "student": 20, "int4": 30, "gguf": 40})

    def clock(probe: Probe, effort: Effort) -> Sample:
        order.append((probe.engine, probe.name))
        return known(probe, effort)

    inputs = inputs_of(models, "tuned", "student", "int4", "gguf")
    scores, _ = time(monkeypatch, tmp_path, inputs, clock, engines=("auto", "transformers"), repeats=1)
    assert order == [
        ("transformers", "tuned"), ("transformers", "student"), ("transformers", "int4"),
        ("llama.cpp", "tuned"), ("llama.cpp", "student"), ("llama.cpp", "gguf"),
    ]  # fmt: skip
    student, int4, gguf = (values(scores, name) for name in ("student", "int4", "gguf"))
    assert (student["tokens_per_second"], student["tokens_per_second (transformers)"]) == (20, 2)
    assert student["speed_ratio"] == student["speed_ratio (transformers)"] == 2
    assert (int4["tokens_per_second"], int4["speed_ratio"], int4["parent_ratio"]) == (3, 3, 1.5), "in its own engine"
    assert "tokens_per_second (transformers)" not in gguf
    assert [note for note in scores.summary.notes if note.startswith("gguf")] == [
        "gguf: not timed in transformers, which does not serve GGUF files."
    ]


def test_a_candidate_that_fails_is_named_and_the_others_are_timed(
    models: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inputs = inputs_of(models, "tuned", "student", "gguf", "int4")
    scores, metrics = time(monkeypatch, tmp_path, inputs, pretend({"tuned": 10, "gguf": 40}), engines=("llama.cpp",))
    assert scores.summary.models["student"].failure == "http://127.0.0.1: student does not answer"
    assert "not timed in llama.cpp: llama.cpp does not read int4" in scores.summary.models["int4"].failure
    assert set(values(scores, "student")) == {"size_bytes"}
    assert metrics == {"tuned.tokens_per_second": 10, "gguf.tokens_per_second": 40, "gguf.speed_ratio": 4}


def test_the_baseline_must_be_timed(
    models: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="baseline tuned: .*does not answer"):
        time(monkeypatch, tmp_path, inputs_of(models, "tuned", "gguf"), pretend({"gguf": 1}))
    for folder in ("step-out", "step-scratch"):
        (tmp_path / folder).rename(tmp_path / f"first-{folder}")
    with pytest.raises(ModelError, match="baseline int4: .*llama.cpp does not read int4"):
        time(monkeypatch, tmp_path, inputs_of(models, "int4", "gguf"), pretend({"gguf": 1}), engines=("llama.cpp",))


def test_a_model_whose_gguf_cannot_be_written_is_timed_in_transformers_and_one_that_kills_the_writer_is_not(
    models: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = inspect_model(models["tuned"], "candidate")
    monkeypatch.setattr(probes, "run_isolated", lambda *_: "no such architecture")
    probe, note = make_probe(model, "auto", Prompt([]), tmp_path)
    assert probe is not None and probe.engine == "transformers"
    assert note == "tuned: timed in transformers: cannot be converted to f16 GGUF (no such architecture)."
    monkeypatch.setattr(probes, "run_isolated", lambda *_: Failure("its process was killed"))
    probe, note = make_probe(model, "auto", Prompt([]), tmp_path)
    assert probe is None and "its process was killed" in note


def test_the_test_question_of_median_length_is_asked(
    models: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert typical_row(make_rows()).id == "t2"
    asked: dict[str, Any] = {}

    def clock(probe: Probe, _: Effort) -> Sample:
        asked[probe.name] = probe.prompt.messages
        return {"tokens_per_second": 1.0}

    inputs = inputs_of(models, "tuned", "gguf", corpus=write_corpus(tmp_path / "corpus"), reference="slim")
    scores, _ = time(monkeypatch, tmp_path, inputs, clock, repeats=1)
    question = [{"role": "user", "content": "Question 2? 22"}]
    assert asked == {"tuned": question, "gguf": question}, "a reference is not timed unasked"
    assert "slim" not in scores.summary.models
    for folder in ("step-out", "step-scratch"):
        (tmp_path / folder).rename(tmp_path / f"first-{folder}")
    scores, _ = time(monkeypatch, tmp_path, inputs, clock, repeats=1, time_reference=True)
    assert "Within 45 days." in asked["slim"][-1]["content"], "with its article"
    assert scores.summary.models["slim"].role == "reference"


def test_vllm_where_it_is_given(models: dict[str, Artifact], tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    command = write_command(tmp_path)
    settings = Runtime(engines=("vllm",), vllm_command=str(command), tokens=6, batch_sizes=(4,), repeats=2, limit_s=20)
    settings(inputs_of(models, "tuned", "int4", "gguf"), out, run)
    scores = read_scores(out)
    int4 = values(scores, "int4")
    assert scores.summary.versions["vllm"] == "unknown"
    assert scores.summary.models["int4"].engine == "vllm" and int4["prompt_tokens"] == 7
    assert 20 < int4["tokens_per_second"] < 110 and int4["tokens_per_second_batch_4"] > int4["tokens_per_second"]
    assert "does not serve GGUF files" in scores.summary.models["gguf"].failure


def test_what_cannot_be_asked_for_is_refused(models: dict[str, Artifact], tmp_path: Path) -> None:
    out, run = empty_run(tmp_path)
    with pytest.raises(ConfigError, match="vllm_command"):
        Runtime(engines=("auto", "vllm"))(inputs_of(models, "tuned"), out, run)
    assert [problem.where for problem in Runtime(engines=("vllm",)).plan_problems("steps.runtime", {}, {})] == [
        "steps.runtime.vllm_command"
    ]
    assert not list(Runtime().plan_problems("steps.runtime", {}, {}))
    for wrong in ({"engines": ()}, {"engines": ("onnx",)}, {"batch_sizes": (1,)}, {"tokens": 1}, {"repeats": 0}):
        with pytest.raises(ValidationError):
            Runtime(**wrong)


def test_a_probe_in_transformers_tells_why_it_failed(models: dict[str, Artifact], tmp_path: Path) -> None:
    effort = Effort(4, 2, (), 64, 60.0, "off", "", 1, "cpu")
    empty = Probe("tuned", "transformers", tmp_path / "nowhere", "", Prompt([{"role": "user", "content": "Hello?"}]))
    with pytest.raises(ModelError, match="tuned .*cannot be timed in transformers"):
        runtime.take_sample(empty, effort)
    hasty = Probe("tuned", "transformers", models["tuned"].path, "", Prompt([{"role": "user", "content": "Hello?"}]))
    with pytest.raises(ModelError, match="not done within 0 s"):
        runtime.take_sample(hasty, Effort(4, 2, (), 64, 0.2, "off", "", 1, "cpu"))


@pytest.mark.parametrize("streams", [1, 3])
def test_in_transformers_every_token_has_its_moment(models: dict[str, Artifact], streams: int) -> None:
    folder = models["tuned"].path
    asked = Prompt([{"role": "user", "content": "Hello?"}])
    answers = answer(load_model(folder), load_tokenizer(folder), asked, 5, streams)
    assert len(answers) == streams
    for found in answers:
        assert (found.tokens, len(found.arrivals)) == (5, 5), "the prompt is no piece"
        assert (
            list(found.arrivals) == sorted(found.arrivals)
            and found.arrivals[0] > 0
            and found.arrivals[-1] < found.end_s
        )


def test_the_speed_is_that_of_greedy_answers_whatever_the_generation_config_says(models: dict[str, Artifact]) -> None:
    """A repetition penalty costs time at every token, and no other engine has it."""
    model, tokenizer = load_model(models["tuned"].path), load_tokenizer(models["tuned"].path)
    seen, generate = [], model.generate
    model.generation_config.repetition_penalty = 5.0
    model.generate = lambda **told: (seen.append(model.generation_config.repetition_penalty), generate(**told))[1]
    answer(model, tokenizer, Prompt([{"role": "user", "content": "Hello?"}]), 2)
    assert seen == [None] and model.generation_config.repetition_penalty == 5.0


def test_peak_memory_of_this_process() -> None:
    here = peak_memory()
    assert here is None or here > 1_000_000
    assert peak_memory(2**30) is None


CHANGES = {
    "engines": Change(["transformers"]),
    "tokens": Change(6),
    "batch_sizes": Change([3]),
    "warm_up_tokens": Change(3),
    "repeats": Change(2),
    "context": Change(200),
    "prompt": Change("What?"),
    "time_reference": Change(True),
    "energy": Change("codecarbon", refused="codecarbon is not installed"),
    "vllm_command": Change(
        "/nowhere/vllm", {"engines": ["vllm"], "vllm_command": "sh"}, refused="vllm_command"
    ),  # any executable does, for nothing is really timed
    "limit_s": Change(50.0),
}


@contextmanager
def settings_case(folder: Path) -> Iterator[Case]:
    """Case with fake timings that encode the request, so that timing settings change the result."""
    first, other = save_tiny(folder / "first", build_model(num_hidden_layers=1)), folder / "other.gguf"
    write_gguf(first, other, "f16")
    ports = {"baseline": first, "candidates": other, "reference": other}
    inputs = Inputs({port: (Artifact(port, Kind.MODEL, path),) for port, path in ports.items()})
    taken: Counter[str] = Counter()

    def clock(probe: Probe, effort: Effort) -> Sample:
        taken[probe.name] += 1
        asked = sum(len(message["content"]) for message in probe.prompt.messages)
        found = {
            "load_s": effort.limit_s,
            "time_to_first_token_s": asked / effort.warm_up_tokens,
            "tokens_per_second": 1.0 / effort.tokens,
        }
        return (
            found
            | {"peak_memory_bytes": effort.context}
            | {f"tokens_per_second_batch_{size}": 1.0 for size in effort.batch_sizes}
        )

    settings = {"tokens": 4, "batch_sizes": [2], "warm_up_tokens": 2, "repeats": 1, "context": 128}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "take_sample", clock)
        patch.setattr(runtime, "busy_notes", list)
        yield Case(folder, inputs, settings, stable=untimed_scores)
