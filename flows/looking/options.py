"""Options of the command line that say how to read a file of conversations."""

import argparse
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import ConfigError

if TYPE_CHECKING:
    from tasks.curate.reading.settings import ReadSettings

WANTED = {
    "map": "columns by what they hold, such as {user: question, assistant: reply}",
    "task": "a type such as qa, or settings such as {type: classification, layout: alone}",
    "encoding": "the name of an encoding, such as cp1252",
}
"""Values of the options that set the reader."""


def add_reader_options(parser: "argparse._ActionsContainer") -> None:
    """Add --map, --task, --tasks and --encoding."""
    parser.add_argument(
        "--map", default="", metavar="YAML", help="what the columns hold: {user: COLUMN, assistant: COLUMN}"
    )
    parser.add_argument(
        "--task",
        default="",
        metavar="YAML",
        help="type of the task (classification, reasoning, ...), or a mapping of its settings",
    )
    parser.add_argument(
        "--tasks", default="", metavar="YAML", help="tasks by name; map.task says which column names them"
    )
    parser.add_argument("--encoding", default="", metavar="NAME", help="encoding of the file, if it is not UTF-8")


def checked_settings(options: argparse.Namespace, given: dict[str, Any]) -> "ReadSettings":
    """Return the reader's settings.  Raises ConfigError that names the option of a wrong one."""
    from pydantic import ValidationError

    from tasks.curate.reading.settings import ReadSettings

    try:
        return ReadSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "map"
        got = f"{getattr(options, name)}: {first['msg'].removeprefix('Value error, ')}"
        raise ConfigError(f"--{name}", got, WANTED[name], "see docs/data.md") from error


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the reader that the command line gives.

    Raises ConfigError for text that is not a YAML mapping.
    """
    import yaml

    found: dict[str, Any] = {"encoding": options.encoding} if options.encoding else {}
    for name in ("map", "task", "tasks"):
        text = getattr(options, name)
        if not text:
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--{name}", text, f"a YAML mapping: {WANTED[name]}") from error
        if name == "task" and isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, dict):
            raise ConfigError(f"--{name}", text, f"a YAML mapping: {WANTED[name]}")
        found[name] = value
    return found
