"""Comparison of distillation methods: same student, prompts and steps, several seeds.

python -m bench.distillation_study                                  all lessons, five seeds; hours on two cores, minutes on a GPU
python -m bench.distillation_study --device cuda --workers 8
python -m bench.distillation_study --lessons gold stored --seeds 2 --items 60 --epochs 1
python -m bench.distillation_study --articles 0 --train 3000 --test 960 --batch 16 --lessons small_gold small_stored    a larger budget
python -m bench.distillation_study --strong qwen.gguf --lessons strong_gold strong_words strong_soft        a larger teacher of another tokenizer
python -m bench.distillation_study --train 400 --test 120 --lessons sums_gold sums_cot sums_cot_two         reasoning where the answer has to be computed
python -m bench.distillation_study --table                          only the table of finished lessons

A lesson is one method of training a student.  The data is the built-in support corpus, by default in the size of the recipe
support_bot.  The embedded model, tuned on it once, is the teacher of every lesson except strong_*, whose teacher is the tuned model of
--strong.  Students are pruned from the teacher, which makes them unable to answer.  The lessons sums_* have a corpus of their own:
bills of two items and a delivery, which no small model can add up without intermediate steps.  Results go to --out, one line of JSON
per lesson and seed; finished ones are not repeated.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tasks.shared.technique import Artifact, Compute, Inputs, Kind, StepRun, Technique

SEEDS = 5
MOST_TOKENS = 128
"""Largest number of tokens of an answer, including its reasoning."""
WHOLE = "whole"
"""Base of a lesson: the embedded model itself."""
SUMS = "sums"
"""Base of a lesson: the embedded model, with a corpus of sums."""
TUNED: dict[str, Any] = {"learning_rate": 2e-4, "frozen_layers": 6}
STRONG: dict[str, Any] = {"learning_rate": 5e-5, "frozen_layers": 12}
HARD: dict[str, Any] = {"learning_rate": 3e-4, "validation": 0.0, "max_tokens": 1024}
"""The same steps in every lesson: without validation there is no early stopping."""


@dataclass(frozen=True)
class Setup:
    """Paths, sizes and devices of the study."""

    model: Path
    work: Path
    device: str
    threads: int
    items: int
    epochs: float
    batch: int
    corpus: Mapping[str, Any]
    """Settings of `curate/support`."""
    strong: Path | None = None
    """A larger model, of any tokenizer."""

    @property
    def hard(self) -> dict[str, Any]:
        """Settings shared by all trainings."""
        return HARD | {"epochs": self.epochs, "batch_size": self.batch}


@dataclass(frozen=True)
class Lesson:
    """One method of training a student.

    base: the student before training (see `prepare`).
    corpus: the data on which it is evaluated.
    """

    title: str
    teach: Callable[["LessonRun"], Path]
    base: str = "slim"
    corpus: str = "corpus"


class LessonRun:
    """Run of a lesson: its setup, seed and folder."""

    def __init__(self, setup: Setup, base: str, seed: int, folder: Path) -> None:
        self.setup, self.seed, self.folder = setup, seed, folder
        self.base = setup.model if base in (WHOLE, SUMS) else setup.work / base / "out"
        self.made = 0

    def settings(self, **more: Any) -> dict[str, Any]:
        """Return the common settings and further ones; `times` multiplies the epochs."""
        return self.setup.hard | {"epochs": self.setup.epochs * more.pop("times", 1)} | more

    def artifact(self, name: str) -> tuple[Artifact, ...]:
        """Return an input that `prepare` made, by name."""
        kinds = {
            "corpus": Kind.CORPUS,
            "sums": Kind.CORPUS,
            "words": Kind.TRACES,
            "strong_words": Kind.TRACES,
            "targets": Kind.LOGITS,
        }
        return (Artifact(name, kinds.get(name, Kind.MODEL), self.setup.work / name / "out"),)

    def step(self, technique: Technique, **inputs: Any) -> Path:
        """Run one technique; return its output folder."""
        ports = {
            port: (Artifact("model", Kind.MODEL, value),) if isinstance(value, Path) else self.artifact(value)
            for port, value in inputs.items()
        }
        self.made += 1
        return run_technique(technique, Inputs(ports), self.folder / str(self.made), self.setup, self.seed)


def run_technique(technique: Technique, inputs: Inputs, folder: Path, setup: Setup, seed: int) -> Path:
    """Run one technique in a folder; return its output folder."""
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    technique(
        inputs, out, StepRun(folder.name, seed, scratch, compute=Compute(threads=setup.threads, device=setup.device))
    )
    shutil.rmtree(scratch)
    return out


def sft(data: str, **more: Any) -> Callable[[LessonRun], Path]:
    """Lesson with hard labels."""
    from tasks.distill.sft import SFT

    return lambda lesson: lesson.step(SFT(**lesson.settings(**more)), model=lesson.base, data=data)


def soft(source: str, name: str, **more: Any) -> Callable[[LessonRun], Path]:
    """Lesson with soft targets.

    source: port, teacher or targets.
    name: artifact at that port.
    """
    from tasks.distill.logits import Logits

    return lambda lesson: lesson.step(
        Logits(**lesson.settings(**more)), model=lesson.base, data="corpus", **{source: name}
    )


def features(lesson: LessonRun) -> Path:
    """Train on hidden states and hard labels."""
    from tasks.distill.features import Features

    return lesson.step(Features(**lesson.settings()), model=lesson.base, data="corpus", teacher="tuned")


def crossed(lesson: LessonRun) -> Path:
    """Train on hard labels, and on soft targets over the strong teacher's own tokens."""
    from tasks.distill.gold import Gold

    return lesson.step(Gold(**lesson.settings(**TUNED)), model=lesson.base, data="corpus", teacher="strong")


