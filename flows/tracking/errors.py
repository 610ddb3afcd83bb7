"""Errors of sending an event, which then stays in the outbox."""


class NotSent(Exception):
    """An event did not reach the server; the message holds no credentials."""


class Unreachable(NotSent):
    """The server, its database or artifact store does not answer; the next event would fail too."""


class Refused(NotSent):
    """The server refuses this event; it may accept the next one."""
