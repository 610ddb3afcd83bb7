"""A verdict and the artifacts around it, built in code: what report tests draw."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.report.html import Html
from tasks.shared.formats.records import Figure, Machine
from tasks.shared.formats.scores import Measure
from tasks.shared.formats.verdict import (
    Answer,
    Comparison,
    Flip,
    Gate,
    MeasureComparison,
    ModelMeasures,
    NoiseFloor,
    Score,
    SliceComparison,
    Verdict,
    Wealth,
)
from tasks.shared.formats.verdict import TestSplit as Split
from tasks.shared.technique import Artifact, Inputs, Kind, StepRun

EVIL = '<script>alert("x")</script><img src="http://evil.example/p.png">'


GATES = {
    "intent": Gate(measure=Measure(title="intent accuracy"), step="answers", margin=0.05),
    "fact": Gate(measure=Measure(title="fact accuracy"), step="answers", margin=0.05),
    "refusal": Gate(measure=Measure(title="correct refusals"), step="answers", margin=0.05),
    "over_refusal": Gate(measure=Measure(title="over-refusal", better="lower"), step="answers"),
}
CODE_LENGTH = Gate(
    measure=Measure(title="code length", unit="bits per byte", better="lower", binary=False),
    step="likelihood",
    margin=0.05,
)


def score(value: float, n: int = 200) -> Score:
    return Score(value=value, low=max(0.0, value - 0.05), high=min(1.0, value + 0.05), n=n)


def spread(median: float, low: float, high: float, unit: str) -> Figure:
    return Figure(value=median, low=low, high=high, bounds="range of 3 repeats", unit=unit)


def measures(role: Any, size: float, speed: float, fact: float, **changes: Any) -> ModelMeasures:
    scores = {
        "intent": score(min(1, fact + 0.08)),
        "fact": score(fact),
        "refusal": score(0.93, 60),
        "over_refusal": score(0.02),
    }
    values: dict[str, Any] = {
        "role": role,
        "kind": "model",
        "format": "bfloat16 safetensors",
        "engine": "transformers",
        "speed_engine": "transformers",
        "parameters": 134_515_008,
        "size_bytes": int(size * 1e6),
        "scores": scores,
        "slices": {
            "kind": {
                "faq": {"fact": score(fact, 90), "intent": score(fact, 120)},
                "grounded": {"fact": score(fact, 40)},
            }
        },
        "figures": figures(size, speed)
        | ({} if role == "baseline" else {"speed_ratio": spread(speed / 46, speed / 50, speed / 44, "x")}),
    }
    return ModelMeasures(**(values | changes))


def figures(size: float, speed: float) -> dict[str, Figure]:
    return {
        "tokens_per_second": spread(speed, speed * 0.93, speed * 1.05, "tokens/s"),
        "time_to_first_token_s": spread(0.21, 0.19, 0.3, "s"),
        "peak_memory_bytes": Figure(value=int(size * 1.4e6), unit="bytes", better="lower"),
        "perplexity": Figure(value=4.21, better="lower"),
    }


def measured(
    baseline: float, difference: float, half: float, margin: float | None = 0.05, **changes: Any
) -> MeasureComparison:
    """difference: in favor of the candidate, of shares whose higher values are better."""
    low, high = difference - half, difference + half
    answer: Answer = "yes" if margin is None or low > -margin else "no" if difference <= -margin else "unknown"
    values: dict[str, Any] = {
        "n": 190,
        "baseline": baseline,
        "candidate": max(0.0, baseline + difference),
        "difference": difference,
        "low": low,
        "high": high,
        "p": 0.0004,
        "p_holm": 0.0012,
        "effect": 0.32,
        "to_wrong": 14,
        "to_right": 3,
        "flip_rate": 17 / 190,
        "retention": (baseline + difference) / baseline,
        "retention_low": (baseline + low) / baseline,
        "retention_high": (baseline + high) / baseline,
        "margin": margin,
        "detectable": 0.034,
        "answer": answer,
    }
    return MeasureComparison(**(values | changes))


def in_slice(
    dimension: str, value: str, measure: str, difference: float, n: int = 60, **changes: Any
) -> SliceComparison:
    values: dict[str, Any] = {
        "dimension": dimension,
        "value": value,
        "measure": measure,
        "n": n,
        "baseline": 0.8,
        "candidate": max(0.0, 0.8 + difference),
        "difference": difference,
        "low": difference - 0.06,
        "high": difference + 0.06,
        "p": 0.01 if difference < -0.12 else 0.4,
        "p_holm": 0.03 if difference < -0.12 else 1.0,
        "margin": 0.1,
        "detectable": 0.09 if n >= 40 else 0.22,
        "harmed": difference < -0.16,
    }
    return SliceComparison(**(values | changes))


def some_slices(fact: float) -> list[SliceComparison]:
    values = {
        "kind": {"faq": 120, "troubleshoot": 52, "edge": 14},
        "language": {"en": 150, "et": 34, "fi": 8},
        "frequency": {"head": 96, "tail": 94},
    }
    shift = {"edge": -0.05, "et": -0.12, "tail": -0.03, "fi": 0.04, "head": 0.02}
    return [
        in_slice(dimension, value, measure, max(-0.8, (fact + shift.get(value, 0)) * part), n=n)
        for dimension, found in values.items()
        for value, n in found.items()
        for measure, part in (("intent", 0.3), ("fact", 1.0))
    ]


def compared(fact: float, half: float = 0.022, **changes: Any) -> Comparison:
    results = {
        "intent": measured(0.88, fact / 3, half),
        "fact": measured(0.81, fact, half),
        "refusal": measured(0.93, 0.0, 0.04),
        "over_refusal": measured(0.02, 0.0, 0.01, margin=None, retention=None, retention_low=None, retention_high=None),
    }
    values: dict[str, Any] = {
        "decision": decision_of(results),
        "reasons": [f"{name}: {result.answer}" for name, result in results.items() if result.answer != "yes"],
        "measures": results,
        "slices": some_slices(fact),
    }
    return Comparison(**(values | changes))


def flip(candidate: str, number: int, direction: Any = "to_wrong", **changes: str) -> Flip:
    texts = {
        "question": f"how long do i have to send back the lamp nr {number}??",
        "baseline_answer": "returns\nYou can return it within 45 days of delivery, unused and in its box.",
        "candidate_answer": "returns\nYou can return it within 30 days of delivery.",
        "wanted": "45 days",
    }
    measure = "fact" if number % 3 else "intent"
    return Flip(
        candidate=candidate,
        id=f"faq-{number:04}",
        kind="faq",
        measure=measure,
        direction=direction,
        **(texts | changes),
    )


def a_verdict(**changes: Any) -> Verdict:
    engine = {"kind": "engine", "format": "GGUF Q4_0", "engine": "llama.cpp", "speed_engine": "llama.cpp"}
    models = {
        "tuned": measures("baseline", 269, 46, 0.81),
        "slim": measures("candidate", 184, 66, 0.02, parameters=92_000_000),
        "student": measures("candidate", 184, 66, 0.749, parameters=92_000_000),
        "int4": measures("candidate", 121, 64, 0.72, parameters=92_000_000, figures={}, speed_engine=""),
        "gguf": measures("candidate", 66, 131, 0.74, parameters=92_000_000, **engine),
        "teacher": measures("reference", 98.4, 95, 0.44, **(engine | {"format": "GGUF Q4_1"})),
    }
    comparisons = {
        "slim": compared(-0.79),
        "student": compared(-0.061),
        "int4": compared(-0.09),
        "gguf": compared(-0.07),
    }
    flips = [flip(name, i, "to_right" if i % 5 == 0 else "to_wrong") for name in comparisons for i in range(20)]
    flips.append(flip("gguf", 99, question=EVIL, candidate_answer=EVIL, baseline_answer=""))
    values: dict[str, Any] = {
        "baseline": "tuned",
        "reference": "teacher",
        "decision": "do not ship",
        "shipped": None,
        "gates": GATES,
        "alpha": 0.05,
        "power": 0.8,
        "test": Split(
            items={"intent": 300, "fact": 190, "refusal": 60}, minimum_detectable={"intent": 0.042, "fact": 0.061}
        ),
        "models": models,
        "comparisons": comparisons,
        "noise": {"fact": [NoiseFloor(model="tuned again", n=190, difference=0.0053, flip_rate=0.021)]},
        "flips": flips,
        "machine": Machine(cpu="Example CPU at 2.1 GHz", cores=2, memory_bytes=8_000_000_000, platform="Linux x86_64"),
        "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.17.0"},
        "notes": ["int4 answers in transformers; its speed was not measured."],
    }
    return Verdict(**(values | changes))


def shipping() -> Verdict:
    return a_verdict(decision="ship", shipped="gguf", comparisons={"gguf": compared(-0.012)})


def evidence(n: int, now: float, loss: float = 0.4, decided_at: int | None = None) -> Wealth:
    return Wealth(now=now, most=max(now, 1.0), needed=20.0, loss=loss, units=n, decided_at=decided_at)


def asked(n: int, fact: float, half: float, **changes: Any) -> Comparison:
    """A candidate that was asked n items with a fact; a third of the other measures' items."""
    change, shown = {"fact": fact, "intent": fact / 3, "refusal": fact / 2}, {"fact": n, "intent": n, "refusal": n // 3}
    results = {}
    for name, difference in change.items():
        found = measured(0.92, difference, half, n=shown[name])
        won, lost = found.answer == "yes", found.answer == "no"
        wealth = evidence(
            shown[name],
            24.0 if won else 3.1 if not lost else 0.02,
            41.0 if lost else 0.4,
            shown[name] if won or lost else None,
        )
        results[name] = found.model_copy(update={"wealth": wealth, "detectable": 1.2 * half})
    return compared(fact, measures=results, decision=decision_of(results), slices=[], **changes)


def decision_of(results: Mapping[str, MeasureComparison]) -> str:
    answers = {result.answer for result in results.values()}
    return "do not ship" if "no" in answers else "not enough data" if "unknown" in answers else "ship"


def frontier(**changes: Any) -> Verdict:
    """An adaptive verdict: a quick way that ships, a smaller one that is open, one hopeless after 32 items, and two float parents."""
    engine = {"kind": "engine", "format": "GGUF Q4_0", "engine": "llama.cpp", "speed_engine": "llama.cpp"}
    rows = {
        "tuned": ("baseline", 269, 46, 0.92, 240, {}),
        "int4": ("parent", 116, 64, 0.91, 160, {}),
        "quick": ("candidate", 91.7, 131, 0.915, 160, engine),
        "student": ("parent", 184, 66, 0.89, 240, {}),
        "small": ("candidate", 66, 160, 0.885, 240, engine),
        "tiny": ("candidate", 31.5, 260, 0.51, 32, engine),
        "teacher": ("reference", 98.4, 95, 0.44, 48, engine),
        "teacher without article": ("reference", 98.4, 95, 0.12, 48, engine),
    }
    models = {
        name: measures(role, size, speed, fact, scores={"intent": score(fact, n), "fact": score(fact, n), "refusal": score(fact, n // 3)}, **more)
        for name, (role, size, speed, fact, n, more) in rows.items()
    }  # fmt: skip
    comparisons = {
        "int4": asked(160, -0.008, 0.035), "quick": asked(160, -0.006, 0.04), "student": asked(240, -0.03, 0.05),
        "small": asked(240, -0.034, 0.05), "tiny": asked(32, -0.41, 0.12),
    }  # fmt: skip
    flips = [flip(name, i, "to_right" if i % 5 == 0 else "to_wrong") for name in comparisons for i in range(8)]
    values = {
        "mode": "adaptive", "decision": "ship", "shipped": "quick", "models": models, "comparisons": comparisons, "flips": flips,
        "test": Split(items={"intent": 240, "fact": 240, "refusal": 80}, minimum_detectable={"fact": 0.057}), "notes": [],
    }  # fmt: skip
    return a_verdict(**(values | changes))


def write(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def all_inputs(root: Path, verdict: Verdict) -> Inputs:
    loss = "step,epoch,train_loss,validation_loss\n" + "".join(
        f"{s},{s / 40:.2f},{3 * 0.97**s + 0.4:.4f},{3 * 0.97**s + 0.55 if s % 20 == 0 else ''}\n"
        for s in range(2, 122, 2)
    )
    influence = "layer,influence,dropped\n" + "".join(
        f"{i},{0.02 + 0.4 / (1 + abs(i - 1)):.4f},{int(11 < i < 20)}\n" for i in range(30)
    )
    corpus = {
        "counts": {
            "train": {"faq": 420, "troubleshoot": 160, "edge": 80, "refuse": 90},
            "test": {"faq": 120, "refuse": 60},
        },
        "overlap": {"shared_groups": 0, "nearest_jaccard": 0.4137},
        "labels": ["returns", "shipping", "billing"],
    }
    traces = {"accepted": 610, "dropped": {"no_fact": 201, "invented": 33}}
    usage = {"prompt_tokens": 481_220, "completion_tokens": 40_114, "cost_usd": 0.0}

    made: dict[str, Artifact] = {}

    def artifact(name: str, kind: Kind, files: dict[str, Any], **manifest: Any) -> Artifact:
        made[name] = an_artifact(root, name, kind, files, made, **manifest)
        return made[name]

    prepared = artifact("corpus", Kind.CORPUS, {"card.json": corpus}, technique="tasks.curate.support.Support")
    asked = artifact(
        "traces", Kind.TRACES, {"card.json": traces, "usage.json": usage}, technique="tasks.traces.openai.Openai",
        inputs={"teacher": ["models.teacher"], "prompts": ["corpus"]},
    )  # fmt: skip
    weights = {"model.safetensors": "weights of it", "config.json": {}}
    tuned = artifact(
        "tuned", Kind.MODEL, weights | {"loss.csv": loss}, technique="tasks.distill.sft.Sft",
        inputs={"model": ["models.teacher"], "data": ["traces"]}, settings={"epochs": 4, "learning_rate": 0.0003},
    )  # fmt: skip
    slim = artifact(
        "slim", Kind.MODEL, weights | {"influence.csv": influence}, technique="tasks.prune.depth.Depth",
        inputs={"model": ["tuned"], "calibration": ["corpus"]}, settings={"ratio": 0.3},
    )  # fmt: skip
    student = artifact(
        "student",
        Kind.MODEL,
        weights,
        technique="tasks.distill.sft.Sft",
        inputs={"data": ["traces"], "model": ["slim"]},
    )
    int4 = artifact(
        "int4", Kind.MODEL, weights, technique="tasks.quantize.gptq.Gptq",
        inputs={"model": ["student"], "calibration": ["corpus"]}, settings={"group_size": 32, "observer": {"kind": "mse"}},
    )  # fmt: skip
    parity = {"top1_agreement": 0.971, "kl": 0.0123, "prompts": 32}
    gguf = artifact(
        "gguf", Kind.ENGINE, {"model.gguf": "GGUF weights", "parity.json": parity}, technique="tasks.export.gguf.Gguf",
        inputs={"model": ["int4"], "calibration": ["corpus"]}, settings={"scheme": "q4_0"},
    )  # fmt: skip
    models = (tuned, slim, student, int4, gguf)
    compared = {"baseline": ["tuned"], "candidates": [model.name for model in models[1:]]}
    scores = artifact(
        "answers",
        Kind.SCORES,
        {},
        technique="tasks.evaluate.generation.Generation",
        inputs={**compared, "data": ["corpus"]},
    )
    judged = artifact(
        "verdict", Kind.VERDICT, {"verdict.json": verdict.model_dump_json()}, technique="tasks.evaluate.paired.Paired",
        inputs={"scores": ["answers"], **compared},
    )  # fmt: skip
    ports = {"verdict": (judged,), "models": models, "scores": (scores,), "corpus": (prepared,), "traces": (asked,)}
    return Inputs(ports)


def digest_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def an_artifact(
    root: Path, name: str, kind: Kind, files: dict[str, Any], others: Mapping[str, Artifact], **manifest: Any
) -> Artifact:
    """An artifact as the store has it: sealed, with its manifest beside it.  inputs: names by port."""
    out = write(root / name / "out", files)
    for file in out.iterdir():
        file.chmod(0o444)
    ports = {
        port: {needed: digest_of(needed) for needed in names} for port, names in manifest.pop("inputs", {}).items()
    }
    account = {
        "recipe": "trial", "step": name, "kind": str(kind), "key": digest_of(f"key of {name}"), "technique": "", "settings": {}, "seed": 7,
        "versions": {"jinja2": version("jinja2"), "torch": "2.13.0"}, "code": digest_of(f"code of {name}"), "files": {}, "inputs": ports,
        "output": digest_of(name), "metrics": {"rows": 12}, "duration_s": 7.5 * (len(others) + 1), "peak_memory_bytes": 812_000_000,
        "made": f"2026-11-26T08:{len(others):02}:30+00:00",
    }  # fmt: skip
    (root / name / "manifest.json").write_text(json.dumps(account | manifest), encoding="utf-8")
    return Artifact(name, kind, out)


def only_verdict(root: Path, verdict: Verdict) -> Inputs:
    folder = write(root / "verdict", {"verdict.json": verdict.model_dump_json()})
    return Inputs({"verdict": (Artifact("verdict", Kind.VERDICT, folder),)})


def make(root: Path, inputs: Inputs, **settings: Any) -> tuple[str, dict[str, Any]]:
    out = root / "out"
    out.mkdir(parents=True)
    Html(**settings)(inputs, out, StepRun(step="report", seed=7, scratch=root))
    return (out / "report.html").read_text(encoding="utf-8"), json.loads(
        (out / "report.json").read_text(encoding="utf-8")
    )
