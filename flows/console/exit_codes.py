"""Exit codes of the commands."""

USER = 2
"""A message for the user."""
INTERRUPTED = 130
DECISIONS = {"ship": 0, "do not ship": 3, "not enough data": 4}
"""By decision: with gate.enforce, and of `flows.compare`."""


def interrupted() -> int:
    """The exit code of a command that caught its KeyboardInterrupt.

    Python remembers an interrupt that passed through an `exec` of text, as in the import of a dataclass, and would end the
    process by SIGINT, whatever the exit code.  An `exec` without an interrupt clears that memory.
    """
    exec("")
    return INTERRUPTED