def on_policy(lesson: LessonRun) -> Path:
    """Train on the student's own answers, scored by the teacher."""
    from tasks.distill.on_policy import OnPolicy

    return lesson.step(OnPolicy(**lesson.settings()), model=lesson.base, data="corpus", teacher="tuned")


def reasoning(tasks: str, data: str = "corpus", **more: Any) -> Callable[[LessonRun], Path]:
    """Lesson with rationales and answers, on a corpus that has rationales."""

    def teach(lesson: LessonRun) -> Path:
        from tasks.distill.cot import CoT

        return lesson.step(CoT(**lesson.settings(tasks=tasks, **more)), model=lesson.base, data=data)

    return teach


def progressive(lesson: LessonRun) -> Path:
    """Distill progressively: drop half of the layers, train, and use that student as teacher."""
    from tasks.distill.logits import Logits
    from tasks.prune.depth import Depth

    half = lesson.settings(epochs=lesson.setup.epochs / 2)
    first = lesson.step(Logits(**half), model="half_slim", data="corpus", teacher="tuned")
    pruned = lesson.step(Depth(ratio=DEPTH_SECOND), model=first, calibration="corpus")
    return lesson.step(Logits(**half), model=pruned, data="corpus", teacher=first)


DEPTH = 0.3
DEPTH_FIRST = 0.15
DEPTH_SECOND = 1 - (1 - DEPTH) / (1 - DEPTH_FIRST)
SMALL_DEPTH = 0.47
NARROW_DEPTH, NARROW_NEURONS = 0.2, 896
"""Drops fewer layers, and 42 % of the feed-forward neurons: the same number of weights."""


