"""Parity gate: next-token distributions of an exported file against its source's."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tasks.shared.errors import EndpointError, ParityError
from tasks.shared.model.agreement import logits_of, truncated_divergence
from tasks.shared.model.calibration import calibration_rows
from tasks.shared.model.generation import plain_greedy
from tasks.shared.model.prompts import render
from tasks.shared.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Result = TypeVar("Result")
CONVERSATIONS = (
    "How do I reset my password?",
    "My parcel, order 4417-B, hasn't arrived after 12 days. What now?",
    "Name three primary colors.",
    "What is 17 + 25?",
    "Please write one sentence about the sea.",
    "Is water's boiling point 100 °C at sea level?",
    "Summarize: the shop opens at 9:30 and closes at 18:00, except on Sundays.",
    "Who wrote Hamlet?",
)
"""Prompts for an export without a corpus."""


class Exported(Protocol):
    """An exported file as the gate asks it.

    A session of its engine, or the answers that one gave in another process.
    """

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text, none added."""
        ...

    def next_token(self, ids: Sequence[int], top: int) -> dict[int, float]:
        """Return log-probabilities (nats) of the `top` most likely next tokens, descending."""
        ...


@dataclass(frozen=True)
class Position:
    """One compared next-token distribution.

    prompt, offset: index of the prompt, and number of continuation tokens before the position.  source, exported: top token ids.
    divergence: KL(source || exported) in nats, over the exported file's top tokens and one outcome for the rest.
    """

    prompt: int
    offset: int
    source: int
    exported: int
    divergence: float


@dataclass(frozen=True)
class Parity:
    """Share of positions with the same top token, mean divergence in nats, and all positions."""

    top1: float
    divergence: float
    positions: tuple[Position, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the content of parity.json."""
        return {
            "top1_agreement": self.top1,
            "kl_mean": self.divergence,
            "positions": len(self.positions),
            "per_position": [asdict(position) for position in self.positions],
        }


def summarize(positions: Sequence[Position]) -> Parity:
    """Return mean figures over positions (at least one)."""
    count = len(positions)
    return Parity(
        sum(position.source == position.exported for position in positions) / count,
        sum(position.divergence for position in positions) / count,
        tuple(positions),
    )


def check_floor(parity: Parity, min_top1: float, max_divergence: float, where: str) -> None:
    """Raise ParityError if the agreement is too low or the divergence too high."""
    if parity.top1 >= min_top1 and parity.divergence <= max_divergence:
        return
    raise ParityError(
        where,
        f"same top token at {parity.top1:.1%} of {len(parity.positions)} positions, mean KL {parity.divergence:.3f} nats",
        f"min_top1 {min_top1:.1%} and max_kl {max_divergence:.3f}",
        "a finer scheme (scheme=q8_0 or f16); if f16 fails too, the converter does not fit this model",
    )


def asked_texts(tokenizer: "PreTrainedTokenizerBase", corpus: Path | None, count: int) -> tuple[list[str], list[str]]:
    """Return rendered prompts to compare on, and answers whose tokens are compared too.

    corpus: its calibration split gives both; None takes CONVERSATIONS, without answers.  count: most prompts.
    """
    if corpus is None:
        talks = [[{"role": "user", "content": text}] for text in CONVERSATIONS[:count]]
        return [render(tokenizer, talk) for talk in talks], []
    rows = calibration_rows(corpus, count)
    return [render(tokenizer, row.prompt, tools=row.tools) for row in rows], [row.answer for row in rows]


def asked(where: str, question: Callable[[], Result]) -> Result:
    """Return an engine's answer.  Raises ParityError if it refuses or is too slow."""
    try:
        return question()
    except EndpointError as error:
        raise ParityError(where, error.got, "the exported file loads, tokenizes and answers") from error


def check_tokenizer(session: Exported, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], where: str) -> None:
    """Raise ParityError at the first text that the exported file tokenizes differently."""
    for text in texts:
        wanted = tokenizer(text, add_special_tokens=False)["input_ids"]
        got = asked(where, partial(session.tokens, text))
        if got != wanted:
            place = next(
                (index for index, (one, other) in enumerate(zip(got, wanted, strict=False)) if one != other),
                min(len(got), len(wanted)),
            )
            raise ParityError(
                where,
                f"the exported tokenizer splits {text[:60]!r} differently from token {place} on: {got[place : place + 4]}",
                f"{wanted[place : place + 4]}, as the source's tokenizer",
                "a pre-tokenizer that llama.cpp knows (GPT-2, SmolLM, Llama 3 or Qwen 2 splitting, or SentencePiece)",
            )


def greedy_continuations(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], tokens: int, pad_id: int
) -> list[list[int]]:
    """Return the source's greedy continuation of each prompt; see `plain_greedy`.

    Each has up to `tokens` ids, or ends with the turn.
    """
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with plain_greedy(model), torch.inference_mode():
        output = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=pad_id
        )
    ends = model.generation_config.eos_token_id
    return [cut_after(row[width:].tolist(), set(ends if isinstance(ends, list) else [ends])) for row in output]


def cut_after(ids: list[int], ends: set[int | None]) -> list[int]:
    """Return the ids up to and including the first end token."""
    stop = next((index + 1 for index, token in enumerate(ids) if token in ends), len(ids))
    return ids[:stop]


def measure_parity(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    session: Exported,
    tokens: int,
    top: int,
) -> Parity:
    """Compare next-token distributions after every prefix of the source's greedy continuations.

    prompts: token ids.  session: the exported file.  top: tokens compared individually.
    """
    continuations = greedy_continuations(model, prompts, tokens, tokenizer.pad_token_id)
    return compare_distributions(model, prompts, continuations, session, top)


def compare_distributions(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    session: Exported,
    top: int,
) -> Parity:
    """Compare next-token distributions after every prefix of given continuations.

    See `measure_parity`.
    """
    positions: list[Position] = []
    for index in track(range(len(prompts)), "parity", len(prompts)):
        prompt, answer = list(prompts[index]), list(continuations[index])
        logits = logits_of(model, [prompt + answer[:-1]])[0][len(prompt) - 1 :]  # (len(answer), vocabulary)
        for offset, distribution in enumerate(logits.softmax(-1)):
            scores = asked("the exported file", partial(session.next_token, prompt + answer[:offset], top))
            exported = {token: exp(score) for token, score in scores.items()}
            reference = {token: float(distribution[token]) for token in exported}
            positions.append(
                Position(
                    index,
                    offset,
                    int(distribution.argmax()),
                    next(iter(exported)),
                    truncated_divergence(reference, exported),
                )
            )
    return summarize(positions)
