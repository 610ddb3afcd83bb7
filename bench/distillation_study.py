"""Ways to distill compared: same student, prompts and optimizer steps, several seeds.

python -m bench.distillation_study                                  all lessons, five seeds; hours on two cores, minutes on a GPU
python -m bench.distillation_study --device cuda --workers 8
python -m bench.distillation_study --lessons gold stored --seeds 2 --items 60 --epochs 1
python -m bench.distillation_study --articles 0 --train 3000 --test 960 --batch 16 --lessons small_gold small_stored    a larger budget
python -m bench.distillation_study --strong qwen.gguf --lessons strong_gold strong_words strong_soft        a larger teacher of another tokenizer
python -m bench.distillation_study --train 400 --test 120 --lessons sums_gold sums_cot sums_cot_two         does reasoning help where it is needed?
python -m bench.distillation_study --table                          only the table of what is there

The data is the built-in support corpus, sized as in the recipe support_bot unless asked otherwise.  The embedded model is tuned on
it once, which makes the teacher of every lesson but those of --strong, which is tuned likewise; students are made of that by
pruning, which leaves them speechless.  The lessons sums_* have a corpus of their own: bills of two items and a delivery, which no
small model adds up in its head.  Results go to --out, one line of JSON a lesson and seed; those that are there are not
made again.
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
"""Of an answer; reasoning before it must fit."""
WHOLE = "whole"
"""Of a lesson's base: the embedded model itself."""
SUMS = "sums"
"""The same, and a corpus of sums."""
TUNED: dict[str, Any] = {"learning_rate": 2e-4, "frozen_layers": 6}
STRONG: dict[str, Any] = {"learning_rate": 5e-5, "frozen_layers": 12}
HARD: dict[str, Any] = {"learning_rate": 3e-4, "validation": 0.0, "max_tokens": 1024}
"""The same steps for every lesson: no validation, so no early stop."""


@dataclass(frozen=True)
class Setup:
    """Where things are, and how large."""

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
    """One way to make a student.

    base: the student before training (see `prepare`).  corpus: the data it is evaluated on.
    """

    title: str
    teach: Callable[["Class"], Path]
    base: str = "slim"
    corpus: str = "corpus"


class Class:
    """One lesson under way: the setup, a seed, and a folder of its own."""

    def __init__(self, setup: Setup, base: str, seed: int, folder: Path) -> None:
        self.setup, self.seed, self.folder = setup, seed, folder
        self.base = setup.model if base in (WHOLE, SUMS) else setup.work / base / "out"
        self.made = 0

    def settings(self, **more: Any) -> dict[str, Any]:
        """The common ones, and more; `times` multiplies the epochs."""
        return self.setup.hard | {"epochs": self.setup.epochs * more.pop("times", 1)} | more

    def artifact(self, name: str) -> tuple[Artifact, ...]:
        """An input that `prepare` made, by name."""
        kinds = {
            "corpus": Kind.CORPUS,
            "sums": Kind.CORPUS,
            "words": Kind.TRACES,
            "strong_words": Kind.TRACES,
            "targets": Kind.LOGITS,
        }
        return (Artifact(name, kinds.get(name, Kind.MODEL), self.setup.work / name / "out"),)

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
    technique(
        inputs, out, StepRun(folder.name, seed, scratch, compute=Compute(threads=setup.threads, device=setup.device))
    )
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
        Logits(**lesson.settings(**more)), model=lesson.base, data="corpus", **{source: name}
    )


def features(lesson: Class) -> Path:
    """Hidden states beside hard labels."""
    from tasks.distill.features import Features

    return lesson.step(Features(**lesson.settings()), model=lesson.base, data="corpus", teacher="tuned")


def crossed(lesson: Class) -> Path:
    """Hard labels, and soft targets of the strong teacher's own tokens."""
    from tasks.distill.gold import Gold

    return lesson.step(Gold(**lesson.settings(**TUNED)), model=lesson.base, data="corpus", teacher="strong")


def on_policy(lesson: Class) -> Path:
    """The student's own words, scored by the teacher."""
    from tasks.distill.on_policy import OnPolicy

    return lesson.step(OnPolicy(**lesson.settings()), model=lesson.base, data="corpus", teacher="tuned")


def reasoning(tasks: str, data: str = "corpus", **more: Any) -> Callable[[Class], Path]:
    """Rationales beside answers, on the corpus' own, which has them."""

    def teach(lesson: Class) -> Path:
        from tasks.distill.cot import CoT

        return lesson.step(CoT(**lesson.settings(tasks=tasks, **more)), model=lesson.base, data=data)

    return teach


def progressive(lesson: Class) -> Path:
    """Progressive distillation: drop half of the layers, train, and teach from that student."""
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
"""Fewer layers go, and feed-forward blocks lose 42 % of their neurons: the same number of weights."""


