"""Cost of distillation: seconds and memory per step, ours and TRL's trainers, alternating.

python -m bench.distill                        the embedded model teaching itself; about twenty minutes on two cores
python -m bench.distill --tiny --rounds 1      random weights, to try it; a minute
python -m bench.distill --device cuda --batch 32 --tokens 512
python -m bench.distill quality                time to the best loss of TRL's SFTTrainer; half an hour a round on two cores
python -m bench.distill head                   memory of the output head alone, by batch x length
python -m bench.distill memory                 memory of a training, against the estimate in out-of-memory messages

Every trainer runs in a process of its own, takes the same steps on the same tokens, and reports the median time of a step without
the first WARM.  A round runs each of them once; ratios are computed within a round.

For `quality`, a pruned student learns from the tuned model that it was pruned from, on the support corpus, with the same learning
rate, schedule and batches.  Its held-out loss, the negative log-likelihood per token of test answers, is measured every EVERY steps
with the clock stopped.  Each round has its own seed, and the first trainer of --trainers sets the target loss.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

TRAINERS = {
    "trl sft": "TRL SFTTrainer: hard labels",
    "hard": "ours: hard labels",
    "stored": "ours: stored top 32",
    "online": "ours: teacher in memory",
    "trl gkd": "TRL GKDTrainer, lmbda 0: teacher in memory",
}
STEPS, WARM = 10, 2
EVERY, HELD_OUT = 10, 96
BATCHES = ((4, 128), (16, 128), (8, 400), (16, 400))
"""Numbers of conversations, and approximate tokens of each, for the table of memory."""
RATE = 3e-4
WORDS = (
    "returns",
    "are",
    "accepted",
    "within",
    "days",
    "of",
    "delivery",
    "and",
    "the",
    "warranty",
    "lasts",
    "unless",
    "opened",
    "by",
)


def write_conversations(folder: Path, count: int, tokens: int, share: float) -> None:
    """Write conversations of about `tokens` random words; `share` of them are the answer."""
    from tasks.shared.formats.rows import Message, Row, write_rows
    from tasks.shared.formats.targets import Facts, Label

    draw = random.Random(0)
    question, answer = int(tokens * (1 - share)) - 12, int(tokens * share) - 2
    rows = [
        Row(
            id=str(number), group=str(number), key=(Label(label="a"), Facts(groups=(("days",),))),
            messages=(
                Message(role="user", content=" ".join(draw.choices(WORDS, k=max(1, question)))),
                Message(role="assistant", content=" ".join(draw.choices(WORDS, k=max(1, answer)))),
            ),
        )
        for number in range(count)
    ]  # fmt: skip
    folder.mkdir()
    write_rows(folder / "train.jsonl", rows)


def stopwatch(judge: Callable[[Any], float] | None = None) -> Any:
    """Callback that records seconds per step, and the loss of `judge` every EVERY steps."""
    import torch
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.losses: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **given: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self.began)
            if judge and len(self.seconds) % EVERY == 0:
                self.losses.append(judge(given["model"]))

    return Stopwatch()


def held_out_loss(source: Path, folder: Path) -> Callable[[Any], float]:
    """Return a function for the mean negative log-likelihood of held-out answer tokens."""
    import torch

    from tasks.distill.losses.answers import answer_loss
    from tasks.distill.training.objective import last_hidden
    from tasks.shared.formats.rows import read_rows, spread
    from tasks.shared.model.encoding import IGNORED, collate, encode
    from tasks.shared.model.head import output_head
    from tasks.shared.model.loading import load_tokenizer

    tokenizer = load_tokenizer(source)
    rows = sorted(
        encode(spread(read_rows(folder / "test.jsonl"), HELD_OUT), tokenizer, 10_000),
        key=lambda row: len(row["input_ids"]),
    )
    count = sum(label != IGNORED for row in rows for label in row["labels"][1:])

    def judge(model: Any) -> float:
        training, total = model.training, 0.0
        model.eval()
        with torch.no_grad():
            for start in range(0, len(rows), 16):
                batch = {
                    name: tensor.to(model.device)
                    for name, tensor in collate(rows[start : start + 16], tokenizer.pad_token_id).items()
                }
                total += float(answer_loss(last_hidden(model, batch), output_head(model), batch["labels"], count))
        model.train(training)
        return total

    return judge


def ours(job: dict[str, Any]) -> Any:
    """Create a trainer with our training loop."""
    from tasks.distill.logits import OnlineTargets, StoredTargets
    from tasks.distill.losses.mixed import Blend
    from tasks.distill.sft import SFT
    from tasks.distill.training.loop import make_trainer
    from tasks.distill.training.objective import Answers, Objective
    from tasks.shared.formats.rows import read_rows
    from tasks.shared.formats.soft_targets import SoftTargets
    from tasks.shared.model.encoding import encode
    from tasks.shared.model.loading import load_model, load_tokenizer
    from tasks.shared.technique import Compute, StepRun

    source, teacher, folder = Path(job["student"]), Path(job["teacher"]), Path(job["folder"])
    blend = Blend(0.5, job["temperature"], "forward_kl", 0.5)
    objective: Objective = Answers()
    if job["trainer"] == "stored":
        objective = StoredTargets(SoftTargets(Path(job["targets"])), source, blend)
    elif job["trainer"] == "online":
        objective = OnlineTargets(teacher=teacher, student=source, blend=blend, dtype="float32")
    tokenizer = load_tokenizer(source)
    rows = objective.label(encode(read_rows(Path(job["data"]) / "train.jsonl"), tokenizer, 10_000))
    model = load_model(source, "float32")
    if job["device"] == "cpu":
        model.set_attn_implementation("eager")
    objective.attach(model, job["device"])
    settings = SFT(
        epochs=job["epochs"], batch_size=job["batch"], max_tokens=10_000, validation=0, precision=job["precision"],
        learning_rate=RATE, schedule="cosine", warmup_ratio=0.0, weight_decay=0.0,
    )  # fmt: skip
    scratch = Path(tempfile.mkdtemp(dir=folder))
    run = StepRun(
        "bench", job["seed"], scratch, compute=Compute(threads=job["threads"], device=job["device"], checkpoint_s=1e9)
    )
    trainer = make_trainer(settings, model, tokenizer, rows, [], objective, run)
    trainer.args.save_strategy = "no"
    return trainer


def theirs(job: dict[str, Any]) -> Any:
    """Create TRL's own trainer for the same rows and batches."""
    from datasets import Dataset

    from tasks.distill.training.arguments import precision_of
    from tasks.shared.formats.rows import read_rows
    from tasks.shared.model.encoding import collate, encode
    from tasks.shared.model.loading import load_model, load_tokenizer

    source, folder = Path(job["student"]), Path(job["folder"])
    tokenizer = load_tokenizer(source)
    rows = encode(read_rows(Path(job["data"]) / "train.jsonl"), tokenizer, 10_000)
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(dir=folder), "num_train_epochs": job["epochs"], "per_device_train_batch_size": job["batch"],
        "learning_rate": RATE, "lr_scheduler_type": "cosine", "train_sampling_strategy": "group_by_length",
        "max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False,
        "gradient_checkpointing": False, "bf16": precision_of(job["precision"], job["device"]) == "bfloat16", "use_cpu": job["device"] == "cpu",
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "optim": "adamw_torch_fused", "seed": job["seed"],
        "dataloader_pin_memory": job["device"] != "cpu",
    }  # fmt: skip
    named: dict[str, Any] = {
        "model": load_model(source, "float32"), "train_dataset": Dataset.from_list(rows), "processing_class": tokenizer,
        "data_collator": lambda batch: collate(batch, tokenizer.pad_token_id),
    }  # fmt: skip
    if job["device"] == "cpu":
        named["model"].set_attn_implementation("eager")
    if job["trainer"] == "trl sft":
        from trl import SFTConfig, SFTTrainer

        return SFTTrainer(args=SFTConfig(**common), **named)
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    teacher = load_model(Path(job["teacher"]), "float32", job["device"])
    return GKDTrainer(args=GKDConfig(**common, lmbda=0.0, beta=0.0), teacher_model=teacher, **named)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Median seconds per step, peak bytes, bytes before the first step.

    With `judged`, also the curve of losses over seconds.
    """
    import torch

    torch.set_num_threads(job["threads"])
    trainer = theirs(job) if job["trainer"].startswith("trl") else ours(job)
    watch = stopwatch(held_out_loss(Path(job["student"]), Path(job["data"])) if job["judged"] else None)
    trainer.add_callback(watch)
    before = resident()
    trainer.train()
    peak = (
        torch.cuda.max_memory_allocated()
        if job["device"] == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    curve = [(sum(watch.seconds[: (number + 1) * EVERY]), loss) for number, loss in enumerate(watch.losses)]
    return {"seconds": statistics.median(watch.seconds[WARM:]), "peak": peak, "before": before, "curve": curve}


def resident() -> int:
    """Resident memory of this process, bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def head_memory(job: dict[str, Any]) -> dict[str, Any]:
    """Peak additional memory of the output head with hard labels, chunked or whole, bytes."""
    import torch
    from torch.nn.functional import cross_entropy

    from tasks.distill.losses.answers import answer_loss

    torch.set_num_threads(job["threads"])
    device = job["device"]
    head = torch.nn.Linear(job["width"], job["vocabulary"], bias=False).to(device)
    hidden = torch.randn(1, job["positions"] + 1, job["width"], device=device, requires_grad=True)
    labels = torch.randint(0, job["vocabulary"], (1, job["positions"] + 1), device=device)
    before = torch.cuda.memory_allocated() if device == "cuda" else resident()
    loss = (
        answer_loss(hidden, head, labels)
        if job["chunked"]
        else cross_entropy(head(hidden[0, :-1]).float(), labels[0, 1:])
    )
    loss.backward()
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {"bytes": peak - before}


