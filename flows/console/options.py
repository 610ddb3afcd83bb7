"""Parts of a command line: a parser that names the nearest option, numbers in a range."""

import argparse
import difflib
import logging
from typing import Any, NoReturn

from flows.console import exit_codes

log = logging.getLogger("stillroom")


class Parser(argparse.ArgumentParser):
    """A command line that names the nearest option for an unknown one."""

    def error(self, message: str) -> NoReturn:
        """Print the message with its fix, and end."""
        known = [name for action in self._actions for name in action.option_strings]
        wrong = next((word.partition("=")[0].rstrip(":") for word in message.split() if word.startswith("--")), "")
        near = difflib.get_close_matches(wrong, known, 1) if wrong not in known else []
        fix = f"did you mean {near[0]}?" if near else f"{self.prog} --help"
        log.error("%s\n  fix: %s", message, fix)
        raise SystemExit(exit_codes.USER)


def number(low: float, high: float, whole: bool = False) -> Any:
    """Return a reader of numbers in a range, for argparse."""

    def read(text: str) -> float | int:
        try:
            found = int(text) if whole else float(text)
        except ValueError:
            found = low - 1
        if not low <= found <= high:
            kind = "a whole number" if whole else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {kind} from {low:g} to {high:g}")
        return found

    return read
