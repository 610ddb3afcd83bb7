"""Repairs of a loaded tokenizer and of generation settings; each change is logged."""

import json
import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import ModelError
from tasks.shared.model.gguf_files import read_gguf_header
from tasks.shared.model.weight_files import read_json, shown, tensors_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight")
KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens")
"""Generation settings that survive where the others cannot be written."""


def embedding_rows(path: Path) -> int:
    """Return the rows of a model's embedding, from file headers; 0 if they do not tell."""
    if path.is_file():
        shape = read_gguf_header(path).tensors.get("token_embd.weight", (0,))
        return int(shape[0])
    found = [tensor.shape[0] for name, tensor in tensors_of(path).items() if name.endswith(EMBEDDINGS) and tensor.shape]
    return found[0] if len(found) == 1 else 0


def drop_tokens_without_row(tokenizer: "PreTrainedTokenizerBase", path: Path) -> None:
    """Remove added tokens without a row in the model's embedding.

    They are those of a tokenizer that was extended while the model was not, often a pad token.  An embedding with more rows than tokens is normal.
    Raises ModelError if such tokens are part of the vocabulary proper, the chat template, or begin or end texts.
    """
    rows = embedding_rows(path)
    beyond = {token: place for token, place in tokenizer.get_vocab().items() if rows and place >= rows}
    if not beyond:
        return
    names = sorted(beyond, key=lambda token: beyond[token])
    template = json.dumps(getattr(tokenizer, "chat_template", None) or "", ensure_ascii=False)
    ends = {str(token) for token in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) if token}
    added = set(tokenizer.get_added_vocab())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not set(names) <= added or ends & set(names) or any(name in template for name in names):
        raise ModelError(
            str(path),
            f"{len(names)} tokens have no row in the embedding of {rows} rows: {shown(names)}",
            "a tokenizer that is not larger than the model's embedding",
            f"use the tokenizer that belongs to this model, or resize it: model.resize_token_embeddings({max(beyond.values()) + 1})",
        )
    from tokenizers import Tokenizer

    content = json.loads(backend.to_str())
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] not in beyond]
    vocab = content["model"].get("vocab")
    if isinstance(vocab, dict):
        content["model"]["vocab"] = {token: place for token, place in vocab.items() if token not in beyond}
    pad = tokenizer.pad_token
    more = [token for token in getattr(tokenizer, "extra_special_tokens", None) or [] if str(token) not in beyond]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    if pad in beyond:
        tokenizer.pad_token = None
    if hasattr(tokenizer, "_extra_special_tokens"):
        tokenizer._extra_special_tokens = more
    _say(f"{path}: left out of the tokenizer, since the embedding of {rows} rows has none for them: {shown(names)}")


def settle_pad(tokenizer: "PreTrainedTokenizerBase", path: Path) -> None:
    """Give the tokenizer an end and a pad token; each choice is logged.

    A missing end token is taken from the configuration.  Padding is masked everywhere, so any token can stand for it.
    """
    if tokenizer.eos_token is None and (token := _configured(tokenizer, path, "eos_token_id")):
        tokenizer.eos_token = token
        _say(f"{path}: the tokenizer names no end token; {token} is taken from the configuration")
    if tokenizer.pad_token is not None:
        return
    known = (
        tokenizer.unk_token
        or tokenizer.eos_token
        or tokenizer.bos_token
        or _configured(tokenizer, path, "pad_token_id")
    )
    tokenizer.pad_token = known or tokenizer.convert_ids_to_tokens(0)
    _say(f"{path}: the tokenizer has no pad token; {tokenizer.pad_token} pads, masked")


def _configured(tokenizer: "PreTrainedTokenizerBase", path: Path, name: str) -> str:
    """Token of a setting in the model's configurations; empty if they name none with a row."""
    for file in () if path.is_file() else (path / "generation_config.json", path / "config.json"):
        value = read_json(file).get(name) if file.is_file() else None
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, int) and 0 <= first < len(tokenizer):
            return str(tokenizer.convert_ids_to_tokens(first))
    return ""


def make_writable(model: "PreTrainedModel", where: str) -> None:
    """Change generation settings that transformers reads but refuses to write, and say so.

    Temperature, top_p and the like without do_sample mean sampling, so do_sample becomes true, as the makers of such models have
    mended them since; nothing of ours samples.  If that is not enough, all settings but token ids and lengths are dropped.
    Tied weights of different values are no longer called tied: other engines would read one of them for both.
    """
    if getattr(model.config, "tie_word_embeddings", False) and _untied(model):
        model.config.tie_word_embeddings = False
        _say(
            f"{where}: head and embedding differ although the configuration ties them; tie_word_embeddings becomes false"
        )
    own: Any = model.generation_config
    if own is not None and own.temperature == 0:
        own.temperature, own.do_sample = None, False
        _say(f"{where}: generation_config.json has temperature 0, which means greedy; written without it")
    if own is None or not (reason := _fault(own)):
        return
    if not own.do_sample:
        own.do_sample = True
        if not _fault(own):
            _say(f"{where}: generation_config.json sets sampling without do_sample; written with do_sample=true")
            return
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        **{name: getattr(own, name) for name in KEPT if getattr(own, name, None) is not None}
    )
    _say(f"{where}: generation_config.json cannot be written ({reason}); only its token ids and lengths are kept")


def _untied(model: "PreTrainedModel") -> bool:
    """Return True if head and embedding are two tensors."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    weights = [getattr(layer, "weight", None) for layer in (head, embedding)]
    return None not in weights and weights[0].data_ptr() != weights[1].data_ptr() and not weights[0].is_meta  # type: ignore[union-attr]


def _fault(settings: Any) -> str:
    """Reason why transformers will not write generation settings; empty if it will."""
    try:
        settings.validate(strict=True)
    except ValueError as error:
        return " ".join(str(error).split())[:200]
    return ""


@cache
def _say(text: str) -> None:
    """Log a change once per process, however often the model is loaded."""
    log.warning(text)
