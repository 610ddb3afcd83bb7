"""Special tokens of a tokenizer, and their place in a rendered conversation."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """Texts of the special tokens, which no answer contains."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return {token for token in added | set(map(str, tokenizer.all_special_tokens)) if token}


def first_special(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[int, str] | None:
    """Place and text of the first special token; the longest of those that start there.

    Without one, an added token that begins the text counts too: some tokenizers do not mark their end of turn as special.
    """
    places = [(text.find(token), -len(token), token) for token in special_tokens(tokenizer) if token in text]
    if not places:
        start = len(text) - len(text.lstrip())
        added = (str(token) for token in tokenizer.added_tokens_decoder.values())
        places = [(start, -len(token), token) for token in added if token.strip() and text.startswith(token, start)]
    return (min(places)[0], min(places)[2]) if places else None
