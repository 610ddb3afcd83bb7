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

from flows.console import exit_codes
from flows.console.terminal import prepare_terminal
from flows.looking.options import add_reader_options
from tasks.shared.errors import ConfigError, StillroomError

log = logging.getLogger("stillroom")


def look(options: argparse.Namespace) -> None:
    """Print format, columns, errors, lengths, labels and copies of a file.

    Raises StillroomError.
    """
    from rich.console import Console

    from flows.looking import figures, tables
    from flows.looking.first_look import first_look
    from flows.looking.starter import write_recipe
    from tasks.curate.splitting.settings import SplitSettings
    from tasks.curate.splitting.splits import expected_rows

    found = first_look(options.file, options)
    files, path, sample, proposal = found.files, found.path, found.sample, found.proposal
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
                (bad.fix for bad in sample.bad.classes.values() if bad.fix),
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
        name = write_recipe(options.write, files, sample, lengths, found.settings, weights)
        tables.line(console, "written", str(options.write))
    for step in tables.next_steps(options.file, options.write, name):
        tables.line(console, "next", step, whole=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.  Exit codes: 0 done, 2 an error."""
    prepare_terminal()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    parser = argparse.ArgumentParser(
        prog="python -m flows.look", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="file or folder of conversations, or folder of train and test; compressed or not; FILE.json#LIST for one list of several",
    )
    parser.add_argument("--tokenizer", default="", metavar="FOLDER", help="model whose tokenizer measures the lengths")
    add_reader_options(parser)
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