def training_memory(job: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of two steps with hard labels, its estimate, longest row, and seconds."""
    import datasets  # noqa: F401 - libraries do not count as memory of the training
    import torch
    import trl.trainer.sft_trainer  # noqa: F401

    from tasks.distill.sft import SFT
    from tasks.distill.training.loop import prepared_model, train_model
    from tasks.distill.training.memory import Seen, demand
    from tasks.distill.training.objective import Answers
    from tasks.shared.formats.rows import read_rows
    from tasks.shared.model.encoding import encode
    from tasks.shared.model.loading import load_tokenizer
    from tasks.shared.technique import Compute, StepRun

    source, folder = Path(job["student"]), Path(tempfile.mkdtemp(dir=job["folder"]))
    write_conversations(folder / "data", 2 * job["batch"], job["tokens"], job["share"])
    rows = read_rows(folder / "data" / "train.jsonl")
    settings = SFT(
        epochs=1, batch_size=job["batch"], max_tokens=10_000, validation=0, precision=job["precision"],
        gradient_checkpointing=job["recompute"],
    )  # fmt: skip
    run = StepRun(
        "bench", 0, folder / "scratch", compute=Compute(threads=job["threads"], device=job["device"], checkpoint_s=1e9)
    )
    (folder / "out").mkdir()
    before, began = resident(), time.perf_counter()
    train_model(settings, source, rows, Answers(), folder / "out", run)
    seconds = time.perf_counter() - began
    peak = (
        torch.cuda.max_memory_allocated()
        if job["device"] == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    )
    tokens = max(len(one["input_ids"]) for one in encode(rows, load_tokenizer(source), 10_000))
    estimate = demand(settings, prepared_model(settings, source, run), run, Seen(0, job["batch"], tokens))
    return {
        "peak": peak,
        "estimate": estimate.fixed + estimate.batch(job["batch"], job["recompute"]),
        "tokens": tokens,
        "seconds": seconds,
    }


def apart(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.distill", "--job", json.dumps(job)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{job}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def head_table(given: argparse.Namespace, console: Console) -> None:
    """Print the memory of the output head by positions."""
    table = Table(
        "positions",
        "chunked, GB",
        "whole, GB",
        "ratio",
        title=f"output head, 576 x {given.vocabulary:,}, float32, {given.device}",
    )
    for positions in given.positions:
        job = {
            "kind": "head",
            "width": 576,
            "vocabulary": given.vocabulary,
            "positions": positions,
            "device": given.device,
            "threads": given.threads,
        }
        chunked, whole = (apart(job | {"chunked": chunked})["bytes"] for chunked in (True, False))
        table.add_row(f"{positions:,}", f"{chunked / 1e9:.2f}", f"{whole / 1e9:.2f}", f"{whole / chunked:.1f}")
    console.print(table)


def memory_table(given: argparse.Namespace, console: Console) -> None:
    """Print peak memory of a training and its estimate, with and without recomputation."""
    from bench.distillation_study import embedded_model
    from tasks.evaluate.models_under_test.machine import describe_machine

    title = f"two steps of hard labels; {given.precision}; {describe_machine(given.device)}"
    table = Table("conversations x tokens", "recomputed", "peak GB", "estimate GB", "peak / estimate", "s", title=title)
    with tempfile.TemporaryDirectory() as place:
        job = {
            "kind": "memory", "folder": place, "student": str(given.model or embedded_model()), "share": given.share,
            "device": given.device, "threads": given.threads, "precision": given.precision,
        }  # fmt: skip
        for batch, tokens in BATCHES:
            for recompute in (False, True):
                found = apart(job | {"batch": batch, "tokens": tokens, "recompute": recompute})
                table.add_row(
                    f"{batch} x {found['tokens']}", "yes" if recompute else "no", f"{found['peak'] / 1e9:.2f}", f"{found['estimate'] / 1e9:.2f}",
                    f"{found['peak'] / found['estimate']:.2f}", f"{found['seconds']:.0f}",
                )  # fmt: skip
    console.print(table)


def trainer_table(given: argparse.Namespace, console: Console) -> None:
    """Print seconds and memory of every trainer, measured in turns."""
    from tasks.evaluate.models_under_test.machine import describe_machine

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = make_inputs(folder, given)
        data = {
            "student": str(model),
            "teacher": str(model),
            "data": str(folder / "data"),
            "targets": str(folder / "targets"),
        }
        found = in_turns(given, TRAINERS, place, data, epochs=1, judged=False)
    title = f"{given.batch} conversations of about {given.tokens} tokens, {given.share:.0%} of them answer; {given.precision}; {describe_machine(given.device)}"
    table = Table("trainer", "tokens/s", "range", "time / trl sft", "speed / trl gkd", "peak GB", title=title)
    for name, rounds in found.items():
        speeds = sorted(given.batch * given.tokens / one["seconds"] for one in rounds)
        slower = statistics.median(
            one["seconds"] / base["seconds"] for one, base in zip(rounds, found["trl sft"], strict=True)
        )
        faster = statistics.median(
            base["seconds"] / one["seconds"] for one, base in zip(rounds, found["trl gkd"], strict=True)
        )
        table.add_row(
            TRAINERS[name], f"{statistics.median(speeds):.0f}", f"{speeds[0]:.0f}-{speeds[-1]:.0f}", f"{slower:.2f}", f"{faster:.2f}",
            f"{statistics.median(one['peak'] for one in rounds) / 1e9:.2f}",
        )  # fmt: skip
    console.print(table)


def in_turns(
    given: argparse.Namespace, trainers: Iterable[str], place: str, data: dict[str, str], epochs: float, judged: bool
) -> dict[str, list[dict[str, Any]]]:
    """Run each of these trainers in every round; report each on standard error as it ends.

    data: paths by name.
    """
    job = {
        "kind": "trainer", "folder": place, "batch": given.batch, "epochs": epochs, "device": given.device,
        "threads": given.threads, "precision": given.precision, "judged": judged, "temperature": given.temperature, **data,
    }  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in trainers}
    for seed in range(given.rounds):
        for name in found:
            found[name].append(apart(job | {"trainer": name, "seed": seed}))
            print(name, json.dumps(found[name][-1]), file=sys.stderr, flush=True)
    return found


def quality_table(given: argparse.Namespace, console: Console) -> None:
    """Print the time until each trainer's student reaches the first one's best loss."""
    from bench.distillation_study import Setup, embedded_model, prepare
    from tasks.evaluate.models_under_test.machine import describe_machine

    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        corpus = {"articles": 20, "train_size": 360, "test_size": 240}
        setup = Setup(given.model or embedded_model(), work, given.device, given.threads, 0, 4, given.batch, corpus)
        prepare(setup, {"corpus", "tuned", "targets", "slim"})
        made = {name: str(work / name / "out") for name in ("corpus", "tuned", "targets", "slim")}
        data = {"student": made["slim"], "teacher": made["tuned"], "data": made["corpus"], "targets": made["targets"]}
        found = in_turns(given, given.trainers, place, data, epochs=given.epochs, judged=True)
    title = f"support corpus, batches of {given.batch}, {given.epochs:g} epochs; {given.precision}; {describe_machine(given.device)}"
    first = given.trainers[0]
    table = Table(
        "trainer",
        "best held-out loss",
        "range",
        f"s to {first}'s best",
        "steps",
        f"time / {first}",
        "s in all",
        title=title,
    )
    for name, rounds in found.items():
        losses = sorted(best_of(one["curve"]) for one in rounds)
        reached = [
            first_at(one["curve"], best_of(base["curve"])) for one, base in zip(rounds, found[first], strict=True)
        ]
        arrived = [one for one in reached if one is not None]
        shares = [
            one[1] / own[1]
            for one, base in zip(reached, found[first], strict=True)
            if one and (own := first_at(base["curve"], best_of(base["curve"])))
        ]
        all_did = len(arrived) == len(rounds)
        table.add_row(
            TRAINERS[name], f"{statistics.median(losses):.3f}", f"{losses[0]:.3f}-{losses[-1]:.3f}",
            *(
                (f"{statistics.median(s for _, s in arrived):.0f}", f"{statistics.median(n for n, _ in arrived):.0f}", f"{statistics.median(shares):.2f}")
                if all_did
                else ("not reached", "", "")
            ),
            f"{statistics.median(one['curve'][-1][0] for one in rounds):.0f}",
        )  # fmt: skip
    console.print(table)


Curve = Sequence[Sequence[float]]
"""Seconds of training and held-out loss, every EVERY steps."""


def best_of(curve: Curve) -> float:
    """Lowest loss of a curve."""
    return min(loss for _, loss in curve)


def first_at(curve: Curve, wanted: float) -> tuple[int, float] | None:
    """Steps and seconds until the loss reaches a target; None if it never does."""
    return next((((place + 1) * EVERY, seconds) for place, (seconds, loss) in enumerate(curve) if loss <= wanted), None)


def make_inputs(folder: Path, given: argparse.Namespace) -> Path:
    """Write conversations, the model and its stored targets."""
    from tasks.logits.topk import TopK
    from tasks.shared.technique import Artifact, Compute, Inputs, Kind, StepRun

    write_conversations(folder / "data", given.batch * STEPS, given.tokens, given.share)
    if given.tiny:
        from tests.tiny_llama import save_tiny

        model = save_tiny(folder / "model")
    else:
        from bench.distillation_study import embedded_model

        model = given.model or embedded_model()
    (folder / "targets").mkdir()
    (folder / "scratch").mkdir()
    ports = {
        "teacher": (Artifact("t", Kind.MODEL, model),),
        "data": (Artifact("d", Kind.TRACES, folder / "data"),),
    }
    run = StepRun("targets", 0, folder / "scratch", compute=Compute(threads=given.threads, device=given.device))
    TopK(max_tokens=10_000, batch_size=given.batch)(Inputs(ports), folder / "targets", run)
    return model


TABLES = {"trainers": trainer_table, "quality": quality_table, "head": head_table, "memory": memory_table}
JOBS = {"trainer": measure, "head": head_memory, "memory": training_memory}


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", choices=TABLES, default="trainers")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--epochs", type=float, default=2, help="for the table `quality`")
    parser.add_argument(
        "--trainers", nargs="+", choices=TRAINERS, default=list(TRAINERS), help="for the table `quality`"
    )
    parser.add_argument("--temperature", type=float, default=2, help="for our soft targets")
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--positions", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--job")
    given = parser.parse_args(words)
    if given.job:
        job = json.loads(given.job)
        print(json.dumps(JOBS[job["kind"]](job)))
        return
    console = Console(width=140)
    TABLES[given.table](given, console)


if __name__ == "__main__":
    main()
