"""What serving a model costs: peak memory, time to first token, decode speed, in the engine that would serve it.

Dense model folders are written as f16 GGUF and served by llama.cpp like the GGUF candidates, so that formats compare in one
engine.  Compressed-tensors folders, which vLLM would serve, run in transformers here, and the figures say so.
Every repeat is a fresh process: its memory peak is its own.  Repeats go round the models (A B C A B C), so that a machine whose
speed drifts does not favour one of them.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tasks.evaluate.completions import LlamaClient
from tasks.evaluate.subjects import Messages, Subject
from tasks.shared.errors import ModelError, TechniqueError
from tasks.shared.models import is_quantized
from tasks.shared.progress import track
from tasks.shared.verdict import Spread

log = logging.getLogger(__name__)
PROBE_LIMIT_S = 300.0
WARM_UP_TOKENS = 8
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Probe:
    """How a model is timed.  file: a GGUF for llama.cpp, a folder for transformers."""

    name: str
    file: Path
    engine: str
    """Words for the report, such as "llama.cpp (f16 GGUF)"."""
    messages: Messages
    """One conversation of the test split, as this model is asked it."""


@dataclass(frozen=True)
class Sample:
    """One repeat: seconds to the first token, tokens per second after it, peak resident bytes (None where unknown)."""

    first_s: float
    tokens_per_second: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Cost:
    """A model's repeats, summed up."""

    engine: str
    first_token: Spread
    speed: Spread
    peak_bytes: int | None


def plan_probe(subject: Subject, messages: Messages, scratch: Path) -> tuple[Probe, str]:
    """How to time a subject, and a note for the report ("" when there is nothing to say).  May write an f16 GGUF into scratch."""
    if subject.engine == "llama.cpp":
        return Probe(subject.name, subject.weights, f"llama.cpp ({subject.format})", messages), ""
    if is_quantized(subject.weights):
        note = f"{subject.name}: speed and memory measured in transformers on this machine; vLLM is the engine that would serve {subject.format}."
        return Probe(subject.name, subject.weights, "transformers", messages), note
    from tasks.shared.gguf import write_gguf

    file, part = scratch / f"{subject.name}.f16.gguf", scratch / f"{subject.name}.part.gguf"
    try:
        if not file.is_file():
            write_gguf(subject.weights, part, "f16")
            part.rename(file)
    except TechniqueError as error:
        note = f"{subject.name}: speed measured in transformers, for no f16 GGUF can be written ({error})."
        return Probe(subject.name, subject.weights, "transformers", messages), note
    return Probe(subject.name, file, "llama.cpp (f16 GGUF)", messages), ""


def measure_costs(probes: Sequence[Probe], tokens: int, repeats: int, threads: int, context: int) -> Mapping[str, Cost]:
    """Time every model `repeats` times, in turns.  tokens: length of the timed answer.  Raises ModelError that names the model."""
    rounds = [probe for _ in range(repeats) for probe in probes]
    samples: dict[str, list[Sample]] = {probe.name: [] for probe in probes}
    for probe in track(rounds, "speed", len(rounds)):
        samples[probe.name].append(take_sample(probe, tokens, threads, context))
    return {probe.name: summarise(probe.engine, samples[probe.name]) for probe in probes}


def summarise(engine: str, samples: Sequence[Sample]) -> Cost:
    """Medians and ranges; the peak is the largest seen."""
    peaks = [sample.peak_bytes for sample in samples if sample.peak_bytes is not None]
    return Cost(
        engine,
        spread([s.first_s for s in samples]),
        spread([s.tokens_per_second for s in samples]),
        max(peaks, default=None),
    )


def spread(values: Sequence[float]) -> Spread:
    """Median and range."""
    return Spread(median=median(values), low=min(values), high=max(values))


def take_sample(probe: Probe, tokens: int, threads: int, context: int) -> Sample:
    """One fresh process: load, warm up, time one answer of exactly `tokens` tokens, read the memory peak."""
    if probe.file.suffix == ".gguf":
        return _sample_llama(probe, tokens, threads, context)
    command = json.dumps(
        {
            "model": str(probe.file),
            "messages": probe.messages,
            "tokens": tokens,
            "warm_up": WARM_UP_TOKENS,
            "threads": threads,
        }
    )
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tasks.evaluate.runtime_probe", command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PROBE_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"{probe.name} ({probe.file})",
            f"no answer of {tokens} tokens within {PROBE_LIMIT_S:.0f} s",
            "",
            "lower speed_tokens",
        ) from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelError(
            f"{probe.name} ({probe.file})", f"its speed cannot be measured: {reason}", "a model that loads and answers"
        )
    found = json.loads(done.stdout.splitlines()[-1])
    return make_sample(found["first_s"], found["last_s"], tokens, found["peak_bytes"])


def _sample_llama(probe: Probe, tokens: int, threads: int, context: int) -> Sample:
    from tasks.shared.llama_server import start

    with start(probe.file, threads=threads, parallel=1, context=context) as server:
        client = LlamaClient(server.url)
        prompt = client.render(probe.messages)
        client.arrival_times(prompt, WARM_UP_TOKENS)
        first, last = client.arrival_times(prompt, tokens)
        return make_sample(first, last, tokens, peak_memory(server.pid))


def make_sample(first_s: float, last_s: float, tokens: int, peak: int | None) -> Sample:
    """Decode speed counts the tokens after the first, over the time between first and last."""
    return Sample(first_s, (tokens - 1) / max(last_s - first_s, 1e-9), peak)


def peak_memory(pid: int | str = "self") -> int | None:
    """Largest resident size of a running process, in bytes, mapped weights included; None where the system does not tell.

    Not getrusage's ru_maxrss: on Linux a child inherits that figure from the process that started it.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith("VmHWM:")]
    return int(found[0].split()[1]) * 1024 if found else None
