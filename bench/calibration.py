"""KL of 4-bit levels by what calibrates them: own conversations or other text, how much.

    python -m bench.calibration --model FOLDER --corpus FOLDER --text ../shared/data/wikitext2 [--rows 16 64 256] [--seeds 0 1 2] [--checks 24]

The corpus is the folder of a curate step: conversations of its training split calibrate, drawn anew for each seed (the calibration split may be
smaller than the largest number), and test conversations are measured, answers included.  The text's valid.txt gives windows of the same
number of tokens.  Levels are those of iq4_nl; the first row is rounding without error feedback.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from bench.correction import MAX_TOKENS, Corrected
from bench.sides import say_machine, spread
from bench.tables import console, show
from tasks.shared.formats.rows import Row, read_rows
from tasks.shared.model.agreement import iterate_logits, logits_of, token_agreement
from tasks.shared.model.calibration import calibration_ids
from tasks.shared.model.encoding import IGNORED, encode, encode_fitting
from tasks.shared.model.loading import load_model, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

Ids = list[list[int]]


@dataclass(frozen=True)
class Held:
    """Conversations to measure on.

    logits: of the source, (length, vocabulary) each.  answers: True where a position predicts a token of an answer.
    """

    ids: Ids
    logits: list["Tensor"]
    answers: list[list[bool]]


def main() -> None:
    """Print a row per source and size of the calibration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--checks", type=int, default=24, help="conversations that are measured")
    given = parser.parse_args()
    tokenizer = load_tokenizer(given.model)
    held = held_out(given.model, tokenizer, read_rows(given.corpus / "test.jsonl")[: given.checks])
    rows = read_rows(given.corpus / "train.jsonl")
    lines = []

    def add(label: str, count: int, found: Sequence[tuple[float, float]], tokens: float) -> None:
        alls, answers = ([one[index] for one in found] for index in (0, 1))
        lines.append((label, count, f"{tokens:.0f}", spread(alls), spread(answers)))
        console.print(*lines[-1])

    first = calibration_ids(tokenizer, rows[:4], MAX_TOKENS)
    add("none: rounding", 0, [divergences(given.model, tokenizer, Corrected(feedback=False), first, held)], 0)
    for count in given.rows:
        sets = [own_rows(tokenizer, rows, count, seed) for seed in given.seeds]
        tokens = mean(sum(map(len, ids)) for ids in sets)
        add(
            "own conversations",
            count,
            [divergences(given.model, tokenizer, Corrected(), ids, held) for ids in sets],
            tokens,
        )
        length = round(tokens / count)
        texts = [text_windows(tokenizer, given.text / "valid.txt", count, length, seed) for seed in given.seeds]
        add(
            "WikiText-2",
            count,
            [divergences(given.model, tokenizer, Corrected(), ids, held) for ids in texts],
            count * length,
        )
    columns = ("calibrated on", "rows", "tokens", "KL, all tokens", "KL, answers")
    show(f"{len(held.ids)} conversations, {len(given.seeds)} seeds: median [smallest, largest]", columns, lines)
    say_machine()


def held_out(source: Path, tokenizer: Any, rows: Sequence[Row]) -> Held:
    """Tokenize conversations, mark their answers, and read them with the source model."""
    _, encoded = encode_fitting(partial(encode, tokenizer=tokenizer, max_tokens=MAX_TOKENS), rows, "drop")
    ids = [list(one["input_ids"]) for one in encoded]
    answers = [[label != IGNORED for label in one["labels"][1:]] for one in encoded]
    return Held(ids, logits_of(load_model(source), ids), answers)


def own_rows(tokenizer: Any, rows: Sequence[Row], count: int, seed: int) -> Ids:
    """Token ids of conversations drawn at random."""
    return calibration_ids(tokenizer, random.Random(seed).sample(list(rows), count), MAX_TOKENS)


def text_windows(tokenizer: Any, file: Path, count: int, length: int, seed: int) -> Ids:
    """Windows of a text drawn at random, each once.  Raises ValueError for a text with too few."""
    ids = tokenizer(file.read_text("utf-8"), add_special_tokens=False, verbose=False)["input_ids"]
    places = random.Random(seed).sample(range(len(ids) // length), count)
    return [ids[place * length : (place + 1) * length] for place in places]


def divergences(source: Path, tokenizer: Any, technique: Corrected, ids: Ids, held: Held) -> tuple[float, float]:
    """Round a model; return its KL at all positions and at those of answers, in nats per token."""
    import torch

    model: Any = load_model(source)
    technique.round(model, ids, int(tokenizer.pad_token_id or 0))
    everywhere, inside = list["Tensor"](), list["Tensor"]()
    for wanted, logits, answers in zip(held.logits, iterate_logits(model, held.ids), held.answers, strict=True):
        divergence, _ = token_agreement(wanted, logits)
        everywhere.append(divergence)
        inside.append(divergence[:-1][torch.tensor(answers)])
    return float(torch.cat(everywhere).mean()), float(torch.cat(inside).mean())


if __name__ == "__main__":
    main()
