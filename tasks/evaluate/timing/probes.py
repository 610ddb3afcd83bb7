"""Choice of the engine in which a model is timed."""

from pathlib import Path
from typing import Literal

from tasks.evaluate.models_under_test.model_under_test import ModelUnderTest, Prompt
from tasks.evaluate.timing.engines import Probe
from tasks.shared.engines.engine import GRAPH_ENGINES, weight_form
from tasks.shared.engines.registry import ENGINES
from tasks.shared.errors import TechniqueError
from tasks.shared.files import replacing
from tasks.shared.isolation import Failure, run_isolated

Choice = Literal["auto", "transformers", "llama.cpp", "vllm"]


def make_probe(model: ModelUnderTest, wanted: Choice, prompt: Prompt, scratch: Path) -> tuple[Probe | None, str]:
    """Return the probe of a model in an engine, or None, with a note ("" for none).

    An engine gets the weights as stored; for llama.cpp, a dense folder is converted to an f16 GGUF file in scratch.
    """
    name, weights = model.name, model.weights
    if model.failure:
        return None, f"{name}: not timed: {model.failure}."
    form = weight_form(weights)
    engine = "llama.cpp" if wanted == "auto" else wanted
    if form in ENGINES[engine].capabilities.reads:
        return Probe(name, engine, weights, "", prompt), ""
    if form == "gguf":
        return None, f"{name}: not timed in {wanted}, which does not serve GGUF files."
    if form in GRAPH_ENGINES:
        return None, f"{name}: not timed: {GRAPH_ENGINES[form]} serves no stream of tokens here."
    if form == "packed":
        reason = f"llama.cpp does not read {model.format}; vLLM would serve it"
    elif form == "bitsandbytes":
        reason = f"llama.cpp does not read {model.format}; bitsandbytes' own kernels for GPUs are not timed"
    else:
        file = scratch / f"{name.replace(' ', '_')}.f16.gguf"
        refused = "" if file.is_file() else run_isolated(write_f16, weights, file)
        if isinstance(refused, Failure):
            return None, f"{name}: not timed in llama.cpp: converting to f16 GGUF failed ({refused.reason})."
        if not refused:
            return Probe(name, "llama.cpp", file, "f16 GGUF", prompt), ""
        reason = f"cannot be converted to f16 GGUF ({refused})"
    if wanted == "llama.cpp":
        return None, f"{name}: not timed in llama.cpp: {reason}."
    return Probe(name, "transformers", weights, "", prompt), f"{name}: timed in transformers: {reason}."


def write_f16(folder: Path, file: Path) -> str:
    """Convert a dense folder to f16 GGUF atomically; return the reason if impossible, else ""."""
    from tasks.shared.gguf.writer import write_gguf

    try:
        with replacing(file) as temporary:
            write_gguf(folder, temporary, "f16")
    except TechniqueError as error:
        return " ".join(str(error).split())
    return ""
