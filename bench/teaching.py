"""Which way of teaching gives the better student: the same student, data and number of optimizer steps, several seeds.

python -m bench.teaching artifacts/support_bot                    all lessons, five seeds; hours on two cores, minutes on a GPU
python -m bench.teaching artifacts/support_bot --lessons answers stored --seeds 2 --items 60
python -m bench.teaching artifacts/support_bot --table            only the table of what is there

The folder is that of a finished run of support_bot: its corpus and its teacher's answers are used.  The model is the embedded one.
It is tuned once on the teacher's answers, which makes the teacher of every lesson; students are made of that by pruning.
Results go to --out, one line of JSON a lesson and seed; those that are there are not made again.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tasks.shared.technique import Artifact, Inputs, Kind, StepRun, Technique

SEEDS = 5
HARD: dict[str, Any] = {"epochs": 4, "batch_size": 8, "learning_rate": 3e-4, "validation": 0.0}
"""The same steps for every lesson: no validation, so no early stop."""


@dataclass(frozen=True)
class Setup:
    """Where things are, and how large."""

    source: Path
    model: Path
    work: Path
    device: str
    threads: int
    items: int
    epochs: float


@dataclass(frozen=True)
class Lesson:
    """One way to make a student.  base: the student before (see `prepare`)."""

    title: str
    teach: Callable[["Class"], Path]
    base: str = "slim"


class Class:
    """One lesson under way: the setup, a seed, and a folder of its own."""

    def __init__(self, setup: Setup, base: str, seed: int, folder: Path) -> None:
        self.setup, self.base, self.seed, self.folder = setup, setup.work / base / "out", seed, folder
        self.made = 0

    def settings(self, **more: Any) -> dict[str, Any]:
        """The common ones, with the setup's epochs."""
        return HARD | {"epochs": self.setup.epochs} | more

    def artifact(self, name: str) -> tuple[Artifact, ...]:
        """An input by name: a folder of the finished run, or one that `prepare` made."""
        if name in ("corpus", "traces"):
            folder, kind = self.setup.source / name / "out", Kind.CORPUS if name == "corpus" else Kind.TRACES
        else:
            folder, kind = self.setup.work / name / "out", Kind.LOGITS if name.startswith("targets") else Kind.MODEL
        return (Artifact(name, kind, folder),)

    def step(self, technique: Technique, **inputs: Any) -> Path:
        """Carry out one technique; returns its output folder."""
        ports = {
            port: (Artifact("model", Kind.MODEL, value),) if isinstance(value, Path) else self.artifact(value)
            for port, value in inputs.items()
        }
        self.made += 1
        return carry_out(technique, Inputs(ports), self.folder / str(self.made), self.setup, self.seed)


def carry_out(technique: Technique, inputs: Inputs, folder: Path, setup: Setup, seed: int) -> Path:
    """One technique in a folder: `out` and `scratch`."""
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    technique(inputs, out, StepRun(folder.name, seed, scratch, threads=setup.threads, device=setup.device))
    shutil.rmtree(scratch)
    return out


def sft(data: str, **more: Any) -> Callable[[Class], Path]:
    """Hard labels."""
    from tasks.distill.sft import SFT

    return lambda lesson: lesson.step(SFT(**lesson.settings(**more)), model=lesson.base, data=data)


def soft(source: str, name: str, **more: Any) -> Callable[[Class], Path]:
    """Soft targets; source: the port, teacher or targets, and name what it is given."""
    from tasks.distill.logits import Logits

    return lambda lesson: lesson.step(
        Logits(**lesson.settings(**more)), model=lesson.base, data="traces", **{source: name}
    )


def features(lesson: Class) -> Path:
    """Hidden states beside hard labels."""
    from tasks.distill.features import Features

    return lesson.step(Features(**lesson.settings()), model=lesson.base, data="traces", teacher="tuned")


def on_policy(lesson: Class) -> Path:
    """The student's own words, scored by the teacher."""
    from tasks.distill.on_policy import OnPolicy

    return lesson.step(OnPolicy(**lesson.settings()), model=lesson.base, data="traces", teacher="tuned")


def reasoning(tasks: str) -> Callable[[Class], Path]:
    """Rationales beside answers, on the corpus' own, which has them."""

    def teach(lesson: Class) -> Path:
        from tasks.distill.cot import CoT

        return lesson.step(CoT(**lesson.settings(tasks=tasks)), model=lesson.base, data="corpus")

    return teach


