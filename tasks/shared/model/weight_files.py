"""Weight files of a model folder: those that are loaded, their headers, and damage."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEADER_LIMIT = 100_000_000
"""Longest header, in bytes, that the safetensors format allows."""
DOWNLOAD = "download the file again"
POINTER_FIX = "git lfs pull in the folder, or hf download <the model's id>"
TEXT_FILES = (
    "config.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "*.index.json",
    "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt",
)  # fmt: skip
"""Files, besides the weights, that loading reads."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor by a file's header.  dtype: as safetensors names it, such as "BF16"."""

    dtype: str
    shape: tuple[int, ...]


def loaded_files(folder: Path) -> list[Path]:
    """List the safetensors files that transformers loads from a folder.

    Transformers prefers the file that the configuration names (`transformers_weights`), then model.safetensors, then the shards of
    model.safetensors.index.json.  A folder without any of these yields nothing.
    Raises ModelError for an index that cannot be read.
    """
    named = _explicit(folder)
    if named and not named.endswith(".index.json"):
        return [folder / named]
    if not named and _is_named(folder / SINGLE):
        return [folder / SINGLE]
    index = folder / (named or INDEX)
    if not index.is_file():
        return []
    return [folder / name for name in sorted(set(_weight_map(index).values()))]


def unused_files(folder: Path) -> list[str]:
    """List names of weight files that are not loaded: second copies and other formats."""
    loaded = {file.name for file in loaded_files(folder)}
    patterns = ("*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth")
    found = sorted(file.name for pattern in patterns for file in folder.glob(pattern))
    return [name for name in found if name not in loaded and name not in {"training_args.bin", "tokenizer.bin"}]


def check_folder(folder: Path) -> None:
    """Raise ModelError unless every weight file is there and whole, and every tensor in one.

    Also refuses git-lfs pointers and web pages among the folder's texts (tokenizer.json and the like).
    """
    for file in sorted(file for pattern in TEXT_FILES for file in folder.glob(pattern)):
        check_content(file)
    if (folder / "generation_config.json").is_file():  # transformers ignores a damaged one, and the end tokens in it
        read_json(folder / "generation_config.json")
    files = loaded_files(folder)
    if not files:
        raise _nothing_to_load(folder)
    if absent := [file.name for file in files if not _is_named(file)]:
        raise ModelError(
            str(folder),
            f"{len(absent)} of {len(files)} weight files are missing: {shown(absent)}",
            "every file that the index names",
            "download the missing files, or copy the whole folder",
        )
    places: dict[str, str] = {}
    for file in files:
        for name in read_header(file):
            if name in places:
                raise ModelError(
                    str(folder),
                    f"tensor {name} is in {places[name]} and in {file.name}",
                    "every tensor once",
                    "download the model again: nothing says which of the two is right",
                )
            places[name] = file.name
    _check_index(folder, places)


def tensors_of(folder: Path) -> dict[str, TensorInfo]:
    """Return the tensors that transformers loads from a folder, by name, from headers."""
    return {name: tensor for file in loaded_files(folder) for name, tensor in read_header(file).items()}


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a safetensors file, by name, without reading weights.

    Raises ModelError for a git-lfs pointer, a web page, an empty or truncated file, or another format.
    """
    check_content(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= HEADER_LIMIT:
            raise _foreign(file)
        text = stream.read(length)
    if not text.startswith(b"{"):
        raise _foreign(file)
    if len(text) < length:
        raise _truncated(file, size, 8 + length)
    try:
        header: dict[str, Any] = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        tensors = {name: TensorInfo(str(entry["dtype"]), tuple(entry["shape"])) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _foreign(file) from error
    if size < 8 + length + end:
        raise _truncated(file, size, 8 + length + end)
    return tensors


def read_tensors(folder: Path, names: Collection[str]) -> "Iterator[tuple[str, Tensor]]":
    """Yield tensors of a model folder, one at a time; names that it lacks are left out."""
    from safetensors import safe_open

    wanted = set(names)
    for file in loaded_files(folder):
        opened: Any = safe_open(file, framework="pt")
        with opened as tensors:
            for name in sorted(wanted & set(tensors.keys())):
                yield name, tensors.get_tensor(name)


def check_content(file: Path) -> None:
    """Raise ModelError for an unreadable or empty file, a git-lfs pointer, or a web page."""
    try:
        with file.open("rb") as stream:
            start = stream.read(512)
    except OSError as error:
        got = "a link to a file that does not exist" if file.is_symlink() and not file.exists() else str(error)
        raise ModelError(
            str(file), got, "a readable file", "copy the files themselves, or download the model again"
        ) from error
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(
            str(file),
            "a git-lfs pointer: a short text in place of a file that was not downloaded",
            "the file itself",
            POINTER_FIX,
        )
    if not start.strip(b"\0 \r\n\t") and file.suffix != ".txt":
        raise ModelError(
            str(file), "an empty file" if not start else "a file of zeros or blanks", "the whole file", DOWNLOAD
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")) and file.suffix != ".jinja":
        raise ModelError(
            str(file), "a web page or server message saved in place of the file", "the file itself", DOWNLOAD
        )


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object.  Raises ModelError for anything else."""
    check_content(file)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(str(file), f"not valid JSON: {error}", "a JSON object", DOWNLOAD) from error
    if not isinstance(found, dict):
        raise ModelError(str(file), f"JSON, but a {type(found).__name__}", "a JSON object", DOWNLOAD)
    return found


