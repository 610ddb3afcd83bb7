"""Weights at a path: checks before anything loads them, and fast reading of GGUF files."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.shared.errors import ModelError
from tasks.shared.model.configuration import (
    BITSANDBYTES,
    quantization_method,
    read_config,
    refuse_unnamed_quantization,
)
from tasks.shared.model.gguf_files import check_gguf
from tasks.shared.model.gguf_types import type_numbers
from tasks.shared.model.weight_files import check_folder, read_json, tensors_of

if TYPE_CHECKING:
    from gguf import GGUFReader


def is_gguf(path: Path) -> bool:
    """Return True for a file, as opposed to a model folder; `check_source` checks its content."""
    return path.is_file()


def check_source(path: Path) -> None:
    """Raise ModelError for a path without whole, safe weights, by names and headers only.

    Refuses a missing path, pickles (they run code when loaded), adapters, git-lfs pointers, truncated or missing files, parts of a
    split GGUF, and quantized tensors that the configuration does not mention.
    """
    if not path.exists():
        raise ModelError(
            str(path),
            "no such file or folder",
            "a Hugging Face folder with safetensors, or a .gguf file",
            "correct the model's path",
        )
    if is_gguf(path):
        check_gguf(path)
        return
    config = read_config(path)
    check_folder(path)
    refuse_unnamed_quantization(path, config, tensors_of(path))


def is_quantized(folder: Path) -> bool:
    """Return True if a Hugging Face folder holds quantized weights."""
    return bool(quantization(folder))


def quantization(folder: Path) -> str:
    """Return the method that quantized a Hugging Face folder's weights; empty for dense ones."""
    return quantization_method(read_json(folder / "config.json"))


def stored_form(folder: Path) -> Literal["dense", "packed", "bitsandbytes"]:
    """Return the form of a Hugging Face folder's weights, as steps and engines ask for it."""
    method = quantization(folder)
    if method == BITSANDBYTES:
        return "bitsandbytes"
    return "packed" if method else "dense"


def read_gguf(file: Path) -> "GGUFReader":
    """Read fields and tensors of a GGUF file, faster than `GGUFReader` by itself.

    Raises ValueError, IndexError, KeyError or OSError for any other file.
    `GGUFReader` slices the vocabulary out of a memory map entry by entry, and numpy creates a Python object for each slice: for
    49,152 tokens and their merges this takes three times as long as with plain arrays, or 2 s more at every start.
    """
    import numpy
    from gguf.gguf_reader import GGUFReader

    type_numbers()

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