def progressive(lesson: Class) -> Path:
    """Half of the layers go first, and the student of that is the next teacher; half of the steps each."""
    from tasks.distill.logits import Logits
    from tasks.prune.depth import Depth

    half = lesson.settings(epochs=lesson.setup.epochs / 2)
    first = lesson.step(Logits(**half), model="half_slim", data="traces", teacher="tuned")
    pruned = lesson.step(Depth(ratio=DEPTH_SECOND), model=first, calibration="corpus")
    return lesson.step(Logits(**half), model=pruned, data="traces", teacher=first)


DEPTH = 0.3
DEPTH_FIRST = 0.15
DEPTH_SECOND = 1 - (1 - DEPTH) / (1 - DEPTH_FIRST)
SMALL_DEPTH = 0.47


def lessons() -> dict[str, Lesson]:
    """All of them, by name."""
    return {
        "gold": Lesson("hard labels: the corpus' answers", sft("corpus")),
        "answers": Lesson("hard labels: the teacher's answers", sft("traces")),
        "cot": Lesson("reasoning, then the answer", reasoning("joint")),
        "cot_two": Lesson("reasoning and answer as two tasks", reasoning("two")),
        "online": Lesson("soft targets, teacher in memory", soft("teacher", "tuned")),
        "stored": Lesson("soft targets, stored top 32", soft("targets", "targets")),
        "progressive": Lesson("soft targets in two stages", progressive),
        "features": Lesson("hidden states and hard labels", features),
        "on_policy": Lesson("own words, scored by the teacher", on_policy),
        "reverse_kl": Lesson("stored, reverse KL", soft("targets", "targets", divergence="reverse_kl")),
        "jsd": Lesson("stored, JSD", soft("targets", "targets", divergence="jsd")),
        "soft_only": Lesson("stored, soft alone", soft("targets", "targets", alpha=1.0)),
        "t1": Lesson("stored, T = 1", soft("targets", "targets", temperature=1.0)),
        "t4": Lesson("stored, T = 4", soft("targets", "targets", temperature=4.0)),
        "t8": Lesson("stored, T = 8", soft("targets", "targets", temperature=8.0)),
        "small_answers": Lesson("45 % of the weights: hard labels", sft("traces"), base="small"),
        "small_stored": Lesson("45 % of the weights: soft targets", soft("targets", "targets"), base="small"),
        "small_long": Lesson(
            "45 % of the weights: soft targets, 12 epochs", soft("targets", "targets", epochs=12), base="small"
        ),
    }


def prepare(setup: Setup) -> None:
    """What the lessons start from, each made once: tuned, slim, half_slim, small (fewer tokens and layers), targets."""
    from tasks.prune.vocabulary import Vocabulary

    from tasks.distill.sft import SFT
    from tasks.logits.topk import TopK
    from tasks.prune.depth import Depth

    place = Class(setup, "tuned", 7, setup.work)
    source = (Artifact("teacher", Kind.MODEL, setup.model),)
    tuned, corpus, traces = place.artifact("tuned"), place.artifact("corpus"), place.artifact("traces")
    steps: dict[str, tuple[Technique, Mapping[str, tuple[Artifact, ...]]]] = {
        "tuned": (SFT(**HARD | {"learning_rate": 2e-4, "frozen_layers": 6}), {"model": source, "data": traces}),
        "slim": (Depth(ratio=DEPTH), {"model": tuned, "calibration": corpus}),
        "half_slim": (Depth(ratio=DEPTH_FIRST), {"model": tuned, "calibration": corpus}),
        "targets": (TopK(), {"teacher": tuned, "data": traces}),
        "trimmed": (Vocabulary(), {"model": tuned, "data": (*corpus, *traces)}),
        "small": (Depth(ratio=SMALL_DEPTH), {"model": place.artifact("trimmed"), "calibration": corpus}),
    }
    for name, (technique, inputs) in steps.items():
        if not (setup.work / name / "done").exists():
            shutil.rmtree(setup.work / name, ignore_errors=True)
            carry_out(technique, Inputs(inputs), setup.work / name, setup, seed=7)
            (setup.work / name / "done").touch()


def grade(model: Path, setup: Setup) -> dict[str, dict[str, float]]:
    """By measure, what each test row is worth: the label as written, the fact, the refusal; `steps` is the fact in step-by-step rows."""
    from tasks.evaluate.asking.answers import Reply
    from tasks.evaluate.asking.ask import choose_dtype
    from tasks.shared.chat import refuses, states_fact
    from tasks.shared.models import load_model, load_tokenizer, render
    from tasks.shared.rows import read_rows, spread
    from tasks.shared.writing import write_answers

    rows = spread(read_rows(setup.source / "corpus" / "out" / "test.jsonl"), setup.items)
    loaded, tokenizer = load_model(model, choose_dtype(setup.device), setup.device), load_tokenizer(model)
    written = write_answers(loaded, tokenizer, [render(tokenizer, row.prompt) for row in rows], 96, 64)
    found: dict[str, dict[str, float]] = {"label": {}, "fact": {}, "steps": {}, "refusal": {}}
    for row, answer in zip(rows, written, strict=True):
        reply = Reply("", answer.text, answer.ended)
        found["label"][row.id] = float(reply.label == row.intent)
        if row.accept:
            found["fact"][row.id] = float(states_fact(reply.text, row.accept))
            if row.kind == "troubleshoot":
                found["steps"][row.id] = found["fact"][row.id]
        if row.kind == "refuse":
            found["refusal"][row.id] = float(refuses(reply.text))
    return found


