"""A cap on what a teacher's answers may cost, checked before each request."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic
from pydantic import ConfigDict, Field

from tasks.shared.engines.sample_store import Sample
from tasks.shared.errors import StillroomError

MILLION = 1_000_000
TURN_TOKENS = 8
"""Tokens that a chat template adds to a turn, at most."""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Prices:
    """Prices of the endpoint, all in the same currency."""

    input: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million prompt tokens."""
    output: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million answer tokens."""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Budget:
    """Caps on all answers of the artifact, those kept from earlier runs included; 0 is no cap."""

    requests: Annotated[int, Field(ge=0)] = 0
    """Most answers to pay for, those of a judge included."""
    tokens: Annotated[int, Field(ge=0)] = 0
    """Most tokens, of prompts and answers together."""
    money: Annotated[float, Field(ge=0)] = 0.0
    """Most money, in the currency of `prices`."""

    @property
    def limited(self) -> bool:
        """True if there is any cap."""
        return bool(self.requests or self.tokens or self.money)


@dataclass(frozen=True)
class Bill:
    """Cost of answers: requests, tokens, and money."""

    requests: int = 0
    tokens: int = 0
    money: float = 0.0

    def plus(self, other: "Bill", sign: int = 1) -> "Bill":
        """Return the sum with `other`, or with sign -1 the difference."""
        return Bill(
            self.requests + sign * other.requests,
            self.tokens + sign * other.tokens,
            self.money + sign * other.money,
        )

    def times(self, factor: float) -> "Bill":
        """Return the bill multiplied by `factor`, rounded up to whole requests and tokens."""
        return Bill(-int(-self.requests * factor // 1), -int(-self.tokens * factor // 1), self.money * factor)

    def __str__(self) -> str:
        """Format the bill for messages."""
        money = f", {self.money:.4g} in money" if self.money else ""
        return f"{self.requests} requests, {self.tokens} tokens{money}"


class CapReached(StillroomError):
    """The next request might cost more than the budget has left."""


@dataclass
class Reservation:
    """Part of a budget held for one request.  paid: its cost; nothing until it is set."""

    paid: Bill = Bill()


class Purse:
    """Account of a budget, in which requests reserve their worst case before they start."""

    def __init__(self, budget: Budget, prices: Prices) -> None:
        self.budget, self.prices = budget, prices
        self.spent = Bill()
        self._reserved = Bill()
        self._changed = asyncio.Condition()

    def bill(self, prompt_tokens: int, completion_tokens: int) -> Bill:
        """Return the cost of one answer."""
        money = (prompt_tokens * self.prices.input + completion_tokens * self.prices.output) / MILLION
        return Bill(1, prompt_tokens + completion_tokens, money)

    def worst_case(self, messages: Sequence[Mapping[str, Any]], tools: str, room: int) -> Bill:
        """Return the most that a request can cost.

        No tokenizer has more tokens than bytes; the answer has at most `room` tokens.
        """
        text = json.dumps([dict(turn) for turn in messages], ensure_ascii=False) + tools
        return self.bill(len(text.encode("utf-8", "replace")) + TURN_TOKENS * len(messages), room)

    @asynccontextmanager
    async def reserve(self, worst: Bill) -> AsyncIterator[Reservation]:
        """Hold `worst` for one request, and pay what it cost in the end.

        Waits for requests under way if they may leave enough.  Raises CapReached if not.
        """
        async with self._changed:
            while not self._fits(worst):
                if not self._reserved.requests:
                    raise CapReached("budget", f"the next request may take {worst.tokens} tokens")
                await self._changed.wait()
            self._reserved = self._reserved.plus(worst)
        held = Reservation()
        try:
            yield held
        finally:
            async with self._changed:
                self._reserved = self._reserved.plus(worst, -1)
                self.spent = self.spent.plus(held.paid)
                self._changed.notify_all()

    def _fits(self, worst: Bill) -> bool:
        total = self.spent.plus(self._reserved).plus(worst)
        caps = self.budget
        return (
            (not caps.requests or total.requests <= caps.requests)
            and (not caps.tokens or total.tokens <= caps.tokens)
            and (not caps.money or total.money <= caps.money)
        )

    def cost(self, sample: Sample, worst: Bill) -> Bill:
        """Return what a sample cost; the worst case if the endpoint did not say."""
        known = sample.prompt_tokens or sample.completion_tokens
        return self.bill(sample.prompt_tokens, sample.completion_tokens) if known else worst
