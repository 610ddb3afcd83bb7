"""Tokenizers as llama.cpp stores them, from a tokenizer.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GPT2_SPLITS = "gpt-2"
"""llama.cpp's name for GPT-2's pre-tokenizer, a plain byte-level one."""
UNREACHED = -1e6
"""Score of a token that no merge builds."""


@dataclass(frozen=True)
class SentencePieces:
    """A BPE tokenizer with byte fallback, as llama.cpp's SentencePiece tokenizer reads it.

    texts, scores, types: of each row of the embedding.
    space_first: True if a space is put before the text.
    """

    texts: list[bytes]
    scores: list[float]
    types: list[int]
    space_first: bool


def tokenizer_content(folder: Path) -> dict[str, Any] | None:
    """Read tokenizer.json; None if there is none or it is not a byte-pair encoding."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content if content["model"]["type"] == "BPE" else None


def byte_level_splits(folder: Path) -> str | None:
    """Name, in llama.cpp, of a byte-level BPE tokenizer's pre-tokenizer; None for other kinds.

    Used only for tokenizers that the converter does not recognize; the parity check verifies the result.
    """
    content = tokenizer_content(folder)
    before = (content or {}).get("pre_tokenizer") or {}
    parts = before.get("pretokenizers", [before])
    kinds = [part.get("type") for part in parts]
    if "ByteLevel" not in kinds:
        return None
    patterns = " ".join(str(part.get("pattern", "")) for part in parts)
    if "Digits" in kinds:
        return "smollm"
    if "\\p{N}{1,3}" in patterns:
        return "llama-bpe"
    return "qwen2" if "\\p{N}" in patterns and "(?i:" in patterns else GPT2_SPLITS


def sentence_pieces(folder: Path, rows: int) -> SentencePieces | None:
    """Convert a BPE tokenizer with byte fallback (Llama 2, Gemma, Phi-3); None for other kinds.

    rows: rows of the embedding; those without a token are unused.
    The converter itself wants the older tokenizer.model, which newer transformers no longer writes, or gives every token the same
    score.  llama.cpp merges the pair with the highest score, so a token's score is minus the rank of the first merge that builds it.
    """
    from gguf import TokenType

    content = tokenizer_content(folder)
    if content is None or not content["model"].get("byte_fallback") or byte_level_splits(folder):
        return None  # transformers sets byte_fallback for a byte-level tokenizer that it reads from a GGUF file
    model = content["model"]
    added = {token["content"]: token for token in content["added_tokens"]}
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        ranks.setdefault("".join(pair if isinstance(pair, list) else pair.split(" ")), rank)
    ids = {**model["vocab"], **{text: token["id"] for text, token in added.items()}}
    texts = [f"[PAD{row}]".encode() for row in range(rows)]
    scores, types = [UNREACHED] * rows, [int(TokenType.UNUSED)] * rows
    for text, row in ids.items():
        if row < rows:
            texts[row], scores[row] = text.encode(), float(-ranks.get(text, -UNREACHED))
            types[row] = int(_kind(text, added.get(text), model.get("unk_token")))
    return SentencePieces(texts, scores, types, _puts_space_first(content))


def _kind(text: str, added: Mapping[str, Any] | None, unknown: str | None) -> Any:
    from gguf import TokenType

    if text == unknown:
        return TokenType.UNKNOWN
    if added is not None:
        return TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
    return TokenType.BYTE if is_byte else TokenType.NORMAL


def _puts_space_first(content: Mapping[str, Any]) -> bool:
    """Return True if the tokenizer puts a space before the text (Llama 2, not Gemma)."""
    parts: list[Any] = []
    for name in ("normalizer", "pre_tokenizer"):
        step = content.get(name) or {}
        parts += step.get("normalizers") or step.get("pretokenizers") or [step]
    return any(
        part.get("type") == "Prepend" or (part.get("type") == "Metaspace" and part.get("prepend_scheme") != "never")
        for part in parts
    )