def attend(job: tuple[str, int, Setup]) -> dict[str, Any]:
    """One lesson with one seed, graded; `seconds` and `peak_bytes` (of the GPU, else of the process) are the teaching's."""
    name, seed, setup = job
    import torch

    from tasks.shared.models import parameter_count

    lesson = lessons().get(name)
    with tempfile.TemporaryDirectory(dir=setup.work) as folder:
        started = time.perf_counter()
        student = setup.work / name / "out" if lesson is None else lesson.teach(Class(setup, lesson.base, seed, Path(folder)))
        seconds = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated() if setup.device == "cuda" else 0
        found = grade(student, setup)
        weights = parameter_count(student)
    return {
        "lesson": name, "seed": seed, "device": setup.device, "epochs": setup.epochs, "items": setup.items,
        "seconds": round(seconds, 1), "peak_bytes": peak, "weights": weights, "values": found,
    }  # fmt: skip


def show(results: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Means over seeds with 95 % t-intervals, and each lesson's difference to `answers`, seed by seed."""
    from scipy import stats

    titles = {name: lesson.title for name, lesson in lessons().items()} | {"tuned": "the teacher", "slim": "pruned, not taught"}
    by_lesson: dict[str, dict[int, dict[str, float]]] = {}
    other: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        means = {name: statistics.fmean(values.values()) for name, values in result["values"].items() if values}
        by_lesson.setdefault(result["lesson"], {})[result["seed"]] = means
        other.setdefault(result["lesson"], []).append(result)

    def spread_of(values: Sequence[float]) -> str:
        mean = statistics.fmean(values)
        if len(values) < 2:
            return f"{100 * mean:.1f}"
        half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
        return f"{100 * mean:.1f} ± {100 * half:.1f}"

    table = Table("lesson", "weights", "seeds", "label %", "fact %", "step by step %", "refusal %", "fact, over answers", "s", "GB")
    for name, seeds in by_lesson.items():
        cells = [spread_of([means[measure] for means in seeds.values()]) for measure in ("label", "fact", "steps", "refusal")]
        shared = sorted(seeds.keys() & by_lesson.get("answers", {}).keys())
        over = [seeds[seed]["fact"] - by_lesson["answers"][seed]["fact"] for seed in shared if name != "answers"]
        table.add_row(
            titles.get(name, name), f"{other[name][0]['weights'] / 1e6:.0f} M", str(len(seeds)), *cells,
            spread_of(over) if over else "", f"{statistics.median(one['seconds'] for one in other[name]):.0f}",
            f"{statistics.median(one['peak_bytes'] for one in other[name]) / 1e9:.1f}",
        )  # fmt: skip
    console.print(table)


def read_results(file: Path) -> list[dict[str, Any]]:
    """Whole lines of a results file."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.endswith("}")]


def main() -> None:
    """Teach, grade, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "stillroom_teaching")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--lessons", nargs="+", default=list(lessons()))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--items", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=HARD["epochs"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    file = given.out or given.work / "results.jsonl"
    if not given.table:
        given.work.mkdir(parents=True, exist_ok=True)
        setup = Setup(
            given.source, given.model or embedded_model(), given.work, given.device, given.threads, given.items, given.epochs
        )
        prepare(setup)
        done = {(result["lesson"], result["seed"]) for result in read_results(file)}
        wanted = [("tuned", 0), ("slim", 0), *((name, seed) for seed in range(given.seeds) for name in given.lessons)]
        jobs = [(name, seed, setup) for name, seed in wanted if (name, seed) not in done]
        with multiprocessing.get_context("spawn").Pool(given.workers) as pool, file.open("a", encoding="utf-8") as stream:
            for result in pool.imap_unordered(attend, jobs):
                stream.write(json.dumps(result) + "\n")
                stream.flush()
    show(read_results(file), Console(width=150))


def embedded_model() -> Path:
    """The embedded model's file."""
    from flows.config import compose_recipe
    from flows.plan import build_plan

    return build_plan(compose_recipe("tiny").recipe).sources["models.teacher"].path


if __name__ == "__main__":
    main()
