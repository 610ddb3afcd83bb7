"""Gate of an exported graph: its answers in a fresh process against its source's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.export import parity
from tasks.shared.engines.graph_session import GraphSession
from tasks.shared.engines.protocol import Engine, Opening
from tasks.shared.errors import ParityError
from tasks.shared.isolation import Failure, run_isolated

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONTEXT = 2048


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


@dataclass(frozen=True)
class Compared:
    """A graph against its source.

    parity: compared distributions.  same_text: share of conversations with the same greedy text.
    """

    parity: parity.Parity
    same_text: float


def compare(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    engine: Engine,
    threads: int,
    asked: Asked,
) -> Compared:
    """Open a folder in a fresh process and compare it with its source.

    Raises ParityError if it does not load, tokenizes differently or does not answer.
    """
    session = ask_isolated(folder, engine, threads, asked)
    parity.check_tokenizer(session, tokenizer, [*asked.texts, *asked.answers], folder.name)
    wanted = [str(tokenizer.decode(list(answer), skip_special_tokens=True)).strip() for answer in asked.continuations]
    same = sum(one == other for one, other in zip(wanted, session.texts, strict=True)) / len(wanted)
    return Compared(parity.compare_distributions(model, asked.ids, asked.continuations, session, asked.top), same)


def questions(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    corpus: Path | None,
    prompts: int,
    tokens: int,
    top: int,
) -> Asked:
    """Return what to ask, with the source's continuations.

    corpus: see `parity.asked_texts`.  prompts, tokens: number of prompts, and most tokens of a continuation.
    """
    texts, answers = parity.asked_texts(tokenizer, corpus, prompts)
    limit = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or CONTEXT)
    room = min(CONTEXT, limit) - tokens
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][-room:] for text in texts]
    continuations = parity.greedy_continuations(model, ids, tokens, tokenizer.pad_token_id)
    return Asked(texts, answers, ids, continuations, tokens, top)


def ask_isolated(folder: Path, engine: Engine, threads: int, asked: Asked) -> Recorded:
    """Open a folder in a process that has not made it, and return its answers.

    Raises ParityError if it cannot be opened or does not answer.
    """
    found = run_isolated(ask, folder, engine, threads, asked)
    if isinstance(found, Failure):
        raise ParityError(folder.name, found.reason, "the exported graph loads, tokenizes and answers")
    return found


def ask(folder: Path, engine: Engine, threads: int, asked: Asked) -> Recorded:
    """Open a folder and answer.

    Texts are written by cached decoding from an empty cache, as in an evaluation.
    """
    with engine.open(folder, Opening(threads)) as session:
        assert isinstance(session, GraphSession)
        split = {text: session.tokens(text) for text in (*asked.texts, *asked.answers)}
        texts = [session.write(ids, asked.tokens).text for ids in asked.ids]
        session.graph.forget()
        scores = {ids: session.next_token(ids, asked.top) for ids in asked.positions()}
    return Recorded(split, scores, texts)


def check_text(same: float, floor: float, where: str) -> None:
    """Raise ParityError if too few conversations are continued with the source's text."""
    if same < floor:
        raise ParityError(
            where,
            f"the source's greedy text in {same:.1%} of conversations",
            f"min_same_text {floor:.1%}",
            "a finer scheme (scheme=int8 or float32); if float32 fails too, the exporter does not fit this model",
        )
