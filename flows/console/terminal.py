"""Output that any terminal can show: plain log lines, ASCII for missing characters.

Every command calls `prepare_terminal` before its first output.
"""

import codecs
import logging
import sys
import unicodedata
from typing import Any

SPELLING = {"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{EM DASH}": "-", "\N{MULTIPLICATION SIGN}": "x"} | {
    "\N{HORIZONTAL ELLIPSIS}": ".",
    "\N{BULLET}": "*",
    "\N{RIGHTWARDS ARROW}": ">",
    "\N{LEFT SINGLE QUOTATION MARK}": "'",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"',
    "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
}
"""ASCII for characters that an encoding lacks, one for one, so that tables stay aligned."""
HANDLER = "stillroom.spell"


class CurrentStderr(logging.StreamHandler):
    """Log handler for the current sys.stderr, which progress bars replace while they are drawn."""

    @property
    def stream(self) -> Any:
        """Standard error."""
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None:
        """Ignore the stream that the base class sets."""


def prepare_terminal() -> None:
    """Print our log lines plain on standard error; no character may raise an error."""
    prepare_streams()
    handler = CurrentStderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("stillroom", "tasks"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


def prepare_streams() -> None:
    """Replace characters that the encoding of standard output or error lacks."""
    codecs.register_error(HANDLER, spell)
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):  # a stream in memory has no encoding
            reconfigure(errors=HANDLER)


def spell(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that cannot be encoded: by `SPELLING`, without accents, or escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spelled, error.object[error.start : error.end])), error.end


def _spelled(letter: str) -> str:
    plain = SPELLING.get(letter) or unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return plain or letter.encode("ascii", "backslashreplace").decode()
