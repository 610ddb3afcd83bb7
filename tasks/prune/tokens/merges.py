"""Tokens that byte-pair encoding needs to build the wanted ones (pure Python).

Byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909, section 3.2) applies, as long as one applies, the merge of lowest
rank to neighboring symbols.  The merges inside a finished token never look beyond it, so they are those of the token by itself.
A vocabulary that keeps every intermediate symbol of a text's tokens, and every merge between kept symbols, therefore applies the
same merges to that text and splits it as before.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A byte of a character that has no token, as SentencePiece writes it."""
NUMBER = re.compile(r"[Ġ▁]?[0-9]+")
"""Digits, perhaps after a space: Ġ in byte-level vocabularies, ▁ in SentencePiece's."""
PUNCTUATION = re.compile(r"[Ġ▁]?[!-/:-@\[-`{-~]")
RESERVED = re.compile(r"[<\[]\|?_?(?:reserved|unused)[^>\]]*[>\]]", re.IGNORECASE)
"""A token that the tokenizer's maker reserved: <unused7>, <|reserved_special_token_3|>."""


@dataclass(frozen=True)
class Merges:
    """Tokens of a byte-pair vocabulary, and the merges between them by rank."""

    tokens: frozenset[str]
    pairs: Sequence[tuple[str, str]]
    _known: dict[str, frozenset[str]] = field(default_factory=dict, repr=False)

    @cached_property
    def ranks(self) -> Mapping[tuple[str, str], int]:
        """Rank of each merge; the later one of a duplicate, as in the tokenizers library."""
        return {pair: rank for rank, pair in enumerate(self.pairs)}

    def parts(self, token: str) -> frozenset[str]:
        """Symbols that merges pass through to build a token, itself included; empty if unreachable."""
        if token not in self._known:
            self._known[token] = self._follow(token)
        return self._known[token]

    def _follow(self, token: str) -> frozenset[str]:
        symbols = list(token)
        seen = set(symbols)
        if not seen <= self.tokens:
            return frozenset()
        while len(symbols) > 1:
            ranked = [
                (self.ranks[pair], place) for place, pair in enumerate(zip(symbols, symbols[1:], strict=False)) if pair in self.ranks
            ]  # fmt: skip
            if not ranked:
                return frozenset()
            _, place = min(ranked)
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
            seen.add(symbols[place])
        return frozenset(seen)

    def closed(self, tokens: Iterable[str]) -> set[str]:
        """Return the tokens and every symbol that merges need to build them.

        A token that merges cannot build (an added token, a whole word) needs no others.
        """
        found: set[str] = set()
        for token in tokens:
            found |= self.parts(token) or {token}
        return found

    def filled(self, kept: Iterable[str], size: int) -> set[str]:
        """Return the kept tokens, filled up to `size` with others by merge rank.

        Merge rank follows frequency in the tokenizer's training.  A token is added with the symbols it is built from.
        """
        found = set(kept)
        for left, right in self.pairs:
            if len(found) >= size:
                break
            more = self.parts(left + right) - found
            if len(found) + len(more) <= size:
                found |= more
        return found

    def between(self, kept: Iterable[str]) -> list[tuple[str, str]]:
        """Return the merges whose two sides and result are all kept, in their order."""
        found = set(kept)
        return [pair for pair in self.pairs if found.issuperset((*pair, "".join(pair)))]


def rounded_up(count: int, multiple: int) -> int:
    """Round up to the next multiple."""
    return -(-count // multiple) * multiple


def always_kept(tokens: Iterable[str], byte_level: bool, numbers: bool) -> set[str]:
    """Tokens that are always kept, so that any text still encodes: bytes, punctuation, digits.

    byte_level: single characters are the bytes.  Else bytes are spelled out and only ASCII characters are kept with them.
    numbers: tokens of several digits too.
    """
    found = set()
    for token in tokens:
        single = len(token) == 1 and (byte_level or token.isascii() or token == "▁")
        digits = NUMBER.fullmatch(token) if numbers else None
        if single or digits or PUNCTUATION.fullmatch(token) or (not byte_level and BYTE.fullmatch(token)):
            found.add(token)
    return found
