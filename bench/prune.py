"""Perplexity, seconds and archive of a model pruned by each kind of mask, in one run.

    python -m bench.prune --data ../shared/data/wikitext2 [--calibration 32] [--windows 16] [--model FOLDER] [--patterns 0.5 2:4]

The data is a folder with valid.txt, whose first windows calibrate, and test.txt, whose first windows are measured.  The model is the
embedded 135M model, or a folder.  Seconds are of processor time, with the threads given by OMP_NUM_THREADS.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.distillation_study import embedded_model
from bench.structure import perplexity, windows
from bench.tables import console, show
from tasks.prune.magnitude import Magnitude
from tasks.prune.masking.archive import archived_bytes
from tasks.prune.sparsegpt import SparseGPT
from tasks.prune.wanda import Wanda
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.prunable import matrices_of, view_of

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
    source = given.model or embedded_model()
    tokenizer = load_tokenizer(source, chat=False)
    ids, test = (
        windows(given.data / name, tokenizer, count, WINDOW, spread=False)
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


if __name__ == "__main__":
    main()
