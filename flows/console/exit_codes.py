"""What our commands exit with."""

USER = 2
"""A message for the user."""
INTERRUPTED = 130
DECISIONS = {"ship": 0, "do not ship": 3, "not enough data": 4}
"""Under gate.enforce, and of `flows.compare`."""


def interrupted() -> int:
    """The exit code of a command that caught its KeyboardInterrupt.

    Python remembers one that passed through an `exec` of text, as it does when it comes amid the import of a dataclass, and
    would end the process by SIGINT, whatever the exit code.  An `exec` without one makes it forget.
    """
    exec("")
    return INTERRUPTED
