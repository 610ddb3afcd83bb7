"""Weight files of a few bytes, whole by their headers: for tests that load no model."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

SIZES = {"F32": 4, "BF16": 2, "I32": 4}
ONE = {"model.embed_tokens.weight": ("F32", (2, 2))}


def write_safetensors(file: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]] = ONE) -> Path:
    """A safetensors file of zeros; tensors: dtype and shape by name."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        start = end
        size = SIZES[dtype]
        for length in shape:
            size *= length
        end += size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    return file


def bare_folder(folder: Path) -> Path:
    """A model folder with a configuration and one tensor, which a plan accepts and nothing can load."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    write_safetensors(folder / "model.safetensors")
    return folder


def bare_gguf(file: Path) -> Path:
    """A GGUF file with an architecture and one tensor of four numbers."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    head += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    head += text("token_embd.weight") + struct.pack("<IQQIQ", 2, 2, 2, 0, 0)
    file.write_bytes(head + bytes(-len(head) % 32) + bytes(16))
    return file
