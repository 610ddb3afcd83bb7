"""Cost of a comparison over plain scoring: lm-evaluation-harness and our step, alternating.

python -m bench.evaluate                        the embedded model and four candidates, 500 items, three rounds; well over an hour on two cores
python -m bench.evaluate --tiny --rounds 1      models of random weights, to try it; a minute
python -m bench.evaluate --data /your/benchmarks --tasks hellaswag_val1000
python -m bench.evaluate --asking --items 48    questions of support_bot in transformers, with `reuse` and without (bench/asking.py)

Both score the baseline and each candidate once, each in a fresh process, and must find the same accuracies.  Ours also keeps every
sample, survives a failing candidate, and computes a verdict.  Without --data the items are random words, since only their length
matters here.  Run it on an idle machine: if other programs use the cores, waiting threads spin, and CPU seconds grow with wall-clock
seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.asking import compare, spread

CANDIDATES = 4
MARGIN = 0.05
BATCH = 16


def make_models(folder: Path, tiny: bool, candidates: int = CANDIDATES) -> list[Path]:
    """Save the baseline, and candidates with slightly different weights, as bfloat16 folders."""
    import torch

    from flows.planning.config import compose_recipe
    from flows.planning.plan import build_plan
    from tasks.shared.model.loading import load_model, load_tokenizer
    from tasks.shared.model.saving import save_model
    from tests.tiny_llama import build_model, build_tokenizer

    if tiny:
        model, tokenizer = build_model(max_position_embeddings=1024), build_tokenizer()
    else:
        source = build_plan(compose_recipe("tiny").recipe).sources["models.teacher"].path
        model, tokenizer = load_model(source), load_tokenizer(source)
    torch.manual_seed(0)
    found = []
    for number in range(candidates + 1):
        if number:
            with torch.no_grad():
                for weight in model.parameters():
                    weight += 0.02 * weight.std() * torch.randn_like(weight)
        found.append(folder / ("baseline" if number == 0 else f"candidate{number}"))
        save_model(model, tokenizer, found[-1])
        model.float()
    return found


def score_alone(job: dict[str, Any]) -> dict[str, float]:
    """Run the harness as its command line does, model after model, in one process."""
    import torch
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from tasks.evaluate.benchmark.benchmarks import BENCHMARKS, task_config

    torch.set_num_threads(job["threads"])
    found = {}
    for model in map(Path, job["models"]):
        lm = HFLM(pretrained=str(model), dtype=job["dtype"], device="cpu", batch_size=BATCH, softmax_dtype="float32")
        result = simple_evaluate(
            lm, tasks=[task_config(task, Path(job["data"])) for task in job["tasks"]], limit=job["items"], bootstrap_iters=0,
            task_manager=TaskManager(include_defaults=False),
        )  # fmt: skip
        for task in job["tasks"]:
            values = result["samples"][task]
            found[f"{model.name}.{task}"] = statistics.fmean(value[BENCHMARKS[task].metric] for value in values)
    return found


def score_ours(job: dict[str, Any]) -> dict[str, float]:
    """Run the measuring step and the verdict on its scores, as a flow does."""
    from tasks.evaluate.benchmark.benchmarks import BENCHMARKS
    from tasks.evaluate.lm_eval import LmEval
    from tasks.shared.formats.scores import read_scores
    from tasks.shared.paths import sha256_file
    from tasks.shared.technique import Artifact, Compute, Inputs, Kind, StepRun

    models = [
        Artifact(path.name, Kind.MODEL, path, sha256_file(path / "model.safetensors"))
        for path in map(Path, job["models"])
    ]
    work = Path(job["work"])
    ports = {"baseline": (models[0],), "candidates": tuple(models[1:])}
    out, scratch = Path(tempfile.mkdtemp(dir=work)), Path(tempfile.mkdtemp(dir=work))
    run = StepRun("bench", 0, scratch, work / "cache", Compute(threads=job["threads"]))
    LmEval(tasks=tuple(job["tasks"]), data=job["data"], limit=job["items"], batch_size=BATCH, dtype=job["dtype"])(
        Inputs(ports), out, run
    )
    scores = read_scores(out)
    if not job["scores_only"]:
        from tasks.evaluate.paired import Paired

        judged = Path(tempfile.mkdtemp(dir=work))
        sheets = {"scores": (Artifact("bench", Kind.SCORES, out),)}
        Paired(margins=dict.fromkeys(scores.summary.measures, MARGIN))(Inputs(ports | sheets), judged, run)
    found: dict[str, list[float]] = {}
    for item in scores.items:
        for model, value in item.values.items():
            found.setdefault(f"{model}.{item.measure.partition('.')[0]}", []).append(value)
    assert {name.partition(".")[2] for name in found} <= set(BENCHMARKS)
    return {name: statistics.fmean(values) for name, values in found.items()}


Took = tuple[float, float]
"""Wall-clock seconds, and CPU seconds."""


def timed(arm: str, job: dict[str, Any]) -> tuple[Took, dict[str, float]]:
    """Run one arm as a process; return its times and accuracies."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "bench.evaluate", "--arm", arm, "--job", json.dumps(job)]
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": str(job["threads"]),
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    result = json.loads(done.stdout.splitlines()[-1])
    return (seconds, result["processor"]), result["found"]


