"""Labels as tokens after a prompt: their tree, and the search for the likeliest in it.

Log-likelihoods are those of EleutherAI's lm-evaluation-harness (`LM._encode_pair`): white space at the end of a prompt belongs to
the label, whose tokens are those of prompt and label together, minus as many as the prompt alone has.
"""

import heapq
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

Encode = Callable[[str], list[int]]
Path = tuple[int, ...]
"""Token ids from the end of a prompt to a place within a label."""


@dataclass(frozen=True)
class LabelPrompt:
    """A prompt's token ids, and for each label the ids that follow."""

    ids: list[int]
    labels: tuple[Path, ...]


def label_prompts(
    encode: Encode, bare: Encode, prompts: Sequence[str], labels: Sequence[str], end: str
) -> list[LabelPrompt]:
    """Return prompts and labels as tokens, with `end` after each label where it is needed.

    Labels end with `end` if one of them is a prefix of another ("refund", "refund_status"): without it, the shorter label would
    always win.  Labels of one distinct token each need no end.
    encode: tokens of a whole prompt.  bare: tokens of a piece of text, without a token for the beginning of the sequence.
    """
    bare = cache(bare)
    nested = any(other != label and other.startswith(label) for label in labels for other in labels)
    if nested and not _single(next(_tokenized(encode, bare, prompts[:1], labels)).labels):
        labels = [label + end for label in labels]
    return list(_tokenized(encode, bare, prompts, labels))


def _single(labels: Sequence[Path]) -> bool:
    """Return True if the labels differ in their last token only."""
    first = labels[0][:-1]
    return all(label[:-1] == first for label in labels) and len({label[-1:] for label in labels}) == len(labels)


def _tokenized(encode: Encode, bare: Encode, prompts: Sequence[str], labels: Sequence[str]) -> Iterator[LabelPrompt]:
    """Yield every prompt with its labels.

    Labels are tokenized once, after the text in which all prompts end, and not once per prompt.  Each prompt is checked: if its head
    and this tail are not tokenized independently, its labels are tokenized after the whole prompt.
    """
    tail = _shared_tail(encode, bare, prompts, labels[0])
    after = len(bare(tail.rstrip())) if tail else 0
    shared = tuple(tuple(bare(tail + label)[after:]) for label in labels) if tail else ()
    for prompt in prompts:
        ids = encode(prompt.rstrip())
        if tail and _splits(encode, bare, prompt, tail, labels[0]):
            yield LabelPrompt(ids, shared)
        else:
            yield LabelPrompt(ids, tuple(tuple(encode(prompt + label)[len(ids) :]) for label in labels))


def _shared_tail(encode: Encode, bare: Encode, prompts: Sequence[str], label: str) -> str:
    """Text in which all prompts end, from its last markup or first word on; "" for none."""
    common = os.path.commonprefix([prompt[::-1] for prompt in prompts])[::-1]
    starts = [common.rfind(mark) for mark in ("<", "[")] + [
        found.start() for found in [re.search(r"\s", common)] if found
    ]
    tails = (common[start:] for start in sorted(starts, reverse=True) if start >= 0)
    return next((tail for tail in tails if _splits(encode, bare, prompts[0], tail, label)), "")


def _splits(encode: Encode, bare: Encode, prompt: str, tail: str, label: str) -> bool:
    head = encode(prompt[: len(prompt) - len(tail)])
    return head + bare(tail.rstrip()) == encode(prompt.rstrip()) and head + bare(tail + label) == encode(prompt + label)


def end_of_turn(render: Callable[[Sequence[Mapping[str, Any]]], str]) -> str:
    """Return the markup that ends the assistant's turn; a line break if there is none."""
    words = ("Uaq", "Vbq", "Wcq")
    talk = [{"role": role, "content": word} for role, word in zip(("user", "assistant", "user"), words, strict=True)]
    between = render(talk).partition(words[1])[2].partition(words[2])[0]
    found = re.match(r"\s*(<[^<>]+>|\[[^\[\]]+\])", between)
    return found.group(1) if found else "\n"


