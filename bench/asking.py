"""Processor seconds of asking one model for answers and labels, with `reuse` and without.

Run by `python -m bench.evaluate --asking`.  Rows are support_bot's test rows: two passages in each prompt, three questions to each.
Both ways run in one process and one thread, in turns; loading the model is left out.  Processor seconds, since they grow less than those
of the wall beside other programs; of a GGUF file, those of llama.cpp's server.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tasks.evaluate.models_under_test.answering import GenerationPlan, Predictions, ask
from tasks.evaluate.models_under_test.model_under_test import tuned_prompts
from tasks.shared.formats.rows import Row, read_rows

WAYS: dict[str, dict[str, Any]] = {
    "label written": {"choice": "written"},
    "label likeliest": {"choice": "likeliest"},
}
NEW_TOKENS = 24
BATCH = 64
CONTEXT = 1024


def support_rows(items: int, corpus: str) -> list[Row]:
    """Return test rows of support_bot, at least so many.

    corpus: folder of the corpus; empty to make it.
    All rows that begin with the same article are taken, so that prompts share as much as in the whole test split.
    """
    from flows.planning.config import compose_recipe
    from flows.planning.plan import build_plan
    from tasks.shared.technique import Inputs, StepRun

    if corpus:
        rows = list(read_rows(Path(corpus) / "test.jsonl"))
    else:
        plan = build_plan(compose_recipe("support_bot").recipe)
        step = next(step for step in plan.steps if step.name == "corpus")
        with tempfile.TemporaryDirectory() as folder:
            out, scratch = Path(folder) / "out", Path(folder) / "scratch"
            out.mkdir()
            scratch.mkdir()
            step.technique(Inputs({}), out, StepRun("corpus", 0, scratch))
            rows = list(read_rows(out / "test.jsonl"))
    by_article: dict[str, list[Row]] = {}
    for row in rows:
        by_article.setdefault(row.prompt[-1]["content"].partition("\n")[0], []).append(row)
    chosen: list[Row] = []
    for found in by_article.values():
        if len(chosen) < items:
            chosen += found
    return chosen


def model_folder(work: Path, tiny: bool) -> Path:
    """Save the embedded model, or one of random weights, as a dense folder."""
    from bench.evaluate import make_models

    return make_models(work, tiny, candidates=0)[0]


def processor_seconds(pid: int) -> float:
    """Processor seconds of a process so far."""
    import psutil

    return float(sum(psutil.Process(pid).cpu_times()[:2]))


def compare(items: int, rounds: int, tiny: bool, model: str, corpus: str) -> None:
    """Ask both ways in turns, check that labels and answers agree, and print seconds and ratios."""
    from tasks.evaluate.models_under_test.machine import describe_machine
    from tasks.shared.engines.engine import find_weights
    from tasks.shared.engines.protocol import Opening
    from tasks.shared.engines.registry import ENGINES

    rows = support_rows(items, corpus)
    labels = sorted({row.label for row in rows if row.label})
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    notes: dict[str, None] = {}
    same: dict[str, tuple[int, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = find_weights(Path(model) if model else model_folder(Path(folder), tiny))
        opening = Opening(1, context=CONTEXT, batch_size=BATCH, reuse=True)
        with ENGINES[weights.engine].open(weights.path, opening) as session:
            pid = getattr(session, "pid", os.getpid())
            for number in range(rounds):
                for way, settings in WAYS.items():
                    plans = [
                        GenerationPlan(
                            tuned_prompts(rows), labels, True, NEW_TOKENS, BATCH, CONTEXT, reuse=reuse, **settings
                        )
                        for reuse in (False, True)
                    ]
                    took, found = [0.0, 0.0], [Predictions([])] * 2
                    for place in (0, 1) if number % 2 == 0 else (1, 0):
                        session.reuse = plans[place].reuse  # type: ignore[attr-defined]
                        before = processor_seconds(pid)
                        found[place] = ask(session, plans[place])
                        took[place] = processor_seconds(pid) - before
                    seconds[way].append((took[0], took[1]))
                    same[way] = agreement(*found)
                    notes |= dict.fromkeys([found[1].reading, found[1].label_method])
                    print(
                        f"round {number + 1}, {way}: {took[0]:.1f} and {took[1]:.1f} s, {same[way]} of {len(rows)} equal",
                        file=sys.stderr,
                        flush=True,
                    )
    table = Table(
        "", "anew, s", "with reuse, s", "ratio", "equal answers", "equal labels",
        title=f"{len(rows)} rows, {len(labels)} labels, answers of at most {NEW_TOKENS} tokens, {weights.engine}\n{describe_machine()}",
    )  # fmt: skip
    for way, pairs in seconds.items():
        ratios = [first / second for first, second in pairs]
        table.add_row(
            way, spread([first for first, _ in pairs]), spread([second for _, second in pairs]), spread(ratios, ".2f"),
            *(f"{count} of {len(rows)}" for count in same[way]),
        )  # fmt: skip
    Console().print(table)
    Console().print(*filter(None, notes), sep="\n")


def agreement(first: Predictions, second: Predictions) -> tuple[int, int]:
    """Return the number of rows with the same answer, and with the same label."""
    pairs = list(zip(first.replies, second.replies, strict=True))
    return sum(one.output == other.output for one, other in pairs), sum(
        one.choice == other.choice for one, other in pairs
    )


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """Median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
