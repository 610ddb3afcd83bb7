"""Why an event could not be sent.  The event stays where it is in both cases."""


class NotSent(Exception):
    """An event is not on the server; the message has no credentials in it."""


class Unreachable(NotSent):
    """The server, its database or its artifact store does not answer: the next event would fail too."""


class Refused(NotSent):
    """The server answers, and does not want this event: the next one may pass."""
