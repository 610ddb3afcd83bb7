"""Protocol of an engine: sessions on an open model, and the engine's capabilities."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

from tasks.shared.engines.engine import EngineName, WeightForm
from tasks.shared.errors import ModelError, TechniqueError
from tasks.shared.model.generation import Written

Conversation = Sequence[Mapping[str, Any]]
"""Messages as chat templates take them."""
Capability = Literal["distribution", "top_tokens", "labels", "grammar", "batch", "tools", "stop", "stream"]


@dataclass(frozen=True)
class Capabilities:
    """Abilities of an engine.

    reads: forms of weights that it computes with as stored.
    dequantizes: forms that it unpacks first, so that its arithmetic is not that of serving them.
    slots: how several streams share a server: "fixed" when it starts, or "shared" as they come.
    """

    reads: tuple[WeightForm, ...]
    dequantizes: tuple[WeightForm, ...] = ()
    distribution: bool = False
    """Probability of every token at every position of a given text."""
    top_tokens: bool = False
    """Log-probabilities of the most likely next tokens."""
    labels: bool = False
    """Choice of the most likely of given labels."""
    grammar: bool = False
    """Answers that follow a GBNF grammar."""
    batch: bool = False
    """Many prompts in one pass, with results that do not depend on the order of arrival."""
    tools: bool = False
    """Tool schemas in the prompt."""
    stop: bool = False
    """Stop strings."""
    stream: bool = False
    """Answers streamed by a server, in a process of its own."""
    accelerator: bool = False
    """Computes on a GPU if there is one."""
    slots: Literal["fixed", "shared"] = "shared"

    def missing(self, needed: Collection[Capability]) -> list[Capability]:
        """Return the needed capabilities that this engine lacks, in alphabetical order."""
        return sorted(name for name in needed if not getattr(self, name))


CAPABILITIES: tuple[str, ...] = tuple(field.name for field in fields(Capabilities) if field.type is bool)
"""Names of all capabilities, in the order of their declaration."""


@dataclass(frozen=True)
class Opening:
    """Resources and settings with which an engine opens a model.

    device: "cpu" or "cuda"; servers that know no device ignore it.
    context: tokens of prompt and answer for which a server reserves memory.
    parallel: requests that a server decodes together.  Batched requests share rounding, so with more than one, answers depend on the
    order of arrival.
    batch_size: prompts in one pass, for engines that batch.
    reverse: send prompts to a server in reverse order, so that its prefix cache holds other prefixes.
    reuse: read beginnings that prompts share once, for engines that batch; a server's prefix cache does so in any case.
    limit_s: seconds until the model must be loaded.
    command: executable of an engine that is installed elsewhere.
    """

    threads: int
    device: str = "cpu"
    context: int = 2048
    parallel: int = 1
    batch_size: int = 32
    reverse: bool = False
    reuse: bool = False
    limit_s: float = 180.0
    command: str = ""


@dataclass(frozen=True)
class Choices:
    """Chosen labels, one per prompt.

    scores: log-likelihood of every label, (prompts, labels), in nats; None if the engine finds the likeliest without scoring all.
    method: how they were found, for notes.
    """

    labels: list[str]
    scores: list[list[float]] | None
    method: str


class Session(Protocol):
    """One open model.  Methods that an engine lacks raise TechniqueError.

    url: base URL of its server, ends in /v1; empty for a model in this process.
    context: largest number of tokens of prompt and answer; 0 for no known limit.
    """

    url: str

    @property
    def context(self) -> int:
        """Largest number of tokens of prompt and answer; 0 for no known limit."""
        ...

    def render(self, messages: Conversation, tools: str = "") -> str:
        """Render a conversation with the model's chat template, up to the assistant's turn.

        tools: JSON text of a list of tool schemas; empty for none.
        """
        ...

    def tokens(self, text: str) -> list[int]:
        """Tokenize a text; chat markup becomes special tokens, and no token is added."""
        ...

    def check(self, prompt: str) -> None:
        """Raise ModelError unless the model computes finite numbers after a prompt."""
        ...

    def answer(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        grammar: str = "",
        labels: Sequence[str] = (),
        end: str = "\n",
    ) -> list[Written]:
        """Return greedy answers in the order of the prompts.

        stop: strings that end an answer and are not part of it.
        grammar: GBNF grammar of the answers; empty for none.
        labels, end: as for `choose`; an answer names the label that its own probabilities prove likeliest.
        """
        ...

    @property
    def reading(self) -> str:
        """Way in which prompts were read so far, for notes; empty for one by one."""
        ...

    def choose(self, prompts: Sequence[str], labels: Sequence[str], end: str = "\n") -> Choices:
        """Return the label with the highest log-likelihood after each prompt.

        end: text that ends a label where one label is a prefix of another.
        """
        ...

    def next_token(self, ids: Sequence[int], top: int) -> dict[int, float]:
        """Return log-probabilities (nats) of the `top` most likely next tokens, descending."""
        ...

    def memory(self) -> int | None:
        """Return the peak resident bytes of the model's process; None if unknown."""
        ...


class Engine(Protocol):
    """A program that runs models."""

    name: EngineName
    capabilities: Capabilities

    def open(self, weights: Path, opening: Opening) -> AbstractContextManager[Session]:
        """Open a model.  Raises ModelError or MachineError if it cannot be loaded."""
        ...


def lacking(engine: EngineName, capability: Capability) -> TechniqueError:
    """Return the error for a request that an engine cannot serve."""
    return TechniqueError(engine, f"it lacks `{capability}`", "an engine that has it", "see docs/engines.md")


def check_room(session: Session, prompts: Sequence[str], new: int, fix: str) -> None:
    """Raise ModelError if a prompt plus `new` tokens exceeds the session's context.

    A server would truncate the answer and still report it as complete.
    fix: how to get more room; "{}" stands for the number of tokens needed.
    """
    if not session.context:
        return
    likely = [prompt for prompt in prompts if len(prompt.encode()) + ADDED_TOKENS + new > session.context]
    if not likely:  # a token is at least one byte
        return
    needed = max(len(session.tokens(prompt)) for prompt in likely) + ADDED_TOKENS + new
    if needed > session.context:
        got = f"{session.context} tokens, but the longest prompt with its answer needs {needed}"
        raise ModelError("context", got, f"at least {needed}", fix.format(needed))


ADDED_TOKENS = 2
"""Tokens that a tokenizer may add before a prompt: beginning of sequence, and a space."""
