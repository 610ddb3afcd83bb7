"""Tokenizer files: parsing, and writing with fewer tokens.

Supported: byte-level BPE (GPT-2, Llama 3, SmolLM, Qwen) and BPE with byte fallback (Llama 2, Gemma), which can encode any text with
the remaining tokens.  WordPiece and Unigram are refused.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.prune.tokens.merges import BYTE, Merges
from tasks.shared.errors import TechniqueError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
OTHER_FILES = ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer.model")
"""Older files of the same vocabulary, which would keep the dropped tokens."""


@dataclass(frozen=True)
class Tokens:
    """Parts of a byte-pair tokenizer.

    content: its tokenizer.json.
    ids: of all tokens, added ones included.
    added: tokens that are matched before any splitting.
    byte_level: True if every byte is a character of the vocabulary; otherwise bytes are written as <0x41>.
    """

    content: Mapping[str, Any]
    ids: Mapping[str, int]
    added: frozenset[str]
    merges: Merges
    byte_level: bool

    @property
    def unknown(self) -> str | None:
        """Token for unknown text."""
        return self.content["model"].get("unk_token")


def take_apart(tokenizer: "PreTrainedTokenizerBase", where: str) -> Tokens:
    """Parse a tokenizer.

    Raises TechniqueError for an algorithm other than BPE, or one that could no longer encode every text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TechniqueError(
            where, "a tokenizer in Python code", "one with a tokenizer.json", "convert it once with transformers"
        )
    content = json.loads(backend.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise TechniqueError(
            where,
            f"a {model['type']} tokenizer",
            "byte-pair encoding (BPE), whose merges define how tokens are built",
            "leave this model's vocabulary as it is, or choose a model of the GPT-2, Llama, Qwen or Gemma families",
        )
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise TechniqueError(where, "tokens that are marked within or at the end of a word", "BPE without such marks")
    pairs = [(left, right) for left, right in model["merges"]]
    tokens = Tokens(
        content,
        dict(tokenizer.get_vocab()),
        frozenset(token["content"] for token in content["added_tokens"]),
        Merges(frozenset(model["vocab"]), pairs),
        "ByteLevel" in set(_types([content.get("pre_tokenizer"), content.get("normalizer")])),
    )
    if not tokens.byte_level and not (
        model.get("byte_fallback") and sum(map(bool, map(BYTE.fullmatch, model["vocab"]))) == 256
    ):
        raise TechniqueError(
            where,
            "a tokenizer that is neither byte-level nor has a token for each of the 256 bytes",
            "one that can encode any text as bytes",
            "leave this model's vocabulary as it is: text of other domains would become <unk>",
        )
    return tokens


def _types(node: Any) -> Iterable[str]:
    """Yield every "type" within a part of a tokenizer.json."""
    if isinstance(node, Mapping):
        yield str(node.get("type"))
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from _types(item)


def used_tokens(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str]) -> list[list[str]]:
    """Tokens of each text as vocabulary strings, without special tokens around it."""
    found = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [list(tokenizer.convert_ids_to_tokens(ids)) for ids in found]


def numbered(tokens: Tokens, kept: Iterable[str]) -> dict[str, int]:
    """Assign new ids from 0, in the old order."""
    return {token: new for new, token in enumerate(sorted(kept, key=tokens.ids.__getitem__))}


def with_fewer_tokens(tokens: Tokens, new: Mapping[str, int]) -> dict[str, Any]:
    """Return a tokenizer.json with only the tokens of `new`, renumbered everywhere."""
    content = json.loads(json.dumps(tokens.content))
    model = content["model"]
    model["vocab"] = {token: new[token] for token in model["vocab"] if token in new}
    model["merges"] = [list(pair) for pair in tokens.merges.between(model["vocab"])]
    content["added_tokens"] = [
        token | {"id": new[token["content"]]} for token in content["added_tokens"] if token["content"] in new
    ]
    _renumber_template(content.get("post_processor"), new)
    if content.get("padding"):
        content["padding"]["pad_id"] = new[content["padding"]["pad_token"]]
    return content


def _renumber_template(node: Any, new: Mapping[str, int]) -> None:
    """Renumber ids in post-processors, in place.

    Covers templates, and BERT's and RoBERTa's ["</s>", 2].
    """
    if isinstance(node, list):
        for item in node:
            _renumber_template(item, new)
    if not isinstance(node, dict):
        return
    for mark in ("sep", "cls"):
        if isinstance(node.get(mark), list):
            node[mark][1] = new[node[mark][0]]
    specials = node.get("special_tokens")
    for special in specials.values() if isinstance(specials, dict) else ():
        special["ids"] = [new[token] for token in special["tokens"]]
    _renumber_template(node.get("processors"), new)


def settings_of_fewer(settings: Mapping[str, Any], tokens: Tokens, new: Mapping[str, int]) -> dict[str, Any]:
    """Return a tokenizer_config.json without dropped tokens, with new ids.

    Loading would add a dropped token back if it stayed here.
    """
    gone = tokens.ids.keys() - new.keys()
    by_old = {old: new[token] for token, old in tokens.ids.items() if token in new}
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "added_tokens_decoder":
            found[name] = {str(by_old[int(old)]): entry for old, entry in value.items() if int(old) in by_old}
        elif name.endswith("_token_id"):
            found[name] = by_old.get(value)
        elif isinstance(value, list):
            found[name] = [item for item in value if _content(item) not in gone]
        elif name == "extra_special_tokens" and isinstance(value, dict):
            found[name] = {key: item for key, item in value.items() if _content(item) not in gone}
        elif not (name.endswith("_token") and _content(value) in gone):
            found[name] = value
    return found


def _content(token: Any) -> Any:
    """Return the text of a token, which may be stored with its properties."""
    return token.get("content") if isinstance(token, Mapping) else token if isinstance(token, str) else None


def trimmed(
    tokenizer: "PreTrainedTokenizerBase", tokens: Tokens, new: Mapping[str, int], folder: Path
) -> "PreTrainedTokenizerBase":
    """Write the tokenizer with only the tokens of `new`, and reload it.

    Raises TechniqueError if the reloaded tokenizer has other tokens or ids.
    """
    tokenizer.save_pretrained(folder)
    for name in OTHER_FILES:
        (folder / name).unlink(missing_ok=True)
    settings = json.loads((folder / SETTINGS_FILE).read_text("utf-8"))
    contents = {TOKENIZER_FILE: with_fewer_tokens(tokens, new), SETTINGS_FILE: settings_of_fewer(settings, tokens, new)}
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2), "utf-8")
    small = read_back(folder)
    found = small.get_vocab()
    if found != new:
        wrong = sorted(token for token, _ in found.items() ^ new.items())
        raise TechniqueError(
            type(small).__name__,
            f"once reloaded, {len(wrong)} tokens have other ids: {', '.join(wrong[:5])}",
            "a tokenizer that transformers loads without changes",
            "leave this model's vocabulary as it is",
        )
    return small


def read_back(folder: Path) -> "PreTrainedTokenizerBase":
    """Load a folder's tokenizer, without transformers' notes about this load."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for circumstance in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(circumstance, None)
    return tokenizer
