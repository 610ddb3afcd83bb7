"""Files of two strangers' tasks, for the runs in docs/results.md.

python -m bench.strangers bills FOLDER --rows 1500
python -m bench.strangers dialogues FOLDER --source path/to/dstc11_track5/val

bills: questions with one number as the answer, after its reasoning, as {"question", "answer"} with "#### 37" at the end.
dialogues: conversations with a human's reply and no label, in the ShareGPT format.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GOODS = ("kettle", "mug", "lamp", "shade", "filter", "jug", "tray", "clock", "vase", "towel")
PLACES = ("in the shop", "online", "at the market", "by phone", "from the catalog", "for the office", "for a friend")


def bills(rows: int) -> Iterator[dict[str, str]]:
    """Yield questions about two goods and a delivery, and answers that end with the sum."""
    draw = random.Random(0)
    seen: set[str] = set()
    while len(seen) < rows:
        first, second = draw.sample(GOODS, 2)
        counts, prices = (draw.randint(2, 6), draw.randint(2, 6)), (draw.randint(2, 9), draw.randint(2, 9))
        delivery, place = draw.randint(1, 9), draw.choice(PLACES)
        question = (
            f"I buy {counts[0]} {first}s at {prices[0]} euros and {counts[1]} {second}s at {prices[1]} euros {place}. "
            f"Delivery is {delivery} euros. What do I pay?"
        )
        if question in seen:
            continue
        seen.add(question)
        one, two = counts[0] * prices[0], counts[1] * prices[1]
        steps = f"{counts[0]} x {prices[0]} = {one}. {counts[1]} x {prices[1]} = {two}. {one} + {two} = {one + two}."
        total = one + two + delivery
        yield {"question": question, "answer": f"{steps} {one + two} + {delivery} = {total}.\n#### {total}"}


def dialogues(source: Path) -> Iterator[dict[str, Any]]:
    """Yield the dialogues of DSTC11 track 5 that have a human's reply to their last turn."""
    logs, labels = (json.loads((source / f"{name}.json").read_text("utf-8")) for name in ("logs", "labels"))
    for log, label in zip(logs, labels, strict=True):
        if label["target"]:
            turns = [{"from": "human" if turn["speaker"] == "U" else "gpt", "value": turn["text"]} for turn in log]
            yield {"conversations": [*turns, {"from": "gpt", "value": label["response"]}]}


def main() -> None:
    """Write one file of JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bills", "dialogues"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--source", type=Path, help="the folder val of DSTC11 track 5")
    options = parser.parse_args()
    if options.what == "dialogues" and options.source is None:
        parser.error("dialogues needs --source")
    rows: Iterator[Any] = bills(options.rows) if options.what == "bills" else dialogues(options.source)
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / f"{options.what}.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(file)


if __name__ == "__main__":
    main()