def shown(names: list[str], most: int = 4) -> str:
    """Join names for a message; count those beyond `most`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _is_named(file: Path) -> bool:
    """Return True for a file, and for a link whose file is gone, which `check_content` reports."""
    return file.exists() or file.is_symlink()


def _explicit(folder: Path) -> str:
    """Name of the weight file in the configuration; empty if it names none or is damaged."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str((isinstance(config, dict) and config.get("transformers_weights")) or "")


def _weight_map(index: Path) -> dict[str, str]:
    """Return an index's map from tensor to file.  Raises ModelError if there is none."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise ModelError(str(index), "no weight_map in it", "the index of a sharded model", DOWNLOAD)
    if outside := sorted({name for name in found.values() if Path(name).name != name}):
        raise ModelError(str(index), f"names a file elsewhere: {outside[0]}", "files of the same folder", DOWNLOAD)
    return found


def _check_index(folder: Path, places: dict[str, str]) -> None:
    """Raise ModelError if an index names tensors that its files do not hold."""
    named = _explicit(folder)
    index = folder / (named or INDEX)
    if (not named and _is_named(folder / SINGLE)) or not index.name.endswith(".index.json"):
        return
    wrong = [name for name, file in _weight_map(index).items() if places.get(name) != file]
    if wrong:
        raise ModelError(
            str(index),
            f"{len(wrong)} tensors are not in the files that it names: {shown(wrong)}",
            "an index that fits its files",
            "download index and files again, from one revision",
        )


def _nothing_to_load(folder: Path) -> ModelError:
    found = sorted(file.name for file in folder.glob("*.safetensors"))
    if shards := [name for name in found if "-of-" in name]:
        return ModelError(
            str(folder), f"{len(shards)} shards without {INDEX}: {shown(shards)}", "the index beside its shards", f"download {INDEX} too"
        )  # fmt: skip
    if found:
        return ModelError(
            str(folder),
            f"{shown(found)}, but neither {SINGLE} nor {INDEX}",
            "weights under the names that transformers loads",
            f"rename a variant such as model.fp16.safetensors to {SINGLE}; convert Mistral's consolidated.safetensors",
        )
    found = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for file in folder.glob(pattern))
    pickles = [name for name in found if name != "openvino_model.bin"]
    if pickles:
        return ModelError(
            str(folder),
            f"weights in pickles ({shown(pickles, 3)}), which run code when loaded",
            "safetensors",
            "convert once in a place you trust: AutoModelForCausalLM.from_pretrained(...).save_pretrained(..., safe_serialization=True)",
        )
    if ggufs := sorted(file.name for file in folder.glob("*.gguf")):
        return ModelError(
            str(folder), f"no safetensors, but {shown(ggufs)}", "a file or a folder with safetensors", f"path={folder / ggufs[0]}"
        )  # fmt: skip
    if graphs := sorted(file.name for pattern in ("*.onnx", "openvino_model.xml") for file in folder.glob(pattern)):
        return ModelError(
            str(folder), f"no safetensors, but {shown(graphs)}", "a model that a recipe can start from", "the model that the graph was exported from; "
            "the graph itself is evaluated in the recipe that exports it",
        )  # fmt: skip
    return ModelError(str(folder), "no *.safetensors in this folder", "a Hugging Face model folder with weights")


def _truncated(file: Path, size: int, wanted: int) -> ModelError:
    return ModelError(str(file), f"truncated: {size:,} bytes", f"{wanted:,} bytes by its header", DOWNLOAD)


def _foreign(file: Path) -> ModelError:
    return ModelError(str(file), "not a safetensors file", "safetensors, whatever the file's name", DOWNLOAD)