def processor_seconds() -> float:
    """CPU seconds of this process and its descendants, finished or running."""
    import psutil

    own = psutil.Process()
    return sum(sum(process.cpu_times()[:4]) for process in [own, *own.children(recursive=True)])


def measure(job: dict[str, Any], rounds: int, work: Path) -> dict[str, list[Took]]:
    """Measure every arm by round, alternating the order; each round starts with an empty cache."""
    seconds: dict[str, list[Took]] = {"harness alone": [], "ours": [], "ours, again": []}
    for number in range(rounds):
        fresh = job | {"work": str(work / f"round{number}")}
        Path(fresh["work"]).mkdir()
        pair = [("harness alone", "alone"), ("ours", "ours")]
        found = {}
        for name, arm in pair if number % 2 == 0 else reversed(pair):
            took, found[name] = timed(arm, fresh)
            seconds[name].append(took)
            print(
                f"round {number + 1}, {name}: {took[0]:.1f} s, {took[1]:.1f} CPU seconds",
                file=sys.stderr,
                flush=True,
            )
        differ = {
            name: (value, found["ours"].get(name))
            for name, value in found["harness alone"].items()
            if abs(value - found["ours"].get(name, -1.0)) > 1e-9
        }
        if differ:
            sys.exit(f"the accuracies differ: {differ}")
        seconds["ours, again"].append(timed("ours", fresh)[0])
    return seconds


def main() -> None:
    """Measure both arms and print; with --arm, run one of them."""
    options = arguments()
    if options.asking:
        compare(options.items, options.rounds, options.tiny, options.model, options.data)
        return
    if options.arm:
        job = json.loads(options.job)
        found = score_alone(job) if options.arm == "alone" else score_ours(job)
        print(json.dumps({"found": found, "processor": processor_seconds()}))
        return
    from tasks.evaluate.models_under_test.machine import describe_machine
    from tasks.shared.model.precision import fast_dtype
    from tests.benchmark_data import write_benchmark_data

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = options.data or str(write_benchmark_data(work / "data", options.items))
        job = {
            "models": [str(path) for path in make_models(work, options.tiny)], "data": data, "tasks": options.tasks.split(","),
            "items": options.items, "threads": os.cpu_count() or 1, "dtype": fast_dtype("cpu"),
            "scores_only": options.scores_only,
        }  # fmt: skip
        seconds = measure(job, options.rounds, work)
    title = f"baseline and {CANDIDATES} candidates, {options.items} items of {options.tasks}, {job['dtype']}\n{describe_machine()}"
    table = Table("", "seconds", "times the harness alone", "CPU seconds", "times the harness alone", title=title)
    for name, took in seconds.items():
        cells = []
        for values, alone in zip(zip(*took, strict=True), zip(*seconds["harness alone"], strict=True), strict=True):
            ratios = [value / other for value, other in zip(values, alone, strict=True)]
            cells += [spread(values), spread(ratios, ".2f")]
        table.add_row(name, *cells)
    Console().print(table)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="models with random weights instead of the embedded model")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", default="hellaswag_val1000")
    parser.add_argument(
        "--data", default="", help="folder with the benchmarks' real files; with --asking, a corpus like support_bot's"
    )
    parser.add_argument("--asking", action="store_true", help="compare ways of asking one model, at equal answers")
    parser.add_argument(
        "--model", default="", help="with --asking: folder or GGUF file to ask instead of the embedded model"
    )
    parser.add_argument("--scores-only", action="store_true", help="compute no verdict")
    parser.add_argument("--arm", choices=["alone", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
