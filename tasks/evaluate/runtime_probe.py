"""The process that times one model in transformers: run by `tasks/evaluate/runtime.py`, never imported.

Writes one JSON line: {"first_s": ..., "last_s": ..., "peak_bytes": ...}.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from tasks.evaluate.asking import choose_dtype
from tasks.evaluate.runtime import peak_memory
from tasks.shared.models import load_model, load_tokenizer, render


class Clock:
    """A streamer for `generate`: notes when each piece arrives.  The first piece is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """A piece has arrived."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing follows."""


def main() -> None:
    """Time the model that the first argument (JSON) describes."""
    import torch

    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    folder = Path(settings["model"])
    model: Any = load_model(folder, choose_dtype("cpu"))
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(render(tokenizer, settings["messages"]), return_tensors="pt", add_special_tokens=False)
    started, clock = 0.0, Clock()
    with torch.inference_mode():
        for tokens in (settings["warm_up"], settings["tokens"]):
            started, clock = time.perf_counter(), Clock()
            model.generate(
                **ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, streamer=clock,
                pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
    found = {"first_s": clock.times[1] - started, "last_s": clock.times[-1] - started, "peak_bytes": peak_memory()}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
