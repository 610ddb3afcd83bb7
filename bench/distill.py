"""What distillation costs: seconds and memory a step, ours and TRL's trainers, on the same conversations in turns.

python -m bench.distill                        the embedded model teaching itself; about twenty minutes on two cores
python -m bench.distill --tiny --rounds 1      random weights, to try it; a minute
python -m bench.distill --device cuda --batch 32 --tokens 512
python -m bench.distill head                   memory of the output head alone, against batch x length

Every trainer runs in a process of its own, takes the same steps on the same tokens, and tells the median of its steps; the
first WARM are left out.  A round is all of them once.  Ratios are taken within a round.
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
from collections.abc import Sequence
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
WORDS = ("returns", "are", "accepted", "within", "days", "of", "delivery", "and", "the", "warranty", "lasts", "unless", "opened", "by")


def write_conversations(folder: Path, count: int, tokens: int, share: float) -> None:
    """Conversations of about `tokens` tokens made of words, `share` of them the answer's."""
    from tasks.shared.rows import Message, Row, write_rows

    draw = random.Random(0)
    ask, answer = int(tokens * (1 - share)) - 12, int(tokens * share) - 2
    rows = [
        Row(
            id=str(number), kind="faq", intent="a", group=str(number), accept=(("days",),),
            messages=(
                Message(role="user", content=" ".join(draw.choices(WORDS, k=max(1, ask)))),
                Message(role="assistant", content=" ".join(draw.choices(WORDS, k=max(1, answer)))),
            ),
        )
        for number in range(count)
    ]  # fmt: skip
    folder.mkdir()
    write_rows(folder / "train.jsonl", rows)


def stopwatch() -> Any:
    """A callback that notes each step's seconds."""
    import torch
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self.began)

    return Stopwatch()


def ours(job: dict[str, Any]) -> Any:
    """A trainer of the stage's loop, ready to run."""
    from tasks.distill.logits import OnlineTargets, StoredTargets
    from tasks.distill.losses.mixed import Blend
    from tasks.distill.sft import SFT
    from tasks.distill.training.encoding import encode
    from tasks.distill.training.loop import make_trainer
    from tasks.distill.training.objective import Answers, Objective
    from tasks.shared.models import load_model, load_tokenizer
    from tasks.shared.rows import read_rows
    from tasks.shared.soft_targets import SoftTargets
    from tasks.shared.technique import StepRun

    source, folder = Path(job["model"]), Path(job["folder"])
    blend = Blend(0.5, 2.0, "forward_kl", 0.5)
    objective: Objective = Answers()
    if job["trainer"] == "stored":
        objective = StoredTargets(SoftTargets(folder / "targets"), source, blend)
    elif job["trainer"] == "online":
        objective = OnlineTargets(source, source, blend, "float32")
    tokenizer = load_tokenizer(source)
    rows = objective.label(encode(read_rows(folder / "data" / "train.jsonl"), tokenizer, 10_000))
    model = load_model(source, "float32")
    if job["device"] == "cpu":
        model.set_attn_implementation("eager")
    objective.attach(model, job["device"])
    settings = SFT(epochs=1, batch_size=job["batch"], max_tokens=10_000, validation=0, precision=job["precision"])
    scratch = Path(tempfile.mkdtemp(dir=folder))
    run = StepRun("bench", 0, scratch, threads=job["threads"], device=job["device"], checkpoint_s=1e9)
    trainer = make_trainer(settings, model, tokenizer, rows, [], objective, run)
    trainer.args.save_strategy = "no"
    return trainer


def theirs(job: dict[str, Any]) -> Any:
    """TRL's own trainer on the same rows and batches."""
    from datasets import Dataset

    from tasks.distill.training.arguments import precision_of
    from tasks.distill.training.encoding import collate, encode
    from tasks.shared.models import load_model, load_tokenizer
    from tasks.shared.rows import read_rows

    source, folder = Path(job["model"]), Path(job["folder"])
    tokenizer = load_tokenizer(source)
    rows = encode(read_rows(folder / "data" / "train.jsonl"), tokenizer, 10_000)
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(dir=folder), "num_train_epochs": 1, "per_device_train_batch_size": job["batch"],
        "learning_rate": 2e-4, "max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False,
        "gradient_checkpointing": False, "bf16": precision_of(job["precision"], job["device"]) == "bfloat16", "use_cpu": job["device"] == "cpu",
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "optim": "adamw_torch_fused", "seed": 0,
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

    teacher = load_model(source, "float32", job["device"])
    return GKDTrainer(args=GKDConfig(**common, lmbda=0.0, beta=0.0), teacher_model=teacher, **named)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Median seconds a step, peak bytes, and what was there before the first step."""
    import torch

    torch.set_num_threads(job["threads"])
    trainer = theirs(job) if job["trainer"].startswith("trl") else ours(job)
    watch = stopwatch()
    trainer.add_callback(watch)
    before = resident()
    trainer.train()
    peak = torch.cuda.max_memory_allocated() if job["device"] == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": statistics.median(watch.seconds[WARM:]), "peak": peak, "before": before}


def resident() -> int:
    """Bytes of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def head_memory(job: dict[str, Any]) -> dict[str, Any]:
    """Peak bytes that hard labels take in the output head, forward and backward, over what was there before; chunked or whole."""
    import torch
    from torch.nn.functional import cross_entropy

    from tasks.distill.losses.answers import answer_loss

    torch.set_num_threads(job["threads"])
    device = job["device"]
    head = torch.nn.Linear(job["width"], job["vocabulary"], bias=False).to(device)
    hidden = torch.randn(1, job["positions"] + 1, job["width"], device=device, requires_grad=True)
    labels = torch.randint(0, job["vocabulary"], (1, job["positions"] + 1), device=device)
    before = torch.cuda.memory_allocated() if device == "cuda" else resident()
    loss = answer_loss(hidden, head, labels) if job["chunked"] else cross_entropy(head(hidden[0, :-1]).float(), labels[0, 1:])
    loss.backward()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"bytes": peak - before}


