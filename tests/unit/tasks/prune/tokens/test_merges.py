"""Closure over merges: whatever the merges are, texts whose tokens are kept are cut as before."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.prune.tokens.merges import RESERVED, Merges, always_kept, rounded_up

LETTERS = "abc"
ABC = Merges(
    frozenset(["a", "b", "c", "ab", "bc", "abc", "cab", "cc", "lost"]),
    [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c"), ("c", "ab"), ("c", "c")],
)


@st.composite
def vocabularies(draw: st.DrawFn) -> Merges:
    """Merges in any order, also such as no training gives: a result may rank before its parts."""
    tokens, pairs = list(LETTERS), []
    for _ in range(draw(st.integers(1, 14))):
        left, right = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if len(left + right) <= 6 and (left, right) not in pairs:
            pairs.append((left, right))
            tokens = list(dict.fromkeys([*tokens, left + right]))
    return Merges(frozenset(tokens), draw(st.permutations(pairs)))


def library(merges: Merges, kept: set[str] | None = None) -> object:
    """The tokenizers library's byte-pair encoding with all of the vocabulary, or a part of it."""
    from tokenizers import models

    tokens = merges.tokens if kept is None else kept
    return models.BPE({token: place for place, token in enumerate(sorted(tokens))}, merges.between(tokens))


def cut(model: object, text: str) -> list[str]:
    return [token.value for token in model.tokenize(text)]


@settings(max_examples=150, deadline=None)
@given(vocabularies(), st.lists(st.text(LETTERS, min_size=1, max_size=14), min_size=1, max_size=4))
def test_the_closure_of_a_texts_tokens_cuts_it_as_before(merges: Merges, texts: list[str]) -> None:
    whole = library(merges)
    before = [cut(whole, text) for text in texts]
    kept = merges.closed({token for tokens in before for token in tokens})
    assert all(token in kept for tokens in before for token in tokens)
    small = library(merges, kept | set(LETTERS))
    assert [cut(small, text) for text in texts] == before


@settings(max_examples=80, deadline=None)
@given(vocabularies(), st.integers(0, 20), st.text(LETTERS, max_size=12))
def test_filling_keeps_to_its_size_and_no_token_is_out_of_reach(merges: Merges, size: int, text: str) -> None:
    found = merges.filled(LETTERS, size)
    assert len(found) <= max(size, len(LETTERS))
    small = library(merges, found)
    assert all(cut(small, token) == [token] for token in found)
    assert merges.filled(found, size) == found, "again the same"
    assert "".join(cut(small, text)) == text


def test_parts_follow_the_order_that_the_tokenizer_takes() -> None:
    assert ABC.parts("abc") == {"a", "b", "c", "bc", "abc"}, "b c ranks before a b"
    assert ABC.parts("cab") == {"a", "b", "c", "ab", "cab"}


def test_a_token_that_no_merges_build_needs_nothing_but_itself() -> None:
    assert not ABC.parts("lost") and ABC.closed(["lost"]) == {"lost"}


def test_merges_stay_only_with_both_sides_and_result() -> None:
    assert ABC.between(["a", "b", "c", "bc", "abc"]) == [("b", "c"), ("a", "bc")]


def test_filling_goes_by_rank_and_skips_what_does_not_fit() -> None:
    assert ABC.filled("abc", 4) == {"a", "b", "c", "bc"}
    assert ABC.filled("abc", 0) == {"a", "b", "c"}


def test_bytes_digits_and_punctuation_are_always_kept() -> None:
    tokens = {"é", "a", "▁", "<0x0A>", "45", "▁45", "(", "Ġ(", "((", "word"}
    assert always_kept(tokens, byte_level=False, numbers=True) == tokens - {"é", "((", "word"}
    assert always_kept(tokens, byte_level=True, numbers=False) == {"é", "a", "▁", "(", "Ġ("}


def test_free_places_are_known_by_their_names() -> None:
    free = ["<unused7>", "<|reserved_special_token_3|>", "[unused1]", "<reserved_0>"]
    assert all(map(RESERVED.fullmatch, free))
    assert not any(map(RESERVED.fullmatch, ["<unk>", "<|im_start|>", "unused", "<|endoftext|>"]))


def test_rounding_up() -> None:
    assert [rounded_up(count, 64) for count in (1, 64, 65)] == [64, 64, 128]
