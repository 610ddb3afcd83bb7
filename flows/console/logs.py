"""Log lines on standard error: ours plain, those of libraries from warning up."""

import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


class CurrentStderr(logging.StreamHandler):
    """Writes to whatever sys.stderr is now: progress bars take it over while they are drawn."""

    @property
    def stream(self) -> Any:
        """Standard error."""
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None:
        """Fixed."""


def prepare_logging() -> None:
    """Our own lines plain on standard error; libraries from warning up."""
    handler = CurrentStderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("stillroom", "tasks"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