def lessons() -> dict[str, Lesson]:
    """All of them, by name."""
    return {
        "gold": Lesson("hard labels: the corpus' answers", sft("corpus")),
        "answers": Lesson("hard labels: the teacher's answers", sft("words")),
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
            "stored top 32, best of 4 epochs by 8 % kept apart", soft("targets", "targets", validation=0.08)
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
"""What is made before lessons of a base; small and narrow have 45 % of the weights."""


def prepare(setup: Setup, needed: Collection[str]) -> None:
    """Make these of what lessons start from, each once."""
    from tasks.curate.support import Support
    from tasks.distill.sft import SFT
    from tasks.logits.topk import TopK
    from tasks.prune.depth import Depth
    from tasks.prune.vocabulary import Vocabulary
    from tasks.prune.weight_selection import WeightSelection

    place = Class(setup, "tuned", 0, setup.work)
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
            carry_out(technique, Inputs(inputs), setup.work / name, setup, seed=0)
            (setup.work / name / "done").touch()
    if SUMS in needed and not (setup.work / SUMS / "done").exists():
        write_sums(setup)
    for name, teacher in (("words", "tuned"), ("strong_words", "strong")):
        if name in needed and not (setup.work / name / "done").exists():
            write_words(setup, name, teacher)


def write_sums(setup: Setup) -> None:
    """Arithmetic over bills, none twice: training rows with reasoning, and test rows."""
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
    """A question that takes two products and two sums, with them as its reasoning."""
    from tasks.shared.formats.rows import Message, Row

    first, second = kettles * each, mugs * apiece
    goods, total = first + second, first + second + delivery
    asked = (
        f"{kettles} kettles at {each} euros, {mugs} mugs at {apiece} euros, {delivery} euros delivery. What do I pay?"
    )
    return Row(
        id=f"bill-{number}", kind="troubleshoot", intent="bill", group=f"bill-{number}", accept=((f"{total} euros",),),
        reasoning=f"{kettles} x {each} = {first}. {mugs} x {apiece} = {second}. {first} + {second} = {goods}. {goods} + {delivery} = {total}.",
        messages=(Message(role="user", content=asked), Message(role="assistant", content=f"bill\nYou pay {total} euros.")),
    )  # fmt: skip


def write_words(setup: Setup, name: str, teacher: str) -> None:
    """Training prompts with the teacher's greedy answers, right or wrong.

    Source: Kim and Rush 2016, arXiv 1606.07947.
    """
    from tasks.shared.formats.rows import Message, read_rows, write_rows

    folder = setup.work / name / "out"
    folder.mkdir(parents=True, exist_ok=True)
    rows = read_rows(setup.work / "corpus" / "out" / "train.jsonl")
    written = answers(setup.work / teacher / "out", [row.prompt for row in rows], setup)
    told = [
        row.model_copy(
            update={"messages": (*row.messages[:-1], Message(role="assistant", content=text)), "source": "teacher"}
        )
        for row, (text, _) in zip(rows, written, strict=True)
        if text.strip()
    ]
    write_rows(folder / "train.jsonl", told)
    (setup.work / name / "done").touch()


def answers(model: Path, prompts: Sequence[list[dict[str, str]]], setup: Setup) -> list[tuple[str, bool]]:
    """Greedy answers, and whether each ended by itself."""
    from tasks.evaluate.models_under_test.answering import choose_dtype
    from tasks.shared.model.generation import write_answers
    from tasks.shared.model.loading import load_model, load_tokenizer, render

    batch = 256 if setup.device == "cuda" else 64
    loaded, tokenizer = load_model(model, choose_dtype(setup.device), setup.device), load_tokenizer(model)
    written = write_answers(loaded, tokenizer, [render(tokenizer, prompt) for prompt in prompts], MOST_TOKENS, batch)
    return [(answer.text, answer.ended) for answer in written]


def grade(model: Path, setup: Setup, corpus: str) -> dict[str, dict[str, float]]:
    """Grades of each test row: label, fact, refusal, fact in step-by-step rows."""
    from tasks.evaluate.grading.answers import Reply
    from tasks.shared.formats.rows import read_rows, spread
    from tasks.shared.text.chat import refuses, states_fact

    rows = spread(read_rows(setup.work / corpus / "out" / "test.jsonl"), setup.items)
    written = answers(model, [row.prompt for row in rows], setup)
    found: dict[str, dict[str, float]] = {"label": {}, "fact": {}, "steps": {}, "refusal": {}}
    for row, (text, ended) in zip(rows, written, strict=True):
        reply = Reply("", text, ended)
        found["label"][row.id] = float(reply.label == row.intent)
        if row.accept:
            found["fact"][row.id] = float(states_fact(reply.text, row.accept))
            if row.kind == "troubleshoot":
                found["steps"][row.id] = found["fact"][row.id]
        if row.kind == "refuse":
            found["refusal"][row.id] = float(refuses(reply.text))
    return found


def attend(job: tuple[str, int, Setup]) -> dict[str, Any]:
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
            setup.work / name / "out" if lesson is None else lesson.teach(Class(setup, lesson.base, seed, Path(folder)))
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
    """Means over seeds with 95 % t-intervals, and differences to hard labels, paired by seed."""
    from scipy import stats

    titles = {name: lesson.title for name, lesson in lessons().items()} | {
        "tuned": "the teacher",
        "slim": "pruned, not taught",
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
    """Whole lines of a results file."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.endswith("}")]


def main() -> None:
    """Teach, grade, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "stillroom_teaching")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--strong", type=Path, help="a larger model of any tokenizer, for the lessons strong_*")
    parser.add_argument("--lessons", nargs="+", choices=list(lessons()))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--items", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--articles", type=int, default=20, help="to train on; 0 for all")
    parser.add_argument("--train", type=int, default=360, help="rows to train on")
    parser.add_argument("--test", type=int, default=240, help="rows to judge by")
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
    """All jobs, so many at once; a lesson that fails is told, and the others go on."""

    def failed(error: BaseException) -> None:
        print(f"a lesson failed: {error}", file=sys.stderr)

    with multiprocessing.get_context("spawn").Pool(workers) as pool, file.open("a", encoding="utf-8") as stream:

        def done(result: dict[str, Any]) -> None:
            stream.write(json.dumps(result) + "\n")
            stream.flush()

        for job in jobs:
            pool.apply_async(attend, (job,), callback=done, error_callback=failed)
        pool.close()
        pool.join()


def embedded_model() -> Path:
    """The embedded model's file."""
    from flows.planning.config import compose_recipe
    from flows.planning.plan import build_plan

    return build_plan(compose_recipe("tiny").recipe).sources["models.teacher"].path


if __name__ == "__main__":
    main()
