"""Parameters and roles that an endpoint takes, learned from its refusals."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tasks.shared.engines.chat_errors import Problem

LengthParameter = Literal["auto", "max_tokens", "max_completion_tokens"]
LENGTH = ("max_tokens", "max_completion_tokens")
"""Names of the length limit; requests of this project call it by the first."""
DROPPED = ("temperature", "top_p", "stop", "seed")
"""Parameters that a request can do without; the endpoint's own default applies instead."""
UNSUPPORTED = re.compile(
    r"unsupported|not supported|(?:does ?n[o']t|do not|cannot|no longer) support|not permitted|not allowed|unrecogni[sz]ed|extra_forbidden|"
    r"unknown (?:parameter|argument|field|name|key)|unexpected (?:parameter|argument|field|keyword|property|key)|extra (?:inputs?|fields?)|"
    r"additional propert|only the default|deprecated|both be (?:specified|set)|(?:only|use) one of|use only one|may only be|"
    r"only \S+ is allowed|not available|(?:invalid|not a valid) (?:parameter|argument|field)|is not implemented|must be (?:removed|omitted)",
    re.IGNORECASE,
)
ROLES = ("system", "developer")
"""Roles that some chat templates do not have."""
ROLE = re.compile(r"\brole", re.IGNORECASE)
TOGETHER = re.compile(r"\bboth\b|only one|one of", re.IGNORECASE)
log = logging.getLogger(__name__)


class Dialect:
    """Parameters and roles that an endpoint takes, as far as its refusals have shown them.

    length: the name of the length limit, or "auto" to try max_tokens first.
    """

    def __init__(self, length: LengthParameter = "auto") -> None:
        self._names: list[str] = list(LENGTH) if length == "auto" else [length]
        self._dropped: set[str] = set()
        self._roles: set[str] = set()

    def write(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return `messages` with roles that this endpoint takes.

        A developer's turn becomes the system's; a system's turn is put before the user's next one.
        """
        turns = [dict(turn) for turn in messages]
        if "developer" in self._roles:
            turns = [{**turn, "role": "system"} if turn["role"] == "developer" else turn for turn in turns]
        return _without_system(turns) if "system" in self._roles else turns

    def translate(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        """Return `sampling` as this endpoint takes it."""
        return {
            self._names[0] if name == LENGTH[0] else name: value
            for name, value in sampling.items()
            if name not in self._dropped
        }

    def dropped(self, sampling: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the parameters of `sampling`, and the roles, that this endpoint does not take."""
        return (
            *(name for name in sampling if name in self._dropped),
            *(f"role {name}" for name in sorted(self._roles)),
        )

    def learn(self, problem: Problem, sent: Mapping[str, Any], messages: Sequence[Mapping[str, Any]] = ()) -> bool:
        """Learn from a refusal; return True if the request is worth repeating in another form.

        sent: the sampling parameters as they were sent.  messages: the turns as they were sent.
        A value out of range (a limit too high) is no reason to drop a parameter, so only refusals of the parameter itself count.
        """
        if problem.status not in (400, 422):
            return False
        if ROLE.search(problem.message) and self._learn_role(problem.message, {str(turn["role"]) for turn in messages}):
            return True
        if not UNSUPPORTED.search(problem.message):
            return False
        known = [name for name in (*DROPPED, *LENGTH) if name in sent]
        refused = [name for name in known if name in problem.named] or _named_in(problem.message, known)
        return any([self._refuse(name, problem.message) for name in refused])

    def _learn_role(self, reason: str, sent: set[str]) -> bool:
        refused = next((role for role in reversed(ROLES) if role in sent and _place(reason.lower(), role) >= 0), "")
        if refused and refused not in self._roles:
            self._roles.add(refused)
            instead = "system turns" if refused == "developer" else "the user's turns"
            log.warning("the endpoint takes no %s turns; sending their text in %s: %s", refused, instead, reason[:200])
        return bool(refused)

    def _refuse(self, name: str, reason: str) -> bool:
        if name in LENGTH:
            if name not in self._names:
                return True  # a request that was under way when another one learned this
            if len(self._names) == 1:
                return False
            self._names.remove(name)
            log.info("the endpoint does not take %s; sending %s instead", name, self._names[0])
        elif name not in self._dropped:
            self._dropped.add(name)
            log.warning("the endpoint does not take %s, so its own default applies: %s", name, reason[:200])
        return True


def _named_in(message: str, names: list[str]) -> list[str]:
    """Parameters that a message refuses, in its order; of temperature and top_p together, top_p."""
    found = {name: place for name in names if (place := _place(message, name)) >= 0}
    if {"temperature", "top_p"} <= found.keys() and TOGETHER.search(message):
        return ["top_p"]
    ordered = sorted(found, key=lambda name: found[name])
    lengths = [name for name in ordered if name in LENGTH]
    return [name for name in ordered if name not in lengths[1:]]


def _place(message: str, name: str) -> int:
    found = re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", message)
    return found.start() if found else -1


def _without_system(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns with the text of each system turn before that of the next user turn."""
    held: list[str] = []
    found: list[dict[str, Any]] = []
    for turn in turns:
        if turn["role"] == "system":
            held.append(str(turn["content"]))
        elif turn["role"] == "user" and held:
            found.append({**turn, "content": "\n\n".join([*held, str(turn["content"])])})
            held = []
        else:
            found.append(turn)
    return [*found, {"role": "user", "content": "\n\n".join(held)}] if held else found