@dataclass(frozen=True)
class LabelTree:
    """Labels as a tree of tokens.

    tokens, parents: of every token that another one follows, parents first; a parent of -1 is the prompt's last token.
    edges: (parent, token) of every token.  paths: indices into `edges` of each label.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    edges: tuple[tuple[int, int], ...]
    paths: tuple[tuple[int, ...], ...]

    @property
    def is_chain(self) -> bool:
        """True if every token follows the one before, as in ordinary text."""
        return self.parents == tuple(range(-1, len(self.parents) - 1))

    def depths(self) -> list[int]:
        """Number of tokens above each node, from 0."""
        found: list[int] = []
        for parent in self.parents:
            found.append(0 if parent < 0 else found[parent] + 1)
        return found

    def lineages(self) -> list[list[int]]:
        """Each node with all nodes above it."""
        found: list[list[int]] = []
        for node, parent in enumerate(self.parents):
            found.append([*(found[parent] if parent >= 0 else ()), node])
        return found


def grow_tree(labels: Sequence[Path]) -> LabelTree:
    """Return the tree of labels given as token ids."""
    nodes: dict[Path, int] = {}
    tokens: list[int] = []
    parents: list[int] = []
    edges: dict[tuple[int, int], int] = {}
    paths = []
    for label in labels:
        parent, path = -1, []
        for length, token in enumerate(label, 1):
            path.append(edges.setdefault((parent, token), len(edges)))
            if length < len(label):
                prefix = label[:length]
                if prefix not in nodes:
                    nodes[prefix] = len(tokens)
                    tokens.append(token)
                    parents.append(parent)
                parent = nodes[prefix]
        paths.append(tuple(path))
    return LabelTree(tuple(tokens), tuple(parents), tuple(edges), tuple(paths))


Score = Callable[[Path, Sequence[int]], Mapping[int, float]]
"""Log-probabilities of next tokens after a path: that of the likeliest among the given tokens, and the top ones of the vocabulary.

A token that is missing is at most as likely as the least likely of these."""


@dataclass(frozen=True)
class Found:
    """Result of a search.

    label: index.  proven: False if the search ended before it could exclude all others.
    """

    label: int
    proven: bool


@dataclass(frozen=True, order=True)
class _Place:
    """A place within labels.

    loss: -log-likelihood of the tokens up to here; a lower bound of it if guessed.  before: the same without the last token.
    """

    loss: float
    guessed: bool
    tokens: Path
    before: float = 0.0


def find_likeliest(labels: Sequence[Path], score: Score, steps: int) -> Found:
    """Return the label with the highest log-likelihood, by branch and bound.

    steps: calls of `score` after which the best label so far is taken; the first label is completed in any case.
    Each descent follows the likeliest tokens to a whole label.  A log-likelihood only falls along a label, so a place below the best
    label cannot lead to a better one, and the search is over when no place is above.  For a model that is sure, this takes one call
    per token of its label.  Tokens that all labels share are skipped.
    """
    ends = {label: index for index, label in reversed(list(enumerate(labels)))}
    children = _children(labels)
    start = os.path.commonprefix(list(ends)) if len(ends) > 1 else labels[0]
    queue, taken = [_Place(0.0, False, tuple(start))], 0
    best = _Place(math.inf, False, ())
    while queue and (place := heapq.heappop(queue)).loss < best.loss:
        while place.loss < best.loss:
            if not place.guessed and place.tokens in ends:
                best = place
            elif taken >= steps and best.tokens:
                return Found(ends[best.tokens], False)
            else:
                taken += 1
                place, *others = sorted(_follow(place, children, score))
                for other in others:
                    heapq.heappush(queue, other)
    return Found(ends[best.tokens], True)


def _children(labels: Sequence[Path]) -> dict[Path, list[int]]:
    """Next tokens after every place within the labels."""
    found: dict[Path, dict[int, None]] = {}
    for label in labels:
        for length, token in enumerate(label):
            found.setdefault(label[:length], {})[token] = None
    return {path: list(tokens) for path, tokens in found.items()}


def _follow(place: _Place, children: Mapping[Path, Sequence[int]], score: Score) -> list[_Place]:
    """Return the places after one, or the place itself with its exact loss."""
    if place.guessed:
        token = place.tokens[-1]
        exact = place.before - score(place.tokens[:-1], [token])[token]
        return [_Place(exact, False, place.tokens, place.before)]
    found = score(place.tokens, children[place.tokens])
    ceiling = min(found.values())
    return [
        _Place(place.loss - found.get(token, ceiling), token not in found, (*place.tokens, token), place.loss)
        for token in children[place.tokens]
    ]
