"""Header of a GGUF file: metadata and tensors, read in milliseconds, and damage."""

import mmap
import re
import struct
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from tasks.shared.errors import ModelError
from tasks.shared.model.gguf_types import type_numbers
from tasks.shared.model.weight_files import DOWNLOAD, check_content

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
LONGEST = 1 << 30
"""Bytes of the longest string that a header may hold."""
PER_LAYER = 1024
"""Numbers of the longest list that is kept: a setting per layer, but no vocabulary."""
OTHER_KINDS = {
    "adapter": ("a LoRA adapter, no whole model", "merge it into its base: llama-export-lora, or PEFT's merge_and_unload()"),
    "mmproj": ("the image projector of a multimodal model, no language model", "give the language model's file"),
    "imatrix": ("an importance matrix, no model", "give the model's file"),
}  # fmt: skip
SETTINGS = {
    "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length", "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length", "moe_intermediate_size": "expert_feed_forward_length",
    "n_positions": "context_length", "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
}  # fmt: skip
"""Fields of a header by the names of transformers' configurations."""
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
"""End of the name of one part of a split model; llama.cpp opens the first and finds the others by their names."""
SPLIT_FIX = "merge the parts: llama-gguf-split --merge <part 00001-of-...> whole.gguf"


@dataclass(frozen=True)
class GgufHeader:
    """Metadata and tensors of a GGUF file.

    fields: by key; a list of at most `PER_LAYER` numbers is a tuple, any other list its length.
    tensors: shape by name, slowest dimension first, as in torch.
    """

    fields: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]

    @property
    def architecture(self) -> str:
        """Architecture as llama.cpp names it."""
        return str(self.fields.get("general.architecture", ""))


def header_settings(header: GgufHeader) -> dict[str, int | float]:
    """Return a model's settings from its header, by the names in transformers' configurations."""
    found = {name: header.fields.get(f"{header.architecture}.{field}") for name, field in SETTINGS.items()}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def gguf_parts(file: Path) -> list[Path]:
    """List the files of the model that a GGUF belongs to: all parts, or the file alone."""
    found = PART.search(file.name)
    if found is None:
        return [file]
    stem, count = file.name[: found.start()], int(found[2])
    return [file.with_name(f"{stem}-{part:05d}-of-{count:05d}.gguf") for part in range(1, count + 1)]


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
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _parse(file, Cursor(content, 4), size)
        except (struct.error, EOFError, UnicodeDecodeError, OverflowError, MemoryError) as error:
            raise ModelError(
                str(file),
                f"truncated or damaged: {size:,} bytes, ending within its header",
                "a whole GGUF file",
                DOWNLOAD,
            ) from error


@cache
def _form(kind: str) -> struct.Struct:
    return struct.Struct(kind)


class Cursor:
    """A position in a file's content, from which values are read one after the other.

    The methods raise struct.error or EOFError at the end of the content.
    """

    def __init__(self, content: mmap.mmap, at: int) -> None:
        self.content = content
        self.at = at

    def scalar(self, kind: str) -> Any:
        """Read one number."""
        form = _form(kind)
        (value,) = form.unpack_from(self.content, self.at)
        self.at += form.size
        return value

    def string(self) -> str:
        """Read a string behind its length."""
        length = self.scalar("<Q")
        found = self.content[self.at : self.at + length] if length <= LONGEST else b""
        if len(found) < length:
            raise EOFError
        self.at += length
        return found.decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """Read a field's value: see `GgufHeader`."""
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise EOFError
        inner, count = self.scalar("<I"), self.scalar("<Q")
        if inner in SCALARS and count <= PER_LAYER:
            return tuple(self.scalar(SCALARS[inner]) for _ in range(count))
        self._skip(inner, count)
        return count

    def _skip(self, inner: int, count: int) -> None:
        """Skip a list; of strings there may be a quarter of a million."""
        if inner in SCALARS:
            self.at += count * _form(SCALARS[inner]).size
        elif inner == STRING:
            length, at = _form("<Q"), self.at
            for _ in range(count):
                at += length.size + length.unpack_from(self.content, at)[0]
            self.at = at
        else:
            for _ in range(count):
                self.value(inner)


def _parse(file: Path, cursor: Cursor, size: int) -> GgufHeader:
    from gguf.constants import GGML_QUANT_SIZES

    types = type_numbers()
    version = cursor.scalar("<I")
    if version not in (2, 3):
        raise ModelError(
            str(file),
            f"GGUF version {version}, or big-endian",
            "version 2 or 3, little-endian",
            "convert it with a current llama.cpp",
        )
    tensor_count, field_count = cursor.scalar("<Q"), cursor.scalar("<Q")
    fields = {cursor.string(): cursor.value(cursor.scalar("<I")) for _ in range(field_count)}
    tensors: dict[str, tuple[int, ...]] = {}
    end = 0
    for _ in range(tensor_count):
        name = cursor.string()
        shape = tuple(cursor.scalar("<Q") for _ in range(cursor.scalar("<I")))[::-1]
        kind, offset = cursor.scalar("<I"), cursor.scalar("<Q")
        if kind not in types._value2member_map_:
            raise ModelError(
                str(file),
                f"tensor {name} of unknown type {kind}",
                "types that the installed gguf package knows",
                "pip install -U gguf",
            )
        block, packed = GGML_QUANT_SIZES[types(kind)]
        elements = 1
        for length in shape:
            elements *= length
        tensors[name] = shape
        end = max(end, offset + elements // block * packed)
    given = fields.get("general.alignment")
    alignment = given if isinstance(given, int) and given else 32
    wanted = -(-cursor.at // alignment) * alignment + end
    if size < wanted:
        raise ModelError(str(file), f"truncated: {size:,} bytes", f"{wanted:,} bytes by its header", DOWNLOAD)
    return GgufHeader(fields, tensors)
