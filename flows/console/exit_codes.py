"""Exit codes of the commands."""

USER = 2
"""The command ended with a message for the user."""
INTERRUPTED = 130
DECISIONS = {"ship": 0, "do not ship": 3, "not enough data": 4}
"""Exit code by decision, with gate.enforce and in `flows.compare`."""


def interrupted() -> int:
    """Return the exit code of a command that caught its KeyboardInterrupt.

    An interrupt inside an `exec` of text, as in the import of a dataclass, sets a flag in Python, which then ends the process
    by SIGINT, whatever the exit code.  An `exec` without an interrupt clears the flag.
    """
    exec("")
    return INTERRUPTED
