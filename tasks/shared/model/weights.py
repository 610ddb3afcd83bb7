"""Weight files: whether they are safe to read, whether they are quantized, and GGUF files read quickly."""

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
    """Return True if a model is a GGUF file.  Every other model is a folder; `check_source` looks into the file."""
    return path.is_file()


def check_source(path: Path) -> None:
    """Refuse what cannot or must not be loaded: a missing path, pickled weights, a folder without safetensors.

    Raises ModelError.  Pickles run code when they are read, so they are never the fallback.
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
            "safetensors only",
            "convert once in a place you trust: AutoModelForCausalLM.from_pretrained(...).save_pretrained(..., safe_serialization=True)",
        )
    raise ModelError(str(path), "no *.safetensors in this folder", "a Hugging Face model folder with weights")


def _magic(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(4)


def is_quantized(folder: Path) -> bool:
    """Whether a Hugging Face folder holds compressed weights."""
    return "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def read_gguf(file: Path) -> "GGUFReader":
    """Fields and tensors of a GGUF file.  Raises ValueError, IndexError, KeyError or OSError for what is none.

    A vocabulary is cut out of the file word by word, and numpy builds an object in Python around each cut of a mapped file: for 49,152
    tokens and their merges three times the work of plain arrays, 2 s at every start.
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
    """Within the block transformers reads GGUF files several times faster; what it reads is the same to the bit.

    By itself it parses the file once for the configuration and once more for tokenizer or weights, through mapped arrays (see
    `read_gguf`), and makes llama.cpp's table of tensor names anew for every module of the model.  For 135M weights these take
    ten times as long as the weights themselves.
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
