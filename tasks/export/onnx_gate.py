"""Answers of an exported folder, asked for in a fresh process."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.shared.errors import ParityError
from tasks.shared.isolation import Failure, run_isolated


@dataclass(frozen=True)
class Asked:
    """Questions of the gate.

    texts: prompts.  answers: more texts to tokenize.  ids: token ids of the prompts, without what exceeds the context.
    continuations: the source's greedy continuation of each prompt, token ids.
    tokens: length of the texts to write.  top: next tokens to name at every position of a continuation.
    """

    texts: Sequence[str]
    answers: Sequence[str]
    ids: Sequence[Sequence[int]]
    continuations: Sequence[Sequence[int]]
    tokens: int
    top: int

    def positions(self) -> list[tuple[int, ...]]:
        """Token ids before every compared position."""
        pairs = zip(self.ids, self.continuations, strict=True)
        return [(*prompt, *answer[:length]) for prompt, answer in pairs for length in range(len(answer))]


@dataclass(frozen=True)
class Recorded:
    """An engine's answers to `Asked`.

    split: token ids by text.  scores: log-probabilities of the top tokens after each position.  texts: greedy continuations.
    """

    split: dict[str, list[int]]
    scores: dict[tuple[int, ...], dict[int, float]]
    texts: list[str]

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return self.split[text]

    def next_token(self, ids: Sequence[int], top: int) -> dict[int, float]:
        """Return the log-probabilities after a position."""
        return self.scores[tuple(ids)]


def ask_isolated(folder: Path, threads: int, asked: Asked) -> Recorded:
    """Open a folder in a process that has not made it, and return its answers.

    Raises ParityError if it cannot be opened or does not answer.
    """
    found = run_isolated(ask, folder, threads, asked)
    if isinstance(found, Failure):
        raise ParityError(folder.name, found.reason, "the exported graph loads, tokenizes and answers")
    return found


def ask(folder: Path, threads: int, asked: Asked) -> Recorded:
    """Open a folder and answer.

    Texts are written by cached decoding from an empty cache, as in an evaluation.
    """
    from tasks.shared.engines.onnx_engine import ONNXRUNTIME
    from tasks.shared.engines.protocol import Opening

    with ONNXRUNTIME.open(folder, Opening(threads)) as session:
        split = {text: session.tokens(text) for text in (*asked.texts, *asked.answers)}
        texts = [session.write(ids, asked.tokens).text for ids in asked.ids]
        session.graph.forget()
        scores = {ids: session.next_token(ids, asked.top) for ids in asked.positions()}
    return Recorded(split, scores, texts)
