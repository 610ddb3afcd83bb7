"""All engines by name, and the check of what a technique needs against what they offer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tasks.shared.engines.engine import EngineName, WeightForm
from tasks.shared.engines.llama_engine import LLAMA_CPP
from tasks.shared.engines.onnx_engine import ONNXRUNTIME
from tasks.shared.engines.openvino_engine import OPENVINO
from tasks.shared.engines.protocol import CAPABILITIES, Capability, Engine
from tasks.shared.engines.transformers_engine import TRANSFORMERS
from tasks.shared.engines.vllm_engine import VLLM

ENGINES: Mapping[EngineName, Engine] = {
    engine.name: engine for engine in (TRANSFORMERS, LLAMA_CPP, ONNXRUNTIME, OPENVINO, VLLM)
}


@dataclass(frozen=True)
class Needs:
    """Requirements of a technique for the engine of each of its models.

    capabilities: names of `Capabilities` fields.
    engines: engines that it may use; empty for all.
    dequantized: True if an engine may unpack the weights first.
    as_gguf: True if dense folders are converted to GGUF for an engine that reads only that.
    ports: inputs whose models must find an engine.
    """

    capabilities: tuple[Capability, ...] = ()
    engines: tuple[EngineName, ...] = ()
    dequantized: bool = True
    as_gguf: bool = False
    ports: tuple[str, ...] = ("baseline", "candidates", "repeats", "reference")


@runtime_checkable
class AsksModels(Protocol):
    """A technique that queries models."""

    def engine_needs(self) -> Needs:
        """Return what it needs with these settings."""
        ...


def engines_for(form: WeightForm, needs: Needs) -> list[Engine]:
    """Return the engines that run weights of this form and offer what is needed."""
    return [engine for engine in ENGINES.values() if not refusal(engine, form, needs)]


def refusal(engine: Engine, form: WeightForm, needs: Needs) -> str:
    """Return why an engine cannot run weights of this form as needed; empty if it can."""
    offered = engine.capabilities
    forms = (*offered.reads, *(offered.dequantizes if needs.dequantized else ()))
    forms += ("dense",) if needs.as_gguf and "gguf" in offered.reads else ()
    if needs.engines and engine.name not in needs.engines:
        return f"{engine.name} is not among {', '.join(needs.engines)}"
    if form not in forms:
        return f"{engine.name} does not run {form} weights"
    if missing := offered.missing(needs.capabilities):
        return f"{engine.name} lacks {' and '.join(missing)}"
    return ""


def capability_table() -> str:
    """Return docs/engines.md's table of engines and capabilities, in Markdown."""
    rows = [["", *ENGINES], ["---"] * (1 + len(ENGINES))]
    rows.append(["reads", *(_forms(engine) for engine in ENGINES.values())])
    for name in CAPABILITIES:
        rows.append(
            [f"`{name}`", *("yes" if getattr(engine.capabilities, name) else "" for engine in ENGINES.values())]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _forms(engine: Engine) -> str:
    found = ", ".join(engine.capabilities.reads)
    unpacked = ", ".join(engine.capabilities.dequantizes)
    return f"{found}; {unpacked} dequantized" if unpacked else found