def lessons() -> dict[str, Lesson]:
    """All lessons by name."""
    return {
        "gold": Lesson("hard labels: the corpus' answers", sft("corpus")),
        "answers": Lesson("hard labels: the teacher's answers", sft("words")),
        "cot": Lesson("reasoning, then the answer", reasoning("joint")),
        "cot_two": Lesson("reasoning and answer as two tasks", reasoning("two")),
        "online": Lesson("soft targets, teacher in memory", soft("teacher", "tuned")),
        "stored": Lesson("soft targets, stored top 32", soft("targets", "targets")),
        "progressive": Lesson("soft targets in two stages", progressive),
        "features": Lesson("hidden states and hard labels", features),
        "on_policy": Lesson("own answers, scored by the teacher", on_policy),
        "reverse_kl": Lesson("stored, reverse KL", soft("targets", "targets", divergence="reverse_kl")),
        "jsd": Lesson("stored, JSD", soft("targets", "targets", divergence="jsd")),
        "soft_only": Lesson("stored, soft alone", soft("targets", "targets", alpha=1.0)),
        "t1": Lesson("stored, T = 1", soft("targets", "targets", temperature=1.0)),
        "t4": Lesson("stored, T = 4", soft("targets", "targets", temperature=4.0)),
        "t8": Lesson("stored, T = 8", soft("targets", "targets", temperature=8.0)),
        "strong_gold": Lesson("the whole model: the corpus' answers", sft("corpus", **TUNED), base=WHOLE),
        "strong_words": Lesson(
            "the whole model: the strong teacher's answers", sft("strong_words", **TUNED), base=WHOLE
        ),
        "strong_soft": Lesson("the whole model: soft targets across tokenizers", crossed, base=WHOLE),
        "sums_gold": Lesson("sums: the answers", sft(SUMS, **TUNED), base=SUMS, corpus=SUMS),
        "sums_cot": Lesson(
            "sums: reasoning, then the answer", reasoning("joint", SUMS, **TUNED), base=SUMS, corpus=SUMS
        ),
        "sums_cot_two": Lesson(
            "sums: reasoning and answer as two tasks", reasoning("two", SUMS, **TUNED), base=SUMS, corpus=SUMS
        ),
        "small_gold": Lesson("45 % of the weights: hard labels", sft("corpus"), base="small"),
        "small_stored": Lesson("45 % of the weights: soft targets", soft("targets", "targets"), base="small"),
        "small_long": Lesson(
            "45 % of the weights: soft targets, 12 epochs", soft("targets", "targets", times=3), base="small"
        ),
        "narrow_stored": Lesson(
            "45 % of the weights, narrower: soft targets", soft("targets", "targets"), base="narrow"
        ),
        "narrow_long": Lesson(
            "45 % of the weights, narrower: soft targets, 12 epochs", soft("targets", "targets", times=3), base="narrow"
        ),
        "stored_long": Lesson("stored top 32, 8 epochs", soft("targets", "targets", times=2)),
        "stored_watched": Lesson(
            "stored top 32, best of 4 epochs by 8 % held out", soft("targets", "targets", validation=0.08)
        ),
        "small_long_gold": Lesson("45 % of the weights: hard labels, 12 epochs", sft("corpus", times=3), base="small"),
    }


NEEDED = {
    WHOLE: ("corpus", "strong", "strong_words"),
    SUMS: (SUMS,),
    "slim": ("corpus", "tuned", "targets", "slim", "half_slim", "words"),
    "small": ("corpus", "tuned", "targets", "trimmed", "small"),
    "narrow": ("corpus", "tuned", "targets", "trimmed", "shallow", "narrow"),
}
"""Artifacts that the lessons of a base need; small and narrow have 45 % of the weights."""


