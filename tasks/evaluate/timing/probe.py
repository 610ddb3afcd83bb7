"""Child process that times one model in transformers.

Run by tasks/evaluate/timing/engines.py, never imported.  Writes two JSON lines to standard output: {"ready": true} once the model is
loaded, then the results.
"""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tasks.evaluate.models_under_test.model_under_test import Prompt
from tasks.evaluate.timing.energy import open_meter
from tasks.evaluate.timing.streams import Streamed
from tasks.shared.engines.memory import peak_memory
from tasks.shared.model.generation import plain_greedy
from tasks.shared.model.loading import load_model, load_tokenizer
from tasks.shared.model.precision import fast_dtype
from tasks.shared.model.prompts import render


class Clock:
    """Streamer for `generate` that records each piece's arrival time; the first is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Record a piece: a tensor on the CPU, so its computation is done."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing at the end of the stream."""


def answer(model: Any, tokenizer: Any, prompt: Prompt, tokens: int, streams: int = 1) -> list[Streamed]:
    """Answer the same prompt in `streams` rows of one batch, and return their timings."""
    clock, started = Clock(), time.perf_counter()
    prompts = [render(tokenizer, prompt.messages, tools=prompt.tools)] * streams
    batch = tokenizer(prompts, return_tensors="pt", add_special_tokens=False).to(model.device)
    with plain_greedy(model):
        output = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=tokens, min_new_tokens=tokens,
            do_sample=False, streamer=clock, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
    read = batch["input_ids"].shape[1]
    tokenizer.batch_decode(output[:, read:], skip_special_tokens=True)
    end_s = time.perf_counter() - started
    return [Streamed([moment - started for moment in clock.times[1:]], end_s, tokens, read)] * streams


def main() -> None:
    """Time the model described by the first argument, JSON."""
    messages_out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries' output goes to standard error
    import torch

    settings = json.loads(sys.argv[1])
    device, prompt = settings["device"], Prompt(settings["messages"], settings["tools"])
    torch.set_num_threads(settings["threads"])
    folder = Path(settings["model"])
    dtype = fast_dtype(device)
    model, tokenizer = load_model(folder, dtype, device), load_tokenizer(folder)
    messages_out.write(json.dumps({"ready": True}) + "\n")
    messages_out.flush()
    with torch.inference_mode():
        answer(model, tokenizer, prompt, settings["warm_up"])
        meter = open_meter(settings["energy"], device)
        if meter is not None:
            meter.start()
        (one,) = answer(model, tokenizer, prompt, settings["tokens"])
        joules = None if meter is None else meter.stop()
        peak, device_peak = peak_memory(), torch.cuda.max_memory_reserved() if device == "cuda" else 0
        several = {}
        for streams in settings["batch_sizes"]:
            answer(model, tokenizer, prompt, settings["warm_up"], streams)
            several[streams] = [asdict(item) for item in answer(model, tokenizer, prompt, settings["tokens"], streams)]
    found = {
        "one": asdict(one), "joules": joules, "peak_bytes": peak, "device_peak_bytes": device_peak, "several": several,
    }  # fmt: skip
    messages_out.write(json.dumps(found) + "\n")
    messages_out.close()


if __name__ == "__main__":
    main()
