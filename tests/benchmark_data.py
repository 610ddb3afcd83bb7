"""Stand-ins for the files of public benchmarks: their format, a few items each, words of our own."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.evaluate.benchmark.benchmarks import CONNECTIVES
from tests.tiny_llama import sentences

COUNT = 12


def write_benchmark_data(folder: Path, count: int = COUNT) -> Path:
    """Every file that a benchmark of ours reads."""
    text = iter(sentences(200 * count, seed=5))
    _lines(folder / "hellaswag_val1000" / "hellaswag_val1000.jsonl", [
        {"ind": index, "query": next(text), "choices": [next(text) for _ in range(4)], "gold": index % 4} for index in range(count)
    ])  # fmt: skip
    sums = [{"question": f"How many are {n} kettles?", "answer": f"Count them.\n#### {n}"} for n in range(1, count + 1)]
    for split in ("train", "test"):
        _lines(folder / "gsm8k" / f"{split}.jsonl", sums)
    _table(folder / "truthfulqa" / "TruthfulQA.csv", [
        {
            "Type": ("Adversarial", "Non-Adversarial")[n % 2], "Question": f"{next(text)}?",
            "Best Answer": next(text), "Incorrect Answers": f"{next(text)}; {next(text)}",
        }
        for n in range(count)
    ])  # fmt: skip
    for language in CONNECTIVES:
        _lines(folder / "xcopa" / "data" / language / f"test.{language}.jsonl", [
            {"premise": next(text), "choice1": next(text), "choice2": next(text), "question": ("cause", "effect")[n % 2], "label": n % 2, "idx": n}
            for n in range(2)
        ])  # fmt: skip
    _table(folder / "crows_pairs" / "crows_pairs_anonymized.csv", [
        {"": n, "sent_more": next(text), "sent_less": next(text), "bias_type": ("gender", "age")[n % 2]} for n in range(count)
    ])  # fmt: skip
    _table(
        folder / "banking77" / "test.csv",
        [{"text": next(text), "category": f"card_topic_{n % 12}"} for n in range(count)],
    )
    _json(folder / "clinc150" / "data_full.json", {"test": [[next(text), f"topic_{n % 12}"] for n in range(count)]})
    _json(
        folder / "clinc150" / "domains.json",
        {"banking": [f"topic_{n}" for n in range(6)], "travel": [f"topic_{n}" for n in range(6, 12)]},
    )
    asked = [
        ("Write without commas.", "punctuation:no_comma", {}),
        ("Write less than 9 words.", "length_constraints:number_words", {"relation": "less than", "num_words": 9}),
        ("Write 500 words.", "length_constraints:number_words", {"relation": "at least", "num_words": 500}),
        ("Answer in Tamil.", "language:response_language", {"language": "ta"}),
    ]
    _lines(folder / "ifeval" / "input_data.jsonl", [
        {"key": key, "prompt": prompt, "instruction_id_list": [name], "kwargs": [given]} for key, (prompt, name, given) in enumerate(asked, start=1)
    ])  # fmt: skip
    return folder


def _lines(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), "utf-8")


def _table(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