def prepare(setup: Setup, needed: Collection[str]) -> None:
    """Make those of these artifacts that do not exist yet."""
    from tasks.curate.support import Support
    from tasks.distill.sft import SFT
    from tasks.logits.topk import TopK
    from tasks.prune.depth import Depth
    from tasks.prune.vocabulary import Vocabulary
    from tasks.prune.weight_selection import WeightSelection

    place = LessonRun(setup, "tuned", 0, setup.work)
    source = (Artifact("teacher", Kind.MODEL, setup.model),)
    corpus, tuned, trimmed, shallow = map(place.artifact, ("corpus", "tuned", "trimmed", "shallow"))
    steps: dict[str, tuple[Technique, Mapping[str, tuple[Artifact, ...]]]] = {
        "corpus": (Support(calibration_size=64, **setup.corpus), {}),
        "tuned": (SFT(**setup.hard | TUNED), {"model": source, "data": corpus}),
        "slim": (Depth(ratio=DEPTH), {"model": tuned, "calibration": corpus}),
        "half_slim": (Depth(ratio=DEPTH_FIRST), {"model": tuned, "calibration": corpus}),
        "targets": (TopK(max_tokens=1024), {"teacher": tuned, "data": corpus}),
        "trimmed": (Vocabulary(size=0), {"model": tuned, "data": corpus}),
        "small": (Depth(ratio=SMALL_DEPTH), {"model": trimmed, "calibration": corpus}),
        "shallow": (Depth(ratio=NARROW_DEPTH), {"model": trimmed, "calibration": corpus}),
        "narrow": (WeightSelection(intermediate_size=NARROW_NEURONS), {"model": shallow, "calibration": corpus}),
    }
    if setup.strong:
        strong = (Artifact("strong", Kind.MODEL, setup.strong),)
        steps["strong"] = (SFT(**setup.hard | STRONG), {"model": strong, "data": corpus})
    for name, (technique, inputs) in steps.items():
        if name in needed and not (setup.work / name / "done").exists():
            shutil.rmtree(setup.work / name, ignore_errors=True)
            run_technique(technique, Inputs(inputs), setup.work / name, setup, seed=0)
            (setup.work / name / "done").touch()
    if SUMS in needed and not (setup.work / SUMS / "done").exists():
        write_sums(setup)
    for name, teacher in (("words", "tuned"), ("strong_words", "strong")):
        if name in needed and not (setup.work / name / "done").exists():
            write_words(setup, name, teacher)


def write_sums(setup: Setup) -> None:
    """Write rows of distinct bills: training rows with reasoning, and test rows."""
    from tasks.shared.formats.rows import write_rows

    folder = setup.work / SUMS / "out"
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    places = [
        (a, p, b, q, d)
        for a in range(2, 6)
        for p in range(3, 13)
        for b in range(2, 6)
        for q in range(3, 13)
        for d in range(2, 10)
    ]
    train, test = setup.corpus["train_size"], setup.corpus["test_size"]
    rows = [bill(number, *place) for number, place in enumerate(draw.sample(places, train + test))]
    write_rows(folder / "train.jsonl", rows[:train])
    write_rows(folder / "test.jsonl", rows[train:])
    (setup.work / SUMS / "done").touch()


def bill(number: int, kettles: int, each: int, mugs: int, apiece: int, delivery: int) -> Any:
    """Return a question that needs two products and two sums, which are its reasoning."""
    from tasks.shared.formats.rows import Message, Row
    from tasks.shared.formats.targets import Facts, Label

    first, second = kettles * each, mugs * apiece
    goods, total = first + second, first + second + delivery
    question = (
        f"{kettles} kettles at {each} euros, {mugs} mugs at {apiece} euros, {delivery} euros delivery. What do I pay?"
    )
    thought = f"{kettles} x {each} = {first}. {mugs} x {apiece} = {second}. {first} + {second} = {goods}. {goods} + {delivery} = {total}."
    return Row(
        id=f"bill-{number}", tags={"kind": "troubleshoot"}, group=f"bill-{number}",
        key=(Label(label="bill"), Facts(groups=((f"{total} euros",),))),
        messages=(Message(role="user", content=question), Message(role="assistant", content=f"bill\nYou pay {total} euros.", reasoning=thought)),
    )  # fmt: skip


