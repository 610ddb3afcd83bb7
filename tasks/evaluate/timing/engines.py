"""Timing of one model in one engine, in a dedicated process."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.evaluate.models_under_test.model_under_test import Prompt
from tasks.evaluate.timing.energy import Source, open_meter
from tasks.evaluate.timing.streams import Streamed, joint_speed, stream_answer, stream_together
from tasks.shared.engines.engine import EngineName
from tasks.shared.engines.protocol import Opening, Session
from tasks.shared.engines.registry import ENGINES
from tasks.shared.engines.vllm_server import NAME
from tasks.shared.errors import ModelError

Sample = dict[str, float]
"""Figures of one repeat by name; figures that this machine cannot measure are absent."""
ROOT = Path(__file__).parents[3]
WH_PER_JOULE = 1 / 3600


@dataclass(frozen=True)
class Probe:
    """A model as one engine serves it.

    weights: a .gguf file for llama.cpp, a folder for the others.  form: description of converted weights, such as "f16 GGUF"; else empty.
    first: this is the model's main engine, whose figures keep their plain names.
    """

    name: str
    engine: EngineName
    weights: Path
    form: str
    prompt: Prompt
    first: bool = True

    @property
    def words(self) -> str:
        """The engine, with the weight format if the weights were converted."""
        return f"{self.engine} ({self.form})" if self.form else self.engine


@dataclass(frozen=True)
class Effort:
    """Timing settings, the same for every model: see tasks/evaluate/runtime.py."""

    tokens: int
    warm_up_tokens: int
    batch_sizes: Sequence[int]
    context: int
    limit_s: float
    energy: Source
    vllm_command: str
    threads: int
    device: str


def take_sample(probe: Probe, effort: Effort) -> Sample:
    """Return the figures of one repeat: load, warm up, one stream, then several at once.

    Raises StillroomError for a model that does not load or does not answer in time.
    """
    if ENGINES[probe.engine].capabilities.stream:
        return _in_server(probe, effort)
    return _in_transformers(probe, effort)


def _in_server(probe: Probe, effort: Effort) -> Sample:
    """Time an engine's server: one stream first, then each batch size.

    An engine with fixed slots gets a server per number of streams, and the reported memory is that of the first, for one stream; one
    that shares its memory allocates that of all streams at start.
    """
    engine = ENGINES[probe.engine]
    counts = (1, *effort.batch_sizes)
    found: Sample = {}
    for together in [(count,) for count in counts] if engine.capabilities.slots == "fixed" else [counts]:
        opening = Opening(
            effort.threads, effort.device, effort.context, parallel=together[-1], limit_s=effort.limit_s, command=effort.vllm_command
        )  # fmt: skip
        begun = time.perf_counter()
        with engine.open(probe.weights, opening) as session:
            load_s = time.perf_counter() - begun
            for streams in together:
                alone = streams == 1
                found |= _one(session, probe, effort, load_s) if alone else _several(session, probe, effort, streams)
    return found


def _one(session: Session, probe: Probe, effort: Effort, load_s: float) -> Sample:
    stream_answer(session.url, NAME, probe.prompt, effort.warm_up_tokens, effort.limit_s)
    meter = open_meter(effort.energy, effort.device if ENGINES[probe.engine].capabilities.accelerator else "cpu")
    if meter is not None:
        meter.start()
    answer = stream_answer(session.url, NAME, probe.prompt, effort.tokens, effort.limit_s)
    joules = None if meter is None else meter.stop()
    return describe_one(answer, load_s, session.memory(), joules)


def _several(session: Session, probe: Probe, effort: Effort, streams: int) -> Sample:
    stream_together(session.url, NAME, probe.prompt, effort.warm_up_tokens, effort.limit_s, streams)
    answers = stream_together(session.url, NAME, probe.prompt, effort.tokens, effort.limit_s, streams)
    return describe_several(answers, streams)


def _in_transformers(probe: Probe, effort: Effort) -> Sample:
    """Time a child process (timing/probe.py) that reports when it is ready, then its results."""
    settings = {
        "model": str(probe.weights), "messages": probe.prompt.messages, "tools": probe.prompt.tools, "tokens": effort.tokens, "warm_up": effort.warm_up_tokens,
        "batch_sizes": list(effort.batch_sizes), "threads": effort.threads,
        "device": effort.device, "energy": effort.energy,
    }  # fmt: skip
    command = [sys.executable, "-m", "tasks.evaluate.timing.probe", json.dumps(settings)]
    expired = threading.Event()
    with tempfile.TemporaryFile() as errors:
        begun = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(effort.limit_s, expire)
        timer.start()
        try:
            assert process.stdout is not None
            process.stdout.readline()
            load_s = time.perf_counter() - begun
            last = process.stdout.read()
            process.wait()
        finally:
            timer.cancel()
            process.kill()
            code = process.wait()
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").strip().splitlines()
    if expired.is_set() or not last:
        raise _failed(probe, effort, expired.is_set(), code, said)
    found = json.loads(last)
    one = describe_one(Streamed(**found["one"]), load_s, found["peak_bytes"], found["joules"])
    if found["device_peak_bytes"]:
        one["peak_device_memory_bytes"] = found["device_peak_bytes"]
    for streams, answers in found["several"].items():
        one |= describe_several([Streamed(**answer) for answer in answers], int(streams))
    return one


def _failed(probe: Probe, effort: Effort, expired: bool, code: int, said: Sequence[str]) -> ModelError:
    where, wanted = f"{probe.name} ({probe.weights})", "a model that loads and answers"
    if expired:
        return ModelError(
            where, f"not done within {effort.limit_s:.0f} s in transformers", "", "raise limit_s, or lower tokens"
        )
    if code < 0:
        return ModelError(where, "its process was killed: out of memory, most likely", wanted)
    return ModelError(where, f"it cannot be timed in transformers: {said[-1] if said else f'exit code {code}'}", wanted)


def describe_one(answer: Streamed, load_s: float, peak_bytes: int | None, joules: float | None) -> Sample:
    """Return the figures of one stream.

    joules: of the whole machine during the answer; reported in Wh per 1,000 such answers in sequence.
    """
    found = {
        "load_s": load_s, "time_to_first_token_s": answer.arrivals[0], "tokens_per_second": answer.tokens_per_second,
        "time_per_token_s": 1 / answer.tokens_per_second, "end_to_end_s": answer.end_s,
        "prompt_tokens": answer.prompt_tokens, "answer_tokens": answer.tokens,
    }  # fmt: skip
    optional = {
        "peak_memory_bytes": peak_bytes,
        "energy_wh_per_1000": None if joules is None else 1000 * joules * WH_PER_JOULE,
    }
    return found | {name: float(value) for name, value in optional.items() if value is not None}


def describe_several(answers: Sequence[Streamed], streams: int) -> Sample:
    """Return the figures of several streams: total decode speed, and time until all are done."""
    return {
        f"tokens_per_second_batch_{streams}": joint_speed(answers),
        f"end_to_end_s_batch_{streams}": max(answer.end_s for answer in answers),
    }