def apart(job: dict[str, Any]) -> dict[str, Any]:
    """The job in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.distill", "--job", json.dumps(job)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{job}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def head_table(given: argparse.Namespace, console: Console) -> None:
    """Memory of the head against positions."""
    table = Table("positions", "chunked, GB", "whole, GB", "ratio", title=f"output head, 576 x {given.vocabulary:,}, float32, {given.device}")
    for positions in given.positions:
        job = {"kind": "head", "width": 576, "vocabulary": given.vocabulary, "positions": positions, "device": given.device, "threads": given.threads}
        chunked, whole = (apart(job | {"chunked": chunked})["bytes"] for chunked in (True, False))
        table.add_row(f"{positions:,}", f"{chunked / 1e9:.2f}", f"{whole / 1e9:.2f}", f"{whole / chunked:.1f}")
    console.print(table)


def trainer_table(given: argparse.Namespace, console: Console) -> None:
    """Seconds and memory of every trainer, in turns."""
    from tasks.evaluate.asking.machine import describe_machine

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = make_inputs(folder, given)
        job = {
            "kind": "trainer", "model": str(model), "folder": place, "batch": given.batch, "device": given.device,
            "threads": given.threads, "precision": given.precision,
        }  # fmt: skip
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in TRAINERS}
        for _ in range(given.rounds):
            for name in TRAINERS:
                found[name].append(apart(job | {"trainer": name}))
    title = f"{given.batch} conversations of about {given.tokens} tokens, {given.share:.0%} of them answer; {given.precision}; {describe_machine(given.device)}"
    table = Table("trainer", "tokens/s", "range", "time / trl sft", "speed / trl gkd", "peak GB", title=title)
    for name, rounds in found.items():
        speeds = sorted(given.batch * given.tokens / one["seconds"] for one in rounds)
        slower = statistics.median(one["seconds"] / base["seconds"] for one, base in zip(rounds, found["trl sft"], strict=True))
        faster = statistics.median(base["seconds"] / one["seconds"] for one, base in zip(rounds, found["trl gkd"], strict=True))
        table.add_row(
            TRAINERS[name], f"{statistics.median(speeds):.0f}", f"{speeds[0]:.0f}-{speeds[-1]:.0f}", f"{slower:.2f}", f"{faster:.2f}",
            f"{statistics.median(one['peak'] for one in rounds) / 1e9:.2f}",
        )  # fmt: skip
    console.print(table)


def make_inputs(folder: Path, given: argparse.Namespace) -> Path:
    """Conversations, the model and its stored targets."""
    from tasks.logits.topk import TopK
    from tasks.shared.technique import Artifact, Inputs, Kind, StepRun

    write_conversations(folder / "data", given.batch * STEPS, given.tokens, given.share)
    if given.tiny:
        from tests.tiny_llama import save_tiny

        model = save_tiny(folder / "model")
    else:
        from bench.teaching import embedded_model

        model = given.model or embedded_model()
    (folder / "targets").mkdir()
    (folder / "scratch").mkdir()
    ports = {
        "teacher": (Artifact("t", Kind.MODEL, model),),
        "data": (Artifact("d", Kind.TRACES, folder / "data"),),
    }
    run = StepRun("targets", 0, folder / "scratch", threads=given.threads, device=given.device)
    TopK(max_tokens=10_000, batch_size=given.batch)(Inputs(ports), folder / "targets", run)
    return model


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", choices=("trainers", "head"), default="trainers")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--positions", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--job")
    given = parser.parse_args(words)
    if given.job:
        job = json.loads(given.job)
        print(json.dumps(measure(job) if job["kind"] == "trainer" else head_memory(job)))
        return
    console = Console(width=140)
    (head_table if given.table == "head" else trainer_table)(given, console)


if __name__ == "__main__":
    main()
