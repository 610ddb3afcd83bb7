"""Weight files: checks for safety and quantization, and fast reading of GGUF files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import ModelError

if TYPE_CHECKING:
    from gguf import GGUFReader


def is_gguf(path: Path) -> bool:
    """Return True for a file, as opposed to a model folder; `check_source` checks its content."""
    return path.is_file()


def check_source(path: Path) -> None:
    """Raise ModelError for a missing path, pickled weights, or a folder without safetensors.

    Pickles run code when they are loaded, so they are never a fallback.
    """
    if not path.exists():
        raise ModelError(
            str(path),
            "no such file or folder",
            "a Hugging Face folder with safetensors, or a .gguf file",
            "correct the model's path",
        )
    if is_gguf(path):
        if _magic(path) != b"GGUF":
            raise ModelError(
                str(path), "not a GGUF file", "a llama.cpp .gguf file or a folder", "point at the model's folder"
            )
        return
    if not (path / "config.json").is_file():
        raise ModelError(str(path), "no config.json in this folder", "a Hugging Face model folder")
    if any(path.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for file in path.glob(pattern))
    if pickles:
        raise ModelError(
            str(path),
            f"weights in pickles ({', '.join(pickles[:3])}), which run code when loaded",
            "safetensors",
            "convert once in a place you trust: AutoModelForCausalLM.from_pretrained(...).save_pretrained(..., safe_serialization=True)",
        )
    raise ModelError(str(path), "no *.safetensors in this folder", "a Hugging Face model folder with weights")


def _magic(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(4)


def is_quantized(folder: Path) -> bool:
    """Return True if a Hugging Face folder holds quantized weights."""
    return "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def read_gguf(file: Path) -> "GGUFReader":
    """Read fields and tensors of a GGUF file, faster than `GGUFReader` by itself.

    Raises ValueError, IndexError, KeyError or OSError for any other file.
    `GGUFReader` slices the vocabulary out of a memory map entry by entry, and numpy creates a Python object for each slice: for
    49,152 tokens and their merges this takes three times as long as with plain arrays, or 2 s more at every start.
    """
    import numpy
    from gguf.gguf_reader import GGUFReader

    class Reader(GGUFReader):
        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = mapped.view(numpy.ndarray)

    return Reader(file)


@contextmanager
def quick_gguf() -> Iterator[None]:
    """Make transformers read GGUF files several times faster, with identical results.

    By itself, transformers parses the file once for the configuration and once more for tokenizer or weights, through mapped
    arrays (see `read_gguf`), and rebuilds llama.cpp's table of tensor names for every module of the model.  For 135M weights this
    takes ten times as long as reading the weights.
    """
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    before = {name: getattr(gguf, name) for name in names}
    reader = cache(lambda file: read_gguf(Path(file)))
    for name, quick in zip(names, (reader, cache(gguf.get_tensor_name_map)), strict=True):
        setattr(gguf, name, quick)
    try:
        yield
    finally:
        for name, own in before.items():
            setattr(gguf, name, own)
