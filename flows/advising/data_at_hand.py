"""Rows at hand: those of the user's file, as typed, or a demo's."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.advising.recipe import DEMO, DEMO_MEASURES
from flows.looking.figures import measure_lengths
from flows.looking.first_look import first_look
from flows.looking.starter import corpus_settings, deciding_measures, file_names, length_limit
from tasks.curate.splitting.settings import SplitSettings
from tasks.curate.splitting.splits import expected_rows
from tasks.shared.errors import ConfigError
from tasks.shared.forecast import LONG_ROW_TOKENS, ROW_TOKENS


@dataclass(frozen=True)
class Data:
    """Rows at hand.

    line: in words.  rows, items: for training, and for the test.  answered: some hold answers.  task: its type.
    corpus: technique of stage curate and its settings.  training: settings of steps that read whole conversations.
    measures: that decide.  names: of the files, for a comment.  tokens: of the mean conversation, and of the longest.
    """

    line: str
    rows: int
    items: int
    answered: bool
    task: str
    corpus: tuple[str, Mapping[str, Any]]
    training: Mapping[str, Any] = field(default_factory=dict)
    measures: Sequence[str] = ()
    names: str = ""
    tokens: tuple[int, int] = (ROW_TOKENS, LONG_ROW_TOKENS)


def look_at(options: argparse.Namespace) -> Data:
    """Look at the user's file, as flows.look does.  Raises StillroomError."""
    if options.rows is not None or options.items is not None or options.no_answers:
        raise ConfigError(
            "--data",
            "given with --rows, --items or --no-answers",
            "one or the other",
            "leave them out: the file is counted",
        )
    found = first_look(options.data, options)
    files, sample = found.files, found.sample
    if not sample.rows:
        got = "no record can be read as a conversation"
        raise ConfigError("--data", f"{options.data}: {got}", "a known format", f"python -m flows.look {options.data}")
    expected = expected_rows(files, SplitSettings(), options.encoding)
    task = next(iter(sample.reader.tasks.values())).type
    answered = sum(row.answered or bool(row.key) for row in sample.rows)
    words = f"{expected.train:,} rows for training, {expected.test:,} test items, task type {task}"
    if answered < len(sample.rows):
        words += f"; {len(sample.rows) - answered:,} of {len(sample.rows):,} looked at have no answer"
    tokenizer = options.model if (Path(options.model or "/nowhere") / "tokenizer.json").is_file() else ""
    return Data(
        f"{file_names(files)}: {words}",
        expected.train,
        expected.test,
        answered > 0,
        str(task),
        ("curate/jsonl", corpus_settings(files, sample, found.settings)),
        length_limit(measure_lengths(sample.rows, tokenizer)),
        deciding_measures(sample),
        file_names(files),
        (expected.tokens, expected.longest),
    )


def rows_typed(options: argparse.Namespace) -> Data:
    """Return the numbers of rows that were typed; without any, those of the demo's corpus."""
    typed = options.rows is not None or options.items is not None or options.no_answers
    rows = int(DEMO["train_size"]) if options.rows is None else options.rows
    items = int(DEMO["test_size"]) if options.items is None else options.items
    demo = f"{rows:,} rows for training, {items:,} test items"
    words = (
        f"{demo}, as typed; a written recipe has a demo's corpus in their place"
        if typed
        else f"none given; a demo's corpus stands in: {demo} (give yours with --data FILE)"
    )
    return Data(
        words,
        rows,
        items,
        not options.no_answers,
        "support",
        ("curate/support", DEMO),
        {},
        DEMO_MEASURES,
        "a demo's corpus (put yours in its place: flows.look)",
    )
