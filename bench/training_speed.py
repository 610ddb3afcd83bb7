"""Tokens per second of training by precision, head, attention and frozen layers.

    python bench/training_speed.py [model folder or .gguf]

The model is the embedded one unless a path is given.  Figures and machine go to docs/LOG.md.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from flows.planning.config import compose_recipe
from flows.planning.plan import build_plan
from tasks.distill.losses.answers import answer_loss
from tasks.distill.training.loop import freeze
from tasks.distill.training.working_copy import with_cast_weights
from tasks.evaluate.models_under_test.machine import describe_machine
from tasks.shared.model.encoding import IGNORED
from tasks.shared.model.loading import load_model

REPEATS = 5
TOKENS, ANSWER = 72, 22


@dataclass(frozen=True)
class Case:
    """Settings of one training.

    precision: autocast casts at every use; bfloat16 casts the weights once as well, as the product does.
    """

    precision: str = "bfloat16"
    head: str = "answer"
    attention: str = "eager"
    batch: int = 16
    frozen: int = 0


CASES = (
    Case("float32", "all"), Case("autocast", "all"), Case("autocast"), Case(), Case(attention="sdpa"), Case(batch=8),
    Case(frozen=10),
)  # fmt: skip


def make_step(path: Path, case: Case) -> Callable[[], None]:
    """Load a model; return a function that takes one optimizer step on random tokens."""
    model: Any = load_model(path, "float32").train()
    model.set_attn_implementation(case.attention)
    freeze(model, case.frozen)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)
    ids = torch.randint(10, model.config.vocab_size, (case.batch, TOKENS))
    labels = ids.clone()
    labels[:, : TOKENS - ANSWER] = IGNORED

    def loss() -> Any:
        if case.head == "all":
            return model(input_ids=ids, labels=labels, use_cache=False).loss
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return answer_loss(hidden, model.get_output_embeddings(), labels)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.precision != "float32"):
            total = with_cast_weights(model, torch.bfloat16, loss) if case.precision == "bfloat16" else loss()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Measure all cases and print."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else default_model()
    torch.manual_seed(0)
    seconds: dict[Case, list[float]] = {case: [] for case in CASES}
    for _ in range(REPEATS):
        for case in CASES:
            step = make_step(path, case)
            step()  # warm-up
            started = time.perf_counter()
            step()
            seconds[case].append(time.perf_counter() - started)
    table = Table(
        "precision", "head", "attention", "batch", "frozen", "tokens/s", "range", title=str(describe_machine())
    )
    for case, times in seconds.items():
        speeds = sorted(case.batch * TOKENS / item for item in times)
        table.add_row(
            case.precision, case.head, case.attention, str(case.batch), str(case.frozen),
            f"{median(speeds):.0f}", f"{speeds[0]:.0f}-{speeds[-1]:.0f}",
        )  # fmt: skip
    Console().print(table)


def default_model() -> Path:
    """File of the embedded model."""
    return build_plan(compose_recipe("tiny").recipe).sources["models.teacher"].path


if __name__ == "__main__":
    main()
