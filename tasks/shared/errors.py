"""Errors that a user can act on: where, what was given, what is wanted, how to fix it."""

from collections.abc import Sequence
from typing import Any


class StillroomError(Exception):
    """A problem with the user's input or machine; printed as one message, without a traceback.

    where: recipe key, file and line, or URL.  got: the value found.  wanted: what is accepted.  fix: what to type.
    retryable: it may go away by itself (a server that is down), so that trying again makes sense.
    """

    def __init__(self, where: str, got: str, wanted: str = "", fix: str = "", retryable: bool = False) -> None:
        self.where, self.got, self.wanted, self.fix, self.retryable = where, got, wanted, fix, retryable
        parts = [f"{where}: {got}"]
        if wanted:
            parts.append(f"  wanted: {wanted}")
        if fix:
            parts.append(f"  fix: {fix}")
        super().__init__("\n".join(parts))

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes (a pool's worker) it goes as it is: Exception's own way would make it anew, of its message alone."""
        return _again, (type(self), self.args, self.__dict__)


class ConfigError(StillroomError):
    """A recipe, option or setting is wrong."""


class DataError(StillroomError):
    """A corpus or trace file is wrong."""


class ModelError(StillroomError):
    """A model folder or file is missing, unsafe or of a shape that the technique cannot handle."""


class EndpointError(StillroomError):
    """A teacher endpoint refused, failed or answered something else than a completion."""


class RefusedError(EndpointError):
    """An endpoint will never answer this request (too long, filtered); others it may answer."""


class TechniqueError(StillroomError):
    """A technique cannot do what its settings ask of this input."""


class ParityError(StillroomError):
    """An exported file does not answer like its source model."""


class MachineError(StillroomError):
    """The machine lacks something: disk, memory, a free port."""


class ErrorList(StillroomError):
    """Several errors found in one pass; the message lists all of them."""

    def __init__(self, errors: Sequence[StillroomError]) -> None:
        self.errors = list(errors)
        self.retryable = False
        Exception.__init__(self, "\n".join(str(error) for error in errors))


def _again(kind: type[StillroomError], message: tuple[str, ...], state: dict[str, Any]) -> StillroomError:
    error = kind.__new__(kind, *message)
    error.__dict__.update(state)
    return error
