"""Engines that run models, and which of them reads a given path."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.shared.model.weights import is_gguf

Engine = Literal["transformers", "llama.cpp", "vllm"]


@dataclass(frozen=True)
class Weights:
    """Weights as an engine opens them.

    engine: the one that reads them without conversion.  path: what it is given, a folder with safetensors or a GGUF file.
    fault: reason why no engine can read them; empty if one can.  `engine` is then a guess, and `path` the path that was given.
    """

    engine: Engine
    path: Path
    fault: str = ""


def find_weights(path: Path, llama: bool = False) -> Weights:
    """Find the weights at a path and the engine that reads them, by file names alone.

    path: a GGUF file, a folder with safetensors (transformers, whatever else it holds), or a folder with one GGUF file.
    llama: they are for llama.cpp, so safetensors do not count.
    """
    engine: Engine = "llama.cpp" if llama else "transformers"
    if not path.exists():
        return Weights(engine, path, "no such file or folder")
    if is_gguf(path):
        return Weights("llama.cpp", path)
    if not llama and any(path.glob("*.safetensors")):
        return Weights("transformers", path)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return Weights("llama.cpp", files[0])
    if files:
        return Weights("llama.cpp", path, f"{len(files)} GGUF files")
    return Weights(engine, path, "no *.gguf" if llama else "no *.safetensors and no *.gguf")