def write_words(setup: Setup, name: str, teacher: str) -> None:
    """Write training prompts with the teacher's greedy answers, right or wrong.

    Source: Kim and Rush 2016, arXiv 1606.07947.
    """
    from tasks.shared.formats.rows import Message, read_rows, write_rows

    folder = setup.work / name / "out"
    folder.mkdir(parents=True, exist_ok=True)
    rows = read_rows(setup.work / "corpus" / "out" / "train.jsonl")
    written = answers(setup.work / teacher / "out", [row.prompt for row in rows], setup)
    answered = [
        row.with_answer(Message(role="assistant", content=text), origin="teacher")
        for row, (text, _) in zip(rows, written, strict=True)
        if text.strip()
    ]
    write_rows(folder / "train.jsonl", answered)
    (setup.work / name / "done").touch()


def answers(model: Path, prompts: Sequence[list[dict[str, str]]], setup: Setup) -> list[tuple[str, bool]]:
    """Greedy answers, each with True if it ended before the token limit."""
    from tasks.shared.model.generation import write_answers
    from tasks.shared.model.loading import load_model, load_tokenizer
    from tasks.shared.model.precision import fast_dtype
    from tasks.shared.model.prompts import render

    batch = 256 if setup.device == "cuda" else 64
    loaded, tokenizer = load_model(model, fast_dtype(setup.device), setup.device), load_tokenizer(model)
    written = write_answers(loaded, tokenizer, [render(tokenizer, prompt) for prompt in prompts], MOST_TOKENS, batch)
    return [(answer.text, answer.ended) for answer in written]


MEASURED = {"label": "label", "facts": "fact", "decline": "refusal"}
"""Grades by type of target."""


def grade(model: Path, setup: Setup, corpus: str) -> dict[str, dict[str, float]]:
    """Grades of each test row: label, fact, refusal, fact in step-by-step rows."""
    from tasks.shared.formats.rows import read_rows, spread
    from tasks.shared.formats.tasks import read_tasks
    from tasks.shared.grading.answer import read_answer
    from tasks.shared.grading.grade import grade as grade_target

    rows = spread(read_rows(setup.work / corpus / "out" / "test.jsonl"), setup.items)
    written = answers(model, [row.prompt for row in rows], setup)
    tasks = read_tasks(setup.work / corpus / "out", {row.task for row in rows})
    found: dict[str, dict[str, float]] = {"label": {}, "fact": {}, "steps": {}, "refusal": {}}
    for row, (text, ended) in zip(rows, written, strict=True):
        answer = read_answer(text, tasks[row.task], ended)
        for target in row.key:
            if name := MEASURED.get(target.type):
                found[name][row.id] = grade_target(target, answer, tasks[row.task])
        if row.facts and row.tags.get("kind") == "troubleshoot":
            found["steps"][row.id] = found["fact"][row.id]
    return found


def run_lesson(job: tuple[str, int, Setup]) -> dict[str, Any]:
    """Train and grade one student with one seed.

    Returns grades, and seconds and peak_bytes (GPU; 0 without one) of the training.
    """
    name, seed, setup = job
    import torch

    from tasks.shared.model.sizes import parameter_count

    lesson = lessons().get(name)
    with tempfile.TemporaryDirectory(dir=setup.work) as folder:
        started = time.perf_counter()
        student = (
            setup.work / name / "out"
            if lesson is None
            else lesson.teach(LessonRun(setup, lesson.base, seed, Path(folder)))
        )
        seconds = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated() if setup.device == "cuda" else 0
        found = grade(student, setup, lesson.corpus if lesson else "corpus")
        weights = parameter_count(student)
    return {
        "lesson": name, "seed": seed, "device": setup.device, "epochs": setup.epochs, "items": setup.items,
        "seconds": round(seconds, 1), "peak_bytes": peak, "weights": weights, "values": found,
    }  # fmt: skip


