"""Errors of sending an event, which stays in the outbox in any case."""


class NotSent(Exception):
    """An event is not on the server; the message has no credentials in it."""


class Unreachable(NotSent):
    """The server, its database or artifact store does not answer; the next event would fail too."""


class Refused(NotSent):
    """The server answers and refuses this event; the next one may pass."""
