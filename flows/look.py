"""Look at a file of conversations: format, columns, errors, lengths, labels, copies.

python -m flows.look data.csv
python -m flows.look data.csv --tokenizer models/my-1b
python -m flows.look data.csv --map '{user: question, assistant: reply}'
python -m flows.look data.csv --write my_conf/recipe/my.yaml

Nothing is changed; --write writes a recipe to start from.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.console import exit_codes
from flows.console.terminal import prepare_terminal
from tasks.shared.errors import ConfigError, StillroomError

if TYPE_CHECKING:
    from tasks.curate.reading.settings import ReadSettings

log = logging.getLogger("stillroom")
WANTED = {
    "map": "columns by what they hold, such as {user: question, assistant: reply}",
    "task": "a type such as qa, or settings such as {type: classification, layout: alone}",
    "encoding": "the name of an encoding, such as cp1252",
}
"""Values of the options that set the reader."""


def look(options: argparse.Namespace) -> None:
    """Print format, columns, errors, lengths, labels and copies of a file.

    Raises StillroomError.
    """
    from rich.console import Console

    from flows.looking import figures, tables
    from flows.looking.proposal import propose_task
    from flows.looking.sample import read_again, take_sample
    from flows.looking.starter import write_recipe
    from tasks.curate.reading.files import split_files
    from tasks.curate.reading.settings import ReadSettings
    from tasks.curate.splitting.settings import SplitSettings
    from tasks.curate.splitting.splits import expected_rows

    given = given_settings(options)
    settings = checked_settings(options, given)
    files = split_files(options.file) or {"path": options.file}
    path = next(iter(files.values()))
    sample = take_sample(path, settings)
    if (proposal := propose_task(sample)) is not None:
        given["task"] = {"type": proposal.type}
        read_again(sample, ReadSettings(**given))
    console, split = Console(), SplitSettings()
    tables.show_splits(console, files)
    tables.show_file(console, path, sample)
    if proposal is not None:
        tables.show_proposal(console, proposal)
    tables.show_columns(console, sample)
    tables.show_errors(console, sample)
    if not sample.rows:
        raise ConfigError(
            path,
            "no record can be read as a conversation; the reasons are above",
            "a known format, or the columns that hold the question and the answer",
            next(
                (found.fix for found in sample.bad.classes.values() if found.fix),
                "--map '{user: COLUMN, assistant: COLUMN}'",
            ),
        )
    lengths = figures.measure_lengths(sample.rows, options.tokenizer)
    tables.show_lengths(console, lengths)
    tables.show_labels(console, figures.count_labels(sample.rows), len(sample.rows))
    tables.show_copies(console, figures.count_copies(sample.rows, split.max_similarity))
    tables.show_languages(console, sample)
    expected = expected_rows(files, split, options.encoding)
    tables.show_test(console, expected.test, "the test file" if "test" in files else f"test_share={split.test_share:g}")
    prices = (options.prices[0], options.prices[1])
    tables.show_cost(console, figures.teacher_cost(sample, lengths, expected.train, prices), prices)
    name = ""
    if options.write:
        weights = options.tokenizer if any(Path(options.tokenizer or "/nowhere").glob("*.safetensors")) else ""
        name = write_recipe(options.write, files, sample, lengths, given, weights)
        tables.line(console, "written", str(options.write))
    for step in tables.next_steps(options.file, options.write, name):
        tables.line(console, "next", step, whole=True)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.  Exit codes: 0 done, 2 a message."""
    prepare_terminal()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    parser = argparse.ArgumentParser(
        prog="python -m flows.look", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="file or folder of conversations, or folder of train and test; packed or not; FILE.json#LIST for a list of it",
    )
    parser.add_argument("--tokenizer", default="", metavar="FOLDER", help="model whose tokenizer measures the lengths")
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
    parser.add_argument(
        "--prices",
        type=float,
        nargs=2,
        default=(0.0, 0.0),
        metavar=("IN", "OUT"),
        help="a teacher's prices per million prompt and answer tokens",
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write a recipe to start from")
    options = parser.parse_args(arguments)
    try:
        look(options)
    except StillroomError as error:
        log.error("%s", error)
        return exit_codes.USER
    except KeyboardInterrupt:
        return exit_codes.interrupted()
    return 0


if __name__ == "__main__":
    sys.exit(main())
