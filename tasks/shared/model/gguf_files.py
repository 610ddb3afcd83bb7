"""Header of a GGUF file: metadata and tensors, read in milliseconds, and damage."""

import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from tasks.shared.errors import ModelError
from tasks.shared.model.weight_files import DOWNLOAD, check_content

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
LONGEST = 1 << 30
OTHER_KINDS = {
    "adapter": ("a LoRA adapter, no whole model", "merge it into its base: llama-export-lora, or PEFT's merge_and_unload()"),
    "mmproj": ("the image projector of a multimodal model, no language model", "give the language model's file"),
    "imatrix": ("an importance matrix, no model", "give the model's file"),
}  # fmt: skip
SPLIT_FIX = "merge the parts: llama-gguf-split --merge <part 00001-of-...> whole.gguf"


@dataclass(frozen=True)
class GgufHeader:
    """Metadata and tensors of a GGUF file.

    fields: by key; an array is its length.  tensors: shape by name, slowest dimension first, as in torch.
    """

    fields: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]

    @property
    def architecture(self) -> str:
        """Architecture as llama.cpp names it."""
        return str(self.fields.get("general.architecture", ""))


def check_gguf(file: Path) -> None:
    """Raise ModelError unless the file is one whole GGUF of a language model.

    Refuses other formats, git-lfs pointers, truncated files, one part of a split model, and adapters.
    """
    header = read_gguf_header(file)
    parts = int(header.fields.get("split.count") or 0)
    if parts > 1:
        part = int(header.fields.get("split.no") or 0) + 1
        raise ModelError(str(file), f"part {part} of a GGUF split in {parts}", "the whole model in one file", SPLIT_FIX)
    kind = str(header.fields.get("general.type") or "model")
    if kind in OTHER_KINDS or header.architecture == "clip":
        got, fix = OTHER_KINDS.get(kind, OTHER_KINDS["mmproj"])
        raise ModelError(str(file), got, "a whole language model", fix)
    if not header.tensors:
        raise ModelError(str(file), "a GGUF without weights (vocabulary only)", "a whole language model", DOWNLOAD)


def read_gguf_header(file: Path) -> GgufHeader:
    """Return a GGUF's header.  Raises ModelError for another format or a truncated file."""
    check_content(file)
    state = file.stat()
    return _read(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=8)
def _read(file: Path, size: int, changed: int) -> GgufHeader:
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            fix = f"path={file.parent}" if (file.parent / "config.json").is_file() else "point at the model's folder"
            raise ModelError(str(file), "not a GGUF file", "a llama.cpp .gguf file or a folder", fix)
        try:
            return _parse(file, stream, size)
        except (struct.error, EOFError, UnicodeDecodeError, OverflowError, MemoryError) as error:
            raise ModelError(
                str(file),
                f"truncated or damaged: {size:,} bytes, ending within its header",
                "a whole GGUF file",
                DOWNLOAD,
            ) from error


def _parse(file: Path, stream: BinaryIO, size: int) -> GgufHeader:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    version = _scalar(stream, "<I")
    if version not in (2, 3):
        raise ModelError(
            str(file),
            f"GGUF version {version}, or big-endian",
            "version 2 or 3, little-endian",
            "convert it with a current llama.cpp",
        )
    tensor_count, field_count = _scalar(stream, "<Q"), _scalar(stream, "<Q")
    fields = {_string(stream): _value(stream, _scalar(stream, "<I")) for _ in range(field_count)}
    tensors: dict[str, tuple[int, ...]] = {}
    end = 0
    for _ in range(tensor_count):
        name = _string(stream)
        shape = tuple(_scalar(stream, "<Q") for _ in range(_scalar(stream, "<I")))[::-1]
        kind, offset = _scalar(stream, "<I"), _scalar(stream, "<Q")
        if kind not in GGMLQuantizationType._value2member_map_:
            raise ModelError(
                str(file),
                f"tensor {name} of unknown type {kind}",
                "types that the installed gguf package knows",
                "pip install -U gguf",
            )
        block, packed = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        elements = 1
        for length in shape:
            elements *= length
        tensors[name] = shape
        end = max(end, offset + elements // block * packed)
    alignment = int(fields.get("general.alignment") or 32)
    wanted = -(-stream.tell() // alignment) * alignment + end
    if size < wanted:
        raise ModelError(str(file), f"truncated: {size:,} bytes", f"{wanted:,} bytes by its header", DOWNLOAD)
    return GgufHeader(fields, tensors)


def _scalar(stream: BinaryIO, form: str) -> Any:
    (value,) = struct.unpack(form, stream.read(struct.calcsize(form)))
    return value


def _string(stream: BinaryIO) -> str:
    length = _scalar(stream, "<Q")
    content = stream.read(length) if length <= LONGEST else b""
    if len(content) < length:
        raise EOFError
    return content.decode("utf-8", errors="replace")


def _value(stream: BinaryIO, kind: int) -> Any:
    """Read a metadata value; of an array, skip the content and return the length."""
    if kind in SCALARS:
        return _scalar(stream, SCALARS[kind])
    if kind == STRING:
        return _string(stream)
    if kind != ARRAY:
        raise EOFError
    inner, count = _scalar(stream, "<I"), _scalar(stream, "<Q")
    if inner in SCALARS:
        stream.seek(count * struct.calcsize(SCALARS[inner]), 1)
    else:
        for _ in range(count):
            _value(stream, inner)
    return count