def show(results: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Print means over seeds with 95 % t-intervals, and paired differences to hard labels."""
    from scipy import stats

    titles = {name: lesson.title for name, lesson in lessons().items()} | {
        "tuned": "the teacher",
        "slim": "pruned, not trained",
        "strong": "the strong teacher, tuned",
    }
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

    table = Table(
        "lesson",
        "weights",
        "seeds",
        "label %",
        "fact %",
        "step by step %",
        "refusal %",
        "fact, over hard labels",
        "s",
        "GB",
    )
    for name, seeds in by_lesson.items():
        cells = [
            spread_of(found) if (found := [means[measure] for means in seeds.values() if measure in means]) else ""
            for measure in ("label", "fact", "steps", "refusal")
        ]
        rival = hard if (hard := f"{name.partition('_')[0]}_gold") in titles else "gold"
        shared = sorted(seeds.keys() & by_lesson.get(rival, {}).keys())
        over = [seeds[seed]["fact"] - by_lesson[rival][seed]["fact"] for seed in shared if name != rival]
        table.add_row(
            titles.get(name, name), f"{other[name][0]['weights'] / 1e6:.0f} M", str(len(seeds)), *cells,
            spread_of(over) if over else "", f"{statistics.median(one['seconds'] for one in other[name]):.0f}",
            f"{peak / 1e9:.1f}" if (peak := statistics.median(one["peak_bytes"] for one in other[name])) else "",
        )  # fmt: skip
    console.print(table)


def read_results(file: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a results file."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.endswith("}")]


def main() -> None:
    """Train, grade and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "stillroom_distillation_study")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--strong", type=Path, help="a larger model of any tokenizer, for the lessons strong_*")
    parser.add_argument("--lessons", nargs="+", choices=list(lessons()))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--items", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--articles", type=int, default=20, help="articles to train on; 0 for all")
    parser.add_argument("--train", type=int, default=360, help="rows to train on")
    parser.add_argument("--test", type=int, default=240, help="rows to test on")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    file = given.out or given.work / "results.jsonl"
    if not given.table:
        given.work.mkdir(parents=True, exist_ok=True)
        chosen = given.lessons or [name for name in lessons() if given.strong or not name.startswith("strong")]
        if not given.strong and any(lessons()[name].base == WHOLE for name in chosen):
            parser.error("the lessons strong_* need --strong, a model's file or folder")
        setup = Setup(
            given.model or embedded_model(), given.work, given.device, given.threads, given.items, given.epochs,
            given.batch, {"articles": given.articles, "train_size": given.train, "test_size": given.test}, given.strong,
        )  # fmt: skip
        prepare(setup, {name for lesson in chosen for name in NEEDED[lessons()[lesson].base]})
        done = {(result["lesson"], result["seed"]) for result in read_results(file)}
        models = [name for name in ("tuned", "slim", "strong") if (given.work / name / "done").exists()]
        wanted = [*((name, 0) for name in models), *((name, seed) for seed in range(given.seeds) for name in chosen)]
        jobs = [(name, seed, setup) for name, seed in wanted if (name, seed) not in done]
        run_jobs(jobs, given.workers, file)
    show(read_results(file), Console(width=150))


def run_jobs(jobs: Sequence[tuple[str, int, Setup]], workers: int, file: Path) -> None:
    """Run all jobs, `workers` at once; report failing lessons and continue with the others."""

    def failed(error: BaseException) -> None:
        print(f"a lesson failed: {error}", file=sys.stderr)

    with multiprocessing.get_context("spawn").Pool(workers) as pool, file.open("a", encoding="utf-8") as stream:

        def done(result: dict[str, Any]) -> None:
            stream.write(json.dumps(result) + "\n")
            stream.flush()

        for job in jobs:
            pool.apply_async(run_lesson, (job,), callback=done, error_callback=failed)
        pool.close()
        pool.join()


def embedded_model() -> Path:
    """File of the embedded model."""
    from flows.planning.config import compose_recipe
    from flows.planning.plan import build_plan

    return build_plan(compose_recipe("tiny").recipe).sources["models.teacher"].path


if __name__ == "__main__":
    main()
