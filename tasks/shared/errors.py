"""Errors that a user can act on: where, what was given, what is wanted, how to fix it."""

from collections.abc import Sequence
from typing import Any


class StillroomError(Exception):
    """A problem with the user's input or machine; printed as one message, without a traceback.

    where: recipe key, file and line, or URL.  got: the value found.  wanted: what is accepted.  fix: what to type.
    retryable: the problem may pass by itself (a server that is down), so another attempt makes sense.
    """

    def __init__(self, where: str, got: str, wanted: str = "", fix: str = "", retryable: bool = False) -> None:
        self.where, self.got, self.wanted, self.fix, self.retryable = where, got, wanted, fix, retryable
        parts = [f"{where}: {got}"]
        if wanted:
            parts.append(f"  wanted: {wanted}")
        if fix:
            parts.append(f"  fix: {fix}")
        super().__init__("\n".join(parts))

    def within(self, place: str) -> "StillroomError":
        """Return the error inside a place: `vote` within `steps.traces` is `steps.traces.vote`."""
        return type(self)(f"{place}.{self.where}", self.got, self.wanted, self.fix, self.retryable)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the error with its fields; Exception would call `__init__` with the message only."""
        return _rebuild, (type(self), self.args, self.__dict__)


class ConfigError(StillroomError):
    """A recipe, option or setting is wrong."""


class DataError(StillroomError):
    """A corpus or trace file is wrong."""


class ModelError(StillroomError):
    """A model folder or file is missing, unsafe or of a shape that the technique cannot handle."""


class EndpointError(StillroomError):
    """An endpoint refused, failed, or returned something other than a completion."""


class RefusedError(EndpointError):
    """An endpoint will never answer this request (too long, filtered), but may answer others."""


class TechniqueError(StillroomError):
    """A technique cannot apply its settings to this input."""


class ParityError(StillroomError):
    """An exported file does not reproduce its source model's answers."""


class MachineError(StillroomError):
    """The machine lacks something: disk, memory, a free port."""


class ErrorList(StillroomError):
    """Several errors found in one pass; the message lists all of them."""

    def __init__(self, errors: Sequence[StillroomError]) -> None:
        self.errors = list(errors)
        self.retryable = False
        Exception.__init__(self, "\n".join(str(error) for error in errors))

    def within(self, place: str) -> "ErrorList":
        """Return the errors, each with `where` inside a place."""
        return ErrorList([error.within(place) for error in self.errors])


def _rebuild(kind: type[StillroomError], message: tuple[str, ...], state: dict[str, Any]) -> StillroomError:
    error = kind.__new__(kind, *message)
    error.__dict__.update(state)
    return error
